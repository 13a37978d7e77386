//! registries.conf: which registries short names mean, and which mirrors, locations and permissions names have.
//!
//! Source: containers-registries.conf(5), version 2; the tables of version 1 are read too.

mod file;

use std::collections::BTreeMap;
use std::path::PathBuf;

use thiserror::Error;

use crate::reference::{ParseReferenceError, Parts, Reference};

pub(crate) use file::AUTH_FILE_HELPER;
pub use file::{RegistriesError, parse_registries};

/// The operator's main file.
pub const MAIN_FILE: &str = "/etc/containers/registries.conf";
/// The distribution's main file, read if the operator has none.
pub const FALLBACK_FILE: &str = "/usr/share/containers/registries.conf";
/// The operator's drop-in directory.
pub const DROP_IN_DIRECTORY: &str = "/etc/containers/registries.conf.d";
/// Aliases that people confirmed with other tools; they win over the files.
pub const ALIAS_CACHE: &str = "/var/cache/containers/short-name-aliases.conf";

/// What to do when a short name could mean several registries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ShortNameMode {
    /// Refuse, because nobody can be asked.
    #[default]
    Enforcing,
    /// Try all: without a terminal the same as `Disabled`.
    Permissive,
    /// Try all.
    Disabled,
}

impl ShortNameMode {
    /// Parses `enforcing`, `permissive`, `disabled`; `None` for anything else.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "enforcing" => Some(Self::Enforcing),
            "permissive" => Some(Self::Permissive),
            "disabled" => Some(Self::Disabled),
            _ => None,
        }
    }
}

/// Which files are read, and what overrides them.
#[derive(Debug, Clone)]
pub struct RegistriesOptions {
    /// Main files, the first that exists is read.
    pub main_files: Vec<PathBuf>,
    /// Drop-ins `*.conf`, in the order of their names.
    pub drop_in_directory: Option<PathBuf>,
    /// The alias cache, if it is to be read.
    pub alias_cache: Option<PathBuf>,
    /// The daemon's own `short_name_mode`, which wins over the files.
    pub short_name_mode: Option<ShortNameMode>,
}

impl Default for RegistriesOptions {
    fn default() -> Self {
        Self {
            main_files: vec![MAIN_FILE.into(), FALLBACK_FILE.into()],
            drop_in_directory: Some(DROP_IN_DIRECTORY.into()),
            alias_cache: Some(ALIAS_CACHE.into()),
            short_name_mode: None,
        }
    }
}

/// References a mirror is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PullFromMirror {
    /// All.
    #[default]
    All,
    /// Those by digest.
    DigestOnly,
    /// Those by tag.
    TagOnly,
}

/// Whether plain HTTP and unverified certificates are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Transport {
    /// HTTPS with a trusted certificate.
    Verified,
    /// HTTPS with any certificate, and HTTP if nobody speaks TLS.
    Insecure,
}

/// A `[[registry]]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistryEntry {
    /// What references must begin with: `host[:port][/path...]` or `*.domain`.
    pub prefix: String,
    /// What replaces the prefix; empty keeps it.
    pub location: String,
    /// From `insecure`.
    pub transport: Transport,
    /// Pulls are refused.
    pub is_blocked: bool,
    /// Tried in order before the registry itself.
    pub mirrors: Vec<MirrorEntry>,
}

/// A `[[registry.mirror]]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MirrorEntry {
    /// What replaces the prefix.
    pub location: String,
    /// From `insecure`.
    pub transport: Transport,
    /// From `pull-from-mirror` or the registry's `mirror-by-digest-only`.
    pub pull_from: PullFromMirror,
}

/// One place a reference is to be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PullEndpoint {
    /// The reference with location or mirror in place of the prefix.
    pub reference: Reference,
    /// How to connect.
    pub transport: Transport,
}

/// Why a reference has no endpoints.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EndpointError {
    /// The registry is blocked.
    #[error("registry {prefix} is blocked")]
    Blocked {
        /// Of the entry.
        prefix: String,
    },
    /// The rewritten name is no reference.
    #[error("location {location:?} gives no valid reference")]
    Location {
        /// Of the entry or mirror.
        location: String,
        /// What is wrong with it.
        #[source]
        source: ParseReferenceError,
    },
}

/// Why a name has no candidates.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CandidatesError {
    /// The name is no reference.
    #[error("parse image name {name:?}")]
    Name {
        /// As given.
        name: String,
        /// What is wrong with it.
        #[source]
        source: ParseReferenceError,
    },
    /// Several registries could be meant, and nobody can be asked. CRI-O's text.
    #[error("short name mode is enforcing, but image name {name} returns ambiguous list")]
    Ambiguous {
        /// As given.
        name: String,
    },
    /// No alias, and no registry to search.
    #[error(
        "short-name {name:?} did not resolve to an alias and no unqualified-search registries are defined in {files:?}"
    )]
    NoRegistries {
        /// As given.
        name: String,
        /// The main file.
        files: String,
    },
    /// An alias or search registry gives no valid reference.
    #[error("{by} for short name {name:?} gives no valid reference")]
    Rewritten {
        /// As given.
        name: String,
        /// The alias or registry.
        by: String,
        /// What is wrong with it.
        #[source]
        source: ParseReferenceError,
    },
}

/// Everything the files say, merged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registries {
    pub(crate) unqualified_search: Vec<String>,
    pub(crate) short_name_mode: ShortNameMode,
    pub(crate) credential_helpers: Vec<String>,
    pub(crate) entries: Vec<RegistryEntry>,
    pub(crate) aliases: BTreeMap<String, String>,
    /// Names the main file in errors.
    pub(crate) main_file: String,
}

impl Default for Registries {
    fn default() -> Self {
        Self {
            unqualified_search: Vec::new(),
            short_name_mode: ShortNameMode::default(),
            credential_helpers: vec![file::AUTH_FILE_HELPER.to_owned()],
            entries: Vec::new(),
            aliases: BTreeMap::new(),
            main_file: MAIN_FILE.to_owned(),
        }
    }
}

impl Registries {
    /// Reads and merges all files. The second value is warnings, one a line, naming file and key.
    pub fn load(options: &RegistriesOptions) -> Result<(Self, Vec<String>), RegistriesError> {
        file::load(options)
    }

    /// `unqualified-search-registries`.
    #[must_use]
    pub fn unqualified_search(&self) -> &[String] {
        &self.unqualified_search
    }

    /// All fully qualified references a name may mean, in the order they are to be tried; never empty.
    ///
    /// A name with a registry means itself. A short name means its alias if it has one, else one reference for each
    /// search registry; more than one is an error in enforcing mode. Source: CRI-O pulls without a terminal.
    pub fn candidates(&self, name: &str) -> Result<Vec<Reference>, CandidatesError> {
        let wrong = |source| CandidatesError::Name { name: name.to_owned(), source };
        let parts = Parts::split(name).map_err(wrong)?;
        if parts.domain.is_some() {
            return Reference::parse(name).map(|reference| vec![reference]).map_err(wrong);
        }
        let qualify = |by: &str, repository: &str| {
            Reference::with_repository(repository, parts.selector()).map_err(|source| CandidatesError::Rewritten {
                name: name.to_owned(),
                by: by.to_owned(),
                source,
            })
        };
        if let Some(alias) = self.aliases.get(parts.path) {
            return qualify("alias", alias).map(|reference| vec![reference]);
        }
        match (self.unqualified_search.len(), self.short_name_mode) {
            (0, _) => Err(CandidatesError::NoRegistries { name: name.to_owned(), files: self.main_file.clone() }),
            (2.., ShortNameMode::Enforcing) => Err(CandidatesError::Ambiguous { name: name.to_owned() }),
            _ => self
                .unqualified_search
                .iter()
                .map(|registry| qualify(registry, &format!("{registry}/{}", parts.path)))
                .collect(),
        }
    }

    /// The entry for a reference: the one that matches most of it.
    #[must_use]
    pub fn find_entry(&self, reference: &Reference) -> Option<&RegistryEntry> {
        let text = reference.to_string();
        let matched = self.entries.iter().filter_map(|entry| {
            let length = matched_length(&text, &entry.prefix)?;
            // Of entries matching equally much, an exact one wins over a wildcard, a narrower wildcard over a wider.
            Some(((length, !entry.prefix.starts_with("*."), entry.prefix.len()), entry))
        });
        matched.max_by_key(|(rank, _)| *rank).map(|(_, entry)| entry)
    }

    /// Where to ask for a reference, in order: mirrors first, the registry (or its location) last.
    pub fn endpoints(&self, reference: &Reference) -> Result<Vec<PullEndpoint>, EndpointError> {
        let Some(entry) = self.find_entry(reference) else {
            return Ok(vec![PullEndpoint { reference: reference.clone(), transport: Transport::Verified }]);
        };
        if entry.is_blocked {
            return Err(EndpointError::Blocked { prefix: entry.prefix.clone() });
        }
        let is_by_digest = reference.digest().is_some();
        let mirrors = entry.mirrors.iter().filter(|mirror| match mirror.pull_from {
            PullFromMirror::All => true,
            PullFromMirror::DigestOnly => is_by_digest,
            PullFromMirror::TagOnly => !is_by_digest,
        });
        mirrors
            .map(|mirror| (&mirror.location, mirror.transport))
            .chain([(&entry.location, entry.transport)])
            .map(|(location, transport)| {
                let reference = rewrite(reference, &entry.prefix, location)
                    .map_err(|source| EndpointError::Location { location: location.clone(), source })?;
                Ok(PullEndpoint { reference, transport })
            })
            .collect()
    }
}

/// Bytes of `reference` that `prefix` covers; a prefix ends at a boundary of the reference's parts.
fn matched_length(reference: &str, prefix: &str) -> Option<usize> {
    let is_boundary = |rest: &str| rest.is_empty() || rest.starts_with(['/', ':', '@']);
    match prefix.strip_prefix('*') {
        None => reference.strip_prefix(prefix).filter(|rest| is_boundary(rest)).map(|_| prefix.len()),
        Some(suffix) => {
            // The wildcard stands for at least one label of the host; the suffix may name a port.
            let host_and_port = reference.split('/').next().unwrap_or_default();
            let host = host_and_port.split(':').next().unwrap_or_default();
            [host_and_port, host]
                .into_iter()
                .find(|host| host.len() > suffix.len() && host.ends_with(suffix))
                .map(str::len)
        }
    }
}

fn rewrite(reference: &Reference, prefix: &str, location: &str) -> Result<Reference, ParseReferenceError> {
    if location.is_empty() || location == prefix {
        return Ok(reference.clone());
    }
    let text = reference.to_string();
    let Some(length) = matched_length(&text, prefix) else { return Ok(reference.clone()) };
    let (matched, rest) = text.split_at(length);
    // `*.a.example` -> `*.b.example` keeps what the star stood for.
    let replaced = match (prefix.strip_prefix('*'), location.strip_prefix('*')) {
        (Some(old), Some(new)) => format!("{}{new}", matched.strip_suffix(old).unwrap_or(matched)),
        _ => location.to_owned(),
    };
    Reference::parse(&format!("{replaced}{rest}"))
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
