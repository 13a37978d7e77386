//! The runtime handlers of the configuration, ready to be used.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use config::{
    Config, ExecCpuAffinity, MonitorCgroup, MonitorExecCgroup, RuntimeType, UNTRUSTED_HANDLER, WorkloadTrust,
};
use confinement::seccomp::Profiles;
use domain::cpus::CpuSet;
use domain::image::ImageConfig;
use domain::sandbox::SandboxConfig;
use domain::security::SecurityProfile;
use domain::spec::{CapabilitySet, ExecCpu, HandlerFacts};
use domain::trust::{self, DefaultTrust};
use runtime_client::features::Features;
use runtime_client::{RuntimeHandler, Signals};

use crate::node::Node;
use crate::shim;
use crate::undo::chain;

/// One handler: how to drive it, what it can do, where its monitors live.
#[derive(Debug, Clone)]
pub(crate) struct Handler {
    pub(crate) runtime: RuntimeHandler,
    pub(crate) features: Features,
    pub(crate) facts: HandlerFacts,
    pub(crate) monitor_cgroup: MonitorCgroup,
    pub(crate) default_annotations: BTreeMap<String, String>,
    pub(crate) allowed_annotations: Vec<String>,
    /// Overrides the node's seccomp profile.
    pub(crate) seccomp_profile: Option<PathBuf>,
    /// On which CPU programs run that are executed in containers with CPUs of their own.
    pub(crate) exec_cpu: ExecCpu,
    /// In which cgroups the runtime waits for such a program.
    pub(crate) exec_cgroup: MonitorExecCgroup,
    /// Runtimes for images of other platforms, by `os/arch` or `os/arch/variant`.
    platform_runtimes: BTreeMap<String, PathBuf>,
    /// Its containers have a kernel of their own.
    pub(crate) is_kernel_separated: bool,
}

/// All handlers by name.
#[derive(Debug)]
pub(crate) struct Handlers {
    by_name: BTreeMap<String, Arc<Handler>>,
    default: Arc<Handler>,
}

impl Handlers {
    /// Looks at every configured handler and asks its runtime what it can do.
    ///
    /// A handler that cannot be used is left out with a warning; without the default one there is no daemon.
    pub(crate) async fn find(config: &Config, seccomp: &Profiles) -> Result<Self, String> {
        let mut by_name = BTreeMap::new();
        for (name, configured) in &config.runtime.runtimes {
            match Handler::new(config, name, configured, seccomp).await {
                Ok(handler) => {
                    by_name.insert(name.clone(), Arc::new(handler));
                }
                Err(reason) if *name == config.runtime.default_runtime => {
                    return Err(format!("default runtime handler {name:?}: {reason}"));
                }
                Err(reason) => tracing::warn!(handler = %name, reason, "leaving out a runtime handler"),
            }
        }
        let default = by_name
            .get(&config.runtime.default_runtime)
            .cloned()
            .ok_or_else(|| format!("default runtime handler {:?} is not configured", config.runtime.default_runtime))?;
        Ok(Self { by_name, default })
    }

    /// The handler of a request; an empty name is the default.
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<Handler>> {
        if name.is_empty() { Some(&self.default) } else { self.by_name.get(name) }
    }

    pub(crate) fn default(&self) -> &Arc<Handler> {
        &self.default
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Handler>)> {
        self.by_name.iter().map(|(name, handler)| (name.as_str(), handler))
    }
}

impl Node {
    /// The handler a pod asks for, or the one for untrusted pods where it asks for none and there is one.
    pub(crate) fn handler_for(&self, config: &SandboxConfig, asked: String) -> String {
        if !asked.is_empty() || self.handlers.get(UNTRUSTED_HANDLER).is_none() {
            return asked;
        }
        let default = match self.config.runtime.default_workload_trust {
            WorkloadTrust::Trusted => DefaultTrust::Trusted,
            WorkloadTrust::Untrusted => DefaultTrust::Untrusted,
        };
        let annotation = config.annotations.get(trust::ANNOTATION).map(String::as_str);
        let is_untrusted = self.config.runtime.runtime_untrusted_workload.is_some()
            && trust::is_untrusted(annotation, default, config.security.is_privileged());
        if is_untrusted { UNTRUSTED_HANDLER.to_owned() } else { asked }
    }
}

impl Handler {
    async fn new(
        config: &Config,
        name: &str,
        configured: &config::RuntimeHandler,
        seccomp: &Profiles,
    ) -> Result<Self, String> {
        if let Some(path) = &configured.seccomp_profile {
            // Read anew for each container; one that is no profile now is a mistake of the configuration's.
            seccomp
                .resolve(Some(&SecurityProfile::RuntimeDefault), false, CapabilitySet::EMPTY, Some(path))
                .map_err(|error| format!("seccomp_profile: {}", chain(&error)))?;
        }
        let configured_path = configured.runtime_path.clone().ok_or("its runtime was not found")?;
        let (runtime, options, signals) = match configured.runtime_type {
            RuntimeType::Oci => (configured_path, Vec::new(), Signals::ByProcess),
            RuntimeType::Vm => {
                let program = configured.shim_program.clone().ok_or("no crio-shim was found")?;
                (program, shim::options(config, configured, &configured_path)?, Signals::ByRuntime)
            }
            RuntimeType::Pod => {
                return Err(format!("runtime_type {:?} is not supported yet", RuntimeType::Pod.as_str()));
            }
        };
        let runtime = RuntimeHandler {
            name: name.to_owned(),
            runtime,
            root: configured.runtime_root.clone(),
            options,
            signals,
            monitor: configured.monitor_path.clone().ok_or("no monitor was found")?,
            monitor_env: configured.monitor_env.clone(),
            has_systemd_cgroup: config.runtime.cgroup_manager == config::CgroupManager::Systemd,
            exits_dir: config.runtime.container_exits_dir.clone(),
            socket_dir: config.runtime.container_attach_socket_dir.clone(),
            create_limit: configured.container_create_timeout,
            log_level: config.runtime.log_level.as_str().to_owned(),
            log_size_max_bytes: config.runtime.log_size_max.map(config::ByteCount::bytes),
            has_journal_log: config.runtime.log_to_journald,
            has_no_sync_log: configured.no_sync_log,
            has_no_pivot: config.runtime.no_pivot,
            cpus: cpus_of(config.runtime.infra_ctr_cpuset.as_ref())?.iter().collect(),
        };
        let version = runtime.version().await.map_err(|error| crate::undo::chain(&error))?;
        let features = runtime.features().await;
        tracing::info!(handler = %name, runtime = %runtime.runtime.display(), version, "using runtime handler");
        let facts = HandlerFacts {
            has_recursive_read_only: features.has_recursive_read_only,
            has_id_mapped_mounts: features.has_idmapped_mounts,
            container_min_memory_bytes: i64::try_from(configured.container_min_memory.bytes()).unwrap_or(i64::MAX),
            has_no_host_devices_when_privileged: configured.privileged_without_host_devices,
        };
        Ok(Self {
            runtime,
            features,
            facts,
            monitor_cgroup: configured.monitor_cgroup.clone(),
            default_annotations: configured.default_annotations.clone(),
            allowed_annotations: configured.allowed_annotations.clone(),
            seccomp_profile: configured.seccomp_profile.clone(),
            exec_cpu: match configured.exec_cpu_affinity {
                ExecCpuAffinity::Container => ExecCpu::Any,
                ExecCpuAffinity::First => ExecCpu::First,
            },
            exec_cgroup: configured.monitor_exec_cgroup,
            platform_runtimes: configured.platform_runtime_paths.clone(),
            // Source: CRI-O, which knows kata's older runtimes, driven by their command line, by the handler's name.
            is_kernel_separated: signals == Signals::ByRuntime || name.to_ascii_lowercase().contains("kata"),
        })
    }

    /// The runtime for images of another platform than the node's; `None` where the handler's own runs them.
    pub(crate) fn platform_runtime(&self, image: &ImageConfig) -> Option<&PathBuf> {
        let platform = format!("{}/{}", image.os, image.architecture);
        let with_variant = format!("{platform}/{}", image.variant);
        self.platform_runtimes.get(&with_variant).or_else(|| self.platform_runtimes.get(&platform))
    }

    /// The same handler with another runtime, as containers of other platforms have it; an empty path is its own.
    pub(crate) fn with_runtime(self: &Arc<Self>, path: &str) -> Arc<Self> {
        if path.is_empty() {
            return Arc::clone(self);
        }
        let mut other = Self::clone(self);
        match other.runtime.signals {
            Signals::ByProcess => other.runtime.runtime = path.into(),
            Signals::ByRuntime => shim::replace(&mut other.runtime.options, path),
        }
        Arc::new(other)
    }
}

/// The CPUs of a key; none where it is not set.
pub(crate) fn cpus_of(set: Option<&config::CpuSet>) -> Result<CpuSet, String> {
    CpuSet::parse(set.map_or("", config::CpuSet::as_str)).map_err(|error| error.to_string())
}
