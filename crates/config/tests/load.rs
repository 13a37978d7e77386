//! From bytes to a checked configuration: values, precedence, and every problem at once.

use std::path::Path;
use std::time::Duration;

use config::{
    ByteCount, CgroupManager, CheckpointRestoreLevel, Config, ConfigErrors, Loaded, LogLevel, MonitorCgroup,
    RuntimeHandler, RuntimeType, SourceFile, Sources, StorageDriver, Template, WarningKind, load, template,
};
use proptest::prelude::*;

fn file(path: &str, text: &str) -> SourceFile {
    SourceFile { path: path.into(), bytes: text.as_bytes().to_vec() }
}

fn load_files(texts: &[&str]) -> Result<Loaded, ConfigErrors> {
    let files = texts.iter().enumerate().map(|(at, text)| file(&format!("{at}.conf"), text)).collect();
    load(&Sources { files, ..Sources::default() })
}

fn loaded(texts: &[&str]) -> Config {
    load_files(texts).unwrap_or_else(|e| panic!("{e}")).config
}

fn problems(texts: &[&str]) -> Vec<String> {
    load_files(texts).err().map(|e| e.problems().iter().map(ToString::to_string).collect()).unwrap_or_default()
}

fn warnings(texts: &[&str]) -> Vec<String> {
    load_files(texts).unwrap_or_else(|e| panic!("{e}")).warnings.iter().map(ToString::to_string).collect()
}

#[test]
fn nothing_is_the_default() {
    let loaded = load(&Sources::default()).expect("default");
    assert_eq!(loaded.config, Config::default());
    assert_eq!(loaded.warnings, []);
}

#[test]
fn values_of_every_shape() {
    let config = loaded(&[r#"
        [crio]
        root = "/srv/storage"
        version_file = ""
        [CRIO.API]
        GRPC_max_send_msg_size = 1_000_000
        grpc_max_recv_msg_size = -1
        stream_idle_timeout = "30m"
        [crio.runtime]
        Log_Level = "WARNING"
        cgroup_manager = "cgroupfs"
        default_capabilities = ["chOwn", "NET_raw"]
        default_sysctls = ["", "net.ipv4.ip_forward=1"]
        default_ulimits = ["nofile=1024:2048", "core=-1"]
        additional_devices = ["/dev/sdc", "/dev/sdd:/dev/xvdd:rw", "/dev/null:r"]
        pids_limit = 1024
        log_size_max = 8192
        uid_mappings = "0:100000:65536"
        gid_mappings = "0:100000:65536,70000:200000:10"
        minimum_mappable_uid = 1000
        infra_ctr_cpuset = "0-1,4"
        [crio.image]
        pull_progress_timeout = "10s"
        pinned_images = ["a*", "", "*b*"]
        [crio.network]
        cni_status_grace_period = 5000000000
        [crio.metrics]
        metrics_collectors = ["crio_operations_total", "container_runtime_crio_processes_defunct"]
        [crio.stats]
        collection_period = 10
        included_pod_metrics = ["all"]
        [crio.nri]
        nri_plugin_request_timeout = "1m"
        [crio.nri.default_validator]
        nri_validator_required_plugins = ["a"]
    "#]);
    assert_eq!(config.root.root, Path::new("/srv/storage"));
    assert_eq!(config.root.version_file, None);
    assert_eq!(config.api.grpc_max_send_msg_size.bytes(), 1_000_000);
    assert_eq!(config.api.grpc_max_recv_msg_size, ByteCount::mib(80));
    assert_eq!(config.api.effective_stream_idle_timeout(), Duration::from_secs(1800));
    assert_eq!(config.runtime.log_level, LogLevel::Warn);
    assert_eq!(config.runtime.cgroup_manager, CgroupManager::Cgroupfs);
    assert_eq!(config.runtime.runtimes["crun"].monitor_cgroup, MonitorCgroup::Daemon, "no slices with cgroupfs");
    assert_eq!(config.runtime.default_capabilities, ["CHOWN", "NET_RAW"]);
    assert_eq!(config.runtime.default_sysctls[0].key(), "net.ipv4.ip_forward");
    assert_eq!(config.runtime.default_sysctls.len(), 1);
    let limits = &config.runtime.default_ulimits;
    assert_eq!((limits[0].rlimit_name().as_str(), limits[0].soft(), limits[0].hard()), ("RLIMIT_NOFILE", 1024, 2048));
    assert_eq!((limits[1].soft(), limits[1].hard()), (u64::MAX, u64::MAX));
    let devices: Vec<_> = config.runtime.additional_devices.iter().map(ToString::to_string).collect();
    assert_eq!(devices, ["/dev/sdc:/dev/sdc:rwm", "/dev/sdd:/dev/xvdd:rw", "/dev/null:/dev/null:r"]);
    assert_eq!(config.runtime.pids_limit, Some(1024));
    assert_eq!(config.runtime.log_size_max, Some(ByteCount::kib(8)));
    assert_eq!(config.runtime.gid_mappings.len(), 2);
    assert_eq!(config.runtime.minimum_mappable_uid, Some(1000));
    assert_eq!(config.runtime.infra_ctr_cpuset.as_ref().map(|set| set.as_str()), Some("0-1,4"));
    assert_eq!(config.image.pull_progress_timeout, Duration::from_secs(10));
    assert_eq!(config.image.pinned_images, ["a*", "*b*"]);
    assert_eq!(config.network.cni_status_grace_period, Duration::from_secs(5), "an integer counts nanoseconds");
    assert_eq!(config.metrics.metrics_collectors, ["operations_total", "processes_defunct"]);
    assert_eq!(config.stats.collection_period, Duration::from_secs(10));
    assert_eq!(config.stats.enabled_pod_metrics(), config::model::POD_METRICS);
    assert_eq!(config.nri.nri_plugin_request_timeout, Duration::from_secs(60));
    assert_eq!(config.nri.default_validator.nri_validator_required_plugins, ["a"]);
}

#[test]
fn all_problems_are_reported_at_once_with_file_line_and_key() {
    let found = problems(&[
        "[crio]\nlog_dir = \"logs\"\nstorage_driver = \"aufs\"\n[crio.runtime]\nselinux = \"yes\"\nlog_size_max = 100\n",
        "[crio.runtime\n",
        concat!(
            "[crio.runtime]\ndefault_sysctls = [\"a = b\", \"c\"]\nlog_filter = \"(\"\ndefault_runtime = \"kata\"\n",
            "uid_mappings = \"0:1:2\"\nallowed_devices = [1]\n[crio.api]\nstream_enable_tls = true\n",
            "[crio.network]\nplugin_dirs = \"/x\"\ncni_status_grace_period = \"-1s\"\n",
            "[crio.runtime.runtimes.crun]\nruntime_type = \"x\"\nno_sync_log = 1\nallowed_annotations = [\"nope\"]\n",
        ),
        "\n\ncrio = 3\n",
    ]);
    let expected = [
        "0.conf:5: crio.runtime.selinux: expected true or false, found string",
        "1.conf:1: unable to decode configuration: ",
        "2.conf:6: crio.runtime.allowed_devices: expected a string in the array, found integer",
        "2.conf:10: crio.network.plugin_dirs: expected an array of strings, found string",
        "2.conf:14: crio.runtime.runtimes.crun.no_sync_log: expected true or false, found integer",
        "3.conf:3: crio: expected a table, found integer",
        "0.conf:3: crio.storage_driver: \"aufs\" is not one of \"overlay\", \"vfs\", \"btrfs\", \"zfs\"",
        "0.conf:2: crio.log_dir: \"logs\" is not an absolute path",
        "2.conf:2: crio.runtime.default_sysctls: \"a = b\" has blanks around key or value; \"c\" is not of the form key=value",
        "0.conf:6: crio.runtime.log_size_max: 100 must be negative or at least 8192",
        "2.conf:3: crio.runtime.log_filter: custom log level filter does not compile: \"(\": ",
        "2.conf:11: crio.network.cni_status_grace_period: \"-1s\" is not a duration",
        "configuration: crio.api.stream_tls_cert: needed because stream_enable_tls is set",
        "configuration: crio.api.stream_tls_key: needed because stream_enable_tls is set",
        "2.conf:5: crio.runtime.uid_mappings: gid_mappings must be given, too",
        "2.conf:4: crio.runtime.default_runtime: no runtime handler \"kata\", there is crun",
    ];
    for text in expected {
        assert!(found.iter().any(|problem| problem.starts_with(text)), "{text}\nis not in\n{}", found.join("\n"));
    }
    // The handler crun is not the default one here, so that its values alone do not stop the start.
    assert_eq!(found.len(), expected.len(), "{}", found.join("\n"));
}

#[test]
fn later_files_win_and_lists_are_replaced() {
    let config = loaded(&[
        "[crio.runtime]\nlog_level = \"debug\"\nallowed_devices = [\"/dev/a\", \"/dev/b\"]\ntimezone = \"Local\"",
        "[crio.runtime]\nlog_level = \"error\"\nallowed_devices = []",
    ]);
    assert_eq!(config.runtime.log_level, LogLevel::Error);
    assert!(config.runtime.allowed_devices.is_empty());
    assert_eq!(config.runtime.timezone, "Local");
}

#[test]
fn a_bad_value_that_a_later_file_replaces_is_no_problem_but_a_bad_shape_is() {
    assert_eq!(problems(&["[crio.runtime]\nlog_level = \"loud\"", "[crio.runtime]\nlog_level = \"info\""]), [""; 0]);
    assert_eq!(problems(&["[crio.runtime]\nlog_level = 1", "[crio.runtime]\nlog_level = \"info\""]).len(), 1);
}

#[test]
fn a_handler_of_a_later_file_replaces_the_earlier_one_as_a_whole() {
    let config = loaded(&[
        "[crio.runtime.runtimes.runc]\nruntime_path = \"/usr/bin/runc\"\nruntime_root = \"/run/runc\"\nmonitor_cgroup = \"pod\"",
        "[crio.runtime.runtimes.runc]\nruntime_root = \"/run/other\"\n[crio.runtime.runtimes.crun]\n",
    ]);
    let expected = RuntimeHandler { runtime_root: "/run/other".into(), ..RuntimeHandler::default() };
    assert_eq!(config.runtime.runtimes["runc"], expected);
    let crun = &config.runtime.runtimes["crun"];
    assert_eq!(crun, &RuntimeHandler::default());
    assert_eq!(crun.container_min_memory, ByteCount::mib(12), "an empty table is not the built-in handler");
    assert_eq!(crun.container_create_timeout, Duration::from_secs(240));
    assert!(loaded(&["[crio.runtime.runtimes.x]"]).runtime.runtimes.contains_key("crun"), "others stay");
}

#[test]
fn handlers_that_cannot_be_used_are_left_out_unless_they_are_the_default() {
    for (text, key) in [
        ("runtime_type = \"docker\"", "runtime_type"),
        ("runtime_config_path = \"/etc/kata.toml\"", "runtime_config_path"),
        ("runtime_type = \"vm\"\nruntime_path = \"/usr/bin/kata\"", "runtime_path"),
        ("runtime_type = \"pod\"\nno_sync_log = true", "no_sync_log"),
        ("stream_websockets = true", "stream_websockets"),
        ("allowed_annotations = [\"io.kubernetes.cri-o.devices\"]", "allowed_annotations"),
        ("exec_cpu_affinity = \"last\"", "exec_cpu_affinity"),
        ("monitor_cgroup = \"system\"", "monitor_cgroup"),
        ("monitor_env = [\"A\"]", "monitor_env"),
        ("platform_runtime_paths = { linux = \"/x\" }", "platform_runtime_paths"),
    ] {
        let table = format!("[crio.runtime.runtimes.kata]\n{text}\n");
        let result = load_files(&[&table]).unwrap_or_else(|e| panic!("{e}"));
        assert!(!result.config.runtime.runtimes.contains_key("kata"), "{text}");
        let key = format!("crio.runtime.runtimes.kata.{key}");
        assert!(
            result.warnings.iter().any(|w| w.key == key && matches!(w.kind, WarningKind::HandlerDropped(_))),
            "{text}: {:?}",
            result.warnings
        );
        let as_default = format!("[crio.runtime]\ndefault_runtime = \"kata\"\n{table}");
        assert!(problems(&[&as_default]).iter().any(|problem| problem.contains(&key)), "{text}");
    }
}

#[test]
fn handlers_are_settled() {
    let config = loaded(&[r#"
        [crio.runtime]
        conmon = "/opt/conmon"
        conmon_env = ["A=b"]
        conmon_cgroup = "pod"
        enable_criu_support = false
        ctr_stop_timeout = 5
        [crio.runtime.runtimes.crun]
        runtime_path = "/opt/crun"
        runtime_root = "/run/mine"
        container_create_timeout = 5
        container_min_memory = "lots"
        [crio.runtime.runtimes.like]
        inherit_default_runtime = true
        runtime_path = "/ignored"
        [crio.runtime.runtimes.kata]
        runtime_type = "vm"
        runtime_path = "/usr/bin/containerd-shim-kata-v2"
        runtime_config_path = "/etc/kata.toml"
        default_annotations = { "a.b/c" = "d" }
        platform_runtime_paths = { "linux/arm64" = "/opt/arm", "linux/arm/v7" = "/opt/arm7" }
    "#]);
    let crun = &config.runtime.runtimes["crun"];
    assert_eq!(crun.monitor_path.as_deref(), Some(Path::new("/opt/conmon")));
    assert_eq!(crun.monitor_env, ["A=b"]);
    assert_eq!(crun.monitor_cgroup, MonitorCgroup::Sandbox);
    assert_eq!(crun.container_create_timeout, Duration::from_secs(30));
    assert_eq!(crun.container_min_memory, ByteCount::mib(12));
    let like = &config.runtime.runtimes["like"];
    assert_eq!(like.runtime_path.as_deref(), Some(Path::new("/opt/crun")));
    assert_eq!(like.runtime_root, Path::new("/run/mine"));
    let kata = &config.runtime.runtimes["kata"];
    assert_eq!(kata.runtime_type, RuntimeType::Vm);
    assert_eq!(kata.monitor_path, None, "conmon is for type oci");
    assert_eq!(kata.platform_runtime_paths.len(), 2);
    assert_eq!(kata.default_annotations["a.b/c"], "d");
    assert_eq!(config.checkpoint_restore.container_level_enabled, CheckpointRestoreLevel::None);
    assert_eq!(config.runtime.ctr_stop_timeout, Duration::from_secs(30));
}

#[test]
fn workloads() {
    let text = r#"
        [crio.runtime.workloads.management]
        activation_annotation = "target.workload/management"
        annotation_prefix = "resources.workload"
        [crio.runtime.workloads.management.resources]
        cpushares = 10
        CPUSet = "0-1"
        cpuperiod = 100000
    "#;
    let config = loaded(&[text]);
    let workload = &config.runtime.workloads["management"];
    assert_eq!(workload.resources.cpushares, 10);
    assert_eq!(workload.resources.cpuset.as_ref().map(|set| set.as_str()), Some("0-1"));
    let bad = "[crio.runtime.workloads.w]\nallowed_annotations = [\"x\"]\n[crio.runtime.workloads.w.resources]\n\
               cpushares = 10\ncpuquota = 5\ncpuperiod = 10\ncpuset = \"3-1\"\n";
    assert_eq!(problems(&[bad]).len(), 5, "{:?}", problems(&[bad]));
}

#[test]
fn storage_conf_fills_in_and_its_options_come_first() {
    let storage = file(
        "storage.conf",
        r#"
        [storage]
        driver = "overlay"
        graphroot = "/srv/graph"
        runroot = "/run/graph"
        imagestore = "/srv/images"
        [storage.options]
        additionalimagestores = ["/ro"]
        mount_program = "/usr/bin/fuse-overlayfs"
        size = ""
        [storage.options.overlay]
        mountopt = "nodev,metacopy=on"
        ignore_chown_errors = "true"
        "#,
    );
    let later = file("later.conf", "[storage]\nrunroot = \"/run/later\"");
    let from_storage = [
        "overlay.imagestore=/ro",
        "overlay.ignore_chown_errors=true",
        "overlay.mount_program=/usr/bin/fuse-overlayfs",
        "overlay.mountopt=nodev,metacopy=on",
    ];
    let sources = Sources { storage: vec![storage.clone(), later], ..Sources::default() };
    let config = load(&sources).expect("valid").config;
    assert_eq!(config.root.root, Path::new("/srv/graph"));
    assert_eq!(config.root.runroot, Path::new("/run/later"));
    assert_eq!(config.root.imagestore.as_deref(), Some(Path::new("/srv/images")));
    assert_eq!(config.root.storage_option, from_storage);

    let files = vec![
        file(
            "1",
            "[crio]\nroot = \"\"\nrunroot = \"/run/mine\"\nstorage_driver = \"\"\nstorage_option = [\"overlay.size=1g\"]",
        ),
        file("2", "[crio]\nstorage_option = [\"overlay.imagestore=/ro\"]"),
    ];
    let sources = Sources { storage: vec![storage], files, ..Sources::default() };
    let config = load(&sources).expect("valid").config;
    assert_eq!(config.root.root, Path::new("/srv/graph"), "an empty value falls back");
    assert_eq!(config.root.runroot, Path::new("/run/mine"));
    assert_eq!(config.root.storage_driver, StorageDriver::Overlay);
    let mut expected: Vec<_> = from_storage.iter().skip(1).copied().collect();
    expected.extend(["overlay.size=1g", "overlay.imagestore=/ro"]);
    assert_eq!(config.root.storage_option, expected, "of repeated options the last stays");

    let old = file("s", "[storage]\ndriver = \"overlay2\"\n[storage.options.overlay]\nsize = \"1g\"");
    let config = load(&Sources { storage: vec![old], ..Sources::default() }).expect("valid").config;
    assert_eq!(
        (config.root.storage_driver, config.root.storage_option),
        (StorageDriver::Overlay, vec!["overlay.size=1g".into()])
    );
    let bad = file("s.conf", "[storage]\n\ngraphroot = 1\ndriver = \"aufs\"\n");
    let error = load(&Sources { storage: vec![bad], ..Sources::default() }).expect_err("bad");
    let found: Vec<_> = error.problems().iter().map(ToString::to_string).collect();
    assert_eq!(found[0], "s.conf:3: storage.graphroot: expected a string, found integer");
    assert!(found[1].starts_with("s.conf:4: crio.storage_driver: \"aufs\" is not one of"), "{found:?}");

    let sources = Sources {
        storage: vec![file("s", "[storage]\ndriver = \"vfs\"\n[storage.options.vfs]\nignore_chown_errors = true")],
        storage_driver: Some("btrfs".into()),
        storage_options: Some("btrfs.size=1, btrfs.min_space=2".into()),
        ..Sources::default()
    };
    let config = load(&sources).expect("valid").config;
    assert_eq!(config.root.storage_driver, StorageDriver::Btrfs);
    assert_eq!(config.root.storage_option, ["btrfs.size=1", "btrfs.min_space=2"]);
}

#[test]
fn storage_conf_is_read_key_by_key_and_what_is_ignored_is_named() {
    let main = file(
        "main",
        concat!(
            "[storage]\ndriver_priority = [\"overlay2\", \"vfs\"]\ntransient_store = true\nrootless_storage_path = \"$HOME\"\n",
            "[storage.options]\nremap-user = \"containers\"\nmountopt = \"nodev\"\nsize = \"1g\"\nshiny = 1\n",
            "auto-userns-min-size = 10\ndisable-volatile = true\n[storage.options.pull_options]\nenable_partial_images = \"true\"\nconvert_images = \"true\"\nostree_repos = \"/a\"\nuse_hard_links = \"false\"\n",
            "[storage.options.overlay]\nmountop = \"typo\"\n[storage.options.vfs]\nsync = \"none\"\n[other]\n",
        ),
    );
    let later = file("later", "[storage.options]\nsize = \"\"\n[storage.options.overlay]\nmountopt = \"metacopy=on\"");
    let loaded = load(&Sources { storage: vec![main, later], ..Sources::default() }).expect("valid");
    assert_eq!(loaded.config.root.storage_option, ["overlay.mountopt=metacopy=on"]);
    assert_eq!(loaded.config.storage.driver_priority, ["overlay", "vfs"]);
    assert!(loaded.config.storage.disable_volatile && !loaded.config.storage.is_driver_named);
    let pull = loaded.config.storage.pull;
    assert!(pull.enable_partial_images && !pull.use_hard_links && !pull.allow_unpredictable);
    let mut named: Vec<_> = loaded.warnings.iter().map(ToString::to_string).collect();
    named.sort();
    assert_eq!(
        named,
        [
            "main:10: storage.options.auto-userns-min-size: accepted, but has no effect in this version",
            "main:14: storage.options.pull_options.convert_images: accepted, but has no effect in this version",
            "main:15: storage.options.pull_options.ostree_repos: accepted, but has no effect in this version",
            "main:18: storage.options.overlay.mountop: unknown key ignored",
            "main:21: other: unknown key ignored",
            "main:3: storage.transient_store: accepted, but has no effect in this version",
            "main:6: storage.options.remap-user: key of old versions ignored",
            "main:9: storage.options.shiny: unknown key ignored",
        ]
    );
    let named = file("s", "[storage]\ndriver = \"vfs\"");
    assert!(
        load(&Sources { storage: vec![named], ..Sources::default() }).expect("valid").config.storage.is_driver_named
    );
}

#[test]
fn deprecated_and_unknown_and_ineffective_keys_are_named() {
    let found = warnings(&[concat!(
        "[crio]\nfile_locking = true\nrooot = \"/x\"\ninternal_wipe = false\n[crio.runtime]\nmanage_ns_lifecycle = true\n",
        "ctr_stop_timeout = 31\nread_only = false\n[crio.network]\nplugin_dir = \"/p\"\n[crio.shiny]\na = 1\n[other]\n",
        "[crio.runtime.runtimes.crun]\nruntime_pth = \"\"\n",
    )]);
    for expected in [
        "0.conf:2: crio.file_locking: key of old versions ignored",
        "0.conf:3: crio.rooot: unknown key ignored",
        "0.conf:4: crio.internal_wipe: deprecated, ",
        "0.conf:6: crio.runtime.manage_ns_lifecycle: key of old versions ignored",
        "0.conf:7: crio.runtime.ctr_stop_timeout: accepted, but has no effect in this version",
        "0.conf:10: crio.network.plugin_dir: deprecated, use plugin_dirs",
        "0.conf:11: crio.shiny: unknown table ignored",
        "0.conf:13: other: unknown table ignored",
        "0.conf:15: crio.runtime.runtimes.crun.runtime_pth: unknown key ignored",
    ] {
        assert!(found.iter().any(|w| w.starts_with(expected)), "{expected}\nis not in\n{}", found.join("\n"));
    }
    assert_eq!(found.len(), 9, "{}", found.join("\n"));
    let config = loaded(&["[crio.network]\nplugin_dir = \"/p\""]);
    assert_eq!(config.network.plugin_dirs, [Path::new("/opt/cni/bin/"), Path::new("/p")]);
}

#[test]
fn labels_are_on_where_the_host_has_selinux_unless_a_key_says_otherwise() {
    for (has_selinux, text, expected) in [
        (false, "", false),
        (true, "", true),
        (true, "[crio.runtime]\nselinux = false", false),
        (false, "[crio.runtime]\nselinux = true", true),
    ] {
        let file = SourceFile { path: "0.conf".into(), bytes: text.into() };
        let loaded = load(&Sources { files: vec![file], has_selinux, ..Sources::default() }).expect("valid");
        assert_eq!((loaded.config.runtime.selinux, loaded.defaults.runtime.selinux), (expected, has_selinux), "{text}");
    }
}

#[test]
fn bytes_that_are_no_text_are_a_problem_of_their_file() {
    let bad = SourceFile { path: "bad".into(), bytes: b"[crio]\nroot = \"\xff\"".to_vec() };
    let error = load(&Sources { files: vec![bad], ..Sources::default() }).expect_err("not UTF-8");
    assert_eq!(
        error.to_string(),
        "1 problem in the configuration: bad:2: unable to decode configuration: bytes that are not UTF-8"
    );
}

/// Text made of pieces of configuration, so that many cases get past the TOML parser.
fn configuration() -> impl Strategy<Value = String> {
    let line = prop_oneof![
        Just("[crio]"),
        Just("[crio.runtime]"),
        Just("[crio.image]"),
        Just("[crio.runtime.runtimes.x]"),
        Just("[crio.runtime.runtimes.\"y.z\\n\"]"),
        Just("[crio.runtime.runtimes.crun]"),
        Just("[crio.runtime.workloads.w]"),
        Just("[crio.runtime.workloads.w.resources]"),
        Just("root = \"/a\\\"b\\\\\""),
        Just("log_level = \"debug\""),
        Just("log_size_max = 9223372036854775807"),
        Just("cgroup_manager = \"cgroupfs\""),
        Just("default_runtime = \"x\""),
        Just("storage_option = [\"a\", \"b\", \"a\"]"),
        Just("runtime_type = \"vm\""),
        Just("monitor_cgroup = \"a.slice\""),
        Just("container_create_timeout = -9223372036854775808"),
        Just("container_min_memory = \"1.5g\""),
        Just("default_annotations = { \"k\\u0000\" = \"v\\t\" }"),
        Just("activation_annotation = \"a\""),
        Just("cpuset = \"1\""),
        Just("pull_progress_timeout = \"1h1m1.000000001s\""),
        Just("conmon = \"/c\""),
        Just("conmon_cgroup = \"pod\""),
        Just("enable_criu_support = false"),
        Just("inherit_default_runtime = true"),
    ];
    proptest::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_bytes_are_survived(bytes: Vec<u8>) {
        config::fuzz(&bytes);
    }
    #[test]
    fn any_configuration_is_survived_and_prints_as_itself(text in configuration()) {
        config::fuzz(text.as_bytes());
    }
    #[test]
    fn any_text_in_a_value_prints_as_itself(text: String, name in "\\PC{1,8}") {
        let mut config = Config::default();
        config.image.pause_command = text.clone();
        config.runtime.absent_mount_sources_to_reject = vec![format!("/{text}").into()];
        config.runtime.runtimes.insert(name, RuntimeHandler::default());
        for which in [Template::Effective, Template::Default] {
            // What only storage.conf can say is in no printed file.
            let storage = config.storage.clone();
            let again = Config { storage, ..loaded(&[&template(&config, which)]) };
            prop_assert_eq!(&again, &config);
        }
    }
}
