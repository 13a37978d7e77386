//! Keys, certificates and entries that `tests/sigstore/make.py` made.

use std::time::Duration;

use domain::digest::Digest;

use super::*;
use crate::policy::Policy;
use crate::policy::check::{Subject, check as check_policy};
use crate::policy::scope::Place;
use crate::signature::{SIGSTORE_MEDIA_TYPE, Signature};
use crate::{CheckError, Name};

const MADE: &str = include_str!("../../tests/sigstore/made.json");

fn made(name: &str) -> String {
    let all: BTreeMap<String, String> = serde_json::from_str(MADE).expect("is JSON");
    all.get(name).unwrap_or_else(|| panic!("{name} was made")).clone()
}

/// In March 2026.
fn now() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_772_500_000)
}

/// A requirement whose values that end in `Data` are names of what was made.
fn requirement(mut value: serde_json::Value) -> Policy {
    fn fill(value: &mut serde_json::Value) {
        let encode = |name: &serde_json::Value| {
            let text = name.as_str().map(made).unwrap_or_default();
            base64::Engine::encode(&base64::engine::general_purpose::STANDARD, text).into()
        };
        for (key, value) in value.as_object_mut().into_iter().flatten() {
            match value {
                _ if key.ends_with("Data") => *value = encode(value),
                serde_json::Value::Array(list) if key.ends_with("Datas") => {
                    list.iter_mut().for_each(|item| *item = encode(item));
                }
                _ => fill(value),
            }
        }
    }
    value["type"] = "sigstoreSigned".into();
    fill(&mut value);
    let text = serde_json::json!({"default": [{"type": "reject"}], "transports": {"docker": {"": [value]}}});
    Policy::parse(text.to_string().as_bytes()).expect("parses")
}

fn signature(annotations: &[(&str, &str)]) -> Signature {
    Signature::Sigstore {
        media_type: SIGSTORE_MEDIA_TYPE.to_owned(),
        payload: made("payload").into_bytes(),
        annotations: annotations.iter().map(|(key, name)| ((*key).to_owned(), made(name))).collect(),
    }
}

fn verdict(policy: &Policy, signatures: &[Signature], name: &str, manifest: u8) -> Result<(), CheckError> {
    let place = Place::Docker(Name::parse(name).expect("parses"));
    let manifest_digest = Digest::from_sha256(&[manifest; 32]);
    check_policy(policy, &Subject { place: &place, manifest_digest: &manifest_digest, signatures }, now())
}

#[track_caller]
fn check(value: serde_json::Value, annotations: &[(&str, &str)], expected: Result<(), &str>) {
    let found = verdict(&requirement(value), &[signature(annotations)], "registry.example/app:v1", 0xab);
    let found = found.map_err(|error| {
        assert!(error.is_verdict(), "{error}");
        std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string)
    });
    match expected {
        Ok(()) => assert_eq!(found, Ok(())),
        Err(text) => assert!(found.as_ref().is_err_and(|found| found.contains(text)), "{found:?}, not {text:?}"),
    }
}

#[test]
fn keys_of_every_kind_sign_payloads() {
    let by = |key: &str| serde_json::json!({"keyData": key});
    for kind in ["p256", "p384", "rsa", "ed25519"] {
        let (key, own) = (format!("{kind}_key"), format!("{kind}_signature"));
        check(by(&key), &[(SIGNATURE, &own)], Ok(()));
        let other = if kind == "p256" { "p384_signature" } else { "p256_signature" };
        check(by(&key), &[(SIGNATURE, other)], Err("verification failed"));
    }
    check(by("rsa_old_key"), &[(SIGNATURE, "rsa_signature")], Ok(()));
    check(serde_json::json!({"keyDatas": ["p384_key", "p256_key"]}), &[(SIGNATURE, "p256_signature")], Ok(()));
    check(by("p256_key"), &[], Err("missing dev.cosignproject.cosign/signature"));
    check(by("p256_key"), &[(SIGNATURE, "payload")], Err("not base64"));
    let odd = verdict(&requirement(by("p521_key")), &[signature(&[(SIGNATURE, "p521_signature")])], "a.b/c:d", 0xab);
    assert!(odd.is_err_and(|error| !error.is_verdict() && error.to_string().contains("other than P-256 and P-384")));
}

#[test]
fn signature_name_and_manifest_must_fit() {
    let policy = requirement(serde_json::json!({"keyData": "p256_key"}));
    let (good, bad) = (signature(&[(SIGNATURE, "p256_signature")]), signature(&[(SIGNATURE, "p384_signature")]));
    let Signature::Sigstore { payload, annotations, .. } = good.clone() else { unreachable!("is one of sigstore") };
    let attached = Signature::Sigstore { media_type: "other".to_owned(), payload, annotations };
    let simple = Signature::Simple(vec![0xa3]);
    let name = "registry.example/app:v1";
    assert!(verdict(&policy, &[bad.clone(), simple.clone(), good.clone()], name, 0xab).is_ok());
    assert!(matches!(verdict(&policy, std::slice::from_ref(&good), name, 1), Err(CheckError::Digest { .. })));
    assert!(matches!(
        verdict(&policy, &[good], "registry.example/app:v2", 0xab),
        Err(CheckError::Identity { identity }) if identity == name
    ));
    assert!(matches!(verdict(&policy, &[], name, 0xab), Err(CheckError::NoSignature { others: 0 })));
    assert!(matches!(verdict(&policy, &[simple, attached], name, 0xab), Err(CheckError::NoSignature { others: 2 })));
    assert!(matches!(
        verdict(&policy, &[bad.clone(), bad], name, 0xab),
        Err(CheckError::None { reasons }) if reasons.len() == 2
    ));
}

#[test]
fn entries_of_the_log_must_fit() {
    let logged = serde_json::json!({"keyData": "p256_key", "rekorPublicKeyData": "log_key"});
    let with = |bundle| [(SIGNATURE, "p256_signature"), (BUNDLE, bundle)];
    check(logged.clone(), &with("p256_bundle"), Ok(()));
    let several =
        serde_json::json!({"keyDatas": ["p384_key", "p256_key"], "rekorPublicKeyDatas": ["p384_key", "log_key"]});
    check(several, &with("p256_bundle"), Ok(()));
    for (bundle, reason) in [
        ("p256_bundle_other_payload", "payload in Rekor SET does not match"),
        ("p256_bundle_other_signature", "signature in Rekor SET does not match"),
        ("p256_bundle_other_key", "publicKey in Rekor SET does not match"),
        ("p256_bundle_other_kind", "unsupported entry \"intoto\""),
        ("p256_bundle_other_version", "unsupported entry \"hashedrekord\" \"0.0.2\""),
        ("payload", "unknown key"),
    ] {
        check(logged.clone(), &with(bundle), Err(if bundle == "payload" { "Rekor SET: key" } else { reason }));
    }
    check(logged, &[(SIGNATURE, "p256_signature")], Err("missing dev.sigstore.cosign/bundle"));
    let other_log = serde_json::json!({"keyData": "p256_key", "rekorPublicKeyData": "p256_key"});
    check(other_log, &with("p256_bundle"), Err("verification of Rekor SET failed"));
}

#[test]
fn fulcio_vouches_at_the_time_of_the_entry() {
    let wanted = |root: &str, issuer: &str, email: &str| {
        serde_json::json!({
            "fulcio": {"caData": root, "oidcIssuer": issuer, "subjectEmail": email},
            "rekorPublicKeyData": "log_key",
        })
    };
    let (issuer, email) = ("https://accounts.example", "signer@example.com");
    let with = |leaf: &str, bundle: &str| {
        [(SIGNATURE, format!("{leaf}_signature")), (CERTIFICATE, leaf.to_owned()), (BUNDLE, format!("{leaf}_{bundle}"))]
    };
    let case =
        |wanted: serde_json::Value, leaf: &str, bundle: &str, chain: Option<&str>, expected: Result<(), &str>| {
            let given = with(leaf, bundle);
            let mut annotations: Vec<(&str, &str)> = given.iter().map(|(key, name)| (*key, name.as_str())).collect();
            annotations.extend(chain.map(|chain| (CHAIN, chain)));
            check(wanted, &annotations, expected);
        };
    let good = || wanted("root", issuer, email);
    for leaf in ["fulcio", "fulcio_old", "fulcio_new"] {
        case(good(), leaf, "bundle", Some("chain"), Ok(()));
    }
    case(wanted("middle", issuer, email), "fulcio", "bundle", None, Ok(()));
    case(good(), "fulcio", "bundle", None, Err("leaf certificate failed"));
    case(good(), "fulcio", "bundle_late", Some("chain"), Err("leaf certificate failed"));
    case(wanted("other_root", issuer, email), "fulcio", "bundle", Some("chain"), Err("leaf certificate failed"));
    case(good(), "fulcio_server", "bundle", Some("chain"), Err("leaf certificate failed"));
    case(
        wanted("root", "https://other", email),
        "fulcio",
        "bundle",
        Some("chain"),
        Err("unexpected Fulcio OIDC issuer"),
    );
    case(wanted("root", issuer, "other@example.com"), "fulcio", "bundle", Some("chain"), Err("required email"));
    case(good(), "fulcio_torn", "bundle", Some("chain"), Err("inconsistent OIDC issuers"));
    case(good(), "fulcio_bare", "bundle", Some("chain"), Err("missing the issuer extension"));
    let swapped =
        [(SIGNATURE, "fulcio_old_signature"), (CERTIFICATE, "fulcio"), (BUNDLE, "fulcio_bundle"), (CHAIN, "chain")];
    check(good(), &swapped, Err("signature in Rekor SET does not match"));
    let two = [(SIGNATURE, "fulcio_signature"), (CERTIFICATE, "chain"), (BUNDLE, "fulcio_bundle")];
    check(good(), &two, Err("2 certificates"));
}

#[test]
fn a_pki_of_ones_own_vouches_now() {
    let wanted = |extra: serde_json::Value| {
        let mut pki = serde_json::json!({"caRootsData": "root", "caIntermediatesData": "middle"});
        pki.as_object_mut().expect("is one").extend(extra.as_object().expect("is one").clone());
        serde_json::json!({ "pki": pki })
    };
    let given = [(SIGNATURE, "pki_signature"), (CERTIFICATE, "pki")];
    for (extra, expected) in [
        (serde_json::json!({"subjectEmail": "signer@example.com"}), Ok(())),
        (serde_json::json!({"subjectHostname": "a.signers.example"}), Ok(())),
        (serde_json::json!({"subjectHostname": "10.0.0.1"}), Ok(())),
        (serde_json::json!({"subjectEmail": "signer@example.com", "subjectHostname": "a.signers.example"}), Ok(())),
        (serde_json::json!({"subjectEmail": "x@example.com"}), Err("required email")),
        (serde_json::json!({"subjectHostname": "signers.example"}), Err("unexpected subject hostname")),
        (
            serde_json::json!({"subjectEmail": "signer@example.com", "subjectHostname": "b.example"}),
            Err("unexpected subject hostname"),
        ),
    ] {
        check(wanted(extra), &given, expected);
    }
    let only_root = serde_json::json!({"pki": {"caRootsData": "root", "subjectEmail": "signer@example.com"}});
    check(only_root.clone(), &given, Err("leaf certificate failed"));
    check(only_root.clone(), &[given[0], given[1], (CHAIN, "chain")], Ok(()));
    let ended = [(SIGNATURE, "fulcio_signature"), (CERTIFICATE, "fulcio"), (CHAIN, "chain")];
    check(only_root, &ended, Err("leaf certificate failed"));
}
