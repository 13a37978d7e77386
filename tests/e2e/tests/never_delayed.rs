//! What hangs, hangs alone: containers in a long grace, in uninterruptible sleep, frozen, or whose output nobody reads
//! delay nobody else's calls.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::hung::Hung;
use e2e::websocket::Session;
use e2e::{Container, Cri, Pod, Setup, World, scenario, tools};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

/// A day, as some databases ask for.
const LONG_GRACE_SECONDS: i64 = 24 * 3600;
/// Calls that wait for what hangs: more than the daemon has threads for blocking work.
const WAITING: usize = 50;
/// What a call that only tells may take on a busy machine with two cores; ordinarily it is a millisecond.
const TELL_LIMIT: Duration = Duration::from_secs(1);
/// What a container's whole life may take there; ordinarily it is a fifth of a second.
const LIFE_LIMIT: Duration = Duration::from_secs(8);
const DEAF: &str = "trap '' TERM; echo ready; while :; do sleep 1; done";

fn shell(image: &str, name: &str, script: &str) -> v1::ContainerConfig {
    container_config(image, name, &["sh", "-c", script])
}

async fn run_until(cri: &Cri, pod: &Pod, config: v1::ContainerConfig, text: &str) -> Container {
    let container = cri.run(pod, config).await;
    let look = || e2e::log::texts(&e2e::log::read(&container.log), "stdout");
    tools::becomes(text, look, |texts| texts.iter().any(|line| line == text)).await;
    container
}

async fn timed<T>(what: &str, limit: Duration, call: impl Future<Output = T>) -> T {
    let begun = Instant::now();
    let answer = tokio::time::timeout(limit.max(Duration::from_secs(20)), call).await;
    let answer = answer.unwrap_or_else(|_| panic!("{what} hangs"));
    assert!(begun.elapsed() < limit, "{what} took {:.2?}", begun.elapsed());
    answer
}

/// Every kind of call about others, and those about the hanging ones that only tell.
async fn assert_others_go_on(world: &World, cri: &Cri, image: &str, hanging: &[&Container]) {
    let begun = Instant::now();
    timed("ListContainers", TELL_LIMIT, cri.containers(v1::ContainerFilter::default())).await;
    timed("ListPodSandbox", TELL_LIMIT, cri.pods()).await;
    let request = v1::StatusRequest { verbose: true };
    timed("Status", TELL_LIMIT, cri.runtime.clone().status(request)).await.expect("Status");
    for container in hanging {
        let status = timed("ContainerStatus", TELL_LIMIT, cri.status(&container.id)).await.expect("ContainerStatus");
        assert_eq!(status.state(), v1::ContainerState::ContainerRunning);
        let request = v1::ContainerStatsRequest { container_id: container.id.clone() };
        timed("ContainerStats", TELL_LIMIT, cri.runtime.clone().container_stats(request)).await.expect("stats");
    }
    let request = v1::ListContainerStatsRequest { filter: None };
    timed("ListContainerStats", TELL_LIMIT, cri.runtime.clone().list_container_stats(request)).await.expect("stats");
    timed("a pod's life", LIFE_LIMIT, async {
        let pod = cri.run_pod(world.pod_config("other"), "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(image, "other", WAIT)).await;
        assert_eq!(cri.output(&container.id, &["echo", "fine"]).await, "fine");
        cri.stop(&container.id, 10).await.expect("StopContainer");
        cri.remove(&container.id).await.expect("RemoveContainer");
        cri.end_pod(&pod.id).await;
    })
    .await;
    tools::say(&format!("all calls beside what hangs: {:.2?}", begun.elapsed()));
}

fn stop_later(cri: &Cri, container: &Container, seconds: i64) -> JoinHandle<Result<(), Status>> {
    let (cri, id) = (cri.clone(), container.id.clone());
    tokio::spawn(async move { cri.stop(&id, seconds).await })
}

#[test]
fn a_long_grace_delays_nobody_and_can_only_become_shorter() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut pods = Vec::new();
        let mut containers = Vec::new();
        for name in ["one", "two", "three", "four"] {
            let pod = cri.run_pod(world.pod_config(name), "").await.expect("RunPodSandbox");
            containers.push(run_until(&cri, &pod, shell(&image, name, DEAF), "ready").await);
            pods.push(pod);
        }
        let all: Vec<&Container> = containers.iter().collect();
        let waiting: Vec<_> = containers
            .iter()
            .flat_map(|container| (0..WAITING).map(|_| stop_later(&cri, container, LONG_GRACE_SECONDS)))
            .collect();
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_others_go_on(world, &cri, &image, &all).await;
        assert!(waiting.iter().all(|call| !call.is_finished()));

        // A shorter one counts for all, and a longer one after it does not.
        let begun = Instant::now();
        let shorter = stop_later(&cri, all[0], 2);
        tokio::time::sleep(Duration::from_millis(200)).await;
        let longer = stop_later(&cri, all[0], LONG_GRACE_SECONDS);
        timed("the shortened grace", LIFE_LIMIT, async {
            shorter.await.expect("a client").expect("StopContainer");
            longer.await.expect("a client").expect("StopContainer");
        })
        .await;
        assert!(begun.elapsed() >= Duration::from_millis(1900), "{:?}", begun.elapsed());
        // Stopping and removing a pod have graces of their own, ten seconds.
        let limit = Duration::from_secs(18);
        let stop = tokio::spawn({
            let (cri, id) = (cri.clone(), pods[1].id.clone());
            async move { timed("StopPodSandbox", limit, cri.stop_pod(&id)).await }
        });
        timed("RemovePodSandbox", limit, cri.remove_pod(&pods[2].id)).await.expect("RemovePodSandbox");
        stop.await.expect("a client").expect("StopPodSandbox");
        for call in waiting {
            if call.is_finished() {
                call.await.expect("a client").expect("StopContainer");
            } else {
                call.abort();
            }
        }

        // The daemon does not need to end a grace to end, nor to start.
        let _last = stop_later(&cri, all[3], LONG_GRACE_SECONDS);
        tokio::time::sleep(Duration::from_millis(100)).await;
        let begun = Instant::now();
        assert!(world.end_daemon());
        world.start_daemon().await;
        assert!(begun.elapsed() < LIFE_LIMIT, "{:?}", begun.elapsed());
        let cri = world.cri();
        let again = stop_later(&cri, all[3], LONG_GRACE_SECONDS);
        assert_others_go_on(world, &cri, &image, &all[3..]).await;
        timed("the grace after a restart", LIFE_LIMIT, cri.stop(&all[3].id, 1)).await.expect("StopContainer");
        again.await.expect("a client").expect("StopContainer");
    });
}

#[test]
fn a_process_that_cannot_be_killed_delays_nobody() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let directory = world.path("tmp/hung");
        let hung = Hung::mount(world, &directory);
        let mount =
            |host_path: String| v1::Mount { container_path: "/hung".to_owned(), host_path, ..Default::default() };
        let pod = cri.run_pod(world.pod_config("stuck"), "").await.expect("RunPodSandbox");
        let mut config = shell(&image, "stuck", "echo ready; exec cat /hung/file");
        config.mounts = vec![mount(directory.display().to_string())];
        let stuck = run_until(&cri, &pod, config, "ready").await;
        let pid = cri.container_pid(&stuck.id).await;
        let state = || tools::read(format!("/proc/{pid}/stat")).rsplit(") ").next().unwrap_or_default().to_owned();
        let waiting: Vec<_> = (0..WAITING).map(|_| stop_later(&cri, &stuck, 0)).collect();
        tools::becomes("it sleeps where no signal reaches", state, |state| state.starts_with('D')).await;
        let removals: Vec<_> = (0..WAITING)
            .map(|_| {
                let (cri, id) = (cri.clone(), pod.id.clone());
                tokio::spawn(async move { cri.remove_pod(&id).await })
            })
            .collect();
        // Containers whose volumes do not answer: more than there are threads for blocking work.
        let other_directory = world.path("tmp/hung-volumes");
        let volumes = Hung::mount(world, &other_directory);
        let waiting_pod = cri.run_pod(world.pod_config("volumes"), "").await.expect("RunPodSandbox");
        let creates: Vec<_> = (0..WAITING)
            .map(|number| {
                let (cri, pod) = (cri.clone(), waiting_pod.clone());
                let mut config = container_config(&image, &format!("volume-{number}"), WAIT);
                config.mounts = vec![mount(other_directory.join(format!("volume-{number}")).display().to_string())];
                tokio::spawn(async move { cri.create(&pod, config).await })
            })
            .collect();
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_others_go_on(world, &cri, &image, &[&stuck]).await;
        for create in creates {
            let error = create.await.expect("a client").expect_err("its volume hangs");
            assert_eq!(error.code(), Code::Unavailable, "{error:?}");
            assert!(error.message().contains("does not answer"), "{error:?}");
        }
        // What the daemon itself waits for must end before the kernel lets it end.
        drop(volumes);
        assert!(waiting.iter().all(|call| !call.is_finished()) && removals.iter().all(|call| !call.is_finished()));

        // A daemon starts beside such a process, and waits for it as the one before did.
        world.kill_daemon();
        world.start_daemon().await;
        let cri = world.cri();
        let again: Vec<_> = (0..WAITING).map(|_| stop_later(&cri, &stuck, 0)).collect();
        assert_others_go_on(world, &cri, &image, &[]).await;
        assert!(again.iter().all(|call| !call.is_finished()));
        drop(hung);
        for call in again {
            call.await.expect("a client").expect("StopContainer");
        }
        tools::eventually("its pod goes", async || cri.remove_pod(&pod.id).await.ok()).await;
    });
}

/// Where the container's processes are frozen, on cgroup v1 and v2.
fn freezer(world: &World, id: &str) -> std::path::PathBuf {
    let name = world.name();
    [
        format!("/sys/fs/cgroup/freezer/{name}/crio-{id}/freezer.state"),
        format!("/sys/fs/cgroup/{name}/crio-{id}/cgroup.freeze"),
    ]
    .into_iter()
    .map(std::path::PathBuf::from)
    .find(|path| path.exists())
    .expect("the container's cgroup")
}

#[test]
fn a_frozen_container_delays_nobody_and_is_resumed_to_stop() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in ["crun", "runc"] {
            let pod = cri.run_pod(world.pod_config(handler), handler).await.expect("RunPodSandbox");
            let frozen = cri.run(&pod, container_config(&image, "frozen", WAIT)).await;
            // By somebody who does not ask the daemon.
            let file = freezer(world, &frozen.id);
            tools::write(&file, if file.ends_with("freezer.state") { "FROZEN" } else { "1" });
            // A program in it would never begin.
            let exec = timed("ExecSync", TELL_LIMIT, cri.exec(&frozen.id, &["true"], 0)).await;
            let message = e2e::cri::refused(exec, Code::NotFound);
            assert!(message.contains("paused"), "{message}");
            assert_others_go_on(world, &cri, &image, &[&frozen]).await;
            // It gets its signal, and ends as it likes to.
            timed("StopContainer", LIFE_LIMIT, cri.stop(&frozen.id, 20)).await.expect("StopContainer");
            assert_eq!(cri.status(&frozen.id).await.expect("ContainerStatus").exit_code, 0, "{handler}");
        }
    });
}

#[test]
fn output_that_nobody_reads_delays_nobody() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("noisy"), "").await.expect("RunPodSandbox");
        // Its own standard input is open, and it never reads.
        let mut config = container_config(&image, "main", WAIT);
        config.stdin = true;
        let noisy = cri.run(&pod, config).await;
        let mut sessions = Vec::new();
        for _ in 0..WAITING {
            let request = v1::ExecRequest {
                container_id: noisy.id.clone(),
                cmd: vec!["yes".to_owned()],
                stdout: true,
                stderr: true,
                ..Default::default()
            };
            let url = cri.runtime.clone().exec(request).await.expect("Exec").into_inner().url;
            sessions.push(Session::open(world, &url, "v5.channel.k8s.io").expect("a session"));
        }
        let request = v1::AttachRequest {
            container_id: noisy.id.clone(),
            stdin: true,
            stdout: true,
            stderr: true,
            ..Default::default()
        };
        let url = cri.runtime.clone().attach(request).await.expect("Attach").into_inner().url;
        let mut attached = Session::open(world, &url, "v5.channel.k8s.io").expect("a session");
        // More than pipes and sockets hold together, on a thread that may wait for ever.
        std::thread::spawn(move || {
            for _ in 0..64 {
                attached.send(e2e::websocket::STDIN, &[b'x'; 60_000]);
            }
        });
        tokio::time::sleep(Duration::from_millis(500)).await;
        let resident = world.daemon_resident_kib();
        assert_others_go_on(world, &cri, &image, &[&noisy]).await;
        let later = world.daemon_resident_kib();
        assert!(later < resident + (16 << 10), "from {resident} KiB to {later} KiB: what nobody reads is piled up");
        timed("StopContainer", LIFE_LIMIT, cri.stop(&noisy.id, 5)).await.expect("StopContainer");
        drop(sessions);
    });
}
