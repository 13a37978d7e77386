//! The runtime spec of a container, made of what was asked, what the image says and what the machine can do.
//!
//! Pure: what has to be looked up (mount sources, devices, users, labels, cgroup layout) comes resolved in
//! [`ContainerInputs`] and [`InfraInputs`]. What the machine cannot give is made smaller and reported as [`Clamp`]; what
//! this daemon does not do is refused as [`SpecError::Unsupported`], never left out in silence.
//! Source: OCI runtime specification; CRI; contents as CRI-O 1.37 writes them.
//! Begin reading at [`container_spec`].

pub mod annotations;
mod capabilities;
mod cgroup_path;
mod devices;
mod edits;
mod error;
mod inputs;
mod mounts;
mod process;
mod resources;
mod sysctl;
mod tuning;
mod unit_property;
mod userns;
mod workload;

use std::collections::BTreeMap;

use oci_spec::runtime::{Linux, LinuxNamespace, LinuxNamespaceType, LinuxResources, Process, Root, Spec};

pub use capabilities::{CapabilitySet, Inheritable, wanted as wanted_capabilities};
pub use cgroup_path::{CgroupManagerKind, CgroupParent, CgroupPathError, slice_path};
pub use edits::{BlockIo, DeviceValue, EditMount, EditNode, EditNodeKind, EditRdt, Edits, HookProgram, HookStage};
pub use error::{Clamp, SpecError};
pub use inputs::{
    CgroupPlacement, CgroupVersion, ContainerInputs, CpuInputs, DeviceKind, GeneratedFiles, HandlerFacts, HostDevice,
    InfraInputs, MountAccess, MountKind, NamespacePaths, NodeFacts, ResolvedDevice, ResolvedMount, SelinuxLabels,
    SpecDefaults, Ulimit,
};
pub use mounts::{resolve_image_mount, resolve_mount};
pub use process::{args as process_args, cwd as process_cwd, is_systemd};
pub use resources::fuzz_unified;
pub use sysctl::{CheckedSysctls, SkipReason, SkippedSysctl, Sysctl, SysctlNamespace, check_sysctls};
pub use tuning::{ExecCpu, Interrupts, SHARED_ENV, Tuning, has_whole_cpus};
pub use unit_property::{check_unit_properties, fuzz_unit_property};
pub use workload::{Workload, WorkloadResources, fuzz_override};

use self::userns::UsernsMounts;
use crate::image::ImageConfig;
use crate::resources::Resources;
use crate::security::{NamespaceMode, NamespaceOptions};

/// The version every runtime in the field takes; Debian's crun 1.8.1 refuses 1.1 and later.
const OCI_VERSION: &str = "1.0.2";
/// The first version with id-mapped mounts, which such a runtime cannot do anyway.
const OCI_VERSION_ID_MAPPED: &str = "1.1.0";
/// The infra container is the last to be killed for want of memory. Source: CRI-O, as the kubelet's for Guaranteed pods.
const INFRA_OOM_SCORE_ADJ: i64 = -998;
/// The least the kernel takes.
const INFRA_CPU_SHARES: i64 = 2;

/// Hidden from every container that asks for any masking.
const MASKED: [&str; 13] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/sys/devices/virtual/powercap",
    "/sys/firmware",
    "/sys/fs/selinux",
];
/// Read-only in the infra container; containers get what the kubelet sends.
const READONLY: [&str; 6] = ["/proc/asound", "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A spec, and what was made smaller than asked.
#[derive(Debug, Clone)]
pub struct Assembled {
    /// The spec.
    pub spec: Spec,
    /// In the order found.
    pub clamped: Vec<Clamp>,
}

impl Assembled {
    /// `config.json`, the same bytes for the same spec: maps and capability sets are sorted.
    pub fn to_json(&self) -> Result<Vec<u8>, serde_json::Error> {
        spec_to_json(&self.spec)
    }
}

/// Serialises a spec with maps and capability sets sorted, so that equal specs are equal files.
pub fn spec_to_json(spec: &Spec) -> Result<Vec<u8>, serde_json::Error> {
    let mut value = serde_json::to_value(spec)?;
    if let Some(sets) = value.pointer_mut("/process/capabilities").and_then(|sets| sets.as_object_mut()) {
        for list in sets.values_mut().filter_map(|set| set.as_array_mut()) {
            list.sort_by(|left, right| left.as_str().cmp(&right.as_str()));
        }
    }
    serde_json::to_vec(&value)
}

/// The pod annotations that change the spec, by their new names.
const UMASK: &str = "umask.crio.io";
const CGROUP_WRITABLE: &str = "cgroup2-mount-hierarchy-rw.crio.io";
const UNIFIED: &str = "unified-cgroup.crio.io";

fn namespace(kind: LinuxNamespaceType, path: Option<&str>) -> LinuxNamespace {
    let mut namespace = LinuxNamespace::default();
    namespace.set_typ(kind);
    namespace.set_path(path.map(Into::into));
    namespace
}

fn pin<'a>(path: Option<&'a String>, kind: &'static str, of: &'static str) -> Result<Option<&'a str>, SpecError> {
    path.map(|path| Some(path.as_str())).ok_or(SpecError::NoNamespace { kind, of })
}

/// Namespaces of a container, and whether the hostname may be set (not in the host's UTS namespace).
///
/// Source: CRI `NamespaceOption`. Network and IPC know only `Pod` and `Node`; other modes count as `Pod`, as in CRI-O.
fn namespaces(
    options: &NamespaceOptions,
    paths: &NamespacePaths,
    has_cgroup_namespace: bool,
) -> Result<(Vec<LinuxNamespace>, bool), SpecError> {
    let mut list = vec![namespace(LinuxNamespaceType::Mount, None)];
    let is_host_network = options.network == NamespaceMode::Node;
    if !is_host_network {
        list.push(namespace(LinuxNamespaceType::Network, pin(paths.network.as_ref(), "network", "the pod")?));
    }
    if options.ipc != NamespaceMode::Node {
        list.push(namespace(LinuxNamespaceType::Ipc, pin(paths.ipc.as_ref(), "ipc", "the pod")?));
    }
    // A host-network pod may do without a UTS namespace of its own; its hostname is then the node's.
    let has_uts = paths.uts.is_some() || !is_host_network;
    if has_uts {
        list.push(namespace(LinuxNamespaceType::Uts, pin(paths.uts.as_ref(), "uts", "the pod")?));
    }
    match options.pid {
        NamespaceMode::Container => list.push(namespace(LinuxNamespaceType::Pid, None)),
        NamespaceMode::Pod => list.push(namespace(LinuxNamespaceType::Pid, pin(paths.pid.as_ref(), "pid", "the pod")?)),
        NamespaceMode::Target => {
            let path = pin(paths.target_pid.as_ref(), "pid", "the target container")?;
            list.push(namespace(LinuxNamespaceType::Pid, path));
        }
        NamespaceMode::Node => {}
    }
    if has_cgroup_namespace {
        list.push(namespace(LinuxNamespaceType::Cgroup, None));
    }
    if let Some(path) = userns::path(options, paths)? {
        list.push(namespace(LinuxNamespaceType::User, Some(path)));
    }
    Ok((list, has_uts))
}

/// The request's list with the defaults, sorted, each once; empty stays empty (`procMount: Unmasked`).
fn masked_paths(asked: &[String], node: &NodeFacts) -> Vec<String> {
    if asked.is_empty() {
        return vec![];
    }
    let defaults = MASKED.iter().map(|path| (*path).to_owned());
    let mut all: Vec<String> =
        defaults.chain(node.thermal_throttle_paths.iter().cloned()).chain(asked.iter().cloned()).collect();
    all.sort();
    all.dedup();
    all
}

fn capabilities(
    inputs: &ContainerInputs<'_>,
    clamped: &mut Vec<Clamp>,
) -> Result<(CapabilitySet, Inheritable, CapabilitySet), SpecError> {
    let security = &inputs.config.security;
    if security.privileged {
        let all = capabilities::granted(CapabilitySet::ALL, inputs.node.bounding, clamped);
        return Ok((all, Inheritable::SameAsOthers, all));
    }
    if !security.capabilities.add_ambient.is_empty() {
        clamped.push(Clamp::Ambient);
    }
    let wanted = wanted_capabilities(&security.capabilities, &inputs.defaults.capabilities)?;
    let granted = capabilities::granted(wanted, inputs.node.bounding, clamped);
    Ok((granted, inputs.defaults.inheritable, CapabilitySet::EMPTY))
}

/// The limits an update gives, for the runtime's `update`. What it does not give is left out.
///
/// Device rules and the number of processes are not among them. Source: CRI `UpdateContainerResources`.
pub fn updated_resources(
    given: &Resources,
    node: &NodeFacts,
    handler: &HandlerFacts,
) -> Result<LinuxResources, SpecError> {
    resources::resources(given, None, 0, node, handler, &mut vec![])
}

/// The runtime spec of a container.
///
/// Errors: everything in the request that cannot be honoured. Nothing is looked up and nothing is changed.
pub fn container_spec(inputs: ContainerInputs<'_>) -> Result<Assembled, SpecError> {
    let (config, node, defaults) = (inputs.config, inputs.node, inputs.defaults);
    let security = &config.security;
    let is_privileged = security.privileged;
    let mut clamped = vec![];

    let args = process_args(&config.command, &config.args, inputs.image)?;
    let is_systemd = is_systemd(&args);
    let (set, inheritable, ambient) = capabilities(&inputs, &mut clamped)?;
    let has_sys_admin = CapabilitySet::of_name("SYS_ADMIN").is_some_and(|one| !set.and(one).is_empty());
    if security.no_new_privs && (is_privileged || has_sys_admin) {
        clamped.push(Clamp::NoNewPrivsWithoutEffect);
    }
    let umask = inputs.pod_annotations.get(UMASK).map(|value| process::parse_umask(value)).transpose()?;

    let mut process = Process::default();
    process.set_terminal(Some(config.tty));
    process.set_user(process::user(inputs.user, umask));
    process.set_env(Some(process::env(inputs.hostname, &defaults.env, inputs.image, config, is_systemd)?));
    process.set_args(Some(args));
    process.set_cwd(process_cwd(config, inputs.image)?.into());
    process.set_capabilities(Some(capabilities::sets(set, inheritable, ambient)));
    process.set_rlimits(Some(process::rlimits(&defaults.ulimits)?));
    process.set_no_new_privileges(Some(security.no_new_privs));
    process.set_apparmor_profile(inputs.apparmor.map(ToString::to_string));
    process.set_oom_score_adj(Some(process::oom_score_adj(config.resources.oom_score_adj, node, &mut clamped)?));
    let is_host_network = security.namespaces.network == NamespaceMode::Node;
    let is_shared_with_host =
        security.namespaces.pid == NamespaceMode::Node || security.namespaces.ipc == NamespaceMode::Node;
    let is_label_off =
        is_privileged || is_shared_with_host || is_host_network && defaults.is_selinux_off_for_host_network;
    process.set_selinux_label(inputs.selinux.process.as_ref().filter(|_| !is_label_off).map(ToString::to_string));

    let is_readonly = security.readonly_rootfs || defaults.is_read_only;
    let plan = mounts::mounts(
        &mounts::MountInputs {
            request: inputs.mounts,
            further: inputs.further_mounts,
            files: inputs.files,
            cgroup_version: node.cgroup_version,
            has_systemd_hierarchy: node.has_systemd_hierarchy,
            is_privileged,
            is_systemd,
            is_host_network,
            is_read_only_by_config: defaults.is_read_only,
            is_rootfs_readonly: is_readonly,
            is_cgroup_writable: inputs.pod_annotations.get(CGROUP_WRITABLE).is_some_and(|value| value == "true"),
            userns: inputs.id_maps.map(|maps| UsernsMounts::new(maps, &security.namespaces)),
        },
        &mut clamped,
    )?;

    let unified = inputs.pod_annotations.get(&format!("{UNIFIED}/{}", config.metadata.name));
    let mut resources = resources::resources(
        &config.resources,
        unified.map(String::as_str),
        defaults.pids_limit,
        node,
        inputs.handler,
        &mut clamped,
    )?;
    cpus(&inputs, &mut resources, &mut process)?;
    let host_devices =
        (is_privileged && !inputs.handler.has_no_host_devices_when_privileged).then_some(node.host_devices.as_slice());
    let owner = if defaults.is_device_owner_from_security_context {
        devices::Owner {
            uid: security.run_as_user.map(|_| inputs.user.uid),
            gid: security.run_as_group.map(|_| inputs.user.gid),
        }
    } else {
        devices::Owner { uid: None, gid: None }
    };
    let (nodes, rules) = devices::devices(&defaults.devices, inputs.devices, host_devices, &owner)?;
    resources.set_devices(Some(rules));

    let has_cgroup_namespace = node.cgroup_version == CgroupVersion::V2 && !is_privileged;
    let (namespaces, has_uts) = namespaces(&security.namespaces, inputs.namespaces, has_cgroup_namespace)?;
    let mut masked = if is_privileged { vec![] } else { masked_paths(&security.masked_paths, node) };
    masked.extend(plan.masked);

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces));
    linux.set_devices(Some(nodes));
    linux.set_resources(Some(resources));
    linux.set_cgroups_path(Some(cgroups_path(inputs.cgroup, inputs.id.as_str())?.into()));
    linux.set_rootfs_propagation(plan.rootfs_propagation.map(str::to_owned));
    linux.set_masked_paths(Some(masked));
    linux.set_readonly_paths(Some(if is_privileged { vec![] } else { security.readonly_paths.clone() }));
    linux.set_seccomp(inputs.seccomp.cloned());
    if let Some(maps) = inputs.id_maps {
        userns::check_user(inputs.user, maps)?;
        userns::set_maps(&mut linux, maps);
    }
    let mount_label = inputs.selinux.mount.as_ref().filter(|_| !is_shared_with_host);
    linux.set_mount_label(mount_label.map(ToString::to_string));

    let version = if plan.has_id_mappings { OCI_VERSION_ID_MAPPED } else { OCI_VERSION };
    let hostname = has_uts.then_some(inputs.hostname);
    let mut spec = spec(version, process, inputs.rootfs, is_readonly, plan.mounts, hostname, linux, inputs.annotations);
    inputs.edits.apply(&mut spec)?;
    Ok(Assembled { spec, clamped })
}

/// The runtime spec of a sandbox's infra container.
///
/// It runs one program of ours or of the pause image, so it gets no capabilities at all.
/// Source: reference section 2; CRI `LinuxSandboxSecurityContext`.
pub fn infra_spec(inputs: InfraInputs<'_>) -> Result<Assembled, SpecError> {
    let (config, node) = (inputs.config, inputs.node);
    let security = &config.security;
    let options = &security.namespaces;
    let mut clamped = vec![];

    let args = process_args(inputs.pause_command, &[], inputs.image)?;
    let mut process = Process::default();
    process.set_terminal(Some(false));
    process.set_user(process::user(inputs.user, None));
    process.set_env(Some(process::infra_env(inputs.image)?));
    process.set_args(Some(args));
    process.set_cwd(infra_cwd(inputs.image)?.into());
    process.set_capabilities(Some(capabilities::sets(CapabilitySet::EMPTY, Inheritable::Empty, CapabilitySet::EMPTY)));
    process.set_rlimits(Some(process::rlimits(&inputs.defaults.ulimits)?));
    process.set_no_new_privileges(Some(true));
    process.set_apparmor_profile(inputs.apparmor.map(ToString::to_string));
    process.set_oom_score_adj(Some(process::oom_score_adj(INFRA_OOM_SCORE_ADJ, node, &mut clamped)?));
    let is_shared_with_host = options.pid == NamespaceMode::Node || options.ipc == NamespaceMode::Node;
    let is_host_network = options.network == NamespaceMode::Node;
    let selinux = Some(inputs.selinux).filter(|_| !is_shared_with_host);
    process.set_selinux_label(selinux.and_then(|labels| labels.process.as_ref()).map(ToString::to_string));

    // Its own process namespace is the one the containers of a `Pod` mode join.
    let own_pid = match options.pid {
        NamespaceMode::Node => NamespaceMode::Node,
        NamespaceMode::Pod | NamespaceMode::Container | NamespaceMode::Target => NamespaceMode::Container,
    };
    let asked = NamespaceOptions { pid: own_pid, ..options.clone() };
    let (namespaces, has_uts) = namespaces(&asked, inputs.namespaces, false)?;

    let asked =
        Resources { cpu_shares: INFRA_CPU_SHARES, cpuset_cpus: inputs.cpuset.to_owned(), ..Resources::default() };
    let handler = HandlerFacts::default();
    let mut resources: LinuxResources = resources::resources(&asked, None, 0, node, &handler, &mut clamped)?;
    resources.set_devices(Some(vec![devices::deny_all()]));

    let mut linux = Linux::default();
    linux.set_namespaces(Some(namespaces));
    linux.set_devices(None);
    linux.set_resources(Some(resources));
    linux.set_cgroups_path(Some(cgroups_path(inputs.cgroup, inputs.id.as_str())?.into()));
    let owned = |paths: &[&str]| paths.iter().map(|path| (*path).to_owned()).collect();
    linux.set_masked_paths(Some(if inputs.is_privileged { vec![] } else { owned(&MASKED) }));
    linux.set_readonly_paths(Some(if inputs.is_privileged { vec![] } else { owned(&READONLY) }));
    linux.set_seccomp(inputs.seccomp.cloned());
    if let Some(maps) = inputs.id_maps {
        userns::check_user(inputs.user, maps)?;
        userns::set_maps(&mut linux, maps);
    }
    linux.set_mount_label(selinux.and_then(|labels| labels.mount.as_ref()).map(ToString::to_string));

    let userns = inputs.id_maps.map(|maps| UsernsMounts::new(maps, options));
    let mounts = mounts::infra_mounts(inputs.files, is_host_network, userns.as_ref());
    let hostname = has_uts.then_some(inputs.hostname);
    let spec = spec(OCI_VERSION, process, inputs.rootfs, true, mounts, hostname, linux, inputs.annotations);
    Ok(Assembled { spec, clamped })
}

/// What workload, tuning and configuration make of a container's CPUs.
fn cpus(inputs: &ContainerInputs<'_>, resources: &mut LinuxResources, process: &mut Process) -> Result<(), SpecError> {
    let given = &inputs.cpus;
    let parent = &inputs.sandbox.cgroup_parent;
    if let Some(workload) = given.workload {
        workload.resources_of(&inputs.config.metadata.name, &inputs.sandbox.annotations)?.write_to(resources);
    }
    if let Some(tuning) = given.tuning.filter(|_| has_whole_cpus(parent, resources)) {
        tuning.write_to(resources, process, given.shared, given.exec, inputs.node)?;
    }
    tuning::inject_gomaxprocs(process, resources, parent, &inputs.sandbox.annotations, given.gomaxprocs_floor);
    Ok(())
}

fn infra_cwd(image: &ImageConfig) -> Result<String, SpecError> {
    process_cwd(&crate::container::ContainerConfig::default(), image)
}

fn cgroups_path(placement: &CgroupPlacement, id: &str) -> Result<String, SpecError> {
    Ok(CgroupParent::parse(placement.manager, &placement.parent)?.oci_path(id))
}

#[expect(clippy::too_many_arguments, reason = "the fields of one struct whose type is foreign")]
fn spec(
    version: &str,
    process: Process,
    rootfs: &str,
    is_readonly: bool,
    mounts: Vec<oci_spec::runtime::Mount>,
    hostname: Option<&str>,
    linux: Linux,
    annotations: BTreeMap<String, String>,
) -> Spec {
    let mut root = Root::default();
    root.set_path(rootfs.into());
    root.set_readonly(Some(is_readonly));
    let mut spec = Spec::default();
    spec.set_version(version.to_owned());
    spec.set_root(Some(root));
    spec.set_process(Some(process));
    spec.set_mounts(Some(mounts));
    spec.set_hostname(hostname.map(str::to_owned));
    spec.set_linux(Some(linux));
    spec.set_annotations(Some(annotations.into_iter().collect()));
    spec.set_uid_mappings(None);
    spec.set_gid_mappings(None);
    spec
}

#[cfg(test)]
mod tests;
