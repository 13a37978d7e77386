//! One engine under measurement: its clients and the requests it gets.

use std::future::Future;
use std::path::Path;
use std::time::{Duration, Instant};

use cri_api::v1::image_service_client::ImageServiceClient;
use cri_api::v1::runtime_service_client::RuntimeServiceClient;
use cri_api::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatsFilter, CreateContainerRequest, ExecSyncRequest, ImageSpec,
    ImageStatusRequest, LinuxContainerConfig, LinuxContainerSecurityContext, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, ListContainerStatsRequest, ListPodSandboxStatsRequest, NamespaceMode, NamespaceOption,
    PodSandboxConfig, PodSandboxMetadata, PodSandboxStatsFilter, PullImageRequest, RemovePodSandboxRequest,
    RunPodSandboxRequest, SecurityProfile, StartContainerRequest, StopPodSandboxRequest, VersionRequest,
    security_profile,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status};

use crate::arguments::{Arguments, Seccomp};
use crate::error::BenchError;

/// Label on everything made; its value is the run's own.
pub(crate) const RUN_LABEL: &str = "cri-bench.run";

/// A list of a thousand pods stays far below this, and CRI engines use the same limit.
const MESSAGE_MAX_BYTES: usize = 80 << 20;

/// Nobody waits longer for a local socket.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Pulling from a slow registry is no fault of the engine.
const PULL_TIMEOUT: Duration = Duration::from_secs(1800);

/// One engine.
#[derive(Debug, Clone)]
pub(crate) struct Engine {
    /// "ours" or "peer".
    pub(crate) name: &'static str,
    /// Name and version it gives itself.
    pub(crate) version: String,
    /// Its daemon.
    pub(crate) pid: Option<u32>,
    /// Value of [`RUN_LABEL`].
    pub(crate) run: String,
    pub(crate) runtime: RuntimeServiceClient<Channel>,
    image_service: ImageServiceClient<Channel>,
    handler: String,
    timeout: Duration,
}

/// A pod with one container.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) sandbox: String,
    pub(crate) container: String,
}

/// Of what statistics are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Statistics {
    /// ListContainerStats.
    Containers,
    /// ListPodSandboxStats.
    Sandboxes,
}

/// How long each step of a start took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StartTimes {
    pub(crate) run_sandbox: Duration,
    pub(crate) create: Duration,
    pub(crate) start_container: Duration,
}

/// How long each step of a removal took.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RemoveTimes {
    pub(crate) stop_sandbox: Duration,
    pub(crate) remove_sandbox: Duration,
}

/// Connects to the engines named, and sees that they have the image.
pub(crate) async fn connect_all(arguments: &Arguments) -> Result<Vec<Engine>, BenchError> {
    let mut engines = vec![connect("ours", &arguments.ours, arguments.pid, &arguments.handler, arguments).await?];
    if let Some(peer) = &arguments.peer {
        engines.push(connect("peer", peer, arguments.peer_pid, &arguments.peer_handler, arguments).await?);
    }
    for engine in &engines {
        engine.ensure_image(&arguments.image, arguments.pull).await?;
    }
    Ok(engines)
}

async fn connect(
    name: &'static str,
    endpoint: &str,
    pid: Option<u32>,
    handler: &str,
    arguments: &Arguments,
) -> Result<Engine, BenchError> {
    let url = if endpoint.starts_with('/') { format!("unix://{endpoint}") } else { endpoint.to_owned() };
    let channel = Endpoint::from_shared(url)
        .map_err(|source| BenchError::Endpoint { engine: name, endpoint: endpoint.to_owned(), source })?
        .connect_timeout(CONNECT_TIMEOUT)
        .connect()
        .await
        .map_err(|source| BenchError::Connect { engine: name, endpoint: endpoint.to_owned(), source })?;
    let mut engine = Engine {
        name,
        version: String::new(),
        pid,
        run: format!("{}-{name}", std::process::id()),
        runtime: RuntimeServiceClient::new(channel.clone()).max_decoding_message_size(MESSAGE_MAX_BYTES),
        image_service: ImageServiceClient::new(channel),
        handler: handler.to_owned(),
        timeout: arguments.timeout(),
    };
    let mut runtime = engine.runtime.clone();
    let (version, _) = engine
        .timed("Version", engine.timeout, VersionRequest::default(), async move |r| runtime.version(r).await)
        .await?;
    engine.version = format!("{} {}", version.runtime_name, version.runtime_version);
    Ok(engine)
}

impl Engine {
    /// Makes one request and says how long it took, the connection included.
    pub(crate) async fn timed<Q, A, F>(
        &self,
        request: &'static str,
        timeout: Duration,
        message: Q,
        call: impl FnOnce(Request<Q>) -> F,
    ) -> Result<(A, Duration), BenchError>
    where
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut message = Request::new(message);
        message.set_timeout(timeout);
        let begin = Instant::now();
        let answer = call(message).await;
        let took = begin.elapsed();
        match answer {
            Ok(answer) => Ok((answer.into_inner(), took)),
            Err(status) => Err(BenchError::Request { engine: self.name, request, status: Box::new(status) }),
        }
    }

    async fn ensure_image(&self, image: &str, pull: bool) -> Result<(), BenchError> {
        let spec = ImageSpec { image: image.to_owned(), ..Default::default() };
        let mut service = self.image_service.clone();
        let question = ImageStatusRequest { image: Some(spec.clone()), ..Default::default() };
        let (status, _) =
            self.timed("ImageStatus", self.timeout, question, async move |r| service.image_status(r).await).await?;
        match (status.image, pull) {
            (Some(_), _) => Ok(()),
            (None, false) => Err(BenchError::ImageMissing { engine: self.name, image: image.to_owned() }),
            (None, true) => {
                let mut service = self.image_service.clone();
                let order = PullImageRequest { image: Some(spec), ..Default::default() };
                self.timed("PullImage", PULL_TIMEOUT, order, async move |r| service.pull_image(r).await).await?;
                Ok(())
            }
        }
    }

    /// Runs a sandbox and a container in it. `number` makes names unique within the run.
    pub(crate) async fn start_pod(
        &self,
        number: u32,
        arguments: &Arguments,
        logs: &Path,
    ) -> Result<(Pod, StartTimes), BenchError> {
        let config = self.sandbox_config(number, arguments, logs);
        let mut runtime = self.runtime.clone();
        let order = RunPodSandboxRequest { config: Some(config.clone()), runtime_handler: self.handler.clone() };
        let (made, run_sandbox) =
            self.timed("RunPodSandbox", self.timeout, order, async move |r| runtime.run_pod_sandbox(r).await).await?;

        let mut runtime = self.runtime.clone();
        let order = CreateContainerRequest {
            pod_sandbox_id: made.pod_sandbox_id.clone(),
            config: Some(self.container_config(arguments)),
            sandbox_config: Some(config),
        };
        let (created, create) = self
            .timed("CreateContainer", self.timeout, order, async move |r| runtime.create_container(r).await)
            .await?;

        let mut runtime = self.runtime.clone();
        let order = StartContainerRequest { container_id: created.container_id.clone() };
        let (_, start_container) =
            self.timed("StartContainer", self.timeout, order, async move |r| runtime.start_container(r).await).await?;
        let pod = Pod { sandbox: made.pod_sandbox_id, container: created.container_id };
        Ok((pod, StartTimes { run_sandbox, create, start_container }))
    }

    /// Stops and removes a sandbox with all its containers.
    pub(crate) async fn remove_pod(&self, sandbox: &str) -> Result<RemoveTimes, BenchError> {
        let mut runtime = self.runtime.clone();
        let order = StopPodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        let (_, stop_sandbox) =
            self.timed("StopPodSandbox", self.timeout, order, async move |r| runtime.stop_pod_sandbox(r).await).await?;
        let mut runtime = self.runtime.clone();
        let order = RemovePodSandboxRequest { pod_sandbox_id: sandbox.to_owned() };
        let (_, remove_sandbox) = self
            .timed("RemovePodSandbox", self.timeout, order, async move |r| runtime.remove_pod_sandbox(r).await)
            .await?;
        Ok(RemoveTimes { stop_sandbox, remove_sandbox })
    }

    /// Asks for statistics of everything of this run.
    pub(crate) async fn list_stats(&self, of: Statistics) -> Result<Duration, BenchError> {
        let mut runtime = self.runtime.clone();
        let label_selector = [(RUN_LABEL.to_owned(), self.run.clone())].into();
        match of {
            Statistics::Containers => {
                let filter = Some(ContainerStatsFilter { label_selector, ..Default::default() });
                let question = ListContainerStatsRequest { filter };
                let call = async move |request| runtime.list_container_stats(request).await;
                Ok(self.timed("ListContainerStats", self.timeout, question, call).await?.1)
            }
            Statistics::Sandboxes => {
                let filter = Some(PodSandboxStatsFilter { label_selector, ..Default::default() });
                let question = ListPodSandboxStatsRequest { filter };
                let call = async move |request| runtime.list_pod_sandbox_stats(request).await;
                Ok(self.timed("ListPodSandboxStats", self.timeout, question, call).await?.1)
            }
        }
    }

    /// Runs a program in a container; that it fails is an error.
    pub(crate) async fn exec(&self, container: &str, program: &str) -> Result<Duration, BenchError> {
        let mut runtime = self.runtime.clone();
        let order = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: vec![program.to_owned()],
            // Whole seconds on the wire; 0 would mean no bound.
            timeout: i64::try_from(self.timeout.as_secs()).unwrap_or(i64::MAX),
        };
        let (answer, took) =
            self.timed("ExecSync", self.timeout, order, async move |r| runtime.exec_sync(r).await).await?;
        if answer.exit_code == 0 {
            return Ok(took);
        }
        Err(BenchError::ExecFailed {
            engine: self.name,
            program: program.to_owned(),
            exit_code: answer.exit_code,
            stderr: String::from_utf8_lossy(&answer.stderr).trim_end().to_owned(),
        })
    }

    fn sandbox_config(&self, number: u32, arguments: &Arguments, logs: &Path) -> PodSandboxConfig {
        let name = format!("bench-{}-{number}", self.run);
        let network = if arguments.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        PodSandboxConfig {
            hostname: if arguments.host_network { String::new() } else { format!("bench-{number}") },
            log_directory: logs.join(&name).to_string_lossy().into_owned(),
            labels: [(RUN_LABEL.to_owned(), self.run.clone())].into(),
            metadata: Some(PodSandboxMetadata {
                uid: format!("{name}-uid"),
                namespace: "cri-bench".to_owned(),
                attempt: 0,
                name,
            }),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: arguments.cgroup_parent.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        network: network.into(),
                        pid: NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    seccomp: Some(seccomp(arguments.seccomp)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container_config(&self, arguments: &Arguments) -> ContainerConfig {
        let network = if arguments.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        ContainerConfig {
            metadata: Some(ContainerMetadata { name: "bench".to_owned(), attempt: 0 }),
            image: Some(ImageSpec { image: arguments.image.clone(), ..Default::default() }),
            command: arguments.command.clone(),
            log_path: "bench.log".to_owned(),
            labels: [(RUN_LABEL.to_owned(), self.run.clone())].into(),
            linux: Some(LinuxContainerConfig {
                security_context: Some(LinuxContainerSecurityContext {
                    namespace_options: Some(NamespaceOption {
                        network: network.into(),
                        pid: NamespaceMode::Container.into(),
                        ..Default::default()
                    }),
                    seccomp: Some(seccomp(arguments.seccomp)),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

fn seccomp(profile: Seccomp) -> SecurityProfile {
    let profile_type = match profile {
        Seccomp::Unconfined => security_profile::ProfileType::Unconfined,
        Seccomp::RuntimeDefault => security_profile::ProfileType::RuntimeDefault,
    };
    SecurityProfile { profile_type: profile_type.into(), localhost_ref: String::new() }
}
