//! Volumes get the label of whoever uses them: every file, by descriptor, never by a path that somebody else controls.
//!
//! The walk goes from directory handle to directory handle, each entry opened by its bare name without following
//! links, and an attribute is set on the handle that was opened. Renames beside it change which entries it meets, not
//! where it is. A volume's own directory comes last: with its label it vouches for what is below.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

use domain::selinux::Label;
use rustix::fs::{CWD, Dir, FileType, Mode, OFlags, ResolveFlags, XattrFlags};
use rustix::io::Errno;
use thiserror::Error;

use super::kernel::trim;

const ATTRIBUTE: &str = "security.selinux";
/// Longer than any label of ours; a longer one is another.
const ATTRIBUTE_MAX_BYTES: usize = 4096;
/// Directories below one another: each takes a descriptor, and no path is half as deep that programs can name.
const DEPTH_MAX: usize = 1024;
/// What belongs to the whole node. Source: CRI-O's library.
const PROTECTED: [&str; 24] = [
    "/",
    "/bin",
    "/boot",
    "/dev",
    "/etc",
    "/etc/passwd",
    "/etc/pki",
    "/etc/shadow",
    "/home",
    "/lib",
    "/lib64",
    "/media",
    "/opt",
    "/proc",
    "/root",
    "/run",
    "/sbin",
    "/srv",
    "/sys",
    "/tmp",
    "/usr",
    "/var",
    "/var/lib",
    "/var/log",
];

/// Why a volume was not labelled.
#[derive(Debug, Error)]
pub enum RelabelError {
    /// It would change the node.
    #[error("SELinux relabeling of {path} is not allowed")]
    Protected {
        /// What was to be labelled, or met on the way.
        path: PathBuf,
    },
    /// Deeper than anything with a purpose.
    #[error("SELinux relabeling of {path}: more than {DEPTH_MAX} directories below one another")]
    TooDeep {
        /// The volume.
        path: PathBuf,
    },
    /// The system refused.
    #[error("SELinux relabeling of {path}: {action}")]
    Refused {
        /// The volume.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
}

/// What became of a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Relabelled {
    /// It has the label.
    Done,
    /// Its file system has no labels of its own.
    Unsupported,
}

/// A file by what it is, whatever it is called.
type Identity = (u64, u64);

fn identity(stat: &rustix::fs::Stat) -> Identity {
    (stat.st_dev, stat.st_ino)
}

fn protected() -> HashSet<Identity> {
    PROTECTED.iter().filter_map(|path| rustix::fs::stat(*path).ok()).map(|stat| identity(&stat)).collect()
}

/// Opens what a path without links names.
fn open(path: &Path) -> io::Result<OwnedFd> {
    // Not `NOFOLLOW`, which would open a link at the end of the path itself.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)?)
}

/// Opens what lies at a path whose directories are the node's own.
fn open_own(path: &Path) -> io::Result<OwnedFd> {
    Ok(rustix::fs::openat(CWD, path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty())?)
}

/// The way to the attributes of a handle: setxattr(2) does not take those of `O_PATH`, and of a link there is no other.
fn by_handle(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn has(file: &OwnedFd, label: &[u8]) -> bool {
    let mut buffer = [0; ATTRIBUTE_MAX_BYTES];
    let length = rustix::fs::getxattr(by_handle(file), ATTRIBUTE, &mut buffer);
    length.is_ok_and(|length| trim(&buffer[..length]) == label)
}

fn set(file: &OwnedFd, label: &[u8]) -> Result<(), Errno> {
    if has(file, label) {
        return Ok(());
    }
    rustix::fs::setxattr(by_handle(file), ATTRIBUTE, label, XattrFlags::empty())
}

/// Refuses what belongs to the whole node, under whatever name. Nothing is changed.
pub fn check_volume(path: &Path) -> Result<(), RelabelError> {
    open_volume(path, &protected()).map(|_| ())
}

fn open_volume(path: &Path, protected: &HashSet<Identity>) -> Result<(OwnedFd, rustix::fs::Stat), RelabelError> {
    let failed = |action| move |source: io::Error| RelabelError::Refused { path: path.to_owned(), action, source };
    let top = open(path).map_err(failed("open it"))?;
    let stat = rustix::fs::fstat(&top).map_err(io::Error::from).map_err(failed("look at it"))?;
    if protected.contains(&identity(&stat)) {
        return Err(RelabelError::Protected { path: path.to_owned() });
    }
    Ok((top, stat))
}

/// Whether the file at a path has the label already.
#[must_use]
pub fn has_label(path: &Path, label: &Label) -> bool {
    open_own(path).is_ok_and(|file| has(&file, label.to_string().as_bytes()))
}

/// Labels one file of the daemon's own; fine on a file system without labels.
pub fn label_file(path: &Path, label: &Label) -> io::Result<()> {
    let file = open_own(path)?;
    match set(&file, label.to_string().as_bytes()) {
        Ok(()) | Err(Errno::NOTSUP) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// A directory being walked.
struct Frame {
    handle: OwnedFd,
    entries: Dir,
    device: u64,
}

/// Labels a volume and everything in it, what is mounted there included. `path` is absolute and without links.
///
/// What vanishes meanwhile is passed over, and so is what has the label already. File systems without labels are left
/// alone. Errors leave a part labelled, never the volume's own directory.
pub fn relabel(path: &Path, label: &Label) -> Result<Relabelled, RelabelError> {
    let protected = protected();
    let (top, stat) = open_volume(path, &protected)?;
    let mut walk = Walk { path, label: label.to_string(), protected, unsupported: HashSet::new(), frames: Vec::new() };
    walk.visit(top, &stat)?;
    while let Some(frame) = walk.frames.last_mut() {
        match frame.entries.next() {
            Some(Ok(entry)) if matches!(entry.file_name().to_bytes(), b"." | b"..") => {}
            Some(Ok(entry)) => walk.enter(entry.file_name())?,
            Some(Err(error)) => return Err(walk.failed("list a directory", error)),
            None => {
                if let Some(Frame { handle, device, .. }) = walk.frames.pop() {
                    walk.set(&handle, device)?;
                }
            }
        }
    }
    Ok(if walk.unsupported.contains(&stat.st_dev) { Relabelled::Unsupported } else { Relabelled::Done })
}

struct Walk<'a> {
    path: &'a Path,
    label: String,
    protected: HashSet<Identity>,
    /// Devices whose files take no labels.
    unsupported: HashSet<u64>,
    frames: Vec<Frame>,
}

impl Walk<'_> {
    fn failed(&self, action: &'static str, error: Errno) -> RelabelError {
        RelabelError::Refused { path: self.path.to_owned(), action, source: error.into() }
    }

    /// Opens an entry of the directory that is being walked.
    fn enter(&mut self, name: &std::ffi::CStr) -> Result<(), RelabelError> {
        let Some(frame) = self.frames.last() else { return Ok(()) };
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let handle = match rustix::fs::openat(&frame.handle, name, flags, Mode::empty()) {
            Ok(handle) => handle,
            Err(Errno::NOENT) => return Ok(()),
            Err(error) => return Err(self.failed("open a file", error)),
        };
        let stat = rustix::fs::fstat(&handle).map_err(|error| self.failed("look at a file", error))?;
        if self.protected.contains(&identity(&stat)) {
            // The node's own directory, mounted into the volume.
            let name = String::from_utf8_lossy(name.to_bytes()).into_owned();
            return Err(RelabelError::Protected { path: self.path.join("…").join(name) });
        }
        self.visit(handle, &stat)
    }

    /// Labels a file now, a directory after what is in it.
    fn visit(&mut self, handle: OwnedFd, stat: &rustix::fs::Stat) -> Result<(), RelabelError> {
        if self.unsupported.contains(&stat.st_dev) {
            return Ok(());
        }
        if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
            return self.set(&handle, stat.st_dev);
        }
        if self.frames.len() == DEPTH_MAX {
            return Err(RelabelError::TooDeep { path: self.path.to_owned() });
        }
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = rustix::fs::openat(&handle, ".", flags, Mode::empty());
        let entries = match opened.and_then(Dir::new) {
            Ok(entries) => entries,
            Err(Errno::NOENT) => return Ok(()),
            // Somebody's file system in user space keeps even root out; the directory itself is ours to label.
            Err(Errno::ACCESS) => return self.set(&handle, stat.st_dev),
            Err(error) => return Err(self.failed("open a directory", error)),
        };
        self.frames.push(Frame { handle, entries, device: stat.st_dev });
        Ok(())
    }

    fn set(&mut self, handle: &OwnedFd, device: u64) -> Result<(), RelabelError> {
        match set(handle, self.label.as_bytes()) {
            Ok(()) => Ok(()),
            Err(Errno::NOTSUP) => {
                self.unsupported.insert(device);
                Ok(())
            }
            Err(error) => Err(self.failed("set the label of a file", error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;

    fn label() -> Label {
        Label::parse("system_u:object_r:container_file_t:s0:c1,c2").expect("a label")
    }

    /// Without SELinux any text may be such an attribute, if root sets it where attributes are kept.
    fn is_settable(directory: &Path) -> bool {
        let probe = rustix::fs::setxattr(directory, ATTRIBUTE, b"probe", XattrFlags::empty());
        if probe.is_err() {
            eprintln!("SKIPPED: labels cannot be set here: {probe:?}");
        }
        let _ = rustix::fs::removexattr(directory, ATTRIBUTE);
        probe.is_ok()
    }

    fn real(directory: &tempfile::TempDir) -> PathBuf {
        fs::canonicalize(directory.path()).expect("a path")
    }

    #[test]
    fn everything_in_a_volume_is_labelled_and_nothing_that_links_name() {
        let directory = tempfile::tempdir().expect("a directory");
        let base = real(&directory);
        if !is_settable(&base) {
            return;
        }
        let (volume, outside) = (base.join("volume"), base.join("outside"));
        fs::create_dir_all(volume.join("a/b")).expect("directories");
        fs::create_dir_all(outside.join("x")).expect("directories");
        File::create(volume.join("a/b/file")).expect("a file");
        File::create(outside.join("x/file")).expect("a file");
        rustix::fs::mknodat(CWD, volume.join("fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).expect("a fifo");
        symlink(&outside, volume.join("a/directory")).expect("a link");
        symlink("../../outside/x/file", volume.join("a/file")).expect("a link");
        symlink("nowhere", volume.join("dangling")).expect("a link");
        assert_eq!(relabel(&volume, &label()).expect("labels"), Relabelled::Done);
        for path in ["", "a", "a/b", "a/b/file", "fifo", "a/directory", "a/file", "dangling"] {
            let path = volume.join(path);
            let file = rustix::fs::openat(CWD, &path, OFlags::PATH | OFlags::NOFOLLOW, Mode::empty()).expect("opens");
            assert!(has(&file, label().to_string().as_bytes()), "{path:?}");
        }
        assert!(has_label(&volume, &label()) && !has_label(&volume, &label().shared()));
        for path in ["", "x", "x/file"] {
            assert!(!has_label(&outside.join(path), &label()), "{path:?}");
        }
        // A link is no volume, however it came to be where the volume was.
        symlink(&outside, base.join("link")).expect("a link");
        for path in ["link", "link/x"] {
            assert!(matches!(relabel(&base.join(path), &label()), Err(RelabelError::Refused { .. })), "{path}");
        }
        assert!(!has_label(&outside, &label()));
        label_file(&outside.join("x/file"), &label()).expect("labels");
        assert!(has_label(&outside.join("x/file"), &label()));
    }

    #[test]
    fn the_node_itself_is_refused_under_any_name() {
        for path in ["/", "/etc", "/usr", "/var/lib", "/proc", "/etc/passwd"] {
            assert!(matches!(relabel(Path::new(path), &label()), Err(RelabelError::Protected { .. })), "{path}");
            assert!(matches!(check_volume(Path::new(path)), Err(RelabelError::Protected { .. })), "{path}");
        }
        // Where /lib is a link, its target is the same directory.
        let lib = fs::canonicalize("/lib").expect("a path");
        assert!(matches!(relabel(&lib, &label()), Err(RelabelError::Protected { .. })), "{lib:?}");
        assert!(matches!(relabel(Path::new("/absent"), &label()), Err(RelabelError::Refused { .. })));
        let directory = tempfile::tempdir().expect("a directory");
        assert!(check_volume(&real(&directory)).is_ok());
    }

    #[test]
    fn a_bottomless_volume_is_refused_with_its_top_unlabelled() {
        let directory = tempfile::tempdir().expect("a directory");
        let base = real(&directory);
        if !is_settable(&base) {
            return;
        }
        let mut handle = rustix::fs::openat(CWD, &base, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("opens");
        for _ in 0..DEPTH_MAX {
            rustix::fs::mkdirat(&handle, "d", Mode::from_raw_mode(0o700)).expect("a directory");
            handle = rustix::fs::openat(&handle, "d", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).expect("opens");
        }
        assert!(matches!(relabel(&base, &label()), Err(RelabelError::TooDeep { .. })));
        assert!(!has_label(&base, &label()));
    }

    #[test]
    fn somebody_who_renames_meanwhile_leads_nowhere_else() {
        use rustix::fs::{RenameFlags, renameat_with};
        use std::sync::atomic::{AtomicBool, Ordering};
        let directory = tempfile::tempdir().expect("a directory");
        let base = real(&directory);
        if !is_settable(&base) {
            return;
        }
        let (volume, outside) = (base.join("volume"), base.join("outside"));
        fs::create_dir_all(volume.join("a/b/c")).expect("directories");
        fs::create_dir_all(outside.join("b/c")).expect("directories");
        File::create(outside.join("b/c/secret")).expect("a file");
        symlink(&outside, volume.join("link")).expect("a link");
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    // A directory and a link that leads out change places all the time.
                    let _ = renameat_with(CWD, volume.join("a"), CWD, volume.join("link"), RenameFlags::EXCHANGE);
                }
            });
            for round in 0..500_u16 {
                let label = Label::parse(&format!("u:r:t:s0:c{round}")).expect("a label");
                relabel(&volume, &label).expect("labels");
            }
            is_over.store(true, Ordering::Relaxed);
        });
        let mut buffer = [0; 64];
        for path in ["", "b", "b/c", "b/c/secret"] {
            let found = rustix::fs::getxattr(outside.join(path), ATTRIBUTE, &mut buffer);
            assert!(found.is_err(), "{path:?} was labelled");
        }
    }
}
