//! Ports by nf_tables, in table `cni_hostport` of families `ip` and `ip6`; rules have the container's id as comment.

use std::io;
use std::net::IpAddr;

use netlink::Socket;
use netlink::nf_tables::{self, Family, OUTPUT_NAT, POSTROUTING_NAT, PREROUTING_NAT, Part, Transaction, Verdict};

use super::Wanted;
use crate::failure::{Code, Context as _, Failure};
use crate::request::Request;

const TABLE: &str = "cni_hostport";
const ALL_CHAIN: &str = "hostports_all";
const PORTS_CHAIN: &str = "hostports";
/// Rules bound to an address were here; it is kept so that versions can be mixed.
const BOUND_CHAIN: &str = "hostip_hostports";
const MASQUERADE_CHAIN: &str = "masquerading";

fn family(is_v4: bool) -> Family {
    if is_v4 { Family::Ip } else { Family::Ip6 }
}

pub(super) fn add(wanted: &Wanted<'_>) -> Result<(), Failure> {
    let what = || "unable to set up nftables rules for port mappings".to_owned();
    let socket = Socket::netfilter().context(what)?;
    let id = wanted.request.container_id.as_str();
    let mut transaction = Transaction::on(family(wanted.container.is_v4()), TABLE);
    let jump = |chain: &str| Part::Verdict(Verdict::Jump(chain.to_owned()));
    transaction.add_table("CNI portmap plugin").add_chain(PORTS_CHAIN, None).add_chain(BOUND_CHAIN, None);
    transaction.add_chain(ALL_CHAIN, None).flush_chain(ALL_CHAIN);
    transaction.add_rule(ALL_CHAIN, "", &[jump(BOUND_CHAIN)]).add_rule(ALL_CHAIN, "", &[jump(PORTS_CHAIN)]);
    for (chain, hook) in [("prerouting", PREROUTING_NAT), ("output", OUTPUT_NAT)] {
        transaction.add_chain(chain, Some(hook)).flush_chain(chain);
        transaction.add_rule(chain, "", &[Part::ToLocal, jump(ALL_CHAIN)]);
    }
    let address = wanted.container.0.address;
    for mapping in &wanted.mappings {
        let mut parts: Vec<Part> = mapping.bound().map(Part::To).into_iter().collect();
        parts.push(Part::ToPort(mapping.protocol_number(), mapping.host_port));
        parts.push(Part::Redirect(address, mapping.container_port));
        transaction.add_rule(PORTS_CHAIN, id, &parts);
    }
    if wanted.does_snat() {
        transaction.add_chain(MASQUERADE_CHAIN, Some(POSTROUTING_NAT));
        let sources: &[Option<IpAddr>] = match (wanted.config.masq_all, address.is_ipv4()) {
            (true, _) => &[None],
            (false, true) => &[Some(address), Some(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST))],
            (false, false) => &[Some(address)],
        };
        for source in sources {
            let mut parts: Vec<Part> = source.map(Part::From).into_iter().collect();
            parts.extend([Part::To(address), Part::Masquerade]);
            transaction.add_rule(MASQUERADE_CHAIN, id, &parts);
        }
    }
    transaction.commit(&socket).context(what)
}

pub(super) fn check(wanted: &Wanted<'_>) -> Result<(), Failure> {
    let what = || format!("list rules of table {TABLE}");
    let socket = Socket::netfilter().context(what)?;
    let rules = nf_tables::rules(&socket, family(wanted.container.is_v4()), TABLE, PORTS_CHAIN).context(what)?;
    let own = rules.iter().filter(|rule| rule.comment == wanted.request.container_id).count();
    if own < wanted.mappings.len() {
        return Err(Failure::new(Code::Internal, format!("missing hostport rules in {PORTS_CHAIN:?} chain")));
    }
    Ok(())
}

/// Removes the container's rules in both families. Idempotent.
pub(super) fn remove(request: &Request) -> Result<(), Failure> {
    let what = || "error deleting nftables rules".to_owned();
    let Ok(socket) = Socket::netfilter() else { return Ok(()) };
    for family in [Family::Ip, Family::Ip6] {
        let mut transaction = Transaction::on(family, TABLE);
        for chain in [PORTS_CHAIN, BOUND_CHAIN, MASQUERADE_CHAIN] {
            // A kernel without nf_tables has none.
            let rules = nf_tables::rules(&socket, family, TABLE, chain).unwrap_or_default();
            for rule in rules.iter().filter(|rule| rule.comment == request.container_id) {
                transaction.delete_rule(rule);
            }
        }
        match transaction.commit(&socket) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            outcome => outcome.context(what)?,
        }
    }
    Ok(())
}
