//! Text for iptables-restore and what iptables-save says. No I/O.
//!
//! The fallback. Per mapping two chains of the nat table, found again by the hash in their names: `KUBE-HP-…` with the
//! translation, jumped to from `KUBE-HOSTPORTS`, and `CRIO-MASQ-…`, jumped to from `CRIO-HOSTPORTS-MASQ`. Everything is
//! one `iptables-restore --noflush`; a chain named there is emptied first, a rule is removed by its own text.
//!
//! As in the nft table, 127.0.0.1 answers: the masquerade chain takes loopback sources too, and for each device with
//! `route_localnet` a rule of the raw table drops what arrives for loopback from outside.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

use super::family::{Family, host_address, reaches_loopback};
use super::name;
use crate::port::PortMapping;

const PORTS: &str = "KUBE-HOSTPORTS";
const PORT_PREFIX: &str = "KUBE-HP-";
const MASQUERADE: &str = "CRIO-HOSTPORTS-MASQ";
const MASQUERADE_PREFIX: &str = "CRIO-MASQ-";
/// Marks rules of the raw table that stand for devices on which `route_localnet` was turned on here.
const GUARD_COMMENT: &str = "crio hostport loopback guard";

/// What is in a table now.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    chains: BTreeSet<String>,
    /// Without the leading `-A`.
    rules: Vec<String>,
}

impl Table {
    /// Reads the output of `iptables-save -t TABLE`. What is not understood is left out.
    pub(super) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines() {
            if let Some(chain) = line.strip_prefix(':') {
                table.chains.extend(chain.split(' ').next().map(str::to_owned));
            } else if let Some(rule) = line.strip_prefix("-A ") {
                table.rules.push(rule.to_owned());
            }
        }
        table
    }

    /// Whether any mapping is here, ours or an older daemon's.
    pub(super) fn has_mappings(&self) -> bool {
        let prefixes = [PORT_PREFIX, MASQUERADE_PREFIX];
        self.chains.iter().any(|chain| prefixes.iter().any(|prefix| chain.starts_with(prefix)))
    }

    /// Devices the guard names.
    pub(super) fn guarded(&self) -> Vec<String> {
        let guards = self.rules.iter().filter(|rule| rule.contains(GUARD_COMMENT));
        guards.filter_map(|rule| rule.split(' ').skip_while(|word| *word != "-i").nth(1)).map(str::to_owned).collect()
    }

    fn has_jump(&self, from: &str, to: &str) -> bool {
        let start = format!("{from} ");
        let end = format!("-j {to}");
        self.rules.iter().any(|rule| rule.starts_with(&start) && rule.ends_with(&end))
    }
}

/// The input that adds a sandbox's mappings to what `now` has.
pub(super) fn add(now: &Table, sandbox: &str, address: IpAddr, mappings: &[&PortMapping]) -> String {
    let mut chains = String::from("*nat\n");
    let mut rules = String::new();
    for chain in [PORTS, MASQUERADE] {
        if !now.chains.contains(chain) {
            put(&mut chains, &format!(":{chain} - [0:0]"));
        }
    }
    for from in ["PREROUTING", "OUTPUT"] {
        if !now.has_jump(from, PORTS) {
            let portals = "-m comment --comment \"kube hostport portals\" -m addrtype --dst-type LOCAL";
            put(&mut rules, &format!("-A {from} {portals} -j {PORTS}"));
        }
    }
    if !now.has_jump("POSTROUTING", MASQUERADE) {
        let translated = "-m comment --comment \"kube hostport masquerading\" -m conntrack --ctstate DNAT";
        // At the head: the chains of the bridge plugin's ipMasq accept what goes from sandbox to sandbox, a hairpin too.
        put(&mut rules, &format!("-I POSTROUTING {translated} -j {MASQUERADE}"));
    }
    for mapping in mappings {
        let suffix = name::chain_suffix(sandbox, mapping);
        let (port, masquerade) = (format!("{PORT_PREFIX}{suffix}"), format!("{MASQUERADE_PREFIX}{suffix}"));
        for (chain, parent) in [(&port, PORTS), (&masquerade, MASQUERADE)] {
            put(&mut chains, &format!(":{chain} - [0:0]"));
            // A second add of the same mapping: the old jump goes.
            delete_jumps(&mut rules, now, parent, chain);
        }
        let (host, inside, word) = (mapping.host_port, mapping.container_port, mapping.protocol.keyword());
        let comment = format!("-m comment --comment \"{sandbox} hostport {host}\"");
        let protocol = format!("-p {word} -m {word}");
        // At the head: a rule that was left behind cannot hold the port.
        put(&mut rules, &format!("-I {PORTS} {comment} {protocol} --dport {host} -j {port}"));
        put(&mut rules, &format!("-I {MASQUERADE} {comment} -j {masquerade}"));
        let only = host_address(mapping).map(|ip| format!(" -d {ip}")).unwrap_or_default();
        let target = SocketAddr::new(address, inside);
        put(&mut rules, &format!("-A {port} {comment} {protocol}{only} -j DNAT --to-destination {target}"));
        let original = format!("-m conntrack --ctorigdstport {host} {protocol} --dport {inside} -d {address}");
        put(&mut rules, &format!("-A {masquerade} {comment} {original} -s {address} -j MASQUERADE"));
        if address.is_ipv4() && reaches_loopback(mapping) {
            put(&mut rules, &format!("-A {masquerade} {comment} {original} -s 127.0.0.0/8 -j MASQUERADE"));
        }
    }
    chains + &rules + "COMMIT\n"
}

/// The input that removes a sandbox's mappings; `None` when there are none.
pub(super) fn remove(now: &Table, sandbox: &str, mappings: &[&PortMapping]) -> Option<String> {
    let mut chains = String::from("*nat\n");
    let mut rules = String::new();
    let mut found = false;
    for mapping in mappings {
        let suffix = name::chain_suffix(sandbox, mapping);
        for (prefix, parent) in [(PORT_PREFIX, PORTS), (MASQUERADE_PREFIX, MASQUERADE)] {
            let chain = format!("{prefix}{suffix}");
            if now.chains.contains(&chain) {
                found = true;
                put(&mut chains, &format!(":{chain} - [0:0]"));
                delete_jumps(&mut rules, now, parent, &chain);
                put(&mut rules, &format!("-X {chain}"));
            }
        }
    }
    found.then(|| chains + &rules + "COMMIT\n")
}

/// The input that guards a device; `None` when it is guarded.
pub(super) fn guard(now: &Table, device: &str) -> Option<String> {
    let known = now.guarded().iter().any(|guarded| guarded == device);
    (!known).then(|| format!("*raw\n-I PREROUTING {}\nCOMMIT\n", guard_rule(device)))
}

/// The input that takes the guard off a device.
pub(super) fn unguard(device: &str) -> String {
    format!("*raw\n-D PREROUTING {}\nCOMMIT\n", guard_rule(device))
}

fn guard_rule(device: &str) -> String {
    format!("-d 127.0.0.0/8 -i {device} -m comment --comment \"{GUARD_COMMENT}\" -j DROP")
}

fn delete_jumps(rules: &mut String, now: &Table, parent: &str, chain: &str) {
    let (start, end) = (format!("{parent} "), format!("-j {chain}"));
    for rule in now.rules.iter().filter(|rule| rule.starts_with(&start) && rule.ends_with(&end)) {
        put(rules, &format!("-D {rule}"));
    }
}

fn put(text: &mut String, line: &str) {
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{line}");
}

/// The commands of a family, to be looked for.
pub(super) fn commands(family: Family) -> (&'static str, &'static str) {
    match family {
        Family::V4 => ("iptables-save", "iptables-restore"),
        Family::V6 => ("ip6tables-save", "ip6tables-restore"),
    }
}

/// Entry point for fuzzing: any text as what iptables-save printed.
pub fn fuzz_iptables_save(bytes: &[u8]) {
    let table = Table::parse(&String::from_utf8_lossy(bytes));
    let _ = (table.has_mappings(), table.guarded());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    fn mapping(host_ip: Option<&str>) -> PortMapping {
        let host_ip = host_ip.map(|ip| ip.parse().unwrap());
        PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip }
    }

    #[test]
    fn first_mapping_of_a_node() {
        let mapping = mapping(None);
        let hash = name::chain_suffix("id", &mapping);
        let text = add(&Table::default(), "id", "10.0.0.2".parse().unwrap(), &[&mapping]);
        let expected = format!(
            r#"*nat
:KUBE-HOSTPORTS - [0:0]
:CRIO-HOSTPORTS-MASQ - [0:0]
:KUBE-HP-{hash} - [0:0]
:CRIO-MASQ-{hash} - [0:0]
-A PREROUTING -m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS
-A OUTPUT -m comment --comment "kube hostport portals" -m addrtype --dst-type LOCAL -j KUBE-HOSTPORTS
-I POSTROUTING -m comment --comment "kube hostport masquerading" -m conntrack --ctstate DNAT -j CRIO-HOSTPORTS-MASQ
-I KUBE-HOSTPORTS -m comment --comment "id hostport 8080" -p tcp -m tcp --dport 8080 -j KUBE-HP-{hash}
-I CRIO-HOSTPORTS-MASQ -m comment --comment "id hostport 8080" -j CRIO-MASQ-{hash}
-A KUBE-HP-{hash} -m comment --comment "id hostport 8080" -p tcp -m tcp -j DNAT --to-destination 10.0.0.2:80
-A CRIO-MASQ-{hash} -m comment --comment "id hostport 8080" -m conntrack --ctorigdstport 8080 -p tcp -m tcp --dport 80 -d 10.0.0.2 -s 10.0.0.2 -j MASQUERADE
-A CRIO-MASQ-{hash} -m comment --comment "id hostport 8080" -m conntrack --ctorigdstport 8080 -p tcp -m tcp --dport 80 -d 10.0.0.2 -s 127.0.0.0/8 -j MASQUERADE
COMMIT
"#
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn what_is_there_is_not_made_again_and_goes_by_its_own_text() {
        let mapping = mapping(Some("fd00::1"));
        let hash = name::chain_suffix("id", &mapping);
        let jump = format!("-m comment --comment \"old hostport 8080\" -p tcp -m tcp --dport 8080 -j KUBE-HP-{hash}");
        let saved = format!(
            "# comment\n*nat\n:PREROUTING ACCEPT [0:0]\n:KUBE-HOSTPORTS - [0:0]\n:CRIO-HOSTPORTS-MASQ - [0:0]\n\
             :KUBE-HP-{hash} - [0:0]\n\
             -A PREROUTING -j KUBE-HOSTPORTS\n-A OUTPUT -m x -j KUBE-HOSTPORTS\n-A POSTROUTING -j CRIO-HOSTPORTS-MASQ\n\
             -A KUBE-HOSTPORTS {jump}\n-A KUBE-HOSTPORTS -j KUBE-HP-OTHER\nCOMMIT\n"
        );
        let table = Table::parse(&saved);
        assert!(table.has_mappings());
        let text = add(&table, "id", "fd00::2".parse().unwrap(), &[&mapping]);
        assert!(
            !text.contains("PREROUTING") && !text.contains(":KUBE-HOSTPORTS") && !text.contains("127.0.0.0"),
            "{text}"
        );
        assert!(text.contains(&format!("-D KUBE-HOSTPORTS {jump}\n")), "{text}");
        assert!(text.contains("-d fd00::1 -j DNAT --to-destination [fd00::2]:80\n"), "{text}");
        let text = remove(&table, "id", &[&mapping]).unwrap();
        let expected = format!("*nat\n:KUBE-HP-{hash} - [0:0]\n-D KUBE-HOSTPORTS {jump}\n-X KUBE-HP-{hash}\nCOMMIT\n");
        assert_eq!(text, expected);
        assert_eq!(remove(&table, "other", &[&mapping]), None);
        assert!(!Table::parse("*nat\n:KUBE-HOSTPORTS - [0:0]\nCOMMIT").has_mappings());
    }

    #[test]
    fn guards_are_found_again() {
        let saved = format!("*raw\n:PREROUTING ACCEPT [0:0]\n-A PREROUTING {}\nCOMMIT\n", guard_rule("cni0"));
        let table = Table::parse(&saved);
        assert_eq!(table.guarded(), ["cni0"]);
        assert_eq!(guard(&table, "cni0"), None);
        assert!(guard(&table, "cni1").unwrap().contains("-I PREROUTING -d 127.0.0.0/8 -i cni1 "));
    }
}
