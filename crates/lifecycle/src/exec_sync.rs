//! ExecSync: a program beside the container's own, run to its end.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use domain::id::ContainerId;
use runtime_client::ExecPlacement;
use runtime_client::exec::{ExecEnd, ExecError};
use thiserror::Error;

use crate::blocking;
use crate::container::Container;
use crate::node::Node;
use crate::objects::LookupError;

/// How a program ended.
pub type ExecSyncEnd = ExecEnd;

/// Why a program was not run.
#[derive(Debug, Error)]
pub enum ExecSyncError {
    /// No command.
    #[error("exec command cannot be empty")]
    EmptyCommand,
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It has ended.
    #[error("container is not created or running: container {container} is {state}")]
    NotRunning {
        /// The container.
        container: ContainerId,
        /// Its state.
        state: &'static str,
    },
    /// Its spec, of which the program's process is made, is gone or damaged.
    #[error("read the process of container {container}")]
    Spec {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime failed.
    #[error("exec in container {container}")]
    Exec {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: ExecError,
    },
}

impl Node {
    /// Runs `command` in a created or running container, with its environment, user and confinement, and without input.
    ///
    /// In a container with a terminal the program has one too, and what it complains comes with what it prints.
    /// Source: CRI-O.
    pub async fn exec_sync(
        self: &Arc<Self>,
        id: &str,
        command: Vec<String>,
        limit: Option<Duration>,
    ) -> Result<ExecSyncEnd, ExecSyncError> {
        if command.is_empty() {
            return Err(ExecSyncError::EmptyCommand);
        }
        let container = self.objects.find_container(id)?;
        match self.word_of(&container).await {
            "created" | "running" => {}
            state => return Err(ExecSyncError::NotRunning { container: container.id.clone(), state }),
        }
        let (directory, has_terminal) = (container.directory.clone(), container.config.tty);
        let (process, placement) = self
            .exec_process(&container, directory, command, has_terminal)
            .await
            .map_err(|source| ExecSyncError::Spec { container: container.id.clone(), source })?;
        // A task of its own: a client that hangs up leaves no half-waited process behind.
        let (runtime, id, bundle) = (container.handler.runtime.clone(), container.id.clone(), container.bundle.clone());
        let session = tokio::spawn(async move {
            if has_terminal {
                runtime.exec_in_terminal(&id, &process, limit, &bundle, &placement).await
            } else {
                runtime.exec(&id, &process, limit, &bundle, &placement).await
            }
        });
        match session.await {
            Ok(result) => result.map_err(|source| ExecSyncError::Exec { container: container.id.clone(), source }),
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
}

impl Node {
    /// What the runtime is to execute, as JSON, and where.
    pub(crate) async fn exec_process(
        &self,
        container: &Container,
        directory: PathBuf,
        command: Vec<String>,
        has_terminal: bool,
    ) -> Result<(Vec<u8>, ExecPlacement), Box<dyn std::error::Error + Send + Sync>> {
        let process = blocking::run("read process", move || process_for(&directory, command, has_terminal)).await?;
        Ok((serde_json::to_vec(&process)?, self.exec_placement(container, &process)))
    }
}

/// The container's own process object with another command, and with a terminal or without.
fn process_for(
    directory: &std::path::Path,
    command: Vec<String>,
    has_terminal: bool,
) -> Result<serde_json::Value, Box<dyn std::error::Error + Send + Sync>> {
    let spec = state_store::spec::load_spec(directory)?.ok_or("its config.json is missing")?;
    let mut process = spec.process;
    let fields = process.as_object_mut().ok_or("its config.json has no process")?;
    fields.insert("args".to_owned(), command.into());
    fields.insert("terminal".to_owned(), has_terminal.into());
    fields.remove("consoleSize");
    Ok(process)
}
