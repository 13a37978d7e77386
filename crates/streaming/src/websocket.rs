//! WebSocket (RFC 6455), the server's end, with Kubernetes' channels: the first byte of a message names its stream.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use sha1::{Digest, Sha1};

use crate::connection::{Protocol, Receiver};
use crate::queue::{self, Feeder, Input, Room};
use crate::stream::{Framing, Outbox, Outgoing, Output};

/// Longest message that is read, fragments together. Clients of Kubernetes send 32 KiB at a time.
const MESSAGE_MAX_BYTES: usize = 1 << 20;
/// Longest control frame. Source: RFC 6455, section 5.5.
const CONTROL_MAX_BYTES: usize = 125;
/// The channel on which version 5 says that another one has ended.
const CLOSE_CHANNEL: u8 = 255;
/// Source: RFC 6455, section 1.3.
const ACCEPT_SALT: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

const CONTINUATION: u8 = 0;
const TEXT: u8 = 1;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;

const CLOSED_NORMALLY: u16 = 1000;
const CLOSED_FOR_PROTOCOL: u16 = 1002;
const CLOSED_FOR_SIZE: u16 = 1009;

/// How payloads of messages look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Coding {
    /// A byte, then bytes.
    Binary,
    /// A digit, then base64, as text.
    Base64,
}

/// Whether the client can end a channel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CloseSignal {
    /// By a message on channel 255.
    Known,
    /// Before version 5 it cannot.
    Unknown,
}

/// The answer to a client's `Sec-WebSocket-Key`.
pub(crate) fn accept(key: &[u8]) -> String {
    STANDARD.encode(Sha1::new().chain_update(key).chain_update(ACCEPT_SALT).finalize())
}

/// A frame of the server: whole, not masked.
fn frame(opcode: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut frame = Vec::with_capacity(length + 10);
    frame.push(0x80 | opcode);
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short), _) if short <= 125 => frame.push(short),
        (_, Ok(medium)) => {
            frame.push(126);
            frame.extend_from_slice(&medium.to_be_bytes());
        }
        _ => {
            frame.push(127);
            frame.extend_from_slice(&u64::try_from(length).unwrap_or(u64::MAX).to_be_bytes());
        }
    }
    for part in parts {
        frame.extend_from_slice(part);
    }
    frame
}

/// A message on a channel.
pub(crate) fn message(channel: u8, coding: Coding, bytes: &[u8]) -> Vec<u8> {
    match coding {
        Coding::Binary => frame(BINARY, &[&[channel], bytes]),
        Coding::Base64 => frame(TEXT, &[&[b'0'.wrapping_add(channel)], STANDARD.encode(bytes).as_bytes()]),
    }
}

/// A message with another protocol's bytes.
pub(crate) fn wrap(bytes: &[u8]) -> Vec<u8> {
    frame(BINARY, &[bytes])
}

/// The end of a connection as intended.
pub(crate) fn close() -> Vec<u8> {
    frame(CLOSE, &[&CLOSED_NORMALLY.to_be_bytes()])
}

/// The head of a client's frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    is_last: bool,
    opcode: u8,
    length: usize,
    mask: [u8; 4],
}

/// Why a client's bytes are refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Breach {
    Protocol(&'static str),
    Size,
}

/// Bytes of a frame's head after the first two: a longer length, and the mask.
fn head_rest_bytes(second: u8) -> usize {
    match second & 0x7f {
        126 => 6,
        127 => 12,
        _ => 4,
    }
}

fn parse_head(first: u8, second: u8, rest: &[u8]) -> Result<Head, Breach> {
    let short = Breach::Protocol("a short head");
    if first & 0x70 != 0 {
        return Err(Breach::Protocol("reserved bits are set"));
    }
    if second & 0x80 == 0 {
        return Err(Breach::Protocol("a client's frame is not masked"));
    }
    let (length, mask) = rest.split_at_checked(rest.len().saturating_sub(4)).ok_or(short)?;
    let length = match length.len() {
        0 => u64::from(second & 0x7f),
        _ => length.iter().fold(0_u64, |length, byte| (length << 8) | u64::from(*byte)),
    };
    let (is_last, opcode) = (first & 0x80 != 0, first & 0x0f);
    let length = usize::try_from(length).map_err(|_| Breach::Size)?;
    match opcode {
        CONTINUATION | TEXT | BINARY if length > MESSAGE_MAX_BYTES => return Err(Breach::Size),
        CONTINUATION | TEXT | BINARY => {}
        CLOSE | PING | PONG if length > CONTROL_MAX_BYTES || !is_last => {
            return Err(Breach::Protocol("a control frame that is long or in parts"));
        }
        CLOSE | PING | PONG => {}
        _ => return Err(Breach::Protocol("an unknown kind of frame")),
    }
    Ok(Head { is_last, opcode, length, mask: mask.try_into().map_err(|_| short)? })
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    // Four at a time, which the compiler makes many.
    let (quads, rest) = bytes.as_chunks_mut::<4>();
    for quad in quads {
        *quad = (u32::from_ne_bytes(*quad) ^ u32::from_ne_bytes(mask)).to_ne_bytes();
    }
    for (byte, key) in rest.iter_mut().zip(mask) {
        *byte ^= key;
    }
}

/// Joins the parts of messages.
#[derive(Debug, Default)]
struct Assembly {
    parts: Vec<u8>,
    is_open: bool,
}

impl Assembly {
    /// The whole message, once its last part is there.
    fn add(&mut self, head: Head, payload: Vec<u8>) -> Result<Option<Vec<u8>>, Breach> {
        if (head.opcode == CONTINUATION) != self.is_open {
            return Err(Breach::Protocol("a part of no message, or a message within a message"));
        }
        if self.parts.len() + payload.len() > MESSAGE_MAX_BYTES {
            return Err(Breach::Size);
        }
        if head.is_last && !self.is_open {
            return Ok(Some(payload));
        }
        self.parts.extend_from_slice(&payload);
        self.is_open = !head.is_last;
        Ok(head.is_last.then(|| std::mem::take(&mut self.parts)))
    }
}

/// Takes another protocol's bytes out of messages. Borders of messages mean nothing then.
#[derive(Debug, Default)]
pub(crate) struct Tunnel {
    /// The head of a frame, as far as it has arrived.
    start: Vec<u8>,
    /// The frame whose payload is arriving, and how much of it has.
    current: Option<(Head, usize)>,
    /// The payload of a control frame, as far as it has arrived.
    control: Vec<u8>,
}

impl Tunnel {
    /// What `arrived` carries, and answers to the pings among it.
    pub(crate) fn unwrap(&mut self, mut arrived: &[u8]) -> io::Result<(Vec<u8>, Vec<Vec<u8>>)> {
        let (mut bytes, mut pongs) = (Vec::with_capacity(arrived.len()), Vec::new());
        loop {
            let Some((head, done)) = self.current else {
                let [first, second, rest @ ..] = self.start.as_slice() else {
                    let Some((byte, after)) = arrived.split_first() else { return Ok((bytes, pongs)) };
                    self.start.push(*byte);
                    arrived = after;
                    continue;
                };
                if rest.len() == head_rest_bytes(*second) {
                    let head = parse_head(*first, *second, rest).map_err(refused)?;
                    self.start.clear();
                    self.current = Some((head, 0));
                    continue;
                }
                let Some((byte, after)) = arrived.split_first() else { return Ok((bytes, pongs)) };
                self.start.push(*byte);
                arrived = after;
                continue;
            };
            let (now, after) = arrived.split_at((head.length - done).min(arrived.len()));
            let target = if head.opcode >= CLOSE { &mut self.control } else { &mut bytes };
            let mask = head.mask.iter().cycle().skip(done % 4);
            target.extend(now.iter().zip(mask).map(|(byte, key)| byte ^ key));
            arrived = after;
            let done = done + now.len();
            if done < head.length {
                self.current = Some((head, done));
                return Ok((bytes, pongs));
            }
            self.current = None;
            let control = std::mem::take(&mut self.control);
            match head.opcode {
                CLOSE => return Err(io::ErrorKind::UnexpectedEof.into()),
                PING => pongs.push(frame(PONG, &[&control])),
                _ => {}
            }
        }
    }
}

fn refused(breach: Breach) -> io::Error {
    let text = match breach {
        Breach::Protocol(what) => what,
        Breach::Size => "a message is too long",
    };
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The channel of a message and what it carries.
fn decode(coding: Coding, message: Vec<u8>) -> Result<Option<(u8, Bytes)>, Breach> {
    let Some(first) = message.first().copied() else { return Ok(None) };
    match coding {
        Coding::Binary => Ok(Some((first, Bytes::from(message).slice(1..)))),
        Coding::Base64 => {
            let channel = first.checked_sub(b'0').ok_or(Breach::Protocol("a message without a channel"))?;
            let payload = STANDARD
                .decode(message.get(1..).unwrap_or_default().trim_ascii_end())
                .map_err(|_| Breach::Protocol("a message that is not base64"))?;
            Ok(Some((channel, payload.into())))
        }
    }
}

/// The state of one WebSocket connection.
pub(crate) struct Connection {
    outbox: Outbox,
    coding: Coding,
    close_signal: CloseSignal,
    channels: HashMap<u8, Feeder>,
    room: Arc<Room>,
    assembly: Assembly,
    breach: Option<Breach>,
}

impl Connection {
    /// A connection without channels.
    pub(crate) fn new(outbox: Outbox, room: &Arc<Room>, coding: Coding, close_signal: CloseSignal) -> Self {
        let (channels, assembly, room) = (HashMap::new(), Assembly::default(), Arc::clone(room));
        Self { outbox, coding, close_signal, channels, room, assembly, breach: None }
    }

    /// What the client sends on a channel. What it sends on channels that nobody reads is dropped.
    pub(crate) fn input(&mut self, channel: u8) -> Input {
        let (feeder, input) = queue::queue(&self.room, None);
        self.channels.insert(channel, feeder);
        input
    }

    /// What goes to the client on a channel.
    pub(crate) fn output(&self, channel: u8) -> Output {
        Output::new(Framing::Channel { channel, coding: self.coding }, self.outbox.clone())
    }

    async fn read(&mut self, receiver: &mut Receiver) -> io::Result<()> {
        loop {
            let mut start = [0; 2];
            receiver.exact(&mut start).await?;
            let [first, second] = start;
            let rest = receiver.bytes(head_rest_bytes(second)).await?;
            let head = parse_head(first, second, &rest).map_err(|breach| self.broken(breach))?;
            let mut payload = receiver.bytes(head.length).await?;
            unmask(&mut payload, head.mask);
            match head.opcode {
                CLOSE => return Ok(()),
                PING => self.send(receiver, frame(PONG, &[&payload])).await?,
                PONG => {}
                _ => {
                    let message = self.assembly.add(head, payload).map_err(|breach| self.broken(breach))?;
                    let Some(message) = message else { continue };
                    let message = decode(self.coding, message).map_err(|breach| self.broken(breach))?;
                    let Some((channel, bytes)) = message else { continue };
                    self.deliver(receiver, channel, bytes).await?;
                }
            }
        }
    }

    async fn deliver(&mut self, receiver: &Receiver, channel: u8, bytes: Bytes) -> io::Result<()> {
        if channel == CLOSE_CHANNEL && self.close_signal == CloseSignal::Known {
            if let Some(ended) = bytes.first() {
                self.channels.remove(ended);
            }
            return Ok(());
        }
        if bytes.is_empty() {
            return Ok(());
        }
        if let Some(feeder) = self.channels.get(&channel)
            && receiver.while_present(feeder.send(bytes)).await?.is_err()
        {
            self.channels.remove(&channel);
        }
        Ok(())
    }

    fn broken(&mut self, breach: Breach) -> io::Error {
        self.breach = Some(breach);
        refused(breach)
    }

    async fn send(&self, receiver: &Receiver, frame: Vec<u8>) -> io::Result<()> {
        let _ = receiver.while_present(self.outbox.send(Outgoing::Frame(frame))).await?;
        Ok(())
    }
}

impl Protocol for Connection {
    async fn run(&mut self, receiver: &mut Receiver) -> io::Error {
        match self.read(receiver).await {
            Ok(()) => io::ErrorKind::UnexpectedEof.into(),
            Err(error) => error,
        }
    }

    fn farewell(&self, _: Option<&io::Error>) -> Option<Vec<u8>> {
        let code = match self.breach {
            None => CLOSED_NORMALLY,
            Some(Breach::Protocol(_)) => CLOSED_FOR_PROTOCOL,
            Some(Breach::Size) => CLOSED_FOR_SIZE,
        };
        Some(frame(CLOSE, &[&code.to_be_bytes()]))
    }
}

/// Reads bytes as a client's frames and messages would be, and as a tunnel's. For fuzzing.
pub fn fuzz_messages(bytes: &[u8]) {
    let (first, second) = bytes.split_at(bytes.len() / 2);
    let mut tunnel = Tunnel::default();
    let _ = tunnel.unwrap(first).and_then(|_| tunnel.unwrap(second));
    for coding in [Coding::Binary, Coding::Base64] {
        let mut assembly = Assembly::default();
        let mut rest = bytes;
        while let Some(([first, second], after)) = rest.split_first_chunk::<2>() {
            let Some((head, after)) = after.split_at_checked(head_rest_bytes(*second)) else { break };
            let Ok(head) = parse_head(*first, *second, head) else { break };
            let Some((payload, after)) = after.split_at_checked(head.length) else { break };
            rest = after;
            let mut payload = payload.to_vec();
            unmask(&mut payload, head.mask);
            if head.opcode >= CLOSE {
                continue;
            }
            match assembly.add(head, payload) {
                Ok(Some(message)) => {
                    if decode(coding, message).is_err() {
                        break;
                    }
                }
                Ok(None) => {}
                Err(_) => break,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_to_a_key_is_the_standards() {
        assert_eq!(accept(b"dGhlIHNhbXBsZSBub25jZQ=="), "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
    }

    #[test]
    fn frames_have_the_shortest_length_that_fits() {
        for (length, head) in [
            (0, &[0x82, 1, 7][..]),
            (124, &[0x82, 125, 7]),
            (125, &[0x82, 126, 0, 126, 7]),
            (65534, &[0x82, 126, 0xff, 0xff, 7]),
            (65535, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0, 7]),
        ] {
            let frame = message(7, Coding::Binary, &vec![0; length]);
            assert_eq!((&frame[..head.len()], frame.len()), (head, head.len() + length));
        }
        assert_eq!(message(1, Coding::Base64, b"hi"), b"\x81\x051aGk=");
    }

    #[test]
    fn heads_of_clients_are_checked() {
        let mask = [1, 2, 3, 4];
        let head = |is_last, opcode, length| Ok(Head { is_last, opcode, length, mask });
        for (first, second, rest, expected) in [
            (0x82, 0x85, &[1, 2, 3, 4][..], head(true, BINARY, 5)),
            (0x02, 0xfe, &[1, 0, 1, 2, 3, 4], head(false, BINARY, 256)),
            (0x82, 0xff, &[0, 0, 0, 0, 0, 0, 1, 0, 1, 2, 3, 4], head(true, BINARY, 256)),
            (0x82, 0xff, &[0, 0, 0, 0, 1, 0, 0, 0, 1, 2, 3, 4], Err(Breach::Size)),
            (0x82, 0xff, &[255, 255, 255, 255, 255, 255, 255, 255, 1, 2, 3, 4], Err(Breach::Size)),
            (0x82, 0x05, &[1, 2, 3, 4], Err(Breach::Protocol("a client's frame is not masked"))),
            (0xc2, 0x85, &[1, 2, 3, 4], Err(Breach::Protocol("reserved bits are set"))),
            (0x09, 0x80, &[1, 2, 3, 4], Err(Breach::Protocol("a control frame that is long or in parts"))),
            (0x83, 0x80, &[1, 2, 3, 4], Err(Breach::Protocol("an unknown kind of frame"))),
        ] {
            assert_eq!(rest.len(), head_rest_bytes(second));
            assert_eq!(parse_head(first, second, rest), expected);
        }
    }

    #[test]
    fn a_tunnel_gives_the_same_bytes_however_they_are_cut() {
        let mask = [9, 8, 7, 6];
        let client = |first: u8, payload: &[u8]| {
            let mut masked = payload.to_vec();
            unmask(&mut masked, mask);
            [&[first, 0x80 | u8::try_from(payload.len()).expect("is short")], &mask[..], &masked].concat()
        };
        let sent = [client(0x02, b"hello "), client(0x89, b"ping"), client(0x80, b""), client(0x82, b"world")].concat();
        for cut in 0..=sent.len() {
            let mut tunnel = Tunnel::default();
            let (mut bytes, mut pongs) = tunnel.unwrap(&sent[..cut]).expect("is fine");
            let (more_bytes, more_pongs) = tunnel.unwrap(&sent[cut..]).expect("is fine");
            bytes.extend(more_bytes);
            pongs.extend(more_pongs);
            assert_eq!(
                (bytes.as_slice(), pongs),
                (&b"hello world"[..], vec![b"\x8a\x04ping".to_vec()]),
                "cut at {cut}"
            );
        }
        let mut tunnel = Tunnel::default();
        assert!(tunnel.unwrap(&client(0x88, b"")).is_err(), "closed");
        assert!(Tunnel::default().unwrap(b"\x82\x01\0\0\0\0").is_err(), "not masked");
    }

    #[test]
    fn masks_are_taken_off_whatever_the_length() {
        for length in 0..13_u8 {
            let mut bytes: Vec<u8> = (0..length).map(|at| at ^ [9, 8, 7, 6][usize::from(at % 4)]).collect();
            unmask(&mut bytes, [9, 8, 7, 6]);
            assert_eq!(bytes, (0..length).collect::<Vec<_>>());
        }
    }

    #[test]
    fn messages_are_joined_and_decoded() {
        let head = |is_last, opcode| Head { is_last, opcode, length: 0, mask: [0; 4] };
        let mut assembly = Assembly::default();
        assert_eq!(assembly.add(head(false, BINARY), b"\x00a".to_vec()), Ok(None));
        assert!(assembly.add(head(true, BINARY), b"x".to_vec()).is_err(), "a message within a message");
        assert_eq!(assembly.add(head(true, CONTINUATION), b"b".to_vec()), Ok(Some(b"\x00ab".to_vec())));
        assert!(assembly.add(head(true, CONTINUATION), b"b".to_vec()).is_err(), "a part of no message");
        assert_eq!(assembly.add(head(true, BINARY), vec![0; MESSAGE_MAX_BYTES + 1]), Err(Breach::Size));
        for (coding, message, expected) in [
            (Coding::Binary, &b"\x04{}"[..], Ok(Some((4, Bytes::from("{}"))))),
            (Coding::Binary, b"", Ok(None)),
            (Coding::Base64, b"0aGk=", Ok(Some((0, Bytes::from("hi"))))),
            (Coding::Base64, b"0a", Err(Breach::Protocol("a message that is not base64"))),
            (Coding::Base64, b"!", Err(Breach::Protocol("a message without a channel"))),
        ] {
            assert_eq!(decode(coding, message.to_vec()), expected);
        }
    }
}
