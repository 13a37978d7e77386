//! Reading registries.conf and its drop-ins.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use thiserror::Error;

use super::{MirrorEntry, PullFromMirror, Registries, RegistriesOptions, RegistryEntry, ShortNameMode, Transport};
use crate::reference::Parts;

/// The pseudo helper that stands for the auth files.
pub(crate) const AUTH_FILE_HELPER: &str = "containers-auth.json";
/// Largest file that is read; a list of a thousand registries is 100 KB.
const FILE_MAX_BYTES: u64 = 4 << 20;
/// Most drop-in files: more is a mistake, such as a directory of something else.
const DROP_INS_MAX: usize = 1024;

/// Why registries.conf cannot be used. Nothing is used then; a reload keeps what it had.
#[derive(Debug, Error)]
pub enum RegistriesError {
    /// A file or the directory cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The cause.
        #[source]
        source: io::Error,
    },
    /// Larger than any real file.
    #[error("{} exceeds the limit of {limit}", path.display())]
    TooLarge {
        /// The file or directory.
        path: PathBuf,
        /// Bytes, or files.
        limit: u64,
    },
    /// Not TOML, or a value of the wrong type.
    #[error("parse {}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// The cause, with line and column.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// Values that contradict each other or the manual page; all of one file.
    #[error("invalid {}: {}", path.display(), problems.join("; "))]
    Invalid {
        /// The file.
        path: PathBuf,
        /// One a line.
        problems: Vec<String>,
    },
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawFile {
    unqualified_search_registries: Option<Vec<String>>,
    short_name_mode: Option<String>,
    credential_helpers: Option<Vec<String>>,
    #[serde(default)]
    registry: Vec<RawRegistry>,
    aliases: Option<BTreeMap<String, String>>,
    registries: Option<RawVersion1>,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawRegistry {
    #[serde(default)]
    prefix: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror_by_digest_only: bool,
    #[serde(default)]
    mirror: Vec<RawMirror>,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct RawMirror {
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
struct RawVersion1 {
    #[serde(default)]
    search: RawList,
    #[serde(default)]
    insecure: RawList,
    #[serde(default)]
    block: RawList,
    #[serde(flatten)]
    unknown: toml::Table,
}

#[derive(Debug, Default, Deserialize)]
struct RawList {
    #[serde(default)]
    registries: Vec<String>,
    #[serde(flatten)]
    unknown: toml::Table,
}

/// What one file says, checked.
#[derive(Debug, Default)]
struct Layer {
    unqualified_search: Option<Vec<String>>,
    short_name_mode: Option<ShortNameMode>,
    credential_helpers: Option<Vec<String>>,
    entries: Vec<RegistryEntry>,
    aliases: BTreeMap<String, String>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    Main,
    DropIn,
}

pub(super) fn load(options: &RegistriesOptions) -> Result<(Registries, Vec<String>), RegistriesError> {
    let mut registries = Registries::default();
    let mut warnings = Vec::new();
    for path in &options.main_files {
        let Some(text) = read(path)? else { continue };
        registries.main_file = path.display().to_string();
        merge(&mut registries, parse(path, &text, Place::Main, &mut warnings)?);
        break;
    }
    for path in drop_ins(options.drop_in_directory.as_deref())? {
        let Some(text) = read(&path)? else { continue };
        merge(&mut registries, parse(&path, &text, Place::DropIn, &mut warnings)?);
    }
    if let Some(path) = &options.alias_cache
        && let Some(text) = read(path)?
    {
        let cache = parse(path, &text, Place::DropIn, &mut warnings)?;
        merge_aliases(&mut registries.aliases, cache.aliases);
    }
    if let Some(mode) = options.short_name_mode {
        registries.short_name_mode = mode;
    }
    Ok((registries, warnings))
}

/// Parses the text of one main file by itself. The second value is warnings.
pub fn parse_registries(text: &str) -> Result<(Registries, Vec<String>), RegistriesError> {
    let mut registries = Registries::default();
    let mut warnings = Vec::new();
    merge(&mut registries, parse(Path::new(super::MAIN_FILE), text, Place::Main, &mut warnings)?);
    Ok((registries, warnings))
}

fn read(path: &Path) -> Result<Option<String>, RegistriesError> {
    let wrong = |source| RegistriesError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(error)),
    };
    let mut text = String::new();
    file.take(FILE_MAX_BYTES + 1).read_to_string(&mut text).map_err(wrong)?;
    if text.len() as u64 > FILE_MAX_BYTES {
        return Err(RegistriesError::TooLarge { path: path.to_owned(), limit: FILE_MAX_BYTES });
    }
    Ok(Some(text))
}

fn drop_ins(directory: Option<&Path>) -> Result<Vec<PathBuf>, RegistriesError> {
    let Some(directory) = directory else { return Ok(Vec::new()) };
    let wrong = |source| RegistriesError::Read { path: directory.to_owned(), source };
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(wrong(error)),
    };
    let mut paths = Vec::new();
    for entry in entries {
        let path = entry.map_err(wrong)?.path();
        if path.extension().is_some_and(|extension| extension == "conf") && path.is_file() {
            paths.push(path);
        }
        if paths.len() > DROP_INS_MAX {
            return Err(RegistriesError::TooLarge { path: directory.to_owned(), limit: DROP_INS_MAX as u64 });
        }
    }
    paths.sort();
    Ok(paths)
}

fn merge(registries: &mut Registries, layer: Layer) {
    if let Some(search) = layer.unqualified_search {
        registries.unqualified_search = search;
    }
    if let Some(mode) = layer.short_name_mode {
        registries.short_name_mode = mode;
    }
    if let Some(helpers) = layer.credential_helpers {
        registries.credential_helpers = helpers;
    }
    for entry in layer.entries {
        // A later file replaces the table of the same prefix as a whole.
        registries.entries.retain(|known| known.prefix != entry.prefix);
        registries.entries.push(entry);
    }
    merge_aliases(&mut registries.aliases, layer.aliases);
}

fn merge_aliases(aliases: &mut BTreeMap<String, String>, layer: BTreeMap<String, String>) {
    for (name, target) in layer {
        // An empty target takes an alias of an earlier file away.
        if target.is_empty() {
            aliases.remove(&name)
        } else {
            aliases.insert(name, target)
        };
    }
}

fn parse(path: &Path, text: &str, place: Place, warnings: &mut Vec<String>) -> Result<Layer, RegistriesError> {
    let raw: RawFile = toml::from_str(text)
        .map_err(|source| RegistriesError::Parse { path: path.to_owned(), source: Box::new(source) })?;
    let mut check = Check { path, problems: Vec::new(), warnings };
    check.unknown("", &raw.unknown);
    let layer = check.layer(raw, place);
    match check.problems {
        problems if problems.is_empty() => Ok(layer),
        problems => Err(RegistriesError::Invalid { path: path.to_owned(), problems }),
    }
}

struct Check<'a> {
    path: &'a Path,
    problems: Vec<String>,
    warnings: &'a mut Vec<String>,
}

impl Check<'_> {
    fn unknown(&mut self, table: &str, unknown: &toml::Table) {
        for key in unknown.keys() {
            self.warnings.push(format!("{}: key {table}{key} is not known and has no effect", self.path.display()));
        }
    }

    fn layer(&mut self, raw: RawFile, place: Place) -> Layer {
        let is_version_2 = raw.unqualified_search_registries.is_some()
            || raw.short_name_mode.is_some()
            || raw.credential_helpers.is_some()
            || raw.aliases.is_some()
            || !raw.registry.is_empty();
        let mut layer = Layer::default();
        if let Some(old) = raw.registries {
            if is_version_2 {
                self.problems.push("mixing sysregistry v1/v2 is not supported".to_owned());
            } else if place == Place::DropIn {
                self.problems.push("version 1 tables are not allowed in a drop-in".to_owned());
            } else {
                layer = self.version_1(&old);
            }
            return layer;
        }
        layer.unqualified_search = raw.unqualified_search_registries.map(|list| {
            list.into_iter().filter_map(|registry| self.location("unqualified-search-registries", &registry)).collect()
        });
        layer.short_name_mode = raw.short_name_mode.and_then(|mode| {
            let parsed = ShortNameMode::parse(&mode);
            if parsed.is_none() {
                self.problems.push(format!("invalid short-name mode: {mode:?}"));
            }
            parsed
        });
        layer.credential_helpers = raw.credential_helpers;
        for registry in raw.registry {
            let Some(entry) = self.registry(registry) else { continue };
            match layer.entries.iter().find(|known| known.prefix == entry.prefix) {
                Some(known) if *known != entry => {
                    self.problems.push(format!("registry {:?} is defined twice, differently", entry.prefix));
                }
                Some(_) => {}
                None => layer.entries.push(entry),
            }
        }
        for (name, target) in raw.aliases.unwrap_or_default() {
            if self.is_alias(&name, &target) {
                layer.aliases.insert(name, target);
            }
        }
        layer
    }

    fn version_1(&mut self, old: &RawVersion1) -> Layer {
        self.unknown("registries.", &old.unknown);
        for (name, list) in [("search", &old.search), ("insecure", &old.insecure), ("block", &old.block)] {
            self.unknown(&format!("registries.{name}."), &list.unknown);
        }
        let mut list = |key, list: &RawList| -> Vec<String> {
            list.registries.iter().filter_map(|registry| self.location(key, registry)).collect()
        };
        let search = list("registries.search", &old.search);
        let insecure: BTreeSet<String> = list("registries.insecure", &old.insecure).into_iter().collect();
        let blocked: BTreeSet<String> = list("registries.block", &old.block).into_iter().collect();
        let entries = insecure.union(&blocked).map(|registry| RegistryEntry {
            prefix: registry.clone(),
            location: registry.clone(),
            transport: if insecure.contains(registry) { Transport::Insecure } else { Transport::Verified },
            is_blocked: blocked.contains(registry),
            mirrors: Vec::new(),
        });
        Layer { entries: entries.collect(), unqualified_search: Some(search), ..Layer::default() }
    }

    /// Checks the form of a location and drops trailing slashes.
    fn location(&mut self, key: &str, location: &str) -> Option<String> {
        let trimmed = location.trim_end_matches('/');
        let problem = if trimmed.is_empty() {
            Some("is empty")
        } else if trimmed.contains("://") {
            Some("must not have a scheme")
        } else if trimmed.chars().any(|c| c.is_whitespace() || c.is_control()) {
            Some("contains white space")
        } else if trimmed.strip_prefix("*.").unwrap_or(trimmed).contains('*') {
            Some("may begin with \"*.\" but not contain another \"*\"")
        } else {
            None
        };
        match problem {
            Some(problem) => {
                self.problems.push(format!("{key} {location:?} {problem}"));
                None
            }
            None => Some(trimmed.to_owned()),
        }
    }

    fn registry(&mut self, raw: RawRegistry) -> Option<RegistryEntry> {
        self.unknown("registry.", &raw.unknown);
        let prefix = if raw.prefix.is_empty() { &raw.location } else { &raw.prefix };
        let prefix = self.location("registry.prefix", prefix)?;
        let is_wildcard = prefix.starts_with("*.");
        let location = match raw.location.as_str() {
            "" if is_wildcard => String::new(),
            "" => {
                self.problems.push(format!(
                    "registry {prefix:?}: location is unset and prefix is not in the format: *.example.com"
                ));
                return None;
            }
            location => self.location("registry.location", location)?,
        };
        if location.starts_with("*.") && !is_wildcard {
            self.problems.push(format!("registry {prefix:?}: location is a wildcard but prefix is none"));
        }
        let mut mirrors = Vec::new();
        for mirror in raw.mirror {
            mirrors.extend(self.mirror(&prefix, mirror, raw.mirror_by_digest_only));
        }
        let transport = if raw.insecure { Transport::Insecure } else { Transport::Verified };
        Some(RegistryEntry { prefix, location, transport, is_blocked: raw.blocked, mirrors })
    }

    fn mirror(&mut self, prefix: &str, raw: RawMirror, is_by_digest_only: bool) -> Option<MirrorEntry> {
        self.unknown("registry.mirror.", &raw.unknown);
        let location = self.location("registry.mirror.location", &raw.location)?;
        if location.starts_with("*.") && !prefix.starts_with("*.") {
            self.problems.push(format!("registry {prefix:?}: a mirror is a wildcard but prefix is none"));
        }
        if is_by_digest_only && !raw.pull_from_mirror.is_empty() {
            self.problems.push(format!(
                "registry {prefix:?}: cannot set mirror usage mirror-by-digest-only for the registry and \
                 pull-from-mirror for its mirror {location:?}"
            ));
        }
        let pull_from = match raw.pull_from_mirror.as_str() {
            "" if is_by_digest_only => PullFromMirror::DigestOnly,
            "" | "all" => PullFromMirror::All,
            "digest-only" => PullFromMirror::DigestOnly,
            "tag-only" => PullFromMirror::TagOnly,
            other => {
                self.problems.push(format!("unsupported pull-from-mirror value {other:?} for mirror {location:?}"));
                return None;
            }
        };
        let transport = if raw.insecure { Transport::Insecure } else { Transport::Verified };
        Some(MirrorEntry { location, transport, pull_from })
    }

    fn is_alias(&mut self, name: &str, target: &str) -> bool {
        let is_short_name = Parts::split(name).is_ok_and(|parts| parts.domain.is_none() && parts.path == name);
        // A full name has a registry and neither tag nor digest.
        let is_full_name = target.is_empty()
            || Parts::split(target).is_ok_and(|parts| {
                parts.domain.is_some_and(|domain| target.len() == domain.len() + 1 + parts.path.len())
            });
        if !is_short_name {
            self.problems.push(format!("invalid alias name {name:?}: a name without registry, tag and digest"));
        }
        if !is_full_name {
            self.problems.push(format!("invalid alias {name:?} = {target:?}: a name with registry, without tag"));
        }
        is_short_name && is_full_name
    }
}
