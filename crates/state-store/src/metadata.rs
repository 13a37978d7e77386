//! The `metadata` string of a container in the store's list: how CRI-O recognises its own containers.

use domain::id::SandboxId;
use serde::{Deserialize, Serialize};
use thiserror::Error;

/// What a record of the store says about a container or an infra container.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", default)]
pub struct RecordMetadata {
    /// Reserved name of the sandbox.
    pub pod_name: String,
    /// Id of the sandbox.
    pub pod_id: String,
    /// Image as requested.
    pub image_name: String,
    /// Image id; empty for a sandbox without infra process.
    pub image_id: String,
    /// Reserved name of the container.
    pub name: String,
    /// Kubernetes' name of the pod or container.
    pub metadata_name: String,
    /// Pod uid; sandboxes only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub uid: String,
    /// Pod namespace; sandboxes only.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// SELinux mount label.
    #[serde(rename = "mountlabel", skip_serializing_if = "String::is_empty")]
    pub mount_label: String,
    /// Seconds since the epoch.
    pub created_at: i64,
    /// Attempt.
    #[serde(skip_serializing_if = "is_zero")]
    pub attempt: u32,
    /// Whether this is a sandbox's infra container.
    #[serde(rename = "pod", skip_serializing_if = "std::ops::Not::not")]
    pub is_sandbox: bool,
    /// Whether it is privileged.
    #[serde(rename = "privileged", skip_serializing_if = "std::ops::Not::not")]
    pub is_privileged: bool,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Why a record cannot be ours although it looks like it.
#[derive(Debug, Error)]
#[error("the pod id of a container's metadata is damaged")]
pub struct DamagedMetadata(#[source] domain::id::ParseIdError);

impl RecordMetadata {
    /// Reads a record's metadata; `None` when the container belongs to somebody else, who may write what he likes.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let metadata: Self = serde_json::from_str(text).ok()?;
        (!metadata.pod_name.is_empty() && !metadata.pod_id.is_empty()).then_some(metadata)
    }

    /// The text for the store.
    #[must_use]
    pub fn to_text(&self) -> String {
        serde_json::to_string(self).expect("strings and numbers always serialise")
    }

    /// The sandbox it belongs to.
    pub fn sandbox(&self) -> Result<SandboxId, DamagedMetadata> {
        SandboxId::parse(&self.pod_id).map_err(DamagedMetadata)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_metadata_is_left_alone() {
        for text in ["", "{}", "null", "[]", r#"{"pod-name":"x"}"#, r#"{"image-id":"abc","name":"buildah"}"#] {
            assert_eq!(RecordMetadata::parse(text), None, "{text}");
        }
    }

    #[test]
    fn the_text_has_cri_os_keys() {
        let metadata = RecordMetadata {
            pod_name: "k8s_p_n_u_0".into(),
            pod_id: "0".repeat(64),
            name: "k8s_POD_p_n_u_0".into(),
            metadata_name: "p".into(),
            uid: "u".into(),
            namespace: "n".into(),
            created_at: 12,
            is_sandbox: true,
            ..RecordMetadata::default()
        };
        let text = metadata.to_text();
        let expected = format!(
            r#"{{"pod-name":"k8s_p_n_u_0","pod-id":"{}","image-name":"","image-id":"","name":"k8s_POD_p_n_u_0","metadata-name":"p","uid":"u","namespace":"n","created-at":12,"pod":true}}"#,
            "0".repeat(64)
        );
        assert_eq!(text, expected);
        assert_eq!(RecordMetadata::parse(&text), Some(metadata));
    }
}
