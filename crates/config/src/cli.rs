//! Flags and environment: the command line generated from the table of keys.
//!
//! Values are taken from clap as text and judged with those of the files, so that one run reports every mistake.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::PathBuf;

use clap::{Arg, ArgAction, ArgMatches, Command};

use crate::codec::{Kind, Raw};
use crate::document::{Located, RawEntry, RawTable};
use crate::keys::{self, KeyFlag};
use crate::load::Merged;
use crate::problem::{Origin, Problem};
use crate::sources::{Locations, MainFile, StorageConf};
use crate::units::parse_size;

/// What flags and environment say about keys. They win over all files.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Overrides {
    values: RawTable,
    handlers: BTreeMap<String, RawEntry>,
    problems: Vec<Problem>,
}

impl Overrides {
    /// Puts the values over those of the files; returns what was wrong with their text.
    pub(crate) fn apply(&self, merged: &mut Merged) -> Vec<Problem> {
        for (path, located) in &self.values {
            let is_fallback = matches!(path.as_str(), "crio.root" | "crio.runroot" | "crio.storage_driver");
            if !(is_fallback && located.raw == Raw::Text(String::new())) {
                merged.values.insert(path.clone(), located.clone());
            }
        }
        merged.handlers.extend(self.handlers.iter().map(|(name, entry)| (name.clone(), entry.clone())));
        self.problems.clone()
    }
}

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum LogFormat {
    /// `time="…" level=… msg="…"`.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// The flags that stand for no key.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Options {
    /// `--log`: the daemon's log file; None is standard error.
    pub log: Option<PathBuf>,
    /// `--log-format`.
    pub log_format: LogFormat,
    /// `--profile`.
    pub profile: bool,
    /// `--profile-port`; None is 6060.
    pub profile_port: Option<u16>,
    /// `--profile-cpu`.
    pub profile_cpu: Option<PathBuf>,
    /// `--profile-mem`.
    pub profile_mem: Option<PathBuf>,
    /// `--enable-profile-unix-socket`.
    pub enable_profile_unix_socket: bool,
    /// `--registries-conf`.
    pub registries_conf: Option<PathBuf>,
    /// `--registries-conf-dir`.
    pub registries_conf_dir: Option<PathBuf>,
    /// `--address`, which VM shims give with `publish`.
    pub address: Option<String>,
}

/// A flag that was given, for the log line `FLAG: --name="value"`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UsedFlag {
    /// Without dashes.
    pub name: String,
    /// The values, joined by commas.
    pub value: String,
}

/// Everything the command line and the environment say before the subcommand.
#[derive(Debug, Clone, PartialEq)]
pub struct Invocation {
    /// Which files to read.
    pub locations: Locations,
    /// What wins over them.
    pub overrides: Overrides,
    /// The rest.
    pub options: Options,
    /// Flags given on the command line or by the environment.
    pub used: Vec<UsedFlag>,
}

/// A flag without a key.
struct Plain {
    name: &'static str,
    short: Option<char>,
    kind: Kind,
    env: Option<&'static str>,
    is_hidden: bool,
    help: &'static str,
}

const fn plain(name: &'static str, kind: Kind, env: Option<&'static str>, help: &'static str) -> Plain {
    Plain { name, short: None, kind, env, is_hidden: false, help }
}

static PLAIN: &[Plain] = &[
    Plain {
        short: Some('c'),
        ..plain(
            "config",
            Kind::Text,
            Some("CONTAINER_CONFIG"),
            "The configuration file [default: /etc/crio/crio.conf]. Empty for none.",
        )
    },
    Plain {
        short: Some('d'),
        ..plain(
            "config-dir",
            Kind::Text,
            Some("CONTAINER_CONFIG_DIR"),
            "The directory of drop-in files, each of which overrides what came before [default: /etc/crio/crio.conf.d]. \
             Empty for none.",
        )
    },
    plain("log", Kind::Text, Some("CONTAINER_LOG"), "File the daemon logs to instead of standard error."),
    plain("log-format", Kind::Text, Some("CONTAINER_LOG_FORMAT"), "Form of log lines: text or json."),
    plain(
        "runtimes",
        Kind::List,
        Some("CONTAINER_RUNTIMES"),
        "Runtime handlers as name:path:root[:type[:privileged_without_host_devices[:config_path[:min_memory]]]].",
    ),
    plain("profile", Kind::Flag, Some("CONTAINER_PROFILE"), "Serve profiles on localhost."),
    plain("profile-port", Kind::Integer, Some("CONTAINER_PROFILE_PORT"), "Port of the profiles [default: 6060]."),
    plain("profile-cpu", Kind::Text, Some("CONTAINER_PROFILE_CPU"), "File for a CPU profile."),
    plain("profile-mem", Kind::Text, Some("CONTAINER_PROFILE_MEM"), "File for a memory profile."),
    plain(
        "enable-profile-unix-socket",
        Kind::Flag,
        Some("ENABLE_PROFILE_UNIX_SOCKET"),
        "Serve profiles on the CRI socket.",
    ),
    Plain {
        is_hidden: true,
        ..plain("registries-conf", Kind::Text, Some("CONTAINER_REGISTRIES_CONF"), "The registries.conf file.")
    },
    Plain {
        is_hidden: true,
        ..plain(
            "registries-conf-dir",
            Kind::Text,
            Some("CONTAINER_REGISTRIES_CONF_DIR"),
            "The registries.conf.d directory.",
        )
    },
    Plain { is_hidden: true, ..plain("address", Kind::Text, None, "Address for the publish command.") },
];

/// Adds every global flag to a command. They are accepted before the subcommand only, as CRI-O has it.
pub fn add_flags(command: Command) -> Command {
    let mut command = command.args_override_self(true);
    for flag in PLAIN {
        let env: Vec<String> = flag.env.iter().map(|name| (*name).to_owned()).collect();
        let mut arg = argument(flag.name, flag.kind, flag.help, &env).hide(flag.is_hidden);
        if let Some(short) = flag.short {
            arg = arg.short(short);
        }
        command = command.arg(arg);
    }
    for KeyFlag { key, name, env } in keys::FLAGS.iter() {
        let mut arg = argument(name, key.kind, key.about, env).hide(key.is_hidden);
        match key.alias {
            Some(alias) if alias.chars().count() == 1 => arg = arg.short(alias.chars().next()),
            Some(alias) => arg = arg.visible_alias(alias),
            None => {}
        }
        command = command.arg(arg);
    }
    command
}

fn argument(name: &'static str, kind: Kind, about: &str, env: &[String]) -> Arg {
    let help = if env.is_empty() { about.to_owned() } else { format!("{about} [env: {}]", env.join(", ")) };
    let arg = Arg::new(name).long(name).help(help).allow_hyphen_values(true);
    match kind {
        Kind::Flag => arg
            .action(ArgAction::Set)
            .num_args(0..=1)
            .require_equals(true)
            .default_missing_value("true")
            .hide_possible_values(true)
            .value_name("true|false"),
        Kind::List | Kind::Map => arg.action(ArgAction::Append).value_name("LIST"),
        Kind::Integer => arg.action(ArgAction::Set).value_name("NUMBER"),
        Kind::Duration => arg.action(ArgAction::Set).value_name("DURATION"),
        Kind::Text => arg.action(ArgAction::Set).value_name("TEXT"),
    }
}

/// Lets flags with one dash pass (`-log-level debug`), which units written for CRI-O may contain.
///
/// Only words that are one of our long flags are changed.
pub fn normalize(args: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let is_long = |text: &str| {
        let name = text.split('=').next().unwrap_or_default();
        name.len() > 1
            && (PLAIN.iter().any(|flag| flag.name == name) || keys::FLAGS.iter().any(|flag| flag.name == name))
    };
    args.into_iter()
        .map(|arg| match arg.to_str().and_then(|text| text.strip_prefix('-')) {
            Some(rest) if !rest.starts_with('-') && is_long(rest) => {
                let mut long = OsString::from("-");
                long.push(OsStr::new(&arg));
                long
            }
            _ => arg,
        })
        .collect()
}

/// What a flag was set to, and by what.
struct Given {
    values: Vec<String>,
    origin: Origin,
}

/// Reads the matches of a command made by [`add_flags`], and the environment where a flag is not given.
///
/// `env` looks up an environment variable. Mistakes are kept and reported by [`crate::load`].
pub fn invocation(matches: &ArgMatches, env: &dyn Fn(&str) -> Option<String>) -> Invocation {
    let mut reader = FlagReader { matches, env, used: Vec::new(), overrides: Overrides::default() };
    let options = reader.options();
    let locations = reader.locations();
    reader.runtimes();
    for KeyFlag { key, name, env } in keys::FLAGS.iter() {
        let Some(given) = reader.given(name, key.kind, env) else { continue };
        match raw(key.kind, &given.values) {
            Ok(raw) => {
                reader.overrides.values.insert(key.path(), Located { raw, origin: given.origin });
            }
            Err(what) => reader.overrides.problems.push(Problem { origin: given.origin, key: key.path(), what }),
        }
    }
    Invocation { locations, overrides: reader.overrides, options, used: reader.used }
}

struct FlagReader<'a> {
    matches: &'a ArgMatches,
    env: &'a dyn Fn(&str) -> Option<String>,
    used: Vec<UsedFlag>,
    overrides: Overrides,
}

impl FlagReader<'_> {
    /// The flag's values from the command line, or else from the first variable that is set.
    fn given(&mut self, name: &str, kind: Kind, env: &[String]) -> Option<Given> {
        let from_flag = self.matches.try_get_many::<String>(name).ok().flatten();
        let given = match from_flag {
            Some(values) => Given { values: values.cloned().collect(), origin: Origin::Flag(name.to_owned()) },
            None => {
                let (variable, value) = env.iter().find_map(|name| (self.env)(name).map(|value| (name, value)))?;
                let value = match kind {
                    // A variable that is set but empty switches a flag off and leaves numbers alone.
                    Kind::Flag if value.is_empty() => "false".to_owned(),
                    Kind::Integer | Kind::Duration if value.is_empty() => return None,
                    _ => value,
                };
                Given { values: vec![value], origin: Origin::Environment(variable.clone()) }
            }
        };
        self.used.push(UsedFlag { name: name.to_owned(), value: given.values.join(",") });
        Some(given)
    }

    fn plain(&mut self, name: &str) -> Option<(Raw, Origin)> {
        let flag = PLAIN.iter().find(|flag| flag.name == name)?;
        let env: Vec<String> = flag.env.iter().map(|name| (*name).to_owned()).collect();
        let given = self.given(name, flag.kind, &env)?;
        match raw(flag.kind, &given.values) {
            Ok(raw) => Some((raw, given.origin)),
            Err(what) => {
                self.problem(given.origin, name, what);
                None
            }
        }
    }

    fn text(&mut self, name: &str) -> Option<String> {
        match self.plain(name)? {
            (Raw::Text(text), _) => Some(text),
            _ => None,
        }
    }

    fn path(&mut self, name: &str) -> Option<PathBuf> {
        self.text(name).filter(|text| !text.is_empty()).map(PathBuf::from)
    }

    fn flag(&mut self, name: &str) -> bool {
        matches!(self.plain(name), Some((Raw::Flag(true), _)))
    }

    fn problem(&mut self, origin: Origin, key: &str, what: String) {
        self.overrides.problems.push(Problem { origin, key: key.to_owned(), what });
    }

    fn options(&mut self) -> Options {
        let mut options = Options {
            log: self.path("log"),
            profile: self.flag("profile"),
            profile_cpu: self.path("profile-cpu"),
            profile_mem: self.path("profile-mem"),
            enable_profile_unix_socket: self.flag("enable-profile-unix-socket"),
            registries_conf: self.path("registries-conf"),
            registries_conf_dir: self.path("registries-conf-dir"),
            address: self.text("address"),
            ..Options::default()
        };
        if let Some((Raw::Text(text), origin)) = self.plain("log-format") {
            match text.as_str() {
                "" | "text" => {}
                "json" => options.log_format = LogFormat::Json,
                _ => self.problem(origin, "log-format", format!("{text:?} is neither \"text\" nor \"json\"")),
            }
        }
        if let Some((Raw::Integer(number), origin)) = self.plain("profile-port") {
            match u16::try_from(number) {
                Ok(port) => options.profile_port = Some(port),
                Err(_) => self.problem(origin, "profile-port", format!("{number} is not a port")),
            }
        }
        options
    }

    fn locations(&mut self) -> Locations {
        let mut locations = Locations::default();
        if let Some(path) = self.text("config") {
            locations.config = if path.is_empty() { MainFile::Skip } else { MainFile::Required(path.into()) };
        }
        if let Some(path) = self.text("config-dir") {
            locations.drop_ins = if path.is_empty() { None } else { Some(path.into()) };
        }
        let variable = |name: &str| (self.env)(name).filter(|value| !value.is_empty());
        if let Some(path) = variable("CONTAINERS_STORAGE_CONF") {
            locations.storage = StorageConf::Only(path.into());
        }
        locations.storage_driver = variable("STORAGE_DRIVER");
        locations.storage_options = variable("STORAGE_OPTS");
        locations
    }

    fn runtimes(&mut self) {
        let Some((Raw::List(list), origin)) = self.plain("runtimes") else { return };
        for text in list {
            match runtime(&text, &origin) {
                Ok((name, entry)) => {
                    self.overrides.handlers.insert(name, entry);
                }
                Err(what) => self.problem(origin.clone(), "crio.runtime.runtimes", what),
            }
        }
    }
}

/// One value of `--runtimes`, as if it were a table of a file.
fn runtime(text: &str, origin: &Origin) -> Result<(String, RawEntry), String> {
    let fields: Vec<&str> = text.split(':').collect();
    let bad = || {
        format!(
            "{text:?} is not of the form \
             name:path:root[:type[:privileged_without_host_devices[:config_path[:min_memory]]]]"
        )
    };
    let [name, path, root, rest @ ..] = fields.as_slice() else { return Err(bad()) };
    if rest.len() > 4 || name.is_empty() {
        return Err(bad());
    }
    let mut values = RawTable::new();
    let mut put = |key: &str, raw: Raw| {
        values.insert(key.to_owned(), Located { raw, origin: origin.clone() });
    };
    put("runtime_path", Raw::Text((*path).to_owned()));
    put("runtime_root", Raw::Text((*root).to_owned()));
    if let Some(kind) = rest.first() {
        put("runtime_type", Raw::Text((*kind).to_owned()));
    }
    if let Some(flag) = rest.get(1) {
        put("privileged_without_host_devices", Raw::Flag(*flag == "true"));
    }
    if let Some(config) = rest.get(2) {
        put("runtime_config_path", Raw::Text((*config).to_owned()));
    }
    if let Some(memory) = rest.get(3) {
        parse_size(memory).map_err(|e| e.to_string())?;
        put("container_min_memory", Raw::Text((*memory).to_owned()));
    }
    Ok(((*name).to_owned(), RawEntry { origin: origin.clone(), values, resources: RawTable::new() }))
}

/// Turns the text of a flag into a raw value.
fn raw(kind: Kind, values: &[String]) -> Result<Raw, String> {
    let last = values.last().map(String::as_str).unwrap_or_default();
    match kind {
        Kind::Text | Kind::Duration => Ok(Raw::Text(last.to_owned())),
        // The words of Go's strconv.ParseBool.
        Kind::Flag => match last {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(Raw::Flag(true)),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(Raw::Flag(false)),
            _ => Err(format!("{last:?} is neither true nor false")),
        },
        Kind::Integer => last.parse().map(Raw::Integer).map_err(|_| format!("{last:?} is not an integer")),
        Kind::List => {
            let parts = values.iter().flat_map(|value| value.split(','));
            Ok(Raw::List(parts.map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()))
        }
        Kind::Map => Err("cannot be given as a flag".to_owned()),
    }
}
