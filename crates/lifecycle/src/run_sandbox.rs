//! RunPodSandbox: from a request to a ready sandbox.
//!
//! Steps, and what a restart does in each gap (`restore` carries it out):
//!
//! ```text
//! names reserved            in memory only: nothing to do
//! store record, intent      record with intent "creating": undo everything below, by id
//! namespaces pinned         pins are named after the id
//! CNI ADD, host ports       libcni's cache and the rules carry the id
//! files, cgroup             beneath directories that carry the id; the cgroup's parent is in the intent
//! infra container           the runtime knows it by the id
//! config.json, state.json   still "creating"
//! intent cleared            ready: kept
//! ```

use std::io::{self, Read};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use confinement::selinux::LabelsError;
use confinement::{apparmor, seccomp};
use domain::apparmor::ApparmorName;
use domain::id::SandboxId;
use domain::id_maps::{IdMaps, RootOwner};
use domain::name;
use domain::sandbox::{PortMapping, Protocol, SandboxConfig, SandboxState};
use domain::security::NamespaceMode;
use domain::spec::{CgroupParent, CgroupPathError, SpecError, check_unit_properties};
use domain::time::Timestamp;
use domain::userns::PodIds;
use image_store::{NewContainer, Volatile};
use network::{Attachment, CniResult};
use state_store::intent::{Intent, SandboxIntent};
use state_store::metadata::RecordMetadata;
use state_store::state::StoredState;
use sys::namespace::PinError;
use thiserror::Error;

use crate::blocking;
use crate::handler::Handler;
use crate::infra::InfraError;
use crate::node::Node;
use crate::objects::Delivery;
use crate::sandbox::{Sandbox, SandboxFiles, SandboxNamespaces, SandboxParts, infra_id};
use crate::sandbox_files::{self, SandboxFileError};
use crate::selinux::{SandboxLabels, shown_mount_label, text};
use crate::undo::{Undo, Undone};
use crate::userns::{self, UserNamespaceError};

/// A node that has just booted gets its network within this; the kubelet's own patience is four minutes.
const NETWORK_READY_LIMIT: Duration = Duration::from_secs(120);
/// Interface of every sandbox. Source: CRI-O.
pub(crate) const INTERFACE: &str = "eth0";
/// Longest host name the kernel takes.
const HOSTNAME_MAX_BYTES: usize = 64;

/// Why a sandbox was not made. Everything done so far has been undone.
#[derive(Debug, Error)]
pub enum RunSandboxError {
    /// The handler is not configured.
    #[error("failed to find runtime handler {handler} from runtime list")]
    UnknownHandler {
        /// As asked.
        handler: String,
    },
    /// Something was asked for that this daemon does not do.
    #[error("{what} is not supported")]
    Unsupported {
        /// The field.
        what: String,
    },
    /// Its user namespace cannot be had.
    #[error("user namespace of sandbox {sandbox}")]
    UserNamespace {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What is wrong.
        source: Box<UserNamespaceError>,
    },
    /// The pod's cgroup parent does not fit the configured manager.
    #[error("cgroup parent of sandbox {sandbox}")]
    CgroupParent {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What is wrong.
        source: CgroupPathError,
    },
    /// The host name cannot be set.
    #[error("hostname {hostname:?} is longer than {HOSTNAME_MAX_BYTES} bytes or not a host name")]
    Hostname {
        /// As asked.
        hostname: String,
    },
    /// There is no network to join.
    #[error("sandbox {sandbox}: network is not ready")]
    NetworkNotReady {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// Why.
        source: network::NotReady,
    },
    /// No random bytes for an id.
    #[error("draw an id")]
    DrawId(#[source] io::Error),
    /// Another object holds one of its names.
    #[error("name {name} is reserved for {holder}")]
    NameReserved {
        /// The name.
        name: String,
        /// Who holds it.
        holder: String,
    },
    /// The store did not take its record.
    #[error("record sandbox {sandbox}")]
    Store {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What failed.
        source: Box<image_store::CreateContainerError>,
    },
    /// A record of it could not be written.
    #[error("record sandbox {sandbox}")]
    Record {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What failed.
        source: state_store::SaveError,
    },
    /// Its namespaces could not be made.
    #[error("create namespaces of sandbox {sandbox}")]
    Namespaces {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What failed.
        source: Box<PinError>,
    },
    /// It could not be attached.
    #[error("failed to create pod network sandbox {sandbox}({id})")]
    Network {
        /// The sandbox's name.
        sandbox: String,
        /// Its id.
        id: SandboxId,
        #[source]
        /// What failed.
        source: Box<network::AddError>,
    },
    /// Its host ports could not be mapped.
    #[error("failed to add hostport mapping for sandbox {sandbox}({id})")]
    HostPorts {
        /// The sandbox's name.
        sandbox: String,
        /// Its id.
        id: SandboxId,
        #[source]
        /// What failed.
        source: Box<network::HostPortError>,
    },
    /// The annotation about its shared memory.
    #[error("failed to parse shm size {value:?} of sandbox {sandbox}")]
    ShmSize {
        /// The sandbox's name.
        sandbox: String,
        /// As given.
        value: String,
    },
    /// A file of it could not be made.
    #[error("make files of sandbox {sandbox}")]
    Files {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What failed.
        source: Box<SandboxFileError>,
    },
    /// Its log directory could not be made.
    #[error("create log directory {path}")]
    LogDirectory {
        /// Where.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// Its cgroup could not be made.
    #[error("create cgroup of sandbox {sandbox}")]
    Cgroup {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Its seccomp profile cannot be had.
    #[error("seccomp profile of sandbox {sandbox}")]
    Seccomp {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What is wrong.
        source: Box<seccomp::ResolveProfileError>,
    },
    /// Its AppArmor profile cannot be had.
    #[error("AppArmor profile of sandbox {sandbox}")]
    Apparmor {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What is wrong.
        source: Box<apparmor::ResolveProfileError>,
    },
    /// It cannot have its SELinux labels.
    #[error("SELinux labels of sandbox {sandbox}")]
    Selinux {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What is wrong.
        source: Box<LabelsError>,
    },
    /// The runtime spec could not be assembled.
    #[error("assemble the runtime spec of sandbox {sandbox}")]
    Spec {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What is wrong.
        source: Box<SpecError>,
    },
    /// The runtime spec cannot be written as JSON.
    #[error("write the runtime spec of sandbox {sandbox}")]
    SpecJson {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What failed.
        source: serde_json::Error,
    },
    /// Its infra container did not start.
    #[error("start the infra container of sandbox {sandbox}")]
    Infra {
        /// The sandbox's name.
        sandbox: String,
        #[source]
        /// What failed.
        source: Box<InfraError>,
    },
}

/// What is decided before anything is made.
pub(crate) struct Plan {
    pub(crate) id: SandboxId,
    pub(crate) name: String,
    pub(crate) infra_name: String,
    pub(crate) config: SandboxConfig,
    pub(crate) runtime_handler: String,
    pub(crate) handler: Arc<Handler>,
    pub(crate) hostname: String,
    pub(crate) shm_bytes: u64,
    pub(crate) log_directory: PathBuf,
    pub(crate) is_privileged: bool,
    pub(crate) apparmor: Option<ApparmorName>,
    pub(crate) ids: PodIds,
    pub(crate) labels: Arc<SandboxLabels>,
    pub(crate) created: Timestamp,
    pub(crate) directory: PathBuf,
    pub(crate) run_directory: PathBuf,
}

/// What has been made when the spec is assembled.
pub(crate) struct Made {
    pub(crate) namespaces: SandboxNamespaces,
    pub(crate) id_maps: Option<IdMaps>,
    pub(crate) network: Option<CniResult>,
    pub(crate) files: SandboxFiles,
}

impl Node {
    /// Makes a sandbox, or joins the making of the same one, or returns the one that exists.
    pub async fn run_sandbox(
        self: &Arc<Self>,
        config: SandboxConfig,
        runtime_handler: String,
    ) -> Result<SandboxId, Arc<RunSandboxError>> {
        let node = Arc::clone(self);
        let name = name::sandbox_name(&config.metadata);
        loop {
            let (node, config, handler) = (Arc::clone(&node), config.clone(), runtime_handler.clone());
            let id = self.runs.join(name.clone(), || async move { node.run(config, handler).await }).await?;
            match self.deliver_sandbox(&id).await {
                Delivery::First | Delivery::Again => return Ok(id),
                // Its removal is joined, and another is made.
                Delivery::TooLate => self
                    .remove_sandbox(id.as_str(), None)
                    .await
                    .map_err(|_| RunSandboxError::NameReserved { name: name.clone(), holder: id.to_string() })?,
            }
        }
    }

    async fn run(
        self: Arc<Self>,
        config: SandboxConfig,
        runtime_handler: String,
    ) -> Result<SandboxId, RunSandboxError> {
        let name = name::sandbox_name(&config.metadata);
        if let Some(existing) = self.objects.holder(&name).and_then(|holder| SandboxId::parse(&holder).ok()) {
            return Ok(existing);
        }
        let plan = self.plan(config, runtime_handler).await?;
        let mut undo = Undo::default();
        let result = match self.reserve_names(&plan, &mut undo) {
            Ok(()) => self.make(&plan, &mut undo).await,
            Err(error) => Err(error),
        };
        match result {
            Ok(sandbox) => {
                let sandbox = Arc::new(sandbox);
                self.objects.hold_back(sandbox.id.as_str());
                if let Some(infra) = &sandbox.infra {
                    self.objects.insert_container(Arc::clone(infra));
                    self.follow_init(infra);
                }
                self.objects.insert_sandbox(Arc::clone(&sandbox));
                undo.forget();
                tracing::info!(sandbox.id = %plan.id, sandbox.name = plan.name, "sandbox is ready");
                Ok(plan.id)
            }
            Err(error) => {
                undo.run().await;
                Err(error)
            }
        }
    }

    /// Checks everything that can be checked before anything is made.
    async fn plan(&self, mut config: SandboxConfig, runtime_handler: String) -> Result<Plan, RunSandboxError> {
        let name = name::sandbox_name(&config.metadata);
        let runtime_handler = self.handler_for(&config, runtime_handler);
        let handler = self
            .handlers
            .get(&runtime_handler)
            .cloned()
            .ok_or_else(|| RunSandboxError::UnknownHandler { handler: runtime_handler.clone() })?;
        config.annotations = self.kept_annotations(&handler, &config.annotations);
        check_unit_properties(&config.annotations)
            .map_err(|source| RunSandboxError::Spec { sandbox: name.clone(), source: Box::new(source) })?;
        let namespaces = &config.security.namespaces;
        let ids = self
            .sandbox_ids(&config, &handler)
            .map_err(|source| RunSandboxError::UserNamespace { sandbox: name.clone(), source: Box::new(source) })?;
        CgroupParent::parse(self.cgroups.kind(), &config.cgroup_parent)
            .map_err(|source| RunSandboxError::CgroupParent { sandbox: name.clone(), source })?;
        let is_host_network = namespaces.network == NamespaceMode::Node;
        let is_privileged = config.security.is_privileged();
        let apparmor = self
            .apparmor_profile(config.security.apparmor.as_ref(), is_privileged)
            .await
            .map_err(|source| RunSandboxError::Apparmor { sandbox: name.clone(), source: Box::new(source) })?;
        let labels = self
            .sandbox_labels(&config, &runtime_handler)
            .await
            .map_err(|source| RunSandboxError::Selinux { sandbox: name.clone(), source: Box::new(source) })?;
        if !is_host_network {
            self.network
                .wait_ready(NETWORK_READY_LIMIT)
                .await
                .map_err(|source| RunSandboxError::NetworkNotReady { sandbox: name.clone(), source })?;
        }
        let shm_bytes = sandbox_files::shm_bytes(&config)
            .map_err(|value| RunSandboxError::ShmSize { sandbox: name.clone(), value })?;
        let id = draw_id().map_err(RunSandboxError::DrawId)?;
        let hostname = hostname(&config, &id, is_host_network)?;
        let log_directory = match config.log_directory.as_str() {
            "" => self.config.root.log_dir.join(id.as_str()),
            given => PathBuf::from(given),
        };
        let store_id = infra_id(&id);
        Ok(Plan {
            infra_name: name::infra_name(&config.metadata),
            directory: self.store.container_dir(&store_id),
            run_directory: self.store.container_run_dir(&store_id),
            created: self.now(),
            id,
            name,
            config,
            runtime_handler,
            handler,
            hostname,
            shm_bytes,
            log_directory,
            is_privileged,
            apparmor,
            ids,
            labels,
        })
    }

    fn reserve_names(self: &Arc<Self>, plan: &Plan, undo: &mut Undo) -> Result<(), RunSandboxError> {
        for name in [&plan.name, &plan.infra_name] {
            self.objects
                .reserve(name, plan.id.as_str())
                .map_err(|holder| RunSandboxError::NameReserved { name: name.clone(), holder })?;
            let (node, name, id) = (Arc::clone(self), name.clone(), plan.id.clone());
            undo.push("release name", move || {
                node.objects.release(&name, id.as_str());
                async { Ok(()) }
            });
        }
        Ok(())
    }

    async fn make(self: &Arc<Self>, plan: &Plan, undo: &mut Undo) -> Result<Sandbox, RunSandboxError> {
        let pause = self.pause_image(plan).await?;
        let id_maps = self.record_intent(plan, pause.as_ref().map(|image| image.id.clone()), undo).await?;
        let namespaces = self.make_namespaces(plan, id_maps.clone(), undo).await?;
        for (label, step) in self.ways_back(plan) {
            undo.push(label, step);
        }
        let (files, network, cgroup) = tokio::join!(
            self.make_files(plan, pause.is_some(), id_maps.as_ref().map(IdMaps::root)),
            self.attach(plan, &namespaces),
            self.cgroups.create_sandbox(&plan.config.cgroup_parent, &plan.id),
        );
        let made = Made { namespaces, id_maps, files: files?, network: network? };
        self.link_logs(&plan.config, &plan.log_directory, &plan.run_directory).await;
        cgroup.map_err(|source| RunSandboxError::Cgroup { sandbox: plan.name.clone(), source })?;
        let spec = self.sandbox_spec(plan, &made, pause.as_ref())?;
        let infra =
            match pause {
                Some(image) => Some(self.start_infra(plan, image, spec, undo).await.map_err(|source| {
                    RunSandboxError::Infra { sandbox: plan.name.clone(), source: Box::new(source) }
                })?),
                None => {
                    self.record_spec(plan, spec).await?;
                    None
                }
            };
        let directory = plan.directory.clone();
        blocking::run("record sandbox", move || state_store::intent::clear_intent(&directory))
            .await
            .map_err(|source| RunSandboxError::Record { sandbox: plan.name.clone(), source })?;
        let parts = SandboxParts {
            id: plan.id.clone(),
            config: plan.config.clone(),
            runtime_handler: plan.runtime_handler.clone(),
            created: plan.created,
            ips: made.network.map(|result| result.ips).unwrap_or_default(),
            handler: Arc::clone(&plan.handler),
            hostname: plan.hostname.clone(),
            log_directory: plan.log_directory.clone(),
            namespaces: made.namespaces,
            id_maps: made.id_maps,
            files: made.files,
            labels: Arc::clone(&plan.labels),
            infra,
            directory: plan.directory.clone(),
            run_directory: plan.run_directory.clone(),
        };
        Ok(Sandbox::new(parts, SandboxState::Ready))
    }

    /// The store's record comes first: from here on a restart finds the sandbox.
    async fn record_intent(
        self: &Arc<Self>,
        plan: &Plan,
        image: Option<domain::id::ImageId>,
        undo: &mut Undo,
    ) -> Result<Option<IdMaps>, RunSandboxError> {
        let metadata = RecordMetadata {
            pod_name: plan.name.clone(),
            pod_id: plan.id.to_string(),
            image_name: if image.is_some() { self.config.image.pause_image.clone() } else { String::new() },
            image_id: image.as_ref().map(ToString::to_string).unwrap_or_default(),
            name: plan.infra_name.clone(),
            metadata_name: plan.config.metadata.name.clone(),
            uid: plan.config.metadata.uid.clone(),
            namespace: plan.config.metadata.namespace.clone(),
            mount_label: text(shown_mount_label(&plan.config, &plan.labels)),
            created_at: plan.created.nanos() / 1_000_000_000,
            attempt: plan.config.metadata.attempt,
            is_sandbox: true,
            is_privileged: plan.is_privileged,
        };
        let new = NewContainer {
            id: infra_id(&plan.id),
            names: vec![plan.infra_name.clone(), plan.name.clone()],
            image,
            layer_name: Some(format!("{}-layer", plan.infra_name)),
            metadata: metadata.to_text(),
            mount_label: text(plan.labels.mount()),
            process_label: text(plan.labels.process()),
            volatile: Volatile::Yes,
            ids: userns::container_ids(&plan.ids),
        };
        let intent = SandboxIntent { intent: Intent::Creating, cgroup_parent: plan.config.cgroup_parent.clone() };
        let (store, directory) = (Arc::clone(&self.store), plan.directory.clone());
        let (node, id) = (Arc::clone(self), infra_id(&plan.id));
        undo.push("remove the store's record", move || {
            let (store, id) = (Arc::clone(&node.store), id.clone());
            async move { Ok(blocking::run("remove sandbox record", move || store.remove_container(&id)).await?) }
        });
        let log_directory = plan.log_directory.clone();
        blocking::run("record sandbox", move || {
            let sandbox = new.names[1].clone();
            let created = store
                .create_container(new)
                .map_err(|source| RunSandboxError::Store { sandbox: sandbox.clone(), source: Box::new(source) })?;
            state_store::intent::save_intent(&directory, &intent)
                .map_err(|source| RunSandboxError::Record { sandbox, source })?;
            make_log_directory(&log_directory)?;
            Ok(created.ids)
        })
        .await
    }

    async fn make_files(
        &self,
        plan: &Plan,
        has_infra: bool,
        root: Option<RootOwner>,
    ) -> Result<SandboxFiles, RunSandboxError> {
        let (config, hostname, run_directory) =
            (plan.config.clone(), plan.hostname.clone(), plan.run_directory.clone());
        let (labels, shm_bytes) = (Arc::clone(&plan.labels), plan.shm_bytes);
        let state_directory = if has_infra { plan.directory.clone() } else { run_directory.clone() };
        blocking::run("make sandbox files", move || {
            sandbox_files::make(&config, shm_bytes, &hostname, &state_directory, &run_directory, root, &labels)
        })
        .await
        .map_err(|source| RunSandboxError::Files { sandbox: plan.name.clone(), source: Box::new(source) })
    }

    async fn attach(&self, plan: &Plan, namespaces: &SandboxNamespaces) -> Result<Option<CniResult>, RunSandboxError> {
        let Some(netns) = &namespaces.network else { return Ok(None) };
        let attachment = attachment(&plan.id, &plan.config, Some(netns.clone()));
        let result = self.network.add(&attachment).await.map_err(|source| RunSandboxError::Network {
            sandbox: plan.name.clone(),
            id: plan.id.clone(),
            source: Box::new(source),
        })?;
        self.map_ports(plan, &result.ips).await?;
        Ok(Some(result))
    }

    async fn map_ports(&self, plan: &Plan, ips: &[IpAddr]) -> Result<(), RunSandboxError> {
        let Some(host_ports) = &self.host_ports else { return Ok(()) };
        if plan.config.port_mappings.is_empty() {
            return Ok(());
        }
        host_ports.add(&plan.id, ips, &network_mappings(&plan.config)).await.map_err(|source| {
            RunSandboxError::HostPorts { sandbox: plan.name.clone(), id: plan.id.clone(), source: Box::new(source) }
        })
    }

    /// How to undo what is done side by side. Each may be walked whether or not its step was taken.
    fn ways_back(self: &Arc<Self>, plan: &Plan) -> Vec<(&'static str, BoxedStep)> {
        let (node, id, parent) = (Arc::clone(self), plan.id.clone(), plan.config.cgroup_parent.clone());
        let cgroup: BoxedStep = Box::new(move || {
            let (node, id, parent) = (Arc::clone(&node), id.clone(), parent.clone());
            Box::pin(async move { node.cgroups.remove_sandbox(&parent, &id).await })
        });
        let run_directory = plan.run_directory.clone();
        let files: BoxedStep = Box::new(move || {
            let run_directory = run_directory.clone();
            Box::pin(async move {
                Ok(blocking::run("unmount sandbox files", move || sandbox_files::unmount(&run_directory)).await?)
            })
        });
        let (node, id, config) = (Arc::clone(self), plan.id.clone(), plan.config.clone());
        let network: BoxedStep = Box::new(move || {
            let (node, id, config) = (Arc::clone(&node), id.clone(), config.clone());
            Box::pin(async move { node.detach(&id, &config, None).await })
        });
        vec![("remove cgroup", cgroup), ("unmount files", files), ("detach from the network", network)]
    }

    async fn record_spec(&self, plan: &Plan, spec: Vec<u8>) -> Result<(), RunSandboxError> {
        let state = StoredState {
            id: plan.id.to_string(),
            bundle: plan.run_directory.display().to_string(),
            created: plan.created,
            life: None,
            monitor: None,
        };
        let (directory, run_directory) = (plan.directory.clone(), plan.run_directory.clone());
        blocking::run("record sandbox spec", move || {
            state_store::spec::save_spec(&run_directory, &spec)?;
            state_store::spec::save_spec(&directory, &spec)?;
            // CRI-O looks for the state of a sandbox without infra process in the run directory.
            state_store::state::save_state(&run_directory, &state)
        })
        .await
        .map_err(|source| RunSandboxError::Record { sandbox: plan.name.clone(), source })
    }
}

type BoxedStep = Box<dyn Fn() -> futures_util::future::BoxFuture<'static, Undone> + Send + Sync>;

/// What plugins are told about a sandbox.
pub(crate) fn attachment(id: &SandboxId, config: &SandboxConfig, netns: Option<PathBuf>) -> Attachment {
    Attachment {
        sandbox_id: id.clone(),
        name: config.metadata.name.clone(),
        namespace: config.metadata.namespace.clone(),
        uid: config.metadata.uid.clone(),
        netns,
        ifname: INTERFACE.to_owned(),
        annotations: config.annotations.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
    }
}

/// Host ports as the network crate has them.
pub(crate) fn network_mappings(config: &SandboxConfig) -> Vec<network::PortMapping> {
    config.port_mappings.iter().map(network_mapping).collect()
}

fn network_mapping(mapping: &PortMapping) -> network::PortMapping {
    network::PortMapping {
        protocol: match mapping.protocol {
            Protocol::Tcp => network::Protocol::Tcp,
            Protocol::Udp => network::Protocol::Udp,
            Protocol::Sctp => network::Protocol::Sctp,
        },
        container_port: mapping.container_port,
        host_port: mapping.host_port,
        // Checked when the request was read.
        host_ip: mapping.host_ip.parse().ok(),
    }
}

/// A new random id.
pub(crate) fn draw_id() -> io::Result<SandboxId> {
    Ok(SandboxId::from_bytes(random_bytes()?))
}

pub(crate) fn random_bytes() -> io::Result<[u8; 32]> {
    let mut bytes = [0; 32];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn hostname(config: &SandboxConfig, id: &SandboxId, is_host_network: bool) -> Result<String, RunSandboxError> {
    let hostname = match config.hostname.as_str() {
        "" if is_host_network => rustix::system::uname().nodename().to_string_lossy().into_owned(),
        "" => id.short().to_owned(),
        given => given.to_owned(),
    };
    let is_valid = hostname.len() <= HOSTNAME_MAX_BYTES
        && hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if is_valid { Ok(hostname) } else { Err(RunSandboxError::Hostname { hostname }) }
}

fn make_log_directory(path: &std::path::Path) -> Result<(), RunSandboxError> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(|source| RunSandboxError::LogDirectory { path: path.to_owned(), source })
}
