//! ListPodSandboxStats and StreamPodSandboxStats.

use cri_api::v1;
use lifecycle::{Node, Statistics};

use crate::{pod_sandbox_stats, to_cri};

pub(crate) async fn list(
    node: &Node,
    statistics: &Statistics,
    filter: Option<v1::PodSandboxStatsFilter>,
) -> Vec<v1::PodSandboxStats> {
    let filter = filter.unwrap_or_default();
    let mut sandboxes = node.sandboxes();
    sandboxes.retain(|sandbox| {
        sandbox.id.as_str().starts_with(&filter.id)
            && to_cri::has_labels(&sandbox.config.labels, &filter.label_selector)
    });
    statistics.sandboxes(sandboxes).await.iter().map(pod_sandbox_stats::message).collect()
}
