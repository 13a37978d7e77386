//! The little of rtnetlink(7) the daemon needs itself: `lo` up, and on which device an address is.
//!
//! Plugins do everything else about devices. Both calls act on the network namespace of the calling thread.

use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};

const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;
const IFF_UP: u32 = 1;
const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
/// `lo` is the first device of every network namespace (`LOOPBACK_IFINDEX`).
const LOOPBACK_INDEX: u32 = 1;
/// Length of `struct nlmsghdr`.
const HEADER: usize = 16;
/// Length of `struct rtmsg`.
const ROUTE_HEADER: usize = 12;
/// One answer about one route or one acknowledgement with an echo of the request is far smaller.
const ANSWER_MAX: usize = 4096;

/// Raises the loopback device of the calling thread's network namespace. Source: rtnetlink(7), Linux 2.6.
pub fn bring_up_loopback() -> io::Result<()> {
    // struct ifinfomsg: family, pad, type, index, flags, mask of the flags to change.
    let mut body = vec![AF_UNSPEC, 0, 0, 0];
    body.extend(LOOPBACK_INDEX.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    body.extend(IFF_UP.to_ne_bytes());
    ask(RTM_NEWLINK, NLM_F_REQUEST | NLM_F_ACK, &body).map(drop)
}

/// The device on whose link `address` is, as seen from the calling thread's network namespace.
///
/// `None`: no route, or only one through a gateway. Source: rtnetlink(7), `RTM_GETROUTE`.
pub fn on_link_device(address: IpAddr) -> io::Result<Option<String>> {
    let (family, octets) = match address {
        IpAddr::V4(v4) => (AF_INET, v4.octets().to_vec()),
        IpAddr::V6(v6) => (AF_INET6, v6.octets().to_vec()),
    };
    let prefix = if family == AF_INET { 32 } else { 128 };
    // struct rtmsg, of which a lookup only reads the family and the length of the destination; then one attribute.
    let mut body = vec![family, prefix];
    body.resize(ROUTE_HEADER, 0);
    body.extend(if family == AF_INET { 8_u16 } else { 20 }.to_ne_bytes());
    body.extend(RTA_DST.to_ne_bytes());
    body.extend(octets);
    let answer = match ask(RTM_GETROUTE, NLM_F_REQUEST, &body) {
        Ok(answer) => answer,
        Err(error) if error.raw_os_error() == Some(Errno::NETUNREACH.raw_os_error()) => return Ok(None),
        Err(error) => return Err(error),
    };
    match parse_on_link_index(&answer) {
        None => Ok(None),
        Some(index) => {
            let socket = rustix::net::socket(AddressFamily::INET, SocketType::DGRAM, None)?;
            Ok(Some(rustix::net::netdevice::index_to_name(&socket, index)?))
        }
    }
}

/// `RTA_OIF` of an `RTM_NEWROUTE` message without gateway; `None` when the bytes are something else or cut short.
fn parse_on_link_index(message: &[u8]) -> Option<u32> {
    if u16_at(message, 4)? != RTM_NEWROUTE {
        return None;
    }
    let mut rest = message.get(HEADER + ROUTE_HEADER..)?;
    let mut index = None;
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        match kind {
            RTA_OIF => index = Some(u32_at(rest, 4)?),
            RTA_GATEWAY | RTA_VIA => return None,
            _ => {}
        }
        // Attributes are padded to four bytes; one shorter than its own header would never end.
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
    index
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

/// Sends one request and returns the kernel's first message; an error message becomes the error it carries.
fn ask(kind: u16, flags: u16, body: &[u8]) -> io::Result<Vec<u8>> {
    let socket: OwnedFd = rustix::net::socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        // NETLINK_ROUTE is protocol 0.
        None,
    )?;
    let length = u32::try_from(HEADER + body.len()).map_err(|_| Errno::MSGSIZE)?;
    let mut message = Vec::with_capacity(HEADER + body.len());
    message.extend(length.to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend(1_u32.to_ne_bytes());
    message.extend(0_u32.to_ne_bytes());
    message.extend(body);
    // Port 0 is the kernel; it answers before sendto returns, so nothing here can wait.
    rustix::net::sendto(&socket, &message, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
    let mut answer = vec![0_u8; ANSWER_MAX];
    let (received, _) = rustix::net::recv(&socket, &mut answer[..], RecvFlags::empty())?;
    answer.truncate(received);
    if u16_at(&answer, 4) == Some(NLMSG_ERROR) {
        let code = u32_at(&answer, HEADER).unwrap_or_default().cast_signed();
        if code != 0 {
            return Err(io::Error::from_raw_os_error(-code));
        }
    }
    Ok(answer)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_addresses_leave_by_lo() {
        for address in ["127.0.0.1", "::1"] {
            assert_eq!(on_link_device(address.parse().unwrap()).unwrap().as_deref(), Some("lo"), "{address}");
        }
    }

    #[test]
    fn cut_or_foreign_answers_have_no_device() {
        let mut route = vec![0_u8; HEADER + ROUTE_HEADER];
        route[4..6].copy_from_slice(&RTM_NEWROUTE.to_ne_bytes());
        let mut whole = route.clone();
        whole.extend([5, 0, 9, 0, 7, 0, 0, 0]);
        whole.extend([8, 0, 4, 0, 3, 0, 0, 0]);
        let mut endless = route.clone();
        endless.extend([0_u8; 40]);
        let mut routed = whole.clone();
        routed.extend([8, 0, 5, 0, 10, 0, 0, 1]);
        let cases: [(&[u8], Option<u32>); 7] = [
            (&whole, Some(3)),
            (&routed, None),
            (&whole[..whole.len() - 1], None),
            (&route, None),
            (&endless, None),
            (&[], None),
            (&[0; 64], None),
        ];
        for (bytes, expected) in cases {
            assert_eq!(parse_on_link_index(bytes), expected, "{bytes:?}");
        }
    }
}
