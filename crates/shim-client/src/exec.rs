//! `exec`: a program beside the container's own, for as long as we run.
//!
//! We are two processes: one that carries the program's streams and is the program to whoever started us, so that it
//! stands in the pid file; and one that waits for the first, and kills the program in the guest if the first is killed.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use durable::Durability;
use rustix::process::{Pid, WaitOptions, waitpid};
use sys::supervise::{Forked, fork_single_threaded};

use crate::create::begin;
use crate::options::Settings;
use crate::record::fifo_directory;
use crate::relay::{Program, Relay};
use crate::stdio::{self, Fifos, Streams};
use crate::terminal;
use crate::verbs::{VerbError, find};

/// How long a killed program may take to end.
const KILLED_LIMIT: Duration = Duration::from_secs(5);
const SIGKILL: u32 = 9;
/// What is said of a program whose end nobody saw.
const UNSEEN: u8 = 255;

pub(crate) fn exec(
    settings: &Settings,
    id: &str,
    process: &Path,
    pid_file: &Path,
    console_socket: Option<&Path>,
) -> Result<u8, VerbError> {
    let record = find(&settings.root, id)?;
    let process = std::fs::read(process).map_err(|source| VerbError::File {
        action: "read",
        path: process.to_owned(),
        source,
    })?;
    let preparing = |action| move |source: io::Error| VerbError::Prepare { action, source };
    let side = console_socket.map(terminal::open).transpose().map_err(preparing("make a terminal"))?;
    let streams = Streams::given(side.is_some()).map_err(preparing("look at standard input"))?;
    let exec_id = draw_id();
    let directory = fifo_directory(&settings.root, id);
    let fifos = Fifos::make(&directory, &exec_id, streams).map_err(|source| VerbError::File {
        action: "make fifos in",
        path: directory.clone(),
        source,
    })?;
    let program = Program { record: Arc::new(record), exec_id };
    let added = program.connect().and_then(|mut task| task.exec(process, &fifos.names, side.is_some()));
    if let Err(error) = added {
        stdio::remove(&directory, &program.exec_id);
        return Err(error.into());
    }
    let carrier = match fork_single_threaded() {
        Ok(Forked::Parent(pid)) => Ok(pid),
        Ok(Forked::Child) => {
            let code = carry(&program, fifos, side, pid_file).unwrap_or_else(|error| {
                eprintln!("{}", crate::chain(&error));
                1
            });
            std::process::exit(code.into());
        }
        Err(error) => Err(preparing("fork")(error)),
    };
    drop((fifos, side));
    let code = carrier.and_then(|carrier| wait_for(carrier, &program).map_err(preparing("wait for our own process")));
    // The shim lets go of it with the container at the latest.
    let _ = program.connect().and_then(|mut task| task.delete());
    stdio::remove(&directory, &program.exec_id);
    code
}

/// Unique among the programs of a container: two of our processes of one pid are not of one moment.
fn draw_id() -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    format!("exec-{}-{}", std::process::id(), now.as_nanos())
}

/// Starts the program and stays until it has ended; its exit code.
fn carry(program: &Program, fifos: Fifos, side: Option<OwnedFd>, pid_file: &Path) -> Result<u8, VerbError> {
    let preparing = |action| move |source: io::Error| VerbError::Prepare { action, source };
    let signals = begin(side.as_ref()).map_err(preparing("stand for the program"))?;
    let mut task = program.connect()?;
    task.start()?;
    let own = std::process::id().to_string();
    durable::replace(pid_file, own.as_bytes(), 0o644, Durability::Volatile).map_err(|error| VerbError::File {
        action: "write",
        path: pid_file.to_owned(),
        source: io::Error::other(error),
    })?;
    let relay = Relay::begin(program, fifos, side, signals).map_err(preparing("carry streams"))?;
    let code = task.wait(None).map_or(UNSEEN, |status| u8::try_from(status).unwrap_or(UNSEEN));
    relay.finish();
    Ok(code)
}

/// Waits for the carrier; a program whose carrier was killed is killed too.
fn wait_for(carrier: Pid, program: &Program) -> io::Result<u8> {
    let status = loop {
        match waitpid(Some(carrier), WaitOptions::empty()) {
            Ok(Some((_, status))) => break status,
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    };
    if let Some(code) = status.exit_status() {
        return Ok(u8::try_from(code).unwrap_or(UNSEEN));
    }
    let killed = program.connect().and_then(|mut task| {
        task.kill(SIGKILL, false)?;
        task.wait(Some(KILLED_LIMIT))
    });
    // One that has ended already, or whose shim has, runs no more.
    let _ = killed;
    Ok(u8::try_from(128 + status.terminating_signal().unwrap_or(0)).unwrap_or(UNSEEN))
}
