//! StopPodSandbox.

use std::sync::Arc;
use std::time::Duration;

use cri_api::v1;
use lifecycle::{Node, StopSandboxError};
use tonic::{Code, Status};

use crate::refusal::refuse;

pub(crate) async fn stop_pod_sandbox(
    node: &Arc<Node>,
    request: v1::StopPodSandboxRequest,
    patience: Option<Duration>,
) -> Result<v1::StopPodSandboxResponse, Status> {
    node.stop_sandbox(&request.pod_sandbox_id, patience).await.map_err(|error| refuse(code(&error), &*error))?;
    Ok(v1::StopPodSandboxResponse {})
}

/// "This call is idempotent, and must not return an error if all relevant resources have already been reclaimed."
fn code(error: &StopSandboxError) -> Code {
    match error {
        StopSandboxError::Lookup(_) => Code::InvalidArgument,
        StopSandboxError::Network { .. }
        | StopSandboxError::Container { .. }
        | StopSandboxError::Namespaces { .. }
        | StopSandboxError::Files { .. }
        | StopSandboxError::Mark { .. } => Code::Unknown,
    }
}
