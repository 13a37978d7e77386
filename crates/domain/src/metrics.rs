//! Metrics of sandboxes and containers: their names, groups and labels, which are cAdvisor's, and values.
//!
//! Source: the kubelet's `/metrics/cadvisor`, as CRI-O answers it through the CRI. Names begin with `container_`.

/// Groups that the configuration chooses from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// Processor.
    Cpu,
    /// Space on file systems.
    Disk,
    /// Traffic to storage.
    DiskIo,
    /// Huge pages.
    HugeTlb,
    /// Memory.
    Memory,
    /// Interfaces of the sandbox.
    Network,
    /// Kills for want of memory.
    Oom,
    /// Processes, threads, descriptors.
    Process,
    /// What the container was given.
    Spec,
    /// Time spent waiting.
    Pressure,
}

impl Group {
    /// All of them, with the names the configuration has for them.
    pub const ALL: [(&'static str, Self); 10] = [
        ("cpu", Self::Cpu),
        ("disk", Self::Disk),
        ("diskIO", Self::DiskIo),
        ("hugetlb", Self::HugeTlb),
        ("memory", Self::Memory),
        ("network", Self::Network),
        ("oom", Self::Oom),
        ("process", Self::Process),
        ("spec", Self::Spec),
        ("pressure", Self::Pressure),
    ];

    /// By its name in the configuration.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, group)| *group)
    }
}

/// How a value behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows.
    Counter,
    /// It goes up and down.
    Gauge,
}

/// What a metric is.
#[derive(Debug, PartialEq, Eq)]
pub struct Descriptor {
    /// Its name.
    pub name: &'static str,
    /// For people.
    pub help: &'static str,
    /// Its group; `None` for what is always told.
    pub group: Option<Group>,
    /// How it behaves.
    pub kind: Kind,
    /// Labels that follow [`BASE_LABELS`].
    pub labels: &'static [&'static str],
}

impl Descriptor {
    /// Every label, in the order of the values.
    pub fn label_keys(&self) -> impl Iterator<Item = &'static str> {
        BASE_LABELS.into_iter().chain(self.labels.iter().copied())
    }
}

/// Labels of every metric, in this order.
pub const BASE_LABELS: [&str; 5] = ["id", "image", "namespace", "pod", "container"];

/// One value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// Of what.
    pub of: &'static Descriptor,
    /// Values of its own labels.
    pub labels: Vec<String>,
    /// In the unit its name ends with.
    pub value: u64,
}

impl Descriptor {
    /// A value without labels of its own.
    #[must_use]
    pub fn is(&'static self, value: u64) -> Sample {
        self.at(value, [])
    }

    /// A value with as many labels as [`Descriptor::labels`] names.
    #[must_use]
    pub fn at<const COUNT: usize>(&'static self, value: u64, labels: [&str; COUNT]) -> Sample {
        debug_assert_eq!(COUNT, self.labels.len(), "labels of {}", self.name);
        Sample { of: self, labels: labels.map(str::to_owned).to_vec(), value }
    }
}

/// The descriptors of these groups, and of what is always told.
pub fn descriptors(groups: &[Group]) -> impl Iterator<Item = &'static Descriptor> {
    DESCRIPTORS.iter().copied().filter(move |descriptor| descriptor.group.is_none_or(|group| groups.contains(&group)))
}

macro_rules! descriptors {
    ($($id:ident = $name:literal $group:expr, $kind:ident $labels:tt $help:literal;)*) => {
        $(
            #[doc = $help]
            pub static $id: Descriptor = Descriptor {
                name: concat!("container_", $name),
                help: $help,
                group: $group,
                kind: Kind::$kind,
                labels: &$labels,
            };
        )*
        /// Every metric.
        pub static DESCRIPTORS: &[&Descriptor] = &[$(&$id),*];
    };
}

descriptors! {
    LAST_SEEN = "last_seen" None, Gauge [] "When the container was last looked at, in seconds since 1970.";

    CPU_USER = "cpu_user_seconds_total" Some(Group::Cpu), Counter [] "Seconds of processor time in programs.";
    CPU_SYSTEM = "cpu_system_seconds_total" Some(Group::Cpu), Counter [] "Seconds of processor time in the kernel.";
    CPU_USAGE = "cpu_usage_seconds_total" Some(Group::Cpu), Counter ["cpu"] "Seconds of processor time, on one processor or on all.";
    CPU_PERIODS = "cpu_cfs_periods_total" Some(Group::Cpu), Counter [] "Periods of the processor quota that have passed.";
    CPU_THROTTLED_PERIODS = "cpu_cfs_throttled_periods_total" Some(Group::Cpu), Counter [] "Periods in which the processor quota was used up.";
    CPU_THROTTLED = "cpu_cfs_throttled_seconds_total" Some(Group::Cpu), Counter [] "Seconds spent without processor because the quota was used up.";

    FS_INODES_FREE = "fs_inodes_free" Some(Group::Disk), Gauge [] "Inodes left on the file system of the container's root.";
    FS_INODES = "fs_inodes_total" Some(Group::Disk), Gauge [] "Inodes the file system of the container's root may have.";
    FS_LIMIT = "fs_limit_bytes" Some(Group::Disk), Gauge [] "Size of the file system of the container's root in bytes.";
    FS_USAGE = "fs_usage_bytes" Some(Group::Disk), Gauge [] "Bytes the container has written to its root file system.";

    FS_READ_BYTES = "fs_reads_bytes_total" Some(Group::DiskIo), Counter ["device"] "Bytes read from a device.";
    FS_READS = "fs_reads_total" Some(Group::DiskIo), Counter ["device"] "Reads of a device.";
    FS_WRITTEN_BYTES = "fs_writes_bytes_total" Some(Group::DiskIo), Counter ["device"] "Bytes written to a device.";
    FS_WRITES = "fs_writes_total" Some(Group::DiskIo), Counter ["device"] "Writes to a device.";
    BLKIO = "blkio_device_usage_total" Some(Group::DiskIo), Counter ["device", "major", "minor", "operation"] "Bytes that an operation moved from or to a device.";

    HUGETLB_USAGE = "hugetlb_usage_bytes" Some(Group::HugeTlb), Gauge ["pagesize"] "Bytes in huge pages of one size.";
    HUGETLB_PEAK = "hugetlb_max_usage_bytes" Some(Group::HugeTlb), Gauge ["pagesize"] "Most bytes that were in huge pages of one size.";

    MEMORY_CACHE = "memory_cache" Some(Group::Memory), Gauge [] "Bytes of cached files.";
    MEMORY_RSS = "memory_rss" Some(Group::Memory), Gauge [] "Bytes of anonymous memory.";
    MEMORY_KERNEL = "memory_kernel_usage" Some(Group::Memory), Gauge [] "Bytes the kernel holds for the container.";
    MEMORY_MAPPED = "memory_mapped_file" Some(Group::Memory), Gauge [] "Bytes of mapped files.";
    MEMORY_SWAP = "memory_swap" Some(Group::Memory), Gauge [] "Bytes in swap.";
    MEMORY_LIMIT_HITS = "memory_failcnt" Some(Group::Memory), Counter [] "How often the memory limit was hit.";
    MEMORY_USAGE = "memory_usage_bytes" Some(Group::Memory), Gauge [] "Bytes of memory, cached files included.";
    MEMORY_PEAK = "memory_max_usage_bytes" Some(Group::Memory), Gauge [] "Most bytes of memory that were in use.";
    MEMORY_WORKING_SET = "memory_working_set_bytes" Some(Group::Memory), Gauge [] "Bytes of memory that cannot be taken away at once.";
    MEMORY_FAULTS = "memory_failures_total" Some(Group::Memory), Counter ["failure_type", "scope"] "Page faults.";

    NETWORK_RX_BYTES = "network_receive_bytes_total" Some(Group::Network), Counter ["interface"] "Bytes received.";
    NETWORK_RX_PACKETS = "network_receive_packets_total" Some(Group::Network), Counter ["interface"] "Packets received.";
    NETWORK_RX_DROPPED = "network_receive_packets_dropped_total" Some(Group::Network), Counter ["interface"] "Packets received and dropped.";
    NETWORK_RX_ERRORS = "network_receive_errors_total" Some(Group::Network), Counter ["interface"] "Errors in receiving.";
    NETWORK_TX_BYTES = "network_transmit_bytes_total" Some(Group::Network), Counter ["interface"] "Bytes sent.";
    NETWORK_TX_PACKETS = "network_transmit_packets_total" Some(Group::Network), Counter ["interface"] "Packets sent.";
    NETWORK_TX_DROPPED = "network_transmit_packets_dropped_total" Some(Group::Network), Counter ["interface"] "Packets dropped instead of sent.";
    NETWORK_TX_ERRORS = "network_transmit_errors_total" Some(Group::Network), Counter ["interface"] "Errors in sending.";

    OOM_EVENTS = "oom_events_total" Some(Group::Oom), Counter [] "Processes killed for want of memory.";

    FILE_DESCRIPTORS = "file_descriptors" Some(Group::Process), Gauge [] "Open file descriptors of all processes.";
    PROCESSES = "processes" Some(Group::Process), Gauge [] "Processes.";
    SOCKETS = "sockets" Some(Group::Process), Gauge [] "Open sockets of all processes.";
    THREADS = "threads" Some(Group::Process), Gauge [] "Threads of all processes.";
    THREADS_MAX = "threads_max" Some(Group::Process), Gauge [] "How many threads there may be; 0 without limit.";
    ULIMITS_SOFT = "ulimits_soft" Some(Group::Process), Gauge ["ulimit"] "Soft limits of the container's first process.";

    SPEC_CPU_PERIOD = "spec_cpu_period" Some(Group::Spec), Gauge [] "Period of the processor quota in microseconds.";
    SPEC_CPU_SHARES = "spec_cpu_shares" Some(Group::Spec), Gauge [] "Share of the processors when they are short, relative to 1024.";
    SPEC_CPU_QUOTA = "spec_cpu_quota" Some(Group::Spec), Gauge [] "Processor time a period in microseconds.";
    SPEC_MEMORY_LIMIT = "spec_memory_limit_bytes" Some(Group::Spec), Gauge [] "Memory limit in bytes; 0 without limit.";
    SPEC_MEMORY_RESERVATION = "spec_memory_reservation_limit_bytes" Some(Group::Spec), Gauge [] "Memory kept for the container in bytes.";
    SPEC_MEMORY_SWAP = "spec_memory_swap_limit_bytes" Some(Group::Spec), Gauge [] "Limit of memory and swap together in bytes; 0 without limit.";
    START_TIME = "start_time_seconds" Some(Group::Spec), Gauge [] "When the container was started, in seconds since 1970.";

    PRESSURE_CPU_STALLED = "pressure_cpu_stalled_seconds_total" Some(Group::Pressure), Counter [] "Seconds in which everybody waited for a processor.";
    PRESSURE_CPU_WAITING = "pressure_cpu_waiting_seconds_total" Some(Group::Pressure), Counter [] "Seconds in which somebody waited for a processor.";
    PRESSURE_MEMORY_STALLED = "pressure_memory_stalled_seconds_total" Some(Group::Pressure), Counter [] "Seconds in which everybody waited for memory.";
    PRESSURE_MEMORY_WAITING = "pressure_memory_waiting_seconds_total" Some(Group::Pressure), Counter [] "Seconds in which somebody waited for memory.";
    PRESSURE_IO_STALLED = "pressure_io_stalled_seconds_total" Some(Group::Pressure), Counter [] "Seconds in which everybody waited for storage.";
    PRESSURE_IO_WAITING = "pressure_io_waiting_seconds_total" Some(Group::Pressure), Counter [] "Seconds in which somebody waited for storage.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_are_unique_and_every_group_has_some() {
        let names: BTreeSet<&str> = DESCRIPTORS.iter().map(|descriptor| descriptor.name).collect();
        assert_eq!((names.len(), DESCRIPTORS.len()), (56, 56));
        // Two names do not go by their kind.
        let odd = ["container_memory_failcnt", "container_fs_inodes_total"];
        for descriptor in DESCRIPTORS.iter().filter(|descriptor| !odd.contains(&descriptor.name)) {
            assert_eq!(descriptor.name.ends_with("_total"), descriptor.kind == Kind::Counter, "{}", descriptor.name);
        }
        for (name, group) in Group::ALL {
            assert_eq!(Group::parse(name), Some(group));
            assert!(descriptors(&[group]).count() > 1, "{name}");
        }
        assert_eq!(Group::parse("all"), None);
    }

    #[test]
    fn only_chosen_groups_are_told_and_one_metric_always() {
        let names = |groups: &[Group]| descriptors(groups).map(|descriptor| descriptor.name).collect::<Vec<_>>();
        assert_eq!(names(&[]), ["container_last_seen"]);
        assert_eq!(names(&[Group::Oom]), ["container_last_seen", "container_oom_events_total"]);
    }

    #[test]
    fn labels_of_its_own_follow_the_common_ones() {
        assert_eq!(
            BLKIO.label_keys().collect::<Vec<_>>(),
            ["id", "image", "namespace", "pod", "container", "device", "major", "minor", "operation"]
        );
        let sample = MEMORY_FAULTS.at(3, ["pgfault", "container"]);
        assert_eq!((sample.labels, sample.value), (vec!["pgfault".to_owned(), "container".to_owned()], 3));
        assert!(LAST_SEEN.is(1).labels.is_empty());
    }
}
