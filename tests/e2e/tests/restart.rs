//! Daemons that die: containers go on, and the next daemon knows everything, or undoes what was half made.
#![forbid(unsafe_code)]

use std::time::Duration;

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::image::{Archive, Compression, Format, Recipe};
use e2e::world::HANDLERS;
use e2e::{Setup, log, scenario, tools};

/// How many pods are being made when the daemon dies.
const PODS_AT_ONCE: usize = 20;

#[test]
fn containers_outlive_the_daemon_and_the_next_one_knows_them() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut pods = Vec::new();
        for handler in HANDLERS {
            let pod = cri.run_pod(world.pod_config(handler.name), handler.name).await.expect("RunPodSandbox");
            let tick = "trap 'exit 5' TERM; n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done";
            let limits = |bytes| v1::LinuxContainerResources {
                memory_limit_in_bytes: bytes,
                cpu_shares: 512,
                oom_score_adj: 500,
                ..Default::default()
            };
            let mut config = container_config(&image, "ticking", &["sh", "-c", tick]);
            config.linux.as_mut().expect("linux").resources = Some(limits(64 << 20));
            let ticking = cri.run(&pod, config).await;
            cri.update(&ticking.id, limits(48 << 20)).await.expect("UpdateContainerResources");
            let ending = cri
                .run(&pod, container_config(&image, "ending", &["sh", "-c", "sleep 1; echo last words; exit 42"]))
                .await;
            let created = cri.create(&pod, container_config(&image, "created", WAIT)).await.expect("CreateContainer");
            let (ended, _) = cri.run_to_end(&pod, container_config(&image, "ended", &["sh", "-c", "exit 7"])).await;
            let process = cri.container_pid(&ticking.id).await;
            let ip = cri.pod_ip(&pod.id).await;
            pods.push((handler, pod, ticking, ending, created, ended, process, ip));
        }
        let stopped = cri.run_pod(world.pod_config("stopped"), "").await.expect("RunPodSandbox");
        cri.stop_pod(&stopped.id).await.expect("StopPodSandbox");
        let (pods_before, containers_before) =
            (sorted_pods(&cri).await, cri.find(v1::ContainerFilter::default()).await);
        let status_before = cri.status(&pods[0].2.id).await.expect("ContainerStatus");

        world.kill_daemon();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        for (handler, _, ticking, ending, _, _, process, _) in &pods {
            let look = || log::read(&ticking.log).len();
            let count = look();
            tools::becomes("it logs without a daemon", look, |now| *now > count + 3).await;
            assert!(tools::read(format!("/proc/{process}/cmdline")).contains("tick"), "{}", handler.name);
            tools::becomes(
                "its last words",
                || log::texts(&log::read(&ending.log), "stdout"),
                |texts| *texts == ["last words"],
            )
            .await;
        }
        world.start_daemon().await;

        assert_eq!(sorted_pods(&cri).await, pods_before);
        assert_eq!(cri.find(v1::ContainerFilter::default()).await, containers_before);
        assert_eq!(cri.status(&pods[0].2.id).await.expect("ContainerStatus"), status_before);
        assert_eq!(
            cri.pod_status(&stopped.id).await.expect("PodSandboxStatus").state(),
            v1::PodSandboxState::SandboxNotready
        );
        for (handler, pod, ticking, ending, created, ended, process, ip) in &pods {
            let name = handler.name;
            assert_eq!(cri.pod_ip(&pod.id).await, *ip, "{name}");
            assert_eq!(cri.pod_status(&pod.id).await.expect("PodSandboxStatus").runtime_handler, name);
            let status = cri.exit(&ending.id).await;
            assert_eq!((status.exit_code, status.reason.as_str()), (42, "Error"), "{name}: ended without a daemon");
            assert!(status.finished_at > status.started_at, "{status:?}");
            assert_eq!(cri.status(&ended.id).await.expect("ContainerStatus"), *ended, "{name}: ended before");
            assert_eq!(cri.container_pid(&ticking.id).await, *process, "{name}");
            assert_eq!(cri.output(&ticking.id, &["echo", "exec works"]).await, "exec works", "{name}");
            // What was created is started by the next daemon.
            cri.start(&created.id).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            let look = || log::texts(&log::read(&created.log), "stdout");
            tools::becomes("it is ready", look, |texts| texts.iter().any(|text| text == "ready")).await;
            cri.stop(&created.id, 5).await.expect("StopContainer");
            assert_eq!(cri.exit(&created.id).await.exit_code, 0, "{name}");
            // Rotation and new containers work as before.
            tools::run(std::process::Command::new("mv").args([ticking.log.clone(), format!("{}.1", ticking.log)]));
            cri.reopen_log(&ticking.id).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            tools::becomes("it logs on", || log::read(&ticking.log).len(), |count| *count > 0).await;
            let new = cri.run(pod, container_config(&image, "new", WAIT)).await;
            assert!(cri.output(&new.id, &["ip", "-o", "-4", "address"]).await.contains(&format!("{ip}/")), "{name}");
            cri.stop(&ticking.id, 5).await.expect("StopContainer");
            assert_eq!(cri.exit(&ticking.id).await.exit_code, 5, "{name}: its end is seen by the next daemon");
            cri.remove(&ticking.id).await.expect("RemoveContainer");
            cri.end_pod(&pod.id).await;
        }
        cri.remove_pod(&stopped.id).await.expect("RemovePodSandbox");
        assert_eq!(cri.pods().await, []);
    });
}

async fn sorted_pods(cri: &e2e::Cri) -> Vec<v1::PodSandbox> {
    let mut pods = cri.pods().await;
    pods.sort_by(|a, b| a.id.cmp(&b.id));
    pods
}

#[test]
fn an_orderly_restart_changes_nothing() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("stays"), "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        let before = world.settled().await;
        let status = cri.status(&container.id).await.expect("ContainerStatus");
        assert!(world.end_daemon(), "{}", world.log_tail());
        assert!(!world.path("crio.sock").exists());
        world.start_daemon().await;
        assert_eq!(cri.status(&container.id).await.expect("ContainerStatus"), status);
        world.assert_nothing_since(&before).await;
        assert!(before.since(&world.snapshot()).is_empty(), "{}", before.since(&world.snapshot()));
    });
}

#[test]
fn pods_half_made_when_the_daemon_dies_are_undone() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let keeper = cri.run_pod(world.pod_config("keeper"), "").await.expect("RunPodSandbox");
        let kept = cri.run(&keeper, container_config(&image, "main", WAIT)).await;
        let before = world.settled().await;
        let mut configs = Vec::new();
        // The later the daemon dies, the more is half made; each round dies elsewhere.
        for pause in [20, 150, 400, 900] {
            let round: Vec<_> = (0..PODS_AT_ONCE).map(|n| world.pod_config(&format!("pod-{pause}-{n}"))).collect();
            let tasks: Vec<_> = round
                .iter()
                .map(|config| {
                    let (cri, config, image) = (world.cri(), config.clone(), image.clone());
                    tokio::spawn(async move {
                        let Ok(pod) = cri.run_pod(config, "").await else { return };
                        let Ok(container) = cri.create(&pod, container_config(&image, "main", WAIT)).await else {
                            return;
                        };
                        let _ = cri.start(&container.id).await;
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(pause)).await;
            world.kill_daemon();
            for task in tasks {
                task.await.expect("a client");
            }
            world.start_daemon().await;
            // What the daemon says is there is all there is, and it is whole.
            let pods = cri.pods().await;
            let since = world.settled().await.since(&before);
            let ready = pods.iter().filter(|pod| pod.state() == v1::PodSandboxState::SandboxReady).count();
            eprintln!(
                "after {pause} ms: {} pods, {} containers",
                pods.len() - 1,
                cri.find(v1::ContainerFilter::default()).await.len() - 1
            );
            assert_eq!(ready, pods.len(), "{pods:#?}");
            assert_eq!(since.of_kind("lease").len(), pods.len() - 1, "{since}");
            assert_eq!(since.of_kind("cni-result").len(), pods.len() - 1, "{since}");
            let net_pins = since.of_kind("pin").iter().filter(|pin| pin.starts_with("net")).count();
            assert_eq!(net_pins, pods.len() - 1, "{since}");
            let containers = cri.containers(v1::ContainerFilter::default()).await;
            assert_eq!(since.of_kind("record").len(), pods.len() - 1 + containers.len() - 1, "{since}");
            for pod in &pods {
                assert!(!cri.pod_ip(&pod.id).await.is_empty());
            }
            configs.push(round);
            // The retry of the client succeeds for every one of them.
            for config in configs.last().expect("a round") {
                let pod = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
                let container =
                    cri.create(&pod, container_config(&image, "main", WAIT)).await.expect("CreateContainer");
                let state = cri.status(&container.id).await.expect("ContainerStatus").state();
                if state == v1::ContainerState::ContainerCreated {
                    cri.start(&container.id).await.expect("StartContainer");
                }
                assert_eq!(cri.output(&container.id, &["echo", "alive"]).await, "alive");
                cri.end_pod(&pod.id).await;
                let _ = std::fs::remove_dir_all(&config.log_directory);
            }
            assert_eq!(cri.pods().await.len(), 1);
            world.assert_nothing_since(&before).await;
        }
        assert_eq!(cri.output(&kept.id, &["echo", "untouched"]).await, "untouched");
    });
}

#[test]
fn a_daemon_that_dies_while_it_removes_is_followed_by_one_that_can() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let warm = cri.run_pod(world.pod_config("warm"), "").await.expect("RunPodSandbox");
        cri.run(&warm, container_config(&image, "main", WAIT)).await;
        cri.end_pod(&warm.id).await;
        let _ = std::fs::remove_dir_all(&warm.config.log_directory);
        let before = world.settled().await;
        for pause in [10, 40, 120] {
            let mut pods = Vec::new();
            for number in 0..6 {
                let pod =
                    cri.run_pod(world.pod_config(&format!("pod-{pause}-{number}")), "").await.expect("RunPodSandbox");
                cri.run(&pod, container_config(&image, "main", WAIT)).await;
                pods.push(pod);
            }
            let tasks: Vec<_> = pods
                .iter()
                .map(|pod| {
                    let (cri, id) = (world.cri(), pod.id.clone());
                    tokio::spawn(async move {
                        if cri.stop_pod(&id).await.is_ok() {
                            let _ = cri.remove_pod(&id).await;
                        }
                    })
                })
                .collect();
            tokio::time::sleep(Duration::from_millis(pause)).await;
            world.kill_daemon();
            for task in tasks {
                task.await.expect("a client");
            }
            world.start_daemon().await;
            for pod in &pods {
                cri.end_pod(&pod.id).await;
                let _ = std::fs::remove_dir_all(&pod.config.log_directory);
            }
            assert_eq!(cri.pods().await, []);
            world.assert_nothing_since(&before).await;
        }
    });
}

#[test]
fn directories_without_a_record_are_removed() {
    scenario(Setup::default(), async |world| {
        let before = world.settled().await;
        world.kill_daemon();
        // What a daemon that dies between making them and recording their container leaves.
        let id = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
        for path in ["storage/overlay-containers", "run/overlay-containers"] {
            tools::write(world.path(path).join(id).join("userdata/config.json"), "{}");
        }
        let layer = world.path("storage/overlay").join(id);
        tools::write(layer.join("diff/file"), "half made");
        world.start_daemon().await;
        world.assert_nothing_since(&before).await;
    });
}

#[test]
fn a_pull_the_daemon_dies_in_is_forgotten_and_can_be_repeated() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let before = world.settled().await;
        let mut recipe = Recipe::busybox(Format::Oci);
        for number in 0..12_u8 {
            let noise: Vec<u8> = (0..1_u32 << 16).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
            let noise: Vec<u8> = noise.iter().map(|byte| byte ^ number).collect();
            recipe = recipe.layer(Archive::default().file("noise", 0o644, &noise).finish(), Compression::Gzip);
        }
        let image = recipe.build();
        let name = world.registry().push(world, "e2e/many:1", &image);
        for pause in [5, 20, 60, 120] {
            let pull = {
                let (cri, name) = (world.cri(), name.clone());
                tokio::spawn(async move { cri.pull(&name).await.is_ok() })
            };
            tokio::time::sleep(Duration::from_millis(pause)).await;
            world.kill_daemon();
            let is_pulled = pull.await.expect("a client");
            world.start_daemon().await;
            let found = cri.image(&name).await;
            eprintln!("after {pause} ms: pulled {is_pulled}, there {}", found.is_some());
            assert!(found.is_some() || !is_pulled, "an image that was pulled is lost");
        }
        assert_eq!(cri.pull(&name).await.expect("PullImage"), image.id());
        let pod = cri.run_pod(world.pod_config("look"), "").await.expect("RunPodSandbox");
        let (status, output) =
            cri.run_to_end(&pod, container_config(&name, "look", &["sh", "-c", "wc -c < /noise"])).await;
        assert_eq!((status.exit_code, output), (0, vec![(1 << 18).to_string()]));
        cri.end_pod(&pod.id).await;
        cri.remove_image(&image.id()).await.expect("RemoveImage");
        let left = world.settled().await.since(&before);
        let layers: Vec<_> = left.of_kind("file").into_iter().filter(|path| path.contains("/overlay/")).collect();
        assert_eq!(layers, Vec::<&str>::new(), "layers of an image that is gone");
    });
}

#[test]
fn after_a_reboot_nothing_is_left_of_the_pods_before() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let before = world.settled().await;
        for handler in HANDLERS {
            let pod = cri.run_pod(world.pod_config(handler.name), handler.name).await.expect("RunPodSandbox");
            cri.run(&pod, container_config(&image, "main", WAIT)).await;
        }
        world.kill_daemon();
        // A reboot ends every process and empties /run, the version file with it.
        world.end_processes();
        std::fs::remove_file(world.path("version")).expect("removes");
        world.start_daemon().await;
        assert_eq!(cri.pods().await, []);
        assert_eq!(cri.containers(v1::ContainerFilter::default()).await, []);
        assert!(cri.image(&image).await.is_some(), "images stay");
        let left = world.settled().await.since(&before);
        for kind in ["process", "mount", "pin", "lease", "record", "cni-result"] {
            assert_eq!(left.of_kind(kind), Vec::<&str>::new(), "{kind}");
        }
        let pod = cri.run_pod(world.pod_config("new"), "").await.expect("RunPodSandbox");
        cri.run(&pod, container_config(&image, "main", WAIT)).await;
    });
}

#[test]
fn containers_whose_monitor_was_killed_do_not_run_for_ever() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut orphans = Vec::new();
        for handler in HANDLERS {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
            let process = cri.container_pid(&container.id).await;
            let monitors = world.find_processes(&container.id);
            assert_eq!(monitors.len(), 1, "{name}: {monitors:?}");
            world.kill_process(monitors[0]);
            orphans.push((name, pod, container, process));
        }
        // Some end by themselves, some are told to.
        let stops: Vec<_> = orphans[2..]
            .iter()
            .map(|(_, _, container, _)| {
                let (cri, id) = (cri.clone(), container.id.clone());
                tokio::spawn(async move { cri.stop(&id, 5).await })
            })
            .collect();
        for (_, _, _, process) in &orphans[..2] {
            world.kill_process(*process);
        }
        for stop in stops {
            stop.await.expect("a client").expect("StopContainer");
        }
        // Once they have ended nobody is told that they run.
        for (name, pod, container, process) in &orphans {
            let status = cri.exit(&container.id).await;
            assert!(status.finished_at >= status.started_at, "{name}: {status:?}");
            let command = tools::read(format!("/proc/{process}/cmdline"));
            assert!(!command.contains("sleep 3600"), "{name}: still runs: {command}");
            cri.remove(&container.id).await.unwrap_or_else(|error| panic!("{name}: {error:?}"));
            cri.end_pod(&pod.id).await;
        }
    });
}

#[test]
fn a_pod_marked_stopped_by_another_daemon_still_gives_everything_back() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut config = world.pod_config("marked");
        config.port_mappings = vec![v1::PortMapping { container_port: 80, host_port: 8090, ..Default::default() }];
        let warm = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
        cri.run(&warm, container_config(&image, "main", WAIT)).await;
        cri.end_pod(&warm.id).await;
        let before = world.settled().await;
        let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
        cri.run(&pod, container_config(&image, "main", WAIT)).await;
        world.kill_daemon();
        // CRI-O does this as soon as it starts and misses the infra process, with all else still in place.
        let marker = world.path("run").join("overlay-containers").join(&pod.id).join("userdata/stopped");
        std::fs::File::create(&marker).unwrap_or_else(|error| panic!("{}: {error}", marker.display()));
        world.start_daemon().await;
        assert_eq!(
            cri.pod_status(&pod.id).await.expect("PodSandboxStatus").state(),
            v1::PodSandboxState::SandboxNotready
        );
        cri.end_pod(&pod.id).await;
        world.assert_nothing_since(&before).await;
    });
}

#[test]
fn a_container_started_when_the_daemon_died_is_running() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("late"), "crun").await.expect("RunPodSandbox");
        let container = cri.create(&pod, container_config(&image, "main", WAIT)).await.expect("CreateContainer");
        world.kill_daemon();
        // A table it was replacing when it died; no process has the number.
        let torn = world.path("run").join("overlay-layers/.tmp-mountpoints.json-4194305-7");
        std::fs::File::create(&torn).expect("a file");
        // What the daemon would have written down had it lived as long as the runtime.
        let root = format!("--root={}", world.path("runtime/crun").display());
        tools::run(world.command("crun").args([root.as_str(), "start", &container.id]));
        world.start_daemon().await;
        let status = cri.status(&container.id).await.expect("ContainerStatus");
        assert_eq!(status.state(), v1::ContainerState::ContainerRunning, "{status:?}");
        assert!(status.started_at >= status.created_at, "{status:?}");
        assert!(!torn.exists(), "a torn table goes with the next start");
        assert_eq!(cri.output(&container.id, &["echo", "alive"]).await, "alive");
        cri.end_pod(&pod.id).await;
    });
}
