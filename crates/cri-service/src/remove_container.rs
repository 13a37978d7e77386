//! RemoveContainer.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{Node, RemoveContainerError};
use tonic::{Code, Status};

use crate::refusal::refuse;

pub(crate) async fn remove_container(
    node: &Arc<Node>,
    request: v1::RemoveContainerRequest,
) -> Result<v1::RemoveContainerResponse, Status> {
    node.remove_container(&request.container_id).await.map_err(|error| refuse(code(&error), &*error))?;
    Ok(v1::RemoveContainerResponse {})
}

/// "This call is idempotent, and must not return an error if the container has already been removed."
fn code(error: &RemoveContainerError) -> Code {
    match error {
        RemoveContainerError::Lookup(_) => Code::InvalidArgument,
        RemoveContainerError::Release(_) | RemoveContainerError::Stop { .. } | RemoveContainerError::Store { .. } => {
            Code::Unknown
        }
    }
}
