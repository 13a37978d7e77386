//! `crio_rs.v1.ProgressService`: how far long work has come, which the CRI has no words for.

use std::sync::Arc;

use cri_api::beyond;
use cri_api::beyond::progress_service_server::ProgressService;
use lifecycle::{LayerProgress, Node, PullProgress};
use tonic::{Request, Response, Status};

/// The progress service of a node.
pub struct ProgressApi {
    node: Arc<Node>,
}

impl ProgressApi {
    /// Serves `node`.
    #[must_use]
    pub fn new(node: Arc<Node>) -> Self {
        Self { node }
    }
}

#[tonic::async_trait]
impl ProgressService for ProgressApi {
    async fn pull_progress(
        &self,
        request: Request<beyond::PullProgressRequest>,
    ) -> Result<Response<beyond::PullProgressResponse>, Status> {
        let progress = self.node.pull_progress(&request.into_inner().image).map(progress);
        Ok(Response::new(beyond::PullProgressResponse { progress }))
    }

    async fn list_pulls(
        &self,
        _request: Request<beyond::ListPullsRequest>,
    ) -> Result<Response<beyond::ListPullsResponse>, Status> {
        let pull = |(image, pull)| beyond::Pull { image, progress: Some(progress(pull)) };
        Ok(Response::new(beyond::ListPullsResponse { pulls: self.node.pulls().into_iter().map(pull).collect() }))
    }
}

fn progress(progress: PullProgress) -> beyond::PullProgress {
    beyond::PullProgress {
        bytes: progress.bytes,
        bytes_total: progress.bytes_total,
        layers: progress.layers,
        layers_total: progress.layers_total,
        rate: progress.rate,
        seconds: progress.seconds,
        each: progress.each.into_iter().map(layer).collect(),
    }
}

fn layer(layer: LayerProgress) -> beyond::LayerProgress {
    beyond::LayerProgress {
        digest: layer.digest,
        bytes: layer.bytes,
        bytes_total: layer.bytes_total,
        state: layer.state.as_str().to_owned(),
        place: layer.place,
    }
}
