//! Pods with a user namespace of their own.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt;

use cri_api::v1;
use e2e::cri::{Pod, WAIT, container_config, refused};
use e2e::world::{FIRST_AUTO_ID, HANDLERS, World};
use e2e::{Setup, scenario, tools};
use tonic::Code;

const ANNOTATION: &str = "userns-mode.crio.io";

fn setup(more: &str) -> Setup {
    Setup {
        drop_in: format!("[crio.runtime]\n{more}\n"),
        handler_lines: format!("allowed_annotations = [\"{ANNOTATION}\"]"),
        ..Setup::default()
    }
}

fn annotated(world: &World, name: &str, mode: &str) -> v1::PodSandboxConfig {
    let mut config = world.pod_config(name);
    config.annotations.insert(ANNOTATION.to_owned(), mode.to_owned());
    config
}

fn sandbox_security(config: &mut v1::PodSandboxConfig) -> &mut v1::LinuxSandboxSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn security(config: &mut v1::ContainerConfig) -> &mut v1::LinuxContainerSecurityContext {
    config.linux.get_or_insert_default().security_context.get_or_insert_default()
}

fn squeezed(text: &str) -> String {
    text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect::<Vec<_>>().join(",")
}

/// The ids of a process, as the node has them.
fn host_ids(pid: i32) -> (u32, u32) {
    let data = std::fs::metadata(format!("/proc/{pid}")).expect("a process");
    (data.uid(), data.gid())
}

/// What root of the namespace sees and may do; the answers of a shell in the container.
const LOOK: &str = "id -u; id -g; cat /proc/self/uid_map; stat -c %u:%g /bin /etc/resolv.conf /etc/hostname /dev/shm \
    /run/.containerenv /from-image/work | sort -u; hostname; cat /proc/sys/net/ipv4/ping_group_range; \
    ip link set lo down && ip link set lo up && echo owns the network; mount -t tmpfs t /mnt 2>/dev/null || echo no mount; \
    echo x > /dev/shm/file && rm /dev/shm/file && : >> /etc/hostname && touch /written && chown 7:8 /written && \
    stat -c %u:%g /written; true >> /proc/sys/kernel/panic || echo not the node; \
    ls /sys/class/net | tr '\\n' ' '; test -e /sys/fs/cgroup && echo cgroup";

async fn look(world: &World, pod: &Pod, image: &str) -> (String, i32, String) {
    let cri = world.cri();
    let mut config = container_config(image, "main", WAIT);
    config.working_dir = "/from-image/work".to_owned();
    security(&mut config).capabilities =
        Some(v1::Capability { add_capabilities: vec!["NET_ADMIN".to_owned()], ..Default::default() });
    let container = cri.run(pod, config).await;
    let pid = cri.container_pid(&container.id).await;
    let output = cri.exec(&container.id, &["sh", "-c", LOOK], 20).await.expect("ExecSync");
    assert_eq!(output.exit_code, 0, "{output:?}");
    (squeezed(&String::from_utf8_lossy(&output.stdout)), pid, container.id)
}

fn expected(first: u32, length: u32, hostname: &str) -> String {
    format!(
        "0,0,0 {first} {length},0:0,{hostname},0 {},owns the network,no mount,7:8,not the node,eth0 lo cgroup",
        length - 1
    )
}

/// Volumes that are images belong to root of the namespace, whole or in part; programs in them run, nothing is written.
async fn look_at_image_volumes(world: &World, pod: &Pod, image: &str) {
    let script = "stat -c %u:%g /img /img/bin /part /img/bin/busybox | sort -u; /img/bin/busybox echo runs; \
        touch /img/x /part/x 2>/dev/null || echo read-only";
    let mut config = container_config(image, "image", &["sh", "-c", script]);
    let mount = |path: &str, sub_path: &str| v1::Mount {
        container_path: path.to_owned(),
        readonly: true,
        image: Some(v1::ImageSpec { image: image.to_owned(), ..Default::default() }),
        image_sub_path: sub_path.to_owned(),
        ..Default::default()
    };
    config.mounts = vec![mount("/img", ""), mount("/part", "bin")];
    let (status, lines) = world.cri().run_to_end(pod, config).await;
    assert_eq!(squeezed(&lines.join("\n")), "0:0,runs,read-only", "{status:?}");
}

#[test]
fn an_annotation_gives_a_pod_ids_of_its_own() {
    let ping = "default_sysctls = [\"net.ipv4.ping_group_range=0 2147483647\"]\nminimum_mappable_uid = 1000";
    scenario(setup(ping), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in &HANDLERS {
            let name = handler.name;
            let mut config = annotated(world, name, "private:uidmapping=0:200000:65536");
            // The kubelet's name of the same annotation before, for every other handler.
            if name.contains("conmon") {
                let mode = config.annotations.remove(ANNOTATION).expect("an annotation");
                config.annotations.insert("io.kubernetes.cri-o.userns-mode".to_owned(), mode);
            }
            config.hostname = format!("host-{name}");
            sandbox_security(&mut config).run_as_user = Some(v1::Int64Value { value: 0 });
            let pod = cri.run_pod(config, name).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            let (seen, pid, container) = look(world, &pod, &image).await;
            assert_eq!(seen, expected(200_000, 65536, &format!("host-{name}")), "{name}");
            assert_eq!(host_ids(pid), (200_000, 200_000), "{name}");
            // A user of the image's, and one it does not know.
            let mut other =
                container_config(&image, "other", &["sh", "-c", "id -u; id -g; id -un; cat /proc/self/uid_map"]);
            let security = security(&mut other);
            security.run_as_user = Some(v1::Int64Value { value: 1234 });
            security.run_as_group = Some(v1::Int64Value { value: 77 });
            let (status, lines) = cri.run_to_end(&pod, other).await;
            assert_eq!(
                (status.exit_code, squeezed(&lines.join("\n")).as_str()),
                (0, "1234,77,1234,0 200000 65536"),
                "{name}"
            );
            look_at_image_volumes(world, &pod, &image).await;
            // Going on after a restart: the same namespace, for new containers too.
            world.kill_daemon();
            world.start_daemon().await;
            let cri = world.cri();
            assert_eq!(cri.output(&container, &["id", "-u"]).await, "0", "{name}");
            let (_, lines) = cri
                .run_to_end(
                    &pod,
                    container_config(&image, "later", &["sh", "-c", "stat -c %u /bin; cat /proc/self/uid_map"]),
                )
                .await;
            assert_eq!(squeezed(&lines.join("\n")), "0,0 200000 65536", "{name}");
            cri.stop(&container, 5).await.expect("StopContainer");
            assert_eq!(cri.status(&container).await.expect("ContainerStatus").exit_code, 0, "{name}");
            cri.end_pod(&pod.id).await;
        }
        for handler in &HANDLERS[..2] {
            let config = annotated(world, &format!("host-{}", handler.name), "auto");
            look_from_host_network(world, config, handler.name, &image, FIRST_AUTO_ID).await;
        }
        assert!(tools::names(world.path("ns/userns")).is_empty(), "pins are gone");
    });
}

/// What a container on the node's network sees, with `first` the node's id of its root.
async fn look_from_host_network(
    world: &World,
    mut config: v1::PodSandboxConfig,
    handler: &str,
    image: &str,
    first: u32,
) {
    let cri = world.cri();
    sandbox_security(&mut config).namespace_options.get_or_insert_default().network = v1::NamespaceMode::Node.into();
    let before = tools::read(format!("/proc/{}/mountinfo", world.daemon_pid())).lines().count();
    let pod = cri.run_pod(config, handler).await.unwrap_or_else(|error| panic!("{handler}: {error:?}"));
    let script = "cat /proc/self/uid_map; grep -c . /sys/class/net/lo/address; grep ' /sys ' /proc/mounts | cut -d' ' -f4 | \
        cut -d, -f1; touch /sys/x 2>/dev/null || echo read-only; ip link set lo down 2>/dev/null || echo not its network";
    let mut config = container_config(image, "main", &["sh", "-c", script]);
    security(&mut config).namespace_options.get_or_insert_default().network = v1::NamespaceMode::Node.into();
    let (status, lines) = cri.run_to_end(&pod, config).await;
    let expected = format!("0 {first} 65536,1,ro,read-only,not its network");
    assert_eq!(squeezed(&lines.join("\n")), expected, "{handler}: {status:?}");
    cri.end_pod(&pod.id).await;
    let after = tools::read(format!("/proc/{}/mountinfo", world.daemon_pid())).lines().count();
    assert_eq!(after, before, "{handler}: nothing is mounted on the node");
}

#[test]
fn automatic_ids_are_a_pods_alone() {
    scenario(setup("drop_infra_ctr = false\nminimum_mappable_uid = 1000"), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut pods = Vec::new();
        for (number, handler) in HANDLERS[..2].iter().enumerate() {
            let pod = cri.run_pod(annotated(world, handler.name, "auto"), handler.name).await.expect("RunPodSandbox");
            let (seen, pid, _) = look(world, &pod, &image).await;
            let first = FIRST_AUTO_ID + 65536 * u32::try_from(number).expect("a small number");
            assert!(seen.starts_with(&format!("0,0,0 {first} 65536,0:0,")), "{}: {seen}", handler.name);
            assert_eq!(host_ids(pid), (first, first));
            // Its infra process is in it, too.
            let info = cri.pod_info(&pod.id).await;
            let infra = i32::try_from(info["pid"].as_i64().expect("a pid")).expect("a pid");
            assert_eq!(squeezed(&tools::read(format!("/proc/{infra}/uid_map"))), format!("0 {first} 65536"));
            pods.push(pod);
        }
        let before = world.settled().await;
        let message = refused(cri.run_pod(annotated(world, "third", "auto"), "").await, Code::Unknown);
        assert!(message.contains("0 of those set aside for containers are free"), "{message}");
        world.assert_nothing_since(&before).await;
        cri.end_pod(&pods[0].id).await;
        // An id of the node's that the pod runs as, and those around it from what was given back.
        let mut config = annotated(world, "keeps", "auto:size=2000;keep-id=true");
        let of_pod = sandbox_security(&mut config);
        of_pod.run_as_user = Some(v1::Int64Value { value: 1500 });
        of_pod.run_as_group = Some(v1::Int64Value { value: 1600 });
        let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
        let mut config = container_config(&image, "main", WAIT);
        let security = security(&mut config);
        security.run_as_user = Some(v1::Int64Value { value: 1500 });
        security.run_as_group = Some(v1::Int64Value { value: 1600 });
        let container = cri.run(&pod, config).await;
        assert_eq!(cri.output(&container.id, &["id", "-u"]).await, "1500");
        let first = FIRST_AUTO_ID;
        let map = squeezed(&cri.output(&container.id, &["cat", "/proc/self/uid_map"]).await);
        assert_eq!(map, format!("0 {first} 1500,1501 {} 499,1500 1500 1", first + 1500));
        assert_eq!(host_ids(cri.container_pid(&container.id).await), (1500, 1600));
    });
}

#[test]
fn what_is_no_user_namespace_is_refused_and_leaves_nothing() {
    scenario(setup("minimum_mappable_uid = 1000\nminimum_mappable_gid = 1000"), async |world| {
        let cri = world.cri();
        let before = world.settled().await;
        for (mode, user, part) in [
            ("host", None, "neither auto nor private"),
            ("keep-id", None, "neither auto nor private"),
            ("private", None, "needs uidmapping or gidmapping"),
            ("auto:size=0", None, "not a number of ids"),
            ("auto:keep-id=true;map-to-root=true", None, "exclude each other"),
            ("private:uidmapping=0:5000:10", None, "need run_as_user"),
            ("private:uidmapping=0:5000:10", Some(999), "below minimum_mappable_uid 1000"),
            ("private:uidmapping=0:999:10", Some(0), "uid mapping 0:999:10 is below minimum_mappable_uid 1000"),
            ("private:uidmapping=0:5000:10;gidmapping=0:0:10", Some(0), "gid mapping 0:0:10 is below"),
            ("private:uidmapping=0:5000:10,5:6000:10", Some(0), "overlap"),
            ("private:uidmapping=0:4294967290:10", Some(0), "exceeds the range of ids"),
            ("private:uidmapping=0:5000:0", Some(0), "is empty"),
        ] {
            let mut config = annotated(world, "bad", mode);
            sandbox_security(&mut config).run_as_user = user.map(|value| v1::Int64Value { value });
            let message = refused(cri.run_pod(config, "").await, Code::InvalidArgument);
            assert!(message.contains(part), "{mode}: {message}");
        }
        let message = refused(cri.run_pod(annotated(world, "huge", "auto:size=4294967295"), "").await, Code::Unknown);
        assert!(message.contains("131072 of those set aside for containers are free"), "{message}");
        world.assert_nothing_since(&before).await;
        // A user that the namespace does not have.
        let image = world.busybox().await;
        let pod = cri.run_pod(annotated(world, "small", "auto:size=100"), "").await.expect("RunPodSandbox");
        let (status, _) = cri.run_to_end(&pod, container_config(&image, "good", &["true"])).await;
        assert_eq!(status.exit_code, 0);
        let with_pod = world.settled().await;
        let mut config = container_config(&image, "main", WAIT);
        security(&mut config).run_as_user = Some(v1::Int64Value { value: 100 });
        let message = refused(cri.create(&pod, config).await, Code::InvalidArgument);
        assert!(message.contains("uid 100 is not mapped into the user namespace of the pod"), "{message}");
        world.assert_nothing_since(&with_pod).await;
        // With few ids there is no group for terminals; root and its files are there all the same.
        cri.end_pod(&pod.id).await;
        let pod = cri.run_pod(annotated(world, "tiny", "auto:size=1"), "").await.expect("RunPodSandbox");
        let command = ["sh", "-c", "cat /proc/self/uid_map; stat -c %u /bin"];
        let (_, lines) = cri.run_to_end(&pod, container_config(&image, "main", &command)).await;
        assert_eq!(squeezed(&lines.join("\n")), format!("0 {FIRST_AUTO_ID} 1,0"));
    });
}

/// A runtime that can map the ids of volumes: named by the environment, or one of the ordinary ones if it is new enough.
fn mapping_runtime() -> Option<std::path::PathBuf> {
    let named = std::env::var_os("E2E_IDMAP_RUNTIME").map(std::path::PathBuf::from);
    let known = ["crun", "runc"].into_iter().filter_map(tools::find_program);
    named.into_iter().chain(known).find(|program| {
        let answer = std::process::Command::new(program).arg("features").output();
        let features = answer.ok().and_then(|answer| serde_json::from_slice::<serde_json::Value>(&answer.stdout).ok());
        features.is_some_and(|features| features["linux"]["mountExtensions"]["idmap"]["enabled"] == true)
    })
}

fn mapping(host_id: u32, container_id: u32, length: u32) -> v1::IdMapping {
    v1::IdMapping { host_id, container_id, length }
}

fn of_pod(uids: &[v1::IdMapping], gids: &[v1::IdMapping]) -> v1::UserNamespace {
    v1::UserNamespace { mode: v1::NamespaceMode::Pod.into(), uids: uids.to_vec(), gids: gids.to_vec() }
}

fn asks(config: &mut v1::PodSandboxConfig, user: &v1::UserNamespace) {
    sandbox_security(config).namespace_options.get_or_insert_default().userns_options = Some(user.clone());
}

#[test]
fn requests_that_are_no_user_namespace_are_refused() {
    scenario(setup("minimum_mappable_uid = 1000"), async |world| {
        let cri = world.cri();
        let before = world.settled().await;
        let good = mapping(100_000, 0, 65536);
        for (uids, gids, part) in [
            (vec![], vec![], "exactly one mapping of uids is expected, there are 0"),
            (vec![good], vec![], "exactly one mapping of gids is expected, there are 0"),
            (vec![good, mapping(1000, 70000, 5)], vec![good], "exactly one mapping of uids is expected, there are 2"),
            (vec![mapping(100_000, 1, 5)], vec![good], "uid 0 of the user namespace is not mapped"),
            (vec![good], vec![mapping(100_000, 0, 0)], "userns_options.gids 0:100000:0 is out of range"),
            (vec![mapping(u32::MAX, 0, 2)], vec![good], "userns_options.uids 0:4294967295:2 is out of range"),
            (vec![mapping(999, 0, 5)], vec![good], "uid mapping 0:999:5 is below minimum_mappable_uid 1000"),
        ] {
            let mut config = world.pod_config("bad");
            asks(&mut config, &of_pod(&uids, &gids));
            let message = refused(cri.run_pod(config, "").await, Code::InvalidArgument);
            assert!(message.contains(part), "{part}: {message}");
        }
        let mut config = world.pod_config("good");
        asks(&mut config, &of_pod(&[good], &[good]));
        let status =
            cri.runtime.clone().status(v1::StatusRequest { verbose: false }).await.expect("Status").into_inner();
        for handler in &HANDLERS[..2] {
            let told = status.runtime_handlers.iter().find(|told| told.name == handler.name).expect("a handler");
            if told.features.expect("features").user_namespaces {
                continue;
            }
            let message = refused(cri.run_pod(config.clone(), handler.name).await, Code::Unimplemented);
            let part = format!("id-mapped mounts, which runtime handler \"{}\"", handler.name);
            assert!(message.contains(&part) && message.contains("does not support"), "{message}");
        }
        world.assert_nothing_since(&before).await;
    });
}

#[test]
fn the_request_gives_a_pod_ids_of_its_own() {
    let Some(runtime) = mapping_runtime() else {
        tools::say("\n*** SKIPPED: no runtime with id-mapped mounts; E2E_IDMAP_RUNTIME may name one ***\n");
        return;
    };
    let handler = format!(
        "[crio.runtime.runtimes.mapping]\nruntime_path = {runtime:?}\nruntime_root = \"@ROOT@/runtime/mapping\"\n\
         monitor_cgroup = \"pod\"\n"
    );
    scenario(setup(&handler), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let ids = mapping(300_000, 0, 65536);
        let user = of_pod(&[ids], &[ids]);
        let mut config = world.pod_config("mapped");
        config.hostname = "mapped".to_owned();
        asks(&mut config, &user);
        // Containers that share processes have an infra process, in the same user namespace.
        sandbox_security(&mut config).namespace_options.get_or_insert_default().pid = v1::NamespaceMode::Pod.into();
        let pod = cri.run_pod(config, "mapping").await.expect("RunPodSandbox");
        let status = cri.pod_status(&pod.id).await.expect("PodSandboxStatus");
        let told = |status: &v1::PodSandboxStatus| {
            let options = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref()?.options.as_ref());
            options.and_then(|options| options.userns_options.clone())
        };
        assert_eq!(told(&status).as_ref(), Some(&user));
        let (seen, pid, main) = look(world, &pod, &image).await;
        assert!(seen.starts_with("0,0,0 300000 65536,0:0,mapped,"), "{seen}");
        assert_eq!(host_ids(pid), (300_000, 300_000));

        // A volume whose files keep the owners they have: who is root inside writes as root of the node there.
        let volume = world.path("tmp/volume");
        std::fs::create_dir(&volume).expect("a directory");
        tools::write(volume.join("of-1000"), "x");
        std::os::unix::fs::chown(volume.join("of-1000"), Some(1000), Some(1000)).expect("an owner");
        let script = "stat -c %u /v /v/of-1000; echo y > /v/made; stat -c %u /plain/of-1000";
        let mut config = container_config(&image, "volume", &["sh", "-c", script]);
        security(&mut config).namespace_options.get_or_insert_default().userns_options = Some(user.clone());
        let mount = |path: &str| v1::Mount {
            container_path: path.to_owned(),
            host_path: volume.display().to_string(),
            ..Default::default()
        };
        let mapped = v1::Mount { uid_mappings: vec![ids], gid_mappings: vec![ids], ..mount("/v") };
        config.mounts = vec![mapped.clone(), mount("/plain")];
        let (status, lines) = cri.run_to_end(&pod, config.clone()).await;
        assert_eq!((status.exit_code, lines.join(" ").as_str()), (0, "0 1000 65534"), "{status:?}");
        let made = std::fs::metadata(volume.join("made")).expect("a file");
        assert_eq!((made.uid(), made.gid()), (0, 0));
        assert_eq!(status.mounts[0].uid_mappings, mapped.uid_mappings);

        look_at_image_volumes(world, &pod, &image).await;

        // What is not its pod's.
        config.metadata.get_or_insert_default().name = "other".to_owned();
        let before = world.settled().await;
        for other in [
            of_pod(&[mapping(400_000, 0, 65536)], &[ids]),
            v1::UserNamespace { mode: v1::NamespaceMode::Node.into(), ..Default::default() },
        ] {
            security(&mut config).namespace_options.get_or_insert_default().userns_options = Some(other);
            let message = refused(cri.create(&pod, config.clone()).await, Code::InvalidArgument);
            assert!(message.contains("differ from those of its pod"), "{message}");
        }
        world.assert_nothing_since(&before).await;

        world.kill_daemon();
        world.start_daemon().await;
        let cri = world.cri();
        assert_eq!(told(&cri.pod_status(&pod.id).await.expect("PodSandboxStatus")).as_ref(), Some(&user));
        assert_eq!(squeezed(&cri.output(&main, &["cat", "/proc/self/uid_map"]).await), "0 300000 65536");
        let (_, lines) = cri.run_to_end(&pod, container_config(&image, "later", &["stat", "-c", "%u", "/bin"])).await;
        assert_eq!(lines, ["0"]);
        cri.end_pod(&pod.id).await;

        // On the node's network there is no sysfs to mount; that of the node is there, and not to be written to.
        let mut config = world.pod_config("host-network");
        asks(&mut config, &user);
        look_from_host_network(world, config, "mapping", &image, 300_000).await;
        assert!(tools::names(world.path("ns/userns")).is_empty(), "pins are gone");
    });
}

#[test]
fn a_workload_allows_what_its_handler_does_not() {
    let drop_in = format!(
        "[crio.runtime.workloads.own]\nactivation_annotation = \"own\"\nallowed_annotations = [\"{ANNOTATION}\"]\n"
    );
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for (activated, first) in [(true, FIRST_AUTO_ID), (false, 0)] {
            let mut config = annotated(world, &format!("activated-{activated}"), "auto");
            if activated {
                config.annotations.insert("own".to_owned(), String::new());
            }
            let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
            let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
            let pid = cri.container_pid(&container.id).await;
            assert_eq!(host_ids(pid).0, first, "activated: {activated}");
            cri.end_pod(&pod.id).await;
        }
    });
}
