//! What resolving a source yields: everything about an image but its layers' bytes.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use domain::digest::Digest;
use domain::id::ImageId;
use domain::schema1::Schema1;

use crate::local::LocalImage;
use crate::manifest::ManifestError;
use crate::places::Place;
use crate::reference::Reference;

/// The index a reference named, from which a platform's manifest was chosen.
#[derive(Debug, Clone)]
pub struct IndexManifest {
    /// As served, byte for byte.
    pub bytes: Bytes,
    /// Its digest, verified: what the reference named.
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
}

/// One layer: what to ask for and what must come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// Digest of the bytes as served.
    pub digest: Digest,
    /// Bytes as served; the stream yields exactly these many.
    pub size: u64,
    /// As declared. The compression is to be detected by magic, not by this.
    pub media_type: String,
    /// Digest of the uncompressed tar, by the image's config. Images of schema 1 have none that would say.
    pub diff_id: Option<Digest>,
    /// Annotations of the layer's descriptor (zstd:chunked, eStargz).
    pub annotations: BTreeMap<String, String>,
}

/// The configuration of an image, byte for byte.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigBlob {
    /// JSON.
    pub bytes: Bytes,
    /// Of the bytes, verified.
    pub digest: Digest,
}

impl ConfigBlob {
    /// The hexadecimal part of the digest: by it the image is known.
    #[must_use]
    pub fn image_id(&self) -> ImageId {
        match ImageId::parse(self.digest.hex()) {
            Ok(id) => id,
            Err(_) => unreachable!("the hexadecimal part of a digest is an id"),
        }
    }
}

/// Where the configuration of an image comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Configuration {
    /// From the registry.
    Served(ConfigBlob),
    /// From a manifest of schema 1, once its layers are unpacked.
    Made(Schema1),
}

impl Configuration {
    /// The configuration, if it is known before any layer is.
    #[must_use]
    pub fn served(&self) -> Option<&ConfigBlob> {
        match self {
            Self::Served(blob) => Some(blob),
            Self::Made(_) => None,
        }
    }

    /// The configuration of an image whose layers turned out to have these diff ids, lowest first.
    pub fn complete(self, diff_ids: &[Digest]) -> Result<ConfigBlob, ManifestError> {
        match self {
            Self::Served(blob) => Ok(blob),
            Self::Made(manifest) => {
                let bytes = manifest.config(diff_ids)?;
                Ok(ConfigBlob { digest: crate::client::digest_of(&bytes), bytes: bytes.into() })
            }
        }
    }
}

/// An image whose manifest and config were read and verified.
#[derive(Debug, Clone)]
pub struct ResolvedImage {
    /// The reference asked for; local sources have one only if they recorded it.
    pub reference: Option<Reference>,
    /// Names to record with the image: the reference, or the names an archive carries.
    pub names: Vec<Reference>,
    /// The manifest of the chosen platform, byte for byte.
    pub manifest_bytes: Bytes,
    /// Its digest, verified; of a signed one of schema 1 that of its payload.
    pub manifest_digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// What the reference named, where that was an index. Its digest belongs to `repo_digests` too.
    pub index: Option<IndexManifest>,
    /// The image's configuration, or what it will be made of.
    pub configuration: Configuration,
    /// Lowest layer first; at most [`crate::manifest::LAYERS_MAX`].
    pub layers: Vec<LayerBlob>,
    /// Where the layers' bytes are.
    pub(crate) origin: Origin,
}

impl ResolvedImage {
    /// The digest of what the reference named: the index if there was one, else the manifest.
    #[must_use]
    pub fn named_digest(&self) -> &Digest {
        self.index.as_ref().map_or(&self.manifest_digest, |index| &index.digest)
    }

    /// Bytes of all layers as served, repeated ones counted again.
    #[must_use]
    pub fn layers_bytes(&self) -> u64 {
        self.layers.iter().fold(0, |sum, layer| sum.saturating_add(layer.size))
    }
}

/// One blob of an artifact: what to ask for and what must come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactBlob {
    /// Digest of the bytes.
    pub digest: Digest,
    /// Bytes; the stream yields exactly these many.
    pub size: u64,
}

/// An artifact whose manifest and config were read and verified.
#[derive(Debug, Clone)]
pub struct ResolvedArtifact {
    /// Names to record with it: the reference, or the names an archive carries.
    pub names: Vec<Reference>,
    /// The manifest, byte for byte.
    pub manifest_bytes: Bytes,
    /// Its digest, verified.
    pub manifest_digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// `artifactType`, or the media type of the config.
    pub artifact_type: String,
    /// The config, byte for byte; often `{}`.
    pub config_bytes: Bytes,
    /// Its digest, verified.
    pub config_digest: Digest,
    /// In the order of the manifest; at most [`crate::manifest::LAYERS_MAX`].
    pub blobs: Vec<ArtifactBlob>,
    /// Where the blobs' bytes are.
    pub(crate) origin: Origin,
}

/// What a reference turned out to name.
#[derive(Debug, Clone)]
pub enum Resolved {
    /// Something to run.
    Image(ResolvedImage),
    /// Something else.
    Artifact(ResolvedArtifact),
}

/// Where blobs of a resolved image are read from.
#[derive(Debug, Clone)]
pub(crate) enum Origin {
    Registry(Place),
    Local(Arc<LocalImage>),
}
