//! What `storage.conf` of containers/storage says about the storage keys of `crio.conf`.
//!
//! Source: containers-storage.conf(5). Everything in that file which has no key of ours is in [`StoreConfig`],
//! and pull options are the business of whoever pulls.

use std::collections::BTreeMap;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::codec::Raw;
use crate::document::{Layer, Located, line_of, parse_toml};
use crate::problem::{Origin, Problem, SourceFile, Warning, WarningKind, file_origin};

/// Options of a driver's own table and their names behind `driver.`; the same name in `[storage.options]` stands in.
const DRIVER_OPTIONS: [(&str, &[&str]); 4] = [
    (
        "overlay",
        &[
            "ignore_chown_errors",
            "mount_program",
            "mountopt",
            "size",
            "inodes",
            "skip_mount_home",
            "force_mask",
            "use_composefs",
            "sync",
        ],
    ),
    ("vfs", &["ignore_chown_errors", "sync"]),
    ("btrfs", &["min_space", "size"]),
    ("zfs", &["fsname", "mountopt", "size"]),
];

/// Keys of `[storage]` and `[storage.options]` that are read, here or by whoever pulls.
const STORAGE_KEYS: [&str; 8] = [
    "driver",
    "driver_priority",
    "graphroot",
    "runroot",
    "imagestore",
    "options",
    "transient_store",
    // For users who are not root.
    "rootless_storage_path",
];
const OPTION_KEYS: [&str; 18] = [
    "additionalimagestores",
    "additionallayerstores",
    "size",
    "ignore_chown_errors",
    "mount_program",
    "mountopt",
    "skip_mount_home",
    "use_composefs",
    "force_mask",
    "disable-volatile",
    "root-auto-userns-user",
    "auto-userns-min-size",
    "auto-userns-max-size",
    "pull_options",
    "overlay",
    "vfs",
    "btrfs",
    "zfs",
];
/// Keys of versions that had id maps for a whole store, and of drivers that are gone.
const OBSOLETE: [&str; 7] =
    ["remap-uids", "remap-gids", "remap-user", "remap-group", "ostree_repo", "thinpool", "aufs"];
/// Known keys without effect; CRI-O does not hand them to its store either.
const NOT_EFFECTIVE: [&str; 6] = [
    "convert_images",
    "ostree_repos",
    "transient_store",
    "root-auto-userns-user",
    "auto-userns-min-size",
    "auto-userns-max-size",
];
/// Keys of `[storage.options.pull_options]`.
const PULL_KEYS: [&str; 5] = [
    "enable_partial_images",
    "use_hard_links",
    "insecure_allow_unpredictable_image_contents",
    "convert_images",
    "ostree_repos",
];

/// What `storage.conf` says that no key of `crio.conf` can.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StoreConfig {
    /// Whether a file, a flag or the environment named the driver; if not, what is in the root decides.
    pub is_driver_named: bool,
    /// Drivers in the order in which they are tried in an empty root.
    pub driver_priority: Vec<String>,
    /// Volatile containers are mounted as all others.
    pub disable_volatile: bool,
    /// `[storage.options.pull_options]`.
    pub pull: PullOptions,
}

/// How layers may be made of parts of their blobs. Source: containers-storage.conf(5).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PullOptions {
    /// `enable_partial_images`: content that other layers have is not fetched.
    pub enable_partial_images: bool,
    /// `use_hard_links`: equal files of two layers are one file.
    pub use_hard_links: bool,
    /// `insecure_allow_unpredictable_image_contents`: layers are used although their diff id cannot be checked.
    pub allow_unpredictable: bool,
}

/// Reads the main file and the drop-ins, later ones over earlier ones key by key, and says it in terms of `[crio]`.
///
/// `driver_override` is `$STORAGE_DRIVER` and `options_override` is `$STORAGE_OPTS` (a comma separated list).
pub(crate) fn parse(
    files: &[SourceFile],
    driver_override: Option<&str>,
    options_override: Option<&str>,
) -> (Layer, StoreConfig) {
    let (mut layer, mut conf) = (Layer::default(), StoreConfig::default());
    let driver_override = driver_override.filter(|text| !text.is_empty());
    let mut driver = plain_driver(driver_override.unwrap_or("overlay"));
    let mut options = Options::default();
    for file in files {
        let path = Arc::from(file.path.as_path());
        let table = match parse_toml(&path, &file.bytes) {
            Ok(table) => table,
            Err(problems) => {
                layer.problems.extend(problems);
                continue;
            }
        };
        let origin = |at: usize| file_origin(&path, line_of(&file.bytes, at));
        for (name, _) in table.iter().filter(|(name, _)| *name.get_ref() != "storage") {
            warn(&mut layer, origin(name.span().start), name.get_ref().to_string(), WarningKind::UnknownKey);
        }
        let Some(storage) = find_table(&table, "storage") else { continue };
        warn_keys(&mut layer, storage, "storage", &STORAGE_KEYS, origin);
        for (name, key) in [
            ("driver", "crio.storage_driver"),
            ("graphroot", "crio.root"),
            ("runroot", "crio.runroot"),
            ("imagestore", "crio.imagestore"),
        ] {
            let Some(value) = storage.get(name) else { continue };
            let origin = origin(value.span().start);
            match value.get_ref() {
                DeValue::String(text) if text.is_empty() => {}
                DeValue::String(text) => {
                    if name == "driver" && driver_override.is_none() {
                        driver = plain_driver(text);
                    }
                    let raw = Raw::Text(text.to_string());
                    layer.values.insert(key.to_owned(), Located { raw, origin });
                }
                other => layer.problems.push(Problem {
                    origin,
                    key: format!("storage.{name}"),
                    what: format!("expected a string, found {}", other.type_str()),
                }),
            }
        }
        if let Some(DeValue::Array(drivers)) = storage.get("driver_priority").map(Spanned::get_ref) {
            conf.driver_priority =
                drivers.iter().filter_map(|name| name.get_ref().as_str()).map(plain_driver).collect();
        }
        let Some(value) = storage.get("options") else { continue };
        if let Some(found) = value.get_ref().as_table() {
            warn_keys(&mut layer, found, "storage.options", &OPTION_KEYS, origin);
            for (name, known) in DRIVER_OPTIONS {
                if let Some(own) = find_table(found, name) {
                    warn_keys(&mut layer, own, &format!("storage.options.{name}"), known, origin);
                }
            }
            if let Some(DeValue::Boolean(flag)) = found.get("disable-volatile").map(Spanned::get_ref) {
                conf.disable_volatile = *flag;
            }
            if let Some(pull) = find_table(found, "pull_options") {
                warn_keys(&mut layer, pull, "storage.options.pull_options", &PULL_KEYS, origin);
                conf.pull = pull_options(pull);
            }
            options.read(found, Some(origin(value.span().start)));
        }
    }
    let list = options.of_driver(&driver);
    if let (Some(origin), false) = (options.origin, list.is_empty()) {
        layer.values.insert("crio.storage_option".to_owned(), Located { raw: Raw::List(list), origin });
    }
    let environment = |name: &str| crate::problem::Origin::Environment(name.to_owned());
    if let Some(driver) = driver_override {
        let located = Located { raw: Raw::Text(driver.to_owned()), origin: environment("STORAGE_DRIVER") };
        layer.values.insert("crio.storage_driver".to_owned(), located);
    }
    if let Some(options) = options_override.filter(|text| !text.is_empty()) {
        let list = options.split(',').map(|option| option.trim().to_owned()).collect();
        let located = Located { raw: Raw::List(list), origin: environment("STORAGE_OPTS") };
        layer.values.insert("crio.storage_option".to_owned(), located);
    }
    (layer, conf)
}

/// The table of one file replaces that of the files before it as a whole; anything but "true" is off, as in the field.
fn pull_options(table: &DeTable<'_>) -> PullOptions {
    let is_on = |name: &str| text_of(table, name).is_some_and(|text| text.eq_ignore_ascii_case("true"));
    PullOptions {
        enable_partial_images: is_on("enable_partial_images"),
        use_hard_links: is_on("use_hard_links"),
        allow_unpredictable: is_on("insecure_allow_unpredictable_image_contents"),
    }
}

fn warn(layer: &mut Layer, origin: Origin, key: String, kind: WarningKind) {
    layer.warnings.push(Warning { origin, key, kind });
}

/// Names the keys of a table that nobody reads, or that have no effect.
fn warn_keys(layer: &mut Layer, table: &DeTable<'_>, name: &str, known: &[&str], origin: impl Fn(usize) -> Origin) {
    for (key, value) in table {
        let text: &str = key.get_ref();
        let kind = match value.get_ref() {
            _ if OBSOLETE.contains(&text) => WarningKind::Obsolete,
            _ if !known.contains(&text) => WarningKind::UnknownKey,
            DeValue::Boolean(false) => continue,
            DeValue::String(value) if value.is_empty() || value == "false" => continue,
            _ if NOT_EFFECTIVE.contains(&text) => WarningKind::NotEffective,
            _ => continue,
        };
        warn(layer, origin(key.span().start), format!("{name}.{text}"), kind);
    }
}

/// `[storage.options]` of all files, by table and key; the table of no name is `[storage.options]` itself.
#[derive(Default)]
struct Options {
    texts: BTreeMap<(&'static str, String), String>,
    stores: BTreeMap<&'static str, Vec<String>>,
    origin: Option<Origin>,
}

impl Options {
    fn read(&mut self, options: &DeTable<'_>, origin: Option<Origin>) {
        self.origin = origin;
        for name in ["additionalimagestores", "additionallayerstores"] {
            if let Some(DeValue::Array(stores)) = options.get(name).map(Spanned::get_ref) {
                let stores = stores.iter().filter_map(|store| store.get_ref().as_str());
                let stores = stores.filter(|store| !store.is_empty()).map(str::to_owned).collect();
                self.stores.insert(name, stores);
            }
        }
        let tables = DRIVER_OPTIONS.iter().map(|(name, _)| (*name, find_table(options, name)));
        for (name, table) in tables.chain([("", Some(options))]) {
            for (key, _) in table.into_iter().flatten() {
                if let Some(text) = table.and_then(|table| text_of(table, key.get_ref())) {
                    self.texts.insert((name, key.get_ref().to_string()), text);
                }
            }
        }
    }

    /// As a list of `driver.key=value`.
    fn of_driver(&self, driver: &str) -> Vec<String> {
        let mut list = Vec::new();
        for (name, key) in [("additionalimagestores", "imagestore"), ("additionallayerstores", "additionallayerstore")]
        {
            let stores = self.stores.get(name).map(Vec::as_slice).unwrap_or_default();
            list.extend(stores.iter().map(|store| format!("{driver}.{key}={store}")));
        }
        let names = DRIVER_OPTIONS.iter().find(|(name, _)| *name == driver);
        if let Some((own, names)) = names {
            for name in *names {
                let of = |table| self.texts.get(&(table, (*name).to_owned()));
                if let Some(value) = of(*own).or_else(|| of("")).filter(|value| !value.is_empty()) {
                    list.push(format!("{driver}.{name}={value}"));
                }
            }
        }
        list
    }
}

/// The driver by the name its options have: `overlay2` is an old name of overlay.
fn plain_driver(name: &str) -> String {
    if name == "overlay2" { "overlay".to_owned() } else { name.to_owned() }
}

fn find_table<'t, 'a>(table: &'t DeTable<'a>, name: &str) -> Option<&'t DeTable<'a>> {
    table.get(name).and_then(|value| value.get_ref().as_table())
}

/// A value as text: these options are strings even where they mean a truth value, and some people leave out the quotes.
fn text_of(table: &DeTable<'_>, name: &str) -> Option<String> {
    match table.get(name).map(Spanned::get_ref)? {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}
