//! Following the configuration and plugin directories, and polling readiness.

use std::path::{Path, PathBuf};
use std::pin::pin;
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventMask, EventStream, Inotify, WatchDescriptor, WatchMask, Watches};
use tokio::time::{Instant, sleep_until};

use crate::network::{Network, Readiness, Watch};

/// A provider writes several files, and a plugin binary in many pieces: read once they have come to rest.
const SETTLE: Duration = Duration::from_millis(50);
/// A provider that never comes to rest is read nevertheless: ready within a second is the promise.
const SETTLE_MAX: Duration = Duration::from_millis(500);
/// Until the network was ready once, sandboxes wait for it: CRI-O's interval.
const IMPATIENT: Duration = Duration::from_millis(500);
/// Afterwards, while it is not ready or a grace period asks for looking, and for directories that are missing: CRI-O's
/// interval.
const PATIENT: Duration = Duration::from_secs(5);
/// Room for some dozens of events; more are read in the next turn.
const BUFFER: usize = 4096;

impl Network {
    /// Loads the configuration and keeps it current until the returned handle is dropped: a change in `conf_dir` or a
    /// plugin directory is read within a second, also after the directory was removed and made again. Both are created
    /// when missing.
    ///
    /// Without inotify (no instance left) everything is read again every five seconds.
    #[must_use]
    pub fn spawn_watch(&self) -> Watch {
        let network = self.clone();
        Watch(tokio::spawn(async move { network.watch().await }))
    }

    async fn watch(self) {
        let mut follower = Follower::new(&self);
        // Watching begins before reading: what is written in between is read twice, not missed.
        follower.follow_all();
        self.load().await;
        let mut readiness = self.subscribe();
        let mut was_ready = false;
        loop {
            let is_ready = matches!(*readiness.borrow_and_update(), Readiness::Ready);
            was_ready |= is_ready;
            let poll = match (was_ready, is_ready) {
                (false, _) => Some(IMPATIENT),
                (true, false) => Some(PATIENT),
                (true, true) => follower.idle_poll(&self),
            };
            let next = poll.map(|interval| Instant::now() + interval);
            tokio::select! {
                () = follower.changed() => {
                    follower.settle().await;
                    follower.follow_all();
                    self.load().await;
                }
                // Somebody else looked, and it is time to look more or less often.
                _ = readiness.changed() => {}
                () = until(next) => {
                    // New directories, or none could be followed at all.
                    if follower.follow_all() || follower.stream.is_none() {
                        self.load().await;
                    } else {
                        self.look().await;
                    }
                }
            }
        }
    }
}

async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// One directory and, when it could be followed, its watch.
struct Directory {
    path: PathBuf,
    watch: Option<WatchDescriptor>,
}

struct Follower {
    stream: Option<EventStream<[u8; BUFFER]>>,
    watches: Option<Watches>,
    directories: Vec<Directory>,
}

impl Follower {
    fn new(network: &Network) -> Self {
        let options = &network.shared.options;
        let paths = std::iter::once(&options.conf_dir).chain(network.shared.plugins.dirs());
        let directories = paths.map(|path| Directory { path: path.clone(), watch: None }).collect();
        let (stream, watches) = match Inotify::init() {
            Ok(inotify) => {
                let watches = inotify.watches();
                match inotify.into_event_stream([0; BUFFER]) {
                    Ok(stream) => (Some(stream), Some(watches)),
                    Err(error) => refused(&error),
                }
            }
            Err(error) => refused(&error),
        };
        Self { stream, watches, directories }
    }

    /// Follows every directory not followed yet, making it if need be. True when one was added.
    fn follow_all(&mut self) -> bool {
        let Some(watches) = &mut self.watches else { return false };
        let mask = WatchMask::CREATE
            | WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_FROM
            | WatchMask::MOVED_TO
            | WatchMask::DELETE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut added = false;
        for directory in self.directories.iter_mut().filter(|directory| directory.watch.is_none()) {
            make(&directory.path);
            directory.watch = watches.add(&directory.path, mask).ok();
            added |= directory.watch.is_some();
        }
        added
    }

    /// What needs a look from time to time although nothing happens.
    fn idle_poll(&self, network: &Network) -> Option<Duration> {
        let graceful = !network.shared.options.status_grace.is_zero();
        let blind = self.directories.iter().any(|directory| directory.watch.is_none());
        (graceful || blind).then_some(PATIENT)
    }

    /// Returns after at least one event.
    async fn changed(&mut self) {
        let Some(stream) = &mut self.stream else { return std::future::pending().await };
        match stream.next().await {
            Some(Ok(event)) => {
                let lost = EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED | EventMask::UNMOUNT;
                if event.mask.intersects(lost) {
                    self.lose(&event.wd, event.mask);
                }
            }
            Some(Err(error)) => {
                tracing::warn!(%error, "cannot follow CNI directories any more, reading them from time to time");
                self.give_up();
            }
            None => self.give_up(),
        }
    }

    fn lose(&mut self, gone: &WatchDescriptor, mask: EventMask) {
        for directory in &mut self.directories {
            if directory.watch.as_ref() == Some(gone) {
                directory.watch = None;
                // A directory that was only renamed is still followed, under a name nobody asked for.
                if mask.contains(EventMask::MOVE_SELF)
                    && let Some(watches) = &mut self.watches
                {
                    let _ = watches.remove(gone.clone());
                }
            }
        }
    }

    fn give_up(&mut self) {
        self.stream = None;
        self.watches = None;
        for directory in &mut self.directories {
            directory.watch = None;
        }
    }

    /// Swallows events until there were none for a while.
    async fn settle(&mut self) {
        let end = Instant::now() + SETTLE_MAX;
        loop {
            let quiet = (Instant::now() + SETTLE).min(end);
            let changed = pin!(self.changed());
            if tokio::time::timeout_at(quiet, changed).await.is_err() {
                return;
            }
        }
    }
}

fn refused<A, B>(error: &std::io::Error) -> (Option<A>, Option<B>) {
    tracing::warn!(%error, "cannot follow CNI directories, reading them from time to time");
    (None, None)
}

fn make(path: &Path) {
    if let Err(error) = std::fs::create_dir_all(path) {
        tracing::debug!(dir = %path.display(), %error, "cannot make a CNI directory");
    }
}
