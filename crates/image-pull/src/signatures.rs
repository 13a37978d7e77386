//! Signatures of images: what a registry has attached, and what lies at an address beside it. Nothing is judged here.
//!
//! Source: cosign's SIGNATURE_SPEC ("Storage"), containers-registries.d(5).

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use domain::digest::Digest;
use serde::Deserialize;
use thiserror::Error;

use crate::client::digest_of;
use crate::error::{ErrorKind, RequestError};
use crate::http::session::Session;
use crate::image::{Origin, Resolved, ResolvedArtifact, ResolvedImage};
use crate::manifest::{Descriptor, MANIFEST_MAX_BYTES, Manifest, ManifestError, OCI_MANIFEST, parse_manifest};
use crate::reference::Reference;

/// Why attachments of an image could not be had.
#[derive(Debug, Error)]
pub enum AttachmentError {
    /// The registry did not give them.
    #[error("read {what} of signatures")]
    Registry {
        /// The manifest, or a blob.
        what: String,
        /// The cause.
        #[source]
        source: RequestError,
    },
    /// Their manifest is damaged.
    #[error("manifest {tag} of signatures")]
    Manifest {
        /// Its tag.
        tag: String,
        /// The cause.
        #[source]
        source: ManifestError,
    },
    /// Their manifest is of another kind.
    #[error("manifest {tag} of signatures is of media type {media_type:?}")]
    MediaType {
        /// Its tag.
        tag: String,
        /// As found.
        media_type: String,
    },
    /// The registry's list of them is damaged.
    #[error("list of signatures for {manifest}")]
    List {
        /// The manifest.
        manifest: Digest,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// There are too many, or they are too large together.
    #[error("manifest {tag} has {count} signatures of {size} bytes together, more than is sensible")]
    TooMuch {
        /// Its tag.
        tag: String,
        /// How many.
        count: usize,
        /// Bytes.
        size: u64,
    },
    /// A blob is not what its manifest says.
    #[error("signature {expected} does not match its digest")]
    Digest {
        /// As the manifest has it.
        expected: Digest,
    },
}

impl AttachmentError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Registry { source, .. } => source.kind(),
            Self::Manifest { .. } | Self::MediaType { .. } | Self::List { .. } => ErrorKind::Malformed,
            Self::TooMuch { .. } => ErrorKind::TooLarge,
            Self::Digest { .. } => ErrorKind::DigestMismatch,
        }
    }
}

/// One attachment: a signature, if its media type says so.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// What it is.
    pub media_type: String,
    /// Its bytes, verified by digest.
    pub payload: Bytes,
    /// What its descriptor says beside.
    pub annotations: BTreeMap<String, String>,
}

/// Most of what is read of one image's signatures.
#[derive(Debug, Clone, Copy)]
pub struct SignatureLimits {
    /// How many.
    pub count: usize,
    /// Bytes of all together.
    pub bytes: usize,
}

/// The way to signatures of an image: the connection and login that brought its manifest.
#[derive(Debug, Clone)]
pub struct SignatureAccess(Arc<Session>);

impl Resolved {
    /// The way to its signatures; what comes from this machine's files has none.
    #[must_use]
    pub fn signature_access(&self) -> Option<SignatureAccess> {
        let (Self::Image(ResolvedImage { origin, .. }) | Self::Artifact(ResolvedArtifact { origin, .. })) = self;
        match origin {
            Origin::Registry(place) => Some(SignatureAccess(Arc::clone(place.session()))),
            Origin::Local(_) => None,
        }
    }

    /// Digest of its manifest, verified: what signatures are about.
    #[must_use]
    pub fn manifest_digest(&self) -> &Digest {
        match self {
            Self::Image(image) => &image.manifest_digest,
            Self::Artifact(artifact) => &artifact.manifest_digest,
        }
    }
}

impl SignatureAccess {
    /// The name the manifest was read by: at a mirror, the mirror's.
    #[must_use]
    pub fn reference(&self) -> &Reference {
        self.0.reference()
    }

    /// What cosign attached to a manifest: a manifest of its own under a tag made of the digest. None is no error.
    pub async fn attachments(
        &self,
        manifest: &Digest,
        limits: SignatureLimits,
    ) -> Result<Vec<Attachment>, AttachmentError> {
        let tag = format!("sha256-{}.sig", manifest.hex());
        let (served_as, bytes) = match self.0.manifest(&tag, MANIFEST_MAX_BYTES).await {
            Ok(found) => found,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            Err(source) => return Err(AttachmentError::Registry { what: format!("manifest {tag}"), source }),
        };
        let parsed = parse_manifest(&bytes, served_as.as_deref());
        let layers = match parsed.map_err(|source| AttachmentError::Manifest { tag: tag.clone(), source })? {
            Manifest::Image(image) if image.media_type == OCI_MANIFEST => image.layers,
            Manifest::Image(image) => return Err(AttachmentError::MediaType { tag, media_type: image.media_type }),
            Manifest::Index(index) => return Err(AttachmentError::MediaType { tag, media_type: index.media_type }),
            Manifest::Schema1(_) => return Err(AttachmentError::MediaType { tag, media_type: "schema 1".to_owned() }),
        };
        let size = layers.iter().fold(0_u64, |sum, layer| sum.saturating_add(layer.size));
        if layers.len() > limits.count || size > limits.bytes as u64 {
            return Err(AttachmentError::TooMuch { tag, count: layers.len(), size });
        }
        let mut attachments = Vec::new();
        for layer in layers {
            attachments.push(self.attachment(&tag, layer).await?);
        }
        Ok(attachments)
    }

    async fn attachment(&self, tag: &str, layer: Descriptor) -> Result<Attachment, AttachmentError> {
        let digest = layer.parse_digest("signature");
        let expected = digest.map_err(|source| AttachmentError::Manifest { tag: tag.to_owned(), source })?;
        let limit = usize::try_from(layer.size).unwrap_or(usize::MAX);
        let payload = self
            .0
            .small_blob(&expected, limit)
            .await
            .map_err(|source| AttachmentError::Registry { what: format!("blob {expected}"), source })?;
        if payload.len() as u64 != layer.size || digest_of(&payload) != expected {
            return Err(AttachmentError::Digest { expected });
        }
        Ok(Attachment { media_type: layer.media_type, payload, annotations: layer.annotations })
    }

    /// Simple signatures that the registry itself keeps; `None` if it says of itself that it keeps none, and an address
    /// beside it counts.
    pub async fn extension(
        &self,
        manifest: &Digest,
        limits: SignatureLimits,
    ) -> Result<Option<Vec<Vec<u8>>>, AttachmentError> {
        let read = |source| AttachmentError::Registry { what: format!("list for {manifest}"), source };
        // Base64 and JSON take a third more than what is in them.
        let Some(bytes) = self.0.extension_signatures(manifest, limits.bytes * 2).await.map_err(read)? else {
            return Ok(None);
        };
        let signatures =
            parse_extension(&bytes).map_err(|source| AttachmentError::List { manifest: manifest.clone(), source })?;
        let size = signatures.iter().fold(0, |sum, signature| sum + signature.len() as u64);
        if signatures.len() > limits.count || size > limits.bytes as u64 {
            return Err(AttachmentError::TooMuch { tag: manifest.to_string(), count: signatures.len(), size });
        }
        Ok(Some(signatures))
    }

    /// What lies at an address of `http:` or `https:`, at most `limit` bytes; `None` where the server has nothing.
    /// Goes without the registry's login. Errors also for a body that is longer.
    pub async fn read_lookaside(&self, url: &str, limit: usize) -> Result<Option<Bytes>, RequestError> {
        match self.0.foreign(url, limit).await {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// The simple signatures of a registry's list; others are skipped, as their versions are. Source: OpenShift.
pub(crate) fn parse_extension(bytes: &[u8]) -> Result<Vec<Vec<u8>>, serde_json::Error> {
    #[derive(Deserialize)]
    struct List {
        #[serde(default)]
        signatures: Vec<Entry>,
    }
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Entry {
        #[serde(default)]
        schema_version: i64,
        #[serde(default, rename = "type")]
        kind: String,
        #[serde(default)]
        content: String,
    }
    let list: List = serde_json::from_slice(bytes)?;
    let simple =
        list.signatures.into_iter().filter(|entry| (entry.schema_version, entry.kind.as_str()) == (2, "atomic"));
    simple.map(|entry| STANDARD.decode(entry.content).map_err(serde::de::Error::custom)).collect()
}
