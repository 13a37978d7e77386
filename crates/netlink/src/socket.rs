//! Sending requests and reading what comes back.

use std::cell::Cell;
use std::io;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType};

use crate::message::{HEADER, Message};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
/// `NLM_F_ROOT | NLM_F_MATCH`
const NLM_F_DUMP: u16 = 0x300;
/// The kernel builds dumps in pieces of at most 32 KiB; larger single answers do not exist in what is asked here.
const ANSWER_MAX: usize = 64 * 1024;
/// Pieces of one answer: a node with tens of thousands of links or rules needs fewer.
const PIECES_MAX: usize = 4096;

/// One message of an answer.
#[derive(Debug, Clone)]
pub struct Reply {
    /// Its type.
    pub kind: u16,
    /// The fixed structure and attributes.
    pub body: Vec<u8>,
}

/// A connection to the kernel, in the network namespace of the thread that opened it.
#[derive(Debug)]
pub struct Socket {
    fd: OwnedFd,
    sequence: Cell<u32>,
}

impl Socket {
    /// For links, addresses, routes and queueing disciplines. Source: rtnetlink(7).
    pub fn route() -> io::Result<Self> {
        // NETLINK_ROUTE is protocol 0.
        Self::open(None)
    }

    /// For nf_tables.
    pub fn netfilter() -> io::Result<Self> {
        Self::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Self> {
        let fd = rustix::net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        Ok(Self { fd, sequence: Cell::new(0) })
    }

    fn next(&self) -> u32 {
        let next = self.sequence.get().wrapping_add(1).max(1);
        self.sequence.set(next);
        next
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        // Port 0 is the kernel; it has worked the request off before sendto returns.
        rustix::net::sendto(&self.fd, bytes, SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        Ok(())
    }

    /// The next datagram; `None` when there is none.
    fn receive(&self, flags: RecvFlags) -> io::Result<Option<Vec<u8>>> {
        let mut bytes = vec![0_u8; ANSWER_MAX];
        let (received, length) = match rustix::net::recv(&self.fd, &mut bytes[..], flags | RecvFlags::TRUNC) {
            Ok(sizes) => sizes,
            Err(Errno::AGAIN) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        if length > received {
            return Err(Errno::MSGSIZE.into());
        }
        bytes.truncate(received);
        Ok(Some(bytes))
    }

    /// Makes a change.
    ///
    /// Errors: the kernel's, among them `EEXIST` and `ENOENT`.
    pub fn change(&self, message: Message) -> io::Result<()> {
        self.ask(message).map(drop)
    }

    /// Asks for one object.
    ///
    /// Errors: the kernel's, `ENODEV` for a link that is not there.
    pub fn ask(&self, message: Message) -> io::Result<Vec<Reply>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_ACK)
    }

    /// Asks for all objects of a kind.
    pub fn list(&self, message: Message) -> io::Result<Vec<Reply>> {
        self.exchange(message, NLM_F_REQUEST | NLM_F_DUMP)
    }

    fn exchange(&self, message: Message, flags: u16) -> io::Result<Vec<Reply>> {
        let sequence = self.next();
        self.send(&message.finish(flags, sequence))?;
        let mut replies = Vec::new();
        for _ in 0..PIECES_MAX {
            let Some(bytes) = self.receive(RecvFlags::empty())? else { continue };
            for (answered, kind, body) in messages(&bytes) {
                // An answer to an earlier request that was given up.
                if answered != sequence {
                    continue;
                }
                match kind {
                    NLMSG_ERROR | NLMSG_DONE => return status(body).map(|()| replies),
                    kind => replies.push(Reply { kind, body: body.to_vec() }),
                }
            }
        }
        Err(Errno::MSGSIZE.into())
    }

    /// Sends messages that the kernel takes all or none of, between two that frame them.
    ///
    /// Errors: that of the first message refused.
    pub(crate) fn transact(&self, begin: Message, changes: Vec<Message>, end: Message) -> io::Result<()> {
        let first = self.next();
        let mut bytes = begin.finish(NLM_F_REQUEST, first);
        for change in changes {
            bytes.extend(change.finish(NLM_F_REQUEST | NLM_F_ACK, self.next()));
        }
        bytes.extend(end.finish(NLM_F_REQUEST, self.next()));
        self.send(&bytes)?;
        let last = self.sequence.get();
        let (mut answers, mut refusal) = (0_usize, None);
        // Everything there will be is there.
        while let Some(bytes) = self.receive(RecvFlags::DONTWAIT)? {
            for (answered, kind, body) in messages(&bytes) {
                if kind == NLMSG_ERROR && (first..=last).contains(&answered) {
                    answers += 1;
                    refusal = refusal.or(status(body).err());
                }
            }
        }
        match refusal {
            Some(refusal) => Err(refusal),
            None if answers == 0 => Err(Errno::PROTO.into()),
            None => Ok(()),
        }
    }
}

/// Number, type and body of each message; ends at the first that is cut short.
fn messages(mut bytes: &[u8]) -> impl Iterator<Item = (u32, u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..HEADER)?;
        let length = u32::from_ne_bytes(header[..4].try_into().ok()?) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let sequence = u32::from_ne_bytes(header[8..12].try_into().ok()?);
        let body = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((sequence, kind, body))
    })
}

/// What an error message, or the end of a list, says: zero is success.
fn status(body: &[u8]) -> io::Result<()> {
    let code = body.get(..4).and_then(|code| code.try_into().ok()).map_or(0, i32::from_ne_bytes);
    if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(code.wrapping_neg())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_messages_end_the_walk() {
        let whole = Message::new(NLMSG_ERROR, 0).with(&(-17_i32).to_ne_bytes()).finish(0, 5);
        let mut two = whole.clone();
        two.extend(&whole);
        for (bytes, expected) in [(&two[..], 2), (&two[..two.len() - 1], 1), (&whole[..HEADER], 0), (&[0; 64], 0)] {
            assert_eq!(messages(bytes).count(), expected);
        }
        let (sequence, kind, body) = messages(&whole).next().unwrap();
        assert_eq!((sequence, kind), (5, NLMSG_ERROR));
        assert_eq!(status(body).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
    }

    #[test]
    fn the_kernel_answers() {
        let socket = Socket::route().unwrap();
        // RTM_GETLINK of device 1, then of one that cannot be.
        let ask = |index: u32| {
            let mut fixed = vec![0_u8; 16];
            fixed[4..8].copy_from_slice(&index.to_ne_bytes());
            socket.ask(Message::new(18, 0).with(&fixed))
        };
        assert_eq!(ask(1).unwrap().len(), 1);
        assert_eq!(ask(0x7fff_fff0).unwrap_err().raw_os_error(), Some(Errno::NODEV.raw_os_error()));
        assert_eq!(ask(1).unwrap().len(), 1);
    }
}
