//! What a container may do to the node it runs on.
#![forbid(unsafe_code)]

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::world::HANDLERS;
use e2e::{Setup, scenario, tools};
use tonic::Code;

fn context(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

/// A field of a process's status.
fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default()
}

#[test]
fn an_ordinary_container_cannot_touch_the_node() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in &HANDLERS[..2] {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let mut config = container_config(&image, "main", WAIT);
            // What the kubelet sends for every pod that does not ask for `procMount: Unmasked`.
            let list = |paths: &str| paths.split_whitespace().map(str::to_owned).collect();
            context(&mut config).masked_paths =
                list("/proc/acpi /proc/kcore /proc/keys /proc/timer_list /sys/firmware");
            context(&mut config).readonly_paths = list("/proc/bus /proc/fs /proc/irq /proc/sys /proc/sysrq-trigger");
            let container = cri.run(&pod, config).await;
            // Nothing is written even if it could be: these files act on the machine the test runs on.
            let fails = async |script: &str| {
                let answer = cri.exec(&container.id, &["sh", "-c", script], 10).await.expect("ExecSync");
                assert_ne!(answer.exit_code, 0, "{name}: {script}: {}", String::from_utf8_lossy(&answer.stdout));
            };
            fails(": >> /proc/sys/kernel/panic").await;
            fails(": >> /proc/sysrq-trigger").await;
            fails("mount -t tmpfs tmpfs /mnt").await;
            fails("touch /sys/here").await;
            fails("test -s /proc/kcore").await;
            fails("test -s /proc/keys").await;
            fails("hostname other").await;
            fails("mknod /tmp/disk b 254 0 && : < /tmp/disk").await;
            let status = cri.output(&container.id, &["cat", "/proc/1/status"]).await;
            assert_eq!(field(&status, "CapInh:"), "0000000000000000", "{name}");
            // Those of the configuration's default list, as numbers of bits.
            let effective = u64::from_str_radix(field(&status, "CapEff:"), 16).expect("hexadecimal");
            for (capability, bit) in
                [("SYS_ADMIN", 21), ("NET_ADMIN", 12), ("SYS_MODULE", 16), ("SYS_PTRACE", 19), ("NET_RAW", 13)]
            {
                assert_eq!(effective & (1 << bit), 0, "{name}: {capability}");
            }
            // What the node itself may do stays out of reach by another user's programs, too.
            let links = cri.output(&container.id, &["ls", "/proc/self/fd"]).await;
            assert!(links.lines().count() <= 4, "{name}: descriptors of the daemon: {links}");
            cri.end_pod(&pod.id).await;
        }
    });
}

#[test]
fn seccomp_is_as_asked_for() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("seccomp"), "").await.expect("RunPodSandbox");
        let profile = world.path("profile.json");
        let deny = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]}"#;
        tools::write(&profile, deny);
        use v1::security_profile::ProfileType;
        let cases = [
            ("default", ProfileType::RuntimeDefault, String::new(), "2", true),
            ("none", ProfileType::Unconfined, String::new(), "0", true),
            ("own", ProfileType::Localhost, profile.display().to_string(), "2", false),
        ];
        for (name, kind, localhost_ref, mode, may_make_directories) in cases {
            let mut config = container_config(&image, name, WAIT);
            context(&mut config).seccomp = Some(v1::SecurityProfile { profile_type: kind.into(), localhost_ref });
            let container = cri.run(&pod, config).await;
            let status = cri.output(&container.id, &["cat", "/proc/1/status"]).await;
            assert_eq!(field(&status, "Seccomp:"), mode, "{name}");
            let made = cri.exec(&container.id, &["mkdir", "/tmp/made"], 5).await.expect("ExecSync");
            assert_eq!(made.exit_code == 0, may_make_directories, "{name}: {made:?}");
        }
        let mut config = container_config(&image, "absent", WAIT);
        let absent = v1::SecurityProfile {
            profile_type: ProfileType::Localhost.into(),
            localhost_ref: "/no/such.json".to_owned(),
        };
        context(&mut config).seccomp = Some(absent);
        assert!(cri.create(&pod, config).await.is_err());
    });
}

#[test]
fn privilege_is_given_where_pod_and_container_ask_for_it() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let ordinary = cri.run_pod(world.pod_config("ordinary"), "").await.expect("RunPodSandbox");
        let mut config = container_config(&image, "main", WAIT);
        context(&mut config).privileged = true;
        refused(cri.create(&ordinary, config.clone()).await, Code::InvalidArgument);
        for handler in &HANDLERS[..2] {
            let name = handler.name;
            let mut pod = world.pod_config(name);
            pod.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
            let pod = cri.run_pod(pod, name).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            let container = cri.run(&pod, config.clone()).await;
            let status = cri.output(&container.id, &["cat", "/proc/1/status"]).await;
            let daemon = tools::read(format!("/proc/{}/status", world.daemon_pid()));
            assert_eq!(field(&status, "CapEff:"), field(&daemon, "CapBnd:"), "{name}: all the machine has");
            assert_eq!(field(&status, "Seccomp:"), "0", "{name}");
            cri.output(&container.id, &["sh", "-c", "mkdir /m && mount -t tmpfs tmpfs /m && touch /m/file"]).await;
            let devices = cri.output(&container.id, &["ls", "/dev"]).await;
            assert!(devices.lines().any(|device| device == "kmsg"), "{name}: {devices}");
            cri.end_pod(&pod.id).await;
        }
    });
}

#[test]
fn an_exec_gets_no_more_than_its_container() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in HANDLERS {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let mut config = container_config(&image, "main", WAIT);
            let security = context(&mut config);
            security.run_as_user = Some(v1::Int64Value { value: 1000 });
            security.no_new_privs = true;
            security.capabilities =
                Some(v1::Capability { drop_capabilities: vec!["ALL".to_owned()], ..Default::default() });
            config.working_dir = "/work".to_owned();
            let container = cri.run(&pod, config).await;
            let status = cri.output(&container.id, &["cat", "/proc/self/status"]).await;
            assert_eq!(field(&status, "CapEff:"), "0000000000000000", "{name}");
            assert_eq!(field(&status, "CapBnd:"), "0000000000000000", "{name}");
            assert_eq!(field(&status, "NoNewPrivs:"), "1", "{name}");
            assert_eq!(cri.output(&container.id, &["id", "-u"]).await, "1000", "{name}");
            assert_eq!(cri.output(&container.id, &["pwd"]).await, "/work", "{name}");
            assert_eq!(cri.output(&container.id, &["sh", "-c", "echo $FROM_IMAGE"]).await, "yes", "{name}");
            cri.end_pod(&pod.id).await;
        }
    });
}

#[test]
fn a_handler_whose_seccomp_profile_is_none_is_left_out() {
    let table = |name: &str, profile: &str| {
        format!("[crio.runtime.runtimes.{name}]\nruntime_path = \"/usr/bin/crun\"\nseccomp_profile = \"{profile}\"\n")
    };
    let drop_in = table("absent", "/not/there.json") + &table("spoiled", "/etc/passwd");
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        for handler in ["absent", "spoiled"] {
            let message = refused(cri.run_pod(world.pod_config(handler), handler).await, Code::Unknown);
            assert!(message.contains(&format!("failed to find runtime handler {handler}")), "{message}");
        }
        let log = tools::read(world.path("crio.log"));
        assert!(log.contains("/not/there.json") && log.contains("/etc/passwd"), "the reason is told");
    });
}
