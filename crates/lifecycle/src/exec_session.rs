//! Sessions with a client: a program beside the container's own, a container's monitor, a sandbox's network.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;

use domain::container::ContainerState;
use domain::id::{ContainerId, SandboxId};
use domain::sandbox::SandboxState;
use runtime_client::exec::ExecError;
pub use runtime_client::exec_session::{ExecSession, SessionEnd, SessionStdio, SessionStreams};
use thiserror::Error;

use crate::container::Container;
use crate::node::Node;
use crate::objects::LookupError;

/// Why there is no session.
#[derive(Debug, Error)]
pub enum SessionError {
    /// No command.
    #[error("exec command cannot be empty")]
    EmptyCommand,
    /// No such container or sandbox.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The container does not run.
    #[error("container is not created or running: container {container} is {state}")]
    ContainerNotRunning {
        /// The container.
        container: ContainerId,
        /// Its state.
        state: &'static str,
    },
    /// The sandbox does not run.
    #[error("sandbox {sandbox} is not running")]
    SandboxNotReady {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// The container's spec, of which the program's process is made, is gone or damaged.
    #[error("read the process of container {container}")]
    Spec {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The runtime could not be run.
    #[error("exec in container {container}")]
    Exec {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: ExecError,
    },
    /// The sandbox's network namespace cannot be opened.
    #[error("open network namespace {path} of sandbox {sandbox}")]
    Network {
        /// The sandbox.
        sandbox: SandboxId,
        /// The pinned namespace.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: std::io::Error,
    },
}

/// A container's monitor, for whoever attaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AttachPoint {
    /// Holds the `attach` socket and the `ctl` fifo.
    pub bundle: PathBuf,
    /// The container's standard input stays open when a client's input ends, so that its session ends there.
    /// Source: CRI-O, for containers with input, without a terminal, and not `stdin_once`.
    pub is_over_with_input: bool,
}

impl Node {
    /// A container that is created or running: a created one has its namespaces and waits. Source: CRI-O.
    fn living(&self, id: &str) -> Result<Arc<Container>, SessionError> {
        let container = self.objects.find_container(id)?;
        match container.state() {
            ContainerState::Running { .. } | ContainerState::Created { .. } => Ok(container),
            state @ ContainerState::Exited { .. } => {
                Err(SessionError::ContainerNotRunning { container: container.id.clone(), state: state.word() })
            }
        }
    }

    /// Whether a container can be executed in now; its whole id.
    pub fn check_exec(&self, id: &str) -> Result<ContainerId, SessionError> {
        self.living(id).map(|container| container.id.clone())
    }

    /// Starts `command` in a created or running container, with its environment, user and confinement.
    pub async fn exec_session(
        &self,
        id: &str,
        command: Vec<String>,
        streams: SessionStreams,
    ) -> Result<ExecSession, SessionError> {
        if command.is_empty() {
            return Err(SessionError::EmptyCommand);
        }
        let container = self.living(id)?;
        // Its program would freeze with the others, and the session with it.
        if self.is_paused(&container).await {
            return Err(SessionError::ContainerNotRunning { container: container.id.clone(), state: "paused" });
        }
        let (directory, has_terminal) = (container.directory.clone(), streams == SessionStreams::Terminal);
        let (process, placement) = self
            .exec_process(&container, directory, command, has_terminal)
            .await
            .map_err(|source| SessionError::Spec { container: container.id.clone(), source })?;
        container
            .handler
            .runtime
            .exec_session(&container.id, &process, streams, &container.bundle, &placement)
            .await
            .map_err(|source| SessionError::Exec { container: container.id.clone(), source })
    }

    /// Where a created or running container is attached to.
    pub fn attach_point(&self, id: &str) -> Result<AttachPoint, SessionError> {
        let container = self.living(id)?;
        let config = &container.config;
        Ok(AttachPoint {
            bundle: container.bundle.clone(),
            is_over_with_input: config.stdin && !config.stdin_once && !config.tty,
        })
    }

    /// Whether a container can be attached to now; its whole id.
    pub fn check_attach(&self, id: &str) -> Result<ContainerId, SessionError> {
        self.attach_point(id)?;
        Ok(self.objects.find_container(id)?.id.clone())
    }

    /// A ready sandbox's network namespace; `None` for the node's.
    pub fn port_forward_network(&self, id: &str) -> Result<Option<OwnedFd>, SessionError> {
        let sandbox = self.objects.find_sandbox(id)?;
        if sandbox.state() != SandboxState::Ready {
            return Err(SessionError::SandboxNotReady { sandbox: sandbox.id.clone() });
        }
        let Some(path) = sandbox.namespaces.network.clone() else { return Ok(None) };
        sys::namespace::open(&path).map(Some).map_err(|source| SessionError::Network {
            sandbox: sandbox.id.clone(),
            path,
            source,
        })
    }
}
