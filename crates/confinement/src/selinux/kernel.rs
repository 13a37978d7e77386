//! The kernel's side: whether it has a policy, and what it makes of a label.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use domain::selinux::{BadLabel, Label};
use rustix::fs::StatVfsMountFlags;
use thiserror::Error;

/// linux/magic.h
const SELINUX_MAGIC: i64 = 0xf97c_ff8c;
/// The policy's files about containers have a dozen lines.
const CONTEXTS_MAX_BYTES: u64 = 1 << 20;
/// What the kernel calls itself before a policy is loaded.
const NO_POLICY: &str = "kernel";

/// Where the machine keeps its policy.
#[derive(Debug, Clone)]
pub struct Machine {
    /// The kernel's files.
    pub selinuxfs: PathBuf,
    /// Which policy is used.
    pub config: PathBuf,
    /// The labels of containers, where containers' own policy package brings them.
    pub contexts: PathBuf,
}

impl Default for Machine {
    fn default() -> Self {
        Self {
            selinuxfs: "/sys/fs/selinux".into(),
            config: "/etc/selinux/config".into(),
            contexts: "/usr/share/containers/selinux/contexts".into(),
        }
    }
}

/// Why a label cannot be used.
#[derive(Debug, Error)]
pub enum CheckLabelError {
    /// The policy has no such user, role, type or level, or not together.
    #[error("SELinux label {label} is not valid in this node's policy")]
    Invalid {
        /// The label.
        label: Label,
    },
    /// The kernel could not be asked.
    #[error("check SELinux label {label}")]
    Ask {
        /// The label.
        label: Label,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The kernel's spelling of it.
    #[error(transparent)]
    Spelling(#[from] BadLabel),
}

impl Machine {
    /// Whether a policy is loaded and its files can be used. Source: CRI-O's library.
    pub(crate) fn is_enabled(&self) -> bool {
        let is_mounted = rustix::fs::statfs(&self.selinuxfs).is_ok_and(|stat| stat.f_type == SELINUX_MAGIC)
            && rustix::fs::statvfs(&self.selinuxfs).is_ok_and(|stat| !stat.f_flag.contains(StatVfsMountFlags::RDONLY));
        let has_policy = || fs::read("/proc/self/attr/current").is_ok_and(|label| trim(&label) != NO_POLICY.as_bytes());
        is_mounted && has_policy()
    }

    /// The file of container labels that counts, and its text.
    pub(crate) fn contexts(&self) -> (PathBuf, io::Result<String>) {
        if let Ok(text) = read(&self.contexts) {
            return (self.contexts.clone(), Ok(text));
        }
        let policy =
            read(&self.config).ok().and_then(|text| policy_name(&text)).unwrap_or_else(|| "targeted".to_owned());
        let root = self.config.parent().unwrap_or(Path::new("/"));
        let path = root.join(policy).join("contexts/lxc_contexts");
        let text = read(&path);
        (path, text)
    }

    /// The label in the kernel's own spelling, as files and processes of that label show it.
    pub(crate) fn check(&self, label: &Label) -> Result<Label, CheckLabelError> {
        let ask = || -> io::Result<Vec<u8>> {
            let mut file = File::options().read(true).write(true).open(self.selinuxfs.join("context"))?;
            file.write_all(label.to_string().as_bytes())?;
            let mut answer = Vec::new();
            file.take(CONTEXTS_MAX_BYTES).read_to_end(&mut answer)?;
            Ok(answer)
        };
        match ask() {
            Ok(answer) => Ok(Label::parse(&String::from_utf8_lossy(trim(&answer)))?),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(CheckLabelError::Invalid { label: label.clone() })
            }
            Err(source) => Err(CheckLabelError::Ask { label: label.clone(), source }),
        }
    }
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(CONTEXTS_MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

/// `SELINUXTYPE` of `/etc/selinux/config`: the name of a directory.
fn policy_name(text: &str) -> Option<String> {
    let name = text.lines().filter_map(|line| line.trim().strip_prefix("SELINUXTYPE=")).next_back()?.trim();
    let is_name = !name.is_empty() && !name.starts_with('.') && !name.contains('/');
    is_name.then(|| name.to_owned())
}

/// The kernel ends its texts with a NUL or a line break.
pub(crate) fn trim(bytes: &[u8]) -> &[u8] {
    bytes.strip_suffix(b"\0").unwrap_or(bytes).trim_ascii_end()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_the_one_the_node_uses() {
        for (text, expected) in [
            ("SELINUX=enforcing\nSELINUXTYPE=targeted\n", Some("targeted")),
            ("#SELINUXTYPE=mls\n SELINUXTYPE=default \n", Some("default")),
            ("SELINUXTYPE=a\nSELINUXTYPE=b", Some("b")),
            ("SELINUXTYPE=../../tmp", None),
            ("SELINUXTYPE=", None),
            ("", None),
        ] {
            assert_eq!(policy_name(text).as_deref(), expected, "{text:?}");
        }
    }

    #[test]
    fn the_packages_contexts_come_before_the_policy_s() {
        let directory = tempfile::tempdir().expect("a directory");
        let put = |path: &str, text: &str| {
            let path = directory.path().join(path);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            File::create(path).expect("a file").write_all(text.as_bytes()).expect("writes");
        };
        let machine = Machine {
            selinuxfs: directory.path().to_owned(),
            config: directory.path().join("selinux/config"),
            contexts: directory.path().join("contexts"),
        };
        assert!(!machine.is_enabled(), "an ordinary directory");
        let (path, text) = machine.contexts();
        assert!(text.is_err() && path.ends_with("selinux/targeted/contexts/lxc_contexts"), "{path:?}");
        put("selinux/config", "SELINUXTYPE=mine\n");
        put("selinux/mine/contexts/lxc_contexts", "of the policy");
        assert_eq!(machine.contexts().1.expect("reads"), "of the policy");
        put("contexts", "of the package");
        assert_eq!(machine.contexts().1.expect("reads"), "of the package");
    }
}
