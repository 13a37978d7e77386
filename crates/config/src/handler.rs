//! Runtime handlers and workloads: the two tables whose names the operator chooses.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::units::ByteCount;
use crate::value::{CpuSet, ExecCpuAffinity, MonitorCgroup, MonitorExecCgroup, RuntimeType};

/// Name of the handler that exists without configuration.
pub const DEFAULT_RUNTIME: &str = "crun";

/// State directory of a runtime when the handler names none. Source: CRI-O does this.
pub(crate) const DEFAULT_RUNTIME_ROOT: &str = "/run/crun";

/// Least memory limit of a container when the handler names none. Source: CRI-O does this.
pub(crate) const DEFAULT_CONTAINER_MIN_MEMORY: ByteCount = ByteCount::mib(12);

/// How long creating a container may take when the handler does not say.
pub(crate) const DEFAULT_CREATE_TIMEOUT: Duration = Duration::from_secs(240);

/// Shorter creation timeouts are raised to this: image layers of a cold disk need it. Source: CRI-O does this.
pub(crate) const MIN_CREATE_TIMEOUT: Duration = Duration::from_secs(30);

/// Environment of monitors, which need a PATH to find the runtime's helpers.
pub(crate) const DEFAULT_MONITOR_ENV: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The slice of monitors under systemd when the handler names none.
pub(crate) const DEFAULT_MONITOR_SLICE: &str = "system.slice";

/// `[crio.runtime.runtimes.NAME]`: an OCI runtime and how to drive it.
#[derive(Debug, Clone, PartialEq)]
pub struct RuntimeHandler {
    /// The binary; None: one of the handler's name in `$PATH`. Always set by [`crate::Config::check_host`].
    pub runtime_path: Option<PathBuf>,
    /// How it is driven.
    pub runtime_type: RuntimeType,
    /// Its state directory (`--root`).
    pub runtime_root: PathBuf,
    /// Its configuration file, `vm` only.
    pub runtime_config_path: Option<PathBuf>,
    /// Whether path, type, configuration and root are those of the default handler.
    pub inherit_default_runtime: bool,
    /// Whether privileged containers get no host devices.
    pub privileged_without_host_devices: bool,
    /// Annotations sandboxes of this handler may use.
    pub allowed_annotations: Vec<String>,
    /// The monitor's binary; None: looked up. Always set by [`crate::Config::check_host`] for types `oci` and `vm`.
    pub monitor_path: Option<PathBuf>,
    /// Our own program between a monitor and a shim. No key; set by [`crate::Config::check_host`] for type `vm`.
    pub shim_program: Option<PathBuf>,
    /// Where monitors live.
    pub monitor_cgroup: MonitorCgroup,
    /// Where monitors of exec sessions live.
    pub monitor_exec_cgroup: MonitorExecCgroup,
    /// `KEY=VALUE` environment of monitors.
    pub monitor_env: Vec<String>,
    /// Binaries per platform (`os/arch` or `os/arch/variant`).
    pub platform_runtime_paths: BTreeMap<String, PathBuf>,
    /// Whether the guest pulls images itself.
    pub runtime_pull_image: bool,
    /// Least memory limit a container may have.
    pub container_min_memory: ByteCount,
    /// Whether logs are not synced when a container ends.
    pub no_sync_log: bool,
    /// Annotations every container gets unless the request sets them.
    pub default_annotations: BTreeMap<String, String>,
    /// Whether the monitor streams over WebSocket, `pod` only.
    pub stream_websockets: bool,
    /// On which CPUs exec sessions run.
    pub exec_cpu_affinity: ExecCpuAffinity,
    /// Overrides the global seccomp profile.
    pub seccomp_profile: Option<PathBuf>,
    /// How long creating a container may take; at least 30 s.
    pub container_create_timeout: Duration,
}

/// Name of the handler that `runtime_untrusted_workload` stands for. Source: CRI-O before 1.14.
pub const UNTRUSTED_HANDLER: &str = "untrusted";

impl RuntimeHandler {
    /// The handler `crun` as it is without any file.
    pub fn built_in() -> Self {
        Self {
            allowed_annotations: vec!["io.containers.trace-syscall".into(), "devices.crio.io".into()],
            container_min_memory: ByteCount::kib(500),
            ..Self::default()
        }
    }
}

impl Default for RuntimeHandler {
    /// A handler whose table is empty.
    fn default() -> Self {
        Self {
            runtime_path: None,
            runtime_type: RuntimeType::Oci,
            runtime_root: DEFAULT_RUNTIME_ROOT.into(),
            runtime_config_path: None,
            inherit_default_runtime: false,
            privileged_without_host_devices: false,
            allowed_annotations: Vec::new(),
            monitor_path: None,
            shim_program: None,
            monitor_cgroup: MonitorCgroup::Slice(DEFAULT_MONITOR_SLICE.to_owned()),
            monitor_exec_cgroup: MonitorExecCgroup::Monitor,
            monitor_env: vec![DEFAULT_MONITOR_ENV.to_owned()],
            platform_runtime_paths: BTreeMap::new(),
            runtime_pull_image: false,
            container_min_memory: DEFAULT_CONTAINER_MIN_MEMORY,
            no_sync_log: false,
            default_annotations: BTreeMap::new(),
            stream_websockets: false,
            exec_cpu_affinity: ExecCpuAffinity::Container,
            seccomp_profile: None,
            container_create_timeout: DEFAULT_CREATE_TIMEOUT,
        }
    }
}

/// `[crio.runtime.workloads.NAME]`: resources of sandboxes that carry an annotation.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Workload {
    /// Sandbox annotation that selects the workload, its value is ignored.
    pub activation_annotation: String,
    /// `<prefix>/<container>` is the annotation that overrides resources of one container.
    pub annotation_prefix: String,
    /// Further annotations such sandboxes may use.
    pub allowed_annotations: Vec<String>,
    /// Resources of containers without an override.
    pub resources: WorkloadResources,
}

/// `[crio.runtime.workloads.NAME.resources]`. Zero and None mean: not set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct WorkloadResources {
    /// CPU shares.
    pub cpushares: u64,
    /// CPU quota in µs per period.
    pub cpuquota: i64,
    /// CPU period in µs, at least 1000.
    pub cpuperiod: u64,
    /// CPUs.
    pub cpuset: Option<CpuSet>,
    /// CPU limit in thousandths of a CPU.
    pub cpulimit: i64,
}

/// Prefixes and names of the annotations a handler or workload may allow: old and new spelling are separate entries.
///
/// Source: CRI-O's list; the entries of the OCI runtimes themselves are those of crun and runc.
pub const KNOWN_ANNOTATIONS: [&str; 45] = [
    "io.kubernetes.cri.rdt-class",
    "bundle",
    "org.systemd.property.",
    "org.criu.config",
    "module.wasm.image/variant",
    "io.kubernetes.cri.container-type",
    "run.oci.",
    "cgroup2-mount-hierarchy-rw.crio.io",
    "cpu-c-states.crio.io",
    "cpu-freq-governor.crio.io",
    "cpu-load-balancing.crio.io",
    "cpu-quota.crio.io",
    "cpu-shared.crio.io",
    "devices.crio.io",
    "disable-fips.crio.io",
    "irq-load-balancing.crio.io",
    "link-logs.crio.io",
    "io.containers.trace-syscall",
    "platform-runtime-path.crio.io",
    "pod-linux-overhead.crio.io",
    "pod-linux-resources.crio.io",
    "seccomp-notifier-action.crio.io",
    "seccomp-profile.crio.io",
    "shm-size.crio.io",
    "spoofed.crio.io",
    "org.opencontainers.image.stopSignal",
    "try-skip-volume-selinux-label.crio.io",
    "umask.crio.io",
    "unified-cgroup.crio.io",
    "userns-mode.crio.io",
    "io.kubernetes.cri-o.cgroup2-mount-hierarchy-rw",
    "io.kubernetes.cri-o.Devices",
    "io.kubernetes.cri-o.DisableFIPS",
    "io.kubernetes.cri-o.LinkLogs",
    "io.kubernetes.cri-o.PlatformRuntimePath",
    "io.kubernetes.cri-o.PodLinuxOverhead",
    "io.kubernetes.cri-o.PodLinuxResources",
    "io.kubernetes.cri-o.seccompNotifierAction",
    "seccomp-profile.kubernetes.cri-o.io",
    "io.kubernetes.cri-o.ShmSize",
    "io.kubernetes.cri-o.Spoofed",
    "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel",
    "io.kubernetes.cri-o.umask",
    "io.kubernetes.cri-o.UnifiedCgroup",
    "io.kubernetes.cri-o.userns-mode",
];
