//! Files that describe a pod or a container, as the first crioctl and crictl take them.

use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine;
use cri_api::v1::{ContainerConfig, PodSandboxConfig};
use serde_json::Value;

use crate::message_json::{Described, from_json};

/// No description of one container is that long; a wrong file may be.
const FILE_MAX_BYTES: u64 = 4 << 20;

/// A file that describes nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConfigError {
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} is longer than {FILE_MAX_BYTES} bytes", path.display())]
    TooLong { path: PathBuf },
    #[error("{} is not JSON", path.display())]
    NotJson {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{} is not a {message}", path.display())]
    NotMessage {
        path: PathBuf,
        message: &'static str,
        #[source]
        source: serde_json::Error,
    },
    #[error("{}: {message} lacks {field}", path.display())]
    Lacks { path: PathBuf, message: &'static str, field: &'static str },
}

/// A pod's description. `name` replaces the one in the file.
pub(crate) fn load_pod(path: &Path, name: Option<&str>) -> Result<PodSandboxConfig, ConfigError> {
    let mut config: PodSandboxConfig = parse(path, load(path)?)?;
    if let Some(name) = name {
        config.metadata.get_or_insert_default().name = name.to_owned();
    }
    match &config.metadata {
        Some(metadata) if !metadata.name.is_empty() => Ok(config),
        _ => Err(lacks::<PodSandboxConfig>(path, "metadata.name")),
    }
}

/// A container's description. `name` replaces the one in the file.
pub(crate) fn load_container(path: &Path, name: Option<&str>) -> Result<ContainerConfig, ConfigError> {
    let mut value = load(path)?;
    encode_variables(&mut value);
    let mut config: ContainerConfig = parse(path, value)?;
    if let Some(name) = name {
        config.metadata.get_or_insert_default().name = name.to_owned();
    }
    if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
        return Err(lacks::<ContainerConfig>(path, "metadata.name"));
    }
    if config.image.as_ref().is_none_or(|image| image.image.is_empty()) {
        return Err(lacks::<ContainerConfig>(path, "image.image"));
    }
    Ok(config)
}

fn lacks<M: Described>(path: &Path, field: &'static str) -> ConfigError {
    ConfigError::Lacks { path: path.to_owned(), message: M::NAME, field }
}

fn load(path: &Path) -> Result<Value, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let mut bytes = Vec::new();
    if path == Path::new("-") {
        std::io::stdin().take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    } else {
        let file = std::fs::File::open(path).map_err(read)?;
        file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(read)?;
    }
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(ConfigError::TooLong { path: path.to_owned() });
    }
    serde_json::from_slice(&bytes).map_err(|source| ConfigError::NotJson { path: path.to_owned(), source })
}

fn parse<M: Described>(path: &Path, value: Value) -> Result<M, ConfigError> {
    from_json(value).map_err(|source| ConfigError::NotMessage { path: path.to_owned(), message: M::NAME, source })
}

/// Values of environment variables are bytes on the wire, for which canonical JSON has base64; people write text.
fn encode_variables(config: &mut Value) {
    let Some(Value::Array(variables)) = config.get_mut("envs") else { return };
    for variable in variables {
        if let Some(Value::String(value)) = variable.get_mut("value") {
            *value = base64::engine::general_purpose::STANDARD.encode(value.as_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use cri_api::v1::{NamespaceMode, Protocol, Signal, security_profile::ProfileType};

    use super::*;

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn pods() {
        let file = file(
            r#"{"metadata": {"name": "n", "uid": "u", "namespace": "s", "attempt": 2}, "hostname": "h",
                "log_directory": "/l", "dns_config": {"servers": ["1.1.1.1"]}, "labels": {"a": "b"},
                "port_mappings": [{"protocol": 1, "container_port": 53, "hostPort": 54}, {"protocol": "TCP"}],
                "linux": {"cgroup_parent": "/c", "sysctls": {"k": "v"},
                  "security_context": {"namespace_options": {"network": 2, "pid": "CONTAINER"},
                    "run_as_user": {"value": 1000}, "supplemental_groups": [1, "2"],
                    "seccomp": {"profile_type": "Localhost", "localhost_ref": "x"}}}}"#,
        );
        let config = load_pod(file.path(), None).unwrap();
        assert_eq!(config.metadata.as_ref().unwrap().attempt, 2);
        assert_eq!(config.log_directory, "/l");
        assert_eq!(config.port_mappings[0].protocol(), Protocol::Udp);
        assert_eq!((config.port_mappings[0].container_port, config.port_mappings[0].host_port), (53, 54));
        let linux = config.linux.unwrap();
        let security = linux.security_context.unwrap();
        assert_eq!((linux.cgroup_parent.as_str(), linux.sysctls["k"].as_str()), ("/c", "v"));
        assert_eq!(security.namespace_options.unwrap().network(), NamespaceMode::Node);
        assert_eq!(security.run_as_user.unwrap().value, 1000);
        assert_eq!(security.supplemental_groups, [1, 2]);
        assert_eq!(security.seccomp.unwrap().profile_type(), ProfileType::Localhost);
        assert_eq!(load_pod(file.path(), Some("other")).unwrap().metadata.unwrap().name, "other");
    }

    #[test]
    fn containers() {
        let file = file(
            r#"{"metadata": {"name": "n"}, "image": {"image": "i"}, "command": ["a"], "args": ["b"],
                "working_dir": "/w", "envs": [{"key": "K", "value": "text, no base64"}, {"key": "E"}],
                "mounts": [{"host_path": "/h", "containerPath": "/c", "readonly": true, "propagation": 1}],
                "log_path": "x.log", "stdin_once": true, "stop_signal": "SIGTERM", "CDI_devices": [{"name": "d"}],
                "linux": {"resources": {"memory_limit_in_bytes": 1048576, "cpuShares": "512"},
                  "security_context": {"capabilities": {"add_capabilities": ["ALL"]}, "privileged": true}}}"#,
        );
        let config = load_container(file.path(), None).unwrap();
        assert_eq!(config.envs[0].value, b"text, no base64");
        assert_eq!(config.envs[1].value, b"");
        assert!(config.mounts[0].readonly && config.stdin_once);
        assert_eq!(config.stop_signal(), Signal::Sigterm);
        assert_eq!(config.cdi_devices[0].name, "d");
        let linux = config.linux.unwrap();
        let resources = linux.resources.unwrap();
        assert_eq!((resources.memory_limit_in_bytes, resources.cpu_shares), (1 << 20, 512));
        assert_eq!(linux.security_context.unwrap().capabilities.unwrap().add_capabilities, ["ALL"]);
    }

    #[test]
    fn refusals() {
        let cases = [
            ("{", "is not JSON"),
            ("[]", "is not a ContainerConfig"),
            (r#"{"metadata": {"name": "n"}, "imag": {}}"#, "imag"),
            (r#"{"metadata": {"nam": "n"}}"#, "nam"),
            (r#"{"linux": {"security_context": {"run_as_usr": {"value": 1}}}}"#, "run_as_usr"),
            (r#"{"stop_signal": "SIGNONE"}"#, "SIGNONE"),
            (r#"{"command": "sh"}"#, "is not a ContainerConfig"),
            (r#"{"envs": [{"key": 1}]}"#, "is not a ContainerConfig"),
            (r#"{"metadata": {"name": "n"}}"#, "lacks image.image"),
            (r#"{"image": {"image": "i"}}"#, "lacks metadata.name"),
        ];
        for (text, expected) in cases {
            let error = load_container(file(text).path(), None).unwrap_err();
            let line = crate::error::chain(&error);
            assert!(line.contains(expected), "{text}: {line}");
        }
        assert!(load_pod(Path::new("/nowhere/x.json"), None).is_err());
    }
}
