//! RunPodSandbox.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{Node, RunSandboxError, UserNamespaceError};
use tonic::{Code, Status};

use crate::from_cri::{InvalidRequest, sandbox_config};
use crate::refusal::{invalid, refuse};

pub(crate) async fn run_pod_sandbox(
    node: &Arc<Node>,
    request: v1::RunPodSandboxRequest,
) -> Result<v1::RunPodSandboxResponse, Status> {
    let config = request.config.ok_or_else(|| invalid(InvalidRequest::Missing { field: "config" }))?;
    let config = sandbox_config(config).map_err(invalid)?;
    let id = node.run_sandbox(config, request.runtime_handler).await.map_err(|error| refuse(code(&error), &*error))?;
    Ok(v1::RunPodSandboxResponse { pod_sandbox_id: id.into() })
}

/// The kubelet retries whatever the code; it only shows it. What the author of the pod must change says so.
fn code(error: &RunSandboxError) -> Code {
    match error {
        RunSandboxError::Unsupported { .. } => Code::Unimplemented,
        RunSandboxError::UserNamespace { source, .. } => match **source {
            UserNamespaceError::Asked(_) => Code::InvalidArgument,
            UserNamespaceError::HandlerLacksIdMaps { .. } | UserNamespaceError::StoreLacksIdMaps { .. } => {
                Code::Unimplemented
            }
        },
        RunSandboxError::CgroupParent { .. }
        | RunSandboxError::Hostname { .. }
        | RunSandboxError::ShmSize { .. }
        | RunSandboxError::Seccomp { .. }
        | RunSandboxError::Apparmor { .. }
        | RunSandboxError::Selinux { .. } => Code::InvalidArgument,
        RunSandboxError::UnknownHandler { .. }
        | RunSandboxError::NetworkNotReady { .. }
        | RunSandboxError::DrawId(_)
        | RunSandboxError::NameReserved { .. }
        | RunSandboxError::Store { .. }
        | RunSandboxError::Record { .. }
        | RunSandboxError::Namespaces { .. }
        | RunSandboxError::Network { .. }
        | RunSandboxError::HostPorts { .. }
        | RunSandboxError::Files { .. }
        | RunSandboxError::LogDirectory { .. }
        | RunSandboxError::Cgroup { .. }
        | RunSandboxError::Spec { .. }
        | RunSandboxError::SpecJson { .. }
        | RunSandboxError::Infra { .. } => Code::Unknown,
    }
}
