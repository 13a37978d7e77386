//! The command line, as conmon 2.2 has it: what is accepted, and one checked value made of it.
//!
//! The syntax is that of GLib's option parser, which callers of conmon rely on: `--name value`, `--name=value`,
//! `-n value`, `-nvalue`, single letters that take nothing may be joined, `--` ends the options.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;

/// Why a command line is refused.
#[derive(Debug, PartialEq, Eq, Error)]
pub(crate) enum OptionsError {
    /// No such option.
    #[error("unknown option {option:?}")]
    Unknown {
        /// As it was written.
        option: String,
    },
    /// A word that belongs to no option.
    #[error("unexpected argument {word:?}")]
    Stray {
        /// As it was written.
        word: String,
    },
    /// The last word is an option that needs a value.
    #[error("missing value for {option}")]
    MissingValue {
        /// Its long name.
        option: &'static str,
    },
    /// A switch was given a value.
    #[error("{option} takes no value")]
    SurplusValue {
        /// Its long name.
        option: &'static str,
    },
    /// A value that is not what the option needs.
    #[error("invalid value {value:?} for {option}: {expected}")]
    Invalid {
        /// Its long name.
        option: &'static str,
        /// As it was written.
        value: String,
        /// What would have been accepted.
        expected: &'static str,
    },
    /// An option without which nothing can be done.
    #[error("{option} is required{context}")]
    Required {
        /// Its long name.
        option: &'static str,
        /// When it is required; empty or beginning with a space.
        context: &'static str,
    },
    /// conmon knows it, this monitor does not.
    #[error("{option} is not supported by this monitor")]
    Unsupported {
        /// Its long name.
        option: &'static str,
    },
    /// A value that would end a C string early.
    #[error("a value of {option} contains a zero byte")]
    ZeroByte {
        /// Its long name.
        option: &'static str,
    },
}

/// Where output goes. Source: conmon(8), `--log-path`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LogTarget {
    /// A file in the format the kubelet reads.
    K8sFile(PathBuf),
    /// The journal.
    Journald,
    /// Nowhere.
    Off,
}

/// What the monitor is to make the runtime do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Task {
    /// Create a container.
    Create,
    /// Restore a container from this checkpoint directory.
    Restore(PathBuf),
    /// Run one more process, described by this file, in a container.
    Exec(PathBuf),
}

/// A program to run after everything is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ExitCommand {
    /// Absolute path.
    pub path: OsString,
    /// Arguments without the program's name.
    pub args: Vec<OsString>,
}

/// What becomes of standard input when the last writer leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnStdinEnd {
    /// The container reads an end of file.
    Close,
    /// It stays open for later writers.
    KeepOpen,
}

/// How the container's standard streams are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stdio {
    /// Pipes for output, nothing to read.
    Output,
    /// Pipes, standard input fed by attached clients.
    Piped(OnStdinEnd),
    /// A pseudo terminal.
    Terminal,
}

/// What happens to a log file that reached its greatest size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnLogFull {
    /// It is replaced by an empty one.
    StartAnew,
    /// It is renamed to `.1`, earlier ones to `.2` and so on, and at most this many are kept.
    Rotate(u32),
}

/// How much of the monitor's own doings is reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    /// What keeps the monitor from working.
    Error,
    /// What it went on without.
    Warning,
    /// What an operator would tell a colleague.
    Info,
    /// Everything.
    Debug,
}

/// A checked command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Options {
    /// 0: old names of the values on the sync pipe; 1 and above: `data`.
    pub api_version: u32,
    /// Bundle directory; the working directory when not given.
    pub bundle: PathBuf,
    /// Container id.
    pub cid: OsString,
    /// The id under which the attach socket is found; the container id when not given.
    pub cuuid: OsString,
    /// Container name, for the journal.
    pub name: OsString,
    /// Runtime binary.
    pub runtime: PathBuf,
    /// Given to the runtime before the verb.
    pub runtime_args: Vec<OsString>,
    /// Given to the runtime after the verb.
    pub runtime_opts: Vec<OsString>,
    /// Where the runtime writes the process id.
    pub container_pidfile: PathBuf,
    /// Where the monitor's process id is written.
    pub monitor_pidfile: Option<PathBuf>,
    /// Log targets in the order given; at least one.
    pub logs: Vec<LogTarget>,
    /// Greatest size of the log file in bytes.
    pub log_size_max_bytes: Option<u64>,
    /// Greatest number of bytes that are logged at all.
    pub log_global_size_max_bytes: Option<u64>,
    /// What happens at `log_size_max_bytes`.
    pub on_log_full: OnLogFull,
    /// Whether the log file is synced at the end.
    pub is_log_synced: bool,
    /// Extra journal field.
    pub log_tag: Option<OsString>,
    /// Extra journal fields, each `NAME=value`.
    pub log_labels: Vec<OsString>,
    /// Whether the journal is told of partial lines.
    pub has_partial_message: bool,
    /// Own reporting.
    pub level: Level,
    /// Whether own messages go to syslog too.
    pub has_syslog: bool,
    /// Directory of exit files.
    pub exit_dir: Option<PathBuf>,
    /// Persistent directory of the container.
    pub persist_dir: Option<PathBuf>,
    /// Directory in which the attach socket is found.
    pub socket_dir: Option<PathBuf>,
    /// Whether the attach socket is only made in the bundle.
    pub has_full_attach: bool,
    /// Run by the caller's end: whether the monitor stays the caller's child.
    pub is_sync: bool,
    /// Whether cgroups are managed by systemd.
    pub has_systemd_cgroup: bool,
    /// Whether the runtime must not use pivot_root.
    pub has_no_pivot: bool,
    /// Whether the runtime must not make a session keyring.
    pub has_no_new_keyring: bool,
    /// Standard streams.
    pub stdio: Stdio,
    /// The container's process is killed after this time.
    pub timeout: Option<Duration>,
    /// Waited before the exit command.
    pub exit_delay: Duration,
    /// Run at the very end.
    pub exit_command: Option<ExitCommand>,
    /// Create, restore or exec.
    pub task: Task,
}

/// What a command line asks for.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Request {
    /// The options' help.
    Help,
    /// The version.
    Version,
    /// To monitor.
    Monitor(Box<Options>),
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Takes {
    Nothing,
    Value,
}

/// Long name, letter, whether it takes a value, help. Options that are known but refused are in the table too, so that the
/// answer can name them.
struct Known(&'static str, Option<u8>, Takes, &'static str);

const KNOWN: &[Known] = &[
    Known("help", Some(b'h'), Takes::Nothing, "show this text"),
    Known("version", None, Takes::Nothing, "print the version and end"),
    Known("api-version", None, Takes::Value, "version of the sync pipe's messages"),
    Known("bundle", Some(b'b'), Takes::Value, "bundle directory"),
    Known("cid", Some(b'c'), Takes::Value, "container id"),
    Known("conmon-pidfile", Some(b'P'), Takes::Value, "file for the monitor's process id"),
    Known("container-pidfile", Some(b'p'), Takes::Value, "file for the container's process id"),
    Known("pidfile", None, Takes::Value, "the same as --container-pidfile"),
    Known("cuuid", Some(b'u'), Takes::Value, "id that names the attach socket"),
    Known("exec", Some(b'e'), Takes::Nothing, "run a process in a running container"),
    Known("exec-attach", None, Takes::Nothing, "not supported"),
    Known("exec-process-spec", None, Takes::Value, "file that describes the process to run"),
    Known("exit-command", None, Takes::Value, "program to run at the end"),
    Known("exit-command-arg", None, Takes::Value, "argument for it, repeatable"),
    Known("exit-delay", None, Takes::Value, "seconds before it"),
    Known("exit-dir", None, Takes::Value, "directory of exit files"),
    Known("full-attach", None, Takes::Nothing, "make the attach socket in the bundle only"),
    Known("leave-stdin-open", None, Takes::Nothing, "keep standard input open when a client leaves"),
    Known("log-allowlist-dir", None, Takes::Value, "log files must be beneath one of these, repeatable"),
    Known("log-global-size-max", None, Takes::Value, "bytes that are logged at most"),
    Known("log-label", None, Takes::Value, "further journal field NAME=value, repeatable"),
    Known("log-level", None, Takes::Value, "own messages: error, warn, info, debug"),
    Known("log-max-files", None, Takes::Value, "rotated log files kept"),
    Known("log-path", Some(b'l'), Takes::Value, "driver:path or path, repeatable"),
    Known("log-rotate", None, Takes::Nothing, "rename a full log file instead of emptying it"),
    Known("log-size-max", None, Takes::Value, "greatest size of the log file"),
    Known("log-tag", None, Takes::Value, "journal field CONTAINER_TAG"),
    Known("name", Some(b'n'), Takes::Value, "container name"),
    Known("no-container-partial-message", None, Takes::Nothing, "do not mark partial lines in the journal"),
    Known("no-new-keyring", None, Takes::Nothing, "passed to the runtime"),
    Known("no-pivot", None, Takes::Nothing, "passed to the runtime"),
    Known("no-sync-log", None, Takes::Nothing, "do not sync the log file at the end"),
    Known("persist-dir", Some(b'0'), Takes::Value, "persistent directory of the container"),
    Known("replace-listen-pid", None, Takes::Nothing, "not supported"),
    Known("restore", None, Takes::Value, "restore from this checkpoint directory"),
    Known("restore-arg", None, Takes::Value, "the same as --runtime-opt"),
    Known("runtime", Some(b'r'), Takes::Value, "runtime binary"),
    Known("runtime-arg", None, Takes::Value, "argument before the runtime's verb, repeatable"),
    Known("runtime-opt", None, Takes::Value, "argument after the runtime's verb, repeatable"),
    Known("sdnotify-socket", None, Takes::Value, "not supported"),
    Known("seccomp-notify-plugins", None, Takes::Value, "not supported"),
    Known("seccomp-notify-socket", None, Takes::Value, "not supported"),
    Known("socket-dir-path", None, Takes::Value, "directory of attach sockets"),
    Known("stdin", Some(b'i'), Takes::Nothing, "give the container a standard input"),
    Known("sync", None, Takes::Nothing, "stay the caller's child"),
    Known("syslog", None, Takes::Nothing, "send own messages to syslog too"),
    Known("systemd-cgroup", Some(b's'), Takes::Nothing, "passed to the runtime"),
    Known("terminal", Some(b't'), Takes::Nothing, "give the container a pseudo terminal"),
    Known("timeout", Some(b'T'), Takes::Value, "kill the container after this many seconds"),
];

/// The text of `--help`.
#[must_use]
pub(crate) fn help() -> String {
    let mut text = String::from("Usage:\n  crio-monitor [OPTION...]\n\nOptions:\n");
    for Known(name, letter, takes, what) in KNOWN {
        let letter = letter.map_or_else(String::new, |letter| format!("-{}, ", char::from(letter)));
        let value = if *takes == Takes::Value { "=VALUE" } else { "" };
        text.push_str(&format!("  {:<38} {what}\n", format!("{letter}--{name}{value}")));
    }
    text
}

type Pair = (&'static str, OsString);

fn split_words(words: Vec<OsString>) -> Result<Vec<Pair>, OptionsError> {
    let mut found = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let bytes = word.as_bytes();
        if bytes == b"--" {
            if let Some(stray) = words.next() {
                return Err(OptionsError::Stray { word: stray.to_string_lossy().into_owned() });
            }
        } else if let Some(long) = bytes.strip_prefix(b"--") {
            found.push(long_option(long, &word, &mut words)?);
        } else if bytes.len() > 1 && bytes[0] == b'-' {
            short_options(&bytes[1..], &word, &mut words, &mut found)?;
        } else {
            return Err(OptionsError::Stray { word: word.to_string_lossy().into_owned() });
        }
    }
    Ok(found)
}

fn unknown(word: &OsStr) -> OptionsError {
    OptionsError::Unknown { option: word.to_string_lossy().into_owned() }
}

fn long_option(long: &[u8], word: &OsStr, rest: &mut impl Iterator<Item = OsString>) -> Result<Pair, OptionsError> {
    let (name, value) = match long.iter().position(|byte| *byte == b'=') {
        Some(at) => (&long[..at], Some(OsString::from_vec(long[at + 1..].to_vec()))),
        None => (long, None),
    };
    let Known(name, _, takes, _) =
        KNOWN.iter().find(|known| known.0.as_bytes() == name).ok_or_else(|| unknown(word))?;
    match (takes, value) {
        (Takes::Nothing, None) => Ok((name, OsString::new())),
        (Takes::Nothing, Some(_)) => Err(OptionsError::SurplusValue { option: name }),
        (Takes::Value, Some(value)) => Ok((name, value)),
        (Takes::Value, None) => Ok((name, rest.next().ok_or(OptionsError::MissingValue { option: name })?)),
    }
}

fn short_options(
    letters: &[u8],
    word: &OsStr,
    rest: &mut impl Iterator<Item = OsString>,
    found: &mut Vec<Pair>,
) -> Result<(), OptionsError> {
    for (at, letter) in letters.iter().enumerate() {
        let Known(name, _, takes, _) =
            KNOWN.iter().find(|known| known.1 == Some(*letter)).ok_or_else(|| unknown(word))?;
        if *takes == Takes::Nothing {
            found.push((name, OsString::new()));
            continue;
        }
        let value = match &letters[at + 1..] {
            [] => rest.next().ok_or(OptionsError::MissingValue { option: name })?,
            attached => OsString::from_vec(attached.to_vec()),
        };
        found.push((name, value));
        return Ok(());
    }
    Ok(())
}

fn number(option: &'static str, value: &OsStr) -> Result<i64, OptionsError> {
    value.to_str().and_then(|text| text.trim().parse().ok()).ok_or_else(|| OptionsError::Invalid {
        option,
        value: value.to_string_lossy().into_owned(),
        expected: "a whole number is expected",
    })
}

/// A limit in bytes; zero and below mean none, as conmon has it.
fn limit(option: &'static str, value: &OsStr) -> Result<Option<u64>, OptionsError> {
    Ok(u64::try_from(number(option, value)?).ok().filter(|limit| *limit > 0))
}

fn seconds(option: &'static str, value: &OsStr) -> Result<Duration, OptionsError> {
    Ok(Duration::from_secs(u64::try_from(number(option, value)?).unwrap_or(0)))
}

fn log_target(value: &OsStr) -> Result<LogTarget, OptionsError> {
    let invalid = |expected| OptionsError::Invalid {
        option: "--log-path",
        value: value.to_string_lossy().into_owned(),
        expected,
    };
    let bytes = value.as_bytes();
    // A bare path has no driver, and a path may itself contain colons.
    let (driver, path) = match bytes.iter().position(|byte| *byte == b':') {
        Some(at) if !bytes[..at].contains(&b'/') => (&bytes[..at], &bytes[at + 1..]),
        _ => match bytes {
            b"journald" | b"off" | b"null" | b"none" | b"passthrough" | b"k8s-file" => (bytes, &b""[..]),
            path => (&b"k8s-file"[..], path),
        },
    };
    match driver {
        b"" | b"k8s-file" if path.is_empty() => Err(invalid("the k8s-file driver needs a path")),
        b"" | b"k8s-file" => Ok(LogTarget::K8sFile(PathBuf::from(OsStr::from_bytes(path)))),
        b"journald" => Ok(LogTarget::Journald),
        b"off" | b"null" | b"none" => Ok(LogTarget::Off),
        b"passthrough" => Err(invalid("the passthrough driver is not supported by this monitor")),
        _ => Err(invalid("the drivers are k8s-file, journald, off, null and none")),
    }
}

fn level(value: &OsStr) -> Result<Level, OptionsError> {
    match value.to_str() {
        Some("error" | "fatal" | "panic") => Ok(Level::Error),
        Some("warn" | "warning") => Ok(Level::Warning),
        Some("info") => Ok(Level::Info),
        Some("debug" | "trace") => Ok(Level::Debug),
        _ => Err(OptionsError::Invalid {
            option: "--log-level",
            value: value.to_string_lossy().into_owned(),
            expected: "error, warn, info or debug is expected",
        }),
    }
}

fn label(value: OsString) -> Result<OsString, OptionsError> {
    let bytes = value.as_bytes();
    let name = bytes.split(|byte| *byte == b'=').next().unwrap_or_default();
    // Field names of the journal; a name that began with an underscore would claim to be trusted.
    let is_name = name.first().is_some_and(u8::is_ascii_uppercase)
        && name.iter().all(|byte| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_');
    if is_name && name.len() < bytes.len() {
        Ok(value)
    } else {
        Err(OptionsError::Invalid {
            option: "--log-label",
            value: value.to_string_lossy().into_owned(),
            expected: "NAME=value is expected, the name of capital letters, digits and underscores",
        })
    }
}

/// How many rotated log files are kept when `--log-max-files` is not given, as conmon has it.
const LOG_MAX_FILES_DEFAULT: u32 = 1;

/// Most rotated log files that are kept: each costs one rename at every rotation.
const LOG_MAX_FILES_MOST: u32 = 100;

/// What was said, before it is known whether it fits together.
#[derive(Default)]
struct Draft {
    api_version: u32,
    bundle: Option<PathBuf>,
    cid: Option<OsString>,
    cuuid: Option<OsString>,
    name: Option<OsString>,
    runtime: Option<PathBuf>,
    runtime_args: Vec<OsString>,
    runtime_opts: Vec<OsString>,
    container_pidfile: Option<PathBuf>,
    monitor_pidfile: Option<PathBuf>,
    logs: Vec<LogTarget>,
    allowed: Vec<PathBuf>,
    log_size_max_bytes: Option<u64>,
    log_global_size_max_bytes: Option<u64>,
    log_max_files: Option<u32>,
    log_tag: Option<OsString>,
    log_labels: Vec<OsString>,
    level: Option<Level>,
    exit_dir: Option<PathBuf>,
    persist_dir: Option<PathBuf>,
    socket_dir: Option<PathBuf>,
    timeout: Option<Duration>,
    exit_delay: Duration,
    exit_command: Option<OsString>,
    exit_command_args: Vec<OsString>,
    restore: Option<PathBuf>,
    process_spec: Option<PathBuf>,
    switches: Vec<&'static str>,
}

impl Draft {
    fn has(&self, switch: &str) -> bool {
        self.switches.contains(&switch)
    }

    fn take(&mut self, name: &'static str, value: OsString) -> Result<(), OptionsError> {
        if value.as_bytes().contains(&0) {
            return Err(OptionsError::ZeroByte { option: name });
        }
        match name {
            "api-version" => self.api_version = u32::try_from(number("--api-version", &value)?).unwrap_or(0),
            "bundle" => self.bundle = Some(value.into()),
            "cid" => self.cid = Some(value),
            "conmon-pidfile" => self.monitor_pidfile = Some(value.into()),
            "container-pidfile" | "pidfile" => self.container_pidfile = Some(value.into()),
            "cuuid" => self.cuuid = Some(value),
            "exec-process-spec" => self.process_spec = Some(value.into()),
            "exit-command" => self.exit_command = Some(value),
            "exit-command-arg" => self.exit_command_args.push(value),
            "exit-delay" => self.exit_delay = seconds("--exit-delay", &value)?,
            "exit-dir" => self.exit_dir = Some(value.into()),
            "log-allowlist-dir" => self.allowed.push(value.into()),
            "log-global-size-max" => self.log_global_size_max_bytes = limit("--log-global-size-max", &value)?,
            "log-label" => self.log_labels.push(label(value)?),
            "log-level" => self.level = Some(level(&value)?),
            "log-max-files" => {
                let files = u32::try_from(number("--log-max-files", &value)?).unwrap_or(0);
                self.log_max_files = Some(files.min(LOG_MAX_FILES_MOST));
            }
            "log-path" => self.logs.push(log_target(&value)?),
            "log-size-max" => self.log_size_max_bytes = limit("--log-size-max", &value)?,
            "log-tag" => self.log_tag = Some(value),
            "name" => self.name = Some(value),
            "persist-dir" => self.persist_dir = Some(value.into()),
            "restore" => self.restore = Some(value.into()),
            "restore-arg" | "runtime-opt" => self.runtime_opts.push(value),
            "runtime" => self.runtime = Some(value.into()),
            "runtime-arg" => self.runtime_args.push(value),
            "socket-dir-path" => self.socket_dir = Some(value.into()),
            "timeout" => self.timeout = Some(seconds("--timeout", &value)?).filter(|time| !time.is_zero()),
            "exec-attach" => return Err(OptionsError::Unsupported { option: "--exec-attach" }),
            "replace-listen-pid" => return Err(OptionsError::Unsupported { option: "--replace-listen-pid" }),
            "sdnotify-socket" => return Err(OptionsError::Unsupported { option: "--sdnotify-socket" }),
            "seccomp-notify-plugins" => return Err(OptionsError::Unsupported { option: "--seccomp-notify-plugins" }),
            "seccomp-notify-socket" => return Err(OptionsError::Unsupported { option: "--seccomp-notify-socket" }),
            switch => self.switches.push(switch),
        }
        Ok(())
    }

    fn stdio(&self) -> Stdio {
        let end = if self.has("leave-stdin-open") { OnStdinEnd::KeepOpen } else { OnStdinEnd::Close };
        match (self.has("terminal"), self.has("stdin")) {
            (true, _) => Stdio::Terminal,
            (false, true) => Stdio::Piped(end),
            (false, false) => Stdio::Output,
        }
    }

    fn task(&mut self) -> Result<Task, OptionsError> {
        match (self.has("exec") || self.process_spec.is_some(), self.restore.take()) {
            (true, _) => match self.process_spec.take() {
                Some(spec) => Ok(Task::Exec(spec)),
                None => Err(OptionsError::Required { option: "--exec-process-spec", context: " with --exec" }),
            },
            (false, Some(checkpoint)) => Ok(Task::Restore(checkpoint)),
            (false, None) => Ok(Task::Create),
        }
    }

    fn check(mut self, working_directory: &Path) -> Result<Options, OptionsError> {
        let task = self.task()?;
        let cid = self.cid.take().ok_or(OptionsError::Required { option: "--cid", context: "" })?;
        // The id becomes a file name in the exit and socket directories.
        if cid.is_empty() || cid.as_bytes().contains(&b'/') || cid == "." || cid == ".." {
            return Err(OptionsError::Invalid {
                option: "--cid",
                value: cid.to_string_lossy().into_owned(),
                expected: "a plain file name is expected",
            });
        }
        let cuuid = match (self.cuuid.take(), &task) {
            (Some(cuuid), _) => cuuid,
            (None, Task::Exec(_)) => cid.clone(),
            (None, _) => return Err(OptionsError::Required { option: "--cuuid", context: "" }),
        };
        if cuuid.is_empty() || cuuid.as_bytes().contains(&b'/') || cuuid == "." || cuuid == ".." {
            return Err(OptionsError::Invalid {
                option: "--cuuid",
                value: cuuid.to_string_lossy().into_owned(),
                expected: "a plain file name is expected",
            });
        }
        if self.logs.is_empty() {
            return Err(OptionsError::Required { option: "--log-path", context: "" });
        }
        for log in &self.logs {
            self.check_allowed(log)?;
        }
        let container_pidfile = self.container_pidfile.take().unwrap_or_else(|| {
            let mut name = OsString::from("pidfile-");
            name.push(&cid);
            working_directory.join(name)
        });
        Ok(Options {
            api_version: self.api_version,
            bundle: self.bundle.take().unwrap_or_else(|| working_directory.to_owned()),
            name: self.name.take().unwrap_or_else(|| cid.clone()),
            runtime: self.runtime.take().ok_or(OptionsError::Required { option: "--runtime", context: "" })?,
            container_pidfile,
            monitor_pidfile: self.monitor_pidfile.take(),
            log_size_max_bytes: self.log_size_max_bytes,
            log_global_size_max_bytes: self.log_global_size_max_bytes,
            on_log_full: match (self.has("log-rotate"), self.log_max_files.unwrap_or(LOG_MAX_FILES_DEFAULT)) {
                (false, _) | (true, 0) => OnLogFull::StartAnew,
                (true, files) => OnLogFull::Rotate(files),
            },
            is_log_synced: !self.has("no-sync-log"),
            log_tag: self.log_tag.take(),
            has_partial_message: !self.has("no-container-partial-message"),
            level: self.level.unwrap_or(Level::Warning),
            has_syslog: self.has("syslog"),
            exit_dir: self.exit_dir.take(),
            persist_dir: self.persist_dir.take(),
            socket_dir: self.socket_dir.take(),
            has_full_attach: self.has("full-attach"),
            is_sync: self.has("sync"),
            has_systemd_cgroup: self.has("systemd-cgroup"),
            has_no_pivot: self.has("no-pivot"),
            has_no_new_keyring: self.has("no-new-keyring"),
            stdio: self.stdio(),
            timeout: self.timeout,
            exit_delay: self.exit_delay,
            exit_command: self.exit_command.take().map(|path| ExitCommand { path, args: self.exit_command_args }),
            runtime_args: self.runtime_args,
            runtime_opts: self.runtime_opts,
            logs: self.logs,
            log_labels: self.log_labels,
            cid,
            cuuid,
            task,
        })
    }

    fn check_allowed(&self, log: &LogTarget) -> Result<(), OptionsError> {
        let LogTarget::K8sFile(path) = log else { return Ok(()) };
        let is_plain = path.components().all(|part| part != std::path::Component::ParentDir);
        if self.allowed.is_empty() || (is_plain && self.allowed.iter().any(|directory| path.starts_with(directory))) {
            return Ok(());
        }
        Err(OptionsError::Invalid {
            option: "--log-path",
            value: path.to_string_lossy().into_owned(),
            expected: "a path beneath a directory of --log-allowlist-dir is expected",
        })
    }
}

/// Reads a command line without the program's name. `working_directory` stands in for a bundle that is not named.
pub(crate) fn parse(words: Vec<OsString>, working_directory: &Path) -> Result<Request, OptionsError> {
    let mut draft = Draft::default();
    for (name, value) in split_words(words)? {
        match name {
            "help" => return Ok(Request::Help),
            "version" => return Ok(Request::Version),
            _ => draft.take(name, value)?,
        }
    }
    Ok(Request::Monitor(Box::new(draft.check(working_directory)?)))
}

#[cfg(test)]
#[path = "options_tests.rs"]
mod tests;
