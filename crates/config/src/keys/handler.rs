//! `[crio.runtime.runtimes.NAME]` and `[crio.runtime.workloads.NAME]`.

use crate::codec::{
    Bool, Count, Cpus, CreateTimeout, List, MinMemory, MonitorEnv, MonitorGroup, Number, OptPath, PlatformPaths,
    RuntimeRoot, Text, TextMap, Word,
};
use crate::handler::{RuntimeHandler, Workload, WorkloadResources};
use crate::key::{Key, key};
use crate::value::{ExecCpuAffinity, MonitorExecCgroup, RuntimeType};

/// Those CRI-O does not print are terse: scripts that edit a printed configuration by the name of a key (such as
/// `seccomp_profile`) must find it once.
pub(crate) static HANDLER: &[Key<RuntimeHandler>] = &[
    key!(
        RuntimeHandler,
        "runtime_path",
        OptPath,
        runtime_path,
        "Its binary. Empty for the one in $PATH with the handler's name."
    ),
    key!(
        RuntimeHandler,
        "runtime_type",
        Word<RuntimeType>,
        runtime_type,
        "oci for a command line runtime under a monitor, pod for one monitor a sandbox, vm for a containerd shim."
    ),
    key!(RuntimeHandler, "runtime_root", RuntimeRoot, runtime_root, "Its state directory."),
    key!(
        RuntimeHandler,
        "inherit_default_runtime",
        Bool,
        inherit_default_runtime,
        "Whether path, type, configuration and root are those of the default handler."
    ),
    key!(
        RuntimeHandler,
        "runtime_config_path",
        OptPath,
        runtime_config_path,
        "Its configuration file; only for type vm."
    ),
    key!(
        RuntimeHandler,
        "container_min_memory",
        MinMemory,
        container_min_memory,
        "Containers with a lower memory limit are refused, for example 12MiB."
    ),
    key!(
        RuntimeHandler,
        "monitor_path",
        OptPath,
        monitor_path,
        "The monitor's binary. Empty for crio-monitor or, failing that, conmon."
    ),
    key!(
        RuntimeHandler,
        "monitor_cgroup",
        MonitorGroup,
        monitor_cgroup,
        "Cgroup of monitors: pod, or a systemd slice. Empty for the manager's default."
    ),
    key!(
        RuntimeHandler,
        "monitor_exec_cgroup",
        Word<MonitorExecCgroup>,
        monitor_exec_cgroup,
        "container puts the monitor of an exec session in the container's cgroup."
    ),
    key!(RuntimeHandler, "monitor_env", MonitorEnv, monitor_env, "Environment of monitors, as KEY=VALUE."),
    key!(
        RuntimeHandler,
        "allowed_annotations",
        List,
        allowed_annotations,
        "Annotations that sandboxes of this handler may use."
    ),
    key!(
        RuntimeHandler,
        "privileged_without_host_devices",
        Bool,
        privileged_without_host_devices,
        "Whether privileged containers do not see the host's devices."
    ),
    key!(
        RuntimeHandler,
        "platform_runtime_paths",
        PlatformPaths,
        platform_runtime_paths,
        "Binaries for images of other platforms, by \"os/arch\" or \"os/arch/variant\"."
    )
    .terse(),
    key!(RuntimeHandler, "runtime_pull_image", Bool, runtime_pull_image, "Whether the guest pulls the image itself.")
        .terse(),
    key!(
        RuntimeHandler,
        "no_sync_log",
        Bool,
        no_sync_log,
        "Whether logs are not synced to disk when a container ends; only for type oci."
    )
    .terse(),
    key!(
        RuntimeHandler,
        "default_annotations",
        TextMap,
        default_annotations,
        "Annotations of every container whose request does not set them."
    )
    .terse(),
    key!(
        RuntimeHandler,
        "stream_websockets",
        Bool,
        stream_websockets,
        "Whether the monitor serves WebSocket sessions; only for type pod."
    )
    .terse(),
    key!(
        RuntimeHandler,
        "exec_cpu_affinity",
        Word<ExecCpuAffinity>,
        exec_cpu_affinity,
        "first runs exec sessions on the first CPU of the container or of the shared set."
    )
    .terse(),
    key!(
        RuntimeHandler,
        "seccomp_profile",
        OptPath,
        seccomp_profile,
        "Seccomp profile instead of that of [crio.runtime]."
    )
    .terse(),
    key!(
        RuntimeHandler,
        "container_create_timeout",
        CreateTimeout,
        container_create_timeout,
        "Seconds that creating a container may take, at least 30."
    )
    .terse(),
];

pub(crate) static WORKLOAD: &[Key<Workload>] = &[
    key!(Workload, "activation_annotation", Text, activation_annotation, "Annotation that selects the workload."),
    key!(Workload, "annotation_prefix", Text, annotation_prefix, "Prefix of the annotations that override resources."),
    key!(Workload, "allowed_annotations", List, allowed_annotations, "Further annotations such sandboxes may use."),
];

pub(crate) static WORKLOAD_RESOURCES: &[Key<WorkloadResources>] = &[
    key!(WorkloadResources, "cpushares", Count, cpushares, "CPU shares."),
    key!(WorkloadResources, "cpuquota", Number, cpuquota, "CPU quota in microseconds a period."),
    key!(WorkloadResources, "cpuperiod", Count, cpuperiod, "CPU period in microseconds."),
    key!(WorkloadResources, "cpuset", Cpus, cpuset, "CPUs."),
    key!(WorkloadResources, "cpulimit", Number, cpulimit, "CPU limit in thousandths of a CPU."),
];
