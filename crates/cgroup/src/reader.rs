//! Small files of cgroups, read with as few system calls as they allow.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::io::Errno;

use crate::stats::{Pressure, StatsError, parse_number, parse_pressure};

/// Most bytes of one file: `memory.stat` has some 2 KiB, and grows with kernels, not with what runs.
const FILE_MAX_BYTES: usize = 64 << 10;
/// What one read(2) asks for: more than nearly every file has, so that one is enough.
const READ_BYTES: usize = 8 << 10;

/// Reads files one after the other into one buffer.
#[derive(Default)]
pub(crate) struct Reader {
    buffer: Vec<u8>,
}

/// A cgroup's directory.
pub(crate) struct Directory {
    path: PathBuf,
    way: Way,
}

enum Way {
    /// Walked once for all files.
    Opened(OwnedFd),
    /// Walked for each file.
    ByPath,
    /// There is no directory.
    None,
}

impl Directory {
    pub(crate) fn open(path: PathBuf) -> Result<Self, StatsError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match absent(rustix::fs::openat(CWD, &path, flags, Mode::empty())) {
            Ok(opened) => Ok(Self { path, way: opened.map_or(Way::None, Way::Opened) }),
            Err(errno) => Err(StatsError::Read { path, source: errno.into() }),
        }
    }

    /// For a single file: opening the directory first would cost more.
    pub(crate) const fn unopened(path: PathBuf) -> Self {
        Self { path, way: Way::ByPath }
    }

    /// Whether it was there, as far as it was looked for.
    pub(crate) const fn exists(&self) -> bool {
        !matches!(self.way, Way::None)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

/// `None` when it is not there, or what it tells is not accounted (EOPNOTSUPP).
fn absent<T>(result: Result<T, Errno>) -> Result<Option<T>, Errno> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(Errno::NOENT | Errno::NODEV | Errno::OPNOTSUPP | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno),
    }
}

fn open_file(directory: impl AsFd, path: &Path) -> Result<OwnedFd, Errno> {
    rustix::fs::openat(directory, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
}

impl Reader {
    /// The whole of a file; `None` when it is not there.
    pub(crate) fn read(&mut self, directory: &Directory, name: &str) -> Result<Option<&str>, StatsError> {
        let file = match &directory.way {
            Way::Opened(opened) => open_file(opened, Path::new(name)),
            Way::ByPath => open_file(CWD, &directory.path.join(name)),
            Way::None => return Ok(None),
        };
        match absent(file.and_then(|file| self.fill(&file))) {
            Ok(filled) => Ok(filled.and_then(|()| std::str::from_utf8(&self.buffer).ok())),
            Err(errno) => Err(StatsError::Read { path: directory.path.join(name), source: errno.into() }),
        }
    }

    fn fill(&mut self, file: &OwnedFd) -> Result<(), Errno> {
        self.buffer.clear();
        while self.buffer.len() < FILE_MAX_BYTES {
            self.buffer.reserve(READ_BYTES);
            let asked = self.buffer.capacity() - self.buffer.len();
            match rustix::io::read(file, rustix::buffer::spare_capacity(&mut self.buffer)) {
                // The files read here are one record each, which the kernel hands out whole: less than asked is all.
                Ok(count) if count < asked => break,
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    pub(crate) fn number(&mut self, directory: &Directory, name: &str) -> Result<Option<u64>, StatsError> {
        Ok(self.read(directory, name)?.and_then(parse_number))
    }

    /// A limit, of the cgroup or, where it has no such file, of one within it.
    pub(crate) fn limit(
        &mut self,
        directory: &Directory,
        within: Option<&Directory>,
        name: &str,
    ) -> Result<Option<u64>, StatsError> {
        match (self.number(directory, name)?, within) {
            (None, Some(within)) => self.number(within, name),
            (limit, _) => Ok(limit),
        }
    }

    pub(crate) fn pressure(&mut self, directory: &Directory, name: &str) -> Result<Option<Pressure>, StatsError> {
        Ok(self.read(directory, name)?.and_then(parse_pressure))
    }
}
