//! The OCI image layout: `index.json` and `blobs/sha256`. Source: OCI image specification, image-layout.md.

use super::{LocalImage, NAMES_SHOWN_MAX, Opened};
use crate::error::LocalError;
use crate::manifest::{Descriptor, MANIFEST_MAX_BYTES, Manifest, is_manifest_type, parse_manifest};
use crate::reference::{Parts, Reference};

/// The name of an image in a layout.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// The full name, where containerd or a new docker wrote the layout.
const IMAGE_NAME: &str = "io.containerd.image.name";
const INDEX_FILE: &str = "index.json";

pub(super) fn choose(image: LocalImage, wanted: Option<&str>) -> Result<Opened, LocalError> {
    let entries = read_index(&image)?.ok_or_else(|| LocalError::Missing { file: INDEX_FILE.to_owned() })?;
    let matches = |entry: &&Descriptor| wanted.is_none_or(|wanted| labels(entry).any(|label| label == wanted));
    let manifest = only(entries.iter().filter(matches), &entries, wanted.unwrap_or_default())?;
    let names = names_of(&manifest);
    Ok(Opened { image, manifest, names })
}

/// The entries of `index.json`, if there is one.
pub(super) fn read_index(image: &LocalImage) -> Result<Option<Vec<Descriptor>>, LocalError> {
    let Some(slice) = image.find_file(INDEX_FILE)? else { return Ok(None) };
    let bytes = slice.read_whole(INDEX_FILE, MANIFEST_MAX_BYTES)?;
    let malformed = |reason| LocalError::Malformed { file: INDEX_FILE.to_owned(), reason };
    match parse_manifest(&bytes, None).map_err(|error| malformed(crate::error::chain(&error)))? {
        Manifest::Index(index) => Ok(Some(index.entries)),
        Manifest::Image(_) | Manifest::Schema1(_) => Err(malformed("not an index".to_owned())),
    }
}

/// The one entry among those that match.
pub(super) fn only<'a>(
    mut matching: impl Iterator<Item = &'a Descriptor>,
    all: &[Descriptor],
    wanted: &str,
) -> Result<Descriptor, LocalError> {
    let present = || all.iter().flat_map(labels).take(NAMES_SHOWN_MAX).map(shown).collect();
    let Some(first) = matching.next() else {
        return Err(LocalError::NoSuchImage { wanted: wanted.to_owned(), present: present() });
    };
    // The same image under two names is one image.
    if matching.any(|other| other.digest != first.digest) {
        return Err(LocalError::Ambiguous { present: present() });
    }
    if !first.media_type.is_empty() && !is_manifest_type(&first.media_type) {
        let reason = format!("entry has media type {}", shown(&first.media_type));
        return Err(LocalError::Malformed { file: INDEX_FILE.to_owned(), reason });
    }
    Ok(first.clone())
}

/// What an entry may be called by.
pub(super) fn labels(entry: &Descriptor) -> impl Iterator<Item = &str> {
    [IMAGE_NAME, REF_NAME].into_iter().filter_map(|key| entry.annotations.get(key)).map(String::as_str)
}

/// Labels that are full references; a bare tag says nothing about a repository.
pub(super) fn names_of(entry: &Descriptor) -> Vec<Reference> {
    let is_full = |label: &&str| Parts::split(label).is_ok_and(|parts| parts.domain.is_some());
    let mut names: Vec<Reference> =
        labels(entry).filter(is_full).filter_map(|label| Reference::parse(label).ok()).collect();
    names.dedup();
    names
}

/// A name of an archive, fit for an error message.
fn shown(label: &str) -> String {
    label.chars().filter(|c| !c.is_control()).take(100).collect()
}
