//! Whose process namespace a container joins, where it asks for another container's (`kubectl debug --target`).

use domain::container::{ContainerConfig, ContainerState};
use domain::security::NamespaceMode;
use thiserror::Error;

use crate::node::Node;
use crate::objects::LookupError;
use crate::sandbox::Sandbox;

/// Why a container's process namespace cannot be joined.
#[derive(Debug, Error)]
pub enum TargetError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It belongs to another pod.
    #[error("it is in another sandbox")]
    OtherSandbox,
    /// It does not run.
    #[error("it is not running")]
    NotRunning,
}

impl Node {
    /// The first process of the container whose process namespace is asked for; `None` where none is.
    pub(crate) fn target_pid(&self, sandbox: &Sandbox, config: &ContainerConfig) -> Result<Option<i32>, TargetError> {
        let options = &config.security.namespaces;
        if options.pid != NamespaceMode::Target {
            return Ok(None);
        }
        let target = self.objects.find_container(&options.target_id)?;
        if target.sandbox != sandbox.id {
            return Err(TargetError::OtherSandbox);
        }
        match target.state() {
            ContainerState::Running { .. } => Ok(target.namespace_pid()),
            ContainerState::Created { .. } | ContainerState::Exited { .. } => Err(TargetError::NotRunning),
        }
    }
}
