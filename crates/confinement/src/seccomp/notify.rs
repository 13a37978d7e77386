//! Filters that hand refused calls to a listener, and the message by which a runtime hands over that listener.

use std::path::Path;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction};
use serde::Deserialize;

/// Longest message: the container's state with all its annotations, which are a pod's and may be long.
pub const PROCESS_STATE_MAX_BYTES: usize = 1 << 20;
/// How runtimes name the listener among the descriptors they send. Source: OCI runtime specification, `seccompFdName`.
const LISTENER_NAME: &str = "seccompFd";

/// A filter whose refusals go to a listener, and whether its default action is one: that cannot be handed over, since
/// the runtime itself would wait for answers before anybody listens.
#[derive(Debug, Clone, PartialEq)]
pub struct Notifying {
    /// The filter.
    pub filter: LinuxSeccomp,
    /// The default action refuses, and what it refuses is not seen.
    pub is_default_unseen: bool,
}

const fn refuses(action: LinuxSeccompAction) -> bool {
    matches!(
        action,
        LinuxSeccompAction::ScmpActErrno
            | LinuxSeccompAction::ScmpActKill
            | LinuxSeccompAction::ScmpActKillProcess
            | LinuxSeccompAction::ScmpActKillThread
    )
}

/// The filter with every rule that refuses changed into one that asks the listener at `socket`. Source: CRI-O.
#[must_use]
pub fn notifying(filter: &LinuxSeccomp, socket: &Path) -> Notifying {
    let mut changed = filter.clone();
    if let Some(mut calls) = filter.syscalls().clone() {
        for call in calls.iter_mut().filter(|call| refuses(call.action())) {
            call.set_action(LinuxSeccompAction::ScmpActNotify);
            call.set_errno_ret(None);
        }
        changed.set_syscalls(Some(calls));
    }
    changed.set_listener_path(Some(socket.to_owned()));
    Notifying { filter: changed, is_default_unseen: refuses(filter.default_action()) }
}

/// Why a message hands over no listener.
#[derive(Debug, thiserror::Error)]
pub enum ProcessStateError {
    /// Not JSON, or not of that shape. Cut-off JSON is told apart.
    #[error("decode the container process state")]
    Decode(#[source] serde_json::Error),
    /// It names no listener, or several.
    #[error("the container process state names {count} seccomp listeners")]
    Listeners {
        /// How many.
        count: usize,
    },
}

impl ProcessStateError {
    /// Whether more bytes could make it a message.
    #[must_use]
    pub fn is_incomplete(&self) -> bool {
        matches!(self, Self::Decode(error) if error.is_eof())
    }
}

/// What a runtime says when it hands over descriptors: the OCI runtime specification's container process state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProcessState {
    /// Position of the seccomp listener among the descriptors.
    pub listener: usize,
    /// Whose it is.
    pub container: String,
}

#[derive(Deserialize)]
struct Wire {
    #[serde(default)]
    fds: Vec<String>,
    state: WireState,
}

#[derive(Deserialize)]
struct WireState {
    id: String,
}

/// Reads such a message.
pub fn parse_process_state(bytes: &[u8]) -> Result<ProcessState, ProcessStateError> {
    let wire: Wire = serde_json::from_slice(bytes).map_err(ProcessStateError::Decode)?;
    let mut listeners = wire.fds.iter().enumerate().filter(|(_, name)| *name == LISTENER_NAME);
    match (listeners.next(), listeners.count()) {
        (Some((listener, _)), 0) => Ok(ProcessState { listener, container: wire.state.id }),
        (None, _) => Err(ProcessStateError::Listeners { count: 0 }),
        (Some(_), more) => Err(ProcessStateError::Listeners { count: more + 1 }),
    }
}

/// Any bytes are a message or an error, and what is read names one of its descriptors; for the fuzzer.
pub fn fuzz_process_state(bytes: &[u8]) {
    if let Ok(state) = parse_process_state(bytes) {
        assert!(state.listener < bytes.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_become_questions_and_the_rest_stays() {
        let profile: LinuxSeccomp = serde_json::from_str(
            r#"{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38, "syscalls": [
                {"names": ["read"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["mkdir"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1},
                {"names": ["swapon"], "action": "SCMP_ACT_KILL"},
                {"names": ["swapoff"], "action": "SCMP_ACT_KILL_PROCESS"},
                {"names": ["reboot"], "action": "SCMP_ACT_KILL_THREAD"},
                {"names": ["chroot"], "action": "SCMP_ACT_LOG"}]}"#,
        )
        .expect("a profile");
        let changed = notifying(&profile, Path::new("/run/crio/seccomp/abc"));
        assert!(changed.is_default_unseen);
        let value = serde_json::to_value(&changed.filter).expect("JSON");
        assert_eq!(value["listenerPath"], "/run/crio/seccomp/abc");
        assert_eq!((&value["defaultAction"], &value["defaultErrnoRet"]), (&"SCMP_ACT_ERRNO".into(), &38.into()));
        let actions: Vec<&str> = value["syscalls"]
            .as_array()
            .expect("rules")
            .iter()
            .map(|rule| rule["action"].as_str().expect("text"))
            .collect();
        let notify = "SCMP_ACT_NOTIFY";
        assert_eq!(actions, ["SCMP_ACT_ALLOW", notify, notify, notify, notify, "SCMP_ACT_LOG"]);
        assert!(value["syscalls"][1].get("errnoRet").is_none());
        let open: LinuxSeccomp = serde_json::from_str(r#"{"defaultAction": "SCMP_ACT_ALLOW"}"#).expect("a profile");
        assert!(!notifying(&open, Path::new("/x")).is_default_unseen);
    }

    #[test]
    fn a_message_hands_over_one_listener() {
        for (text, expected) in [
            (
                r#"{"ociVersion":"0.2.0","fds":["seccompFd"],"pid":7,"state":{"id":"abc","status":"creating"}}"#,
                Ok((0, "abc")),
            ),
            (r#"{"fds":["other","seccompFd"],"state":{"id":"abc","annotations":{"a":"b"}}}"#, Ok((1, "abc"))),
            (r#"{"fds":[],"state":{"id":"abc"}}"#, Err(false)),
            (r#"{"fds":["seccompFd","seccompFd"],"state":{"id":"abc"}}"#, Err(false)),
            (r#"{"fds":["seccompFd"]}"#, Err(false)),
            (r#"{"fds":["seccompFd"],"sta"#, Err(true)),
            ("", Err(true)),
            ("[]", Err(false)),
        ] {
            let parsed = parse_process_state(text.as_bytes());
            let parsed = match &parsed {
                Ok(state) => Ok((state.listener, state.container.as_str())),
                Err(error) => Err(error.is_incomplete()),
            };
            assert_eq!(parsed, expected, "{text}");
        }
    }
}
