//! Seccomp profiles that are artifacts: named by an annotation of the pod or of the image, pulled before the container
//! is made. Source: CRI-O, annotation `seccomp-profile.crio.io`.

use std::sync::Arc;

use confinement::seccomp::Availability;
use domain::container::ContainerConfig;
use domain::image::manifest_annotations;
use domain::security::SecurityProfile;
use domain::spec::annotations::{filter_annotations, seccomp_artifact};
use image_pull::{ParseReferenceError, Platform, Reference, ResolveError, Resolved, Source};
use thiserror::Error;

use crate::artifacts::Artifact;
use crate::blocking;
use crate::image::{ImagesError, LocalImage};
use crate::node::Node;
use crate::pull_image::PullImageError;
use crate::pull_progress::PullCounters;
use crate::puller::untrusted;
use crate::sandbox::Sandbox;

/// What a profile may have, as a file may; an artifact with more is not fetched. Source: CRI-O.
const PROFILE_MAX_BYTES: u64 = 1 << 20;

/// Why the profile that an annotation names cannot be had.
#[derive(Debug, Error)]
pub enum SeccompArtifactError {
    /// The text names nothing in a registry.
    #[error("seccomp profile {reference:?} is no full reference of an artifact")]
    Reference {
        /// As annotated.
        reference: String,
        #[source]
        /// What is wrong; absent for a name without its registry.
        source: Option<ParseReferenceError>,
    },
    /// The image's own annotations.
    #[error("read the annotations of image {image}")]
    Annotations {
        /// The image.
        image: String,
        #[source]
        /// What failed.
        source: image_store::BigDataError,
    },
    /// The registry does not give it.
    #[error("seccomp profile {reference}")]
    Resolve {
        /// As annotated.
        reference: String,
        #[source]
        /// What failed.
        source: Box<ResolveError>,
    },
    /// It names something to run.
    #[error("seccomp profile {reference} is an image, not an artifact")]
    Image {
        /// As annotated.
        reference: String,
    },
    /// It has none, or more bytes than any profile has.
    #[error("seccomp profile {reference} has {size} bytes, which is not between 1 and {PROFILE_MAX_BYTES}")]
    Size {
        /// As annotated.
        reference: String,
        /// All blobs together.
        size: u64,
    },
    /// It could not be fetched or recorded.
    #[error(transparent)]
    Pull(#[from] PullImageError),
    /// It could not be found again.
    #[error(transparent)]
    Find(#[from] ImagesError),
    /// Its bytes are gone or damaged.
    #[error("read seccomp profile {reference}")]
    Read {
        /// As annotated.
        reference: String,
        #[source]
        /// What failed.
        source: image_store::PathError,
    },
}

impl Node {
    /// The profile of the artifact that the annotations name; `None` where none is named, or where it does not count:
    /// for privileged containers, and for those that ask for a profile by themselves.
    pub(crate) async fn seccomp_artifact(
        &self,
        sandbox: &Sandbox,
        config: &ContainerConfig,
        image: &LocalImage,
    ) -> Result<Option<Vec<u8>>, SeccompArtifactError> {
        let security = &config.security;
        let is_free = matches!(security.seccomp, None | Some(SecurityProfile::Unconfined)) && !security.privileged;
        if !is_free || self.seccomp.availability() == Availability::Unavailable {
            return Ok(None);
        }
        let of_pod = sandbox.effective_annotations();
        let allowed = self.allowed_annotations(&sandbox.handler, &sandbox.config.annotations);
        let (store, id) = (Arc::clone(&self.store), image.id.clone());
        let manifest = blocking::run("read manifest", move || store.image_manifest(&id)).await;
        let manifest =
            manifest.map_err(|source| SeccompArtifactError::Annotations { image: image.id.to_string(), source })?;
        let of_image = filter_annotations(&manifest_annotations(&manifest), &allowed).effective;
        match seccomp_artifact(&config.metadata.name, &of_pod, &of_image) {
            Some(reference) => self.pull_profile(reference).await.map(Some),
            None => Ok(None),
        }
    }

    /// What a tag names may change, so that it is asked for each time; what a digest names is here or not.
    async fn pull_profile(&self, text: &str) -> Result<Vec<u8>, SeccompArtifactError> {
        let reference = parse_full(text)?;
        let known = self.find_artifact(&reference.to_string()).await?;
        let artifact = match known.filter(|_| reference.digest().is_some()) {
            Some((artifact, _)) => artifact,
            None => self.fetch_profile(text, reference).await?,
        };
        let size = artifact.manifest.size();
        let first = artifact.manifest.blobs.first().filter(|_| (1..=PROFILE_MAX_BYTES).contains(&size));
        let digest = match first {
            Some(blob) => blob.digest.clone(),
            None => return Err(SeccompArtifactError::Size { reference: text.to_owned(), size }),
        };
        let artifacts = Arc::clone(&self.artifacts);
        let read = move || artifacts.read_blob(&artifact, &digest, PROFILE_MAX_BYTES);
        let profile = blocking::run("read profile", read)
            .await
            .map_err(|source| SeccompArtifactError::Read { reference: text.to_owned(), source })?;
        tracing::info!(reference = text, bytes = profile.len(), "a seccomp profile is that of an artifact");
        Ok(profile)
    }

    async fn fetch_profile(&self, text: &str, reference: Reference) -> Result<Artifact, SeccompArtifactError> {
        let own = || text.to_owned();
        let credentials = self.credentials()?;
        let trust = &self.puller.trust;
        // The node's policy, whatever the pod's namespace has: a profile is the node's protection. Source: CRI-O.
        let policy = trust.policy(text, "").await.map_err(|source| untrusted(text, source))?;
        let source = Source::Registry(reference);
        let resolved = self
            .registry
            .resolve_any(&source, &credentials, &Platform::host())
            .await
            .map_err(|source| SeccompArtifactError::Resolve { reference: own(), source: Box::new(source) })?;
        trust
            .check_pulled(&policy, &source, resolved.signature_access(), resolved.manifest_digest())
            .await
            .map_err(|source| untrusted(text, source))?;
        let Resolved::Artifact(resolved) = resolved else {
            return Err(SeccompArtifactError::Image { reference: own() });
        };
        let size = resolved.blobs.iter().fold(0_u64, |sum, blob| sum.saturating_add(blob.size));
        if !(1..=PROFILE_MAX_BYTES).contains(&size) {
            return Err(SeccompArtifactError::Size { reference: own(), size });
        }
        let id = self.puller.pull_artifact(text, resolved, &PullCounters::default()).await?;
        let found = self.find_artifact(id.as_str()).await?;
        let (artifact, _) = found.ok_or_else(|| ImagesError::Absent { name: own() })?;
        Ok(artifact)
    }
}

/// A reference with its registry: a pod's text is never looked up among short names, let alone taken for a path.
fn parse_full(text: &str) -> Result<Reference, SeccompArtifactError> {
    let wrong = |source| SeccompArtifactError::Reference { reference: text.chars().take(300).collect(), source };
    let reference = Reference::parse(text).map_err(|source| wrong(Some(source)))?;
    if text.starts_with(&reference.repository()) { Ok(reference) } else { Err(wrong(None)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_full_references_name_profiles() {
        let digest = format!("quay.io/crio/seccomp@sha256:{}", "a".repeat(64));
        for (text, expected) in [
            ("quay.io/crio/seccomp:v2", true),
            ("quay.io/crio/seccomp", true),
            ("docker.io/library/x:1", true),
            (digest.as_str(), true),
            ("seccomp", false),
            ("crio/seccomp", false),
            ("oci:/etc/passwd", false),
            ("oci-archive:/srv/x.tar", false),
            ("docker://quay.io/crio/seccomp", false),
            ("/etc/profile.json", false),
            ("../x", false),
            ("", false),
        ] {
            assert_eq!(parse_full(text).is_ok(), expected, "{text}");
        }
    }
}
