//! A terminal of our own, which stands for the one in the guest. Its master goes to whoever asked, as an OCI runtime sends
//! it: over a socket (runc's terminals documentation).

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use rustix::pty::OpenptFlags;
use rustix::termios::OptionalActions;

/// Makes a terminal, sends its master to the socket, and returns the other side.
pub(crate) fn open(console_socket: &Path) -> io::Result<OwnedFd> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let side = rustix::fs::openat(CWD, name.as_c_str(), flags, Mode::empty())?;
    pass_through(side.as_fd())?;
    let stream = UnixStream::connect(console_socket)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let sent = [master.as_fd()];
    ancillary.push(SendAncillaryMessage::ScmRights(&sent));
    rustix::net::sendmsg(&stream, &[IoSlice::new(name.as_bytes())], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(side)
}

/// The guest's terminal has done to lines what is to be done: ours only passes them on. Whoever takes the master may have
/// set it otherwise, so this is done again before the first byte.
pub(crate) fn pass_through(side: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes = rustix::termios::tcgetattr(side)?;
    attributes.make_raw();
    Ok(rustix::termios::tcsetattr(side, OptionalActions::Now, &attributes)?)
}

/// Makes it the terminal of this process, which leads a session: so the kernel tells of new sizes.
pub(crate) fn adopt(side: BorrowedFd<'_>) -> io::Result<()> {
    Ok(rustix::process::ioctl_tiocsctty(side)?)
}

/// Width and height; `None` while nobody has set them.
pub(crate) fn size(side: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(side).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}
