//! What devices and hook definitions of the node add to a finished runtime spec.
//!
//! Source: Container Device Interface specification, "containerEdits"; OCI runtime specification, "POSIX-platform Hooks".

use std::path::Path;

use oci_spec::runtime::{
    Hook, HookBuilder, Hooks, Linux, LinuxBlockIo, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup,
    LinuxDeviceCgroupBuilder, LinuxDeviceType, LinuxIntelRdt, LinuxThrottleDeviceBuilder, LinuxWeightDeviceBuilder,
    Mount, Process, Spec,
};

use super::mounts::{check_path, clean};
use super::{SpecError, devices};

/// When a runtime runs a hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookStage {
    /// The deprecated stage, before `createRuntime`.
    Prestart,
    /// In the runtime's namespaces, once the container's exist.
    CreateRuntime,
    /// In the container's namespaces, before its root is entered.
    CreateContainer,
    /// In the container, before its program.
    StartContainer,
    /// In the runtime's namespaces, after the program was started.
    Poststart,
    /// In the runtime's namespaces, after the container was deleted.
    Poststop,
}

impl HookStage {
    /// By the name the OCI runtime specification gives it.
    #[must_use]
    pub fn parse(name: &str) -> Option<Self> {
        match name {
            "prestart" => Some(Self::Prestart),
            "createRuntime" => Some(Self::CreateRuntime),
            "createContainer" => Some(Self::CreateContainer),
            "startContainer" => Some(Self::StartContainer),
            "poststart" => Some(Self::Poststart),
            "poststop" => Some(Self::Poststop),
            _ => None,
        }
    }
}

/// A program that the runtime runs.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HookProgram {
    /// Absolute path; of the node, or of the container for the stage `startContainer`.
    pub path: String,
    /// With the program's own name in front; none leaves that to the runtime.
    pub args: Vec<String>,
    /// `NAME=value` each.
    pub env: Vec<String>,
    /// Seconds it may take; none for no limit.
    pub timeout_seconds: Option<i64>,
}

/// What a device node is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EditNodeKind {
    /// Block device.
    Block,
    /// Character device.
    Char,
    /// A named pipe, which has no numbers and no rule.
    Fifo,
}

/// A device node, with what the node's own one says filled in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EditNode {
    /// Path in the container.
    pub path: String,
    /// Kind.
    pub kind: EditNodeKind,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits; absent leaves them to the runtime.
    pub mode: Option<u32>,
    /// Owner; absent is the container's user, unless that is root.
    pub uid: Option<u32>,
    /// Group; absent is the container's group, unless that is root's.
    pub gid: Option<u32>,
    /// Subset of `rwm`; empty means all three.
    pub permissions: String,
}

/// A mount as it is written into the spec.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EditMount {
    /// Path on the node, or what the type wants.
    pub source: String,
    /// Path in the container.
    pub destination: String,
    /// File system type; empty leaves it out.
    pub kind: String,
    /// Options.
    pub options: Vec<String>,
}

/// Cache and memory bandwidth, `linux.intelRdt`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EditRdt {
    /// Class of service; empty for none.
    pub clos_id: String,
    /// Schema of the L3 cache; empty for none.
    pub l3_cache_schema: String,
    /// Schema of the memory bandwidth; empty for none.
    pub mem_bw_schema: String,
}

/// A value for one block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceValue {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Weight, bytes or operations a second.
    pub value: u64,
}

/// Weights and limits of block I/O. Source: OCI runtime specification, "Block IO".
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BlockIo {
    /// For every device without its own.
    pub weight: Option<u16>,
    /// Weights of devices.
    pub weights: Vec<DeviceValue>,
    /// Bytes a second.
    pub read_bps: Vec<DeviceValue>,
    /// Bytes a second.
    pub write_bps: Vec<DeviceValue>,
    /// Operations a second.
    pub read_iops: Vec<DeviceValue>,
    /// Operations a second.
    pub write_iops: Vec<DeviceValue>,
}

impl BlockIo {
    fn to_spec(&self) -> LinuxBlockIo {
        let weights = self.weights.iter().filter_map(|of| {
            let weight = u16::try_from(of.value).ok()?;
            LinuxWeightDeviceBuilder::default().major(of.major).minor(of.minor).weight(weight).build().ok()
        });
        let limits = |list: &[DeviceValue]| {
            let limits = list.iter().filter_map(|of| {
                LinuxThrottleDeviceBuilder::default().major(of.major).minor(of.minor).rate(of.value).build().ok()
            });
            Some(limits.collect::<Vec<_>>()).filter(|limits| !limits.is_empty())
        };
        let mut made = LinuxBlockIo::default();
        made.set_weight(self.weight);
        made.set_weight_device(Some(weights.collect::<Vec<_>>()).filter(|weights| !weights.is_empty()));
        made.set_throttle_read_bps_device(limits(&self.read_bps));
        made.set_throttle_write_bps_device(limits(&self.write_bps));
        made.set_throttle_read_iops_device(limits(&self.read_iops));
        made.set_throttle_write_iops_device(limits(&self.write_iops));
        made
    }
}

/// Additions, in the order in which they are made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Edits {
    /// Variables; a name that exists gets the new value.
    pub env: Vec<(String, String)>,
    /// Device nodes, each replacing one on its path.
    pub nodes: Vec<EditNode>,
    /// Mounts, each replacing one on its path.
    pub mounts: Vec<EditMount>,
    /// Hooks.
    pub hooks: Vec<(HookStage, HookProgram)>,
    /// Replaces what is there.
    pub rdt: Option<EditRdt>,
    /// Replaces what is there.
    pub block_io: Option<BlockIo>,
    /// Groups of the process beside its others; root's is never added.
    pub additional_gids: Vec<u32>,
}

impl Edits {
    /// These, and then those.
    pub fn append(&mut self, later: Self) {
        self.env.extend(later.env);
        self.nodes.extend(later.nodes);
        self.mounts.extend(later.mounts);
        self.hooks.extend(later.hooks);
        self.rdt = later.rdt.or(self.rdt.take());
        self.block_io = later.block_io.or(self.block_io.take());
        self.additional_gids.extend(later.additional_gids);
    }

    /// Makes the additions, or refuses what no container may have.
    pub(super) fn apply(&self, spec: &mut Spec) -> Result<(), SpecError> {
        if *self == Self::default() {
            return Ok(());
        }
        let mut process = spec.process().clone().unwrap_or_default();
        let mut linux = spec.linux().clone().unwrap_or_default();
        edit_env(&self.env, &mut process)?;
        edit_groups(&self.additional_gids, &mut process);
        edit_nodes(&self.nodes, &process, &mut linux)?;
        if let Some(rdt) = &self.rdt {
            linux.set_intel_rdt(Some(intel_rdt(rdt)));
        }
        if let Some(block_io) = &self.block_io {
            let mut resources = linux.resources().clone().unwrap_or_default();
            resources.set_block_io(Some(block_io.to_spec()));
            linux.set_resources(Some(resources));
        }
        if !self.mounts.is_empty() {
            spec.set_mounts(Some(edit_mounts(&self.mounts, spec.mounts().clone().unwrap_or_default())?));
        }
        if !self.hooks.is_empty() {
            spec.set_hooks(Some(edit_hooks(&self.hooks, spec.hooks().clone().unwrap_or_default())?));
        }
        spec.set_process(Some(process));
        spec.set_linux(Some(linux));
        Ok(())
    }
}

fn refuse_nul(field: &'static str, text: &str) -> Result<(), SpecError> {
    if text.contains('\0') { Err(SpecError::Nul { field }) } else { Ok(()) }
}

fn edit_env(additions: &[(String, String)], process: &mut Process) -> Result<(), SpecError> {
    let mut lines = process.env().clone().unwrap_or_default();
    for (name, value) in additions {
        if name.is_empty() || name.contains('=') {
            return Err(SpecError::BadEnv { name: name.chars().take(100).collect(), origin: "the device" });
        }
        refuse_nul("env", name).and_then(|()| refuse_nul("env", value))?;
        if name == "HOME" && value.contains(['\n', '\r']) {
            return Err(SpecError::HomeWithLineBreak);
        }
        let line = format!("{name}={value}");
        match lines.iter_mut().find(|known| known.split_once('=').is_some_and(|(known, _)| known == name)) {
            Some(known) => *known = line,
            None => lines.push(line),
        }
    }
    process.set_env(Some(lines));
    Ok(())
}

fn edit_groups(additions: &[u32], process: &mut Process) {
    let mut user = process.user().clone();
    let mut groups = user.additional_gids().clone().unwrap_or_default();
    for gid in additions.iter().filter(|gid| **gid != 0) {
        if !groups.contains(gid) {
            groups.push(*gid);
        }
    }
    user.set_additional_gids(Some(groups));
    process.set_user(user);
}

fn edit_nodes(additions: &[EditNode], process: &Process, linux: &mut Linux) -> Result<(), SpecError> {
    let mut nodes = linux.devices().clone().unwrap_or_default();
    let mut resources = linux.resources().clone().unwrap_or_default();
    let mut rules = resources.devices().clone().unwrap_or_default();
    let not_root = |id: u32| (id > 0).then_some(id);
    let (uid, gid) = (not_root(process.user().uid()), not_root(process.user().gid()));
    for node in additions {
        let made = device(node, node.uid.or(uid), node.gid.or(gid))?;
        nodes.retain(|known| known.path() != made.path());
        nodes.push(made);
        rules.extend(rule(node)?);
    }
    resources.set_devices(Some(rules));
    linux.set_devices(Some(nodes));
    linux.set_resources(Some(resources));
    Ok(())
}

fn device(node: &EditNode, uid: Option<u32>, gid: Option<u32>) -> Result<LinuxDevice, SpecError> {
    check_path(&node.path)?;
    let kind = match node.kind {
        EditNodeKind::Block => LinuxDeviceType::B,
        EditNodeKind::Char => LinuxDeviceType::C,
        EditNodeKind::Fifo => LinuxDeviceType::P,
    };
    let builder = LinuxDeviceBuilder::default().path(&node.path).typ(kind);
    let mut made = builder
        .major(i64::from(node.major))
        .minor(i64::from(node.minor))
        .build()
        .map_err(|_| SpecError::OutOfRange { field: "device", value: node.path.clone() })?;
    made.set_file_mode(node.mode.map(|mode| mode & 0o7777));
    made.set_uid(uid);
    made.set_gid(gid);
    Ok(made)
}

fn rule(node: &EditNode) -> Result<Option<LinuxDeviceCgroup>, SpecError> {
    let kind = match node.kind {
        EditNodeKind::Block => LinuxDeviceType::B,
        EditNodeKind::Char => LinuxDeviceType::C,
        EditNodeKind::Fifo => return Ok(None),
    };
    let allow = LinuxDeviceCgroupBuilder::default().allow(true).typ(kind);
    let access = devices::check_permissions(&node.path, &node.permissions)?;
    let allow = allow.major(i64::from(node.major)).minor(i64::from(node.minor)).access(access);
    allow.build().map(Some).map_err(|_| SpecError::OutOfRange { field: "device", value: node.path.clone() })
}

/// Parents come before what lies in them, also after a device has added a mount above another.
fn edit_mounts(additions: &[EditMount], mut mounts: Vec<Mount>) -> Result<Vec<Mount>, SpecError> {
    for addition in additions {
        check_path(&addition.destination)?;
        refuse_nul("mount source", &addition.source)?;
        refuse_nul("mount type", &addition.kind)?;
        addition.options.iter().try_for_each(|option| refuse_nul("mount options", option))?;
        let destination = clean(&addition.destination);
        mounts.retain(|known| known.destination() != Path::new(&destination));
        let mut mount = Mount::default();
        mount.set_destination(destination.into());
        mount.set_typ((!addition.kind.is_empty()).then(|| addition.kind.clone()));
        mount.set_source(Some(addition.source.clone().into()));
        mount.set_options((!addition.options.is_empty()).then(|| addition.options.clone()));
        mounts.push(mount);
    }
    mounts.sort_by_key(|mount| mount.destination().components().count());
    Ok(mounts)
}

fn edit_hooks(additions: &[(HookStage, HookProgram)], mut hooks: Hooks) -> Result<Hooks, SpecError> {
    for (stage, program) in additions {
        let hook = hook(program)?;
        let list = match stage {
            // Deprecated for those who write definitions; runtimes still run it.
            HookStage::Prestart => hooks.prestart_mut(),
            HookStage::CreateRuntime => hooks.create_runtime_mut(),
            HookStage::CreateContainer => hooks.create_container_mut(),
            HookStage::StartContainer => hooks.start_container_mut(),
            HookStage::Poststart => hooks.poststart_mut(),
            HookStage::Poststop => hooks.poststop_mut(),
        };
        list.get_or_insert_default().push(hook);
    }
    Ok(hooks)
}

fn hook(program: &HookProgram) -> Result<Hook, SpecError> {
    check_path(&program.path)?;
    program.args.iter().chain(&program.env).try_for_each(|text| refuse_nul("hook", text))?;
    let bad = || SpecError::OutOfRange { field: "hook", value: program.path.clone() };
    let mut made = HookBuilder::default().path(&program.path).build().map_err(|_| bad())?;
    made.set_args((!program.args.is_empty()).then(|| program.args.clone()));
    made.set_env((!program.env.is_empty()).then(|| program.env.clone()));
    made.set_timeout(program.timeout_seconds);
    Ok(made)
}

fn intel_rdt(rdt: &EditRdt) -> LinuxIntelRdt {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let mut made = LinuxIntelRdt::default();
    made.set_clos_id(given(&rdt.clos_id));
    made.set_l3_cache_schema(given(&rdt.l3_cache_schema));
    made.set_mem_bw_schema(given(&rdt.mem_bw_schema));
    made
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn base() -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.0.2",
            "process": {"cwd": "/", "args": ["/app"], "env": ["PATH=/bin", "A=1"],
                        "user": {"uid": 1000, "gid": 0, "additionalGids": [5]}},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"},
                       {"destination": "/data/deep", "type": "bind", "source": "/x", "options": ["rbind"]}],
            "linux": {"devices": [{"path": "/dev/fuse", "type": "c", "major": 1, "minor": 1}],
                      "resources": {"devices": [{"allow": false, "type": "a", "access": "rwm"}]}},
        }))
        .expect("a spec")
    }

    fn node(path: &str, kind: EditNodeKind) -> EditNode {
        EditNode {
            path: path.to_owned(),
            kind,
            major: 10,
            minor: 229,
            mode: None,
            uid: None,
            gid: None,
            permissions: String::new(),
        }
    }

    /// The part of the edited spec at a JSON pointer, or the error.
    fn edited(edits: &Edits, pointer: &str) -> Result<Value, SpecError> {
        let mut spec = base();
        edits.apply(&mut spec)?;
        let value = serde_json::to_value(&spec).expect("serialises");
        Ok(value.pointer(pointer).cloned().unwrap_or(Value::Null))
    }

    #[test]
    fn variables_replace_those_of_their_name() {
        let env = [("A", "2"), ("B", "x=y"), ("B", "z")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let edits = Edits { env: env.to_vec(), ..Edits::default() };
        assert_eq!(edited(&edits, "/process/env"), Ok(json!(["PATH=/bin", "A=2", "B=z"])));
        for (name, value) in [("", "x"), ("a=b", "x"), ("A", "x\0"), ("HOME", "/a\nroot:x:0:0::/:/bin/sh")] {
            let edits = Edits { env: vec![(name.to_owned(), value.to_owned())], ..Edits::default() };
            assert!(edited(&edits, "").is_err(), "{name:?}");
        }
    }

    #[test]
    fn nodes_replace_those_of_their_path_and_are_allowed() {
        let mut owned = node("/dev/owned", EditNodeKind::Block);
        (owned.uid, owned.gid, owned.mode, owned.permissions) = (Some(0), Some(7), Some(0o100_660), "rw".to_owned());
        let nodes = vec![node("/dev/fuse", EditNodeKind::Char), owned, node("/run/pipe", EditNodeKind::Fifo)];
        let edits = Edits { nodes, ..Edits::default() };
        assert_eq!(
            edited(&edits, "/linux/devices"),
            Ok(json!([
                {"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "uid": 1000},
                {"path": "/dev/owned", "type": "b", "major": 10, "minor": 229, "fileMode": 0o660, "uid": 0, "gid": 7},
                {"path": "/run/pipe", "type": "p", "major": 10, "minor": 229, "uid": 1000},
            ]))
        );
        assert_eq!(
            edited(&edits, "/linux/resources/devices"),
            Ok(json!([
                {"allow": false, "type": "a", "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rwm"},
                {"allow": true, "type": "b", "major": 10, "minor": 229, "access": "rw"},
            ]))
        );
        let mut bad = node("/dev/x", EditNodeKind::Char);
        bad.permissions = "rx".to_owned();
        for node in [bad, node("dev/x", EditNodeKind::Char), node("/dev/../etc", EditNodeKind::Char)] {
            assert!(edited(&Edits { nodes: vec![node], ..Edits::default() }, "").is_err());
        }
    }

    #[test]
    fn mounts_stay_in_the_order_of_depth() {
        let mount = |destination: &str| EditMount {
            source: "/lib".to_owned(),
            destination: destination.to_owned(),
            kind: String::new(),
            options: vec!["ro".to_owned(), "bind".to_owned()],
        };
        let edits = Edits { mounts: vec![mount("/data"), mount("/proc/")], ..Edits::default() };
        let order: Vec<String> = edited(&edits, "/mounts")
            .expect("edits")
            .as_array()
            .expect("a list")
            .iter()
            .map(|mount| {
                format!("{}<{}", mount["destination"].as_str().unwrap_or(""), mount["source"].as_str().unwrap_or(""))
            })
            .collect();
        assert_eq!(order, ["/data</lib", "/proc</lib", "/data/deep</x"]);
        for bad in ["data", "/a/../b", "/a\0"] {
            assert!(edited(&Edits { mounts: vec![mount(bad)], ..Edits::default() }, "").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn hooks_groups_and_classes_are_added() {
        let program = |path: &str| HookProgram { path: path.to_owned(), ..HookProgram::default() };
        let full = HookProgram {
            path: "/bin/h".to_owned(),
            args: vec!["h".to_owned(), "x".to_owned()],
            env: vec!["A=b".to_owned()],
            timeout_seconds: Some(3),
        };
        let mut edits = Edits {
            hooks: vec![(HookStage::CreateRuntime, full), (HookStage::CreateRuntime, program("/bin/2"))],
            additional_gids: vec![5, 0, 44, 44],
            rdt: Some(EditRdt { clos_id: "first".to_owned(), ..EditRdt::default() }),
            ..Edits::default()
        };
        edits.append(Edits {
            hooks: vec![(HookStage::Prestart, program("/bin/3")), (HookStage::Poststop, program("/bin/4"))],
            rdt: Some(EditRdt {
                clos_id: "second".to_owned(),
                mem_bw_schema: "MB:0=20".to_owned(),
                ..EditRdt::default()
            }),
            ..Edits::default()
        });
        edits.append(Edits::default());
        assert_eq!(
            edited(&edits, "/hooks"),
            Ok(json!({
                "prestart": [{"path": "/bin/3"}],
                "createRuntime": [{"path": "/bin/h", "args": ["h", "x"], "env": ["A=b"], "timeout": 3}, {"path": "/bin/2"}],
                "poststop": [{"path": "/bin/4"}],
            }))
        );
        assert_eq!(edited(&edits, "/process/user/additionalGids"), Ok(json!([5, 44])));
        assert_eq!(edited(&edits, "/linux/intelRdt"), Ok(json!({"closID": "second", "memBwSchema": "MB:0=20"})));
        for bad in ["", "bin/h", "/bin/../h", "/bin/h\0"] {
            let edits = Edits { hooks: vec![(HookStage::Poststart, program(bad))], ..Edits::default() };
            assert!(edited(&edits, "").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn nothing_to_add_changes_nothing() {
        let mut spec = base();
        Edits::default().apply(&mut spec).expect("applies");
        assert_eq!(spec, base());
    }
}
