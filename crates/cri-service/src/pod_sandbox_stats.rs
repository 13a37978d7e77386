//! PodSandboxStats, and how a sandbox's statistics are told.

use cri_api::v1;
use lifecycle::{Interface, NetworkStats, Node, SandboxStats, Statistics};
use tonic::Status;

use crate::container_stats::{self, code, number};
use crate::refusal::refuse;
use crate::to_cri;

pub(crate) async fn pod_sandbox_stats(
    node: &Node,
    statistics: &Statistics,
    request: v1::PodSandboxStatsRequest,
) -> Result<v1::PodSandboxStatsResponse, Status> {
    let sandbox = node.find_sandbox(&request.pod_sandbox_id).map_err(|error| refuse(code(&error), &error))?;
    let stats = statistics.sandboxes(vec![sandbox]).await.iter().map(message).next();
    Ok(v1::PodSandboxStatsResponse { stats })
}

pub(crate) fn message(stats: &SandboxStats) -> v1::PodSandboxStats {
    let (sandbox, usage) = (&stats.sandbox, &stats.usage);
    v1::PodSandboxStats {
        attributes: Some(v1::PodSandboxAttributes {
            id: sandbox.id.to_string(),
            metadata: Some(to_cri::sandbox_metadata(&sandbox.config.metadata)),
            labels: to_cri::map(&sandbox.config.labels),
            annotations: to_cri::map(&sandbox.config.annotations),
        }),
        linux: Some(v1::LinuxPodSandboxStats {
            cpu: container_stats::cpu(usage),
            memory: container_stats::memory(usage),
            network: stats.network.as_ref().map(network),
            process: usage
                .cgroup
                .process_count
                .map(|count| v1::ProcessUsage { timestamp: usage.at.nanos(), process_count: number(count) }),
            containers: stats.containers.iter().map(container_stats::message).collect(),
            io: container_stats::io(usage),
        }),
        windows: None,
    }
}

/// Source: CRI `NetworkUsage.interfaces`: all but the default one.
fn network(stats: &NetworkStats) -> v1::NetworkUsage {
    let default = stats.default_interface();
    let is_default = |interface: &&Interface| default.is_some_and(|default| default.name == interface.name);
    v1::NetworkUsage {
        timestamp: stats.at.nanos(),
        default_interface: default.map(interface),
        interfaces: stats.interfaces.iter().filter(|found| !is_default(found)).map(interface).collect(),
    }
}

fn interface(interface: &Interface) -> v1::NetworkInterfaceUsage {
    v1::NetworkInterfaceUsage {
        name: interface.name.clone(),
        rx_bytes: number(interface.rx_bytes),
        rx_errors: number(interface.rx_errors),
        tx_bytes: number(interface.tx_bytes),
        tx_errors: number(interface.tx_errors),
    }
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;

    use super::*;

    #[test]
    fn the_default_interface_is_the_first_that_leads_somewhere_and_is_told_once() {
        for (names, default, others) in [
            (&["lo", "eth0", "net1"][..], Some("eth0"), &["lo", "net1"][..]),
            (&["lo"], None, &["lo"]),
            (&["eth0"], Some("eth0"), &[]),
            (&[], None, &[]),
        ] {
            let interfaces =
                names.iter().map(|name| Interface { name: (*name).to_owned(), ..Interface::default() }).collect();
            let usage = network(&NetworkStats { at: Timestamp::from_nanos(1), interfaces });
            assert_eq!(usage.default_interface.as_ref().map(|found| found.name.as_str()), default);
            assert_eq!(usage.interfaces.iter().map(|found| found.name.as_str()).collect::<Vec<_>>(), others);
        }
    }
}
