//! The monitor's own messages: standard error while it is the caller's, and syslog when asked for.

use std::error::Error;
use std::fmt::Write as _;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixDatagram;

use crate::options::{Level, Options};

/// Where syslog listens: RFC 3164 datagrams, syslog(3).
const SYSLOG_SOCKET: &str = "/dev/log";

/// The facility `daemon` of RFC 3164.
const FACILITY_DAEMON: u8 = 3 << 3;

/// Characters of the container id that a message begins with, as people read ids.
const ID_SHOWN: usize = 12;

/// Reports what happens. Never blocks and never fails.
#[derive(Debug)]
pub(crate) struct Reporter {
    level: Level,
    syslog: Option<UnixDatagram>,
    id: String,
}

impl Reporter {
    pub(crate) fn new(options: &Options) -> Self {
        let syslog = options.has_syslog.then(UnixDatagram::unbound).and_then(Result::ok);
        if let Some(socket) = &syslog
            && socket.set_nonblocking(true).is_err()
        {
            return Self { level: options.level, syslog: None, id: String::new() };
        }
        let id: String = String::from_utf8_lossy(options.cid.as_bytes()).chars().take(ID_SHOWN).collect();
        Self { level: options.level, syslog, id }
    }

    pub(crate) fn error(&self, what: &str, error: &dyn Error) {
        self.say(Level::Error, what, Some(error));
    }

    pub(crate) fn warn(&self, what: &str, error: &dyn Error) {
        self.say(Level::Warning, what, Some(error));
    }

    pub(crate) fn info(&self, what: &str) {
        self.say(Level::Info, what, None);
    }

    fn say(&self, level: Level, what: &str, error: Option<&dyn Error>) {
        if level > self.level {
            return;
        }
        let (letter, severity) = match level {
            Level::Error => ('e', 3),
            Level::Warning => ('w', 4),
            Level::Info => ('i', 6),
            Level::Debug => ('d', 7),
        };
        let text = match error {
            Some(error) => format!("{what}: {}", chain(error)),
            None => what.to_owned(),
        };
        // There is no one to tell about a message that cannot be told.
        let _ = writeln!(std::io::stderr(), "[crio-monitor:{letter}]: {} {text}", self.id);
        if let Some(socket) = &self.syslog {
            let priority = FACILITY_DAEMON | severity;
            let line = format!("<{priority}>crio-monitor[{}]: {} {text}", std::process::id(), self.id);
            let _ = socket.send_to(line.as_bytes(), SYSLOG_SOCKET);
        }
    }
}

/// An error and its causes, each after a colon.
pub(crate) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
