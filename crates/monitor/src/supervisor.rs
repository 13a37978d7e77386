//! The loop: one thread, one epoll, one buffer. Everything that happens to a container while it lives passes here.

use std::ffi::{CStr, CString, NulError};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, epoll, poll};
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, kill_process_group, wait, waitpid};
use sys::supervise::{Program, SignalFd, spawn};
use thiserror::Error;

use crate::attach::{AttachSocket, BindError, Input, Received};
use crate::console::{self, ConsoleSocket};
use crate::control::{Control, ControlFifo, Fifo, OpenFifoError};
use crate::exit_record::{Destinations, Unrecorded, Watcher, code_of};
use crate::log::{Logs, Stream};
use crate::oom::OomWatch;
use crate::options::{OnStdinEnd, Options, Stdio, Task};
use crate::report::{Reporter, chain};
use crate::runtime;
use crate::stdin::{Progress, Stdin, set_nonblocking};
use crate::sync_pipe::{MESSAGE_MAX, SyncPipe};

/// Bytes taken from the container at once. Fixed by the contract: a longer line becomes parts of this length, and an attach
/// packet is this long at most.
const READ_MAX: usize = 8192;

/// How long output is read after the container's end. All of it is there by then; the bound is for a process that left the
/// container's process tree, still writes, and would keep the exit from being recorded.
pub(crate) const DRAIN_MAX: Duration = Duration::from_secs(2);

/// How long a terminal that is still held open by somebody may be silent before it counts as drained. The kernel moves what
/// was written to a terminal in the background, so an empty one may be about to be filled.
const TERMINAL_SILENCE: Duration = Duration::from_millis(100);

/// How long a killed process may take to end. Only one that hangs in the kernel takes longer than moments.
const KILLED_MAX: Duration = Duration::from_secs(1);

/// Time between looks at a killed process.
const KILLED_INTERVAL: Duration = Duration::from_millis(5);

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

/// Why there is no container. The daemon gets the whole chain, except that a runtime's own words are passed on as they are.
#[derive(Debug, Error)]
pub(crate) enum CreateError {
    #[error("prepare {what}")]
    Prepare {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error(transparent)]
    Attach(#[from] BindError),
    #[error(transparent)]
    Control(#[from] OpenFifoError),
    #[error("runtime command has a zero byte")]
    Command(#[source] NulError),
    #[error("start runtime {path}")]
    Spawn {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{}", String::from_utf8_lossy(message))]
    Runtime { message: Vec<u8> },
    #[error("read container pid from {path}")]
    Pidfile {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("process {pid} of the container is not a descendant of this monitor")]
    NotOurs { pid: i32 },
}

fn preparing<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> CreateError {
    move |error| CreateError::Prepare { what, source: error.into() }
}

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

    fn create(&mut self) -> Result<(Kernel, Pid), CreateError> {
        let wanted = [Signal::CHILD, Signal::TERM, Signal::INT, Signal::QUIT];
        let kernel = Kernel {
            signals: SignalFd::block(&wanted).map_err(preparing("signals"))?,
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC).map_err(preparing("epoll"))?,
        };
        let watching = || preparing("epoll");
        kernel.add(kernel.signals.as_fd(), SIGNALS, epoll::EventFlags::IN).map_err(watching())?;
        if !matches!(self.options.task, Task::Exec(_)) {
            self.open_doors(&kernel)?;
        }
        self.start_runtime(&kernel)?;
        while self.runtime_status.is_none() {
            self.turn(&kernel, None).map_err(watching())?;
        }
        self.judge_runtime()?;
        if self.options.stdio == Stdio::Terminal && self.stdout.is_none() {
            // It connected, and ended before its connection was seen.
            self.receive_terminal(&kernel)?;
        }
        self.console = None;
        let pid = self.read_pid()?;
        self.container = Some(pid);
        Ok((kernel, pid))
    }

    /// Ways for others to reach a container: not for an exec, which has a caller that waits.
    fn open_doors(&mut self, kernel: &Kernel) -> Result<(), CreateError> {
        let link = match (&self.options.socket_dir, self.options.has_full_attach) {
            (Some(directory), false) => Some((directory.as_path(), self.options.cuuid.as_os_str())),
            (Some(_), true) | (None, _) => None,
        };
        let readable = epoll::EventFlags::IN;
        let attach = AttachSocket::bind(&self.options.bundle, link)?;
        kernel.add(attach.listener(), ATTACH, readable).map_err(preparing("attach socket"))?;
        self.attach = Some(attach);
        let ctl = ControlFifo::open(&self.options.bundle, Fifo::Ctl)?;
        kernel.add(ctl.as_fd(), CTL, readable).map_err(preparing("control fifo"))?;
        self.ctl = Some(ctl);
        let winsz = ControlFifo::open(&self.options.bundle, Fifo::Winsz)?;
        kernel.add(winsz.as_fd(), WINSZ, readable).map_err(preparing("control fifo"))?;
        self.winsz = Some(winsz);
        Ok(())
    }

    fn start_runtime(&mut self, kernel: &Kernel) -> Result<(), CreateError> {
        let pipe = || pipe_with(PipeFlags::CLOEXEC).map_err(preparing("pipes"));
        let (stderr, stderr_theirs) = pipe()?;
        set_nonblocking(&stderr).map_err(preparing("pipes"))?;
        kernel.add(stderr.as_fd(), STDERR, epoll::EventFlags::IN).map_err(preparing("pipes"))?;
        self.stderr = Some(stderr);
        let mut stdin_theirs = None;
        let mut stdout_theirs = None;
        match self.options.stdio {
            Stdio::Terminal => {
                let console = ConsoleSocket::bind().map_err(preparing("console socket"))?;
                kernel.add(console.as_fd(), CONSOLE, epoll::EventFlags::IN).map_err(preparing("console socket"))?;
                self.console = Some(console);
            }
            stdio @ (Stdio::Output | Stdio::Piped(_)) => {
                if let Stdio::Piped(on_end) = stdio {
                    let (theirs, ours) = pipe()?;
                    set_nonblocking(&ours).map_err(preparing("pipes"))?;
                    self.stdin = Some(Stdin::new(ours, on_end));
                    stdin_theirs = Some(theirs);
                }
                let (ours, theirs) = pipe()?;
                set_nonblocking(&ours).map_err(preparing("pipes"))?;
                self.stdout = Some(ours);
                stdout_theirs = Some(theirs);
            }
        }
        let words = runtime::command(&self.options, self.console.as_ref().map(ConsoleSocket::path));
        let args = runtime::c_strings(words).map_err(CreateError::Command)?;
        let spawned = spawn(&Program {
            path: args.first().map_or(c"", CString::as_c_str),
            args: &args,
            env: &runtime::environment(),
            stdio: [
                stdin_theirs.as_ref().unwrap_or(&self.null).as_fd(),
                stdout_theirs.as_ref().unwrap_or(&self.null).as_fd(),
                stderr_theirs.as_fd(),
            ],
            death_signal: Some(Signal::KILL),
            oom_score_adj: self.oom_score_adj.as_deref(),
        });
        let path = || self.options.runtime.to_string_lossy().into_owned();
        self.runtime = Some(spawned.map_err(|source| CreateError::Spawn { path: path(), source })?);
        Ok(())
    }

    /// Reads what the runtime says while it runs, so that it cannot block. Its words are the error if it fails, and go to the
    /// log if it does not, as conmon has it; more of them than an error can hold go to the log at once.
    fn hear_runtime(&mut self) {
        let Some(stderr) = &self.stderr else { return };
        let length = self.runtime_words.len();
        if length == MESSAGE_MAX {
            if self.pass_on(STDERR) == Ok(0) {
                self.stderr = None;
            }
            return;
        }
        self.runtime_words.resize(MESSAGE_MAX, 0);
        let read = rustix::io::read(stderr, &mut self.runtime_words[length..]);
        self.runtime_words.truncate(length + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => self.stderr = None,
            Ok(_) if self.runtime_words.len() == MESSAGE_MAX => {
                self.logs.write(Stream::Stderr, &self.runtime_words, &self.reporter);
            }
            Ok(_) | Err(_) => {}
        }
    }

    fn judge_runtime(&mut self) -> Result<(), CreateError> {
        let Some(status) = self.runtime_status.take() else { return Ok(()) };
        let code = code_of(status);
        if code == 0 {
            if self.runtime_words.len() < MESSAGE_MAX && !self.runtime_words.is_empty() {
                self.logs.write(Stream::Stderr, &self.runtime_words, &self.reporter);
            }
            self.runtime_words = Vec::new();
            return Ok(());
        }
        loop {
            let length = self.runtime_words.len();
            self.hear_runtime();
            if self.runtime_words.len() == length {
                break;
            }
        }
        let mut message = std::mem::take(&mut self.runtime_words);
        if message.is_empty() {
            message = format!("runtime ended with code {code} and said nothing").into_bytes();
        }
        Err(CreateError::Runtime { message })
    }

    fn read_pid(&self) -> Result<Pid, CreateError> {
        let path = &self.options.container_pidfile;
        let failed = |source| CreateError::Pidfile { path: path.to_string_lossy().into_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let number = text.trim().parse::<i32>().ok().filter(|number| *number > 1).and_then(Pid::from_raw);
        let pid = number.ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "not a process id")))?;
        let look = rustix::process::WaitIdOptions::EXITED
            | rustix::process::WaitIdOptions::NOWAIT
            | rustix::process::WaitIdOptions::NOHANG;
        match rustix::process::waitid(rustix::process::WaitId::Pid(pid), look) {
            Ok(_) => Ok(pid),
            Err(_) => Err(CreateError::NotOurs { pid: pid.as_raw_nonzero().get() }),
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
                std::thread::sleep(TERMINAL_SILENCE);
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

    fn receive_terminal(&mut self, kernel: &Kernel) -> Result<(), CreateError> {
        let Some(console) = &self.console else { return Ok(()) };
        let received = console.receive().map_err(preparing("the terminal"))?;
        let Some(terminal) = received else {
            return match self.runtime {
                Some(_) => Ok(()),
                None => Err(preparing("the terminal")(io::Error::other("the runtime sent none"))),
            };
        };
        if let Some((rows, columns)) = self.early_size.take()
            && let Err(error) = console::resize(terminal.as_fd(), rows, columns)
        {
            self.reporter.warn("resize the terminal", &error);
        }
        let writer = terminal.try_clone().map_err(preparing("the terminal"))?;
        kernel
            .arm(terminal.as_fd(), STDOUT, epoll::EventFlags::IN | epoll::EventFlags::ET)
            .map_err(preparing("the terminal"))?;
        self.stdin = Some(Stdin::new(writer, OnStdinEnd::KeepOpen));
        self.stdout = Some(terminal);
        Ok(())
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

    fn accept_client(&mut self, kernel: &Kernel) {
        let Some(attach) = &mut self.attach else { return };
        match attach.accept() {
            Ok(Some(place)) => self.arm_client(kernel, place),
            Ok(None) => {}
            Err(error) => self.reporter.warn("accept an attach client", &error),
        }
    }

    /// One event, then the client is silent until it is armed again: so nothing is read from it while the container does not
    /// read, and one that hung up cannot keep the loop busy.
    fn arm_client(&mut self, kernel: &Kernel, place: usize) {
        if self.stdin.as_ref().is_some_and(Stdin::is_blocked) {
            return;
        }
        let Some(attach) = &mut self.attach else { return };
        let Some((fd, input)) = attach.client(place) else { return };
        let flags = match input {
            Input::Unused | Input::Used => epoll::EventFlags::IN | epoll::EventFlags::ONESHOT,
            Input::Ended => epoll::EventFlags::ONESHOT,
        };
        if let Err(error) = kernel.arm(fd, CLIENTS + place as u64, flags) {
            self.reporter.warn("watch an attach client", &error);
            attach.drop_client(place);
        }
    }

    fn serve_client(&mut self, kernel: &Kernel, place: usize) {
        let Some(attach) = &mut self.attach else { return };
        match attach.client(place) {
            None => return,
            // Only its hanging up is reported any more.
            Some((_, Input::Ended)) => {
                attach.drop_client(place);
                return;
            }
            Some((_, Input::Unused | Input::Used)) => {}
        }
        let received = match &mut self.stdin {
            Some(stdin) if stdin.is_blocked() => return,
            Some(stdin) => attach.receive(place, stdin.packet()),
            // Nobody wants it, but the client must not be kept waiting.
            None => attach.receive(place, &mut self.buffer[..]),
        };
        // The first client that wrote and leaves takes standard input with it, others notwithstanding, as conmon has it and
        // as Kubernetes documents stdinOnce. One that only watched does so only if it is the last.
        let is_last = attach.clients().all(|(_, _, input)| input == Input::Ended);
        let progress = match (received, &mut self.stdin) {
            (Received::Bytes(length), Some(stdin)) => stdin.accept(length),
            (Received::End(before), Some(stdin)) if before == Input::Used || is_last => stdin.end(),
            (Received::Bytes(_) | Received::Nothing | Received::End(_), _) => Progress::Idle,
        };
        self.arm_client(kernel, place);
        self.after_stdin(kernel, progress);
    }

    fn continue_stdin(&mut self, kernel: &Kernel) {
        let Some(stdin) = &mut self.stdin else { return };
        let progress = stdin.write();
        self.after_stdin(kernel, progress);
        if progress == Progress::Blocked {
            return;
        }
        for place in 0..crate::attach::CLIENTS_MAX {
            self.arm_client(kernel, place);
        }
    }

    fn after_stdin(&mut self, kernel: &Kernel, progress: Progress) {
        match (progress, &self.stdin) {
            (Progress::Blocked, Some(stdin)) => {
                if let Err(error) =
                    kernel.arm(stdin.as_fd(), STDIN, epoll::EventFlags::OUT | epoll::EventFlags::ONESHOT)
                {
                    self.reporter.error("watch standard input", &error);
                }
            }
            (Progress::Finished, Some(stdin)) => {
                kernel.remove(stdin.as_fd());
                self.stdin = None;
            }
            (Progress::Idle | Progress::Blocked | Progress::Finished, _) => {}
        }
    }

    /// Tells the daemon by an empty file why the container will have ended.
    fn record_oom(&mut self) {
        if self.is_oom_recorded {
            return;
        }
        self.is_oom_recorded = true;
        self.reporter.info("out of memory");
        for directory in self.options.persist_dir.iter().chain([&self.options.bundle]) {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::CLOEXEC;
            if let Err(error) = openat(CWD, directory.join("oom"), flags, Mode::from_raw_mode(0o644)) {
                self.reporter.warn("record that memory ran out", &error);
            }
        }
    }

    /// Reads what the container left behind.
    fn drain(&mut self) {
        let give_up = Instant::now() + DRAIN_MAX;
        for token in [STDOUT, STDERR] {
            let is_terminal = token == STDOUT && self.options.stdio == Stdio::Terminal;
            while Instant::now() < give_up {
                match self.pass_on(token) {
                    Ok(1..) | Err(rustix::io::Errno::INTR) => {}
                    Err(rustix::io::Errno::AGAIN) if is_terminal && self.terminal_has_more() => {}
                    // For a pipe, nothing there means that nothing comes from what has ended.
                    Ok(0) | Err(_) => break,
                }
            }
        }
    }

    fn terminal_has_more(&self) -> bool {
        let Some(terminal) = &self.stdout else { return false };
        let silence = rustix::time::Timespec { tv_sec: 0, tv_nsec: TERMINAL_SILENCE.subsec_nanos().into() };
        poll(&mut [PollFd::new(terminal, PollFlags::IN)], Some(&silence)).is_ok_and(|count| count > 0)
    }

    fn finish(mut self, end: End, destinations: &Destinations) -> u8 {
        let (code, message) = match end {
            End::Exited(code) => {
                self.drain();
                (code, None)
            }
            End::TimedOut => {
                self.kill_container();
                if let Some(watcher) = &self.watcher {
                    watcher.tell_code(-1);
                }
                (-1, Some(&b"command timed out"[..]))
            }
        };
        self.reporter.info(&format!("container ended with code {code}"));
        if self.oom.as_mut().is_some_and(OomWatch::has_killed) {
            self.record_oom();
        }
        let unrecorded = destinations.record(code);
        for error in unrecorded.errors() {
            self.reporter.error("record the exit", error);
        }
        if let Some(watcher) = &self.watcher {
            watcher.tell_recorded();
        }
        if matches!(self.options.task, Task::Exec(_))
            && let Err(error) = self.sync_pipe.tell_exited(code, message)
        {
            self.reporter.warn("tell the daemon", &error);
        }
        self.attach = None;
        if self.options.is_log_synced {
            self.logs.sync(&self.reporter);
        }
        // A log that filled the disk and was deleted gives its room back only when it is closed.
        self.logs.close();
        self.retry(unrecorded);
        self.run_exit_command();
        // The lowest eight bits are all that a parent sees.
        u8::try_from(code.rem_euclid(256)).unwrap_or(u8::MAX)
    }

    fn retry(&self, unrecorded: Unrecorded) {
        if let Err(error) = unrecorded.retry() {
            self.reporter.error("record the exit at last", &error);
        }
    }

    /// Its whole process group, because what it started would keep its output open.
    fn kill_container(&self) {
        let Some(container) = self.container else { return };
        let group = rustix::process::getpgid(Some(container)).ok();
        let foreign = group.filter(|group| group.as_raw_nonzero().get() > 1 && *group != rustix::process::getpgrp());
        let killed = match foreign {
            Some(group) => kill_process_group(group, Signal::KILL),
            None => kill_process(container, Signal::KILL),
        };
        if let Err(error) = killed {
            self.reporter.warn("kill the container after its timeout", &error);
            return;
        }
        // Who inherits it may be slow to collect it, and until then the container that it ran in cannot end.
        let give_up = Instant::now() + KILLED_MAX;
        while let Ok(None) = waitpid(Some(container), WaitOptions::NOHANG)
            && Instant::now() < give_up
        {
            std::thread::sleep(KILLED_INTERVAL);
        }
    }

    fn run_exit_command(&self) {
        std::thread::sleep(self.options.exit_delay);
        let Some(command) = &self.options.exit_command else { return };
        let words = [&[command.path.clone()], &command.args[..]].concat();
        let Ok(args) = runtime::c_strings(words) else { return };
        let null = self.null.as_fd();
        let spawned = spawn(&Program {
            path: args.first().map_or(c"", |path: &CString| -> &CStr { path }),
            args: &args,
            env: &runtime::environment(),
            stdio: [null, null, null],
            death_signal: None,
            oom_score_adj: self.oom_score_adj.as_deref(),
        });
        match spawned {
            Ok(pid) => {
                if let Err(error) = waitpid(Some(pid), WaitOptions::empty()) {
                    self.reporter.warn("wait for the exit command", &error);
                }
            }
            Err(error) => self.reporter.error("start the exit command", &error),
        }
    }
}
