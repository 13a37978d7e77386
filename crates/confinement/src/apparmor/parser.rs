//! `apparmor_parser`: the program that turns a profile's text into policy and gives it to the kernel.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::MemfdFlags;
use rustix::process::Signal;
use sys::spawn::{Child, Command, ExitStatus};
use thiserror::Error;

/// A profile of some twenty lines takes a tenth of a second; a node that has just booted may be busy.
const LIMIT: Duration = Duration::from_secs(60);
/// What is kept of its complaints.
const MESSAGE_MAX_BYTES: usize = 4 << 10;
/// Replace what is loaded under the name, and leave no cache of a profile that is no file.
const REPLACE: &str = "-Kr";

/// Why a profile was not loaded.
#[derive(Debug, Error)]
pub enum ParserError {
    /// It could not be run.
    #[error("run {parser}")]
    Run {
        /// The program.
        parser: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// It took too long and was killed.
    #[error("{parser} did not end within {} seconds", LIMIT.as_secs())]
    TimedOut {
        /// The program.
        parser: PathBuf,
    },
    /// It or the kernel refused the profile.
    #[error("{parser} failed with {status}: {message}")]
    Refused {
        /// The program.
        parser: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it printed, on one line.
        message: String,
    },
}

/// Loads the profiles of a text into the kernel, in place of those of the same names.
pub(crate) fn load(parser: &Path, text: &str) -> Result<(), ParserError> {
    let failed = |source| ParserError::Run { parser: parser.to_owned(), source };
    let (child, output) = start(parser, text).map_err(failed)?;
    let deadline = Instant::now() + LIMIT;
    let printed = read_until(output, deadline).map_err(failed)?;
    let Some(status) = wait(&child, deadline).map_err(failed)? else {
        child.signal(Signal::KILL).map_err(failed)?;
        wait(&child, Instant::now() + LIMIT).map_err(failed)?;
        return Err(ParserError::TimedOut { parser: parser.to_owned() });
    };
    if status.is_success() {
        return Ok(());
    }
    let message = String::from_utf8_lossy(&printed).split_whitespace().collect::<Vec<_>>().join(" ");
    Err(ParserError::Refused { parser: parser.to_owned(), status, message })
}

fn start(parser: &Path, text: &str) -> io::Result<(Child, io::PipeReader)> {
    // A file in memory rather than a pipe: a parser that does not read must not hold us.
    let mut input = File::from(rustix::fs::memfd_create("apparmor-profile", MemfdFlags::CLOEXEC)?);
    input.write_all(text.as_bytes())?;
    io::Seek::rewind(&mut input)?;
    let (reader, writer) = io::pipe()?;
    let mut command = Command::new(parser)?;
    command.arg(REPLACE)?.env("PATH=/usr/sbin:/usr/bin:/sbin:/bin")?.env("LC_ALL=C")?;
    command.descriptor(input.as_fd(), 0)?.descriptor(writer.as_fd(), 1)?.descriptor(writer.as_fd(), 2)?;
    Ok((command.spawn()?, reader))
}

/// Reads to the end or the deadline; what is beyond the limit is read and dropped.
fn read_until(mut output: io::PipeReader, deadline: Instant) -> io::Result<Vec<u8>> {
    let mut kept = Vec::new();
    let mut buffer = [0; 1024];
    while is_ready(&output, deadline)? {
        let count = output.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        let room = MESSAGE_MAX_BYTES.saturating_sub(kept.len()).min(count);
        kept.extend_from_slice(&buffer[..room]);
    }
    Ok(kept)
}

fn wait(child: &Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    if is_ready(child, deadline)? { child.try_wait() } else { Ok(None) }
}

fn is_ready(source: &impl AsFd, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(source, PollFlags::IN)], Some(&left)) {
            Ok(count) => return Ok(count > 0),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::OpenOptionsExt;

    fn parser(directory: &Path, script: &str) -> PathBuf {
        let path = directory.join("parser");
        let mut file = File::options().write(true).create(true).truncate(true).mode(0o755).open(&path).expect("opens");
        file.write_all(format!("#!/bin/sh\n{script}").as_bytes()).expect("writes");
        path
    }

    #[test]
    fn the_parser_gets_the_text_and_its_complaint_is_told() {
        let directory = tempfile::tempdir().expect("a directory");
        let copy = directory.path().join("copy");
        let good = parser(directory.path(), &format!("echo \"$@\" > {0}; cat >> {0}", copy.display()));
        load(&good, "profile p {}\n").expect("loads");
        assert_eq!(std::fs::read_to_string(&copy).expect("reads"), "-Kr\nprofile p {}\n");
        let bad = parser(directory.path(), "echo 'syntax error,'; echo ' line 3' >&2; exit 7");
        let error = load(&bad, "x").expect_err("is refused").to_string();
        assert!(error.ends_with("parser failed with exit status 7: syntax error, line 3"), "{error}");
        let absent = load(&directory.path().join("none"), "x").expect_err("is not there");
        assert!(matches!(absent, ParserError::Run { .. }));
    }
}
