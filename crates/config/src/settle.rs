//! Rules that join several keys, and the deprecated keys that stand in for others.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::handler::{
    DEFAULT_MONITOR_SLICE, DEFAULT_RUNTIME, KNOWN_ANNOTATIONS, MIN_CREATE_TIMEOUT, RuntimeHandler, Workload,
};
use crate::load::Merged;
use crate::model::{Config, METRICS_COLLECTORS};
use crate::problem::{Origin, Problem, Warning, WarningKind};
use crate::value::{CgroupManager, CheckpointRestoreLevel, MonitorCgroup, RuntimeType, TlsMinVersion};

/// Waiting less than this for a container's end would leave processes behind. Source: CRI-O does this.
const MIN_STOP_TIMEOUT: Duration = Duration::from_secs(30);

/// The kernel refuses shorter periods. Source: kernel/sched/core.c, `min_cfs_quota_period`.
const MIN_QUOTA_PERIOD_MICROSECONDS: u64 = 1000;

/// Collects what is found, with the origin of the key it concerns.
struct Findings<'a> {
    merged: &'a Merged,
    problems: &'a mut Vec<Problem>,
    warnings: &'a mut Vec<Warning>,
}

impl Findings<'_> {
    fn problem(&mut self, key: &str, what: impl Into<String>) {
        self.problems.push(Problem { origin: self.merged.origin(key), key: key.to_owned(), what: what.into() });
    }
    fn adjusted(&mut self, key: &str, how: impl Into<String>) {
        let kind = WarningKind::Adjusted(how.into());
        self.warnings.push(Warning { origin: self.merged.origin(key), key: key.to_owned(), kind });
    }
    /// Where a handler's key was given, or else its table.
    fn handler_origin(&self, name: &str, key: &str) -> Origin {
        self.merged.handlers.get(name).map_or(Origin::BuiltIn, |entry| {
            entry.values.get(key).map_or_else(|| entry.origin.clone(), |located| located.origin.clone())
        })
    }
}

/// Applies the rules to a configuration whose single values are checked.
pub(crate) fn settle(
    config: &mut Config,
    merged: &Merged,
    mut handler_problems: BTreeMap<String, Vec<Problem>>,
    problems: &mut Vec<Problem>,
    warnings: &mut Vec<Warning>,
) {
    let mut findings = Findings { merged, problems, warnings };
    storage(config, &mut findings);
    api(config, &mut findings);
    runtime(config, &mut findings);
    for (name, workload) in &config.runtime.workloads {
        check_workload(name, workload, &mut findings);
    }
    handlers(config, &mut handler_problems, &mut findings);
    if !config.runtime.enable_criu_support {
        config.checkpoint_restore.container_level_enabled = CheckpointRestoreLevel::None;
    }
    for name in &config.metrics.metrics_collectors {
        if !METRICS_COLLECTORS.contains(&name.as_str()) {
            findings.adjusted("crio.metrics.metrics_collectors", format!("unknown collector {name:?} ignored"));
        }
    }
}

fn storage(config: &Config, findings: &mut Findings<'_>) {
    if config.root.imagestore.as_ref() == Some(&config.root.root) {
        findings.problem("crio.imagestore", "must differ from root");
    }
}

fn api(config: &Config, findings: &mut Findings<'_>) {
    let api = &config.api;
    if api.stream_enable_tls {
        if api.stream_tls_cert.is_none() {
            findings.problem("crio.api.stream_tls_cert", "needed because stream_enable_tls is set");
        }
        if api.stream_tls_key.is_none() {
            findings.problem("crio.api.stream_tls_key", "needed because stream_enable_tls is set");
        }
    }
    if api.tls_min_version == TlsMinVersion::Tls13 && !api.tls_cipher_suites.is_empty() {
        findings.adjusted("crio.api.tls_cipher_suites", "ignored, TLS 1.3 has its own cipher suites");
    }
}

fn runtime(config: &mut Config, findings: &mut Findings<'_>) {
    let runtime = &mut config.runtime;
    if runtime.ctr_stop_timeout < MIN_STOP_TIMEOUT {
        runtime.ctr_stop_timeout = MIN_STOP_TIMEOUT;
        findings.adjusted("crio.runtime.ctr_stop_timeout", format!("raised to {} s", MIN_STOP_TIMEOUT.as_secs()));
    }
    match (runtime.uid_mappings.is_empty(), runtime.gid_mappings.is_empty()) {
        (true, true) | (false, false) => {}
        (true, false) => findings.problem("crio.runtime.gid_mappings", "uid_mappings must be given, too"),
        (false, true) => findings.problem("crio.runtime.uid_mappings", "gid_mappings must be given, too"),
    }
    let is_slice = matches!(runtime.separate_pull_cgroup, crate::value::PullCgroup::Slice(_));
    if is_slice && runtime.cgroup_manager == CgroupManager::Cgroupfs {
        findings.problem("crio.runtime.separate_pull_cgroup", "a systemd slice needs cgroup_manager \"systemd\"");
    }
    if runtime.default_runtime.is_empty() {
        DEFAULT_RUNTIME.clone_into(&mut runtime.default_runtime);
    }
    if !runtime.runtimes.contains_key(&runtime.default_runtime) {
        let known: Vec<_> = runtime.runtimes.keys().map(String::as_str).collect();
        findings.problem(
            "crio.runtime.default_runtime",
            format!("no runtime handler {:?}, there is {}", runtime.default_runtime, known.join(", ")),
        );
    }
}

fn check_workload(name: &str, workload: &Workload, findings: &mut Findings<'_>) {
    let origin = findings.merged.workloads.get(name).map_or(Origin::BuiltIn, |entry| entry.origin.clone());
    let mut problem = |key: &str, what: String| {
        let key = format!("crio.runtime.workloads.{name}.{key}");
        findings.problems.push(Problem { origin: origin.clone(), key, what });
    };
    if workload.activation_annotation.is_empty() {
        problem("activation_annotation", "must not be empty".to_owned());
    }
    for unknown in unknown_annotations(&workload.allowed_annotations) {
        problem("allowed_annotations", format!("{unknown:?} is not a known annotation"));
    }
    let resources = &workload.resources;
    let quota_below_shares = i64::try_from(resources.cpushares).map_or(true, |shares| resources.cpuquota < shares);
    if resources.cpuquota != 0 && quota_below_shares {
        problem("resources.cpuquota", format!("{} is less than cpushares", resources.cpuquota));
    }
    if resources.cpuquota < -1 {
        problem("resources.cpuquota", format!("{} is negative; -1 is no limit", resources.cpuquota));
    }
    if resources.cpulimit < 0 {
        problem("resources.cpulimit", format!("{} is negative", resources.cpulimit));
    }
    if resources.cpuperiod != 0 && resources.cpuperiod < MIN_QUOTA_PERIOD_MICROSECONDS {
        problem("resources.cpuperiod", format!("{} is less than 1000 microseconds", resources.cpuperiod));
    }
}

/// Settles every handler; one with a problem ends the start if it is the default and is left out otherwise.
fn handlers(config: &mut Config, found: &mut BTreeMap<String, Vec<Problem>>, findings: &mut Findings<'_>) {
    let runtime = &mut config.runtime;
    let default_name = runtime.default_runtime.clone();
    let default = runtime.runtimes.get(&default_name).cloned();
    let conmon_group = match runtime.conmon_cgroup.as_str() {
        "" => None,
        "pod" => Some(MonitorCgroup::Sandbox),
        slice => Some(MonitorCgroup::Slice(slice.to_owned())),
    };
    let mut dropped = Vec::new();
    for (name, handler) in &mut runtime.runtimes {
        if handler.inherit_default_runtime
            && *name != default_name
            && let Some(default) = &default
        {
            handler.runtime_path.clone_from(&default.runtime_path);
            handler.runtime_type = default.runtime_type;
            handler.runtime_config_path.clone_from(&default.runtime_config_path);
            handler.runtime_root.clone_from(&default.runtime_root);
        }
        if handler.runtime_type == RuntimeType::Oci {
            if let Some(conmon) = &runtime.conmon {
                handler.monitor_path = Some(conmon.clone());
            }
            if let Some(group) = &conmon_group {
                handler.monitor_cgroup = group.clone();
            }
            if !runtime.conmon_env.is_empty() {
                handler.monitor_env.clone_from(&runtime.conmon_env);
            }
        }
        let mut bad = found.remove(name).unwrap_or_default();
        let path = format!("crio.runtime.runtimes.{name}");
        if runtime.cgroup_manager == CgroupManager::Cgroupfs
            && let MonitorCgroup::Slice(slice) = &handler.monitor_cgroup
        {
            if slice != DEFAULT_MONITOR_SLICE {
                bad.push(Problem {
                    origin: findings.handler_origin(name, "monitor_cgroup"),
                    key: format!("{path}.monitor_cgroup"),
                    what: format!(
                        "{slice:?} needs cgroup_manager \"systemd\"; with cgroupfs use \"pod\" or leave it empty"
                    ),
                });
            }
            handler.monitor_cgroup = MonitorCgroup::Daemon;
        }
        for (key, what) in handler_rules(handler) {
            let origin = findings.handler_origin(name, key);
            bad.push(Problem { origin, key: format!("{path}.{key}"), what });
        }
        if handler.container_create_timeout < MIN_CREATE_TIMEOUT {
            handler.container_create_timeout = MIN_CREATE_TIMEOUT;
            let origin = findings.handler_origin(name, "container_create_timeout");
            let kind = WarningKind::Adjusted(format!("raised to {} s", MIN_CREATE_TIMEOUT.as_secs()));
            findings.warnings.push(Warning { origin, key: format!("{path}.container_create_timeout"), kind });
        }
        if bad.is_empty() {
            continue;
        }
        if *name == default_name {
            findings.problems.append(&mut bad);
        } else {
            dropped.push(name.clone());
            findings.warnings.extend(bad.into_iter().map(|problem| Warning {
                origin: problem.origin,
                key: problem.key,
                kind: WarningKind::HandlerDropped(problem.what),
            }));
        }
    }
    for name in dropped {
        runtime.runtimes.remove(&name);
    }
}

/// What is wrong within one handler, as key and text.
fn handler_rules(handler: &RuntimeHandler) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if handler.runtime_config_path.is_some() && handler.runtime_type != RuntimeType::Vm {
        found.push(("runtime_config_path", "only runtime_type \"vm\" has one".to_owned()));
    }
    if handler.no_sync_log && handler.runtime_type != RuntimeType::Oci {
        found.push(("no_sync_log", "only runtime_type \"oci\" knows it".to_owned()));
    }
    if handler.stream_websockets && handler.runtime_type != RuntimeType::Pod {
        found.push(("stream_websockets", "only runtime_type \"pod\" knows it".to_owned()));
    }
    for unknown in unknown_annotations(&handler.allowed_annotations) {
        found.push(("allowed_annotations", format!("{unknown:?} is not a known annotation")));
    }
    if let Some(path) = &handler.runtime_path
        && handler.runtime_type == RuntimeType::Vm
        && !is_shim_name(path)
    {
        let what = format!("{} must be named containerd-shim-… for runtime_type \"vm\"", path.display());
        found.push(("runtime_path", what));
    }
    found
}

/// Whether a binary is named like a containerd shim. Source: CRI-O asks for `containerd-shim-[a-zA-Z0-9\-\+]+`.
pub(crate) fn is_shim_name(path: &std::path::Path) -> bool {
    path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_prefix("containerd-shim-")).is_some_and(
        |rest| !rest.is_empty() && rest.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'+')),
    )
}

fn unknown_annotations(allowed: &[String]) -> impl Iterator<Item = &String> {
    allowed.iter().filter(|name| !KNOWN_ANNOTATIONS.contains(&name.as_str()))
}
