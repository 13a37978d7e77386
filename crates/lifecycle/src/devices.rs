//! Device nodes that a container is given: of the request, of the annotation `devices.crio.io`, of the configuration.
//!
//! Looked up before anything of the container is made, so that a device that is not there changes nothing.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use config::{AdditionalDevice, Config};
use domain::container::Device;
use domain::spec::ResolvedDevice;
use thiserror::Error;

use crate::facts;

/// By its new name; takes effect where the handler allows it.
pub(crate) const ANNOTATION: &str = "devices.crio.io";

/// Why a device of a request cannot be had.
#[derive(Debug, Error)]
pub enum ResolveDeviceError {
    /// It cannot be looked up.
    #[error("look up device {path}")]
    Path {
        /// The host path.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// There is something else.
    #[error("device {path} is no device node or directory of device nodes")]
    NoDevice {
        /// The host path.
        path: PathBuf,
    },
    /// The annotation asks for what the operator did not allow.
    #[error("device {path} is specified but is not in allowed_devices")]
    NotAllowed {
        /// The host path.
        path: PathBuf,
    },
    /// The annotation is not a list of devices.
    #[error("annotation {ANNOTATION}: {reason}")]
    Annotation {
        /// What is wrong with which entry.
        reason: String,
    },
    /// A privileged container has the node's devices at their paths.
    #[error("privileged container was configured with a device container path that already exists on the host: {path}")]
    Hides {
        /// The container path.
        path: PathBuf,
    },
}

/// Looks up the devices of an annotation, then those of a request, which replace them on the same path.
pub(crate) fn resolve(
    annotation: Option<&String>,
    allowed: &[PathBuf],
    request: &[Device],
    is_privileged: bool,
) -> Result<Vec<ResolvedDevice>, ResolveDeviceError> {
    let mut resolved = Vec::new();
    for entry in annotation.into_iter().flat_map(|list| list.split(',')).filter(|entry| !entry.is_empty()) {
        let device = AdditionalDevice::parse(entry).map_err(|reason| ResolveDeviceError::Annotation { reason })?;
        if !allowed.iter().any(|path| path == device.source()) {
            return Err(ResolveDeviceError::NotAllowed { path: device.source().to_owned() });
        }
        resolved.push(of_entry(&device)?);
    }
    for device in request {
        let container_path = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
        if is_privileged && *container_path != device.host_path && Path::new(container_path).exists() {
            return Err(ResolveDeviceError::Hides { path: container_path.into() });
        }
        of_request(device, container_path, &mut resolved)?;
    }
    Ok(resolved)
}

/// The devices of the configuration. One that cannot be had is told and left out.
pub(crate) fn configured(config: &Config) -> Vec<ResolvedDevice> {
    let devices = config.runtime.additional_devices.iter().filter_map(|device| match of_entry(device) {
        Ok(resolved) => Some(resolved),
        Err(error) => {
            tracing::warn!(%device, error = %crate::undo::chain(&error), "leaving out an additional device");
            None
        }
    });
    devices.collect()
}

fn real_path(path: &Path) -> Result<PathBuf, ResolveDeviceError> {
    fs::canonicalize(path).map_err(|source| ResolveDeviceError::Path { path: path.to_owned(), source })
}

fn of_entry(device: &AdditionalDevice) -> Result<ResolvedDevice, ResolveDeviceError> {
    let mut node = facts::device_at(&real_path(device.source())?)
        .ok_or_else(|| ResolveDeviceError::NoDevice { path: device.source().to_owned() })?;
    node.path = device.destination().display().to_string();
    Ok(ResolvedDevice { node, permissions: device.permissions().to_owned() })
}

/// A directory stands for all device nodes in it.
fn of_request(
    device: &Device,
    container_path: &str,
    resolved: &mut Vec<ResolvedDevice>,
) -> Result<(), ResolveDeviceError> {
    let path = PathBuf::from(&device.host_path);
    let real = real_path(&path)?;
    let permissions = device.permissions.clone();
    if let Some(mut node) = facts::device_at(&real) {
        container_path.clone_into(&mut node.path);
        resolved.push(ResolvedDevice { node, permissions });
        return Ok(());
    }
    if !real.is_dir() {
        return Err(ResolveDeviceError::NoDevice { path });
    }
    let mut nodes = Vec::new();
    facts::collect_devices(&real, 0, &mut nodes);
    for mut node in nodes {
        let below = Path::new(&node.path).strip_prefix(&real).unwrap_or(Path::new("")).to_owned();
        node.path = format!("{}/{}", container_path.trim_end_matches('/'), below.display());
        resolved.push(ResolvedDevice { node, permissions: permissions.clone() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(host_path: &str, container_path: &str) -> Device {
        Device { host_path: host_path.into(), container_path: container_path.into(), permissions: "rw".into() }
    }

    /// Paths with their numbers and permissions, or the error.
    fn check(annotation: &str, request: &[Device], is_privileged: bool) -> Result<Vec<String>, String> {
        let allowed = ["/dev/null", "/dev/zero", "/etc/passwd", "/dev/absent"].map(PathBuf::from);
        let found = resolve(Some(&annotation.to_owned()), &allowed, request, is_privileged);
        let show = |device: &ResolvedDevice| {
            format!("{} {}:{} {}", device.node.path, device.node.major, device.node.minor, device.permissions)
        };
        found.map(|list| list.iter().map(show).collect()).map_err(|error| error.to_string())
    }

    #[test]
    fn annotations_name_allowed_devices() {
        for (annotation, expected) in [
            ("", &[][..]),
            ("/dev/null", &["/dev/null 1:3 rwm"]),
            ("/dev/null:/dev/mine:r,/dev/zero:rw", &["/dev/mine 1:3 r", "/dev/zero 1:5 rw"]),
            ("/dev/null,,", &["/dev/null 1:3 rwm"]),
        ] {
            assert_eq!(check(annotation, &[], false).expect(annotation), expected, "{annotation}");
        }
        for bad in [
            "/dev/full",
            "/dev/../dev/null",
            "/dev/null:/etc/mine",
            "/dev/null:/dev/../etc/mine",
            "/dev/null:mine",
            "/dev/null:/dev/mine:x",
            "/dev/null:/dev/mine:rr",
            "/dev/null:/dev/mine:r:w",
            "null",
            " /dev/null",
            "/etc/passwd:/dev/passwd",
            "/dev/absent",
        ] {
            assert!(check(bad, &[], false).is_err(), "{bad}");
        }
    }

    #[test]
    fn requests_name_nodes_links_and_directories() {
        let base = tempfile::tempdir().expect("a directory");
        let link = base.path().join("link");
        std::os::unix::fs::symlink("/dev/null", &link).expect("a link");
        let link = link.to_str().expect("text");
        assert_eq!(check("", &[request(link, "/dev/x")], false).expect("resolves"), ["/dev/x 1:3 rw"]);
        assert_eq!(check("/dev/null:/dev/x", &[request("/dev/zero", "/dev/x")], false).expect("resolves").len(), 2);
        let all = check("", &[request("/dev", "/dev/host/")], false).expect("resolves");
        assert!(all.contains(&"/dev/host/null 1:3 rw".to_owned()), "{all:?}");
        assert!(check("", &[request("/dev/not-here", "/dev/x")], false).is_err());
        assert!(check("", &[request("/etc/passwd", "/dev/x")], false).is_err());
        assert!(check("", &[request("/dev/zero", "/dev/null")], true).is_err());
        assert!(check("", &[request("/dev/zero", "/dev/zero")], true).is_ok());
        assert!(check("", &[request("/dev/zero", "/dev/null")], false).is_ok());
    }
}
