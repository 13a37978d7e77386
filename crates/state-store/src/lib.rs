//! What a restart knows of sandboxes and containers: the records CRI-O keeps beside the store, read and written exactly.
//!
//! Promises: a record is replaced whole or not at all; one written by CRI-O 1.37 reads the same here, and the other way
//! round. Must not know: how a container is run, what the kernel says about it; `lifecycle` compares the two.
//! Begin reading at [`state`] (`state.json`), then [`spec`] (`config.json`), [`metadata`] (the store's record), [`exit`]
//! and [`intent`].
#![forbid(unsafe_code)]

pub mod exit;
pub mod intent;
pub mod metadata;
pub mod spec;
pub mod state;
mod wire_time;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::{fs, io};

use thiserror::Error;

/// No record here is anywhere near this large; a larger file is damage.
const RECORD_MAX_BYTES: u64 = 16 << 20;

/// Why a record could not be read.
#[derive(Debug, Error)]
pub enum LoadError {
    /// The file cannot be read.
    #[error("read {path}")]
    Read {
        /// The record.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The file does not hold such a record.
    #[error("{path} is not a valid record: {reason}")]
    Invalid {
        /// The record.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// Why a record could not be written.
#[derive(Debug, Error)]
#[error("write {path}")]
pub struct SaveError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Reads a record, `None` when there is none.
fn load(path: &Path) -> Result<Option<Vec<u8>>, LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(read(error)),
    };
    let mut bytes = Vec::new();
    file.take(RECORD_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > RECORD_MAX_BYTES {
        return Err(LoadError::Invalid { path: path.to_owned(), reason: "larger than 16 MiB".to_owned() });
    }
    Ok(Some(bytes))
}

/// Replaces a record. Not made durable: what it describes does not outlive the boot either.
fn save(path: &Path, bytes: &[u8], mode: u32) -> Result<(), SaveError> {
    durable::replace(path, bytes, mode, durable::Durability::Volatile)
        .map_err(|error| SaveError { path: path.to_owned(), source: io::Error::other(error) })
}
