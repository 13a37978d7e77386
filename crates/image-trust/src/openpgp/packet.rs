//! Packets: tag, length, body. Source: RFC 9580 section 4.2.

use super::Fault;

/// Kinds of packets that are read here.
pub(super) mod tag {
    pub(in crate::openpgp) const SIGNATURE: u8 = 2;
    pub(in crate::openpgp) const ONE_PASS_SIGNATURE: u8 = 4;
    pub(in crate::openpgp) const PUBLIC_KEY: u8 = 6;
    pub(in crate::openpgp) const COMPRESSED: u8 = 8;
    pub(in crate::openpgp) const MARKER: u8 = 10;
    pub(in crate::openpgp) const LITERAL: u8 = 11;
    pub(in crate::openpgp) const USER_ID: u8 = 13;
    pub(in crate::openpgp) const PUBLIC_SUBKEY: u8 = 14;
    pub(in crate::openpgp) const USER_ATTRIBUTE: u8 = 17;
}

/// One packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) tag: u8,
    pub(super) body: Vec<u8>,
}

/// Bytes that are read from the front; the end is an error.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(pub(super) &'a [u8]);

impl<'a> Reader<'a> {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn take(&mut self, count: usize) -> Result<&'a [u8], Fault> {
        if count > self.0.len() {
            return Err(Fault::Malformed("it ends too early"));
        }
        let (taken, rest) = self.0.split_at(count);
        self.0 = rest;
        Ok(taken)
    }

    pub(super) fn byte(&mut self) -> Result<u8, Fault> {
        Ok(self.take(1)?[0])
    }

    pub(super) fn u16(&mut self) -> Result<u16, Fault> {
        let bytes = self.take(2)?;
        Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    pub(super) fn u32(&mut self) -> Result<u32, Fault> {
        let bytes = self.take(4)?;
        Ok(u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]))
    }

    /// A number of many bytes, without leading zeros. Source: RFC 9580 section 3.2.
    pub(super) fn mpi(&mut self) -> Result<&'a [u8], Fault> {
        let bits = usize::from(self.u16()?);
        let bytes = self.take(bits.div_ceil(8))?;
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        Ok(&bytes[zeros..])
    }

    pub(super) fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.0)
    }
}

/// Most packets of one message or keyring: a keyring of a distribution has some thousand.
const PACKETS_MAX: usize = 200_000;

/// Takes a text of packets apart.
pub(super) fn parse_packets(bytes: &[u8]) -> Result<Vec<Packet>, Fault> {
    let mut reader = Reader(bytes);
    let mut packets = Vec::new();
    while !reader.is_empty() {
        if packets.len() >= PACKETS_MAX {
            return Err(Fault::Malformed("it has too many packets"));
        }
        packets.push(parse_packet(&mut reader)?);
    }
    Ok(packets)
}

fn parse_packet(reader: &mut Reader<'_>) -> Result<Packet, Fault> {
    let head = reader.byte()?;
    match head {
        0xc0.. => {
            let tag = head & 0x3f;
            Ok(Packet { tag, body: parse_new_body(tag, reader)? })
        }
        0x80.. => {
            let length = match head & 3 {
                0 => usize::from(reader.byte()?),
                1 => usize::from(reader.u16()?),
                2 => as_length(reader.u32()?)?,
                _ => reader.0.len(),
            };
            let tag = (head >> 2) & 0xf;
            // Only data may go on to the end of the text.
            if head & 3 == 3 && !is_data(tag) {
                return Err(Fault::Malformed("a packet has no length"));
            }
            Ok(Packet { tag, body: reader.take(length)?.to_vec() })
        }
        _ => Err(Fault::Malformed("a packet does not begin as one")),
    }
}

/// A body in one piece, or, of data, in several whose lengths are powers of two.
fn parse_new_body(tag: u8, reader: &mut Reader<'_>) -> Result<Vec<u8>, Fault> {
    let mut body = Vec::new();
    loop {
        let (length, is_last) = match reader.byte()? {
            first @ 0..=191 => (usize::from(first), true),
            first @ 192..=223 => (((usize::from(first) - 192) << 8) + usize::from(reader.byte()?) + 192, true),
            255 => (as_length(reader.u32()?)?, true),
            first => (1_usize << (first & 0x1f).min(30), false),
        };
        if !is_last && !is_data(tag) {
            return Err(Fault::Malformed("a packet comes in pieces"));
        }
        body.extend_from_slice(reader.take(length)?);
        if is_last {
            return Ok(body);
        }
    }
}

fn is_data(tag: u8) -> bool {
    matches!(tag, tag::COMPRESSED | tag::LITERAL)
}

fn as_length(length: u32) -> Result<usize, Fault> {
    usize::try_from(length).map_err(|_| Fault::Malformed("a packet is too long"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_of_lengths_are_read() {
        let long = [&[0xca, 192, 8][..], &[7; 200]].concat();
        for (bytes, expected) in [
            (&[0x88, 2, 1, 2][..], Some(vec![(2, vec![1, 2])])),
            (&[0x89, 0, 1, 9, 0xb4, 0], Some(vec![(2, vec![9]), (13, vec![])])),
            (&[0x8a, 0, 0, 0, 1, 9], Some(vec![(2, vec![9])])),
            (&[0xa3, 1, 2, 3], Some(vec![(8, vec![1, 2, 3])])),
            (&[0xcb, 0xe1, 1, 2, 0xe0, 3, 1, 4], Some(vec![(11, vec![1, 2, 3, 4])])),
            (&[0xcb, 0xff, 0, 0, 0, 1, 4], Some(vec![(11, vec![4])])),
            (&long, Some(vec![(10, vec![7; 200])])),
            (&[], Some(vec![])),
            (&[0x8b, 1], None),
            (&[0xc2, 0xe0, 3, 0], None),
            (&[0x88, 2, 1], None),
            (&[0xcb, 0xff, 0xff, 0xff, 0xff, 0xff], None),
            (&[0x41], None),
            (&[0x88], None),
        ] {
            let found = parse_packets(bytes).ok();
            let found = found.map(|list| list.into_iter().map(|packet| (packet.tag, packet.body)).collect());
            assert_eq!(found, expected, "{bytes:?}");
        }
    }

    #[test]
    fn long_numbers_lose_their_zeros() {
        let mut reader = Reader(&[0, 9, 1, 0xff, 0, 0, 0, 16, 0, 5, 0, 8]);
        assert_eq!(reader.mpi(), Ok(&[1, 0xff][..]));
        assert_eq!(reader.mpi(), Ok(&[][..]));
        assert_eq!(reader.mpi(), Ok(&[5][..]));
        assert_eq!(reader.mpi(), Err(Fault::Malformed("it ends too early")));
    }
}
