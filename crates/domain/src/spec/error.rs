//! Why a runtime spec cannot be made, and what was made smaller than asked.

use std::fmt;

use thiserror::Error;

use super::CapabilitySet;

/// Why a runtime spec cannot be assembled. Nothing has happened when it is returned.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SpecError {
    /// Valid, but this daemon does not do it.
    #[error("{what} is not supported")]
    Unsupported {
        /// The CRI field, and its value when that is what is not supported.
        what: String,
    },
    /// A privileged container would see another device of the host's under a name it has there.
    #[error("device {path:?} of a privileged container hides another device of the host")]
    DeviceHidesHost {
        /// Path in the container.
        path: String,
    },
    /// Neither request nor image says what to run.
    #[error("no command specified")]
    NoCommand,
    /// A text with a NUL byte, which no program can receive.
    #[error("{field} contains a NUL byte")]
    Nul {
        /// Which field.
        field: &'static str,
    },
    /// A variable whose name is empty, or that has no `=`.
    #[error("environment variable {name:?} of {origin} is not a name and a value")]
    BadEnv {
        /// Name as given.
        name: String,
        /// Where it came from.
        origin: &'static str,
    },
    /// HOME ends up in a passwd line.
    #[error("invalid HOME environment: a line break is not allowed")]
    HomeWithLineBreak,
    /// A capability nobody knows.
    #[error("unknown capability {name:?} in {list}")]
    UnknownCapability {
        /// The list it stands in.
        list: &'static str,
        /// As given.
        name: String,
    },
    /// Less memory than the runtime itself needs.
    #[error("set memory limit {limit} too low; should be at least {minimum} bytes")]
    MemoryTooLow {
        /// As given.
        limit: i64,
        /// Of the runtime handler.
        minimum: i64,
    },
    /// Memory and swap together cannot be less than memory.
    #[error("memory swap limit {swap} cannot be lower than memory limit {limit}")]
    SwapBelowMemory {
        /// `memory_swap_limit_in_bytes`.
        swap: i64,
        /// `memory_limit_in_bytes`.
        limit: i64,
    },
    /// A number that no kernel file takes.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// The CRI field.
        field: &'static str,
        /// As given.
        value: String,
    },
    /// A key or value that could reach another file or line than meant.
    #[error("unified resource {key:?} is not a cgroup file and its value")]
    BadUnified {
        /// The file name as given.
        key: String,
    },
    /// A list of CPUs or memory nodes.
    #[error("{field} {value:?} is not a list of numbers and ranges")]
    BadCpuList {
        /// The CRI field.
        field: &'static str,
        /// As given.
        value: String,
    },
    /// An annotation that takes effect and says nothing that is understood.
    #[error("annotation {key:?}: {reason}")]
    BadAnnotation {
        /// The annotation.
        key: String,
        /// What is wrong.
        reason: String,
    },
    /// `cpu-shared.crio.io`.
    #[error("shared CPUs are requested and cannot be given: {reason}")]
    SharedCpus {
        /// Why not.
        reason: &'static str,
    },
    /// `rlimit` names and values.
    #[error("ulimit {name:?} is not known")]
    UnknownUlimit {
        /// As given.
        name: String,
    },
    /// The umask annotation.
    #[error("umask {value:?} is not one to four octal digits")]
    BadUmask {
        /// As given.
        value: String,
    },
    /// A namespace was asked for that nobody made.
    #[error("the {kind} namespace of {of} is asked for, and there is none")]
    NoNamespace {
        /// `pid`, `network`, ...
        kind: &'static str,
        /// `the pod`, `the target container`.
        of: &'static str,
    },
    /// A process of a user namespace runs as one of its users.
    #[error("{kind} {id} is not mapped into the user namespace of the pod")]
    NotMapped {
        /// Of users or groups.
        kind: crate::id_maps::IdKind,
        /// The id.
        id: u32,
    },
    /// `recursive_read_only` without `readonly`.
    #[error("recursive read-only mount of {path:?} conflicts with a read-write mount")]
    RecursiveReadOnlyNeedsReadonly {
        /// Path in the container.
        path: String,
    },
    /// `recursive_read_only` with propagation.
    #[error("recursive read-only mount of {path:?} requires private propagation")]
    RecursiveReadOnlyNeedsPrivate {
        /// Path in the container.
        path: String,
    },
    /// An image is never written to; saying so is required.
    #[error("image mount on {path:?} must be read-only")]
    ImageNeedsReadonly {
        /// Path in the container.
        path: String,
    },
    /// Nothing that is mounted in an image can reach the node.
    #[error("image mount on {path:?} cannot have two-way propagation")]
    ImageNeedsPrivate {
        /// Path in the container.
        path: String,
    },
    /// The runtime lacks it.
    #[error("{feature} of {path:?}: the runtime handler does not support it")]
    HandlerLacks {
        /// `recursive read-only mount`, `id-mapped mount`.
        feature: &'static str,
        /// Path in the container.
        path: String,
    },
    /// A mount whose target or source is unusable.
    #[error("mount path {path:?} is not an absolute path without dot segments")]
    BadMountPath {
        /// As given.
        path: String,
    },
    /// `permissions` of a device.
    #[error("device {path:?}: permissions {permissions:?} are not a subset of rwm")]
    BadDevicePermissions {
        /// Path in the container.
        path: String,
        /// As given.
        permissions: String,
    },
    /// The parent cgroup does not fit the manager.
    #[error(transparent)]
    CgroupParent(#[from] super::CgroupPathError),
}

/// What was made smaller than asked because the machine cannot give it. The daemon says each kind once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Clamp {
    /// Lowering `oom_score_adj` below the daemon's own needs `CAP_SYS_RESOURCE`.
    OomScoreAdj {
        /// Asked.
        wanted: i64,
        /// Written.
        given: i32,
    },
    /// The machine's bounding set lacks them.
    Capabilities {
        /// Those left out.
        missing: CapabilitySet,
    },
    /// The kernel does not account swap; the limit was left out.
    Swap,
    /// The node has no such page size; the limit was left out.
    HugepageSize {
        /// As in `2MB`.
        size: String,
    },
    /// cgroup v1 has no such files; the unified map was left out.
    Unified,
    /// `no_new_privs` means little for this container.
    NoNewPrivsWithoutEffect,
    /// Two mounts of the request on one path; the earlier one was left out.
    DuplicateMount {
        /// Path in the container.
        path: String,
    },
    /// Requested ambient capabilities are not given (CRI-O does the same).
    Ambient,
}

impl fmt::Display for Clamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OomScoreAdj { wanted, given } => {
                write!(f, "oom_score_adj {wanted} needs CAP_SYS_RESOURCE, {given} is used")
            }
            Self::Capabilities { missing } => {
                let names: Vec<_> = missing.names().collect();
                write!(f, "this machine cannot give {}", names.join(", "))
            }
            Self::Swap => f.write_str("the kernel does not account swap, the swap limit is left out"),
            Self::HugepageSize { size } => write!(f, "no hugepages of size {size}, the limit is left out"),
            Self::Unified => f.write_str("unified resources need cgroup v2 and are left out"),
            Self::NoNewPrivsWithoutEffect => {
                f.write_str("no_new_privs has little effect with CAP_SYS_ADMIN or a privileged container")
            }
            Self::DuplicateMount { path } => write!(f, "several mounts on {path:?}, the last one is used"),
            Self::Ambient => f.write_str("ambient capabilities are not given"),
        }
    }
}
