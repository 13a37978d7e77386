//! What operators and pods say about CPUs, and which runtime a container gets: seen from inside.

use std::collections::HashMap;
use std::path::Path;

use cri_api::v1;
use e2e::cri::{Cri, Pod, WAIT, container_config, refused};
use e2e::image::architecture;
use e2e::tools;
use e2e::world::{Setup, World, scenario};
use tonic::Code;

/// A pod with annotations, in a cgroup beneath the scenario's.
async fn pod(world: &World, name: &str, parent: &str, annotations: &[(&str, &str)], handler: &str) -> Pod {
    world.cri().run_pod(pod_of(world, name, parent, annotations), handler).await.expect("RunPodSandbox")
}

fn pod_of(world: &World, name: &str, parent: &str, annotations: &[(&str, &str)]) -> v1::PodSandboxConfig {
    let mut config = world.pod_config(name);
    config.annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    if let Some(linux) = &mut config.linux {
        linux.cgroup_parent.push_str(parent);
    }
    config
}

/// A container that waits, with these shares and CPUs.
fn container(image: &str, name: &str, shares: i64, cpus: &str) -> v1::ContainerConfig {
    let mut config = container_config(image, name, WAIT);
    if let Some(linux) = &mut config.linux {
        linux.resources = Some(v1::LinuxContainerResources {
            cpu_shares: shares,
            cpuset_cpus: cpus.to_owned(),
            ..Default::default()
        });
    }
    config
}

/// The spec a container was made of.
async fn spec(cri: &Cri, id: &str) -> serde_json::Value {
    let request = v1::ContainerStatusRequest { container_id: id.to_owned(), verbose: true };
    let answer = cri.runtime.clone().container_status(request).await.expect("ContainerStatus").into_inner();
    let info: serde_json::Value = serde_json::from_str(&answer.info["info"]).expect("JSON");
    info["runtimeSpec"].clone()
}

/// The kubelet makes the cgroups of classes of pods, and takes them away.
fn remove_parent(world: &World, name: &str) {
    let root = Path::new("/sys/fs/cgroup");
    for hierarchy in tools::names(root) {
        let _ = std::fs::remove_dir(root.join(hierarchy).join(world.name()).join(name));
    }
}

async fn cpus_of_exec(cri: &Cri, id: &str) -> String {
    let status = cri.output(id, &["cat", "/proc/self/status"]).await;
    let line = status.lines().find(|line| line.starts_with("Cpus_allowed_list")).expect("a list");
    line.rsplit('\t').next().expect("a value").to_owned()
}

fn setup() -> Setup {
    let crun = tools::find_program("crun").expect("crun is installed");
    let handler =
        format!("runtime_path = {crun:?}\nruntime_root = \"@ROOT@/runtime/further\"\nmonitor_cgroup = \"pod\"");
    let drop_in = format!(
        r#"
[crio.runtime]
min_injected_gomaxprocs = 2
shared_cpuset = "0"
infra_ctr_cpuset = "0"
[crio.runtime.workloads.management]
activation_annotation = "e2e.io/management"
annotation_prefix = "e2e.io"
allowed_annotations = ["umask.crio.io"]
[crio.runtime.workloads.management.resources]
cpushares = 20
[crio.runtime.runtimes.first]
{handler}
exec_cpu_affinity = "first"
monitor_exec_cgroup = "container"
allowed_annotations = ["cpu-quota.crio.io", "cpu-shared.crio.io", "org.systemd.property."]
[crio.runtime.runtimes.foreign]
{handler}
default_annotations = {{ "e2e.io/default" = "yes" }}
platform_runtime_paths = {{ "linux/{architecture}" = "@ROOT@/tmp/foreign" }}
"#,
        architecture = architecture(),
    );
    Setup { drop_in, ..Setup::default() }
}

#[test]
fn workloads_and_annotations_decide_about_cpus() {
    scenario(setup(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;

        // A workload's shares go over the request's, and one container's annotation over both.
        let annotations = [
            ("e2e.io/management", ""),
            ("e2e.io/own", r#"{"cpushares": 512, "cpulimit": 250}"#),
            ("umask.crio.io", "077"),
        ];
        let managed = pod(world, "managed", "/burstable", &annotations, "").await;
        for (name, shares, quota, threads) in [("plain", 20, None, "2"), ("own", 512, Some(25_000), "")] {
            let made = cri.run(&managed, container(&image, name, 2048, "")).await;
            let cpu = spec(&cri, &made.id).await["linux"]["resources"]["cpu"].clone();
            assert_eq!((cpu["shares"].as_i64(), cpu["quota"].as_i64()), (Some(shares), quota), "{name}");
            let said = cri.output(&made.id, &["sh", "-c", "umask; echo \"$GOMAXPROCS\""]).await;
            assert_eq!(said.trim_end(), format!("0077\n{threads}").trim_end(), "{name}");
        }
        cri.end_pod(&managed.id).await;
        remove_parent(world, "burstable");
        let bad = pod(world, "bad", "", &[("e2e.io/management", ""), ("e2e.io/own", "{")], "").await;
        let message = refused(cri.create(&bad, container(&image, "own", 2, "")).await, Code::InvalidArgument);
        assert!(message.contains("e2e.io/own"), "{message}");
        assert!(
            cri.find(v1::ContainerFilter { pod_sandbox_id: bad.id.clone(), ..Default::default() }).await.is_empty()
        );

        // Shared CPUs come with the container's own, and stay when they change; exec begins on the first of them.
        let shared = pod(world, "shared", "", &[("cpu-shared.crio.io/web", "enable")], "first").await;
        let web = cri.run(&shared, container(&image, "web", 1024, "1")).await;
        let said = cri.output(&web.id, &["sh", "-c", "echo $OPENSHIFT_ISOLATED_CPUS $OPENSHIFT_SHARED_CPUS"]).await;
        assert_eq!((said.as_str(), cpus_of_exec(&cri, &web.id).await.as_str()), ("1 0", "0"));
        let own = cri.container_pid(&web.id).await;
        let allowed = || {
            let status = tools::read(format!("/proc/{own}/status"));
            status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:\t")).map(str::to_owned)
        };
        // The monitor runs on the infra CPUs alone; the container does not inherit that.
        assert_eq!(allowed().as_deref(), Some("0-1"));
        let limits = v1::LinuxContainerResources { cpuset_cpus: "1".to_owned(), ..Default::default() };
        cri.update(&web.id, limits).await.expect("UpdateContainerResources");
        assert_eq!(allowed().as_deref(), Some("0-1"));
        let fraction = cri.run(&shared, container(&image, "fraction", 1000, "1")).await;
        assert_eq!(cpus_of_exec(&cri, &fraction.id).await, "1");
        for monitor in world.find_processes(&format!("-c {}", web.id)) {
            let status = tools::read(format!("/proc/{monitor}/status"));
            assert!(status.contains("Cpus_allowed_list:\t0\n"), "the monitor runs on infra_ctr_cpuset: {status}");
        }

        // What would be a property of a systemd unit is one, or is refused before anything is made.
        let property = [("org.systemd.property.ExecStart", "'x'\nUser=root")];
        let message = refused(cri.run_pod(pod_of(world, "unit", "", &property), "first").await, Code::Unknown);
        assert!(message.contains("org.systemd.property.ExecStart"), "{message}");
        pod(world, "unit", "", &property, "").await;

        // The kubelet tells new sums of limits of pods; a known one is enough.
        let update = async |id: &str| {
            let request = v1::UpdatePodSandboxResourcesRequest { pod_sandbox_id: id.to_owned(), ..Default::default() };
            cri.runtime.clone().update_pod_sandbox_resources(request).await
        };
        update(&shared.id).await.expect("UpdatePodSandboxResources");
        refused(update(&"0".repeat(64)).await, Code::NotFound);
    });
}

#[test]
fn an_image_of_another_platform_keeps_its_runtime_through_a_restart() {
    scenario(setup(), async |world| {
        let crun = tools::find_program("crun").expect("crun is installed");
        let calls = world.path("tmp/calls");
        let program = world.path("tmp/foreign");
        let text = format!("#!/bin/sh\necho \"$@\" >> {}\nexec {} \"$@\"\n", calls.display(), crun.display());
        tools::write_program(&program, &text);
        let image = world.busybox().await;
        let pod = pod(world, "foreign", "", &[], "foreign").await;
        let made = world.cri().run(&pod, container(&image, "web", 2, "")).await;
        let spec = spec(&world.cri(), &made.id).await;
        let annotations: HashMap<String, String> =
            serde_json::from_value(spec["annotations"].clone()).expect("annotations");
        assert_eq!(annotations["platform-runtime-path.crio.io"], program.display().to_string());
        assert_eq!(annotations["e2e.io/default"], "yes");
        world.kill_daemon();
        world.start_daemon().await;
        let cri = world.cri();
        assert_eq!(cri.output(&made.id, &["echo", "there"]).await, "there");
        cri.stop(&made.id, 5).await.expect("StopContainer");
        cri.remove(&made.id).await.expect("RemoveContainer");
        let verbs = calls_of(&calls, &made.id);
        for verb in ["create", "start", "exec", "delete"] {
            assert!(verbs.iter().any(|line| line.contains(verb)), "{verb}: {verbs:?}");
        }
    });
}

fn calls_of(log: &Path, id: &str) -> Vec<String> {
    tools::read(log).lines().filter(|line| line.contains(id)).map(str::to_owned).collect()
}

const FAKES: [(&str, &str); 2] = [("cpus", "/sys/devices/system/cpu"), ("affinity", "/proc/irq/default_smp_affinity")];

/// Files of the node that the scenario's daemon sees in place of the machine's.
fn fake_node(world: &World) {
    for cpu in 0..2 {
        let directory = world.path("cpus").join(format!("cpu{cpu}"));
        for (name, text) in [
            ("power/pm_qos_resume_latency_us", "0\n"),
            ("cpufreq/scaling_governor", "powersave\n"),
            ("cpufreq/scaling_available_governors", "performance powersave\n"),
        ] {
            let file = directory.join(name);
            std::fs::create_dir_all(file.parent().expect("a directory")).expect("a directory");
            tools::write(file, text);
        }
    }
    tools::write(world.path("affinity"), "3\n");
    tools::write(world.path("irqbalance"), "IRQBALANCE_BANNED_CPUS=\"0\"\n");
    for (fake, real) in FAKES {
        tools::run(world.command("mount").arg("--bind").arg(world.path(fake)).arg(real));
    }
}

/// Mask of interrupts, irqbalance's configuration, latency and governor of CPU 1.
fn node_files(world: &World) -> [String; 4] {
    let cpu = world.path("cpus/cpu1");
    [
        world.path("affinity"),
        world.path("irqbalance"),
        cpu.join("power/pm_qos_resume_latency_us"),
        cpu.join("cpufreq/scaling_governor"),
    ]
    .map(|path| tools::read(path).trim_end().to_owned())
}

#[test]
fn cpus_are_tuned_for_a_container_and_put_back_by_the_next_daemon() {
    let crun = tools::find_program("crun").expect("crun is installed");
    let drop_in = format!(
        r#"
[crio.runtime]
irqbalance_config_file = "@ROOT@/irqbalance"
irqbalance_config_restore_file = "@ROOT@/irqbalance.orig"
[crio.runtime.runtimes.fast]
runtime_path = {crun:?}
runtime_root = "@ROOT@/runtime/fast"
monitor_cgroup = "pod"
allowed_annotations = ["cpu-load-balancing.crio.io", "cpu-quota.crio.io", "irq-load-balancing.crio.io",
  "cpu-c-states.crio.io", "cpu-freq-governor.crio.io"]
"#
    );
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        fake_node(world);
        let cri = world.cri();
        let image = world.busybox().await;
        let annotations = [
            ("cpu-load-balancing.crio.io", "disable"),
            ("cpu-quota.crio.io", "disable"),
            ("irq-load-balancing.crio.io", "disable"),
            ("cpu-c-states.crio.io", "max_latency:10"),
            ("cpu-freq-governor.crio.io", "performance"),
        ];
        let untouched = ["3", "IRQBALANCE_BANNED_CPUS=\"0\"", "0", "powersave"].map(str::to_owned);
        let tuned = ["00000001", "IRQBALANCE_BANNED_CPUS=\"0000000e\"", "10", "performance"].map(str::to_owned);
        let put_back = ["00000003", "IRQBALANCE_BANNED_CPUS=\"fffffffc\"", "0", "powersave"].map(str::to_owned);

        // Without permission, and for a fraction of a CPU, annotations do nothing.
        let plain = pod(world, "plain", "", &annotations, "").await;
        cri.run(&plain, container(&image, "web", 1024, "1")).await;
        let fast = pod(world, "fast", "", &annotations, "fast").await;
        let part = cri.run(&fast, container(&image, "part", 512, "1")).await;
        assert_eq!(node_files(world), untouched);
        cri.remove(&part.id).await.expect("RemoveContainer");

        let mut config = container(&image, "whole", 1024, "1");
        if let Some(limits) = config.linux.as_mut().and_then(|linux| linux.resources.as_mut()) {
            (limits.cpu_period, limits.cpu_quota) = (100_000, 100_000);
        }
        let whole = cri.create(&fast, config).await.expect("CreateContainer");
        assert_eq!(node_files(world), untouched, "nothing happens before the start");
        cri.start(&whole.id).await.expect("StartContainer");
        assert_eq!(node_files(world), tuned);
        let cgroup = |controller: &str, file: &str| {
            let path = Path::new("/sys/fs/cgroup").join(controller).join(world.name());
            tools::read(path.join(format!("crio-{}", whole.id)).join(file)).trim().to_owned()
        };
        if Path::new("/sys/fs/cgroup/cpuset").is_dir() {
            assert_eq!(cgroup("cpuset", "cpuset.sched_load_balance"), "0");
            assert_eq!(cgroup("cpu", "cpu.cfs_quota_us"), "-1");
        }
        // What was asked is still what is told: the kubelet compares.
        let status = cri.status(&whole.id).await.expect("ContainerStatus");
        let limits = status.resources.and_then(|all| all.linux).expect("resources");
        assert_eq!((limits.cpu_quota, limits.cpu_shares), (100_000, 1024));

        // The daemon dies and the container ends meanwhile: the next one puts everything back.
        let pid = cri.container_pid(&whole.id).await;
        world.kill_daemon();
        assert_eq!(node_files(world), tuned);
        world.kill_process(pid);
        world.start_daemon().await;
        let cri = world.cri();
        cri.exit(&whole.id).await;
        tools::becomes("the node's CPUs", || node_files(world), |found| *found == put_back).await;

        // A governor that is none fails the start, and changes nothing.
        let odd = pod(world, "odd", "", &[("cpu-freq-governor.crio.io", "warp"), annotations[3]], "fast").await;
        let made = cri.create(&odd, container(&image, "web", 1024, "1")).await.expect("CreateContainer");
        let message = refused(cri.start(&made.id).await, Code::Unknown);
        assert!(message.contains("governor warp is not available for CPU 1"), "{message}");
        assert_eq!(node_files(world), put_back);
        let bad = pod(world, "bad", "", &[("cpu-c-states.crio.io", "sometimes")], "fast").await;
        refused(cri.create(&bad, container(&image, "web", 1024, "1")).await, Code::InvalidArgument);
        for (_, real) in FAKES {
            tools::run(world.command("umount").arg(real));
        }
    });
}

#[test]
fn classes_of_block_io_become_limits_and_those_of_rdt_are_refused() {
    let drop_in = "[crio.runtime]\nblockio_config_file = \"@ROOT@/conf.d/../blockio.yaml\"\nblockio_reload = true\n";
    let disk =
        tools::names("/sys/block").into_iter().find(|name| !name.starts_with("loop") && !name.starts_with("ram"));
    let Some(disk) = disk.filter(|disk| Path::new("/dev").join(disk).exists()) else {
        tools::say("*** SKIPPED: no disk to limit ***");
        return;
    };
    let number = tools::read(format!("/sys/block/{disk}/dev")).trim().to_owned();
    let write = |path: &Path, rate: &str| {
        let text = format!("Classes:\n  slow:\n  - Devices: [/dev/{}*]\n    ThrottleReadBps: {rate}\n", &disk[..2]);
        tools::write(path, text);
    };
    let file = std::env::temp_dir().join(format!("e2e-blockio-{}.yaml", std::process::id()));
    write(&file, "10M");
    let drop_in = drop_in.replace("@ROOT@/conf.d/../blockio.yaml", &file.display().to_string());
    scenario(Setup { drop_in, ..Setup::default() }, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let annotations = [("blockio.resources.beta.kubernetes.io/pod", "slow")];
        let slow = pod(world, "slow", "", &annotations, "").await;
        for (name, rate) in [("first", "10M"), ("second", "20M")] {
            write(&file, rate);
            let made = cri.run(&slow, container(&image, name, 2, "")).await;
            let rate = rate.replace('M', "000000");
            let spec = spec(&cri, &made.id).await;
            let limits =
                spec.pointer("/linux/resources/blockIO/throttleReadBpsDevice").and_then(|list| list.as_array());
            let told = limits.expect("limits").iter().any(|limit| {
                format!("{}:{}", limit["major"], limit["minor"]) == number
                    && limit["rate"].as_u64() == rate.parse().ok()
            });
            assert!(told, "{limits:?}");
            let cgroup = Path::new("/sys/fs/cgroup/blkio").join(world.name()).join(format!("crio-{}", made.id));
            if cgroup.is_dir() {
                let kernel = tools::read(cgroup.join("blkio.throttle.read_bps_device"));
                assert!(kernel.lines().any(|line| line == format!("{number} {rate}")), "{kernel}");
            }
        }
        let fast = pod(world, "cache", "", &[("rdt.resources.beta.kubernetes.io/pod", "gold")], "").await;
        let message = refused(cri.create(&fast, container(&image, "web", 2, "")).await, Code::InvalidArgument);
        assert!(message.contains("RDT disabled"), "{message}");
    });
    let _ = std::fs::remove_file(file);
}

#[test]
fn pods_that_are_not_trusted_have_a_runtime_of_their_own() {
    let drop_in =
        "[crio.runtime]\nruntime_untrusted_workload = \"/usr/sbin/runc\"\ndefault_workload_trust = \"trusted\"\n";
    scenario(Setup { drop_in: drop_in.to_owned(), ..Setup::default() }, async |world| {
        let cri = world.cri();
        for (name, trusted, handler) in
            [("plain", None, ""), ("good", Some("true"), ""), ("bad", Some("false"), "untrusted")]
        {
            let mut config = world.pod_config(name);
            if let Some(value) = trusted {
                config.annotations.insert("io.kubernetes.cri-o.TrustedSandbox".to_owned(), value.to_owned());
            }
            let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
            assert_eq!(cri.pod_status(&pod.id).await.expect("PodSandboxStatus").runtime_handler, handler, "{name}");
            cri.end_pod(&pod.id).await;
        }
    });
}
