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
        assert!(tools::names(world.path("ns/userns")).is_empty(), "pins are gone");
    });
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
