//! Version, Status and RuntimeConfig.

use std::collections::HashMap;

use cri_api::v1;
use lifecycle::Node;
use tonic::Status;

use crate::status_info::config_json;

/// What CRI-O answers; the kubelet looks at the name to choose quirks.
const API_VERSION: &str = "0.1.0";
const RUNTIME_NAME: &str = "cri-o";
const RUNTIME_API_VERSION: &str = "v1";
const NETWORK_NOT_READY: &str = "NetworkPluginNotReady";

pub(crate) fn version() -> v1::VersionResponse {
    v1::VersionResponse {
        version: API_VERSION.to_owned(),
        runtime_name: RUNTIME_NAME.to_owned(),
        runtime_version: env!("CARGO_PKG_VERSION").to_owned(),
        runtime_api_version: RUNTIME_API_VERSION.to_owned(),
    }
}

pub(crate) async fn status(node: &Node, request: v1::StatusRequest) -> Result<v1::StatusResponse, Status> {
    let status = node.status().await;
    let ready = |kind: &str| v1::RuntimeCondition { r#type: kind.to_owned(), status: true, ..Default::default() };
    let network = match status.network_problem {
        None => ready("NetworkReady"),
        Some(problem) => v1::RuntimeCondition {
            r#type: "NetworkReady".to_owned(),
            status: false,
            reason: NETWORK_NOT_READY.to_owned(),
            message: format!("Network plugin returns error: {problem}"),
        },
    };
    let handlers = status.handlers.into_iter().map(|(name, handler)| v1::RuntimeHandler {
        name,
        features: Some(v1::RuntimeHandlerFeatures {
            recursive_read_only_mounts: handler.has_recursive_read_only,
            user_namespaces: handler.has_user_namespaces,
        }),
    });
    let mut info = HashMap::new();
    if request.verbose {
        info.insert("config".to_owned(), config_json(node.config()));
    }
    Ok(v1::StatusResponse {
        status: Some(v1::RuntimeStatus { conditions: vec![ready("RuntimeReady"), network] }),
        info,
        runtime_handlers: handlers.collect(),
        features: Some(v1::RuntimeFeatures {
            supplemental_groups_policy: true,
            // Where a handler does user namespaces at all.
            user_namespaces_host_network: true,
        }),
    })
}

pub(crate) fn runtime_config(node: &Node) -> v1::RuntimeConfigResponse {
    let driver = match node.config().runtime.cgroup_manager {
        config::CgroupManager::Systemd => v1::CgroupDriver::Systemd,
        config::CgroupManager::Cgroupfs => v1::CgroupDriver::Cgroupfs,
    };
    v1::RuntimeConfigResponse { linux: Some(v1::LinuxRuntimeConfiguration { cgroup_driver: driver.into() }) }
}
