//! Images: listing, recording, naming, removing.
//!
//! Recording, and what a crash leaves in each gap: data files are written and made durable (a directory no record
//! mentions is removed at the next open; data of an image that exists is only added to), then the record is replaced.
//! Removing: layers are marked pending, the record goes, then data and layers (what is left goes at the next open).

use std::borrow::Cow;
use std::fs::{DirBuilder, File};
use std::io::{self, Read};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use domain::digest::Digest;
use domain::id::{ImageId, LayerId};
use domain::schema1::Schema1;
use durable::{Durability, ReplaceError};
use jiff::Timestamp;
use rustix::fs::{CWD, Mode, OFlags};
use sha2::{Digest as _, Sha256};

use crate::containers::UnmountLayer;
use crate::error::{BigDataError, FindImageError, PathError, PutImageError, RemoveImageError};
use crate::fault;
use crate::layers::{RemoveLayers, chain_of};
use crate::records::{ImageRecord, LayerRecord};
use crate::signatures::add_sizes;
use crate::staging::remove_tree;
use crate::store::{STABLE, Store};
use crate::table::{Guard, RecordsError};
use crate::types::{BigData, Image, MANIFEST_KEY, NewImage, SIGNATURES_KEY};

/// Largest blob a caller is given: sixteen times the largest manifest or configuration registries accept.
const BIG_DATA_MAX_BYTES: u64 = 64 << 20;
/// Fewest characters of an id that are looked up.
const ID_PREFIX_MIN: usize = 3;

/// Name of the file a blob lies in. Source: containers/storage: kept when it has only `[a-z0-9.]` before its last
/// character, else `=` and base64.
pub(crate) fn big_data_file(key: &str) -> String {
    let is_plain = |byte: &u8| matches!(byte, b'.' | b'0'..=b'9' | b'a'..=b'z');
    let stop = key.as_bytes().iter().position(|byte| !is_plain(byte));
    match stop {
        Some(stop) if stop + 1 < key.len() => format!("={}", STANDARD.encode(key)),
        _ => key.to_owned(),
    }
}

fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// The digest a record has of a blob: manifests count by their payload. Source: containers/storage is told so by
/// containers/image.
pub(crate) fn digest_of_big_data(key: &str, bytes: &[u8]) -> Digest {
    if key.starts_with(MANIFEST_KEY) { digest_of_manifest(bytes) } else { digest_of(bytes) }
}

fn digest_of_manifest(bytes: &[u8]) -> Digest {
    // One whose signatures make no sense is no manifest; as bytes it still has a digest.
    digest_of(&domain::schema1::payload(bytes).unwrap_or(Cow::Borrowed(bytes)))
}

pub(crate) fn replace_error(path: &Path) -> impl FnOnce(ReplaceError) -> PathError + use<> {
    let path = path.to_owned();
    move |error| PathError { action: "write", path, source: io::Error::other(error) }
}

impl Store {
    /// All images.
    pub fn images(&self) -> Result<Vec<Image>, RecordsError> {
        let layers = self.layers.read()?;
        let images = self.images.read()?;
        Ok(images.iter().filter_map(|row| to_image(row, &layers)).collect())
    }

    /// The image with this id, this unique beginning of an id (three or more hexadecimal characters), or exactly
    /// this normalised name.
    pub fn find_image(&self, key: &str) -> Result<Option<Image>, FindImageError> {
        let records = |source| FindImageError::Records { key: key.to_owned(), source };
        let layers = self.layers.read().map_err(records)?;
        let images = self.images.read().map_err(records)?;
        if let Some(row) = images.find(key) {
            return Ok(to_image(row, &layers));
        }
        let is_hex = key.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if is_hex && (ID_PREFIX_MIN..64).contains(&key.len()) {
            let mut matches = images.iter().filter(|row| row.id.starts_with(key));
            match (matches.next(), matches.next()) {
                (Some(_), Some(_)) => return Err(FindImageError::Ambiguous { key: key.to_owned() }),
                (Some(row), None) => return Ok(to_image(row, &layers)),
                (None, _) => {}
            }
        }
        Ok(images.find_name(key).and_then(|row| to_image(row, &layers)))
    }

    /// One blob stored with an image.
    pub fn image_big_data(&self, image: &ImageId, key: &str) -> Result<Vec<u8>, BigDataError> {
        let images = self.images.read().map_err(|source| BigDataError::Records { image: image.clone(), source })?;
        let row = images.find(image.as_str()).ok_or_else(|| BigDataError::NoImage { image: image.clone() })?;
        if !row.big_data_names.iter().any(|name| name == key) {
            return Err(BigDataError::NoKey { image: image.clone(), key: key.to_owned() });
        }
        let path = self.image_dir(image).join(big_data_file(key));
        match read_regular(&path, BIG_DATA_MAX_BYTES) {
            Ok(Some(bytes)) => Ok(bytes),
            Ok(None) => {
                Err(BigDataError::TooLarge { image: image.clone(), key: key.to_owned(), limit: BIG_DATA_MAX_BYTES })
            }
            Err(source) => Err(BigDataError::Read { image: image.clone(), key: key.to_owned(), source }),
        }
    }

    /// The current manifest, byte for byte.
    pub fn image_manifest(&self, image: &ImageId) -> Result<Vec<u8>, BigDataError> {
        self.image_big_data(image, MANIFEST_KEY)
    }

    /// The configuration, byte for byte.
    ///
    /// Other tools store none for images of schema 1: it is made of the manifest and the layers' records then.
    pub fn image_config(&self, image: &ImageId) -> Result<Vec<u8>, BigDataError> {
        match self.image_big_data(image, &format!("sha256:{image}")) {
            Err(absent @ BigDataError::NoKey { .. }) => self.made_config(image).ok_or(absent),
            other => other,
        }
    }

    fn made_config(&self, image: &ImageId) -> Option<Vec<u8>> {
        let manifest = Schema1::parse(&self.image_manifest(image).ok()?).ok()?;
        let layers = self.layers.read().ok()?;
        let top = self.images.read().ok()?.find(image.as_str())?.layer.clone();
        let chain = chain_of(&layers, &top);
        let diff_id = |id: &String| Digest::parse(&layers.find(id)?.diff_digest).ok();
        let diff_ids = chain.iter().rev().map(diff_id).collect::<Option<Vec<_>>>()?;
        manifest.config(&diff_ids).ok().filter(|config| digest_of(config).hex() == image.as_str())
    }

    /// Records an image whose layers are committed; one that exists gets the names and manifests added.
    pub fn put_image(&self, new: NewImage) -> Result<(), PutImageError> {
        check_digests(&new)?;
        let records = |source| PutImageError::Records { image: new.id.clone(), source };
        let layers = self.layers.read().map_err(records)?;
        if let Some(layer) = &new.top_layer
            && layers.find(layer.as_str()).is_none_or(LayerRecord::is_incomplete)
        {
            return Err(PutImageError::NoLayer { image: new.id.clone(), layer: layer.clone() });
        }
        let mut images = self.images.write().map_err(records)?;
        let found = images.locate(new.id.as_str()).map(|(file, _)| file);
        let (is_new, file) = (found.is_none(), found.unwrap_or(STABLE));
        let written =
            self.write_image_data(&new).map_err(|source| PutImageError::Path { image: new.id.clone(), source });
        let saved = written.and_then(|data| {
            take_names_of_all(&mut images, &new.names, new.id.as_str(), file).map_err(records)?;
            let rows = images.rows_mut(file);
            match rows.iter_mut().find(|row| row.id == new.id.as_str()) {
                Some(row) => fill_record(row, &new, data),
                None => {
                    let mut row = ImageRecord { id: new.id.to_string(), ..ImageRecord::default() };
                    fill_record(&mut row, &new, data);
                    rows.push(row);
                }
            }
            images.save(file).map_err(records)
        });
        if saved.is_err() && is_new && !fault::is_dead() {
            let _ = remove_tree(&self.own_image_dir(&new.id));
        }
        saved?;
        if let Some(layer) = &new.top_layer {
            for id in chain_of(&layers, layer.as_str()) {
                self.staging().unmark_pending(&id);
            }
        }
        Ok(())
    }

    fn write_image_data(&self, new: &NewImage) -> Result<Vec<BigData>, PathError> {
        let directory = self.own_image_dir(&new.id);
        fault::step("make image directory").map_err(PathError::new("make directory", &directory))?;
        match DirBuilder::new().mode(0o700).create(&directory) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(PathError::new("make directory", &directory)(error));
            }
            _ => {}
        }
        let signatures: Vec<u8> = new.signatures.concat();
        let mut blobs: Vec<(String, &[u8])> = vec![(new.config_digest.to_string(), &new.config)];
        if let Some((digest, index)) = &new.index {
            blobs.push((format!("{MANIFEST_KEY}-{digest}"), index));
        }
        blobs.push((format!("{MANIFEST_KEY}-{}", new.manifest_digest), &new.manifest));
        blobs.push((MANIFEST_KEY.to_owned(), &new.manifest));
        blobs.push((format!("signature-{}", new.manifest_digest.hex()), &signatures));
        if !signatures.is_empty() {
            blobs.push((SIGNATURES_KEY.to_owned(), &signatures));
        }
        let mut written = Vec::new();
        for (key, bytes) in blobs {
            let path = directory.join(big_data_file(&key));
            fault::step("write image data").map_err(PathError::new("write", &path))?;
            durable::replace(&path, bytes, 0o600, Durability::Volatile).map_err(replace_error(&path))?;
            let digest = Some(digest_of_big_data(&key, bytes));
            written.push((path, BigData { key, size: bytes.len() as u64, digest }));
        }
        fault::step("sync image data").map_err(PathError::new("sync", &directory))?;
        // After all of them are written, so that the first fsync takes most of the others along.
        for path in written.iter().map(|(path, _)| path).chain([&directory]) {
            File::open(path).and_then(|file| file.sync_all()).map_err(PathError::new("sync", path))?;
        }
        Ok(written.into_iter().map(|(_, data)| data).collect())
    }

    /// Takes a name from its image, whose id is returned; the image stays, even without names.
    pub fn untag(&self, name: &str) -> Result<Option<ImageId>, RecordsError> {
        let mut images = self.images.write()?;
        let Some(id) = images.find_name(name).map(|row| row.id.clone()) else { return Ok(None) };
        if images.is_foreign(&id) {
            return Err(RecordsError::ReadOnly { what: name.to_owned() });
        }
        let Some((file, _)) = images.locate(&id) else { return Ok(None) };
        take_names(images.rows_mut(file), &[name.to_owned()], "");
        images.save(file)?;
        Ok(ImageId::parse(&id).ok())
    }

    /// Removes a name of an image, and the image with its last one, as [`Store::remove_image`] does. A name that has
    /// moved to another image meanwhile is that image's.
    pub fn remove_image_name(&self, image: &ImageId, name: &str) -> Result<(), RemoveImageError> {
        self.remove(image, Some(name))
    }

    /// Removes an image with all its names, and those of its layers that nothing else uses. One that is not there is
    /// removed already.
    pub fn remove_image(&self, image: &ImageId) -> Result<(), RemoveImageError> {
        self.remove(image, None)
    }

    fn remove(&self, image: &ImageId, name: Option<&str>) -> Result<(), RemoveImageError> {
        let records = |source| RemoveImageError::Records { image: image.clone(), source };
        let path_error = |source| RemoveImageError::Path { image: image.clone(), source };
        let mut away = Vec::new();
        let mut layers = self.layers.write().map_err(records)?;
        let mut images = self.images.write().map_err(records)?;
        let containers = self.containers.read().map_err(records)?;
        if images.is_foreign(image.as_str()) {
            return Err(RemoveImageError::ReadOnly { image: image.clone() });
        }
        let Some((file, row)) = images.locate(image.as_str()) else { return Ok(()) };
        let names = row.names.clone();
        if let Some(name) = name
            && names.iter().any(|own| own != name)
        {
            if names.iter().any(|own| own == name) {
                take_names(images.rows_mut(file), &[name.to_owned()], "");
                images.save(file).map_err(records)?;
            }
            return Ok(());
        }
        if let Some(user) = containers.iter().find(|row| row.image == image.as_str()) {
            return Err(RemoveImageError::InUse { image: image.clone(), container: user.id.clone() });
        }
        if let Some(container) = self.holder_of(image, &containers).map_err(path_error)? {
            return Err(RemoveImageError::InUse { image: image.clone(), container });
        }
        let Some(row) = images.find(image.as_str()) else { return Ok(()) };
        let is_shared = images.iter().any(|other| other.id != row.id && other.layer == row.layer);
        if !is_shared && LayerId::parse(&row.layer).is_ok() {
            self.unmount_removed(&row.layer).map_err(|error| match error {
                UnmountLayer::Path(source) => path_error(source),
                UnmountLayer::Records(source) => records(source),
            })?;
        }
        let mut candidates = row.mapped_layers.clone();
        candidates.extend(chain_of(&layers, &row.layer));
        for layer in &candidates {
            self.staging().mark_pending(layer).map_err(path_error)?;
        }
        images.rows_mut(file).retain(|row| row.id != image.as_str());
        images.save(file).map_err(records)?;
        remove_tree(&self.own_image_dir(image)).map_err(path_error)?;
        let doomed = self.unused(&layers, &images, &containers, &candidates);
        self.remove_layers(&mut layers, &doomed, &mut away).map_err(|error| match error {
            RemoveLayers::Records(source) => records(source),
            RemoveLayers::Path(source) => path_error(source),
        })?;
        for layer in &candidates {
            self.staging().unmark_pending(layer);
        }
        Ok(())
    }
}

fn check_digests(new: &NewImage) -> Result<(), PutImageError> {
    let mut blobs =
        vec![("manifest", &new.manifest_digest, &new.manifest), ("configuration", &new.config_digest, &new.config)];
    if let Some((digest, bytes)) = &new.index {
        blobs.push(("index", digest, bytes));
    }
    for (what, expected, bytes) in blobs {
        let actual = if what == "configuration" { digest_of(bytes) } else { digest_of_manifest(bytes) };
        if actual != *expected {
            let (image, expected) = (new.id.clone(), expected.clone());
            return Err(PutImageError::DigestMismatch { image, what, expected, actual });
        }
    }
    Ok(())
}

/// Takes names from every image but the one that gets them; what they were stays in the loser's history.
fn take_names(rows: &mut [ImageRecord], names: &[String], winner: &str) {
    for row in rows.iter_mut().filter(|row| row.id != winner) {
        for name in names {
            if row.names.contains(name) {
                row.names.retain(|own| own != name);
                add_first(&mut row.names_history, name);
            }
        }
    }
}

/// Takes names in every file; that of the winner, `file`, is still to be written.
fn take_names_of_all(
    images: &mut Guard<'_, ImageRecord>,
    names: &[String],
    winner: &str,
    file: usize,
) -> Result<(), RecordsError> {
    for other in 0..images.files() {
        let has_one = |row: &ImageRecord| row.id != winner && row.names.iter().any(|own| names.contains(own));
        if images.rows(other).iter().any(has_one) {
            take_names(images.rows_mut(other), names, winner);
            if other != file {
                images.save(other)?;
            }
        }
    }
    Ok(())
}

fn add_first(list: &mut Vec<String>, name: &str) {
    list.retain(|other| other != name);
    list.insert(0, name.to_owned());
}

fn fill_record(row: &mut ImageRecord, new: &NewImage, data: Vec<BigData>) {
    for name in &new.names {
        if !row.names.contains(name) {
            row.names.push(name.clone());
        }
        add_first(&mut row.names_history, name);
    }
    row.digest = new.manifest_digest.to_string();
    row.layer = new.top_layer.as_ref().map(ToString::to_string).unwrap_or_default();
    // The configuration says the same each time: an image that exists keeps what it has.
    if row.created.is_empty() {
        row.created = new.created.unwrap_or_else(Timestamp::now).to_string();
    }
    row.metadata = add_sizes(&row.metadata, new);
    for blob in data {
        if !row.big_data_names.contains(&blob.key) {
            row.big_data_names.push(blob.key.clone());
        }
        row.big_data_sizes.insert(blob.key.clone(), i64::try_from(blob.size).unwrap_or(i64::MAX));
        if let Some(digest) = blob.digest {
            row.big_data_digests.insert(blob.key, digest.to_string());
        }
    }
}

fn to_image(row: &ImageRecord, layers: &Guard<'_, LayerRecord>) -> Option<Image> {
    // Records with other ids are some other tool's; none of the field makes them, but the format would allow it.
    let id = ImageId::parse(&row.id).ok()?;
    let big_data: Vec<BigData> = row
        .big_data_names
        .iter()
        .map(|key| BigData {
            key: key.clone(),
            size: row.big_data_sizes.get(key).and_then(|size| u64::try_from(*size).ok()).unwrap_or(0),
            digest: row.big_data_digests.get(key).and_then(|digest| Digest::parse(digest).ok()),
        })
        .collect();
    let mut size = Some(big_data.iter().map(|data| data.size).sum::<u64>());
    for layer in chain_of(layers, &row.layer) {
        let of_layer = layers.find(&layer).filter(|layer| !layer.diff_digest.is_empty());
        let of_layer = of_layer.and_then(|layer| u64::try_from(layer.diff_size).ok());
        size = size.zip(of_layer).map(|(sum, of_layer)| sum.saturating_add(of_layer));
    }
    let of_manifest = row.big_data_digests.get(MANIFEST_KEY).unwrap_or(&row.digest);
    Some(Image {
        id,
        digest: Digest::parse(&row.digest).or_else(|_| Digest::parse(of_manifest)).ok(),
        names: row.names.clone(),
        names_history: row.names_history.clone(),
        top_layer: LayerId::parse(&row.layer).ok(),
        created: row.created.parse().ok(),
        big_data,
        size,
    })
}

/// A file's content; `None` if it is longer than `limit`.
pub(crate) fn read_regular(path: &Path, limit: u64) -> io::Result<Option<Vec<u8>>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(CWD, path, flags, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    Ok((bytes.len() as u64 <= limit).then_some(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_have_the_file_names_of_the_field() {
        for (key, file) in [
            ("manifest", "manifest"),
            ("a.b9", "a.b9"),
            // Only what comes before the last character decides.
            ("signature-", "signature-"),
            ("sha256:ab", "=c2hhMjU2OmFi"),
            ("Manifest", "=TWFuaWZlc3Q="),
        ] {
            assert_eq!(big_data_file(key), file);
        }
    }

    #[test]
    fn a_name_moves_and_leaves_its_history() {
        let row = |id: &str, names: &[&str]| ImageRecord {
            id: id.to_owned(),
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..ImageRecord::default()
        };
        let mut rows = vec![row("a", &["x", "y"]), row("b", &["z"])];
        take_names(&mut rows, &["y".to_owned(), "z".to_owned()], "b");
        assert_eq!(rows[0].names, ["x"]);
        assert_eq!(rows[0].names_history, ["y"]);
        assert_eq!(rows[1].names, ["z"]);
    }
}
