//! Attach: a URL where a session waits.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::Node;
use streaming::{AttachRequest, Streaming};
use tonic::Status;

use crate::exec::{checked_streams, code, prepare_code};
use crate::refusal::refuse;

pub(crate) fn attach(
    node: &Arc<Node>,
    streaming: &Streaming,
    request: v1::AttachRequest,
) -> Result<v1::AttachResponse, Status> {
    let streams = checked_streams(&request.container_id, request.tty, request.stdin, request.stdout, request.stderr)?;
    let container = node.check_attach(&request.container_id).map_err(|error| refuse(code(&error), &error))?;
    let request = AttachRequest { container: container.to_string(), streams };
    let url = streaming.attach_url(request).map_err(|error| refuse(prepare_code(&error), &error))?;
    Ok(v1::AttachResponse { url })
}
