//! Verbs about containers.

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;

use cri_api::v1::{
    Container, ContainerFilter, ContainerState, ContainerStatus, ContainerStatusRequest, CreateContainerRequest,
    ExecSyncRequest, ImageSpec, ListContainersRequest, PodSandbox, PodSandboxConfig, RemoveContainerRequest,
    StartContainerRequest, StopPodSandboxRequest,
};
use serde_json::json;

use super::Session;
use super::pods::{self, find_pod, pairs, remove_pod_of_run, selector};
use crate::arguments::{ContainerListArguments, ExecSyncArguments, Output};
use crate::client::Client;
use crate::config_file;
use crate::error::{CallError, CommandError};
use crate::find::{Candidate, find};
use crate::message_json::{to_json, to_json_with_info};
use crate::run::RUN_LABEL;
use crate::table::{TextTable, age, now, short_id, state, text, time};

/// For exit codes that no process can end with; engines report -1 for an unknown one.
const ODD_EXIT: u8 = 255;

/// An exit code as an exit status.
pub(crate) fn exit_status(exit_code: i32) -> u8 {
    u8::try_from(exit_code).unwrap_or(ODD_EXIT)
}

/// The container a person means.
pub(super) async fn find_container(client: &Client, wanted: &str) -> Result<Container, CommandError> {
    let mut containers = client.list_containers(ListContainersRequest::default()).await?.containers;
    let candidates: Vec<Candidate> = containers
        .iter()
        .map(|container| {
            let name = container.metadata.clone().unwrap_or_default().name;
            let group = format!("{}/{name}", container.pod_sandbox_id);
            Candidate { id: container.id.clone(), names: vec![name], group, created_at: container.created_at }
        })
        .collect();
    let id = find("container", wanted, &candidates)?.id.clone();
    let position = containers.iter().position(|container| container.id == id).unwrap_or_default();
    Ok(containers.swap_remove(position))
}

/// The pod of a container, if `run` made it.
async fn pod_of_run(client: &Client, container: &Container) -> Result<Option<PodSandbox>, CommandError> {
    let pods = pods::all(client).await?;
    Ok(pods.into_iter().find(|pod| pod.id == container.pod_sandbox_id && pod.labels.contains_key(RUN_LABEL)))
}

pub(super) fn state_name(state: ContainerState) -> &'static str {
    match state {
        ContainerState::ContainerCreated => "Created",
        ContainerState::ContainerRunning => "Running",
        ContainerState::ContainerExited => "Exited",
        ContainerState::ContainerUnknown => "Unknown",
    }
}

pub(super) async fn list(session: &Session, arguments: &ContainerListArguments, all: bool) -> Result<(), CommandError> {
    let pod = match &arguments.pod {
        Some(pod) => find_pod(&session.client, pod).await?.id,
        None => String::new(),
    };
    let filter =
        ContainerFilter { pod_sandbox_id: pod, label_selector: selector(&arguments.labels), ..Default::default() };
    let mut answer = session.client.list_containers(ListContainersRequest { filter: Some(filter) }).await?;
    if let Some(id) = &arguments.id {
        answer.containers.retain(|container| container.id.starts_with(id.as_str()));
    }
    if !all {
        answer.containers.retain(|container| container.state() == ContainerState::ContainerRunning);
    }
    answer.containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
    if arguments.quiet {
        return session.print(&answer.containers.iter().map(|one| format!("{}\n", one.id)).collect::<String>());
    }
    if session.output == Output::Json {
        return session.print_json(&to_json(&answer));
    }
    let pod_names: HashMap<String, String> = pods::all(&session.client)
        .await?
        .into_iter()
        .map(|pod| (pod.id, pod.metadata.unwrap_or_default().name))
        .collect();
    let now = now();
    let mut table = TextTable::new(&["CONTAINER ID", "IMAGE", "CREATED", "STATE", "NAME", "ATTEMPT", "POD ID", "POD"]);
    for container in &answer.containers {
        let metadata = container.metadata.clone().unwrap_or_default();
        table.add(vec![
            text(short_id(&container.id)),
            text(image_name(container.image.as_ref())),
            text(&age(now, container.created_at)),
            state(state_name(container.state())),
            text(&metadata.name),
            text(&metadata.attempt.to_string()),
            text(short_id(&container.pod_sandbox_id)),
            text(pod_names.get(&container.pod_sandbox_id).map_or("", String::as_str)),
        ]);
    }
    session.print(&table.render())
}

/// What the user asked for, where the engine kept it; ids are shortened.
fn image_name(image: Option<&ImageSpec>) -> &str {
    let Some(image) = image else { return "" };
    match image.user_specified_image.as_str() {
        "" if image.image.starts_with("sha256:") => short_id(&image.image),
        "" => &image.image,
        name => name,
    }
}

pub(super) async fn create(
    session: &Session,
    config: &Path,
    pod: &str,
    pod_config: Option<&Path>,
    name: Option<&str>,
) -> Result<(), CommandError> {
    let config = config_file::load_container(config, name)?;
    let sandbox_config = pod_config.map(|path| config_file::load_pod(path, None)).transpose()?;
    let pod = find_pod(&session.client, pod).await?;
    let pod_sandbox_id = pod.id.clone();
    let sandbox_config = sandbox_config.unwrap_or_else(|| PodSandboxConfig {
        metadata: pod.metadata,
        labels: pod.labels,
        annotations: pod.annotations,
        ..Default::default()
    });
    let order = CreateContainerRequest { pod_sandbox_id, config: Some(config), sandbox_config: Some(sandbox_config) };
    let answer = session.client.create_container(order).await?;
    session.print_id(&answer.container_id)
}

pub(super) async fn start(session: &Session, wanted: &str) -> Result<(), CommandError> {
    let container_id = find_container(&session.client, wanted).await?.id;
    session.client.start_container(StartContainerRequest { container_id: container_id.clone() }).await?;
    session.print_id(&container_id)
}

pub(super) async fn stop_only(session: &Session, wanted: &str, grace: u32) -> Result<(), CommandError> {
    let id = find_container(&session.client, wanted).await?.id;
    session.client.stop_container(&id, grace).await?;
    session.print_id(&id)
}

pub(super) async fn remove_only(session: &Session, wanted: &str) -> Result<(), CommandError> {
    let container_id = find_container(&session.client, wanted).await?.id;
    session.client.remove_container(RemoveContainerRequest { container_id: container_id.clone() }).await?;
    session.print_id(&container_id)
}

pub(super) async fn stop(session: &Session, wanted: &[String], grace: u32) -> Result<(), CommandError> {
    session
        .each(wanted, async |one| {
            let container = find_container(&session.client, one).await?;
            session.client.stop_container(&container.id, grace).await?;
            if let Some(pod) = pod_of_run(&session.client, &container).await? {
                session.client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.id }).await?;
            }
            Ok(())
        })
        .await
}

pub(super) async fn remove(session: &Session, wanted: &[String], force: bool) -> Result<(), CommandError> {
    session
        .each(wanted, async |one| {
            let container = find_container(&session.client, one).await?;
            let is_running = container.state() == ContainerState::ContainerRunning;
            if is_running && !force {
                return Err(CommandError::Running { kind: "container", id: container.id });
            }
            if let Some(pod) = pod_of_run(&session.client, &container).await? {
                return remove_pod_of_run(&session.client, &pod).await;
            }
            if is_running {
                session.client.stop_container(&container.id, 0).await?;
            }
            session.client.remove_container(RemoveContainerRequest { container_id: container.id }).await?;
            Ok(())
        })
        .await
}

/// The state of a container, without the verbose part.
pub(super) async fn container_status(client: &Client, id: &str) -> Result<ContainerStatus, CommandError> {
    let question = ContainerStatusRequest { container_id: id.to_owned(), verbose: false };
    let answer = client.container_status(question).await?;
    Ok(answer.status.ok_or(CallError::Incomplete { request: "ContainerStatus", field: "status" })?)
}

pub(super) async fn status(session: &Session, wanted: &str) -> Result<(), CommandError> {
    let container = find_container(&session.client, wanted).await?;
    if session.output == Output::Json {
        let question = ContainerStatusRequest { container_id: container.id, verbose: true };
        return session.print_json(&to_json_with_info(&session.client.container_status(question).await?));
    }
    let status = container_status(&session.client, &container.id).await?;
    let metadata = status.metadata.clone().unwrap_or_default();
    let has_ended = status.state() == ContainerState::ContainerExited;
    session.print(
        &TextTable::of_pairs(&[
            ("id", status.id.clone()),
            ("name", metadata.name),
            ("attempt", metadata.attempt.to_string()),
            ("pod", container.pod_sandbox_id),
            ("image", image_name(status.image.as_ref()).to_owned()),
            ("image ref", status.image_ref.clone()),
            ("state", state_name(status.state()).to_owned()),
            ("created", time(status.created_at)),
            ("started", time(status.started_at)),
            ("finished", time(status.finished_at)),
            ("exit code", if has_ended { status.exit_code.to_string() } else { String::new() }),
            ("reason", status.reason.clone()),
            ("message", status.message.clone()),
            ("log", status.log_path.clone()),
            ("labels", pairs(&status.labels)),
            ("annotations", pairs(&status.annotations)),
        ])
        .render(),
    )
}

pub(super) async fn exec_sync(session: &Session, arguments: ExecSyncArguments) -> Result<u8, CommandError> {
    let mut words = arguments.words;
    let container = match arguments.id {
        Some(id) => id,
        None => words.remove(0),
    };
    if words.is_empty() {
        return Err(CommandError::NoProgram);
    }
    exec_sync_words(session, &container, words).await
}

/// Runs a program in a container and passes on what it wrote and how it ended.
pub(super) async fn exec_sync_words(session: &Session, wanted: &str, cmd: Vec<String>) -> Result<u8, CommandError> {
    let container_id = find_container(&session.client, wanted).await?.id;
    let order = ExecSyncRequest { container_id, cmd, timeout: session.client.exec_timeout_seconds() };
    let answer = session.client.exec_sync(order).await?;
    if session.output == Output::Json {
        session.print_json(&json!({
            "stdout": String::from_utf8_lossy(&answer.stdout),
            "stderr": String::from_utf8_lossy(&answer.stderr),
            "exitCode": answer.exit_code,
        }))?;
    } else {
        // Bytes as they are: a program's output need not be text.
        let mut stdout = std::io::stdout().lock();
        stdout.write_all(&answer.stdout).and_then(|()| stdout.flush()).map_err(CommandError::Output)?;
        std::io::stderr().write_all(&answer.stderr).map_err(CommandError::Output)?;
    }
    Ok(exit_status(answer.exit_code))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exit_statuses() {
        for (exit_code, expected) in [(0, 0), (1, 1), (137, 137), (255, 255), (256, 255), (-1, 255)] {
            assert_eq!(exit_status(exit_code), expected);
        }
    }

    #[test]
    fn image_names() {
        let spec = |image: &str, user: &str| ImageSpec {
            image: image.to_owned(),
            user_specified_image: user.to_owned(),
            ..Default::default()
        };
        assert_eq!(image_name(Some(&spec("sha256:0123456789abcdef", ""))), "0123456789abc");
        assert_eq!(image_name(Some(&spec("sha256:0123456789abcdef", "a/b:c"))), "a/b:c");
        assert_eq!(image_name(Some(&spec("a/b:c", ""))), "a/b:c");
        assert_eq!(image_name(None), "");
    }
}
