//! What the assembly of a runtime spec needs to be told, because it cannot look itself.

use std::collections::BTreeMap;

use oci_spec::runtime::LinuxSeccomp;

use super::{CapabilitySet, CgroupManagerKind, Edits, ExecCpu, Inheritable, Tuning, Workload};
use crate::apparmor::ApparmorName;
use crate::container::{ContainerConfig, Propagation};
use crate::cpus::CpuSet;
use crate::id::{ContainerId, SandboxId};
use crate::id_maps::IdMaps;
use crate::image::ImageConfig;
use crate::sandbox::SandboxConfig;
use crate::security::IdMapping;
use crate::selinux::Label;
use crate::user::ResolvedUser;

/// Which cgroup hierarchy carries the controllers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupVersion {
    /// One hierarchy a controller (hybrid included).
    V1,
    /// The unified hierarchy.
    #[default]
    V2,
}

/// Facts of the machine, read once at start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NodeFacts {
    /// Hierarchy in use.
    pub cgroup_version: CgroupVersion,
    /// Capabilities a child of the daemon can have: `CapBnd` of `/proc/self/status`.
    pub bounding: CapabilitySet,
    /// Lowest value the daemon may write to `oom_score_adj`: −1000 with `CAP_SYS_RESOURCE`, else its own
    /// `oom_score_adj_min`, which is its own value.
    pub lowest_oom_score_adj: i32,
    /// Hugepage sizes in the CRI's spelling, as in `2MB`; empty without the hugetlb controller.
    pub hugepage_sizes: Vec<String>,
    /// `memory.memsw.limit_in_bytes` or `memory.swap.max` exists.
    pub has_swap_accounting: bool,
    /// The pids controller is there.
    pub has_pids_controller: bool,
    /// `/sys/fs/cgroup/systemd` is mounted (v1 and hybrid).
    pub has_systemd_hierarchy: bool,
    /// Existing `/sys/devices/system/cpu/cpu*/thermal_throttle` directories, which are masked with the rest.
    pub thermal_throttle_paths: Vec<String>,
    /// The threads of a CPU's core, itself included; CPUs that are not in here have a core each.
    pub thread_siblings: BTreeMap<u32, CpuSet>,
    /// Device nodes below `/dev` for privileged containers, without pts, shm, fd, mqueue and `.lxc`.
    pub host_devices: Vec<HostDevice>,
}

impl Default for NodeFacts {
    fn default() -> Self {
        Self {
            cgroup_version: CgroupVersion::V2,
            bounding: CapabilitySet::ALL,
            lowest_oom_score_adj: -1000,
            hugepage_sizes: vec![],
            has_swap_accounting: true,
            has_pids_controller: true,
            has_systemd_hierarchy: false,
            thermal_throttle_paths: vec![],
            thread_siblings: BTreeMap::new(),
            host_devices: vec![],
        }
    }
}

/// Character or block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceKind {
    /// Character device.
    Char,
    /// Block device.
    Block,
}

/// A device node, resolved on the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Absolute path in the container.
    pub path: String,
    /// Kind.
    pub kind: DeviceKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits, `0o7777` at most.
    pub mode: u32,
    /// Owner on the node.
    pub uid: u32,
    /// Group on the node.
    pub gid: u32,
}

/// A device of the request or configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ResolvedDevice {
    /// The node.
    pub node: HostDevice,
    /// Subset of `rwm`; empty means all three.
    pub permissions: String,
}

/// What a runtime handler can do and wants.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HandlerFacts {
    /// The runtime knows the mount option `rro`.
    pub has_recursive_read_only: bool,
    /// The runtime knows id-mapped mounts.
    pub has_id_mapped_mounts: bool,
    /// Least memory limit a container may have; 0 is none.
    pub container_min_memory_bytes: i64,
    /// `privileged_without_host_devices`.
    pub has_no_host_devices_when_privileged: bool,
}

/// One `default_ulimits` entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    /// As in `nofile` or `RLIMIT_NOFILE`, any case.
    pub name: String,
    /// Soft limit.
    pub soft: u64,
    /// Hard limit.
    pub hard: u64,
}

/// What the configuration adds to every container.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SpecDefaults {
    /// `default_env`, `K=V` each.
    pub env: Vec<String>,
    /// `default_capabilities`.
    pub capabilities: Vec<String>,
    /// `add_inheritable_capabilities`.
    pub inheritable: Inheritable,
    /// `default_ulimits`.
    pub ulimits: Vec<Ulimit>,
    /// `pids_limit`; 0 and below leave the limit out.
    pub pids_limit: i64,
    /// `read_only`: every root file system is read-only, with writable `/run`, `/tmp` and `/var/tmp`.
    pub is_read_only: bool,
    /// `additional_devices`, resolved.
    pub devices: Vec<ResolvedDevice>,
    /// `device_ownership_from_security_context`.
    pub is_device_owner_from_security_context: bool,
    /// `hostnetwork_disable_selinux`.
    pub is_selinux_off_for_host_network: bool,
}

/// How writable a mount is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum MountAccess {
    /// `rw`.
    #[default]
    ReadWrite,
    /// `ro`.
    ReadOnly,
    /// `rro`.
    RecursiveReadOnly,
}

/// How a mount of the request is made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum MountKind {
    /// The source appears as it is.
    #[default]
    Bind,
    /// A read-only overlay of the source, a mounted image, on an empty directory: the kernel wants two.
    Image {
        /// The empty directory.
        below: String,
    },
}

/// A bind mount of the request, an image volume or a secret, with both ends resolved.
///
/// Made by [`super::resolve_mount`] for mounts of the request, by the caller for its own.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedMount {
    /// Absolute path in the container.
    pub destination: String,
    /// Absolute path on the node, symbolic links resolved.
    pub source: String,
    /// How it is made.
    pub kind: MountKind,
    /// Writable or not.
    pub access: MountAccess,
    /// Propagation.
    pub propagation: Propagation,
    /// User id mappings of the mount.
    pub uid_mappings: Vec<IdMapping>,
    /// Group id mappings of the mount.
    pub gid_mappings: Vec<IdMapping>,
}

/// Pinned namespaces of the pod; absent where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespacePaths {
    /// Network namespace.
    pub network: Option<String>,
    /// IPC namespace.
    pub ipc: Option<String>,
    /// UTS namespace.
    pub uts: Option<String>,
    /// User namespace; the others belong to it then.
    pub user: Option<String>,
    /// The infra container's process namespace, as `/proc/<pid>/ns/pid` or its pin.
    pub pid: Option<String>,
    /// The target container's process namespace, when the request names one.
    pub target_pid: Option<String>,
}

/// Files and directories of the daemon that are bound into the container; absent ones are not.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GeneratedFiles {
    /// `resolv.conf` of the sandbox.
    pub resolv_conf: Option<String>,
    /// `hostname` of the sandbox.
    pub hostname: Option<String>,
    /// The empty `.containerenv` of the sandbox.
    pub containerenv: Option<String>,
    /// `shm` of the sandbox, or the node's `/dev/shm` for host IPC.
    pub shm: Option<String>,
    /// passwd with the line of the run-as user added.
    pub passwd: Option<String>,
    /// group with the line of the run-as group added.
    pub group: Option<String>,
    /// A copy of a time zone file.
    pub localtime: Option<String>,
}

/// SELinux labels of sandbox or container, known to the kernel; none where SELinux is off.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SelinuxLabels {
    /// Of the process.
    pub process: Option<Label>,
    /// Of the mounts.
    pub mount: Option<Label>,
}

/// Where the cgroup goes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CgroupPlacement {
    /// Configured manager.
    pub manager: CgroupManagerKind,
    /// The pod's `cgroup_parent`; empty takes the manager's default.
    pub parent: String,
}

/// What decides about a container's CPUs beside its request.
#[derive(Debug, Clone, Copy, Default)]
pub struct CpuInputs<'a> {
    /// The workload of its pod.
    pub workload: Option<&'a Workload>,
    /// What its pod's annotations ask for; without effect for containers that have no whole CPUs.
    pub tuning: Option<&'a Tuning>,
    /// `shared_cpuset`; empty for none.
    pub shared: &'a str,
    /// `exec_cpu_affinity` of the handler.
    pub exec: ExecCpu,
    /// `min_injected_gomaxprocs`; 0 injects none.
    pub gomaxprocs_floor: u64,
}

/// Everything [`super::container_spec`] is made from.
#[derive(Debug, Clone)]
pub struct ContainerInputs<'a> {
    /// The container's id.
    pub id: &'a ContainerId,
    /// What was asked.
    pub config: &'a ContainerConfig,
    /// What was asked of its sandbox.
    pub sandbox: &'a SandboxConfig,
    /// Its image.
    pub image: &'a ImageConfig,
    /// Its user.
    pub user: &'a ResolvedUser,
    /// The machine.
    pub node: &'a NodeFacts,
    /// The configuration.
    pub defaults: &'a SpecDefaults,
    /// The runtime handler.
    pub handler: &'a HandlerFacts,
    /// The sandbox's hostname as decided by the daemon.
    pub hostname: &'a str,
    /// Its cgroup.
    pub cgroup: &'a CgroupPlacement,
    /// The pod's namespaces.
    pub namespaces: &'a NamespacePaths,
    /// Ids of the pod's user namespace.
    pub id_maps: Option<&'a IdMaps>,
    /// Files of the daemon.
    pub files: &'a GeneratedFiles,
    /// Where the root file system is mounted.
    pub rootfs: &'a str,
    /// Mounts of the request, resolved, in the order of the request.
    pub mounts: &'a [ResolvedMount],
    /// Mounts that follow them: image volumes, then secrets.
    pub further_mounts: &'a [ResolvedMount],
    /// Devices of the request and of `devices.crio.io`, resolved.
    pub devices: &'a [ResolvedDevice],
    /// What CDI devices and OCI hooks add to everything else.
    pub edits: &'a Edits,
    /// Pod annotations that change the spec and are allowed for the handler (section 10 of the reference: `umask`,
    /// `cgroup2-mount-hierarchy-rw`, `unified-cgroup`), by their new names.
    pub pod_annotations: &'a BTreeMap<String, String>,
    /// CPUs.
    pub cpus: CpuInputs<'a>,
    /// The filter that the request's choice comes down to; absent for none.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// The profile that the request's choice comes down to, known to be loaded; absent for none.
    pub apparmor: Option<&'a ApparmorName>,
    /// SELinux labels; ignored for privileged containers and host namespaces.
    pub selinux: &'a SelinuxLabels,
    /// Annotations to write, see [`super::annotations`].
    pub annotations: BTreeMap<String, String>,
}

/// Everything [`super::infra_spec`] is made from.
#[derive(Debug, Clone)]
pub struct InfraInputs<'a> {
    /// The sandbox's id.
    pub id: &'a SandboxId,
    /// What was asked.
    pub config: &'a SandboxConfig,
    /// The pause image; its defaults when a built-in pause binary is used.
    pub image: &'a ImageConfig,
    /// `pause_command`; empty takes the image's.
    pub pause_command: &'a [String],
    /// Its user.
    pub user: &'a ResolvedUser,
    /// The machine.
    pub node: &'a NodeFacts,
    /// The configuration.
    pub defaults: &'a SpecDefaults,
    /// The sandbox's hostname as decided by the daemon.
    pub hostname: &'a str,
    /// Its cgroup.
    pub cgroup: &'a CgroupPlacement,
    /// `infra_ctr_cpuset`; empty for none.
    pub cpuset: &'a str,
    /// The pod's namespaces.
    pub namespaces: &'a NamespacePaths,
    /// Ids of the pod's user namespace.
    pub id_maps: Option<&'a IdMaps>,
    /// Files of the daemon.
    pub files: &'a GeneratedFiles,
    /// Where the root file system is mounted.
    pub rootfs: &'a str,
    /// The sandbox is privileged in the sense of the CRI, or uses a host namespace.
    pub is_privileged: bool,
    /// The filter that the request's choice comes down to; absent for none.
    pub seccomp: Option<&'a LinuxSeccomp>,
    /// The profile that the request's choice comes down to, known to be loaded; absent for none.
    pub apparmor: Option<&'a ApparmorName>,
    /// SELinux labels.
    pub selinux: &'a SelinuxLabels,
    /// Annotations to write, see [`super::annotations`].
    pub annotations: BTreeMap<String, String>,
}
