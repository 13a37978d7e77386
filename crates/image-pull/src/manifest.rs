//! Manifests, indices and image configurations: parsing bytes whose digest is already checked, and choosing.
//!
//! Formats: Docker image manifest version 2 schema 2 and its list, schema 1, OCI image manifest and index. A document that could be read as two formats, or whose media type disagrees with the one it was
//! served under, is refused (CVE-2021-41190).

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;

use domain::digest::Digest;
use domain::encryption;
use domain::schema1::{Schema1, Schema1Error};
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use crate::error::ErrorKind;
use crate::platform::Platform;

/// Largest manifest or index: what the distribution registry and containers/image accept.
pub const MANIFEST_MAX_BYTES: usize = 4 << 20;
/// Largest image configuration: real ones stay below 100 KiB, the longest histories below 1 MiB.
pub const CONFIG_MAX_BYTES: usize = 8 << 20;
/// Most entries of an index: a few dozen platforms with attestations are common, hundreds are not.
pub const INDEX_ENTRIES_MAX: usize = 1024;
/// Deepest index in an index: one level exists in the field (layouts with an index inside), more is a trap.
pub const INDEX_DEPTH_MAX: usize = 4;
/// Most layers: what overlay mounts can stack (500 lower directories); Docker itself stops at 127.
pub const LAYERS_MAX: usize = 500;

/// Docker image manifest, version 2, schema 2.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker manifest list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// OCI image manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI image index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Docker image configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
/// OCI image configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// An OCI layer that is not compressed.
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
/// One that may not be given to everybody.
const OCI_NONDISTRIBUTABLE: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar";
/// The same of Docker.
const DOCKER_FOREIGN: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar";
/// A Docker layer that is not compressed.
pub const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar";
/// A Docker layer, compressed with gzip.
pub const DOCKER_LAYER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker image manifest, version 2, schema 1, without signatures.
pub const SCHEMA1: &str = "application/vnd.docker.distribution.manifest.v1+json";
/// The same, signed.
pub const SCHEMA1_SIGNED: &str = "application/vnd.docker.distribution.manifest.v1+prettyjws";
/// The `Accept` header of a manifest request. Schema 1 comes last: it has no sizes and no configuration.
pub(crate) const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
     application/vnd.docker.distribution.manifest.v1+prettyjws;q=0.1, \
     application/vnd.docker.distribution.manifest.v1+json;q=0.1";
/// Marks index entries whose layers are compressed with zstd. Source: containers/image.
const ZSTD_ANNOTATION: &str = "io.github.containers.compression.zstd";

/// Why a manifest, index or configuration cannot be used.
#[derive(Debug, Error)]
pub enum ManifestError {
    /// Not JSON, or not of the shape its media type demands, or too many entries.
    #[error("parse {media_type}")]
    Parse {
        /// The media type it was taken for.
        media_type: String,
        /// The cause.
        #[source]
        source: serde_json::Error,
    },
    /// The document has the fields of several formats.
    #[error("ambiguous: {media_type} with field {field:?} of another format")]
    Ambiguous {
        /// The media type it claims.
        media_type: String,
        /// The field that does not belong.
        field: &'static str,
    },
    /// Served or described under another media type than it states.
    #[error("served as {served} but states {stated}")]
    MediaTypeMismatch {
        /// By `Content-Type` or descriptor.
        served: String,
        /// By the document itself.
        stated: String,
    },
    /// A format that is known and not read, or not known.
    #[error("unsupported {what}: {value}")]
    Unsupported {
        /// The kind of thing.
        what: &'static str,
        /// The media type or value.
        value: String,
    },
    /// Layers to be fetched from elsewhere are not fetched.
    #[error("layer {digest} is foreign or not distributable ({media_type}): only its own registry is asked")]
    ForeignLayer {
        /// The layer.
        digest: String,
        /// Its media type.
        media_type: String,
    },
    /// A descriptor's digest is no sha256 digest.
    #[error("digest of {what}")]
    Digest {
        /// Config, layer, entry or diff id.
        what: &'static str,
        /// The cause.
        #[source]
        source: domain::digest::ParseDigestError,
    },
    /// The configuration does not belong to the manifest.
    #[error("configuration lists {diff_ids} diff ids for {layers} layers")]
    DiffIds {
        /// By the configuration.
        diff_ids: usize,
        /// By the manifest.
        layers: usize,
    },
    /// A manifest of schema 1 that cannot be used.
    #[error(transparent)]
    Schema1(#[from] Schema1Error),
    /// The registry does not say how long a layer is, and neither does the manifest.
    #[error("layer {digest} of a schema 1 manifest has no length")]
    NoLength {
        /// The layer.
        digest: Digest,
    },
    /// Larger than we read.
    #[error("{size} bytes exceed the limit of {limit}")]
    TooLarge {
        /// Bytes declared or received.
        size: u64,
        /// The limit.
        limit: usize,
    },
}

impl ManifestError {
    /// The class of this failure.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::Parse { .. }
            | Self::Ambiguous { .. }
            | Self::MediaTypeMismatch { .. }
            | Self::Digest { .. }
            | Self::DiffIds { .. }
            | Self::Schema1(_)
            | Self::NoLength { .. } => ErrorKind::Malformed,
            Self::Unsupported { .. } | Self::ForeignLayer { .. } => ErrorKind::Unsupported,
            Self::TooLarge { .. } => ErrorKind::TooLarge,
        }
    }
}

/// A reference to content, as manifests write it.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is; old Docker tools leave it out in places.
    #[serde(default)]
    pub media_type: String,
    /// As written; checked when it is used.
    pub digest: String,
    /// Bytes.
    pub size: u64,
    /// Where else it may be had. Nothing is ever fetched from there.
    #[serde(default, deserialize_with = "null_is_default")]
    pub urls: Vec<String>,
    /// Free text.
    #[serde(default, deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
    /// The machine an index entry is for.
    #[serde(default)]
    pub platform: Option<DescriptorPlatform>,
}

/// The machine an index entry is for.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct DescriptorPlatform {
    /// `amd64`, ...
    #[serde(default)]
    pub architecture: String,
    /// `linux`, ...
    #[serde(default)]
    pub os: String,
    /// `v7`, ...
    #[serde(default)]
    pub variant: String,
}

impl Descriptor {
    /// The digest, checked.
    pub(crate) fn parse_digest(&self, what: &'static str) -> Result<Digest, ManifestError> {
        Digest::parse(&self.digest).map_err(|source| ManifestError::Digest { what, source })
    }
}

/// A manifest of one image.
#[derive(Debug, Clone)]
pub struct ImageManifest {
    /// [`DOCKER_MANIFEST`] or [`OCI_MANIFEST`].
    pub media_type: String,
    /// `artifactType`, empty if absent.
    pub artifact_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// Lowest first.
    pub layers: Vec<Descriptor>,
}

/// A list of manifests.
#[derive(Debug, Clone)]
pub struct Index {
    /// [`DOCKER_LIST`] or [`OCI_INDEX`].
    pub media_type: String,
    /// As written.
    pub entries: Vec<Descriptor>,
}

/// A document served as a manifest.
#[derive(Debug, Clone)]
pub enum Manifest {
    /// One image, or an artifact.
    Image(ImageManifest),
    /// Several.
    Index(Index),
    /// One image of the oldest kind.
    Schema1(Schema1),
}

/// All fields of all formats: which ones are present tells the formats apart.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    #[serde(default)]
    schema_version: i64,
    #[serde(default, deserialize_with = "null_is_default")]
    media_type: String,
    #[serde(default, deserialize_with = "null_is_default")]
    artifact_type: String,
    config: Option<Descriptor>,
    layers: Option<Capped<Descriptor, LAYERS_MAX>>,
    manifests: Option<Capped<Descriptor, INDEX_ENTRIES_MAX>>,
    fs_layers: Option<serde::de::IgnoredAny>,
    history: Option<serde::de::IgnoredAny>,
}

/// Parses what was served as a manifest under `served_as` (a `Content-Type` or a descriptor's media type).
///
/// The document's own media type must agree with `served_as` where both name a manifest format; generic types
/// (`application/json`, `text/plain`, ...) are ignored.
pub fn parse_manifest(bytes: &[u8], served_as: Option<&str>) -> Result<Manifest, ManifestError> {
    let limit = MANIFEST_MAX_BYTES;
    if bytes.len() > limit {
        return Err(ManifestError::TooLarge { size: bytes.len() as u64, limit });
    }
    let served = served_as
        .map(|value| value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
        .filter(|value| is_manifest_type(value));
    let document: Document = serde_json::from_slice(bytes).map_err(|source| ManifestError::Parse {
        media_type: served.clone().unwrap_or_else(|| "manifest".to_owned()),
        source,
    })?;
    if document.schema_version == 1 {
        return parse_schema1(bytes, &document, served);
    }
    let media_type = media_type_of(&document, served)?;
    if is_schema1(&media_type) {
        return Err(ManifestError::Unsupported { what: "schema version of", value: media_type });
    }
    let stray = [
        ("fsLayers", document.fs_layers.is_some()),
        ("history", document.history.is_some()),
        ("manifests", document.manifests.is_some() && !is_index(&media_type)),
        ("layers", document.layers.is_some() && is_index(&media_type)),
        ("config", document.config.is_some() && is_index(&media_type)),
    ];
    if let Some((field, _)) = stray.into_iter().find(|(_, is_there)| *is_there) {
        return Err(ManifestError::Ambiguous { media_type, field });
    }
    let missing = |field: &str, media_type: &str| ManifestError::Parse {
        media_type: media_type.to_owned(),
        source: serde::de::Error::custom(format!("missing field `{field}`")),
    };
    if is_index(&media_type) {
        let entries = document.manifests.ok_or_else(|| missing("manifests", &media_type))?.0;
        return Ok(Manifest::Index(Index { media_type, entries }));
    }
    let config = document.config.ok_or_else(|| missing("config", &media_type))?;
    let layers = document.layers.ok_or_else(|| missing("layers", &media_type))?.0;
    Ok(Manifest::Image(ImageManifest { media_type, artifact_type: document.artifact_type, config, layers }))
}

/// Whether it is signed, its media type does not tell: registries serve either as the other.
fn parse_schema1(bytes: &[u8], document: &Document, served: Option<String>) -> Result<Manifest, ManifestError> {
    let stated = Some(document.media_type.clone()).filter(|stated| !stated.is_empty());
    if let Some(other) = stated.iter().chain(&served).find(|media_type| !is_schema1(media_type)) {
        let served = served.clone().unwrap_or_else(|| other.clone());
        return Err(ManifestError::MediaTypeMismatch { served, stated: SCHEMA1.to_owned() });
    }
    let stray = [
        ("config", document.config.is_some()),
        ("layers", document.layers.is_some()),
        ("manifests", document.manifests.is_some()),
    ];
    if let Some((field, _)) = stray.into_iter().find(|(_, is_there)| *is_there) {
        return Err(ManifestError::Ambiguous { media_type: SCHEMA1.to_owned(), field });
    }
    Ok(Manifest::Schema1(Schema1::parse(bytes)?))
}

fn media_type_of(document: &Document, served: Option<String>) -> Result<String, ManifestError> {
    let stated = Some(document.media_type.as_str()).filter(|stated| !stated.is_empty());
    match (stated, served) {
        (Some(stated), Some(served)) if stated != served => {
            Err(ManifestError::MediaTypeMismatch { served, stated: stated.to_owned() })
        }
        (Some(stated), _) if is_manifest_type(stated) => Ok(stated.to_owned()),
        (Some(stated), _) => Err(ManifestError::Unsupported { what: "manifest format", value: stated.to_owned() }),
        (None, Some(served)) => Ok(served),
        // Only OCI documents may leave their media type out.
        (None, None) if document.manifests.is_some() => Ok(OCI_INDEX.to_owned()),
        (None, None) => Ok(OCI_MANIFEST.to_owned()),
    }
}

fn is_index(media_type: &str) -> bool {
    matches!(media_type, DOCKER_LIST | OCI_INDEX)
}

fn is_schema1(media_type: &str) -> bool {
    matches!(media_type, SCHEMA1 | SCHEMA1_SIGNED)
}

pub(crate) fn is_manifest_type(media_type: &str) -> bool {
    matches!(media_type, DOCKER_MANIFEST | DOCKER_LIST | OCI_MANIFEST | OCI_INDEX) || is_schema1(media_type)
}

impl Index {
    /// The entry for a machine: best variant first, then one compressed with zstd, then the earlier.
    ///
    /// An entry without platform is taken only if none with a platform suits: layouts written by other tools leave
    /// it out. Attestations (`unknown/unknown`) never suit.
    #[must_use]
    pub fn choose(&self, wanted: &Platform) -> Option<&Descriptor> {
        let ranked = self.entries.iter().filter_map(|entry| {
            let is_known = entry.media_type.is_empty() || is_manifest_type(&entry.media_type);
            let rank = match &entry.platform {
                Some(platform) if !platform.architecture.is_empty() => {
                    wanted.rank(&platform.os, &platform.architecture, &platform.variant)?
                }
                _ => usize::MAX,
            };
            let is_zstd = entry.annotations.get(ZSTD_ANNOTATION).is_some_and(|value| value == "true");
            is_known.then_some(((rank, !is_zstd), entry))
        });
        ranked.min_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
    }
}

impl ImageManifest {
    /// The artifact type, if this manifest is no runnable image.
    ///
    /// Source: OCI image specification, "Guidelines for Artifact Usage"; CRI-O decides by the same two fields.
    #[must_use]
    pub fn find_artifact_type(&self) -> Option<&str> {
        if !self.artifact_type.is_empty() {
            return Some(&self.artifact_type);
        }
        (!matches!(self.config.media_type.as_str(), DOCKER_CONFIG | OCI_CONFIG)).then_some(&self.config.media_type)
    }

    /// Checks that every layer is one we fetch: by media type, digest and place.
    pub fn check_layers(&self) -> Result<Vec<Digest>, ManifestError> {
        self.layers.iter().map(check_layer).collect()
    }
}

fn check_layer(layer: &Descriptor) -> Result<Digest, ManifestError> {
    let media_type = layer.media_type.as_str();
    let is_foreign = [OCI_NONDISTRIBUTABLE, DOCKER_FOREIGN].iter().any(|prefix| media_type.starts_with(prefix));
    // Those are kept elsewhere, at whatever address the image's author wrote. Where none is written, the registry has them.
    if is_foreign && !layer.urls.is_empty() {
        return Err(ManifestError::ForeignLayer { digest: layer.digest.clone(), media_type: media_type.to_owned() });
    }
    let suffix = |prefixes: [&str; 2]| prefixes.into_iter().find_map(|prefix| media_type.strip_prefix(prefix));
    // Only the OCI has encrypted layers; whether there is a key, the caller finds out.
    let oci = suffix([OCI_LAYER, OCI_NONDISTRIBUTABLE]).map(encryption::plain_media_type);
    match oci.or(suffix([DOCKER_LAYER, DOCKER_FOREIGN])) {
        Some("" | "+gzip" | "+zstd" | ".gzip" | ".zstd") => layer.parse_digest("layer"),
        _ => Err(ManifestError::Unsupported { what: "layer media type", value: media_type.to_owned() }),
    }
}

#[derive(Deserialize)]
struct ConfigDocument {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "null_is_default")]
    diff_ids: Capped<String, LAYERS_MAX>,
}

/// Parses the diff ids of an image configuration, lowest layer first.
pub fn parse_diff_ids(config: &[u8]) -> Result<Vec<Digest>, ManifestError> {
    if config.len() > CONFIG_MAX_BYTES {
        return Err(ManifestError::TooLarge { size: config.len() as u64, limit: CONFIG_MAX_BYTES });
    }
    let document: ConfigDocument = serde_json::from_slice(config)
        .map_err(|source| ManifestError::Parse { media_type: "image configuration".to_owned(), source })?;
    let parse = |text: &String| Digest::parse(text).map_err(|source| ManifestError::Digest { what: "diff id", source });
    document.rootfs.diff_ids.0.iter().map(parse).collect()
}

/// A JSON array of at most `MAX` elements: reading stops at the first one too many.
#[derive(Debug)]
struct Capped<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for Capped<T, MAX> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Capped<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Elements<T, const MAX: usize>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Elements<T, MAX> {
            type Value = Vec<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "at most {MAX} elements")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
                let mut elements = Vec::new();
                while let Some(element) = seq.next_element()? {
                    if elements.len() == MAX {
                        return Err(serde::de::Error::invalid_length(MAX + 1, &self));
                    }
                    elements.push(element);
                }
                Ok(elements)
            }
        }
        deserializer.deserialize_seq(Elements::<T, MAX>(PhantomData)).map(Self)
    }
}

/// Go writes empty slices and maps as `null`.
fn null_is_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(deserializer: D) -> Result<T, D::Error> {
    Option::<T>::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
#[path = "manifest_tests.rs"]
mod tests;
