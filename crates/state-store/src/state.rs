//! `state.json` in a container's persistent directory: one flat object, the OCI runtime state and CRI-O's own keys.
//!
//! Sandboxes have one too, under their infra container's id; without an infra process its pid is absent.

use std::path::Path;

use domain::container::{ContainerState, Exit, Process};
use domain::time::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{LoadError, SaveError, load, save, wire_time};

const FILE: &str = "state.json";

/// What `state.json` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredState {
    /// The id it is about.
    pub id: String,
    /// The bundle directory.
    pub bundle: String,
    /// When it was created.
    pub created: Timestamp,
    /// Where it is in its life; `None` for a sandbox without infra process that is not stopped.
    pub life: Option<ContainerState>,
    /// The monitor, while it is known.
    pub monitor: Option<Process>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct Wire {
    oci_version: String,
    id: String,
    status: String,
    #[serde(skip_serializing_if = "is_zero")]
    pid: i32,
    bundle: String,
    created: String,
    started: String,
    finished: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    exit_code: Option<i32>,
    #[serde(rename = "oomKilled", skip_serializing_if = "std::ops::Not::not")]
    is_oom_killed: bool,
    #[serde(rename = "seccompKilled", skip_serializing_if = "std::ops::Not::not")]
    is_seccomp_killed: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
    #[serde(skip_serializing_if = "is_zero")]
    init_pid: i32,
    #[serde(skip_serializing_if = "String::is_empty")]
    init_start_time: String,
    checkpointed_time: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    container_monitor_process: Option<WireProcess>,
}

#[derive(Serialize, Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct WireProcess {
    pid: i32,
    start_time: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde's signature
fn is_zero(number: &i32) -> bool {
    *number == 0
}

impl From<&StoredState> for Wire {
    fn from(state: &StoredState) -> Self {
        let mut wire = Self {
            oci_version: "1.0.2".to_owned(),
            id: state.id.clone(),
            bundle: state.bundle.clone(),
            created: wire_time::format(Some(state.created)),
            started: wire_time::format(None),
            finished: wire_time::format(None),
            checkpointed_time: wire_time::format(None),
            container_monitor_process: state
                .monitor
                .map(|process| WireProcess { pid: process.pid, start_time: process.start_time.to_string() }),
            ..Self::default()
        };
        if let Some(init) = state.life.as_ref().and_then(ContainerState::init) {
            wire.pid = init.pid;
            wire.init_pid = init.pid;
            wire.init_start_time = init.start_time.to_string();
        }
        wire.started = wire_time::format(state.life.as_ref().and_then(ContainerState::started));
        match &state.life {
            None | Some(ContainerState::Running { .. }) => "running".clone_into(&mut wire.status),
            Some(ContainerState::Created { .. }) => "created".clone_into(&mut wire.status),
            Some(ContainerState::Exited { exit, .. }) => {
                "stopped".clone_into(&mut wire.status);
                wire.finished = wire_time::format(Some(exit.finished));
                wire.exit_code = Some(exit.code);
                wire.is_oom_killed = exit.is_oom_killed;
                wire.is_seccomp_killed = exit.is_seccomp_killed;
                wire.error.clone_from(&exit.error);
            }
        }
        wire
    }
}

impl Wire {
    fn into_state(self) -> Result<StoredState, String> {
        let created = wire_time::parse(&self.created)?.ok_or("the creation time is missing")?;
        let started = wire_time::parse(&self.started)?;
        let finished = wire_time::parse(&self.finished)?;
        let init = if self.init_pid > 0 {
            let start_time =
                self.init_start_time.parse().map_err(|_| format!("bad initStartTime {:?}", self.init_start_time))?;
            Some(Process { pid: self.init_pid, start_time })
        } else {
            None
        };
        let life = match (self.status.as_str(), init) {
            ("created" | "creating", Some(init)) => Some(ContainerState::Created { init }),
            ("running" | "paused", Some(init)) => {
                Some(ContainerState::Running { init, started: started.unwrap_or(created) })
            }
            ("stopped", _) => Some(ContainerState::Exited {
                started,
                exit: Exit {
                    code: self.exit_code.unwrap_or(-1),
                    finished: finished.unwrap_or(created),
                    is_oom_killed: self.is_oom_killed,
                    is_seccomp_killed: self.is_seccomp_killed,
                    error: self.error,
                },
            }),
            (_, None) => None,
            (status, Some(_)) => return Err(format!("unknown status {status:?}")),
        };
        let monitor = match self.container_monitor_process {
            Some(process) if process.pid > 0 => Some(Process {
                pid: process.pid,
                start_time: process
                    .start_time
                    .parse()
                    .map_err(|_| format!("bad monitor startTime {:?}", process.start_time))?,
            }),
            _ => None,
        };
        Ok(StoredState { id: self.id, bundle: self.bundle, created, life, monitor })
    }
}

/// Reads the state kept in `directory`; `None` when creation never got that far.
pub fn load_state(directory: &Path) -> Result<Option<StoredState>, LoadError> {
    let path = directory.join(FILE);
    let Some(bytes) = load(&path)? else { return Ok(None) };
    let wire: Wire = serde_json::from_slice(&bytes)
        .map_err(|error| LoadError::Invalid { path: path.clone(), reason: error.to_string() })?;
    wire.into_state().map(Some).map_err(|reason| LoadError::Invalid { path, reason })
}

/// Replaces the state kept in `directory`.
pub fn save_state(directory: &Path, state: &StoredState) -> Result<(), SaveError> {
    let path = directory.join(FILE);
    let bytes = serde_json::to_vec(&Wire::from(state))
        .map_err(|error| SaveError { path: path.clone(), source: error.into() })?;
    save(&path, &bytes, 0o644)
}

/// Reads any bytes as a state; for the fuzzer.
pub fn fuzz_state(bytes: &[u8]) {
    if let Ok(wire) = serde_json::from_slice::<Wire>(bytes) {
        let _ = wire.into_state();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(nanos: i64) -> Timestamp {
        Timestamp::from_nanos(nanos)
    }

    #[test]
    fn every_state_survives_the_disk() {
        let init = Process { pid: 42, start_time: 4711 };
        let exit =
            Exit { code: 137, finished: at(9), is_oom_killed: true, is_seccomp_killed: true, error: "why".to_owned() };
        for life in [
            None,
            Some(ContainerState::Created { init }),
            Some(ContainerState::Running { init, started: at(5) }),
            Some(ContainerState::Exited { started: Some(at(5)), exit: exit.clone() }),
            Some(ContainerState::Exited { started: None, exit }),
        ] {
            let state = StoredState {
                id: "abc".to_owned(),
                bundle: "/run/b".to_owned(),
                created: at(1),
                life,
                monitor: Some(Process { pid: 7, start_time: 8 }),
            };
            let directory = tempfile::tempdir().expect("a directory");
            save_state(directory.path(), &state).expect("saves");
            assert_eq!(load_state(directory.path()).expect("loads"), Some(state));
        }
    }

    #[test]
    fn a_missing_record_is_none_and_a_broken_one_names_its_file() {
        let directory = tempfile::tempdir().expect("a directory");
        assert!(load_state(directory.path()).expect("loads").is_none());
        save(&directory.path().join(FILE), b"{", 0o644).expect("saves");
        let error = load_state(directory.path()).expect_err("is broken");
        assert!(error.to_string().contains(FILE), "{error}");
    }

    /// As CRI-O 1.37 writes it.
    #[test]
    fn cri_os_own_record_is_understood() {
        let text = br#"{"ociVersion":"1.0.2","id":"c1","status":"running","pid":1234,"bundle":"/run/x/userdata",
            "annotations":{"io.container.manager":"cri-o"},"created":"2026-03-01T10:00:00.5Z",
            "started":"2026-03-01T10:00:01Z","finished":"0001-01-01T00:00:00Z","initPid":1234,
            "initStartTime":"987654","checkpointedTime":"0001-01-01T00:00:00Z",
            "containerMonitorProcess":{"pid":1230,"startTime":"987650"}}"#;
        let wire: Wire = serde_json::from_slice(text).expect("parses");
        let state = wire.into_state().expect("is valid");
        assert_eq!(state.life.and_then(|life| life.init()), Some(Process { pid: 1234, start_time: 987_654 }));
        assert_eq!(state.monitor, Some(Process { pid: 1230, start_time: 987_650 }));
    }
}
