//! ExecSync.

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1;
use lifecycle::{ExecSyncEnd, ExecSyncError, LookupError, Node};
use tonic::{Code, Status};

use crate::refusal::refuse;

/// What a command that took too long answers. Source: CRI-O; the kubelet's probes know it.
const TIMED_OUT_CODE: i32 = -1;
const TIMED_OUT_TEXT: &[u8] = b"command timed out";

pub(crate) async fn exec_sync(node: &Arc<Node>, request: v1::ExecSyncRequest) -> Result<v1::ExecSyncResponse, Status> {
    let limit = u64::try_from(request.timeout).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs);
    let end = node
        .exec_sync(&request.container_id, request.cmd, limit)
        .await
        .map_err(|error| refuse(code(&error), &error))?;
    Ok(match end {
        ExecSyncEnd::Exited { code, stdout, stderr } => v1::ExecSyncResponse { stdout, stderr, exit_code: code },
        ExecSyncEnd::TimedOut => {
            v1::ExecSyncResponse { stdout: Vec::new(), stderr: TIMED_OUT_TEXT.to_vec(), exit_code: TIMED_OUT_CODE }
        }
    })
}

/// Source: CRI-O, which answers NotFound also for a container that does not run.
fn code(error: &ExecSyncError) -> Code {
    match error {
        ExecSyncError::EmptyCommand
        | ExecSyncError::Lookup(LookupError::Empty { .. } | LookupError::Ambiguous { .. }) => Code::InvalidArgument,
        ExecSyncError::Lookup(LookupError::Absent { .. }) | ExecSyncError::NotRunning { .. } => Code::NotFound,
        ExecSyncError::Spec { .. } | ExecSyncError::Exec { .. } => Code::Unknown,
    }
}
