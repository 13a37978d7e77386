//! StartContainer: the created container's program runs.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use domain::container::{ContainerState, Exit, Process};
use domain::id::ContainerId;
use domain::sandbox::SandboxState;
use runtime_client::RuntimeError;
use thiserror::Error;

use crate::container::Container;
use crate::events::EventKind;
use crate::node::Node;
use crate::objects::LookupError;
use crate::tuning::TuneError;
use crate::{blocking, clock, ends};

/// Between the runtime's `start` and the program's `exec` lie a few system calls. A container whose program is the
/// runtime's own binary never seems to change, so this is also how long such a one is waited for.
const EXEC_LIMIT: Duration = Duration::from_millis(100);
const EXEC_POLL: Duration = Duration::from_micros(200);

/// Why a container was not started.
#[derive(Debug, Error)]
pub enum StartContainerError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It was started before, or has ended.
    #[error("container {container} is not in created state: {state}")]
    NotCreated {
        /// The container.
        container: ContainerId,
        /// Its state.
        state: &'static str,
    },
    /// Its sandbox is being stopped or was.
    #[error("container {container}: its sandbox is not ready")]
    SandboxNotReady {
        /// The container.
        container: ContainerId,
    },
    /// The node's CPUs could not be tuned for it. The container has ended now, with this as its reason.
    #[error("tune CPUs for container {container}")]
    Tune {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: TuneError,
    },
    /// The runtime refused. The container has ended now, with this as its reason.
    #[error("start container {container}")]
    Runtime {
        /// The container.
        container: ContainerId,
        #[source]
        /// What the runtime said.
        source: RuntimeError,
    },
    /// Its new state could not be written down. It was killed.
    #[error("record the start of container {container}")]
    Record {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: state_store::SaveError,
    },
}

impl Node {
    /// Starts a created container. Returns when its program runs, so that a signal sent now reaches the program.
    pub async fn start_container(self: &Arc<Self>, id: &str) -> Result<(), Arc<StartContainerError>> {
        let container = self.objects.find_container(id).map_err(|error| Arc::new(error.into()))?;
        let node = Arc::clone(self);
        self.starts.join(container.id.clone(), || async move { node.start(&container).await }).await
    }

    /// Tunes the node's CPUs where that is asked for, and lets the program run.
    async fn start_at_runtime(&self, container: &Container) -> Result<(), StartContainerError> {
        let id = || container.id.clone();
        self.tune(container).await.map_err(|source| StartContainerError::Tune { container: id(), source })?;
        let started = container.handler.runtime.start(&container.id).await;
        started.map_err(|source| StartContainerError::Runtime { container: id(), source })
    }

    pub(crate) async fn start(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), StartContainerError> {
        let changing = container.changing.lock().await;
        let state = container.state();
        let ContainerState::Created { init } = state else {
            return Err(StartContainerError::NotCreated { container: container.id.clone(), state: state.word() });
        };
        // An infra container is started before its sandbox is there.
        let sandbox = self.objects.sandbox(&container.sandbox).filter(|_| !container.is_infra());
        if sandbox.is_some_and(|sandbox| sandbox.state() != SandboxState::Ready) {
            return Err(StartContainerError::SandboxNotReady { container: container.id.clone() });
        }
        let before = executable_of(init);
        // Taken before the program can run, so that none ends before it began.
        let started = clock::now();
        if let Err(error) = self.start_at_runtime(container).await {
            if is_started(container).await {
                tracing::warn!(container.id = %container.id, error = %crate::undo::chain(&error), "the container runs already");
            } else {
                let _ = container.handler.runtime.signal(&container.id, init, 9).await;
                let message = crate::undo::chain(&error);
                let exit = Exit {
                    code: 128,
                    finished: clock::now(),
                    is_oom_killed: false,
                    is_seccomp_killed: false,
                    error: message,
                };
                self.enter_exited(container, exit).await;
                drop(changing);
                self.release_or_tell(container).await;
                return Err(error);
            }
        }
        // What stands for a program in a guest never becomes it.
        if !container.is_behind_shim() {
            wait_for_exec(init, before).await;
        }
        let running = ContainerState::Running { init, started };
        if let Err(source) = record_running(container, running).await {
            let _ = container.handler.runtime.signal(&container.id, init, 9).await;
            return Err(StartContainerError::Record { container: container.id.clone(), source });
        }
        self.tell_container(container, EventKind::Started);
        drop(changing);
        if ends::has_exit_record(&container.directory) {
            self.record_end(container).await;
        }
        Ok(())
    }
}

/// Whether the program runs in spite of what was recorded or said: a daemon that dies in the middle of a start leaves one
/// that ends well, and nobody to write it down.
pub(crate) async fn is_started(container: &Container) -> bool {
    container.handler.runtime.is_running(&container.id).await.unwrap_or(false)
}

/// Writes down that a container runs, then says so.
pub(crate) async fn record_running(
    container: &Container,
    running: ContainerState,
) -> Result<(), state_store::SaveError> {
    let (stored, directory) = (container.stored(running.clone()), container.directory.clone());
    blocking::run("record start", move || state_store::state::save_state(&directory, &stored)).await?;
    container.state.send_replace(running);
    Ok(())
}

fn executable_of(process: Process) -> Option<PathBuf> {
    std::fs::read_link(format!("/proc/{}/exe", process.pid)).ok()
}

/// Waits until the runtime's init has become the program: until then, as process 1 of its namespace, it ignores SIGTERM.
async fn wait_for_exec(init: Process, before: Option<PathBuf>) {
    let changed = async {
        while before.is_some() && executable_of(init) == before {
            tokio::time::sleep(EXEC_POLL).await;
        }
    };
    let _ = tokio::time::timeout(EXEC_LIMIT, changed).await;
}
