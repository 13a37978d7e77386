//! Programs of the node that are neither runtimes nor monitors, run to their end.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use sys::spawn::ExitStatus;
use thiserror::Error;

use crate::child::{self, printed};

/// A service manager's restart of a service waits for its end and its start; beyond this nobody waits.
const LIMIT: Duration = Duration::from_secs(30);

/// Why a program was of no use.
#[derive(Debug, Error)]
pub enum ProgramError {
    /// It could not be run, or did not end.
    #[error("run {program}")]
    Run {
        /// Which.
        program: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// It ended otherwise than well.
    #[error("{program}: {status}: {printed}")]
    Failed {
        /// Which.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it complained.
        printed: String,
    },
}

/// The first program of that name in the daemon's `$PATH`.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let is_program = |path: &PathBuf| {
        path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    std::env::split_paths(&std::env::var_os("PATH")?)
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(name))
        .find(is_program)
}

/// Runs a program with `variables` (`K=V`) beside the daemon's `PATH`, and returns what it printed.
pub async fn run(program: &Path, arguments: &[&OsStr], variables: &[&str]) -> Result<String, ProgramError> {
    let end = child::capture_with(&[], program, arguments, variables, None, LIMIT)
        .await
        .map_err(|source| ProgramError::Run { program: program.to_owned(), source })?;
    if end.status.is_success() {
        return Ok(String::from_utf8_lossy(&end.stdout).into_owned());
    }
    Err(ProgramError::Failed { program: program.to_owned(), status: end.status, printed: printed(&end.stderr) })
}
