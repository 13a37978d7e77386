//! `run`: a pod and its only container in one go.
//!
//! Steps: image present or pulled → log directory → RunPodSandbox → CreateContainer → StartContainer → output followed →
//! exit status. A failure or an interruption before the start removes the pod and the directory again. The pod bears a
//! label, by which `stop` and `rm` later treat pod and container as one, and by which an interrupted `run` finds a pod
//! whose id it never learned.

use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri_api::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig,
    LinuxContainerSecurityContext, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, ListPodSandboxRequest,
    NamespaceMode, NamespaceOption, PodSandbox, PodSandboxConfig, PodSandboxFilter, PodSandboxMetadata,
    RunPodSandboxRequest, SecurityProfile, StartContainerRequest, security_profile::ProfileType,
};
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinSet;

use crate::arguments::{Output, PullPolicy, RunArguments};
use crate::client::Client;
use crate::commands::{Session, exit_status, follow, is_present, pull_with_progress, remove_pod_of_run};
use crate::error::{CallError, CommandError, chain};
use crate::log_file::LogSink;
use crate::run_options::User;

/// Label of pods made by `run`; its value is the pod's uid.
pub(crate) const RUN_LABEL: &str = "io.crioctl.run";
/// Annotation that holds the log directory `run` made.
const LOG_ANNOTATION: &str = "io.crioctl.log-directory";
/// The file of the first attempt, as the kubelet names it; rotated ones begin with it.
const LOG_NAME: &str = "0.log";
/// Exit status after Ctrl-C before the container ran.
const INTERRUPTED: u8 = 130;
/// What a container gets between the stop signal and SIGKILL after Ctrl-C.
const GRACE_SECONDS: u32 = 10;
/// How long an engine may take to show, or drop, a pod whose making was interrupted; looked at so many times.
const SETTLE: Duration = Duration::from_millis(300);
const SETTLE_LOOKS: u32 = 20;

/// Everything decided before the engine is asked for anything.
struct Plan {
    image: String,
    pull: PullPolicy,
    runtime_handler: String,
    uid: String,
    sandbox: PodSandboxConfig,
    container: ContainerConfig,
    log_directory: PathBuf,
    log_path: PathBuf,
}

struct Made {
    sandbox: String,
    container: String,
}

/// Runs a container; returns its exit status, or 0 when detached.
pub(crate) async fn run(session: &Session, arguments: RunArguments) -> Result<u8, CommandError> {
    let mut signals = Signals::install()?;
    let (detach, remove) = (arguments.detach, arguments.rm);
    let plan = Plan::new(arguments)?;
    let client = &session.client;
    let made = tokio::select! {
        made = start(client, &plan) => Some(made),
        () = signals.next() => None,
    };
    let made = match made {
        Some(Ok(made)) => made,
        Some(Err(error)) => {
            undo(client, &plan, 1).await;
            return Err(error);
        }
        None => {
            undo(client, &plan, SETTLE_LOOKS).await;
            return Ok(INTERRUPTED);
        }
    };
    if detach {
        match session.output {
            Output::Table => session.print(&format!("{}\n", made.container))?,
            Output::Json => {
                session.print_json(&json!({"podSandboxId": made.sandbox, "containerId": made.container}))?
            }
        }
        return Ok(0);
    }
    let ended = attend(client, &made.container, &plan.log_path, &mut signals).await;
    if remove {
        let removed = match find_pods(client, &plan.uid).await {
            Ok(pods) => remove_all(client, &pods).await,
            Err(error) => Err(error),
        };
        // How the program ended matters more than what could not be swept up; both are told.
        if let (Ok(_), Err(error)) = (&ended, &removed) {
            eprintln!("crioctl: {}", chain(error));
        }
    }
    ended
}

/// Image, directory, pod, container, start.
async fn start(client: &Client, plan: &Plan) -> Result<Made, CommandError> {
    let is_present = is_present(client, &plan.image).await?;
    match (plan.pull, is_present) {
        (PullPolicy::Missing | PullPolicy::Never, true) => {}
        (PullPolicy::Never, false) => return Err(CommandError::ImageMissing { image: plan.image.clone() }),
        (PullPolicy::Always, _) | (PullPolicy::Missing, false) => {
            pull_with_progress(client, &plan.image, None).await?;
        }
    }
    // Not every engine makes the directory of the container's log; the kubelet does it for its pods.
    if let Some(directory) = plan.log_path.parent() {
        std::fs::create_dir_all(directory)
            .map_err(|source| CommandError::MakeLogDirectory { path: directory.to_owned(), source })?;
    }
    let order =
        RunPodSandboxRequest { config: Some(plan.sandbox.clone()), runtime_handler: plan.runtime_handler.clone() };
    let sandbox = client.run_pod_sandbox(order).await?.pod_sandbox_id;
    let order = CreateContainerRequest {
        pod_sandbox_id: sandbox.clone(),
        config: Some(plan.container.clone()),
        sandbox_config: Some(plan.sandbox.clone()),
    };
    let container = client.create_container(order).await?.container_id;
    client.start_container(StartContainerRequest { container_id: container.clone() }).await?;
    Ok(Made { sandbox, container })
}

/// Removes what an incomplete start left, which is looked for up to `looks` times.
async fn undo(client: &Client, plan: &Plan, looks: u32) {
    for look in 0..looks {
        let outcome = match find_pods(client, &plan.uid).await {
            Ok(pods) if pods.is_empty() => Ok(false),
            Ok(pods) => remove_all(client, &pods).await.map(|()| true),
            Err(error) => Err(error),
        };
        match outcome {
            Ok(true) => break,
            Ok(false) if look + 1 < looks => tokio::time::sleep(SETTLE).await,
            Ok(false) => {}
            Err(error) => {
                eprintln!("crioctl: {}", chain(&error));
                break;
            }
        }
    }
    // Where no pod was made there is still the directory.
    if let Err(error) = remove_log_files(&plan.log_directory, &container_name(&plan.container)) {
        eprintln!("crioctl: {}", chain(&error));
    }
}

async fn find_pods(client: &Client, uid: &str) -> Result<Vec<PodSandbox>, CommandError> {
    let filter =
        PodSandboxFilter { label_selector: [(RUN_LABEL.to_owned(), uid.to_owned())].into(), ..Default::default() };
    Ok(client.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?.items)
}

async fn remove_all(client: &Client, pods: &[PodSandbox]) -> Result<(), CommandError> {
    for pod in pods {
        remove_pod_of_run(client, pod).await?;
    }
    Ok(())
}

/// Follows the output to the end. The first Ctrl-C stops the container, the second kills it, the third gives up.
async fn attend(client: &Client, id: &str, log_path: &Path, signals: &mut Signals) -> Result<u8, CommandError> {
    let mut sink = LogSink::new(BufWriter::new(std::io::stdout()), std::io::stderr(), false);
    let mut following = std::pin::pin!(follow(client, id, log_path, None, &mut sink));
    let mut stops: JoinSet<Result<(), CallError>> = JoinSet::new();
    let mut graces = [GRACE_SECONDS, 0].into_iter();
    loop {
        tokio::select! {
            ended = &mut following => return ended.map(|status| exit_status(status.exit_code)),
            Some(Ok(Err(error))) = stops.join_next() => eprintln!("crioctl: {}", chain(&error)),
            () = signals.next() => {
                let Some(grace) = graces.next() else { return Ok(INTERRUPTED) };
                let (client, id) = (client.clone(), id.to_owned());
                stops.spawn(async move { client.stop_container(&id, grace).await.map(drop) });
            }
        }
    }
}

/// Removes the log directory of a pod that `run` made, if it is the one `run` would have made.
pub(crate) fn remove_log_directory(pod: &PodSandbox) -> Result<(), CommandError> {
    let metadata = pod.metadata.clone().unwrap_or_default();
    let Some(directory) = pod.annotations.get(LOG_ANNOTATION).map(Path::new) else { return Ok(()) };
    // An annotation is anybody's to write; the name must be the pod's own.
    if !directory.is_absolute() || !directory.ends_with(log_directory_name(&metadata)) {
        return Ok(());
    }
    remove_log_files(directory, &metadata.name)
}

fn log_directory_name(metadata: &PodSandboxMetadata) -> String {
    format!("{}_{}_{}", metadata.namespace, metadata.name, metadata.uid)
}

/// Removes log files and the two directories that held them. Whatever else lies there stays, and so do they.
fn remove_log_files(directory: &Path, container: &str) -> Result<(), CommandError> {
    let inner = directory.join(container);
    let fails = |path: &Path| {
        let path = path.to_owned();
        move |source| CommandError::RemoveLogDirectory { path, source }
    };
    match std::fs::read_dir(&inner) {
        Ok(entries) => {
            for entry in entries {
                let entry = entry.map_err(fails(&inner))?;
                if entry.file_name().as_encoded_bytes().starts_with(LOG_NAME.as_bytes()) {
                    absent_is_removed(std::fs::remove_file(entry.path())).map_err(fails(&entry.path()))?;
                }
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(source) => return Err(fails(&inner)(source)),
    }
    for path in [inner.as_path(), directory] {
        absent_is_removed(std::fs::remove_dir(path)).map_err(fails(path))?;
    }
    Ok(())
}

fn absent_is_removed(outcome: std::io::Result<()>) -> std::io::Result<()> {
    match outcome {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        outcome => outcome,
    }
}

fn container_name(config: &ContainerConfig) -> String {
    config.metadata.clone().unwrap_or_default().name
}

impl Plan {
    fn new(arguments: RunArguments) -> Result<Self, CommandError> {
        let uuid = std::fs::read_to_string("/proc/sys/kernel/random/uuid").map_err(CommandError::Random)?;
        let uid = uuid.trim().to_owned();
        if !arguments.log_root.is_absolute() {
            return Err(CommandError::LogRoot { path: arguments.log_root });
        }
        if let Some(missing) = arguments.volumes.iter().find(|volume| !Path::new(&volume.0.host_path).exists()) {
            return Err(CommandError::NoSuchVolume { path: missing.0.host_path.clone().into() });
        }
        Ok(Self::of(arguments, uid, |name| std::env::var(name).ok()))
    }

    /// The pure part: `uid` is random, `inherited` the client's environment.
    fn of(arguments: RunArguments, uid: String, inherited: impl Fn(&str) -> Option<String>) -> Self {
        let name = arguments.name.unwrap_or_else(|| default_name(&arguments.image, &uid));
        let metadata =
            PodSandboxMetadata { name: name.clone(), uid: uid.clone(), namespace: arguments.namespace, attempt: 0 };
        let log_directory = arguments.log_root.join(log_directory_name(&metadata));
        let log_name = format!("{name}/{LOG_NAME}");
        let mut labels: std::collections::HashMap<String, String> =
            arguments.labels.into_iter().map(|label| (label.name, label.value)).collect();
        labels.insert(RUN_LABEL.to_owned(), uid.clone());
        let network = if arguments.host_network { NamespaceMode::Node } else { NamespaceMode::Pod };
        let namespaces = NamespaceOption {
            network: network.into(),
            pid: NamespaceMode::Container.into(),
            ipc: NamespaceMode::Pod.into(),
            ..Default::default()
        };
        let profile = if arguments.privileged { ProfileType::Unconfined } else { ProfileType::RuntimeDefault };
        let seccomp = SecurityProfile { profile_type: profile.into(), localhost_ref: String::new() };
        let hostname = match arguments.hostname {
            _ if arguments.host_network => String::new(),
            Some(hostname) => hostname,
            None => name.clone(),
        };
        let mut security = LinuxContainerSecurityContext {
            namespace_options: Some(namespaces.clone()),
            privileged: arguments.privileged,
            readonly_rootfs: arguments.read_only,
            seccomp: Some(seccomp.clone()),
            ..Default::default()
        };
        match arguments.user {
            None => {}
            Some(User::Ids { uid, gid }) => {
                security.run_as_user = Some(Int64Value { value: uid });
                security.run_as_group = gid.map(|value| Int64Value { value });
            }
            Some(User::Name(name)) => security.run_as_username = name,
        }
        let envs = arguments
            .env
            .into_iter()
            .filter_map(|variable| {
                let value = variable.value.or_else(|| inherited(&variable.name))?;
                Some(KeyValue { key: variable.name, value: value.into_bytes() })
            })
            .collect();
        let sandbox = PodSandboxConfig {
            metadata: Some(metadata),
            hostname,
            log_directory: log_directory.to_string_lossy().into_owned(),
            port_mappings: arguments.ports.into_iter().map(|port| port.0).collect(),
            labels: labels.clone(),
            annotations: [(LOG_ANNOTATION.to_owned(), log_directory.to_string_lossy().into_owned())].into(),
            linux: Some(LinuxPodSandboxConfig {
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespaces),
                    privileged: arguments.privileged,
                    seccomp: Some(seccomp),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let container = ContainerConfig {
            metadata: Some(ContainerMetadata { name, attempt: 0 }),
            image: Some(ImageSpec {
                image: arguments.image.clone(),
                user_specified_image: arguments.image.clone(),
                ..Default::default()
            }),
            command: arguments.entrypoint.into_iter().collect(),
            args: arguments.command,
            working_dir: arguments.workdir,
            envs,
            mounts: arguments.volumes.into_iter().map(|volume| volume.0).collect(),
            labels,
            log_path: log_name.clone(),
            linux: Some(LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
            ..Default::default()
        };
        Self {
            image: arguments.image,
            pull: arguments.pull,
            runtime_handler: arguments.runtime_handler,
            uid,
            sandbox,
            container,
            log_path: log_directory.join(log_name),
            log_directory,
        }
    }
}

/// The last part of the image's name, made fit for a host name, and enough digits to tell runs apart.
fn default_name(image: &str, uid: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or_default();
    let base: String = last
        .split(['@', ':'])
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase()
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
        .take(40)
        .collect();
    let base = base.trim_matches('-');
    let digits = uid.get(..6).unwrap_or(uid);
    if base.is_empty() { format!("run-{digits}") } else { format!("{base}-{digits}") }
}

/// Ctrl-C and its kind.
struct Signals {
    interrupt: Signal,
    terminate: Signal,
}

impl Signals {
    fn install() -> Result<Self, CommandError> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(CommandError::Signals)?,
            terminate: signal(SignalKind::terminate()).map_err(CommandError::Signals)?,
        })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::arguments::{Cli, Command};

    fn plan(line: &str) -> Plan {
        let cli = Cli::parse_from(["crioctl", "run"].into_iter().chain(line.split_whitespace()));
        let Command::Run(arguments) = cli.command else { panic!("not run") };
        Plan::of(*arguments, "0123456789ab".to_owned(), |name| (name == "HAVE").then(|| "it".to_owned()))
    }

    #[test]
    fn default_names() {
        let cases = [
            ("busybox", "busybox-012345"),
            ("r:5000/a/Nginx:1.14-2", "nginx-012345"),
            ("r/a/b_c.d@sha256:00", "b-c-d-012345"),
            ("sha256:0123", "sha256-012345"),
            ("/", "run-012345"),
        ];
        for (image, expected) in cases {
            assert_eq!(default_name(image, "0123456789ab"), expected);
        }
    }

    #[test]
    fn plans() {
        let plan = plan(
            "--name n --namespace s -p 1:2/udp -e A=b -e HAVE -e LACK -v /:/h:ro -l k=v -u 7:8 --entrypoint /e \
             --log-root /l img a -b",
        );
        assert_eq!(plan.sandbox.log_directory, "/l/s_n_0123456789ab");
        assert_eq!(plan.log_path, Path::new("/l/s_n_0123456789ab/n/0.log"));
        assert_eq!((plan.sandbox.hostname.as_str(), plan.sandbox.port_mappings[0].container_port), ("n", 2));
        assert_eq!(plan.sandbox.labels[RUN_LABEL], plan.uid);
        assert_eq!(plan.container.labels["k"], "v");
        assert_eq!(
            (&plan.container.command[..], &plan.container.args[..]),
            (&["/e".to_owned()][..], &["a".to_owned(), "-b".to_owned()][..])
        );
        let envs: Vec<_> = plan.container.envs.iter().map(|env| (env.key.as_str(), env.value.as_slice())).collect();
        assert_eq!(envs, [("A", &b"b"[..]), ("HAVE", b"it")]);
        let security = plan.container.linux.unwrap().security_context.unwrap();
        assert_eq!(security.run_as_user.unwrap().value, 7);
        assert_eq!(security.run_as_group.unwrap().value, 8);
        assert_eq!(security.seccomp.unwrap().profile_type(), ProfileType::RuntimeDefault);
    }

    #[test]
    fn host_network_has_no_hostname() {
        let plan = plan("--host-network --privileged img");
        let security = plan.sandbox.linux.unwrap().security_context.unwrap();
        assert_eq!(plan.sandbox.hostname, "");
        assert_eq!(security.namespace_options.unwrap().network(), NamespaceMode::Node);
        assert!(security.privileged);
    }

    #[test]
    fn log_files_go_and_strangers_stay() {
        let root = tempfile::tempdir().unwrap();
        let plan = plan(&format!("--name n --log-root {} img", root.path().display()));
        let make = |name: &str| {
            std::fs::create_dir_all(plan.log_directory.join("n")).unwrap();
            std::fs::File::create(plan.log_directory.join("n").join(name)).unwrap();
        };
        let pod = PodSandbox {
            metadata: plan.sandbox.metadata.clone(),
            annotations: plan.sandbox.annotations.clone(),
            ..Default::default()
        };
        make("0.log");
        make("0.log.20260101-000000.gz");
        remove_log_directory(&pod).unwrap();
        assert!(!plan.log_directory.exists());
        remove_log_directory(&pod).unwrap();

        make("0.log");
        make("theirs");
        assert!(remove_log_directory(&pod).is_err());
        assert!(plan.log_directory.join("n/theirs").exists() && !plan.log_directory.join("n/0.log").exists());

        let elsewhere =
            PodSandbox { annotations: [(LOG_ANNOTATION.to_owned(), root.path().display().to_string())].into(), ..pod };
        remove_log_directory(&elsewhere).unwrap();
        assert!(root.path().exists());
    }
}
