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
