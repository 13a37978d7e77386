//! The pseudo terminal: the runtime makes it and sends its main end over a socket (OCI runtime command line,
//! `--console-socket`).

use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{AtFlags, CWD, Mode, mkdirat, unlinkat};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{OptionalActions, OutputModes, Winsize, tcgetattr, tcsetattr, tcsetwinsize};

use crate::exit_record::random_suffix;

/// Longest path of a unix socket.
const SOCKET_PATH_MAX: usize = 107;

/// Attempts to find a directory name that is free.
const ATTEMPTS: u32 = 100;

/// Longest wait for a runtime that connected and sends nothing; it sends at once.
const SEND_STALL_MAX: Duration = Duration::from_secs(5);

/// The socket on which the runtime's terminal arrives. It and its directory disappear with it.
#[derive(Debug)]
pub(crate) struct ConsoleSocket {
    listener: UnixListener,
    directory: PathBuf,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Makes `<temporary directory>/conmon-term.XXXXXX/s`, for root alone.
    pub(crate) fn bind() -> io::Result<Self> {
        let mut root = std::env::temp_dir();
        if root.as_os_str().len() + "/conmon-term.XXXXXX/s".len() > SOCKET_PATH_MAX {
            root = "/tmp".into();
        }
        let mut attempt = 0;
        let directory = loop {
            attempt += 1;
            let directory = root.join(format!("conmon-term.{}", random_suffix()));
            match mkdirat(CWD, &directory, Mode::from_raw_mode(0o700)) {
                Ok(()) => break directory,
                Err(rustix::io::Errno::EXIST) if attempt < ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        };
        let path = directory.join("s");
        let bound = UnixListener::bind(&path).and_then(|listener| listener.set_nonblocking(true).map(|()| listener));
        match bound {
            Ok(listener) => Ok(Self { listener, directory, path }),
            Err(error) => {
                remove(&path, &directory);
                Err(error)
            }
        }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal if the runtime has connected, made ready: it does not block and turns newlines into CR LF.
    pub(crate) fn receive(&self) -> io::Result<Option<OwnedFd>> {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error),
        };
        let timeout = rustix::time::Timespec { tv_sec: SEND_STALL_MAX.as_secs().cast_signed(), tv_nsec: 0 };
        if poll(&mut [PollFd::new(&stream, PollFlags::IN)], Some(&timeout))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let mut name = [0; 256];
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
        let sent = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        let Some(terminal) = sent else {
            return Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime sent no terminal"));
        };
        let mut attributes = tcgetattr(&terminal)?;
        attributes.output_modes |= OutputModes::ONLCR;
        tcsetattr(&terminal, OptionalActions::Now, &attributes)?;
        crate::stdin::set_nonblocking(&terminal)?;
        Ok(Some(terminal))
    }
}

impl AsFd for ConsoleSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        remove(&self.path, &self.directory);
    }
}

/// What is left behind is an empty directory in a temporary one: not worth a failure.
fn remove(path: &Path, directory: &Path) {
    let _ = unlinkat(CWD, path, AtFlags::empty());
    let _ = unlinkat(CWD, directory, AtFlags::REMOVEDIR);
}

/// Tells the terminal's programs a new size in characters.
pub(crate) fn resize(terminal: BorrowedFd<'_>, rows: u16, columns: u16) -> io::Result<()> {
    Ok(tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 })?)
}
