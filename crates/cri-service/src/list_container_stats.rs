//! ListContainerStats and StreamContainerStats.

use cri_api::v1;
use domain::container::ContainerState;
use lifecycle::{Container, Node, Statistics};

use crate::{container_stats, to_cri};

/// Containers that have ended are left out. Source: CRI-O.
pub(crate) async fn list(
    node: &Node,
    statistics: &Statistics,
    filter: Option<v1::ContainerStatsFilter>,
) -> Vec<v1::ContainerStats> {
    let filter = filter.unwrap_or_default();
    let mut containers = node.containers();
    containers.retain(|container| is_wanted(container, &filter));
    statistics.containers(containers).await.iter().map(container_stats::message).collect()
}

fn is_wanted(container: &Container, filter: &v1::ContainerStatsFilter) -> bool {
    let is_live = match container.state() {
        ContainerState::Created { .. } | ContainerState::Running { .. } => true,
        ContainerState::Exited { .. } => false,
    };
    is_live
        && container.id.as_str().starts_with(&filter.id)
        && container.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && to_cri::has_labels(&container.config.labels, &filter.label_selector)
}
