//! A client for people: pods, containers and images of any CRI engine, from a terminal or a script.
//!
//! Promises: what is printed was said by the engine or read from its log files; one clear line on stderr for an error;
//! decoration (colours, progress) only on a terminal; documented exit statuses. Must not know: which engine answers.
//! Begin reading at `commands::execute`. A library only so that [`log_line`] and [`fuzz_unpack`],
//! parsers of foreign bytes, can be fuzzed.
//!
//! Exit status: 0 done; 1 an error; 2 wrong usage; 125 the engine cannot be reached; `run` and `exec` end with the
//! status of the program they ran (255 where the engine gives one outside 0..=255); 130 interrupted.
#![forbid(unsafe_code)]

mod arguments;
mod client;
mod commands;
mod config_file;
mod error;
mod find;
mod log_file;
pub mod log_line;
mod message_json;
mod progress;
mod run;
mod run_options;
mod sessions;
mod table;

pub use sessions::fuzz_unpack;

use std::process::ExitCode;

use clap::Parser;

use crate::arguments::Cli;

const FAILED: u8 = 1;

/// Does what the process's arguments say.
pub fn run_process() -> ExitCode {
    let cli = Cli::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("crioctl: start the runtime: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match runtime.block_on(commands::execute(cli)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            if !error.is_closed_output() {
                eprintln!("crioctl: {}", error::chain(&error));
            }
            ExitCode::from(error.exit_status())
        }
    }
}
