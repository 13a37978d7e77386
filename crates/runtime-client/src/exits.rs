//! Watching the exits directory, where every monitor of the node writes one file a container that ended.

use std::path::{Path, PathBuf};
use std::{fs, io};

use domain::id::ContainerId;
use futures_util::StreamExt;
use inotify::{EventMask, Inotify, WatchMask};
use thiserror::Error;
use tokio::sync::mpsc;

/// Ends not yet handled. The file stays until it has been handled, so a full queue only slows the watcher.
const WAITING_MAX: usize = 256;

/// Why the directory cannot be watched.
#[derive(Debug, Error)]
#[error("watch {directory} for exits")]
pub struct WatchExitsError {
    directory: PathBuf,
    #[source]
    source: io::Error,
}

/// Reports the id of every container whose exit file appears in `directory`, those already there first.
///
/// An id may be reported more than once; temporary names of monitors are passed over. The watch ends when the receiver
/// is dropped.
pub fn watch(directory: &Path) -> Result<mpsc::Receiver<ContainerId>, WatchExitsError> {
    let failed = |source| WatchExitsError { directory: directory.to_owned(), source };
    let inotify = Inotify::init().map_err(failed)?;
    inotify.watches().add(directory, WatchMask::CREATE | WatchMask::MOVED_TO).map_err(failed)?;
    let mut events = inotify.into_event_stream([0; 4096]).map_err(failed)?;
    let (sender, receiver) = mpsc::channel(WAITING_MAX);
    let directory = directory.to_owned();
    tokio::spawn(async move {
        // Listed after the watch began, so that nothing falls between.
        report_all(&directory, &sender).await;
        while let Some(event) = events.next().await {
            let Ok(event) = event else { break };
            if event.mask.contains(EventMask::Q_OVERFLOW) {
                report_all(&directory, &sender).await;
                continue;
            }
            let id =
                event.name.as_deref().and_then(|name| name.to_str()).and_then(|name| ContainerId::parse(name).ok());
            if let Some(id) = id
                && sender.send(id).await.is_err()
            {
                return;
            }
        }
        tracing::error!(directory = %directory.display(), "the watch for exits ended");
    });
    Ok(receiver)
}

async fn report_all(directory: &Path, sender: &mpsc::Sender<ContainerId>) {
    let Ok(entries) = fs::read_dir(directory) else { return };
    for entry in entries.flatten() {
        if let Some(id) = entry.file_name().to_str().and_then(|name| ContainerId::parse(name).ok())
            && sender.send(id).await.is_err()
        {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn exit_files_are_reported_and_temporary_names_are_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let id = |digit: &str| ContainerId::parse(&digit.repeat(64)).expect("an id");
        fs::File::create(directory.path().join(id("a").as_str())).expect("creates");
        let mut exits = watch(directory.path()).expect("watches");
        assert_eq!(exits.recv().await, Some(id("a")));
        let temporary = directory.path().join(format!("{}.Xa5f1k", id("b")));
        fs::File::create(&temporary).expect("creates");
        rustix::fs::rename(&temporary, directory.path().join(id("b").as_str())).expect("renames");
        loop {
            let next = exits.recv().await.expect("reports");
            assert!(next == id("a") || next == id("b"));
            if next == id("b") {
                break;
            }
        }
    }
}
