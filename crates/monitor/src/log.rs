//! What the container writes goes to every log target. No target can stop the monitor or another target.

mod journald;
mod k8s_file;

use std::io;
use std::path::PathBuf;

use thiserror::Error;

use crate::clock::Clock;
use crate::options::{LogTarget, Options};
use crate::report::Reporter;
use journald::Journal;
use k8s_file::K8sFile;

/// A stream of the container. The number is what attached clients are sent in front of the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stream {
    Stdout = 2,
    Stderr = 3,
}

/// A log that cannot be opened.
#[derive(Debug, Error)]
#[error("open log file {}", path.display())]
pub(crate) struct OpenLogError {
    path: PathBuf,
    #[source]
    source: io::Error,
}

#[derive(Debug)]
enum Target {
    File(K8sFile),
    Journal(Journal),
}

/// All targets of one container.
#[derive(Debug)]
pub(crate) struct Logs {
    targets: Vec<Target>,
    clock: Clock,
    /// Whether the last write failed, so that a full disk is reported once and not for every line.
    is_failing: bool,
}

impl Logs {
    pub(crate) fn open(options: &Options) -> Result<Self, OpenLogError> {
        let mut targets = Vec::with_capacity(options.logs.len());
        for target in &options.logs {
            match target {
                LogTarget::K8sFile(path) => {
                    let file = K8sFile::open(path.clone(), options)
                        .map_err(|source| OpenLogError { path: path.clone(), source })?;
                    targets.push(Target::File(file));
                }
                LogTarget::Journald => targets.push(Target::Journal(Journal::new(options))),
                LogTarget::Off => {}
            }
        }
        Ok(Self { targets, clock: Clock::new(), is_failing: false })
    }

    /// Writes what was read from a stream. What cannot be written is lost, and that is reported once.
    pub(crate) fn write(&mut self, stream: Stream, data: &[u8], reporter: &Reporter) {
        let stamp = self.clock.stamp();
        let mut failure = None;
        for target in &mut self.targets {
            let result = match target {
                Target::File(file) => file.write(stream, data, &stamp),
                Target::Journal(journal) => journal.write(stream, data),
            };
            failure = failure.or(result.err());
        }
        match &failure {
            Some(error) if !self.is_failing => reporter.warn("output is lost", error),
            Some(_) | None => {}
        }
        self.is_failing = failure.is_some();
    }

    /// Continues in a new file at the same path, after somebody renamed the old one.
    pub(crate) fn reopen(&mut self, reporter: &Reporter) {
        for target in &mut self.targets {
            if let Target::File(file) = target
                && let Err(error) = file.reopen()
            {
                reporter.warn("reopen the log, the old one is kept", &error);
            }
        }
    }

    /// Lets go of all targets.
    pub(crate) fn close(&mut self) {
        self.targets.clear();
    }

    /// Makes the files durable.
    pub(crate) fn sync(&self, reporter: &Reporter) {
        for target in &self.targets {
            if let Target::File(file) = target
                && let Err(error) = file.sync()
            {
                reporter.warn("sync the log", &error);
            }
        }
    }
}
