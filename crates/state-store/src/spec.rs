//! `config.json`: the runtime spec as the runtime got it, whose annotations are CRI-O's memory of the request.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::{LoadError, SaveError, load, save};

const FILE: &str = "config.json";

/// The parts of a stored runtime spec a restart needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StoredSpec {
    /// Annotations.
    pub annotations: BTreeMap<String, String>,
    /// Confinement and namespaces.
    pub linux: StoredLinux,
    /// The process; absent in damaged records only.
    pub process: serde_json::Value,
}

/// The `linux` object of a stored runtime spec.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StoredLinux {
    /// Namespaces with the paths they were joined by.
    pub namespaces: Vec<StoredNamespace>,
    /// The cgroup as the runtime was told.
    pub cgroups_path: String,
    /// Limits in the OCI form.
    pub resources: serde_json::Value,
    /// Users of the user namespace.
    pub uid_mappings: Vec<StoredIdMapping>,
    /// Groups of the user namespace.
    pub gid_mappings: Vec<StoredIdMapping>,
}

/// One range of ids of a user namespace.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StoredIdMapping {
    /// First id inside.
    #[serde(rename = "containerID")]
    pub container_id: u32,
    /// First id on the node.
    #[serde(rename = "hostID")]
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// One namespace entry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct StoredNamespace {
    /// `network`, `ipc`, `uts`, `pid`, `mount`, `user`, `cgroup`.
    #[serde(rename = "type")]
    pub kind: String,
    /// What was joined; empty for a new namespace.
    pub path: PathBuf,
}

impl StoredSpec {
    /// The path by which a namespace was joined.
    #[must_use]
    pub fn namespace_path(&self, kind: &str) -> Option<&Path> {
        self.linux
            .namespaces
            .iter()
            .find(|namespace| namespace.kind == kind && !namespace.path.as_os_str().is_empty())
            .map(|namespace| namespace.path.as_path())
    }
}

/// Reads the spec kept in `directory`; `None` when creation never got that far.
pub fn load_spec(directory: &Path) -> Result<Option<StoredSpec>, LoadError> {
    let path = directory.join(FILE);
    let Some(bytes) = load(&path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).map_err(|error| LoadError::Invalid { path, reason: error.to_string() })
}

/// Reads the spec kept in `directory` as text, for people.
pub fn load_spec_text(directory: &Path) -> Result<Option<String>, LoadError> {
    let path = directory.join(FILE);
    let Some(bytes) = load(&path)? else { return Ok(None) };
    String::from_utf8(bytes).map(Some).map_err(|_| LoadError::Invalid { path, reason: "not UTF-8".to_owned() })
}

/// Replaces the spec kept in `directory`. It may hold secrets of the environment, therefore 0600.
pub fn save_spec(directory: &Path, json: &[u8]) -> Result<(), SaveError> {
    save(&directory.join(FILE), json, 0o600)
}

/// Reads any bytes as a spec; for the fuzzer.
pub fn fuzz_spec(bytes: &[u8]) {
    let _ = serde_json::from_slice::<StoredSpec>(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_gives_its_namespaces_and_annotations() {
        let directory = tempfile::tempdir().expect("a directory");
        assert_eq!(load_spec(directory.path()).expect("loads"), None);
        let json = br#"{"ociVersion":"1.0.2","annotations":{"a":"b"},"linux":{"cgroupsPath":"/crio/x",
            "namespaces":[{"type":"pid"},{"type":"network","path":"/run/netns/u"}]},"unknown":{"x":1}}"#;
        save_spec(directory.path(), json).expect("saves");
        let spec = load_spec(directory.path()).expect("loads").expect("is there");
        assert_eq!(spec.namespace_path("network"), Some(Path::new("/run/netns/u")));
        assert_eq!(spec.namespace_path("pid"), None);
        assert_eq!(spec.annotations.get("a").map(String::as_str), Some("b"));
    }
}
