//! CreateContainer.

use std::sync::Arc;

use cri_api::v1;
use domain::spec::SpecError;
use lifecycle::{CreateContainerError, Node, ResolveMountError};
use tonic::{Code, Status};

use crate::from_cri::{InvalidRequest, container_config};
use crate::refusal::{invalid, refuse};

pub(crate) async fn create_container(
    node: &Arc<Node>,
    request: v1::CreateContainerRequest,
) -> Result<v1::CreateContainerResponse, Status> {
    let config = request.config.ok_or_else(|| invalid(InvalidRequest::Missing { field: "config" }))?;
    // Required by the CRI although the sandbox itself knows better what it was made of.
    if request.sandbox_config.and_then(|config| config.metadata).is_none() {
        return Err(invalid(InvalidRequest::Missing { field: "sandbox_config.metadata" }));
    }
    let config = container_config(config).map_err(invalid)?;
    let id =
        node.create_container(&request.pod_sandbox_id, config).await.map_err(|error| refuse(code(&error), &*error))?;
    Ok(v1::CreateContainerResponse { container_id: id.into() })
}

/// The kubelet shows the text and tries again; the code tells what the author of the pod must change.
fn code(error: &CreateContainerError) -> Code {
    match error {
        CreateContainerError::Spec { source, .. } if matches!(**source, SpecError::Unsupported { .. }) => {
            Code::Unimplemented
        }
        CreateContainerError::Mounts { source, .. }
            if matches!(**source, ResolveMountError::Invalid { source: SpecError::Unsupported { .. }, .. }) =>
        {
            Code::Unimplemented
        }
        CreateContainerError::Mounts { source, .. } if matches!(**source, ResolveMountError::NotAnswering { .. }) => {
            Code::Unavailable
        }
        CreateContainerError::ImageVolume(source) if source.is_of_request() => Code::InvalidArgument,
        CreateContainerError::User { .. }
        | CreateContainerError::NoRdt(_)
        | CreateContainerError::Cdi { .. }
        | CreateContainerError::Devices { .. }
        | CreateContainerError::Mounts { .. }
        | CreateContainerError::StopSignal { .. }
        | CreateContainerError::Spec { .. }
        | CreateContainerError::Seccomp { .. }
        | CreateContainerError::Apparmor { .. }
        | CreateContainerError::Selinux { .. }
        | CreateContainerError::Target { .. }
        | CreateContainerError::UserNamespace { .. }
        | CreateContainerError::Place { .. }
        | CreateContainerError::WorkingDirectory { .. }
        | CreateContainerError::NotPrivileged { .. } => Code::InvalidArgument,
        CreateContainerError::Sandbox(_)
        | CreateContainerError::SandboxNotReady { .. }
        | CreateContainerError::Image { .. }
        | CreateContainerError::ImageVolume(_)
        | CreateContainerError::Trust { .. }
        | CreateContainerError::SeccompArtifact { .. }
        | CreateContainerError::DrawId(_)
        | CreateContainerError::NameReserved { .. }
        | CreateContainerError::Store { .. }
        | CreateContainerError::Mount { .. }
        | CreateContainerError::Root { .. }
        | CreateContainerError::Notifier { .. }
        | CreateContainerError::NodeFiles { .. }
        | CreateContainerError::SpecJson { .. }
        | CreateContainerError::Record { .. }
        | CreateContainerError::File { .. }
        | CreateContainerError::Label { .. }
        | CreateContainerError::Relabel { .. }
        | CreateContainerError::Create { .. } => Code::Unknown,
    }
}
