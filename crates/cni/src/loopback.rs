//! `loopback`: raises `lo`.

use std::os::fd::AsFd as _;

use netlink::route::IFF_UP;

use crate::failure::{Code, Context as _, Failure};
use crate::request::Request;
use crate::result::{Cidr, CniResult, Interface, IpConfig};
use crate::{Plugin, device, nothing};

pub(crate) const PLUGIN: Plugin = Plugin { name: "loopback", add, del, check, status: nothing, gc: nothing };

/// Whatever the caller calls it.
const NAME: &str = "lo";

fn add(request: &Request) -> Result<CniResult, Failure> {
    let previous = request.previous()?;
    let namespace = request.namespace()?;
    let addresses = device::inside(namespace.as_fd(), |socket| {
        let link = device::link(socket, NAME)?;
        socket.set_up(link.index).context(|| format!("failed to set {NAME:?} UP"))?;
        socket.addresses(link.index).context(|| format!("list addresses of {NAME:?}"))
    })?;
    if let Some((foreign, _)) = addresses.iter().find(|(prefix, _)| !prefix.address.is_loopback()) {
        let text = format!("loopback interface found with non-loopback address {}", foreign.address);
        return Err(Failure::new(Code::Internal, text));
    }
    if let Some(previous) = previous {
        return Ok(previous);
    }
    let interface = Interface {
        name: NAME.to_owned(),
        mac: "00:00:00:00:00:00".to_owned(),
        sandbox: request.namespace_path(),
        ..Interface::default()
    };
    let ip = |is_v4| {
        let (prefix, _) = addresses.iter().find(|(prefix, _)| prefix.address.is_ipv4() == is_v4)?;
        Some(IpConfig { interface: Some(0), address: Cidr(*prefix), gateway: None })
    };
    let ips = [true, false].into_iter().filter_map(ip).collect();
    Ok(CniResult { interfaces: vec![interface], ips, ..CniResult::default() })
}

fn del(request: &Request) -> Result<(), Failure> {
    let Some(namespace) = request.namespace_if_there() else { return Ok(()) };
    device::inside(namespace.as_fd(), |socket| {
        let link = device::link(socket, NAME)?;
        socket.set_flags(link.index, 0, IFF_UP).context(|| format!("failed to set {NAME:?} down"))
    })
}

fn check(request: &Request) -> Result<(), Failure> {
    let namespace = request.namespace()?;
    device::inside(namespace.as_fd(), |socket| {
        if device::link(socket, NAME)?.flags & IFF_UP == 0 {
            return Err(Failure::new(Code::Internal, "loopback interface is down"));
        }
        Ok(())
    })
}
