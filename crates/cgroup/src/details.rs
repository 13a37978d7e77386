//! What monitoring wants to know of a cgroup beyond its statistics.
//!
//! Parts that nobody asked for cost no file; those that come out of a file which is read anyway cost nothing more.

use std::collections::BTreeSet;

use crate::layout::Layout;
use crate::processes::pids_of;
use crate::reader::{Directory, Reader};
use crate::stats::{StatsError, fields};
use crate::tree::walk;

/// Nanoseconds in a clock tick of `cpuacct.stat`: user space sees a hundred a second everywhere. Source: times(2).
const TICK_NANOS: u64 = 10_000_000;

/// Which parts are wanted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// [`Details::cpu`].
    pub cpu: bool,
    /// [`Details::memory`].
    pub memory: bool,
    /// [`Details::disk`].
    pub disk: bool,
    /// [`Details::hugepages`] of these page sizes, as in `2MB`.
    pub page_sizes: Vec<String>,
    /// [`Details::oom_kills`].
    pub oom_kills: bool,
    /// [`Details::members`].
    pub members: bool,
}

impl Wanted {
    fn needs_memory_events(&self) -> bool {
        self.memory || self.oom_kills
    }
}

/// Parts are `None` where they are not wanted, or the kernel does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Processor.
    pub cpu: Option<CpuDetails>,
    /// Memory.
    pub memory: Option<MemoryDetails>,
    /// Storage, a line a device and operation.
    pub disk: Vec<DiskCount>,
    /// Huge pages, by page size.
    pub hugepages: Vec<HugepageUse>,
    /// Processes killed for want of memory.
    pub oom_kills: Option<u64>,
    /// Who is in it.
    pub members: Option<Members>,
}

/// Processor time in nanoseconds, and what the quota kept back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuDetails {
    /// In programs.
    pub user_nanos: u64,
    /// In the kernel.
    pub system_nanos: u64,
    /// On each processor, by its number; v1 only.
    pub per_cpu_nanos: Vec<u64>,
    /// Periods of a quota that have passed.
    pub periods: u64,
    /// Those in which it was used up.
    pub throttled_periods: u64,
    /// How long was waited for the next.
    pub throttled_nanos: u64,
}

/// Memory in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryDetails {
    /// Pages of files.
    pub cache_bytes: u64,
    /// Those that are mapped.
    pub mapped_file_bytes: u64,
    /// The kernel's, in the cgroup's name.
    pub kernel_bytes: Option<u64>,
    /// Most that was used at a time; Linux 5.19 on v2.
    pub peak_bytes: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
}

/// What a count of storage counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskUnit {
    /// Bytes.
    Bytes,
    /// Operations.
    Operations,
}

/// One device's count of one operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskCount {
    /// Device number.
    pub major: u32,
    /// Device number.
    pub minor: u32,
    /// `Read`, `Write`, `Discard`; on v1 also `Sync`, `Async` and `Total`.
    pub operation: String,
    /// Of what.
    pub unit: DiskUnit,
    /// How many.
    pub count: u64,
}

/// Huge pages of one size, in bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HugepageUse {
    /// As in `2MB`.
    pub page_size: String,
    /// In use or reserved.
    pub usage_bytes: u64,
    /// Most that was; zero on v2, which does not remember.
    pub peak_bytes: u64,
}

/// Processes of a cgroup and all below it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Members {
    /// Process ids, sorted.
    pub pids: Vec<i32>,
    /// How many threads there may be; `None` without limit.
    pub limit: Option<u64>,
}

/// What of `memory.stat` was read already.
pub(crate) fn read_v1(
    layout: &Layout,
    path: &str,
    wanted: &Wanted,
    reader: &mut Reader,
    memory: Option<MemoryDetails>,
) -> Result<Details, StatsError> {
    let open = |controller| layout.directory(controller, path).map(Directory::open).transpose();
    let mut details = Details::default();
    if wanted.cpu
        && let (Some(time), Some(quota)) = (open("cpuacct")?, open("cpu")?)
        && time.exists()
    {
        let mut cpu = reader.read(&quota, "cpu.stat")?.map(parse_throttling_v1).unwrap_or_default();
        cpu.per_cpu_nanos = reader.read(&time, "cpuacct.usage_percpu")?.map(parse_numbers).unwrap_or_default();
        (cpu.user_nanos, cpu.system_nanos) = reader.read(&time, "cpuacct.stat")?.map(parse_ticks).unwrap_or_default();
        details.cpu = Some(cpu);
    }
    if let Some(directory) = if wanted.needs_memory_events() { open("memory")? } else { None } {
        if let Some(mut memory) = memory.filter(|_| wanted.memory) {
            memory.kernel_bytes = reader.number(&directory, "memory.kmem.usage_in_bytes")?;
            memory.peak_bytes = reader.number(&directory, "memory.max_usage_in_bytes")?;
            memory.limit_hits = reader.number(&directory, "memory.failcnt")?;
            details.memory = Some(memory);
        }
        if wanted.oom_kills {
            let text = reader.read(&directory, "memory.oom_control")?;
            details.oom_kills = text.and_then(|text| find(text, "oom_kill"));
        }
    }
    if let Some(disk) = if wanted.disk { open("blkio")? } else { None } {
        for (name, unit) in [
            ("blkio.throttle.io_service_bytes_recursive", DiskUnit::Bytes),
            ("blkio.throttle.io_serviced_recursive", DiskUnit::Operations),
        ] {
            details.disk.extend(reader.read(&disk, name)?.map(|text| parse_disk_v1(text, unit)).unwrap_or_default());
        }
    }
    if let Some(pages) = if wanted.page_sizes.is_empty() { None } else { open("hugetlb")? } {
        details.hugepages = hugepages(&pages, wanted, ["usage_in_bytes", "max_usage_in_bytes"], reader)?;
    }
    if let Some(pids) = if wanted.members { open("pids")? } else { None } {
        details.members = members(&pids, None, reader)?;
    }
    Ok(details)
}

/// What of `cpu.stat`, `memory.stat` and `memory.events` was read already.
pub(crate) fn read_v2(
    directory: &Directory,
    within: Option<&Directory>,
    wanted: &Wanted,
    reader: &mut Reader,
    (cpu, memory): (Option<CpuDetails>, Option<MemoryDetails>),
) -> Result<Details, StatsError> {
    let mut details = Details::default();
    if let Some(mut cpu) = cpu.filter(|_| wanted.cpu) {
        // Periods are counted where the quota is.
        if let Some(within) = within.filter(|_| cpu.periods == 0)
            && let Some(inner) = reader.read(within, "cpu.stat")?.map(parse_cpu_v2)
        {
            let CpuDetails { periods, throttled_periods, throttled_nanos, .. } = inner;
            cpu = CpuDetails { periods, throttled_periods, throttled_nanos, ..cpu };
        }
        details.cpu = Some(cpu);
    }
    let events = match wanted.needs_memory_events() {
        true => reader.read(directory, "memory.events")?.map(|text| (find(text, "max"), find(text, "oom_kill"))),
        false => None,
    };
    if let Some(mut memory) = memory.filter(|_| wanted.memory) {
        memory.peak_bytes = reader.number(directory, "memory.peak")?;
        memory.limit_hits = events.and_then(|(hits, _)| hits);
        details.memory = Some(memory);
    }
    if wanted.oom_kills {
        details.oom_kills = events.and_then(|(_, kills)| kills);
    }
    if wanted.disk {
        details.disk = reader.read(directory, "io.stat")?.map(parse_disk_v2).unwrap_or_default();
    }
    details.hugepages = hugepages(directory, wanted, ["current", ""], reader)?;
    if wanted.members {
        details.members = members(directory, within, reader)?;
    }
    Ok(details)
}

/// What is reserved counts as used, where the kernel tells it apart (Linux 5.7). Source: CRI-O.
fn hugepages(
    directory: &Directory,
    wanted: &Wanted,
    [usage, peak]: [&str; 2],
    reader: &mut Reader,
) -> Result<Vec<HugepageUse>, StatsError> {
    let mut found = Vec::new();
    for size in &wanted.page_sizes {
        for kind in ["rsvd.", ""] {
            let Some(usage_bytes) = reader.number(directory, &format!("hugetlb.{size}.{kind}{usage}"))? else {
                continue;
            };
            let peak_bytes = match peak {
                "" => None,
                peak => reader.number(directory, &format!("hugetlb.{size}.{kind}{peak}"))?,
            };
            let peak_bytes = peak_bytes.unwrap_or_default();
            found.push(HugepageUse { page_size: size.clone(), usage_bytes, peak_bytes });
            break;
        }
    }
    Ok(found)
}

fn members(
    directory: &Directory,
    within: Option<&Directory>,
    reader: &mut Reader,
) -> Result<Option<Members>, StatsError> {
    if !directory.exists() {
        return Ok(None);
    }
    let mut pids = BTreeSet::new();
    for below in walk(directory.path()).map_err(|source| StatsError::Walk { source })? {
        pids_of(&below, &mut pids).map_err(|source| StatsError::Members { source })?;
    }
    let limit = reader.limit(directory, within, "pids.max")?;
    Ok(Some(Members { pids: pids.into_iter().collect(), limit }))
}

fn find(text: &str, wanted: &str) -> Option<u64> {
    fields(text).find(|(name, _)| *name == wanted).map(|(_, value)| value)
}

fn parse_numbers(text: &str) -> Vec<u64> {
    text.split_ascii_whitespace().map_while(|number| number.parse().ok()).collect()
}

/// `cpuacct.stat`: ticks in programs and in the kernel.
fn parse_ticks(text: &str) -> (u64, u64) {
    let nanos = |name| find(text, name).unwrap_or_default().saturating_mul(TICK_NANOS);
    (nanos("user"), nanos("system"))
}

/// `cpu.stat` of v1, whose time is in nanoseconds.
fn parse_throttling_v1(text: &str) -> CpuDetails {
    let mut found = CpuDetails::default();
    for (name, value) in fields(text) {
        match name {
            "nr_periods" => found.periods = value,
            "nr_throttled" => found.throttled_periods = value,
            "throttled_time" => found.throttled_nanos = value,
            _ => {}
        }
    }
    found
}

/// `cpu.stat` of v2, whose times are in microseconds.
pub(crate) fn parse_cpu_v2(text: &str) -> CpuDetails {
    let mut found = CpuDetails::default();
    for (name, value) in fields(text) {
        match name {
            "user_usec" => found.user_nanos = value.saturating_mul(1000),
            "system_usec" => found.system_nanos = value.saturating_mul(1000),
            "nr_periods" => found.periods = value,
            "nr_throttled" => found.throttled_periods = value,
            "throttled_usec" => found.throttled_nanos = value.saturating_mul(1000),
            _ => {}
        }
    }
    found
}

pub(crate) fn parse_memory_v1(text: &str) -> MemoryDetails {
    let mut found = MemoryDetails::default();
    for (name, value) in fields(text) {
        match name {
            "total_cache" => found.cache_bytes = value,
            "total_mapped_file" => found.mapped_file_bytes = value,
            _ => {}
        }
    }
    found
}

/// `memory.stat` of v2. Kernels before 5.18 have no sum of their own memory.
pub(crate) fn parse_memory_v2(text: &str) -> MemoryDetails {
    let (mut found, mut parts) = (MemoryDetails::default(), 0_u64);
    for (name, value) in fields(text) {
        match name {
            "file" => found.cache_bytes = value,
            "file_mapped" => found.mapped_file_bytes = value,
            "kernel" => found.kernel_bytes = Some(value),
            "kernel_stack" | "pagetables" | "percpu" | "slab" => parts = parts.saturating_add(value),
            _ => {}
        }
    }
    found.kernel_bytes = found.kernel_bytes.or(Some(parts));
    found
}

fn parse_device(text: &str) -> Option<(u32, u32)> {
    let (major, minor) = text.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

/// Lines as in `8:0 Read 4096`; the last one has the sum of all devices.
fn parse_disk_v1(text: &str, unit: DiskUnit) -> Vec<DiskCount> {
    let parse = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = parse_device(words.next()?)?;
        let operation = words.next()?.to_owned();
        Some(DiskCount { major, minor, operation, unit, count: words.next()?.parse().ok()? })
    };
    text.lines().filter_map(parse).collect()
}

/// Lines as in `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn parse_disk_v2(text: &str) -> Vec<DiskCount> {
    let mut found = Vec::new();
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let Some((major, minor)) = words.next().and_then(parse_device) else { continue };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let (operation, unit) = match name {
                "rbytes" => ("Read", DiskUnit::Bytes),
                "wbytes" => ("Write", DiskUnit::Bytes),
                "dbytes" => ("Discard", DiskUnit::Bytes),
                "rios" => ("Read", DiskUnit::Operations),
                "wios" => ("Write", DiskUnit::Operations),
                "dios" => ("Discard", DiskUnit::Operations),
                _ => continue,
            };
            let Ok(count) = value.parse() else { continue };
            found.push(DiskCount { major, minor, operation: operation.to_owned(), unit, count });
        }
    }
    found
}

/// Feeds arbitrary text to every parser of this module. Law: nothing is counted that no line or word tells.
pub(crate) fn fuzz(text: &str) {
    let words = text.split_ascii_whitespace().count();
    assert!(parse_numbers(text).len() <= words, "a number a word");
    let _ = (parse_ticks(text), parse_throttling_v1(text), parse_cpu_v2(text));
    let _ = (parse_memory_v1(text), parse_memory_v2(text), find(text, "max"));
    assert!(parse_disk_v1(text, DiskUnit::Bytes).len() <= text.lines().count(), "a count a line");
    assert!(parse_disk_v2(text).len() <= words, "a count a word");
}

/// The sizes of huge pages the kernel has, as in `2MB`, smallest first.
#[must_use]
pub fn page_sizes() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/kernel/mm/hugepages") else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let mut sizes: Vec<u64> =
        names.filter_map(|name| name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()).collect();
    sizes.sort_unstable();
    sizes.into_iter().map(page_size).collect()
}

/// As the kernel writes it in names of files: `64KB`, `2MB`, `1GB`.
fn page_size(kibibytes: u64) -> String {
    match kibibytes {
        large if large >= 1 << 20 => format!("{}GB", large >> 20),
        middle if middle >= 1 << 10 => format!("{}MB", middle >> 10),
        small => format!("{small}KB"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_nanoseconds_whatever_the_kernel_counts_in() {
        assert_eq!(parse_ticks("user 150\nsystem 3\n"), (1_500_000_000, 30_000_000));
        let v1 = parse_throttling_v1("nr_periods 10\nnr_throttled 4\nthrottled_time 5000\n");
        assert_eq!((v1.periods, v1.throttled_periods, v1.throttled_nanos), (10, 4, 5000));
        let v2 = "usage_usec 9\nuser_usec 6\nsystem_usec 3\nnr_periods 10\nnr_throttled 4\nthrottled_usec 5\n";
        let expected = CpuDetails {
            user_nanos: 6000,
            system_nanos: 3000,
            per_cpu_nanos: vec![],
            periods: 10,
            throttled_periods: 4,
            throttled_nanos: 5000,
        };
        assert_eq!(parse_cpu_v2(v2), expected);
        assert_eq!(parse_numbers("5 0 7 \n"), [5, 0, 7]);
    }

    #[test]
    fn the_kernel_s_memory_is_its_sum_or_its_parts() {
        let with = |rest: &str| parse_memory_v2(&format!("file 10\nfile_mapped 4\nslab 3\npagetables 2\n{rest}"));
        let memory = |kernel| MemoryDetails {
            cache_bytes: 10,
            mapped_file_bytes: 4,
            kernel_bytes: Some(kernel),
            ..MemoryDetails::default()
        };
        assert_eq!(with("kernel 9\n"), memory(9));
        assert_eq!(with("kernel_stack 1\n"), memory(6));
    }

    #[test]
    fn storage_is_counted_by_device_and_operation() {
        let count = |operation: &str, unit, count| DiskCount {
            major: 8,
            minor: 16,
            operation: operation.to_owned(),
            unit,
            count,
        };
        let v1 = "8:16 Read 4096\n8:16 Total 4096\nTotal 4096\n8:x Read 1\n8:16 Read\n";
        assert_eq!(
            parse_disk_v1(v1, DiskUnit::Bytes),
            [count("Read", DiskUnit::Bytes, 4096), count("Total", DiskUnit::Bytes, 4096)]
        );
        // A device that has done nothing has a bare line; what a newer kernel adds is passed over.
        let v2 = "8:16 rbytes=4096 wios=2 dbytes=1 cost.usage=3\n8:32\n";
        assert_eq!(
            parse_disk_v2(v2),
            [
                count("Read", DiskUnit::Bytes, 4096),
                count("Write", DiskUnit::Operations, 2),
                count("Discard", DiskUnit::Bytes, 1)
            ]
        );
    }

    #[test]
    fn page_sizes_are_written_as_the_kernel_does() {
        for (kibibytes, text) in [(64, "64KB"), (2048, "2MB"), (32_768, "32MB"), (1 << 20, "1GB")] {
            assert_eq!(page_size(kibibytes), text);
        }
    }
}
