//! PodSandboxStatus.

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::v1;
use domain::id::ContainerId;
use domain::sandbox::SandboxState;
use lifecycle::{LookupError, Node, Sandbox, SandboxSnapshot};
use tonic::{Code, Status};

use crate::refusal::refuse;
use crate::{container_status, to_cri};

pub(crate) async fn pod_sandbox_status(
    node: &Arc<Node>,
    request: v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Status> {
    let sandbox = node.find_sandbox(&request.pod_sandbox_id).map_err(|error| refuse(code(&error), &error))?;
    let info = if request.verbose { verbose(node, &sandbox).await } else { HashMap::new() };
    // Without events nobody compares what is older, and a client would take containers for all there is to know.
    if !node.config().runtime.enable_pod_events {
        let status = Some(status_of(&sandbox, sandbox.state()));
        return Ok(v1::PodSandboxStatusResponse { status, info, containers_statuses: Vec::new(), timestamp: 0 });
    }
    let snapshot = node.sandbox_snapshot(&sandbox);
    Ok(v1::PodSandboxStatusResponse {
        status: Some(status_of(&sandbox, snapshot.state)),
        info,
        containers_statuses: containers_statuses(&snapshot),
        timestamp: snapshot.at.nanos(),
    })
}

pub(crate) fn status_of(sandbox: &Sandbox, state: SandboxState) -> v1::PodSandboxStatus {
    let mut ips = sandbox.ips.iter().map(ToString::to_string);
    let network = v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    };
    let options = to_cri::namespace_options(&sandbox.config.security.namespaces);
    v1::PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(to_cri::sandbox_metadata(&sandbox.config.metadata)),
        state: to_cri::sandbox_state(state).into(),
        created_at: sandbox.created.nanos(),
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: to_cri::map(&sandbox.config.labels),
        annotations: to_cri::map(&sandbox.config.annotations),
        runtime_handler: sandbox.runtime_handler.clone(),
    }
}

pub(crate) fn containers_statuses(snapshot: &SandboxSnapshot) -> Vec<v1::ContainerStatus> {
    snapshot.containers.iter().map(|(container, state)| container_status::status_of(container, state)).collect()
}

/// One key, `info`, as crictl and its users expect.
async fn verbose(node: &Node, sandbox: &Sandbox) -> HashMap<String, String> {
    let mut info = serde_json::Map::new();
    if let Some(pid) = sandbox.infra_pid() {
        info.insert("image".to_owned(), node.config().image.pause_image.clone().into());
        info.insert("pid".to_owned(), pid.into());
    }
    if let Ok(id) = ContainerId::parse(sandbox.id.as_str()) {
        info.insert("runtimeSpec".to_owned(), to_cri::json(node.runtime_spec(&id).await));
    }
    HashMap::from([("info".to_owned(), serde_json::Value::Object(info).to_string())])
}

/// The kubelet tells a removed sandbox by NotFound.
fn code(error: &LookupError) -> Code {
    match error {
        LookupError::Absent { .. } => Code::NotFound,
        LookupError::Empty { .. } | LookupError::Ambiguous { .. } => Code::InvalidArgument,
    }
}
