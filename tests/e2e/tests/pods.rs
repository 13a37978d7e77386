//! Pods: their network, names, memory and processes, as seen from the node and from inside.
#![forbid(unsafe_code)]

use e2e::cri::{WAIT, container_config};
use e2e::{Setup, scenario};

#[test]
fn a_pod_runs() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("first"), "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        assert_eq!(cri.output(&container.id, &["echo", "hello"]).await, "hello");
    });
}
