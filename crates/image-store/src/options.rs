//! How a store is opened.

use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

use crate::ids::SubordinateFiles;

/// What the caller has read from `storage.conf` and the daemon's own configuration.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// The graph root: images, layers, containers. Made, mode 0700, if absent.
    pub root: PathBuf,
    /// The run root: what is worthless after a reboot. Made, mode 0700, if absent.
    pub runroot: PathBuf,
    /// The graph driver: `overlay`, `vfs` or `btrfs`. Empty leaves the choice to what is in the root, then to
    /// `driver_priority`.
    pub driver: String,
    /// Drivers in the order in which they are tried in an empty root; empty means overlay, then btrfs.
    pub driver_priority: Vec<String>,
    /// Where images and their layers are kept, if not in the root.
    pub imagestore: Option<PathBuf>,
    /// Driver options as `storage_option` has them: `overlay.mountopt=nodev,metacopy=on`; the prefix may also be
    /// `overlay2` or nothing before the dot. `imagestore` names additional stores, which are only read.
    pub driver_options: Vec<String>,
    /// `transient_store`: records of volatile containers and layers lie in the run root, and every container is
    /// volatile.
    pub transient: Transient,
    /// Whether device nodes in images are made (as the rest of the field does) or make the layer unusable.
    pub devices: DevicePolicy,
    /// Where automatic user namespaces find their ids.
    pub subordinate_files: SubordinateFiles,
    /// How long layers wait for their image that a process left which is gone; zero removes them at once.
    pub keep_pending: Duration,
    /// Whether overlays of volatile containers are mounted with `volatile` (`disable-volatile` of storage.conf).
    pub volatile_mounts: VolatileMounts,
    /// Whether opening repairs what a crash left.
    pub on_open: OnOpen,
}

/// What opening a store does about what a crash left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OnOpen {
    /// Removes it.
    #[default]
    Recover,
    /// Leaves it, for whoever wants to look.
    LeaveAsIs,
}

/// Where the records of volatile containers lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transient {
    /// In the graph root, beside the stable ones.
    #[default]
    No,
    /// In the run root.
    Yes,
}

/// What to do with character and block devices in a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DevicePolicy {
    /// Make the node.
    #[default]
    Create,
    /// Refuse the layer.
    Refuse,
}

/// Whether the kernel may skip syncing the overlay of a volatile container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum VolatileMounts {
    /// `volatile` is given at the mount.
    #[default]
    Allowed,
    /// `disable-volatile = true`.
    Disabled,
}

/// Why driver options cannot be obeyed.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum OptionsError {
    /// A driver this store does not have.
    #[error("graph driver {0:?} is not supported: overlay, vfs and btrfs are")]
    Driver(String),
    /// A driver nobody has any more.
    #[error("graph driver {0:?} was removed from containers/storage: overlay, vfs and btrfs are supported")]
    RemovedDriver(String),
    /// Several drivers have been used in a root and none is named.
    #[error("{root} has layers of several graph drivers ({drivers}): name one as storage_driver")]
    SeveralDrivers {
        /// The graph root.
        root: PathBuf,
        /// Their names.
        drivers: String,
    },
    /// An option without `=`.
    #[error("storage option {0:?} is not of the form key=value")]
    NotKeyValue(String),
    /// An option of another driver, or one nobody knows.
    #[error("storage option {0:?} is unknown")]
    Unknown(String),
    /// An option this store knows but cannot obey.
    #[error("storage option {0:?} is not supported")]
    Unsupported(String),
    /// A value that is none of those the option has.
    #[error("storage option {key:?} cannot be {value:?}")]
    BadValue {
        /// The option.
        key: String,
        /// Its value as given.
        value: String,
    },
    /// Images are to be kept apart from themselves.
    #[error("imagestore {0} must differ from the graph root")]
    SameImageStore(PathBuf),
}

/// A graph driver this store has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DriverName {
    Overlay,
    Vfs,
    Btrfs,
}

/// Those that are chosen without being named, in order. Source: containers/storage, which leaves out vfs.
const PRIORITY: [DriverName; 2] = [DriverName::Overlay, DriverName::Btrfs];
/// Directories that tell which driver has been used.
const KNOWN: [&str; 6] = ["overlay", "btrfs", "zfs", "vfs", "aufs", "devicemapper"];

impl DriverName {
    pub(crate) fn parse(name: &str) -> Result<Self, OptionsError> {
        match name {
            "overlay" | "overlay2" => Ok(Self::Overlay),
            "vfs" => Ok(Self::Vfs),
            "btrfs" => Ok(Self::Btrfs),
            "aufs" | "devicemapper" => Err(OptionsError::RemovedDriver(name.to_owned())),
            other => Err(OptionsError::Driver(other.to_owned())),
        }
    }

    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Overlay => "overlay",
            Self::Vfs => "vfs",
            Self::Btrfs => "btrfs",
        }
    }
}

/// Drivers to try, best first: the one named; else the one that has been used in the root; else by priority.
pub(crate) fn candidates(
    named: &str,
    priority: &[String],
    root: &Path,
    is_used: impl Fn(&str) -> bool,
) -> Result<Vec<DriverName>, OptionsError> {
    if !named.is_empty() {
        return Ok(vec![DriverName::parse(named)?]);
    }
    let used: Vec<&str> = KNOWN.into_iter().filter(|name| is_used(name)).collect();
    // A store of whole copies is taken up again only if somebody wants such ones. Source: containers/storage.
    let may_be = |name: &&&str| **name != "vfs" || priority.iter().any(|wanted| wanted == "vfs");
    match (used.iter().find(may_be), used.len()) {
        (Some(_), 2..) => Err(OptionsError::SeveralDrivers { root: root.to_owned(), drivers: used.join(", ") }),
        (Some(one), _) => Ok(vec![DriverName::parse(one)?]),
        (None, _) if priority.is_empty() => Ok(PRIORITY.to_vec()),
        (None, _) => priority.iter().map(|name| DriverName::parse(name)).collect(),
    }
}

/// Driver options, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DriverOptions {
    /// Options of every container mount, in the order given.
    pub(crate) mountopt: Vec<String>,
    /// Leave the driver directory without a private mount of its own.
    pub(crate) skip_mount_home: bool,
    /// Further stores, which are only read.
    pub(crate) additional_stores: Vec<PathBuf>,
    /// Most bytes a container's root file system may refer to.
    pub(crate) size: Option<u64>,
}

fn boolean(key: &str, value: &str) -> Result<bool, OptionsError> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err(OptionsError::BadValue { key: key.to_owned(), value: value.to_owned() }),
    }
}

/// Bytes as `10G`, `512m`, `1 GiB`; a kilobyte has 1024. Source: containers/storage.
fn bytes(key: &str, value: &str) -> Result<u64, OptionsError> {
    let digits = value.len() - value.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let unit = value[digits..].trim().to_ascii_lowercase();
    let shift = match unit.trim_end_matches('b').trim_end_matches('i') {
        "" => Some(0),
        "k" => Some(10),
        "m" => Some(20),
        "g" => Some(30),
        "t" => Some(40),
        "p" => Some(50),
        _ => None,
    };
    let number = value[..digits].parse::<u64>().ok().zip(shift);
    number
        .and_then(|(number, shift)| number.checked_mul(1 << shift))
        .ok_or_else(|| OptionsError::BadValue { key: key.to_owned(), value: value.to_owned() })
}

impl DriverOptions {
    /// `is_chosen`: nobody named the driver, so that options may be another one's.
    pub(crate) fn parse(driver: DriverName, options: &[String], is_chosen: bool) -> Result<Self, OptionsError> {
        let mut checked = Self::default();
        for option in options {
            let (full, value) = option.split_once('=').ok_or_else(|| OptionsError::NotKeyValue(option.clone()))?;
            let (full, value) = (full.trim(), value.trim());
            let lower = full.to_ascii_lowercase();
            let (prefix, key) = lower.split_once('.').ok_or_else(|| OptionsError::Unknown(full.to_owned()))?;
            if is_chosen && DriverName::parse(prefix).is_ok_and(|other| other != driver) {
                continue;
            }
            if !prefix.is_empty() && DriverName::parse(prefix) != Ok(driver) {
                return Err(OptionsError::Unknown(full.to_owned()));
            }
            let bad = || OptionsError::BadValue { key: full.to_owned(), value: value.to_owned() };
            match (driver, key) {
                (DriverName::Overlay, "mountopt") => {
                    checked.mountopt = value.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
                }
                (DriverName::Overlay, "skip_mount_home") => checked.skip_mount_home = boolean(full, value)?,
                // It has been without effect since Linux 4.0 became the oldest kernel.
                (DriverName::Overlay, "override_kernel_check") => {}
                (DriverName::Overlay | DriverName::Vfs, "imagestore" | "additionalimagestore") => {
                    for store in value.split(',').filter(|store| !store.is_empty()) {
                        let store = PathBuf::from(store);
                        if !store.is_absolute() {
                            return Err(bad());
                        }
                        checked.additional_stores.push(store);
                    }
                }
                // Harmless when off; on, each of these changes what lies on disk.
                (DriverName::Overlay, "use_composefs")
                | (DriverName::Overlay | DriverName::Vfs, "ignore_chown_errors") => {
                    if boolean(full, value)? {
                        return Err(OptionsError::Unsupported(full.to_owned()));
                    }
                }
                // Layers are always made durable before they are named, which is more than either value asks for.
                (DriverName::Overlay | DriverName::Vfs, "sync") if matches!(value, "" | "none" | "filesystem") => {}
                (DriverName::Overlay | DriverName::Vfs, "sync") => return Err(bad()),
                (DriverName::Overlay, "mount_program" | "size" | "inodes" | "force_mask" | "additionallayerstore") => {
                    if !value.is_empty() {
                        return Err(OptionsError::Unsupported(full.to_owned()));
                    }
                }
                (DriverName::Btrfs, "size") => checked.size = Some(bytes(full, value)?).filter(|size| *size > 0),
                // A lower bound of limits asked for by container, which the CRI has no way to do.
                (DriverName::Btrfs, "min_space") => drop(bytes(full, value)?),
                _ => return Err(OptionsError::Unknown(full.to_owned())),
            }
        }
        Ok(checked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn driver_options_are_checked() {
        let opts = |list: &[&str]| list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        let parse = |options: &[&str]| DriverOptions::parse(DriverName::Overlay, &opts(options), false);
        for prefix in ["overlay", "overlay2", ""] {
            let checked = parse(&[&format!("{prefix}.mountopt=nodev,metacopy=on")]).unwrap();
            assert_eq!(checked.mountopt, opts(&["nodev", "metacopy=on"]));
        }
        assert!(parse(&["overlay.skip_mount_home=true"]).unwrap().skip_mount_home);
        assert_eq!(parse(&["overlay.mount_program="]).unwrap(), DriverOptions::default());
        let stores = parse(&["overlay.imagestore=/a,/b", ".imagestore=/c"]).unwrap().additional_stores;
        assert_eq!(stores, ["/a", "/b", "/c"].map(PathBuf::from));
        let bad = |key: &str, value: &str| OptionsError::BadValue { key: key.into(), value: value.into() };
        for (driver, option, error) in [
            (DriverName::Overlay, "mountopt=nodev", OptionsError::Unknown("mountopt".into())),
            (DriverName::Overlay, "overlay.mountopt", OptionsError::NotKeyValue("overlay.mountopt".into())),
            (DriverName::Overlay, ".mount_program=/bin/true", OptionsError::Unsupported(".mount_program".into())),
            (DriverName::Overlay, "overlay.size=10G", OptionsError::Unsupported("overlay.size".into())),
            (DriverName::Overlay, "btrfs.min_space=1", OptionsError::Unknown("btrfs.min_space".into())),
            (DriverName::Overlay, "overlay.skip_mount_home=maybe", bad("overlay.skip_mount_home", "maybe")),
            (DriverName::Overlay, "overlay.imagestore=here", bad("overlay.imagestore", "here")),
            (DriverName::Vfs, "vfs.mountopt=nodev", OptionsError::Unknown("vfs.mountopt".into())),
            (DriverName::Vfs, ".ignore_chown_errors=true", OptionsError::Unsupported(".ignore_chown_errors".into())),
            (DriverName::Btrfs, "btrfs.imagestore=/a", OptionsError::Unknown("btrfs.imagestore".into())),
            (DriverName::Btrfs, "btrfs.size=much", bad("btrfs.size", "much")),
        ] {
            assert_eq!(DriverOptions::parse(driver, &opts(&[option]), false).unwrap_err(), error);
        }
        let other = opts(&["overlay.mountopt=nodev"]);
        assert_eq!(DriverOptions::parse(DriverName::Btrfs, &other, true), Ok(DriverOptions::default()));
    }

    #[test]
    fn sizes_are_read() {
        for (text, size) in
            [("0", 0), ("512", 512), ("10k", 10240), ("3 GiB", 3 << 30), ("2mb", 2 << 20), ("1T", 1 << 40)]
        {
            assert_eq!(bytes("k", text), Ok(size), "{text}");
        }
        for text in ["", "G", "-1", "1x", "99999999999P"] {
            assert!(bytes("k", text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_driver_is_chosen() {
        use DriverName::{Btrfs, Overlay, Vfs};
        let priority = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        for (named, order, used, expected) in [
            ("overlay2", &[][..], &["vfs"][..], Ok(vec![Overlay])),
            ("", &[], &[], Ok(vec![Overlay, Btrfs])),
            ("", &["vfs", "btrfs"], &[], Ok(vec![Vfs, Btrfs])),
            ("", &["overlay"], &["vfs"], Ok(vec![Overlay])),
            ("", &["overlay", "vfs"], &["vfs"], Ok(vec![Vfs])),
            ("", &["overlay"], &["btrfs"], Ok(vec![Btrfs])),
            ("", &[], &["zfs"], Err(OptionsError::Driver("zfs".into()))),
            ("", &[], &["aufs"], Err(OptionsError::RemovedDriver("aufs".into()))),
            ("devicemapper", &[], &[], Err(OptionsError::RemovedDriver("devicemapper".into()))),
            (
                "",
                &[],
                &["vfs", "overlay"],
                Err(OptionsError::SeveralDrivers { root: "/r".into(), drivers: "overlay, vfs".into() }),
            ),
        ] {
            let found = candidates(named, &priority(order), Path::new("/r"), |name| used.contains(&name));
            assert_eq!(found, expected, "{named:?} {order:?} {used:?}");
        }
    }
}
