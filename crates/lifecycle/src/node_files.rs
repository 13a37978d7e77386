//! What the node adds to a container's files beside the request: copies of its own, its FIPS mode, its time zone.

use std::io;
use std::path::{Path, PathBuf};

use domain::id_maps::RootOwner;
use domain::spec::ResolvedMount;
use durable::beneath::Root;
use thiserror::Error;

use crate::fips::{self, FipsError};
use crate::node::Node;
use crate::prepare_container::PrepareJob;
use crate::secrets;
use crate::timezone::{self, TimezoneError};
use crate::userns;

/// Directory of the copies, beside the bundle's own files.
const COPIES: &str = "copies";

/// Why a container cannot have the node's files.
#[derive(Debug, Error)]
pub enum NodeFilesError {
    /// Its time zone.
    #[error("set the time zone")]
    Timezone(#[from] TimezoneError),
    /// Root of its user namespace does not get the copies.
    #[error("set owner of {path}")]
    Owner {
        /// Of the copies.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// The copies cannot have the container's label.
    #[error("label copies")]
    Label(#[source] confinement::selinux::RelabelError),
    /// What FIPS mode wants.
    #[error("set up FIPS mode")]
    Fips(#[from] FipsError),
}

impl PrepareJob {
    /// Copies of the node's files, and what its FIPS mode wants.
    pub(crate) fn node_files(&self, node: &Node, root: &Root) -> Result<Vec<ResolvedMount>, NodeFilesError> {
        let list = node.config.runtime.default_mounts_file.as_deref();
        let taken: Vec<&str> = self.config.mounts.iter().map(|mount| mount.container_path.as_str()).collect();
        let base = self.bundle.join(COPIES);
        let mut mounts = secrets::copy(list, &base, &taken);
        let sandbox = &self.sandbox;
        let annotations = sandbox.effective_annotations();
        let wanted = fips::wanted(fips::node_mode(), &sandbox.config.labels, &annotations);
        let copied: Vec<String> = mounts.iter().map(|mount| mount.destination.clone()).collect();
        let taken: Vec<&str> = taken.into_iter().chain(copied.iter().map(String::as_str)).collect();
        mounts.extend(fips::mounts(wanted, root, &base, &taken)?);
        if let Some(owner) = sandbox.root_owner() {
            give_all(&base, owner).map_err(|source| NodeFilesError::Owner { path: base.clone(), source })?;
        }
        if let Some(labels) = self.labels.as_ref().filter(|_| base.exists()) {
            confinement::selinux::relabel(&base, &labels.mount).map_err(NodeFilesError::Label)?;
        }
        Ok(mounts)
    }

    /// The file for `/etc/localtime`, unless the image has the zone itself or the request brings its own.
    pub(crate) fn localtime(&self, node: &Node, root: &Root) -> Result<Option<String>, NodeFilesError> {
        let is_own =
            |path: &str| self.config.mounts.iter().any(|mount| Path::new(&mount.container_path) == Path::new(path));
        if is_own("/etc/localtime") || is_own("/etc") {
            return Ok(None);
        }
        let copy = timezone::set(&node.config.runtime.timezone, root, &self.bundle)?;
        let Some(path) = copy else { return Ok(None) };
        userns::give(&path, self.sandbox.root_owner())
            .map_err(|source| NodeFilesError::Owner { path: path.clone(), source })?;
        Ok(Some(path.display().to_string()))
    }
}

/// Gives the copies to root of the user namespace. They are the daemon's own: no link is among them.
fn give_all(path: &Path, owner: RootOwner) -> io::Result<()> {
    let kind = match path.symlink_metadata() {
        Ok(stat) => stat.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if kind.is_dir() {
        for entry in std::fs::read_dir(path)? {
            give_all(&entry?.path(), owner)?;
        }
    }
    userns::give(path, Some(owner))
}
