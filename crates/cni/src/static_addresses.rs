//! `static`: the addresses that the configuration names.

use std::net::IpAddr;

use serde::Deserialize;

use crate::failure::{Code, Failure};
use crate::request::Request;
use crate::result::{Cidr, CniResult, Dns, IpConfig, RouteConfig, nullable, optional_address};
use crate::{Plugin, nothing};

pub(crate) const PLUGIN: Plugin = Plugin { name: "static", add, del: nothing, check, status: nothing, gc: nothing };

/// Keys of `CNI_ARGS` that mean something here.
const ARGUMENTS: [&str; 2] = ["IP", "GATEWAY"];

#[derive(Deserialize)]
struct Config {
    ipam: Ipam,
    #[serde(default, rename = "runtimeConfig")]
    runtime: Wanted,
    #[serde(default)]
    args: Option<Args>,
}

#[derive(Deserialize)]
struct Ipam {
    #[serde(default, deserialize_with = "nullable")]
    routes: Vec<RouteConfig>,
    #[serde(default, deserialize_with = "nullable")]
    addresses: Vec<Address>,
    #[serde(default)]
    dns: Dns,
}

#[derive(Deserialize, Clone)]
struct Address {
    address: Cidr,
    #[serde(default, deserialize_with = "optional_address")]
    gateway: Option<IpAddr>,
}

#[derive(Deserialize, Default)]
struct Args {
    #[serde(default)]
    cni: Option<Wanted>,
}

#[derive(Deserialize, Default)]
struct Wanted {
    #[serde(default, deserialize_with = "nullable")]
    ips: Vec<Cidr>,
}

/// The configuration, and the addresses after everybody who may change them had a say.
fn load(request: &Request) -> Result<(Config, Vec<Address>), Failure> {
    let config: Config = request.config()?;
    let mut addresses = config.ipam.addresses.clone();
    for text in request.argument("IP", &ARGUMENTS)?.unwrap_or_default().split(',').filter(|text| !text.is_empty()) {
        let address = text.trim().parse().map_err(|error| Failure::config(format!("the 'ip' field: {error}")))?;
        addresses.push(Address { address, gateway: None });
    }
    for text in request.argument("GATEWAY", &ARGUMENTS)?.unwrap_or_default().split(',').filter(|text| !text.is_empty())
    {
        let gateway: IpAddr =
            text.trim().parse().map_err(|_| Failure::config(format!("invalid gateway address: {text}")))?;
        for address in addresses.iter_mut().filter(|address| address.address.contains(gateway)) {
            address.gateway = Some(gateway);
        }
    }
    let from_args = config.args.as_ref().and_then(|args| args.cni.as_ref()).map(|wanted| &wanted.ips);
    for ips in [from_args, Some(&config.runtime.ips)].into_iter().flatten().filter(|ips| !ips.is_empty()) {
        addresses = ips.iter().map(|address| Address { address: *address, gateway: None }).collect();
    }
    Ok((config, addresses))
}

fn add(request: &Request) -> Result<CniResult, Failure> {
    let (config, addresses) = load(request)?;
    let ip = |address: Address| IpConfig { interface: None, address: address.address, gateway: address.gateway };
    Ok(CniResult {
        ips: addresses.into_iter().map(ip).collect(),
        routes: config.ipam.routes,
        dns: config.ipam.dns,
        ..CniResult::default()
    })
}

fn check(request: &Request) -> Result<(), Failure> {
    let (_, addresses) = load(request)?;
    let previous = request.required_previous()?;
    for address in addresses {
        let found = previous.ips.iter().find(|ip| ip.address.0.address == address.address.0.address);
        if found.is_none_or(|ip| address.gateway.is_some() && ip.gateway != address.gateway) {
            let text = format!("static: failed to match addr {} on interface {}", address.address, request.ifname);
            return Err(Failure::new(Code::Internal, text));
        }
    }
    Ok(())
}
