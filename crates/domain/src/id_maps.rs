//! Which ids of the node stand behind those of a user namespace, and where such ids come from.
//!
//! Source: user_namespaces(7), subuid(5); the automatic choice is that of containers/storage.

use std::fmt;

use thiserror::Error;

use crate::security::IdMapping;

/// Ranges the kernel takes in a map (user_namespaces(7), since Linux 4.15).
const RANGES_MAX: usize = 340;
/// One past the highest id: `(uid_t) -1` means "none".
const IDS_END: u64 = u32::MAX as u64;
/// Most of `/etc/subuid` that is looked at.
pub const SUBORDINATE_FILE_MAX_BYTES: usize = 1 << 20;

/// Which of the two kinds of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdKind {
    /// Users.
    User,
    /// Groups.
    Group,
}

impl fmt::Display for IdKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "uid",
            Self::Group => "gid",
        })
    }
}

/// Why ranges are no map.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum IdMapsError {
    /// Nobody would be root.
    #[error("{kind} 0 of the user namespace is not mapped")]
    NoRoot {
        /// Of users or groups.
        kind: IdKind,
    },
    /// Empty, or beyond the ids there are.
    #[error("{kind} mapping {mapping} is empty or exceeds the range of ids")]
    OutOfRange {
        /// Of users or groups.
        kind: IdKind,
        /// `container:host:length`.
        mapping: IdMapping,
    },
    /// Two ranges meet, inside or on the node.
    #[error("{kind} mappings {mapping} and {other} overlap")]
    Overlap {
        /// Of users or groups.
        kind: IdKind,
        /// One of them.
        mapping: IdMapping,
        /// The other.
        other: IdMapping,
    },
    /// The kernel takes no more.
    #[error("{count} {kind} mappings, the kernel takes {RANGES_MAX}")]
    TooMany {
        /// Of users or groups.
        kind: IdKind,
        /// How many.
        count: usize,
    },
}

/// The ids of a user namespace: what the kernel takes, with id 0 among users and groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdMaps {
    uids: Vec<IdMapping>,
    gids: Vec<IdMapping>,
}

/// Who root of a user namespace is on the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RootOwner {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl IdMaps {
    /// Accepts ranges that neither overlap nor leave out id 0.
    pub fn new(uids: Vec<IdMapping>, gids: Vec<IdMapping>) -> Result<Self, IdMapsError> {
        check(IdKind::User, &uids)?;
        check(IdKind::Group, &gids)?;
        Ok(Self { uids, gids })
    }

    /// Of users, in the order given.
    #[must_use]
    pub fn uids(&self) -> &[IdMapping] {
        &self.uids
    }

    /// Of groups, in the order given.
    #[must_use]
    pub fn gids(&self) -> &[IdMapping] {
        &self.gids
    }

    /// The owner on the node of what belongs to root inside.
    #[must_use]
    pub fn root(&self) -> RootOwner {
        let host = |mappings| outside(mappings, 0).expect("invariant: id 0 is mapped");
        RootOwner { uid: host(&self.uids), gid: host(&self.gids) }
    }

    /// The owner on the node of what belongs to a user and a group inside; none if the namespace lacks one of them.
    #[must_use]
    pub fn owner(&self, uid: u32, gid: u32) -> Option<RootOwner> {
        Some(RootOwner { uid: outside(&self.uids, uid)?, gid: outside(&self.gids, gid)? })
    }

    /// Whether the namespace has a user.
    #[must_use]
    pub fn has_uid(&self, uid: u32) -> bool {
        outside(&self.uids, uid).is_some()
    }

    /// Whether the namespace has a group.
    #[must_use]
    pub fn has_gid(&self, gid: u32) -> bool {
        outside(&self.gids, gid).is_some()
    }

    /// The user inside that a user of the node is.
    #[must_use]
    pub fn uid_inside(&self, uid: u32) -> Option<u32> {
        inside(&self.uids, uid)
    }

    /// The group inside that a group of the node is.
    #[must_use]
    pub fn gid_inside(&self, gid: u32) -> Option<u32> {
        inside(&self.gids, gid)
    }

    /// The highest group inside.
    #[must_use]
    pub fn highest_gid(&self) -> u32 {
        self.gids.iter().map(|mapping| mapping.container_id + (mapping.length - 1)).max().unwrap_or_default()
    }
}

fn outside(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.container_id).filter(|offset| *offset < mapping.length)?;
        Some(mapping.host_id + offset)
    })
}

fn inside(mappings: &[IdMapping], id: u32) -> Option<u32> {
    mappings.iter().find_map(|mapping| {
        let offset = id.checked_sub(mapping.host_id).filter(|offset| *offset < mapping.length)?;
        Some(mapping.container_id + offset)
    })
}

fn check(kind: IdKind, mappings: &[IdMapping]) -> Result<(), IdMapsError> {
    if mappings.len() > RANGES_MAX {
        return Err(IdMapsError::TooMany { kind, count: mappings.len() });
    }
    let meet = |one: u32, one_length: u32, two: u32, two_length: u32| {
        u64::from(one) < u64::from(two) + u64::from(two_length)
            && u64::from(two) < u64::from(one) + u64::from(one_length)
    };
    for (at, mapping) in mappings.iter().enumerate() {
        let end = |first: u32| u64::from(first) + u64::from(mapping.length);
        if mapping.length == 0 || end(mapping.host_id) > IDS_END || end(mapping.container_id) > IDS_END {
            return Err(IdMapsError::OutOfRange { kind, mapping: *mapping });
        }
        let overlaps = |other: &&IdMapping| {
            meet(mapping.container_id, mapping.length, other.container_id, other.length)
                || meet(mapping.host_id, mapping.length, other.host_id, other.length)
        };
        if let Some(other) = mappings[..at].iter().find(overlaps) {
            return Err(IdMapsError::Overlap { kind, mapping: *other, other: *mapping });
        }
    }
    outside(mappings, 0).map(drop).ok_or(IdMapsError::NoRoot { kind })
}

/// Ids, from the first one to one before the end.
type Interval = (u64, u64);

/// A set of ids: intervals in order that do not touch.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdSet(Vec<Interval>);

impl IdSet {
    /// Of ranges given as first id and length; what is beyond the ids there are is left out.
    #[must_use]
    pub fn new(ranges: impl IntoIterator<Item = (u32, u32)>) -> Self {
        let ends =
            |(first, length): (u32, u32)| (u64::from(first), (u64::from(first) + u64::from(length)).min(IDS_END));
        let mut intervals: Vec<Interval> = ranges.into_iter().map(ends).filter(|(first, end)| first < end).collect();
        intervals.sort_unstable();
        let mut merged: Vec<Interval> = Vec::with_capacity(intervals.len());
        for (first, end) in intervals {
            match merged.last_mut() {
                Some(last) if first <= last.1 => last.1 = last.1.max(end),
                _ => merged.push((first, end)),
            }
        }
        Self(merged)
    }

    /// How many ids.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.iter().map(|(first, end)| end - first).sum()
    }

    /// What is not in `other`.
    #[must_use]
    pub fn without(&self, other: &Self) -> Self {
        let mut left = Vec::new();
        let mut holes = other.0.iter().copied().peekable();
        for &(mut first, end) in &self.0 {
            while holes.peek().is_some_and(|hole| hole.1 <= first) {
                holes.next();
            }
            let mut ahead = holes.clone();
            while let Some(hole) = ahead.next().filter(|hole| hole.0 < end) {
                if first < hole.0 {
                    left.push((first, hole.0));
                }
                first = hole.1.max(first);
            }
            if first < end {
                left.push((first, end));
            }
        }
        Self(left)
    }

    /// The lowest `count` ids; absent when there are fewer.
    #[must_use]
    pub fn lowest(&self, mut count: u64) -> Option<Self> {
        let mut taken = Vec::new();
        for &(first, end) in &self.0 {
            if count == 0 {
                break;
            }
            let end = end.min(first + count);
            count -= end - first;
            taken.push((first, end));
        }
        (count == 0).then_some(Self(taken))
    }

    /// Maps the ids of `inside`, in order, to those of this set; both have as many.
    fn behind(&self, inside: &Self) -> Vec<IdMapping> {
        let (mut hosts, mut containers) = (self.0.iter().copied(), inside.0.iter().copied());
        let (mut host, mut container) = (hosts.next(), containers.next());
        let mut mappings = Vec::new();
        while let (Some((host_first, host_end)), Some((first, end))) = (host, container) {
            let length = (host_end - host_first).min(end - first);
            let narrow = |id: u64| u32::try_from(id).expect("invariant: sets hold ids");
            mappings.push(IdMapping {
                host_id: narrow(host_first),
                container_id: narrow(first),
                length: narrow(length),
            });
            let rest = |first: u64, end: u64| (first + length < end).then_some((first + length, end));
            host = rest(host_first, host_end).or_else(|| hosts.next());
            container = rest(first, end).or_else(|| containers.next());
        }
        mappings
    }
}

/// A user namespace whose ids are to be found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AutoIds {
    /// Ids inside, from 0 on. Not 0.
    pub size: u32,
    /// User ids of the node to have at a certain place inside.
    pub uids: Vec<IdMapping>,
    /// Group ids of the node to have at a certain place inside.
    pub gids: Vec<IdMapping>,
}

/// Why no ids were found.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AutoIdsError {
    /// Others have them.
    #[error("a user namespace of {wanted} {kind}s is asked for, and {free} of those set aside for containers are free")]
    TooFew {
        /// Of users or groups.
        kind: IdKind,
        /// How many are to be found.
        wanted: u64,
        /// How many there are.
        free: u64,
    },
    /// What was found and what was asked for do not make a map.
    #[error(transparent)]
    Maps(#[from] IdMapsError),
}

/// Ids that are set aside, or taken.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct IdPool {
    /// Of users.
    pub uids: IdSet,
    /// Of groups.
    pub gids: IdSet,
}

/// Finds ids for a user namespace: the lowest of those set aside that no other has.
pub fn find_ids(asked: &AutoIds, set_aside: &IdPool, taken: &IdPool) -> Result<IdMaps, AutoIdsError> {
    let find = |kind, own: &[IdMapping], set_aside: &IdSet, taken: &IdSet| {
        let inside = IdSet::new([(0, asked.size)]);
        let inside = inside.without(&IdSet::new(own.iter().map(|mapping| (mapping.container_id, mapping.length))));
        let own_hosts = IdSet::new(own.iter().map(|mapping| (mapping.host_id, mapping.length)));
        let free = set_aside.without(taken).without(&own_hosts);
        let wanted = inside.count();
        let hosts = free.lowest(wanted).ok_or(AutoIdsError::TooFew { kind, wanted, free: free.count() })?;
        Ok::<_, AutoIdsError>(hosts.behind(&inside).into_iter().chain(own.iter().copied()).collect())
    };
    let uids = find(IdKind::User, &asked.uids, &set_aside.uids, &taken.uids)?;
    let gids = find(IdKind::Group, &asked.gids, &set_aside.gids, &taken.gids)?;
    Ok(IdMaps::new(uids, gids)?)
}

/// The ids a user may use beside its own, of the bytes of `/etc/subuid` or `/etc/subgid`.
///
/// A line that is none is passed over. Source: subuid(5).
#[must_use]
pub fn parse_subordinate_ids(file: &[u8], user: &str) -> IdSet {
    let bounded = &file[..file.len().min(SUBORDINATE_FILE_MAX_BYTES)];
    let ranges = bounded.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut fields = std::str::from_utf8(line).ok()?.trim().split(':');
        let is_its_own = fields.next()? == user && !user.is_empty();
        let (first, length) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        (is_its_own && fields.next().is_none()).then_some((first, length))
    });
    IdSet::new(ranges)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(text: &str) -> Vec<IdMapping> {
        let one = |one: &str| {
            let numbers: Vec<u32> = one.split(':').map(|number| number.parse().expect("a number")).collect();
            IdMapping { container_id: numbers[0], host_id: numbers[1], length: numbers[2] }
        };
        text.split(',').filter(|text| !text.is_empty()).map(one).collect()
    }

    #[test]
    fn maps_are_what_the_kernel_takes() {
        for (text, expected) in [
            ("0:100000:65536", Ok(())),
            ("0:0:1", Ok(())),
            ("1:5:1,0:100000:1", Ok(())),
            ("0:100000:4294867295", Ok(())),
            ("0:100000:4294867296", Err("uid mapping 0:100000:4294867296 is empty or exceeds the range of ids")),
            ("0:100000:0", Err("uid mapping 0:100000:0 is empty or exceeds the range of ids")),
            ("", Err("uid 0 of the user namespace is not mapped")),
            ("1:100000:65536", Err("uid 0 of the user namespace is not mapped")),
            ("0:100000:10,9:200000:1", Err("uid mappings 0:100000:10 and 9:200000:1 overlap")),
            ("0:100000:10,10:100009:1", Err("uid mappings 0:100000:10 and 10:100009:1 overlap")),
        ] {
            let made = IdMaps::new(map(text), map("0:1:1")).map(drop).map_err(|error| error.to_string());
            assert_eq!(made, expected.map_err(str::to_owned), "{text}");
        }
        let many: Vec<IdMapping> =
            (0..341).map(|at| IdMapping { container_id: at, host_id: 1000 + 2 * at, length: 1 }).collect();
        let error = IdMaps::new(map("0:1:1"), many).expect_err("too many");
        assert_eq!(error.to_string(), "341 gid mappings, the kernel takes 340");
    }

    #[test]
    fn ids_are_seen_from_both_sides() {
        let maps = IdMaps::new(map("1000:1000:1,0:100000:1000"), map("0:200000:500,65534:5:1")).expect("maps");
        assert_eq!(maps.root(), RootOwner { uid: 100_000, gid: 200_000 });
        assert_eq!(maps.owner(0, 0), Some(maps.root()));
        assert_eq!(maps.owner(u32::MAX, 0), None);
        assert_eq!(
            (maps.uid_inside(1000), maps.uid_inside(100_999), maps.uid_inside(999)),
            (Some(1000), Some(999), None)
        );
        assert_eq!((maps.gid_inside(5), maps.gid_inside(200_500)), (Some(65534), None));
        assert_eq!(
            (maps.has_uid(1000), maps.has_uid(1001), maps.has_gid(499), maps.has_gid(500)),
            (true, false, true, false)
        );
        assert_eq!(maps.highest_gid(), 65534);
    }

    #[test]
    fn sets_of_ids() {
        let set = |ranges: &[(u32, u32)]| IdSet::new(ranges.iter().copied());
        assert_eq!(set(&[(5, 5), (0, 5), (20, 1), (7, 1)]), IdSet(vec![(0, 10), (20, 21)]));
        assert_eq!(set(&[(u32::MAX - 1, 7)]).count(), 1, "the last id is none");
        type Ranges = &'static [(u32, u32)];
        let cases: [(Ranges, Ranges, &[Interval]); 7] = [
            (&[(0, 10)], &[], &[(0, 10)]),
            (&[(0, 10)], &[(0, 10)], &[]),
            (&[(0, 10)], &[(3, 2), (8, 20)], &[(0, 3), (5, 8)]),
            (&[(0, 10), (20, 10)], &[(5, 20)], &[(0, 5), (25, 30)]),
            (&[(10, 5), (20, 5)], &[(0, 11), (14, 7)], &[(11, 14), (21, 25)]),
            (&[(10, 5)], &[(0, 5)], &[(10, 15)]),
            (&[(0, 2), (4, 2), (8, 2)], &[(1, 8)], &[(0, 1), (9, 10)]),
        ];
        for (from, away, expected) in cases {
            assert_eq!(set(from).without(&set(away)).0, expected, "{from:?} {away:?}");
        }
        assert_eq!(set(&[(0, 2), (4, 9)]).lowest(5).map(|set| set.0), Some(vec![(0, 2), (4, 7)]));
        assert_eq!(set(&[(0, 2)]).lowest(3), None);
        assert_eq!(set(&[]).lowest(0).map(|set| set.count()), Some(0));
    }

    #[test]
    fn free_ids_are_found() {
        let pool = |uids: &[(u32, u32)], gids: &[(u32, u32)]| IdPool {
            uids: IdSet::new(uids.iter().copied()),
            gids: IdSet::new(gids.iter().copied()),
        };
        let aside = pool(&[(100_000, 1000)], &[(300_000, 1000), (500_000, 1000)]);
        let asked = |size, uids: &str, gids: &str| AutoIds { size, uids: map(uids), gids: map(gids) };
        let none = IdPool::default();
        let found = |asked, taken: &IdPool| find_ids(&asked, &aside, taken).map(|maps| (maps.uids, maps.gids));
        assert_eq!(found(asked(10, "", ""), &none), Ok((map("0:100000:10"), map("0:300000:10"))));
        let taken = pool(&[(100_000, 10)], &[(300_000, 995)]);
        assert_eq!(
            found(asked(10, "", ""), &taken),
            Ok((map("0:100010:10"), map("0:300995:5,5:500000:5"))),
            "ids need not be in one piece"
        );
        assert_eq!(
            found(asked(10, "3:1000:1", "0:7:1"), &none),
            Ok((map("0:100000:3,4:100003:6,3:1000:1"), map("1:300000:9,0:7:1")))
        );
        assert_eq!(
            found(asked(3, "0:100000:1", ""), &none).map(|maps| maps.0),
            Ok(map("1:100001:2,0:100000:1")),
            "an id asked for by name is not given twice"
        );
        assert_eq!(
            found(asked(1001, "", ""), &none),
            Err(AutoIdsError::TooFew { kind: IdKind::User, wanted: 1001, free: 1000 })
        );
        assert!(matches!(
            found(asked(10, "0:1:2,1:5:1", ""), &none),
            Err(AutoIdsError::Maps(IdMapsError::Overlap { kind: IdKind::User, .. }))
        ));
    }

    #[test]
    fn subordinate_ids_of_one_user() {
        let file = b"root:1:5\n containers:100000:10\ncontainers:100010:10\n1001:7:1\n# no\ncontainers:x:1\n\
            containers:5\ncontainers:1:1:1\ncontainers:-1:4\n:9:9\ncontainers:4294967290:99\n";
        assert_eq!(parse_subordinate_ids(file, "containers").0, [(100_000, 100_020), (4_294_967_290, IDS_END)]);
        assert_eq!(parse_subordinate_ids(file, "1001").0, [(7, 8)]);
        assert_eq!(parse_subordinate_ids(file, ""), IdSet::default());
    }
}
