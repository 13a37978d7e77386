//! The node's side of mounts and devices: paths looked up, what is absent made or refused.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use config::Config;
use domain::container::{Device, Mount, Propagation};
use domain::spec::{HandlerFacts, ResolvedDevice, ResolvedMount, SpecError, resolve_mount};
use thiserror::Error;

use crate::facts;

/// Why a mount or device of a request cannot be had.
#[derive(Debug, Error)]
pub enum ResolveMountError {
    /// The pod's author asked for what must not be made.
    #[error("cannot mount {path}: path does not exist and will cause issues as a directory")]
    RejectedSource {
        /// The host path.
        path: PathBuf,
    },
    /// The host path cannot be looked up or made.
    #[error("{action} mount source {path}")]
    Source {
        /// What was tried.
        action: &'static str,
        /// The host path.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The host path is not text the runtime spec can hold.
    #[error("mount source {path:?} is not UTF-8")]
    NotText {
        /// The host path.
        path: PathBuf,
    },
    /// The mount contradicts itself, or asks for what the handler cannot do.
    #[error("mount on {path:?}")]
    Invalid {
        /// The container path.
        path: String,
        #[source]
        /// What is wrong.
        source: SpecError,
    },
    /// Two-way propagation needs a source on a shared mount.
    #[error("path {path} is mounted on {mount} but it is not a shared mount")]
    NotShared {
        /// The host path.
        path: PathBuf,
        /// The mount it lies on.
        mount: PathBuf,
    },
    /// The file system the host path lies on has a server that is gone or very slow.
    #[error("mount source {path} does not answer, its file system may be gone: waited {} s", waited.as_secs())]
    NotAnswering {
        /// The host path.
        path: PathBuf,
        /// How long was waited.
        waited: std::time::Duration,
    },
    /// There is no such device on the node.
    #[error("device {path} is no device node or directory of device nodes")]
    NoDevice {
        /// The host path.
        path: PathBuf,
    },
}

/// Resolves the mounts of a request on the node, making absent sources as directories. Those of images are resolved
/// elsewhere, see [`crate::volumes`].
pub(crate) fn resolve_mounts(
    config: &Config,
    mounts: &[Mount],
    handler: &HandlerFacts,
) -> Result<Vec<ResolvedMount>, ResolveMountError> {
    let mut table = None;
    let of_node = mounts.iter().filter(|mount| mount.image.is_none());
    of_node.map(|mount| resolve(config, mount, handler, &mut table)).collect()
}

fn resolve(
    config: &Config,
    mount: &Mount,
    handler: &HandlerFacts,
    table: &mut Option<Vec<MountPoint>>,
) -> Result<ResolvedMount, ResolveMountError> {
    let resolved = resolve_mount(mount, source_of(config, mount)?, mount.container_path.clone(), handler)
        .map_err(|source| ResolveMountError::Invalid { path: mount.container_path.clone(), source })?;
    if resolved.propagation == Propagation::Bidirectional {
        let table =
            table.get_or_insert_with(|| parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()));
        let path = Path::new(&resolved.source);
        let on =
            table.iter().filter(|point| path.starts_with(&point.path)).max_by_key(|point| point.path.as_os_str().len());
        if let Some(point) = on.filter(|point| !point.is_shared) {
            return Err(ResolveMountError::NotShared { path: path.to_owned(), mount: point.path.clone() });
        }
    }
    Ok(resolved)
}

/// Where a mount of the request lies on the node, links and absence aside.
pub(crate) fn host_path(config: &Config, mount: &Mount) -> PathBuf {
    match &config.runtime.bind_mount_prefix {
        // The prefix is the operator's own view of the node's root; the path below it is the request's.
        Some(prefix) => prefix.join(mount.host_path.trim_start_matches('/')),
        None => PathBuf::from(&mount.host_path),
    }
}

fn source_of(config: &Config, mount: &Mount) -> Result<String, ResolveMountError> {
    let path = host_path(config, mount);
    let resolved = match fs::canonicalize(&path) {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if config.runtime.absent_mount_sources_to_reject.contains(&path) {
                return Err(ResolveMountError::RejectedSource { path });
            }
            let failed = |source| ResolveMountError::Source { action: "create", path: path.clone(), source };
            fs::create_dir_all(&path).map_err(failed)?;
            fs::canonicalize(&path).map_err(|source| ResolveMountError::Source {
                action: "resolve",
                path: path.clone(),
                source,
            })?
        }
        Err(source) => return Err(ResolveMountError::Source { action: "resolve", path, source }),
    };
    resolved.into_os_string().into_string().map_err(|path| ResolveMountError::NotText { path: path.into() })
}

struct MountPoint {
    path: PathBuf,
    is_shared: bool,
}

/// Mount points and whether they are shared, from proc(5) `mountinfo`: fields 5 and 7.
fn parse_mounts(text: &str) -> Vec<MountPoint> {
    text.lines()
        .filter_map(|line| {
            let (before, _) = line.split_once(" - ")?;
            let mut fields = before.split(' ').skip(4);
            let path = unescape(fields.next()?);
            let is_shared = fields.skip(1).any(|field| field.starts_with("shared:"));
            Some(MountPoint { path: path.into(), is_shared })
        })
        .collect()
}

/// Octal escapes of blanks, tabs, newlines and backslashes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
}

/// Looks up the device nodes of a request; a directory stands for all device nodes in it.
pub(crate) fn resolve_devices(devices: &[Device]) -> Result<Vec<ResolvedDevice>, ResolveMountError> {
    let mut resolved = Vec::new();
    for device in devices {
        let path = PathBuf::from(&device.host_path);
        let real = fs::canonicalize(&path).map_err(|source| ResolveMountError::Source {
            action: "resolve",
            path: path.clone(),
            source,
        })?;
        let permissions = device.permissions.clone();
        if let Some(mut node) = facts::device_at(&real) {
            node.path.clone_from(if device.container_path.is_empty() {
                &device.host_path
            } else {
                &device.container_path
            });
            resolved.push(ResolvedDevice { node, permissions });
            continue;
        }
        if !real.is_dir() {
            return Err(ResolveMountError::NoDevice { path });
        }
        let mut nodes = Vec::new();
        facts::collect_devices(&real, 0, &mut nodes);
        for mut node in nodes {
            let below = Path::new(&node.path).strip_prefix(&real).unwrap_or(Path::new("")).to_owned();
            let base = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
            node.path = format!("{}/{}", base.trim_end_matches('/'), below.display());
            resolved.push(ResolvedDevice { node, permissions: permissions.clone() });
        }
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_table_tells_what_is_shared() {
        let text = "21 1 0:20 / / rw,relatime shared:1 - ext4 /dev/root rw\n\
                    22 21 0:21 / /a\\040b rw - tmpfs tmpfs rw\n\
                    23 21 0:22 / /c rw master:3 - tmpfs tmpfs rw\nbroken line\n";
        let table = parse_mounts(text);
        let rows: Vec<(&str, bool)> =
            table.iter().map(|point| (point.path.to_str().expect("text"), point.is_shared)).collect();
        assert_eq!(rows, [("/", true), ("/a b", false), ("/c", false)]);
    }

    #[test]
    fn an_absent_source_becomes_a_directory_unless_it_is_rejected() {
        let base = tempfile::tempdir().expect("a directory");
        let (wanted, rejected) = (base.path().join("a/b"), base.path().join("no"));
        let mut config = Config::default();
        config.runtime.absent_mount_sources_to_reject = vec![rejected.clone()];
        let mount = |path: &Path| Mount {
            container_path: "/data".into(),
            host_path: path.to_str().expect("text").into(),
            ..Mount::default()
        };
        let facts = HandlerFacts::default();
        let resolved = resolve_mounts(&config, &[mount(&wanted)], &facts).expect("resolves");
        assert!(wanted.is_dir());
        assert_eq!(Path::new(&resolved[0].source), fs::canonicalize(&wanted).expect("is there"));
        let error = resolve_mounts(&config, &[mount(&rejected)], &facts).expect_err("is rejected");
        assert!(matches!(error, ResolveMountError::RejectedSource { .. }));
        assert!(!rejected.exists());
    }
}
