//! `route_localnet` of a device: whether packets from and to 127.0.0.0/8 may pass it.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::PathBuf;

fn path(device: &str) -> Option<PathBuf> {
    // The kernel allows no slash in a device's name; a name from elsewhere must not lead elsewhere.
    let fits = !device.is_empty() && !device.contains('/') && !matches!(device, "." | ".." | "all" | "default");
    fits.then(|| PathBuf::from(format!("/proc/sys/net/ipv4/conf/{device}/route_localnet")))
}

/// Whether there is such a device.
pub(super) fn exists(device: &str) -> bool {
    path(device).is_some_and(|path| path.exists())
}

/// Whether it is on already, by whoever.
pub(super) fn is_allowed(device: &str) -> bool {
    let read = |path: PathBuf| std::fs::read_to_string(path).ok();
    path(device).and_then(read).is_some_and(|text| text.trim() == "1")
}

/// Turns it on. A failure costs 127.0.0.1, nothing else, and is logged.
pub(super) fn allow(device: &str) {
    write(device, b"1");
}

/// Turns it off, if the device is still there.
pub(super) fn forbid(device: &str) {
    if exists(device) {
        write(device, b"0");
    }
}

fn write(device: &str, value: &[u8]) {
    let Some(path) = path(device) else { return };
    let written = OpenOptions::new().write(true).open(&path).and_then(|mut file| file.write_all(value));
    match written {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(device, %error, "cannot set route_localnet");
        }
        _ => {}
    }
}
