//! Measures one or two container engines through their CRI sockets, in one run, taking turns.
//!
//! Promises: the two engines get the same requests, alternately, so that a busy machine disturbs both alike; what is
//! reported was measured, never extrapolated; nothing it made stays behind, not even after an error or Ctrl-C.
//! Must not know: which engine is behind a socket.
//! Begin reading at [`measure::all`].
//!
//! Exit status: 0 done; 1 a request failed or a limit of `--max-ratio` could not be judged; 2 wrong usage;
//! 3 a ratio is above its limit; 130 interrupted.
#![forbid(unsafe_code)]

mod arguments;
mod cleanup;
mod cpu;
mod engine;
mod error;
mod measure;
mod memory;
mod report;
mod statistics;

use std::process::ExitCode;

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use crate::arguments::{Arguments, Output};
use crate::error::{BenchError, chain};

const FAILED: u8 = 1;
const ABOVE_LIMIT: u8 = 3;
const INTERRUPTED: u8 = 130;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    // One thread: the client's own work must not compete with the engines for processors.
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("cri-bench: start the runtime: {error}");
            return ExitCode::from(FAILED);
        }
    };
    match runtime.block_on(run(&arguments)) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("cri-bench: {}", chain(&error));
            ExitCode::from(FAILED)
        }
    }
}

async fn run(arguments: &Arguments) -> Result<ExitCode, BenchError> {
    // Installed before the first request, and kept: a second Ctrl-C must not cut the cleaning short.
    let mut interrupt = signal(SignalKind::interrupt()).map_err(BenchError::Signals)?;
    let mut terminate = signal(SignalKind::terminate()).map_err(BenchError::Signals)?;

    let engines = engine::connect_all(arguments).await?;
    let logs = tempfile::Builder::new().prefix("cri-bench-").tempdir().map_err(BenchError::LogDirectory)?;
    let measured = tokio::select! {
        measured = measure::all(arguments, &engines, logs.path()) => Some(measured),
        _ = interrupt.recv() => None,
        _ = terminate.recv() => None,
    };
    if measured.is_none() {
        eprintln!("cri-bench: interrupted, removing what was made");
    }
    let cleaned = cleanup::remove_all(&engines).await;
    let Some(measured) = measured else {
        cleaned?;
        return Ok(ExitCode::from(INTERRUPTED));
    };
    let results = match (measured, cleaned) {
        (Ok(results), Ok(())) => results,
        (Err(error), cleaned) => {
            // The first error is the one to report as the outcome; the second still has to be seen.
            if let Err(second) = cleaned {
                eprintln!("cri-bench: {}", chain(&second));
            }
            return Err(error);
        }
        (Ok(_), Err(error)) => return Err(error),
    };

    match arguments.output {
        Output::Table => println!("{}", report::table(&results)),
        Output::Json => println!("{:#}", report::json(&results)),
    }
    let verdicts = report::judge(&results, &arguments.max_ratio)?;
    for verdict in &verdicts {
        eprintln!("cri-bench: {verdict}");
    }
    Ok(if verdicts.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(ABOVE_LIMIT) })
}
