//! Committing several layers at once: one flush for the files of all, one record file written.
//!
//! Each layer lies on the one before it. In order, with what opening the store does after a crash in between as told in
//! `layers`: all are dressed in their staging directories, each knowing the short name the one below will have; all
//! their files are made durable; then, under the lock, all are marked pending and placed, the directories of names made
//! durable, and all records written with one replacement of their file. Either all of them are in the store or none.

use domain::id::LayerId;

use crate::driver::{Below, Grouping};
use crate::error::{CommitLayerError, PathError};
use crate::fault;
use crate::layers::{LayerPin, check_contents, layer_id, record_of};
use crate::overlay::LOWER_MAX;
use crate::records::LayerRecord;
use crate::stage::StagedLayer;
use crate::staging::StagingDir;
use crate::store::Store;
use crate::types::ExpectedLayer;

/// How often a group is dressed anew because the layer below it, or one of its own, was made by somebody else meanwhile.
const ATTEMPTS_MAX: usize = 3;

/// A layer that is to be placed.
struct Member {
    staged: StagedLayer,
    id: LayerId,
    record: LayerRecord,
}

/// Members that were in the store already come first; the others have been dressed.
struct Dressed {
    here: Vec<LayerPin>,
    below: Option<Below>,
    names: Vec<String>,
}

impl Store {
    /// Gives staged layers their names, each on top of the one before it, as far as they are what was expected.
    ///
    /// Layers that are in the store already are kept, and the staged ones dropped. Returns those that are in the store
    /// now, and survive a loss of power, and why the next one is not.
    pub fn commit_layers(
        &self,
        layers: Vec<(StagedLayer, ExpectedLayer)>,
        parent: Option<&LayerId>,
    ) -> (Vec<LayerPin>, Option<CommitLayerError>) {
        let Some(driver) = self.driver.grouping() else { return self.commit_one_by_one(layers, parent) };
        let mut members: Vec<Member> = Vec::new();
        let mut unexpected = None;
        for (staged, expected) in layers {
            if let Err(error) = check_contents(&staged, &expected) {
                unexpected = Some(error);
                break;
            }
            let below = members.last().map_or(parent, |member| Some(&member.id));
            let id = layer_id(below, &staged.contents.diff_id);
            let record = record_of(&staged, &id, below);
            members.push(Member { staged, id, record });
        }
        if members.is_empty() {
            return (Vec::new(), unexpected);
        }
        match self.commit_group(driver, members, parent) {
            Ok(pins) => (pins, unexpected),
            Err(error) => (Vec::new(), Some(error)),
        }
    }

    fn commit_one_by_one(
        &self,
        layers: Vec<(StagedLayer, ExpectedLayer)>,
        parent: Option<&LayerId>,
    ) -> (Vec<LayerPin>, Option<CommitLayerError>) {
        let mut pins: Vec<LayerPin> = Vec::new();
        for (staged, expected) in layers {
            let below = pins.last().map_or(parent, |pin| Some(pin.id()));
            match self.commit_alone(staged, below, &expected) {
                Ok(pin) => pins.push(pin),
                Err(error) => return (pins, Some(error)),
            }
        }
        (pins, None)
    }

    fn commit_group(
        &self,
        driver: &dyn Grouping,
        mut members: Vec<Member>,
        parent: Option<&LayerId>,
    ) -> Result<Vec<LayerPin>, CommitLayerError> {
        for _ in 0..ATTEMPTS_MAX {
            let mut dressed = self.dress_group(driver, &members, parent)?;
            members.drain(..dressed.here.len());
            if members.is_empty() {
                return Ok(dressed.here);
            }
            sync(&members)?;
            let parent = dressed.here.last().map_or(parent, |pin| Some(pin.id()));
            if let Some(placed) = self.place_group(driver, &mut members, &dressed, parent)? {
                dressed.here.extend(placed);
                return Ok(dressed.here);
            }
        }
        let parent = parent.unwrap_or(&members[0].id).clone();
        Err(CommitLayerError::NoParent { parent })
    }

    fn dress_group(
        &self,
        driver: &dyn Grouping,
        members: &[Member],
        parent: Option<&LayerId>,
    ) -> Result<Dressed, CommitLayerError> {
        let (here, below) = {
            let layers = self.layers.read().map_err(CommitLayerError::Records)?;
            let is_here = |member: &&Member| layers.find(member.id.as_str()).is_some_and(|row| self.is_whole(row));
            let here: Vec<LayerPin> =
                members.iter().take_while(is_here).map(|member| self.pin(member.id.clone())).collect();
            let parent = here.last().map_or(parent, |pin| Some(pin.id()));
            let below = if here.len() == members.len() { None } else { self.below_of(&layers, parent)? };
            (here, below)
        };
        let mut names = Vec::new();
        let mut lower: Option<Below> = None;
        for member in &members[here.len()..] {
            let directory = member.staged.directory.path();
            let below = lower.as_ref().or(below.as_ref());
            // One more lies on top: the container's.
            if below.is_some_and(|below| below.depth + 1 > LOWER_MAX) {
                return Err(CommitLayerError::TooDeep { limit: LOWER_MAX });
            }
            names.push(driver.dress_unsynced(directory, below).map_err(CommitLayerError::Path)?);
            lower = Some(driver.below_staged(directory).map_err(CommitLayerError::Path)?);
        }
        Ok(Dressed { here, below, names })
    }

    /// `None` if something has changed since the members were dressed; nothing was done then.
    fn place_group(
        &self,
        driver: &dyn Grouping,
        members: &mut Vec<Member>,
        dressed: &Dressed,
        parent: Option<&LayerId>,
    ) -> Result<Option<Vec<LayerPin>>, CommitLayerError> {
        // Declared before the lock, so that directories are deleted after it is let go.
        let mut away: Vec<StagingDir> = Vec::new();
        let mut layers = self.layers.write().map_err(CommitLayerError::Records)?;
        if members.iter().any(|member| layers.find(member.id.as_str()).is_some_and(|row| self.is_whole(row))) {
            return Ok(None);
        }
        // A parent that was removed and made again meanwhile has another short name.
        let below = self.below_of(&layers, parent)?;
        if below.map(|below| below.lower).as_deref() != dressed.below.as_ref().map(|below| below.lower.as_str()) {
            return Ok(None);
        }
        let ids: Vec<LayerId> = members.iter().map(|member| member.id.clone()).collect();
        for id in &ids {
            if let Some((file, _)) = layers.locate(id.as_str()) {
                layers.rows_mut(file).retain(|row| row.id != id.as_str());
                layers.save(file).map_err(CommitLayerError::Records)?;
            }
            self.staging().mark_pending(id.as_str()).map_err(CommitLayerError::Path)?;
            // Left by a crash; no record mentions it.
            away.extend(self.take_layer_files(id.as_str()).map_err(CommitLayerError::Path)?);
        }
        let named = self.name_group(driver, std::mem::take(members), &dressed.names);
        let named = named.map_err(CommitLayerError::Path).and_then(|records| {
            let file = self.image_layers_file();
            layers.rows_mut(file).extend(records);
            layers.save(file).map_err(CommitLayerError::Records)
        });
        if let Err(error) = named {
            if !fault::is_dead() {
                for id in &ids {
                    away.extend(self.take_layer_files(id.as_str()).ok().flatten());
                    self.staging().unmark_pending(id.as_str());
                }
            }
            return Err(error);
        }
        Ok(Some(ids.into_iter().map(|id| self.pin(id)).collect()))
    }

    fn name_group(
        &self,
        driver: &dyn Grouping,
        members: Vec<Member>,
        names: &[String],
    ) -> Result<Vec<LayerRecord>, PathError> {
        let mut records = Vec::new();
        for (member, name) in members.into_iter().zip(names) {
            let Member { staged, id, record } = member;
            // Its directory is that of the records, which is synced with them.
            staged.split.move_to(&self.own_tar_split(id.as_str()))?;
            driver.place_unsynced(staged.directory, id.as_str(), name)?;
            records.push(record);
        }
        driver.sync_places()?;
        Ok(records)
    }
}

/// Makes the files of all members survive a loss of power, in one call: the alternative, an fsync each, costs a journal
/// commit a file.
///
/// What went wrong with any file since a directory was opened is told by the call on that directory: the one opened
/// first knows of the files of all.
fn sync(members: &[Member]) -> Result<(), CommitLayerError> {
    match members.iter().min_by_key(|member| member.staged.opened) {
        Some(first) => first.staged.sync().map_err(CommitLayerError::Path),
        None => Ok(()),
    }
}
