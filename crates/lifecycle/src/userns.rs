//! User namespaces of sandboxes: decided or refused before anything is made, then given to kernel, files and specs.
//!
//! The store chooses automatic ids, because it is there that other tools see which are taken. What a restart needs lies
//! where CRI-O has it: the ids in the `linux` object of `config.json`, the namespace among its paths.

use std::fs;
use std::io;
use std::path::Path;

use config::Config;
use domain::id_maps::{IdMaps, IdMapsError, RootOwner};
use domain::sandbox::SandboxConfig;
use domain::security::{IdMapping, SupplementalGroupsPolicy};
use domain::spec::annotations::filter_annotations;
use domain::user::{ResolveUserError, ResolvedUser, UserRequest, resolve_user};
use domain::userns::{ANNOTATION, PodIds, UsernsError, UsernsPolicy, pod_ids};
use image_store::ContainerIds;
use state_store::spec::{StoredIdMapping, StoredSpec};
use sys::namespace::IdRange;
use thiserror::Error;

use crate::handler::Handler;
use crate::node::Node;
use crate::sandbox::Sandbox;

/// Why a sandbox does not get the user namespace asked for. Nothing has been made.
#[derive(Debug, Error)]
pub enum UserNamespaceError {
    /// What is asked for is no user namespace, or one that is not allowed.
    #[error(transparent)]
    Asked(#[from] UsernsError),
    /// Volumes of such a pod would have nobody's owners.
    #[error(
        "user namespaces of pods need id-mapped mounts, which runtime handler {handler:?} ({runtime}) does not support"
    )]
    HandlerLacksIdMaps {
        /// The handler.
        handler: String,
        /// Its program.
        runtime: String,
    },
    /// The files of its images would have nobody's owners.
    #[error(
        "user namespaces of pods need id-mapped mounts, which the kernel or the file system of {root} does not support"
    )]
    StoreLacksIdMaps {
        /// The root of the store.
        root: String,
    },
}

/// What the configuration says about user namespaces.
pub(crate) fn policy(config: &Config) -> Result<UsernsPolicy, IdMapsError> {
    let runtime = &config.runtime;
    let mappings = |mappings: &[config::IdMapping]| -> Vec<IdMapping> {
        let mapping = |mapping: &config::IdMapping| IdMapping {
            host_id: mapping.host,
            container_id: mapping.container,
            length: mapping.size,
        };
        mappings.iter().map(mapping).collect()
    };
    let default = if runtime.uid_mappings.is_empty() {
        None
    } else {
        Some(IdMaps::new(mappings(&runtime.uid_mappings), mappings(&runtime.gid_mappings))?)
    };
    Ok(UsernsPolicy { default, minimum_uid: runtime.minimum_mappable_uid, minimum_gid: runtime.minimum_mappable_gid })
}

impl Node {
    /// Decides about the user namespace of a sandbox.
    pub(crate) fn sandbox_ids(&self, config: &SandboxConfig, handler: &Handler) -> Result<PodIds, UserNamespaceError> {
        let allowed = self.allowed_annotations(handler, &config.annotations);
        let annotations = filter_annotations(&config.annotations, &allowed).effective;
        let ids = pod_ids(&config.security, annotations.get(ANNOTATION).map(String::as_str), &self.userns)?;
        if matches!(ids, PodIds::Cri(_)) && !handler.features.has_idmapped_mounts {
            let runtime = &handler.runtime;
            return Err(UserNamespaceError::HandlerLacksIdMaps {
                handler: runtime.name.clone(),
                runtime: runtime.runtime.display().to_string(),
            });
        }
        if ids != PodIds::Node && !self.can_map_ids {
            return Err(UserNamespaceError::StoreLacksIdMaps { root: self.store.root().display().to_string() });
        }
        Ok(ids)
    }

    /// Who a process of a container is.
    ///
    /// Where an annotation made the user namespace, requests speak of ids of the node: those that the namespace has
    /// become its own. Source: CRI-O.
    pub(crate) fn user_inside(
        &self,
        user: ResolvedUser,
        config: &SandboxConfig,
        maps: Option<&IdMaps>,
        passwd: &[u8],
        group: &[u8],
    ) -> Result<ResolvedUser, ResolveUserError> {
        let is_of_annotation = config.security.namespaces.user.is_none() && self.userns.default.is_none();
        match maps.filter(|_| is_of_annotation) {
            Some(maps) => inside(user, maps, passwd, group),
            None => Ok(user),
        }
    }
}

fn inside(user: ResolvedUser, maps: &IdMaps, passwd: &[u8], group: &[u8]) -> Result<ResolvedUser, ResolveUserError> {
    let gid_inside = |gid: u32| maps.gid_inside(gid).unwrap_or(gid);
    let (uid, gid) = (maps.uid_inside(user.uid).unwrap_or(user.uid), gid_inside(user.gid));
    let groups: Vec<u32> = user.additional_gids.iter().map(|gid| gid_inside(*gid)).collect();
    if (uid, gid) == (user.uid, user.gid) && groups == user.additional_gids {
        return Ok(user);
    }
    let groups: Vec<i64> = groups.into_iter().map(i64::from).collect();
    // Looked up again: name and home are those of the id inside.
    let request = UserRequest {
        run_as_user: Some(uid.into()),
        run_as_username: "",
        run_as_group: Some(gid.into()),
        supplemental_groups: &groups,
        policy: SupplementalGroupsPolicy::Strict,
    };
    resolve_user(&request, "", passwd, group)
}

/// What the store is told.
pub(crate) fn container_ids(ids: &PodIds) -> ContainerIds {
    match ids {
        PodIds::Node => ContainerIds::Node,
        PodIds::Cri(maps) | PodIds::Given(maps) => ContainerIds::Given(maps.clone()),
        PodIds::Auto(asked) => ContainerIds::Auto(asked.clone()),
    }
}

/// What the kernel is told.
pub(crate) fn ranges(mappings: &[IdMapping]) -> Vec<IdRange> {
    let range = |mapping: &IdMapping| IdRange {
        inside: mapping.container_id,
        outside: mapping.host_id,
        length: mapping.length,
    };
    mappings.iter().map(range).collect()
}

/// The ids in a stored spec; none when they are no map.
pub(crate) fn stored_ids(spec: &StoredSpec) -> Option<IdMaps> {
    let list = |mappings: &[StoredIdMapping]| -> Vec<IdMapping> {
        let mapping = |mapping: &StoredIdMapping| IdMapping {
            host_id: mapping.host_id,
            container_id: mapping.container_id,
            length: mapping.size,
        };
        mappings.iter().map(mapping).collect()
    };
    IdMaps::new(list(&spec.linux.uid_mappings), list(&spec.linux.gid_mappings)).ok()
}

/// Gives a file of the daemon to root of the user namespace; without one it stays the node's.
pub(crate) fn give(path: &Path, root: Option<RootOwner>) -> io::Result<()> {
    match root {
        Some(root) => std::os::unix::fs::lchown(path, Some(root.uid), Some(root.gid)),
        None => Ok(()),
    }
}

/// Whether pods can have user namespaces of their own: not where the operator or the kernel allows none.
pub(crate) fn kernel_has_user_namespaces() -> bool {
    let limit = fs::read_to_string("/proc/sys/user/max_user_namespaces").unwrap_or_default();
    Path::new("/proc/self/ns/user").exists() && limit.trim() != "0"
}

impl Sandbox {
    /// Who owns on the node what belongs to root in its containers; none where that is the node's root.
    pub(crate) fn root_owner(&self) -> Option<RootOwner> {
        self.id_maps.as_ref().map(IdMaps::root)
    }

    /// Who owns on the node what belongs to a user of its containers.
    pub(crate) fn owner(&self, user: &ResolvedUser) -> Option<RootOwner> {
        match &self.id_maps {
            Some(maps) => maps.owner(user.uid, user.gid),
            None => Some(RootOwner { uid: user.uid, gid: user.gid }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_of_the_node_become_those_inside() {
        let range = |container_id, host_id, length| IdMapping { host_id, container_id, length };
        let maps = IdMaps::new(
            vec![range(0, 1000, 1), range(1, 100_000, 100)],
            vec![range(0, 100_000, 100), range(100, 2000, 1)],
        )
        .expect("maps");
        let passwd = b"root:x:0:0::/root:/bin/sh\nweb:x:33:33::/srv:/bin/sh\n";
        let group = b"root:x:0:\n";
        for ((uid, gid, groups), (expected, home, is_known)) in [
            // The node's user 1000 is root inside.
            ((1000, 2000, vec![2000, 7]), ((0, 100, vec![100, 7]), Some("/root"), true)),
            // Ids the namespace does not know by that number are meant as they are inside.
            ((33, 33, vec![33]), ((33, 33, vec![33]), None, false)),
            ((100_004, 0, vec![0]), ((5, 0, vec![0]), None, false)),
        ] {
            let user = ResolvedUser { uid, gid, additional_gids: groups, ..ResolvedUser::default() };
            let user = inside(user, &maps, passwd, group).expect("resolves");
            assert_eq!((user.uid, user.gid, user.additional_gids), expected);
            assert_eq!((user.home.as_deref(), user.is_uid_known), (home, is_known));
        }
    }
}
