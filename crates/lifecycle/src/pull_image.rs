//! PullImage: equal requests join, and the pull ends when nobody waits any more.
//!
//! What is pulled, and in which steps, is told in `puller` and `pull_layers`; in whose cgroup, in `pull_process`.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use domain::id::ImageId;
use image_pull::auth::{AuthError, AuthFiles, EnvironmentPaths, RequestAuth};
use image_pull::{BlobError, Credentials, ErrorKind, ResolveError};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::blocking;
use crate::encrypted::DecryptError;
use crate::node::Node;
use crate::pull_auth::NamespacedAuth;
use crate::pull_progress::PullProgress;
use crate::trust::TrustError;
use crate::undo::chain;

/// What is to be pulled, and for whom.
#[derive(Debug, Clone, Default)]
pub struct PullOrder {
    /// A name, or a local source: `oci:`, `oci-archive:`, `docker-archive:` and a path.
    pub image: String,
    /// What the request brings.
    pub auth: Option<RequestAuth>,
    /// Kubernetes namespace of the sandbox, or empty.
    pub namespace: String,
    /// `cgroup_parent` of the sandbox, or empty.
    pub cgroup_parent: String,
    /// A credentials file that counts in place of `global_auth_file`.
    pub auth_file: Option<PathBuf>,
    /// Whose work it is.
    pub purpose: PullPurpose,
}

/// Whose work a pull is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullPurpose {
    /// A client's: it runs where `separate_pull_cgroup` says.
    #[default]
    Request,
    /// The daemon's own, as for the pause image.
    Daemon,
}

/// Which pulls are the same: image, credentials, namespace, cgroup. Secrets are kept as a digest only.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct PullKey {
    image: String,
    credentials: u64,
    namespace: String,
    cgroup_parent: String,
    auth_file: Option<PathBuf>,
}

/// What a caller may do about a pull that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum PullFailure {
    /// Ask for something else.
    BadRequest,
    /// Look whether it was pushed.
    NotFound,
    /// Try again later, or another registry.
    RegistryUnavailable,
    /// Have it signed, or change the policy.
    Untrusted,
    /// Make room.
    OutOfSpace,
    /// Read the text.
    Other,
}

/// Why an image or artifact was not pulled. No image and no unfinished layer is left of the attempt;
/// whole layers stay for a while, for the next attempt to find.
#[derive(Debug, Error)]
pub enum PullImageError {
    /// No image was named.
    #[error("no image specified")]
    Unnamed,
    /// The text names no image.
    #[error("image reference {image:?}")]
    Reference {
        /// As asked.
        image: String,
        #[source]
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The credentials of the request are damaged.
    #[error("credentials of the request")]
    Credentials(#[source] AuthError),
    /// The namespace's credentials cannot be taken.
    #[error("take credentials {} of the namespace", path.display())]
    Namespaced {
        /// The file.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The cgroup the pull is to run in.
    #[error("cgroup of the pull of image {image}")]
    Cgroup {
        /// As asked.
        image: String,
        #[source]
        /// What is wrong.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The process that was to pull could not be begun, or ended without a word.
    #[error("pull image {image} in a process of its own: {reason}")]
    Process {
        /// As asked.
        image: String,
        /// What happened.
        reason: String,
    },
    /// The process that was to pull says why it did not.
    #[error("{message}")]
    InProcess {
        /// What it says.
        message: String,
        /// The class of that.
        class: PullFailure,
        /// The class of failure, where a registry was to blame.
        kind: Option<ErrorKind>,
    },
    /// Manifest or configuration could not be had.
    #[error("pull image {image}")]
    Resolve {
        /// The source tried.
        image: String,
        #[source]
        /// What failed.
        source: Box<ResolveError>,
    },
    /// The signature policy does not let it be pulled, or cannot be asked.
    #[error("pull image {image}")]
    Trust {
        /// The source.
        image: String,
        #[source]
        /// What it says.
        source: Box<TrustError>,
    },
    /// None of several candidates could be had.
    #[error("pull image {image}: {}", tried.iter().map(|error| chain(error)).collect::<Vec<_>>().join("; "))]
    Candidates {
        /// As asked.
        image: String,
        /// What each one said.
        tried: Vec<PullImageError>,
    },
    /// A layer's bytes stopped.
    #[error("fetch layer {layer} of image {image}")]
    Blob {
        /// The source.
        image: String,
        /// The layer's digest.
        layer: String,
        #[source]
        /// What failed.
        source: Box<BlobError>,
    },
    /// A layer could not be unpacked.
    #[error("unpack layer {layer} of image {image}")]
    Stage {
        /// The source.
        image: String,
        /// The layer's digest.
        layer: String,
        #[source]
        /// What failed.
        source: Box<image_store::StageError>,
    },
    /// A layer is not what manifest and configuration say, or could not be kept.
    #[error("commit layer {layer} of image {image}")]
    Commit {
        /// The source.
        image: String,
        /// The layer's digest.
        layer: String,
        #[source]
        /// What failed.
        source: Box<image_store::CommitLayerError>,
    },
    /// A blob of an artifact is not what its manifest says, or could not be kept.
    #[error("keep blob {blob} of artifact {image}")]
    StageBlob {
        /// The source.
        image: String,
        /// The blob's digest.
        blob: String,
        #[source]
        /// What failed.
        source: Box<image_store::StageBlobError>,
    },
    /// An artifact could not be recorded.
    #[error("record artifact {image}")]
    Artifact {
        /// The source.
        image: String,
        #[source]
        /// What failed.
        source: Box<image_store::ArtifactError>,
    },
    /// A layer is encrypted, and the keys of the node do not open it.
    #[error("decrypt image {image}")]
    Decrypt {
        /// The source.
        image: String,
        #[source]
        /// What failed.
        source: Box<DecryptError>,
    },
    /// The store's records.
    #[error("look for layers of image {image}")]
    Records {
        /// The source.
        image: String,
        #[source]
        /// What failed.
        source: image_store::RecordsError,
    },
    /// The image could not be recorded.
    #[error("record image {image}")]
    Put {
        /// The source.
        image: String,
        #[source]
        /// What failed.
        source: Box<image_store::PutImageError>,
    },
}

impl PullImageError {
    /// The class of failure, where a registry was to blame.
    #[must_use]
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Resolve { source, .. } => Some(source.kind()),
            Self::Blob { source, .. } => Some(source.kind()),
            Self::Trust { source, .. } => source.kind(),
            Self::Candidates { tried, .. } => tried.last().and_then(Self::kind),
            Self::InProcess { kind, .. } => *kind,
            _ => None,
        }
    }

    /// What a caller may do about it.
    #[must_use]
    pub fn class(&self) -> PullFailure {
        match self {
            Self::Unnamed | Self::Reference { .. } | Self::Credentials(_) | Self::Cgroup { .. } => {
                PullFailure::BadRequest
            }
            Self::Trust { source, .. } if source.is_verdict() => PullFailure::Untrusted,
            // The last one counts. Source: CRI-O.
            Self::Candidates { tried, .. } => tried.last().map_or(PullFailure::Other, Self::class),
            Self::Resolve { .. } | Self::Trust { .. } | Self::Blob { .. } => match self.kind() {
                Some(ErrorKind::NotFound) => PullFailure::NotFound,
                Some(kind) if kind.is_registry_unavailable() => PullFailure::RegistryUnavailable,
                _ => PullFailure::Other,
            },
            Self::Stage { source, .. } if source.is_out_of_space() => PullFailure::OutOfSpace,
            Self::StageBlob { source, .. } if source.is_out_of_space() => PullFailure::OutOfSpace,
            Self::Artifact { source, .. } if source.is_out_of_space() => PullFailure::OutOfSpace,
            Self::InProcess { class, .. } => *class,
            Self::Namespaced { .. }
            | Self::Process { .. }
            | Self::Stage { .. }
            | Self::StageBlob { .. }
            | Self::Artifact { .. }
            | Self::Commit { .. }
            | Self::Decrypt { .. }
            | Self::Records { .. }
            | Self::Put { .. } => PullFailure::Other,
        }
    }
}

impl Node {
    /// Pulls an image, or joins the pull of the same one for the same namespace with the same credentials.
    ///
    /// Dropping the future ends the pull, unless somebody else waits for it.
    pub async fn pull_image(self: &Arc<Self>, order: PullOrder) -> Result<ImageId, Arc<PullImageError>> {
        if order.image.is_empty() {
            return Err(Arc::new(PullImageError::Unnamed));
        }
        let key = PullKey {
            image: order.image.clone(),
            credentials: fingerprint(order.auth.as_ref()),
            namespace: order.namespace.clone(),
            cgroup_parent: order.cgroup_parent.clone(),
            auth_file: order.auth_file.clone(),
        };
        let node = Arc::clone(self);
        let pulled = self.pulls.join(key, || async move { node.pull(&order).await }).await;
        // Buffers of a pull are as large as all else the daemon holds, and may not be needed again for days.
        blocking::run("give memory back", sys::memory::trim).await;
        pulled
    }

    /// How far the pull of `image`, as it was asked for, has come; `None` if there is none.
    #[must_use]
    pub fn pull_progress(&self, image: &str) -> Option<PullProgress> {
        self.pulls_under_way.of(image)
    }

    /// How far all pulls have come, each under the name it was asked by.
    #[must_use]
    pub fn pulls(&self) -> Vec<(String, PullProgress)> {
        self.pulls_under_way.all()
    }

    async fn pull(&self, order: &PullOrder) -> Result<ImageId, PullImageError> {
        let under_way = self.pulls_under_way.begin(&order.image);
        let cgroup = self.pull_cgroup(order)?;
        let namespaced = NamespacedAuth::take(&self.config.image.namespaced_auth_dir, order).await?;
        let auth_file = namespaced.as_ref().map(|taken| taken.path().to_owned()).or_else(|| order.auth_file.clone());
        if let Some(cgroup) = cgroup {
            return self.pull_in_process(order, auth_file, &cgroup, under_way.counters()).await;
        }
        let credentials = self.puller.credentials(order.auth.as_ref(), auth_file)?;
        self.puller.pull(&order.image, &order.namespace, &credentials, under_way.counters()).await
    }

    /// The credentials of the daemon itself.
    pub(crate) fn credentials(&self) -> Result<Credentials, PullImageError> {
        self.puller.credentials(None, None)
    }
}

/// The files that are asked for a login: one and no other, or those of the user.
pub(crate) fn auth_files(global: Option<&PathBuf>, instead: Option<PathBuf>) -> AuthFiles {
    match instead.or_else(|| global.cloned()) {
        Some(path) => AuthFiles::only(path),
        None => AuthFiles::standard(&EnvironmentPaths::from_environment()),
    }
}

/// Tells credentials apart without keeping them: a keyed hash that lives as long as the process.
fn fingerprint(auth: Option<&RequestAuth>) -> u64 {
    use std::hash::{BuildHasher, RandomState};
    use std::sync::OnceLock;
    static KEY: OnceLock<RandomState> = OnceLock::new();
    let parts =
        auth.map(|auth| (&auth.username, &auth.password, &auth.auth, &auth.identity_token, &auth.registry_token));
    KEY.get_or_init(RandomState::new).hash_one(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn different_credentials_are_different_pulls() {
        let auth = |password: &str| RequestAuth {
            username: "user".to_owned(),
            password: password.to_owned(),
            ..RequestAuth::default()
        };
        assert_eq!(fingerprint(Some(&auth("a"))), fingerprint(Some(&auth("a"))));
        assert_ne!(fingerprint(Some(&auth("a"))), fingerprint(Some(&auth("b"))));
        assert_ne!(fingerprint(Some(&auth("a"))), fingerprint(None));
    }
}
