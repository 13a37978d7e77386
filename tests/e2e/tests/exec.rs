//! ExecSync where the container is not an ordinary running one.
#![forbid(unsafe_code)]

use e2e::cri::{WAIT, container_config, refused};
use e2e::world::HANDLERS;
use e2e::{Setup, scenario};
use tonic::Code;

#[test]
fn a_program_has_a_terminal_where_its_container_has_one() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in &HANDLERS[..2] {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let mut config = container_config(&image, "main", WAIT);
            config.tty = true;
            let container = cri.create(&pod, config).await.expect("CreateContainer");
            cri.start(&container.id).await.expect("StartContainer");

            let script = "test -t 0 && test -t 1 && echo out && echo error >&2; exit 3";
            let answer = cri.exec(&container.id, &["sh", "-c", script], 20).await.expect("ExecSync");
            assert_eq!(String::from_utf8_lossy(&answer.stdout), "out\r\nerror\r\n", "{name}");
            assert_eq!((answer.exit_code, answer.stderr.as_slice()), (3, &b""[..]), "{name}");

            let answer = cri.exec(&container.id, &["sh", "-c", "echo before; sleep 77"], 1).await.expect("ExecSync");
            assert_eq!((answer.exit_code, answer.stderr.as_slice()), (-1, &b"command timed out"[..]), "{name}");
            let left = cri.output(&container.id, &["ps"]).await;
            assert!(!left.contains("sleep 77"), "{name}: {left}");

            let error = refused(cri.exec(&container.id, &["/no/such/program"], 20).await, Code::Unknown);
            assert!(error.contains("/no/such/program"), "{name}: {error}");
            cri.end_pod(&pod.id).await;
        }
    });
}

#[test]
fn programs_run_in_a_container_that_waits_to_be_started_and_in_none_that_ended() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        for handler in &HANDLERS[..2] {
            let name = handler.name;
            let pod = cri.run_pod(world.pod_config(name), name).await.expect("RunPodSandbox");
            let container = cri.create(&pod, container_config(&image, "main", WAIT)).await.expect("CreateContainer");
            assert_eq!(cri.output(&container.id, &["echo", "early"]).await, "early", "{name}");
            cri.start(&container.id).await.expect("StartContainer");
            cri.stop(&container.id, 0).await.expect("StopContainer");
            let error = refused(cri.exec(&container.id, &["true"], 20).await, Code::NotFound);
            assert!(error.contains("stopped"), "{name}: {error}");
            cri.end_pod(&pod.id).await;
        }
    });
}
