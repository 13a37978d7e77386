//! Containers in user namespaces: the ids they get, and the way to their root file systems.
//!
//! Automatic ids are the lowest of the user `containers` in `/etc/subuid` and `/etc/subgid` that no container of the
//! store has, whichever tool made it. Source: containers/storage.

use std::fs::Permissions;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use domain::id_maps::{
    AutoIds, AutoIdsError, IdMaps, IdPool, IdSet, RootOwner, SUBORDINATE_FILE_MAX_BYTES, find_ids,
    parse_subordinate_ids,
};
use domain::security::IdMapping;
use serde::{Deserialize, Serialize};
use sys::namespace::{IdRange, PinError, make_user};
use thiserror::Error;

use crate::error::PathError;
use crate::lock::SharedLock;
use crate::records::ContainerRecord;
use crate::store::{CONTAINERS, Store};
use crate::table::Guard;

/// Whose subordinate ids automatic ones are. Source: containers/storage.
const AUTO_USER: &str = "containers";
/// Held while ids are chosen, by every tool that shares the store.
const LOCK: &str = "userns.lock";
/// The right of everybody to pass through a directory.
const MODE_PASS: u32 = 0o011;
/// Root of the user namespace passes by its group; nobody else does.
const MODE_GROUP_PASSES: u32 = 0o710;

/// Whose ids the files of a container have.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ContainerIds {
    /// The node's.
    #[default]
    Node,
    /// Those of a user namespace.
    Given(IdMaps),
    /// Those of a user namespace, to be found.
    Auto(AutoIds),
}

/// Where subordinate ids are listed.
#[derive(Debug, Clone)]
pub struct SubordinateFiles {
    /// `/etc/subuid`
    pub uids: PathBuf,
    /// `/etc/subgid`
    pub gids: PathBuf,
}

impl Default for SubordinateFiles {
    fn default() -> Self {
        Self { uids: "/etc/subuid".into(), gids: "/etc/subgid".into() }
    }
}

/// Why a container gets no ids.
#[derive(Debug, Error)]
pub enum FindIdsError {
    /// No other tool may choose meanwhile, and that cannot be seen to.
    #[error(transparent)]
    Path(PathError),
    /// The operator set none aside.
    #[error("{path} has no ids for user {AUTO_USER:?}, of which automatic user namespaces are made")]
    NoneSetAside {
        /// `/etc/subuid` or `/etc/subgid`.
        path: PathBuf,
    },
    /// None are left, or they do not fit those asked for.
    #[error(transparent)]
    Auto(#[from] AutoIdsError),
}

/// An entry of `uidmap` and `gidmap`. The numbers are Go's `int`, so that no record of another tool is lost for one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MapRecord {
    container_id: i64,
    host_id: i64,
    size: i64,
}

impl MapRecord {
    pub(crate) fn list(mappings: &[IdMapping]) -> Vec<Self> {
        let record = |mapping: &IdMapping| Self {
            container_id: mapping.container_id.into(),
            host_id: mapping.host_id.into(),
            size: mapping.length.into(),
        };
        mappings.iter().map(record).collect()
    }

    fn mapping(self) -> Option<IdMapping> {
        let narrow = |number: i64| u32::try_from(number).ok();
        Some(IdMapping {
            container_id: narrow(self.container_id)?,
            host_id: narrow(self.host_id)?,
            length: narrow(self.size)?,
        })
    }
}

/// The ids of a container as recorded; an error when they are no map.
pub(crate) fn recorded_ids(row: &ContainerRecord) -> io::Result<Option<IdMaps>> {
    if row.uidmap.is_empty() && row.gidmap.is_empty() {
        return Ok(None);
    }
    let list = |records: &[MapRecord]| records.iter().map(|record| record.mapping()).collect::<Option<Vec<_>>>();
    let invalid = |reason: String| io::Error::new(io::ErrorKind::InvalidData, reason);
    let (Some(uids), Some(gids)) = (list(&row.uidmap), list(&row.gidmap)) else {
        return Err(invalid("uidmap and gidmap are no ids".to_owned()));
    };
    IdMaps::new(uids, gids).map(Some).map_err(|error| invalid(error.to_string()))
}

/// A user namespace for id-mapped mounts.
pub(crate) fn user_namespace(maps: &IdMaps) -> Result<OwnedFd, PinError> {
    let ranges = |mappings: &[IdMapping]| -> Vec<IdRange> {
        let range = |mapping: &IdMapping| IdRange {
            inside: mapping.container_id,
            outside: mapping.host_id,
            length: mapping.length,
        };
        mappings.iter().map(range).collect()
    };
    let (users, groups) = (ranges(maps.uids()), ranges(maps.gids()));
    make_user(&sys::namespace::IdMaps { users: &users, groups: &groups })
}

/// Lets root of a user namespace, by its group, pass through a directory that is one container's own.
pub(crate) fn let_pass(directory: &Path, root: RootOwner) -> Result<(), PathError> {
    std::os::unix::fs::lchown(directory, None, Some(root.gid)).map_err(PathError::new("set owner of", directory))?;
    std::fs::set_permissions(directory, Permissions::from_mode(MODE_GROUP_PASSES))
        .map_err(PathError::new("set mode of", directory))
}

/// Lets everybody pass through a directory and those above it, as a runtime must that acts as root of a user namespace.
fn let_everybody_pass(directory: &Path) -> Result<(), PathError> {
    for path in directory.ancestors() {
        let mode = std::fs::metadata(path).map_err(PathError::new("look at", path))?.permissions().mode() & 0o7777;
        if mode & MODE_PASS != MODE_PASS {
            std::fs::set_permissions(path, Permissions::from_mode(mode | MODE_PASS))
                .map_err(PathError::new("set mode of", path))?;
        }
    }
    Ok(())
}

impl Store {
    /// Nobody else chooses ids in this store as long as it is held.
    pub(crate) fn id_lock(&self) -> Result<SharedLock, PathError> {
        let path = self.root().join(LOCK);
        SharedLock::open(&path).map_err(PathError::new("open", &path))
    }

    /// The ids of a container to be made. The lock is held, and so are the records.
    pub(crate) fn choose_ids(
        &self,
        wanted: &ContainerIds,
        containers: &Guard<'_, ContainerRecord>,
    ) -> Result<Option<IdMaps>, FindIdsError> {
        let asked = match wanted {
            ContainerIds::Node => return Ok(None),
            ContainerIds::Given(maps) => return Ok(Some(maps.clone())),
            ContainerIds::Auto(asked) => asked,
        };
        let files = self.subordinate_files();
        let set_aside = IdPool { uids: set_aside(&files.uids)?, gids: set_aside(&files.gids)? };
        let hosts = |record: &MapRecord| record.mapping().map(|mapping| (mapping.host_id, mapping.length));
        let taken = IdPool {
            uids: IdSet::new(containers.iter().flat_map(|row| &row.uidmap).filter_map(hosts)),
            gids: IdSet::new(containers.iter().flat_map(|row| &row.gidmap).filter_map(hosts)),
        };
        Ok(Some(find_ids(asked, &set_aside, &taken)?))
    }

    /// Makes the directories that all containers share passable for root of a user namespace.
    pub(crate) fn let_containers_pass(&self) -> Result<(), PathError> {
        let roots = [self.root(), self.runroot()].map(|root| self.beneath(root, CONTAINERS));
        roots.iter().map(PathBuf::as_path).chain([self.driver.container_home()]).try_for_each(let_everybody_pass)
    }

    /// Whether kernel and file system can show a container's root file system with other owners than it has.
    ///
    #[must_use]
    pub fn can_map_ids(&self) -> bool {
        !self.driver.has_mounts() || self.driver.maps_ids_by_mount()
    }
}

fn set_aside(path: &Path) -> Result<IdSet, FindIdsError> {
    let read = || -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let limit = u64::try_from(SUBORDINATE_FILE_MAX_BYTES).unwrap_or(u64::MAX);
        std::fs::File::open(path)?.take(limit).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = match read() {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        other => other.map_err(PathError::new("read", path)).map_err(FindIdsError::Path)?,
    };
    let ids = parse_subordinate_ids(&bytes, AUTO_USER);
    if ids.count() == 0 { Err(FindIdsError::NoneSetAside { path: path.to_owned() }) } else { Ok(ids) }
}
