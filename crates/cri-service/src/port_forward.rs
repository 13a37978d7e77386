//! PortForward: a URL where a session waits. The sandbox is looked at when the client connects.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::Node;
use streaming::{PortForwardRequest, Streaming};
use tonic::{Code, Status};

use crate::exec::prepare_code;
use crate::refusal::refuse;

pub(crate) fn port_forward(
    node: &Arc<Node>,
    streaming: &Streaming,
    request: v1::PortForwardRequest,
) -> Result<v1::PortForwardResponse, Status> {
    if request.pod_sandbox_id.is_empty() {
        return Err(Status::invalid_argument("missing required pod_sandbox_id"));
    }
    let sandbox = node.find_sandbox(&request.pod_sandbox_id).map_err(|error| refuse(Code::NotFound, &error))?;
    let ports: Result<Vec<u16>, _> = request.port.into_iter().map(u16::try_from).collect();
    let ports = ports.map_err(|_| Status::invalid_argument("a port must be between 1 and 65535"))?;
    let request = PortForwardRequest { sandbox: sandbox.id.to_string(), ports };
    let url = streaming.port_forward_url(request).map_err(|error| refuse(prepare_code(&error), &error))?;
    Ok(v1::PortForwardResponse { url })
}
