//! What a cgroup uses: processor, memory, swap, processes, pressure.
//!
//! Each file is read once a call, whole, into one buffer. v1: `cpuacct.usage`, `memory.stat`, `memory.usage_in_bytes`,
//! `pids.current`, and the limits only where a hierarchical limit says there is one. v2: `cpu.stat`, `memory.stat`,
//! `memory.current`, `memory.max`, `memory.swap.current`, `memory.swap.max`, `pids.current` and three `*.pressure`.

use std::io;
use std::path::PathBuf;

use domain::spec::CgroupVersion;
use thiserror::Error;

use crate::details::{self, Details, MemoryDetails, Wanted, parse_cpu_v2, parse_memory_v1, parse_memory_v2};
use crate::layout::Layout;
use crate::processes::ProcessesError;
use crate::reader::{Directory, Reader};
use crate::tree::{PathError, RemoveError, check_path};

/// Within a container's scope; crun(1), `run.oci.systemd.subgroup`.
const CRUN_SUBGROUP: &str = "container";
/// v1 says "unlimited" as the largest multiple of the page size in an i64; pages are 64 KiB at the most.
const V1_UNLIMITED: u64 = (i64::MAX as u64) & !0xffff;

/// Why a cgroup's use is not known.
#[derive(Debug, Error)]
pub enum StatsError {
    /// The path is unusable.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A file of it.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// What is below it.
    #[error("list the cgroups below it")]
    Walk {
        /// Why.
        #[source]
        source: RemoveError,
    },
    /// Who is in it.
    #[error("list its processes")]
    Members {
        /// Why.
        #[source]
        source: ProcessesError,
    },
}

/// What a cgroup and all below it use. A part is `None` where its controller is absent or the cgroup is gone.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CgroupStats {
    /// Processor.
    pub cpu: Option<CpuStats>,
    /// Memory and swap.
    pub memory: Option<MemoryStats>,
    /// Processes and threads, as `pids.current` counts them.
    pub process_count: Option<u64>,
    /// Waiting for storage.
    pub io_pressure: Option<Pressure>,
}

/// Processor time.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct CpuStats {
    /// Nanoseconds on all processors since the cgroup was made.
    pub usage_nanos: u64,
    /// Waiting for a processor.
    pub pressure: Option<Pressure>,
}

/// Memory and swap, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct MemoryStats {
    /// All that is charged, page cache included.
    pub usage_bytes: u64,
    /// Anonymous memory.
    pub rss_bytes: u64,
    /// File pages that go first when memory is short.
    pub inactive_file_bytes: u64,
    /// The cgroup's own limit.
    pub limit_bytes: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Those that waited for storage.
    pub major_page_faults: u64,
    /// Swap, where the kernel counts it.
    pub swap: Option<SwapStats>,
    /// Waiting for memory.
    pub pressure: Option<Pressure>,
}

/// What a cgroup may use of memory and swap, in bytes; `None` without limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// Memory.
    pub memory_bytes: Option<u64>,
    /// Swap.
    pub swap_bytes: Option<u64>,
}

/// What need not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Known {
    /// Limits that are known.
    pub limits: Option<Limits>,
    /// Nobody wants [`CgroupStats::process_count`].
    pub is_without_process_count: bool,
}

impl MemoryStats {
    /// The limits among them.
    #[must_use]
    pub fn limits(&self) -> Limits {
        Limits { memory_bytes: self.limit_bytes, swap_bytes: self.swap.and_then(|swap| swap.limit_bytes) }
    }

    /// What cannot be taken away: never below zero, since the two numbers are not of one moment.
    #[must_use]
    pub fn working_set_bytes(&self) -> u64 {
        self.usage_bytes.saturating_sub(self.inactive_file_bytes)
    }

    /// What is left below the limit; `None` without one.
    #[must_use]
    pub fn available_bytes(&self) -> Option<u64> {
        self.limit_bytes.map(|limit| limit.saturating_sub(self.working_set_bytes()))
    }
}

/// Swap, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SwapStats {
    /// Swapped out.
    pub usage_bytes: u64,
    /// How much may be; `None` without limit.
    pub limit_bytes: Option<u64>,
}

impl SwapStats {
    /// What is left below the limit; `None` without one.
    #[must_use]
    pub fn available_bytes(&self) -> Option<u64> {
        self.limit_bytes.map(|limit| limit.saturating_sub(self.usage_bytes))
    }
}

/// Pressure stall information of one resource. Source: Documentation/accounting/psi.rst, Linux 4.20.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Pressure {
    /// Somebody waited.
    pub some: Stall,
    /// Everybody waited.
    pub full: Stall,
}

/// How long was waited.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Stall {
    /// Per cent of the last ten seconds.
    pub avg10: f64,
    /// Per cent of the last minute.
    pub avg60: f64,
    /// Per cent of the last five minutes.
    pub avg300: f64,
    /// Microseconds in all.
    pub total_micros: u64,
}

impl CgroupStats {
    /// Both together. Limits and pressure do not add up and are left out.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        fn merge<T: Copy>(one: Option<T>, two: Option<T>, add: impl Fn(T, T) -> T) -> Option<T> {
            match (one, two) {
                (Some(one), Some(two)) => Some(add(one, two)),
                (one, two) => one.or(two),
            }
        }
        let cpu = |one: CpuStats, two: CpuStats| CpuStats {
            usage_nanos: one.usage_nanos.saturating_add(two.usage_nanos),
            pressure: None,
        };
        let memory = |one: MemoryStats, two: MemoryStats| MemoryStats {
            usage_bytes: one.usage_bytes.saturating_add(two.usage_bytes),
            rss_bytes: one.rss_bytes.saturating_add(two.rss_bytes),
            inactive_file_bytes: one.inactive_file_bytes.saturating_add(two.inactive_file_bytes),
            limit_bytes: None,
            page_faults: one.page_faults.saturating_add(two.page_faults),
            major_page_faults: one.major_page_faults.saturating_add(two.major_page_faults),
            swap: merge(one.swap, two.swap, |one, two| SwapStats {
                usage_bytes: one.usage_bytes.saturating_add(two.usage_bytes),
                limit_bytes: None,
            }),
            pressure: None,
        };
        Self {
            cpu: merge(self.cpu, other.cpu, cpu),
            memory: merge(self.memory, other.memory, memory),
            process_count: merge(self.process_count, other.process_count, u64::saturating_add),
            io_pressure: None,
        }
    }
}

impl Layout {
    /// What a cgroup uses. One that is gone, or goes meanwhile, has parts that are `None`.
    pub fn stats(&self, path: &str) -> Result<CgroupStats, StatsError> {
        Ok(self.read(path, None, Known::default(), None)?.0)
    }

    /// The same for the cgroup a runtime made for a container: under systemd on v2, crun sets limits on a cgroup
    /// within it. What is used still is that of the whole, so that a container which may make cgroups hides nothing.
    pub fn container_stats(&self, path: &str, known: Known) -> Result<CgroupStats, StatsError> {
        Ok(self.read(path, Some(CRUN_SUBGROUP), known, None)?.0)
    }

    /// Statistics of a container's cgroup and what else is wanted, of one moment and no file twice.
    pub fn container_details(&self, path: &str, wanted: &Wanted) -> Result<(CgroupStats, Details), StatsError> {
        self.read(path, Some(CRUN_SUBGROUP), Known::default(), Some(wanted))
    }

    fn read(
        &self,
        path: &str,
        subgroup: Option<&str>,
        known: Known,
        wanted: Option<&Wanted>,
    ) -> Result<(CgroupStats, Details), StatsError> {
        check_path(path)?;
        let mut reader = Reader::default();
        match (self.version(), wanted) {
            (CgroupVersion::V1, wanted) => {
                let (stats, memory) = self.stats_v1(path, known, wanted, &mut reader)?;
                let details = wanted.map(|wanted| details::read_v1(self, path, wanted, &mut reader, memory));
                Ok((stats, details.transpose()?.unwrap_or_default()))
            }
            (CgroupVersion::V2, wanted) => match self.directory("", path) {
                Some(path) => read_v2(&Directory::open(path)?, subgroup, known, wanted, &mut reader),
                None => Ok((CgroupStats::default(), Details::default())),
            },
        }
    }

    fn stats_v1(
        &self,
        path: &str,
        known: Known,
        wanted: Option<&Wanted>,
        reader: &mut Reader,
    ) -> Result<(CgroupStats, Option<MemoryDetails>), StatsError> {
        let (mut stats, mut memory) = (CgroupStats::default(), None);
        if let Some(directory) = self.directory("cpuacct", path) {
            let usage = reader.number(&Directory::unopened(directory), "cpuacct.usage")?;
            stats.cpu = usage.map(|usage_nanos| CpuStats { usage_nanos, pressure: None });
        }
        if let Some(directory) = self.directory("memory", path) {
            (stats.memory, memory) = memory_v1(&Directory::open(directory)?, known.limits, wanted, reader)?;
        }
        let pids = self.directory("pids", path).filter(|_| !known.is_without_process_count);
        if let Some(directory) = pids {
            stats.process_count = reader.number(&Directory::unopened(directory), "pids.current")?;
        }
        Ok((stats, memory))
    }
}

fn memory_v1(
    directory: &Directory,
    known: Option<Limits>,
    wanted: Option<&Wanted>,
    reader: &mut Reader,
) -> Result<(Option<MemoryStats>, Option<MemoryDetails>), StatsError> {
    let Some(text) = reader.read(directory, "memory.stat")? else { return Ok((None, None)) };
    let (found, details) = (parse_memory_stat_v1(text), wanted.map(|_| parse_memory_v1(text)));
    let Some(usage_bytes) = reader.number(directory, "memory.usage_in_bytes")? else { return Ok((None, None)) };
    // The smallest limit above and here: where there is none, none is here, and a file is saved.
    let mut limit = |above: Option<u64>, name| match above {
        Some(_) => Ok(reader.number(directory, name)?.filter(|limit| *limit < V1_UNLIMITED)),
        None => Ok::<_, StatsError>(None),
    };
    let limits = match known {
        Some(known) => known,
        None => {
            let memory_bytes = limit(found.limit, "memory.limit_in_bytes")?;
            let both_bytes = limit(found.with_swap_limit, "memory.memsw.limit_in_bytes")?;
            let swap_bytes = both_bytes.zip(memory_bytes).map(|(both, memory)| both.saturating_sub(memory));
            Limits { memory_bytes, swap_bytes }
        }
    };
    let memory = MemoryStats {
        usage_bytes,
        rss_bytes: found.rss,
        inactive_file_bytes: found.inactive_file,
        limit_bytes: limits.memory_bytes,
        page_faults: found.page_faults,
        major_page_faults: found.major_page_faults,
        swap: found.swap.map(|usage_bytes| SwapStats { usage_bytes, limit_bytes: limits.swap_bytes }),
        pressure: None,
    };
    Ok((Some(memory), details))
}

fn read_v2(
    directory: &Directory,
    subgroup: Option<&str>,
    known: Known,
    wanted: Option<&Wanted>,
    reader: &mut Reader,
) -> Result<(CgroupStats, Details), StatsError> {
    if !directory.exists() {
        return Ok((CgroupStats::default(), Details::default()));
    }
    let needs_limits = known.limits.is_none() || wanted.is_some();
    let subgroup = subgroup.filter(|_| needs_limits);
    let within = subgroup.map(|name| Directory::open(directory.path().join(name))).transpose()?;
    let within = within.as_ref().filter(|within| within.exists());
    let cpu_pressure = reader.pressure(directory, "cpu.pressure")?;
    let cpu =
        reader.read(directory, "cpu.stat")?.map(|text| (parse_cpu_stat_v2(text), wanted.map(|_| parse_cpu_v2(text))));
    let (cpu, cpu_details) = cpu.unwrap_or_default();
    let (mut memory, mut memory_details) = (None, None);
    if let Some(usage_bytes) = reader.number(directory, "memory.current")? {
        let text = reader.read(directory, "memory.stat")?;
        memory_details = wanted.and(text).map(parse_memory_v2);
        let found = text.map(parse_memory_stat_v2).unwrap_or_default();
        let swap = match reader.number(directory, "memory.swap.current")? {
            None => None,
            Some(usage_bytes) => {
                let limit_bytes = match known.limits {
                    Some(known) => known.swap_bytes,
                    None => reader.limit(directory, within, "memory.swap.max")?,
                };
                Some(SwapStats { usage_bytes, limit_bytes })
            }
        };
        memory = Some(MemoryStats {
            usage_bytes,
            rss_bytes: found.anon,
            inactive_file_bytes: found.inactive_file,
            limit_bytes: match known.limits {
                Some(known) => known.memory_bytes,
                None => reader.limit(directory, within, "memory.max")?,
            },
            page_faults: found.page_faults,
            major_page_faults: found.major_page_faults,
            swap,
            pressure: reader.pressure(directory, "memory.pressure")?,
        });
    }
    let stats = CgroupStats {
        cpu: cpu.map(|usage_nanos| CpuStats { usage_nanos, pressure: cpu_pressure }),
        memory,
        process_count: match known.is_without_process_count {
            true => None,
            false => reader.number(directory, "pids.current")?,
        },
        io_pressure: reader.pressure(directory, "io.pressure")?,
    };
    let details = match wanted {
        Some(wanted) => details::read_v2(directory, within, wanted, reader, (cpu_details, memory_details))?,
        None => Details::default(),
    };
    Ok((stats, details))
}

/// A file of one number; `max` and anything else is none.
pub(crate) fn parse_number(text: &str) -> Option<u64> {
    text.trim().parse().ok()
}

/// Lines of a name, a blank and a number.
pub(crate) fn fields(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name, value.trim().parse().ok()?))
    })
}

/// What of `memory.stat` is used; v1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct MemoryStatV1 {
    rss: u64,
    inactive_file: u64,
    swap: Option<u64>,
    page_faults: u64,
    major_page_faults: u64,
    limit: Option<u64>,
    with_swap_limit: Option<u64>,
}

fn parse_memory_stat_v1(text: &str) -> MemoryStatV1 {
    let mut found = MemoryStatV1::default();
    let limited = |value: u64| Some(value).filter(|limit| *limit < V1_UNLIMITED);
    for (name, value) in fields(text) {
        match name {
            "hierarchical_memory_limit" => found.limit = limited(value),
            "hierarchical_memsw_limit" => found.with_swap_limit = limited(value),
            "total_rss" => found.rss = value,
            "total_inactive_file" => found.inactive_file = value,
            "total_swap" => found.swap = Some(value),
            "total_pgfault" => found.page_faults = value,
            "total_pgmajfault" => found.major_page_faults = value,
            _ => {}
        }
    }
    found
}

/// What of `memory.stat` is used; v2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct MemoryStatV2 {
    anon: u64,
    inactive_file: u64,
    page_faults: u64,
    major_page_faults: u64,
}

fn parse_memory_stat_v2(text: &str) -> MemoryStatV2 {
    let mut found = MemoryStatV2::default();
    for (name, value) in fields(text) {
        match name {
            "anon" => found.anon = value,
            "inactive_file" => found.inactive_file = value,
            "pgfault" => found.page_faults = value,
            "pgmajfault" => found.major_page_faults = value,
            _ => {}
        }
    }
    found
}

/// `usage_usec` of `cpu.stat`, in nanoseconds.
fn parse_cpu_stat_v2(text: &str) -> Option<u64> {
    fields(text).find(|(name, _)| *name == "usage_usec").map(|(_, micros)| micros.saturating_mul(1000))
}

/// A `*.pressure` file; `None` when it has no line of either kind.
pub(crate) fn parse_pressure(text: &str) -> Option<Pressure> {
    let mut pressure = None;
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        let kind = words.next();
        let stall = parse_stall(words);
        match kind {
            Some("some") => pressure.get_or_insert_with(Pressure::default).some = stall,
            Some("full") => pressure.get_or_insert_with(Pressure::default).full = stall,
            _ => {}
        }
    }
    pressure
}

fn parse_stall<'a>(words: impl Iterator<Item = &'a str>) -> Stall {
    let mut stall = Stall::default();
    for (name, value) in words.filter_map(|word| word.split_once('=')) {
        let share = || value.parse().ok().filter(|share: &f64| share.is_finite() && *share >= 0.0).unwrap_or_default();
        match name {
            "avg10" => stall.avg10 = share(),
            "avg60" => stall.avg60 = share(),
            "avg300" => stall.avg300 = share(),
            "total" => stall.total_micros = value.parse().unwrap_or_default(),
            _ => {}
        }
    }
    stall
}

/// Feeds arbitrary bytes to every parser of this module. Law: averages are numbers one can show.
pub fn fuzz_stats(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let _ = parse_number(text);
    details::fuzz(text);
    let v1 = parse_memory_stat_v1(text);
    assert!(v1.limit.is_none_or(|limit| limit < V1_UNLIMITED), "unlimited is no limit");
    let _ = parse_memory_stat_v2(text);
    let _ = parse_cpu_stat_v2(text);
    if let Some(Pressure { some, full }) = parse_pressure(text) {
        for stall in [some, full] {
            assert!(
                [stall.avg10, stall.avg60, stall.avg300].iter().all(|share| share.is_finite()),
                "shares are finite"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write as _;
    use std::path::Path;

    use super::*;

    const V1_STAT: &str = "cache 8192\nrss 4096\nswap 0\npgfault 3\ninactive_file 4096\n\
        hierarchical_memory_limit 16777216\nhierarchical_memsw_limit 33554432\ntotal_cache 8192\ntotal_rss 12288\n\
        total_swap 2048\ntotal_pgfault 75\ntotal_pgmajfault 2\ntotal_inactive_file 8192\n";
    const V2_STAT: &str = "anon 151552\nfile 0\nkernel 90112\ninactive_anon 147456\ninactive_file 4096\nactive_file 0\n\
        pgfault 532\npgmajfault 1\n";
    const PRESSURE: &str =
        "some avg10=1.50 avg60=0.25 avg300=0.01 total=4711\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=12\n";

    /// A v1 and a v2 tree in a directory, with one cgroup `/pod/a` each.
    fn layout(root: &Path, version: CgroupVersion) -> Layout {
        let mounts = match version {
            CgroupVersion::V1 => ["cpuacct", "memory", "pids"]
                .iter()
                .map(|name| format!("1 2 0:3 / {}/{name} rw - cgroup cgroup rw,{name}\n", root.display()))
                .collect(),
            CgroupVersion::V2 => format!("1 2 0:3 / {} rw - cgroup2 cgroup2 rw\n", root.display()),
        };
        Layout::parse(&mounts)
    }

    fn write(root: &Path, files: &[(&str, &str)]) {
        for (path, content) in files {
            let path = root.join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::File::create(path).unwrap().write_all(content.as_bytes()).unwrap();
        }
    }

    #[test]
    fn v1_is_read_from_four_files_and_limits_where_there_are_some() {
        let root = tempfile::tempdir().unwrap();
        write(
            root.path(),
            &[
                ("cpuacct/pod/a/cpuacct.usage", "123456789\n"),
                ("memory/pod/a/memory.stat", V1_STAT),
                ("memory/pod/a/memory.usage_in_bytes", "20480\n"),
                ("memory/pod/a/memory.limit_in_bytes", "16777216\n"),
                ("memory/pod/a/memory.memsw.limit_in_bytes", "33554432\n"),
                ("pids/pod/a/pids.current", "3\n"),
            ],
        );
        let layout = layout(root.path(), CgroupVersion::V1);
        let stats = layout.stats("/pod/a").unwrap();
        let memory = stats.memory.unwrap();
        assert_eq!(stats.cpu, Some(CpuStats { usage_nanos: 123_456_789, pressure: None }));
        assert_eq!((stats.process_count, stats.io_pressure), (Some(3), None));
        assert_eq!((memory.usage_bytes, memory.working_set_bytes(), memory.rss_bytes), (20480, 12288, 12288));
        assert_eq!((memory.limit_bytes, memory.available_bytes()), (Some(16_777_216), Some(16_777_216 - 12288)));
        assert_eq!((memory.page_faults, memory.major_page_faults), (75, 2));
        let swap = memory.swap.unwrap();
        assert_eq!((swap.usage_bytes, swap.available_bytes()), (2048, Some(16_777_216 - 2048)));

        // A limit of the pod is not the container's.
        write(root.path(), &[("memory/pod/a/memory.limit_in_bytes", "9223372036854771712\n")]);
        let memory = layout.stats("/pod/a").unwrap().memory.unwrap();
        assert_eq!((memory.limit_bytes, memory.available_bytes()), (None, None));
    }

    #[test]
    fn v2_is_read_with_pressure_and_swap() {
        let root = tempfile::tempdir().unwrap();
        let at = |file: &str| format!("pod/a/{file}");
        let files = [
            (at("cpu.stat"), "usage_usec 1500\nuser_usec 1000\nsystem_usec 500\n"),
            (at("cpu.pressure"), PRESSURE),
            (at("memory.current"), "2048\n"),
            (at("memory.stat"), V2_STAT),
            (at("memory.max"), "max\n"),
            (at("memory.swap.current"), "4096\n"),
            (at("memory.swap.max"), "8192\n"),
            (at("pids.current"), "1\n"),
        ];
        let files: Vec<(&str, &str)> = files.iter().map(|(path, content)| (path.as_str(), *content)).collect();
        write(root.path(), &files);
        let layout = layout(root.path(), CgroupVersion::V2);
        let stats = layout.stats("/pod/a").unwrap();
        let cpu = stats.cpu.unwrap();
        assert_eq!((cpu.usage_nanos, cpu.pressure.unwrap().some.total_micros), (1_500_000, 4711));
        let memory = stats.memory.unwrap();
        // Less used than inactive: the two are not read at one moment.
        assert_eq!((memory.usage_bytes, memory.working_set_bytes(), memory.rss_bytes), (2048, 0, 151_552));
        assert_eq!((memory.available_bytes(), memory.page_faults, memory.major_page_faults), (None, 532, 1));
        assert_eq!(memory.swap.unwrap().available_bytes(), Some(4096));
        assert_eq!((memory.pressure, stats.io_pressure, stats.process_count), (None, None, Some(1)));

        write(root.path(), &[("pod/a/container/memory.max", "4096\n"), ("pod/a/container/memory.current", "7\n")]);
        let memory = layout.container_stats("/pod/a", Known::default()).unwrap().memory.unwrap();
        assert_eq!(
            (memory.usage_bytes, memory.limit_bytes),
            (2048, Some(4096)),
            "limits of the inner, use of the whole"
        );
        assert_eq!(layout.stats("/pod/a").unwrap().memory.unwrap().limit_bytes, None);
        let limits = Limits { memory_bytes: Some(5000), swap_bytes: None };
        let known = Known { limits: Some(limits), is_without_process_count: true };
        let stats = layout.container_stats("/pod/a", known).unwrap();
        assert_eq!((stats.memory.unwrap().limits(), stats.process_count), (limits, None), "what is known is not read");
    }

    #[test]
    fn what_is_gone_uses_nothing_and_bad_paths_are_refused() {
        let root = tempfile::tempdir().unwrap();
        for version in [CgroupVersion::V1, CgroupVersion::V2] {
            let layout = layout(root.path(), version);
            assert_eq!(layout.stats("/pod/a").unwrap(), CgroupStats::default());
            assert!(matches!(layout.stats("/pod/../a"), Err(StatsError::Path(_))));
        }
    }

    #[test]
    fn this_machine_s_own_numbers_are_read() {
        let layout = Layout::detect().unwrap();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap();
        let wanted = if layout.version() == CgroupVersion::V2 { "0::" } else { ":memory:" };
        let path = own.lines().find_map(|line| Some(line.split_once(wanted)?.1)).unwrap();
        if path != "/" {
            let memory = layout.stats(path).unwrap().memory.unwrap();
            assert!(memory.usage_bytes > 0 && memory.page_faults > 0, "{memory:?}");
        }
    }

    #[test]
    fn pressure_is_what_the_kernel_writes_or_nothing() {
        let stall = |avg10, avg60, avg300, total_micros| Stall { avg10, avg60, avg300, total_micros };
        for (text, expected) in [
            (PRESSURE, Some((stall(1.5, 0.25, 0.01, 4711), stall(0.0, 0.0, 0.0, 12)))),
            ("some avg10=NaN avg60=-1 total=x\n", Some((Stall::default(), Stall::default()))),
            ("", None),
            ("avg10=1.0\n", None),
        ] {
            assert_eq!(parse_pressure(text).map(|found| (found.some, found.full)), expected, "{text:?}");
        }
    }

    #[test]
    fn sums_have_no_limits() {
        let one = CgroupStats {
            cpu: Some(CpuStats { usage_nanos: u64::MAX, pressure: Some(Pressure::default()) }),
            memory: Some(MemoryStats {
                usage_bytes: 5,
                inactive_file_bytes: 1,
                limit_bytes: Some(9),
                ..Default::default()
            }),
            process_count: Some(2),
            io_pressure: None,
        };
        let two = one.plus(&one);
        assert_eq!(two.cpu, Some(CpuStats { usage_nanos: u64::MAX, pressure: None }));
        let memory = two.memory.unwrap();
        assert_eq!((memory.working_set_bytes(), memory.limit_bytes, two.process_count), (8, None, Some(4)));
        assert_eq!(CgroupStats::default().plus(&one), one);
    }

    #[test]
    fn damage_is_survived() {
        for seed in [V1_STAT, V2_STAT, PRESSURE, "usage_usec 5\n", "18446744073709551616\n", "max\n"] {
            for cut in 0..seed.len() {
                fuzz_stats(&seed.as_bytes()[..cut]);
                let mut bytes = seed.as_bytes().to_vec();
                bytes[cut] ^= 0x11;
                fuzz_stats(&bytes);
            }
        }
    }
}
