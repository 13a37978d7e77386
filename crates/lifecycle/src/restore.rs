//! Starting up is recovering: what an earlier daemon, this one's or CRI-O's, left is kept, finished or undone.
//!
//! The store's records say what there is; `intent.json`, `config.json` and `state.json` beside them how far it came;
//! the kernel what still lives. [`plan_sandbox`] and [`plan_container`] decide on that evidence alone.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use domain::container::{ContainerConfig, ContainerState, ImageSpec, Signal};
use domain::id::{ContainerId, ImageId, SandboxId};
use domain::sandbox::{SandboxConfig, SandboxState};
use domain::security::NamespaceMode;
use domain::spec::annotations::{
    CGROUP_PARENT, ContainerFacts, PLATFORM_RUNTIME_PATH, SandboxFacts, parse_container_annotations,
    parse_sandbox_annotations,
};
use image_store::RecordsError;
use runtime_client::create::end_stray_monitors;
use runtime_client::{Force, process};
use state_store::intent::{Intent, SandboxIntent, load_intent};
use state_store::metadata::RecordMetadata;
use state_store::spec::{StoredSpec, load_spec};
use state_store::state::{StoredState, load_state};

use crate::container::{Container, ContainerImage, ContainerParts, ContainerUser};
use crate::handler::Handler;
use crate::infra::infra_config;
use crate::limits::limits_of;
use crate::node::Node;
use crate::prepare_container::USER_SPECIFIED_IMAGE;
use crate::sandbox::{Sandbox, SandboxFiles, SandboxNamespaces, SandboxParts, infra_id, pin_name};
use crate::sandbox_files::find_containerenv;
use crate::sandbox_namespaces::unpin;
use crate::start_container::{is_started, record_running};
use crate::stop_sandbox::is_marked_stopped;
use crate::undo::{Undone, chain};
use crate::userns::stored_ids;
use crate::{blocking, clock};

/// What is done with a sandbox's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SandboxPlan {
    /// It was whole: it is there again.
    Keep,
    /// Its removal had begun: it is finished.
    FinishRemoval,
    /// Its making had not ended, or its records are damaged: nothing of it stays.
    Undo,
}

/// What is done with a container's record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ContainerPlan {
    /// It was whole: it is there again, alive or not.
    Keep,
    /// Its creation had not ended, its sandbox is gone, or its records are damaged.
    Undo,
}

/// A container whose start the last daemon did not live to write down is running.
async fn catch_up_with_start(container: &Container) {
    let ContainerState::Created { init } = container.state() else { return };
    if !process::is_alive(init) || !is_started(container).await {
        return;
    }
    tracing::info!(container.id = %container.id, "a container was started when the last daemon died");
    let running = ContainerState::Running { init, started: clock::now() };
    if let Err(error) = record_running(container, running).await {
        tracing::error!(container.id = %container.id, error = %chain(&error), "recording the start of a container failed");
    }
}

fn plan_sandbox(intent: Option<Intent>, has_records: bool) -> SandboxPlan {
    match (intent, has_records) {
        (Some(Intent::Creating), _) | (_, false) => SandboxPlan::Undo,
        (Some(Intent::Removing), true) => SandboxPlan::FinishRemoval,
        (None, true) => SandboxPlan::Keep,
    }
}

fn plan_container(has_sandbox: bool, has_records: bool) -> ContainerPlan {
    if has_sandbox && has_records { ContainerPlan::Keep } else { ContainerPlan::Undo }
}

/// One record of the store that is ours, and what lies beside it.
struct Found {
    id: ContainerId,
    image: Option<ImageId>,
    metadata: RecordMetadata,
    /// SELinux labels, empty where it was off.
    process_label: String,
    mount_label: String,
    directory: PathBuf,
    run_directory: PathBuf,
    intent: Option<SandboxIntent>,
    spec: Option<StoredSpec>,
    state: Option<StoredState>,
}

impl Node {
    /// Restores everything the store has records of. Runs before anybody is served.
    pub(crate) async fn restore(self: &Arc<Self>) -> Result<(), RecordsError> {
        let store = Arc::clone(&self.store);
        let found: Vec<Found> = blocking::run("read records", move || {
            let records = store.containers()?;
            let ours = records.into_iter().filter_map(|record| {
                let metadata = RecordMetadata::parse(&record.metadata)?;
                let (directory, run_directory) = (store.container_dir(&record.id), store.container_run_dir(&record.id));
                Some(Found {
                    intent: readable(load_intent(&directory)),
                    spec: readable(load_spec(&directory)),
                    // Of a sandbox without infra process it lies in the run directory.
                    state: readable(load_state(&directory)).or_else(|| readable(load_state(&run_directory))),
                    id: record.id,
                    image: record.image,
                    metadata,
                    process_label: record.process_label,
                    mount_label: record.mount_label,
                    directory,
                    run_directory,
                })
            });
            Ok::<_, RecordsError>(ours.collect())
        })
        .await?;
        let images = found.iter().filter_map(|found| found.image.clone()).collect();
        *self.restored_images.lock().unwrap_or_else(PoisonError::into_inner) = images;
        let (sandboxes, containers): (Vec<Found>, Vec<Found>) =
            found.into_iter().partition(|found| found.metadata.is_sandbox);
        let mut unfinished = Vec::new();
        for found in sandboxes {
            self.restore_sandbox(found, &mut unfinished);
        }
        for found in containers {
            self.restore_container(found, &unfinished).await;
        }
        for found in unfinished {
            self.undo_sandbox(found).await;
        }
        self.restore_tuning().await;
        self.sweep_exit_files();
        let (sandboxes, containers) = (self.sandboxes().len(), self.containers().len());
        tracing::info!(sandboxes, containers, "restored");
        Ok(())
    }

    fn restore_sandbox(self: &Arc<Self>, found: Found, unfinished: &mut Vec<Found>) {
        let facts = found.spec.as_ref().map(|spec| parse_sandbox_annotations(&spec.annotations));
        let facts = match facts {
            Some(Ok(facts)) => Some(facts),
            Some(Err(error)) => {
                tracing::warn!(sandbox.id = %found.id, error = %chain(&error), "a sandbox's record is damaged");
                None
            }
            None => None,
        };
        let plan =
            plan_sandbox(found.intent.as_ref().map(|intent| intent.intent), facts.is_some() && found.state.is_some());
        let (SandboxPlan::Keep | SandboxPlan::FinishRemoval, Some(facts)) = (plan, facts) else {
            unfinished.push(found);
            return;
        };
        let Some(sandbox) = self.rebuild_sandbox(&found, facts) else {
            unfinished.push(found);
            return;
        };
        if plan == SandboxPlan::FinishRemoval {
            sandbox.set_not_ready();
            let (node, id) = (Arc::clone(self), sandbox.id.clone());
            tokio::spawn(async move {
                if let Err(error) = node.remove_sandbox(id.as_str(), None).await {
                    tracing::error!(sandbox.id = %id, error = %chain(&*error), "finishing the removal of a sandbox failed");
                }
            });
        }
    }

    fn rebuild_sandbox(self: &Arc<Self>, found: &Found, facts: SandboxFacts) -> Option<Arc<Sandbox>> {
        let spec = found.spec.as_ref()?;
        let handler = self.handlers.get(&facts.runtime_handler).unwrap_or_else(|| {
            tracing::warn!(sandbox.id = %facts.id, handler = facts.runtime_handler, "the runtime handler of a sandbox is not configured any more, using the default");
            self.handlers.default()
        });
        let path = |kind| spec.namespace_path(kind).map(std::path::Path::to_owned);
        let namespaces =
            SandboxNamespaces { network: path("network"), ipc: path("ipc"), uts: path("uts"), user: path("user") };
        let is_marked = [&found.directory, &found.run_directory].into_iter().any(|path| is_marked_stopped(path));
        let is_stopped = is_marked || !has_pins(&namespaces);
        let infra = (!facts.is_spoofed).then(|| self.rebuild_infra(found, &facts, handler)).flatten();
        let state = if is_stopped || (infra.is_none() && !facts.is_spoofed) {
            SandboxState::NotReady
        } else {
            SandboxState::Ready
        };
        let containerenv = find_containerenv(&found.directory, &found.run_directory)
            .inspect_err(
                |error| tracing::error!(sandbox.id = %facts.id, error = %chain(error), "a sandbox cannot be restored"),
            )
            .ok();
        let config = facts.config();
        let parts = SandboxParts {
            id: facts.id.clone(),
            runtime_handler: facts.runtime_handler.clone(),
            created: facts.created,
            ips: ips_of(&facts, || self.network.cached_result(&facts.id).map(|result| result.ips)),
            handler: Arc::clone(handler),
            hostname: facts.hostname.clone(),
            log_directory: config.log_directory.clone().into(),
            id_maps: namespaces.user.as_ref().and_then(|_| stored_ids(spec)),
            namespaces,
            files: SandboxFiles {
                resolv_conf: facts.resolv_path.clone().into(),
                hostname: facts.hostname_path.clone().into(),
                containerenv: containerenv?,
                shm: facts.shm_path.clone().into(),
            },
            labels: self.restored_labels(&found.process_label, &found.mount_label),
            config,
            infra,
            directory: found.directory.clone(),
            run_directory: found.run_directory.clone(),
        };
        let sandbox = Arc::new(Sandbox::new(parts, state));
        for name in [&facts.name, &facts.infra_name] {
            if let Err(holder) = self.objects.reserve(name, facts.id.as_str()) {
                tracing::warn!(sandbox.id = %facts.id, name, holder, "two records hold one name");
            }
        }
        if let Some(infra) = &sandbox.infra {
            self.objects.insert_container(Arc::clone(infra));
            self.follow(infra);
        }
        self.objects.insert_sandbox(Arc::clone(&sandbox));
        Some(sandbox)
    }

    fn rebuild_infra(&self, found: &Found, facts: &SandboxFacts, handler: &Arc<Handler>) -> Option<Arc<Container>> {
        let state = found.state.as_ref()?;
        let parts = ContainerParts {
            // No request shows those of an infra container.
            limits: domain::resources::Resources::default(),
            id: found.id.clone(),
            sandbox: facts.id.clone(),
            name: facts.infra_name.clone(),
            config: infra_config(&facts.image),
            image: image_of(&found.metadata, &facts.image, &[]),
            log: facts.log_path.clone().into(),
            user: None,
            created: facts.created,
            handler: Arc::clone(handler),
            cgroup_parent: facts.cgroup_parent.clone(),
            stop_signal: facts.stop_signal.as_deref().and_then(Signal::parse).unwrap_or(Signal::TERM),
            monitor: state.monitor,
            directory: found.directory.clone(),
            bundle: found.run_directory.clone(),
        };
        Some(Arc::new(Container::new(parts, state.life.clone()?)))
    }

    async fn restore_container(self: &Arc<Self>, found: Found, unfinished: &[Found]) {
        let facts = match found.spec.as_ref().map(|spec| parse_container_annotations(&spec.annotations)) {
            Some(Ok(facts)) => Some(facts),
            Some(Err(error)) => {
                tracing::warn!(container.id = %found.id, error = %chain(&error), "a container's record is damaged");
                None
            }
            None => None,
        };
        let sandbox = found.metadata.sandbox().ok().and_then(|id| self.objects.sandbox(&id));
        let life = found.state.as_ref().and_then(|state| state.life.clone());
        let plan = plan_container(sandbox.is_some(), facts.is_some() && life.is_some());
        let (ContainerPlan::Keep, Some(facts), Some(sandbox), Some(life)) = (plan, facts, sandbox.clone(), life) else {
            let (handler, parent) = match &sandbox {
                Some(sandbox) => {
                    (sandbox.handler.with_runtime(platform_runtime(&found)), sandbox.config.cgroup_parent.clone())
                }
                None => (Arc::clone(self.handlers.default()), parent_of_unfinished(&found, unfinished)),
            };
            self.undo_container(&found.id, &handler, &parent).await;
            return;
        };
        let container = Arc::new(Container::new(container_parts(&found, facts, &sandbox), life));
        if let Err(holder) = self.objects.reserve(&container.name, container.id.as_str()) {
            tracing::warn!(container.id = %container.id, name = container.name, holder, "two records hold one name");
        }
        self.hold_restored(&sandbox, &found.process_label);
        catch_up_with_start(&container).await;
        self.objects.insert_container(Arc::clone(&container));
        self.follow(&container);
    }

    /// Watches a restored container, or records the end that happened meanwhile.
    fn follow(self: &Arc<Self>, container: &Arc<Container>) {
        if container.state().init().is_none_or(process::is_alive) {
            self.follow_init(container);
        } else {
            let (node, container) = (Arc::clone(self), Arc::clone(container));
            tokio::spawn(async move { node.record_end(&container).await });
        }
    }

    /// Removes what a creation that was cut off has made of a container.
    async fn undo_container(&self, id: &ContainerId, handler: &Handler, cgroup_parent: &str) {
        tracing::warn!(container.id = %id, "removing what is left of a container");
        end_stray_monitors(id).await;
        if let Err(error) = handler.runtime.delete(id, Force::Yes).await {
            tracing::error!(container.id = %id, error = %chain(&error), "the runtime does not let go of an unfinished container");
        }
        self.remove_attach_link(id.as_str());
        if let Err(error) = self.cgroups.remove_monitor(cgroup_parent, id).await {
            tracing::error!(container.id = %id, error = %chain(&*error), "removing the cgroup of an unfinished container's monitor failed");
        }
        let (store, removed) = (Arc::clone(&self.store), id.clone());
        if let Err(error) = blocking::run("remove container", move || store.remove_container(&removed)).await {
            tracing::error!(container.id = %id, error = %chain(&error), "removing an unfinished container failed");
        }
    }

    /// Removes what is left of a sandbox by its id alone: its pins, cgroup, rules and attachment carry it.
    async fn undo_sandbox(self: &Arc<Self>, found: Found) {
        let Ok(id) = SandboxId::parse(found.id.as_str()) else { return };
        tracing::warn!(sandbox.id = %id, "removing what is left of a sandbox");
        let mut config = SandboxConfig::default();
        config.metadata.name.clone_from(&found.metadata.metadata_name);
        config.metadata.namespace.clone_from(&found.metadata.namespace);
        config.metadata.uid.clone_from(&found.metadata.uid);
        let spec = found.spec.clone().unwrap_or_default();
        if let Some(intent) = &found.intent {
            config.cgroup_parent.clone_from(&intent.cgroup_parent);
        } else if let Some(parent) = spec.annotations.get(CGROUP_PARENT) {
            config.cgroup_parent.clone_from(parent);
        }
        let report = |step: &'static str, undone: Undone| {
            if let Err(error) = undone {
                tracing::error!(sandbox.id = %id, step, error = %chain(&*error), "removing what is left of a sandbox failed");
            }
        };
        if !found.metadata.image_id.is_empty() {
            self.undo_infra(&found.id).await;
        }
        if let Some(host_ports) = &self.host_ports
            && let Err(error) = host_ports.remove(&id, &[]).await
        {
            report("remove host ports", Err(error.into()));
        }
        // CRI-O names its pins as it likes; only those in the directory of pins are anybody's to remove.
        let recorded = |kind| {
            let path = spec.namespace_path(kind)?;
            path.starts_with(&self.config.runtime.namespaces_dir).then(|| path.to_owned())
        };
        report("detach from the network", self.detach(&id, &config, recorded("network")).await);
        let pin = |kind: sys::namespace::Kind| {
            Some(self.config.runtime.namespaces_dir.join(kind.directory()).join(pin_name(&id)))
        };
        let pins = SandboxNamespaces {
            network: pin(sys::namespace::Kind::Net),
            ipc: pin(sys::namespace::Kind::Ipc),
            uts: pin(sys::namespace::Kind::Uts),
            user: pin(sys::namespace::Kind::User),
        };
        report("unpin namespaces", unpin(pins).await);
        let pins = SandboxNamespaces {
            network: recorded("network"),
            ipc: recorded("ipc"),
            uts: recorded("uts"),
            user: recorded("user"),
        };
        report("unpin namespaces", unpin(pins).await);
        report("remove cgroup", self.cgroups.remove_sandbox(&config.cgroup_parent, &id).await);
        let (store, store_id, run_directory) = (Arc::clone(&self.store), infra_id(&id), found.run_directory);
        let removed = blocking::run("remove sandbox", move || {
            crate::sandbox_files::unmount(&run_directory)?;
            Ok(store.remove_container(&store_id)?)
        })
        .await;
        report("remove the store's record", removed);
    }

    async fn undo_infra(&self, id: &ContainerId) {
        end_stray_monitors(id).await;
        for (name, handler) in self.handlers.iter() {
            if let Err(error) = handler.runtime.delete(id, Force::Yes).await {
                tracing::error!(container.id = %id, handler = name, error = %chain(&error), "the runtime does not let go of an unfinished infra container");
            }
        }
    }

    /// Exit files of containers that no longer exist.
    fn sweep_exit_files(&self) {
        let Ok(entries) = std::fs::read_dir(&self.config.runtime.container_exits_dir) else { return };
        for entry in entries.flatten() {
            let id = entry.file_name().to_str().and_then(|name| ContainerId::parse(name).ok());
            if id.is_some_and(|id| self.objects.container(&id).is_none()) {
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }
}

/// The runtime of an unfinished container, where its image's platform chose it; empty for the handler's.
fn platform_runtime(found: &Found) -> &str {
    let annotations = found.spec.as_ref().map(|spec| &spec.annotations);
    annotations.and_then(|annotations| annotations.get(PLATFORM_RUNTIME_PATH)).map_or("", String::as_str)
}

/// Where the cgroups of a container are whose sandbox was not finished either.
fn parent_of_unfinished(container: &Found, unfinished: &[Found]) -> String {
    unfinished
        .iter()
        .find(|sandbox| sandbox.id.as_str() == container.metadata.pod_id)
        .and_then(|sandbox| sandbox.intent.as_ref())
        .map(|intent| intent.cgroup_parent.clone())
        .unwrap_or_default()
}

/// What a record says, or nothing with a warning.
fn readable<T>(loaded: Result<Option<T>, state_store::LoadError>) -> Option<T> {
    loaded.unwrap_or_else(|error| {
        tracing::warn!(error = %chain(&error), "a record cannot be read");
        None
    })
}

/// After a reboot the files may be there, but nothing is mounted on them.
fn has_pins(namespaces: &SandboxNamespaces) -> bool {
    namespaces.paths().all(|path| sys::namespace::is_pinned(path).unwrap_or(false))
}

fn ips_of(facts: &SandboxFacts, cached: impl FnOnce() -> Option<Vec<IpAddr>>) -> Vec<IpAddr> {
    let recorded: Vec<IpAddr> = facts.ips.iter().filter_map(|text| text.parse().ok()).collect();
    if recorded.is_empty() && !facts.is_host_network { cached().unwrap_or_default() } else { recorded }
}

fn image_of(metadata: &RecordMetadata, name: &str, digests: &[String]) -> ContainerImage {
    // A record without image belongs to a sandbox without infra process, which has no container.
    let id =
        domain::id::ImageId::parse(&metadata.image_id).unwrap_or_else(|_| domain::id::ImageId::from_bytes([0; 32]));
    let reference = digests.first().cloned().unwrap_or_else(|| metadata.image_id.clone());
    ContainerImage { id, name: name.to_owned(), reference }
}

fn container_parts(found: &Found, facts: ContainerFacts, sandbox: &Sandbox) -> ContainerParts {
    let spec = found.spec.clone().unwrap_or_default();
    let mut config = ContainerConfig {
        metadata: facts.metadata,
        image: ImageSpec {
            image: facts.image.clone(),
            user_specified_image: spec.annotations.get(USER_SPECIFIED_IMAGE).cloned().unwrap_or_default(),
            ..ImageSpec::default()
        },
        labels: facts.labels,
        annotations: facts.annotations,
        mounts: facts.volumes,
        tty: facts.has_tty,
        stdin: facts.has_stdin,
        stdin_once: facts.is_stdin_once,
        ..ContainerConfig::default()
    };
    config.security.privileged = found.metadata.is_privileged;
    config.security.namespaces.pid = pid_mode(&spec);
    let name = if facts.image_name.is_empty() { facts.image } else { facts.image_name };
    ContainerParts {
        id: found.id.clone(),
        sandbox: sandbox.id.clone(),
        limits: limits_of(&spec.linux.resources, spec.process.get("oomScoreAdj").and_then(serde_json::Value::as_i64)),
        name: facts.name,
        image: image_of(&found.metadata, &name, &facts.repo_digests),
        log: facts.log_path.into(),
        user: user_of(&spec.process),
        // CRI-O's status tells the time of the state, a moment after that of the request.
        created: found.state.as_ref().map_or(facts.created, |state| state.created),
        handler: sandbox.handler.with_runtime(&facts.platform_runtime_path),
        cgroup_parent: sandbox.config.cgroup_parent.clone(),
        stop_signal: facts.stop_signal.as_deref().and_then(Signal::parse).unwrap_or(Signal::TERM),
        monitor: found.state.as_ref().and_then(|state| state.monitor),
        directory: found.directory.clone(),
        bundle: found.run_directory.clone(),
        config,
    }
}

fn pid_mode(spec: &StoredSpec) -> NamespaceMode {
    match spec.linux.namespaces.iter().find(|namespace| namespace.kind == "pid") {
        None => NamespaceMode::Node,
        Some(namespace) if namespace.path.as_os_str().is_empty() => NamespaceMode::Container,
        Some(_) => NamespaceMode::Pod,
    }
}

fn user_of(process: &serde_json::Value) -> Option<ContainerUser> {
    let user = process.get("user")?;
    let number = |key: &str| user.get(key).and_then(serde_json::Value::as_u64).and_then(|id| u32::try_from(id).ok());
    let groups =
        user.get("additionalGids").and_then(serde_json::Value::as_array).map(Vec::as_slice).unwrap_or_default();
    Some(ContainerUser {
        uid: number("uid")?,
        gid: number("gid")?,
        supplemental_groups: groups.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_half_made_sandbox_is_undone_and_a_half_removed_one_is_finished() {
        for (intent, has_records, expected) in [
            (None, true, SandboxPlan::Keep),
            (None, false, SandboxPlan::Undo),
            (Some(Intent::Creating), false, SandboxPlan::Undo),
            (Some(Intent::Creating), true, SandboxPlan::Undo),
            (Some(Intent::Removing), true, SandboxPlan::FinishRemoval),
            (Some(Intent::Removing), false, SandboxPlan::Undo),
        ] {
            assert_eq!(plan_sandbox(intent, has_records), expected, "{intent:?} {has_records}");
        }
    }

    #[test]
    fn a_container_needs_its_sandbox_and_its_records() {
        for (has_sandbox, has_records, expected) in [
            (true, true, ContainerPlan::Keep),
            (true, false, ContainerPlan::Undo),
            (false, true, ContainerPlan::Undo),
            (false, false, ContainerPlan::Undo),
        ] {
            assert_eq!(plan_container(has_sandbox, has_records), expected);
        }
    }
}
