//! Text for nft and what its JSON says. No I/O.
//!
//! One table a family, `crio-hostports`. Chains and rules never change; sandboxes are elements of maps, found again by
//! their comment:
//!
//! ```text
//! prerouting, output (nat) -- destination is local --> hostports: dnat by map hostipports, then by map hostports
//! masquerading (postrouting): was dnat'ed, and source and destination are the same sandbox (set hairpins), or the
//!                             source is loopback and the destination a sandbox with host ports -> masquerade
//! localguard (raw prerouting): from a device of set localnets, to 127.0.0.0/8 -> drop
//! ```
//!
//! The last line and the loopback half of the one before are not CRI-O's; CRI-O's next change flushes the rule and
//! leaves the chain, which then does no harm. They make 127.0.0.1 answer: a packet from loopback must leave by the
//! sandbox's device with a source that can be answered, and `route_localnet` must allow that on this one device. Since
//! that would also let neighbours on the device talk to what listens on the node's 127.0.0.1 (CVE-2020-8558), the
//! guard drops whatever arrives there from outside for loopback. Answers do not match: on the wire they go to the
//! node's address on the device, and the guard sees them before conntrack translates them back.

use std::net::IpAddr;

use serde_json::Value;

use super::family::{Family, host_address};
use super::name;
use crate::port::PortMapping;

/// The table, in families `ip` and `ip6`.
pub(super) const TABLE: &str = "crio-hostports";
/// `protocol . port -> address . port`, on every address of the node.
const PORTS: &str = "hostports";
/// `node address . protocol . port -> address . port`
const IP_PORTS: &str = "hostipports";
/// `address . address` of sandboxes with host ports.
const HAIRPINS: &str = "hairpins";
/// Devices that lead to sandboxes with ports on loopback.
const LOCALNETS: &str = "localnets";
/// Comment of devices on which `route_localnet` was turned on here, and may be turned off here. Those that somebody
/// else opened are only guarded.
const OPENED: &str = "opened";

/// Everything but elements, made or left as it is. Rules are written anew, so that those of another version go.
pub(super) fn static_objects(family: Family) -> String {
    let (ip, address) = (family.nft(), family.nft_type());
    let table = format!("{ip} {TABLE}");
    let local = "fib daddr type local goto hostports";
    let translated = "ct status & (dnat|snat) == dnat";
    let mut text = format!(
        "add table {table} {{ comment \"host ports of sandboxes\" ; }}
add map {table} {PORTS} {{ type inet_proto . inet_service : {address} . inet_service ; }}
add map {table} {IP_PORTS} {{ type {address} . inet_proto . inet_service : {address} . inet_service ; }}
add set {table} {HAIRPINS} {{ type {address} . {address} ; }}
add chain {table} hostports
flush chain {table} hostports
add rule {table} hostports dnat {ip} addr . port to {ip} daddr . meta l4proto . th dport map @{IP_PORTS}
add rule {table} hostports dnat {ip} addr . port to meta l4proto . th dport map @{PORTS}
add chain {table} prerouting {{ type nat hook prerouting priority -100 ; }}
flush chain {table} prerouting
add rule {table} prerouting {local}
add chain {table} output {{ type nat hook output priority -100 ; }}
flush chain {table} output
add rule {table} output {local}
add chain {table} masquerading {{ type nat hook postrouting priority 100 ; }}
flush chain {table} masquerading
add rule {table} masquerading {translated} {ip} saddr . {ip} daddr @{HAIRPINS} masquerade
"
    );
    if family == Family::V4 {
        text.push_str(&format!(
            "add rule {table} masquerading ip saddr 127.0.0.0/8 {translated} ip daddr . ip daddr @{HAIRPINS} masquerade
add set {table} {LOCALNETS} {{ type ifname ; }}
add chain {table} localguard {{ type filter hook prerouting priority -300 ; }}
flush chain {table} localguard
add rule {table} localguard iifname @{LOCALNETS} ip daddr 127.0.0.0/8 drop
"
        ));
    }
    text
}

/// The elements of one sandbox in one family.
pub(super) fn elements(family: Family, sandbox: &str, address: IpAddr, mappings: &[&PortMapping]) -> String {
    let comment = name::comment(sandbox);
    let table = format!("{} {TABLE}", family.nft());
    let mut text = String::new();
    for mapping in mappings {
        let target = format!("{address} . {}", mapping.container_port);
        let (map, key) = key(mapping);
        text.push_str(&format!("add element {table} {map} {{ {key} comment \"{comment}\" : {target} }}\n"));
    }
    text.push_str(&format!("add element {table} {HAIRPINS} {{ {address} . {address} comment \"{comment}\" }}\n"));
    text
}

/// The map and the key of a mapping.
fn key(mapping: &PortMapping) -> (&'static str, String) {
    let port = format!("{} . {}", mapping.protocol.keyword(), mapping.host_port);
    match host_address(mapping) {
        None => (PORTS, port),
        Some(ip) => (IP_PORTS, format!("{ip} . {port}")),
    }
}

/// Adds a device to those that are guarded.
pub(super) fn guard(device: &str, opened_here: bool) -> String {
    let comment = if opened_here { format!(" comment \"{OPENED}\"") } else { String::new() };
    format!("add element ip {TABLE} {LOCALNETS} {{ \"{device}\"{comment} }}\n")
}

/// Takes a device from those that are guarded.
pub(super) fn unguard(device: &str) -> String {
    format!("delete element ip {TABLE} {LOCALNETS} {{ \"{device}\" }}\n")
}

/// An element of the table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Element {
    /// The map or set it is in.
    pub(super) container: &'static str,
    /// As nft writes and reads it.
    pub(super) key: String,
    pub(super) comment: String,
}

impl Element {
    pub(super) fn is_mapping(&self) -> bool {
        self.container == PORTS || self.container == IP_PORTS
    }

    /// The device this guards.
    pub(super) fn device(&self) -> Option<&str> {
        (self.container == LOCALNETS).then_some(self.key.as_str())
    }

    /// Whether the device was closed before.
    pub(super) fn is_opened_here(&self) -> bool {
        self.container == LOCALNETS && self.comment == OPENED
    }

    pub(super) fn is_of(&self, sandbox: &str) -> bool {
        self.comment == name::comment(sandbox)
    }

    /// Whether this is the place where `mapping` wants to be.
    pub(super) fn occupies(&self, mapping: &PortMapping) -> bool {
        let (container, key) = key(mapping);
        self.container == container && self.key == key
    }

    pub(super) fn delete(&self, family: Family) -> String {
        format!("delete element {} {TABLE} {} {{ {} }}\n", family.nft(), self.container, self.key)
    }
}

/// The elements in the output of `nft -j list table`. What is not understood is left out.
pub(super) fn parse_elements(json: &[u8]) -> Vec<Element> {
    let Ok(listing) = serde_json::from_slice::<Value>(json) else { return Vec::new() };
    let objects = listing.get("nftables").and_then(Value::as_array).into_iter().flatten();
    let sets = objects.filter_map(|object| object.get("map").or_else(|| object.get("set")));
    let mut elements = Vec::new();
    for set in sets.filter(|set| set.get("table").and_then(Value::as_str) == Some(TABLE)) {
        let name = set.get("name").and_then(Value::as_str).unwrap_or_default();
        let known = [PORTS, IP_PORTS, HAIRPINS, LOCALNETS].into_iter().find(|known| *known == name);
        let Some(container) = known else { continue };
        let is_map = container == PORTS || container == IP_PORTS;
        for item in set.get("elem").and_then(Value::as_array).into_iter().flatten() {
            // An element of a map is the pair of key and value.
            let item = if is_map { item.get(0) } else { Some(item) };
            elements.extend(item.and_then(|item| parse_element(container, item)));
        }
    }
    elements
}

fn parse_element(container: &'static str, item: &Value) -> Option<Element> {
    let (value, comment) = match item.get("elem") {
        Some(elem) => (elem.get("val")?, elem.get("comment").and_then(Value::as_str).unwrap_or_default()),
        None => (item, ""),
    };
    let parts = match value.get("concat") {
        Some(parts) => parts.as_array()?.iter().map(word).collect::<Option<Vec<_>>>()?,
        None => vec![word(value)?],
    };
    Some(Element { container, key: parts.join(" . "), comment: comment.to_owned() })
}

/// A word that can be given back to nft without meaning anything else.
fn word(value: &Value) -> Option<String> {
    let text = match value {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => return None,
    };
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '_' | '-' | '@');
    (!text.is_empty() && text.chars().all(is_plain)).then_some(text)
}

/// Entry point for fuzzing: any bytes as nft's listing.
pub fn fuzz_nft_listing(bytes: &[u8]) {
    for element in parse_elements(bytes) {
        assert!(!element.delete(Family::V4).contains(['"', ';']), "{element:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn elements_have_their_places() {
        let mapping = |protocol, host_ip: Option<&str>| PortMapping {
            protocol,
            container_port: 80,
            host_port: 8080,
            host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        };
        let comment = name::comment(ID);
        for (host_ip, expected) in [
            (None, "hostports { tcp . 8080"),
            (Some("0.0.0.0"), "hostports { tcp . 8080"),
            (Some("127.0.0.1"), "hostipports { 127.0.0.1 . tcp . 8080"),
        ] {
            let text = elements(Family::V4, ID, "10.0.0.2".parse().unwrap(), &[&mapping(Protocol::Tcp, host_ip)]);
            let expected = format!(
                "add element ip crio-hostports {expected} comment \"{comment}\" : 10.0.0.2 . 80 }}\n\
                 add element ip crio-hostports hairpins {{ 10.0.0.2 . 10.0.0.2 comment \"{comment}\" }}\n"
            );
            assert_eq!(text, expected);
        }
        let v6 = elements(Family::V6, ID, "fd00::2".parse().unwrap(), &[&mapping(Protocol::Sctp, Some("fd00::9"))]);
        assert!(v6.starts_with("add element ip6 crio-hostports hostipports { fd00::9 . sctp . 8080 comment"), "{v6}");
    }

    #[test]
    fn listings() {
        let listing = br#"{"nftables":[{"metainfo":{}},{"table":{"name":"crio-hostports"}},
            {"map":{"family":"ip","name":"hostports","table":"crio-hostports","elem":[
                [{"elem":{"val":{"concat":["tcp",8080]},"comment":"ABCDEFGHIJKLMNOP"}},{"concat":["10.1.2.3",80]}],
                [{"concat":["udp",53]},{"concat":["10.1.2.4",53]}]]}},
            {"map":{"family":"ip","name":"hostipports","table":"crio-hostports"}},
            {"set":{"name":"hairpins","table":"crio-hostports","elem":[
                {"elem":{"val":{"concat":["10.1.2.3","10.1.2.3"]},"comment":"ABCDEFGHIJKLMNOP"}}]}},
            {"set":{"name":"localnets","table":"crio-hostports","elem":["cni0", "a\" } ; flush ruleset", 7]}},
            {"set":{"name":"other","table":"crio-hostports","elem":["x"]}},
            {"set":{"name":"hairpins","table":"another","elem":["x"]}}]}"#;
        let seen: Vec<String> = parse_elements(listing)
            .iter()
            .map(|element| format!("{} {} {}", element.container, element.key, element.comment))
            .collect();
        assert_eq!(
            seen,
            [
                "hostports tcp . 8080 ABCDEFGHIJKLMNOP",
                "hostports udp . 53 ",
                "hairpins 10.1.2.3 . 10.1.2.3 ABCDEFGHIJKLMNOP",
                "localnets cni0 ",
                "localnets 7 ",
            ]
        );
        for junk in [&b""[..], b"{}", b"[]", b"{\"nftables\":{}}", b"{\"nftables\":[{\"map\":[]}]}"] {
            assert_eq!(parse_elements(junk), []);
        }
    }
}
