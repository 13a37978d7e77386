//! The configuration as a commented file: `crio config`.

use std::fmt::Write as _;

use crate::codec::Raw;
use crate::handler::{RuntimeHandler, Workload};
use crate::key::Key;
use crate::keys;
use crate::model::Config;

/// Which values are live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Template {
    /// Values that differ from the built-in ones; the others are commented out.
    Effective,
    /// All.
    Default,
}

/// Text is wrapped here, so that it fits a terminal of 80 columns.
const WIDTH: usize = 78;

const HEADER: &str = "Configuration of the crio daemon (TOML). \
Lines that are commented out show the built-in values. \
Files in /etc/crio/crio.conf.d are read after this one, in alphabetical order: each key they set replaces the one here. \
Flags and environment variables win over all files. \
Keys described as reloadable take effect when the daemon receives SIGHUP, all others when it starts.";

const HANDLERS: &str = "Runtime handlers: a table [crio.runtime.runtimes.NAME] for each OCI runtime, where NAME is the \
handler of a Kubernetes RuntimeClass. A table in a later file replaces the one of the same name as a whole. Reloadable.";

const WORKLOADS: &str = "Workloads: a table [crio.runtime.workloads.NAME] for each group of sandboxes whose containers get \
their CPU resources from here, with a table [crio.runtime.workloads.NAME.resources].";

/// Prints a configuration as a file that, read again, gives the same configuration.
///
/// Source: the order of tables and the commenting out of built-in values are those of `crio config` of CRI-O.
pub fn template(config: &Config, which: Template) -> String {
    template_over(&Config::default(), config, which)
}

/// The same, with the values of `default` (such as [`crate::Loaded::defaults`]) as those that are commented out.
///
/// Read again, it gives the same configuration on a host with the same defaults.
pub fn template_over(default: &Config, config: &Config, which: Template) -> String {
    let mut out = String::new();
    comment(&mut out, HEADER);
    for table in keys::TABLES {
        let _ = writeln!(out, "\n[{table}]");
        for key in keys::all().filter(|key| key.table == table && !key.is_input_only) {
            let value = (key.encode)(config);
            let is_live = which == Template::Default || value != (key.encode)(default);
            out.push('\n');
            explain(&mut out, key);
            assign(&mut out, key.name, &value, is_live);
        }
        if table == "crio.runtime" {
            handlers(&mut out, config, default, which);
            workloads(&mut out, config);
        }
    }
    out
}

fn handlers(out: &mut String, config: &Config, default: &Config, which: Template) {
    out.push('\n');
    comment(out, HANDLERS);
    comment(out, "Keys of a handler:");
    for key in keys::HANDLER {
        comment(out, &format!("- {}: {}", key.name, key.about));
    }
    for (name, handler) in &config.runtime.runtimes {
        let is_live = which == Template::Default || default.runtime.runtimes.get(name) != Some(handler);
        table_head(out, &["crio", "runtime", "runtimes", name], is_live);
        entry(out, keys::HANDLER, handler, &RuntimeHandler::default(), is_live);
    }
}

fn workloads(out: &mut String, config: &Config) {
    out.push('\n');
    comment(out, WORKLOADS);
    for (name, workload) in &config.runtime.workloads {
        table_head(out, &["crio", "runtime", "workloads", name], true);
        entry(out, keys::WORKLOAD, workload, &Workload::default(), true);
        table_head(out, &["crio", "runtime", "workloads", name, "resources"], true);
        entry(out, keys::WORKLOAD_RESOURCES, &workload.resources, &Default::default(), true);
    }
}

/// The keys of a table that a file replaces as a whole; empty lists say nothing.
fn entry<C>(out: &mut String, keys: &'static [Key<C>], value: &C, default: &C, is_live: bool) {
    for key in keys {
        let raw = (key.encode)(value);
        let may_be_left_out = key.is_terse || matches!(&raw, Raw::List(list) if list.is_empty());
        if !(may_be_left_out && raw == (key.encode)(default)) {
            assign(out, key.name, &raw, is_live);
        }
    }
}

fn explain(out: &mut String, key: &Key<Config>) {
    let mut text = key.about.to_owned();
    if let Some(instead) = key.deprecated {
        let _ = write!(text, " Deprecated: {instead}.");
    }
    if key.is_reloadable {
        text.push_str(" Reloadable.");
    }
    comment(out, &text);
}

fn comment(out: &mut String, text: &str) {
    let mut line = String::from("#");
    for word in text.split(' ') {
        if line.chars().count() + 1 + word.chars().count() > WIDTH {
            out.push_str(&line);
            out.push('\n');
            line = String::from("#");
        }
        line.push(' ');
        line.push_str(word);
    }
    out.push_str(&line);
    out.push('\n');
}

fn table_head(out: &mut String, path: &[&str], is_live: bool) {
    out.push('\n');
    out.push_str(if is_live { "[" } else { "# [" });
    for (at, part) in path.iter().enumerate() {
        if at > 0 {
            out.push('.');
        }
        let is_bare = !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-'));
        if is_bare { out.push_str(part) } else { quote(out, part) }
    }
    out.push_str("]\n");
}

fn assign(out: &mut String, name: &str, value: &Raw, is_live: bool) {
    let mut text = format!("{name} = ");
    match value {
        Raw::Text(value) => quote(&mut text, value),
        Raw::Flag(flag) => text.push_str(if *flag { "true" } else { "false" }),
        Raw::Integer(number) => {
            let _ = write!(text, "{number}");
        }
        Raw::List(list) if list.is_empty() => text.push_str("[]"),
        Raw::List(list) => {
            text.push('[');
            for element in list {
                text.push_str("\n\t");
                quote(&mut text, element);
                text.push(',');
            }
            text.push_str("\n]");
        }
        Raw::Map(map) => {
            text.push_str("{ ");
            for (at, (key, value)) in map.iter().enumerate() {
                text.push_str(if at > 0 { ", " } else { "" });
                quote(&mut text, key);
                text.push_str(" = ");
                quote(&mut text, value);
            }
            text.push_str(" }");
        }
    }
    for line in text.split('\n') {
        out.push_str(if is_live { "" } else { "# " });
        out.push_str(line);
        out.push('\n');
    }
}

/// A TOML basic string. Source: TOML 1.0, "String".
fn quote(out: &mut String, text: &str) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c.is_control() => {
                let _ = write!(out, "\\u{:04X}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}
