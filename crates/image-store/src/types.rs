//! What callers give to the store and get from it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use domain::digest::Digest;
use domain::id::{ContainerId, ImageId, LayerId};
use domain::id_maps::IdMaps;
use jiff::Timestamp;

use crate::ids::ContainerIds;

/// An image of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// Its identity: usually the hexadecimal digest of its configuration.
    pub id: ImageId,
    /// Digest of the current manifest.
    pub digest: Option<Digest>,
    /// Normalised names, with tag or digest.
    pub names: Vec<String>,
    /// Names it has or had.
    pub names_history: Vec<String>,
    /// The topmost layer; none for an image without layers.
    pub top_layer: Option<LayerId>,
    /// As its configuration says; else when it was recorded.
    pub created: Option<Timestamp>,
    /// Everything stored with it.
    pub big_data: Vec<BigData>,
    /// Bytes: uncompressed layers plus big data. None if a layer's size is not recorded.
    pub size: Option<u64>,
}

impl Image {
    /// Digests of all manifests the image is known by, the current one first.
    #[must_use]
    pub fn manifest_digests(&self) -> Vec<Digest> {
        let mut digests: Vec<Digest> = self.digest.iter().cloned().collect();
        for data in &self.big_data {
            if let (true, Some(digest)) = (data.key.starts_with(MANIFEST_KEY), &data.digest)
                && !digests.contains(digest)
            {
                digests.push(digest.clone());
            }
        }
        digests
    }
}

/// Key of the current manifest; keys of all known ones begin with it.
pub const MANIFEST_KEY: &str = "manifest";
/// Key of the current manifest's signatures, where it has any.
pub(crate) const SIGNATURES_KEY: &str = "signatures";

/// One blob stored with an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BigData {
    /// `manifest`, `manifest-<digest>`, the configuration's digest, `signature-<hex>`.
    pub key: String,
    /// Bytes.
    pub size: u64,
    /// Of its content, when recorded.
    pub digest: Option<Digest>,
}

/// An image to record, after all its layers are committed.
#[derive(Debug, Clone)]
pub struct NewImage {
    /// Usually the hexadecimal digest of the configuration.
    pub id: ImageId,
    /// Normalised names it gets; each is taken from whichever image has it.
    pub names: Vec<String>,
    /// The topmost layer, as returned by `commit_layer`.
    pub top_layer: Option<LayerId>,
    /// The manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// Its digest.
    pub manifest_digest: Digest,
    /// A further manifest the image is known by: the index it was chosen from, byte for byte.
    pub index: Option<(Digest, Vec<u8>)>,
    /// The configuration, byte for byte.
    pub config: Vec<u8>,
    /// Its digest.
    pub config_digest: Digest,
    /// Simple-signing or sigstore signatures of the manifest, in the encoding the field stores.
    pub signatures: Vec<Vec<u8>>,
    /// As the configuration says.
    pub created: Option<Timestamp>,
}

/// How a layer was compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// A plain tar.
    None,
    /// One or more bzip2 streams.
    Bzip2,
    /// One or more gzip members.
    Gzip,
    /// One or more xz streams.
    Xz,
    /// One or more zstd frames.
    Zstd,
}

impl Compression {
    /// Its number in layer records. Source: containers/storage `archive.Compression`.
    pub(crate) fn number(self) -> i64 {
        match self {
            Self::None => 0,
            Self::Bzip2 => 1,
            Self::Gzip => 2,
            Self::Xz => 3,
            Self::Zstd => 4,
        }
    }
}

/// A layer of the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its chain identity for image layers, random for those of containers.
    pub id: LayerId,
    /// The layer below.
    pub parent: Option<LayerId>,
    /// Digest of the uncompressed tar.
    pub diff_id: Option<Digest>,
    /// Bytes of the uncompressed tar.
    pub diff_size: Option<u64>,
    /// Digest of the bytes it was pulled as.
    pub compressed_digest: Option<Digest>,
    /// Bytes it was pulled as.
    pub compressed_size: Option<u64>,
}

/// A container to record.
#[derive(Debug, Clone)]
pub struct NewContainer {
    /// The CRI id, or one the caller drew.
    pub id: ContainerId,
    /// Unique among containers.
    pub names: Vec<String>,
    /// The image its layer is made on; none for an empty root file system.
    pub image: Option<ImageId>,
    /// Name of its layer, unique among layers: `<container name>-layer`. None leaves the layer without a name.
    pub layer_name: Option<String>,
    /// The engine's own JSON, as text.
    pub metadata: String,
    /// SELinux label of the mount, or empty.
    pub mount_label: String,
    /// SELinux label of its processes, or empty.
    pub process_label: String,
    /// Whether records and contents may be lost with the machine.
    pub volatile: Volatile,
    /// Whose ids its files have.
    pub ids: ContainerIds,
}

/// Whether a container needs to survive a loss of power.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volatile {
    /// Recorded without fsync in `volatile-containers.json`, as CRI-O does. Tools older than containers/storage 1.44
    /// do not read that file.
    Yes,
    /// Recorded durably in `containers.json`.
    No,
}

/// A container record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Container {
    /// Its identity.
    pub id: ContainerId,
    /// Unique names.
    pub names: Vec<String>,
    /// Its image, as recorded.
    pub image: Option<ImageId>,
    /// Its read-write layer, as recorded.
    pub layer: Option<LayerId>,
    /// The engine's own JSON, as text.
    pub metadata: String,
    /// When it was recorded.
    pub created: Option<Timestamp>,
    /// SELinux label of the mount, or empty.
    pub mount_label: String,
    /// SELinux label of its processes, or empty.
    pub process_label: String,
    /// Which file records it.
    pub volatile: Volatile,
    /// The ids of its user namespace; absent for those of the node, or when the record's are no map.
    pub ids: Option<IdMaps>,
}

/// What part of a file system something takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Lengths of files and directories; a file with several names counts once. Source: CRI-O.
    pub bytes: u64,
    /// Inodes.
    pub inodes: u64,
}

/// What ImageFsInfo reports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoreUsage {
    /// `<root>/overlay-images`, by which CRI-O names the file system.
    pub mountpoint: PathBuf,
    /// All image layers and the records of images.
    pub images: Usage,
    /// Where images have a place of their own: the directory that stands for the containers' file system, and what its
    /// containers' files take.
    pub containers: Option<(PathBuf, Usage)>,
    /// When it was walked.
    pub at: Timestamp,
}

/// What a layer's bytes turned out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerContents {
    /// Digest of the bytes as read.
    pub compressed_digest: Digest,
    /// Bytes as read.
    pub compressed_size: u64,
    /// Found by the first bytes, not by a media type.
    pub compression: Compression,
    /// Digest of the tar.
    pub diff_id: Digest,
    /// Bytes of the tar.
    pub diff_size: u64,
    /// Members of the tar.
    pub entries: u64,
    /// Users that own something in it.
    pub uids: Vec<u32>,
    /// Groups that own something in it.
    pub gids: Vec<u32>,
}

/// What a layer's bytes must turn out to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExpectedLayer {
    /// From the image's configuration; none for images that have no configuration until their layers are unpacked.
    pub diff_id: Option<Digest>,
    /// From the manifest.
    pub compressed_digest: Digest,
    /// From the manifest, when it says.
    pub compressed_size: Option<u64>,
}

/// Limits for one layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StageOptions {
    /// Most bytes of uncompressed tar; none leaves it to the disk.
    pub diff_size_max: Option<u64>,
}

/// Keys and sizes as records have them.
pub(crate) type Sizes = BTreeMap<String, i64>;
