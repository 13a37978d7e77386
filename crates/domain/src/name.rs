//! The names under which sandboxes and containers are reserved, listed by other tools, and shown in process lists.
//!
//! Source: CRI-O's names, `k8s_` and the parts joined by underscores. Two live objects never share one.

use thiserror::Error;

use crate::container::ContainerMetadata;
use crate::sandbox::SandboxMetadata;

/// Longest part of a name that is accepted. Kubernetes allows 253 bytes for a name and 63 for a namespace; the joined
/// name has to stay usable as one path segment in logs.
const PART_MAX_BYTES: usize = 253;

/// Why a part of a name is refused.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum NameError {
    /// A part that identifies the object is missing.
    #[error("{part} must not be empty")]
    Empty {
        /// The CRI field.
        part: &'static str,
    },
    /// A part contains what would leave the directory or the line it is written to.
    #[error("{part} {value:?} contains a slash, a control character or is too long")]
    Unsafe {
        /// The CRI field.
        part: &'static str,
        /// The refused text.
        value: String,
    },
}

/// Checks one part of a name: not empty, no slash, no control characters, not `.` or `..`, bounded.
pub fn check_part(part: &'static str, value: &str) -> Result<(), NameError> {
    if value.is_empty() {
        return Err(NameError::Empty { part });
    }
    let hostile = value.len() > PART_MAX_BYTES
        || value == "."
        || value == ".."
        || value.chars().any(|character| character == '/' || character.is_control());
    if hostile { Err(NameError::Unsafe { part, value: value.chars().take(PART_MAX_BYTES).collect() }) } else { Ok(()) }
}

/// `k8s_<name>_<namespace>_<uid>_<attempt>`
#[must_use]
pub fn sandbox_name(metadata: &SandboxMetadata) -> String {
    format!("k8s_{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

/// `k8s_POD_<name>_<namespace>_<uid>_<attempt>`
#[must_use]
pub fn infra_name(metadata: &SandboxMetadata) -> String {
    format!("k8s_POD_{}_{}_{}_{}", metadata.name, metadata.namespace, metadata.uid, metadata.attempt)
}

/// `k8s_<container>_<pod>_<namespace>_<uid>_<attempt>`
#[must_use]
pub fn container_name(container: &ContainerMetadata, sandbox: &SandboxMetadata) -> String {
    format!("k8s_{}_{}_{}_{}_{}", container.name, sandbox.name, sandbox.namespace, sandbox.uid, container.attempt)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_that_could_leave_their_directory_are_refused() {
        for (value, ok) in [
            ("web-1", true),
            ("", false),
            ("..", false),
            (".", false),
            ("a/b", false),
            ("a\nb", false),
            ("a\u{7f}", false),
            (&"x".repeat(254), false),
        ] {
            assert_eq!(check_part("name", value).is_ok(), ok, "{value:?}");
        }
    }

    #[test]
    fn names_have_the_inherited_form() {
        let sandbox = SandboxMetadata { name: "web".into(), uid: "u1".into(), namespace: "default".into(), attempt: 2 };
        let container = ContainerMetadata { name: "nginx".into(), attempt: 3 };
        assert_eq!(sandbox_name(&sandbox), "k8s_web_default_u1_2");
        assert_eq!(infra_name(&sandbox), "k8s_POD_web_default_u1_2");
        assert_eq!(container_name(&container, &sandbox), "k8s_nginx_web_default_u1_3");
    }
}
