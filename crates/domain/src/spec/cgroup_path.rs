//! Where cgroups of sandboxes, containers and monitors are, as text. Pure; crate `cgroup` works on the files.
//!
//! Source: CRI-O's cgroupfs and systemd managers; systemd.slice(5) for how slice names nest.

use thiserror::Error;

/// Prefix of the last segment, and of scope names.
const PREFIX: &str = "crio";
/// Longest parent: a path the kernel takes with an id appended.
const PARENT_MAX_BYTES: usize = 2048;
/// Longest systemd unit name (`UNIT_NAME_MAX`).
const UNIT_NAME_MAX_BYTES: usize = 255;

/// Who makes cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum CgroupManagerKind {
    /// The daemon and the runtime, as directories.
    Cgroupfs,
    /// systemd, over D-Bus.
    #[default]
    Systemd,
}

/// Why a parent is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CgroupPathError {
    /// cgroupfs was given a slice.
    #[error("cgroup parent {parent:?} is a systemd slice, and the cgroup manager is cgroupfs")]
    SliceWithCgroupfs {
        /// As given.
        parent: String,
    },
    /// systemd was given something else.
    #[error("cgroup parent {parent:?} must end in .slice with the systemd cgroup manager")]
    NoSlice {
        /// As given.
        parent: String,
    },
    /// A slice name systemd would not take, or that nests wrongly.
    #[error("cgroup parent {parent:?} is not a valid slice name")]
    BadSlice {
        /// As given.
        parent: String,
    },
    /// What could lead out of the hierarchy or split a field.
    #[error("cgroup parent {parent:?} has dot segments, control characters, colons or is too long")]
    Unsafe {
        /// As given.
        parent: String,
    },
}

fn clip(text: &str) -> String {
    text.chars().take(200).collect()
}

fn check_text(parent: &str) -> Result<(), CgroupPathError> {
    let is_bad = parent.len() > PARENT_MAX_BYTES
        || parent.chars().any(|character| character.is_control() || character.is_whitespace() || character == ':')
        || parent.split('/').any(|segment| matches!(segment, "." | ".."));
    if is_bad { Err(CgroupPathError::Unsafe { parent: clip(parent) }) } else { Ok(()) }
}

/// A parent cgroup that fits its manager.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CgroupParent {
    /// Absolute path in the hierarchy, without a slash at the end; `/` itself is the empty text.
    Cgroupfs(String),
    /// Name of a slice, with `.slice`.
    Systemd(String),
}

impl CgroupParent {
    /// Checks the `cgroup_parent` of a pod; empty takes `/crio` or `system.slice`.
    pub fn parse(manager: CgroupManagerKind, parent: &str) -> Result<Self, CgroupPathError> {
        check_text(parent)?;
        match manager {
            CgroupManagerKind::Cgroupfs => {
                if parent.trim_end_matches('/').ends_with(".slice") {
                    return Err(CgroupPathError::SliceWithCgroupfs { parent: clip(parent) });
                }
                if parent.is_empty() {
                    return Ok(Self::Cgroupfs(format!("/{PREFIX}")));
                }
                let segments = parent.split('/').filter(|segment| !segment.is_empty());
                Ok(Self::Cgroupfs(segments.map(|segment| format!("/{segment}")).collect()))
            }
            CgroupManagerKind::Systemd => {
                if parent.is_empty() {
                    return Ok(Self::Systemd("system.slice".to_owned()));
                }
                if !parent.ends_with(".slice") {
                    return Err(CgroupPathError::NoSlice { parent: clip(parent) });
                }
                // The kubelet passes the expanded path; only its last segment is the unit.
                let name = parent.rsplit('/').next().unwrap_or(parent);
                slice_path(name)?;
                Ok(Self::Systemd(name.to_owned()))
            }
        }
    }

    /// `linux.cgroupsPath` of a sandbox or container.
    #[must_use]
    pub fn oci_path(&self, id: &str) -> String {
        match self {
            Self::Cgroupfs(parent) => format!("{parent}/{PREFIX}-{id}"),
            Self::Systemd(slice) => format!("{slice}:{PREFIX}:{id}"),
        }
    }

    /// The parent's path in the hierarchy.
    #[must_use]
    pub fn directory(&self) -> String {
        match self {
            Self::Cgroupfs(parent) => parent.clone(),
            // Checked by `parse`; a name that does not nest cannot be in here.
            Self::Systemd(slice) => slice_path(slice).unwrap_or_default(),
        }
    }

    /// Path in the hierarchy of the cgroup the runtime makes for [`Self::oci_path`].
    #[must_use]
    pub fn container_directory(&self, id: &str) -> String {
        match self {
            Self::Cgroupfs(parent) => format!("{parent}/{PREFIX}-{id}"),
            Self::Systemd(_) => format!("{}/{PREFIX}-{id}.scope", self.directory()),
        }
    }

    /// Path in the hierarchy of a pod's own cgroup when no infra container makes it. Not a scope: the daemon makes it
    /// as a directory with either manager, as CRI-O does.
    #[must_use]
    pub fn sandbox_directory(&self, id: &str) -> String {
        format!("{}/{PREFIX}-{id}", self.directory())
    }

    /// Name of the monitor's cgroup beside the container's: a directory, or a scope.
    #[must_use]
    pub fn monitor_name(&self, id: &str) -> String {
        match self {
            Self::Cgroupfs(_) => format!("{PREFIX}-conmon-{id}"),
            Self::Systemd(_) => format!("{PREFIX}-conmon-{id}.scope"),
        }
    }
}

/// `a-b.slice` → `/a.slice/a-b.slice`; `-.slice` → the root, an empty text.
pub fn slice_path(name: &str) -> Result<String, CgroupPathError> {
    let bad = || CgroupPathError::BadSlice { parent: clip(name) };
    let stem = name.strip_suffix(".slice").ok_or_else(bad)?;
    if stem == "-" {
        return Ok(String::new());
    }
    let is_name = name.len() <= UNIT_NAME_MAX_BYTES
        && !stem.is_empty()
        && stem.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-' | b'\\' | b'@'));
    // Empty parts would stand for slices called ".slice".
    if !is_name || stem.split('-').any(str::is_empty) {
        return Err(bad());
    }
    let mut path = String::new();
    let mut prefix = String::new();
    for part in stem.split('-') {
        if !prefix.is_empty() {
            prefix.push('-');
        }
        prefix.push_str(part);
        path.push('/');
        path.push_str(&prefix);
        path.push_str(".slice");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use CgroupManagerKind::{Cgroupfs, Systemd};

    #[test]
    fn parents_become_paths() {
        for (manager, parent, oci, directory) in [
            (Cgroupfs, "", "/crio/crio-ID", "/crio/crio-ID"),
            (Cgroupfs, "/kubepods/pod1", "/kubepods/pod1/crio-ID", "/kubepods/pod1/crio-ID"),
            (Cgroupfs, "kubepods//pod1/", "/kubepods/pod1/crio-ID", "/kubepods/pod1/crio-ID"),
            (Cgroupfs, "/", "/crio-ID", "/crio-ID"),
            (Systemd, "", "system.slice:crio:ID", "/system.slice/crio-ID.scope"),
            (
                Systemd,
                "kubepods-burstable-podx_1.slice",
                "kubepods-burstable-podx_1.slice:crio:ID",
                "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx_1.slice/crio-ID.scope",
            ),
            (
                Systemd,
                "/kubepods.slice/kubepods-a.slice",
                "kubepods-a.slice:crio:ID",
                "/kubepods.slice/kubepods-a.slice/crio-ID.scope",
            ),
            (Systemd, "-.slice", "-.slice:crio:ID", "/crio-ID.scope"),
        ] {
            let parsed = CgroupParent::parse(manager, parent).expect("valid");
            assert_eq!((parsed.oci_path("ID").as_str(), parsed.container_directory("ID").as_str()), (oci, directory));
        }
    }

    #[test]
    fn parents_that_do_not_fit_are_refused() {
        for (manager, parent) in [
            (Cgroupfs, "/kubepods.slice"),
            (Cgroupfs, "/kubepods.slice/"),
            (Cgroupfs, "/a/../b"),
            (Cgroupfs, "/a:b"),
            (Cgroupfs, "/a\nb"),
            (Systemd, "/kubepods/pod1"),
            (Systemd, "a--b.slice"),
            (Systemd, "-a.slice"),
            (Systemd, "a-.slice"),
            (Systemd, ".slice"),
            (Systemd, "a b.slice"),
            (Systemd, "a:b.slice"),
            (Systemd, "../x.slice"),
        ] {
            assert!(CgroupParent::parse(manager, parent).is_err(), "{parent:?}");
        }
    }

    #[test]
    fn monitors_have_their_own_cgroup() {
        let fs = CgroupParent::parse(Cgroupfs, "/p").expect("valid");
        assert_eq!((fs.monitor_name("I"), fs.sandbox_directory("I")), ("crio-conmon-I".into(), "/p/crio-I".into()));
        let systemd = CgroupParent::parse(Systemd, "p.slice").expect("valid");
        assert_eq!(systemd.monitor_name("I"), "crio-conmon-I.scope");
        assert_eq!(systemd.sandbox_directory("I"), "/p.slice/crio-I");
    }
}
