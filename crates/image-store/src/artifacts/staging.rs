//! Bytes of artifacts before they are anybody's, and before they are nobody's any more.

use std::fs::{DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use domain::digest::Digest;
use durable::Durability;
use durable::lock::LockFile;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

use super::{BLOBS, is_full, sync_dir};
use crate::error::PathError;
use crate::fault;
use crate::images::replace_error;
use crate::random;
use crate::staging::remove_tree;

pub(super) const STAGING_PREFIX: &str = ".staging-";
/// In a staging directory: what came with it, and what was there before.
pub(super) const NEW: &str = "new";
const REUSED: &str = "reused";
/// Held for as long as somebody is at work in the directory.
pub(super) const LOCK: &str = "lock";
/// Large enough for the disk, small enough for several blobs at once.
const COPY_BYTES: usize = 256 << 10;

/// Why a blob could not be staged. Nothing of it is left.
#[derive(Debug, Error)]
pub enum StageBlobError {
    /// The caller's reader failed.
    #[error("read the blob's bytes")]
    Source(#[source] io::Error),
    /// Other bytes than the manifest says.
    #[error("the blob has digest {actual}, not {expected}")]
    Digest {
        /// By the manifest.
        expected: Digest,
        /// Of the bytes.
        actual: Digest,
    },
    /// Another number of bytes than the manifest says.
    #[error("the blob has {actual} bytes, not {expected}")]
    Size {
        /// By the manifest.
        expected: u64,
        /// As read, at most one more than expected.
        actual: u64,
    },
    /// The disk.
    #[error(transparent)]
    Path(#[from] PathError),
}

impl StageBlobError {
    /// Whether the disk is full.
    #[must_use]
    pub fn is_out_of_space(&self) -> bool {
        matches!(self, Self::Path(error) if is_full(&error.source))
    }
}

/// The blobs of a staging directory.
pub(super) fn blobs_in(directory: &Path) -> Vec<(Digest, PathBuf)> {
    let Ok(entries) = std::fs::read_dir(directory) else { return Vec::new() };
    let blob = |entry: io::Result<std::fs::DirEntry>| {
        let path = entry.ok()?.path();
        Some((Digest::parse(&format!("sha256:{}", path.file_name()?.to_str()?)).ok()?, path))
    };
    entries.filter_map(blob).collect()
}

/// Blobs on their way in or out; dropping it removes what has no other name.
#[derive(Debug)]
pub struct ArtifactStaging {
    directory: PathBuf,
    blobs: PathBuf,
    /// Says that somebody is at work here; goes last.
    _lock: LockFile,
}

impl ArtifactStaging {
    pub(super) fn make(root: &Path) -> Result<Self, PathError> {
        let name = random::link_name().map_err(PathError::new("draw a name in", root))?;
        let directory = root.join(format!("{STAGING_PREFIX}{name}"));
        for path in [directory.clone(), directory.join(NEW), directory.join(REUSED)] {
            fault::step("make staging").map_err(PathError::new("make directory", &path))?;
            DirBuilder::new().mode(0o700).create(&path).map_err(PathError::new("make directory", &path))?;
        }
        let lock = LockFile::lock(&directory.join(LOCK)).map_err(PathError::new("lock", &directory))?;
        Ok(Self { blobs: root.join(BLOBS), directory, _lock: lock })
    }

    fn path(&self, part: &str, digest: &Digest) -> PathBuf {
        self.directory.join(part).join(digest.hex())
    }

    pub(super) fn has(&self, digest: &Digest) -> bool {
        [NEW, REUSED].iter().any(|part| self.path(part, digest).exists())
    }

    /// Takes a blob that the store has already, so that it stays; `false` if there is none of that size.
    pub fn reuse(&self, digest: &Digest, size: u64) -> Result<bool, PathError> {
        if self.has(digest) {
            return Ok(true);
        }
        let source = self.blobs.join(digest.hex());
        if !std::fs::symlink_metadata(&source).is_ok_and(|data| data.is_file() && data.len() == size) {
            return Ok(false);
        }
        let target = self.path(REUSED, digest);
        match std::fs::hard_link(&source, &target) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(PathError::new("link", target)(error)),
        }
    }

    /// Stages a blob: exactly the bytes that its digest and size promise, or nothing.
    pub fn add(&self, reader: impl Read, digest: &Digest, size: u64) -> Result<(), StageBlobError> {
        if self.has(digest) {
            return Ok(());
        }
        let path = self.path(NEW, digest);
        // Under another name until it is verified: two of one digest may come at once.
        let name = random::link_name().map_err(PathError::new("draw a name for", &path))?;
        let partial = path.with_extension(name);
        let added = copy_verified(reader, &partial, digest, size).and_then(|()| {
            rustix::fs::rename(&partial, &path).map_err(PathError::new("rename to", &path))?;
            Ok(())
        });
        if added.is_err() {
            let _ = std::fs::remove_file(&partial);
        }
        added
    }

    /// Stages bytes whose digest was computed from them.
    pub(super) fn write(&self, digest: &Digest, bytes: &[u8]) -> Result<(), PathError> {
        let path = self.path(NEW, digest);
        if self.has(digest) {
            return Ok(());
        }
        fault::step("write blob").map_err(PathError::new("write", &path))?;
        durable::replace(&path, bytes, 0o644, Durability::Durable).map_err(replace_error(&path))
    }

    /// Remembers a blob that is to be removed.
    pub(super) fn adopt(&self, blob: &Path, digest: &Digest) -> Result<(), PathError> {
        match std::fs::hard_link(blob, self.path(NEW, digest)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(PathError::new("link", blob)(error)),
            _ => Ok(()),
        }
    }

    pub(super) fn sync(&self) -> Result<(), PathError> {
        [NEW, REUSED].iter().try_for_each(|part| sync_dir(&self.directory.join(part)))?;
        durable::sync_parent(&self.directory).map_err(PathError::new("sync", &self.directory))
    }

    /// Gives every blob its name in the store.
    pub(super) fn link_into(&self, blobs: &Path) -> Result<(), PathError> {
        for (digest, path) in
            blobs_in(&self.directory.join(NEW)).into_iter().chain(blobs_in(&self.directory.join(REUSED)))
        {
            let named = blobs.join(digest.hex());
            fault::step("link blob").map_err(PathError::new("link", &named))?;
            match std::fs::hard_link(&path, &named) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => self.replace_damaged(&path, &named)?,
                Err(error) => return Err(PathError::new("link", named)(error)),
            }
        }
        Ok(())
    }

    /// A file of another length under the name of a blob was never whole.
    fn replace_damaged(&self, path: &Path, named: &Path) -> Result<(), PathError> {
        let size = |path: &Path| std::fs::symlink_metadata(path).map(|data| (data.is_file(), data.len()));
        let ours = size(path).map_err(PathError::new("look at", path))?;
        if size(named).is_ok_and(|theirs| theirs == ours) {
            return Ok(());
        }
        let spare = self.directory.join("spare");
        std::fs::hard_link(path, &spare).map_err(PathError::new("link", &spare))?;
        rustix::fs::rename(&spare, named).map_err(PathError::new("replace", named))
    }
}

impl Drop for ArtifactStaging {
    fn drop(&mut self) {
        if !fault::is_dead()
            && let Err(error) = remove_tree(&self.directory)
        {
            tracing::warn!(path = %error.path.display(), error = %error.source, "what an artifact was staged in stays until the next start");
        }
    }
}

fn copy_verified(mut reader: impl Read, path: &Path, digest: &Digest, size: u64) -> Result<(), StageBlobError> {
    fault::step("stage blob").map_err(PathError::new("write", path))?;
    // Readable by everybody, as the field has it: users in containers read it.
    let mut file =
        File::options().write(true).create_new(true).mode(0o644).open(path).map_err(PathError::new("create", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut actual: u64 = 0;
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(StageBlobError::Source(error)),
        };
        actual += read as u64;
        if actual > size {
            return Err(StageBlobError::Size { expected: size, actual });
        }
        hash.update(&buffer[..read]);
        file.write_all(&buffer[..read]).map_err(PathError::new("write", path))?;
    }
    if actual != size {
        return Err(StageBlobError::Size { expected: size, actual });
    }
    let actual = Digest::from_sha256(&hash.finalize().into());
    if actual != *digest {
        return Err(StageBlobError::Digest { expected: digest.clone(), actual });
    }
    let mode = rustix::fs::Mode::from_raw_mode(0o644);
    rustix::fs::fchmod(&file, mode).map_err(PathError::new("set mode of", path))?;
    file.sync_all().map_err(PathError::new("sync", path))?;
    Ok(())
}
