//! ListPodSandbox and StreamPodSandboxes.

use cri_api::v1;
use lifecycle::{Node, Sandbox};

use crate::to_cri;

pub(crate) fn list(node: &Node, filter: Option<v1::PodSandboxFilter>) -> Vec<v1::PodSandbox> {
    let filter = filter.unwrap_or_default();
    node.sandboxes()
        .iter()
        .filter(|sandbox| is_wanted(sandbox, &filter))
        .map(|sandbox| v1::PodSandbox {
            id: sandbox.id.to_string(),
            metadata: Some(to_cri::sandbox_metadata(&sandbox.config.metadata)),
            state: to_cri::sandbox_state(sandbox.state()).into(),
            created_at: sandbox.created.nanos(),
            labels: to_cri::map(&sandbox.config.labels),
            annotations: to_cri::map(&sandbox.config.annotations),
            runtime_handler: sandbox.runtime_handler.clone(),
        })
        .collect()
}

fn is_wanted(sandbox: &Sandbox, filter: &v1::PodSandboxFilter) -> bool {
    sandbox.id.as_str().starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == i32::from(to_cri::sandbox_state(sandbox.state())))
        && to_cri::has_labels(&sandbox.config.labels, &filter.label_selector)
}
