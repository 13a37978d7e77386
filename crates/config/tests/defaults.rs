//! The defaults, key by key, as CRI-O 1.37 has them; read from the printed configuration, which is also golden.

use std::collections::BTreeMap;

use config::{Config, SourceFile, Sources, Template, load, template, template_over};

/// Key and value as TOML. Source: the built-in defaults of CRI-O 1.37 on a host without storage.conf and SELinux.
const DEFAULTS: &[(&str, &str)] = &[
    ("crio.root", r#""/var/lib/containers/storage""#),
    ("crio.runroot", r#""/run/containers/storage""#),
    ("crio.imagestore", r#""""#),
    ("crio.storage_driver", r#""overlay""#),
    ("crio.storage_option", "[]"),
    ("crio.log_dir", r#""/var/log/crio/pods""#),
    ("crio.version_file", r#""/var/run/crio/version""#),
    ("crio.version_file_persist", r#""""#),
    ("crio.clean_shutdown_file", r#""/var/lib/crio/clean.shutdown""#),
    ("crio.internal_wipe", "true"),
    ("crio.internal_repair", "true"),
    ("crio.api.listen", r#""/var/run/crio/crio.sock""#),
    ("crio.api.stream_address", r#""127.0.0.1""#),
    ("crio.api.stream_port", r#""0""#),
    ("crio.api.stream_enable_tls", "false"),
    ("crio.api.stream_idle_timeout", r#""""#),
    ("crio.api.stream_tls_cert", r#""""#),
    ("crio.api.stream_tls_key", r#""""#),
    ("crio.api.stream_tls_ca", r#""""#),
    ("crio.api.tls_min_version", r#""VersionTLS12""#),
    ("crio.api.tls_cipher_suites", "[]"),
    ("crio.api.grpc_max_send_msg_size", "83886080"),
    ("crio.api.grpc_max_recv_msg_size", "83886080"),
    ("crio.runtime.default_ulimits", "[]"),
    ("crio.runtime.no_pivot", "false"),
    ("crio.runtime.decryption_keys_path", r#""/etc/crio/keys/""#),
    ("crio.runtime.additional_artifact_stores", "[]"),
    ("crio.runtime.conmon", r#""""#),
    ("crio.runtime.conmon_cgroup", r#""""#),
    ("crio.runtime.conmon_env", "[]"),
    ("crio.runtime.default_env", "[]"),
    ("crio.runtime.min_injected_gomaxprocs", "0"),
    ("crio.runtime.selinux", "false"),
    ("crio.runtime.seccomp_profile", r#""""#),
    ("crio.runtime.privileged_seccomp_profile", r#""""#),
    ("crio.runtime.apparmor_profile", r#""crio-default""#),
    ("crio.runtime.blockio_config_file", r#""""#),
    ("crio.runtime.blockio_reload", "false"),
    ("crio.runtime.irqbalance_config_file", r#""/etc/sysconfig/irqbalance""#),
    ("crio.runtime.irqbalance_config_restore_file", r#""/etc/sysconfig/orig_irq_banned_cpus""#),
    ("crio.runtime.rdt_config_file", r#""""#),
    ("crio.runtime.cgroup_manager", r#""systemd""#),
    ("crio.runtime.separate_pull_cgroup", r#""""#),
    (
        "crio.runtime.default_capabilities",
        r#"["CHOWN", "DAC_OVERRIDE", "FSETID", "FOWNER", "SETGID", "SETUID", "SETPCAP", "NET_BIND_SERVICE", "KILL"]"#,
    ),
    ("crio.runtime.add_inheritable_capabilities", "false"),
    ("crio.runtime.default_sysctls", "[]"),
    ("crio.runtime.allowed_devices", r#"["/dev/fuse", "/dev/net/tun"]"#),
    ("crio.runtime.additional_devices", "[]"),
    ("crio.runtime.cdi_spec_dirs", r#"["/etc/cdi", "/var/run/cdi"]"#),
    ("crio.runtime.device_ownership_from_security_context", "false"),
    ("crio.runtime.hooks_dir", r#"["/usr/share/containers/oci/hooks.d"]"#),
    ("crio.runtime.default_mounts_file", r#""""#),
    ("crio.runtime.pids_limit", "-1"),
    ("crio.runtime.log_size_max", "-1"),
    ("crio.runtime.log_to_journald", "false"),
    ("crio.runtime.container_exits_dir", r#""/var/run/crio/exits""#),
    ("crio.runtime.container_attach_socket_dir", r#""/var/run/crio""#),
    ("crio.runtime.bind_mount_prefix", r#""""#),
    ("crio.runtime.read_only", "false"),
    ("crio.runtime.log_level", r#""info""#),
    ("crio.runtime.log_filter", r#""""#),
    ("crio.runtime.uid_mappings", r#""""#),
    ("crio.runtime.gid_mappings", r#""""#),
    ("crio.runtime.minimum_mappable_uid", "-1"),
    ("crio.runtime.minimum_mappable_gid", "-1"),
    ("crio.runtime.ctr_stop_timeout", "30"),
    ("crio.runtime.drop_infra_ctr", "true"),
    ("crio.runtime.infra_ctr_cpuset", r#""""#),
    ("crio.runtime.shared_cpuset", r#""""#),
    ("crio.runtime.namespaces_dir", r#""/var/run""#),
    ("crio.runtime.pinns_path", r#""""#),
    ("crio.runtime.enable_criu_support", "true"),
    ("crio.runtime.enable_pod_events", "false"),
    ("crio.runtime.default_runtime", r#""crun""#),
    ("crio.runtime.absent_mount_sources_to_reject", "[]"),
    ("crio.runtime.hostnetwork_disable_selinux", "true"),
    ("crio.runtime.disable_hostport_mapping", "false"),
    ("crio.runtime.timezone", r#""""#),
    ("crio.runtime.runtimes.crun.runtime_path", r#""""#),
    ("crio.runtime.runtimes.crun.runtime_type", r#""oci""#),
    ("crio.runtime.runtimes.crun.runtime_root", r#""/run/crun""#),
    ("crio.runtime.runtimes.crun.inherit_default_runtime", "false"),
    ("crio.runtime.runtimes.crun.runtime_config_path", r#""""#),
    ("crio.runtime.runtimes.crun.container_min_memory", r#""500KiB""#),
    ("crio.runtime.runtimes.crun.monitor_path", r#""""#),
    ("crio.runtime.runtimes.crun.monitor_cgroup", r#""system.slice""#),
    ("crio.runtime.runtimes.crun.monitor_exec_cgroup", r#""""#),
    (
        "crio.runtime.runtimes.crun.monitor_env",
        r#"["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]"#,
    ),
    ("crio.runtime.runtimes.crun.allowed_annotations", r#"["io.containers.trace-syscall", "devices.crio.io"]"#),
    ("crio.runtime.runtimes.crun.privileged_without_host_devices", "false"),
    ("crio.checkpoint_restore.container_level_enabled", r#""checkpoint_restore""#),
    ("crio.image.default_transport", r#""docker://""#),
    ("crio.image.global_auth_file", r#""""#),
    ("crio.image.namespaced_auth_dir", r#""/etc/crio/auth""#),
    ("crio.image.pause_image", r#""registry.k8s.io/pause:3.10.1""#),
    ("crio.image.pause_image_auth_file", r#""""#),
    ("crio.image.pause_command", r#""/pause""#),
    ("crio.image.pinned_images", "[]"),
    ("crio.image.signature_policy", r#""""#),
    ("crio.image.signature_policy_dir", r#""/etc/crio/policies""#),
    ("crio.image.insecure_registries", "[]"),
    ("crio.image.image_volumes", r#""mkdir""#),
    ("crio.image.big_files_temporary_dir", r#""""#),
    ("crio.image.auto_reload_registries", "false"),
    ("crio.image.pull_progress_timeout", r#""0s""#),
    ("crio.image.oci_artifact_mount_support", "true"),
    ("crio.image.short_name_mode", r#""enforcing""#),
    ("crio.network.cni_default_network", r#""""#),
    ("crio.network.network_dir", r#""/etc/cni/net.d/""#),
    ("crio.network.plugin_dirs", r#"["/opt/cni/bin/"]"#),
    ("crio.network.cni_status_grace_period", r#""0s""#),
    ("crio.metrics.enable_metrics", "false"),
    (
        "crio.metrics.metrics_collectors",
        r#"["image_pulls_layer_size", "containers_events_dropped_total", "containers_oom_total", "processes_defunct",
        "operations_total", "operations_latency_seconds", "operations_latency_seconds_total", "operations_errors_total",
        "image_pulls_bytes_total", "image_pulls_skipped_bytes_total", "image_pulls_failure_total",
        "image_pulls_success_total", "image_layer_reuse_total", "containers_oom_count_total",
        "containers_seccomp_notifier_count_total", "resources_stalled_at_stage", "containers_stopped_monitor_count",
        "default_runtime"]"#,
    ),
    ("crio.metrics.metrics_host", r#""127.0.0.1""#),
    ("crio.metrics.metrics_port", "9090"),
    ("crio.metrics.metrics_socket", r#""""#),
    ("crio.metrics.metrics_cert", r#""""#),
    ("crio.metrics.metrics_key", r#""""#),
    ("crio.tracing.enable_tracing", "false"),
    ("crio.tracing.tracing_endpoint", r#""127.0.0.1:4317""#),
    ("crio.tracing.tracing_sampling_rate_per_million", "0"),
    ("crio.nri.enable_nri", "true"),
    ("crio.nri.nri_listen", r#""/var/run/nri/nri.sock""#),
    ("crio.nri.nri_plugin_dir", r#""/opt/nri/plugins""#),
    ("crio.nri.nri_plugin_config_dir", r#""/etc/nri/conf.d""#),
    ("crio.nri.nri_disable_connections", "false"),
    ("crio.nri.nri_plugin_registration_timeout", r#""5s""#),
    ("crio.nri.nri_plugin_request_timeout", r#""2s""#),
    ("crio.nri.default_validator.nri_enable_default_validator", "false"),
    ("crio.nri.default_validator.nri_validator_reject_oci_hook_adjustment", "false"),
    ("crio.nri.default_validator.nri_validator_reject_runtime_default_seccomp_adjustment", "false"),
    ("crio.nri.default_validator.nri_validator_reject_unconfined_seccomp_adjustment", "false"),
    ("crio.nri.default_validator.nri_validator_reject_custom_seccomp_adjustment", "false"),
    ("crio.nri.default_validator.nri_validator_reject_namespace_adjustment", "false"),
    ("crio.nri.default_validator.nri_validator_required_plugins", "[]"),
    ("crio.nri.default_validator.nri_validator_tolerate_missing_plugins_annotation", r#""""#),
    ("crio.stats.stats_collection_period", "0"),
    ("crio.stats.collection_period", "0"),
    ("crio.stats.included_pod_metrics", "[]"),
];

/// All values of a document by their full key.
fn flatten(prefix: &str, value: &toml::Value, found: &mut BTreeMap<String, toml::Value>) {
    match value {
        toml::Value::Table(table) => {
            for (name, value) in table {
                let path = if prefix.is_empty() { name.clone() } else { format!("{prefix}.{name}") };
                flatten(&path, value, found);
            }
        }
        value => {
            found.insert(prefix.to_owned(), value.clone());
        }
    }
}

#[test]
fn defaults_are_those_of_cri_o() {
    let printed: toml::Table = template(&Config::default(), Template::Default).parse().expect("TOML");
    let mut found = BTreeMap::new();
    flatten("", &toml::Value::Table(printed), &mut found);
    for (key, expected) in DEFAULTS {
        let document: toml::Table = format!("v = {expected}").parse().expect("TOML");
        assert_eq!(found.remove(*key), document.get("v").cloned(), "{key}");
    }
    assert_eq!(found, BTreeMap::new(), "keys without a line in the table");
}

#[test]
fn handler_keys_that_are_not_printed_have_cri_o_s_defaults_too() {
    let crun = &Config::default().runtime.runtimes["crun"];
    assert!(!crun.runtime_pull_image && !crun.no_sync_log && !crun.stream_websockets);
    assert_eq!(crun.exec_cpu_affinity.as_str(), "");
    assert_eq!(crun.seccomp_profile, None);
    assert_eq!(crun.container_create_timeout.as_secs(), 240);
    assert!(crun.platform_runtime_paths.is_empty() && crun.default_annotations.is_empty());
}

#[test]
fn storage_conf_counts_as_default() {
    let storage = "[storage]\ngraphroot = \"/graph\"\n[storage.options.overlay]\nmountopt = \"nodev\"";
    let file = SourceFile { path: "storage.conf".into(), bytes: storage.as_bytes().to_vec() };
    let loaded = load(&Sources { storage: vec![file], ..Sources::default() }).expect("valid");
    assert_eq!(loaded.defaults, loaded.config);
    let printed = template_over(&loaded.defaults, &loaded.config, Template::Effective);
    assert!(printed.contains("\n# root = \"/graph\"\n") && printed.contains("\n# \t\"overlay.mountopt=nodev\",\n"));
    assert!(template(&loaded.config, Template::Effective).contains("\nroot = \"/graph\"\n"));
}

#[test]
fn the_printed_configuration_is_golden() {
    let golden = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/crio.conf");
    let text = template(&Config::default(), Template::Effective);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        let mut file = std::fs::File::create(golden).expect("create");
        std::io::Write::write_all(&mut file, text.as_bytes()).expect("write");
    }
    let expected = std::fs::read_to_string(golden).expect("golden file; UPDATE_GOLDEN=1 makes it");
    assert_eq!(text, expected, "UPDATE_GOLDEN=1 takes over a wanted change");
    // Nothing is live in it but table headers.
    let live: Vec<_> = text.lines().filter(|l| !l.is_empty() && !l.starts_with('#') && !l.starts_with('[')).collect();
    assert_eq!(live, [""; 0]);
    let longest = text.lines().map(|line| line.chars().count()).max();
    assert!(longest <= Some(100), "{longest:?}");
}

#[test]
fn only_what_differs_is_live() {
    let text = "[crio.runtime]\nlog_level = \"debug\"\n[crio.runtime.runtimes.runc]\nruntime_root = \"/run/runc\"\n\
                [crio.runtime.workloads.\"a b\"]\nactivation_annotation = \"x\"\n[crio.network]\nplugin_dir = \"/p\"";
    let file = SourceFile { path: "x".into(), bytes: text.as_bytes().to_vec() };
    let config = load(&Sources { files: vec![file], ..Sources::default() }).expect("valid").config;
    let printed = template(&config, Template::Effective);
    for line in [
        "log_level = \"debug\"",
        "[crio.runtime.runtimes.runc]",
        "runtime_root = \"/run/runc\"",
        "# [crio.runtime.runtimes.crun]",
        "# log_filter = \"\"",
        "[crio.runtime.workloads.\"a b\"]",
        "plugin_dirs = [",
    ] {
        assert!(printed.lines().any(|found| found == line), "{line}");
    }
    let file = SourceFile { path: "x".into(), bytes: printed.into_bytes() };
    let again = load(&Sources { files: vec![file], ..Sources::default() }).expect("valid");
    assert_eq!(again.config, config);
}
