//! Replacing a file whole.
//!
//! Steps: temporary sibling, write, (fsync), rename over the name, (fsync of the directory). A crash before the rename
//! leaves the old file and a sibling whose name begins with `.tmp-`; a crash after it leaves the new file.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use thiserror::Error;

/// Whether a change must survive a loss of power, or only a crash of the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Durability {
    /// Written through to the disk before the call returns.
    Durable,
    /// Left to the kernel's own write-back: whole after a crash of the process, possibly old or absent after one of
    /// the machine. Right for what lies on a tmpfs or is worthless after a reboot.
    Volatile,
}

/// Why a file could not be replaced. The old content is still there, whole.
#[derive(Debug, Error)]
pub enum ReplaceError {
    /// The path names no file in a directory.
    #[error("replace {path}: not a path of a file")]
    NoFileName {
        /// The path as given.
        path: PathBuf,
    },
    /// The directory could not be opened.
    #[error("replace {path}: open its directory")]
    OpenDirectory {
        /// The file that was to be replaced.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The new content could not be written beside the old.
    #[error("replace {path}: write the new content")]
    Write {
        /// The file that was to be replaced.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The new content could not take the name.
    #[error("replace {path}: rename the new content over it")]
    Rename {
        /// The file that was to be replaced.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The name was taken, but may not survive a loss of power.
    #[error("replace {path}: fsync its directory")]
    SyncDirectory {
        /// The file that was replaced.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// Replaces the file at `path` by `bytes` with permission bits `mode` (the umask is not applied), or makes it.
///
/// The directory must exist. A symbolic link at `path` itself is replaced, not followed.
pub fn replace(path: &Path, bytes: &[u8], mode: u32, durability: Durability) -> Result<(), ReplaceError> {
    let name = path.file_name().ok_or_else(|| ReplaceError::NoFileName { path: path.to_owned() })?;
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let directory =
        rustix::fs::openat(CWD, parent, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|source| ReplaceError::OpenDirectory { path: path.to_owned(), source: source.into() })?;
    replace_at(directory.as_fd(), Path::new(name), path, bytes, mode, durability)
}

/// Like [`replace`], for a file named `name` (one component) in an open directory.
pub fn replace_in(
    directory: BorrowedFd<'_>,
    name: &str,
    bytes: &[u8],
    mode: u32,
    durability: Durability,
) -> Result<(), ReplaceError> {
    if name.is_empty() || name == "." || name == ".." || name.contains('/') {
        return Err(ReplaceError::NoFileName { path: name.into() });
    }
    replace_at(directory, Path::new(name), Path::new(name), bytes, mode, durability)
}

fn replace_at(
    directory: BorrowedFd<'_>,
    name: &Path,
    shown: &Path,
    bytes: &[u8],
    mode: u32,
    durability: Durability,
) -> Result<(), ReplaceError> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    // Process id and counter make the name unique among the living; one left by a dead process of the same id is
    // removed first, because nobody else can be writing to it.
    let temporary = format!(".tmp-{}-{}-{}", name.display(), std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let write = |source: io::Error| ReplaceError::Write { path: shown.to_owned(), source };
    let written = write_new(directory, &temporary, bytes, mode, durability);
    if let Err(source) = written {
        let _ = rustix::fs::unlinkat(directory, temporary.as_str(), AtFlags::empty());
        return Err(write(source));
    }
    if let Err(source) = rustix::fs::renameat(directory, temporary.as_str(), directory, name) {
        let _ = rustix::fs::unlinkat(directory, temporary.as_str(), AtFlags::empty());
        return Err(ReplaceError::Rename { path: shown.to_owned(), source: source.into() });
    }
    if durability == Durability::Durable {
        rustix::fs::fsync(directory)
            .map_err(|source| ReplaceError::SyncDirectory { path: shown.to_owned(), source: source.into() })?;
    }
    Ok(())
}

fn write_new(
    directory: BorrowedFd<'_>,
    temporary: &str,
    bytes: &[u8],
    mode: u32,
    durability: Durability,
) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let mode = Mode::from_raw_mode(mode & 0o7777);
    let opened = match rustix::fs::openat(directory, temporary, flags, mode) {
        Err(rustix::io::Errno::EXIST) => {
            rustix::fs::unlinkat(directory, temporary, AtFlags::empty())?;
            rustix::fs::openat(directory, temporary, flags, mode)?
        }
        other => other?,
    };
    rustix::fs::fchmod(&opened, mode)?;
    let mut file = File::from(opened);
    file.write_all(bytes)?;
    if durability == Durability::Durable {
        file.sync_all()?;
    }
    Ok(())
}

/// Makes the entry of `path` in its directory (a creation, rename or removal) survive a loss of power.
pub fn sync_parent(path: &Path) -> io::Result<()> {
    let parent = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(parent)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("durable-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn replaces_whole_and_leaves_nothing_beside() {
        let root = scratch("replace");
        let path = root.join("record");
        for (bytes, mode, durability) in [
            (&b"first"[..], 0o600, Durability::Durable),
            (&b"2"[..], 0o644, Durability::Volatile),
            (&b""[..], 0o600, Durability::Volatile),
        ] {
            replace(&path, bytes, mode, durability).unwrap();
            assert_eq!(std::fs::read(&path).unwrap(), bytes);
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777, mode);
            assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
        }
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn failure_keeps_the_old() {
        let root = scratch("keeps");
        std::fs::create_dir(root.join("taken")).unwrap();
        assert!(matches!(
            replace(&root.join("taken"), b"x", 0o600, Durability::Durable),
            Err(ReplaceError::Rename { .. })
        ));
        assert!(matches!(
            replace(&root.join("absent/x"), b"x", 0o600, Durability::Durable),
            Err(ReplaceError::OpenDirectory { .. })
        ));
        assert!(matches!(
            replace(Path::new("/"), b"", 0o600, Durability::Durable),
            Err(ReplaceError::NoFileName { .. })
        ));
        assert_eq!(std::fs::read_dir(&root).unwrap().count(), 1);
        std::fs::remove_dir_all(&root).unwrap();
    }

    #[test]
    fn replaces_a_link_instead_of_following_it() {
        let root = scratch("link");
        replace(&root.join("target"), b"keep", 0o600, Durability::Volatile).unwrap();
        std::os::unix::fs::symlink("target", root.join("link")).unwrap();
        replace(&root.join("link"), b"new", 0o600, Durability::Volatile).unwrap();
        assert_eq!(std::fs::read(root.join("target")).unwrap(), b"keep");
        assert!(root.join("link").symlink_metadata().unwrap().is_file());
        std::fs::remove_dir_all(&root).unwrap();
    }
}
