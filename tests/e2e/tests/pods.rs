//! Pods: their network, names, memory and processes, as seen from the node and from inside.
#![forbid(unsafe_code)]

use std::collections::HashMap;

use cri_api::v1;
use e2e::cri::{WAIT, container_config, refused};
use e2e::{Cri, Setup, World, http, scenario, tools};
use tonic::Code;

/// A web server that says `text` to everybody.
fn web_server(image: &str, name: &str, port: u16, text: &str) -> v1::ContainerConfig {
    let serve = format!("mkdir -p /tmp/www && echo {text} > /tmp/www/index.html && httpd -p {port} -h /tmp/www");
    container_config(image, name, &["sh", "-c", &format!("{serve}; {}", WAIT[2])])
}

/// The page at an address, as somebody on the node gets it; servers need a moment to listen.
async fn page(world: &World, address: &str) -> String {
    tools::eventually(&format!("a page from {address}"), async || {
        let answer = world.in_network(|| http::send(address, "GET", "/", &[], b"")).ok()?;
        Some(String::from_utf8_lossy(&answer.body).trim().to_owned())
    })
    .await
}

fn namespaces(config: &mut v1::PodSandboxConfig) -> &mut v1::NamespaceOption {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options.get_or_insert_default()
}

/// A container's namespaces are those of its pod, said again as the kubelet does.
fn with_namespaces(mut config: v1::ContainerConfig, of: &mut v1::PodSandboxConfig) -> v1::ContainerConfig {
    let linux = config.linux.get_or_insert_default();
    linux.security_context.get_or_insert_default().namespace_options = Some(namespaces(of).clone());
    config
}

#[test]
fn a_pod_has_an_address_and_its_containers_share_it() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("web"), "").await.expect("RunPodSandbox");
        let ip = cri.pod_ip(&pod.id).await;
        assert!(ip.starts_with("10.99.0."), "{ip}");
        let one = cri.run(&pod, web_server(&image, "one", 8080, "one")).await;
        let two = cri.run(&pod, container_config(&image, "two", WAIT)).await;
        assert_eq!(page(world, &format!("{ip}:8080")).await, "one");
        assert_eq!(cri.output(&two.id, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"]).await, "one");
        for container in [&one, &two] {
            let addresses = cri.output(&container.id, &["ip", "-o", "-4", "address", "show", "dev", "eth0"]).await;
            assert!(addresses.contains(&format!("{ip}/24")), "{addresses}");
        }
        // Another pod is another address, and they reach each other.
        let other = cri.run_pod(world.pod_config("other"), "").await.expect("RunPodSandbox");
        assert_ne!(cri.pod_ip(&other.id).await, ip);
        let client = cri.run(&other, container_config(&image, "client", WAIT)).await;
        assert_eq!(cri.output(&client.id, &["wget", "-q", "-O", "-", &format!("http://{ip}:8080/")]).await, "one");
        assert!(
            cri.exec(&client.id, &["wget", "-q", "-O", "-", "http://127.0.0.1:8080/"], 20)
                .await
                .is_ok_and(|a| a.exit_code != 0)
        );
        // A stopped pod is off the network at once.
        cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        assert_eq!(
            cri.pod_status(&pod.id).await.expect("PodSandboxStatus").state(),
            v1::PodSandboxState::SandboxNotready
        );
        assert!(world.snapshot().of_kind("lease").iter().all(|lease| *lease != ip), "its address is free again");
        for container in [&one, &two] {
            assert_eq!(cri.exit(&container.id).await.state(), v1::ContainerState::ContainerExited);
        }
        refused(cri.create(&pod, container_config(&image, "late", WAIT)).await, Code::Unknown);
    });
}

#[test]
fn a_pod_has_addresses_of_both_families_where_the_network_gives_them() {
    let network = r#"{"cniVersion": "1.0.0", "name": "dual", "plugins": [
        {"type": "bridge", "bridge": "pods0", "isGateway": true,
         "ipam": {"type": "host-local", "dataDir": "@ROOT@/ipam",
                  "ranges": [[{"subnet": "10.99.0.0/24"}], [{"subnet": "fd99::/64"}]],
                  "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]}}]}"#;
    let setup = Setup { network: Some(network.to_owned()), ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut config = world.pod_config("dual");
        config.port_mappings = vec![v1::PortMapping {
            protocol: v1::Protocol::Tcp.into(),
            container_port: 80,
            host_port: 18090,
            host_ip: String::new(),
        }];
        let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
        let network = cri.pod_status(&pod.id).await.expect("PodSandboxStatus").network.expect("a network");
        assert!(network.ip.starts_with("10.99.0."), "{network:?}");
        assert_eq!(network.additional_ips.len(), 1, "{network:?}");
        let second = network.additional_ips[0].ip.clone();
        assert!(second.starts_with("fd99::"), "{network:?}");
        let mut server = web_server(&image, "web", 80, "both");
        server.command[2] = server.command[2].replace("-p 80", "-p [::]:80");
        cri.run(&pod, server).await;
        for address in [format!("{}:80", network.ip), format!("[{second}]:80"), "127.0.0.1:18090".to_owned()] {
            assert_eq!(page(world, &address).await, "both", "{address}");
        }
        world.kill_daemon();
        world.start_daemon().await;
        assert_eq!(cri.pod_status(&pod.id).await.expect("PodSandboxStatus").network, Some(network));
    });
}

#[test]
fn host_ports_answer_on_every_address_of_the_node() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mapping = |host_port, host_ip: &str| v1::PortMapping {
            protocol: v1::Protocol::Tcp.into(),
            container_port: 80,
            host_port,
            host_ip: host_ip.to_owned(),
        };
        let mut config = world.pod_config("web");
        config.port_mappings = vec![mapping(18080, ""), mapping(18081, world.node_ip())];
        let pod = cri.run_pod(config, "").await.expect("RunPodSandbox");
        let server = cri.run(&pod, web_server(&image, "web", 80, "mapped")).await;
        let node = world.node_ip();
        assert_eq!(page(world, "127.0.0.1:18080").await, "mapped");
        assert_eq!(page(world, &format!("{node}:18080")).await, "mapped");
        assert_eq!(page(world, &format!("{node}:18081")).await, "mapped");
        let elsewhere = world.in_network(|| http::send("127.0.0.1:18081", "GET", "/", &[], b""));
        assert!(elsewhere.is_err(), "a mapping of one address answers on another: {elsewhere:?}");
        // From another pod, and from the pod itself through the node.
        let other = cri.run_pod(world.pod_config("client"), "").await.expect("RunPodSandbox");
        let client = cri.run(&other, container_config(&image, "client", WAIT)).await;
        for container in [&client, &server] {
            let url = format!("http://{node}:18080/");
            assert_eq!(cri.output(&container.id, &["timeout", "5", "wget", "-q", "-O", "-", &url]).await, "mapped");
        }
        cri.stop_pod(&pod.id).await.expect("StopPodSandbox");
        for address in ["127.0.0.1:18080".to_owned(), format!("{node}:18080"), format!("{node}:18081")] {
            let closed = world.in_network(|| http::send(&address, "GET", "/", &[], b""));
            assert!(closed.is_err(), "{address} still answers");
        }
        let rules = world.snapshot().of_kind("nft").join("\n");
        assert!(!rules.contains("18080") && !rules.contains("18081"), "{rules}");
    });
}

#[test]
fn a_pod_of_the_host_network_is_the_node() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let before = world.snapshot();
        let mut config = world.pod_config("host");
        namespaces(&mut config).network = v1::NamespaceMode::Node.into();
        let pod = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
        let server = with_namespaces(web_server(&image, "web", 8099, "host"), &mut config);
        let container = cri.run(&pod, server).await;
        assert_eq!(page(world, "127.0.0.1:8099").await, "host");
        assert_eq!(cri.pod_ip(&pod.id).await, "", "the node's address is the kubelet's to tell");
        let addresses = cri.output(&container.id, &["ip", "-o", "-4", "address"]).await;
        assert!(addresses.contains(world.node_ip()), "{addresses}");
        let hostname = tools::run(&mut world.command("hostname"));
        assert_eq!(cri.output(&container.id, &["hostname"]).await, hostname.trim());
        assert_eq!(cri.output(&container.id, &["cat", "/etc/hosts"]).await, tools::read("/etc/hosts").trim_end());
        let since = world.snapshot().since(&before);
        assert!(since.of_kind("link").is_empty() && since.of_kind("lease").is_empty(), "{since}");
        assert!(since.of_kind("pin").iter().all(|pin| !pin.starts_with("net")), "{since}");
    });
}

#[test]
fn names_resolvers_memory_and_sysctls_are_the_pods_own() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let mut config = world.pod_config("settings");
        config.hostname = "inside-of-it".to_owned();
        config.dns_config = Some(v1::DnsConfig {
            servers: vec!["192.0.2.53".to_owned(), "192.0.2.54".to_owned()],
            searches: vec!["one.example".to_owned(), "two.example".to_owned()],
            options: vec!["ndots:5".to_owned()],
        });
        let sysctls = [("net.ipv4.ip_unprivileged_port_start", "100"), ("kernel.shm_rmid_forced", "1")];
        config.linux.as_mut().expect("linux").sysctls =
            sysctls.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect::<HashMap<_, _>>();
        let pod = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
        let one = cri.run(&pod, container_config(&image, "one", WAIT)).await;
        let two = cri.run(&pod, container_config(&image, "two", WAIT)).await;
        for container in [&one, &two] {
            assert_eq!(cri.output(&container.id, &["hostname"]).await, "inside-of-it");
            assert_eq!(cri.output(&container.id, &["cat", "/etc/hostname"]).await, "inside-of-it");
            assert_eq!(cri.output(&container.id, &["sh", "-c", "echo $HOSTNAME"]).await, "inside-of-it");
            let resolvers = cri.output(&container.id, &["cat", "/etc/resolv.conf"]).await;
            let expected =
                ["search one.example two.example", "nameserver 192.0.2.53", "nameserver 192.0.2.54", "options ndots:5"];
            assert_eq!(resolvers.lines().collect::<Vec<_>>(), expected);
            for (key, value) in sysctls {
                let file = format!("/proc/sys/{}", key.replace('.', "/"));
                assert_eq!(cri.output(&container.id, &["cat", &file]).await, value);
            }
            let memory = cri.output(&container.id, &["df", "-k", "/dev/shm"]).await;
            let kibibytes = memory.lines().last().and_then(|line| line.split_whitespace().nth(1)).expect("a size");
            assert_eq!(kibibytes, "65536", "{memory}");
        }
        cri.output(&one.id, &["sh", "-c", "echo shared > /dev/shm/note"]).await;
        assert_eq!(cri.output(&two.id, &["cat", "/dev/shm/note"]).await, "shared");
        // Processes are each container's own.
        assert_eq!(cri.output(&two.id, &["sh", "-c", "ps | grep -c '[s]leep 3600'"]).await, "2");
        // A parameter of the node itself is nobody's to set; the pod runs without it, as with CRI-O.
        let node_wide = "/proc/sys/kernel/panic";
        let before = tools::read(node_wide);
        let mut config = world.pod_config("sysctl");
        config.linux.as_mut().expect("linux").sysctls = HashMap::from([("kernel.panic".to_owned(), "4321".to_owned())]);
        cri.run_pod(config, "").await.expect("RunPodSandbox");
        assert_eq!(tools::read(node_wide), before);
        let mut wrong = world.pod_config("hostname");
        wrong.hostname = "not a name".to_owned();
        refused(cri.run_pod(wrong, "").await, Code::InvalidArgument);
    });
}

/// The processes of a world whose command line has the word.
fn count_processes(world: &World, word: &str) -> usize {
    world.snapshot().of_kind("process").iter().filter(|process| process.contains(word)).count()
}

#[test]
fn a_pause_process_runs_only_where_processes_are_shared() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let plain = cri.run_pod(world.pod_config("plain"), "").await.expect("RunPodSandbox");
        assert_eq!(count_processes(world, ""), 0, "{}", world.snapshot());
        assert_eq!(cri.pod_info(&plain.id).await["pid"], serde_json::Value::Null);

        for handler in ["crun", "runc", "crun-conmon"] {
            let mut config = world.pod_config(&format!("shared-{handler}"));
            namespaces(&mut config).pid = v1::NamespaceMode::Pod.into();
            let pod = cri.run_pod(config.clone(), handler).await.expect("RunPodSandbox");
            // For a moment two: before a shell's child becomes another program it looks like the shell.
            tools::becomes("pause runs", || count_processes(world, "/pause"), |count| *count == 1).await;
            let one = cri.run(&pod, with_namespaces(container_config(&image, "one", WAIT), &mut config)).await;
            let two = cri.run(&pod, with_namespaces(container_config(&image, "two", WAIT), &mut config)).await;
            assert_eq!(
                cri.output(&one.id, &["cat", "/proc/1/cmdline"]).await.replace('\0', " ").trim(),
                "/bin/sh /pause"
            );
            assert_eq!(cri.output(&two.id, &["sh", "-c", "ps | grep -v grep | grep -c \"trap 'exit 0'\""]).await, "2");
            assert_eq!(
                cri.find(v1::ContainerFilter { pod_sandbox_id: pod.id.clone(), ..Default::default() }).await.len(),
                2
            );
            cri.end_pod(&pod.id).await;
            tools::becomes("pause ends", || count_processes(world, "/pause"), |count| *count == 0).await;
        }
        // The node's processes.
        let mut config = world.pod_config("node");
        namespaces(&mut config).pid = v1::NamespaceMode::Node.into();
        let pod = cri.run_pod(config.clone(), "").await.expect("RunPodSandbox");
        let config = with_namespaces(container_config(&image, "look", WAIT), &mut config);
        let container = cri.run(&pod, config).await;
        let daemon = format!("/proc/{}/cmdline", world.daemon_pid());
        assert!(cri.output(&container.id, &["cat", &daemon]).await.contains("crio"));
    });
}

#[test]
fn a_pause_process_runs_always_where_the_operator_wants_it() {
    let setup = Setup { drop_in: "[crio.runtime]\ndrop_infra_ctr = false\n".to_owned(), ..Setup::default() };
    scenario(setup, async |world| {
        let cri = world.cri();
        let image = world.busybox().await;
        let pod = cri.run_pod(world.pod_config("infra"), "").await.expect("RunPodSandbox");
        tools::becomes("pause runs", || count_processes(world, "/pause"), |count| *count == 1).await;
        assert!(cri.pod_info(&pod.id).await["pid"].as_i64().is_some_and(|pid| pid > 0));
        let container = cri.run(&pod, container_config(&image, "main", WAIT)).await;
        // Not shared all the same.
        assert_ne!(
            cri.output(&container.id, &["cat", "/proc/1/cmdline"]).await.replace('\0', " ").trim(),
            "/bin/sh /pause"
        );
        assert_eq!(cri.containers(v1::ContainerFilter::default()).await.len(), 1, "the pause container is not listed");
        restart_and_look(world, &cri, &pod.id).await;
    });
}

async fn restart_and_look(world: &mut World, cri: &Cri, pod: &str) {
    world.kill_daemon();
    world.start_daemon().await;
    tools::becomes("pause runs", || count_processes(world, "/pause"), |count| *count == 1).await;
    assert_eq!(cri.pod_status(pod).await.expect("PodSandboxStatus").state(), v1::PodSandboxState::SandboxReady);
}

#[test]
fn pods_are_found_by_every_filter() {
    scenario(Setup::default(), async |world| {
        let cri = world.cri();
        let mut ids = Vec::new();
        for (name, color) in [("one", "red"), ("two", "blue"), ("three", "blue")] {
            let mut config = world.pod_config(name);
            config.labels.insert("color".to_owned(), color.to_owned());
            config.annotations.insert("note".to_owned(), format!("of {name}"));
            ids.push(cri.run_pod(config, "").await.expect("RunPodSandbox").id);
        }
        cri.stop_pod(&ids[2]).await.expect("StopPodSandbox");
        let labels = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let state = |state: v1::PodSandboxState| Some(v1::PodSandboxStateValue { state: state.into() });
        let none = v1::PodSandboxFilter::default;
        let cases: [(v1::PodSandboxFilter, &[usize]); 8] = [
            (none(), &[0, 1, 2]),
            (v1::PodSandboxFilter { id: ids[1].clone(), ..none() }, &[1]),
            (v1::PodSandboxFilter { id: ids[1][..13].to_owned(), ..none() }, &[1]),
            (v1::PodSandboxFilter { id: "0123".to_owned(), ..none() }, &[]),
            (v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxReady), ..none() }, &[0, 1]),
            (v1::PodSandboxFilter { state: state(v1::PodSandboxState::SandboxNotready), ..none() }, &[2]),
            (v1::PodSandboxFilter { label_selector: labels(&[("color", "blue")]), ..none() }, &[1, 2]),
            (
                v1::PodSandboxFilter {
                    label_selector: labels(&[("color", "blue"), ("pod", "two")]),
                    state: state(v1::PodSandboxState::SandboxReady),
                    ..none()
                },
                &[1],
            ),
        ];
        for (filter, expected) in cases {
            let mut found: Vec<String> = cri.find_pods(filter.clone()).await.into_iter().map(|pod| pod.id).collect();
            found.sort();
            let mut expected: Vec<String> = expected.iter().map(|index| ids[*index].clone()).collect();
            expected.sort();
            assert_eq!(found, expected, "{filter:?}");
        }
        let listed = cri.pods().await;
        let one = listed.iter().find(|pod| pod.id == ids[0]).expect("is listed");
        assert_eq!(one.metadata.as_ref().map(|metadata| metadata.name.as_str()), Some("one"));
        assert_eq!(one.annotations["note"], "of one");
        assert!(one.created_at > 0);
        refused(cri.pod_status("0123456789").await, Code::NotFound);
    });
}
