//! Making the members of an archive in a directory, none outside it.
//!
//! The archive is hostile; nobody else has access to the directory. Every member is made by `*at` calls on its own
//! parent directory, which is opened with the layer's directory as `/`: links in the way are followed as in a chroot.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;

use durable::beneath::{Links, open_beneath};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Timespec, Timestamps, Uid, XattrFlags};
use rustix::io::Errno;

use crate::options::DevicePolicy;
use crate::tar::{Kind, Member, TarError, shown};

/// Prefix of a member that removes the rest of its name from the layers below.
const WHITEOUT_PREFIX: &[u8] = b".wh.";
/// A member that hides everything its directory has in the layers below.
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of a file system nobody has any more.
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_XATTR: &str = "trusted.overlay.opaque";
/// Most different owners recorded of one layer; a layer with more records none, which only disables an optimisation.
const OWNERS_MAX: usize = 4096;
/// Directories nobody listed, made because something lies in them.
const IMPLICIT_DIRECTORY_MODE: u32 = 0o755;
/// Names of directories are remembered until their times are set: several times those of the largest layers in the field.
const DIRECTORY_NAMES_MAX_BYTES: usize = 32 << 20;
const SPECIAL_MODES: u32 = 0o7000;
const SETGID: u32 = 0o2000;
const DEFAULT_ACL_XATTR: &str = "system.posix_acl_default";

/// A path inside the layer: no `.`, no `..`, no slash at either end. Empty for the layer's own directory.
///
/// Source: containers/storage cleans names by text before it looks at the disk.
pub(crate) fn clean(name: &[u8]) -> Result<Vec<u8>, TarError> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => {
                if parts.pop().is_none() {
                    return Err(TarError::BadName { name: shown(name), reason: "name leads out of the layer" });
                }
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join(&b'/'))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn os(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}

/// What an existing entry turned out to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Replaced {
    Nothing,
    Whiteout,
    Directory,
}

/// A layer's directory being filled.
pub(crate) struct Tree<'a> {
    root: BorrowedFd<'a>,
    devices: DevicePolicy,
    making: Making,
    parent: Option<(Vec<u8>, OwnedFd)>,
    directory_times: Vec<(Vec<u8>, (i64, u32))>,
    directory_bytes: usize,
    uids: BTreeSet<u32>,
    gids: BTreeSet<u32>,
}

/// What the kernel makes of the owner and mode asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Making {
    /// Root's, with just that mode.
    AsAsked,
    /// Depends on where it is made: the group or the access list of the directory count.
    Inherited,
}

impl<'a> Tree<'a> {
    /// For a thread that [`sys::confine::enter`] has put behind walls around `root`: its umask is empty.
    pub(crate) fn confined(root: BorrowedFd<'a>, devices: DevicePolicy) -> Result<Self, Errno> {
        let passes_group_on = rustix::fs::fstat(root)?.st_mode & SETGID != 0;
        let has_default_acl = match rustix::fs::fgetxattr(root, DEFAULT_ACL_XATTR, &mut [0_u8; 0][..]) {
            Ok(_) => true,
            Err(Errno::NODATA | Errno::NOTSUP) => false,
            Err(error) => return Err(error),
        };
        let making = if passes_group_on || has_default_acl { Making::Inherited } else { Making::AsAsked };
        let (uids, gids) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { root, devices, making, parent: None, directory_times: Vec::new(), directory_bytes: 0, uids, gids })
    }

    /// Whether what is made for a member has its owner and mode at once.
    fn is_made_right(&self, member: &Member) -> bool {
        self.making == Making::AsAsked && member.uid == 0 && member.gid == 0 && member.mode & SPECIAL_MODES == 0
    }

    /// The mode to make a member with.
    fn first_mode(&self, member: &Member, else_mode: u32) -> Mode {
        Mode::from_raw_mode(if self.is_made_right(member) { member.mode } else { else_mode })
    }

    /// Makes a member that has no content, or that is no file of its own.
    ///
    /// `path` is its cleaned name.
    pub(crate) fn make(&mut self, path: &[u8], member: &Member) -> Result<(), TarError> {
        // The layer's own directory gets its mode from what it lies on.
        if path.is_empty() {
            return Ok(());
        }
        let fail = |action| unpack_error(member, action);
        let (parent, name) = split(path);
        if name.starts_with(WHITEOUT_PREFIX) {
            return self.whiteout(parent, name, member);
        }
        self.note_owner(member);
        match member.kind {
            Kind::Directory => self.directory(path, member),
            Kind::File => self.create(path, member).map(drop),
            Kind::Symlink => {
                self.make_or_replace(path, member, "make symbolic link", |parent| {
                    rustix::fs::symlinkat(os(&member.link), parent, os(name))
                })?;
                self.own_and_date(parent, name, member)
            }
            Kind::HardLink => {
                let target = clean(&member.link)?;
                let (target_parent, target_name) = split(&target);
                if target_name.is_empty() {
                    return Err(TarError::BadName { name: shown(&member.link), reason: "link to the layer itself" });
                }
                let target_parent = self.open_directory(target_parent).map_err(fail("open target of hard link"))?;
                self.make_or_replace(path, member, "make hard link", |parent| {
                    rustix::fs::linkat(&target_parent, os(target_name), parent, os(name), AtFlags::empty())
                })
                .map(drop)
            }
            Kind::CharDevice | Kind::BlockDevice | Kind::Fifo => {
                let kind = match member.kind {
                    Kind::CharDevice => FileType::CharacterDevice,
                    Kind::BlockDevice => FileType::BlockDevice,
                    _ => FileType::Fifo,
                };
                if kind != FileType::Fifo && self.devices == DevicePolicy::Refuse {
                    return Err(TarError::DeviceRefused { name: shown(&member.name) });
                }
                let device = rustix::fs::makedev(member.device.0, member.device.1);
                self.make_or_replace(path, member, "make node", |parent| {
                    rustix::fs::mknodat(parent, os(name), kind, Mode::from_raw_mode(0o600), device)
                })?;
                self.own_and_date(parent, name, member)?;
                let parent = self.parent(parent).map_err(fail("open parent"))?;
                rustix::fs::chmodat(parent, os(name), Mode::from_raw_mode(member.mode), AtFlags::empty())
                    .map_err(|error| fail("set mode")(error.into()))
            }
        }
    }

    /// Makes a regular file, which is still to be filled and then given to [`Tree::finish_file`].
    pub(crate) fn create(&mut self, path: &[u8], member: &Member) -> Result<File, TarError> {
        let (_, name) = split(path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let mode = self.first_mode(member, 0o600);
        let mut made = None;
        self.note_owner(member);
        self.make_or_replace(path, member, "make file", |parent| {
            made = Some(rustix::fs::openat(parent, os(name), flags, mode)?);
            Ok(())
        })?;
        let file = File::from(made.ok_or_else(|| unpack_error(member, "make file")(Errno::IO.into()))?);
        // An empty file has nothing that would bring it to `finish_file`.
        if member.size == 0 && member.sparse.is_none() {
            self.finish_file(&file, member)?;
        }
        Ok(file)
    }

    /// Gives a filled file its owner, mode, attributes and time.
    pub(crate) fn finish_file(&self, file: &File, member: &Member) -> Result<(), TarError> {
        let fail = |action| unpack_error(member, action);
        if !self.is_made_right(member) {
            own(file, member).map_err(fail("set owner"))?;
            rustix::fs::fchmod(file, Mode::from_raw_mode(member.mode))
                .map_err(|error| fail("set mode")(error.into()))?;
        }
        set_xattrs(file, member).map_err(fail("set extended attribute"))?;
        rustix::fs::futimens(file, &times(member.modified)).map_err(|error| fail("set times")(error.into()))
    }

    /// Makes a file that is a further name of one outside the layer; `link` is given the directory and the name.
    pub(crate) fn link_from(
        &mut self,
        path: &[u8],
        member: &Member,
        mut link: impl FnMut(&OwnedFd, &Path) -> Result<(), Errno>,
    ) -> Result<(), TarError> {
        let (_, name) = split(path);
        self.make_or_replace(path, member, "link file", |parent| link(parent, os(name)))?;
        self.note_owner(member);
        Ok(())
    }

    /// Sets the times of directories, which filling them has changed.
    pub(crate) fn finish(mut self) -> Result<(Vec<u32>, Vec<u32>), TarError> {
        for (path, time) in std::mem::take(&mut self.directory_times) {
            let (parent, name) = split(&path);
            let set = self.parent(parent).and_then(|parent| {
                Ok(rustix::fs::utimensat(parent, os(name), &times(time), AtFlags::SYMLINK_NOFOLLOW)?)
            });
            if let Err(source) = set
                // Replaced by something else later in the archive.
                && source.kind() != io::ErrorKind::NotFound
                && source.kind() != io::ErrorKind::NotADirectory
            {
                return Err(TarError::Unpack { name: shown(&path), action: "set times of directory", source });
            }
        }
        let list = |owners: BTreeSet<u32>| {
            if owners.len() > OWNERS_MAX { Vec::new() } else { owners.into_iter().collect() }
        };
        Ok((list(self.uids), list(self.gids)))
    }

    fn note_owner(&mut self, member: &Member) {
        for (set, id) in [(&mut self.uids, member.uid), (&mut self.gids, member.gid)] {
            if set.len() <= OWNERS_MAX {
                set.insert(id);
            }
        }
    }

    fn directory(&mut self, path: &[u8], member: &Member) -> Result<(), TarError> {
        let fail = |action| unpack_error(member, action);
        let (parent, name) = split(path);
        let mode = self.first_mode(member, 0o700);
        let is_made_right = self.is_made_right(member);
        let replaced =
            self.make_or_replace(path, member, "make directory", |parent| rustix::fs::mkdirat(parent, os(name), mode))?;
        self.directory_bytes += path.len();
        if self.directory_bytes > DIRECTORY_NAMES_MAX_BYTES {
            return Err(TarError::TooManyDirectories { limit: DIRECTORY_NAMES_MAX_BYTES });
        }
        self.directory_times.push((path.to_vec(), member.modified));
        if member.mode & SETGID != 0 {
            self.making = Making::Inherited;
        }
        if is_made_right && replaced == Replaced::Nothing && member.xattrs.is_empty() {
            return Ok(());
        }
        let parent = self.parent(parent).map_err(fail("open parent"))?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let directory = rustix::fs::openat(parent, os(name), flags, Mode::empty())
            .map_err(|error| fail("open directory")(error.into()))?;
        own(&directory, member).map_err(fail("set owner"))?;
        rustix::fs::fchmod(&directory, Mode::from_raw_mode(member.mode))
            .map_err(|error| fail("set mode")(error.into()))?;
        set_xattrs(&directory, member).map_err(fail("set extended attribute"))?;
        if replaced == Replaced::Whiteout {
            // What the whiteout hid must stay hidden.
            set_opaque(&directory).map_err(fail("make opaque"))?;
        }
        Ok(())
    }

    fn whiteout(&mut self, parent: &[u8], name: &[u8], member: &Member) -> Result<(), TarError> {
        let fail = |action| unpack_error(member, action);
        if name == WHITEOUT_OPAQUE {
            let path = self.open_directory(parent).map_err(fail("open directory to make opaque"))?;
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let directory = rustix::fs::openat(&path, ".", flags, Mode::empty())
                .map_err(|error| fail("open directory to make opaque")(error.into()))?;
            return set_opaque(&directory).map_err(fail("make opaque"));
        }
        if name.starts_with(WHITEOUT_META_PREFIX) {
            return Ok(());
        }
        let hidden = &name[WHITEOUT_PREFIX.len()..];
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(TarError::BadName { name: shown(&member.name), reason: "whiteout of nothing" });
        }
        let at = self.parent(parent).map_err(fail("open parent"))?;
        match rustix::fs::mknodat(at, os(hidden), FileType::CharacterDevice, Mode::empty(), 0) {
            Ok(()) => self.own_and_date(parent, hidden, member),
            // A whiteout is about the layers below: what this layer has stays, a directory hides what was there.
            Err(Errno::EXIST) => {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                match rustix::fs::openat(at, os(hidden), flags, Mode::empty()) {
                    Ok(directory) => set_opaque(&directory).map_err(fail("make opaque")),
                    Err(Errno::NOTDIR | Errno::LOOP) => Ok(()),
                    Err(error) => Err(fail("open what a whiteout hides")(error.into())),
                }
            }
            Err(error) => Err(fail("make whiteout")(error.into())),
        }
    }

    fn make_or_replace(
        &mut self,
        path: &[u8],
        member: &Member,
        action: &'static str,
        mut make: impl FnMut(&OwnedFd) -> Result<(), Errno>,
    ) -> Result<Replaced, TarError> {
        let fail = |action| unpack_error(member, action);
        let (parent_path, name) = split(path);
        let parent = self.parent(parent_path).map_err(fail("open parent"))?;
        match make(parent) {
            Ok(()) => return Ok(Replaced::Nothing),
            Err(Errno::EXIST) => {}
            Err(error) => return Err(fail(action)(error.into())),
        }
        let stat = rustix::fs::statat(parent, os(name), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| fail("look at existing entry")(error.into()))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut replaced = Replaced::Nothing;
        if kind.is_dir() {
            if member.kind == Kind::Directory {
                return Ok(Replaced::Directory);
            }
            // A directory with something in it is not replaced: its files could not be given back.
            rustix::fs::unlinkat(parent, os(name), AtFlags::REMOVEDIR)
                .map_err(|error| fail("replace directory")(error.into()))?;
        } else {
            if kind == FileType::CharacterDevice && stat.st_rdev == 0 {
                replaced = Replaced::Whiteout;
            }
            rustix::fs::unlinkat(parent, os(name), AtFlags::empty())
                .map_err(|error| fail("replace entry")(error.into()))?;
        }
        make(parent).map_err(|error| fail(action)(error.into()))?;
        // What was removed may have been, or led to, the directory that is kept open.
        self.parent = None;
        Ok(replaced)
    }

    fn own_and_date(&mut self, parent: &[u8], name: &[u8], member: &Member) -> Result<(), TarError> {
        let fail = |action| unpack_error(member, action);
        let is_owned = self.making == Making::AsAsked && member.uid == 0 && member.gid == 0;
        let parent = self.parent(parent).map_err(fail("open parent"))?;
        let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
        if !is_owned {
            rustix::fs::chownat(parent, os(name), Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| fail("set owner")(error.into()))?;
        }
        rustix::fs::utimensat(parent, os(name), &times(member.modified), AtFlags::SYMLINK_NOFOLLOW)
            .map_err(|error| fail("set times")(error.into()))
    }

    /// The directory members of `path` are made in; kept open, because the next member is mostly in the same.
    fn parent(&mut self, path: &[u8]) -> io::Result<&OwnedFd> {
        if self.parent.as_ref().is_none_or(|(open, _)| open != path) {
            self.parent = Some((path.to_vec(), self.open_directory(path)?));
        }
        match &self.parent {
            Some((_, directory)) => Ok(directory),
            None => Err(io::Error::from(io::ErrorKind::NotFound)),
        }
    }

    fn open_directory(&self, path: &[u8]) -> io::Result<OwnedFd> {
        let open = |path: &[u8]| {
            let path = if path.is_empty() { b"." } else { path };
            open_beneath(self.root, os(path), OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot)
        };
        match open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => return other,
        }
        // Parents nobody listed, from the top down.
        for end in path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at).chain([path.len()]) {
            let part = &path[..end];
            match open(part) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let (above, name) = split(part);
                    let above = open(above)?;
                    rustix::fs::mkdirat(&above, os(name), Mode::from_raw_mode(0o700))?;
                    let mode = Mode::from_raw_mode(IMPLICIT_DIRECTORY_MODE);
                    rustix::fs::chmodat(&above, os(name), mode, AtFlags::empty())?;
                }
                other => drop(other?),
            }
        }
        open(path)
    }
}

/// Writes pieces of a file with holes where they belong.
pub(super) struct SparseWriter<'a> {
    extents: std::slice::Iter<'a, crate::tar::Extent>,
    at: u64,
    left: u64,
}

impl<'a> SparseWriter<'a> {
    pub(super) fn new(map: &'a crate::tar::SparseMap) -> Self {
        Self { extents: map.extents.iter(), at: 0, left: 0 }
    }

    pub(super) fn write(&mut self, file: &File, mut piece: &[u8]) -> io::Result<()> {
        while !piece.is_empty() {
            if self.left == 0 {
                // The map was checked to be as long as the content.
                let Some(extent) = self.extents.next() else { return Err(io::ErrorKind::InvalidData.into()) };
                (self.at, self.left) = (extent.offset, extent.length);
                continue;
            }
            let count = piece.len().min(usize::try_from(self.left).unwrap_or(usize::MAX));
            file.write_all_at(&piece[..count], self.at)?;
            self.at += count as u64;
            self.left -= count as u64;
            piece = &piece[count..];
        }
        Ok(())
    }
}

/// Writes a piece of a plain file.
pub(super) fn write_plain(mut file: &File, piece: &[u8]) -> io::Result<()> {
    file.write_all(piece)
}

pub(crate) fn unpack_error(member: &Member, action: &'static str) -> impl FnOnce(io::Error) -> TarError + use<> {
    let name = shown(&member.name);
    move |source| TarError::Unpack { name, action, source }
}

fn own(file: impl AsFd, member: &Member) -> io::Result<()> {
    let (uid, gid) = (Uid::from_raw(member.uid), Gid::from_raw(member.gid));
    Ok(rustix::fs::fchown(file, Some(uid), Some(gid))?)
}

fn set_opaque(directory: &OwnedFd) -> io::Result<()> {
    let set = || rustix::fs::fsetxattr(directory, OPAQUE_XATTR, b"y", XattrFlags::empty());
    Ok(sys::confine::with_trusted_attributes(set)??)
}

/// `security.capability` and `user.*`: anything else is either the overlay's own or a policy of this machine.
pub(crate) fn is_allowed_xattr(name: &[u8], kind: Kind) -> bool {
    match name {
        b"security.capability" => kind == Kind::File,
        name => name.starts_with(b"user.") && !name.starts_with(b"user.overlay."),
    }
}

fn set_xattrs(file: impl AsFd, member: &Member) -> io::Result<()> {
    for (name, value) in &member.xattrs {
        if !is_allowed_xattr(name, member.kind) {
            continue;
        }
        match rustix::fs::fsetxattr(&file, OsStr::from_bytes(name), value, XattrFlags::empty()) {
            // A file system without user attributes still holds the layer; capabilities it must have.
            Err(Errno::NOTSUP) if name.starts_with(b"user.") => {}
            other => other?,
        }
    }
    Ok(())
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: i64::from(nanoseconds) };
    Timestamps { last_access: time, last_modification: time }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cleaned_by_text_and_stay_inside() {
        for (name, expected) in [
            (&b"./"[..], Some(&b""[..])),
            (b"/", Some(b"")),
            (b"./etc//passwd", Some(b"etc/passwd")),
            (b"/etc/./passwd/", Some(b"etc/passwd")),
            (b"a/../b", Some(b"b")),
            (b"a/b/../../c", Some(b"c")),
            (b"...", Some(b"...")),
            (b"..", None),
            (b"../etc", None),
            (b"a/../../etc", None),
            (b"/../etc", None),
        ] {
            assert_eq!(clean(name).ok().as_deref(), expected, "{}", shown(name));
        }
    }

    #[test]
    fn attributes_of_the_overlay_are_never_taken_from_an_archive() {
        for (name, kind, expected) in [
            (&b"security.capability"[..], Kind::File, true),
            (b"security.capability", Kind::Directory, false),
            (b"user.comment", Kind::Directory, true),
            (b"user.overlay.opaque", Kind::Directory, false),
            (b"trusted.overlay.redirect", Kind::Directory, false),
            (b"trusted.overlay.metacopy", Kind::File, false),
            (b"security.selinux", Kind::File, false),
        ] {
            assert_eq!(is_allowed_xattr(name, kind), expected);
        }
    }
}
