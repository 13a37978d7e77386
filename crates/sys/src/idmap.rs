//! Mounts whose files show other owners than the disk has.
//!
//! mount_setattr(2) with `MOUNT_ATTR_IDMAP` needs Linux 5.12 and a file system that takes part; overlay on such mounts
//! needs 5.19.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::CWD;
use rustix::mount::{MoveMountFlags, OpenTreeFlags};

/// A copy of the mount `path` lies on, from `path` down, seen through the ids of a user namespace; attached nowhere.
///
/// Mounts beneath `path` are not part of it. It is private, and gone with the last descriptor unless it is attached.
/// Source: open_tree(2), mount_setattr(2).
pub fn mapped_tree(path: &Path, users: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, path, flags)?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: libc::MS_PRIVATE,
        // A descriptor is never negative.
        userns_fd: users.as_raw_fd().cast_unsigned().into(),
    };
    // SAFETY: mount_setattr(2) reads a path that ends with NUL and as many bytes of the structure as it has; both live
    // until it returns. The descriptors are open.
    let outcome = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &raw const attributes,
            size_of::<libc::mount_attr>(),
        )
    };
    if outcome < 0 { Err(io::Error::last_os_error()) } else { Ok(tree) }
}

/// Attaches what [`mapped_tree`] made on an existing directory. Source: move_mount(2), Linux 5.2.
pub fn attach(tree: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(rustix::mount::move_mount(tree.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::namespace::{IdMaps, IdRange, make_user};

    #[test]
    fn files_show_the_owners_of_the_namespace() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let directory = tempfile::tempdir().expect("a directory");
        let (source, target) = (directory.path().join("source"), directory.path().join("target"));
        for path in [&source, &target] {
            std::fs::create_dir(path).expect("a directory");
        }
        drop(std::fs::File::create(source.join("file")).expect("a file"));
        std::os::unix::fs::chown(source.join("file"), Some(5), Some(7)).expect("an owner");
        let range = |outside| [IdRange { inside: 0, outside, length: 10 }];
        let (users, groups) = (range(100_000), range(200_000));
        let users = make_user(&IdMaps { users: &users, groups: &groups }).expect("a user namespace");
        let tree = match mapped_tree(&source, users.as_fd()) {
            // A file system that has no part in it.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => return,
            other => other.expect("a mapped tree"),
        };
        attach(&tree, &target).expect("attach");
        let seen = std::fs::metadata(target.join("file")).expect("a file");
        rustix::mount::unmount(&target, rustix::mount::UnmountFlags::DETACH).expect("detach");
        assert_eq!((seen.uid(), seen.gid()), (100_005, 200_007));
    }
}
