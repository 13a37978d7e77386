//! Classes of block I/O: a file of the operator's names them, annotations choose one for a container.
//!
//! Source: CRI-O's `blockio_config_file`; the file is that of Intel's goresctrl.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use domain::spec::{BlockIo, DeviceValue};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

/// Larger than any list of disks.
const FILE_MAX_BYTES: u64 = 1 << 20;
/// Weights the kernel takes. Source: Documentation/block/bfq-iosched.
const WEIGHTS: std::ops::RangeInclusive<u64> = 10..=1000;
/// `/dev/disk/by-id` of a machine with many disks stays far below it.
const MATCHES_MAX: usize = 4096;

/// Why there are no classes.
#[derive(Debug, Error)]
pub enum BlockIoError {
    /// The file cannot be read.
    #[error("read block I/O classes from {path}")]
    Read {
        /// The file.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// It is no YAML.
    #[error("read block I/O classes from {path}")]
    Yaml {
        /// The file.
        path: PathBuf,
        #[source]
        /// What is wrong.
        source: yaml::YamlError,
    },
    /// It does not define classes.
    #[error("block I/O classes in {path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// One entry of a class: values for devices, or without any for all of them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entry {
    /// Paths, with wildcards in their parts; absent for the weight of everything.
    pub devices: Option<Vec<String>>,
    /// I/O scheduler's weight.
    pub weight: Option<u64>,
    /// Bytes a second.
    pub read_bps: Option<u64>,
    /// Bytes a second.
    pub write_bps: Option<u64>,
    /// Operations a second.
    pub read_iops: Option<u64>,
    /// Operations a second.
    pub write_iops: Option<u64>,
}

/// The classes of a file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockIoClasses(BTreeMap<String, Vec<Entry>>);

/// Whatever the spelling of the keys, which the Go programs do not mind.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawEntry {
    #[serde(default)]
    devices: Option<Vec<String>>,
    #[serde(default)]
    weight: Value,
    #[serde(default)]
    throttlereadbps: Value,
    #[serde(default)]
    throttlewritebps: Value,
    #[serde(default)]
    throttlereadiops: Value,
    #[serde(default)]
    throttlewriteiops: Value,
}

/// A number with the suffixes Kubernetes knows, as in `50M`, `1.5Gi`, `2e3`; parts of one are rounded up.
fn quantity(value: &Value) -> Result<Option<u64>, String> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => text.trim().to_owned(),
        Value::Number(number) => number.to_string(),
        other => return Err(format!("{other} is not a number")),
    };
    let bad = || format!("{:?} is not a number such as 50M", text.chars().take(40).collect::<String>());
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() && fraction.is_empty() || fraction.contains('.') || number.len() > 30 {
        return Err(bad());
    }
    let (base, exponent): (u128, u32) = match suffix.trim() {
        "" => (10, 0),
        "k" => (10, 3),
        "M" => (10, 6),
        "G" => (10, 9),
        "T" => (10, 12),
        "P" => (10, 15),
        "E" => (10, 18),
        "Ki" => (2, 10),
        "Mi" => (2, 20),
        "Gi" => (2, 30),
        "Ti" => (2, 40),
        "Pi" => (2, 50),
        "Ei" => (2, 60),
        other => {
            let power = other.strip_prefix(['e', 'E']).and_then(|power| power.parse().ok());
            (10, power.filter(|power| *power <= 18).ok_or_else(bad)?)
        }
    };
    let digits: u128 = format!("{whole}{fraction}").parse().map_err(|_| bad())?;
    let parts = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| bad())?);
    let scaled = base.checked_pow(exponent).and_then(|factor| digits.checked_mul(factor)).ok_or_else(bad)?;
    u64::try_from(scaled.div_ceil(parts)).map(Some).map_err(|_| bad())
}

fn entry(value: Value) -> Result<Entry, String> {
    let Value::Object(fields) = value else { return Err("an entry is not a mapping".to_owned()) };
    let lower = fields.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), value)).collect();
    let raw: RawEntry = serde_json::from_value(Value::Object(lower)).map_err(|error| error.to_string())?;
    let entry = Entry {
        devices: raw.devices,
        weight: quantity(&raw.weight)?,
        read_bps: quantity(&raw.throttlereadbps)?,
        write_bps: quantity(&raw.throttlewritebps)?,
        read_iops: quantity(&raw.throttlereadiops)?,
        write_iops: quantity(&raw.throttlewriteiops)?,
    };
    if entry.weight.is_some_and(|weight| !WEIGHTS.contains(&weight)) {
        return Err("a weight is not between 10 and 1000".to_owned());
    }
    let has_throttle = [entry.read_bps, entry.write_bps, entry.read_iops, entry.write_iops].iter().any(Option::is_some);
    if entry.devices.is_none() && has_throttle {
        return Err("throttling needs Devices".to_owned());
    }
    Ok(entry)
}

/// Reads the text of such a file.
pub fn parse(text: &str) -> Result<BlockIoClasses, String> {
    let value = yaml::parse(text).map_err(|error| error.to_string())?;
    from_value(value)
}

fn from_value(value: Value) -> Result<BlockIoClasses, String> {
    let Value::Object(top) = value else { return Err("there is no mapping Classes".to_owned()) };
    let mut classes = BTreeMap::new();
    for (key, value) in top {
        if !key.eq_ignore_ascii_case("classes") {
            return Err(format!("{key:?} is not known"));
        }
        let Value::Object(named) = value else { return Err("Classes is not a mapping".to_owned()) };
        for (name, entries) in named {
            let Value::Array(entries) = entries else { return Err(format!("class {name:?} is not a list")) };
            let entries: Result<_, _> = entries.into_iter().map(entry).collect();
            classes.insert(name.clone(), entries.map_err(|reason: String| format!("class {name:?}: {reason}"))?);
        }
    }
    Ok(BlockIoClasses(classes))
}

impl BlockIoClasses {
    /// Reads the classes of a file.
    pub fn load(path: &Path) -> Result<Self, BlockIoError> {
        let mut text = String::new();
        File::open(path)
            .and_then(|file| file.take(FILE_MAX_BYTES).read_to_string(&mut text))
            .map_err(|source| BlockIoError::Read { path: path.to_owned(), source })?;
        let value = yaml::parse(&text).map_err(|source| BlockIoError::Yaml { path: path.to_owned(), source })?;
        from_value(value).map_err(|reason| BlockIoError::Content { path: path.to_owned(), reason })
    }

    /// What a class says of the disks that are there now; later entries go over earlier ones. `None`: no such class.
    #[must_use]
    pub fn resolve(&self, class: &str) -> Option<BlockIo> {
        let mut found = BlockIo::default();
        for entry in self.0.get(class)? {
            let Some(patterns) = &entry.devices else {
                found.weight = entry.weight.and_then(|weight| u16::try_from(weight).ok()).or(found.weight);
                continue;
            };
            let disks: Vec<(i64, i64)> = patterns.iter().flat_map(|pattern| disks(Path::new("/"), pattern)).collect();
            if disks.is_empty() {
                tracing::warn!(class, devices = ?patterns, "no block device matches an entry of a block I/O class");
            }
            for (value, list) in [
                (entry.weight, &mut found.weights),
                (entry.read_bps, &mut found.read_bps),
                (entry.write_bps, &mut found.write_bps),
                (entry.read_iops, &mut found.read_iops),
                (entry.write_iops, &mut found.write_iops),
            ] {
                let Some(value) = value else { continue };
                for (major, minor) in &disks {
                    list.retain(|known: &DeviceValue| (known.major, known.minor) != (*major, *minor));
                    list.push(DeviceValue { major: *major, minor: *minor, value });
                }
            }
        }
        Some(found)
    }
}

/// The block devices at the paths that match, links followed. Of parts only `*` and `?` are wild, as nobody writes more.
fn disks(root: &Path, pattern: &str) -> Vec<(i64, i64)> {
    let mut paths = vec![root.to_owned()];
    for part in pattern.split('/').filter(|part| !part.is_empty()) {
        if part == ".." || !pattern.starts_with('/') {
            return Vec::new();
        }
        let mut next = Vec::new();
        for path in paths {
            if !part.contains(['*', '?']) {
                next.push(path.join(part));
                continue;
            }
            let Ok(entries) = std::fs::read_dir(&path) else { continue };
            let names = entries.flatten().map(|entry| entry.file_name());
            next.extend(
                names.filter(|name| name.to_str().is_some_and(|name| matches(part, name))).map(|name| path.join(name)),
            );
        }
        next.sort();
        next.truncate(MATCHES_MAX);
        paths = next;
    }
    let metadata = paths.into_iter().filter_map(|path| std::fs::metadata(path).ok());
    let devices = metadata.filter(|found| found.file_type().is_block_device()).map(|found| {
        let number = found.rdev();
        (i64::from(rustix::fs::major(number)), i64::from(rustix::fs::minor(number)))
    });
    let mut devices: Vec<_> = devices.collect();
    devices.sort_unstable();
    devices.dedup();
    devices
}

/// Whether a name matches a pattern of `*` and `?`. Linear in both but for stars, which only ever move on.
fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) = (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n, mut star) = (0, 0, None);
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(wanted) if *wanted == '?' || *wanted == name[n] => (p, n) = (p + 1, n + 1),
            _ => match star {
                Some((at, from)) => {
                    (p, n) = (at + 1, from + 1);
                    star = Some((at, from + 1));
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|wanted| *wanted == '*')
}

/// The class that annotations choose for a container: its own, its pod's for it, its pod's.
#[must_use]
pub fn class_of<'a>(
    kind: ClassKind,
    container: &str,
    of_container: &'a BTreeMap<String, String>,
    of_sandbox: &'a BTreeMap<String, String>,
) -> Option<&'a str> {
    let word = match kind {
        ClassKind::BlockIo => "blockio",
        ClassKind::Rdt => "rdt",
    };
    let prefix = format!("{word}.resources.beta.kubernetes.io");
    of_container
        .get(&format!("io.kubernetes.cri.{word}-class"))
        .or_else(|| of_sandbox.get(&format!("{prefix}/container.{container}")))
        .or_else(|| of_sandbox.get(&format!("{prefix}/pod")))
        .map(String::as_str)
        .filter(|class| !class.is_empty())
}

/// What a class is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClassKind {
    /// Block I/O.
    BlockIo,
    /// Cache and memory bandwidth.
    Rdt,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_kubernetes() {
        for (text, expected) in [
            ("50M", Some(50_000_000)),
            ("10k", Some(10_000)),
            ("1.5Gi", Some(3 << 29)),
            ("80", Some(80)),
            ("2e3", Some(2000)),
            ("0.0001k", Some(1)),
            ("64 M", Some(64_000_000)),
            ("-1", None),
            ("M", None),
            ("1.2.3", None),
            ("1x", None),
            ("99999999999E", None),
            ("1e99", None),
        ] {
            assert_eq!(quantity(&Value::String(text.to_owned())).ok().flatten(), expected, "{text}");
        }
        assert_eq!(quantity(&serde_json::json!(80)), Ok(Some(80)));
        assert_eq!(quantity(&Value::Null), Ok(None));
    }

    #[test]
    fn classes_are_read_or_refused_whole() {
        let classes = parse(
            "Classes:\n  Low:\n  - Weight: 80\n  - Devices:\n    - /dev/nothing-*\n    ThrottleReadBps: 50M\n    Weight: 50\n  High:\n  - Weight: 400\n",
        )
        .expect("classes");
        assert_eq!(classes.0["Low"].len(), 2);
        assert_eq!(classes.0["Low"][1].read_bps, Some(50_000_000));
        assert_eq!(classes.resolve("High"), Some(BlockIo { weight: Some(400), ..BlockIo::default() }));
        assert_eq!(classes.resolve("Low").and_then(|low| low.weight), Some(80));
        assert_eq!(classes.resolve("None"), None);
        for text in [
            "",
            "[]",
            "Classes: []",
            "Classes:\n  A: {}",
            "Classes:\n  A:\n  - Weight: 5\n",
            "Classes:\n  A:\n  - ThrottleReadBps: 5M\n",
            "Classes:\n  A:\n  - Wait: 50\n",
            "Other: {}",
        ] {
            assert!(parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn patterns_find_names() {
        for (pattern, name, expected) in [
            ("sd*", "sda", true),
            ("sd?", "sda", true),
            ("sd?", "sd", false),
            ("*SSD*", "ata-VendorSSD-1", true),
            ("*a*b", "xaxbxb", true),
            ("*a*b", "xaxbxc", false),
            ("", "", true),
            ("*", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert!(disks(Path::new("/"), "/dev/null").is_empty(), "a character device is no disk");
        assert!(disks(Path::new("/"), "dev/*").is_empty() && disks(Path::new("/"), "/dev/../dev/*").is_empty());
    }

    #[test]
    fn annotations_choose() {
        let map = |pairs: &[(&str, &str)]| pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        let pod: BTreeMap<String, String> = map(&[
            ("blockio.resources.beta.kubernetes.io/pod", "pod"),
            ("blockio.resources.beta.kubernetes.io/container.web", "web"),
            ("rdt.resources.beta.kubernetes.io/pod", "gold"),
        ]);
        let own: BTreeMap<String, String> = map(&[("io.kubernetes.cri.blockio-class", "own")]);
        let none = BTreeMap::new();
        for (kind, container, of_container, expected) in [
            (ClassKind::BlockIo, "web", &own, Some("own")),
            (ClassKind::BlockIo, "web", &none, Some("web")),
            (ClassKind::BlockIo, "other", &none, Some("pod")),
            (ClassKind::Rdt, "web", &own, Some("gold")),
        ] {
            assert_eq!(class_of(kind, container, of_container, &pod), expected);
        }
        assert_eq!(class_of(ClassKind::Rdt, "web", &own, &none), None);
    }
}
