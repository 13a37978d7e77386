//! An engine without containers: the CRI's states in memory, log files on disk, programs made of words.
//!
//! A container's command and arguments are its program: `say TEXT` and `err TEXT` write a line, `part TEXT` writes a part of one,
//! `rotate` begins a new log file, `sleep MILLISECONDS` waits, `wait` runs until it is stopped (143 after the stop
//! signal, 137 with no grace), `exit CODE` ends. `fail` makes StartContainer fail.
#![allow(dead_code, clippy::unwrap_used)]

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use cri_api::v1::image_service_server::{ImageService, ImageServiceServer};
use cri_api::v1::runtime_service_server::{RuntimeService, RuntimeServiceServer};
use cri_api::v1::*;
use tokio::net::UnixListener;
use tokio_stream::Stream;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

type Answer<T> = Result<Response<T>, Status>;
type Chunks<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// A pod in the engine.
#[derive(Debug, Clone)]
pub(crate) struct FakePod {
    pub(crate) config: PodSandboxConfig,
    pub(crate) runtime_handler: String,
    pub(crate) state: PodSandboxState,
    pub(crate) created_at: i64,
}

/// A container in the engine.
#[derive(Debug, Clone)]
pub(crate) struct FakeContainer {
    pub(crate) pod: String,
    pub(crate) config: ContainerConfig,
    pub(crate) log: PathBuf,
    pub(crate) state: ContainerState,
    pub(crate) exit_code: i32,
    pub(crate) created_at: i64,
}

/// What the engine knows.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) pods: BTreeMap<String, FakePod>,
    pub(crate) containers: BTreeMap<String, FakeContainer>,
    pub(crate) images: BTreeSet<String>,
    /// Names of the requests, in order.
    pub(crate) requests: Vec<&'static str>,
    /// Requests by name that are to fail.
    pub(crate) failing: BTreeSet<&'static str>,
    /// How long RunPodSandbox takes.
    pub(crate) sandbox_delay: Duration,
    next_id: u64,
}

/// A running engine; it ends with this value.
pub(crate) struct FakeEngine {
    directory: tempfile::TempDir,
    model: Arc<Mutex<Model>>,
    runtime: Option<tokio::runtime::Runtime>,
}

#[derive(Clone)]
struct Service(Arc<Mutex<Model>>);

impl FakeEngine {
    /// An engine that has the images named.
    pub(crate) fn start(images: &[&str]) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let model = Arc::new(Mutex::new(Model {
            images: images.iter().map(|&image| image.to_owned()).collect(),
            ..Default::default()
        }));
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let service = Service(Arc::clone(&model));
        let socket = directory.path().join("cri.sock");
        // Bound before anybody is told the path.
        let listener = {
            let _guard = runtime.enter();
            UnixListener::bind(socket).unwrap()
        };
        runtime.spawn(async move {
            tonic::transport::Server::builder()
                .add_service(RuntimeServiceServer::new(service.clone()))
                .add_service(ImageServiceServer::new(service))
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { directory, model, runtime: Some(runtime) }
    }

    pub(crate) fn endpoint(&self) -> String {
        format!("unix://{}", self.directory.path().join("cri.sock").display())
    }

    /// A directory that goes away with the engine.
    pub(crate) fn directory(&self) -> &Path {
        self.directory.path()
    }

    pub(crate) fn model(&self) -> MutexGuard<'_, Model> {
        self.model.lock().unwrap()
    }
}

impl Drop for FakeEngine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Model {
    fn id(&mut self) -> String {
        self.next_id += 1;
        // Multiplied by an odd number, so that beginnings differ as those of random ids do.
        let digits = format!("{:016x}", self.next_id.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        digits.repeat(4)
    }
}

fn now() -> i64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    i64::try_from(since.as_nanos()).unwrap()
}

fn has_labels(labels: &HashMap<String, String>, selector: &HashMap<String, String>) -> bool {
    selector.iter().all(|(name, value)| labels.get(name) == Some(value))
}

fn append(path: &Path, stream: &str, tag: &str, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let mut file = std::fs::File::options().create(true).append(true).open(path).unwrap();
    writeln!(file, "2026-01-02T03:04:05.678901234Z {stream} {tag} {text}").unwrap();
}

impl Service {
    fn begin(&self, request: &'static str) -> Result<MutexGuard<'_, Model>, Status> {
        let mut model = self.0.lock().unwrap();
        model.requests.push(request);
        if model.failing.contains(request) {
            return Err(Status::unknown(format!("{request} was told to fail")));
        }
        Ok(model)
    }

    async fn run(self, id: String, words: Vec<String>, log: PathBuf) {
        let mut words = words.into_iter();
        let mut exit_code = 0;
        while let Some(word) = words.next() {
            match word.as_str() {
                "say" => append(&log, "stdout", "F", &words.next().unwrap()),
                "err" => append(&log, "stderr", "F", &words.next().unwrap()),
                "part" => append(&log, "stdout", "P", &words.next().unwrap()),
                "rotate" => rotate(&log),
                "sleep" => tokio::time::sleep(Duration::from_millis(words.next().unwrap().parse().unwrap())).await,
                "exit" => exit_code = words.next().unwrap().parse().unwrap(),
                "wait" => return,
                other => append(&log, "stderr", "F", &format!("no word {other}")),
            }
        }
        if let Some(container) = self.0.lock().unwrap().containers.get_mut(&id) {
            container.state = ContainerState::ContainerExited;
            container.exit_code = exit_code;
        }
    }
}

/// Renames as a rotating kubelet does, then lets the next line make a new file.
fn rotate(log: &Path) {
    let status = std::process::Command::new("mv").arg(log).arg(log.with_extension("log.old")).status().unwrap();
    assert!(status.success());
}

fn pod_item(id: &str, pod: &FakePod) -> PodSandbox {
    PodSandbox {
        id: id.to_owned(),
        metadata: pod.config.metadata.clone(),
        state: pod.state.into(),
        created_at: pod.created_at,
        labels: pod.config.labels.clone(),
        annotations: pod.config.annotations.clone(),
        runtime_handler: pod.runtime_handler.clone(),
    }
}

fn stop(container: &mut FakeContainer, exit_code: i32) {
    if container.state == ContainerState::ContainerRunning {
        container.state = ContainerState::ContainerExited;
        container.exit_code = exit_code;
    }
}

macro_rules! runtime_service {
    ({ $($served:tt)* } $($missing:ident: $request:ty => $response:ty;)*) => {
        #[tonic::async_trait]
        impl RuntimeService for Service {
            type StreamPodSandboxesStream = Chunks<StreamPodSandboxesResponse>;
            type StreamContainersStream = Chunks<StreamContainersResponse>;
            type StreamContainerStatsStream = Chunks<StreamContainerStatsResponse>;
            type StreamPodSandboxStatsStream = Chunks<StreamPodSandboxStatsResponse>;
            type StreamPodSandboxMetricsStream = Chunks<StreamPodSandboxMetricsResponse>;
            type GetContainerEventsStream = Chunks<ContainerEventResponse>;

            $($served)*
            $(
                async fn $missing(&self, _: Request<$request>) -> Answer<$response> {
                    Err(Status::unimplemented(stringify!($missing)))
                }
            )*
        }
    };
}

runtime_service! {
    {
        async fn version(&self, _: Request<VersionRequest>) -> Answer<VersionResponse> {
            drop(self.begin("Version")?);
            Ok(Response::new(VersionResponse {
                version: "0.1.0".into(),
                runtime_name: "fake".into(),
                runtime_version: "1.2.3".into(),
                runtime_api_version: "v1".into(),
            }))
        }

        async fn list_container_stats(
            &self,
            _: Request<ListContainerStatsRequest>,
        ) -> Answer<ListContainerStatsResponse> {
            let count = self.begin("ListContainerStats")?.containers.len();
            Ok(Response::new(ListContainerStatsResponse { stats: vec![ContainerStats::default(); count] }))
        }

        async fn status(&self, request: Request<StatusRequest>) -> Answer<StatusResponse> {
            drop(self.begin("Status")?);
            let condition = |name: &str, status| RuntimeCondition { r#type: name.into(), status, ..Default::default() };
            let mut answer = StatusResponse {
                status: Some(RuntimeStatus { conditions: vec![condition("RuntimeReady", true), condition("NetworkReady", false)] }),
                ..Default::default()
            };
            if request.into_inner().verbose {
                answer.info.insert("config".into(), r#"{"deep": [1]}"#.into());
            }
            Ok(Response::new(answer))
        }

        async fn run_pod_sandbox(&self, request: Request<RunPodSandboxRequest>) -> Answer<RunPodSandboxResponse> {
            let delay = self.begin("RunPodSandbox")?.sandbox_delay;
            let service = self.clone();
            let request = request.into_inner();
            // As engines do: what was begun is finished, whether or not the client still waits.
            let made = tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                let mut model = service.0.lock().unwrap();
                let id = model.id();
                let pod = FakePod {
                    config: request.config.unwrap(),
                    runtime_handler: request.runtime_handler,
                    state: PodSandboxState::SandboxReady,
                    created_at: now(),
                };
                model.pods.insert(id.clone(), pod);
                id
            });
            Ok(Response::new(RunPodSandboxResponse { pod_sandbox_id: made.await.unwrap() }))
        }

        async fn stop_pod_sandbox(&self, request: Request<StopPodSandboxRequest>) -> Answer<StopPodSandboxResponse> {
            let mut model = self.begin("StopPodSandbox")?;
            let id = request.into_inner().pod_sandbox_id;
            if let Some(pod) = model.pods.get_mut(&id) {
                pod.state = PodSandboxState::SandboxNotready;
            }
            model.containers.values_mut().filter(|container| container.pod == id).for_each(|one| stop(one, 137));
            Ok(Response::new(StopPodSandboxResponse {}))
        }

        async fn remove_pod_sandbox(&self, request: Request<RemovePodSandboxRequest>) -> Answer<RemovePodSandboxResponse> {
            let mut model = self.begin("RemovePodSandbox")?;
            let id = request.into_inner().pod_sandbox_id;
            model.pods.remove(&id);
            model.containers.retain(|_, container| container.pod != id);
            Ok(Response::new(RemovePodSandboxResponse {}))
        }

        async fn pod_sandbox_status(&self, request: Request<PodSandboxStatusRequest>) -> Answer<PodSandboxStatusResponse> {
            let model = self.begin("PodSandboxStatus")?;
            let request = request.into_inner();
            let pod = model.pods.get(&request.pod_sandbox_id).ok_or_else(|| Status::not_found("no such pod"))?;
            let mut answer = PodSandboxStatusResponse {
                status: Some(PodSandboxStatus {
                    id: request.pod_sandbox_id,
                    metadata: pod.config.metadata.clone(),
                    state: pod.state.into(),
                    created_at: pod.created_at,
                    network: Some(PodSandboxNetworkStatus { ip: "10.0.0.9".into(), ..Default::default() }),
                    labels: pod.config.labels.clone(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            if request.verbose {
                answer.info.insert("info".into(), r#"{"pid": 7}"#.into());
            }
            Ok(Response::new(answer))
        }

        async fn list_pod_sandbox(&self, request: Request<ListPodSandboxRequest>) -> Answer<ListPodSandboxResponse> {
            let model = self.begin("ListPodSandbox")?;
            let filter = request.into_inner().filter.unwrap_or_default();
            let items = model
                .pods
                .iter()
                .filter(|(_, pod)| has_labels(&pod.config.labels, &filter.label_selector))
                .map(|(id, pod)| pod_item(id, pod))
                .collect();
            Ok(Response::new(ListPodSandboxResponse { items }))
        }

        async fn create_container(&self, request: Request<CreateContainerRequest>) -> Answer<CreateContainerResponse> {
            let mut model = self.begin("CreateContainer")?;
            let request = request.into_inner();
            let config = request.config.unwrap();
            let image = config.image.clone().unwrap_or_default().image;
            if !model.images.contains(&image) {
                return Err(Status::unknown(format!("image {image} is not there")));
            }
            let Some(pod) = model.pods.get(&request.pod_sandbox_id) else {
                return Err(Status::not_found("no such pod"));
            };
            let log = Path::new(&pod.config.log_directory).join(&config.log_path);
            let id = model.id();
            let container = FakeContainer {
                pod: request.pod_sandbox_id,
                config,
                log,
                state: ContainerState::ContainerCreated,
                exit_code: 0,
                created_at: now(),
            };
            model.containers.insert(id.clone(), container);
            Ok(Response::new(CreateContainerResponse { container_id: id }))
        }

        async fn start_container(&self, request: Request<StartContainerRequest>) -> Answer<StartContainerResponse> {
            let mut model = self.begin("StartContainer")?;
            let id = request.into_inner().container_id;
            let container = model.containers.get_mut(&id).ok_or_else(|| Status::not_found("no such container"))?;
            let words = [&container.config.command[..], &container.config.args[..]].concat();
            if words.first().is_some_and(|word| word == "fail") {
                return Err(Status::unknown("the runtime said\nno"));
            }
            container.state = ContainerState::ContainerRunning;
            tokio::spawn(self.clone().run(id, words, container.log.clone()));
            Ok(Response::new(StartContainerResponse {}))
        }

        async fn stop_container(&self, request: Request<StopContainerRequest>) -> Answer<StopContainerResponse> {
            let mut model = self.begin("StopContainer")?;
            let request = request.into_inner();
            if let Some(container) = model.containers.get_mut(&request.container_id) {
                stop(container, if request.timeout > 0 { 143 } else { 137 });
            }
            Ok(Response::new(StopContainerResponse {}))
        }

        async fn remove_container(&self, request: Request<RemoveContainerRequest>) -> Answer<RemoveContainerResponse> {
            self.begin("RemoveContainer")?.containers.remove(&request.into_inner().container_id);
            Ok(Response::new(RemoveContainerResponse {}))
        }

        async fn list_containers(&self, request: Request<ListContainersRequest>) -> Answer<ListContainersResponse> {
            let model = self.begin("ListContainers")?;
            let filter = request.into_inner().filter.unwrap_or_default();
            let containers = model
                .containers
                .iter()
                .filter(|(_, container)| {
                    has_labels(&container.config.labels, &filter.label_selector)
                        && (filter.pod_sandbox_id.is_empty() || filter.pod_sandbox_id == container.pod)
                })
                .map(|(id, container)| Container {
                    id: id.clone(),
                    pod_sandbox_id: container.pod.clone(),
                    metadata: container.config.metadata.clone(),
                    image: container.config.image.clone(),
                    state: container.state.into(),
                    created_at: container.created_at,
                    labels: container.config.labels.clone(),
                    ..Default::default()
                })
                .collect();
            Ok(Response::new(ListContainersResponse { containers }))
        }

        async fn container_status(&self, request: Request<ContainerStatusRequest>) -> Answer<ContainerStatusResponse> {
            let model = self.begin("ContainerStatus")?;
            let request = request.into_inner();
            let container =
                model.containers.get(&request.container_id).ok_or_else(|| Status::not_found("no such container"))?;
            let mut answer = ContainerStatusResponse {
                status: Some(ContainerStatus {
                    id: request.container_id,
                    metadata: container.config.metadata.clone(),
                    image: container.config.image.clone(),
                    state: container.state.into(),
                    created_at: container.created_at,
                    exit_code: container.exit_code,
                    log_path: container.log.to_string_lossy().into_owned(),
                    ..Default::default()
                }),
                ..Default::default()
            };
            if request.verbose {
                answer.info.insert("info".into(), r#"{"pid": 8}"#.into());
            }
            Ok(Response::new(answer))
        }

        async fn exec_sync(&self, request: Request<ExecSyncRequest>) -> Answer<ExecSyncResponse> {
            let model = self.begin("ExecSync")?;
            let request = request.into_inner();
            let container =
                model.containers.get(&request.container_id).ok_or_else(|| Status::not_found("no such container"))?;
            if container.state != ContainerState::ContainerRunning {
                return Err(Status::not_found("the container is not running"));
            }
            let mut answer = ExecSyncResponse::default();
            match request.cmd[0].as_str() {
                "echo" => answer.stdout = request.cmd[1..].join(" ").into_bytes(),
                "exit" => {
                    answer.stderr = b"leaving".to_vec();
                    answer.exit_code = request.cmd[1].parse().unwrap();
                }
                "true" => {}
                _ => answer.exit_code = 127,
            }
            Ok(Response::new(answer))
        }
    }
    stream_pod_sandboxes: StreamPodSandboxesRequest => Self::StreamPodSandboxesStream;
    stream_containers: StreamContainersRequest => Self::StreamContainersStream;
    stream_container_stats: StreamContainerStatsRequest => Self::StreamContainerStatsStream;
    stream_pod_sandbox_stats: StreamPodSandboxStatsRequest => Self::StreamPodSandboxStatsStream;
    stream_pod_sandbox_metrics: StreamPodSandboxMetricsRequest => Self::StreamPodSandboxMetricsStream;
    get_container_events: GetEventsRequest => Self::GetContainerEventsStream;
    update_container_resources: UpdateContainerResourcesRequest => UpdateContainerResourcesResponse;
    reopen_container_log: ReopenContainerLogRequest => ReopenContainerLogResponse;
    exec: ExecRequest => ExecResponse;
    attach: AttachRequest => AttachResponse;
    port_forward: PortForwardRequest => PortForwardResponse;
    container_stats: ContainerStatsRequest => ContainerStatsResponse;
    pod_sandbox_stats: PodSandboxStatsRequest => PodSandboxStatsResponse;
    list_pod_sandbox_stats: ListPodSandboxStatsRequest => ListPodSandboxStatsResponse;
    update_runtime_config: UpdateRuntimeConfigRequest => UpdateRuntimeConfigResponse;
    checkpoint_container: CheckpointContainerRequest => CheckpointContainerResponse;
    list_metric_descriptors: ListMetricDescriptorsRequest => ListMetricDescriptorsResponse;
    list_pod_sandbox_metrics: ListPodSandboxMetricsRequest => ListPodSandboxMetricsResponse;
    runtime_config: RuntimeConfigRequest => RuntimeConfigResponse;
    update_pod_sandbox_resources: UpdatePodSandboxResourcesRequest => UpdatePodSandboxResourcesResponse;
}

fn image(name: &str) -> Image {
    Image {
        id: format!("sha256:{:0>64}", name.len()),
        repo_tags: vec![name.to_owned()],
        size: 1234,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl ImageService for Service {
    type StreamImagesStream = Chunks<StreamImagesResponse>;

    async fn list_images(&self, _: Request<ListImagesRequest>) -> Answer<ListImagesResponse> {
        let model = self.begin("ListImages")?;
        Ok(Response::new(ListImagesResponse { images: model.images.iter().map(|name| image(name)).collect() }))
    }

    async fn stream_images(&self, _: Request<StreamImagesRequest>) -> Answer<Self::StreamImagesStream> {
        Err(Status::unimplemented("stream_images"))
    }

    async fn image_status(&self, request: Request<ImageStatusRequest>) -> Answer<ImageStatusResponse> {
        let model = self.begin("ImageStatus")?;
        let name = request.into_inner().image.unwrap_or_default().image;
        let image = model.images.contains(&name).then(|| image(&name));
        Ok(Response::new(ImageStatusResponse { image, ..Default::default() }))
    }

    async fn pull_image(&self, request: Request<PullImageRequest>) -> Answer<PullImageResponse> {
        let mut model = self.begin("PullImage")?;
        let name = request.into_inner().image.unwrap_or_default().image;
        if name.starts_with("nowhere/") {
            return Err(Status::unknown("no such registry"));
        }
        model.images.insert(name.clone());
        Ok(Response::new(PullImageResponse { image_ref: format!("{name}@sha256:00") }))
    }

    async fn remove_image(&self, request: Request<RemoveImageRequest>) -> Answer<RemoveImageResponse> {
        self.begin("RemoveImage")?.images.remove(&request.into_inner().image.unwrap_or_default().image);
        Ok(Response::new(RemoveImageResponse {}))
    }

    async fn image_fs_info(&self, _: Request<ImageFsInfoRequest>) -> Answer<ImageFsInfoResponse> {
        Err(Status::unimplemented("image_fs_info"))
    }
}
