//! HTTP/1 on the CRI's socket, and the verb that asks there.
#![forbid(unsafe_code)]

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::{Setup, World, scenario, tools};
use serde_json::Value;
use tonic::Code;

/// Longer than the daemon waits for a request's head.
const SILENCE_LIMIT: Duration = Duration::from_secs(10);

fn connect(world: &World) -> UnixStream {
    let stream = UnixStream::connect(world.path("crio.sock")).expect("connect");
    stream.set_read_timeout(Some(SILENCE_LIMIT)).expect("a limit");
    stream
}

/// Status, header and body of an answer.
fn send(world: &World, request: &str) -> (u16, String, String) {
    let mut stream = connect(world);
    stream.write_all(request.as_bytes()).expect("send");
    // As socat does at the end of its input; the answer is wanted all the same.
    stream.shutdown(std::net::Shutdown::Write).expect("half a close");
    let mut answer = Vec::new();
    // A connection that is cut off has said what it had to say.
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).expect("text");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).unwrap_or(0);
    (status, head.to_lowercase(), body.to_owned())
}

fn get(world: &World, path: &str) -> (u16, String, String) {
    send(world, &format!("GET {path} HTTP/1.1\r\nHost: crio\r\nConnection: close\r\n\r\n"))
}

fn get_json(world: &World, path: &str) -> Value {
    let (status, head, body) = get(world, path);
    assert!(status == 200 && head.contains("application/json"), "{path}: {head} {body}");
    serde_json::from_str(&body).expect("JSON")
}

fn crio(world: &World, arguments: &[&str]) -> std::process::Output {
    let mut command = world.command(e2e::world::binary("crio"));
    tools::try_run(command.arg("status").arg("--socket").arg(world.path("crio.sock")).args(arguments))
}

#[test]
fn the_side_door_tells_what_there_is() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("pod"), "").await.expect("RunPodSandbox");
        let mut config = container_config(&image, "main", WAIT);
        config.annotations.insert("example.com/note".to_owned(), "kept".to_owned());
        let container = cri.run(&pod, config).await;
        let pid = cri.container_pid(&container.id).await;

        let info = get_json(world, "/info");
        assert_eq!(
            (info["storage_driver"].as_str(), info["cgroup_driver"].as_str()),
            (Some("overlay"), Some("cgroupfs"))
        );
        assert_eq!(info["storage_root"], world.path("storage").display().to_string());
        assert_eq!(info["default_id_mappings"]["uids"][0]["size"], u32::MAX);
        let (status, head, toml) = get(world, "/config");
        assert!(status == 200 && head.contains("application/toml"), "{head}");
        assert!(toml.contains("default_runtime = \"crun\"") && toml.contains("[crio.runtime.runtimes.runc]"), "{toml}");

        let told = get_json(world, &format!("/containers/{}", container.id));
        assert_eq!((told["pid"].as_i64(), told["sandbox"].as_str()), (Some(pid.into()), Some(pod.id.as_str())));
        assert_eq!(told["name"], format!("k8s_main_pod_e2e_{}_0", pod.config.metadata.as_ref().expect("metadata").uid));
        assert_eq!((&told["image"], &told["log_path"]), (&image.clone().into(), &container.log.clone().into()));
        assert_eq!(
            (&told["labels"]["container"], &told["annotations"]["example.com/note"]),
            (&"main".into(), &"kept".into())
        );
        assert_eq!(told["crio_annotations"]["io.kubernetes.cri-o.ContainerID"], container.id);
        assert_eq!(told["ip_addresses"][0], cri.pod_ip(&pod.id).await);
        assert_eq!(told["host_network"], false);
        assert!(told["created_time"].as_i64().is_some_and(|nanos| nanos > 1_700_000_000_000_000_000), "{told}");
        let root = told["root"].as_str().expect("text");
        assert!(world.inside(std::path::Path::new(root)).join("bin/busybox").is_file(), "{root}");
        // A pod without a process of its own is found by a process of its network.
        let told = get_json(world, &format!("/containers/{}", pod.id));
        assert_eq!((told["pid"].as_i64(), told["labels"]["pod"].as_str()), (Some(pid.into()), Some("pod")));

        for (path, expected) in [
            ("/", 404),
            ("/containers", 404),
            ("/containers/", 404),
            ("/containers/no-such-id", 404),
            (&format!("/containers/{}", &container.id[..12]), 404),
            ("/pause/0123456789", 404),
            ("/containers/../info", 404),
            ("/debug/pprof/cmdline", 404),
            ("/debug/heap", 501),
            ("/info/", 404),
        ] {
            assert_eq!(get(world, path).0, expected, "{path}");
        }
        assert_eq!(
            send(world, "POST /info HTTP/1.1\r\nHost: crio\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").0,
            405
        );
        let (status, _, body) = get(world, "/debug/goroutines");
        assert!(status == 200 && body.contains("1 sandboxes, 1 containers") && body.contains("thread "), "{body}");

        let output = crio(world, &["info"]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(
            output.status.success() && text.starts_with("cgroup driver: cgroupfs\nstorage driver: overlay\n"),
            "{text}"
        );
        let output = crio(world, &["cs", "--id", &container.id]);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.contains(&format!("\npid: {pid}\n")) && text.contains("\n  example.com/note: kept\n"), "{text}");
        assert_eq!(String::from_utf8_lossy(&crio(world, &["c"]).stdout), toml);
        assert!(String::from_utf8_lossy(&crio(world, &["g"]).stdout).contains("threads\n"));
        for (arguments, expected) in [
            (&["s", "-i", "nobody"][..], "can't find the container"),
            (&["s"], "cannot be empty"),
            (&["hp"], "not implemented"),
        ] {
            let output = crio(world, arguments);
            assert!(!output.status.success(), "{arguments:?}");
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains(expected), "{arguments:?}: {text}");
        }

        // Bad input costs nothing but its own connection.
        let begun = Instant::now();
        let mut silent = connect(world);
        let mut slow = connect(world);
        slow.write_all(b"GET /info HTTP/1.1\r\nHost:").expect("send");
        for request in ["GET /\0 HTTP/1.1\r\n\r\n".to_owned(), "nonsense\r\n\r\n".to_owned()] {
            let (status, ..) = send(world, &request);
            assert!(matches!(status, 0 | 400), "{request:?}: {status}");
        }
        let long = format!("GET /info HTTP/1.1\r\nHost: crio\r\nX: {}\r\n\r\n", "x".repeat(1 << 20));
        let mut stream = connect(world);
        let sent = stream.write_all(long.as_bytes());
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        assert!(sent.is_err() || !answer.starts_with(b"HTTP/1.1 200"), "a megabyte of header is taken");
        let mut rest = Vec::new();
        let _ = slow.read_to_end(&mut rest);
        let _ = silent.read_to_end(&mut rest);
        assert!(begun.elapsed() < SILENCE_LIMIT, "whoever says nothing is waited for");
        assert!(cri.answers().await);
    });
}

#[test]
fn a_paused_container_runs_on_paper_only() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in ["crun", "runc"] {
            let pod = cri.run_pod(world.pod_config(handler), handler).await.expect("RunPodSandbox");
            let script = "trap 'exit 5' TERM; while sleep 0.02; do echo tick; done";
            let container = cri.run(&pod, container_config(&image, "main", &["sh", "-c", script])).await;
            let ticks = || e2e::log::read(&container.log).len();
            tools::becomes("it ticks", ticks, |count| *count > 3).await;
            let (pause, unpause) = (format!("/pause/{}", container.id), format!("/unpause/{}", container.id));
            assert_eq!(get(world, &unpause).0, 409, "{handler}");
            let (status, _, body) = get(world, &pause);
            assert_eq!((status, body.as_str()), (200, "200 OK"), "{handler}");
            assert_eq!(get(world, &pause).0, 409, "{handler}");
            // The monitor may have a line left to write.
            tokio::time::sleep(Duration::from_millis(200)).await;
            let before = ticks();
            let state = cri.status(&container.id).await.expect("ContainerStatus").state();
            assert_eq!(state, v1::ContainerState::ContainerRunning, "{handler}");
            let message = refused(cri.exec(&container.id, &["true"], 5).await, Code::NotFound);
            assert!(message.contains("paused"), "{handler}: {message}");
            // It is known to whichever daemon.
            world.kill_daemon();
            world.start_daemon().await;
            let cri = world.cri();
            let message = refused(cri.exec(&container.id, &["true"], 5).await, Code::NotFound);
            assert!(message.contains("paused"), "{handler}: {message}");
            assert_eq!(ticks(), before, "{handler}: it ticks on");
            assert_eq!(get(world, &unpause).0, 200, "{handler}");
            tools::becomes("it ticks again", ticks, |count| *count > before).await;
            // Paused again, it is resumed to hear the signal.
            assert_eq!(get(world, &pause).0, 200, "{handler}");
            let begun = Instant::now();
            cri.stop(&container.id, 20).await.expect("StopContainer");
            assert!(begun.elapsed() < Duration::from_secs(10), "{handler}: {:?}", begun.elapsed());
            assert_eq!(cri.status(&container.id).await.expect("ContainerStatus").exit_code, 5, "{handler}");
            assert_eq!(get(world, &pause).0, 409, "{handler}");
            // A pod of a paused container goes as any other.
            let other = cri.run(&pod, container_config(&image, "other", WAIT)).await;
            assert_eq!(get(world, &format!("/pause/{}", other.id)).0, 200, "{handler}");
            cri.end_pod(&pod.id).await;
        }
    });
}
