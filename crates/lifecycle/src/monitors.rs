//! Looking after the monitors: one that is gone can no longer keep its container's log, nor tell how it ended.
//!
//! The container itself goes on, and its end is still noticed by its pidfd; nothing is restarted, because nobody but the
//! monitor held the container's pipes. Source: CRI-O probes every ten seconds and says so.

use std::collections::HashSet;
use std::sync::Weak;
use std::time::Duration;

use domain::id::ContainerId;
use runtime_client::process;

use crate::node::Node;

const PERIOD: Duration = Duration::from_secs(10);

/// Probes for as long as the node exists.
pub(crate) async fn watch(node: Weak<Node>) {
    let mut told: HashSet<ContainerId> = HashSet::new();
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(node) = node.upgrade() else { return };
        let containers = node.objects.containers();
        told.retain(|id| containers.iter().any(|container| container.id == *id));
        for container in containers {
            let is_lost = container.state().init().is_some_and(process::is_alive)
                && container.monitor.is_some_and(|monitor| !process::is_alive(monitor));
            if is_lost && told.insert(container.id.clone()) {
                tracing::error!(
                    container.id = %container.id,
                    "the monitor of a running container is gone: its log ends here and its exit code will not be known"
                );
            }
        }
    }
}
