//! Confinement as the CRI asks for it, shared by sandboxes and containers.

use std::fmt;

/// Where a namespace of a container comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NamespaceMode {
    /// The pod's.
    #[default]
    Pod,
    /// The container's own.
    Container,
    /// The host's.
    Node,
    /// Another container's.
    Target,
}

/// One range of an id mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id on the host.
    pub host_id: u32,
    /// First id in the container.
    pub container_id: u32,
    /// Number of ids.
    pub length: u32,
}

impl fmt::Display for IdMapping {
    /// `container:host:length`, as the annotation and the configuration have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.container_id, self.host_id, self.length)
    }
}

/// The pod's user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UserNamespace {
    /// `Node` (none) or `Pod`.
    pub mode: NamespaceMode,
    /// User id mappings.
    pub uids: Vec<IdMapping>,
    /// Group id mappings.
    pub gids: Vec<IdMapping>,
}

/// CRI `NamespaceOption`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct NamespaceOptions {
    /// `Pod` or `Node`.
    pub network: NamespaceMode,
    /// Any mode.
    pub pid: NamespaceMode,
    /// `Pod` or `Node`.
    pub ipc: NamespaceMode,
    /// The container whose process namespace is joined when `pid` is `Target`.
    pub target_id: String,
    /// Present when the request had it.
    pub user: Option<UserNamespace>,
}

/// A seccomp or AppArmor choice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecurityProfile {
    /// The runtime's own default.
    RuntimeDefault,
    /// None at all.
    Unconfined,
    /// A profile of the node: a path for seccomp, a name for AppArmor.
    Localhost(String),
}

impl fmt::Display for SecurityProfile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RuntimeDefault => f.write_str("RuntimeDefault"),
            Self::Unconfined => f.write_str("Unconfined"),
            Self::Localhost(reference) => write!(f, "Localhost {reference:?}"),
        }
    }
}

/// SELinux label parts; empty ones are not given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct SelinuxOptions {
    /// User part.
    pub user: String,
    /// Role part.
    pub role: String,
    /// Type part.
    pub kind: String,
    /// Level part.
    pub level: String,
}

/// How supplemental groups of image and request combine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SupplementalGroupsPolicy {
    /// Groups of the image's user and of the request.
    #[default]
    Merge,
    /// Only those of the request.
    Strict,
}

/// Capabilities to add and drop, names with or without `CAP_`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// Names to add; `ALL` is one.
    pub add: Vec<String>,
    /// Names to drop; `ALL` is one.
    pub drop: Vec<String>,
    /// Names asked as ambient.
    pub add_ambient: Vec<String>,
}
