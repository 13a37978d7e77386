//! Running a program in a container for a client that is there: its streams are handed out, it lives as long as the
//! session.
//!
//! A terminal is made by the runtime, which sends its master over a socket, so that nothing is between the program and
//! us that could lose its last words. Runtimes that do that only for detached programs (runc) get a terminal of ours
//! and copy to it themselves.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use domain::container::Process;
use domain::id::ContainerId;
use rustix::fs::{CWD, Mode, OFlags};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use rustix::pty::OpenptFlags;
use rustix::termios::{OptionalActions, Winsize};
use sys::spawn::{Command, ExitStatus};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::net::{UnixListener, UnixStream};

use crate::child::{self, Waiting, printed};
use crate::exec::{DRAIN_AFTER_EXIT, EXEC_OUTPUT_MAX_BYTES, ExecEnd, ExecError, Temporary, files};
use crate::{ExecPlacement, RuntimeHandler, process};

/// How long a runtime may take to make a terminal, or to refuse.
const TERMINAL_LIMIT: Duration = Duration::from_secs(30);
/// How long a socket's message may lag behind the end of who sent it.
const MESSAGE_LAG: Duration = Duration::from_millis(50);
/// How long a runtime that is about to start the program may take to name it, so that it can be killed.
const START_LIMIT: Duration = Duration::from_secs(2);
/// How often its pid file is looked for meanwhile.
const START_POLL: Duration = Duration::from_millis(10);
/// How long a runtime may take to notice that the program it waits for was killed.
const END_AFTER_KILL: Duration = Duration::from_secs(2);
/// A runtime's complaint is a few lines.
const COMPLAINT_MAX_BYTES: usize = 16 * 1024;

/// Runtimes that refused to send a terminal for a program that is not detached.
static NO_CONSOLE_SOCKET: Mutex<Option<HashSet<PathBuf>>> = Mutex::new(None);

/// Which streams a session has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SessionStreams {
    /// A terminal; the process object must ask for one too.
    Terminal,
    /// Pipes; what is not wanted is `/dev/null`.
    Pipes {
        /// Standard input.
        has_stdin: bool,
        /// Standard output.
        has_stdout: bool,
        /// Standard error.
        has_stderr: bool,
    },
}

/// Our ends of a session's streams.
#[derive(Debug)]
pub enum SessionStdio {
    /// The master of the terminal.
    Terminal(OwnedFd),
    /// Pipes; none at all if the runtime refused to make a terminal.
    Pipes {
        /// To be written.
        stdin: Option<OwnedFd>,
        /// To be read.
        stdout: Option<OwnedFd>,
        /// To be read.
        stderr: Option<OwnedFd>,
    },
}

/// How a session's program ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionEnd {
    /// Exit status, or 128 + signal; the runtime's own if it refused.
    pub code: i32,
    /// What the runtime said where it had no standard error of the program to say it on.
    pub complaint: Vec<u8>,
}

/// Who holds the other side of the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Holder {
    Program,
    Runtime,
}

/// A program that runs. Dropping it kills and collects it, which takes up to four seconds if the runtime hangs.
#[derive(Debug)]
pub struct ExecSession {
    child: Option<Waiting>,
    status: Option<ExitStatus>,
    stdio: Option<SessionStdio>,
    terminal: Option<(OwnedFd, Holder)>,
    complaint: Option<OwnedFd>,
    said: Vec<u8>,
    files: Option<(Temporary, Temporary)>,
}

impl RuntimeHandler {
    /// Starts `process` (an OCI process object as JSON) in a running container. Files for the runtime are put into
    /// `directory`.
    ///
    /// A runtime that refuses is no error here: it complains and ends, and that is how the session ends.
    pub async fn exec_session(
        &self,
        container: &ContainerId,
        process: &[u8],
        streams: SessionStreams,
        directory: &Path,
        placement: &ExecPlacement,
    ) -> Result<ExecSession, ExecError> {
        let failed = |source| ExecError::Run { runtime: self.runtime.clone(), container: container.clone(), source };
        let files = files(directory);
        durable::replace(&files.0.0, process, 0o600, durable::Durability::Volatile)
            .map_err(|error| failed(io::Error::other(error)))?;
        let (process_file, pid_file) = (files.0.0.clone(), files.1.0.clone());
        let mut files = Some(files);
        let command = |options: &[&OsStr]| self.exec_command(container, &process_file, &pid_file, options, placement);
        let mut session = match streams {
            SessionStreams::Pipes { has_stdin, has_stdout, has_stderr } => {
                command(&[]).and_then(|command| with_pipes(command, has_stdin, has_stdout, has_stderr))
            }
            SessionStreams::Terminal if refuses_console_socket(&self.runtime) => {
                command(&[OsStr::new("--tty")]).and_then(with_our_terminal)
            }
            SessionStreams::Terminal => match with_console_socket(command, directory, &mut files).await {
                Ok(Some(session)) => Ok(session),
                Ok(None) => {
                    note_refusal(&self.runtime);
                    command(&[OsStr::new("--tty")]).and_then(with_our_terminal)
                }
                Err(error) => Err(error),
            },
        }
        .map_err(failed)?;
        if files.is_some() {
            session.files = files;
        }
        Ok(session)
    }
}

impl RuntimeHandler {
    /// Runs `process`, which asks for a terminal, to its end. As [`RuntimeHandler::exec`], but nobody types, and a
    /// terminal has one stream for everything.
    pub async fn exec_in_terminal(
        &self,
        container: &ContainerId,
        process: &[u8],
        limit: Option<Duration>,
        directory: &Path,
        placement: &ExecPlacement,
    ) -> Result<ExecEnd, ExecError> {
        let failed = |source| ExecError::Run { runtime: self.runtime.clone(), container: container.clone(), source };
        let run = async {
            let mut session =
                self.exec_session(container, process, SessionStreams::Terminal, directory, placement).await?;
            let Some(SessionStdio::Terminal(master)) = session.take_stdio() else {
                let end = session.wait().await.map_err(failed)?;
                return Err(ExecError::Refused { container: container.clone(), message: printed(&end.complaint) });
            };
            let mut stdout = Vec::new();
            let end = {
                let mut reading = std::pin::pin!(read_master(master, &mut stdout));
                tokio::select! {
                    read = &mut reading => {
                        read.map_err(failed)?;
                        session.wait().await.map_err(failed)?
                    }
                    end = session.wait() => {
                        // A child of the program that kept the terminal is listened to for a while only.
                        let _ = tokio::time::timeout(DRAIN_AFTER_EXIT, reading).await;
                        end.map_err(failed)?
                    }
                }
            };
            let has_begun = session.files.as_ref().is_some_and(|files| files.1.0.exists());
            if !has_begun && end.code != 0 {
                // What was printed is about the attempt: the runtime had the terminal still, or its standard error.
                stdout.extend(end.complaint);
                return Err(ExecError::Refused { container: container.clone(), message: printed(&stdout) });
            }
            Ok(ExecEnd::Exited { code: end.code, stdout, stderr: end.complaint })
        };
        match limit {
            None => run.await,
            // The session that is dropped kills its program.
            Some(limit) => tokio::time::timeout(limit, run).await.unwrap_or(Ok(ExecEnd::TimedOut)),
        }
    }
}

/// Reads a terminal until nobody holds its other side. What is more than [`EXEC_OUTPUT_MAX_BYTES`] is dropped.
async fn read_master(master: OwnedFd, stdout: &mut Vec<u8>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(&master)?;
    rustix::fs::fcntl_setfl(&master, flags | OFlags::NONBLOCK)?;
    #[expect(deprecated, reason = "its successor is unsafe, and an owned descriptor keeps what that asks for")]
    let master = AsyncFd::with_interest(master, Interest::READABLE)?;
    let mut buffer = [0; 8192];
    loop {
        let read = master.async_io(Interest::READABLE, |master| Ok(rustix::io::read(master, &mut buffer)?)).await;
        match read {
            Ok(0) => return Ok(()),
            Ok(count) => stdout.extend_from_slice(&buffer[..count.min(EXEC_OUTPUT_MAX_BYTES - stdout.len())]),
            // The last one has closed it. Source: pty(7).
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => return Ok(()),
            Err(error) => return Err(error),
        }
    }
}

fn refuses_console_socket(runtime: &Path) -> bool {
    let refusing = NO_CONSOLE_SOCKET.lock().unwrap_or_else(PoisonError::into_inner);
    refusing.as_ref().is_some_and(|refusing| refusing.contains(runtime))
}

fn note_refusal(runtime: &Path) {
    let mut refusing = NO_CONSOLE_SOCKET.lock().unwrap_or_else(PoisonError::into_inner);
    refusing.get_or_insert_default().insert(runtime.to_owned());
}

fn session(child: Waiting, stdio: SessionStdio) -> ExecSession {
    ExecSession {
        child: Some(child),
        status: None,
        stdio: Some(stdio),
        terminal: None,
        complaint: None,
        said: Vec::new(),
        files: None,
    }
}

fn with_pipes(mut command: Command, has_stdin: bool, has_stdout: bool, has_stderr: bool) -> io::Result<ExecSession> {
    let null = child::null()?;
    let stdin = if has_stdin {
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        command.descriptor(reader.as_fd(), 0)?;
        Some(writer)
    } else {
        command.descriptor(null.as_fd(), 0)?;
        None
    };
    let mut output = |is_wanted: bool, number: i32| {
        if !is_wanted {
            command.descriptor(null.as_fd(), number)?;
            return Ok::<_, io::Error>(None);
        }
        let (reader, writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        command.descriptor(writer.as_fd(), number)?;
        Ok(Some(reader))
    };
    let (stdout, stderr) = (output(has_stdout, 1)?, output(has_stderr, 2)?);
    let child = Waiting::new(command.spawn()?)?;
    Ok(session(child, SessionStdio::Pipes { stdin, stdout, stderr }))
}

/// A terminal of ours, which the runtime copies the program's to.
fn with_our_terminal(mut command: Command) -> io::Result<ExecSession> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::grantpt(&master)?;
    rustix::pty::unlockpt(&master)?;
    let name = rustix::pty::ptsname(&master, Vec::new())?;
    let slave = rustix::fs::openat(CWD, &*name, OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC, Mode::empty())?;
    // The program's own terminal does the editing; this one only carries bytes.
    let mut settings = rustix::termios::tcgetattr(&slave)?;
    settings.make_raw();
    rustix::termios::tcsetattr(&slave, OptionalActions::Now, &settings)?;
    for number in 0..=2 {
        command.descriptor(slave.as_fd(), number)?;
    }
    let child = Waiting::new(command.spawn()?)?;
    let mut session = session(child, SessionStdio::Terminal(master.try_clone()?));
    session.terminal = Some((master, Holder::Runtime));
    Ok(session)
}

/// The program's terminal, which the runtime sends us. `None` when it does not do that.
async fn with_console_socket(
    command: impl Fn(&[&OsStr]) -> io::Result<Command>,
    directory: &Path,
    files: &mut Option<(Temporary, Temporary)>,
) -> io::Result<Option<ExecSession>> {
    static SEQUENCE: AtomicU64 = AtomicU64::new(0);
    // Bundles have longer paths than a socket's address can hold.
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory_fd = rustix::fs::openat(CWD, directory, flags, Mode::empty())?;
    let name = directory_fd.as_fd().as_raw_fd();
    let short =
        format!("/proc/{}/fd/{name}/exec-{}.sock", std::process::id(), SEQUENCE.fetch_add(1, Ordering::Relaxed));
    let _socket_file = Temporary(PathBuf::from(&short));
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::fs::fchmod(&listener, Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&listener, &SocketAddrUnix::new(short.as_str())?)?;
    rustix::net::listen(&listener, 1)?;
    let listener = UnixListener::from_std(listener.into())?;
    let mut command = command(&[OsStr::new("--tty"), OsStr::new("--console-socket"), OsStr::new(&short)])?;
    let null = child::null()?;
    let (complaint, complaint_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
    command.descriptor(null.as_fd(), 0)?.descriptor(null.as_fd(), 1)?;
    command.descriptor(complaint_writer.as_fd(), 2)?;
    // Whoever gives up from here on ends the runtime in its own way: killed at once, crun leaves a mount behind.
    let child = Waiting::new(command.spawn()?)?;
    let mut session = session(child, SessionStdio::Pipes { stdin: None, stdout: None, stderr: None });
    session.files = files.take();
    drop((command, complaint_writer));
    let waiting = async {
        tokio::select! {
            biased;
            master = receive(&listener) => master.map(Some),
            ended = session.wait() => {
                ended?;
                // A program that is done already may have its terminal on the way.
                Ok(tokio::time::timeout(MESSAGE_LAG, receive(&listener)).await.ok().and_then(Result::ok))
            }
        }
    };
    let master = tokio::time::timeout(TERMINAL_LIMIT, waiting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "the runtime made no terminal"))??;
    let Some(master) = master else {
        session.said = read_now(&complaint);
        if String::from_utf8_lossy(&session.said).contains("cannot use console socket") {
            *files = session.files.take();
            return Ok(None);
        }
        return Ok(Some(session));
    };
    session.stdio = Some(SessionStdio::Terminal(master.try_clone()?));
    session.terminal = Some((master, Holder::Program));
    session.complaint = Some(complaint);
    Ok(Some(session))
}

async fn receive(listener: &UnixListener) -> io::Result<OwnedFd> {
    let (stream, _) = listener.accept().await?;
    stream.async_io(Interest::READABLE, || receive_now(&stream)).await
}

/// The descriptor that comes with a runtime's message. Source: runc's terminals documentation.
fn receive_now(stream: &UnixStream) -> io::Result<OwnedFd> {
    let mut text = [0; 4096];
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut parts = [io::IoSliceMut::new(&mut text)];
    rustix::net::recvmsg(stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(mut descriptors) = message
            && let Some(master) = descriptors.next()
        {
            return Ok(master);
        }
    }
    Err(io::Error::new(io::ErrorKind::InvalidData, "the runtime's message brings no terminal"))
}

/// What is in a pipe now; its writer has ended, or has nothing to say.
fn read_now(pipe: &OwnedFd) -> Vec<u8> {
    let mut said = Vec::new();
    let mut buffer = [0; 4096];
    while said.len() < COMPLAINT_MAX_BYTES {
        match rustix::io::read(pipe, &mut buffer) {
            Ok(count @ 1..) => said.extend_from_slice(&buffer[..count]),
            Ok(_) | Err(_) => break,
        }
    }
    said
}

impl ExecSession {
    /// Our ends of its streams; the first time only.
    pub fn take_stdio(&mut self) -> Option<SessionStdio> {
        self.stdio.take()
    }

    /// Waits for the end. Cancelling loses nothing.
    pub async fn wait(&mut self) -> io::Result<SessionEnd> {
        let status = match (self.status, &mut self.child) {
            (Some(status), _) => status,
            (None, Some(child)) => child.wait().await?,
            (None, None) => return Err(io::Error::other("the session was given up")),
        };
        self.status = Some(status);
        if let Some(complaint) = self.complaint.take() {
            self.said.extend(read_now(&complaint));
        }
        Ok(SessionEnd { code: status.as_code(), complaint: self.said.clone() })
    }

    /// Sets the size of its terminal, in characters. Without a terminal nothing happens.
    pub fn resize(&self, width: u16, height: u16) -> io::Result<()> {
        let Some((terminal, holder)) = &self.terminal else { return Ok(()) };
        let size = Winsize { ws_row: height, ws_col: width, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(terminal, size)?;
        // The kernel tells those whose terminal it is; a runtime that only copies has to be told by us.
        match (holder, &self.child, self.status) {
            (Holder::Runtime, Some(child), None) => child.signal(Signal::WINCH),
            (Holder::Runtime | Holder::Program, ..) => Ok(()),
        }
    }
}

impl Drop for ExecSession {
    fn drop(&mut self) {
        let (Some(child), None, Some(files)) = (self.child.take(), self.status, self.files.take()) else { return };
        // At once too: when the daemon itself ends, nothing spawned here runs any more.
        if let Some(program) = named(&files.1) {
            let _ = process::signal(program, Signal::KILL.as_raw());
        }
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(end(child, files));
        }
    }
}

/// The program whose pid the runtime left.
fn named(pid_file: &Temporary) -> Option<Process> {
    process::identify(std::fs::read_to_string(&pid_file.0).ok()?.trim().parse().ok()?).ok()
}

/// Kills the program, by the pid the runtime left. The runtime then ends by itself: it is the program's parent, and
/// killed at the same time it would leave a zombie to the container's first process.
async fn end(mut child: Waiting, files: (Temporary, Temporary)) {
    let started = async {
        loop {
            if let Some(program) = named(&files.1) {
                return program;
            }
            tokio::time::sleep(START_POLL).await;
        }
    };
    let program = tokio::select! {
        _ = child.wait() => return,
        program = tokio::time::timeout(START_LIMIT, started) => program.ok(),
    };
    if let Some(program) = program {
        let _ = process::signal(program, Signal::KILL.as_raw());
        if tokio::time::timeout(END_AFTER_KILL, child.wait()).await.is_ok() {
            return;
        }
    }
    let _ = child.kill();
    let _ = child.wait().await;
}
