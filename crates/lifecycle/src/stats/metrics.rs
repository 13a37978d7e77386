//! What was read of a container or sandbox, as metrics.
//!
//! What the kernel does not tell has no sample. Seconds are whole ones: the CRI has no fractions.

use std::path::Path;

use cgroup::{CgroupStats, Details, DiskUnit, Pressure, Wanted};
use domain::container::ContainerState;
use domain::metrics::{self as m, Group, Sample};
use domain::resources::Resources;

use super::interfaces::Interface;
use super::layers::WritableLayer;
use super::processes::{Descriptors, descriptors, open_files_limit};
use crate::container::Container;

const SECOND_NANOS: u64 = 1_000_000_000;
const SECOND_MICROS: u64 = 1_000_000;
/// What cAdvisor calls the limit of open descriptors.
const OPEN_FILES: &str = "max_open_files";
/// Limits above are none: the kernel rounds "unlimited" down to whole pages. Source: cAdvisor.
const MEMORY_UNLIMITED: i64 = 1 << 62;
/// The cgroup v2 file that keeps memory for a container.
const MEMORY_MIN: &str = "memory.min";

/// What the groups need of a cgroup.
pub(super) fn wanted(groups: &[Group]) -> Wanted {
    let has = |group| groups.contains(&group);
    Wanted {
        cpu: has(Group::Cpu),
        memory: has(Group::Memory),
        disk: has(Group::DiskIo),
        page_sizes: if has(Group::HugeTlb) { cgroup::page_sizes() } else { Vec::new() },
        oom_kills: has(Group::Oom),
        members: has(Group::Process),
    }
}

/// The file system on which containers write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Filesystem {
    bytes: u64,
    inodes: u64,
    inodes_free: u64,
}

impl Filesystem {
    pub(super) fn of(path: &Path) -> Option<Self> {
        let found = rustix::fs::statvfs(path).ok()?;
        let bytes = found.f_blocks.saturating_mul(found.f_frsize);
        Some(Self { bytes, inodes: found.f_files, inodes_free: found.f_ffree })
    }
}

/// What is known of one container.
pub(super) struct Reading<'a> {
    pub(super) container: &'a Container,
    pub(super) stats: &'a CgroupStats,
    pub(super) details: &'a Details,
    pub(super) layer: Option<&'a WritableLayer>,
    pub(super) filesystem: Option<Filesystem>,
}

impl Reading<'_> {
    /// Samples of these groups, and of what is always told. `seconds`: now, since 1970.
    pub(super) fn samples(&self, groups: &[Group], seconds: u64) -> Vec<Sample> {
        let mut samples = vec![m::LAST_SEEN.is(seconds)];
        for group in groups {
            match group {
                Group::Cpu => self.cpu(&mut samples),
                Group::Disk => self.disk(&mut samples),
                Group::DiskIo => disk_io(self.details, &mut samples),
                Group::HugeTlb => self.hugetlb(&mut samples),
                Group::Memory => self.memory(&mut samples),
                Group::Oom => samples.extend(self.details.oom_kills.map(|count| m::OOM_EVENTS.is(count))),
                Group::Process => self.processes(&mut samples),
                Group::Spec => spec(&self.container.resources(), &mut samples),
                Group::Pressure => pressure(self.stats, &mut samples),
                // The sandbox's.
                Group::Network => {}
            }
        }
        if groups.contains(&Group::Spec) {
            let state = self.container.state();
            let started = state.started().unwrap_or(self.container.created);
            samples.push(m::START_TIME.is(nanos_to_seconds(started.nanos())));
        }
        samples
    }

    fn cpu(&self, samples: &mut Vec<Sample>) {
        let Some(cpu) = &self.details.cpu else { return };
        samples.push(m::CPU_USER.is(cpu.user_nanos / SECOND_NANOS));
        samples.push(m::CPU_SYSTEM.is(cpu.system_nanos / SECOND_NANOS));
        if cpu.per_cpu_nanos.is_empty() {
            let total = self.stats.cpu.map(|cpu| cpu.usage_nanos / SECOND_NANOS);
            samples.extend(total.map(|seconds| m::CPU_USAGE.at(seconds, ["total"])));
        }
        for (number, nanos) in cpu.per_cpu_nanos.iter().enumerate().filter(|(_, nanos)| **nanos > 0) {
            samples.push(m::CPU_USAGE.at(nanos / SECOND_NANOS, [&format!("cpu{number:02}")]));
        }
        samples.push(m::CPU_PERIODS.is(cpu.periods));
        samples.push(m::CPU_THROTTLED_PERIODS.is(cpu.throttled_periods));
        samples.push(m::CPU_THROTTLED.is(cpu.throttled_nanos / SECOND_NANOS));
    }

    fn disk(&self, samples: &mut Vec<Sample>) {
        if let Some(filesystem) = self.filesystem {
            samples.push(m::FS_INODES_FREE.is(filesystem.inodes_free));
            samples.push(m::FS_INODES.is(filesystem.inodes));
            samples.push(m::FS_LIMIT.is(filesystem.bytes));
        }
        samples.extend(self.layer.map(|layer| m::FS_USAGE.is(layer.used_bytes)));
    }

    fn hugetlb(&self, samples: &mut Vec<Sample>) {
        for found in &self.details.hugepages {
            samples.push(m::HUGETLB_USAGE.at(found.usage_bytes, [&found.page_size]));
            samples.push(m::HUGETLB_PEAK.at(found.peak_bytes, [&found.page_size]));
        }
    }

    fn memory(&self, samples: &mut Vec<Sample>) {
        if let Some(memory) = &self.details.memory {
            samples.push(m::MEMORY_CACHE.is(memory.cache_bytes));
            samples.push(m::MEMORY_MAPPED.is(memory.mapped_file_bytes));
            samples.extend(memory.kernel_bytes.map(|bytes| m::MEMORY_KERNEL.is(bytes)));
            samples.extend(memory.limit_hits.map(|count| m::MEMORY_LIMIT_HITS.is(count)));
            samples.extend(memory.peak_bytes.map(|bytes| m::MEMORY_PEAK.is(bytes)));
        }
        let Some(memory) = &self.stats.memory else { return };
        samples.push(m::MEMORY_RSS.is(memory.rss_bytes));
        samples.push(m::MEMORY_SWAP.is(memory.swap.map_or(0, |swap| swap.usage_bytes)));
        samples.push(m::MEMORY_USAGE.is(memory.usage_bytes));
        samples.push(m::MEMORY_WORKING_SET.is(memory.working_set_bytes()));
        for (kind, count) in [("pgfault", memory.page_faults), ("pgmajfault", memory.major_page_faults)] {
            for scope in ["container", "hierarchy"] {
                samples.push(m::MEMORY_FAULTS.at(count, [kind, scope]));
            }
        }
    }

    fn processes(&self, samples: &mut Vec<Sample>) {
        let Some(members) = &self.details.members else { return };
        let Descriptors { open, sockets } = descriptors(&members.pids);
        samples.push(m::FILE_DESCRIPTORS.is(open));
        samples.extend(sockets.map(|count| m::SOCKETS.is(count)));
        samples.push(m::PROCESSES.is(members.pids.len() as u64));
        samples.extend(self.stats.process_count.map(|count| m::THREADS.is(count)));
        samples.push(m::THREADS_MAX.is(members.limit.unwrap_or(0)));
        let first = match self.container.state() {
            ContainerState::Running { init, .. } | ContainerState::Created { init } => Some(init.pid),
            ContainerState::Exited { .. } => None,
        };
        // Only who is in the cgroup still: the number may be another's by now.
        let limit = first.filter(|pid| members.pids.contains(pid)).and_then(open_files_limit);
        samples.extend(limit.map(|limit| m::ULIMITS_SOFT.at(limit, [OPEN_FILES])));
    }
}

/// Device numbers stand for devices, as in CRI-O; v1's sums have no metric of their own.
fn disk_io(details: &Details, samples: &mut Vec<Sample>) {
    for found in &details.disk {
        let device = format!("{}:{}", found.major, found.minor);
        if found.unit == DiskUnit::Bytes {
            let (major, minor) = (found.major.to_string(), found.minor.to_string());
            let operation = found.operation.to_ascii_lowercase();
            samples.push(m::BLKIO.at(found.count, [&device, &major, &minor, &operation]));
        }
        let of = match (found.operation.as_str(), found.unit) {
            ("Read", DiskUnit::Bytes) => &m::FS_READ_BYTES,
            ("Read", DiskUnit::Operations) => &m::FS_READS,
            ("Write", DiskUnit::Bytes) => &m::FS_WRITTEN_BYTES,
            ("Write", DiskUnit::Operations) => &m::FS_WRITES,
            _ => continue,
        };
        samples.push(of.at(found.count, [&device]));
    }
}

fn spec(limits: &Resources, samples: &mut Vec<Sample>) {
    let number = |value: i64| u64::try_from(value).unwrap_or(0);
    let memory = |limit: i64| if limit > MEMORY_UNLIMITED { 0 } else { number(limit) };
    samples.push(m::SPEC_CPU_PERIOD.is(number(limits.cpu_period_us)));
    samples.push(m::SPEC_CPU_SHARES.is(number(limits.cpu_shares)));
    if limits.cpu_quota_us > 0 {
        samples.push(m::SPEC_CPU_QUOTA.is(number(limits.cpu_quota_us)));
    }
    samples.push(m::SPEC_MEMORY_LIMIT.is(memory(limits.memory_limit_bytes)));
    samples.push(m::SPEC_MEMORY_SWAP.is(memory(limits.memory_swap_limit_bytes)));
    let reservation = limits.unified.get(MEMORY_MIN).map_or(Some(0), |text| text.parse().ok());
    samples.extend(reservation.map(|bytes| m::SPEC_MEMORY_RESERVATION.is(memory(bytes))));
}

fn pressure(stats: &CgroupStats, samples: &mut Vec<Sample>) {
    let seconds = |stall: cgroup::Stall| stall.total_micros / SECOND_MICROS;
    let cpu = stats.cpu.and_then(|cpu| cpu.pressure);
    let memory = stats.memory.and_then(|memory| memory.pressure);
    for (pressure, stalled, waiting) in [
        (cpu, &m::PRESSURE_CPU_STALLED, &m::PRESSURE_CPU_WAITING),
        (memory, &m::PRESSURE_MEMORY_STALLED, &m::PRESSURE_MEMORY_WAITING),
        (stats.io_pressure, &m::PRESSURE_IO_STALLED, &m::PRESSURE_IO_WAITING),
    ] {
        let Some(Pressure { some, full }) = pressure else { continue };
        samples.push(stalled.is(seconds(full)));
        samples.push(waiting.is(seconds(some)));
    }
}

/// A sandbox's network.
pub(super) fn network(interfaces: &[Interface]) -> Vec<Sample> {
    let of = |interface: &Interface| {
        let Interface { name, .. } = interface;
        [
            (&m::NETWORK_RX_BYTES, interface.rx_bytes),
            (&m::NETWORK_RX_PACKETS, interface.rx_packets),
            (&m::NETWORK_RX_DROPPED, interface.rx_dropped),
            (&m::NETWORK_RX_ERRORS, interface.rx_errors),
            (&m::NETWORK_TX_BYTES, interface.tx_bytes),
            (&m::NETWORK_TX_PACKETS, interface.tx_packets),
            (&m::NETWORK_TX_DROPPED, interface.tx_dropped),
            (&m::NETWORK_TX_ERRORS, interface.tx_errors),
        ]
        .map(|(of, count)| of.at(count, [name]))
    };
    interfaces.iter().flat_map(of).collect()
}

pub(super) fn nanos_to_seconds(nanos: i64) -> u64 {
    u64::try_from(nanos).unwrap_or(0) / SECOND_NANOS
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use cgroup::DiskCount;

    use super::*;

    fn told(samples: &[Sample]) -> Vec<(String, u64)> {
        let text = |sample: &Sample| {
            let name = sample.of.name.trim_start_matches("container_");
            let labels = sample.labels.iter().flat_map(|label| [" ", label]);
            (std::iter::once(name).chain(labels).collect(), sample.value)
        };
        samples.iter().map(text).collect()
    }

    fn owned(expected: &[(&str, u64)]) -> Vec<(String, u64)> {
        expected.iter().map(|(name, value)| ((*name).to_owned(), *value)).collect()
    }

    #[test]
    fn storage_is_told_by_device_and_operation() {
        let count = |operation: &str, unit, count| DiskCount {
            major: 8,
            minor: 1,
            operation: operation.to_owned(),
            unit,
            count,
        };
        let disk = vec![
            count("Read", DiskUnit::Bytes, 10),
            count("Write", DiskUnit::Operations, 2),
            count("Total", DiskUnit::Bytes, 10),
            count("Sync", DiskUnit::Operations, 2),
        ];
        let mut samples = Vec::new();
        disk_io(&Details { disk, ..Details::default() }, &mut samples);
        let expected = [
            ("blkio_device_usage_total 8:1 8 1 read", 10),
            ("fs_reads_bytes_total 8:1", 10),
            ("fs_writes_total 8:1", 2),
            ("blkio_device_usage_total 8:1 8 1 total", 10),
        ];
        assert_eq!(told(&samples), owned(&expected));
    }

    #[test]
    fn what_was_given_is_told_and_unlimited_is_nothing() {
        let unified = |text: &str| BTreeMap::from([(MEMORY_MIN.to_owned(), text.to_owned())]);
        let limits = Resources {
            cpu_period_us: 10_000,
            cpu_quota_us: 20_000,
            cpu_shares: 512,
            memory_limit_bytes: 1 << 28,
            memory_swap_limit_bytes: i64::MAX,
            unified: unified("4096"),
            ..Resources::default()
        };
        let mut samples = Vec::new();
        spec(&limits, &mut samples);
        let expected = [
            ("spec_cpu_period", 10_000),
            ("spec_cpu_shares", 512),
            ("spec_cpu_quota", 20_000),
            ("spec_memory_limit_bytes", 1 << 28),
            ("spec_memory_swap_limit_bytes", 0),
            ("spec_memory_reservation_limit_bytes", 4096),
        ];
        assert_eq!(told(&samples), owned(&expected));
        samples.clear();
        let limits =
            Resources { cpu_quota_us: -1, memory_limit_bytes: -1, unified: unified("max"), ..Resources::default() };
        spec(&limits, &mut samples);
        let expected = [
            ("spec_cpu_period", 0),
            ("spec_cpu_shares", 0),
            ("spec_memory_limit_bytes", 0),
            ("spec_memory_swap_limit_bytes", 0),
        ];
        assert_eq!(told(&samples), owned(&expected));
    }

    #[test]
    fn waiting_is_told_where_the_kernel_knows() {
        let stall = |total_micros| cgroup::Stall { total_micros, ..cgroup::Stall::default() };
        let io_pressure = Some(Pressure { some: stall(2_999_999), full: stall(1_000_000) });
        let mut samples = Vec::new();
        pressure(&CgroupStats { io_pressure, ..CgroupStats::default() }, &mut samples);
        let expected = [("pressure_io_stalled_seconds_total", 1), ("pressure_io_waiting_seconds_total", 2)];
        assert_eq!(told(&samples), owned(&expected));
    }

    #[test]
    fn every_interface_has_eight_counters() {
        let interface = |name: &str, rx_bytes| Interface { name: name.to_owned(), rx_bytes, ..Interface::default() };
        let samples = network(&[interface("lo", 1), interface("eth0", 2)]);
        assert_eq!(samples.len(), 16);
        assert_eq!(told(&samples)[8], ("network_receive_bytes_total eth0".to_owned(), 2));
    }
}
