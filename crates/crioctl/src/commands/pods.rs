//! Verbs about pods.

use std::collections::HashMap;
use std::path::Path;

use cri_api::v1::{
    ListPodSandboxRequest, PodSandbox, PodSandboxFilter, PodSandboxMetadata, PodSandboxState, PodSandboxStatus,
    PodSandboxStatusRequest, RemovePodSandboxRequest, RunPodSandboxRequest, StopPodSandboxRequest,
};

use super::Session;
use crate::arguments::{Output, PodListArguments};
use crate::client::Client;
use crate::config_file;
use crate::error::{CallError, CommandError};
use crate::find::{Candidate, find};
use crate::message_json::{to_json, to_json_with_info};
use crate::run::{self, RUN_LABEL};
use crate::run_options::Label;
use crate::table::{TextTable, age, now, short_id, state, text, time};

/// Labels as a selector.
pub(super) fn selector(labels: &[Label]) -> HashMap<String, String> {
    labels.iter().map(|label| (label.name.clone(), label.value.clone())).collect()
}

pub(super) async fn all(client: &Client) -> Result<Vec<PodSandbox>, CommandError> {
    Ok(client.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items)
}

/// The pod a person means.
pub(super) async fn find_pod(client: &Client, wanted: &str) -> Result<PodSandbox, CommandError> {
    let mut pods = all(client).await?;
    let candidates: Vec<Candidate> = pods.iter().map(candidate).collect();
    let id = find("pod", wanted, &candidates)?.id.clone();
    let position = pods.iter().position(|pod| pod.id == id).unwrap_or_default();
    Ok(pods.swap_remove(position))
}

fn candidate(pod: &PodSandbox) -> Candidate {
    let PodSandboxMetadata { name, namespace, .. } = pod.metadata.clone().unwrap_or_default();
    let full = format!("{namespace}/{name}");
    Candidate { id: pod.id.clone(), names: vec![name, full.clone()], group: full, created_at: pod.created_at }
}

pub(super) fn state_name(state: PodSandboxState) -> &'static str {
    match state {
        PodSandboxState::SandboxReady => "Ready",
        PodSandboxState::SandboxNotready => "NotReady",
    }
}

pub(super) async fn list(session: &Session, arguments: &PodListArguments) -> Result<(), CommandError> {
    let filter = PodSandboxFilter { label_selector: selector(&arguments.labels), ..Default::default() };
    let mut answer = session.client.list_pod_sandbox(ListPodSandboxRequest { filter: Some(filter) }).await?;
    if let Some(id) = &arguments.id {
        answer.items.retain(|pod| pod.id.starts_with(id.as_str()));
    }
    answer.items.sort_by_key(|pod| std::cmp::Reverse(pod.created_at));
    if arguments.quiet {
        return session.print(&answer.items.iter().map(|pod| format!("{}\n", pod.id)).collect::<String>());
    }
    if session.output == Output::Json {
        return session.print_json(&to_json(&answer));
    }
    let now = now();
    let mut table = TextTable::new(&["POD ID", "CREATED", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME"]);
    for pod in &answer.items {
        let metadata = pod.metadata.clone().unwrap_or_default();
        table.add(vec![
            text(short_id(&pod.id)),
            text(&age(now, pod.created_at)),
            state(state_name(pod.state())),
            text(&metadata.name),
            text(&metadata.namespace),
            text(&metadata.attempt.to_string()),
            text(if pod.runtime_handler.is_empty() { "(default)" } else { &pod.runtime_handler }),
        ]);
    }
    session.print(&table.render())
}

pub(super) async fn run(
    session: &Session,
    config: &Path,
    name: Option<&str>,
    runtime_handler: String,
) -> Result<(), CommandError> {
    let config = config_file::load_pod(config, name)?;
    let answer = session.client.run_pod_sandbox(RunPodSandboxRequest { config: Some(config), runtime_handler }).await?;
    session.print_id(&answer.pod_sandbox_id)
}

pub(super) async fn status(session: &Session, wanted: &str) -> Result<(), CommandError> {
    let pod = find_pod(&session.client, wanted).await?;
    let question = PodSandboxStatusRequest { pod_sandbox_id: pod.id, verbose: session.output == Output::Json };
    let answer = session.client.pod_sandbox_status(question).await?;
    if session.output == Output::Json {
        return session.print_json(&to_json_with_info(&answer));
    }
    let status = answer.status.ok_or(CallError::Incomplete { request: "PodSandboxStatus", field: "status" })?;
    let metadata = status.metadata.clone().unwrap_or_default();
    session.print(
        &TextTable::of_pairs(&[
            ("id", status.id.clone()),
            ("name", metadata.name),
            ("namespace", metadata.namespace),
            ("uid", metadata.uid),
            ("attempt", metadata.attempt.to_string()),
            ("state", state_name(status.state()).to_owned()),
            ("created", time(status.created_at)),
            ("addresses", addresses(&status)),
            ("runtime", status.runtime_handler.clone()),
            ("labels", pairs(&status.labels)),
            ("annotations", pairs(&status.annotations)),
        ])
        .render(),
    )
}

fn addresses(status: &PodSandboxStatus) -> String {
    let Some(network) = &status.network else { return String::new() };
    let others = network.additional_ips.iter().map(|ip| ip.ip.as_str());
    std::iter::once(network.ip.as_str()).chain(others).collect::<Vec<_>>().join(" ")
}

/// A map in one line, in the order of its keys.
pub(super) fn pairs(map: &HashMap<String, String>) -> String {
    let mut pairs: Vec<String> = map.iter().map(|(name, value)| format!("{name}={value}")).collect();
    pairs.sort();
    pairs.join(" ")
}

pub(super) async fn stop(session: &Session, wanted: &[String]) -> Result<(), CommandError> {
    session
        .each(wanted, async |one| {
            let pod = find_pod(&session.client, one).await?;
            session.client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: pod.id }).await?;
            Ok(())
        })
        .await
}

pub(super) async fn remove(session: &Session, wanted: &[String], force: bool) -> Result<(), CommandError> {
    session
        .each(wanted, async |one| {
            let pod = find_pod(&session.client, one).await?;
            if pod.state() == PodSandboxState::SandboxReady && !force {
                return Err(CommandError::Running { kind: "pod", id: pod.id });
            }
            if pod.labels.contains_key(RUN_LABEL) {
                return remove_pod_of_run(&session.client, &pod).await;
            }
            remove_pod(&session.client, &pod.id).await
        })
        .await
}

async fn remove_pod(client: &Client, id: &str) -> Result<(), CommandError> {
    client.stop_pod_sandbox(StopPodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    client.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: id.to_owned() }).await?;
    Ok(())
}

/// Stops and removes a pod that `run` made, and the log directory `run` made for it.
pub(crate) async fn remove_pod_of_run(client: &Client, pod: &PodSandbox) -> Result<(), CommandError> {
    remove_pod(client, &pod.id).await?;
    run::remove_log_directory(pod)
}
