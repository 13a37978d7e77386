//! UpdatePodSandboxResources.

use cri_api::v1;
use lifecycle::Node;
use tonic::{Code, Status};

use crate::refusal::refuse;

/// The kubelet tells the new sum of a pod's limits, and keeps the pod's cgroup itself. It is for plugins to hear, and there
/// are none: a known sandbox is all it takes. Source: CRI `UpdatePodSandboxResources`; CRI-O, also for the code.
pub(crate) fn update_pod_sandbox_resources(
    node: &Node,
    request: &v1::UpdatePodSandboxResourcesRequest,
) -> Result<v1::UpdatePodSandboxResourcesResponse, Status> {
    node.find_sandbox(&request.pod_sandbox_id).map_err(|error| refuse(Code::NotFound, &error))?;
    Ok(v1::UpdatePodSandboxResourcesResponse {})
}
