//! A client's side of the CRI, with what every scenario needs said once.

use std::collections::HashMap;
use std::time::Duration;

use cri_api::beyond::progress_service_client::ProgressServiceClient;
use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::{beyond, v1};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

use crate::tools;

/// What the CRI allows an answer to weigh: 16 MiB of each stream of an exec.
const MESSAGE_MAX_BYTES: usize = 48 << 20;
/// An answer that takes longer is none.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);

/// A connection; made anew when the daemon was started anew.
#[derive(Debug, Clone)]
pub struct Cri {
    /// The runtime service.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The image service.
    pub images: ImageServiceClient<Channel>,
    /// What this daemon tells beyond the CRI.
    pub progress: ProgressServiceClient<Channel>,
}

/// A sandbox as a client knows it.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// What it was made of.
    pub config: v1::PodSandboxConfig,
}

/// A container as a client knows it.
#[derive(Debug, Clone)]
pub struct Container {
    /// Its id.
    pub id: String,
    /// Where its log is.
    pub log: String,
}

/// The message of a failure that had to happen, with the expected code.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(answer: Result<T, Status>, code: Code) -> String {
    match answer {
        Ok(value) => panic!("should have failed with {code:?}: {value:?}"),
        Err(status) => {
            assert_eq!(status.code(), code, "{status:?}");
            status.message().to_owned()
        }
    }
}

/// What the kubelet asks for unless a pod says otherwise; the CRI's own default shares processes.
#[must_use]
pub fn own_processes() -> v1::NamespaceOption {
    v1::NamespaceOption { pid: v1::NamespaceMode::Container.into(), ..Default::default() }
}

/// A container that runs `command` of `image`.
#[must_use]
pub fn container_config(image: &str, name: &str, command: &[&str]) -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: name.to_owned(), attempt: 0 }),
        image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
        command: command.iter().map(|&word| word.to_owned()).collect(),
        log_path: format!("{name}.log"),
        labels: HashMap::from([("container".to_owned(), name.to_owned())]),
        linux: Some(v1::LinuxContainerConfig {
            security_context: Some(v1::LinuxContainerSecurityContext {
                namespace_options: Some(own_processes()),
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A command that waits for SIGTERM and then ends with code 0.
///
/// It says when it is ready to: the kernel drops signals to a process 1 that has not asked for them yet.
pub const WAIT: &[&str] = &["sh", "-c", "trap 'exit 0' TERM; echo ready; while :; do sleep 3600 & wait; done"];

impl Cri {
    pub(crate) fn new(socket: &std::path::Path) -> Self {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).expect("an endpoint");
        // Lazy: the daemon may be down between two calls.
        let channel = endpoint.connect_lazy();
        Self {
            runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES),
            progress: ProgressServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel).max_decoding_message_size(MESSAGE_MAX_BYTES),
        }
    }

    /// PullImage.
    pub async fn pull(&self, image: &str) -> Result<String, Status> {
        self.pull_as(image, None).await
    }

    /// PullImage with credentials.
    pub async fn pull_as(&self, image: &str, auth: Option<v1::AuthConfig>) -> Result<String, Status> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, auth, sandbox_config: None };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// PullImage for a pod.
    pub async fn pull_for(&self, image: &str, pod: v1::PodSandboxConfig) -> Result<String, Status> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = v1::PullImageRequest { image, auth: None, sandbox_config: Some(pod) };
        Ok(self.images.clone().pull_image(request).await?.into_inner().image_ref)
    }

    /// How far a pull of `image` has come.
    pub async fn pull_progress(&self, image: &str) -> Option<beyond::PullProgress> {
        let request = beyond::PullProgressRequest { image: image.to_owned() };
        self.progress.clone().pull_progress(request).await.expect("PullProgress").into_inner().progress
    }

    /// ImageStatus.
    pub async fn image(&self, image: &str) -> Option<v1::Image> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        let request = v1::ImageStatusRequest { image, verbose: false };
        self.images.clone().image_status(request).await.expect("ImageStatus").into_inner().image
    }

    /// ListImages.
    pub async fn list_images(&self) -> Vec<v1::Image> {
        let request = v1::ListImagesRequest { filter: None };
        self.images.clone().list_images(request).await.expect("ListImages").into_inner().images
    }

    /// RemoveImage.
    pub async fn remove_image(&self, image: &str) -> Result<(), Status> {
        let image = Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() });
        self.images.clone().remove_image(v1::RemoveImageRequest { image }).await.map(drop)
    }

    /// RunPodSandbox.
    pub async fn run_pod(&self, config: v1::PodSandboxConfig, handler: &str) -> Result<Pod, Status> {
        let request = v1::RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: handler.to_owned() };
        let id = self.runtime.clone().run_pod_sandbox(request).await?.into_inner().pod_sandbox_id;
        Ok(Pod { id, config })
    }

    /// StopPodSandbox.
    pub async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::StopPodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().stop_pod_sandbox(request).await.map(drop)
    }

    /// RemovePodSandbox.
    pub async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() };
        self.runtime.clone().remove_pod_sandbox(request).await.map(drop)
    }

    /// StopPodSandbox and RemovePodSandbox.
    pub async fn end_pod(&self, id: &str) {
        self.stop_pod(id).await.expect("StopPodSandbox");
        self.remove_pod(id).await.expect("RemovePodSandbox");
    }

    /// ListPodSandbox.
    pub async fn pods(&self) -> Vec<v1::PodSandbox> {
        self.find_pods(v1::PodSandboxFilter::default()).await
    }

    /// ListPodSandbox with a filter.
    pub async fn find_pods(&self, filter: v1::PodSandboxFilter) -> Vec<v1::PodSandbox> {
        let request = v1::ListPodSandboxRequest { filter: Some(filter) };
        self.runtime.clone().list_pod_sandbox(request).await.expect("ListPodSandbox").into_inner().items
    }

    /// PodSandboxStatus.
    pub async fn pod_status(&self, id: &str) -> Result<v1::PodSandboxStatus, Status> {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().pod_sandbox_status(request).await?.into_inner();
        Ok(answer.status.expect("a status"))
    }

    /// The verbose part of PodSandboxStatus.
    pub async fn pod_info(&self, id: &str) -> serde_json::Value {
        let request = v1::PodSandboxStatusRequest { pod_sandbox_id: id.to_owned(), verbose: true };
        let answer = self.runtime.clone().pod_sandbox_status(request).await.expect("PodSandboxStatus").into_inner();
        serde_json::from_str(answer.info.get("info").map_or("null", String::as_str)).expect("JSON")
    }

    /// A pod's address.
    pub async fn pod_ip(&self, id: &str) -> String {
        self.pod_status(id).await.expect("PodSandboxStatus").network.expect("a network").ip
    }

    /// CreateContainer.
    pub async fn create(&self, pod: &Pod, config: v1::ContainerConfig) -> Result<Container, Status> {
        let log = format!("{}/{}", pod.config.log_directory, config.log_path);
        let request = v1::CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        let id = self.runtime.clone().create_container(request).await?.into_inner().container_id;
        Ok(Container { id, log })
    }

    /// StartContainer.
    pub async fn start(&self, id: &str) -> Result<(), Status> {
        let request = v1::StartContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().start_container(request).await.map(drop)
    }

    /// CreateContainer and StartContainer; with [`WAIT`] also until it is ready to end.
    pub async fn run(&self, pod: &Pod, config: v1::ContainerConfig) -> Container {
        let is_waiting = config.command == WAIT;
        let container = self.create(pod, config).await.expect("CreateContainer");
        self.start(&container.id).await.expect("StartContainer");
        if is_waiting {
            let look = || crate::log::texts(&crate::log::read(&container.log), "stdout");
            tools::becomes("the container is ready", look, |texts| texts.iter().any(|text| text == "ready")).await;
        }
        container
    }

    /// StopContainer.
    pub async fn stop(&self, id: &str, seconds: i64) -> Result<(), Status> {
        let request = v1::StopContainerRequest { container_id: id.to_owned(), timeout: seconds };
        self.runtime.clone().stop_container(request).await.map(drop)
    }

    /// RemoveContainer.
    pub async fn remove(&self, id: &str) -> Result<(), Status> {
        let request = v1::RemoveContainerRequest { container_id: id.to_owned() };
        self.runtime.clone().remove_container(request).await.map(drop)
    }

    /// The ids ListContainers finds, sorted.
    pub async fn find(&self, filter: v1::ContainerFilter) -> Vec<String> {
        let mut ids: Vec<String> = self.containers(filter).await.into_iter().map(|found| found.id).collect();
        ids.sort();
        ids
    }

    /// ListContainers.
    pub async fn containers(&self, filter: v1::ContainerFilter) -> Vec<v1::Container> {
        let request = v1::ListContainersRequest { filter: Some(filter) };
        self.runtime.clone().list_containers(request).await.expect("ListContainers").into_inner().containers
    }

    /// ContainerStatus.
    pub async fn status(&self, id: &str) -> Result<v1::ContainerStatus, Status> {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
        let answer = self.runtime.clone().container_status(request).await?.into_inner();
        Ok(answer.status.expect("a status"))
    }

    /// UpdateContainerResources.
    pub async fn update(&self, id: &str, limits: v1::LinuxContainerResources) -> Result<(), Status> {
        let request = v1::UpdateContainerResourcesRequest {
            container_id: id.to_owned(),
            linux: Some(limits),
            ..Default::default()
        };
        self.runtime.clone().update_container_resources(request).await.map(drop)
    }

    /// The process of a container, from the verbose part of ContainerStatus.
    pub async fn container_pid(&self, id: &str) -> i32 {
        let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
        let answer = self.runtime.clone().container_status(request).await.expect("ContainerStatus").into_inner();
        let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
        i32::try_from(info["pid"].as_i64().expect("a pid")).expect("a pid")
    }

    /// Waits until a container has ended, and tells how.
    pub async fn exit(&self, id: &str) -> v1::ContainerStatus {
        tools::eventually(&format!("container {id} ends"), async || {
            let status = self.status(id).await.expect("ContainerStatus");
            (status.state() == v1::ContainerState::ContainerExited).then_some(status)
        })
        .await
    }

    /// Runs a container to its end, and tells how it ended and what it wrote to standard output.
    pub async fn run_to_end(&self, pod: &Pod, config: v1::ContainerConfig) -> (v1::ContainerStatus, Vec<String>) {
        let container = self.run(pod, config).await;
        let status = self.exit(&container.id).await;
        (status, crate::log::texts(&crate::log::read(&container.log), "stdout"))
    }

    /// ExecSync.
    pub async fn exec(&self, id: &str, command: &[&str], seconds: i64) -> Result<v1::ExecSyncResponse, Status> {
        let request = v1::ExecSyncRequest {
            container_id: id.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: seconds,
        };
        Ok(self.runtime.clone().exec_sync(request).await?.into_inner())
    }

    /// What a command in a container prints; one that fails is a failure of the test.
    pub async fn output(&self, id: &str, command: &[&str]) -> String {
        let answer = self.exec(id, command, 20).await.unwrap_or_else(|error| panic!("{command:?}: {error:?}"));
        let error = String::from_utf8_lossy(&answer.stderr).into_owned();
        assert_eq!(answer.exit_code, 0, "{command:?}: {error}");
        String::from_utf8_lossy(&answer.stdout).trim_end().to_owned()
    }

    /// ReopenContainerLog.
    pub async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let request = v1::ReopenContainerLogRequest { container_id: id.to_owned() };
        self.runtime.clone().reopen_container_log(request).await.map(drop)
    }

    /// Whether the daemon answers.
    pub async fn answers(&self) -> bool {
        let request = v1::VersionRequest { version: "v1".to_owned() };
        let mut runtime = self.runtime.clone();
        matches!(tokio::time::timeout(ANSWER_LIMIT, runtime.version(request)).await, Ok(Ok(_)))
    }
}
