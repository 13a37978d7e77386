//! Which annotations, workload and tuning a sandbox and its containers have, and on which CPUs their programs run.

use std::collections::BTreeMap;

use config::{Config, MonitorExecCgroup};
use domain::cpus::CpuSet;
use domain::spec::annotations::filter_annotations;
use domain::spec::{CgroupVersion, SpecError, Tuning, Workload, WorkloadResources};
use runtime_client::ExecPlacement;

use crate::container::Container;
use crate::handler::Handler;
use crate::node::Node;
use crate::sandbox::Sandbox;

/// The workloads of the configuration, in the order of their names.
pub(crate) fn workloads(config: &Config) -> Vec<Workload> {
    let resources = |given: &config::WorkloadResources| WorkloadResources {
        cpushares: given.cpushares,
        cpuquota: given.cpuquota,
        cpuperiod: given.cpuperiod,
        cpuset: given.cpuset.as_ref().map_or("", config::CpuSet::as_str).to_owned(),
        cpulimit: given.cpulimit,
    };
    let workloads = config.runtime.workloads.values().map(|given| Workload {
        activation_annotation: given.activation_annotation.clone(),
        annotation_prefix: given.annotation_prefix.clone(),
        allowed_annotations: given.allowed_annotations.clone(),
        resources: resources(&given.resources),
    });
    workloads.collect()
}

impl Node {
    /// What a pod with these annotations may use: what its handler allows, and what its workload does.
    pub(crate) fn allowed_annotations(&self, handler: &Handler, annotations: &BTreeMap<String, String>) -> Vec<String> {
        let of_workload = Workload::of(&self.workloads, annotations).map(|workload| &workload.allowed_annotations);
        handler.allowed_annotations.iter().chain(of_workload.into_iter().flatten()).cloned().collect()
    }

    /// The annotations a pod keeps: those it may use, and the handler's own where it says nothing.
    pub(crate) fn kept_annotations(
        &self,
        handler: &Handler,
        annotations: &BTreeMap<String, String>,
    ) -> BTreeMap<String, String> {
        let filtered = filter_annotations(annotations, &self.allowed_annotations(handler, annotations));
        if !filtered.dropped.is_empty() {
            tracing::debug!(annotations = ?filtered.dropped, "annotations that are not allowed are left out");
        }
        let mut kept = filtered.kept;
        for (key, value) in &handler.default_annotations {
            kept.entry(key.clone()).or_insert_with(|| value.clone());
        }
        kept
    }

    /// What the annotations of its pod ask for a container's CPUs.
    pub(crate) fn tuning(&self, sandbox: &Sandbox, container: &str) -> Result<Option<Tuning>, SpecError> {
        Tuning::of(&sandbox.handler.runtime.name, &sandbox.effective_annotations(), container)
    }

    /// Where a program begins that is executed in a container.
    ///
    /// `cpu` is what the container's process says about such programs; runtimes older than that know nothing of it, so
    /// that they are started there. On v2 the CPU may be in a partition that only the container's cgroup is in.
    pub(crate) fn exec_placement(&self, container: &Container, process: &serde_json::Value) -> ExecPlacement {
        let initial = process.pointer("/execCPUAffinity/initial").and_then(serde_json::Value::as_str).unwrap_or("");
        let cpus: Vec<u32> = CpuSet::parse(initial).map(|set| set.iter().collect()).unwrap_or_default();
        let is_inside = container.handler.exec_cgroup == MonitorExecCgroup::Container
            || !cpus.is_empty() && self.cgroups.version() == CgroupVersion::V2;
        let init = container.state().init().filter(|_| is_inside);
        let cgroups = init.map(|init| self.cgroups.directories_of(init.pid)).unwrap_or_default();
        ExecPlacement { cpus, cgroups }
    }
}

impl Sandbox {
    /// Those of its annotations that take effect, by their new names. The others were left out when it was made.
    pub(crate) fn effective_annotations(&self) -> BTreeMap<String, String> {
        let all: Vec<String> = self.config.annotations.keys().cloned().collect();
        filter_annotations(&self.config.annotations, &all).effective
    }
}
