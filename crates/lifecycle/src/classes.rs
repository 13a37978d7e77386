//! Classes that annotations choose for a container: of block I/O, and of cache and memory bandwidth.

use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use domain::container::ContainerConfig;
use domain::spec::Edits;
use injection::block_io::{BlockIoClasses, BlockIoError, ClassKind, class_of};
use thiserror::Error;

use crate::create_container::CreateContainerError;
use crate::sandbox::Sandbox;
use crate::undo::chain;

/// There are no classes of cache and memory bandwidth. Source: CRI-O, for hosts without resctrl.
#[derive(Debug, Error)]
#[error("RDT disabled, refusing to set RDT class of container {container:?} to {class:?}")]
pub struct NoRdt {
    container: String,
    class: String,
}

/// The node's classes of block I/O, where the operator has any.
#[derive(Debug)]
pub(crate) struct Classes {
    file: Option<PathBuf>,
    is_read_each_time: bool,
    block_io: Mutex<BlockIoClasses>,
}

impl Classes {
    /// Reads the file of block I/O classes, if one is configured.
    pub(crate) fn load(file: Option<PathBuf>, is_read_each_time: bool) -> Result<Self, BlockIoError> {
        let classes = file.as_deref().map(BlockIoClasses::load).transpose()?.unwrap_or_default();
        Ok(Self { file, is_read_each_time, block_io: Mutex::new(classes) })
    }

    /// What the classes of a container add to it. Blocking: devices are looked for.
    ///
    /// A class of block I/O that is not there is told and leaves the container without, as in CRI-O. One of cache and
    /// bandwidth is refused: no file of such classes takes effect.
    pub(crate) fn edits(
        &self,
        name: &str,
        config: &ContainerConfig,
        sandbox: &Sandbox,
    ) -> Result<Edits, CreateContainerError> {
        let of_sandbox = &sandbox.config.annotations;
        let class = |kind| class_of(kind, &config.metadata.name, &config.annotations, of_sandbox);
        if let Some(class) = class(ClassKind::Rdt) {
            return Err(CreateContainerError::NoRdt(NoRdt { container: name.to_owned(), class: class.to_owned() }));
        }
        let Some(class) = class(ClassKind::BlockIo) else { return Ok(Edits::default()) };
        let Some(file) = &self.file else {
            tracing::warn!(container.name = name, class, "there are no block I/O classes (blockio_config_file)");
            return Ok(Edits::default());
        };
        let mut classes = self.block_io.lock().unwrap_or_else(PoisonError::into_inner);
        if self.is_read_each_time {
            match BlockIoClasses::load(file) {
                Ok(read) => *classes = read,
                Err(error) => tracing::warn!(error = %chain(&error), "block I/O classes stay as they were"),
            }
        }
        let block_io = classes.resolve(class);
        if block_io.is_none() {
            tracing::warn!(container.name = name, class, "there is no such block I/O class");
        }
        Ok(Edits { block_io, ..Edits::default() })
    }
}
