//! What processes hold open, counted in `/proc`.

use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Descriptors looked at for one container: a look takes a microsecond or two, and a program may have a million.
const LOOKS_MAX: usize = 20_000;
/// The line of `/proc/PID/limits`, proc(5), that tells how many descriptors a process may have.
const OPEN_FILES: &str = "Max open files";

/// Descriptors of a container's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Descriptors {
    /// All of them.
    pub(super) open: u64,
    /// Those that are sockets; `None` when there are too many to look at.
    pub(super) sockets: Option<u64>,
}

/// Counts what these processes have open. One that ends meanwhile has nothing.
pub(super) fn descriptors(pids: &[i32]) -> Descriptors {
    let (mut open, mut sockets, mut looks) = (0_u64, 0_u64, LOOKS_MAX);
    for pid in pids {
        let Ok(entries) = fs::read_dir(PathBuf::from(format!("/proc/{pid}/fd"))) else { continue };
        for entry in entries.flatten() {
            open += 1;
            if looks > 0 {
                looks -= 1;
                let target = fs::read_link(entry.path());
                sockets += u64::from(target.is_ok_and(|target| target.as_os_str().as_bytes().starts_with(b"socket:")));
            }
        }
    }
    Descriptors { open, sockets: (looks > 0).then_some(sockets) }
}

/// How many descriptors a process may have open; `None` without limit, or when it is gone.
pub(super) fn open_files_limit(pid: i32) -> Option<u64> {
    parse_open_files(&fs::read_to_string(format!("/proc/{pid}/limits")).ok()?)
}

fn parse_open_files(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(OPEN_FILES))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_soft_limit_is_the_first_number() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
            Max processes             unlimited            unlimited            processes \n\
            Max open files            1000                 1025                 files     \n";
        assert_eq!(parse_open_files(text), Some(1000));
        assert_eq!(parse_open_files("Max open files            unlimited            unlimited  files\n"), None);
        assert_eq!(parse_open_files(""), None);
    }

    #[test]
    fn sockets_are_told_from_other_descriptors() {
        let own = i32::try_from(std::process::id()).expect("a process id");
        let before = descriptors(&[own]);
        let (_one, _two) = std::os::unix::net::UnixStream::pair().expect("sockets");
        let after = descriptors(&[own]);
        // Other tests of this program open and close things too.
        assert!(after.open >= 2 && after.sockets >= Some(2), "{before:?} {after:?}");
        assert_eq!(descriptors(&[]), Descriptors { open: 0, sockets: Some(0) });
    }
}
