//! Containers of a shim by a runtime's command line. Everything is in the library beside it.
#![forbid(unsafe_code)]

use std::process::ExitCode;

fn main() -> ExitCode {
    ExitCode::from(shim_client::run(std::env::args_os().skip(1).collect()))
}
