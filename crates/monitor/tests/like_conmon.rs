//! What an outsider sees must be the same under this monitor and under conmon.
//!
//! Needs root, runc and busybox.

mod support;

use rustix::process::Signal;
use serde_json::json;
use support::{Daemon, Outcome, Scenario, Step};

fn log(outcome: &Outcome, stream: &str) -> String {
    outcome.log.get(stream).map(|lines| lines.join("|")).unwrap_or_default()
}

fn exit(outcome: &Outcome) -> &str {
    assert_eq!(outcome.exits.len(), 2, "{outcome:?}");
    assert_eq!(outcome.exits["exits/ID"], outcome.exits["persist/exit"]);
    &outcome.exits["exits/ID"]
}

#[test]
fn output_and_exit_codes() {
    for (script, stdout, stderr, code) in [
        ("echo out; echo err >&2; exit 7", "F out", "F err", "7"),
        ("exit 0", "", "", "0"),
        ("echo -n part; sleep 0.3; echo rest; echo; echo -n tail", "P part|F rest|F |P tail", "", "0"),
        ("sh -c 'kill -9 $$' 2>/dev/null; exit $?", "", "", "137"),
        ("exec no-such-program 2>/dev/null", "", "", "127"),
        ("exec >&- 2>&-; sleep 0.3; exit 5", "", "", "5"),
    ] {
        let outcome = Scenario::running(script).check(script);
        assert_eq!(
            (&*log(&outcome, "stdout"), &*log(&outcome, "stderr"), exit(&outcome)),
            (stdout, stderr, code),
            "{script}"
        );
        assert_eq!(outcome.sync, [r#"{"pid": PID}"#]);
    }
}

#[test]
fn other_runtimes_too() {
    for runtime in support::runtimes() {
        for is_terminal in [false, true] {
            let mut scenario = Scenario { runtime: Some(runtime.clone()), ..Scenario::running("echo hi; exit 4") };
            if is_terminal {
                scenario.options = vec!["-t"];
                scenario.process = json!({"terminal": true});
            }
            let outcome = scenario.check(&runtime.display().to_string());
            assert_eq!(log(&outcome, "stdout"), if is_terminal { "F hi\r" } else { "F hi" });
            assert_eq!(exit(&outcome), "4");
        }
    }
}

#[test]
fn a_signal_that_ends_the_container() {
    for (signal, code) in [("KILL", "137"), ("TERM", "143"), ("USR1", "138")] {
        let outcome = Scenario {
            has_pid_namespace: false,
            steps: vec![Step::Start, Step::AwaitLog("up"), Step::Kill(signal), Step::AwaitEnd],
            ..Scenario::running("echo up; exec sleep 100")
        }
        .check(signal);
        assert_eq!(exit(&outcome), code);
    }
}

#[test]
fn a_signal_to_the_monitor_is_the_containers() {
    for (signal, code) in [(Signal::TERM, "41"), (Signal::INT, "42"), (Signal::QUIT, "43")] {
        // conmon 2.1.6 does not forward all of them, so this one is not compared.
        let script =
            "trap 'exit 41' TERM; trap 'exit 42' INT; trap 'exit 43' QUIT; echo up; while :; do sleep 0.05; done";
        let outcome = Scenario {
            steps: vec![Step::Start, Step::AwaitLog("up"), Step::SignalMonitor(signal), Step::AwaitEnd],
            ..Scenario::running(script)
        }
        .run(support::OURS);
        assert_eq!(exit(&outcome), code);
    }
}

#[test]
fn much_output_is_complete() {
    let outcome = Scenario {
        is_joined: true,
        ..Scenario::running("head -c 1048576 /dev/zero | tr '\\000' x; echo; seq 1 30000 >&2")
    }
    .check("1 MiB");
    assert_eq!(log(&outcome, "stdout").len(), 1_048_576 + 2);
    assert_eq!(outcome.log["stderr"].len(), 30_000);
    assert_eq!(outcome.log["stderr"].last().unwrap(), "F 30000");
}

#[test]
fn size_limits() {
    let lines = "for i in 1 2 3 4 5 6 7 8; do echo line$i; sleep 0.1; done";
    let burst = "echo -e 'a1\\na2\\na3\\na4\\na5'; sleep 0.2; echo more";
    for (script, options, expected) in [
        (lines, ["--log-size-max", "150"], "F line7|F line8"),
        (lines, ["--log-size-max", "10"], "F line8"),
        (lines, ["--log-size-max", "-1"], "F line1|F line2|F line3|F line4|F line5|F line6|F line7|F line8"),
        (burst, ["--log-size-max", "100"], "F a5|F more"),
        (burst, ["--log-global-size-max", "100"], "F a1|F a2|F a3"),
    ] {
        let outcome =
            Scenario { options: options.to_vec(), ..Scenario::running(script) }.check(&format!("{options:?}"));
        assert_eq!(log(&outcome, "stdout"), expected);
    }
}

#[test]
fn a_renamed_log_goes_on_in_a_new_file() {
    let outcome = Scenario {
        steps: vec![
            Step::Start,
            Step::AwaitLog("one"),
            Step::RenameLog,
            Step::Ctl("2 0 0\n"),
            Step::AwaitLog("F "),
            Step::AwaitEnd,
        ],
        ..Scenario::running("echo one; sleep 1; echo two")
    }
    .check("rotation");
    assert_eq!(outcome.renamed_log["stdout"], ["F one"]);
    assert_eq!(log(&outcome, "stdout"), "F two");
}

#[test]
fn a_terminal() {
    let size = |steps: Vec<Step>| Scenario {
        options: vec!["-t"],
        process: json!({"terminal": true}),
        steps,
        ..Scenario::running("echo up; read line; stty -F /dev/console size; echo got $line >&2; exit 3")
    };
    let outcome = size(vec![
        Step::Attach,
        Step::Start,
        Step::Expect(0, "up"),
        Step::Ctl("1 33 77\n"),
        Step::Sleep(200),
        Step::Send(0, "typed\n"),
        Step::AwaitEnd,
    ])
    .check("ctl");
    assert_eq!(log(&outcome, "stdout"), "F up\r|F typed\r|F 33 77\r|F got typed\r");
    assert_eq!(exit(&outcome), "3");
    let (received, is_closed) = &outcome.clients[0];
    assert_eq!(received.keys().copied().collect::<Vec<_>>(), [2]);
    assert!(received[&2].contains("got typed\r\n") && *is_closed);
    let outcome = size(vec![
        Step::Winsz("20 60\n"),
        Step::Attach,
        Step::Start,
        Step::Expect(0, "up"),
        Step::Send(0, "x\n"),
        Step::AwaitEnd,
    ])
    .check("winsz before start");
    assert!(log(&outcome, "stdout").contains("F 20 60\r"), "{outcome:?}");
}

#[test]
fn standard_input() {
    let fed = |options: Vec<&'static str>, steps: Vec<Step>| Scenario {
        options,
        steps,
        ..Scenario::running("cat; echo end >&2")
    };
    let outcome = fed(
        vec!["-i"],
        vec![
            Step::Attach,
            Step::Attach,
            Step::Start,
            Step::Send(0, "hello\n"),
            Step::Expect(0, "hello"),
            Step::Expect(1, "hello"),
            Step::HalfClose(0),
            Step::AwaitEnd,
        ],
    )
    .check("half-close");
    assert_eq!((&*log(&outcome, "stdout"), &*log(&outcome, "stderr")), ("F hello", "F end"));
    for (received, is_closed) in &outcome.clients {
        assert_eq!((received[&2].as_str(), received[&3].as_str(), *is_closed), ("hello\n", "end\n", true));
    }
    let outcome = fed(
        vec!["-i", "--leave-stdin-open"],
        vec![
            Step::Attach,
            Step::Start,
            Step::Send(0, "one\n"),
            Step::Expect(0, "one"),
            Step::Hangup(0),
            Step::Sleep(300),
            Step::Attach,
            Step::Send(1, "two\n"),
            Step::Expect(1, "two"),
            Step::Kill("KILL"),
            Step::AwaitEnd,
        ],
    )
    .check("left open");
    assert_eq!((&*log(&outcome, "stdout"), exit(&outcome)), ("F one|F two", "137"));
    // Without -i there is nothing to read, and a client that writes is not in the way.
    let outcome = fed(vec![], vec![Step::Attach, Step::Send(0, "lost\n"), Step::Start, Step::AwaitEnd]).check("none");
    assert_eq!((&*log(&outcome, "stdout"), &*log(&outcome, "stderr")), ("", "F end"));
}

#[test]
fn a_create_that_fails() {
    let outcome = Scenario { process: json!({"args": ["/no/such/program"]}), steps: vec![], ..Scenario::running("") }
        .check("create");
    assert!(outcome.sync[0].starts_with(r#"{"pid": -1, "message": "#), "{outcome:?}");
    assert!(outcome.sync[0].contains("/no/such/program"));
    assert!(outcome.exits.is_empty());
}

#[test]
fn execs() {
    let outcome = Scenario {
        steps: vec![
            Step::Start,
            Step::AwaitLog("up"),
            Step::Exec(json!({"args": ["sh", "-c", "echo o; echo e >&2; exit 5"]}), vec![]),
            Step::Exec(json!({"args": ["/no/such/program"]}), vec![]),
            Step::Exec(json!({"args": ["sleep", "100"]}), vec!["-T", "1"]),
            Step::Exec(json!({"args": ["sh", "-c", "echo o; exit 6"], "terminal": true}), vec!["-t"]),
            Step::Exec(json!({"args": ["sh", "-c", "exit 9"]}), vec!["--api-version", "1", "-u", "other"]),
            Step::Exec(json!({"args": ["sh", "-c", "sleep 5 & echo left"]}), vec![]),
            Step::Kill("KILL"),
            Step::AwaitEnd,
        ],
        ..Scenario::running("echo up; exec sleep 100")
    }
    .check("exec");
    let seen: Vec<(Option<i32>, &str)> =
        outcome.execs.iter().map(|exec| (exec.exit_code, exec.sync.last().unwrap().as_str())).collect();
    assert_eq!(seen[0], (Some(5), r#"{"exit_code": 5}"#));
    assert!(seen[1].0 == Some(1) && seen[1].1.starts_with(r#"{"exit_code": -1, "message": "#));
    assert_eq!(seen[2], (Some(255), r#"{"exit_code": -1, "message": "command timed out"}"#));
    assert_eq!(seen[3], (Some(6), r#"{"exit_code": 6}"#));
    assert_eq!(outcome.execs[4].sync, [r#"{"data": PID}"#, r#"{"data": 9}"#]);
    assert_eq!(outcome.execs[5].log["stdout"], ["F left"]);
    assert_eq!(outcome.execs[0].log["stderr"], ["F e"]);
    assert_eq!(outcome.execs[3].log["stdout"], ["F o\r"]);
}

#[test]
fn a_container_that_takes_too_much_memory() {
    if !std::path::Path::new("/sys/fs/cgroup/memory/memory.oom_control").exists() {
        eprintln!("SKIPPED: no memory controller of cgroup v1");
        return;
    }
    let outcome = Scenario {
        linux: json!({"resources": {"memory": {"limit": 16_777_216, "swap": 16_777_216}}}),
        // A shell that stays below the limit first, so that the monitor is watching.
        ..Scenario::running("sleep 0.2; exec dd if=/dev/zero of=/dev/null bs=64M count=1")
    }
    .check("out of memory");
    assert_eq!(exit(&outcome), "137");
    assert_eq!(outcome.oom, ["persist/oom", "bundle/oom"]);
}

#[test]
fn a_daemon_that_is_gone() {
    for daemon in [Daemon::DiesBeforeStart, Daemon::DiesBeforePid] {
        // conmon ends when nobody reads the pid, and with it the output of a container that was made; so no comparison.
        let outcome = Scenario { daemon, ..Scenario::running("echo alive; exit 11") }.run(support::OURS);
        assert_eq!((&*log(&outcome, "stdout"), exit(&outcome)), ("F alive", "11"));
    }
}
