//! From domain values to CRI messages.

use std::collections::{BTreeMap, HashMap};

use cri_api::v1;
use domain::container::{ContainerMetadata, ContainerState, ImageSpec, Mount, Propagation, Signal};
use domain::resources::Resources;
use domain::sandbox::{SandboxMetadata, SandboxState};
use domain::security::{IdMapping, NamespaceMode, NamespaceOptions};
use lifecycle::{ContainerUser, ImageStatus};

use crate::from_cri;

/// Highest number of the CRI's signal enumeration.
const SIGNAL_MAX: i32 = 65;

pub(crate) fn map(map: &BTreeMap<String, String>) -> HashMap<String, String> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

pub(crate) fn has_labels(labels: &BTreeMap<String, String>, wanted: &HashMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// A stored JSON text as a value; null when there is none or it is damaged.
pub(crate) fn json(text: Option<String>) -> serde_json::Value {
    text.and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

pub(crate) fn sandbox_metadata(metadata: &SandboxMetadata) -> v1::PodSandboxMetadata {
    v1::PodSandboxMetadata {
        name: metadata.name.clone(),
        uid: metadata.uid.clone(),
        namespace: metadata.namespace.clone(),
        attempt: metadata.attempt,
    }
}

pub(crate) fn container_metadata(metadata: &ContainerMetadata) -> v1::ContainerMetadata {
    v1::ContainerMetadata { name: metadata.name.clone(), attempt: metadata.attempt }
}

pub(crate) const fn sandbox_state(state: SandboxState) -> v1::PodSandboxState {
    match state {
        SandboxState::Ready => v1::PodSandboxState::SandboxReady,
        SandboxState::NotReady => v1::PodSandboxState::SandboxNotready,
    }
}

pub(crate) const fn container_state(state: &ContainerState) -> v1::ContainerState {
    match state {
        ContainerState::Created { .. } => v1::ContainerState::ContainerCreated,
        ContainerState::Running { .. } => v1::ContainerState::ContainerRunning,
        ContainerState::Exited { .. } => v1::ContainerState::ContainerExited,
    }
}

fn namespace_mode(mode: NamespaceMode) -> i32 {
    match mode {
        NamespaceMode::Pod => v1::NamespaceMode::Pod,
        NamespaceMode::Container => v1::NamespaceMode::Container,
        NamespaceMode::Node => v1::NamespaceMode::Node,
        NamespaceMode::Target => v1::NamespaceMode::Target,
    }
    .into()
}

fn id_mappings(mappings: &[IdMapping]) -> Vec<v1::IdMapping> {
    mappings
        .iter()
        .map(|mapping| v1::IdMapping {
            host_id: mapping.host_id,
            container_id: mapping.container_id,
            length: mapping.length,
        })
        .collect()
}

pub(crate) fn namespace_options(options: &NamespaceOptions) -> v1::NamespaceOption {
    v1::NamespaceOption {
        network: namespace_mode(options.network),
        pid: namespace_mode(options.pid),
        ipc: namespace_mode(options.ipc),
        target_id: options.target_id.clone(),
        userns_options: options.user.as_ref().map(|user| v1::UserNamespace {
            mode: namespace_mode(user.mode),
            uids: id_mappings(&user.uids),
            gids: id_mappings(&user.gids),
        }),
    }
}

pub(crate) fn image_spec(spec: &ImageSpec) -> v1::ImageSpec {
    v1::ImageSpec {
        image: spec.image.clone(),
        annotations: map(&spec.annotations),
        user_specified_image: spec.user_specified_image.clone(),
        runtime_handler: spec.runtime_handler.clone(),
        image_ref: String::new(),
    }
}

pub(crate) fn mount(mount: &Mount) -> v1::Mount {
    let propagation = match mount.propagation {
        Propagation::Private => v1::MountPropagation::PropagationPrivate,
        Propagation::HostToContainer => v1::MountPropagation::PropagationHostToContainer,
        Propagation::Bidirectional => v1::MountPropagation::PropagationBidirectional,
    };
    v1::Mount {
        container_path: mount.container_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        selinux_relabel: mount.selinux_relabel,
        propagation: propagation.into(),
        uid_mappings: id_mappings(&mount.uid_mappings),
        gid_mappings: id_mappings(&mount.gid_mappings),
        recursive_read_only: mount.recursive_read_only,
        // Recorded by its id, which is what PullImage answered; the kubelet compares the two.
        image: mount.image.as_ref().map(|image| v1::ImageSpec { image_ref: image.image.clone(), ..image_spec(image) }),
        image_sub_path: mount.image_sub_path.clone(),
    }
}

pub(crate) fn resources(resources: &Resources) -> v1::LinuxContainerResources {
    v1::LinuxContainerResources {
        cpu_period: resources.cpu_period_us,
        cpu_quota: resources.cpu_quota_us,
        cpu_shares: resources.cpu_shares,
        memory_limit_in_bytes: resources.memory_limit_bytes,
        oom_score_adj: resources.oom_score_adj,
        cpuset_cpus: resources.cpuset_cpus.clone(),
        cpuset_mems: resources.cpuset_mems.clone(),
        hugepage_limits: resources
            .hugepages
            .iter()
            .map(|limit| v1::HugepageLimit { page_size: limit.page_size.clone(), limit: limit.limit_bytes })
            .collect(),
        unified: map(&resources.unified),
        memory_swap_limit_in_bytes: resources.memory_swap_limit_bytes,
    }
}

pub(crate) fn user(user: &ContainerUser) -> v1::ContainerUser {
    v1::ContainerUser {
        linux: Some(v1::LinuxContainerUser {
            uid: user.uid.into(),
            gid: user.gid.into(),
            supplemental_groups: user.supplemental_groups.iter().map(|gid| i64::from(*gid)).collect(),
        }),
    }
}

/// The first name of the CRI's enumeration for a signal.
pub(crate) fn signal(signal: Signal) -> i32 {
    (1..=SIGNAL_MAX).find(|value| from_cri::stop_signal(*value) == Ok(Some(signal))).unwrap_or_default()
}

pub(crate) fn image(image: ImageStatus) -> v1::Image {
    v1::Image {
        id: image.id.into(),
        repo_tags: image.repo_tags,
        repo_digests: image.repo_digests,
        size: image.size_bytes,
        uid: image.uid.map(|value| v1::Int64Value { value }),
        username: image.username,
        spec: Some(image_spec(&image.spec)),
        pinned: image.is_pinned,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_go_and_come_back() {
        assert_eq!(signal(Signal::TERM), i32::from(v1::Signal::Sigterm));
        assert_eq!(signal(Signal::KILL), i32::from(v1::Signal::Sigkill));
        for value in 1..=SIGNAL_MAX {
            let there = from_cri::stop_signal(value).expect("is known").expect("is a signal");
            // Some numbers have two names; the first stands for both.
            assert_eq!(from_cri::stop_signal(signal(there)), Ok(Some(there)), "{value}");
        }
    }

    #[test]
    fn every_wanted_label_must_match() {
        let labels = BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]);
        let wanted = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        for (pairs, expected) in [
            (&[][..], true),
            (&[("a", "1")], true),
            (&[("a", "1"), ("b", "2")], true),
            (&[("a", "2")], false),
            (&[("c", "")], false),
        ] {
            assert_eq!(has_labels(&labels, &wanted(pairs)), expected, "{pairs:?}");
        }
    }
}
