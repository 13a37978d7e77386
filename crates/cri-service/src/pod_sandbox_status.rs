//! PodSandboxStatus.

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::v1;
use domain::id::ContainerId;
use lifecycle::{LookupError, Node, Sandbox};
use tonic::{Code, Status};

use crate::refusal::refuse;
use crate::to_cri;

pub(crate) async fn pod_sandbox_status(
    node: &Arc<Node>,
    request: v1::PodSandboxStatusRequest,
) -> Result<v1::PodSandboxStatusResponse, Status> {
    let sandbox = node.find_sandbox(&request.pod_sandbox_id).map_err(|error| refuse(code(&error), &error))?;
    let mut ips = sandbox.ips.iter().map(ToString::to_string);
    let network = v1::PodSandboxNetworkStatus {
        ip: ips.next().unwrap_or_default(),
        additional_ips: ips.map(|ip| v1::PodIp { ip }).collect(),
    };
    let options = to_cri::namespace_options(&sandbox.config.security.namespaces);
    let status = v1::PodSandboxStatus {
        id: sandbox.id.to_string(),
        metadata: Some(to_cri::sandbox_metadata(&sandbox.config.metadata)),
        state: to_cri::sandbox_state(sandbox.state()).into(),
        created_at: sandbox.created.nanos(),
        network: Some(network),
        linux: Some(v1::LinuxPodSandboxStatus { namespaces: Some(v1::Namespace { options: Some(options) }) }),
        labels: to_cri::map(&sandbox.config.labels),
        annotations: to_cri::map(&sandbox.config.annotations),
        runtime_handler: sandbox.runtime_handler.clone(),
    };
    let info = if request.verbose { verbose(node, &sandbox).await } else { HashMap::new() };
    Ok(v1::PodSandboxStatusResponse { status: Some(status), info, containers_statuses: Vec::new(), timestamp: 0 })
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
