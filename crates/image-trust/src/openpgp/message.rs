//! A signed message: what is signed, and one signature. Source: RFC 9580 section 10.3.

use std::io::Read;

use flate2::read::{DeflateDecoder, ZlibDecoder};

use super::Fault;
use super::packet::{Packet, Reader, parse_packets, tag};
use super::signature::SignaturePacket;

/// Largest message after inflating: claims have some hundred bytes.
const INFLATED_MAX_BYTES: u64 = 1 << 20;

/// A message in its parts.
#[derive(Debug)]
pub(super) struct SignedMessage {
    /// What is signed, byte for byte.
    pub(super) contents: Vec<u8>,
    pub(super) signature: SignaturePacket,
}

impl SignedMessage {
    /// One-pass signature, literal data, signature; or signature, literal data; compressed or not. Anything more,
    /// a second signature for one, makes it another message than the one its reader thinks of.
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Fault> {
        let packets = without_markers(parse_packets(bytes)?);
        let packets = match packets.as_slice() {
            [Packet { tag: tag::COMPRESSED, body }] => without_markers(parse_packets(&inflate(body)?)?),
            _ => packets,
        };
        let tags: Vec<u8> = packets.iter().map(|packet| packet.tag).collect();
        let (literal, signature) = match tags.as_slice() {
            [tag::ONE_PASS_SIGNATURE, tag::LITERAL, tag::SIGNATURE] => (&packets[1], &packets[2]),
            [tag::SIGNATURE, tag::LITERAL] => (&packets[1], &packets[0]),
            _ => return Err(Fault::Message("not a message with exactly one signature")),
        };
        let contents = literal_contents(&literal.body)?.to_vec();
        Ok(Self { contents, signature: SignaturePacket::parse(&signature.body)? })
    }
}

fn without_markers(mut packets: Vec<Packet>) -> Vec<Packet> {
    packets.retain(|packet| packet.tag != tag::MARKER);
    packets
}

fn inflate(body: &[u8]) -> Result<Vec<u8>, Fault> {
    let (algorithm, compressed) = body.split_first().ok_or(Fault::Malformed("it ends too early"))?;
    let mut inflated = Vec::new();
    let read = match algorithm {
        0 => compressed.take(INFLATED_MAX_BYTES + 1).read_to_end(&mut inflated),
        1 => DeflateDecoder::new(compressed).take(INFLATED_MAX_BYTES + 1).read_to_end(&mut inflated),
        2 => ZlibDecoder::new(compressed).take(INFLATED_MAX_BYTES + 1).read_to_end(&mut inflated),
        other => return Err(Fault::Unsupported(format!("compression algorithm {other}"))),
    };
    read.map_err(|_| Fault::Malformed("its compressed data is damaged"))?;
    if inflated.len() as u64 > INFLATED_MAX_BYTES {
        return Err(Fault::Malformed("its compressed data is too long"));
    }
    Ok(inflated)
}

/// Behind the format, a file's name and a time, none of which is signed.
fn literal_contents(body: &[u8]) -> Result<&[u8], Fault> {
    let mut reader = Reader(body);
    reader.byte()?;
    let name_length = reader.byte()?;
    reader.take(usize::from(name_length))?;
    reader.u32()?;
    Ok(reader.rest())
}
