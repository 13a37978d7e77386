//! Image references: parsing, normalising, printing.
//!
//! Source of the grammar: the reference grammar of the distribution project, as Docker and CRI-O apply it.

use std::fmt;

use domain::digest::Digest;
use domain::id::ImageId;
use sha2::{Digest as _, Sha256};
use thiserror::Error;

/// The registry that unqualified names belong to once they are normalised.
pub const DEFAULT_DOMAIN: &str = "docker.io";
/// The tag of a reference that names neither tag nor digest.
pub const DEFAULT_TAG: &str = "latest";
/// An old name of the default registry, still found in references and credential files.
const LEGACY_DEFAULT_DOMAIN: &str = "index.docker.io";
/// Where single-component repositories of the default registry live.
const OFFICIAL_REPOSITORIES: &str = "library";
/// Longest domain and path together; the reference grammar's limit.
const NAME_MAX_BYTES: usize = 255;
/// Longest tag; the reference grammar's limit.
const TAG_MAX_BYTES: usize = 128;
/// Longest text that is looked at: name, tag, digest and separators fit in less.
const TEXT_MAX_BYTES: usize = 1024;

/// Why a text is not an image reference.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseReferenceError {
    /// Nothing was given.
    #[error("image reference is empty")]
    Empty,
    /// Longer than any reference can be.
    #[error("image reference of {length} bytes is too long")]
    TooLong {
        /// Bytes given.
        length: usize,
    },
    /// Upper-case letters in the repository.
    #[error("invalid reference format: repository name ({repository}) must be lowercase")]
    UpperCase {
        /// The repository as given.
        repository: String,
    },
    /// 64 hexadecimal characters are an image id, not a name.
    #[error("invalid repository name ({text}), cannot specify 64-byte hexadecimal strings")]
    IsId {
        /// The text as given.
        text: String,
    },
    /// The grammar does not allow the text.
    #[error("invalid reference format: {part} in {text:?}")]
    Format {
        /// The part that is wrong: host, path, tag or digest.
        part: &'static str,
        /// The text as given.
        text: String,
    },
    /// Domain and path together exceed the grammar's limit.
    #[error("repository name must not be more than {NAME_MAX_BYTES} characters: {length}")]
    NameTooLong {
        /// Bytes of domain and path.
        length: usize,
    },
    /// The digest uses an algorithm other than sha256.
    #[error("unsupported digest algorithm in {text:?}")]
    DigestAlgorithm {
        /// The text as given.
        text: String,
    },
}

/// What a reference points at within its repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Selector {
    /// A name that may move.
    Tag(String),
    /// Content that cannot change.
    Digest(Digest),
}

/// A normalised, fully qualified reference: `domain/path:tag` or `domain/path@digest`, never both.
///
/// Source: Docker and CRI-O drop the tag when a digest is present.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    domain: String,
    path: String,
    selector: Selector,
}

/// A text a person or the kubelet gave: an image id, or a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NameOrId {
    /// Exactly 64 hexadecimal characters.
    Id(ImageId),
    /// Everything else that parses.
    Name(Reference),
}

impl NameOrId {
    /// Recognises 64 hexadecimal characters as an id and normalises everything else as a name.
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        match ImageId::parse(text) {
            Ok(id) => Ok(Self::Id(id)),
            Err(_) => Reference::parse(text).map(Self::Name),
        }
    }
}

impl Reference {
    /// Parses `name[:tag][@digest]` and normalises it: default registry, `library/`, `latest`; a tag next to a digest
    /// is checked and dropped.
    pub fn parse(text: &str) -> Result<Self, ParseReferenceError> {
        let parts = Parts::split(text)?;
        let (domain, path) = match parts.domain {
            Some(LEGACY_DEFAULT_DOMAIN) => (DEFAULT_DOMAIN, parts.path),
            Some(domain) => (domain, parts.path),
            None => (DEFAULT_DOMAIN, parts.path),
        };
        let path = if domain == DEFAULT_DOMAIN && !path.contains('/') {
            format!("{OFFICIAL_REPOSITORIES}/{path}")
        } else {
            path.to_owned()
        };
        let length = domain.len() + 1 + path.len();
        if length > NAME_MAX_BYTES {
            return Err(ParseReferenceError::NameTooLong { length });
        }
        Ok(Self { domain: domain.to_owned(), path, selector: parts.selector() })
    }

    /// Builds `domain/path` with a selector of its own.
    ///
    /// Errors as [`Reference::parse`] does.
    pub fn with_repository(repository: &str, selector: Selector) -> Result<Self, ParseReferenceError> {
        let mut reference = Self::parse(repository)?;
        reference.selector = selector;
        Ok(reference)
    }

    /// The registry: `docker.io`, `localhost:5000`, `registry.example:443`.
    #[must_use]
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The repository within the registry: `library/busybox`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Registry and path: `docker.io/library/busybox`. What credentials, mirrors and policies are matched against.
    #[must_use]
    pub fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Tag or digest.
    #[must_use]
    pub fn selector(&self) -> &Selector {
        &self.selector
    }

    /// The tag, if the reference is by tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        match &self.selector {
            Selector::Tag(tag) => Some(tag),
            Selector::Digest(_) => None,
        }
    }

    /// The digest, if the reference is by digest.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        match &self.selector {
            Selector::Tag(_) => None,
            Selector::Digest(digest) => Some(digest),
        }
    }

    /// The same repository, by digest: what `repo_digests` shows.
    #[must_use]
    pub fn at_digest(&self, digest: Digest) -> Self {
        Self { domain: self.domain.clone(), path: self.path.clone(), selector: Selector::Digest(digest) }
    }

    /// As people write it: without the default registry and `library/`, where that still means the same.
    #[must_use]
    pub fn familiar(&self) -> String {
        let text = self.to_string();
        let short = text.strip_prefix("docker.io/").map(|rest| rest.strip_prefix("library/").unwrap_or(rest));
        // `docker.io/localhost/app` must not become `localhost/app`.
        match short.filter(|short| Self::parse(short).as_ref() == Ok(self)) {
            Some(short) => short.to_owned(),
            None => text,
        }
    }
}

/// sha256 of registry and path, in hexadecimal: what files of a repository's credentials are called by.
#[must_use]
pub fn repository_digest(reference: &Reference) -> String {
    let digest = Digest::from_sha256(&Sha256::digest(reference.repository()).into());
    digest.hex().to_owned()
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.selector {
            Selector::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Selector::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

impl fmt::Debug for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A checked reference as it was written, before anything is filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parts<'a> {
    /// The registry if the text names one; `None` marks a short name.
    pub(crate) domain: Option<&'a str>,
    pub(crate) path: &'a str,
    tag: Option<&'a str>,
    digest: Option<Digest>,
}

impl<'a> Parts<'a> {
    pub(crate) fn split(text: &'a str) -> Result<Self, ParseReferenceError> {
        let wrong = |part| ParseReferenceError::Format { part, text: text.to_owned() };
        if text.is_empty() {
            return Err(ParseReferenceError::Empty);
        }
        if text.len() > TEXT_MAX_BYTES {
            return Err(ParseReferenceError::TooLong { length: text.len() });
        }
        if ImageId::parse(text).is_ok() {
            return Err(ParseReferenceError::IsId { text: text.to_owned() });
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(parse_digest(digest, text)?)),
            None => (text, None),
        };
        let last_component = named.rfind('/').map_or(0, |slash| slash + 1);
        // The first component may be `host:port`, which only a following slash tells from `name:tag`.
        let (name, tag) = match named[last_component..].find(':') {
            Some(colon) => (&named[..last_component + colon], Some(&named[last_component + colon + 1..])),
            None => (named, None),
        };
        let (domain, path) = match name.split_once('/') {
            Some((first, rest)) if is_domain_like(first) => (Some(first), rest),
            _ => (None, name),
        };
        if let Some(domain) = domain
            && !is_domain(domain)
        {
            return Err(wrong("host"));
        }
        if path.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(ParseReferenceError::UpperCase { repository: path.to_owned() });
        }
        if !path.split('/').all(is_path_component) {
            return Err(wrong("repository"));
        }
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(wrong("tag"));
        }
        if name.len() > NAME_MAX_BYTES {
            return Err(ParseReferenceError::NameTooLong { length: name.len() });
        }
        Ok(Self { domain, path, tag, digest })
    }

    pub(crate) fn selector(&self) -> Selector {
        match (&self.digest, self.tag) {
            (Some(digest), _) => Selector::Digest(digest.clone()),
            (None, tag) => Selector::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        }
    }
}

fn parse_digest(digest: &str, text: &str) -> Result<Digest, ParseReferenceError> {
    Digest::parse(digest).map_err(|_| match digest.split_once(':') {
        Some(("sha256", _)) | None => ParseReferenceError::Format { part: "digest", text: text.to_owned() },
        Some(_) => ParseReferenceError::DigestAlgorithm { text: text.to_owned() },
    })
}

/// Whether the first component of a name is a registry rather than a part of the path.
fn is_domain_like(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else { return false };
            let is_address = !address.is_empty()
                && address.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.')
                && address.parse::<std::net::Ipv6Addr>().is_ok();
            return is_address && (after.is_empty() || after.strip_prefix(':').is_some_and(is_port));
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let is_label = |label: &str| {
        let bytes = label.as_bytes();
        matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
            && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok()
}

/// Alphanumeric runs joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let is_run = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    if !matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if is_run(*first) && is_run(*last)) {
        return false;
    }
    bytes
        .split(|byte| is_run(*byte))
        .filter(|separator| !separator.is_empty())
        .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    let bytes = tag.as_bytes();
    bytes.len() <= TAG_MAX_BYTES
        && bytes.first().is_some_and(|byte| byte.is_ascii_alphanumeric() || *byte == b'_')
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_normalised() {
        let at = format!("@sha256:{HEX}");
        for (text, expected) in [
            ("busybox", "docker.io/library/busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36"),
            ("user/app", "docker.io/user/app:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            ("index.docker.io/busybox", "docker.io/library/busybox:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:v1", "localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("EXAMPLE.com/app", "EXAMPLE.com/app:latest"),
            ("Host/app", "Host/app:latest"),
            ("quay.io/a__b/c-d--e/f.g:_T-1.2", "quay.io/a__b/c-d--e/f.g:_T-1.2"),
            (&format!("quay.io/app:tag{at}"), &format!("quay.io/app{at}")),
            (&format!("app{at}"), &format!("docker.io/library/app{at}")),
            ("app:5000", "docker.io/library/app:5000"),
        ] {
            let reference = Reference::parse(text).map(|reference| reference.to_string());
            assert_eq!(reference.as_deref(), Ok(expected), "{text}");
            assert_eq!(Reference::parse(expected).map(|reference| reference.to_string()).as_deref(), Ok(expected));
        }
    }

    #[test]
    fn names_outside_the_grammar_are_refused() {
        let long = format!("a.b/{}", "x".repeat(252));
        let at_upper = format!("app@sha256:{}", HEX.to_uppercase());
        let sha512 = format!("app@sha512:{HEX}{HEX}");
        let tag = format!("app:{}", "t".repeat(129));
        for text in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            ":tag",
            "app:",
            "app@",
            "app@sha256:12",
            "Upper",
            "quay.io/Upper/app",
            "a..b",
            "a___b",
            "a.-b",
            "-a",
            "a-",
            "app:ta g",
            "app:-t",
            "quay.io:port/app",
            "quay.io:99999/app",
            "-bad.io/app",
            "http://quay.io/app",
            "app\n",
            "ap\u{e9}",
            "[::1/app",
            "[zz]/app",
            "docker.io/",
            HEX,
            &long,
            &at_upper,
            &sha512,
            &tag,
            "a b",
            "app:t@x@y",
            "..",
            "../etc",
            "quay.io/../app",
        ] {
            assert!(Reference::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(
            Reference::parse("quay.io/Upper").map_err(|error| error.to_string()),
            Err("invalid reference format: repository name (Upper) must be lowercase".to_owned())
        );
        assert!(matches!(Reference::parse(&sha512), Err(ParseReferenceError::DigestAlgorithm { .. })));
    }

    #[test]
    fn ids_are_told_from_names() {
        assert!(matches!(NameOrId::parse(HEX), Ok(NameOrId::Id(id)) if id.as_str() == HEX));
        assert!(matches!(NameOrId::parse(&HEX[1..]), Ok(NameOrId::Name(_))));
    }

    #[test]
    fn parts_are_told() {
        let reference = Reference::parse("busybox:1").unwrap();
        assert_eq!(reference.domain(), "docker.io");
        assert_eq!(reference.path(), "library/busybox");
        assert_eq!(reference.repository(), "docker.io/library/busybox");
        assert_eq!(reference.tag(), Some("1"));
        assert_eq!(reference.familiar(), "busybox:1");
        for (text, familiar) in [
            ("docker.io/a/b:1", "a/b:1"),
            ("docker.io/localhost/b:1", "docker.io/localhost/b:1"),
            ("docker.io/a.b/c:1", "docker.io/a.b/c:1"),
            ("docker.io/library/a/b:1", "docker.io/library/a/b:1"),
            ("quay.io/library/a:1", "quay.io/library/a:1"),
        ] {
            assert_eq!(Reference::parse(text).unwrap().familiar(), familiar);
        }
        let digest = Digest::parse(&format!("sha256:{HEX}")).unwrap();
        assert_eq!(reference.at_digest(digest.clone()).digest(), Some(&digest));
        assert_eq!(reference.at_digest(digest).familiar(), format!("busybox@sha256:{HEX}"));
    }
}
