//! Running a program in a container to its end: ExecSync. No monitor is needed; the daemon holds the pipes.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use domain::id::ContainerId;
use sys::spawn::{Command, ExitStatus};
use thiserror::Error;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;

use crate::child::{self, Waiting, printed};
use crate::{ExecPlacement, RuntimeHandler, process};

/// stdout and stderr together; what comes after is read and dropped, so that the program never blocks on us.
/// Source: the CRI's advice and CRI-O's limit.
pub const EXEC_OUTPUT_MAX_BYTES: usize = 16 << 20;

/// How long a child of the program that kept the pipes is listened to. Without an end it would hold the call forever.
pub(crate) const DRAIN_AFTER_EXIT: Duration = Duration::from_secs(2);

/// How long the runtime may take to notice that the program it waits for was killed.
const END_AFTER_KILL: Duration = Duration::from_secs(2);

static SEQUENCE: AtomicU64 = AtomicU64::new(0);

/// The files of one exec: what the runtime is to run, and where it leaves the program's pid.
pub(crate) fn files(directory: &Path) -> (Temporary, Temporary) {
    let number = SEQUENCE.fetch_add(1, Ordering::Relaxed);
    let file = |extension| Temporary(directory.join(format!("exec-{number}.{extension}")));
    (file("json"), file("pid"))
}

/// How a program in a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecEnd {
    /// It ended by itself.
    Exited {
        /// Exit status, or 128 + signal.
        code: i32,
        /// What it printed.
        stdout: Vec<u8>,
        /// What it complained.
        stderr: Vec<u8>,
    },
    /// It was killed for taking too long.
    TimedOut,
}

/// Why a program was not run.
#[derive(Debug, Error)]
pub enum ExecError {
    /// It could not be run.
    #[error("run {runtime} exec in {container}")]
    Run {
        /// The runtime.
        runtime: PathBuf,
        /// The container.
        container: ContainerId,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The runtime refused, as for a program that does not exist.
    #[error("exec in container {container} failed: {message}")]
    Refused {
        /// The container.
        container: ContainerId,
        /// What the runtime printed.
        message: String,
    },
}

/// Removes a file when it is done with.
#[derive(Debug)]
pub(crate) struct Temporary(pub(crate) PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

impl RuntimeHandler {
    /// Runs `process` (an OCI process object as JSON) in a running container.
    ///
    /// With a limit, the program is killed when it has passed. Files for the runtime are put into `directory`.
    pub async fn exec(
        &self,
        container: &ContainerId,
        process: &[u8],
        limit: Option<Duration>,
        directory: &Path,
        placement: &ExecPlacement,
    ) -> Result<ExecEnd, ExecError> {
        let failed = |source| ExecError::Run { runtime: self.runtime.clone(), container: container.clone(), source };
        let (process_file, pid_file) = files(directory);
        durable::replace(&process_file.0, process, 0o600, durable::Durability::Volatile)
            .map_err(|error| failed(io::Error::other(error)))?;
        let mut session = self.spawn_exec(container, &process_file.0, &pid_file.0, placement).map_err(failed)?;
        let end = match limit {
            None => Some(session.run().await.map_err(failed)?),
            Some(limit) => match tokio::time::timeout(limit, session.run()).await {
                Ok(end) => Some(end.map_err(failed)?),
                Err(_) => None,
            },
        };
        let Some(status) = end else {
            session.kill(&pid_file.0).await.map_err(failed)?;
            return Ok(ExecEnd::TimedOut);
        };
        if !pid_file.0.exists() && !status.is_success() {
            // The runtime ended before the program began: what it printed is about the attempt, not from the program.
            return Err(ExecError::Refused { container: container.clone(), message: printed(&session.stderr) });
        }
        Ok(ExecEnd::Exited { code: status.as_code(), stdout: session.stdout, stderr: session.stderr })
    }

    /// The runtime's command line for an exec; `options` go before the container.
    pub(crate) fn exec_command(
        &self,
        container: &ContainerId,
        process: &Path,
        pid_file: &Path,
        options: &[&OsStr],
        placement: &ExecPlacement,
    ) -> io::Result<Command> {
        let mut root = OsString::from("--root=");
        root.push(&self.root);
        let mut command = Command::new(&self.runtime)?;
        command.arg(&root)?;
        for option in &self.options {
            command.arg(option)?;
        }
        if self.has_systemd_cgroup {
            command.arg("--systemd-cgroup")?;
        }
        for argument in [
            OsStr::new("exec"),
            OsStr::new("--process"),
            process.as_os_str(),
            OsStr::new("--pid-file"),
            pid_file.as_os_str(),
        ] {
            command.arg(argument)?;
        }
        for option in options {
            command.arg(option)?;
        }
        command.arg(container.as_str())?;
        child::inherit_environment(&mut command)?;
        let cpus = if placement.cpus.is_empty() { &self.cpus } else { &placement.cpus };
        command.own_process_group().cpus(cpus.iter().copied()).cgroups(placement.cgroups.clone());
        Ok(command)
    }

    fn spawn_exec(
        &self,
        container: &ContainerId,
        process: &Path,
        pid_file: &Path,
        placement: &ExecPlacement,
    ) -> io::Result<Session> {
        let mut command = self.exec_command(container, process, pid_file, &[], placement)?;
        let (out, out_writer) = child::reading_pipe()?;
        let (err, err_writer) = child::reading_pipe()?;
        command.descriptor(child::null()?.as_fd(), 0)?;
        command.descriptor(out_writer.as_fd(), 1)?.descriptor(err_writer.as_fd(), 2)?;
        Ok(Session { child: Waiting::new(command.spawn()?)?, out, err, stdout: Vec::new(), stderr: Vec::new() })
    }
}

struct Session {
    child: Waiting,
    out: pipe::Receiver,
    err: pipe::Receiver,
    stdout: Vec<u8>,
    stderr: Vec<u8>,
}

impl Session {
    async fn run(&mut self) -> io::Result<ExitStatus> {
        let Self { child, out, err, stdout, stderr } = self;
        child.wait_reading(read_both(out, err, stdout, stderr), DRAIN_AFTER_EXIT).await
    }

    /// Kills the program, by the pid the runtime left. The runtime then ends by itself: it is the program's parent, and
    /// killed at the same time it would leave a zombie to the container's first process.
    async fn kill(&mut self, pid_file: &Path) -> io::Result<()> {
        let program = std::fs::read_to_string(pid_file)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .and_then(|pid| process::identify(pid).ok());
        if let Some(program) = program {
            process::signal(program, 9)?;
            if tokio::time::timeout(END_AFTER_KILL, self.child.wait()).await.is_ok() {
                return Ok(());
            }
        }
        // A runtime in uninterruptible sleep is collected when it ends, not waited for.
        self.child.kill()
    }
}

async fn read_both(out: &mut pipe::Receiver, err: &mut pipe::Receiver, stdout: &mut Vec<u8>, stderr: &mut Vec<u8>) {
    let (mut out_buffer, mut err_buffer) = ([0; 8192], [0; 8192]);
    let (mut is_out_open, mut is_err_open) = (true, true);
    while is_out_open || is_err_open {
        let kept = stdout.len() + stderr.len();
        let (buffer, target, read, is_open) = tokio::select! {
            read = out.read(&mut out_buffer), if is_out_open => (&out_buffer, &mut *stdout, read, &mut is_out_open),
            read = err.read(&mut err_buffer), if is_err_open => (&err_buffer, &mut *stderr, read, &mut is_err_open),
        };
        match read {
            Ok(0) | Err(_) => *is_open = false,
            Ok(count) => target.extend_from_slice(&buffer[..count.min(EXEC_OUTPUT_MAX_BYTES - kept)]),
        }
    }
}
