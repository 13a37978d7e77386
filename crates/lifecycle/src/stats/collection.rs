//! One look at containers and sandboxes. Every file is read once, and none that nobody asked for.

use std::collections::HashMap;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use cgroup::{CgroupStats, Details, Known, Layout, StatsError, Wanted};
use domain::container::ContainerState;
use domain::id::SandboxId;
use domain::metrics::Group;
use domain::spec::CgroupParent;

use super::interfaces::{NetworkStats, parse_interfaces, read_interfaces, read_interfaces_inside, read_interfaces_of};
use super::layers::Layers;
use super::limits::KnownLimits;
use super::metrics::{self, Filesystem, Reading, nanos_to_seconds};
use super::{ContainerMetrics, ContainerStats, Rates, SandboxMetrics, SandboxStats, Usage};
use crate::clock;
use crate::container::Container;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::undo::chain;

/// Which metrics are made, and what they need.
#[derive(Debug)]
pub(super) struct Chosen {
    pub(super) groups: Vec<Group>,
    pub(super) wanted: Wanted,
}

/// What was found of one sandbox.
pub(super) struct Found {
    pub(super) stats: Option<SandboxStats>,
    pub(super) metrics: Option<SandboxMetrics>,
}

/// What a look is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Aim {
    Stats,
    Metrics,
    Both,
}

/// One answer in the making.
pub(super) struct Collection<'a> {
    node: &'a Node,
    rates: &'a mut Rates,
    limits: &'a mut KnownLimits,
    layers: &'a Layers,
    chosen: &'a Chosen,
    aim: Aim,
    /// Read once, for however many sandboxes are on the node's network.
    host_network: Option<NetworkStats>,
    filesystem: Option<Filesystem>,
    /// Sorted once, for however many sandboxes.
    containers: Option<HashMap<SandboxId, Vec<Arc<Container>>>>,
}

impl<'a> Collection<'a> {
    pub(super) fn new(
        node: &'a Node,
        (rates, limits): (&'a mut Rates, &'a mut KnownLimits),
        layers: &'a Layers,
        chosen: &'a Chosen,
        aim: Aim,
    ) -> Self {
        let is_disk = aim != Aim::Stats && chosen.groups.contains(&Group::Disk);
        let filesystem = if is_disk { Filesystem::of(&node.config.root.root) } else { None };
        Self { node, rates, limits, layers, chosen, aim, host_network: None, filesystem, containers: None }
    }

    /// Processes are counted only for who sums them up: the CRI does not tell those of a container.
    pub(super) fn container(
        &mut self,
        container: Arc<Container>,
        is_summed: bool,
    ) -> (ContainerStats, Option<ContainerMetrics>) {
        let is_live = has_cgroup(&container);
        let (cgroup, details) = if is_live { self.container_cgroup(&container, is_summed) } else { Default::default() };
        let is_layer_wanted = self.aim != Aim::Metrics || self.chosen.groups.contains(&Group::Disk);
        let writable_layer = if is_layer_wanted { self.layers.of(&container) } else { None };
        let metrics = (is_live && self.aim != Aim::Stats).then(|| {
            let reading = Reading {
                container: &container,
                stats: &cgroup,
                details: &details,
                layer: writable_layer.as_ref(),
                filesystem: self.filesystem,
            };
            let at = clock::now();
            let samples = reading.samples(&self.chosen.groups, nanos_to_seconds(at.nanos()));
            ContainerMetrics { container: Arc::clone(&container), at, samples }
        });
        let usage = (is_live && self.aim != Aim::Metrics).then(|| self.usage(container.id.as_str(), cgroup));
        (ContainerStats { container, usage, writable_layer }, metrics)
    }

    pub(super) fn sandbox(&mut self, sandbox: Arc<Sandbox>) -> Found {
        let all = self.containers_of(&sandbox.id);
        let (mut containers, mut container_metrics) = (Vec::new(), Vec::new());
        for container in all.iter().filter(|container| !container.is_infra() && has_cgroup(container)) {
            let is_summed = sandbox.config.cgroup_parent.is_empty();
            let (stats, metrics) = self.container(Arc::clone(container), is_summed);
            containers.push(stats);
            container_metrics.extend(metrics);
        }
        let is_network_wanted = self.aim != Aim::Metrics || self.chosen.groups.contains(&Group::Network);
        let network = if is_network_wanted { self.network(&sandbox, &all) } else { None };
        let metrics = (self.aim != Aim::Stats).then(|| {
            let told = network.as_ref().filter(|_| self.chosen.groups.contains(&Group::Network));
            SandboxMetrics {
                sandbox: Arc::clone(&sandbox),
                at: clock::now(),
                samples: told.map(|network| metrics::network(&network.interfaces)).unwrap_or_default(),
                containers: container_metrics,
            }
        });
        let stats = (self.aim != Aim::Metrics).then(|| {
            let cgroup = self.sandbox_cgroup(&sandbox, &containers);
            let usage = self.usage(sandbox.id.as_str(), cgroup);
            SandboxStats { sandbox, usage, network, containers }
        });
        Found { stats, metrics }
    }

    fn containers_of(&mut self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        let node = self.node;
        let sort = || {
            let mut sorted: HashMap<SandboxId, Vec<Arc<Container>>> = HashMap::new();
            for container in node.objects.containers() {
                sorted.entry(container.sandbox.clone()).or_default().push(container);
            }
            sorted
        };
        self.containers.get_or_insert_with(sort).get(sandbox).cloned().unwrap_or_default()
    }

    fn sandbox_cgroup(&mut self, sandbox: &Sandbox, containers: &[ContainerStats]) -> CgroupStats {
        if !sandbox.config.cgroup_parent.is_empty() {
            return self.cgroup(&sandbox.config.cgroup_parent, |layout, parent| layout.stats(&parent.directory()));
        }
        // All pods share the default parent: what is in it says nothing about one.
        let infra = sandbox.infra.as_ref().filter(|infra| has_cgroup(infra));
        let infra = infra.map(|infra| self.container_stats(infra, true)).unwrap_or_default();
        let usages = containers.iter().filter_map(|container| container.usage.as_ref());
        usages.fold(infra, |sum, usage| sum.plus(&usage.cgroup))
    }

    fn usage(&mut self, id: &str, cgroup: CgroupStats) -> Usage {
        let nano_cores = cgroup.cpu.and_then(|cpu| self.rates.of(id, Instant::now(), cpu.usage_nanos));
        Usage { at: clock::now(), cgroup, nano_cores }
    }

    fn container_cgroup(&mut self, container: &Container, is_summed: bool) -> (CgroupStats, Details) {
        if self.aim == Aim::Stats || container.is_behind_shim() {
            return (self.container_stats(container, is_summed), Details::default());
        }
        self.cgroup(&container.cgroup_parent, |layout, parent| {
            layout.container_details(&parent.container_directory(container.id.as_str()), &self.chosen.wanted)
        })
    }

    fn container_stats(&mut self, container: &Container, is_summed: bool) -> CgroupStats {
        if container.is_behind_shim() {
            return container.shim_stats();
        }
        let given = container.memory_limits();
        let limits = self.limits.of(&container.id, given);
        let known = Known { limits, is_without_process_count: !is_summed };
        let stats = self.cgroup(&container.cgroup_parent, |layout, parent| {
            layout.container_stats(&parent.container_directory(container.id.as_str()), known)
        });
        if let (None, Some(memory)) = (limits, &stats.memory) {
            self.limits.remember(&container.id, given, memory.limits());
        }
        stats
    }

    fn cgroup<T: Default>(
        &self,
        parent: &str,
        read: impl FnOnce(&Layout, &CgroupParent) -> Result<T, StatsError>,
    ) -> T {
        let cgroups = &self.node.cgroups;
        let parent = match CgroupParent::parse(cgroups.kind(), parent) {
            Ok(parent) => parent,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a recorded cgroup parent is unusable");
                return T::default();
            }
        };
        read(cgroups.layout(), &parent).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "reading statistics of a cgroup failed");
            T::default()
        })
    }

    fn network(&mut self, sandbox: &Sandbox, containers: &[Arc<Container>]) -> Option<NetworkStats> {
        let read = |text: io::Result<Vec<u8>>| match text {
            Ok(text) => Some(NetworkStats { at: clock::now(), interfaces: parse_interfaces(&text) }),
            Err(error) => {
                tracing::debug!(sandbox.id = %sandbox.id, %error, "reading a sandbox's interfaces failed");
                None
            }
        };
        if sandbox.is_on_host_network() {
            if self.host_network.is_none() {
                self.host_network = read(read_interfaces(Path::new("/proc/thread-self")));
            }
            return self.host_network.clone();
        }
        let namespace = sandbox.namespaces.network.as_ref()?;
        let running = containers.iter().find_map(|container| match container.state() {
            ContainerState::Running { init, .. } => Some(init.pid),
            ContainerState::Created { .. } | ContainerState::Exited { .. } => None,
        });
        match running.and_then(|pid| read_interfaces_of(pid, namespace)) {
            Some(text) => read(Ok(text)),
            // Gone with a stop of the sandbox.
            None if !sys::namespace::is_pinned(namespace).unwrap_or(false) => None,
            None => read(read_interfaces_inside(namespace)),
        }
    }
}

/// The runtime makes it with the container; it goes with the container's processes.
pub(super) fn has_cgroup(container: &Container) -> bool {
    match container.state() {
        ContainerState::Created { .. } | ContainerState::Running { .. } => true,
        ContainerState::Exited { .. } => false,
    }
}
