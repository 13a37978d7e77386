//! Layers kept whole: copying one and making another's changes in the copy.
//!
//! Changes are as overlay has them, which is how every layer is unpacked: a character device 0/0 stands for what is
//! removed, `trusted.overlay.opaque` hides what the directory had. Source directories hold what an image brought:
//! every step is an `*at` call on directories that were opened without following links.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use domain::id_maps::IdMaps;
use durable::beneath::{Links, open_beneath};
use rustix::fs::{
    AtFlags, CWD, Dir, FileType, Gid, Mode, OFlags, SeekFrom, Stat, Timespec, Timestamps, Uid, XattrFlags,
};
use rustix::io::Errno;

use crate::error::PathError;
use crate::fault;

/// Deepest directory: no longer path has a name, and each level keeps descriptors open.
pub(crate) const DEPTH_MAX: usize = 2048;
/// Names and values of extended attributes: the kernel's own limit.
const XATTR_MAX_BYTES: usize = 64 << 10;
const OPAQUE: &str = "trusted.overlay.opaque";
const OVERLAY_XATTRS: [&[u8]; 2] = [b"trusted.overlay.", b"user.overlay."];
const LABEL: &str = "security.selinux";

/// How files get from the changes into the whole.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bring {
    /// By renaming: both are on one file system.
    Rename,
    /// By copying, where the file system shares content of files but not names.
    Copy,
}

/// What a container's copy has that its image has not.
#[derive(Clone, Copy, Default)]
pub(crate) struct Dressing<'a> {
    /// The ids its files get.
    pub(crate) ids: Option<&'a IdMaps>,
    /// The SELinux label its files get, or empty.
    pub(crate) label: &'a str,
}

impl Dressing<'_> {
    pub(crate) fn is_plain(&self) -> bool {
        self.ids.is_none() && self.label.is_empty()
    }
}

/// Copies what the directory `from` holds into the empty directory `to`.
pub(crate) fn copy_tree(from: &Path, to: &Path, dressing: Dressing<'_>) -> Result<(), PathError> {
    let (source, target) = (open_dir(from)?, open_dir(to)?);
    let mut copy = Copy::new(&target, dressing);
    copy.directory(&source, &target, &mut PathBuf::new()).map_err(PathError::new("copy", from))
}

/// Makes the changes in `changes` to the layer in `tree`. What is left of `changes` is worthless.
pub(crate) fn apply(changes: &Path, tree: &Path, bring: Bring) -> Result<(), PathError> {
    let (source, target) = (open_dir(changes)?, open_dir(tree)?);
    let mut copy = Copy::new(&target, Dressing::default());
    copy.apply(&source, &target, bring, &mut PathBuf::new()).map_err(PathError::new("change", tree))
}

/// Gives everything in `tree`, itself included, the ids and label of a container.
pub(crate) fn dress_tree(tree: &Path, dressing: Dressing<'_>) -> Result<(), PathError> {
    let directory = open_dir(tree)?;
    let dress = || {
        dress_entries(&directory, dressing, 0, &mut HashSet::new())?;
        let stat = rustix::fs::fstat(&directory)?;
        set_owner(CWD, tree.as_os_str(), &stat, dressing)?;
        set_label(CWD, tree.as_os_str(), dressing)
    };
    dress().map_err(PathError::new("set owners in", tree))
}

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

pub(crate) fn open_dir(path: &Path) -> Result<OwnedFd, PathError> {
    rustix::fs::openat(CWD, path, DIRECTORY, Mode::empty()).map_err(PathError::new("open", path))
}

/// A directory in a directory, links not followed.
pub(crate) fn open_below(parent: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(parent, name, DIRECTORY, Mode::empty())?)
}

pub(crate) fn names(directory: &OwnedFd) -> io::Result<Vec<OsString>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsString::from_vec(name.to_vec()));
        }
    }
    Ok(names)
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn find(parent: &OwnedFd, name: &OsStr) -> io::Result<Option<Stat>> {
    match rustix::fs::statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::NOENT) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

pub(crate) fn too_deep() -> io::Error {
    io::Error::other(format!("more than {DEPTH_MAX} directories deep"))
}

/// Removes an entry with all it holds; fine if it is not there.
fn remove(parent: &OwnedFd, name: &OsStr, depth: usize) -> io::Result<()> {
    let Some(stat) = find(parent, name)? else { return Ok(()) };
    if !FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Ok(rustix::fs::unlinkat(parent, name, AtFlags::empty())?);
    }
    let directory = open_below(parent, name)?;
    clear(&directory, depth + 1)?;
    Ok(rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

fn clear(directory: &OwnedFd, depth: usize) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(too_deep());
    }
    names(directory)?.iter().try_for_each(|name| remove(directory, name, depth))
}

struct Copy<'a> {
    target: &'a OwnedFd,
    dressing: Dressing<'a>,
    /// Where files with several names were put first.
    links: HashMap<(u64, u64), PathBuf>,
    /// Whether the file system shares content between files, as far as is known.
    has_reflinks: bool,
}

impl<'a> Copy<'a> {
    fn new(target: &'a OwnedFd, dressing: Dressing<'a>) -> Self {
        Self { target, dressing, links: HashMap::new(), has_reflinks: true }
    }

    fn directory(&mut self, from: &OwnedFd, to: &OwnedFd, at: &mut PathBuf) -> io::Result<()> {
        if at.components().count() > DEPTH_MAX {
            return Err(too_deep());
        }
        for name in names(from)? {
            at.push(&name);
            let stat = rustix::fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                let source = open_below(from, &name)?;
                rustix::fs::mkdirat(to, &name, Mode::from_raw_mode(0o700))?;
                let made = open_below(to, &name)?;
                self.directory(&source, &made, at)?;
                self.finish(source.as_fd(), made.as_fd(), &stat)?;
            } else {
                self.file(from, to, &name, &stat, at)?;
            }
            at.pop();
        }
        Ok(())
    }

    /// Copies anything that is no directory.
    fn file(&mut self, from: &OwnedFd, to: &OwnedFd, name: &OsStr, stat: &Stat, at: &Path) -> io::Result<()> {
        fault::step("copy a file")?;
        if stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                return self.link(first, to, name);
            }
            self.links.insert(key, at.to_owned());
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => {
                let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
                let source = File::from(rustix::fs::openat(from, name, flags, Mode::empty())?);
                let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let made = File::from(rustix::fs::openat(to, name, flags, Mode::from_raw_mode(0o600))?);
                self.content(&source, &made, stat)?;
                return self.finish(source.as_fd(), made.as_fd(), stat);
            }
            FileType::Symlink => {
                let link = rustix::fs::readlinkat(from, name, Vec::new())?;
                rustix::fs::symlinkat(link, to, name)?;
            }
            kind => rustix::fs::mknodat(to, name, kind, Mode::from_raw_mode(0o600), stat.st_rdev)?,
        }
        set_owner(to.as_fd(), name, stat, self.dressing)?;
        if kind != FileType::Symlink {
            rustix::fs::chmodat(to, name, Mode::from_raw_mode(stat.st_mode & 0o7777), AtFlags::empty())?;
        }
        set_label(to.as_fd(), name, self.dressing)?;
        Ok(rustix::fs::utimensat(to, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)?)
    }

    /// One more name for a file that was copied before.
    fn link(&self, first: &Path, to: &OwnedFd, name: &OsStr) -> io::Result<()> {
        let file_name = first.file_name().unwrap_or_default();
        let parent = first.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let parent = open_beneath(self.target.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY, 0, Links::Refused)?;
        Ok(rustix::fs::linkat(&parent, file_name, to, name, AtFlags::empty())?)
    }

    fn content(&mut self, from: &File, to: &File, stat: &Stat) -> io::Result<()> {
        // Sizes are never negative.
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        if size == 0 {
            return Ok(());
        }
        if self.has_reflinks {
            match rustix::fs::ioctl_ficlone(to, from) {
                Ok(()) => return Ok(()),
                Err(Errno::OPNOTSUPP | Errno::NOTTY | Errno::XDEV | Errno::INVAL) => self.has_reflinks = false,
                Err(error) => return Err(error.into()),
            }
        }
        let mut at = 0;
        while at < size {
            let data = match rustix::fs::seek(from, SeekFrom::Data(at)) {
                Ok(data) => data,
                // Nothing but a hole from here.
                Err(Errno::NXIO) => break,
                Err(error) => return Err(error.into()),
            };
            let end = rustix::fs::seek(from, SeekFrom::Hole(data))?;
            copy_range(from, to, data, end)?;
            at = end;
        }
        to.set_len(size)
    }

    /// Gives what was copied its owner, mode, attributes and times.
    fn finish(&self, from: BorrowedFd<'_>, to: BorrowedFd<'_>, stat: &Stat) -> io::Result<()> {
        let (uid, gid) = owner(stat, self.dressing)?;
        rustix::fs::fchown(to, Some(uid), Some(gid))?;
        rustix::fs::fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        for (name, value) in xattrs(from)? {
            if name.as_bytes() == LABEL.as_bytes() || OVERLAY_XATTRS.iter().any(|own| name.as_bytes().starts_with(own))
            {
                continue;
            }
            rustix::fs::fsetxattr(to, &name, &value, XattrFlags::empty())?;
        }
        if !self.dressing.label.is_empty() {
            rustix::fs::fsetxattr(to, LABEL, self.dressing.label.as_bytes(), XattrFlags::empty())?;
        }
        Ok(rustix::fs::futimens(to, &times(stat))?)
    }

    fn apply(&mut self, from: &OwnedFd, to: &OwnedFd, bring: Bring, at: &mut PathBuf) -> io::Result<()> {
        if at.components().count() > DEPTH_MAX {
            return Err(too_deep());
        }
        for name in names(from)? {
            fault::step("make a change")?;
            at.push(&name);
            let stat = rustix::fs::statat(from, &name, AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode).is_dir() {
                self.change_directory(from, to, &name, bring, at)?;
            } else {
                remove(to, &name, 0)?;
                match bring {
                    _ if is_whiteout(&stat) => {}
                    Bring::Rename => rustix::fs::renameat(from, &name, to, &name)?,
                    Bring::Copy => self.file(from, to, &name, &stat, at)?,
                }
            }
            at.pop();
        }
        Ok(())
    }

    fn change_directory(
        &mut self,
        from: &OwnedFd,
        to: &OwnedFd,
        name: &OsStr,
        bring: Bring,
        at: &mut PathBuf,
    ) -> io::Result<()> {
        let changes = open_below(from, name)?;
        let had = find(to, name)?;
        let is_kept = had.is_some_and(|had| FileType::from_raw_mode(had.st_mode).is_dir());
        if !is_kept {
            remove(to, name, 0)?;
            rustix::fs::mkdirat(to, name, Mode::from_raw_mode(0o700))?;
        }
        let target = open_below(to, name)?;
        if is_kept && is_opaque(&changes)? {
            clear(&target, 0)?;
        }
        let stat = rustix::fs::fstat(&changes)?;
        self.apply(&changes, &target, bring, at)?;
        if is_kept {
            for (name, _) in xattrs(target.as_fd())? {
                if name.as_bytes() != LABEL.as_bytes() {
                    rustix::fs::fremovexattr(&target, &name)?;
                }
            }
        }
        self.finish(changes.as_fd(), target.as_fd(), &stat)
    }
}

fn is_opaque(directory: &OwnedFd) -> io::Result<bool> {
    let mut value = [0; 2];
    match rustix::fs::fgetxattr(directory, OPAQUE, &mut value) {
        Ok(length) => Ok(&value[..length] == b"y"),
        Err(Errno::NODATA | Errno::OPNOTSUPP | Errno::RANGE) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn copy_range(from: &File, to: &File, start: u64, end: u64) -> io::Result<()> {
    let (mut source_at, mut target_at) = (start, start);
    while source_at < end {
        let length = usize::try_from(end - source_at).unwrap_or(usize::MAX);
        match rustix::fs::copy_file_range(from, Some(&mut source_at), to, Some(&mut target_at), length) {
            // Cut short meanwhile.
            Ok(0) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
            Ok(_) | Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

fn xattrs(file: BorrowedFd<'_>) -> io::Result<Vec<(OsString, Vec<u8>)>> {
    let mut list = vec![0; XATTR_MAX_BYTES];
    let length = match rustix::fs::flistxattr(file, &mut list) {
        Ok(length) => length,
        Err(Errno::OPNOTSUPP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = Vec::new();
    for name in list[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let name = OsStr::from_bytes(name);
        let mut value = vec![0; XATTR_MAX_BYTES];
        let length = rustix::fs::fgetxattr(file, name, &mut value)?;
        value.truncate(length);
        found.push((name.to_owned(), value));
    }
    Ok(found)
}

fn owner(stat: &Stat, dressing: Dressing<'_>) -> io::Result<(Uid, Gid)> {
    let Some(ids) = dressing.ids else { return Ok((Uid::from_raw(stat.st_uid), Gid::from_raw(stat.st_gid))) };
    let owner = ids.owner(stat.st_uid, stat.st_gid).ok_or_else(|| {
        io::Error::other(format!("the user namespace has no ids for owner {}:{}", stat.st_uid, stat.st_gid))
    })?;
    Ok((Uid::from_raw(owner.uid), Gid::from_raw(owner.gid)))
}

fn set_owner(parent: BorrowedFd<'_>, name: &OsStr, stat: &Stat, dressing: Dressing<'_>) -> io::Result<()> {
    let (uid, gid) = owner(stat, dressing)?;
    Ok(rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
}

/// Labels what cannot be opened: by the path of its directory's descriptor, links not followed.
fn set_label(parent: BorrowedFd<'_>, name: &OsStr, dressing: Dressing<'_>) -> io::Result<()> {
    use std::os::fd::AsRawFd;
    if dressing.label.is_empty() {
        return Ok(());
    }
    let path = if parent.as_raw_fd() == CWD.as_raw_fd() {
        PathBuf::from(name)
    } else {
        Path::new("/proc/self/fd").join(parent.as_raw_fd().to_string()).join(name)
    };
    Ok(rustix::fs::lsetxattr(path, LABEL, dressing.label.as_bytes(), XattrFlags::empty())?)
}

fn dress_entries(directory: &OwnedFd, dressing: Dressing<'_>, depth: usize, seen: &mut HashSet<u64>) -> io::Result<()> {
    if depth > DEPTH_MAX {
        return Err(too_deep());
    }
    for name in names(directory)? {
        fault::step("set an owner")?;
        let stat = rustix::fs::statat(directory, &name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        // Ids of a file with several names are shifted once.
        if !kind.is_dir() && stat.st_nlink > 1 && !seen.insert(stat.st_ino) {
            continue;
        }
        if kind.is_dir() {
            let below = open_below(directory, &name)?;
            dress_entries(&below, dressing, depth + 1, seen)?;
        }
        let capability = if kind.is_file() && dressing.ids.is_some() { capability_of(directory, &name)? } else { None };
        set_owner(directory.as_fd(), &name, &stat, dressing)?;
        if kind != FileType::Symlink {
            // The kernel takes these bits, and capabilities, from a file whose owner changes.
            let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
            rustix::fs::chmodat(directory, &name, mode, AtFlags::empty())?;
        }
        if let Some(value) = capability {
            let file = open_file(directory, &name)?;
            rustix::fs::fsetxattr(&file, CAPABILITY, &value, XattrFlags::empty())?;
        }
        set_label(directory.as_fd(), &name, dressing)?;
    }
    Ok(())
}

const CAPABILITY: &str = "security.capability";

fn open_file(directory: &OwnedFd, name: &OsStr) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(directory, name, flags, Mode::empty())?)
}

fn capability_of(directory: &OwnedFd, name: &OsStr) -> io::Result<Option<Vec<u8>>> {
    let file = open_file(directory, name)?;
    let mut value = vec![0; 64];
    match rustix::fs::fgetxattr(&file, CAPABILITY, &mut value) {
        Ok(length) => {
            value.truncate(length);
            Ok(Some(value))
        }
        Err(Errno::NODATA | Errno::OPNOTSUPP) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        // Below a thousand million.
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
