//! What can go wrong in a run.

use std::path::PathBuf;

use tonic::Status;

/// A run that ended without figures.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BenchError {
    #[error("install signal handlers")]
    Signals(#[source] std::io::Error),
    #[error("make a directory for container logs")]
    LogDirectory(#[source] std::io::Error),
    #[error("{engine}: {endpoint:?} is not an endpoint")]
    Endpoint {
        engine: &'static str,
        endpoint: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("{engine}: connect to {endpoint}")]
    Connect {
        engine: &'static str,
        endpoint: String,
        #[source]
        source: tonic::transport::Error,
    },
    #[error("{engine}: {request} failed with {:?}: {}", status.code(), status.message())]
    Request { engine: &'static str, request: &'static str, status: Box<Status> },
    #[error("{engine}: image {image} is not present; give --pull to pull it")]
    ImageMissing { engine: &'static str, image: String },
    #[error("{engine}: {program} in a container ended with {exit_code}: {stderr}")]
    ExecFailed { engine: &'static str, program: String, exit_code: i32, stderr: String },
    #[error("{engine}: a container ended instead of running; give a command that lasts after --")]
    ContainerEnded { engine: &'static str },
    #[error("read {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("{} has no {field} line", path.display())]
    NoField { path: PathBuf, field: &'static str },
    #[error("{engine}: pods {left:?} are still there")]
    LeftBehind { engine: &'static str, left: Vec<String> },
    #[error("a task of the throughput part ended early")]
    Task(#[source] tokio::task::JoinError),
    #[error("--max-ratio {metric}: it was not measured on both engines")]
    NotMeasured { metric: String },
}

impl BenchError {
    /// Whether the engine answered, and said no.
    pub(crate) fn is_refusal(&self) -> bool {
        use tonic::Code::{Unimplemented, Unknown};
        matches!(self, Self::Request { status, .. } if matches!(status.code(), Unimplemented | Unknown))
    }
}

/// The error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let text = error.to_string();
        // Transport errors repeat themselves at each level.
        if !line.ends_with(&text) {
            line.push_str(": ");
            line.push_str(&text);
        }
        cause = error.source();
    }
    line
}
