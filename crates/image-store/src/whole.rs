//! What drivers have in common that keep every layer whole.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::{Path, PathBuf};

use domain::id_maps::IdMaps;
use durable::Durability;
use rustix::fs::{Gid, Mode, Uid, XattrFlags};
use rustix::mount::MountFlags;

use crate::copies::open_dir;
use crate::driver::Below;
use crate::error::PathError;
use crate::fault;
use crate::stage::DIFF;
use crate::staging::{StagingDir, remove_tree};

/// Where a layer is put together in its staging directory.
pub(crate) const TREE: &str = "tree";
/// Mode of a layer that lies on nothing. Source: containers/storage.
const BASE_MODE: u32 = 0o555;

/// Makes a directory nobody else can look into, unless it is there.
pub(crate) fn make_private(path: &Path) -> Result<(), PathError> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            Err(PathError::new("make directory", path)(error))
        }
        _ => Ok(()),
    }
}

/// A layer whose files are in `tree`.
pub(crate) fn below(tree: PathBuf) -> Result<Below, PathError> {
    let stat = std::fs::symlink_metadata(&tree).map_err(PathError::new("look at", &tree))?;
    let made = stat.created().map(|made| format!("{made:?}")).unwrap_or_default();
    Ok(Below {
        lower: format!("{}:{}:{made}", stat.dev(), stat.ino()),
        depth: 0,
        tree,
        mode: stat.mode() & 0o7777,
        uid: stat.uid(),
        gid: stat.gid(),
    })
}

/// Puts the whole layer where its changes were.
pub(crate) fn put_in_place(tree: &Path, diff: &Path) -> Result<(), PathError> {
    remove_tree(diff)?;
    fault::step("put layer together").map_err(PathError::new("move to", diff))?;
    rustix::fs::rename(tree, diff).map_err(PathError::new("move to", diff))
}

/// Gives the layer's own directory mode and owner: those of what it lies on, or of root.
pub(crate) fn own_root(tree: &Path, below: Option<&Below>, ids: Option<&IdMaps>) -> Result<(), PathError> {
    let directory = open_dir(tree)?;
    let (mode, uid, gid) = below.map_or((BASE_MODE, 0, 0), |below| (below.mode, below.uid, below.gid));
    let (uid, gid) = match ids {
        None => (uid, gid),
        // One that has nobody inside belongs to root, as a file root makes does.
        Some(ids) => ids.owner(uid, gid).map_or_else(|| (ids.root().uid, ids.root().gid), |own| (own.uid, own.gid)),
    };
    rustix::fs::fchown(&directory, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
        .map_err(PathError::new("set owner of", tree))?;
    rustix::fs::fchmod(&directory, Mode::from_raw_mode(mode)).map_err(PathError::new("set mode of", tree))
}

/// Labels the layer's own directory.
pub(crate) fn label_root(tree: &Path, label: &str) -> Result<(), PathError> {
    if label.is_empty() {
        return Ok(());
    }
    rustix::fs::lsetxattr(tree, "security.selinux", label.as_bytes(), XattrFlags::empty())
        .map_err(PathError::new("label", tree))
}

/// Makes everything on the file system of `path` survive a loss of power: one call for all files of a layer.
pub(crate) fn sync_all(path: &Path) -> Result<(), PathError> {
    fault::step("sync layer").map_err(PathError::new("sync", path))?;
    let directory = open_dir(path)?;
    rustix::fs::syncfs(&directory).map_err(PathError::new("sync", path))
}

/// Moves a staged layer to its place.
pub(crate) fn place(staged: StagingDir, target: &Path, durability: Durability) -> Result<(), PathError> {
    fault::step("move layer to its place").map_err(PathError::new("move to", target))?;
    rustix::fs::rename(staged.path().join(DIFF), target).map_err(PathError::new("move to", target))?;
    if durability == Durability::Volatile {
        return Ok(());
    }
    fault::step("sync directory").map_err(PathError::new("sync", target))?;
    let parent = target.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|directory| directory.sync_all()).map_err(PathError::new("sync", parent))
}

/// Shows a layer at a directory with the owners `users` says, read-only.
pub(crate) fn mount_mapped(tree: &Path, target: &Path, users: BorrowedFd<'_>) -> Result<(), PathError> {
    fault::step("mount").map_err(PathError::new("mount", target))?;
    let mapped = sys::idmap::mapped_tree(tree, users).map_err(PathError::new("map ids of", tree))?;
    sys::idmap::attach(&mapped, target).map_err(PathError::new("attach", target))?;
    let read_only = MountFlags::BIND | MountFlags::RDONLY;
    rustix::mount::mount_remount(target, read_only, "").map_err(PathError::new("make read-only", target))
}
