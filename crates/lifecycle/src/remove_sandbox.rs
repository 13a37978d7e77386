//! RemovePodSandbox: stopped if need be, then nothing of it is left. The store's record goes last.

use std::sync::Arc;
use std::time::Duration;

use domain::id::SandboxId;
use futures_util::future::join_all;
use state_store::intent::{Intent, SandboxIntent};
use thiserror::Error;

use crate::blocking;
use crate::ends::ReleaseError;
use crate::events::EventKind;
use crate::node::Node;
use crate::objects::LookupError;
use crate::remove_container::RemoveContainerError;
use crate::sandbox::Sandbox;
use crate::stop_container::Grace;
use crate::stop_sandbox::{StopSandboxError, container_grace};
use crate::undo::chain;

/// Why a sandbox was not removed. The next call goes on where this one ended.
#[derive(Debug, Error)]
pub enum RemoveSandboxError {
    /// The id is empty or ambiguous. A sandbox that does not exist is removed.
    #[error(transparent)]
    Lookup(LookupError),
    /// That it is being removed could not be written down.
    #[error("record the removal of sandbox {sandbox}")]
    Record {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: state_store::SaveError,
    },
    /// It could not be stopped.
    #[error("stop sandbox {sandbox} before removing it")]
    Stop {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: StopSandboxError,
    },
    /// A container of it could not be removed.
    #[error("remove containers of sandbox {sandbox}")]
    Container {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: Arc<RemoveContainerError>,
    },
    /// The node's part in its infra container could not be given back.
    #[error(transparent)]
    Release(ReleaseError),
    /// Its cgroup could not be removed.
    #[error("remove cgroup of sandbox {sandbox}")]
    Cgroup {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its record could not be removed.
    #[error("remove sandbox {sandbox}")]
    Store {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: image_store::RemoveContainerError,
    },
}

impl Node {
    /// Removes a sandbox and everything in it. One that does not exist is removed already.
    ///
    /// `patience` as for [`Node::stop_sandbox`].
    pub async fn remove_sandbox(
        self: &Arc<Self>,
        id: &str,
        patience: Option<Duration>,
    ) -> Result<(), Arc<RemoveSandboxError>> {
        let sandbox = match self.objects.find_sandbox(id) {
            Ok(sandbox) => sandbox,
            Err(error) if error.is_absent() => return Ok(()),
            Err(error) => return Err(Arc::new(RemoveSandboxError::Lookup(error))),
        };
        let grace = container_grace(patience);
        if self.sandbox_stops.is_under_way(&sandbox.id) || self.sandbox_removals.is_under_way(&sandbox.id) {
            self.hasten(&sandbox, grace);
        }
        let node = Arc::clone(self);
        self.sandbox_removals.join(sandbox.id.clone(), || async move { node.remove_parts(&sandbox, grace).await }).await
    }

    pub(crate) async fn remove_parts(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        grace: Grace,
    ) -> Result<(), RemoveSandboxError> {
        let id = &sandbox.id;
        let _changing = sandbox.changing.lock().await;
        if self.objects.sandbox(id).is_none() {
            return Ok(());
        }
        let directory = sandbox.directory.clone();
        let intent = SandboxIntent { intent: Intent::Removing, cgroup_parent: sandbox.config.cgroup_parent.clone() };
        blocking::run("record removal", move || state_store::intent::save_intent(&directory, &intent))
            .await
            .map_err(|source| RemoveSandboxError::Record { sandbox: id.clone(), source })?;
        match self.stop_parts(sandbox, grace).await {
            // Told once by stop; a pod is not kept for it.
            Err(error @ StopSandboxError::Network { .. }) => {
                tracing::warn!(sandbox.id = %id, error = %chain(&error), "removing a sandbox whose network did not let go");
                self.stop_parts(sandbox, grace).await
            }
            result => result,
        }
        .map_err(|source| RemoveSandboxError::Stop { sandbox: id.clone(), source })?;
        let containers = self.objects.containers_of(id);
        let removals = containers
            .into_iter()
            .filter(|container| !container.is_infra())
            .map(|container| self.join_removal(container, grace));
        for removed in join_all(removals).await {
            removed.map_err(|source| RemoveSandboxError::Container { sandbox: id.clone(), source })?;
        }
        if let Some(infra) = &sandbox.infra {
            // Whoever recorded its end has told it too.
            drop(infra.changing.lock().await);
            self.release(infra).await.map_err(RemoveSandboxError::Release)?;
            self.remove_attach_link(id.as_str());
            self.objects.remove_container(&infra.id);
        }
        self.cgroups
            .remove_sandbox(&sandbox.config.cgroup_parent, id)
            .await
            .map_err(|source| RemoveSandboxError::Cgroup { sandbox: id.clone(), source })?;
        let default_logs = self.config.root.log_dir.join(id.as_str());
        let (store, store_id) = (Arc::clone(&self.store), sandbox.infra_id());
        blocking::run("remove sandbox", move || {
            // Only the daemon's own default; a directory the kubelet named is the kubelet's.
            let _ = std::fs::remove_dir_all(default_logs);
            store.remove_container(&store_id)
        })
        .await
        .map_err(|source| RemoveSandboxError::Store { sandbox: id.clone(), source })?;
        self.objects.remove_sandbox(id);
        self.tell_sandbox(sandbox, EventKind::Deleted);
        tracing::info!(sandbox.id = %id, "sandbox is removed");
        Ok(())
    }
}
