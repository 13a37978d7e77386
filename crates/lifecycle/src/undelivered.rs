//! Sandboxes and containers whose client gave up waiting before they were there.
//!
//! A kubelet asks again for the same, and gets it. Until then lists do not show it: a kubelet that saw a container it knows
//! nothing of would make another. What nobody asks for again is removed. Source: CRI-O.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use domain::id::{ContainerId, SandboxId};

use crate::events::EventKind;
use crate::node::Node;
use crate::objects::Delivery;
use crate::undo::chain;

/// How long an object waits to be asked for, and how often that is looked at: it goes after one to two minutes.
const PATIENCE: Duration = Duration::from_secs(60);

/// Removes what was given up, for as long as the node exists.
pub(crate) async fn watch(node: Weak<Node>) {
    let mut ticks = tokio::time::interval(PATIENCE);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(node) = node.upgrade() else { return };
        for id in node.objects.abandon(Instant::now(), PATIENCE) {
            tracing::info!(id, "removing what nobody has asked for again");
            // An infra container has its sandbox's id.
            let is_sandbox = SandboxId::parse(&id).is_ok_and(|id| node.objects.sandbox(&id).is_some());
            let failure = if is_sandbox {
                node.remove_sandbox(&id, None).await.err().map(|error| chain(&*error))
            } else {
                node.remove_container(&id).await.err().map(|error| chain(&*error))
            };
            if let Some(error) = failure {
                tracing::warn!(id, error, "removing what nobody has asked for again failed");
            }
        }
    }
}

impl Node {
    /// Shows a container to everybody, because a client is being told of it. What has been removed is nobody's to show.
    pub(crate) async fn deliver_container(self: &Arc<Self>, id: &ContainerId) -> Delivery {
        let Some(container) = self.objects.container(id) else { return Delivery::Again };
        let _changing = container.changing.lock().await;
        let delivery = self.objects.deliver(id.as_str());
        if delivery == Delivery::First {
            self.tell_container(&container, EventKind::Created);
        }
        delivery
    }

    /// Shows a sandbox to everybody, because a client is being told of it. What has been removed is nobody's to show.
    pub(crate) async fn deliver_sandbox(self: &Arc<Self>, id: &SandboxId) -> Delivery {
        let Some(sandbox) = self.objects.sandbox(id) else { return Delivery::Again };
        // Nobody tells the end of the infra container before its making.
        let _changing = match &sandbox.infra {
            Some(infra) => Some(infra.changing.lock().await),
            None => None,
        };
        let delivery = self.objects.deliver(id.as_str());
        if delivery == Delivery::First {
            self.tell_sandbox(&sandbox, EventKind::Created);
            self.tell_sandbox(&sandbox, EventKind::Started);
        }
        delivery
    }
}
