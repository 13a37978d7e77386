use super::*;

fn sandbox() -> v1::PodSandboxConfig {
    v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: "web".into(),
            uid: "u1".into(),
            namespace: "default".into(),
            attempt: 3,
        }),
        ..v1::PodSandboxConfig::default()
    }
}

fn container() -> v1::ContainerConfig {
    v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata { name: "nginx".into(), attempt: 1 }),
        image: Some(v1::ImageSpec { image: "nginx".into(), ..v1::ImageSpec::default() }),
        ..v1::ContainerConfig::default()
    }
}

fn with_security(security: v1::LinuxContainerSecurityContext) -> v1::ContainerConfig {
    let linux = v1::LinuxContainerConfig { security_context: Some(security), ..v1::LinuxContainerConfig::default() };
    v1::ContainerConfig { linux: Some(linux), ..container() }
}

fn with_mount(mount: v1::Mount) -> v1::ContainerConfig {
    v1::ContainerConfig { mounts: vec![mount], ..container() }
}

fn a_mount() -> v1::Mount {
    v1::Mount { container_path: "/data".into(), host_path: "/srv".into(), ..v1::Mount::default() }
}

fn refused<T: std::fmt::Debug>(checked: Checked<T>) -> String {
    checked.expect_err("refused").to_string()
}

#[test]
fn the_least_sandbox_gets_its_labels() {
    let config = sandbox_config(sandbox()).expect("valid");
    let labels: Vec<_> = config.labels.iter().map(|(key, value)| (key.as_str(), value.as_str())).collect();
    assert_eq!(labels, [(POD_NAME, "web"), (POD_NAMESPACE, "default"), (POD_UID, "u1")]);
    assert_eq!((config.metadata.attempt, config.dns, config.port_mappings.len()), (3, None, 0));
    let own = HashMap::from([(POD_NAME.to_owned(), "mine".to_owned())]);
    let config = sandbox_config(v1::PodSandboxConfig { labels: own, ..sandbox() }).expect("valid");
    assert_eq!(config.labels[POD_NAME], "mine");
}

#[test]
fn sandboxes_are_refused_by_field() {
    let metadata = |name: &str, namespace: &str, uid: &str| v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: name.into(),
            uid: uid.into(),
            namespace: namespace.into(),
            attempt: 0,
        }),
        ..sandbox()
    };
    let port = |protocol, container_port, host_port, host_ip: &str| v1::PodSandboxConfig {
        port_mappings: vec![v1::PortMapping { protocol, container_port, host_port, host_ip: host_ip.into() }],
        ..sandbox()
    };
    let dns = |server: &str| v1::PodSandboxConfig {
        dns_config: Some(v1::DnsConfig { servers: vec![server.into()], ..v1::DnsConfig::default() }),
        ..sandbox()
    };
    let label =
        |size: usize| v1::PodSandboxConfig { labels: HashMap::from([("k".to_owned(), "v".repeat(size))]), ..sandbox() };
    for (config, expected) in [
        (v1::PodSandboxConfig { metadata: None, ..sandbox() }, "metadata is required"),
        (metadata("", "n", "u"), "metadata: name must not be empty"),
        (metadata("a", "", "u"), "metadata: namespace must not be empty"),
        (metadata("a", "n", ""), "metadata: uid must not be empty"),
        (metadata("a/b", "n", "u"), "metadata: name \"a/b\" contains a slash, a control character or is too long"),
        (label(4096), "label \"k\" is 4097 bytes with its value, 4096 is the limit"),
        (port(0, 0, 80, ""), "port_mappings.container_port 0 is out of range"),
        (port(0, 80, 65_536, ""), "port_mappings.host_port 65536 is out of range"),
        (port(7, 80, 80, ""), "port_mappings.protocol 7 is not a value of this enumeration"),
        (port(0, 80, 80, "localhost"), "port_mappings.host_ip \"localhost\" is not an address"),
        (dns("1.1.1.1\noptions x"), "dns_config.servers \"1.1.1.1\\noptions x\" is not one word"),
        (
            v1::PodSandboxConfig { log_directory: "logs".into(), ..sandbox() },
            "log_directory \"logs\" is not an absolute path without .. segments",
        ),
        (
            v1::PodSandboxConfig { log_directory: "/var/log/../../etc".into(), ..sandbox() },
            "log_directory \"/var/log/../../etc\" is not an absolute path without .. segments",
        ),
        (
            v1::PodSandboxConfig { hostname: "a\nb".into(), ..sandbox() },
            "hostname \"a\\nb\" is not a hostname of at most 64 bytes",
        ),
    ] {
        assert_eq!(refused(sandbox_config(config)), expected);
    }
    assert!(sandbox_config(label(4095)).is_ok());
}

#[test]
fn ports_without_a_host_port_only_inform() {
    let mapping =
        |host_port, container_port| v1::PortMapping { protocol: 2, container_port, host_port, host_ip: "::1".into() };
    // What is dropped is not judged.
    let config = v1::PodSandboxConfig {
        port_mappings: vec![mapping(0, 1), mapping(-1, 999_999), mapping(8080, 80)],
        ..sandbox()
    };
    let ports = sandbox_config(config).expect("valid").port_mappings;
    assert_eq!(
        ports,
        [PortMapping { protocol: Protocol::Sctp, container_port: 80, host_port: 8080, host_ip: "::1".into() }]
    );
}

#[test]
fn an_empty_dns_configuration_is_none() {
    let config = v1::PodSandboxConfig { dns_config: Some(v1::DnsConfig::default()), ..sandbox() };
    assert_eq!(sandbox_config(config).expect("valid").dns, None);
}

#[test]
fn containers_are_refused_by_field() {
    let env = |key: &str, value: &[u8]| v1::ContainerConfig {
        envs: vec![v1::KeyValue { key: key.into(), value: value.into() }],
        ..container()
    };
    let log = |log_path: &str| v1::ContainerConfig { log_path: log_path.into(), ..container() };
    let device = |host_path: &str, permissions: &str| v1::ContainerConfig {
        devices: vec![v1::Device {
            container_path: "/dev/x".into(),
            host_path: host_path.into(),
            permissions: permissions.into(),
        }],
        ..container()
    };
    for (config, expected) in [
        (v1::ContainerConfig { metadata: None, ..container() }, "metadata is required"),
        (v1::ContainerConfig { image: None, ..container() }, "image is required"),
        (v1::ContainerConfig { image: Some(v1::ImageSpec::default()), ..container() }, "image is required"),
        (log("/abs"), "log_path \"/abs\" is not a relative path without .. segments"),
        (log("a/../../b"), "log_path \"a/../../b\" is not a relative path without .. segments"),
        (log("a\nb"), "log_path \"a\\nb\" is not a relative path without .. segments"),
        (env("a=b", b"x"), "envs.key \"a=b\" contains an equals sign or a NUL byte"),
        (env("SECRET", b"x\xff"), "value of environment variable \"SECRET\" is not UTF-8"),
        (env("SECRET", b"x\0"), "value of environment variable \"SECRET\" contains a NUL byte"),
        (v1::ContainerConfig { args: vec!["a\0".into()], ..container() }, "args \"a\\0\" contains a NUL byte"),
        (device("dev/x", ""), "devices.host_path \"dev/x\" is not an absolute path without .. segments"),
        (device("", ""), "devices.host_path is required"),
        (device("/dev/x", "rx"), "devices.permissions \"rx\" is not a subset of rwm"),
        (with_mount(v1::Mount { container_path: String::new(), ..a_mount() }), "mounts.container_path is required"),
        (with_mount(v1::Mount { host_path: String::new(), ..a_mount() }), "mounts.host_path is required"),
        (
            with_mount(v1::Mount { host_path: "/a/../b".into(), ..a_mount() }),
            "mounts.host_path \"/a/../b\" is not an absolute path without .. segments",
        ),
        (
            with_mount(v1::Mount { propagation: 9, ..a_mount() }),
            "mounts.propagation 9 is not a value of this enumeration",
        ),
        (
            with_mount(v1::Mount {
                uid_mappings: vec![v1::IdMapping { host_id: u32::MAX, container_id: 0, length: 2 }],
                ..a_mount()
            }),
            "mounts.uidMappings 0:4294967295:2 is out of range",
        ),
        (v1::ContainerConfig { stop_signal: 66, ..container() }, "stop_signal 66 is not a value of this enumeration"),
    ] {
        assert_eq!(refused(container_config(config)), expected);
    }
}

#[test]
fn container_paths_become_absolute() {
    for (given, expected) in
        [("/data", "/data"), ("data", "/data"), ("/a/../b/", "/b"), ("//a/./b", "/a/b"), ("/../../x", "/x"), ("/", "/")]
    {
        let config = with_mount(v1::Mount { container_path: given.into(), ..a_mount() });
        assert_eq!(container_config(config).expect("valid").mounts[0].container_path, expected, "{given}");
    }
}

#[test]
fn host_paths_may_have_single_dots() {
    let config = with_mount(v1::Mount { host_path: "/mnt/./data/".into(), ..a_mount() });
    assert_eq!(container_config(config).expect("valid").mounts[0].host_path, "/mnt/./data/");
}

#[test]
fn image_mounts_need_no_host_path() {
    let image = |sub_path: &str| {
        with_mount(v1::Mount {
            container_path: "/i".into(),
            image: Some(v1::ImageSpec { image: "quay.io/x".into(), ..v1::ImageSpec::default() }),
            image_sub_path: sub_path.into(),
            readonly: true,
            ..v1::Mount::default()
        })
    };
    let config = container_config(image("a/b")).expect("valid");
    assert_eq!(config.mounts[0].image.as_ref().map(|image| image.image.as_str()), Some("quay.io/x"));
    assert!(container_config(image("../b")).is_err());
    let mut writable = image("a");
    writable.mounts[0].readonly = false;
    assert_eq!(refused(container_config(writable)), "mounts.image \"/i\" must be mounted with readonly set");
    // An image without a name is how some clients say "no image".
    let config = with_mount(v1::Mount { image: Some(v1::ImageSpec::default()), ..a_mount() });
    assert_eq!(container_config(config).expect("valid").mounts[0].image, None);
}

#[test]
fn ids_fit_the_kernel() {
    let with_user = |value| v1::LinuxContainerSecurityContext {
        run_as_user: Some(v1::Int64Value { value }),
        ..v1::LinuxContainerSecurityContext::default()
    };
    for (value, ok) in [
        (0, true),
        (4_294_967_294, true),
        (4_294_967_295, false),
        (4_294_967_296, false),
        (-1, false),
        (i64::MAX, false),
        (i64::MIN, false),
    ] {
        assert_eq!(container_config(with_security(with_user(value))).is_ok(), ok, "{value}");
    }
    for security in [
        v1::LinuxContainerSecurityContext { run_as_group: Some(v1::Int64Value { value: 5 }), ..Default::default() },
        v1::LinuxContainerSecurityContext { supplemental_groups: vec![1, -1], ..Default::default() },
        v1::LinuxContainerSecurityContext { supplemental_groups_policy: 2, ..Default::default() },
    ] {
        assert!(container_config(with_security(security)).is_err());
    }
}

#[test]
fn resources_keep_their_limits() {
    let base = v1::LinuxContainerResources::default();
    for (asked, ok) in [
        (v1::LinuxContainerResources { cpu_quota: -1, memory_swap_limit_in_bytes: -1, ..base.clone() }, true),
        (v1::LinuxContainerResources { oom_score_adj: -998, ..base.clone() }, true),
        (v1::LinuxContainerResources { cpu_quota: -2, ..base.clone() }, false),
        (v1::LinuxContainerResources { cpu_period: -1, ..base.clone() }, false),
        (v1::LinuxContainerResources { cpu_shares: -1, ..base.clone() }, false),
        (v1::LinuxContainerResources { memory_limit_in_bytes: -1, ..base.clone() }, false),
        (v1::LinuxContainerResources { memory_swap_limit_in_bytes: -2, ..base.clone() }, false),
        (v1::LinuxContainerResources { oom_score_adj: 1001, ..base.clone() }, false),
        (
            v1::LinuxContainerResources {
                hugepage_limits: vec![v1::HugepageLimit { page_size: "2/MB".into(), limit: 1 }],
                ..base
            },
            false,
        ),
    ] {
        assert_eq!(resources(asked.clone()).is_ok(), ok, "{asked:?}");
    }
}

#[test]
fn profiles_come_typed_or_as_text() {
    let typed =
        |profile_type, reference: &str| Some(v1::SecurityProfile { profile_type, localhost_ref: reference.into() });
    #[expect(deprecated, reason = "the text form is what is tested")]
    let check = |apparmor: Option<v1::SecurityProfile>, text: &str| {
        let security = v1::LinuxContainerSecurityContext {
            apparmor: apparmor.clone(),
            seccomp: apparmor,
            apparmor_profile: text.into(),
            seccomp_profile_path: text.into(),
            ..Default::default()
        };
        container_config(with_security(security)).map(|config| (config.security.apparmor, config.security.seccomp))
    };
    let local = |name: &str| Some(SecurityProfile::Localhost(name.into()));
    assert_eq!(check(None, ""), Ok((None, None)));
    let default = Some(SecurityProfile::RuntimeDefault);
    assert_eq!(check(None, "runtime/default"), Ok((default.clone(), default.clone())));
    assert_eq!(check(None, "localhost/p"), Ok((local("p"), local("p"))));
    assert_eq!(check(typed(2, "localhost/p"), "unconfined"), Ok((local("p"), local("localhost/p"))));
    assert_eq!(check(typed(0, ""), "unconfined"), Ok((default.clone(), default)));
    for (apparmor, text) in [(None, "nonsense"), (None, "localhost/"), (typed(2, ""), ""), (typed(3, ""), "")] {
        assert!(check(apparmor.clone(), text).is_err(), "{apparmor:?} {text}");
    }
}

#[test]
fn namespaces_are_checked() {
    let check = |options| {
        let security = v1::LinuxContainerSecurityContext { namespace_options: Some(options), ..Default::default() };
        container_config(with_security(security)).map(|config| config.security.namespaces)
    };
    let modes = check(v1::NamespaceOption { network: 2, pid: 1, ipc: 0, ..Default::default() }).expect("valid");
    assert_eq!(
        (modes.network, modes.pid, modes.ipc),
        (NamespaceMode::Node, NamespaceMode::Container, NamespaceMode::Pod)
    );
    for options in [
        v1::NamespaceOption { pid: 4, ..Default::default() },
        v1::NamespaceOption { pid: 3, ..Default::default() },
        v1::NamespaceOption {
            userns_options: Some(v1::UserNamespace { mode: 1, ..Default::default() }),
            ..Default::default()
        },
    ] {
        assert!(check(options.clone()).is_err(), "{options:?}");
    }
}

#[test]
fn labels_of_selinux_have_no_separators() {
    let check = |kind: &str, level: &str| {
        selinux(Some(v1::SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() }))
    };
    assert!(check("spc_t", "s0:c1,c2").is_ok());
    assert!(check("spc_t:s0", "").is_err());
    assert!(check("spc t", "").is_err());
    assert_eq!(check("", ""), Ok(None));
}

#[test]
fn all_signals_have_their_number() {
    for (value, number) in
        [(1, 6), (5, 17), (13, 9), (18, 3), (23, 15), (35, 34), (36, 35), (50, 49), (51, 50), (64, 63), (65, 64)]
    {
        assert_eq!(stop_signal(value).expect("valid").map(Signal::number), Some(number), "{value}");
    }
    assert_eq!(stop_signal(0), Ok(None));
    assert!((1..=65).all(|value| matches!(stop_signal(value), Ok(Some(_)))));
    assert!(stop_signal(-1).is_err());
}

#[test]
fn what_is_no_sysctl_is_refused_and_what_is_not_the_pods_is_left_for_later() {
    for (name, value, is_accepted) in [
        ("net.ipv4.ip_forward", "1", true),
        ("kernel.panic", "4321", true),
        ("net.ipv4.ip_local_port_range", "1024 65000'+'net.ipv4.ip_forward=0'", false),
        ("kernel.shm_rmid_forced", "1+kernel.core_pattern=|/x", false),
        ("net.ipv4.ip_local_port_range=1024 65000'+'net.ipv4.ip_forward", "0", false),
        ("net.ipv4.x", "1\nkernel.panic=1", false),
    ] {
        let checked = sysctls(HashMap::from([(name.to_owned(), value.to_owned())]));
        assert_eq!(checked.is_ok(), is_accepted, "{name}={value:?}: {checked:?}");
    }
}
