//! The connection to an engine, and one method for each request this client makes.

use std::time::Duration;

use cri_api::beyond::progress_service_client::ProgressServiceClient;
use cri_api::beyond::{PullProgressRequest, PullProgressResponse};
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::{
    AttachRequest, AttachResponse, ContainerStatusRequest, ContainerStatusResponse, CreateContainerRequest,
    CreateContainerResponse, ExecRequest, ExecResponse, ExecSyncRequest, ExecSyncResponse, ImageStatusRequest,
    ImageStatusResponse, ListContainersRequest, ListContainersResponse, ListImagesRequest, ListImagesResponse,
    ListPodSandboxRequest, ListPodSandboxResponse, PodSandboxStatusRequest, PodSandboxStatusResponse,
    PortForwardRequest, PortForwardResponse, PullImageRequest, PullImageResponse, RemoveContainerRequest,
    RemoveContainerResponse, RemoveImageRequest, RemoveImageResponse, RemovePodSandboxRequest,
    RemovePodSandboxResponse, RunPodSandboxRequest, RunPodSandboxResponse, StartContainerRequest,
    StartContainerResponse, StatusRequest, StatusResponse, StopContainerRequest, StopContainerResponse,
    StopPodSandboxRequest, StopPodSandboxResponse, VersionRequest, VersionResponse,
};
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::error::CallError;

/// A local socket answers at once or is not served.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// Questions are answered from memory.
const QUESTION_TIMEOUT: Duration = Duration::from_secs(10);
/// The kubelet gives a change four minutes; engines count on that.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(240);
/// Large images from slow registries.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);
/// As long as gRPC can say in seconds; a program run by exec may last.
const UNLIMITED: Duration = Duration::from_secs(99_999_999);
/// What the kubelet accepts, too.
const MESSAGE_MAX_BYTES: usize = 80 << 20;

/// An engine.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    runtime: RuntimeServiceClient<Channel>,
    images: ImageServiceClient<Channel>,
    progress: ProgressServiceClient<Channel>,
    timeout: Option<Duration>,
}

impl Client {
    /// Connects to `unix:///PATH`, or a path alone.
    pub(crate) async fn connect(endpoint: &str, timeout: Option<u64>) -> Result<Self, CallError> {
        let url = match endpoint {
            path if path.starts_with('/') => format!("unix://{path}"),
            url if url.strip_prefix("unix://").is_some_and(|path| path.starts_with('/')) => url.to_owned(),
            _ => return Err(CallError::Endpoint { endpoint: endpoint.to_owned() }),
        };
        let channel = Endpoint::from_shared(url)
            .map_err(|_| CallError::Endpoint { endpoint: endpoint.to_owned() })?
            .connect_timeout(CONNECT_TIMEOUT)
            .connect()
            .await
            .map_err(|source| CallError::Connect { endpoint: endpoint.to_owned(), source })?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES),
            images: ImageServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES),
            progress: ProgressServiceClient::new(channel),
            timeout: timeout.map(Duration::from_secs),
        })
    }

    /// The bound given on the command line, in whole seconds, 0 for none: what ExecSync wants.
    pub(crate) fn exec_timeout_seconds(&self) -> i64 {
        self.timeout.map_or(0, |timeout| i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX))
    }

    /// Runs a program in a container. Its own bound travels in the message; the request gets a little more.
    pub(crate) async fn exec_sync(&self, message: ExecSyncRequest) -> Result<ExecSyncResponse, CallError> {
        let bound = match u64::try_from(message.timeout) {
            Ok(seconds) if seconds > 0 => Duration::from_secs(seconds) + QUESTION_TIMEOUT,
            _ => UNLIMITED,
        };
        let mut request = Request::new(message);
        request.set_timeout(bound);
        let mut service = self.runtime.clone();
        refused("ExecSync", service.exec_sync(request).await)
    }

    /// Stops a container. The grace it has comes on top of the usual bound.
    pub(crate) async fn stop_container(
        &self,
        id: &str,
        grace_seconds: u32,
    ) -> Result<StopContainerResponse, CallError> {
        let message = StopContainerRequest { container_id: id.to_owned(), timeout: i64::from(grace_seconds) };
        let mut request = Request::new(message);
        request.set_timeout(self.timeout.unwrap_or(CHANGE_TIMEOUT) + Duration::from_secs(u64::from(grace_seconds)));
        let mut service = self.runtime.clone();
        refused("StopContainer", service.stop_container(request).await)
    }
}

fn refused<A>(request: &'static str, answer: Result<tonic::Response<A>, tonic::Status>) -> Result<A, CallError> {
    answer.map(tonic::Response::into_inner).map_err(|status| CallError::Refused { request, status: Box::new(status) })
}

/// Methods that differ in nothing but names, types and usual bounds.
macro_rules! requests {
    ($($service:ident $method:ident $name:literal: $request:ty => $response:ty, $bound:ident;)*) => {
        impl Client {
            $(
                #[doc = concat!($name, ".")]
                pub(crate) async fn $method(&self, message: $request) -> Result<$response, CallError> {
                    let mut request = Request::new(message);
                    request.set_timeout(self.timeout.unwrap_or($bound));
                    let mut service = self.$service.clone();
                    refused($name, service.$method(request).await)
                }
            )*
        }
    };
}

requests! {
    runtime exec "Exec": ExecRequest => ExecResponse, QUESTION_TIMEOUT;
    runtime attach "Attach": AttachRequest => AttachResponse, QUESTION_TIMEOUT;
    runtime port_forward "PortForward": PortForwardRequest => PortForwardResponse, QUESTION_TIMEOUT;
    runtime version "Version": VersionRequest => VersionResponse, QUESTION_TIMEOUT;
    runtime status "Status": StatusRequest => StatusResponse, QUESTION_TIMEOUT;
    runtime run_pod_sandbox "RunPodSandbox": RunPodSandboxRequest => RunPodSandboxResponse, CHANGE_TIMEOUT;
    runtime stop_pod_sandbox "StopPodSandbox": StopPodSandboxRequest => StopPodSandboxResponse, CHANGE_TIMEOUT;
    runtime remove_pod_sandbox "RemovePodSandbox": RemovePodSandboxRequest => RemovePodSandboxResponse, CHANGE_TIMEOUT;
    runtime pod_sandbox_status "PodSandboxStatus": PodSandboxStatusRequest => PodSandboxStatusResponse, QUESTION_TIMEOUT;
    runtime list_pod_sandbox "ListPodSandbox": ListPodSandboxRequest => ListPodSandboxResponse, QUESTION_TIMEOUT;
    runtime create_container "CreateContainer": CreateContainerRequest => CreateContainerResponse, CHANGE_TIMEOUT;
    runtime start_container "StartContainer": StartContainerRequest => StartContainerResponse, CHANGE_TIMEOUT;
    runtime remove_container "RemoveContainer": RemoveContainerRequest => RemoveContainerResponse, CHANGE_TIMEOUT;
    runtime container_status "ContainerStatus": ContainerStatusRequest => ContainerStatusResponse, QUESTION_TIMEOUT;
    runtime list_containers "ListContainers": ListContainersRequest => ListContainersResponse, QUESTION_TIMEOUT;
    images list_images "ListImages": ListImagesRequest => ListImagesResponse, QUESTION_TIMEOUT;
    images image_status "ImageStatus": ImageStatusRequest => ImageStatusResponse, QUESTION_TIMEOUT;
    images pull_image "PullImage": PullImageRequest => PullImageResponse, PULL_TIMEOUT;
    images remove_image "RemoveImage": RemoveImageRequest => RemoveImageResponse, CHANGE_TIMEOUT;
    progress pull_progress "PullProgress": PullProgressRequest => PullProgressResponse, QUESTION_TIMEOUT;
}
