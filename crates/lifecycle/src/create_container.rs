//! CreateContainer: from a request to a container that waits to be started.
//!
//! Steps, and what a restart does in each gap (`restore` carries it out):
//!
//! ```text
//! name reserved             in memory only: nothing to do
//! store record, layer       a record without state.json: undo everything below, by id
//! root mounted              unmounted with the record
//! config.json, files        beneath directories that carry the id
//! monitor, runtime create   the monitor's command line and the runtime's state carry the id
//! state.json                created: kept
//! ```

mod error;

use std::path::PathBuf;
use std::sync::Arc;

use config::MonitorCgroup;
use domain::apparmor::ApparmorName;
use domain::container::{ContainerConfig, ContainerState, Exit, Signal};
use domain::id::ContainerId;
use domain::name;
use domain::sandbox::SandboxState;
use domain::security::NamespaceMode;
use domain::spec::annotations::filter_annotations;
use domain::spec::{Edits, ResolvedDevice, Tuning, check_unit_properties, updated_resources};
use domain::userns::check_container;
use image_store::{ContainerIds, NewContainer, Volatile};
use runtime_client::create::CreateRequest;
use state_store::metadata::RecordMetadata;

use crate::container::{Container, ContainerImage, ContainerParts, ContainerUser};
use crate::devices;
use crate::handler::Handler;
use crate::image::LocalImage;
use crate::linked_logs;
use crate::mounts;
use crate::node::Node;
use crate::objects::Delivery;
use crate::prepare_container::{PrepareJob, Prepared};
use crate::run_sandbox::random_bytes;
use crate::sandbox::Sandbox;
use crate::selinux::{ContainerLabels, text};
use crate::undo::{Undo, chain};
use crate::volumes::ImageVolume;
use crate::{blocking, ends};

pub use error::CreateContainerError;

/// "The pod's" namespace is the node's where the pod uses the node's.
fn with_sandbox_namespaces(mut config: ContainerConfig, sandbox: &Sandbox) -> ContainerConfig {
    let of_sandbox = &sandbox.config.security.namespaces;
    let asked = &mut config.security.namespaces;
    for (asked, of_sandbox) in [(&mut asked.network, of_sandbox.network), (&mut asked.ipc, of_sandbox.ipc)] {
        if *asked == NamespaceMode::Pod && of_sandbox == NamespaceMode::Node {
            *asked = NamespaceMode::Node;
        }
    }
    config.security.namespaces.user.clone_from(&sandbox.config.security.namespaces.user);
    config
}

/// What is decided before anything is made.
struct Plan {
    id: ContainerId,
    name: String,
    sandbox: Arc<Sandbox>,
    config: ContainerConfig,
    devices: Vec<ResolvedDevice>,
    edits: Edits,
    image: LocalImage,
    stop_signal: Signal,
    log: PathBuf,
    target_pid: Option<i32>,
    image_volumes: Vec<ImageVolume>,
    apparmor: Option<ApparmorName>,
    /// The sandbox's, with another runtime for an image of another platform.
    handler: Arc<Handler>,
    tuning: Option<Tuning>,
    labels: Option<ContainerLabels>,
    /// The profile of an artifact, where one takes the place of none.
    seccomp_artifact: Option<Vec<u8>>,
}

/// How often a root is mounted that somebody else takes away before the runtime has it: with a podman that does so
/// started over and over, one try in two fails.
const ROOT_TRIES_MAX: u32 = 8;

impl Node {
    /// Creates a container, or joins the creation of the same one, or returns the one that exists.
    pub async fn create_container(
        self: &Arc<Self>,
        sandbox: &str,
        config: ContainerConfig,
    ) -> Result<ContainerId, Arc<CreateContainerError>> {
        let sandbox =
            self.objects.find_sandbox(sandbox).map_err(|error| Arc::new(CreateContainerError::Sandbox(error)))?;
        let node = Arc::clone(self);
        let name = name::container_name(&config.metadata, &sandbox.config.metadata);
        loop {
            let (node, sandbox, config) = (Arc::clone(&node), Arc::clone(&sandbox), config.clone());
            // The same name in another sandbox is another container, for which the name is taken.
            let key = format!("{} {name}", sandbox.id);
            let id = self.creates.join(key, || async move { node.create(sandbox, config).await }).await?;
            match self.deliver_container(&id).await {
                Delivery::First | Delivery::Again => return Ok(id),
                // Its removal is joined, and another is made.
                Delivery::TooLate => self
                    .remove_container(id.as_str())
                    .await
                    .map_err(|_| CreateContainerError::NameReserved { name: name.clone(), holder: id.to_string() })?,
            }
        }
    }

    async fn create(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        config: ContainerConfig,
    ) -> Result<ContainerId, CreateContainerError> {
        let name = name::container_name(&config.metadata, &sandbox.config.metadata);
        if let Some(existing) = self.objects.holder(&name).and_then(|holder| ContainerId::parse(&holder).ok()) {
            return match self.objects.container(&existing) {
                Some(other) if other.sandbox != sandbox.id => {
                    Err(CreateContainerError::NameReserved { name, holder: existing.to_string() })
                }
                _ => Ok(existing),
            };
        }
        let mut plan = self.plan_container(sandbox, config, name).await?;
        mounts::follow_storage(&self.config, &mut plan.config.mounts);
        linked_logs::protect(&plan.sandbox, &mut plan.config.mounts);
        plan.devices = self.devices(&plan).await?;
        plan.edits = self.injected(&plan.name, &plan.config, &plan.image.config, &plan.sandbox).await?;
        let mut undo = Undo::default();
        match self.make_container(&plan, &mut undo).await {
            Ok(container) => {
                let container = Arc::new(container);
                // Nobody tells its end before its making.
                let changing = container.changing.lock().await;
                self.objects.hold_back(container.id.as_str());
                self.objects.insert_container(Arc::clone(&container));
                // A stop first closes the sandbox and then looks for containers; so one of the two sees the other.
                if plan.sandbox.state() != SandboxState::Ready {
                    self.objects.remove_container(&container.id);
                    undo.run().await;
                    // The stop may have seen it, and waits for its end.
                    let exit = Exit {
                        code: ends::UNSEEN_EXIT_CODE,
                        finished: self.now(),
                        is_oom_killed: false,
                        is_seccomp_killed: false,
                        error: String::new(),
                    };
                    container.state.send_replace(ContainerState::Exited { started: None, exit });
                    return Err(CreateContainerError::SandboxNotReady { sandbox: plan.sandbox.id.clone() });
                }
                undo.forget();
                self.link_container_log(&plan.sandbox, &container).await;
                drop(changing);
                self.follow_init(&container);
                if ends::has_exit_record(&container.directory) {
                    self.record_end(&container).await;
                }
                if let Some(labels) = plan.labels {
                    plan.sandbox.labels.hold(labels.level);
                }
                tracing::info!(container.id = %plan.id, container.name = plan.name, "container is created");
                Ok(plan.id)
            }
            Err(error) => {
                undo.run().await;
                Err(error)
            }
        }
    }

    async fn plan_container(
        &self,
        sandbox: Arc<Sandbox>,
        config: ContainerConfig,
        name: String,
    ) -> Result<Plan, CreateContainerError> {
        if sandbox.state() != SandboxState::Ready {
            return Err(CreateContainerError::SandboxNotReady { sandbox: sandbox.id.clone() });
        }
        if config.security.privileged && !sandbox.is_privileged() {
            return Err(CreateContainerError::NotPrivileged { sandbox: sandbox.id.clone() });
        }
        let (asked, of_sandbox) = (&config.security.namespaces.user, &sandbox.config.security.namespaces.user);
        check_container(asked.as_ref(), of_sandbox.as_ref(), sandbox.id_maps.as_ref())
            .map_err(|source| CreateContainerError::UserNamespace { container: name.clone(), source })?;
        let mut config = with_sandbox_namespaces(config, &sandbox);
        let allowed = self.allowed_annotations(&sandbox.handler, &sandbox.config.annotations);
        config.annotations = filter_annotations(&config.annotations, &allowed).kept;
        let checked = check_unit_properties(&config.annotations)
            .and_then(|()| updated_resources(&config.resources, &self.facts, &sandbox.handler.facts).map(drop))
            .and_then(|()| self.tuning(&sandbox, &config.metadata.name));
        let tuning = checked
            .map_err(|source| CreateContainerError::Spec { container: name.clone(), source: Box::new(source) })?;
        let image = self.local_image(&config.image.image).await.map_err(|source| CreateContainerError::Image {
            container: name.clone(),
            image: config.image.image.clone(),
            source: Box::new(source),
        })?;
        self.check_stored_image(&image.id, &config.image, &sandbox.config.metadata.namespace).await.map_err(
            |source| CreateContainerError::Trust { image: config.image.image.clone(), source: Box::new(source) },
        )?;
        let stop_signal = match (config.stop_signal, image.config.stop_signal.as_str()) {
            (Some(signal), _) => signal,
            (None, "") => Signal::TERM,
            (None, text) => Signal::parse(text)
                .ok_or_else(|| CreateContainerError::StopSignal { container: name.clone(), signal: text.to_owned() })?,
        };
        self.reach_mounts(&config.mounts)
            .await
            .map_err(|source| CreateContainerError::Mounts { container: name.clone(), source: Box::new(source) })?;
        let target_pid = self.target_pid(&sandbox, &config).map_err(|source| CreateContainerError::Target {
            container: name.clone(),
            target: config.security.namespaces.target_id.clone(),
            source,
        })?;
        let apparmor = self
            .apparmor_profile(config.security.apparmor.as_ref(), config.security.privileged)
            .await
            .map_err(|source| CreateContainerError::Apparmor { container: name.clone(), source: Box::new(source) })?;
        let handler = match sandbox.handler.platform_runtime(&image.config) {
            Some(path) => sandbox.handler.with_runtime(&path.display().to_string()),
            None => Arc::clone(&sandbox.handler),
        };
        let labels = self
            .container_labels(&sandbox, &config, &image.config)
            .await
            .map_err(|source| CreateContainerError::Selinux { container: name.clone(), source: Box::new(source) })?;
        self.check_volumes(&config, labels.as_ref())
            .await
            .map_err(|source| CreateContainerError::Relabel { container: name.clone(), source })?;
        let id = ContainerId::from_bytes(random_bytes().map_err(CreateContainerError::DrawId)?);
        let image_volumes = self
            .plan_volumes(&id, &sandbox.config.metadata.namespace, &mut config)
            .await
            .map_err(|source| CreateContainerError::ImageVolume(Box::new(source)))?;
        let seccomp_artifact = self.seccomp_artifact(&sandbox, &config, &image).await.map_err(|source| {
            CreateContainerError::SeccompArtifact { container: name.clone(), source: Box::new(source) }
        })?;
        let log = match config.log_path.as_str() {
            "" => sandbox.log_directory.join(format!("{id}.log")),
            given => sandbox.log_directory.join(given),
        };
        Ok(Plan {
            id,
            name,
            sandbox,
            config,
            devices: vec![],
            edits: Edits::default(),
            image,
            stop_signal,
            log,
            target_pid,
            image_volumes,
            apparmor,
            handler,
            tuning,
            labels,
            seccomp_artifact,
        })
    }

    /// Devices of the request and of the pod's annotation, from the node as it is now.
    async fn devices(&self, plan: &Plan) -> Result<Vec<ResolvedDevice>, CreateContainerError> {
        let annotation = plan.sandbox.effective_annotations().remove(devices::ANNOTATION);
        let (allowed, request) = (self.config.runtime.allowed_devices.clone(), plan.config.devices.clone());
        let is_privileged = plan.config.security.privileged;
        blocking::run("look up devices", move || {
            devices::resolve(annotation.as_ref(), &allowed, &request, is_privileged)
        })
        .await
        .map_err(|source| CreateContainerError::Devices { container: plan.name.clone(), source: Box::new(source) })
    }

    async fn make_container(self: &Arc<Self>, plan: &Plan, undo: &mut Undo) -> Result<Container, CreateContainerError> {
        self.objects
            .reserve(&plan.name, plan.id.as_str())
            .map_err(|holder| CreateContainerError::NameReserved { name: plan.name.clone(), holder })?;
        let (node, name, id) = (Arc::clone(self), plan.name.clone(), plan.id.clone());
        undo.push("release name", move || {
            node.objects.release(&name, id.as_str());
            async { Ok(()) }
        });
        let rootfs = self.make_root(plan, undo).await?;
        let prepared = self.prepare(plan, rootfs).await?;
        if let Some(action) = prepared.notifier {
            self.listen_for_filters(&plan.id, &plan.name, action, undo)?;
        }
        self.create_at_runtime(plan, prepared, undo).await
    }

    /// Record, layer and mount.
    async fn make_root(self: &Arc<Self>, plan: &Plan, undo: &mut Undo) -> Result<PathBuf, CreateContainerError> {
        let metadata = RecordMetadata {
            pod_name: plan.sandbox.name.clone(),
            pod_id: plan.sandbox.id.to_string(),
            image_name: plan.config.image.image.clone(),
            image_id: plan.image.id.to_string(),
            name: plan.name.clone(),
            metadata_name: plan.config.metadata.name.clone(),
            created_at: self.now().nanos() / 1_000_000_000,
            attempt: plan.config.metadata.attempt,
            is_privileged: plan.config.security.privileged,
            ..RecordMetadata::default()
        };
        let new = NewContainer {
            id: plan.id.clone(),
            names: vec![plan.name.clone()],
            image: Some(plan.image.id.clone()),
            layer_name: Some(format!("{}-layer", plan.name)),
            metadata: metadata.to_text(),
            mount_label: text(plan.labels.as_ref().map(|labels| &labels.labels.mount)),
            process_label: text(plan.labels.as_ref().map(|labels| &labels.labels.process)),
            volatile: Volatile::Yes,
            ids: plan.sandbox.id_maps.clone().map_or(ContainerIds::Node, ContainerIds::Given),
        };
        let (node, id) = (Arc::clone(self), plan.id.clone());
        undo.push("remove the store's record", move || {
            let (store, id) = (Arc::clone(&node.store), id.clone());
            async move { Ok(blocking::run("remove container record", move || store.remove_container(&id)).await?) }
        });
        let (store, id, name) = (Arc::clone(&self.store), plan.id.clone(), plan.name.clone());
        blocking::run("record and mount container", move || {
            store
                .create_container(new)
                .map_err(|source| CreateContainerError::Store { container: name.clone(), source: Box::new(source) })?;
            store.mount(&id).map_err(|source| CreateContainerError::Mount { container: name, source: Box::new(source) })
        })
        .await
    }

    /// Everything between a mounted root and a bundle the runtime can take.
    async fn prepare(self: &Arc<Self>, plan: &Plan, rootfs: PathBuf) -> Result<Prepared, CreateContainerError> {
        let node = Arc::clone(self);
        let job = PrepareJob {
            id: plan.id.clone(),
            name: plan.name.clone(),
            sandbox: Arc::clone(&plan.sandbox),
            config: plan.config.clone(),
            devices: plan.devices.clone(),
            edits: plan.edits.clone(),
            image: plan.image.clone(),
            log: plan.log.clone(),
            target_pid: plan.target_pid,
            image_volumes: plan.image_volumes.clone(),
            apparmor: plan.apparmor.clone(),
            handler: Arc::clone(&plan.handler),
            tuning: plan.tuning.clone(),
            labels: plan.labels.as_ref().map(|labels| labels.labels.clone()),
            seccomp_artifact: plan.seccomp_artifact.clone(),
            directory: self.store.container_dir(&plan.id),
            bundle: self.store.container_run_dir(&plan.id),
            created: self.now(),
            rootfs,
        };
        blocking::run("prepare container", move || job.run(&node)).await
    }

    async fn create_at_runtime(
        self: &Arc<Self>,
        plan: &Plan,
        prepared: Prepared,
        undo: &mut Undo,
    ) -> Result<Container, CreateContainerError> {
        let handler = &plan.handler;
        let request = CreateRequest {
            id: &plan.id,
            name: &plan.name,
            bundle: &prepared.bundle,
            persistent: &prepared.directory,
            log: &plan.log,
            has_terminal: plan.config.tty,
            has_stdin: plan.config.stdin,
            keeps_stdin_open: plan.config.stdin && !plan.config.stdin_once,
        };
        let parent = &plan.sandbox.config.cgroup_parent;
        self.push_runtime_undo(handler, parent, &plan.id, undo);
        let place = |pid| self.cgroups.place_monitor(&handler.monitor_cgroup, parent, plan.id.as_str(), pid);
        let mut created = handler.runtime.create(&request, place).await;
        for _ in 1..ROOT_TRIES_MAX {
            let Err(error) = &created else { break };
            if !self.has_lost_root(&plan.id).await {
                break;
            }
            tracing::warn!(container.id = %plan.id, error = %chain(error), "somebody took the container's root away, trying again");
            let (store, id) = (Arc::clone(&self.store), plan.id.clone());
            blocking::run("mount container again", move || store.mount(&id)).await.map_err(|source| {
                CreateContainerError::Mount { container: plan.name.clone(), source: Box::new(source) }
            })?;
            created = handler.runtime.create(&request, place).await;
        }
        let created = created.map_err(|source| CreateContainerError::Create {
            container: plan.name.clone(),
            source: Box::new(source),
        })?;
        let parts = ContainerParts {
            id: plan.id.clone(),
            sandbox: plan.sandbox.id.clone(),
            name: plan.name.clone(),
            config: plan.config.clone(),
            limits: prepared.limits,
            image: ContainerImage {
                id: plan.image.id.clone(),
                name: plan.image.name(),
                reference: plan.image.reference(),
            },
            log: plan.log.clone(),
            user: Some(ContainerUser {
                uid: prepared.user.uid,
                gid: prepared.user.gid,
                supplemental_groups: prepared.user.additional_gids,
            }),
            created: prepared.created,
            handler: Arc::clone(handler),
            cgroup_parent: parent.clone(),
            stop_signal: plan.stop_signal,
            monitor: created.monitor,
            directory: prepared.directory,
            bundle: prepared.bundle,
        };
        let state = ContainerState::Created { init: created.init };
        let container = Container::new(parts, state.clone());
        let (directory, stored) = (container.directory.clone(), container.stored(state));
        blocking::run("record container", move || state_store::state::save_state(&directory, &stored))
            .await
            .map_err(|source| CreateContainerError::Record { container: plan.name.clone(), source })?;
        Ok(container)
    }

    /// Whether a root that was mounted is not any more: podman before 4.4 knows nothing of volatile containers, and takes
    /// the mounts of all layers along when it ends and sees none of its own.
    async fn has_lost_root(&self, id: &ContainerId) -> bool {
        let (store, id) = (Arc::clone(&self.store), id.clone());
        blocking::run("look for the root", move || store.mounted_path(&id).is_ok_and(|path| path.is_none())).await
    }

    /// How to take back whatever runtime and monitor made of a container, however far they came.
    pub(crate) fn push_runtime_undo(
        self: &Arc<Self>,
        handler: &Arc<Handler>,
        cgroup_parent: &str,
        id: &ContainerId,
        undo: &mut Undo,
    ) {
        let (node, handler) = (Arc::clone(self), Arc::clone(handler));
        let (parent, id) = (cgroup_parent.to_owned(), id.clone());
        undo.push("delete at the runtime", move || {
            let (node, handler, parent, id) = (Arc::clone(&node), Arc::clone(&handler), parent.clone(), id.clone());
            async move {
                // A runtime that cannot be run keeps the rest from going no more than it kept it from coming.
                let deleted = handler.runtime.delete(&id, runtime_client::Force::Yes).await;
                node.remove_attach_link(id.as_str());
                if handler.monitor_cgroup == MonitorCgroup::Sandbox {
                    node.cgroups.remove_monitor(&parent, &id).await?;
                }
                deleted?;
                Ok(())
            }
        });
    }

    /// The monitor makes a link to the bundle beside the sockets; a missing one is as good as a removed one.
    pub(crate) fn remove_attach_link(&self, id: &str) {
        let _ = std::fs::remove_file(self.config.runtime.container_attach_socket_dir.join(id));
    }
}
