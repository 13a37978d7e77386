//! The node: everything the daemon holds, and how it is opened.

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::mem::Discriminant;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use config::Config;
use confinement::seccomp::{ConfiguredPaths, DefaultOrigin, LoadProfileError, Profiles};
use confinement::selinux::Selinux;
use domain::id::{ContainerId, ImageId, SandboxId};
use domain::id_maps::IdMapsError;
use domain::spec::{Clamp, Inheritable, NodeFacts, SpecDefaults, Workload};
use domain::userns::UsernsPolicy;
use image_store::Store;
use injection::cdi::Cdi;
use injection::hooks::Hooks;
use network::{HostPorts, Network};
use runtime_client::features::Features;
use thiserror::Error;

use crate::artifacts::Artifacts;
use crate::cgroups::Cgroups;
use crate::classes::Classes;
use crate::container::Container;
use crate::create_container::CreateContainerError;
use crate::events::Events;
use crate::handler::Handlers;
use crate::in_flight::InFlight;
use crate::objects::{LookupError, Objects};
use crate::pull_image::{PullImageError, PullKey};
use crate::pull_layers::LayersUnderWay;
use crate::pull_progress::PullsUnderWay;
use crate::puller::{Puller, registry_client};
use crate::reach::Reach;
use crate::remove_container::RemoveContainerError;
use crate::remove_sandbox::RemoveSandboxError;
use crate::run_sandbox::RunSandboxError;
use crate::sandbox::Sandbox;
use crate::seccomp_notifier::Notifiers;
use crate::start_container::StartContainerError;
use crate::stop_sandbox::StopSandboxError;
use crate::trust::Trust;
use crate::tuning::Machine;
use crate::wanted::WhileWanted;
use crate::{
    apparmor, blocking, clock, cpus, devices, facts, monitors, puller, registries_watch, selinux, storage, undelivered,
    userns,
};

/// libcni's place for attachments; no key of the configuration moves it. Source: CRI-O.
const CNI_CACHE: &str = "/var/lib/cni/results";
/// The plugins that come with the daemon, beside its own program.
const CNI_PROGRAM: &str = "crio-cni";

/// Why the node could not be opened. Nothing serves until it is.
#[derive(Debug, Error)]
pub enum OpenNodeError {
    /// A directory the daemon needs.
    #[error("create directory {path}")]
    Directory {
        /// Which.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The classes of block I/O.
    #[error(transparent)]
    BlockIo(#[from] injection::block_io::BlockIoError),
    /// The store.
    #[error("open the store at {root}")]
    Store {
        /// Its root.
        root: PathBuf,
        #[source]
        /// What failed.
        source: image_store::OpenError,
    },
    /// The store of artifacts.
    #[error("open the store of artifacts")]
    Artifacts(#[source] image_store::ArtifactError),
    /// The default handler is unusable.
    #[error("{0}")]
    Handlers(String),
    /// No way to map host ports.
    #[error("find a way to map host ports")]
    HostPorts(#[source] network::DetectError),
    /// cgroups cannot be used.
    #[error("use cgroups")]
    Cgroups(#[source] cgroup::DetectError),
    /// The registry client's files are damaged.
    #[error("set up the registry client")]
    Registries(#[source] image_pull::registries::RegistriesError),
    /// The configured ids of user namespaces.
    #[error("uid_mappings and gid_mappings of the configuration")]
    IdMappings(#[source] IdMapsError),
    /// The configured seccomp profile.
    #[error("load the default seccomp profile")]
    Seccomp(#[source] LoadProfileError),
    /// The configured AppArmor profile.
    #[error("unable to load AppArmor profile")]
    Apparmor(#[source] confinement::apparmor::LoadProfileError),
    /// Labels are wanted and cannot be had.
    #[error("label containers with SELinux")]
    Selinux(#[source] confinement::selinux::OpenError),
    /// The exits directory cannot be watched.
    #[error(transparent)]
    Exits(#[from] runtime_client::exits::WatchExitsError),
    /// What earlier daemons left cannot be read.
    #[error("read the sandboxes and containers of the store")]
    Restore(#[source] image_store::RecordsError),
}

/// Where registry configuration is, when not in its usual places.
#[derive(Debug, Clone, Default)]
pub struct RegistryFiles {
    /// `registries.conf`.
    pub registries_conf: Option<PathBuf>,
    /// Its drop-in directory.
    pub registries_conf_dir: Option<PathBuf>,
}

/// What is removed at the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wipe {
    /// Every sandbox with its containers.
    Sandboxes,
    /// In addition the images that containers were made from.
    SandboxesAndImages,
}

/// What the CRI's Status tells.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeStatus {
    /// Why the network is not ready, if it is not.
    pub network_problem: Option<String>,
    /// Handlers by name, the default one under the empty name too.
    pub handlers: Vec<(String, HandlerStatus)>,
}

/// What a handler can do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HandlerStatus {
    /// Mounts that are read-only all the way down.
    pub has_recursive_read_only: bool,
    /// User namespaces of pods.
    pub has_user_namespaces: bool,
}

/// The node. One a daemon; everything behind it may be rebuilt from disk and kernel.
pub struct Node {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Arc<Store>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) network: Network,
    pub(crate) host_ports: Option<HostPorts>,
    pub(crate) registry: image_pull::Client,
    pub(crate) handlers: Handlers,
    pub(crate) cgroups: Cgroups,
    pub(crate) facts: NodeFacts,
    pub(crate) spec_defaults: SpecDefaults,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) machine: Machine,
    /// Held by whoever changes what containers share of the node's CPUs.
    pub(crate) tuning_lock: tokio::sync::Mutex<()>,
    pub(crate) seccomp: Profiles,
    pub(crate) userns: UsernsPolicy,
    /// Files can be shown with the ids of a user namespace.
    pub(crate) can_map_ids: bool,
    pub(crate) cdi: Cdi,
    pub(crate) classes: Classes,
    pub(crate) apparmor: Arc<confinement::apparmor::Profiles>,
    /// None while labels are off.
    pub(crate) selinux: Option<Arc<Selinux>>,
    pub(crate) hooks: Hooks,
    /// What the machine cannot give, said once a kind.
    said: Mutex<HashSet<Discriminant<Clamp>>>,
    pub(crate) objects: Objects,
    pub(crate) events: Events,
    pub(crate) runs: InFlight<String, SandboxId, RunSandboxError>,
    pub(crate) sandbox_stops: InFlight<SandboxId, (), StopSandboxError>,
    pub(crate) sandbox_removals: InFlight<SandboxId, (), RemoveSandboxError>,
    pub(crate) creates: InFlight<String, ContainerId, CreateContainerError>,
    pub(crate) starts: InFlight<ContainerId, (), StartContainerError>,
    pub(crate) removals: InFlight<ContainerId, (), RemoveContainerError>,
    pub(crate) puller: Puller,
    /// As the configuration says that was read last.
    pub(crate) pause_image_auth_file: RwLock<Option<PathBuf>>,
    pub(crate) pulls: WhileWanted<PullKey, domain::id::ImageId, PullImageError>,
    pub(crate) pulls_under_way: PullsUnderWay,
    pub(crate) reach: Reach,
    pub(crate) notifiers: Notifiers,
    /// Patterns of images the kubelet is to keep; the configuration may be read again.
    pub(crate) pins: Mutex<Vec<String>>,
    /// Images of all records found at the start, restored or not.
    pub(crate) restored_images: Mutex<BTreeSet<ImageId>>,
    _network_watch: network::Watch,
}

impl Node {
    /// Opens the store, finds handlers and network, and finishes or undoes what an earlier daemon left.
    pub async fn open(config: Config, registries: RegistryFiles) -> Result<Arc<Self>, OpenNodeError> {
        make_directories(&config)?;
        let cgroups = Cgroups::detect(config.runtime.cgroup_manager).map_err(OpenNodeError::Cgroups)?;
        let mut config = Arc::new(config);
        let store = {
            let (config, root) = (Arc::clone(&config), config.root.root.clone());
            blocking::run("open store", move || storage::open_for_daemon(&config))
                .await
                .map_err(|source| OpenNodeError::Store { root, source })?
        };
        if let Ok(driver) = store.driver().parse() {
            // Whoever asks is told the driver in use, not what made it so.
            Arc::make_mut(&mut config).root.storage_driver = driver;
        }
        let artifacts = {
            let config = Arc::clone(&config);
            blocking::run("open artifacts", move || Artifacts::open(&config)).await.map_err(OpenNodeError::Artifacts)?
        };
        let seccomp = seccomp_profiles(&config).map_err(OpenNodeError::Seccomp)?;
        let handlers = Handlers::find(&config, &seccomp).await.map_err(OpenNodeError::Handlers)?;
        let network = Network::new(network::NetworkOptions {
            conf_dir: config.network.network_dir.clone(),
            plugin_dirs: config.network.plugin_dirs.clone(),
            embedded_plugins: std::env::current_exe().ok().map(|own| own.with_file_name(CNI_PROGRAM)),
            default_network: Some(config.network.cni_default_network.clone()).filter(|name| !name.is_empty()),
            cache_dir: CNI_CACHE.into(),
            status_grace: config.network.cni_status_grace_period,
        });
        let network_watch = network.spawn_watch();
        let host_ports = if config.runtime.disable_hostport_mapping {
            None
        } else {
            Some(HostPorts::detect().await.map_err(OpenNodeError::HostPorts)?)
        };
        let registry = registry_client(&config, registries.clone()).map_err(OpenNodeError::Registries)?;
        let node_facts = {
            let version = cgroups.version();
            blocking::run("look at the machine", move || facts::gather(version)).await
        };
        let userns = userns::policy(&config).map_err(OpenNodeError::IdMappings)?;
        let (store, can_map_ids) = blocking::run("try id-mapped mounts", move || {
            let can_map_ids = userns::kernel_has_user_namespaces() && store.can_map_ids();
            (store, can_map_ids)
        })
        .await;
        let classes = {
            let runtime = &config.runtime;
            let (file, is_read_each_time) = (runtime.blockio_config_file.clone(), runtime.blockio_reload);
            blocking::run("read classes", move || Classes::load(file, is_read_each_time)).await?
        };
        let cdi = Cdi::new(config.runtime.cdi_spec_dirs.clone());
        cdi.look();
        let selinux = selinux::open(&config).map_err(OpenNodeError::Selinux)?;
        let apparmor = {
            let config = Arc::clone(&config);
            blocking::run("load AppArmor profile", move || apparmor::load(&config))
                .await
                .map_err(OpenNodeError::Apparmor)?
        };
        let hooks = Hooks::new(config.runtime.hooks_dir.clone());
        hooks.look();
        let exits = runtime_client::exits::watch(&config.runtime.container_exits_dir)?;
        let (store, artifacts) = (Arc::new(store), Arc::new(artifacts));
        let puller = Puller {
            trust: Trust::new(&config),
            config: Arc::clone(&config),
            store: Arc::clone(&store),
            artifacts: Arc::clone(&artifacts),
            registry: registry.clone(),
            registry_files: registries,
            under_way: LayersUnderWay::default(),
        };
        let node = Arc::new(Self {
            store,
            artifacts,
            network,
            host_ports,
            registry,
            handlers,
            cgroups,
            facts: node_facts,
            spec_defaults: spec_defaults(&config),
            workloads: cpus::workloads(&config),
            machine: machine(&config),
            tuning_lock: tokio::sync::Mutex::default(),
            seccomp,
            userns,
            can_map_ids,
            cdi,
            classes,
            apparmor: Arc::new(apparmor),
            selinux,
            hooks,
            said: Mutex::default(),
            objects: Objects::default(),
            events: Events::default(),
            runs: InFlight::default(),
            sandbox_stops: InFlight::default(),
            sandbox_removals: InFlight::default(),
            creates: InFlight::default(),
            starts: InFlight::default(),
            removals: InFlight::default(),
            puller,
            pause_image_auth_file: RwLock::new(config.image.pause_image_auth_file.clone()),
            pulls: WhileWanted::default(),
            pulls_under_way: PullsUnderWay::default(),
            reach: Reach::default(),
            notifiers: Notifiers::beside(&config.api.listen),
            pins: Mutex::new(config.image.pinned_images.clone()),
            restored_images: Mutex::default(),
            config,
            _network_watch: network_watch,
        });
        node.restore().await.map_err(OpenNodeError::Restore)?;
        node.restore_notifiers();
        tokio::spawn(Arc::clone(&node).follow_exits(exits));
        tokio::spawn(monitors::watch(Arc::downgrade(&node)));
        tokio::spawn(undelivered::watch(Arc::downgrade(&node)));
        tokio::spawn(puller::sweep(Arc::downgrade(&node)));
        if node.config.image.auto_reload_registries {
            let directory = node.puller.registry_files.registries_conf_dir.clone();
            let directory = directory.unwrap_or_else(|| image_pull::registries::DROP_IN_DIRECTORY.into());
            tokio::spawn(registries_watch::follow(Arc::downgrade(&node), directory));
        }
        node.collect_network_garbage();
        Ok(node)
    }

    /// The configuration in force.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Whether the node can run pods, and with what.
    pub async fn status(&self) -> NodeStatus {
        let network_problem = self.network.status().await.err().map(|problem| problem.to_string());
        let describe = |features: Features| HandlerStatus {
            has_recursive_read_only: features.has_recursive_read_only,
            has_user_namespaces: features.has_idmapped_mounts && self.can_map_ids,
        };
        let mut handlers = vec![(String::new(), describe(self.handlers.default().features))];
        handlers.extend(self.handlers.iter().map(|(name, handler)| (name.to_owned(), describe(handler.features))));
        NodeStatus { network_problem, handlers }
    }

    /// Every sandbox that a client has been told of, in the order of ids.
    #[must_use]
    pub fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        let mut sandboxes = self.objects.sandboxes();
        sandboxes.retain(|sandbox| self.objects.is_delivered(sandbox.id.as_str()));
        sandboxes
    }

    /// Every container that a client has been told of, but infra containers, in the order of ids.
    #[must_use]
    pub fn containers(&self) -> Vec<Arc<Container>> {
        let mut containers = self.objects.containers();
        containers.retain(|container| !container.is_infra() && self.objects.is_delivered(container.id.as_str()));
        containers
    }

    /// The sandbox whose id is, or uniquely begins with, `id`.
    pub fn find_sandbox(&self, id: &str) -> Result<Arc<Sandbox>, LookupError> {
        self.objects.find_sandbox(id)
    }

    /// The container whose id is, or uniquely begins with, `id`.
    pub fn find_container(&self, id: &str) -> Result<Arc<Container>, LookupError> {
        self.objects.find_container(id)
    }

    /// The runtime spec of a container or infra container, as text; `None` when its record is gone.
    pub async fn runtime_spec(&self, directory_of: &ContainerId) -> Option<String> {
        let directory = self.store.container_dir(directory_of);
        blocking::run("read spec", move || state_store::spec::load_spec_text(&directory)).await.ok().flatten()
    }

    /// Once the network is ready, plugins give back what belongs to no sandbox any more.
    fn collect_network_garbage(self: &Arc<Self>) {
        /// A day: a node whose network never comes up has no garbage to collect either.
        const READY_LIMIT: Duration = Duration::from_secs(24 * 3600);
        let node = Arc::clone(self);
        tokio::spawn(async move {
            if node.network.wait_ready(READY_LIMIT).await.is_err() {
                return;
            }
            let valid: Vec<SandboxId> = node.objects.sandboxes().iter().map(|sandbox| sandbox.id.clone()).collect();
            if let Err(error) = node.network.gc(&valid).await {
                tracing::warn!(error = %crate::undo::chain(&error), "collecting garbage of the network failed");
            }
        });
    }

    /// Removes every sandbox: after a reboot, or after another version, then with the images that containers were made
    /// from. What fails is told and left to the kubelet.
    pub async fn wipe(self: &Arc<Self>, what: Wipe) {
        for sandbox in self.objects.sandboxes() {
            if let Err(error) = self.remove_sandbox(sandbox.id.as_str(), None).await {
                tracing::warn!(sandbox.id = %sandbox.id, error = %crate::undo::chain(&*error), "removing a sandbox of an earlier boot failed");
            }
        }
        if what == Wipe::SandboxesAndImages {
            let images = std::mem::take(&mut *self.restored_images.lock().unwrap_or_else(PoisonError::into_inner));
            for image in images {
                let (store, id) = (Arc::clone(&self.store), image.clone());
                if let Err(error) = blocking::run("remove image", move || store.remove_image(&id)).await {
                    tracing::warn!(image.id = %image, error = %crate::undo::chain(&error), "removing an image of another version failed");
                }
            }
        }
    }

    /// Pulls the pause image with the credentials of another file from now on; none takes those of everybody.
    ///
    /// Errors: the file is not there; the old one stays then.
    pub fn reload_pause_image_auth_file(&self, path: &str) -> io::Result<()> {
        let path = Some(PathBuf::from(path)).filter(|path| !path.as_os_str().is_empty());
        if let Some(path) = &path {
            std::fs::metadata(path)
                .map_err(|error| io::Error::new(error.kind(), format!("stat {}: {error}", path.display())))?;
        }
        *self.pause_image_auth_file.write().unwrap_or_else(PoisonError::into_inner) = path;
        Ok(())
    }

    /// Reads `registries.conf` again; on an error the old one stays.
    pub fn reload_registries(&self) {
        match self.registry.reload_registries() {
            Ok(warnings) => {
                warnings.iter().for_each(|warning| tracing::warn!("{warning}"));
                tracing::info!("Applied new registry configuration");
            }
            Err(error) => {
                tracing::error!(error = %crate::undo::chain(&error), "system registries reload failed, the old registries.conf stays");
            }
        }
    }

    /// Tells the operator what the machine cannot give, each kind once in the daemon's life.
    pub(crate) fn say_once(&self, clamped: &[Clamp]) {
        for clamp in clamped {
            let kind = std::mem::discriminant(clamp);
            if self.said.lock().unwrap_or_else(PoisonError::into_inner).insert(kind) {
                tracing::warn!("{clamp}");
            }
        }
    }

    pub(crate) fn now(&self) -> domain::time::Timestamp {
        clock::now()
    }
}

/// The daemon's own directories. Those that hold other people's data are closed to everybody else; where an earlier
/// daemon or an operator left more rights than that, they are taken back. Logs and exits are nobody's business but ours;
/// the other two may be directories of the node (`/run`), which stay open, but not for writing.
fn make_directories(config: &Config) -> Result<(), OpenNodeError> {
    let runtime = &config.runtime;
    for (path, mode) in [
        (&config.root.log_dir, 0o700),
        (&runtime.container_exits_dir, 0o700),
        (&runtime.container_attach_socket_dir, 0o755),
        (&runtime.namespaces_dir, 0o755),
    ] {
        make_directory(path, mode).map_err(|source| OpenNodeError::Directory { path: path.clone(), source })?;
    }
    Ok(())
}

fn make_directory(path: &Path, most: u32) -> io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    /// Of a directory that is everybody's by design, such as `/tmp`.
    const STICKY: u32 = 0o1000;
    std::fs::DirBuilder::new().recursive(true).mode(most).create(path)?;
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o7777;
    if mode & STICKY == 0 && mode & !most & 0o777 != 0 {
        tracing::warn!(path = %path.display(), "taking back rights to a directory: mode {mode:o} becomes {:o}", mode & most);
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & most))?;
    }
    Ok(())
}

/// The node's files for CPUs; what they were is kept where CRI-O keeps it, which is `/var/run/crio/cpu` by default.
fn machine(config: &Config) -> Machine {
    let save = config.runtime.container_attach_socket_dir.join("cpu");
    Machine::new("/".into(), save, config.runtime.irqbalance_config_file.clone())
}

/// What the configuration adds to every container.
fn spec_defaults(config: &Config) -> SpecDefaults {
    let runtime = &config.runtime;
    SpecDefaults {
        env: runtime.default_env.clone(),
        capabilities: runtime.default_capabilities.clone(),
        inheritable: if runtime.add_inheritable_capabilities { Inheritable::SameAsOthers } else { Inheritable::Empty },
        ulimits: runtime
            .default_ulimits
            .iter()
            .map(|limit| domain::spec::Ulimit { name: limit.rlimit_name(), soft: limit.soft(), hard: limit.hard() })
            .collect(),
        pids_limit: runtime.pids_limit.and_then(|limit| i64::try_from(limit).ok()).unwrap_or(-1),
        is_read_only: runtime.read_only,
        devices: devices::configured(config),
        is_device_owner_from_security_context: runtime.device_ownership_from_security_context,
        is_selinux_off_for_host_network: runtime.hostnetwork_disable_selinux,
    }
}

fn seccomp_profiles(config: &Config) -> Result<Profiles, LoadProfileError> {
    let profiles = Profiles::load(ConfiguredPaths {
        default: config.runtime.seccomp_profile.clone(),
        privileged: config.runtime.privileged_seccomp_profile.clone(),
    })?;
    match profiles.default_origin() {
        DefaultOrigin::BuiltIn | DefaultOrigin::File(_) => {}
        DefaultOrigin::BuiltInForMissing(path) => {
            tracing::info!(path = %path.display(), "Seccomp profile does not exist on disk, using the built-in one");
        }
        DefaultOrigin::Unavailable => tracing::warn!("this kernel has no seccomp; containers run without profiles"),
    }
    Ok(profiles)
}
