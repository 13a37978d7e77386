//! Images as the CRI shows them: found, listed, removed, measured.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, PoisonError};

use domain::container::ImageSpec;
use domain::id::{ContainerId, ImageId};
use domain::image::ImageConfig;
use domain::time::Timestamp;
use image_pull::Reference;
use image_pull::reference::Selector;
use image_store::{Image, Store};
use thiserror::Error;

use crate::blocking;
use crate::node::Node;
use crate::puller::Puller;
use crate::undo::chain;
use crate::volumes::has_volume;

/// Why images cannot be listed or found.
#[derive(Debug, Error)]
pub enum ImagesError {
    /// No image was named.
    #[error("no image specified")]
    Unnamed,
    /// The name is none.
    #[error(transparent)]
    Name(#[from] ResolveNameError),
    /// There is no such image here.
    #[error("image {name:?} is not in the store")]
    Absent {
        /// As asked.
        name: String,
    },
    /// The store's records.
    #[error("look for image {name:?}")]
    Find {
        /// As asked.
        name: String,
        #[source]
        /// What failed.
        source: image_store::FindImageError,
    },
    /// The store's records.
    #[error("list images")]
    Records(#[from] image_store::RecordsError),
    /// The store of artifacts.
    #[error("list artifacts")]
    Artifacts(#[source] image_store::ArtifactError),
    /// The image's configuration.
    #[error("read the configuration of image {image}")]
    Config {
        /// The image.
        image: ImageId,
        #[source]
        /// What failed.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The file system.
    #[error("measure the store")]
    Usage(#[from] image_store::UsageError),
}

/// Why a text names no image.
#[derive(Debug, Error)]
#[error("{0}")]
pub struct ResolveNameError(pub(crate) String);

/// Why an image was not removed.
#[derive(Debug, Error)]
pub enum RemoveImageError {
    /// It could not be looked for.
    #[error(transparent)]
    Find(#[from] ImagesError),
    /// A container has it as a volume.
    #[error("the image is in use by {container}")]
    InUse {
        /// The container.
        container: ContainerId,
    },
    /// An artifact of an additional store.
    #[error("artifact {name:?} is in an additional store, from which nothing is removed")]
    ReadOnly {
        /// As asked.
        name: String,
    },
    /// The store of artifacts did not remove it.
    #[error("remove artifact {name:?}")]
    Artifact {
        /// As asked.
        name: String,
        #[source]
        /// What failed.
        source: image_store::ArtifactError,
    },
    /// The store did not remove it, as one that a container uses.
    #[error("remove image {name:?}")]
    Store {
        /// As asked.
        name: String,
        #[source]
        /// What failed.
        source: image_store::RemoveImageError,
    },
}

/// How an image was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageLookup {
    /// By its id or the beginning of one.
    ById,
    /// By one of its names.
    ByName(String),
}

/// An image as the CRI shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageStatus {
    /// Its id.
    pub id: ImageId,
    /// Names with tags.
    pub repo_tags: Vec<String>,
    /// Names with digests.
    pub repo_digests: Vec<String>,
    /// Bytes of its layers and records.
    pub size_bytes: u64,
    /// Numeric user of its configuration.
    pub uid: Option<i64>,
    /// User of its configuration by name.
    pub username: String,
    /// Whether the kubelet must keep it.
    pub is_pinned: bool,
    /// The specification it was asked by, with its annotations.
    pub spec: ImageSpec,
    /// Labels of its configuration.
    pub labels: BTreeMap<String, String>,
}

/// What the file system of images or containers holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageFsUsage {
    /// The directory that stands for it.
    pub mountpoint: PathBuf,
    /// Bytes used.
    pub used_bytes: u64,
    /// Inodes used.
    pub inodes_used: u64,
    /// When it was measured.
    pub at: Timestamp,
}

/// An image that a container can be made from.
#[derive(Debug, Clone)]
pub(crate) struct LocalImage {
    pub(crate) id: ImageId,
    pub(crate) repo_tags: Vec<String>,
    pub(crate) repo_digests: Vec<String>,
    pub(crate) config: ImageConfig,
}

impl LocalImage {
    /// A name for people, or the id.
    pub(crate) fn name(&self) -> String {
        self.repo_tags.first().or(self.repo_digests.first()).cloned().unwrap_or_else(|| self.id.to_string())
    }

    /// `repository@digest` if known, or the id.
    pub(crate) fn reference(&self) -> String {
        self.repo_digests.first().cloned().unwrap_or_else(|| self.id.to_string())
    }
}

impl Node {
    /// Every image and artifact of the node.
    pub async fn images(&self) -> Result<Vec<ImageStatus>, ImagesError> {
        let (store, pins) = (Arc::clone(&self.store), self.pinned_images());
        let mut images: Vec<ImageStatus> = blocking::run("list images", move || {
            let images = store.images()?;
            let readable = images.iter().filter_map(|image| match status_of(&store, image, &pins) {
                Ok(status) => Some(status),
                // One damaged image, perhaps another tool's, must not hide all others from the kubelet.
                Err(error) => {
                    tracing::warn!(image.id = %image.id, error = %chain(&error), "leaving out an image that cannot be read");
                    None
                }
            });
            Ok::<_, ImagesError>(readable.collect())
        })
        .await?;
        images.extend(self.artifact_statuses().await);
        Ok(images)
    }

    /// The image or artifact of a name or id; `None` when there is none.
    pub async fn image_status(&self, name: &str) -> Result<Option<ImageStatus>, ImagesError> {
        let Some((image, _)) = self.find_image(name).await? else { return self.artifact_status(name).await };
        let (store, pins) = (Arc::clone(&self.store), self.pinned_images());
        blocking::run("read image", move || status_of(&store, &image, &pins)).await.map(Some)
    }

    /// The configuration of an image as its registry has it: JSON, checked. `None` when the image is gone.
    pub async fn image_config_json(&self, id: &ImageId) -> Option<Vec<u8>> {
        let (store, id) = (Arc::clone(&self.store), id.clone());
        blocking::run("read image configuration", move || store.image_config(&id)).await.ok()
    }

    /// Finds an image by id, beginning of an id, or name; short names may mean several, the first that is here counts.
    pub(crate) async fn find_image(&self, name: &str) -> Result<Option<(Image, ImageLookup)>, ImagesError> {
        if name.is_empty() {
            return Err(ImagesError::Unnamed);
        }
        let keys = self.puller.local_keys(name)?;
        let (store, name) = (Arc::clone(&self.store), name.to_owned());
        blocking::run("find image", move || {
            for (key, lookup) in keys {
                match store.find_image(&key) {
                    Ok(Some(image)) => return Ok(Some((image, lookup))),
                    Ok(None) => {}
                    // A short text may begin several ids and still be a name.
                    Err(image_store::FindImageError::Ambiguous { .. }) if lookup == ImageLookup::ById => {}
                    Err(source) => return Err(ImagesError::Find { name, source }),
                }
                if let Some(image) = find_by_digest(&store, &key)? {
                    return Ok(Some((image, lookup)));
                }
            }
            Ok(None)
        })
        .await
    }

    /// An image to make a container from.
    pub(crate) async fn local_image(&self, name: &str) -> Result<LocalImage, ImagesError> {
        let (image, _) = self.find_image(name).await?.ok_or_else(|| ImagesError::Absent { name: name.to_owned() })?;
        let store = Arc::clone(&self.store);
        blocking::run("read image", move || {
            let (repo_tags, repo_digests) = names_of(&image);
            Ok(LocalImage { config: config_of(&store, &image.id)?, id: image.id, repo_tags, repo_digests })
        })
        .await
    }

    /// Removes a name of an image or artifact, or either with its last name, or with all names when asked by id.
    pub async fn remove_image(&self, name: &str) -> Result<(), RemoveImageError> {
        self.remove_only_image(name).await?;
        self.remove_artifact(name).await
    }

    async fn remove_only_image(&self, name: &str) -> Result<(), RemoveImageError> {
        let Some((image, lookup)) = self.find_image(name).await? else { return Ok(()) };
        self.check_no_volume(image.id.as_str())?;
        let (store, asked) = (Arc::clone(&self.store), name.to_owned());
        blocking::run("remove image", move || {
            // A digest names the content, so that asking to remove it means the image with all its names.
            let removed = match lookup {
                ImageLookup::ByName(name) if image.names.contains(&name) => store.remove_image_name(&image.id, &name),
                ImageLookup::ByName(_) | ImageLookup::ById => store.remove_image(&image.id),
            };
            removed.map_err(|source| RemoveImageError::Store { name: asked, source })
        })
        .await
    }

    /// Source: CRI-O. The store knows of volumes of containers that are still being made.
    pub(crate) fn check_no_volume(&self, image: &str) -> Result<(), RemoveImageError> {
        let containers = self.objects.containers();
        match containers.iter().find(|container| has_volume(&container.config, image)) {
            Some(container) => Err(RemoveImageError::InUse { container: container.id.clone() }),
            None => Ok(()),
        }
    }

    /// What images and containers take on disk.
    ///
    /// The images' file system comes first; the containers' is the same unless `imagestore` is set. Source: CRI-O.
    pub async fn image_fs_usage(&self) -> Result<(ImageFsUsage, ImageFsUsage), ImagesError> {
        let store = Arc::clone(&self.store);
        let usage = blocking::run("measure store", move || store.usage()).await?;
        let nanos = i64::try_from(usage.at.as_nanosecond()).unwrap_or(i64::MAX);
        let told = |mountpoint: PathBuf, usage: image_store::Usage| ImageFsUsage {
            mountpoint,
            used_bytes: usage.bytes,
            inodes_used: usage.inodes,
            at: Timestamp::from_nanos(nanos),
        };
        let images = told(usage.mountpoint, usage.images);
        let containers = usage.containers.map_or_else(|| images.clone(), |(path, usage)| told(path, usage));
        Ok((images, containers))
    }

    pub(crate) fn pinned_images(&self) -> Vec<String> {
        let mut pins = self.pins.lock().unwrap_or_else(PoisonError::into_inner).clone();
        pins.push(self.config.image.pause_image.clone());
        pins
    }

    /// Images that the kubelet is told to keep, from now on, besides the pause image.
    pub fn pin_images(&self, pins: Vec<String>) {
        *self.pins.lock().unwrap_or_else(PoisonError::into_inner) = pins;
    }
}

impl Puller {
    /// What a text may mean in the store, in the order to be tried.
    pub(crate) fn local_keys(&self, name: &str) -> Result<Vec<(String, ImageLookup)>, ImagesError> {
        /// Shorter beginnings of ids are not looked for. Source: containers/storage.
        const PREFIX_MIN: usize = 3;
        let mut keys = Vec::new();
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_id = hex.len() >= PREFIX_MIN && hex.len() <= 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
        if is_id {
            keys.push((hex.to_ascii_lowercase(), ImageLookup::ById));
            if hex.len() == 64 {
                return Ok(keys);
            }
        }
        let name = name.strip_prefix(&self.config.image.default_transport).unwrap_or(name);
        let references = match self.registry.candidates(name) {
            Ok(references) => references,
            // Nothing says where to pull it from, but it may be here.
            Err(_) => vec![Reference::parse(name).map_err(|error| ResolveNameError(error.to_string()))?],
        };
        keys.extend(references.into_iter().map(|reference| by_name(&reference)));
        if let Ok(local) = Reference::parse(&format!("localhost/{name}")) {
            keys.push(by_name(&local));
        }
        Ok(keys)
    }
}

/// An image pulled by a tag is also meant by its repository and any of its manifests' digests.
fn find_by_digest(store: &Store, key: &str) -> Result<Option<Image>, ImagesError> {
    let Ok(reference) = Reference::parse(key) else { return Ok(None) };
    let Some(digest) = reference.digest() else { return Ok(None) };
    let repository = reference.repository();
    let has_repository = |name: &String| Reference::parse(name).is_ok_and(|name| name.repository() == repository);
    Ok(store
        .images()?
        .into_iter()
        .find(|image| image.manifest_digests().contains(digest) && image.names.iter().any(has_repository)))
}

fn by_name(reference: &Reference) -> (String, ImageLookup) {
    (reference.to_string(), ImageLookup::ByName(reference.to_string()))
}

pub(crate) fn config_of(store: &Store, image: &ImageId) -> Result<ImageConfig, ImagesError> {
    let failed = |source| ImagesError::Config { image: image.clone(), source };
    let blob = store.image_config(image).map_err(|error| failed(Box::new(error)))?;
    ImageConfig::parse(&blob).map_err(|error| failed(Box::new(error)))
}

fn status_of(store: &Store, image: &Image, pins: &[String]) -> Result<ImageStatus, ImagesError> {
    let config = config_of(store, &image.id)?;
    let (repo_tags, repo_digests) = names_of(image);
    let user = config.user.split(':').next().unwrap_or_default();
    let uid = user.parse::<u32>().ok().map(i64::from);
    let is_pinned = image.names.iter().any(|name| pins.iter().any(|pin| is_pinned_by(name, pin)));
    Ok(ImageStatus {
        id: image.id.clone(),
        repo_tags,
        repo_digests,
        size_bytes: image.size.unwrap_or(0),
        uid,
        username: if uid.is_some() { String::new() } else { user.to_owned() },
        is_pinned,
        spec: ImageSpec { image: image.id.to_string(), ..ImageSpec::default() },
        labels: config.labels,
    })
}

/// Tags, and digests: every manifest digest in every repository; without names, of the repository it last had.
fn names_of(image: &Image) -> (Vec<String>, Vec<String>) {
    let parsed: Vec<Reference> = image.names.iter().filter_map(|name| Reference::parse(name).ok()).collect();
    let tags = parsed.iter().filter(|name| name.tag().is_some()).map(ToString::to_string).collect();
    let digests = image.manifest_digests();
    let mut references: Vec<String> = Vec::new();
    let mut push = |text: String| {
        if !references.contains(&text) {
            references.push(text);
        }
    };
    for name in &parsed {
        // A digest the image was pulled by comes first in its repository.
        if let Selector::Digest(_) = name.selector() {
            push(name.to_string());
        }
        for digest in &digests {
            push(format!("{}@{digest}", name.repository()));
        }
    }
    if parsed.is_empty()
        && let Some(previous) = image.names_history.first().and_then(|name| Reference::parse(name).ok())
    {
        for digest in &digests {
            push(format!("{}@{digest}", previous.repository()));
        }
    }
    (tags, references)
}

/// `name` exactly, `prefix*`, or `*keyword*`; in any case. Source: CRI-O's `pinned_images`.
pub(crate) fn is_pinned_by(name: &str, pin: &str) -> bool {
    let (name, pin) = (name.to_lowercase(), pin.to_lowercase());
    let Some(glob) = pin.strip_suffix('*') else {
        return name == pin || Reference::parse(&pin).is_ok_and(|reference| reference.to_string() == name);
    };
    match glob.strip_prefix('*') {
        Some(keyword) => name.contains(keyword),
        None => name.starts_with(glob),
    }
}

#[cfg(test)]
mod tests {
    use domain::digest::Digest;

    use super::*;

    fn image(names: &[&str], history: &[&str]) -> Image {
        let own = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
        Image {
            id: ImageId::parse(&"a".repeat(64)).expect("an id"),
            digest: Some(Digest::from_sha256(&[1; 32])),
            names: own(names),
            names_history: own(history),
            top_layer: None,
            created: None,
            big_data: Vec::new(),
            size: None,
        }
    }

    #[test]
    fn names_split_into_tags_and_digests() {
        let digest = Digest::from_sha256(&[1; 32]);
        let other = Digest::from_sha256(&[2; 32]);
        let by_digest = format!("docker.io/library/a@{other}");
        for (names, history, tags, digests) in [
            (
                vec!["docker.io/library/a:1"],
                vec![],
                vec!["docker.io/library/a:1"],
                vec![format!("docker.io/library/a@{digest}")],
            ),
            (
                vec![by_digest.as_str()],
                vec![],
                vec![],
                vec![by_digest.clone(), format!("docker.io/library/a@{digest}")],
            ),
            (vec![], vec!["docker.io/library/b:2"], vec![], vec![format!("docker.io/library/b@{digest}")]),
            (vec![], vec![], vec![], vec![]),
        ] {
            let (found_tags, found_digests) = names_of(&image(&names, &history));
            assert_eq!((found_tags, found_digests), (tags.iter().map(ToString::to_string).collect(), digests));
        }
    }

    #[test]
    fn pins_are_exact_or_globs() {
        for (name, pin, expected) in [
            ("registry.k8s.io/pause:3.10.1", "registry.k8s.io/pause:3.10.1", true),
            ("registry.k8s.io/pause:3.10.1", "registry.k8s.io/pause:3.9", false),
            ("registry.k8s.io/pause:3.10.1", "registry.k8s.io/*", true),
            ("registry.k8s.io/pause:3.10.1", "*PAUSE*", true),
            ("docker.io/library/busybox:latest", "busybox", true),
            ("docker.io/library/busybox:latest", "*", true),
            ("docker.io/library/busybox:latest", "box*", false),
        ] {
            assert_eq!(is_pinned_by(name, pin), expected, "{name} {pin}");
        }
    }
}
