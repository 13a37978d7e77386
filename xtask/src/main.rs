//! The project's own automation: checks that a compiler cannot make, run by developers and by CI alike.
//!
//! Promises: reads the source tree and `cargo metadata`, changes nothing, needs no network beyond what a build needs.
//! Must not know: what any other crate does; it sees names, edges and text only.
//! Begin reading at [`tidy::run`]; the rules themselves are pure functions in [`graph`] and [`text`].
#![forbid(unsafe_code)]

mod graph;
mod metadata;
mod text;
mod tidy;

use std::process::ExitCode;

const USAGE: &str = "usage: cargo xtask COMMAND

commands:
  tidy    check the crate graph and the house rules a compiler does not know";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["tidy"] => match tidy::run() {
            Ok(problems) if problems.is_empty() => {
                println!("tidy: nothing to report");
                ExitCode::SUCCESS
            }
            Ok(problems) => {
                for problem in &problems {
                    eprintln!("tidy: {problem}");
                }
                eprintln!("tidy: {} to put right", problems.len());
                ExitCode::FAILURE
            }
            Err(error) => {
                let mut line = error.to_string();
                let mut cause = std::error::Error::source(&error);
                while let Some(inner) = cause {
                    line.push_str(": ");
                    line.push_str(&inner.to_string());
                    cause = inner.source();
                }
                eprintln!("tidy: {line}");
                ExitCode::FAILURE
            }
        },
        ["help" | "--help" | "-h"] => {
            println!("{USAGE}");
            ExitCode::SUCCESS
        }
        _ => {
            eprintln!("{USAGE}");
            ExitCode::from(2)
        }
    }
}
