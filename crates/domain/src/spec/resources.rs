//! Limits: from the CRI's numbers to those of the runtime spec.

use std::collections::HashMap;

use oci_spec::runtime::{LinuxCpu, LinuxHugepageLimitBuilder, LinuxMemory, LinuxPids, LinuxResources};

use super::{CgroupVersion, Clamp, HandlerFacts, NodeFacts, SpecError};
use crate::cpus::CpuSet;
use crate::resources::Resources;

fn unsigned(field: &'static str, value: i64) -> Result<Option<u64>, SpecError> {
    match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(SpecError::OutOfRange { field, value: value.to_string() }),
    }
}

/// A list as in `0-2,7`: what the cpuset files take and nothing else.
fn cpu_list(field: &'static str, text: &str) -> Result<Option<String>, SpecError> {
    match CpuSet::parse(text) {
        Ok(set) if set.is_empty() && text.is_empty() => Ok(None),
        Ok(set) if !set.is_empty() => Ok(Some(text.trim().to_owned())),
        _ => Err(SpecError::BadCpuList { field, value: text.chars().take(100).collect() }),
    }
}

/// Whether `key` is a file of a cgroup v2 controller and `value` one line for it. `cgroup.*` files move processes and
/// change the tree, so they are nobody's limit.
fn is_unified(key: &str, value: &str) -> bool {
    let is_file = key.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'));
    let has_controller =
        key.split_once('.').is_some_and(|(controller, file)| !controller.is_empty() && !file.is_empty());
    is_file && has_controller && !key.starts_with("cgroup.") && key.len() <= 128 && !value.chars().any(char::is_control)
}

/// Parses `unified-cgroup.crio.io/<container>`: `key=value` joined by semicolons; a value may be standard base64.
///
/// Source: CRI-O decodes a value when it is valid base64 and takes it as it stands otherwise.
pub(super) fn parse_unified_annotation(text: &str) -> Result<Vec<(String, String)>, SpecError> {
    text.split(';')
        .filter(|part| !part.is_empty())
        .map(|part| {
            let (key, value) =
                part.split_once('=').ok_or_else(|| SpecError::BadUnified { key: part.chars().take(100).collect() })?;
            let decoded = decode_base64(value).and_then(|bytes| String::from_utf8(bytes).ok());
            Ok((key.trim().to_owned(), decoded.unwrap_or_else(|| value.to_owned())))
        })
        .collect()
}

/// Fuzz entry point: any text as the value of a unified annotation.
pub fn fuzz_unified(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    for (key, value) in parse_unified_annotation(text).unwrap_or_default() {
        assert!(!is_unified(&key, &value) || !key.contains(['/', '\n']) && !value.contains('\n'), "{key}={value}");
    }
}

/// RFC 4648 with padding. Here because it is the only use in this crate.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let bytes = text.as_bytes();
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
        return None;
    }
    let body = text.trim_end_matches('=');
    if bytes.len() - body.len() > 2 {
        return None;
    }
    let (mut decoded, mut bits, mut held) = (vec![], 0u32, 0u32);
    for byte in body.bytes() {
        let six = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(six);
        held += 6;
        if held >= 8 {
            held -= 8;
            decoded.push(u8::try_from((bits >> held) & 0xff).ok()?);
            bits &= (1 << held) - 1;
        }
    }
    (bits == 0).then_some(decoded)
}

fn memory(
    asked: &Resources,
    node: &NodeFacts,
    handler: &HandlerFacts,
    clamped: &mut Vec<Clamp>,
) -> Result<Option<LinuxMemory>, SpecError> {
    let limit = asked.memory_limit_bytes;
    if limit == 0 {
        return Ok(None);
    }
    if limit < 0 {
        return Err(SpecError::OutOfRange { field: "memory_limit_in_bytes", value: limit.to_string() });
    }
    if limit < handler.container_min_memory_bytes {
        return Err(SpecError::MemoryTooLow { limit, minimum: handler.container_min_memory_bytes });
    }
    let swap = match asked.memory_swap_limit_bytes {
        0 => limit,
        swap if swap > 0 && swap < limit => return Err(SpecError::SwapBelowMemory { swap, limit }),
        swap if swap < -1 => {
            return Err(SpecError::OutOfRange { field: "memory_swap_limit_in_bytes", value: swap.to_string() });
        }
        swap => swap,
    };
    let mut memory = LinuxMemory::default();
    memory.set_limit(Some(limit));
    if node.has_swap_accounting {
        memory.set_swap(Some(swap));
    } else if asked.memory_swap_limit_bytes != 0 {
        clamped.push(Clamp::Swap);
    }
    Ok(Some(memory))
}

/// The resources of a container, device rules aside. Zero and empty leave a limit out.
pub(super) fn resources(
    asked: &Resources,
    unified_annotation: Option<&str>,
    pids_limit: i64,
    node: &NodeFacts,
    handler: &HandlerFacts,
    clamped: &mut Vec<Clamp>,
) -> Result<LinuxResources, SpecError> {
    let mut resources = LinuxResources::default();

    let mut cpu = LinuxCpu::default();
    cpu.set_period(unsigned("cpu_period", asked.cpu_period_us)?);
    cpu.set_shares(unsigned("cpu_shares", asked.cpu_shares)?);
    match asked.cpu_quota_us {
        0 => {}
        quota if quota < -1 => return Err(SpecError::OutOfRange { field: "cpu_quota", value: quota.to_string() }),
        quota => {
            cpu.set_quota(Some(quota));
        }
    }
    cpu.set_cpus(cpu_list("cpuset_cpus", &asked.cpuset_cpus)?);
    cpu.set_mems(cpu_list("cpuset_mems", &asked.cpuset_mems)?);
    if cpu != LinuxCpu::default() {
        resources.set_cpu(Some(cpu));
    }

    resources.set_memory(memory(asked, node, handler, clamped)?);

    let mut hugepages = vec![];
    for limit in &asked.hugepages {
        if !node.hugepage_sizes.contains(&limit.page_size) {
            // The kubelet names every size it knows with limit 0; only a real limit is worth a word.
            if limit.limit_bytes != 0 {
                clamped.push(Clamp::HugepageSize { size: limit.page_size.clone() });
            }
            continue;
        }
        let bytes = i64::try_from(limit.limit_bytes).unwrap_or(i64::MAX);
        let built = LinuxHugepageLimitBuilder::default().page_size(limit.page_size.clone()).limit(bytes).build();
        hugepages
            .push(built.map_err(|_| SpecError::OutOfRange { field: "hugepage_limits", value: bytes.to_string() })?);
    }
    if !hugepages.is_empty() {
        resources.set_hugepage_limits(Some(hugepages));
    }

    if pids_limit > 0 && node.has_pids_controller {
        let mut pids = LinuxPids::default();
        pids.set_limit(pids_limit);
        resources.set_pids(Some(pids));
    }

    let annotated = unified_annotation.map(parse_unified_annotation).transpose()?.unwrap_or_default();
    let asked_unified = asked.unified.iter().map(|(key, value)| (key.clone(), value.clone()));
    let unified: HashMap<String, String> = asked_unified.chain(annotated).collect();
    if let Some((key, _)) = unified.iter().find(|(key, value)| !is_unified(key, value)) {
        return Err(SpecError::BadUnified { key: key.chars().take(100).collect() });
    }
    match (unified.is_empty(), node.cgroup_version) {
        (true, _) => {}
        (false, CgroupVersion::V1) => clamped.push(Clamp::Unified),
        (false, CgroupVersion::V2) => {
            resources.set_unified(Some(unified));
        }
    }
    Ok(resources)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resources::HugepageLimit;

    fn json(asked: &Resources, pids: i64, node: &NodeFacts) -> Result<serde_json::Value, SpecError> {
        let made = resources(asked, None, pids, node, &HandlerFacts::default(), &mut vec![])?;
        Ok(serde_json::to_value(made).expect("serialises"))
    }

    #[test]
    fn nothing_asked_is_nothing_written() {
        for pids in [0, -1] {
            assert_eq!(json(&Resources::default(), pids, &NodeFacts::default()), Ok(serde_json::json!({})));
        }
    }

    #[test]
    fn numbers_arrive_and_swap_follows_memory() {
        let asked = Resources {
            cpu_period_us: 100_000,
            cpu_quota_us: -1,
            cpu_shares: 512,
            memory_limit_bytes: 1 << 27,
            cpuset_cpus: "0-2,7".into(),
            hugepages: vec![
                HugepageLimit { page_size: "2MB".into(), limit_bytes: 1 << 21 },
                HugepageLimit { page_size: "1GB".into(), limit_bytes: 0 },
            ],
            ..Resources::default()
        };
        let node = NodeFacts { hugepage_sizes: vec!["2MB".into()], ..NodeFacts::default() };
        assert_eq!(
            json(&asked, 100, &node),
            Ok(serde_json::json!({
                "cpu": {"period": 100_000, "quota": -1, "shares": 512, "cpus": "0-2,7"},
                "memory": {"limit": 134_217_728, "swap": 134_217_728},
                "hugepageLimits": [{"pageSize": "2MB", "limit": 2_097_152}],
                "pids": {"limit": 100},
            }))
        );
        let without_swap = NodeFacts { has_swap_accounting: false, ..node };
        let value = json(&asked, 0, &without_swap).expect("valid");
        assert_eq!(value["memory"], serde_json::json!({"limit": 134_217_728}));
    }

    #[test]
    fn bad_numbers_are_refused() {
        let base = Resources { memory_limit_bytes: 4096, ..Resources::default() };
        for asked in [
            Resources { cpu_shares: -1, ..base.clone() },
            Resources { cpu_period_us: -1, ..base.clone() },
            Resources { cpu_quota_us: -2, ..base.clone() },
            Resources { memory_limit_bytes: -1, ..base.clone() },
            Resources { memory_swap_limit_bytes: 4095, ..base.clone() },
            Resources { memory_swap_limit_bytes: -2, ..base.clone() },
            Resources { cpuset_cpus: "0-".into(), ..base.clone() },
            Resources { cpuset_cpus: "3-1".into(), ..base.clone() },
            Resources { cpuset_cpus: " ".into(), ..base.clone() },
            Resources { cpuset_cpus: "0,8192".into(), ..base.clone() },
            Resources { cpuset_mems: "0\n1".into(), ..base.clone() },
            Resources { unified: [("../x.max".to_owned(), "1".to_owned())].into(), ..base.clone() },
            Resources { unified: [("..".to_owned(), "1".to_owned())].into(), ..base.clone() },
            Resources { unified: [("memory/max".to_owned(), "1".to_owned())].into(), ..base.clone() },
            Resources { unified: [("memory.max".to_owned(), "1\n2".to_owned())].into(), ..base.clone() },
            Resources { unified: [("cgroup.procs".to_owned(), "1".to_owned())].into(), ..base.clone() },
        ] {
            assert!(json(&asked, 0, &NodeFacts::default()).is_err(), "{asked:?}");
        }
        let handler = HandlerFacts { container_min_memory_bytes: 8192, ..HandlerFacts::default() };
        let low = resources(&base, None, 0, &NodeFacts::default(), &handler, &mut vec![]);
        assert_eq!(low, Err(SpecError::MemoryTooLow { limit: 4096, minimum: 8192 }));
    }

    #[test]
    fn unified_values_may_be_base64() {
        for (text, expected) in [
            ("memory.high=1000", Some(vec![("memory.high", "1000")])),
            ("memory.high=MTAwMDA=;io.weight=MjA=", Some(vec![("memory.high", "10000"), ("io.weight", "20")])),
            ("memory.max=max;", Some(vec![("memory.max", "max")])),
            ("nonsense", None),
        ] {
            let parsed = parse_unified_annotation(text).ok();
            let expected =
                expected.map(|pairs| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect());
            assert_eq!(parsed, expected, "{text}");
        }
        let mut clamped = vec![];
        let node = NodeFacts { cgroup_version: CgroupVersion::V1, ..NodeFacts::default() };
        let asked = Resources::default();
        let made = resources(&asked, Some("memory.high=5"), 0, &node, &HandlerFacts::default(), &mut clamped);
        assert!(made.expect("valid").unified().is_none());
        assert_eq!(clamped, [Clamp::Unified]);
    }
}
