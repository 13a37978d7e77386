//! Processes that were written down: recognised by pid and start time.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// `/proc/<pid>/stat` is one line; the command name in it is at most 64 bytes.
const STAT_MAX_BYTES: u64 = 4096;

/// A process, and when it began, in clock ticks since boot.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Process {
    pub(crate) pid: i32,
    pub(crate) start_time: u64,
}

impl Process {
    /// Writes down a process that runs now.
    pub(crate) fn identify(pid: i32) -> io::Result<Self> {
        let mut text = Vec::new();
        std::fs::File::open(format!("/proc/{pid}/stat"))?.take(STAT_MAX_BYTES).read_to_end(&mut text)?;
        // The command name stands in parentheses and may contain anything (proc(5)); the start time is field 22.
        let start_time = text.iter().rposition(|byte| *byte == b')').and_then(|end| {
            std::str::from_utf8(text.get(end + 1..)?).ok()?.split_ascii_whitespace().nth(19)?.parse().ok()
        });
        start_time
            .map(|start_time| Self { pid, start_time })
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is malformed")))
    }

    /// A handle, unless it has ended.
    fn open(self) -> Option<std::os::fd::OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // Only now is the number pinned: the check after the open proves that it is the same process.
        (Self::identify(self.pid).ok()? == self).then_some(pidfd)
    }

    /// Kills it, if it has not ended.
    pub(crate) fn kill(self) {
        if let Some(pidfd) = self.open() {
            // It may end at the same moment.
            let _ = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }

    /// Waits until it has ended; whether it has.
    pub(crate) fn wait_end(self, limit: Duration) -> bool {
        let Some(pidfd) = self.open() else { return true };
        let limit = timespec(limit);
        poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&limit)).is_ok_and(|count| count > 0)
    }
}

/// The file a process executes.
pub(crate) fn executable(pid: i32) -> io::Result<PathBuf> {
    std::fs::read_link(Path::new("/proc").join(pid.to_string()).join("exe"))
}

pub(crate) fn timespec(duration: Duration) -> rustix::time::Timespec {
    rustix::time::Timespec {
        tv_sec: i64::try_from(duration.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: i64::from(duration.subsec_nanos()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_start_time_is_another_process_and_is_left_alone() {
        let own = Process::identify(i32::try_from(std::process::id()).expect("fits")).expect("reads");
        assert!(!own.wait_end(Duration::from_millis(1)));
        let other = Process { start_time: own.start_time + 1, ..own };
        other.kill();
        assert!(other.wait_end(Duration::from_secs(60)));
    }
}
