//! Namespaces that outlive the thread that made them, and blocking code run inside one.
//!
//! A namespace belongs to threads. To make one that has no process, a fresh thread unshares it, attaches the thread's
//! own `/proc/thread-self/ns/X` onto an empty file (the *pin*), and ends. No helper binary and no fork are involved, so
//! the cost is the kernel's own. What enters a namespace here is always a thread made for the purpose and then ended.
//!
//! Pins lie at `<namespaces dir>/<X>ns/<name>`, as CRI-O lays them out. Begin with [`pin`] and [`unpin`].
//!
//! Freeing a network namespace is asynchronous in the kernel: after [`unpin`] its devices vanish a little later.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::thread;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MoveMountFlags, OpenTreeFlags, UnmountFlags};
use rustix::process::Pid;
use rustix::thread::UnshareFlags;
use thiserror::Error;

use crate::link;

mod sysctl;
mod user;

pub use sysctl::{ParseSysctlError, Sysctl};
pub use user::{IdMaps, IdRange, make_user, pin_with_user};

/// What `fstatfs` calls a file of the namespace file system (linux/magic.h).
const NSFS_MAGIC: u64 = 0x6e73_6673;

/// Stack of a thread that only makes a dozen system calls. Rust's own start-up needs a few KiB of it.
const PIN_STACK: usize = 128 * 1024;
/// Stack for somebody else's work: what Rust gives any thread. Only touched pages cost memory.
const WORK_STACK: usize = 2 * 1024 * 1024;

/// How many mounts may be stacked on one pin before unpinning gives up: one is right, more come from a pin made twice.
const UNPIN_STACK_MAX: usize = 16;

/// Longest host name the kernel takes (`__NEW_UTS_LEN`, uname(2)).
const HOST_NAME_MAX: usize = 64;

/// Longest name of a pin: what a directory entry may be (`NAME_MAX`).
const PIN_NAME_MAX: usize = 255;

/// A kind of namespace that can be pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Network devices, addresses, routes, firewall, `net.*` sysctls.
    Net,
    /// System V and POSIX message queues, shared memory, semaphores.
    Ipc,
    /// Host and domain name.
    Uts,
    /// Process ids. Cannot be unshared into a pin without a first process; pin that of a process instead.
    Pid,
    /// User and group ids. Needs a process too.
    User,
    /// Root of the cgroup tree.
    Cgroup,
}

impl Kind {
    /// The name below `/proc/<pid>/ns`.
    #[must_use]
    pub fn proc_name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Ipc => "ipc",
            Self::Uts => "uts",
            Self::Pid => "pid",
            Self::User => "user",
            Self::Cgroup => "cgroup",
        }
    }

    /// The directory of its pins below the namespaces directory: `netns`, `ipcns`, ...
    #[must_use]
    pub fn directory(self) -> &'static str {
        match self {
            Self::Net => "netns",
            Self::Ipc => "ipcns",
            Self::Uts => "utsns",
            Self::Pid => "pidns",
            Self::User => "userns",
            Self::Cgroup => "cgroupns",
        }
    }

    fn own_link(self) -> &'static CStr {
        match self {
            Self::Net => c"/proc/thread-self/ns/net",
            Self::Ipc => c"/proc/thread-self/ns/ipc",
            Self::Uts => c"/proc/thread-self/ns/uts",
            Self::Pid => c"/proc/thread-self/ns/pid",
            Self::User => c"/proc/thread-self/ns/user",
            Self::Cgroup => c"/proc/thread-self/ns/cgroup",
        }
    }
}

/// Which namespaces to make anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Kinds {
    /// A network namespace, with `lo` up.
    pub net: bool,
    /// An IPC namespace.
    pub ipc: bool,
    /// A UTS namespace.
    pub uts: bool,
}

impl Kinds {
    /// Network, IPC and UTS: what an ordinary sandbox has.
    pub const ALL: Self = Self { net: true, ipc: true, uts: true };

    /// Whether `kind` is among them.
    #[must_use]
    pub fn has(self, kind: Kind) -> bool {
        match kind {
            Kind::Net => self.net,
            Kind::Ipc => self.ipc,
            Kind::Uts => self.uts,
            Kind::Pid | Kind::User | Kind::Cgroup => false,
        }
    }

    fn iter(self) -> impl Iterator<Item = Kind> {
        [Kind::Net, Kind::Ipc, Kind::Uts].into_iter().filter(move |kind| self.has(*kind))
    }

    fn flags(self) -> UnshareFlags {
        let mut flags = UnshareFlags::empty();
        flags.set(UnshareFlags::NEWNET, self.net);
        flags.set(UnshareFlags::NEWIPC, self.ipc);
        flags.set(UnshareFlags::NEWUTS, self.uts);
        flags
    }
}

/// What to make, and how it is to be set up before anything runs in it.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted<'a> {
    /// The kinds to unshare. Must not be empty.
    pub kinds: Kinds,
    /// Host name inside the new UTS namespace; ignored without one. At most 64 bytes.
    pub hostname: Option<&'a str>,
    /// Written in order, before `lo` comes up. Each must belong to a kind asked for.
    pub sysctls: &'a [Sysctl],
}

/// Where the namespaces were pinned: a path for each kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pins {
    /// `<namespaces dir>/netns/<name>`
    pub net: Option<PathBuf>,
    /// `<namespaces dir>/ipcns/<name>`
    pub ipc: Option<PathBuf>,
    /// `<namespaces dir>/utsns/<name>`
    pub uts: Option<PathBuf>,
}

/// Why namespaces could not be pinned. Nothing is left behind.
#[derive(Debug, Error)]
pub enum PinError {
    /// The name is not one ordinary path segment.
    #[error("{0:?} cannot name a pin: one path segment of letters, digits, dot, underscore or hyphen is expected")]
    Name(String),
    /// No kind was asked for.
    #[error("no namespace was asked for")]
    Nothing,
    /// Longer than the kernel takes, or with a NUL.
    #[error("{0:?} cannot be a host name")]
    Hostname(String),
    /// A sysctl of a namespace that is not made here would change somebody else's.
    #[error("sysctl {key} belongs to the {kind:?} namespace, which is not the sandbox's own")]
    ForeignSysctl {
        /// The sysctl.
        key: String,
        /// The namespace it belongs to.
        kind: Kind,
    },
    /// The thread, or the child for a user namespace, could not be made or ended early.
    #[error("start a thread to make namespaces in")]
    Thread(#[source] io::Error),
    /// A user namespace needs users and groups, with id 0 among them, in no more ranges than the kernel takes.
    #[error("the id mapping of the user namespace is empty, too long or without id 0")]
    IdMap,
    /// The kernel refused the ids, for example overlapping ranges.
    #[error("map ids of the user namespace")]
    WriteIdMap(#[source] io::Error),
    /// unshare(2) refused.
    #[error("unshare {kinds:?}")]
    Unshare {
        /// What was asked for.
        kinds: Kinds,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// sethostname(2) refused.
    #[error("set host name {hostname:?}")]
    SetHostname {
        /// The name.
        hostname: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The kernel does not have the sysctl in a namespace, or refused the value.
    #[error("set sysctl {key} to {value:?}")]
    SetSysctl {
        /// The key as given.
        key: String,
        /// The value as given.
        value: String,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The loopback device did not come up.
    #[error("bring up the loopback device")]
    Loopback(#[source] io::Error),
    /// A step of attaching one namespace to its file.
    #[error("pin {kind:?} namespace at {path}")]
    Attach {
        /// Which.
        kind: Kind,
        /// Where.
        path: PathBuf,
        /// What failed. `AlreadyExists`: a pin of that name is there.
        #[source]
        source: io::Error,
    },
}

/// Makes new namespaces and pins each at `<dir>/<X>ns/<name>`.
///
/// `dir` and the directory of each kind are created when missing (mode 0755). `dir` need not be a mount point nor
/// shared; where it is shared the pins propagate. The files are made exclusively with mode 0: a name in use is an
/// error. On failure everything made is unmade. Blocks for about as long as the kernel needs to make a network
/// namespace (some hundred microseconds).
///
/// Source: CRI-O's `pinns`; unshare(2), open_tree(2) and move_mount(2) (Linux 5.2), openat2(2) (5.6).
pub fn pin(dir: &Path, name: &str, wanted: &Wanted<'_>) -> Result<Pins, PinError> {
    check(name, wanted)?;
    on_thread(PIN_STACK, || pin_here(dir, name, wanted)).map_err(PinError::Thread)?
}

/// Pins a namespace that a process has, for example the PID namespace of an infra container, at `<dir>/<X>ns/<name>`.
///
/// The caller holds the process (unreaped, or by pidfd) so that `pid` cannot be somebody else by now.
pub fn pin_of_process(dir: &Path, name: &str, kind: Kind, pid: Pid) -> Result<PathBuf, PinError> {
    check_name(name)?;
    let link = format!("/proc/{}/ns/{}", pid.as_raw_nonzero(), kind.proc_name());
    attach(dir, name, kind, &link).map_err(|source| PinError::Attach {
        kind,
        path: dir.join(kind.directory()).join(name),
        source,
    })
}

fn check_name(name: &str) -> Result<(), PinError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let fits = !name.is_empty() && name.len() <= PIN_NAME_MAX && name != "." && name != "..";
    if fits && name.bytes().all(is_plain) { Ok(()) } else { Err(PinError::Name(name.to_owned())) }
}

fn check(name: &str, wanted: &Wanted<'_>) -> Result<(), PinError> {
    if wanted.kinds == Kinds::default() {
        return Err(PinError::Nothing);
    }
    check_but_kinds(name, wanted)
}

fn check_but_kinds(name: &str, wanted: &Wanted<'_>) -> Result<(), PinError> {
    check_name(name)?;
    if let Some(hostname) = wanted.hostname
        && (hostname.len() > HOST_NAME_MAX || hostname.contains('\0'))
    {
        return Err(PinError::Hostname(hostname.to_owned()));
    }
    match wanted.sysctls.iter().find(|sysctl| !wanted.kinds.has(sysctl.kind())) {
        Some(sysctl) => Err(PinError::ForeignSysctl { key: sysctl.key().to_owned(), kind: sysctl.kind() }),
        None => Ok(()),
    }
}

/// The part that runs on the fresh thread.
fn pin_here(dir: &Path, name: &str, wanted: &Wanted<'_>) -> Result<Pins, PinError> {
    let unshared = |source: Errno| PinError::Unshare { kinds: wanted.kinds, source: source.into() };
    // SAFETY: no descriptor table is unshared, so no descriptor of another thread changes its meaning; the namespaces
    // are those of this thread only, which ends right after.
    unsafe { rustix::thread::unshare_unsafe(wanted.kinds.flags()) }.map_err(unshared)?;
    if let Some(hostname) = wanted.hostname
        && wanted.kinds.uts
    {
        rustix::system::sethostname(hostname.as_bytes())
            .map_err(|source| PinError::SetHostname { hostname: hostname.to_owned(), source: source.into() })?;
    }
    apply_sysctls(wanted.sysctls)?;
    if wanted.kinds.net {
        link::bring_up_loopback().map_err(PinError::Loopback)?;
    }
    let mut pins = Pins::default();
    for kind in wanted.kinds.iter() {
        match attach(dir, name, kind, kind.own_link()) {
            Ok(path) => match kind {
                Kind::Net => pins.net = Some(path),
                Kind::Ipc => pins.ipc = Some(path),
                Kind::Uts => pins.uts = Some(path),
                Kind::Pid | Kind::User | Kind::Cgroup => {}
            },
            Err(source) => {
                for path in [pins.net, pins.ipc, pins.uts].into_iter().flatten() {
                    // The first failure is the one to tell; a pin that cannot be undone here is found by its name later.
                    let _ = unpin(&path);
                }
                return Err(PinError::Attach { kind, path: dir.join(kind.directory()).join(name), source });
            }
        }
    }
    Ok(pins)
}

fn apply_sysctls(sysctls: &[Sysctl]) -> Result<(), PinError> {
    if sysctls.is_empty() {
        return Ok(());
    }
    // Opened on this thread: what lies below /proc/sys/net is that of the namespace of the thread looking.
    let root = rustix::fs::open("/proc/sys", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    for sysctl in sysctls {
        let failed = |source: io::Error| PinError::SetSysctl {
            key: sysctl.key().to_owned(),
            value: sysctl.value().to_owned(),
            source,
        };
        let root = root.as_ref().map_err(|errno| failed((*errno).into()))?;
        write_sysctl(root.as_fd(), sysctl.path(), sysctl.value()).map_err(failed)?;
    }
    Ok(())
}

fn write_sysctl(root: BorrowedFd<'_>, path: &str, value: &str) -> io::Result<()> {
    // openat2(2), Linux 5.6: neither `..` nor a link leads out of /proc/sys.
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let fd = rustix::fs::openat2(root, path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty(), resolve)?;
    // One write: the kernel takes a sysctl whole or not at all.
    File::from(fd).write_all(value.as_bytes())
}

fn attach<P: rustix::path::Arg>(dir: &Path, name: &str, kind: Kind, link: P) -> io::Result<PathBuf> {
    let parent = open_directory(&dir.join(kind.directory()))?;
    // Cloned before the file is made: a process that is gone leaves nothing to undo.
    let tree = rustix::mount::open_tree(CWD, link, OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC)?;
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    drop(rustix::fs::openat(&parent, name, flags, Mode::empty())?);
    let attached = rustix::mount::move_mount(tree, "", &parent, name, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
    if let Err(errno) = attached {
        let _ = rustix::fs::unlinkat(&parent, name, AtFlags::empty());
        return Err(errno.into());
    }
    Ok(dir.join(kind.directory()).join(name))
}

fn open_directory(path: &Path) -> io::Result<OwnedFd> {
    let open = || rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
    match open() {
        Err(Errno::NOENT) => {
            std::fs::create_dir_all(path)?;
            Ok(open()?)
        }
        other => Ok(other?),
    }
}

/// Detaches the namespace pinned at `path` and removes the file.
///
/// Idempotent: a missing file, and a file nothing is mounted on, are fine. Unmounts nothing but namespace files
/// (whatever `path` names), lazily, so it never waits for users of the namespace.
pub fn unpin(path: &Path) -> io::Result<()> {
    for _ in 0..UNPIN_STACK_MAX {
        if !is_pinned(path)? {
            return match rustix::fs::unlink(path) {
                Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
                Err(errno) => Err(errno.into()),
            };
        }
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            // EINVAL: somebody else unmounted it in between.
            Ok(()) | Err(Errno::INVAL | Errno::NOENT) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Err(io::Error::other(format!("more than {UNPIN_STACK_MAX} mounts are stacked there")))
}

/// Whether a namespace is mounted at `path`. False when the file is missing or an ordinary one.
pub fn is_pinned(path: &Path) -> io::Result<bool> {
    let fd = match rustix::fs::open(path, OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(false),
        Err(errno) => return Err(errno.into()),
    };
    is_namespace(fd.as_fd())
}

fn is_namespace(fd: BorrowedFd<'_>) -> io::Result<bool> {
    // The type of f_type differs between architectures; the magic number is positive in all.
    Ok(u64::try_from(rustix::fs::fstatfs(fd)?.f_type).is_ok_and(|magic| magic == NSFS_MAGIC))
}

/// Opens a pinned namespace, or one below `/proc/<pid>/ns`. Fails with `InvalidInput` when it is something else.
pub fn open(path: &Path) -> io::Result<OwnedFd> {
    // Looked at before it is opened for reading: opening a FIFO would wait for a writer.
    let probe = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    if !is_namespace(probe.as_fd())? {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a namespace"));
    }
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

/// Runs `work` on a thread of its own inside the namespace `namespace` refers to, and waits for it.
///
/// Blocking: from async code go through the house's crossing. For user and mount namespaces the kernel refuses (a
/// process with several threads cannot enter them). Source: setns(2), Linux 3.0.
pub fn on_fresh_thread<T, F>(namespace: BorrowedFd<'_>, work: F) -> io::Result<T>
where
    T: Send,
    F: FnOnce() -> T + Send,
{
    on_thread(WORK_STACK, || {
        rustix::thread::move_into_link_name_space(namespace, None)?;
        Ok(work())
    })?
}

fn on_thread<T: Send, F: FnOnce() -> T + Send>(stack: usize, work: F) -> io::Result<T> {
    thread::scope(|scope| {
        let builder = thread::Builder::new().name("namespace".to_owned()).stack_size(stack);
        match builder.spawn_scoped(scope, work)?.join() {
            Ok(outcome) => Ok(outcome),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests;
