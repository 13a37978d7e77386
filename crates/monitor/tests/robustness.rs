//! What the monitor promises beyond conmon.
//!
//! Needs root, runc and busybox.

mod support;

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use serde_json::json;
use support::{Container, OURS, PATIENCE, Scenario, Step, eventually, runtime, write};

#[allow(clippy::unwrap_used, reason = "a failed step fails the test")]
fn dirty_kilobytes(container: &Container) -> u64 {
    let path = format!("/proc/{}/smaps_rollup", container.monitor_pid().as_raw_nonzero());
    let text = fs::read_to_string(path).unwrap();
    let line = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).unwrap().to_owned();
    line("Private_Dirty:").trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn memory_does_not_grow_with_output() {
    let script = "echo up; read line; head -c 50000000 /dev/zero | tr '\\000' x; seq 1 300000; echo down; sleep 100";
    let scenario = Scenario { options: vec!["-i", "--log-size-max", "1000000"], ..Scenario::running(script) };
    let mut container = Container::create(&scenario, OURS);
    for step in [Step::Attach, Step::Start, Step::AwaitLog("up")] {
        container.step(&step);
    }
    let before = dirty_kilobytes(&container);
    // The client never reads, and is dropped.
    container.step(&Step::Send(0, "go\n"));
    container.step(&Step::AwaitLog("down"));
    let after = dirty_kilobytes(&container);
    assert!(after <= before + 64, "{before} KB before, {after} KB after");
    assert!(fs::metadata(&container.log).unwrap().len() <= 1_000_000);
    container.step(&Step::Kill("KILL"));
    assert_eq!(container.outcome().exits["exits/ID"], "137");
}

#[test]
fn the_runtime_sees_three_descriptors() {
    let root = tempfile::tempdir().unwrap();
    let wrapper = root.path().join("runtime");
    let seen = root.path().join("seen");
    let script = format!(
        "#!/bin/sh\n[ -e {seen} ] || {{ ls -l /proc/$$/fd; env | grep -E '^(_OCI|LISTEN)'; }} >{seen}\nexec {} \"$@\"\n",
        runtime().display(),
        seen = seen.display(),
    );
    write(&wrapper, script.as_bytes());
    fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).unwrap();
    let outcome =
        Scenario { runtime: Some(wrapper), env: vec![("LISTEN_FDS", "3".to_owned())], ..Scenario::running("exit 2") }
            .run(OURS);
    assert_eq!(outcome.exits["exits/ID"], "2");
    let text = fs::read_to_string(&seen).unwrap();
    assert!(!text.contains("_OCI") && !text.contains("LISTEN"), "{text}");
    let links = text.lines().filter_map(|line| line.split_once(" -> "));
    let numbers = links.filter_map(|(left, target)| Some((left.rsplit(' ').next()?, target)));
    // The shell itself opens its script and where it writes to.
    let own = root.path().display().to_string();
    let mut inherited: Vec<&str> = numbers
        .filter(|(number, target)| *number == "1" || !target.starts_with(&own))
        .map(|(number, _)| number)
        .collect();
    // It moves its standard output out of the way, to a number above nine.
    inherited.retain(|number| number.len() == 1 || !text.contains(&format!("{number} -> pipe:")));
    assert_eq!(inherited, ["0", "1", "2"], "{text}");
}

#[test]
fn nothing_written_to_a_terminal_is_lost() {
    let exec = || Step::Exec(json!({"args": ["sh", "-c", "seq 1 200; echo last"], "terminal": true}), vec!["-t"]);
    let steps = [vec![Step::Start, Step::AwaitLog("up")], vec![exec(); 25], vec![Step::Kill("KILL")]].concat();
    let outcome = Scenario { steps, is_joined: true, ..Scenario::running("echo up; exec sleep 100") }.run(OURS);
    for exec in &outcome.execs {
        assert_eq!(exec.log["stdout"].len(), 201);
        assert_eq!(exec.log["stdout"].last().unwrap(), "F last\r");
    }
}

/// A mount that goes with the test.
struct Mounted(std::path::PathBuf);

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn a_full_disk_does_not_keep_the_exit_from_being_recorded() {
    let mut mounted = None;
    let scenario = Scenario { steps: vec![], ..Scenario::running("seq 1 100000; exit 6") };
    let mut container = Container::create_with(&scenario, OURS, |root, words| {
        let disk = root.join("disk");
        fs::create_dir(&disk).unwrap();
        mount("tmpfs", &disk, "tmpfs", MountFlags::empty(), c"size=64k").unwrap();
        mounted = Some(Mounted(disk.clone()));
        for (option, value) in [("-l", disk.join("log")), ("--persist-dir", disk.clone())] {
            let at = words.iter().position(|word| word == option).unwrap();
            words[at + 1] = value.into();
        }
    });
    // Unmounted before the directory is removed.
    let _mounted = mounted;
    container.step(&Step::Start);
    let record = container.root.path().join("exits").join(&container.id);
    eventually("record in the directory with room", || (fs::read_to_string(&record).ok()? == "6").then_some(()));
    let disk = container.root.path().join("disk");
    assert!(!disk.join("exit").exists());
    let log = support::read_log(&disk.join("log"), false);
    // Lines are lost, but none is cut: their numbers rise.
    // A read may end within a line, which then comes in parts; those say nothing about cuts.
    let mut is_part = false;
    let mut numbers: Vec<u32> = Vec::new();
    for line in &log["stdout"] {
        let (tag, text) = line.split_once(' ').unwrap();
        if tag == "F" && !is_part {
            numbers.push(text.parse().unwrap());
        }
        is_part = tag == "P";
    }
    assert!(numbers.is_sorted(), "{numbers:?}");
    assert!(log["stdout"].len() > 500);
    // Somebody makes room, and the other record follows.
    fs::remove_file(disk.join("log")).unwrap();
    container.await_end();
    assert_eq!(fs::read_to_string(disk.join("exit")).unwrap(), "6");
    assert_eq!(fs::read_dir(&disk).unwrap().count(), 1);
}

#[test]
fn a_log_that_hangs_does_not_keep_the_exit_from_being_recorded() {
    let mut disk = None;
    let scenario = Scenario { steps: vec![], ..Scenario::running("echo up; read line; echo stuck; exit 8") };
    let scenario = Scenario { options: vec!["-i"], ..scenario };
    let mut container = Container::create_with(&scenario, OURS, |root, words| {
        let (image, directory) = (root.join("image"), root.join("disk"));
        fs::create_dir(&directory).unwrap();
        fs::File::create(&image).unwrap().set_len(16 << 20).unwrap();
        let run = |program: &str, words: &[&std::ffi::OsStr]| {
            Command::new(program).args(words).output().is_ok_and(|output| output.status.success())
        };
        let is_made = run("mkfs.ext4", &["-q".as_ref(), image.as_ref()])
            && run("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), directory.as_ref()]);
        if is_made {
            let at = words.iter().position(|word| word == "-l").unwrap();
            words[at + 1] = directory.join("log").into();
            disk = Some(Mounted(directory));
        }
    });
    let Some(disk) = disk else {
        eprintln!("SKIPPED: no loop mounts here");
        return;
    };
    container.log = disk.0.join("log");
    for step in [Step::Attach, Step::Start, Step::AwaitLog("up")] {
        container.step(&step);
    }
    let freeze = |option: &str| {
        assert!(Command::new("fsfreeze").arg(option).arg(&disk.0).status().unwrap().success());
    };
    freeze("-f");
    container.step(&Step::Send(0, "go\n"));
    let record = container.root.path().join("exits").join(&container.id);
    let start = std::time::Instant::now();
    let recorded = loop {
        match fs::read_to_string(&record) {
            Ok(code) => break Some(code),
            Err(_) if start.elapsed() > PATIENCE => break None,
            Err(_) => std::thread::sleep(std::time::Duration::from_millis(20)),
        }
    };
    let was_stuck = !container.has_ended();
    freeze("-u");
    assert_eq!(recorded.as_deref(), Some("8"));
    assert!(was_stuck, "the disk was not frozen");
    container.await_end();
}

#[test]
fn a_runtime_that_fails_without_a_word_is_reported() {
    let scenario = Scenario { runtime: Some("/bin/false".into()), steps: vec![], ..Scenario::running("") };
    assert_eq!(scenario.run(OURS).sync, [r#"{"pid": -1, "message": "runtime ended with code 1 and said nothing"}"#]);
}

#[test]
fn the_exit_command_runs_last() {
    let mut done = None;
    let scenario = Scenario { steps: vec![], ..Scenario::running("exit 3") };
    let mut container = Container::create_with(&scenario, OURS, |root, words| {
        let path = root.join("done");
        let script = format!("cat {}/persist/exit >{}", root.display(), path.display());
        words.extend(["--exit-command", "/bin/sh", "--exit-command-arg", "-c", "--exit-command-arg"].map(Into::into));
        words.push(script.into());
        done = Some(path);
    });
    container.step(&Step::Start);
    container.await_end();
    assert_eq!(fs::read_to_string(done.unwrap()).unwrap(), "3");
}
