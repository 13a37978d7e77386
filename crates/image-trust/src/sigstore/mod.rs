//! Signatures as cosign makes them: over a payload, by a key, or by whoever a certificate names.
//!
//! Source: cosign's SIGNATURE_SPEC, containers-policy.json(5), `sigstoreSigned`. As containers/image does, and unlike
//! cosign, certificates need no proof that they were logged: the entry of the signature holds the certificate.

pub(crate) mod certificate;
pub(crate) mod der;
pub(crate) mod key;
pub(crate) mod rekor;

use std::collections::BTreeMap;
use std::time::SystemTime;

use crate::json::decode_base64;
use crate::policy::check::CheckError;
use crate::policy::{SigstoreSigned, Sources, TrustRoot};
use crate::signature::SignatureError;
use certificate::Certificates;
use key::PublicKey;

/// Annotations of a signature's layer.
const SIGNATURE: &str = "dev.cosignproject.cosign/signature";
const BUNDLE: &str = "dev.sigstore.cosign/bundle";
const CERTIFICATE: &str = "dev.sigstore.cosign/certificate";
const CHAIN: &str = "dev.sigstore.cosign/chain";

/// Roots of trust with their keys and certificates read.
pub(crate) struct Roots {
    who: Who,
    rekor: Option<Vec<PublicKey>>,
}

enum Who {
    Keys(Vec<PublicKey>),
    Fulcio { authorities: Certificates, issuer: String, email: String },
    Pki { roots: Certificates, intermediates: Certificates, email: Option<String>, hostname: Option<String> },
}

impl Roots {
    /// Reads whatever the requirement names. One damaged key is an error, even if others would do: it is found out now
    /// rather than when it is needed.
    pub(crate) fn load(wanted: &SigstoreSigned) -> Result<Self, CheckError> {
        let who = match &wanted.root {
            TrustRoot::Keys(sources) => Who::Keys(load_keys(sources, "public key")?),
            TrustRoot::Fulcio { authorities, issuer, email } => Who::Fulcio {
                authorities: load_certificates(authorities, "Fulcio CA certificates")?,
                issuer: issuer.clone(),
                email: email.clone(),
            },
            TrustRoot::Pki { roots, intermediates, email, hostname } => Who::Pki {
                roots: load_certificates(roots, "PKI root certificates")?,
                intermediates: match intermediates {
                    Some(sources) => load_certificates(sources, "PKI intermediate certificates")?,
                    None => Certificates::new(),
                },
                email: email.clone(),
                hostname: hostname.clone(),
            },
        };
        let rekor = wanted.rekor.as_ref().map(|sources| load_keys(sources, "Rekor public key")).transpose()?;
        if rekor.iter().flatten().any(|key| !key.is_ecdsa) {
            return Err(CheckError::Keys("a Rekor public key is not using ECDSA".to_owned()));
        }
        Ok(Self { who, rekor })
    }

    /// Whether the payload is signed by someone these roots know. What it says is not looked at.
    pub(crate) fn verify(
        &self,
        payload: &[u8],
        annotations: &BTreeMap<String, String>,
        now: SystemTime,
    ) -> Result<(), SignatureError> {
        let need = |key: &str| {
            let missing = || SignatureError::Invalid(format!("missing {key} annotation"));
            annotations.get(key).map(String::as_str).ok_or_else(missing)
        };
        let signature = decode_base64(need(SIGNATURE)?)
            .ok_or_else(|| SignatureError::Invalid("the signature is not base64".to_owned()))?;
        let chain = || certificate::parse_chain(annotations.get(CHAIN).map(String::as_str));
        let entry = |key| rekor::Entry { key, signature: &signature, payload };
        let keys = match (&self.who, &self.rekor) {
            (Who::Keys(keys), None) => keys.clone(),
            (Who::Keys(keys), Some(log)) => {
                let bundle = need(BUNDLE)?.as_bytes();
                let mut reason = None;
                let logged = keys.iter().find(|key| {
                    rekor::verify(log, bundle, &entry(&key.key_info)).map_err(|error| reason = Some(error)).is_ok()
                });
                match (logged, reason) {
                    (Some(key), _) => vec![key.clone()],
                    (None, Some(reason)) => return Err(reason),
                    (None, None) => Vec::new(),
                }
            }
            (Who::Fulcio { authorities, issuer, email }, Some(log)) => {
                let (bundle, pem) = (need(BUNDLE)?.as_bytes(), need(CERTIFICATE)?);
                let leaf = certificate::parse_leaf(pem)?;
                let block = rekor::only_block(pem.as_bytes())
                    .ok_or_else(|| SignatureError::Invalid("more than a certificate in its annotation".to_owned()))?;
                let time = rekor::verify(log, bundle, &entry(&block))?;
                certificate::verify_chain(&leaf, &chain()?, authorities, time)?;
                certificate::check_issuer(&leaf, issuer)?;
                certificate::check_email(&leaf, email)?;
                vec![certificate::key_of(&leaf)?]
            }
            (Who::Fulcio { .. }, None) => unreachable!("a policy with Fulcio and without Rekor does not parse"),
            (Who::Pki { roots, intermediates, email, hostname }, _) => {
                let leaf = certificate::parse_leaf(need(CERTIFICATE)?)?;
                let intermediates = [intermediates.clone(), chain()?].concat();
                certificate::verify_chain(&leaf, &intermediates, roots, now)?;
                email.iter().try_for_each(|email| certificate::check_email(&leaf, email))?;
                hostname.iter().try_for_each(|hostname| certificate::check_hostname(&leaf, hostname))?;
                vec![certificate::key_of(&leaf)?]
            }
        };
        match keys.iter().any(|key| key.is_signed(payload, &signature)) {
            true => Ok(()),
            false => Err(SignatureError::Invalid("cryptographic signature verification failed".to_owned())),
        }
    }
}

fn load_keys(sources: &Sources, what: &str) -> Result<Vec<PublicKey>, CheckError> {
    let pieces = sources.load()?.into_iter().enumerate();
    pieces
        .map(|(number, piece)| {
            PublicKey::parse_pem(&piece)
                .map_err(|reason| CheckError::Keys(format!("parsing {what} {}: {reason}", number + 1)))
        })
        .collect()
}

fn load_certificates(sources: &Sources, what: &str) -> Result<Certificates, CheckError> {
    let pieces = sources.load()?;
    let lists = pieces.iter().map(|piece| {
        certificate::load_certificates(piece).ok_or_else(|| CheckError::Keys(format!("error loading {what}")))
    });
    Ok(lists.collect::<Result<Vec<_>, _>>()?.concat())
}

#[cfg(test)]
mod tests;
