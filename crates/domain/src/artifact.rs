//! What a manifest says of an artifact: which blobs it has, and what they are called in a volume.
//!
//! Names come from whoever pushed the artifact. They become paths below a mount point, so that only plain ones pass.

use std::collections::BTreeMap;

use serde::Deserialize;
use thiserror::Error;

use crate::digest::Digest;

/// Name of a blob as a file. Source: OCI image specification, annotations.md.
const TITLE: &str = "org.opencontainers.image.title";
/// The same in the model specification (modelpack), looked at second.
const FILE_PATH: &str = "org.cncf.model.filepath";
/// As many as an image may have layers; each is one mount of a container.
pub const BLOBS_MAX: usize = 500;
/// Longest name of a directory entry on any file system of Linux, and longest path of one.
const SEGMENT_MAX_BYTES: usize = 255;
const NAME_MAX_BYTES: usize = 1024;
/// How much of a foreign text an error shows.
const SHOWN_MAX: usize = 100;

/// Why the manifest of an artifact cannot be read.
#[derive(Debug, Error)]
pub enum ParseArtifactError {
    /// Not JSON, or not of the shape of a manifest.
    #[error("read the manifest of an artifact")]
    Json(#[from] serde_json::Error),
    /// More blobs than are ever mounted.
    #[error("an artifact with {count} blobs, more than {BLOBS_MAX}")]
    TooMany {
        /// As given.
        count: usize,
    },
}

/// Why the blobs of an artifact cannot be files.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum BlobNameError {
    /// It would lead somewhere else, or is no name of a file at all.
    #[error("blob name {name:?} is not a plain relative path")]
    NotPlain {
        /// As given, its beginning.
        name: String,
    },
    /// One of two would hide the other.
    #[error("two blobs on one path: {first:?} and {second:?}")]
    Conflict {
        /// One name.
        first: String,
        /// The other, the same or below it.
        second: String,
    },
}

/// One blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactBlob {
    /// Of its content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// As annotated; absent where there is no annotation.
    title: Option<String>,
}

/// What matters of the manifest of an artifact, or of any manifest that is no index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ArtifactManifest {
    /// Digest of the configuration, which is stored but never mounted.
    pub config: Digest,
    /// In the order of the manifest.
    pub blobs: Vec<ArtifactBlob>,
}

#[derive(Deserialize)]
struct RawManifest {
    config: RawDescriptor,
    layers: Option<Vec<RawDescriptor>>,
}

#[derive(Deserialize)]
struct RawDescriptor {
    digest: Digest,
    #[serde(default)]
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
}

/// A blob as a file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlobFile {
    /// Relative path below the mount point, plain; empty for a file that is mounted itself.
    pub path: String,
    /// Of its content.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
}

impl ArtifactManifest {
    /// Reads a manifest.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseArtifactError> {
        let raw: RawManifest = serde_json::from_slice(bytes)?;
        let layers = raw.layers.unwrap_or_default();
        if layers.len() > BLOBS_MAX {
            return Err(ParseArtifactError::TooMany { count: layers.len() });
        }
        let blob = |raw: RawDescriptor| {
            let annotations = raw.annotations.unwrap_or_default();
            let title = annotations.get(TITLE).or(annotations.get(FILE_PATH)).filter(|title| !title.is_empty());
            ArtifactBlob { digest: raw.digest, size: raw.size, title: title.cloned() }
        };
        Ok(Self { config: raw.config.digest, blobs: layers.into_iter().map(blob).collect() })
    }

    /// Bytes of all blobs.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }

    /// Every blob as a file: by its title, else by its file path, else `sha256-<hex>`.
    pub fn files(&self) -> Result<Vec<BlobFile>, BlobNameError> {
        let mut files: Vec<BlobFile> = Vec::with_capacity(self.blobs.len());
        for blob in &self.blobs {
            let path = match &blob.title {
                Some(title) => clean(title)?,
                None => format!("sha256-{}", blob.digest.hex()),
            };
            files.push(BlobFile { path, digest: blob.digest.clone(), size: blob.size });
        }
        check_conflicts(&files)?;
        Ok(files)
    }
}

/// The plain form of a name: `./a//b` → `a/b`. Nothing that could lead anywhere else has one.
fn clean(name: &str) -> Result<String, BlobNameError> {
    let refused = || BlobNameError::NotPlain { name: name.chars().take(SHOWN_MAX).collect() };
    if name.len() > NAME_MAX_BYTES || name.starts_with('/') || name.ends_with('/') || name.chars().any(char::is_control)
    {
        return Err(refused());
    }
    let segments: Vec<&str> = name.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    let is_good = |segment: &&str| *segment != ".." && segment.len() <= SEGMENT_MAX_BYTES;
    if segments.is_empty() || !segments.iter().all(is_good) { Err(refused()) } else { Ok(segments.join("/")) }
}

fn check_conflicts(files: &[BlobFile]) -> Result<(), BlobNameError> {
    // By segments, so that whatever lies below a name follows it at once.
    let mut sorted: Vec<Vec<&str>> = files.iter().map(|file| file.path.split('/').collect()).collect();
    sorted.sort();
    match sorted.windows(2).find(|pair| pair[1].starts_with(&pair[0])) {
        Some(pair) => Err(BlobNameError::Conflict { first: pair[0].join("/"), second: pair[1].join("/") }),
        None => Ok(()),
    }
}

/// What of a volume a sub path means: all files below it, or one file, whose path is then empty. `None` if nothing.
///
/// `sub_path` is relative and without `..`. Source: CRI `Mount.image_sub_path`.
#[must_use]
pub fn select(files: Vec<BlobFile>, sub_path: &str) -> Option<Vec<BlobFile>> {
    let wanted: Vec<&str> = sub_path.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    if wanted.is_empty() {
        return Some(files);
    }
    let wanted = wanted.join("/");
    let below = |path: &str| path.strip_prefix(&wanted)?.strip_prefix('/').map(str::to_owned);
    let selected: Vec<BlobFile> = files
        .into_iter()
        .filter_map(|file| {
            let path = if file.path == wanted { String::new() } else { below(&file.path)? };
            Some(BlobFile { path, ..file })
        })
        .collect();
    (!selected.is_empty()).then_some(selected)
}

/// Entry point for fuzzing: whatever a registry serves, a name that passes stays below the mount point.
pub fn fuzz(bytes: &[u8]) {
    let Ok(manifest) = ArtifactManifest::parse(bytes) else { return };
    let Ok(files) = manifest.files() else { return };
    for file in &files {
        let is_plain = !file.path.starts_with('/') && file.path.split('/').all(|part| !matches!(part, "" | "." | ".."));
        assert!(is_plain && !file.path.contains('\0'), "{file:?}");
        let parent = file.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        assert!(select(files.clone(), parent).is_some_and(|selected| !selected.is_empty()), "{file:?}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(annotations: &[&str]) -> Vec<u8> {
        let layer = |(number, annotations): (usize, &&str)| {
            format!(r#"{{"digest":"sha256:{number:064x}","size":{number},"annotations":{annotations}}}"#)
        };
        let layers: Vec<String> = annotations.iter().enumerate().map(layer).collect();
        format!(r#"{{"config":{{"digest":"sha256:{}"}},"layers":[{}]}}"#, "a".repeat(64), layers.join(",")).into_bytes()
    }

    fn titled(titles: &[&str]) -> Result<Vec<String>, BlobNameError> {
        let annotations: Vec<String> = titles
            .iter()
            .map(|title| format!(r#"{{"{TITLE}":{}}}"#, serde_json::to_string(title).expect("text")))
            .collect();
        let annotations: Vec<&str> = annotations.iter().map(String::as_str).collect();
        let files = ArtifactManifest::parse(&manifest(&annotations)).expect("parses").files()?;
        Ok(files.into_iter().map(|file| file.path).collect())
    }

    #[test]
    fn names_come_from_title_then_path_then_digest() {
        let both = format!(r#"{{"{TITLE}":"t","{FILE_PATH}":"p"}}"#);
        let path = format!(r#"{{"{FILE_PATH}":"d/p"}}"#);
        let empty = format!(r#"{{"{TITLE}":""}}"#);
        let parsed = ArtifactManifest::parse(&manifest(&[&both, &path, "null", &empty])).expect("parses");
        let files = parsed.files().expect("plain names");
        let names: Vec<&str> = files.iter().map(|file| file.path.as_str()).collect();
        let by_digest = |number: usize| format!("sha256-{number:064x}");
        assert_eq!(names, ["t", "d/p", &by_digest(2), &by_digest(3)]);
        assert_eq!((parsed.size(), files[1].size, parsed.config.hex()), (6, 1, "a".repeat(64).as_str()));
    }

    #[test]
    fn hostile_names_are_refused() {
        for name in
            ["/etc/passwd", "..", "../x", "a/../b", "a/..", "./..", ".", "./", "a/", "//", "a\0b", "a\nb", "\u{7f}"]
        {
            assert!(matches!(titled(&[name]), Err(BlobNameError::NotPlain { .. })), "{name:?}");
        }
        let long = "x".repeat(SEGMENT_MAX_BYTES + 1);
        let deep = "a/".repeat(NAME_MAX_BYTES / 2) + "b";
        assert!(titled(&[&long]).is_err() && titled(&[&deep]).is_err());
        for (name, plain) in [("a", "a"), ("./a//b/./c", "a/b/c"), ("..a", "..a"), ("a b:c,d\\e", "a b:c,d\\e")] {
            assert_eq!(titled(&[name]), Ok(vec![plain.to_owned()]));
        }
    }

    #[test]
    fn no_blob_hides_another() {
        for names in [&["a", "a"][..], &["a", "./a"], &["a/b", "a"], &["a", "a-b", "a/b"], &["x/a/b", "x", "y"]] {
            assert!(matches!(titled(names), Err(BlobNameError::Conflict { .. })), "{names:?}");
        }
        assert!(titled(&["a/b", "a/c", "ab", "a-b"]).is_ok());
    }

    #[test]
    fn a_sub_path_is_a_directory_or_a_file() {
        let files = || {
            let digest = Digest::from_sha256(&[1; 32]);
            let file = |path: &str| BlobFile { path: path.to_owned(), digest: digest.clone(), size: 1 };
            ["top", "d/one", "d/e/two", "de"].map(file).to_vec()
        };
        for (sub_path, expected) in [
            ("", Some(&["top", "d/one", "d/e/two", "de"][..])),
            (".", Some(&["top", "d/one", "d/e/two", "de"])),
            ("d", Some(&["one", "e/two"])),
            ("./d/", Some(&["one", "e/two"])),
            ("d/e", Some(&["two"])),
            ("top", Some(&[""])),
            ("d/one", Some(&[""])),
            ("x", None),
            ("top/x", None),
            ("d/on", None),
        ] {
            let selected = select(files(), sub_path);
            let paths = selected.map(|files| files.into_iter().map(|file| file.path).collect::<Vec<_>>());
            assert_eq!(
                paths.as_deref(),
                expected.map(|list| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>()).as_deref(),
                "{sub_path}"
            );
        }
    }

    #[test]
    fn what_is_no_manifest_is_refused() {
        let many = vec!["null"; BLOBS_MAX + 1];
        assert!(matches!(ArtifactManifest::parse(&manifest(&many)), Err(ParseArtifactError::TooMany { .. })));
        for text in ["", "{}", "[]", r#"{"config":{"digest":"md5:00"}}"#, r#"{"config":{"digest":"sha256:../../x"}}"#] {
            assert!(ArtifactManifest::parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
