//! A container as the daemon holds it: what was asked and decided at its making, and where it is in its life.

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use domain::container::{ContainerConfig, ContainerState, Process, Signal};
use domain::id::{ContainerId, ImageId, SandboxId};
use domain::resources::Resources;
use domain::time::Timestamp;
use tokio::sync::watch;

use crate::handler::Handler;

/// The image a container was made from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerImage {
    /// Its id.
    pub id: ImageId,
    /// A name of it, for people; the id where it has none.
    pub name: String,
    /// `repository@digest` if known, else the id.
    pub reference: String,
}

/// Who runs in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplemental groups.
    pub supplemental_groups: Vec<u32>,
}

/// A container of this node, infra containers included.
#[derive(Debug)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox.
    pub sandbox: SandboxId,
    /// What was asked for.
    pub config: ContainerConfig,
    /// Its image.
    pub image: ContainerImage,
    /// Absolute path of its log.
    pub log: PathBuf,
    /// Who runs in it; absent for containers restored from records that do not say.
    pub user: Option<ContainerUser>,
    /// When it was made.
    pub created: Timestamp,
    pub(crate) name: String,
    pub(crate) handler: Arc<Handler>,
    pub(crate) cgroup_parent: String,
    pub(crate) stop_signal: Signal,
    pub(crate) monitor: Option<Process>,
    /// Records outlive the boot here, bundles do not there.
    pub(crate) directory: PathBuf,
    pub(crate) bundle: PathBuf,
    /// What its spec says, which updates change.
    pub(crate) limits: Mutex<Resources>,
    /// Only changed through [`crate::ends`] and the start operation, which also write it down.
    pub(crate) state: watch::Sender<ContainerState>,
    /// Held by start and remove, and by whoever records the end, one at a time.
    pub(crate) changing: tokio::sync::Mutex<()>,
    /// When the one stop under way will kill.
    pub(crate) stopping: Mutex<Option<watch::Sender<Instant>>>,
    /// A stop has sent SIGKILL: nobody else need have.
    pub(crate) is_killed: AtomicBool,
    /// Why it is being killed for forbidden system calls.
    pub(crate) seccomp_verdict: Mutex<Option<String>>,
    /// The node's share of a container that has ended has been given back: runtime state, cgroup, mounts.
    pub(crate) is_released: tokio::sync::Mutex<bool>,
}

/// What is decided while a container is made or restored.
#[derive(Debug)]
pub(crate) struct ContainerParts {
    pub(crate) id: ContainerId,
    pub(crate) sandbox: SandboxId,
    pub(crate) name: String,
    pub(crate) config: ContainerConfig,
    /// As the runtime spec has them.
    pub(crate) limits: Resources,
    pub(crate) image: ContainerImage,
    pub(crate) log: PathBuf,
    pub(crate) user: Option<ContainerUser>,
    pub(crate) created: Timestamp,
    pub(crate) handler: Arc<Handler>,
    /// Of its sandbox, as asked.
    pub(crate) cgroup_parent: String,
    pub(crate) stop_signal: Signal,
    pub(crate) monitor: Option<Process>,
    pub(crate) directory: PathBuf,
    pub(crate) bundle: PathBuf,
}

impl Container {
    pub(crate) fn new(parts: ContainerParts, state: ContainerState) -> Self {
        Self {
            id: parts.id,
            sandbox: parts.sandbox,
            limits: Mutex::new(parts.limits),
            config: parts.config,
            image: parts.image,
            log: parts.log,
            user: parts.user,
            created: parts.created,
            name: parts.name,
            handler: parts.handler,
            cgroup_parent: parts.cgroup_parent,
            stop_signal: parts.stop_signal,
            monitor: parts.monitor,
            directory: parts.directory,
            bundle: parts.bundle,
            state: watch::Sender::new(state),
            changing: tokio::sync::Mutex::default(),
            stopping: Mutex::default(),
            is_killed: AtomicBool::default(),
            seccomp_verdict: Mutex::default(),
            is_released: tokio::sync::Mutex::default(),
        }
    }

    /// Where it is in its life.
    #[must_use]
    pub fn state(&self) -> ContainerState {
        self.state.borrow().clone()
    }

    /// Whether this is a sandbox's infra container, which lists never show.
    #[must_use]
    pub fn is_infra(&self) -> bool {
        self.id.as_str() == self.sandbox.as_str()
    }

    /// Its limits, updates included.
    #[must_use]
    pub fn resources(&self) -> Resources {
        self.limits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its limits of memory, and of memory and swap together, as [`Container::resources`] has them.
    pub(crate) fn memory_limits(&self) -> (i64, i64) {
        let limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        (limits.memory_limit_bytes, limits.memory_swap_limit_bytes)
    }

    /// The signal it is stopped with.
    #[must_use]
    pub const fn stop_signal(&self) -> Signal {
        self.stop_signal
    }

    /// The record of the state it would be in.
    pub(crate) fn stored(&self, state: ContainerState) -> state_store::state::StoredState {
        state_store::state::StoredState {
            id: self.id.to_string(),
            bundle: self.bundle.display().to_string(),
            created: self.created,
            life: Some(state),
            monitor: self.monitor,
        }
    }
}
