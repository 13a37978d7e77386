//! Runs a scenario under a real monitor and a real runtime, and collects everything an outsider can see.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::unwrap_used, reason = "a failed step fails the test")]

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{CWD, Mode, OFlags, mkfifoat, openat};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, recv, send,
    shutdown, socket_with,
};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Longest time for anything to happen; the machine may be busy.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const OURS: &str = env!("CARGO_BIN_EXE_crio-monitor");
pub(crate) const CONMON: &str = "/usr/bin/conmon";

/// Both, the one to be equalled last. Only ours where conmon is not installed, which is said.
pub(crate) fn monitors() -> Vec<&'static str> {
    if Path::new(CONMON).exists() {
        vec![OURS, CONMON]
    } else {
        eprintln!("SKIPPED: nothing to compare with, {CONMON} is missing");
        vec![OURS]
    }
}

/// Runtimes that can create a container on this machine.
pub(crate) fn runtimes() -> Vec<PathBuf> {
    let candidates = ["/usr/sbin/runc", "/usr/bin/runc", "/usr/bin/crun"].map(PathBuf::from);
    let works = |runtime: &PathBuf| {
        if !runtime.exists() {
            return false;
        }
        let scenario = Scenario { runtime: Some(runtime.clone()), ..Scenario::running("exit 0") };
        let container = Container::create(&scenario, OURS);
        let is_usable = container.sync == [r#"{"pid": PID}"#];
        if !is_usable {
            eprintln!("SKIPPED: {} cannot create a container here: {:?}", runtime.display(), container.sync);
        }
        is_usable
    };
    let usable: Vec<PathBuf> = candidates.into_iter().filter(works).collect();
    assert!(!usable.is_empty(), "no runtime works");
    usable
}

pub(crate) fn runtime() -> PathBuf {
    ["/usr/sbin/runc", "/usr/bin/runc"]
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
        .expect("runc is installed")
}

pub(crate) fn eventually<T>(what: &str, mut attempt: impl FnMut() -> Option<T>) -> T {
    let give_up = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = attempt() {
            return value;
        }
        assert!(Instant::now() < give_up, "still waiting: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// When the daemon that started the monitor is killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Daemon {
    Lives,
    DiesBeforeStart,
    DiesBeforePid,
}

/// What is done to a created container, in this order.
#[derive(Debug, Clone)]
pub(crate) enum Step {
    Start,
    Sleep(u64),
    AwaitLog(&'static str),
    AwaitEnd,
    Ctl(&'static str),
    Winsz(&'static str),
    RenameLog,
    Attach,
    /// Client, bytes.
    Send(usize, &'static str),
    HalfClose(usize),
    Hangup(usize),
    /// Client, text it must have received by then.
    Expect(usize, &'static str),
    SignalMonitor(Signal),
    /// `runtime kill`.
    Kill(&'static str),
    /// Process document changes, monitor options.
    Exec(Value, Vec<&'static str>),
}

#[derive(Clone)]
pub(crate) struct Scenario {
    pub script: String,
    pub options: Vec<&'static str>,
    pub process: Value,
    pub linux: Value,
    pub has_pid_namespace: bool,
    pub daemon: Daemon,
    pub steps: Vec<Step>,
    pub runtime: Option<PathBuf>,
    /// Extra environment of the monitor.
    pub env: Vec<(&'static str, String)>,
    /// Whether lines that were split are put together before they are compared.
    pub is_joined: bool,
}

impl Scenario {
    pub(crate) fn running(script: &str) -> Self {
        Self {
            script: script.to_owned(),
            options: vec![],
            process: json!({}),
            linux: json!({}),
            has_pid_namespace: true,
            daemon: Daemon::Lives,
            steps: vec![Step::Start, Step::AwaitEnd],
            runtime: None,
            env: vec![],
            is_joined: false,
        }
    }

    pub(crate) fn run(&self, monitor: &str) -> Outcome {
        let mut container = Container::create(self, monitor);
        for step in &self.steps {
            container.step(step);
        }
        container.outcome()
    }

    /// The same seen from outside, whichever monitor it is.
    pub(crate) fn check(&self, name: &str) -> Outcome {
        let mut outcomes: Vec<Outcome> = monitors().into_iter().map(|monitor| self.run(monitor)).collect();
        let ours = outcomes.remove(0);
        if let Some(theirs) = outcomes.pop() {
            assert_eq!(ours, theirs, "{name}: ours and conmon's");
        }
        ours
    }
}

/// Everything that is compared.
#[derive(Debug, PartialEq, Eq, Default)]
pub(crate) struct Outcome {
    pub sync: Vec<String>,
    /// Stream to lines `F text` or `P text`.
    pub log: BTreeMap<String, Vec<String>>,
    pub renamed_log: BTreeMap<String, Vec<String>>,
    /// File to content.
    pub exits: BTreeMap<String, String>,
    pub oom: Vec<String>,
    /// What each client received: stream and bytes; and whether the server closed.
    pub clients: Vec<(BTreeMap<u8, String>, bool)>,
    pub leftovers: Vec<String>,
    pub execs: Vec<ExecOutcome>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct ExecOutcome {
    pub sync: Vec<String>,
    pub exit_code: Option<i32>,
    pub log: BTreeMap<String, Vec<String>>,
}

struct Client {
    fd: OwnedFd,
    received: BTreeMap<u8, Vec<u8>>,
    is_closed: bool,
}

impl Client {
    fn connect(path: &Path) -> Self {
        let fd = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
        connect(&fd, &SocketAddrUnix::new(path).unwrap()).unwrap();
        Self { fd, received: BTreeMap::new(), is_closed: false }
    }

    fn receive(&mut self) {
        let mut packet = [0; 9000];
        while !self.is_closed {
            match recv(&self.fd, &mut packet, RecvFlags::DONTWAIT) {
                Ok((0, _)) | Err(rustix::io::Errno::CONNRESET) => self.is_closed = true,
                Ok((length, _)) => {
                    assert!(length <= 8193, "a packet is a byte and at most 8192 more");
                    self.received.entry(packet[0]).or_default().extend_from_slice(&packet[1..length]);
                }
                Err(rustix::io::Errno::AGAIN) => return,
                Err(error) => panic!("{error}"),
            }
        }
    }
}

/// A container under a monitor, deleted with this value.
pub(crate) struct Container {
    pub root: TempDir,
    pub bundle: PathBuf,
    pub id: String,
    pub monitor: String,
    pub sync: Vec<String>,
    pub log: PathBuf,
    monitor_pid: Option<Pid>,
    runtime: PathBuf,
    is_joined: bool,
    clients: Vec<Client>,
    execs: Vec<ExecOutcome>,
}

fn merge(into: &mut Value, from: &Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from.clone(),
    }
}

pub(crate) fn make_rootfs(rootfs: &Path) {
    fs::create_dir_all(rootfs.join("bin")).unwrap();
    for directory in ["proc", "dev", "sys", "tmp"] {
        fs::create_dir_all(rootfs.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    for applet in ["sh", "cat", "sleep", "head", "tr", "stty", "tail", "seq", "dd"] {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(applet)).unwrap();
    }
}

pub(crate) fn write(path: &Path, bytes: &[u8]) {
    File::create(path).unwrap().write_all(bytes).unwrap();
}

/// Reads the lines of a fifo that the monitor has as a descriptor, until it closes, `lines` are there, or it has ended.
fn read_lines(fifo: &OwnedFd, lines: usize, mut has_ended: impl FnMut() -> bool) -> Vec<String> {
    let mut text = Vec::new();
    let mut has_writer = false;
    eventually("sync pipe", || {
        let mut buffer = [0; 70000];
        let is_last = has_ended();
        match rustix::io::read(fifo, &mut buffer) {
            Ok(0) if has_writer || is_last => return Some(()),
            Ok(0) => {}
            Ok(length) => text.extend_from_slice(&buffer[..length]),
            Err(rustix::io::Errno::AGAIN) => has_writer = true,
            Err(error) => panic!("{error}"),
        }
        has_writer |= !text.is_empty();
        (text.iter().filter(|byte| **byte == b'\n').count() >= lines).then_some(())
    });
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

/// Starts a monitor as a daemon does: descriptor 3 for its messages, 4 for the start byte.
fn launch(
    monitor: &str,
    (directory, name): (&Path, &str),
    working_directory: &Path,
    words: &[OsString],
    env: &[(&str, String)],
    daemon: Daemon,
) -> Launched {
    let (sync, start) = (directory.join(format!("{name}-sync")), directory.join(format!("{name}-start")));
    mkfifoat(CWD, &sync, Mode::from_raw_mode(0o600)).unwrap();
    mkfifoat(CWD, &start, Mode::from_raw_mode(0o600)).unwrap();
    let reader = openat(CWD, &sync, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let starter = openat(CWD, &start, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).unwrap();
    let stderr = File::create(directory.join(format!("{name}-stderr"))).unwrap();
    let child = Command::new("/bin/sh")
        .args(["-c", r#"exec "$0" "$@" 3>"$TEST_SYNC" 4<"$TEST_START""#, monitor])
        .args(words)
        .envs(env.iter().map(|(name, value)| (name, value)))
        .env("TEST_SYNC", &sync)
        .env("TEST_START", &start)
        .env("_OCI_SYNCPIPE", "3")
        .env("_OCI_STARTPIPE", "4")
        .current_dir(working_directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    let mut reader = Some(reader);
    let mut starter = Some(starter);
    match daemon {
        Daemon::Lives => {
            rustix::io::write(starter.as_ref().unwrap(), b"\0").unwrap();
        }
        Daemon::DiesBeforeStart => {
            // Both redirections are open once the shell has become the monitor.
            let pid = child.id();
            eventually("exec of the monitor", || {
                let exe = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
                (exe == fs::canonicalize(monitor).unwrap()).then_some(())
            });
            starter = None;
            reader = None;
        }
        Daemon::DiesBeforePid => {
            eventually("a writer of the sync pipe", || {
                let fd = reader.as_ref()?.as_fd();
                (rustix::io::read(fd, &mut [0; 1]) == Err(rustix::io::Errno::AGAIN)).then_some(())
            });
            reader = None;
            rustix::io::write(starter.as_ref().unwrap(), b"\0").unwrap();
        }
    }
    Launched { child, reader, _starter: starter }
}

struct Launched {
    child: std::process::Child,
    reader: Option<OwnedFd>,
    /// A fifo forgets what was written when nobody has it open.
    _starter: Option<OwnedFd>,
}

static COUNTER: AtomicU32 = AtomicU32::new(0);

impl Container {
    pub(crate) fn create(scenario: &Scenario, monitor: &str) -> Self {
        Self::create_with(scenario, monitor, |_, _| {})
    }

    /// `adjust` may change the words of the command line.
    pub(crate) fn create_with(
        scenario: &Scenario,
        monitor: &str,
        adjust: impl FnOnce(&Path, &mut Vec<OsString>),
    ) -> Self {
        assert!(rustix::process::geteuid().is_root(), "these tests need root");
        let root = TempDir::new().unwrap();
        let number = COUNTER.fetch_add(1, Ordering::Relaxed);
        let id = format!("monitor-test-{}-{number}", std::process::id());
        let bundle = root.path().join("bundle");
        for directory in ["bundle", "exits", "persist", "sock"] {
            fs::create_dir(root.path().join(directory)).unwrap();
        }
        make_rootfs(&bundle.join("rootfs"));
        let runtime = scenario.runtime.clone().unwrap_or_else(runtime);
        write(&bundle.join("config.json"), &serde_json::to_vec(&Self::config(scenario, &id)).unwrap());
        let log = root.path().join("log");
        let path = |name: &str| root.path().join(name).into_os_string();
        let mut words: Vec<OsString> = vec![
            "-b".into(),
            bundle.clone().into(),
            "-c".into(),
            id.clone().into(),
            "-u".into(),
            id.clone().into(),
            "-n".into(),
            "name".into(),
            "-r".into(),
            runtime.clone().into(),
            "--runtime-arg".into(),
            format!("--root={}", root.path().join("runtime").display()).into(),
            "-p".into(),
            path("bundle/pidfile"),
            "-P".into(),
            path("bundle/conmon-pidfile"),
            "-l".into(),
            log.clone().into(),
            "--exit-dir".into(),
            path("exits"),
            "--persist-dir".into(),
            path("persist"),
            "--socket-dir-path".into(),
            path("sock"),
            "--log-level".into(),
            "debug".into(),
        ];
        words.extend(scenario.options.iter().map(OsString::from));
        adjust(root.path(), &mut words);
        let mut launched = launch(monitor, (root.path(), "create"), &bundle, &words, &scenario.env, scenario.daemon);
        assert!(launched.child.wait().unwrap().success(), "{}", fs::read_to_string(path("create-stderr")).unwrap());
        let monitor_pid =
            fs::read_to_string(bundle.join("conmon-pidfile")).unwrap().parse().ok().and_then(Pid::from_raw);
        let sync = launched.reader.map(|reader| read_lines(&reader, 1, || false)).unwrap_or_default();
        let pidfile = bundle.join("pidfile");
        let sync = sync.into_iter().map(|line| {
            let pid = fs::read_to_string(&pidfile).unwrap_or_else(|_| "no pid".into());
            line.replace(&pid, "PID").replace(&id, "ID").replace(&root.path().display().to_string(), "ROOT")
        });
        let sync: Vec<String> = sync.map(|line| mask_times(&line)).collect();
        if scenario.daemon != Daemon::Lives {
            eventually("pidfile", || fs::read_to_string(&pidfile).ok().filter(|text| !text.is_empty()));
            eventually("created", || {
                let state: Value =
                    serde_json::from_slice(&Self::command(&runtime, root.path(), &["state", &id]).stdout).ok()?;
                (state["status"] == "created").then_some(())
            });
        }
        Self {
            bundle,
            id,
            monitor: monitor.to_owned(),
            sync,
            log,
            monitor_pid,
            runtime,
            is_joined: scenario.is_joined,
            clients: vec![],
            execs: vec![],
            root,
        }
    }

    fn config(scenario: &Scenario, id: &str) -> Value {
        let mut namespaces = vec![json!({"type": "mount"}), json!({"type": "ipc"}), json!({"type": "network"})];
        if scenario.has_pid_namespace {
            namespaces.push(json!({"type": "pid"}));
        }
        let mut process = json!({
            "terminal": false, "user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"],
            "args": ["sh", "-c", scenario.script],
        });
        merge(&mut process, &scenario.process);
        let mut linux = json!({"namespaces": namespaces, "cgroupsPath": format!("/{id}"), "resources": {}});
        merge(&mut linux, &scenario.linux);
        json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": process, "linux": linux,
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["newinstance", "ptmxmode=0666"]},
            ],
        })
    }

    fn command(runtime: &Path, root: &Path, words: &[&str]) -> Output {
        let state = format!("--root={}", root.join("runtime").display());
        Command::new(runtime).arg(state).args(words).stdin(Stdio::null()).output().unwrap()
    }

    pub(crate) fn run_runtime(&self, words: &[&str]) -> Output {
        Self::command(&self.runtime, self.root.path(), words)
    }

    pub(crate) fn monitor_pid(&self) -> Pid {
        self.monitor_pid.expect("the monitor has a pidfile")
    }

    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Start => {
                let output = self.run_runtime(&["start", &self.id]);
                assert!(output.status.success(), "{output:?}");
            }
            Step::Sleep(milliseconds) => std::thread::sleep(Duration::from_millis(*milliseconds)),
            Step::AwaitLog(text) => {
                eventually(text, || fs::read_to_string(&self.log).ok()?.contains(text).then_some(()))
            }
            Step::AwaitEnd => self.await_end(),
            Step::Ctl(line) => self.write_fifo("ctl", line),
            Step::Winsz(line) => self.write_fifo("winsz", line),
            Step::RenameLog => {
                rustix::fs::renameat(CWD, &self.log, CWD, self.root.path().join("log.old")).unwrap();
            }
            Step::Attach => {
                let path = self.root.path().join("sock").join(&self.id).join("attach");
                self.clients.push(Client::connect(&path));
            }
            Step::Send(client, text) => {
                send(&self.clients[*client].fd, text.as_bytes(), SendFlags::empty()).unwrap();
            }
            Step::HalfClose(client) => shutdown(&self.clients[*client].fd, Shutdown::Write).unwrap(),
            Step::Hangup(client) => {
                shutdown(&self.clients[*client].fd, Shutdown::Both).unwrap();
            }
            Step::Expect(client, text) => {
                let client = &mut self.clients[*client];
                eventually(text, || {
                    client.receive();
                    let all: Vec<u8> = client.received.values().flatten().copied().collect();
                    String::from_utf8_lossy(&all).contains(text).then_some(())
                });
            }
            Step::SignalMonitor(signal) => kill_process(self.monitor_pid(), *signal).unwrap(),
            Step::Kill(signal) => {
                assert!(self.run_runtime(&["kill", &self.id, signal]).status.success());
            }
            Step::Exec(process, options) => self.exec(process, options),
        }
    }

    fn write_fifo(&self, name: &str, line: &str) {
        let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo = openat(CWD, self.bundle.join(name), flags, Mode::empty()).unwrap();
        rustix::io::write(&fifo, line.as_bytes()).unwrap();
    }

    pub(crate) fn await_end(&mut self) {
        let Some(pid) = self.monitor_pid else { return };
        // Whoever adopted it may be slow to collect it.
        eventually("end of the monitor", || match fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())) {
            Ok(stat) => stat.contains(") Z ").then_some(()),
            Err(_) => Some(()),
        });
        self.monitor_pid = None;
    }

    pub(crate) fn has_ended(&self) -> bool {
        let path = format!("/proc/{}/stat", self.monitor_pid().as_raw_nonzero());
        fs::read_to_string(path).map_or(true, |stat| stat.contains(") Z "))
    }

    fn exec(&mut self, process: &Value, options: &[&str]) {
        let name = format!("exec{}", self.execs.len());
        let directory = self.root.path().join(&name);
        fs::create_dir(&directory).unwrap();
        let mut document = json!({"user": {"uid": 0, "gid": 0}, "cwd": "/", "env": ["PATH=/bin"], "args": []});
        merge(&mut document, process);
        write(&directory.join("process.json"), &serde_json::to_vec(&document).unwrap());
        let log = directory.join("log");
        let mut words: Vec<OsString> =
            vec!["-c".into(), self.id.clone().into(), "-n".into(), "name".into(), "-r".into()];
        words.extend([
            self.runtime.clone().into(),
            "-p".into(),
            directory.join("pidfile").into(),
            "-e".into(),
            "-l".into(),
        ]);
        words.extend([log.clone().into(), "--socket-dir-path".into(), directory.clone().into(), "--sync".into()]);
        words.extend(["--exec-process-spec".into(), directory.join("process.json").into(), "--runtime-arg".into()]);
        words.push(format!("--root={}", self.root.path().join("runtime").display()).into());
        words.extend(options.iter().map(OsString::from));
        let mut launched = launch(&self.monitor, (&directory, "monitor"), &directory, &words, &[], Daemon::Lives);
        let child = &mut launched.child;
        let sync = read_lines(launched.reader.as_ref().unwrap(), usize::MAX, || child.try_wait().unwrap().is_some());
        let status = launched.child.wait().unwrap();
        let sync = sync.into_iter().map(|line| {
            let pid = fs::read_to_string(directory.join("pidfile")).unwrap_or_else(|_| "no pid".into());
            mask_times(&line.replace(&format!("{pid}}}"), "PID}").replace(&self.id, "ID"))
        });
        let outcome =
            ExecOutcome { sync: sync.collect(), exit_code: status.code(), log: read_log(&log, self.is_joined) };
        self.execs.push(outcome);
    }

    pub(crate) fn outcome(mut self) -> Outcome {
        self.await_end();
        let path = |name: &str| self.root.path().join(name);
        let mut exits = BTreeMap::new();
        for directory in ["exits", "persist"] {
            for entry in fs::read_dir(path(directory)).unwrap() {
                let entry = entry.unwrap();
                let name = format!("{directory}/{}", entry.file_name().to_string_lossy().replace(&self.id, "ID"));
                exits.insert(name, fs::read_to_string(entry.path()).unwrap());
            }
        }
        let oom =
            ["persist/oom", "bundle/oom"].into_iter().filter(|name| path(name).exists()).map(str::to_owned).collect();
        exits.remove("persist/oom");
        let leftovers =
            fs::read_dir(&self.bundle).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        // conmon leaves the socket of a container that was not created.
        let mut leftovers: Vec<String> = leftovers.filter(|name| name != "oom" && name != "attach").collect();
        assert!(self.monitor == CONMON || !self.bundle.join("attach").exists());
        leftovers.sort();
        let clients = self.clients.iter_mut().map(|client| {
            client.receive();
            let text = |bytes: &Vec<u8>| String::from_utf8_lossy(bytes).into_owned();
            (client.received.iter().map(|(stream, bytes)| (*stream, text(bytes))).collect(), client.is_closed)
        });
        Outcome {
            clients: clients.collect(),
            log: read_log(&self.log, self.is_joined),
            renamed_log: read_log(&path("log.old"), self.is_joined),
            exits,
            oom,
            leftovers,
            sync: std::mem::take(&mut self.sync),
            execs: std::mem::take(&mut self.execs),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.run_runtime(&["delete", "--force", &self.id]);
        if let Some(pid) = self.monitor_pid {
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

/// Replaces what looks like RFC 3339 in a runtime's message.
fn mask_times(line: &str) -> String {
    match (line.find("time=\\\""), line.find("Z\\\"")) {
        (Some(from), Some(to)) if from < to => format!("{}TIME{}", &line[..from + 7], &line[to + 1..]),
        _ => line.to_owned(),
    }
}

/// The lines of a log by stream, times checked and left out.
pub(crate) fn read_log(path: &Path, is_joined: bool) -> BTreeMap<String, Vec<String>> {
    let mut streams: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let mut text = String::new();
    if let Ok(mut file) = File::open(path) {
        file.read_to_string(&mut text).unwrap();
    }
    for line in text.split_terminator('\n') {
        let [time, stream, tag, rest]: [&str; 4] = line.splitn(4, ' ').collect::<Vec<_>>().try_into().expect(line);
        assert_eq!((time.len(), &time[10..11], &time[19..20]), (35, "T", "."), "{time}");
        assert!(tag == "F" || tag == "P", "{line}");
        let lines = streams.entry(stream.to_owned()).or_default();
        match lines.last_mut() {
            Some(last) if is_joined && last.starts_with('P') => {
                last.replace_range(0..1, tag);
                last.push_str(rest);
            }
            _ => lines.push(format!("{tag} {rest}")),
        }
    }
    streams
}
