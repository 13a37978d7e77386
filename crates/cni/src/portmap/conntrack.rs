//! Flows from before a port was mapped would go on missing it: UDP has no end that the kernel sees.

use netlink::Socket;

/// Forgets flows to ports of the node. Failing is only told: new flows are right all the same.
pub(super) fn forget_udp(is_v4: bool, ports: impl Iterator<Item = u16>) {
    const UDP: u8 = 17;
    let ports: Vec<u16> = ports.collect();
    if ports.is_empty() {
        return;
    }
    let forgotten = Socket::netfilter().and_then(|socket| socket.forget_flows(is_v4, UDP, &ports));
    if let Err(error) = forgotten {
        eprintln!("failed to delete stale UDP conntrack entries: {error}");
    }
}
