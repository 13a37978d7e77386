//! A shim's service Task, question by question, for one container.

use std::time::Duration;

use prost::Message;

use crate::address::Version;
use crate::client::{CallError, Client};
use crate::record::Record;
use crate::wire;

/// What waits for nothing but a lock or the guest's agent.
pub(crate) const QUICK: Duration = Duration::from_secs(10);
/// A program that starts may have its file system mounted first. Less than the daemon waits for our verb.
const START_LIMIT: Duration = Duration::from_secs(50);
/// Unmounting may wait for a disk.
const DELETE_LIMIT: Duration = Duration::from_secs(15);
/// Statistics are asked for often, and for many containers in a row.
const STATS_LIMIT: Duration = Duration::from_secs(1);

/// JSON in an Any. Source: containerd's type names.
const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const RESOURCES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";
const OPTIONS_TYPE: &str = "runtimeoptions.v1.Options";

/// The fifos of a program, empty where it has none.
#[derive(Debug, Clone, Default)]
pub(crate) struct FifoNames {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

/// A connection, for one container or, with an exec id, one program in it.
#[derive(Debug)]
pub(crate) struct Task {
    client: Client,
    service: &'static str,
    id: String,
    exec_id: String,
}

impl Task {
    pub(crate) fn connect(record: &Record) -> Result<Self, CallError> {
        let address = record.address().ok_or(CallError::Gone)?;
        let service = match record.version {
            Version::V2 => "containerd.task.v2.Task",
            Version::V3 => "containerd.task.v3.Task",
        };
        Ok(Self { client: Client::connect(&address)?, service, id: record.id.clone(), exec_id: String::new() })
    }

    /// The same questions about a program in the container.
    pub(crate) fn of_exec(mut self, exec_id: &str) -> Self {
        exec_id.clone_into(&mut self.exec_id);
        self
    }

    pub(crate) fn peer(&self) -> Option<i32> {
        self.client.peer()
    }

    fn call<A: Message + Default>(
        &mut self,
        method: &'static str,
        question: &impl Message,
        limit: Option<Duration>,
    ) -> Result<A, CallError> {
        self.client.call(self.service, method, question, limit)
    }

    fn tell(&mut self, method: &'static str, question: &impl Message, limit: Duration) -> Result<(), CallError> {
        self.call(method, question, Some(limit)).map(|wire::Empty {}| ())
    }

    /// The shim's own process, by its account.
    pub(crate) fn shim_pid(&mut self) -> Result<u32, CallError> {
        let question = wire::ConnectRequest { id: self.id.clone() };
        self.call("Connect", &question, Some(QUICK)).map(|answer: wire::ConnectResponse| answer.shim_pid)
    }

    /// Creates the container; its program's pid. As long as whoever asked us has patience.
    pub(crate) fn create(
        &mut self,
        record: &Record,
        fifos: &FifoNames,
        has_terminal: bool,
        config: Option<&str>,
        rootfs: Vec<wire::Mount>,
    ) -> Result<u32, CallError> {
        let options = config.map(|path| wire::Any {
            type_url: OPTIONS_TYPE.to_owned(),
            value: wire::Options { config_path: path.to_owned(), ..wire::Options::default() }.encode_to_vec(),
        });
        let question = wire::CreateTaskRequest {
            id: self.id.clone(),
            bundle: record.bundle.display().to_string(),
            rootfs,
            terminal: has_terminal,
            stdin: fifos.stdin.clone(),
            stdout: fifos.stdout.clone(),
            stderr: fifos.stderr.clone(),
            options,
        };
        self.call("Create", &question, None).map(|answer: wire::CreateTaskResponse| answer.pid)
    }

    /// Adds a program to the container: an OCI process object, as JSON.
    pub(crate) fn exec(&mut self, process: Vec<u8>, fifos: &FifoNames, has_terminal: bool) -> Result<(), CallError> {
        let question = wire::ExecProcessRequest {
            id: self.id.clone(),
            exec_id: self.exec_id.clone(),
            terminal: has_terminal,
            stdin: fifos.stdin.clone(),
            stdout: fifos.stdout.clone(),
            stderr: fifos.stderr.clone(),
            spec: Some(wire::Any { type_url: PROCESS_TYPE.to_owned(), value: process }),
        };
        self.tell("Exec", &question, START_LIMIT)
    }

    pub(crate) fn start(&mut self) -> Result<(), CallError> {
        let question = wire::StartRequest { id: self.id.clone(), exec_id: self.exec_id.clone() };
        self.call("Start", &question, Some(START_LIMIT)).map(|_: wire::StartResponse| ())
    }

    /// Waits for the program's end; its exit status.
    pub(crate) fn wait(&mut self, limit: Option<Duration>) -> Result<u32, CallError> {
        let question = wire::WaitRequest { id: self.id.clone(), exec_id: self.exec_id.clone() };
        self.call("Wait", &question, limit).map(|answer: wire::WaitResponse| answer.exit_status)
    }

    pub(crate) fn state(&mut self) -> Result<wire::ProcessStatus, CallError> {
        let question = wire::StateRequest { id: self.id.clone(), exec_id: self.exec_id.clone() };
        self.call("State", &question, Some(QUICK)).map(|answer: wire::StateResponse| answer.status())
    }

    pub(crate) fn kill(&mut self, signal: u32, is_for_all: bool) -> Result<(), CallError> {
        let (id, exec_id) = (self.id.clone(), self.exec_id.clone());
        self.tell("Kill", &wire::KillRequest { id, exec_id, signal, all: is_for_all }, QUICK)
    }

    pub(crate) fn delete(&mut self) -> Result<(), CallError> {
        let question = wire::DeleteRequest { id: self.id.clone(), exec_id: self.exec_id.clone() };
        self.call("Delete", &question, Some(DELETE_LIMIT)).map(|_: wire::DeleteResponse| ())
    }

    /// New limits: an OCI `linux.resources` object, as JSON.
    pub(crate) fn update(&mut self, resources: Vec<u8>) -> Result<(), CallError> {
        let resources = Some(wire::Any { type_url: RESOURCES_TYPE.to_owned(), value: resources });
        self.tell("Update", &wire::UpdateTaskRequest { id: self.id.clone(), resources }, START_LIMIT)
    }

    pub(crate) fn pause(&mut self) -> Result<(), CallError> {
        self.tell("Pause", &wire::PauseRequest { id: self.id.clone() }, QUICK)
    }

    pub(crate) fn resume(&mut self) -> Result<(), CallError> {
        self.tell("Resume", &wire::ResumeRequest { id: self.id.clone() }, QUICK)
    }

    pub(crate) fn resize(&mut self, width: u16, height: u16) -> Result<(), CallError> {
        let (id, exec_id) = (self.id.clone(), self.exec_id.clone());
        let question = wire::ResizePtyRequest { id, exec_id, width: width.into(), height: height.into() };
        self.tell("ResizePty", &question, QUICK)
    }

    /// The program's input has ended.
    pub(crate) fn close_stdin(&mut self) -> Result<(), CallError> {
        let (id, exec_id) = (self.id.clone(), self.exec_id.clone());
        self.tell("CloseIO", &wire::CloseIoRequest { id, exec_id, stdin: true }, QUICK)
    }

    pub(crate) fn stats(&mut self) -> Result<Option<wire::Any>, CallError> {
        let question = wire::StatsRequest { id: self.id.clone() };
        self.call("Stats", &question, Some(STATS_LIMIT)).map(|answer: wire::StatsResponse| answer.stats)
    }

    /// Lets the shim end, if it keeps nothing else. Many end before they have answered.
    pub(crate) fn shutdown(&mut self) -> Result<(), CallError> {
        match self.tell("Shutdown", &wire::ShutdownRequest { id: self.id.clone(), now: false }, QUICK) {
            Err(CallError::Gone) => Ok(()),
            result => result,
        }
    }
}
