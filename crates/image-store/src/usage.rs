//! What parts of the store take.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use domain::id::{ContainerId, LayerId};
use jiff::Timestamp;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use crate::error::{PathError, UsageError};
use crate::store::Store;
use crate::types::{StoreUsage, Usage};

/// Deepest directory walked: deeper ones are made to hurt, and each level keeps a descriptor open.
const DEPTH_MAX: usize = 256;

impl Store {
    /// What ImageFsInfo reports: the records and data of images, not their layers.
    ///
    /// That is what CRI-O walks; with a few files an image it can be asked for often.
    pub fn usage(&self) -> Result<StoreUsage, UsageError> {
        let mountpoint = self.images_dir();
        let images = walk(&mountpoint).map_err(UsageError::Path)?;
        Ok(StoreUsage { mountpoint, images, at: Timestamp::now() })
    }

    /// What a container has written: its read-write layer.
    pub fn layer_usage(&self, container: &ContainerId) -> Result<Usage, UsageError> {
        let layer = {
            let containers = self.containers.read().map_err(UsageError::Records)?;
            containers.find(container.as_str()).map(|row| row.layer.clone())
        };
        let layer = layer.and_then(|layer| LayerId::parse(&layer).ok());
        let layer = layer.ok_or_else(|| UsageError::NoContainer { container: container.clone() })?;
        walk(&self.overlay.diff(layer.as_str())).map_err(UsageError::Path)
    }
}

/// Lengths and number of everything beneath `path`, itself included; links are not followed, other file systems not
/// entered, and what disappears meanwhile is not counted.
fn walk(path: &Path) -> Result<Usage, PathError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, path, flags, Mode::empty()).map_err(PathError::new("open", path))?;
    let stat = rustix::fs::fstat(&directory).map_err(PathError::new("look at", path))?;
    let mut walk = Walk {
        device: stat.st_dev,
        // Lengths are never negative.
        usage: Usage { bytes: u64::try_from(stat.st_size).unwrap_or(0), inodes: 1 },
        seen: HashSet::new(),
    };
    walk.directory(&directory, 0).map_err(PathError::new("walk", path))?;
    Ok(walk.usage)
}

struct Walk {
    device: u64,
    usage: Usage,
    /// Files with several names, counted once.
    seen: HashSet<u64>,
}

impl Walk {
    fn directory(&mut self, directory: &OwnedFd, depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            return Ok(());
        }
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = OsStr::from_bytes(entry.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = match rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) {
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
                match rustix::fs::openat(directory, name, flags, Mode::empty()) {
                    Ok(below) => self.directory(&below, depth + 1)?,
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
