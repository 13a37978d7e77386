//! `bridge`: a pair of devices between the container and a bridge of the node.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

use netlink::Socket;
use netlink::route::{IFF_PROMISC, IFF_UP, Link, NewLink, Prefix};
use serde::Deserialize;

use crate::device::{self, PairOptions, mac_text, parse_mac, try_sysctl};
use crate::failure::{Code, Context as _, Failure};
use crate::masquerade::{self, BackEnd};
use crate::request::{Request, check_device_name};
use crate::result::{Cidr, CniResult, Dns, Interface, RouteConfig};
use crate::{Plugin, interface, ipam, spoofing};

pub(crate) const PLUGIN: Plugin = Plugin { name: "bridge", add, del, check, status, gc };

/// Largest VLAN id.
const VLAN_MAX: u16 = 4094;
/// Milliseconds between looks at whether the port passes packets; the kernel tells after a moment.
const PORT_WAITS: [u64; 8] = [0, 1, 2, 5, 20, 100, 500, 2000];

#[derive(Debug, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Config {
    bridge: String,
    is_gateway: bool,
    is_default_gateway: bool,
    force_address: bool,
    ip_masq: bool,
    ip_masq_backend: Option<BackEnd>,
    mtu: u32,
    hairpin_mode: bool,
    promisc_mode: bool,
    vlan: u16,
    vlan_trunk: Option<Vec<Trunk>>,
    preserve_default_vlan: bool,
    macspoofchk: bool,
    enabledad: bool,
    disable_container_interface: bool,
    port_isolation: bool,
    ipam: Ipam,
    dns: Dns,
    args: Args,
    runtime_config: Wanted,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bridge: "cni0".to_owned(),
            is_gateway: false,
            is_default_gateway: false,
            force_address: false,
            ip_masq: false,
            ip_masq_backend: None,
            mtu: 0,
            hairpin_mode: false,
            promisc_mode: false,
            vlan: 0,
            vlan_trunk: None,
            preserve_default_vlan: false,
            macspoofchk: false,
            enabledad: false,
            disable_container_interface: false,
            port_isolation: false,
            ipam: Ipam::default(),
            dns: Dns::default(),
            args: Args::default(),
            runtime_config: Wanted::default(),
        }
    }
}

/// The part of `ipam` that whoever delegates reads.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Ipam {
    #[serde(rename = "type")]
    pub(crate) kind: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Args {
    cni: Wanted,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Wanted {
    mac: String,
}

/// VLANs that a port carries tagged: one, or all from one to another.
#[derive(Debug, Deserialize)]
struct Trunk {
    #[serde(rename = "minID")]
    first: Option<u16>,
    #[serde(rename = "maxID")]
    last: Option<u16>,
    id: Option<u16>,
}

impl Config {
    fn load(request: &Request) -> Result<Self, Failure> {
        let mut config: Self = request.config()?;
        config.is_gateway |= config.is_default_gateway;
        check_device_name(&config.bridge).map_err(|failure| Failure::config(format!("bridge: {failure}")))?;
        if config.vlan > VLAN_MAX {
            let text = format!("invalid VLAN ID {} (must be between 0 and 4094)", config.vlan);
            return Err(Failure::config(text));
        }
        if config.disable_container_interface && !config.ipam.kind.is_empty() {
            return Err(Failure::config("cannot use IPAM when DisableContainerInterface flag is set"));
        }
        if config.hairpin_mode && config.promisc_mode {
            return Err(Failure::config("cannot set hairpin mode and promiscuous mode at the same time"));
        }
        Ok(config)
    }

    /// The address the container's device is to have: the most specific wish wins.
    fn mac(&self, request: &Request) -> Result<Option<[u8; 6]>, Failure> {
        let argument = request.argument("MAC", &["MAC"])?.unwrap_or_default();
        let wishes = [self.runtime_config.mac.as_str(), self.args.cni.mac.as_str(), argument];
        wishes.into_iter().find(|wish| !wish.is_empty()).map(parse_mac).transpose()
    }

    fn trunk(&self) -> Result<Vec<u16>, Failure> {
        let mut vlans = Vec::new();
        let valid = |vlan: u16, what: &str| match (1..=VLAN_MAX).contains(&vlan) {
            true => Ok(vlan),
            false => Err(Failure::config(format!("incorrect trunk {what} parameter"))),
        };
        for item in self.vlan_trunk.iter().flatten() {
            match (item.first, item.last) {
                (Some(first), Some(last)) if first <= last => {
                    vlans.extend(valid(first, "minID")?..=valid(last, "maxID")?);
                }
                (Some(_), Some(_)) => return Err(Failure::config("minID is greater than maxID in trunk parameter")),
                (None, None) => {}
                _ => return Err(Failure::config("minID and maxID should be configured simultaneously")),
            }
            if let Some(id) = item.id {
                vlans.push(valid(id, "id")?);
            }
        }
        vlans.sort_unstable();
        vlans.dedup();
        Ok(vlans)
    }
}

fn add(request: &Request) -> Result<CniResult, Failure> {
    let config = Config::load(request)?;
    let (mac, trunk) = (config.mac(request)?, config.trunk()?);
    let namespace = request.namespace()?;
    let socket = Socket::route().context(|| "open a netlink socket".to_owned())?;
    let bridge = ensure_bridge(&socket, &config)?;
    let options =
        PairOptions { ifname: &request.ifname, host_name: None, mtu: config.mtu, mac, master: Some(bridge.index) };
    let port = device::make_pair(&socket, namespace.as_fd(), &options)?;
    let given = set_up_port(&socket, &config, &bridge, &port, &trunk).and_then(|()| match config.ipam.kind.as_str() {
        "" => Ok(CniResult::default()),
        kind => ipam::add(request, kind),
    });
    let made = match given {
        Ok(given) => attach(request, &config, &socket, &bridge, &port, given),
        Err(failure) => {
            // Leases of this name are another attachment's.
            let _ = socket.delete_link(port.index);
            return Err(failure);
        }
    };
    if made.is_err() {
        undo(request, &config, &socket, &port);
    }
    made
}

/// A failed ADD leaves nothing. What fails here too is for DEL.
fn undo(request: &Request, config: &Config, socket: &Socket, port: &Link) {
    let _ = socket.delete_link(port.index);
    if !config.ipam.kind.is_empty() {
        let _ = ipam::del(request, &config.ipam.kind);
        if config.ip_masq {
            let _ = masquerade::remove(request);
        }
    }
    if config.macspoofchk {
        let _ = spoofing::remove(request);
    }
}

/// Everything after the pair, with the addresses given to it.
fn attach(
    request: &Request,
    config: &Config,
    socket: &Socket,
    bridge: &Link,
    port: &Link,
    mut result: CniResult,
) -> Result<CniResult, Failure> {
    for ip in &mut result.ips {
        // Bridge, port, container.
        ip.interface = Some(2);
        if ip.gateway.is_none() && config.is_gateway {
            ip.gateway = Some(ip.address.first_host());
        }
    }
    if config.is_default_gateway {
        add_default_routes(&mut result);
    }
    let mac = configure_container(request, config, &result)?;
    if config.macspoofchk {
        spoofing::add(request, &port.name, mac)?;
    }
    let named =
        |link: &Link| Interface { name: link.name.clone(), mac: mac_text(&link.address), ..Interface::default() };
    let own = Interface {
        name: request.ifname.clone(),
        mac: mac_text(&mac),
        sandbox: request.namespace_path(),
        ..Interface::default()
    };
    let mut interfaces = vec![named(port), own];
    if config.is_gateway {
        let gateway = ensure_gateway(socket, config, bridge, &result)?;
        interfaces.extend(gateway.iter().map(named));
    }
    if config.ip_masq && !result.ips.is_empty() {
        let addresses: Vec<Cidr> = result.ips.iter().map(|ip| ip.address).collect();
        masquerade::add(request, &addresses, config.ip_masq_backend)?;
    }
    if !config.disable_container_interface {
        wait_for_port(socket, &port.name)?;
    }
    // Read again: its address changes with its first port, and when it is pinned.
    interfaces.insert(0, named(&device::link(socket, &bridge.name)?));
    result.interfaces = interfaces;
    if !config.dns.is_empty() {
        result.dns = config.dns.clone();
    }
    Ok(result)
}

fn find_bridge(socket: &Socket, name: &str) -> Result<Option<Link>, Failure> {
    let found = socket.find_link(name).context(|| format!("could not lookup {name:?}"))?;
    match found {
        Some(link) if link.kind.as_deref() != Some("bridge") => {
            Err(Failure::config(format!("{name:?} already exists but is not a bridge")))
        }
        found => Ok(found),
    }
}

fn ensure_bridge(socket: &Socket, config: &Config) -> Result<Link, Failure> {
    let name = &config.bridge;
    let what = || format!("failed to create bridge {name:?}");
    let found = match find_bridge(socket, name)? {
        Some(found) => found,
        None => {
            let filtering = config.vlan != 0 || config.vlan_trunk.is_some();
            match socket.add_bridge(&NewLink { name, mtu: config.mtu, is_up: true }, filtering) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error).context(what),
                // Another ADD was faster.
                _ => {}
            }
            try_sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
            find_bridge(socket, name)?.ok_or_else(|| Failure::new(Code::Internal, what()))?
        }
    };
    let wanted = if config.promisc_mode { IFF_UP | IFF_PROMISC } else { IFF_UP };
    if found.flags & wanted != wanted {
        socket.set_flags(found.index, wanted, wanted).context(what)?;
    }
    Ok(found)
}

fn set_up_port(socket: &Socket, config: &Config, bridge: &Link, port: &Link, trunk: &[u16]) -> Result<(), Failure> {
    if config.hairpin_mode || config.port_isolation {
        let set = socket.set_port(port.index, config.hairpin_mode, config.port_isolation);
        set.context(|| format!("failed to setup hairpin mode or isolation for {:?}", port.name))?;
    }
    let what = || format!("failed to setup vlan tags on interface {:?}", port.name);
    if (config.vlan != 0 || !trunk.is_empty()) && !config.preserve_default_vlan {
        drop_default_vlan(socket, &bridge.name, port).context(what)?;
    }
    if config.vlan != 0 {
        socket.add_port_vlan(port.index, config.vlan, true).context(what)?;
    }
    for vlan in trunk {
        socket.add_port_vlan(port.index, *vlan, false).context(what)?;
    }
    if config.vlan == 0 && !trunk.is_empty() {
        // A trunk without a VLAN of its own speaks untagged on VLAN 1.
        socket.add_port_vlan(port.index, 1, true).context(what)?;
    }
    Ok(())
}

/// Ports begin with the bridge's default VLAN.
fn drop_default_vlan(socket: &Socket, bridge: &str, port: &Link) -> io::Result<()> {
    let text = std::fs::read_to_string(format!("/sys/class/net/{bridge}/bridge/default_pvid"))?;
    match text.trim().parse() {
        Ok(0) | Err(_) => Ok(()),
        Ok(vlan) => match socket.delete_port_vlan(port.index, vlan) {
            Err(error) if netlink::route::is_missing(&error) => Ok(()),
            outcome => outcome,
        },
    }
}

/// A default route for each family that has an address and no such route with a gateway.
fn add_default_routes(result: &mut CniResult) {
    for (is_v4, everything) in [(true, IpAddr::from([0; 4])), (false, IpAddr::from([0; 16]))] {
        let Some(ip) = result.ips.iter().find(|ip| ip.address.is_v4() == is_v4) else { continue };
        let mut routes = result.routes.iter().filter(|route| route.dst.is_v4() == is_v4);
        if !routes.any(|route| route.dst.is_default() && route.gw.is_some()) {
            result.routes.push(RouteConfig {
                dst: Cidr::new(everything, 0),
                gw: ip.gateway,
                mtu: None,
                advmss: None,
                priority: None,
                table: None,
                scope: None,
            });
        }
    }
}

/// Addresses, routes and the state of the container's end; returns its link layer address.
fn configure_container(request: &Request, config: &Config, result: &CniResult) -> Result<[u8; 6], Failure> {
    let namespace = request.namespace()?;
    device::inside(namespace.as_fd(), |socket| {
        let name = &request.ifname;
        let link = device::link(socket, name)?;
        if !result.ips.is_empty() {
            // Addresses of a range are unique already.
            let accept = if config.enabledad { "1" } else { "0" };
            if config.enabledad {
                try_sysctl(&format!("net/ipv6/conf/{name}/enhanced_dad"), "1");
            }
            try_sysctl(&format!("net/ipv6/conf/{name}/accept_dad"), accept);
            // Tells neighbours, who may remember another container with this address.
            try_sysctl(&format!("net/ipv4/conf/{name}/arp_notify"), "1");
            interface::configure(socket, &link, result)?;
        } else if !config.disable_container_interface {
            socket.set_up(link.index).context(|| format!("failed to set {name:?} up"))?;
        }
        let address = <[u8; 6]>::try_from(link.address.as_slice());
        address.context(|| format!("link layer address of {name:?}"))
    })
}

/// Gives the bridge, or its VLAN's device, the gateway's addresses. Returns that device if there is one.
fn ensure_gateway(
    socket: &Socket,
    config: &Config,
    bridge: &Link,
    result: &CniResult,
) -> Result<Option<Link>, Failure> {
    let vlan = match config.vlan {
        0 => None,
        _ if result.ips.is_empty() => None,
        vlan => Some(ensure_vlan_device(socket, config, bridge, vlan)?),
    };
    let device = vlan.as_ref().unwrap_or(bridge);
    let addresses = socket.addresses(device.index).context(|| "could not get list of IP addresses".to_owned())?;
    let present: Vec<Prefix> = addresses.into_iter().map(|(prefix, _)| prefix).collect();
    for ip in &result.ips {
        let Some(gateway) = ip.gateway else { continue };
        let wanted = Prefix { address: gateway, length: ip.address.0.length };
        ensure_address(socket, config, device, &present, wanted)?;
        device::enable_forwarding(gateway.is_ipv4())?;
    }
    Ok(vlan)
}

fn ensure_address(
    socket: &Socket,
    config: &Config,
    device: &Link,
    present: &[Prefix],
    wanted: Prefix,
) -> Result<(), Failure> {
    if present.contains(&wanted) {
        return Ok(());
    }
    let text = Cidr(wanted);
    // One IPv4 address; of IPv6 as many as there are networks.
    let in_the_way = |other: &&Prefix| {
        let is_same_family = other.address.is_ipv4() == wanted.address.is_ipv4();
        let overlaps = Cidr(**other).contains(wanted.address) || text.contains(other.address);
        is_same_family && (wanted.address.is_ipv4() || overlaps)
    };
    for other in present.iter().filter(in_the_way) {
        if !config.force_address {
            let text = format!("{:?} already has an IP address different from {text}", device.name);
            return Err(Failure::config(format!("failed to set bridge addr: {text}")));
        }
        let removed = socket.delete_address(device.index, *other);
        removed.context(|| format!("could not remove IP address from {:?}", device.name))?;
    }
    match socket.add_address(device.index, wanted) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
            return Err(error).context(|| format!("could not add IP address {text} to {:?}", device.name));
        }
        _ => {}
    }
    // Else the bridge takes the lowest address of its ports, and changes it as they come and go.
    let now = device::link(socket, &device.name)?;
    let pinned = socket.set_link_address(now.index, &now.address);
    pinned.context(|| format!("could not set {:?}'s mac", device.name))
}

/// The node's own port on a VLAN, named `BRIDGE.VLAN`; its far end is a port of the bridge.
fn ensure_vlan_device(socket: &Socket, config: &Config, bridge: &Link, vlan: u16) -> Result<Link, Failure> {
    let name = format!("{}.{vlan}", bridge.name);
    check_device_name(&name)?;
    let what = || format!("failed to create vlan gateway {name:?}");
    if let Some(found) = socket.find_link(&name).context(what)? {
        return Ok(found);
    }
    let here = std::fs::File::open("/proc/thread-self/ns/net").context(what)?;
    let options =
        PairOptions { ifname: &name, host_name: None, mtu: bridge.mtu, mac: None, master: Some(bridge.index) };
    let port = device::make_pair(socket, here.as_fd(), &options)?;
    let made = Config {
        vlan,
        hairpin_mode: false,
        port_isolation: false,
        preserve_default_vlan: config.preserve_default_vlan,
        ..Config::default()
    };
    let set = set_up_port(socket, &made, bridge, &port, &[]).and_then(|()| {
        let link = device::link(socket, &name)?;
        socket.set_up(link.index).context(what)?;
        Ok(link)
    });
    if set.is_err() {
        let _ = socket.delete_link(port.index);
    }
    set
}

/// Until packets pass: whoever gets the result may send at once.
fn wait_for_port(socket: &Socket, name: &str) -> Result<(), Failure> {
    for milliseconds in PORT_WAITS {
        std::thread::sleep(Duration::from_millis(milliseconds));
        if device::link(socket, name)?.is_operational {
            return Ok(());
        }
    }
    Err(Failure::new(Code::Internal, format!("bridge port in error state: {name:?} is not operational")))
}

fn del(request: &Request) -> Result<(), Failure> {
    let config = Config::load(request)?;
    if let Some(namespace) = request.namespace_if_there() {
        device::inside(namespace.as_fd(), |socket| interface::remove(socket, &request.ifname))?;
    }
    if !config.ipam.kind.is_empty() {
        ipam::del(request, &config.ipam.kind)?;
    }
    if config.macspoofchk {
        spoofing::remove(request)?;
    }
    if config.ip_masq && !config.ipam.kind.is_empty() {
        masquerade::remove(request)?;
    }
    Ok(())
}

fn check(request: &Request) -> Result<(), Failure> {
    let config = Config::load(request)?;
    if !config.ipam.kind.is_empty() {
        ipam::pass_on(request, &config.ipam.kind)?;
    }
    let result = request.required_previous()?;
    let failed = |text: String| Failure::new(Code::Internal, text);
    let socket = Socket::route().context(|| "open a netlink socket".to_owned())?;
    let bridge = find_bridge(&socket, &config.bridge)?;
    let bridge = bridge.ok_or_else(|| failed(format!("interface name {} not found", config.bridge)))?;
    let said = result.interfaces.iter().find(|entry| entry.name == config.bridge && entry.sandbox.is_empty());
    let said = said.ok_or_else(|| failed(format!("prevResult has no bridge {}", config.bridge)))?;
    let mac = mac_text(&bridge.address);
    if !said.mac.is_empty() && said.mac != mac {
        return Err(failed(format!("bridge interface {} Mac doesn't match: {}", bridge.name, said.mac)));
    }
    if (bridge.promiscuity != 0) != config.promisc_mode {
        let text = format!("bridge interface {} configured Promisc Mode {}", bridge.name, config.promisc_mode);
        return Err(failed(format!("{text} doesn't match current state: {}", bridge.promiscuity)));
    }
    let own = interface::find_own(request, &result)?;
    let namespace = request.namespace()?;
    let link = device::inside(namespace.as_fd(), |socket| interface::check(socket, own, &result))?;
    let port = link.peer.map(|peer| socket.find_link_by_index(peer)).transpose();
    let port = port.context(|| "look up the container's peer".to_owned())?.flatten();
    if port.is_none_or(|port| port.master != Some(bridge.index) || port.peer != Some(link.index)) {
        return Err(failed(format!("CNI veth created for bridge {} was not found", bridge.name)));
    }
    Ok(())
}

fn status(request: &Request) -> Result<(), Failure> {
    let config = Config::load(request)?;
    if config.ipam.kind.is_empty() { Ok(()) } else { ipam::pass_on(request, &config.ipam.kind) }
}

fn gc(request: &Request) -> Result<(), Failure> {
    let config = Config::load(request)?;
    let valid = request.valid_attachments()?;
    if !config.ipam.kind.is_empty() {
        ipam::pass_on(request, &config.ipam.kind)?;
    }
    if config.ip_masq { masquerade::collect(request, &valid) } else { Ok(()) }
}
