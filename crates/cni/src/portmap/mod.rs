//! `portmap`: ports of the node that lead into the container.

use std::net::IpAddr;

use netlink::Socket;
use serde::Deserialize;

use crate::device::set_sysctl;
use crate::failure::{Context as _, Failure};
use crate::masquerade::BackEnd;
use crate::request::Request;
use crate::result::{Cidr, CniResult, nullable};
use crate::{Plugin, nothing};

mod conntrack;
mod iptables;
mod nf_tables;

pub(crate) const PLUGIN: Plugin = Plugin { name: "portmap", add, del, check, status: nothing, gc: nothing };

/// The bit of a packet's mark that asks for masquerading; Kubernetes uses 14 and 15, Calico 20 to 31.
const MARK_BIT: u8 = 13;

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    #[serde(default)]
    backend: Option<BackEnd>,
    #[serde(default)]
    snat: Option<bool>,
    #[serde(default, rename = "conditionsV4", deserialize_with = "nullable")]
    conditions_v4: Vec<String>,
    #[serde(default, rename = "conditionsV6", deserialize_with = "nullable")]
    conditions_v6: Vec<String>,
    #[serde(default)]
    masq_all: bool,
    #[serde(default)]
    mark_masq_bit: Option<u8>,
    #[serde(default)]
    external_set_mark_chain: Option<String>,
    #[serde(default)]
    runtime_config: RuntimeConfig,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(deserialize_with = "nullable")]
    port_mappings: Vec<RawMapping>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawMapping {
    host_port: i64,
    container_port: i64,
    protocol: String,
    #[serde(default, rename = "hostIP")]
    host_ip: String,
}

/// A port of the node and where it leads.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mapping {
    host_port: u16,
    container_port: u16,
    /// `tcp`, `udp` or `sctp`
    protocol: &'static str,
    /// Only on this address of the node. The unspecified address means every one of its family.
    host_ip: Option<IpAddr>,
}

impl Mapping {
    fn parse(raw: &RawMapping) -> Result<Self, Failure> {
        let port = |number: i64, what: &str| match u16::try_from(number) {
            Ok(port) if port > 0 => Ok(port),
            _ => Err(Failure::config(format!("Invalid {what} port number: {number}"))),
        };
        let protocol = ["tcp", "udp", "sctp"].into_iter().find(|name| raw.protocol.eq_ignore_ascii_case(name));
        let protocol = protocol.ok_or_else(|| Failure::config(format!("unknown protocol {:?}", raw.protocol)))?;
        let host_ip = match raw.host_ip.as_str() {
            "" => None,
            text => Some(text.parse().map_err(|_| Failure::config(format!("invalid hostIP {text:?}")))?),
        };
        Ok(Self {
            host_port: port(raw.host_port, "host")?,
            container_port: port(raw.container_port, "container")?,
            protocol,
            host_ip,
        })
    }

    /// IP's number of the protocol.
    fn protocol_number(&self) -> u8 {
        match self.protocol {
            "tcp" => 6,
            "udp" => 17,
            _ => 132,
        }
    }

    /// The node's address it is bound to, if it is to one.
    fn bound(&self) -> Option<IpAddr> {
        self.host_ip.filter(|ip| !ip.is_unspecified())
    }
}

/// What is asked for one family.
struct Wanted<'a> {
    request: &'a Request,
    config: &'a Config,
    /// Where the ports lead, with the prefix of its network.
    container: Cidr,
    /// Those of the family.
    mappings: Vec<Mapping>,
}

impl Wanted<'_> {
    fn does_snat(&self) -> bool {
        self.config.snat.unwrap_or(true)
    }

    fn conditions(&self) -> &[String] {
        if self.container.is_v4() { &self.config.conditions_v4 } else { &self.config.conditions_v6 }
    }
}

fn load(request: &Request) -> Result<(Config, Vec<Mapping>), Failure> {
    let config: Config =
        request.config().map_err(|failure| Failure::config(format!("failed to parse config: {failure}")))?;
    if config.mark_masq_bit.is_some() && config.external_set_mark_chain.is_some() {
        return Err(Failure::config("Cannot specify externalSetMarkChain and markMasqBit"));
    }
    if config.mark_masq_bit.is_some_and(|bit| bit > 31) {
        return Err(Failure::config("MasqMarkBit must be between 0 and 31"));
    }
    let mappings = config.runtime_config.port_mappings.iter().map(Mapping::parse).collect::<Result<_, _>>()?;
    Ok((config, mappings))
}

/// Conditions of iptables begin with a hyphen or an exclamation mark, those of nft never do.
fn back_end(config: &Config) -> Result<BackEnd, Failure> {
    let chosen = BackEnd::choose(config.backend);
    let is_iptables = |conditions: &[String]| conditions.first().map(|first| first.starts_with(['-', '!']));
    let wrong = match chosen {
        BackEnd::Iptables => Some(false),
        BackEnd::Nftables => Some(true),
    };
    let has_wrong = [&config.conditions_v4, &config.conditions_v6].into_iter().any(|list| is_iptables(list) == wrong);
    if has_wrong || chosen == BackEnd::Nftables && config.external_set_mark_chain.is_some() {
        let text = format!("{chosen:?} was chosen but the configuration contains options of the other backend");
        return Err(Failure::config(text.to_lowercase()));
    }
    if chosen == BackEnd::Nftables && !(config.conditions_v4.is_empty() && config.conditions_v6.is_empty()) {
        return Err(Failure::config("conditions in nft's language are not supported by the plugin built in"));
    }
    Ok(chosen)
}

/// The container's first address of a family.
fn container_address(request: &Request, result: &CniResult, is_v4: bool) -> Option<Cidr> {
    let is_own = |at: usize| {
        let entry = result.interfaces.get(at);
        entry.is_none_or(|entry| entry.name == request.ifname && !entry.sandbox.is_empty())
    };
    let mut ips = result.ips.iter().filter(|ip| ip.address.is_v4() == is_v4);
    ips.find(|ip| ip.interface.is_none_or(is_own)).map(|ip| ip.address)
}

/// What is asked, for each family in which the container has an address.
fn wanted<'a>(request: &'a Request, config: &'a Config, mappings: &[Mapping], result: &CniResult) -> Vec<Wanted<'a>> {
    let of_family = |is_v4| {
        let container = container_address(request, result, is_v4)?;
        let fits = |mapping: &&Mapping| mapping.host_ip.is_none_or(|ip| ip.is_ipv4() == is_v4);
        Some(Wanted { request, config, container, mappings: mappings.iter().filter(fits).cloned().collect() })
    };
    [true, false].into_iter().filter_map(of_family).collect()
}

fn add(request: &Request) -> Result<CniResult, Failure> {
    let (config, mappings) = load(request)?;
    let result = request.required_previous()?;
    if mappings.is_empty() {
        return Ok(result);
    }
    let back_end = back_end(&config)?;
    for wanted in wanted(request, &config, &mappings, &result) {
        let added = match back_end {
            BackEnd::Iptables => iptables::add(&wanted),
            BackEnd::Nftables => nf_tables::add(&wanted),
        };
        let added = added.and_then(|()| allow_loopback(&wanted));
        if added.is_err() {
            let _ = remove(request);
            added?;
        }
        let udp = wanted.mappings.iter().filter(|mapping| mapping.protocol == "udp");
        conntrack::forget_udp(wanted.container.is_v4(), udp.map(|mapping| mapping.host_port));
    }
    Ok(result)
}

/// Lets packets from 127.0.0.0/8 leave by the device that leads to the container.
fn allow_loopback(wanted: &Wanted<'_>) -> Result<(), Failure> {
    let what = || "unable to enable route_localnet".to_owned();
    if !wanted.does_snat() || !wanted.container.is_v4() {
        return Ok(());
    }
    let socket = Socket::route().context(what)?;
    let device = socket.device_towards(wanted.container.0.address).context(what)?;
    let Some(device) = device.map(|index| socket.find_link_by_index(index)).transpose().context(what)?.flatten() else {
        return Ok(());
    };
    set_sysctl(&format!("net/ipv4/conf/{}/route_localnet", device.name), "1").context(what)
}

fn remove(request: &Request) -> Result<(), Failure> {
    iptables::remove(request)?;
    nf_tables::remove(request)
}

fn del(request: &Request) -> Result<(), Failure> {
    let (_, mappings) = load(request)?;
    if mappings.is_empty() { Ok(()) } else { remove(request) }
}

fn check(request: &Request) -> Result<(), Failure> {
    let (config, mappings) = load(request)?;
    let result = request.required_previous()?;
    if mappings.is_empty() {
        return Ok(());
    }
    let back_end = back_end(&config)?;
    for wanted in wanted(request, &config, &mappings, &result) {
        match back_end {
            BackEnd::Iptables => iptables::check(&wanted)?,
            BackEnd::Nftables => nf_tables::check(&wanted)?,
        }
    }
    Ok(())
}
