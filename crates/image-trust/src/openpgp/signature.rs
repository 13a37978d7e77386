//! Signature packets. Source: RFC 9580 section 5.2.

use super::Fault;
use super::key::{Hash, Numbers, PublicKey, algorithm};
use super::packet::Reader;

/// What a signature is for. Source: RFC 9580 section 5.2.1.
pub(super) mod kind {
    pub(in crate::openpgp) const BINARY: u8 = 0x00;
    pub(in crate::openpgp) const CERTIFICATION_FIRST: u8 = 0x10;
    pub(in crate::openpgp) const CERTIFICATION_LAST: u8 = 0x13;
    pub(in crate::openpgp) const SUBKEY_BINDING: u8 = 0x18;
    pub(in crate::openpgp) const PRIMARY_BINDING: u8 = 0x19;
    pub(in crate::openpgp) const DIRECT_KEY: u8 = 0x1f;
    pub(in crate::openpgp) const KEY_REVOCATION: u8 = 0x20;
    pub(in crate::openpgp) const SUBKEY_REVOCATION: u8 = 0x28;
    pub(in crate::openpgp) const CERTIFICATION_REVOCATION: u8 = 0x30;
}

/// The bit of the key flags that lets a key sign data.
const MAY_SIGN: u8 = 0x02;

/// A signature of version 4, not verified yet.
#[derive(Debug, Clone)]
pub(super) struct SignaturePacket {
    pub(super) kind: u8,
    /// Seconds since 1970.
    pub(super) created: u32,
    hash: Hash,
    numbers: Numbers,
    /// What is hashed behind the signed text.
    trailer: Vec<u8>,
    subpackets: Subpackets,
}

/// Of the subpackets, what is looked at.
#[derive(Debug, Clone, Default)]
struct Subpackets {
    created: Option<u32>,
    /// Seconds after its making that the signature ends.
    expires_after: Option<u32>,
    /// Seconds after the key's making that the key ends.
    key_expires_after: Option<u32>,
    flags: Option<u8>,
    issuers: Vec<[u8; 8]>,
    embedded: Vec<Vec<u8>>,
}

impl SignaturePacket {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader(body);
        let version = reader.byte()?;
        if version != 4 {
            return Err(Fault::Unsupported(format!("signature of version {version}")));
        }
        let (kind, algorithm, hash) = (reader.byte()?, reader.byte()?, reader.byte()?);
        let hashed_length = reader.u16()?;
        let hashed = reader.take(usize::from(hashed_length))?;
        let head = &body[..6 + hashed.len()];
        let unhashed_length = reader.u16()?;
        let unhashed = reader.take(usize::from(unhashed_length))?;
        // The beginning of the hash, for those who want to fail early.
        reader.take(2)?;
        let mut subpackets = Subpackets::default();
        subpackets.read(hashed, Area::Hashed)?;
        subpackets.read(unhashed, Area::Unhashed)?;
        let length = u32::try_from(head.len()).map_err(|_| Fault::Malformed("a signature is too long"))?;
        Ok(Self {
            kind,
            created: subpackets.created.ok_or(Fault::Malformed("a signature does not say when it was made"))?,
            hash: Hash::of(hash)?,
            numbers: numbers(algorithm, &mut reader)?,
            trailer: [head, &[4, 0xff], &length.to_be_bytes()].concat(),
            subpackets,
        })
    }

    /// Whether `key` signed this text.
    pub(super) fn verify(&self, key: &PublicKey, text: &[&[u8]]) -> Result<(), Fault> {
        let mut signed = text.concat();
        signed.extend_from_slice(&self.trailer);
        key.verify(self.hash, &signed, &self.numbers)
    }

    /// Whether collisions of the hash can be made.
    pub(super) fn is_weak(&self) -> bool {
        self.hash == Hash::Sha1
    }

    /// The ids of keys that may have made it: a hint, nothing more.
    pub(super) fn issuers(&self) -> &[[u8; 8]] {
        &self.subpackets.issuers
    }

    pub(super) fn is_expired(&self, now: u64) -> bool {
        is_over(self.created, self.subpackets.expires_after, now)
    }

    pub(super) fn key_expires_after(&self) -> Option<u32> {
        self.subpackets.key_expires_after
    }

    /// Whether the key this is about may sign data; keys without flags may do all they can.
    pub(super) fn lets_sign(&self) -> bool {
        self.subpackets.flags.is_none_or(|flags| flags & MAY_SIGN != 0)
    }

    pub(super) fn has_flags(&self) -> bool {
        self.subpackets.flags.is_some()
    }

    /// Signatures within this one that parse.
    pub(super) fn embedded(&self) -> impl Iterator<Item = SignaturePacket> + '_ {
        self.subpackets.embedded.iter().filter_map(|body| Self::parse(body).ok())
    }
}

/// Whether a span that begins at `start` has ended; zero and none mean never.
pub(super) fn is_over(start: u32, after: Option<u32>, now: u64) -> bool {
    after.is_some_and(|after| after != 0 && u64::from(start) + u64::from(after) <= now)
}

fn numbers(algorithm: u8, reader: &mut Reader<'_>) -> Result<Numbers, Fault> {
    match algorithm {
        algorithm::RSA | algorithm::RSA_SIGN => Ok(Numbers::One(reader.mpi()?.to_vec())),
        algorithm::DSA => Err(Fault::Unsupported("DSA signature".to_owned())),
        algorithm::ECDSA | algorithm::EDDSA => Ok(Numbers::Two(reader.mpi()?.to_vec(), reader.mpi()?.to_vec())),
        algorithm::ED25519 => Ok(Numbers::Raw(reader.take(64)?.to_vec())),
        other => Err(Fault::Unsupported(format!("signature of algorithm {other}"))),
    }
}

/// Anybody can change what lies in the unhashed area.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Area {
    Hashed,
    Unhashed,
}

impl Subpackets {
    fn read(&mut self, bytes: &[u8], area: Area) -> Result<(), Fault> {
        let mut reader = Reader(bytes);
        while !reader.is_empty() {
            let length = subpacket_length(&mut reader)?;
            let mut subpacket = Reader(reader.take(length)?);
            let head = subpacket.byte()?;
            self.read_one(head, &mut subpacket, area)?;
        }
        Ok(())
    }

    fn read_one(&mut self, head: u8, body: &mut Reader<'_>, area: Area) -> Result<(), Fault> {
        let (kind, is_critical) = (head & 0x7f, head & 0x80 != 0);
        match (kind, area) {
            (2, Area::Hashed) => self.created = Some(body.u32()?),
            (3, Area::Hashed) => self.expires_after = Some(body.u32()?),
            (9, Area::Hashed) => self.key_expires_after = Some(body.u32()?),
            (27, Area::Hashed) => self.flags = Some(if body.is_empty() { 0 } else { body.byte()? }),
            (16, _) => {
                if let Ok(id) = body.take(8)?.try_into() {
                    self.issuers.push(id);
                }
            }
            (33, _) => {
                let (version, fingerprint) = (body.byte()?, body.rest());
                // The id of a key of version 4 is the end of its fingerprint.
                if let (4, 20) = (version, fingerprint.len())
                    && let Ok(id) = fingerprint[12..].try_into()
                {
                    self.issuers.push(id);
                }
            }
            (32, _) => self.embedded.push(body.rest().to_vec()),
            // Those that only help people, or are preferences: known, and of no consequence here.
            (4..=7 | 11 | 12 | 21..=26 | 28..=31 | 34 | 35 | 39, _) => {}
            _ if is_critical && area == Area::Hashed => {
                return Err(Fault::Unsupported(format!("critical subpacket of type {kind}")));
            }
            _ => {}
        }
        Ok(())
    }
}

fn subpacket_length(reader: &mut Reader<'_>) -> Result<usize, Fault> {
    Ok(match reader.byte()? {
        first @ 0..=191 => usize::from(first),
        255 => usize::try_from(reader.u32()?).map_err(|_| Fault::Malformed("a subpacket is too long"))?,
        first => ((usize::from(first) - 192) << 8) + usize::from(reader.byte()?) + 192,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(hashed: &[u8], unhashed: &[u8]) -> Vec<u8> {
        let mut body = vec![4, 0, 1, 8, 0, u8::try_from(hashed.len()).expect("is short")];
        body.extend_from_slice(hashed);
        body.extend_from_slice(&[0, u8::try_from(unhashed.len()).expect("is short")]);
        body.extend_from_slice(unhashed);
        body.extend_from_slice(&[0, 0, 0, 8, 0xff]);
        body
    }

    #[test]
    fn subpackets_count_where_they_are_signed() {
        let created = [5, 2, 0, 0, 0, 100];
        let parsed = SignaturePacket::parse(&packet(&created, &[5, 3, 0, 0, 0, 1])).expect("parses");
        assert!(!parsed.is_expired(1000), "an end that nobody signed is none");
        let parsed =
            SignaturePacket::parse(&packet(&[&created[..], &[5, 3, 0, 0, 0, 1]].concat(), &[])).expect("parses");
        assert!(parsed.is_expired(101) && !parsed.is_expired(100));
        assert!(matches!(SignaturePacket::parse(&packet(&[], &created)), Err(Fault::Malformed(_))));
        for (subpacket, expected) in [(&[2, 100, 0][..], true), (&[2, 228, 0], false), (&[2, 148, 0], false)] {
            let hashed = [&created[..], subpacket].concat();
            assert_eq!(SignaturePacket::parse(&packet(&hashed, &[])).is_ok(), expected, "{subpacket:?}");
        }
        let issuer = [9, 16, 1, 2, 3, 4, 5, 6, 7, 8];
        let parsed = SignaturePacket::parse(&packet(&created, &issuer)).expect("parses");
        assert_eq!(parsed.issuers(), [[1, 2, 3, 4, 5, 6, 7, 8]]);
        assert!(parsed.lets_sign());
        let parsed = SignaturePacket::parse(&packet(&[&created[..], &[2, 27, 1]].concat(), &[])).expect("parses");
        assert!(!parsed.lets_sign());
    }
}
