//! Record locks that belong to an open file description (`F_OFD_SETLK`, fcntl(2), Linux 3.15).
//!
//! They conflict with the classic record locks other programs take on the same file, but belong to the description
//! rather than the process: two threads that opened the file each exclude one another, and closing an unrelated
//! descriptor of the file lets nothing go.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// What a record lock allows others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecordLock {
    /// Other shared holders; the file must be open for reading.
    Shared,
    /// Nobody; the file must be open for writing.
    Exclusive,
}

fn whole_file(kind: libc::c_int) -> libc::flock {
    libc::flock {
        // The three constants are 0 to 2 on every architecture.
        l_type: libc::c_short::try_from(kind).unwrap_or(libc::c_short::MAX),
        l_whence: 0,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

fn set(file: BorrowedFd<'_>, command: libc::c_int, kind: libc::c_int) -> io::Result<()> {
    let request = whole_file(kind);
    loop {
        // SAFETY: the descriptor is open for as long as it is borrowed, the command takes a pointer to a flock, and the
        // one given lives until the call returns.
        let result = unsafe { libc::fcntl(file.as_raw_fd(), command, &raw const request) };
        if result == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Waits until the whole file can be locked, and locks it.
pub fn lock_record(file: BorrowedFd<'_>, lock: RecordLock) -> io::Result<()> {
    set(file, libc::F_OFD_SETLKW, kind_of(lock))
}

/// Locks the whole file if nobody is in the way; `false` if somebody is.
pub fn try_lock_record(file: BorrowedFd<'_>, lock: RecordLock) -> io::Result<bool> {
    match set(file, libc::F_OFD_SETLK, kind_of(lock)) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EACCES)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Lets go of the whole file, even if a child between fork and exec still has a copy of the descriptor.
pub fn unlock_record(file: BorrowedFd<'_>) -> io::Result<()> {
    set(file, libc::F_OFD_SETLK, libc::F_UNLCK)
}

fn kind_of(lock: RecordLock) -> libc::c_int {
    match lock {
        RecordLock::Shared => libc::F_RDLCK,
        RecordLock::Exclusive => libc::F_WRLCK,
    }
}
