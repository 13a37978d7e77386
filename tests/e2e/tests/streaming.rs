//! Exec, attach and port-forward sessions, by every pair of runtime and monitor.
#![forbid(unsafe_code)]

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::websocket::{RESIZE, STDIN, STDOUT, Session};
use e2e::world::HANDLERS;
use e2e::{Cri, Setup, World, scenario, tools};

const EXEC: &str = "v5.channel.k8s.io";
const PORT_FORWARD: &str = "v4.channel.k8s.io";

async fn exec_url(cri: &Cri, id: &str, command: &[&str], stdin: bool, tty: bool) -> String {
    let request = v1::ExecRequest {
        container_id: id.to_owned(),
        cmd: command.iter().map(ToString::to_string).collect(),
        tty,
        stdin,
        stdout: true,
        stderr: !tty,
    };
    cri.runtime.clone().exec(request).await.expect("Exec").into_inner().url
}

async fn exec(world: &World, id: &str, command: &[&str], stdin: bool, tty: bool) -> Session {
    let url = exec_url(&world.cri(), id, command, stdin, tty).await;
    Session::open(world, &url, EXEC).expect("a session")
}

#[test]
fn programs_run_in_sessions() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in HANDLERS {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
            let id = &container.id;

            // Input, output, complaints and the end of each.
            let mut session = exec(world, id, &["sh", "-c", "cat; echo over >&2"], true, false).await;
            session.send(STDIN, b"hello\n");
            session.close_channel(STDIN);
            let (output, complaints, end) = session.finish();
            assert_eq!((output.as_str(), complaints.as_str()), ("hello\n", "over\n"), "{name}");
            assert_eq!(end["status"], "Success", "{name}: {end}");

            let (_, _, end) = exec(world, id, &["sh", "-c", "exit 7"], false, false).await.finish();
            assert_eq!(end["details"]["causes"][0]["message"], "7", "{name}: {end}");

            // A terminal has the client's size.
            let until = "until [ \"$(stty size)\" = '43 132' ]; do sleep 0.02; done; tty; exit 3";
            let mut session = exec(world, id, &["sh", "-c", until], true, true).await;
            session.send(RESIZE, br#"{"Width":132,"Height":43}"#);
            let (output, _, end) = session.finish();
            assert!(output.contains("/dev/pts/"), "{name}: {output:?}");
            assert_eq!(end["details"]["causes"][0]["message"], "3", "{name}: {end}");

            // A client that leaves takes its program along.
            let mut session = exec(world, id, &["sh", "-c", "echo begun; exec sleep 4711"], true, false).await;
            session.wait_for(STDOUT, "begun");
            let sleeping = || world.find_processes("sleep 4711").len();
            assert_ne!(sleeping(), 0, "{name}");
            drop(session);
            tools::becomes("the program has gone with its client", sleeping, |count| *count == 0).await;

            // Each URL is good for one session.
            let url = exec_url(&cri, id, &["true"], false, false).await;
            Session::open(world, &url, EXEC).expect("a session").finish();
            let refusal = Session::open(world, &url, EXEC).expect_err("a URL used before");
            assert!(refusal.contains(" 404 "), "{name}: {refusal}");
            cri.end_pod(&pod.id).await;
        }
    });
}

#[test]
fn sessions_reach_into_containers_and_their_ports() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in HANDLERS {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let mut config =
                container_config(&image, "echo", &["sh", "-c", "while read line; do echo \"heard $line\"; done"]);
            config.stdin = true;
            let container = cri.run(&pod, config).await;
            let request = v1::AttachRequest {
                container_id: container.id.clone(),
                stdin: true,
                stdout: true,
                stderr: true,
                ..Default::default()
            };
            let url = cri.runtime.clone().attach(request).await.expect("Attach").into_inner().url;
            let mut session = Session::open(world, &url, EXEC).expect("a session");
            session.send(STDIN, b"this\n");
            session.wait_for(STDOUT, "heard this");
            drop(session);

            // A server that is reached on the pod's own loopback only.
            let serve = "mkdir -p /tmp/www && echo from the pod > /tmp/www/index.html && echo ready && \
                         exec httpd -f -p 127.0.0.1:8080 -h /tmp/www";
            let server = cri.run(&pod, container_config(&image, "server", &["sh", "-c", serve])).await;
            tools::eventually("the server answers", async || {
                let answer = cri.exec(&server.id, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"], 5).await;
                answer.ok().filter(|answer| answer.exit_code == 0)
            })
            .await;
            let request = v1::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![8080] };
            let url = cri.runtime.clone().port_forward(request).await.expect("PortForward").into_inner().url;
            let mut session = Session::open(world, &url, PORT_FORWARD).expect("a session");
            session.send(0, b"GET / HTTP/1.0\r\n\r\n");
            session.wait_for(0, "from the pod");
            // Neither listens to SIGTERM as the first process of its namespace.
            for id in [&container.id, &server.id] {
                cri.stop(id, 0).await.expect("StopContainer");
            }
            cri.end_pod(&pod.id).await;
        }
    });
}
