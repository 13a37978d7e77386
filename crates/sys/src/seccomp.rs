//! Answering for system calls that a seccomp filter hands over instead of refusing them itself.
//!
//! Source: seccomp_unotify(2). Linux 5.0; the listener hangs up when the last process of its filter has gone since 5.9.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// A system call that waits for its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Notification {
    /// Names it towards the kernel.
    pub id: u64,
    /// Who makes it, as seen from here.
    pub pid: u32,
    /// Whose numbers it uses: `AUDIT_ARCH_*`.
    pub arch: u32,
    /// Its number.
    pub number: i32,
}

/// Takes the next call. `None` when whoever made it was killed before it could be taken.
///
/// Blocks without one: look whether the listener is readable first.
pub fn receive(listener: BorrowedFd<'_>) -> io::Result<Option<Notification>> {
    // SAFETY: plain numbers, for which all bits zero is a value; the kernel wants to be given zeros.
    let mut request: libc::seccomp_notif = unsafe { std::mem::zeroed() };
    let address: *mut libc::seccomp_notif = &raw mut request;
    // SAFETY: the kernel writes one `seccomp_notif`, to which the pointer leads; the descriptor is open while borrowed.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_RECV, address) };
    if result == 0 {
        let data = request.data;
        return Ok(Some(Notification { id: request.id, pid: request.pid, arch: data.arch, number: data.nr }));
    }
    match io::Error::last_os_error() {
        error if matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINTR)) => Ok(None),
        error => Err(error),
    }
}

/// Has a call fail with `errno`. `false` when nobody waits for the answer any more.
pub fn refuse(listener: BorrowedFd<'_>, id: u64, errno: i32) -> io::Result<bool> {
    // Since the listener is no process's, an answer can only reach the call of that id.
    let mut answer = libc::seccomp_notif_resp { id, val: 0, error: -errno, flags: 0 };
    let address: *mut libc::seccomp_notif_resp = &raw mut answer;
    // SAFETY: the kernel reads one `seccomp_notif_resp`, to which the pointer leads; the descriptor is open while borrowed.
    let result = unsafe { libc::ioctl(listener.as_raw_fd(), libc::SECCOMP_IOCTL_NOTIF_SEND, address) };
    if result == 0 {
        return Ok(true);
    }
    match io::Error::last_os_error() {
        error if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
        error => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn other_descriptors_are_refused_by_the_kernel() {
        let null = std::fs::File::open("/dev/null").expect("opens");
        assert!(receive(null.as_fd()).is_err());
        assert!(refuse(null.as_fd(), 1, libc::ENOSYS).is_err());
    }
}
