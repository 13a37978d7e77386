//! What a user namespace changes in a runtime spec.
//!
//! Root of a user namespace mounts what belongs to namespaces of its own; what is the node's can only be bound.
//! Source: user_namespaces(7), mount_namespaces(7); options as CRI-O writes them.

use oci_spec::runtime::Linux;

use super::mounts::id_mappings;
use super::{NamespacePaths, SpecError};
use crate::id_maps::{IdKind, IdMaps};
use crate::security::{NamespaceMode, NamespaceOptions};
use crate::user::ResolvedUser;

/// The pod's user namespace; an error where one is asked for that nobody made.
pub(super) fn path<'a>(options: &NamespaceOptions, paths: &'a NamespacePaths) -> Result<Option<&'a str>, SpecError> {
    let is_asked = options.user.as_ref().is_some_and(|user| user.mode != NamespaceMode::Node);
    match &paths.user {
        None if is_asked => Err(SpecError::NoNamespace { kind: "user", of: "the pod" }),
        path => Ok(path.as_deref()),
    }
}

/// The maps go along with the path: runtimes need them to give the cgroup to root of the namespace.
pub(super) fn set_maps(linux: &mut Linux, maps: &IdMaps) {
    linux.set_uid_mappings(id_mappings(maps.uids()));
    linux.set_gid_mappings(id_mappings(maps.gids()));
}

/// A process runs as ids its namespace has.
pub(super) fn check_user(user: &ResolvedUser, maps: &IdMaps) -> Result<(), SpecError> {
    if !maps.has_uid(user.uid) {
        return Err(SpecError::NotMapped { kind: IdKind::User, id: user.uid });
    }
    let mut groups = std::iter::once(&user.gid).chain(&user.additional_gids);
    match groups.find(|gid| !maps.has_gid(**gid)) {
        Some(gid) => Err(SpecError::NotMapped { kind: IdKind::Group, id: *gid }),
        None => Ok(()),
    }
}

/// What root of the user namespace can mount.
pub(super) struct UsernsMounts<'a> {
    maps: &'a IdMaps,
    is_host_network: bool,
    is_host_pid: bool,
    is_host_ipc: bool,
}

impl<'a> UsernsMounts<'a> {
    pub(super) fn new(maps: &'a IdMaps, options: &NamespaceOptions) -> Self {
        Self {
            maps,
            is_host_network: options.network == NamespaceMode::Node,
            is_host_pid: options.pid == NamespaceMode::Node,
            is_host_ipc: options.ipc == NamespaceMode::Node,
        }
    }

    /// Options by which the node's own is bound where a new one cannot be mounted. `read_only` is that of `/sys`.
    ///
    /// Private: a runtime may take the mount from the node, with which what is mounted on top of it would be shared.
    pub(super) fn bind(&self, destination: &str, read_only: &'static str) -> Option<[&'static str; 6]> {
        match destination {
            "/sys" if self.is_host_network => Some(["nosuid", "noexec", "nodev", read_only, "rbind", "rprivate"]),
            "/proc" if self.is_host_pid => Some(["rw", "rbind", "nodev", "nosuid", "noexec", "rprivate"]),
            "/dev/mqueue" if self.is_host_ipc => Some(["rw", "rbind", "nodev", "nosuid", "noexec", "rprivate"]),
            _ => None,
        }
    }

    /// Options without the groups that the namespace does not have: the kernel refuses them.
    pub(super) fn options(&self, options: &[&'static str]) -> Vec<&'static str> {
        let is_there = |option: &&&str| {
            let gid = option.strip_prefix("gid=").and_then(|gid| gid.parse().ok());
            gid.is_none_or(|gid| self.maps.has_gid(gid))
        };
        options.iter().filter(is_there).copied().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::security::IdMapping;

    fn maps(length: u32) -> IdMaps {
        let range = |host_id| vec![IdMapping { container_id: 0, host_id, length }];
        IdMaps::new(range(100_000), range(200_000)).expect("maps")
    }

    #[test]
    fn what_is_the_nodes_is_bound() {
        let maps = maps(10);
        let own = UsernsMounts::new(&maps, &NamespaceOptions::default());
        let node = NamespaceMode::Node;
        let options = NamespaceOptions { network: node, pid: node, ipc: node, ..NamespaceOptions::default() };
        let shared = UsernsMounts::new(&maps, &options);
        for destination in ["/proc", "/sys", "/dev/mqueue"] {
            assert_eq!(own.bind(destination, "ro"), None, "{destination}");
            assert!(shared.bind(destination, "ro").is_some_and(|options| options.contains(&"rbind")), "{destination}");
        }
        assert_eq!(shared.bind("/sys", "rro"), Some(["nosuid", "noexec", "nodev", "rro", "rbind", "rprivate"]));
        assert_eq!(shared.bind("/dev", "ro"), None);
    }

    #[test]
    fn only_groups_that_exist_are_options() {
        for (length, expected) in [(5, vec!["nosuid", "gid=x"]), (6, vec!["nosuid", "gid=5", "gid=x"])] {
            let maps = maps(length);
            let mounts = UsernsMounts::new(&maps, &NamespaceOptions::default());
            assert_eq!(mounts.options(&["nosuid", "gid=5", "gid=x"]), expected);
        }
    }

    #[test]
    fn processes_run_as_ids_of_the_namespace() {
        let maps = maps(10);
        let user = |uid, gid, further: &[u32]| ResolvedUser {
            uid,
            gid,
            additional_gids: further.to_vec(),
            ..ResolvedUser::default()
        };
        assert_eq!(check_user(&user(9, 0, &[0, 9]), &maps), Ok(()));
        for (user, kind, id) in [
            (user(10, 0, &[]), IdKind::User, 10),
            (user(0, 11, &[]), IdKind::Group, 11),
            (user(0, 0, &[1, 100_000]), IdKind::Group, 100_000),
        ] {
            assert_eq!(check_user(&user, &maps), Err(SpecError::NotMapped { kind, id }));
        }
    }
}
