//! What can go wrong, one enum an operation.

use std::io;
use std::path::PathBuf;

use domain::digest::Digest;
use domain::id::{ContainerId, ImageId, LayerId};
use thiserror::Error;

use crate::ids::FindIdsError;
use crate::options::OptionsError;
use crate::table::RecordsError;

/// Something done to one path of the store.
#[derive(Debug, Error)]
#[error("{action} {path}")]
pub struct PathError {
    /// What was attempted.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

impl PathError {
    pub(crate) fn new<E: Into<io::Error>>(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(E) -> Self {
        let path = path.into();
        move |source| Self { action, path, source: source.into() }
    }
}

/// Why a store could not be opened.
#[derive(Debug, Error)]
pub enum OpenError {
    /// Its options cannot be obeyed.
    #[error("open store: options")]
    Options(#[source] OptionsError),
    /// None of the drivers in `driver_priority` can be used.
    #[error("open store: no graph driver can be used")]
    NoDriver,
    /// A directory could not be made, opened or made private.
    #[error("open store")]
    Path(#[source] PathError),
    /// The records could not be read.
    #[error("open store: records")]
    Records(#[source] RecordsError),
}

/// Why an image could not be found.
#[derive(Debug, Error)]
pub enum FindImageError {
    /// More than one image's id begins like that.
    #[error("{key:?} is the beginning of more than one image id")]
    Ambiguous {
        /// What was asked for.
        key: String,
    },
    /// The records could not be read.
    #[error("find image {key:?}")]
    Records {
        /// What was asked for.
        key: String,
        /// Why.
        #[source]
        source: RecordsError,
    },
}

/// Why a blob stored with an image could not be read.
#[derive(Debug, Error)]
pub enum BigDataError {
    /// No such image.
    #[error("image {image} is not in the store")]
    NoImage {
        /// The image.
        image: ImageId,
    },
    /// It has nothing of that name.
    #[error("image {image} has no data {key:?}")]
    NoKey {
        /// The image.
        image: ImageId,
        /// The name.
        key: String,
    },
    /// Larger than the caller may be given.
    #[error("data {key:?} of image {image} is larger than {limit} bytes")]
    TooLarge {
        /// The image.
        image: ImageId,
        /// The name.
        key: String,
        /// Most bytes a caller is given.
        limit: u64,
    },
    /// It could not be read.
    #[error("read data {key:?} of image {image}")]
    Read {
        /// The image.
        image: ImageId,
        /// The name.
        key: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Its pieces are not as long as the image's record says.
    #[error("data {key:?} of image {image} and the lengths in its record disagree")]
    Sizes {
        /// The image.
        image: ImageId,
        /// The name.
        key: String,
    },
    /// The records could not be read.
    #[error("read data of image {image}")]
    Records {
        /// The image.
        image: ImageId,
        /// Why.
        #[source]
        source: RecordsError,
    },
}

/// Why an image could not be recorded. No name has moved.
#[derive(Debug, Error)]
pub enum PutImageError {
    /// The manifest or configuration does not have the digest it was given with.
    #[error("record image {image}: {what} has digest {actual}, not {expected}")]
    DigestMismatch {
        /// The image.
        image: ImageId,
        /// Manifest, index or configuration.
        what: &'static str,
        /// As given.
        expected: Digest,
        /// As computed.
        actual: Digest,
    },
    /// The top layer is not in the store.
    #[error("record image {image}: its layer {layer} is not in the store")]
    NoLayer {
        /// The image.
        image: ImageId,
        /// Its top layer.
        layer: LayerId,
    },
    /// Data could not be stored.
    #[error("record image {image}")]
    Path {
        /// The image.
        image: ImageId,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The records could not be read or written.
    #[error("record image {image}")]
    Records {
        /// The image.
        image: ImageId,
        /// Why.
        #[source]
        source: RecordsError,
    },
}

/// Why an image or a name of one could not be removed.
#[derive(Debug, Error)]
pub enum RemoveImageError {
    /// It belongs to another store.
    #[error("image {image} is in an additional image store, which is read-only")]
    ReadOnly {
        /// The image.
        image: ImageId,
    },
    /// A container, running or not, is made from it.
    #[error("image {image} is in use by container {container}")]
    InUse {
        /// The image.
        image: ImageId,
        /// One of the containers.
        container: String,
    },
    /// A directory could not be removed.
    #[error("remove image {image}")]
    Path {
        /// The image.
        image: ImageId,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The records could not be read or written.
    #[error("remove image {image}")]
    Records {
        /// The image.
        image: ImageId,
        /// Why.
        #[source]
        source: RecordsError,
    },
}

/// Why a layer could not be unpacked. Nothing of it is left.
#[derive(Debug, Error)]
pub enum StageError {
    /// The caller's reader failed.
    #[error("read the layer's bytes")]
    Source(#[source] io::Error),
    /// The compressed bytes are damaged or end early.
    #[error("decompress the layer")]
    Decompress(#[source] io::Error),
    /// The tar is damaged, or asks for what a layer must not have.
    #[error("unpack the layer")]
    Tar(#[source] crate::tar::TarError),
    /// Larger than allowed.
    #[error("layer is larger than {limit} bytes uncompressed")]
    TooLarge {
        /// Most bytes allowed.
        limit: u64,
    },
    /// The store's own file system failed.
    #[error("unpack the layer")]
    Path(#[source] PathError),
    /// A thread that reaches nothing else could not be had: nothing is unpacked by any other.
    #[error("confine the threads that unpack the layer")]
    Confine(#[source] io::Error),
}

impl StageError {
    /// Whether the disk or its inodes ran out.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        let mut error: &dyn std::error::Error = self;
        loop {
            if let Some(io) = error.downcast_ref::<io::Error>()
                && matches!(io.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
            {
                return true;
            }
            match error.source() {
                Some(source) => error = source,
                None => return false,
            }
        }
    }
}

/// Why a staged layer could not get its name. Nothing of it is left.
#[derive(Debug, Error)]
pub enum CommitLayerError {
    /// The tar is not the one the configuration names.
    #[error("layer has diff id {actual}, not {expected}")]
    DiffId {
        /// From the configuration.
        expected: Digest,
        /// As computed.
        actual: Digest,
    },
    /// The bytes are not those the manifest names.
    #[error("layer blob has digest {actual}, not {expected}")]
    CompressedDigest {
        /// From the manifest.
        expected: Digest,
        /// As computed.
        actual: Digest,
    },
    /// More or fewer bytes than the manifest says.
    #[error("layer blob has {actual} bytes, not {expected}")]
    CompressedSize {
        /// From the manifest.
        expected: u64,
        /// As counted.
        actual: u64,
    },
    /// The layer below is not in the store.
    #[error("parent layer {parent} is not in the store")]
    NoParent {
        /// The layer below.
        parent: LayerId,
    },
    /// More layers on one another than the kernel mounts.
    #[error("more than {limit} layers on one another")]
    TooDeep {
        /// Most layers.
        limit: usize,
    },
    /// A directory could not be moved or made durable.
    #[error("commit layer")]
    Path(#[source] PathError),
    /// The records could not be read or written.
    #[error("commit layer")]
    Records(#[source] RecordsError),
}

/// Why a container could not be recorded. Nothing of it is left.
#[derive(Debug, Error)]
pub enum CreateContainerError {
    /// The id is taken.
    #[error("container {container} exists already")]
    Exists {
        /// The container.
        container: ContainerId,
    },
    /// One of its names is taken, by a container or its layer.
    #[error("create container {container}: name {name:?} is in use by {holder}")]
    NameInUse {
        /// The container.
        container: ContainerId,
        /// The name.
        name: String,
        /// Id of the container or layer that has it.
        holder: String,
    },
    /// The image, or its top layer, is not in the store.
    #[error("create container {container}: image {image} is not in the store")]
    NoImage {
        /// The container.
        container: ContainerId,
        /// Its image.
        image: ImageId,
    },
    /// There are no ids for its user namespace.
    #[error("find ids for the user namespace of container {container}")]
    Ids {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: FindIdsError,
    },
    /// The image has as many layers as the kernel mounts.
    #[error("create container {container}: image {image} has too many layers")]
    TooDeep {
        /// The container.
        container: ContainerId,
        /// Its image.
        image: ImageId,
    },
    /// A directory could not be made.
    #[error("create container {container}")]
    Path {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The records could not be read or written.
    #[error("create container {container}")]
    Records {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: RecordsError,
    },
}

/// Why a container's root file system could not be mounted, found or unmounted.
#[derive(Debug, Error)]
pub enum MountError {
    /// No such container.
    #[error("container {container} is not in the store")]
    NoContainer {
        /// The container.
        container: ContainerId,
    },
    /// Its layer, or one below, is not in the store.
    #[error("mount container {container}: layer {layer} is not in the store")]
    NoLayer {
        /// The container.
        container: ContainerId,
        /// The layer.
        layer: String,
    },
    /// The recorded ids of its user namespace are none, or the kernel does not take them.
    #[error("map ids of container {container}")]
    Ids {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused.
    #[error("mount container {container}")]
    Path {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The records could not be read or written.
    #[error("mount container {container}")]
    Records {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: RecordsError,
    },
}

/// Why an image could not be mounted. No mount and no count is left of the attempt.
#[derive(Debug, Error)]
pub enum MountImageError {
    /// No such image.
    #[error("image {image} is not in the store")]
    NoImage {
        /// The image.
        image: ImageId,
    },
    /// It has no layers, or its topmost one is not in the store.
    #[error("mount image {image}: layer {layer:?} is not in the store")]
    NoLayer {
        /// The image.
        image: ImageId,
        /// The layer; empty for an image without layers.
        layer: String,
    },
    /// Who was to hold it is not recorded.
    #[error("mount an image for container {container}, which is not in the store")]
    NoContainer {
        /// The container.
        container: ContainerId,
    },
    /// The kernel refused.
    #[error("mount image {image}")]
    Path {
        /// The image.
        image: ImageId,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The records could not be read or written.
    #[error("count the mount of an image")]
    Records(#[source] RecordsError),
}

/// Why a container could not be removed. Calling again goes on where this stopped.
#[derive(Debug, Error)]
pub enum RemoveContainerError {
    /// A directory could not be unmounted or removed.
    #[error("remove container {container}")]
    Path {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The records could not be read or written.
    #[error("remove container {container}")]
    Records {
        /// The container.
        container: ContainerId,
        /// Why.
        #[source]
        source: RecordsError,
    },
}

/// Why what something takes on disk could not be found out.
#[derive(Debug, Error)]
pub enum UsageError {
    /// No such container.
    #[error("container {container} is not in the store")]
    NoContainer {
        /// The container.
        container: ContainerId,
    },
    /// A directory could not be walked.
    #[error("measure")]
    Path(#[source] PathError),
    /// The records could not be read.
    #[error("measure")]
    Records(#[source] RecordsError),
}

/// Why a layer could not be removed.
#[derive(Debug, Error)]
pub enum RemoveLayerError {
    /// A directory could not be removed.
    #[error("remove layer {layer}")]
    Path {
        /// The layer.
        layer: LayerId,
        /// Why.
        #[source]
        source: PathError,
    },
    /// The records could not be read or written.
    #[error("remove layer {layer}")]
    Records {
        /// The layer.
        layer: LayerId,
        /// Why.
        #[source]
        source: RecordsError,
    },
}
