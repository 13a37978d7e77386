//! Telling a monitor to open a container's log anew, after the kubelet has moved the old one away.

use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::fs::OFlags;
use thiserror::Error;

/// The line of conmon's ctl fifo that asks for new log files.
const REOPEN: &[u8] = b"2 0 0\n";
/// A monitor answers within milliseconds; one that does not is gone.
const REOPEN_LIMIT: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(5);

/// Why a log was not reopened.
#[derive(Debug, Error)]
pub enum ReopenLogError {
    /// The monitor cannot be told.
    #[error("ask the monitor through {fifo} to reopen its log")]
    Ask {
        /// The control fifo.
        fifo: PathBuf,
        #[source]
        /// The system's answer; `ENXIO` when no monitor listens.
        source: io::Error,
    },
    /// The monitor did not do it.
    #[error("the monitor did not reopen {log} within {} s", REOPEN_LIMIT.as_secs())]
    Unanswered {
        /// The log.
        log: PathBuf,
    },
}

/// Has the log at `log` opened anew and waits until it exists again.
pub async fn reopen(bundle: &Path, log: &Path) -> Result<(), ReopenLogError> {
    let fifo = bundle.join("ctl");
    let ask = || {
        let flags =
            i32::try_from((OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOFOLLOW).bits()).map_err(io::Error::other)?;
        let mut fifo = std::fs::OpenOptions::new().write(true).custom_flags(flags).open(&fifo)?;
        fifo.write_all(REOPEN)
    };
    ask().map_err(|source| ReopenLogError::Ask { fifo: fifo.clone(), source })?;
    let wait = async {
        while !log.exists() {
            tokio::time::sleep(POLL).await;
        }
    };
    tokio::time::timeout(REOPEN_LIMIT, wait).await.map_err(|_| ReopenLogError::Unanswered { log: log.to_owned() })
}
