//! What a plugin is called with: environment and standard input, checked once.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::failure::{Code, Failure};
use crate::result::{CniResult, SUPPORTED};

/// Longest name of a device, bytes (`IFNAMSIZ` without its zero byte).
const NAME_MAX: usize = 15;
/// A configuration with its previous result has a few kilobytes.
const STDIN_MAX: u64 = 4 * 1024 * 1024;

/// What is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Add,
    Del,
    Check,
    Status,
    Gc,
    Version,
}

impl Verb {
    pub(crate) fn from_environment() -> Result<Self, Failure> {
        match std::env::var("CNI_COMMAND").as_deref() {
            Ok("ADD") => Ok(Self::Add),
            Ok("DEL") => Ok(Self::Del),
            Ok("CHECK") => Ok(Self::Check),
            Ok("STATUS") => Ok(Self::Status),
            Ok("GC") => Ok(Self::Gc),
            Ok("VERSION") => Ok(Self::Version),
            other => {
                let text = format!("unknown CNI_COMMAND: {}", other.unwrap_or_default());
                Err(Failure::new(Code::Environment, text))
            }
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Add => "ADD",
            Self::Del => "DEL",
            Self::Check => "CHECK",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        }
    }
}

/// A call. Fields that a verb has no use for are empty.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) verb: Verb,
    pub(crate) container_id: String,
    netns: Option<PathBuf>,
    pub(crate) ifname: String,
    arguments: BTreeMap<String, String>,
    pub(crate) path: Vec<PathBuf>,
    pub(crate) stdin: Vec<u8>,
    config: Value,
    pub(crate) version: String,
    /// Name of the network.
    pub(crate) network: String,
}

impl Request {
    /// Reads environment and standard input.
    pub(crate) fn load(verb: Verb) -> Result<Self, Failure> {
        let read = |name: &str| std::env::var(name).unwrap_or_default();
        let (container_id, netns, ifname) = (read("CNI_CONTAINERID"), read("CNI_NETNS"), read("CNI_IFNAME"));
        let path = read("CNI_PATH");
        let is_attachment = matches!(verb, Verb::Add | Verb::Del | Verb::Check);
        let needed = [
            ("CNI_CONTAINERID", is_attachment && container_id.is_empty()),
            ("CNI_NETNS", matches!(verb, Verb::Add | Verb::Check) && netns.is_empty()),
            ("CNI_IFNAME", is_attachment && ifname.is_empty()),
            ("CNI_PATH", path.is_empty()),
        ];
        let missing: Vec<_> = needed.iter().filter(|(_, is_missing)| *is_missing).map(|(name, _)| *name).collect();
        if !missing.is_empty() {
            let text = format!("required env variables [{}] missing", missing.join(","));
            return Err(Failure::new(Code::Environment, text));
        }
        if is_attachment {
            check_word("container ID", &container_id)?;
            check_device_name(&ifname)?;
        }
        let mut stdin = Vec::new();
        let limit = std::io::stdin().lock().take(STDIN_MAX).read_to_end(&mut stdin);
        limit.map_err(|error| Failure::new(Code::InputOutput, format!("error reading from stdin: {error}")))?;
        let config: Value = serde_json::from_slice(&stdin)
            .map_err(|error| Failure::new(Code::Decode, format!("error unmarshall network config: {error}")))?;
        let text = |key: &str| config.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
        let (network, version) = (text("name"), text("cniVersion"));
        let version = if version.is_empty() { "0.1.0".to_owned() } else { version };
        check_word("network name", &network).map_err(|failure| Failure::config(format!("missing or {failure}")))?;
        if !SUPPORTED.contains(&version.as_str()) {
            let text = format!("incompatible CNI versions: config is {version:?}, plugin supports {SUPPORTED:?}");
            return Err(Failure::new(Code::IncompatibleVersion, text));
        }
        let netns = (!netns.is_empty()).then(|| PathBuf::from(netns));
        let request = Self {
            verb,
            container_id,
            netns,
            ifname,
            arguments: parse_arguments(&read("CNI_ARGS"))?,
            path: std::env::split_paths(&path).collect(),
            stdin,
            config,
            version,
            network,
        };
        request.check_namespace()?;
        Ok(request)
    }

    /// A plugin that was told to work on its own namespace would take the node's devices apart.
    fn check_namespace(&self) -> Result<(), Failure> {
        let Some(netns) = &self.netns else { return Ok(()) };
        if std::env::var_os("CNI_NETNS_OVERRIDE").is_some() {
            return Ok(());
        }
        let identity = |path: &Path| path.metadata().ok().map(|data| (data.dev(), data.ino()));
        if identity(netns).is_some() && identity(netns) == identity(Path::new("/proc/self/ns/net")) {
            let text = "plugin's netns and netns from CNI_NETNS should not be the same";
            return Err(Failure::new(Code::InvalidNamespace, text));
        }
        Ok(())
    }

    /// The configuration as a plugin sees it. Unknown keys are ignored.
    pub(crate) fn config<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        serde_json::from_slice(&self.stdin)
            .map_err(|error| Failure::new(Code::Decode, format!("failed to load netconf: {error}")))
    }

    /// The result of the plugins before this one.
    pub(crate) fn previous(&self) -> Result<Option<CniResult>, Failure> {
        match self.config.get("prevResult") {
            None | Some(Value::Null) => Ok(None),
            Some(value) => CniResult::from_value(value.clone())
                .map(Some)
                .map_err(|error| Failure::new(Code::Decode, format!("could not parse prevResult: {error}"))),
        }
    }

    /// As [`Request::previous`], for plugins that are of no use without.
    pub(crate) fn required_previous(&self) -> Result<CniResult, Failure> {
        self.previous()?.ok_or_else(|| Failure::config("must be called as chained plugin: prevResult is missing"))
    }

    /// One of `CNI_ARGS`, whose other keys must be among `known` unless `IgnoreUnknown` is set.
    pub(crate) fn argument(&self, name: &str, known: &[&str]) -> Result<Option<&str>, Failure> {
        let is_lenient = self.arguments.get("IgnoreUnknown").is_some_and(|value| matches!(&**value, "1" | "true"));
        let unknown = self.arguments.keys().find(|key| !known.contains(&key.as_str()) && *key != "IgnoreUnknown");
        match unknown {
            Some(key) if !is_lenient => Err(Failure::config(format!("ARGS: unknown args {key:?}"))),
            _ => Ok(self.arguments.get(name).map(String::as_str).filter(|value| !value.is_empty())),
        }
    }

    /// The path of the namespace, as the caller wrote it; empty without one.
    pub(crate) fn namespace_path(&self) -> String {
        self.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default()
    }

    /// The container's network namespace; an error if it cannot be opened.
    pub(crate) fn namespace(&self) -> Result<OwnedFd, Failure> {
        let path = self.netns.as_deref().unwrap_or(Path::new(""));
        sys::namespace::open(path).map_err(|error| {
            Failure::new(Code::InvalidNamespace, format!("failed to open netns {:?}: {error}", path.display()))
        })
    }

    /// As [`Request::namespace`], but `None` when there is none or it is gone: what was in it is gone too.
    pub(crate) fn namespace_if_there(&self) -> Option<OwnedFd> {
        self.netns.as_deref().and_then(|path| sys::namespace::open(path).ok())
    }

    /// Whether GC's list has an attachment. The list is of the configuration's network.
    pub(crate) fn valid_attachments(&self) -> Result<Vec<(String, String)>, Failure> {
        let list = self.config.get("cni.dev/valid-attachments").or(self.config.get("cni.dev/attachments"));
        let Some(Value::Array(list)) = list else {
            return Err(Failure::config("GC without a list of valid attachments"));
        };
        let text = |entry: &Value, key: &str| Some(entry.get(key)?.as_str()?.to_owned());
        let pair = |entry: &Value| Some((text(entry, "containerID")?, text(entry, "ifname")?));
        let pairs: Option<Vec<_>> = list.iter().map(pair).collect();
        pairs.ok_or_else(|| Failure::config("an entry of the valid attachments lacks containerID or ifname"))
    }
}

/// Container ids and network names, which become names of files and rules. Source: CNI specification.
fn check_word(what: &str, word: &str) -> Result<(), Failure> {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-');
    let is_word = word.bytes().next().is_some_and(|first| first.is_ascii_alphanumeric()) && word.bytes().all(is_inner);
    if is_word {
        Ok(())
    } else {
        Err(Failure::new(Code::Environment, format!("invalid characters in {what} {word:?}")))
    }
}

/// A device name the kernel takes and that is one path segment below `/proc/sys/net`.
pub(crate) fn check_device_name(name: &str) -> Result<(), Failure> {
    let is_foreign = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    if name.is_empty() || name.len() > NAME_MAX || matches!(name, "." | "..") || name.chars().any(is_foreign) {
        return Err(Failure::new(Code::Environment, format!("invalid interface name {name:?}")));
    }
    Ok(())
}

/// `K=V;K=V`
fn parse_arguments(text: &str) -> Result<BTreeMap<String, String>, Failure> {
    let pair = |pair: &str| match pair.split_once('=') {
        Some((key, value)) => Ok((key.to_owned(), value.to_owned())),
        None => Err(Failure::new(Code::Environment, format!("ARGS: invalid pair {pair:?}"))),
    };
    text.split(';').filter(|part| !part.is_empty()).map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        for good in ["eth0", "net1.100", "a", "exactly15bytes_"] {
            assert!(check_device_name(good).is_ok(), "{good}");
        }
        for bad in ["", ".", "..", "a/b", "a b", "a:b", "sixteen-bytes-xx", "a\n"] {
            assert!(check_device_name(bad).is_err(), "{bad}");
        }
        for good in ["abc", "0a.b_c-d"] {
            assert!(check_word("x", good).is_ok(), "{good}");
        }
        for bad in ["", ".a", "-a", "a/b", "a b", "ä"] {
            assert!(check_word("x", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn arguments() {
        assert_eq!(parse_arguments("IgnoreUnknown=1;K8S_POD_NAME=a=b;").unwrap()["K8S_POD_NAME"], "a=b");
        assert!(parse_arguments("").unwrap().is_empty());
        assert!(parse_arguments("a").is_err());
    }
}
