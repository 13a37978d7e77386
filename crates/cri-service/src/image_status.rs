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
        let config = node.image_config_json(&image.id).await.unwrap_or_default();
        let text = serde_json::json!({ "labels": image.labels, "imageSpec": oci_fields(&config) });
        info.insert("info".to_owned(), text.to_string());
    }
    Ok(v1::ImageStatusResponse { image: Some(to_cri::image(image)), info })
}

/// What the OCI specification knows of an image's configuration; Docker's own fields are left out, as by CRI-O.
fn oci_fields(config: &[u8]) -> serde_json::Map<String, serde_json::Value> {
    const FIELDS: [&str; 10] = [
        "created",
        "author",
        "architecture",
        "variant",
        "os",
        "os.version",
        "os.features",
        "config",
        "rootfs",
        "history",
    ];
    let mut fields: serde_json::Map<_, _> = serde_json::from_slice(config).unwrap_or_default();
    fields.retain(|name, _| FIELDS.contains(&name.as_str()));
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specification_of_an_image_has_no_fields_of_dockers() {
        let config = br#"{"os":"linux","config":{"Cmd":["sh"]},"container_config":{"Cmd":["x"]},"docker_version":"1"}"#;
        let shown = serde_json::Value::from(oci_fields(config));
        assert_eq!(shown, serde_json::json!({ "os": "linux", "config": { "Cmd": ["sh"] } }));
        assert!(oci_fields(b"torn").is_empty());
    }
}
