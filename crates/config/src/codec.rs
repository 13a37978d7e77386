//! How each type of value is written in a file: a codec per form.
//!
//! One field of a struct has one codec (named in the table of keys). Files, flags, the printed template and the
//! comparison of two configurations all go through it, so they cannot disagree.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::marker::PhantomData;
use std::path::{Path as StdPath, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use crate::handler::{
    DEFAULT_CONTAINER_MIN_MEMORY, DEFAULT_CREATE_TIMEOUT, DEFAULT_MONITOR_ENV, DEFAULT_MONITOR_SLICE,
    DEFAULT_RUNTIME_ROOT,
};
use crate::units::{ByteCount, format_duration, parse_duration, parse_size};
use crate::value::{
    AdditionalDevice, CAPABILITIES, CIPHER_SUITES, CpuSet, IdMapping, LogLevel, MonitorCgroup, PullCgroup, Sysctl,
    Ulimit,
};

/// A value as a file or flag gives it, of the right shape but not yet judged.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Raw {
    /// A string.
    Text(String),
    /// A boolean.
    Flag(bool),
    /// An integer.
    Integer(i64),
    /// An array of strings.
    List(Vec<String>),
    /// A table of strings.
    Map(BTreeMap<String, String>),
}

/// The shape a key wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Text,
    Flag,
    Integer,
    /// A string such as `5s`, or an integer number of nanoseconds.
    Duration,
    List,
    Map,
}

impl Kind {
    /// In words, for messages.
    pub(crate) fn describe(self) -> &'static str {
        match self {
            Self::Text => "a string",
            Self::Flag => "true or false",
            Self::Integer => "an integer",
            Self::Duration => "a duration such as \"10s\"",
            Self::List => "an array of strings",
            Self::Map => "a table of strings",
        }
    }
}

/// Reads and writes one form of value.
pub(crate) trait Codec {
    /// The checked type.
    type Value;
    /// The shape of the raw form.
    const KIND: Kind;
    /// Writes.
    fn encode(value: &Self::Value) -> Raw;
    /// Reads; the error says what is wrong with the value.
    fn decode(raw: Raw) -> Result<Self::Value, String>;
}

/// Reached only if a raw value got past the check of shapes, which compares with [`Codec::KIND`].
fn mismatch<T>(kind: Kind) -> Result<T, String> {
    Err(format!("expected {}", kind.describe()))
}

macro_rules! codec {
    ($(#[$meta:meta])* $name:ident: $value:ty as $kind:ident, $encode:expr, |$raw:pat_param| $decode:expr) => {
        $(#[$meta])*
        pub(crate) struct $name;
        impl Codec for $name {
            type Value = $value;
            const KIND: Kind = Kind::$kind;
            fn encode(value: &Self::Value) -> Raw {
                let encode: fn(&$value) -> _ = $encode;
                Raw::$kind(encode(value))
            }
            fn decode(raw: Raw) -> Result<Self::Value, String> {
                match raw {
                    Raw::$kind($raw) => $decode,
                    _ => mismatch(Self::KIND),
                }
            }
        }
    };
}

codec!(
    /// Any text.
    Text: String as Text, Clone::clone, |text| Ok(text)
);
codec!(
    /// A path that must not be empty.
    Path: PathBuf as Text, |p| show(p), |text| {
        if text.is_empty() { Err("must not be empty".into()) } else { Ok(text.into()) }
    }
);
codec!(
    /// A path that may be empty, which then means what its user makes of it.
    AnyPath: PathBuf as Text, |p| show(p), |text| Ok(text.into())
);
codec!(
    /// An absolute path.
    AbsolutePath: PathBuf as Text, |p| show(p), |text| {
        if StdPath::new(&text).is_absolute() { Ok(text.into()) } else { Err(format!("{text:?} is not an absolute path")) }
    }
);
codec!(
    /// A path; empty text is none.
    OptPath: Option<PathBuf> as Text, |p| p.as_deref().map(show).unwrap_or_default(), |text| {
        Ok(if text.is_empty() { None } else { Some(text.into()) })
    }
);
codec!(
    /// A boolean.
    Bool: bool as Flag, |b| *b, |flag| Ok(flag)
);
codec!(
    /// Strings.
    List: Vec<String> as List, Clone::clone, |list| Ok(list)
);
codec!(
    /// Strings, of which empty ones are dropped.
    NonEmptyList: Vec<String> as List, Clone::clone, |list| Ok(list.into_iter().filter(|s| !s.is_empty()).collect())
);
codec!(
    /// Paths; empty ones are dropped.
    Paths: Vec<PathBuf> as List, |l| l.iter().map(|p| show(p)).collect(), |list| {
        Ok(list.into_iter().filter(|s| !s.is_empty()).map(PathBuf::from).collect())
    }
);
codec!(
    /// Absolute paths.
    AbsolutePaths: Vec<PathBuf> as List, |l| l.iter().map(|p| show(p)).collect(), |list| {
        each(list, |text| <AbsolutePath as Codec>::decode(Raw::Text(text.to_owned())))
    }
);
codec!(
    /// A whole number of seconds, not negative.
    Seconds: Duration as Integer, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX), |number| {
        u64::try_from(number).map(Duration::from_secs).map_err(|_| format!("{number} is negative"))
    }
);
codec!(
    /// A whole number of seconds; anything below 30 is raised to 30 elsewhere, so negative counts as zero here.
    LenientSeconds: Duration as Integer, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX), |number| {
        Ok(Duration::from_secs(u64::try_from(number).unwrap_or(0)))
    }
);
codec!(
    /// Creation timeout in seconds; 0 is the default.
    CreateTimeout: Duration as Integer, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX), |number| {
        Ok(match u64::try_from(number).unwrap_or(1) {
            0 => DEFAULT_CREATE_TIMEOUT,
            seconds => Duration::from_secs(seconds),
        })
    }
);
codec!(
    /// A count, not negative.
    Count: u64 as Integer, |n| i64::try_from(*n).unwrap_or(i64::MAX), |number| {
        u64::try_from(number).map_err(|_| format!("{number} is negative"))
    }
);
codec!(
    /// A share of a million.
    PerMillion: u32 as Integer, |n| i64::from(*n), |number| {
        u32::try_from(number).ok().filter(|n| *n <= 1_000_000).ok_or_else(|| format!("{number} is not in 0 to 1000000"))
    }
);
codec!(
    /// A TCP port.
    Port: u16 as Integer, |n| i64::from(*n), |number| {
        u16::try_from(number).map_err(|_| format!("{number} is not a port"))
    }
);
codec!(
    /// A signed number.
    Number: i64 as Integer, |n| *n, |number| Ok(number)
);
codec!(
    /// A number of processes; zero and below is no limit.
    PidsLimit: Option<u64> as Integer, |n| n.map_or(-1, |n| i64::try_from(n).unwrap_or(i64::MAX)), |number| {
        Ok(u64::try_from(number).ok().filter(|n| *n > 0))
    }
);
codec!(
    /// A user or group id; negative is none.
    OptId: Option<u32> as Integer, |n| n.map_or(-1, i64::from), |number| {
        if number < 0 { Ok(None) } else { u32::try_from(number).map(Some).map_err(|_| format!("{number} is not an id")) }
    }
);
codec!(
    /// Largest gRPC message in bytes; zero and below is the default.
    MessageSize: ByteCount as Integer, |n| i64::try_from(n.bytes()).unwrap_or(i64::MAX), |number| {
        Ok(match u64::try_from(number) {
            Ok(bytes) if bytes > 0 => ByteCount::new(bytes),
            _ => ByteCount::mib(80),
        })
    }
);

/// Smaller limits would cut a log below one read of the monitor. Source: CRI-O does this.
pub(crate) const MIN_LOG_SIZE: i64 = 8192;

codec!(
    /// Largest log of a container; negative is none.
    LogSize: Option<ByteCount> as Integer, |n| n.map_or(-1, |n| i64::try_from(n.bytes()).unwrap_or(i64::MAX)), |number| {
        match u64::try_from(number) {
            Err(_) => Ok(None),
            Ok(_) if number < MIN_LOG_SIZE => Err(format!("{number} must be negative or at least {MIN_LOG_SIZE}")),
            Ok(bytes) => Ok(Some(ByteCount::new(bytes))),
        }
    }
);
codec!(
    /// A regular expression.
    Regex: String as Text, Clone::clone, |text| match regex::Regex::new(&text) {
        Ok(_) => Ok(text),
        // Begins as CRI-O's message does, which its tests and people's alerts look for. The library's text shows the
        // expression over several lines; the reason is in its last one.
        Err(e) => Err(format!(
            "custom log level filter does not compile: {text:?}: {}",
            e.to_string().lines().last().unwrap_or_default().trim_start_matches("error: ")
        )),
    }
);
codec!(
    /// A log level in any case. The message begins as CRI-O's does, which its tests and people's alerts look for.
    Level: LogLevel as Text, |l| l.as_str().to_owned(), |text| {
        text.to_ascii_lowercase().parse().map_err(|_| format!(
            "not a valid logrus Level: {text:?}, use fatal, panic, error, warn, info, debug or trace"
        ))
    }
);
codec!(
    /// Kernel parameters; empty entries are dropped.
    Sysctls: Vec<Sysctl> as List, |l| l.iter().map(ToString::to_string).collect(), |list| {
        each(list.into_iter().filter(|s| !s.is_empty()), Sysctl::parse)
    }
);
codec!(
    /// Resource limits.
    Ulimits: Vec<Ulimit> as List, |l| l.iter().map(ToString::to_string).collect(), |list| each(list, Ulimit::parse)
);
codec!(
    /// Devices.
    Devices: Vec<AdditionalDevice> as List, |l| l.iter().map(ToString::to_string).collect(), |list| {
        each(list, AdditionalDevice::parse)
    }
);
codec!(
    /// Capability names in any case, without `CAP_`.
    Capabilities: Vec<String> as List, Clone::clone, |list| each(list, |text| {
        let name = text.to_ascii_uppercase();
        if CAPABILITIES.contains(&name.as_str()) { Ok(name) } else { Err(format!("{text:?} is not a capability")) }
    })
);
codec!(
    /// IANA names of cipher suites.
    CipherSuites: Vec<String> as List, Clone::clone, |list| each(list, |text| {
        if CIPHER_SUITES.contains(&text) { Ok(text.to_owned()) } else { Err(format!("{text:?} is not a known cipher suite")) }
    })
);
codec!(
    /// `KEY=VALUE` entries.
    Environment: Vec<String> as List, Clone::clone, |list| each(list, |text| match text.split_once('=') {
        Some((name, _)) if !name.is_empty() && !text.contains('\0') => Ok(text.to_owned()),
        _ => Err(format!("{text:?} is not of the form KEY=VALUE")),
    })
);
codec!(
    /// Monitor environment; empty is the default.
    MonitorEnv: Vec<String> as List, Clone::clone, |list| {
        if list.is_empty() {
            Ok(vec![DEFAULT_MONITOR_ENV.to_owned()])
        } else {
            <Environment as Codec>::decode(Raw::List(list))
        }
    }
);
codec!(
    /// Id ranges, comma separated.
    IdMappings: Vec<IdMapping> as Text,
    |l| l.iter().map(ToString::to_string).collect::<Vec<_>>().join(","),
    |text| if text.is_empty() { Ok(Vec::new()) } else { text.split(',').map(IdMapping::parse).collect() }
);
codec!(
    /// A list of CPUs; empty is none.
    Cpus: Option<CpuSet> as Text, |c| c.as_ref().map(|c| c.as_str().to_owned()).unwrap_or_default(), |text| {
        if text.is_empty() { Ok(None) } else { CpuSet::parse(&text).map(Some) }
    }
);
codec!(
    /// The cgroup of monitors; empty is the manager's default, settled once the manager is known.
    MonitorGroup: MonitorCgroup as Text, |c| c.as_str().to_owned(), |text| match text.as_str() {
        "" => Ok(MonitorCgroup::Slice(DEFAULT_MONITOR_SLICE.to_owned())),
        "pod" => Ok(MonitorCgroup::Sandbox),
        slice if is_slice(slice) => Ok(MonitorCgroup::Slice(text)),
        _ => Err(format!("{text:?} is neither \"pod\" nor a systemd slice")),
    }
);
codec!(
    /// The same, deprecated, for all handlers; empty is none.
    ConmonGroup: String as Text, Clone::clone, |text| match text.as_str() {
        "" | "pod" => Ok(text),
        slice if is_slice(slice) => Ok(text),
        _ => Err(format!("{text:?} is neither \"pod\" nor a systemd slice")),
    }
);
codec!(
    /// The cgroup of pulls.
    PullGroup: PullCgroup as Text, |c| c.as_str().to_owned(), |text| match text.as_str() {
        "" => Ok(PullCgroup::Daemon),
        "pod" => Ok(PullCgroup::Sandbox),
        slice if is_slice(slice) => Ok(PullCgroup::Slice(text)),
        _ => Err(format!("{text:?} is neither empty, \"pod\" nor a systemd slice")),
    }
);
codec!(
    /// Time zone: empty, `Local` or an IANA name. Whether the host knows the name is a question for the host.
    Timezone: String as Text, Clone::clone, |text| {
        let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '_' | '-' | '+');
        if text.chars().all(is_name) && !text.starts_with('/') {
            Ok(text)
        } else {
            Err(format!("{text:?} is not the name of a time zone"))
        }
    }
);
codec!(
    /// An image reference.
    ImageReference: String as Text, Clone::clone, |text| check_reference(&text).map(|()| text)
);
codec!(
    /// Metrics collectors, prefixes taken off.
    Collectors: Vec<String> as List, Clone::clone, |list| Ok(list
        .into_iter()
        .map(|name| {
            let name = name.strip_prefix("container_runtime_").unwrap_or(&name);
            name.strip_prefix("crio_").unwrap_or(name).to_owned()
        })
        .collect())
);
codec!(
    /// Groups of sandbox metrics.
    PodMetrics: Vec<String> as List, Clone::clone, |list| {
        if list.len() > 1 && list.iter().any(|name| name == "all") {
            return Err("\"all\" must be the only element".into());
        }
        each(list, |text| {
            if text == "all" || crate::model::POD_METRICS.contains(&text) {
                Ok(text.to_owned())
            } else {
                Err(format!("{text:?} is not one of all, {}", crate::model::POD_METRICS.join(", ")))
            }
        })
    }
);
codec!(
    /// State directory of a runtime; empty is the default.
    RuntimeRoot: PathBuf as Text, |p| show(p), |text| {
        Ok(if text.is_empty() { DEFAULT_RUNTIME_ROOT.into() } else { text.into() })
    }
);
codec!(
    /// A size text; empty is the default.
    MinMemory: ByteCount as Text, ToString::to_string, |text| {
        if text.is_empty() { Ok(DEFAULT_CONTAINER_MIN_MEMORY) } else { parse_size(&text).map_err(|e| e.to_string()) }
    }
);
codec!(
    /// A table of texts.
    TextMap: BTreeMap<String, String> as Map, Clone::clone, |map| Ok(map)
);
codec!(
    /// Binaries per platform.
    PlatformPaths: BTreeMap<String, PathBuf> as Map,
    |m| m.iter().map(|(k, v)| (k.clone(), show(v))).collect(),
    |map| map
        .into_iter()
        .map(|(platform, path)| match platform.split('/').count() {
            2 | 3 if platform.split('/').all(|part| !part.is_empty()) => Ok((platform, PathBuf::from(path))),
            _ => Err(format!("{platform:?} is not of the form os/arch or os/arch/variant")),
        })
        .collect()
);

/// One of the words of an enum.
pub(crate) struct Word<T>(PhantomData<T>);
impl<T: FromStr<Err = crate::value::UnknownWord> + Display> Codec for Word<T> {
    type Value = T;
    const KIND: Kind = Kind::Text;
    fn encode(value: &T) -> Raw {
        Raw::Text(value.to_string())
    }
    fn decode(raw: Raw) -> Result<T, String> {
        match raw {
            Raw::Text(text) => text.parse().map_err(|e: crate::value::UnknownWord| e.to_string()),
            _ => mismatch(Self::KIND),
        }
    }
}

/// A duration text, or a number of nanoseconds.
pub(crate) struct GoDuration;
impl Codec for GoDuration {
    type Value = Duration;
    const KIND: Kind = Kind::Duration;
    fn encode(value: &Duration) -> Raw {
        Raw::Text(format_duration(*value))
    }
    fn decode(raw: Raw) -> Result<Duration, String> {
        match raw {
            Raw::Text(text) => parse_duration(&text).map_err(|e| e.to_string()),
            Raw::Integer(nanos) => {
                u64::try_from(nanos).map(Duration::from_nanos).map_err(|_| format!("{nanos} is negative"))
            }
            _ => mismatch(Self::KIND),
        }
    }
}

codec!(
    /// A duration text; empty is none.
    OptDuration: Option<Duration> as Text, |d| d.map(format_duration).unwrap_or_default(), |text| {
        if text.is_empty() { Ok(None) } else { parse_duration(&text).map(Some).map_err(|e| e.to_string()) }
    }
);

/// A path as text. Paths come from files that are UTF-8, so nothing is lost.
fn show(path: &StdPath) -> String {
    path.to_string_lossy().into_owned()
}

/// Whether text names a systemd slice.
fn is_slice(text: &str) -> bool {
    text.strip_suffix(".slice").is_some_and(|stem| !stem.is_empty()) && !text.contains('/')
}

/// Reads every entry and reports all bad ones.
fn each<T, S: AsRef<str>>(
    list: impl IntoIterator<Item = S>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<Vec<T>, String> {
    let (mut values, mut problems) = (Vec::new(), Vec::new());
    for text in list {
        match read(text.as_ref()) {
            Ok(value) => values.push(value),
            Err(problem) => problems.push(problem),
        }
    }
    if problems.is_empty() { Ok(values) } else { Err(problems.join("; ")) }
}

/// Checks the outer form of `[host[:port]/]path[:tag][@algorithm:hex]`; what it means is decided where it is pulled.
///
/// Source: distribution/reference grammar.
fn check_reference(text: &str) -> Result<(), String> {
    let bad = |why: &str| Err(format!("{text:?} is not an image reference: {why}"));
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    if let Some(digest) = digest {
        let is_digest = digest.split_once(':').is_some_and(|(algorithm, hex)| {
            !algorithm.is_empty() && hex.len() >= 32 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        });
        if !is_digest {
            return bad("the digest is malformed");
        }
    }
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name.get(slash..).and_then(|last| last.find(':')) {
        Some(at) => (name.get(..slash + at).unwrap_or_default(), name.get(slash + at + 1..)),
        None => (name, None),
    };
    if let Some(tag) = tag {
        let is_tag = tag.len() <= 128
            && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
            && tag.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'_');
        if !is_tag {
            return bad("the tag is malformed");
        }
    }
    let mut components = path.split('/').peekable();
    if let Some(first) = components.peek() {
        let is_host = path.contains('/')
            && (first.contains(['.', ':', '[']) || *first == "localhost" || first.chars().any(char::is_uppercase));
        if is_host {
            if first.is_empty()
                || !first.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
            {
                return bad("the host is malformed");
            }
            components.next();
        }
    }
    for component in components {
        let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
        let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if !component.bytes().all(inside) || !edge(component.bytes().next()) || !edge(component.bytes().last()) {
            return bad("names are lower case letters, digits and separators");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let digest = format!("a/b@sha256:{}", "0f".repeat(32));
        for good in
            ["registry.k8s.io/pause:3.10.1", "busybox", "localhost:5000/a/b_c:x", "[::1]:5000/a", "Host/a", &digest]
        {
            assert_eq!(check_reference(good), Ok(()), "{good}");
        }
        for bad in ["", "Busybox", "a//b", "a:", "a:-x", "a b", "a@sha256:xyz", "//no:s", "a/-b", ":tag"] {
            assert!(check_reference(bad).is_err(), "{bad}");
        }
    }
}
