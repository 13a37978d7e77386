//! The limits of a container as its runtime spec has them.
//!
//! What was asked for and what is in force differ: no swap limit means one as high as the memory's, and scores are
//! lowered to what the machine can give. Source: CRI-O, whose ContainerStatus reports the spec.

use std::collections::BTreeMap;

use domain::resources::{HugepageLimit, Resources};
use serde_json::Value;

/// `linux.resources` and `process.oomScoreAdj` of a runtime spec, as the CRI says them.
pub(crate) fn limits_of(linux: &Value, oom_score_adj: Option<i64>) -> Resources {
    let number = |path: &str| linux.pointer(path).and_then(Value::as_i64).unwrap_or(0);
    let text = |path: &str| linux.pointer(path).and_then(Value::as_str).unwrap_or_default().to_owned();
    let unified =
        linux.get("unified").and_then(|map| serde_json::from_value::<BTreeMap<String, String>>(map.clone()).ok());
    let hugepages = linux.get("hugepageLimits").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Resources {
        cpu_period_us: number("/cpu/period"),
        cpu_quota_us: number("/cpu/quota"),
        cpu_shares: number("/cpu/shares"),
        memory_limit_bytes: number("/memory/limit"),
        memory_swap_limit_bytes: number("/memory/swap"),
        oom_score_adj: oom_score_adj.unwrap_or(0),
        cpuset_cpus: text("/cpu/cpus"),
        cpuset_mems: text("/cpu/mems"),
        hugepages: hugepages
            .iter()
            .filter_map(|entry| {
                Some(HugepageLimit {
                    page_size: entry.get("pageSize")?.as_str()?.to_owned(),
                    limit_bytes: entry.get("limit")?.as_u64()?,
                })
            })
            .collect(),
        unified: unified.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_read_from_a_spec() {
        let linux = serde_json::json!({"cpu": {"shares": 512, "quota": -1, "period": 100_000, "cpus": "0-1"},
            "memory": {"limit": 1 << 28, "swap": 1 << 29}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
            "unified": {"memory.high": "1"}});
        assert_eq!(
            limits_of(&linux, Some(500)),
            Resources {
                cpu_period_us: 100_000,
                cpu_quota_us: -1,
                cpu_shares: 512,
                memory_limit_bytes: 1 << 28,
                memory_swap_limit_bytes: 1 << 29,
                oom_score_adj: 500,
                cpuset_cpus: "0-1".to_owned(),
                cpuset_mems: String::new(),
                hugepages: vec![HugepageLimit { page_size: "2MB".to_owned(), limit_bytes: 4096 }],
                unified: BTreeMap::from([("memory.high".to_owned(), "1".to_owned())]),
            }
        );
        assert_eq!(limits_of(&Value::Null, None), Resources::default());
    }
}
