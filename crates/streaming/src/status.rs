//! How a session ended, as clients of Kubernetes read it from the error stream.

use serde_json::json;

use crate::remote_command::Version;

/// How a session ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// As it should.
    Success,
    /// The program failed.
    ExitCode(i32),
    /// There was no session, or it broke.
    Failure(String),
}

impl Outcome {
    /// What goes to the error stream: a `metav1.Status` since version 4, before that the text of a failure.
    ///
    /// Source: k8s.io/apimachinery, `metav1.Status`; the reason `NonZeroExitCode` is the kubelet's.
    pub(crate) fn message(&self, version: Version) -> Vec<u8> {
        let text = match self {
            Self::Success => String::new(),
            Self::ExitCode(code) => format!("command terminated with non-zero exit code: exit status {code}"),
            Self::Failure(text) => format!("Internal error occurred: {text}"),
        };
        if version < Version::V4 {
            return text.into_bytes();
        }
        let status = match self {
            Self::Success => json!({"metadata": {}, "status": "Success"}),
            Self::ExitCode(code) => json!({
                "metadata": {},
                "status": "Failure",
                "message": text,
                "reason": "NonZeroExitCode",
                "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
            }),
            Self::Failure(cause) => json!({
                "metadata": {},
                "status": "Failure",
                "message": text,
                "reason": "InternalError",
                "details": {"causes": [{"message": cause}]},
                "code": 500,
            }),
        };
        status.to_string().into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn outcomes_are_told_as_the_version_wants() {
        for (outcome, version, expected) in [
            (Outcome::Success, Version::V4, r#"{"metadata":{},"status":"Success"}"#),
            (Outcome::Success, Version::V3, ""),
            (Outcome::Failure("x".into()), Version::V1, "Internal error occurred: x"),
        ] {
            assert_eq!(String::from_utf8(outcome.message(version)).expect("is text"), expected);
        }
        let status: serde_json::Value =
            serde_json::from_slice(&Outcome::ExitCode(3).message(Version::V5)).expect("is JSON");
        assert_eq!(status["reason"], "NonZeroExitCode");
        assert_eq!(status["details"]["causes"][0], json!({"reason": "ExitCode", "message": "3"}));
    }
}
