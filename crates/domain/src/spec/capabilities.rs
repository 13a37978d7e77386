//! Capabilities: names, sets, and which of them a container gets.

use std::fmt;

use oci_spec::runtime::{Capability, LinuxCapabilities};

use super::{Clamp, SpecError};

/// Every capability Linux knows, in the kernel's order: the index is the bit. Source: capability.h, 6.18.
const NAMES: [(&str, Capability); 41] = [
    ("CAP_CHOWN", Capability::Chown),
    ("CAP_DAC_OVERRIDE", Capability::DacOverride),
    ("CAP_DAC_READ_SEARCH", Capability::DacReadSearch),
    ("CAP_FOWNER", Capability::Fowner),
    ("CAP_FSETID", Capability::Fsetid),
    ("CAP_KILL", Capability::Kill),
    ("CAP_SETGID", Capability::Setgid),
    ("CAP_SETUID", Capability::Setuid),
    ("CAP_SETPCAP", Capability::Setpcap),
    ("CAP_LINUX_IMMUTABLE", Capability::LinuxImmutable),
    ("CAP_NET_BIND_SERVICE", Capability::NetBindService),
    ("CAP_NET_BROADCAST", Capability::NetBroadcast),
    ("CAP_NET_ADMIN", Capability::NetAdmin),
    ("CAP_NET_RAW", Capability::NetRaw),
    ("CAP_IPC_LOCK", Capability::IpcLock),
    ("CAP_IPC_OWNER", Capability::IpcOwner),
    ("CAP_SYS_MODULE", Capability::SysModule),
    ("CAP_SYS_RAWIO", Capability::SysRawio),
    ("CAP_SYS_CHROOT", Capability::SysChroot),
    ("CAP_SYS_PTRACE", Capability::SysPtrace),
    ("CAP_SYS_PACCT", Capability::SysPacct),
    ("CAP_SYS_ADMIN", Capability::SysAdmin),
    ("CAP_SYS_BOOT", Capability::SysBoot),
    ("CAP_SYS_NICE", Capability::SysNice),
    ("CAP_SYS_RESOURCE", Capability::SysResource),
    ("CAP_SYS_TIME", Capability::SysTime),
    ("CAP_SYS_TTY_CONFIG", Capability::SysTtyConfig),
    ("CAP_MKNOD", Capability::Mknod),
    ("CAP_LEASE", Capability::Lease),
    ("CAP_AUDIT_WRITE", Capability::AuditWrite),
    ("CAP_AUDIT_CONTROL", Capability::AuditControl),
    ("CAP_SETFCAP", Capability::Setfcap),
    ("CAP_MAC_OVERRIDE", Capability::MacOverride),
    ("CAP_MAC_ADMIN", Capability::MacAdmin),
    ("CAP_SYSLOG", Capability::Syslog),
    ("CAP_WAKE_ALARM", Capability::WakeAlarm),
    ("CAP_BLOCK_SUSPEND", Capability::BlockSuspend),
    ("CAP_AUDIT_READ", Capability::AuditRead),
    ("CAP_PERFMON", Capability::Perfmon),
    ("CAP_BPF", Capability::Bpf),
    ("CAP_CHECKPOINT_RESTORE", Capability::CheckpointRestore),
];

/// A set of capabilities, one bit each as in `/proc/<pid>/status`.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    /// None.
    pub const EMPTY: Self = Self(0);
    /// All 41 that are known here.
    pub const ALL: Self = Self((1 << NAMES.len()) - 1);

    /// Takes the mask of a `CapBnd` line; bits without a name here are dropped.
    #[must_use]
    pub const fn from_mask(mask: u64) -> Self {
        Self(mask & Self::ALL.0)
    }

    /// The mask as the kernel writes it.
    #[must_use]
    pub const fn mask(self) -> u64 {
        self.0
    }

    /// The set of one capability; the name may lack `CAP_` and have any case.
    #[must_use]
    pub fn of_name(name: &str) -> Option<Self> {
        let upper = name.to_ascii_uppercase();
        let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
        NAMES.iter().position(|(known, _)| &known[4..] == bare).map(|bit| Self(1 << bit))
    }

    /// Union.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Difference.
    #[must_use]
    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Intersection.
    #[must_use]
    pub const fn and(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Has nothing.
    #[must_use]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Names with `CAP_`, in the kernel's order.
    pub fn names(self) -> impl Iterator<Item = &'static str> {
        NAMES.iter().enumerate().filter(move |(bit, _)| self.0 & (1 << bit) != 0).map(|(_, (name, _))| *name)
    }

    fn to_oci(self) -> oci_spec::runtime::Capabilities {
        let members = NAMES.iter().enumerate().filter(|(bit, _)| self.0 & (1 << bit) != 0);
        members.map(|(_, (_, capability))| *capability).collect()
    }
}

impl fmt::Debug for CapabilitySet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.names()).finish()
    }
}

/// Whether what a process may have is also what the programs it executes inherit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Inheritable {
    /// The inheritable set stays empty (CVE-2022-27652, CVE-2022-29162).
    #[default]
    Empty,
    /// It equals the others: `add_inheritable_capabilities`.
    SameAsOthers,
}

fn has_all(names: &[String]) -> bool {
    names.iter().any(|name| name.eq_ignore_ascii_case("ALL"))
}

fn singles(names: &[String], list: &'static str) -> Result<CapabilitySet, SpecError> {
    let singles = names.iter().filter(|name| !name.eq_ignore_ascii_case("ALL"));
    singles.map(|name| (name, CapabilitySet::of_name(name))).try_fold(CapabilitySet::EMPTY, |all, (name, one)| {
        one.map(|one| all.with(one)).ok_or_else(|| SpecError::UnknownCapability { list, name: name.clone() })
    })
}

/// The set an unprivileged container asks for.
///
/// Order: all added, all dropped, single ones added, single ones dropped; the defaults count as added unless either
/// list holds `ALL`. Source: CRI `Capability`, spec generation of CRI-O.
pub fn wanted(asked: &crate::security::Capabilities, defaults: &[String]) -> Result<CapabilitySet, SpecError> {
    let (add_all, drop_all) = (has_all(&asked.add), has_all(&asked.drop));
    let add = singles(&asked.add, "add_capabilities")?;
    let drop = singles(&asked.drop, "drop_capabilities")?;
    let base = match (add_all, drop_all) {
        (false, false) => singles(defaults, "default_capabilities")?,
        (true, false) => CapabilitySet::ALL,
        (_, true) => CapabilitySet::EMPTY,
    };
    Ok(base.with(add).without(drop))
}

/// What the machine can give of what is wanted.
pub(super) fn granted(wanted: CapabilitySet, bounding: CapabilitySet, clamped: &mut Vec<Clamp>) -> CapabilitySet {
    let missing = wanted.without(bounding);
    if !missing.is_empty() {
        clamped.push(Clamp::Capabilities { missing });
    }
    wanted.and(bounding)
}

pub(super) fn sets(set: CapabilitySet, inheritable: Inheritable, ambient: CapabilitySet) -> LinuxCapabilities {
    let inherited = match inheritable {
        Inheritable::Empty => CapabilitySet::EMPTY,
        Inheritable::SameAsOthers => set,
    };
    let mut sets = LinuxCapabilities::default();
    sets.set_bounding(Some(set.to_oci()));
    sets.set_effective(Some(set.to_oci()));
    sets.set_permitted(Some(set.to_oci()));
    sets.set_inheritable(Some(inherited.to_oci()));
    sets.set_ambient(Some(ambient.to_oci()));
    sets
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::Capabilities;

    fn strings(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_are_what_the_types_write() {
        for (name, capability) in NAMES {
            assert_eq!(serde_json::to_string(&capability).expect("serialises"), format!("\"{name}\""));
        }
    }

    #[test]
    fn add_and_drop_combine_as_documented() {
        let defaults = ["CHOWN", "KILL"];
        for (add, drop, expected) in [
            (&[][..], &[][..], Some(vec!["CAP_CHOWN", "CAP_KILL"])),
            (&["net_raw"], &["cap_chown"], Some(vec!["CAP_KILL", "CAP_NET_RAW"])),
            (&["KILL"], &["KILL"], Some(vec!["CAP_CHOWN"])),
            (&["CAP_NET_ADMIN"], &["all"], Some(vec!["CAP_NET_ADMIN"])),
            (&[], &["ALL"], Some(vec![])),
            (&["ALL"], &["ALL"], Some(vec![])),
            (&["ALL", "Chown"], &["ALL", "KILL"], Some(vec!["CAP_CHOWN"])),
            (&["BOGUS"], &[], None),
            (&[], &["CAP_"], None),
            (&[""], &[], None),
        ] {
            let asked = Capabilities { add: strings(add), drop: strings(drop), add_ambient: vec![] };
            let set = wanted(&asked, &strings(&defaults)).ok().map(|set| set.names().collect::<Vec<_>>());
            assert_eq!(set, expected, "{add:?} {drop:?}");
        }
        let asked = Capabilities { add: strings(&["all"]), drop: strings(&["sys_admin"]), add_ambient: vec![] };
        let set = wanted(&asked, &[]).expect("valid");
        assert_eq!(set.names().count(), 40);
        assert_eq!(CapabilitySet::ALL.without(set).names().collect::<Vec<_>>(), ["CAP_SYS_ADMIN"]);
    }

    #[test]
    fn the_bounding_set_of_the_machine_limits() {
        let mut clamped = vec![];
        let bounding =
            CapabilitySet::from_mask(u64::MAX).without(CapabilitySet::of_name("SYS_RESOURCE").expect("known"));
        let set = granted(CapabilitySet::ALL, bounding, &mut clamped);
        assert_eq!(set.names().count(), 40);
        assert_eq!(clamped, [Clamp::Capabilities { missing: CapabilitySet::from_mask(1 << 24) }]);
    }
}
