//! The store of images, layers and containers: containers/storage's overlay layout, read and written exactly, so that
//! podman, buildah, skopeo and CRI-O see and share what is here.
//!
//! Promises: a layer has a name only after both of its digests matched and its files are durable; what a crash leaves
//! is removed when the store is opened; records of other tools are never dropped; an archive cannot reach outside the
//! layer it makes. Must not know: registries, references, pods. Blocking code throughout.
//! Begin reading at [`Store`], then `stage` (bytes to a directory) and `table` (records and locks).
#![forbid(unsafe_code)]

mod artifacts;
mod btrfs;
mod check;
mod chunked;
mod commit;
mod containers;
mod copies;
mod crc64;
mod driver;
mod error;
pub mod fault;
mod ids;
mod image_mounts;
mod images;
mod layers;
mod lock;
mod options;
mod overlay;
mod overlay_mount;
mod pending;
mod random;
mod readback;
mod records;
mod recovery;
mod signatures;
mod stage;
mod staging;
mod store;
mod table;
pub mod tar;
mod types;
mod usage;
mod vfs;
mod whole;
mod wipe;

pub use artifacts::{
    ArtifactError, ArtifactStaging, ArtifactStore, Forget, NewArtifact, StageBlobError, StoredArtifact, fuzz_index,
};
pub use check::{CheckOptions, Damage, Depth, OnContainers, RepairError, RepairOptions, Report, Stray, StrayKind};
pub use chunked::{
    ByteRange, ChunkedContents, ChunkedLayer, ChunkedOptions, ChunkedPlan, StageChunkedError, StagedChunked, TocError,
    TocPosition, fuzz_split, fuzz_toc, image_id_by_toc, toc_layer_id,
};
pub use error::{
    BigDataError, CommitLayerError, CreateContainerError, FindImageError, MountError, MountImageError, OpenError,
    PathError, PutImageError, RemoveContainerError, RemoveImageError, RemoveLayerError, StageError, UsageError,
};
pub use ids::{ContainerIds, FindIdsError, SubordinateFiles};
pub use layers::{LayerPin, layer_id};
pub use options::{DevicePolicy, OnOpen, OptionsError, StoreOptions, Transient, VolatileMounts};
pub use readback::ReadLayerError;
pub use records::parse_records;
pub use stage::StagedLayer;
pub use store::Store;
pub use table::RecordsError;
pub use types::{
    BigData, Compression, Container, ExpectedLayer, Image, Layer, LayerContents, MANIFEST_KEY, NewContainer, NewImage,
    StageOptions, StoreUsage, Usage, Volatile,
};
pub use usage::LayerPlace;
