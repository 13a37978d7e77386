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

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain::container::{ContainerConfig, ContainerState, Signal};
use domain::id::{ContainerId, SandboxId};
use domain::name;
use domain::sandbox::SandboxState;
use domain::security::NamespaceMode;
use domain::spec::annotations::{ContainerFacts, container_annotations, filter_annotations};
use domain::spec::{
    CgroupManagerKind, ContainerInputs, GeneratedFiles, NamespacePaths, SelinuxLabels, SpecError, container_spec,
};
use domain::user::{ResolveUserError, ResolvedUser, UserRequest, resolve_user};
use durable::Durability;
use durable::beneath::{Links, Root};
use image_store::{NewContainer, Volatile};
use rustix::fs::OFlags;
use runtime_client::create::{CreateError, CreateRequest};
use state_store::metadata::RecordMetadata;
use thiserror::Error;

use crate::container::{Container, ContainerImage, ContainerParts, ContainerUser};
use crate::image::LocalImage;
use crate::mounts::{self, ResolveMountError};
use crate::node::Node;
use crate::objects::LookupError;
use crate::run_sandbox::random_bytes;
use crate::sandbox::Sandbox;
use crate::undo::Undo;
use crate::{blocking, ends};

/// `passwd` and `group` of an image: one larger than this is an attack, not a list of users.
const USER_FILE_MAX_BYTES: u64 = 16 << 20;

/// Why a container was not created. Everything done so far has been undone.
#[derive(Debug, Error)]
pub enum CreateContainerError {
    /// No such sandbox.
    #[error("specified sandbox not found")]
    Sandbox(#[source] LookupError),
    /// Its sandbox was stopped.
    #[error("CreateContainer failed as the sandbox was stopped: {sandbox}")]
    SandboxNotReady {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// A privileged container in a pod that is not.
    #[error("no privileged container allowed in sandbox {sandbox}")]
    NotPrivileged {
        /// The sandbox.
        sandbox: SandboxId,
    },
    /// The image is not here. Nothing is pulled.
    #[error("image {image:?} of container {container}")]
    Image {
        /// The container's name.
        container: String,
        /// As asked.
        image: String,
        #[source]
        /// What failed.
        source: crate::image::ImagesError,
    },
    /// No random bytes for an id.
    #[error("draw an id")]
    DrawId(#[source] io::Error),
    /// Another object holds its name.
    #[error("name {name} is reserved for {holder}")]
    NameReserved {
        /// The name.
        name: String,
        /// Who holds it.
        holder: String,
    },
    /// The container whose process namespace it is to join.
    #[error("target container {target:?} of container {container}")]
    Target {
        /// The container's name.
        container: String,
        /// As asked.
        target: String,
        #[source]
        /// What is wrong.
        source: TargetError,
    },
    /// The store did not take its record.
    #[error("record container {container}")]
    Store {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: image_store::CreateContainerError,
    },
    /// Its root could not be mounted.
    #[error("mount the root of container {container}")]
    Mount {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: image_store::MountError,
    },
    /// A file in its root could not be read or made.
    #[error("{action} {path} in the root of container {container}")]
    Root {
        /// The container's name.
        container: String,
        /// What was tried.
        action: &'static str,
        /// Path in the container.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The user asked for does not exist or is none.
    #[error("user of container {container}")]
    User {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: ResolveUserError,
    },
    /// A mount or device cannot be had.
    #[error("mounts of container {container}")]
    Mounts {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: ResolveMountError,
    },
    /// The stop signal is none.
    #[error("stop signal {signal:?} of container {container} is not known")]
    StopSignal {
        /// The container's name.
        container: String,
        /// As the image has it.
        signal: String,
    },
    /// The runtime spec could not be assembled.
    #[error("assemble the runtime spec of container {container}")]
    Spec {
        /// The container's name.
        container: String,
        #[source]
        /// What is wrong.
        source: SpecError,
    },
    /// The runtime spec cannot be written as JSON.
    #[error("write the runtime spec of container {container}")]
    SpecJson {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: serde_json::Error,
    },
    /// A record of it could not be written.
    #[error("record container {container}")]
    Record {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: state_store::SaveError,
    },
    /// A file of it could not be written.
    #[error("write {path} of container {container}")]
    File {
        /// The container's name.
        container: String,
        /// Where.
        path: PathBuf,
        #[source]
        /// What failed.
        source: io::Error,
    },
    /// Monitor and runtime did not create it.
    #[error("create container {container}")]
    Create {
        /// The container's name.
        container: String,
        #[source]
        /// What failed.
        source: CreateError,
    },
}

/// Why a container's process namespace cannot be joined.
#[derive(Debug, Error)]
pub enum TargetError {
    /// No such container.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// It belongs to another pod.
    #[error("it is in another sandbox")]
    OtherSandbox,
    /// It does not run.
    #[error("it is not running")]
    NotRunning,
}

/// What is decided before anything is made.
struct Plan {
    id: ContainerId,
    name: String,
    sandbox: Arc<Sandbox>,
    config: ContainerConfig,
    image: LocalImage,
    stop_signal: Signal,
    log: PathBuf,
    target_pid: Option<i32>,
}

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
        self.creates.join(name, || async move { node.create(sandbox, config).await }).await
    }

    async fn create(
        self: Arc<Self>,
        sandbox: Arc<Sandbox>,
        config: ContainerConfig,
    ) -> Result<ContainerId, CreateContainerError> {
        let name = name::container_name(&config.metadata, &sandbox.config.metadata);
        if let Some(existing) = self.objects.holder(&name).and_then(|holder| ContainerId::parse(&holder).ok()) {
            return Ok(existing);
        }
        let plan = self.plan_container(sandbox, config, name).await?;
        let mut undo = Undo::default();
        match self.make_container(&plan, &mut undo).await {
            Ok(container) => {
                undo.forget();
                let container = Arc::new(container);
                self.objects.insert_container(Arc::clone(&container));
                self.follow_init(&container);
                if ends::has_exit_record(&container.directory) {
                    self.record_end(&container).await;
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
        let image = self.local_image(&config.image.image).await.map_err(|source| CreateContainerError::Image {
            container: name.clone(),
            image: config.image.image.clone(),
            source,
        })?;
        let stop_signal = match (config.stop_signal, image.config.stop_signal.as_str()) {
            (Some(signal), _) => signal,
            (None, "") => Signal::TERM,
            (None, text) => Signal::parse(text).ok_or_else(|| CreateContainerError::StopSignal {
                container: name.clone(),
                signal: text.to_owned(),
            })?,
        };
        let target_pid = self.target_pid(&sandbox, &config).map_err(|source| CreateContainerError::Target {
            container: name.clone(),
            target: config.security.namespaces.target_id.clone(),
            source,
        })?;
        let id = ContainerId::from_bytes(random_bytes().map_err(CreateContainerError::DrawId)?);
        let log = match config.log_path.as_str() {
            "" => sandbox.log_directory.join(format!("{id}.log")),
            given => sandbox.log_directory.join(given),
        };
        Ok(Plan { id, name, sandbox, config, image, stop_signal, log, target_pid })
    }

    fn target_pid(&self, sandbox: &Sandbox, config: &ContainerConfig) -> Result<Option<i32>, TargetError> {
        let options = &config.security.namespaces;
        if options.pid != NamespaceMode::Target {
            return Ok(None);
        }
        let target = self.objects.find_container(&options.target_id)?;
        if target.sandbox != sandbox.id {
            return Err(TargetError::OtherSandbox);
        }
        match target.state() {
            ContainerState::Running { init, .. } => Ok(Some(init.pid)),
            ContainerState::Created { .. } | ContainerState::Exited { .. } => Err(TargetError::NotRunning),
        }
    }

    async fn make_container(
        self: &Arc<Self>,
        plan: &Plan,
        undo: &mut Undo,
    ) -> Result<Container, CreateContainerError> {
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
            mount_label: String::new(),
            process_label: String::new(),
            volatile: Volatile::Yes,
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
                .map_err(|source| CreateContainerError::Store { container: name.clone(), source })?;
            store.mount(&id).map_err(|source| CreateContainerError::Mount { container: name, source })
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
            image: plan.image.clone(),
            log: plan.log.clone(),
            target_pid: plan.target_pid,
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
        let handler = &plan.sandbox.handler;
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
        let created = handler
            .runtime
            .create(&request, |pid| self.cgroups.place_monitor(&handler.monitor_cgroup, parent, plan.id.as_str(), pid))
            .await
            .map_err(|source| CreateContainerError::Create { container: plan.name.clone(), source })?;
        let (runtime, id) = (handler.runtime.clone(), plan.id.clone());
        undo.push("delete at the runtime", move || {
            let (runtime, id) = (runtime.clone(), id.clone());
            async move {
                runtime.delete(&id, runtime_client::Force::Yes).await?;
                Ok(())
            }
        });
        let parts = ContainerParts {
            id: plan.id.clone(),
            sandbox: plan.sandbox.id.clone(),
            name: plan.name.clone(),
            config: plan.config.clone(),
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
}

/// What preparation leaves for the runtime.
struct Prepared {
    directory: PathBuf,
    bundle: PathBuf,
    user: ResolvedUser,
    created: domain::time::Timestamp,
}

/// The blocking part between mount and runtime.
struct PrepareJob {
    id: ContainerId,
    name: String,
    sandbox: Arc<Sandbox>,
    config: ContainerConfig,
    image: LocalImage,
    log: PathBuf,
    target_pid: Option<i32>,
    directory: PathBuf,
    bundle: PathBuf,
    created: domain::time::Timestamp,
    rootfs: PathBuf,
}

impl PrepareJob {
    fn run(self, node: &Node) -> Result<Prepared, CreateContainerError> {
        let container = || self.name.clone();
        let root = Root::open(&self.rootfs).map_err(|source| self.root_error("open", Path::new("/"), source))?;
        let passwd = self.read_user_file(&root, "/etc/passwd")?;
        let group = self.read_user_file(&root, "/etc/group")?;
        let security = &self.config.security;
        let request = UserRequest {
            run_as_user: security.run_as_user,
            run_as_username: &security.run_as_username,
            run_as_group: security.run_as_group,
            supplemental_groups: &security.supplemental_groups,
            policy: security.supplemental_groups_policy,
        };
        let user = resolve_user(&request, &self.image.config.user, &passwd, &group)
            .map_err(|source| CreateContainerError::User { container: container(), source })?;
        self.make_volumes(node, &root)?;
        let mounts = mounts::resolve_mounts(&node.config, &self.config.mounts, &self.sandbox.handler.facts)
            .map_err(|source| CreateContainerError::Mounts { container: container(), source })?;
        let devices = mounts::resolve_devices(&self.config.devices)
            .map_err(|source| CreateContainerError::Mounts { container: container(), source })?;
        self.make_log_directory()?;
        let files = self.generate_files(&user, &passwd, &group)?;
        let rootfs = self.rootfs.display().to_string();
        let inputs = ContainerInputs {
            id: &self.id,
            config: &self.config,
            sandbox: &self.sandbox.config,
            image: &self.image.config,
            user: &user,
            node: &node.facts,
            defaults: &node.spec_defaults,
            handler: &self.sandbox.handler.facts,
            hostname: &self.sandbox.hostname,
            cgroup: &node.cgroups.placement(&self.sandbox.config.cgroup_parent),
            namespaces: &self.namespaces(),
            files: &files,
            rootfs: &rootfs,
            mounts: &mounts,
            further_mounts: &[],
            devices: &devices,
            pod_annotations: &filter_annotations(
                &self.sandbox.config.annotations,
                &self.sandbox.handler.allowed_annotations,
            )
            .effective,
            seccomp: None,
            selinux: &SelinuxLabels::default(),
            annotations: self.annotations(&rootfs, node.cgroups.kind()),
        };
        let assembled = container_spec(inputs)
            .map_err(|source| CreateContainerError::Spec { container: container(), source })?;
        node.say_once(&assembled.clamped);
        let json = assembled
            .to_json()
            .map_err(|source| CreateContainerError::SpecJson { container: container(), source })?;
        for directory in [&self.directory, &self.bundle] {
            state_store::spec::save_spec(directory, &json)
                .map_err(|source| CreateContainerError::Record { container: container(), source })?;
        }
        Ok(Prepared { directory: self.directory, bundle: self.bundle, user, created: self.created })
    }

    fn root_error(&self, action: &'static str, path: &Path, source: io::Error) -> CreateContainerError {
        CreateContainerError::Root { container: self.name.clone(), action, path: path.to_owned(), source }
    }

    /// Reads a file of the image, bounded and without following it out of the root. Absent is empty.
    fn read_user_file(&self, root: &Root, path: &str) -> Result<Vec<u8>, CreateContainerError> {
        let path = Path::new(path);
        let mut bytes = Vec::new();
        let read = root
            .open_regular(path)
            .and_then(|file| file.take(USER_FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map(|_| ()));
        match read {
            Ok(()) if bytes.len() as u64 > USER_FILE_MAX_BYTES => {
                Err(self.root_error("read", path, io::Error::other("the file is larger than 16 MiB")))
            }
            Ok(()) => Ok(bytes),
            // A dangling link, a directory or a fifo is no list of users either.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory | io::ErrorKind::InvalidInput
                ) =>
            {
                Ok(Vec::new())
            }
            Err(error) => Err(self.root_error("read", path, error)),
        }
    }

    /// The directories of the image's VOLUME lines and its working directory, and the customary `/etc/mtab`.
    fn make_volumes(&self, node: &Node, root: &Root) -> Result<(), CreateContainerError> {
        if node.config.image.image_volumes == config::ImageVolumes::Mkdir {
            for volume in &self.image.config.volumes {
                let is_mounted = self.config.mounts.iter().any(|mount| mount.container_path == *volume);
                if !is_mounted {
                    make_directory(root, Path::new(volume))
                        .map_err(|source| self.root_error("create volume", Path::new(volume), source))?;
                }
            }
        }
        let cwd = domain::spec::process_cwd(&self.config, &self.image.config)
            .map_err(|source| CreateContainerError::Spec { container: self.name.clone(), source })?;
        make_directory(root, Path::new(&cwd))
            .map_err(|source| self.root_error("create working directory", Path::new(&cwd), source))?;
        link_mtab(root).map_err(|source| self.root_error("link", Path::new("/etc/mtab"), source))
    }

    fn make_log_directory(&self) -> Result<(), CreateContainerError> {
        let Some(parent) = self.log.parent() else { return Ok(()) };
        std::fs::create_dir_all(parent).map_err(|source| CreateContainerError::File {
            container: self.name.clone(),
            path: parent.to_owned(),
            source,
        })
    }

    /// A passwd and a group with a line for whoever the image does not know.
    fn generate_files(
        &self,
        user: &ResolvedUser,
        passwd: &[u8],
        group: &[u8],
    ) -> Result<GeneratedFiles, CreateContainerError> {
        let write = |name: &str, known: &[u8], line: Option<String>| {
            // Without the file in the image there is nothing to bind over.
            let Some(line) = line.filter(|_| !known.is_empty()) else { return Ok(None) };
            let mut text = known.to_vec();
            if !text.ends_with(b"\n") {
                text.push(b'\n');
            }
            text.extend_from_slice(line.as_bytes());
            let path = self.bundle.join(name);
            durable::replace(&path, &text, 0o644, Durability::Volatile).map_err(|error| {
                CreateContainerError::File {
                    container: self.name.clone(),
                    path: path.clone(),
                    source: io::Error::other(error),
                }
            })?;
            Ok(Some(path.display().to_string()))
        };
        let home = user.home.clone().unwrap_or_else(|| "/".to_owned());
        let text = |path: &Path| Some(path.display().to_string());
        let files = &self.sandbox.files;
        Ok(GeneratedFiles {
            resolv_conf: text(&files.resolv_conf),
            hostname: text(&files.hostname),
            containerenv: text(&files.containerenv),
            shm: text(&files.shm),
            passwd: write("passwd", passwd, user.missing_passwd_line(&home))?,
            group: write("group", group, user.missing_group_line())?,
            localtime: None,
        })
    }

    fn annotations(&self, rootfs: &str, manager: CgroupManagerKind) -> BTreeMap<String, String> {
        let config = &self.config;
        let sandbox = &self.sandbox;
        let allowed = &sandbox.handler.allowed_annotations;
        let stop_signal = self.image.config.stop_signal.clone();
        let facts = ContainerFacts {
            id: self.id.clone(),
            name: self.name.clone(),
            sandbox_id: sandbox.id.clone(),
            sandbox_name: sandbox.name.clone(),
            metadata: config.metadata.clone(),
            labels: config.labels.clone(),
            annotations: filter_annotations(&config.annotations, allowed).kept,
            created: self.created,
            log_path: self.log.display().to_string(),
            image: config.image.image.clone(),
            image_name: self.image.repo_tags.first().cloned().unwrap_or_default(),
            image_id: Some(self.image.id.clone()),
            repo_digests: self.image.repo_digests.clone(),
            has_tty: config.tty,
            has_stdin: config.stdin,
            is_stdin_once: config.stdin_once,
            resolv_path: sandbox.files.resolv_conf.display().to_string(),
            mount_point: rootfs.to_owned(),
            seccomp_profile: "Unconfined".to_owned(),
            ips: sandbox.ips.iter().map(ToString::to_string).collect(),
            volumes: config.mounts.clone(),
            stop_signal: match config.stop_signal {
                Some(signal) => Some(signal.number().to_string()),
                None => Some(stop_signal).filter(|signal| !signal.is_empty()),
            },
            platform_runtime_path: String::new(),
        };
        let of_sandbox = filter_annotations(&sandbox.config.annotations, allowed).kept;
        container_annotations(&facts, &of_sandbox, manager)
    }

    fn namespaces(&self) -> NamespacePaths {
        let text = |path: &Option<PathBuf>| path.as_ref().map(|path| path.display().to_string());
        let namespaces = &self.sandbox.namespaces;
        let of_process = |pid: i32| format!("/proc/{pid}/ns/pid");
        NamespacePaths {
            network: text(&namespaces.network),
            ipc: text(&namespaces.ipc),
            uts: text(&namespaces.uts),
            pid: self.sandbox.infra_pid().map(of_process),
            target_pid: self.target_pid.map(of_process),
        }
    }
}

/// Makes a directory and its parents, every step resolved beneath the root.
fn make_directory(root: &Root, path: &Path) -> io::Result<()> {
    let mut made = PathBuf::from("/");
    for component in path.components() {
        let std::path::Component::Normal(name) = component else { continue };
        let parent = root.open_beneath(&made, OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot)?;
        match rustix::fs::mkdirat(parent.as_fd(), name, rustix::fs::Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        made.push(name);
    }
    Ok(())
}

/// Programs that print mounts read `/etc/mtab`. Source: CRI-O.
fn link_mtab(root: &Root) -> io::Result<()> {
    let etc = match root.open_beneath(Path::new("/etc"), OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot) {
        Ok(etc) => etc,
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => return Ok(()),
        Err(error) => return Err(error),
    };
    match rustix::fs::symlinkat("/proc/mounts", etc.as_fd(), "mtab") {
        Ok(()) | Err(rustix::io::Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
