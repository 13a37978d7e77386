//! Whole specs, to the last field.

use super::*;

#[test]
fn the_plainest_container_is_exactly_this() {
    let expected = json!({
        "ociVersion": "1.0.2",
        "annotations": {"k": "v"},
        "hostname": "pod",
        "root": {"path": "/rootfs", "readonly": false},
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
            "args": ["/app"],
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=xterm", "HOSTNAME=pod"],
            "cwd": "/",
            "capabilities": {
                "bounding": ["CAP_CHOWN", "CAP_KILL"],
                "effective": ["CAP_CHOWN", "CAP_KILL"],
                "permitted": ["CAP_CHOWN", "CAP_KILL"],
                "inheritable": [],
                "ambient": [],
            },
            "rlimits": [],
            "noNewPrivileges": false,
            "oomScoreAdj": 0,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/f/shm", "options": ["rw", "bind"]},
            {"destination": "/etc/resolv.conf", "type": "bind", "source": "/f/resolv.conf",
             "options": ["rw", "bind", "nodev", "nosuid", "noexec"]},
            {"destination": "/etc/hostname", "type": "bind", "source": "/f/hostname",
             "options": ["rw", "bind", "nodev", "nosuid", "noexec"]},
            {"destination": "/run/.containerenv", "type": "bind", "source": "/f/containerenv", "options": ["rw", "bind"]},
        ],
        "linux": {
            "cgroupsPath": format!("/pod/crio-{}", "c".repeat(64)),
            "devices": [],
            "maskedPaths": [],
            "readonlyPaths": [],
            "namespaces": [
                {"type": "mount"},
                {"type": "network", "path": "/ns/net"},
                {"type": "ipc", "path": "/ns/ipc"},
                {"type": "uts", "path": "/ns/uts"},
                {"type": "pid"},
                {"type": "cgroup"},
            ],
            "resources": {"devices": [{"allow": false, "type": "a", "access": "rwm"}]},
        },
    });
    let made = Case::default();
    assert_eq!(made.json(), expected);
    assert_eq!(made.assemble().expect("assembles").clamped, []);
}

/// A container with something of everything that files and devices of the node can add.
fn full_case() -> Case {
    let text = |text: &str| Some(text.to_owned());
    let at = |destination: &str, source: &str| ResolvedMount {
        destination: destination.into(),
        source: source.into(),
        ..ResolvedMount::default()
    };
    let node = |path: &str, major, minor| HostDevice {
        path: path.into(),
        kind: DeviceKind::Char,
        major,
        minor,
        mode: 0o620,
        uid: 0,
        gid: 5,
    };
    let device = |path: &str, minor, permissions: &str| ResolvedDevice {
        node: node(path, 10, minor),
        permissions: permissions.into(),
    };
    let user = ResolvedUser { uid: 1000, gid: 2000, additional_gids: vec![2000], ..ResolvedUser::default() };
    let mut case = Case { user, ..Case::default() };
    case.config.security.run_as_user = Some(1000);
    case.config.security.readonly_rootfs = true;
    case.defaults.is_device_owner_from_security_context = true;
    case.defaults.devices = vec![device("/dev/everybody", 1, "r")];
    case.devices = vec![device("/dev/annotated", 2, "rw"), device("/dev/asked", 3, "")];
    case.files.passwd = text("/b/passwd");
    case.files.group = text("/b/group");
    case.files.localtime = text("/b/localtime");
    case.mounts = vec![
        ResolvedMount { access: MountAccess::ReadOnly, ..at("/data/deep", "/volumes/deep") },
        ResolvedMount { propagation: Propagation::HostToContainer, ..at("/data", "/volumes/data") },
        at("/etc/group", "/volumes/group"),
    ];
    case.further = vec![at("/run/secrets", "/b/copies/run/secrets")];
    let program = |path: &str| HookProgram { path: path.into(), ..HookProgram::default() };
    case.edits = Edits {
        env: vec![("TERM".into(), "vendor".into()), ("VENDOR".into(), "1".into())],
        nodes: vec![EditNode {
            path: "/dev/asked".into(),
            kind: EditNodeKind::Block,
            major: 8,
            minor: 9,
            mode: None,
            uid: None,
            gid: None,
            permissions: "m".into(),
        }],
        mounts: vec![EditMount {
            source: "/vendor/lib".into(),
            destination: "/lib".into(),
            kind: String::new(),
            options: vec!["ro".into(), "bind".into()],
        }],
        hooks: vec![(HookStage::CreateRuntime, program("/h/1")), (HookStage::Poststop, program("/h/2"))],
        rdt: Some(EditRdt { clos_id: "gold".into(), ..EditRdt::default() }),
        additional_gids: vec![44],
        ..Edits::default()
    };
    case
}

#[test]
fn what_the_node_adds_is_exactly_this() {
    let careful = ["ro", "bind", "nodev", "nosuid", "noexec"];
    let expected = json!({
        "process": {
            "user": {"uid": 1000, "gid": 2000, "additionalGids": [2000, 44]},
            "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "TERM=vendor", "HOSTNAME=pod",
                    "VENDOR=1"],
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/data", "type": "bind", "source": "/volumes/data", "options": ["rbind", "rslave", "rw"]},
            {"destination": "/lib", "source": "/vendor/lib", "options": ["ro", "bind"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts",
             "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/dev/shm", "type": "bind", "source": "/f/shm", "options": ["rw", "bind"]},
            {"destination": "/etc/resolv.conf", "type": "bind", "source": "/f/resolv.conf", "options": careful},
            {"destination": "/etc/hostname", "type": "bind", "source": "/f/hostname", "options": careful},
            {"destination": "/run/.containerenv", "type": "bind", "source": "/f/containerenv", "options": ["ro", "bind"]},
            {"destination": "/etc/localtime", "type": "bind", "source": "/b/localtime", "options": careful},
            {"destination": "/etc/passwd", "type": "bind", "source": "/b/passwd", "options": careful},
            {"destination": "/data/deep", "type": "bind", "source": "/volumes/deep", "options": ["rbind", "rprivate", "ro"]},
            {"destination": "/etc/group", "type": "bind", "source": "/volumes/group", "options": ["rbind", "rprivate", "rw"]},
            {"destination": "/run/secrets", "type": "bind", "source": "/b/copies/run/secrets",
             "options": ["rbind", "rprivate", "rw"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
             "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]},
        ],
        "hooks": {"createRuntime": [{"path": "/h/1"}], "poststop": [{"path": "/h/2"}]},
        "linux": {
            "rootfsPropagation": "rslave",
            "intelRdt": {"closID": "gold"},
            "devices": [
                {"path": "/dev/everybody", "type": "c", "major": 10, "minor": 1, "fileMode": 0o620, "uid": 0, "gid": 5},
                {"path": "/dev/annotated", "type": "c", "major": 10, "minor": 2, "fileMode": 0o620, "uid": 1000, "gid": 5},
                {"path": "/dev/asked", "type": "b", "major": 8, "minor": 9, "uid": 1000, "gid": 2000},
            ],
            "resources": {"devices": [
                {"allow": false, "type": "a", "access": "rwm"},
                {"allow": true, "type": "c", "major": 10, "minor": 1, "access": "r"},
                {"allow": true, "type": "c", "major": 10, "minor": 2, "access": "rw"},
                {"allow": true, "type": "c", "major": 10, "minor": 3, "access": "rwm"},
                {"allow": true, "type": "b", "major": 8, "minor": 9, "access": "m"},
            ]},
        },
    });
    // The rest is that of the plainest container.
    let mut whole = Case::default().json();
    for (part, fields) in expected.as_object().expect("an object") {
        match (fields.as_object(), &mut whole[part]) {
            (Some(fields), Value::Object(whole)) => whole.extend(fields.clone()),
            (_, whole) => *whole = fields.clone(),
        }
    }
    whole["root"]["readonly"] = json!(true);
    assert_eq!(full_case().json(), whole);
}
