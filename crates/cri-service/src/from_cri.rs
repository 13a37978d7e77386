//! From CRI messages to domain values: the door at which a request is checked, once.
//!
//! Everything a later step would write into a file, a path or a kernel call is looked at here, so that a bad request
//! changes nothing. What needs the node to judge (images, mount sources, devices, users) is judged later.
//! Source: comments of the CRI's messages; CRI-O where they are silent.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use cri_api::v1;
use domain::container::{
    ContainerConfig, ContainerMetadata, ContainerSecurity, Device, ImageSpec, Mount, Propagation, Signal,
};
use domain::name::{NameError, check_part};
use domain::resources::{HugepageLimit, Resources};
use domain::sandbox::{DnsConfig, PortMapping, Protocol, SandboxConfig, SandboxMetadata, SandboxSecurity};
use domain::security::{
    Capabilities, IdMapping, NamespaceMode, NamespaceOptions, SecurityProfile, SelinuxOptions,
    SupplementalGroupsPolicy, UserNamespace,
};
use domain::spec::{SkipReason, Sysctl};
use thiserror::Error;

/// Most bytes of a label's key and value together. Source: CRI-O.
const LABEL_MAX_BYTES: usize = 4096;
/// Longest hostname the kernel takes: `HOST_NAME_MAX`, sethostname(2).
const HOSTNAME_MAX_BYTES: usize = 64;
/// Longest path the kernel takes, its end included: `PATH_MAX`.
const PATH_MAX_BYTES: usize = 4096;
/// Longest name of a file: `NAME_MAX`.
const SEGMENT_MAX_BYTES: usize = 255;
/// Most of a refused text that is shown.
const SHOWN_MAX_CHARS: usize = 100;

const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const POD_UID: &str = "io.kubernetes.pod.uid";

/// Why a request is refused before anything happens.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InvalidRequest {
    /// A field the CRI requires.
    #[error("{field} is required")]
    Missing {
        /// Path of the field.
        field: &'static str,
    },
    /// A part of the identity.
    #[error("metadata: {0}")]
    Name(NameError),
    /// A label no record should carry.
    #[error("label {key:?} is {size} bytes with its value, {LABEL_MAX_BYTES} is the limit")]
    LabelTooLong {
        /// Its key, cut to a readable length.
        key: String,
        /// Bytes of key and value.
        size: usize,
    },
    /// A number that cannot be.
    #[error("{field} {value} is out of range")]
    OutOfRange {
        /// Path of the field.
        field: &'static str,
        /// As given.
        value: String,
    },
    /// A number without a name.
    #[error("{field} {value} is not a value of this enumeration")]
    UnknownValue {
        /// Path of the field.
        field: &'static str,
        /// As given.
        value: i32,
    },
    /// A text that does not fit its use.
    #[error("{field} {value:?} {reason}")]
    BadText {
        /// Path of the field.
        field: &'static str,
        /// As given, cut to a readable length.
        value: String,
        /// What it should be.
        reason: &'static str,
    },
}

type Checked<T> = Result<T, InvalidRequest>;

fn bad_text(field: &'static str, value: &str, reason: &'static str) -> InvalidRequest {
    InvalidRequest::BadText { field, value: value.chars().take(SHOWN_MAX_CHARS).collect(), reason }
}

fn out_of_range(field: &'static str, value: impl ToString) -> InvalidRequest {
    InvalidRequest::OutOfRange { field, value: value.to_string() }
}

fn ordered(map: HashMap<String, String>) -> BTreeMap<String, String> {
    map.into_iter().collect()
}

/// Refuses what is no sysctl at all; one that is not the pod's to set is left out later, with a warning.
///
/// Source: CRI-O; CVE-2022-0811 for values that could be taken apart.
fn sysctls(map: HashMap<String, String>) -> Checked<BTreeMap<String, String>> {
    for (name, value) in &map {
        match Sysctl::parse(name, value) {
            Err(SkipReason::BadName) => {
                return Err(bad_text("linux.sysctls", name, "is not the name of a sysctl"));
            }
            Err(SkipReason::BadValue) => {
                return Err(bad_text("linux.sysctls", value, "is not a value that a sysctl takes"));
            }
            Err(SkipReason::NotNamespaced | SkipReason::HostNetwork | SkipReason::HostIpc) | Ok(_) => {}
        }
    }
    Ok(ordered(map))
}

fn labels(map: HashMap<String, String>) -> Checked<BTreeMap<String, String>> {
    for (key, value) in &map {
        let size = key.len() + value.len();
        if size > LABEL_MAX_BYTES {
            let key = key.chars().take(SHOWN_MAX_CHARS).collect();
            return Err(InvalidRequest::LabelTooLong { key, size });
        }
    }
    Ok(ordered(map))
}

/// A segment that leads elsewhere than it reads. A single dot stays: Kubernetes lets it pass in host paths.
fn has_dot_segment(path: &str) -> bool {
    path.split('/').any(|segment| segment == "..")
}

fn check_path_text(field: &'static str, path: &str) -> Checked<()> {
    if path.len() >= PATH_MAX_BYTES || path.split('/').any(|segment| segment.len() > SEGMENT_MAX_BYTES) {
        return Err(bad_text(field, path, "is longer than a path can be"));
    }
    if path.contains('\0') {
        return Err(bad_text(field, path, "contains a NUL byte"));
    }
    Ok(())
}

/// A path of the node: absolute and without a segment that leads elsewhere than it reads.
fn host_path(field: &'static str, path: &str) -> Checked<()> {
    check_path_text(field, path)?;
    if !path.starts_with('/') || has_dot_segment(path) {
        return Err(bad_text(field, path, "is not an absolute path without .. segments"));
    }
    Ok(())
}

/// A path in the container, made absolute and free of dot segments, as the runtimes do before they use it.
fn container_path(field: &'static str, path: &str) -> Checked<String> {
    if path.is_empty() {
        return Err(InvalidRequest::Missing { field });
    }
    check_path_text(field, path)?;
    let mut segments: Vec<&str> = vec![];
    for segment in path.split('/') {
        match segment {
            "" | "." => {}
            ".." => {
                segments.pop();
            }
            segment => segments.push(segment),
        }
    }
    Ok(format!("/{}", segments.join("/")))
}

/// A path below a directory, which it cannot leave.
fn relative_path(field: &'static str, path: &str) -> Checked<()> {
    check_path_text(field, path)?;
    let is_good = !path.starts_with('/') && !has_dot_segment(path) && !path.chars().any(char::is_control);
    if is_good { Ok(()) } else { Err(bad_text(field, path, "is not a relative path without .. segments")) }
}

fn is_one_word(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|character| character.is_whitespace() || character.is_control())
}

fn namespace_mode(field: &'static str, value: i32) -> Checked<NamespaceMode> {
    match v1::NamespaceMode::try_from(value) {
        Ok(v1::NamespaceMode::Pod) => Ok(NamespaceMode::Pod),
        Ok(v1::NamespaceMode::Container) => Ok(NamespaceMode::Container),
        Ok(v1::NamespaceMode::Node) => Ok(NamespaceMode::Node),
        Ok(v1::NamespaceMode::Target) => Ok(NamespaceMode::Target),
        Err(_) => Err(InvalidRequest::UnknownValue { field, value }),
    }
}

fn id_mappings(field: &'static str, mappings: Vec<v1::IdMapping>) -> Checked<Vec<IdMapping>> {
    mappings
        .into_iter()
        .map(|mapping| {
            let v1::IdMapping { host_id, container_id, length } = mapping;
            let fits =
                length > 0 && host_id.checked_add(length).is_some() && container_id.checked_add(length).is_some();
            if fits {
                Ok(IdMapping { host_id, container_id, length })
            } else {
                Err(out_of_range(field, format!("{container_id}:{host_id}:{length}")))
            }
        })
        .collect()
}

fn namespace_options(options: Option<v1::NamespaceOption>) -> Checked<NamespaceOptions> {
    let Some(options) = options else { return Ok(NamespaceOptions::default()) };
    let user = options.userns_options.map(|user| {
        Ok(UserNamespace {
            mode: match namespace_mode("userns_options.mode", user.mode)? {
                mode @ (NamespaceMode::Pod | NamespaceMode::Node) => mode,
                NamespaceMode::Container | NamespaceMode::Target => {
                    return Err(InvalidRequest::UnknownValue { field: "userns_options.mode", value: user.mode });
                }
            },
            uids: id_mappings("userns_options.uids", user.uids)?,
            gids: id_mappings("userns_options.gids", user.gids)?,
        })
    });
    let pid = namespace_mode("namespace_options.pid", options.pid)?;
    if pid == NamespaceMode::Target && options.target_id.is_empty() {
        return Err(InvalidRequest::Missing { field: "namespace_options.target_id" });
    }
    Ok(NamespaceOptions {
        network: namespace_mode("namespace_options.network", options.network)?,
        pid,
        ipc: namespace_mode("namespace_options.ipc", options.ipc)?,
        target_id: options.target_id,
        user: user.transpose()?,
    })
}

fn profile(field: &'static str, profile: v1::SecurityProfile) -> Checked<SecurityProfile> {
    use v1::security_profile::ProfileType;
    let localhost = profile.localhost_ref;
    match ProfileType::try_from(profile.profile_type) {
        Ok(ProfileType::RuntimeDefault) => Ok(SecurityProfile::RuntimeDefault),
        Ok(ProfileType::Unconfined) => Ok(SecurityProfile::Unconfined),
        Ok(ProfileType::Localhost) if localhost.is_empty() || localhost.chars().any(char::is_control) => {
            Err(bad_text(field, &localhost, "is not the reference of a localhost profile"))
        }
        Ok(ProfileType::Localhost) => Ok(SecurityProfile::Localhost(localhost)),
        Err(_) => Err(InvalidRequest::UnknownValue { field, value: profile.profile_type }),
    }
}

/// The text form of the first kubelets: `runtime/default`, `docker/default`, `unconfined`, `localhost/<name>`.
fn profile_of_text(field: &'static str, text: String) -> Checked<Option<SecurityProfile>> {
    match text.as_str() {
        "" => Ok(None),
        "runtime/default" | "docker/default" => Ok(Some(SecurityProfile::RuntimeDefault)),
        "unconfined" => Ok(Some(SecurityProfile::Unconfined)),
        _ => match text.strip_prefix("localhost/") {
            Some(name) if !name.is_empty() && !name.chars().any(char::is_control) => {
                Ok(Some(SecurityProfile::Localhost(name.to_owned())))
            }
            _ => Err(bad_text(field, &text, "is not a profile")),
        },
    }
}

/// The typed field wins over the deprecated text.
fn either_profile(
    field: &'static str,
    typed: Option<v1::SecurityProfile>,
    text: String,
) -> Checked<Option<SecurityProfile>> {
    match typed {
        Some(typed) => profile(field, typed).map(Some),
        None => profile_of_text(field, text),
    }
}

/// AppArmor profile names come with `localhost/` from some clients, in the typed field too.
fn bare_apparmor(choice: Option<SecurityProfile>) -> Option<SecurityProfile> {
    choice.map(|choice| match choice {
        SecurityProfile::Localhost(name) => {
            SecurityProfile::Localhost(name.strip_prefix("localhost/").unwrap_or(&name).to_owned())
        }
        other @ (SecurityProfile::RuntimeDefault | SecurityProfile::Unconfined) => other,
    })
}

fn selinux(options: Option<v1::SeLinuxOption>) -> Checked<Option<SelinuxOptions>> {
    let Some(v1::SeLinuxOption { user, role, r#type: kind, level }) = options else { return Ok(None) };
    for (field, text) in [
        ("selinux_options.user", &user),
        ("selinux_options.role", &role),
        ("selinux_options.type", &kind),
        ("selinux_options.level", &level),
    ] {
        // A level has colons and commas of its own; the other parts are separated by colons in a label.
        let is_good =
            text.bytes().all(|byte| byte.is_ascii_graphic()) && (field.ends_with("level") || !text.contains(':'));
        if !is_good {
            return Err(bad_text(field, text, "is not a part of an SELinux label"));
        }
    }
    let is_empty = [&user, &role, &kind, &level].iter().all(|part| part.is_empty());
    Ok((!is_empty).then_some(SelinuxOptions { user, role, kind, level }))
}

fn id(field: &'static str, value: i64) -> Checked<i64> {
    // The highest number means "no id" to the kernel.
    if (0..i64::from(u32::MAX)).contains(&value) { Ok(value) } else { Err(out_of_range(field, value)) }
}

fn optional_id(field: &'static str, value: Option<v1::Int64Value>) -> Checked<Option<i64>> {
    value.map(|value| id(field, value.value)).transpose()
}

fn group_ids(groups: Vec<i64>) -> Checked<Vec<i64>> {
    groups.into_iter().map(|group| id("supplemental_groups", group)).collect()
}

fn groups_policy(value: i32) -> Checked<SupplementalGroupsPolicy> {
    match v1::SupplementalGroupsPolicy::try_from(value) {
        Ok(v1::SupplementalGroupsPolicy::Merge) => Ok(SupplementalGroupsPolicy::Merge),
        Ok(v1::SupplementalGroupsPolicy::Strict) => Ok(SupplementalGroupsPolicy::Strict),
        Err(_) => Err(InvalidRequest::UnknownValue { field: "supplemental_groups_policy", value }),
    }
}

/// Checks resources of a container, a sandbox or an update. Zero stays "not given".
pub fn resources(resources: v1::LinuxContainerResources) -> Checked<Resources> {
    let at_least = |field, value: i64, least: i64| if value < least { Err(out_of_range(field, value)) } else { Ok(()) };
    at_least("cpu_period", resources.cpu_period, 0)?;
    at_least("cpu_shares", resources.cpu_shares, 0)?;
    at_least("memory_limit_in_bytes", resources.memory_limit_in_bytes, 0)?;
    // −1 means unlimited for these two.
    at_least("cpu_quota", resources.cpu_quota, -1)?;
    at_least("memory_swap_limit_in_bytes", resources.memory_swap_limit_in_bytes, -1)?;
    if !(-1000..=1000).contains(&resources.oom_score_adj) {
        return Err(out_of_range("oom_score_adj", resources.oom_score_adj));
    }
    let hugepages = resources.hugepage_limits.into_iter().map(|limit| {
        let digits = limit.page_size.trim_end_matches(['K', 'M', 'G', 'B']);
        let is_size = !digits.is_empty() && digits.len() < limit.page_size.len();
        if !is_size || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(bad_text("hugepage_limits.page_size", &limit.page_size, "is not a size as 2MB"));
        }
        Ok(HugepageLimit { page_size: limit.page_size, limit_bytes: limit.limit })
    });
    Ok(Resources {
        cpu_period_us: resources.cpu_period,
        cpu_quota_us: resources.cpu_quota,
        cpu_shares: resources.cpu_shares,
        memory_limit_bytes: resources.memory_limit_in_bytes,
        memory_swap_limit_bytes: resources.memory_swap_limit_in_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus,
        cpuset_mems: resources.cpuset_mems,
        hugepages: hugepages.collect::<Checked<_>>()?,
        unified: ordered(resources.unified),
    })
}

fn sandbox_metadata(metadata: Option<v1::PodSandboxMetadata>) -> Checked<SandboxMetadata> {
    let metadata = metadata.ok_or(InvalidRequest::Missing { field: "metadata" })?;
    for (part, value) in [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)] {
        check_part(part, value).map_err(InvalidRequest::Name)?;
    }
    let v1::PodSandboxMetadata { name, uid, namespace, attempt } = metadata;
    Ok(SandboxMetadata { name, uid, namespace, attempt })
}

fn hostname(hostname: String) -> Checked<String> {
    let is_good = hostname.len() <= HOSTNAME_MAX_BYTES
        && hostname.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_'));
    if is_good { Ok(hostname) } else { Err(bad_text("hostname", &hostname, "is not a hostname of at most 64 bytes")) }
}

/// All empty means the node's own, as an absent one. Each text becomes a word of a line of resolv.conf.
fn dns(dns: Option<v1::DnsConfig>) -> Checked<Option<DnsConfig>> {
    let Some(v1::DnsConfig { servers, searches, options }) = dns else { return Ok(None) };
    for (field, list) in
        [("dns_config.servers", &servers), ("dns_config.searches", &searches), ("dns_config.options", &options)]
    {
        if let Some(bad) = list.iter().find(|text| !is_one_word(text)) {
            return Err(bad_text(field, bad, "is not one word"));
        }
    }
    let is_empty = servers.is_empty() && searches.is_empty() && options.is_empty();
    Ok((!is_empty).then_some(DnsConfig { servers, searches, options }))
}

/// Mappings without a host port are left out: they only inform. Source: CRI-O.
fn port_mappings(mappings: Vec<v1::PortMapping>) -> Checked<Vec<PortMapping>> {
    let port =
        |field, port: i32| u16::try_from(port).ok().filter(|port| *port > 0).ok_or_else(|| out_of_range(field, port));
    mappings
        .into_iter()
        .filter(|mapping| mapping.host_port > 0)
        .map(|mapping| {
            let protocol = match v1::Protocol::try_from(mapping.protocol) {
                Ok(v1::Protocol::Tcp) => Protocol::Tcp,
                Ok(v1::Protocol::Udp) => Protocol::Udp,
                Ok(v1::Protocol::Sctp) => Protocol::Sctp,
                Err(_) => {
                    let field = "port_mappings.protocol";
                    return Err(InvalidRequest::UnknownValue { field, value: mapping.protocol });
                }
            };
            if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
                return Err(bad_text("port_mappings.host_ip", &mapping.host_ip, "is not an address"));
            }
            Ok(PortMapping {
                protocol,
                container_port: port("port_mappings.container_port", mapping.container_port)?,
                host_port: port("port_mappings.host_port", mapping.host_port)?,
                host_ip: mapping.host_ip,
            })
        })
        .collect()
}

fn sandbox_security(context: Option<v1::LinuxSandboxSecurityContext>) -> Checked<SandboxSecurity> {
    let Some(context) = context else { return Ok(SandboxSecurity::default()) };
    #[expect(deprecated, reason = "kubelets before 1.20 send nothing else")]
    let seccomp_text = context.seccomp_profile_path;
    Ok(SandboxSecurity {
        namespaces: namespace_options(context.namespace_options)?,
        selinux: selinux(context.selinux_options)?,
        run_as_user: optional_id("run_as_user", context.run_as_user)?,
        run_as_group: optional_id("run_as_group", context.run_as_group)?,
        supplemental_groups: group_ids(context.supplemental_groups)?,
        supplemental_groups_policy: groups_policy(context.supplemental_groups_policy)?,
        privileged: context.privileged,
        seccomp: either_profile("seccomp", context.seccomp, seccomp_text)?,
        apparmor: bare_apparmor(either_profile("apparmor", context.apparmor, String::new())?),
    })
}

/// Checks the configuration of a sandbox, as RunPodSandbox and CreateContainer carry it.
///
/// Adds the three `io.kubernetes.pod.*` labels that name the pod where they are missing. Source: CRI-O.
pub fn sandbox_config(config: v1::PodSandboxConfig) -> Checked<SandboxConfig> {
    let metadata = sandbox_metadata(config.metadata)?;
    if !config.log_directory.is_empty() {
        host_path("log_directory", &config.log_directory)?;
    }
    let mut labels = labels(config.labels)?;
    for (key, value) in [(POD_NAME, &metadata.name), (POD_NAMESPACE, &metadata.namespace), (POD_UID, &metadata.uid)] {
        labels.entry(key.to_owned()).or_insert_with(|| value.clone());
    }
    let linux = config.linux.unwrap_or_default();
    Ok(SandboxConfig {
        metadata,
        hostname: hostname(config.hostname)?,
        log_directory: config.log_directory,
        dns: dns(config.dns_config)?,
        port_mappings: port_mappings(config.port_mappings)?,
        labels,
        annotations: ordered(config.annotations),
        cgroup_parent: linux.cgroup_parent,
        security: sandbox_security(linux.security_context)?,
        sysctls: sysctls(linux.sysctls)?,
        overhead: linux.overhead.map(resources).transpose()?,
        resources: linux.resources.map(resources).transpose()?,
    })
}

/// An image specification; the name is required.
pub fn image_spec(field: &'static str, spec: Option<v1::ImageSpec>) -> Checked<ImageSpec> {
    let spec = spec.filter(|spec| !spec.image.is_empty()).ok_or(InvalidRequest::Missing { field })?;
    if spec.image.chars().any(|character| character.is_whitespace() || character.is_control()) {
        return Err(bad_text(field, &spec.image, "is not an image reference"));
    }
    Ok(ImageSpec {
        image: spec.image,
        annotations: ordered(spec.annotations),
        user_specified_image: spec.user_specified_image,
        runtime_handler: spec.runtime_handler,
    })
}

/// Variables without a name are left out, as CRI-O does.
fn envs(envs: Vec<v1::KeyValue>) -> Checked<Vec<(String, String)>> {
    envs.into_iter()
        .filter(|variable| !variable.key.is_empty())
        .map(|v1::KeyValue { key, value }| {
            if key.contains(['=', '\0']) {
                return Err(bad_text("envs.key", &key, "contains an equals sign or a NUL byte"));
            }
            // The value is not shown: it may be a secret.
            let bad_value = |reason| bad_text("value of environment variable", &key, reason);
            let value = String::from_utf8(value).map_err(|_| bad_value("is not UTF-8"))?;
            if value.contains('\0') {
                return Err(bad_value("contains a NUL byte"));
            }
            Ok((key, value))
        })
        .collect()
}

fn mount(mount: v1::Mount) -> Checked<Mount> {
    let image = match mount.image.filter(|image| !image.image.is_empty()) {
        Some(image) => Some(image_spec("mounts.image", Some(image))?),
        None => None,
    };
    match &image {
        // An image is never written to; saying so is required. Source: critest, "rejects Readonly=false".
        Some(_) if !mount.readonly => {
            return Err(bad_text("mounts.image", &mount.container_path, "must be mounted with readonly set"));
        }
        Some(_) => relative_path("mounts.image_sub_path", &mount.image_sub_path)?,
        None if mount.host_path.is_empty() => return Err(InvalidRequest::Missing { field: "mounts.host_path" }),
        None => host_path("mounts.host_path", &mount.host_path)?,
    }
    let propagation = match v1::MountPropagation::try_from(mount.propagation) {
        Ok(v1::MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(v1::MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(v1::MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => {
            return Err(InvalidRequest::UnknownValue { field: "mounts.propagation", value: mount.propagation });
        }
    };
    Ok(Mount {
        container_path: container_path("mounts.container_path", &mount.container_path)?,
        host_path: mount.host_path,
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation,
        uid_mappings: id_mappings("mounts.uidMappings", mount.uid_mappings)?,
        gid_mappings: id_mappings("mounts.gidMappings", mount.gid_mappings)?,
        recursive_read_only: mount.recursive_read_only,
        image,
        image_sub_path: mount.image_sub_path,
    })
}

fn device(device: v1::Device) -> Checked<Device> {
    if device.host_path.is_empty() {
        return Err(InvalidRequest::Missing { field: "devices.host_path" });
    }
    host_path("devices.host_path", &device.host_path)?;
    if !device.permissions.bytes().all(|byte| matches!(byte, b'r' | b'w' | b'm')) || device.permissions.len() > 3 {
        return Err(bad_text("devices.permissions", &device.permissions, "is not a subset of rwm"));
    }
    // CRI-O takes the host's path when the container's is not given.
    let path = if device.container_path.is_empty() { &device.host_path } else { &device.container_path };
    Ok(Device {
        container_path: container_path("devices.container_path", path)?,
        host_path: device.host_path,
        permissions: device.permissions,
    })
}

fn container_security(context: Option<v1::LinuxContainerSecurityContext>) -> Checked<ContainerSecurity> {
    let Some(context) = context else { return Ok(ContainerSecurity::default()) };
    #[expect(deprecated, reason = "old kubelets send nothing else")]
    let (seccomp_text, apparmor_text) = (context.seccomp_profile_path, context.apparmor_profile);
    let capabilities = context.capabilities.unwrap_or_default();
    for (field, paths) in [("masked_paths", &context.masked_paths), ("readonly_paths", &context.readonly_paths)] {
        for path in paths {
            host_path(field, path)?;
        }
    }
    let run_as_user = optional_id("run_as_user", context.run_as_user)?;
    let run_as_group = optional_id("run_as_group", context.run_as_group)?;
    if run_as_group.is_some() && run_as_user.is_none() && context.run_as_username.is_empty() {
        return Err(InvalidRequest::Missing { field: "run_as_user or run_as_username beside run_as_group" });
    }
    Ok(ContainerSecurity {
        capabilities: Capabilities {
            add: capabilities.add_capabilities,
            drop: capabilities.drop_capabilities,
            add_ambient: capabilities.add_ambient_capabilities,
        },
        privileged: context.privileged,
        namespaces: namespace_options(context.namespace_options)?,
        selinux: selinux(context.selinux_options)?,
        run_as_user,
        run_as_group,
        run_as_username: context.run_as_username,
        readonly_rootfs: context.readonly_rootfs,
        supplemental_groups: group_ids(context.supplemental_groups)?,
        supplemental_groups_policy: groups_policy(context.supplemental_groups_policy)?,
        no_new_privs: context.no_new_privs,
        masked_paths: context.masked_paths,
        readonly_paths: context.readonly_paths,
        seccomp: either_profile("seccomp", context.seccomp, seccomp_text)?,
        apparmor: bare_apparmor(either_profile("apparmor", context.apparmor, apparmor_text)?),
    })
}

/// A stop signal; `RUNTIME_DEFAULT` leaves the choice to the image.
pub fn stop_signal(value: i32) -> Checked<Option<Signal>> {
    let unknown = InvalidRequest::UnknownValue { field: "stop_signal", value };
    let Ok(signal) = v1::Signal::try_from(value) else { return Err(unknown) };
    if signal == v1::Signal::RuntimeDefault {
        return Ok(None);
    }
    // SIGTERM, SIGRTMINPLUS3, SIGRTMAXMINUS14: the offset is spelled out, as `+` cannot be in a name.
    let name = signal.as_str_name().replace("PLUS", "+").replace("MINUS", "-");
    Signal::parse(&name).map(Some).ok_or(unknown)
}

/// Checks the configuration of a container.
pub fn container_config(config: v1::ContainerConfig) -> Checked<ContainerConfig> {
    let metadata = config.metadata.ok_or(InvalidRequest::Missing { field: "metadata" })?;
    check_part("name", &metadata.name).map_err(InvalidRequest::Name)?;
    relative_path("log_path", &config.log_path)?;
    for (field, texts) in [("command", &config.command), ("args", &config.args)] {
        if let Some(bad) = texts.iter().find(|text| text.contains('\0')) {
            return Err(bad_text(field, bad, "contains a NUL byte"));
        }
    }
    check_path_text("working_dir", &config.working_dir)?;
    if let Some(bad) = config.cdi_devices.iter().find(|device| !is_one_word(&device.name)) {
        return Err(bad_text("CDI_devices.name", &bad.name, "is not the name of a device"));
    }
    let linux = config.linux.unwrap_or_default();
    Ok(ContainerConfig {
        metadata: ContainerMetadata { name: metadata.name, attempt: metadata.attempt },
        image: image_spec("image", config.image)?,
        command: config.command,
        args: config.args,
        working_dir: config.working_dir,
        envs: envs(config.envs)?,
        mounts: config.mounts.into_iter().map(mount).collect::<Checked<_>>()?,
        devices: config.devices.into_iter().map(device).collect::<Checked<_>>()?,
        cdi_devices: config.cdi_devices.into_iter().map(|device| device.name).collect(),
        labels: labels(config.labels)?,
        annotations: ordered(config.annotations),
        log_path: config.log_path,
        stdin: config.stdin,
        stdin_once: config.stdin_once,
        tty: config.tty,
        resources: linux.resources.map(resources).transpose()?.unwrap_or_default(),
        security: container_security(linux.security_context)?,
        stop_signal: stop_signal(config.stop_signal)?,
    })
}

#[cfg(test)]
#[path = "from_cri_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "from_cri_sinks.rs"]
mod sinks;
