//! Version files: how a daemon learns that the node was rebooted or that another version ran before it.
//!
//! The one in a temporary file system tells of a reboot: it is gone. Both hold the version as a JSON string. Source:
//! CRI-O.

use std::fs;
use std::path::Path;

use durable::{Durability, ReplaceError};

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Whether what an earlier daemon left belongs to another version or another boot. No path, no opinion.
pub(crate) fn is_outdated(path: Option<&Path>) -> bool {
    let Some(path) = path else { return false };
    let Ok(bytes) = fs::read(path) else { return true };
    let version: Option<String> = serde_json::from_slice(&bytes).ok();
    version.is_none_or(|version| minor(&version) != minor(VERSION))
}

fn minor(version: &str) -> Option<(&str, &str)> {
    let mut parts = version.split('.');
    Some((parts.next()?, parts.next()?))
}

/// Writes this version down.
pub(crate) fn write(path: Option<&Path>) -> Result<(), ReplaceError> {
    let Some(path) = path else { return Ok(()) };
    if let Some(parent) = path.parent() {
        // A missing directory shows in the write below.
        let _ = fs::create_dir_all(parent);
    }
    durable::replace(path, format!("\"{VERSION}\"").as_bytes(), 0o644, Durability::Durable)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_another_minor_version_or_no_file_is_outdated() {
        let path = std::env::temp_dir().join(format!("crio-version-{}", std::process::id()));
        assert!(!is_outdated(None));
        assert!(is_outdated(Some(&path)));
        write(Some(&path)).expect("writes");
        assert!(!is_outdated(Some(&path)));
        for (text, outdated) in
            [("\"1.37.9\"", false), ("\"1.36.0\"", true), ("\"2.37.0\"", true), ("1.37", true), ("", true)]
        {
            durable::replace(&path, text.as_bytes(), 0o644, Durability::Volatile).expect("writes");
            assert_eq!(is_outdated(Some(&path)), outdated, "{text}");
        }
        fs::remove_file(&path).expect("cleans up");
    }
}
