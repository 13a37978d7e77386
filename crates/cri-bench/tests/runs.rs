//! Whole runs of the real binary against engines in memory.
#![allow(clippy::unwrap_used)]

#[path = "../../crioctl/tests/fake_engine/mod.rs"]
mod fake_engine;

use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use fake_engine::FakeEngine;
use serde_json::Value;

const IMAGE: &str = "reg/img:1";

fn bench(ours: &FakeEngine, rest: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cri-bench"));
    command.args(["--ours", &ours.endpoint(), "--image", IMAGE]).args(rest.split_whitespace()).args(["--", "wait"]);
    // Log directories belong where they vanish with the engine, whatever happens.
    command.env("TMPDIR", ours.directory());
    command
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn is_clean(engine: &FakeEngine) -> bool {
    let model = engine.model();
    let leftovers = std::fs::read_dir(engine.directory()).unwrap().flatten();
    let directories = leftovers.filter(|entry| entry.file_name().to_string_lossy().starts_with("cri-bench-")).count();
    model.pods.is_empty() && model.containers.is_empty() && directories == 0
}

fn count(engine: &FakeEngine, request: &str) -> usize {
    engine.model().requests.iter().filter(|&&one| one == request).count()
}

#[test]
fn two_engines_are_compared() {
    let (ours, peer) = (FakeEngine::start(&[IMAGE]), FakeEngine::start(&[IMAGE]));
    peer.model().sandbox_delay = Duration::from_millis(40);
    let own = std::process::id();
    let rest = format!(
        "--peer {} --pid {own} --peer-pid {own} --rounds 4 --execs 2 --parallel 3 --pods 5 -o json \
         --max-ratio start=0.9 --max-ratio rss=5",
        peer.endpoint()
    );
    let output = bench(&ours, &rest).output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    let metrics = &report["metrics"];
    assert_eq!(metrics["start"]["ours"]["samples"], 4);
    assert_eq!(metrics["exec"]["peer"]["samples"], 8);
    assert!(metrics["run_sandbox"]["peer"]["min"].as_f64().unwrap() >= 40.0);
    assert!(metrics["start"]["ratio"].as_f64().unwrap() < 0.9);
    assert!(metrics["rss"]["ours"]["median"].as_f64().unwrap() > 100.0);
    assert!(metrics["parallel_remove"]["ratio"].is_number());
    assert_eq!(metrics["stats"]["ours"]["samples"], 20);
    assert!(metrics["stats_cpu"]["peer"]["median"].is_number());
    // What an engine does not know is left out.
    assert!(metrics["pod_stats"].is_null());
    // One uncounted pod, four rounds, five batches of three, five for the memory.
    for engine in [&ours, &peer] {
        assert_eq!(count(engine, "RunPodSandbox"), 1 + 4 + 5 * 3 + 5);
        assert!(is_clean(engine));
    }
}

#[test]
fn ratios_above_their_limit_show_in_the_status() {
    let (ours, peer) = (FakeEngine::start(&[IMAGE]), FakeEngine::start(&[IMAGE]));
    ours.model().sandbox_delay = Duration::from_millis(40);
    let rest = format!("--peer {} --rounds 2 --max-ratio run_sandbox=0.9,exec=1000", peer.endpoint());
    let output = bench(&ours, &rest).output().unwrap();
    assert_eq!(output.status.code(), Some(3), "{}", text(&output.stderr));
    assert!(text(&output.stderr).contains("run_sandbox: ratio"));
    assert!(!text(&output.stderr).contains("exec: ratio"));
    assert!(text(&output.stdout).contains("ours/peer"));

    let rest = format!("--peer {} --rounds 1 --max-ratio rss=1", peer.endpoint());
    let output = bench(&ours, &rest).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("rss: it was not measured"));
}

#[test]
fn failures_leave_nothing() {
    for request in ["RunPodSandbox", "CreateContainer", "StartContainer", "ExecSync"] {
        let engine = FakeEngine::start(&[IMAGE]);
        engine.model().failing = [request].into();
        let output: Output = bench(&engine, "--rounds 1").output().unwrap();
        assert_eq!(output.status.code(), Some(1));
        let expected = format!("cri-bench: ours: {request} failed with Unknown: {request} was told to fail\n");
        assert_eq!(text(&output.stderr), expected);
        assert!(is_clean(&engine), "{request}");
    }
    let engine = FakeEngine::start(&[]);
    let output = bench(&engine, "--rounds 1").output().unwrap();
    assert!(text(&output.stderr).contains("is not present; give --pull"));
    let output = bench(&engine, "--rounds 1 --pull").output().unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
}

#[test]
fn an_interrupted_run_leaves_nothing() {
    let engine = FakeEngine::start(&[IMAGE]);
    engine.model().sandbox_delay = Duration::from_millis(200);
    let child = bench(&engine, "--rounds 1000 --parallel 8").stderr(Stdio::piped()).spawn().unwrap();
    let deadline = Instant::now() + Duration::from_secs(20);
    while count(&engine, "RunPodSandbox") < 2 {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(5));
    }
    let status = Command::new("kill").arg("-INT").arg(child.id().to_string()).status().unwrap();
    assert!(status.success());
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(is_clean(&engine));
}
