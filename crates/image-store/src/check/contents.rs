//! Comparing the files of a layer with what its tar says of them.
//!
//! Per layer, not of the mounted whole: each file is looked at once, however many images are made of it. Contents are
//! covered by the tar's digest; here are names, kinds, owners, modes, lengths and times, and files that nobody packed.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::io::{self, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::thread;

use domain::digest::Digest;
use domain::id::LayerId;
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags};

use super::Damage;
use crate::readback::ReadLayerError;
use crate::stage::clean;
use crate::store::Store;
use crate::tar::{Kind, Member, Reader, TarError, shown};

/// Differences told of one layer; the rest is counted.
const TOLD_MAX: usize = 20;
/// Deepest directory compared: each level keeps a descriptor open.
const DEPTH_MAX: usize = 256;
/// Links followed on the way to one member; the kernel follows as many.
const LINKS_MAX: usize = 40;
/// Buffer between the two threads of a layer.
const BUFFER_BYTES: usize = 128 << 10;
/// Where a store with `force_mask` keeps owners and modes. Source: containers/storage.
const OVERRIDE_XATTR: &str = "user.containers.override_stat";

/// What a tar says of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    kind: FileType,
    /// Absent of directories nobody listed.
    attributes: Option<Attributes>,
    /// Of symbolic links.
    link: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Attributes {
    /// Permissions; links have none.
    mode: Option<u32>,
    uid: u32,
    gid: u32,
    /// Of regular files.
    size: Option<u64>,
    seconds: i64,
    /// Of devices.
    device: Option<u64>,
}

/// The tree a tar makes, by cleaned path.
#[derive(Debug, Default)]
struct Tree {
    files: BTreeMap<Vec<u8>, Expected>,
}

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const WHITEOUT_META_PREFIX: &[u8] = b".wh..wh.";

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (&[], path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() { name.to_vec() } else { [parent, name].join(&b'/') }
}

impl Tree {
    /// Where members of a directory end up: links on the way are followed as in a chroot, absent directories made.
    fn directory(&mut self, path: &[u8]) -> Vec<u8> {
        let mut todo: Vec<Vec<u8>> = path.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec).collect();
        let mut at: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = todo.pop() {
            match &part[..] {
                b"" | b"." => continue,
                b".." => {
                    at = split(&at).0.to_vec();
                    continue;
                }
                _ => {}
            }
            let next = join(&at, &part);
            match self.files.get(&next) {
                Some(file) if file.kind == FileType::Symlink && links < LINKS_MAX => {
                    links += 1;
                    if file.link.starts_with(b"/") {
                        at.clear();
                    }
                    todo.extend(file.link.split(|byte| *byte == b'/').rev().map(<[u8]>::to_vec));
                }
                Some(_) => at = next,
                None => {
                    let implicit = Expected { kind: FileType::Directory, attributes: None, link: Vec::new() };
                    self.files.insert(next.clone(), implicit);
                    at = next;
                }
            }
        }
        at
    }

    fn add(&mut self, member: &Member) -> Result<(), TarError> {
        let path = clean(&member.name)?;
        if path.is_empty() {
            return Ok(());
        }
        let (parent, name) = split(&path);
        if name.starts_with(WHITEOUT_META_PREFIX) {
            return Ok(());
        }
        let parent = self.directory(parent);
        if let Some(hidden) = name.strip_prefix(WHITEOUT_PREFIX) {
            let whiteout = Expected { kind: FileType::CharacterDevice, attributes: None, link: Vec::new() };
            self.files.entry(join(&parent, hidden)).or_insert(whiteout);
            return Ok(());
        }
        let at = join(&parent, name);
        if member.kind == Kind::HardLink {
            let target = clean(&member.link)?;
            let (target_parent, target_name) = split(&target);
            let target = join(&self.directory(target_parent), target_name);
            // A file of its own in the archive's words, the same in the file system's.
            if let Some(target) = self.files.get(&target).cloned() {
                self.files.insert(at, target);
            }
            return Ok(());
        }
        let kind = kind_of(member.kind);
        if kind != FileType::Directory {
            self.forget_beneath(&at);
        }
        let is_device = matches!(kind, FileType::CharacterDevice | FileType::BlockDevice);
        let attributes = Attributes {
            mode: (kind != FileType::Symlink).then_some(member.mode & 0o7777),
            uid: member.uid,
            gid: member.gid,
            size: (kind == FileType::RegularFile)
                .then(|| member.sparse.as_ref().map_or(member.size, |map| map.real_size)),
            seconds: member.modified.0,
            device: is_device.then(|| rustix::fs::makedev(member.device.0, member.device.1)),
        };
        self.files.insert(at, Expected { kind, attributes: Some(attributes), link: member.link.clone() });
        Ok(())
    }

    fn forget_beneath(&mut self, path: &[u8]) {
        if self.files.get(path).is_some_and(|file| file.kind == FileType::Directory) {
            let prefix = join(path, b"");
            self.files.retain(|other, _| !other.starts_with(&prefix));
        }
    }
}

fn kind_of(kind: Kind) -> FileType {
    match kind {
        Kind::File | Kind::HardLink => FileType::RegularFile,
        Kind::Symlink => FileType::Symlink,
        Kind::CharDevice => FileType::CharacterDevice,
        Kind::BlockDevice => FileType::BlockDevice,
        Kind::Directory => FileType::Directory,
        Kind::Fifo => FileType::Fifo,
    }
}

fn read_tree(tar: impl io::Read) -> Result<Tree, TarError> {
    let mut reader = Reader::new(BufReader::with_capacity(BUFFER_BYTES, tar));
    let mut tree = Tree::default();
    while let Some(member) = reader.next_member()? {
        tree.add(&member)?;
        loop {
            let count = reader.content()?.len();
            if count == 0 {
                break;
            }
            reader.advance(count);
        }
        reader.take_raw().clear();
    }
    while reader.trailing()? {
        reader.take_raw().clear();
    }
    Ok(tree)
}

/// Digest and length of a layer's tar, and how its files differ from it.
pub(super) fn compare(
    store: &Store,
    layer: &LayerId,
    is_mapped: bool,
) -> (Result<(Digest, u64), ReadLayerError>, Vec<Damage>) {
    let output = |source| ReadLayerError::Output { layer: layer.clone(), source };
    let (read, mut write) = match io::pipe() {
        Ok(pipe) => pipe,
        Err(error) => return (Err(output(error)), Vec::new()),
    };
    let (tar, tree) = thread::scope(|scope| {
        let reader = scope.spawn(move || read_tree(read));
        let tar = store.write_layer_tar(layer, &mut write);
        drop(write);
        (tar, reader.join())
    });
    let tree = match tree {
        Ok(Ok(tree)) => tree,
        // What the reader did not understand broke the pipe; that the store once did says it was another archive.
        Ok(Err(error)) => return (tar.and(Err(output(io::Error::other(error)))), Vec::new()),
        Err(panic) => std::panic::resume_unwind(panic),
    };
    if tar.is_err() {
        return (tar, Vec::new());
    }
    let diff = store.driver.diff(layer.as_str());
    let mut value = [0; 64];
    let is_masked = rustix::fs::lgetxattr(&diff, OVERRIDE_XATTR, &mut value).is_ok();
    let mut walk = Walk { tree, found: Vec::new(), more: 0, is_mapped, is_masked };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let walked = rustix::fs::openat(CWD, &diff, flags, Mode::empty())
        .map_err(io::Error::from)
        .and_then(|root| walk.directory(root, &[], 0));
    match walked {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => walk.tell(b".", format!("cannot be looked at: {error}")),
        Ok(()) => {
            for path in std::mem::take(&mut walk.tree).files.into_keys() {
                walk.tell(&path, "is missing".to_owned());
            }
        }
    }
    if walk.more > 0 {
        walk.found.push(Damage::MoreContents { count: walk.more });
    }
    (tar, walk.found)
}

struct Walk {
    tree: Tree,
    found: Vec<Damage>,
    more: usize,
    is_mapped: bool,
    is_masked: bool,
}

impl Walk {
    fn tell(&mut self, path: &[u8], what: String) {
        if self.found.len() < TOLD_MAX {
            self.found.push(Damage::Contents { path: shown(path), what });
        } else {
            self.more += 1;
        }
    }

    fn directory(&mut self, directory: OwnedFd, path: &[u8], depth: usize) -> io::Result<()> {
        if depth > DEPTH_MAX {
            // Everything beneath was checked by the tar's digest alone.
            let prefix = join(path, b"");
            self.tree.files.retain(|other, _| !other.starts_with(&prefix));
            return Ok(());
        }
        let mut entries = Dir::new(directory)?;
        while let Some(entry) = entries.read() {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let own = join(path, name);
            let name = Path::new(OsStr::from_bytes(name));
            let stat = rustix::fs::statat(entries.fd()?, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = FileType::from_raw_mode(stat.st_mode);
            match self.tree.files.remove(&own) {
                None => self.tell(&own, "belongs to nobody".to_owned()),
                Some(expected) => {
                    let link = match kind {
                        FileType::Symlink => rustix::fs::readlinkat(entries.fd()?, name, Vec::new())?.into_bytes(),
                        _ => Vec::new(),
                    };
                    if let Some(what) = self.difference(&expected, &stat, &link) {
                        self.tell(&own, what);
                    }
                }
            }
            if kind == FileType::Directory {
                let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let below = rustix::fs::openat(entries.fd()?, name, flags, Mode::empty())?;
                self.directory(below, &own, depth + 1)?;
            }
        }
        Ok(())
    }

    /// In what a file differs, in words.
    fn difference(&self, expected: &Expected, stat: &rustix::fs::Stat, link: &[u8]) -> Option<String> {
        let kind = FileType::from_raw_mode(stat.st_mode);
        if self.is_masked {
            return None;
        }
        if kind != expected.kind {
            return Some(format!("is a {}, not a {}", kind_name(kind), kind_name(expected.kind)));
        }
        if kind == FileType::Symlink && link != expected.link {
            return Some(format!("leads to {:?}, not {:?}", shown(link), shown(&expected.link)));
        }
        let attributes = expected.attributes.as_ref()?;
        let mut differences = Vec::new();
        let mode = stat.st_mode & 0o7777;
        if let Some(expected) = attributes.mode.filter(|expected| *expected != mode) {
            differences.push(format!("has mode {mode:04o}, not {expected:04o}"));
        }
        if !self.is_mapped && (attributes.uid, attributes.gid) != (stat.st_uid, stat.st_gid) {
            let owner = (stat.st_uid, stat.st_gid, attributes.uid, attributes.gid);
            differences.push(format!("belongs to {}:{}, not {}:{}", owner.0, owner.1, owner.2, owner.3));
        }
        if let Some(expected) = attributes.size.filter(|size| i64::try_from(*size) != Ok(stat.st_size)) {
            differences.push(format!("has {} bytes, not {expected}", stat.st_size));
        }
        if let Some(expected) = attributes.device.filter(|device| *device != stat.st_rdev) {
            differences.push(format!("is device {:x}, not {expected:x}", stat.st_rdev));
        }
        #[expect(clippy::useless_conversion, reason = "seconds are narrower on other architectures")]
        let seconds = i64::from(stat.st_mtime);
        if seconds != attributes.seconds {
            differences.push(format!("was changed at {seconds}, not {}", attributes.seconds));
        }
        (!differences.is_empty()).then(|| differences.join(", "))
    }
}

fn kind_name(kind: FileType) -> &'static str {
    match kind {
        FileType::RegularFile => "file",
        FileType::Directory => "directory",
        FileType::Symlink => "link",
        FileType::Fifo => "pipe",
        FileType::CharacterDevice => "character device",
        FileType::BlockDevice => "block device",
        FileType::Socket | FileType::Unknown => "socket",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, kind: Kind, link: &str) -> Member {
        Member {
            name: name.into(),
            link: link.into(),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            size: 0,
            modified: (1, 0),
            device: (0, 0),
            xattrs: Vec::new(),
            sparse: None,
        }
    }

    #[test]
    fn a_tar_makes_the_tree_that_unpacking_makes() {
        use Kind::{Directory, File, HardLink, Symlink};
        for (members, expected) in [
            (vec![("./", Directory, ""), ("a/b", File, "")], vec!["a", "a/b"]),
            (vec![("usr/lib/", Directory, ""), ("lib", Symlink, "usr/lib"), ("lib/x", File, "")], {
                vec!["lib", "usr", "usr/lib", "usr/lib/x"]
            }),
            (vec![("lib", Symlink, "/usr/../usr"), ("lib/x", File, "")], vec!["lib", "usr", "usr/x"]),
            (vec![("a/.wh.b", File, ""), ("a/.wh..wh..opq", File, "")], vec!["a", "a/b"]),
            (vec![("a", File, ""), ("b", HardLink, "./a")], vec!["a", "b"]),
            (vec![("a/b", File, ""), ("a", File, "")], vec!["a"]),
            (vec![("loop", Symlink, "loop"), ("loop/x", File, "")], vec!["loop", "loop/x"]),
        ] {
            let mut tree = Tree::default();
            for (name, kind, link) in &members {
                tree.add(&member(name, *kind, link)).expect("a member");
            }
            let paths: Vec<String> = tree.files.keys().map(|path| shown(path)).collect();
            assert_eq!(paths, expected, "{members:?}");
        }
        let hard = [member("a", File, ""), member(".wh.b", File, "")];
        let mut tree = Tree::default();
        hard.iter().for_each(|member| tree.add(member).expect("a member"));
        assert_eq!(tree.files[&b"b"[..]].kind, FileType::CharacterDevice);
        assert!(Tree::default().add(&member("../x", File, "")).is_err());
    }
}
