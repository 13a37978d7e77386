//! A container: what was asked for, and the states it passes through.
//!
//! ```text
//!          create          start            ends
//! (nothing) ----> Created -------> Running -------> Exited ----> (nothing)
//!                    \___ start fails, killed ________/   remove
//! ```

use std::collections::BTreeMap;

use crate::resources::Resources;
use crate::security::{
    Capabilities, IdMapping, NamespaceOptions, SecurityProfile, SelinuxOptions, SupplementalGroupsPolicy,
};
use crate::time::Timestamp;

/// Who a container is within its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerMetadata {
    /// Container name.
    pub name: String,
    /// Counts the containers of one name in one pod.
    pub attempt: u32,
}

/// CRI `ImageSpec`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImageSpec {
    /// Reference or id to use.
    pub image: String,
    /// Annotations of the specification.
    pub annotations: BTreeMap<String, String>,
    /// What the pod's author wrote.
    pub user_specified_image: String,
    /// Runtime handler the image is meant for.
    pub runtime_handler: String,
}

/// How mounts travel between node and container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Propagation {
    /// Not at all.
    #[default]
    Private,
    /// From node to container.
    HostToContainer,
    /// Both ways.
    Bidirectional,
}

/// CRI `Mount`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Mount {
    /// Where it appears.
    pub container_path: String,
    /// What of the node appears there; empty for an image.
    pub host_path: String,
    /// No writing through it.
    pub readonly: bool,
    /// Relabel for SELinux.
    pub selinux_relabel: bool,
    /// Propagation.
    pub propagation: Propagation,
    /// User id mappings of the mount.
    pub uid_mappings: Vec<IdMapping>,
    /// Group id mappings of the mount.
    pub gid_mappings: Vec<IdMapping>,
    /// Read-only all the way down.
    pub recursive_read_only: bool,
    /// An image instead of a host path.
    pub image: Option<ImageSpec>,
    /// Directory within that image.
    pub image_sub_path: String,
}

/// CRI `Device`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Device {
    /// Path in the container.
    pub container_path: String,
    /// Path on the node.
    pub host_path: String,
    /// Subset of `rwm`.
    pub permissions: String,
}

/// CRI `LinuxContainerSecurityContext`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerSecurity {
    /// Capabilities.
    pub capabilities: Capabilities,
    /// Nearly everything allowed.
    pub privileged: bool,
    /// Namespaces.
    pub namespaces: NamespaceOptions,
    /// SELinux label parts.
    pub selinux: Option<SelinuxOptions>,
    /// Numeric user.
    pub run_as_user: Option<i64>,
    /// Numeric group.
    pub run_as_group: Option<i64>,
    /// User by name.
    pub run_as_username: String,
    /// Root file system read-only.
    pub readonly_rootfs: bool,
    /// Further groups.
    pub supplemental_groups: Vec<i64>,
    /// How they combine with the image's.
    pub supplemental_groups_policy: SupplementalGroupsPolicy,
    /// No privileges gained by executing.
    pub no_new_privs: bool,
    /// Paths hidden.
    pub masked_paths: Vec<String>,
    /// Paths made read-only.
    pub readonly_paths: Vec<String>,
    /// Seccomp.
    pub seccomp: Option<SecurityProfile>,
    /// AppArmor.
    pub apparmor: Option<SecurityProfile>,
}

/// CRI `ContainerConfig`, checked.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ContainerConfig {
    /// Identity within the sandbox.
    pub metadata: ContainerMetadata,
    /// Image.
    pub image: ImageSpec,
    /// Replaces the image's entrypoint.
    pub command: Vec<String>,
    /// Replaces the image's command.
    pub args: Vec<String>,
    /// Working directory; empty takes the image's.
    pub working_dir: String,
    /// Environment in order.
    pub envs: Vec<(String, String)>,
    /// Mounts.
    pub mounts: Vec<Mount>,
    /// Devices.
    pub devices: Vec<Device>,
    /// CDI device names.
    pub cdi_devices: Vec<String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Log file relative to the sandbox's log directory.
    pub log_path: String,
    /// Keep standard input open.
    pub stdin: bool,
    /// Close standard input after the first client.
    pub stdin_once: bool,
    /// A terminal.
    pub tty: bool,
    /// Limits.
    pub resources: Resources,
    /// Confinement.
    pub security: ContainerSecurity,
    /// Signal to stop with; absent takes the image's.
    pub stop_signal: Option<Signal>,
}

/// A signal number, 1 to 64.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Signal(i32);

/// Name and number of the classic signals on Linux.
const SIGNALS: [(&str, i32); 34] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];
const SIGRTMIN: i32 = 34;
const SIGRTMAX: i32 = 64;

impl Signal {
    /// SIGTERM.
    pub const TERM: Self = Self(15);
    /// SIGKILL.
    pub const KILL: Self = Self(9);

    /// Accepts a number or a name with or without `SIG`, in any case, `RTMIN+n` and `RTMAX-n` included.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<i32>() {
            return (1..=SIGRTMAX).contains(&number).then_some(Self(number));
        }
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("SIG").unwrap_or(&upper);
        if let Some((_, number)) = SIGNALS.iter().find(|(known, _)| *known == name) {
            return Some(Self(*number));
        }
        let number = match name.split_at_checked(5)? {
            ("RTMIN", "") => SIGRTMIN,
            ("RTMAX", "") => SIGRTMAX,
            ("RTMIN", offset) => SIGRTMIN.checked_add(offset.strip_prefix('+')?.parse().ok()?)?,
            ("RTMAX", offset) => SIGRTMAX.checked_sub(offset.strip_prefix('-')?.parse().ok()?)?,
            _ => return None,
        };
        (SIGRTMIN..=SIGRTMAX).contains(&number).then_some(Self(number))
    }

    /// The number as the kernel has it.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

/// A process that must be recognised later: a bare pid may belong to someone else by then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Process {
    /// Process id in the daemon's namespace.
    pub pid: i32,
    /// Field 22 of `/proc/<pid>/stat`, in clock ticks since boot.
    pub start_time: u64,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exit {
    /// Exit status, or 128 + signal; −1 when nobody saw it.
    pub code: i32,
    /// When.
    pub finished: Timestamp,
    /// The kernel killed its first process for want of memory.
    pub is_oom_killed: bool,
    /// It was killed for forbidden system calls, which `error` tells.
    pub is_seccomp_killed: bool,
    /// Why it never ran, if it did not, or why it was killed.
    pub error: String,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerState {
    /// Its first process waits to be started.
    Created {
        /// The runtime's init, which becomes the container's first process.
        init: Process,
    },
    /// Its program runs.
    Running {
        /// Its first process.
        init: Process,
        /// When it was started.
        started: Timestamp,
    },
    /// It ended.
    Exited {
        /// When it was started; the creation time if it never was.
        started: Option<Timestamp>,
        /// How it ended.
        exit: Exit,
    },
}

impl ContainerState {
    /// The first process, while there is one.
    #[must_use]
    pub const fn init(&self) -> Option<Process> {
        match self {
            Self::Created { init } | Self::Running { init, .. } => Some(*init),
            Self::Exited { .. } => None,
        }
    }

    /// When it was started, if it was.
    #[must_use]
    pub const fn started(&self) -> Option<Timestamp> {
        match self {
            Self::Created { .. } => None,
            Self::Running { started, .. } => Some(*started),
            Self::Exited { started, .. } => *started,
        }
    }

    /// The word an error message uses.
    #[must_use]
    pub const fn word(&self) -> &'static str {
        match self {
            Self::Created { .. } => "created",
            Self::Running { .. } => "running",
            Self::Exited { .. } => "stopped",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_parse_as_images_write_them() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("9", Some(9)),
            ("SIGRTMIN+3", Some(37)),
            ("SIGRTMIN", Some(34)),
            ("RTMAX-14", Some(50)),
            ("SIGRTMAX", Some(64)),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("SIGRTMIN+31", None),
            ("RTMIN+99999999999", None),
            ("SIGFOO", None),
            ("", None),
        ] {
            assert_eq!(Signal::parse(text).map(Signal::number), number, "{text}");
        }
    }
}
