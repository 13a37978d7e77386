//! Workloads: what an operator gives the containers of pods that carry an annotation, in place of what was asked.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxResources;
use serde::Deserialize;

use super::SpecError;
use crate::cpus::CpuSet;

/// CFS period where a limit in thousandths of a CPU names none, in microseconds. Source: CRI-O; the kernel's default.
const DEFAULT_PERIOD_US: u64 = 100_000;
/// The kernel refuses shorter periods and quotas. Source: kernel/sched/core.c, `min_cfs_quota_period`.
const MIN_PERIOD_US: u64 = 1000;
/// Longest annotation that is read as resources: five numbers and a list of CPUs.
const OVERRIDE_MAX_BYTES: usize = 64 << 10;

/// `[crio.runtime.workloads.NAME]`, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Workload {
    /// A pod with this annotation, whatever its value, belongs to the workload.
    pub activation_annotation: String,
    /// `<prefix>/<container>` overrides the resources of one container.
    pub annotation_prefix: String,
    /// What such pods may use beside what their runtime handler allows.
    pub allowed_annotations: Vec<String>,
    /// Resources of containers without an override.
    pub resources: WorkloadResources,
}

/// Resources of a workload. Zero and empty mean "not given".
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct WorkloadResources {
    /// CPU shares.
    pub cpushares: u64,
    /// CFS quota in microseconds a period; −1 is unlimited.
    pub cpuquota: i64,
    /// CFS period in microseconds.
    pub cpuperiod: u64,
    /// CPUs as in `0-2,7`.
    pub cpuset: String,
    /// Limit in thousandths of a CPU, which overrides the quota.
    pub cpulimit: i64,
}

impl Workload {
    /// The workload of a pod: the first by name whose annotation it carries. Source: CRI-O, whose order is random.
    pub fn of<'a>(
        workloads: impl IntoIterator<Item = &'a Self>,
        annotations: &BTreeMap<String, String>,
    ) -> Option<&'a Self> {
        workloads.into_iter().find(|workload| annotations.contains_key(&workload.activation_annotation))
    }

    /// What a container of such a pod gets.
    ///
    /// The override is JSON such as `{"cpushares": 512}`; what it does not give comes from the workload.
    pub fn resources_of(
        &self,
        container: &str,
        annotations: &BTreeMap<String, String>,
    ) -> Result<WorkloadResources, SpecError> {
        let key = format!("{}/{container}", self.annotation_prefix);
        let bad = |reason: String| SpecError::BadAnnotation { key: key.clone(), reason };
        let mut resources = match annotations.get(&key) {
            None => self.resources.clone(),
            Some(text) if text.len() > OVERRIDE_MAX_BYTES => return Err(bad("it is too long".to_owned())),
            Some(text) => {
                let given: Option<serde_json::Map<String, serde_json::Value>> =
                    serde_json::from_str(text).map_err(|error| bad(error.to_string()))?;
                let given: Option<WorkloadResources> = given
                    .map(|given| serde_json::from_value(given.into()))
                    .transpose()
                    .map_err(|error| bad(error.to_string()))?;
                // The word for nothing takes the defaults away, too. Source: CRI-O.
                given.map_or_else(WorkloadResources::default, |given| given.over(&self.resources))
            }
        };
        CpuSet::parse(&resources.cpuset).map_err(|error| bad(format!("cpuset {error}")))?;
        if resources.cpulimit < 0 || resources.cpuquota < -1 {
            return Err(bad("a limit is negative".to_owned()));
        }
        if resources.cpuperiod != 0 && resources.cpuperiod < MIN_PERIOD_US {
            return Err(bad(format!("cpuperiod {} is less than {MIN_PERIOD_US} microseconds", resources.cpuperiod)));
        }
        if resources.cpulimit != 0 {
            resources.cpuquota = quota_of(resources.cpulimit, resources.cpuperiod);
        }
        Ok(resources)
    }
}

/// Microseconds a period for thousandths of a CPU.
fn quota_of(thousandths: i64, period_us: u64) -> i64 {
    let period = i128::from(if period_us == 0 { DEFAULT_PERIOD_US } else { period_us });
    let quota = (i128::from(thousandths) * period / 1000).max(i128::from(MIN_PERIOD_US));
    i64::try_from(quota).unwrap_or(i64::MAX)
}

impl WorkloadResources {
    fn over(self, defaults: &Self) -> Self {
        let text = if self.cpuset.is_empty() { defaults.cpuset.clone() } else { self.cpuset };
        let or = |given: i64, default: i64| if given == 0 { default } else { given };
        let or_unsigned = |given: u64, default: u64| if given == 0 { default } else { given };
        Self {
            cpushares: or_unsigned(self.cpushares, defaults.cpushares),
            cpuquota: or(self.cpuquota, defaults.cpuquota),
            cpuperiod: or_unsigned(self.cpuperiod, defaults.cpuperiod),
            cpuset: text,
            cpulimit: or(self.cpulimit, defaults.cpulimit),
        }
    }

    /// Writes what is given over what was asked.
    pub(super) fn write_to(&self, resources: &mut LinuxResources) {
        let mut cpu = resources.cpu().clone().unwrap_or_default();
        if !self.cpuset.is_empty() {
            cpu.set_cpus(Some(self.cpuset.clone()));
        }
        if self.cpushares != 0 {
            cpu.set_shares(Some(self.cpushares));
        }
        if self.cpuquota != 0 {
            cpu.set_quota(Some(self.cpuquota));
        }
        if self.cpuperiod != 0 {
            cpu.set_period(Some(self.cpuperiod));
        }
        if cpu != oci_spec::runtime::LinuxCpu::default() {
            resources.set_cpu(Some(cpu));
        }
    }
}

/// Fuzz entry point: any bytes as a container's override.
pub fn fuzz_override(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let workload = Workload { annotation_prefix: "p".to_owned(), ..Workload::default() };
    let annotations = [("p/c".to_owned(), text.to_owned())].into();
    if let Ok(resources) = workload.resources_of("c", &annotations) {
        assert!(resources.cpuquota >= -1 && (resources.cpuperiod == 0 || resources.cpuperiod >= MIN_PERIOD_US));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn overrides_go_over_the_workload_and_the_workload_over_the_request() {
        let workload = Workload {
            activation_annotation: "example.com/management".to_owned(),
            annotation_prefix: "example.com".to_owned(),
            resources: WorkloadResources { cpushares: 20, cpuset: "0-1".to_owned(), ..WorkloadResources::default() },
            ..Workload::default()
        };
        // override, shares, quota, period, CPUs
        for (text, shares, quota, period, cpus) in [
            (None, 20, 0, 0, "0-1"),
            (Some("{}"), 20, 0, 0, "0-1"),
            (Some("null"), 0, 0, 0, ""),
            (Some(r#"{"cpushares": 512, "cpuset": "3"}"#), 512, 0, 0, "3"),
            (Some(r#"{"cpulimit": 250}"#), 20, 25_000, 0, "0-1"),
            (Some(r#"{"cpulimit": 1, "cpuperiod": 10000}"#), 20, 1000, 10_000, "0-1"),
            (Some(r#"{"cpuquota": -1, "unknown": true}"#), 20, -1, 0, "0-1"),
            (Some(r#"{"cpulimit": 9223372036854775807}"#), 20, i64::MAX, 0, "0-1"),
        ] {
            let map: BTreeMap<_, _> =
                text.map(|text| ("example.com/web".to_owned(), text.to_owned())).into_iter().collect();
            let found = workload.resources_of("web", &map).expect("valid");
            let found = (found.cpushares, found.cpuquota, found.cpuperiod, found.cpuset.as_str().to_owned());
            assert_eq!(found, (shares, quota, period, cpus.to_owned()), "{text:?}");
        }
        for text in [
            "",
            "[]",
            "{",
            r#"{"cpushares": -1}"#,
            r#"{"cpushares": "512"}"#,
            r#"{"cpuset": "a"}"#,
            r#"{"cpulimit": -5}"#,
            r#"{"cpuquota": -2}"#,
            r#"{"cpuperiod": 999}"#,
        ] {
            assert!(workload.resources_of("web", &annotations(&[("example.com/web", text)])).is_err(), "{text}");
        }
        let other = annotations(&[("example.com/other", "{")]);
        assert!(workload.resources_of("web", &other).is_ok(), "another container's override is not read");
    }

    #[test]
    fn a_pod_belongs_to_the_workload_whose_annotation_it_carries() {
        let named = |name: &str| Workload { activation_annotation: name.to_owned(), ..Workload::default() };
        let all = [named("a"), named("b")];
        for (carried, expected) in [("a", Some(0)), ("b", Some(1)), ("ab", None), ("", None)] {
            let found = Workload::of(&all, &annotations(&[(carried, "")]));
            assert_eq!(found, expected.map(|at: usize| &all[at]), "{carried}");
        }
    }

    #[test]
    fn what_is_given_is_written() {
        let mut resources = LinuxResources::default();
        WorkloadResources::default().write_to(&mut resources);
        assert!(resources.cpu().is_none());
        WorkloadResources { cpushares: 5, cpuset: "1".to_owned(), ..WorkloadResources::default() }
            .write_to(&mut resources);
        let json = serde_json::to_value(&resources).expect("serialises");
        assert_eq!(json["cpu"], serde_json::json!({"shares": 5, "cpus": "1"}));
    }
}
