//! Metrics and statistics: what the daemon tells of pods, against what the kernel shows.
#![forbid(unsafe_code)]

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use cri_api::v1;
use e2e::cri::{WAIT, container_config};
use e2e::{Cri, Setup, scenario, tools};

async fn descriptors(cri: &Cri) -> HashMap<String, v1::MetricDescriptor> {
    let request = v1::ListMetricDescriptorsRequest {};
    let answer = cri.runtime.clone().list_metric_descriptors(request).await.expect("ListMetricDescriptors");
    answer.into_inner().descriptors.into_iter().map(|descriptor| (descriptor.name.clone(), descriptor)).collect()
}

async fn metrics(cri: &Cri) -> Vec<v1::PodSandboxMetrics> {
    let request = v1::ListPodSandboxMetricsRequest {};
    cri.runtime.clone().list_pod_sandbox_metrics(request).await.expect("ListPodSandboxMetrics").into_inner().pod_metrics
}

/// Values of a metric without labels of its own, or with these.
fn value(metrics: &[v1::Metric], name: &str, labels: &[&str]) -> Option<u64> {
    let is_wanted = |metric: &&v1::Metric| metric.name == name && metric.label_values[5..] == *labels;
    Some(metrics.iter().find(is_wanted)?.value.as_ref()?.value)
}

fn with(stats: &str) -> Setup {
    Setup { drop_in: format!("[crio.stats]\n{stats}\n"), ..Setup::default() }
}

#[test]
fn metrics_are_what_the_kernel_shows() {
    scenario(with("included_pod_metrics = [\"all\"]"), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("measured"), "").await.expect("RunPodSandbox");
        let mut config = container_config(&image, "main", WAIT);
        config.linux.get_or_insert_default().resources = Some(v1::LinuxContainerResources {
            cpu_period: 100_000,
            cpu_quota: 50_000,
            cpu_shares: 512,
            memory_limit_in_bytes: 64 << 20,
            ..Default::default()
        });
        let container = cri.run(&pod, config).await;
        cri.output(&container.id, &["sh", "-c", "dd if=/dev/zero of=/written bs=1024 count=100 2>&1"]).await;

        let descriptors = descriptors(&cri).await;
        let all = metrics(&cri).await;
        let [told] = &all[..] else { panic!("one pod: {all:?}") };
        let [of_container] = &told.container_metrics[..] else { panic!("one container: {told:?}") };
        assert_eq!((&told.pod_sandbox_id, &of_container.container_id), (&pod.id, &container.id));
        let status = cri.status(&container.id).await.expect("ContainerStatus");
        for (metrics, base) in [
            (&told.metrics, [pod.id.as_str(), "", "e2e", "measured", "POD"]),
            (&of_container.metrics, [&container.id, &status.image.expect("an image").image, "e2e", "measured", "main"]),
        ] {
            let mut seen = BTreeSet::new();
            for metric in metrics {
                let descriptor = descriptors.get(&metric.name).unwrap_or_else(|| panic!("{metric:?} is described"));
                assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{metric:?}");
                assert_eq!(metric.label_values[..5], base, "{metric:?}");
                assert!(metric.timestamp > status.created_at, "{metric:?}");
                assert!(seen.insert((&metric.name, &metric.label_values)), "{metric:?} is told once");
            }
        }
        let of = |name: &str| value(&of_container.metrics, &format!("container_{name}"), &[]);
        // The shell and its `sleep`, each with a read end of /dev/null and two pipes.
        assert_eq!((of("processes"), of("threads"), of("sockets")), (Some(2), Some(2), Some(0)));
        assert!(of("file_descriptors") >= Some(6), "{:?}", of("file_descriptors"));
        assert_eq!(
            (of("spec_cpu_period"), of("spec_cpu_quota"), of("spec_cpu_shares")),
            (Some(100_000), Some(50_000), Some(512))
        );
        assert_eq!((of("spec_memory_limit_bytes"), of("oom_events_total")), (Some(64 << 20), Some(0)));
        assert_eq!(of("start_time_seconds"), u64::try_from(status.started_at).ok().map(|nanos| nanos / 1_000_000_000));
        let usage = of("memory_usage_bytes").expect("a number");
        assert!(usage > 0 && Some(usage) <= of("memory_max_usage_bytes") && usage <= 64 << 20, "{usage}");
        assert!(of("memory_working_set_bytes") <= Some(usage));
        assert!(of("fs_usage_bytes") >= Some(100 << 10) && of("fs_inodes_free") <= of("fs_inodes_total"));
        let pid = cri.container_pid(&container.id).await;
        let limits = tools::read(format!("/proc/{pid}/limits"));
        let open_files = limits.lines().find_map(|line| line.strip_prefix("Max open files")?.split_whitespace().next());
        let told_limit = value(&of_container.metrics, "container_ulimits_soft", &["max_open_files"]);
        assert_eq!(told_limit.map(|limit| limit.to_string()).as_deref(), open_files);

        let received = "container_network_receive_bytes_total";
        let interfaces: BTreeSet<&str> = told
            .metrics
            .iter()
            .filter(|metric| metric.name == received)
            .map(|metric| metric.label_values[5].as_str())
            .collect();
        assert_eq!(interfaces, BTreeSet::from(["lo", "eth0"]));

        let request = v1::StreamPodSandboxMetricsRequest {};
        let mut stream = cri.runtime.clone().stream_pod_sandbox_metrics(request).await.expect("a stream").into_inner();
        let first = stream.message().await.expect("a message").expect("a message");
        assert_eq!((first.pod_sandbox_metrics.len(), stream.message().await.expect("an end")), (1, None));

        // What has ended has nothing any more; the pod's network has.
        cri.stop(&container.id, 5).await.expect("StopContainer");
        let after = metrics(&cri).await;
        assert_eq!((after[0].container_metrics.len(), after[0].metrics.len()), (0, told.metrics.len()));
    });
}

#[test]
fn with_a_period_everything_is_told_from_memory_until_the_next_look() {
    scenario(with("collection_period = 2"), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("measured"), "").await.expect("RunPodSandbox");
        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        assert_eq!(descriptors(&cri).await.into_keys().collect::<Vec<_>>(), ["container_last_seen"]);
        let look = async || {
            let request = v1::ContainerStatsRequest { container_id: container.id.clone() };
            let stats = cri.runtime.clone().container_stats(request).await.expect("ContainerStats").into_inner().stats;
            let request = v1::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
            let of_pod = cri.runtime.clone().pod_sandbox_stats(request).await.expect("PodSandboxStats").into_inner();
            let metrics = metrics(&cri).await;
            let pod_memory = of_pod.stats.expect("statistics").linux.expect("statistics").memory.expect("memory");
            let metric = metrics[0].container_metrics[0].metrics[0].timestamp;
            [stats.expect("statistics").cpu.expect("a processor").timestamp, pod_memory.timestamp, metric]
        };
        // The next look may come between any two calls, but not between each two of three.
        tools::eventually("what was told is told again", async || {
            let (first, second) = (look().await, look().await);
            (first == second).then_some(())
        })
        .await;
        let first = look().await;
        tools::eventually("what was told grows old", async || {
            tokio::time::sleep(Duration::from_millis(200)).await;
            look().await.iter().zip(first).all(|(later, earlier)| *later > earlier).then_some(())
        })
        .await;
    });
}
