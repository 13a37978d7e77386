//! Where a container's working directory leads, before anybody changes to it.
//!
//! `/proc/self/fd/N` and its like are doors to whatever the runtime has open while it starts the program: a directory of
//! the node, in the worst case (CVE-2024-21626). Runtimes look where they are after the change; a request or an image that
//! asks for such a place is refused here, before anything is made.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Component, Path, PathBuf};

use durable::beneath::{Links, Root};
use rustix::fs::OFlags;

/// Links the kernel follows in one path before it gives up. Source: path_resolution(7).
const LINKS_MAX: usize = 40;

/// The place in a process's own directory that `path` leads to by the links in `root`; nothing for an ordinary place.
///
/// Links that are not there yet, in a volume, are the runtime's to look at.
pub(crate) fn leads_into_process(root: &Root, path: &Path) -> Option<PathBuf> {
    let mut rest: VecDeque<OsString> = steps(path);
    let mut place = PathBuf::from("/");
    let mut links = 0;
    while let Some(step) = rest.pop_front() {
        if step == ".." {
            place.pop();
            continue;
        }
        if let Some(target) = link_in(root, &place, &step) {
            links += 1;
            if links > LINKS_MAX {
                return None;
            }
            if target.is_absolute() {
                place = PathBuf::from("/");
            }
            for step in steps(&target).into_iter().rev() {
                rest.push_front(step);
            }
            continue;
        }
        place.push(step);
        if is_of_process(&place) {
            return Some(place);
        }
    }
    None
}

fn steps(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|component| match component {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

fn link_in(root: &Root, place: &Path, name: &OsString) -> Option<PathBuf> {
    let directory = root.open_beneath(place, OFlags::PATH | OFlags::DIRECTORY, 0, Links::InRoot).ok()?;
    let target = rustix::fs::readlinkat(&directory, name.as_os_str(), Vec::new()).ok()?;
    Some(OsString::from_vec(target.into_bytes()).into())
}

/// Something beneath the directory of a process in procfs, or what runtimes link there from `/dev`.
fn is_of_process(place: &Path) -> bool {
    let names: Vec<&str> = place.components().skip(1).filter_map(|component| component.as_os_str().to_str()).collect();
    match names.as_slice() {
        ["proc", process, _, ..] => {
            matches!(*process, "self" | "thread-self") || process.bytes().all(|byte| byte.is_ascii_digit())
        }
        ["dev", "fd" | "stdin" | "stdout" | "stderr", ..] => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn doors_to_open_files_are_found_behind_links() {
        let base = tempfile::tempdir().expect("a directory");
        let link = |name: &str, target: &str| symlink(target, base.path().join(name)).expect("a link");
        std::fs::create_dir_all(base.path().join("data/real")).expect("a directory");
        link("way", "/proc/self/fd/7");
        link("data/relative", "../proc/1/fd");
        link("procs", "proc");
        link("chain", "procs");
        link("loop", "loop");
        link("fine", "data/real");
        link("up", "../../../../data");
        let root = Root::open(base.path()).expect("opens");
        for (path, expected) in [
            ("/proc/self/fd/7", Some("/proc/self/fd")),
            ("/proc/self/cwd", Some("/proc/self/cwd")),
            ("/proc/1/root/etc", Some("/proc/1/root")),
            ("/proc/thread-self/fd/9", Some("/proc/thread-self/fd")),
            ("/proc/../proc/./self//fd/7/../8", Some("/proc/self/fd")),
            ("/dev/fd/7", Some("/dev/fd")),
            ("/way", Some("/proc/self/fd")),
            ("/way/below", Some("/proc/self/fd")),
            ("/data/relative/7", Some("/proc/1/fd")),
            ("/chain/self/fd/7", Some("/proc/self/fd")),
            ("/up/relative", Some("/proc/1/fd")),
            ("/loop", None),
            ("/fine/new", None),
            ("/data/real", None),
            ("/proc", None),
            ("/proc/self", None),
            ("/proc/sys/net", None),
            ("/procx/self/fd", None),
            ("/dev/shm", None),
            ("/", None),
        ] {
            assert_eq!(leads_into_process(&root, Path::new(path)).as_deref(), expected.map(Path::new), "{path}");
        }
    }
}
