//! Devices of the node and of containers: pairs of them, their addresses in text, their sysctls.

use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;

use netlink::Socket;
use netlink::route::{Link, NewLink, Peer};
use sha2::{Digest as _, Sha512};

use crate::failure::{Code, Context as _, Failure};

/// How often another random name is tried: each is one of four thousand million.
const NAMES_TRIED: usize = 10;

/// The first `length` characters of `prefix` and the hash of `text`, as the reference plugins name chains and devices.
pub(crate) fn hashed_name(length: usize, prefix: &str, text: &str) -> String {
    let mut name = prefix.to_owned();
    for byte in Sha512::digest(text.as_bytes()) {
        let _ = write!(name, "{byte:02x}");
    }
    name.truncate(length);
    name
}

/// `0a:1b:2c:3d:4e:5f`
pub(crate) fn mac_text(address: &[u8]) -> String {
    address.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Six bytes in hexadecimal, with colons or hyphens between them.
pub(crate) fn parse_mac(text: &str) -> Result<[u8; 6], Failure> {
    let refused = || Failure::config(format!("invalid MAC address {text:?}"));
    let parts: Vec<_> = text.split([':', '-']).collect();
    let mut address = [0; 6];
    if parts.len() != address.len() || parts.iter().any(|part| part.len() != 2 || part.starts_with('+')) {
        return Err(refused());
    }
    for (byte, part) in address.iter_mut().zip(parts) {
        *byte = u8::from_str_radix(part, 16).map_err(|_| refused())?;
    }
    Ok(address)
}

/// Runs work in the container's network namespace, with a socket there.
pub(crate) fn inside<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce(&Socket) -> Result<T, Failure> + Send,
) -> Result<T, Failure> {
    let entered = sys::namespace::on_fresh_thread(namespace, || {
        let socket = Socket::route().context(|| "open a netlink socket in the container".to_owned())?;
        work(&socket)
    });
    entered.map_err(|error| Failure::new(Code::InvalidNamespace, format!("enter the network namespace: {error}")))?
}

/// A device that must be there.
pub(crate) fn link(socket: &Socket, name: &str) -> Result<Link, Failure> {
    let found = socket.find_link(name).context(|| format!("failed to lookup {name:?}"))?;
    found.ok_or_else(|| Failure::new(Code::Internal, format!("failed to lookup {name:?}: Link not found")))
}

/// Sets a sysctl of the calling thread's network namespace; writes nothing when it is so already.
pub(crate) fn set_sysctl(path: &str, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().read(true).write(true).open(format!("/proc/sys/{path}"))?;
    let mut now = String::new();
    file.read_to_string(&mut now)?;
    // At its beginning: what is written elsewhere the kernel takes for the rest of something, and ignores.
    if now.trim_end() == value { Ok(()) } else { file.write_all_at(value.as_bytes(), 0) }
}

/// As [`set_sysctl`], for those a kernel may not have.
pub(crate) fn try_sysctl(path: &str, value: &str) {
    if let Err(error) = set_sysctl(path, value) {
        eprintln!("cannot set {path} to {value}: {error}");
    }
}

/// Lets packets pass from one device to another.
pub(crate) fn enable_forwarding(is_v4: bool) -> Result<(), Failure> {
    let path = if is_v4 { "net/ipv4/ip_forward" } else { "net/ipv6/conf/all/forwarding" };
    set_sysctl(path, "1").context(|| format!("failed to enable forwarding ({path})"))
}

fn random_name() -> Result<String, Failure> {
    let mut bytes = [0; 4];
    let drawn = std::fs::File::open("/dev/urandom").and_then(|mut file| file.read_exact(&mut bytes));
    drawn.context(|| "read /dev/urandom".to_owned())?;
    Ok(format!("veth{}", bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>()))
}

/// What a pair of devices is to be like.
#[derive(Debug)]
pub(crate) struct PairOptions<'a> {
    /// The name in the container.
    pub(crate) ifname: &'a str,
    /// The name on the node; random if `None`.
    pub(crate) host_name: Option<&'a str>,
    pub(crate) mtu: u32,
    /// The address in the container.
    pub(crate) mac: Option<[u8; 6]>,
    /// The bridge whose port the node's end becomes.
    pub(crate) master: Option<u32>,
}

/// Makes a pair, the node's end up, the container's down. Returns the node's end.
pub(crate) fn make_pair(
    socket: &Socket,
    namespace: BorrowedFd<'_>,
    options: &PairOptions<'_>,
) -> Result<Link, Failure> {
    let ifname = options.ifname;
    for _ in 0..NAMES_TRIED {
        let name = options.host_name.map_or_else(random_name, |name| Ok(name.to_owned()))?;
        let new = NewLink { name: &name, mtu: options.mtu, is_up: true };
        let peer =
            Peer { name: ifname, namespace: namespace.as_fd(), address: options.mac.as_ref().map(|mac| &mac[..]) };
        match socket.add_veth(&new, options.master, &peer) {
            Ok(()) => {
                // The node's end must not take routes from what containers announce.
                try_sysctl(&format!("net/ipv6/conf/{name}/accept_ra"), "0");
                return link(socket, &name);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_ours_taken = socket.find_link(&name).is_ok_and(|found| found.is_some());
                if !is_ours_taken || options.host_name.is_some() {
                    let text = format!("container veth name ({ifname:?}) peer provided ({name:?}) already exists");
                    return Err(Failure::new(Code::Internal, text));
                }
            }
            Err(error) => {
                return Err(Failure::new(Code::Internal, format!("failed to make veth pair: {error}")));
            }
        }
    }
    Err(Failure::new(Code::Internal, "failed to find a unique veth name"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_reference_plugins() {
        // `utils.FormatChainName("test", "1234")` of the reference plugins' documentation of the scheme: SHA-512 of the
        // two joined, 28 characters in all.
        let name = hashed_name(28, "CNI-", "test1234");
        assert_eq!(name, "CNI-2bbe0c48b91a7d1b8a6753a8");
        assert_eq!(hashed_name(15, "bwp", "x").len(), 15);
    }

    #[test]
    fn link_addresses() {
        assert_eq!(mac_text(&parse_mac("0A:1b-2c:3d:4e:5f").unwrap()), "0a:1b:2c:3d:4e:5f");
        for bad in ["", "0a:1b:2c:3d:4e", "0a:1b:2c:3d:4e:5f:60", "0a:1b:2c:3d:4e:5g", "+a:1b:2c:3d:4e:5f"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
