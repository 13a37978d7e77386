//! The loop: one thread, one epoll, one buffer. Everything that happens to a container while it lives passes here.

mod clients;
mod create;
mod ending;

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait, waitpid};
use sys::supervise::SignalFd;

use crate::attach::AttachSocket;
use crate::console::{self, ConsoleSocket};
use crate::control::{Control, ControlFifo, Fifo};
use crate::exit_record::{Destinations, Watcher, code_of};
use crate::log::{Logs, Stream};
use crate::oom::OomWatch;
use crate::options::{Options, Stdio, Task};
use crate::report::{Reporter, chain};
use crate::stdin::Stdin;
use crate::sync_pipe::SyncPipe;
use create::CreateError;

/// Bytes taken from the container at once. Fixed by the contract: a longer line becomes parts of this length, and an attach
/// packet is this long at most.
const READ_MAX: usize = 8192;

/// Time between attempts to wait for events when the kernel refuses.
const BROKEN_INTERVAL: Duration = Duration::from_millis(100);

/// Reads from a terminal before others get their turn.
const TERMINAL_READS: usize = 16;

/// Events taken at once.
const EVENTS_MAX: usize = 16;

const SIGNALS: u64 = 0;
const STDOUT: u64 = 1;
const STDERR: u64 = 2;
const STDIN: u64 = 3;
const ATTACH: u64 = 4;
const CTL: u64 = 5;
const WINSZ: u64 = 6;
const OOM: u64 = 7;
const CONSOLE: u64 = 8;
/// Clients have the numbers from here on.
const CLIENTS: u64 = 16;

/// Orphans of this process' descendants become its children from now on (prctl(2), `PR_SET_CHILD_SUBREAPER`).
pub(crate) fn become_subreaper() -> io::Result<()> {
    // Any process id means "on".
    Ok(rustix::process::set_child_subreaper(Some(rustix::process::getpid()))?)
}

/// Why the loop ended.
enum End {
    Exited(i32),
    TimedOut,
}

/// One container's monitor.
pub(crate) struct Supervisor {
    options: Options,
    reporter: Reporter,
    sync_pipe: SyncPipe,
    logs: Logs,
    null: OwnedFd,
    oom_score_adj: Option<CString>,
    /// One byte for the stream's number, then what was read.
    buffer: Box<[u8; 1 + READ_MAX]>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    stdin: Option<Stdin>,
    attach: Option<AttachSocket>,
    ctl: Option<ControlFifo>,
    winsz: Option<ControlFifo>,
    console: Option<ConsoleSocket>,
    /// Asked for before there was a terminal.
    early_size: Option<(u16, u16)>,
    oom: Option<OomWatch>,
    is_oom_recorded: bool,
    runtime: Option<Pid>,
    runtime_status: Option<WaitStatus>,
    /// What the runtime said on standard error while it ran.
    runtime_words: Vec<u8>,
    container: Option<Pid>,
    exit_code: Option<i32>,
    watcher: Option<Watcher>,
    deadline: Option<Instant>,
}

/// What the loop needs for its whole life.
struct Kernel {
    epoll: OwnedFd,
    signals: SignalFd,
}

impl Kernel {
    fn add(&self, fd: BorrowedFd<'_>, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        Ok(epoll::add(&self.epoll, fd, epoll::EventData::new_u64(token), flags)?)
    }

    /// Changes or makes an entry.
    fn arm(&self, fd: BorrowedFd<'_>, token: u64, flags: epoll::EventFlags) -> io::Result<()> {
        match epoll::modify(&self.epoll, fd, epoll::EventData::new_u64(token), flags) {
            Err(rustix::io::Errno::NOENT) => self.add(fd, token, flags),
            result => Ok(result?),
        }
    }

    /// Must come before the descriptor is closed if it has copies, which would keep the entry alive.
    fn remove(&self, fd: BorrowedFd<'_>) {
        // Not there is as good as removed.
        let _ = epoll::delete(&self.epoll, fd);
    }
}

impl Supervisor {
    pub(crate) fn new(
        options: Options,
        reporter: Reporter,
        sync_pipe: SyncPipe,
        logs: Logs,
        null: OwnedFd,
        oom_score_adj: Option<CString>,
    ) -> Self {
        Self {
            options,
            reporter,
            sync_pipe,
            logs,
            null,
            oom_score_adj,
            buffer: Box::new([0; 1 + READ_MAX]),
            stdout: None,
            stderr: None,
            stdin: None,
            attach: None,
            ctl: None,
            winsz: None,
            console: None,
            early_size: None,
            oom: None,
            is_oom_recorded: false,
            runtime: None,
            runtime_status: None,
            runtime_words: Vec::new(),
            container: None,
            exit_code: None,
            watcher: None,
            deadline: None,
        }
    }

    /// Creates the container, waits for its end and records it. Returns this process' exit code.
    pub(crate) fn run(mut self) -> u8 {
        match self.create() {
            Ok((kernel, pid)) => self.attend(&kernel, pid),
            Err(error) => {
                self.reporter.error("create the container", &error);
                let message = match &error {
                    CreateError::Runtime { message } => message.clone(),
                    other => chain(other).into_bytes(),
                };
                if let Err(error) = self.sync_pipe.tell_failed(&message) {
                    self.reporter.warn("tell the daemon", &error);
                }
                1
            }
        }
    }

    fn attend(mut self, kernel: &Kernel, pid: Pid) -> u8 {
        let destinations = Destinations::of(&self.options);
        match Watcher::start(pid, destinations.clone()) {
            Ok(watcher) => self.watcher = Some(watcher),
            Err(error) => self.reporter.warn("start the exit watcher", &error),
        }
        let raw_pid = pid.as_raw_nonzero().get();
        self.reporter.info(&format!("container process is {raw_pid}"));
        if !matches!(self.options.task, Task::Exec(_)) {
            self.watch_memory(kernel, pid);
        }
        if let Err(error) = self.sync_pipe.tell_created(raw_pid) {
            self.reporter.warn("tell the daemon", &error);
        }
        if let (Some(stdout), Stdio::Output | Stdio::Piped(_)) = (&self.stdout, self.options.stdio)
            && let Err(error) = kernel.add(stdout.as_fd(), STDOUT, epoll::EventFlags::IN)
        {
            self.reporter.error("watch standard output", &error);
        }
        self.deadline = self.options.timeout.map(|timeout| Instant::now() + timeout);
        // It may have ended before its pid was known.
        self.reap();
        let end = self.wait_for_end(kernel);
        self.finish(end, &destinations)
    }

    fn watch_memory(&mut self, kernel: &Kernel, pid: Pid) {
        match OomWatch::open(pid) {
            Ok(None) => {}
            Ok(Some(watch)) => match kernel.add(watch.as_fd(), OOM, epoll::EventFlags::IN) {
                Ok(()) => self.oom = Some(watch),
                Err(error) => self.reporter.warn("watch memory", &error),
            },
            Err(error) => self.reporter.warn("watch memory", &error),
        }
    }

    fn wait_for_end(&mut self, kernel: &Kernel) -> End {
        loop {
            if let Some(code) = self.exit_code {
                return End::Exited(code);
            }
            let now = Instant::now();
            if self.deadline.is_some_and(|deadline| now >= deadline) {
                return End::TimedOut;
            }
            if self.oom.as_mut().is_some_and(|watch| watch.look(now)) {
                self.record_oom();
            }
            let next = self.deadline.into_iter().chain(self.oom.as_ref().and_then(OomWatch::next_look)).min();
            if let Err(error) = self.turn(kernel, next) {
                // Nothing but a broken kernel interface gets here; not turning in circles is all that is left.
                self.reporter.error("wait for events", &error);
                std::thread::sleep(BROKEN_INTERVAL);
                self.reap();
            }
        }
    }

    /// Waits for events until a moment, and handles them.
    fn turn(&mut self, kernel: &Kernel, until: Option<Instant>) -> io::Result<()> {
        let timeout = until.map(|until| {
            let left = until.saturating_duration_since(Instant::now());
            rustix::time::Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: left.subsec_nanos().into() }
        });
        let nothing = epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };
        let mut events = [nothing; EVENTS_MAX];
        let count = match epoll::wait(&kernel.epoll, &mut events[..], timeout.as_ref()) {
            Ok(count) => count,
            Err(rustix::io::Errno::INTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in &events[..count] {
            match event.data.u64() {
                SIGNALS => self.handle_signals(kernel),
                STDOUT if self.options.stdio == Stdio::Terminal => self.read_terminal(kernel),
                STDOUT => self.read_pipe(kernel, STDOUT),
                STDERR if self.container.is_none() => self.hear_runtime(),
                STDERR => self.read_pipe(kernel, STDERR),
                STDIN => self.continue_stdin(kernel),
                ATTACH => self.accept_client(kernel),
                CTL => self.handle_control(Fifo::Ctl),
                WINSZ => self.handle_control(Fifo::Winsz),
                OOM => {
                    if let Some(watch) = &mut self.oom {
                        watch.acknowledge(Instant::now());
                    }
                }
                CONSOLE => {
                    if let Err(error) = self.receive_terminal(kernel) {
                        self.reporter.warn("receive the terminal", &error);
                    }
                }
                client => {
                    let place = usize::try_from(client.saturating_sub(CLIENTS)).unwrap_or(usize::MAX);
                    self.serve_client(kernel, place);
                }
            }
        }
        Ok(())
    }

    fn handle_signals(&mut self, kernel: &Kernel) {
        loop {
            match kernel.signals.read() {
                Ok(Some(number)) if number == Signal::CHILD.as_raw() => self.reap(),
                Ok(Some(number)) => self.forward(number),
                Ok(None) => return,
                Err(error) => {
                    self.reporter.warn("read signals", &error);
                    return;
                }
            }
        }
    }

    fn forward(&self, number: i32) {
        let signal = [Signal::TERM, Signal::INT, Signal::QUIT].into_iter().find(|signal| signal.as_raw() == number);
        // Neither is collected while its id is kept, so the number cannot belong to another process.
        let target = if self.exit_code.is_none() { self.container.or(self.runtime) } else { None };
        if let (Some(signal), Some(target)) = (signal, target)
            && let Err(error) = kill_process(target, signal)
        {
            self.reporter.warn("forward a signal", &error);
        }
    }

    /// Collects children that ended. While the runtime runs only the runtime: the container may end before its pid is known,
    /// and must still be there to be asked.
    fn reap(&mut self) {
        if let Some(runtime) = self.runtime {
            if let Ok(Some((_, status))) = waitpid(Some(runtime), WaitOptions::NOHANG) {
                (self.runtime, self.runtime_status) = (None, Some(status));
            }
            return;
        }
        let Some(container) = self.container else { return };
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid == container {
                let code = code_of(status);
                self.exit_code = Some(code);
                if let Some(watcher) = &self.watcher {
                    watcher.tell_code(code);
                }
            }
        }
    }

    /// Reads once and hands on. `Ok(0)` is the end.
    fn pass_on(&mut self, token: u64) -> rustix::io::Result<usize> {
        let (fd, stream) =
            if token == STDERR { (&self.stderr, Stream::Stderr) } else { (&self.stdout, Stream::Stdout) };
        let Some(fd) = fd else { return Ok(0) };
        let length = rustix::io::read(fd, &mut self.buffer[1..])?;
        if length > 0 {
            self.buffer[0] = stream as u8;
            self.logs.write(stream, &self.buffer[1..=length], &self.reporter);
            if let Some(attach) = &mut self.attach {
                attach.broadcast(&self.buffer[..=length]);
            }
        }
        Ok(length)
    }

    fn read_pipe(&mut self, kernel: &Kernel, token: u64) {
        match self.pass_on(token) {
            Ok(1..) | Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {}
            Ok(0) | Err(_) => {
                let fd = if token == STDERR { self.stderr.take() } else { self.stdout.take() };
                if let Some(fd) = fd {
                    kernel.remove(fd.as_fd());
                }
            }
        }
    }

    /// A terminal that nobody holds open gives an error until somebody opens it again, so it is never closed here. It is
    /// watched for changes only, else it would be reported without end.
    fn read_terminal(&mut self, kernel: &Kernel) {
        for _ in 0..TERMINAL_READS {
            match self.pass_on(STDOUT) {
                Ok(1..) | Err(rustix::io::Errno::INTR) => {}
                Ok(0) | Err(_) => return,
            }
        }
        if let Some(terminal) = &self.stdout
            && let Err(error) = kernel.arm(terminal.as_fd(), STDOUT, epoll::EventFlags::IN | epoll::EventFlags::ET)
        {
            self.reporter.error("watch the terminal", &error);
        }
    }

    fn handle_control(&mut self, fifo: Fifo) {
        let source = match fifo {
            Fifo::Ctl => &mut self.ctl,
            Fifo::Winsz => &mut self.winsz,
        };
        let Some(source) = source else { return };
        let (logs, reporter) = (&mut self.logs, &self.reporter);
        let (stdio, terminal, early_size) = (self.options.stdio, &self.stdout, &mut self.early_size);
        let result = source.read(|control| match (control, stdio, terminal) {
            (Some(Control::ReopenLogs), _, _) => logs.reopen(reporter),
            (Some(Control::Resize { rows, columns }), Stdio::Terminal, Some(terminal)) => {
                if let Err(error) = console::resize(terminal.as_fd(), rows, columns) {
                    reporter.warn("resize the terminal", &error);
                }
            }
            (Some(Control::Resize { rows, columns }), Stdio::Terminal, None) => *early_size = Some((rows, columns)),
            (Some(Control::Resize { .. }), Stdio::Output | Stdio::Piped(_), _) => {}
            (None, _, _) => reporter.info("a line of a control fifo is no command"),
        });
        if let Err(error) = result {
            self.reporter.warn("read a control fifo", &error);
        }
    }
}
