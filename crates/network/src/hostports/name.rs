//! Names and hashes that every version of the daemon must agree on. No I/O.

use sha2::{Digest as _, Sha256};

use crate::port::PortMapping;

/// Characters kept of a hash: chain names are short.
const KEPT: usize = 16;
const ALPHABET: &[u8; 32] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";

/// The first 16 characters of base32 (RFC 4648) of SHA-256.
fn short_hash(text: &str) -> String {
    let hash = Sha256::digest(text.as_bytes());
    // 16 characters are 80 bits: two groups of five bytes.
    let character = |at: usize| {
        let bit = at * 5;
        let pair = u16::from_be_bytes([hash[bit / 8], hash[bit / 8 + 1]]);
        char::from(ALPHABET[usize::from((pair >> (11 - bit % 8)) & 31)])
    };
    (0..KEPT).map(character).collect()
}

/// The comment of a sandbox's elements in nftables.
pub(super) fn comment(sandbox: &str) -> String {
    short_hash(sandbox)
}

/// The last part of the iptables chains of one mapping.
pub(super) fn chain_suffix(sandbox: &str, mapping: &PortMapping) -> String {
    let host_ip = mapping.host_ip.map(|ip| ip.to_string()).unwrap_or_default();
    short_hash(&format!("{sandbox}{}{}{host_ip}", mapping.host_port, mapping.protocol.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::port::Protocol;

    #[test]
    fn hashes_are_what_base32_and_sha256sum_say() {
        // printf %s TEXT | sha256sum | xxd -r -p | base32 | head -c16
        for (text, expected) in [("", "4OYMIQUY7QOBJGX3"), ("abc", "XJ4BNP4PAHH6UQKB"), ("8080TCP", "MENGYV4NNWFWE5Z7")]
        {
            assert_eq!(short_hash(text), expected, "{text:?}");
        }
    }

    #[test]
    fn chains_differ_by_everything_in_a_mapping() {
        let mapping = PortMapping { protocol: Protocol::Tcp, container_port: 80, host_port: 8080, host_ip: None };
        let same = chain_suffix("id", &mapping);
        assert_eq!(same, short_hash("id8080TCP"));
        assert_eq!(chain_suffix("id", &PortMapping { container_port: 81, ..mapping.clone() }), same);
        let others = [
            PortMapping { protocol: Protocol::Udp, ..mapping.clone() },
            PortMapping { host_port: 8081, ..mapping.clone() },
            PortMapping { host_ip: Some([0, 0, 0, 0].into()), ..mapping.clone() },
        ];
        for other in others {
            assert_ne!(chain_suffix("id", &other), same, "{other:?}");
        }
        let local = PortMapping { host_ip: Some([127, 0, 0, 1].into()), ..mapping };
        assert_eq!(chain_suffix("id", &local), short_hash("id8080TCP127.0.0.1"));
    }
}
