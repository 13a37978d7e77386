//! Packets of containers that leave their network get the node's address.
//!
//! iptables where it is installed, else nf_tables; removal looks in both, because what is installed may have changed.
//! Names and shapes of rules are those of the reference plugins:
//!
//! ```text
//! nat POSTROUTING: -s ADDRESS -j CNI-<hash>          inet cni_plugins_masquerade postrouting: goto masq_checks
//! CNI-<hash>: -d NETWORK -j ACCEPT                   masq_checks: saddr ADDRESS daddr != NETWORK masquerade
//! CNI-<hash>: ! -d MULTICAST -j MASQUERADE
//! ```

use std::io;
use std::net::IpAddr;

use netlink::Socket;
use netlink::nf_tables::{self, Family, POSTROUTING_NAT, Part, Transaction, Verdict};
use serde::Deserialize;

use crate::device::hashed_name;
use crate::failure::{Context as _, Failure};
use crate::iptables::{Iptables, empty_chain, quoted};
use crate::request::Request;
use crate::result::Cidr;

const TABLE: &str = "cni_plugins_masquerade";
const CHAIN: &str = "masq_checks";
const HOOK_CHAIN: &str = "postrouting";
/// Length of an iptables chain's name.
const CHAIN_LENGTH: usize = 28;
/// Characters of a hash in comments.
const HASH_LENGTH: usize = 16;

/// Which firewall does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum BackEnd {
    Iptables,
    Nftables,
}

impl BackEnd {
    /// The one asked for, or iptables where it is installed.
    pub(crate) fn choose(asked: Option<Self>) -> Self {
        let found = || if Iptables::find(true).is_some() { Self::Iptables } else { Self::Nftables };
        asked.unwrap_or_else(found)
    }
}

fn chain_name(request: &Request) -> String {
    hashed_name(CHAIN_LENGTH, "CNI-", &format!("{}{}", request.network, request.container_id))
}

fn network_hash(network: &str) -> String {
    hashed_name(HASH_LENGTH, "", network)
}

fn instance_hash(network: &str, ifname: &str, container_id: &str) -> String {
    format!("{}-{}", network_hash(network), hashed_name(HASH_LENGTH, "", &format!("{ifname}:{container_id}")))
}

/// Masquerades what comes from the addresses and leaves their networks.
pub(crate) fn add(request: &Request, addresses: &[Cidr], asked: Option<BackEnd>) -> Result<(), Failure> {
    match BackEnd::choose(asked) {
        BackEnd::Iptables => {
            for is_v4 in [true, false] {
                let own: Vec<_> = addresses.iter().filter(|address| address.is_v4() == is_v4).collect();
                if !own.is_empty() {
                    Iptables::required(is_v4)?.apply("nat", &iptables_lines(request, &own, is_v4))?;
                }
            }
            Ok(())
        }
        BackEnd::Nftables => add_to_nf_tables(request, addresses).context(|| "masquerade by nf_tables".to_owned()),
    }
}

fn iptables_lines(request: &Request, addresses: &[&Cidr], is_v4: bool) -> Vec<String> {
    let chain = chain_name(request);
    let text = format!("name: {:?} id: {:?}", request.network, request.container_id);
    let comment = format!("-m comment --comment {}", quoted(&text));
    let multicast = if is_v4 { "224.0.0.0/4" } else { "ff00::/8" };
    let mut lines = vec![empty_chain(&chain)];
    for address in addresses {
        lines.push(format!("-A {chain} -d {} {comment} -j ACCEPT", address.network()));
    }
    lines.push(format!("-A {chain} ! -d {multicast} {comment} -j MASQUERADE"));
    for address in addresses {
        lines.push(format!("-A POSTROUTING -s {} {comment} -j {chain}", address.0.address));
    }
    lines
}

fn add_to_nf_tables(request: &Request, addresses: &[Cidr]) -> io::Result<()> {
    let socket = Socket::netfilter()?;
    let (ifname, id) = (&request.ifname, &request.container_id);
    let hash = instance_hash(&request.network, ifname, id);
    let comment = format!("{hash}, net: {}, if: {ifname}, id: {id}", request.network);
    let rules = |transaction: &mut Transaction<'_>| {
        for address in addresses {
            let network = address.network().0;
            let parts = [
                Part::From(address.0.address),
                Part::ToNetwork(network.address, network.length, false),
                Part::Masquerade,
            ];
            transaction.add_rule(CHAIN, &comment, &parts);
        }
    };
    let mut quick = Transaction::on(Family::Inet, TABLE);
    rules(&mut quick);
    match quick.commit(&socket) {
        // The first of this node, or somebody took the table away.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        outcome => return outcome,
    }
    let mut whole = Transaction::on(Family::Inet, TABLE);
    whole.add_table("Masquerading for CNI plugins").add_chain(CHAIN, None);
    whole.add_chain(HOOK_CHAIN, Some(POSTROUTING_NAT)).flush_chain(HOOK_CHAIN);
    let leave = || Part::Verdict(Verdict::Return);
    whole.add_rule(HOOK_CHAIN, "", &[Part::ToNetwork(IpAddr::from([224, 0, 0, 0]), 4, true), leave()]);
    let multicast = IpAddr::from([0xff00, 0, 0, 0, 0, 0, 0, 0]);
    whole.add_rule(HOOK_CHAIN, "", &[Part::ToNetwork(multicast, 8, true), leave()]);
    whole.add_rule(HOOK_CHAIN, "", &[Part::Verdict(Verdict::Goto(CHAIN.to_owned()))]);
    rules(&mut whole);
    whole.commit(&socket)
}

/// Removes what leads from the attachment, in both firewalls. Idempotent; needs no addresses.
pub(crate) fn remove(request: &Request) -> Result<(), Failure> {
    let chain = chain_name(request);
    for iptables in [true, false].into_iter().filter_map(Iptables::find) {
        let removed = iptables.table("nat").and_then(|table| iptables.apply("nat", &table.without_chain(&chain)));
        match removed {
            // A kernel without IPv6 has nothing to remove.
            Err(failure) if !iptables.is_v4 => eprintln!("{failure}"),
            outcome => outcome?,
        }
    }
    let hash = instance_hash(&request.network, &request.ifname, &request.container_id);
    remove_rules(|comment| comment.starts_with(&hash))
}

/// Removes rules of the network that belong to none of the attachments.
pub(crate) fn collect(request: &Request, valid: &[(String, String)]) -> Result<(), Failure> {
    let network = network_hash(&request.network);
    let kept: Vec<_> = valid.iter().map(|(id, ifname)| instance_hash(&request.network, ifname, id)).collect();
    remove_rules(|comment| comment.starts_with(&network) && !kept.iter().any(|hash| comment.starts_with(hash)))
}

fn remove_rules(is_stale: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let what = || "remove masquerading rules from nf_tables".to_owned();
    let Ok(socket) = Socket::netfilter() else { return Ok(()) };
    let rules = match nf_tables::rules(&socket, Family::Inet, TABLE, CHAIN) {
        Ok(rules) => rules,
        // A kernel without nf_tables has none.
        Err(error) if matches!(error.raw_os_error(), Some(93 | 95 | 22)) => return Ok(()),
        Err(error) => return Err(error).context(what),
    };
    let mut transaction = Transaction::on(Family::Inet, TABLE);
    for rule in rules.iter().filter(|rule| is_stale(&rule.comment)) {
        transaction.delete_rule(rule);
    }
    match transaction.commit(&socket) {
        // Somebody else was faster.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        outcome => outcome.context(what),
    }
}
