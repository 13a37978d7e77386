use std::os::unix::fs::PermissionsExt as _;

use super::*;

struct Fixture {
    dir: tempfile::TempDir,
    path: PluginPath,
}

/// A directory with one shell script called `p`.
fn fixture(script: &str) -> Fixture {
    let dir = tempfile::tempdir().unwrap();
    // Written by another process: a child that another test starts right now would keep a descriptor of ours open for
    // writing, and the script could not be executed (ETXTBSY).
    let write = r#"printf '#!/bin/sh\n%s\n' "$1" > "$2/p" && chmod 755 "$2/p""#;
    let args = [write.as_ref(), "sh".as_ref(), script.as_ref(), dir.path().as_os_str()];
    assert!(std::process::Command::new("/bin/sh").arg("-c").args(args).status().unwrap().success());
    let path = PluginPath::new(vec!["/nonexistent".into(), dir.path().to_owned()], None);
    Fixture { dir, path }
}

impl Fixture {
    async fn call(&self, limit: Duration) -> Result<Vec<u8>, PluginError> {
        let environment = Environment {
            container_id: Some("id"),
            netns: Some(Path::new("/n s")),
            ifname: Some("eth0"),
            args: Some("A=1;B=2"),
        };
        self.path.call("p", Verb::Add, &environment, b"{\"x\":1}", Instant::now() + limit).await
    }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn a_plugin_sees_what_the_specification_says() {
    let fixture = fixture(r#"env | grep ^CNI_ | sort; cat"#);
    let output = String::from_utf8(fixture.call(LONG).await.unwrap()).unwrap();
    let dir = fixture.dir.path().display();
    let expected = format!(
        "CNI_ARGS=A=1;B=2\nCNI_COMMAND=ADD\nCNI_CONTAINERID=id\nCNI_IFNAME=eth0\nCNI_NETNS=/n s\n\
         CNI_PATH=/nonexistent:{dir}\n{{\"x\":1}}"
    );
    assert_eq!(output, expected);
    let status = fixture.path.call("p", Verb::Status, &Environment::default(), b"", Instant::now() + LONG).await;
    assert_eq!(
        String::from_utf8(status.unwrap()).unwrap(),
        format!("CNI_COMMAND=STATUS\nCNI_PATH=/nonexistent:{dir}\n")
    );
}

#[tokio::test]
async fn failures_are_told_apart() {
    for (script, expected) in [
        (
            r#"echo '{"cniVersion":"1.0.0","code":7,"msg":"bad network","details":"really"}'; exit 1"#,
            "bad network; really",
        ),
        (r#"echo 'level=warn {x}'; echo '{"code":11,"msg":"try again"}'; echo trailer; exit 1"#, "try again"),
        (r#"echo '{"code":50}'; exit 3"#, "plugin error code 50"),
        (r#"echo '{}'; echo why >&2; exit 3"#, r#"netplugin failed: exit status: 3, stdout "{}", stderr "why""#),
        ("exit 2", r#"netplugin failed: exit status: 2, stdout "", stderr """#),
        ("kill -9 $$", r#"netplugin failed: signal: 9 (SIGKILL), stdout "", stderr """#),
    ] {
        let error = fixture(script).call(LONG).await.unwrap_err();
        assert_eq!(error.to_string(), expected, "{script}");
    }
    let missing = PluginPath::new(vec!["/nonexistent".into()], None);
    let error = missing.call("p", Verb::Add, &Environment::default(), b"", Instant::now() + LONG).await.unwrap_err();
    assert_eq!(error.to_string(), r#"failed to find plugin "p" in path ["/nonexistent"]"#);
    let fixture = fixture("");
    std::fs::set_permissions(fixture.dir.path().join("p"), std::fs::Permissions::from_mode(0o600)).unwrap();
    assert!(matches!(fixture.call(LONG).await, Err(PluginError::Execute { .. })));
}

async fn is_gone(pid_file: &Path) -> bool {
    let pid: i32 = std::fs::read_to_string(pid_file).unwrap().trim().parse().unwrap();
    for _ in 0..300 {
        let state = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        if state.is_empty() || state.contains(") Z ") {
            return true;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    false
}

#[tokio::test]
async fn a_hanging_plugin_is_killed_with_its_children() {
    let fixture = fixture("sleep 1000 & echo $! > $(dirname $0)/pid; wait");
    let started = Instant::now();
    let error = fixture.call(Duration::from_millis(400)).await.unwrap_err();
    assert!(matches!(error, PluginError::TimedOut { .. }), "{error}");
    assert!(started.elapsed() < Duration::from_secs(3));
    assert!(is_gone(&fixture.dir.path().join("pid")).await);
}

#[tokio::test]
async fn a_dropped_call_is_killed() {
    let fixture = fixture("sleep 1000 & echo $! > $(dirname $0)/pid; wait");
    let file = fixture.dir.path().join("pid");
    {
        let mut call = std::pin::pin!(fixture.call(LONG));
        while !std::fs::read_to_string(&file).is_ok_and(|text| text.ends_with('\n')) {
            let _ = timeout(Duration::from_millis(10), &mut call).await;
        }
    }
    assert!(is_gone(&file).await);
}

#[tokio::test]
async fn a_flood_ends_the_call() {
    let error = fixture("yes").call(LONG).await.unwrap_err();
    assert!(matches!(error, PluginError::TooMuchOutput { .. }), "{error}");
    // Messages are cut instead.
    let output = fixture("yes | head -c 5000000 >&2; echo '{}'").call(LONG).await.unwrap();
    assert_eq!(output, b"{}\n");
}

#[tokio::test]
async fn a_child_left_behind_does_not_hold_the_call() {
    let started = Instant::now();
    let fixture = fixture("sleep 5 & echo $! > $(dirname $0)/pid; echo '{}'");
    assert_eq!(fixture.call(LONG).await.unwrap(), b"{}\n");
    assert!(started.elapsed() < Duration::from_secs(3));
    let pid: i32 = std::fs::read_to_string(fixture.dir.path().join("pid")).unwrap().trim().parse().unwrap();
    let _ = rustix::process::kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
}

#[tokio::test]
async fn input_larger_than_a_pipe_and_never_read() {
    let fixture = fixture("wc -c");
    let input = vec![b' '; 300_000];
    let deadline = Instant::now() + LONG;
    let output = fixture.path.call("p", Verb::Add, &Environment::default(), &input, deadline).await.unwrap();
    assert_eq!(output, b"300000\n");
    let deaf = self::fixture("echo '{}'");
    let output = deaf.path.call("p", Verb::Add, &Environment::default(), &input, Instant::now() + LONG).await.unwrap();
    assert_eq!(output, b"{}\n");
}

#[test]
fn what_comes_with_the_daemon_is_last() {
    let dir = tempfile::tempdir().unwrap();
    let (own, program) = (dir.path().join("bridge"), dir.path().join("crio-cni"));
    for path in [&own, &program] {
        std::fs::File::create(path).unwrap();
    }
    let path = PluginPath::new(vec!["/nonexistent".into(), dir.path().to_owned()], Some(program.clone()));
    assert_eq!(path.find("bridge").unwrap(), own);
    assert_eq!(path.find("ptp").unwrap(), program);
    assert!(matches!(path.find("macvlan"), Err(PluginError::Missing { .. })));
    let absent = PluginPath::new(Vec::new(), Some(dir.path().join("absent")));
    assert!(matches!(absent.find("bridge"), Err(PluginError::Missing { .. })));
}
