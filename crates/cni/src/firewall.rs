//! `firewall`: lets a container's packets through a firewall that forwards nothing by itself.

use serde::Deserialize;

use crate::failure::{Code, Failure};
use crate::iptables::{Iptables, Table, empty_chain};
use crate::request::Request;
use crate::result::{Cidr, CniResult};
use crate::{Plugin, nothing};

pub(crate) const PLUGIN: Plugin = Plugin { name: "firewall", add, del, check, status: nothing, gc: nothing };

const CHAIN: &str = "CNI-FORWARD";
const ADMIN_CHAIN: &str = "CNI-ADMIN";
const STAGE_1: &str = "CNI-ISOLATION-STAGE-1";
const STAGE_2: &str = "CNI-ISOLATION-STAGE-2";

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    backend: String,
    #[serde(default)]
    iptables_admin_chain_name: String,
    #[serde(default)]
    ingress_policy: Policy,
}

/// Who may reach the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Policy {
    #[default]
    #[serde(alias = "")]
    Open,
    SameBridge,
    Isolated,
}

impl Config {
    fn load(request: &Request) -> Result<Self, Failure> {
        let config: Self = request.config()?;
        match config.backend.as_str() {
            "" | "iptables" => Ok(config),
            other => Err(Failure::config(format!(
                "firewall backend {other:?} is not supported by the plugin built in: only \"iptables\" is"
            ))),
        }
    }

    fn admin_chain(&self) -> &str {
        if self.iptables_admin_chain_name.is_empty() { ADMIN_CHAIN } else { &self.iptables_admin_chain_name }
    }
}

/// The container's addresses of a family, each as a network of its own.
fn addresses(result: &CniResult, is_v4: bool) -> Vec<Cidr> {
    let own = result.ips.iter().map(|ip| ip.address).filter(|address| address.is_v4() == is_v4);
    own.map(|address| Cidr::host(address.0.address)).collect()
}

/// The two rules of an address, as iptables-save shows them.
fn address_rules(address: Cidr) -> [String; 2] {
    [format!("-d {address} -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"), format!("-s {address} -j ACCEPT")]
}

fn add(request: &Request) -> Result<CniResult, Failure> {
    let config = Config::load(request)?;
    let result = request.required_previous()?;
    for is_v4 in [true, false] {
        let own = addresses(&result, is_v4);
        if own.is_empty() {
            continue;
        }
        let iptables = Iptables::required(is_v4)?;
        let now = iptables.table("filter")?;
        let mut lines = shared_lines(&config, &now);
        for rule in own.into_iter().flat_map(address_rules) {
            if !now.rules(CHAIN).any(|found| found == rule) {
                lines.push(format!("-A {CHAIN} {rule}"));
            }
        }
        if config.ingress_policy != Policy::Open {
            lines.extend(isolation_lines(config.ingress_policy, &now, bridge_name(&result)?));
        }
        iptables.apply("filter", &lines)?;
    }
    Ok(result)
}

/// Chains of all containers and what leads to them.
fn shared_lines(config: &Config, now: &Table) -> Vec<String> {
    let admin = config.admin_chain();
    let mut lines: Vec<_> = [CHAIN, admin].into_iter().filter(|name| !now.has_chain(name)).map(empty_chain).collect();
    if !now.leads_to("FORWARD", CHAIN) {
        lines.push(format!("-I FORWARD -m comment --comment \"CNI firewall plugin rules\" -j {CHAIN}"));
    }
    if !now.leads_to(CHAIN, admin) {
        lines.push(format!("-I {CHAIN} -m comment --comment \"CNI firewall plugin admin overrides\" -j {admin}"));
    }
    lines
}

fn bridge_name(result: &CniResult) -> Result<&str, Failure> {
    let first = result.interfaces.first().map(|entry| entry.name.as_str()).filter(|name| !name.is_empty());
    first
        .ok_or_else(|| Failure::config("an ingress policy needs the bridge's name: chain \"firewall\" with \"bridge\""))
}

/// Keeps networks apart: what leaves a bridge for another is dropped there. These rules stay as long as the bridge.
fn isolation_lines(policy: Policy, now: &Table, bridge: &str) -> Vec<String> {
    let both = "-m comment --comment \"CNI firewall plugin rules (ingressPolicy: same-bridge|isolated)\"";
    let name = if policy == Policy::Isolated { "isolated" } else { "same-bridge" };
    let own = format!("-m comment --comment \"CNI firewall plugin rules (ingressPolicy: {name})\"");
    let mut lines: Vec<_> =
        [STAGE_1, STAGE_2].into_iter().filter(|name| !now.has_chain(name)).map(empty_chain).collect();
    let has = |chain: &str, parts: &[&str]| now.rules(chain).any(|rule| parts.iter().all(|part| rule.contains(part)));
    if !now.leads_to("FORWARD", STAGE_1) {
        lines.push(format!("-I FORWARD {both} -j {STAGE_1}"));
    }
    if !has(STAGE_1, &[&format!("-i {bridge} ! -o {bridge} "), &format!("-j {STAGE_2}")]) {
        lines.push(format!("-I {STAGE_1} -i {bridge} ! -o {bridge} {own} -j {STAGE_2}"));
    }
    if policy == Policy::Isolated && !has(STAGE_1, &[&format!("-i {bridge} -o {bridge} "), "-j DROP"]) {
        lines.push(format!("-I {STAGE_1} -i {bridge} -o {bridge} {own} -j DROP"));
    }
    if !now.leads_to(STAGE_1, "RETURN") {
        lines.push(format!("-A {STAGE_1} {both} -j RETURN"));
    }
    if !has(STAGE_2, &[&format!("-o {bridge} "), "-j DROP"]) {
        lines.push(format!("-I {STAGE_2} -o {bridge} {both} -j DROP"));
    }
    if !now.leads_to(STAGE_2, "RETURN") {
        lines.push(format!("-A {STAGE_2} {both} -j RETURN"));
    }
    lines
}

fn del(request: &Request) -> Result<(), Failure> {
    Config::load(request)?;
    // Without a result nothing says which addresses they were.
    let Some(result) = request.previous()? else { return Ok(()) };
    for iptables in [true, false].into_iter().filter_map(Iptables::find) {
        let own = addresses(&result, iptables.is_v4);
        if own.is_empty() {
            continue;
        }
        let now = iptables.table("filter")?;
        let rules = own.into_iter().flat_map(address_rules);
        let present = rules.filter(|rule| now.rules(CHAIN).any(|found| found == rule));
        let lines: Vec<_> = present.map(|rule| format!("-D {CHAIN} {rule}")).collect();
        iptables.apply("filter", &lines)?;
    }
    Ok(())
}

fn check(request: &Request) -> Result<(), Failure> {
    let config = Config::load(request)?;
    let result = request.required_previous()?;
    for is_v4 in [true, false] {
        let own = addresses(&result, is_v4);
        if own.is_empty() {
            continue;
        }
        let now = Iptables::required(is_v4)?.table("filter")?;
        let missing = |what: String| Err(Failure::new(Code::Internal, format!("expected {what} not found")));
        if !now.leads_to("FORWARD", CHAIN) || !now.leads_to(CHAIN, config.admin_chain()) {
            return missing(format!("chains {CHAIN} and {}", config.admin_chain()));
        }
        for rule in own.into_iter().flat_map(address_rules) {
            if !now.rules(CHAIN).any(|found| found == rule) {
                return missing(format!("rule {rule}"));
            }
        }
    }
    Ok(())
}
