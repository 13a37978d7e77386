//! ContainerStats, and how statistics are told.

use cri_api::v1;
use lifecycle::{CgroupStats, ContainerStats, LookupError, Node, Pressure, Stall, Statistics, Usage};
use tonic::{Code, Status};

use crate::refusal::refuse;
use crate::to_cri;

pub(crate) async fn container_stats(
    node: &Node,
    statistics: &Statistics,
    request: v1::ContainerStatsRequest,
) -> Result<v1::ContainerStatsResponse, Status> {
    let container = node.find_container(&request.container_id).map_err(|error| refuse(code(&error), &error))?;
    let stats = statistics.containers(vec![container]).await.iter().map(message).next();
    Ok(v1::ContainerStatsResponse { stats })
}

/// CRI-O gives these RPCs no code of their own for what is not there.
pub(crate) fn code(error: &LookupError) -> Code {
    match error {
        LookupError::Absent { .. } | LookupError::Empty { .. } | LookupError::Ambiguous { .. } => Code::Unknown,
    }
}

pub(crate) fn message(stats: &ContainerStats) -> v1::ContainerStats {
    let container = &stats.container;
    let config = &container.config;
    v1::ContainerStats {
        attributes: Some(v1::ContainerAttributes {
            id: container.id.to_string(),
            metadata: Some(to_cri::container_metadata(&config.metadata)),
            labels: to_cri::map(&config.labels),
            annotations: to_cri::map(&config.annotations),
        }),
        cpu: stats.usage.as_ref().and_then(cpu),
        memory: stats.usage.as_ref().and_then(memory),
        writable_layer: stats.writable_layer.as_ref().map(|layer| v1::FilesystemUsage {
            timestamp: layer.at.nanos(),
            fs_id: Some(v1::FilesystemIdentifier { mountpoint: layer.mountpoint.display().to_string() }),
            used_bytes: number(layer.used_bytes),
            inodes_used: number(layer.inodes_used),
        }),
        swap: stats.usage.as_ref().and_then(swap),
        io: stats.usage.as_ref().and_then(io),
    }
}

#[expect(clippy::unnecessary_wraps, reason = "every field that takes it is an Option")]
pub(crate) fn number(value: u64) -> Option<v1::UInt64Value> {
    Some(v1::UInt64Value { value })
}

pub(crate) fn cpu(usage: &Usage) -> Option<v1::CpuUsage> {
    usage.cgroup.cpu.map(|cpu| v1::CpuUsage {
        timestamp: usage.at.nanos(),
        usage_core_nano_seconds: number(cpu.usage_nanos),
        usage_nano_cores: usage.nano_cores.and_then(number),
        psi: cpu.pressure.map(psi),
    })
}

pub(crate) fn memory(usage: &Usage) -> Option<v1::MemoryUsage> {
    usage.cgroup.memory.map(|memory| v1::MemoryUsage {
        timestamp: usage.at.nanos(),
        working_set_bytes: number(memory.working_set_bytes()),
        available_bytes: memory.available_bytes().and_then(number),
        usage_bytes: number(memory.usage_bytes),
        rss_bytes: number(memory.rss_bytes),
        page_faults: number(memory.page_faults),
        major_page_faults: number(memory.major_page_faults),
        psi: memory.pressure.map(psi),
    })
}

fn swap(usage: &Usage) -> Option<v1::SwapUsage> {
    usage.cgroup.memory.and_then(|memory| memory.swap).map(|swap| v1::SwapUsage {
        timestamp: usage.at.nanos(),
        swap_available_bytes: swap.available_bytes().and_then(number),
        swap_usage_bytes: number(swap.usage_bytes),
    })
}

pub(crate) fn io(usage: &Usage) -> Option<v1::IoUsage> {
    let CgroupStats { io_pressure, .. } = usage.cgroup;
    io_pressure.map(|pressure| v1::IoUsage { timestamp: usage.at.nanos(), psi: Some(psi(pressure)) })
}

/// The total stays in the kernel's microseconds: what the kubelet tells of cAdvisor, and every reader of it, has them.
fn psi(pressure: Pressure) -> v1::PsiStats {
    let data = |stall: Stall| v1::PsiData {
        total: stall.total_micros,
        avg10: stall.avg10,
        avg60: stall.avg60,
        avg300: stall.avg300,
    };
    v1::PsiStats { full: Some(data(pressure.full)), some: Some(data(pressure.some)) }
}
