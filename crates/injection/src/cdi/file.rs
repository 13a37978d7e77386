//! One CDI specification: a kind, what all its devices need, and what each of them needs.
//!
//! Source: CDI specification, versions 0.3.0 to 1.1.0. Unknown fields are refused, as by the format's own library, and so
//! is a field that the version a file names does not have.

use domain::spec::HookStage;
use serde::Deserialize;
use thiserror::Error;

use super::name::{is_device, is_kind};
use crate::text::{or_default, short, split_env};

/// How the bytes of a specification are to be read; its file's name tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// `.json`
    Json,
    /// `.yaml`
    Yaml,
}

/// Why the bytes are no specification.
#[derive(Debug, Error)]
pub enum ParseError {
    /// YAML is text.
    #[error("not UTF-8")]
    NotText,
    /// Not YAML.
    #[error("not YAML")]
    Yaml(#[from] yaml::YamlError),
    /// Not JSON, or not of the right shape.
    #[error("not a CDI specification")]
    Shape(#[from] serde_json::Error),
    /// A version this daemon does not know.
    #[error("cdiVersion {version:?} is not known")]
    Version {
        /// As given.
        version: String,
    },
    /// A field that came later than the version.
    #[error("{field} needs cdiVersion {needed} or later, and the file says {version}")]
    TooOld {
        /// Which field.
        field: &'static str,
        /// The first version that has it.
        needed: &'static str,
        /// The file's.
        version: String,
    },
    /// No device at all.
    #[error("no devices")]
    Empty,
    /// One name for two devices.
    #[error("device {name:?} is defined twice")]
    Twice {
        /// The device.
        name: String,
    },
    /// A device without edits.
    #[error("device {name:?} edits nothing")]
    NoEdits {
        /// The device.
        name: String,
    },
    /// A value that no field of its kind may have.
    #[error("{field} {value:?} is not valid")]
    Bad {
        /// Which field.
        field: &'static str,
        /// As given, shortened.
        value: String,
    },
}

/// A specification that has been checked.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct CdiFile {
    cdi_version: String,
    pub(super) kind: String,
    /// About the specification; nothing of it reaches containers.
    #[serde(default, deserialize_with = "or_default")]
    annotations: serde_json::Map<String, serde_json::Value>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) devices: Vec<CdiDevice>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_edits: CdiEdits,
}

/// One device.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CdiDevice {
    #[serde(deserialize_with = "name_or_number")]
    pub(super) name: String,
    #[serde(default, deserialize_with = "or_default")]
    annotations: serde_json::Map<String, serde_json::Value>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) container_edits: CdiEdits,
}

/// What is done to a container.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub(super) struct CdiEdits {
    #[serde(deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
    #[serde(deserialize_with = "or_default")]
    pub(super) device_nodes: Vec<CdiNode>,
    #[serde(deserialize_with = "or_default")]
    pub(super) net_devices: Vec<CdiNetDevice>,
    #[serde(deserialize_with = "or_default")]
    pub(super) hooks: Vec<CdiHook>,
    #[serde(deserialize_with = "or_default")]
    pub(super) mounts: Vec<CdiMount>,
    pub(super) intel_rdt: Option<CdiRdt>,
    #[serde(deserialize_with = "or_default")]
    pub(super) additional_gids: Vec<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CdiNode {
    pub(super) path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) host_path: String,
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    pub(super) kind: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) major: u32,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) minor: u32,
    pub(super) file_mode: Option<u32>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) permissions: String,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CdiNetDevice {
    pub(super) host_interface_name: String,
    pub(super) name: String,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CdiHook {
    pub(super) hook_name: String,
    pub(super) path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) env: Vec<String>,
    pub(super) timeout: Option<i64>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct CdiMount {
    pub(super) host_path: String,
    pub(super) container_path: String,
    #[serde(default, deserialize_with = "or_default")]
    pub(super) options: Vec<String>,
    #[serde(rename = "type", default, deserialize_with = "or_default")]
    pub(super) kind: String,
}

#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct CdiRdt {
    #[serde(rename = "closID", deserialize_with = "or_default")]
    pub(super) clos_id: String,
    #[serde(rename = "l3CacheSchema", deserialize_with = "or_default")]
    pub(super) l3_cache_schema: String,
    #[serde(rename = "memBwSchema", deserialize_with = "or_default")]
    pub(super) mem_bw_schema: String,
    #[serde(deserialize_with = "or_default")]
    pub(super) schemata: Vec<String>,
    #[serde(rename = "enableMonitoring", deserialize_with = "or_default")]
    pub(super) enable_monitoring: bool,
}

/// Devices are often numbered, and YAML makes numbers of names without quotes.
fn name_or_number<'de, D: serde::Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Name {
        Text(String),
        Number(u64),
    }
    Ok(match Name::deserialize(from)? {
        Name::Text(text) => text,
        Name::Number(number) => number.to_string(),
    })
}

/// Reads and checks a specification.
pub fn parse(bytes: &[u8], format: Format) -> Result<CdiFile, ParseError> {
    let file: CdiFile = match format {
        Format::Json => serde_json::from_slice(bytes)?,
        Format::Yaml => {
            let text = std::str::from_utf8(bytes).map_err(|_| ParseError::NotText)?;
            serde_json::from_value(yaml::parse(text)?)?
        }
    };
    file.check()?;
    Ok(file)
}

/// Released versions, oldest first; before 0.3.0 nothing was stable.
const VERSIONS: [&str; 10] = ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

fn rank(version: &str) -> Option<usize> {
    VERSIONS.iter().position(|known| *known == version)
}

fn bad(field: &'static str, value: &str) -> ParseError {
    ParseError::Bad { field, value: short(value) }
}

fn need(is_good: bool, field: &'static str, value: &str) -> Result<(), ParseError> {
    if is_good { Ok(()) } else { Err(bad(field, value)) }
}

/// Absolute, without `..` and NUL.
fn is_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|segment| segment == "..")
}

impl CdiFile {
    fn check(&self) -> Result<(), ParseError> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let rank = rank(version).ok_or_else(|| ParseError::Version { version: short(&self.cdi_version) })?;
        need(is_kind(&self.kind), "kind", &self.kind)?;
        self.check_version(rank)?;
        self.container_edits.check()?;
        if self.devices.is_empty() {
            return Err(ParseError::Empty);
        }
        let mut names = std::collections::BTreeSet::new();
        for device in &self.devices {
            need(is_device(&device.name), "device name", &device.name)?;
            if !names.insert(device.name.as_str()) {
                return Err(ParseError::Twice { name: short(&device.name) });
            }
            if device.container_edits == CdiEdits::default() {
                return Err(ParseError::NoEdits { name: short(&device.name) });
            }
            device.container_edits.check()?;
        }
        Ok(())
    }

    /// Refuses fields that the file's version does not have.
    fn check_version(&self, own: usize) -> Result<(), ParseError> {
        let edits =
            || std::iter::once(&self.container_edits).chain(self.devices.iter().map(|device| &device.container_edits));
        let has = |what: fn(&CdiEdits) -> bool| edits().any(what);
        let is_annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|device| !device.annotations.is_empty());
        let has_numbered =
            self.devices.iter().any(|device| device.name.starts_with(|first: char| first.is_ascii_digit()));
        let has_dot = self.kind.split_once('/').is_some_and(|(_, class)| class.contains('.'));
        for (is_used, field, needed) in [
            (has(|edits| edits.mounts.iter().any(|mount| !mount.kind.is_empty())), "the type of a mount", "0.4.0"),
            (
                has(|edits| edits.device_nodes.iter().any(|node| !node.host_path.is_empty())),
                "hostPath of a device node",
                "0.5.0",
            ),
            (has_numbered, "a device name that begins with a digit", "0.5.0"),
            (is_annotated, "annotations", "0.6.0"),
            (has_dot, "a class with a dot", "0.6.0"),
            (has(|edits| edits.intel_rdt.is_some()), "intelRdt", "0.7.0"),
            (has(|edits| !edits.additional_gids.is_empty()), "additionalGids", "0.7.0"),
            (has(|edits| !edits.net_devices.is_empty()), "netDevices", "1.1.0"),
            (
                has(|edits| edits.intel_rdt.as_ref().is_some_and(CdiRdt::is_of_1_1)),
                "schemata and enableMonitoring",
                "1.1.0",
            ),
        ] {
            if is_used && rank(needed).is_some_and(|needed| own < needed) {
                return Err(ParseError::TooOld { field, needed, version: self.cdi_version.clone() });
            }
        }
        Ok(())
    }
}

impl CdiRdt {
    pub(super) fn is_of_1_1(&self) -> bool {
        !self.schemata.is_empty() || self.enable_monitoring
    }
}

impl CdiEdits {
    fn check(&self) -> Result<(), ParseError> {
        for entry in &self.env {
            need(split_env(entry).is_some(), "environment variable", entry)?;
        }
        self.device_nodes.iter().try_for_each(CdiNode::check)?;
        for device in &self.net_devices {
            need(!device.host_interface_name.is_empty(), "hostInterfaceName", "")?;
            need(!device.name.is_empty(), "name of a net device", "")?;
        }
        for hook in &self.hooks {
            need(HookStage::parse(&hook.hook_name).is_some(), "hookName", &hook.hook_name)?;
            need(is_path(&hook.path), "hook path", &hook.path)?;
            for entry in &hook.env {
                need(split_env(entry).is_some(), "environment variable of a hook", entry)?;
            }
            need(hook.args.iter().all(|argument| !argument.contains('\0')), "argument of a hook", "with a NUL byte")?;
            need(hook.timeout.is_none_or(|seconds| seconds > 0), "hook timeout", "0 or less")?;
        }
        for mount in &self.mounts {
            need(!mount.host_path.is_empty() && !mount.host_path.contains('\0'), "hostPath", &mount.host_path)?;
            need(is_path(&mount.container_path), "containerPath", &mount.container_path)?;
            let texts = mount.options.iter().chain([&mount.kind]);
            need(texts.into_iter().all(|text| !text.contains('\0')), "mount option", "with a NUL byte")?;
        }
        if let Some(rdt) = &self.intel_rdt {
            let id = rdt.clos_id.as_str();
            let is_name = id.len() < 4096 && !matches!(id, "." | "..") && !id.contains(['/', '\n', '\0']);
            need(id == "/" || is_name, "closID", id)?;
        }
        Ok(())
    }
}

impl CdiNode {
    fn check(&self) -> Result<(), ParseError> {
        need(is_path(&self.path), "path of a device node", &self.path)?;
        need(self.host_path.is_empty() || is_path(&self.host_path), "hostPath of a device node", &self.host_path)?;
        need(matches!(self.kind.as_str(), "" | "b" | "c" | "u" | "p"), "type of a device node", &self.kind)?;
        let letters = &self.permissions;
        let is_once = letters.bytes().enumerate().all(|(at, byte)| !letters.as_bytes()[..at].contains(&byte));
        need(letters.bytes().all(|byte| b"rwm".contains(&byte)) && is_once, "permissions", letters)?;
        need(self.file_mode.is_none_or(|mode| mode <= 0o7777), "fileMode", "above 07777")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"
cdiVersion: 1.1.0
kind: vendor.com/my.class
annotations: {who: cares}
containerEdits:
  env: ["ALL=1"]
devices:
- name: 0
  annotations:
  containerEdits:
    env:
    - FOO=bar
    deviceNodes:
    - {path: /dev/a, hostPath: /dev/b, type: c, major: 10, minor: 229, fileMode: 0660, permissions: rw, uid: 1, gid: 2}
    mounts:
    - {hostPath: /lib, containerPath: /lib2, options: [ro, bind], type: none}
    hooks:
    - {hookName: createContainer, path: /bin/h, args: [h, x], env: [A=b], timeout: 5}
    intelRdt: {closID: gold, l3CacheSchema: "L3:0=f", memBwSchema: "MB:0=20"}
    additionalGids: [44]
    netDevices: [{hostInterfaceName: eth1, name: net1}]
"#;

    #[test]
    fn all_fields_are_read() {
        let file = parse(FULL.as_bytes(), Format::Yaml).expect("valid");
        let device = &file.devices[0];
        assert_eq!((file.kind.as_str(), device.name.as_str()), ("vendor.com/my.class", "0"));
        let node = &device.container_edits.device_nodes[0];
        assert_eq!(
            (node.major, node.minor, node.file_mode, node.uid, node.gid),
            (10, 229, Some(0o660), Some(1), Some(2))
        );
        assert_eq!(file.container_edits.env, ["ALL=1"]);
        assert_eq!(device.container_edits.hooks[0].timeout, Some(5));
        assert_eq!(device.container_edits.net_devices[0].name, "net1");
    }

    /// A specification with one device that has these edits, as JSON.
    fn with(version: &str, edits: &str) -> String {
        format!(
            r#"{{"cdiVersion": "{version}", "kind": "v.com/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
        )
    }

    #[test]
    fn fields_are_checked() {
        for (edits, is_good) in [
            (r#"{"env": ["A=b"]}"#, true),
            (r#"{"env": ["A="]}"#, true),
            (r#"{"env": ["=b"]}"#, false),
            (r#"{"env": ["A"]}"#, false),
            (r#"{"env": ["A=\u0000"]}"#, false),
            (r#"{"env": null, "additionalGids": [1]}"#, true),
            (r#"{}"#, false),
            (r#"{"unknown": 1}"#, false),
            (r#"{"deviceNodes": [{"path": "/dev/null"}]}"#, true),
            (r#"{"deviceNodes": [{"path": ""}]}"#, false),
            (r#"{"deviceNodes": [{"path": "dev/null"}]}"#, false),
            (r#"{"deviceNodes": [{"path": "/dev/../x"}]}"#, false),
            (r#"{"deviceNodes": [{"path": "/dev/x", "type": "z"}]}"#, false),
            (r#"{"deviceNodes": [{"path": "/dev/x", "permissions": "rwx"}]}"#, false),
            (r#"{"deviceNodes": [{"path": "/dev/x", "permissions": "rr"}]}"#, false),
            (r#"{"deviceNodes": [{"path": "/dev/x", "major": -1}]}"#, false),
            (r#"{"deviceNodes": [{"path": "/dev/x", "fileMode": 4096}]}"#, false),
            (r#"{"deviceNodes": [{"path": "/dev/x", "path": "/dev/y"}]}"#, false),
            (r#"{"mounts": [{"hostPath": "/a", "containerPath": "/b"}]}"#, true),
            (r#"{"mounts": [{"hostPath": "", "containerPath": "/b"}]}"#, false),
            (r#"{"mounts": [{"hostPath": "/a", "containerPath": "b"}]}"#, false),
            (r#"{"mounts": [{"hostPath": "/a"}]}"#, false),
            (r#"{"hooks": [{"hookName": "poststop", "path": "/h"}]}"#, true),
            (r#"{"hooks": [{"hookName": "never", "path": "/h"}]}"#, false),
            (r#"{"hooks": [{"hookName": "poststop", "path": "h"}]}"#, false),
            (r#"{"hooks": [{"hookName": "poststop", "path": "/h", "timeout": 0}]}"#, false),
            (r#"{"hooks": [{"hookName": "poststop", "path": "/h", "env": ["x"]}]}"#, false),
            (r#"{"intelRdt": {"closID": "/"}}"#, true),
            (r#"{"intelRdt": {"closID": "a/b"}}"#, false),
            (r#"{"intelRdt": {"closID": ".."}}"#, false),
            (r#"{"additionalGids": [-1]}"#, false),
            (r#"{"netDevices": [{"hostInterfaceName": "", "name": "n"}]}"#, false),
        ] {
            for format in [Format::Json, Format::Yaml] {
                assert_eq!(parse(with("1.1.0", edits).as_bytes(), format).is_ok(), is_good, "{edits} {format:?}");
            }
        }
    }

    #[test]
    fn a_field_needs_its_version() {
        let hook = r#"{"env": ["A=b"]}"#;
        for (version, edits, is_good) in [
            ("0.3.0", hook, true),
            ("v0.3.0", hook, true),
            ("0.2.0", hook, true),
            ("0.9.0", hook, false),
            ("1.2.0", hook, false),
            ("", hook, false),
            ("0.3.0", r#"{"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]}"#, false),
            ("0.4.0", r#"{"mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]}"#, true),
            ("0.4.0", r#"{"deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]}"#, false),
            ("0.5.0", r#"{"deviceNodes": [{"path": "/dev/a", "hostPath": "/dev/b"}]}"#, true),
            ("0.6.0", r#"{"additionalGids": [1]}"#, false),
            ("0.7.0", r#"{"additionalGids": [1]}"#, true),
            ("1.0.0", r#"{"netDevices": [{"hostInterfaceName": "a", "name": "n"}]}"#, false),
            ("1.0.0", r#"{"intelRdt": {"enableMonitoring": true}}"#, false),
            ("1.1.0", r#"{"intelRdt": {"enableMonitoring": true}}"#, true),
        ] {
            assert_eq!(parse(with(version, edits).as_bytes(), Format::Json).is_ok(), is_good, "{version} {edits}");
        }
    }

    #[test]
    fn kinds_and_devices_are_checked() {
        let file =
            |kind: &str, devices: &str| format!(r#"{{"cdiVersion": "0.6.0", "kind": "{kind}", "devices": {devices}}}"#);
        let device = |name: &str| format!(r#"{{"name": "{name}", "containerEdits": {{"env": ["A=b"]}}}}"#);
        let list =
            |names: &[&str]| format!("[{}]", names.iter().map(|name| device(name)).collect::<Vec<_>>().join(","));
        for (kind, devices, is_good) in [
            ("v/c", list(&["a", "b"]), true),
            ("v/c", list(&["a", "a"]), false),
            ("v/c", list(&[]), false),
            ("v/c", list(&["-a"]), false),
            ("v", list(&["a"]), false),
            ("v/c/d", list(&["a"]), false),
            ("v/c", "null".to_owned(), false),
        ] {
            assert_eq!(parse(file(kind, &devices).as_bytes(), Format::Json).is_ok(), is_good, "{kind} {devices}");
        }
        for text in ["", "null", "[]", "{}", "\u{feff}", "nonsense: ["] {
            assert!(parse(text.as_bytes(), Format::Yaml).is_err(), "{text:?}");
        }
        assert!(parse(&[0xff, 0xfe], Format::Yaml).is_err());
    }
}
