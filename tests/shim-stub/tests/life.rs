//! `crio-shim` between a stub of a shim and what a monitor would be: well-behaved shims, and others.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tempfile::TempDir;

const STUB: &str = env!("CARGO_BIN_EXE_containerd-shim-stub-v2");
/// Longer than the longest patience with a shim.
const LIMIT: Duration = Duration::from_secs(60);

/// Where cargo put the program: beside the stub.
fn crio_shim() -> PathBuf {
    let path = Path::new(STUB).with_file_name("crio-shim");
    assert!(path.is_file(), "no {}: run `cargo build --workspace --bins` first", path.display());
    path
}

/// A directory for one pod's containers, and nothing left of them at its end.
struct World {
    directory: TempDir,
    mode: &'static str,
}

/// A created container.
struct Created {
    pid: Pid,
    stdin: Option<std::io::PipeWriter>,
    stdout: std::io::PipeReader,
}

impl World {
    fn new(mode: &'static str) -> Self {
        rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("is a subreaper");
        Self { directory: tempfile::tempdir().expect("a directory"), mode }
    }

    fn bundle(&self, id: &str) -> PathBuf {
        self.directory.path().join(id).join("userdata")
    }

    fn root(&self) -> PathBuf {
        self.directory.path().join("root")
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(crio_shim());
        command.arg("--root").arg(self.root()).arg(format!("--shim={STUB}")).arg(format!("--shim-publish={STUB}"));
        command.args(words).env("STUB", self.mode).stdin(Stdio::null());
        command
    }

    fn run(&self, words: &[&str]) -> Output {
        self.command(words).output().expect("runs")
    }

    fn must(&self, words: &[&str]) -> String {
        let output = self.run(words);
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn status(&self, id: &str) -> String {
        let said: serde_json::Value = serde_json::from_str(&self.must(&["state", id])).expect("JSON");
        said["status"].as_str().expect("a status").to_owned()
    }

    /// A bundle whose program is a line of shell; `sandbox` is who has the shim.
    fn make_bundle(&self, id: &str, sandbox: &str, script: &str) -> PathBuf {
        let bundle = self.bundle(id);
        std::fs::create_dir_all(&bundle).expect("a directory");
        let kind = if id == sandbox { "sandbox" } else { "container" };
        let spec = serde_json::json!({
            "process": {"args": ["/bin/sh", "-c", script]},
            "annotations": {
                "io.kubernetes.cri-o.ContainerType": kind,
                "io.kubernetes.cri-o.SandboxID": sandbox,
                "io.kubernetes.cri-o.ImageName": "example.org/image:1",
            },
        });
        let mut file = File::create(bundle.join("config.json")).expect("creates");
        file.write_all(spec.to_string().as_bytes()).expect("writes");
        bundle
    }

    fn create_command(&self, id: &str) -> Command {
        let bundle = self.bundle(id);
        let (bundle_text, pid_file) = (bundle.display().to_string(), bundle.join("pidfile").display().to_string());
        self.command(&["create", "--bundle", &bundle_text, "--pid-file", &pid_file, id])
    }

    fn create_with(&self, id: &str, has_stdin: bool) -> Created {
        let (stdout, stdout_theirs) = std::io::pipe().expect("a pipe");
        let mut command = self.create_command(id);
        let stdin = has_stdin.then(|| {
            let (theirs, ours) = std::io::pipe().expect("a pipe");
            command.stdin(theirs);
            ours
        });
        let child = command.stdout(stdout_theirs).stderr(Stdio::piped()).spawn().expect("spawns");
        drop(command);
        let mut child = child;
        let status = child.wait().expect("waits");
        assert!(status.success(), "create: {}", words_of(&mut child));
        let pid = std::fs::read_to_string(self.bundle(id).join("pidfile")).expect("a pid file");
        Created { pid: Pid::from_raw(pid.parse().expect("a pid")).expect("a pid"), stdin, stdout }
    }

    fn create(&self, id: &str) -> Created {
        self.create_with(id, false)
    }

    fn shim(&self, id: &str) -> Option<Pid> {
        let text = std::fs::read(self.root().join("crio/shims").join(id)).ok()?;
        let record: serde_json::Value = serde_json::from_slice(&text).ok()?;
        Pid::from_raw(i32::try_from(record["shim"]["pid"].as_i64()?).ok()?)
    }

    /// Nothing runs, nothing lies about.
    fn assert_empty(&self) {
        for directory in ["root/crio/shims", "root/crio/fifo"] {
            let entries = std::fs::read_dir(self.directory.path().join(directory)).into_iter().flatten();
            let left: Vec<_> = entries.flatten().map(|entry| entry.path()).collect();
            assert!(left.is_empty(), "{left:?}");
        }
        let deadline = Instant::now() + Duration::from_secs(5);
        loop {
            let left = self.processes();
            if left.is_empty() {
                return;
            }
            assert!(Instant::now() < deadline, "still running: {left:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Processes that work in our directory. Shims and stand-ins do; the dead are collected.
    fn processes(&self) -> Vec<i32> {
        let own = std::fs::canonicalize(self.directory.path()).expect("a directory");
        let entries = std::fs::read_dir("/proc").expect("a list").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        pids.filter(|pid| {
            let _ = waitpid(Pid::from_raw(*pid), WaitOptions::NOHANG);
            std::fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd.starts_with(&own))
        })
        .collect()
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for pid in self.processes() {
            let _ = kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL);
        }
    }
}

fn words_of(child: &mut Child) -> String {
    let mut said = String::new();
    child.stderr.take().expect("a pipe").read_to_string(&mut said).expect("reads");
    said
}

fn exit_code(pid: Pid) -> i32 {
    let deadline = Instant::now() + LIMIT;
    loop {
        if let Ok(Some((_, status))) = waitpid(Some(pid), WaitOptions::NOHANG) {
            return status.exit_status().unwrap_or_else(|| 128 + status.terminating_signal().expect("a signal"));
        }
        assert!(Instant::now() < deadline, "{pid:?} does not end");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_container_is_its_stand_in_from_create_to_delete() {
    let world = World::new("plain");
    world.make_bundle("a1", "a1", "echo hello; trap 'exit 9' TERM; while :; do sleep 0.05; done");
    let mut created = world.create("a1");
    assert_eq!(world.status("a1"), "created");
    world.must(&["start", "a1"]);
    let mut hello = [0; 6];
    created.stdout.read_exact(&mut hello).expect("reads");
    assert_eq!((&hello, world.status("a1").as_str()), (b"hello\n", "running"));
    let metrics = shim_client::stats(&world.root(), "a1").expect("tells");
    assert_eq!(metrics.processor_nanos, Some(1_000_000_000));
    assert!(metrics.memory.is_some_and(|memory| memory.usage > 0));
    let running = world.run(&["delete", "a1"]);
    assert!(String::from_utf8_lossy(&running.stderr).contains("runs"), "{running:?}");
    // To the stand-in, as a monitor forwards a signal, and through the verb, as the daemon sends it.
    kill_process(created.pid, Signal::TERM).expect("signals");
    assert_eq!(exit_code(created.pid), 9);
    assert_eq!(world.status("a1"), "stopped");
    world.must(&["kill", "a1", "9"]);
    let shim = world.shim("a1").expect("a shim");
    world.must(&["delete", "a1"]);
    assert_eq!(exit_code(shim), 0, "the shim ended by itself");
    world.assert_empty();
    let again = world.run(&["delete", "--force", "a1"]);
    assert!(String::from_utf8_lossy(&again.stderr).contains("does not exist"), "{again:?}");
}

#[test]
fn all_output_arrives_before_the_end_and_input_ends() {
    let world = World::new("plain");
    world.make_bundle("b1", "b1", "wc -c; head -c 3000000 /dev/zero; exit 3");
    let mut created = world.create_with("b1", true);
    let mut stdin = created.stdin.take().expect("a pipe");
    // Before it is started, and more than fits into a fifo.
    std::thread::spawn(move || stdin.write_all(&[b'x'; 200_000]).expect("writes"));
    world.must(&["start", "b1"]);
    let mut output = Vec::new();
    created.stdout.read_to_end(&mut output).expect("reads");
    assert_eq!((exit_code(created.pid), output.len()), (3, 7 + 3_000_000));
    assert!(output.starts_with(b"200000\n"));
    world.must(&["delete", "b1"]);
    world.assert_empty();
}

#[test]
fn programs_beside_the_container_run_and_are_killed() {
    let world = World::new("plain");
    world.make_bundle("c1", "c1", "exec sleep 100");
    let created = world.create("c1");
    world.must(&["start", "c1"]);
    let exec = |script: &str| {
        let process = world.directory.path().join("process.json");
        let text = serde_json::json!({"args": ["/bin/sh", "-c", script]}).to_string();
        File::create(&process).and_then(|mut file| file.write_all(text.as_bytes())).expect("writes");
        let pid_file = world.directory.path().join("exec.pid");
        let _ = std::fs::remove_file(&pid_file);
        let (process, pid) = (process.display().to_string(), pid_file.display().to_string());
        (world.command(&["exec", "--process", &process, "--pid-file", &pid, "c1"]), pid_file)
    };
    let output = exec("echo out; echo err >&2; exit 7").0.output().expect("runs");
    assert_eq!((output.status.code(), &*output.stdout, &*output.stderr), (Some(7), &b"out\n"[..], &b"err\n"[..]));

    let marker = world.directory.path().join("marker");
    let (mut command, pid_file) = exec(&format!("exec sleep 1000.{} # {}", std::process::id(), marker.display()));
    let mut child = command.spawn().expect("spawns");
    let deadline = Instant::now() + LIMIT;
    let pid: i32 = loop {
        if let Some(pid) = std::fs::read_to_string(&pid_file).ok().and_then(|text| text.parse().ok()) {
            break pid;
        }
        assert!(Instant::now() < deadline, "no pid file");
        std::thread::sleep(Duration::from_millis(5));
    };
    kill_process(Pid::from_raw(pid).expect("a pid"), Signal::KILL).expect("kills");
    assert_eq!(child.wait().expect("waits").code(), Some(137));
    let wanted = format!("1000.{}", std::process::id());
    let is_left = std::fs::read_dir("/proc").expect("a list").flatten().any(|entry| {
        std::fs::read(entry.path().join("cmdline"))
            .is_ok_and(|line| line.starts_with(b"sleep") && String::from_utf8_lossy(&line).contains(&wanted))
    });
    assert!(!is_left, "the program runs on");

    let missing = world.run(&["exec", "--process", "/none", "--pid-file", "/none", "c1"]);
    assert!(!missing.status.success());
    world.must(&["kill", "c1", "9"]);
    assert_eq!(exit_code(created.pid), 137);
    world.must(&["delete", "c1"]);
    world.assert_empty();
}

#[test]
fn the_shim_of_a_pod_goes_with_its_last_container() {
    let world = World::new("plain");
    world.make_bundle("d1", "d1", "exec sleep 100");
    world.make_bundle("d2", "d1", "exec sleep 100");
    let (sandbox, container) = (world.create("d1"), world.create("d2"));
    assert_eq!(world.shim("d1"), world.shim("d2"));
    world.must(&["start", "d2"]);
    world.must(&["delete", "--force", "d2"]);
    assert_eq!(exit_code(container.pid), 137);
    assert_eq!(world.status("d1"), "created");
    world.must(&["delete", "--force", "d1"]);
    assert_eq!(exit_code(sandbox.pid), 137);
    world.assert_empty();
}

#[test]
fn a_dead_shim_ends_its_containers_and_leaves_nothing() {
    let world = World::new("plain");
    world.make_bundle("e1", "e1", "exec sleep 100");
    let created = world.create("e1");
    world.must(&["start", "e1"]);
    kill_process(world.shim("e1").expect("a shim"), Signal::KILL).expect("kills");
    assert_eq!(exit_code(created.pid), 255);
    assert_eq!(world.status("e1"), "stopped");
    assert!(shim_client::stats(&world.root(), "e1").is_err());
    world.must(&["kill", "e1", "9"]);
    world.must(&["delete", "e1"]);
    world.assert_empty();
}

#[test]
fn options_and_an_image_for_the_guest_are_passed_on() {
    let world = World::new("plain");
    let bundle = world.make_bundle("f1", "f1", "true");
    let pid_file = bundle.join("pidfile").display().to_string();
    let words = ["--shim-config=/etc/kata.toml", "--shim-pulls-image", "create", "--bundle"];
    let mut command = world.command(&words);
    assert!(command.arg(&bundle).args(["--pid-file", &pid_file, "f1"]).status().expect("runs").success());
    world.must(&["start", "f1"]);
    let pid = std::fs::read_to_string(&pid_file).expect("a pid file").parse().expect("a pid");
    assert_eq!(exit_code(Pid::from_raw(pid).expect("a pid")), 0);
    let log = std::fs::read_to_string(bundle.join("shim.log")).expect("a log");
    assert!(log.contains("options /etc/kata.toml\n"), "{log}");
    // {"volume_type":…, of which base64 does not depend on the order of what follows only as far as this.
    assert!(log.contains("rootfs fuse.nydus-overlayfs [\"io.katacontainers.volume=ey"), "{log}");
    world.must(&["delete", "f1"]);
    world.assert_empty();
}

#[track_caller]
fn check_refusal(mode: &'static str, expected: &str) {
    let world = World::new(mode);
    world.make_bundle("a1", "a1", "true");
    let output = world.create_command("a1").output().expect("runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && said.contains(expected), "{mode}: {said}");
    assert!(!world.bundle("a1").join("pidfile").exists());
    world.assert_empty();
}

#[test]
fn answers_that_are_none_are_refused_and_nothing_stays() {
    for (mode, expected) in [
        ("garbage", "ask the shim for Connect: a message of"),
        ("oversize", "a message of 4294967295 bytes is longer than 4194304"),
        ("no-message", "the shim's answer to Connect is none"),
        ("torn", "the shim is gone"),
        ("refuse", "Create: no machine to be had"),
    ] {
        check_refusal(mode, expected);
    }
}

#[test]
fn a_shim_that_never_answers_is_killed() {
    check_refusal("hang-all", "the shim did not answer Connect within 10 s");
}

#[test]
fn whoever_makes_a_container_may_be_killed_while_the_shim_hangs() {
    let world = World::new("hang-create");
    world.make_bundle("a1", "a1", "true");
    let mut creating = world.create_command("a1").spawn().expect("spawns");
    let deadline = Instant::now() + LIMIT;
    while !std::fs::read_to_string(world.bundle("a1").join("shim.log")).is_ok_and(|log| log.contains("Connect")) {
        assert!(Instant::now() < deadline, "nothing was created");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::thread::sleep(Duration::from_millis(50));
    creating.kill().expect("kills");
    creating.wait().expect("waits");
    world.must(&["delete", "--force", "a1"]);
    world.assert_empty();
}

#[test]
fn a_shim_that_lies_about_its_process_is_found_by_its_socket() {
    let world = World::new("lying-pid");
    world.make_bundle("a1", "a1", "exec sleep 100");
    drop(world.create("a1"));
    let shim = world.shim("a1").expect("a shim").as_raw_nonzero().get();
    assert_eq!(std::fs::read_link(format!("/proc/{shim}/exe")).expect("runs"), Path::new(STUB));
    world.must(&["delete", "--force", "a1"]);
    world.assert_empty();
}

#[test]
fn a_shim_that_answers_no_kill_is_killed() {
    let world = World::new("hang-kill");
    world.make_bundle("a1", "a1", "exec sleep 100");
    let created = world.create("a1");
    world.must(&["start", "a1"]);
    world.must(&["kill", "a1", "9"]);
    assert_eq!(exit_code(created.pid), 255);
    world.must(&["delete", "a1"]);
    world.assert_empty();
}
