//! Processes that were written down: recognised by pid and start time, watched by pidfd.

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::{fs, io};

use domain::container::Process;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `/proc/<pid>/stat` is one line; the command name in it is at most 64 bytes.
const STAT_MAX_BYTES: u64 = 4096;

/// State and start time of a process, from `/proc/<pid>/stat` (proc(5), fields 3 and 22).
fn read_stat(pid: i32) -> io::Result<(u8, u64)> {
    let mut text = Vec::new();
    fs::File::open(format!("/proc/{pid}/stat"))?.take(STAT_MAX_BYTES).read_to_end(&mut text)?;
    parse_stat(&text)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat is malformed")))
}

fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    // The command name stands in parentheses and may contain anything, parentheses and spaces included.
    let after_name = &text[text.iter().rposition(|byte| *byte == b')')? + 1..];
    let mut fields = std::str::from_utf8(after_name).ok()?.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

/// Writes down a process that is running now.
pub fn identify(pid: i32) -> io::Result<Process> {
    let (_, start_time) = read_stat(pid)?;
    Ok(Process { pid, start_time })
}

/// Whether the process still runs: same start time, neither zombie nor dead.
#[must_use]
pub fn is_alive(process: Process) -> bool {
    matches!(read_stat(process.pid), Ok((state, start_time))
        if start_time == process.start_time && !matches!(state, b'Z' | b'X' | b'x'))
}

/// Whether the process is in uninterruptible sleep, where no signal reaches it.
#[must_use]
pub fn is_uninterruptible(process: Process) -> bool {
    matches!(read_stat(process.pid), Ok((b'D', start_time)) if start_time == process.start_time)
}

/// A handle to a process that was written down; `None` when it has ended.
pub fn open(process: Process) -> io::Result<Option<OwnedFd>> {
    let Some(pid) = Pid::from_raw(process.pid) else { return Ok(None) };
    let pidfd = match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(pidfd) => pidfd,
        Err(Errno::SRCH) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    // Only now is the number pinned: the check after the open proves that it is the same process.
    Ok(is_alive(process).then_some(pidfd))
}

/// Sends a signal; one that has ended already is not an error.
pub fn signal(process: Process, number: i32) -> io::Result<()> {
    let Some(pidfd) = open(process)? else { return Ok(()) };
    match sys::spawn::signal(pidfd.as_fd(), number) {
        Err(error) if error.raw_os_error() == Some(Errno::SRCH.raw_os_error()) => Ok(()),
        result => result,
    }
}

/// Waits until the process behind a pidfd has ended.
pub async fn ended(pidfd: OwnedFd) -> io::Result<()> {
    #[expect(deprecated, reason = "its successor is unsafe, and an owned descriptor keeps what that asks for")]
    let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
    let _ready = pidfd.readable().await?;
    // Monitors that lost their parent become ours when the daemon is a subreaper; nobody else's are touched.
    let _ = sys::spawn::reap(pidfd.get_ref().as_fd());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_hostile_names_are_read() {
        let tail = "1 1 1 0 -1 4194304 1 0 0 0 0 0 0 0 20 0 1 0 4711 0 0";
        for (text, expected) in [
            (format!("7 (sh) S {tail}"), Some((b'S', 4711))),
            (format!("7 (a) Z 1 (b) D {tail}"), Some((b'D', 4711))),
            ("7 (sh) S 1 1".to_owned(), None),
            ("7 sh".to_owned(), None),
            (String::new(), None),
        ] {
            assert_eq!(parse_stat(text.as_bytes()), expected, "{text}");
        }
    }

    #[test]
    fn this_process_is_alive_and_another_start_time_is_another_process() {
        let own = identify(i32::try_from(std::process::id()).expect("fits")).expect("reads");
        assert!(is_alive(own));
        assert!(open(own).expect("opens").is_some());
        let other = Process { start_time: own.start_time + 1, ..own };
        assert!(!is_alive(other));
        assert!(open(other).expect("opens").is_none());
        signal(other, 9).expect("is not sent to us");
    }
}
