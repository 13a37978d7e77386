//! Pods behind a shim (`runtime_type = "vm"`): what differs from other pods is to be seen by nobody but the operator.
#![forbid(unsafe_code)]

use std::time::{Duration, Instant};

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::websocket::{RESIZE, STDIN, STDOUT, Session};
use e2e::world::binary;
use e2e::{Cri, Setup, World, log, scenario, tools};
use tonic::Code;

const EXEC: &str = "v5.channel.k8s.io";

/// A handler for each way to behave.
fn setup(modes: &[(&str, &str)]) -> Setup {
    let shim = binary("containerd-shim-stub-v2");
    let table = |(name, mode): &(&str, &str)| {
        format!(
            "[crio.runtime.runtimes.{name}]\nruntime_type = \"vm\"\nruntime_path = {shim:?}\n\
             runtime_root = \"@ROOT@/shims/{name}\"\nruntime_config_path = \"@ROOT@/crio.conf\"\n\
             monitor_cgroup = \"pod\"\nmonitor_env = [\"PATH={}\", \"STUB={mode}\"]\n",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        )
    };
    Setup { drop_in: modes.iter().map(table).collect(), ..Setup::default() }
}

fn assert_no_records(world: &World, handler: &str) {
    for kind in ["shims", "fifo"] {
        let left = tools::names(world.path(&format!("shims/{handler}/crio/{kind}")));
        assert!(left.is_empty(), "{handler} {kind}: {left:?}");
    }
}

fn stdout(container: &e2e::Container) -> Vec<String> {
    log::texts(&log::read(&container.log), "stdout")
}

async fn stats(cri: &Cri, id: &str) -> v1::ContainerStats {
    let request = v1::ContainerStatsRequest { container_id: id.to_owned() };
    cri.runtime.clone().container_stats(request).await.expect("ContainerStats").into_inner().stats.expect("stats")
}

async fn session(world: &World, id: &str, command: &[&str], tty: bool) -> Session {
    let request = v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(ToString::to_string).collect(),
        tty,
        stdin: true,
        stdout: true,
        stderr: !tty,
    };
    let url = world.cri().runtime.clone().exec(request).await.expect("Exec").into_inner().url;
    Session::open(world, &url, EXEC).expect("a session")
}

#[test]
fn containers_behind_a_shim_are_like_others() {
    scenario(setup(&[("vm", "")]), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut config = world.pod_config("vm");
        config.hostname = "behind".to_owned();
        config.annotations.insert("io.katacontainers.config.hypervisor.default_vcpus".to_owned(), "2".to_owned());
        let pod = cri.run_pod(config, "vm").await.expect("RunPodSandbox");
        let sandbox = world.path(&format!("run/overlay-containers/{}/userdata", pod.id));
        let spec: serde_json::Value =
            serde_json::from_str(&tools::read(sandbox.join("config.json"))).expect("a runtime spec");
        let annotations = &spec["annotations"];
        assert_eq!(annotations["io.katacontainers.config.hypervisor.default_vcpus"], "2");
        assert_eq!(annotations["io.kubernetes.cri-o.ContainerType"], "sandbox");
        assert_eq!(annotations.get("spoofed.crio.io"), None, "there is an infra container");

        let script = "hostname; echo complaint >&2; exit 7";
        let (ended, texts) = cri.run_to_end(&pod, container_config(&image, "ends", &["sh", "-c", script])).await;
        assert_eq!((ended.exit_code, texts), (7, vec!["behind".to_owned()]));
        assert!(tools::read(sandbox.join("shim.log")).contains("options "), "the handler's file is passed on");

        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        let id = container.id.as_str();
        tools::becomes("it is ready", || stdout(&container), |texts| *texts == ["ready"]).await;
        assert_eq!(
            cri.output(id, &["sh", "-c", "echo $HOSTNAME; readlink /proc/self/ns/net"]).await.lines().count(),
            2
        );
        let answer = cri.exec(id, &["sh", "-c", "echo out; echo err >&2; exit 3"], 5).await.expect("ExecSync");
        assert_eq!((answer.exit_code, &*answer.stdout, &*answer.stderr), (3, &b"out\n"[..], &b"err\n"[..]));
        assert!(cri.exec(id, &["/no/such/program"], 5).await.is_err());
        let late = cri.exec(id, &["sleep", "4712"], 1).await.expect("ExecSync");
        assert_eq!((late.exit_code, &*late.stderr), (-1, &b"command timed out"[..]));
        tools::becomes("it was killed", || world.find_processes("sleep 4712").len(), |count| *count == 0).await;
        let used = stats(&cri, id).await;
        assert!(used.memory.and_then(|memory| memory.usage_bytes).is_some_and(|bytes| bytes.value > 0));
        let limits = v1::LinuxContainerResources { memory_limit_in_bytes: 64 << 20, ..Default::default() };
        cri.update(id, limits).await.expect("UpdateContainerResources");

        // Sessions: input and its end, a terminal and its size, a client that leaves.
        let mut piped = session(world, id, &["sh", "-c", "cat; echo over >&2"], false).await;
        piped.send(STDIN, b"hello\n");
        piped.close_channel(STDIN);
        let (output, complaints, end) = piped.finish();
        assert_eq!((output.as_str(), complaints.as_str()), ("hello\n", "over\n"));
        assert_eq!(end["status"], "Success", "{end}");
        let until = "until [ \"$(stty size)\" = '43 132' ]; do sleep 0.02; done; tty; exit 3";
        let mut terminal = session(world, id, &["sh", "-c", until], true).await;
        terminal.send(RESIZE, br#"{"Width":132,"Height":43}"#);
        let (output, _, end) = terminal.finish();
        assert!(output.contains("/dev/pts/") && output.ends_with("\r\n") && !output.contains("\r\r"), "{output:?}");
        assert_eq!(end["details"]["causes"][0]["message"], "3", "{end}");
        let mut leaving = session(world, id, &["sh", "-c", "echo begun; exec sleep 4711"], false).await;
        leaving.wait_for(STDOUT, "begun");
        drop(leaving);
        tools::becomes("it has gone", || world.find_processes("sleep 4711").len(), |count| *count == 0).await;

        // Its monitor writes the log, and begins a new one when it is told to.
        let moved = format!("{}.old", container.log);
        tools::run(world.command("mv").args([&container.log, &moved]));
        cri.reopen_log(id).await.expect("ReopenContainerLog");
        assert!(tools::read(&container.log).is_empty());

        cri.stop(id, 10).await.expect("StopContainer");
        assert_eq!(cri.status(id).await.expect("ContainerStatus").exit_code, 0);
        let deaf = "trap '' TERM; echo ready; while :; do sleep 1; done";
        let deaf = cri.run(&pod, container_config(&image, "deaf", &["sh", "-c", deaf])).await;
        tools::becomes("it is ready", || stdout(&deaf), |texts| *texts == ["ready"]).await;
        let begun = Instant::now();
        cri.stop(&deaf.id, 1).await.expect("StopContainer");
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        assert_eq!(cri.status(&deaf.id).await.expect("ContainerStatus").exit_code, 137);
        let never = cri.create(&pod, container_config(&image, "never", WAIT)).await.expect("CreateContainer");
        cri.remove(&never.id).await.expect("RemoveContainer");
        cri.end_pod(&pod.id).await;
        assert_no_records(world, "vm");
    });
}

#[test]
fn a_terminal_behind_a_shim_is_attached_to() {
    scenario(setup(&[("vm", "")]), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("vm"), "vm").await.expect("RunPodSandbox");
        let script = "while read line; do echo \"heard $line at $(stty size)\"; done";
        let mut config = container_config(&image, "echo", &["sh", "-c", script]);
        (config.stdin, config.tty) = (true, true);
        let container = cri.run(&pod, config).await;
        let request = v1::AttachRequest {
            container_id: container.id.clone(),
            stdin: true,
            stdout: true,
            tty: true,
            ..Default::default()
        };
        let url = cri.runtime.clone().attach(request).await.expect("Attach").into_inner().url;
        let mut session = Session::open(world, &url, EXEC).expect("a session");
        session.send(RESIZE, br#"{"Width":132,"Height":43}"#);
        tokio::time::sleep(Duration::from_millis(200)).await;
        session.send(STDIN, b"this\n");
        session.wait_for(STDOUT, "heard this at 43 132");
        drop(session);
        cri.stop(&container.id, 0).await.expect("StopContainer");
        cri.end_pod(&pod.id).await;
        assert_no_records(world, "vm");
    });
}

#[test]
fn a_pod_behind_a_shim_outlives_the_daemon_and_not_its_shim() {
    scenario(setup(&[("vm", "")]), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("vm"), "vm").await.expect("RunPodSandbox");
        let tick = "trap 'exit 5' TERM; n=0; while :; do n=$((n+1)); echo tick $n; sleep 0.1; done";
        let ticking = cri.run(&pod, container_config(&image, "ticking", &["sh", "-c", tick])).await;
        let ending = cri.run(&pod, container_config(&image, "ending", &["sh", "-c", "sleep 1; exit 42"])).await;
        world.kill_daemon();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        let count = stdout(&ticking).len();
        tools::becomes("it logs without a daemon", || stdout(&ticking).len(), |now| *now > count + 3).await;
        world.start_daemon().await;
        let cri = world.cri();
        assert_eq!(cri.exit(&ending.id).await.exit_code, 42);
        assert_eq!(cri.output(&ticking.id, &["echo", "there"]).await.trim_end(), "there");
        assert!(stats(&cri, &ticking.id).await.cpu.is_some());
        cri.stop(&ticking.id, 10).await.expect("StopContainer");
        assert_eq!(cri.status(&ticking.id).await.expect("ContainerStatus").exit_code, 5);

        // A shim that dies takes its pod along.
        let waiting = cri.run(&pod, container_config(&image, "waiting", WAIT)).await;
        let record = tools::read(world.path(&format!("shims/vm/crio/shims/{}", pod.id)));
        let record: serde_json::Value = serde_json::from_str(&record).expect("a record");
        world.kill_process(i32::try_from(record["shim"]["pid"].as_i64().expect("a pid")).expect("a pid"));
        assert_eq!(cri.exit(&waiting.id).await.exit_code, 255);
        tools::eventually("the sandbox is not ready", async || {
            let state = cri.pod_status(&pod.id).await.expect("PodSandboxStatus").state();
            (state == v1::PodSandboxState::SandboxNotready).then_some(())
        })
        .await;
        assert!(cri.create(&pod, container_config(&image, "late", WAIT)).await.is_err());
        cri.end_pod(&pod.id).await;
        assert_no_records(world, "vm");
    });
}

#[test]
fn pods_of_shims_that_fail_leave_nothing() {
    let modes = [("refusing", "refuse"), ("oversize", "oversize"), ("torn", "torn")];
    scenario(setup(&modes), async |world| {
        let cri = world.cri();
        world.busybox().await;
        for (handler, said) in [
            ("refusing", "Create: no machine to be had"),
            ("oversize", "a message of 4294967295 bytes is longer than 4194304"),
            ("torn", "the shim is gone"),
        ] {
            let message = refused(cri.run_pod(world.pod_config(handler), handler).await, Code::Unknown);
            assert!(message.contains(said), "{handler}: {message}");
            assert_no_records(world, handler);
        }
    });
}
