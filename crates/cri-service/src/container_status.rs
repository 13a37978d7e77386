//! ContainerStatus.

use std::collections::HashMap;
use std::sync::Arc;

use cri_api::v1;
use domain::container::{ContainerState, Exit};
use domain::time::Timestamp;
use lifecycle::{Container, LookupError, Node};
use tonic::{Code, Status};

use crate::refusal::refuse;
use crate::to_cri;

pub(crate) async fn container_status(
    node: &Arc<Node>,
    request: v1::ContainerStatusRequest,
) -> Result<v1::ContainerStatusResponse, Status> {
    let container = node.find_container(&request.container_id).map_err(|error| refuse(code(&error), &error))?;
    let info = if request.verbose { verbose(node, &container).await } else { HashMap::new() };
    Ok(v1::ContainerStatusResponse { status: Some(status_of(&container, &container.state())), info })
}

pub(crate) fn status_of(container: &Container, state: &ContainerState) -> v1::ContainerStatus {
    let config = &container.config;
    let mut image = to_cri::image_spec(&config.image);
    image.image.clone_from(&container.image.name);
    let mut status = v1::ContainerStatus {
        id: container.id.to_string(),
        metadata: Some(to_cri::container_metadata(&config.metadata)),
        state: to_cri::container_state(state).into(),
        created_at: container.created.nanos(),
        started_at: state.started().map_or(0, Timestamp::nanos),
        image: Some(image),
        image_ref: container.image.reference.clone(),
        image_id: container.image.id.to_string(),
        labels: to_cri::map(&config.labels),
        annotations: to_cri::map(&config.annotations),
        mounts: config.mounts.iter().map(to_cri::mount).collect(),
        log_path: container.log.display().to_string(),
        resources: Some(v1::ContainerResources {
            linux: Some(to_cri::resources(&container.resources())),
            windows: None,
        }),
        user: container.user.as_ref().map(to_cri::user),
        stop_signal: to_cri::signal(container.stop_signal()),
        ..Default::default()
    };
    if let ContainerState::Exited { started, exit } = state {
        // A container that never ran has started and finished when it was made. Source: CRI-O.
        status.started_at = started.unwrap_or(container.created).nanos();
        status.finished_at = exit.finished.nanos();
        status.exit_code = exit.code;
        status.reason = reason(exit).to_owned();
        status.message.clone_from(&exit.error);
    }
    status
}

/// The words the kubelet and its users know.
fn reason(exit: &Exit) -> &'static str {
    match exit {
        Exit { is_oom_killed: true, .. } => "OOMKilled",
        Exit { is_seccomp_killed: true, .. } => "seccomp killed",
        Exit { code: 0, .. } => "Completed",
        Exit { .. } => "Error",
    }
}

/// One key, `info`, as crictl and its users expect.
async fn verbose(node: &Node, container: &Container) -> HashMap<String, String> {
    let info = serde_json::json!({
        "sandboxID": container.sandbox.as_str(),
        "pid": container.state().init().map_or(0, |init| init.pid),
        "runtimeSpec": to_cri::json(node.runtime_spec(&container.id).await),
        "privileged": container.config.security.privileged,
    });
    HashMap::from([("info".to_owned(), info.to_string())])
}

/// The kubelet tells a removed container by NotFound.
fn code(error: &LookupError) -> Code {
    match error {
        LookupError::Absent { .. } => Code::NotFound,
        LookupError::Empty { .. } | LookupError::Ambiguous { .. } => Code::InvalidArgument,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_end_has_one_word() {
        let exit = |code, is_oom_killed, is_seccomp_killed| Exit {
            code,
            finished: Timestamp::from_nanos(0),
            is_oom_killed,
            is_seccomp_killed,
            error: String::new(),
        };
        for (code, is_oom_killed, is_seccomp_killed, word) in [
            (0, false, false, "Completed"),
            (1, false, false, "Error"),
            (137, true, false, "OOMKilled"),
            (137, false, false, "Error"),
            (137, false, true, "seccomp killed"),
            (159, false, false, "Error"),
            (-1, false, false, "Error"),
        ] {
            assert_eq!(reason(&exit(code, is_oom_killed, is_seccomp_killed)), word);
        }
    }
}
