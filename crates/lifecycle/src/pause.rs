//! Pausing a container: its processes are frozen, and nothing else about it changes.
//!
//! The kernel alone knows who is paused, or a shim: no record can be wrong, a restart forgets nothing, and a container that somebody
//! else froze is resumed before it is stopped all the same.

use std::sync::Arc;

use domain::container::ContainerState;
use domain::id::ContainerId;
use runtime_client::RuntimeError;
use thiserror::Error;

use crate::container::Container;
use crate::node::Node;
use crate::objects::LookupError;
use crate::undo::chain;

/// Why a container was not paused or resumed.
#[derive(Debug, Error)]
pub enum PauseError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It is not in a state for that.
    #[error("container is not in {wanted} state, now is {state}")]
    State {
        /// What it should be.
        wanted: &'static str,
        /// What it is.
        state: &'static str,
    },
    /// The runtime refused.
    #[error("{verb} container {container}")]
    Runtime {
        /// What was tried.
        verb: &'static str,
        /// The container.
        container: ContainerId,
        #[source]
        /// What it said.
        source: RuntimeError,
    },
}

impl Node {
    /// Freezes the processes of a container.
    pub async fn pause_container(&self, id: &str) -> Result<(), PauseError> {
        let container = self.objects.find_container(id)?;
        let _changing = container.changing.lock().await;
        match self.word_of(&container).await {
            "running" | "created" => {}
            state => return Err(PauseError::State { wanted: "running or created", state }),
        }
        let failed = |source| PauseError::Runtime { verb: "pause", container: container.id.clone(), source };
        container.handler.runtime.pause(&container.id).await.map_err(failed)
    }

    /// Lets the processes of a paused container go on.
    pub async fn unpause_container(&self, id: &str) -> Result<(), PauseError> {
        let container = self.objects.find_container(id)?;
        let _changing = container.changing.lock().await;
        match self.word_of(&container).await {
            "paused" => {}
            state => return Err(PauseError::State { wanted: "paused", state }),
        }
        let failed = |source| PauseError::Runtime { verb: "resume", container: container.id.clone(), source };
        container.handler.runtime.resume(&container.id).await.map_err(failed)
    }

    /// The state of a container in one word, where "paused" is one of its own.
    pub(crate) async fn word_of(&self, container: &Container) -> &'static str {
        let state = container.state();
        if !matches!(state, ContainerState::Exited { .. }) && self.is_paused(container).await {
            return "paused";
        }
        state.word()
    }

    pub(crate) async fn is_paused(&self, container: &Container) -> bool {
        if container.is_behind_shim() {
            return container.handler.runtime.status(&container.id).await.is_ok_and(|status| status == "paused");
        }
        self.cgroups.is_frozen(&container.cgroup_parent, &container.id).await
    }

    /// Resumes a container that is about to be signalled: frozen processes do not even die of SIGKILL on cgroup v1.
    pub(crate) async fn resume_to_stop(self: &Arc<Self>, container: &Container) {
        if !self.is_paused(container).await {
            return;
        }
        if let Err(error) = container.handler.runtime.resume(&container.id).await {
            tracing::warn!(container.id = %container.id, error = %chain(&error), "resuming a paused container to stop it failed");
        }
    }
}
