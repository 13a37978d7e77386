//! What happened to containers, told to whoever listens.
//!
//! Promises: an event is sent after the state it tells of can be seen, and carries the pod as it was at that moment;
//! times of events and of [`SandboxSnapshot`]s grow in the order in which the states were looked at, so that a client may
//! throw away whatever is older than what it knows. A client that reads slowly loses its oldest events, is told how many,
//! and holds up nobody. Without clients nothing is looked at and nothing is kept.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use domain::container::ContainerState;
use domain::sandbox::SandboxState;
use domain::time::Timestamp;
use tokio::sync::broadcast;

use crate::clock;
use crate::container::Container;
use crate::node::Node;
use crate::sandbox::Sandbox;

/// Events kept for a client that does not read. Source: CRI-O.
const BUFFER_EVENTS: usize = 1000;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventKind {
    /// It was made.
    Created,
    /// It runs.
    Started,
    /// It has ended.
    Stopped,
    /// It is gone.
    Deleted,
}

/// Something that happened to a container or to a sandbox's infra container, whether or not that has a process.
#[derive(Debug, Clone)]
pub struct Event {
    /// Id of the container; the sandbox's for an infra container.
    pub id: String,
    /// What happened.
    pub kind: EventKind,
    /// The pod afterwards; its containers are those of every sandbox of the pod. Source: CRI-O.
    pub pod: SandboxSnapshot,
}

/// A sandbox and containers at one moment.
#[derive(Debug, Clone)]
pub struct SandboxSnapshot {
    /// The moment.
    pub at: Timestamp,
    /// The sandbox.
    pub sandbox: Arc<Sandbox>,
    /// Its state then.
    pub state: SandboxState,
    /// Containers but infra containers, with their states then.
    pub containers: Vec<(Arc<Container>, ContainerState)>,
}

/// The one place events go through.
pub(crate) struct Events {
    sender: broadcast::Sender<Arc<Event>>,
    /// Held while the node is looked at, so that no later time goes with an earlier look.
    last: Mutex<Timestamp>,
    lost: AtomicU64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            sender: broadcast::Sender::new(BUFFER_EVENTS),
            last: Mutex::new(Timestamp::from_nanos(0)),
            lost: AtomicU64::default(),
        }
    }
}

impl Events {
    /// Looks at the node at a moment that is later than that of any earlier look, and uses what was seen before the next.
    fn look<T>(&self, now: impl FnOnce() -> Timestamp, look: impl FnOnce(Timestamp) -> T) -> T {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // The time of day may be set back; the order of events may not.
        *last = now().max(Timestamp::from_nanos(last.nanos().saturating_add(1)));
        look(*last)
    }
}

/// A client's end.
pub struct Subscription {
    node: Arc<Node>,
    receiver: broadcast::Receiver<Arc<Event>>,
}

impl Subscription {
    /// The next event; `None` once there will be no more.
    pub async fn next(&mut self) -> Option<Arc<Event>> {
        loop {
            match self.receiver.recv().await {
                Ok(event) => return Some(event),
                Err(broadcast::error::RecvError::Closed) => return None,
                Err(broadcast::error::RecvError::Lagged(count)) => {
                    self.node.events.lost.fetch_add(count, Ordering::Relaxed);
                    tracing::error!(count, "a client reads events too slowly, the oldest are lost to it");
                }
            }
        }
    }
}

impl Node {
    /// Everything that happens from now on; `None` where the configuration has no events.
    #[must_use]
    pub fn subscribe(self: &Arc<Self>) -> Option<Subscription> {
        let is_on = self.config.runtime.enable_pod_events;
        is_on.then(|| Subscription { node: Arc::clone(self), receiver: self.events.sender.subscribe() })
    }

    /// How many events clients have lost by reading too slowly.
    #[must_use]
    pub fn lost_events(&self) -> u64 {
        self.events.lost.load(Ordering::Relaxed)
    }

    /// A sandbox and its containers as they are now.
    #[must_use]
    pub fn sandbox_snapshot(&self, sandbox: &Arc<Sandbox>) -> SandboxSnapshot {
        self.events.look(clock::now, |at| SandboxSnapshot {
            at,
            sandbox: Arc::clone(sandbox),
            state: sandbox.state(),
            containers: self.states_of(|of| of.id == sandbox.id),
        })
    }

    /// Tells what happened to a container or infra container. The caller holds its `changing`, which keeps the order.
    pub(crate) fn tell_container(&self, container: &Container, kind: EventKind) {
        // An infra container comes before its sandbox, and its end may too: neither is anybody's yet.
        if let Some(sandbox) = self.objects.sandbox(&container.sandbox) {
            self.tell(container.id.as_str(), &sandbox, kind);
        }
    }

    /// Tells what happened to a sandbox's infra container, process or no process.
    pub(crate) fn tell_sandbox(&self, sandbox: &Arc<Sandbox>, kind: EventKind) {
        self.tell(sandbox.id.as_str(), sandbox, kind);
    }

    fn tell(&self, id: &str, sandbox: &Arc<Sandbox>, kind: EventKind) {
        // Of what nobody has been told yet there is nothing to tell.
        if self.events.sender.receiver_count() == 0 || !self.objects.is_delivered(id) {
            return;
        }
        let metadata = &sandbox.config.metadata;
        self.events.look(clock::now, |at| {
            let containers = self.states_of(|of| of.id == sandbox.id || of.config.metadata.uid == metadata.uid);
            let pod = SandboxSnapshot { at, sandbox: Arc::clone(sandbox), state: sandbox.state(), containers };
            // Fails when the last client has just gone.
            let _ = self.events.sender.send(Arc::new(Event { id: id.to_owned(), kind, pod }));
        });
    }

    fn states_of(&self, is_wanted: impl Fn(&Sandbox) -> bool) -> Vec<(Arc<Container>, ContainerState)> {
        let sandboxes = self.objects.sandboxes().into_iter().filter(|sandbox| is_wanted(sandbox));
        let containers = sandboxes.flat_map(|sandbox| self.objects.containers_of(&sandbox.id));
        let told = containers.filter(|container| !container.is_infra());
        told.map(|container| (Arc::clone(&container), container.state())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_look_is_earlier_than_the_one_before() {
        let events = Events::default();
        let looks: Vec<i64> =
            [5, 5, 3, 10, -1].map(|nanos| events.look(|| Timestamp::from_nanos(nanos), Timestamp::nanos)).to_vec();
        assert_eq!(looks, [5, 6, 7, 10, 11]);
    }
}
