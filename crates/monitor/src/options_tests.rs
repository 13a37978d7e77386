use super::*;

const BASE: &[&str] = &["-c", "id", "-u", "id", "-r", "/run", "-l", "/log"];

fn parse_words(words: &[&str]) -> Result<Request, OptionsError> {
    parse(words.iter().map(OsString::from).collect(), Path::new("/cwd"))
}

fn options(extra: &[&str]) -> Options {
    match parse_words(&[BASE, extra].concat()) {
        Ok(Request::Monitor(options)) => *options,
        other => panic!("{extra:?}: {other:?}"),
    }
}

#[test]
fn all_spellings_of_a_value_mean_the_same() {
    for words in [&["-b", "/b"][..], &["-b/b"], &["--bundle", "/b"], &["--bundle=/b"], &["-sib", "/b"], &["-sib/b"]] {
        assert_eq!(options(words).bundle, Path::new("/b"), "{words:?}");
    }
    assert_eq!(options(&["--runtime-arg=--root=/r=1", "--runtime-arg", "-x"]).runtime_args, ["--root=/r=1", "-x"]);
    assert!(options(&["-st"]).has_systemd_cgroup);
    assert_eq!(options(&["-st"]).stdio, Stdio::Terminal);
    assert_eq!(options(&["--"]).bundle, Path::new("/cwd"));
}

#[test]
fn what_a_daemon_asks_for_is_understood() {
    let options = options(&[
        "-b",
        "/b",
        "-P",
        "/mon",
        "-p",
        "/pid",
        "--persist-dir",
        "/keep",
        "--exit-dir",
        "/exits",
        "--socket-dir-path",
        "/sock",
        "-l",
        "journald:",
        "--log-size-max",
        "-1",
        "--syslog",
        "--no-sync-log",
        "--log-level",
        "info",
        "-i",
        "--leave-stdin-open",
        "--restore",
        "/chk",
        "--runtime-opt",
        "--lsm-profile=x",
        "-T",
        "7",
    ]);
    assert_eq!(options.stdio, Stdio::Piped(OnStdinEnd::KeepOpen));
    assert_eq!(options.task, Task::Restore("/chk".into()));
    assert_eq!(options.logs, [LogTarget::K8sFile("/log".into()), LogTarget::Journald]);
    assert_eq!(options.log_size_max_bytes, None);
    assert_eq!(options.timeout, Some(Duration::from_secs(7)));
    assert_eq!(options.level, Level::Info);
    assert!(!options.is_log_synced && options.has_syslog);
    assert_eq!(options.persist_dir.as_deref(), Some(Path::new("/keep")));
}

#[test]
fn log_paths_name_a_driver_or_not() {
    for (text, target) in [
        ("k8s-file:/a", Some(LogTarget::K8sFile("/a".into()))),
        ("/a:b", Some(LogTarget::K8sFile("/a:b".into()))),
        ("relative", Some(LogTarget::K8sFile("relative".into()))),
        ("journald", Some(LogTarget::Journald)),
        ("journald:", Some(LogTarget::Journald)),
        ("off", Some(LogTarget::Off)),
        ("null:", Some(LogTarget::Off)),
        ("none", Some(LogTarget::Off)),
        ("passthrough", None),
        ("k8s-file:", None),
        ("k8s-file", None),
        ("syslog:/x", None),
        ("", None),
    ] {
        assert_eq!(log_target(OsStr::new(text)).ok(), target, "{text}");
    }
}

#[test]
fn what_cannot_be_done_is_refused_by_name() {
    for (extra, message) in [
        (&["--nonsense"][..], r#"unknown option "--nonsense""#),
        (&["-X"], r#"unknown option "-X""#),
        (&["stray"], r#"unexpected argument "stray""#),
        (&["--", "stray"], r#"unexpected argument "stray""#),
        (&["-b"], "missing value for bundle"),
        (&["--sync=yes"], "sync takes no value"),
        (&["-T", "soon"], r#"invalid value "soon" for --timeout: a whole number is expected"#),
        (&["-e"], "--exec-process-spec is required with --exec"),
        (&["--sdnotify-socket", "/s"], "--sdnotify-socket is not supported by this monitor"),
        (&["--exec-attach"], "--exec-attach is not supported by this monitor"),
        (&["-c", "../x"], r#"invalid value "../x" for --cid: a plain file name is expected"#),
        (
            &["--log-allowlist-dir", "/var"],
            r#"invalid value "/log" for --log-path: a path beneath a directory of --log-allowlist-dir is expected"#,
        ),
        (
            &["--log-label", "_PID=1"],
            r#"invalid value "_PID=1" for --log-label: NAME=value is expected, the name of capital letters, digits and underscores"#,
        ),
    ] {
        match parse_words(&[BASE, extra].concat()) {
            Err(error) => assert_eq!(error.to_string(), message),
            Ok(other) => panic!("{extra:?} was accepted: {other:?}"),
        }
    }
    for (without, missing) in [(0, "--cid"), (2, "--cuuid"), (4, "--runtime"), (6, "--log-path")] {
        let mut words = BASE.to_vec();
        words.drain(without..without + 2);
        assert_eq!(parse_words(&words), Err(OptionsError::Required { option: missing, context: "" }));
    }
}

#[test]
fn help_and_version_need_nothing_else() {
    assert_eq!(parse_words(&["--version"]), Ok(Request::Version));
    assert_eq!(parse_words(&["-h"]), Ok(Request::Help));
    for Known(name, ..) in KNOWN {
        assert!(help().contains(&format!("--{name}")), "{name}");
    }
}
