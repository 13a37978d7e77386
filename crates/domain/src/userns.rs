//! Whether a pod has a user namespace of its own, and with which ids: request, annotation and configuration decide.
//!
//! The CRI's options win over the annotation, and that over the configured maps. Source: CRI `UserNamespace`;
//! annotation and rules as CRI-O has them.

use thiserror::Error;

use crate::id_maps::{AutoIds, IdKind, IdMaps, IdMapsError};
use crate::sandbox::SandboxSecurity;
use crate::security::{IdMapping, NamespaceMode, UserNamespace};

/// The annotation's name.
pub const ANNOTATION: &str = "userns-mode.crio.io";
/// Ids of an automatic user namespace that does not say how many. Source: CRI-O.
const AUTO_SIZE: u32 = 65536;
/// Longest annotation looked at: room for as many ranges as the kernel takes, of users and groups.
const MODE_MAX_BYTES: usize = 32 << 10;
/// The sysctl whose groups must exist in the user namespace, and its value on most nodes.
const PING_GROUP_RANGE: &str = "net.ipv4.ping_group_range";
const ALL_PING_GROUPS: [&str; 2] = ["0", "2147483647"];

/// Why a pod does not get the user namespace asked for. Nothing has happened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum UsernsError {
    /// A mode the CRI has no meaning for here.
    #[error("userns_options: a user namespace is the pod's or the node's")]
    Mode,
    /// The kubelet sends one range.
    #[error("userns_options: exactly one mapping of {kind}s is expected, there are {count}")]
    NotOne {
        /// Of users or groups.
        kind: IdKind,
        /// How many.
        count: usize,
    },
    /// Ids for a pod that is to have those of the node.
    #[error("userns_options: mappings are given although the user namespace is the node's")]
    MapsOfNode,
    /// A container is in its pod's user namespace.
    #[error("userns_options of the container differ from those of its pod")]
    OtherThanPod,
    /// The annotation is none.
    #[error("{ANNOTATION} {mode:?}: {reason}")]
    BadMode {
        /// As given, cut to a readable length.
        mode: String,
        /// What is wrong.
        reason: String,
    },
    /// Whoever maps ids says who it runs as.
    #[error("{ANNOTATION}: uidmapping and gidmapping need run_as_user")]
    NeedsUser,
    /// Who is not root may only use the ids the operator says.
    #[error("{ANNOTATION}: uidmapping and gidmapping need minimum_mappable_uid unless the pod runs as root")]
    NeedsMinimum,
    /// Below them.
    #[error("{ANNOTATION}: uidmapping and gidmapping are not for user {user}, below minimum_mappable_uid {minimum}")]
    UserBelowMinimum {
        /// `run_as_user`.
        user: i64,
        /// Of the configuration.
        minimum: u32,
    },
    /// An id of the node that the operator keeps out of user namespaces.
    #[error("{kind} mapping {mapping} is below minimum_mappable_{kind} {minimum}")]
    BelowMinimum {
        /// Of users or groups.
        kind: IdKind,
        /// The mapping.
        mapping: IdMapping,
        /// Of the configuration.
        minimum: u32,
    },
    /// Nothing says which ids.
    #[error("{ANNOTATION}: private needs uidmapping or gidmapping, or uid_mappings in the configuration")]
    NoMaps,
    /// They are no map.
    #[error(transparent)]
    Maps(#[from] IdMapsError),
}

/// What the operator says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct UsernsPolicy {
    /// `uid_mappings` and `gid_mappings`: those of pods that say nothing.
    pub default: Option<IdMaps>,
    /// `minimum_mappable_uid`.
    pub minimum_uid: Option<u32>,
    /// `minimum_mappable_gid`.
    pub minimum_gid: Option<u32>,
}

/// Where the user namespace of a pod comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PodIds {
    /// The node's.
    Node,
    /// Its own, as the CRI asks.
    Cri(IdMaps),
    /// Its own, as annotation or configuration say.
    Given(IdMaps),
    /// Its own, with ids the store finds.
    Auto(AutoIds),
}

/// Decides about the user namespace of a pod; `annotation` only if the handler allows it.
pub fn pod_ids(
    security: &SandboxSecurity,
    annotation: Option<&str>,
    policy: &UsernsPolicy,
) -> Result<PodIds, UsernsError> {
    if let Some(options) = &security.namespaces.user {
        return Ok(match cri_maps(options)? {
            Some(maps) => PodIds::Cri(policy.check(maps)?),
            None => PodIds::Node,
        });
    }
    let Some(mode) = annotation.filter(|mode| !mode.is_empty()) else {
        return match &policy.default {
            Some(maps) => Ok(PodIds::Given(policy.check(maps.clone())?)),
            None => Ok(PodIds::Node),
        };
    };
    let mode = parse_mode(mode)?;
    if mode.uids.is_some() || mode.gids.is_some() {
        check_user(security.run_as_user, policy.minimum_uid)?;
    }
    match mode.kind {
        Kind::Auto { size, place } => {
            let mut uids = mode.uids.unwrap_or_default();
            let mut gids = mode.gids.unwrap_or_default();
            if let Some(user) = host_id(security.run_as_user) {
                place.add(&mut uids, user);
            }
            if let Some(group) = host_id(security.run_as_group) {
                place.add(&mut gids, group);
            }
            // Root is one id: further groups are not made it.
            let further = if place == Place::Root { Place::Free } else { place };
            for group in security.supplemental_groups.iter().filter_map(|group| host_id(Some(*group))) {
                further.add(&mut gids, group);
            }
            policy.check_minimum(&uids, &gids)?;
            Ok(PodIds::Auto(AutoIds { size, uids, gids }))
        }
        Kind::Private => {
            let (mut uids, mut gids) = match (mode.uids, mode.gids, &policy.default) {
                (Some(uids), Some(gids), _) => (uids, gids),
                (Some(both), None, _) | (None, Some(both), _) => (both.clone(), both),
                (None, None, Some(maps)) => (maps.uids().to_vec(), maps.gids().to_vec()),
                (None, None, None) => return Err(UsernsError::NoMaps),
            };
            if let Some(user) = host_id(security.run_as_user) {
                Place::Free.add(&mut uids, user);
            }
            let groups = security.run_as_group.iter().chain(&security.supplemental_groups);
            for group in groups.filter_map(|group| host_id(Some(*group))) {
                Place::Free.add(&mut gids, group);
            }
            Ok(PodIds::Given(policy.check(IdMaps::new(uids, gids)?)?))
        }
    }
}

/// Checks the options of a container against what its pod has.
pub fn check_container(
    asked: Option<&UserNamespace>,
    of_pod: Option<&UserNamespace>,
    maps: Option<&IdMaps>,
) -> Result<(), UsernsError> {
    let Some(asked) = asked else { return Ok(()) };
    let is_same = match (cri_maps(asked)?, of_pod) {
        // The node's for a container of a pod that was not asked: the kubelet says it to both or none.
        (None, None) => maps.is_none(),
        (None, Some(of_pod)) => of_pod.mode == NamespaceMode::Node,
        (Some(asked), _) => Some(&asked) == maps,
    };
    if is_same { Ok(()) } else { Err(UsernsError::OtherThanPod) }
}

fn cri_maps(options: &UserNamespace) -> Result<Option<IdMaps>, UsernsError> {
    match options.mode {
        NamespaceMode::Node if options.uids.is_empty() && options.gids.is_empty() => return Ok(None),
        NamespaceMode::Node => return Err(UsernsError::MapsOfNode),
        NamespaceMode::Pod => {}
        NamespaceMode::Container | NamespaceMode::Target => return Err(UsernsError::Mode),
    }
    for (kind, mappings) in [(IdKind::User, &options.uids), (IdKind::Group, &options.gids)] {
        if mappings.len() != 1 {
            return Err(UsernsError::NotOne { kind, count: mappings.len() });
        }
    }
    Ok(Some(IdMaps::new(options.uids.clone(), options.gids.clone())?))
}

/// An id of the pod that is to be in its user namespace, too.
///
/// CRI-O adds the node's root where the pod runs as user 0. Here only a mapping that names root brings it in; user 0 of
/// the pod is root of the namespace.
fn host_id(id: Option<i64>) -> Option<u32> {
    id.and_then(|id| u32::try_from(id).ok()).filter(|id| *id != 0)
}

fn check_user(user: Option<i64>, minimum: Option<u32>) -> Result<(), UsernsError> {
    match (user, minimum) {
        (None, _) => Err(UsernsError::NeedsUser),
        (Some(0), _) => Ok(()),
        (Some(_), None) => Err(UsernsError::NeedsMinimum),
        (Some(user), Some(minimum)) if user < i64::from(minimum) => {
            Err(UsernsError::UserBelowMinimum { user, minimum })
        }
        (Some(_), Some(_)) => Ok(()),
    }
}

impl UsernsPolicy {
    fn check(&self, maps: IdMaps) -> Result<IdMaps, UsernsError> {
        self.check_minimum(maps.uids(), maps.gids()).map(|()| maps)
    }

    fn check_minimum(&self, uids: &[IdMapping], gids: &[IdMapping]) -> Result<(), UsernsError> {
        for (kind, minimum, mappings) in
            [(IdKind::User, self.minimum_uid, uids), (IdKind::Group, self.minimum_gid, gids)]
        {
            let Some(minimum) = minimum else { continue };
            if let Some(mapping) = mappings.iter().find(|mapping| mapping.host_id < minimum) {
                return Err(UsernsError::BelowMinimum { kind, mapping: *mapping, minimum });
            }
        }
        Ok(())
    }
}

/// What id of the namespace an id of the node becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// The first after those mapped, unless it is mapped already.
    Free,
    /// The same.
    Same,
    /// Root.
    Root,
}

impl Place {
    fn add(self, mappings: &mut Vec<IdMapping>, host_id: u32) {
        let container_id = match self {
            Self::Same => host_id,
            Self::Root => 0,
            Self::Free => {
                let is_mapped = |mapping: &IdMapping| {
                    host_id.checked_sub(mapping.host_id).is_some_and(|offset| offset < mapping.length)
                };
                if mappings.iter().any(is_mapped) {
                    return;
                }
                let end = |mapping: &IdMapping| mapping.container_id.saturating_add(mapping.length);
                mappings.iter().map(end).max().unwrap_or_default()
            }
        };
        let mapping = IdMapping { host_id, container_id, length: 1 };
        if !mappings.contains(&mapping) {
            mappings.push(mapping);
        }
    }
}

enum Kind {
    Auto { size: u32, place: Place },
    Private,
}

struct Mode {
    kind: Kind,
    uids: Option<Vec<IdMapping>>,
    gids: Option<Vec<IdMapping>>,
}

/// Reads `auto` or `private`, with options behind a colon: `auto:size=4096;uidmapping=0:1000:1,1:2000:9`.
fn parse_mode(text: &str) -> Result<Mode, UsernsError> {
    let bad = |reason: String| UsernsError::BadMode { mode: text.chars().take(100).collect(), reason };
    if text.len() > MODE_MAX_BYTES {
        return Err(bad(format!("longer than {MODE_MAX_BYTES} bytes")));
    }
    let (kind, options) = match text.split_once(':') {
        Some((kind, options)) => (kind, Some(options)),
        None => (text, None),
    };
    let is_auto = match kind {
        "auto" => true,
        "private" => false,
        _ => return Err(bad("the mode is neither auto nor private".to_owned())),
    };
    let (mut size, mut keeps_id, mut maps_to_root) = (None, None, None);
    let (mut uids, mut gids) = (None, None);
    for option in options.into_iter().flat_map(|options| options.split(';')) {
        let (key, value) = option.split_once('=').ok_or_else(|| bad(format!("{option:?} is not an option")))?;
        let is_new = match key {
            "uidmapping" => uids.replace(parse_mappings(value).map_err(bad)?).is_none(),
            "gidmapping" => gids.replace(parse_mappings(value).map_err(bad)?).is_none(),
            "size" if is_auto => size.replace(parse_size(value).map_err(bad)?).is_none(),
            "keep-id" if is_auto => keeps_id.replace(parse_flag(value).map_err(bad)?).is_none(),
            "map-to-root" if is_auto => maps_to_root.replace(parse_flag(value).map_err(bad)?).is_none(),
            _ => return Err(bad(format!("{kind} has no option {key:?}"))),
        };
        if !is_new {
            return Err(bad(format!("{key} is given twice")));
        }
    }
    let place = match (keeps_id.unwrap_or_default(), maps_to_root.unwrap_or_default()) {
        (true, true) => return Err(bad("keep-id and map-to-root exclude each other".to_owned())),
        (true, false) => Place::Same,
        (false, true) => Place::Root,
        (false, false) => Place::Free,
    };
    let kind = if is_auto { Kind::Auto { size: size.unwrap_or(AUTO_SIZE), place } } else { Kind::Private };
    Ok(Mode { kind, uids, gids })
}

fn parse_flag(text: &str) -> Result<bool, String> {
    text.parse().map_err(|_| format!("{text:?} is neither true nor false"))
}

fn parse_size(text: &str) -> Result<u32, String> {
    let size = parse_number(text).filter(|size| *size > 0);
    size.ok_or_else(|| format!("size {text:?} is not a number of ids"))
}

/// Digits only.
fn parse_number(text: &str) -> Option<u32> {
    if text.bytes().all(|byte| byte.is_ascii_digit()) { text.parse().ok() } else { None }
}

/// `container:host:length`, with commas between several.
fn parse_mappings(text: &str) -> Result<Vec<IdMapping>, String> {
    let parse = |one: &str| {
        let mut numbers = one.split(':').map(parse_number);
        let (container_id, host_id, length) = (numbers.next()??, numbers.next()??, numbers.next()??);
        numbers.next().is_none().then_some(IdMapping { host_id, container_id, length })
    };
    text.split(',')
        .map(|one| parse(one).ok_or_else(|| format!("{one:?} is not container:host:length")))
        .collect::<Result<Vec<_>, _>>()
        .and_then(|mappings| {
            // Checked whole once everything is known; one that cannot be is told here.
            let fits = |mapping: &&IdMapping| {
                mapping.length > 0
                    && mapping.host_id.checked_add(mapping.length).is_some()
                    && mapping.container_id.checked_add(mapping.length).is_some()
            };
            match mappings.iter().find(|mapping| !fits(mapping)) {
                Some(mapping) => Err(format!("{mapping} is empty or exceeds the range of ids")),
                None => Ok(mappings),
            }
        })
}

/// The value of a sysctl that fits the groups of a user namespace, if the given one does not.
///
/// Nodes commonly allow every group to ping; the kernel refuses groups the namespace does not have.
#[must_use]
pub fn fit_sysctl(name: &str, value: &str, maps: &IdMaps) -> Option<String> {
    let is_all = name == PING_GROUP_RANGE && value.split_whitespace().eq(ALL_PING_GROUPS);
    is_all.then(|| format!("0 {}", maps.highest_gid()))
}

/// Fuzz entry point: the annotation, with and without a policy.
pub fn fuzz_mode(bytes: &[u8]) {
    let Ok(mode) = std::str::from_utf8(bytes) else { return };
    let security = SandboxSecurity {
        run_as_user: Some(2000),
        run_as_group: Some(3000),
        supplemental_groups: vec![0, 3000, i64::from(u32::MAX) - 1],
        ..SandboxSecurity::default()
    };
    let policy = UsernsPolicy { default: None, minimum_uid: Some(1000), minimum_gid: None };
    match pod_ids(&security, Some(mode), &policy) {
        Ok(PodIds::Given(maps)) => {
            assert!(maps.uids().iter().all(|mapping| mapping.host_id >= 1000), "the minimum holds");
            assert!(maps.uid_inside(2000).is_some() && maps.gid_inside(3000).is_some(), "the pod's own ids are there");
        }
        Ok(PodIds::Auto(asked)) => {
            assert!(asked.size > 0 && asked.uids.iter().all(|mapping| mapping.host_id >= 1000), "the minimum holds");
        }
        Ok(PodIds::Cri(_)) => panic!("there are no options"),
        Ok(PodIds::Node) => assert!(mode.is_empty(), "an annotation is not passed over"),
        Err(_) => {}
    }
}

#[cfg(test)]
mod tests;
