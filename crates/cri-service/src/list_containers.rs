//! ListContainers and StreamContainers.

use cri_api::v1;
use lifecycle::{Container, Node};

use crate::to_cri;

pub(crate) fn list(node: &Node, filter: Option<v1::ContainerFilter>) -> Vec<v1::Container> {
    let filter = filter.unwrap_or_default();
    node.containers()
        .iter()
        .filter(|container| is_wanted(container, &filter))
        .map(|container| v1::Container {
            id: container.id.to_string(),
            pod_sandbox_id: container.sandbox.to_string(),
            metadata: Some(to_cri::container_metadata(&container.config.metadata)),
            image: Some(to_cri::image_spec(&container.config.image)),
            image_ref: container.image.reference.clone(),
            state: to_cri::container_state(&container.state()).into(),
            created_at: container.created.nanos(),
            labels: to_cri::map(&container.config.labels),
            annotations: to_cri::map(&container.config.annotations),
            image_id: container.image.id.to_string(),
        })
        .collect()
}

fn is_wanted(container: &Container, filter: &v1::ContainerFilter) -> bool {
    container.id.as_str().starts_with(&filter.id)
        && container.sandbox.as_str().starts_with(&filter.pod_sandbox_id)
        && filter
            .state
            .as_ref()
            .is_none_or(|wanted| wanted.state == i32::from(to_cri::container_state(&container.state())))
        && to_cri::has_labels(&container.config.labels, &filter.label_selector)
}
