//! Lines as they arrive in a log file.

use std::path::Path;
use std::process::{Command, Stdio};

use proptest::prelude::*;
use telemetry::{Destination, Format, Handle, InitError, Level, Settings, chain, init, layer};
use tracing_subscriber::layer::SubscriberExt as _;

/// Runs code under a log of its own and returns the lines.
fn logged(settings: Settings, run: impl FnOnce(&Handle)) -> Vec<String> {
    let dir = tempfile::tempdir().expect("temporary directory");
    let path = dir.path().join("log");
    let settings = Settings { destination: Destination::File(path.clone()), ..settings };
    let (layer, handle) = layer(&settings).expect("layer");
    let subscriber = tracing_subscriber::registry().with(layer);
    tracing::subscriber::with_default(subscriber, || run(&handle));
    std::fs::read_to_string(path).expect("log file").lines().map(str::to_owned).collect()
}

/// The line without its time, which is checked for its form.
fn timeless(line: &str) -> &str {
    let (time, rest) = line.strip_prefix("time=\"").and_then(|rest| rest.split_once("\" ")).expect("time first");
    assert!(time.len() >= "2026-01-02T03:04:05.000000006Z".len() && time.as_bytes().get(10) == Some(&b'T'), "{time}");
    assert!(time.ends_with('Z') || time.contains('+') || time.matches('-').count() == 3, "{time}");
    rest
}

#[test]
fn text_lines() {
    let lines = logged(Settings::default(), |_| {
        tracing::info!("Ready");
        tracing::warn!(container.id = %"abc123", path = "/a b", count = 3, ok = true, "odd \"thing\"\nhappened");
        tracing::error!(level = "mine", error = %chain(&std::io::Error::other("disk = \"full\"")), empty = "", "failed");
        tracing::debug!("not shown");
    });
    let lines: Vec<_> = lines.iter().map(|line| timeless(line)).collect();
    assert_eq!(
        lines,
        [
            r#"level=info msg="Ready""#,
            r#"level=warning msg="odd \"thing\"\nhappened" container.id=abc123 path="/a b" count=3 ok=true"#,
            r#"level=error msg="failed" fields.level=mine error="disk = \"full\"" empty="""#,
        ]
    );
}

#[test]
fn json_lines() {
    let lines = logged(Settings { format: Format::Json, ..Settings::default() }, |_| {
        let span = tracing::info_span!("request", id = "u-u-i-d", name = "/runtime.v1.RuntimeService/Version");
        let _entered = span.enter();
        tracing::warn!(count = 3, share = f64::NAN, text = "a\u{1b}\"b", "odd\nthing");
    });
    let value: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
    assert_eq!(value["level"], "warning");
    assert_eq!(value["msg"], "odd\nthing");
    assert_eq!(value["count"], 3);
    assert_eq!(value["share"], "NaN");
    assert_eq!(value["text"], "a\u{1b}\"b");
    assert_eq!(value["id"], "u-u-i-d");
    assert_eq!(value["name"], "/runtime.v1.RuntimeService/Version");
    assert!(value["time"].as_str().is_some_and(|time| time.contains('T')));
}

#[test]
fn lines_of_a_request_carry_its_id_and_name_at_any_level() {
    let lines = logged(Settings { level: Level::Error, ..Settings::default() }, |_| {
        let span = tracing::info_span!("request", id = "u-1", name = "/x.Y/Z", sandbox.id = tracing::field::Empty);
        let _entered = span.enter();
        span.record("sandbox.id", "s1");
        tracing::info!("not shown");
        tracing::error!("failed");
    });
    assert_eq!(lines.len(), 1);
    assert_eq!(timeless(&lines[0]), r#"level=error msg="failed" id=u-1 name=/x.Y/Z sandbox.id=s1"#);
}

#[test]
fn level_changes_while_running() {
    let lines = logged(Settings::default(), |handle| {
        for level in [Level::Info, Level::Debug, Level::Error, Level::Info] {
            handle.set_level(level);
            assert_eq!(handle.level(), level);
            tracing::debug!("detail [1 2 3]");
            tracing::info!("news [1 2 3]");
        }
    });
    assert_eq!(lines.len(), 4, "{lines:?}");
    assert!(lines[0].contains("news [1 2 3]"));
    assert!(lines[1].contains("detail [FILTERED]") && lines[1].contains(" file=\""), "{}", lines[1]);
    assert!(lines[2].contains("news") && lines[2].contains(" file=\""));
    assert!(!lines[3].contains(" file=\""));
}

#[test]
fn filter_changes_while_running() {
    let settings = Settings { filter: "^pull".into(), ..Settings::default() };
    let lines = logged(settings, |handle| {
        tracing::info!("pull started");
        tracing::info!("start pulled");
        assert!(handle.set_filter("(").is_err());
        tracing::info!("pull again, because a bad filter changes nothing");
        tracing::info!("dropped");
        handle.set_filter("").expect("no filter");
        tracing::info!("all");
    });
    let messages: Vec<_> = lines.iter().map(|line| timeless(line)).collect();
    assert_eq!(
        messages,
        [
            r#"level=info msg="pull started""#,
            r#"level=info msg="pull again, because a bad filter changes nothing""#,
            r#"level=info msg="all""#,
        ]
    );
}

#[test]
fn libraries_are_quiet_below_trace() {
    let lines = logged(Settings { level: Level::Debug, ..Settings::default() }, |handle| {
        tracing::debug!(target: "h2::codec", "frame");
        tracing::warn!(target: "h2::codec", "odd");
        handle.set_level(Level::Trace);
        tracing::debug!(target: "h2::codec", "frame");
    });
    assert_eq!(lines.len(), 2, "{lines:?}");
    assert!(lines[0].contains("odd"));
}

#[test]
fn a_full_disk_is_survived_and_counted() {
    let settings = Settings { destination: Destination::File("/dev/full".into()), ..Settings::default() };
    let (layer, handle) = layer(&settings).expect("layer");
    tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || tracing::info!("lost"));
    assert_eq!(handle.lost_lines(), 1);
}

#[test]
fn settings_that_cannot_be_met_are_named() {
    let nowhere = Destination::File(Path::new("/nonexistent/log").into());
    let error = layer(&Settings { destination: nowhere, ..Settings::default() }).err().expect("error");
    assert!(matches!(error, InitError::OpenFile { .. }));
    assert!(chain(&error).to_string().starts_with("open log file /nonexistent/log: "));
    let error = layer(&Settings { filter: "(".into(), ..Settings::default() }).err().expect("error");
    assert!(chain(&error).to_string().starts_with("set up logging: compile log filter \"(\": "));
}

/// Runs one of the `child_…` tests in a process of its own, because logging is set up once a process.
fn run_child(name: &str, stderr: Stdio) -> String {
    let output = Command::new(std::env::current_exe().expect("own path"))
        .args(["--exact", name, "--nocapture"])
        .env("TELEMETRY_TEST_CHILD", "1")
        .stderr(stderr)
        .output()
        .expect("child");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && stdout.contains("survived"), "{stdout}");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn is_child() -> bool {
    std::env::var_os("TELEMETRY_TEST_CHILD").is_some()
}

#[test]
fn child_whose_standard_error_is_closed() {
    if !is_child() {
        return;
    }
    let handle = init(&Settings::default()).expect("first");
    tracing::info!("nobody hears this");
    assert_eq!(handle.lost_lines(), 1);
    assert!(matches!(init(&Settings::default()), Err(InitError::AlreadySet)));
    print!("survived");
}

#[test]
fn closed_standard_error_is_survived() {
    let (reader, writer) = std::io::pipe().expect("pipe");
    drop(reader);
    run_child("child_whose_standard_error_is_closed", Stdio::from(writer));
}

#[test]
fn child_that_logs_while_it_logs() {
    struct Chatty;
    impl std::fmt::Display for Chatty {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            tracing::info!("inner");
            f.write_str("outer")
        }
    }
    if is_child() {
        init(&Settings::default()).expect("first");
        tracing::info!(value = %Chatty, "message");
        print!("survived");
    }
}

#[test]
fn a_field_that_logs_while_it_is_printed_does_not_break_the_line() {
    let stderr = run_child("child_that_logs_while_it_logs", Stdio::piped());
    let lines: Vec<_> = stderr.lines().map(timeless).collect();
    assert_eq!(lines, [r#"level=info msg="inner""#, r#"level=info msg="message" value=outer"#]);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn any_text_stays_one_line(message: String, field: String, list: Vec<String>) {
        for format in [Format::Text, Format::Json] {
            let lines = logged(Settings { format, ..Settings::default() }, |_| {
                tracing::info!(field = field.as_str(), list = ?list, shown = %message, "{message}");
            });
            prop_assert_eq!(lines.len(), 1);
            if format == Format::Json {
                let value: serde_json::Value = serde_json::from_str(&lines[0]).expect("JSON");
                prop_assert_eq!(value["msg"].as_str(), Some(message.as_str()));
                prop_assert_eq!(value["field"].as_str(), Some(field.as_str()));
            }
        }
    }
}
