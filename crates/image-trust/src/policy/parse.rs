//! From text to [`Policy`]: whatever is misspelt, doubled, missing or contradictory is an error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::identity::SignedIdentity;
use super::scope::check_scope;
use super::{
    KeyType, ParsePolicyError, Policy, PolicyFault, Requirement, SignedBy, SigstoreSigned, Sources, TrustRoot,
};
use crate::json::{JsonError, Object, Value, parse_object};
use crate::name::{Name, is_prefix};

type Parsed<T> = Result<T, PolicyFault>;

impl Policy {
    /// Parses a policy. Errors name the transport, the scope and the number of the requirement.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParsePolicyError> {
        let top = |source: JsonError| at("policy", source.into());
        let mut policy = parse_object(bytes).map_err(top)?;
        let default = policy.need("default").map_err(top)?;
        let transports = policy.take("transports");
        policy.finish().map_err(top)?;
        let mut parsed = Self { default: requirements("default", default)?, transports: BTreeMap::new() };
        if let Some(transports) = transports {
            for (transport, scopes) in transports.object("transports").map_err(top)?.into_entries() {
                let scopes = scopes.object(&transport).map_err(top)?;
                let mut by_scope = BTreeMap::new();
                for (scope, list) in scopes.into_entries() {
                    let place = format!("transport {transport:?}, scope {scope:?}");
                    check_scope(&transport, &scope).map_err(|fault| at(&place, meaning(fault)))?;
                    by_scope.insert(scope, requirements(&place, list)?);
                }
                parsed.transports.insert(transport, by_scope);
            }
        }
        Ok(parsed)
    }
}

fn at(place: &str, source: PolicyFault) -> ParsePolicyError {
    ParsePolicyError { place: place.to_owned(), source }
}

fn meaning(text: impl Into<String>) -> PolicyFault {
    PolicyFault::Meaning(text.into())
}

fn requirements(place: &str, value: Value) -> Result<Vec<Requirement>, ParsePolicyError> {
    let list = value.list(place).map_err(|fault| at(place, fault.into()))?;
    if list.is_empty() {
        return Err(at(place, meaning("the list of requirements must not be empty")));
    }
    let numbered = list.into_iter().enumerate();
    numbered
        .map(|(number, value)| {
            requirement(value).map_err(|fault| at(&format!("{place}, requirement {}", number + 1), fault))
        })
        .collect()
}

fn requirement(value: Value) -> Parsed<Requirement> {
    let mut fields = value.object("a requirement")?;
    let kind = fields.need("type")?.text("type")?;
    let parsed = match kind.as_str() {
        "insecureAcceptAnything" => Requirement::InsecureAcceptAnything,
        "reject" => Requirement::Reject,
        "signedBy" => Requirement::SignedBy(signed_by(&mut fields)?),
        "signedBaseLayer" => {
            identity(fields.need("baseLayerIdentity")?)?;
            Requirement::SignedBaseLayer
        }
        "sigstoreSigned" => Requirement::SigstoreSigned(Box::new(sigstore_signed(&mut fields)?)),
        _ => return Err(meaning(format!("unknown requirement type {kind:?}"))),
    };
    fields.finish()?;
    Ok(parsed)
}

fn signed_by(fields: &mut Object) -> Parsed<SignedBy> {
    let key_type = match fields.need("keyType")?.text("keyType")? {
        kind if kind == "GPGKeys" => KeyType::Gpg,
        kind if ["signedByGPGKeys", "X509Certificates", "signedByX509CAs"].contains(&kind.as_str()) => {
            KeyType::Other(kind)
        }
        kind => return Err(meaning(format!("unknown keyType {kind:?}"))),
    };
    let found = [file(fields, "keyPath")?, files(fields, "keyPaths")?, inline(fields, "keyData")?];
    let keys = exactly_one(found, "exactly one of keyPath, keyPaths and keyData must be given")?;
    Ok(SignedBy { key_type, keys, identity: optional_identity(fields)? })
}

fn sigstore_signed(fields: &mut Object) -> Parsed<SigstoreSigned> {
    let keys =
        at_most_one(key_sources(fields, "key")?, "only one of keyPath, keyPaths, keyData and keyDatas may be given")?;
    let rekor = at_most_one(
        key_sources(fields, "rekorPublicKey")?,
        "only one of rekorPublicKeyPath, rekorPublicKeyPaths, rekorPublicKeyData and rekorPublicKeyDatas may be given",
    )?;
    let roots = [
        keys.map(TrustRoot::Keys),
        fields.take("fulcio").map(fulcio).transpose()?,
        fields.take("pki").map(pki).transpose()?,
    ];
    let root = exactly_one(roots, "exactly one of keyPath, keyPaths, keyData, keyDatas, fulcio and pki must be given")?;
    match (&root, &rekor) {
        (TrustRoot::Fulcio { .. }, None) => Err(meaning(
            "fulcio needs one of rekorPublicKeyPath, rekorPublicKeyPaths, rekorPublicKeyData and rekorPublicKeyDatas",
        )),
        (TrustRoot::Pki { .. }, Some(_)) => Err(meaning("a Rekor public key cannot be used with pki")),
        _ => Ok(SigstoreSigned { root, rekor, identity: optional_identity(fields)? }),
    }
}

/// `<prefix>Path`, `<prefix>Paths`, `<prefix>Data`, `<prefix>Datas`.
fn key_sources(fields: &mut Object, prefix: &str) -> Parsed<[Option<Sources>; 4]> {
    Ok([
        file(fields, &format!("{prefix}Path"))?,
        files(fields, &format!("{prefix}Paths"))?,
        inline(fields, &format!("{prefix}Data"))?,
        inlines(fields, &format!("{prefix}Datas"))?,
    ])
}

fn fulcio(value: Value) -> Parsed<TrustRoot> {
    let mut fields = value.object("fulcio")?;
    let found = [file(&mut fields, "caPath")?, inline(&mut fields, "caData")?];
    let authorities = exactly_one(found, "fulcio: exactly one of caPath and caData must be given")?;
    let issuer = some_text(&mut fields, "oidcIssuer")?.ok_or_else(|| meaning("fulcio: oidcIssuer is not given"))?;
    let email = some_text(&mut fields, "subjectEmail")?.ok_or_else(|| meaning("fulcio: subjectEmail is not given"))?;
    fields.finish()?;
    Ok(TrustRoot::Fulcio { authorities, issuer, email })
}

fn pki(value: Value) -> Parsed<TrustRoot> {
    let mut fields = value.object("pki")?;
    let found = [file(&mut fields, "caRootsPath")?, inline(&mut fields, "caRootsData")?];
    let roots = exactly_one(found, "pki: exactly one of caRootsPath and caRootsData must be given")?;
    let found = [file(&mut fields, "caIntermediatesPath")?, inline(&mut fields, "caIntermediatesData")?];
    let intermediates =
        at_most_one(found, "pki: only one of caIntermediatesPath and caIntermediatesData may be given")?;
    let email = some_text(&mut fields, "subjectEmail")?;
    let hostname = some_text(&mut fields, "subjectHostname")?;
    fields.finish()?;
    if email.is_none() && hostname.is_none() {
        return Err(meaning("pki: at least one of subjectEmail and subjectHostname must be given"));
    }
    Ok(TrustRoot::Pki { roots, intermediates, email, hostname })
}

/// A text; an empty one counts as not given. Source: containers/image.
fn some_text(fields: &mut Object, key: &str) -> Parsed<Option<String>> {
    Ok(fields.take_text(key)?.filter(|text| !text.is_empty()))
}

fn file(fields: &mut Object, key: &str) -> Parsed<Option<Sources>> {
    match fields.take_text(key)? {
        Some(path) if path.is_empty() => Err(meaning(format!("{key} is empty"))),
        path => Ok(path.map(|path| Sources::Files(vec![path.into()]))),
    }
}

fn files(fields: &mut Object, key: &str) -> Parsed<Option<Sources>> {
    let Some(list) = some_list(fields, key)? else { return Ok(None) };
    let paths = list.into_iter().map(|value| Ok(PathBuf::from(value.text(key)?)));
    Ok(Some(Sources::Files(paths.collect::<Result<_, JsonError>>()?)))
}

fn inline(fields: &mut Object, key: &str) -> Parsed<Option<Sources>> {
    Ok(fields.take_bytes(key)?.map(|bytes| Sources::Inline(vec![bytes])))
}

fn inlines(fields: &mut Object, key: &str) -> Parsed<Option<Sources>> {
    let Some(list) = some_list(fields, key)? else { return Ok(None) };
    let keys = list.into_iter().map(|value| value.bytes(key));
    Ok(Some(Sources::Inline(keys.collect::<Result<_, JsonError>>()?)))
}

fn some_list(fields: &mut Object, key: &str) -> Parsed<Option<Vec<Value>>> {
    match fields.take(key).map(|value| value.list(key)).transpose()? {
        Some(list) if list.is_empty() => Err(meaning(format!("{key} contains no entries"))),
        list => Ok(list),
    }
}

fn at_most_one<T, const N: usize>(found: [Option<T>; N], otherwise: &str) -> Parsed<Option<T>> {
    let mut found = found.into_iter().flatten();
    match (found.next(), found.next()) {
        (first, None) => Ok(first),
        (_, Some(_)) => Err(meaning(otherwise)),
    }
}

fn exactly_one<T, const N: usize>(found: [Option<T>; N], otherwise: &str) -> Parsed<T> {
    at_most_one(found, otherwise)?.ok_or_else(|| meaning(otherwise))
}

fn optional_identity(fields: &mut Object) -> Parsed<SignedIdentity> {
    fields.take("signedIdentity").map_or(Ok(SignedIdentity::MatchRepoDigestOrExact), identity)
}

fn identity(value: Value) -> Parsed<SignedIdentity> {
    let mut fields = value.object("signedIdentity")?;
    let kind = fields.need("type")?.text("type")?;
    let parsed = match kind.as_str() {
        "matchExact" => SignedIdentity::MatchExact,
        "matchRepoDigestOrExact" => SignedIdentity::MatchRepoDigestOrExact,
        "matchRepository" => SignedIdentity::MatchRepository,
        "exactReference" => {
            let name = name(&mut fields, "dockerReference")?;
            if name.is_bare() {
                return Err(meaning(format!("dockerReference \"{name}\" has neither a tag nor a digest")));
            }
            SignedIdentity::ExactReference(name)
        }
        "exactRepository" => SignedIdentity::ExactRepository(name(&mut fields, "dockerRepository")?),
        "remapIdentity" => SignedIdentity::Remap {
            prefix: prefix(&mut fields, "prefix")?,
            signed_prefix: prefix(&mut fields, "signedPrefix")?,
        },
        _ => return Err(meaning(format!("unknown signedIdentity type {kind:?}"))),
    };
    fields.finish()?;
    Ok(parsed)
}

fn name(fields: &mut Object, key: &'static str) -> Parsed<Name> {
    let text = fields.need(key)?.text(key)?;
    Name::parse(&text).map_err(|error| meaning(format!("{key}: {error}")))
}

fn prefix(fields: &mut Object, key: &'static str) -> Parsed<String> {
    let text = fields.need(key)?.text(key)?;
    if is_prefix(&text) { Ok(text) } else { Err(meaning(format!("{key} {text:?} is not a host or repository"))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parses(requirement: &str) -> Result<(), String> {
        let text = format!(r#"{{"default": [{requirement}]}}"#);
        Policy::parse(text.as_bytes()).map(drop).map_err(|error| format!("{error}: {}", error.source))
    }

    #[test]
    fn requirements_are_known_or_refused() {
        for good in [
            r#"{"type": "insecureAcceptAnything"}"#,
            r#"{"type": "reject"}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k"}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/k", "/l"]}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyData": "eA=="}"#,
            r#"{"type": "signedBy", "keyType": "X509Certificates", "keyPath": "/k"}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k", "signedIdentity": {"type": "matchExact"}}"#,
            r#"{"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchRepository"}}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k"}"#,
            r#"{"type": "sigstoreSigned", "keyPaths": ["/k"], "rekorPublicKeyPath": "/r"}"#,
            r#"{"type": "sigstoreSigned", "keyDatas": ["eA==", "eQ=="], "rekorPublicKeyDatas": ["eA=="]}"#,
            r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "i", "subjectEmail": "e"},
                "rekorPublicKeyData": "eA==", "signedIdentity": {"type": "matchRepository"}}"#,
            r#"{"type": "sigstoreSigned", "pki": {"caRootsData": "eA==", "subjectHostname": "h"}}"#,
            r#"{"type": "sigstoreSigned", "pki": {"caRootsPath": "/r", "caIntermediatesPath": "/i", "subjectEmail": "e"}}"#,
        ] {
            assert_eq!(parses(good), Ok(()), "{good}");
        }
        for bad in [
            r#"{}"#,
            r#""reject""#,
            r#"{"type": "unknown"}"#,
            r#"{"type": "reject", "type": "reject"}"#,
            r#"{"type": "reject", "more": 1}"#,
            r#"{"type": "insecureAcceptAnything", "keyPath": "/k"}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys"}"#,
            r#"{"type": "signedBy", "keyPath": "/k"}"#,
            r#"{"type": "signedBy", "keyType": "PGP", "keyPath": "/k"}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": ""}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": null}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPaths": []}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyData": "?"}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k", "keyData": "eA=="}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k", "signedidentity": {"type": "matchExact"}}"#,
            r#"{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k", "signedIdentity": {"type": "matchAll"}}"#,
            r#"{"type": "signedBaseLayer"}"#,
            r#"{"type": "sigstoreSigned"}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "keyType": "GPGKeys"}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "keyDatas": ["eA=="]}"#,
            r#"{"type": "sigstoreSigned", "keyDatas": []}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "rekorPublicKeyPath": "/r", "rekorPublicKeyData": "eA=="}"#,
            r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "i", "subjectEmail": "e"}}"#,
            r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "", "subjectEmail": "e"}, "rekorPublicKeyPath": "/r"}"#,
            r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "i"}, "rekorPublicKeyPath": "/r"}"#,
            r#"{"type": "sigstoreSigned", "fulcio": {"oidcIssuer": "i", "subjectEmail": "e"}, "rekorPublicKeyPath": "/r"}"#,
            r#"{"type": "sigstoreSigned", "fulcio": {"caPath": "/c", "oidcIssuer": "i", "subjectEmail": "e", "x": 1}, "rekorPublicKeyPath": "/r"}"#,
            r#"{"type": "sigstoreSigned", "pki": {"caRootsPath": "/r"}}"#,
            r#"{"type": "sigstoreSigned", "pki": {"subjectEmail": "e"}}"#,
            r#"{"type": "sigstoreSigned", "pki": {"caRootsPath": "/r", "subjectEmail": "e"}, "rekorPublicKeyPath": "/r"}"#,
            r#"{"type": "sigstoreSigned", "keyPath": "/k", "pki": {"caRootsPath": "/r", "subjectEmail": "e"}}"#,
        ] {
            assert!(parses(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn identities_are_known_or_refused() {
        for (identity, expected) in [
            (r#"{"type": "matchExact"}"#, true),
            (r#"{"type": "matchRepoDigestOrExact"}"#, true),
            (r#"{"type": "matchRepository"}"#, true),
            (r#"{"type": "exactReference", "dockerReference": "example.com/a:b"}"#, true),
            (r#"{"type": "exactReference", "dockerReference": "example.com/a"}"#, false),
            (r#"{"type": "exactReference", "dockerReference": "A"}"#, false),
            (r#"{"type": "exactReference"}"#, false),
            (r#"{"type": "exactRepository", "dockerRepository": "example.com/a"}"#, true),
            (r#"{"type": "exactRepository", "dockerReference": "example.com/a"}"#, false),
            (r#"{"type": "remapIdentity", "prefix": "a.example", "signedPrefix": "b.example/c"}"#, true),
            (r#"{"type": "remapIdentity", "prefix": "a.example/", "signedPrefix": "b.example"}"#, false),
            (r#"{"type": "remapIdentity", "prefix": "a.example"}"#, false),
            (r#"{"type": "matchExact", "prefix": "a.example"}"#, false),
            (r#""matchExact""#, false),
        ] {
            let text = format!(
                r#"{{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/k", "signedIdentity": {identity}}}"#
            );
            assert_eq!(parses(&text).is_ok(), expected, "{identity}");
        }
    }

    #[test]
    fn a_policy_has_a_default_and_lists_that_are_not_empty() {
        let reject = r#"[{"type": "reject"}]"#;
        for (text, expected) in [
            (format!(r#"{{"default": {reject}}}"#), true),
            (format!(r#"{{"default": {reject}, "transports": {{}}}}"#), true),
            (format!(r#"{{"default": {reject}, "transports": {{"docker": {{"": {reject}}}}}}}"#), true),
            (format!(r#"{{"default": {reject}, "transports": {{"of-tomorrow": {{"any:thing": {reject}}}}}}}"#), true),
            (format!(r#"{{"default": {reject}, "transports": {{"dir": {{"relative": {reject}}}}}}}"#), false),
            (format!(r#"{{"default": {reject}, "transports": {{"docker": {{"a": []}}}}}}"#), false),
            (
                format!(r#"{{"default": {reject}, "transports": {{"docker": {{"a": {reject}, "a": {reject}}}}}}}"#),
                false,
            ),
            (format!(r#"{{"default": {reject}, "more": 1}}"#), false),
            (r#"{"default": []}"#.to_owned(), false),
            (r#"{"default": null}"#.to_owned(), false),
            (format!(r#"{{"transports": {{"docker": {{"": {reject}}}}}}}"#), false),
            ("[]".to_owned(), false),
            (String::new(), false),
        ] {
            assert_eq!(Policy::parse(text.as_bytes()).is_ok(), expected, "{text}");
        }
    }

    #[test]
    fn errors_say_where() {
        let text = r#"{"default": [{"type": "reject"}], "transports": {"docker": {"a.b/c": [{"type": "reject"}, {"type": "x"}]}}}"#;
        let error = Policy::parse(text.as_bytes()).expect_err("is wrong");
        assert_eq!(error.to_string(), r#"transport "docker", scope "a.b/c", requirement 2"#);
        assert_eq!(error.source.to_string(), r#"unknown requirement type "x""#);
    }
}
