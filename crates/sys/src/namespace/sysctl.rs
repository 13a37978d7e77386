//! Sysctls a sandbox may have: those the kernel keeps per namespace, checked before they can reach `/proc/sys`.

use thiserror::Error;

use super::Kind;

/// Longest value: a sysctl is written in one page.
const VALUE_MAX: usize = 4095;
/// Longest key, far beyond any the kernel has.
const KEY_MAX: usize = 253;

/// Why a key and value are not a sandbox's sysctl.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseSysctlError {
    /// Empty, too long, with an empty or `..` component, or with a character no sysctl has.
    #[error("{0:?} is not the name of a sysctl")]
    Key(String),
    /// Known, or assumed, to be the node's: the kernel does not keep it per network or IPC namespace.
    #[error("sysctl {0} is not kept per sandbox")]
    NotNamespaced(String),
    /// Control characters would be more than one value.
    #[error("sysctl {key} cannot be set to {value:?}")]
    Value {
        /// The key.
        key: String,
        /// The refused value.
        value: String,
    },
}

/// A sysctl of a network or IPC namespace with the value it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysctl {
    key: String,
    value: String,
    path: String,
    kind: Kind,
}

impl Sysctl {
    /// Accepts `net.*` and, of the IPC namespace, `kernel.sem`, `kernel.shm*`, `kernel.msg*` and `fs.mqueue.*`.
    ///
    /// The first separator tells the other's meaning, as in sysctl(8): `net.ipv4.conf.eth0/100.forwarding` and
    /// `net/ipv4/conf/eth0.100/forwarding` are the same. Source: Kubernetes' list of namespaced sysctls.
    pub fn parse(key: &str, value: &str) -> Result<Self, ParseSysctlError> {
        let bad_key = || ParseSysctlError::Key(key.to_owned());
        let is_known = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'/' | b'_' | b'-');
        if key.is_empty() || key.len() > KEY_MAX || !key.bytes().all(is_known) {
            return Err(bad_key());
        }
        let dotted = key.bytes().find(|byte| matches!(byte, b'.' | b'/')) == Some(b'.');
        let path: String = if dotted {
            let swap = |c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            };
            key.chars().map(swap).collect()
        } else {
            key.to_owned()
        };
        if path.split('/').any(|part| matches!(part, "" | "." | "..")) {
            return Err(bad_key());
        }
        let Some(kind) = owner(&path) else { return Err(ParseSysctlError::NotNamespaced(key.to_owned())) };
        if value.len() > VALUE_MAX || value.chars().any(|c| c.is_control() && c != '\t') {
            return Err(ParseSysctlError::Value { key: key.to_owned(), value: value.to_owned() });
        }
        Ok(Self { key: key.to_owned(), value: value.to_owned(), path, kind })
    }

    /// The key as it was given.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.key
    }

    /// The value.
    #[must_use]
    pub fn value(&self) -> &str {
        &self.value
    }

    /// The namespace it belongs to: network or IPC.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Relative to `/proc/sys`.
    pub(super) fn path(&self) -> &str {
        &self.path
    }
}

fn owner(path: &str) -> Option<Kind> {
    match path.split_once('/')? {
        ("net", _) => Some(Kind::Net),
        ("fs", rest) => rest.starts_with("mqueue/").then_some(Kind::Ipc),
        ("kernel", rest) => {
            let is_ipc = rest == "sem" || rest.starts_with("shm") || rest.starts_with("msg");
            (is_ipc && !rest.contains('/')).then_some(Kind::Ipc)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_values() {
        type Case = (&'static str, &'static str, Result<(&'static str, Kind), &'static str>);
        let cases: &[Case] = &[
            ("net.core.somaxconn", "1024", Ok(("net/core/somaxconn", Kind::Net))),
            ("net/core/somaxconn", "1024", Ok(("net/core/somaxconn", Kind::Net))),
            ("net.ipv4.conf.eth0/100.rp_filter", "0", Ok(("net/ipv4/conf/eth0.100/rp_filter", Kind::Net))),
            ("net/ipv4/conf/eth0.100/rp_filter", "0", Ok(("net/ipv4/conf/eth0.100/rp_filter", Kind::Net))),
            ("net.ipv4.ip_local_port_range", "1024\t65000", Ok(("net/ipv4/ip_local_port_range", Kind::Net))),
            ("kernel.shm_rmid_forced", "1", Ok(("kernel/shm_rmid_forced", Kind::Ipc))),
            ("kernel.sem", "32000 1024000000 500 32000", Ok(("kernel/sem", Kind::Ipc))),
            ("kernel.msgmax", "65536", Ok(("kernel/msgmax", Kind::Ipc))),
            ("fs.mqueue.queues_max", "10", Ok(("fs/mqueue/queues_max", Kind::Ipc))),
            ("kernel.core_pattern", "|/bin/sh", Err("not kept")),
            ("kernel.semaphore", "1", Err("not kept")),
            ("kernel/shm/../core_pattern", "1", Err("not the name")),
            ("net", "1", Err("not kept")),
            ("vm.overcommit_memory", "1", Err("not kept")),
            ("fs.mqueue", "1", Err("not kept")),
            ("fs.file-max", "1", Err("not kept")),
            ("net/../kernel/core_pattern", "x", Err("not the name")),
            ("net.//.kernel.core_pattern", "x", Err("not the name")),
            ("/net/ipv4/ip_forward", "1", Err("not the name")),
            ("net..x", "1", Err("not the name")),
            ("", "1", Err("not the name")),
            ("net.ipv4.x+kernel.core_pattern=|x", "1", Err("not the name")),
            ("net.ipv4.ip forward", "1", Err("not the name")),
            ("net.ipv4.ip_forward", "1\nx", Err("cannot be set")),
            ("net.ipv4.ip_forward", "1\0", Err("cannot be set")),
            ("net.ipv4.ip_forward", "1\u{85}", Err("cannot be set")),
        ];
        for (key, value, expected) in cases {
            let got = Sysctl::parse(key, value);
            match (expected, &got) {
                (Ok((path, kind)), Ok(sysctl)) => {
                    assert_eq!((sysctl.path(), sysctl.kind()), (*path, *kind), "{key}");
                    assert_eq!((sysctl.key(), sysctl.value()), (*key, *value));
                }
                (Err(part), Err(error)) => assert!(error.to_string().contains(part), "{key}: {error}"),
                _ => panic!("{key}={value}: {got:?}"),
            }
        }
    }
}
