//! The node's side of mounts: paths looked up, what is absent made or refused, propagation checked.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use config::Config;
use domain::container::{Mount, Propagation};
use domain::spec::{HandlerFacts, ResolvedMount, SpecError, resolve_mount};
use durable::beneath::{Links, Root};
use rustix::fs::OFlags;
use thiserror::Error;

/// Why a mount of a request cannot be had.
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
    /// Propagation to the container needs a source whose mount gets anything.
    #[error("path {path} is mounted on {mount} but it is not a shared or slave mount")]
    NotSharedOrSlave {
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
    if resolved.propagation != Propagation::Private {
        check_propagation(resolved.propagation, Path::new(&resolved.source), table.get_or_insert_with(mount_points))?;
    }
    Ok(resolved)
}

/// Whether what is mounted at a path can travel as asked. Source: CRI `MountPropagation`.
fn check_propagation(asked: Propagation, path: &Path, table: &[MountPoint]) -> Result<(), ResolveMountError> {
    let Some(point) = mount_point_of(path, table) else { return Ok(()) };
    let (path, mount) = (path.to_owned(), point.path.clone());
    match asked {
        Propagation::Bidirectional if !point.is_shared => Err(ResolveMountError::NotShared { path, mount }),
        Propagation::HostToContainer if !point.is_shared && !point.is_slave => {
            Err(ResolveMountError::NotSharedOrSlave { path, mount })
        }
        Propagation::Private | Propagation::HostToContainer | Propagation::Bidirectional => Ok(()),
    }
}

/// The mount a path lies on: the last of the deepest, which hides those before it.
fn mount_point_of<'a>(path: &Path, table: &'a [MountPoint]) -> Option<&'a MountPoint> {
    table.iter().filter(|point| path.starts_with(&point.path)).max_by_key(|point| point.path.as_os_str().len())
}

fn mount_points() -> Vec<MountPoint> {
    parse_mounts(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())
}

/// Has mounts of a container that contain the store's follow the node's.
///
/// A private copy of them would keep the root of every container mounted that ran when it was made, and none of them
/// could be removed. What the container's author asked for beyond that stays. Source: CRI-O, for `root`; the run
/// directory holds mounts, too.
pub(crate) fn follow_storage(config: &Config, mounts: &mut [Mount]) {
    let mut table = None;
    for mount in mounts.iter_mut().filter(|mount| contains_storage(config, mount)) {
        let point = mount_point_of(&host_path(config, mount), table.get_or_insert_with(mount_points));
        if point.is_some_and(|point| point.is_shared || point.is_slave) {
            tracing::debug!(path = mount.host_path, "the mount contains the store, it follows the node's mounts");
            mount.propagation = Propagation::HostToContainer;
        }
    }
}

fn contains_storage(config: &Config, mount: &Mount) -> bool {
    let path = host_path(config, mount);
    let is_private = mount.propagation == Propagation::Private && !mount.recursive_read_only;
    let directories = [&config.root.root, &config.root.runroot];
    mount.image.is_none() && is_private && directories.iter().any(|directory| directory.starts_with(&path))
}

/// The path of a request as the daemon sees it: the prefix is the operator's own view of the node's root.
pub(crate) fn host_path(config: &Config, mount: &Mount) -> PathBuf {
    match &config.runtime.bind_mount_prefix {
        Some(prefix) => prefix.join(mount.host_path.trim_start_matches('/')),
        None => PathBuf::from(&mount.host_path),
    }
}

/// Where a path really is. Links below a prefix are those of the node it shows, so they lead nowhere else.
fn canonical(config: &Config, mount: &Mount) -> io::Result<PathBuf> {
    let Some(prefix) = &config.runtime.bind_mount_prefix else { return fs::canonicalize(&mount.host_path) };
    let opened = Root::open(prefix)?.open_beneath(Path::new(&mount.host_path), OFlags::PATH, 0, Links::InRoot)?;
    fs::read_link(format!("/proc/self/fd/{}", opened.as_raw_fd()))
}

fn source_of(config: &Config, mount: &Mount) -> Result<String, ResolveMountError> {
    let path = host_path(config, mount);
    let resolved = match canonical(config, mount) {
        Ok(resolved) => resolved,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if config.runtime.absent_mount_sources_to_reject.contains(&path) {
                return Err(ResolveMountError::RejectedSource { path });
            }
            let failed = |source| ResolveMountError::Source { action: "create", path: path.clone(), source };
            fs::create_dir_all(&path).map_err(failed)?;
            canonical(config, mount).map_err(|source| ResolveMountError::Source {
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
    is_slave: bool,
}

/// Mount points and whom they share with, from proc(5) `mountinfo`: fields 5 and 7.
fn parse_mounts(text: &str) -> Vec<MountPoint> {
    text.lines()
        .filter_map(|line| {
            let (before, _) = line.split_once(" - ")?;
            let mut fields = before.split(' ').skip(4);
            let path = unescape(fields.next()?);
            let tags: Vec<&str> = fields.skip(1).collect();
            let has = |tag: &str| tags.iter().any(|field| field.starts_with(tag));
            Some(MountPoint { path: path.into(), is_shared: has("shared:"), is_slave: has("master:") })
        })
        .collect()
}

/// Octal escapes of blanks, tabs, newlines and backslashes.
fn unescape(text: &str) -> String {
    text.replace("\\040", " ").replace("\\011", "\t").replace("\\012", "\n").replace("\\134", "\\")
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
        let rows: Vec<(&str, bool, bool)> =
            table.iter().map(|point| (point.path.to_str().expect("text"), point.is_shared, point.is_slave)).collect();
        assert_eq!(rows, [("/", true, false), ("/a b", false, false), ("/c", false, true)]);
    }

    #[test]
    fn propagation_needs_a_source_that_propagates() {
        let point = |path: &str, is_shared, is_slave| MountPoint { path: path.into(), is_shared, is_slave };
        let table = [point("/", true, false), point("/private", false, false), point("/slave", false, true)];
        use Propagation::{Bidirectional, HostToContainer, Private};
        for (path, asked, is_good) in [
            ("/data", Bidirectional, true),
            ("/data", HostToContainer, true),
            ("/private/data", Bidirectional, false),
            ("/private/data", HostToContainer, false),
            ("/private/data", Private, true),
            ("/privately", Bidirectional, true),
            ("/slave", Bidirectional, false),
            ("/slave", HostToContainer, true),
        ] {
            assert_eq!(check_propagation(asked, Path::new(path), &table).is_ok(), is_good, "{path} {asked:?}");
        }
    }

    #[test]
    fn mounts_that_contain_the_store_follow_it() {
        let mut config = Config::default();
        (config.root.root, config.root.runroot) = ("/var/lib/store".into(), "/run/store".into());
        for (path, propagation, recursive_read_only, expected) in [
            ("/", Propagation::Private, false, true),
            ("/var", Propagation::Private, false, true),
            ("/var/lib/store", Propagation::Private, false, true),
            ("/run", Propagation::Private, false, true),
            ("/var/lib/store/overlay", Propagation::Private, false, false),
            ("/var/lib/sto", Propagation::Private, false, false),
            ("/data", Propagation::Private, false, false),
            ("/var", Propagation::HostToContainer, false, false),
            ("/var", Propagation::Bidirectional, false, false),
            ("/var", Propagation::Private, true, false),
        ] {
            let mount = Mount { host_path: path.into(), propagation, recursive_read_only, ..Mount::default() };
            assert_eq!(contains_storage(&config, &mount), expected, "{path} {propagation:?}");
        }
    }

    #[test]
    fn links_below_a_prefix_stay_below_it() {
        let base = tempfile::tempdir().expect("a directory");
        fs::create_dir_all(base.path().join("real")).expect("a directory");
        std::os::unix::fs::symlink("/real", base.path().join("link")).expect("a link");
        let mut config = Config::default();
        config.runtime.bind_mount_prefix = Some(base.path().to_owned());
        let source = |path: &str| {
            let mount = Mount { container_path: "/data".into(), host_path: path.into(), ..Mount::default() };
            resolve_mounts(&config, &[mount], &HandlerFacts::default()).expect("resolves").remove(0).source
        };
        let real = fs::canonicalize(base.path()).expect("resolves");
        assert_eq!(Path::new(&source("/link")), real.join("real"));
        assert_eq!(Path::new(&source("/made/here")), real.join("made/here"));
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
