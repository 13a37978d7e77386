//! Host ports with real firewalls, bridges and connections.

// A test that cannot be set up has failed.
#![allow(clippy::unwrap_used)]

mod common;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{NodeRef, attachment, id, on_node, sh};
use network::{HostPorts, PortMapping, Protocol};

const SHORT: Duration = Duration::from_millis(700);

/// A sandbox on the bridge with servers that tell its number, on TCP 80 and UDP 53 of both families.
struct Sandbox {
    netns: PathBuf,
    ips: Vec<IpAddr>,
}

async fn sandbox(node: &NodeRef, number: u8) -> Sandbox {
    let body = node.bridge_conf("1.0.0", 30);
    node.write("conf/10.conflist", &format!(r#"{{"cniVersion":"1.0.0","name":"ports","plugins":[{{{body}}}]}}"#));
    let netns = node.new_netns(&format!("box{number}"));
    let network = node.network().await;
    let ips = network.add(&attachment(number, Some(netns.clone()))).await.unwrap().ips;
    let (tcp, udp) = node.inside(&netns, || {
        // Both families by the unspecified IPv6 address.
        (TcpListener::bind("[::]:80").unwrap(), UdpSocket::bind("[::]:53").unwrap())
    });
    // The threads end with the test's process; they hold nothing but a socket.
    std::thread::spawn(move || {
        for stream in tcp.incoming().flatten() {
            let mut stream = stream;
            let peer = stream.peer_addr().map(|peer| peer.ip().to_canonical().to_string()).unwrap_or_default();
            let _ = write!(stream, "{number} {peer}");
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 16];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(number.to_string().as_bytes(), peer);
        }
    });
    // IPv6 addresses, the link-local ones among them, cannot be used before their duplicate detection is over.
    let settled = |device| sh(&format!("ip -6 -o addr show dev {device} tentative"), "").is_empty();
    while !settled("tb30") || !node.inside(&netns, || settled("eth0")) {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Sandbox { netns, ips }
}

/// What the server behind an address says, or nothing.
fn ask(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, SHORT).ok()?;
    stream.set_read_timeout(Some(SHORT)).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text)
}

/// The number of the sandbox behind an address.
fn who(address: &str) -> Option<String> {
    ask(address).map(|text| text.split(' ').next().unwrap().to_owned())
}

fn who_udp(address: &str) -> Option<String> {
    let address: SocketAddr = address.parse().unwrap();
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(SHORT)).unwrap();
    socket.connect(address).unwrap();
    socket.send(b"?").ok()?;
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer).ok()?;
    Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

fn mapping(protocol: Protocol, host_port: u16, container_port: u16, host_ip: Option<&str>) -> PortMapping {
    PortMapping { protocol, container_port, host_port, host_ip: host_ip.map(|ip| ip.parse().unwrap()) }
}

/// The node gets an address and a neighbour that reaches it from outside.
fn outside(node: &NodeRef) -> PathBuf {
    let netns = node.new_netns("outside");
    sh(&format!("ip link add up0 type veth peer name up1 && ip link set up1 netns '{}'", netns.display()), "");
    sh("ip addr add 192.0.2.1/24 dev up0 && ip -6 addr add fd00:99::1/64 dev up0 nodad && ip link set up0 up", "");
    node.inside(&netns, || {
        sh("ip addr add 192.0.2.9/24 dev up1 && ip -6 addr add fd00:99::9/64 dev up1 nodad && ip link set up1 up", "")
    });
    sh("echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding", "");
    netns
}

fn route_localnet() -> String {
    std::fs::read_to_string("/proc/sys/net/ipv4/conf/tb30/route_localnet").unwrap().trim().to_owned()
}

/// Tries to reach the node's 127.0.0.1 as a sandbox that does whatever root of its namespace can.
fn attack(node: &NodeRef, netns: &Path, port: u16) -> Option<String> {
    node.inside(netns, || {
        sh(
            "echo 1 > /proc/sys/net/ipv4/conf/eth0/route_localnet
             ip route del local 127.0.0.0/8 dev lo table local 2>/dev/null || true
             ip addr del 127.0.0.1/8 dev lo 2>/dev/null || true
             ip route replace 127.0.0.1/32 via 10.30.0.1",
            "",
        );
        ask(&format!("127.0.0.1:{port}"))
    })
}

async fn ports_lead_into_sandboxes(node: NodeRef, ports: HostPorts) {
    let client = outside(&node);
    let first = sandbox(&node, 1).await;
    let second = sandbox(&node, 2).await;
    let mine = [
        mapping(Protocol::Tcp, 8080, 80, None),
        mapping(Protocol::Udp, 8053, 53, None),
        mapping(Protocol::Tcp, 0, 81, None),
    ];
    let theirs =
        [mapping(Protocol::Tcp, 8081, 80, Some("192.0.2.1")), mapping(Protocol::Tcp, 8082, 80, Some("127.0.0.1"))];
    assert_eq!(who("192.0.2.1:8080"), None);
    ports.add(&id(1), &first.ips, &mine).await.unwrap();
    ports.add(&id(2), &second.ips, &theirs).await.unwrap();
    let one = || Some("1".to_owned());
    let two = || Some("2".to_owned());
    // From the node: its addresses and loopback.
    for address in ["192.0.2.1:8080", "127.0.0.1:8080", "127.0.0.9:8080", "10.30.0.1:8080", "[fd00:99::1]:8080"] {
        assert_eq!(who(address), one(), "{address}");
    }
    for address in ["192.0.2.1:8053", "127.0.0.1:8053", "[fd00:99::1]:8053"] {
        assert_eq!(who_udp(address), one(), "{address}");
    }
    for (address, expected) in [
        ("192.0.2.1:8081", two()),
        ("127.0.0.1:8081", None),
        ("10.30.0.1:8081", None),
        ("127.0.0.1:8082", two()),
        ("192.0.2.1:8082", None),
    ] {
        assert_eq!(who(address), expected, "{address}");
    }
    // From outside: the client's address is not hidden.
    let seen = node.inside(&client, || ask("192.0.2.1:8080"));
    assert_eq!(seen.as_deref(), Some("1 192.0.2.9"));
    assert_eq!(node.inside(&client, || who("[fd00:99::1]:8080")), one());
    assert_eq!(node.inside(&client, || who_udp("192.0.2.1:8053")), one());
    assert_eq!(node.inside(&client, || who("192.0.2.1:8082")), None);
    // From the sandbox to itself by way of the node, and from its neighbour.
    assert_eq!(node.inside(&first.netns, || who("192.0.2.1:8080")), one());
    assert_eq!(node.inside(&first.netns, || who("[fd00:99::1]:8080")), one());
    assert_eq!(node.inside(&second.netns, || who("192.0.2.1:8080")), one());

    // Opening loopback has opened nothing to neighbours.
    assert_eq!(route_localnet(), "1");
    let secret = TcpListener::bind("127.0.0.1:7777").unwrap();
    std::thread::spawn(move || secret.incoming().flatten().for_each(|mut stream| drop(write!(stream, "secret"))));
    assert_eq!(ask("127.0.0.1:7777").as_deref(), Some("secret"));
    assert_eq!(attack(&node, &second.netns, 7777), None);

    // Again is fine; with another address it moves.
    ports.add(&id(1), &first.ips, &mine).await.unwrap();
    assert_eq!(who("127.0.0.1:8080"), one());
    // A leftover does not hold the port.
    ports.add(&id(3), &second.ips, &mine[..1]).await.unwrap();
    assert_eq!(who("192.0.2.1:8080"), two());
    ports.remove(&id(3), &mine[..1]).await.unwrap();

    ports.remove(&id(1), &mine).await.unwrap();
    ports.remove(&id(1), &mine).await.unwrap();
    for address in ["192.0.2.1:8080", "127.0.0.1:8080", "[fd00:99::1]:8080"] {
        assert_eq!(who(address), None, "{address}");
    }
    assert_eq!(who_udp("192.0.2.1:8053"), None);
    assert_eq!(who("192.0.2.1:8081"), two());
    assert_eq!(route_localnet(), "1");
    ports.remove(&id(2), &theirs).await.unwrap();
    assert_eq!(who("192.0.2.1:8081"), None);
    assert_eq!(route_localnet(), "0");
    ports.remove(&id(9), &[]).await.unwrap();
}

#[test]
fn with_nftables() {
    on_node(async |node| {
        let ports = HostPorts::detect().await.unwrap();
        ports_lead_into_sandboxes(node, ports).await;
        let left = sh("nft list table ip crio-hostports; nft list table ip6 crio-hostports", "");
        assert!(!left.contains("elements"), "{left}");
        // Names that CRI-O looks for.
        for name in [
            "map hostports",
            "map hostipports",
            "set hairpins",
            "chain hostports",
            "chain prerouting",
            "chain output",
            "chain masquerading",
        ] {
            assert_eq!(left.matches(&format!("{name} {{")).count(), 2, "{name}: {left}");
        }
    });
}

#[test]
fn the_guard_is_what_keeps_neighbours_out() {
    on_node(async |node| {
        let ports = HostPorts::detect().await.unwrap();
        let one = sandbox(&node, 1).await;
        ports.add(&id(1), &one.ips, &[mapping(Protocol::Tcp, 8080, 80, None)]).await.unwrap();
        let secret = TcpListener::bind("127.0.0.1:7777").unwrap();
        std::thread::spawn(move || secret.incoming().flatten().for_each(|mut stream| drop(write!(stream, "secret"))));
        assert_eq!(attack(&node, &one.netns, 7777), None);
        sh("nft flush chain ip crio-hostports localguard", "");
        assert_eq!(attack(&node, &one.netns, 7777).as_deref(), Some("secret"));
        // The next change puts it back, also when somebody flushed everything and the device stayed open.
        sh("nft flush ruleset", "");
        ports.add(&id(1), &one.ips, &[mapping(Protocol::Tcp, 8080, 80, None)]).await.unwrap();
        assert_eq!(attack(&node, &one.netns, 7777), None);
        // Who opened the device is not known any more, so it stays open, and guarded.
        ports.remove(&id(1), &[]).await.unwrap();
        assert_eq!(route_localnet(), "1");
        assert_eq!(attack(&node, &one.netns, 7777), None);
    });
}

#[test]
fn with_iptables() {
    on_node(async |node| {
        let ports = HostPorts::detect_iptables().await.unwrap();
        ports_lead_into_sandboxes(node, ports).await;
        let left = sh("iptables-save; ip6tables-save", "");
        assert!(!left.contains("KUBE-HP-") && !left.contains("CRIO-MASQ-") && !left.contains("guard"), "{left}");
        assert_eq!(left.matches(":KUBE-HOSTPORTS").count(), 2, "{left}");
        assert_eq!(left.matches("-A OUTPUT").count(), 2, "{left}");
    });
}

#[test]
fn loopback_is_opened_only_when_wanted() {
    on_node(async |node| {
        outside(&node);
        let ports = HostPorts::detect().await.unwrap();
        let one = sandbox(&node, 1).await;
        ports.add(&id(1), &one.ips, &[mapping(Protocol::Tcp, 8080, 80, Some("192.0.2.1"))]).await.unwrap();
        assert_eq!(route_localnet(), "0");
        assert_eq!(who("192.0.2.1:8080").as_deref(), Some("1"));
        ports.remove(&id(1), &[]).await.unwrap();
        // Opened by somebody else before: stays so.
        sh("echo 1 > /proc/sys/net/ipv4/conf/tb30/route_localnet", "");
        ports.add(&id(1), &one.ips, &[mapping(Protocol::Tcp, 8080, 80, None)]).await.unwrap();
        assert_eq!(who("127.0.0.1:8080").as_deref(), Some("1"));
        ports.remove(&id(1), &[]).await.unwrap();
        assert_eq!(route_localnet(), "1");
    });
}

#[test]
fn what_an_older_daemon_left_is_found() {
    on_node(async |node| {
        // By iptables first, then by nftables: the same sandbox, removed by the newer one.
        let old = HostPorts::detect_iptables().await.unwrap();
        let one = sandbox(&node, 1).await;
        let mappings = [mapping(Protocol::Tcp, 8080, 80, None)];
        old.add(&id(1), &one.ips, &mappings).await.unwrap();
        assert_eq!(who("10.30.0.1:8080").as_deref(), Some("1"));
        let new = HostPorts::detect().await.unwrap();
        new.remove(&id(1), &mappings).await.unwrap();
        assert_eq!(who("10.30.0.1:8080"), None);
        assert!(!sh("iptables-save", "").contains("KUBE-HP-"));
    });
}

#[test]
fn sandboxes_do_not_get_into_each_other_s_way() {
    on_node(async |node| {
        let ports = HostPorts::detect().await.unwrap();
        let one = sandbox(&node, 1).await;
        let all: Vec<_> = (1..=6).map(|n| (id(n), [mapping(Protocol::Tcp, 9000 + u16::from(n), 80, None)])).collect();
        let adds = all.iter().map(|(id, mappings)| ports.add(id, &one.ips, mappings));
        futures_util::future::join_all(adds).await.into_iter().for_each(|added| added.unwrap());
        assert!((9001..=9006).all(|port| who(&format!("10.30.0.1:{port}")).is_some()));
        let removals = all.iter().map(|(id, mappings)| ports.remove(id, mappings));
        futures_util::future::join_all(removals).await.into_iter().for_each(|removed| removed.unwrap());
        assert!((9001..=9006).all(|port| who(&format!("10.30.0.1:{port}")).is_none()));
    });
}
