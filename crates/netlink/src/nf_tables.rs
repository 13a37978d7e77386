//! nf_tables without the nft program: tables, chains, rules made of expressions, and finding rules by their comment.
//! Source: `linux/netfilter/nf_tables.h`; encodings as nft(8) writes them, so that it can list what is made here.

use std::io;
use std::net::IpAddr;

use rustix::io::Errno;

use crate::message::{Attributes, Message};
use crate::socket::Socket;

/// `NFNL_SUBSYS_NFTABLES`
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const DELETE_CHAIN: u16 = 5;
const NEW_RULE: u16 = 6;
const GET_RULE: u16 = 7;
const DELETE_RULE: u16 = 8;
/// `NLM_F_CREATE`, and with `NLM_F_APPEND`.
const CREATE: u16 = 0x400;
const APPEND: u16 = 0xc00;

const TABLE_NAME: u16 = 1;
const TABLE_USERDATA: u16 = 6;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUMBER: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const RULE_TABLE: u16 = 1;
const RULE_CHAIN: u16 = 2;
const RULE_HANDLE: u16 = 3;
const RULE_EXPRESSIONS: u16 = 4;
const RULE_USERDATA: u16 = 7;
const LIST_ELEMENT: u16 = 1;
const EXPRESSION_NAME: u16 = 1;
const EXPRESSION_DATA: u16 = 2;
const DATA_VALUE: u16 = 1;
const DATA_VERDICT: u16 = 2;
const VERDICT_CODE: u16 = 1;
const VERDICT_CHAIN: u16 = 2;

const REGISTER_VERDICT: u32 = 0;
const REGISTER_1: u32 = 1;
const REGISTER_2: u32 = 2;

/// Longest comment nft accepts, bytes.
pub const COMMENT_MAX: usize = 128;

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// IPv4 and IPv6.
    Inet,
    /// IPv4.
    Ip,
    /// IPv6.
    Ip6,
    /// Frames on bridges.
    Bridge,
}

impl Family {
    fn number(self) -> u8 {
        match self {
            Self::Inet => 1,
            Self::Ip => 2,
            Self::Bridge => 7,
            Self::Ip6 => 10,
        }
    }
}

/// Where the kernel calls a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// Number of the hook: 0 prerouting, 1 input, 2 forward, 3 output, 4 postrouting.
    pub number: u32,
    /// Lower is earlier.
    pub priority: i32,
}

/// Destination NAT happens here.
pub const PREROUTING_NAT: Hook = Hook { kind: "nat", number: 0, priority: -100 };
/// Destination NAT of packets made on the node happens here.
pub const OUTPUT_NAT: Hook = Hook { kind: "nat", number: 3, priority: -100 };
/// Source NAT happens here.
pub const POSTROUTING_NAT: Hook = Hook { kind: "nat", number: 4, priority: 100 };

/// What happens to a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// Thrown away.
    Drop,
    /// Back to where the chain was entered from.
    Return,
    /// Into a chain and back.
    Jump(String),
    /// Into a chain.
    Goto(String),
}

/// A part of a rule. A packet that a test does not fit leaves the rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// The source address is one.
    From(IpAddr),
    /// The destination address is one.
    To(IpAddr),
    /// The destination address is in a network, or (`false`) is not.
    ToNetwork(IpAddr, u8, bool),
    /// The destination is an address of this node.
    ToLocal,
    /// A transport protocol (its IP number) and the destination port.
    ToPort(u8, u16),
    /// Came in through a device.
    Through(String),
    /// Ethernet's source address.
    FromLinkAddress([u8; 6]),
    /// Gets the outgoing device's address.
    Masquerade,
    /// Is sent to another address and port.
    Redirect(IpAddr, u16),
    /// The end.
    Verdict(Verdict),
}

/// A rule as the kernel lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// The chain it is in.
    pub chain: String,
    /// Its number in the table.
    pub handle: u64,
    /// Its comment, empty without one.
    pub comment: String,
}

/// Changes to one table, made together or not at all.
#[derive(Debug)]
pub struct Transaction<'a> {
    family: Family,
    table: &'a str,
    changes: Vec<Message>,
}

/// `struct nfgenmsg`.
fn generic_header(family: u8, resource: u16) -> [u8; 4] {
    let [high, low] = resource.to_be_bytes();
    [family, 0, high, low]
}

/// `NFTNL_UDATA_*`: type, length, text with its zero byte. The comment's type is 0 for tables, chains and rules.
fn comment_bytes(comment: &str) -> Vec<u8> {
    let mut end = comment.len().min(COMMENT_MAX - 1);
    while !comment.is_char_boundary(end) {
        end -= 1;
    }
    let mut bytes = vec![0, u8::try_from(end + 1).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(&comment.as_bytes()[..end]);
    bytes.push(0);
    bytes
}

fn parse_comment(mut bytes: &[u8]) -> String {
    while let [kind, length, rest @ ..] = bytes {
        let Some(value) = rest.get(..usize::from(*length)) else { break };
        if *kind == 0 {
            return String::from_utf8_lossy(value).trim_end_matches('\0').to_owned();
        }
        bytes = &rest[usize::from(*length)..];
    }
    String::new()
}

impl<'a> Transaction<'a> {
    /// Nothing yet.
    #[must_use]
    pub fn on(family: Family, table: &'a str) -> Self {
        Self { family, table, changes: Vec::new() }
    }

    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }

    fn message(&self, kind: u16, flags: u16) -> Message {
        Message::new(SUBSYSTEM << 8 | kind, flags).with(&generic_header(self.family.number(), 0))
    }

    /// Makes the table unless it is there.
    pub fn add_table(&mut self, comment: &str) -> &mut Self {
        let mut message = self.message(NEW_TABLE, CREATE);
        message.put_str(TABLE_NAME, self.table).put(TABLE_USERDATA, &comment_bytes(comment));
        self.changes.push(message);
        self
    }

    /// Makes a chain unless it is there.
    pub fn add_chain(&mut self, name: &str, hook: Option<Hook>) -> &mut Self {
        let mut message = self.message(NEW_CHAIN, CREATE);
        message.put_str(CHAIN_TABLE, self.table).put_str(CHAIN_NAME, name);
        if let Some(hook) = hook {
            message.nest(CHAIN_HOOK, |nested| {
                nested.put_be32(HOOK_NUMBER, hook.number).put_be32(HOOK_PRIORITY, hook.priority.cast_unsigned());
            });
            message.put_str(CHAIN_TYPE, hook.kind);
        }
        self.changes.push(message);
        self
    }

    /// Removes all rules of a chain, which must be there.
    pub fn flush_chain(&mut self, name: &str) -> &mut Self {
        let mut message = self.message(DELETE_RULE, 0);
        message.put_str(RULE_TABLE, self.table).put_str(RULE_CHAIN, name);
        self.changes.push(message);
        self
    }

    /// Removes a chain, which must be there and not be jumped to.
    pub fn delete_chain(&mut self, name: &str) -> &mut Self {
        let mut message = self.message(DELETE_CHAIN, 0);
        message.put_str(CHAIN_TABLE, self.table).put_str(CHAIN_NAME, name);
        self.changes.push(message);
        self
    }

    /// Appends a rule to a chain.
    pub fn add_rule(&mut self, chain: &str, comment: &str, parts: &[Part]) -> &mut Self {
        let mut message = self.message(NEW_RULE, APPEND);
        message.put_str(RULE_TABLE, self.table).put_str(RULE_CHAIN, chain);
        let family = self.family;
        message.nest(RULE_EXPRESSIONS, |list| {
            for part in parts {
                encode(family, part, list);
            }
        });
        if !comment.is_empty() {
            message.put(RULE_USERDATA, &comment_bytes(comment));
        }
        self.changes.push(message);
        self
    }

    /// Removes a rule.
    pub fn delete_rule(&mut self, rule: &Rule) -> &mut Self {
        let mut message = self.message(DELETE_RULE, 0);
        message.put_str(RULE_TABLE, self.table).put_str(RULE_CHAIN, &rule.chain);
        message.put(RULE_HANDLE, &rule.handle.to_be_bytes());
        self.changes.push(message);
        self
    }

    /// Makes the changes, all or none.
    ///
    /// Errors: the kernel's; `ENOENT` when a table, chain or rule is not there.
    pub fn commit(self, socket: &Socket) -> io::Result<()> {
        if self.changes.is_empty() {
            return Ok(());
        }
        let frame = |kind| Message::new(kind, 0).with(&generic_header(0, SUBSYSTEM));
        socket.transact(frame(BATCH_BEGIN), self.changes, frame(BATCH_END))
    }
}

fn expression(list: &mut Message, name: &str, fill: impl FnOnce(&mut Message)) {
    list.nest(LIST_ELEMENT, |element| {
        element.put_str(EXPRESSION_NAME, name).nest(EXPRESSION_DATA, fill);
    });
}

/// `meta`: something about the packet into a register.
fn load_meta(list: &mut Message, key: u32) {
    expression(list, "meta", |meta| {
        meta.put_be32(1, REGISTER_1).put_be32(2, key);
    });
}

/// `payload`: bytes of a header into a register. Base 0 link, 1 network, 2 transport.
fn load_payload(list: &mut Message, base: u32, offset: u32, length: u32) {
    expression(list, "payload", |payload| {
        payload.put_be32(1, REGISTER_1).put_be32(2, base).put_be32(3, offset).put_be32(4, length);
    });
}

fn compare(list: &mut Message, is_equal: bool, value: &[u8]) {
    expression(list, "cmp", |cmp| {
        cmp.put_be32(1, REGISTER_1).put_be32(2, u32::from(!is_equal)).nest(3, |data| {
            data.put(DATA_VALUE, value);
        });
    });
}

fn immediate(list: &mut Message, register: u32, value: &[u8]) {
    expression(list, "immediate", |data| {
        data.put_be32(1, register).nest(2, |nested| {
            nested.put(DATA_VALUE, value);
        });
    });
}

fn bytes_of(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

/// `NFPROTO_*` of an address.
fn protocol_of(address: IpAddr) -> u8 {
    if address.is_ipv4() { 2 } else { 10 }
}

/// The source (or destination) address into the register, after a test of the packet's family where tables see both.
fn load_address(family: Family, list: &mut Message, address: IpAddr, is_destination: bool) {
    if family == Family::Inet {
        // NFT_META_NFPROTO
        load_meta(list, 15);
        compare(list, true, &[protocol_of(address)]);
    }
    let (offset, length) = match (address.is_ipv4(), is_destination) {
        (true, false) => (12, 4),
        (true, true) => (16, 4),
        (false, false) => (8, 16),
        (false, true) => (24, 16),
    };
    load_payload(list, 1, offset, length);
}

/// The bits of a network's prefix.
fn mask(length: u8, bytes: usize) -> Vec<u8> {
    let bits = |at: usize| usize::from(length).saturating_sub(at * 8).min(8);
    (0..bytes).map(|at| u8::MAX.checked_shl(8 - u32::try_from(bits(at)).unwrap_or(8)).unwrap_or(0)).collect()
}

fn encode(family: Family, part: &Part, list: &mut Message) {
    match part {
        Part::From(address) | Part::To(address) => {
            load_address(family, list, *address, matches!(part, Part::To(_)));
            compare(list, true, &bytes_of(*address));
        }
        Part::ToNetwork(address, length, is_inside) => {
            load_address(family, list, *address, true);
            let bytes = bytes_of(*address);
            let mask = mask(*length, bytes.len());
            let network: Vec<u8> = bytes.iter().zip(&mask).map(|(byte, mask)| byte & mask).collect();
            expression(list, "bitwise", |bitwise| {
                bitwise.put_be32(1, REGISTER_1).put_be32(2, REGISTER_1);
                bitwise.put_be32(3, u32::try_from(bytes.len()).unwrap_or_default());
                bitwise.nest(4, |data| {
                    data.put(DATA_VALUE, &mask);
                });
                bitwise.nest(5, |data| {
                    data.put(DATA_VALUE, &vec![0; bytes.len()]);
                });
            });
            compare(list, *is_inside, &network);
        }
        Part::ToLocal => {
            expression(list, "fib", |fib| {
                // Result: type of address; of the destination.
                fib.put_be32(1, REGISTER_1).put_be32(2, 3).put_be32(3, 2);
            });
            // RTN_LOCAL, in the machine's order.
            compare(list, true, &2_u32.to_ne_bytes());
        }
        Part::ToPort(protocol, port) => {
            // NFT_META_L4PROTO
            load_meta(list, 16);
            compare(list, true, &[*protocol]);
            load_payload(list, 2, 2, 2);
            compare(list, true, &port.to_be_bytes());
        }
        Part::Through(device) => {
            // NFT_META_IIFNAME, compared over the whole 16 bytes of a name.
            load_meta(list, 6);
            let mut name = device.as_bytes().to_vec();
            name.resize(16, 0);
            compare(list, true, &name);
        }
        Part::FromLinkAddress(address) => {
            load_payload(list, 0, 6, 6);
            compare(list, true, address);
        }
        Part::Masquerade => expression(list, "masq", |_| {}),
        Part::Redirect(address, port) => {
            immediate(list, REGISTER_1, &bytes_of(*address));
            immediate(list, REGISTER_2, &port.to_be_bytes());
            expression(list, "nat", |nat| {
                // NFT_NAT_DNAT; the family; registers of address and port.
                nat.put_be32(1, 1).put_be32(2, u32::from(protocol_of(*address)));
                nat.put_be32(3, REGISTER_1).put_be32(5, REGISTER_2);
            });
        }
        Part::Verdict(verdict) => {
            let (code, chain) = match verdict {
                Verdict::Drop => (0, None),
                Verdict::Return => (-5, None),
                Verdict::Jump(chain) => (-3, Some(chain)),
                Verdict::Goto(chain) => (-4, Some(chain)),
            };
            expression(list, "immediate", |data| {
                data.put_be32(1, REGISTER_VERDICT).nest(2, |nested| {
                    nested.nest(DATA_VERDICT, |verdict| {
                        verdict.put_be32(VERDICT_CODE, i32::cast_unsigned(code));
                        if let Some(chain) = chain {
                            verdict.put_str(VERDICT_CHAIN, chain);
                        }
                    });
                });
            });
        }
    }
}

/// Rules of a chain, in order. Empty when there is no such table or chain.
pub fn rules(socket: &Socket, family: Family, table: &str, chain: &str) -> io::Result<Vec<Rule>> {
    let mut message = Message::new(SUBSYSTEM << 8 | GET_RULE, 0).with(&generic_header(family.number(), 0));
    message.put_str(RULE_TABLE, table).put_str(RULE_CHAIN, chain);
    let replies = match socket.list(message) {
        Ok(replies) => replies,
        Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let rule = |body: &[u8]| {
        let attributes = Attributes::of(body.get(4..)?);
        // Older kernels list the whole table.
        let is_asked = attributes.text(RULE_TABLE) == Some(table) && attributes.text(RULE_CHAIN) == Some(chain);
        let handle = u64::from_be_bytes(attributes.find(RULE_HANDLE)?.try_into().ok()?);
        let comment = parse_comment(attributes.find(RULE_USERDATA).unwrap_or_default());
        is_asked.then(|| Rule { chain: chain.to_owned(), handle, comment })
    };
    Ok(replies.iter().filter_map(|reply| rule(&reply.body)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks() {
        let cases: [(u8, usize, &[u8]); 6] = [
            (0, 4, &[0, 0, 0, 0]),
            (1, 4, &[0x80, 0, 0, 0]),
            (16, 4, &[255, 255, 0, 0]),
            (23, 4, &[255, 255, 254, 0]),
            (32, 4, &[255, 255, 255, 255]),
            (4, 2, &[0xf0, 0]),
        ];
        for (length, bytes, expected) in cases {
            assert_eq!(mask(length, bytes), expected, "/{length}");
        }
    }

    #[test]
    fn comments_survive_and_are_cut_whole() {
        for comment in ["", "net: a, id: b", "ä"] {
            assert_eq!(parse_comment(&comment_bytes(comment)), comment);
        }
        let long = "ä".repeat(100);
        let kept = parse_comment(&comment_bytes(&long));
        assert!(kept.len() < COMMENT_MAX && long.starts_with(&kept) && kept.len() > 120, "{kept}");
        for foreign in [&[0][..], &[0, 9, 1], &[1, 2, 0, 0, 0, 2, b'x', 0]] {
            assert!(parse_comment(foreign).len() < 2, "{foreign:?}");
        }
    }
}
