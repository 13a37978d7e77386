//! What `storage.conf` of containers/storage says about the storage keys of `crio.conf`.
//!
//! Source: containers-storage.conf(5). Everything in that file which is no default for a key of ours (locks, pull
//! options, automatic id ranges) is the business of the image store.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::codec::Raw;
use crate::document::{Layer, Located, line_of, parse_toml};
use crate::problem::{Problem, SourceFile, file_origin};

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

/// Reads the main file and the drop-ins, later ones over earlier ones, and says it in terms of `[crio]`.
///
/// `driver_override` is `$STORAGE_DRIVER` and `options_override` is `$STORAGE_OPTS` (a comma separated list).
pub(crate) fn parse(files: &[SourceFile], driver_override: Option<&str>, options_override: Option<&str>) -> Layer {
    let mut layer = Layer::default();
    let driver_override = driver_override.filter(|text| !text.is_empty());
    let (mut driver, mut options) = (plain_driver(driver_override.unwrap_or("overlay")), Vec::new());
    for file in files {
        let path = Arc::from(file.path.as_path());
        let table = match parse_toml(&path, &file.bytes) {
            Ok(table) => table,
            Err(problems) => {
                layer.problems.extend(problems);
                continue;
            }
        };
        let Some(storage) = find_table(&table, "storage") else { continue };
        let origin = |at: usize| file_origin(&path, line_of(&file.bytes, at));
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
        let Some(value) = storage.get("options") else { continue };
        if let Some(found) = value.get_ref().as_table() {
            options = driver_options(found, &driver);
        }
        if !options.is_empty() {
            let located = Located { raw: Raw::List(options.clone()), origin: origin(value.span().start) };
            layer.values.insert("crio.storage_option".to_owned(), located);
        }
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
    layer
}

/// The driver by the name its options have: `overlay2` is an old name of overlay.
fn plain_driver(name: &str) -> String {
    if name == "overlay2" { "overlay".to_owned() } else { name.to_owned() }
}

/// `[storage.options]` as a list of `driver.key=value`.
fn driver_options(options: &DeTable<'_>, driver: &str) -> Vec<String> {
    let mut list = Vec::new();
    for (name, key) in [("additionalimagestores", "imagestore"), ("additionallayerstores", "additionallayerstore")] {
        if let Some(DeValue::Array(stores)) = options.get(name).map(Spanned::get_ref) {
            let stores = stores.iter().filter_map(|store| store.get_ref().as_str()).filter(|store| !store.is_empty());
            list.extend(stores.map(|store| format!("{driver}.{key}={store}")));
        }
    }
    let own = find_table(options, driver);
    let names = DRIVER_OPTIONS.iter().find(|(name, _)| *name == driver).map_or(&[][..], |(_, names)| names);
    for name in names {
        let value = own.and_then(|table| text_of(table, name)).or_else(|| text_of(options, name));
        if let Some(value) = value {
            list.push(format!("{driver}.{name}={value}"));
        }
    }
    list
}

fn find_table<'t, 'a>(table: &'t DeTable<'a>, name: &str) -> Option<&'t DeTable<'a>> {
    table.get(name).and_then(|value| value.get_ref().as_table())
}

/// A value as text: these options are strings even where they mean a truth value, and some people leave out the quotes.
fn text_of(table: &DeTable<'_>, name: &str) -> Option<String> {
    match table.get(name).map(Spanned::get_ref)? {
        DeValue::String(text) if text.is_empty() => None,
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(flag) => Some(flag.to_string()),
        DeValue::Integer(number) => Some(number.to_string()),
        _ => None,
    }
}
