//! The checked configuration: one struct per table, one field per key, named like the key.
//!
//! Whatever the file allows to be empty for "none" is an `Option` here. Deprecated keys that only stand in for others
//! (`conmon`, `conmon_cgroup`, `conmon_env`, `plugin_dir`, `enable_criu_support`, `stats_collection_period`) are kept as
//! written, so that the configuration can be printed again; their effect is already in the fields they stand for.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::handler::{DEFAULT_RUNTIME, RuntimeHandler, Workload};
use crate::storage_conf::StoreConfig;
use crate::units::ByteCount;
use crate::value::{
    AdditionalDevice, CgroupManager, CheckpointRestoreLevel, CpuSet, IdMapping, ImageVolumes, LogLevel, PullCgroup,
    ShortNameMode, StorageDriver, Sysctl, TlsMinVersion, Ulimit, WorkloadTrust,
};

/// How long a streaming connection may be idle when the file does not say. Source: CRI-O does this.
pub const DEFAULT_STREAM_IDLE_TIMEOUT: Duration = Duration::from_secs(4 * 3600);

/// Everything an operator can decide, checked.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Config {
    /// `[crio]`: storage and the files of the daemon itself.
    pub root: RootConfig,
    /// `[crio.api]`: sockets and TLS.
    pub api: ApiConfig,
    /// `[crio.runtime]`: how containers run.
    pub runtime: RuntimeConfig,
    /// `[crio.checkpoint_restore]`.
    pub checkpoint_restore: CheckpointRestoreConfig,
    /// `[crio.image]`: pulling and naming images.
    pub image: ImageConfig,
    /// `[crio.network]`: CNI.
    pub network: NetworkConfig,
    /// `[crio.metrics]`: the Prometheus end point.
    pub metrics: MetricsConfig,
    /// `[crio.tracing]`: OpenTelemetry.
    pub tracing: TracingConfig,
    /// `[crio.stats]`: how container statistics are collected.
    pub stats: StatsConfig,
    /// `[crio.nri]`: node resource interface plugins.
    pub nri: NriConfig,
    /// What storage.conf says that no key of ours can.
    pub storage: StoreConfig,
}

/// `[crio]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RootConfig {
    /// Persistent storage root (graph root).
    pub root: PathBuf,
    /// Volatile storage root.
    pub runroot: PathBuf,
    /// If set, images live here and containers in `root`.
    pub imagestore: Option<PathBuf>,
    /// Storage driver.
    pub storage_driver: StorageDriver,
    /// `driver.key=value`, those of storage.conf first.
    pub storage_option: Vec<String>,
    /// Default parent of sandbox log directories; absolute.
    pub log_dir: PathBuf,
    /// Version file on a volatile file system; None: never wipe because of it.
    pub version_file: Option<PathBuf>,
    /// Version file that survives a reboot; None: never wipe images.
    pub version_file_persist: Option<PathBuf>,
    /// Its absence at start tells of an unclean shutdown; None: never.
    pub clean_shutdown_file: Option<PathBuf>,
    /// Whether the daemon wipes at start.
    pub internal_wipe: bool,
    /// Whether storage is checked and repaired after an unclean shutdown.
    pub internal_repair: bool,
}

impl Default for RootConfig {
    fn default() -> Self {
        Self {
            root: "/var/lib/containers/storage".into(),
            runroot: "/run/containers/storage".into(),
            imagestore: None,
            storage_driver: StorageDriver::Overlay,
            storage_option: Vec::new(),
            log_dir: "/var/log/crio/pods".into(),
            version_file: Some("/var/run/crio/version".into()),
            version_file_persist: None,
            clean_shutdown_file: Some("/var/lib/crio/clean.shutdown".into()),
            internal_wipe: true,
            internal_repair: true,
        }
    }
}

/// `[crio.api]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ApiConfig {
    /// Path of the CRI socket.
    pub listen: PathBuf,
    /// Address of the streaming server; text that is no IP address means all addresses.
    pub stream_address: String,
    /// Port of the streaming server: a number or a service name; `0` lets the kernel choose.
    pub stream_port: String,
    /// Whether streaming is encrypted.
    pub stream_enable_tls: bool,
    /// Certificate of the streaming server.
    pub stream_tls_cert: Option<PathBuf>,
    /// Its key.
    pub stream_tls_key: Option<PathBuf>,
    /// Authorities whose client certificates are required.
    pub stream_tls_ca: Option<PathBuf>,
    /// Idle limit of streaming connections; None is [`DEFAULT_STREAM_IDLE_TIMEOUT`].
    pub stream_idle_timeout: Option<Duration>,
    /// Oldest TLS version.
    pub tls_min_version: TlsMinVersion,
    /// IANA names of the TLS 1.2 suites to offer; empty: the library's choice.
    pub tls_cipher_suites: Vec<String>,
    /// Largest message sent.
    pub grpc_max_send_msg_size: ByteCount,
    /// Largest message accepted.
    pub grpc_max_recv_msg_size: ByteCount,
}

impl ApiConfig {
    /// The idle limit in force.
    pub fn effective_stream_idle_timeout(&self) -> Duration {
        self.stream_idle_timeout.unwrap_or(DEFAULT_STREAM_IDLE_TIMEOUT)
    }
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            listen: "/var/run/crio/crio.sock".into(),
            stream_address: "127.0.0.1".into(),
            stream_port: "0".into(),
            stream_enable_tls: false,
            stream_tls_cert: None,
            stream_tls_key: None,
            stream_tls_ca: None,
            stream_idle_timeout: None,
            tls_min_version: TlsMinVersion::Tls12,
            tls_cipher_suites: Vec::new(),
            grpc_max_send_msg_size: ByteCount::mib(80),
            grpc_max_recv_msg_size: ByteCount::mib(80),
        }
    }
}

/// `[crio.runtime]`.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeConfig {
    /// Handler used when a sandbox names none; always a key of `runtimes`.
    pub default_runtime: String,
    /// Runtime of pods that are not trusted; stands for a handler `untrusted`. A key of CRI-O's first releases.
    pub runtime_untrusted_workload: Option<PathBuf>,
    /// Which pods those are, besides the ones that say so themselves.
    pub default_workload_trust: WorkloadTrust,
    /// Handlers by name.
    pub runtimes: BTreeMap<String, RuntimeHandler>,
    /// Workloads by name.
    pub workloads: BTreeMap<String, Workload>,
    /// Whether runtimes move mounts instead of pivoting.
    pub no_pivot: bool,
    /// Directory of image decryption keys.
    pub decryption_keys_path: Option<PathBuf>,
    /// Deprecated, applied to all handlers.
    pub conmon: Option<PathBuf>,
    /// Deprecated, applied to all handlers.
    pub conmon_cgroup: String,
    /// Deprecated, applied to all handlers.
    pub conmon_env: Vec<String>,
    /// `KEY=VALUE` for every container, lowest precedence.
    pub default_env: Vec<String>,
    /// Whether SELinux labels are used.
    pub selinux: bool,
    /// Seccomp profile; None is the built-in one.
    pub seccomp_profile: Option<PathBuf>,
    /// Seccomp profile of privileged containers; None is none.
    pub privileged_seccomp_profile: Option<PathBuf>,
    /// AppArmor profile name.
    pub apparmor_profile: String,
    /// Class file of the block I/O controller.
    pub blockio_config_file: Option<PathBuf>,
    /// Whether that file is read again for each container.
    pub blockio_reload: bool,
    /// Configuration file of irqbalance.
    pub irqbalance_config_file: Option<PathBuf>,
    /// Where the original banned CPUs are kept; `disable` turns restoring off.
    pub irqbalance_config_restore_file: String,
    /// Class file of resctrl.
    pub rdt_config_file: Option<PathBuf>,
    /// Who manages cgroups.
    pub cgroup_manager: CgroupManager,
    /// Names without `CAP_`, upper case.
    pub default_capabilities: Vec<String>,
    /// Whether those are inheritable, too.
    pub add_inheritable_capabilities: bool,
    /// Kernel parameters set in every sandbox.
    pub default_sysctls: Vec<Sysctl>,
    /// Resource limits of every container.
    pub default_ulimits: Vec<Ulimit>,
    /// Devices an annotation may ask for.
    pub allowed_devices: Vec<PathBuf>,
    /// Devices every container gets.
    pub additional_devices: Vec<AdditionalDevice>,
    /// Where CDI specifications lie.
    pub cdi_spec_dirs: Vec<PathBuf>,
    /// Whether devices belong to the container's user.
    pub device_ownership_from_security_context: bool,
    /// Where OCI hook files lie.
    pub hooks_dir: Vec<PathBuf>,
    /// File of `source:destination` lines mounted into every container.
    pub default_mounts_file: Option<PathBuf>,
    /// Processes a container may have; None is no limit.
    pub pids_limit: Option<u64>,
    /// Regular expression that log messages must match; empty: all do.
    pub log_filter: String,
    /// Severity from which on is logged.
    pub log_level: LogLevel,
    /// Size at which a container's log is cut; None: never.
    pub log_size_max: Option<ByteCount>,
    /// Whether container logs also go to the journal.
    pub log_to_journald: bool,
    /// Where monitors write exit records.
    pub container_exits_dir: PathBuf,
    /// Where monitors make attach sockets.
    pub container_attach_socket_dir: PathBuf,
    /// Put in front of each mount source the kubelet names.
    pub bind_mount_prefix: Option<PathBuf>,
    /// Whether all containers have a read-only root file system.
    pub read_only: bool,
    /// Deprecated: user id mapping of every container.
    pub uid_mappings: Vec<IdMapping>,
    /// Deprecated: group id mapping of every container.
    pub gid_mappings: Vec<IdMapping>,
    /// Lowest host user id a sandbox's user namespace may use; None: any.
    pub minimum_mappable_uid: Option<u32>,
    /// Lowest host group id a sandbox's user namespace may use; None: any.
    pub minimum_mappable_gid: Option<u32>,
    /// Least grace period of a stop; at least 30 s.
    pub ctr_stop_timeout: Duration,
    /// Whether sandboxes that need no infra container get none.
    pub drop_infra_ctr: bool,
    /// CPUs of infra containers and of child commands.
    pub infra_ctr_cpuset: Option<CpuSet>,
    /// CPUs shared by latency-sensitive containers.
    pub shared_cpuset: Option<CpuSet>,
    /// Parent of `netns`, `ipcns`, `utsns` and `userns`.
    pub namespaces_dir: PathBuf,
    /// Accepted for old files; this daemon pins namespaces itself.
    pub pinns_path: Option<PathBuf>,
    /// Deprecated: false is `container_level_enabled = "none"`.
    pub enable_criu_support: bool,
    /// Whether container events are served.
    pub enable_pod_events: bool,
    /// Host paths that are not created when absent.
    pub absent_mount_sources_to_reject: Vec<PathBuf>,
    /// In which cgroup pulls run.
    pub separate_pull_cgroup: PullCgroup,
    /// Whether SELinux is off in sandboxes on the host network.
    pub hostnetwork_disable_selinux: bool,
    /// Whether host ports are ignored.
    pub disable_hostport_mapping: bool,
    /// IANA name or `Local`; empty: UTC as in the image.
    pub timezone: String,
    /// Least GOMAXPROCS given to containers; 0: none is given.
    pub min_injected_gomaxprocs: u64,
    /// Directories with further OCI artifacts.
    pub additional_artifact_stores: Vec<PathBuf>,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        let capabilities =
            ["CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "KILL"];
        Self {
            default_runtime: DEFAULT_RUNTIME.to_owned(),
            runtime_untrusted_workload: None,
            default_workload_trust: WorkloadTrust::Untrusted,
            runtimes: BTreeMap::from([(DEFAULT_RUNTIME.to_owned(), RuntimeHandler::built_in())]),
            workloads: BTreeMap::new(),
            no_pivot: false,
            decryption_keys_path: Some("/etc/crio/keys/".into()),
            conmon: None,
            conmon_cgroup: String::new(),
            conmon_env: Vec::new(),
            default_env: Vec::new(),
            selinux: false,
            seccomp_profile: None,
            privileged_seccomp_profile: None,
            apparmor_profile: "crio-default".into(),
            blockio_config_file: None,
            blockio_reload: false,
            irqbalance_config_file: Some("/etc/sysconfig/irqbalance".into()),
            irqbalance_config_restore_file: "/etc/sysconfig/orig_irq_banned_cpus".into(),
            rdt_config_file: None,
            cgroup_manager: CgroupManager::Systemd,
            default_capabilities: capabilities.map(str::to_owned).to_vec(),
            add_inheritable_capabilities: false,
            default_sysctls: Vec::new(),
            default_ulimits: Vec::new(),
            allowed_devices: vec!["/dev/fuse".into(), "/dev/net/tun".into()],
            additional_devices: Vec::new(),
            cdi_spec_dirs: vec!["/etc/cdi".into(), "/var/run/cdi".into()],
            device_ownership_from_security_context: false,
            hooks_dir: vec!["/usr/share/containers/oci/hooks.d".into()],
            default_mounts_file: None,
            pids_limit: None,
            log_filter: String::new(),
            log_level: LogLevel::Info,
            log_size_max: None,
            log_to_journald: false,
            container_exits_dir: "/var/run/crio/exits".into(),
            container_attach_socket_dir: "/var/run/crio".into(),
            bind_mount_prefix: None,
            read_only: false,
            uid_mappings: Vec::new(),
            gid_mappings: Vec::new(),
            minimum_mappable_uid: None,
            minimum_mappable_gid: None,
            ctr_stop_timeout: Duration::from_secs(30),
            drop_infra_ctr: true,
            infra_ctr_cpuset: None,
            shared_cpuset: None,
            namespaces_dir: "/var/run".into(),
            pinns_path: None,
            enable_criu_support: true,
            enable_pod_events: false,
            absent_mount_sources_to_reject: Vec::new(),
            separate_pull_cgroup: PullCgroup::Daemon,
            hostnetwork_disable_selinux: true,
            disable_hostport_mapping: false,
            timezone: String::new(),
            min_injected_gomaxprocs: 0,
            additional_artifact_stores: Vec::new(),
        }
    }
}

/// `[crio.checkpoint_restore]`.
#[derive(Debug, Clone, PartialEq)]
pub struct CheckpointRestoreConfig {
    /// What is allowed.
    pub container_level_enabled: CheckpointRestoreLevel,
}

impl Default for CheckpointRestoreConfig {
    fn default() -> Self {
        Self { container_level_enabled: CheckpointRestoreLevel::CheckpointRestore }
    }
}

/// `[crio.image]`.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageConfig {
    /// Put in front of names without a transport.
    pub default_transport: String,
    /// Registry credentials, docker's config.json format.
    pub global_auth_file: Option<PathBuf>,
    /// Credentials per Kubernetes namespace; absolute.
    pub namespaced_auth_dir: PathBuf,
    /// Image of infra containers.
    pub pause_image: String,
    /// Credentials for it.
    pub pause_image_auth_file: Option<PathBuf>,
    /// Command of infra containers; empty: that of the image.
    pub pause_command: String,
    /// Images never collected: exact, `prefix*` or `*keyword*`.
    pub pinned_images: Vec<String>,
    /// Signature policy; None: the system's.
    pub signature_policy: Option<PathBuf>,
    /// Policies per Kubernetes namespace; absolute.
    pub signature_policy_dir: PathBuf,
    /// Accepted without effect; registries.conf says which registries are insecure.
    pub insecure_registries: Vec<String>,
    /// What becomes of volumes declared by images.
    pub image_volumes: ImageVolumes,
    /// Directory of large temporary files.
    pub big_files_temporary_dir: Option<PathBuf>,
    /// Whether registries.conf.d is watched.
    pub auto_reload_registries: bool,
    /// A pull without progress for this long is cancelled; zero: never.
    pub pull_progress_timeout: Duration,
    /// Whether OCI artifacts may be mounted.
    pub oci_artifact_mount_support: bool,
    /// How short names are completed.
    pub short_name_mode: ShortNameMode,
}

impl Default for ImageConfig {
    fn default() -> Self {
        Self {
            default_transport: "docker://".into(),
            global_auth_file: None,
            namespaced_auth_dir: "/etc/crio/auth".into(),
            pause_image: "registry.k8s.io/pause:3.10.1".into(),
            pause_image_auth_file: None,
            pause_command: "/pause".into(),
            pinned_images: Vec::new(),
            signature_policy: None,
            signature_policy_dir: "/etc/crio/policies".into(),
            insecure_registries: Vec::new(),
            image_volumes: ImageVolumes::Mkdir,
            big_files_temporary_dir: None,
            auto_reload_registries: false,
            pull_progress_timeout: Duration::ZERO,
            oci_artifact_mount_support: true,
            short_name_mode: ShortNameMode::Enforcing,
        }
    }
}

/// `[crio.network]`.
#[derive(Debug, Clone, PartialEq)]
pub struct NetworkConfig {
    /// Name of the CNI network; empty: the first found.
    pub cni_default_network: String,
    /// Where CNI configuration lies.
    pub network_dir: PathBuf,
    /// Where CNI plugins lie, in order; `plugin_dir` already appended.
    pub plugin_dirs: Vec<PathBuf>,
    /// How long a CNI STATUS failure is forgiven.
    pub cni_status_grace_period: Duration,
}

impl Default for NetworkConfig {
    fn default() -> Self {
        Self {
            cni_default_network: String::new(),
            network_dir: "/etc/cni/net.d/".into(),
            plugin_dirs: vec!["/opt/cni/bin/".into()],
            cni_status_grace_period: Duration::ZERO,
        }
    }
}

/// The metrics collectors, without prefixes.
pub const METRICS_COLLECTORS: [&str; 18] = [
    "image_pulls_layer_size",
    "containers_events_dropped_total",
    "containers_oom_total",
    "processes_defunct",
    "operations_total",
    "operations_latency_seconds",
    "operations_latency_seconds_total",
    "operations_errors_total",
    "image_pulls_bytes_total",
    "image_pulls_skipped_bytes_total",
    "image_pulls_failure_total",
    "image_pulls_success_total",
    "image_layer_reuse_total",
    "containers_oom_count_total",
    "containers_seccomp_notifier_count_total",
    "resources_stalled_at_stage",
    "containers_stopped_monitor_count",
    "default_runtime",
];

/// `[crio.metrics]`.
#[derive(Debug, Clone, PartialEq)]
pub struct MetricsConfig {
    /// Whether metrics are served.
    pub enable_metrics: bool,
    /// Which, without prefixes.
    pub metrics_collectors: Vec<String>,
    /// Address.
    pub metrics_host: String,
    /// Port.
    pub metrics_port: u16,
    /// Unix socket to serve on as well.
    pub metrics_socket: Option<PathBuf>,
    /// Certificate for TLS.
    pub metrics_cert: Option<PathBuf>,
    /// Its key.
    pub metrics_key: Option<PathBuf>,
}

impl Default for MetricsConfig {
    fn default() -> Self {
        Self {
            enable_metrics: false,
            metrics_collectors: METRICS_COLLECTORS.map(str::to_owned).to_vec(),
            metrics_host: "127.0.0.1".into(),
            metrics_port: 9090,
            metrics_socket: None,
            metrics_cert: None,
            metrics_key: None,
        }
    }
}

/// `[crio.tracing]`.
#[derive(Debug, Clone, PartialEq)]
pub struct TracingConfig {
    /// Whether spans are exported.
    pub enable_tracing: bool,
    /// `host:port` of the OTLP collector.
    pub tracing_endpoint: String,
    /// Of a million spans, so many are kept.
    pub tracing_sampling_rate_per_million: u32,
}

impl Default for TracingConfig {
    fn default() -> Self {
        Self { enable_tracing: false, tracing_endpoint: "127.0.0.1:4317".into(), tracing_sampling_rate_per_million: 0 }
    }
}

/// The groups of sandbox metrics.
pub const POD_METRICS: [&str; 10] =
    ["cpu", "disk", "diskIO", "hugetlb", "memory", "network", "oom", "process", "spec", "pressure"];

/// `[crio.stats]`.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct StatsConfig {
    /// Deprecated: time between collections of container statistics; zero: on demand.
    pub stats_collection_period: Duration,
    /// Time between collections; zero: on demand.
    pub collection_period: Duration,
    /// Groups of metrics collected, or exactly `all`.
    pub included_pod_metrics: Vec<String>,
}

impl StatsConfig {
    /// The groups of metrics in force, with `all` spelled out.
    pub fn enabled_pod_metrics(&self) -> Vec<&str> {
        match self.included_pod_metrics.as_slice() {
            [all] if all == "all" => POD_METRICS.to_vec(),
            names => names.iter().map(String::as_str).collect(),
        }
    }
}

/// `[crio.nri]`.
#[derive(Debug, Clone, PartialEq)]
pub struct NriConfig {
    /// Whether plugins may connect or are started.
    pub enable_nri: bool,
    /// Socket for plugins; an empty path, here and below, stands for NRI's own default.
    pub nri_listen: PathBuf,
    /// Plugins to start.
    pub nri_plugin_dir: PathBuf,
    /// Their configuration.
    pub nri_plugin_config_dir: PathBuf,
    /// How long a plugin may take to register.
    pub nri_plugin_registration_timeout: Duration,
    /// How long a plugin may take to answer.
    pub nri_plugin_request_timeout: Duration,
    /// Whether plugins started by others are refused.
    pub nri_disable_connections: bool,
    /// `[crio.nri.default_validator]`.
    pub default_validator: NriValidatorConfig,
}

impl Default for NriConfig {
    fn default() -> Self {
        Self {
            enable_nri: true,
            nri_listen: "/var/run/nri/nri.sock".into(),
            nri_plugin_dir: "/opt/nri/plugins".into(),
            nri_plugin_config_dir: "/etc/nri/conf.d".into(),
            nri_plugin_registration_timeout: Duration::from_secs(5),
            nri_plugin_request_timeout: Duration::from_secs(2),
            nri_disable_connections: false,
            default_validator: NriValidatorConfig::default(),
        }
    }
}

/// `[crio.nri.default_validator]`: what plugins may not change.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct NriValidatorConfig {
    /// Whether the validator is on.
    pub nri_enable_default_validator: bool,
    /// Refuse added OCI hooks.
    pub nri_validator_reject_oci_hook_adjustment: bool,
    /// Refuse changes of the runtime's default seccomp profile.
    pub nri_validator_reject_runtime_default_seccomp_adjustment: bool,
    /// Refuse changes of an unconfined seccomp profile.
    pub nri_validator_reject_unconfined_seccomp_adjustment: bool,
    /// Refuse changes of a custom seccomp profile.
    pub nri_validator_reject_custom_seccomp_adjustment: bool,
    /// Refuse changes of namespaces.
    pub nri_validator_reject_namespace_adjustment: bool,
    /// Plugins that must have seen each container.
    pub nri_validator_required_plugins: Vec<String>,
    /// Annotation of sandboxes that may do without them.
    pub nri_validator_tolerate_missing_plugins_annotation: String,
}
