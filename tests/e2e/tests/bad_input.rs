//! Requests that cannot be met are refused with the reason, and the node is as it was: disk, kernel, records.
//!
//! One line a mistake. `hostile::requests_that_make_no_sense_change_nothing` has those that every client makes first.
#![forbid(unsafe_code)]

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::{Setup, scenario, tools};

type Change<T> = Box<dyn Fn(&mut T)>;

fn id(value: i64) -> Option<v1::Int64Value> {
    Some(v1::Int64Value { value })
}

fn linux(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerConfig {
    config.linux.get_or_insert_default()
}

fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    linux(config).security_context.get_or_insert_default()
}

fn own(change: impl Fn(&mut v1::ContainerConfig) + 'static) -> Change<v1::ContainerConfig> {
    Box::new(change)
}

fn pod(change: impl Fn(&mut v1::PodSandboxConfig) + 'static) -> Change<v1::PodSandboxConfig> {
    Box::new(change)
}

fn limits(change: impl Fn(&mut v1::LinuxContainerResources) + 'static) -> Change<v1::ContainerConfig> {
    Box::new(move |config| change(linux(config).resources.get_or_insert_default()))
}

fn who(change: impl Fn(&mut v1::LinuxContainerSecurityContext) + 'static) -> Change<v1::ContainerConfig> {
    Box::new(move |config| change(context(config)))
}

fn mount(change: impl Fn(&mut v1::Mount) + 'static) -> Change<v1::ContainerConfig> {
    Box::new(move |config| {
        let mut mount = v1::Mount { container_path: "/x".into(), host_path: "/tmp".into(), ..Default::default() };
        change(&mut mount);
        config.mounts = vec![mount];
    })
}

fn device(host_path: &'static str, permissions: &'static str) -> Change<v1::ContainerConfig> {
    Box::new(move |config| {
        let device = v1::Device { host_path: host_path.into(), permissions: permissions.into(), ..Default::default() };
        config.devices = vec![device];
    })
}

fn seccomp(profile_type: i32, reference: &'static str) -> Change<v1::ContainerConfig> {
    who(move |context| context.seccomp = Some(v1::SecurityProfile { profile_type, localhost_ref: reference.into() }))
}

/// What is wrong, and a part of what the refusal says.
fn containers() -> Vec<(&'static str, Change<v1::ContainerConfig>, &'static str)> {
    let named = |name: String| -> Change<v1::ContainerConfig> {
        Box::new(move |config| config.metadata.as_mut().expect("metadata").name.clone_from(&name))
    };
    let localhost = v1::security_profile::ProfileType::Localhost.into();
    vec![
        ("a name of two lines", named("a\nb".into()), "name"),
        ("a name as a path", named("../a".into()), "name"),
        ("an endless name", named("x".repeat(4096)), "name"),
        ("an image of two words", own(|config| config.image.as_mut().expect("image").image = "a b".into()), "image"),
        (
            "an image that is not here",
            own(|config| config.image.as_mut().expect("image").image = "127.0.0.1:5000/e2e/none:1".into()),
            "e2e/none",
        ),
        ("a label too long", own(|config| _ = config.labels.insert("k".into(), "v".repeat(4096))), "4096"),
        ("a user beyond 32 bits", who(|context| context.run_as_user = id(1 << 32)), "run_as_user 4294967296"),
        ("the user that is none", who(|context| context.run_as_user = id((1 << 32) - 1)), "run_as_user 4294967295"),
        ("a negative user", who(|context| context.run_as_user = id(-1)), "run_as_user -1"),
        (
            "a group beyond 32 bits",
            who(|context| (context.run_as_user, context.run_as_group) = (id(1), id(1 << 32))),
            "run_as_group",
        ),
        ("a group without user", who(|context| context.run_as_group = id(1)), "run_as_user"),
        ("a user nobody knows", who(|context| context.run_as_username = "nobody-here".into()), "nobody-here"),
        ("a number as name, too large", who(|context| context.run_as_username = "4294967296".into()), "4294967296"),
        ("a negative further group", who(|context| context.supplemental_groups = vec![1, -1]), "supplemental_groups"),
        (
            "a capability that is none",
            who(|context| context.capabilities.get_or_insert_default().add_capabilities = vec!["NONSENSE".into()]),
            "NONSENSE",
        ),
        ("a seccomp profile that is not here", seccomp(localhost, "/no/such.json"), "/no/such.json"),
        ("a seccomp profile without a place", seccomp(localhost, "such.json"), "such.json"),
        ("a seccomp profile of no kind", seccomp(9, ""), "seccomp"),
        (
            "a target that is not here",
            who(|context| {
                let options = context.namespace_options.get_or_insert_default();
                options.pid = v1::NamespaceMode::Target.into();
                options.target_id = "0123456789".into();
            }),
            "0123456789",
        ),
        ("a namespace of no kind", who(|context| context.namespace_options.get_or_insert_default().ipc = 9), "ipc"),
        ("privilege in an ordinary pod", who(|context| context.privileged = true), "privileged"),
        ("a mount from a relative path", mount(|mount| mount.host_path = "tmp".into()), "host_path"),
        ("a mount from a climbing path", mount(|mount| mount.host_path = "/proc/../tmp".into()), "host_path"),
        ("a mount to nowhere", mount(|mount| mount.container_path.clear()), "container_path"),
        (
            "a mount to an endless path",
            mount(|mount| mount.container_path = format!("/{}", "x/".repeat(4096))),
            "container_path",
        ),
        ("a propagation of no kind", mount(|mount| mount.propagation = 7), "propagation"),
        ("all read-only of what is not", mount(|mount| mount.recursive_read_only = true), "recursive"),
        ("a device that is not here", device("/dev/no-such-device", "rwm"), "/dev/no-such-device"),
        ("a device that is a file", device("/etc/passwd", "rwm"), "/etc/passwd"),
        ("a device by a relative path", device("null", "rwm"), "host_path"),
        ("a device to execute", device("/dev/null", "rwx"), "permissions"),
        (
            "a device nobody describes",
            own(|config| config.cdi_devices = vec![v1::CdiDevice { name: "example.com/none=0".into() }]),
            "example.com/none=0",
        ),
        ("memory for nothing", limits(|limits| limits.memory_limit_in_bytes = 4096), "too low"),
        ("negative memory", limits(|limits| limits.memory_limit_in_bytes = -1), "memory_limit_in_bytes"),
        (
            "swap below memory",
            limits(|limits| {
                limits.memory_limit_in_bytes = 64 << 20;
                limits.memory_swap_limit_in_bytes = 32 << 20;
            }),
            "swap",
        ),
        ("a negative quota", limits(|limits| limits.cpu_quota = -2), "cpu_quota"),
        ("a negative period", limits(|limits| limits.cpu_period = -1), "cpu_period"),
        ("an oom score beyond", limits(|limits| limits.oom_score_adj = 1001), "oom_score_adj"),
        ("processors that are words", limits(|limits| limits.cpuset_cpus = "all of them".into()), "cpuset"),
        (
            "pages of no size",
            limits(|limits| limits.hugepage_limits = vec![v1::HugepageLimit { page_size: "huge".into(), limit: 1 }]),
            "page_size",
        ),
        ("a signal that is none", own(|config| config.stop_signal = 4711), "stop_signal"),
        ("a log elsewhere", own(|config| config.log_path = "../../x.log".into()), "log_path"),
        (
            "a working directory of the kernel's",
            own(|config| config.working_dir = "/proc/self/fd/7".into()),
            "working directory",
        ),
        (
            "a variable with NUL",
            own(|config| {
                config.envs = vec![v1::KeyValue { key: "A".into(), value: b"x\0y".to_vec() }];
            }),
            "NUL",
        ),
    ]
}

fn pods() -> Vec<(&'static str, Change<v1::PodSandboxConfig>, &'static str, &'static str)> {
    let named = |name: String| -> Change<v1::PodSandboxConfig> {
        Box::new(move |config| config.metadata.as_mut().expect("metadata").name.clone_from(&name))
    };
    let cgroup = |parent: &'static str| -> Change<v1::PodSandboxConfig> {
        Box::new(move |config| config.linux.get_or_insert_default().cgroup_parent = parent.into())
    };
    let sysctl = |name: &'static str, value: &'static str| {
        pod(move |config| _ = config.linux.get_or_insert_default().sysctls.insert(name.into(), value.into()))
    };
    let security = |change: fn(&mut v1::LinuxSandboxSecurityContext)| -> Change<v1::PodSandboxConfig> {
        Box::new(move |config| change(config.linux.get_or_insert_default().security_context.get_or_insert_default()))
    };
    vec![
        ("a handler nobody configured", pod(|_| {}), "nonsense", "nonsense"),
        ("a handler that is a path", pod(|_| {}), "../crun", "../crun"),
        ("a name of two lines", named("a\nb".into()), "", "name"),
        ("an endless name", named("x".repeat(4096)), "", "name"),
        ("a hostname too long", pod(|config| config.hostname = "x".repeat(65)), "", "hostname"),
        ("a hostname of two words", pod(|config| config.hostname = "a b".into()), "", "hostname"),
        ("a relative log directory", pod(|config| config.log_directory = "logs".into()), "", "log_directory"),
        ("a cgroup that climbs", cgroup("/../x"), "", "cgroup"),
        ("a slice without systemd", cgroup("/x.slice"), "", "slice"),
        ("a user beyond 32 bits", security(|context| context.run_as_user = id(1 << 32)), "", "run_as_user"),
        (
            "a negative further group",
            security(|context| context.supplemental_groups = vec![-1]),
            "",
            "supplemental_groups",
        ),
        (
            "a namespace of no kind",
            security(|context| context.namespace_options.get_or_insert_default().network = 9),
            "",
            "network",
        ),
        (
            "a search domain of two lines",
            pod(|config| config.dns_config.get_or_insert_default().searches = vec!["a\nnameserver 6.6.6.6".into()]),
            "",
            "searches",
        ),
        ("a sysctl of two", sysctl("net.ipv4.ip_forward+kernel.panic", "1"), "", "sysctl"),
        ("a sysctl with another in its value", sysctl("kernel.shm_rmid_forced", "1+kernel.panic=4711"), "", "sysctl"),
        ("a sysctl that climbs", sysctl("net/../kernel/panic", "4711"), "", "sysctl"),
        ("a sysctl of two lines", sysctl("net.core.somaxconn", "1\n4711"), "", "sysctl"),
        ("a label too long", pod(|config| _ = config.labels.insert("k".into(), "v".repeat(4096))), "", "4096"),
    ]
}

#[test]
fn what_cannot_be_met_is_refused_with_the_reason_and_changes_nothing() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("fine"), "").await.expect("RunPodSandbox");
        // The first container leaves what later ones use.
        let kept = cri.run(&pod, container_config(&image, "kept", WAIT)).await;
        let before = world.settled().await;
        for (what, change, expected) in containers() {
            let mut config = container_config(&image, "bad", WAIT);
            change(&mut config);
            let error = cri.create(&pod, config).await.expect_err(what);
            let message = error.message();
            assert!(message.contains(expected), "{what}: {error:?}");
            assert!(message.len() < 4096 && !message.contains('\n'), "{what}: {error:?}");
        }
        world.assert_nothing_since(&before).await;
        for (what, change, handler, expected) in pods() {
            let mut config = world.pod_config("bad");
            change(&mut config);
            let error = cri.run_pod(config, handler).await.expect_err(what);
            assert!(error.message().contains(expected), "{what}: {error:?}");
        }
        world.assert_nothing_since(&before).await;
        // Nothing is gone, either.
        let after = world.snapshot();
        assert!(before.since(&after).is_empty(), "gone:\n{}", before.since(&after));
        assert_eq!(cri.output(&kept.id, &["echo", "fine"]).await, "fine");
        // What may be left out is left out, and the node's own is as it was.
        let panic = tools::read("/proc/sys/kernel/panic");
        let mut config = world.pod_config("sysctls");
        config.linux.get_or_insert_default().sysctls = [("kernel.panic".to_owned(), "4711".to_owned())].into();
        let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
        assert_eq!(tools::read("/proc/sys/kernel/panic"), panic);
        cri.end_pod(&pod.id).await;
    });
}
