//! Public keys and what they verify. Source: RFC 9580 sections 5.2.3, 5.5, 9.

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY, SHA256, SHA384, SHA512};
use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P256_SHA384_ASN1, ECDSA_P384_SHA256_ASN1, ECDSA_P384_SHA384_ASN1, ED25519,
    EcdsaVerificationAlgorithm, RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY, RSA_PKCS1_2048_8192_SHA256,
    RSA_PKCS1_2048_8192_SHA384, RSA_PKCS1_2048_8192_SHA512, RsaPublicKeyComponents, UnparsedPublicKey,
};

use super::Fault;
use super::packet::Reader;

/// Hashes of signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    /// Only for what a key says of itself: who can make collisions can sign two things at once.
    Sha1,
    Sha256,
    Sha384,
    Sha512,
}

impl Hash {
    pub(super) fn of(number: u8) -> Result<Self, Fault> {
        match number {
            2 => Ok(Self::Sha1),
            8 => Ok(Self::Sha256),
            9 => Ok(Self::Sha384),
            10 => Ok(Self::Sha512),
            _ => Err(Fault::Unsupported(format!("hash algorithm {number}"))),
        }
    }

    fn digest(self, text: &[u8]) -> Vec<u8> {
        let mut context = Context::new(match self {
            Self::Sha1 => &SHA1_FOR_LEGACY_USE_ONLY,
            Self::Sha256 => &SHA256,
            Self::Sha384 => &SHA384,
            Self::Sha512 => &SHA512,
        });
        context.update(text);
        context.finish().as_ref().to_vec()
    }
}

/// The curves that can be verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Curve {
    P256,
    P384,
}

impl Curve {
    fn field_bytes(self) -> usize {
        match self {
            Self::P256 => 32,
            Self::P384 => 48,
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa {
        modulus: Vec<u8>,
        exponent: Vec<u8>,
    },
    Ecdsa {
        curve: Curve,
        point: Vec<u8>,
    },
    Ed25519 {
        point: Vec<u8>,
    },
    /// For encryption, or of a kind that is not verified here.
    Other(String),
}

/// A public key or subkey of version 4.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PublicKey {
    /// Seconds since 1970.
    pub(super) created: u32,
    pub(super) fingerprint: [u8; 20],
    /// As signatures hash it.
    pub(super) body: Vec<u8>,
    material: Material,
}

/// Numbers of a signature, as many as its algorithm has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Numbers {
    One(Vec<u8>),
    Two(Vec<u8>, Vec<u8>),
    /// 64 bytes of Ed25519, not as numbers.
    Raw(Vec<u8>),
}

/// Algorithms of public keys. Source: RFC 9580 section 9.1.
pub(super) mod algorithm {
    pub(in crate::openpgp) const RSA: u8 = 1;
    pub(in crate::openpgp) const RSA_SIGN: u8 = 3;
    pub(in crate::openpgp) const DSA: u8 = 17;
    pub(in crate::openpgp) const ECDSA: u8 = 19;
    pub(in crate::openpgp) const EDDSA: u8 = 22;
    pub(in crate::openpgp) const ED25519: u8 = 27;
}

const OID_P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
const OID_P384: &[u8] = &[0x2b, 0x81, 0x04, 0x00, 0x22];
const OID_ED25519: &[u8] = &[0x2b, 0x06, 0x01, 0x04, 0x01, 0xda, 0x47, 0x0f, 0x01];

impl PublicKey {
    pub(super) fn parse(body: &[u8]) -> Result<Self, Fault> {
        let mut reader = Reader(body);
        let version = reader.byte()?;
        if version != 4 {
            return Err(Fault::Unsupported(format!("key of version {version}")));
        }
        let created = reader.u32()?;
        let material = Material::parse(&mut reader)?;
        let mut hashed = vec![0x99];
        let length = u16::try_from(body.len()).map_err(|_| Fault::Malformed("a key is too long"))?;
        hashed.extend_from_slice(&length.to_be_bytes());
        hashed.extend_from_slice(body);
        let Ok(fingerprint) = <[u8; 20]>::try_from(Hash::Sha1.digest(&hashed)) else {
            unreachable!("SHA-1 has 20 bytes")
        };
        Ok(Self { created, fingerprint, body: hashed, material })
    }

    /// The last eight bytes of the fingerprint.
    pub(super) fn id(&self) -> &[u8] {
        &self.fingerprint[12..]
    }

    /// For people, in the usual capitals.
    pub(super) fn describe(&self) -> String {
        self.fingerprint.iter().map(|byte| format!("{byte:02X}")).collect()
    }

    /// Whether the numbers sign the text; how they fit the key's kind was never checked before.
    pub(super) fn verify(&self, hash: Hash, text: &[u8], numbers: &Numbers) -> Result<(), Fault> {
        let bad = |_| Fault::Bad { key: self.describe() };
        match (&self.material, numbers) {
            (Material::Rsa { modulus, exponent }, Numbers::One(number)) => {
                let signature = padded(number, modulus.len()).ok_or(Fault::Malformed("a number is too long"))?;
                let parameters = match hash {
                    Hash::Sha1 => &RSA_PKCS1_2048_8192_SHA1_FOR_LEGACY_USE_ONLY,
                    Hash::Sha256 => &RSA_PKCS1_2048_8192_SHA256,
                    Hash::Sha384 => &RSA_PKCS1_2048_8192_SHA384,
                    Hash::Sha512 => &RSA_PKCS1_2048_8192_SHA512,
                };
                if modulus.len() < 256 {
                    return Err(Fault::Unsupported(format!("RSA key of {} bits", modulus.len() * 8)));
                }
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(parameters, text, &signature).map_err(bad)
            }
            (Material::Ecdsa { curve, point }, Numbers::Two(r, s)) => {
                let parameters: &EcdsaVerificationAlgorithm = match (curve, hash) {
                    (Curve::P256, Hash::Sha256) => &ECDSA_P256_SHA256_ASN1,
                    (Curve::P256, Hash::Sha384) => &ECDSA_P256_SHA384_ASN1,
                    (Curve::P384, Hash::Sha256) => &ECDSA_P384_SHA256_ASN1,
                    (Curve::P384, Hash::Sha384) => &ECDSA_P384_SHA384_ASN1,
                    (_, Hash::Sha1 | Hash::Sha512) => {
                        return Err(Fault::Unsupported(format!("{hash:?} with a key on {curve:?}")));
                    }
                };
                if r.len().max(s.len()) > curve.field_bytes() {
                    return Err(Fault::Malformed("a number is too long"));
                }
                UnparsedPublicKey::new(parameters, point).verify(text, &der_pair(r, s)).map_err(bad)
            }
            (Material::Ed25519 { point }, Numbers::Two(r, s)) => {
                let halves = padded(r, 32).zip(padded(s, 32)).ok_or(Fault::Malformed("a number is too long"))?;
                let signature = [halves.0, halves.1].concat();
                UnparsedPublicKey::new(&ED25519, point).verify(&hash.digest(text), &signature).map_err(bad)
            }
            (Material::Ed25519 { point }, Numbers::Raw(signature)) => {
                UnparsedPublicKey::new(&ED25519, point).verify(&hash.digest(text), signature).map_err(bad)
            }
            (Material::Other(what), _) => Err(Fault::Unsupported(what.clone())),
            _ => Err(Fault::Malformed("signature and key are of different kinds")),
        }
    }
}

impl Material {
    fn parse(reader: &mut Reader<'_>) -> Result<Self, Fault> {
        let algorithm = reader.byte()?;
        Ok(match algorithm {
            algorithm::RSA | algorithm::RSA_SIGN => {
                Self::Rsa { modulus: reader.mpi()?.to_vec(), exponent: reader.mpi()?.to_vec() }
            }
            algorithm::ECDSA => match curve(reader)? {
                OID_P256 => Self::Ecdsa { curve: Curve::P256, point: reader.mpi()?.to_vec() },
                OID_P384 => Self::Ecdsa { curve: Curve::P384, point: reader.mpi()?.to_vec() },
                _ => Self::Other("ECDSA key on a curve other than P-256 and P-384".to_owned()),
            },
            algorithm::EDDSA => match (curve(reader)?, reader.mpi()?) {
                // The byte says that what follows is no pair of coordinates.
                (OID_ED25519, [0x40, point @ ..]) => Self::Ed25519 { point: point.to_vec() },
                _ => Self::Other("EdDSA key on a curve other than Ed25519".to_owned()),
            },
            algorithm::ED25519 => Self::Ed25519 { point: reader.take(32)?.to_vec() },
            algorithm::DSA => Self::Other("DSA key".to_owned()),
            other => Self::Other(format!("key of algorithm {other}")),
        })
    }
}

fn curve<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8], Fault> {
    let length = reader.byte()?;
    reader.take(usize::from(length))
}

/// With zeros in front, `length` bytes in all.
fn padded(number: &[u8], length: usize) -> Option<Vec<u8>> {
    let zeros = length.checked_sub(number.len())?;
    Some([&vec![0; zeros][..], number].concat())
}

/// A sequence of two integers. Both are shorter than 64 bytes, so that every length is one byte.
fn der_pair(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |number: &[u8]| {
        let sign: &[u8] = if number.first().is_none_or(|first| *first >= 0x80) { &[0] } else { &[] };
        let length = u8::try_from(sign.len() + number.len()).unwrap_or(u8::MAX);
        [&[2, length][..], sign, number].concat()
    };
    let both = [integer(r), integer(s)].concat();
    [&[0x30, u8::try_from(both.len()).unwrap_or(u8::MAX)][..], &both].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_take_the_form_their_verifiers_want() {
        assert_eq!(padded(&[1, 2], 4), Some(vec![0, 0, 1, 2]));
        assert_eq!(padded(&[1, 2], 1), None);
        assert_eq!(der_pair(&[1], &[0x80]), [0x30, 7, 2, 1, 1, 2, 2, 0, 0x80]);
        assert_eq!(der_pair(&[], &[2]), [0x30, 6, 2, 1, 0, 2, 1, 2]);
    }

    #[test]
    fn keys_of_other_kinds_are_told_by_name() {
        for (body, expected) in [
            (&[3, 0, 0, 0, 0, 1][..], Err(Fault::Unsupported("key of version 3".to_owned()))),
            (&[4, 0, 0, 0, 0], Err(Fault::Malformed("it ends too early"))),
            (&[4, 0, 0, 0, 0, 17], Ok(Material::Other("DSA key".to_owned()))),
            (&[4, 0, 0, 0, 0, 16], Ok(Material::Other("key of algorithm 16".to_owned()))),
            (
                &[4, 0, 0, 0, 0, 19, 1, 0x2b],
                Ok(Material::Other("ECDSA key on a curve other than P-256 and P-384".to_owned())),
            ),
        ] {
            assert_eq!(PublicKey::parse(body).map(|key| key.material), expected, "{body:?}");
        }
    }
}
