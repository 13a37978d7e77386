//! What a container may use, as the CRI's `LinuxContainerResources` says it.

use std::collections::BTreeMap;

/// Limits of one hugepage size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageLimit {
    /// Page size as in `2MB`.
    pub page_size: String,
    /// Limit in bytes.
    pub limit_bytes: u64,
}

/// Resource limits. Zero and empty mean "not given", as in the CRI.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resources {
    /// CFS period in microseconds.
    pub cpu_period_us: i64,
    /// CFS quota in microseconds; −1 is unlimited.
    pub cpu_quota_us: i64,
    /// CPU shares relative to 1024.
    pub cpu_shares: i64,
    /// Memory limit in bytes.
    pub memory_limit_bytes: i64,
    /// Memory plus swap limit in bytes.
    pub memory_swap_limit_bytes: i64,
    /// `oom_score_adj` of the first process.
    pub oom_score_adj: i64,
    /// CPUs as in `0-2,7`.
    pub cpuset_cpus: String,
    /// Memory nodes as in `0-1`.
    pub cpuset_mems: String,
    /// Hugepage limits.
    pub hugepages: Vec<HugepageLimit>,
    /// cgroup v2 files written as they stand.
    pub unified: BTreeMap<String, String>,
}
