//! cgroups of sandboxes and monitors. Those of containers are the runtime's.
//!
//! With cgroupfs a sandbox without infra process gets a cgroup of its own, as with CRI-O, so that the pod's parent never
//! looks empty; with systemd the slice is the kubelet's and stays by itself.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cgroup::systemd::{ScopeProperty, start_scope};
use cgroup::{DetectError, KillError, Known, Layout};
use config::{CgroupManager, MonitorCgroup};
use domain::id::{ContainerId, SandboxId};
use domain::spec::{CgroupManagerKind, CgroupParent, CgroupPlacement, CgroupVersion};

use crate::blocking;
use crate::undo::{Undone, chain};

/// Slice of monitors where the configuration names none. Source: CRI-O.
const DEFAULT_SLICE: &str = "system.slice";
/// cgroups of processes that pull; the process id follows. Source: CRI-O.
const PULL_PREFIX: &str = "crio-pull-image-";
/// How long killed processes may take to go; those in uninterruptible sleep take longer than anybody waits.
const KILL_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at killed processes: they are gone within a millisecond or two on an idle machine.
const KILL_PAUSE_MIN: Duration = Duration::from_millis(2);
const KILL_PAUSE_MAX: Duration = Duration::from_millis(100);

/// The node's cgroups.
pub(crate) struct Cgroups {
    kind: CgroupManagerKind,
    layout: Arc<Layout>,
}

impl Cgroups {
    pub(crate) fn detect(manager: CgroupManager) -> Result<Self, DetectError> {
        let kind = match manager {
            CgroupManager::Systemd => CgroupManagerKind::Systemd,
            CgroupManager::Cgroupfs => CgroupManagerKind::Cgroupfs,
        };
        Ok(Self { kind, layout: Arc::new(Layout::detect()?) })
    }

    pub(crate) fn kind(&self) -> CgroupManagerKind {
        self.kind
    }

    /// What a container uses; nothing where the kernel does not tell.
    pub(crate) async fn memory_in_use(&self, parent: &str, id: &ContainerId) -> Option<u64> {
        let path = CgroupParent::parse(self.kind, parent).ok()?.container_directory(id.as_str());
        let layout = Arc::clone(&self.layout);
        let stats = blocking::run("read memory use", move || {
            layout.container_stats(&path, Known { is_without_process_count: true, ..Known::default() })
        })
        .await
        .ok()?;
        Some(stats.memory?.usage_bytes)
    }

    /// The directories of the cgroups a process is in, one a hierarchy that carries controllers.
    pub(crate) fn directories_of(&self, pid: i32) -> Vec<PathBuf> {
        let text = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
        let directories = text.lines().filter_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let is_used = controllers.is_empty() == (self.version() == CgroupVersion::V2);
            let controller = controllers.split(',').next().filter(|_| is_used && !path.contains("/.."))?;
            self.layout.directory(controller, path)
        });
        directories.collect()
    }

    pub(crate) fn layout(&self) -> &Layout {
        &self.layout
    }

    pub(crate) fn version(&self) -> CgroupVersion {
        self.layout.version()
    }

    pub(crate) fn placement(&self, parent: &str) -> CgroupPlacement {
        CgroupPlacement { manager: self.kind, parent: parent.to_owned() }
    }

    /// Makes the cgroup of a sandbox.
    pub(crate) async fn create_sandbox(&self, parent: &str, id: &SandboxId) -> Undone {
        if self.kind == CgroupManagerKind::Systemd {
            return Ok(());
        }
        let path = CgroupParent::parse(self.kind, parent)?.sandbox_directory(id.as_str());
        let layout = Arc::clone(&self.layout);
        blocking::run("create cgroup", move || layout.create(&path)).await?;
        Ok(())
    }

    /// Removes the cgroup of a sandbox and its infra container's monitor's. Absent is success.
    pub(crate) async fn remove_sandbox(&self, parent: &str, id: &SandboxId) -> Undone {
        if self.kind == CgroupManagerKind::Systemd {
            return Ok(());
        }
        let parent = CgroupParent::parse(self.kind, parent)?;
        let path = parent.sandbox_directory(id.as_str());
        let monitor = monitor_path(&parent, id.as_str());
        let layout = Arc::clone(&self.layout);
        blocking::run("remove cgroup", move || {
            remove_dead_pulls(&layout, &parent.directory());
            layout.remove(&path).and_then(|()| layout.remove(&monitor))
        })
        .await?;
        Ok(())
    }

    /// Ends every process left in a container's cgroup, and removes its monitor's once that has ended too.
    pub(crate) async fn empty_container(&self, parent: &str, id: &ContainerId) -> Undone {
        let parent = CgroupParent::parse(self.kind, parent)?;
        let container = parent.container_directory(id.as_str());
        let deadline = Instant::now() + KILL_PATIENCE;
        let mut pause = KILL_PAUSE_MIN;
        // Round by round, so that no thread is held by processes that cannot end: fifty such containers are a hung NFS
        // server's doing, and everybody else's calls go on.
        loop {
            let (layout, path) = (Arc::clone(&self.layout), container.clone());
            let count = blocking::run("end leftover processes", move || layout.kill_once(&path)).await?;
            if count == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                return Err(Box::new(KillError::StillThere { path: container, count, waited: KILL_PATIENCE }));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(KILL_PAUSE_MAX);
        }
    }

    /// Whether a container is paused, by the kernel's account: whoever did it, and whichever daemon it was.
    pub(crate) async fn is_frozen(&self, parent: &str, id: &ContainerId) -> bool {
        let Ok(parent) = CgroupParent::parse(self.kind, parent) else { return false };
        let (layout, path) = (Arc::clone(&self.layout), parent.container_directory(id.as_str()));
        blocking::run("look for frozen processes", move || layout.is_frozen(&path)).await
    }

    /// Removes the cgroup a container's monitor had to itself. Absent is success.
    pub(crate) async fn remove_monitor(&self, parent: &str, id: &ContainerId) -> Undone {
        if self.kind == CgroupManagerKind::Systemd {
            return Ok(());
        }
        let path = monitor_path(&CgroupParent::parse(self.kind, parent)?, id.as_str());
        let layout = Arc::clone(&self.layout);
        blocking::run("remove monitor's cgroup", move || layout.remove(&path)).await?;
        Ok(())
    }

    /// Moves a monitor out of the daemon's cgroup. A monitor that stays where it is works all the same, so that a
    /// failure is only told. Source: CRI-O.
    pub(crate) fn place_monitor(&self, cgroup: &MonitorCgroup, parent: &str, id: &str, pid: i32) {
        if let Err(error) = self.try_place_monitor(cgroup, parent, id, pid) {
            tracing::warn!(container.id = id, monitor.pid = pid, error = %chain(&*error), "moving a monitor to its cgroup failed");
        }
    }

    fn try_place_monitor(&self, cgroup: &MonitorCgroup, parent: &str, id: &str, pid: i32) -> Undone {
        match self.kind {
            CgroupManagerKind::Cgroupfs => match cgroup {
                MonitorCgroup::Sandbox => {
                    let path = monitor_path(&CgroupParent::parse(self.kind, parent)?, id);
                    self.layout.create(&path)?;
                    Ok(self.layout.move_process(&path, pid)?)
                }
                // Without systemd there are no slices.
                MonitorCgroup::Daemon | MonitorCgroup::Slice(_) => Ok(()),
            },
            CgroupManagerKind::Systemd => {
                let of_pod = CgroupParent::parse(self.kind, parent)?;
                let slice = match (cgroup, &of_pod) {
                    (MonitorCgroup::Sandbox, CgroupParent::Systemd(slice)) => slice.as_str(),
                    (MonitorCgroup::Slice(slice), _) => slice.as_str(),
                    _ => DEFAULT_SLICE,
                };
                let unit = format!("{}.scope", of_pod.monitor_name(id).trim_end_matches(".scope"));
                let properties = ScopeProperty::of_monitors();
                // Some milliseconds of D-Bus, which must not hold up whatever else this worker carries.
                Ok(off_worker(|| start_scope(&unit, slice, pid, &properties))?)
            }
        }
    }
}

impl Cgroups {
    /// Moves a process that pulls an image to a cgroup of its own below `parent`. Source: CRI-O, for systemd.
    pub(crate) fn place_pull(
        &self,
        parent: &CgroupParent,
        pid: i32,
    ) -> Result<PullPlace, Box<dyn std::error::Error + Send + Sync>> {
        let name = format!("{PULL_PREFIX}{pid}");
        match parent {
            CgroupParent::Cgroupfs(parent) => {
                let path = format!("{parent}/{name}");
                self.layout.create(&path)?;
                // From here on it is taken away whatever happens.
                let place = PullPlace { layout: Arc::clone(&self.layout), path: Some(path.clone()) };
                self.layout.move_process(&path, pid)?;
                Ok(place)
            }
            CgroupParent::Systemd(slice) => {
                off_worker(|| start_scope(&format!("{name}.scope"), slice, pid, &[]))?;
                // The scope goes with its last process.
                Ok(PullPlace { layout: Arc::clone(&self.layout), path: None })
            }
        }
    }
}

/// The cgroup of a process that pulls; removed, with whoever is left in it, by [`PullPlace::remove`] or when dropped.
#[derive(Debug)]
pub(crate) struct PullPlace {
    layout: Arc<Layout>,
    path: Option<String>,
}

impl PullPlace {
    /// Ends what is left in it and removes it.
    pub(crate) async fn remove(mut self) {
        if let Some(path) = self.path.take() {
            remove_pull(Arc::clone(&self.layout), path).await;
        }
    }
}

impl Drop for PullPlace {
    fn drop(&mut self) {
        if let (Some(path), Ok(runtime)) = (self.path.take(), tokio::runtime::Handle::try_current()) {
            runtime.spawn(remove_pull(Arc::clone(&self.layout), path));
        }
    }
}

/// Removes what a daemon that was killed could not: cgroups of pulls whose process is gone.
fn remove_dead_pulls(layout: &Layout, parent: &str) {
    let of_controllers = layout.controllers().filter_map(|controller| layout.directory(controller, parent));
    let unified = layout.unified().map(|root| root.join(parent.trim_start_matches('/')));
    let entries = of_controllers.chain(unified).filter_map(|directory| std::fs::read_dir(directory).ok()).flatten();
    let names: BTreeSet<String> = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok()).collect();
    for name in &names {
        let pid = name.strip_prefix(PULL_PREFIX).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !is_pulling(pid))
            && let Err(error) = layout.remove(&format!("{parent}/{name}"))
        {
            tracing::debug!(cgroup = name, error = %chain(&error), "the cgroup of a pull stays");
        }
    }
}

/// Whether a process is one that pulls; one that has ended and waits to be reaped is not.
fn is_pulling(pid: u32) -> bool {
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    command.split(|byte| *byte == 0).next() == Some(crate::pull_process::PULL_PROGRAM.as_bytes())
}

async fn remove_pull(layout: Arc<Layout>, path: String) {
    let deadline = Instant::now() + KILL_PATIENCE;
    let mut pause = KILL_PAUSE_MIN;
    loop {
        let (layout, wanted) = (Arc::clone(&layout), path.clone());
        let removed = blocking::run("remove cgroup of a pull", move || {
            layout.kill_once(&wanted).map_err(|error| chain(&error)).and_then(|count| match count {
                0 => layout.remove(&wanted).map_err(|error| chain(&error)),
                count => Err(format!("{count} processes are left in it")),
            })
        })
        .await;
        match removed {
            Ok(()) => return,
            Err(error) if Instant::now() >= deadline => {
                return tracing::warn!(cgroup = path, error, "the cgroup of a pull stays");
            }
            Err(_) => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(KILL_PAUSE_MAX);
    }
}

fn monitor_path(parent: &CgroupParent, id: &str) -> String {
    format!("{}/{}", parent.directory(), parent.monitor_name(id))
}

/// Lets another thread take over the worker's tasks while this one blocks.
fn off_worker<T>(work: impl FnOnce() -> T) -> T {
    let is_shared = tokio::runtime::Handle::try_current()
        .is_ok_and(|handle| handle.runtime_flavor() == tokio::runtime::RuntimeFlavor::MultiThread);
    if is_shared { tokio::task::block_in_place(work) } else { work() }
}
