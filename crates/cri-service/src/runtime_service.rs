//! `runtime.v1.RuntimeService`: which RPC is answered where.

use std::sync::Arc;

use cri_api::v1;
use cri_api::v1::runtime_service_server::RuntimeService;
use futures_util::stream::BoxStream;
use lifecycle::{Node, Statistics};
use streaming::Streaming;
use tonic::{Request, Response, Status};

use crate::refusal::unimplemented;
use crate::{
    attach, chunked, container_stats, container_status, create_container, deadline, exec, exec_sync,
    get_container_events, list_container_stats, list_containers, list_metric_descriptors, list_pod_sandbox,
    list_pod_sandbox_metrics, list_pod_sandbox_stats, pod_sandbox_stats, pod_sandbox_status, port_forward,
    remove_container, remove_pod_sandbox, reopen_container_log, run_pod_sandbox, start_container, status,
    stop_container, stop_pod_sandbox, update_container_resources,
};

type Answer<T> = Result<Response<T>, Status>;
type Stream<T> = BoxStream<'static, Result<T, Status>>;

/// The runtime service of a node.
pub struct RuntimeApi {
    node: Arc<Node>,
    statistics: Statistics,
    streaming: Arc<Streaming>,
}

impl RuntimeApi {
    /// Serves `node`; sessions of exec, attach and port-forward are `streaming`'s.
    #[must_use]
    pub fn new(node: Arc<Node>, streaming: Arc<Streaming>) -> Self {
        let statistics = Statistics::new(Arc::clone(&node));
        Self { node, statistics, streaming }
    }
}

#[tonic::async_trait]
impl RuntimeService for RuntimeApi {
    async fn version(&self, _: Request<v1::VersionRequest>) -> Answer<v1::VersionResponse> {
        Ok(Response::new(status::version()))
    }

    async fn status(&self, request: Request<v1::StatusRequest>) -> Answer<v1::StatusResponse> {
        status::status(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn runtime_config(&self, _: Request<v1::RuntimeConfigRequest>) -> Answer<v1::RuntimeConfigResponse> {
        Ok(Response::new(status::runtime_config(&self.node)))
    }

    /// The pod CIDR is the CNI configuration's business. Source: CRI-O.
    async fn update_runtime_config(
        &self,
        _: Request<v1::UpdateRuntimeConfigRequest>,
    ) -> Answer<v1::UpdateRuntimeConfigResponse> {
        Ok(Response::new(v1::UpdateRuntimeConfigResponse {}))
    }

    async fn run_pod_sandbox(&self, request: Request<v1::RunPodSandboxRequest>) -> Answer<v1::RunPodSandboxResponse> {
        run_pod_sandbox::run_pod_sandbox(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stop_pod_sandbox(
        &self,
        request: Request<v1::StopPodSandboxRequest>,
    ) -> Answer<v1::StopPodSandboxResponse> {
        let patience = deadline::patience(&request);
        stop_pod_sandbox::stop_pod_sandbox(&self.node, request.into_inner(), patience).await.map(Response::new)
    }

    async fn remove_pod_sandbox(
        &self,
        request: Request<v1::RemovePodSandboxRequest>,
    ) -> Answer<v1::RemovePodSandboxResponse> {
        let patience = deadline::patience(&request);
        remove_pod_sandbox::remove_pod_sandbox(&self.node, request.into_inner(), patience).await.map(Response::new)
    }

    async fn pod_sandbox_status(
        &self,
        request: Request<v1::PodSandboxStatusRequest>,
    ) -> Answer<v1::PodSandboxStatusResponse> {
        pod_sandbox_status::pod_sandbox_status(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_pod_sandbox(
        &self,
        request: Request<v1::ListPodSandboxRequest>,
    ) -> Answer<v1::ListPodSandboxResponse> {
        let items = list_pod_sandbox::list(&self.node, request.into_inner().filter);
        Ok(Response::new(v1::ListPodSandboxResponse { items }))
    }

    type StreamPodSandboxesStream = Stream<v1::StreamPodSandboxesResponse>;

    async fn stream_pod_sandboxes(
        &self,
        request: Request<v1::StreamPodSandboxesRequest>,
    ) -> Answer<Self::StreamPodSandboxesStream> {
        let items = list_pod_sandbox::list(&self.node, request.into_inner().filter);
        Ok(Response::new(chunked(items, |pod_sandboxes| v1::StreamPodSandboxesResponse { pod_sandboxes })))
    }

    async fn create_container(
        &self,
        request: Request<v1::CreateContainerRequest>,
    ) -> Answer<v1::CreateContainerResponse> {
        create_container::create_container(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn start_container(&self, request: Request<v1::StartContainerRequest>) -> Answer<v1::StartContainerResponse> {
        start_container::start_container(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn stop_container(&self, request: Request<v1::StopContainerRequest>) -> Answer<v1::StopContainerResponse> {
        stop_container::stop_container(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn remove_container(
        &self,
        request: Request<v1::RemoveContainerRequest>,
    ) -> Answer<v1::RemoveContainerResponse> {
        remove_container::remove_container(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn list_containers(&self, request: Request<v1::ListContainersRequest>) -> Answer<v1::ListContainersResponse> {
        let containers = list_containers::list(&self.node, request.into_inner().filter);
        Ok(Response::new(v1::ListContainersResponse { containers }))
    }

    type StreamContainersStream = Stream<v1::StreamContainersResponse>;

    async fn stream_containers(
        &self,
        request: Request<v1::StreamContainersRequest>,
    ) -> Answer<Self::StreamContainersStream> {
        let containers = list_containers::list(&self.node, request.into_inner().filter);
        Ok(Response::new(chunked(containers, |containers| v1::StreamContainersResponse { containers })))
    }

    async fn container_status(
        &self,
        request: Request<v1::ContainerStatusRequest>,
    ) -> Answer<v1::ContainerStatusResponse> {
        container_status::container_status(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn reopen_container_log(
        &self,
        request: Request<v1::ReopenContainerLogRequest>,
    ) -> Answer<v1::ReopenContainerLogResponse> {
        reopen_container_log::reopen_container_log(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn exec_sync(&self, request: Request<v1::ExecSyncRequest>) -> Answer<v1::ExecSyncResponse> {
        exec_sync::exec_sync(&self.node, request.into_inner()).await.map(Response::new)
    }

    async fn exec(&self, request: Request<v1::ExecRequest>) -> Answer<v1::ExecResponse> {
        exec::exec(&self.node, &self.streaming, request.into_inner()).map(Response::new)
    }

    async fn attach(&self, request: Request<v1::AttachRequest>) -> Answer<v1::AttachResponse> {
        attach::attach(&self.node, &self.streaming, request.into_inner()).map(Response::new)
    }

    async fn port_forward(&self, request: Request<v1::PortForwardRequest>) -> Answer<v1::PortForwardResponse> {
        port_forward::port_forward(&self.node, &self.streaming, request.into_inner()).map(Response::new)
    }

    async fn update_container_resources(
        &self,
        request: Request<v1::UpdateContainerResourcesRequest>,
    ) -> Answer<v1::UpdateContainerResourcesResponse> {
        update_container_resources::update_container_resources(&self.node, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn update_pod_sandbox_resources(
        &self,
        request: Request<v1::UpdatePodSandboxResourcesRequest>,
    ) -> Answer<v1::UpdatePodSandboxResourcesResponse> {
        crate::update_pod_sandbox_resources::update_pod_sandbox_resources(&self.node, &request.into_inner())
            .map(Response::new)
    }

    async fn container_stats(&self, request: Request<v1::ContainerStatsRequest>) -> Answer<v1::ContainerStatsResponse> {
        container_stats::container_stats(&self.node, &self.statistics, request.into_inner()).await.map(Response::new)
    }

    async fn list_container_stats(
        &self,
        request: Request<v1::ListContainerStatsRequest>,
    ) -> Answer<v1::ListContainerStatsResponse> {
        let stats = list_container_stats::list(&self.node, &self.statistics, request.into_inner().filter).await;
        Ok(Response::new(v1::ListContainerStatsResponse { stats }))
    }

    type StreamContainerStatsStream = Stream<v1::StreamContainerStatsResponse>;

    async fn stream_container_stats(
        &self,
        request: Request<v1::StreamContainerStatsRequest>,
    ) -> Answer<Self::StreamContainerStatsStream> {
        let stats = list_container_stats::list(&self.node, &self.statistics, request.into_inner().filter).await;
        Ok(Response::new(chunked(stats, |container_stats| v1::StreamContainerStatsResponse { container_stats })))
    }

    async fn pod_sandbox_stats(
        &self,
        request: Request<v1::PodSandboxStatsRequest>,
    ) -> Answer<v1::PodSandboxStatsResponse> {
        pod_sandbox_stats::pod_sandbox_stats(&self.node, &self.statistics, request.into_inner())
            .await
            .map(Response::new)
    }

    async fn list_pod_sandbox_stats(
        &self,
        request: Request<v1::ListPodSandboxStatsRequest>,
    ) -> Answer<v1::ListPodSandboxStatsResponse> {
        let stats = list_pod_sandbox_stats::list(&self.node, &self.statistics, request.into_inner().filter).await;
        Ok(Response::new(v1::ListPodSandboxStatsResponse { stats }))
    }

    type StreamPodSandboxStatsStream = Stream<v1::StreamPodSandboxStatsResponse>;

    async fn stream_pod_sandbox_stats(
        &self,
        request: Request<v1::StreamPodSandboxStatsRequest>,
    ) -> Answer<Self::StreamPodSandboxStatsStream> {
        let stats = list_pod_sandbox_stats::list(&self.node, &self.statistics, request.into_inner().filter).await;
        Ok(Response::new(chunked(stats, |pod_sandbox_stats| v1::StreamPodSandboxStatsResponse { pod_sandbox_stats })))
    }

    async fn checkpoint_container(
        &self,
        _: Request<v1::CheckpointContainerRequest>,
    ) -> Answer<v1::CheckpointContainerResponse> {
        unimplemented("CheckpointContainer")
    }

    type GetContainerEventsStream = Stream<v1::ContainerEventResponse>;

    async fn get_container_events(&self, _: Request<v1::GetEventsRequest>) -> Answer<Self::GetContainerEventsStream> {
        Ok(Response::new(get_container_events::get_container_events(&self.node)))
    }

    async fn list_metric_descriptors(
        &self,
        _: Request<v1::ListMetricDescriptorsRequest>,
    ) -> Answer<v1::ListMetricDescriptorsResponse> {
        let descriptors = list_metric_descriptors::list(&self.statistics);
        Ok(Response::new(v1::ListMetricDescriptorsResponse { descriptors }))
    }

    async fn list_pod_sandbox_metrics(
        &self,
        _: Request<v1::ListPodSandboxMetricsRequest>,
    ) -> Answer<v1::ListPodSandboxMetricsResponse> {
        let pod_metrics = list_pod_sandbox_metrics::list(&self.statistics).await;
        Ok(Response::new(v1::ListPodSandboxMetricsResponse { pod_metrics }))
    }

    type StreamPodSandboxMetricsStream = Stream<v1::StreamPodSandboxMetricsResponse>;

    async fn stream_pod_sandbox_metrics(
        &self,
        _: Request<v1::StreamPodSandboxMetricsRequest>,
    ) -> Answer<Self::StreamPodSandboxMetricsStream> {
        let metrics = list_pod_sandbox_metrics::list(&self.statistics).await;
        let message = |pod_sandbox_metrics| v1::StreamPodSandboxMetricsResponse { pod_sandbox_metrics };
        Ok(Response::new(chunked(metrics, message)))
    }
}
