//! The vfs driver: every layer is a directory of its own, whole: `<home>/dir/<id>`.
//!
//! Needs nothing of kernel or file system; where the file system shares content between files, copies take no space
//! for it. Source: containers/storage `drivers/vfs`.

use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use domain::id::LayerId;
use durable::Durability;

use crate::copies::{Bring, Dressing, apply, copy_tree, open_dir};
use crate::driver::{Below, Driver, Homes, MountAs, NewLayer};
use crate::error::PathError;
use crate::recovery::names_in;
use crate::stage::DIFF;
use crate::staging::{Staging, StagingDir};
use crate::whole;

/// Beneath a home, the layers.
const LAYERS: &str = "dir";

/// The driver's home directories.
#[derive(Debug)]
pub(crate) struct Vfs {
    homes: Homes,
}

impl Vfs {
    /// The homes that may be written to exist.
    pub(crate) fn open(homes: Homes) -> Result<Self, PathError> {
        homes.writable().try_for_each(|home| whole::make_private(&home.join(LAYERS)))?;
        Ok(Self { homes })
    }
}

impl Driver for Vfs {
    fn name(&self) -> &'static str {
        "vfs"
    }

    fn home(&self) -> &Path {
        self.homes.of_images()
    }

    fn container_home(&self) -> &Path {
        &self.homes.own
    }

    fn lies_with_images(&self, id: &str) -> bool {
        self.homes.of(&Path::new(LAYERS).join(id)) == self.homes.of_images()
    }

    fn layers_on_disk(&self) -> Vec<String> {
        let names = self.homes.writable().flat_map(|home| names_in(&home.join(LAYERS)));
        names.filter(|name| LayerId::parse(name).is_ok()).collect()
    }

    fn diff(&self, id: &str) -> PathBuf {
        let beneath = Path::new(LAYERS).join(id);
        self.homes.of(&beneath).join(beneath)
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
        whole::place(staged, &self.homes.of_images().join(LAYERS).join(id), Durability::Durable)
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
        whole::place(staged, &self.homes.own.join(LAYERS).join(new.id), new.durability)
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
