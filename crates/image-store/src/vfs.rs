//! The vfs driver: every layer is a directory of its own, whole: `<home>/dir/<id>`.
//!
//! Needs nothing of kernel or file system; where the file system shares content between files, copies take no space
//! for it. Source: containers/storage `drivers/vfs`.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use domain::id::LayerId;
use durable::Durability;

use crate::copies::{Bring, Dressing, apply, copy_tree, open_dir};
use crate::driver::{Below, Driver, MountAs, NewLayer};
use crate::error::PathError;
use crate::recovery::names_in;
use crate::stage::DIFF;
use crate::staging::{Staging, StagingDir};
use crate::whole;

/// The driver's home directory.
#[derive(Debug)]
pub(crate) struct Vfs {
    home: PathBuf,
}

impl Vfs {
    /// `home` exists.
    pub(crate) fn open(home: PathBuf) -> Result<Self, PathError> {
        whole::make_private(&home.join("dir"))?;
        Ok(Self { home })
    }

    fn layers(&self) -> PathBuf {
        self.home.join("dir")
    }
}

impl Driver for Vfs {
    fn name(&self) -> &'static str {
        "vfs"
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
            std::fs::create_dir(&tree).map_err(PathError::new("make directory", &tree))?;
            copy_tree(&below.tree, &tree, Dressing::default())?;
            apply(&diff, &tree, Bring::Rename)?;
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
        let staged = staging.new_dir()?;
        let diff = staged.path().join(DIFF);
        if let Some(below) = new.below {
            copy_tree(&below.tree, &diff, Dressing { ids: new.ids, label: new.label })?;
        }
        whole::own_root(&diff, new.below, new.ids)?;
        whole::label_root(&diff, new.label)?;
        if new.durability == Durability::Durable {
            whole::sync_all(&diff)?;
        }
        whole::place(staged, &self.diff(new.id), new.durability)
    }

    fn take(&self, id: &str, staging: &Staging) -> Result<Option<StagingDir>, PathError> {
        staging.take(&self.diff(id))
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
        (!self.diff(id).is_dir()).then_some("dir")
    }

    fn repair(&self) -> Result<(), PathError> {
        Ok(())
    }

    fn maps_ids_by_mount(&self) -> bool {
        false
    }
}
