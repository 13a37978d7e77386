//! The check of a store: whether what records mention is there and is what they say, and whether records mention what is
//! there.
//!
//! Records and directories are looked at under the locks the field has for them, everything that takes long without:
//! what was removed meanwhile is left out in the end. Nothing is changed; [`Store::repair`] is another step. Layers of a
//! pull under way count for nothing until they are old. Source of what is checked: containers/storage `check.go`.

mod contents;
mod layers;
mod repair;
mod strays;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use domain::id::ImageId;
use jiff::Timestamp;
use thiserror::Error;

pub use repair::{OnContainers, RepairError, RepairOptions};

use crate::error::PathError;
use crate::images::{big_data_file, digest_of_big_data};
use crate::readback::ReadLayerError;
use crate::records::{ContainerRecord, ImageRecord, LayerRecord};
use crate::store::Store;
use crate::table::RecordsError;

/// Largest blob digested: what [`Store::image_big_data`] gives out.
const BLOB_MAX_BYTES: u64 = 64 << 20;

/// How closely a store is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// What records mention is there, has its length, and layers can be mounted: a few look-ups each, for the start
    /// after an unclean end.
    Presence,
    /// In addition every layer's tar is put together again and digested, and so is what lies with images.
    Digests,
    /// In addition the files of every layer are compared with what its tar says of them, and there are no others.
    Contents,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CheckOptions {
    /// How closely.
    pub depth: Depth,
    /// How old a layer that nothing uses must be to count: younger ones may be of a pull under way.
    pub unreferenced_age: Duration,
}

/// What is wrong with a layer, an image or a container.
#[derive(Debug, Error)]
pub enum Damage {
    /// A layer whose maker has not finished it.
    #[error("was never finished")]
    Unfinished,
    /// A layer without a part of its directory.
    #[error("has no {what}")]
    PartMissing {
        /// By its name in the layout.
        what: &'static str,
    },
    /// A layer on another one that has no record.
    #[error("lies on layer {parent}, which is not in the store")]
    ParentMissing {
        /// The layer below.
        parent: String,
    },
    /// A layer the kernel does not mount.
    #[error("cannot be mounted: {}", chain(.source))]
    NotMountable {
        /// What the kernel said.
        source: PathError,
    },
    /// A layer that does not give its tar back.
    #[error("does not give its tar back: {}", chain(.source))]
    Tar {
        /// Why.
        source: ReadLayerError,
    },
    /// A layer whose tar has another length.
    #[error("has a tar of {actual} bytes, not {expected}")]
    Size {
        /// As recorded.
        expected: u64,
        /// As counted.
        actual: u64,
    },
    /// A file of a layer that is not what its tar says.
    #[error("{path:?} {what}")]
    Contents {
        /// In the layer.
        path: String,
        /// What differs.
        what: String,
    },
    /// More of the same.
    #[error("{count} more files differ")]
    MoreContents {
        /// How many.
        count: usize,
    },
    /// A layer no image and no container uses, for longer than one is on its way.
    #[error("is used by no image and no container")]
    Unreferenced,
    /// A layer's directory without a record.
    #[error("is a directory no record mentions")]
    Unaccounted,
    /// Something stored with a layer, an image or a container is not there or cannot be read.
    #[error("has no data {key:?}: {}", .source)]
    DataMissing {
        /// Its key.
        key: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// Something stored has another length.
    #[error("has data {key:?} of {actual} bytes, not {expected}")]
    DataSize {
        /// Its key.
        key: String,
        /// As recorded.
        expected: u64,
        /// As found.
        actual: u64,
    },
    /// Something stored has another digest.
    #[error("has data {key:?} with digest {actual}, not {expected}")]
    DataDigest {
        /// Its key.
        key: String,
        /// As recorded.
        expected: String,
        /// As computed.
        actual: String,
    },
    /// An image or container without one of its layers.
    #[error("is made of layer {layer}, which is not in the store")]
    LayerMissing {
        /// The layer.
        layer: String,
    },
    /// An image or container one of whose layers is damaged.
    #[error("is made of layer {layer}, which is damaged")]
    Layer {
        /// The layer.
        layer: String,
    },
    /// A container without its image.
    #[error("is made from image {image}, which is not in the store")]
    ImageMissing {
        /// The image.
        image: String,
    },
    /// A container whose image is damaged.
    #[error("is made from image {image}, which is damaged")]
    Image {
        /// The image.
        image: String,
    },
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        next = cause.source();
    }
    text
}

/// Something on disk that belongs to nobody, or is open to everybody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stray {
    /// Where.
    pub path: PathBuf,
    /// What it is.
    pub what: StrayKind,
}

/// What a [`Stray`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StrayKind {
    /// A short name that leads nowhere.
    Link,
    /// Bookkeeping of a layer without a record.
    LayerData,
    /// Data of an image without a record.
    ImageData,
    /// A directory of a container without a record.
    ContainerData,
    /// What a process that is gone was working on.
    Staging,
    /// A directory that others may look into or write to.
    Mode(u32),
}

impl fmt::Display for Stray {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: ", self.path.display())?;
        match self.what {
            StrayKind::Link => formatter.write_str("a short name that leads nowhere"),
            StrayKind::LayerData => formatter.write_str("data of a layer no record mentions"),
            StrayKind::ImageData => formatter.write_str("data of an image no record mentions"),
            StrayKind::ContainerData => formatter.write_str("data of a container no record mentions"),
            StrayKind::Staging => formatter.write_str("left by a process that is gone"),
            StrayKind::Mode(mode) => write!(formatter, "mode {mode:o} lets others in"),
        }
    }
}

type Damages = BTreeMap<String, Vec<Damage>>;

/// What a check has found.
#[derive(Debug, Default)]
pub struct Report {
    /// Damaged layers, by id.
    pub layers: Damages,
    /// Those of additional stores, which are never repaired.
    pub read_only_layers: Damages,
    /// Damaged images, among them all with a damaged layer.
    pub images: Damages,
    /// Those of additional stores.
    pub read_only_images: Damages,
    /// Damaged containers, of whichever tool, among them all with a damaged image or layer.
    pub containers: Damages,
    /// What belongs to nobody.
    pub strays: Vec<Stray>,
}

impl Report {
    /// Whether nothing was found.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.kinds().all(|(_, damages)| damages.is_empty()) && self.strays.is_empty()
    }

    fn kinds(&self) -> impl Iterator<Item = (&'static str, &Damages)> {
        [
            ("layer", &self.layers),
            ("read-only layer", &self.read_only_layers),
            ("image", &self.images),
            ("read-only image", &self.read_only_images),
            ("container", &self.containers),
        ]
        .into_iter()
    }

    /// A line for each thing found, for people.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let damages = self.kinds().flat_map(|(kind, damages)| {
            let of_one = move |(id, list): (&String, &Vec<Damage>)| -> Vec<String> {
                list.iter().map(|damage| format!("{kind} {id} {damage}")).collect()
            };
            damages.iter().flat_map(of_one)
        });
        damages.chain(self.strays.iter().map(Stray::to_string)).collect()
    }
}

/// The records at one moment.
struct Snapshot {
    layers: HashMap<String, LayerRecord>,
    images: Vec<ImageRecord>,
    containers: Vec<ContainerRecord>,
    strays: Vec<Stray>,
    unaccounted: Vec<String>,
    /// Layers that living processes are about to use.
    on_their_way: HashSet<String>,
}

impl Snapshot {
    fn take(store: &Store) -> Result<Self, RecordsError> {
        let layers = store.layers.read()?;
        let images = store.images.read()?;
        let containers = store.containers.read()?;
        let mut snapshot = Self {
            layers: layers.iter().map(|row| (row.id.clone(), row.clone())).collect(),
            images: images.iter().cloned().collect(),
            containers: containers.iter().cloned().collect(),
            strays: Vec::new(),
            unaccounted: Vec::new(),
            on_their_way: store.staging().marked_by_the_living(),
        };
        store.find_strays(&mut snapshot);
        Ok(snapshot)
    }

    /// A layer and those below it, from the top; ends with the first that has no record.
    fn chain<'a>(&'a self, top: &'a str) -> Vec<&'a str> {
        let mut chain: Vec<&str> = Vec::new();
        let mut next = top;
        while !next.is_empty() && !chain.contains(&next) {
            chain.push(next);
            next = self.layers.get(next).map_or("", |row| row.parent.as_str());
        }
        chain
    }
}

impl Store {
    /// Looks for damage of every kind; changes nothing, and holds no lock for long.
    pub fn check(&self, options: &CheckOptions) -> Result<Report, RecordsError> {
        let snapshot = Snapshot::take(self)?;
        let mut report =
            Report { layers: self.check_layers(&snapshot, options.depth), strays: Vec::new(), ..Report::default() };
        let mut used: HashSet<&str> = snapshot.on_their_way.iter().map(String::as_str).collect();
        for row in &snapshot.images {
            let mut found = self.check_image_data(row, options.depth);
            for top in std::iter::once(&row.layer).chain(&row.mapped_layers) {
                check_chain(&snapshot, &report.layers, top, &mut used, &mut found);
            }
            note(&mut report.images, &row.id, found);
        }
        for row in &snapshot.containers {
            let mut found = self.check_container_data(row, options.depth);
            if !row.image.is_empty() {
                if report.images.contains_key(&row.image) {
                    found.push(Damage::Image { image: row.image.clone() });
                } else if !snapshot.images.iter().any(|image| image.id == row.image) {
                    found.push(Damage::ImageMissing { image: row.image.clone() });
                }
            }
            check_chain(&snapshot, &report.layers, &row.layer, &mut used, &mut found);
            note(&mut report.containers, &row.id, found);
        }
        let newest = Timestamp::now().checked_sub(options.unreferenced_age).unwrap_or(Timestamp::MIN);
        for row in snapshot.layers.values().filter(|row| !used.contains(row.id.as_str())) {
            if row.created.parse::<Timestamp>().is_ok_and(|created| created > newest) {
                continue;
            }
            report.layers.entry(row.id.clone()).or_default().push(Damage::Unreferenced);
        }
        for id in &snapshot.unaccounted {
            report.layers.entry(id.clone()).or_default().push(Damage::Unaccounted);
        }
        report.strays = snapshot.strays;
        self.forget_removed(&mut report)?;
        Ok(report)
    }

    /// What was removed while it was being looked at was not damaged.
    fn forget_removed(&self, report: &mut Report) -> Result<(), RecordsError> {
        let layers = self.layers.read()?;
        let images = self.images.read()?;
        let containers = self.containers.read()?;
        let is_unaccounted = |list: &[Damage]| list.iter().any(|damage| matches!(damage, Damage::Unaccounted));
        // What is in additional stores is not ours to repair; nor can it be told what uses it there.
        let is_unused = |list: &[Damage]| list.iter().all(|damage| matches!(damage, Damage::Unreferenced));
        report.read_only_layers = report.layers.extract_if(.., |id, _| layers.is_foreign(id)).collect();
        report.read_only_layers.retain(|_, list| !is_unused(list));
        report.read_only_images = report.images.extract_if(.., |id, _| images.is_foreign(id)).collect();
        report.layers.retain(|id, list| is_unaccounted(list) || layers.find(id).is_some());
        report.images.retain(|id, _| images.find(id).is_some());
        report.containers.retain(|id, _| containers.find(id).is_some());
        Ok(())
    }

    fn check_image_data(&self, row: &ImageRecord, depth: Depth) -> Vec<Damage> {
        let Ok(image) = ImageId::parse(&row.id) else { return Vec::new() };
        let directory = self.image_dir(&image);
        let mut found = Vec::new();
        for key in &row.big_data_names {
            let stored = Stored {
                key,
                path: directory.join(big_data_file(key)),
                size: row.big_data_sizes.get(key).copied(),
                digest: row.big_data_digests.get(key).map(String::as_str),
            };
            found.extend(stored.check(depth));
        }
        found
    }

    fn check_container_data(&self, row: &ContainerRecord, depth: Depth) -> Vec<Damage> {
        let Ok(container) = domain::id::ContainerId::parse(&row.id) else { return Vec::new() };
        let directory = self.container_base(&container);
        let mut found = Vec::new();
        for key in &row.big_data_names {
            let stored = Stored {
                key,
                path: directory.join(big_data_file(key)),
                size: row.big_data_sizes.get(key).copied(),
                digest: row.big_data_digests.get(key).map(String::as_str),
            };
            found.extend(stored.check(depth));
        }
        found
    }
}

fn note(damages: &mut Damages, id: &str, found: Vec<Damage>) {
    if !found.is_empty() {
        damages.entry(id.to_owned()).or_default().extend(found);
    }
}

/// Marks a chain as used, and tells what of it is missing or damaged.
fn check_chain<'a>(
    snapshot: &'a Snapshot,
    damaged: &Damages,
    top: &'a str,
    used: &mut HashSet<&'a str>,
    found: &mut Vec<Damage>,
) {
    for layer in snapshot.chain(top) {
        used.insert(layer);
        if damaged.contains_key(layer) {
            found.push(Damage::Layer { layer: layer.to_owned() });
        } else if !snapshot.layers.contains_key(layer) {
            found.push(Damage::LayerMissing { layer: layer.to_owned() });
        }
    }
}

/// A blob a record mentions.
struct Stored<'a> {
    key: &'a str,
    path: PathBuf,
    size: Option<i64>,
    digest: Option<&'a str>,
}

impl Stored<'_> {
    fn check(&self, depth: Depth) -> Option<Damage> {
        let missing = |source| Damage::DataMissing { key: self.key.to_owned(), source };
        let data = match std::fs::symlink_metadata(&self.path) {
            Ok(data) if data.is_file() => data,
            Ok(_) => return Some(missing(std::io::Error::other("not a regular file"))),
            Err(error) => return Some(missing(error)),
        };
        if let Some(expected) = self.size.and_then(|size| u64::try_from(size).ok())
            && expected != data.len()
        {
            return Some(Damage::DataSize { key: self.key.to_owned(), expected, actual: data.len() });
        }
        let expected = self.digest.filter(|digest| depth > Depth::Presence && digest.starts_with("sha256:"))?;
        let bytes = match crate::images::read_regular(&self.path, BLOB_MAX_BYTES) {
            Ok(Some(bytes)) => bytes,
            // Nobody reads such a thing at once; its length was right.
            Ok(None) => return None,
            Err(error) => return Some(missing(error)),
        };
        let actual = digest_of_big_data(self.key, &bytes);
        (actual.as_str() != expected).then(|| Damage::DataDigest {
            key: self.key.to_owned(),
            expected: expected.to_owned(),
            actual: actual.to_string(),
        })
    }
}
