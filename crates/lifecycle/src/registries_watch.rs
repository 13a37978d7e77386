//! `auto_reload_registries`: registries.conf.d is followed, and read again when a file in it has changed. Source: CRI-O.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Weak;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};

use crate::node::Node;

/// A tool writes several files; read once they have come to rest.
const SETTLE: Duration = Duration::from_millis(200);
/// A directory that is missing, or that cannot be followed, is looked for again.
const RETRY: Duration = Duration::from_secs(10);
/// Room for some dozens of events.
const BUFFER: usize = 4096;

/// Follows `directory` for as long as the node exists.
pub(crate) async fn follow(node: Weak<Node>, directory: PathBuf) {
    let mut was_missing = false;
    loop {
        if let Ok(mut watch) = Watch::begin(&directory) {
            if was_missing && !reload(&node) {
                return;
            }
            while watch.changed().await.is_ok() {
                let is_there = watch.settle().await.is_ok();
                if !reload(&node) {
                    return;
                }
                if !is_there {
                    break;
                }
            }
        }
        was_missing = true;
        tokio::time::sleep(RETRY).await;
        if node.strong_count() == 0 {
            return;
        }
    }
}

fn reload(node: &Weak<Node>) -> bool {
    let Some(node) = node.upgrade() else { return false };
    // Scripts look for the last words.
    tracing::info!("registries.conf.d has changed, reloading registries configuration");
    node.reload_registries();
    true
}

struct Watch(EventStream<[u8; BUFFER]>);

impl Watch {
    fn begin(directory: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let of_files = WatchMask::CLOSE_WRITE | WatchMask::MOVE | WatchMask::DELETE;
        let of_itself = WatchMask::DELETE_SELF | WatchMask::MOVE_SELF;
        inotify.watches().add(directory, of_files | of_itself | WatchMask::ONLYDIR)?;
        Ok(Self(inotify.into_event_stream([0; BUFFER])?))
    }

    /// Waits for a change; an error once the directory itself is gone.
    async fn changed(&mut self) -> io::Result<()> {
        let gone = EventMask::IGNORED | EventMask::DELETE_SELF | EventMask::MOVE_SELF;
        match self.0.next().await.transpose()? {
            Some(event) if !event.mask.intersects(gone) => Ok(()),
            _ => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Waits until nothing has changed for a while.
    async fn settle(&mut self) -> io::Result<()> {
        while let Ok(changed) = tokio::time::timeout(SETTLE, self.changed()).await {
            changed?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn files_that_come_change_and_go_are_noticed() {
        let directory = tempfile::tempdir().expect("a directory");
        let inside = directory.path().join("registries.conf.d");
        assert!(Watch::begin(&inside).is_err(), "not there yet");
        std::fs::create_dir(&inside).expect("a directory");
        let mut watch = Watch::begin(&inside).expect("a watch");
        let file = inside.join("a.conf");
        let soon = Duration::from_secs(10);
        assert!(tokio::time::timeout(Duration::from_millis(50), watch.changed()).await.is_err(), "nothing happened");
        drop(std::fs::File::create(&file).expect("a file"));
        tokio::time::timeout(soon, watch.changed()).await.expect("in time").expect("a file came");
        rustix::fs::rename(&file, inside.join("b.conf")).expect("renamed");
        tokio::time::timeout(soon, watch.changed()).await.expect("in time").expect("a file was renamed");
        watch.settle().await.expect("it is there");
        std::fs::remove_file(inside.join("b.conf")).expect("removed");
        tokio::time::timeout(soon, watch.changed()).await.expect("in time").expect("a file went");
        std::fs::remove_dir(&inside).expect("removed");
        assert!(tokio::time::timeout(soon, watch.changed()).await.expect("in time").is_err(), "it is gone");
    }
}
