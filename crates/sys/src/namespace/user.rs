//! Namespaces that belong to a user namespace of their own.
//!
//! The kernel lets no process with several threads make or enter a user namespace, so a forked child makes it. The
//! child runs no code of the program but system calls, waits until its namespaces are pinned, and ends. Dying in
//! between is harmless: the child sees the pipe close, ends, and what is not pinned is gone.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};

use rustix::pipe::PipeFlags;
use rustix::process::{Pid, WaitOptions};

use super::{
    Kind, PIN_STACK, PinError, Pins, Wanted, attach, check_but_kinds, on_fresh_thread, on_thread, open, unpin,
};
use crate::link;

/// Lines the kernel takes in a map (user_namespaces(7), since Linux 4.15).
const MAP_LINES_MAX: usize = 340;

/// A range of ids: `length` of them, from `inside` in the namespace, are those from `outside` on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    /// First id in the namespace.
    pub inside: u32,
    /// First id on the node.
    pub outside: u32,
    /// How many.
    pub length: u32,
}

/// Which ids a user namespace has.
#[derive(Debug, Clone, Copy)]
pub struct IdMaps<'a> {
    /// Of users. Must contain id 0, which sets up the namespaces.
    pub users: &'a [IdRange],
    /// Of groups. Must contain id 0.
    pub groups: &'a [IdRange],
}

/// Makes a user namespace with the given ids and, owned by it, the namespaces wanted; pins all of them.
///
/// Otherwise as [`super::pin`], but no other kind need be wanted; the user namespace is at `<dir>/userns/<name>` and the first in the pair.
/// Source: user_namespaces(7), Linux 3.8; CRI-O's `pinns --user`.
pub fn pin_with_user(
    dir: &Path,
    name: &str,
    wanted: &Wanted<'_>,
    maps: &IdMaps<'_>,
) -> Result<(PathBuf, Pins), PinError> {
    check_but_kinds(name, wanted)?;
    let mut child = Child::mapped(wanted, maps)?;
    let pid = child.pid.as_raw_nonzero();
    child.set_up(wanted)?;
    if wanted.kinds.net {
        let raised = open(Path::new(&format!("/proc/{pid}/ns/net")))
            .and_then(|namespace| on_fresh_thread(namespace.as_fd(), link::bring_up_loopback)?);
        raised.map_err(PinError::Loopback)?;
    }
    let mut made = Vec::new();
    for kind in std::iter::once(Kind::User).chain(wanted.kinds.iter()) {
        match attach(dir, name, kind, format!("/proc/{pid}/ns/{}", kind.proc_name())) {
            Ok(path) => made.push((kind, path)),
            Err(source) => {
                for (_, path) in made {
                    let _ = unpin(&path);
                }
                return Err(PinError::Attach { kind, path: dir.join(kind.directory()).join(name), source });
            }
        }
    }
    let mut take = |wanted: Kind| made.iter().position(|(kind, _)| *kind == wanted).map(|at| made.swap_remove(at).1);
    let pins = Pins { net: take(Kind::Net), ipc: take(Kind::Ipc), uts: take(Kind::Uts) };
    let user = take(Kind::User).expect("the user namespace is attached first");
    Ok((user, pins))
}

/// Makes a user namespace with the given ids that nobody is in: what id-mapped mounts are told their ids by.
///
/// It lasts as long as the descriptor, or a mount made with it. Source: user_namespaces(7), Linux 3.8.
pub fn make_user(maps: &IdMaps<'_>) -> Result<OwnedFd, PinError> {
    let child = Child::mapped(&Wanted::default(), maps)?;
    open(Path::new(&format!("/proc/{}/ns/user", child.pid.as_raw_nonzero()))).map_err(PinError::Thread)
}

fn write_map(path: &str, ranges: &[IdRange]) -> io::Result<()> {
    let line = |range: &IdRange| format!("{} {} {}\n", range.inside, range.outside, range.length);
    let text: String = ranges.iter().map(line).collect();
    // The kernel takes a map in one write, once.
    std::fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// A child that holds namespaces until this is dropped.
struct Child {
    pid: Pid,
    reports: File,
    /// A byte lets the child go on; closing lets it end.
    go: Option<OwnedFd>,
}

/// What the child does, prepared before there is a child: it must not allocate.
struct Plan {
    flags: libc::c_int,
    hostname: Option<CString>,
    sysctls: Vec<(CString, CString)>,
    reports: RawFd,
    go: RawFd,
    other_ends: [RawFd; 2],
}

impl Child {
    /// A child whose user namespace has its ids.
    fn mapped(wanted: &Wanted<'_>, maps: &IdMaps<'_>) -> Result<Self, PinError> {
        for ranges in [maps.users, maps.groups] {
            let has_root = ranges.iter().any(|range| range.inside == 0 && range.length > 0);
            if !has_root || ranges.len() > MAP_LINES_MAX {
                return Err(PinError::IdMap);
            }
        }
        let child = Self::start(wanted)?;
        let pid = child.pid.as_raw_nonzero();
        for (file, ranges) in [("gid_map", maps.groups), ("uid_map", maps.users)] {
            write_map(&format!("/proc/{pid}/{file}"), ranges).map_err(PinError::WriteIdMap)?;
        }
        Ok(child)
    }

    fn start(wanted: &Wanted<'_>) -> Result<Self, PinError> {
        let pipes = || -> io::Result<_> {
            Ok((rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?, rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?))
        };
        let ((reports, child_reports), (child_go, go)) = pipes().map_err(PinError::Thread)?;
        let text = |text: &str| CString::new(text).map_err(|_| PinError::Hostname(text.to_owned()));
        let hostname = wanted.hostname.filter(|_| wanted.kinds.uts).map(text).transpose()?;
        let pair = |sysctl: &super::Sysctl| Ok((text(&format!("/proc/sys/{}", sysctl.path()))?, text(sysctl.value())?));
        let plan = Plan {
            flags: libc::CLONE_NEWUSER | wanted.kinds.flags().bits().cast_signed(),
            hostname,
            sysctls: wanted.sysctls.iter().map(pair).collect::<Result<_, PinError>>()?,
            reports: child_reports.as_raw_fd(),
            go: child_go.as_raw_fd(),
            other_ends: [reports.as_raw_fd(), go.as_raw_fd()],
        };
        // On a thread with a small stack of its own: the child is a copy of the thread that forks.
        let forked = on_thread(PIN_STACK, || {
            // SAFETY: fork(2). The child is a copy of this thread alone; `run` makes system calls only, touches no lock
            // and no allocator, and never returns.
            match unsafe { libc::fork() } {
                0 => plan.run(),
                -1 => Err(io::Error::last_os_error()),
                pid => Ok(pid),
            }
        });
        let pid = forked.and_then(|forked| forked).map_err(PinError::Thread)?;
        let pid = Pid::from_raw(pid).ok_or_else(|| PinError::Thread(io::ErrorKind::Other.into()))?;
        drop((child_reports, child_go));
        let mut child = Self { pid, reports: File::from(reports), go: Some(go) };
        match child.report().map_err(PinError::Thread)? {
            0 => Ok(child),
            code => {
                let source = io::Error::from_raw_os_error(code);
                Err(PinError::Unshare { kinds: wanted.kinds, source })
            }
        }
    }

    /// The next number the child tells: 0, or an errno.
    fn report(&mut self) -> io::Result<i32> {
        let mut bytes = [0; 4];
        self.reports.read_exact(&mut bytes)?;
        Ok(i32::from_ne_bytes(bytes))
    }

    /// Lets the child set host name and sysctls as root of its user namespace.
    fn set_up(&mut self, wanted: &Wanted<'_>) -> Result<(), PinError> {
        if let Some(go) = &self.go {
            rustix::io::write(go, b"!").map_err(|errno| PinError::Thread(errno.into()))?;
        }
        if let Some(hostname) = wanted.hostname.filter(|_| wanted.kinds.uts) {
            let code = self.report().map_err(PinError::Thread)?;
            if code != 0 {
                let source = io::Error::from_raw_os_error(code);
                return Err(PinError::SetHostname { hostname: hostname.to_owned(), source });
            }
        }
        for sysctl in wanted.sysctls {
            let code = self.report().map_err(PinError::Thread)?;
            if code != 0 {
                let (key, value) = (sysctl.key().to_owned(), sysctl.value().to_owned());
                return Err(PinError::SetSysctl { key, value, source: io::Error::from_raw_os_error(code) });
            }
        }
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        self.go = None;
        // Whoever reaps every child of the daemon may have been faster.
        let _ = rustix::process::waitpid(Some(self.pid), WaitOptions::empty());
    }
}

impl Plan {
    /// The child's whole life. Signal-safe calls only.
    fn run(&self) -> ! {
        for fd in self.other_ends {
            // SAFETY: close(2) on descriptors of this copy of the process; the parent's are its own.
            unsafe { libc::close(fd) };
        }
        // SAFETY: unshare(2) takes a number; this process has one thread.
        self.tell(unsafe { libc::unshare(self.flags) });
        self.wait();
        // The raw calls: libc's would have other threads follow, and there are none.
        // SAFETY: setresgid(2) takes numbers.
        unsafe { libc::syscall(libc::SYS_setresgid, 0, 0, 0) };
        // SAFETY: setresuid(2) takes numbers. A failure of either shows in what follows.
        unsafe { libc::syscall(libc::SYS_setresuid, 0, 0, 0) };
        if let Some(hostname) = &self.hostname {
            // SAFETY: sethostname(2) reads that many bytes, which the string has.
            self.tell(unsafe { libc::sethostname(hostname.as_ptr(), hostname.count_bytes()) });
        }
        for (path, value) in &self.sysctls {
            // SAFETY: open(2) reads a string that ends with NUL.
            let fd = unsafe { libc::open(path.as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW) };
            if fd < 0 {
                self.tell(-1);
                continue;
            }
            // SAFETY: write(2) reads that many bytes, which the string has.
            let written = unsafe { libc::write(fd, value.as_ptr().cast(), value.count_bytes()) };
            self.tell(if written < 0 { -1 } else { 0 });
            // SAFETY: close(2) on the descriptor just opened.
            unsafe { libc::close(fd) };
        }
        self.wait();
        // SAFETY: _exit(2) runs no destructor and flushes nothing.
        unsafe { libc::_exit(0) }
    }

    /// Tells the parent 0 or errno.
    fn tell(&self, outcome: libc::c_int) {
        let code = if outcome < 0 { errno() } else { 0 };
        let bytes = code.to_ne_bytes();
        // SAFETY: write(2) reads four bytes of a local.
        unsafe { libc::write(self.reports, bytes.as_ptr().cast(), bytes.len()) };
    }

    /// Until the parent sends a byte, closes, or dies.
    fn wait(&self) {
        let mut byte = 0_u8;
        // SAFETY: read(2) writes at most one byte into a local.
        while unsafe { libc::read(self.go, (&raw mut byte).cast(), 1) } < 0 {
            if errno() != libc::EINTR {
                break;
            }
        }
    }
}

/// Reads a number; makes no error object.
fn errno() -> libc::c_int {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}
