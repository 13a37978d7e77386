//! RemoveImage.

use cri_api::v1;
use lifecycle::{Node, RemoveImageError};
use tonic::{Code, Status};

use crate::from_cri::image_spec;
use crate::list_images::images_code;
use crate::refusal::{invalid, refuse};

pub(crate) async fn remove_image(
    node: &Node,
    request: v1::RemoveImageRequest,
) -> Result<v1::RemoveImageResponse, Status> {
    let spec = image_spec("image.image", request.image).map_err(invalid)?;
    node.remove_image(&spec.image).await.map_err(|error| refuse(code(&error), &error))?;
    Ok(v1::RemoveImageResponse {})
}

/// "This call is idempotent, and must not return an error if the image has already been removed."
fn code(error: &RemoveImageError) -> Code {
    match error {
        RemoveImageError::Find(error) => images_code(error),
        RemoveImageError::InUse { .. }
        | RemoveImageError::ReadOnly { .. }
        | RemoveImageError::Artifact { .. }
        | RemoveImageError::Store { .. } => Code::Unknown,
    }
}
