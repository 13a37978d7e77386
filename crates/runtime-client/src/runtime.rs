//! One runtime handler: an OCI runtime with runc's command line, and the monitor that keeps its containers.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use domain::container::Process;
use domain::id::ContainerId;
use thiserror::Error;

use crate::child::{self, Captured, printed};
use crate::process;

/// `start`, `delete`, `state`, `update`: none waits for the container's program, so a minute means the runtime hangs.
const COMMAND_LIMIT: Duration = Duration::from_secs(60);

/// How containers of one handler are run.
#[derive(Debug, Clone)]
pub struct RuntimeHandler {
    /// The handler's name in the configuration.
    pub name: String,
    /// The runtime's binary.
    pub runtime: PathBuf,
    /// The runtime's `--root`.
    pub root: PathBuf,
    /// Further options before every verb.
    pub options: Vec<OsString>,
    /// How containers are signalled.
    pub signals: Signals,
    /// The monitor's binary.
    pub monitor: PathBuf,
    /// Environment of the monitor, `K=V` each.
    pub monitor_env: Vec<String>,
    /// Whether cgroups are made by systemd.
    pub has_systemd_cgroup: bool,
    /// Directory of exit files.
    pub exits_dir: PathBuf,
    /// Directory of attach sockets.
    pub socket_dir: PathBuf,
    /// How long `create` may take.
    pub create_limit: Duration,
    /// Level of the monitor's own messages.
    pub log_level: String,
    /// Largest container log in bytes; `None` for no limit.
    pub log_size_max_bytes: Option<u64>,
    /// Also log to the journal.
    pub has_journal_log: bool,
    /// Leave out the sync of a log at its end.
    pub has_no_sync_log: bool,
    /// Leave out pivot_root.
    pub has_no_pivot: bool,
    /// CPUs on which runtimes and monitors run; none for the daemon's.
    pub cpus: Vec<u32>,
}

/// Where a program that is executed in a container begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ExecPlacement {
    /// CPUs of the runtime, which the program inherits; none for the handler's.
    pub cpus: Vec<u32>,
    /// Directories of the cgroups the runtime is in while it waits for the program; none for the daemon's.
    pub cgroups: Vec<PathBuf>,
}

/// Why a runtime command failed.
#[derive(Debug, Error)]
pub enum RuntimeError {
    /// It could not be run, or did not end.
    #[error("run {runtime} {verb} {container}")]
    Run {
        /// The runtime.
        runtime: String,
        /// The command.
        verb: &'static str,
        /// What it was about.
        container: String,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// It said no.
    #[error("{runtime} {verb} {container}: {printed}")]
    Refused {
        /// The runtime.
        runtime: String,
        /// The command.
        verb: &'static str,
        /// What it was about.
        container: String,
        /// What it printed.
        printed: String,
    },
}

/// How a container's first process is signalled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signals {
    /// It is a process of this node.
    ByProcess,
    /// It only stands for one in a guest, which the runtime reaches.
    ByRuntime,
}

/// Whether a container is killed first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Force {
    /// Only a stopped container is deleted.
    No,
    /// A running one is killed.
    Yes,
}

/// What a deletion found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Removal {
    /// It is gone now.
    Removed,
    /// The runtime does not know it.
    Absent,
}

impl RuntimeHandler {
    async fn command(
        &self,
        verb: &'static str,
        options: &[&OsStr],
        container: &str,
        input: Option<&[u8]>,
    ) -> Result<Captured, RuntimeError> {
        self.command_with(verb, options, container, &[], input).await
    }

    async fn command_with(
        &self,
        verb: &'static str,
        options: &[&OsStr],
        container: &str,
        operands: &[&OsStr],
        input: Option<&[u8]>,
    ) -> Result<Captured, RuntimeError> {
        let mut root = OsString::from("--root=");
        root.push(&self.root);
        let mut arguments: Vec<&OsStr> = vec![&root];
        arguments.extend(self.options.iter().map(OsString::as_os_str));
        if self.has_systemd_cgroup {
            arguments.push(OsStr::new("--systemd-cgroup"));
        }
        arguments.push(OsStr::new(verb));
        arguments.extend_from_slice(options);
        arguments.push(OsStr::new(container));
        arguments.extend_from_slice(operands);
        child::capture_on(&self.cpus, &self.runtime, &arguments, input, COMMAND_LIMIT).await.map_err(|source| {
            RuntimeError::Run {
                runtime: self.runtime.display().to_string(),
                verb,
                container: container.to_owned(),
                source,
            }
        })
    }

    fn checked(&self, verb: &'static str, container: &str, end: &Captured) -> Result<(), RuntimeError> {
        if end.status.is_success() {
            return Ok(());
        }
        Err(RuntimeError::Refused {
            runtime: self.name.clone(),
            verb,
            container: container.to_owned(),
            printed: printed(&end.stderr),
        })
    }

    /// Lets a created container's program run.
    pub async fn start(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let end = self.command("start", &[], container.as_str(), None).await?;
        self.checked("start", container.as_str(), &end)
    }

    /// Freezes every process of a container.
    pub async fn pause(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let end = self.command("pause", &[], container.as_str(), None).await?;
        self.checked("pause", container.as_str(), &end)
    }

    /// Lets the processes of a paused container go on.
    pub async fn resume(&self, container: &ContainerId) -> Result<(), RuntimeError> {
        let end = self.command("resume", &[], container.as_str(), None).await?;
        self.checked("resume", container.as_str(), &end)
    }

    /// Whether a container's program runs by the runtime's account. Source: OCI runtime specification, `state`.
    pub async fn is_running(&self, container: &ContainerId) -> Result<bool, RuntimeError> {
        Ok(self.status(container).await? == "running")
    }

    /// The word of the runtime for a container's state. Source: OCI runtime specification, `state`.
    pub async fn status(&self, container: &ContainerId) -> Result<String, RuntimeError> {
        let end = self.command("state", &[], container.as_str(), None).await?;
        self.checked("state", container.as_str(), &end)?;
        let said: serde_json::Value = serde_json::from_slice(&end.stdout).unwrap_or_default();
        Ok(said.get("status").and_then(serde_json::Value::as_str).unwrap_or_default().to_owned())
    }

    /// Signals a container's first process; one that has ended already is not an error.
    pub async fn signal(&self, container: &ContainerId, init: Process, number: i32) -> io::Result<()> {
        match self.signals {
            Signals::ByProcess => process::signal(init, number),
            Signals::ByRuntime => self.kill(container, number).await.map_err(io::Error::other),
        }
    }

    async fn kill(&self, container: &ContainerId, number: i32) -> Result<(), RuntimeError> {
        let signal = OsString::from(number.to_string());
        let end = self.command_with("kill", &[], container.as_str(), &[&signal], None).await?;
        if is_unknown(&end.stderr) { Ok(()) } else { self.checked("kill", container.as_str(), &end) }
    }

    /// Deletes what the runtime keeps of a container. Unknown to the runtime is success.
    pub async fn delete(&self, container: &ContainerId, force: Force) -> Result<Removal, RuntimeError> {
        let options: &[&OsStr] = match force {
            Force::Yes => &[OsStr::new("--force")],
            Force::No => &[],
        };
        let end = self.command("delete", options, container.as_str(), None).await?;
        if !end.status.is_success() && is_unknown(&end.stderr) {
            return Ok(Removal::Absent);
        }
        self.checked("delete", container.as_str(), &end).map(|()| Removal::Removed)
    }

    /// Applies new limits, given as the OCI runtime spec's `linux.resources` object.
    pub async fn update(&self, container: &ContainerId, resources: &[u8]) -> Result<(), RuntimeError> {
        let options = [OsStr::new("--resources"), OsStr::new("-")];
        let end = self.command("update", &options, container.as_str(), Some(resources)).await?;
        self.checked("update", container.as_str(), &end)
    }

    /// The first line of `--version`.
    pub async fn version(&self) -> Result<String, RuntimeError> {
        let run = |source| RuntimeError::Run {
            runtime: self.runtime.display().to_string(),
            verb: "--version",
            container: String::new(),
            source,
        };
        let mut arguments: Vec<&OsStr> = self.options.iter().map(OsString::as_os_str).collect();
        arguments.push(OsStr::new("--version"));
        let end = child::capture(&self.runtime, &arguments, None, COMMAND_LIMIT).await.map_err(run)?;
        self.checked("--version", "", &end)?;
        Ok(String::from_utf8_lossy(&end.stdout).lines().next().unwrap_or_default().to_owned())
    }
}

/// runc says "container does not exist", crun that its status file is missing.
fn is_unknown(stderr: &[u8]) -> bool {
    let text = String::from_utf8_lossy(stderr);
    text.contains("does not exist") || (text.contains("error opening file") && text.contains("No such file"))
}
