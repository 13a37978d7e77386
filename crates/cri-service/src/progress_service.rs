//! `crio_rs.v1.ProgressService`: how far long work has come, which the CRI has no words for.

use std::sync::Arc;

use cri_api::beyond;
use cri_api::beyond::progress_service_server::ProgressService;
use lifecycle::Node;
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
        let progress = self.node.pull_progress(&request.into_inner().image).map(|progress| beyond::PullProgress {
            bytes: progress.bytes,
            bytes_total: progress.bytes_total,
            layers: progress.layers,
            layers_total: progress.layers_total,
        });
        Ok(Response::new(beyond::PullProgressResponse { progress }))
    }
}
