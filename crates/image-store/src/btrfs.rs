//! The btrfs driver: every layer is a subvolume, a snapshot of the one below with its changes made:
//! `<home>/subvolumes/<id>`.
//!
//! Limits of containers lie in `<home>/quotas/<id>`, in bytes. Source: containers/storage `drivers/btrfs`.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use domain::id::LayerId;
use durable::Durability;
use rustix::fs::{AtFlags, FileType};
use rustix::mount::UnmountFlags;

use crate::copies::{Bring, DEPTH_MAX, Dressing, apply, dress_tree, names, open_below, open_dir, too_deep};
use crate::driver::{Below, Driver, MountAs, NewLayer};
use crate::error::PathError;
use crate::fault;
use crate::images::replace_error;
use crate::overlay::ensure_private;
use crate::recovery::names_in;
use crate::stage::DIFF;
use crate::staging::{Staging, StagingDir};
use crate::whole;

/// The driver's home directory.
#[derive(Debug)]
pub(crate) struct Btrfs {
    home: PathBuf,
    /// Most bytes a container's root file system may refer to, those of its image included.
    size: Option<u64>,
}

/// Makes an empty subvolume at `path`.
pub(crate) fn make_subvolume(path: &Path) -> Result<(), PathError> {
    let (parent, name) = split(path);
    let parent = open_dir(parent)?;
    sys::btrfs::create(parent.as_fd(), name).map_err(PathError::new("make subvolume", path))
}

fn split(path: &Path) -> (&Path, &OsStr) {
    (path.parent().unwrap_or(Path::new("/")), path.file_name().unwrap_or_default())
}

fn snapshot(of: &Path, path: &Path) -> Result<(), PathError> {
    fault::step("make snapshot").map_err(PathError::new("make snapshot", path))?;
    let (parent, name) = split(path);
    let (of, parent) = (open_dir(of)?, open_dir(parent)?);
    sys::btrfs::snapshot(of.as_fd(), parent.as_fd(), name).map_err(PathError::new("make snapshot", path))
}

/// Deletes a subvolume with those inside it; refused for a directory of another file system that has the same inode
/// number.
pub(crate) fn delete_subvolume(path: &Path) -> io::Result<()> {
    let (parent, name) = split(path);
    delete(&open_dir(parent).map_err(|error| error.source)?, name, 0)
}

fn delete(parent: &OwnedFd, name: &OsStr, depth: usize) -> io::Result<()> {
    match sys::btrfs::delete(parent.as_fd(), name) {
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        other => return other,
    }
    delete_inside(&open_below(parent, name)?, depth + 1)?;
    sys::btrfs::delete(parent.as_fd(), name)
}

fn delete_inside(directory: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(too_deep());
    }
    for name in names(directory)? {
        let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        if !FileType::from_raw_mode(stat.st_mode).is_dir() {
            continue;
        }
        if stat.st_ino == sys::btrfs::SUBVOLUME_INODE {
            delete(directory, &name, depth)?;
        } else {
            delete_inside(&open_below(directory, &name)?, depth + 1)?;
        }
    }
    Ok(())
}

impl Btrfs {
    /// `home` exists, and must lie on btrfs. It gets a private mount of its own, as overlay's has.
    pub(crate) fn open(home: PathBuf, size: Option<u64>) -> Result<Self, PathError> {
        let stat = rustix::fs::statfs(&home).map_err(PathError::new("look at", &home))?;
        if i128::from(stat.f_type) != i128::from(sys::btrfs::SUPER_MAGIC) {
            let error = io::Error::new(io::ErrorKind::Unsupported, "it is not on a btrfs file system");
            return Err(PathError::new("use driver btrfs in", home)(error));
        }
        ensure_private(&home)?;
        whole::make_private(&home.join("subvolumes"))?;
        let driver = Self { home, size };
        if size.is_some() {
            driver.enable_quota()?;
        }
        Ok(driver)
    }

    fn enable_quota(&self) -> Result<(), PathError> {
        whole::make_private(&self.home.join("quotas"))?;
        let home = open_dir(&self.home)?;
        sys::btrfs::enable_quota(home.as_fd()).map_err(PathError::new("turn on quotas of", &self.home))
    }

    fn layers(&self) -> PathBuf {
        self.home.join("subvolumes")
    }

    fn quota(&self, id: &str) -> PathBuf {
        self.home.join("quotas").join(id)
    }

    fn limit(&self, subvolume: &Path, id: &str) -> Result<(), PathError> {
        let Some(size) = self.size else { return Ok(()) };
        let directory = open_dir(subvolume)?;
        sys::btrfs::limit(directory.as_fd(), size).map_err(PathError::new("limit", subvolume))?;
        let path = self.quota(id);
        durable::replace(&path, size.to_string().as_bytes(), 0o644, Durability::Volatile).map_err(replace_error(&path))
    }
}

impl Driver for Btrfs {
    fn name(&self) -> &'static str {
        "btrfs"
    }

    fn home(&self) -> &Path {
        &self.home
    }

    fn layers_on_disk(&self) -> Vec<String> {
        names_in(&self.layers()).into_iter().filter(|name| LayerId::parse(name).is_ok()).collect()
    }

    fn diff(&self, id: &str) -> PathBuf {
        self.layers().join(id)
    }

    fn merged(&self, id: &str) -> PathBuf {
        self.diff(id)
    }

    fn below(&self, parent: &str) -> Result<Below, PathError> {
        whole::below(self.diff(parent))
    }

    fn dress(&self, staged: &Path, below: Option<&Below>) -> Result<String, PathError> {
        let diff = staged.join(DIFF);
        if let Some(below) = below {
            let tree = staged.join(whole::TREE);
            snapshot(&below.tree, &tree)?;
            // Files cannot be renamed from one subvolume to another.
            apply(&diff, &tree, Bring::Copy)?;
            whole::put_in_place(&tree, &diff)?;
        }
        whole::own_root(&diff, below, None)?;
        whole::sync_all(&diff)?;
        Ok(String::new())
    }

    fn place(&self, staged: StagingDir, id: &str, _: &str) -> Result<(), PathError> {
        whole::place(staged, &self.diff(id), Durability::Durable)
    }

    fn create(&self, new: &NewLayer<'_>, staging: &Staging) -> Result<(), PathError> {
        let staged = staging.new_empty_dir()?;
        let diff = staged.path().join(DIFF);
        match new.below {
            Some(below) => snapshot(&below.tree, &diff)?,
            None => make_subvolume(&diff)?,
        }
        let dressing = Dressing { ids: new.ids, label: new.label };
        if new.below.is_some() && !dressing.is_plain() {
            dress_tree(&diff, dressing)?;
        }
        whole::own_root(&diff, new.below, new.ids)?;
        whole::label_root(&diff, new.label)?;
        self.limit(&diff, new.id)?;
        if new.durability == Durability::Durable {
            whole::sync_all(&diff)?;
        }
        whole::place(staged, &self.diff(new.id), new.durability)
    }

    fn take(&self, id: &str, staging: &Staging) -> Result<Option<StagingDir>, PathError> {
        let (quota, tree) = (self.quota(id), self.diff(id));
        if quota.exists() {
            // Where a limit is reached, nothing is deleted either.
            if let Ok(directory) = open_dir(&tree) {
                sys::btrfs::lift_limit(directory.as_fd()).map_err(PathError::new("lift limit of", &tree))?;
            }
            std::fs::remove_file(&quota).map_err(PathError::new("remove", quota))?;
        }
        staging.take(&tree)
    }

    fn has_mounts(&self) -> bool {
        false
    }

    fn is_mounted(&self, _: &str) -> Result<bool, PathError> {
        Ok(false)
    }

    fn mount(&self, id: &str, _: &MountAs<'_>) -> Result<(), PathError> {
        open_dir(&self.diff(id)).map(drop)
    }

    fn mount_read_only(&self, id: &str, _: &str) -> Result<(), PathError> {
        open_dir(&self.diff(id)).map(drop)
    }

    fn mount_mapped(&self, id: &str, _: &str, target: &Path, users: BorrowedFd<'_>) -> Result<(), PathError> {
        whole::mount_mapped(&self.diff(id), target, users)
    }

    fn try_mount(&self, id: &str, _: &str, _: &Path) -> Result<(), PathError> {
        open_dir(&self.diff(id)).map(drop)
    }

    fn unmount(&self, _: &str) -> Result<(), PathError> {
        Ok(())
    }

    fn missing(&self, id: &str, _: bool) -> Option<&'static str> {
        (!self.diff(id).is_dir()).then_some("subvolume")
    }

    fn repair(&self) -> Result<(), PathError> {
        // Limits of layers that are gone.
        for id in names_in(&self.home.join("quotas")) {
            if LayerId::parse(&id).is_ok() && !self.diff(&id).exists() {
                let path = self.quota(&id);
                std::fs::remove_file(&path).map_err(PathError::new("remove", path))?;
            }
        }
        Ok(())
    }

    fn let_go(&self) {
        let _ = rustix::mount::unmount(&self.home, UnmountFlags::NOFOLLOW);
    }

    fn maps_ids_by_mount(&self) -> bool {
        false
    }
}
