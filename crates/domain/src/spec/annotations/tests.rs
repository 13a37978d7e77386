use super::*;
use crate::container::{ImageSpec, Propagation};
use crate::resources::HugepageLimit;
use crate::sandbox::Protocol;
use crate::security::{IdMapping, NamespaceMode, UserNamespace};

fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn id_text(digit: &str) -> String {
    digit.repeat(64)
}

fn sandbox() -> SandboxFacts {
    SandboxFacts {
        id: SandboxId::parse(&id_text("a")).expect("an id"),
        name: "k8s_web_default_u1_0".into(),
        infra_name: "k8s_POD_web_default_u1_0".into(),
        metadata: SandboxMetadata { name: "web".into(), uid: "u1".into(), namespace: "default".into(), attempt: 0 },
        labels: map(&[("app", "a<b>&c"), ("io.kubernetes.pod.name", "web")]),
        annotations: map(&[("example.com/x", "1")]),
        created: Timestamp::from_nanos(1_735_787_045_120_000_000),
        log_path: format!("/var/log/pods/default_web_u1/{}.log", id_text("a")),
        hostname: "web".into(),
        hostname_path: "/run/x/hostname".into(),
        resolv_path: "/run/x/resolv.conf".into(),
        shm_path: "/run/x/shm".into(),
        namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
        is_host_network: false,
        is_privileged: false,
        runtime_handler: String::new(),
        cgroup_parent: "/kubepods/pod1".into(),
        port_mappings: vec![PortMapping {
            protocol: Protocol::Tcp,
            container_port: 80,
            host_port: 8080,
            host_ip: String::new(),
        }],
        cni_result: Some(r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/16"}],"dns":{}}"#.into()),
        ips: vec!["10.0.0.5".into()],
        image: "registry.k8s.io/pause:3.10".into(),
        mount_point: "/var/lib/containers/storage/overlay/x/merged".into(),
        seccomp_profile: "Unconfined".into(),
        stop_signal: None,
        is_spoofed: true,
        overhead: None,
        resources: Some(Resources { cpu_shares: 2, ..Resources::default() }),
    }
}

fn container() -> ContainerFacts {
    ContainerFacts {
        id: ContainerId::parse(&id_text("c")).expect("an id"),
        name: "k8s_nginx_web_default_u1_2".into(),
        sandbox_id: SandboxId::parse(&id_text("a")).expect("an id"),
        sandbox_name: "k8s_web_default_u1_0".into(),
        metadata: ContainerMetadata { name: "nginx".into(), attempt: 2 },
        labels: map(&[("io.kubernetes.container.name", "nginx")]),
        annotations: map(&[("io.kubernetes.pod.terminationGracePeriod", "30")]),
        created: Timestamp::from_nanos(1_735_787_045_000_000_000),
        log_path: "/var/log/pods/default_web_u1/nginx/2.log".into(),
        image: "nginx".into(),
        image_name: "docker.io/library/nginx:latest".into(),
        image_id: Some(ImageId::parse(&id_text("1")).expect("an id")),
        repo_digests: vec![format!("docker.io/library/nginx@sha256:{}", id_text("2"))],
        has_tty: false,
        has_stdin: true,
        is_stdin_once: false,
        resolv_path: "/run/x/resolv.conf".into(),
        mount_point: "/m".into(),
        seccomp_profile: "RuntimeDefault".into(),
        ips: vec!["10.0.0.5".into()],
        volumes: vec![Mount {
            container_path: "/data".into(),
            host_path: "/srv".into(),
            readonly: true,
            propagation: Propagation::HostToContainer,
            image: Some(ImageSpec { image: "i".into(), ..ImageSpec::default() }),
            ..Mount::default()
        }],
        stop_signal: Some("SIGQUIT".into()),
        platform_runtime_path: String::new(),
    }
}

/// Written out from what CRI-O 1.37's structs and tags produce for the facts above.
#[test]
fn a_sandbox_is_written_in_the_inherited_form() {
    let written = sandbox_annotations(&sandbox());
    let a = id_text("a");
    let log = format!("/var/log/pods/default_web_u1/{a}.log");
    let expected = map(&[
        ("app", "a<b>&c"),
        ("example.com/x", "1"),
        ("io.container.manager", "cri-o"),
        ("io.kubernetes.pod.name", "web"),
        ("io.kubernetes.cri-o.Annotations", r#"{"example.com/x":"1"}"#),
        ("io.kubernetes.cri-o.CNIResult", r#"{"cniVersion":"1.0.0","ips":[{"address":"10.0.0.5/16"}],"dns":{}}"#),
        ("io.kubernetes.cri-o.CgroupParent", "/kubepods/pod1"),
        ("io.kubernetes.cri-o.ContainerID", &a),
        ("io.kubernetes.cri-o.ContainerName", "k8s_POD_web_default_u1_0"),
        ("io.kubernetes.cri-o.ContainerType", "sandbox"),
        ("io.kubernetes.cri-o.Created", "2025-01-02T03:04:05.12Z"),
        ("io.kubernetes.cri-o.HostName", "web"),
        ("io.kubernetes.cri-o.HostNetwork", "false"),
        ("io.kubernetes.cri-o.HostnamePath", "/run/x/hostname"),
        ("io.kubernetes.cri-o.IP.0", "10.0.0.5"),
        ("io.kubernetes.cri-o.Image", "registry.k8s.io/pause:3.10"),
        ("io.kubernetes.cri-o.ImageName", "registry.k8s.io/pause:3.10"),
        ("io.kubernetes.cri-o.KubeName", "web"),
        ("io.kubernetes.cri-o.Labels", r#"{"app":"a\u003cb\u003e\u0026c","io.kubernetes.pod.name":"web"}"#),
        ("io.kubernetes.cri-o.LogPath", &log),
        ("io.kubernetes.cri-o.Metadata", r#"{"name":"web","uid":"u1","namespace":"default"}"#),
        ("io.kubernetes.cri-o.MountPoint", "/var/lib/containers/storage/overlay/x/merged"),
        ("io.kubernetes.cri-o.Name", "k8s_web_default_u1_0"),
        ("io.kubernetes.cri-o.Namespace", "default"),
        ("io.kubernetes.cri-o.NamespaceOptions", r#"{"pid":1}"#),
        ("io.kubernetes.cri-o.PortMappings", r#"[{"HostPort":8080,"ContainerPort":80,"Protocol":"TCP","HostIP":""}]"#),
        ("io.kubernetes.cri-o.PrivilegedRuntime", "false"),
        ("io.kubernetes.cri-o.ResolvPath", "/run/x/resolv.conf"),
        ("io.kubernetes.cri-o.RuntimeHandler", ""),
        ("io.kubernetes.cri-o.SandboxID", &a),
        ("io.kubernetes.cri-o.SandboxName", "k8s_web_default_u1_0"),
        ("io.kubernetes.cri-o.SeccompProfilePath", "Unconfined"),
        ("io.kubernetes.cri-o.ShmPath", "/run/x/shm"),
        ("pod-linux-overhead.crio.io", "null"),
        ("pod-linux-resources.crio.io", r#"{"cpu_shares":2}"#),
        ("spoofed.crio.io", "true"),
    ]);
    assert_eq!(written, expected);
    assert_eq!(parse_sandbox_annotations(&written).expect("parses"), sandbox());
}

#[test]
fn a_container_is_written_in_the_inherited_form() {
    let pod = map(&[("example.com/x", "1"), ("io.containers.trace-syscall/nginx", "of:/t"), ("k", "pod")]);
    let written = container_annotations(&container(), &pod, CgroupManagerKind::Systemd);
    let (a, c, image) = (id_text("a"), id_text("c"), id_text("1"));
    let digest = format!("docker.io/library/nginx@sha256:{}", id_text("2"));
    let expected = map(&[
        ("example.com/x", "1"),
        ("io.container.manager", "cri-o"),
        ("io.containers.trace-syscall", "of:/t"),
        ("io.kubernetes.container.name", "nginx"),
        ("io.kubernetes.pod.terminationGracePeriod", "30"),
        ("k", "pod"),
        ("io.kubernetes.cri-o.Annotations", r#"{"io.kubernetes.pod.terminationGracePeriod":"30"}"#),
        ("io.kubernetes.cri-o.ContainerID", &c),
        ("io.kubernetes.cri-o.ContainerType", "container"),
        ("io.kubernetes.cri-o.Created", "2025-01-02T03:04:05Z"),
        ("io.kubernetes.cri-o.IP.0", "10.0.0.5"),
        ("io.kubernetes.cri-o.Image", "nginx"),
        ("io.kubernetes.cri-o.ImageName", "docker.io/library/nginx:latest"),
        ("io.kubernetes.cri-o.ImageRef", &image),
        ("io.kubernetes.cri-o.ImageRepoDigests", &digest),
        ("io.kubernetes.cri-o.Labels", r#"{"io.kubernetes.container.name":"nginx"}"#),
        ("io.kubernetes.cri-o.LogPath", "/var/log/pods/default_web_u1/nginx/2.log"),
        ("io.kubernetes.cri-o.Metadata", r#"{"name":"nginx","attempt":2}"#),
        ("io.kubernetes.cri-o.MountPoint", "/m"),
        ("io.kubernetes.cri-o.Name", "k8s_nginx_web_default_u1_2"),
        ("io.kubernetes.cri-o.ResolvPath", "/run/x/resolv.conf"),
        ("io.kubernetes.cri-o.SandboxID", &a),
        ("io.kubernetes.cri-o.SandboxName", "k8s_web_default_u1_0"),
        ("io.kubernetes.cri-o.SeccompProfilePath", "RuntimeDefault"),
        ("io.kubernetes.cri-o.Stdin", "true"),
        ("io.kubernetes.cri-o.StdinOnce", "false"),
        ("io.kubernetes.cri-o.TTY", "false"),
        (
            "io.kubernetes.cri-o.Volumes",
            r#"[{"container_path":"/data","host_path":"/srv","readonly":true,"recursive_read_only":false,"propagation":1,"selinux_relabel":false,"image":{"image":"i"}}]"#,
        ),
        ("org.opencontainers.image.stopSignal", "SIGQUIT"),
        ("org.systemd.property.After", "['crio.service']"),
        ("org.systemd.property.DefaultDependencies", "true"),
        ("org.systemd.property.TimeoutStopUSec", "uint64 30000000"),
        ("platform-runtime-path.crio.io", ""),
    ]);
    assert_eq!(written, expected);
    assert_eq!(parse_container_annotations(&written).expect("parses"), container());
    let bare = ContainerFacts { labels: map(&[]), annotations: map(&[]), volumes: vec![], ..container() };
    let written = container_annotations(&bare, &map(&[]), CgroupManagerKind::Cgroupfs);
    assert_eq!(
        (written[LABELS].as_str(), written[ANNOTATIONS].as_str(), written[VOLUMES].as_str()),
        ("null", "null", "[]")
    );
    assert!(!written.keys().any(|key| key.starts_with("org.systemd")));
    assert_eq!(parse_container_annotations(&written).expect("parses"), bare);
}

#[test]
fn everything_optional_survives_a_round_trip() {
    let mapping = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
    let facts = SandboxFacts {
        metadata: SandboxMetadata { attempt: 7, ..sandbox().metadata },
        namespaces: NamespaceOptions {
            network: NamespaceMode::Node,
            pid: NamespaceMode::Target,
            ipc: NamespaceMode::Node,
            target_id: id_text("e"),
            user: Some(UserNamespace { mode: NamespaceMode::Pod, uids: vec![mapping], gids: vec![mapping] }),
        },
        is_host_network: true,
        is_privileged: true,
        cni_result: None,
        ips: vec![],
        port_mappings: vec![],
        stop_signal: Some("9".into()),
        is_spoofed: false,
        overhead: Some(Resources {
            cpu_period_us: 1,
            cpu_quota_us: -1,
            memory_limit_bytes: 3,
            memory_swap_limit_bytes: 4,
            oom_score_adj: -5,
            cpuset_cpus: "0".into(),
            cpuset_mems: "1".into(),
            hugepages: vec![HugepageLimit { page_size: "2MB".into(), limit_bytes: u64::MAX }],
            unified: map(&[("memory.high", "1")]),
            ..Resources::default()
        }),
        ..sandbox()
    };
    let written = sandbox_annotations(&facts);
    assert_eq!(
        written[NAMESPACE_OPTIONS],
        format!(
            r#"{{"network":2,"pid":3,"ipc":2,"target_id":"{}","userns_options":{{"uids":[{{"host_id":100000,"length":65536}}],"gids":[{{"host_id":100000,"length":65536}}]}}}}"#,
            id_text("e")
        )
    );
    assert_eq!(written[PORT_MAPPINGS], "[]");
    assert_eq!(parse_sandbox_annotations(&written).expect("parses"), facts);
    assert_eq!(facts.config().log_directory, "/var/log/pods/default_web_u1");
}

/// A pod's author cannot write what a restart would believe.
#[test]
fn keys_of_ours_do_not_come_from_pods() {
    let hostile = map(&[
        (CNI_RESULT, "{}"),
        ("io.kubernetes.cri-o.IP.0", "1.2.3.4"),
        ("io.kubernetes.cri-o.IP.7", "1.2.3.4"),
        (SPOOFED, "true"),
        (SPOOFED_OLD, "true"),
        (SANDBOX_ID, "x"),
        (CONTAINER_MANAGER, "libpod"),
        (STOP_SIGNAL, "SIGKILL"),
        (IMAGE_REF, "y"),
        (POD_LINUX_OVERHEAD_OLD, "{"),
    ]);
    let facts = SandboxFacts {
        annotations: hostile.clone(),
        labels: hostile.clone(),
        is_spoofed: false,
        cni_result: None,
        ips: vec![],
        ..sandbox()
    };
    assert_eq!(parse_sandbox_annotations(&sandbox_annotations(&facts)).expect("parses"), facts);
    let facts = ContainerFacts {
        annotations: hostile.clone(),
        labels: hostile.clone(),
        stop_signal: None,
        ips: vec![],
        ..container()
    };
    let written = container_annotations(&facts, &hostile, CgroupManagerKind::Systemd);
    assert_eq!(parse_container_annotations(&written).expect("parses"), facts);
}

#[test]
fn a_grace_period_is_a_number() {
    for text in ["30 ExecStart=x", "-1", "", "99999999999999999999", "1.5"] {
        let facts = ContainerFacts { annotations: map(&[(GRACE_PERIOD, text)]), ..container() };
        let written = container_annotations(&facts, &map(&[]), CgroupManagerKind::Systemd);
        assert!(!written.contains_key("org.systemd.property.TimeoutStopUSec"), "{text:?}");
    }
}

#[test]
fn damaged_records_say_what_is_wrong() {
    let good = sandbox_annotations(&sandbox());
    for (key, value, expected) in [
        (METADATA, "{", "parse annotation io.kubernetes.cri-o.Metadata"),
        (
            METADATA,
            r#"{"name":"a/b","uid":"u","namespace":"n"}"#,
            "annotation io.kubernetes.cri-o.Metadata has an unusable name",
        ),
        (METADATA, r#"{"uid":"u","namespace":"n"}"#, "annotation io.kubernetes.cri-o.Metadata has an unusable name"),
        (LABELS, "[]", "parse annotation io.kubernetes.cri-o.Labels"),
        (CREATED, "yesterday", "annotation io.kubernetes.cri-o.Created has an invalid value: yesterday"),
        (
            NAMESPACE_OPTIONS,
            r#"{"pid":9}"#,
            "annotation io.kubernetes.cri-o.NamespaceOptions has an invalid value: namespace mode 9",
        ),
        (
            PORT_MAPPINGS,
            r#"[{"HostPort":70000}]"#,
            "annotation io.kubernetes.cri-o.PortMappings has an invalid value: port 70000",
        ),
        (CONTAINER_MANAGER, "libpod", "the record belongs to \"libpod\""),
        (
            CONTAINER_TYPE,
            "container",
            "annotation io.kubernetes.cri-o.ContainerType is \"container\", \"sandbox\" was expected",
        ),
        (SANDBOX_ID, "short", "annotation io.kubernetes.cri-o.SandboxID has an invalid value: short"),
        (NAME, "", "annotation io.kubernetes.cri-o.Name is missing or empty"),
    ] {
        let mut damaged = good.clone();
        damaged.insert(key.to_owned(), value.to_owned());
        let error = parse_sandbox_annotations(&damaged).expect_err("damaged");
        assert_eq!(error.to_string(), expected);
    }
    let mut older = good.clone();
    for key in [POD_LINUX_OVERHEAD, POD_LINUX_RESOURCES, SPOOFED] {
        older.remove(key);
    }
    older.insert(SPOOFED_OLD.into(), "true".into());
    older.insert(POD_LINUX_RESOURCES_OLD.into(), r#"{"cpu_shares":2}"#.into());
    assert_eq!(parse_sandbox_annotations(&older).expect("parses"), sandbox());
    fuzz_annotations(&serde_json::to_vec(&good).expect("serialises"));
    fuzz_annotations(b"{}");
}

/// Every byte of a sample replaced by what JSON, numbers and names stumble over.
#[test]
fn mutated_records_are_read_or_refused_and_never_change_on_the_way() {
    let samples = [
        serde_json::to_vec(&sandbox_annotations(&sandbox())).expect("serialises"),
        serde_json::to_vec(&container_annotations(&container(), &map(&[]), CgroupManagerKind::Cgroupfs))
            .expect("serialises"),
    ];
    for sample in samples {
        for at in (0..sample.len()).step_by(7) {
            for byte in [b'0', b'-', b'"', b'[', b'{', b'}', b'\\', b',', b'e', b'/', 0x7f, 0xc3] {
                let mut mutated = sample.clone();
                mutated[at] = byte;
                fuzz_annotations(&mutated);
            }
            fuzz_annotations(&sample[at..]);
        }
    }
}
