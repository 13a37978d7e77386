//! The configuration as the verbose Status tells it, under the names that CRI-O's has in JSON.

use config::{CgroupManager, Config, RuntimeHandler};
use serde_json::{Value, json};

/// `{sandboxImage, crio: {…}}`: what tools ask for, not every key. Source: CRI-O.
pub(crate) fn config_json(config: &Config) -> String {
    let (root, runtime, network) = (&config.root, &config.runtime, &config.network);
    let runtimes: serde_json::Map<String, Value> =
        runtime.runtimes.iter().map(|(name, handler)| (name.clone(), handler_json(handler))).collect();
    json!({
        "sandboxImage": config.image.pause_image,
        "crio": {
            "Root": root.root,
            "RunRoot": root.runroot,
            "Storage": root.storage_driver.as_str(),
            "StorageOptions": root.storage_option,
            "LogDir": root.log_dir,
            "Listen": config.api.listen,
            "DefaultRuntime": runtime.default_runtime,
            "CgroupManagerName": match runtime.cgroup_manager {
                CgroupManager::Systemd => "systemd",
                CgroupManager::Cgroupfs => "cgroupfs",
            },
            "DropInfraCtr": runtime.drop_infra_ctr,
            "NamespacesDir": runtime.namespaces_dir,
            "PidsLimit": runtime.pids_limit,
            "EnablePodEvents": runtime.enable_pod_events,
            "Runtimes": runtimes,
            "PauseImage": config.image.pause_image,
            "NetworkDir": network.network_dir,
            "PluginDirs": network.plugin_dirs,
        },
    })
    .to_string()
}

fn handler_json(handler: &RuntimeHandler) -> Value {
    json!({
        "RuntimePath": handler.runtime_path,
        "RuntimeType": handler.runtime_type.as_str(),
        "RuntimeRoot": handler.runtime_root,
        "RuntimeConfigPath": handler.runtime_config_path,
        "PrivilegedWithoutHostDevices": handler.privileged_without_host_devices,
        "AllowedAnnotations": handler.allowed_annotations,
        "DefaultAnnotations": handler.default_annotations,
        "MonitorPath": handler.monitor_path,
        "MonitorEnv": handler.monitor_env,
        "PlatformRuntimePaths": handler.platform_runtime_paths,
        "SeccompProfile": handler.seccomp_profile,
        "ContainerCreateTimeout": handler.container_create_timeout.as_secs(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn handlers_are_told_under_their_names() {
        let told: Value = serde_json::from_str(&config_json(&Config::default())).expect("JSON");
        assert_eq!(told.pointer("/crio/DefaultRuntime"), Some(&json!("crun")));
        assert_eq!(told.pointer("/crio/Runtimes/crun/ContainerCreateTimeout"), Some(&json!(240)));
        assert_eq!(told.pointer("/sandboxImage"), told.pointer("/crio/PauseImage"));
    }
}
