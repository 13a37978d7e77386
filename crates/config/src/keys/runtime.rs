//! `[crio.runtime]`.

use crate::codec::{
    AbsolutePaths, Bool, Capabilities, ConmonGroup, Count, Cpus, Devices, Environment, IdMappings, LenientSeconds,
    Level, LogSize, OptId, OptPath, Path, Paths, PidsLimit, PullGroup, Regex, Sysctls, Text, Timezone, Ulimits, Word,
};
use crate::key::{Key, key};
use crate::model::Config;
use crate::value::{CgroupManager, WorkloadTrust};

pub(super) static KEYS: &[Key<Config>] = &[
    key!(
        "crio.runtime",
        "default_ulimits",
        Ulimits,
        runtime.default_ulimits,
        "Resource limits of every container, as name=soft[:hard], for example nofile=1024:2048. \
         -1 is no limit. Without entries the daemon's own limits are inherited."
    ),
    key!(
        "crio.runtime",
        "no_pivot",
        Bool,
        runtime.no_pivot,
        "Have the runtime move the root mount instead of pivoting. Only for root file systems that cannot be pivoted \
         to, such as an initramfs."
    ),
    key!(
        "crio.runtime",
        "decryption_keys_path",
        OptPath,
        runtime.decryption_keys_path,
        "Directory with the keys of encrypted images."
    )
    .no_env()
    .reload(),
    key!(
        "crio.runtime",
        "additional_artifact_stores",
        AbsolutePaths,
        runtime.additional_artifact_stores,
        "Absolute directories with more OCI artifacts, each holding a directory `artifacts`."
    )
    .no_env(),
    key!("crio.runtime", "conmon", OptPath, runtime.conmon, "Binary of the monitor for all handlers.")
        .deprecated("use monitor_path of the handler"),
    key!(
        "crio.runtime",
        "conmon_cgroup",
        ConmonGroup,
        runtime.conmon_cgroup,
        "Cgroup of the monitors of all handlers."
    )
    .deprecated("use monitor_cgroup of the handler"),
    key!(
        "crio.runtime",
        "conmon_env",
        Environment,
        runtime.conmon_env,
        "Environment of the monitors of all handlers, as KEY=VALUE."
    )
    .deprecated("use monitor_env of the handler"),
    key!(
        "crio.runtime",
        "default_env",
        Environment,
        runtime.default_env,
        "Environment of every container, as KEY=VALUE. Image and sandbox may override it."
    ),
    key!(
        "crio.runtime",
        "min_injected_gomaxprocs",
        Count,
        runtime.min_injected_gomaxprocs,
        "If above 0, containers get GOMAXPROCS in their environment: the number of CPUs they request, at least this \
         many."
    )
    .env(&["CONTAINER_INJECT_GOMAXPROCS"]),
    key!("crio.runtime", "selinux", Bool, runtime.selinux, "Whether containers are labelled with SELinux."),
    key!(
        "crio.runtime",
        "seccomp_profile",
        OptPath,
        runtime.seccomp_profile,
        "JSON file with the default seccomp profile. Empty, or a file that does not exist, means the built-in one."
    )
    .reload(),
    key!(
        "crio.runtime",
        "privileged_seccomp_profile",
        OptPath,
        runtime.privileged_seccomp_profile,
        "JSON file with the seccomp profile of privileged containers. Empty means none."
    )
    .reload(),
    key!(
        "crio.runtime",
        "apparmor_profile",
        Text,
        runtime.apparmor_profile,
        "Default AppArmor profile. crio-default is built in and loaded on demand, any other must be loaded already."
    )
    .reload(),
    key!(
        "crio.runtime",
        "blockio_config_file",
        OptPath,
        runtime.blockio_config_file,
        "File that defines the block I/O classes."
    )
    .no_env()
    .reload(),
    key!(
        "crio.runtime",
        "blockio_reload",
        Bool,
        runtime.blockio_reload,
        "Whether that file is read again, and devices are looked for again, each time a container is created."
    )
    .no_env()
    .reload(),
    key!(
        "crio.runtime",
        "irqbalance_config_file",
        OptPath,
        runtime.irqbalance_config_file,
        "Configuration file of the irqbalance service."
    )
    .no_env(),
    key!(
        "crio.runtime",
        "irqbalance_config_restore_file",
        Text,
        runtime.irqbalance_config_restore_file,
        "File with the banned CPUs irqbalance is given back at start. The word disable turns this off."
    )
    .no_env(),
    key!(
        "crio.runtime",
        "rdt_config_file",
        OptPath,
        runtime.rdt_config_file,
        "File that defines the resctrl classes (cache and memory bandwidth)."
    )
    .no_env()
    .reload(),
    key!(
        "crio.runtime",
        "cgroup_manager",
        Word<CgroupManager>,
        runtime.cgroup_manager,
        "Who manages cgroups: systemd or cgroupfs. The kubelet must be set to the same."
    ),
    key!(
        "crio.runtime",
        "separate_pull_cgroup",
        PullGroup,
        runtime.separate_pull_cgroup,
        "Cgroup in which images are pulled: empty for the daemon's, pod for that of the sandbox, or a systemd slice."
    )
    .env(&["PULL_IN_A_CGROUP"]),
    key!(
        "crio.runtime",
        "default_capabilities",
        Capabilities,
        runtime.default_capabilities,
        "Capabilities of containers whose request names none, without CAP_. An empty list gives none at all."
    ),
    key!(
        "crio.runtime",
        "add_inheritable_capabilities",
        Bool,
        runtime.add_inheritable_capabilities,
        "Whether capabilities are also put in the inheritable set, which processes of other users then keep."
    ),
    key!(
        "crio.runtime",
        "default_sysctls",
        Sysctls,
        runtime.default_sysctls,
        "Kernel parameters of every sandbox, as key=value without blanks. Only namespaced ones are allowed."
    ),
    key!(
        "crio.runtime",
        "allowed_devices",
        Paths,
        runtime.allowed_devices,
        "Devices that a sandbox may ask for with the annotation devices.crio.io."
    ),
    key!(
        "crio.runtime",
        "additional_devices",
        Devices,
        runtime.additional_devices,
        "Devices of every container, as source[:destination][:permissions], for example /dev/sdc:/dev/xvdc:rwm."
    ),
    key!(
        "crio.runtime",
        "cdi_spec_dirs",
        Paths,
        runtime.cdi_spec_dirs,
        "Directories with CDI device specifications. Later ones win."
    )
    .reload(),
    key!(
        "crio.runtime",
        "device_ownership_from_security_context",
        Bool,
        runtime.device_ownership_from_security_context,
        "Whether devices belong to the user and group of the container rather than to those of the host."
    )
    .no_env(),
    key!(
        "crio.runtime",
        "hooks_dir",
        Paths,
        runtime.hooks_dir,
        "Directories with OCI hook definitions. Missing ones are created; changes are noticed at once."
    ),
    key!(
        "crio.runtime",
        "default_mounts_file",
        OptPath,
        runtime.default_mounts_file,
        "File with one source:destination a line, mounted into every container."
    ),
    key!(
        "crio.runtime",
        "pids_limit",
        PidsLimit,
        runtime.pids_limit,
        "Processes a container may have, -1 for no limit. The kubelet's own limit is the better place."
    )
    .deprecated("set the limit in the kubelet"),
    key!(
        "crio.runtime",
        "log_size_max",
        LogSize,
        runtime.log_size_max,
        "Size in bytes at which a container's log starts anew, at least 8192; negative for no limit."
    )
    .deprecated("set containerLogMaxSize in the kubelet"),
    key!(
        "crio.runtime",
        "log_to_journald",
        Bool,
        runtime.log_to_journald,
        "Whether container output goes to the journal as well as to the kubelet's log file."
    )
    .flag("log-journald"),
    key!(
        "crio.runtime",
        "container_exits_dir",
        Path,
        runtime.container_exits_dir,
        "Directory in which monitors record how containers ended."
    )
    .env(&["CONTAINER_EXITS_DIR"]),
    key!(
        "crio.runtime",
        "container_attach_socket_dir",
        Path,
        runtime.container_attach_socket_dir,
        "Directory in which monitors listen for attach sessions."
    )
    .env(&["CONTAINER_ATTACH_SOCKET_DIR"]),
    key!(
        "crio.runtime",
        "bind_mount_prefix",
        OptPath,
        runtime.bind_mount_prefix,
        "Put in front of the source of every bind mount the kubelet asks for."
    ),
    key!(
        "crio.runtime",
        "read_only",
        Bool,
        runtime.read_only,
        "Whether all containers get a read-only root file system, with temporary file systems on /run, /tmp and \
         /var/tmp."
    ),
    key!(
        "crio.runtime",
        "log_level",
        Level,
        runtime.log_level,
        "From which severity on is logged: fatal, panic, error, warn, info, debug or trace."
    )
    .alias("l")
    .reload(),
    key!(
        "crio.runtime",
        "log_filter",
        Regex,
        runtime.log_filter,
        "Only messages that match this regular expression are logged."
    )
    .reload(),
    key!(
        "crio.runtime",
        "uid_mappings",
        IdMappings,
        runtime.uid_mappings,
        "User ids of the user namespace of every container, as container:host:size[,...]."
    )
    .deprecated("use user namespaces of Kubernetes (hostUsers: false)"),
    key!(
        "crio.runtime",
        "gid_mappings",
        IdMappings,
        runtime.gid_mappings,
        "Group ids of the user namespace of every container, as container:host:size[,...]."
    )
    .deprecated("use user namespaces of Kubernetes (hostUsers: false)"),
    key!(
        "crio.runtime",
        "minimum_mappable_uid",
        OptId,
        runtime.minimum_mappable_uid,
        "Lowest host user id that the user namespace of a sandbox may use. Negative for no such limit."
    )
    .deprecated("use user namespaces of Kubernetes (hostUsers: false)"),
    key!(
        "crio.runtime",
        "minimum_mappable_gid",
        OptId,
        runtime.minimum_mappable_gid,
        "Lowest host group id that the user namespace of a sandbox may use. Negative for no such limit."
    )
    .deprecated("use user namespaces of Kubernetes (hostUsers: false)"),
    key!(
        "crio.runtime",
        "ctr_stop_timeout",
        LenientSeconds,
        runtime.ctr_stop_timeout,
        "Seconds for which the end of a container is waited for, at least 30."
    )
    .env(&["CONTAINER_STOP_TIMEOUT"]),
    key!(
        "crio.runtime",
        "drop_infra_ctr",
        Bool,
        runtime.drop_infra_ctr,
        "Whether sandboxes do without an infra (pause) container unless they share a PID namespace."
    ),
    key!(
        "crio.runtime",
        "infra_ctr_cpuset",
        Cpus,
        runtime.infra_ctr_cpuset,
        "CPUs of infra containers and of the commands the daemon runs, for example 0-1,4. Empty for all."
    ),
    key!(
        "crio.runtime",
        "shared_cpuset",
        Cpus,
        runtime.shared_cpuset,
        "CPUs that containers with exclusive CPUs may ask to use in addition."
    ),
    key!(
        "crio.runtime",
        "namespaces_dir",
        Path,
        runtime.namespaces_dir,
        "Parent of the directories in which the namespaces of sandboxes are pinned."
    ),
    key!(
        "crio.runtime",
        "pinns_path",
        OptPath,
        runtime.pinns_path,
        "Accepted for files of other versions. This daemon pins namespaces without a program."
    ),
    key!(
        "crio.runtime",
        "enable_criu_support",
        Bool,
        runtime.enable_criu_support,
        "false is the same as container_level_enabled = \"none\" in [crio.checkpoint_restore]."
    )
    .deprecated("use container_level_enabled of [crio.checkpoint_restore]"),
    key!(
        "crio.runtime",
        "enable_pod_events",
        Bool,
        runtime.enable_pod_events,
        "Whether the kubelet is told of container events instead of having to ask."
    )
    .env(&["ENABLE_POD_EVENTS"]),
    key!(
        "crio.runtime",
        "default_runtime",
        Text,
        runtime.default_runtime,
        "Name of the handler for sandboxes without a runtime class. It must be one of the tables below."
    )
    .reload(),
    key!(
        "crio.runtime",
        "runtime_untrusted_workload",
        OptPath,
        runtime.runtime_untrusted_workload,
        "Runtime of pods that name no handler and are not trusted."
    )
    .no_flag()
    .no_env()
    .input_only()
    .deprecated("a runtime class"),
    key!(
        "crio.runtime",
        "default_workload_trust",
        Word<WorkloadTrust>,
        runtime.default_workload_trust,
        "Whether pods are trusted that the annotation io.kubernetes.cri-o.TrustedSandbox does not call untrusted; \
         privileged ones always are."
    )
    .no_flag()
    .no_env()
    .input_only()
    .deprecated("a runtime class"),
    key!(
        "crio.runtime",
        "absent_mount_sources_to_reject",
        Paths,
        runtime.absent_mount_sources_to_reject,
        "Host paths which are not created as directories when a container mounts them and they are absent: the \
         container fails instead."
    ),
    key!(
        "crio.runtime",
        "hostnetwork_disable_selinux",
        Bool,
        runtime.hostnetwork_disable_selinux,
        "Whether SELinux separation is off for sandboxes on the host's network."
    ),
    key!(
        "crio.runtime",
        "disable_hostport_mapping",
        Bool,
        runtime.disable_hostport_mapping,
        "Whether host ports of sandboxes are left to others, such as a CNI plugin."
    )
    .env(&["DISABLE_HOSTPORT_MAPPING"]),
    key!(
        "crio.runtime",
        "timezone",
        Timezone,
        runtime.timezone,
        "Time zone of containers: an IANA name, or Local for the host's. Empty leaves that to the image."
    )
    .alias("tz")
    .env(&["CONTAINER_TIME_ZONE"]),
];
