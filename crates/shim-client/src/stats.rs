//! What a container uses, by its shim's account.

use std::path::Path;

use prost::Message;
use thiserror::Error;

use crate::client::CallError;
use crate::record::{Record, RecordError};
use crate::task::Task;
use crate::wire;

/// Names of what shims answer. Source: containerd's type names.
const V1: &str = "io.containerd.cgroups.v1.Metrics";
const V2: &str = "io.containerd.cgroups.v2.Metrics";
/// Shims say "unlimited" as the largest numbers there are, v1's rounded down to a page.
const UNLIMITED: u64 = (i64::MAX as u64) & !0xffff;

/// Why a container's use is not known.
#[derive(Debug, Error)]
pub enum StatsError {
    /// Its record.
    #[error("read the record of container {container}")]
    Record {
        /// The container.
        container: String,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No shim keeps it.
    #[error("no shim keeps container {container}")]
    Unknown {
        /// The container.
        container: String,
    },
    /// Its shim did not tell.
    #[error("ask the shim what container {container} uses")]
    Ask {
        /// The container.
        container: String,
        /// What failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its shim told something else.
    #[error("the shim tells what container {container} uses as {kind:?}, which is not supported")]
    Kind {
        /// The container.
        container: String,
        /// The type's name.
        kind: String,
    },
}

/// What a container uses. A part is `None` where the shim does not tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Nanoseconds on all processors since it was made.
    pub processor_nanos: Option<u64>,
    /// Memory.
    pub memory: Option<Memory>,
    /// Processes and threads.
    pub process_count: Option<u64>,
}

/// Memory and swap, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Memory {
    /// All that is charged, page cache included.
    pub usage: u64,
    /// Anonymous memory.
    pub rss: u64,
    /// File pages that go first when memory is short.
    pub inactive_file: u64,
    /// `None` without limit.
    pub limit: Option<u64>,
    /// Page faults.
    pub page_faults: u64,
    /// Those that waited for storage.
    pub major_page_faults: u64,
    /// Swapped out; `None` where it is not counted.
    pub swap_usage: Option<u64>,
    /// How much may be; `None` without limit.
    pub swap_limit: Option<u64>,
}

/// Asks the shim of a container, for at most a second.
pub fn stats(root: &Path, container: &str) -> Result<Stats, StatsError> {
    let name = || container.to_owned();
    let of_record = |source: RecordError| StatsError::Record { container: name(), source: source.into() };
    let of_call = |source: CallError| StatsError::Ask { container: name(), source: source.into() };
    let record = Record::load(root, container).map_err(of_record)?;
    let record = record.ok_or_else(|| StatsError::Unknown { container: name() })?;
    let told = Task::connect(&record).and_then(|mut task| task.stats()).map_err(of_call)?.unwrap_or_default();
    match read(&told) {
        Ok(Some(stats)) => Ok(stats),
        Ok(None) => Err(StatsError::Kind { container: name(), kind: told.type_url.chars().take(200).collect() }),
        Err(error) => Err(of_call(CallError::Garbled { method: "Stats", source: error })),
    }
}

/// Reads either form; `None` for another.
fn read(told: &wire::Any) -> Result<Option<Stats>, prost::DecodeError> {
    // A name may have a prefix, as google's do.
    match told.type_url.rsplit('/').next().unwrap_or_default() {
        V1 => wire::MetricsV1::decode(told.value.as_slice()).map(|metrics| Some(of_v1(&metrics))),
        V2 => wire::MetricsV2::decode(told.value.as_slice()).map(|metrics| Some(of_v2(&metrics))),
        _ => Ok(None),
    }
}

fn limit(value: u64) -> Option<u64> {
    Some(value).filter(|value| (1..UNLIMITED).contains(value))
}

fn of_v1(metrics: &wire::MetricsV1) -> Stats {
    let usage = metrics.cpu.as_ref().and_then(|cpu| cpu.usage.as_ref());
    let memory = metrics.memory.as_ref().map(|memory| {
        let entry = |entry: &Option<wire::MemoryEntryV1>| entry.as_ref().map(|entry| (entry.usage, limit(entry.limit)));
        let (usage, bound) = entry(&memory.usage).unwrap_or_default();
        // v1 counts memory and swap together.
        let both = entry(&memory.swap);
        Memory {
            usage,
            rss: memory.total_rss.max(memory.rss),
            inactive_file: memory.total_inactive_file,
            limit: bound,
            page_faults: memory.total_pg_fault.max(memory.pg_fault),
            major_page_faults: memory.total_pg_maj_fault.max(memory.pg_maj_fault),
            swap_usage: both.map(|(both, _)| both.saturating_sub(usage)),
            swap_limit: both.and_then(|(_, both)| Some(both?.saturating_sub(bound?))),
        }
    });
    Stats {
        processor_nanos: usage.map(|usage| usage.total),
        memory,
        process_count: metrics.pids.as_ref().map(|pids| pids.current),
    }
}

fn of_v2(metrics: &wire::MetricsV2) -> Stats {
    let memory = metrics.memory.as_ref().map(|memory| Memory {
        usage: memory.usage,
        rss: memory.anon,
        inactive_file: memory.inactive_file,
        limit: limit(memory.usage_limit),
        page_faults: memory.pgfault,
        major_page_faults: memory.pgmajfault,
        swap_usage: Some(memory.swap_usage),
        swap_limit: limit(memory.swap_limit),
    });
    Stats {
        processor_nanos: metrics.cpu.as_ref().map(|cpu| cpu.usage_usec.saturating_mul(1000)),
        memory,
        process_count: metrics.pids.as_ref().map(|pids| pids.current),
    }
}

pub(crate) fn fuzz(bytes: &[u8]) {
    for type_url in [V1, V2] {
        _ = read(&wire::Any { type_url: type_url.to_owned(), value: bytes.to_vec() });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any(type_url: &str, message: &impl Message) -> wire::Any {
        wire::Any { type_url: type_url.to_owned(), value: message.encode_to_vec() }
    }

    #[test]
    fn both_forms_are_read_and_another_is_named() {
        let entry = |usage, limit| Some(wire::MemoryEntryV1 { usage, limit });
        let memory = wire::MemoryStatV1 {
            rss: 1,
            total_rss: 3,
            total_inactive_file: 2,
            usage: entry(10, 100),
            swap: entry(14, 150),
            ..wire::MemoryStatV1::default()
        };
        let v1 = wire::MetricsV1 {
            cpu: Some(wire::CpuStatV1 { usage: Some(wire::CpuUsageV1 { total: 5 }) }),
            memory: Some(memory),
            pids: Some(wire::PidsStat { current: 4, limit: 0 }),
        };
        let expected = Memory {
            usage: 10,
            rss: 3,
            inactive_file: 2,
            limit: Some(100),
            swap_usage: Some(4),
            swap_limit: Some(50),
            ..Memory::default()
        };
        let stats = Stats { processor_nanos: Some(5), memory: Some(expected), process_count: Some(4) };
        assert_eq!(read(&any(V1, &v1)), Ok(Some(stats)));

        let memory = wire::MemoryStatV2 { anon: 1, usage: 2, usage_limit: u64::MAX, ..wire::MemoryStatV2::default() };
        let cpu = Some(wire::CpuStatV2 { usage_usec: 7 });
        let v2 = wire::MetricsV2 { cpu, memory: Some(memory), pids: None };
        let expected = Memory { usage: 2, rss: 1, swap_usage: Some(0), ..Memory::default() };
        let stats = Stats { processor_nanos: Some(7000), memory: Some(expected), process_count: None };
        assert_eq!(read(&any(&format!("type.googleapis.com/{V2}"), &v2)), Ok(Some(stats)));

        assert_eq!(read(&any("windows.Statistics", &v2)), Ok(None));
        assert!(read(&wire::Any { type_url: V1.to_owned(), value: vec![0xff] }).is_err());
    }
}
