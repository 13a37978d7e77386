//! Whether the name in a signature is one that the image may have.

use crate::name::Name;

/// Which names a signature may give an image. Source: containers-policy.json(5), `signedIdentity`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum SignedIdentity {
    /// The image's own, tag or digest included.
    MatchExact,
    /// The image's own; of one that is asked for by digest, the repository.
    MatchRepoDigestOrExact,
    /// Any in the image's repository.
    MatchRepository,
    /// This one, whatever the image's own is.
    ExactReference(Name),
    /// Any in this repository, whatever the image's own is.
    ExactRepository(Name),
    /// As [`SignedIdentity::MatchRepoDigestOrExact`], after the beginning of the image's own name was replaced: for
    /// mirrors.
    Remap { prefix: String, signed_prefix: String },
}

impl SignedIdentity {
    /// `intended` is the image's own name, `None` for one that has none; `signed` is the text in the signature.
    pub(crate) fn is_met(&self, intended: Option<&Name>, signed: &str) -> bool {
        let Ok(signed) = Name::parse(signed) else { return false };
        match self {
            Self::ExactReference(wanted) => !signed.is_bare() && signed == *wanted,
            Self::ExactRepository(wanted) => signed.repository() == wanted.repository(),
            _ => intended.is_some_and(|intended| self.is_met_by_own(intended, &signed)),
        }
    }

    fn is_met_by_own(&self, intended: &Name, signed: &Name) -> bool {
        match self {
            Self::MatchExact => !intended.is_bare() && !signed.is_bare() && intended == signed,
            Self::MatchRepoDigestOrExact => is_same_or_by_digest(intended, signed),
            Self::MatchRepository => intended.repository() == signed.repository(),
            Self::Remap { prefix, signed_prefix } => match remap(intended.repository(), prefix, signed_prefix) {
                None => is_same_or_by_digest(intended, signed),
                Some(moved) => {
                    intended.in_repository(&moved).is_some_and(|intended| is_same_or_by_digest(&intended, signed))
                }
            },
            Self::ExactReference(_) | Self::ExactRepository(_) => false,
        }
    }
}

/// The digest itself is not compared: the claim's manifest digest is, and there may be an index between the two.
fn is_same_or_by_digest(intended: &Name, signed: &Name) -> bool {
    if signed.is_bare() || intended.is_bare() {
        return false;
    }
    match intended.tag() {
        Some(_) => intended == signed,
        None => intended.repository() == signed.repository(),
    }
}

/// A repository with another beginning, or `None` where it begins otherwise.
fn remap(repository: &str, prefix: &str, replacement: &str) -> Option<String> {
    let rest = repository.strip_prefix(prefix)?;
    (rest.is_empty() || rest.starts_with('/')).then(|| format!("{replacement}{rest}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identities_match_as_documented() {
        use SignedIdentity::{ExactReference, ExactRepository, MatchExact, MatchRepoDigestOrExact, MatchRepository};
        let name = |text: &str| Name::parse(text).expect("parses");
        let (one, two) = (format!("q.io/a@sha256:{}", "1".repeat(64)), format!("q.io/a@sha256:{}", "2".repeat(64)));
        let remap = |prefix: &str, signed: &str| SignedIdentity::Remap {
            prefix: prefix.to_owned(),
            signed_prefix: signed.to_owned(),
        };
        for (identity, intended, signed, expected) in [
            (MatchExact, Some("q.io/a:1"), "q.io/a:1", true),
            (MatchExact, Some("q.io/a:1"), "q.io/a:2", false),
            (MatchExact, Some("q.io/a:1"), "q.io/a", false),
            (MatchExact, Some("docker.io/library/a:1"), "a:1", true),
            (MatchExact, Some(&one), &one, true),
            (MatchExact, Some(&one), "q.io/a:1", false),
            (MatchExact, None, "q.io/a:1", false),
            (MatchExact, Some("q.io/a:1"), "NOT a name", false),
            (MatchRepoDigestOrExact, Some("q.io/a:1"), "q.io/a:1", true),
            (MatchRepoDigestOrExact, Some("q.io/a:1"), "q.io/a:2", false),
            (MatchRepoDigestOrExact, Some("q.io/a:1"), &one, false),
            (MatchRepoDigestOrExact, Some(&one), "q.io/a:1", true),
            (MatchRepoDigestOrExact, Some(&one), &two, true),
            (MatchRepoDigestOrExact, Some(&one), "q.io/a", false),
            (MatchRepoDigestOrExact, Some(&one), "q.io/b:1", false),
            (MatchRepository, Some("q.io/a:1"), "q.io/a:2", true),
            (MatchRepository, Some("q.io/a:1"), "q.io/a", true),
            (MatchRepository, Some("q.io/a:1"), "q.io/b:1", false),
            (MatchRepository, None, "q.io/a:1", false),
            (ExactReference(name("q.io/c:9")), Some("q.io/a:1"), "q.io/c:9", true),
            (ExactReference(name("q.io/c:9")), None, "q.io/c:9", true),
            (ExactReference(name("q.io/c:9")), Some("q.io/a:1"), "q.io/a:1", false),
            (ExactRepository(name("q.io/c")), Some("q.io/a:1"), "q.io/c:7", true),
            (ExactRepository(name("q.io/c")), Some("q.io/a:1"), "q.io/a:1", false),
            (remap("m.io", "q.io"), Some("m.io/a:1"), "q.io/a:1", true),
            (remap("m.io", "q.io"), Some("m.io/a:1"), "m.io/a:1", false),
            (remap("m.io", "q.io"), Some("x.io/a:1"), "x.io/a:1", true),
            (remap("m.io/x", "q.io"), Some("m.io/xy:1"), "m.io/xy:1", true),
            (remap("m.io/x", "q.io/y"), Some("m.io/x/a:1"), "q.io/y/a:1", true),
            (remap("m.io/x", "q.io/y"), Some("m.io/x:1"), "q.io/y:1", true),
            (remap("m.io/x", "q.io"), Some("m.io/x:1"), "q.io:1", false),
            (remap("m.io:5000", "q.io"), Some("m.io:5000/a:1"), "q.io/a:1", true),
            (remap("m.io", "docker.io"), Some("m.io/a:1"), "docker.io/library/a:1", false),
        ] {
            let own = intended.map(name);
            assert_eq!(identity.is_met(own.as_ref(), signed), expected, "{identity:?} {intended:?} {signed}");
        }
    }
}
