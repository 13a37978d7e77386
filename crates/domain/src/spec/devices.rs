//! Device nodes and the rules of the device cgroup.

use oci_spec::runtime::{
    LinuxDevice, LinuxDeviceBuilder, LinuxDeviceCgroup, LinuxDeviceCgroupBuilder, LinuxDeviceType,
};

use super::{DeviceKind, HostDevice, ResolvedDevice, SpecError};

/// Checks the CRI's `permissions`; empty means all.
pub(super) fn check_permissions(path: &str, permissions: &str) -> Result<String, SpecError> {
    let known = permissions.bytes().all(|byte| matches!(byte, b'r' | b'w' | b'm'));
    let once = permissions.bytes().enumerate().all(|(at, byte)| !permissions.as_bytes()[..at].contains(&byte));
    match (permissions.is_empty(), known && once) {
        (true, _) => Ok("rwm".to_owned()),
        (false, true) => Ok(permissions.to_owned()),
        (false, false) => Err(SpecError::BadDevicePermissions {
            path: path.to_owned(),
            permissions: permissions.chars().take(20).collect(),
        }),
    }
}

fn bad(node: &HostDevice) -> SpecError {
    SpecError::OutOfRange { field: "device", value: node.path.clone() }
}

fn device_type(kind: DeviceKind) -> LinuxDeviceType {
    match kind {
        DeviceKind::Char => LinuxDeviceType::C,
        DeviceKind::Block => LinuxDeviceType::B,
    }
}

fn device(node: &HostDevice, uid: u32, gid: u32) -> Result<LinuxDevice, SpecError> {
    super::mounts::check_path(&node.path)?;
    LinuxDeviceBuilder::default()
        .path(&node.path)
        .typ(device_type(node.kind))
        .major(i64::from(node.major))
        .minor(i64::from(node.minor))
        .file_mode(node.mode & 0o7777)
        .uid(uid)
        .gid(gid)
        .build()
        .map_err(|_| bad(node))
}

fn rule(allow: bool, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    rule.set_typ(Some(LinuxDeviceType::A));
    rule.set_access(Some(access.to_owned()));
    rule
}

/// Deny everything: what an unprivileged container starts from. The runtime adds null, zero, full, random, urandom,
/// tty, console and ptmx itself.
pub(super) fn deny_all() -> LinuxDeviceCgroup {
    rule(false, "rwm")
}

/// Who gets the nodes of the request.
pub(super) struct Owner {
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
}

/// Nodes and rules, in that order. `host` is what a privileged container sees besides, absent for others.
pub(super) fn devices(
    configured: &[ResolvedDevice],
    requested: &[ResolvedDevice],
    host: Option<&[HostDevice]>,
    owner: &Owner,
) -> Result<(Vec<LinuxDevice>, Vec<LinuxDeviceCgroup>), SpecError> {
    let mut nodes: Vec<LinuxDevice> = vec![];
    let mut rules = vec![deny_all()];
    let mut put = |device: LinuxDevice| {
        nodes.retain(|known: &LinuxDevice| known.path() != device.path());
        nodes.push(device);
    };
    for node in host.unwrap_or_default() {
        put(device(node, node.uid, node.gid)?);
    }
    for (wanted, is_request) in configured.iter().map(|one| (one, false)).chain(requested.iter().map(|one| (one, true)))
    {
        let node = &wanted.node;
        if is_request && host.is_some_and(|host| host.iter().any(|known| hides(node, known))) {
            return Err(SpecError::DeviceHidesHost { path: node.path.clone() });
        }
        let (uid, gid) = if is_request {
            (owner.uid.unwrap_or(node.uid), owner.gid.unwrap_or(node.gid))
        } else {
            (node.uid, node.gid)
        };
        put(device(node, uid, gid)?);
        let allow = LinuxDeviceCgroupBuilder::default()
            .allow(true)
            .typ(device_type(node.kind))
            .major(i64::from(node.major))
            .minor(i64::from(node.minor))
            .access(check_permissions(&node.path, &wanted.permissions)?);
        rules.push(allow.build().map_err(|_| bad(node))?);
    }
    if host.is_some() {
        rules = vec![rule(true, "rwm")];
    }
    Ok((nodes, rules))
}

/// Whether a device takes the place of another one of the host's. Source: CRI-O.
fn hides(wanted: &HostDevice, known: &HostDevice) -> bool {
    wanted.path == known.path && (wanted.kind, wanted.major, wanted.minor) != (known.kind, known.major, known.minor)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(path: &str, minor: u32) -> HostDevice {
        HostDevice { path: path.into(), kind: DeviceKind::Char, major: 10, minor, mode: 0o666, uid: 0, gid: 6 }
    }

    #[test]
    fn requested_devices_are_allowed_after_a_general_no() {
        let asked = [ResolvedDevice { node: node("/dev/fuse", 229), permissions: "rw".into() }];
        let owner = Owner { uid: Some(1000), gid: None };
        let (nodes, rules) = devices(&[], &asked, None, &owner).expect("valid");
        assert_eq!(
            serde_json::to_value(&nodes).expect("serialises"),
            serde_json::json!([{"path": "/dev/fuse", "type": "c", "major": 10, "minor": 229, "fileMode": 438, "uid": 1000, "gid": 6}])
        );
        assert_eq!(
            serde_json::to_value(&rules).expect("serialises"),
            serde_json::json!([
                {"allow": false, "type": "a", "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
            ])
        );
    }

    #[test]
    fn privileged_containers_see_the_host_and_one_rule() {
        let asked = |path: &str, minor| [ResolvedDevice { node: node(path, minor), permissions: String::new() }];
        let host = [node("/dev/kvm", 232), node("/dev/fuse", 229)];
        let owner = Owner { uid: None, gid: None };
        let made = devices(&[], &asked("/dev/other", 1), Some(&host), &owner);
        let (nodes, rules) = made.expect("valid");
        assert_eq!(
            nodes.iter().map(|node| (node.path().to_str(), node.minor())).collect::<Vec<_>>(),
            [(Some("/dev/kvm"), 232), (Some("/dev/fuse"), 229), (Some("/dev/other"), 1)]
        );
        assert_eq!((rules.len(), rules[0].allow()), (1, true));
        assert!(devices(&[], &asked("/dev/kvm", 232), Some(&host), &owner).is_ok(), "the same one");
        let hidden = devices(&[], &asked("/dev/kvm", 1), Some(&host), &owner);
        assert_eq!(hidden, Err(SpecError::DeviceHidesHost { path: "/dev/kvm".into() }));
        assert!(devices(&[], &asked("/dev/kvm", 1), None, &owner).is_ok(), "without the host's devices");
    }

    #[test]
    fn permissions_are_a_subset_of_rwm() {
        for (text, expected) in
            [("", Some("rwm")), ("r", Some("r")), ("mr", Some("mr")), ("rx", None), ("rr", None), ("rwmr", None)]
        {
            assert_eq!(check_permissions("/dev/x", text).ok().as_deref(), expected, "{text}");
        }
    }
}
