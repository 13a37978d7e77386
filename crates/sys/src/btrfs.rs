//! Subvolumes and quotas of btrfs, by `ioctl(2)`. Source: linux/btrfs.h; all of it is older than Linux 5.0.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

/// `f_type` of statfs(2).
pub const SUPER_MAGIC: i64 = 0x9123_683e;

/// Inode number of the root of every subvolume: `BTRFS_FIRST_FREE_OBJECTID`.
pub const SUBVOLUME_INODE: u64 = 256;

const SUBVOL_CREATE: libc::c_ulong = 0x5000_940e;
const SNAP_DESTROY: libc::c_ulong = 0x5000_940f;
const SNAP_CREATE_V2: libc::c_ulong = 0x5000_9417;
const QUOTA_CTL: libc::c_ulong = 0xc010_9428;
const QGROUP_LIMIT: libc::c_ulong = 0x8030_942b;

const QUOTA_ENABLE: u64 = 1;
const LIMIT_MAX_REFERENCED: u64 = 1;

/// `btrfs_ioctl_vol_args`.
#[repr(C)]
struct Volume {
    fd: i64,
    name: [u8; 4088],
}

/// `btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct Snapshot {
    fd: i64,
    transaction: u64,
    flags: u64,
    unused: [u64; 4],
    name: [u8; 4040],
}

/// `btrfs_ioctl_quota_ctl_args`.
#[repr(C)]
struct QuotaControl {
    command: u64,
    status: u64,
}

/// `btrfs_ioctl_qgroup_limit_args`.
#[repr(C)]
struct QuotaLimit {
    /// Zero: that of the subvolume the descriptor is in.
    group: u64,
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved: [u64; 2],
}

/// The name with a NUL behind it.
fn filled<const N: usize>(name: &OsStr) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    let name = name.as_bytes();
    if name.is_empty() || name.len() >= N || name.contains(&b'/') || name.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    bytes[..name.len()].copy_from_slice(name);
    Ok(bytes)
}

fn control<T>(file: BorrowedFd<'_>, request: libc::c_ulong, argument: &mut T) -> io::Result<()> {
    // SAFETY: each request above comes with the structure the kernel defines for it, which lives until the call
    // returns; the size is part of the request. The descriptor is open for as long as it is borrowed.
    let result = unsafe { libc::ioctl(file.as_raw_fd(), request, std::ptr::from_mut(argument)) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes an empty subvolume in a directory.
pub fn create(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    control(parent, SUBVOL_CREATE, &mut Volume { fd: 0, name: filled(name)? })
}

/// Makes a writable snapshot of the subvolume `of` in a directory of the same file system.
pub fn snapshot(of: BorrowedFd<'_>, parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    let mut snapshot =
        Snapshot { fd: of.as_raw_fd().into(), transaction: 0, flags: 0, unused: [0; 4], name: filled(name)? };
    control(parent, SNAP_CREATE_V2, &mut snapshot)
}

/// Deletes a subvolume with everything in it, except that one with others inside is refused.
pub fn delete(parent: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    control(parent, SNAP_DESTROY, &mut Volume { fd: 0, name: filled(name)? })
}

/// Turns quotas of the file system on; fine if they are.
pub fn enable_quota(directory: BorrowedFd<'_>) -> io::Result<()> {
    control(directory, QUOTA_CTL, &mut QuotaControl { command: QUOTA_ENABLE, status: 0 })
}

/// Limits what a subvolume refers to, what it shares with others included. Quotas must be on.
pub fn limit(subvolume: BorrowedFd<'_>, bytes: u64) -> io::Result<()> {
    let mut limit =
        QuotaLimit { group: 0, flags: LIMIT_MAX_REFERENCED, max_referenced: bytes, max_exclusive: 0, reserved: [0; 2] };
    control(subvolume, QGROUP_LIMIT, &mut limit)
}

/// Takes [`limit`] back.
pub fn lift_limit(subvolume: BorrowedFd<'_>) -> io::Result<()> {
    // The kernel's word for no value.
    limit(subvolume, u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_long_as_their_requests_say() {
        let length = |request: libc::c_ulong| (request >> 16) & 0x3fff;
        for (request, size) in [
            (SUBVOL_CREATE, size_of::<Volume>()),
            (SNAP_DESTROY, size_of::<Volume>()),
            (SNAP_CREATE_V2, size_of::<Snapshot>()),
            (QUOTA_CTL, size_of::<QuotaControl>()),
            (QGROUP_LIMIT, size_of::<QuotaLimit>()),
        ] {
            assert_eq!(length(request), size as libc::c_ulong);
        }
    }

    #[test]
    fn names_are_one_part_of_a_path() {
        for (name, good) in [("diff", true), ("", false), ("a/b", false), ("a\0", false)] {
            assert_eq!(filled::<16>(OsStr::new(name)).is_ok(), good, "{name:?}");
        }
        assert!(filled::<4>(OsStr::new("four")).is_err());
    }
}
