//! The text of one network configuration file, parsed. No I/O.

use serde_json::{Map, Value};
use thiserror::Error;

use crate::version::Version;

/// Largest configuration file read; real ones have a few KiB.
pub(crate) const CONFIG_MAX_BYTES: u64 = 1024 * 1024;
/// Most plugins in one chain; real ones have two to five. Each costs a process a sandbox.
const PLUGINS_MAX: usize = 64;

/// Why a text is not a network configuration.
#[derive(Debug, Error)]
pub enum ConfigError {
    /// Not JSON, or not an object.
    #[error("parse as a JSON object")]
    Json(#[source] serde_json::Error),
    /// A list without a name cannot be cached or chosen.
    #[error("no name")]
    NoName,
    /// Not letters, digits, dot, underscore or hyphen; the name becomes part of file names.
    #[error("{0:?} cannot name a network")]
    Name(String),
    /// A key has a value of another type than the specification gives it.
    #[error("{key} cannot be {value}")]
    Value {
        /// The key.
        key: &'static str,
        /// The value, as JSON.
        value: String,
    },
    /// Neither inline nor in the directory named after the network.
    #[error("no plugins")]
    NoPlugins,
    /// More than anybody means.
    #[error("{0} plugins are more than the {PLUGINS_MAX} that one network may have")]
    TooManyPlugins(usize),
    /// The plugin's `type` is missing or is not the name of a file.
    #[error("plugin {index} has no usable type")]
    PluginType {
        /// Position in the chain, from 0.
        index: usize,
    },
    /// Neither `cniVersion` nor any of `cniVersions` is one of 0.1.0 to 1.1.0.
    #[error("cniVersion {0:?} is not supported")]
    Version(String),
}

/// One plugin of a chain.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plugin {
    /// File name of the binary.
    pub(crate) kind: String,
    /// Capabilities declared as true.
    pub(crate) capabilities: Vec<String>,
    /// Everything, as written.
    pub(crate) body: Map<String, Value>,
}

/// A network: a chain of plugins under a name.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct NetworkList {
    pub(crate) name: String,
    /// The version plugins are called with.
    pub(crate) version: Version,
    /// Every version the configuration offers that is understood here, best first.
    pub(crate) offered: Vec<Version>,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    /// Whether `<dir>/<name>/*.conf` is to be left alone.
    pub(crate) only_inlined: bool,
    pub(crate) plugins: Vec<Plugin>,
}

impl NetworkList {
    /// A `.conflist`. May come back without plugins when those of the directory are still to be added; then
    /// [`NetworkList::extend`] is to follow.
    pub(crate) fn parse(text: &[u8], fallback_name: &str) -> Result<Self, ConfigError> {
        let mut map: Map<String, Value> = serde_json::from_slice(text).map_err(ConfigError::Json)?;
        let name = match map.get("name") {
            None => return Err(ConfigError::NoName),
            Some(Value::String(name)) if name.is_empty() => fallback_name.to_owned(),
            Some(Value::String(name)) => name.clone(),
            Some(other) => return Err(bad_value("name", other)),
        };
        let offered = offered_versions(&map)?;
        let only_inlined = flag(&map, "loadOnlyInlinedPlugins")?;
        let plugins = match map.remove("plugins") {
            None if only_inlined => return Err(ConfigError::NoPlugins),
            None => Vec::new(),
            Some(Value::Array(plugins)) if plugins.is_empty() => return Err(ConfigError::NoPlugins),
            Some(Value::Array(plugins)) => plugins,
            Some(other) => return Err(bad_value("plugins", &other)),
        };
        if plugins.len() > PLUGINS_MAX {
            return Err(ConfigError::TooManyPlugins(plugins.len()));
        }
        let plugins =
            plugins.into_iter().enumerate().map(|(index, body)| plugin(index, body)).collect::<Result<_, _>>()?;
        Ok(Self {
            name: checked_name(name)?,
            version: offered[0],
            offered,
            disable_check: flag(&map, "disableCheck")?,
            disable_gc: flag(&map, "disableGC")?,
            only_inlined,
            plugins,
        })
    }

    /// A `.conf` or `.json`: one plugin, which carries name and version of the network itself.
    pub(crate) fn parse_single(text: &[u8], fallback_name: &str) -> Result<Self, ConfigError> {
        let map: Map<String, Value> = serde_json::from_slice(text).map_err(ConfigError::Json)?;
        let name = match map.get("name") {
            None => fallback_name.to_owned(),
            Some(Value::String(name)) if name.is_empty() => fallback_name.to_owned(),
            Some(Value::String(name)) => name.clone(),
            Some(other) => return Err(bad_value("name", other)),
        };
        let offered = offered_versions(&map)?;
        Ok(Self {
            name: checked_name(name)?,
            version: offered[0],
            offered,
            disable_check: false,
            disable_gc: false,
            only_inlined: true,
            plugins: vec![plugin(0, Value::Object(map))?],
        })
    }

    /// Appends a plugin found in the directory of the network.
    pub(crate) fn extend(&mut self, text: &[u8]) -> Result<(), ConfigError> {
        let body = serde_json::from_slice(text).map_err(ConfigError::Json)?;
        if self.plugins.len() >= PLUGINS_MAX {
            return Err(ConfigError::TooManyPlugins(self.plugins.len() + 1));
        }
        self.plugins.push(plugin(self.plugins.len(), body)?);
        Ok(())
    }

    /// The whole network as one list with every plugin inline, for the cache: whoever removes the sandbox needs no
    /// other file.
    pub(crate) fn to_json(&self) -> Vec<u8> {
        let mut map = Map::new();
        map.insert("cniVersion".into(), self.version.to_string().into());
        map.insert("name".into(), self.name.as_str().into());
        for (key, value) in [("disableCheck", self.disable_check), ("disableGC", self.disable_gc)] {
            if value {
                map.insert(key.into(), true.into());
            }
        }
        map.insert("loadOnlyInlinedPlugins".into(), true.into());
        map.insert("plugins".into(), self.plugins.iter().map(|plugin| Value::Object(plugin.body.clone())).collect());
        Value::Object(map).to_string().into_bytes()
    }
}

fn bad_value(key: &'static str, value: &Value) -> ConfigError {
    ConfigError::Value { key, value: value.to_string() }
}

fn offered_versions(map: &Map<String, Value>) -> Result<Vec<Version>, ConfigError> {
    let mut texts = Vec::new();
    match map.get("cniVersions") {
        None | Some(Value::Null) => {}
        Some(Value::Array(list)) => {
            for entry in list {
                texts.push(entry.as_str().ok_or_else(|| bad_value("cniVersions", entry))?);
            }
        }
        Some(other) => return Err(bad_value("cniVersions", other)),
    }
    match map.get("cniVersion") {
        None | Some(Value::Null) => {}
        Some(Value::String(text)) => texts.push(text),
        Some(other) => return Err(bad_value("cniVersion", other)),
    }
    texts.retain(|text| !text.is_empty());
    if texts.is_empty() {
        return Ok(vec![Version::FIRST]);
    }
    let mut versions = Vec::new();
    for text in &texts {
        versions.push(Version::parse(text).ok_or_else(|| ConfigError::Version((*text).to_owned()))?);
    }
    versions.retain(|version| version.is_known());
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.dedup();
    if versions.is_empty() { Err(ConfigError::Version(texts.join(", "))) } else { Ok(versions) }
}

/// A boolean, which the specification also allows as text.
fn flag(map: &Map<String, Value>, key: &'static str) -> Result<bool, ConfigError> {
    match map.get(key) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(other) => Err(bad_value(key, other)),
    }
}

fn plugin(index: usize, body: Value) -> Result<Plugin, ConfigError> {
    let Value::Object(body) = body else { return Err(ConfigError::PluginType { index }) };
    let kind = body.get("type").and_then(Value::as_str).unwrap_or_default().to_owned();
    // The name is looked up in the plugin directories: it must not lead out of them.
    if kind.is_empty() || kind.contains(['/', '\0']) || kind == "." || kind == ".." {
        return Err(ConfigError::PluginType { index });
    }
    let capabilities = match body.get("capabilities") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(map)) => {
            map.iter().filter(|(_, on)| **on == Value::Bool(true)).map(|(name, _)| name.clone()).collect()
        }
        Some(other) => return Err(bad_value("capabilities", other)),
    };
    Ok(Plugin { kind, capabilities, body })
}

fn checked_name(name: String) -> Result<String, ConfigError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let starts_well = name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && name.bytes().all(is_plain) { Ok(name) } else { Err(ConfigError::Name(name)) }
}

/// Entry point for fuzzing: any bytes are a configuration or an error.
pub fn fuzz_config(bytes: &[u8]) {
    if let Ok(list) = NetworkList::parse(bytes, "fallback") {
        // What the cache holds is understood again, unless its plugins were to come from a directory.
        let again = NetworkList::parse(&list.to_json(), "fallback");
        assert!(list.plugins.is_empty() || again.is_ok_and(|again| again.plugins == list.plugins), "{list:?}");
    }
    let _ = NetworkList::parse_single(bytes, "fallback");
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `name version plugin,plugin(capability)` or the error.
    fn check(list: Result<NetworkList, ConfigError>) -> String {
        match list {
            Ok(list) => {
                let plugins: Vec<String> = list
                    .plugins
                    .iter()
                    .map(|plugin| match plugin.capabilities.join("+") {
                        none if none.is_empty() => plugin.kind.clone(),
                        some => format!("{}({some})", plugin.kind),
                    })
                    .collect();
                format!("{} {} {}", list.name, list.version, plugins.join(","))
            }
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn lists() {
        for (text, expected) in [
            (r#"{"cniVersion":"1.0.0","name":"crio","plugins":[{"type":"bridge"}]}"#, "crio 1.0.0 bridge"),
            (
                r#"{"name":"n","plugins":[{"type":"a","capabilities":{"bandwidth":true,"dns":false}},{"type":"b"}]}"#,
                "n 0.1.0 a(bandwidth),b",
            ),
            (
                r#"{"cniVersion":"0.4.0","cniVersions":["1.0.0","9.9.9","0.3.1"],"name":"n","plugins":[{"type":"a"}]}"#,
                "n 1.0.0 a",
            ),
            (r#"{"cniVersion":"","name":"","plugins":[{"type":"a"}]}"#, "10-x.conflist 0.1.0 a"),
            (r#"{"name":"n"}"#, "n 0.1.0 "),
            (r#"{"name":"n","loadOnlyInlinedPlugins":"TRUE"}"#, "error: no plugins"),
            (r#"{"name":"n","plugins":[]}"#, "error: no plugins"),
            (r#"{"plugins":[{"type":"a"}]}"#, "error: no name"),
            (r#"{"name":7,"plugins":[{"type":"a"}]}"#, "error: name cannot be 7"),
            (r#"{"name":"../x","plugins":[{"type":"a"}]}"#, r#"error: "../x" cannot name a network"#),
            (r#"{"name":"n","plugins":[{"name":"a"}]}"#, "error: plugin 0 has no usable type"),
            (r#"{"name":"n","plugins":[{"type":"a"},{"type":"../b"}]}"#, "error: plugin 1 has no usable type"),
            (r#"{"name":"n","plugins":["a"]}"#, "error: plugin 0 has no usable type"),
            (r#"{"name":"n","plugins":{"type":"a"}}"#, r#"error: plugins cannot be {"type":"a"}"#),
            (
                r#"{"name":"n","cniVersion":"0.9.0","plugins":[{"type":"a"}]}"#,
                r#"error: cniVersion "0.9.0" is not supported"#,
            ),
            (r#"{"name":"n","cniVersion":"2","plugins":[{"type":"a"}]}"#, r#"error: cniVersion "2" is not supported"#),
            (r#"{"name":"n","cniVersion":1,"plugins":[{"type":"a"}]}"#, "error: cniVersion cannot be 1"),
            (
                r#"{"name":"n","cniVersions":"1.0.0","plugins":[{"type":"a"}]}"#,
                r#"error: cniVersions cannot be "1.0.0""#,
            ),
            (r#"{"name":"n","disableCheck":1,"plugins":[{"type":"a"}]}"#, "error: disableCheck cannot be 1"),
            ("[]", "error: parse as a JSON object"),
            ("{", "error: parse as a JSON object"),
        ] {
            assert_eq!(check(NetworkList::parse(text.as_bytes(), "10-x.conflist")), expected, "{text}");
        }
    }

    #[test]
    fn single_plugins_become_lists() {
        for (text, expected) in [
            (r#"{"cniVersion":"0.2.0","name":"crionet","type":"bridge"}"#, "crionet 0.2.0 bridge"),
            (r#"{"type":"loopback"}"#, "99-loopback.conf 0.1.0 loopback"),
            (r#"{"name":"n"}"#, "error: plugin 0 has no usable type"),
            (r#"{"name":"n","plugins":[{"type":"a"}]}"#, "error: plugin 0 has no usable type"),
        ] {
            assert_eq!(check(NetworkList::parse_single(text.as_bytes(), "99-loopback.conf")), expected, "{text}");
        }
    }

    #[test]
    fn the_cache_holds_plugins_from_files_too() {
        let mut list = NetworkList::parse(br#"{"name":"n","cniVersion":"1.1.0","disableGC":true}"#, "").unwrap();
        assert!(!list.only_inlined);
        list.extend(br#"{"type":"late","x":{"y":1}}"#).unwrap();
        let cached = NetworkList::parse(&list.to_json(), "").unwrap();
        assert_eq!(cached.plugins, list.plugins);
        assert!(cached.only_inlined && cached.disable_gc && !cached.disable_check);
        assert!(matches!(list.extend(br#"{"x":1}"#), Err(ConfigError::PluginType { index: 1 })));
    }

    #[test]
    fn flags_may_be_text() {
        for (value, expected) in [("true", true), (r#""True""#, true), (r#""false""#, false), ("null", false)] {
            let text = format!(r#"{{"name":"n","disableGC":{value},"plugins":[{{"type":"a"}}]}}"#);
            assert_eq!(NetworkList::parse(text.as_bytes(), "").unwrap().disable_gc, expected, "{value}");
        }
    }
}
