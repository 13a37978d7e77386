//! Trusted and untrusted pods, as the first releases of CRI-O knew them: two runtimes, and which of them runs a pod.
//!
//! Today a runtime class says that. The old keys stay for configurations that still have them.

/// Annotation of a pod: `false` for one that is not to be trusted. Without it a pod is trusted.
pub const ANNOTATION: &str = "io.kubernetes.cri-o.TrustedSandbox";

/// What `default_workload_trust` says of trusted pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefaultTrust {
    /// They run with the default runtime.
    Trusted,
    /// They run with the untrusted one, unless they are privileged.
    Untrusted,
}

/// Whether a pod that names no handler runs with the runtime for untrusted pods.
///
/// `annotation` is the value of [`ANNOTATION`]; privileged pods include those with a namespace of the node's.
/// Source: CRI-O before 1.14, which does not keep an untrusted pod from being privileged either.
#[must_use]
pub fn is_untrusted(annotation: Option<&str>, default: DefaultTrust, is_privileged: bool) -> bool {
    match (annotation.is_none_or(|value| value == "true"), default) {
        (false, _) => true,
        (true, DefaultTrust::Trusted) => false,
        (true, DefaultTrust::Untrusted) => !is_privileged,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_annotation_comes_first_then_the_default_then_privilege() {
        use DefaultTrust::{Trusted, Untrusted};
        for (annotation, default, is_privileged, expected) in [
            (None, Trusted, false, false),
            (None, Trusted, true, false),
            (None, Untrusted, false, true),
            (None, Untrusted, true, false),
            (Some("true"), Untrusted, false, true),
            (Some("true"), Trusted, false, false),
            (Some("false"), Trusted, false, true),
            (Some("false"), Trusted, true, true),
            (Some("nonsense"), Trusted, false, true),
        ] {
            let found = is_untrusted(annotation, default, is_privileged);
            assert_eq!(found, expected, "{annotation:?} {default:?} privileged {is_privileged}");
        }
    }
}
