//! Certificates of signers: from Fulcio, whose last minutes and end long ago, or from a PKI of one's own.

use std::net::IpAddr;
use std::time::SystemTime;

use rustls_pki_types::{CertificateDer, ServerName, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert, ring as algorithms};

use super::der::{CertificateParts, parse_certificate, parse_certificates, parse_utf8_string};
use super::key::PublicKey;
use crate::signature::SignatureError;

/// Signatures in chains. Source: what Go's x509 verifies, as far as `ring` does.
static CHAIN_ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] = &[
    algorithms::ECDSA_P256_SHA256,
    algorithms::ECDSA_P256_SHA384,
    algorithms::ECDSA_P384_SHA256,
    algorithms::ECDSA_P384_SHA384,
    algorithms::ED25519,
    algorithms::RSA_PKCS1_2048_8192_SHA256,
    algorithms::RSA_PKCS1_2048_8192_SHA384,
    algorithms::RSA_PKCS1_2048_8192_SHA512,
    algorithms::RSA_PSS_2048_8192_SHA256_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA384_LEGACY_KEY,
    algorithms::RSA_PSS_2048_8192_SHA512_LEGACY_KEY,
];

/// 1.3.6.1.5.5.7.3.3
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
/// 1.3.6.1.4.1.57264.1.1: the issuer, as bare text.
const ISSUER: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xbf, 0x30, 1, 1];
/// 1.3.6.1.4.1.57264.1.8: the issuer, as a UTF-8 string.
const ISSUER_V2: &[u8] = &[0x2b, 6, 1, 4, 1, 0x83, 0xbf, 0x30, 1, 8];

/// Certificates as they came, one DER each.
pub(crate) type Certificates = Vec<CertificateDer<'static>>;

/// The certificates of a configured PEM text; none is an error.
pub(crate) fn load_certificates(pem: &[u8]) -> Option<Certificates> {
    let list = parse_certificates(pem)?;
    (!list.is_empty()).then(|| list.into_iter().map(CertificateDer::from).collect())
}

fn invalid(text: impl Into<String>) -> SignatureError {
    SignatureError::Invalid(text.into())
}

/// The one certificate of the signer.
pub(crate) fn parse_leaf(pem: &str) -> Result<CertificateDer<'static>, SignatureError> {
    let list = parse_certificates(pem.as_bytes()).ok_or_else(|| invalid("parsing leaf certificate"))?;
    match <[_; 1]>::try_from(list) {
        Ok([leaf]) => Ok(leaf.into()),
        Err(list) => Err(invalid(format!("{} certificates where that of the signer is expected", list.len()))),
    }
}

/// What came with a signature: certificates from the signer's issuer to the root, which is left out.
pub(crate) fn parse_chain(pem: Option<&str>) -> Result<Certificates, SignatureError> {
    let Some(pem) = pem.filter(|pem| !pem.is_empty()) else { return Ok(Vec::new()) };
    let mut list = parse_certificates(pem.as_bytes()).ok_or_else(|| invalid("loading certificate chain"))?;
    list.pop();
    Ok(list.into_iter().map(CertificateDer::from).collect())
}

/// That a chain leads from the leaf to one of the roots, all valid at `time` and fit to sign code.
pub(crate) fn verify_chain(
    leaf: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    roots: &[CertificateDer<'_>],
    time: SystemTime,
) -> Result<(), SignatureError> {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).map_err(|_| invalid("a time before 1970"))?;
    let is_valid = |root: &&CertificateDer<'_>| parse_certificate(root).is_some_and(|root| root.is_valid_at(time));
    let anchors: Vec<TrustAnchor<'_>> =
        roots.iter().filter(is_valid).filter_map(|root| anchor_from_trusted_cert(root).ok()).collect();
    let failed = |error: webpki::Error| invalid(format!("verifying leaf certificate failed: {error}"));
    let end = EndEntityCert::try_from(leaf).map_err(failed)?;
    let usage = KeyUsage::required_if_present(CODE_SIGNING);
    let at = UnixTime::since_unix_epoch(since);
    end.verify_for_usage(CHAIN_ALGORITHMS, &anchors, intermediates, at, usage, None, None).map_err(failed)?;
    Ok(())
}

fn parts<'a>(leaf: &'a CertificateDer<'_>) -> Result<CertificateParts<'a>, SignatureError> {
    parse_certificate(leaf).ok_or_else(|| invalid("parsing leaf certificate"))
}

/// The key of a certificate whose chain was verified.
pub(crate) fn key_of(leaf: &CertificateDer<'_>) -> Result<PublicKey, SignatureError> {
    PublicKey::parse(parts(leaf)?.key_info).map_err(invalid)
}

/// That the certificate is for this address.
pub(crate) fn check_email(leaf: &CertificateDer<'_>, wanted: &str) -> Result<(), SignatureError> {
    let emails = parts(leaf)?.emails();
    match emails.iter().any(|email| email == wanted) {
        true => Ok(()),
        false => Err(invalid(format!("required email {wanted:?} not found (got {emails:?})"))),
    }
}

/// That the certificate is for this host.
pub(crate) fn check_hostname(leaf: &CertificateDer<'_>, wanted: &str) -> Result<(), SignatureError> {
    let unexpected = |error: String| invalid(format!("unexpected subject hostname: {error}"));
    let name = match wanted.parse::<IpAddr>() {
        Ok(address) => ServerName::IpAddress(address.into()),
        Err(_) => ServerName::try_from(wanted).map_err(|error| unexpected(error.to_string()))?,
    };
    let end = EndEntityCert::try_from(leaf).map_err(|error| unexpected(error.to_string()))?;
    end.verify_is_valid_for_subject_name(&name).map_err(|error| unexpected(error.to_string()))
}

/// That Fulcio recorded this issuer of identities. Both forms may be there; then they must say the same.
pub(crate) fn check_issuer(leaf: &CertificateDer<'_>, wanted: &str) -> Result<(), SignatureError> {
    let parts = parts(leaf)?;
    let damaged = || invalid("damaged issuer extension in the Fulcio certificate");
    let old = parts.extension(ISSUER).map(|value| String::from_utf8(value.to_vec()).map_err(|_| damaged()));
    let new = parts.extension(ISSUER_V2).map(|value| parse_utf8_string(value).ok_or_else(damaged));
    let found = match (old.transpose()?, new.transpose()?) {
        (Some(old), Some(new)) if old != new => {
            return Err(invalid(format!("inconsistent OIDC issuers {old:?} and {new:?} in the Fulcio certificate")));
        }
        (Some(issuer), _) | (None, Some(issuer)) => issuer,
        (None, None) => return Err(invalid("Fulcio certificate is missing the issuer extension")),
    };
    if found == wanted { Ok(()) } else { Err(invalid(format!("unexpected Fulcio OIDC issuer {found:?}"))) }
}
