//! What a container needs to know of its image.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

/// Why an image configuration cannot be read.
#[derive(Debug, Error)]
#[error("read image configuration")]
pub struct ParseImageConfigError(#[source] serde_json::Error);

/// The parts of an OCI or Docker image configuration that shape containers.
///
/// Missing and null fields read as empty, because both Docker and OCI builders write either.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `architecture` as in `amd64`.
    pub architecture: String,
    /// `os` as in `linux`.
    pub os: String,
    /// `variant` as in `v8`.
    pub variant: String,
    /// `config.User`: `user[:group]`, names or numbers.
    pub user: String,
    /// `config.Env`, `K=V` each.
    pub env: Vec<String>,
    /// `config.Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `config.Cmd`.
    pub cmd: Vec<String>,
    /// `config.WorkingDir`.
    pub working_dir: String,
    /// `config.Volumes`: paths in the container.
    pub volumes: Vec<String>,
    /// `config.Labels`.
    pub labels: BTreeMap<String, String>,
    /// `config.StopSignal`: name or number; empty when not given.
    pub stop_signal: String,
    /// `rootfs.diff_ids` in order, base first.
    pub diff_ids: Vec<String>,
    /// `created`, RFC 3339, as written.
    pub created: String,
}

#[derive(Deserialize)]
struct RawImage {
    architecture: Option<String>,
    os: Option<String>,
    variant: Option<String>,
    created: Option<String>,
    config: Option<RawConfig>,
    rootfs: Option<RawRootfs>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
struct RawConfig {
    user: Option<String>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    working_dir: Option<String>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

#[derive(Deserialize, Default)]
struct RawRootfs {
    diff_ids: Option<Vec<String>>,
}

impl ImageConfig {
    /// Reads the configuration blob of an image.
    pub fn parse(blob: &[u8]) -> Result<Self, ParseImageConfigError> {
        let raw: RawImage = serde_json::from_slice(blob).map_err(ParseImageConfigError)?;
        let config = raw.config.unwrap_or_default();
        Ok(Self {
            architecture: raw.architecture.unwrap_or_default(),
            os: raw.os.unwrap_or_default(),
            variant: raw.variant.unwrap_or_default(),
            created: raw.created.unwrap_or_default(),
            user: config.user.unwrap_or_default(),
            env: config.env.unwrap_or_default(),
            entrypoint: config.entrypoint.unwrap_or_default(),
            cmd: config.cmd.unwrap_or_default(),
            working_dir: config.working_dir.unwrap_or_default(),
            volumes: config.volumes.unwrap_or_default().into_keys().collect(),
            labels: config.labels.unwrap_or_default(),
            stop_signal: config.stop_signal.unwrap_or_default(),
            diff_ids: raw.rootfs.unwrap_or_default().diff_ids.unwrap_or_default(),
        })
    }
}

/// Annotations of a manifest; none where it has none or cannot be read, as one of Docker.
#[must_use]
pub fn manifest_annotations(manifest: &[u8]) -> BTreeMap<String, String> {
    #[derive(Deserialize)]
    struct Annotated {
        annotations: Option<BTreeMap<String, String>>,
    }
    serde_json::from_slice::<Annotated>(manifest).ok().and_then(|found| found.annotations).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn annotations_of_a_manifest_are_its_top_ones() {
        let one = manifest_annotations(br#"{"annotations":{"a":"b"},"config":{"annotations":{"c":"d"}}}"#);
        assert_eq!(one, BTreeMap::from([("a".to_owned(), "b".to_owned())]));
        for none in [&b"{}"[..], br#"{"annotations":null}"#, br#"{"annotations":{"a":1}}"#, b"", b"[]"] {
            assert_eq!(manifest_annotations(none), BTreeMap::new());
        }
    }

    #[test]
    fn null_and_missing_fields_read_as_empty() {
        for blob in [&br#"{"config":null}"#[..], br#"{"config":{"Env":null,"Cmd":null,"Labels":null}}"#, b"{}"] {
            assert_eq!(ImageConfig::parse(blob).expect("parses"), ImageConfig::default());
        }
    }

    #[test]
    fn fields_are_taken_from_where_builders_put_them() {
        let blob = br#"{"architecture":"amd64","os":"linux","created":"2025-01-02T03:04:05Z",
            "config":{"User":"1000:50","Env":["A=b"],"Entrypoint":["/e"],"Cmd":["c"],"WorkingDir":"/w",
            "Volumes":{"/data":{}},"Labels":{"l":"v"},"StopSignal":"SIGQUIT"},
            "rootfs":{"type":"layers","diff_ids":["sha256:00"]}}"#;
        let config = ImageConfig::parse(blob).expect("parses");
        assert_eq!((config.user.as_str(), config.working_dir.as_str()), ("1000:50", "/w"));
        assert_eq!((config.entrypoint, config.cmd), (vec!["/e".to_owned()], vec!["c".to_owned()]));
        assert_eq!(config.volumes, ["/data"]);
        assert_eq!((config.stop_signal.as_str(), config.diff_ids.len()), ("SIGQUIT", 1));
        assert_eq!(config.labels.get("l").map(String::as_str), Some("v"));
    }
}
