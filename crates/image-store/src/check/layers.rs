//! The layers' part of a check.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use domain::id::LayerId;

use super::{Damage, Damages, Depth, Snapshot, contents};
use crate::error::PathError;
use crate::images::big_data_file;
use crate::overlay::unmount_all;
use crate::readback::ReadLayerError;
use crate::records::LayerRecord;
use crate::store::Store;

/// Most layers read at a time: more only wait for the disk.
const READERS_MAX: usize = 4;

impl LayerRecord {
    /// Whether its files have other owners than its tar says.
    fn is_mapped(&self) -> bool {
        !(self.uidmap.is_empty() && self.gidmap.is_empty())
    }
}

impl Store {
    pub(super) fn check_layers(&self, snapshot: &Snapshot, depth: Depth) -> Damages {
        let mut damages = Damages::new();
        let mut rows: Vec<&LayerRecord> = snapshot.layers.values().collect();
        rows.sort_by(|one, other| one.id.cmp(&other.id));
        for row in &rows {
            super::note(&mut damages, &row.id, self.check_layer_files(row, snapshot));
        }
        self.check_mountable(snapshot, &rows, &mut damages);
        if depth == Depth::Presence {
            return damages;
        }
        let next = AtomicUsize::new(0);
        let found = Mutex::new(BTreeMap::new());
        let whole: Vec<&LayerRecord> = rows.into_iter().filter(|row| !damages.contains_key(&row.id)).collect();
        let readers = thread::available_parallelism().map_or(1, std::num::NonZero::get).min(READERS_MAX);
        thread::scope(|scope| {
            for _ in 0..readers.min(whole.len()) {
                scope.spawn(|| {
                    while let Some(row) = whole.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let list = self.check_layer_contents(row, depth);
                        if !list.is_empty() {
                            found.lock().unwrap_or_else(PoisonError::into_inner).insert(row.id.clone(), list);
                        }
                    }
                });
            }
        });
        damages.extend(found.into_inner().unwrap_or_else(PoisonError::into_inner));
        damages
    }

    fn check_layer_files(&self, row: &LayerRecord, snapshot: &Snapshot) -> Vec<Damage> {
        let mut found = Vec::new();
        if row.is_incomplete() {
            return vec![Damage::Unfinished];
        }
        // The id becomes part of paths.
        if LayerId::parse(&row.id).is_err() {
            return found;
        }
        if !row.parent.is_empty() && !snapshot.layers.contains_key(&row.parent) {
            found.push(Damage::ParentMissing { parent: row.parent.clone() });
        }
        if let Some(what) = self.driver.missing(&row.id, !row.parent.is_empty()) {
            found.push(Damage::PartMissing { what });
        }
        let data = self.layers_dir().join(&row.id);
        for key in &row.big_data_names {
            let path = data.join(big_data_file(key));
            let source = match std::fs::symlink_metadata(&path) {
                Ok(data) if data.is_file() => continue,
                Ok(_) => io::Error::other("not a regular file"),
                Err(error) => error,
            };
            found.push(Damage::DataMissing { key: key.to_owned(), source });
        }
        found
    }

    /// Mounts every layer with all below it: each has its own list of what those are.
    fn check_mountable(&self, snapshot: &Snapshot, rows: &[&LayerRecord], damages: &mut Damages) {
        if !self.driver.has_mounts() {
            return;
        }
        let target = match self.staging().new_dir() {
            Ok(target) => target,
            Err(error) => {
                tracing::warn!(path = %error.path.display(), error = %error.source, "whether layers can be mounted is not checked");
                return;
            }
        };
        let attempt = |row: &LayerRecord| -> Result<(), PathError> {
            // What is mounted can be; and a directory that is written to is not to lie below another mount.
            if LayerId::parse(&row.id).is_err() || self.driver.is_mounted(&row.id)? {
                return Ok(());
            }
            let mounted = self.driver.try_mount(&row.id, &row.mount_label, target.path());
            mounted.and(unmount_all(target.path()))
        };
        // From the bottom, so that the one to blame is named and not all on top of it.
        let mut chains: Vec<Vec<&str>> = rows.iter().map(|row| snapshot.chain(&row.id)).collect();
        chains.sort_by_key(Vec::len);
        for chain in chains {
            if chain.iter().any(|id| damages.contains_key(*id)) {
                continue;
            }
            if let Some(row) = chain.first().and_then(|id| snapshot.layers.get(*id))
                && let Err(source) = attempt(row)
            {
                damages.entry(row.id.clone()).or_default().push(Damage::NotMountable { source });
            }
        }
    }

    fn check_layer_contents(&self, row: &LayerRecord, depth: Depth) -> Vec<Damage> {
        // A layer of a container, or one pulled file by file, has no tar that it could be compared with.
        if row.diff_digest.is_empty() {
            return Vec::new();
        }
        let Ok(layer) = LayerId::parse(&row.id) else { return Vec::new() };
        if !self.tar_split(&row.id).is_file() {
            return vec![Damage::PartMissing { what: "tar-split" }];
        }
        // Where layers lie whole, as copies of those below with their changes made, the tar tells of a part only.
        let (tar, found) = if depth == Depth::Contents && self.driver.has_mounts() {
            contents::compare(self, &layer, row.is_mapped())
        } else {
            (self.write_layer_tar(&layer, &mut io::sink()), Vec::new())
        };
        match tar {
            Ok((_, actual)) => {
                let expected = u64::try_from(row.diff_size).ok().filter(|size| *size > 0 && *size != actual);
                found.into_iter().chain(expected.map(|expected| Damage::Size { expected, actual })).collect()
            }
            // Removed meanwhile.
            Err(ReadLayerError::NoLayer { .. }) => Vec::new(),
            Err(source) => vec![Damage::Tar { source }],
        }
    }
}
