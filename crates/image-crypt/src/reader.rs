//! The plain bytes of a layer.

use std::fmt;
use std::io::{self, Read};

use aes::Aes256;
use aes::cipher::{KeyIvInit, StreamCipher};
use ctr::Ctr128BE;
use domain::digest::Digest;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest as _, Sha256};

use crate::layer::LayerKey;

/// Decrypts what it reads. What it gives out is worth nothing before it has ended: only at the end are the digest of
/// the blob and the HMAC of the layer compared, and an error comes in place of the end if either is another.
pub struct Decrypting<R> {
    source: R,
    cipher: Ctr128BE<Aes256>,
    hmac: Hmac<Sha256>,
    expected_hmac: Vec<u8>,
    digest: Sha256,
    expected_digest: Digest,
    verdict: Option<bool>,
}

impl<R> fmt::Debug for Decrypting<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decrypting").field("expected_digest", &self.expected_digest).finish_non_exhaustive()
    }
}

impl<R: Read> Decrypting<R> {
    /// `digest` is that of the encrypted bytes, by the manifest.
    pub fn new(source: R, key: &LayerKey, digest: Digest) -> Self {
        // Keys and nonces of these lengths are all good.
        let hmac = Hmac::<Sha256>::new_from_slice(&key.key).expect("invariant: HMAC takes keys of any length");
        Self {
            source,
            cipher: Ctr128BE::<Aes256>::new(&key.key.into(), &key.nonce.into()),
            hmac,
            expected_hmac: key.hmac.clone(),
            digest: Sha256::new(),
            expected_digest: digest,
            verdict: None,
        }
    }

    fn end(&mut self) -> io::Result<usize> {
        let is_whole = *self.verdict.get_or_insert_with(|| {
            let digest = Digest::from_sha256(&std::mem::take(&mut self.digest).finalize().into());
            // In constant time, though the sender already has what it would learn.
            digest == self.expected_digest && self.hmac.clone().verify_slice(&self.expected_hmac).is_ok()
        });
        match is_whole {
            true => Ok(0),
            false => Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "could not properly decrypt byte stream: digest or HMAC differ",
            )),
        }
    }
}

impl<R: Read> Read for Decrypting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        if self.verdict.is_some() {
            return self.end();
        }
        let count = self.source.read(buffer)?;
        if count == 0 {
            return self.end();
        }
        let piece = &mut buffer[..count];
        self.digest.update(&*piece);
        self.hmac.update(piece);
        let exhausted = |_| io::Error::new(io::ErrorKind::FileTooLarge, "layer beyond what its cipher can hold");
        self.cipher.try_apply_keystream(piece).map_err(exhausted)?;
        Ok(count)
    }
}
