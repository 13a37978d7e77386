//! Kernel parameters of a pod's namespaces: which ones are namespaced, and which names and values are safe to write.

use std::collections::BTreeMap;
use std::fmt;

use thiserror::Error;

/// Longest name: the deepest real ones (`net.ipv4.conf.<interface>....`) stay far below.
const NAME_MAX_BYTES: usize = 256;
/// Longest value: a page, which is what a sysctl file takes.
const VALUE_MAX_BYTES: usize = 4096;

/// Why a sysctl is left out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum SkipReason {
    /// Not a dotted name of a parameter.
    #[error("the name is not valid")]
    BadName,
    /// A value that is more than one line, or could be taken apart by what writes it (CVE-2022-0811: `+`).
    #[error("the value is not valid")]
    BadValue,
    /// It would change the whole node.
    #[error("it is not namespaced")]
    NotNamespaced,
    /// The pod has no network namespace of its own.
    #[error("the pod uses the host's network namespace")]
    HostNetwork,
    /// The pod has no IPC namespace of its own.
    #[error("the pod uses the host's IPC namespace")]
    HostIpc,
}

/// The namespace a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SysctlNamespace {
    /// `net.*`
    Network,
    /// `kernel.sem`, `kernel.shm*`, `kernel.msg*`, `fs.mqueue.*`
    Ipc,
}

/// A parameter that may be set in a pod's namespace. Holding one is the proof.
#[derive(Clone, PartialEq, Eq)]
pub struct Sysctl {
    name: String,
    value: String,
    namespace: SysctlNamespace,
}

impl Sysctl {
    /// Checks name and value. Accepts dots or slashes between the parts, as sysctl(8) does.
    ///
    /// With slashes, a dot stays inside its part (`net/ipv4/conf/eth0.1/forwarding`).
    pub fn parse(name: &str, value: &str) -> Result<Self, SkipReason> {
        let separator = match (name.find('/'), name.find('.')) {
            (Some(slash), Some(dot)) if slash < dot => '/',
            (Some(_), None) => '/',
            _ => '.',
        };
        let is_part = |part: &str| {
            !part.is_empty()
                && !matches!(part, "." | "..")
                && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-' | b'.' | b'@'))
        };
        let parts: Vec<&str> = name.split(separator).collect();
        if name.len() > NAME_MAX_BYTES || parts.len() < 2 || !parts.iter().all(|part| is_part(part)) {
            return Err(SkipReason::BadName);
        }
        let is_value_good = value.len() <= VALUE_MAX_BYTES
            && value.bytes().all(|byte| byte == b'\t' || (b' '..=b'~').contains(&byte) && byte != b'+');
        if !is_value_good {
            return Err(SkipReason::BadValue);
        }
        let namespace = match parts.as_slice() {
            ["kernel", "sem"] => SysctlNamespace::Ipc,
            ["kernel", last] if last.starts_with("shm") || last.starts_with("msg") => SysctlNamespace::Ipc,
            ["fs", "mqueue", _] => SysctlNamespace::Ipc,
            ["net", ..] => SysctlNamespace::Network,
            _ => return Err(SkipReason::NotNamespaced),
        };
        Ok(Self { name: name.to_owned(), value: value.to_owned(), namespace })
    }

    /// Name as given.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// One line without its end.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// Where it takes effect.
    #[must_use]
    pub fn namespace(&self) -> SysctlNamespace {
        self.namespace
    }

    /// Path below `/proc/sys`, relative.
    #[must_use]
    pub fn path(&self) -> String {
        match (self.name.find('/'), self.name.find('.')) {
            (Some(slash), Some(dot)) if slash < dot => self.name.clone(),
            (Some(_), None) => self.name.clone(),
            _ => self.name.replace('.', "/"),
        }
    }
}

impl fmt::Debug for Sysctl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}={}", self.name, self.value)
    }
}

/// A sysctl that is left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkippedSysctl {
    /// Name as given, cut to a readable length.
    pub name: String,
    /// Why.
    pub reason: SkipReason,
}

/// What [`check_sysctls`] found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckedSysctls {
    /// To be applied to the pod's namespaces, each path once.
    pub accepted: Vec<Sysctl>,
    /// To be warned about.
    pub skipped: Vec<SkippedSysctl>,
}

/// Checks `default_sysctls` and the request's; the request's win. Forbidden ones are skipped, not refused.
///
/// Source: CRI `LinuxPodSandboxConfig.sysctls`; the allow list is CRI-O's.
#[must_use]
pub fn check_sysctls(
    defaults: &[(String, String)],
    requested: &BTreeMap<String, String>,
    is_host_network: bool,
    is_host_ipc: bool,
) -> CheckedSysctls {
    let mut checked = CheckedSysctls::default();
    let defaults = defaults.iter().map(|(name, value)| (name, value));
    for (name, value) in defaults.chain(requested) {
        let parsed = Sysctl::parse(name, value).and_then(|sysctl| match sysctl.namespace {
            SysctlNamespace::Network if is_host_network => Err(SkipReason::HostNetwork),
            SysctlNamespace::Ipc if is_host_ipc => Err(SkipReason::HostIpc),
            SysctlNamespace::Network | SysctlNamespace::Ipc => Ok(sysctl),
        });
        match parsed {
            Ok(sysctl) => {
                checked.accepted.retain(|known| known.path() != sysctl.path());
                checked.accepted.push(sysctl);
            }
            Err(reason) => {
                checked.skipped.push(SkippedSysctl { name: name.chars().take(NAME_MAX_BYTES).collect(), reason });
            }
        }
    }
    checked
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_namespaced_parameters_pass() {
        for (name, value, expected) in [
            ("net.ipv4.ip_forward", "1", Ok("net/ipv4/ip_forward")),
            ("net/ipv4/conf/eth0.1/forwarding", "1", Ok("net/ipv4/conf/eth0.1/forwarding")),
            ("kernel.shm_rmid_forced", "1", Ok("kernel/shm_rmid_forced")),
            ("kernel.shmmax", "1", Ok("kernel/shmmax")),
            ("kernel.msgmax", "65536", Ok("kernel/msgmax")),
            ("kernel.sem", "250\t32000 100 128", Ok("kernel/sem")),
            ("fs.mqueue.msg_max", "10", Ok("fs/mqueue/msg_max")),
            ("kernel.shm.x", "1", Err(SkipReason::NotNamespaced)),
            ("kernel.semaphore", "1", Err(SkipReason::NotNamespaced)),
            ("kernel.core_pattern", "|/x", Err(SkipReason::NotNamespaced)),
            ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/bin/sh", Err(SkipReason::BadValue)),
            ("net.ipv4.ip_forward", "1\n2", Err(SkipReason::BadValue)),
            ("net.ipv4.x", "1\0", Err(SkipReason::BadValue)),
            ("net.ipv4.x", "1\u{2028}", Err(SkipReason::BadValue)),
            ("net.ipv4.x=1+a", "1", Err(SkipReason::BadName)),
            ("net/../kernel/core_pattern", "1", Err(SkipReason::BadName)),
            ("net..ipv4", "1", Err(SkipReason::BadName)),
            ("net.ipv4/../../kernel", "1", Err(SkipReason::BadName)),
            ("net", "1", Err(SkipReason::BadName)),
            ("", "1", Err(SkipReason::BadName)),
        ] {
            let parsed = Sysctl::parse(name, value).map(|sysctl| sysctl.path());
            assert_eq!(parsed, expected.map(str::to_owned), "{name}={value:?}");
        }
    }

    #[test]
    fn host_namespaces_take_their_parameters_away_and_requests_win() {
        let defaults = [("net.ipv4.ip_forward".to_owned(), "0".to_owned()), ("kernel.sem".to_owned(), "1".to_owned())];
        let requested =
            [("net/ipv4/ip_forward".to_owned(), "1".to_owned()), ("vm.swappiness".to_owned(), "1".to_owned())];
        let checked = check_sysctls(&defaults, &requested.clone().into(), false, true);
        assert_eq!(format!("{:?}", checked.accepted), "[net/ipv4/ip_forward=1]");
        let reasons: Vec<_> = checked.skipped.iter().map(|skipped| (skipped.name.as_str(), &skipped.reason)).collect();
        assert_eq!(reasons, [("kernel.sem", &SkipReason::HostIpc), ("vm.swappiness", &SkipReason::NotNamespaced)]);
        let checked = check_sysctls(&defaults, &requested.into(), true, false);
        assert_eq!(format!("{:?}", checked.accepted), "[kernel.sem=1]");
    }
}
