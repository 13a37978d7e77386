//! Who a process runs as: the request, the image's `User` and the bytes of the image's `/etc/passwd` and `/etc/group`
//! made into numbers.
//!
//! One parser for creating and for executing. A text of digits only is a number that fits the kernel's 32-bit ids or
//! an error; it is never looked up as a name, because a file of the image could otherwise rename a number to root.
//! Source: CRI `LinuxContainerSecurityContext`, OCI image configuration `User`, passwd(5), group(5).

use std::collections::BTreeSet;

use thiserror::Error;

use crate::container::ContainerSecurity;
use crate::sandbox::SandboxSecurity;
use crate::security::SupplementalGroupsPolicy;

/// Most bytes of a passwd or group file a caller should read, and the most this module looks at. A directory dump of
/// ten thousand users stays below it; a sparse file of an image does not fill the daemon's memory.
pub const USER_FILE_MAX_BYTES: usize = 2 << 20;
/// Most lines looked at, so that a file of newlines costs little.
const USER_FILE_MAX_LINES: usize = 65_536;
/// Longest line looked at; a longer one is passed over. A group of two thousand members fits.
const USER_LINE_MAX_BYTES: usize = 65_536;
/// Most supplementary groups of a process: `NGROUPS_MAX` of Linux.
const GROUPS_MAX: usize = 65_536;
/// The one id the kernel reserves: `(uid_t) -1` means "leave as it is" to setuid(2) and chown(2).
const RESERVED_ID: u32 = u32::MAX;

/// Why a user cannot be determined.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ResolveUserError {
    /// A group needs a user beside it.
    #[error("run_as_group is given without run_as_user or run_as_username")]
    GroupWithoutUser,
    /// A number that is no id.
    #[error("{field} {value} is not an id between 0 and 4294967294")]
    IdOutOfRange {
        /// The CRI field, or `User` of the image.
        field: &'static str,
        /// The refused text.
        value: String,
    },
    /// A text that cannot be a name.
    #[error("{field} {value:?} is not a user name")]
    BadName {
        /// The CRI field, or `User` of the image.
        field: &'static str,
        /// The refused text.
        value: String,
    },
    /// The image does not know the name.
    #[error("user {name:?} is not in the image's /etc/passwd")]
    UnknownUser {
        /// The name.
        name: String,
    },
    /// The image does not know the group.
    #[error("group {name:?} is not in the image's /etc/group")]
    UnknownGroup {
        /// The name.
        name: String,
    },
    /// More groups than a process can have.
    #[error("{count} supplementary groups, a process can have 65536")]
    TooManyGroups {
        /// How many.
        count: usize,
    },
}

/// What the CRI asks about the user.
#[derive(Debug, Clone, Copy, Default)]
pub struct UserRequest<'a> {
    /// `run_as_user`.
    pub run_as_user: Option<i64>,
    /// `run_as_username`; wins over the number. Empty when not given.
    pub run_as_username: &'a str,
    /// `run_as_group`.
    pub run_as_group: Option<i64>,
    /// `supplemental_groups`.
    pub supplemental_groups: &'a [i64],
    /// `supplemental_groups_policy`.
    pub policy: SupplementalGroupsPolicy,
}

impl<'a> From<&'a ContainerSecurity> for UserRequest<'a> {
    fn from(security: &'a ContainerSecurity) -> Self {
        Self {
            run_as_user: security.run_as_user,
            run_as_username: &security.run_as_username,
            run_as_group: security.run_as_group,
            supplemental_groups: &security.supplemental_groups,
            policy: security.supplemental_groups_policy,
        }
    }
}

impl<'a> From<&'a SandboxSecurity> for UserRequest<'a> {
    fn from(security: &'a SandboxSecurity) -> Self {
        Self {
            run_as_user: security.run_as_user,
            run_as_username: "",
            run_as_group: security.run_as_group,
            supplemental_groups: &security.supplemental_groups,
            policy: security.supplemental_groups_policy,
        }
    }
}

/// Numbers a process runs with, and what the image knows about them.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups, the primary one first, each once.
    pub additional_gids: Vec<u32>,
    /// Name in the image's passwd file; absent when the image does not know the uid.
    pub name: Option<String>,
    /// Home in the image's passwd file, absolute; absent when unknown or unusable.
    pub home: Option<String>,
    /// The image's passwd file has the uid.
    pub is_uid_known: bool,
    /// The image's group file has the gid.
    pub is_gid_known: bool,
}

impl ResolvedUser {
    /// The line to append to a copy of the image's passwd file, newline included; absent when the uid is known.
    ///
    /// `home` is the `HOME` of the container's environment, or its working directory. What could end a field or the
    /// line (CVE-2022-4318) makes it fall back to `/tmp`; the name is the number itself, so it has no such character.
    /// Source: CRI-O writes `<user>:x:<uid>:<gid>:<user> user:<home>:/sbin/nologin`.
    #[must_use]
    pub fn missing_passwd_line(&self, home: &str) -> Option<String> {
        if self.is_uid_known {
            return None;
        }
        let is_safe = home.starts_with('/') && home.len() <= 4096 && is_field(home);
        let home = if is_safe { home } else { "/tmp" };
        let (uid, gid) = (self.uid, self.gid);
        Some(format!("{uid}:x:{uid}:{gid}:{uid} user:{home}:/sbin/nologin\n"))
    }

    /// The line to append to a copy of the image's group file, newline included; absent when the gid is known.
    #[must_use]
    pub fn missing_group_line(&self) -> Option<String> {
        (!self.is_gid_known).then(|| format!("{gid}:x:{gid}:\n", gid = self.gid))
    }
}

/// A text that stays one field of one line.
fn is_field(text: &str) -> bool {
    !text
        .chars()
        .any(|character| character == ':' || character.is_control() || matches!(character, '\u{2028}' | '\u{2029}'))
}

struct Passwd<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

fn lines(file: &[u8]) -> impl Iterator<Item = &str> {
    let bounded = &file[..file.len().min(USER_FILE_MAX_BYTES)];
    bounded
        .split(|byte| *byte == b'\n')
        .take(USER_FILE_MAX_LINES)
        .filter(|line| line.len() <= USER_LINE_MAX_BYTES)
        .filter_map(|line| std::str::from_utf8(line).ok())
        .map(|line| line.trim_matches([' ', '\t', '\r']))
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Entries whose numbers are ids; a line that is not is passed over, as getpwnam(3) does.
fn passwd_entries(file: &[u8]) -> impl Iterator<Item = Passwd<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let uid = parse_id(fields.next()?)?;
        let gid = parse_id(fields.next()?)?;
        let _comment = fields.next();
        Some(Passwd { name, uid, gid, home: fields.next().unwrap_or("") })
    })
}

fn group_entries(file: &[u8]) -> impl Iterator<Item = Group<'_>> {
    lines(file).filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let _password = fields.next()?;
        let gid = parse_id(fields.next()?)?;
        Some(Group { name, gid, members: fields.next().unwrap_or("") })
    })
}

fn parse_id(text: &str) -> Option<u32> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if digits { text.parse().ok().filter(|id| *id != RESERVED_ID) } else { None }
}

fn id_of(field: &'static str, value: i64) -> Result<u32, ResolveUserError> {
    u32::try_from(value)
        .ok()
        .filter(|id| *id != RESERVED_ID)
        .ok_or_else(|| ResolveUserError::IdOutOfRange { field, value: value.to_string() })
}

enum Named<'a> {
    Id(u32),
    Name(&'a str),
}

/// Digits, also with a sign, are a number or an error; everything else is a name.
fn parse_named<'a>(field: &'static str, text: &'a str) -> Result<Named<'a>, ResolveUserError> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    if !unsigned.is_empty() && unsigned.bytes().all(|byte| byte.is_ascii_digit()) {
        return parse_id(text)
            .map(Named::Id)
            .ok_or_else(|| ResolveUserError::IdOutOfRange { field, value: clip(text) });
    }
    let is_name = !text.is_empty() && text.len() <= 256 && is_field(text) && !text.contains(char::is_whitespace);
    if is_name { Ok(Named::Name(text)) } else { Err(ResolveUserError::BadName { field, value: clip(text) }) }
}

fn clip(text: &str) -> String {
    text.chars().take(100).collect()
}

/// Finds the user a process runs as.
///
/// `run_as_username`, else `run_as_user`, else the image's `User` (`user[:group]`, names or numbers), else root. The
/// group is `run_as_group`, else the image's, else the one of the passwd entry, else 0. Policy `Merge` adds the groups
/// whose member the user is in the image; an explicit group in `User` turns that off, as the runtimes do.
/// `passwd` and `group` are the files' bytes, empty when the image has none; only [`USER_FILE_MAX_BYTES`] count.
pub fn resolve_user(
    request: &UserRequest<'_>,
    image_user: &str,
    passwd: &[u8],
    group: &[u8],
) -> Result<ResolvedUser, ResolveUserError> {
    if request.run_as_group.is_some() && request.run_as_user.is_none() && request.run_as_username.is_empty() {
        return Err(ResolveUserError::GroupWithoutUser);
    }
    let (user, group_name) = match (request.run_as_username, request.run_as_user) {
        ("", Some(uid)) => (Named::Id(id_of("run_as_user", uid)?), None),
        ("", None) => {
            let (user, group) = match image_user.split_once(':') {
                Some((user, group)) => (user, Some(group).filter(|group| !group.is_empty())),
                None => (image_user, None),
            };
            let user = if user.is_empty() { Named::Id(0) } else { parse_named("User of the image", user)? };
            (user, group)
        }
        (name, _) => (parse_named("run_as_username", name)?, None),
    };

    let entry = passwd_entries(passwd).find(|entry| match user {
        Named::Id(uid) => entry.uid == uid,
        Named::Name(name) => entry.name == name,
    });
    let uid = match (&user, &entry) {
        (Named::Id(uid), _) => *uid,
        (Named::Name(_), Some(entry)) => entry.uid,
        (Named::Name(name), None) => return Err(ResolveUserError::UnknownUser { name: (*name).to_owned() }),
    };

    let mut gid = entry.as_ref().map_or(0, |entry| entry.gid);
    if let Some(group_name) = group_name {
        gid = match parse_named("User of the image", group_name)? {
            Named::Id(gid) => gid,
            Named::Name(name) => group_entries(group)
                .find(|entry| entry.name == name)
                .map(|entry| entry.gid)
                .ok_or_else(|| ResolveUserError::UnknownGroup { name: name.to_owned() })?,
        };
    }
    let mut groups = vec![];
    if let (None, Some(entry), SupplementalGroupsPolicy::Merge) = (group_name, &entry, request.policy) {
        let member_of = group_entries(group).filter(|group| group.members.split(',').any(|name| name == entry.name));
        groups.extend(member_of.map(|group| group.gid));
    }
    if let Some(wanted) = request.run_as_group {
        gid = id_of("run_as_group", wanted)?;
    }
    for wanted in request.supplemental_groups {
        groups.push(id_of("supplemental_groups", *wanted)?);
    }
    let mut seen = BTreeSet::new();
    let additional_gids: Vec<u32> = std::iter::once(gid).chain(groups).filter(|gid| seen.insert(*gid)).collect();
    if additional_gids.len() > GROUPS_MAX {
        return Err(ResolveUserError::TooManyGroups { count: additional_gids.len() });
    }

    Ok(ResolvedUser {
        uid,
        gid,
        additional_gids,
        name: entry.as_ref().map(|entry| entry.name.to_owned()),
        home: entry
            .as_ref()
            .map(|entry| entry.home)
            .filter(|home| home.starts_with('/') && is_field(home))
            .map(str::to_owned),
        is_uid_known: entry.is_some(),
        is_gid_known: group_entries(group).any(|entry| entry.gid == gid),
    })
}

/// Fuzz entry point: the first line is the image's user, the rest serves as passwd and as group file.
pub fn fuzz_resolve_user(bytes: &[u8]) {
    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let user = String::from_utf8_lossy(&bytes[..split]).into_owned();
    let request = UserRequest::default();
    if let Ok(resolved) = resolve_user(&request, &user, &bytes[split..], &bytes[split..]) {
        assert!(resolved.uid != RESERVED_ID && resolved.gid != RESERVED_ID, "reserved ids are refused");
        if user.split(':').next().is_some_and(|user| user.bytes().all(|byte| byte.is_ascii_digit()) && !user.is_empty())
        {
            assert!(user.split(':').next().and_then(|user| user.parse().ok()) == Some(resolved.uid), "numbers stay");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\n# note\nbroken\nweb:x:33:34:Web:/var/www:/bin/false\n\
        1000:x:0:0:trap:/root:/bin/sh\nevil:x:99999999999:0::/:/bin/sh\nminus:x:4294967295:0::/:/bin/sh\nhalf:x:50:51\n";
    const GROUP: &[u8] = b"root:x:0:\nwww:x:34:\nlogs:x:40:web,root\nssl:x:41:webmaster,web\n1000:x:0:\n";

    fn check(request: UserRequest<'_>, image: &str) -> Result<(u32, u32, Vec<u32>), ResolveUserError> {
        resolve_user(&request, image, PASSWD, GROUP).map(|user| (user.uid, user.gid, user.additional_gids))
    }

    #[test]
    fn image_users_resolve() {
        for (image, expected) in [
            ("", Some((0, 0, vec![0, 40]))),
            ("root", Some((0, 0, vec![0, 40]))),
            ("web", Some((33, 34, vec![34, 40, 41]))),
            ("33", Some((33, 34, vec![34, 40, 41]))),
            ("web:", Some((33, 34, vec![34, 40, 41]))),
            ("web:logs", Some((33, 40, vec![40]))),
            ("web:77", Some((33, 77, vec![77]))),
            (":logs", Some((0, 40, vec![40]))),
            ("half", Some((50, 51, vec![51]))),
            // a number is never the name of the trap entry that maps it to root
            ("1000", Some((1000, 0, vec![0]))),
            ("1000:1000", Some((1000, 1000, vec![1000]))),
            ("00033", Some((33, 34, vec![34, 40, 41]))),
            ("4294967294", Some((4_294_967_294, 0, vec![0]))),
            ("4294967295", None),
            ("4294967296", None),
            ("99999999999999999999", None),
            ("-1", None),
            ("+5", None),
            ("web:-1", None),
            ("nobody", None),
            ("evil", None),
            ("minus", None),
            ("web:nogroup", None),
            ("web:a:b", None),
            ("we b", None),
            ("web\nroot", None),
        ] {
            assert_eq!(check(UserRequest::default(), image).ok(), expected, "{image:?}");
        }
    }

    #[test]
    fn the_request_wins_over_the_image() {
        let base = UserRequest::default();
        for (request, expected) in [
            (UserRequest { run_as_user: Some(7), ..base }, Ok((7, 0, vec![0]))),
            (UserRequest { run_as_user: Some(33), run_as_group: Some(9), ..base }, Ok((33, 9, vec![9, 40, 41]))),
            (UserRequest { run_as_username: "web", run_as_user: Some(7), ..base }, Ok((33, 34, vec![34, 40, 41]))),
            (
                UserRequest { run_as_user: Some(33), supplemental_groups: &[41, 34, 5], ..base },
                Ok((33, 34, vec![34, 40, 41, 5])),
            ),
            (
                UserRequest {
                    run_as_user: Some(33),
                    supplemental_groups: &[5],
                    policy: SupplementalGroupsPolicy::Strict,
                    ..base
                },
                Ok((33, 34, vec![34, 5])),
            ),
            (UserRequest { run_as_group: Some(9), ..base }, Err(ResolveUserError::GroupWithoutUser)),
            (
                UserRequest { run_as_user: Some(4_294_967_296), ..base },
                Err(ResolveUserError::IdOutOfRange { field: "run_as_user", value: "4294967296".into() }),
            ),
            (
                UserRequest { run_as_user: Some(-1), ..base },
                Err(ResolveUserError::IdOutOfRange { field: "run_as_user", value: "-1".into() }),
            ),
            (
                UserRequest { run_as_user: Some(1), supplemental_groups: &[-4], ..base },
                Err(ResolveUserError::IdOutOfRange { field: "supplemental_groups", value: "-4".into() }),
            ),
        ] {
            assert_eq!(check(request, "root"), expected, "{request:?}");
        }
    }

    #[test]
    fn a_generated_line_stays_one_line_of_seven_fields() {
        let user = ResolvedUser { uid: 1234, gid: 5, ..ResolvedUser::default() };
        for (home, expected) in [
            ("/work", "/work"),
            ("", "/tmp"),
            ("relative", "/tmp"),
            ("/x\nroot:x:0:0::/:/bin/sh", "/tmp"),
            ("/x:0:0", "/tmp"),
            ("/x\u{2028}y", "/tmp"),
            ("/x\0y", "/tmp"),
        ] {
            let line = user.missing_passwd_line(home).expect("uid is unknown");
            assert_eq!(line, format!("1234:x:1234:5:1234 user:{expected}:/sbin/nologin\n"));
            assert_eq!((line.matches('\n').count(), line.matches(':').count()), (1, 6));
        }
        assert_eq!(user.missing_group_line().as_deref(), Some("5:x:5:\n"));
        let known = ResolvedUser { is_uid_known: true, is_gid_known: true, ..user };
        assert_eq!((known.missing_passwd_line("/"), known.missing_group_line()), (None, None));
    }

    #[test]
    fn huge_files_are_looked_at_in_part_only() {
        let mut passwd = vec![b'\n'; USER_FILE_MAX_BYTES];
        passwd.extend_from_slice(b"late:x:5:5::/:/bin/sh\n");
        assert!(matches!(
            resolve_user(&UserRequest::default(), "late", &passwd, b""),
            Err(ResolveUserError::UnknownUser { .. })
        ));
        let sample = b"10:web\nroot:x:0:0::/root:/x\nweb:x:10:4294967294::/:/x\n10:x:0:0::/:/x\n";
        for at in 0..sample.len() {
            for byte in [b'\n', b':', b'0', b'9', b'-', b'x', 0, 0xc3, b',', b'#'] {
                let mut mutated = sample.to_vec();
                mutated[at] = byte;
                fuzz_resolve_user(&mutated);
            }
            fuzz_resolve_user(&sample[at..]);
        }
    }
}
