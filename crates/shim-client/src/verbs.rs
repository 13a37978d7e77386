//! The verbs of a runtime, and why they fail.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::client::CallError;
use crate::options::{Invocation, Settings, UsageError, Verb};
use crate::record::{Record, RecordError};
use crate::shim::{self, ShimError};
use crate::task::Task;
use crate::wire::ProcessStatus;
use crate::{create, delete, exec};

/// Resources are a few KiB of JSON.
const RESOURCES_MAX_BYTES: u64 = 1 << 20;
/// A shim that has not answered a kill twice over hangs.
const KILL_PATIENCE: u32 = 2;
/// How long a killed shim may take to be gone.
const SHIM_END_LIMIT: Duration = Duration::from_secs(5);
/// Which signal leaves nobody a choice.
const SIGKILL: u32 = 9;

/// Why a verb failed.
#[derive(Debug, Error)]
pub(crate) enum VerbError {
    #[error(transparent)]
    Usage(#[from] UsageError),
    #[error("container {0:?} does not exist")]
    Unknown(String),
    #[error("container {0:?} exists already")]
    Exists(String),
    #[error(transparent)]
    Record(#[from] RecordError),
    #[error(transparent)]
    Shim(#[from] ShimError),
    #[error(transparent)]
    Call(#[from] CallError),
    #[error("{action} {path}")]
    File {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{action}")]
    Prepare {
        action: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("config.json in {bundle} is damaged")]
    Spec {
        bundle: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{0}")]
    StandIn(String),
    #[error("container {0:?} runs")]
    Runs(String),
    #[error("the shim of container {0:?} hangs and keeps other containers")]
    Hangs(String),
}

pub(crate) fn run(invocation: &Invocation) -> Result<u8, VerbError> {
    let Invocation { settings, verb, id } = invocation;
    match verb {
        Verb::Version => print(&format!("{}\n", shim::version(settings)?)),
        Verb::Create { bundle, pid_file, console_socket } => {
            create::create(settings, id, bundle, pid_file, console_socket.as_deref())
        }
        Verb::Exec { process, pid_file, console_socket } => {
            exec::exec(settings, id, process, pid_file, console_socket.as_deref())
        }
        Verb::Delete { is_forced } => delete::delete(settings, id, *is_forced),
        Verb::Kill { signal, is_for_all } => kill(settings, id, *signal, *is_for_all),
        Verb::State => state(settings, id),
        Verb::Start => ask(settings, id, Task::start),
        Verb::Pause => ask(settings, id, Task::pause),
        Verb::Resume => ask(settings, id, Task::resume),
        Verb::Update => {
            let mut resources = Vec::new();
            let read = io::stdin().take(RESOURCES_MAX_BYTES).read_to_end(&mut resources);
            read.map_err(|source| VerbError::Prepare { action: "read resources", source })?;
            ask(settings, id, |task| task.update(resources.clone()))
        }
    }
}

/// The record of a container that must exist.
pub(crate) fn find(root: &Path, id: &str) -> Result<Record, VerbError> {
    Record::load(root, id)?.ok_or_else(|| VerbError::Unknown(id.to_owned()))
}

pub(crate) fn enter(directory: &Path) -> Result<(), VerbError> {
    std::env::set_current_dir(directory).map_err(|source| VerbError::File {
        action: "enter",
        path: directory.to_owned(),
        source,
    })
}

fn print(text: &str) -> Result<u8, VerbError> {
    let written = io::stdout().write_all(text.as_bytes());
    written.map(|()| 0).map_err(|source| VerbError::Prepare { action: "print", source })
}

fn ask(
    settings: &Settings,
    id: &str,
    question: impl FnOnce(&mut Task) -> Result<(), CallError>,
) -> Result<u8, VerbError> {
    let record = find(&settings.root, id)?;
    question(&mut Task::connect(&record)?)?;
    Ok(0)
}

/// The word of the OCI runtime specification. A container whose shim is gone has stopped.
fn state(settings: &Settings, id: &str) -> Result<u8, VerbError> {
    let record = find(&settings.root, id)?;
    let status = match Task::connect(&record).and_then(|mut task| task.state()) {
        Ok(ProcessStatus::Created) => "created",
        Ok(ProcessStatus::Running) => "running",
        Ok(ProcessStatus::Paused | ProcessStatus::Pausing) => "paused",
        Ok(ProcessStatus::Stopped | ProcessStatus::Unknown) => "stopped",
        Err(error) if error.is_gone() || error.is_unknown() => "stopped",
        Err(error) => return Err(error.into()),
    };
    let said = serde_json::json!({
        "ociVersion": "1.0.2",
        "id": id,
        "status": status,
        "pid": record.init_pid.unwrap_or(0),
        "bundle": record.bundle,
    });
    print(&said.to_string())
}

/// Sends a signal. A shim that does not even answer SIGKILL is killed itself: its pod could not be stopped otherwise.
fn kill(settings: &Settings, id: &str, signal: u32, is_for_all: bool) -> Result<u8, VerbError> {
    let record = find(&settings.root, id)?;
    for attempt in 1.. {
        match Task::connect(&record).and_then(|mut task| task.kill(signal, is_for_all)) {
            Ok(()) => break,
            // What has ended, or has nobody to keep it, needs no signal.
            Err(error) if error.is_gone() || error.is_unknown() => break,
            Err(error @ CallError::Refused { .. }) => return Err(error.into()),
            Err(error) if signal != SIGKILL => return Err(error.into()),
            Err(_) if attempt < KILL_PATIENCE => {}
            Err(error) => {
                let Some(shim) = record.shim else { return Err(error.into()) };
                shim.kill();
                shim.wait_end(SHIM_END_LIMIT);
                break;
            }
        }
    }
    Ok(0)
}
