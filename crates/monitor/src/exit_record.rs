//! How the container ended, written where the daemon looks: `<persist dir>/exit`, then `<exit dir>/<id>`, a decimal number
//! without a newline. Each file appears whole.
//!
//! The record must come whatever happens. A destination on a full disk is tried again for a while, after the other one.
//! A log on a file system that hangs (a dead network mount, a frozen volume) can stop the thread that reads output inside a
//! system call that nothing interrupts; therefore a second thread waits for the container as well and writes the record if
//! the first one does not in time.

use std::ffi::{OsStr, OsString};
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, openat, renameat, unlinkat};
use rustix::process::{Pid, WaitId, WaitIdOptions, WaitStatus, waitid};
use thiserror::Error;

use crate::options::Options;

/// Attempts to find a temporary name that is free.
const ATTEMPTS: u32 = 100;

/// Time between attempts at a destination that had no room.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// How long a destination without room is tried. The daemon has the other one, or gave up long before.
const RETRY_FOR: Duration = Duration::from_secs(600);

/// How long the exit may remain unrecorded before the second thread steps in. Draining takes at most
/// two seconds, and the daemon waits about five seconds for the record of a container that it finds
/// stopped.
const STUCK_AFTER: Duration = Duration::from_secs(4);

/// Stack of the second thread: two file names and a few calls. Only touched pages cost memory.
const WATCHER_STACK_BYTES: usize = 64 * 1024;

/// The code of a process that ended in a way the kernel does not tell: what the daemon uses for an exit it cannot know.
pub(crate) const CODE_UNKNOWN: i32 = 255;

/// A record that could not be written.
#[derive(Debug, Error)]
#[error("write exit code to {}", path.display())]
pub(crate) struct RecordError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl RecordError {
    /// Whether it may go better later: room may be made, a directory that is gone stays gone.
    fn is_temporary(&self) -> bool {
        use rustix::io::Errno;
        let errno = self.source.raw_os_error().map(Errno::from_raw_os_error);
        matches!(errno, Some(Errno::NOSPC | Errno::DQUOT | Errno::NOMEM | Errno::NFILE | Errno::MFILE | Errno::IO))
    }
}

/// Six characters that nobody guesses.
pub(crate) fn random_suffix() -> String {
    const LETTERS: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let mut number = RandomState::new().hash_one(std::process::id());
    let mut text = String::with_capacity(6);
    for _ in 0..6 {
        text.push(char::from(LETTERS[usize::try_from(number % 32).unwrap_or(0)]));
        number /= 32;
    }
    text
}

/// Writes a file under a temporary name and renames it.
///
/// Not synced: the record is of this boot, and waiting for a slow disk would delay what the daemon waits for.
pub(crate) fn write_whole(directory: &Path, name: &OsStr, bytes: &[u8]) -> io::Result<()> {
    let mut attempt = 0;
    let (temporary, fd) = loop {
        attempt += 1;
        let mut temporary = name.to_owned();
        temporary.push(".");
        temporary.push(random_suffix());
        let temporary = directory.join(temporary);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        match openat(CWD, &temporary, flags, Mode::from_raw_mode(0o644)) {
            Ok(fd) => break (temporary, fd),
            Err(rustix::io::Errno::EXIST) if attempt < ATTEMPTS => {}
            Err(error) => return Err(error.into()),
        }
    };
    let written = match rustix::io::write(&fd, bytes) {
        Ok(count) if count == bytes.len() => renameat(CWD, &temporary, CWD, directory.join(name)).map_err(Into::into),
        Ok(_) => Err(io::ErrorKind::StorageFull.into()),
        Err(error) => Err(error.into()),
    };
    if written.is_err() {
        // Another failure would say nothing new.
        let _ = unlinkat(CWD, &temporary, AtFlags::empty());
    }
    written
}

/// A directory and the name of the record in it.
#[derive(Debug, Clone)]
struct Destination {
    directory: PathBuf,
    name: OsString,
}

impl Destination {
    fn write(&self, code: i32) -> Result<(), RecordError> {
        write_whole(&self.directory, &self.name, code.to_string().as_bytes())
            .map_err(|source| RecordError { path: self.directory.join(&self.name), source })
    }
}

/// Where the exit is to be recorded.
#[derive(Debug, Clone)]
pub(crate) struct Destinations(Vec<Destination>);

impl Destinations {
    pub(crate) fn of(options: &Options) -> Self {
        let persistent = options.persist_dir.iter().map(|directory| (directory, OsString::from("exit")));
        let shared = options.exit_dir.iter().map(|directory| (directory, options.cid.clone()));
        let all = persistent.chain(shared);
        Self(all.map(|(directory, name)| Destination { directory: directory.clone(), name }).collect())
    }

    /// Writes all records in their order, and returns those that failed.
    pub(crate) fn record(&self, code: i32) -> Unrecorded {
        let failed =
            self.0.iter().filter_map(|destination| Some((destination.clone(), destination.write(code).err()?)));
        Unrecorded { failed: failed.collect(), code }
    }
}

/// Records that are still missing.
#[derive(Debug)]
pub(crate) struct Unrecorded {
    failed: Vec<(Destination, RecordError)>,
    code: i32,
}

impl Unrecorded {
    pub(crate) fn errors(&self) -> impl Iterator<Item = &RecordError> {
        self.failed.iter().map(|(_, error)| error)
    }

    /// Tries those that had no room until they are written or hope is lost.
    pub(crate) fn retry(mut self) -> Result<(), RecordError> {
        let give_up = Instant::now() + RETRY_FOR;
        while let Some((destination, error)) = self.failed.pop() {
            if !error.is_temporary() || Instant::now() >= give_up {
                return Err(error);
            }
            std::thread::sleep(RETRY_INTERVAL);
            if let Err(error) = destination.write(self.code) {
                self.failed.insert(0, (destination, error));
            }
        }
        Ok(())
    }
}

/// The exit code of a wait status: the program's, or 128 and the number of the signal that ended it.
pub(crate) fn code_of(status: WaitStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => CODE_UNKNOWN,
    }
}

#[derive(Debug)]
struct Shared {
    /// What the first thread found, for the case that it collected the process before the second one looked.
    code: AtomicI32,
    is_recorded: AtomicBool,
}

/// No code is known yet.
const NO_CODE: i32 = i32::MIN;

/// The second thread's other end.
#[derive(Debug)]
pub(crate) struct Watcher {
    shared: Arc<Shared>,
}

impl Watcher {
    /// Begins to wait for a child process.
    pub(crate) fn start(pid: Pid, destinations: Destinations) -> io::Result<Self> {
        let shared = Arc::new(Shared { code: AtomicI32::new(NO_CODE), is_recorded: AtomicBool::new(false) });
        let theirs = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("exit-watcher".into())
            .stack_size(WATCHER_STACK_BYTES)
            .spawn(move || watch(pid, &destinations, &theirs))?;
        Ok(Self { shared })
    }

    /// Tells the code as soon as the process is collected, after which the other thread cannot ask the kernel any more.
    pub(crate) fn tell_code(&self, code: i32) {
        self.shared.code.store(code, Ordering::Release);
    }

    /// Tells that nothing is left to do.
    pub(crate) fn tell_recorded(&self) {
        self.shared.is_recorded.store(true, Ordering::Release);
    }
}

fn watch(pid: Pid, destinations: &Destinations, shared: &Shared) {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOWAIT;
    let seen = loop {
        match waitid(WaitId::Pid(pid), options) {
            Ok(status) => break status,
            Err(rustix::io::Errno::INTR) => {}
            // The first thread has collected it, and so is alive and told the code, or is about to.
            Err(_) => break None,
        }
    };
    std::thread::sleep(STUCK_AFTER);
    if shared.is_recorded.load(Ordering::Acquire) {
        return;
    }
    let told = Some(shared.code.load(Ordering::Acquire)).filter(|code| *code != NO_CODE);
    let code = told.or_else(|| {
        let status = seen?;
        status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal))
    });
    let Some(code) = code else { return };
    // The last destination first: the first thread may hang at the first one.
    for destination in destinations.0.iter().rev() {
        // Nothing can be told from here: the first thread owns the reports, and it hangs.
        let _ = destination.write(code);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::read_to_string;

    fn destinations(root: &Path) -> Destinations {
        let destination =
            |directory: &str, name: &str| Destination { directory: root.join(directory), name: name.into() };
        Destinations(vec![destination("persist", "exit"), destination("exits", "id")])
    }

    #[test]
    fn a_record_is_whole_and_nothing_else_is_left() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("persist")).unwrap();
        std::fs::create_dir(root.path().join("exits")).unwrap();
        for code in [0, 255, 137, -1] {
            let unrecorded = destinations(root.path()).record(code);
            assert_eq!(unrecorded.errors().count(), 0);
            assert_eq!(read_to_string(root.path().join("exits/id")).unwrap(), code.to_string());
            assert_eq!(read_to_string(root.path().join("persist/exit")).unwrap(), code.to_string());
        }
        assert_eq!(std::fs::read_dir(root.path().join("exits")).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_directory_does_not_keep_the_other_record_away() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("exits")).unwrap();
        let unrecorded = destinations(root.path()).record(5);
        assert_eq!(read_to_string(root.path().join("exits/id")).unwrap(), "5");
        let error = unrecorded.retry().unwrap_err();
        assert!(error.path.ends_with("persist/exit"), "{error}");
    }

    #[test]
    fn the_second_thread_records_what_the_first_one_does_not() {
        let root = tempfile::tempdir().unwrap();
        std::fs::create_dir(root.path().join("exits")).unwrap();
        let mut child = std::process::Command::new("/bin/sh").args(["-c", "exit 9"]).spawn().unwrap();
        let pid = Pid::from_raw(child.id().try_into().unwrap()).unwrap();
        let watcher = Watcher::start(pid, destinations(root.path())).unwrap();
        let start = Instant::now();
        while !root.path().join("exits/id").exists() {
            assert!(start.elapsed() < 4 * STUCK_AFTER);
            std::thread::sleep(Duration::from_millis(20));
        }
        assert!(start.elapsed() >= STUCK_AFTER);
        assert_eq!(read_to_string(root.path().join("exits/id")).unwrap(), "9");
        assert_eq!(child.wait().unwrap().code(), Some(9));
        watcher.tell_recorded();
    }
}
