mod golden;

use oci_spec::runtime::LinuxSeccomp;
use serde_json::{Value, json};

use super::*;
use crate::apparmor::ApparmorName;
use crate::container::{self, ContainerConfig, ContainerSecurity, Propagation};
use crate::id::{ContainerId, SandboxId};
use crate::id_maps::IdMaps;
use crate::sandbox::{SandboxConfig, SandboxSecurity};
use crate::security::{Capabilities, SecurityProfile, UserNamespace};
use crate::selinux::Label;
use crate::user::ResolvedUser;

/// Everything an assembly needs, with values a test may change.
struct Case {
    config: ContainerConfig,
    sandbox: SandboxConfig,
    image: ImageConfig,
    user: ResolvedUser,
    node: NodeFacts,
    defaults: SpecDefaults,
    handler: HandlerFacts,
    cgroup: CgroupPlacement,
    namespaces: NamespacePaths,
    id_maps: Option<IdMaps>,
    files: GeneratedFiles,
    mounts: Vec<ResolvedMount>,
    further: Vec<ResolvedMount>,
    devices: Vec<ResolvedDevice>,
    edits: Edits,
    pod_annotations: BTreeMap<String, String>,
    workload: Option<Workload>,
    tuning: Option<Tuning>,
    seccomp: Option<LinuxSeccomp>,
    apparmor: Option<ApparmorName>,
    selinux: SelinuxLabels,
}

impl Default for Case {
    fn default() -> Self {
        let text = |text: &str| Some(text.to_owned());
        Self {
            config: ContainerConfig {
                security: ContainerSecurity {
                    namespaces: NamespaceOptions { pid: NamespaceMode::Container, ..NamespaceOptions::default() },
                    ..ContainerSecurity::default()
                },
                ..ContainerConfig::default()
            },
            sandbox: SandboxConfig::default(),
            image: ImageConfig { entrypoint: vec!["/app".into()], ..ImageConfig::default() },
            user: ResolvedUser { additional_gids: vec![0], ..ResolvedUser::default() },
            node: NodeFacts::default(),
            defaults: SpecDefaults { capabilities: vec!["CHOWN".into(), "KILL".into()], ..SpecDefaults::default() },
            handler: HandlerFacts::default(),
            cgroup: CgroupPlacement { manager: CgroupManagerKind::Cgroupfs, parent: "/pod".into() },
            namespaces: NamespacePaths {
                network: text("/ns/net"),
                ipc: text("/ns/ipc"),
                uts: text("/ns/uts"),
                user: None,
                pid: None,
                target_pid: None,
            },
            id_maps: None,
            files: GeneratedFiles {
                resolv_conf: text("/f/resolv.conf"),
                hostname: text("/f/hostname"),
                containerenv: text("/f/containerenv"),
                shm: text("/f/shm"),
                ..GeneratedFiles::default()
            },
            mounts: vec![],
            further: vec![],
            devices: vec![],
            edits: Edits::default(),
            pod_annotations: BTreeMap::new(),
            workload: None,
            tuning: None,
            seccomp: None,
            apparmor: None,
            selinux: SelinuxLabels::default(),
        }
    }
}

impl Case {
    fn assemble(&self) -> Result<Assembled, SpecError> {
        let id = ContainerId::parse(&"c".repeat(64)).expect("an id");
        container_spec(ContainerInputs {
            id: &id,
            config: &self.config,
            sandbox: &self.sandbox,
            image: &self.image,
            user: &self.user,
            node: &self.node,
            defaults: &self.defaults,
            handler: &self.handler,
            hostname: "pod",
            cgroup: &self.cgroup,
            namespaces: &self.namespaces,
            id_maps: self.id_maps.as_ref(),
            files: &self.files,
            rootfs: "/rootfs",
            mounts: &self.mounts,
            further_mounts: &self.further,
            devices: &self.devices,
            edits: &self.edits,
            pod_annotations: &self.pod_annotations,
            cpus: CpuInputs {
                workload: self.workload.as_ref(),
                tuning: self.tuning.as_ref(),
                shared: "0",
                ..CpuInputs::default()
            },
            seccomp: self.seccomp.as_ref(),
            apparmor: self.apparmor.as_ref(),
            selinux: &self.selinux,
            annotations: [("k".to_owned(), "v".to_owned())].into(),
        })
    }

    fn json(&self) -> Value {
        let assembled = self.assemble().expect("assembles");
        serde_json::from_slice(&assembled.to_json().expect("serialises")).expect("parses")
    }

    fn infra(&self) -> (Value, Vec<Clamp>) {
        let id = SandboxId::parse(&"a".repeat(64)).expect("an id");
        let assembled = infra_spec(InfraInputs {
            id: &id,
            config: &self.sandbox,
            image: &self.image,
            pause_command: &["/pause".to_owned()],
            user: &self.user,
            node: &self.node,
            defaults: &self.defaults,
            hostname: "pod",
            cgroup: &self.cgroup,
            cpuset: "0",
            namespaces: &self.namespaces,
            id_maps: self.id_maps.as_ref(),
            files: &self.files,
            rootfs: "/rootfs",
            is_privileged: self.sandbox.security.privileged,
            seccomp: self.seccomp.as_ref(),
            apparmor: self.apparmor.as_ref(),
            selinux: &self.selinux,
            annotations: BTreeMap::new(),
        })
        .expect("assembles");
        let json = serde_json::from_slice(&assembled.to_json().expect("serialises")).expect("parses");
        (json, assembled.clamped)
    }
}

fn selinux() -> SelinuxLabels {
    let label = |text| Label::parse(text).ok();
    SelinuxLabels { process: label("u:r:p"), mount: label("u:r:m") }
}

fn mount_list(spec: &Value) -> Vec<String> {
    let mounts = spec["mounts"].as_array().expect("has mounts");
    mounts.iter().map(|mount| mount["destination"].as_str().expect("a path").to_owned()).collect()
}

fn mount_options(spec: &Value, destination: &str) -> String {
    let mounts = spec["mounts"].as_array().expect("has mounts");
    let found: Vec<_> = mounts.iter().filter(|mount| mount["destination"] == destination).collect();
    assert_eq!(found.len(), 1, "{destination} once in {mounts:?}");
    let options = found[0]["options"].as_array().expect("has options");
    options.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
}

fn bind(destination: &str) -> ResolvedMount {
    ResolvedMount { destination: destination.into(), source: "/src".into(), ..ResolvedMount::default() }
}

#[test]
fn equal_requests_are_equal_files() {
    let first =
        Case { defaults: SpecDefaults { env: vec!["A=1".into()], ..Case::default().defaults }, ..Case::default() };
    let privileged = |mut case: Case| {
        case.config.security.privileged = true;
        case
    };
    for case in [first, privileged(Case::default())] {
        let bytes = || case.assemble().expect("assembles").to_json().expect("serialises");
        for _ in 0..20 {
            assert_eq!(bytes(), bytes());
        }
    }
}

#[test]
fn namespaces_follow_their_modes() {
    let kinds = |case: &Case| -> Vec<String> {
        let spec = case.json();
        let list = spec["linux"]["namespaces"].as_array().expect("has namespaces");
        list.iter()
            .map(|one| format!("{}{}", one["type"].as_str().unwrap_or(""), one["path"].as_str().unwrap_or("")))
            .collect()
    };
    let mut case = Case::default();
    case.config.security.namespaces.pid = NamespaceMode::Node;
    case.config.security.namespaces.network = NamespaceMode::Node;
    case.config.security.namespaces.ipc = NamespaceMode::Node;
    assert_eq!(kinds(&case), ["mount", "uts/ns/uts", "cgroup"]);
    case.namespaces.uts = None;
    assert_eq!(kinds(&case), ["mount", "cgroup"]);
    assert_eq!(case.json()["hostname"], Value::Null, "the host's name is not ours to change");
    case.node.cgroup_version = CgroupVersion::V1;
    assert_eq!(kinds(&case), ["mount"]);

    let mut case = Case::default();
    case.config.security.namespaces.pid = NamespaceMode::Pod;
    let missing = SpecError::NoNamespace { kind: "pid", of: "the pod" };
    assert_eq!(case.assemble().expect_err("no infra"), missing);
    case.namespaces.pid = Some("/proc/7/ns/pid".into());
    assert!(kinds(&case).contains(&"pid/proc/7/ns/pid".to_owned()));
    case.config.security.namespaces.pid = NamespaceMode::Target;
    assert!(case.assemble().is_err());
    case.namespaces.target_pid = Some("/proc/8/ns/pid".into());
    assert!(kinds(&case).contains(&"pid/proc/8/ns/pid".to_owned()));

    let mut case = Case::default();
    case.namespaces.ipc = None;
    assert!(case.assemble().is_err(), "a container never gets the host's IPC by omission");
}

#[test]
fn a_user_namespace_is_joined_with_its_ids() {
    let range = |host_id| vec![crate::security::IdMapping { container_id: 0, host_id, length: 1000 }];
    let mut case = Case { id_maps: IdMaps::new(range(100_000), range(200_000)).ok(), ..Case::default() };
    case.namespaces.user = Some("/ns/user".to_owned());
    let of_kind = |spec: &Value, key: &str, name: &str| {
        let list = spec.pointer(key).and_then(Value::as_array).cloned().unwrap_or_default();
        list.into_iter().find(|one| one["type"] == name || one["destination"] == name).unwrap_or_default()
    };
    for spec in [case.json(), case.infra().0] {
        assert_eq!(of_kind(&spec, "/linux/namespaces", "user")["path"], "/ns/user");
        assert_eq!(spec["linux"]["uidMappings"], json!([{"containerID": 0, "hostID": 100_000, "size": 1000}]));
        assert_eq!(spec["linux"]["gidMappings"], json!([{"containerID": 0, "hostID": 200_000, "size": 1000}]));
        assert_eq!(of_kind(&spec, "/mounts", "/sys")["type"], "sysfs");
        assert_eq!(spec["ociVersion"], "1.0.2", "every runtime takes it");
    }
    case.config.security.namespaces.network = NamespaceMode::Node;
    case.sandbox.security.namespaces.network = NamespaceMode::Node;
    case.config.security.privileged = true;
    let sys = |access| json!(["nosuid", "noexec", "nodev", access, "rbind", "rprivate"]);
    assert_eq!(of_kind(&case.json(), "/mounts", "/sys")["options"], sys("rro"));
    assert_eq!(of_kind(&case.infra().0, "/mounts", "/sys")["options"], sys("ro"));
    case.user.uid = 1000;
    assert!(matches!(case.assemble(), Err(SpecError::NotMapped { id: 1000, .. })));
}

#[test]
fn what_nobody_made_is_refused_by_name() {
    let with = |change: &dyn Fn(&mut Case)| {
        let mut case = Case::default();
        change(&mut case);
        case.assemble().map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(
        with(&|case| {
            let user = UserNamespace { mode: NamespaceMode::Pod, ..UserNamespace::default() };
            case.config.security.namespaces.user = Some(user);
        }),
        Err("the user namespace of the pod is asked for, and there is none".to_owned())
    );
    assert_eq!(
        with(&|case| {
            let user = UserNamespace { mode: NamespaceMode::Node, ..UserNamespace::default() };
            case.config.security.namespaces.user = Some(user);
        }),
        Ok(())
    );
    let case = Case { seccomp: Some(LinuxSeccomp::default()), ..Case::default() };
    assert!(case.json()["linux"]["seccomp"].is_object());
}

#[test]
fn the_apparmor_profile_is_the_one_that_was_found() {
    for name in [None, Some("crio-default"), Some("unconfined")] {
        let apparmor = name.map(|name| ApparmorName::parse(name).expect("a name"));
        let case = Case { apparmor, ..Case::default() };
        for spec in [case.json(), case.infra().0] {
            assert_eq!(spec["process"]["apparmorProfile"].as_str(), name);
        }
    }
}

#[test]
fn privileged_opens_everything_the_machine_has() {
    let mut case = Case::default();
    case.config.security.privileged = true;
    case.config.security.masked_paths = vec!["/proc/kcore".into()];
    case.config.security.readonly_paths = vec!["/proc/sys".into()];
    case.config.security.readonly_rootfs = true;
    case.config.security.no_new_privs = true;
    case.selinux = selinux();
    case.node.bounding = CapabilitySet::ALL.without(CapabilitySet::of_name("SYS_RESOURCE").expect("known"));
    let kind = DeviceKind::Char;
    case.node.host_devices =
        vec![HostDevice { path: "/dev/fuse".into(), kind, major: 10, minor: 229, mode: 0o666, uid: 0, gid: 0 }];
    let spec = case.json();
    for set in ["bounding", "effective", "permitted", "inheritable", "ambient"] {
        assert_eq!(spec["process"]["capabilities"][set].as_array().map(Vec::len), Some(40), "{set}");
    }
    assert_eq!((&spec["linux"]["maskedPaths"], &spec["linux"]["readonlyPaths"]), (&json!([]), &json!([])));
    assert_eq!(mount_options(&spec, "/sys"), "nosuid,noexec,nodev,rw,rslave");
    assert_eq!(mount_options(&spec, "/sys/fs/cgroup"), "nosuid,noexec,nodev,rw,relatime,rslave");
    assert_eq!(mount_options(&spec, "/etc/hostname"), "rw,bind,nodev,nosuid,noexec");
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(spec["linux"]["resources"]["devices"], json!([{"allow": true, "type": "a", "access": "rwm"}]));
    assert_eq!(spec["linux"]["devices"][0]["path"], "/dev/fuse");
    assert_eq!(spec["process"]["selinuxLabel"], Value::Null);
    assert_eq!(spec["linux"]["mountLabel"], "u:r:m");
    let kinds: Vec<_> = spec["linux"]["namespaces"].as_array().expect("has").iter().map(|one| &one["type"]).collect();
    assert!(!kinds.contains(&&json!("cgroup")));
    let clamped = case.assemble().expect("assembles").clamped;
    let missing = CapabilitySet::of_name("SYS_RESOURCE").expect("known");
    assert_eq!(clamped, [Clamp::Capabilities { missing }, Clamp::NoNewPrivsWithoutEffect]);
    case.handler.has_no_host_devices_when_privileged = true;
    let spec = case.json();
    assert_eq!(
        (&spec["linux"]["devices"], spec["linux"]["resources"]["devices"][0]["allow"].as_bool()),
        (&json!([]), Some(false))
    );
}

#[test]
fn the_request_replaces_mounts_of_ours() {
    let mounts = vec![bind("/data/deep/er"), bind("/data"), bind("/dev/shm"), bind("/etc/resolv.conf")];
    let mut case = Case { mounts, ..Case::default() };
    case.mounts[1].propagation = Propagation::HostToContainer;
    let spec = case.json();
    let list = mount_list(&spec);
    assert_eq!(&list[list.len() - 4..], ["/data", "/dev/shm", "/etc/resolv.conf", "/data/deep/er"]);
    assert_eq!(mount_options(&spec, "/dev/shm"), "rbind,rprivate,rw");
    assert_eq!(mount_options(&spec, "/etc/resolv.conf"), "rbind,rprivate,rw");
    assert_eq!(spec["linux"]["rootfsPropagation"], "rslave");
    case.mounts[0].propagation = Propagation::Bidirectional;
    assert_eq!(case.json()["linux"]["rootfsPropagation"], "rshared");

    case.mounts = vec![bind("/dev/"), bind("//sys/.")];
    let list = mount_list(&case.json());
    let ours: Vec<_> = list.iter().filter(|path| path.starts_with("/dev") || path.starts_with("/sys")).collect();
    assert_eq!(ours, ["/dev", "/sys"]);

    let first = ResolvedMount { source: "/first".into(), ..bind("/x") };
    case.mounts = vec![first, ResolvedMount { access: MountAccess::ReadOnly, ..bind("/x/") }];
    assert_eq!(mount_options(&case.json(), "/x"), "rbind,rprivate,ro");
    assert_eq!(case.assemble().expect("assembles").clamped, [Clamp::DuplicateMount { path: "/x".into() }]);

    for path in ["relative", "/a/../b", "/a\0"] {
        case.mounts = vec![bind(path)];
        assert!(matches!(case.assemble(), Err(SpecError::BadMountPath { .. })), "{path:?}");
    }
}

#[test]
fn mounts_resolve_or_say_why_not() {
    let all = HandlerFacts { has_recursive_read_only: true, has_id_mapped_mounts: true, ..HandlerFacts::default() };
    let none = HandlerFacts::default();
    let plain = container::Mount { container_path: "/c".into(), host_path: "/h".into(), ..container::Mount::default() };
    let rro = container::Mount { readonly: true, recursive_read_only: true, ..plain.clone() };
    let mapping = crate::security::IdMapping { host_id: 1, container_id: 0, length: 1 };
    let mapped = container::Mount { uid_mappings: vec![mapping], gid_mappings: vec![mapping], ..plain.clone() };
    let image = container::ImageSpec { image: "i".into(), ..container::ImageSpec::default() };
    let resolve = |asked: &container::Mount, handler| resolve_mount(asked, "/h".into(), "/c".into(), handler);
    assert_eq!(resolve(&plain, &none).map(|mount| mount.access), Ok(MountAccess::ReadWrite));
    assert_eq!(resolve(&rro, &all).map(|mount| mount.access), Ok(MountAccess::RecursiveReadOnly));
    assert!(matches!(resolve(&rro, &none), Err(SpecError::HandlerLacks { .. })));
    assert!(matches!(resolve(&mapped, &none), Err(SpecError::HandlerLacks { .. })));
    let writable = container::Mount { readonly: false, ..rro.clone() };
    assert!(matches!(resolve(&writable, &all), Err(SpecError::RecursiveReadOnlyNeedsReadonly { .. })));
    let shared = container::Mount { propagation: Propagation::HostToContainer, ..rro };
    assert!(matches!(resolve(&shared, &all), Err(SpecError::RecursiveReadOnlyNeedsPrivate { .. })));

    let of_image = container::Mount { image: Some(image), readonly: true, host_path: String::new(), ..plain };
    let below = || MountKind::Image { below: "/empty".into() };
    let resolve_image = |asked: &container::Mount, source: &str, kind| {
        resolve_image_mount(asked, source.into(), kind, "/c/i".into(), &none)
    };
    let writable = container::Mount { readonly: false, ..of_image.clone() };
    assert!(matches!(resolve_image(&writable, "/i", below()), Err(SpecError::ImageNeedsReadonly { .. })));
    let shared = container::Mount { propagation: Propagation::Bidirectional, ..of_image.clone() };
    assert!(matches!(resolve_image(&shared, "/i", below()), Err(SpecError::ImageNeedsPrivate { .. })));
    let mapped_image = container::Mount { uid_mappings: vec![mapping], ..of_image.clone() };
    assert!(matches!(resolve_image(&mapped_image, "/i", below()), Err(SpecError::HandlerLacks { .. })));
    for source in ["/i:/etc", "/i,upperdir=/etc", "i", "/i/../etc", "/i\"", "/i\\"] {
        assert!(matches!(resolve_image(&of_image, source, below()), Err(SpecError::BadMountPath { .. })), "{source}");
    }
    // A file is bound; overlay's separators mean nothing there.
    let file = resolve_image(&of_image, "/run/a:b", MountKind::Bind).expect("resolves");
    let volume = resolve_image(&of_image, "/i", below()).expect("resolves");
    let inner = ResolvedMount { destination: "/c/i/f".into(), ..file };
    let spec = Case { mounts: vec![inner, volume], ..Case::default() }.json();
    assert_eq!(mount_options(&spec, "/c/i"), "lowerdir=/i:/empty,ro");
    assert_eq!(mount_options(&spec, "/c/i/f"), "rbind,rprivate,ro");
    let list = mount_list(&spec);
    let at = |path: &str| list.iter().position(|one| one == path);
    assert!(at("/c/i") < at("/c/i/f"), "{list:?}");

    let case = Case { mounts: vec![resolve(&mapped, &all).expect("resolves")], ..Case::default() };
    let spec = case.json();
    assert_eq!(spec["ociVersion"], "1.1.0", "only what needs it asks for a newer version");
    let last = spec["mounts"].as_array().and_then(|mounts| mounts.last()).expect("a mount");
    assert_eq!(last["uidMappings"], json!([{"hostID": 1, "containerID": 0, "size": 1}]));
}

#[test]
fn systemd_gets_its_directories_below_our_files() {
    let mut case =
        Case { image: ImageConfig { cmd: vec!["/sbin/init".into()], ..ImageConfig::default() }, ..Case::default() };
    let spec = case.json();
    let list = mount_list(&spec);
    let at = |path: &str| list.iter().position(|one| one == path).unwrap_or_else(|| panic!("{path} in {list:?}"));
    assert!(at("/run") < at("/run/.containerenv"), "{list:?}");
    assert_eq!(mount_options(&spec, "/sys/fs/cgroup"), "private,rw");
    assert_eq!(mount_options(&spec, "/var/log/journal"), "rw,rprivate,noexec,nosuid,nodev,tmpcopyup");
    assert!(spec["process"]["env"].as_array().expect("has").contains(&json!("container=crio")));
    case.node.cgroup_version = CgroupVersion::V1;
    case.node.has_systemd_hierarchy = true;
    let spec = case.json();
    assert_eq!(mount_options(&spec, "/sys/fs/cgroup/systemd"), "bind,nodev,noexec,nosuid");
    assert_eq!(spec["linux"]["maskedPaths"], json!(["/sys/fs/cgroup/systemd/release_agent"]));
}

#[test]
fn read_only_configurations_leave_places_to_write() {
    let mut case = Case { mounts: vec![bind("/tmp")], ..Case::default() };
    case.defaults.is_read_only = true;
    case.files.passwd = Some("/f/passwd".into());
    let spec = case.json();
    assert_eq!(spec["root"]["readonly"], true);
    assert_eq!(mount_options(&spec, "/run"), "rw,noexec,nosuid,nodev,tmpcopyup,mode=0755");
    assert_eq!(mount_options(&spec, "/var/tmp"), "rw,noexec,nosuid,nodev,tmpcopyup,mode=1777");
    assert_eq!(mount_options(&spec, "/tmp"), "rbind,rprivate,rw");
    assert_eq!(mount_options(&spec, "/etc/hostname"), "ro,bind,nodev,nosuid,noexec");
    assert_eq!(mount_options(&spec, "/etc/passwd"), "ro,bind,nodev,nosuid,noexec");
    case.mounts = vec![bind("/etc")];
    assert!(!mount_list(&case.json()).contains(&"/etc/passwd".to_owned()), "a whole /etc brings its own users");
}

#[test]
fn host_network_shows_the_hosts_file_unless_asked_otherwise() {
    let mut case = Case::default();
    case.config.security.namespaces.network = NamespaceMode::Node;
    assert_eq!(mount_options(&case.json(), "/etc/hosts"), "rw,bind");
    case.mounts = vec![bind("/etc/hosts")];
    assert_eq!(mount_options(&case.json(), "/etc/hosts"), "rbind,rprivate,rw");
}

#[test]
fn masks_are_joined_with_the_defaults_when_any_are_asked() {
    let mut case = Case::default();
    case.config.security.masked_paths = vec!["/proc/mine".into(), "/proc/kcore".into()];
    case.config.security.readonly_paths = vec!["/proc/sys".into()];
    case.node.thermal_throttle_paths = vec!["/sys/devices/system/cpu/cpu0/thermal_throttle".into()];
    let linux = &case.json()["linux"];
    let masked: Vec<_> = linux["maskedPaths"].as_array().expect("has").iter().filter_map(Value::as_str).collect();
    assert_eq!(masked.len(), MASKED.len() + 2);
    assert!(masked.is_sorted() && masked.contains(&"/proc/mine"));
    assert_eq!(linux["readonlyPaths"], json!(["/proc/sys"]));
}

#[test]
fn annotations_of_the_pod_change_what_they_may() {
    let mut case = Case::default();
    let annotate = |case: &mut Case, key: &str, value: &str| {
        case.pod_annotations = [(key.to_owned(), value.to_owned())].into();
    };
    annotate(&mut case, "umask.crio.io", "077");
    assert_eq!(case.json()["process"]["user"]["umask"], 0o77);
    annotate(&mut case, "umask.crio.io", "0o77");
    assert_eq!(case.assemble().expect_err("bad"), SpecError::BadUmask { value: "0o77".into() });
    annotate(&mut case, "cgroup2-mount-hierarchy-rw.crio.io", "true");
    assert_eq!(mount_options(&case.json(), "/sys/fs/cgroup"), "nosuid,noexec,nodev,relatime,rw");
    case.node.cgroup_version = CgroupVersion::V1;
    assert_eq!(mount_options(&case.json(), "/sys/fs/cgroup"), "nosuid,noexec,nodev,relatime,ro");
    case.node.cgroup_version = CgroupVersion::V2;
    case.config.metadata.name = "web".into();
    annotate(&mut case, "unified-cgroup.crio.io/web", "memory.high=1");
    assert_eq!(case.json()["linux"]["resources"]["unified"], json!({"memory.high": "1"}));
    annotate(&mut case, "unified-cgroup.crio.io/other", "memory.high=1");
    assert_eq!(case.json()["linux"]["resources"]["unified"], Value::Null);
}

#[test]
fn labels_are_for_the_confined() {
    let infra = |case: &Case| {
        let (spec, _) = case.infra();
        (spec["process"]["selinuxLabel"].clone(), spec["linux"]["mountLabel"].clone())
    };
    let mut case = Case { selinux: selinux(), ..Case::default() };
    let labels = |case: &Case| {
        let spec = case.json();
        (
            spec["process"]["selinuxLabel"].as_str().map(str::to_owned),
            spec["linux"]["mountLabel"].as_str().map(str::to_owned),
        )
    };
    let (process, mount) = (Some("u:r:p".to_owned()), Some("u:r:m".to_owned()));
    assert_eq!(labels(&case), (process.clone(), mount.clone()));
    case.config.security.namespaces.network = NamespaceMode::Node;
    assert_eq!(labels(&case), (process, mount.clone()));
    case.defaults.is_selinux_off_for_host_network = true;
    assert_eq!(labels(&case), (None, mount));
    // What a sandbox is restored from keeps its labels on the host's network, as in CRI-O.
    case.sandbox.security.namespaces.network = NamespaceMode::Node;
    assert_eq!(infra(&case), (json!("u:r:p"), json!("u:r:m")));
    case.sandbox.security.namespaces.ipc = NamespaceMode::Node;
    assert_eq!(infra(&case), (Value::Null, Value::Null));
    case.config.security.namespaces.pid = NamespaceMode::Node;
    assert_eq!(labels(&case), (None, None));
}

#[test]
fn ambient_capabilities_are_told_and_not_given() {
    let mut case = Case::default();
    case.config.security.capabilities =
        Capabilities { add: vec!["NET_RAW".into()], add_ambient: vec!["NET_RAW".into()], drop: vec!["ALL".into()] };
    assert_eq!(case.json()["process"]["capabilities"]["ambient"], json!([]));
    assert_eq!(case.json()["process"]["capabilities"]["effective"], json!(["CAP_NET_RAW"]));
    assert_eq!(case.assemble().expect("assembles").clamped, [Clamp::Ambient]);
    case.defaults.inheritable = Inheritable::SameAsOthers;
    assert_eq!(case.json()["process"]["capabilities"]["inheritable"], json!(["CAP_NET_RAW"]));
}

#[test]
fn the_infra_container_has_nothing_to_lose() {
    let mut case = Case::default();
    case.node.lowest_oom_score_adj = 0;
    case.sandbox.security =
        SandboxSecurity { seccomp: Some(SecurityProfile::RuntimeDefault), ..SandboxSecurity::default() };
    let (spec, clamped) = case.infra();
    assert_eq!(clamped, [Clamp::OomScoreAdj { wanted: -998, given: 0 }]);
    assert_eq!((&spec["process"]["args"], &spec["process"]["oomScoreAdj"]), (&json!(["/pause"]), &json!(0)));
    assert_eq!(spec["process"]["capabilities"]["bounding"], json!([]));
    assert_eq!((&spec["root"]["readonly"], &spec["process"]["noNewPrivileges"]), (&json!(true), &json!(true)));
    assert_eq!(spec["linux"]["resources"]["cpu"], json!({"shares": 2, "cpus": "0"}));
    assert_eq!(mount_options(&spec, "/etc/resolv.conf"), "ro,bind,nodev,nosuid,noexec");
    assert_eq!(spec["linux"]["cgroupsPath"], format!("/pod/crio-{}", "a".repeat(64)));
    let pid_of = |spec: &Value| {
        let list = spec["linux"]["namespaces"].as_array().expect("has namespaces").clone();
        list.into_iter().find(|one| one["type"] == "pid")
    };
    assert_eq!(pid_of(&spec), Some(json!({"type": "pid"})), "the one its containers join");
    case.sandbox.security.namespaces.pid = NamespaceMode::Node;
    case.sandbox.security.namespaces.network = NamespaceMode::Node;
    let (spec, _) = case.infra();
    assert_eq!(pid_of(&spec), None);
    assert_eq!(mount_options(&spec, "/sys"), "nosuid,noexec,nodev,ro,rbind");
}

#[test]
fn a_workload_goes_over_the_request_and_tuning_over_both() {
    let mut case = Case::default();
    case.config.resources.cpu_shares = 2;
    case.config.resources.cpuset_cpus = "4-7".to_owned();
    case.config.metadata.name = "web".to_owned();
    case.sandbox.annotations = [("p/web".to_owned(), r#"{"cpushares": 2048, "cpuset": "2-3"}"#.to_owned())].into();
    case.workload = Some(Workload { annotation_prefix: "p".to_owned(), ..Workload::default() });
    case.tuning = Some(Tuning { has_shared_cpus: true, ..Tuning::default() });
    let json = case.json();
    assert_eq!(json["linux"]["resources"]["cpu"], serde_json::json!({"shares": 2048, "cpus": "0,2-3"}));
    let env = json["process"]["env"].as_array().expect("an environment");
    assert!(env.contains(&"OPENSHIFT_SHARED_CPUS=0".into()) && env.contains(&"OPENSHIFT_ISOLATED_CPUS=2-3".into()));
    // a fraction of a CPU is nobody's own
    case.sandbox.annotations = [("p/web".to_owned(), r#"{"cpushares": 512}"#.to_owned())].into();
    assert_eq!(case.json()["linux"]["resources"]["cpu"], serde_json::json!({"shares": 512, "cpus": "4-7"}));
}
