//! The mounts of a container, in the order the runtime makes them.
//!
//! Base mounts the request does not replace, mounts of the daemon, then the request's, image volumes and secrets by
//! depth, so that no parent hides its child. Source: CRI `Mount`; order and options as CRI-O writes them.

use std::path::Path;

use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use super::userns::UsernsMounts;
use super::{CgroupVersion, Clamp, GeneratedFiles, HandlerFacts, MountAccess, MountKind, ResolvedMount, SpecError};
use crate::container::{self, Propagation};
use crate::security::IdMapping;

type BaseMount = (&'static str, &'static str, &'static str, &'static [&'static str]);

/// Options of the mounts that are there unless the request replaces them: destination, type, source, options.
const BASE: [BaseMount; 6] = [
    ("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
    ("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
    ("/dev/pts", "devpts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
    ("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
    ("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
    ("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
];

const CGROUP: &str = "/sys/fs/cgroup";
const SYSTEMD_HIERARCHY: &str = "/sys/fs/cgroup/systemd";

/// Absolute, no `..` segment, no NUL.
pub(super) fn check_path(path: &str) -> Result<(), SpecError> {
    let is_good = path.starts_with('/') && !path.contains('\0') && !path.split('/').any(|segment| segment == "..");
    if is_good { Ok(()) } else { Err(SpecError::BadMountPath { path: path.chars().take(200).collect() }) }
}

/// `/a//b/./` → `/a/b`: the form in which destinations are compared.
pub(super) fn clean(path: &str) -> String {
    let segments = path.split('/').filter(|segment| !matches!(*segment, "" | "."));
    let joined: String = segments.map(|segment| format!("/{segment}")).collect();
    if joined.is_empty() { "/".to_owned() } else { joined }
}

/// Makes a mount of the request ready for the spec, or says why it cannot be.
///
/// `source` is the host path with prefix and symbolic links resolved; `destination` the container path resolved inside
/// the root file system. Source: CRI `Mount`.
pub fn resolve_mount(
    asked: &container::Mount,
    source: String,
    destination: String,
    handler: &HandlerFacts,
) -> Result<ResolvedMount, SpecError> {
    check_path(&destination)?;
    check_path(&source)?;
    let path = || asked.container_path.clone();
    let access = match (asked.recursive_read_only, asked.readonly) {
        (true, false) => return Err(SpecError::RecursiveReadOnlyNeedsReadonly { path: path() }),
        (true, true) if asked.propagation != Propagation::Private => {
            return Err(SpecError::RecursiveReadOnlyNeedsPrivate { path: path() });
        }
        (true, true) if !handler.has_recursive_read_only => {
            return Err(SpecError::HandlerLacks { feature: "recursive read-only mount", path: path() });
        }
        (true, true) => MountAccess::RecursiveReadOnly,
        (false, true) => MountAccess::ReadOnly,
        (false, false) => MountAccess::ReadWrite,
    };
    check_mappings(asked, handler)?;
    Ok(ResolvedMount {
        destination,
        source,
        kind: MountKind::Bind,
        access,
        propagation: asked.propagation,
        uid_mappings: asked.uid_mappings.clone(),
        gid_mappings: asked.gid_mappings.clone(),
    })
}

/// Makes a mount of an image, or of a part of one or of an artifact, ready for the spec, or says why it cannot be.
///
/// Read-only all the way down, because nothing is mounted below an image and nothing that is mounted inside travels.
/// Source: CRI `Mount.image`.
pub fn resolve_image_mount(
    asked: &container::Mount,
    source: String,
    kind: MountKind,
    destination: String,
    handler: &HandlerFacts,
) -> Result<ResolvedMount, SpecError> {
    check_path(&destination)?;
    check_path(&source)?;
    let path = || asked.container_path.clone();
    if !asked.readonly {
        return Err(SpecError::ImageNeedsReadonly { path: path() });
    }
    if asked.propagation == Propagation::Bidirectional {
        return Err(SpecError::ImageNeedsPrivate { path: path() });
    }
    // Separators of overlay's options; runtimes pass the text on as it is.
    let below = if let MountKind::Image { below } = &kind { below.as_str() } else { "" };
    if kind != MountKind::Bind && [source.as_str(), below].iter().any(|path| path.contains([':', ',', '\\', '"'])) {
        return Err(SpecError::BadMountPath { path: format!("{source}:{below}") });
    }
    check_mappings(asked, handler)?;
    Ok(ResolvedMount {
        destination,
        source,
        kind,
        access: MountAccess::ReadOnly,
        propagation: Propagation::Private,
        uid_mappings: asked.uid_mappings.clone(),
        gid_mappings: asked.gid_mappings.clone(),
    })
}

fn check_mappings(asked: &container::Mount, handler: &HandlerFacts) -> Result<(), SpecError> {
    let has_mappings = !asked.uid_mappings.is_empty() || !asked.gid_mappings.is_empty();
    if has_mappings && !handler.has_id_mapped_mounts {
        return Err(SpecError::HandlerLacks { feature: "id-mapped mount", path: asked.container_path.clone() });
    }
    Ok(())
}

fn entry(destination: &str, kind: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(kind.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|option| (*option).to_owned()).collect()));
    mount
}

pub(super) fn id_mappings(mappings: &[IdMapping]) -> Option<Vec<LinuxIdMapping>> {
    let converted: Vec<_> = mappings
        .iter()
        .filter_map(|mapping| {
            let builder = LinuxIdMappingBuilder::default().host_id(mapping.host_id);
            builder.container_id(mapping.container_id).size(mapping.length).build().ok()
        })
        .collect();
    (!converted.is_empty()).then_some(converted)
}

fn of_request(mount: &ResolvedMount) -> Mount {
    let propagation = match mount.propagation {
        Propagation::Private => "rprivate",
        Propagation::HostToContainer => "rslave",
        Propagation::Bidirectional => "rshared",
    };
    let access = match mount.access {
        MountAccess::ReadWrite => "rw",
        MountAccess::ReadOnly => "ro",
        MountAccess::RecursiveReadOnly => "rro",
    };
    let mut made = match &mount.kind {
        MountKind::Bind => entry(&mount.destination, "bind", &mount.source, &["rbind", propagation, access]),
        MountKind::Image { below } => {
            let lower = format!("lowerdir={}:{below}", mount.source);
            entry(&mount.destination, "overlay", "overlay", &[&lower, access])
        }
    };
    made.set_uid_mappings(id_mappings(&mount.uid_mappings));
    made.set_gid_mappings(id_mappings(&mount.gid_mappings));
    made
}

/// A list in which one destination appears once; putting it again moves it to the end.
#[derive(Default)]
struct Mounts(Vec<Mount>);

impl Mounts {
    fn put(&mut self, mount: Mount) {
        self.0.retain(|known| known.destination() != mount.destination());
        self.0.push(mount);
    }

    fn has(&self, destination: &str) -> bool {
        self.0.iter().any(|mount| mount.destination() == Path::new(destination))
    }
}

/// What decides about the mounts of a container.
pub(super) struct MountInputs<'a> {
    pub(super) request: &'a [ResolvedMount],
    pub(super) further: &'a [ResolvedMount],
    pub(super) files: &'a GeneratedFiles,
    pub(super) cgroup_version: CgroupVersion,
    pub(super) has_systemd_hierarchy: bool,
    pub(super) is_privileged: bool,
    pub(super) is_systemd: bool,
    pub(super) is_host_network: bool,
    /// `read_only` of the configuration: writable directories on top.
    pub(super) is_read_only_by_config: bool,
    pub(super) is_rootfs_readonly: bool,
    /// `cgroup2-mount-hierarchy-rw.crio.io` says true.
    pub(super) is_cgroup_writable: bool,
    /// The pod has a user namespace.
    pub(super) userns: Option<UsernsMounts<'a>>,
}

/// Mounts, and what they ask of the rest of the spec.
pub(super) struct MountPlan {
    pub(super) mounts: Vec<Mount>,
    /// `rshared` or `rslave`.
    pub(super) rootfs_propagation: Option<&'static str>,
    /// Beside the request's.
    pub(super) masked: Option<String>,
    pub(super) has_id_mappings: bool,
}

pub(super) fn mounts(inputs: &MountInputs<'_>, clamped: &mut Vec<Clamp>) -> Result<MountPlan, SpecError> {
    let mut request: Vec<ResolvedMount> = vec![];
    for mount in inputs.request.iter().chain(inputs.further) {
        check_path(&mount.destination)?;
        check_path(&mount.source)?;
        let mount = ResolvedMount { destination: clean(&mount.destination), ..mount.clone() };
        if request.iter().any(|known| known.destination == mount.destination) {
            clamped.push(Clamp::DuplicateMount { path: mount.destination.clone() });
            request.retain(|known| known.destination != mount.destination);
        }
        request.push(mount);
    }
    request.sort_by_key(|mount| if mount.destination == "/" { 0 } else { mount.destination.matches('/').count() });

    let is_asked = |path: &str| request.iter().any(|mount| mount.destination == path);
    let is_hidden = |path: &str| {
        is_asked(path) || ["/dev", "/sys"].iter().any(|top| is_asked(top) && path.starts_with(&format!("{top}/")))
    };
    let mut made = Mounts::default();
    for base in BASE.iter().filter(|(destination, ..)| !is_hidden(destination)) {
        made.put(base_mount(base, inputs.userns.as_ref(), "rro"));
    }
    if !is_hidden(CGROUP) {
        let access = if inputs.is_cgroup_writable && inputs.cgroup_version == CgroupVersion::V2 { "rw" } else { "ro" };
        made.put(entry(CGROUP, "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]));
    }
    if inputs.is_privileged {
        // The sysfs of a network namespace that belongs to nobody here cannot be mounted: it stays bound.
        let can_mount = inputs.userns.as_ref().is_none_or(|userns| userns.bind("/sys", "rro").is_none());
        if !is_hidden("/sys") && can_mount {
            made.put(entry("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "rw", "rslave"]));
        }
        if !is_hidden(CGROUP) {
            let options = &["nosuid", "noexec", "nodev", "rw", "relatime", "rslave"];
            made.put(entry(CGROUP, "cgroup", "cgroup", options));
        }
    }

    let masked = if inputs.is_systemd { systemd(inputs, &mut made, &is_hidden) } else { None };
    if inputs.is_read_only_by_config {
        for (destination, mode) in [("/run", "mode=0755"), ("/tmp", "mode=1777"), ("/var/tmp", "mode=1777")] {
            if !is_asked(destination) && !made.has(destination) {
                let options = &["rw", "noexec", "nosuid", "nodev", "tmpcopyup", mode];
                made.put(entry(destination, "tmpfs", "tmpfs", options));
            }
        }
    }
    if let Some(shm) = inputs.files.shm.as_deref().filter(|_| !is_hidden("/dev/shm")) {
        made.put(shared_memory(shm, inputs.userns.as_ref()));
    }
    daemon_files(inputs, &mut made, &is_asked);
    for mount in &request {
        made.put(of_request(mount));
    }

    let propagates = |kind: Propagation| request.iter().any(|mount| mount.propagation == kind);
    let rootfs_propagation = if propagates(Propagation::Bidirectional) {
        Some("rshared")
    } else {
        propagates(Propagation::HostToContainer).then_some("rslave")
    };
    let has_id_mappings = request.iter().any(|mount| !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty());
    Ok(MountPlan { mounts: made.0, rootfs_propagation, masked, has_id_mappings })
}

/// The pod's shared memory.
fn shared_memory(shm: &str, userns: Option<&UsernsMounts<'_>>) -> Mount {
    // As for what a user namespace has bound: what is mounted beneath stays the container's.
    let options: &[&str] = if userns.is_some() { &["rw", "bind", "rprivate"] } else { &["rw", "bind"] };
    entry("/dev/shm", "bind", shm, options)
}

/// A mount of [`BASE`], as it can be in a user namespace.
fn base_mount(base: &BaseMount, userns: Option<&UsernsMounts<'_>>, read_only: &'static str) -> Mount {
    let (destination, kind, source, options) = base;
    match userns {
        None => entry(destination, kind, source, options),
        Some(userns) => match userns.bind(destination, read_only) {
            Some(options) => entry(destination, "bind", destination, &options),
            None => entry(destination, kind, source, &userns.options(options)),
        },
    }
}

/// What systemd as the first process wants: writable directories and a cgroup it can write to. Returns a path to mask:
/// `release_agent` would run a program on the host.
fn systemd(inputs: &MountInputs<'_>, made: &mut Mounts, is_hidden: &dyn Fn(&str) -> bool) -> Option<String> {
    for destination in ["/run", "/run/lock", "/tmp", "/var/log/journal"] {
        if !is_hidden(destination) {
            let options = &["rw", "rprivate", "noexec", "nosuid", "nodev", "tmpcopyup"];
            made.put(entry(destination, "tmpfs", "tmpfs", options));
        }
    }
    match inputs.cgroup_version {
        CgroupVersion::V2 => {
            if !is_hidden(CGROUP) {
                made.put(entry(CGROUP, "cgroup", "cgroup", &["private", "rw"]));
            }
            None
        }
        CgroupVersion::V1 => {
            if inputs.has_systemd_hierarchy && !is_hidden(CGROUP) {
                let options = &["bind", "nodev", "noexec", "nosuid"];
                made.put(entry(SYSTEMD_HIERARCHY, "bind", SYSTEMD_HIERARCHY, options));
            }
            Some(format!("{SYSTEMD_HIERARCHY}/release_agent"))
        }
    }
}

fn daemon_files(inputs: &MountInputs<'_>, made: &mut Mounts, is_asked: &dyn Fn(&str) -> bool) {
    let access = if inputs.is_rootfs_readonly && !inputs.is_privileged { "ro" } else { "rw" };
    let careful: &[&str] = &[access, "bind", "nodev", "nosuid", "noexec"];
    let files = inputs.files;
    let node_hosts = inputs.is_host_network.then(|| "/etc/hosts".to_owned());
    for (destination, source, options) in [
        ("/etc/resolv.conf", &files.resolv_conf, careful),
        ("/etc/hostname", &files.hostname, careful),
        ("/run/.containerenv", &files.containerenv, &[access, "bind"][..]),
        ("/etc/hosts", &node_hosts, &[access, "bind"]),
        ("/etc/localtime", &files.localtime, careful),
        ("/etc/passwd", &files.passwd, careful),
        ("/etc/group", &files.group, careful),
    ] {
        // A whole /etc of the request brings its own users; binding over its files would change the host's.
        let is_users_of_request = matches!(destination, "/etc/passwd" | "/etc/group") && is_asked("/etc");
        if let Some(source) = source
            && !is_asked(destination)
            && !is_users_of_request
        {
            made.put(entry(destination, "bind", source, options));
        }
    }
}

/// Mounts of the infra container.
pub(super) fn infra_mounts(
    files: &GeneratedFiles,
    is_host_network: bool,
    userns: Option<&UsernsMounts<'_>>,
) -> Vec<Mount> {
    let mut made = Mounts::default();
    for base in &BASE {
        made.put(match base.0 {
            // A sysfs belongs to the network namespace that mounts it; the host's is bound instead.
            "/sys" if is_host_network && userns.is_none() => {
                entry("/sys", "bind", "/sys", &["nosuid", "noexec", "nodev", "ro", "rbind"])
            }
            _ => base_mount(base, userns, "ro"),
        });
    }
    if let Some(shm) = &files.shm {
        made.put(shared_memory(shm, userns));
    }
    let options = &["ro", "bind", "nodev", "nosuid", "noexec"];
    for (destination, source) in [("/etc/resolv.conf", &files.resolv_conf), ("/etc/hostname", &files.hostname)] {
        if let Some(source) = source {
            made.put(entry(destination, "bind", source, options));
        }
    }
    made.0
}
