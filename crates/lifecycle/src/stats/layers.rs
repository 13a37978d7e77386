//! How much containers have written, which is dear to find: a walk over every file of a layer.
//!
//! Told from memory while it is young; meanwhile one walk at a time freshens what was asked for. A layer is walked
//! within a call only when nothing young enough is known of it and it has few files. So nobody waits for a large layer,
//! and what is told is at most [`AGE_MAX`] old, unless walking takes so long that it would do nothing else. Each value
//! says when it was found.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::container::ContainerState;
use domain::id::ContainerId;
use domain::time::Timestamp;
use image_store::{LayerPlace, Store, Usage};

use crate::container::Container;
use crate::undo::chain;
use crate::{blocking, clock};

/// Told without a second look: the kubelet's eviction looks every ten seconds.
const AGE_FRESH: Duration = Duration::from_secs(10);
/// Told while a walk is under way.
const AGE_MAX: Duration = Duration::from_secs(30);
/// A walk's time is at most this part of all time.
const WALK_PART: u32 = 100;
/// Files of a layer that is walked while a client waits: less than a millisecond.
const FEW_FILES: u64 = 500;

/// What a container has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WritableLayer {
    /// When it was looked at.
    pub at: Timestamp,
    /// Where the container's root file system is mounted, by which CRI-O names it; empty when it is not.
    pub mountpoint: PathBuf,
    /// Bytes.
    pub used_bytes: u64,
    /// Inodes.
    pub inodes_used: u64,
}

/// Layers of containers that exist.
pub(super) struct Layers {
    store: Arc<Store>,
    known: Mutex<HashMap<ContainerId, Known>>,
    is_walking: AtomicBool,
}

struct Known {
    place: Arc<LayerPlace>,
    found: Option<Found>,
    is_due: bool,
}

#[derive(Debug, Clone, Copy)]
struct Found {
    at: Timestamp,
    usage: Usage,
    ended: Instant,
    took: Duration,
}

/// What is done for a client that asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Plan {
    /// What is known is told.
    Tell,
    /// It is told, and looked for again.
    TellAndWalk,
    /// It is looked for at once, if it has few files.
    WalkFew,
}

/// Decides by the age of what is known and by what finding it took.
fn plan(known: Option<(Duration, Duration)>) -> Plan {
    match known {
        None => Plan::WalkFew,
        Some((age, took)) if age < AGE_FRESH.max(took * WALK_PART) => Plan::Tell,
        Some((age, _)) if age < AGE_MAX => Plan::TellAndWalk,
        Some(_) => Plan::WalkFew,
    }
}

impl Layers {
    pub(super) fn new(store: Arc<Store>) -> Self {
        Self { store, known: Mutex::default(), is_walking: AtomicBool::default() }
    }

    fn known(&self) -> MutexGuard<'_, HashMap<ContainerId, Known>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Forgets containers that are gone. Cheap as long as there are none.
    pub(super) fn forget_absent(&self, count: usize, exists: impl Fn(&ContainerId) -> bool) {
        let mut known = self.known();
        if known.len() > count {
            known.retain(|id, _| exists(id));
        }
    }

    /// What a container has written, as far as it is known or quickly found.
    pub(super) fn of(&self, container: &Container) -> Option<WritableLayer> {
        let id = &container.id;
        let (place, found) = self.recall(id)?;
        let age = |found: Found| (found.ended.elapsed(), found.took);
        let found = match plan(found.map(age)) {
            Plan::Tell => found,
            Plan::TellAndWalk => {
                self.set_due(id);
                found
            }
            Plan::WalkFew => match self.walk(id, &place, Some(FEW_FILES)) {
                Some(now) => Some(now),
                None => {
                    self.set_due(id);
                    found
                }
            },
        }?;
        let mountpoint = match container.state() {
            ContainerState::Created { .. } | ContainerState::Running { .. } => place.merged.clone(),
            ContainerState::Exited { .. } => PathBuf::new(),
        };
        let Usage { bytes, inodes } = found.usage;
        Some(WritableLayer { at: found.at, mountpoint, used_bytes: bytes, inodes_used: inodes })
    }

    /// Where a layer is, which never changes, and what was found there.
    fn recall(&self, id: &ContainerId) -> Option<(Arc<LayerPlace>, Option<Found>)> {
        if let Some(known) = self.known().get(id) {
            return Some((Arc::clone(&known.place), known.found));
        }
        match self.store.layer_place(id) {
            Ok(place) => {
                let place = Arc::new(place);
                let known = Known { place: Arc::clone(&place), found: None, is_due: false };
                self.known().insert(id.clone(), known);
                Some((place, None))
            }
            Err(error) => {
                tracing::warn!(container.id = %id, error = %chain(&error), "finding a writable layer failed");
                None
            }
        }
    }

    fn set_due(&self, id: &ContainerId) {
        if let Some(known) = self.known().get_mut(id) {
            known.is_due = true;
        }
    }

    /// Walks a layer and remembers what was found; nothing when it has more files than that, or cannot be walked.
    fn walk(&self, id: &ContainerId, place: &LayerPlace, files_max: Option<u64>) -> Option<Found> {
        let begun = Instant::now();
        let usage = match place.usage(files_max) {
            Ok(usage) => usage?,
            Err(error) => {
                tracing::warn!(container.id = %id, error = %chain(&error), "measuring a writable layer failed");
                return None;
            }
        };
        let found = Found { at: clock::now(), usage, ended: Instant::now(), took: begun.elapsed() };
        if let Some(known) = self.known().get_mut(id) {
            known.found = Some(found);
            known.is_due = false;
        }
        Some(found)
    }

    /// Walks what clients have asked for, one layer after the other, where nobody waits.
    pub(super) fn freshen(self: &Arc<Self>) {
        let due: Vec<(ContainerId, Arc<LayerPlace>)> = {
            let known = self.known();
            let due = known.iter().filter(|(_, known)| known.is_due);
            due.map(|(id, known)| (id.clone(), Arc::clone(&known.place))).collect()
        };
        if due.is_empty() || self.is_walking.swap(true, Ordering::AcqRel) {
            return;
        }
        let layers = Arc::clone(self);
        tokio::spawn(async move {
            for (id, place) in due {
                let walker = Arc::clone(&layers);
                blocking::run("measure a writable layer", move || {
                    if walker.walk(&id, &place, None).is_none()
                        && let Some(known) = walker.known().get_mut(&id)
                    {
                        known.is_due = false;
                    }
                })
                .await;
            }
            layers.is_walking.store(false, Ordering::Release);
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_waits_for_a_large_layer_and_nobody_is_told_old_news() {
        let millis = Duration::from_millis;
        for (known, expected) in [
            (None, Plan::WalkFew),
            (Some((0, 1)), Plan::Tell),
            (Some((9_999, 1)), Plan::Tell),
            (Some((10_000, 1)), Plan::TellAndWalk),
            (Some((29_999, 1)), Plan::TellAndWalk),
            (Some((30_000, 1)), Plan::WalkFew),
            // A second of walking pays for a hundred seconds.
            (Some((30_000, 1000)), Plan::Tell),
            (Some((100_000, 1000)), Plan::WalkFew),
        ] {
            assert_eq!(plan(known.map(|(age, took)| (millis(age), millis(took)))), expected, "{known:?}");
        }
    }
}
