//! `ptp`: a pair of devices between the container and the node, with routes instead of a bridge.

use std::io;
use std::os::fd::AsFd as _;

use netlink::Socket;
use netlink::route::{Link, Route, SCOPE_LINK, SCOPE_NOWHERE, SCOPE_UNIVERSE};
use serde::Deserialize;

use crate::bridge::Ipam;
use crate::device::{self, PairOptions, mac_text};
use crate::failure::{Context as _, Failure};
use crate::masquerade::{self, BackEnd};
use crate::request::Request;
use crate::result::{Cidr, CniResult, Dns, Interface};
use crate::{Plugin, interface, ipam};

pub(crate) const PLUGIN: Plugin = Plugin { name: "ptp", add, del, check, status, gc };

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    ip_masq: bool,
    ip_masq_backend: Option<BackEnd>,
    mtu: u32,
    ipam: Ipam,
    dns: Dns,
}

fn add(request: &Request) -> Result<CniResult, Failure> {
    let config: Config = request.config()?;
    let namespace = request.namespace()?;
    let socket = Socket::route().context(|| "open a netlink socket".to_owned())?;
    let result = ipam::add(request, &config.ipam.kind)?;
    let options = PairOptions { ifname: &request.ifname, host_name: None, mtu: config.mtu, mac: None, master: None };
    let made = device::make_pair(&socket, namespace.as_fd(), &options).and_then(|host| {
        let attached = attach(request, &config, &socket, &host, result);
        if attached.is_err() {
            let _ = socket.delete_link(host.index);
        }
        attached
    });
    if made.is_err() {
        let _ = ipam::del(request, &config.ipam.kind);
        if config.ip_masq {
            let _ = masquerade::remove(request);
        }
    }
    made
}

fn attach(
    request: &Request,
    config: &Config,
    socket: &Socket,
    host: &Link,
    mut result: CniResult,
) -> Result<CniResult, Failure> {
    for ip in &mut result.ips {
        // The node's end, the container's end.
        ip.interface = Some(1);
        if ip.gateway.is_none() {
            return Err(Failure::config(format!("address {} has no gateway, which ptp routes through", ip.address)));
        }
        device::enable_forwarding(ip.address.is_v4())?;
    }
    let namespace = request.namespace()?;
    let own = device::inside(namespace.as_fd(), |socket| {
        let link = device::link(socket, &request.ifname)?;
        interface::configure(socket, &link, &result)?;
        route_over_gateway(socket, &link, &result)?;
        Ok(link)
    })?;
    configure_host(socket, host, &result)?;
    if config.ip_masq {
        let addresses: Vec<Cidr> = result.ips.iter().map(|ip| ip.address).collect();
        masquerade::add(request, &addresses, config.ip_masq_backend)?;
    }
    let entry =
        |link: &Link| Interface { name: link.name.clone(), mac: mac_text(&link.address), ..Interface::default() };
    result.interfaces = vec![entry(host), Interface { sandbox: request.namespace_path(), ..entry(&own) }];
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    Ok(result)
}

/// Neighbours in the subnet are not on this link: the way to them is over the gateway, which alone is.
fn route_over_gateway(socket: &Socket, link: &Link, result: &CniResult) -> Result<(), Failure> {
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let network = ip.address.network().0;
        let route = |destination, gateway, scope| Route {
            destination,
            gateway,
            device: link.index,
            source: Some(ip.address.0.address),
            scope,
            priority: 0,
            table: None,
            mtu: None,
            advertised_mss: None,
        };
        // The kernel made it with the address.
        let direct = Route { source: None, ..route(network, None, SCOPE_NOWHERE) };
        match socket.delete_route(&direct) {
            Err(error) if !netlink::route::is_missing(&error) => {
                return Err(error).context(|| format!("failed to delete route {}", Cidr(network)));
            }
            _ => {}
        }
        for made in [route(Cidr::host(gateway).0, None, SCOPE_LINK), route(network, Some(gateway), SCOPE_UNIVERSE)] {
            socket.add_route(&made).context(|| format!("failed to add route {}", Cidr(made.destination)))?;
        }
    }
    Ok(())
}

/// The gateway's address on the node's end, and the way to the container.
fn configure_host(socket: &Socket, host: &Link, result: &CniResult) -> Result<(), Failure> {
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let added = socket.add_address(host.index, Cidr::host(gateway).0);
        added.context(|| format!("failed to add IP addr {gateway} to {:?}", host.name))?;
        let route = Route {
            destination: Cidr::host(ip.address.0.address).0,
            gateway: None,
            device: host.index,
            source: None,
            scope: SCOPE_LINK,
            priority: 0,
            table: None,
            mtu: None,
            advertised_mss: None,
        };
        match socket.add_route(&route) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(error).context(|| format!("failed to add route to {} on host", ip.address));
            }
            _ => {}
        }
    }
    Ok(())
}

fn del(request: &Request) -> Result<(), Failure> {
    let config: Config = request.config()?;
    ipam::del(request, &config.ipam.kind)?;
    if let Some(namespace) = request.namespace_if_there() {
        device::inside(namespace.as_fd(), |socket| interface::remove(socket, &request.ifname))?;
    }
    if config.ip_masq { masquerade::remove(request) } else { Ok(()) }
}

fn check(request: &Request) -> Result<(), Failure> {
    let config: Config = request.config()?;
    ipam::pass_on(request, &config.ipam.kind)?;
    let result = request.required_previous()?;
    let own = interface::find_own(request, &result)?;
    let namespace = request.namespace()?;
    device::inside(namespace.as_fd(), |socket| interface::check(socket, own, &result)).map(drop)
}

fn status(request: &Request) -> Result<(), Failure> {
    let config: Config = request.config()?;
    ipam::pass_on(request, &config.ipam.kind)
}

fn gc(request: &Request) -> Result<(), Failure> {
    let config: Config = request.config()?;
    ipam::pass_on(request, &config.ipam.kind)?;
    if config.ip_masq { masquerade::collect(request, &request.valid_attachments()?) } else { Ok(()) }
}
