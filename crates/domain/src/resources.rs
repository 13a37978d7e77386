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

impl Resources {
    /// Takes over what an update gives; what it does not give stays. Source: CRI `UpdateContainerResources`.
    pub fn update(&mut self, given: &Self) {
        for (current, given) in [
            (&mut self.cpu_period_us, given.cpu_period_us),
            (&mut self.cpu_quota_us, given.cpu_quota_us),
            (&mut self.cpu_shares, given.cpu_shares),
            (&mut self.memory_limit_bytes, given.memory_limit_bytes),
            (&mut self.memory_swap_limit_bytes, given.memory_swap_limit_bytes),
            (&mut self.oom_score_adj, given.oom_score_adj),
        ] {
            if given != 0 {
                *current = given;
            }
        }
        for (current, given) in
            [(&mut self.cpuset_cpus, &given.cpuset_cpus), (&mut self.cpuset_mems, &given.cpuset_mems)]
        {
            if !given.is_empty() {
                current.clone_from(given);
            }
        }
        for limit in &given.hugepages {
            self.hugepages.retain(|known| known.page_size != limit.page_size);
            self.hugepages.push(limit.clone());
        }
        self.unified.extend(given.unified.iter().map(|(key, value)| (key.clone(), value.clone())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_update_changes_what_it_gives() {
        let page = |size: &str, limit_bytes| HugepageLimit { page_size: size.to_owned(), limit_bytes };
        let mut resources = Resources {
            cpu_shares: 512,
            memory_limit_bytes: 1000,
            cpuset_cpus: "0-1".to_owned(),
            hugepages: vec![page("2MB", 1), page("1GB", 2)],
            ..Resources::default()
        };
        resources.update(&Resources {
            cpu_quota_us: -1,
            memory_limit_bytes: 2000,
            hugepages: vec![page("2MB", 3)],
            unified: BTreeMap::from([("memory.high".to_owned(), "5".to_owned())]),
            ..Resources::default()
        });
        assert_eq!((resources.cpu_shares, resources.cpu_quota_us, resources.memory_limit_bytes), (512, -1, 2000));
        assert_eq!(resources.cpuset_cpus, "0-1");
        assert_eq!(resources.hugepages, [page("1GB", 2), page("2MB", 3)]);
        assert_eq!(resources.unified.len(), 1);
    }
}
