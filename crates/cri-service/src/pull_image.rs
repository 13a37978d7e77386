//! PullImage.

use std::sync::Arc;

use cri_api::v1;
use lifecycle::{Node, PullFailure, PullImageError, PullOrder, RequestAuth};
use tonic::{Code, Status};

use crate::from_cri::image_spec;
use crate::refusal::{invalid, refuse};

/// The CRI's name for a registry that cannot be reached; the kubelet looks for it in the text.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";
/// The CRI's name for an image that the signature policy refuses.
const SIGNATURE_VALIDATION_FAILED: &str = "SignatureValidationFailed";

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
    let sandbox = request.sandbox_config.unwrap_or_default();
    let order = PullOrder {
        image: spec.image,
        auth,
        namespace: sandbox.metadata.map(|metadata| metadata.namespace).unwrap_or_default(),
        cgroup_parent: sandbox.linux.map(|linux| linux.cgroup_parent).unwrap_or_default(),
        ..PullOrder::default()
    };
    let id = node.pull_image(order).await.map_err(|error| refusal(&error))?;
    Ok(v1::PullImageResponse { image_ref: id.into() })
}

fn refusal(error: &PullImageError) -> Status {
    let class = error.class();
    let status = refuse(code(class), error);
    match reason(class) {
        Some(reason) => Status::new(status.code(), format!("{reason}: {}", status.message())),
        None => status,
    }
}

/// The word before the text by which the kubelet knows what to tell. Source: `k8s.io/cri-api/pkg/errors`.
fn reason(class: PullFailure) -> Option<&'static str> {
    match class {
        PullFailure::RegistryUnavailable => Some(REGISTRY_UNAVAILABLE),
        PullFailure::Untrusted => Some(SIGNATURE_VALIDATION_FAILED),
        PullFailure::BadRequest | PullFailure::NotFound | PullFailure::OutOfSpace | PullFailure::Other => None,
    }
}

/// The kubelet backs off whatever the code; operators read it.
fn code(class: PullFailure) -> Code {
    match class {
        PullFailure::BadRequest => Code::InvalidArgument,
        PullFailure::NotFound => Code::NotFound,
        PullFailure::OutOfSpace => Code::ResourceExhausted,
        PullFailure::RegistryUnavailable | PullFailure::Untrusted | PullFailure::Other => Code::Unknown,
    }
}
