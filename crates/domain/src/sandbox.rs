//! A pod sandbox: what was asked for, and the states it passes through.
//!
//! ```text
//!            run                stop                remove
//!  (nothing) ----> Ready ----------------> NotReady -------> (nothing)
//!                    \__ infra ends, reboot __/
//! ```

use std::collections::BTreeMap;

use crate::resources::Resources;
use crate::security::{NamespaceMode, NamespaceOptions, SecurityProfile, SelinuxOptions, SupplementalGroupsPolicy};

/// Who a sandbox is to Kubernetes. Unique while the sandbox exists.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxMetadata {
    /// Pod name.
    pub name: String,
    /// Pod uid.
    pub uid: String,
    /// Pod namespace.
    pub namespace: String,
    /// Counts the sandboxes of one pod.
    pub attempt: u32,
}

/// What `resolv.conf` of the pod says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DnsConfig {
    /// `nameserver` lines.
    pub servers: Vec<String>,
    /// The `search` line.
    pub searches: Vec<String>,
    /// The `options` line.
    pub options: Vec<String>,
}

/// Transport of a mapped port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// One port of the node that leads into the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
    /// Port of the node.
    pub host_port: u16,
    /// Address of the node; empty means all.
    pub host_ip: String,
}

/// CRI `LinuxSandboxSecurityContext`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxSecurity {
    /// Namespaces of the pod.
    pub namespaces: NamespaceOptions,
    /// SELinux label parts.
    pub selinux: Option<SelinuxOptions>,
    /// User of the infra container.
    pub run_as_user: Option<i64>,
    /// Group of the infra container.
    pub run_as_group: Option<i64>,
    /// Further groups of the infra container.
    pub supplemental_groups: Vec<i64>,
    /// How they combine with the image's.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// Whether privileged containers may be created in it.
    pub privileged: bool,
    /// Seccomp of the infra container.
    pub seccomp: Option<SecurityProfile>,
    /// AppArmor of the infra container.
    pub apparmor: Option<SecurityProfile>,
}

impl SandboxSecurity {
    /// Whether the pod is privileged, or shares a namespace with the node, which counts as much. Source: CRI-O.
    #[must_use]
    pub fn is_privileged(&self) -> bool {
        let of_node = [self.namespaces.network, self.namespaces.pid, self.namespaces.ipc];
        self.privileged || of_node.contains(&NamespaceMode::Node)
    }
}

/// CRI `PodSandboxConfig`, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SandboxConfig {
    /// Identity to Kubernetes.
    pub metadata: SandboxMetadata,
    /// Hostname asked for; empty leaves the choice to the daemon.
    pub hostname: String,
    /// Absolute directory of the pod's logs; empty takes the configured default.
    pub log_directory: String,
    /// Absent: the node's own resolver configuration.
    pub dns: Option<DnsConfig>,
    /// Only those with a host port.
    pub port_mappings: Vec<PortMapping>,
    /// Labels, the `io.kubernetes.pod.*` ones included.
    pub labels: BTreeMap<String, String>,
    /// Annotations of the pod.
    pub annotations: BTreeMap<String, String>,
    /// Parent cgroup; empty takes the default.
    pub cgroup_parent: String,
    /// Confinement.
    pub security: SandboxSecurity,
    /// Sysctls of the pod's namespaces.
    pub sysctls: BTreeMap<String, String>,
    /// Overhead of the sandbox itself; only told to the runtime.
    pub overhead: Option<Resources>,
    /// Sum of the containers' resources; only told to the runtime.
    pub resources: Option<Resources>,
}

/// What the CRI reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SandboxState {
    /// Namespaces, network and infra are there.
    Ready,
    /// Stopped, or its namespaces or infra are gone.
    NotReady,
}
