//! What the stores of scenarios lie on.

use std::path::Path;

use crate::tools;

/// What a scenario's store lies on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Storage {
    /// The scenario's directory.
    #[default]
    Directory,
    /// A file system in memory that holds so many bytes.
    Memory(u64),
    /// A btrfs file system in a file.
    Btrfs,
}

/// Size of a scenario's btrfs file system; the file has holes.
pub(crate) const BTRFS_BYTES: u64 = 1 << 30;

/// Whether [`Storage::Btrfs`] can be had here.
#[must_use]
pub fn can_make_btrfs() -> bool {
    tools::find_program("mkfs.btrfs").is_some()
        && Path::new("/dev/loop-control").exists()
        && tools::read("/proc/filesystems").lines().any(|line| line.trim() == "btrfs")
}
