//! `macspoofchk`: a bridge port lets frames pass only with the container's own source address.
//!
//! Table `nat` of family `bridge`, as the reference plugin has it:
//! `PREROUTING: iifname PORT jump cni-br-iface-<id>`, which jumps to `cni-br-iface-<id>-mac`: `ether saddr MAC return; drop`.

use netlink::Socket;
use netlink::nf_tables::{self, Family, Hook, Part, Transaction, Verdict};

use crate::device::hashed_name;
use crate::failure::{Context as _, Failure};
use crate::request::Request;

const TABLE: &str = "nat";
const HOOK_CHAIN: &str = "PREROUTING";
const HOOK: Hook = Hook { kind: "filter", number: 0, priority: -300 };

/// Names of the chain of the port, of that of the address, and the comment of their rules.
fn names(request: &Request) -> (String, String, String) {
    let id = hashed_name(16, "", &format!("{}-{}", request.container_id, request.ifname));
    let chain = format!("cni-br-iface-{id}");
    (chain.clone(), format!("{chain}-mac"), format!("macspoofchk-{id}"))
}

/// Guards a port.
pub(crate) fn add(request: &Request, port: &str, mac: [u8; 6]) -> Result<(), Failure> {
    let what = || "failed to setup spoof-check".to_owned();
    let socket = Socket::netfilter().context(what)?;
    let (port_chain, mac_chain, comment) = names(request);
    let mut transaction = Transaction::on(Family::Bridge, TABLE);
    transaction.add_table("").add_chain(HOOK_CHAIN, Some(HOOK));
    transaction.add_chain(&port_chain, None).add_chain(&mac_chain, None);
    transaction.flush_chain(&port_chain).flush_chain(&mac_chain);
    let jump = |chain: &str| Part::Verdict(Verdict::Jump(chain.to_owned()));
    transaction.add_rule(HOOK_CHAIN, &comment, &[Part::Through(port.to_owned()), jump(&port_chain)]);
    transaction.add_rule(&port_chain, &comment, &[jump(&mac_chain)]);
    transaction.add_rule(&mac_chain, &comment, &[Part::FromLinkAddress(mac), Part::Verdict(Verdict::Return)]);
    transaction.add_rule(&mac_chain, &comment, &[Part::Verdict(Verdict::Drop)]);
    transaction.commit(&socket).context(what)
}

/// Takes the guard away. Idempotent.
pub(crate) fn remove(request: &Request) -> Result<(), Failure> {
    let what = || "failed to teardown spoof-check".to_owned();
    let socket = Socket::netfilter().context(what)?;
    let (port_chain, mac_chain, comment) = names(request);
    let mut transaction = Transaction::on(Family::Bridge, TABLE);
    let rules = nf_tables::rules(&socket, Family::Bridge, TABLE, HOOK_CHAIN).context(what)?;
    for rule in rules.iter().filter(|rule| rule.comment == comment) {
        transaction.delete_rule(rule);
    }
    if transaction.is_empty() {
        return Ok(());
    }
    transaction.flush_chain(&port_chain).flush_chain(&mac_chain).delete_chain(&port_chain).delete_chain(&mac_chain);
    transaction.commit(&socket).context(what)
}
