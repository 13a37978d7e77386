//! One call of one plugin: a process with JSON on stdin, JSON on stdout, and an end.

use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::fs::{MemfdFlags, SeekFrom};
use rustix::process::{Pid, Signal};
use serde::Deserialize;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::process::{Child, Command};
use tokio::time::{Instant, timeout, timeout_at};

/// Most bytes taken from a plugin's stdout: a result has a few hundred; whoever prints this much is broken.
const STDOUT_MAX: usize = 1024 * 1024;
/// Most bytes kept of a plugin's stderr. It is only shown to people, so the rest is dropped, not refused.
const STDERR_MAX: usize = 64 * 1024;
/// How long output is awaited after the plugin's end. What it wrote itself is there already; a process it left behind
/// with its stdout may keep the pipe open for ever.
const DRAIN_LIMIT: Duration = Duration::from_millis(200);
/// How long a killed process may take to be gone: the kernel needs far less, unless it hangs in the kernel itself.
const REAP_LIMIT: Duration = Duration::from_secs(5);
/// Where in a noisy output an error object is looked for: that many opening braces.
const REPORT_CANDIDATES_MAX: usize = 64;

/// What a plugin is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Gc => "GC",
            Self::Status => "STATUS",
            Self::Version => "VERSION",
        }
    }
}

/// Why a plugin's call failed.
#[derive(Debug, Error)]
pub enum PluginError {
    /// No file of that name in any plugin directory.
    #[error("failed to find plugin {kind:?} in path {dirs:?}")]
    Missing {
        /// The plugin's type.
        kind: String,
        /// Where it was looked for.
        dirs: Vec<PathBuf>,
    },
    /// Its input could not be prepared.
    #[error("prepare the input of plugin {path}")]
    Input {
        /// The plugin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It could not be executed.
    #[error("execute plugin {path}")]
    Execute {
        /// The plugin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Its output or end could not be read.
    #[error("wait for plugin {path}")]
    Wait {
        /// The plugin.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It took too long and was killed with all its children.
    #[error("plugin {path} did not end within {} s and was killed", limit.as_secs_f32())]
    TimedOut {
        /// The plugin.
        path: PathBuf,
        /// What was left of the operation's time when it was called.
        limit: Duration,
    },
    /// It printed more than any result has and was killed.
    #[error("plugin {path} printed more than {STDOUT_MAX} bytes and was killed")]
    TooMuchOutput {
        /// The plugin.
        path: PathBuf,
    },
    /// It said what is wrong, as the specification asks.
    #[error("{0}")]
    Reported(Report),
    /// It ended with an error and no error object.
    #[error("netplugin failed: {status}, stdout {stdout:?}, stderr {stderr:?}")]
    Failed {
        /// How it ended.
        status: ExitStatus,
        /// Its output, shortened.
        stdout: String,
        /// Its messages, shortened.
        stderr: String,
    },
}

/// A plugin's error object. Source: CNI specification, "Error".
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub struct Report {
    /// 1 to 99 as specified, 100 and above the plugin's own.
    pub code: u32,
    /// What a person reads.
    pub msg: String,
    /// Longer text.
    pub details: String,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.msg.is_empty() {
            write!(f, "plugin error code {}", self.code)?;
        } else {
            f.write_str(&self.msg)?;
        }
        if self.details.is_empty() { Ok(()) } else { write!(f, "; {}", self.details) }
    }
}

/// The environment of a call. `None` leaves a variable out.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment<'a> {
    pub(crate) container_id: Option<&'a str>,
    pub(crate) netns: Option<&'a Path>,
    pub(crate) ifname: Option<&'a str>,
    pub(crate) args: Option<&'a str>,
}

/// What the program that comes with the daemon can be called as.
pub const EMBEDDED_PLUGINS: [&str; 9] =
    ["bridge", "host-local", "loopback", "portmap", "firewall", "bandwidth", "tuning", "ptp", "static"];

/// Where plugins are.
#[derive(Debug, Clone)]
pub(crate) struct PluginPath {
    dirs: Vec<PathBuf>,
    joined: OsString,
    /// Plays every one of [`EMBEDDED_PLUGINS`] that no directory has.
    embedded: Option<PathBuf>,
}

impl PluginPath {
    pub(crate) fn new(dirs: Vec<PathBuf>, embedded: Option<PathBuf>) -> Self {
        let joined = dirs.iter().map(|dir| dir.as_os_str().as_bytes()).collect::<Vec<_>>().join(&b':');
        Self { dirs, joined: OsString::from_vec(joined), embedded }
    }

    pub(crate) fn dirs(&self) -> &[PathBuf] {
        &self.dirs
    }

    /// The first regular file of that name, last the program that comes with the daemon.
    pub(crate) fn find(&self, kind: &str) -> Result<PathBuf, PluginError> {
        let mut candidates = self.dirs.iter().map(|dir| dir.join(kind));
        let embedded = || self.embedded.clone().filter(|path| EMBEDDED_PLUGINS.contains(&kind) && path.is_file());
        candidates
            .find(|path| path.is_file())
            .or_else(embedded)
            .ok_or_else(|| PluginError::Missing { kind: kind.to_owned(), dirs: self.dirs.clone() })
    }

    /// Finds and calls a plugin; returns what it printed. It is killed, with its process group, when `deadline` passes
    /// or the future is dropped.
    pub(crate) async fn call(
        &self,
        kind: &str,
        verb: Verb,
        environment: &Environment<'_>,
        input: &[u8],
        deadline: Instant,
    ) -> Result<Vec<u8>, PluginError> {
        let path = self.find(kind)?;
        let mut command = Command::new(&path);
        if self.embedded.as_ref() == Some(&path) {
            // It plays several parts, and goes by the name it is called with.
            command.arg0(kind);
        }
        command.env("CNI_COMMAND", verb.as_str()).env("CNI_PATH", &self.joined);
        let variables = [
            ("CNI_CONTAINERID", environment.container_id.map(AsRef::as_ref)),
            ("CNI_NETNS", environment.netns.map(Path::as_os_str)),
            ("CNI_IFNAME", environment.ifname.map(AsRef::as_ref)),
            ("CNI_ARGS", environment.args.map(AsRef::as_ref)),
        ];
        for (name, value) in variables {
            match value {
                Some(value) => command.env(name, value),
                // The daemon's own environment may have it.
                None => command.env_remove(name),
            };
        }
        run(command, path, input, deadline).await
    }
}

/// Kills the process group of a call that is given up.
struct Running(Child);

impl Running {
    fn kill(&self) {
        // A child that has not been waited for keeps its pid and thereby its group's number.
        if let Some(pid) = self.0.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw) {
            let _ = rustix::process::kill_process_group(pid, Signal::KILL);
        }
    }

    async fn kill_and_reap(mut self) {
        self.kill();
        let _ = timeout(REAP_LIMIT, self.0.wait()).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

async fn run(mut command: Command, path: PathBuf, input: &[u8], deadline: Instant) -> Result<Vec<u8>, PluginError> {
    let stdin = match input_file(input) {
        Ok(stdin) => stdin,
        Err(source) => return Err(PluginError::Input { path, source }),
    };
    // A group of its own, so that what it starts is killed with it. Nothing here needs code between fork and exec:
    // the standard library then uses posix_spawn, which does not copy the daemon's page tables.
    command.process_group(0).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let started = Instant::now();
    let mut running = match command.spawn() {
        Ok(child) => Running(child),
        Err(source) => return Err(PluginError::Execute { path, source }),
    };
    let (stdout, stderr) = (running.0.stdout.take(), running.0.stderr.take());
    let (mut out, mut err) = (Vec::new(), Vec::new());
    let ended = timeout_at(deadline, follow(&mut running.0, stdout, stderr, &mut out, &mut err)).await;
    let status = match ended {
        Ok(Ok(Some(status))) => status,
        Ok(Ok(None)) => {
            running.kill_and_reap().await;
            return Err(PluginError::TooMuchOutput { path });
        }
        Ok(Err(source)) => {
            running.kill_and_reap().await;
            return Err(PluginError::Wait { path, source });
        }
        Err(_elapsed) => {
            running.kill_and_reap().await;
            return Err(PluginError::TimedOut { path, limit: deadline.saturating_duration_since(started) });
        }
    };
    if status.success() {
        if !err.is_empty() {
            tracing::debug!(plugin = %path.display(), stderr = %shorten(&err), "plugin wrote messages");
        }
        return Ok(out);
    }
    Err(match find_report(&out) {
        Some(report) => PluginError::Reported(report),
        None => PluginError::Failed { status, stdout: shorten(&out), stderr: shorten(&err) },
    })
}

/// Input lies in memory as a file: nothing has to be written while the plugin runs, and one that never reads is fine.
pub(crate) fn input_file(input: &[u8]) -> io::Result<OwnedFd> {
    let fd = rustix::fs::memfd_create("cni", MemfdFlags::CLOEXEC)?;
    let mut rest = input;
    while !rest.is_empty() {
        let written = rustix::io::write(&fd, rest)?;
        rest = &rest[written..];
    }
    rustix::fs::seek(&fd, SeekFrom::Start(0))?;
    Ok(fd)
}

/// Reads both outputs and waits for the end; `None` when stdout exceeds its bound.
async fn follow(
    child: &mut Child,
    stdout: Option<impl AsyncRead + Unpin>,
    stderr: Option<impl AsyncRead + Unpin>,
    out: &mut Vec<u8>,
    err: &mut Vec<u8>,
) -> io::Result<Option<ExitStatus>> {
    let mut reads = std::pin::pin!(async {
        // A flood on stdout ends the call at once; stderr is emptied and cut.
        let keep = async {
            if let Some(stdout) = stdout {
                stdout.take(STDOUT_MAX as u64 + 1).read_to_end(out).await?;
            }
            if out.len() > STDOUT_MAX { Err(io::Error::from(io::ErrorKind::FileTooLarge)) } else { Ok(()) }
        };
        tokio::try_join!(keep, cut(stderr, err))
    });
    let too_much = |error: io::Error| if error.kind() == io::ErrorKind::FileTooLarge { Ok(None) } else { Err(error) };
    tokio::select! {
        read = &mut reads => match read {
            Ok(_) => Ok(Some(child.wait().await?)),
            Err(error) => too_much(error),
        },
        status = child.wait() => {
            let status = status?;
            match timeout(DRAIN_LIMIT, reads).await {
                Ok(Err(error)) => too_much(error),
                Ok(Ok(_)) | Err(_) => Ok(Some(status)),
            }
        }
    }
}

async fn cut(stream: Option<impl AsyncRead + Unpin>, kept: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut stream) = stream else { return Ok(()) };
    let mut chunk = [0_u8; 1024];
    loop {
        let read = stream.read(&mut chunk).await?;
        if read == 0 {
            return Ok(());
        }
        let room = STDERR_MAX.saturating_sub(kept.len());
        kept.extend(&chunk[..read.min(room)]);
    }
}

/// The error object in a plugin's output, even when other text surrounds it.
fn find_report(output: &[u8]) -> Option<Report> {
    let braces = output.iter().enumerate().filter(|(_, byte)| **byte == b'{').map(|(at, _)| at);
    braces.take(REPORT_CANDIDATES_MAX).find_map(|at| {
        let mut objects = serde_json::Deserializer::from_slice(&output[at..]).into_iter::<Report>();
        objects.next()?.ok().filter(|report| report.code != 0 || !report.msg.is_empty())
    })
}

/// The last part of a text, for an error message.
fn shorten(bytes: &[u8]) -> String {
    /// Enough for the reason, little enough for a line.
    const SHOWN: usize = 1024;
    String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(SHOWN)..]).trim().to_owned()
}

/// Entry point for fuzzing: any output of a failed plugin.
pub fn fuzz_report(bytes: &[u8]) {
    let _ = find_report(bytes).map(|report| report.to_string());
}

#[cfg(test)]
mod tests;
