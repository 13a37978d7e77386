//! Entry points for fuzzing: each takes bytes from outside and must return, whatever they are.

use std::time::{Duration, SystemTime};

use crate::claim::{Claim, Kind};
use crate::openpgp::Keyring;
use crate::policy::Policy;
use crate::policy::scope::Place;
use crate::signature::Signature;
use crate::sigstore::certificate::{
    check_email, check_hostname, check_issuer, key_of, load_certificates, parse_chain, parse_leaf, verify_chain,
};
use crate::sigstore::key::PublicKey;
use crate::sigstore::rekor;
use crate::{Name, registries_d};

/// A time at which the certificates of the seeds are valid.
fn then() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_760_000_000)
}

/// policy.json.
pub fn policy(bytes: &[u8]) {
    if let (Ok(policy), Ok(name)) = (Policy::parse(bytes), Name::parse("registry.example/a/b:c")) {
        let _ = policy.requirements(&Place::Docker(name));
    }
}

/// Files of registries.d.
pub fn registries_d(bytes: &[u8]) {
    let _ = registries_d::parse(bytes);
}

/// What a signature says, whichever kind it is of; names of images.
pub fn claim(bytes: &[u8]) {
    for kind in [Kind::Simple, Kind::Sigstore] {
        if let Ok(claim) = Claim::parse(bytes, kind)
            && let Ok(name) = Name::parse(&claim.reference)
        {
            assert_eq!(Name::parse(&name.to_string()).as_ref(), Ok(&name), "printing and parsing disagree");
        }
    }
    if let Ok(signature) = Signature::parse(bytes) {
        assert_eq!(Signature::parse(&signature.to_bytes()).as_ref(), Ok(&signature), "what is kept reads otherwise");
    }
}

/// Keyrings and messages of OpenPGP: one text is both.
pub fn openpgp(bytes: &[u8]) {
    let middle = bytes.len() / 2;
    for (keys, message) in [(bytes, bytes), bytes.split_at(middle)] {
        if let Ok(keyring) = Keyring::parse(&[keys.to_vec()]) {
            let _ = keyring.verify(message, then());
        }
    }
}

/// Keys, certificates and entries of logs.
pub fn sigstore(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let key = PublicKey::parse_pem(bytes).or_else(|_| PublicKey::parse(bytes));
    let entry = rekor::Entry { key: bytes, signature: bytes, payload: bytes };
    let _ = rekor::verify(&key.into_iter().collect::<Vec<_>>(), bytes, &entry);
    let leaf = parse_leaf(&text).unwrap_or_else(|_| bytes.to_vec().into());
    let roots = load_certificates(bytes).unwrap_or_else(|| vec![leaf.clone()]);
    let chain = parse_chain(Some(&text)).unwrap_or_default();
    let _ = verify_chain(&leaf, &chain, &roots, then());
    let _ = (key_of(&leaf).is_ok(), check_issuer(&leaf, "x"), check_email(&leaf, "x"), check_hostname(&leaf, "x"));
}
