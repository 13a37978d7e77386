//! `intent.json`: what a sandbox is in the middle of, so that a restart finishes or undoes it.
//!
//! Ours alone; CRI-O ignores the file. It exists only while an operation runs:
//!
//! ```text
//! {"version":1,"intent":"creating","cgroup_parent":"/kubepods/x"}   sandbox half made: undo everything
//! {"version":1,"intent":"removing", ...}                            sandbox half removed: go on removing
//! ```

use std::path::Path;
use std::{fs, io};

use serde::{Deserialize, Serialize};

use crate::{LoadError, SaveError, load, save};

const FILE: &str = "intent.json";
const VERSION: u32 = 1;

/// What was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Intent {
    /// The sandbox is being made.
    Creating,
    /// The sandbox is being removed.
    Removing,
}

/// A sandbox's unfinished operation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxIntent {
    /// What was begun.
    pub intent: Intent,
    /// Where its cgroups are, which nothing else records before the spec is written.
    pub cgroup_parent: String,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    version: u32,
    intent: Intent,
    cgroup_parent: String,
}

/// Reads what is unfinished in a sandbox's persistent directory.
pub fn load_intent(directory: &Path) -> Result<Option<SandboxIntent>, LoadError> {
    let path = directory.join(FILE);
    let Some(bytes) = load(&path)? else { return Ok(None) };
    let invalid = |reason| LoadError::Invalid { path: path.clone(), reason };
    let wire: Wire = serde_json::from_slice(&bytes).map_err(|error| invalid(error.to_string()))?;
    if wire.version != VERSION {
        return Err(invalid(format!("version {} is not known", wire.version)));
    }
    Ok(Some(SandboxIntent { intent: wire.intent, cgroup_parent: wire.cgroup_parent }))
}

/// Writes down what is about to be done.
pub fn save_intent(directory: &Path, intent: &SandboxIntent) -> Result<(), SaveError> {
    let path = directory.join(FILE);
    let wire = Wire { version: VERSION, intent: intent.intent, cgroup_parent: intent.cgroup_parent.clone() };
    let bytes = serde_json::to_vec(&wire).map_err(|error| SaveError { path: path.clone(), source: error.into() })?;
    save(&path, &bytes, 0o600)
}

/// Strikes out what has been done.
pub fn clear_intent(directory: &Path) -> Result<(), SaveError> {
    let path = directory.join(FILE);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(SaveError { path, source: error }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_intent_is_there_until_it_is_cleared() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path();
        assert_eq!(load_intent(path).expect("loads"), None);
        let intent = SandboxIntent { intent: Intent::Creating, cgroup_parent: "/pods".into() };
        save_intent(path, &intent).expect("saves");
        assert_eq!(load_intent(path).expect("loads"), Some(intent));
        clear_intent(path).expect("clears");
        clear_intent(path).expect("clears twice");
        assert_eq!(load_intent(path).expect("loads"), None);
    }

    #[test]
    fn a_newer_version_is_refused() {
        let directory = tempfile::tempdir().expect("a directory");
        save(&directory.path().join(FILE), br#"{"version":2,"intent":"creating","cgroup_parent":""}"#, 0o600)
            .expect("saves");
        assert!(load_intent(directory.path()).is_err());
    }
}
