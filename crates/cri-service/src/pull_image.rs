//! PullImage.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{Node, PullImageError, RegistryErrorKind as ErrorKind, RequestAuth};
use tonic::{Code, Status};

use crate::from_cri::image_spec;
use crate::refusal::{invalid, refuse};

/// The CRI's name for a registry that cannot be reached; the kubelet looks for it in the text.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

pub(crate) async fn pull_image(
    node: &Arc<Node>,
    request: v1::PullImageRequest,
) -> Result<v1::PullImageResponse, Status> {
    let spec = image_spec("image.image", request.image).map_err(invalid)?;
    let auth = request.auth.map(|auth| RequestAuth {
        username: auth.username,
        password: auth.password,
        auth: auth.auth,
        identity_token: auth.identity_token,
        registry_token: auth.registry_token,
    });
    let id = node.pull_image(spec.image, auth).await.map_err(|error| refusal(&error))?;
    Ok(v1::PullImageResponse { image_ref: id.into() })
}

fn refusal(error: &PullImageError) -> Status {
    let status = refuse(code(error), error);
    match error.kind() {
        Some(ErrorKind::ConnectionRefused | ErrorKind::RegistryUnavailable | ErrorKind::TimedOut) => {
            Status::new(status.code(), format!("{REGISTRY_UNAVAILABLE}: {}", status.message()))
        }
        _ => status,
    }
}

/// The kubelet backs off whatever the code; operators read it.
fn code(error: &PullImageError) -> Code {
    match error {
        PullImageError::Unnamed | PullImageError::Reference { .. } | PullImageError::Credentials(_) => {
            Code::InvalidArgument
        }
        PullImageError::Resolve { .. } | PullImageError::Candidates { .. } | PullImageError::Blob { .. } => {
            match error.kind() {
                Some(ErrorKind::NotFound) => Code::NotFound,
                _ => Code::Unknown,
            }
        }
        PullImageError::Stage { source, .. } if source.is_out_of_space() => Code::ResourceExhausted,
        PullImageError::StageBlob { source, .. } if source.is_out_of_space() => Code::ResourceExhausted,
        PullImageError::Artifact { source, .. } if source.is_out_of_space() => Code::ResourceExhausted,
        PullImageError::StageBlob { .. } | PullImageError::Artifact { .. } => Code::Unknown,
        PullImageError::Stage { .. }
        | PullImageError::Commit { .. }
        | PullImageError::Records { .. }
        | PullImageError::Put { .. } => Code::Unknown,
    }
}
