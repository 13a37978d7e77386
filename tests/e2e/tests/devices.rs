//! What files and devices of the node add to containers.
#![forbid(unsafe_code)]

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::world::HANDLERS;
use e2e::{Setup, World, scenario, tools};
use tonic::Code;

/// A program that says which stage ran for which container, as the runtime's state on standard input names it.
fn write_marker(world: &World) -> (String, std::path::PathBuf) {
    let (program, marker) = (world.path("tmp/marker.sh"), world.path("tmp/marker"));
    tools::write_program(
        &program,
        &format!(
            "#!/bin/sh\nid=$(tr -d ' \\n' | sed 's/.*\"id\":\"\\([0-9a-f]*\\)\".*/\\1/')\necho \"$1 $EXTRA $id\" >> {}\n",
            marker.display()
        ),
    );
    (program.display().to_string(), marker)
}

#[test]
fn cdi_devices_are_given_as_their_files_say() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let (program, marker) = write_marker(world);
        let (directory, given) = (world.path("cdi"), world.path("tmp/given"));
        std::fs::create_dir_all(&directory).expect("a directory");
        tools::write(&given, "from the vendor\n");
        // The daemon runs already: files are noticed when they come.
        let specification = format!(
            "cdiVersion: 0.7.0\nkind: vendor.com/dev\ncontainerEdits:\n  env: [OF_FILE=yes]\ndevices:\n- name: fuse\n  \
             containerEdits:\n    deviceNodes: [{{path: /dev/given, hostPath: /dev/fuse, permissions: r, fileMode: 0640}}]\n    \
             mounts: [{{hostPath: {given}, containerPath: /lib/vendor/file, options: [ro, bind]}}]\n    \
             hooks: [{{hookName: createRuntime, path: {program}, args: [marker, cdi], env: [EXTRA=x]}}]\n    \
             env: [OF_DEVICE=old]\n    additionalGids: [4242]\n",
            given = given.display(),
        );
        tools::write(directory.join("vendor.yaml"), specification);
        tools::write(directory.join("broken.yaml"), "kind: [");
        for handler in &HANDLERS[..2] {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let mut config = container_config(&image, "main", WAIT);
            config.cdi_devices = vec![v1::CdiDevice { name: "vendor.com/dev=fuse".to_owned() }];
            let same = ("cdi.k8s.io/again".to_owned(), "vendor.com/dev=fuse".to_owned());
            config.annotations.extend([same]);
            let container = cri.run(&pod, config.clone()).await;
            let script = "echo $OF_FILE $OF_DEVICE; cat /lib/vendor/file; stat -c '%t %T %a' /dev/given; \
                          : < /dev/given && echo opened; id -G; : > /dev/given && echo written";
            let seen = cri.exec(&container.id, &["sh", "-c", script], 10).await.expect("ExecSync");
            let seen = String::from_utf8_lossy(&seen.stdout).into_owned();
            let lines: Vec<&str> = seen.lines().collect();
            assert_eq!(lines[..4], ["yes old", "from the vendor", "a e5 640", "opened"], "{name}: {seen}");
            assert!(lines[4].split(' ').any(|group| group == "4242"), "{name}: {seen}");
            assert_eq!(lines.len(), 5, "{name}: only reading is allowed: {seen}");
            assert_eq!(tools::read(&marker), format!("cdi x {}\n", container.id), "{name}");
            std::fs::remove_file(&marker).expect("a marker");
            let groups = cri.status(&container.id).await.expect("ContainerStatus").user.and_then(|user| user.linux);
            assert!(groups.expect("a user").supplemental_groups.contains(&4242), "{name}");

            config.metadata.as_mut().expect("metadata").name = "absent".to_owned();
            config.cdi_devices.push(v1::CdiDevice { name: "vendor.com/dev=gone".to_owned() });
            let before = world.snapshot();
            let error = refused(cri.create(&pod, config.clone()).await, Code::InvalidArgument);
            assert!(error.contains("unresolvable CDI devices vendor.com/dev=gone"), "{error}");
            assert!(world.snapshot().since(&before).is_empty(), "{}", world.snapshot().since(&before));
            config.cdi_devices = vec![v1::CdiDevice { name: "/dev/zero".to_owned() }];
            refused(cri.create(&pod, config).await, Code::InvalidArgument);
            cri.end_pod(&pod.id).await;
        }
        let log = tools::read(world.path("crio.log"));
        assert_eq!(log.matches("broken.yaml").count(), 1, "said once: {}", world.log_tail());
    });
}

#[test]
fn hooks_run_at_their_stages_for_whom_they_are_meant() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let (program, marker) = write_marker(world);
        let hook = |file: &str, when: &str, stages: &str, word: &str| {
            let text = format!(
                r#"{{"version": "1.0.0", "hook": {{"path": "{program}", "args": ["marker", "{word}"], "env": ["EXTRA=x"]}},
                     "when": {when}, "stages": [{stages}]}}"#
            );
            tools::write(world.path("hooks").join(file), text);
        };
        // The daemon runs already: files are noticed when they come.
        hook("30-all.json", r#"{"always": true}"#, r#""createRuntime""#, "created");
        hook("20-old.json", r#"{"commands": ["^sh$"]}"#, r#""prestart""#, "prestart");
        hook("10-chosen.json", r#"{"annotations": {"^hook$": "^pod$"}}"#, r#""poststart", "poststop""#, "chosen");
        hook("40-nobody.json", r#"{"annotations": {"^hook$": "^container$"}}"#, r#""createRuntime""#, "nobody");
        tools::write(world.path("hooks/50-broken.json"), "{");
        for handler in HANDLERS {
            let name = handler.name;
            let mut pod = world.pod_config(name);
            // The pod's annotation wins over the container's.
            pod.annotations.insert("hook".to_owned(), "pod".to_owned());
            let pod = cri.run_pod(pod, name).await.expect("RunPodSandbox");
            let mut config = container_config(&image, "main", WAIT);
            config.annotations.insert("hook".to_owned(), "container".to_owned());
            let container = cri.run(&pod, config).await;
            let id = &container.id;
            let line = |word: &str| format!("{word} x {id}");
            let lines = || tools::read(&marker).lines().map(str::to_owned).collect::<Vec<_>>();
            let started = [line("prestart"), line("created"), line("chosen")];
            tools::becomes(name, lines, |lines| lines[..] == started).await;
            cri.end_pod(&pod.id).await;
            let ended = [&started[..], &[line("chosen")]].concat();
            tools::becomes(name, lines, |lines| lines[..] == ended).await;
            std::fs::remove_file(&marker).expect("a marker");
        }
        // A program that fails is the container's failure, and leaves nothing.
        tools::write_program(world.path("tmp/fails.sh"), "#!/bin/sh\nexit 3\n");
        let failing = world.path("tmp/fails.sh").display().to_string();
        let text = format!(
            r#"{{"version": "1.0.0", "hook": {{"path": "{failing}"}}, "when": {{"always": true}}, "stages": ["createRuntime"]}}"#
        );
        tools::write(world.path("hooks/60-fails.json"), text);
        let pod = cri.run_pod(world.pod_config("failing"), "").await.expect("RunPodSandbox");
        let before = world.settled().await;
        assert!(cri.create(&pod, container_config(&image, "main", WAIT)).await.is_err());
        world.assert_nothing_since(&before).await;
        let log = tools::read(world.path("crio.log"));
        assert_eq!(log.matches("50-broken.json: not a hook definition").count(), 1, "said once: {}", world.log_tail());
    });
}

#[test]
fn devices_are_given_to_whom_they_are_allowed() {
    let setup = Setup {
        drop_in:
            "[crio.runtime]\nallowed_devices = [\"/dev/fuse\"]\nadditional_devices = [\"/dev/zero:/dev/everybody:r\"]\n\
                  device_ownership_from_security_context = true\n"
                .to_owned(),
        handler_lines: "allowed_annotations = [\"devices.crio.io\"]".to_owned(),
        ..Setup::default()
    };
    scenario(setup, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in &HANDLERS[..2] {
            let name = handler.name;
            let mut pod = world.pod_config(name);
            // The old spelling counts as the new one.
            let annotation = ("io.kubernetes.cri-o.Devices".to_owned(), "/dev/fuse:/dev/mine:rw".to_owned());
            pod.annotations.extend([annotation]);
            let pod = cri.run_pod(pod, name).await.expect("RunPodSandbox");
            let mut config = container_config(&image, "main", WAIT);
            let context = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            context.run_as_user = Some(v1::Int64Value { value: 1000 });
            let device = |host: &str, container: &str| v1::Device {
                host_path: host.to_owned(),
                container_path: container.to_owned(),
                permissions: "r".to_owned(),
            };
            config.devices = vec![device("/dev/full", "/dev/asked"), device("/dev/net", "/dev/nets")];
            let container = cri.run(&pod, config.clone()).await;
            let script = "cd /dev; stat -c '%n %t:%T %u' mine asked everybody nets/tun; : < mine && echo readable";
            let seen = cri.output(&container.id, &["sh", "-c", script]).await;
            let expected = "mine a:e5 1000\nasked 1:7 1000\neverybody 1:5 0\nnets/tun a:c8 1000\nreadable";
            assert_eq!(seen, expected, "{name}");
            config.metadata.as_mut().expect("metadata").name = "absent".to_owned();
            config.devices = vec![device("/dev/not-here", "/dev/x")];
            let before = world.snapshot();
            refused(cri.create(&pod, config).await, Code::InvalidArgument);
            assert!(world.snapshot().since(&before).is_empty(), "{}", world.snapshot().since(&before));
            cri.end_pod(&pod.id).await;
        }
        let mut pod = world.pod_config("greedy");
        pod.annotations.insert("devices.crio.io".to_owned(), "/dev/kmsg".to_owned());
        let pod = cri.run_pod(pod, "").await.expect("RunPodSandbox");
        let error = refused(cri.create(&pod, container_config(&image, "main", WAIT)).await, Code::InvalidArgument);
        assert!(error.contains("/dev/kmsg is specified but is not in allowed_devices"), "{error}");
    });
}

#[test]
fn containers_have_copies_of_the_nodes_files() {
    let setup = Setup {
        drop_in: "[crio.runtime]\ntimezone = \"Europe/Berlin\"\n".to_owned(),
        handler_lines: "allowed_annotations = [\"shm-size.crio.io\"]".to_owned(),
        ..Setup::default()
    };
    scenario(setup, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let secrets = world.path("tmp/secrets");
        std::fs::create_dir_all(secrets.join("deep")).expect("a directory");
        tools::write(world.path("tmp/elsewhere"), "linked\n");
        tools::write(secrets.join("deep/key"), "secret\n");
        std::os::unix::fs::symlink(world.path("tmp/elsewhere"), secrets.join("link")).expect("a link");
        let list = format!("# for everybody\n{}:/run/secrets\n/no/such/thing\n", secrets.display());
        tools::write(world.path("etc-containers/mounts.conf"), list);
        for handler in &HANDLERS[..2] {
            let name = handler.name;
            let mut pod = world.pod_config(name);
            pod.annotations.insert("shm-size.crio.io".to_owned(), "16Mi".to_owned());
            let pod = cri.run_pod(pod, name).await.expect("RunPodSandbox");
            let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
            // Its own copy: what it writes stays with it.
            let script = "cat /run/secrets/deep/key /run/secrets/link; test -L /run/secrets/link || echo copied; \
                          echo changed > /run/secrets/deep/key; df -m /dev/shm | awk 'NR == 2 {print $2}'; \
                          tail -n 1 /etc/localtime; grep -c /etc/localtime /proc/self/mounts";
            let seen = cri.output(&container.id, &["sh", "-c", script]).await;
            let sum = tools::run(world.command("sh").args(["-c", "tail -n 1 /usr/share/zoneinfo/Europe/Berlin"]));
            assert_eq!(seen, format!("secret\nlinked\ncopied\n16\n{}\n1", sum.trim()), "{name}");
            assert_eq!(tools::read(secrets.join("deep/key")), "secret\n", "{name}");
            world.kill_daemon();
            world.start_daemon().await;
            let after = cri.output(&container.id, &["cat", "/run/secrets/deep/key"]).await;
            assert_eq!(after, "changed", "{name}");
            cri.end_pod(&pod.id).await;
        }
        let kept = world.command("sh").args(["-c", "grep -rl secret \"$0\" || true"]).arg(world.path("run")).output();
        assert_eq!(String::from_utf8_lossy(&kept.expect("grep").stdout), "", "copies go with their containers");
        let mut pod = world.pod_config("shm");
        pod.annotations.insert("shm-size.crio.io".to_owned(), "16Mi,mode=0777".to_owned());
        refused(cri.run_pod(pod, "").await, Code::InvalidArgument);
    });
}

#[test]
fn logs_are_linked_into_the_pods_volume() {
    let setup = Setup { handler_lines: "allowed_annotations = [\"link-logs.crio.io\"]".to_owned(), ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut pod = world.pod_config("linked");
        let uid = pod.metadata.as_ref().expect("metadata").uid.clone();
        pod.labels.insert("io.kubernetes.pod.uid".to_owned(), uid.clone());
        pod.annotations.insert("link-logs.crio.io".to_owned(), "logs".to_owned());
        let volume = format!("/var/lib/kubelet/pods/{uid}/volumes/kubernetes.io~empty-dir/logs");
        std::fs::create_dir_all(world.inside(std::path::Path::new(&volume))).expect("a volume");
        let pod = cri.run_pod(pod, "").await.expect("RunPodSandbox");
        let mut config = container_config(&image, "main", WAIT);
        config.log_path = "main/0.log".to_owned();
        config.mounts =
            vec![v1::Mount { container_path: "/logs".to_owned(), host_path: volume.clone(), ..Default::default() }];
        let container = cri.run(&pod, config).await;
        let own = format!("/logs/{}.log", container.id);
        let seen = cri.output(&container.id, &["cat", &own]).await;
        assert!(seen.contains("stdout F ready"), "{seen}");
        let written = cri.exec(&container.id, &["sh", "-c", ": > /logs/mine"], 5).await.expect("ExecSync");
        assert_ne!(written.exit_code, 0, "logs are not the pod's to write");
        world.kill_daemon();
        world.start_daemon().await;
        let link = std::path::Path::new(&pod.config.log_directory).join(format!("{}.log", container.id));
        assert!(link.symlink_metadata().is_ok());
        cri.remove(&container.id).await.expect("RemoveContainer");
        assert!(link.symlink_metadata().is_err(), "the link goes with its container");
        // Somebody else's mount in the volume stays.
        tools::run(world.command("mount").args(["-t", "tmpfs", "tmpfs", &volume]));
        cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        let left = tools::run(world.command("grep").args(["-c", &volume, "/proc/self/mountinfo"]));
        assert_eq!(left.trim(), "2", "the volume is not reached through it");
        tools::run(world.command("umount").arg(&volume));
        tools::run(world.command("umount").arg(&volume));
        cri.remove_pod(&pod.id).await.expect("RemovePodSandbox");
        // Without such guests nothing is left.
        let mut pod = world.pod_config("again");
        pod.labels.insert("io.kubernetes.pod.uid".to_owned(), uid);
        pod.annotations.insert("link-logs.crio.io".to_owned(), "logs".to_owned());
        let pod = cri.run_pod(pod, "").await.expect("RunPodSandbox");
        assert!(world.snapshot().of_kind("mount").contains(&volume.as_str()));
        cri.end_pod(&pod.id).await;
        assert!(!world.snapshot().of_kind("mount").contains(&volume.as_str()));
    });
}
