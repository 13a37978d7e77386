//! StopContainer.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{Grace, Node, StopContainerError};
use tonic::{Code, Status};

use crate::refusal::refuse;

pub(crate) async fn stop_container(
    node: &Arc<Node>,
    request: v1::StopContainerRequest,
) -> Result<v1::StopContainerResponse, Status> {
    let grace = Grace::from_seconds(request.timeout);
    node.stop_container(&request.container_id, grace).await.map_err(|error| refuse(code(&error), &error))?;
    Ok(v1::StopContainerResponse {})
}

/// "This call is idempotent, and must not return an error if the container has already been stopped."
fn code(error: &StopContainerError) -> Code {
    match error {
        StopContainerError::Lookup(_) => Code::InvalidArgument,
        StopContainerError::Signal { .. } => Code::Unknown,
    }
}
