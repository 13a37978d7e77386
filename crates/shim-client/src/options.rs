//! The command line: that of an OCI runtime, and before the verb what only a shim needs.

use std::ffi::OsString;
use std::path::PathBuf;

use thiserror::Error;

/// What only a shim needs, and every verb gets.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Settings {
    /// Below it lie records and fifos.
    pub(crate) root: PathBuf,
    /// The shim's binary.
    pub(crate) shim: PathBuf,
    /// Its configuration file.
    pub(crate) config: Option<PathBuf>,
    /// Run by the shim to tell events.
    pub(crate) publish: PathBuf,
    /// The shim is to say more in its log.
    pub(crate) has_debug: bool,
    /// The guest pulls the image.
    pub(crate) pulls_image: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Verb {
    Version,
    Create { bundle: PathBuf, pid_file: PathBuf, console_socket: Option<PathBuf> },
    Start,
    State,
    Kill { signal: u32, is_for_all: bool },
    Delete { is_forced: bool },
    Exec { process: PathBuf, pid_file: PathBuf, console_socket: Option<PathBuf> },
    Update,
    Pause,
    Resume,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Invocation {
    pub(crate) settings: Settings,
    pub(crate) verb: Verb,
    /// The container; empty where the verb is about none.
    pub(crate) id: String,
}

/// Why a command line is none.
#[derive(Debug, Error, PartialEq, Eq)]
pub(crate) enum UsageError {
    #[error("{0:?} is not text")]
    NotText(OsString),
    #[error("{0} needs a value")]
    NoValue(String),
    #[error("option {option} is not supported for {verb}")]
    Option { option: String, verb: String },
    #[error("{0} is not supported for containers of a shim")]
    Verb(String),
    #[error("{verb} needs {what}")]
    Missing { verb: &'static str, what: &'static str },
    #[error("{0:?} is too much")]
    TooMuch(String),
    #[error("{0:?} is no signal")]
    Signal(String),
    #[error("update takes its resources from standard input only: --resources -")]
    Resources,
}

/// Words one after the other; an option's value follows it or stands behind `=`.
struct Words {
    rest: std::vec::IntoIter<String>,
    attached: Option<String>,
}

impl Words {
    fn next(&mut self) -> Option<String> {
        self.attached = None;
        let word = self.rest.next()?;
        match word.split_once('=') {
            Some((name, value)) if word.starts_with("--") => {
                self.attached = Some(value.to_owned());
                Some(name.to_owned())
            }
            _ => Some(word),
        }
    }

    fn value(&mut self, name: &str) -> Result<String, UsageError> {
        self.attached.take().or_else(|| self.rest.next()).ok_or_else(|| UsageError::NoValue(name.to_owned()))
    }
}

pub(crate) fn parse(words: Vec<OsString>) -> Result<Invocation, UsageError> {
    let words: Result<Vec<String>, OsString> = words.into_iter().map(OsString::into_string).collect();
    let mut words = Words { rest: words.map_err(UsageError::NotText)?.into_iter(), attached: None };
    let mut settings = Settings::default();
    while let Some(word) = words.next() {
        match word.as_str() {
            "--root" => settings.root = words.value(&word)?.into(),
            "--shim" => settings.shim = words.value(&word)?.into(),
            "--shim-config" => settings.config = Some(words.value(&word)?.into()),
            "--shim-publish" => settings.publish = words.value(&word)?.into(),
            "--shim-debug" => settings.has_debug = true,
            "--shim-pulls-image" => settings.pulls_image = true,
            // Who makes the cgroups is for the shim's own configuration to say.
            "--systemd-cgroup" => {}
            "--version" => return Ok(Invocation { settings, verb: Verb::Version, id: String::new() }),
            option if option.starts_with('-') => {
                return Err(UsageError::Option { option: option.to_owned(), verb: "any verb".to_owned() });
            }
            verb => return parse_verb(settings, verb, words),
        }
    }
    Err(UsageError::Missing { verb: "crio-shim", what: "a verb" })
}

/// What the options of a verb said.
#[derive(Default)]
struct Given {
    bundle: Option<PathBuf>,
    pid_file: Option<PathBuf>,
    process: Option<PathBuf>,
    console_socket: Option<PathBuf>,
    resources: Option<String>,
    has_terminal: bool,
    is_forced: bool,
    is_for_all: bool,
}

fn parse_verb(settings: Settings, verb: &str, mut words: Words) -> Result<Invocation, UsageError> {
    const KNOWN: [&str; 9] = ["create", "start", "state", "kill", "delete", "exec", "update", "pause", "resume"];
    if !KNOWN.contains(&verb) {
        return Err(UsageError::Verb(verb.to_owned()));
    }
    let mut given = Given::default();
    let mut operands = Vec::new();
    while let Some(word) = words.next() {
        match (verb, word.as_str()) {
            ("create", "--bundle") => given.bundle = Some(words.value(&word)?.into()),
            ("create" | "exec", "--pid-file") => given.pid_file = Some(words.value(&word)?.into()),
            ("create" | "exec", "--console-socket") => given.console_socket = Some(words.value(&word)?.into()),
            ("exec", "--tty") => given.has_terminal = true,
            ("exec", "--process") => given.process = Some(words.value(&word)?.into()),
            ("update", "--resources") => given.resources = Some(words.value(&word)?),
            ("delete", "--force") => given.is_forced = true,
            ("kill", "--all") => given.is_for_all = true,
            // The guest's root is no directory of the node, and its keys are not the node's.
            ("create", "--no-pivot" | "--no-new-keyring") => {}
            (_, option) if option.starts_with("--") => {
                return Err(UsageError::Option { option: option.to_owned(), verb: verb.to_owned() });
            }
            _ => operands.push(word),
        }
    }
    // Without a socket to send it over, a terminal would have to be the caller's own.
    if given.has_terminal && given.console_socket.is_none() {
        return Err(UsageError::Option { option: "--tty without --console-socket".to_owned(), verb: verb.to_owned() });
    }
    let mut operands = operands.into_iter();
    let id = operands.next().ok_or(UsageError::Missing { verb: "a verb", what: "a container's id" })?;
    let needs = |verb, what| move || UsageError::Missing { verb, what };
    let verb = match verb {
        "create" => Verb::Create {
            bundle: given.bundle.ok_or_else(needs("create", "--bundle"))?,
            pid_file: given.pid_file.ok_or_else(needs("create", "--pid-file"))?,
            console_socket: given.console_socket,
        },
        "exec" => Verb::Exec {
            process: given.process.ok_or_else(needs("exec", "--process"))?,
            pid_file: given.pid_file.ok_or_else(needs("exec", "--pid-file"))?,
            console_socket: given.console_socket,
        },
        "kill" => {
            let signal = operands.next().unwrap_or_else(|| "15".to_owned());
            let number = signal.parse().ok().filter(|number| (1..=64).contains(number));
            Verb::Kill { signal: number.ok_or(UsageError::Signal(signal))?, is_for_all: given.is_for_all }
        }
        "update" if given.resources.as_deref() != Some("-") => return Err(UsageError::Resources),
        "update" => Verb::Update,
        "start" => Verb::Start,
        "state" => Verb::State,
        "delete" => Verb::Delete { is_forced: given.is_forced },
        "pause" => Verb::Pause,
        _ => Verb::Resume,
    };
    match operands.next() {
        Some(word) => Err(UsageError::TooMuch(word)),
        None => Ok(Invocation { settings, verb, id }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(line: &str) -> Result<Invocation, UsageError> {
        parse(line.split(' ').map(OsString::from).collect())
    }

    #[test]
    fn the_verbs_of_a_runtime_are_understood() {
        let create = Verb::Create { bundle: "/b".into(), pid_file: "/p".into(), console_socket: None };
        let terminal = Verb::Create { bundle: "/b".into(), pid_file: "/p".into(), console_socket: Some("/s".into()) };
        let exec = Verb::Exec { process: "/j".into(), pid_file: "/p".into(), console_socket: None };
        for (line, verb) in [
            ("create --bundle /b --pid-file /p id", create.clone()),
            ("--systemd-cgroup create --bundle /b --pid-file /p --no-pivot id", create),
            ("create --bundle /b --pid-file /p --console-socket /s id", terminal),
            ("start id", Verb::Start),
            ("state id", Verb::State),
            ("kill id 9", Verb::Kill { signal: 9, is_for_all: false }),
            ("kill --all id 15", Verb::Kill { signal: 15, is_for_all: true }),
            ("delete --force id", Verb::Delete { is_forced: true }),
            ("exec --process /j --pid-file /p id", exec),
            ("update --resources - id", Verb::Update),
        ] {
            let line = format!("--root=/r --shim=/bin/containerd-shim-x --shim-config=/c --shim-pulls-image {line}");
            let invocation = parsed(&line).unwrap_or_else(|error| panic!("{line}: {error}"));
            assert_eq!((invocation.verb, invocation.id.as_str()), (verb, "id"), "{line}");
            let settings = invocation.settings;
            assert_eq!((settings.root, settings.shim), ("/r".into(), "/bin/containerd-shim-x".into()));
            assert_eq!((settings.config, settings.pulls_image), (Some("/c".into()), true));
        }
        assert_eq!(parsed("--version").map(|invocation| invocation.verb), Ok(Verb::Version));
    }

    #[test]
    fn what_cannot_be_done_is_named() {
        for (line, error) in [
            ("checkpoint id", "checkpoint is not supported for containers of a shim"),
            ("restore id", "restore is not supported for containers of a shim"),
            ("features", "features is not supported for containers of a shim"),
            ("exec --process /j --pid-file /p --detach id", "option --detach is not supported for exec"),
            (
                "exec --process /j --pid-file /p --tty id",
                "option --tty without --console-socket is not supported for exec",
            ),
            ("create --bundle /b id", "create needs --pid-file"),
            ("start", "a verb needs a container's id"),
            ("start a b", "\"b\" is too much"),
            ("kill id TERM", "\"TERM\" is no signal"),
            ("update --resources /f id", "update takes its resources from standard input only: --resources -"),
            ("--debug start id", "option --debug is not supported for any verb"),
        ] {
            assert_eq!(parsed(line).expect_err(line).to_string(), error);
        }
    }
}
