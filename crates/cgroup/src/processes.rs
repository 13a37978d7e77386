//! Who is in a cgroup, and ending all of them.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use domain::spec::CgroupVersion;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use thiserror::Error;

use crate::layout::{Layout, below};
use crate::tree::{PathError, RemoveError, check_path, is_gone, read, walk, write};

/// How often emptiness is looked at. A killed process is gone within a millisecond or two on an idle machine.
const POLL: Duration = Duration::from_millis(2);

/// Why the processes of a cgroup are not known.
#[derive(Debug, Error)]
pub enum ProcessesError {
    /// The path is unusable.
    #[error(transparent)]
    Path(#[from] PathError),
    /// The cgroups below it cannot be listed.
    #[error("list the cgroups below {path:?}")]
    Walk {
        /// The cgroup.
        path: String,
        /// Why.
        #[source]
        source: RemoveError,
    },
    /// A list of processes.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Why a cgroup could not be emptied.
#[derive(Debug, Error)]
pub enum KillError {
    /// Who is in it is not known.
    #[error(transparent)]
    Processes(#[from] ProcessesError),
    /// They are still there.
    #[error("{count} processes of cgroup {path:?} are still there after {} ms", waited.as_millis())]
    StillThere {
        /// The cgroup.
        path: String,
        /// How many.
        count: usize,
        /// How long was waited.
        waited: Duration,
    },
}

pub(crate) fn pids_of(directory: &Path, into: &mut BTreeSet<i32>) -> Result<(), ProcessesError> {
    let path = directory.join("cgroup.procs");
    match read(&path) {
        // A process outside our pid namespace shows as 0; there is none to name.
        Ok(text) => into.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0)),
        // A threaded cgroup of v2 lists its processes in its domain above.
        Err(source) if is_gone(&source) || source.raw_os_error() == Some(95) => {}
        Err(source) => return Err(ProcessesError::Read { path, source }),
    }
    Ok(())
}

impl Layout {
    /// Processes in a cgroup and in all below it, in any hierarchy, sorted. Empty when it does not exist.
    pub fn processes(&self, path: &str) -> Result<Vec<i32>, ProcessesError> {
        check_path(path)?;
        let mut pids = BTreeSet::new();
        for mount in self.all_mounts() {
            let directories =
                walk(&below(mount, path)).map_err(|source| ProcessesError::Walk { path: path.to_owned(), source })?;
            for directory in directories {
                pids_of(&directory, &mut pids)?;
            }
        }
        Ok(pids.into_iter().collect())
    }

    /// Ends every process in a cgroup and below it, and waits until they are gone, `patience` at the most.
    ///
    /// v2 asks the kernel (`cgroup.kill`, Linux 5.14). Otherwise the tree is frozen, so that nobody forks away, and
    /// each process gets SIGKILL through a pidfd that was checked to be of a member still.
    pub fn kill_all(&self, path: &str, patience: Duration) -> Result<(), KillError> {
        let start = Instant::now();
        loop {
            let count = self.kill_once(path)?;
            if count == 0 {
                return Ok(());
            }
            if start.elapsed() >= patience {
                return Err(KillError::StillThere { path: path.to_owned(), count, waited: start.elapsed() });
            }
            std::thread::sleep(POLL);
        }
    }

    /// One round of [`Layout::kill_all`]: tells how many there were to kill, and does not wait for their end. For callers
    /// that must not block: a process in uninterruptible sleep ends when it likes.
    pub fn kill_once(&self, path: &str) -> Result<usize, KillError> {
        check_path(path).map_err(ProcessesError::Path)?;
        let members = self.processes(path)?;
        let alive: Vec<i32> = members.into_iter().filter(|pid| !is_zombie(*pid)).collect();
        if !alive.is_empty() && !self.kill_by_kernel(path) {
            self.kill_frozen(path, &alive)?;
        }
        Ok(alive.len())
    }

    /// Whether the processes of a cgroup are frozen or about to be, as those of a paused container. A cgroup that does not
    /// exist, or has no freezer, is not.
    #[must_use]
    pub fn is_frozen(&self, path: &str) -> bool {
        if check_path(path).is_err() {
            return false;
        }
        // Containers of crun have their processes in a cgroup of that name below their own.
        [path.to_owned(), format!("{path}/container")].iter().any(|path| {
            let Some((file, ..)) = self.freezer(path) else { return false };
            read(&file).is_ok_and(|text| !matches!(text.trim(), "0" | "THAWED"))
        })
    }

    fn kill_by_kernel(&self, path: &str) -> bool {
        let is_v2 = self.version() == CgroupVersion::V2;
        let Some(unified) = self.unified().filter(|_| is_v2) else { return false };
        match write(&below(unified, path).join("cgroup.kill"), "1") {
            Ok(()) => true,
            // Absent before 5.14, or the cgroup is gone; the next look tells.
            Err(_) => false,
        }
    }

    fn freezer(&self, path: &str) -> Option<(PathBuf, &'static str, &'static str)> {
        let directory = self.directory("freezer", path)?;
        Some(match self.version() {
            CgroupVersion::V2 => (directory.join("cgroup.freeze"), "1", "0"),
            CgroupVersion::V1 => (directory.join("freezer.state"), "FROZEN", "THAWED"),
        })
    }

    fn kill_frozen(&self, path: &str, pids: &[i32]) -> Result<(), KillError> {
        let freezer = self.freezer(path);
        if let Some((file, freeze, _)) = &freezer {
            // Freezing is help, not a condition: without it the next round gets those that were born meanwhile.
            let _ = write(file, freeze);
        }
        let killed = self.kill_members(path, pids);
        if let Some((file, _, thaw)) = &freezer {
            // A frozen process of v1 dies only when it is thawed.
            let _ = write(file, thaw);
        }
        killed
    }

    fn kill_members(&self, path: &str, pids: &[i32]) -> Result<(), KillError> {
        let opened: Vec<_> = pids
            .iter()
            .filter_map(|raw| Some((*raw, pidfd_open(Pid::from_raw(*raw)?, PidfdFlags::empty()).ok()?)))
            .collect();
        // A pid that is a member after its pidfd was opened is the member the pidfd holds.
        let members: BTreeSet<i32> = self.processes(path)?.into_iter().collect();
        for (pid, pidfd) in opened.iter().filter(|(pid, _)| members.contains(pid)) {
            if let Err(error) = pidfd_send_signal(pidfd, Signal::KILL) {
                tracing::debug!(pid, %error, "process of a cgroup ended by itself");
            }
        }
        Ok(())
    }
}

/// A process that has ended and waits to be collected by its parent; it holds nothing but its number, and on v1 and v2
/// it is listed until then.
fn is_zombie(pid: i32) -> bool {
    let Ok(stat) = read(Path::new(&format!("/proc/{pid}/stat"))) else { return true };
    // The command may contain parentheses and blanks; the state follows the last one.
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    matches!(state, Some('Z' | 'X'))
}
