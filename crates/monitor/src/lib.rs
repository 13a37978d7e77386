//! One process per container: its standard streams, terminal, log file, exit record and memory kills. It outlives the daemon.
//!
//! Promises: conmon's command line and files; once a container exists its exit is recorded whatever happens to the log,
//! the clients or the daemon; memory does not grow with what a container writes. The runtime it starts sees three
//! descriptors and no more. Must not know: pods, images, gRPC, anything asynchronous.
//! Begin reading at [`run`], then `supervisor`.
//!
//! The order of steps, and what a crash in each gap leaves:
//! 1. the start byte is awaited: nothing exists yet;
//! 2. the monitor goes into the background and its pid is written: the daemon sees the sync pipe close;
//! 3. sockets and fifos are made, the runtime creates the container: the runtime dies with the monitor, the daemon deletes
//!    what it made;
//! 4. the container's pid is reported, and its end awaited: without the monitor the daemon finds no exit record;
//! 5. output is drained, the exit recorded, clients let go, the log synced.
#![forbid(unsafe_code)]

mod attach;
mod clock;
mod console;
mod control;
mod exit_record;
mod log;
mod oom;
mod options;
mod report;
mod runtime;
mod start;
mod stdin;
mod supervisor;
mod sync_pipe;

use std::ffi::OsString;
use std::io::Write;

pub use control::fuzz_control_lines;

use options::Request;

/// The version of conmon whose contract is kept. Callers compare it to learn which options they may use.
const CONTRACT_VERSION: &str = "2.2.1";

/// Monitors one container as the words of a command line (without the program's name) ask, and returns the exit code of
/// this process: 0 after going into the background, else how the container ended, or 1 for a failure.
#[must_use]
pub fn run(words: Vec<OsString>) -> u8 {
    let working_directory = std::env::current_dir().unwrap_or_else(|_| "/".into());
    match options::parse(words, &working_directory) {
        Ok(Request::Help) => print(&options::help()),
        Ok(Request::Version) => {
            print(&format!("crio-monitor version {CONTRACT_VERSION}\nrelease: {}\n", env!("CARGO_PKG_VERSION")))
        }
        Ok(Request::Monitor(options)) => start::start(*options),
        Err(error) => {
            // Nobody is left to tell if standard error is gone.
            let _ = writeln!(std::io::stderr(), "[crio-monitor:e]: {error}");
            1
        }
    }
}

fn print(text: &str) -> u8 {
    u8::from(std::io::stdout().write_all(text.as_bytes()).is_err())
}
