//! What parts of the store take.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use domain::id::{ContainerId, LayerId};
use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use crate::error::{PathError, UsageError};
use crate::store::{CONTAINERS, IMAGES, Store};
use crate::types::{StoreUsage, Usage};

/// Deepest directory walked: deeper ones are made to hurt, and each level keeps a descriptor open.
const DEPTH_MAX: usize = 256;

impl Store {
    /// What ImageFsInfo reports: the records and data of images, not their layers; and those of containers, if images lie
    /// elsewhere. That is what CRI-O walks.
    ///
    /// Walked again only when the records of images have changed: data are changed together with them.
    pub fn usage(&self) -> Result<StoreUsage, UsageError> {
        let mountpoint = self.images_dir();
        // Held while walking, so that what is found belongs to these records.
        let images = self.images.read().map_err(UsageError::Records)?;
        let version = images.version();
        let mut known = self.images_usage.lock().unwrap_or_else(PoisonError::into_inner);
        let usage = match &*known {
            Some((seen, usage)) if *seen == version => *usage,
            _ => {
                let usage = walk(&mountpoint, u64::MAX).map_err(UsageError::Path)?;
                *known = Some((version, usage));
                usage
            }
        };
        let mut containers = None;
        if mountpoint != self.beneath(self.root(), IMAGES) {
            let directory = self.beneath(self.root(), CONTAINERS);
            let usage = walk(&directory, u64::MAX).map_err(UsageError::Path)?;
            containers = Some((directory, usage));
        }
        Ok(StoreUsage { mountpoint, images: usage, containers, at: Timestamp::now() })
    }

    /// Where a container's read-write layer is.
    pub fn layer_place(&self, container: &ContainerId) -> Result<LayerPlace, UsageError> {
        let layer = {
            let containers = self.containers.read().map_err(UsageError::Records)?;
            containers.find(container.as_str()).map(|row| row.layer.clone())
        };
        let layer = layer.and_then(|layer| LayerId::parse(&layer).ok());
        let layer = layer.ok_or_else(|| UsageError::NoContainer { container: container.clone() })?;
        Ok(LayerPlace { diff: self.driver.diff(layer.as_str()), merged: self.driver.merged(layer.as_str()) })
    }
}

/// A container's read-write layer; stays where it is for as long as there is the container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerPlace {
    diff: PathBuf,
    /// Where its root is mounted, if it is.
    pub merged: PathBuf,
}

impl LayerPlace {
    /// What the container has written; `None` if that is more files than `files_max`.
    pub fn usage(&self, files_max: Option<u64>) -> Result<Option<Usage>, UsageError> {
        let files_max = files_max.unwrap_or(u64::MAX);
        let usage = walk(&self.diff, files_max).map_err(UsageError::Path)?;
        Ok(Some(usage).filter(|usage| usage.inodes <= files_max))
    }
}

/// Lengths and number of everything beneath `path`, itself included; links are not followed, other file systems not
/// entered, and what disappears meanwhile is not counted. Ends early once there are more than `files_max`.
fn walk(path: &Path, files_max: u64) -> Result<Usage, PathError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(PathError::new("open", path))?;
    let stat = rustix::fs::fstat(&directory).map_err(PathError::new("look at", path))?;
    let mut walk = Walk {
        device: stat.st_dev,
        // Lengths are never negative.
        usage: Usage { bytes: u64::try_from(stat.st_size).unwrap_or(0), inodes: 1 },
        files_max,
        seen: HashSet::new(),
    };
    walk.directory(directory, 0).map_err(PathError::new("walk", path))?;
    Ok(walk.usage)
}

struct Walk {
    device: u64,
    usage: Usage,
    files_max: u64,
    /// Files with several names, counted once.
    seen: HashSet<u64>,
}

impl Walk {
    fn directory(&mut self, directory: OwnedFd, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Ok(());
        }
        let mut entries = Dir::new(directory)?;
        while let Some(entry) = entries.read() {
            if self.usage.inodes > self.files_max {
                return Ok(());
            }
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = match rustix::fs::statat(entries.fd()?, name, AtFlags::SYMLINK_NOFOLLOW) {
                Err(rustix::io::Errno::NOENT) => continue,
                other => other?,
            };
            if stat.st_dev != self.device
                || (stat.st_nlink > 1 && !is_dir(stat.st_mode) && !self.seen.insert(stat.st_ino))
            {
                continue;
            }
            self.usage.bytes += u64::try_from(stat.st_size).unwrap_or(0);
            self.usage.inodes += 1;
            if is_dir(stat.st_mode) {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(entries.fd()?, name, flags, Mode::empty()) {
                    Ok(below) => self.directory(below, depth + 1)?,
                    Err(rustix::io::Errno::NOENT | rustix::io::Errno::NOTDIR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        Ok(())
    }
}

fn is_dir(mode: u32) -> bool {
    FileType::from_raw_mode(mode).is_dir()
}
