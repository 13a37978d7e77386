//! The container monitor. Everything is in the library beside it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(monitor::run(std::env::args_os().skip(1).collect()))
}
