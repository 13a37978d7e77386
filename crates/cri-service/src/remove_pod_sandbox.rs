//! RemovePodSandbox.

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1;
use lifecycle::{Node, RemoveSandboxError};
use tonic::{Code, Status};

use crate::refusal::refuse;

pub(crate) async fn remove_pod_sandbox(
    node: &Arc<Node>,
    request: v1::RemovePodSandboxRequest,
    patience: Option<Duration>,
) -> Result<v1::RemovePodSandboxResponse, Status> {
    node.remove_sandbox(&request.pod_sandbox_id, patience).await.map_err(|error| refuse(code(&error), &*error))?;
    Ok(v1::RemovePodSandboxResponse {})
}

/// "This call is idempotent, and must not return an error if the sandbox has already been removed."
fn code(error: &RemoveSandboxError) -> Code {
    match error {
        RemoveSandboxError::Lookup(_) => Code::InvalidArgument,
        RemoveSandboxError::Record { .. }
        | RemoveSandboxError::Release(_)
        | RemoveSandboxError::Stop { .. }
        | RemoveSandboxError::Container { .. }
        | RemoveSandboxError::Cgroup { .. }
        | RemoveSandboxError::Store { .. } => Code::Unknown,
    }
}
