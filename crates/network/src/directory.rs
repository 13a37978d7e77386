//! The configuration directory: which networks it describes that can really be used.

use std::collections::HashMap;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use thiserror::Error;
use tokio::time::Instant;

use crate::cache::read_at_most;
use crate::config::{CONFIG_MAX_BYTES, ConfigError, NetworkList};
use crate::plugin::{Environment, PluginError, PluginPath, Verb};
use crate::version::Version;

/// How long a plugin may take to tell its versions: it only prints a constant.
const VERSION_LIMIT: Duration = Duration::from_secs(5);
/// Most files looked at: a directory has a handful.
const FILES_MAX: usize = 1000;

/// Why a file is skipped.
#[derive(Debug, Error)]
enum SkipError {
    #[error("read")]
    Read(#[source] io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error("ask plugin {kind:?} for its versions")]
    Plugin {
        kind: String,
        #[source]
        source: PluginError,
    },
    #[error("plugins do not support config version {0}")]
    Versions(String),
}

/// Every usable network, the first of a name only, in the order of files.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    usable: Vec<Arc<NetworkList>>,
    /// Each file that is no use, and why.
    skipped: Vec<String>,
}

impl Networks {
    pub(crate) fn first(&self) -> Option<&Arc<NetworkList>> {
        self.usable.first()
    }

    pub(crate) fn skipped(&self) -> &[String] {
        &self.skipped
    }

    pub(crate) fn find(&self, name: &str) -> Option<&Arc<NetworkList>> {
        self.usable.iter().find(|list| list.name == name)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<NetworkList>> {
        self.usable.iter()
    }
}

/// What a plugin file was when it was asked for its versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> Option<Self> {
        let data = path.metadata().ok()?;
        Some(Self {
            device: data.dev(),
            inode: data.ino(),
            size: data.size(),
            modified: (data.mtime(), data.mtime_nsec()),
        })
    }
}

/// Reads directories, remembering what plugins said about themselves, so that a reload executes only new ones.
#[derive(Debug, Default)]
pub(crate) struct Loader {
    versions: HashMap<PathBuf, (Stamp, Vec<Version>)>,
}

impl Loader {
    /// Never fails: what cannot be used is logged and left out. A missing directory has no networks.
    pub(crate) async fn load(&mut self, dir: &Path, plugins: &PluginPath) -> Networks {
        let mut networks = Networks::default();
        for path in files(dir, &["conf", "conflist", "json"]) {
            match self.load_file(&path, plugins).await {
                Ok(list) if networks.find(&list.name).is_some() => {
                    tracing::info!(file = %path.display(), network = list.name, "ignoring a second network of the name");
                }
                Ok(list) => networks.usable.push(Arc::new(list)),
                Err(SkipError::Read(error)) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    let reason = chain(&error);
                    tracing::warn!(file = %path.display(), reason, "skipping a CNI configuration file");
                    networks.skipped.push(format!("{}: {reason}", path.display()));
                }
            }
        }
        self.versions.retain(|path, (stamp, _)| Stamp::of(path) == Some(*stamp));
        networks
    }

    async fn load_file(&mut self, path: &Path, plugins: &PluginPath) -> Result<NetworkList, SkipError> {
        let text = read_at_most(path, CONFIG_MAX_BYTES).map_err(SkipError::Read)?;
        let file_name = path.file_name().unwrap_or_default().to_string_lossy();
        let mut list = if path.extension().is_some_and(|extension| extension == "conflist") {
            NetworkList::parse(&text, &file_name)?
        } else {
            NetworkList::parse_single(&text, &file_name)?
        };
        if !list.only_inlined
            && let Some(dir) = path.parent()
        {
            for path in files(&dir.join(&list.name), &["conf"]) {
                list.extend(&read_at_most(&path, CONFIG_MAX_BYTES).map_err(SkipError::Read)?)?;
            }
        }
        if list.plugins.is_empty() {
            return Err(ConfigError::NoPlugins.into());
        }
        self.choose_version(&mut list, plugins).await?;
        Ok(list)
    }

    /// The newest version that the configuration offers and every plugin supports.
    async fn choose_version(&mut self, list: &mut NetworkList, plugins: &PluginPath) -> Result<(), SkipError> {
        let mut common = list.offered.clone();
        for plugin in &list.plugins {
            let failed = |source| SkipError::Plugin { kind: plugin.kind.clone(), source };
            let supported = self.supported(&plugin.kind, plugins).await.map_err(failed)?;
            common.retain(|version| supported.contains(version));
        }
        let offered = || list.offered.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
        list.version = *common.first().ok_or_else(|| SkipError::Versions(offered()))?;
        Ok(())
    }

    async fn supported(&mut self, kind: &str, plugins: &PluginPath) -> Result<Vec<Version>, PluginError> {
        let path = plugins.find(kind)?;
        let stamp = Stamp::of(&path);
        if let Some((known, versions)) = self.versions.get(&path)
            && stamp == Some(*known)
        {
            return Ok(versions.clone());
        }
        let versions = ask_versions(kind, plugins).await?;
        if let Some(stamp) = stamp {
            self.versions.insert(path, (stamp, versions.clone()));
        }
        Ok(versions)
    }
}

/// VERSION. Plugins from before it was invented check the other variables, so they get some; one that does not know
/// the command is of version 0.1.0. Source: CNI specification, "VERSION".
async fn ask_versions(kind: &str, plugins: &PluginPath) -> Result<Vec<Version>, PluginError> {
    #[derive(Deserialize)]
    struct Answer {
        #[serde(rename = "supportedVersions", default)]
        supported: Vec<String>,
    }
    let environment =
        Environment { container_id: None, netns: Some(Path::new("dummy")), ifname: Some("dummy"), args: None };
    let input = format!(r#"{{"cniVersion":"{}"}}"#, Version::CURRENT);
    let deadline = Instant::now() + VERSION_LIMIT;
    match plugins.call(kind, Verb::Version, &environment, input.as_bytes(), deadline).await {
        Ok(output) => {
            let supported =
                serde_json::from_slice(&output).map_or_else(|_| Vec::new(), |answer: Answer| answer.supported);
            let versions: Vec<Version> = supported.iter().filter_map(|text| Version::parse(text)).collect();
            Ok(if versions.is_empty() { vec![Version::FIRST] } else { versions })
        }
        Err(PluginError::Reported(report)) if report.msg.contains("unknown CNI_COMMAND") => Ok(vec![Version::FIRST]),
        Err(error) => Err(error),
    }
}

/// Files of a directory with one of the extensions, sorted by name; none when it is missing.
fn files(dir: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let listing = match std::fs::read_dir(dir) {
        Ok(listing) => listing,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(dir = %dir.display(), %error, "cannot read CNI configuration");
            }
            return Vec::new();
        }
    };
    let has_extension = |path: &PathBuf| {
        path.extension().and_then(|extension| extension.to_str()).is_some_and(|text| extensions.contains(&text))
    };
    let is_directory = |path: &PathBuf| path.symlink_metadata().is_ok_and(|data| data.is_dir());
    let mut files: Vec<PathBuf> = listing
        .flatten()
        .map(|file| file.path())
        .filter(|path| has_extension(path) && !is_directory(path))
        .take(FILES_MAX)
        .collect();
    files.sort_unstable();
    files
}

/// An error and its causes in one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        // A transparent wrapper shows its cause's text already.
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
