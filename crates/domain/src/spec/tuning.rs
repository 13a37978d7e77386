//! CPUs for latency-sensitive containers: what annotations ask for, for whom it counts, and what of it the spec says.
//!
//! Everything else (interrupts, idle states, frequencies, load balancing, quota) is done to the machine when the container
//! starts, and undone when it has ended. Source: CRI-O's high-performance annotations.

use std::collections::BTreeMap;

use oci_spec::runtime::{ExecCPUAffinityBuilder, LinuxResources, Process};

use super::{NodeFacts, SpecError};
use crate::cpus::CpuSet;

/// Handlers with this in their name have the features without an annotation. Source: CRI-O.
const HANDLER: &str = "high-performance";
const LOAD_BALANCING: &str = "cpu-load-balancing.crio.io";
const QUOTA: &str = "cpu-quota.crio.io";
const INTERRUPTS: &str = "irq-load-balancing.crio.io";
const IDLE_STATES: &str = "cpu-c-states.crio.io";
const GOVERNOR: &str = "cpu-freq-governor.crio.io";
const SHARED: &str = "cpu-shared.crio.io";
/// Opts out of an invented GOMAXPROCS.
const SKIP_GOMAXPROCS: &str = "skip-gomaxprocs.crio.io";

/// Tells programs which CPUs are theirs alone.
const ISOLATED_ENV: &str = "OPENSHIFT_ISOLATED_CPUS";
/// Tells programs which CPUs they share; containers that have it get them back with every update.
pub const SHARED_ENV: &str = "OPENSHIFT_SHARED_CPUS";
/// Tells programs which of their CPUs still take interrupts.
const HOUSEKEEPING_ENV: &str = "OPENSHIFT_HOUSEKEEPING_CPUS";
/// Shares of one CPU.
const SHARES_A_CPU: u64 = 1024;
/// Governors have names such as `performance`; the kernel's bound is 16 bytes.
const GOVERNOR_MAX_BYTES: usize = 16;

/// Which of a container's CPUs take interrupts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Interrupts {
    /// All, as ever.
    #[default]
    Balanced,
    /// None.
    Off,
    /// Only the threads of its first core.
    Housekeeping,
}

/// What is asked for a container's CPUs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tuning {
    /// The scheduler leaves its CPUs alone.
    pub has_no_load_balancing: bool,
    /// No CFS quota for it and its pod.
    pub has_no_quota: bool,
    /// Interrupts.
    pub interrupts: Interrupts,
    /// For `pm_qos_resume_latency_us`: `0` allows every idle state, `n/a` none, a number those that wake up in as many
    /// microseconds.
    pub resume_latency: Option<String>,
    /// For `scaling_governor`.
    pub governor: Option<String>,
    /// It also gets the node's shared CPUs.
    pub has_shared_cpus: bool,
}

fn bad(key: &str, value: &str) -> SpecError {
    SpecError::BadAnnotation { key: key.to_owned(), reason: format!("{:?} is none of its values", clip(value)) }
}

fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

impl Tuning {
    /// What the annotations of a pod ask for one of its containers; `None` when nothing of this concerns it.
    ///
    /// `effective` are those that take effect, by their new names. Values that mean nothing to the on-off features are
    /// no request, as in CRI-O; those of the others are errors.
    pub fn of(handler: &str, effective: &BTreeMap<String, String>, container: &str) -> Result<Option<Self>, SpecError> {
        let names = [LOAD_BALANCING, QUOTA, INTERRUPTS, IDLE_STATES, GOVERNOR, SHARED];
        let is_annotated = effective.keys().any(|key| {
            names.iter().any(|name| key.strip_prefix(name).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
        });
        if !is_annotated && !handler.contains(HANDLER) {
            return Ok(None);
        }
        let of_container = |name: &str| effective.get(&format!("{name}/{container}")).map(String::as_str);
        let value = |name: &str| of_container(name).or_else(|| effective.get(name).map(String::as_str));
        let is_off = |name: &str| matches!(value(name), Some("disable" | "true"));
        let interrupts = match value(INTERRUPTS) {
            Some("disable" | "true") => Interrupts::Off,
            Some("housekeeping") => Interrupts::Housekeeping,
            _ => Interrupts::Balanced,
        };
        Ok(Some(Self {
            has_no_load_balancing: is_off(LOAD_BALANCING),
            has_no_quota: is_off(QUOTA),
            interrupts,
            resume_latency: effective.get(IDLE_STATES).map(|text| resume_latency(text)).transpose()?,
            governor: effective.get(GOVERNOR).map(|text| governor(text)).transpose()?,
            has_shared_cpus: of_container(SHARED) == Some("enable"),
        }))
    }

    /// Whether this changes anything at all at the start of a container.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        *self == Self::default()
    }

    /// Writes what the spec says of it: the shared CPUs, variables, the CPU of exec sessions.
    pub(super) fn write_to(
        &self,
        resources: &mut LinuxResources,
        process: &mut Process,
        shared: &str,
        exec: ExecCpu,
        node: &NodeFacts,
    ) -> Result<(), SpecError> {
        let list =
            |field, text: &str| CpuSet::parse(text).map_err(|_| SpecError::BadCpuList { field, value: clip(text) });
        let mut cpu = resources.cpu().clone().unwrap_or_default();
        let own = list("cpuset_cpus", cpu.cpus().as_deref().unwrap_or_default())?;
        let mut all = own.clone();
        let mut variables = Vec::new();
        let mut shared_cpus = CpuSet::EMPTY;
        if self.has_shared_cpus {
            shared_cpus = list("shared_cpuset", shared)?;
            if own.is_empty() {
                return Err(SpecError::SharedCpus { reason: "the container has no CPUs of its own" });
            }
            if shared_cpus.is_empty() {
                return Err(SpecError::SharedCpus { reason: "the node has none (shared_cpuset)" });
            }
            variables.push((ISOLATED_ENV, own.to_string()));
            variables.push((SHARED_ENV, shared_cpus.to_string()));
            all = own.union(&shared_cpus);
            cpu.set_cpus(Some(all.to_string()));
            resources.set_cpu(Some(cpu));
        }
        let housekeeping = self.housekeeping(&all, node);
        if !housekeeping.is_empty() {
            variables.push((HOUSEKEEPING_ENV, housekeeping.to_string()));
        }
        for (name, value) in variables {
            set_env(process, name, &value);
        }
        if exec == ExecCpu::First
            && let Some(first) = shared_cpus.first().or_else(|| own.first())
            && let Ok(affinity) = ExecCPUAffinityBuilder::default().initial(first.to_string()).build()
        {
            process.set_exec_cpu_affinity(Some(affinity));
        }
        Ok(())
    }

    /// Those of `cpus` that go on taking interrupts although the others do not: the threads of the first core.
    #[must_use]
    pub fn housekeeping(&self, cpus: &CpuSet, node: &NodeFacts) -> CpuSet {
        match (self.interrupts, cpus.first()) {
            (Interrupts::Housekeeping, Some(first)) => {
                let core = node.thread_siblings.get(&first).cloned().unwrap_or_else(|| CpuSet::one(first));
                core.intersection(cpus)
            }
            _ => CpuSet::EMPTY,
        }
    }
}

/// On which of its CPUs programs run that are executed in a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ExecCpu {
    /// On any.
    #[default]
    Any,
    /// On the first of the shared ones, else on its first.
    First,
}

/// Whether a container has whole CPUs to itself: its pod is Guaranteed, and its shares are those of whole CPUs.
///
/// Source: CRI-O, which looks at the name of the pod's cgroup; others would take CPUs away from everybody.
#[must_use]
pub fn has_whole_cpus(cgroup_parent: &str, resources: &LinuxResources) -> bool {
    let shares = resources.cpu().as_ref().and_then(oci_spec::runtime::LinuxCpu::shares);
    !is_shared_class(cgroup_parent) && shares.is_some_and(|shares| shares % SHARES_A_CPU == 0)
}

fn is_shared_class(cgroup_parent: &str) -> bool {
    cgroup_parent.contains("burstable") || cgroup_parent.contains("besteffort")
}

fn resume_latency(text: &str) -> Result<String, SpecError> {
    match (text, text.strip_prefix("max_latency:").and_then(|number| number.parse::<u32>().ok())) {
        ("enable", _) => Ok("0".to_owned()),
        ("disable", _) => Ok("n/a".to_owned()),
        // The kernel keeps a signed number.
        (_, Some(micros)) if micros > 0 && i32::try_from(micros).is_ok() => Ok(micros.to_string()),
        _ => Err(bad(IDLE_STATES, text)),
    }
}

fn governor(text: &str) -> Result<String, SpecError> {
    let is_name = !text.is_empty()
        && text.len() < GOVERNOR_MAX_BYTES
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if is_name { Ok(text.to_owned()) } else { Err(bad(GOVERNOR, text)) }
}

fn set_env(process: &mut Process, name: &str, value: &str) {
    let mut env = process.env().clone().unwrap_or_default();
    let line = format!("{name}={value}");
    match env.iter_mut().find(|entry| entry.split_once('=').is_some_and(|(known, _)| known == name)) {
        Some(entry) => *entry = line,
        None => env.push(line),
    }
    process.set_env(Some(env));
}

/// Tells Go programs how many threads to run at once, where no quota tells them: in Burstable and BestEffort pods.
///
/// Twice the CPUs asked for, so that the runtime does not throttle itself while others are idle, and at least `floor`.
/// A value of the container's own stays. Source: CRI-O, `min_injected_gomaxprocs`.
pub(super) fn inject_gomaxprocs(
    process: &mut Process,
    resources: &LinuxResources,
    cgroup_parent: &str,
    annotations: &BTreeMap<String, String>,
    floor: u64,
) {
    const NAME: &str = "GOMAXPROCS";
    let cpu = resources.cpu().as_ref();
    let has_quota = cpu.and_then(oci_spec::runtime::LinuxCpu::quota).is_some_and(|quota| quota > 0);
    let is_out = annotations.get(SKIP_GOMAXPROCS).is_some_and(|value| value == "true");
    let is_set =
        process.env().iter().flatten().any(|entry| entry.split_once('=').is_some_and(|(name, _)| name == NAME));
    if floor == 0 || is_out || has_quota || is_set || !is_shared_class(cgroup_parent) {
        return;
    }
    let shares = cpu.and_then(oci_spec::runtime::LinuxCpu::shares).unwrap_or(0);
    let threads = shares.saturating_mul(2).div_ceil(SHARES_A_CPU).max(1).max(floor);
    set_env(process, NAME, &threads.to_string());
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn limits(value: serde_json::Value) -> LinuxResources {
        serde_json::from_value(serde_json::json!({"cpu": value})).expect("resources")
    }

    fn process(env: &[&str]) -> Process {
        let mut process = Process::default();
        process.set_env(Some(env.iter().map(|entry| (*entry).to_owned()).collect()));
        process
    }

    #[test]
    fn annotations_are_understood() {
        let idle = Tuning::default();
        let off = Tuning { interrupts: Interrupts::Off, ..Tuning::default() };
        for (handler, annotations, expected) in [
            ("crun", &[][..], None),
            ("crun", &[("cpu-load-balancing.crio.iox", "disable")], None),
            ("high-performance", &[], Some(idle.clone())),
            ("crun", &[(QUOTA, "false")], Some(idle.clone())),
            ("crun", &[(QUOTA, "disable")], Some(Tuning { has_no_quota: true, ..Tuning::default() })),
            (
                "crun",
                &[("cpu-load-balancing.crio.io/web", "true")],
                Some(Tuning { has_no_load_balancing: true, ..Tuning::default() }),
            ),
            ("crun", &[("cpu-load-balancing.crio.io/other", "true")], Some(idle.clone())),
            ("crun", &[(INTERRUPTS, "disable"), ("irq-load-balancing.crio.io/web", "enable")], Some(idle.clone())),
            ("crun", &[(INTERRUPTS, "true")], Some(off)),
            (
                "crun",
                &[(INTERRUPTS, "housekeeping"), (IDLE_STATES, "max_latency:10"), (GOVERNOR, "performance")],
                Some(Tuning {
                    interrupts: Interrupts::Housekeeping,
                    resume_latency: Some("10".to_owned()),
                    governor: Some("performance".to_owned()),
                    ..Tuning::default()
                }),
            ),
            // shared CPUs are for containers that are named, and only they
            ("crun", &[(SHARED, "enable")], Some(idle.clone())),
            (
                "crun",
                &[("cpu-shared.crio.io/web", "enable")],
                Some(Tuning { has_shared_cpus: true, ..Tuning::default() }),
            ),
            (
                "crun",
                &[(IDLE_STATES, "disable")],
                Some(Tuning { resume_latency: Some("n/a".to_owned()), ..Tuning::default() }),
            ),
            (
                "crun",
                &[(IDLE_STATES, "enable")],
                Some(Tuning { resume_latency: Some("0".to_owned()), ..Tuning::default() }),
            ),
        ] {
            assert_eq!(Tuning::of(handler, &map(annotations), "web"), Ok(expected), "{handler} {annotations:?}");
        }
        for (key, value) in [
            (IDLE_STATES, ""),
            (IDLE_STATES, "max_latency:0"),
            (IDLE_STATES, "max_latency:-1"),
            (IDLE_STATES, "max_latency:4294967295"),
            (IDLE_STATES, "on"),
            (GOVERNOR, ""),
            (GOVERNOR, "../x"),
            (GOVERNOR, "performance\n"),
            (GOVERNOR, "0123456789abcdef"),
        ] {
            assert!(Tuning::of("crun", &map(&[(key, value)]), "web").is_err(), "{key}={value:?}");
        }
    }

    #[test]
    fn only_whole_cpus_of_guaranteed_pods_count() {
        for (parent, cpu, expected) in [
            ("/kubepods/pod1", serde_json::json!({"shares": 2048}), true),
            ("kubepods-pod1.slice", serde_json::json!({"shares": 1024}), true),
            ("/kubepods/pod1", serde_json::json!({"shares": 1000}), false),
            ("/kubepods/pod1", serde_json::json!({}), false),
            ("/kubepods/burstable/pod1", serde_json::json!({"shares": 2048}), false),
            ("kubepods-besteffort-pod1.slice", serde_json::json!({"shares": 1024}), false),
        ] {
            assert_eq!(has_whole_cpus(parent, &limits(cpu.clone())), expected, "{parent} {cpu}");
        }
    }

    #[test]
    fn the_spec_says_which_cpus_are_whose() {
        let mut node = NodeFacts::default();
        node.thread_siblings.insert(2, CpuSet::parse("2,18").expect("a list"));
        let shared = Tuning { has_shared_cpus: true, ..Tuning::default() };
        let kept = Tuning { interrupts: Interrupts::Housekeeping, ..Tuning::default() };
        // tuning, CPUs of the container, shared, exec, CPUs written, environment, CPU of exec
        for (tuning, cpus, node_shared, exec, written, env, exec_cpu) in [
            (
                &shared,
                "2-3",
                "0-1",
                ExecCpu::First,
                "0-3",
                &["OPENSHIFT_ISOLATED_CPUS=2-3", "OPENSHIFT_SHARED_CPUS=0-1"][..],
                Some("0"),
            ),
            (&kept, "2-3,18-19", "", ExecCpu::First, "2-3,18-19", &["OPENSHIFT_HOUSEKEEPING_CPUS=2,18"], Some("2")),
            (&kept, "4-5", "", ExecCpu::Any, "4-5", &["OPENSHIFT_HOUSEKEEPING_CPUS=4"], None),
            (&Tuning::default(), "7", "0", ExecCpu::First, "7", &[], Some("7")),
        ] {
            let mut resources = limits(serde_json::json!({"shares": 2048, "cpus": cpus}));
            let mut process = process(&[]);
            tuning.write_to(&mut resources, &mut process, node_shared, exec, &node).expect("valid");
            let cpu = resources.cpu().clone().expect("limits");
            assert_eq!(cpu.cpus().as_deref(), Some(written));
            assert_eq!(process.env().clone().unwrap_or_default(), env);
            let json = serde_json::to_value(&process).expect("serialises");
            assert_eq!(json.pointer("/execCPUAffinity/initial").and_then(|cpu| cpu.as_str()), exec_cpu);
        }
        for (cpus, node_shared) in [("", "0"), ("1", "")] {
            let mut resources = limits(serde_json::json!({"shares": 1024, "cpus": cpus}));
            let refused = shared.write_to(&mut resources, &mut process(&[]), node_shared, ExecCpu::Any, &node);
            assert!(matches!(refused, Err(SpecError::SharedCpus { .. })), "{refused:?}");
        }
    }

    #[test]
    fn gomaxprocs_follows_the_shares() {
        let skip = [(SKIP_GOMAXPROCS, "true")];
        // parent, limits, environment, annotations, floor, expected
        for (parent, cpu, env, annotations, floor, expected) in [
            ("/kubepods/burstable/p", serde_json::json!({"shares": 1024}), &[][..], &[][..], 1, Some("GOMAXPROCS=2")),
            ("/kubepods/burstable/p", serde_json::json!({"shares": 1025}), &[], &[], 1, Some("GOMAXPROCS=3")),
            ("kubepods-besteffort-p.slice", serde_json::json!({"shares": 2}), &[], &[], 4, Some("GOMAXPROCS=4")),
            ("/kubepods/besteffort/p", serde_json::json!({}), &[], &[], 1, Some("GOMAXPROCS=1")),
            ("/kubepods/p", serde_json::json!({"shares": 1024}), &[], &[], 4, None),
            ("/kubepods/burstable/p", serde_json::json!({"shares": 1024, "quota": 5000}), &[], &[], 4, None),
            ("/kubepods/burstable/p", serde_json::json!({"quota": -1}), &[], &[], 4, Some("GOMAXPROCS=4")),
            ("/kubepods/burstable/p", serde_json::json!({}), &["GOMAXPROCS=9"], &[], 4, Some("GOMAXPROCS=9")),
            ("/kubepods/burstable/p", serde_json::json!({}), &[], &skip, 4, None),
            ("/kubepods/burstable/p", serde_json::json!({}), &[], &[], 0, None),
        ] {
            let mut process = process(env);
            inject_gomaxprocs(&mut process, &limits(cpu.clone()), parent, &map(annotations), floor);
            assert_eq!(
                process.env().clone().unwrap_or_default().first().map(String::as_str),
                expected,
                "{parent} {cpu}"
            );
        }
    }
}
