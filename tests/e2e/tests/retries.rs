//! Requests sent twice, and steps that fail: the work is done once, or everything of it is undone.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::image::{Archive, Compression, Format, Recipe};
use e2e::liar::{Liar, Lie};
use e2e::world::HANDLERS;
use e2e::{Setup, World, scenario, tools};
use tonic::Code;

/// How many times a request is sent at once.
const TWINS: usize = 4;

/// A network whose second plugin is a script; `@ROOT@/plugins/odd` is what a scenario writes there.
fn odd_network(root_is: &str) -> String {
    format!(
        r#"{{"cniVersion": "1.0.0", "name": "odd", "plugins": [
             {{"type": "bridge", "bridge": "pods0", "isGateway": true,
               "ipam": {{"type": "host-local", "dataDir": "{root_is}/ipam", "ranges": [[{{"subnet": "10.99.0.0/24"}}]]}}}},
             {{"type": "odd"}}]}}"#
    )
}

/// A plugin that does nothing and passes on what came before, unless `on_add` ends it.
fn plugin(on_add: &str) -> String {
    format!(
        "#!/bin/sh\nif [ \"$CNI_COMMAND\" = VERSION ]; then echo '{{\"cniVersion\":\"1.0.0\",\"supportedVersions\":[\"0.4.0\",\"1.0.0\"]}}'; exit; fi\n\
         if [ \"$CNI_COMMAND\" = ADD ]; then {on_add}\njq -c .prevResult; fi\n"
    )
}

#[test]
fn a_pull_tells_how_far_it_has_come() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let content: Vec<u8> = (0..200_000_u32).flat_map(u32::to_le_bytes).collect();
        let image = Recipe::new(Format::Oci)
            .layer(Archive::default().file("content", 0o644, &content).finish(), Compression::Gzip)
            .build();
        let size = image.layers[0].len() as u64;
        let liar = Liar::start(world, 5002, image, Lie::InParts(Duration::from_millis(60)));
        let name = format!("{}/e2e/parts:1", liar.host());
        assert_eq!(cri.pull_progress(&name).await, None, "before");
        let pull = tokio::spawn({
            let (cri, name) = (cri.clone(), name.clone());
            async move { cri.pull(&name).await.expect("PullImage") }
        });
        let mut seen = Vec::new();
        while !pull.is_finished() {
            if let Some(progress) = cri.pull_progress(&name).await.filter(|progress| progress.bytes_total > 0) {
                assert_eq!((progress.bytes_total, progress.layers_total), (size, 1));
                seen.push(progress.bytes);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        pull.await.expect("a pull");
        assert_eq!(cri.pull_progress(&name).await, None, "after");
        assert!(seen.is_sorted() && seen.iter().all(|bytes| *bytes <= size), "{seen:?} of {size}");
        seen.dedup();
        assert!(seen.len() > 3, "{seen:?} of {size}");
    });
}

#[test]
fn requests_sent_at_once_do_the_work_once() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        // One layer that takes a while, counted by who serves it.
        let slow = Recipe::new(Format::Oci)
            .layer(Archive::default().file("slow", 0o644, b"slow").finish(), Compression::Gzip)
            .build();
        let liar = Liar::start(world, 5002, slow.clone(), Lie::Late(Duration::from_millis(500)));
        let name = format!("{}/e2e/slow:1", liar.host());
        let pulls = (0..TWINS).map(|_| {
            let (cri, name) = (cri.clone(), name.clone());
            tokio::spawn(async move { cri.pull(&name).await.expect("PullImage") })
        });
        for pull in pulls.collect::<Vec<_>>() {
            assert_eq!(pull.await.expect("a pull"), slow.id());
        }
        assert_eq!(liar.layer_requests(), 1, "the layer was fetched once");

        let image = world.busybox().await;
        let before = world.settled().await;
        let config = world.pod_config("twins");
        let runs = (0..TWINS).map(|_| {
            let (cri, config) = (cri.clone(), config.clone());
            tokio::spawn(async move { cri.run_pod(config, "").await.expect("RunPodSandbox") })
        });
        let mut pods = Vec::new();
        for run in runs.collect::<Vec<_>>() {
            pods.push(run.await.expect("a run"));
        }
        assert!(pods.windows(2).all(|pair| pair[0].id == pair[1].id), "{pods:?}");
        assert_eq!(cri.run_pod(config, "").await.expect("again").id, pods[0].id);
        assert_eq!(cri.pods().await.len(), 1);
        assert_eq!(world.snapshot().since(&before).of_kind("lease").len(), 1);

        let config = container_config(&image, "twin", WAIT);
        let creates = (0..TWINS).map(|_| {
            let (cri, pod, config) = (cri.clone(), pods[0].clone(), config.clone());
            tokio::spawn(async move { cri.create(&pod, config).await.expect("CreateContainer").id })
        });
        let mut ids = Vec::new();
        for create in creates.collect::<Vec<_>>() {
            ids.push(create.await.expect("a create"));
        }
        assert!(ids.windows(2).all(|pair| pair[0] == pair[1]), "{ids:?}");
        assert_eq!(cri.create(&pods[0], config).await.expect("again").id, ids[0]);
        assert_eq!(cri.find(v1::ContainerFilter::default()).await.len(), 1);
        cri.start(&ids[0]).await.expect("StartContainer");

        // So do endings.
        let ends = (0..TWINS).map(|number| {
            let (cri, pod, id) = (cri.clone(), pods[0].id.clone(), ids[0].clone());
            tokio::spawn(async move {
                match number % 2 {
                    0 => cri.stop(&id, 3).await.expect("StopContainer"),
                    _ => cri.stop_pod(&pod).await.expect("StopPodSandbox"),
                }
                cri.remove(&id).await.expect("RemoveContainer");
                cri.remove_pod(&pod).await.expect("RemovePodSandbox");
            })
        });
        for end in ends.collect::<Vec<_>>() {
            end.await.expect("an end");
        }
        let left = world.settled().await.since(&before);
        assert!(
            left.of_kind("pin").is_empty() && left.of_kind("lease").is_empty() && left.of_kind("record").is_empty(),
            "{left}"
        );
    });
}

#[test]
fn what_is_not_there_is_stopped_and_removed_already() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let unknown = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        cri.stop_pod(unknown).await.expect("StopPodSandbox");
        cri.remove_pod(unknown).await.expect("RemovePodSandbox");
        cri.stop(unknown, 1).await.expect("StopContainer");
        cri.remove(unknown).await.expect("RemoveContainer");
        let pod = cri.run_pod(world.pod_config("twice"), "").await.expect("RunPodSandbox");
        for _ in 0..2 {
            cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        }
        for _ in 0..2 {
            cri.remove_pod(&pod.id).await.expect("RemovePodSandbox");
        }
        cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        // An empty id is a mistake, not an absent object.
        assert!(cri.stop_pod("").await.is_err() && cri.remove_pod("").await.is_err());
        assert!(cri.stop("", 1).await.is_err() && cri.remove("").await.is_err());
    });
}

/// Runs a pod of each handler and takes it away again, so that what the first one leaves for the others is there.
async fn warm_up(world: &World) -> e2e::snapshot::Snapshot {
    let cri = world.cri();
    let image = world.busybox().await;
    for handler in HANDLERS {
        let pod = cri.run_pod(world.pod_config("warm-up"), handler.name).await.expect("RunPodSandbox");
        cri.run(&pod, container_config(&image, "main", WAIT)).await;
        cri.end_pod(&pod.id).await;
        remove_logs(&pod.config);
    }
    world.settled().await
}

/// The log directory a client names is the client's; it goes before the looks are compared.
fn remove_logs(config: &v1::PodSandboxConfig) {
    let _ = std::fs::remove_dir_all(&config.log_directory);
}

#[test]
fn a_network_that_fails_leaves_nothing() {
    let setup = Setup { network: Some(odd_network("@ROOT@")), ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        tools::write_program(world.path("plugins/odd"), &plugin(""));
        let before = warm_up(world).await;
        // The second plugin of the chain says no, after the first one has given an address.
        let refusal = r#"echo '{"cniVersion":"1.0.0","code":11,"msg":"the plugin says no"}'; exit 1"#;
        tools::write_program(world.path("plugins/odd"), &plugin(refusal));
        let config = world.pod_config("refused");
        let error = cri.run_pod(config.clone(), "").await.expect_err("must fail");
        assert!(error.message().contains("the plugin says no"), "{error:?}");
        remove_logs(&config);
        world.assert_nothing_since(&before).await;
        // It dies.
        tools::write_program(world.path("plugins/odd"), &plugin("kill -KILL $$"));
        assert!(cri.run_pod(config.clone(), "").await.is_err());
        remove_logs(&config);
        world.assert_nothing_since(&before).await;
        // It is not there.
        std::fs::remove_file(world.path("plugins/odd")).expect("removes");
        let error = cri.run_pod(config.clone(), "").await.expect_err("must fail");
        assert!(error.message().contains("odd"), "{error:?}");
        remove_logs(&config);
        world.assert_nothing_since(&before).await;
        // The same request succeeds once the plugin does.
        tools::write_program(world.path("plugins/odd"), &plugin(""));
        let pod = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
        cri.end_pod(&pod.id).await;
        remove_logs(&config);
        world.assert_nothing_since(&before).await;
    });
}

#[test]
fn a_client_that_gives_up_waiting_finds_the_work_going_on() {
    let setup = Setup { network: Some(odd_network("@ROOT@")), ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        tools::write_program(world.path("plugins/odd"), &plugin(""));
        let before = warm_up(world).await;
        let (calls, gate) = (world.path("tmp/calls"), world.path("tmp/gate"));
        let hang = format!("echo x >> {}; while [ ! -e {} ]; do sleep 0.05; done", calls.display(), gate.display());
        tools::write_program(world.path("plugins/odd"), &plugin(&hang));
        let config = world.pod_config("patient");
        let given_up = tokio::time::timeout(Duration::from_millis(700), cri.run_pod(config.clone(), "")).await;
        assert!(given_up.is_err(), "the plugin hangs: {given_up:?}");
        let again = tokio::time::timeout(Duration::from_millis(300), cri.run_pod(config.clone(), "")).await;
        assert!(again.is_err(), "the plugin still hangs: {again:?}");
        let third = {
            let (cri, config) = (cri.clone(), config.clone());
            tokio::spawn(async move { cri.run_pod(config, "").await })
        };
        tokio::time::sleep(Duration::from_millis(100)).await;
        tools::write(&gate, "");
        let pod = third.await.expect("a run").expect("RunPodSandbox");
        assert_eq!(tools::read(&calls), "x\n", "the plugin was asked once");
        assert_eq!(cri.pods().await.len(), 1);
        cri.end_pod(&pod.id).await;
        remove_logs(&config);
        world.assert_nothing_since(&before).await;

        // Given up for good before it was there: nobody sees it, until somebody asks for the same again.
        std::fs::remove_file(&gate).expect("removes");
        let config = world.pod_config("hidden");
        let given_up = tokio::time::timeout(Duration::from_millis(500), cri.run_pod(config.clone(), "")).await;
        assert!(given_up.is_err());
        let made = || tools::read(world.path("crio.log")).matches("sandbox is ready").count();
        let earlier = made();
        tools::write(&gate, "");
        tools::becomes("the pod is made", made, |count| *count == earlier + 1).await;
        assert_eq!(cri.pods().await, []);
        let pod = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
        assert_eq!(tools::read(&calls), "x\nx\n", "it was made once");
        assert_eq!(cri.pods().await.len(), 1);
        cri.end_pod(&pod.id).await;
        remove_logs(&config);
        world.assert_nothing_since(&before).await;

        // Given up, and then failing: undone without anybody waiting.
        std::fs::remove_file(&gate).expect("removes");
        let fail = format!("while [ ! -e {} ]; do sleep 0.05; done; exit 1", gate.display());
        tools::write_program(world.path("plugins/odd"), &plugin(&fail));
        let config = world.pod_config("abandoned");
        let given_up = tokio::time::timeout(Duration::from_millis(500), cri.run_pod(config.clone(), "")).await;
        assert!(given_up.is_err());
        tools::write(&gate, "");
        tools::becomes("the half-made pod is undone", || world.snapshot().of_kind("pin").len(), |count| *count == 0)
            .await;
        assert_eq!(cri.pods().await, []);
        remove_logs(&config);
        world.assert_nothing_since(&before).await;
    });
}

#[test]
fn a_pull_ends_with_the_last_that_waits_for_it() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let archive = Archive::default().file("late", 0o644, b"late").finish();
        let image = Recipe::new(Format::Oci).layer(archive, Compression::Gzip).build();
        let liar = Liar::start(world, 5002, image.clone(), Lie::Late(Duration::from_millis(800)));
        let name = format!("{}/e2e/late:1", liar.host());
        let given_up = async || tokio::time::timeout(Duration::from_millis(300), cri.pull(&name)).await;
        // One of two that wait leaves: the other gets what came for both.
        let (left, stayed) = tokio::join!(given_up(), cri.pull(&name));
        assert!(left.is_err(), "{left:?}");
        assert_eq!(stayed.expect("PullImage"), image.id());
        assert_eq!(liar.layer_requests(), 1);
        // The only one leaves: nothing comes of it.
        cri.remove_image(&name).await.expect("RemoveImage");
        assert!(given_up().await.is_err());
        tokio::time::sleep(Duration::from_millis(1500)).await;
        assert!(cri.image(&name).await.is_none(), "the pull ended with its client");
        assert_eq!(cri.pull(&name).await.expect("PullImage"), image.id());
    });
}

#[test]
fn a_name_in_another_sandbox_is_no_retry() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut config = world.pod_config("web");
        let pod = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
        let first = cri.create(&pod, container_config(&image, "web", WAIT)).await.expect("CreateContainer");
        let again = cri.create(&pod, container_config(&image, "web", WAIT)).await.expect("CreateContainer");
        assert_eq!(first.id, again.id);
        cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        config.metadata.as_mut().expect("metadata").attempt = 1;
        let next = cri.run_pod(config, "").await.expect("RunPodSandbox");
        let error = refused(cri.create(&next, container_config(&image, "web", WAIT)).await, Code::Unknown);
        assert!(error.contains(&first.id), "{error}");
        cri.remove_pod(&pod.id).await.expect("RemovePodSandbox");
        cri.create(&next, container_config(&image, "web", WAIT)).await.expect("CreateContainer");
    });
}

#[test]
fn a_container_that_cannot_be_made_leaves_nothing() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let before_all = warm_up(world).await;
        let image = world.busybox().await;
        for handler in HANDLERS.map(|handler| handler.name) {
            let pod = cri.run_pod(world.pod_config(handler), handler).await.expect("RunPodSandbox");
            let before = world.settled().await;
            let mut missing_mount = container_config(&image, "mount", WAIT);
            missing_mount.mounts = vec![v1::Mount {
                container_path: "/etc/passwd/below-a-file".to_owned(),
                host_path: world.path("tmp").display().to_string(),
                ..Default::default()
            }];
            let mut unknown_user = container_config(&image, "user", WAIT);
            let security = unknown_user.linux.as_mut().and_then(|linux| linux.security_context.as_mut());
            security.expect("a context").run_as_username = "nobody-knows".to_owned();
            let cases = [
                ("command", container_config(&image, "command", &["/no/such/program"]), "/no/such/program"),
                ("file", container_config(&image, "file", &["/etc/passwd"]), "permission denied"),
                ("directory", missing_mount, "below-a-file"),
                ("user", unknown_user, "nobody-knows"),
                ("image", container_config("127.0.0.1:5000/e2e/never:pulled", "image", WAIT), "never:pulled"),
            ];
            for (what, config, text) in cases {
                // A runtime may notice when it creates or when it starts; nothing stays either way.
                let error = match cri.create(&pod, config).await {
                    Err(error) => error,
                    Ok(container) => {
                        let error = cri.start(&container.id).await.expect_err(what);
                        cri.remove(&container.id).await.expect("RemoveContainer");
                        error
                    }
                };
                let message = error.message().to_lowercase();
                assert!(message.contains(text), "{what} by {handler}: {error:?}");
                remove_logs(&pod.config);
                std::fs::create_dir_all(&pod.config.log_directory).expect("a directory");
                world.assert_nothing_since(&before).await;
            }
            // The pod is as good as before.
            let container = cri.run(&pod, container_config(&image, "command", WAIT)).await;
            assert_eq!(cri.output(&container.id, &["echo", "fine"]).await, "fine");
            cri.end_pod(&pod.id).await;
            remove_logs(&pod.config);
            world.assert_nothing_since(&before_all).await;
        }
    });
}

#[test]
fn a_runtime_that_vanishes_leaves_nothing() {
    let setup = Setup { vanishing: true, ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        let before_all = warm_up(world).await;
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("vanishing"), "vanishing").await.expect("RunPodSandbox");
        let before = world.settled().await;
        let program = world.path("tmp/vanishing");
        std::fs::remove_file(&program).expect("removes");
        let error = cri.create(&pod, container_config(&image, "main", WAIT)).await.expect_err("must fail");
        assert!(error.message().contains("vanishing"), "{error:?}");
        remove_logs(&pod.config);
        std::fs::create_dir_all(&pod.config.log_directory).expect("a directory");
        world.assert_nothing_since(&before).await;
        // A sandbox with a process of its own needs it too.
        let mut config = world.pod_config("vanishing-shared");
        let linux = config.linux.get_or_insert_default();
        linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default().pid =
            v1::NamespaceMode::Pod.into();
        assert!(cri.run_pod(config.clone(), "vanishing").await.is_err());
        remove_logs(&config);
        world.assert_nothing_since(&before).await;
        // An unknown handler is nothing at all.
        let config = world.pod_config("unknown");
        let error = cri.run_pod(config, "unheard-of").await.expect_err("must fail");
        assert!(error.message().contains("unheard-of"), "{error:?}");
        world.assert_nothing_since(&before).await;
        cri.end_pod(&pod.id).await;
        remove_logs(&pod.config);
        world.assert_nothing_since(&before_all).await;
    });
}

#[test]
fn a_sandbox_is_stopped_within_the_time_its_caller_waits() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("deaf"), "").await.expect("RunPodSandbox");
        let script = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let container = cri.run(&pod, container_config(&image, "main", &["sh", "-c", script])).await;
        let is_ready = || e2e::log::texts(&e2e::log::read(&container.log), "stdout");
        tools::becomes("it is deaf", is_ready, |texts| texts.iter().any(|text| text == "ready")).await;
        let mut request = tonic::Request::new(v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() });
        request.set_timeout(Duration::from_secs(4));
        let begun = Instant::now();
        cri.runtime.clone().stop_pod_sandbox(request).await.expect("StopPodSandbox");
        assert!(begun.elapsed() >= Duration::from_secs(2), "it had some grace: {:?}", begun.elapsed());
        cri.end_pod(&pod.id).await;
    });
}
