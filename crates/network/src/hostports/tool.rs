//! Running nft, iptables and conntrack.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use thiserror::Error;
use tokio::process::Command;
use tokio::time::timeout;

use crate::plugin::input_file;

/// How long a tool may take: it may wait for the firewall lock of others, who hold it for seconds when they have
/// tens of thousands of rules.
const TOOL_LIMIT: Duration = Duration::from_secs(30);
/// Where tools are when the daemon's PATH leaves them out.
const USUAL_DIRS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// Why a tool did not do its work.
#[derive(Debug, Error)]
pub enum ToolError {
    /// It could not be executed, or its output not be read.
    #[error("run {tool}")]
    Run {
        /// Path of the tool.
        tool: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// It hung and was killed.
    #[error("{tool} did not end within {} s and was killed", TOOL_LIMIT.as_secs())]
    TimedOut {
        /// Path of the tool.
        tool: PathBuf,
    },
    /// It said no.
    #[error("{tool} failed ({status}): {message}")]
    Failed {
        /// Path of the tool.
        tool: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// What it wrote to stderr.
        message: String,
    },
}

impl ToolError {
    /// Whether the tool's message has one of these parts.
    pub(super) fn says(&self, parts: &[&str]) -> bool {
        matches!(self, Self::Failed { message, .. } if parts.iter().any(|part| message.contains(part)))
    }
}

/// The tool's path, when it is installed.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let dirs = std::env::split_paths(&path).chain(USUAL_DIRS.map(PathBuf::from));
    dirs.filter(|dir| dir.is_absolute()).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Runs a tool to its end and returns what it printed.
pub(super) async fn run(tool: &Path, args: &[&str], input: &str) -> Result<Vec<u8>, ToolError> {
    let failed = |source| ToolError::Run { tool: tool.to_owned(), source };
    let stdin = input_file(input.as_bytes()).map_err(failed)?;
    let mut command = Command::new(tool);
    command.args(args).stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    match timeout(TOOL_LIMIT, command.output()).await {
        Err(_elapsed) => Err(ToolError::TimedOut { tool: tool.to_owned() }),
        Ok(Err(source)) => Err(failed(source)),
        Ok(Ok(output)) if output.status.success() => Ok(output.stdout),
        Ok(Ok(output)) => Err(ToolError::Failed {
            tool: tool.to_owned(),
            status: output.status,
            message: String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        }),
    }
}
