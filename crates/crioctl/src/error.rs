//! What a command can fail with, and the exit status that follows.

use std::path::PathBuf;

use tonic::{Code, Status};

use crate::config_file::ConfigError;
use crate::find::FindError;
use crate::log_file::LogError;
use crate::sessions::SessionError;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
/// As other clients of engines answer when the failure is theirs and not the container's.
const UNREACHABLE: u8 = 125;

/// A request that was not answered as wished.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("{endpoint:?} is not an endpoint; expected unix:///PATH")]
    Endpoint { endpoint: String },
    #[error("connect to {endpoint}")]
    Connect {
        endpoint: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("{request}: {:?}: {}", status.code(), one_line(status.message()))]
    Refused { request: &'static str, status: Box<Status> },
    #[error("{request}: the answer lacks {field}")]
    Incomplete { request: &'static str, field: &'static str },
}

/// A command that did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CommandError {
    #[error(transparent)]
    Call(#[from] CallError),
    #[error(transparent)]
    Find(#[from] FindError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("no container, pod or image {wanted:?}")]
    NothingFound { wanted: String },
    #[error("no image {image:?}")]
    NoImage { image: String },
    #[error("image {image:?} is not present, and --pull never was given")]
    ImageMissing { image: String },
    #[error("{kind} {id} is running; stop it first, or give --force")]
    Running { kind: &'static str, id: String },
    #[error("container {id} has no log file")]
    NoLog { id: String },
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error("execsync needs a container and a program")]
    NoProgram,
    #[error("--creds is not USER:PASSWORD")]
    Credentials,
    #[error("--log-root {} is not an absolute path", path.display())]
    LogRoot { path: PathBuf },
    #[error("--volume: {} does not exist", path.display())]
    NoSuchVolume { path: PathBuf },
    #[error("make log directory {}", path.display())]
    MakeLogDirectory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("remove log directory {}", path.display())]
    RemoveLogDirectory {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("read /proc/sys/kernel/random/uuid")]
    Random(#[source] std::io::Error),
    #[error("install signal handlers")]
    Signals(#[source] std::io::Error),
    #[error("write to standard output")]
    Output(#[source] std::io::Error),
    #[error("{failed} of {asked} failed, see above")]
    Several { failed: usize, asked: usize },
}

impl CommandError {
    /// The exit status that tells scripts what kind of failure it was.
    pub(crate) fn exit_status(&self) -> u8 {
        match self {
            Self::Call(CallError::Connect { .. }) => UNREACHABLE,
            Self::Call(CallError::Refused { status, .. }) if status.code() == Code::Unavailable => UNREACHABLE,
            Self::Call(CallError::Endpoint { .. })
            | Self::Session(SessionError::NoTerminal | SessionError::CopyEnds | SessionError::CopyPath { .. })
            | Self::NoProgram
            | Self::Credentials
            | Self::LogRoot { .. } => USAGE,
            _ => FAILED,
        }
    }

    /// Whether the reader of our output has gone, as `| head` does: nothing to complain about.
    pub(crate) fn is_closed_output(&self) -> bool {
        let error = match self {
            Self::Output(error) | Self::Log(LogError::Write(error)) | Self::Session(SessionError::Write(error)) => {
                error
            }
            _ => return false,
        };
        error.kind() == std::io::ErrorKind::BrokenPipe
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = one_line(&error.to_string());
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = one_line(&error.to_string());
        // Transport errors repeat themselves at each level.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}

/// Engines pass on what tools printed, line ends and all.
fn one_line(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses() {
        let refused =
            |code| CommandError::from(CallError::Refused { request: "X", status: Box::new(Status::new(code, "a\nb")) });
        let cases = [
            (refused(Code::Unavailable), 125),
            (refused(Code::NotFound), 1),
            (CallError::Endpoint { endpoint: "x".into() }.into(), 2),
            (SessionError::NoTerminal.into(), 2),
            (SessionError::Closed.into(), 1),
            (CommandError::NoImage { image: "x".into() }, 1),
        ];
        for (error, expected) in cases {
            assert_eq!(error.exit_status(), expected, "{error}");
        }
        assert_eq!(chain(&refused(Code::NotFound)), "X: NotFound: a; b");
    }
}
