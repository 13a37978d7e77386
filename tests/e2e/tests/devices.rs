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
