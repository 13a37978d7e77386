//! `runtime.v1.ImageService`: which RPC is answered where.

use std::sync::Arc;

use cri_api::v1;
use cri_api::v1::image_service_server::ImageService;
use futures_util::stream::BoxStream;
use lifecycle::Node;
use tonic::{Request, Response, Status};

use crate::{chunked, image_fs_info, image_status, list_images, pull_image, remove_image};

type Answer<T> = Result<Response<T>, Status>;

/// The image service of a node.
pub struct ImageApi {
    node: Arc<Node>,
}

impl ImageApi {
    /// Serves `node`.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl ImageService for ImageApi {
    async fn list_images(&self, request: Request<v1::ListImagesRequest>) -> Answer<v1::ListImagesResponse> {
        let images = list_images::list(&self.node, request.into_inner().filter).await?;
        Ok(Response::new(v1::ListImagesResponse { images }))
    }

    type StreamImagesStream = BoxStream<'static, Result<v1::StreamImagesResponse, Status>>;

    async fn stream_images(&self, request: Request<v1::StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        let images = list_images::list(&self.node, request.into_inner().filter).await?;
        Ok(Response::new(chunked(images, |images| v1::StreamImagesResponse { images })))
    }

    async fn image_status(&self, request: Request<v1::ImageStatusRequest>) -> Answer<v1::ImageStatusResponse> {
        image_status::image_status(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn pull_image(&self, request: Request<v1::PullImageRequest>) -> Answer<v1::PullImageResponse> {
        pull_image::pull_image(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn remove_image(&self, request: Request<v1::RemoveImageRequest>) -> Answer<v1::RemoveImageResponse> {
        remove_image::remove_image(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn image_fs_info(&self, _: Request<v1::ImageFsInfoRequest>) -> Answer<v1::ImageFsInfoResponse> {
        image_fs_info::image_fs_info(&self.node).await.map(Response::new)
    }
}
