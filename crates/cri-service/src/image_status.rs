//! ImageStatus.

use std::collections::HashMap;

use cri_api::v1;
use lifecycle::Node;
use tonic::Status;

use crate::from_cri::image_spec;
use crate::list_images::images_code;
use crate::refusal::{invalid, refuse};
use crate::to_cri;

/// "If the image is not present, returns a response with ImageStatusResponse.Image set to nil."
pub(crate) async fn image_status(
    node: &Node,
    request: v1::ImageStatusRequest,
) -> Result<v1::ImageStatusResponse, Status> {
    let spec = image_spec("image.image", request.image).map_err(invalid)?;
    let found = node.image_status(&spec.image).await.map_err(|error| refuse(images_code(&error), &error))?;
    let Some(image) = found else { return Ok(v1::ImageStatusResponse::default()) };
    let mut info = HashMap::new();
    if request.verbose {
        let text = serde_json::json!({ "labels": image.labels });
        info.insert("info".to_owned(), text.to_string());
    }
    Ok(v1::ImageStatusResponse { image: Some(to_cri::image(image)), info })
}
