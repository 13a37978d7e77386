//! What the daemon is told while it waits: one JSON object a line on the pipe it handed down.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::options::{Options, Task};

/// Longest wait for a daemon that does not read. It has a whole pipe of room, so a full one means that it hangs.
const DAEMON_STALL_MAX: Duration = Duration::from_secs(5);

/// Longest piece of a runtime's messages that is passed on, in bytes, as conmon has it. Escaped, it grows sixfold at most
/// and then still fits into a pipe.
pub(crate) const MESSAGE_MAX: usize = 8192;

/// Which names the values have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dialect {
    /// `pid`, one message.
    Create,
    /// `exit_code`, one message at the end.
    Exec,
    /// `data`, both messages (`--api-version` 1).
    Data,
}

impl Dialect {
    pub(crate) fn of(options: &Options) -> Self {
        match (&options.task, options.api_version) {
            (_, 1..) => Self::Data,
            (Task::Exec(_), 0) => Self::Exec,
            (Task::Create | Task::Restore(_), 0) => Self::Create,
        }
    }

    fn key(self) -> &'static str {
        match self {
            Self::Create => "pid",
            Self::Exec => "exit_code",
            Self::Data => "data",
        }
    }
}

/// The daemon's end may be gone at any time; then messages are dropped.
#[derive(Debug)]
pub(crate) struct SyncPipe {
    fd: Option<OwnedFd>,
    dialect: Dialect,
}

impl SyncPipe {
    pub(crate) fn new(fd: Option<OwnedFd>, dialect: Dialect) -> io::Result<Self> {
        if let Some(fd) = &fd {
            fcntl_setfl(fd, fcntl_getfl(fd)? | OFlags::NONBLOCK)?;
        }
        Ok(Self { fd, dialect })
    }

    /// Tells the pid of the created container, or of the executed process if the dialect has a place for it.
    pub(crate) fn tell_created(&mut self, pid: i32) -> io::Result<()> {
        match self.dialect {
            Dialect::Exec => Ok(()),
            Dialect::Data => self.send(pid, None),
            Dialect::Create => {
                let result = self.send(pid, None);
                // Nothing more follows, and whoever waits for the end of file need not wait for the container.
                self.fd = None;
                result
            }
        }
    }

    /// Tells that nothing was created.
    pub(crate) fn tell_failed(&mut self, message: &[u8]) -> io::Result<()> {
        self.send(-1, Some(message))
    }

    /// Tells how an executed process ended.
    pub(crate) fn tell_exited(&mut self, code: i32, message: Option<&[u8]>) -> io::Result<()> {
        self.send(code, message)
    }

    fn send(&self, value: i32, message: Option<&[u8]>) -> io::Result<()> {
        let Some(fd) = &self.fd else { return Ok(()) };
        let line = encode(self.dialect.key(), value, message);
        let mut rest = &line[..];
        while !rest.is_empty() {
            match rustix::io::write(fd, rest) {
                Ok(written) => rest = &rest[written..],
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    let timeout =
                        rustix::time::Timespec { tv_sec: DAEMON_STALL_MAX.as_secs().cast_signed(), tv_nsec: 0 };
                    if poll(&mut [PollFd::new(fd, PollFlags::OUT)], Some(&timeout))? == 0 {
                        return Err(io::ErrorKind::TimedOut.into());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn encode(key: &str, value: i32, message: Option<&[u8]>) -> Vec<u8> {
    let mut line = format!("{{\"{key}\": {value}").into_bytes();
    if let Some(message) = message {
        line.extend_from_slice(b", \"message\": \"");
        for byte in &message[..message.len().min(MESSAGE_MAX)] {
            match byte {
                b'"' => line.extend_from_slice(b"\\\""),
                b'\\' => line.extend_from_slice(b"\\\\"),
                b'\n' => line.extend_from_slice(b"\\n"),
                b'\r' => line.extend_from_slice(b"\\r"),
                b'\t' => line.extend_from_slice(b"\\t"),
                0..=0x1f | 0x7f => line.extend_from_slice(format!("\\u{byte:04x}").as_bytes()),
                byte => line.push(*byte),
            }
        }
        line.push(b'"');
    }
    line.extend_from_slice(b"}\n");
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_one_json_object_a_line() {
        for (key, value, message, line) in [
            ("pid", 12, None, &b"{\"pid\": 12}\n"[..]),
            (
                "exit_code",
                -1,
                Some(&b"command timed out"[..]),
                b"{\"exit_code\": -1, \"message\": \"command timed out\"}\n",
            ),
            ("data", -1, Some(b"a\"b\\c\nd\x01"), b"{\"data\": -1, \"message\": \"a\\\"b\\\\c\\nd\\u0001\"}\n"),
        ] {
            assert_eq!(encode(key, value, message), line);
        }
    }

    #[test]
    fn any_message_is_valid_json_and_fits_into_a_pipe() {
        let message: Vec<u8> = (0..=127_u8).cycle().take(3 * MESSAGE_MAX).collect();
        let line = encode("pid", -1, Some(&message));
        let value: serde_json::Value = serde_json::from_slice(&line).unwrap();
        assert_eq!(value["message"].as_str().unwrap().as_bytes(), &message[..MESSAGE_MAX]);
        assert!(encode("pid", -1, Some(&[1; 2 * MESSAGE_MAX])).len() < 65536);
    }
}
