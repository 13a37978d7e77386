//! ReopenContainerLog.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{LookupError, Node, ReopenLogError};
use tonic::{Code, Status};

use crate::refusal::refuse;

pub(crate) async fn reopen_container_log(
    node: &Arc<Node>,
    request: v1::ReopenContainerLogRequest,
) -> Result<v1::ReopenContainerLogResponse, Status> {
    node.reopen_log(&request.container_id).await.map_err(|error| refuse(code(&error), &error))?;
    Ok(v1::ReopenContainerLogResponse {})
}

/// "If it returns error, new container log file MUST NOT be created."
fn code(error: &ReopenLogError) -> Code {
    match error {
        ReopenLogError::Lookup(LookupError::Empty { .. } | LookupError::Ambiguous { .. }) => Code::InvalidArgument,
        ReopenLogError::Lookup(LookupError::Absent { .. })
        | ReopenLogError::NotRunning { .. }
        | ReopenLogError::Monitor { .. } => Code::Unknown,
    }
}
