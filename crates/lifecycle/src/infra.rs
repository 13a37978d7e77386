//! The runtime spec of a sandbox, which is its record too, and the pause container where one is needed.
//!
//! A sandbox needs a process of its own only where containers share its process namespace, where the machine that runs
//! them is made with it (a kernel of its own), or where the operator wants one (`drop_infra_ctr = false`). Without one, the same spec is still written down, marked as spoofed, because it is
//! what this daemon and CRI-O restore a sandbox from.

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use domain::container::{ContainerConfig, ContainerState, ImageSpec, Signal};
use domain::image::ImageConfig;
use domain::security::NamespaceMode;
use domain::spec::annotations::{SandboxFacts, sandbox_annotations};
use domain::spec::{Assembled, CapabilitySet, GeneratedFiles, InfraInputs, NamespacePaths, infra_spec};
use domain::user::{ResolveUserError, ResolvedUser, UserRequest, resolve_user};
use runtime_client::create::{CreateError, CreateRequest};
use thiserror::Error;

use crate::blocking;
use crate::container::{Container, ContainerImage, ContainerParts};
use crate::image::{ImagesError, LocalImage};
use crate::node::Node;
use crate::pull_image::{PullImageError, PullOrder, PullPurpose};
use crate::run_sandbox::{Made, Plan, RunSandboxError};
use crate::sandbox::infra_id;
use crate::start_container::StartContainerError;
use crate::undo::Undo;

/// What pause images run.
const CUSTOMARY_COMMAND: &str = "/pause";

/// Why a pause container does not run.
#[derive(Debug, Error)]
pub enum InfraError {
    /// Its image could not be pulled.
    #[error("pull pause image {image}")]
    Pull {
        /// The configured image.
        image: String,
        #[source]
        /// What failed.
        source: Arc<PullImageError>,
    },
    /// Its image could not be read.
    #[error("pause image {image}")]
    Image {
        /// The configured image.
        image: String,
        #[source]
        /// What failed.
        source: Box<ImagesError>,
    },
    /// Its root could not be mounted.
    #[error("mount its root")]
    Mount(#[source] Box<image_store::MountError>),
    /// Its records could not be written.
    #[error("record it")]
    Record(#[source] state_store::SaveError),
    /// Monitor and runtime did not create it.
    #[error("create it")]
    Create(#[source] Box<CreateError>),
    /// The runtime did not start it.
    #[error("start it")]
    Start(#[source] Box<StartContainerError>),
}

impl Node {
    /// The pause image, if this sandbox needs an infra process; pulled when it is not here.
    pub(crate) async fn pause_image(self: &Arc<Self>, plan: &Plan) -> Result<Option<LocalImage>, RunSandboxError> {
        let is_shared = plan.config.security.namespaces.pid == NamespaceMode::Pod;
        if self.config.runtime.drop_infra_ctr && !is_shared && !plan.handler.is_kernel_separated {
            return Ok(None);
        }
        let image = self.config.image.pause_image.clone();
        let failed = |source| RunSandboxError::Infra { sandbox: plan.name.clone(), source: Box::new(source) };
        match self.local_image(&image).await {
            Ok(local) => return Ok(Some(local)),
            Err(ImagesError::Absent { .. }) => {}
            Err(source) => return Err(failed(InfraError::Image { image, source: Box::new(source) })),
        }
        let order = PullOrder {
            image: image.clone(),
            auth_file: self.pause_image_auth_file.read().unwrap_or_else(PoisonError::into_inner).clone(),
            purpose: PullPurpose::Daemon,
            ..PullOrder::default()
        };
        self.pull_image(order).await.map_err(|source| failed(InfraError::Pull { image: image.clone(), source }))?;
        self.local_image(&image)
            .await
            .map(Some)
            .map_err(|source| failed(InfraError::Image { image, source: Box::new(source) }))
    }

    /// `config.json` of a sandbox.
    pub(crate) fn sandbox_spec(
        &self,
        plan: &Plan,
        made: &Made,
        pause: Option<&LocalImage>,
    ) -> Result<Vec<u8>, RunSandboxError> {
        let image = pause.map_or_else(ImageConfig::default, |image| image.config.clone());
        let rootfs = self.store.root().join(self.store.driver()).display().to_string();
        let user = infra_user(plan, &image)
            .and_then(|user| self.user_inside(user, &plan.config, made.id_maps.as_ref(), b"", b""))
            .map_err(|error| RunSandboxError::Unsupported { what: format!("user of the infra container: {error}") })?;
        let text = |path: &PathBuf| Some(path.display().to_string());
        let optional = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let namespaces = NamespacePaths {
            network: optional(&made.namespaces.network),
            ipc: optional(&made.namespaces.ipc),
            uts: optional(&made.namespaces.uts),
            user: optional(&made.namespaces.user),
            pid: None,
            target_pid: None,
        };
        let files = GeneratedFiles {
            resolv_conf: text(&made.files.resolv_conf),
            hostname: text(&made.files.hostname),
            shm: text(&made.files.shm),
            ..GeneratedFiles::default()
        };
        // A pause program has no capabilities.
        let seccomp = self
            .seccomp
            .resolve(
                plan.config.security.seccomp.as_ref(),
                plan.is_privileged,
                CapabilitySet::EMPTY,
                plan.handler.seccomp_profile.as_deref(),
            )
            .map_err(|source| RunSandboxError::Seccomp { sandbox: plan.name.clone(), source: Box::new(source) })?;
        let inputs = InfraInputs {
            id: &plan.id,
            config: &plan.config,
            image: &image,
            pause_command: &self.pause_command(pause),
            user: &user,
            node: &self.facts,
            defaults: &self.spec_defaults,
            hostname: &plan.hostname,
            cgroup: &self.cgroups.placement(&plan.config.cgroup_parent),
            cpuset: self.config.runtime.infra_ctr_cpuset.as_ref().map_or("", config::CpuSet::as_str),
            namespaces: &namespaces,
            id_maps: made.id_maps.as_ref(),
            files: &files,
            rootfs: &rootfs,
            is_privileged: plan.is_privileged,
            seccomp: seccomp.as_deref(),
            apparmor: plan.apparmor.as_ref(),
            selinux: &plan.labels.of_infra(),
            annotations: sandbox_annotations(&self.sandbox_facts(plan, made, pause)),
        };
        let assembled: Assembled = infra_spec(inputs)
            .map_err(|source| RunSandboxError::Spec { sandbox: plan.name.clone(), source: Box::new(source) })?;
        if pause.is_some() {
            self.say_once(&assembled.clamped);
        }
        assembled.to_json().map_err(|source| RunSandboxError::SpecJson { sandbox: plan.name.clone(), source })
    }

    /// An empty key takes the image's own command; without an image the record names the customary one.
    fn pause_command(&self, pause: Option<&LocalImage>) -> Vec<String> {
        match (self.config.image.pause_command.as_str(), pause) {
            ("", Some(_)) => Vec::new(),
            ("", None) => vec![CUSTOMARY_COMMAND.to_owned()],
            (command, _) => vec![command.to_owned()],
        }
    }

    fn sandbox_facts(&self, plan: &Plan, made: &Made, pause: Option<&LocalImage>) -> SandboxFacts {
        let config = &plan.config;
        let signal = pause.map(|image| image.config.stop_signal.clone()).filter(|signal| !signal.is_empty());
        SandboxFacts {
            id: plan.id.clone(),
            name: plan.name.clone(),
            infra_name: plan.infra_name.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: config.annotations.clone(),
            created: plan.created,
            log_path: plan.log_directory.join(format!("{}.log", plan.id)).display().to_string(),
            hostname: plan.hostname.clone(),
            hostname_path: made.files.hostname.display().to_string(),
            resolv_path: made.files.resolv_conf.display().to_string(),
            shm_path: made.files.shm.display().to_string(),
            namespaces: config.security.namespaces.clone(),
            is_host_network: made.namespaces.network.is_none(),
            is_privileged: plan.is_privileged,
            runtime_handler: plan.runtime_handler.clone(),
            cgroup_parent: config.cgroup_parent.clone(),
            port_mappings: config.port_mappings.clone(),
            cni_result: made.network.as_ref().map(|result| result.raw.clone()),
            ips: made.network.iter().flat_map(|result| result.ips.iter().map(ToString::to_string)).collect(),
            image: self.config.image.pause_image.clone(),
            mount_point: String::new(),
            seccomp_profile: self.seccomp.reference(config.security.seccomp.as_ref(), plan.is_privileged),
            stop_signal: signal,
            is_spoofed: pause.is_none(),
            overhead: config.overhead.clone(),
            resources: config.resources.clone(),
        }
    }

    /// Creates and starts the pause container from a spec whose root is not yet filled in.
    pub(crate) async fn start_infra(
        self: &Arc<Self>,
        plan: &Plan,
        image: LocalImage,
        spec: Vec<u8>,
        undo: &mut Undo,
    ) -> Result<Arc<Container>, InfraError> {
        let id = infra_id(&plan.id);
        let (store, mounted_id) = (Arc::clone(&self.store), id.clone());
        let (directory, run_directory) = (plan.directory.clone(), plan.run_directory.clone());
        blocking::run("mount infra root", move || {
            let rootfs = store.mount(&mounted_id).map_err(|error| InfraError::Mount(Box::new(error)))?;
            let spec = with_root(&spec, &rootfs);
            state_store::spec::save_spec(&run_directory, &spec).map_err(InfraError::Record)?;
            state_store::spec::save_spec(&directory, &spec).map_err(InfraError::Record)
        })
        .await?;
        let log = plan.log_directory.join(format!("{}.log", plan.id));
        let request = CreateRequest {
            id: &id,
            name: &plan.infra_name,
            bundle: &plan.run_directory,
            persistent: &plan.directory,
            log: &log,
            has_terminal: false,
            has_stdin: false,
            keeps_stdin_open: false,
        };
        let handler = &plan.handler;
        let parent = &plan.config.cgroup_parent;
        self.push_runtime_undo(handler, parent, &id, undo);
        let place = |pid| self.cgroups.place_monitor(&handler.monitor_cgroup, parent, id.as_str(), pid);
        let created =
            handler.runtime.create(&request, place).await.map_err(|error| InfraError::Create(Box::new(error)))?;
        let stop_signal = Signal::parse(&image.config.stop_signal).unwrap_or(Signal::TERM);
        let parts = ContainerParts {
            // No request shows those of an infra container.
            limits: domain::resources::Resources::default(),
            id,
            sandbox: plan.id.clone(),
            name: plan.infra_name.clone(),
            config: infra_config(&self.config.image.pause_image),
            image: ContainerImage { name: image.name(), reference: image.reference(), id: image.id },
            log,
            user: None,
            created: plan.created,
            handler: Arc::clone(handler),
            cgroup_parent: parent.clone(),
            stop_signal,
            monitor: created.monitor,
            directory: plan.directory.clone(),
            bundle: plan.run_directory.clone(),
        };
        let container = Arc::new(Container::new(parts, ContainerState::Created { init: created.init }));
        self.start(&container).await.map_err(|error| InfraError::Start(Box::new(error)))?;
        Ok(container)
    }
}

/// A pause container is asked for by nobody; this is what its request would have been.
pub(crate) fn infra_config(image: &str) -> ContainerConfig {
    let mut config = ContainerConfig {
        image: ImageSpec { image: image.to_owned(), ..ImageSpec::default() },
        ..ContainerConfig::default()
    };
    "POD".clone_into(&mut config.metadata.name);
    config
}

fn infra_user(plan: &Plan, image: &ImageConfig) -> Result<ResolvedUser, ResolveUserError> {
    let security = &plan.config.security;
    let request = UserRequest {
        run_as_user: security.run_as_user,
        run_as_username: "",
        run_as_group: security.run_as_group.filter(|_| security.run_as_user.is_some()),
        supplemental_groups: &security.supplemental_groups,
        policy: security.supplemental_groups_policy,
    };
    // A pause image has no users; names in its configuration would have nothing to be found in.
    let numeric = image.user.bytes().all(|byte| byte.is_ascii_digit() || byte == b':');
    resolve_user(&request, if numeric { &image.user } else { "" }, b"", b"")
}

/// Sets the root file system of a spec that was assembled before it was mounted.
fn with_root(spec: &[u8], rootfs: &std::path::Path) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(spec) else { return spec.to_vec() };
    if let Some(path) = value.pointer_mut("/root/path") {
        *path = rootfs.display().to_string().into();
    }
    if let Some(point) = value.pointer_mut("/annotations/io.kubernetes.cri-o.MountPoint") {
        *point = rootfs.display().to_string().into();
    }
    serde_json::to_vec(&value).unwrap_or_else(|_| spec.to_vec())
}
