//! The socket: questions in, answers out.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use prost::Message;
use rustix::process::{Pid, WaitOptions};
use shim_client::frame::{self, Frame};
use shim_client::wire;

use crate::Mode;
use crate::tasks::{Refusal, Tasks};

/// A log that everybody may write into.
#[derive(Clone)]
pub(crate) struct Log(Arc<Mutex<File>>);

impl Log {
    pub(crate) fn say(&self, text: &str) {
        // Nobody may listen any more.
        let _ = writeln!(self.0.lock().expect("unpoisoned"), "{text}");
    }
}

/// Collects what nobody waits for: processes of containers whose parents have ended are ours, and without this their
/// containers would never be empty. Whoever waits for a child of ours takes it before we look twice.
fn reap_orphans() {
    let own = format!("PPid:\t{}", std::process::id());
    let mut seen = HashSet::new();
    loop {
        std::thread::sleep(Duration::from_millis(100));
        let entries = std::fs::read_dir("/proc").expect("a list").flatten();
        let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let dead: HashSet<i32> = pids
            .filter(|pid| {
                std::fs::read_to_string(format!("/proc/{pid}/status"))
                    .is_ok_and(|text| text.lines().any(|line| line == own) && text.contains("State:\tZ"))
            })
            .collect();
        for pid in dead.intersection(&seen) {
            let _ = rustix::process::waitpid(Pid::from_raw(*pid), WaitOptions::NOHANG);
        }
        seen = dead;
    }
}

/// Listens in the working directory, which is the sandbox's bundle, until it is told to end.
pub(crate) fn serve(mode: Mode, bundle: &Path) {
    rustix::process::setsid().expect("a session");
    rustix::process::set_child_subreaper(Some(rustix::process::getpid())).expect("is a subreaper");
    std::thread::spawn(reap_orphans);
    // Waits for somebody to read it, as containerd's shims do.
    let log = Log(Arc::new(Mutex::new(File::options().write(true).open("log").expect("a log"))));
    log.say("the stub listens");
    // A bundle's path may be longer than an address can be.
    let listener = UnixListener::bind("shim.sock").expect("binds");
    let tasks = Arc::new(Tasks::new(mode, bundle, log));
    for stream in listener.incoming() {
        let (tasks, stream) = (Arc::clone(&tasks), stream.expect("a connection"));
        std::thread::spawn(move || converse(mode, &tasks, stream));
    }
}

fn converse(mode: Mode, tasks: &Arc<Tasks>, mut stream: UnixStream) {
    while let Ok(question) = frame::read(&mut stream) {
        let request = wire::Request::decode(question.message.as_slice()).expect("a request");
        assert_eq!(request.service, "containerd.task.v2.Task");
        assert!(
            request.metadata.iter().any(|pair| pair.key == "containerd-namespace-ttrpc" && pair.value == "default")
        );
        let method = request.method.as_str();
        let raw: Option<&[u8]> = match (mode, method) {
            (Mode::HangAll, _) | (Mode::HangCreate, "Create") | (Mode::HangKill, "Kill") => loop {
                std::thread::park();
            },
            (Mode::Garbage, _) => Some(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
            (Mode::Oversize, _) => Some(b"\xff\xff\xff\xff\0\0\0\x01\x02\0"),
            (Mode::NoMessage, _) => Some(b"\0\0\0\x03\0\0\0\x01\x02\0\xff\xff\xff"),
            (Mode::Torn, "Create") => Some(b"\0\0\0\x10\0\0\0\x01\x02\0abc"),
            _ => None,
        };
        if let Some(raw) = raw {
            let _ = stream.write_all(raw);
            return;
        }
        let is_last = method == "Shutdown" && tasks.is_empty();
        let response = match tasks.answer(method, &request.payload) {
            Ok(payload) => wire::Response { status: None, payload },
            Err(Refusal { code, message }) => {
                wire::Response { status: Some(wire::Status { code, message }), payload: Vec::new() }
            }
        };
        let message = response.encode_to_vec();
        let frame = Frame { stream: question.stream, kind: frame::RESPONSE, message };
        let bytes = frame::encode(&frame).expect("fits");
        // A frame of nobody's first: it is to be passed over.
        let stray = frame::encode(&Frame { stream: 9999, ..frame }).expect("fits");
        let _ = stream.write_all(&stray).and_then(|()| stream.write_all(&bytes));
        if is_last {
            let _ = std::fs::remove_file("shim.sock");
            std::process::exit(0);
        }
    }
}
