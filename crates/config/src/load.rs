//! From sources to a checked configuration: layers are merged raw, then each value is judged once.

use std::collections::BTreeMap;
use std::path::PathBuf;

use crate::codec::Raw;
use crate::document::{Layer, Located, RawEntry, RawTable};
use crate::effect;
use crate::handler::{DEFAULT_RUNTIME, RuntimeHandler, Workload, WorkloadResources};
use crate::key::Key;
use crate::keys;
use crate::model::Config;
use crate::problem::{ConfigErrors, Origin, Problem, SourceFile, Warning, WarningKind};
use crate::settle;
use crate::sources::Sources;
use crate::{document, storage_conf};

/// A configuration and what there is to say about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// The checked configuration.
    pub config: Config,
    /// The built-in values with those of `storage.conf`: what counts as default when the configuration is printed.
    pub defaults: Config,
    /// What the operator should know, in the order of the files.
    pub warnings: Vec<Warning>,
    /// The files it came from, in order of precedence (last wins).
    pub sources: Vec<PathBuf>,
}

/// Makes a checked configuration of the sources, or reports everything that is wrong with them.
///
/// Pure: touches neither files nor environment, and never panics whatever the bytes are.
/// Errors: all problems of all files together, with file, line and key.
pub fn load(sources: &Sources) -> Result<Loaded, ConfigErrors> {
    let judged = judge(sources);
    ConfigErrors::from_problems(judged.problems)?;
    let files = sources.storage.iter().chain(&sources.files).map(|file| file.path.clone()).collect();
    Ok(Loaded { config: judged.config, defaults: judged.defaults, warnings: judged.warnings, sources: files })
}

/// Fuzz entry point: any bytes as `crio.conf`, as a drop-in over it and as `storage.conf`.
///
/// Whatever comes out as a configuration must survive being printed and read again.
pub fn fuzz(bytes: &[u8]) {
    let file = || SourceFile { path: "fuzz.conf".into(), bytes: bytes.to_vec() };
    let sources = Sources { storage: vec![file()], files: vec![file(), file()], ..Sources::default() };
    if let Ok(mut loaded) = load(&sources) {
        let text = crate::template::template(&loaded.config, crate::template::Template::Default);
        let printed = SourceFile { path: "printed.conf".into(), bytes: text.into_bytes() };
        let mut again = load(&Sources { files: vec![printed], ..Sources::default() });
        // What only storage.conf can say is in no printed file.
        for config in again.iter_mut().map(|again| &mut again.config).chain([&mut loaded.config]) {
            config.storage = crate::StoreConfig::default();
        }
        // A file cannot say that the built-in handler is gone, so that case alone does not come back.
        if loaded.config.runtime.runtimes.contains_key(DEFAULT_RUNTIME) {
            assert_eq!(again.map(|l| l.config), Ok(loaded.config), "a printed configuration reads back as itself");
        }
    }
}

/// A configuration in which every value that has a problem kept its default.
pub(crate) struct Judged {
    pub(crate) config: Config,
    pub(crate) defaults: Config,
    pub(crate) warnings: Vec<Warning>,
    pub(crate) problems: Vec<Problem>,
    /// Whether files could be read as TOML at all.
    pub(crate) is_readable: bool,
}

/// All layers on top of each other, still raw.
pub(crate) struct Merged {
    pub(crate) values: RawTable,
    pub(crate) handlers: BTreeMap<String, RawEntry>,
    pub(crate) workloads: BTreeMap<String, RawEntry>,
}

impl Merged {
    /// Where a key was given.
    pub(crate) fn origin(&self, path: &str) -> Origin {
        self.values.get(path).map_or(Origin::BuiltIn, |located| located.origin.clone())
    }

    fn put(&mut self, layer: Layer) {
        for (path, located) in layer.values {
            let is_fallback = matches!(path.as_str(), "crio.root" | "crio.runroot" | "crio.storage_driver");
            match &located.raw {
                // Empty means: whatever storage.conf or an earlier file says.
                Raw::Text(text) if text.is_empty() && is_fallback => {}
                Raw::List(list) if path == "crio.storage_option" => {
                    let earlier = match self.values.get(&path) {
                        Some(Located { raw: Raw::List(earlier), .. }) => earlier.clone(),
                        _ => Vec::new(),
                    };
                    let raw = Raw::List(without_repetition(earlier.into_iter().chain(list.iter().cloned()).collect()));
                    self.values.insert(path, Located { raw, origin: located.origin });
                }
                _ => {
                    self.values.insert(path, located);
                }
            }
        }
        self.handlers.extend(layer.handlers);
        self.workloads.extend(layer.workloads);
    }
}

/// Keeps the last of equal options, because the last one counts for the driver.
fn without_repetition(options: Vec<String>) -> Vec<String> {
    let mut kept: Vec<String> = Vec::new();
    for option in options.into_iter().rev() {
        if !kept.contains(&option) {
            kept.push(option);
        }
    }
    kept.reverse();
    kept
}

/// Merges and judges; problems are collected, never returned early.
pub(crate) fn judge(sources: &Sources) -> Judged {
    let mut merged = Merged { values: RawTable::new(), handlers: BTreeMap::new(), workloads: BTreeMap::new() };
    let (mut problems, mut warnings) = (Vec::new(), Vec::new());
    let (storage, storage_conf) =
        storage_conf::parse(&sources.storage, sources.storage_driver.as_deref(), sources.storage_options.as_deref());
    let mut defaults = Config::default();
    defaults.runtime.selinux = sources.has_selinux;
    for key in keys::all() {
        if let Some(located) = storage.values.get(&key.path()) {
            // What is wrong with it is reported below, unless a file of ours has another value.
            let _ = (key.decode)(&mut defaults, located.raw.clone());
        }
    }
    for mut layer in std::iter::once(storage).chain(sources.files.iter().map(document::parse)) {
        problems.append(&mut layer.problems);
        warnings.append(&mut layer.warnings);
        merged.put(layer);
    }
    let is_readable = !problems.iter().any(|problem| problem.key.is_empty());
    problems.extend(sources.overrides.apply(&mut merged));

    let mut config = Config::default();
    config.runtime.selinux = sources.has_selinux;
    config.storage = storage_conf;
    config.storage.is_driver_named = merged.values.contains_key("crio.storage_driver");
    for key in keys::all() {
        let path = key.path();
        let Some(located) = merged.values.get(&path) else { continue };
        if let Err(what) = (key.decode)(&mut config, located.raw.clone()) {
            problems.push(Problem { origin: located.origin.clone(), key: path.clone(), what });
        }
        if let Some(instead) = key.deprecated {
            let is_default = (key.encode)(&config) == (key.encode)(&Config::default());
            if !is_default || (key.is_input_only && located.raw != Raw::Text(String::new())) {
                let kind = WarningKind::Deprecated(instead);
                warnings.push(Warning { origin: located.origin.clone(), key: path, kind });
            }
        }
    }
    let mut handler_problems = BTreeMap::new();
    for (name, entry) in &merged.handlers {
        let (handler, mut found, mut odd) = handler(name, entry);
        config.runtime.runtimes.insert(name.clone(), handler);
        handler_problems.entry(name.clone()).or_insert_with(Vec::new).append(&mut found);
        warnings.append(&mut odd);
    }
    for (name, entry) in &merged.workloads {
        let (workload, mut found) = workload(name, entry);
        config.runtime.workloads.insert(name.clone(), workload);
        problems.append(&mut found);
    }
    settle::settle(&mut config, &merged, handler_problems, &mut problems, &mut warnings);
    warn_without_effect(&config, &merged, &mut warnings);
    Judged { config, defaults, warnings, problems, is_readable }
}

/// Decodes a table of keys into its struct.
fn fill<C>(target: &mut C, keys: &'static [Key<C>], path: &str, values: &RawTable) -> Vec<Problem> {
    let mut problems = Vec::new();
    for key in keys {
        let Some(located) = values.get(key.name) else { continue };
        if let Err(what) = (key.decode)(target, located.raw.clone()) {
            problems.push(Problem { origin: located.origin.clone(), key: format!("{path}.{}", key.name), what });
        }
    }
    problems
}

fn handler(name: &str, entry: &RawEntry) -> (RuntimeHandler, Vec<Problem>, Vec<Warning>) {
    let path = format!("crio.runtime.runtimes.{name}");
    let mut handler = RuntimeHandler::default();
    let mut warnings = Vec::new();
    let mut problems = fill(&mut handler, keys::HANDLER, &path, &entry.values);
    // A size nobody can read is not worth losing the handler: its default is safe. Source: CRI-O does this.
    problems.retain(|problem| {
        let is_size = problem.key.ends_with(".container_min_memory");
        if is_size {
            let kind = WarningKind::Adjusted(format!("{}, using {}", problem.what, handler.container_min_memory));
            warnings.push(Warning { origin: problem.origin.clone(), key: problem.key.clone(), kind });
        }
        !is_size
    });
    (handler, problems, warnings)
}

fn workload(name: &str, entry: &RawEntry) -> (Workload, Vec<Problem>) {
    let path = format!("crio.runtime.workloads.{name}");
    let mut workload = Workload::default();
    let mut problems = fill(&mut workload, keys::WORKLOAD, &path, &entry.values);
    let mut resources = WorkloadResources::default();
    problems.extend(fill(&mut resources, keys::WORKLOAD_RESOURCES, &format!("{path}.resources"), &entry.resources));
    workload.resources = resources;
    (workload, problems)
}

/// Names the keys that were set to something which nothing uses yet.
fn warn_without_effect(config: &Config, merged: &Merged, warnings: &mut Vec<Warning>) {
    let default = Config::default();
    for key in keys::all() {
        let path = key.path();
        if effect::is_not_yet(&path) && (key.encode)(config) != (key.encode)(&default) {
            let origin = merged.origin(&path);
            warnings.push(Warning { origin, key: path, kind: WarningKind::NotEffective });
        }
    }
    let default = RuntimeHandler::default();
    for (name, handler) in &config.runtime.runtimes {
        let Some(entry) = merged.handlers.get(name) else { continue };
        for key in keys::HANDLER {
            if effect::NOT_YET_HANDLER.contains(&key.name) && (key.encode)(handler) != (key.encode)(&default) {
                let origin = entry.values.get(key.name).map_or_else(|| entry.origin.clone(), |l| l.origin.clone());
                let key = format!("crio.runtime.runtimes.{name}.{}", key.name);
                warnings.push(Warning { origin, key, kind: WarningKind::NotEffective });
            }
        }
    }
}
