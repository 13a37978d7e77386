//! Content that layers of the store have already, found by digest in the tables stored with them.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fmt;
use std::path::Path;

use domain::digest::Digest;
use domain::id::LayerId;
use durable::beneath::Root;
use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::toc::{TOC_MAX_BYTES, digest_bytes};
use super::{LAYER_FORMAT, TABLE};
use crate::images::{big_data_file, read_regular};
use crate::layers::LayerPin;
use crate::records::LayerRecord;
use crate::stage::clean;
use crate::store::Store;
use crate::table::RecordsError;

/// Most bytes of tables looked through for one layer, newest layers first: about a second's work.
const LOOKED_THROUGH_MAX_BYTES: u64 = 256 << 20;

/// A layer that content is taken from; it is not removed meanwhile.
pub(super) struct LocalLayer {
    _pin: LayerPin,
    pub(super) root: Root,
}

/// Where some bytes lie in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    /// Which of the layers found.
    pub(super) layer: usize,
    /// The file, cleaned.
    pub(super) name: Vec<u8>,
    /// From where in the file.
    pub(super) at: u64,
    /// How many.
    pub(super) size: u64,
}

/// What is looked for: digest of the plain bytes, and where they were found.
pub(super) type Wanted = HashMap<[u8; 32], Option<Place>>;

#[derive(Deserialize)]
struct LayerFormat {
    #[serde(default)]
    format: u64,
}

impl Store {
    /// Looks for content in the layers whose files lie under their own names.
    pub(super) fn find_content(&self, wanted: &mut Wanted) -> Result<Vec<LocalLayer>, RecordsError> {
        let mut found = Vec::new();
        let mut left = wanted.len();
        let mut budget = LOOKED_THROUGH_MAX_BYTES;
        for (id, pin) in self.layers_with_tables()? {
            if left == 0 {
                break;
            }
            let directory = self.layers_dir().join(id.as_str());
            let read = |key: &str, limit| read_regular(&directory.join(big_data_file(key)), limit);
            let format = read(LAYER_FORMAT, 4096).ok().flatten();
            let format = format.and_then(|bytes| serde_json::from_slice::<LayerFormat>(&bytes).ok());
            // Another format has files by their digests.
            if format.is_none_or(|format| format.format != 0) {
                continue;
            }
            let Ok(Some(table)) = read(TABLE, TOC_MAX_BYTES.min(budget)) else { continue };
            budget -= table.len() as u64;
            let diff = self.driver.diff(id.as_str());
            let Ok(root) = Root::open(&diff) else { continue };
            let before = left;
            if !look_through(&table, found.len(), wanted, &mut left) {
                tracing::debug!(layer = %id, "the table of contents stored with a layer is damaged");
            }
            if left < before {
                found.push(LocalLayer { _pin: pin, root });
            }
        }
        Ok(found)
    }

    /// Newest first, pinned.
    fn layers_with_tables(&self) -> Result<Vec<(LayerId, LayerPin)>, RecordsError> {
        let layers = self.layers.read()?;
        let has_table = |row: &&LayerRecord| !row.is_incomplete() && row.big_data_names.iter().any(|key| key == TABLE);
        let mut rows: Vec<&LayerRecord> = layers.iter().filter(has_table).collect();
        rows.sort_by(|a, b| b.created.cmp(&a.created));
        let ids = rows.into_iter().filter_map(|row| LayerId::parse(&row.id).ok());
        Ok(ids.map(|id| (id.clone(), self.pin(id))).collect())
    }
}

/// Whether a file still is what a table said, as far as a look at it tells.
pub(super) fn has_size(root: &Root, name: &[u8], at_least: u64, exactly: Option<u64>) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let path = Path::new(std::ffi::OsStr::from_bytes(name));
    let found = root.open_beneath(path, rustix::fs::OFlags::PATH, 0, durable::beneath::Links::Refused);
    let Ok(stat) = found.and_then(|file| Ok(rustix::fs::fstat(file)?)) else { return false };
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    let is_file = rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file();
    is_file && size >= at_least && exactly.is_none_or(|exactly| size == exactly)
}

/// Notes what a table has of what is wanted; `false` if it is none.
fn look_through(table: &[u8], layer: usize, wanted: &mut Wanted, left: &mut usize) -> bool {
    let mut deserializer = serde_json::Deserializer::from_slice(table);
    TableSeed(Look { layer, wanted, left, file: Vec::new() }).deserialize(&mut deserializer).is_ok()
}

struct Look<'w> {
    layer: usize,
    wanted: &'w mut Wanted,
    left: &'w mut usize,
    /// The file that chunks belong to, cleaned.
    file: Vec<u8>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    #[serde(borrow)]
    r#type: Cow<'a, str>,
    #[serde(borrow)]
    name: Cow<'a, str>,
    #[serde(default)]
    size: u64,
    #[serde(default, borrow)]
    digest: Option<Cow<'a, str>>,
    #[serde(default)]
    chunk_size: u64,
    #[serde(default)]
    chunk_offset: u64,
    #[serde(default, borrow)]
    chunk_digest: Option<Cow<'a, str>>,
}

impl Look<'_> {
    fn line(&mut self, line: &Line<'_>) {
        let is_chunk = line.r#type == "chunk";
        if !is_chunk {
            self.file.clear();
            if line.r#type != "reg" {
                return;
            }
            let Ok(clean) = clean(line.name.as_bytes()) else { return };
            self.file = clean;
            self.note(line.digest.as_deref(), 0, line.size);
        }
        self.note(line.chunk_digest.as_deref(), line.chunk_offset, line.chunk_size);
    }

    fn note(&mut self, digest: Option<&str>, at: u64, size: u64) {
        if size == 0 || self.file.is_empty() {
            return;
        }
        let Some(digest) = digest.and_then(|text| Digest::parse(text).ok()) else { return };
        if let Some(place @ None) = self.wanted.get_mut(&digest_bytes(&digest)) {
            *place = Some(Place { layer: self.layer, name: self.file.clone(), at, size });
            *self.left -= 1;
        }
    }
}

/// A whole table, of which only the entries count; they are never all in memory.
struct TableSeed<'w>(Look<'w>);

impl<'de> DeserializeSeed<'de> for TableSeed<'_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for TableSeed<'_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a table of contents")
    }
    fn visit_map<A: MapAccess<'de>>(mut self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Cow<'de, str>>()? {
            if key == "entries" {
                map.next_value_seed(EntriesSeed(&mut self.0))?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }
}

struct EntriesSeed<'s, 'w>(&'s mut Look<'w>);

impl<'de> DeserializeSeed<'de> for EntriesSeed<'_, '_> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for EntriesSeed<'_, '_> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of entries")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<(), A::Error> {
        while let Some(line) = list.next_element::<Line<'de>>()? {
            self.0.line(&line);
        }
        Ok(())
    }
}
