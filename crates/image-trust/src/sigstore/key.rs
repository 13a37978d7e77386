//! Public keys of sigstore: what they are, what they verify.

use ring::signature::{
    ECDSA_P256_SHA256_ASN1, ECDSA_P384_SHA256_ASN1, ED25519, RSA_PKCS1_2048_8192_SHA256, UnparsedPublicKey,
    VerificationAlgorithm,
};

use super::der::{KeyInfo, parse_key_info, parse_pem, wrap_rsa};

const RSA: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 1];
const EC: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
const P384: &[u8] = &[0x2b, 0x81, 4, 0, 0x22];
const ED: &[u8] = &[0x2b, 0x65, 0x70];

/// A key that signs payloads or entries of a log; always over SHA-256. Source: cosign, containers/image.
#[derive(Clone)]
pub(crate) struct PublicKey {
    algorithm: &'static dyn VerificationAlgorithm,
    key: Vec<u8>,
    /// The key whole, as logs have it.
    pub(crate) key_info: Vec<u8>,
    pub(crate) is_ecdsa: bool,
}

impl PublicKey {
    /// The first block of a PEM text.
    pub(crate) fn parse_pem(bytes: &[u8]) -> Result<Self, String> {
        let (blocks, _) = parse_pem(bytes).ok_or("not PEM")?;
        let first = blocks.into_iter().next().ok_or("no PEM block")?;
        match first.label.as_str() {
            "PUBLIC KEY" => Self::parse(&first.der),
            "RSA PUBLIC KEY" => Self::parse(&wrap_rsa(&first.der).ok_or("damaged RSA key")?),
            other => Err(format!("a PEM block {other:?} is not a public key")),
        }
    }

    pub(crate) fn parse(key_info: &[u8]) -> Result<Self, String> {
        let KeyInfo { algorithm, curve, key } = parse_key_info(key_info).ok_or("damaged public key")?;
        let (algorithm, is_ecdsa): (&'static dyn VerificationAlgorithm, bool) = match (algorithm, curve) {
            (EC, Some(P256)) => (&ECDSA_P256_SHA256_ASN1, true),
            (EC, Some(P384)) => (&ECDSA_P384_SHA256_ASN1, true),
            (RSA, _) => (&RSA_PKCS1_2048_8192_SHA256, false),
            (ED, _) => (&ED25519, false),
            (EC, _) => return Err("a curve other than P-256 and P-384 is not supported".to_owned()),
            _ => return Err("a key other than RSA, ECDSA and Ed25519 is not supported".to_owned()),
        };
        Ok(Self { algorithm, key: key.to_vec(), key_info: key_info.to_vec(), is_ecdsa })
    }

    pub(crate) fn is_signed(&self, text: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(self.algorithm, &self.key).verify(text, signature).is_ok()
    }
}
