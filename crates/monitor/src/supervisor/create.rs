//! The first part of a container's life: the runtime makes it.

use std::ffi::{CString, NulError};
use std::io;
use std::os::fd::AsFd;

use rustix::event::epoll;
use rustix::pipe::{PipeFlags, pipe_with};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};
use sys::supervise::{Program, SignalFd, spawn};
use thiserror::Error;

use super::{ATTACH, CONSOLE, CTL, Kernel, SIGNALS, STDERR, STDOUT, Supervisor, WINSZ};
use crate::attach::{AttachSocket, BindError};
use crate::console::{self, ConsoleSocket};
use crate::control::{ControlFifo, Fifo, OpenFifoError};
use crate::exit_record::code_of;
use crate::log::Stream;
use crate::options::{OnStdinEnd, Stdio, Task};
use crate::runtime;
use crate::stdin::{Stdin, set_nonblocking};
use crate::sync_pipe::MESSAGE_MAX;

/// Why there is no container. The daemon gets the whole chain, except that a runtime's own words are passed on as they are.
#[derive(Debug, Error)]
pub(super) enum CreateError {
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

pub(super) fn preparing<E: Into<io::Error>>(what: &'static str) -> impl Fn(E) -> CreateError {
    move |error| CreateError::Prepare { what, source: error.into() }
}

impl Supervisor {
    pub(super) fn create(&mut self) -> Result<(Kernel, Pid), CreateError> {
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
    pub(super) fn open_doors(&mut self, kernel: &Kernel) -> Result<(), CreateError> {
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

    pub(super) fn start_runtime(&mut self, kernel: &Kernel) -> Result<(), CreateError> {
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
    pub(super) fn hear_runtime(&mut self) {
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

    pub(super) fn judge_runtime(&mut self) -> Result<(), CreateError> {
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

    pub(super) fn read_pid(&self) -> Result<Pid, CreateError> {
        let path = &self.options.container_pidfile;
        let failed = |source| CreateError::Pidfile { path: path.to_string_lossy().into_owned(), source };
        let text = std::fs::read_to_string(path).map_err(failed)?;
        let number = text.trim().parse::<i32>().ok().filter(|number| *number > 1).and_then(Pid::from_raw);
        let pid = number.ok_or_else(|| failed(io::Error::new(io::ErrorKind::InvalidData, "not a process id")))?;
        let look = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT | WaitIdOptions::NOHANG;
        match waitid(WaitId::Pid(pid), look) {
            Ok(_) => Ok(pid),
            Err(_) => Err(CreateError::NotOurs { pid: pid.as_raw_nonzero().get() }),
        }
    }

    pub(super) fn receive_terminal(&mut self, kernel: &Kernel) -> Result<(), CreateError> {
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
}
