//! Private keys of the node.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use p256::pkcs8::DecodePrivateKey;
use rsa::pkcs1::DecodeRsaPrivateKey;
use rsa::traits::PublicKeyParts;
use rsa::{BoxedUint, RsaPrivateKey};
use rustix::fs::{CWD, Mode, OFlags};
use rustls_pki_types::PrivateKeyDer;
use rustls_pki_types::pem::PemObject;
use serde::Deserialize;
use thiserror::Error;

/// Largest file: keys take a few kilobytes, certificates and key rings that lie beside them some more.
const FILE_MAX_BYTES: u64 = 256 << 10;
/// Most files: each one is tried for each recipient of a layer.
const FILES_MAX: usize = 128;
/// Deepest directory.
const DEPTH_MAX: usize = 8;
/// Longest modulus, in bytes: 16384 bits. Longer ones take seconds for each layer.
const MODULUS_MAX_BYTES: usize = 2048;

/// Why the keys of the node cannot be used. None of them is then.
#[derive(Debug, Error)]
pub enum LoadKeysError {
    /// A file or directory cannot be read.
    #[error("read decryption keys: {}", path.display())]
    Read {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A link could bring in anything. Source: CRI-O.
    #[error("symbolic links not supported in decryption keys paths: {}", path.display())]
    Link {
        /// The link.
        path: PathBuf,
    },
    /// Too many files, too deep, or too large a file.
    #[error("decryption keys: {} has more than {limit} {what}", path.display())]
    TooMany {
        /// Where.
        path: PathBuf,
        /// The limit.
        limit: u64,
        /// Of what.
        what: &'static str,
    },
    /// A file is no key that is understood.
    #[error("decryption key {}: {reason}", path.display())]
    NoKey {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: &'static str,
    },
}

/// A private key.
pub(crate) enum PrivateKey {
    Rsa(Box<RsaPrivateKey>),
    P256(p256::SecretKey),
    P384(p384::SecretKey),
    P521(p521::SecretKey),
}

/// The private keys that layers of this node may be encrypted for. Empty by default.
#[derive(Default)]
pub struct DecryptionKeys {
    pub(crate) private: Vec<PrivateKey>,
}

impl fmt::Debug for DecryptionKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DecryptionKeys").field("count", &self.private.len()).finish()
    }
}

impl DecryptionKeys {
    /// Reads every file beneath a directory; one that does not exist has none.
    ///
    /// Understood: PKCS8, PKCS1 and SEC1 keys, RSA and P-256, P-384, P-521, in DER or PEM, and JSON web keys.
    /// Certificates and GPG key rings are passed over. Source: CRI-O's `decryption_keys_path`, ocicrypt.
    pub fn load(directory: &Path) -> Result<Self, LoadKeysError> {
        let mut files = Vec::new();
        match std::fs::symlink_metadata(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            _ => list(directory, DEPTH_MAX, &mut files)?,
        }
        let mut keys = Self::default();
        for path in files {
            let bytes = read(&path)?;
            match Self::parse(&bytes) {
                Ok(more) => keys.private.extend(more.private),
                Err(_) if is_for_others(&bytes) => {
                    tracing::debug!(path = %path.display(), "passing over a certificate or key ring: only private keys open layers");
                }
                Err(reason) => return Err(LoadKeysError::NoKey { path, reason }),
            }
        }
        Ok(keys)
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.private.is_empty()
    }

    /// The key in one file.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, &'static str> {
        let key = if let Some(key) = PrivateKey::of_der(bytes) {
            key
        } else if bytes.windows(11).any(|window| window == b"-----BEGIN ") {
            PrivateKey::of_pem(bytes)?
        } else {
            PrivateKey::of_jwk(bytes)?
        };
        if let PrivateKey::Rsa(key) = &key
            && key.size() > MODULUS_MAX_BYTES
        {
            return Err("an RSA key beyond 16384 bits");
        }
        Ok(Self { private: vec![key] })
    }
}

/// Every file beneath a directory, or the file itself.
fn list(path: &Path, depth: usize, files: &mut Vec<PathBuf>) -> Result<(), LoadKeysError> {
    let failed = |source| LoadKeysError::Read { path: path.to_owned(), source };
    let kind = std::fs::symlink_metadata(path).map_err(failed)?.file_type();
    if kind.is_symlink() {
        return Err(LoadKeysError::Link { path: path.to_owned() });
    }
    if !kind.is_dir() {
        if files.len() == FILES_MAX {
            return Err(LoadKeysError::TooMany {
                path: path.to_owned(),
                limit: FILES_MAX as u64,
                what: "files before it",
            });
        }
        files.push(path.to_owned());
        return Ok(());
    }
    if depth == 0 {
        return Err(LoadKeysError::TooMany { path: path.to_owned(), limit: DEPTH_MAX as u64, what: "levels above it" });
    }
    let entries = std::fs::read_dir(path).map_err(failed)?;
    let mut entries: Vec<PathBuf> =
        entries.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>().map_err(failed)?;
    entries.sort();
    entries.iter().try_for_each(|entry| list(entry, depth - 1, files))
}

fn read(path: &Path) -> Result<Vec<u8>, LoadKeysError> {
    let failed = |source| LoadKeysError::Read { path: path.to_owned(), source };
    // NONBLOCK: a FIFO must not hold a pull.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file =
        rustix::fs::openat(CWD, path, flags, Mode::empty()).map(File::from).map_err(|error| failed(error.into()))?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(failed(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")));
    }
    let mut bytes = Vec::new();
    file.take(FILE_MAX_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > FILE_MAX_BYTES {
        return Err(LoadKeysError::TooMany { path: path.to_owned(), limit: FILE_MAX_BYTES, what: "bytes" });
    }
    Ok(bytes)
}

/// Whether a file is one that CRI-O accepts beside private keys: a certificate, or a key ring.
fn is_for_others(bytes: &[u8]) -> bool {
    let has = |text: &[u8]| bytes.windows(text.len()).any(|window| window == text);
    // A certificate in DER begins with two long sequences; a packet of OpenPGP has the first bit of its tag set.
    let is_der_certificate = matches!(bytes, [0x30, 0x82, _, _, 0x30, 0x82, ..]);
    let is_key_ring = bytes.first().is_some_and(|tag| matches!(tag, 0x94..=0x9f | 0xc5..=0xc7));
    has(b"-----BEGIN CERTIFICATE-----") || has(b"-----BEGIN PGP ") || is_der_certificate || is_key_ring
}

impl PrivateKey {
    fn of_der(bytes: &[u8]) -> Option<Self> {
        RsaPrivateKey::from_pkcs8_der(bytes)
            .ok()
            .or_else(|| RsaPrivateKey::from_pkcs1_der(bytes).ok())
            .map(|key| Self::Rsa(Box::new(key)))
            .or_else(|| p256::SecretKey::from_pkcs8_der(bytes).ok().map(Self::P256))
            .or_else(|| p384::SecretKey::from_pkcs8_der(bytes).ok().map(Self::P384))
            .or_else(|| p521::SecretKey::from_pkcs8_der(bytes).ok().map(Self::P521))
            .or_else(|| p256::SecretKey::from_sec1_der(bytes).ok().map(Self::P256))
            .or_else(|| p384::SecretKey::from_sec1_der(bytes).ok().map(Self::P384))
            .or_else(|| p521::SecretKey::from_sec1_der(bytes).ok().map(Self::P521))
    }

    fn of_pem(bytes: &[u8]) -> Result<Self, &'static str> {
        if bytes.windows(9).any(|window| window == b"ENCRYPTED") {
            return Err("missing password for encrypted private key");
        }
        let key = PrivateKeyDer::from_pem_slice(bytes).map_err(|_| "no private key in PEM")?;
        Self::of_der(key.secret_der()).ok_or("a private key that is neither RSA nor of a NIST curve")
    }

    fn of_jwk(bytes: &[u8]) -> Result<Self, &'static str> {
        #[derive(Deserialize)]
        struct Jwk {
            kty: String,
            crv: Option<String>,
            n: Option<String>,
            e: Option<String>,
            d: Option<String>,
            p: Option<String>,
            q: Option<String>,
        }
        let jwk: Jwk = serde_json::from_slice(bytes).map_err(|_| "unknown decryption key type")?;
        let decode = |text: Option<&String>| {
            let text = text.ok_or("a JSON web key without its private part")?;
            URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| "a JSON web key that is not base64url")
        };
        let secret = decode(jwk.d.as_ref())?;
        if jwk.kty == "RSA" {
            let number = |text: Option<&String>| {
                let bytes = decode(text)?;
                if bytes.len() > MODULUS_MAX_BYTES {
                    return Err("an RSA key beyond 16384 bits");
                }
                Ok(BoxedUint::from_be_slice_vartime(&bytes))
            };
            let [n, e, d] = [number(jwk.n.as_ref())?, number(jwk.e.as_ref())?, number(jwk.d.as_ref())?];
            let primes = vec![number(jwk.p.as_ref())?, number(jwk.q.as_ref())?];
            let key = RsaPrivateKey::from_components(n, e, d, primes).map_err(|_| "an RSA key that is not valid")?;
            return Ok(Self::Rsa(Box::new(key)));
        }
        let wrong = "an elliptic curve key that is not valid";
        match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("EC", Some("P-256")) => p256::SecretKey::from_slice(&secret).map(Self::P256).map_err(|_| wrong),
            ("EC", Some("P-384")) => p384::SecretKey::from_slice(&secret).map(Self::P384).map_err(|_| wrong),
            ("EC", Some("P-521")) => p521::SecretKey::from_slice(&secret).map(Self::P521).map_err(|_| wrong),
            _ => Err("a JSON web key that is neither RSA nor of a NIST curve"),
        }
    }
}
