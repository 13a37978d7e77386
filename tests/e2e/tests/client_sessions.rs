//! The client's sessions with a real container: programs with input and a terminal, attaching, ports, files.
#![forbid(unsafe_code)]

use std::io::{Read as _, Write as _};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use e2e::cri::{WAIT, container_config};
use e2e::world::binary;
use e2e::{Setup, World, scenario, tools};

/// The client on the daemon's node, or another program that runs it.
fn client(world: &World, words: &[&str]) -> Command {
    let mut command = world.command(binary("crioctl"));
    command.env("CONTAINER_RUNTIME_ENDPOINT", world.path("crio.sock")).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

fn with_input(world: &World, words: &[&str], input: &[u8]) -> Output {
    let mut child = client(world, words).spawn().expect("the client");
    let mut stdin = child.stdin.take().expect("a pipe");
    let input = input.to_vec();
    // A program that ends early leaves some of its input.
    let feeding = std::thread::spawn(move || stdin.write_all(&input).is_ok());
    let output = child.wait_with_output().expect("its end");
    feeding.join().expect("a thread");
    output
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn programs_get_input_and_their_ends_are_told() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("web"), "").await.expect("RunPodSandbox");
        cri.run(&pod, container_config(&image, "web", WAIT)).await;
        // Every byte, both ways, and an end that the program sees.
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(|number| number.to_le_bytes()).take(5_000_000).collect();
        let output = with_input(world, &["exec", "-i", "web", "cat"], &bytes);
        assert!(output.status.success() && output.stdout == bytes, "{}", text(&output.stderr));
        let both = with_input(world, &["exec", "-i", "web", "sh", "-c", "cat >&2; echo out; exit 7"], b"err\n");
        assert_eq!(
            (both.status.code(), text(&both.stdout), text(&both.stderr)),
            (Some(7), "out\n".into(), "err\n".into())
        );
        let early = with_input(world, &["exec", "-i", "web", "true"], &bytes);
        assert_eq!((early.status.code(), text(&early.stderr)), (Some(0), String::new()));
        let unknown = with_input(world, &["exec", "-i", "web", "/no/such/program"], b"");
        assert!(
            !unknown.status.success() && text(&unknown.stderr).contains("/no/such/program"),
            "{}",
            text(&unknown.stderr)
        );
        let nowhere = with_input(world, &["exec", "-it", "web", "sh"], b"");
        assert_eq!(nowhere.status.code(), Some(2));
        assert!(text(&nowhere.stderr).contains("needs a terminal"), "{}", text(&nowhere.stderr));
    });
}

/// Types into the client on a terminal of its own, and returns what the terminal showed.
fn on_terminal(world: &World, line: &str, size: &str, typed: &[(&str, &str)]) -> String {
    let line = format!("stty {size}; {} {line}; echo ended with $?", binary("crioctl").display());
    let mut command = world.command("/usr/bin/script");
    command.env("CONTAINER_RUNTIME_ENDPOINT", world.path("crio.sock")).env("TERM", "dumb");
    command.args(["-q", "-e", "-c", &line, "/dev/null"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("script");
    let (mut stdin, mut stdout) = (child.stdin.take().expect("a pipe"), child.stdout.take().expect("a pipe"));
    let (sender, parts) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut part = [0; 4096];
        while let Ok(read @ 1..) = stdout.read(&mut part) {
            if sender.send(part[..read].to_vec()).is_err() {
                break;
            }
        }
    });
    let mut shown = Vec::new();
    let end = Instant::now() + Duration::from_secs(30);
    let mut until = |wanted: &str| {
        while !text(&shown).contains(wanted) {
            let left = end.saturating_duration_since(Instant::now());
            shown.extend(parts.recv_timeout(left).unwrap_or_else(|_| panic!("no {wanted:?} in {:?}", text(&shown))));
        }
    };
    for (wait_for, keys) in typed {
        until(wait_for);
        stdin.write_all(keys.as_bytes()).expect("type");
    }
    until("ended with");
    drop(stdin);
    child.wait().expect("its end");
    text(&shown)
}

#[test]
fn terminals_have_their_size_and_keys_and_can_be_left() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("web"), "").await.expect("RunPodSandbox");
        let mut config =
            container_config(&image, "web", &["sh", "-c", "while read line; do echo \"got $line\"; done; sleep 1000"]);
        (config.tty, config.stdin) = (true, true);
        let container = cri.run(&pod, config).await;
        // The size comes a moment after the start. Control characters are the program's; the last words of one that ends at once arrive.
        let program = "trap \"echo interrupted\" INT; until stty size 2>/dev/null; do sleep 0.1; done; echo ready; read x; echo last words; exit 3";
        let line = format!("exec -it web sh -c '{program}'");
        let shown = on_terminal(world, &line, "rows 31 cols 97", &[("ready", "\u{3}"), ("interrupted", "\r")]);
        assert!(shown.contains("31 97") && shown.contains("last words") && shown.contains("ended with 3"), "{shown}");
        // Attached, left by the keys, and there still; keys may arrive together with what is typed before.
        for typed in ["one\r", "two\r"] {
            let word = typed.trim_end();
            let shown = on_terminal(
                world,
                "attach -it web",
                "rows 24 cols 80",
                &[("", typed), (&format!("got {word}"), "\u{10}\u{11}")],
            );
            assert!(shown.contains("ended with 0"), "{shown}");
        }
        assert_eq!(cri.output(&container.id, &["echo", "still"]).await.trim(), "still");
    });
}

#[test]
fn ports_lead_into_the_pod() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("web"), "").await.expect("RunPodSandbox");
        // Answers only after the other side has said that nothing more comes.
        let serve = "nc -l -p 8080 -e sh -c 'wc -c'";
        let loops = format!("while true; do {serve}; done & {}", WAIT[2]);
        cri.run(&pod, container_config(&image, "web", &["sh", "-c", &loops])).await;
        let mut child = client(world, &["port-forward", "web", "18222:8080", ":9999"]).spawn().expect("the client");
        let mut said = [0; 256];
        let mut heard = String::new();
        let stdout = child.stdout.as_mut().expect("a pipe");
        while heard.lines().count() < 2 {
            let read = stdout.read(&mut said).expect("its words");
            heard.push_str(&text(&said[..read]));
        }
        assert!(heard.contains("127.0.0.1:18222 -> 8080") && heard.contains("-> 9999"), "{heard}");
        let ask = |bytes: &[u8]| {
            world.in_network(|| {
                let mut stream = std::net::TcpStream::connect("127.0.0.1:18222").expect("connect");
                stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a limit");
                // The server may have gone before it read all.
                let _ = stream.write_all(bytes);
                let _ = stream.shutdown(std::net::Shutdown::Write);
                let mut answer = String::new();
                let _ = stream.read_to_string(&mut answer);
                answer.trim().to_owned()
            })
        };
        for length in [0, 5, 2_000_000] {
            let bytes = vec![b'x'; length];
            tools::eventually("an answer", async || (ask(&bytes) == length.to_string()).then_some(())).await;
        }
        // A port without a server ends its connection, and nothing else.
        let port = heard.lines().find(|line| line.ends_with("9999")).and_then(|line| line.split_whitespace().nth(2));
        let port = port.expect("a line").to_owned();
        let nothing = world.in_network(|| {
            let mut stream = std::net::TcpStream::connect(&port).expect("connect");
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).map(|_| answer)
        });
        assert!(nothing.is_ok_and(|answer| answer.is_empty()));
        tools::eventually("an answer", async || (ask(b"abc") == "3").then_some(())).await;
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::INT).expect("interrupt");
        let output = child.wait_with_output().expect("its end");
        assert!(output.status.success() && text(&output.stderr).contains("port 9999"), "{}", text(&output.stderr));
    });
}

#[test]
fn files_are_copied_both_ways() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("web"), "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(&image, "web", WAIT)).await;
        let (code, said) = {
            let output = with_input(world, &["cp", "/etc/hostname", "web:/tmp"], b"");
            (output.status.code(), text(&output.stderr))
        };
        assert!(code == Some(1) && said.contains("`tar` not found"), "{said}");
        let applets = "for name in tar test cmp; do ln -sf busybox /bin/$name; done";
        cri.output(&container.id, &["sh", "-c", applets]).await;
        let place = world.path("files");
        let path = |name: &str| place.join(name).to_str().expect("a path").to_owned();
        std::fs::create_dir_all(place.join("tree/deep")).expect("directories");
        let large: Vec<u8> = (0..2_000_000_u32).flat_map(u32::to_le_bytes).collect();
        tools::write(place.join("tree/deep/large"), &large);
        std::os::unix::fs::symlink("deep/large", place.join("tree/link")).expect("a link");
        let run = |words: &[&str]| {
            let output = with_input(world, words, b"");
            (output.status.code(), text(&output.stderr))
        };
        assert_eq!(run(&["cp", &path("tree"), "web:/tmp"]), (Some(0), String::new()));
        assert_eq!(run(&["cp", &path("tree/deep/large"), "web:/tmp/renamed"]), (Some(0), String::new()));
        let sums =
            cri.output(&container.id, &["sh", "-c", "cd /tmp && cmp renamed tree/link && wc -c < renamed"]).await;
        assert_eq!(sums.trim(), large.len().to_string());
        let (code, said) = run(&["cp", "web:/tmp/tree", &path("back")]);
        assert_eq!(code, Some(0), "{said}");
        assert!(said.contains("passed over tree/link"), "{said}");
        assert_eq!(std::fs::read(place.join("back/deep/large")).expect("a copy"), large);
        assert_eq!(run(&["cp", "web:/tmp/renamed", &path("tree")]), (Some(0), String::new()));
        assert_eq!(std::fs::read(place.join("tree/renamed")).expect("a copy"), large);
        // What cannot be done is said, and nothing is left of it.
        for (words, status, expected) in [
            (["cp", "web:/no/such", "."], 1, "no/such"),
            (["cp", "web:/tmp/x", "web:/tmp/y"], 2, "one of source and destination"),
            (["cp", "/no/such", "web:/tmp"], 1, "/no/such"),
            (["cp", "/etc/hostname", "web:/no/such/directory/x"], 1, "/no/such/directory"),
        ] {
            let (code, said) = run(&words);
            assert_eq!((code, said.contains(expected)), (Some(status), true), "{words:?}: {said}");
        }
    });
}
