//! Flows the kernel remembers. Source: `linux/netfilter/nfnetlink_conntrack.h`.

use std::io;

use crate::message::{Attributes, Message};
use crate::socket::Socket;

/// `NFNL_SUBSYS_CTNETLINK`
const SUBSYSTEM: u16 = 1;
const GET: u16 = 1;
const DELETE: u16 = 2;

const TUPLE_ORIGINAL: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const PROTOCOL_NUMBER: u16 = 1;
const DESTINATION_PORT: u16 = 3;
const ID: u16 = 12;
const ZONE: u16 = 18;
/// Length of `struct nfgenmsg`.
const HEADER: usize = 4;

impl Socket {
    /// Forgets flows of a protocol whose first packet went to one of the ports.
    ///
    /// For sockets of [`Socket::netfilter`]. A flow that ends meanwhile is no error.
    pub fn forget_flows(&self, is_v4: bool, protocol: u8, ports: &[u16]) -> io::Result<()> {
        let header = [if is_v4 { 2 } else { 10 }, 0, 0, 0];
        for flow in self.list(Message::new(SUBSYSTEM << 8 | GET, 0).with(&header))? {
            let Some(attributes) = flow.body.get(HEADER..).map(Attributes::of) else { continue };
            let Some(original) = attributes.find(TUPLE_ORIGINAL) else { continue };
            let transport = Attributes::of(original).nested(TUPLE_PROTOCOL);
            let port = transport.find(DESTINATION_PORT).and_then(|bytes| bytes.try_into().ok());
            let is_wanted = port.is_some_and(|port| ports.contains(&u16::from_be_bytes(port)));
            if transport.find(PROTOCOL_NUMBER) != Some(&[protocol]) || !is_wanted {
                continue;
            }
            let mut message = Message::new(SUBSYSTEM << 8 | DELETE, 0).with(&header);
            message.put(TUPLE_ORIGINAL | crate::message::NESTED, original);
            for kind in [ID, ZONE] {
                if let Some(bytes) = attributes.find(kind) {
                    message.put(kind, bytes);
                }
            }
            match self.change(message) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(())
    }
}
