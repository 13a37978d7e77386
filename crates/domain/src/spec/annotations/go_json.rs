//! The JSON inside annotations, with the names, order and omissions of the Go structs that wrote it first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::container::{self, ContainerMetadata, Propagation};
use crate::resources::{HugepageLimit, Resources};
use crate::sandbox::{self, SandboxMetadata};
use crate::security::{IdMapping, NamespaceMode, NamespaceOptions, UserNamespace};

/// Why a value that parses as JSON is still not what it should be.
pub(super) type Refusal = String;

fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

/// Serialises as Go's `encoding/json` does: `<`, `>`, `&` and two line separators are escaped.
pub(super) fn to_string<T: Serialize>(value: &T) -> String {
    // Strings, numbers, lists and maps with string keys: none of these can fail to serialise.
    let plain = serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned());
    let mut escaped = String::with_capacity(plain.len());
    for character in plain.chars() {
        match character {
            '<' => escaped.push_str("\\u003c"),
            '>' => escaped.push_str("\\u003e"),
            '&' => escaped.push_str("\\u0026"),
            '\u{2028}' => escaped.push_str("\\u2028"),
            '\u{2029}' => escaped.push_str("\\u2029"),
            _ => escaped.push(character),
        }
    }
    escaped
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct GoSandboxMetadata {
    #[serde(skip_serializing_if = "is_default")]
    name: String,
    #[serde(skip_serializing_if = "is_default")]
    uid: String,
    #[serde(skip_serializing_if = "is_default")]
    namespace: String,
    #[serde(skip_serializing_if = "is_default")]
    attempt: u32,
}

impl From<&SandboxMetadata> for GoSandboxMetadata {
    fn from(from: &SandboxMetadata) -> Self {
        let SandboxMetadata { name, uid, namespace, attempt } = from.clone();
        Self { name, uid, namespace, attempt }
    }
}

impl From<GoSandboxMetadata> for SandboxMetadata {
    fn from(from: GoSandboxMetadata) -> Self {
        Self { name: from.name, uid: from.uid, namespace: from.namespace, attempt: from.attempt }
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct GoContainerMetadata {
    #[serde(skip_serializing_if = "is_default")]
    name: String,
    #[serde(skip_serializing_if = "is_default")]
    attempt: u32,
}

impl From<&ContainerMetadata> for GoContainerMetadata {
    fn from(from: &ContainerMetadata) -> Self {
        Self { name: from.name.clone(), attempt: from.attempt }
    }
}

impl From<GoContainerMetadata> for ContainerMetadata {
    fn from(from: GoContainerMetadata) -> Self {
        Self { name: from.name, attempt: from.attempt }
    }
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct GoIdMapping {
    #[serde(skip_serializing_if = "is_default")]
    host_id: u32,
    #[serde(skip_serializing_if = "is_default")]
    container_id: u32,
    #[serde(skip_serializing_if = "is_default")]
    length: u32,
}

fn to_go_mappings(from: &[IdMapping]) -> Vec<GoIdMapping> {
    let convert =
        |from: &IdMapping| GoIdMapping { host_id: from.host_id, container_id: from.container_id, length: from.length };
    from.iter().map(convert).collect()
}

fn from_go_mappings(from: Option<Vec<GoIdMapping>>) -> Vec<IdMapping> {
    let convert =
        |from: GoIdMapping| IdMapping { host_id: from.host_id, container_id: from.container_id, length: from.length };
    from.unwrap_or_default().into_iter().map(convert).collect()
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct GoUserNamespace {
    #[serde(skip_serializing_if = "is_default")]
    mode: i32,
    #[serde(skip_serializing_if = "is_empty_list")]
    uids: Option<Vec<GoIdMapping>>,
    #[serde(skip_serializing_if = "is_empty_list")]
    gids: Option<Vec<GoIdMapping>>,
}

fn is_empty_list<T>(list: &Option<Vec<T>>) -> bool {
    list.as_ref().is_none_or(Vec::is_empty)
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct GoNamespaceOptions {
    #[serde(skip_serializing_if = "is_default")]
    network: i32,
    #[serde(skip_serializing_if = "is_default")]
    pid: i32,
    #[serde(skip_serializing_if = "is_default")]
    ipc: i32,
    #[serde(skip_serializing_if = "is_default")]
    target_id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    userns_options: Option<GoUserNamespace>,
}

const fn mode_number(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => 0,
        NamespaceMode::Container => 1,
        NamespaceMode::Node => 2,
        NamespaceMode::Target => 3,
    }
}

fn mode_of(number: i32) -> Result<NamespaceMode, Refusal> {
    match number {
        0 => Ok(NamespaceMode::Pod),
        1 => Ok(NamespaceMode::Container),
        2 => Ok(NamespaceMode::Node),
        3 => Ok(NamespaceMode::Target),
        other => Err(format!("namespace mode {other}")),
    }
}

impl From<&NamespaceOptions> for GoNamespaceOptions {
    fn from(from: &NamespaceOptions) -> Self {
        Self {
            network: mode_number(from.network),
            pid: mode_number(from.pid),
            ipc: mode_number(from.ipc),
            target_id: from.target_id.clone(),
            userns_options: from.user.as_ref().map(|user| GoUserNamespace {
                mode: mode_number(user.mode),
                uids: Some(to_go_mappings(&user.uids)),
                gids: Some(to_go_mappings(&user.gids)),
            }),
        }
    }
}

impl TryFrom<GoNamespaceOptions> for NamespaceOptions {
    type Error = Refusal;
    fn try_from(from: GoNamespaceOptions) -> Result<Self, Refusal> {
        let user = |user: GoUserNamespace| -> Result<UserNamespace, Refusal> {
            let (uids, gids) = (from_go_mappings(user.uids), from_go_mappings(user.gids));
            Ok(UserNamespace { mode: mode_of(user.mode)?, uids, gids })
        };
        Ok(Self {
            network: mode_of(from.network)?,
            pid: mode_of(from.pid)?,
            ipc: mode_of(from.ipc)?,
            target_id: from.target_id,
            user: from.userns_options.map(user).transpose()?,
        })
    }
}

/// No tags in Go, so the names are the fields' own and nothing is omitted.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub(super) struct GoPortMapping {
    host_port: i32,
    container_port: i32,
    protocol: String,
    #[serde(rename = "HostIP")]
    host_ip: String,
}

impl From<&sandbox::PortMapping> for GoPortMapping {
    fn from(from: &sandbox::PortMapping) -> Self {
        let protocol = match from.protocol {
            sandbox::Protocol::Tcp => "TCP",
            sandbox::Protocol::Udp => "UDP",
            sandbox::Protocol::Sctp => "SCTP",
        };
        Self {
            host_port: from.host_port.into(),
            container_port: from.container_port.into(),
            protocol: protocol.to_owned(),
            host_ip: from.host_ip.clone(),
        }
    }
}

impl TryFrom<GoPortMapping> for sandbox::PortMapping {
    type Error = Refusal;
    fn try_from(from: GoPortMapping) -> Result<Self, Refusal> {
        let port = |port: i32| u16::try_from(port).map_err(|_| format!("port {port}"));
        let protocol = match from.protocol.as_str() {
            "TCP" | "" => sandbox::Protocol::Tcp,
            "UDP" => sandbox::Protocol::Udp,
            "SCTP" => sandbox::Protocol::Sctp,
            other => return Err(format!("protocol {other:?}")),
        };
        Ok(Self {
            protocol,
            container_port: port(from.container_port)?,
            host_port: port(from.host_port)?,
            host_ip: from.host_ip,
        })
    }
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct GoImageSpec {
    #[serde(skip_serializing_if = "is_default")]
    image: String,
    #[serde(skip_serializing_if = "is_empty_map")]
    annotations: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "is_default")]
    user_specified_image: String,
    #[serde(skip_serializing_if = "is_default")]
    runtime_handler: String,
}

fn is_empty_map(map: &Option<BTreeMap<String, String>>) -> bool {
    map.as_ref().is_none_or(BTreeMap::is_empty)
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct GoVolume {
    container_path: String,
    host_path: String,
    readonly: bool,
    recursive_read_only: bool,
    propagation: i32,
    selinux_relabel: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    image: Option<GoImageSpec>,
    /// Ours; CRI-O does not keep it and passes over it.
    #[serde(skip_serializing_if = "is_default")]
    image_sub_path: String,
}

impl From<&container::Mount> for GoVolume {
    fn from(from: &container::Mount) -> Self {
        Self {
            container_path: from.container_path.clone(),
            host_path: from.host_path.clone(),
            readonly: from.readonly,
            recursive_read_only: from.recursive_read_only,
            propagation: match from.propagation {
                Propagation::Private => 0,
                Propagation::HostToContainer => 1,
                Propagation::Bidirectional => 2,
            },
            selinux_relabel: from.selinux_relabel,
            image: from.image.as_ref().map(|image| GoImageSpec {
                image: image.image.clone(),
                annotations: Some(image.annotations.clone()),
                user_specified_image: image.user_specified_image.clone(),
                runtime_handler: image.runtime_handler.clone(),
            }),
            image_sub_path: from.image_sub_path.clone(),
        }
    }
}

impl TryFrom<GoVolume> for container::Mount {
    type Error = Refusal;
    fn try_from(from: GoVolume) -> Result<Self, Refusal> {
        Ok(Self {
            container_path: from.container_path,
            host_path: from.host_path,
            readonly: from.readonly,
            recursive_read_only: from.recursive_read_only,
            propagation: match from.propagation {
                0 => Propagation::Private,
                1 => Propagation::HostToContainer,
                2 => Propagation::Bidirectional,
                other => return Err(format!("propagation {other}")),
            },
            selinux_relabel: from.selinux_relabel,
            image: from.image.map(|image| container::ImageSpec {
                image: image.image,
                annotations: image.annotations.unwrap_or_default(),
                user_specified_image: image.user_specified_image,
                runtime_handler: image.runtime_handler,
            }),
            image_sub_path: from.image_sub_path,
            ..Self::default()
        })
    }
}

#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
struct GoHugepageLimit {
    #[serde(skip_serializing_if = "is_default")]
    page_size: String,
    #[serde(skip_serializing_if = "is_default")]
    limit: u64,
}

#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct GoResources {
    #[serde(skip_serializing_if = "is_default")]
    cpu_period: i64,
    #[serde(skip_serializing_if = "is_default")]
    cpu_quota: i64,
    #[serde(skip_serializing_if = "is_default")]
    cpu_shares: i64,
    #[serde(skip_serializing_if = "is_default")]
    memory_limit_in_bytes: i64,
    #[serde(skip_serializing_if = "is_default")]
    oom_score_adj: i64,
    #[serde(skip_serializing_if = "is_default")]
    cpuset_cpus: String,
    #[serde(skip_serializing_if = "is_default")]
    cpuset_mems: String,
    #[serde(skip_serializing_if = "is_empty_list")]
    hugepage_limits: Option<Vec<GoHugepageLimit>>,
    #[serde(skip_serializing_if = "is_empty_map")]
    unified: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "is_default")]
    memory_swap_limit_in_bytes: i64,
}

impl From<&Resources> for GoResources {
    fn from(from: &Resources) -> Self {
        let hugepage =
            |limit: &HugepageLimit| GoHugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit_bytes };
        Self {
            cpu_period: from.cpu_period_us,
            cpu_quota: from.cpu_quota_us,
            cpu_shares: from.cpu_shares,
            memory_limit_in_bytes: from.memory_limit_bytes,
            oom_score_adj: from.oom_score_adj,
            cpuset_cpus: from.cpuset_cpus.clone(),
            cpuset_mems: from.cpuset_mems.clone(),
            hugepage_limits: Some(from.hugepages.iter().map(hugepage).collect()),
            unified: Some(from.unified.clone()),
            memory_swap_limit_in_bytes: from.memory_swap_limit_bytes,
        }
    }
}

impl From<GoResources> for Resources {
    fn from(from: GoResources) -> Self {
        let hugepage = |limit: GoHugepageLimit| HugepageLimit { page_size: limit.page_size, limit_bytes: limit.limit };
        Self {
            cpu_period_us: from.cpu_period,
            cpu_quota_us: from.cpu_quota,
            cpu_shares: from.cpu_shares,
            memory_limit_bytes: from.memory_limit_in_bytes,
            memory_swap_limit_bytes: from.memory_swap_limit_in_bytes,
            oom_score_adj: from.oom_score_adj,
            cpuset_cpus: from.cpuset_cpus,
            cpuset_mems: from.cpuset_mems,
            hugepages: from.hugepage_limits.unwrap_or_default().into_iter().map(hugepage).collect(),
            unified: from.unified.unwrap_or_default(),
        }
    }
}
