//! Containers kept by a containerd shim (kata, gVisor), with the command line of an OCI runtime.
//!
//! The program `crio-shim` stands where runc would: a monitor runs its `create`, the daemon its other verbs. Of a
//! container it leaves a process that is the container to its monitor: it carries the streams between the shim's fifos and
//! the monitor's pipes, and ends as the container ends. So log, attaching, exit record and life beyond the daemon's are
//! the monitor's here too, and nobody above has to know that a kernel lies between.
//!
//! Promises: every question to a shim has an end but the wait for a container's; whatever a shim answers is read to a
//! bound; a shim that hangs or lies costs its own pod, and no process that is not that shim is ever killed in its stead.
//! Blocking throughout, and without an async runtime: one of these runs beside every container.
//! Must not know: pods, requests, records of the daemon.
//! Begin reading at [`run`], then `create`, `delete` and `exec`. The shim's side is `frame`, `client`, `task`.
#![forbid(unsafe_code)]

mod address;
mod client;
mod create;
mod delete;
mod exec;
pub mod frame;
mod options;
mod process;
mod record;
mod relay;
mod shim;
mod stats;
mod stdio;
mod task;
mod terminal;
mod verbs;

use std::ffi::OsString;
use std::io::Write;

pub use stats::{Memory, Stats, StatsError, stats};

/// Messages on the wire.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod wire {
    include!(concat!(env!("OUT_DIR"), "/shim.rs"));
}

/// Does what a command line (without the program's name) asks, and returns the exit code of this process.
#[must_use]
pub fn run(words: Vec<OsString>) -> u8 {
    let done = options::parse(words).map_err(Into::into).and_then(|invocation| verbs::run(&invocation));
    match done {
        Ok(code) => code,
        Err(error) => {
            let mut text = chain(&error);
            // These words mean to callers that there is no such container, whatever else a shim may miss.
            if !matches!(error, verbs::VerbError::Unknown(_)) {
                text = text.replace("does not exist", "is not there");
            }
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(std::io::stderr(), "{text}");
            1
        }
    }
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// The process that a sandbox's or container's namespaces belong to, by the account of its shim; `None` where nothing is
/// known of it.
#[must_use]
pub fn init_pid(root: &std::path::Path, id: &str) -> Option<i32> {
    record::Record::load(root, id).ok().flatten()?.init_pid
}

/// Feeds arbitrary bytes to everything that reads what a shim sends. For the fuzz table.
pub fn fuzz_answers(bytes: &[u8]) {
    frame::fuzz(bytes);
    _ = address::parse(bytes);
    stats::fuzz(bytes);
}
