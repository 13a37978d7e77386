//! Every verb of the real binary against an engine in memory.
#![allow(clippy::unwrap_used)]

mod fake_engine;

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use cri_api::v1::{ContainerState, PodSandboxState};
use fake_engine::FakeEngine;
use serde_json::{Value, json};

const IMAGE: &str = "reg/img:1";

struct Ran {
    status: i32,
    stdout: String,
    stderr: String,
}

fn command(engine: &FakeEngine, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_crioctl"));
    command.args(words).env("CONTAINER_RUNTIME_ENDPOINT", engine.endpoint()).env("TZ", "UTC").stdin(Stdio::null());
    command
}

fn finish(command: &mut Command) -> Ran {
    let output = command.output().unwrap();
    Ran {
        status: output.status.code().unwrap(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}

fn crioctl(engine: &FakeEngine, line: &str) -> Ran {
    finish(&mut command(engine, &line.split_whitespace().collect::<Vec<_>>()))
}

/// Runs a verb that must succeed in silence on standard error, and returns what it printed.
fn prints(engine: &FakeEngine, line: &str) -> String {
    let ran = crioctl(engine, line);
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""), "{line}");
    ran.stdout
}

fn prints_json(engine: &FakeEngine, line: &str) -> Value {
    serde_json::from_str(&prints(engine, line)).unwrap()
}

/// Runs a verb that must fail with one line, and checks status and words.
fn fails(engine: &FakeEngine, line: &str, status: i32, words: &str) {
    let ran = crioctl(engine, line);
    assert_eq!(ran.status, status, "{line}: {}", ran.stderr);
    assert!(ran.stderr.contains(words), "{line}: {}", ran.stderr);
    assert_eq!(ran.stderr.lines().count(), 1, "{line}: {}", ran.stderr);
}

fn run(engine: &FakeEngine, rest: &str) -> Ran {
    crioctl(engine, &format!("run --log-root {} {rest}", engine.directory().join("pods").display()))
}

fn detached(engine: &FakeEngine, name: &str, program: &str) -> String {
    let ran = run(engine, &format!("-d --name {name} {IMAGE} {program}"));
    assert_eq!((ran.status, ran.stderr.as_str()), (0, ""));
    ran.stdout.trim().to_owned()
}

fn file(engine: &FakeEngine, name: &str, value: &Value) -> String {
    use std::io::Write;
    let path = engine.directory().join(name);
    std::fs::File::create(&path).unwrap().write_all(value.to_string().as_bytes()).unwrap();
    path.display().to_string()
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn interrupt(child: &Child) {
    let status = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
}

#[test]
fn run_passes_on_output_and_exit_status() {
    let engine = FakeEngine::start(&[IMAGE]);
    for (program, status, stdout, stderr) in [
        ("say hello exit 0", 0, "hello\n", ""),
        ("say out err oops exit 7", 7, "out\n", "oops\n"),
        ("part one part two say three sleep 30 exit 137", 137, "onetwothree\n", ""),
        ("say before rotate say after exit 1", 1, "before\nafter\n", ""),
        ("exit -1", 255, "", ""),
    ] {
        let ran = run(&engine, &format!("--rm {IMAGE} {program}"));
        let expected = (status, stdout.to_owned(), stderr.to_owned());
        // The old file of a rotation may be gone before a follower that starts late saw it.
        if program.contains("rotate") {
            assert_eq!(ran.status, status);
            assert!(ran.stdout.ends_with("after\n"), "{}", ran.stdout);
        } else {
            assert_eq!((ran.status, ran.stdout, ran.stderr), expected, "{program}");
        }
    }
    assert!(engine.model().pods.is_empty() && engine.model().containers.is_empty());
    assert_eq!(engine.model().requests.iter().filter(|&&request| request == "PullImage").count(), 0);
}

#[test]
fn run_removes_logs_only_with_rm() {
    let engine = FakeEngine::start(&[IMAGE]);
    let pods = engine.directory().join("pods");
    assert_eq!(run(&engine, &format!("--rm {IMAGE} say x")).status, 0);
    assert_eq!(std::fs::read_dir(&pods).unwrap().count(), 0);
    assert_eq!(run(&engine, &format!("--name kept {IMAGE} say x")).status, 0);
    assert_eq!(std::fs::read_dir(&pods).unwrap().count(), 1);
    assert_eq!(prints(&engine, "logs kept"), "x\n");
    assert_eq!(prints(&engine, "rm kept"), "kept\n");
    assert_eq!(std::fs::read_dir(&pods).unwrap().count(), 0);
    assert!(engine.model().pods.is_empty());
}

#[test]
fn run_pulls_what_is_missing() {
    let engine = FakeEngine::start(&[]);
    let ran = run(&engine, "--rm other:2 say x");
    assert_eq!((ran.status, ran.stdout.as_str()), (0, "x\n"));
    assert!(engine.model().images.contains("other:2"));
    for (rest, words) in [
        ("--pull never lacking:1", "not present"),
        ("nowhere/x:1", "PullImage: Unknown: no such registry"),
        ("-v /does/not/exist:/x other:2", "/does/not/exist does not exist"),
    ] {
        let ran = run(&engine, rest);
        assert_eq!(ran.status, 1, "{rest}");
        assert!(ran.stderr.contains(words), "{}", ran.stderr);
    }
    assert!(engine.model().pods.is_empty());
    assert_eq!(run(&engine, "--rm --pull always other:2").status, 0);
    assert_eq!(engine.model().requests.iter().filter(|&&request| request == "PullImage").count(), 3);
}

#[test]
fn run_undoes_what_it_made_when_a_step_fails() {
    let engine = FakeEngine::start(&[IMAGE]);
    let ran = run(&engine, &format!("{IMAGE} fail"));
    assert_eq!((ran.status, ran.stderr.as_str()), (1, "crioctl: StartContainer: Unknown: the runtime said; no\n"));
    for request in ["RunPodSandbox", "CreateContainer"] {
        engine.model().failing = [request].into();
        let ran = run(&engine, &format!("{IMAGE} say x"));
        assert_eq!(ran.status, 1);
        assert!(ran.stderr.contains("was told to fail"));
        assert!(engine.model().pods.is_empty(), "{request}");
    }
    assert_eq!(std::fs::read_dir(engine.directory().join("pods")).unwrap().count(), 0);
}

#[test]
fn interrupted_run_stops_the_container() {
    let engine = FakeEngine::start(&[IMAGE]);
    let logs = engine.directory().join("pods").display().to_string();
    let mut child = command(&engine, &["run", "--rm", "--log-root", &logs, IMAGE, "wait"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the start", || engine.model().requests.contains(&"ContainerStatus"));
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143));
    assert!(engine.model().pods.is_empty());
}

#[test]
fn run_interrupted_before_the_start_leaves_nothing() {
    let engine = FakeEngine::start(&[IMAGE]);
    engine.model().sandbox_delay = Duration::from_millis(500);
    let logs = engine.directory().join("pods");
    let mut child =
        command(&engine, &["run", "--log-root", &logs.display().to_string(), IMAGE, "wait"]).spawn().unwrap();
    wait_until("the request", || engine.model().requests.contains(&"RunPodSandbox"));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    // The engine went on and made the pod after its client had left; it was found by its label.
    assert!(engine.model().requests.contains(&"RemovePodSandbox"));
    assert!(engine.model().pods.is_empty());
    assert_eq!(std::fs::read_dir(logs).unwrap().count(), 0);
}

#[test]
fn run_asks_for_what_was_given() {
    let engine = FakeEngine::start(&[IMAGE]);
    let ran = run(
        &engine,
        &format!(
            "-d --name n -p 8080:80 -e A=b -v /tmp:/t:ro --runtime-handler kata --hostname h -o json {IMAGE} wait"
        ),
    );
    let made: Value = serde_json::from_str(&ran.stdout).unwrap();
    let model = engine.model();
    let pod = &model.pods[made["podSandboxId"].as_str().unwrap()];
    let container = &model.containers[made["containerId"].as_str().unwrap()];
    assert_eq!((pod.runtime_handler.as_str(), pod.config.hostname.as_str()), ("kata", "h"));
    assert_eq!(pod.config.port_mappings[0].host_port, 8080);
    assert_eq!((container.config.envs[0].key.as_str(), &container.config.envs[0].value[..]), ("A", &b"b"[..]));
    assert!(container.config.mounts[0].readonly);
}

#[test]
fn lists_and_names() {
    let engine = FakeEngine::start(&[IMAGE]);
    let web = detached(&engine, "web", "wait");
    let done = detached(&engine, "done", "say x");
    wait_until("the end", || engine.model().containers[&done].state == ContainerState::ContainerExited);

    let ps = prints(&engine, "ps");
    assert_eq!(ps.lines().count(), 2, "{ps}");
    let words: Vec<&str> = ps.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((words[0], words[1], *words.last().unwrap()), (&web[..13], IMAGE, "web"));
    assert!(!ps.contains('\x1b'));
    assert_eq!(prints(&engine, "ps -a").lines().count(), 3);
    assert_eq!(prints(&engine, "ps -q").trim(), web);
    assert_eq!(prints(&engine, "ps -a --pod done -q").trim(), done);
    assert_eq!(prints(&engine, "pods").lines().count(), 3);
    assert_eq!(prints_json(&engine, "ps -o json")["containers"][0]["state"], "CONTAINER_RUNNING");
    assert_eq!(prints_json(&engine, "pods -o json")["items"].as_array().unwrap().len(), 2);
    assert_eq!(prints_json(&engine, &format!("inspect {}", &web[..10]))["info"]["info"]["pid"], 8);
    assert_eq!(
        prints_json(&engine, &format!("pod status {} -o json", pod_of(&engine, &web)))["info"]["info"]["pid"],
        7
    );
    let status = prints(&engine, "ctr status done");
    assert!(status.lines().any(|line| line.split_whitespace().eq(["exit", "code", "0"])), "{status}");
    assert!(prints(&engine, "pod status web").contains("10.0.0.9"));
    fails(&engine, "ctr status nothing", 1, "no container \"nothing\"");
    fails(&engine, "inspect nothing", 1, "no container, pod or image \"nothing\"");
}

fn pod_of(engine: &FakeEngine, container: &str) -> String {
    engine.model().containers[container].pod.clone()
}

#[test]
fn logs_are_followed_to_the_end() {
    let engine = FakeEngine::start(&[IMAGE]);
    detached(&engine, "talker", "say 1 say 2 sleep 200 say 3 rotate sleep 300 say 4 sleep 100 say 5");
    wait_until("the second line", || prints(&engine, "logs talker").ends_with("2\n"));
    assert_eq!(prints(&engine, "logs -f --tail 1 talker"), "2\n3\n4\n5\n");
    assert_eq!(prints(&engine, "logs talker --timestamps --tail 1"), "2026-01-02T03:04:05.678901234Z 5\n");
    assert_eq!(prints(&engine, "logs talker --tail 0"), "");
    fails(&engine, "logs nobody", 1, "no container \"nobody\"");
}

#[test]
fn exec_passes_on_output_and_exit_status() {
    let engine = FakeEngine::start(&[IMAGE]);
    let id = detached(&engine, "web", "wait");
    assert_eq!(prints(&engine, "exec web echo a -o json"), "a -o json");
    assert_eq!(prints_json(&engine, "-o json exec web echo a"), json!({"stdout": "a", "stderr": "", "exitCode": 0}));
    let ran = crioctl(&engine, "exec web exit 42");
    assert_eq!((ran.status, ran.stderr.as_str()), (42, "leaving"));
    assert_eq!(crioctl(&engine, &format!("ctr execsync --id {id} exit 3")).status, 3);
    assert_eq!(prints(&engine, "ctr execsync web echo x"), "x");
    fails(&engine, "ctr execsync web", 2, "needs a container and a program");
    // This engine has no streaming server, and standard input is no terminal.
    for (flags, status, words) in [("-i", 1, "Exec: Unimplemented"), ("-t", 2, "a terminal"), ("-it", 2, "a terminal")]
    {
        fails(&engine, &format!("exec {flags} web sh"), status, words);
    }
    prints(&engine, "stop web");
    fails(&engine, "exec web true", 1, "ExecSync: NotFound: the container is not running");
}

#[test]
fn stopping_and_removing() {
    let engine = FakeEngine::start(&[IMAGE]);
    let web = detached(&engine, "web", "wait");
    fails(&engine, "rm web", 1, "is running");
    fails(&engine, "rmp web", 1, "is running");
    assert_eq!(prints(&engine, "stop -t 0 web"), "web\n");
    {
        let model = engine.model();
        assert_eq!(model.containers[&web].exit_code, 137);
        assert_eq!(model.pods[&model.containers[&web].pod].state, PodSandboxState::SandboxNotready);
    }
    assert_eq!(prints_json(&engine, "rm web -o json"), json!(["web"]));
    assert!(engine.model().pods.is_empty());

    detached(&engine, "a", "wait");
    detached(&engine, "b", "wait");
    let ran = crioctl(&engine, "rm -f a nothing b");
    assert_eq!((ran.status, ran.stdout.as_str()), (1, "a\nb\n"));
    assert!(ran.stderr.contains("no container \"nothing\"") && ran.stderr.contains("1 of 3 failed"), "{}", ran.stderr);
    assert!(engine.model().pods.is_empty());

    detached(&engine, "c", "wait");
    prints(&engine, "stopp c");
    prints(&engine, "rmp c");
    assert!(engine.model().pods.is_empty() && engine.model().containers.is_empty());
}

#[test]
fn early_verbs_work_from_files() {
    let engine = FakeEngine::start(&[IMAGE]);
    let logs = engine.directory().join("logs").display().to_string();
    let pod_config =
        json!({"metadata": {"name": "p", "namespace": "s", "uid": "u"}, "log_directory": logs, "labels": {"k": "v"}});
    let pod_file = file(&engine, "pod.json", &pod_config);
    let container_file = file(
        &engine,
        "ctr.json",
        &json!({"metadata": {"name": "c"}, "image": {"image": IMAGE}, "args": ["say", "x", "wait"], "logPath": "c.log"}),
    );
    let pod = prints(&engine, &format!("pod run --config {pod_file}")).trim().to_owned();
    assert_eq!(prints(&engine, "pod list --label k=v -q").trim(), pod);
    assert_eq!(prints(&engine, "pod list --label k=w -q"), "");
    let made = prints_json(
        &engine,
        &format!("ctr create --config {container_file} --pod {pod} --pod-config {pod_file} -o json"),
    );
    let id = made["id"].as_str().unwrap();
    assert_eq!(prints(&engine, &format!("ctr start --id {id}")).trim(), id);
    wait_until("the line", || crioctl(&engine, "logs c").stdout == "x\n");
    assert_eq!(prints(&engine, "ctr stop c").trim(), id);
    assert_eq!(engine.model().containers[id].exit_code, 143);
    assert_eq!(prints(&engine, "ctr list -q").trim(), id);
    assert_eq!(prints(&engine, "ctr remove c").trim(), id);
    let other =
        prints(&engine, &format!("ctr create --config {container_file} --pod p --name other")).trim().to_owned();
    assert_eq!(engine.model().containers[&other].config.metadata.as_ref().unwrap().name, "other");
    assert_eq!(prints(&engine, "pod stop p"), "p\n");
    assert_eq!(prints(&engine, &format!("pod remove --id {pod}")).trim(), pod);
    assert!(engine.model().pods.is_empty() && engine.model().containers.is_empty());

    let wrong = file(&engine, "wrong.json", &json!({"metadata": {"name": "p"}, "log_dir": "/x"}));
    fails(&engine, &format!("pod run --config {wrong}"), 1, "log_dir");
    fails(&engine, "pod run --config /does/not/exist", 1, "read /does/not/exist: No such file");
    assert!(engine.model().pods.is_empty());
}

#[test]
fn images() {
    let engine = FakeEngine::start(&[]);
    assert_eq!(prints(&engine, "pull a/b:1"), "a/b:1@sha256:00\n");
    assert_eq!(prints_json(&engine, "image pull c:2 -o json"), json!({"id": "c:2@sha256:00"}));
    let table = prints(&engine, "images");
    assert!(table.lines().nth(1).unwrap().split_whitespace().take(2).eq(["a/b", "1"]), "{table}");
    assert!(table.contains("1.23kB"));
    assert_eq!(prints_json(&engine, "image list -o json")["images"][0]["size"], "1234");
    assert!(prints(&engine, "image status c:2").contains("1.23kB"));
    assert_eq!(prints_json(&engine, "inspect c:2")["image"]["repoTags"], json!(["c:2"]));
    assert_eq!(prints(&engine, "rmi a/b:1"), "a/b:1\n");
    fails(&engine, "rmi a/b:1", 1, "no image \"a/b:1\"");
    fails(&engine, "image status a/b:1", 1, "no image \"a/b:1\"");
    fails(&engine, "pull --creds nocolon c:2", 2, "USER:PASSWORD");
    fails(&engine, "pull nowhere/x", 1, "PullImage: Unknown: no such registry");
}

#[test]
fn the_engine_itself() {
    let engine = FakeEngine::start(&[]);
    assert!(prints(&engine, "version").contains("fake 1.2.3"));
    assert_eq!(prints_json(&engine, "version -o json")["engine"]["runtimeName"], "fake");
    let status = prints(&engine, "info");
    assert!(status.lines().any(|line| line.split_whitespace().eq(["NetworkReady", "no"])), "{status}");
    assert_eq!(prints_json(&engine, "status -o json")["info"]["config"]["deep"], json!([1]));
}

#[test]
fn exit_statuses_without_an_answer() {
    let engine = FakeEngine::start(&[]);
    fails(&engine, "-r unix:///does/not/exist.sock ps", 125, "connect to unix:///does/not/exist.sock");
    fails(&engine, "-r /does/not/exist.sock run img", 125, "No such file");
    fails(&engine, "-r tcp://x ps", 2, "is not an endpoint");
    assert_eq!(crioctl(&engine, "ps --nonsense").status, 2);
    assert_eq!(crioctl(&engine, "--help").status, 0);
    engine.model().sandbox_delay = Duration::from_secs(30);
    let pod_file = file(&engine, "pod.json", &json!({"metadata": {"name": "p", "namespace": "s", "uid": "u"}}));
    let begin = Instant::now();
    fails(&engine, &format!("--timeout 1 pod run --config {pod_file}"), 1, "RunPodSandbox: ");
    assert!(begin.elapsed() < Duration::from_secs(10));
}
