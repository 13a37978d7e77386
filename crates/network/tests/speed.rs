//! How long attaching takes, and how much of that is the plugins'. Not a test: `--ignored --nocapture` prints figures.

// A measurement that cannot be set up has failed.
#![allow(clippy::unwrap_used)]

mod common;

use std::time::{Duration, Instant};

use common::{attachment, id, on_node, sh};
use network::{HostPorts, PortMapping, Protocol};
use sys::namespace::{self, Kinds, Wanted};

const ROUNDS: u8 = 40;

fn show(what: &str, mut times: Vec<Duration>) {
    times.sort();
    println!("{what}: median {:.2?} min {:.2?} max {:.2?}", times[times.len() / 2], times[0], times[times.len() - 1]);
}

#[test]
#[ignore = "prints figures"]
fn pins() {
    let dir = tempfile::tempdir().unwrap();
    for (what, kinds) in [
        ("net, ipc, uts", Kinds::ALL),
        ("net", Kinds { net: true, ..Kinds::default() }),
        ("ipc, uts", Kinds { net: false, ..Kinds::ALL }),
    ] {
        let (mut made, mut gone) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let started = Instant::now();
            let wanted = Wanted { kinds, hostname: Some("speed"), sysctls: &[] };
            let pins = namespace::pin(dir.path(), "n", &wanted).unwrap();
            made.push(started.elapsed());
            let started = Instant::now();
            for pin in [pins.net, pins.ipc, pins.uts].into_iter().flatten() {
                namespace::unpin(&pin).unwrap();
            }
            gone.push(started.elapsed());
            std::thread::sleep(Duration::from_millis(20));
        }
        show(&format!("pin {what}"), made);
        show(&format!("unpin {what}"), gone);
    }
}

#[test]
#[ignore = "prints figures"]
fn add_and_del() {
    on_node(async |node| {
        for (what, plugins) in [("bridge", ""), ("bridge, portmap", r#",{"type":"portmap"}"#)] {
            let body = node.bridge_conf("1.0.0", 40).replace(r#""ipMasq":true,"#, "");
            let conf = format!(r#"{{"cniVersion":"1.0.0","name":"speed","plugins":[{{{body}}}{plugins}]}}"#);
            node.write("conf/10.conflist", &conf);
            let network = node.network().await;
            let (mut add, mut del) = (Vec::new(), Vec::new());
            for number in 0..ROUNDS {
                let netns = node.new_netns(&format!("s{number}"));
                let attachment = attachment(number, Some(netns.clone()));
                let started = Instant::now();
                network.add(&attachment).await.unwrap();
                add.push(started.elapsed());
                let started = Instant::now();
                network.del(&attachment).await.unwrap();
                del.push(started.elapsed());
                namespace::unpin(&netns).unwrap();
            }
            show(&format!("ADD {what}"), add);
            show(&format!("DEL {what}"), del);
        }
        // The same bridge call without us: what the plugin and its IPAM plugin need by themselves, from exec to exit.
        let body = node.bridge_conf("1.0.0", 40).replace(r#""ipMasq":true,"#, "");
        let conf = format!(r#"{{"cniVersion":"1.0.0","name":"speed",{body}}}"#);
        node.write("stdin", &conf);
        let (mut add, mut del) = (Vec::new(), Vec::new());
        for number in 0..ROUNDS {
            let netns = node.new_netns(&format!("d{number}"));
            for (verb, times) in [("ADD", &mut add), ("DEL", &mut del)] {
                let mut command = std::process::Command::new("/usr/lib/cni/bridge");
                command.env("CNI_COMMAND", verb).env("CNI_CONTAINERID", id(number).as_str());
                command.env("CNI_NETNS", &netns).env("CNI_IFNAME", "eth0").env("CNI_PATH", common::PLUGINS);
                command.stdin(std::fs::File::open(node.path("stdin")).unwrap()).stdout(std::process::Stdio::null());
                let started = Instant::now();
                assert!(command.status().unwrap().success());
                times.push(started.elapsed());
            }
            namespace::unpin(&netns).unwrap();
        }
        show("plugin bridge alone, ADD", add);
        show("plugin bridge alone, DEL", del);
    });
}

#[test]
#[ignore = "prints figures"]
fn calls_of_a_plugin_that_does_nothing() {
    on_node(async |node| {
        // A script cannot be fast; /bin/true answers nothing, which VERSION and DEL allow.
        sh(&format!("cp /bin/true '{}'", node.path("bin/nothing").display()), "");
        node.write("conf/10.conf", r#"{"cniVersion":"0.1.0","name":"nothing","type":"nothing"}"#);
        let network = node.network().await;
        let mut times = Vec::new();
        let mut alone = Vec::new();
        for _ in 0..ROUNDS {
            let started = Instant::now();
            network.del(&attachment(1, None)).await.unwrap();
            times.push(started.elapsed());
            let started = Instant::now();
            assert!(std::process::Command::new("/bin/true").status().unwrap().success());
            alone.push(started.elapsed());
        }
        show("a call of /bin/true as plugin", times);
        show("/bin/true alone", alone);
    });
}

#[test]
#[ignore = "prints figures"]
fn host_ports() {
    on_node(async |node| {
        let started = Instant::now();
        let nft = HostPorts::detect().await.unwrap();
        println!("detect {:.2?}", started.elapsed());
        let iptables = HostPorts::detect_iptables().await.unwrap();
        sh("ip link add tb9 type bridge && ip addr add 10.9.0.1/24 dev tb9 && ip link set tb9 up", "");
        let _ = node;
        for (what, ports) in [("nftables", nft), ("iptables", iptables)] {
            let (mut add, mut remove) = (Vec::new(), Vec::new());
            for number in 0..ROUNDS {
                let mapping =
                    |host_port| PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port, host_ip: None };
                let mappings = [mapping(8000 + u16::from(number)), mapping(9000 + u16::from(number))];
                let ips = ["10.9.0.2".parse().unwrap(), "fd00:9::2".parse().unwrap()];
                let started = Instant::now();
                ports.add(&id(number), &ips, &mappings).await.unwrap();
                add.push(started.elapsed());
                let started = Instant::now();
                ports.remove(&id(number), &mappings).await.unwrap();
                remove.push(started.elapsed());
            }
            show(&format!("{what}: add two ports of both families"), add);
            show(&format!("{what}: remove"), remove);
        }
    });
}
