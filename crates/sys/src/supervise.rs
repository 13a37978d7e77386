//! What a supervisor of one foreign process needs: going into the background, starting a program with exactly three
//! descriptors, taking descriptors handed down by number, and reading signals from a descriptor.
//!
//! Promises: a program started by [`spawn`] sees descriptors 0 to 2 and no other, an empty signal mask and default
//! dispositions, and cannot outlive the thread that started it if a death signal is asked for.
//! Must not know: which program it is, or why.

use std::ffi::{CStr, CString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal};

/// Which side of a [`fork_single_threaded`] the caller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Forked {
    /// The old process; the new one has this id.
    Parent(Pid),
    /// The new process.
    Child,
}

fn last_error() -> io::Error {
    io::Error::last_os_error()
}

/// Doubles the calling process (fork(2), any kernel).
///
/// Refused with `InvalidInput` when the process has more than one thread: locks held by the others would stay locked in
/// the child for ever.
pub fn fork_single_threaded() -> io::Result<Forked> {
    if std::fs::read_dir("/proc/self/task")?.count() != 1 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "only a process of one thread can be forked"));
    }
    // SAFETY: there is one thread, as was just counted, so no lock is held by a thread that the child lacks and the child
    // may run any code.
    let result = unsafe { libc::fork() };
    match result {
        -1 => Err(last_error()),
        0 => Ok(Forked::Child),
        pid => match Pid::from_raw(pid) {
            Some(pid) => Ok(Forked::Parent(pid)),
            None => Err(io::Error::other("fork returned no process id")),
        },
    }
}

/// Takes over a descriptor that the parent process left open under an agreed number, and marks it close-on-exec
/// (fcntl(2), any kernel).
///
/// Errors: `InvalidInput` for 0 to 2, which are never owned, and for a descriptor that is already close-on-exec, which
/// therefore was opened by this process or taken before; `EBADF` when there is none.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number <= libc::STDERR_FILENO {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "a standard descriptor cannot be taken over"));
    }
    // SAFETY: F_GETFD takes no argument and touches no memory; a number that is not open gives EBADF.
    let flags = unsafe { libc::fcntl(number, libc::F_GETFD) };
    if flags == -1 {
        return Err(last_error());
    }
    if flags & libc::FD_CLOEXEC != 0 {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the descriptor was not inherited"));
    }
    // SAFETY: F_SETFD takes an int and touches no memory.
    if unsafe { libc::fcntl(number, libc::F_SETFD, flags | libc::FD_CLOEXEC) } == -1 {
        return Err(last_error());
    }
    // SAFETY: the descriptor is open. It was not close-on-exec, so it came through execve(2); everything that the standard
    // library and this workspace open is close-on-exec, so nobody else owns it, and now that it is marked it cannot be
    // taken twice.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// A program to start. All strings are final: nothing is looked up in `PATH`.
#[derive(Debug)]
pub struct Program<'a> {
    /// Absolute path of the executable.
    pub path: &'a CStr,
    /// Arguments, the name of the program first.
    pub args: &'a [CString],
    /// Environment, each `NAME=value`.
    pub env: &'a [CString],
    /// What becomes descriptors 0, 1 and 2.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Sent to the program when the thread that started it ends (prctl(2), `PR_SET_PDEATHSIG`).
    pub death_signal: Option<Signal>,
    /// Written to the new process' `oom_score_adj` before it executes the program; a refusal is ignored.
    pub oom_score_adj: Option<&'a CStr>,
}

/// Starts a program (fork(2), execve(2); close_range(2) needs Linux 5.9). The caller waits for it.
///
/// Errors: whatever kept the fork or the execve from succeeding; then no process is left behind.
pub fn spawn(program: &Program<'_>) -> io::Result<Pid> {
    let mut argv: Vec<*const libc::c_char> = program.args.iter().map(|arg| arg.as_ptr()).collect();
    argv.push(std::ptr::null());
    let mut envp: Vec<*const libc::c_char> = program.env.iter().map(|entry| entry.as_ptr()).collect();
    envp.push(std::ptr::null());
    let (report_read, report_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let parent = rustix::process::getpid();

    // SAFETY: the child calls only async-signal-safe functions (signal-safety(7)) until it executes the program or ends,
    // so this is sound even when other threads exist.
    let result = unsafe { libc::fork() };
    if result == 0 {
        become_program(program, &argv, &envp, report_write.as_raw_fd(), parent);
    }
    let Some(pid) = (if result > 0 { Pid::from_raw(result) } else { None }) else { return Err(last_error()) };
    drop(report_write);
    let mut errno = [0_u8; 4];
    match File::from(report_read).read_exact(&mut errno) {
        // The pipe was closed by a successful execve.
        Err(_) => Ok(pid),
        Ok(()) => {
            // The child is past saving and ends by itself; a failure to collect it leaves nothing to do.
            let _ = rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::empty());
            Err(io::Error::from_raw_os_error(i32::from_ne_bytes(errno)))
        }
    }
}

/// The child's side of [`spawn`]. Allocates nothing and takes no lock.
fn become_program(
    program: &Program<'_>,
    argv: &[*const libc::c_char],
    envp: &[*const libc::c_char],
    report: RawFd,
    parent: Pid,
) -> ! {
    let errno = match prepare(program, report, parent) {
        Ok(report) => {
            // SAFETY: path is a C string, argv and envp are null-terminated arrays of C strings; all outlive the call.
            unsafe { libc::execve(program.path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
            (last_errno(), report)
        }
        Err(errno) => (errno, report),
    };
    let bytes = errno.0.to_ne_bytes();
    // SAFETY: the buffer is valid for its length. A failed write means that the parent is gone.
    unsafe { libc::write(errno.1, bytes.as_ptr().cast(), bytes.len()) };
    // SAFETY: _exit runs no destructors and flushes nothing that belongs to the parent.
    unsafe { libc::_exit(127) }
}

fn last_errno() -> i32 {
    // Reads errno only; allocates nothing.
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn check(result: libc::c_int) -> Result<libc::c_int, i32> {
    if result == -1 { Err(last_errno()) } else { Ok(result) }
}

/// The lowest number that a descriptor kept during preparation may have, so that no standard one is overwritten.
const ABOVE_STDIO: libc::c_int = 3;

fn prepare(program: &Program<'_>, report: RawFd, parent: Pid) -> Result<RawFd, i32> {
    if let Some(signal) = program.death_signal {
        // SAFETY: PR_SET_PDEATHSIG takes a number and touches no memory.
        check(unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, signal.as_raw()) })?;
        if rustix::process::getppid() != Some(parent) {
            return Err(libc::ESRCH);
        }
    }
    // SAFETY: F_DUPFD_CLOEXEC takes a number and touches no memory.
    let report = check(unsafe { libc::fcntl(report, libc::F_DUPFD_CLOEXEC, ABOVE_STDIO) })?;
    let mut sources = [0; 3];
    for (source, fd) in sources.iter_mut().zip(program.stdio) {
        // SAFETY: as above. Copies above the standard numbers keep one target from overwriting another's source.
        *source = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, ABOVE_STDIO) })?;
    }
    for (target, source) in (0..).zip(sources) {
        // SAFETY: dup2 touches no memory; source is open. The copy is not close-on-exec.
        check(unsafe { libc::dup2(source, target) })?;
    }
    close_all_but(report)?;
    if let Some(score) = program.oom_score_adj {
        write_oom_score(score);
    }
    reset_signals()?;
    Ok(report)
}

fn close_all_but(kept: RawFd) -> Result<(), i32> {
    let kept = libc::c_uint::try_from(kept).map_err(|_| libc::EBADF)?;
    if kept > 3 {
        // SAFETY: close_range touches no memory; the child owns its copy of the table.
        check(unsafe { libc::close_range(3, kept - 1, 0) })?;
    }
    // SAFETY: as above.
    check(unsafe { libc::close_range(kept + 1, libc::c_uint::MAX, 0) })?;
    Ok(())
}

fn write_oom_score(score: &CStr) {
    // SAFETY: the path is a C string.
    let fd = unsafe { libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC) };
    if fd == -1 {
        return;
    }
    let bytes = score.to_bytes();
    // SAFETY: the buffer is valid for its length.
    unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
    // SAFETY: fd was opened above and is not used again.
    unsafe { libc::close(fd) };
}

fn reset_signals() -> Result<(), i32> {
    // Ignored signals stay ignored across execve: the Rust runtime ignores SIGPIPE, and whoever started this process may
    // have ignored others.
    for number in 1..=libc::SIGRTMAX() {
        // SAFETY: SIG_DFL is a valid disposition. Numbers that cannot be changed are refused, which changes nothing.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
    let empty = signal_set(&[]);
    // SAFETY: both pointers are valid or null as sigprocmask(2) allows.
    check(unsafe { libc::sigprocmask(libc::SIG_SETMASK, &raw const empty, std::ptr::null_mut()) })?;
    Ok(())
}

fn signal_set(signals: &[Signal]) -> libc::sigset_t {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: the pointer is valid for writes; sigemptyset initialises the whole set.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: initialised by the call above.
    let mut set = unsafe { set.assume_init() };
    for signal in signals {
        // SAFETY: the set is initialised and the signal number is valid by its type.
        unsafe { libc::sigaddset(&raw mut set, signal.as_raw()) };
    }
    set
}

/// Signals read from a descriptor instead of being delivered (signalfd(2), Linux 2.6.27).
#[derive(Debug)]
pub struct SignalFd {
    fd: OwnedFd,
}

impl SignalFd {
    /// Blocks the signals in the calling thread, and in threads it starts later, and collects them here. Non-blocking.
    pub fn block(signals: &[Signal]) -> io::Result<Self> {
        let set = signal_set(signals);
        // SAFETY: the set is initialised; the old mask is not wanted.
        let result = unsafe { libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut()) };
        if result != 0 {
            return Err(io::Error::from_raw_os_error(result));
        }
        // SAFETY: -1 asks for a new descriptor; the set is initialised.
        let fd = unsafe { libc::signalfd(-1, &raw const set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        if fd == -1 {
            return Err(last_error());
        }
        // SAFETY: signalfd just returned it, nobody else knows it.
        Ok(Self { fd: unsafe { OwnedFd::from_raw_fd(fd) } })
    }

    /// The number of one pending signal, which is then no longer pending; `None` when there is none.
    pub fn read(&self) -> io::Result<Option<i32>> {
        let mut record = [0_u8; std::mem::size_of::<libc::signalfd_siginfo>()];
        match rustix::io::read(&self.fd, &mut record) {
            Ok(length) if length == record.len() => {
                // ssi_signo is the first field of the structure: signalfd(2).
                let number = u32::from_ne_bytes([record[0], record[1], record[2], record[3]]);
                Ok(i32::try_from(number).ok())
            }
            Ok(_) | Err(rustix::io::Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

impl std::os::fd::AsFd for SignalFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        std::os::fd::AsFd::as_fd(&self.fd)
    }
}

/// How many seconds the local zone is ahead of UTC at a moment given in seconds since 1970 (localtime_r(3)).
///
/// Reads `TZ` and `/etc/localtime` anew, so a change of the machine's zone is seen. Zero when the moment has no calendar
/// date.
#[must_use]
pub fn local_offset_seconds(unix_seconds: i64) -> i64 {
    unsafe extern "C" {
        /// tzset(3); POSIX.
        safe fn tzset();
    }
    tzset();
    let mut broken_down = std::mem::MaybeUninit::<libc::tm>::zeroed();
    // SAFETY: both pointers are valid; the result is either null or the second pointer, then wholly written.
    let result = unsafe { libc::localtime_r(&raw const unix_seconds, broken_down.as_mut_ptr()) };
    if result.is_null() {
        return 0;
    }
    // SAFETY: localtime_r succeeded, so the structure is initialised (and was zeroed before).
    let broken_down = unsafe { broken_down.assume_init() };
    broken_down.tm_gmtoff
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    use rustix::process::{WaitOptions, waitpid};

    fn run(script: &str, death_signal: Option<Signal>) -> (String, Option<i32>) {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        let null = File::open("/dev/null").unwrap();
        // Without close-on-exec, as a careless library would leave it.
        let leak = rustix::io::dup(null.as_fd()).unwrap();
        let args = [c"sh".to_owned(), c"-c".to_owned(), CString::new(script).unwrap()];
        let env = [c"ONLY=this".to_owned(), c"PATH=/bin:/usr/bin".to_owned()];
        let pid = spawn(&Program {
            path: c"/bin/sh",
            args: &args,
            env: &env,
            stdio: [null.as_fd(), write.as_fd(), write.as_fd()],
            death_signal,
            oom_score_adj: Some(c"500"),
        })
        .unwrap();
        drop(write);
        drop(leak);
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        let (_, status) = waitpid(Some(pid), WaitOptions::empty()).unwrap().unwrap();
        (text, status.exit_status())
    }

    #[test]
    fn a_program_sees_three_descriptors_and_the_environment_given() {
        let look = "for n in $(seq 0 100); do [ -e /proc/$$/fd/$n ] && printf '%s ' $n; done; echo";
        let script = format!("{look}; echo $ONLY; cat /proc/self/oom_score_adj; exit 3");
        let (text, code) = run(&script, Some(Signal::KILL));
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("0 1 2 "), "{text}");
        assert_eq!(lines.next(), Some("this"));
        assert_eq!(lines.next(), Some("500"));
        assert_eq!(code, Some(3));
    }

    #[test]
    fn a_program_starts_with_default_signals() {
        let (text, _) = run("grep -E 'SigBlk|SigIgn' /proc/self/status", None);
        // Signals 32 and 33 belong to the C library, which lets nobody set them back.
        const RESERVED: u64 = 0b11 << 31;
        for line in text.lines() {
            let mask = line.split_whitespace().last().and_then(|mask| u64::from_str_radix(mask, 16).ok());
            assert_eq!(mask.map(|mask| mask & !RESERVED), Some(0), "{text}");
        }
    }

    #[test]
    fn a_missing_program_is_an_error_and_no_child() {
        let null = File::open("/dev/null").unwrap();
        let error = spawn(&Program {
            path: c"/nonexistent/program",
            args: &[],
            env: &[],
            stdio: [null.as_fd(), null.as_fd(), null.as_fd()],
            death_signal: None,
            oom_score_adj: None,
        })
        .unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENOENT));
    }

    #[test]
    fn only_an_inherited_descriptor_is_taken_and_only_once() {
        let null = File::open("/dev/null").unwrap();
        assert!(take_inherited(1).is_err());
        assert!(take_inherited(null.as_raw_fd()).is_err());
        assert_eq!(take_inherited(1_000_000).unwrap_err().raw_os_error(), Some(libc::EBADF));
        let (read, write) = rustix::pipe::pipe().unwrap();
        let number = std::os::fd::IntoRawFd::into_raw_fd(write);
        let taken = take_inherited(number).unwrap();
        assert!(take_inherited(number).is_err());
        File::from(taken).write_all(b"x").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }
}
