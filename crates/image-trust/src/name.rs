//! Names of images as policies and signatures write them.
//!
//! Unlike a reference that is pulled, such a name keeps tag and digest apart from each other and may have neither.
//! Source: the grammar and normalisation of docker/distribution's references.

use std::fmt;

use domain::digest::Digest;
use thiserror::Error;

/// Longest text that is looked at.
const TEXT_MAX_BYTES: usize = 1024;
/// Longest registry and path together. Source: docker/distribution.
const REPOSITORY_MAX_BYTES: usize = 255;
const TAG_MAX_BYTES: usize = 128;

/// Why a text is no name of an image.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{text:?} is not the name of an image")]
pub struct ParseNameError {
    text: String,
}

/// A normalised name: registry and path, and what it points at there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    repository: String,
    domain_bytes: usize,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Name {
    /// Parses `name[:tag][@digest]`; default registry and `library/` are filled in, a tag is not.
    pub fn parse(text: &str) -> Result<Self, ParseNameError> {
        Self::read(text).ok_or_else(|| ParseNameError { text: text.chars().take(200).collect() })
    }

    fn read(text: &str) -> Option<Self> {
        let is_id = text.len() == 64 && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if text.len() > TEXT_MAX_BYTES || is_id {
            return None;
        }
        let (named, digest) = match text.split_once('@') {
            Some((named, digest)) => (named, Some(Digest::parse(digest).ok()?)),
            None => (text, None),
        };
        let last_component = named.rfind('/').map_or(0, |slash| slash + 1);
        let (name, tag) = match named[last_component..].find(':') {
            Some(colon) => (&named[..last_component + colon], Some(&named[last_component + colon + 1..])),
            None => (named, None),
        };
        let (domain, path) = match name.split_once('/') {
            Some((first, rest)) if is_domain_like(first) => (first, rest),
            _ => ("docker.io", name),
        };
        let domain = if domain == "index.docker.io" { "docker.io" } else { domain };
        let is_official = domain == "docker.io" && !path.contains('/');
        let repository = if is_official { format!("{domain}/library/{path}") } else { format!("{domain}/{path}") };
        let is_valid = is_domain(domain)
            && path.split('/').all(is_path_component)
            && tag.is_none_or(is_tag)
            && repository.len() <= REPOSITORY_MAX_BYTES;
        is_valid.then(|| Self { domain_bytes: domain.len(), repository, tag: tag.map(str::to_owned), digest })
    }

    /// Registry and path: `docker.io/library/busybox`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The path within the registry: `library/busybox`.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.repository[self.domain_bytes + 1..]
    }

    /// The tag.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// Whether neither tag nor digest is there.
    #[must_use]
    pub fn is_bare(&self) -> bool {
        self.tag.is_none() && self.digest.is_none()
    }

    /// The same name in another repository, if that makes a name without filling anything in.
    pub(crate) fn in_repository(&self, repository: &str) -> Option<Self> {
        let moved = Self::read(repository)?;
        (moved.is_bare() && moved.repository == repository).then(|| Self {
            tag: self.tag.clone(),
            digest: self.digest.clone(),
            ..moved
        })
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

/// Whether a text is a host, or a host and a path, written out.
pub(crate) fn is_prefix(text: &str) -> bool {
    match text.split_once('/') {
        None => is_domain(text),
        Some((domain, path)) => is_domain(domain) && path.split('/').all(is_path_component),
    }
}

fn is_domain_like(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|byte| byte.is_ascii_uppercase())
}

fn is_domain(domain: &str) -> bool {
    let is_port = |port: &str| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit());
    let (host, port) = match domain.strip_prefix('[') {
        Some(rest) => {
            let Some((address, after)) = rest.split_once(']') else { return false };
            let is_address = address.parse::<std::net::Ipv6Addr>().is_ok();
            return is_address && (after.is_empty() || after.strip_prefix(':').is_some_and(is_port));
        }
        None => match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    host.split('.').all(is_label) && port.is_none_or(is_port)
}

/// Alphanumeric runs joined by one dot, one or two underscores, or any number of dashes.
fn is_path_component(component: &str) -> bool {
    let is_run = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    matches!((bytes.first(), bytes.last()), (Some(first), Some(last)) if is_run(*first) && is_run(*last))
        && bytes
            .split(|byte| is_run(*byte))
            .filter(|separator| !separator.is_empty())
            .all(|separator| matches!(separator, b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-'))
}

fn is_tag(tag: &str) -> bool {
    tag.len() <= TAG_MAX_BYTES
        && tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && tag.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_but_get_no_tag() {
        let hex = "0123456789abcdef".repeat(4);
        let digested = format!("quay.io/a/b:v1@sha256:{hex}");
        for (text, expected) in [
            ("busybox", Some("docker.io/library/busybox")),
            ("busybox:1", Some("docker.io/library/busybox:1")),
            ("a/b", Some("docker.io/a/b")),
            ("index.docker.io/a", Some("docker.io/library/a")),
            ("localhost:5000/a:b", Some("localhost:5000/a:b")),
            ("[::1]:5000/a", Some("[::1]:5000/a")),
            (&digested, Some(&digested)),
            ("", None),
            ("A", None),
            ("a//b", None),
            ("a:", None),
            ("a@sha512:00", None),
            ("a b", None),
            ("../a", None),
            (&hex, None),
        ] {
            assert_eq!(Name::parse(text).ok().map(|name| name.to_string()).as_deref(), expected, "{text}");
        }
        let name = Name::parse(&digested).expect("parses");
        assert_eq!((name.repository(), name.path(), name.tag()), ("quay.io/a/b", "a/b", Some("v1")));
        assert_eq!(
            name.in_repository("example.com:5000/x").map(|name| name.to_string()),
            Some(format!("example.com:5000/x:v1@sha256:{hex}"))
        );
        assert_eq!(name.in_repository("short"), None);
    }

    #[test]
    fn prefixes_have_a_host() {
        for (text, expected) in [
            ("example.com", true),
            ("example.com:5000", true),
            ("example.com/a/b", true),
            ("example.com/a/", false),
            ("example.com:tag/a:1", false),
            ("", false),
            ("/a", false),
            ("*.example.com", false),
        ] {
            assert_eq!(is_prefix(text), expected, "{text}");
        }
    }
}
