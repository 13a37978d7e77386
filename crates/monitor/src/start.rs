//! From the command line to a supervisor in the background.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{OwnedFd, RawFd};

use rustix::fs::{Access, CWD, Mode, OFlags, access, openat};
use rustix::process::{Pid, Signal};
use sys::supervise::{Forked, fork_single_threaded, take_inherited};
use thiserror::Error;

use crate::exit_record::write_whole;
use crate::log::{Logs, OpenLogError};
use crate::options::Options;
use crate::report::{Reporter, chain};
use crate::supervisor::{self, Supervisor};
use crate::sync_pipe::{Dialect, SyncPipe};

/// The score that keeps the kernel from ever choosing the monitor.
const OOM_SCORE_MONITOR: &[u8] = b"-1000";

const OOM_SCORE_PATH: &str = "/proc/self/oom_score_adj";

/// What keeps the monitor from going into the background.
#[derive(Debug, Error)]
enum StartError {
    #[error("execute runtime {path}")]
    Runtime {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("open logs")]
    Log(#[source] OpenLogError),
    #[error("wait for the start byte")]
    StartPipe(#[source] io::Error),
    #[error("open /dev/null")]
    Null(#[source] io::Error),
    #[error("go into the background")]
    Fork(#[source] io::Error),
    #[error("write monitor pid to {path}")]
    Pidfile {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("redirect standard descriptors")]
    Redirect(#[source] io::Error),
    #[error("become the subreaper")]
    Subreaper(#[source] io::Error),
}

/// A descriptor whose number is in the environment.
fn inherited(variable: &str) -> Result<Option<OwnedFd>, io::Error> {
    let Some(number) = std::env::var_os(variable) else { return Ok(None) };
    let number: Option<RawFd> = number.to_str().and_then(|text| text.parse().ok());
    match number {
        Some(number) => take_inherited(number).map(Some),
        None => Err(io::Error::new(io::ErrorKind::InvalidInput, "not a number")),
    }
}

/// Monitors as the options ask, and returns this process' exit code.
pub(crate) fn start(options: Options) -> u8 {
    let reporter = Reporter::new(&options);
    let pipe = inherited("_OCI_SYNCPIPE").and_then(|fd| SyncPipe::new(fd, Dialect::of(&options)));
    let mut sync_pipe = match pipe {
        Ok(pipe) => pipe,
        Err(error) => {
            reporter.error("take over the pipe of _OCI_SYNCPIPE", &error);
            return 1;
        }
    };
    match prepare(&options) {
        Ok(Prepared::Foreground) => 0,
        Ok(Prepared::Background { logs, null, oom_score_adj }) => {
            Supervisor::new(options, reporter, sync_pipe, logs, null, oom_score_adj).run()
        }
        Err(error) => {
            reporter.error("start", &error);
            if let Err(error) = sync_pipe.tell_failed(chain(&error).as_bytes()) {
                reporter.warn("tell the daemon", &error);
            }
            1
        }
    }
}

enum Prepared {
    /// This is the process the daemon started; the other one goes on.
    Foreground,
    Background {
        logs: Logs,
        null: OwnedFd,
        oom_score_adj: Option<CString>,
    },
}

fn prepare(options: &Options) -> Result<Prepared, StartError> {
    let runtime = |source: rustix::io::Errno| StartError::Runtime {
        path: options.runtime.to_string_lossy().into_owned(),
        source: source.into(),
    };
    access(&options.runtime, Access::EXEC_OK).map_err(runtime)?;
    let logs = Logs::open(options).map_err(StartError::Log)?;
    let oom_score_adj = protect_from_oom();
    wait_for_start().map_err(StartError::StartPipe)?;
    let null = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| StartError::Null(error.into()))?;
    if options.is_sync {
        write_pidfile(options, rustix::process::getpid())?;
    } else {
        match fork_single_threaded().map_err(StartError::Fork)? {
            Forked::Parent(child) => {
                return match write_pidfile(options, child) {
                    Ok(()) => Ok(Prepared::Foreground),
                    Err(error) => {
                        // The daemon is told that nothing was started, so nothing may go on.
                        let _ = rustix::process::kill_process(child, Signal::KILL);
                        Err(error)
                    }
                };
            }
            Forked::Child => {}
        }
    }
    detach(&null)?;
    Ok(Prepared::Background { logs, null, oom_score_adj })
}

/// The runtime's processes get the score back that this one had. `None` when nothing was changed, as without
/// `CAP_SYS_RESOURCE`; then the monitor is as likely a victim as its daemon.
fn protect_from_oom() -> Option<CString> {
    let before = std::fs::read_to_string(OOM_SCORE_PATH).ok()?;
    let fd = openat(CWD, OOM_SCORE_PATH, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    rustix::io::write(&fd, OOM_SCORE_MONITOR).ok()?;
    CString::new(before.trim()).ok()
}

/// The daemon first moves this process to its cgroup. It writes a byte, or is gone and closes the pipe.
fn wait_for_start() -> io::Result<()> {
    let Some(fd) = inherited("_OCI_STARTPIPE")? else { return Ok(()) };
    loop {
        match rustix::io::read(&fd, &mut [0; 1]) {
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn write_pidfile(options: &Options, pid: Pid) -> Result<(), StartError> {
    let Some(path) = &options.monitor_pidfile else { return Ok(()) };
    let failed = |source| StartError::Pidfile { path: path.to_string_lossy().into_owned(), source };
    let name: &OsStr = path.file_name().ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => ".".as_ref(),
    };
    write_whole(directory, name, pid.as_raw_nonzero().to_string().as_bytes()).map_err(failed)
}

/// Leaves the caller's descriptors, session and parent behind.
fn detach(null: &OwnedFd) -> Result<(), StartError> {
    let redirect = |error: rustix::io::Errno| StartError::Redirect(error.into());
    rustix::stdio::dup2_stdin(null).map_err(redirect)?;
    rustix::stdio::dup2_stdout(null).map_err(redirect)?;
    // The daemon may wait for the end of what it captures from standard error.
    rustix::stdio::dup2_stderr(null).map_err(redirect)?;
    match rustix::process::setsid() {
        // Leads a group already, because its starter made it one; that is as good.
        Ok(_) | Err(rustix::io::Errno::PERM) => {}
        Err(error) => return Err(StartError::Redirect(error.into())),
    }
    supervisor::become_subreaper().map_err(StartError::Subreaper)
}
