//! A machine with nothing but our binaries: what comes with the daemon does for what others would have installed.
#![forbid(unsafe_code)]

use e2e::cri::{WAIT, container_config};
use e2e::{Setup, http, scenario, tools};

#[test]
fn pods_have_a_network_without_anybody_elses_plugins() {
    let drop_in = "[crio.network]\nplugin_dirs = [\"@ROOT@/nothing-here\"]\n".to_owned();
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("web"), "").await.expect("RunPodSandbox");
        let ip = cri.pod_ip(&pod.id).await;
        assert!(ip.starts_with("10.99.0."), "{ip}");
        let serve =
            format!("mkdir -p /tmp/www && echo here > /tmp/www/index.html && httpd -p 8080 -h /tmp/www; {}", WAIT[2]);
        cri.run(&pod, container_config(&image, "web", &["sh", "-c", &serve])).await;
        let page = tools::eventually("a page", async || {
            world.in_network(|| http::send(&format!("{ip}:8080"), "GET", "/", &[], b"")).ok()
        });
        assert_eq!(String::from_utf8_lossy(&page.await.body).trim(), "here");
        cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        cri.remove_pod(&pod.id).await.expect("RemovePodSandbox");
        assert!(world.snapshot().of_kind("lease").is_empty(), "its address is free again");
    });
}
