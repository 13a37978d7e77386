//! Which hierarchies are mounted where, and what carries the controllers.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use domain::spec::CgroupVersion;
use thiserror::Error;

/// Most of `/proc/self/mountinfo` that is read: tens of thousands of mounts stay below it.
const MOUNTINFO_MAX_BYTES: u64 = 16 << 20;

/// v1 mount options that are no controllers.
const V1_OPTIONS: [&str; 8] = ["rw", "ro", "xattr", "clone_children", "noprefix", "none", "seclabel", "favordynmods"];

/// Why cgroups cannot be used.
#[derive(Debug, Error)]
pub enum DetectError {
    /// The list of mounts cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Neither v1 controllers nor cgroup2 are mounted.
    #[error("no cgroup hierarchy is mounted")]
    NotMounted,
}

/// One mounted v1 hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hierarchy {
    /// Where it is mounted.
    pub mount: PathBuf,
    /// Its controllers, as in `cpu` and `cpuacct`; a named hierarchy has one entry as in `name=systemd`.
    pub controllers: Vec<String>,
}

impl Hierarchy {
    fn is_named(&self) -> bool {
        self.controllers.iter().all(|controller| controller.starts_with("name="))
    }
}

/// The hierarchies of this machine. Paths in them are absolute texts as in `/crio/crio-<id>`, below each mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// v1 hierarchies in the order of their mounts; empty on v2.
    hierarchies: Vec<Hierarchy>,
    /// Where cgroup2 is mounted, if it is.
    unified: Option<PathBuf>,
    /// Controllers of cgroup2's root.
    unified_controllers: Vec<String>,
}

impl Layout {
    /// Reads what is mounted in this mount namespace.
    pub fn detect() -> Result<Self, DetectError> {
        let path = Path::new("/proc/self/mountinfo");
        let text = crate::tree::read_bounded(path, MOUNTINFO_MAX_BYTES)
            .map_err(|source| DetectError::Read { path: path.to_owned(), source })?;
        let mut layout = Self::parse(&text);
        if let Some(unified) = &layout.unified {
            let path = unified.join("cgroup.controllers");
            let text = fs::read_to_string(&path).map_err(|source| DetectError::Read { path, source })?;
            layout.unified_controllers = text.split_whitespace().map(str::to_owned).collect();
        }
        if layout.unified.is_none() && layout.controllers().next().is_none() {
            return Err(DetectError::NotMounted);
        }
        Ok(layout)
    }

    /// Finds the hierarchies in the text of a mountinfo file, proc(5). The first mount of each counts; container mounts
    /// of the same hierarchies come later and lie deeper.
    #[must_use]
    pub fn parse(mountinfo: &str) -> Self {
        let mut layout = Self { hierarchies: vec![], unified: None, unified_controllers: vec![] };
        for line in mountinfo.lines() {
            let Some((before, after)) = line.split_once(" - ") else { continue };
            let Some(mount) = before.split(' ').nth(4) else { continue };
            let mut fields = after.split(' ');
            let (Some(kind), Some(_source), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let mount = PathBuf::from(unescape(mount));
            // What was mounted here before cannot be reached any more.
            layout.hierarchies.retain(|known| known.mount != mount);
            layout.unified = layout.unified.filter(|known| *known != mount);
            match kind {
                "cgroup2" if layout.unified.is_none() => layout.unified = Some(mount),
                "cgroup" => {
                    let controllers: Vec<String> = options
                        .split(',')
                        .filter(|option| !V1_OPTIONS.contains(option) && !option.starts_with("release_agent="))
                        .map(str::to_owned)
                        .collect();
                    let is_known = layout.hierarchies.iter().any(|known| known.controllers == controllers);
                    if !controllers.is_empty() && !is_known {
                        layout.hierarchies.push(Hierarchy { mount, controllers });
                    }
                }
                _ => {}
            }
        }
        layout
    }

    /// v2 only when no v1 hierarchy carries a controller.
    #[must_use]
    pub fn version(&self) -> CgroupVersion {
        let has_v1 = self.hierarchies.iter().any(|hierarchy| !hierarchy.is_named());
        if has_v1 || self.unified.is_none() { CgroupVersion::V1 } else { CgroupVersion::V2 }
    }

    /// v1 controllers beside a mounted cgroup2.
    #[must_use]
    pub fn is_hybrid(&self) -> bool {
        self.version() == CgroupVersion::V1 && self.unified.is_some()
    }

    /// Controllers of the hierarchies in use, named ones left out.
    pub fn controllers(&self) -> impl Iterator<Item = &str> {
        let v1 = self.hierarchies.iter().flat_map(|hierarchy| &hierarchy.controllers);
        let v2 = self.unified_controllers.iter().filter(|_| self.version() == CgroupVersion::V2);
        v1.filter(|name| !name.starts_with("name=")).chain(v2).map(String::as_str)
    }

    /// Whether a controller is there.
    #[must_use]
    pub fn has_controller(&self, name: &str) -> bool {
        self.controllers().any(|controller| controller == name)
    }

    /// v1 hierarchies.
    #[must_use]
    pub fn hierarchies(&self) -> &[Hierarchy] {
        &self.hierarchies
    }

    /// Where cgroup2 is mounted.
    #[must_use]
    pub fn unified(&self) -> Option<&Path> {
        self.unified.as_deref()
    }

    /// The directory of a cgroup in the hierarchy of one controller (v1), or in the only one (v2).
    #[must_use]
    pub fn directory(&self, controller: &str, path: &str) -> Option<PathBuf> {
        let mount = match self.version() {
            CgroupVersion::V2 => self.unified.as_ref(),
            CgroupVersion::V1 => self
                .hierarchies
                .iter()
                .find(|hierarchy| hierarchy.controllers.iter().any(|name| name == controller))
                .map(|hierarchy| &hierarchy.mount),
        };
        mount.map(|mount| below(mount, path))
    }

    /// Mounts in which cgroups are made: all v1 hierarchies, or cgroup2.
    pub(crate) fn working_mounts(&self) -> Vec<&Path> {
        match self.version() {
            CgroupVersion::V2 => self.unified.iter().map(PathBuf::as_path).collect(),
            CgroupVersion::V1 => self.hierarchies.iter().map(|hierarchy| hierarchy.mount.as_path()).collect(),
        }
    }

    /// Mounts in which something may have been left: also cgroup2 beside v1, where some runtimes make a cgroup.
    pub(crate) fn all_mounts(&self) -> Vec<&Path> {
        let v1 = self.hierarchies.iter().map(|hierarchy| hierarchy.mount.as_path());
        v1.chain(self.unified.as_deref()).collect()
    }
}

/// `path` was checked by [`crate::tree::check_path`]: absolute, without dot segments.
pub(crate) fn below(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

/// `\040` and its like, as proc(5) writes blanks in paths.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        let code = after.get(..3).and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(code) if code.is_ascii() => {
                out.push(char::from(code));
                rest = &after[3..];
            }
            _ => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const V1: &str = "31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n\
        33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,release_agent=/x,name=systemd\n\
        35 99 0:30 /crio /var/lib/x/memory rw - cgroup cgroup rw,memory\n";

    #[test]
    fn layouts_are_told_apart() {
        let hybrid = format!("{V1}36 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n");
        let v2 =
            "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n40 1 0:9 / /a\\040b rw - ext4 /dev/x rw\n";
        for (text, version, is_hybrid, memory) in [
            (V1, CgroupVersion::V1, false, Some("/sys/fs/cgroup/memory/crio/x")),
            (&hybrid, CgroupVersion::V1, true, Some("/sys/fs/cgroup/memory/crio/x")),
            (v2, CgroupVersion::V2, false, Some("/sys/fs/cgroup/crio/x")),
            ("", CgroupVersion::V1, false, None),
        ] {
            let layout = Layout::parse(text);
            assert_eq!((layout.version(), layout.is_hybrid()), (version, is_hybrid));
            assert_eq!(layout.directory("memory", "/crio/x"), memory.map(PathBuf::from));
        }
        let covered = format!("{hybrid}50 36 0:40 / /sys/fs/cgroup/unified rw - tmpfs none rw\n");
        assert!(!Layout::parse(&covered).is_hybrid(), "a mount that is covered is not there");
        let layout = Layout::parse(V1);
        assert_eq!(layout.controllers().collect::<Vec<_>>(), ["cpu", "cpuacct", "memory"]);
        assert_eq!(layout.directory("cpuacct", "/a"), Some("/sys/fs/cgroup/cpu,cpuacct/a".into()));
        assert_eq!(layout.directory("name=systemd", "/a"), Some("/sys/fs/cgroup/systemd/a".into()));
        assert_eq!((layout.hierarchies().len(), layout.directory("pids", "/a")), (3, None));
        assert_eq!(unescape("/a\\040b\\134c\\9"), "/a b\\c\\9");
    }
}
