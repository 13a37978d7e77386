//! What containers and sandboxes use, read when somebody asks.
//!
//! One collection at a time, so that a client that asks faster than the node can answer waits instead of multiplying
//! the work. Remembered between collections, for what exists only: the last processor time of each object, from which
//! the rate comes, and the size of each writable layer, which is dear to find.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use cgroup::{Layout, StatsError};
use domain::container::ContainerState;
use domain::id::ContainerId;
use domain::spec::CgroupParent;
use domain::time::Timestamp;
use tokio::sync::Mutex;

pub use cgroup::{CgroupStats, Pressure, Stall};

use crate::container::Container;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::undo::chain;
use crate::{blocking, clock};

/// Two readings closer than this say little about a rate: the earlier rate is told again. The kubelet asks for
/// containers and for sandboxes one right after the other, every ten seconds.
const RATE_INTERVAL_MIN: Duration = Duration::from_millis(500);
/// How old the size of a writable layer may be: the kubelet's eviction looks every ten seconds.
const LAYER_AGE_MAX: Duration = Duration::from_secs(10);
/// Layers with very many files are walked less often: a walk's time is at most this part of all time.
const LAYER_WALK_PART: u32 = 100;
/// Most bytes of a list of interfaces: some two thousand, more than a node with a thousand pods has.
const INTERFACES_MAX_BYTES: u64 = 256 << 10;
/// The interface every namespace has, which leads nowhere.
const LOOPBACK: &str = "lo";

/// Processor, memory and processes of one object.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Usage {
    /// When it was read.
    pub at: Timestamp,
    /// What the kernel counts.
    pub cgroup: CgroupStats,
    /// Nanoseconds of processor time a second since an earlier reading; `None` the first time.
    pub nano_cores: Option<u64>,
}

/// What a container has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritableLayer {
    /// When it was looked at.
    pub at: Timestamp,
    /// Where the container's root file system is mounted, by which CRI-O names it; empty when it is not.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}

/// One container's use.
#[derive(Debug, Clone)]
pub struct ContainerStats {
    /// Whose.
    pub container: Arc<Container>,
    /// `None` for a container that has ended.
    pub usage: Option<Usage>,
    /// `None` when it cannot be read.
    pub writable_layer: Option<WritableLayer>,
}

/// One sandbox's use.
#[derive(Debug, Clone)]
pub struct SandboxStats {
    /// Whose.
    pub sandbox: Arc<Sandbox>,
    /// Of the pod's cgroup; without one, the containers' together.
    pub usage: Usage,
    /// Of its network namespace, the node's where it has none; `None` once it is gone.
    pub network: Option<NetworkStats>,
    /// Its containers but those that have ended and the infra container.
    pub containers: Vec<ContainerStats>,
}

/// Interfaces of a network namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkStats {
    /// When they were read.
    pub at: Timestamp,
    /// In the kernel's order.
    pub interfaces: Vec<Interface>,
}

impl NetworkStats {
    /// The first that leads somewhere.
    #[must_use]
    pub fn default_interface(&self) -> Option<&Interface> {
        self.interfaces.iter().find(|interface| interface.name != LOOPBACK)
    }
}

/// Counters of one interface, since it was made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Interface {
    /// As seen in the namespace.
    pub name: String,
    /// Bytes received.
    pub rx_bytes: u64,
    /// Packets received.
    pub rx_packets: u64,
    /// Errors in receiving.
    pub rx_errors: u64,
    /// Received and dropped.
    pub rx_dropped: u64,
    /// Bytes sent.
    pub tx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Errors in sending.
    pub tx_errors: u64,
    /// Dropped instead of sent.
    pub tx_dropped: u64,
}

/// Reads statistics of a node's containers and sandboxes.
pub struct Statistics {
    node: Arc<Node>,
    history: Arc<Mutex<History>>,
}

/// What is remembered; entries of objects that are gone go with the next collection.
#[derive(Default)]
struct History {
    /// By id of container or sandbox; infra containers, whose id is the sandbox's, are not rated.
    processor: HashMap<String, ProcessorSample>,
    layers: HashMap<ContainerId, LayerSample>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProcessorSample {
    at: Instant,
    usage_nanos: u64,
    nano_cores: Option<u64>,
}

struct LayerSample {
    layer: WritableLayer,
    good_until: Instant,
}

impl Statistics {
    /// Statistics of `node`, with nothing remembered yet.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node, history: Arc::default() }
    }

    /// What these containers use; those that have ended only have their layer.
    pub async fn containers(&self, containers: Vec<Arc<Container>>) -> Vec<ContainerStats> {
        self.collect(move |collection| {
            containers.into_iter().map(|container| collection.container(container)).collect()
        })
        .await
    }

    /// What these sandboxes and their containers use.
    pub async fn sandboxes(&self, sandboxes: Vec<Arc<Sandbox>>) -> Vec<SandboxStats> {
        self.collect(move |collection| sandboxes.into_iter().map(|sandbox| collection.sandbox(sandbox)).collect()).await
    }

    async fn collect<T: Send + 'static>(&self, work: impl FnOnce(&mut Collection<'_>) -> T + Send + 'static) -> T {
        let mut history = Arc::clone(&self.history).lock_owned().await;
        let node = Arc::clone(&self.node);
        blocking::run("read statistics", move || {
            history.forget_absent(&node);
            work(&mut Collection { node: &node, history: &mut history, host_network: None })
        })
        .await
    }
}

impl History {
    /// Cheap as long as nothing was removed.
    fn forget_absent(&mut self, node: &Node) {
        let containers = node.objects.containers();
        let known = containers.len() + node.objects.sandboxes().len();
        if self.processor.len() > known || self.layers.len() > containers.len() {
            let is_known = |id: &str| {
                ContainerId::parse(id).is_ok_and(|id| node.objects.container(&id).is_some())
                    || domain::id::SandboxId::parse(id).is_ok_and(|id| node.objects.sandbox(&id).is_some())
            };
            self.processor.retain(|id, _| is_known(id));
            self.layers.retain(|id, _| is_known(id.as_str()));
        }
    }

    fn rate(&mut self, id: &str, at: Instant, usage_nanos: u64) -> Option<u64> {
        let (sample, nano_cores) = next_sample(self.processor.get(id).copied(), at, usage_nanos);
        match self.processor.get_mut(id) {
            Some(known) => *known = sample,
            None => drop(self.processor.insert(id.to_owned(), sample)),
        }
        nano_cores
    }
}

/// The sample to remember and the rate to tell.
fn next_sample(earlier: Option<ProcessorSample>, at: Instant, usage_nanos: u64) -> (ProcessorSample, Option<u64>) {
    let first = ProcessorSample { at, usage_nanos, nano_cores: None };
    let Some(earlier) = earlier else { return (first, None) };
    let elapsed = at.saturating_duration_since(earlier.at);
    // A cgroup that was made anew counts from zero.
    let Some(used) = usage_nanos.checked_sub(earlier.usage_nanos) else { return (first, None) };
    if elapsed < RATE_INTERVAL_MIN {
        return (earlier, earlier.nano_cores);
    }
    let rate = u128::from(used) * 1_000_000_000 / elapsed.as_nanos();
    let sample = ProcessorSample { nano_cores: Some(u64::try_from(rate).unwrap_or(u64::MAX)), ..first };
    (sample, sample.nano_cores)
}

/// One answer in the making.
struct Collection<'a> {
    node: &'a Node,
    history: &'a mut History,
    /// Read once, for however many sandboxes are on the node's network.
    host_network: Option<NetworkStats>,
}

impl Collection<'_> {
    fn container(&mut self, container: Arc<Container>) -> ContainerStats {
        let usage = has_cgroup(&container).then(|| {
            let cgroup = self.container_cgroup(&container);
            self.usage(container.id.as_str(), cgroup)
        });
        let writable_layer = self.writable_layer(&container.id);
        ContainerStats { container, usage, writable_layer }
    }

    fn sandbox(&mut self, sandbox: Arc<Sandbox>) -> SandboxStats {
        let all = self.node.objects.containers_of(&sandbox.id);
        let containers: Vec<ContainerStats> = all
            .iter()
            .filter(|container| !container.is_infra() && has_cgroup(container))
            .map(|container| self.container(Arc::clone(container)))
            .collect();
        let cgroup = if sandbox.config.cgroup_parent.is_empty() {
            // All pods share the default parent: what is in it says nothing about one.
            let infra = sandbox.infra.as_ref().filter(|infra| has_cgroup(infra));
            let infra = infra.map(|infra| self.container_cgroup(infra)).unwrap_or_default();
            containers
                .iter()
                .filter_map(|container| container.usage.as_ref())
                .fold(infra, |sum, usage| sum.plus(&usage.cgroup))
        } else {
            self.cgroup(&sandbox.config.cgroup_parent, |layout, parent| layout.stats(&parent.directory()))
        };
        let usage = self.usage(sandbox.id.as_str(), cgroup);
        let network = self.network(&sandbox, &all);
        SandboxStats { sandbox, usage, network, containers }
    }

    fn usage(&mut self, id: &str, cgroup: CgroupStats) -> Usage {
        let nano_cores = cgroup.cpu.and_then(|cpu| self.history.rate(id, Instant::now(), cpu.usage_nanos));
        Usage { at: clock::now(), cgroup, nano_cores }
    }

    fn container_cgroup(&self, container: &Container) -> CgroupStats {
        self.cgroup(&container.cgroup_parent, |layout, parent| {
            layout.container_stats(&parent.container_directory(container.id.as_str()))
        })
    }

    fn cgroup(
        &self,
        parent: &str,
        read: impl FnOnce(&Layout, &CgroupParent) -> Result<CgroupStats, StatsError>,
    ) -> CgroupStats {
        let cgroups = &self.node.cgroups;
        let parent = match CgroupParent::parse(cgroups.kind(), parent) {
            Ok(parent) => parent,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "a recorded cgroup parent is unusable");
                return CgroupStats::default();
            }
        };
        read(cgroups.layout(), &parent).unwrap_or_else(|error| {
            tracing::warn!(error = %chain(&error), "reading statistics of a cgroup failed");
            CgroupStats::default()
        })
    }

    fn writable_layer(&mut self, id: &ContainerId) -> Option<WritableLayer> {
        let begun = Instant::now();
        if let Some(sample) = self.history.layers.get(id).filter(|sample| begun < sample.good_until) {
            return Some(sample.layer.clone());
        }
        let used = self.node.store.layer_usage(id);
        let mountpoint = self.node.store.mounted_path(id);
        let (used, mountpoint) = match (used, mountpoint) {
            (Ok(used), Ok(mountpoint)) => (used, mountpoint.unwrap_or_default()),
            (Err(error), _) => {
                tracing::warn!(container.id = %id, error = %chain(&error), "measuring a writable layer failed");
                return None;
            }
            (_, Err(error)) => {
                tracing::warn!(container.id = %id, error = %chain(&error), "finding a container's mount failed");
                return None;
            }
        };
        let layer = WritableLayer { at: clock::now(), mountpoint, used_bytes: used.bytes, inodes_used: used.inodes };
        let ended = Instant::now();
        let age_max = LAYER_AGE_MAX.max(ended.duration_since(begun) * LAYER_WALK_PART);
        self.history.layers.insert(id.clone(), LayerSample { layer: layer.clone(), good_until: ended + age_max });
        Some(layer)
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
fn has_cgroup(container: &Container) -> bool {
    match container.state() {
        ContainerState::Created { .. } | ContainerState::Running { .. } => true,
        ContainerState::Exited { .. } => false,
    }
}

fn read_interfaces(process: &Path) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    File::open(process.join("net/dev"))?.take(INTERFACES_MAX_BYTES).read_to_end(&mut text)?;
    Ok(text)
}

/// The interfaces a process sees, if it still is in the pinned namespace: no thread has to enter it. The process may
/// have ended or moved, and its number may be another's.
fn read_interfaces_of(pid: i32, namespace: &Path) -> Option<Vec<u8>> {
    let process = PathBuf::from(format!("/proc/{pid}"));
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let text = read_interfaces(&process).ok()?;
    let pinned = identity(namespace)?;
    (identity(&process.join("ns/net"))? == pinned).then_some(text)
}

fn read_interfaces_inside(namespace: &Path) -> io::Result<Vec<u8>> {
    let namespace = sys::namespace::open(namespace)?;
    sys::namespace::on_fresh_thread(namespace.as_fd(), || read_interfaces(Path::new("/proc/thread-self")))?
}

/// `/proc/net/dev`, proc(5): two lines of headings, then a name, a colon and sixteen numbers. Names are up to whoever
/// may change interfaces in the pod, so that they need not be UTF-8.
fn parse_interfaces(text: &[u8]) -> Vec<Interface> {
    String::from_utf8_lossy(text)
        .lines()
        .filter_map(|line| {
            let (name, numbers) = line.split_once(':')?;
            let numbers: Vec<u64> = numbers.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect();
            let [
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                _,
                _,
                _,
                _,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
                ..,
            ] = *numbers.as_slice()
            else {
                return None;
            };
            let name = name.trim().to_owned();
            Some(Interface {
                name,
                rx_bytes,
                rx_packets,
                rx_errors,
                rx_dropped,
                tx_bytes,
                tx_packets,
                tx_errors,
                tx_dropped,
            })
        })
        .collect()
}

/// Feeds arbitrary bytes to the parser of interface lists. Law: a line is one interface at the most.
pub fn fuzz_interfaces(bytes: &[u8]) {
    let lines = bytes.split(|byte| *byte == b'\n').count();
    assert!(parse_interfaces(bytes).len() <= lines, "no interface without a line");
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEV: &str = "Inter-|   Receive                                                |  Transmit\n \
        face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed\n    \
        lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0\n  \
        eth0: 34476     475    1    2    0     0          0       439    15838     237    3    4    0     0       0          0\n";

    #[test]
    fn interfaces_are_read_from_the_kernel_s_table() {
        let interfaces = parse_interfaces(DEV.as_bytes());
        assert_eq!(interfaces.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), ["lo", "eth0"]);
        let eth0 = Interface {
            name: "eth0".to_owned(),
            rx_bytes: 34476,
            rx_packets: 475,
            rx_errors: 1,
            rx_dropped: 2,
            tx_bytes: 15838,
            tx_packets: 237,
            tx_errors: 3,
            tx_dropped: 4,
        };
        let network = NetworkStats { at: Timestamp::from_nanos(0), interfaces };
        assert_eq!(network.default_interface(), Some(&eth0));
        for (text, count) in [
            (&b""[..], 0),
            (b"x: 1 2 3\n", 0),
            (b"\xffx: 1 2 3 4 5 6 7 8 9 10 11 12\n", 1),
            (b"x: 1 2 3 4 5 6 7 8 9 10 11 99999999999999999999\n", 0),
        ] {
            assert_eq!(parse_interfaces(text).len(), count, "{text:?}");
        }
        for cut in 0..DEV.len() {
            fuzz_interfaces(&DEV.as_bytes()[..cut]);
        }
    }

    #[test]
    fn the_node_s_own_interfaces_are_found() {
        let text = read_interfaces(Path::new("/proc/thread-self")).expect("readable");
        assert!(parse_interfaces(&text).iter().any(|interface| interface.name == LOOPBACK));
        let own = i32::try_from(std::process::id()).expect("a process id");
        assert!(read_interfaces_of(own, Path::new("/proc/self/ns/net")).is_some());
        assert!(read_interfaces_of(own, Path::new("/proc/self/ns/ipc")).is_none(), "not that namespace");
    }

    #[test]
    fn a_rate_needs_two_readings_some_time_apart() {
        let start = Instant::now();
        let at = |millis| start + Duration::from_millis(millis);
        let sample = |millis, usage_nanos, nano_cores| ProcessorSample { at: at(millis), usage_nanos, nano_cores };
        for (earlier, millis, usage_nanos, expected) in [
            (None, 0, 500, (sample(0, 500, None), None)),
            // Too soon: what was known is told again, and what it rests on stays.
            (Some(sample(0, 0, None)), 100, 500, (sample(0, 0, None), None)),
            (Some(sample(0, 0, Some(7))), 499, 500, (sample(0, 0, Some(7)), Some(7))),
            // Half a second of processor time in two seconds is a quarter of a processor.
            (
                Some(sample(0, 1_000, None)),
                2000,
                500_001_000,
                (sample(2000, 500_001_000, Some(250_000_000)), Some(250_000_000)),
            ),
            (Some(sample(0, 500, Some(9))), 2000, 500, (sample(2000, 500, Some(0)), Some(0))),
            // Made anew.
            (Some(sample(0, 500, Some(9))), 2000, 100, (sample(2000, 100, None), None)),
            (Some(sample(1000, 5, None)), 0, 9, (sample(1000, 5, None), None)),
            (Some(sample(0, 0, None)), 1000, u64::MAX, (sample(1000, u64::MAX, Some(u64::MAX)), Some(u64::MAX))),
        ] {
            assert_eq!(next_sample(earlier, at(millis), usage_nanos), expected, "{earlier:?} {millis} {usage_nanos}");
        }
    }
}
