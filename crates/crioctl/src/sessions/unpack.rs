//! Archives that a container wrote, which nobody has to believe.
//!
//! Only files and directories are made, beneath the target and through no link; what an archive calls anything else is
//! passed over, and a name that leads elsewhere ends it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, mkdirat, openat2};
use rustix::io::Errno;

use super::SessionError;

/// Where an archive goes, and what its top is called there.
#[derive(Debug)]
pub(super) struct Target {
    directory: OwnedFd,
    /// The archive's top.
    base: OsString,
    name: OsString,
}

impl Target {
    /// Opens the directory, which must be there.
    pub(super) fn open(directory: &Path, base: &OsStr, name: &OsStr) -> Result<Self, SessionError> {
        let opened = rustix::fs::open(directory, OFlags::DIRECTORY | OFlags::CLOEXEC | OFlags::PATH, Mode::empty());
        let directory = opened.map_err(|error| SessionError::Copy {
            what: format!("to {}", directory.display()),
            source: error.into(),
        })?;
        Ok(Self { directory, base: base.to_owned(), name: name.to_owned() })
    }

    /// The path of a member beneath the directory. Errors: one that leads elsewhere.
    fn place(&self, member: &[u8]) -> io::Result<PathBuf> {
        let refused = |why: &str| {
            let text = format!("the archive has {:?}, {why}", String::from_utf8_lossy(member));
            io::Error::new(io::ErrorKind::InvalidData, text)
        };
        if member.starts_with(b"/") {
            return Err(refused("an absolute path"));
        }
        let mut parts = member.split(|byte| *byte == b'/').filter(|part| !part.is_empty() && *part != b".");
        if parts.next() != Some(self.base.as_bytes()) {
            return Err(refused("which was not asked for"));
        }
        let mut path = PathBuf::from(&self.name);
        for part in parts {
            if part == b".." {
                return Err(refused("which leads out of it"));
            }
            path.push(OsStr::from_bytes(part));
        }
        Ok(path)
    }

    /// Opens beneath the directory, through no link.
    fn beneath(&self, path: &Path, flags: OFlags, mode: u32) -> rustix::io::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        openat2(self.directory.as_fd(), path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(mode), resolve)
    }

    /// Makes a directory and those it is in.
    fn make_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        let parent = path.parent().unwrap_or(Path::new(""));
        let opened = match self.beneath(parent, OFlags::PATH | OFlags::DIRECTORY, 0) {
            Err(Errno::NOENT) => {
                self.make_directory(parent, 0o777)?;
                self.beneath(parent, OFlags::PATH | OFlags::DIRECTORY, 0)?
            }
            opened => opened?,
        };
        match mkdirat(&opened, path.file_name().unwrap_or_default(), Mode::from_raw_mode(mode)) {
            // Perhaps not a directory: what goes into it will tell.
            Err(Errno::EXIST) => Ok(()),
            made => Ok(made?),
        }
    }

    fn make_file(&self, path: &Path, mode: u32) -> io::Result<File> {
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = match self.beneath(path, flags, mode) {
            Err(Errno::NOENT) => {
                self.make_directory(path.parent().unwrap_or(Path::new("")), 0o777)?;
                self.beneath(path, flags, mode)
            }
            opened => opened,
        };
        Ok(File::from(opened?))
    }
}

/// Writes an archive's files and directories; returns what else it has.
///
/// Errors: an archive that is damaged, that has what was not asked for, or that would be written through a link.
pub(super) fn unpack(archive: impl Read, target: &Target) -> Result<Vec<String>, SessionError> {
    let mut skipped = Vec::new();
    let mut archive = tar::Archive::new(archive);
    let failed = |what: &str, source| SessionError::Copy { what: what.to_owned(), source };
    for entry in archive.entries().map_err(|error| failed("the archive", error))? {
        let mut entry = entry.map_err(|error| failed("the archive", error))?;
        let name = entry.path_bytes().into_owned();
        let shown = String::from_utf8_lossy(&name).trim_start_matches("./").to_owned();
        let path = target.place(&name).map_err(|error| failed("the archive", error))?;
        // Bits that change who runs a file are not a container's to give.
        let mode = entry.header().mode().unwrap_or(0o644) & 0o777;
        let kind = entry.header().entry_type();
        let made = if kind.is_dir() {
            target.make_directory(&path, mode | 0o700)
        } else if kind.is_file() || kind.is_gnu_sparse() || kind.is_contiguous() {
            target.make_file(&path, mode).and_then(|mut file| io::copy(&mut entry, &mut file).map(drop))
        } else {
            skipped.push(shown.clone());
            Ok(())
        };
        made.map_err(|error| failed(&shown, error))?;
    }
    Ok(skipped)
}

/// For the fuzz table: unpacks into a directory, with what was asked for called `a` there and `b` here.
pub fn fuzz_unpack(bytes: &[u8], directory: &Path) {
    if let Ok(target) = Target::open(directory, OsStr::new("a"), OsStr::new("b")) {
        let _ = unpack(bytes, &target);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members with a kind, a name as it is and what a link leads to.
    fn archive(members: &[(tar::EntryType, &str, &str)]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, link) in members {
            let mut header = tar::Header::new_gnu();
            header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
            header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
            header.set_entry_type(*kind);
            header.set_mode(0o644);
            let bytes: &[u8] = if kind.is_file() { b"evil" } else { b"" };
            header.set_size(bytes.len() as u64);
            header.set_cksum();
            builder.append(&header, bytes).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn nothing_leaves_the_target() {
        use tar::EntryType as Kind;
        let outside = tempfile::tempdir().unwrap();
        let link = outside.path().to_str().unwrap();
        type Case<'a> = (Vec<(Kind, &'a str, &'a str)>, bool);
        let cases: [Case<'_>; 9] = [
            (vec![(Kind::Regular, "a/f", "")], true),
            (vec![(Kind::Regular, "../evil", "")], false),
            (vec![(Kind::Regular, "/evil", "")], false),
            (vec![(Kind::Regular, "a/../../evil", "")], false),
            (vec![(Kind::Regular, "other", "")], false),
            // A link is not made, so that what goes through it stays inside.
            (vec![(Kind::Symlink, "a/l", link), (Kind::Regular, "a/l/evil", "")], true),
            (vec![(Kind::Link, "a/h", "/etc/passwd"), (Kind::Regular, "a/h", "")], true),
            // One that was there already is not followed.
            (vec![(Kind::Regular, "a/there/evil", "")], false),
            (vec![(Kind::Char, "a/null", ""), (Kind::Fifo, "a/fifo", "")], true),
        ];
        for (members, is_fine) in cases {
            let inside = tempfile::tempdir().unwrap();
            std::fs::create_dir(inside.path().join("b")).unwrap();
            std::os::unix::fs::symlink(link, inside.path().join("b/there")).unwrap();
            let target = Target::open(inside.path(), OsStr::new("a"), OsStr::new("b")).unwrap();
            let done = unpack(&archive(&members)[..], &target);
            assert_eq!(done.is_ok(), is_fine, "{members:?}: {done:?}");
            assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "{members:?}");
            assert!(!inside.path().join("evil").exists() && !inside.path().parent().unwrap().join("evil").exists());
        }
    }
}
