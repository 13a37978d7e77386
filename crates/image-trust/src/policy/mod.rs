//! policy.json as a value. Source: containers-policy.json(5).

pub(crate) mod check;
pub(crate) mod identity;
mod parse;
pub(crate) mod scope;

use std::collections::BTreeMap;
use std::path::PathBuf;

use thiserror::Error;

use crate::json::JsonError;
use identity::SignedIdentity;

/// Why a text is no policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{place}")]
pub struct ParsePolicyError {
    /// Where in the policy, from the outside in.
    pub(crate) place: String,
    #[source]
    /// What is wrong.
    pub(crate) source: PolicyFault,
}

/// What is wrong with a part of a policy.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum PolicyFault {
    /// It is not the JSON that belongs there.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// It is JSON, but says nothing that can be done.
    #[error("{0}")]
    Meaning(String),
}

/// What is asked of images, by where they come from.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    default: Vec<Requirement>,
    /// By transport, then by scope.
    transports: BTreeMap<String, BTreeMap<String, Vec<Requirement>>>,
}

impl Policy {
    /// Whether every image from anywhere is accepted unseen, so that it does not matter what an image is called.
    #[must_use]
    pub fn asks_nothing(&self) -> bool {
        let lists = self.transports.values().flat_map(BTreeMap::values).chain([&self.default]);
        let mut requirements = lists.flatten();
        !self.default.is_empty() && requirements.all(|one| *one == Requirement::InsecureAcceptAnything)
    }
}

/// One condition; an image must meet all of its list.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Requirement {
    InsecureAcceptAnything,
    Reject,
    SignedBy(SignedBy),
    SigstoreSigned(Box<SigstoreSigned>),
    /// Known to the format and implemented nowhere: refuses every image.
    SignedBaseLayer,
}

/// Where keys or certificates are: in files that are read at each check, or in the policy itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Sources {
    Files(Vec<PathBuf>),
    Inline(Vec<Vec<u8>>),
}

/// A simple signature by one of these keys.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SignedBy {
    pub(crate) key_type: KeyType,
    pub(crate) keys: Sources,
    pub(crate) identity: SignedIdentity,
}

/// What keys of a `signedBy` requirement are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum KeyType {
    Gpg,
    /// Known to the format and implemented nowhere: refuses every image.
    Other(String),
}

/// A sigstore signature that this root of trust accepts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct SigstoreSigned {
    pub(crate) root: TrustRoot,
    /// Keys of the transparency log, if an entry there is asked for; always with Fulcio, never with a PKI.
    pub(crate) rekor: Option<Sources>,
    pub(crate) identity: SignedIdentity,
}

/// Who may sign.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TrustRoot {
    /// Holders of these keys.
    Keys(Sources),
    /// Whoever Fulcio gave a short-lived certificate for this address, after this issuer vouched for it.
    Fulcio { authorities: Sources, issuer: String, email: String },
    /// Holders of certificates of a PKI of one's own.
    Pki { roots: Sources, intermediates: Option<Sources>, email: Option<String>, hostname: Option<String> },
}

#[cfg(test)]
mod tests {
    use super::Policy;

    #[test]
    fn what_asks_nothing() {
        let anything = r#"[{"type":"insecureAcceptAnything"}]"#;
        let reject = r#"[{"type":"reject"}]"#;
        let scoped = |default: &str, list: &str| {
            format!(r#"{{"default":{default},"transports":{{"docker":{{"registry.example":{list}}}}}}}"#)
        };
        for (text, expected) in [
            (format!(r#"{{"default":{anything}}}"#), true),
            (scoped(anything, anything), true),
            (scoped(anything, reject), false),
            (scoped(reject, anything), false),
            (format!(r#"{{"default":{reject}}}"#), false),
        ] {
            assert_eq!(Policy::parse(text.as_bytes()).unwrap().asks_nothing(), expected, "{text}");
        }
    }
}
