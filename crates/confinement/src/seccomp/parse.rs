//! The JSON format of profiles, as Docker and containers/common read it.
//!
//! A superset of the OCI runtime specification's `linux.seccomp`. Unknown keys are ignored, because profiles carry
//! comments; unknown actions, operators, flags and errors are not, because a runtime would fail on them later with
//! less to say.

use std::path::PathBuf;
use std::str::FromStr;

use oci_spec::runtime::{Arch, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompFilterFlag};
use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use super::errno;
use super::host::{Availability, Host, KernelVersion};
use super::resolve::{Filter, Profile, Rule, condition};

/// Longest profile: the limit of CRI-O for those that come from a registry. Real ones have 5 to 40 KiB.
pub const PROFILE_MAX_BYTES: usize = 1 << 20;
/// Most rules: Docker's own profile has 50; one rule for each call of every architecture would be 2000.
const RULES_MAX: usize = 4096;
/// Most names in a rule; no architecture has 1000 calls.
const NAMES_MAX: usize = 4096;
/// Most conditions in a rule. A call has six arguments, but a condition on the same argument may be repeated.
const ARGS_MAX: usize = 64;
/// Most entries of any other list: architectures (24 are known), flags (4), capabilities (41).
const SHORT_LIST_MAX: usize = 64;
/// Most strings in a whole file, told by its quotes before anything is allocated. 16384 is ten times the largest
/// profile with everything listed, and about a MiB once parsed.
const STRINGS_MAX: usize = 16384;
/// Arguments of a system call; seccomp(2).
const CALL_ARGS: usize = 6;
/// What fits the 16 bits that a filter returns along with its action; seccomp(2), `SECCOMP_RET_DATA`.
const RETURN_DATA_MAX: u64 = 0xffff;

/// Why bytes are not a profile.
#[derive(Debug, thiserror::Error)]
pub enum ParseProfileError {
    /// More than [`PROFILE_MAX_BYTES`], or more strings than any profile needs.
    #[error("seccomp profile has {size} {unit}, the limit is {limit}")]
    TooLarge {
        /// What was found.
        size: usize,
        /// Of what.
        unit: &'static str,
        /// What is allowed.
        limit: usize,
    },
    /// Not JSON, or not of this shape.
    #[error("decode seccomp profile")]
    Decode(#[source] serde_json::Error),
    /// Rules without a default.
    #[error("seccomp profile has rules but no defaultAction")]
    NoDefaultAction,
    /// The two cannot be combined.
    #[error("seccomp profile has both architectures and archMap, either is expected")]
    TwoArchitectureLists,
    /// The two cannot be combined.
    #[error("rule {rule} of the seccomp profile has both name and names, either is expected")]
    TwoNameLists {
        /// Its position, from 0.
        rule: usize,
    },
    /// A word of a closed list that is not in it.
    #[error("{value:?} is not {what} that seccomp profiles have")]
    UnknownWord {
        /// Of what kind the word was to be.
        what: &'static str,
        /// The word.
        value: String,
    },
    /// A number that the kernel could not return.
    #[error("error number {value} of the seccomp profile does not fit 16 bits")]
    ErrnoRange {
        /// The number.
        value: u64,
    },
    /// A condition on an argument no call has.
    #[error("rule {rule} of the seccomp profile compares argument {index}, calls have arguments 0 to 5")]
    ArgumentIndex {
        /// The rule's position, from 0.
        rule: usize,
        /// The argument.
        index: u64,
    },
}

/// A list that may be null and has a limit, so that a small file cannot become a large structure.
struct Bounded<T, const MAX: usize>(Vec<T>);

impl<T, const MAX: usize> Default for Bounded<T, MAX> {
    fn default() -> Self {
        Self(vec![])
    }
}

impl<'de, T: Deserialize<'de>, const MAX: usize> Deserialize<'de> for Bounded<T, MAX> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Items<T, const MAX: usize>(std::marker::PhantomData<T>);
        impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Items<T, MAX> {
            type Value = Bounded<T, MAX>;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a list of at most {MAX}")
            }
            fn visit_unit<E>(self) -> Result<Self::Value, E> {
                Ok(Bounded::default())
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
                let mut list = vec![];
                while let Some(item) = items.next_element()? {
                    if list.len() == MAX {
                        return Err(A::Error::invalid_length(MAX + 1, &self));
                    }
                    list.push(item);
                }
                Ok(Bounded(list))
            }
        }
        deserializer.deserialize_any(Items(std::marker::PhantomData))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawProfile {
    default_action: Option<String>,
    default_errno_ret: Option<u64>,
    default_errno: Option<String>,
    #[serde(default)]
    architectures: Bounded<String, SHORT_LIST_MAX>,
    #[serde(default)]
    arch_map: Bounded<RawArchitecture, SHORT_LIST_MAX>,
    #[serde(default)]
    syscalls: Bounded<RawRule, RULES_MAX>,
    #[serde(default)]
    flags: Bounded<String, SHORT_LIST_MAX>,
    listener_path: Option<PathBuf>,
    listener_metadata: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawArchitecture {
    architecture: String,
    #[serde(default)]
    sub_architectures: Bounded<String, SHORT_LIST_MAX>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawRule {
    name: Option<String>,
    #[serde(default)]
    names: Bounded<String, NAMES_MAX>,
    action: String,
    #[serde(default)]
    args: Bounded<RawArg, ARGS_MAX>,
    includes: Option<RawFilter>,
    excludes: Option<RawFilter>,
    errno_ret: Option<u64>,
    errno: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawArg {
    #[serde(default)]
    index: u64,
    #[serde(default)]
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RawFilter {
    #[serde(default)]
    caps: Bounded<String, SHORT_LIST_MAX>,
    #[serde(default)]
    arches: Bounded<String, SHORT_LIST_MAX>,
    min_kernel: Option<String>,
}

impl Profile {
    /// Reads a profile for a machine; only the row of `archMap` that is this machine's matters.
    ///
    /// Errors: anything a runtime would refuse or misunderstand. A file that says nothing at all (`{}`) is a profile
    /// that filters nothing, as CRI-O has it.
    pub fn parse(bytes: &[u8], host: &Host) -> Result<Self, ParseProfileError> {
        let quotes = bytes.iter().filter(|byte| **byte == b'"').count();
        for (size, unit, limit) in
            [(bytes.len(), "bytes", PROFILE_MAX_BYTES), (quotes.div_ceil(2), "strings", STRINGS_MAX)]
        {
            if size > limit {
                return Err(ParseProfileError::TooLarge { size, unit, limit });
            }
        }
        let raw: RawProfile = serde_json::from_slice(bytes).map_err(ParseProfileError::Decode)?;

        let default_action = match raw.default_action.as_deref().unwrap_or_default() {
            "" if raw.syscalls.0.is_empty() => None,
            "" => return Err(ParseProfileError::NoDefaultAction),
            action => Some(word::<LinuxSeccompAction>("an action", action)?),
        };
        let mut rules = Vec::with_capacity(raw.syscalls.0.len());
        for (position, rule) in raw.syscalls.0.into_iter().enumerate() {
            rules.extend(self::rule(position, rule)?);
        }
        Ok(Self {
            default_action,
            default_errno: errno(raw.default_errno.as_deref(), raw.default_errno_ret)?,
            architectures: architectures(&raw.architectures.0, &raw.arch_map.0, host)?,
            flags: words::<LinuxSeccompFilterFlag>("a flag", &raw.flags.0)?,
            listener_path: raw.listener_path.filter(|path| !path.as_os_str().is_empty()),
            listener_metadata: raw.listener_metadata.filter(|text| !text.is_empty()),
            rules,
        })
    }
}

fn word<T: FromStr>(what: &'static str, value: &str) -> Result<T, ParseProfileError> {
    // The longest word of any list has 41 characters.
    let shown = || value.chars().take(60).collect();
    value.parse().map_err(|_| ParseProfileError::UnknownWord { what, value: shown() })
}

fn words<T: FromStr>(what: &'static str, values: &[String]) -> Result<Vec<T>, ParseProfileError> {
    values.iter().map(|value| word(what, value)).collect()
}

/// The error to return: a name or a number in text, else the older key with just a number.
fn errno(text: Option<&str>, number: Option<u64>) -> Result<Option<u32>, ParseProfileError> {
    let value = match text.unwrap_or_default() {
        "" => number,
        text if text.bytes().all(|byte| byte.is_ascii_digit()) => Some(word("an error number", text)?),
        name => {
            let unknown =
                || ParseProfileError::UnknownWord { what: "an error name", value: name.chars().take(60).collect() };
            Some(errno::of_name(name).ok_or_else(unknown)?.into())
        }
    };
    let fits = |value| match u32::try_from(value) {
        Ok(small) if value <= RETURN_DATA_MAX => Ok(small),
        _ => Err(ParseProfileError::ErrnoRange { value }),
    };
    value.map(fits).transpose()
}

/// Architectures whose calls are filtered besides the native one's.
fn architectures(listed: &[String], map: &[RawArchitecture], host: &Host) -> Result<Vec<Arch>, ParseProfileError> {
    const WHAT: &str = "an architecture";
    if !listed.is_empty() && !map.is_empty() {
        return Err(ParseProfileError::TwoArchitectureLists);
    }
    let native = super::built_in::native(host);
    let row = map.iter().find(|row| native.is_some_and(|native| row.architecture == native.to_string()));
    match (row, native) {
        (Some(row), Some(native)) => {
            Ok(std::iter::once(native).chain(words::<Arch>(WHAT, &row.sub_architectures.0)?).collect())
        }
        _ => words(WHAT, listed),
    }
}

/// A rule, or nothing when it names no call.
fn rule(position: usize, raw: RawRule) -> Result<Option<Rule>, ParseProfileError> {
    let name = raw.name.filter(|name| !name.is_empty());
    let names = match (name, raw.names.0) {
        (Some(_), names) if !names.is_empty() => return Err(ParseProfileError::TwoNameLists { rule: position }),
        (Some(name), _) => vec![name],
        (None, names) => names,
    };
    let rule = Rule {
        names,
        action: word("an action", &raw.action)?,
        errno: errno(raw.errno.as_deref(), raw.errno_ret)?,
        args: raw.args.0.iter().map(|raw| arg(position, raw)).collect::<Result<_, _>>()?,
        includes: filter(raw.includes.unwrap_or_default())?,
        excludes: filter(raw.excludes.unwrap_or_default())?,
    };
    Ok((!rule.names.is_empty()).then_some(rule))
}

fn arg(rule: usize, raw: &RawArg) -> Result<LinuxSeccompArg, ParseProfileError> {
    let index = usize::try_from(raw.index).ok().filter(|index| *index < CALL_ARGS);
    let index = index.ok_or(ParseProfileError::ArgumentIndex { rule, index: raw.index })?;
    Ok(condition(index, word("an operator", &raw.op)?, raw.value, raw.value_two))
}

fn filter(raw: RawFilter) -> Result<Filter, ParseProfileError> {
    let min_kernel = raw.min_kernel.filter(|text| !text.is_empty()).map(|text| {
        KernelVersion::parse(&text).ok_or_else(|| ParseProfileError::UnknownWord {
            what: "a kernel version",
            value: text.chars().take(60).collect(),
        })
    });
    Ok(Filter { capabilities: raw.caps.0, architectures: raw.arches.0, min_kernel: min_kernel.transpose()? })
}

/// Entry for fuzzing: any bytes are a profile or an error, and what a profile resolves to is a runtime spec's.
pub fn fuzz_profile(bytes: &[u8]) {
    use domain::spec::CapabilitySet;
    for architecture in ["amd64", "s390x", "riscv64"] {
        let kernel = KernelVersion { major: 5, minor: 10 };
        let host = Host { architecture, kernel, availability: Availability::Available };
        let Ok(profile) = Profile::parse(bytes, &host) else { continue };
        let relevant = profile.relevant_capabilities();
        for capabilities in [CapabilitySet::EMPTY, CapabilitySet::ALL, CapabilitySet::from_mask(0xa80425fb)] {
            let spec = profile.resolve(capabilities, &host);
            assert_eq!(spec, profile.resolve(capabilities.and(relevant), &host), "other capabilities do not matter");
            let Some(spec) = spec else { continue };
            for call in spec.syscalls().iter().flatten() {
                assert!(!call.names().is_empty());
                assert!(call.args().iter().flatten().all(|arg| arg.index() < CALL_ARGS));
            }
            let text = serde_json::to_vec(&spec).expect("runtime specs serialise");
            assert_eq!(spec, serde_json::from_slice(&text).expect("and are read back"));
        }
    }
}

#[cfg(test)]
mod tests {
    use domain::spec::CapabilitySet;

    use super::*;

    const HOST: Host = Host {
        architecture: "amd64",
        kernel: KernelVersion { major: 5, minor: 10 },
        availability: Availability::Available,
    };

    /// The runtime spec of a profile, as JSON; or the error and its cause in words.
    fn check(profile: &str, capabilities: &[&str]) -> Result<String, String> {
        let set = capabilities.iter().filter_map(|name| CapabilitySet::of_name(name));
        let set = set.fold(CapabilitySet::EMPTY, CapabilitySet::with);
        match Profile::parse(profile.as_bytes(), &HOST) {
            Ok(profile) => Ok(serde_json::to_string(&profile.resolve(set, &HOST)).expect("serialises")),
            Err(error) => Err(match std::error::Error::source(&error) {
                Some(cause) => format!("{error}: {cause}"),
                None => error.to_string(),
            }),
        }
    }

    fn rules(rules: &str) -> String {
        format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO","syscalls":[{rules}]}}"#)
    }

    #[test]
    fn rules_are_taken_or_left() {
        const READ: &str = r#""names":["read"],"action":"SCMP_ACT_ALLOW""#;
        for (conditions, capabilities, is_there) in [
            ("", &[][..], true),
            (r#","includes":{},"excludes":{}"#, &[], true),
            (r#","includes":null,"excludes":null,"args":null"#, &[], true),
            (r#","includes":{"caps":["CAP_SYS_ADMIN"]}"#, &[], false),
            (r#","includes":{"caps":["CAP_SYS_ADMIN"]}"#, &["SYS_ADMIN"], true),
            (r#","includes":{"caps":["CAP_SYS_ADMIN","CAP_KILL"]}"#, &["SYS_ADMIN"], false),
            (r#","includes":{"caps":["SYS_ADMIN"]}"#, &["SYS_ADMIN"], false),
            (r#","includes":{"caps":["CAP_FROM_THE_FUTURE"]}"#, &["SYS_ADMIN"], false),
            (r#","excludes":{"caps":["CAP_SYS_ADMIN","CAP_KILL"]}"#, &["SYS_ADMIN"], false),
            (r#","excludes":{"caps":["CAP_SYS_ADMIN"]}"#, &["KILL"], true),
            (r#","excludes":{"caps":["CAP_FROM_THE_FUTURE"]}"#, &["KILL"], true),
            (r#","includes":{"arches":["amd64","x32"]}"#, &[], true),
            (r#","includes":{"arches":["arm64"]}"#, &[], false),
            (r#","excludes":{"arches":["amd64"]}"#, &[], false),
            (r#","excludes":{"arches":["x86"]}"#, &[], true),
            (r#","includes":{"minKernel":"4.8"}"#, &[], true),
            (r#","includes":{"minKernel":"5.11"}"#, &[], false),
            (r#","excludes":{"minKernel":"4.8"}"#, &[], false),
            (r#","excludes":{"minKernel":"5.11"}"#, &[], true),
            (r#","includes":{"caps":["CAP_KILL"],"arches":["arm64"]}"#, &["KILL"], false),
        ] {
            let spec = check(&rules(&format!("{{{READ}{conditions}}}")), capabilities);
            let call = if is_there { r#","syscalls":[{"names":["read"],"action":"SCMP_ACT_ALLOW"}]"# } else { "" };
            assert_eq!(spec, Ok(format!(r#"{{"defaultAction":"SCMP_ACT_ERRNO"{call}}}"#)), "{conditions}");
        }
    }

    #[test]
    fn every_key_arrives() {
        let profile = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":1,"defaultErrno":"ENOSYS","comment":"x",
            "archMap":[{"architecture":"SCMP_ARCH_FUTURE","subArchitectures":["SCMP_ARCH_FURTHER"]},
                {"architecture":"SCMP_ARCH_X86_64","subArchitectures":["SCMP_ARCH_X86"]}],
            "flags":["SECCOMP_FILTER_FLAG_LOG"],"listenerPath":"/run/listen","listenerMetadata":"m",
            "syscalls":[{"name":"one","action":"SCMP_ACT_TRACE","errnoRet":65535,"comment":"c"},{"action":"SCMP_ACT_KILL"},
                {"names":["two","three"],"action":"SCMP_ACT_ERRNO","errno":"95",
                "args":[{"index":5,"value":18446744073709551615,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        let expected = r#"{"defaultAction":"SCMP_ACT_ERRNO","defaultErrnoRet":38,"architectures":["SCMP_ARCH_X86_64","SCMP_ARCH_X86"],"flags":["SECCOMP_FILTER_FLAG_LOG"],"listenerPath":"/run/listen","listenerMetadata":"m","syscalls":[{"names":["one"],"action":"SCMP_ACT_TRACE","errnoRet":65535},{"names":["two","three"],"action":"SCMP_ACT_ERRNO","errnoRet":95,"args":[{"index":5,"value":18446744073709551615,"valueTwo":3,"op":"SCMP_CMP_MASKED_EQ"}]}]}"#;
        assert_eq!(check(profile, &[]).as_deref(), Ok(expected));
        // A runtime spec's own form is read too, and gives itself.
        assert_eq!(check(expected, &[]).as_deref(), Ok(expected));
        for empty in ["{}", r#"{"defaultAction":"","syscalls":null}"#] {
            assert_eq!(check(empty, &[]).as_deref(), Ok("null"), "{empty}");
        }
    }

    #[test]
    fn what_no_runtime_would_take_is_refused() {
        let rule = |rest: &str| rules(&format!(r#"{{"names":["read"],{rest}}}"#));
        for (profile, expected) in [
            (String::new(), "decode seccomp profile: EOF while parsing a value at line 1 column 0"),
            ("[]".into(), "decode seccomp profile: invalid length 0"),
            ("{} {}".into(), "decode seccomp profile: trailing characters"),
            (r#"{"defaultAction":1}"#.into(), "decode seccomp profile: invalid type: integer `1`"),
            (r#"{"defaultAction":"ALLOW"}"#.into(), r#""ALLOW" is not an action that seccomp profiles have"#),
            (r#"{"syscalls":[{"action":"SCMP_ACT_ALLOW"}]}"#.into(), "seccomp profile has rules but no defaultAction"),
            (rule(r#""action":"SCMP_ACT_MAYBE""#), r#""SCMP_ACT_MAYBE" is not an action that"#),
            (rule(r#""name":"open","action":"SCMP_ACT_ALLOW""#), "rule 0 of the seccomp profile has both name and"),
            (rule(r#""errno":"EWHAT","action":"SCMP_ACT_ERRNO""#), r#""EWHAT" is not an error name that"#),
            (rule(r#""errnoRet":65536,"action":"SCMP_ACT_ERRNO""#), "error number 65536 of the seccomp profile does"),
            (rule(r#""errnoRet":-1,"action":"SCMP_ACT_ERRNO""#), "decode seccomp profile: invalid value: integer `-1`"),
            (
                rule(r#""action":"SCMP_ACT_ALLOW","args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]"#),
                "rule 0 of the seccomp profile compares argument 6, calls have arguments 0 to 5",
            ),
            (rule(r#""action":"SCMP_ACT_ALLOW","args":[{"op":"=="}]"#), r#""==" is not an operator that"#),
            (
                rule(r#""action":"SCMP_ACT_ALLOW","includes":{"minKernel":"new"}"#),
                r#""new" is not a kernel version that"#,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["LOG"]}"#.into(),
                r#""LOG" is not a flag that seccomp profiles have"#,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["amd64"]}"#.into(),
                r#""amd64" is not an architecture that"#,
            ),
            (
                r#"{"defaultAction":"SCMP_ACT_ALLOW","architectures":["SCMP_ARCH_ARM"],
                    "archMap":[{"architecture":"SCMP_ARCH_ARM"}]}"#
                    .into(),
                "seccomp profile has both architectures and archMap",
            ),
        ] {
            let error = check(&profile, &[]).expect_err(&profile);
            assert!(error.starts_with(expected), "{profile}: {error}");
        }
    }

    #[test]
    fn limits_hold() {
        let list = |item: &str, count: usize| vec![item; count].join(",");
        let rule = r#"{"name":"a","action":"SCMP_ACT_ALLOW"}"#;
        let arg = r#"{"op":"SCMP_CMP_EQ"}"#;
        let named =
            |names: usize| rules(&format!(r#"{{"names":[{}],"action":"SCMP_ACT_ALLOW"}}"#, list("\"a\"", names)));
        let compared =
            |args: usize| rules(&format!(r#"{{"name":"a","action":"SCMP_ACT_ALLOW","args":[{}]}}"#, list(arg, args)));
        for (profile, expected) in [
            (rules(&list(rule, 4000)), Ok(())),
            (rules(&list(r#"{"action":"SCMP_ACT_ALLOW"}"#, 4097)), Err("decode seccomp profile")),
            (rules(&list(rule, 4097)), Err("seccomp profile has 16391 strings, the limit is 16384")),
            (named(4096), Ok(())),
            (named(4097), Err("decode seccomp profile")),
            (compared(64), Ok(())),
            (compared(65), Err("decode seccomp profile")),
            (" ".repeat(PROFILE_MAX_BYTES + 1), Err("seccomp profile has 1048577 bytes, the limit is 1048576")),
            ("[".repeat(1000), Err("decode seccomp profile")),
        ] {
            let result = Profile::parse(profile.as_bytes(), &HOST).map(|_| ()).map_err(|error| error.to_string());
            assert_eq!(result, expected.map_err(str::to_owned), "{}", &profile[..profile.len().min(100)]);
        }
    }

    #[test]
    fn any_bytes_can_be_fed() {
        let profile = rules(r#"{"names":["read"],"action":"SCMP_ACT_ALLOW","includes":{"caps":["CAP_KILL"]}}"#);
        for end in 0..=profile.len() {
            fuzz_profile(&profile.as_bytes()[..end]);
        }
        fuzz_profile(&[0xff; 64]);
        // Every byte replaced by what means something in JSON or in numbers.
        for position in 0..profile.len() {
            for byte in *br#""{}[],:-190.e\"# {
                let mut changed = profile.clone().into_bytes();
                changed[position] = byte;
                fuzz_profile(&changed);
            }
        }
    }
}
