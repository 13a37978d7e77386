//! What config.json remembers of the request, in annotations: how CRI-O writes it, so that a node changes hands in
//! either direction with its pods running.
//!
//! Every JSON text has the exact names, order and omissions of CRI-O 1.37 (docs/formats names each key). Annotations of
//! the pod and the container come as plain keys too, except those that would pass for one of ours.
//! Begin reading at [`SandboxFacts`] and [`ContainerFacts`], which both directions share.

mod allowed;
mod go_json;
mod parse;
mod rfc3339;
mod seccomp_profile;

use std::collections::BTreeMap;

pub use allowed::{FilteredAnnotations, filter_annotations};
pub use parse::{AnnotationError, fuzz_annotations, parse_container_annotations, parse_sandbox_annotations};
pub use seccomp_profile::seccomp_artifact;

use super::CgroupManagerKind;
use crate::container::{ContainerMetadata, Mount};
use crate::id::{ContainerId, ImageId, SandboxId};
use crate::resources::Resources;
use crate::sandbox::{PortMapping, SandboxConfig, SandboxMetadata, SandboxSecurity};
use crate::security::NamespaceOptions;
use crate::time::Timestamp;

macro_rules! keys {
    ($($(#[$doc:meta])* $name:ident = $key:literal;)*) => {
        $($(#[$doc])* pub const $name: &str = $key;)*
        /// Keys only this daemon writes; the same key of a pod or container is left out.
        const RESERVED: &[&str] = &[$($name),*];
    };
}

keys! {
    /// Annotations of the pod or container, JSON.
    ANNOTATIONS = "io.kubernetes.cri-o.Annotations";
    /// Result of the CNI plugins, JSON.
    CNI_RESULT = "io.kubernetes.cri-o.CNIResult";
    /// Parent cgroup.
    CGROUP_PARENT = "io.kubernetes.cri-o.CgroupParent";
    /// Id of the container.
    CONTAINER_ID = "io.kubernetes.cri-o.ContainerID";
    /// Reserved name of the infra container.
    CONTAINER_NAME = "io.kubernetes.cri-o.ContainerName";
    /// `sandbox` or `container`.
    CONTAINER_TYPE = "io.kubernetes.cri-o.ContainerType";
    /// RFC 3339 with nanoseconds.
    CREATED = "io.kubernetes.cri-o.Created";
    /// Hostname of the sandbox.
    HOST_NAME = "io.kubernetes.cri-o.HostName";
    /// `true` or `false`.
    HOST_NETWORK = "io.kubernetes.cri-o.HostNetwork";
    /// The file bound on `/etc/hostname`.
    HOSTNAME_PATH = "io.kubernetes.cri-o.HostnamePath";
    /// Name the user asked for.
    IMAGE = "io.kubernetes.cri-o.Image";
    /// Some name of the image.
    IMAGE_NAME = "io.kubernetes.cri-o.ImageName";
    /// Id of the image.
    IMAGE_REF = "io.kubernetes.cri-o.ImageRef";
    /// Digests, joined by commas.
    IMAGE_REPO_DIGESTS = "io.kubernetes.cri-o.ImageRepoDigests";
    /// Pod name.
    KUBE_NAME = "io.kubernetes.cri-o.KubeName";
    /// Labels, JSON.
    LABELS = "io.kubernetes.cri-o.Labels";
    /// Log file; of a sandbox the file the infra container would have.
    LOG_PATH = "io.kubernetes.cri-o.LogPath";
    /// CRI metadata, JSON.
    METADATA = "io.kubernetes.cri-o.Metadata";
    /// Where the root file system is mounted.
    MOUNT_POINT = "io.kubernetes.cri-o.MountPoint";
    /// Reserved name.
    NAME = "io.kubernetes.cri-o.Name";
    /// Pod namespace.
    NAMESPACE = "io.kubernetes.cri-o.Namespace";
    /// CRI namespace options, JSON.
    NAMESPACE_OPTIONS = "io.kubernetes.cri-o.NamespaceOptions";
    /// Host ports, JSON.
    PORT_MAPPINGS = "io.kubernetes.cri-o.PortMappings";
    /// `true` or `false`.
    PRIVILEGED_RUNTIME = "io.kubernetes.cri-o.PrivilegedRuntime";
    /// The file bound on `/etc/resolv.conf`.
    RESOLV_PATH = "io.kubernetes.cri-o.ResolvPath";
    /// Name of the runtime handler; empty for the default.
    RUNTIME_HANDLER = "io.kubernetes.cri-o.RuntimeHandler";
    /// Id of the sandbox.
    SANDBOX_ID = "io.kubernetes.cri-o.SandboxID";
    /// Reserved name of the sandbox.
    SANDBOX_NAME = "io.kubernetes.cri-o.SandboxName";
    /// `Unconfined`, `RuntimeDefault` or a path.
    SECCOMP_PROFILE_PATH = "io.kubernetes.cri-o.SeccompProfilePath";
    /// The directory bound on `/dev/shm`.
    SHM_PATH = "io.kubernetes.cri-o.ShmPath";
    /// `true` or `false`.
    STDIN = "io.kubernetes.cri-o.Stdin";
    /// `true` or `false`.
    STDIN_ONCE = "io.kubernetes.cri-o.StdinOnce";
    /// `true` or `false`.
    TTY = "io.kubernetes.cri-o.TTY";
    /// Mounts of the request, JSON.
    VOLUMES = "io.kubernetes.cri-o.Volumes";
    /// Always [`MANAGER`].
    CONTAINER_MANAGER = "io.container.manager";
    /// `true` when a sandbox has no infra process.
    SPOOFED = "spoofed.crio.io";
    /// As older versions wrote [`SPOOFED`].
    SPOOFED_OLD = "io.kubernetes.cri-o.Spoofed";
    /// Overhead of the sandbox, JSON.
    POD_LINUX_OVERHEAD = "pod-linux-overhead.crio.io";
    /// As older versions wrote [`POD_LINUX_OVERHEAD`].
    POD_LINUX_OVERHEAD_OLD = "io.kubernetes.cri-o.PodLinuxOverhead";
    /// Sum of the containers' resources, JSON.
    POD_LINUX_RESOURCES = "pod-linux-resources.crio.io";
    /// As older versions wrote [`POD_LINUX_RESOURCES`].
    POD_LINUX_RESOURCES_OLD = "io.kubernetes.cri-o.PodLinuxResources";
    /// The runtime chosen by the image's platform; empty for the handler's.
    PLATFORM_RUNTIME_PATH = "platform-runtime-path.crio.io";
    /// As older versions wrote [`PLATFORM_RUNTIME_PATH`].
    PLATFORM_RUNTIME_PATH_OLD = "io.kubernetes.cri-o.PlatformRuntimePath";
    /// Signal to stop with. Source: OCI image specification, conversion to a runtime spec.
    STOP_SIGNAL = "org.opencontainers.image.stopSignal";
}

/// Prefix of the addresses: `io.kubernetes.cri-o.IP.0` and on.
pub const IP: &str = "io.kubernetes.cri-o.IP";
/// Value of [`CONTAINER_MANAGER`]: records of other managers are not ours to touch.
pub const MANAGER: &str = "cri-o";
/// Value of [`CONTAINER_TYPE`] for sandboxes.
pub const TYPE_SANDBOX: &str = "sandbox";
/// Value of [`CONTAINER_TYPE`] for containers.
pub const TYPE_CONTAINER: &str = "container";

/// The pod's grace period in seconds, which the kubelet puts on containers.
const GRACE_PERIOD: &str = "io.kubernetes.pod.terminationGracePeriod";
/// Marks a pod whose container's system calls are to be traced; with `/<container>` only that one.
const TRACE_SYSCALL: &str = "io.containers.trace-syscall";
/// Most addresses read back: a pod has one of each family, plugins may add some.
const IPS_MAX: usize = 64;

/// What the annotations of a sandbox say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxFacts {
    /// Id; also of the infra container.
    pub id: SandboxId,
    /// Reserved name.
    pub name: String,
    /// Reserved name of the infra container.
    pub infra_name: String,
    /// Identity to Kubernetes.
    pub metadata: SandboxMetadata,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod, with the handler's defaults, filtered.
    pub annotations: BTreeMap<String, String>,
    /// When it was created.
    pub created: Timestamp,
    /// `<log directory>/<id>.log`.
    pub log_path: String,
    /// Hostname.
    pub hostname: String,
    /// The file bound on `/etc/hostname`; empty when there is none.
    pub hostname_path: String,
    /// The file bound on `/etc/resolv.conf`; empty when there is none.
    pub resolv_path: String,
    /// The directory bound on `/dev/shm`.
    pub shm_path: String,
    /// Namespaces as asked.
    pub namespaces: NamespaceOptions,
    /// It uses the host's network namespace.
    pub is_host_network: bool,
    /// Privileged containers may be in it.
    pub is_privileged: bool,
    /// Runtime handler; empty for the default.
    pub runtime_handler: String,
    /// Parent cgroup; empty for the default.
    pub cgroup_parent: String,
    /// Host ports.
    pub port_mappings: Vec<PortMapping>,
    /// Result of the CNI plugins, the JSON text as it came; absent for host network.
    pub cni_result: Option<String>,
    /// Addresses.
    pub ips: Vec<String>,
    /// Image of the infra container.
    pub image: String,
    /// Where its root file system is mounted; empty when it has none.
    pub mount_point: String,
    /// `Unconfined`, `RuntimeDefault` or a path.
    pub seccomp_profile: String,
    /// Stop signal of the infra image.
    pub stop_signal: Option<String>,
    /// There is no infra process.
    pub is_spoofed: bool,
    /// Overhead, as asked.
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources, as asked.
    pub resources: Option<Resources>,
}

impl SandboxFacts {
    /// The parts of the request that are remembered. DNS, sysctls, SELinux and users are not: they have had their effect.
    #[must_use]
    pub fn config(&self) -> SandboxConfig {
        let log_directory = self.log_path.rsplit_once('/').map_or("", |(directory, _)| directory);
        SandboxConfig {
            metadata: self.metadata.clone(),
            hostname: self.hostname.clone(),
            log_directory: log_directory.to_owned(),
            port_mappings: self.port_mappings.clone(),
            labels: self.labels.clone(),
            annotations: self.annotations.clone(),
            cgroup_parent: self.cgroup_parent.clone(),
            security: SandboxSecurity {
                namespaces: self.namespaces.clone(),
                privileged: self.is_privileged,
                ..SandboxSecurity::default()
            },
            overhead: self.overhead.clone(),
            resources: self.resources.clone(),
            ..SandboxConfig::default()
        }
    }
}

/// What the annotations of a container say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerFacts {
    /// Id.
    pub id: ContainerId,
    /// Reserved name.
    pub name: String,
    /// Its sandbox.
    pub sandbox_id: SandboxId,
    /// Reserved name of its sandbox.
    pub sandbox_name: String,
    /// Identity within the sandbox.
    pub metadata: ContainerMetadata,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the container.
    pub annotations: BTreeMap<String, String>,
    /// When it was created.
    pub created: Timestamp,
    /// Absolute path of the log file.
    pub log_path: String,
    /// Name the user asked for.
    pub image: String,
    /// Some name of the image; empty when it has none.
    pub image_name: String,
    /// Id of the image; absent in records older than 1.28.
    pub image_id: Option<ImageId>,
    /// `repository@digest` each.
    pub repo_digests: Vec<String>,
    /// A terminal.
    pub has_tty: bool,
    /// Standard input is open.
    pub has_stdin: bool,
    /// Standard input is closed after the first client.
    pub is_stdin_once: bool,
    /// The file bound on `/etc/resolv.conf`; empty when there is none.
    pub resolv_path: String,
    /// Where its root file system is mounted.
    pub mount_point: String,
    /// `Unconfined`, `RuntimeDefault` or a path.
    pub seccomp_profile: String,
    /// Addresses of its sandbox.
    pub ips: Vec<String>,
    /// Mounts of the request, with resolved host paths.
    pub volumes: Vec<Mount>,
    /// Stop signal, name or number.
    pub stop_signal: Option<String>,
    /// The runtime chosen by the image's platform; empty for the handler's.
    pub platform_runtime_path: String,
}

/// Whether a key would pass for one this daemon writes.
fn is_reserved(key: &str) -> bool {
    RESERVED.contains(&key) || key.strip_prefix(IP).is_some_and(|rest| rest.starts_with('.'))
}

#[derive(Default)]
struct Writer(BTreeMap<String, String>);

impl Writer {
    fn put(&mut self, key: &str, value: impl Into<String>) {
        self.0.insert(key.to_owned(), value.into());
    }

    fn put_bool(&mut self, key: &str, value: bool) {
        self.put(key, if value { "true" } else { "false" });
    }

    fn put_json<T: serde::Serialize>(&mut self, key: &str, value: &T) {
        self.put(key, go_json::to_string(value));
    }

    fn put_foreign(&mut self, from: &BTreeMap<String, String>) {
        let foreign = from.iter().filter(|(key, _)| !is_reserved(key));
        self.0.extend(foreign.map(|(key, value)| (key.clone(), value.clone())));
    }

    fn put_ips(&mut self, ips: &[String]) {
        for (at, ip) in ips.iter().enumerate() {
            self.put(&format!("{IP}.{at}"), ip);
        }
    }
}

/// The annotations of a sandbox's config.json.
#[must_use]
pub fn sandbox_annotations(facts: &SandboxFacts) -> BTreeMap<String, String> {
    let mut out = Writer::default();
    out.put_foreign(&facts.annotations);
    out.put_foreign(&facts.labels);
    out.put_json(METADATA, &go_json::GoSandboxMetadata::from(&facts.metadata));
    out.put_json(LABELS, &facts.labels);
    out.put_json(ANNOTATIONS, &facts.annotations);
    out.put(LOG_PATH, &facts.log_path);
    out.put(NAME, &facts.name);
    out.put(SANDBOX_NAME, &facts.name);
    out.put(NAMESPACE, &facts.metadata.namespace);
    out.put(CONTAINER_TYPE, TYPE_SANDBOX);
    out.put(SANDBOX_ID, facts.id.as_str());
    out.put(IMAGE, &facts.image);
    out.put(IMAGE_NAME, &facts.image);
    out.put(CONTAINER_NAME, &facts.infra_name);
    out.put(CONTAINER_ID, facts.id.as_str());
    out.put(SHM_PATH, &facts.shm_path);
    out.put_bool(PRIVILEGED_RUNTIME, facts.is_privileged);
    out.put(RUNTIME_HANDLER, &facts.runtime_handler);
    out.put(RESOLV_PATH, &facts.resolv_path);
    out.put(HOST_NAME, &facts.hostname);
    out.put(HOSTNAME_PATH, &facts.hostname_path);
    out.put_json(NAMESPACE_OPTIONS, &go_json::GoNamespaceOptions::from(&facts.namespaces));
    out.put(KUBE_NAME, &facts.metadata.name);
    out.put_bool(HOST_NETWORK, facts.is_host_network);
    out.put(CONTAINER_MANAGER, MANAGER);
    if let Some(signal) = &facts.stop_signal {
        out.put(STOP_SIGNAL, signal);
    }
    out.put(CREATED, rfc3339::format(facts.created));
    let ports: Vec<_> = facts.port_mappings.iter().map(go_json::GoPortMapping::from).collect();
    out.put_json(PORT_MAPPINGS, &ports);
    out.put(CGROUP_PARENT, &facts.cgroup_parent);
    out.put_json(POD_LINUX_OVERHEAD, &facts.overhead.as_ref().map(go_json::GoResources::from));
    out.put_json(POD_LINUX_RESOURCES, &facts.resources.as_ref().map(go_json::GoResources::from));
    if let Some(result) = &facts.cni_result {
        out.put(CNI_RESULT, result);
    }
    out.put(MOUNT_POINT, &facts.mount_point);
    out.put(SECCOMP_PROFILE_PATH, &facts.seccomp_profile);
    if facts.is_spoofed {
        out.put(SPOOFED, "true");
    }
    out.put_ips(&facts.ips);
    out.0
}

/// The annotations of a container's config.json.
///
/// `sandbox_annotations` are those of the pod, filtered with [`filter_annotations`], as are the container's own: what
/// is a property of a systemd unit to the runtime must not come from a pod's author unasked (CVE-2024-3154).
#[must_use]
pub fn container_annotations(
    facts: &ContainerFacts,
    sandbox_annotations: &BTreeMap<String, String>,
    manager: CgroupManagerKind,
) -> BTreeMap<String, String> {
    let mut out = Writer::default();
    out.put_foreign(sandbox_annotations);
    let for_this = format!("{TRACE_SYSCALL}/{}", facts.metadata.name);
    let trace = out.0.remove(&for_this);
    out.put_foreign(&facts.annotations);
    out.put_foreign(&facts.labels);
    if let Some(trace) = trace {
        out.put(TRACE_SYSCALL, trace);
    }
    out.put(IMAGE, &facts.image);
    out.put(IMAGE_NAME, &facts.image_name);
    out.put(IMAGE_REF, facts.image_id.as_ref().map_or("", ImageId::as_str));
    if !facts.repo_digests.is_empty() {
        out.put(IMAGE_REPO_DIGESTS, facts.repo_digests.join(","));
    }
    out.put(NAME, &facts.name);
    out.put(CONTAINER_ID, facts.id.as_str());
    out.put(SANDBOX_ID, facts.sandbox_id.as_str());
    out.put(SANDBOX_NAME, &facts.sandbox_name);
    out.put(CONTAINER_TYPE, TYPE_CONTAINER);
    out.put(LOG_PATH, &facts.log_path);
    out.put_bool(TTY, facts.has_tty);
    out.put_bool(STDIN, facts.has_stdin);
    out.put_bool(STDIN_ONCE, facts.is_stdin_once);
    out.put(RESOLV_PATH, &facts.resolv_path);
    out.put(CONTAINER_MANAGER, MANAGER);
    out.put(MOUNT_POINT, &facts.mount_point);
    out.put(SECCOMP_PROFILE_PATH, &facts.seccomp_profile);
    out.put(CREATED, rfc3339::format(facts.created));
    out.put(PLATFORM_RUNTIME_PATH, &facts.platform_runtime_path);
    out.put_json(METADATA, &go_json::GoContainerMetadata::from(&facts.metadata));
    // A Go map that was never made is `null`, and the CRI's empty maps are such.
    out.put_json(LABELS, &Some(&facts.labels).filter(|map| !map.is_empty()));
    out.put_json(ANNOTATIONS, &Some(&facts.annotations).filter(|map| !map.is_empty()));
    let volumes: Vec<_> = facts.volumes.iter().map(go_json::GoVolume::from).collect();
    out.put_json(VOLUMES, &volumes);
    out.put_ips(&facts.ips);
    if manager == CgroupManagerKind::Systemd {
        let grace = facts.annotations.get(GRACE_PERIOD).and_then(|text| text.parse::<u32>().ok());
        if let Some(seconds) = grace {
            let micros = u64::from(seconds) * 1_000_000;
            out.put("org.systemd.property.TimeoutStopUSec", format!("uint64 {micros}"));
        }
        out.put("org.systemd.property.DefaultDependencies", "true");
        out.put("org.systemd.property.After", "['crio.service']");
    }
    if let Some(signal) = facts.stop_signal.as_deref().filter(|signal| !signal.is_empty()) {
        out.put(STOP_SIGNAL, signal);
    }
    out.0
}

#[cfg(test)]
mod tests;
