//! GetContainerEvents.

use std::sync::Arc;

use cri_api::v1;
use futures_util::StreamExt;
use futures_util::stream::{self, BoxStream};
use lifecycle::{Event, EventKind, Node, Subscription};
use tonic::Status;

use crate::pod_sandbox_status::{containers_statuses, status_of};

/// Every event from now on. Without events in the configuration the stream ends at once and well: that is how the
/// kubelet finds out. Source: CRI-O.
pub(crate) fn get_container_events(node: &Arc<Node>) -> BoxStream<'static, Result<v1::ContainerEventResponse, Status>> {
    match node.subscribe() {
        None => stream::empty().boxed(),
        Some(subscription) => stream::unfold(subscription, next).boxed(),
    }
}

async fn next(mut subscription: Subscription) -> Option<(Result<v1::ContainerEventResponse, Status>, Subscription)> {
    let event = subscription.next().await?;
    Some((Ok(message(&event)), subscription))
}

fn message(event: &Event) -> v1::ContainerEventResponse {
    let kind = match event.kind {
        EventKind::Created => v1::ContainerEventType::ContainerCreatedEvent,
        EventKind::Started => v1::ContainerEventType::ContainerStartedEvent,
        EventKind::Stopped => v1::ContainerEventType::ContainerStoppedEvent,
        EventKind::Deleted => v1::ContainerEventType::ContainerDeletedEvent,
    };
    let pod = &event.pod;
    v1::ContainerEventResponse {
        container_id: event.id.clone(),
        container_event_type: kind.into(),
        created_at: pod.at.nanos(),
        pod_sandbox_status: Some(status_of(&pod.sandbox, pod.state)),
        containers_statuses: containers_statuses(pod),
    }
}
