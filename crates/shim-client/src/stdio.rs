//! The fifos between us and a shim.
//!
//! Ours are opened before the shim hears of them, so that neither side waits for the other.

use std::fs::DirBuilder;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags};

use crate::task::FifoNames;

/// Which streams a program has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Streams {
    pub(crate) has_terminal: bool,
    pub(crate) has_stdin: bool,
}

impl Streams {
    /// Those that whoever started us gave us: an input that is no pipe is none.
    pub(crate) fn given(has_terminal: bool) -> io::Result<Self> {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(io::stdin().as_fd())?.st_mode);
        Ok(Self { has_terminal, has_stdin: has_terminal || matches!(kind, FileType::Fifo | FileType::Socket) })
    }
}

/// The fifos of one program.
#[derive(Debug)]
pub(crate) struct Fifos {
    pub(crate) names: FifoNames,
    /// To be written.
    pub(crate) stdin: Option<OwnedFd>,
    /// To be read; they do not block.
    pub(crate) stdout: Option<OwnedFd>,
    pub(crate) stderr: Option<OwnedFd>,
}

impl Fifos {
    /// Makes and opens the fifos of a program in a directory of its container, which is made too.
    pub(crate) fn make(directory: &Path, program: &str, streams: Streams) -> io::Result<Self> {
        DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        let read = OFlags::RDONLY | OFlags::NONBLOCK;
        // Opened for reading too, or it would wait for the shim to read.
        let (stdin_name, stdin) = fifo(directory, program, "stdin", OFlags::RDWR, streams.has_stdin)?;
        let (stdout_name, stdout) = fifo(directory, program, "stdout", read, true)?;
        let (stderr_name, stderr) = fifo(directory, program, "stderr", read, !streams.has_terminal)?;
        let names = FifoNames { stdin: stdin_name, stdout: stdout_name, stderr: stderr_name };
        Ok(Self { names, stdin, stdout, stderr })
    }
}

fn fifo(
    directory: &Path,
    program: &str,
    stream: &str,
    flags: OFlags,
    is_wanted: bool,
) -> io::Result<(String, Option<OwnedFd>)> {
    if !is_wanted {
        return Ok((String::new(), None));
    }
    let path = path_of(directory, program, stream);
    rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0)?;
    let fd = rustix::fs::openat(CWD, &path, flags | OFlags::CLOEXEC | OFlags::NOFOLLOW, Mode::empty())?;
    Ok((path.display().to_string(), Some(fd)))
}

fn path_of(directory: &Path, program: &str, stream: &str) -> PathBuf {
    directory.join(format!("{program}-{stream}"))
}

/// Removes the fifos of one program.
pub(crate) fn remove(directory: &Path, program: &str) {
    for stream in ["stdin", "stdout", "stderr"] {
        // Not every program has every stream; what stays goes with the container.
        let _ = std::fs::remove_file(path_of(directory, program, stream));
    }
}

/// Removes the fifos of a container.
pub(crate) fn remove_all(directory: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
