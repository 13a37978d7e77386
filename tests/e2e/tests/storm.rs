//! Many pods at once, and nothing of them afterwards.
#![forbid(unsafe_code)]

use std::time::Instant;

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::world::HANDLERS;
use e2e::{Setup, scenario, tools};

const PODS: usize = 50;
/// What the daemon may weigh with that many pods. An optimised one has half of it; this notices what grows with pods.
const DAEMON_RESIDENT_MAX_KIB: u64 = 24 << 10;

#[test]
fn fifty_pods_come_and_go_without_a_trace() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        // The first pods of each kind leave what later ones use: the bridge, empty tables, lock files.
        for handler in HANDLERS {
            let mut config = world.pod_config("warm-up");
            config.port_mappings = vec![port(20_000)];
            let pod = cri.run_pod(config, handler.name).await.expect("RunPodSandbox");
            cri.run(&pod, container_config(&image, "main", WAIT)).await;
            cri.end_pod(&pod.id).await;
            let _ = std::fs::remove_dir_all(&pod.config.log_directory);
        }
        let before = world.settled().await;

        let begun = Instant::now();
        let runs = (0..PODS).map(|number| {
            let mut config = world.pod_config(&format!("pod-{number}"));
            // Every fifth with a host port, all kinds of handlers.
            if number % 5 == 0 {
                config.port_mappings = vec![port(20_000 + i32::try_from(number).expect("small"))];
            }
            let handler = HANDLERS[number % HANDLERS.len()].name;
            let (cri, image) = (cri.clone(), image.clone());
            tokio::spawn(async move {
                let pod = cri.run_pod(config, handler).await.expect("RunPodSandbox");
                let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
                (pod, container)
            })
        });
        let mut made = Vec::new();
        for run in runs.collect::<Vec<_>>() {
            made.push(run.await.expect("a client"));
        }
        tools::say(&format!("{PODS} pods with a container each: {:.2?}", begun.elapsed()));

        assert_eq!(cri.pods().await.len(), PODS);
        let running = v1::ContainerStateValue { state: v1::ContainerState::ContainerRunning.into() };
        let filter = v1::ContainerFilter { state: Some(running), ..Default::default() };
        assert_eq!(cri.find(filter).await.len(), PODS);
        let since = world.snapshot().since(&before);
        let mut ips = since.of_kind("lease");
        ips.dedup();
        assert_eq!(ips.len(), PODS, "every pod has an address of its own");
        let resident = world.daemon_resident_kib();
        tools::say(&format!("the daemon's own memory with {PODS} pods: {resident} KiB"));

        let begun = Instant::now();
        let ends = made.iter().map(|(pod, _)| {
            let (cri, id) = (cri.clone(), pod.id.clone());
            tokio::spawn(async move { cri.end_pod(&id).await })
        });
        for end in ends.collect::<Vec<_>>() {
            end.await.expect("a client");
        }
        tools::say(&format!("{PODS} pods stopped and removed: {:.2?}", begun.elapsed()));
        for (pod, _) in &made {
            let _ = std::fs::remove_dir_all(&pod.config.log_directory);
        }
        assert_eq!(cri.pods().await, []);
        assert_eq!(cri.find(v1::ContainerFilter::default()).await.len(), 0);
        world.assert_nothing_since(&before).await;
        assert!(resident <= DAEMON_RESIDENT_MAX_KIB, "{resident} KiB with {PODS} pods");
    });
}

fn port(host_port: i32) -> v1::PortMapping {
    v1::PortMapping { protocol: v1::Protocol::Tcp.into(), container_port: 80, host_port, host_ip: String::new() }
}
