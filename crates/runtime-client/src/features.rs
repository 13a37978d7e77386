//! What a runtime says it can do: the `features` command of the OCI runtime specification.

use std::ffi::OsStr;
use std::time::Duration;

use serde::Deserialize;

use crate::{RuntimeHandler, child};

/// The command only prints; a runtime that needs longer is not asked again.
const FEATURES_LIMIT: Duration = Duration::from_secs(10);

/// The features that change what pods may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// Mounts that are read-only all the way down.
    pub has_recursive_read_only: bool,
    /// Id-mapped mounts, without which user namespaces of pods do not work.
    pub has_idmapped_mounts: bool,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct Wire {
    oci_version_min: String,
    oci_version_max: String,
    mount_options: Vec<String>,
    linux: WireLinux,
}

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct WireLinux {
    mount_extensions: WireMountExtensions,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireMountExtensions {
    idmap: WireIdmap,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct WireIdmap {
    enabled: Option<bool>,
}

/// Reads the answer of `features`; anything that is none means that nothing special is supported.
#[must_use]
pub fn parse_features(json: &[u8]) -> Features {
    let Ok(wire) = serde_json::from_slice::<Wire>(json) else { return Features::default() };
    if wire.oci_version_min.is_empty() || wire.oci_version_max.is_empty() {
        return Features::default();
    }
    Features {
        has_recursive_read_only: wire.mount_options.iter().any(|option| option == "rro"),
        has_idmapped_mounts: wire.linux.mount_extensions.idmap.enabled == Some(true),
    }
}

impl RuntimeHandler {
    /// Asks the runtime what it can do. A runtime too old to answer can do nothing special.
    pub async fn features(&self) -> Features {
        match child::capture(&self.runtime, &[OsStr::new("features")], None, FEATURES_LIMIT).await {
            Ok(end) if end.status.is_success() => parse_features(&end.stdout),
            Ok(_) | Err(_) => Features::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_need_both_versions() {
        let full = br#"{"ociVersionMin":"1.0.0","ociVersionMax":"1.1.0","mountOptions":["ro","rro"],
            "linux":{"mountExtensions":{"idmap":{"enabled":true}}}}"#;
        let both = Features { has_recursive_read_only: true, has_idmapped_mounts: true };
        for (json, expected) in [
            (&full[..], both),
            (br#"{"ociVersionMin":"1.0.0","mountOptions":["rro"]}"#, Features::default()),
            (br#"{"ociVersionMin":"1","ociVersionMax":"1"}"#, Features::default()),
            (b"unknown command", Features::default()),
        ] {
            assert_eq!(parse_features(json), expected);
        }
    }
}
