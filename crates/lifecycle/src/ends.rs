//! The end of a container: noticed, recorded once, told, and what it held given back.
//!
//! Two roads lead here: the monitor's exit file appears, or the kernel says that the first process has ended and the
//! monitor, for whatever reason, leaves no file. Order, and what a restart does in each gap:
//!
//! ```text
//! state.json says stopped     before: the restart finds the exit record, or no live process, and comes here again
//! exit file deleted           before: the restart sees the file again; the record already says stopped
//! runtime delete, unmount     before: the restart does it when the container is removed
//! ```

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use config::MonitorCgroup;
use domain::container::{ContainerState, Exit};
use domain::id::ContainerId;
use runtime_client::{Force, process};
use state_store::exit::{ExitRecord, load_exit};
use thiserror::Error;
use tokio::sync::mpsc;

use crate::container::Container;
use crate::events::EventKind;
use crate::node::Node;
use crate::undo::chain;
use crate::{blocking, clock};

/// How long a monitor may take from the end of the first process to its exit record: it drains pipes that children of
/// the container may hold open. Afterwards the end is recorded without it.
const RECORD_LIMIT: Duration = Duration::from_secs(5);
/// Exit code when no monitor recorded one. Source: CRI-O.
pub(crate) const UNSEEN_EXIT_CODE: i32 = 255;
/// Exit code of a process killed by SIGKILL, the only way the kernel's out-of-memory killer ends one.
const KILLED_EXIT_CODE: i32 = 137;

impl Node {
    /// Handles exit files as they appear, for as long as the daemon lives.
    pub(crate) async fn follow_exits(self: Arc<Self>, mut exits: mpsc::Receiver<ContainerId>) {
        while let Some(id) = exits.recv().await {
            let Some(container) = self.objects.container(&id) else {
                // Created right now and ended already, or somebody else's: whoever registers it looks for the record.
                continue;
            };
            let node = Arc::clone(&self);
            tokio::spawn(async move { node.record_end(&container).await });
        }
    }

    /// Watches a container's first process, so that its end is noticed even when its monitor is gone.
    pub(crate) fn follow_init(self: &Arc<Self>, container: &Arc<Container>) {
        let Some(init) = container.state().init() else { return };
        let (node, container) = (Arc::clone(self), Arc::clone(container));
        tokio::spawn(async move {
            match process::open(init) {
                Ok(Some(pidfd)) => {
                    if let Err(error) = process::ended(pidfd).await {
                        tracing::error!(container.id = %container.id, %error, "watching a container's first process failed");
                        return;
                    }
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(container.id = %container.id, %error, "opening a container's first process failed");
                    return;
                }
            }
            let mut states = container.state.subscribe();
            let recorded = states.wait_for(|state| matches!(state, ContainerState::Exited { .. }));
            if tokio::time::timeout(RECORD_LIMIT, recorded).await.is_err() {
                node.record_end(&container).await;
            }
        });
    }

    /// Records that a container has ended, if it has and nobody did yet.
    pub(crate) async fn record_end(self: &Arc<Self>, container: &Arc<Container>) {
        let changing = container.changing.lock().await;
        let state = container.state();
        let Some(init) = state.init() else { return self.forget_exit_file(&container.id) };
        let record = {
            let (directory, bundle) = (container.directory.clone(), container.bundle.clone());
            blocking::run("read exit record", move || load_exit(&directory, &bundle)).await
        };
        let exit = match record {
            Ok(Some(record)) => exit_of(record, container.is_killed.load(Ordering::Acquire)),
            Ok(None) if process::is_alive(init) => return,
            Ok(None) => {
                tracing::warn!(container.id = %container.id, "a container ended and its monitor left no record");
                Exit {
                    code: UNSEEN_EXIT_CODE,
                    finished: clock::now(),
                    is_oom_killed: false,
                    is_seccomp_killed: false,
                    error: String::new(),
                }
            }
            Err(error) => {
                tracing::error!(container.id = %container.id, error = %chain(&error), "a container's exit record is unreadable");
                Exit {
                    code: UNSEEN_EXIT_CODE,
                    finished: clock::now(),
                    is_oom_killed: false,
                    is_seccomp_killed: false,
                    error: String::new(),
                }
            }
        };
        self.enter_exited(container, exit).await;
        drop(changing);
        self.release_or_tell(container).await;
    }

    /// Moves a container to `Exited`, on disk first. The caller holds `changing`.
    pub(crate) async fn enter_exited(&self, container: &Arc<Container>, mut exit: Exit) {
        let started = container.state().started();
        // The end is the time of the monitor's file, and the kernel stamps files by a clock that lags some milliseconds.
        exit.finished = started.map_or(exit.finished, |started| exit.finished.max(started));
        // Whatever code it ended with: the stop signal comes first, and a program may make the best of it.
        if let Some(verdict) = container.seccomp_verdict.lock().unwrap_or_else(PoisonError::into_inner).take() {
            exit.is_seccomp_killed = true;
            exit.error = verdict;
        }
        let next = ContainerState::Exited { started, exit };
        let stored = container.stored(next.clone());
        let directory = container.directory.clone();
        let saved = blocking::run("record exit", move || state_store::state::save_state(&directory, &stored)).await;
        if let Err(error) = saved {
            // The end is true whether or not it could be written; the exit record stays for the next start.
            tracing::error!(container.id = %container.id, error = %chain(&error), "recording a container's end failed");
        } else {
            self.forget_exit_file(&container.id);
        }
        container.state.send_replace(next);
        self.tell_container(container, EventKind::Stopped);
    }

    fn forget_exit_file(&self, id: &ContainerId) {
        let path = self.config.runtime.container_exits_dir.join(id.as_str());
        if let Err(error) = std::fs::remove_file(&path)
            && error.kind() != std::io::ErrorKind::NotFound
        {
            tracing::warn!(path = %path.display(), %error, "an exit file cannot be deleted");
        }
    }

    /// Gives back what an ended container held, and tells the operator if it cannot: its removal tries again.
    pub(crate) async fn release_or_tell(self: &Arc<Self>, container: &Arc<Container>) {
        if let Err(error) = self.release(container).await {
            tracing::warn!(container.id = %container.id, error = %chain(&error), "an ended container still holds something");
        }
    }

    /// Gives back what an ended container held: leftover processes, runtime state and cgroup, the mount of its root.
    ///
    /// Done once; whoever comes second waits and finds it done. A step that fails does not keep the others.
    pub(crate) async fn release(self: &Arc<Self>, container: &Arc<Container>) -> Result<(), ReleaseError> {
        let mut is_released = container.is_released.lock().await;
        if *is_released {
            return Ok(());
        }
        let (id, parent) = (&container.id, &container.cgroup_parent);
        let failed = |step: &'static str| move |source| ReleaseError { step, container: id.clone(), source };
        let mut done = Ok(());
        // While its cgroup is there: one that is gone may keep its CPUs to itself.
        done = done.and(self.untune(id).await.map_err(Into::into).map_err(failed("put back CPUs")));
        self.notifiers.forget(id);
        if !has_own_processes(container) {
            let emptied = self.cgroups.empty_container(parent, id).await;
            done = done.and(emptied.map_err(failed("end leftover processes")));
        }
        let deleted = container.handler.runtime.delete(id, Force::Yes).await;
        done = done.and(deleted.map(drop).map_err(Into::into).map_err(failed("delete at the runtime")));
        if container.handler.monitor_cgroup == MonitorCgroup::Sandbox {
            let removed = self.cgroups.remove_monitor(parent, id).await;
            done = done.and(removed.map_err(failed("remove the monitor's cgroup")));
        }
        let (store, store_id) = (Arc::clone(&self.store), id.clone());
        let unmounted = blocking::run("unmount root", move || store.unmount(&store_id)).await;
        done = done.and(unmounted.map_err(Into::into).map_err(failed("unmount the root")));
        *is_released = done.is_ok();
        done
    }
}

/// Why an ended container still holds something of the node.
#[derive(Debug, Error)]
#[error("{step} of container {container}")]
pub struct ReleaseError {
    step: &'static str,
    container: ContainerId,
    #[source]
    source: Box<dyn std::error::Error + Send + Sync>,
}

/// With a process namespace of its own, the kernel ends everything in it with its first process.
fn has_own_processes(container: &Container) -> bool {
    container.is_infra()
        || matches!(container.config.security.namespaces.pid, domain::security::NamespaceMode::Container)
}

fn exit_of(record: ExitRecord, is_killed_by_stop: bool) -> Exit {
    Exit {
        code: record.code,
        finished: record.finished,
        // The marker says that something in the cgroup was killed; only a killed first process makes it the reason, and
        // only if nobody asked for its end.
        is_oom_killed: record.has_oom_marker && record.code == KILLED_EXIT_CODE && !is_killed_by_stop,
        is_seccomp_killed: false,
        error: String::new(),
    }
}

/// Whether a monitor has left its record already.
pub(crate) fn has_exit_record(directory: &Path) -> bool {
    directory.join("exit").exists()
}

#[cfg(test)]
mod tests {
    use domain::time::Timestamp;

    use super::*;

    #[test]
    fn want_of_memory_is_the_reason_only_if_it_ended_the_first_process() {
        for (code, has_oom_marker, is_killed_by_stop, expected) in [
            (137, true, false, true),
            (137, false, false, false),
            // A child was killed, and the first process went on to an end of its own.
            (0, true, false, false),
            (1, true, false, false),
            (143, true, false, false),
            // And one that had to be stopped by force.
            (137, true, true, false),
        ] {
            let record = ExitRecord { code, finished: Timestamp::from_nanos(1), has_oom_marker };
            assert_eq!(exit_of(record, is_killed_by_stop).is_oom_killed, expected, "{code} {has_oom_marker}");
        }
    }
}
