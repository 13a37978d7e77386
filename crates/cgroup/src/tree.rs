//! Making, removing and reading cgroups.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use domain::spec::CgroupVersion;
use rustix::io::Errno;
use thiserror::Error;

use crate::layout::{Layout, below};

/// Most bytes of one cgroup file: `cgroup.procs` of a million processes stays below it.
const FILE_MAX_BYTES: u64 = 8 << 20;
/// Most directories one removal or walk visits. A container with a writable cgroup can make many; what is beyond is
/// reported instead of holding up the daemon.
const DIRECTORIES_MAX: usize = 100_000;
/// Deepest nesting that is followed, well beyond what fits a path.
const PATH_MAX_BYTES: usize = 4000;
/// A cgroup stays busy for some milliseconds after its last process ended. 5 ms doubled eight times is 1.3 s in all,
/// longer than the kernel was ever seen to take on a loaded machine.
const BUSY_RETRIES: u32 = 8;
const BUSY_FIRST_WAIT: Duration = Duration::from_millis(5);

/// A path that must not be used in a hierarchy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{path:?} is not the absolute path of a cgroup below the root")]
pub struct PathError {
    path: String,
}

/// Why a cgroup could not be made.
#[derive(Debug, Error)]
pub enum CreateError {
    /// The path is unusable.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A directory.
    #[error("create cgroup {path}")]
    MakeDirectory {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A new cpuset is empty and takes no process until it has its parent's CPUs.
    #[error("copy {file} to the new cgroup {path}")]
    CopyCpuset {
        /// `cpuset.cpus` or `cpuset.mems`.
        file: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a process could not be moved.
#[derive(Debug, Error)]
pub enum MoveError {
    /// The path is unusable.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The write that moves it.
    #[error("move process {pid} to cgroup {path}")]
    Write {
        /// The process.
        pid: i32,
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a cgroup could not be removed.
#[derive(Debug, Error)]
pub enum RemoveError {
    /// The path is unusable.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A listing.
    #[error("list cgroup {path}")]
    List {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// There are processes in it, or it is slow.
    #[error("cgroup {path} is still busy after {BUSY_RETRIES} attempts")]
    Busy {
        /// The directory.
        path: PathBuf,
    },
    /// Somebody filled it with directories.
    #[error("cgroup {path} has more than {DIRECTORIES_MAX} cgroups below it")]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// The removal itself.
    #[error("remove cgroup {path}")]
    Remove {
        /// The directory.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why it is not known whether the kernel killed somebody for memory.
#[derive(Debug, Error)]
pub enum OomError {
    /// The path is unusable.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The file that says so.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Absolute, not the root, no dot segments, no NUL.
pub(crate) fn check_path(path: &str) -> Result<(), PathError> {
    let mut segments = path.split('/').filter(|segment| !segment.is_empty()).peekable();
    let is_good = path.starts_with('/')
        && segments.peek().is_some()
        && segments.all(|segment| !matches!(segment, "." | "..") && segment.len() <= 255)
        && path.len() <= PATH_MAX_BYTES
        && !path.contains(['\0', '\n']);
    if is_good { Ok(()) } else { Err(PathError { path: path.chars().take(200).collect() }) }
}

/// The whole of a file that should be small.
pub(crate) fn read_bounded(path: &Path, max_bytes: u64) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(max_bytes).read_to_string(&mut text)?;
    Ok(text)
}

pub(crate) fn read(path: &Path) -> io::Result<String> {
    read_bounded(path, FILE_MAX_BYTES)
}

/// One write(2): cgroup files take a command a call.
pub(crate) fn write(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new().write(true).open(path)?.write_all(text.as_bytes())
}

/// Gone is what was wanted: the file or directory is absent, or its cgroup went away while it was open.
pub(crate) fn is_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(Errno::NODEV.raw_os_error())
}

fn is_busy(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::BUSY.raw_os_error())
}

/// Directories below `top`, itself included, parents before children. Nothing when it does not exist.
pub(crate) fn walk(top: &Path) -> Result<Vec<PathBuf>, RemoveError> {
    let mut found = vec![top.to_owned()];
    let mut at = 0;
    while at < found.len() {
        let directory = found[at].clone();
        let listed = match fs::read_dir(&directory) {
            Ok(listed) => listed,
            Err(source) if is_gone(&source) => {
                found.remove(at);
                continue;
            }
            Err(source) => return Err(RemoveError::List { path: directory, source }),
        };
        for entry in listed {
            let entry = match entry {
                Ok(entry) => entry,
                Err(source) if is_gone(&source) => break,
                Err(source) => return Err(RemoveError::List { path: directory, source }),
            };
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                found.push(entry.path());
            }
        }
        if found.len() > DIRECTORIES_MAX {
            return Err(RemoveError::TooMany { path: top.to_owned() });
        }
        at += 1;
    }
    Ok(found)
}

/// Removes one directory and what is below it, children first; returns one that is busy.
fn try_remove_tree(top: &Path) -> Result<Option<PathBuf>, RemoveError> {
    let mut busy = None;
    for directory in walk(top)?.into_iter().rev() {
        match fs::remove_dir(&directory) {
            Ok(()) => {}
            Err(source) if is_gone(&source) => {}
            Err(source) if is_busy(&source) => busy = Some(directory),
            Err(source) => return Err(RemoveError::Remove { path: directory, source }),
        }
    }
    Ok(busy)
}

/// An empty cpuset takes no process (ENOSPC), and a new one is empty.
fn copy_cpuset(parent: &Path, directory: &Path) -> Result<(), CreateError> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let error = |source| CreateError::CopyCpuset { file, path: directory.to_owned(), source };
        let own = read(&directory.join(file)).map_err(error)?;
        if own.trim().is_empty() {
            let inherited = read(&parent.join(file)).map_err(error)?;
            write(&directory.join(file), inherited.trim()).map_err(error)?;
        }
    }
    Ok(())
}

/// Gives the children of `directory` all controllers it has itself. One write each, because one that cannot be given
/// (processes in the directory, a threaded one) must not take the others with it.
fn enable_controllers(directory: &Path) {
    let names = |file: &str| read(&directory.join(file)).unwrap_or_default();
    let (available, enabled) = (names("cgroup.controllers"), names("cgroup.subtree_control"));
    let is_enabled = |name: &&str| enabled.split_whitespace().any(|known| known == *name);
    for name in available.split_whitespace().filter(|name| !is_enabled(name)) {
        if let Err(error) = write(&directory.join("cgroup.subtree_control"), &format!("+{name}")) {
            tracing::debug!(cgroup = %directory.display(), controller = name, %error, "controller cannot be delegated");
        }
    }
}

impl Layout {
    /// Makes a cgroup and its missing parents in every hierarchy the runtimes use.
    ///
    /// v1: a new cpuset gets its parent's CPUs and memory nodes. v2: the controllers are handed down to it. Making one
    /// that exists is success. On failure what was made stays for [`Self::remove`], which is idempotent.
    pub fn create(&self, path: &str) -> Result<(), CreateError> {
        check_path(path)?;
        for mount in self.working_mounts() {
            let mut directory = mount.to_owned();
            for segment in path.split('/').filter(|segment| !segment.is_empty()) {
                if self.version() == CgroupVersion::V2 {
                    enable_controllers(&directory);
                }
                let parent = directory.clone();
                directory.push(segment);
                match fs::create_dir(&directory) {
                    Ok(()) => {}
                    Err(source) if source.kind() == io::ErrorKind::AlreadyExists => {}
                    Err(source) => return Err(CreateError::MakeDirectory { path: directory, source }),
                }
                if self.version() == CgroupVersion::V1 && directory.join("cpuset.cpus").exists() {
                    copy_cpuset(&parent, &directory)?;
                }
            }
        }
        Ok(())
    }

    /// Whether a cgroup exists in any hierarchy.
    #[must_use]
    pub fn exists(&self, path: &str) -> bool {
        check_path(path).is_ok() && self.all_mounts().iter().any(|mount| below(mount, path).is_dir())
    }

    /// Moves a process, all threads of it, into a cgroup that exists, in every hierarchy.
    pub fn move_process(&self, path: &str, pid: i32) -> Result<(), MoveError> {
        check_path(path)?;
        for mount in self.working_mounts() {
            let directory = below(mount, path);
            write(&directory.join("cgroup.procs"), &pid.to_string()).map_err(|source| MoveError::Write {
                pid,
                path: directory,
                source,
            })?;
        }
        Ok(())
    }

    /// Removes a cgroup with all below it, children first, in every hierarchy. Absent is success.
    ///
    /// Blocks for up to 1.3 seconds while processes in it are on their way out. One hierarchy's trouble does not keep
    /// the others; the first error is returned.
    pub fn remove(&self, path: &str) -> Result<(), RemoveError> {
        check_path(path)?;
        let mut wait = BUSY_FIRST_WAIT;
        let mut pending: Vec<PathBuf> = self.all_mounts().iter().map(|mount| below(mount, path)).collect();
        let mut first = None;
        for attempt in 0..=BUSY_RETRIES {
            let mut busy = None;
            pending.retain(|top| match try_remove_tree(top) {
                Ok(None) => false,
                Ok(Some(path)) => {
                    busy.get_or_insert(path);
                    true
                }
                Err(error) => {
                    first.get_or_insert(error);
                    false
                }
            });
            match busy {
                None => break,
                Some(path) if attempt == BUSY_RETRIES => {
                    first.get_or_insert(RemoveError::Busy { path });
                }
                Some(_) => std::thread::sleep(wait),
            }
            wait *= 2;
        }
        first.map_or(Ok(()), Err)
    }

    /// How many processes of a cgroup the kernel has killed for want of memory; `None` when the cgroup is gone or the
    /// kernel does not count (v1 before 4.13).
    ///
    /// v2 counts what is below too; on v1 the counts of the whole tree are added.
    pub fn oom_kills(&self, path: &str) -> Result<Option<u64>, OomError> {
        check_path(path)?;
        let Some(top) = self.directory("memory", path) else { return Ok(None) };
        let (file, directories) = match self.version() {
            CgroupVersion::V2 => ("memory.events", vec![top]),
            CgroupVersion::V1 => ("memory.oom_control", walk(&top).unwrap_or_default()),
        };
        let mut sum = None;
        for directory in directories {
            let path = directory.join(file);
            let text = match read(&path) {
                Ok(text) => text,
                Err(source) if is_gone(&source) => continue,
                Err(source) => return Err(OomError::Read { path, source }),
            };
            let count = text.lines().find_map(|line| line.strip_prefix("oom_kill ")?.trim().parse::<u64>().ok());
            sum = match (sum, count) {
                (Some(sum), Some(count)) => Some(u64::saturating_add(sum, count)),
                (sum, count) => sum.or(count),
            };
        }
        Ok(sum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_below_the_root() {
        for (path, ok) in [
            ("/crio", true),
            ("/a/b//c/", true),
            ("/", false),
            ("", false),
            ("crio", false),
            ("/a/../b", false),
            ("/./a", false),
            ("/a\nb", false),
        ] {
            assert_eq!(check_path(path).is_ok(), ok, "{path:?}");
        }
    }
}
