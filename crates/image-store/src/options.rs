//! How a store is opened.

use std::path::PathBuf;

use thiserror::Error;

use crate::ids::SubordinateFiles;

/// What the caller has read from `storage.conf` and the daemon's own configuration.
#[derive(Debug, Clone, Default)]
pub struct StoreOptions {
    /// The graph root: images, layers, containers. Made, mode 0700, if absent.
    pub root: PathBuf,
    /// The run root: what is worthless after a reboot. Made, mode 0700, if absent.
    pub runroot: PathBuf,
    /// The graph driver; empty means overlay. Others are refused by name.
    pub driver: String,
    /// Driver options as `storage_option` has them: `overlay.mountopt=nodev,metacopy=on`; the prefix may also be
    /// `overlay2` or nothing before the dot.
    pub driver_options: Vec<String>,
    /// `transient_store`: records of volatile containers and layers lie in the run root, and every container is
    /// volatile.
    pub transient: Transient,
    /// Whether device nodes in images are made (as the rest of the field does) or make the layer unusable.
    pub devices: DevicePolicy,
    /// Where automatic user namespaces find their ids.
    pub subordinate_files: SubordinateFiles,
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
    #[error("graph driver {0:?} is not supported: only overlay is")]
    Driver(String),
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
}

/// Driver options, checked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct OverlayOptions {
    /// Options of every container mount, in the order given.
    pub(crate) mountopt: Vec<String>,
    /// Leave the driver directory without a private mount of its own.
    pub(crate) skip_mount_home: bool,
}

pub(crate) fn check_driver(driver: &str) -> Result<(), OptionsError> {
    match driver {
        "" | "overlay" | "overlay2" => Ok(()),
        other => Err(OptionsError::Driver(other.to_owned())),
    }
}

fn boolean(key: &str, value: &str) -> Result<bool, OptionsError> {
    match value {
        "true" | "1" => Ok(true),
        "false" | "0" | "" => Ok(false),
        _ => Err(OptionsError::BadValue { key: key.to_owned(), value: value.to_owned() }),
    }
}

impl OverlayOptions {
    pub(crate) fn parse(options: &[String]) -> Result<Self, OptionsError> {
        let mut checked = Self::default();
        for option in options {
            let (full, value) = option.split_once('=').ok_or_else(|| OptionsError::NotKeyValue(option.clone()))?;
            let (full, value) = (full.trim(), value.trim());
            let lower = full.to_ascii_lowercase();
            let key = ["overlay.", "overlay2.", "."]
                .iter()
                .find_map(|prefix| lower.strip_prefix(prefix))
                .ok_or_else(|| OptionsError::Unknown(full.to_owned()))?;
            match key {
                "mountopt" => {
                    checked.mountopt = value.split(',').filter(|part| !part.is_empty()).map(str::to_owned).collect();
                }
                "skip_mount_home" => checked.skip_mount_home = boolean(full, value)?,
                // Harmless when off; on, each of these changes what lies on disk.
                "use_composefs" | "ignore_chown_errors" => {
                    if boolean(full, value)? {
                        return Err(OptionsError::Unsupported(full.to_owned()));
                    }
                }
                // Layers are always made durable before they are named, which is more than either value asks for.
                "sync" if matches!(value, "" | "none" | "filesystem") => {}
                "mount_program" | "size" | "inodes" | "force_mask" | "imagestore" | "additionalimagestores" => {
                    if !value.is_empty() {
                        return Err(OptionsError::Unsupported(full.to_owned()));
                    }
                }
                "sync" => return Err(OptionsError::BadValue { key: full.to_owned(), value: value.to_owned() }),
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
        let parse = |options: &[&str]| {
            OverlayOptions::parse(&options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        };
        let opts = |list: &[&str]| list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>();
        for prefix in ["overlay", "overlay2", ""] {
            let checked = parse(&[&format!("{prefix}.mountopt=nodev,metacopy=on")]).unwrap();
            assert_eq!(checked.mountopt, opts(&["nodev", "metacopy=on"]));
        }
        assert!(parse(&["overlay.skip_mount_home=true"]).unwrap().skip_mount_home);
        assert_eq!(parse(&["overlay.mount_program="]).unwrap(), OverlayOptions::default());
        for (option, error) in [
            ("mountopt=nodev", OptionsError::Unknown("mountopt".into())),
            ("overlay.mountopt", OptionsError::NotKeyValue("overlay.mountopt".into())),
            ("overlay.size=10G", OptionsError::Unsupported("overlay.size".into())),
            ("btrfs.min_space=1", OptionsError::Unknown("btrfs.min_space".into())),
            (
                "overlay.skip_mount_home=maybe",
                OptionsError::BadValue { key: "overlay.skip_mount_home".into(), value: "maybe".into() },
            ),
        ] {
            assert_eq!(parse(&[option]).unwrap_err(), error);
        }
        assert_eq!(check_driver("zfs"), Err(OptionsError::Driver("zfs".into())));
        assert_eq!(check_driver(""), Ok(()));
    }
}
