//! StopContainer: the stop signal, a grace, SIGKILL. A second call may only shorten the grace.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use domain::container::{ContainerState, Process, Signal};
use domain::id::ContainerId;
use runtime_client::process;
use thiserror::Error;
use tokio::sync::watch;

use crate::container::Container;
use crate::node::Node;
use crate::objects::LookupError;
use crate::undo::chain;

/// First pause between kills of a process that does not go.
const KILL_RETRY_MIN: Duration = Duration::from_millis(20);
/// Longest pause between kills. A process in uninterruptible sleep may take hours.
const KILL_RETRY_MAX: Duration = Duration::from_secs(120);

/// How long a container may take to end by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Grace(Duration);

impl Grace {
    /// Longest grace: a year. A later deadline than any pod's is no deadline, and additions to clocks stay in range.
    const MAX: Duration = Duration::from_secs(365 * 24 * 3600);

    /// Takes the CRI's seconds; zero and below kill at once.
    #[must_use]
    pub fn from_seconds(seconds: i64) -> Self {
        Self(Duration::from_secs(u64::try_from(seconds).unwrap_or(0)).min(Self::MAX))
    }

    /// Takes a span of time.
    pub(crate) fn lasting(span: Duration) -> Self {
        Self(span.min(Self::MAX))
    }

    fn deadline(self) -> Instant {
        Instant::now() + self.0
    }
}

/// Why a container was not stopped.
#[derive(Debug, Error)]
pub enum StopContainerError {
    /// The id is empty or ambiguous. A container that does not exist is stopped.
    #[error(transparent)]
    Lookup(LookupError),
    /// It could not be signalled.
    #[error("signal container {container}")]
    Signal {
        /// The container.
        container: ContainerId,
        #[source]
        /// The system's answer.
        source: std::io::Error,
    },
}

impl Node {
    /// Stops a container and returns when it has ended. One that does not exist or has ended is stopped already.
    pub async fn stop_container(self: &Arc<Self>, id: &str, grace: Grace) -> Result<(), StopContainerError> {
        match self.objects.find_container(id) {
            Ok(container) => self.stop(&container, grace).await,
            Err(error) if error.is_absent() => Ok(()),
            Err(error) => Err(StopContainerError::Lookup(error)),
        }
    }

    pub(crate) async fn stop(
        self: &Arc<Self>,
        container: &Arc<Container>,
        grace: Grace,
    ) -> Result<(), StopContainerError> {
        let mut states = container.state.subscribe();
        let Some(init) = container.state().init() else { return Ok(()) };
        let deadline = grace.deadline();
        let joined = {
            let mut stopping = container.stopping.lock().unwrap_or_else(PoisonError::into_inner);
            match &*stopping {
                Some(sender) => {
                    sender.send_if_modified(|current| {
                        let is_sooner = deadline < *current;
                        *current = deadline.min(*current);
                        is_sooner
                    });
                    None
                }
                None => {
                    let (sender, receiver) = watch::channel(deadline);
                    *stopping = Some(sender);
                    Some(receiver)
                }
            }
        };
        if let Some(deadlines) = joined {
            self.resume_to_stop(container).await;
            let signalled = first_signal(container, init).await;
            if let (Err(source), true) = (&signalled, container.is_behind_shim()) {
                // A shim that does not answer this is killed for not answering the last signal: the grace goes on.
                tracing::warn!(container.id = %container.id, error = %chain(source), "a shim does not pass a signal on");
            } else if let Err(source) = signalled {
                *container.stopping.lock().unwrap_or_else(PoisonError::into_inner) = None;
                return Err(StopContainerError::Signal { container: container.id.clone(), source });
            }
            let (node, container) = (Arc::clone(self), Arc::clone(container));
            tokio::spawn(async move {
                node.kill_at_deadline(&container, init, deadlines).await;
                *container.stopping.lock().unwrap_or_else(PoisonError::into_inner) = None;
            });
        }
        // The sender lives in the container, which this future holds.
        let _ = states.wait_for(|state| matches!(state, ContainerState::Exited { .. })).await;
        Ok(())
    }

    /// Kills at the deadline, which may still move closer, and again until the process is gone.
    async fn kill_at_deadline(
        self: &Arc<Self>,
        container: &Container,
        init: Process,
        mut deadlines: watch::Receiver<Instant>,
    ) {
        let mut states = container.state.subscribe();
        let has_ended = |state: &ContainerState| matches!(state, ContainerState::Exited { .. });
        loop {
            let deadline = *deadlines.borrow_and_update();
            tokio::select! {
                _ = states.wait_for(has_ended) => return,
                () = tokio::time::sleep_until(deadline.into()) => break,
                changed = deadlines.changed() => if changed.is_err() { return },
            }
        }
        let mut pause = KILL_RETRY_MIN;
        while process::is_alive(init) {
            self.resume_to_stop(container).await;
            if let Err(error) = signal_init(container, init, Signal::KILL).await {
                tracing::error!(container.id = %container.id, %error, "killing a container failed");
            }
            if tokio::time::timeout(pause, states.wait_for(has_ended)).await.is_ok() {
                return;
            }
            if process::is_uninterruptible(init) {
                tracing::warn!(container.id = %container.id, pid = init.pid, "a container's process is in uninterruptible sleep and cannot be killed yet");
            }
            pause = (pause * 2).min(KILL_RETRY_MAX);
        }
    }
}

/// A program gets the stop signal; a container whose program never ran has nothing to say goodbye to.
async fn first_signal(container: &Container, init: Process) -> std::io::Result<()> {
    let signal = match container.state() {
        ContainerState::Created { .. } => Signal::KILL,
        ContainerState::Running { .. } | ContainerState::Exited { .. } => container.stop_signal,
    };
    signal_init(container, init, signal).await
}

async fn signal_init(container: &Container, init: Process, signal: Signal) -> std::io::Result<()> {
    if signal == Signal::KILL {
        container.is_killed.store(true, Ordering::Release);
    }
    container.handler.runtime.signal(&container.id, init, signal.number()).await
}
