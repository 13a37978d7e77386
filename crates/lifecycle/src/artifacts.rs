//! OCI artifacts: pulled like images, listed and removed with them, mounted blob by blob.
//!
//! Additional stores come first and are only read. An artifact in several stores is one artifact; a name in several is
//! that of the first.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;

use domain::artifact::ArtifactManifest;
use domain::container::ImageSpec;
use domain::digest::Digest;
use domain::id::ImageId;
use futures_util::stream::{self, StreamExt, TryStreamExt};
use image_pull::{ArtifactBlob, Reference, ResolvedArtifact};
use image_store::{ArtifactError, ArtifactStaging, ArtifactStore, Forget, NewArtifact, PathError, StoredArtifact};

use crate::blocking;
use crate::image::{ImageLookup, ImageStatus, ImagesError, RemoveImageError, is_pinned_by};
use crate::node::Node;
use crate::pull_image::PullImageError;
use crate::pull_layers::{LAYERS_AT_ONCE, pump};
use crate::pull_progress::{LayerCounter, LayerState, PullCounters};
use crate::puller::Puller;
use crate::undo::chain;

/// Where artifacts are, below a root of either kind. Source: CRI-O.
const DIRECTORY: &str = "artifacts";

/// An artifact of this node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// Of its manifest; its digits are its id.
    pub(crate) digest: Digest,
    /// Full names; others, such as bare tags of other tools, say nothing about a repository.
    names: Vec<String>,
    pub(crate) manifest: ArtifactManifest,
    /// The first additional store that has it.
    additional: Option<usize>,
    is_own: bool,
}

/// The stores of artifacts.
#[derive(Debug)]
pub(crate) struct Artifacts {
    own: ArtifactStore,
    additional: Vec<ArtifactStore>,
}

impl Artifacts {
    pub(crate) fn open(config: &config::Config) -> Result<Self, ArtifactError> {
        let additional = config.runtime.additional_artifact_stores.iter();
        Ok(Self {
            own: ArtifactStore::open(config.root.root.join(DIRECTORY))?,
            additional: additional.map(|path| ArtifactStore::read_only(path.join(DIRECTORY))).collect(),
        })
    }

    /// Every artifact, in the order of digests. An additional store that cannot be read is left out, with a warning.
    pub(crate) fn list(&self) -> Result<Vec<Artifact>, ArtifactError> {
        let mut listed = Vec::new();
        for (number, store) in self.additional.iter().enumerate() {
            match store.list() {
                Ok(artifacts) => listed.push((Some(number), artifacts)),
                Err(error) => {
                    tracing::warn!(root = %store.root().display(), error = %chain(&error), "leaving out an additional store of artifacts");
                }
            }
        }
        listed.push((None, self.own.list()?));
        Ok(merge(listed))
    }

    /// Where a blob of an artifact lies: a regular file of this size.
    pub(crate) fn blob(&self, artifact: &Artifact, digest: &Digest, size: u64) -> Result<PathBuf, PathError> {
        self.store_of(artifact).blob(digest, size)
    }

    /// The bytes of a blob, at most `limit`, verified.
    pub(crate) fn read_blob(&self, artifact: &Artifact, digest: &Digest, limit: u64) -> Result<Vec<u8>, PathError> {
        self.store_of(artifact).read_blob(digest, limit)
    }

    fn store_of(&self, artifact: &Artifact) -> &ArtifactStore {
        artifact.additional.and_then(|number| self.additional.get(number)).unwrap_or(&self.own)
    }
}

/// One row an artifact, out of the lists of stores in the order of precedence.
fn merge(listed: Vec<(Option<usize>, Vec<StoredArtifact>)>) -> Vec<Artifact> {
    let mut merged: Vec<Artifact> = Vec::new();
    let mut taken = BTreeSet::new();
    for (store, artifacts) in listed {
        let mut fresh = BTreeSet::new();
        for found in artifacts {
            let is_full = |name: &String| name.contains('/') && Reference::parse(name).is_ok();
            let names: Vec<String> =
                found.names.into_iter().filter(|name| is_full(name) && !taken.contains(name)).collect();
            fresh.extend(names.iter().cloned());
            match merged.iter_mut().find(|known| known.digest == found.digest) {
                Some(known) => {
                    known.names.extend(names);
                    known.is_own |= store.is_none();
                }
                None => merged.push(Artifact {
                    digest: found.digest,
                    names,
                    manifest: found.manifest,
                    additional: store,
                    is_own: store.is_none(),
                }),
            }
        }
        taken.append(&mut fresh);
    }
    merged.sort_by(|one, other| one.digest.cmp(&other.digest));
    merged
}

/// The artifact of the first key that means one.
fn find<'a>(artifacts: &'a [Artifact], keys: &[(String, ImageLookup)]) -> Option<(&'a Artifact, ImageLookup)> {
    keys.iter().find_map(|(key, lookup)| {
        let found = match lookup {
            ImageLookup::ById => {
                let mut matching = artifacts.iter().filter(|artifact| artifact.digest.hex().starts_with(key));
                // The beginning of several is the id of none.
                matching.next().filter(|_| matching.next().is_none())
            }
            ImageLookup::ByName(name) => artifacts.iter().find(|artifact| artifact.is_called(name)),
        };
        found.map(|artifact| (artifact, lookup.clone()))
    })
}

fn id_of(digest: &Digest) -> ImageId {
    match ImageId::parse(digest.hex()) {
        Ok(id) => id,
        Err(_) => unreachable!("the hexadecimal part of a digest is an id"),
    }
}

impl Artifact {
    /// By one of its names, or by one of its repositories and its digest.
    fn is_called(&self, name: &str) -> bool {
        let Ok(wanted) = Reference::parse(name) else { return false };
        let has_repository =
            |own: &String| Reference::parse(own).is_ok_and(|own| own.repository() == wanted.repository());
        self.names.iter().any(|own| own == name)
            || (wanted.digest() == Some(&self.digest) && self.names.iter().any(has_repository))
    }

    fn id(&self) -> ImageId {
        id_of(&self.digest)
    }

    /// As the CRI shows it, like an image. Those of additional stores are never to be removed.
    fn status(&self, pins: &[String]) -> ImageStatus {
        let names: Vec<Reference> = self.names.iter().filter_map(|name| Reference::parse(name).ok()).collect();
        let mut repo_digests: Vec<String> =
            names.iter().map(|name| format!("{}@{}", name.repository(), self.digest)).collect();
        repo_digests.dedup();
        let is_pinned = |name: &String| pins.iter().any(|pin| is_pinned_by(name, pin));
        ImageStatus {
            id: self.id(),
            repo_tags: names.iter().filter(|name| name.tag().is_some()).map(ToString::to_string).collect(),
            is_pinned: self.additional.is_some() || self.names.iter().chain(&repo_digests).any(is_pinned),
            repo_digests,
            size_bytes: self.manifest.size(),
            uid: None,
            username: String::new(),
            spec: ImageSpec { image: self.digest.hex().to_owned(), ..ImageSpec::default() },
            labels: std::collections::BTreeMap::new(),
        }
    }
}

impl Node {
    /// Every artifact as the CRI shows it. When they cannot be listed, images are still of use: a warning tells.
    pub(crate) async fn artifact_statuses(&self) -> Vec<ImageStatus> {
        let (artifacts, pins) = (Arc::clone(&self.artifacts), self.pinned_images());
        let listed = blocking::run("list artifacts", move || artifacts.list()).await;
        match listed {
            Ok(artifacts) => artifacts.iter().map(|artifact| artifact.status(&pins)).collect(),
            Err(error) => {
                tracing::warn!(error = %chain(&error), "artifacts cannot be listed");
                Vec::new()
            }
        }
    }

    /// The artifact of a name or id, as the CRI shows it.
    pub(crate) async fn artifact_status(&self, name: &str) -> Result<Option<ImageStatus>, ImagesError> {
        let pins = self.pinned_images();
        Ok(self.find_artifact(name).await?.map(|(artifact, _)| artifact.status(&pins)))
    }

    pub(crate) async fn find_artifact(&self, name: &str) -> Result<Option<(Artifact, ImageLookup)>, ImagesError> {
        self.puller.find_artifact(name).await
    }

    /// Removes a name of an artifact, or the artifact with its last name, or with all names when asked by id.
    pub(crate) async fn remove_artifact(&self, name: &str) -> Result<(), RemoveImageError> {
        let Some((artifact, lookup)) = self.find_artifact(name).await? else { return Ok(()) };
        self.check_no_volume(artifact.digest.hex())?;
        if !artifact.is_own {
            return Err(RemoveImageError::ReadOnly { name: name.to_owned() });
        }
        let artifacts = Arc::clone(&self.artifacts);
        let removed = blocking::run("remove artifact", move || match lookup {
            ImageLookup::ByName(name) if artifact.names.len() > 1 && artifact.names.contains(&name) => {
                artifacts.own.remove(Forget::Name(&name))
            }
            ImageLookup::ById | ImageLookup::ByName(_) => artifacts.own.remove(Forget::Artifact(&artifact.digest)),
        });
        match removed.await {
            Ok(true) => Ok(()),
            // The name is that of an additional store.
            Ok(false) if self.find_artifact(name).await?.is_some() => {
                Err(RemoveImageError::ReadOnly { name: name.to_owned() })
            }
            Ok(false) => Ok(()),
            Err(source) => Err(RemoveImageError::Artifact { name: name.to_owned(), source }),
        }
    }
}

impl Puller {
    pub(crate) async fn find_artifact(&self, name: &str) -> Result<Option<(Artifact, ImageLookup)>, ImagesError> {
        let (artifacts, keys) = (Arc::clone(&self.artifacts), self.local_keys(name)?);
        let found = blocking::run("find artifact", move || {
            let listed = artifacts.list()?;
            Ok(find(&listed, &keys).map(|(artifact, lookup)| (artifact.clone(), lookup)))
        });
        found.await.map_err(ImagesError::Artifacts)
    }

    /// Fetches what is not here yet of an artifact and records it; returns its id.
    ///
    /// One of the same name in an additional store is used instead. Source: CRI-O.
    pub(crate) async fn pull_artifact(
        &self,
        name: &str,
        resolved: ResolvedArtifact,
        counters: &PullCounters,
    ) -> Result<ImageId, PullImageError> {
        let failed = |source| PullImageError::Artifact { image: name.to_owned(), source: Box::new(source) };
        let reference = resolved.names.first().map(ToString::to_string);
        if let Some(reference) = &reference
            && let Ok(Some((known, _))) = self.find_artifact(reference).await
            && known.additional.is_some()
        {
            tracing::info!(artifact = %known.digest, name, "an additional store has the artifact");
            return Ok(known.id());
        }
        if self.has_whole(reference.as_deref(), &resolved).await {
            return Ok(id_of(&resolved.manifest_digest));
        }
        let artifacts = Arc::clone(&self.artifacts);
        let staging = blocking::run("stage artifact", move || artifacts.own.stage()).await.map_err(failed)?;
        let staging = Arc::new(staging);
        let fetched = self.fetch_blobs(name, &resolved, &staging, counters).await;
        let artifacts = Arc::clone(&self.artifacts);
        let recorded = blocking::run("record artifact", move || {
            // Whatever happened, what is left of the staging goes here, where one may block.
            let staging = staging;
            if let Err(error) = fetched {
                return Ok(Err(error));
            }
            let new = NewArtifact {
                name: reference,
                manifest: resolved.manifest_bytes.to_vec(),
                digest: resolved.manifest_digest.clone(),
                media_type: resolved.media_type,
            };
            artifacts.own.commit(&staging, &new)?;
            Ok(Ok(id_of(&resolved.manifest_digest)))
        });
        recorded.await.map_err(failed)?
    }

    /// Whether our own store has exactly this under this name, with every blob.
    async fn has_whole(&self, reference: Option<&str>, resolved: &ResolvedArtifact) -> bool {
        let Some(reference) = reference.map(str::to_owned) else { return false };
        let (artifacts, resolved) = (Arc::clone(&self.artifacts), resolved.clone());
        blocking::run("find artifact", move || {
            let listed = artifacts.own.list().unwrap_or_default();
            let has_name =
                |known: &StoredArtifact| known.digest == resolved.manifest_digest && known.names.contains(&reference);
            listed.iter().any(has_name)
                && resolved.blobs.iter().all(|blob| artifacts.own.blob(&blob.digest, blob.size).is_ok())
        })
        .await
    }

    async fn fetch_blobs(
        &self,
        name: &str,
        resolved: &ResolvedArtifact,
        staging: &Arc<ArtifactStaging>,
        counters: &PullCounters,
    ) -> Result<(), PullImageError> {
        let missing = self.missing_blobs(name, resolved, staging).await?;
        let counters = counters.begin(missing.iter().map(|blob| (blob.digest.to_string(), blob.size)));
        let counters = &counters;
        stream::iter(missing.into_iter().enumerate().map(|(index, blob)| async move {
            let counter = &counters[index];
            self.fetch_blob(name, resolved, &blob, staging, counter).await?;
            counter.set(LayerState::Done);
            Ok::<_, PullImageError>(())
        }))
        .buffer_unordered(LAYERS_AT_ONCE)
        .try_collect()
        .await
    }

    /// Stages what is here, and the configuration; returns what is not here, each once.
    async fn missing_blobs(
        &self,
        name: &str,
        resolved: &ResolvedArtifact,
        staging: &Arc<ArtifactStaging>,
    ) -> Result<Vec<ArtifactBlob>, PullImageError> {
        let (staging, name, resolved) = (Arc::clone(staging), name.to_owned(), resolved.clone());
        blocking::run("find blobs", move || {
            let stage_failed = |blob: &Digest, source| PullImageError::StageBlob {
                image: name.clone(),
                blob: blob.to_string(),
                source: Box::new(source),
            };
            let config = &resolved.config_digest;
            staging
                .add(&resolved.config_bytes[..], config, resolved.config_bytes.len() as u64)
                .map_err(|source| stage_failed(config, source))?;
            let mut missing: Vec<ArtifactBlob> = Vec::new();
            for blob in &resolved.blobs {
                let is_here = staging
                    .reuse(&blob.digest, blob.size)
                    .map_err(|source| stage_failed(&blob.digest, source.into()))?;
                if !is_here && !missing.contains(blob) {
                    missing.push(blob.clone());
                }
            }
            Ok(missing)
        })
        .await
    }

    async fn fetch_blob(
        &self,
        name: &str,
        resolved: &ResolvedArtifact,
        blob: &ArtifactBlob,
        staging: &Arc<ArtifactStaging>,
        counter: &LayerCounter,
    ) -> Result<(), PullImageError> {
        let blob_failed = |source| PullImageError::Blob {
            image: name.to_owned(),
            layer: blob.digest.to_string(),
            source: Box::new(source),
        };
        let stream = self.registry.open_artifact_blob(resolved, blob).await.map_err(blob_failed)?;
        counter.fetches(stream.progress());
        let (staging, wanted) = (Arc::clone(staging), blob.clone());
        let write = move |chunks| staging.add(chunks, &wanted.digest, wanted.size);
        let (staged, fetched) = pump("keep blob", stream, counter, write).await;
        fetched.map_err(blob_failed)?;
        staged.map_err(|source| PullImageError::StageBlob {
            image: name.to_owned(),
            blob: blob.digest.to_string(),
            source: Box::new(source),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stored(number: u8, names: &[&str]) -> StoredArtifact {
        let digest = Digest::from_sha256(&[number; 32]);
        let manifest = ArtifactManifest { config: digest.clone(), blobs: Vec::new() };
        StoredArtifact { digest, names: names.iter().map(|name| (*name).to_owned()).collect(), manifest }
    }

    #[test]
    fn stores_are_one_list_and_the_first_holder_has_the_name() {
        let merged = merge(vec![
            (Some(0), vec![stored(1, &["example.com/a:1", "1.14.4"])]),
            (Some(1), vec![stored(3, &["example.com/c:1"])]),
            (None, vec![stored(1, &["example.com/a:2"]), stored(2, &["example.com/a:1"]), stored(4, &[])]),
        ]);
        let rows: Vec<_> = merged.iter().map(|it| (it.names.join(" "), it.additional, it.is_own)).collect();
        assert_eq!(
            rows,
            [
                ("example.com/a:1 example.com/a:2".to_owned(), Some(0), true),
                (String::new(), None, true),
                ("example.com/c:1".to_owned(), Some(1), false),
                (String::new(), None, true),
            ]
        );
    }

    #[test]
    fn artifacts_are_found_by_id_name_and_digest() {
        let artifacts =
            merge(vec![(None, vec![stored(0x11, &["example.com/a:1"]), stored(0x12, &["example.com/b:1"])])]);
        let digest = artifacts[0].digest.clone();
        let by_name = |name: String| (name.clone(), ImageLookup::ByName(name));
        let by_id = |id: &str| (id.to_owned(), ImageLookup::ById);
        for (key, expected) in [
            (by_name("example.com/a:1".to_owned()), true),
            (by_name(format!("example.com/a@{digest}")), true),
            (by_name(format!("example.com/b@{digest}")), false),
            (by_name("example.com/a:2".to_owned()), false),
            (by_id(digest.hex()), true),
            (by_id("1111"), true),
            (by_id("1"), false),
            (by_id("2222"), false),
        ] {
            let found = find(&artifacts, std::slice::from_ref(&key)).map(|(artifact, _)| artifact.digest.clone());
            assert_eq!(found.is_some_and(|found| found == digest), expected, "{key:?}");
        }
        let status = artifacts[0].status(&["example.com/*".to_owned()]);
        assert_eq!(
            (status.id.as_str(), status.repo_tags.as_slice()),
            (digest.hex(), &["example.com/a:1".to_owned()][..])
        );
        assert_eq!(status.repo_digests, [format!("example.com/a@{digest}")]);
        assert!(status.is_pinned && !artifacts[0].status(&[]).is_pinned);
    }
}
