//! Walls around one thread, for code that writes files as foreign bytes tell it.
//!
//! A thread behind them has a directory of its own as `/`, may by Landlock open, make and remove files beneath that
//! directory alone and no TCP connection at all, and has only the capabilities that making files of any owner, mode and
//! kind takes. The walls stand as long as the thread; other threads of the process keep what they have.
//! Source: unshare(2), chroot(2), landlock(7) (Linux 5.13, hard links between directories since 5.19), capabilities(7).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::fs::Mode;
use rustix::thread::{CapabilitySet, CapabilitySets, UnshareFlags};

/// What making files of any owner, mode and kind takes.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP);
/// What attributes of the `trusted.` class take, and much else: in force only within [`with_trusted_attributes`].
const AT_HAND: CapabilitySet = CapabilitySet::SYS_ADMIN;

/// The first version with which files may be linked from one directory to another.
const LANDLOCK_VERSION_MIN: u32 = 2;
const CREATE_RULESET_VERSION: u32 = 1;
const RULE_PATH_BENEATH: u32 = 1;
/// Rights on files, of which version `index + 1` knows this many. Source: the kernel's `landlock.h`.
const FILE_RIGHTS: [u32; 5] = [13, 14, 15, 15, 16];
const RIGHT_EXECUTE: u64 = 1;
const RIGHT_IOCTL_DEVICE: u64 = 1 << 15;
/// Binding and connecting of TCP sockets.
const NETWORK_RIGHTS: u64 = 0b11;
const NETWORK_VERSION_MIN: u32 = 4;

#[repr(C)]
struct RulesetAttributes {
    files: u64,
    network: u64,
}

#[repr(C, packed)]
struct PathBeneath {
    allowed: u64,
    parent: i32,
}

/// The version of Landlock that the kernel has and this module can use.
#[must_use]
pub fn landlock_version() -> Option<u32> {
    // SAFETY: without attributes and with this flag the call only returns a number.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            std::ptr::null::<RulesetAttributes>(),
            0_usize,
            CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(version).ok().filter(|version| *version >= LANDLOCK_VERSION_MIN)
}

/// Puts the calling thread behind the walls, for good. Threads it starts are behind the same.
///
/// `directory` must have been opened for reading. The thread's umask is empty afterwards. Where the kernel has no
/// Landlock, see [`landlock_version`], the other walls stand. On error the thread must not go on.
pub fn enter(directory: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: only root, working directory and umask are no longer shared; no descriptor is concerned.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::FS) }?;
    rustix::process::fchdir(directory)?;
    rustix::process::chroot(c".")?;
    rustix::process::umask(Mode::empty());
    if let Some(version) = landlock_version() {
        restrict(directory, version)?;
    }
    let have = rustix::thread::capabilities(None)?;
    let sets = CapabilitySets {
        effective: have.effective & KEPT,
        permitted: have.permitted & (KEPT | AT_HAND),
        inheritable: CapabilitySet::empty(),
    };
    Ok(rustix::thread::set_capabilities(None, sets)?)
}

/// Runs `work`, which may set attributes of the `trusted.` class. The rest of the walls stands.
pub fn with_trusted_attributes<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let have = rustix::thread::capabilities(None)?;
    let raised = CapabilitySets { effective: have.effective | (have.permitted & AT_HAND), ..have };
    rustix::thread::set_capabilities(None, raised)?;
    let done = work();
    rustix::thread::set_capabilities(None, have)?;
    Ok(done)
}

fn restrict(directory: BorrowedFd<'_>, version: u32) -> io::Result<()> {
    let known = FILE_RIGHTS[(version as usize).clamp(1, FILE_RIGHTS.len()) - 1];
    let all = (1_u64 << known) - 1;
    let network = if version >= NETWORK_VERSION_MIN { NETWORK_RIGHTS } else { 0 };
    let attributes = RulesetAttributes { files: all, network };
    // Older kernels refuse what they do not know unless it is zero, as it is here.
    // SAFETY: the kernel reads as many bytes of the structure as it has, which lives until the call returns.
    let ruleset = unsafe {
        libc::syscall(libc::SYS_landlock_create_ruleset, &raw const attributes, size_of::<RulesetAttributes>(), 0_u32)
    };
    let ruleset = i32::try_from(checked(ruleset)?).map_err(io::Error::other)?;
    // SAFETY: the call has returned a new descriptor, which nobody else knows.
    let ruleset = unsafe { OwnedFd::from_raw_fd(ruleset) };
    let allowed = all & !(RIGHT_EXECUTE | RIGHT_IOCTL_DEVICE);
    let rule = PathBeneath { allowed, parent: directory.as_raw_fd() };
    // SAFETY: the kernel reads the structure, which lives until the call returns; both descriptors are open.
    let added = unsafe {
        libc::syscall(libc::SYS_landlock_add_rule, ruleset.as_raw_fd(), RULE_PATH_BENEATH, &raw const rule, 0_u32)
    };
    checked(added)?;
    rustix::thread::set_no_new_privs(true)?;
    // SAFETY: takes an open descriptor and no memory.
    let restricted = unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0_u32) };
    checked(restricted).map(drop)
}

fn checked(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::fs::{AtFlags, FileType, OFlags, XattrFlags};
    use rustix::io::Errno;

    use super::*;

    /// Runs `work` in a thread behind walls around `directory`.
    fn behind<T: Send>(directory: &Path, work: impl FnOnce(BorrowedFd<'_>) -> T + Send) -> T {
        let root = File::open(directory).expect("opens");
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                enter(root.as_fd()).expect("the walls stand");
                work(root.as_fd())
            });
            thread.join().expect("the thread ends")
        })
    }

    #[test]
    fn nothing_outside_is_reached_and_everything_inside_is() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: must run as root");
            return;
        }
        let base = tempfile::tempdir().expect("a directory");
        let (inside, outside) = (base.path().join("inside"), base.path().join("outside"));
        std::fs::create_dir_all(inside.join("a")).expect("made");
        std::fs::create_dir(&outside).expect("made");
        File::create(outside.join("file")).expect("made");
        symlink(&outside, inside.join("out")).expect("made");
        // Known to the thread, as any descriptor of the process is.
        let door = File::open(&outside).expect("opens");
        behind(&inside, |root| {
            let open = |at: BorrowedFd<'_>, path: &str, flags| {
                rustix::fs::openat(at, path, flags | OFlags::CLOEXEC, Mode::from_raw_mode(0o600)).map(drop)
            };
            let new = OFlags::WRONLY | OFlags::CREATE;
            for path in ["/etc/passwd", "/proc/self/status", "../outside/file", "out/file", "/../../../etc/passwd"] {
                assert_eq!(open(root, path, OFlags::RDONLY), Err(Errno::NOENT), "{path}");
            }
            let absolute = outside.join("file");
            assert_eq!(open(root, absolute.to_str().expect("text"), OFlags::RDONLY), Err(Errno::NOENT));
            assert_eq!(open(root, "a/file", new), Ok(()));
            rustix::fs::mkdirat(root, "b", Mode::from_raw_mode(0o777)).expect("makes directories");
            rustix::fs::linkat(root, "a/file", root, "b/link", AtFlags::empty()).expect("links across directories");
            rustix::fs::chownat(root, "a/file", Some(rustix::fs::Uid::from_raw(7)), None, AtFlags::empty())
                .expect("gives files away");
            rustix::fs::mknodat(root, "null", FileType::CharacterDevice, Mode::from_raw_mode(0o666), 0x103)
                .expect("makes devices");
            rustix::fs::unlinkat(root, "null", AtFlags::empty()).expect("removes");
            if landlock_version().is_some() {
                assert_eq!(open(door.as_fd(), "file", OFlags::RDONLY), Err(Errno::ACCESS));
                assert_eq!(open(door.as_fd(), "new", new), Err(Errno::ACCESS));
                let out = rustix::fs::linkat(root, "a/file", door.as_fd(), "stolen", AtFlags::empty());
                assert!(matches!(out, Err(Errno::XDEV | Errno::ACCESS)), "{out:?}");
            }
            if landlock_version() >= Some(NETWORK_VERSION_MIN) {
                assert!(std::net::TcpListener::bind("127.0.0.1:0").is_err());
            }
            // No way back through another change of root, nor to what belongs to others.
            assert_eq!(rustix::process::chroot(c"a"), Err(Errno::PERM));
            assert_eq!(rustix::mount::unmount("/", rustix::mount::UnmountFlags::DETACH), Err(Errno::PERM));
            let set = || rustix::fs::fsetxattr(root, "trusted.test", b"y", XattrFlags::empty());
            assert_eq!(set(), Err(Errno::PERM));
            assert!(matches!(with_trusted_attributes(set).expect("raises"), Ok(()) | Err(Errno::NOTSUP)));
            assert_eq!(rustix::process::chroot(c"a"), Err(Errno::PERM));
            // Modes are taken as given.
            assert_eq!(rustix::fs::statat(root, "b", AtFlags::empty()).expect("is there").st_mode & 0o7777, 0o777);
        });
        // This thread is where it was.
        File::open("/proc/self/status").expect("opens");
        assert_eq!(std::fs::read_dir(&outside).expect("lists").count(), 1);
    }
}
