//! The files of a sandbox that its containers see: resolv.conf, hostname, .containerenv and shared memory.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use domain::id_maps::RootOwner;
use domain::sandbox::{DnsConfig, SandboxConfig};
use domain::security::NamespaceMode;
use domain::selinux::Label;
use domain::spec::annotations::filter_annotations;
use durable::Durability;
use rustix::fs::Mode;
use rustix::mount::{MountFlags, UnmountFlags};
use thiserror::Error;

use crate::linked_logs;
use crate::sandbox::SandboxFiles;
use crate::selinux::{SandboxLabels, shown_mount_label};
use crate::userns;

/// Size of `/dev/shm` where the pod does not say. Source: CRI-O.
const SHM_BYTES: u64 = 64 << 20;
const SHM_ANNOTATION: &str = "shm-size.crio.io";
/// The node's resolver configuration; anything larger is not one.
const RESOLV_CONF_MAX_BYTES: u64 = 1 << 20;
const NODE_RESOLV_CONF: &str = "/etc/resolv.conf";
const NODE_SHM: &str = "/dev/shm";
/// Beside the sandbox's state. Source: CRI-O.
const CONTAINERENV: &str = ".containerenv";

/// Why a file of a sandbox could not be made.
#[derive(Debug, Error)]
pub enum SandboxFileError {
    /// A DNS entry that would be more than its line.
    #[error("dns {field} {value:?} contains white space or a control character")]
    BadDns {
        /// `server`, `search` or `option`.
        field: &'static str,
        /// The entry.
        value: String,
    },
    /// Writing, reading or mounting failed.
    #[error("{action} {path}")]
    Path {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
}

/// The size of a sandbox's `/dev/shm`: that of its annotation, if any. An error is the bad value.
pub(crate) fn shm_bytes(config: &SandboxConfig) -> Result<u64, String> {
    // Those that are not allowed have been left out.
    let all: Vec<String> = config.annotations.keys().cloned().collect();
    match filter_annotations(&config.annotations, &all).effective.remove(SHM_ANNOTATION) {
        None => Ok(SHM_BYTES),
        Some(text) => domain::quantity::parse_bytes(&text).ok_or(text),
    }
}

/// Makes the files in the sandbox's directories. They belong to `root` of its user namespace, if it has one.
pub(crate) fn make(
    config: &SandboxConfig,
    shm_bytes: u64,
    hostname: &str,
    state_directory: &Path,
    run_directory: &Path,
    root: Option<RootOwner>,
    labels: &SandboxLabels,
) -> Result<SandboxFiles, SandboxFileError> {
    let resolv_conf = run_directory.join("resolv.conf");
    let text = match config.dns.as_ref().filter(|dns| !is_empty(dns)) {
        Some(dns) => resolv_conf_text(dns)?.into_bytes(),
        None => node_resolv_conf()?,
    };
    write(&resolv_conf, &text)?;
    let hostname_file = run_directory.join("hostname");
    write(&hostname_file, format!("{hostname}\n").as_bytes())?;
    let containerenv = state_directory.join(CONTAINERENV);
    write(&containerenv, b"")?;
    let shm = if config.security.namespaces.ipc == NamespaceMode::Node {
        PathBuf::from(NODE_SHM)
    } else {
        let shm = run_directory.join("shm");
        mount_shm(&shm, shm_bytes, shown_mount_label(config, labels))?;
        give(&shm, root)?;
        shm
    };
    for file in [&resolv_conf, &hostname_file, &containerenv] {
        give(file, root)?;
    }
    if let Some(label) = labels.mount() {
        for path in [&resolv_conf, &hostname_file, &containerenv] {
            confinement::selinux::label_file(path, label).map_err(|source| SandboxFileError::Path {
                action: "label",
                path: path.clone(),
                source,
            })?;
        }
    }
    Ok(SandboxFiles { resolv_conf, hostname: hostname_file, containerenv, shm })
}

/// The file of a restored sandbox, wherever an earlier daemon put it; made anew if it is lost.
pub(crate) fn find_containerenv(directory: &Path, run_directory: &Path) -> Result<PathBuf, SandboxFileError> {
    let known = [directory, run_directory].map(|directory| directory.join(CONTAINERENV));
    if let Some(path) = known.iter().find(|path| path.exists()) {
        return Ok(path.clone());
    }
    let [path, _] = known;
    write(&path, b"")?;
    Ok(path)
}

/// Unmounts what [`make`] mounted, and linked logs. Nothing there is success: the directories go with the store's record.
pub(crate) fn unmount(run_directory: &Path) -> Result<(), SandboxFileError> {
    // A volume that cannot be reached any more keeps no sandbox from going.
    if let Err(error) = linked_logs::unmount(run_directory) {
        tracing::warn!(path = %run_directory.display(), %error, "linked logs cannot be unmounted");
    }
    let shm = run_directory.join("shm");
    match rustix::mount::unmount(&shm, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
        Ok(()) | Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOENT) => Ok(()),
        Err(error) => Err(SandboxFileError::Path { action: "unmount", path: shm, source: error.into() }),
    }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), SandboxFileError> {
    durable::replace(path, bytes, 0o644, Durability::Volatile).map_err(|error| SandboxFileError::Path {
        action: "write",
        path: path.to_owned(),
        source: io::Error::other(error),
    })
}

fn give(path: &Path, root: Option<RootOwner>) -> Result<(), SandboxFileError> {
    let failed = |source| SandboxFileError::Path { action: "set owner of", path: path.to_owned(), source };
    userns::give(path, root).map_err(failed)
}

fn mount_shm(path: &Path, bytes: u64, label: Option<&Label>) -> Result<(), SandboxFileError> {
    let failed = |action| move |source: io::Error| SandboxFileError::Path { action, path: path.to_owned(), source };
    fs::create_dir_all(path).map_err(failed("create"))?;
    // A label has commas of its own, and nothing that ends the quotes.
    let label = label.map(|label| format!(",context=\"{label}\"")).unwrap_or_default();
    let options = format!("mode=1777,size={bytes}{label}");
    let options = std::ffi::CString::new(options).map_err(io::Error::other).map_err(failed("mount"))?;
    let flags = MountFlags::NOEXEC | MountFlags::NOSUID | MountFlags::NODEV;
    rustix::mount::mount("shm", path, "tmpfs", flags, Some(options.as_c_str()))
        .map_err(io::Error::from)
        .map_err(failed("mount shared memory on"))?;
    // The daemon's umask does not reach into mount options, but some kernels apply it to the root of a tmpfs.
    rustix::fs::chmod(path, Mode::from_raw_mode(0o1777)).map_err(io::Error::from).map_err(failed("chmod"))
}

fn node_resolv_conf() -> Result<Vec<u8>, SandboxFileError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        fs::File::open(NODE_RESOLV_CONF)?.take(RESOLV_CONF_MAX_BYTES).read_to_end(&mut text)?;
        Ok(text)
    };
    match read() {
        Ok(text) => Ok(text),
        // A node without resolver has pods without one.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(source) => Err(SandboxFileError::Path { action: "read", path: NODE_RESOLV_CONF.into(), source }),
    }
}

fn is_empty(dns: &DnsConfig) -> bool {
    dns.servers.is_empty() && dns.searches.is_empty() && dns.options.is_empty()
}

fn resolv_conf_text(dns: &DnsConfig) -> Result<String, SandboxFileError> {
    let groups = [("search", &dns.searches), ("server", &dns.servers), ("option", &dns.options)];
    for (field, entries) in groups {
        if let Some(value) = entries.iter().find(|entry| {
            entry.is_empty() || entry.chars().any(|character| character.is_whitespace() || character.is_control())
        }) {
            return Err(SandboxFileError::BadDns { field, value: value.clone() });
        }
    }
    let mut text = String::new();
    if !dns.searches.is_empty() {
        text.push_str(&format!("search {}\n", dns.searches.join(" ")));
    }
    for server in &dns.servers {
        text.push_str(&format!("nameserver {server}\n"));
    }
    if !dns.options.is_empty() {
        text.push_str(&format!("options {}\n", dns.options.join(" ")));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dns(servers: &[&str], searches: &[&str], options: &[&str]) -> DnsConfig {
        let own = |list: &[&str]| list.iter().map(|entry| (*entry).to_owned()).collect();
        DnsConfig { servers: own(servers), searches: own(searches), options: own(options) }
    }

    #[test]
    fn resolv_conf_has_a_line_a_server() {
        let text = resolv_conf_text(&dns(&["10.0.0.10", "::1"], &["a.b", "c"], &["ndots:5", "timeout:1"]));
        assert_eq!(
            text.expect("is valid"),
            "search a.b c\nnameserver 10.0.0.10\nnameserver ::1\noptions ndots:5 timeout:1\n"
        );
    }

    #[test]
    fn an_annotation_says_how_large_shared_memory_is() {
        let of = |key: &str, value: &str| {
            let annotations = [(key.to_owned(), value.to_owned())].into();
            shm_bytes(&SandboxConfig { annotations, ..SandboxConfig::default() })
        };
        assert_eq!(of("shm-size.crio.io", "128Mi"), Ok(128 << 20));
        assert_eq!(of("io.kubernetes.cri-o.ShmSize", "1Gi"), Ok(1 << 30));
        assert_eq!(of("other.io", "128Mi"), Ok(SHM_BYTES));
        for bad in ["", "0", "-1", "much", "1,mode=0777"] {
            assert_eq!(of("shm-size.crio.io", bad), Err(bad.to_owned()));
        }
    }

    #[test]
    fn an_entry_cannot_become_two_lines() {
        for bad in ["10.0.0.1\nnameserver 6.6.6.6", "a b", "", "a\u{2028}b", "a\0"] {
            assert!(resolv_conf_text(&dns(&[bad], &[], &[])).is_err(), "{bad:?}");
            assert!(resolv_conf_text(&dns(&[], &[bad], &[])).is_err(), "{bad:?}");
            assert!(resolv_conf_text(&dns(&[], &[], &[bad])).is_err(), "{bad:?}");
        }
    }
}
