//! UpdateContainerResources: new limits for a container that exists.
//!
//! The runtime applies them first; then they are written into the stored spec, so that a restart reports them. A daemon
//! that dies in between reports the old ones, and the kubelet sends the new ones again.

use std::path::Path;
use std::sync::{Arc, PoisonError};

use domain::container::ContainerState;
use domain::cpus::CpuSet;
use domain::id::ContainerId;
use domain::resources::Resources;
use domain::spec::{SHARED_ENV, SpecError, updated_resources};
use runtime_client::RuntimeError;
use thiserror::Error;

use crate::blocking;
use crate::container::Container;
use crate::limits::limits_of;
use crate::node::Node;
use crate::objects::LookupError;

/// Why limits were not changed.
#[derive(Debug, Error)]
pub enum UpdateContainerError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It has ended.
    #[error("container {container} is not running or created state: {state}")]
    Ended {
        /// The container.
        container: ContainerId,
        /// Its state.
        state: &'static str,
    },
    /// The limits are none.
    #[error("resources of container {container}")]
    Invalid {
        /// The container.
        container: ContainerId,
        #[source]
        /// What is wrong.
        source: Box<SpecError>,
    },
    /// It uses more memory now. Runtimes would have the kernel kill it.
    #[error(
        "memory validation failed: container {container}: cannot decrease memory limit to {limit} bytes: current usage is {usage} bytes"
    )]
    MemoryInUse {
        /// The container.
        container: ContainerId,
        /// As asked.
        limit: u64,
        /// What it uses.
        usage: u64,
    },
    /// The limits cannot be written as JSON.
    #[error("write the resources of container {container}")]
    Json {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: serde_json::Error,
    },
    /// The runtime refused.
    #[error("update container {container}")]
    Runtime {
        /// The container.
        container: ContainerId,
        #[source]
        /// What it said.
        source: Box<RuntimeError>,
    },
    /// The new limits are in force, but its record still has the old ones.
    #[error("record the new resources of container {container}")]
    Record {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl Node {
    /// Changes the limits of a created or running container. What the request does not give stays as it is.
    pub async fn update_container(self: &Arc<Self>, id: &str, given: Resources) -> Result<(), UpdateContainerError> {
        let container = self.objects.find_container(id)?;
        let node = Arc::clone(self);
        // A task of its own: a client that hangs up leaves no limits that nobody wrote down.
        match tokio::spawn(async move { node.update(&container, &given).await }).await {
            Ok(result) => result,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }

    async fn update(&self, container: &Arc<Container>, given: &Resources) -> Result<(), UpdateContainerError> {
        let _changing = container.changing.lock().await;
        let id = || container.id.clone();
        let state = container.state();
        if matches!(state, ContainerState::Exited { .. }) {
            return Err(UpdateContainerError::Ended { container: id(), state: state.word() });
        }
        let given = with_shared_cpus(given, &container.directory)
            .map_err(|source| UpdateContainerError::Invalid { container: id(), source: Box::new(source) })?;
        let given = &given;
        let limits = updated_resources(given, &self.facts, &container.handler.facts)
            .map_err(|source| UpdateContainerError::Invalid { container: id(), source: Box::new(source) })?;
        self.check_memory(container, given).await?;
        let json =
            serde_json::to_vec(&limits).map_err(|source| UpdateContainerError::Json { container: id(), source })?;
        container
            .handler
            .runtime
            .update(&container.id, &json)
            .await
            .map_err(|source| UpdateContainerError::Runtime { container: id(), source: Box::new(source) })?;
        let (directory, bundle) = (container.directory.clone(), container.bundle.clone());
        let limits = blocking::run("record resources", move || {
            let update: serde_json::Value = serde_json::from_slice(&json)?;
            let mut limits = Resources::default();
            for directory in [directory, bundle] {
                let text = state_store::spec::load_spec_text(&directory)?.ok_or("its config.json is missing")?;
                let mut spec: serde_json::Value = serde_json::from_str(&text)?;
                let score = spec.pointer("/process/oomScoreAdj").and_then(serde_json::Value::as_i64);
                if let Some(resources) = spec.pointer_mut("/linux/resources") {
                    merge(resources, &update);
                    limits = limits_of(resources, score);
                }
                state_store::spec::save_spec(&directory, &serde_json::to_vec(&spec)?)?;
            }
            Ok(limits)
        })
        .await
        .map_err(|source| UpdateContainerError::Record { container: id(), source })?;
        *container.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
        Ok(())
    }

    async fn check_memory(&self, container: &Container, given: &Resources) -> Result<(), UpdateContainerError> {
        let Some(limit) = u64::try_from(given.memory_limit_bytes).ok().filter(|limit| *limit > 0) else {
            return Ok(());
        };
        // Without a number there is nothing to compare with; the kernel has the last word anyway.
        match self.cgroups.memory_in_use(&container.cgroup_parent, &container.id).await {
            Some(usage) if usage > limit => {
                Err(UpdateContainerError::MemoryInUse { container: container.id.clone(), limit, usage })
            }
            _ => Ok(()),
        }
    }
}

/// New CPUs with the shared ones, for a container that was given such: who sends updates does not know of them.
///
/// Source: CRI-O, which goes by the variable that tells the program, too.
fn with_shared_cpus(given: &Resources, directory: &Path) -> Result<Resources, SpecError> {
    let mut given = given.clone();
    if given.cpuset_cpus.is_empty() {
        return Ok(given);
    }
    let own = CpuSet::parse(&given.cpuset_cpus).map_err(|_| SpecError::BadCpuList {
        field: "cpuset_cpus",
        value: given.cpuset_cpus.chars().take(100).collect(),
    })?;
    let spec = state_store::spec::load_spec(directory).ok().flatten().unwrap_or_default();
    let env = spec.process.get("env").and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let shared = env.iter().filter_map(|entry| entry.as_str()?.split_once('=')).find(|(name, _)| *name == SHARED_ENV);
    if let Some(shared) = shared.and_then(|(_, list)| CpuSet::parse(list).ok()) {
        given.cpuset_cpus = own.union(&shared).to_string();
    }
    Ok(given)
}

/// Puts the values of an update over those of an object, objects within it alike.
fn merge(target: &mut serde_json::Value, update: &serde_json::Value) {
    match (target, update) {
        (serde_json::Value::Object(target), serde_json::Value::Object(update)) => {
            for (key, value) in update {
                merge(target.entry(key.clone()).or_insert(serde_json::Value::Null), value);
            }
        }
        (target, update) => *target = update.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_of_a_record_keeps_what_it_does_not_give() {
        let mut target = serde_json::json!({"cpu": {"shares": 2, "quota": 5}, "devices": [1]});
        merge(&mut target, &serde_json::json!({"cpu": {"shares": 9}, "memory": {"limit": 7}}));
        let expected = serde_json::json!({"cpu": {"shares": 9, "quota": 5}, "devices": [1], "memory": {"limit": 7}});
        assert_eq!(target, expected);
    }
}
