//! Creating a container: start its monitor, which runs the runtime's `create` and stays.
//!
//! Steps, and what a restart finds if the daemon dies after each (spec: conmon's contract):
//!
//! ```text
//! pipes, monitor spawned     monitor sees the start pipe close; a restart ends it by its command line
//! placed in its cgroup       likewise
//! start byte written         the container may be created; nobody recorded it: a restart deletes it
//! pid read                   likewise, until the caller has written state.json
//! ```

use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use domain::container::Process;
use domain::id::ContainerId;
use rustix::pipe::PipeFlags;
use serde::Deserialize;
use sys::spawn::Command;
use thiserror::Error;
use tokio::io::AsyncReadExt;

use crate::child::{self, Waiting};
use crate::{Force, RuntimeHandler, process};

/// A monitor's message is a pid or the runtime's error text; conmon cuts it at 8 KiB itself.
const MESSAGE_MAX_BYTES: u64 = 128 * 1024;
/// The monitor's first process only forks and writes a pid file.
const MONITOR_START_LIMIT: Duration = Duration::from_secs(30);

/// What creating a container takes.
#[derive(Debug)]
pub struct CreateRequest<'a> {
    /// Its id.
    pub id: &'a ContainerId,
    /// Its reserved name, shown in process lists.
    pub name: &'a str,
    /// The bundle: holds `config.json`, receives pid files, fifos and the attach socket.
    pub bundle: &'a Path,
    /// Outlives the bundle: receives `exit` and `oom`.
    pub persistent: &'a Path,
    /// The container's log file.
    pub log: &'a Path,
    /// A terminal.
    pub has_terminal: bool,
    /// Standard input can be attached.
    pub has_stdin: bool,
    /// Standard input stays open when a client leaves.
    pub keeps_stdin_open: bool,
}

/// A container whose program waits to be started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Created {
    /// The runtime's init.
    pub init: Process,
    /// The monitor, if it left its pid.
    pub monitor: Option<Process>,
}

/// Why a container was not created. Nothing of it is left at the runtime.
#[derive(Debug, Error)]
pub enum CreateError {
    /// The monitor could not be started.
    #[error("start monitor {monitor} of container {container}")]
    StartMonitor {
        /// The monitor's binary.
        monitor: PathBuf,
        /// The container.
        container: ContainerId,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The monitor ended without a word.
    #[error("error reading container (probably exited) json message: the monitor of {container} said {said:?}")]
    MonitorGone {
        /// The container.
        container: ContainerId,
        /// What it said instead of a message.
        said: String,
    },
    /// The runtime refused.
    #[error("container create failed: {message}")]
    Refused {
        /// What the runtime printed.
        message: String,
    },
    /// Neither monitor nor runtime answered in time.
    #[error("create container timeout: no answer for {container} within {} s", limit.as_secs())]
    TimedOut {
        /// The container.
        container: ContainerId,
        /// The limit.
        limit: Duration,
    },
    /// The init process was gone before it could be recognised.
    #[error("identify process {pid} of container {container}")]
    Identify {
        /// Its pid.
        pid: i32,
        /// The container.
        container: ContainerId,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
}

#[derive(Deserialize)]
struct Message {
    pid: i32,
    #[serde(default)]
    message: String,
}

impl RuntimeHandler {
    /// Creates a container from its bundle.
    ///
    /// `place` gets the monitor's pid before anything is created and may move it into a cgroup.
    /// On failure everything the runtime and the monitor made is removed again, the log file of this attempt included.
    pub async fn create(&self, request: &CreateRequest<'_>, place: impl FnOnce(i32)) -> Result<Created, CreateError> {
        let had_log = request.log.exists();
        let result = self.create_unprotected(request, place).await;
        if result.is_err() {
            end_monitor(request.bundle).await;
            if let Err(error) = self.delete(request.id, Force::Yes).await {
                tracing::warn!(container.id = %request.id, %error, "deleting a container that was not created failed");
            }
            if !had_log {
                let _ = std::fs::remove_file(request.log);
            }
        }
        result
    }

    async fn create_unprotected(
        &self,
        request: &CreateRequest<'_>,
        place: impl FnOnce(i32),
    ) -> Result<Created, CreateError> {
        let id = request.id;
        let failed =
            |source| CreateError::StartMonitor { monitor: self.monitor.clone(), container: id.clone(), source };
        let (mut sync, mut first) = self.spawn_monitor(request, place).map_err(failed)?;
        let started = tokio::time::timeout(MONITOR_START_LIMIT, first.wait()).await;
        match started {
            Ok(status) => {
                status.map_err(failed)?;
            }
            Err(_) => {
                first.kill().map_err(failed)?;
                return Err(CreateError::TimedOut { container: id.clone(), limit: MONITOR_START_LIMIT });
            }
        }
        let message = tokio::time::timeout(self.create_limit, read_message(&mut sync))
            .await
            .map_err(|_| CreateError::TimedOut { container: id.clone(), limit: self.create_limit })?
            .map_err(failed)?;
        let Ok(answer) = serde_json::from_slice::<Message>(&message) else {
            return Err(CreateError::MonitorGone { container: id.clone(), said: child::printed(&message) });
        };
        if answer.pid <= 0 {
            return Err(CreateError::Refused { message: child::printed(answer.message.as_bytes()) });
        }
        let init = process::identify(answer.pid).map_err(|source| CreateError::Identify {
            pid: answer.pid,
            container: id.clone(),
            source,
        })?;
        if !self.cpus.is_empty()
            && let Err(error) = sys::affinity::reset_process(init.pid)
        {
            // The CPUs are those of the node's own programs; runtimes of today undo this themselves.
            tracing::warn!(container.id = %id, %error, "a container stays on the CPUs of its monitor");
        }
        Ok(Created { init, monitor: monitor_of(request.bundle) })
    }

    fn spawn_monitor(
        &self,
        request: &CreateRequest<'_>,
        place: impl FnOnce(i32),
    ) -> io::Result<(tokio::net::unix::pipe::Receiver, Waiting)> {
        let mut command = Command::new(&self.monitor)?;
        self.monitor_arguments(&mut command, request)?;
        for entry in &self.monitor_env {
            command.env(entry)?;
        }
        child::inherit_environment(&mut command)?;
        command.env("CRI_O_EXTERNAL=1")?.env("_OCI_SYNCPIPE=3")?.env("_OCI_STARTPIPE=4")?;
        let (sync, sync_writer) = child::reading_pipe()?;
        let (start, start_writer) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
        let null = child::null()?;
        command.descriptor(null.as_fd(), 0)?;
        command.descriptor(io::stderr().as_fd(), 1)?.descriptor(io::stderr().as_fd(), 2)?;
        command.descriptor(sync_writer.as_fd(), 3)?.descriptor(start.as_fd(), 4)?;
        command.own_process_group().cpus(self.cpus.iter().copied()).current_dir(request.bundle)?;
        let first = Waiting::new(command.spawn()?)?;
        place(first.pid()?);
        rustix::io::write(&start_writer, b"\0")?;
        Ok((sync, first))
    }

    fn monitor_arguments(&self, command: &mut Command, request: &CreateRequest<'_>) -> io::Result<()> {
        let mut root = std::ffi::OsString::from("--root=");
        root.push(&self.root);
        command.arg("-b")?.arg(request.bundle)?.arg("-c")?.arg(request.id.as_str())?;
        command.arg("-u")?.arg(request.id.as_str())?.arg("-n")?.arg(request.name)?;
        command.arg("-r")?.arg(&self.runtime)?.arg("--runtime-arg")?.arg(root)?;
        for option in &self.options {
            command.arg("--runtime-arg")?.arg(option)?;
        }
        command.arg("-p")?.arg(request.bundle.join("pidfile"))?;
        command.arg("-P")?.arg(request.bundle.join("conmon-pidfile"))?;
        let mut log = std::ffi::OsString::from("k8s-file:");
        log.push(request.log);
        command.arg("-l")?.arg(log)?;
        if self.has_journal_log {
            command.arg("-l")?.arg("journald:")?;
        }
        if let Some(size) = self.log_size_max_bytes {
            command.arg("--log-size-max")?.arg(size.to_string())?;
        }
        if self.has_no_sync_log {
            command.arg("--no-sync-log")?;
        }
        command.arg("--log-level")?.arg(&self.log_level)?;
        command.arg("--exit-dir")?.arg(&self.exits_dir)?;
        command.arg("--persist-dir")?.arg(request.persistent)?;
        command.arg("--socket-dir-path")?.arg(&self.socket_dir)?;
        for (is_wanted, option) in [
            (self.has_systemd_cgroup, "-s"),
            (request.has_terminal, "-t"),
            (request.has_stdin && !request.has_terminal, "-i"),
            (request.keeps_stdin_open, "--leave-stdin-open"),
            (self.has_no_pivot, "--no-pivot"),
        ] {
            if is_wanted {
                command.arg(option)?;
            }
        }
        Ok(())
    }
}

async fn read_message(sync: &mut tokio::net::unix::pipe::Receiver) -> io::Result<Vec<u8>> {
    let mut message = Vec::new();
    // The monitor keeps the pipe open, so the end of the line is the end of the message.
    let mut bounded = sync.take(MESSAGE_MAX_BYTES);
    loop {
        if bounded.read_buf(&mut message).await? == 0 || message.ends_with(b"\n") {
            return Ok(message);
        }
    }
}

/// The monitor that left its pid in the bundle, if it still runs.
#[must_use]
pub fn monitor_of(bundle: &Path) -> Option<Process> {
    let text = std::fs::read_to_string(bundle.join("conmon-pidfile")).ok()?;
    process::identify(text.trim().parse().ok()?).ok()
}

/// Ends the monitor of a container that is being given up, and with it the runtime it may be waiting for.
async fn end_monitor(bundle: &Path) {
    const ENDED_LIMIT: Duration = Duration::from_secs(5);
    let Some(monitor) = monitor_of(bundle) else { return };
    let Ok(Some(pidfd)) = process::open(monitor) else { return };
    let _ = process::signal(monitor, 9);
    let _ = tokio::time::timeout(ENDED_LIMIT, process::ended(pidfd)).await;
}

/// Ends every monitor whose command line names the container: those a daemon left behind in the middle of a create.
pub async fn end_stray_monitors(id: &ContainerId) {
    const ENDED_LIMIT: Duration = Duration::from_secs(5);
    let Ok(entries) = std::fs::read_dir("/proc") else { return };
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let mut arguments = line.split(|byte| *byte == 0);
        let is_monitor = arguments.next().is_some_and(|program| {
            program.ends_with(b"crio-monitor") || program.ends_with(b"conmon") || program.ends_with(b"conmonrs")
        });
        if !is_monitor || !arguments.any(|argument| argument == id.as_str().as_bytes()) {
            continue;
        }
        let Ok(stray) = process::identify(pid) else { continue };
        let Ok(Some(pidfd)) = process::open(stray) else { continue };
        tracing::warn!(container.id = %id, monitor.pid = pid, "ending a monitor left in the middle of a create");
        let _ = process::signal(stray, 9);
        let _ = tokio::time::timeout(ENDED_LIMIT, process::ended(pidfd)).await;
    }
}
