//! Measures pulling: our daemon beside containerd, both through their CRI sockets, and skopeo, taking turns.
//!
//! `pull-bench images` writes the images into an OCI layout; `pull-bench run` pulls each with every engine from a
//! registry, into an empty store each time. Promises: every engine gets the same bytes, alternately; what is reported
//! was measured; the images are taken out of the stores again. Must not know: how an engine works.
//! Begin reading at [`run::all`].
//!
//! Exit status: 0 done; 1 something failed; 2 wrong usage; 3 a ratio or a size is above its limit.
#![forbid(unsafe_code)]

mod contents;
mod engine;
mod images;
mod process;
mod report;
mod run;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

const ABOVE_LIMIT: u8 = 3;

#[derive(Debug, Parser)]
#[command(version, about = "Measures how fast, and with how much memory, container engines pull images")]
struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Write two images into an OCI layout: large (one layer) and small (many layers)
    Images {
        /// Directory of the layout; made
        directory: PathBuf,
        /// Megabytes of the large image's one layer, compressed
        #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..=10_000))]
        large: u64,
        /// Layers of the small image
        #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u64).range(1..=120))]
        small: u64,
    },
    /// Pull images with every engine
    Run(RunArguments),
}

/// What is pulled, and by whom.
#[derive(Debug, clap::Args)]
pub(crate) struct RunArguments {
    /// CRI endpoint of the engine under test, unix:///path
    #[arg(long, value_name = "URL")]
    pub(crate) ours: String,
    /// Its daemon's process
    #[arg(long, value_name = "PID")]
    pub(crate) pid: u32,
    /// CRI endpoint of the engine to compare with
    #[arg(long, value_name = "URL", requires = "peer_pid")]
    pub(crate) peer: Option<String>,
    /// The peer's process
    #[arg(long, value_name = "PID")]
    pub(crate) peer_pid: Option<u32>,
    /// Directory for a store that skopeo copies into; must not exist
    #[arg(long, value_name = "DIRECTORY")]
    pub(crate) skopeo: Option<PathBuf>,
    /// Images to pull
    #[arg(long, required = true, value_name = "REF")]
    pub(crate) image: Vec<String>,
    /// How often each engine pulls each image
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(crate) rounds: u32,
    /// Exit with status 3 if the median pull takes a larger part of the best peer's
    #[arg(long, value_name = "RATIO")]
    pub(crate) max_ratio: Option<f64>,
    /// Exit with status 3 if our daemon ever occupies more
    #[arg(long, value_name = "MIB")]
    pub(crate) max_memory: Option<u64>,
}

fn main() -> ExitCode {
    let done = match Arguments::parse().verb {
        Verb::Images { directory, large, small } => images::write(&directory, large << 20, small).map(|()| Vec::new()),
        Verb::Run(arguments) => run::all(&arguments).map(|results| {
            print!("{}", report::table(&results));
            report::judge(&results, arguments.max_ratio, arguments.max_memory)
        }),
    };
    match done {
        Ok(above) if above.is_empty() => ExitCode::SUCCESS,
        Ok(above) => {
            for sentence in above {
                eprintln!("pull-bench: {sentence}");
            }
            ExitCode::from(ABOVE_LIMIT)
        }
        Err(error) => {
            eprintln!("pull-bench: {}", error.0);
            ExitCode::FAILURE
        }
    }
}

/// What went wrong, in one line: this program's errors go to its user, never to code.
#[derive(Debug)]
pub(crate) struct Failure(String);

impl Failure {
    pub(crate) fn new(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_string();
        move |source| Self(format!("{what}: {source}"))
    }
}

impl From<String> for Failure {
    fn from(text: String) -> Self {
        Self(text)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn definition_is_sound() {
        super::Arguments::command().debug_assert();
    }
}
