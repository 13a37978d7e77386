//! Layers encrypted by skopeo 1.9 for keys of every kind, and what must not be opened.
#![allow(missing_docs, clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use domain::digest::Digest;
use domain::encryption::plain_annotations;
use image_crypt::{Decrypting, DecryptionKeys, LoadKeysError, UnwrapError};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

const JWE: &str = "org.opencontainers.image.enc.keys.jwe";
const PUBLIC: &str = "org.opencontainers.image.enc.pubopts";

#[derive(Deserialize)]
struct Samples {
    plain: Digest,
    layers: Vec<Sample>,
}

#[derive(Deserialize)]
struct Sample {
    what: String,
    key: String,
    annotations: BTreeMap<String, String>,
    blob: String,
    digest: Digest,
}

fn samples() -> Samples {
    serde_json::from_str(include_str!("samples.json")).unwrap()
}

fn write(path: impl AsRef<Path>, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

/// The keys in a directory with one file.
fn keys(bytes: &[u8]) -> Result<DecryptionKeys, LoadKeysError> {
    let directory = tempfile::tempdir().unwrap();
    std::fs::create_dir(directory.path().join("below")).unwrap();
    write(directory.path().join("below/key"), bytes);
    DecryptionKeys::load(directory.path())
}

impl Sample {
    fn key(&self) -> Vec<u8> {
        STANDARD.decode(&self.key).unwrap()
    }

    fn blob(&self) -> Vec<u8> {
        STANDARD.decode(&self.blob).unwrap()
    }
}

#[test]
fn layers_of_skopeo_are_opened_with_every_kind_of_key() {
    let samples = samples();
    for sample in &samples.layers {
        let keys = keys(&sample.key()).expect(&sample.what);
        let key = keys.unwrap_layer_key(&sample.annotations).unwrap_or_else(|error| panic!("{}: {error}", sample.what));
        let mut plain = Vec::new();
        Decrypting::new(&sample.blob()[..], &key, sample.digest.clone()).read_to_end(&mut plain).expect(&sample.what);
        assert_eq!(Digest::from_sha256(&Sha256::digest(&plain).into()), samples.plain, "{}", sample.what);
        assert_eq!(plain_annotations(&sample.annotations), BTreeMap::new());
        let shown = format!("{keys:?} {key:?}");
        assert!(shown.len() < 100, "{shown}");
    }
}

#[test]
fn bytes_that_were_changed_end_in_an_error() {
    let samples = samples();
    let sample = &samples.layers[0];
    let key = keys(&sample.key()).unwrap().unwrap_layer_key(&sample.annotations).unwrap();
    let digest_of = |bytes: &[u8]| Digest::from_sha256(&Sha256::digest(bytes).into());
    let read = |bytes: &[u8], digest: Digest| {
        let mut reader = Decrypting::new(bytes, &key, digest);
        let first = reader.read_to_end(&mut Vec::new());
        // Whoever asks again is told the same.
        assert_eq!(first.is_err(), reader.read(&mut [0; 8]).is_err());
        first
    };
    let blob = sample.blob();
    assert!(read(&blob, sample.digest.clone()).is_ok());
    for at in [0, blob.len() / 2, blob.len() - 1] {
        let mut bad = blob.clone();
        bad[at] ^= 1;
        // A manifest that lies along with the blob does not help: the HMAC is made with the layer's key.
        assert!(read(&bad, digest_of(&bad)).is_err() && read(&bad, sample.digest.clone()).is_err());
    }
    let torn = &blob[..blob.len() - 1];
    assert!(read(torn, digest_of(torn)).is_err());
    assert!(read(&blob, samples.plain.clone()).is_err());
    assert!(read(&[], digest_of(&[])).is_err());
}

#[test]
fn layers_for_others_stay_closed() {
    let samples = samples();
    let (rsa, p256) = (&samples.layers[0], &samples.layers[3]);
    assert!(rsa.what.starts_with("RSA") && p256.what.starts_with("P-256"));
    let with = |key: &str, value: Option<&str>| {
        let mut annotations = rsa.annotations.clone();
        annotations.remove(key);
        annotations.extend(value.map(|value| (key.to_owned(), value.to_owned())));
        annotations
    };
    let options = |text: &str| STANDARD.encode(text);
    let keys_of = |sample: &Sample| keys(&sample.key()).unwrap();
    let unwrap = |annotations: &BTreeMap<String, String>| keys_of(rsa).unwrap_layer_key(annotations).unwrap_err();
    assert!(matches!(DecryptionKeys::default().unwrap_layer_key(&rsa.annotations), Err(UnwrapError::NoKeys)));
    assert!(matches!(keys_of(p256).unwrap_layer_key(&rsa.annotations), Err(UnwrapError::NoSuitableKey { .. })));
    assert!(matches!(keys_of(rsa).unwrap_layer_key(&p256.annotations), Err(UnwrapError::NoSuitableKey { .. })));
    assert!(matches!(unwrap(&with(JWE, None)), UnwrapError::Annotations { .. }));
    let other = BTreeMap::from([("org.opencontainers.image.enc.keys.pkcs7".to_owned(), "MIIB".to_owned())]);
    assert_eq!(
        unwrap(&other).to_string(),
        "layer is encrypted for recipients of kind pkcs7 only, which is not supported"
    );
    assert!(matches!(unwrap(&with(JWE, Some("!"))), UnwrapError::Annotations { .. }));
    assert!(matches!(unwrap(&with(PUBLIC, None)), UnwrapError::Cipher { .. }));
    assert!(matches!(unwrap(&with(PUBLIC, Some("!"))), UnwrapError::Annotations { .. }));
    let no_hmac = options(r#"{"cipher":"AES_256_CTR_HMAC_SHA256","hmac":""}"#);
    assert!(matches!(unwrap(&with(PUBLIC, Some(&no_hmac))), UnwrapError::Annotations { .. }));
    let no_cipher = options(r#"{"cipher":"ROT13","hmac":"AAAA"}"#);
    assert!(matches!(unwrap(&with(PUBLIC, Some(&no_cipher))), UnwrapError::Cipher { .. }));
    // What stands behind a message nobody opens may still be for us.
    let both = format!("{},{}", p256.annotations[JWE], rsa.annotations[JWE]);
    assert!(keys_of(rsa).unwrap_layer_key(&with(JWE, Some(&both))).is_ok());
}

#[test]
fn messages_that_were_changed_stay_closed() {
    let samples = samples();
    for sample in samples.layers.iter().filter(|sample| sample.what.contains("PEM")) {
        let keys = keys(&sample.key()).unwrap();
        let message = STANDARD.decode(&sample.annotations[JWE]).unwrap();
        let message: serde_json::Value = serde_json::from_slice(&message).unwrap();
        for field in ["protected", "iv", "ciphertext", "tag"] {
            for change in ["AAAA", ""] {
                let mut bad = message.clone();
                let text = bad[field].as_str().unwrap();
                bad[field] = if change.is_empty() { "".into() } else { format!("{change}{}", &text[4..]).into() };
                let mut annotations = sample.annotations.clone();
                annotations.insert(JWE.to_owned(), STANDARD.encode(bad.to_string()));
                assert!(keys.unwrap_layer_key(&annotations).is_err(), "{} {field} {change:?}", sample.what);
            }
        }
    }
}

#[test]
fn what_is_no_key_is_refused_by_name() {
    let samples = samples();
    let sample = &samples.layers[0];
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    assert!(DecryptionKeys::load(&at("absent")).unwrap().is_empty());
    assert!(DecryptionKeys::load(directory.path()).unwrap().is_empty());
    // Certificates and key rings may lie there for other tools.
    write(at("certificate.pem"), b"-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n");
    write(at("secring.gpg"), b"\x95\x01rest");
    assert!(DecryptionKeys::load(directory.path()).unwrap().is_empty());
    write(at("key"), &sample.key());
    assert!(DecryptionKeys::load(directory.path()).unwrap().unwrap_layer_key(&sample.annotations).is_ok());
    for bad in [
        &b""[..],
        b"a password",
        b"{}",
        br#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#,
        br#"{"kty":"EC","crv":"P-256","d":"AA"}"#,
        br#"{"kty":"OKP","crv":"X25519","d":"AAAA"}"#,
        br#"{"kty":"RSA","n":"AQAB","e":"AQAB","d":"AQAB","p":"AQAB","q":"AQAB"}"#,
        b"-----BEGIN ENCRYPTED PRIVATE KEY-----\nMIIB\n-----END ENCRYPTED PRIVATE KEY-----\n",
        b"-----BEGIN PUBLIC KEY-----\nMIIB\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\n!\n-----END PRIVATE KEY-----\n",
    ] {
        write(at("bad"), bad);
        let error = DecryptionKeys::load(directory.path()).unwrap_err();
        assert!(matches!(&error, LoadKeysError::NoKey { path, .. } if path.ends_with("bad")), "{error}");
    }
    std::fs::remove_file(at("bad")).unwrap();
    std::os::unix::fs::symlink(at("key"), at("link")).unwrap();
    assert!(matches!(DecryptionKeys::load(directory.path()), Err(LoadKeysError::Link { .. })));
}
