//! IPv4 and IPv6, which firewalls keep apart. No I/O.

use std::net::IpAddr;

use crate::port::PortMapping;

/// An address family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    pub(super) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// nft's word, for the table's family and before `saddr`.
    pub(super) fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// nft's type of an address.
    pub(super) fn nft_type(self) -> &'static str {
        match self {
            Self::V4 => "ipv4_addr",
            Self::V6 => "ipv6_addr",
        }
    }

    /// Those that ask for a port on the node in this family.
    pub(super) fn select(self, mappings: &[PortMapping]) -> Vec<&PortMapping> {
        let fits = |mapping: &&PortMapping| {
            mapping.host_port != 0 && mapping.host_ip.is_none_or(|host_ip| Self::of(host_ip) == self)
        };
        mappings.iter().filter(fits).collect()
    }
}

/// The one address of the node that is meant; `None` for all.
pub(super) fn host_address(mapping: &PortMapping) -> Option<IpAddr> {
    mapping.host_ip.filter(|ip| !ip.is_unspecified())
}

/// Whether the mapping answers on 127.0.0.0/8. There is no such thing for `::1`: the kernel never lets it leave `lo`.
pub(super) fn reaches_loopback(mapping: &PortMapping) -> bool {
    match mapping.host_ip {
        None => true,
        Some(IpAddr::V4(ip)) => ip.is_unspecified() || ip.is_loopback(),
        Some(IpAddr::V6(_)) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    #[test]
    fn mappings_by_family_and_loopback() {
        for (host_port, host_ip, v4, v6, loopback) in [
            (80, None, true, true, true),
            (0, None, false, false, true),
            (80, Some("0.0.0.0"), true, false, true),
            (80, Some("::"), false, true, false),
            (80, Some("10.0.0.1"), true, false, false),
            (80, Some("127.0.0.1"), true, false, true),
            (80, Some("127.9.9.9"), true, false, true),
            (80, Some("::1"), false, true, false),
        ] {
            let host_ip = host_ip.map(|ip: &str| ip.parse().unwrap());
            let mapping = PortMapping { protocol: Protocol::Tcp, container_port: 1, host_port, host_ip };
            let selected = Family::BOTH.map(|family| !family.select(std::slice::from_ref(&mapping)).is_empty());
            assert_eq!(selected, [v4, v6], "{mapping:?}");
            assert_eq!(reaches_loopback(&mapping), loopback, "{mapping:?}");
        }
    }
}
