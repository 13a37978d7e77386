//! Volumes that are images or artifacts: found before anything is made, mounted while the container is.
//!
//! Of an artifact each blob is bound where its title says, and nothing is left to give back. Of an image the store mounts an image read-only and remembers which container holds it; a path inside is opened beneath that mount
//! and bound beside the bundle. Both go with the container's record, whoever removes it. Source: CRI `Mount.image`.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain::artifact::{BlobFile, BlobNameError, select};
use domain::container::{ContainerConfig, ImageSpec, Mount};
use domain::id::{ContainerId, ImageId};
use domain::id_maps::IdMaps;
use domain::spec::{HandlerFacts, MountKind, ResolvedMount, SpecError, resolve_image_mount};
use durable::beneath::{Links, Root};
use rustix::fs::{CWD, FileType, OFlags};
use rustix::mount::{MoveMountFlags, OpenTreeFlags, move_mount, open_tree};
use thiserror::Error;

use crate::artifacts::Artifact;
use crate::blocking;
use crate::image::ImagesError;
use crate::node::Node;
use crate::trust::TrustError;

/// Why a volume that is an image cannot be had.
#[derive(Debug, Error)]
pub enum ImageVolumeError {
    /// It could not be looked for.
    #[error(transparent)]
    Find(#[from] ImagesError),
    /// It is not here. Nothing is pulled.
    #[error("image {image:?} does not exist locally")]
    Absent {
        /// As asked.
        image: String,
    },
    /// The pod's policy does not let it be used.
    #[error("{}image volume {image:?}", source.reason())]
    Trust {
        /// As asked.
        image: String,
        #[source]
        /// What it says.
        source: Box<TrustError>,
    },
    /// The store does not mount it.
    #[error("image volume {image:?}")]
    Mount {
        /// As asked.
        image: String,
        #[source]
        /// What failed.
        source: image_store::MountImageError,
    },
    /// It is an artifact, and `oci_artifact_mount_support` is off.
    #[error("{image:?} is an OCI artifact, and oci_artifact_mount_support is off")]
    ArtifactsOff {
        /// As asked.
        image: String,
    },
    /// Its blobs cannot be files.
    #[error("OCI artifact volume {image:?}")]
    Names {
        /// As asked.
        image: String,
        #[source]
        /// What is wrong.
        source: BlobNameError,
    },
    /// There is nothing to mount.
    #[error("OCI artifact volume {image:?} has no blobs")]
    NoBlobs {
        /// As asked.
        image: String,
    },
    /// A blob is gone or damaged.
    #[error("OCI artifact volume {image:?}")]
    Blob {
        /// As asked.
        image: String,
        #[source]
        /// What failed.
        source: image_store::PathError,
    },
    /// It has no such path.
    #[error("sub path {sub_path:?} does not exist in OCI artifact volume {image:?}")]
    NoBlobPath {
        /// As asked.
        image: String,
        /// As asked.
        sub_path: String,
    },
    /// It has no such path.
    #[error("sub path {sub_path:?} does not exist in image volume {image:?}")]
    NoSubPath {
        /// As asked.
        image: String,
        /// As asked.
        sub_path: String,
    },
    /// A device, a fifo or a socket is nothing to mount.
    #[error("sub path {sub_path:?} of image volume {image:?} is neither a file nor a directory")]
    SubPathKind {
        /// As asked.
        image: String,
        /// As asked.
        sub_path: String,
    },
    /// It could not be opened or bound.
    #[error("{action} sub path {sub_path:?} of image volume {image:?}")]
    SubPath {
        /// What was tried.
        action: &'static str,
        /// As asked.
        image: String,
        /// As asked.
        sub_path: String,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The empty directory below every image volume.
    #[error("{action} {path}")]
    Below {
        /// What was tried.
        action: &'static str,
        /// Where.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// What lies in it would appear in every image volume.
    #[error("image volumes path {path} is not empty")]
    BelowNotEmpty {
        /// Where.
        path: PathBuf,
    },
    /// The mount contradicts itself, or asks for what the handler cannot do.
    #[error("image volume on {path:?}")]
    Invalid {
        /// The container path.
        path: String,
        #[source]
        /// What is wrong.
        source: SpecError,
    },
}

impl ImageVolumeError {
    /// Whether the pod's author has to change something.
    #[must_use]
    pub fn is_of_request(&self) -> bool {
        match self {
            Self::NoSubPath { .. }
            | Self::NoBlobPath { .. }
            | Self::SubPathKind { .. }
            | Self::ArtifactsOff { .. }
            | Self::Invalid { .. } => true,
            Self::Find(_)
            | Self::Names { .. }
            | Self::NoBlobs { .. }
            | Self::Blob { .. }
            | Self::Absent { .. }
            | Self::Trust { .. }
            | Self::Mount { .. }
            | Self::SubPath { .. }
            | Self::Below { .. }
            | Self::BelowNotEmpty { .. } => false,
        }
    }
}

/// A volume whose image or artifact is here.
#[derive(Debug, Clone)]
pub(crate) struct ImageVolume {
    /// The name it was asked by.
    asked: String,
    /// As recorded: the image by its id, the host path where it is or will be.
    mount: Mount,
    content: Content,
}

#[derive(Debug, Clone)]
enum Content {
    Image {
        id: ImageId,
        /// Where the sub path is bound, if there is one.
        place: Option<PathBuf>,
    },
    /// Path in the container and on the node, each.
    Files(Vec<(String, PathBuf)>),
}

impl ImageVolume {
    /// The blobs of an artifact, if its request wants them labelled.
    pub(crate) fn files_to_label(&self) -> impl Iterator<Item = &Path> {
        let files = match &self.content {
            Content::Files(files) if self.mount.selinux_relabel => files.as_slice(),
            Content::Files(_) | Content::Image { .. } => &[],
        };
        files.iter().map(|(_, source)| source.as_path())
    }
}

fn is_image(mount: &Mount) -> bool {
    mount.image.as_ref().is_some_and(|image| !image.image.is_empty())
}

/// Whether a container has the image, by id, as a volume.
pub(crate) fn has_volume(config: &ContainerConfig, image: &str) -> bool {
    config.mounts.iter().any(|mount| mount.image.as_ref().is_some_and(|own| own.image == image))
}

impl Node {
    /// Finds the images of a request's volumes, and writes into the request what will be recorded of them.
    pub(crate) async fn plan_volumes(
        &self,
        container: &ContainerId,
        namespace: &str,
        config: &mut ContainerConfig,
    ) -> Result<Vec<ImageVolume>, ImageVolumeError> {
        let mut volumes = Vec::new();
        for mount in config.mounts.iter_mut().filter(|mount| is_image(mount)) {
            let asked = mount.image.as_ref().map(|image| image.image.clone()).unwrap_or_default();
            // An artifact comes first. Source: CRI-O.
            let content = match self.find_artifact(&asked).await? {
                Some((artifact, _)) => self.plan_artifact(&asked, artifact, mount).await?,
                None => self.plan_image(&asked, container, namespace, volumes.len(), mount).await?,
            };
            volumes.push(ImageVolume { asked, mount: mount.clone(), content });
        }
        Ok(volumes)
    }

    async fn plan_image(
        &self,
        asked: &str,
        container: &ContainerId,
        namespace: &str,
        number: usize,
        mount: &mut Mount,
    ) -> Result<Content, ImageVolumeError> {
        let found = self.find_image(asked).await?;
        let (image, _) = found.ok_or_else(|| ImageVolumeError::Absent { image: asked.to_owned() })?;
        let spec = mount.image.clone().unwrap_or_default();
        self.check_stored_image(&image.id, &spec, namespace)
            .await
            .map_err(|source| ImageVolumeError::Trust { image: asked.to_owned(), source: Box::new(source) })?;
        let (store, id) = (Arc::clone(&self.store), image.id.clone());
        let point = blocking::run("find image mount", move || store.image_mount_point(&id)).await;
        let point = point.map_err(|source| ImageVolumeError::Mount { image: asked.to_owned(), source })?;
        // Named by number: the path is the image's to choose.
        let place = (!mount.image_sub_path.is_empty())
            .then(|| self.store.container_run_dir(container).join(format!("subpath{number}")));
        record(mount, image.id.as_str(), place.as_deref().unwrap_or(&point));
        Ok(Content::Image { id: image.id, place })
    }

    async fn plan_artifact(
        &self,
        asked: &str,
        artifact: Artifact,
        mount: &mut Mount,
    ) -> Result<Content, ImageVolumeError> {
        let image = || asked.to_owned();
        if !self.config.image.oci_artifact_mount_support {
            return Err(ImageVolumeError::ArtifactsOff { image: image() });
        }
        let files = artifact.manifest.files().map_err(|source| ImageVolumeError::Names { image: image(), source })?;
        if files.is_empty() {
            return Err(ImageVolumeError::NoBlobs { image: image() });
        }
        let selected = select(files, &mount.image_sub_path)
            .ok_or_else(|| ImageVolumeError::NoBlobPath { image: image(), sub_path: mount.image_sub_path.clone() })?;
        let id = artifact.digest.hex().to_owned();
        let (artifacts, path) = (Arc::clone(&self.artifacts), mount.container_path.clone());
        let files = blocking::run("find blobs", move || {
            let place = |file: BlobFile| {
                let source = artifacts.blob(&artifact, &file.digest, file.size)?;
                Ok((destination(&path, &file.path), source))
            };
            selected.into_iter().map(place).collect::<Result<Vec<_>, _>>()
        });
        let files = files.await.map_err(|source| ImageVolumeError::Blob { image: image(), source })?;
        // Of several files the directory that has them all.
        let on_node = match files.as_slice() {
            [(_, only)] => only.as_path(),
            several => several.first().and_then(|(_, first)| first.parent()).unwrap_or(Path::new("/")),
        };
        record(mount, &id, on_node);
        Ok(Content::Files(files))
    }

    /// Mounts the images of a container whose record exists; with the ids of its user namespace, if it has one. Blocking.
    pub(crate) fn mount_volumes(
        &self,
        container: &ContainerId,
        volumes: &[ImageVolume],
        handler: &HandlerFacts,
        ids: Option<&IdMaps>,
    ) -> Result<Vec<ResolvedMount>, ImageVolumeError> {
        if volumes.is_empty() {
            return Ok(Vec::new());
        }
        let below = self.empty_directory()?;
        let mut mounts = Vec::new();
        for (number, volume) in volumes.iter().enumerate() {
            match &volume.content {
                Content::Image { id, place } => {
                    // Named by number, as sub paths are.
                    let own = ids.map(|_| self.store.container_run_dir(container).join(format!("image{number}")));
                    let (source, kind) = self.mount_image(container, volume, id, place.as_deref(), &below, own)?;
                    let mut made = volume.resolve(&source, kind, volume.mount.container_path.clone(), handler)?;
                    if ids.is_some() {
                        // The mount has them; a runtime cannot give others to an overlay.
                        (made.uid_mappings, made.gid_mappings) = (Vec::new(), Vec::new());
                    }
                    mounts.push(made);
                }
                Content::Files(files) => {
                    for (path, source) in files {
                        mounts.push(volume.resolve(source, MountKind::Bind, path.clone(), handler)?);
                    }
                }
            }
        }
        Ok(mounts)
    }

    fn mount_image(
        &self,
        container: &ContainerId,
        volume: &ImageVolume,
        id: &ImageId,
        place: Option<&Path>,
        below: &Path,
        own: Option<PathBuf>,
    ) -> Result<(PathBuf, MountKind), ImageVolumeError> {
        let failed = |source| ImageVolumeError::Mount { image: volume.asked.clone(), source };
        let mut mounted = self.store.mount_image(id, container).map_err(failed)?;
        let mut over = MountKind::Image { below: below.display().to_string() };
        if let Some(own) = own {
            self.store.mount_image_mapped(id, container, &own).map_err(failed)?;
            (mounted, over) = (own, MountKind::Bind);
        }
        let Some(place) = place else { return Ok((mounted, over)) };
        match volume.bind_sub_path(&mounted, place)? {
            FileType::Directory => Ok((place.to_owned(), over)),
            _ => Ok((place.to_owned(), MountKind::Bind)),
        }
    }

    /// The directory overlay gets as its second one. It must stay empty: its content would appear in every volume.
    fn empty_directory(&self) -> Result<PathBuf, ImageVolumeError> {
        let exits = &self.config.runtime.container_exits_dir;
        let path = exits.parent().unwrap_or(Path::new("/")).join("image-volumes");
        let failed = |action| {
            let path = path.clone();
            move |source| ImageVolumeError::Below { action, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(&path).map_err(failed("create"))?;
        if fs::read_dir(&path).map_err(failed("read"))?.next().is_some() {
            return Err(ImageVolumeError::BelowNotEmpty { path });
        }
        Ok(path)
    }
}

/// What is remembered of a volume, as CRI-O remembers it.
fn record(mount: &mut Mount, id: &str, on_node: &Path) {
    mount.host_path = on_node.display().to_string();
    mount.image = Some(ImageSpec { image: id.to_owned(), ..ImageSpec::default() });
}

/// Where a file of a volume appears; one without a path is mounted itself.
fn destination(volume: &str, file: &str) -> String {
    if file.is_empty() { volume.to_owned() } else { format!("{}/{file}", volume.trim_end_matches('/')) }
}

impl ImageVolume {
    fn resolve(
        &self,
        source: &Path,
        kind: MountKind,
        destination: String,
        handler: &HandlerFacts,
    ) -> Result<ResolvedMount, ImageVolumeError> {
        resolve_image_mount(&self.mount, source.display().to_string(), kind, destination, handler)
            .map_err(|source| ImageVolumeError::Invalid { path: self.mount.container_path.clone(), source })
    }

    /// Opens the sub path as if the image were the root of everything, and binds what was opened; tells what it is.
    fn bind_sub_path(&self, mounted: &Path, place: &Path) -> Result<FileType, ImageVolumeError> {
        let (image, sub_path) = (&self.asked, &self.mount.image_sub_path);
        let failed = |action| {
            move |source| ImageVolumeError::SubPath { action, image: image.clone(), sub_path: sub_path.clone(), source }
        };
        let opened = Root::open(mounted)
            .and_then(|root| root.open_beneath(Path::new(sub_path), OFlags::PATH, 0, Links::InRoot))
            .map_err(|source| match source.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
                    ImageVolumeError::NoSubPath { image: image.clone(), sub_path: sub_path.clone() }
                }
                _ => failed("open")(source),
            })?;
        let stat = rustix::fs::fstat(&opened).map_err(io::Error::from).map_err(failed("look at"))?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::Directory => fs::create_dir(place),
            FileType::RegularFile => File::options().write(true).create_new(true).mode(0o600).open(place).map(drop),
            _ => {
                return Err(ImageVolumeError::SubPathKind { image: image.clone(), sub_path: sub_path.clone() });
            }
        }
        .map_err(failed("make a place for"))?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        open_tree(&opened, "", flags)
            .and_then(|tree| move_mount(tree.as_fd(), "", CWD, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH))
            .map_err(io::Error::from)
            .map_err(failed("bind"))?;
        Ok(kind)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_known_by_the_id_of_its_image() {
        let of = |image: Option<&str>| Mount {
            image: image.map(|image| ImageSpec { image: image.to_owned(), ..ImageSpec::default() }),
            ..Mount::default()
        };
        let config = ContainerConfig { mounts: vec![of(None), of(Some("abc"))], ..ContainerConfig::default() };
        for (image, expected) in [("abc", true), ("ab", false), ("", false)] {
            assert_eq!(has_volume(&config, image), expected, "{image}");
        }
        assert_eq!(destination("/a", "b/c"), "/a/b/c");
        assert_eq!((destination("/", "b"), destination("/a", "")), ("/b".to_owned(), "/a".to_owned()));
        assert!(!is_image(&of(Some(""))) && !is_image(&of(None)) && is_image(&of(Some("a"))));
    }
}
