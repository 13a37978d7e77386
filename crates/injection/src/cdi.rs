//! Devices of the Container Device Interface: which there are, and what a container is given for each.
//!
//! Directories are in the order of priority: what a later one defines replaces what an earlier one does. Two definitions
//! of one device in the same directory are no definition. Source: CDI specification; CRI-O's `cdi_spec_dirs`.

mod file;
mod name;
mod node;

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use domain::spec::{EditMount, EditRdt, Edits, HookProgram, HookStage};
use thiserror::Error;

use crate::followed::{File, Followed};
use crate::text::split_env;
use file::CdiEdits;
pub use file::{CdiFile, Format, ParseError, parse};
pub use name::DeviceName;
pub use node::NodeError;

/// Keys of annotations whose values name devices.
const ANNOTATION_PREFIX: &str = "cdi.k8s.io/";

/// Why a container cannot have the devices it asks for.
#[derive(Debug, Error)]
pub enum CdiError {
    /// Not `vendor/class=device`.
    #[error("invalid CDI device name {name:?}")]
    Name {
        /// As given, shortened.
        name: String,
    },
    /// Nobody defines them, or several do.
    #[error("unresolvable CDI devices {}", names.join(", "))]
    Unresolvable {
        /// All of them.
        names: Vec<String>,
    },
    /// A device node of the definition is not on this node.
    #[error("CDI device {device}")]
    Node {
        /// The device.
        device: DeviceName,
        #[source]
        /// What is wrong.
        source: NodeError,
    },
    /// The runtime spec that containers are given has no place for it.
    #[error("CDI device {device}: {what} needs a later version of the runtime spec than containers are given")]
    NoPlace {
        /// The device.
        device: DeviceName,
        /// Which edit.
        what: &'static str,
    },
}

/// The names that a request's field and its annotations give, in that order, each once.
pub fn requested<'a>(
    field: &[String],
    annotations: impl IntoIterator<Item = (&'a String, &'a String)>,
) -> Result<Vec<DeviceName>, CdiError> {
    let values = annotations.into_iter().filter(|(key, _)| key.starts_with(ANNOTATION_PREFIX)).map(|(_, value)| value);
    let texts = field.iter().map(String::as_str).chain(values.flat_map(|value| value.split(',')));
    let mut names: Vec<DeviceName> = vec![];
    for text in texts {
        let name = DeviceName::parse(text).ok_or_else(|| CdiError::Name { name: crate::text::short(text) })?;
        if !names.contains(&name) {
            names.push(name);
        }
    }
    Ok(names)
}

/// All devices that the directories define.
pub struct Cdi {
    content: Followed<Registry>,
}

impl Cdi {
    /// Follows these directories, of which the last has the last word. They need not exist.
    #[must_use]
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { content: Followed::new(directories, &["json", "yaml"], Registry::new) }
    }

    /// Follows other directories from now on.
    pub fn set_directories(&self, directories: Vec<PathBuf>) {
        self.content.set_directories(directories);
    }

    /// Reads the directories, so that what is wrong in them is told.
    pub fn look(&self) {
        self.content.get();
    }

    /// What a container with these devices is given, from the files as they are now.
    pub fn edits(&self, names: &[DeviceName]) -> Result<Edits, CdiError> {
        if names.is_empty() { Ok(Edits::default()) } else { self.content.get().edits(names) }
    }
}

/// Files by number, and where each device is.
struct Registry {
    files: Vec<CdiFile>,
    /// File and device number.
    devices: BTreeMap<DeviceName, (usize, usize)>,
}

impl Registry {
    fn new(found: Vec<File>) -> (Self, Vec<String>) {
        let mut problems = vec![];
        let mut registry = Self { files: vec![], devices: BTreeMap::new() };
        let mut priority: BTreeMap<DeviceName, (usize, PathBuf)> = BTreeMap::new();
        let mut conflicts = BTreeSet::new();
        for one in found {
            let format =
                if one.path.extension().is_some_and(|own| own == "json") { Format::Json } else { Format::Yaml };
            let parsed = one.bytes.map_err(|error| error.to_string());
            let parsed = parsed.and_then(|bytes| parse(&bytes, format).map_err(|error| crate::text::chain(&error)));
            let file = match parsed {
                Ok(file) => file,
                Err(error) => {
                    problems.push(format!("CDI specification {}: {error}", one.path.display()));
                    continue;
                }
            };
            for (number, device) in file.devices.iter().enumerate() {
                let name = DeviceName::of(&file.kind, &device.name);
                // Directories come in the order of their priority.
                match priority.get(&name) {
                    Some((same, other)) if *same == one.directory => {
                        problems.push(format!(
                            "CDI device {name} is defined by {} and by {}: it cannot be used",
                            other.display(),
                            one.path.display()
                        ));
                        conflicts.insert(name);
                    }
                    _ => {
                        conflicts.remove(&name);
                        priority.insert(name.clone(), (one.directory, one.path.clone()));
                        registry.devices.insert(name, (registry.files.len(), number));
                    }
                }
            }
            registry.files.push(file);
        }
        registry.devices.retain(|name, _| !conflicts.contains(name));
        (registry, problems)
    }

    fn edits(&self, names: &[DeviceName]) -> Result<Edits, CdiError> {
        let missing: Vec<String> =
            names.iter().filter(|name| !self.devices.contains_key(name)).map(ToString::to_string).collect();
        if !missing.is_empty() {
            return Err(CdiError::Unresolvable { names: missing });
        }
        let (mut edits, mut seen) = (Edits::default(), BTreeSet::new());
        for name in names {
            let Some((file_number, number)) = self.devices.get(name) else { continue };
            let file = &self.files[*file_number];
            // What all devices of a file need is done once for it.
            if seen.insert(*file_number) {
                edits.append(resolve(name, &file.container_edits)?);
            }
            edits.append(resolve(name, &file.devices[*number].container_edits)?);
        }
        Ok(edits)
    }
}

/// Looks up what a definition leaves to the node.
fn resolve(device: &DeviceName, edits: &CdiEdits) -> Result<Edits, CdiError> {
    let no_place = |what| Err(CdiError::NoPlace { device: device.clone(), what });
    if !edits.net_devices.is_empty() {
        return no_place("netDevices");
    }
    if edits.intel_rdt.as_ref().is_some_and(file::CdiRdt::is_of_1_1) {
        return no_place("intelRdt with schemata or enableMonitoring");
    }
    let nodes: Result<Vec<_>, NodeError> = edits.device_nodes.iter().map(node::resolve).collect();
    let env = edits.env.iter().filter_map(|entry| split_env(entry));
    let hooks = edits.hooks.iter().filter_map(|hook| {
        let program = HookProgram {
            path: hook.path.clone(),
            args: hook.args.clone(),
            env: hook.env.clone(),
            timeout_seconds: hook.timeout,
        };
        Some((HookStage::parse(&hook.hook_name)?, program))
    });
    let mounts = edits.mounts.iter().map(|mount| EditMount {
        source: mount.host_path.clone(),
        destination: mount.container_path.clone(),
        kind: mount.kind.clone(),
        options: mount.options.clone(),
    });
    Ok(Edits {
        block_io: None,
        env: env.map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        nodes: nodes.map_err(|source| CdiError::Node { device: device.clone(), source })?,
        mounts: mounts.collect(),
        hooks: hooks.collect(),
        rdt: edits.intel_rdt.as_ref().map(|rdt| EditRdt {
            clos_id: rdt.clos_id.clone(),
            l3_cache_schema: rdt.l3_cache_schema.clone(),
            mem_bw_schema: rdt.mem_bw_schema.clone(),
        }),
        additional_gids: edits.additional_gids.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn file(directory: usize, path: &str, kind: &str, devices: &[(&str, &str)]) -> File {
        let devices: Vec<String> = devices
            .iter()
            .map(|(name, value)| format!(r#"{{"name": "{name}", "containerEdits": {{"env": ["FROM={value}"]}}}}"#))
            .collect();
        let text = format!(
            r#"{{"cdiVersion": "0.6.0", "kind": "{kind}", "devices": [{}], "containerEdits": {{"additionalGids": null, "env": ["{}=1"]}}}}"#,
            devices.join(","),
            Path::new(path).file_stem().and_then(|stem| stem.to_str()).unwrap_or("x"),
        );
        File { directory, path: path.into(), bytes: Ok(text.into_bytes()) }
    }

    fn names(texts: &[&str]) -> Vec<DeviceName> {
        texts.iter().map(|text| DeviceName::parse(text).expect("a name")).collect()
    }

    #[test]
    fn later_directories_win_and_conflicts_do_not() {
        let broken = File { directory: 0, path: "/1/broken.yaml".into(), bytes: Ok(b"kind: [".to_vec()) };
        let unreadable =
            File { directory: 0, path: "/1/gone.json".into(), bytes: Err(std::io::ErrorKind::PermissionDenied.into()) };
        let (registry, problems) = Registry::new(vec![
            file(0, "/1/a.json", "v/c", &[("over", "a"), ("twice", "a"), ("mended", "a"), ("only", "a")]),
            file(0, "/1/b.json", "v/c", &[("twice", "b"), ("mended", "b")]),
            broken,
            unreadable,
            file(1, "/2/c.json", "v/c", &[("over", "c"), ("mended", "c")]),
        ]);
        let env = |name: &str| registry.edits(&names(&[name])).map(|edits| edits.env.last().cloned().expect("one").1);
        assert_eq!(env("v/c=over").expect("resolves"), "c");
        assert_eq!(env("v/c=mended").expect("resolves"), "c");
        assert_eq!(env("v/c=only").expect("resolves"), "a");
        let error = registry.edits(&names(&["v/c=twice", "v/c=over", "x/y=z"])).expect_err("not all there");
        assert_eq!(error.to_string(), "unresolvable CDI devices v/c=twice, x/y=z");
        assert_eq!(problems.len(), 4, "{problems:#?}");
    }

    #[test]
    fn edits_of_a_file_come_once_and_first() {
        let (registry, _) = Registry::new(vec![file(0, "/1/a.json", "v/c", &[("one", "1"), ("two", "2")])]);
        let edits = registry.edits(&names(&["v/c=two", "v/c=one"])).expect("resolves");
        let lines: Vec<String> = edits.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
        assert_eq!(lines, ["a=1", "FROM=2", "FROM=1"]);
    }

    #[test]
    fn names_come_from_field_and_annotations() {
        let annotations: BTreeMap<String, String> =
            [("cdi.k8s.io/one", "v/c=b,v/c=a"), ("cdi.k8s.io/two", "v/c=c"), ("other.io/cdi.k8s.io/x", "not a name")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        let field = ["v/c=a".to_owned(), "v/c=a".to_owned()];
        let found = requested(&field, &annotations).expect("valid");
        assert_eq!(found, names(&["v/c=a", "v/c=b", "v/c=c"]));
        for bad in ["", "v/c=a,", "v/c=a, v/c=b", "/dev/null"] {
            let annotations = BTreeMap::from([("cdi.k8s.io/x".to_owned(), bad.to_owned())]);
            assert!(requested(&[], &annotations).is_err(), "{bad:?}");
        }
        assert!(requested(&["/dev/null".to_owned()], &BTreeMap::new()).is_err());
    }

    #[test]
    fn what_the_spec_has_no_place_for_is_refused_by_name() {
        for (edits, what) in [
            (r#"{"netDevices": [{"hostInterfaceName": "a", "name": "n"}]}"#, "netDevices"),
            (r#"{"intelRdt": {"schemata": ["L3:0=f"]}}"#, "intelRdt with schemata"),
        ] {
            let text = format!(
                r#"{{"cdiVersion": "1.1.0", "kind": "v/c", "devices": [{{"name": "d", "containerEdits": {edits}}}]}}"#
            );
            let one = File { directory: 0, path: "/a.json".into(), bytes: Ok(text.into_bytes()) };
            let (registry, problems) = Registry::new(vec![one]);
            assert!(problems.is_empty(), "{problems:?}");
            let error = registry.edits(&names(&["v/c=d"])).expect_err("no place").to_string();
            assert!(error.contains(what) && error.contains("v/c=d"), "{error}");
        }
    }
}
