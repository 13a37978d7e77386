//! Where an image is to be read from: `transport:rest`, with registries as the transport nobody needs to write.

use std::path::PathBuf;

use thiserror::Error;

use crate::reference::{ParseReferenceError, Reference};

/// Why a text names no source.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ParseSourceError {
    /// The part after the transport, or a text without transport, is no reference.
    #[error("parse image reference {text:?}")]
    Reference {
        /// The text as given.
        text: String,
        /// What is wrong with it.
        #[source]
        source: ParseReferenceError,
    },
    /// The transport needs a path.
    #[error("{transport}: needs a path in {text:?}")]
    NoPath {
        /// The transport as written.
        transport: &'static str,
        /// The text as given.
        text: String,
    },
    /// A transport of other tools that cannot be pulled from here.
    #[error("unsupported transport {transport:?} in {text:?}")]
    Transport {
        /// The transport as written.
        transport: String,
        /// The text as given.
        text: String,
    },
}

/// A place one image can be read from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// `docker://name`, or a name alone.
    Registry(Reference),
    /// `oci:path[:tag]`: a directory in OCI image layout.
    OciLayout {
        /// The directory.
        path: PathBuf,
        /// The `org.opencontainers.image.ref.name` annotation to pick; without it the layout must hold one image.
        name: Option<String>,
    },
    /// `oci-archive:path[:tag]`: the same in a tar file.
    OciArchive {
        /// The tar file.
        path: PathBuf,
        /// As in `OciLayout`.
        name: Option<String>,
    },
    /// `docker-archive:path[:name:tag]`: what `docker save` writes, old or new.
    DockerArchive {
        /// The tar file.
        path: PathBuf,
        /// The recorded name to pick; without it the archive must hold one image.
        name: Option<Reference>,
    },
}

/// Transports of containers/image that this crate knows by name only.
const FOREIGN_TRANSPORTS: [&str; 8] =
    ["containers-storage", "dir", "docker-daemon", "atomic", "sif", "ostree", "tarball", "oci-remote"];

impl Source {
    /// Parses `transport:rest`; without a known transport the text is a registry's reference.
    ///
    /// `name:tag` stays a reference: only the transports' own names are taken for transports.
    pub fn parse(text: &str) -> Result<Self, ParseSourceError> {
        let (transport, rest) = text.split_once(':').unwrap_or(("", text));
        match transport {
            "docker" if rest.starts_with("//") => Self::parse_registry(&rest[2..], text),
            "oci" => {
                let (path, name) = split_path("oci", rest, text)?;
                Ok(Self::OciLayout { path, name })
            }
            "oci-archive" => {
                let (path, name) = split_path("oci-archive", rest, text)?;
                Ok(Self::OciArchive { path, name })
            }
            "docker-archive" => {
                let (path, name) = split_path("docker-archive", rest, text)?;
                let name = name.map(|name| parse_reference(&name, text)).transpose()?;
                Ok(Self::DockerArchive { path, name })
            }
            foreign if FOREIGN_TRANSPORTS.contains(&foreign) => {
                Err(ParseSourceError::Transport { transport: foreign.to_owned(), text: text.to_owned() })
            }
            _ => Self::parse_registry(text, text),
        }
    }

    fn parse_registry(rest: &str, text: &str) -> Result<Self, ParseSourceError> {
        parse_reference(rest, text).map(Self::Registry)
    }

    /// The registry reference, if this source is a registry.
    #[must_use]
    pub fn reference(&self) -> Option<&Reference> {
        match self {
            Self::Registry(reference) => Some(reference),
            Self::OciLayout { .. } | Self::OciArchive { .. } | Self::DockerArchive { .. } => None,
        }
    }
}

fn parse_reference(rest: &str, text: &str) -> Result<Reference, ParseSourceError> {
    Reference::parse(rest).map_err(|source| ParseSourceError::Reference { text: text.to_owned(), source })
}

/// Paths cannot contain a colon: the first one ends the path, as in containers/image.
fn split_path(transport: &'static str, rest: &str, text: &str) -> Result<(PathBuf, Option<String>), ParseSourceError> {
    let (path, name) = match rest.split_once(':') {
        Some((path, name)) => (path, Some(name.to_owned()).filter(|name| !name.is_empty())),
        None => (rest, None),
    };
    if path.is_empty() || path.contains('\0') {
        return Err(ParseSourceError::NoPath { transport, text: text.to_owned() });
    }
    Ok((PathBuf::from(path), name))
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (transport, path, name) = match self {
            Self::Registry(reference) => return write!(f, "docker://{reference}"),
            Self::OciLayout { path, name } => ("oci", path, name.clone()),
            Self::OciArchive { path, name } => ("oci-archive", path, name.clone()),
            Self::DockerArchive { path, name } => ("docker-archive", path, name.as_ref().map(Reference::to_string)),
        };
        write!(f, "{transport}:{}", path.display())?;
        name.map_or(Ok(()), |name| write!(f, ":{name}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_told_by_their_transport() {
        for (text, expected) in [
            ("busybox", Some("docker://docker.io/library/busybox:latest")),
            ("docker://quay.io/a:b", Some("docker://quay.io/a:b")),
            ("docker:26", Some("docker://docker.io/library/docker:26")),
            ("oci:/srv/layout", Some("oci:/srv/layout")),
            ("oci:/srv/layout:v1", Some("oci:/srv/layout:v1")),
            ("oci-archive:rel/a.tar:v1", Some("oci-archive:rel/a.tar:v1")),
            ("docker-archive:/a.tar", Some("docker-archive:/a.tar")),
            ("docker-archive:/a.tar:busybox", Some("docker-archive:/a.tar:docker.io/library/busybox:latest")),
            ("docker-archive:/a.tar:BAD", None),
            ("oci:", None),
            ("containers-storage:busybox", None),
            ("dir:/tmp/x", None),
            ("docker://", None),
        ] {
            assert_eq!(Source::parse(text).ok().map(|source| source.to_string()).as_deref(), expected, "{text}");
        }
    }
}
