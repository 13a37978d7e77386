//! Annotations read back after a restart, or after a take-over from CRI-O.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use thiserror::Error;

use super::go_json::{
    GoContainerMetadata, GoNamespaceOptions, GoPortMapping, GoResources, GoSandboxMetadata, GoVolume,
};
use super::{
    ANNOTATIONS, CGROUP_PARENT, CNI_RESULT, CONTAINER_ID, CONTAINER_MANAGER, CONTAINER_NAME, CONTAINER_TYPE, CREATED,
    ContainerFacts, HOST_NAME, HOST_NETWORK, HOSTNAME_PATH, IMAGE, IMAGE_NAME, IMAGE_REF, IMAGE_REPO_DIGESTS, IP,
    IPS_MAX, LABELS, LOG_PATH, MANAGER, METADATA, MOUNT_POINT, NAME, NAMESPACE_OPTIONS, PLATFORM_RUNTIME_PATH,
    PLATFORM_RUNTIME_PATH_OLD, POD_LINUX_OVERHEAD, POD_LINUX_OVERHEAD_OLD, POD_LINUX_RESOURCES,
    POD_LINUX_RESOURCES_OLD, PORT_MAPPINGS, PRIVILEGED_RUNTIME, RESOLV_PATH, RUNTIME_HANDLER, SANDBOX_ID, SANDBOX_NAME,
    SECCOMP_PROFILE_PATH, SHM_PATH, SPOOFED, SPOOFED_OLD, STDIN, STDIN_ONCE, STOP_SIGNAL, SandboxFacts, TTY,
    TYPE_CONTAINER, TYPE_SANDBOX, VOLUMES, rfc3339,
};
use crate::container::ContainerMetadata;
use crate::id::{ContainerId, ImageId, SandboxId};
use crate::name::{NameError, check_part};
use crate::resources::Resources;
use crate::sandbox::SandboxMetadata;
use crate::time::Timestamp;

/// Why annotations cannot be read back.
#[derive(Debug, Error)]
pub enum AnnotationError {
    /// The record belongs to another program and stays untouched.
    #[error("the record belongs to {manager:?}")]
    Foreign {
        /// Who says so.
        manager: String,
    },
    /// A sandbox where a container was expected, or the reverse.
    #[error("annotation {CONTAINER_TYPE} is {found:?}, {expected:?} was expected")]
    OtherType {
        /// `sandbox` or `container`.
        expected: &'static str,
        /// As written.
        found: String,
    },
    /// A key without which nothing can be rebuilt.
    #[error("annotation {key} is missing or empty")]
    Missing {
        /// The key.
        key: &'static str,
    },
    /// Not the JSON it should be.
    #[error("parse annotation {key}")]
    Json {
        /// The key.
        key: &'static str,
        /// What serde says.
        #[source]
        source: serde_json::Error,
    },
    /// JSON or text with a value that cannot be.
    #[error("annotation {key} has an invalid value: {value}")]
    Invalid {
        /// The key.
        key: &'static str,
        /// What is wrong, cut to a readable length.
        value: String,
    },
    /// A part of the identity that would not be accepted in a request.
    #[error("annotation {METADATA} has an unusable name")]
    Name(#[source] NameError),
}

type Map = BTreeMap<String, String>;

fn text<'a>(map: &'a Map, key: &str) -> &'a str {
    map.get(key).map_or("", String::as_str)
}

fn owned(map: &Map, key: &str) -> String {
    text(map, key).to_owned()
}

fn required(map: &Map, key: &'static str) -> Result<String, AnnotationError> {
    map.get(key).filter(|value| !value.is_empty()).cloned().ok_or(AnnotationError::Missing { key })
}

fn is_true(map: &Map, key: &str) -> bool {
    text(map, key) == "true"
}

/// The new spelling wins over the old.
fn either<'a>(map: &'a Map, key: &str, old: &str) -> Option<&'a str> {
    map.get(key).or_else(|| map.get(old)).map(String::as_str)
}

fn invalid(key: &'static str, value: &str) -> AnnotationError {
    AnnotationError::Invalid { key, value: value.chars().take(100).collect() }
}

fn json<T: DeserializeOwned>(map: &Map, key: &'static str) -> Result<T, AnnotationError> {
    let value = map.get(key).ok_or(AnnotationError::Missing { key })?;
    serde_json::from_str(value).map_err(|source| AnnotationError::Json { key, source })
}

/// `null` and an absent key are an empty map.
fn json_map(map: &Map, key: &'static str) -> Result<Map, AnnotationError> {
    if !map.contains_key(key) {
        return Ok(Map::new());
    }
    json::<Option<Map>>(map, key).map(Option::unwrap_or_default)
}

fn json_list<Go, T>(map: &Map, key: &'static str) -> Result<Vec<T>, AnnotationError>
where
    Go: DeserializeOwned,
    T: TryFrom<Go, Error = String>,
{
    if !map.contains_key(key) {
        return Ok(vec![]);
    }
    let list: Option<Vec<Go>> = json(map, key)?;
    list.unwrap_or_default().into_iter().map(|one| T::try_from(one).map_err(|why| invalid(key, &why))).collect()
}

fn json_resources(map: &Map, key: &'static str, old: &str) -> Result<Option<Resources>, AnnotationError> {
    let Some(value) = either(map, key, old) else { return Ok(None) };
    let parsed: Option<GoResources> =
        serde_json::from_str(value).map_err(|source| AnnotationError::Json { key, source })?;
    Ok(parsed.map(Resources::from))
}

fn ips(map: &Map) -> Vec<String> {
    (0..IPS_MAX).map_while(|at| map.get(&format!("{IP}.{at}")).cloned()).collect()
}

fn created(map: &Map) -> Result<Timestamp, AnnotationError> {
    let value = required(map, CREATED)?;
    rfc3339::parse(&value).ok_or_else(|| invalid(CREATED, &value))
}

fn check_owner(map: &Map, expected: &'static str) -> Result<(), AnnotationError> {
    if let Some(manager) = map.get(CONTAINER_MANAGER).filter(|manager| *manager != MANAGER) {
        return Err(AnnotationError::Foreign { manager: manager.chars().take(100).collect() });
    }
    match required(map, CONTAINER_TYPE)? {
        found if found == expected => Ok(()),
        found => Err(AnnotationError::OtherType { expected, found: found.chars().take(100).collect() }),
    }
}

fn stop_signal(map: &Map) -> Option<String> {
    map.get(STOP_SIGNAL).filter(|signal| !signal.is_empty()).cloned()
}

/// Reads the annotations of a sandbox's config.json.
///
/// Errors: what the request would have been refused for too, and anything that cannot be read.
pub fn parse_sandbox_annotations(map: &BTreeMap<String, String>) -> Result<SandboxFacts, AnnotationError> {
    check_owner(map, TYPE_SANDBOX)?;
    let metadata = SandboxMetadata::from(json::<GoSandboxMetadata>(map, METADATA)?);
    for (part, value) in [("name", &metadata.name), ("namespace", &metadata.namespace), ("uid", &metadata.uid)] {
        check_part(part, value).map_err(AnnotationError::Name)?;
    }
    let id = required(map, SANDBOX_ID)?;
    let namespaces = json::<GoNamespaceOptions>(map, NAMESPACE_OPTIONS)?;
    Ok(SandboxFacts {
        id: SandboxId::parse(&id).map_err(|_| invalid(SANDBOX_ID, &id))?,
        name: required(map, NAME)?,
        infra_name: owned(map, CONTAINER_NAME),
        metadata,
        labels: json_map(map, LABELS)?,
        annotations: json_map(map, ANNOTATIONS)?,
        created: created(map)?,
        log_path: owned(map, LOG_PATH),
        hostname: owned(map, HOST_NAME),
        hostname_path: owned(map, HOSTNAME_PATH),
        resolv_path: owned(map, RESOLV_PATH),
        shm_path: owned(map, SHM_PATH),
        namespaces: namespaces.try_into().map_err(|why: String| invalid(NAMESPACE_OPTIONS, &why))?,
        is_host_network: is_true(map, HOST_NETWORK),
        is_privileged: is_true(map, PRIVILEGED_RUNTIME),
        runtime_handler: owned(map, RUNTIME_HANDLER),
        cgroup_parent: owned(map, CGROUP_PARENT),
        port_mappings: json_list::<GoPortMapping, _>(map, PORT_MAPPINGS)?,
        cni_result: map.get(CNI_RESULT).filter(|result| !result.is_empty()).cloned(),
        ips: ips(map),
        image: owned(map, IMAGE),
        mount_point: owned(map, MOUNT_POINT),
        seccomp_profile: owned(map, SECCOMP_PROFILE_PATH),
        stop_signal: stop_signal(map),
        is_spoofed: either(map, SPOOFED, SPOOFED_OLD) == Some("true"),
        overhead: json_resources(map, POD_LINUX_OVERHEAD, POD_LINUX_OVERHEAD_OLD)?,
        resources: json_resources(map, POD_LINUX_RESOURCES, POD_LINUX_RESOURCES_OLD)?,
    })
}

/// Reads the annotations of a container's config.json.
pub fn parse_container_annotations(map: &BTreeMap<String, String>) -> Result<ContainerFacts, AnnotationError> {
    check_owner(map, TYPE_CONTAINER)?;
    let metadata = ContainerMetadata::from(json::<GoContainerMetadata>(map, METADATA)?);
    check_part("name", &metadata.name).map_err(AnnotationError::Name)?;
    let id = required(map, CONTAINER_ID)?;
    let sandbox_id = required(map, SANDBOX_ID)?;
    let image_id = match text(map, IMAGE_REF) {
        "" => None,
        text => Some(ImageId::parse(text).map_err(|_| invalid(IMAGE_REF, text))?),
    };
    let repo_digests = text(map, IMAGE_REPO_DIGESTS).split(',').filter(|digest| !digest.is_empty());
    Ok(ContainerFacts {
        id: ContainerId::parse(&id).map_err(|_| invalid(CONTAINER_ID, &id))?,
        name: required(map, NAME)?,
        sandbox_id: SandboxId::parse(&sandbox_id).map_err(|_| invalid(SANDBOX_ID, &sandbox_id))?,
        sandbox_name: owned(map, SANDBOX_NAME),
        metadata,
        labels: json_map(map, LABELS)?,
        annotations: json_map(map, ANNOTATIONS)?,
        created: created(map)?,
        log_path: owned(map, LOG_PATH),
        image: owned(map, IMAGE),
        image_name: owned(map, IMAGE_NAME),
        image_id,
        repo_digests: repo_digests.map(str::to_owned).collect(),
        has_tty: is_true(map, TTY),
        has_stdin: is_true(map, STDIN),
        is_stdin_once: is_true(map, STDIN_ONCE),
        resolv_path: owned(map, RESOLV_PATH),
        mount_point: owned(map, MOUNT_POINT),
        seccomp_profile: owned(map, SECCOMP_PROFILE_PATH),
        ips: ips(map),
        volumes: json_list::<GoVolume, _>(map, VOLUMES)?,
        stop_signal: stop_signal(map),
        platform_runtime_path: either(map, PLATFORM_RUNTIME_PATH, PLATFORM_RUNTIME_PATH_OLD).unwrap_or("").to_owned(),
    })
}

/// Fuzz entry point: a JSON object of annotations; what is read must come back when it is written again.
pub fn fuzz_annotations(bytes: &[u8]) {
    let Ok(map) = serde_json::from_slice::<Map>(bytes) else { return };
    if let Ok(facts) = parse_sandbox_annotations(&map) {
        let again = parse_sandbox_annotations(&super::sandbox_annotations(&facts));
        assert!(again.is_ok_and(|again| again == facts), "a sandbox's annotations survive a round trip");
    }
    if let Ok(facts) = parse_container_annotations(&map) {
        let written = super::container_annotations(&facts, &Map::new(), crate::spec::CgroupManagerKind::Cgroupfs);
        let again = parse_container_annotations(&written);
        assert!(again.is_ok_and(|again| again == facts), "a container's annotations survive a round trip");
    }
}
