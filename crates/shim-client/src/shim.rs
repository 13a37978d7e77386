//! The shim's own command line: `start`, which prints where it listens, and `delete`, which tidies up after one that died.
//!
//! Source: containerd's runtime v2 documentation.

use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, FileType, MemfdFlags, Mode, OFlags};
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, PidfdFlags, Signal, WaitOptions, pidfd_open, pidfd_send_signal, waitpid};
use sys::supervise::{Program, spawn};
use thiserror::Error;

use crate::address::{AddressError, Started, parse};
use crate::client::NAMESPACE;
use crate::options::Settings;
use crate::process::{Process, executable, timespec};

/// `start` only starts; kata makes its machine later, with the first container.
const START_LIMIT: Duration = Duration::from_secs(30);
/// `delete` unmounts and ends what is left of a machine.
const DELETE_LIMIT: Duration = Duration::from_secs(10);
/// An address has a hundred bytes; what is longer is read to show that it is none.
const OUTPUT_MAX_BYTES: u64 = 64 << 10;
/// A shim's complaint is a few lines.
const COMPLAINT_MAX_BYTES: u64 = 8 << 10;
/// The fifo in the bundle into which a shim writes its log, and without which it does not start.
const LOG: &str = "log";

/// Why a shim's command failed.
#[derive(Debug, Error)]
pub(crate) enum ShimError {
    #[error("run {shim} {verb}")]
    Run {
        shim: PathBuf,
        verb: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("{shim} {verb} did not end within {} s", limit.as_secs())]
    TimedOut { shim: PathBuf, verb: &'static str, limit: Duration },
    #[error("{shim} {verb} ended with code {code}: {said}")]
    Failed { shim: PathBuf, verb: &'static str, code: i32, said: String },
    #[error("{shim} start")]
    Address {
        shim: PathBuf,
        #[source]
        source: AddressError,
    },
}

/// Starts the shim of a container, or finds the one of its pod: that is the shim's to know, from the bundle's annotations.
///
/// Also returns the end of its log, which must be read for as long as the shim lives.
pub(crate) fn start(settings: &Settings, id: &str, bundle: &Path) -> Result<(Started, OwnedFd), ShimError> {
    let run = |source| ShimError::Run { shim: settings.shim.clone(), verb: "start", source };
    let log = open_log(bundle).map_err(run)?;
    let mut words = vec!["-id", id];
    if settings.has_debug {
        words.push("-debug");
    }
    words.push("start");
    let printed = command(settings, "start", &words, START_LIMIT)?;
    let started = parse(&printed).map_err(|source| ShimError::Address { shim: settings.shim.clone(), source })?;
    Ok((started, log))
}

/// Has the shim's binary tidy up what a dead shim left of a container.
pub(crate) fn delete(settings: &Settings, id: &str, bundle: &Path) -> Result<(), ShimError> {
    let bundle = bundle.to_string_lossy();
    command(settings, "delete", &["-id", id, "-bundle", &bundle, "delete"], DELETE_LIMIT).map(drop)
}

/// What the shim prints about its version, in one line; our own where it has none to tell.
pub(crate) fn version(settings: &Settings) -> Result<String, ShimError> {
    match command(settings, "-v", &["-v"], DELETE_LIMIT) {
        Ok(printed) => {
            let text = String::from_utf8_lossy(&printed);
            let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
            // Shims made of containerd's library print their name on a line of its own.
            let name = lines.next().unwrap_or_default();
            let version = lines.find(|line| line.starts_with("Version:")).unwrap_or_default();
            Ok(format!("{name} {version} (by crio-shim {})", env!("CARGO_PKG_VERSION")))
        }
        Err(ShimError::Failed { .. }) => Ok(format!("crio-shim {}", env!("CARGO_PKG_VERSION"))),
        Err(error) => Err(error),
    }
}

/// A shim's process, from what it said itself, who opened its socket, and where shims are.
///
/// A shim's word is not enough to kill by: the process must execute the shim's file, or have opened its socket. Shims of
/// which nothing is known, because they were cut off while they started or never answered, work in the bundle.
pub(crate) fn find_process(
    settings: &Settings,
    bundle: &Path,
    said: Option<i32>,
    peer: Option<i32>,
) -> Option<Process> {
    let file = std::fs::canonicalize(&settings.shim).ok();
    let executes = |pid: i32| file.is_some() && executable(pid).ok() == file;
    let is_shim = |pid: i32| Some(pid) == peer || executes(pid);
    let own = i32::try_from(std::process::id()).ok();
    let told = [said, peer].into_iter().flatten().filter(|pid| *pid > 1 && Some(*pid) != own && is_shim(*pid));
    let identified = told.filter_map(|pid| Process::identify(pid).ok()).next();
    identified.or_else(|| {
        let processes = std::fs::read_dir("/proc").ok()?.flatten();
        let pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let works_here = |pid: i32| std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == bundle);
        pids.filter(|pid| executes(*pid) && works_here(*pid)).find_map(|pid| Process::identify(pid).ok())
    })
}

fn open_log(bundle: &Path) -> io::Result<OwnedFd> {
    let path = bundle.join(LOG);
    match rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o700), 0) {
        Ok(()) | Err(rustix::io::Errno::EXIST) => {}
        Err(error) => return Err(error.into()),
    }
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    Ok(rustix::fs::openat(CWD, &path, flags, Mode::empty())?)
}

/// The environment of a shim: ours, and what containerd adds. No address for events: nobody listens for them.
fn environment() -> Vec<CString> {
    const ADDED: [&str; 5] =
        ["GOMAXPROCS=2", "MAX_SHIM_VERSION=2", "NAMESPACE=default", "TTRPC_ADDRESS=", "GRPC_ADDRESS="];
    let added = ADDED.iter().map(|entry| entry.as_bytes().to_vec());
    let name = |entry: &str| entry.split('=').next().map(str::to_owned);
    let inherited = std::env::vars_os()
        .filter(|(given, _)| {
            !ADDED.iter().any(|entry| name(entry).as_deref().map(OsStr::new) == Some(given.as_os_str()))
        })
        .map(|(name, value)| [name.as_bytes(), b"=", value.as_bytes()].concat());
    // What came from the kernel as C strings has no zero byte.
    inherited.chain(added).filter_map(|entry| CString::new(entry).ok()).collect()
}

/// Runs the shim's binary in the working directory, which is the bundle, and returns what it printed.
fn command(settings: &Settings, verb: &'static str, words: &[&str], limit: Duration) -> Result<Vec<u8>, ShimError> {
    let run = |source| ShimError::Run { shim: settings.shim.clone(), verb, source };
    let publish = settings.publish.to_string_lossy();
    let common = ["-namespace", NAMESPACE, "-address", "", "-publish-binary", &publish];
    let path = CString::new(settings.shim.as_os_str().as_bytes()).map_err(|error| run(error.into()))?;
    let mut args = vec![path.clone()];
    for word in common.iter().chain(words) {
        args.push(CString::new(*word).map_err(|error| run(error.into()))?);
    }
    let null = File::options().read(true).write(true).open("/dev/null").map_err(run)?;
    let (out, out_theirs) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| run(error.into()))?;
    // A shim that keeps its standard error must be able to write there when nobody listens any more.
    let complaint = rustix::fs::memfd_create("complaint", MemfdFlags::CLOEXEC).map_err(|error| run(error.into()))?;
    let program = Program {
        path: &path,
        args: &args,
        env: &environment(),
        stdio: [null.as_fd(), out_theirs.as_fd(), complaint.as_fd()],
        death_signal: Some(Signal::KILL),
        oom_score_adj: None,
    };
    let pid = spawn(&program).map_err(run)?;
    drop(out_theirs);
    let mut printed = Vec::new();
    let is_ended = read_until_end(pid, &out, &mut printed, limit).map_err(run)?;
    let (_, status) = waitpid(Some(pid), WaitOptions::empty())
        .map_err(|error| run(error.into()))?
        .ok_or_else(|| run(io::Error::other("the kernel tells no status")))?;
    if !is_ended {
        return Err(ShimError::TimedOut { shim: settings.shim.clone(), verb, limit });
    }
    match status.exit_status() {
        Some(0) => Ok(printed),
        code => {
            let code = code.unwrap_or_else(|| 128 + status.terminating_signal().unwrap_or(0));
            Err(ShimError::Failed { shim: settings.shim.clone(), verb, code, said: read_complaint(complaint) })
        }
    }
}

fn read_complaint(file: OwnedFd) -> String {
    let mut file = File::from(file);
    let mut said = Vec::new();
    // What cannot be read was not said.
    let _ = file.rewind().and_then(|()| file.take(COMPLAINT_MAX_BYTES).read_to_end(&mut said));
    String::from_utf8_lossy(&said).trim().replace('\n', "; ")
}

/// Reads until the program has ended, whoever else holds the pipe; kills it at the limit and says so.
fn read_until_end(pid: Pid, out: &OwnedFd, printed: &mut Vec<u8>, limit: Duration) -> io::Result<bool> {
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    rustix::io::ioctl_fionbio(out, true)?;
    let deadline = Instant::now() + limit;
    let mut is_open = true;
    loop {
        let left = timespec(deadline.saturating_duration_since(Instant::now()));
        let mut polled = [PollFd::new(&pidfd, PollFlags::IN), PollFd::new(out, PollFlags::IN)];
        let watched = if is_open { &mut polled[..] } else { &mut polled[..1] };
        match poll(watched, Some(&left)) {
            Ok(0) => {
                // It may end at the same moment.
                let _ = pidfd_send_signal(&pidfd, Signal::KILL);
                return Ok(false);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let has_ended = !polled[0].revents().is_empty();
        is_open = is_open && drain(out, printed)?;
        if has_ended {
            return Ok(true);
        }
    }
}

/// Reads what is there; whether more may come.
fn drain(out: &OwnedFd, printed: &mut Vec<u8>) -> io::Result<bool> {
    let mut buffer = [0; 4096];
    loop {
        match rustix::io::read(out, &mut buffer) {
            Ok(0) => return Ok(false),
            Ok(count) if printed.len() as u64 + count as u64 <= OUTPUT_MAX_BYTES => {
                printed.extend_from_slice(&buffer[..count]);
            }
            Ok(_) => return Ok(false),
            Err(rustix::io::Errno::AGAIN) => return Ok(true),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
