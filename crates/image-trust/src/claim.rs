//! What a signature says: this manifest, under this name.
//!
//! Both kinds of signatures carry the same JSON and differ in its `type`. It is read only after the signature over it
//! was found good, and strictly: whoever signed something else must not be understood as having signed an image.
//! Source: containers-signature(5), cosign's SIGNATURE_SPEC.

use domain::digest::Digest;

use crate::json::{JsonError, Object, Value, parse_object};
use crate::signature::SignatureError;

/// The two kinds of claims.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// In a message signed with OpenPGP.
    Simple,
    /// In a payload signed for sigstore.
    Sigstore,
}

/// What was signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) manifest_digest: Digest,
    /// As signed, not normalised.
    pub(crate) reference: String,
}

impl Claim {
    pub(crate) fn parse(bytes: &[u8], kind: Kind) -> Result<Self, SignatureError> {
        let mut outer = parse_object(bytes)?;
        let mut critical = outer.need("critical")?.object("critical")?;
        let optional = outer.need("optional")?;
        outer.finish()?;
        // Cosign writes null where nobody asked for anything.
        if !(kind == Kind::Sigstore && optional == Value::Null) {
            check_optional(optional.object("optional")?)?;
        }
        let wanted = match kind {
            Kind::Simple => "atomic container signature",
            Kind::Sigstore => "cosign container image signature",
        };
        let found = critical.need("type")?.text("type")?;
        if found != wanted {
            return Err(SignatureError::Invalid(format!("unrecognized signature type {found:?}")));
        }
        let digest = only(critical.need("image")?.object("image")?, "docker-manifest-digest")?;
        let reference = only(critical.need("identity")?.object("identity")?, "docker-reference")?;
        critical.finish()?;
        let manifest_digest = Digest::parse(&digest)
            .map_err(|error| SignatureError::Invalid(format!("invalid docker-manifest-digest: {error}")))?;
        Ok(Self { manifest_digest, reference })
    }
}

fn only(mut object: Object, key: &'static str) -> Result<String, JsonError> {
    let text = object.need(key)?.text(key)?;
    object.finish()?;
    Ok(text)
}

/// Who made it and when: not used, but a claim that has them wrong is none.
fn check_optional(mut optional: Object) -> Result<(), SignatureError> {
    optional.take_text("creator")?;
    match optional.take("timestamp") {
        None => Ok(()),
        Some(Value::Number(number)) if is_whole(&number) => Ok(()),
        Some(_) => Err(SignatureError::Invalid("field optional.timestamp is not an integer".to_owned())),
    }
}

fn is_whole(number: &serde_json::Number) -> bool {
    number.is_i64() || number.as_f64().is_some_and(|number| number.fract() == 0.0 && number.abs() < 9e15)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn claims_are_read_strictly() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        let claim = |kind: &str, extra: &str, optional: &str, digest: &str| {
            format!(
                r#"{{"critical":{{"type":"{kind}","image":{{"docker-manifest-digest":"{digest}"}},
                "identity":{{"docker-reference":"example.com/a:b"}}{extra}}},"optional":{optional}}}"#
            )
        };
        let (atomic, cosign) = ("atomic container signature", "cosign container image signature");
        for (text, kind, expected) in [
            (claim(atomic, "", "{}", &digest), Kind::Simple, true),
            (claim(atomic, "", r#"{"creator":"x","timestamp":12,"other":[1]}"#, &digest), Kind::Simple, true),
            (claim(atomic, "", r#"{"timestamp":1.5}"#, &digest), Kind::Simple, false),
            (claim(atomic, "", r#"{"timestamp":"1"}"#, &digest), Kind::Simple, false),
            (claim(atomic, "", r#"{"creator":1}"#, &digest), Kind::Simple, false),
            (claim(atomic, "", "null", &digest), Kind::Simple, false),
            (claim(cosign, "", "null", &digest), Kind::Sigstore, true),
            (claim(cosign, "", "{}", &digest), Kind::Sigstore, true),
            (claim(cosign, "", "{}", &digest), Kind::Simple, false),
            (claim(atomic, "", "{}", &digest), Kind::Sigstore, false),
            (claim(atomic, r#","more":1"#, "{}", &digest), Kind::Simple, false),
            (claim(atomic, r#","type":"x""#, "{}", &digest), Kind::Simple, false),
            (claim(atomic, "", "{}", "sha512:00"), Kind::Simple, false),
            (claim(atomic, "", "{}", ""), Kind::Simple, false),
            ("{}".to_owned(), Kind::Simple, false),
            ("[]".to_owned(), Kind::Simple, false),
        ] {
            assert_eq!(Claim::parse(text.as_bytes(), kind).is_ok(), expected, "{text}");
        }
        let text = claim(atomic, "", "{}", &digest);
        let found = Claim::parse(text.as_bytes(), Kind::Simple).expect("parses");
        assert_eq!((found.manifest_digest.as_str(), found.reference.as_str()), (digest.as_str(), "example.com/a:b"));
    }
}
