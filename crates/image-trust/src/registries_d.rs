//! Where signatures of a registry's images are. Source: containers-registries.d(5).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use domain::digest::Digest;
use serde_json::{Map, Value};
use thiserror::Error;

use crate::files::read_bounded;
use crate::name::Name;
use crate::policy::scope::docker_scopes;
use crate::signature::SIGNATURES_MAX;

/// The directory of the machine.
const SYSTEM_DIRECTORY: &str = "/etc/containers/registries.d";
/// Where signatures are when no file says so.
const DEFAULT_LOOKASIDE: &str = "file:///var/lib/containers/sigstore";
/// Largest file, and most of them: a file per registry of a large site.
const FILE_MAX_BYTES: usize = 1 << 20;
const FILES_MAX: usize = 1024;

/// Why it cannot be told where signatures are.
#[derive(Debug, Error)]
pub enum RegistriesDError {
    /// The directory.
    #[error("read {path}")]
    Read {
        /// Which.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// A file cannot be read.
    #[error(transparent)]
    File(#[from] crate::files::FileError),
    /// A file is damaged.
    #[error("parsing {path}: {reason}")]
    Parse {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// Two files speak of the same registry.
    #[error("{what} is defined both in {first} and {second}")]
    Conflict {
        /// The namespace, or the default.
        what: String,
        /// One file.
        first: PathBuf,
        /// The other.
        second: PathBuf,
    },
    /// More files than are sensible.
    #[error("{path} has more than {FILES_MAX} files")]
    TooMany {
        /// The directory.
        path: PathBuf,
    },
    /// An address nothing can be read from.
    #[error("lookaside {url:?} for {name}: {reason}")]
    Lookaside {
        /// As configured.
        url: String,
        /// The image.
        name: String,
        /// What is wrong.
        reason: &'static str,
    },
}

/// What one section says; what it leaves open, wider ones may say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Section {
    lookaside: Option<String>,
    use_attachments: Option<bool>,
}

/// All files of the directory together.
#[derive(Debug, Clone, Default)]
pub struct RegistriesD {
    default: Option<(PathBuf, Section)>,
    docker: BTreeMap<String, (PathBuf, Section)>,
}

/// Where signatures of one image's manifests are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureSources {
    /// The lookaside's address with the repository behind it.
    base: String,
    /// Whether sigstore's attachments are looked for in the repository itself.
    pub use_attachments: bool,
}

/// One address of a lookaside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LookasideUrl {
    /// On this machine.
    File(PathBuf),
    /// `http:` or `https:`, as written.
    Web(String),
}

impl RegistriesD {
    /// Reads the files: those of `home`'s `.config/containers/registries.d` if that is there, else the machine's.
    /// A directory that is missing is empty. Blocking.
    pub fn load(home: Option<&Path>) -> Result<Self, RegistriesDError> {
        let of_home = home.map(|home| home.join(".config/containers/registries.d")).filter(|path| path.exists());
        Self::load_directory(&of_home.unwrap_or_else(|| SYSTEM_DIRECTORY.into()))
    }

    fn load_directory(directory: &Path) -> Result<Self, RegistriesDError> {
        let failed = |source| RegistriesDError::Read { path: directory.to_owned(), source };
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            entries => entries.map_err(failed)?,
        };
        let mut merged = Self::default();
        for (count, entry) in entries.enumerate() {
            let path = entry.map_err(failed)?.path();
            if count >= FILES_MAX {
                return Err(RegistriesDError::TooMany { path: directory.to_owned() });
            }
            if path.extension().is_none_or(|extension| extension != "yaml") {
                continue;
            }
            let bytes = read_bounded(&path, FILE_MAX_BYTES)?;
            let file = parse(&bytes).map_err(|reason| RegistriesDError::Parse { path: path.clone(), reason })?;
            merged.merge(file, &path)?;
        }
        Ok(merged)
    }

    fn merge(&mut self, file: Sections, path: &Path) -> Result<(), RegistriesDError> {
        let conflict = |what: &str, first: &Path| RegistriesDError::Conflict {
            what: what.to_owned(),
            first: first.to_owned(),
            second: path.to_owned(),
        };
        if let Some(section) = file.default {
            if let Some((first, _)) = &self.default {
                return Err(conflict("default-docker", first));
            }
            self.default = Some((path.to_owned(), section));
        }
        for (scope, section) in file.docker {
            if let Some((first, _)) = self.docker.get(&scope) {
                return Err(conflict(&format!("docker namespace {scope:?}"), first));
            }
            self.docker.insert(scope, (path.to_owned(), section));
        }
        Ok(())
    }

    /// Where signatures of an image are; `name` is the one that is really asked for, at a mirror if need be.
    #[must_use]
    pub fn sources(&self, name: &Name) -> SignatureSources {
        let scopes = docker_scopes(name);
        let sections = scopes.iter().filter_map(|scope| self.docker.get(scope)).chain(&self.default);
        let sections: Vec<&Section> = sections.map(|(_, section)| section).collect();
        let lookaside = sections.iter().find_map(|section| section.lookaside.as_deref());
        let base = lookaside.unwrap_or(DEFAULT_LOOKASIDE);
        SignatureSources {
            base: format!("{}/{}", base, name.path()),
            use_attachments: sections.iter().find_map(|section| section.use_attachments).unwrap_or(false),
        }
    }
}

impl SignatureSources {
    /// Addresses of a manifest's signatures, to be read until one is missing.
    pub fn lookaside(&self, manifest: &Digest) -> Result<Vec<LookasideUrl>, RegistriesDError> {
        let numbers = 1..=SIGNATURES_MAX;
        numbers.map(|number| self.address(&format!("@sha256={}/signature-{number}", manifest.hex()))).collect()
    }

    fn address(&self, end: &str) -> Result<LookasideUrl, RegistriesDError> {
        let wrong = |reason| RegistriesDError::Lookaside { url: self.base.clone(), name: end.to_owned(), reason };
        if let Some(path) = self.base.strip_prefix("file:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if !path.starts_with('/') {
                return Err(wrong("a file's address needs an absolute path"));
            }
            let path = decode_percent(path).ok_or_else(|| wrong("damaged percent encoding"))?;
            return Ok(LookasideUrl::File(format!("{path}{end}").into()));
        }
        match self.base.split_once("://") {
            Some(("http" | "https", rest)) if rest.contains(['?', '#']) => {
                Err(wrong("query and fragment are not supported"))
            }
            Some(("http" | "https", _)) => Ok(LookasideUrl::Web(format!("{}{end}", self.base))),
            _ => Err(wrong("only file:, http: and https: are supported")),
        }
    }
}

fn decode_percent(text: &str) -> Option<String> {
    let mut bytes = Vec::new();
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let (high, low) = (char::from(rest.next()?).to_digit(16)?, char::from(rest.next()?).to_digit(16)?);
        bytes.push(u8::try_from(high * 16 + low).ok()?);
    }
    String::from_utf8(bytes).ok().filter(|text| !text.contains('\0'))
}

/// One file.
#[derive(Debug, Default)]
pub(crate) struct Sections {
    default: Option<Section>,
    docker: BTreeMap<String, Section>,
}

/// Unknown keys are skipped, as by everyone who reads these files.
pub(crate) fn parse(bytes: &[u8]) -> Result<Sections, String> {
    let text = std::str::from_utf8(bytes).map_err(|error| error.to_string())?;
    let document = yaml::parse(text).map_err(|error| error.to_string())?;
    let mut sections = Sections::default();
    let Some(document) = mapping(document, "the document")? else { return Ok(sections) };
    for (key, value) in document {
        match key.as_str() {
            "default-docker" => sections.default = mapping(value, &key)?.map(section).transpose()?,
            "docker" => {
                for (scope, value) in mapping(value, &key)?.unwrap_or_default() {
                    let section = section(mapping(value, &scope)?.unwrap_or_default())?;
                    sections.docker.insert(scope, section);
                }
            }
            _ => {}
        }
    }
    Ok(sections)
}

fn mapping(value: Value, what: &str) -> Result<Option<Map<String, Value>>, String> {
    match value {
        Value::Null => Ok(None),
        Value::Object(map) => Ok(Some(map)),
        _ => Err(format!("{what} must be a mapping")),
    }
}

fn section(map: Map<String, Value>) -> Result<Section, String> {
    let text = |key: &str| match map.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        Some(_) => Err(format!("{key} must be a text")),
    };
    // Signatures are only read here, but a file that is wrong for those who write must be told of, too.
    text("lookaside-staging")?;
    text("sigstore-staging")?;
    let use_attachments = match map.get("use-sigstore-attachments") {
        None | Some(Value::Null) => None,
        Some(Value::Bool(value)) => Some(*value),
        Some(_) => return Err("use-sigstore-attachments must be true or false".to_owned()),
    };
    let old = text("sigstore")?;
    Ok(Section { lookaside: text("lookaside")?.or(old), use_attachments })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(files: &[(&str, &str)]) -> Result<RegistriesD, RegistriesDError> {
        let root = tempfile::tempdir().expect("makes a directory");
        for (name, text) in files {
            let mut file = fs::File::create(root.path().join(name)).expect("makes a file");
            io::Write::write_all(&mut file, text.as_bytes()).expect("writes");
        }
        RegistriesD::load_directory(root.path())
    }

    #[test]
    fn the_narrowest_section_that_speaks_counts() {
        let merged = load(&[
            ("a.yaml", "default-docker:\n  sigstore: file:///default\n  use-sigstore-attachments: true\n"),
            (
                "b.yaml",
                "docker:\n  q.io:\n    lookaside: https://host/x\n    sigstore: https://old\n  q.io/a/b:\n    use-sigstore-attachments: false\n  '*.example.com':\n    lookaside-staging: file:///s\n",
            ),
            ("ignored.conf", "{"),
        ])
        .expect("loads");
        for (name, base, use_attachments) in [
            ("q.io/a/b:1", "https://host/x/a/b", false),
            ("q.io/c:1", "https://host/x/c", true),
            ("r.example.com/c:1", "file:///default/c", true),
            ("busybox:1", "file:///default/library/busybox", true),
        ] {
            let found = merged.sources(&Name::parse(name).expect("parses"));
            assert_eq!(found, SignatureSources { base: base.to_owned(), use_attachments }, "{name}");
        }
        let none = load(&[]).expect("loads").sources(&Name::parse("q.io/a:1").expect("parses"));
        assert_eq!(none.base, "file:///var/lib/containers/sigstore/a");
        assert!(!none.use_attachments);
    }

    #[test]
    fn conflicts_and_wrong_types_are_errors() {
        let section = "docker:\n  q.io:\n    lookaside: https://a\n";
        for files in [
            &[("a.yaml", section), ("b.yaml", section)][..],
            &[("a.yaml", "default-docker: {}\n"), ("b.yaml", "default-docker: {}\n")],
            &[("a.yaml", "docker: [1]\n")],
            &[("a.yaml", "docker:\n  q.io: text\n")],
            &[("a.yaml", "docker:\n  q.io:\n    lookaside: 1\n")],
            &[("a.yaml", "docker:\n  q.io:\n    use-sigstore-attachments: 1\n")],
            &[("a.yaml", "docker:\n  q.io: {}\n  q.io: {}\n")],
            &[("a.yaml", "docker: [\n")],
        ] {
            assert!(load(files).is_err(), "{files:?}");
        }
    }

    #[test]
    fn addresses_are_counted_from_one() {
        let digest = Digest::from_sha256(&[0xab; 32]);
        let end = format!("@sha256={}/signature-1", "ab".repeat(32));
        for (base, expected) in [
            ("file:///s/a", Some(LookasideUrl::File(format!("/s/a{end}").into()))),
            ("file:/s%20x/a", Some(LookasideUrl::File(format!("/s x/a{end}").into()))),
            ("https://h/s/a", Some(LookasideUrl::Web(format!("https://h/s/a{end}")))),
            ("http://h:1/a", Some(LookasideUrl::Web(format!("http://h:1/a{end}")))),
            ("file:relative/a", None),
            ("file:///s%/a", None),
            ("https://h/s?x=/a", None),
            ("ftp://h/a", None),
            ("/s/a", None),
        ] {
            let sources = SignatureSources { base: base.to_owned(), use_attachments: false };
            let found = sources.lookaside(&digest).ok();
            assert_eq!(found.as_ref().and_then(|list| list.first()), expected.as_ref(), "{base}");
            assert!(found.is_none_or(|list| list.len() == SIGNATURES_MAX));
        }
    }
}
