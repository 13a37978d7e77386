//! Exec: a URL where a session waits.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{LookupError, Node, SessionError};
use streaming::{ExecRequest, PrepareError, Streaming, Streams};
use tonic::{Code, Status};

use crate::refusal::refuse;

pub(crate) fn exec(
    node: &Arc<Node>,
    streaming: &Streaming,
    request: v1::ExecRequest,
) -> Result<v1::ExecResponse, Status> {
    let streams = checked_streams(&request.container_id, request.tty, request.stdin, request.stdout, request.stderr)?;
    if request.cmd.is_empty() {
        let error = SessionError::EmptyCommand;
        return Err(refuse(code(&error), &error));
    }
    let container = node.check_exec(&request.container_id).map_err(|error| refuse(code(&error), &error))?;
    let request = ExecRequest { container: container.to_string(), command: request.cmd, streams };
    let url = streaming.exec_url(request).map_err(|error| refuse(prepare_code(&error), &error))?;
    Ok(v1::ExecResponse { url })
}

/// "One of `stdin`, `stdout`, and `stderr` MUST be true", and "If `tty` is true, `stderr` MUST be false".
pub(crate) fn checked_streams(
    container: &str,
    has_terminal: bool,
    has_stdin: bool,
    has_stdout: bool,
    has_stderr: bool,
) -> Result<Streams, Status> {
    let problem = if container.is_empty() {
        "missing required container_id"
    } else if has_terminal && has_stderr {
        "tty and stderr cannot both be true"
    } else if !has_stdin && !has_stdout && !has_stderr {
        "one of stdin, stdout, or stderr must be set"
    } else {
        return Ok(Streams { has_terminal, has_stdin, has_stdout, has_stderr });
    };
    Err(Status::invalid_argument(problem))
}

/// Source: CRI-O, which answers NotFound also for a container that does not run.
pub(crate) fn code(error: &SessionError) -> Code {
    match error {
        SessionError::EmptyCommand
        | SessionError::Lookup(LookupError::Empty { .. } | LookupError::Ambiguous { .. }) => Code::InvalidArgument,
        SessionError::Lookup(LookupError::Absent { .. }) | SessionError::ContainerNotRunning { .. } => Code::NotFound,
        SessionError::SandboxNotReady { .. }
        | SessionError::Spec { .. }
        | SessionError::Exec { .. }
        | SessionError::Network { .. } => Code::Unknown,
    }
}

/// Source: the kubelet's streaming library answers ResourceExhausted when too many sessions wait.
pub(crate) fn prepare_code(error: &PrepareError) -> Code {
    match error {
        PrepareError::TooManyWaiting => Code::ResourceExhausted,
        PrepareError::Random(_) => Code::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_that_make_no_sense_are_refused() {
        let (yes, no) = (true, false);
        for (container, [tty, stdin, stdout, stderr], expected) in [
            ("c", [no, no, yes, no], None),
            ("c", [yes, yes, yes, no], None),
            ("", [no, no, yes, no], Some("missing required container_id")),
            ("c", [yes, no, yes, yes], Some("tty and stderr cannot both be true")),
            ("c", [yes, no, no, no], Some("one of stdin, stdout, or stderr must be set")),
        ] {
            let refusal = checked_streams(container, tty, stdin, stdout, stderr).err();
            assert!(refusal.iter().all(|status| status.code() == Code::InvalidArgument));
            assert_eq!(refusal.as_ref().map(Status::message), expected);
        }
    }
}
