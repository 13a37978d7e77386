//! Ports by iptables, in the chains that the reference plugin made:
//!
//! ```text
//! PREROUTING, OUTPUT: -m addrtype --dst-type LOCAL -j CNI-HOSTPORT-DNAT
//! CNI-HOSTPORT-DNAT: -p tcp -m multiport --destination-ports 8080,8443 -j CNI-DN-<hash>
//! CNI-DN-<hash>: from the container's network or 127.0.0.1 -j CNI-HOSTPORT-SETMARK; -j DNAT
//! POSTROUTING (first): -j CNI-HOSTPORT-MASQ: marked -j MASQUERADE
//! ```

use super::{MARK_BIT, Mapping, Wanted};
use crate::device::hashed_name;
use crate::failure::{Code, Failure};
use crate::iptables::{Iptables, Table, empty_chain, quoted};
use crate::request::Request;

const TOP_CHAIN: &str = "CNI-HOSTPORT-DNAT";
const MARK_CHAIN: &str = "CNI-HOSTPORT-SETMARK";
const MASQUERADE_CHAIN: &str = "CNI-HOSTPORT-MASQ";
/// Most ports in one rule.
const PORTS_MAX: usize = 15;
/// Longest comment, bytes.
const COMMENT_MAX: usize = 255;

fn chain_name(request: &Request, prefix: &str) -> String {
    hashed_name(28, prefix, &format!("{}{}", request.network, request.container_id))
}

pub(super) fn add(wanted: &Wanted<'_>) -> Result<(), Failure> {
    let iptables = Iptables::required(wanted.container.is_v4())?;
    let now = iptables.table("nat")?;
    let chain = chain_name(wanted.request, "CNI-DN-");
    // What a container of this id left goes first.
    iptables.apply("nat", &now.without_chain(&chain))?;
    iptables.apply("nat", &lines(wanted, &now, &chain))
}

fn lines(wanted: &Wanted<'_>, now: &Table, chain: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for shared in [TOP_CHAIN, MARK_CHAIN, MASQUERADE_CHAIN] {
        let is_needed = shared == TOP_CHAIN || wanted.does_snat() && wanted.config.external_set_mark_chain.is_none();
        if is_needed && !now.has_chain(shared) {
            lines.push(empty_chain(shared));
        }
    }
    if wanted.does_snat() && wanted.config.external_set_mark_chain.is_none() {
        let mark = 1_u32 << wanted.config.mark_masq_bit.unwrap_or(MARK_BIT);
        if now.rules(MARK_CHAIN).all(|rule| !rule.contains(&format!("{mark:#x}/{mark:#x}"))) {
            let comment = "-m comment --comment \"CNI portfwd masquerade mark\"";
            lines.push(format!("-A {MARK_CHAIN} {comment} -j MARK --set-xmark {mark:#x}/{mark:#x}"));
        }
        if now.rules(MASQUERADE_CHAIN).all(|rule| !rule.contains(&format!("{mark:#x}/{mark:#x}"))) {
            lines.push(format!("-A {MASQUERADE_CHAIN} -m mark --mark {mark:#x}/{mark:#x} -j MASQUERADE"));
        }
        if !now.leads_to("POSTROUTING", MASQUERADE_CHAIN) {
            // First, before the plugins' own masquerading, which accepts packets.
            let comment = "-m comment --comment \"CNI portfwd requiring masquerade\"";
            lines.push(format!("-I POSTROUTING {comment} -j {MASQUERADE_CHAIN}"));
        }
    }
    for hook in ["PREROUTING", "OUTPUT"] {
        if !now.leads_to(hook, TOP_CHAIN) {
            lines.push(format!("-A {hook} -m addrtype --dst-type LOCAL -j {TOP_CHAIN}"));
        }
    }
    lines.push(empty_chain(chain));
    lines.extend(wanted.mappings.iter().flat_map(|mapping| mapping_lines(wanted, mapping, chain)));
    lines.extend(entries(wanted, chain));
    lines
}

/// What leads from the chain of all to the container's.
fn entries(wanted: &Wanted<'_>, chain: &str) -> Vec<String> {
    let text = format!("dnat name: \"{}\" id: \"{}\"", wanted.request.network, wanted.request.container_id);
    let text = if text.len() > COMMENT_MAX { format!("{}...", &text[..COMMENT_MAX - 3]) } else { text };
    let conditions: String = wanted.conditions().iter().map(|word| format!(" {}", quoted(word))).collect();
    let mut lines = Vec::new();
    for protocol in ["sctp", "tcp", "udp"] {
        let ports: Vec<_> = wanted.mappings.iter().filter(|mapping| mapping.protocol == protocol).collect();
        for some in ports.chunks(PORTS_MAX) {
            let ports = some.iter().map(|mapping| mapping.host_port.to_string()).collect::<Vec<_>>().join(",");
            let comment = quoted(&text);
            lines.push(format!(
                "-A {TOP_CHAIN} -p {protocol} -m comment --comment {comment} -m multiport --destination-ports \
                 {ports}{conditions} -j {chain}"
            ));
        }
    }
    lines
}

/// Marks what must be masqueraded, since its answers would go astray; then leads into the container.
fn mapping_lines(wanted: &Wanted<'_>, mapping: &Mapping, chain: &str) -> Vec<String> {
    let container = wanted.container;
    let bound = mapping.bound().map(|ip| format!(" -d {ip}")).unwrap_or_default();
    let base = format!("-A {chain} -p {} --dport {}{bound}", mapping.protocol, mapping.host_port);
    let mut lines = Vec::new();
    if wanted.does_snat() {
        let mark = wanted.config.external_set_mark_chain.as_deref().unwrap_or(MARK_CHAIN);
        let everything = if container.is_v4() { "0.0.0.0/0" } else { "::/0" };
        if wanted.config.masq_all {
            lines.push(format!("{base} -s {everything} -j {mark}"));
        } else {
            lines.push(format!("{base} -s {} -j {mark}", container.network()));
            if container.is_v4() {
                lines.push(format!("{base} -s 127.0.0.1 -j {mark}"));
            }
        }
    }
    let address = container.0.address;
    let target = if container.is_v4() { address.to_string() } else { format!("[{address}]") };
    lines.push(format!("{base} -j DNAT --to-destination {target}:{}", mapping.container_port));
    lines
}

pub(super) fn check(wanted: &Wanted<'_>) -> Result<(), Failure> {
    let chain = chain_name(wanted.request, "CNI-DN-");
    let now = Iptables::required(wanted.container.is_v4())?.table("nat")?;
    let targets = now.rules(&chain).filter(|rule| rule.contains("-j DNAT")).count();
    if targets < wanted.mappings.len() || !wanted.mappings.is_empty() && !now.leads_to(TOP_CHAIN, &chain) {
        let text = format!("chain {chain} in iptables table nat does not hold the container's ports");
        return Err(Failure::new(Code::Internal, text));
    }
    Ok(())
}

/// Removes the container's chain, also that of versions before 0.8. Idempotent.
pub(super) fn remove(request: &Request) -> Result<(), Failure> {
    for iptables in [true, false].into_iter().filter_map(Iptables::find) {
        let removed = iptables.table("nat").and_then(|now| {
            let chains = ["CNI-DN-", "CNI-SN-"].map(|prefix| chain_name(request, prefix));
            let lines: Vec<_> = chains.iter().flat_map(|chain| now.without_chain(chain)).collect();
            iptables.apply("nat", &lines)
        });
        match removed {
            Err(failure) if !iptables.is_v4 => eprintln!("{failure}"),
            outcome => outcome?,
        }
    }
    Ok(())
}
