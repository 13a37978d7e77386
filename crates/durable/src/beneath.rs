//! Paths beneath a root directory whose content somebody else controls.
//!
//! Every resolution is one `openat2(2)` (Linux 5.6) with `RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS` or
//! `RESOLVE_BENEATH`: links are resolved as if the root were `/`, so none can lead out, and no race can either.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};

/// How often a resolution that the kernel calls racy (`EAGAIN`) is tried again: it needs a rename somewhere below the
/// root at that very moment, so that eight in a row are an attack, not bad luck.
const RACY_ATTEMPTS: usize = 8;

/// What symbolic links may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Links {
    /// Resolved as in a chroot: absolute targets and `..` stay inside.
    InRoot,
    /// Refused anywhere in the path (`ELOOP`).
    Refused,
}

/// An open directory that paths are resolved beneath.
#[derive(Debug)]
pub struct Root {
    directory: OwnedFd,
}

impl Root {
    /// Opens the directory at a trusted host path.
    pub fn open(path: &Path) -> io::Result<Self> {
        let directory =
            rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { directory })
    }

    /// Takes over an open directory.
    #[must_use]
    pub fn from_fd(directory: OwnedFd) -> Self {
        Self { directory }
    }

    /// Opens `path`, absolute or relative, as seen with this directory as `/`.
    ///
    /// `mode` counts only when `flags` create. Close-on-exec is always set. Opening a fifo or a device for reading
    /// can block or have effects: give `OFlags::PATH` or `OFlags::NONBLOCK` and look at its type first, or use
    /// [`Root::open_regular`].
    pub fn open_beneath(&self, path: &Path, flags: OFlags, mode: u32, links: Links) -> io::Result<OwnedFd> {
        open_beneath(self.directory.as_fd(), path, flags, mode, links)
    }

    /// Opens a regular file for reading; anything else is `InvalidInput`, without ever opening it: some devices act when
    /// they are opened, and fifos wait.
    pub fn open_regular(&self, path: &Path) -> io::Result<std::fs::File> {
        let found = self.open_beneath(path, OFlags::PATH, 0, Links::InRoot)?;
        let stat = rustix::fs::fstat(&found)?;
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
        }
        // The very file that was looked at, whatever its name means by now.
        let door = format!("/proc/self/fd/{}", found.as_raw_fd());
        let opened = rustix::fs::open(door, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?;
        Ok(std::fs::File::from(opened))
    }
}

impl AsFd for Root {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// [`Root::open_beneath`] for a borrowed directory.
pub fn open_beneath(root: BorrowedFd<'_>, path: &Path, flags: OFlags, mode: u32, links: Links) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::IN_ROOT
        | ResolveFlags::NO_MAGICLINKS
        | match links {
            Links::InRoot => ResolveFlags::empty(),
            Links::Refused => ResolveFlags::NO_SYMLINKS,
        };
    let mode = if flags.intersects(OFlags::CREATE | OFlags::TMPFILE) {
        Mode::from_raw_mode(mode & 0o7777)
    } else {
        Mode::empty()
    };
    for _ in 1..RACY_ATTEMPTS {
        match rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(rustix::io::Errno::AGAIN) => {}
            other => return Ok(other?),
        }
    }
    Ok(rustix::fs::openat2(root, path, flags | OFlags::CLOEXEC, mode, resolve)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_never_lead_out() {
        let base = std::env::temp_dir().join(format!("beneath-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&base);
        let inside = base.join("root");
        std::fs::create_dir_all(inside.join("etc")).unwrap();
        crate::replace(&base.join("passwd"), b"outside", 0o600, crate::Durability::Volatile).unwrap();
        crate::replace(&inside.join("passwd"), b"inside", 0o600, crate::Durability::Volatile).unwrap();
        symlink("../../passwd", inside.join("etc/up")).unwrap();
        symlink("/passwd", inside.join("etc/absolute")).unwrap();
        symlink("/proc/self/root/etc", inside.join("magic")).unwrap();
        rustix::fs::mknodat(CWD, inside.join("fifo"), rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o600), 0)
            .unwrap();
        let root = Root::open(&inside).unwrap();
        for path in ["/passwd", "../passwd", "etc/up", "etc/absolute", "../../../../passwd"] {
            let mut text = String::new();
            root.open_regular(Path::new(path)).unwrap().read_to_string(&mut text).unwrap();
            assert_eq!(text, "inside", "{path}");
        }
        for path in ["fifo", "etc", "magic/passwd", "absent"] {
            assert!(root.open_regular(Path::new(path)).is_err(), "{path}");
        }
        let refused = root.open_beneath(Path::new("etc/absolute"), OFlags::RDONLY, 0, Links::Refused);
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(rustix::io::Errno::LOOP.raw_os_error()));
        std::fs::remove_dir_all(&base).unwrap();
    }
}
