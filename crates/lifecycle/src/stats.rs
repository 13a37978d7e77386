//! What containers and sandboxes use.
//!
//! Read when somebody asks, or, with a period of collection, read in the background and told from memory; what is not in
//! memory yet is read at once. One collection at a time, so that a client that asks faster than the node can answer waits
//! instead of multiplying the work. Remembered between collections, for what exists only: the last processor time of each
//! object, from which the rate comes, and the size of each writable layer, which is dear to find.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use domain::id::{ContainerId, SandboxId};
use domain::metrics::{Descriptor, Group, Sample, descriptors};
use domain::time::Timestamp;
use tokio::sync::Mutex;

pub use cgroup::{CgroupStats, Pressure, Stall};

pub use self::interfaces::{Interface, NetworkStats, fuzz_interfaces};
pub use self::layers::WritableLayer;

use self::collection::{Aim, Chosen, Collection, Found, has_cgroup};
use self::layers::Layers;
use self::limits::KnownLimits;
use crate::blocking;
use crate::container::Container;
use crate::node::Node;
use crate::sandbox::Sandbox;

mod collection;
mod interfaces;
mod layers;
mod limits;
mod metrics;
mod processes;

/// Two readings closer than this say little about a rate: the earlier rate is told again. The kubelet asks for
/// containers and for sandboxes one right after the other, every ten seconds.
const RATE_INTERVAL_MIN: Duration = Duration::from_millis(500);

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

/// One container's use.
#[derive(Debug, Clone)]
pub struct ContainerStats {
    /// Whose.
    pub container: Arc<Container>,
    /// `None` for a container that has ended.
    pub usage: Option<Usage>,
    /// `None` when it cannot be read, or is so large that it has yet to be measured.
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

/// One sandbox's metrics.
#[derive(Debug, Clone)]
pub struct SandboxMetrics {
    /// Whose.
    pub sandbox: Arc<Sandbox>,
    /// When they were read.
    pub at: Timestamp,
    /// Of the sandbox as a whole.
    pub samples: Vec<Sample>,
    /// Of its containers but those that have ended and the infra container.
    pub containers: Vec<ContainerMetrics>,
}

/// One container's metrics.
#[derive(Debug, Clone)]
pub struct ContainerMetrics {
    /// Whose.
    pub container: Arc<Container>,
    /// When they were read.
    pub at: Timestamp,
    /// What was read.
    pub samples: Vec<Sample>,
}

/// Reads statistics of a node's containers and sandboxes.
pub struct Statistics {
    reader: Reader,
    /// Zero: on demand.
    period: Duration,
}

/// What reading takes, shared with the collection in the background.
#[derive(Clone)]
struct Reader {
    node: Arc<Node>,
    chosen: Arc<Chosen>,
    layers: Arc<Layers>,
    memory: Arc<Mutex<Memory>>,
}

#[derive(Default)]
struct Memory {
    rates: Rates,
    limits: KnownLimits,
    cache: Cache,
}

/// Processor times by id of container or sandbox; infra containers, whose id is the sandbox's, are not rated. Entries of
/// objects that are gone go with the next collection.
#[derive(Default)]
struct Rates(HashMap<String, ProcessorSample>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct ProcessorSample {
    at: Instant,
    usage_nanos: u64,
    nano_cores: Option<u64>,
}

/// The last collection in the background, and what it missed. Empty without a period.
#[derive(Default)]
struct Cache {
    containers: HashMap<ContainerId, ContainerStats>,
    sandboxes: HashMap<SandboxId, SandboxStats>,
    metrics: HashMap<SandboxId, Arc<SandboxMetrics>>,
}

impl Statistics {
    /// Statistics of `node`, with nothing remembered yet. With a period of collection a task of its own begins.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        let config = &node.config.stats;
        let groups: Vec<Group> = config.enabled_pod_metrics().into_iter().filter_map(Group::parse).collect();
        let period = match config.collection_period {
            Duration::ZERO => config.stats_collection_period,
            period => period,
        };
        let reader = Reader {
            layers: Arc::new(Layers::new(Arc::clone(&node.store))),
            chosen: Arc::new(Chosen { wanted: metrics::wanted(&groups), groups }),
            memory: Arc::default(),
            node,
        };
        if !period.is_zero() {
            tokio::spawn(reader.clone().collect_every(period));
        }
        Self { reader, period }
    }

    /// What these containers use; those that have ended only have their layer.
    pub async fn containers(&self, containers: Vec<Arc<Container>>) -> Vec<ContainerStats> {
        let is_remembering = !self.period.is_zero();
        self.reader
            .run(Aim::Stats, move |collection, cache| {
                let read = |container: Arc<Container>| {
                    if let Some(known) = cache.containers.get(&container.id).filter(|_| has_cgroup(&container)) {
                        return known.clone();
                    }
                    let (stats, _) = collection.container(container, false);
                    if is_remembering {
                        cache.containers.insert(stats.container.id.clone(), stats.clone());
                    }
                    stats
                };
                containers.into_iter().map(read).collect()
            })
            .await
    }

    /// What these sandboxes and their containers use.
    pub async fn sandboxes(&self, sandboxes: Vec<Arc<Sandbox>>) -> Vec<SandboxStats> {
        let is_remembering = !self.period.is_zero();
        self.reader
            .run(Aim::Stats, move |collection, cache| {
                let read = |sandbox: Arc<Sandbox>| {
                    if let Some(known) = cache.sandboxes.get(&sandbox.id) {
                        let mut known = known.clone();
                        known.containers.retain(|stats| has_cgroup(&stats.container));
                        return Some(known);
                    }
                    let stats = collection.sandbox(sandbox).stats;
                    if let Some(stats) = stats.as_ref().filter(|_| is_remembering) {
                        cache.sandboxes.insert(stats.sandbox.id.clone(), stats.clone());
                    }
                    stats
                };
                sandboxes.into_iter().filter_map(read).collect()
            })
            .await
    }

    /// Metrics of every sandbox and its containers, of the configured groups.
    pub async fn metrics(&self) -> Vec<Arc<SandboxMetrics>> {
        let is_remembering = !self.period.is_zero();
        let sandboxes = self.reader.node.sandboxes();
        self.reader
            .run(Aim::Metrics, move |collection, cache| {
                let read = |sandbox: Arc<Sandbox>| {
                    if let Some(known) = cache.metrics.get(&sandbox.id) {
                        return Some(Arc::clone(known));
                    }
                    let metrics = Arc::new(collection.sandbox(sandbox).metrics?);
                    if is_remembering {
                        cache.metrics.insert(metrics.sandbox.id.clone(), Arc::clone(&metrics));
                    }
                    Some(metrics)
                };
                sandboxes.into_iter().filter_map(read).collect()
            })
            .await
    }

    /// What metrics there are: of the configured groups.
    pub fn descriptors(&self) -> impl Iterator<Item = &'static Descriptor> {
        descriptors(&self.reader.chosen.groups)
    }
}

impl Reader {
    async fn run<T: Send + 'static>(
        &self,
        aim: Aim,
        work: impl FnOnce(&mut Collection<'_>, &mut Cache) -> T + Send + 'static,
    ) -> T {
        let mut memory = Arc::clone(&self.memory).lock_owned().await;
        let reader = self.clone();
        let result = blocking::run("read statistics", move || {
            let Memory { rates, limits, cache } = &mut *memory;
            reader.forget_absent(rates, cache);
            limits.forget_absent(reader.node.objects.containers().len(), |id| {
                reader.node.objects.container(id).is_some()
            });
            work(&mut Collection::new(&reader.node, (rates, limits), &reader.layers, &reader.chosen, aim), cache)
        })
        .await;
        self.layers.freshen();
        result
    }

    /// Cheap as long as nothing was removed.
    fn forget_absent(&self, rates: &mut Rates, cache: &mut Cache) {
        let objects = &self.node.objects;
        let (containers, sandboxes) = (objects.containers().len(), objects.sandboxes().len());
        if rates.0.len() > containers + sandboxes {
            rates.0.retain(|id, _| {
                ContainerId::parse(id).is_ok_and(|id| objects.container(&id).is_some())
                    || SandboxId::parse(id).is_ok_and(|id| objects.sandbox(&id).is_some())
            });
        }
        self.layers.forget_absent(containers, |id| objects.container(id).is_some());
        if cache.containers.len() > containers {
            cache.containers.retain(|id, _| objects.container(id).is_some());
        }
        if cache.sandboxes.len().max(cache.metrics.len()) > sandboxes {
            cache.sandboxes.retain(|id, _| objects.sandbox(id).is_some());
            cache.metrics.retain(|id, _| objects.sandbox(id).is_some());
        }
    }

    /// For as long as the daemon lives. The first collection comes a period after the start; whoever asks before that is
    /// answered at once.
    async fn collect_every(self, period: Duration) {
        loop {
            tokio::time::sleep(period).await;
            let sandboxes = self.node.sandboxes();
            self.run(Aim::Both, move |collection, cache| {
                let mut fresh = Cache::default();
                for sandbox in sandboxes {
                    let Found { stats, metrics } = collection.sandbox(sandbox);
                    if let Some(stats) = stats {
                        let containers = stats.containers.iter().cloned();
                        fresh.containers.extend(containers.map(|stats| (stats.container.id.clone(), stats)));
                        fresh.sandboxes.insert(stats.sandbox.id.clone(), stats);
                    }
                    if let Some(metrics) = metrics {
                        fresh.metrics.insert(metrics.sandbox.id.clone(), Arc::new(metrics));
                    }
                }
                *cache = fresh;
            })
            .await;
        }
    }
}

impl Rates {
    /// What an object used a second, now that it has used this much.
    fn of(&mut self, id: &str, at: Instant, usage_nanos: u64) -> Option<u64> {
        let (sample, nano_cores) = next_sample(self.0.get(id).copied(), at, usage_nanos);
        match self.0.get_mut(id) {
            Some(known) => *known = sample,
            None => drop(self.0.insert(id.to_owned(), sample)),
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

#[cfg(test)]
mod tests {
    use super::*;

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
