//! What a SIGHUP may change.

use crate::codec::Raw;
use crate::keys;
use crate::load::judge;
use crate::model::Config;
use crate::problem::{ConfigErrors, Problem, Warning};
use crate::sources::Sources;

/// The name under which a change of the table of handlers is reported.
const RUNTIMES: &str = "runtimes";

/// A reloadable key whose value differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// Name of the key, without its table: `log_level`. For handlers it is `runtimes`.
    pub key: &'static str,
    /// The new value as text, lists joined by commas. For handlers their names.
    pub value: String,
}

/// Lists the reloadable keys that differ, with the new values.
pub fn diff_reload(old: &Config, new: &Config) -> Vec<Change> {
    let mut changes: Vec<Change> = keys::all()
        .filter(|key| key.is_reloadable && (key.encode)(old) != (key.encode)(new))
        .map(|key| Change { key: key.name, value: show((key.encode)(new)) })
        .collect();
    if old.runtime.runtimes != new.runtime.runtimes {
        let names: Vec<_> = new.runtime.runtimes.keys().map(String::as_str).collect();
        changes.push(Change { key: RUNTIMES, value: names.join(",") });
    }
    changes
}

/// Takes over the value of one change.
pub fn adopt(config: &mut Config, new: &Config, change: &Change) {
    if change.key == RUNTIMES {
        config.runtime.runtimes.clone_from(&new.runtime.runtimes);
    }
    if let Some(key) = keys::all().find(|key| key.is_reloadable && key.name == change.key) {
        // What a checked configuration encodes it also decodes; otherwise the old value stays.
        let _ = (key.decode)(config, (key.encode)(new));
    }
}

/// What reading the files again brought.
#[derive(Debug, Clone, PartialEq)]
pub struct Reload {
    /// The running configuration with the changes taken over.
    pub config: Config,
    /// What changed.
    pub changes: Vec<Change>,
    /// What is wrong in the files; the keys concerned kept their values.
    pub problems: Vec<Problem>,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
}

/// Compares the files with the running configuration and takes over the reloadable keys that are in order.
///
/// `sources` are those of a start without overrides: a reload reads files only, so that a flag's value yields to that
/// of a file. Source: CRI-O does this.
/// Errors: a file is not TOML; nothing changes then.
pub fn reload(sources: &Sources, running: &Config) -> Result<Reload, ConfigErrors> {
    let judged = judge(sources);
    if !judged.is_readable {
        ConfigErrors::from_problems(judged.problems.clone())?;
    }
    let is_about_handlers =
        |key: &str| key.starts_with("crio.runtime.runtimes") || key == "crio.runtime.default_runtime";
    let handlers_are_bad = judged.problems.iter().any(|problem| is_about_handlers(&problem.key));
    let mut config = running.clone();
    let mut changes = diff_reload(running, &judged.config);
    changes.retain(|change| {
        let is_handlers = change.key == RUNTIMES || change.key == "default_runtime";
        let is_bad = judged.problems.iter().any(|problem| problem.key.rsplit('.').next() == Some(change.key));
        !(is_bad || is_handlers && handlers_are_bad)
    });
    for change in &changes {
        adopt(&mut config, &judged.config, change);
    }
    Ok(Reload { config, changes, problems: judged.problems, warnings: judged.warnings })
}

fn show(raw: Raw) -> String {
    match raw {
        Raw::Text(text) => text,
        Raw::Flag(flag) => flag.to_string(),
        Raw::Integer(number) => number.to_string(),
        Raw::List(list) if list.is_empty() => "[]".to_owned(),
        Raw::List(list) => list.join(","),
        Raw::Map(map) => map.into_iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(","),
    }
}
