//! A sandbox as the daemon holds it: what was asked and decided at its making, and the little that changes.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use domain::container::ContainerState;
use domain::id::{ContainerId, SandboxId};
use domain::id_maps::IdMaps;
use domain::sandbox::{SandboxConfig, SandboxState};
use domain::security::NamespaceMode;
use domain::time::Timestamp;

use crate::container::Container;
use crate::handler::Handler;
use crate::selinux::SandboxLabels;

/// Pinned namespaces of a sandbox; `None` where it uses the node's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SandboxNamespaces {
    pub(crate) network: Option<PathBuf>,
    pub(crate) ipc: Option<PathBuf>,
    pub(crate) uts: Option<PathBuf>,
    pub(crate) user: Option<PathBuf>,
}

impl SandboxNamespaces {
    /// Where they are pinned.
    pub(crate) fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        [&self.network, &self.ipc, &self.uts, &self.user].into_iter().flatten()
    }
}

/// Files of a sandbox that its containers see.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct SandboxFiles {
    pub(crate) resolv_conf: PathBuf,
    pub(crate) hostname: PathBuf,
    pub(crate) containerenv: PathBuf,
    pub(crate) shm: PathBuf,
}

/// A pod sandbox of this node.
#[derive(Debug)]
pub struct Sandbox {
    /// Its id.
    pub id: SandboxId,
    /// What was asked for.
    pub config: SandboxConfig,
    /// The handler as asked; empty for the default.
    pub runtime_handler: String,
    /// When it was made.
    pub created: Timestamp,
    /// Its addresses, the first one first; none on the node's network.
    pub ips: Vec<IpAddr>,
    pub(crate) name: String,
    pub(crate) handler: Arc<Handler>,
    pub(crate) hostname: String,
    pub(crate) log_directory: PathBuf,
    pub(crate) namespaces: SandboxNamespaces,
    /// Ids of its user namespace, if it has one.
    pub(crate) id_maps: Option<IdMaps>,
    pub(crate) files: SandboxFiles,
    pub(crate) labels: Arc<SandboxLabels>,
    /// The pause container, where one is needed.
    pub(crate) infra: Option<Arc<Container>>,
    /// Records outlive the boot here, bundles do not there.
    pub(crate) directory: PathBuf,
    pub(crate) run_directory: PathBuf,
    state: Mutex<SandboxState>,
    /// Held by stop and remove, one at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
}

/// What is decided while a sandbox is made or restored.
#[derive(Debug)]
pub(crate) struct SandboxParts {
    pub(crate) id: SandboxId,
    pub(crate) config: SandboxConfig,
    pub(crate) runtime_handler: String,
    pub(crate) created: Timestamp,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) handler: Arc<Handler>,
    pub(crate) hostname: String,
    pub(crate) log_directory: PathBuf,
    pub(crate) namespaces: SandboxNamespaces,
    pub(crate) id_maps: Option<IdMaps>,
    pub(crate) files: SandboxFiles,
    pub(crate) labels: Arc<SandboxLabels>,
    pub(crate) infra: Option<Arc<Container>>,
    pub(crate) directory: PathBuf,
    pub(crate) run_directory: PathBuf,
}

impl Sandbox {
    pub(crate) fn new(parts: SandboxParts, state: SandboxState) -> Self {
        Self {
            name: domain::name::sandbox_name(&parts.config.metadata),
            id: parts.id,
            config: parts.config,
            runtime_handler: parts.runtime_handler,
            created: parts.created,
            ips: parts.ips,
            handler: parts.handler,
            hostname: parts.hostname,
            log_directory: parts.log_directory,
            namespaces: parts.namespaces,
            id_maps: parts.id_maps,
            files: parts.files,
            labels: parts.labels,
            infra: parts.infra,
            directory: parts.directory,
            run_directory: parts.run_directory,
            state: Mutex::new(state),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// Ready, unless it was stopped or its infra container ended.
    #[must_use]
    pub fn state(&self) -> SandboxState {
        let recorded = *self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (&self.infra, recorded) {
            (Some(infra), SandboxState::Ready) if matches!(infra.state(), ContainerState::Exited { .. }) => {
                SandboxState::NotReady
            }
            (_, state) => state,
        }
    }

    pub(crate) fn set_not_ready(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = SandboxState::NotReady;
    }

    /// Whether privileged containers may be in it: asked for, or implied by one of the node's namespaces.
    pub(crate) fn is_privileged(&self) -> bool {
        self.config.security.is_privileged()
    }

    /// Whether it uses the node's network.
    #[must_use]
    pub fn is_on_host_network(&self) -> bool {
        self.config.security.namespaces.network == NamespaceMode::Node
    }

    /// Where its state and markers are kept: beside the infra container's records, or, without one, in the run directory,
    /// where CRI-O looks for those of a sandbox without infra process.
    pub(crate) fn state_directory(&self) -> &std::path::Path {
        if self.infra.is_some() { &self.directory } else { &self.run_directory }
    }

    /// Process id of the infra container, if there is one; with a shim what the shim says it is.
    #[must_use]
    pub fn infra_pid(&self) -> Option<i32> {
        self.infra.as_ref().and_then(|infra| infra.namespace_pid())
    }

    /// The infra container's id in the store and at the runtime: the same as the sandbox's.
    pub(crate) fn infra_id(&self) -> ContainerId {
        infra_id(&self.id)
    }
}

/// The infra container of a sandbox has the sandbox's id.
pub(crate) fn infra_id(id: &SandboxId) -> ContainerId {
    ContainerId::parse(id.as_str()).expect("sandbox and container ids have the same form")
}

/// The file name of a sandbox's pinned namespaces: the id's first half in the form of a UUID.
///
/// Derived rather than drawn, so that a restart finds the pins of a sandbox whose record was never finished.
pub(crate) fn pin_name(id: &SandboxId) -> String {
    let hex = id.as_str();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..32])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pins_are_named_like_a_uuid() {
        let id = SandboxId::parse(&"0123456789abcdef".repeat(4)).expect("an id");
        assert_eq!(pin_name(&id), "01234567-89ab-cdef-0123-456789abcdef");
    }
}
