//! Links, addresses and routes. Source: rtnetlink(7), `linux/if_link.h`.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, BorrowedFd};

use rustix::io::Errno;

use crate::message::{Attributes, Message, NESTED};
use crate::socket::{Reply, Socket};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;

/// `NLM_F_CREATE | NLM_F_EXCL`
const CREATE_NEW: u16 = 0x600;
/// `NLM_F_CREATE`
const CREATE: u16 = 0x400;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_MASTER: u16 = 10;
const IFLA_PROTINFO: u16 = 12;
const IFLA_TXQLEN: u16 = 13;
const IFLA_OPERSTATE: u16 = 16;
const IFLA_LINKINFO: u16 = 18;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_PROMISCUITY: u16 = 30;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;
const IFLA_BR_VLAN_FILTERING: u16 = 7;
const IFLA_BRPORT_MODE: u16 = 4;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const IFLA_BRIDGE_FLAGS: u16 = 0;
const IFLA_BRIDGE_VLAN_INFO: u16 = 2;
const BRIDGE_FLAGS_MASTER: u16 = 1;
const VLAN_PVID: u16 = 2;
const VLAN_UNTAGGED: u16 = 4;
const OPER_UP: u8 = 6;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_FLAGS: u16 = 8;
const IFA_F_TENTATIVE: u32 = 0x40;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_TABLE: u16 = 15;
const RTAX_MTU: u16 = 2;
const RTAX_ADVMSS: u16 = 8;
const RT_TABLE_MAIN: u32 = 254;
const RTPROT_BOOT: u8 = 3;
const RTN_UNICAST: u8 = 1;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_BRIDGE: u8 = 7;
const AF_INET6: u8 = 10;

/// Length of `struct ifinfomsg`.
const LINK_HEADER: usize = 16;
/// Length of `struct ifaddrmsg`.
const ADDRESS_HEADER: usize = 8;
/// Length of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;

/// A device is up.
pub const IFF_UP: u32 = 1;
/// A device takes every packet.
pub const IFF_PROMISC: u32 = 0x100;
/// A device takes every multicast packet.
pub const IFF_ALLMULTI: u32 = 0x200;

/// A route that leads out of the subnet (`RT_SCOPE_UNIVERSE`).
pub const SCOPE_UNIVERSE: u8 = 0;
/// A route on the link (`RT_SCOPE_LINK`).
pub const SCOPE_LINK: u8 = 253;
/// Any scope, when deleting (`RT_SCOPE_NOWHERE`).
pub const SCOPE_NOWHERE: u8 = 255;

/// An address with the length of its network's prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// Bits of the network.
    pub length: u8,
}

/// A network device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in its namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// `IFF_UP` and its like.
    pub flags: u32,
    /// Link layer address, six bytes for Ethernet.
    pub address: Vec<u8>,
    /// Largest packet, bytes.
    pub mtu: u32,
    /// Length of the transmit queue, packets.
    pub transmit_queue: u32,
    /// What it is a port of.
    pub master: Option<u32>,
    /// The other end of a veth, numbered in its own namespace.
    pub peer: Option<u32>,
    /// `bridge`, `veth`, ...
    pub kind: Option<String>,
    /// Whether packets pass (RFC 2863's operational state).
    pub is_operational: bool,
    /// How many asked for every packet.
    pub promiscuity: u32,
}

/// A device to be made.
#[derive(Debug, Clone, Default)]
pub struct NewLink<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Kernel's choice when zero.
    pub mtu: u32,
    /// Raised at once.
    pub is_up: bool,
}

/// The far end of a veth.
#[derive(Debug, Clone)]
pub struct Peer<'a> {
    /// Its name, at most 15 bytes.
    pub name: &'a str,
    /// Where it comes to life.
    pub namespace: BorrowedFd<'a>,
    /// Its address; the kernel's choice if `None`.
    pub address: Option<&'a [u8]>,
}

/// A route to be made or taken away.
#[derive(Debug, Clone)]
pub struct Route {
    /// Where it leads; a length of zero is the default route.
    pub destination: Prefix,
    /// Over which router; none: on the link.
    pub gateway: Option<IpAddr>,
    /// Through which device.
    pub device: u32,
    /// Own address to prefer.
    pub source: Option<IpAddr>,
    /// `SCOPE_*`
    pub scope: u8,
    /// Metric; the kernel's default when zero.
    pub priority: u32,
    /// The main one if `None`.
    pub table: Option<u32>,
    /// Largest packet on this way, bytes.
    pub mtu: Option<u32>,
    /// Segment size to advertise, bytes.
    pub advertised_mss: Option<u32>,
}

fn family_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { AF_INET } else { AF_INET6 }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn address_from(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(four) = <[u8; 4]>::try_from(bytes) {
        return Some(four.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from)
}

/// `struct ifinfomsg`.
fn link_header(family: u8, index: u32, flags: u32, mask: u32) -> [u8; LINK_HEADER] {
    let mut header = [0; LINK_HEADER];
    header[0] = family;
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&mask.to_ne_bytes());
    header
}

fn link_from(reply: &Reply) -> Option<Link> {
    if reply.kind != RTM_NEWLINK {
        return None;
    }
    let header = reply.body.get(..LINK_HEADER)?;
    let attributes = Attributes::of(reply.body.get(LINK_HEADER..)?);
    let word = |at: usize| Some(u32::from_ne_bytes(header.get(at..at + 4)?.try_into().ok()?));
    Some(Link {
        index: word(4)?,
        flags: word(8)?,
        name: attributes.text(IFLA_IFNAME)?.to_owned(),
        address: attributes.find(IFLA_ADDRESS).unwrap_or_default().to_vec(),
        mtu: attributes.u32(IFLA_MTU).unwrap_or_default(),
        transmit_queue: attributes.u32(IFLA_TXQLEN).unwrap_or_default(),
        master: attributes.u32(IFLA_MASTER),
        peer: attributes.u32(IFLA_LINK),
        kind: attributes.nested(IFLA_LINKINFO).text(IFLA_INFO_KIND).map(str::to_owned),
        is_operational: attributes.find(IFLA_OPERSTATE) == Some(&[OPER_UP]),
        promiscuity: attributes.u32(IFLA_PROMISCUITY).unwrap_or_default(),
    })
}

/// Whether an error says that there is no such device, address or route.
#[must_use]
pub fn is_missing(error: &io::Error) -> bool {
    let missing = [Errno::NODEV, Errno::NOENT, Errno::SRCH, Errno::ADDRNOTAVAIL];
    missing.iter().any(|errno| error.raw_os_error() == Some(errno.raw_os_error()))
}

impl Socket {
    /// A device by name; `None` when there is none.
    pub fn find_link(&self, name: &str) -> io::Result<Option<Link>> {
        let mut message = Message::new(RTM_GETLINK, 0).with(&link_header(AF_UNSPEC, 0, 0, 0));
        message.put_str(IFLA_IFNAME, name);
        match self.ask(message) {
            Ok(replies) => Ok(replies.iter().find_map(link_from)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// A device by number; `None` when there is none.
    pub fn find_link_by_index(&self, index: u32) -> io::Result<Option<Link>> {
        match self.ask(Message::new(RTM_GETLINK, 0).with(&link_header(AF_UNSPEC, index, 0, 0))) {
            Ok(replies) => Ok(replies.iter().find_map(link_from)),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn new_link(link: &NewLink<'_>) -> Message {
        let flags = if link.is_up { IFF_UP } else { 0 };
        let mut message = Message::new(RTM_NEWLINK, CREATE_NEW).with(&link_header(AF_UNSPEC, 0, flags, flags));
        message.put_str(IFLA_IFNAME, link.name);
        if link.mtu != 0 {
            message.put_u32(IFLA_MTU, link.mtu);
        }
        message
    }

    /// Makes a bridge. `EEXIST` if the name is taken.
    pub fn add_bridge(&self, link: &NewLink<'_>, vlan_filtering: bool) -> io::Result<()> {
        let mut message = Self::new_link(link);
        message.nest(IFLA_LINKINFO, |info| {
            info.put(IFLA_INFO_KIND, b"bridge");
            if vlan_filtering {
                info.nest(IFLA_INFO_DATA, |data| {
                    data.put(IFLA_BR_VLAN_FILTERING, &[1]);
                });
            }
        });
        self.change(message)
    }

    /// Makes an intermediate functional block, which only shapes what is redirected to it.
    pub fn add_ifb(&self, link: &NewLink<'_>) -> io::Result<()> {
        let mut message = Self::new_link(link);
        message.put_u32(IFLA_TXQLEN, 0).nest(IFLA_LINKINFO, |info| {
            info.put(IFLA_INFO_KIND, b"ifb");
        });
        self.change(message)
    }

    /// Makes a pair of devices, one here, as a port of `master` if given, the other in another namespace.
    ///
    /// `EEXIST` if either name is taken.
    pub fn add_veth(&self, link: &NewLink<'_>, master: Option<u32>, peer: &Peer<'_>) -> io::Result<()> {
        let mut message = Self::new_link(link);
        if let Some(master) = master {
            message.put_u32(IFLA_MASTER, master);
        }
        message.nest(IFLA_LINKINFO, |info| {
            info.put(IFLA_INFO_KIND, b"veth").nest(IFLA_INFO_DATA, |data| {
                let mut far = Message::new(0, 0);
                far.put_str(IFLA_IFNAME, peer.name);
                far.put_u32(IFLA_NET_NS_FD, peer.namespace.as_raw_fd().cast_unsigned());
                if link.mtu != 0 {
                    far.put_u32(IFLA_MTU, link.mtu);
                }
                if let Some(address) = peer.address {
                    far.put(IFLA_ADDRESS, address);
                }
                let mut inner = link_header(AF_UNSPEC, 0, 0, 0).to_vec();
                inner.extend_from_slice(far.attributes());
                data.put(VETH_INFO_PEER | NESTED, &inner);
            });
        });
        self.change(message)
    }

    /// Removes a device. Removing one end of a veth removes both.
    pub fn delete_link(&self, index: u32) -> io::Result<()> {
        self.change(Message::new(RTM_DELLINK, 0).with(&link_header(AF_UNSPEC, index, 0, 0)))
    }

    /// Sets those of `mask` to what they are in `flags`.
    pub fn set_flags(&self, index: u32, flags: u32, mask: u32) -> io::Result<()> {
        self.change(Message::new(RTM_NEWLINK, 0).with(&link_header(AF_UNSPEC, index, flags, mask)))
    }

    /// Raises a device.
    pub fn set_up(&self, index: u32) -> io::Result<()> {
        self.set_flags(index, IFF_UP, IFF_UP)
    }

    /// Sets the link layer address.
    pub fn set_link_address(&self, index: u32, address: &[u8]) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0).with(&link_header(AF_UNSPEC, index, 0, 0));
        message.put(IFLA_ADDRESS, address);
        self.change(message)
    }

    /// Sets the largest packet, bytes.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0).with(&link_header(AF_UNSPEC, index, 0, 0));
        message.put_u32(IFLA_MTU, mtu);
        self.change(message)
    }

    /// Sets the length of the transmit queue, packets.
    pub fn set_transmit_queue(&self, index: u32, packets: u32) -> io::Result<()> {
        let mut message = Message::new(RTM_NEWLINK, 0).with(&link_header(AF_UNSPEC, index, 0, 0));
        message.put_u32(IFLA_TXQLEN, packets);
        self.change(message)
    }

    /// Sets a bridge port's hairpin mode and its isolation from other isolated ports.
    pub fn set_port(&self, index: u32, hairpin: bool, isolated: bool) -> io::Result<()> {
        let mut message = Message::new(RTM_SETLINK, 0).with(&link_header(AF_BRIDGE, index, 0, 0));
        message.nest(IFLA_PROTINFO, |port| {
            port.put(IFLA_BRPORT_MODE, &[u8::from(hairpin)]);
            // Linux 4.18; older ones are only told of it when it is wanted.
            if isolated {
                port.put(IFLA_BRPORT_ISOLATED, &[1]);
            }
        });
        self.change(message)
    }

    /// Lets a VLAN through a bridge port: untagged on the port's side (`is_native`), or tagged.
    pub fn add_port_vlan(&self, index: u32, vlan: u16, is_native: bool) -> io::Result<()> {
        let flags = if is_native { VLAN_PVID | VLAN_UNTAGGED } else { 0 };
        self.port_vlan(RTM_SETLINK, index, vlan, flags)
    }

    /// Takes a VLAN from a bridge port.
    pub fn delete_port_vlan(&self, index: u32, vlan: u16) -> io::Result<()> {
        self.port_vlan(RTM_DELLINK, index, vlan, 0)
    }

    fn port_vlan(&self, kind: u16, index: u32, vlan: u16, flags: u16) -> io::Result<()> {
        let mut message = Message::new(kind, 0).with(&link_header(AF_BRIDGE, index, 0, 0));
        // struct bridge_vlan_info
        let mut info = flags.to_ne_bytes().to_vec();
        info.extend(vlan.to_ne_bytes());
        message.nest(IFLA_AF_SPEC, |spec| {
            spec.put(IFLA_BRIDGE_FLAGS, &BRIDGE_FLAGS_MASTER.to_ne_bytes()).put(IFLA_BRIDGE_VLAN_INFO, &info);
        });
        self.change(message)
    }

    /// Every address of a device, with whether it is still being checked for duplicates.
    pub fn addresses(&self, index: u32) -> io::Result<Vec<(Prefix, bool)>> {
        let replies = self.list(Message::new(RTM_GETADDR, 0).with(&[0; ADDRESS_HEADER]))?;
        let address = |reply: &Reply| {
            let header = reply.body.get(..ADDRESS_HEADER)?;
            let found = u32::from_ne_bytes(header[4..8].try_into().ok()?);
            let attributes = Attributes::of(&reply.body[ADDRESS_HEADER..]);
            let address = attributes.find(IFA_LOCAL).or(attributes.find(IFA_ADDRESS))?;
            let flags = attributes.u32(IFA_FLAGS).unwrap_or(u32::from(header[2]));
            let prefix = Prefix { address: address_from(address)?, length: header[1] };
            (found == index).then_some((prefix, flags & IFA_F_TENTATIVE != 0))
        };
        Ok(replies.iter().filter_map(address).collect())
    }

    fn address_message(kind: u16, flags: u16, index: u32, prefix: Prefix) -> Message {
        let mut header = [0; ADDRESS_HEADER];
        header[0] = family_of(prefix.address);
        header[1] = prefix.length;
        header[4..8].copy_from_slice(&index.to_ne_bytes());
        let mut message = Message::new(kind, flags).with(&header);
        let bytes = octets(prefix.address);
        message.put(IFA_LOCAL, &bytes).put(IFA_ADDRESS, &bytes);
        message
    }

    /// Gives a device an address. `EEXIST` if it has it.
    pub fn add_address(&self, index: u32, prefix: Prefix) -> io::Result<()> {
        let mut message = Self::address_message(RTM_NEWADDR, CREATE_NEW, index, prefix);
        if let IpAddr::V4(v4) = prefix.address
            && prefix.length < 31
        {
            // IFA_BROADCAST: the kernel does not work it out by itself.
            let host = u32::MAX >> prefix.length;
            message.put(4, &(u32::from(v4) | host).to_be_bytes());
        }
        self.change(message)
    }

    /// Takes an address from a device.
    pub fn delete_address(&self, index: u32, prefix: Prefix) -> io::Result<()> {
        self.change(Self::address_message(RTM_DELADDR, 0, index, prefix))
    }

    fn route_message(kind: u16, flags: u16, route: &Route) -> Message {
        let table = route.table.unwrap_or(RT_TABLE_MAIN);
        let mut header = [0; ROUTE_HEADER];
        header[0] = family_of(route.destination.address);
        header[1] = route.destination.length;
        // A table that does not fit into a byte is told by the attribute alone.
        header[4] = u8::try_from(table).unwrap_or_default();
        header[5] = if kind == RTM_DELROUTE { 0 } else { RTPROT_BOOT };
        header[6] = route.scope;
        header[7] = if kind == RTM_DELROUTE { 0 } else { RTN_UNICAST };
        let mut message = Message::new(kind, flags).with(&header);
        if route.destination.length != 0 {
            message.put(RTA_DST, &octets(route.destination.address));
        }
        if let Some(gateway) = route.gateway {
            message.put(RTA_GATEWAY, &octets(gateway));
        }
        if let Some(source) = route.source {
            message.put(RTA_PREFSRC, &octets(source));
        }
        if route.priority != 0 {
            message.put_u32(RTA_PRIORITY, route.priority);
        }
        if route.mtu.is_some() || route.advertised_mss.is_some() {
            message.nest(RTA_METRICS, |metrics| {
                for (kind, value) in [(RTAX_MTU, route.mtu), (RTAX_ADVMSS, route.advertised_mss)] {
                    if let Some(value) = value {
                        metrics.put_u32(kind, value);
                    }
                }
            });
        }
        message.put_u32(RTA_OIF, route.device).put_u32(RTA_TABLE, table);
        message
    }

    /// Adds a route, beside one to the same destination if there is one (several paths).
    pub fn add_route(&self, route: &Route) -> io::Result<()> {
        self.change(Self::route_message(RTM_NEWROUTE, CREATE, route))
    }

    /// Takes a route away.
    pub fn delete_route(&self, route: &Route) -> io::Result<()> {
        self.change(Self::route_message(RTM_DELROUTE, 0, route))
    }

    /// Destinations and gateways of the main table's routes through a device.
    pub fn routes(&self, device: u32) -> io::Result<Vec<(Prefix, Option<IpAddr>)>> {
        let replies = self.list(Message::new(RTM_GETROUTE, 0).with(&[0; ROUTE_HEADER]))?;
        let route = |reply: &Reply| {
            let header = reply.body.get(..ROUTE_HEADER)?;
            let attributes = Attributes::of(&reply.body[ROUTE_HEADER..]);
            let unspecified = match header[0] {
                AF_INET => IpAddr::from([0; 4]),
                AF_INET6 => IpAddr::from([0; 16]),
                _ => return None,
            };
            let destination = match attributes.find(RTA_DST) {
                Some(bytes) => address_from(bytes)?,
                None => unspecified,
            };
            let is_here = attributes.u32(RTA_OIF) == Some(device) && attributes.u32(RTA_TABLE) == Some(RT_TABLE_MAIN);
            let gateway = attributes.find(RTA_GATEWAY).and_then(address_from);
            is_here.then_some((Prefix { address: destination, length: header[1] }, gateway))
        };
        Ok(replies.iter().filter_map(route).collect())
    }

    /// The device through which packets to an address leave.
    pub fn device_towards(&self, address: IpAddr) -> io::Result<Option<u32>> {
        let mut header = [0; ROUTE_HEADER];
        header[0] = family_of(address);
        header[1] = if address.is_ipv4() { 32 } else { 128 };
        let mut message = Message::new(RTM_GETROUTE, 0).with(&header);
        message.put(RTA_DST, &octets(address));
        match self.ask(message) {
            Ok(replies) => {
                let device = |reply: &Reply| Attributes::of(reply.body.get(ROUTE_HEADER..)?).u32(RTA_OIF);
                Ok(replies.iter().find_map(device))
            }
            Err(error) if error.raw_os_error() == Some(Errno::NETUNREACH.raw_os_error()) => Ok(None),
            Err(error) => Err(error),
        }
    }
}
