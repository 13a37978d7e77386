//! The time zone of containers: `timezone` of the configuration.
//!
//! A container that has the zone's file itself gets a link to it, so that it stays right when the image's data are newer;
//! every other one gets a copy of the node's file, bound over `/etc/localtime`. Source: localtime(5); CRI-O does this.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use durable::Durability;
use durable::beneath::{Links, Root};
use rustix::fs::{AtFlags, OFlags};
use rustix::io::Errno;
use thiserror::Error;

const ZONES: &str = "/usr/share/zoneinfo";
const NODE_ZONE: &str = "/etc/localtime";
/// The largest zone has some kilobytes.
const ZONE_MAX_BYTES: u64 = 1 << 20;

/// Why a container cannot be given the configured time zone.
#[derive(Debug, Error)]
pub enum TimezoneError {
    /// The node's file.
    #[error("read time zone {path}")]
    Node {
        /// Where.
        path: PathBuf,
        #[source]
        /// What failed.
        source: io::Error,
    },
    /// The container's `/etc/localtime`.
    #[error("{action} /etc/localtime in the container")]
    Container {
        /// What was tried.
        action: &'static str,
        #[source]
        /// What failed.
        source: io::Error,
    },
    /// The copy.
    #[error("copy the time zone")]
    Copy(#[source] durable::ReplaceError),
}

/// Sets the zone in a root, and returns the file to be bound over `/etc/localtime` where a link does not do.
///
/// `zone` is a checked name, `Local` for the node's own in any case, or empty for the image's.
pub(crate) fn set(zone: &str, root: &Root, bundle: &Path) -> Result<Option<PathBuf>, TimezoneError> {
    let path = match zone {
        "" => return Ok(None),
        local if local.eq_ignore_ascii_case("local") => match fs::canonicalize(NODE_ZONE) {
            Ok(path) => path,
            // Such a node lives in UTC.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Path::new(ZONES).join("UTC"),
            Err(source) => return Err(TimezoneError::Node { path: NODE_ZONE.into(), source }),
        },
        name => Path::new(ZONES).join(name),
    };
    let failed = |action| move |source: io::Error| TimezoneError::Container { action, source };
    let Some(etc) = open_etc(root).map_err(failed("open"))? else { return Ok(None) };
    // Runtimes follow a link where they bind: whatever the image's own points to would be hidden.
    match rustix::fs::unlinkat(etc.as_fd(), "localtime", AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(failed("remove")(error.into())),
    }
    if root.open_regular(&path).is_ok() {
        let target = Path::new("..").join(path.strip_prefix("/").unwrap_or(&path));
        rustix::fs::symlinkat(&target, etc.as_fd(), "localtime").map_err(|error| failed("link")(error.into()))?;
        return Ok(None);
    }
    let bytes = match read_zone(&path) {
        Ok(bytes) => bytes,
        // What no file describes is UTC.
        Err(error) if error.kind() == io::ErrorKind::NotFound && path.ends_with("UTC") => return Ok(None),
        Err(source) => return Err(TimezoneError::Node { path, source }),
    };
    let copy = bundle.join("localtime");
    durable::replace(&copy, &bytes, 0o644, Durability::Volatile).map_err(TimezoneError::Copy)?;
    Ok(Some(copy))
}

/// An image without `/etc` gets one.
fn open_etc(root: &Root) -> io::Result<Option<std::os::fd::OwnedFd>> {
    let open = || root.open_beneath(Path::new("/etc"), OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot);
    match open() {
        Ok(etc) => Ok(Some(etc)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            match rustix::fs::mkdirat(root.as_fd(), "etc", rustix::fs::Mode::from_raw_mode(0o755)) {
                Ok(()) => open().map(Some),
                // A link to nowhere.
                Err(Errno::EXIST) => Ok(None),
                Err(error) => Err(error.into()),
            }
        }
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => Ok(None),
        Err(error) => Err(error),
    }
}

fn read_zone(path: &Path) -> io::Result<Vec<u8>> {
    let file = File::open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(ZONE_MAX_BYTES + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > ZONE_MAX_BYTES {
        return Err(io::Error::other("larger than 1 MiB"));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A root in which these paths are files.
    fn world(files: &[&str]) -> (tempfile::TempDir, PathBuf, PathBuf) {
        let base = tempfile::tempdir().expect("a directory");
        let (root, bundle) = (base.path().join("root"), base.path().join("bundle"));
        fs::create_dir_all(&bundle).expect("a directory");
        fs::create_dir_all(&root).expect("a directory");
        for file in files {
            let path = root.join(file);
            fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            File::create(path).expect("a file");
        }
        (base, root, bundle)
    }

    fn set_in(zone: &str, root: &Path, bundle: &Path) -> Result<Option<PathBuf>, TimezoneError> {
        set(zone, &Root::open(root).expect("opens"), bundle)
    }

    #[test]
    fn an_image_with_the_zone_gets_a_link() {
        let (_base, root, bundle) = world(&["etc/localtime", "usr/share/zoneinfo/Europe/Berlin"]);
        assert_eq!(set_in("Europe/Berlin", &root, &bundle).expect("sets"), None);
        let link = fs::read_link(root.join("etc/localtime")).expect("a link");
        assert_eq!(link, Path::new("../usr/share/zoneinfo/Europe/Berlin"));
        assert_eq!(set_in("", &root, &bundle).expect("sets"), None);
        assert!(root.join("etc/localtime").symlink_metadata().is_ok());
    }

    #[test]
    fn another_image_gets_a_copy_and_loses_its_own_link() {
        let (base, root, bundle) = world(&["etc/passwd"]);
        let outside = base.path().join("outside");
        File::create(&outside).expect("a file");
        symlink("../../outside", root.join("etc/localtime")).expect("a link");
        let node_has_zone = Path::new("/usr/share/zoneinfo/Europe/Berlin").is_file();
        let set = set_in("Europe/Berlin", &root, &bundle);
        if node_has_zone {
            let copy = set.expect("sets").expect("a copy");
            assert_eq!(fs::read(copy).expect("reads"), fs::read("/usr/share/zoneinfo/Europe/Berlin").expect("reads"));
        } else {
            assert!(matches!(set, Err(TimezoneError::Node { .. })));
        }
        assert!(root.join("etc/localtime").symlink_metadata().is_err());
        assert!(outside.exists());
        assert!(set_in("No/Where", &root, &bundle).is_err());
    }

    #[test]
    fn a_hostile_etc_leads_nowhere() {
        let (base, root, bundle) = world(&[]);
        fs::create_dir(base.path().join("victim")).expect("a directory");
        File::create(base.path().join("victim/localtime")).expect("a file");
        symlink("../victim", root.join("etc")).expect("a link");
        assert!(set_in("UTC", &root, &bundle).expect("sets").is_none_or(|copy| copy.starts_with(&bundle)));
        assert!(base.path().join("victim/localtime").is_file());
        let (_base, root, bundle) = world(&[]);
        set_in("UTC", &root, &bundle).expect("sets");
        assert!(root.join("etc").is_dir());
    }
}
