//! The small types configuration values become once they are checked.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// A text that is none of the words a key allows.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not one of {allowed}")]
pub struct UnknownWord {
    text: String,
    allowed: String,
}

/// An enum whose variants are words of the configuration file.
macro_rules! words {
    ($(#[$meta:meta])* pub enum $name:ident { $($(#[$vmeta:meta])* $variant:ident = $word:literal $(| $alias:literal)*,)+ }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$vmeta])* $variant,)+ }

        impl $name {
            /// Every value, in the order of documentation.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)+];
            /// The word of the configuration file.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word,)+ }
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result { f.write_str(self.as_str()) }
        }
        impl FromStr for $name {
            type Err = UnknownWord;
            fn from_str(text: &str) -> Result<Self, UnknownWord> {
                match text {
                    $($word $(| $alias)* => Ok(Self::$variant),)+
                    _ => Err(UnknownWord {
                        text: text.to_owned(),
                        allowed: Self::ALL.iter().map(|w| format!("{:?}", w.as_str())).collect::<Vec<_>>().join(", "),
                    }),
                }
            }
        }
    };
}

words! {
    /// Who makes and removes cgroups.
    pub enum CgroupManager {
        /// systemd, asked over D-Bus.
        Systemd = "systemd",
        /// The daemon itself, writing to the cgroup file system.
        Cgroupfs = "cgroupfs",
    }
}
words! {
    /// Whether pods that nobody calls untrusted are trusted.
    pub enum WorkloadTrust {
        /// They run with the default runtime.
        Trusted = "trusted",
        /// They run with the runtime for untrusted pods, unless they are privileged.
        Untrusted = "untrusted",
    }
}
words! {
    /// From which severity on messages are logged. `fatal` and `panic` show errors only.
    pub enum LogLevel {
        /// Only what ends the daemon.
        Fatal = "fatal",
        /// Only what ends the daemon.
        Panic = "panic",
        /// Somebody must act.
        Error = "error",
        /// Something was odd but handled.
        Warn = "warn" | "warning",
        /// What an operator would tell a colleague.
        Info = "info",
        /// What a developer would ask for.
        Debug = "debug",
        /// Everything.
        Trace = "trace",
    }
}
words! {
    /// What happens to the volumes an image declares.
    pub enum ImageVolumes {
        /// A directory is made in the root file system.
        Mkdir = "mkdir",
        /// A directory of the host is made and mounted.
        Bind = "bind",
        /// Nothing.
        Ignore = "ignore",
    }
}
words! {
    /// How image names without a registry are understood.
    pub enum ShortNameMode {
        /// Only an alias or a single unqualified-search registry may complete the name.
        Enforcing = "enforcing" | "",
        /// Every unqualified-search registry is tried in turn.
        Disabled = "disabled",
    }
}
words! {
    /// The containers/storage driver.
    pub enum StorageDriver {
        /// overlayfs.
        Overlay = "overlay" | "overlay2",
        /// Plain copies.
        Vfs = "vfs",
        /// btrfs subvolumes.
        Btrfs = "btrfs",
        /// ZFS data sets.
        Zfs = "zfs",
    }
}
words! {
    /// The oldest TLS version the streaming and metrics servers speak.
    pub enum TlsMinVersion {
        /// TLS 1.2.
        Tls12 = "VersionTLS12",
        /// TLS 1.3.
        Tls13 = "VersionTLS13",
    }
}
words! {
    /// How far containers may be checkpointed and restored.
    pub enum CheckpointRestoreLevel {
        /// Both.
        CheckpointRestore = "checkpoint_restore",
        /// Checkpoint, but not restore.
        CheckpointOnly = "checkpoint_only",
        /// Neither.
        None = "none",
    }
}
words! {
    /// How a runtime handler is driven.
    pub enum RuntimeType {
        /// An OCI runtime's command line under a monitor per container.
        Oci = "oci" | "",
        /// A containerd shim (version 2) per sandbox.
        Vm = "vm",
        /// An OCI runtime under one monitor per sandbox.
        Pod = "pod",
    }
}
words! {
    /// In which cgroup the monitor of an exec session lives.
    pub enum MonitorExecCgroup {
        /// That of any monitor.
        Monitor = "",
        /// That of the container.
        Container = "container",
    }
}
words! {
    /// On which CPUs exec sessions run.
    pub enum ExecCpuAffinity {
        /// Those of the container.
        Container = "",
        /// The first CPU of the container's (or the shared) set.
        First = "first",
    }
}

/// Where a monitor's process is put.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MonitorCgroup {
    /// Where the daemon is.
    Daemon,
    /// In the sandbox's cgroup.
    Sandbox,
    /// In this systemd slice (ends in `.slice`).
    Slice(String),
}

impl MonitorCgroup {
    /// The text of the configuration file: empty, `pod` or the slice.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Daemon => "",
            Self::Sandbox => "pod",
            Self::Slice(slice) => slice,
        }
    }
}

/// In which cgroup image pulls run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PullCgroup {
    /// The daemon's.
    Daemon,
    /// That of the sandbox the image is pulled for.
    Sandbox,
    /// This systemd slice.
    Slice(String),
}

impl PullCgroup {
    /// The text of the configuration file: empty, `pod` or the slice.
    pub fn as_str(&self) -> &str {
        match self {
            Self::Daemon => "",
            Self::Sandbox => "pod",
            Self::Slice(slice) => slice,
        }
    }
}

/// A kernel parameter set in a sandbox, `key=value`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    key: String,
    value: String,
}

impl Sysctl {
    /// Reads `key=value`; blanks around either part are refused, because tools further down take them literally.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form key=value"))?;
        if key.trim() != key || value.trim() != value {
            return Err(format!("{text:?} has blanks around key or value"));
        }
        if key.is_empty() || key.bytes().chain(value.bytes()).any(|b| b == 0 || b == b'\n') {
            return Err(format!("{text:?} has an empty key or a control character"));
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned() })
    }
    /// The name, for example `net.ipv4.ip_forward`.
    pub fn key(&self) -> &str {
        &self.key
    }
    /// The value.
    pub fn value(&self) -> &str {
        &self.value
    }
    /// Which namespace holds the parameter, or None if it belongs to the whole host.
    ///
    /// Source: sysctl names the kernel keeps per namespace, the list every CRI runtime uses.
    pub fn namespace(&self) -> Option<SysctlNamespace> {
        const IPC: [&str; 3] = ["kernel.shm", "kernel.msg", "fs.mqueue."];
        if self.key == "kernel.sem" || IPC.iter().any(|prefix| self.key.starts_with(prefix)) {
            Some(SysctlNamespace::Ipc)
        } else if self.key.starts_with("net.") {
            Some(SysctlNamespace::Net)
        } else {
            None
        }
    }
}

impl fmt::Display for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.key, self.value)
    }
}

/// The namespace a sysctl belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlNamespace {
    /// IPC namespace.
    Ipc,
    /// Network namespace.
    Net,
}

/// The resource limit names understood, in the words of docker.
const ULIMITS: [&str; 15] = [
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// A resource limit given to every container, `name=soft[:hard]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ulimit {
    name: String,
    soft: i64,
    hard: i64,
}

impl Ulimit {
    /// Reads `name=soft[:hard]`; -1 means unlimited; without hard the soft value counts for both.
    pub fn parse(text: &str) -> Result<Self, String> {
        let (name, limits) =
            text.split_once('=').ok_or_else(|| format!("{text:?} is not of the form name=soft[:hard]"))?;
        if !ULIMITS.contains(&name) {
            return Err(format!("{name:?} in {text:?} is not one of {}", ULIMITS.join(", ")));
        }
        let number = |part: &str| part.parse::<i64>().map_err(|_| format!("{part:?} in {text:?} is not a number"));
        let (soft, hard) = match limits.split_once(':') {
            None => (number(limits)?, number(limits)?),
            Some((soft, hard)) => (number(soft)?, number(hard)?),
        };
        if soft < -1 || hard < -1 {
            return Err(format!("{text:?} has a negative limit; -1 means unlimited"));
        }
        if hard != -1 && (soft == -1 || soft > hard) {
            return Err(format!("{text:?} has a soft limit above the hard limit"));
        }
        Ok(Self { name: name.to_owned(), soft, hard })
    }
    /// The name of the OCI runtime spec, for example `RLIMIT_NOFILE`.
    pub fn rlimit_name(&self) -> String {
        format!("RLIMIT_{}", self.name.to_ascii_uppercase())
    }
    /// The soft limit; `u64::MAX` is unlimited, as in the OCI runtime spec.
    pub fn soft(&self) -> u64 {
        u64::try_from(self.soft).unwrap_or(u64::MAX)
    }
    /// The hard limit; `u64::MAX` is unlimited.
    pub fn hard(&self) -> u64 {
        u64::try_from(self.hard).unwrap_or(u64::MAX)
    }
}

impl fmt::Display for Ulimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}:{}", self.name, self.soft, self.hard)
    }
}

/// A device given to every container, `source[:destination][:permissions]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdditionalDevice {
    source: PathBuf,
    destination: PathBuf,
    permissions: String,
}

impl AdditionalDevice {
    /// Reads one entry; without destination the source counts, without permissions `rwm`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let is_mode = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| matches!(b, b'r' | b'w' | b'm'))
                && ['r', 'w', 'm'].iter().all(|c| part.matches(*c).count() <= 1)
        };
        let (source, destination, permissions) = match parts[..] {
            [source] => (source, source, "rwm"),
            [source, second] if is_mode(second) => (source, source, second),
            [source, second] => (source, second, "rwm"),
            [source, second, third] => (source, second, third),
            _ => return Err(format!("{text:?} is not of the form source[:destination][:permissions]")),
        };
        if !Path::new(source).is_absolute() {
            return Err(format!("{text:?}: the source must be an absolute path"));
        }
        let is_beneath_dev = destination.strip_prefix("/dev/").is_some_and(|rest| {
            !rest.is_empty() && Path::new(rest).components().all(|c| matches!(c, std::path::Component::Normal(_)))
        });
        if !is_beneath_dev {
            return Err(format!("{text:?}: the destination must lie in /dev/"));
        }
        if !is_mode(permissions) {
            return Err(format!("{text:?}: permissions are some of r, w and m, each once"));
        }
        Ok(Self {
            source: PathBuf::from(source),
            destination: PathBuf::from(destination),
            permissions: permissions.to_owned(),
        })
    }
    /// The device node of the host.
    pub fn source(&self) -> &Path {
        &self.source
    }
    /// Its path in the container, within `/dev/`.
    pub fn destination(&self) -> &Path {
        &self.destination
    }
    /// Some of `r`, `w` and `m`.
    pub fn permissions(&self) -> &str {
        &self.permissions
    }
}

impl fmt::Display for AdditionalDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.source.display(), self.destination.display(), self.permissions)
    }
}

/// A range of ids inside a user namespace and outside of it, `container:host:size`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdMapping {
    /// First id inside.
    pub container: u32,
    /// First id outside.
    pub host: u32,
    /// How many ids.
    pub size: u32,
}

impl IdMapping {
    /// Reads `container:host:size`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let numbers: Vec<u32> = text
            .split(':')
            .map(str::parse)
            .collect::<Result<_, _>>()
            .map_err(|_| format!("{text:?} is not of the form container:host:size"))?;
        match numbers[..] {
            [container, host, size] if size > 0 => {
                if container.checked_add(size).is_none() || host.checked_add(size).is_none() {
                    return Err(format!("{text:?} exceeds the range of ids"));
                }
                Ok(Self { container, host, size })
            }
            _ => Err(format!("{text:?} is not of the form container:host:size")),
        }
    }
}

impl fmt::Display for IdMapping {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.container, self.host, self.size)
    }
}

/// The highest CPU number accepted; the kernel's own limit (CONFIG_NR_CPUS) is 8192 at most.
const MAX_CPU: u32 = 8191;

/// A list of CPUs such as `0-3,8`. Never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuSet(String);

impl CpuSet {
    /// Reads the kernel's list form (cpuset(7), "List format", without strides).
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is not a list of CPUs such as 0-3,8");
        let number =
            |part: &str| part.parse::<u32>().ok().filter(|n| *n <= MAX_CPU && part.bytes().all(|b| b.is_ascii_digit()));
        for range in text.split(',') {
            match range.split_once('-') {
                None => {
                    number(range).ok_or_else(bad)?;
                }
                Some((first, last)) => {
                    if number(first).ok_or_else(bad)? > number(last).ok_or_else(bad)? {
                        return Err(bad());
                    }
                }
            }
        }
        Ok(Self(text.to_owned()))
    }
    /// The list form.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The capabilities of Linux 6, without `CAP_`. Source: linux/capability.h.
pub(crate) const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// The TLS 1.2 and 1.3 suites whose IANA names are understood.
/// Source: the suites of Kubernetes' `--tls-cipher-suites`, which is where operators copy the list from.
pub(crate) const CIPHER_SUITES: [&str; 26] = [
    "TLS_AES_128_GCM_SHA256",
    "TLS_AES_256_GCM_SHA384",
    "TLS_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_ECDSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_ECDSA_WITH_RC4_128_SHA",
    "TLS_ECDHE_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_ECDHE_RSA_WITH_AES_256_CBC_SHA",
    "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305",
    "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256",
    "TLS_ECDHE_RSA_WITH_RC4_128_SHA",
    "TLS_RSA_WITH_3DES_EDE_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA",
    "TLS_RSA_WITH_AES_128_CBC_SHA256",
    "TLS_RSA_WITH_AES_128_GCM_SHA256",
    "TLS_RSA_WITH_AES_256_CBC_SHA",
    "TLS_RSA_WITH_AES_256_GCM_SHA384",
];
