//! StopPodSandbox: off the network, everything in it ended, its namespaces and memory given back.
//!
//! Every step finds its effect already there or makes it, so a call that failed or a daemon that died in between is
//! made good by the next call.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use domain::id::SandboxId;
use domain::sandbox::SandboxConfig;
use domain::security::NamespaceMode;
use durable::Durability;
use thiserror::Error;

use crate::events::EventKind;
use crate::node::Node;
use crate::objects::LookupError;
use crate::run_sandbox::{attachment, network_mappings};
use crate::sandbox::Sandbox;
use crate::sandbox_namespaces::unpin;
use crate::stop_container::{Grace, StopContainerError};
use crate::undo::{Undone, chain};
use crate::{blocking, sandbox_files};

/// What each container of a sandbox gets to end by itself. Source: CRI-O.
const CONTAINER_GRACE: Duration = Duration::from_secs(10);
/// A pause process has nothing to tidy up.
const INFRA_GRACE_SECONDS: i64 = 1;
/// What a caller's patience is shortened by, for the infra container, the network and the namespaces.
const KEPT_BACK: Duration = Duration::from_secs(1);
/// Markers in the sandbox's state directory. Source: CRI-O.
const STOPPED_MARKER: &str = "stopped";
const NETWORK_STOPPED_MARKER: &str = "network-stopped";

/// Why a sandbox was not stopped, or not all of it. The next call goes on where this one ended.
#[derive(Debug, Error)]
pub enum StopSandboxError {
    /// The id is empty or ambiguous. A sandbox that does not exist is stopped.
    #[error(transparent)]
    Lookup(LookupError),
    /// The network did not let go cleanly. It counts as stopped from now on.
    #[error("network teardown failed for pod sandbox {name}({sandbox})")]
    Network {
        /// The sandbox's name.
        name: String,
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A container of it could not be stopped.
    #[error("stop containers of sandbox {sandbox}")]
    Container {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: StopContainerError,
    },
    /// Its namespaces could not be given back.
    #[error("unpin namespaces of sandbox {sandbox}")]
    Namespaces {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its shared memory could not be given back.
    #[error("unmount files of sandbox {sandbox}")]
    Files {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: sandbox_files::SandboxFileError,
    },
    /// That it is stopped could not be written down.
    #[error("mark sandbox {sandbox} stopped")]
    Mark {
        /// The sandbox.
        sandbox: SandboxId,
        #[source]
        /// What failed.
        source: durable::ReplaceError,
    },
}

/// The grace of a sandbox's containers, so that a caller who waits `patience` sees the end: a second is kept back for the
/// infra container and the rest, and of less than two seconds half. Source: CRI-O.
pub(crate) fn container_grace(patience: Option<Duration>) -> Grace {
    let Some(patience) = patience else { return Grace::lasting(CONTAINER_GRACE) };
    let kept_back = if patience < 2 * KEPT_BACK { patience / 2 } else { KEPT_BACK };
    Grace::lasting(CONTAINER_GRACE.min(patience - kept_back))
}

impl Node {
    /// Stops a sandbox. One that does not exist or was stopped is stopped already.
    ///
    /// `patience` is how long the caller waits: its containers get less grace rather than the caller no answer. A call
    /// with less patience than one under way shortens that one's grace.
    pub async fn stop_sandbox(
        self: &Arc<Self>,
        id: &str,
        patience: Option<Duration>,
    ) -> Result<(), Arc<StopSandboxError>> {
        let sandbox = match self.objects.find_sandbox(id) {
            Ok(sandbox) => sandbox,
            Err(error) if error.is_absent() => return Ok(()),
            Err(error) => return Err(Arc::new(StopSandboxError::Lookup(error))),
        };
        let grace = container_grace(patience);
        if self.sandbox_stops.is_under_way(&sandbox.id) {
            self.hasten(&sandbox, grace);
        }
        let node = Arc::clone(self);
        self.sandbox_stops
            .join(sandbox.id.clone(), || async move {
                let _changing = sandbox.changing.lock().await;
                node.stop_parts(&sandbox, grace).await
            })
            .await
    }

    /// Stops everything of a sandbox. The caller holds `changing`.
    ///
    /// The marker does not cut this short: CRI-O sets it as soon as it finds a dead infra process, when nothing has been
    /// given back yet.
    pub(crate) async fn stop_parts(
        self: &Arc<Self>,
        sandbox: &Arc<Sandbox>,
        grace: Grace,
    ) -> Result<(), StopSandboxError> {
        // No container may be created or started in it from here on.
        sandbox.set_not_ready();
        // Side by side: the kubelet has stopped the containers before, and one that still runs gets no less network than
        // with CRI-O, which takes it away first.
        let (network, containers) = tokio::join!(self.stop_network(sandbox), self.stop_containers(sandbox, grace));
        network?;
        containers?;
        if let Some(infra) = &sandbox.infra {
            self.stop(infra, Grace::from_seconds(INFRA_GRACE_SECONDS))
                .await
                .map_err(|source| StopSandboxError::Container { sandbox: sandbox.id.clone(), source })?;
        }
        unpin(sandbox.namespaces.clone())
            .await
            .map_err(|source| StopSandboxError::Namespaces { sandbox: sandbox.id.clone(), source })?;
        self.adopt_linked_logs(sandbox).await;
        let run_directory = sandbox.run_directory.clone();
        blocking::run("unmount sandbox files", move || sandbox_files::unmount(&run_directory))
            .await
            .map_err(|source| StopSandboxError::Files { sandbox: sandbox.id.clone(), source })?;
        if !has_marker(sandbox, STOPPED_MARKER) {
            mark(sandbox, STOPPED_MARKER).await?;
            // An infra process tells its own end.
            if sandbox.infra.is_none() {
                self.tell_sandbox(sandbox, EventKind::Stopped);
            }
        }
        Ok(())
    }

    /// Shortens the grace of containers that are being stopped. How that ends is told to whoever began it.
    pub(crate) fn hasten(self: &Arc<Self>, sandbox: &Arc<Sandbox>, grace: Grace) {
        let (node, sandbox) = (Arc::clone(self), Arc::clone(sandbox));
        tokio::spawn(async move { drop(node.stop_containers(&sandbox, grace).await) });
    }

    async fn stop_containers(self: &Arc<Self>, sandbox: &Sandbox, grace: Grace) -> Result<(), StopSandboxError> {
        let containers = self.objects.containers_of(&sandbox.id);
        let stops =
            containers.iter().filter(|container| !container.is_infra()).map(|container| self.stop(container, grace));
        for stopped in futures_util::future::join_all(stops).await {
            stopped.map_err(|source| StopSandboxError::Container { sandbox: sandbox.id.clone(), source })?;
        }
        Ok(())
    }

    /// Takes a sandbox off the network, once. An error is told once too: the network counts as stopped afterwards, so
    /// that a broken plugin does not keep a pod forever.
    async fn stop_network(&self, sandbox: &Sandbox) -> Result<(), StopSandboxError> {
        if sandbox.is_on_host_network() || has_marker(sandbox, NETWORK_STOPPED_MARKER) {
            return Ok(());
        }
        let detached = self.detach(&sandbox.id, &sandbox.config, sandbox.namespaces.network.clone()).await;
        if detached.is_err()
            && let Err(error) = self.network.forget(&sandbox.id)
        {
            tracing::warn!(sandbox.id = %sandbox.id, %error, "forgetting a network attachment failed");
        }
        mark(sandbox, NETWORK_STOPPED_MARKER).await?;
        detached.map_err(|source| StopSandboxError::Network {
            name: sandbox.name.clone(),
            sandbox: sandbox.id.clone(),
            source,
        })
    }

    /// Removes host ports and the attachment of a sandbox, whatever of them there is. Without a recorded pin of its
    /// network namespace it is looked for under our own name for it.
    pub(crate) async fn detach(&self, id: &SandboxId, config: &SandboxConfig, pin: Option<PathBuf>) -> Undone {
        if config.security.namespaces.network == NamespaceMode::Node {
            return Ok(());
        }
        if let Some(host_ports) = &self.host_ports
            && !config.port_mappings.is_empty()
            && let Err(error) = host_ports.remove(id, &network_mappings(config)).await
        {
            tracing::warn!(sandbox.id = %id, error = %chain(&error), "removing host ports failed");
        }
        let pin = pin.unwrap_or_else(|| {
            let directory = self.config.runtime.namespaces_dir.join(sys::namespace::Kind::Net.directory());
            directory.join(crate::sandbox::pin_name(id))
        });
        let netns = Some(pin).filter(|path| sys::namespace::is_pinned(path).unwrap_or(false));
        let is_lost = netns.is_none();
        match self.network.del(&attachment(id, config, netns)).await {
            Ok(()) => Ok(()),
            Err(error) if is_lost => {
                tracing::debug!(sandbox.id = %id, error = %chain(&error), "detaching a sandbox without namespace failed");
                Ok(self.network.forget(id)?)
            }
            Err(error) => Err(error.into()),
        }
    }
}

fn has_marker(sandbox: &Sandbox, marker: &str) -> bool {
    sandbox.state_directory().join(marker).exists()
}

/// Whether a sandbox was stopped by an earlier daemon.
pub(crate) fn is_marked_stopped(directory: &std::path::Path) -> bool {
    directory.join(STOPPED_MARKER).exists()
}

async fn mark(sandbox: &Sandbox, marker: &'static str) -> Result<(), StopSandboxError> {
    let path = sandbox.state_directory().join(marker);
    blocking::run("mark sandbox", move || durable::replace(&path, b"", 0o644, Durability::Volatile))
        .await
        .map_err(|source| StopSandboxError::Mark { sandbox: sandbox.id.clone(), source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grace_leaves_time_for_the_rest_of_the_callers_patience() {
        let ms = Duration::from_millis;
        for (patience, grace) in [
            (None, CONTAINER_GRACE),
            (Some(ms(120_000)), CONTAINER_GRACE),
            (Some(ms(11_000)), ms(10_000)),
            (Some(ms(5000)), ms(4000)),
            (Some(ms(2000)), ms(1000)),
            (Some(ms(1000)), ms(500)),
            (Some(ms(0)), ms(0)),
        ] {
            assert_eq!(container_grace(patience), Grace::lasting(grace), "{patience:?}");
        }
    }
}
