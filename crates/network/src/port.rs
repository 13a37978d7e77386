//! What a sandbox asks to be reachable at on the node.

use std::net::IpAddr;

/// Transport of a host port. The text is that of Kubernetes: `TCP`, `UDP`, `SCTP`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Protocol {
    /// TCP
    Tcp,
    /// UDP
    Udp,
    /// SCTP
    Sctp,
}

impl Protocol {
    /// Upper case, as in Kubernetes and in the hash of chain names.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
            Self::Sctp => "SCTP",
        }
    }

    /// Lower case, as nft and iptables say it.
    #[must_use]
    pub fn keyword(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// A port of the node led to a port of a sandbox. Source: CRI `PortMapping`, without those that ask for no host port.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PortMapping {
    /// Transport.
    pub protocol: Protocol,
    /// Port inside the sandbox.
    pub container_port: u16,
    /// Port on the node; 0 asks for nothing and is skipped.
    pub host_port: u16,
    /// Only this address of the node; `None`, `0.0.0.0` and `::` mean all (the latter two: all of their family).
    pub host_ip: Option<IpAddr>,
}
