//! UpdateContainerResources.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{LookupError, Node, UpdateContainerError};
use tonic::{Code, Status};

use crate::from_cri::{InvalidRequest, resources};
use crate::refusal::{invalid, refuse};

pub(crate) async fn update_container_resources(
    node: &Arc<Node>,
    request: v1::UpdateContainerResourcesRequest,
) -> Result<v1::UpdateContainerResourcesResponse, Status> {
    let linux = request.linux.ok_or_else(|| invalid(InvalidRequest::Missing { field: "linux" }))?;
    let given = resources(linux).map_err(invalid)?;
    node.update_container(&request.container_id, given).await.map_err(|error| refuse(code(&error), &error))?;
    Ok(v1::UpdateContainerResourcesResponse {})
}

/// Source: CRI-O, which answers Unknown also for an id it does not know.
fn code(error: &UpdateContainerError) -> Code {
    match error {
        UpdateContainerError::Lookup(LookupError::Empty { .. } | LookupError::Ambiguous { .. })
        | UpdateContainerError::Invalid { .. } => Code::InvalidArgument,
        UpdateContainerError::Lookup(LookupError::Absent { .. })
        | UpdateContainerError::Ended { .. }
        | UpdateContainerError::MemoryInUse { .. }
        | UpdateContainerError::Json { .. }
        | UpdateContainerError::Runtime { .. }
        | UpdateContainerError::Record { .. } => Code::Unknown,
    }
}
