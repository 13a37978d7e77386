//! ReopenContainerLog: the kubelet has moved the log away, the monitor begins a new one.

use std::sync::Arc;

use domain::container::ContainerState;
use domain::id::ContainerId;
use thiserror::Error;

use crate::node::Node;
use crate::objects::LookupError;

/// Why a log was not reopened.
#[derive(Debug, Error)]
pub enum ReopenLogError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// Only a running container has somebody who writes its log.
    #[error("container {container} is not running: {state}")]
    NotRunning {
        /// The container.
        container: ContainerId,
        /// Its state.
        state: &'static str,
    },
    /// The monitor did not do it.
    #[error("reopen the log of container {container}")]
    Monitor {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: runtime_client::log::ReopenLogError,
    },
}

impl Node {
    /// Has a running container's log opened anew.
    pub async fn reopen_log(self: &Arc<Self>, id: &str) -> Result<(), ReopenLogError> {
        let container = self.objects.find_container(id)?;
        let state = container.state();
        if !matches!(state, ContainerState::Running { .. }) {
            return Err(ReopenLogError::NotRunning { container: container.id.clone(), state: state.word() });
        }
        runtime_client::log::reopen(&container.bundle, &container.log)
            .await
            .map_err(|source| ReopenLogError::Monitor { container: container.id.clone(), source })
    }
}
