//! ListImages and StreamImages.

use cri_api::v1;
use lifecycle::{ImagesError, Node};
use tonic::{Code, Status};

use crate::refusal::refuse;
use crate::to_cri;

pub(crate) async fn list(node: &Node, filter: Option<v1::ImageFilter>) -> Result<Vec<v1::Image>, Status> {
    let wanted = filter.and_then(|filter| filter.image).map(|spec| spec.image).filter(|name| !name.is_empty());
    let images = match wanted {
        Some(name) => node.image_status(&name).await.map(|image| image.into_iter().collect()),
        None => node.images().await,
    };
    match images {
        Ok(images) => Ok(images.into_iter().map(to_cri::image).collect()),
        Err(error) => Err(refuse(images_code(&error), &error)),
    }
}

/// Looking at images fails for a name that is none, or for a store that cannot be read.
pub(crate) fn images_code(error: &ImagesError) -> Code {
    match error {
        ImagesError::Unnamed | ImagesError::Name(_) => Code::InvalidArgument,
        ImagesError::Absent { .. } => Code::NotFound,
        ImagesError::Find { .. }
        | ImagesError::Artifacts(_)
        | ImagesError::Records(_)
        | ImagesError::Config { .. }
        | ImagesError::Usage(_) => Code::Unknown,
    }
}
