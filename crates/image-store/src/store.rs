//! The store.
#![allow(clippy::missing_errors_doc, unused_variables, missing_docs, dead_code)]
use std::io::{self, Read};
use std::path::PathBuf;

use domain::digest::Digest;
use domain::id::{ContainerId, ImageId, LayerId};

use crate::error::*;
use crate::layers::LayerPin;
use crate::options::{OptionsError, StoreOptions};
use crate::stage::StagedLayer;
use crate::table::RecordsError;
use crate::types::*;

/// The store.
#[derive(Debug)]
pub struct Store { root: PathBuf, runroot: PathBuf }

fn early() -> RecordsError {
    RecordsError::Read { path: PathBuf::new(), source: io::Error::from(io::ErrorKind::Unsupported) }
}

impl Store {
    pub fn open(options: StoreOptions) -> Result<Store, OpenError> { Err(OpenError::Options(OptionsError::Driver(options.driver))) }
    pub fn root(&self) -> &std::path::Path { &self.root }
    pub fn runroot(&self) -> &std::path::Path { &self.runroot }
    pub fn driver(&self) -> &'static str { "overlay" }
    pub fn images(&self) -> Result<Vec<Image>, RecordsError> { Err(early()) }
    /// By id, unique beginning of one (3 or more hexadecimal characters), or exact normalised name.
    pub fn find_image(&self, key: &str) -> Result<Option<Image>, FindImageError> { Err(FindImageError::Records { key: key.into(), source: early() }) }
    pub fn image_big_data(&self, image: &ImageId, key: &str) -> Result<Vec<u8>, BigDataError> { Err(BigDataError::NoImage { image: image.clone() }) }
    pub fn image_manifest(&self, image: &ImageId) -> Result<Vec<u8>, BigDataError> { Err(BigDataError::NoImage { image: image.clone() }) }
    pub fn image_config(&self, image: &ImageId) -> Result<Vec<u8>, BigDataError> { Err(BigDataError::NoImage { image: image.clone() }) }
    pub fn put_image(&self, new: NewImage) -> Result<(), PutImageError> { Err(PutImageError::Records { image: new.id, source: early() }) }
    /// Takes a name from its image, which it returns; the image stays, even without names.
    pub fn untag(&self, name: &str) -> Result<Option<ImageId>, RecordsError> { Err(early()) }
    /// Unknown images are removed already.
    pub fn remove_image(&self, image: &ImageId) -> Result<(), RemoveImageError> { Err(RemoveImageError::Records { image: image.clone(), source: early() }) }
    pub fn find_layer(&self, parent: Option<&LayerId>, diff_id: &Digest) -> Result<Option<LayerPin>, RecordsError> { Err(early()) }
    pub fn stage_layer(&self, source: impl Read, options: StageOptions) -> Result<StagedLayer, StageError> { Err(StageError::UnsupportedCompression("any")) }
    pub fn commit_layer(&self, staged: StagedLayer, parent: Option<&LayerId>, expected: &ExpectedLayer) -> Result<LayerPin, CommitLayerError> { Err(CommitLayerError::Records(early())) }
    /// After a failed pull: `true` if it was there and nothing used it.
    pub fn remove_layer_if_unused(&self, layer: &LayerId) -> Result<bool, RemoveLayerError> { Err(RemoveLayerError::Records { layer: layer.clone(), source: early() }) }
    pub fn create_container(&self, new: NewContainer) -> Result<Container, CreateContainerError> { Err(CreateContainerError::Exists { container: new.id }) }
    pub fn containers(&self) -> Result<Vec<Container>, RecordsError> { Err(early()) }
    pub fn container(&self, container: &ContainerId) -> Result<Option<Container>, RecordsError> { Err(early()) }
    pub fn mount(&self, container: &ContainerId) -> Result<PathBuf, MountError> { Err(MountError::NoContainer { container: container.clone() }) }
    pub fn mounted_path(&self, container: &ContainerId) -> Result<Option<PathBuf>, MountError> { Err(MountError::NoContainer { container: container.clone() }) }
    pub fn unmount(&self, container: &ContainerId) -> Result<(), MountError> { Err(MountError::NoContainer { container: container.clone() }) }
    /// Idempotent.
    pub fn remove_container(&self, container: &ContainerId) -> Result<(), RemoveContainerError> { Err(RemoveContainerError::Records { container: container.clone(), source: early() }) }
    pub fn container_dir(&self, container: &ContainerId) -> PathBuf { self.root.join("overlay-containers").join(container.as_str()).join("userdata") }
    pub fn container_run_dir(&self, container: &ContainerId) -> PathBuf { self.runroot.join("overlay-containers").join(container.as_str()).join("userdata") }
    pub fn layer_usage(&self, container: &ContainerId) -> Result<Usage, UsageError> { Err(UsageError::NoContainer { container: container.clone() }) }
    pub fn usage(&self) -> Result<StoreUsage, UsageError> { Err(UsageError::Records(early())) }
}
