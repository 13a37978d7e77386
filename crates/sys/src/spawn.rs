//! Starting a program without copying the daemon: `posix_spawn`, exact descriptors, and a pidfd to wait for.
//!
//! glibc implements posix_spawn(3) with `CLONE_VM | CLONE_VFORK`, so the cost does not grow with the daemon's memory.
//! pidfd_open(2) needs Linux 5.3, waitid(2) with `P_PIDFD` 5.4.

use std::ffi::{CString, OsStr};
use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{io, mem, ptr};

use rustix::process::{Pid, PidfdFlags, Signal, WaitId, WaitIdOptions};

use crate::affinity;

/// Sources are first moved up here, so that no target number is overwritten before it has been copied.
const SOURCE_MIN: RawFd = 32;

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl ExitStatus {
    /// Whether it returned 0.
    #[must_use]
    pub const fn is_success(self) -> bool {
        matches!(self, Self::Code(0))
    }

    /// The code, or 128 + signal.
    #[must_use]
    pub const fn as_code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl std::fmt::Display for ExitStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit status {code}"),
            Self::Signal(signal) => write!(f, "signal {signal}"),
        }
    }
}

/// A program about to be started. It inherits no environment and no descriptor that is not named here.
#[derive(Debug)]
pub struct Command {
    program: CString,
    arguments: Vec<CString>,
    environment: Vec<CString>,
    descriptors: Vec<(OwnedFd, RawFd)>,
    directory: Option<CString>,
    has_own_group: bool,
    cpus: Vec<u32>,
    cgroups: Vec<PathBuf>,
}

fn c_string(text: &OsStr) -> io::Result<CString> {
    CString::new(text.as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in an argument, variable or path"))
}

impl Command {
    /// Names the program by path; it is also argument 0.
    pub fn new(program: &Path) -> io::Result<Self> {
        let program = c_string(program.as_os_str())?;
        Ok(Self {
            arguments: vec![program.clone()],
            program,
            environment: Vec::new(),
            descriptors: Vec::new(),
            directory: None,
            has_own_group: false,
            cpus: Vec::new(),
            cgroups: Vec::new(),
        })
    }

    /// Adds an argument.
    pub fn arg(&mut self, argument: impl AsRef<OsStr>) -> io::Result<&mut Self> {
        self.arguments.push(c_string(argument.as_ref())?);
        Ok(self)
    }

    /// Adds an environment entry `K=V`.
    pub fn env(&mut self, entry: impl AsRef<OsStr>) -> io::Result<&mut Self> {
        self.environment.push(c_string(entry.as_ref())?);
        Ok(self)
    }

    /// Gives the child a copy of `source` as descriptor `target`.
    pub fn descriptor(&mut self, source: BorrowedFd<'_>, target: RawFd) -> io::Result<&mut Self> {
        let source = rustix::io::fcntl_dupfd_cloexec(source, SOURCE_MIN)?;
        self.descriptors.push((source, target));
        Ok(self)
    }

    /// The child's working directory.
    pub fn current_dir(&mut self, directory: &Path) -> io::Result<&mut Self> {
        self.directory = Some(c_string(directory.as_os_str())?);
        Ok(self)
    }

    /// Puts the child into a process group of its own, so that a terminal's or supervisor's signals pass it by.
    pub fn own_process_group(&mut self) -> &mut Self {
        self.has_own_group = true;
        self
    }

    /// Lets it run on these CPUs alone. Threads and programs it starts inherit that.
    pub fn cpus(&mut self, cpus: impl IntoIterator<Item = u32>) -> &mut Self {
        self.cpus = cpus.into_iter().collect();
        self
    }

    /// Moves it, once it has begun, into the cgroups with these directories. What it starts within its first moments
    /// may stay outside.
    pub fn cgroups(&mut self, directories: Vec<PathBuf>) -> &mut Self {
        self.cgroups = directories;
        self
    }

    /// Starts it. Signals are unblocked and SIGPIPE acts as usual again in the child.
    ///
    /// Nothing of it is left when it cannot be put where it belongs.
    pub fn spawn(&self) -> io::Result<Child> {
        // CPUs that its cgroup has to itself are nobody else's to begin on.
        let (child, is_late) = match self.spawn_on_cpus() {
            Err(error) if !self.cgroups.is_empty() && error.kind() == io::ErrorKind::InvalidInput => {
                (self.spawn_here()?, true)
            }
            child => (child?, false),
        };
        let joined = self
            .join_cgroups(child.pid())
            .and_then(|()| if is_late { affinity::set_process(child.pid(), &self.cpus) } else { Ok(()) });
        if let Err(error) = joined {
            child.signal(Signal::KILL)?;
            let _ = rustix::process::waitid(WaitId::PidFd(child.pidfd.as_fd()), WaitIdOptions::EXITED);
            return Err(error);
        }
        Ok(child)
    }

    fn spawn_on_cpus(&self) -> io::Result<Child> {
        if self.cpus.is_empty() {
            return self.spawn_here();
        }
        // A child begins with the CPUs of the thread that starts it; this one has no other purpose.
        std::thread::scope(|scope| {
            let started = std::thread::Builder::new().name("spawn".to_owned()).spawn_scoped(scope, || {
                affinity::set(None, self.cpus.iter().copied())?;
                self.spawn_here()
            })?;
            started.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    fn join_cgroups(&self, pid: i32) -> io::Result<()> {
        for directory in &self.cgroups {
            let mut file = std::fs::File::options().write(true).open(directory.join("cgroup.procs"))?;
            match file.write_all(pid.to_string().as_bytes()) {
                // It has ended by itself.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(()),
                done => done?,
            }
        }
        Ok(())
    }

    fn spawn_here(&self) -> io::Result<Child> {
        let mut actions = FileActions::new()?;
        for (source, target) in &self.descriptors {
            actions.duplicate(source.as_raw_fd(), *target)?;
        }
        // Between the named ones nothing is open either: every descriptor the daemon opens is close-on-exec.
        let last = self.descriptors.iter().map(|(_, target)| *target).max().unwrap_or(2).max(2);
        actions.close_from(last + 1)?;
        if let Some(directory) = &self.directory {
            actions.change_directory(directory)?;
        }
        let attributes = Attributes::new(self.has_own_group)?;
        let arguments = pointers(&self.arguments);
        let environment = pointers(&self.environment);
        let mut pid: libc::pid_t = 0;
        // SAFETY: every pointer refers to memory that outlives the call: C strings owned by `self`, arrays ended by
        // null made above, and initialised action and attribute objects.
        let result = unsafe {
            libc::posix_spawn(
                &raw mut pid,
                self.program.as_ptr(),
                &raw const actions.0,
                &raw const attributes.0,
                arguments.as_ptr(),
                environment.as_ptr(),
            )
        };
        check(result)?;
        let pid = Pid::from_raw(pid).ok_or_else(|| io::Error::other("posix_spawn gave no pid"))?;
        // The child is ours and nobody has waited for it, so the pid cannot have been given to another process.
        let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Child { pid, pidfd })
    }
}

fn pointers(strings: &[CString]) -> Vec<*mut libc::c_char> {
    strings.iter().map(|string| string.as_ptr().cast_mut()).chain([ptr::null_mut()]).collect()
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(result)) }
}

struct FileActions(libc::posix_spawn_file_actions_t);

impl FileActions {
    fn new() -> io::Result<Self> {
        let mut actions = mem::MaybeUninit::uninit();
        // SAFETY: the pointer is valid for writes of the object that posix_spawn_file_actions_init(3) initialises.
        check(unsafe { libc::posix_spawn_file_actions_init(actions.as_mut_ptr()) })?;
        // SAFETY: initialised by the successful call above.
        Ok(Self(unsafe { actions.assume_init() }))
    }

    fn duplicate(&mut self, source: RawFd, target: RawFd) -> io::Result<()> {
        // SAFETY: the object is initialised; the descriptors are plain numbers to this call.
        check(unsafe { libc::posix_spawn_file_actions_adddup2(&raw mut self.0, source, target) })
    }

    fn close_from(&mut self, first: RawFd) -> io::Result<()> {
        // SAFETY: the object is initialised; glibc 2.34 closes with close_range(2) or one by one.
        check(unsafe { libc::posix_spawn_file_actions_addclosefrom_np(&raw mut self.0, first) })
    }

    fn change_directory(&mut self, directory: &CString) -> io::Result<()> {
        // SAFETY: the object is initialised and the path ends in NUL; glibc 2.29 copies it.
        check(unsafe { libc::posix_spawn_file_actions_addchdir_np(&raw mut self.0, directory.as_ptr()) })
    }
}

impl Drop for FileActions {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed only here.
        unsafe { libc::posix_spawn_file_actions_destroy(&raw mut self.0) };
    }
}

struct Attributes(libc::posix_spawnattr_t);

impl Attributes {
    fn new(has_own_group: bool) -> io::Result<Self> {
        let mut attributes = mem::MaybeUninit::uninit();
        // SAFETY: the pointer is valid for writes of the object that posix_spawnattr_init(3) initialises.
        check(unsafe { libc::posix_spawnattr_init(attributes.as_mut_ptr()) })?;
        // SAFETY: initialised by the successful call above.
        let mut attributes = Self(unsafe { attributes.assume_init() });
        let mut flags = libc::POSIX_SPAWN_SETSIGMASK | libc::POSIX_SPAWN_SETSIGDEF;
        if has_own_group {
            flags |= libc::POSIX_SPAWN_SETPGROUP;
        }
        let flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        let none = signal_set(&[])?;
        let pipe = signal_set(&[libc::SIGPIPE])?;
        // SAFETY: the object is initialised; the flags are the documented ones.
        check(unsafe { libc::posix_spawnattr_setflags(&raw mut attributes.0, flags) })?;
        // SAFETY: both objects are initialised.
        check(unsafe { libc::posix_spawnattr_setsigmask(&raw mut attributes.0, &raw const none) })?;
        // SAFETY: both objects are initialised.
        check(unsafe { libc::posix_spawnattr_setsigdefault(&raw mut attributes.0, &raw const pipe) })?;
        Ok(attributes)
    }
}

impl Drop for Attributes {
    fn drop(&mut self) {
        // SAFETY: initialised in `new` and destroyed only here.
        unsafe { libc::posix_spawnattr_destroy(&raw mut self.0) };
    }
}

fn signal_set(signals: &[libc::c_int]) -> io::Result<libc::sigset_t> {
    let mut set = mem::MaybeUninit::uninit();
    // SAFETY: the pointer is valid for writes of a signal set.
    if unsafe { libc::sigemptyset(set.as_mut_ptr()) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: initialised by the successful call above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: the set is initialised.
        if unsafe { libc::sigaddset(&raw mut set, *signal) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(set)
}

/// A started program. Whoever holds it must wait for it; a dropped one stays a zombie until the daemon ends.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
}

impl Child {
    /// Its process id, ours until it has been waited for.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    /// How it ended, or `None` while it runs.
    pub fn try_wait(&self) -> io::Result<Option<ExitStatus>> {
        reap(self.pidfd.as_fd())
    }

    /// Sends a signal; one that has ended already is not an error.
    pub fn signal(&self, signal: Signal) -> io::Result<()> {
        match rustix::process::pidfd_send_signal(&self.pidfd, signal) {
            Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Child {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// Sends a signal by its kernel number, 1 to 64, real-time ones included. pidfd_send_signal(2), Linux 5.1.
pub fn signal(pidfd: BorrowedFd<'_>, number: i32) -> io::Result<()> {
    if !(1..=64).contains(&number) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{number} is no signal")));
    }
    // SAFETY: the number is one the kernel has. Those reserved by the C library are only sent, never handled, here.
    let signal = unsafe { Signal::from_raw_unchecked(number) };
    Ok(rustix::process::pidfd_send_signal(pidfd, signal)?)
}

/// Collects a child that a pidfd refers to; `None` while it runs. Fails with `ECHILD` for somebody else's child.
pub fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<ExitStatus>> {
    let status = rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED | WaitIdOptions::NOHANG)?;
    Ok(status.map(|status| match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Code(-1),
    }))
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    fn wait(child: &Child) -> ExitStatus {
        let mut poll = [rustix::event::PollFd::new(child, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, None).expect("polls");
        child.try_wait().expect("waits").expect("has ended")
    }

    #[test]
    fn a_child_has_exactly_the_descriptors_and_variables_named() {
        let (mut reader, writer) = io::pipe().expect("a pipe");
        let null = std::fs::File::open("/dev/null").expect("opens");
        let mut command = Command::new(Path::new("/bin/sh")).expect("a command");
        command.arg("-c").expect("arg").arg("echo $A; echo /proc/$$/fd/*; pwd").expect("arg");
        command.env("A=b").expect("env").current_dir(Path::new("/usr")).expect("dir");
        command.descriptor(null.as_fd(), 0).expect("fd").descriptor(writer.as_fd(), 1).expect("fd");
        command.descriptor(writer.as_fd(), 2).expect("fd").descriptor(null.as_fd(), 5).expect("fd");
        let child = command.spawn().expect("spawns");
        drop((command, writer));
        let mut output = String::new();
        reader.read_to_string(&mut output).expect("reads");
        assert_eq!(wait(&child), ExitStatus::Code(0));
        let lines: Vec<&str> = output.lines().collect();
        assert_eq!((lines[0], lines[2]), ("b", "/usr"), "{output}");
        let mut numbers: Vec<i32> =
            lines[1].split(' ').filter_map(|path| path.rsplit('/').next()?.parse().ok()).collect();
        numbers.sort_unstable();
        // The directory the shell reads its answer from takes the lowest free number.
        assert_eq!(numbers, [0, 1, 2, 3, 5], "{output}");
    }

    #[test]
    fn a_missing_program_is_an_error_and_a_signal_is_told() {
        let error = Command::new(Path::new("/nonexistent")).expect("a command").spawn().expect_err("is missing");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let mut command = Command::new(Path::new("/bin/sleep")).expect("a command");
        command.arg("60").expect("arg");
        let child = command.spawn().expect("spawns");
        assert_eq!(child.try_wait().expect("waits"), None);
        child.signal(Signal::KILL).expect("kills");
        assert_eq!(wait(&child), ExitStatus::Signal(9));
        child.signal(Signal::KILL).expect("is not an error afterwards");
    }
}
