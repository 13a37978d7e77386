//! Containers, by every pair of runtime and monitor: what they run, how they end, what they say.
#![forbid(unsafe_code)]

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::image::{Archive, Compression, Format, Recipe};
use e2e::world::HANDLERS;
use e2e::{Container, Cri, Handler, Pod, Setup, World, log, scenario, tools};
use serde_json::json;
use tonic::Code;

/// The most that an exec may return. Source: CRI-O.
const EXEC_OUTPUT_MAX: usize = 16 << 20;

/// Runs the scenario with a pod of each handler.
fn with_each_handler(body: impl AsyncFn(&World, &Cri, Handler, &Pod, &str)) {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in HANDLERS {
            eprintln!("handler {}", handler.name);
            let pod = cri.run_pod(world.pod_config(handler.name), handler.name).await.expect("RunPodSandbox");
            assert_eq!(cri.pod_status(&pod.id).await.expect("PodSandboxStatus").runtime_handler, handler.name);
            body(world, &cri, handler, &pod, &image).await;
            cri.end_pod(&pod.id).await;
        }
    });
}

fn shell(image: &str, name: &str, script: &str) -> v1::ContainerConfig {
    container_config(image, name, &["sh", "-c", script])
}

#[test]
fn a_container_goes_through_its_states() {
    with_each_handler(async |world, cri, _, pod, image| {
        let mut config = container_config(image, "main", WAIT);
        config.annotations = HashMap::from([("note".to_owned(), "kept".to_owned())]);
        let container = cri.create(pod, config).await.expect("CreateContainer");
        let id = container.id.as_str();
        let created = cri.status(id).await.expect("ContainerStatus");
        assert_eq!(created.state(), v1::ContainerState::ContainerCreated);
        assert!(created.created_at > 0 && created.started_at == 0 && created.finished_at == 0, "{created:?}");
        assert_eq!(created.annotations["note"], "kept");
        assert_eq!(created.log_path, container.log);
        cri.start(id).await.expect("StartContainer");
        await_text(&container, "ready").await;
        let running = cri.status(id).await.expect("ContainerStatus");
        assert_eq!(running.state(), v1::ContainerState::ContainerRunning);
        assert!(running.started_at >= created.created_at && running.finished_at == 0, "{running:?}");
        assert!(cri.start(id).await.is_err(), "it runs already");
        assert!(cri.container_pid(id).await > 1);
        let begun = Instant::now();
        cri.stop(id, 10).await.expect("StopContainer");
        assert!(begun.elapsed() < Duration::from_secs(5), "it ends by itself when told");
        let exited = cri.status(id).await.expect("ContainerStatus");
        assert_eq!(exited.state(), v1::ContainerState::ContainerExited);
        assert_eq!((exited.exit_code, exited.reason.as_str()), (0, "Completed"), "{exited:?}");
        assert!(exited.finished_at >= exited.started_at && exited.started_at == running.started_at, "{exited:?}");
        cri.stop(id, 10).await.expect("stopping again succeeds");
        assert!(cri.start(id).await.is_err(), "it has ended");
        cri.remove(id).await.expect("RemoveContainer");
        refused(cri.status(id).await, Code::NotFound);
        cri.remove(id).await.expect("removing again succeeds");
        // Removing a running one ends it first.
        let another = cri.run(pod, container_config(image, "main", WAIT)).await;
        let process = cri.container_pid(&another.id).await;
        cri.remove(&another.id).await.expect("RemoveContainer");
        let command = tools::read(format!("/proc/{process}/cmdline"));
        assert!(!command.contains("sleep 3600"), "it still runs: {command}");
        assert!(world.snapshot().of_kind("process").is_empty(), "{}", world.snapshot());
        // One that was created only.
        let never = cri.create(pod, container_config(image, "main", WAIT)).await.expect("CreateContainer");
        cri.stop(&never.id, 1).await.expect("StopContainer");
        cri.remove(&never.id).await.expect("RemoveContainer");
    });
}

#[test]
fn stopping_is_by_signal_first_and_by_force_after_the_grace() {
    with_each_handler(async |world, cri, _, pod, image| {
        // Deaf to the signal: killed when its time is over.
        let deaf = cri.run(pod, shell(image, "deaf", "trap '' TERM; echo ready; while :; do sleep 1; done")).await;
        await_text(&deaf, "ready").await;
        let begun = Instant::now();
        cri.stop(&deaf.id, 2).await.expect("StopContainer");
        let took = begun.elapsed();
        assert!(took >= Duration::from_millis(1900) && took < Duration::from_secs(8), "{took:?}");
        let status = cri.status(&deaf.id).await.expect("ContainerStatus");
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
        // No time at all.
        let deaf = cri.run(pod, shell(image, "deaf2", "trap '' TERM; echo ready; while :; do sleep 1; done")).await;
        await_text(&deaf, "ready").await;
        let begun = Instant::now();
        cri.stop(&deaf.id, 0).await.expect("StopContainer");
        assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
        assert_eq!(cri.status(&deaf.id).await.expect("ContainerStatus").exit_code, 137);
        // The image's own signal, and that of the request before it.
        let gentle = Recipe::busybox(Format::Oci).config(json!({ "StopSignal": "SIGUSR1" })).build();
        let gentle = world.registry().push(world, "e2e/gentle:1", &gentle);
        cri.pull(&gentle).await.expect("PullImage");
        let script = "trap 'exit 21' USR1; trap 'exit 22' USR2; trap 'exit 15' TERM; echo ready; while :; do sleep 3600 & wait; done";
        let by_image = cri.run(pod, shell(&gentle, "image-signal", script)).await;
        let mut config = shell(&gentle, "own-signal", script);
        config.stop_signal = v1::Signal::Sigusr2.into();
        let by_request = cri.run(pod, config).await;
        for (container, code) in [(&by_image, 21), (&by_request, 22)] {
            await_text(container, "ready").await;
            cri.stop(&container.id, 10).await.expect("StopContainer");
            assert_eq!(cri.status(&container.id).await.expect("ContainerStatus").exit_code, code);
        }
    });
}

/// Waits until a container has written the line.
async fn await_text(container: &Container, text: &str) {
    let look = || log::texts(&log::read(&container.log), "stdout");
    tools::becomes("a line in the log", look, |texts| texts.iter().any(|line| line == text)).await;
}

#[test]
fn how_a_container_ended_is_told() {
    with_each_handler(async |_, cri, handler, pod, image| {
        let cases = [
            ("zero", "exit 0", 0, "Completed"),
            ("seven", "exit 7", 7, "Error"),
            ("top", "exit 255", 255, "Error"),
            // Process 1 of a namespace cannot kill itself; a child of it can, and the shell reports it.
            ("killed", "sh -c 'kill -KILL $$'; exit $?", 137, "Error"),
            ("segment", "sh -c 'kill -SEGV $$'; exit $?", 139, "Error"),
        ];
        for (name, script, code, reason) in cases {
            let (status, _) = cri.run_to_end(pod, shell(image, name, script)).await;
            assert_eq!(
                (status.exit_code, status.reason.as_str()),
                (code, reason),
                "{name} by {}: {status:?}",
                handler.name
            );
        }
        // However short it was.
        let (status, _) = cri.run_to_end(pod, shell(image, "short", "exit 0")).await;
        let is_in_order = status.created_at <= status.started_at && status.started_at <= status.finished_at;
        assert!(is_in_order, "created, started, finished: {status:?}");
        // Killed from outside: the signal itself is seen.
        let victim = cri.run(pod, container_config(image, "victim", WAIT)).await;
        let process = cri.container_pid(&victim.id).await;
        let process = rustix::process::Pid::from_raw(process).expect("a pid");
        rustix::process::kill_process(process, rustix::process::Signal::KILL).expect("kill");
        let status = cri.exit(&victim.id).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "Error"), "{status:?}");
        // Out of its memory.
        let mut greedy = shell(image, "greedy", "tail /dev/zero");
        greedy.linux.as_mut().expect("linux").resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 24 << 20,
            memory_swap_limit_in_bytes: 24 << 20,
            ..Default::default()
        });
        let (status, _) = cri.run_to_end(pod, greedy).await;
        assert_eq!((status.exit_code, status.reason.as_str()), (137, "OOMKilled"), "{}: {status:?}", handler.name);
    });
}

#[test]
fn logs_are_of_the_cri_format() {
    with_each_handler(async |_, cri, handler, pod, image| {
        let script = "echo to out; echo to error >&2; printf 'no newline'; exit 0";
        let small = cri.run(pod, shell(image, "small", script)).await;
        cri.exit(&small.id).await;
        let lines = log::read(&small.log);
        assert_eq!(log::texts(&lines, "stdout"), ["to out", "no newline"], "{}: {lines:?}", handler.name);
        assert_eq!(log::texts(&lines, "stderr"), ["to error"], "{lines:?}");
        assert_eq!(
            lines.iter().filter(|line| line.tag == "P").map(|line| line.text.as_str()).collect::<Vec<_>>(),
            ["no newline"]
        );
        assert!(
            lines.windows(2).all(|pair| pair[0].stream != pair[1].stream || pair[0].time <= pair[1].time),
            "{lines:?}"
        );
        // A line longer than any buffer arrives in parts, and whole.
        let long = cri.run(pod, shell(image, "long", "yes x | tr -d '\\n' | head -c 50000; echo; echo after")).await;
        cri.exit(&long.id).await;
        let lines = log::read(&long.log);
        let texts = log::texts(&lines, "stdout");
        assert_eq!(texts.iter().map(String::len).collect::<Vec<_>>(), [50_000, 5], "{}", handler.name);
        assert!(lines.iter().filter(|line| line.tag == "P").count() >= 3, "{} lines", lines.len());
        assert!(lines.iter().all(|line| line.text.len() <= 32 << 10));
        // Much, and nothing of it lost.
        let much = cri.run(pod, shell(image, "much", "seq 1 20000")).await;
        cri.exit(&much.id).await;
        let texts = log::texts(&log::read(&much.log), "stdout");
        assert_eq!(texts.len(), 20_000);
        assert!(texts.iter().enumerate().all(|(index, text)| *text == (index + 1).to_string()));
    });
}

#[test]
fn a_log_is_reopened_after_rotation() {
    with_each_handler(async |_, cri, _, pod, image| {
        let script =
            "trap 'exit 0' TERM; mkfifo /tmp/say; exec 3<>/tmp/say; while read -r line <&3; do echo $line; done";
        let container = cri.run(pod, shell(image, "talk", script)).await;
        tools::eventually("the pipe is there", async || {
            cri.exec(&container.id, &["test", "-p", "/tmp/say"], 5).await.ok().filter(|answer| answer.exit_code == 0)
        })
        .await;
        cri.output(&container.id, &["sh", "-c", "echo before > /tmp/say"]).await;
        await_text(&container, "before").await;
        let rotated = format!("{}.1", container.log);
        tools::run(std::process::Command::new("mv").args([&container.log, &rotated]));
        cri.reopen_log(&container.id).await.expect("ReopenContainerLog");
        cri.output(&container.id, &["sh", "-c", "echo after > /tmp/say"]).await;
        await_text(&container, "after").await;
        assert_eq!(log::texts(&log::read(&rotated), "stdout"), ["before"]);
        assert_eq!(log::texts(&log::read(&container.log), "stdout"), ["after"]);
        cri.stop(&container.id, 1).await.expect("StopContainer");
        assert!(cri.reopen_log(&container.id).await.is_err(), "it has ended");
        assert!(cri.reopen_log("0123456789").await.is_err(), "it never was");
    });
}

#[test]
fn commands_run_in_a_container_and_answer() {
    with_each_handler(async |world, cri, handler, pod, image| {
        let container = cri.run(pod, container_config(image, "main", WAIT)).await;
        let id = container.id.as_str();
        let answer = cri.exec(id, &["sh", "-c", "echo out; echo error >&2; exit 3"], 10).await.expect("ExecSync");
        assert_eq!(
            (answer.exit_code, answer.stdout.as_slice(), answer.stderr.as_slice()),
            (3, &b"out\n"[..], &b"error\n"[..])
        );
        let answer = cri.exec(id, &["sh", "-c", "kill -KILL $$"], 10).await.expect("ExecSync");
        assert_eq!(answer.exit_code, 137, "{}", handler.name);
        // What takes too long is ended, with everything it started, and the container goes on.
        let begun = Instant::now();
        let answer = cri.exec(id, &["sh", "-c", "echo begun; sleep 1234"], 1).await.expect("ExecSync");
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
        assert_eq!((answer.exit_code, answer.stderr.as_slice()), (-1, &b"command timed out"[..]), "{answer:?}");
        let left = || world.snapshot().of_kind("process").iter().filter(|p| p.contains("sleep 1234")).count();
        tools::becomes("the command that took too long is gone", left, |count| *count == 0).await;
        // No more than 16 MiB of both streams; the rest is dropped, the command still ends.
        let script = "echo first >&2; sleep 0.2; dd if=/dev/zero bs=1M count=17 2>/dev/null";
        let answer = cri.exec(id, &["sh", "-c", script], 60).await.expect("ExecSync");
        assert_eq!(
            (answer.stdout.len(), answer.exit_code),
            (EXEC_OUTPUT_MAX - answer.stderr.len(), 0),
            "{}",
            handler.name
        );
        assert_eq!(answer.stderr, b"first\n");
        // Several at once do not mix.
        let many = (0..8).map(|number| {
            let (cri, id) = (cri.clone(), id.to_owned());
            tokio::spawn(async move {
                let number = number.to_string();
                assert_eq!(cri.output(&id, &["echo", &number]).await, number);
            })
        });
        for one in many.collect::<Vec<_>>() {
            one.await.expect("an exec");
        }
        let missing = cri.exec(id, &["/no/such/program"], 10).await;
        assert!(missing.as_ref().map_or(true, |answer| answer.exit_code != 0), "{missing:?}");
        refused(cri.exec(id, &[], 10).await, Code::InvalidArgument);
        refused(cri.exec("0123456789", &["true"], 10).await, Code::NotFound);
        assert_eq!(cri.status(id).await.expect("ContainerStatus").state(), v1::ContainerState::ContainerRunning);
    });
}

#[test]
fn a_container_is_what_its_configuration_says() {
    with_each_handler(async |world, cri, handler, pod, image| {
        let mut config = shell(
            image,
            "settings",
            "echo $0 $1; id -u; id -g; pwd; echo $OWN; echo $FROM_IMAGE; id -G; touch /no 2>/dev/null || echo read-only; cat /mnt/note; echo x > /mnt/note 2>/dev/null || echo protected",
        );
        config.args = vec!["name".to_owned(), "argument".to_owned()];
        config.working_dir = "/work".to_owned();
        config.envs = vec![v1::KeyValue { key: "OWN".to_owned(), value: b"of the request".to_vec() }];
        let shared = world.path("shared");
        tools::write(shared.join("note"), "from the node\n");
        config.mounts = vec![v1::Mount {
            container_path: "/mnt".to_owned(),
            host_path: shared.display().to_string(),
            readonly: true,
            ..Default::default()
        }];
        let security = config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).expect("a context");
        security.run_as_user = Some(v1::Int64Value { value: 1000 });
        security.supplemental_groups = vec![2000];
        security.readonly_rootfs = true;
        let (status, output) = cri.run_to_end(pod, config).await;
        assert_eq!(status.exit_code, 0, "{status:?}");
        let expected = [
            "name argument",
            "1000",
            "1001",
            "/work",
            "of the request",
            "yes",
            "1001 1002 2000",
            "read-only",
            "from the node",
            "protected",
        ];
        let mut output = output;
        if let Some(groups) = output.get_mut(6) {
            let mut sorted: Vec<&str> = groups.split(' ').collect();
            sorted.sort_unstable();
            sorted.dedup();
            *groups = sorted.join(" ");
        }
        assert_eq!(output, expected, "{}", handler.name);
        // A user by name, the image's own command, its own environment.
        let mut config = container_config(image, "by-name", &["id", "-un"]);
        config.linux.as_mut().and_then(|linux| linux.security_context.as_mut()).expect("a context").run_as_username =
            "guest".to_owned();
        assert_eq!(cri.run_to_end(pod, config).await.1, ["guest"]);
        // A terminal.
        let mut config = container_config(
            image,
            "terminal",
            &["sh", "-c", "tty; test -t 0 && test -t 1 && test -t 2 && echo terminal"],
        );
        config.tty = true;
        config.stdin = true;
        let (status, output) = cri.run_to_end(pod, config).await;
        assert_eq!(status.exit_code, 0, "{status:?} {output:?}");
        let output: Vec<&str> = output.iter().map(|line| line.trim_end_matches('\r')).collect();
        assert_eq!(output, ["/dev/pts/0", "terminal"], "{}", handler.name);
        // Without one, input is at its end.
        assert_eq!(
            cri.run_to_end(pod, container_config(image, "input", &["sh", "-c", "cat; echo end"])).await.1,
            ["end"]
        );
    });
}

#[test]
fn limits_reach_the_kernel() {
    with_each_handler(async |_, cri, handler, pod, image| {
        let mut config = container_config(image, "limited", WAIT);
        let linux = config.linux.as_mut().expect("linux");
        linux.resources = Some(v1::LinuxContainerResources {
            memory_limit_in_bytes: 64 << 20,
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            oom_score_adj: 500,
            ..Default::default()
        });
        let security = linux.security_context.as_mut().expect("a context");
        security.no_new_privs = true;
        security.capabilities = Some(v1::Capability {
            add_capabilities: vec!["NET_RAW".to_owned()],
            drop_capabilities: vec!["ALL".to_owned()],
            ..Default::default()
        });
        let container = cri.run(pod, config).await;
        let read =
            async |path: &str| cri.exec(&container.id, &["cat", path], 5).await.ok().filter(|a| a.exit_code == 0);
        let text = |answer: v1::ExecSyncResponse| String::from_utf8_lossy(&answer.stdout).trim().to_owned();
        let memory_limit = async || match read("/sys/fs/cgroup/memory.max").await {
            Some(answer) => text(answer),
            None => text(read("/sys/fs/cgroup/memory/memory.limit_in_bytes").await.expect("a memory limit")),
        };
        assert_eq!(memory_limit().await, (64 << 20).to_string(), "{}", handler.name);
        let status = cri.output(&container.id, &["cat", "/proc/1/status"]).await;
        let field =
            |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).map(str::trim).unwrap_or_default();
        assert_eq!(field("NoNewPrivs:"), "1");
        assert_eq!(field("CapEff:"), "0000000000002000", "NET_RAW only");
        assert_eq!(cri.output(&container.id, &["cat", "/proc/1/oom_score_adj"]).await, "500");
        let reported = async || {
            let status = cri.status(&container.id).await.expect("ContainerStatus");
            let limits = status.resources.and_then(|all| all.linux).expect("resources");
            (limits.memory_limit_in_bytes, limits.cpu_quota, limits.cpu_shares)
        };
        assert_eq!(reported().await, (64 << 20, 50_000, 512));

        // They change while it runs; what is not named stays.
        let limits = v1::LinuxContainerResources::default;
        cri.update(
            &container.id,
            v1::LinuxContainerResources {
                memory_limit_in_bytes: 96 << 20,
                cpu_period: 100_000,
                cpu_quota: 80_000,
                ..limits()
            },
        )
        .await
        .expect("UpdateContainerResources");
        assert_eq!(memory_limit().await, (96 << 20).to_string(), "{}", handler.name);
        assert_eq!(reported().await, (96 << 20, 80_000, 512));
        // Limits no process could live under, or below what is used so that the kernel would kill it, are refused and
        // change nothing.
        let too_low = v1::LinuxContainerResources { memory_limit_in_bytes: 4096, ..limits() };
        refused(cri.update(&container.id, too_low).await, Code::InvalidArgument);
        cri.output(&container.id, &["dd", "if=/dev/zero", "of=/dev/shm/used", "bs=1M", "count=24"]).await;
        let in_use = v1::LinuxContainerResources { memory_limit_in_bytes: 16 << 20, ..limits() };
        let message = refused(cri.update(&container.id, in_use).await, Code::Unknown);
        assert!(message.contains("cannot decrease memory limit to 16777216"), "{message}");
        assert_eq!(memory_limit().await, (96 << 20).to_string(), "{}", handler.name);
        assert_eq!(reported().await, (96 << 20, 80_000, 512));
    });
}

#[test]
fn containers_are_found_by_every_filter() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let one = cri.run_pod(world.pod_config("one"), "").await.expect("RunPodSandbox");
        let two = cri.run_pod(world.pod_config("two"), "").await.expect("RunPodSandbox");
        let mut ids = Vec::new();
        for (pod, name, color) in [(&one, "a", "red"), (&one, "b", "blue"), (&two, "a", "blue"), (&two, "b", "blue")] {
            let mut config = container_config(&image, name, WAIT);
            config.labels.insert("color".to_owned(), color.to_owned());
            ids.push(cri.create(pod, config).await.expect("CreateContainer").id);
        }
        cri.start(&ids[1]).await.expect("StartContainer");
        cri.start(&ids[2]).await.expect("StartContainer");
        cri.stop(&ids[2], 5).await.expect("StopContainer");
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let state = |state: v1::ContainerState| Some(v1::ContainerStateValue { state: state.into() });
        let none = v1::ContainerFilter::default;
        let (created, running, exited) = (
            v1::ContainerState::ContainerCreated,
            v1::ContainerState::ContainerRunning,
            v1::ContainerState::ContainerExited,
        );
        let cases: [(v1::ContainerFilter, &[usize]); 11] = [
            (none(), &[0, 1, 2, 3]),
            (v1::ContainerFilter { id: ids[3].clone(), ..none() }, &[3]),
            (v1::ContainerFilter { id: ids[3][..12].to_owned(), ..none() }, &[3]),
            (v1::ContainerFilter { id: "none".to_owned(), ..none() }, &[]),
            (v1::ContainerFilter { state: state(created), ..none() }, &[0, 3]),
            (v1::ContainerFilter { state: state(running), ..none() }, &[1]),
            (v1::ContainerFilter { state: state(exited), ..none() }, &[2]),
            (v1::ContainerFilter { pod_sandbox_id: one.id.clone(), ..none() }, &[0, 1]),
            (v1::ContainerFilter { pod_sandbox_id: two.id[..12].to_owned(), ..none() }, &[2, 3]),
            (v1::ContainerFilter { label_selector: labels(&[("color", "blue")]), ..none() }, &[1, 2, 3]),
            (
                v1::ContainerFilter {
                    pod_sandbox_id: two.id.clone(),
                    label_selector: labels(&[("color", "blue"), ("container", "b")]),
                    state: state(created),
                    ..none()
                },
                &[3],
            ),
        ];
        for (filter, expected) in cases {
            let mut expected: Vec<String> = expected.iter().map(|index| ids[*index].clone()).collect();
            expected.sort();
            assert_eq!(cri.find(filter.clone()).await, expected, "{filter:?}");
        }
        let listed = cri.containers(none()).await;
        let third = listed.iter().find(|found| found.id == ids[2]).expect("is listed");
        assert_eq!((third.pod_sandbox_id.as_str(), third.state()), (two.id.as_str(), exited));
        assert_eq!(third.image.as_ref().map(|found| found.image.as_str()), Some(image.as_str()));
        assert_eq!(third.metadata.as_ref().map(|found| found.name.as_str()), Some("a"));
    });
}

#[test]
fn directories_for_an_images_volumes_belong_to_the_user() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let archive = Archive::default().directory("there", 0o755).finish();
        let config = json!({ "User": "1000:1001", "Volumes": { "/new/volume": {}, "/there": {} } });
        let image = Recipe::busybox(Format::Oci).layer(archive, Compression::Gzip).config(config).build();
        let name = world.registry().push(world, "e2e/volumes:1", &image);
        cri.pull(&name).await.expect("PullImage");
        let pod = cri.run_pod(world.pod_config("volumes"), "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(&name, "main", WAIT)).await;
        let owners = cri.output(&container.id, &["stat", "-c", "%u:%g", "/new", "/new/volume", "/there"]).await;
        assert_eq!(owners, "1000:1001\n1000:1001\n0:0", "what the image has stays the image's");
        cri.output(&container.id, &["touch", "/new/volume/file"]).await;
        cri.end_pod(&pod.id).await;
    });
}
