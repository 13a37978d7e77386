//! StartContainer.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{LookupError, Node, StartContainerError};
use tonic::{Code, Status};

use crate::refusal::refuse;

pub(crate) async fn start_container(
    node: &Arc<Node>,
    request: v1::StartContainerRequest,
) -> Result<v1::StartContainerResponse, Status> {
    node.start_container(&request.container_id).await.map_err(|error| refuse(code(&error), &*error))?;
    Ok(v1::StartContainerResponse {})
}

/// Source: CRI-O, which answers NotFound to an id it does not know.
fn code(error: &StartContainerError) -> Code {
    match error {
        StartContainerError::Lookup(LookupError::Absent { .. }) => Code::NotFound,
        StartContainerError::Lookup(LookupError::Empty { .. } | LookupError::Ambiguous { .. }) => Code::InvalidArgument,
        StartContainerError::NotCreated { .. }
        | StartContainerError::SandboxNotReady { .. }
        | StartContainerError::Tune { .. }
        | StartContainerError::Runtime { .. }
        | StartContainerError::Record { .. } => Code::Unknown,
    }
}
