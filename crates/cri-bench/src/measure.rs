//! The measurements, in the order they are made: start, exec and removal of one pod at a time; the same with several
//! requests under way; memory and statistics with many pods running.
//!
//! Engines take turns, and who is first changes from round to round.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::task::JoinSet;

use crate::arguments::Arguments;
use crate::engine::{Engine, Pod, Statistics};
use crate::error::{BenchError, chain};
use crate::{cpu, memory};

/// Turns each engine gets in the throughput part: enough for a median.
const PARALLEL_BATCHES: u32 = 5;

/// Looks at the memory of a daemon, and the pause between two of them: a collector of garbage may run in between.
const MEMORY_LOOKS: u32 = 5;
const MEMORY_PAUSE: Duration = Duration::from_millis(300);

/// Calls of each kind of statistics with many pods running: enough for a median.
const STATS_CALLS: u32 = 20;

/// A thing that is measured.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Metric {
    /// As in reports and in `--max-ratio`.
    pub(crate) name: &'static str,
    /// Unit of the figures.
    pub(crate) unit: &'static str,
    /// What it is, for people.
    pub(crate) meaning: &'static str,
}

/// Everything that can be measured, in the order of the report.
pub(crate) const METRICS: &[Metric] = &[
    Metric { name: "start", unit: "ms", meaning: "pod start: the three steps below" },
    Metric { name: "run_sandbox", unit: "ms", meaning: "  RunPodSandbox" },
    Metric { name: "create", unit: "ms", meaning: "  CreateContainer" },
    Metric { name: "start_container", unit: "ms", meaning: "  StartContainer" },
    Metric { name: "exec", unit: "ms", meaning: "ExecSync" },
    Metric { name: "remove", unit: "ms", meaning: "pod removal: the two steps below" },
    Metric { name: "stop_sandbox", unit: "ms", meaning: "  StopPodSandbox" },
    Metric { name: "remove_sandbox", unit: "ms", meaning: "  RemovePodSandbox" },
    Metric { name: "parallel_start", unit: "ms/pod", meaning: "pod starts under way together, wall time per pod" },
    Metric { name: "parallel_exec", unit: "ms/exec", meaning: "execs under way together, wall time per exec" },
    Metric { name: "parallel_remove", unit: "ms/pod", meaning: "removals under way together, wall time per pod" },
    Metric { name: "rss_before", unit: "KiB", meaning: "daemon RSS before the many pods" },
    Metric { name: "rss", unit: "KiB", meaning: "daemon RSS with the many pods running" },
    Metric { name: "pss", unit: "KiB", meaning: "daemon PSS with the many pods running" },
    Metric { name: "helpers_pss", unit: "KiB", meaning: "PSS of all monitors or shims of the many pods" },
    Metric { name: "stats", unit: "ms", meaning: "ListContainerStats of the many pods" },
    Metric { name: "stats_cpu", unit: "ms", meaning: "  its processor time, daemon and monitors or shims" },
    Metric { name: "pod_stats", unit: "ms", meaning: "ListPodSandboxStats of the many pods" },
    Metric { name: "pod_stats_cpu", unit: "ms", meaning: "  its processor time, daemon and monitors or shims" },
];

/// Samples by metric.
pub(crate) type Samples = BTreeMap<&'static str, Vec<f64>>;

/// What was measured on one engine.
#[derive(Debug)]
pub(crate) struct EngineResults {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    pub(crate) samples: Samples,
    /// Monitors or shims seen with the many pods running.
    pub(crate) helpers: Option<u64>,
}

/// What was measured, ours first.
#[derive(Debug)]
pub(crate) struct Results {
    pub(crate) engines: Vec<EngineResults>,
    pub(crate) rounds: u32,
    pub(crate) parallel: u32,
    pub(crate) pods: u32,
    pub(crate) host_network: bool,
}

/// Everything asked for by the arguments. `logs` is where container logs go.
pub(crate) async fn all(arguments: &Arguments, engines: &[Engine], logs: &Path) -> Result<Results, BenchError> {
    let mut run = Run {
        arguments,
        engines,
        logs,
        next_number: 0,
        samples: vec![Samples::new(); engines.len()],
        helpers: vec![None; engines.len()],
    };
    // The first pod after a start of the engine pays for what later ones find ready; it is not counted.
    for index in 0..engines.len() {
        run.one_pod(index).await?;
    }
    for samples in &mut run.samples {
        samples.clear();
    }
    for round in 0..arguments.rounds {
        for index in run.turns(round) {
            run.one_pod(index).await?;
        }
    }
    if arguments.parallel > 0 {
        for round in 0..PARALLEL_BATCHES {
            for index in run.turns(round) {
                run.many_at_once(index).await?;
            }
        }
    }
    if arguments.pods > 0 && engines.iter().any(|engine| engine.pid.is_some()) {
        for index in 0..engines.len() {
            run.memory(index).await?;
        }
    }
    let engines = run
        .engines
        .iter()
        .zip(run.samples)
        .zip(run.helpers)
        .map(|((engine, samples), helpers)| EngineResults {
            name: engine.name,
            version: engine.version.clone(),
            samples,
            helpers,
        })
        .collect();
    Ok(Results {
        engines,
        rounds: arguments.rounds,
        parallel: arguments.parallel,
        pods: arguments.pods,
        host_network: arguments.host_network,
    })
}

struct Run<'a> {
    arguments: &'a Arguments,
    engines: &'a [Engine],
    logs: &'a Path,
    next_number: u32,
    samples: Vec<Samples>,
    helpers: Vec<Option<u64>>,
}

impl Run<'_> {
    fn turns(&self, round: u32) -> Vec<usize> {
        let mut turns: Vec<usize> = (0..self.engines.len()).collect();
        if round % 2 == 1 {
            turns.reverse();
        }
        turns
    }

    fn number(&mut self) -> u32 {
        self.next_number += 1;
        self.next_number
    }

    fn add(&mut self, index: usize, metric: &'static str, value: f64) {
        debug_assert!(METRICS.iter().any(|known| known.name == metric));
        self.samples[index].entry(metric).or_default().push(value);
    }

    fn add_time(&mut self, index: usize, metric: &'static str, took: Duration) {
        self.add(index, metric, took.as_secs_f64() * 1e3);
    }

    async fn one_pod(&mut self, index: usize) -> Result<(), BenchError> {
        let engine = &self.engines[index];
        let number = self.number();
        let (pod, start) = engine.start_pod(number, self.arguments, self.logs).await?;
        self.add_time(index, "start", start.run_sandbox + start.create + start.start_container);
        self.add_time(index, "run_sandbox", start.run_sandbox);
        self.add_time(index, "create", start.create);
        self.add_time(index, "start_container", start.start_container);
        for _ in 0..self.arguments.execs {
            let took = engine.exec(&pod.container, &self.arguments.exec_program).await?;
            self.add_time(index, "exec", took);
        }
        let remove = engine.remove_pod(&pod.sandbox).await?;
        self.add_time(index, "remove", remove.stop_sandbox + remove.remove_sandbox);
        self.add_time(index, "stop_sandbox", remove.stop_sandbox);
        self.add_time(index, "remove_sandbox", remove.remove_sandbox);
        Ok(())
    }

    /// One batch: as many pods as requests may be under way; started together, an exec in each, removed together.
    async fn many_at_once(&mut self, index: usize) -> Result<(), BenchError> {
        let engine = self.engines[index].clone();
        let count = self.arguments.parallel;
        let begin = Instant::now();
        let pods = self.start_many(&engine, count, count).await?;
        self.add_time(index, "parallel_start", begin.elapsed() / count);

        let (program, shared) = (Arc::new(self.arguments.exec_program.clone()), Arc::new(engine));
        let begin = Instant::now();
        at_once(count, &pods, |pod| {
            let (engine, program) = (Arc::clone(&shared), Arc::clone(&program));
            async move { engine.exec(&pod.container, &program).await.map(drop) }
        })
        .await?;
        self.add_time(index, "parallel_exec", begin.elapsed() / count);

        let begin = Instant::now();
        remove_many(&shared, &pods, count).await?;
        self.add_time(index, "parallel_remove", begin.elapsed() / count);
        Ok(())
    }

    async fn start_many(&mut self, engine: &Engine, count: u32, parallel: u32) -> Result<Vec<Pod>, BenchError> {
        let numbers: Vec<u32> = (0..count).map(|_| self.number()).collect();
        let mut pods = Vec::new();
        let mut waiting = numbers.into_iter();
        let (arguments, logs) = (self.arguments, self.logs);
        // Its tasks end with it when the run is interrupted.
        let mut under_way = JoinSet::new();
        let shared = Arc::new((engine.clone(), arguments.clone(), logs.to_owned()));
        loop {
            while under_way.len() < parallel as usize
                && let Some(number) = waiting.next()
            {
                let shared = Arc::clone(&shared);
                under_way.spawn(async move {
                    let (engine, arguments, logs) = &*shared;
                    engine.start_pod(number, arguments, logs).await
                });
            }
            match under_way.join_next().await {
                None => return Ok(pods),
                Some(joined) => pods.push(joined.map_err(BenchError::Task)??.0),
            }
        }
    }

    async fn memory(&mut self, index: usize) -> Result<(), BenchError> {
        let engine = self.engines[index].clone();
        let Some(pid) = engine.pid else { return Ok(()) };
        for _ in 0..MEMORY_LOOKS {
            self.add(index, "rss_before", as_f64(memory::of_process(pid)?.rss_kib));
            tokio::time::sleep(MEMORY_PAUSE).await;
        }
        // Two at a time: quick, and no peak of memory that a node would not see.
        const AT_ONCE: u32 = 2;
        let pods = self.start_many(&engine, self.arguments.pods, AT_ONCE).await?;
        // Running they must be: a workload that ended at once would make the figures too good.
        if let Some(pod) = pods.last() {
            engine.exec(&pod.container, &self.arguments.exec_program).await.map_err(|error| match error {
                BenchError::Request { engine, .. } => BenchError::ContainerEnded { engine },
                other => other,
            })?;
        }
        let ids: Vec<String> = pods.iter().flat_map(|pod| [pod.sandbox.clone(), pod.container.clone()]).collect();
        for _ in 0..MEMORY_LOOKS {
            tokio::time::sleep(MEMORY_PAUSE).await;
            let daemon = memory::of_process(pid)?;
            let (helpers_pss, helpers) = memory::of_helpers(&ids)?;
            self.add(index, "rss", as_f64(daemon.rss_kib));
            self.add(index, "pss", as_f64(daemon.pss_kib));
            self.add(index, "helpers_pss", as_f64(helpers_pss));
            self.helpers[index] = Some(helpers);
        }
        self.statistics(index, pid, &memory::find_helpers(&ids)?).await?;
        remove_many(&Arc::new(engine), &pods, AT_ONCE).await
    }

    /// What clients pay who ask how the many pods are, and what the engine pays. A kind that an engine cannot tell
    /// is not measured: containerd 1.6 has none of pods that are not in a cgroup of their own.
    async fn statistics(&mut self, index: usize, pid: u32, helpers: &[u32]) -> Result<(), BenchError> {
        let engine = self.engines[index].clone();
        for (wall, processor, kind) in
            [("stats", "stats_cpu", Statistics::Containers), ("pod_stats", "pod_stats_cpu", Statistics::Sandboxes)]
        {
            let mut before = cpu::of_engine(pid, helpers)?;
            for _ in 0..STATS_CALLS {
                let took = match engine.list_stats(kind).await {
                    Err(error) if error.is_refusal() => {
                        eprintln!("cri-bench: not measured: {}", chain(&error));
                        break;
                    }
                    answer => answer?,
                };
                let after = cpu::of_engine(pid, helpers)?;
                self.add_time(index, wall, took);
                self.add_time(index, processor, after.saturating_sub(before));
                before = after;
            }
        }
        Ok(())
    }
}

async fn remove_many(engine: &Arc<Engine>, pods: &[Pod], parallel: u32) -> Result<(), BenchError> {
    at_once(parallel, pods, |pod| {
        let engine = Arc::clone(engine);
        async move { engine.remove_pod(&pod.sandbox).await.map(drop) }
    })
    .await
}

/// Does something for each pod, with at most `parallel` under way; the first error ends it.
async fn at_once<F>(parallel: u32, pods: &[Pod], act: impl Fn(Pod) -> F) -> Result<(), BenchError>
where
    F: Future<Output = Result<(), BenchError>> + Send + 'static,
{
    let mut waiting = pods.iter();
    let mut under_way = JoinSet::new();
    loop {
        while under_way.len() < parallel as usize
            && let Some(pod) = waiting.next()
        {
            under_way.spawn(act(pod.clone()));
        }
        match under_way.join_next().await {
            None => return Ok(()),
            Some(joined) => joined.map_err(BenchError::Task)??,
        }
    }
}

/// Memory in KiB is far below 2^53, where every whole number is still exact.
#[allow(clippy::cast_precision_loss)]
fn as_f64(value: u64) -> f64 {
    value as f64
}
