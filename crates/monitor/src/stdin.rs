//! The way from attached clients to the container's standard input.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::attach::PACKET_MAX;
use crate::options::OnStdinEnd;

/// Where a client's bytes go. At most one packet waits; nothing more is read from clients until it is written.
#[derive(Debug)]
pub(crate) struct Stdin {
    fd: OwnedFd,
    on_end: OnStdinEnd,
    /// Allocated when the first client writes: most containers never have one.
    packet: Vec<u8>,
    /// The part of `packet` that is not yet written.
    pending: std::ops::Range<usize>,
    has_ended: bool,
}

/// What is left to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Progress {
    /// All is written.
    Idle,
    /// The container does not read: wait until it does.
    Blocked,
    /// The container will read no more, or was given its end of file: close.
    Finished,
}

impl Stdin {
    /// `fd` must not block.
    pub(crate) fn new(fd: OwnedFd, on_end: OnStdinEnd) -> Self {
        Self { fd, on_end, packet: Vec::new(), pending: 0..0, has_ended: false }
    }

    pub(crate) fn is_blocked(&self) -> bool {
        !self.pending.is_empty()
    }

    /// The place for one packet. Only when nothing is pending.
    pub(crate) fn packet(&mut self) -> &mut [u8] {
        self.packet.resize(PACKET_MAX, 0);
        &mut self.packet
    }

    /// Takes the first bytes of the packet and begins to write them.
    pub(crate) fn accept(&mut self, length: usize) -> Progress {
        self.pending = 0..length;
        self.write()
    }

    /// The last client that could write is gone.
    pub(crate) fn end(&mut self) -> Progress {
        if self.on_end == OnStdinEnd::Close {
            self.has_ended = true;
        }
        self.write()
    }

    /// Goes on writing.
    pub(crate) fn write(&mut self) -> Progress {
        while !self.pending.is_empty() {
            match rustix::io::write(&self.fd, &self.packet[self.pending.clone()]) {
                Ok(written) => self.pending.start += written,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Progress::Blocked,
                // A terminal that has no reader now may have one again; its input is lost meanwhile.
                Err(rustix::io::Errno::IO) => self.pending = 0..0,
                Err(_) => return Progress::Finished,
            }
        }
        if self.has_ended { Progress::Finished } else { Progress::Idle }
    }
}

impl AsFd for Stdin {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The writing end is made non-blocking; the container's end, another file description, is left alone.
pub(crate) fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | rustix::fs::OFlags::NONBLOCK)?)
}
