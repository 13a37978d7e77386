//! Containers and programs in them.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use prost::Message;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags};
use rustix::process::{Pid, Signal, WaitOptions, waitpid};
use shim_client::wire::{self, ProcessStatus};

use crate::Mode;
use crate::serve::Log;

const NOT_FOUND: i32 = 5;
const INTERNAL: i32 = 13;
/// Time enough to note that a program runs before it is noted that it does not.
const LAG: Duration = Duration::from_millis(20);

/// gRPC's code, and words.
pub(crate) struct Refusal {
    pub(crate) code: i32,
    pub(crate) message: String,
}

fn refused(message: impl ToString) -> Refusal {
    Refusal { code: INTERNAL, message: message.to_string() }
}

fn absent(id: &str) -> Refusal {
    Refusal { code: NOT_FOUND, message: format!("{id}: not found") }
}

type Answer = Result<Vec<u8>, Refusal>;

/// A container's program, or one beside it.
#[derive(Debug, Clone)]
struct Program {
    bundle: PathBuf,
    process: Vec<u8>,
    streams: [String; 3],
    has_terminal: bool,
    status: ProcessStatus,
    pid: Option<i32>,
    exit: u32,
    terminal: Option<Arc<OwnedFd>>,
}

/// Id of a container, and of a program in it or nothing.
type Key = (String, String);

pub(crate) struct Tasks {
    mode: Mode,
    /// Where crun keeps its state, and we our files.
    directory: PathBuf,
    programs: Mutex<HashMap<Key, Program>>,
    /// Exit statuses of those that were deleted, for whoever still waits.
    deleted: Mutex<HashMap<Key, u32>>,
    changed: Condvar,
    log: Log,
}

fn crun(directory: &Path) -> Command {
    let mut command = Command::new("crun");
    command.arg("--root").arg(directory.join("crun"));
    command
}

fn run(command: &mut Command) -> Result<(), Refusal> {
    let output = command.output().map_err(refused)?;
    if output.status.success() { Ok(()) } else { Err(refused(String::from_utf8_lossy(&output.stderr).trim())) }
}

/// What the shim's binary does for a container whose shim has died.
pub(crate) fn clean_up(id: &str, bundle: &Path, sandbox_bundle: &Path) {
    // Plain programs work in their container's bundle, and so do monitors and what stands for them on the node.
    for entry in std::fs::read_dir("/proc").expect("a list").flatten() {
        let works_here = std::fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == bundle);
        let is_other = std::fs::read_link(entry.path().join("exe")).is_ok_and(|exe| {
            let name = exe.file_name().unwrap_or_default().to_string_lossy().into_owned();
            name.starts_with("crio") || name.starts_with("conmon") || name.starts_with("containerd-shim")
        });
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok()).and_then(Pid::from_raw);
        if let Some(pid) = pid.filter(|_| works_here && !is_other) {
            let _ = rustix::process::kill_process(pid, Signal::KILL);
        }
    }
    if sandbox_bundle.join("crun").join(id).exists() {
        let deleted = crun(sandbox_bundle).args(["delete", "--force", id]).status();
        assert!(deleted.expect("runs").success(), "crun does not let go of {id}");
    }
    let _ = std::fs::remove_file(sandbox_bundle.join("shim.sock"));
}

fn open(path: &str, is_input: bool) -> Stdio {
    if path.is_empty() {
        return Stdio::null();
    }
    File::options().read(is_input).write(!is_input).open(path).map_or_else(|_| Stdio::null(), Stdio::from)
}

impl Program {
    fn redirect(&self, command: &mut Command) {
        let [stdin, stdout, stderr] = &self.streams;
        command.stdin(open(stdin, true)).stdout(open(stdout, false)).stderr(open(stderr, false));
    }
}

/// Takes a terminal from crun's socket, and carries it to the fifos.
fn take_terminal(listener: &UnixListener, streams: &[String; 3]) -> io::Result<Arc<OwnedFd>> {
    let (stream, _) = listener.accept()?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    rustix::net::recvmsg(&stream, &mut [IoSliceMut::new(&mut [0; 256])], &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
    let master = ancillary.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
        _ => None,
    });
    let master = master.ok_or_else(|| io::Error::other("no terminal"))?;
    let (mut from, mut into) = (File::from(master.try_clone()?), File::from(master.try_clone()?));
    let (stdin, stdout) = (streams[0].clone(), streams[1].clone());
    std::thread::spawn(move || {
        let mut fifo = File::options().write(true).open(stdout).expect("a fifo");
        let mut buffer = [0; 4096];
        // A terminal whose programs have ended is an error to read.
        while let Ok(count @ 1..) = from.read(&mut buffer) {
            if fifo.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
    std::thread::spawn(move || {
        let mut fifo = File::open(stdin).expect("a fifo");
        let _ = io::copy(&mut fifo, &mut into);
    });
    Ok(Arc::new(master))
}

impl Tasks {
    pub(crate) fn new(mode: Mode, directory: &Path, log: Log) -> Self {
        Self {
            mode,
            directory: directory.to_owned(),
            programs: Mutex::default(),
            deleted: Mutex::default(),
            changed: Condvar::new(),
            log,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.programs.lock().expect("unpoisoned").is_empty()
    }

    pub(crate) fn answer(self: &Arc<Self>, method: &str, payload: &[u8]) -> Answer {
        self.log.say(method);
        fn read<M: Message + Default>(payload: &[u8]) -> Result<M, Refusal> {
            M::decode(payload).map_err(refused)
        }
        let nothing = |()| Vec::new();
        match method {
            "Connect" => {
                let shim_pid = if self.mode == Mode::LyingPid { 1 } else { std::process::id() };
                Ok(wire::ConnectResponse { shim_pid, ..wire::ConnectResponse::default() }.encode_to_vec())
            }
            "Create" => self.create(read(payload)?),
            "Exec" => self.exec(read(payload)?).map(nothing),
            "Start" => {
                let wire::StartRequest { id, exec_id } = read(payload)?;
                let pid = self.start((id, exec_id))?;
                Ok(wire::StartResponse { pid: pid.cast_unsigned() }.encode_to_vec())
            }
            "State" => {
                let wire::StateRequest { id, exec_id } = read(payload)?;
                let program = self.find(&(id.clone(), exec_id))?;
                let mut answer =
                    wire::StateResponse { id, exit_status: program.exit, ..wire::StateResponse::default() };
                answer.set_status(program.status);
                Ok(answer.encode_to_vec())
            }
            "Wait" => {
                let wire::WaitRequest { id, exec_id } = read(payload)?;
                let exit_status = self.wait(&(id, exec_id))?;
                Ok(wire::WaitResponse { exit_status }.encode_to_vec())
            }
            "Kill" => {
                let wire::KillRequest { id, exec_id, signal, .. } = read(payload)?;
                self.kill(&(id, exec_id), signal).map(nothing)
            }
            "Delete" => {
                let wire::DeleteRequest { id, exec_id } = read(payload)?;
                self.delete(&(id, exec_id))
            }
            "Update" => {
                let wire::UpdateTaskRequest { id, resources } = read(payload)?;
                self.update(&id, &resources.ok_or_else(|| refused("no resources"))?.value).map(nothing)
            }
            "ResizePty" => self.resize(read(payload)?).map(nothing),
            "Stats" => {
                let wire::StatsRequest { id } = read(payload)?;
                self.stats(&id)
            }
            "Pause" | "Resume" | "CloseIO" | "Shutdown" => Ok(Vec::new()),
            other => Err(refused(format!("{other} is no method"))),
        }
    }

    fn find(&self, key: &Key) -> Result<Program, Refusal> {
        self.programs.lock().expect("unpoisoned").get(key).cloned().ok_or_else(|| absent(&key.0))
    }

    fn put(&self, key: Key, program: Program) {
        self.programs.lock().expect("unpoisoned").insert(key, program);
        self.changed.notify_all();
    }

    fn create(self: &Arc<Self>, request: wire::CreateTaskRequest) -> Answer {
        if self.mode == Mode::Refuse {
            return Err(refused("no machine to be had"));
        }
        if let Some(options) = request.options {
            let options = wire::Options::decode(options.value.as_slice()).map_err(refused)?;
            self.log.say(&format!("options {}", options.config_path));
        }
        for mount in &request.rootfs {
            self.log.say(&format!("rootfs {} {:?}", mount.r#type, mount.options));
        }
        let key = (request.id.clone(), String::new());
        let bundle = PathBuf::from(&request.bundle);
        let spec = std::fs::read(bundle.join("config.json")).map_err(refused)?;
        let spec: serde_json::Value = serde_json::from_slice(&spec).map_err(refused)?;
        let mut program = Program {
            bundle: bundle.clone(),
            process: spec["process"].to_string().into_bytes(),
            streams: [request.stdin, request.stdout, request.stderr],
            has_terminal: request.terminal,
            status: ProcessStatus::Created,
            pid: None,
            exit: 0,
            terminal: None,
        };
        if self.mode == Mode::Crun {
            let pid_file = self.directory.join(format!("{}.pid", request.id));
            let mut command = crun(&self.directory);
            command.arg("create").arg("--bundle").arg(&bundle).arg("--pid-file").arg(&pid_file);
            self.run_with_streams(command, &mut program, &request.id)?;
            let pid = std::fs::read_to_string(&pid_file).map_err(refused)?.trim().parse().map_err(refused)?;
            program.pid = Some(pid);
            self.follow(key.clone(), pid);
        }
        let pid = program.pid.unwrap_or(0);
        self.put(key, program);
        Ok(wire::CreateTaskResponse { pid: pid.cast_unsigned() }.encode_to_vec())
    }

    /// Runs a command of crun that ends at once, with the program's streams.
    fn run_with_streams(&self, mut command: Command, program: &mut Program, id: &str) -> Result<(), Refusal> {
        let console = std::env::temp_dir().join(format!("stub-{}.sock", std::process::id()));
        let listener = program.has_terminal.then(|| UnixListener::bind(&console)).transpose().map_err(refused)?;
        if listener.is_some() {
            command.arg("--console-socket").arg(&console).stdin(Stdio::null()).stdout(Stdio::null());
        } else {
            program.redirect(&mut command);
        }
        let status = command.arg(id).status().map_err(refused)?;
        if status.success()
            && let Some(listener) = &listener
        {
            program.terminal = Some(take_terminal(listener, &program.streams).map_err(refused)?);
        }
        let _ = std::fs::remove_file(&console);
        if status.success() { Ok(()) } else { Err(refused("crun refuses")) }
    }

    /// Runs a program beside a container's: crun stays with it, collects it, and ends as it ends.
    fn spawn_exec(
        &self,
        mut command: Command,
        program: &mut Program,
        id: &str,
        pid_file: &Path,
    ) -> Result<Child, Refusal> {
        let console = pid_file.with_extension("sock");
        let console = std::env::temp_dir().join(console.file_name().unwrap_or_default());
        let listener = program.has_terminal.then(|| UnixListener::bind(&console)).transpose().map_err(refused)?;
        if listener.is_some() {
            command.arg("--tty").arg("--console-socket").arg(&console).stdin(Stdio::null()).stdout(Stdio::null());
        } else {
            program.redirect(&mut command);
        }
        let mut child = command.arg(id).spawn().map_err(refused)?;
        while !std::fs::read_to_string(pid_file).is_ok_and(|text| !text.trim().is_empty()) {
            if child.try_wait().map_err(refused)?.is_some() {
                let _ = std::fs::remove_file(&console);
                return Err(refused("crun refuses"));
            }
            std::thread::sleep(LAG / 10);
        }
        if let Some(listener) = &listener {
            program.terminal = Some(take_terminal(listener, &program.streams).map_err(refused)?);
        }
        let _ = std::fs::remove_file(&console);
        Ok(child)
    }

    /// Waits for a container's first process, which is ours to collect once crun has ended.
    fn follow(self: &Arc<Self>, key: Key, pid: i32) {
        let tasks = Arc::clone(self);
        std::thread::spawn(move || {
            let pid = Pid::from_raw(pid).expect("a pid");
            let exit = match waitpid(Some(pid), WaitOptions::empty()) {
                Ok(Some((_, status))) => {
                    status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal))
                }
                _ => None,
            };
            tasks.end(&key, exit.unwrap_or(255).cast_unsigned());
        });
    }

    fn end(&self, key: &Key, exit: u32) {
        if let Some(program) = self.programs.lock().expect("unpoisoned").get_mut(key) {
            program.status = ProcessStatus::Stopped;
            program.exit = exit;
        }
        self.changed.notify_all();
    }

    fn exec(&self, request: wire::ExecProcessRequest) -> Result<(), Refusal> {
        let container = self.find(&(request.id.clone(), String::new()))?;
        let program = Program {
            bundle: container.bundle,
            process: request.spec.ok_or_else(|| refused("no process"))?.value,
            streams: [request.stdin, request.stdout, request.stderr],
            has_terminal: request.terminal,
            status: ProcessStatus::Created,
            pid: None,
            exit: 0,
            terminal: None,
        };
        self.put((request.id, request.exec_id), program);
        Ok(())
    }

    fn start(self: &Arc<Self>, key: Key) -> Result<i32, Refusal> {
        let mut program = self.find(&key)?;
        let is_container = key.1.is_empty();
        let pid = if is_container && self.mode == Mode::Crun {
            run(crun(&self.directory).args(["start", &key.0]))?;
            program.pid.unwrap_or(0)
        } else if self.mode == Mode::Crun {
            let process_file = self.directory.join(format!("{}.json", key.1));
            let pid_file = self.directory.join(format!("{}.pid", key.1));
            File::create(&process_file).and_then(|mut file| file.write_all(&program.process)).map_err(refused)?;
            let mut command = crun(&self.directory);
            command.arg("exec").arg("--process").arg(&process_file).arg("--pid-file").arg(&pid_file);
            let mut child = self.spawn_exec(command, &mut program, &key.0, &pid_file)?;
            let pid = std::fs::read_to_string(&pid_file).map_err(refused)?.trim().parse().map_err(refused)?;
            let _ = std::fs::remove_file(process_file).and_then(|()| std::fs::remove_file(pid_file));
            let (tasks, key) = (Arc::clone(self), key.clone());
            std::thread::spawn(move || {
                let exit = child.wait().expect("waits").code().unwrap_or(255);
                // It may have ended before it is known to run.
                std::thread::sleep(LAG);
                tasks.end(&key, exit.cast_unsigned());
            });
            pid
        } else {
            let process: serde_json::Value = serde_json::from_slice(&program.process).map_err(refused)?;
            let words: Vec<&str> =
                process["args"].as_array().into_iter().flatten().filter_map(|word| word.as_str()).collect();
            let (name, rest) = words.split_first().ok_or_else(|| refused("no program"))?;
            let mut command = Command::new(name);
            command.args(rest).current_dir(&program.bundle);
            program.redirect(&mut command);
            let mut child = command.spawn().map_err(refused)?;
            let pid = i32::try_from(child.id()).expect("fits");
            let (tasks, key) = (Arc::clone(self), key.clone());
            std::thread::spawn(move || {
                use std::os::unix::process::ExitStatusExt;
                let status = child.wait().expect("waits");
                let exit = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(255);
                // It may have ended before it is known to run.
                std::thread::sleep(LAG);
                tasks.end(&key, exit.cast_unsigned());
            });
            pid
        };
        program.pid = Some(pid);
        let mut programs = self.programs.lock().expect("unpoisoned");
        let known = programs.get_mut(&key).ok_or_else(|| absent(&key.0))?;
        known.pid = program.pid;
        known.terminal = program.terminal.or_else(|| known.terminal.take());
        if known.status == ProcessStatus::Created {
            known.status = ProcessStatus::Running;
        }
        Ok(pid)
    }

    fn wait(&self, key: &Key) -> Result<u32, Refusal> {
        let mut programs = self.programs.lock().expect("unpoisoned");
        loop {
            match programs.get(key) {
                None => {
                    let exit = self.deleted.lock().expect("unpoisoned").get(key).copied();
                    return exit.ok_or_else(|| absent(&key.0));
                }
                Some(program) if program.status == ProcessStatus::Stopped => return Ok(program.exit),
                Some(_) => programs = self.changed.wait(programs).expect("unpoisoned"),
            }
        }
    }

    fn kill(&self, key: &Key, signal: u32) -> Result<(), Refusal> {
        let program = self.find(key)?;
        if program.status == ProcessStatus::Stopped {
            return Err(absent(&key.0));
        }
        let Some(pid) = program.pid.and_then(Pid::from_raw) else {
            // Created, and no process yet.
            self.end(key, 128 + signal);
            return Ok(());
        };
        let signal = Signal::from_named_raw(signal.cast_signed()).ok_or_else(|| refused("no signal"))?;
        rustix::process::kill_process(pid, signal).map_err(|_| absent(&key.0))
    }

    fn delete(&self, key: &Key) -> Answer {
        let program = self.find(key)?;
        if program.status == ProcessStatus::Running {
            return Err(refused("it runs"));
        }
        if key.1.is_empty() && self.mode == Mode::Crun {
            run(crun(&self.directory).args(["delete", "--force", &key.0]))?;
        }
        self.deleted.lock().expect("unpoisoned").insert(key.clone(), program.exit);
        self.programs.lock().expect("unpoisoned").remove(key);
        self.changed.notify_all();
        Ok(wire::DeleteResponse { pid: 0, exit_status: program.exit }.encode_to_vec())
    }

    fn update(&self, id: &str, resources: &[u8]) -> Result<(), Refusal> {
        self.find(&(id.to_owned(), String::new()))?;
        self.log.say(&format!("resources {}", String::from_utf8_lossy(resources)));
        if self.mode != Mode::Crun {
            return Ok(());
        }
        let file = self.directory.join("resources.json");
        File::create(&file).and_then(|mut file| file.write_all(resources)).map_err(refused)?;
        run(crun(&self.directory).arg("update").arg("--resources").arg(&file).arg(id))
    }

    fn resize(&self, request: wire::ResizePtyRequest) -> Result<(), Refusal> {
        let program = self.find(&(request.id, request.exec_id))?;
        let terminal = program.terminal.ok_or_else(|| refused("no terminal"))?;
        let cells = |number: u32| u16::try_from(number).unwrap_or(u16::MAX);
        let (ws_col, ws_row) = (cells(request.width), cells(request.height));
        let size = rustix::termios::Winsize { ws_row, ws_col, ws_xpixel: 0, ws_ypixel: 0 };
        rustix::termios::tcsetwinsize(&*terminal, size).map_err(refused)
    }

    /// Memory of the first process, and a second of processor time.
    fn stats(&self, id: &str) -> Answer {
        let program = self.find(&(id.to_owned(), String::new()))?;
        let pages = std::fs::read_to_string(format!("/proc/{}/statm", program.pid.unwrap_or(0))).unwrap_or_default();
        let usage = pages.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4096;
        let memory = wire::MemoryStatV2 { usage, anon: usage, ..wire::MemoryStatV2::default() };
        let metrics = wire::MetricsV2 {
            pids: Some(wire::PidsStat { current: 1, limit: 0 }),
            cpu: Some(wire::CpuStatV2 { usage_usec: 1_000_000 }),
            memory: Some(memory),
        };
        let type_url = "io.containerd.cgroups.v2.Metrics".to_owned();
        let stats = Some(wire::Any { type_url, value: metrics.encode_to_vec() });
        Ok(wire::StatsResponse { stats }.encode_to_vec())
    }
}
