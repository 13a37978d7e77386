//! The container's end: addresses, routes, and whether they are still what the result says.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink::Socket;
use netlink::route::{IFF_UP, Link, Prefix, Route, SCOPE_UNIVERSE};

use crate::device::{self, try_sysctl};
use crate::failure::{Code, Context as _, Failure};
use crate::request::Request;
use crate::result::{CniResult, Interface, RouteConfig};

/// How long an IPv6 address may take to be found unique.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

fn failed(text: impl std::fmt::Display) -> Failure {
    Failure::new(Code::Internal, text)
}

/// Gives the container's device its addresses, raises it and makes the routes. Runs inside.
pub(crate) fn configure(socket: &Socket, link: &Link, result: &CniResult) -> Result<(), Failure> {
    let name = &link.name;
    let has_v6 = result.ips.iter().any(|ip| !ip.address.is_v4());
    if has_v6 {
        for device in ["lo", name] {
            let path = format!("net/ipv6/conf/{device}/disable_ipv6");
            device::set_sysctl(&path, "0").context(|| format!("failed to enable IPv6 for interface {device:?}"))?;
        }
        // Else the kernel drops the address whenever the device goes down.
        try_sysctl(&format!("net/ipv6/conf/{name}/keep_addr_on_down"), "1");
    }
    for ip in &result.ips {
        let added = socket.add_address(link.index, ip.address.0);
        added.context(|| format!("failed to add IP addr {} to {name:?}", ip.address))?;
    }
    socket.set_up(link.index).context(|| format!("failed to set {name:?} UP"))?;
    if has_v6 {
        settle(socket, link)?;
    }
    for route in &result.routes {
        let made = route_through(link, route, result);
        socket.add_route(&made).context(|| {
            format!("failed to add route '{} via {:?} dev {name}'", route.dst, made.gateway.map(|ip| ip.to_string()))
        })?;
    }
    Ok(())
}

/// A route without a gateway of its own goes over the first of its family.
fn route_through(link: &Link, route: &RouteConfig, result: &CniResult) -> Route {
    let is_v4 = route.dst.is_v4();
    let first = || result.ips.iter().filter_map(|ip| ip.gateway).find(|gateway| gateway.is_ipv4() == is_v4);
    Route {
        destination: route.dst.network().0,
        gateway: route.gw.or_else(first),
        device: link.index,
        source: None,
        scope: route.scope.unwrap_or(SCOPE_UNIVERSE),
        priority: route.priority.unwrap_or_default(),
        table: route.table,
        mtu: route.mtu,
        advertised_mss: route.advmss,
    }
}

/// Waits until no address is tentative: before that nothing can be bound to it.
fn settle(socket: &Socket, link: &Link) -> Result<(), Failure> {
    let end = Instant::now() + SETTLE_LIMIT;
    loop {
        let addresses = socket.addresses(link.index).context(|| format!("list addresses of {:?}", link.name))?;
        let is_own = |prefix: &Prefix| match prefix.address {
            IpAddr::V6(v6) => !v6.is_unicast_link_local(),
            IpAddr::V4(_) => false,
        };
        if !addresses.iter().any(|(prefix, is_tentative)| *is_tentative && is_own(prefix)) {
            return Ok(());
        }
        if Instant::now() >= end {
            return Err(failed(format!("addresses of {:?} are still tentative after 5 seconds", link.name)));
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Removes a device by name if it is there. Runs inside.
pub(crate) fn remove(socket: &Socket, name: &str) -> Result<(), Failure> {
    let what = || format!("failed to delete {name:?}");
    let Some(link) = socket.find_link(name).context(what)? else { return Ok(()) };
    match socket.delete_link(link.index) {
        Err(error) if !netlink::route::is_missing(&error) => Err(error).context(what),
        _ => Ok(()),
    }
}

/// The result's entry of the container's device.
pub(crate) fn find_own<'a>(request: &Request, result: &'a CniResult) -> Result<&'a Interface, Failure> {
    let path = request.namespace_path();
    let own = result.interfaces.iter().find(|entry| entry.name == request.ifname && entry.sandbox == path);
    own.ok_or_else(|| failed(format!("sandbox in prevResult doesn't match configured netns: {path}")))
}

/// Whether the device, its addresses and routes are what the result says. Runs inside.
pub(crate) fn check(socket: &Socket, own: &Interface, result: &CniResult) -> Result<Link, Failure> {
    let link = device::link(socket, &own.name)?;
    if link.kind.as_deref() != Some("veth") {
        return Err(failed(format!("container interface {} not of type veth", own.name)));
    }
    let mac = device::mac_text(&link.address);
    if !own.mac.is_empty() && own.mac != mac {
        return Err(failed(format!("interface {} Mac {} doesn't match container Mac: {mac}", own.name, own.mac)));
    }
    if link.flags & IFF_UP == 0 {
        return Err(failed(format!("interface {} is down", own.name)));
    }
    let what = || format!("read addresses and routes of {}", own.name);
    let addresses = socket.addresses(link.index).context(what)?;
    for ip in &result.ips {
        let is_for_other = ip.interface.is_some_and(|at| result.interfaces.get(at).is_some_and(|it| it != own));
        if !is_for_other && !addresses.iter().any(|(prefix, _)| *prefix == ip.address.0) {
            return Err(failed(format!("failed to match addr {} on interface {}", ip.address, own.name)));
        }
    }
    let routes = socket.routes(link.index).context(what)?;
    for route in result.routes.iter().filter(|route| route.table.is_none()) {
        if !routes.iter().any(|(destination, _)| *destination == route.dst.network().0) {
            return Err(failed(format!("expected route {} not found", route.dst)));
        }
    }
    Ok(link)
}
