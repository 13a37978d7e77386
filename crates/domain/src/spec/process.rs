//! What is executed and in which surroundings: arguments, environment, directory, user, limits.

use oci_spec::runtime::{PosixRlimit, PosixRlimitBuilder, PosixRlimitType, User};

use super::{Clamp, NodeFacts, SpecError, Ulimit};
use crate::container::ContainerConfig;
use crate::image::ImageConfig;
use crate::user::ResolvedUser;

/// Where commands are looked for when nobody says otherwise.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// The range of `/proc/<pid>/oom_score_adj`, proc(5).
const OOM_SCORE_ADJ: std::ops::RangeInclusive<i64> = -1000..=1000;

fn refuse_nul(field: &'static str, text: &str) -> Result<(), SpecError> {
    if text.contains('\0') { Err(SpecError::Nul { field }) } else { Ok(()) }
}

/// The command line: `command` replaces the image's entrypoint and its arguments, `args` only the arguments.
///
/// Source: CRI `ContainerConfig.command` and `args`; Docker's rules for `ENTRYPOINT` and `CMD`.
pub fn args(command: &[String], args: &[String], image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let (entrypoint, args) = match (command.is_empty(), args.is_empty()) {
        (false, _) => (command, args),
        (true, false) => (image.entrypoint.as_slice(), args),
        (true, true) => (image.entrypoint.as_slice(), image.cmd.as_slice()),
    };
    let line: Vec<String> = entrypoint.iter().chain(args).cloned().collect();
    if line.is_empty() {
        return Err(SpecError::NoCommand);
    }
    line.iter().try_for_each(|part| refuse_nul("args", part))?;
    Ok(line)
}

/// Whether the command is systemd, which wants its own mounts and a writable cgroup. Source: CRI-O's rule.
#[must_use]
pub fn is_systemd(args: &[String]) -> bool {
    args.first().is_some_and(|first| first.contains("/sbin/init") || first.rsplit('/').next() == Some("systemd"))
}

/// Environment in order; setting a name again keeps its place.
#[derive(Debug, Default)]
pub(super) struct Env(Vec<(String, String)>);

impl Env {
    fn set(&mut self, name: &str, value: &str) {
        match self.0.iter_mut().find(|(known, _)| known == name) {
            Some((_, old)) => value.clone_into(old),
            None => self.0.push((name.to_owned(), value.to_owned())),
        }
    }

    /// The image's entries without a name are left out: they are foreign text that some builders write.
    fn set_from_image(&mut self, entries: &[String]) -> Result<(), SpecError> {
        for (name, value) in
            entries.iter().filter_map(|entry| entry.split_once('=')).filter(|(name, _)| !name.is_empty())
        {
            refuse_nul("env", name).and_then(|()| refuse_nul("env", value))?;
            self.set(name, value);
        }
        Ok(())
    }

    fn set_checked(&mut self, name: &str, value: &str, origin: &'static str) -> Result<(), SpecError> {
        if name.is_empty() || name.contains('=') {
            return Err(SpecError::BadEnv { name: name.chars().take(100).collect(), origin });
        }
        refuse_nul("env", name).and_then(|()| refuse_nul("env", value))?;
        self.set(name, value);
        Ok(())
    }

    fn lines(self) -> Vec<String> {
        self.0.into_iter().map(|(name, value)| format!("{name}={value}")).collect()
    }
}

/// The environment: defaults of the daemon, then the configuration's, the image's, the request's, each over the former.
///
/// HOME is refused when it has a line break, because runtimes and this daemon write it into passwd lines
/// (CVE-2022-4318); it is left to the runtime when nobody sets it, which takes it from the image's passwd file.
pub(super) fn env(
    hostname: &str,
    defaults: &[String],
    image: &ImageConfig,
    config: &ContainerConfig,
    is_systemd: bool,
) -> Result<Vec<String>, SpecError> {
    let mut env = Env::default();
    env.set("PATH", DEFAULT_PATH);
    env.set("TERM", "xterm");
    refuse_nul("hostname", hostname)?;
    env.set("HOSTNAME", hostname);
    if is_systemd {
        env.set("container", "crio");
    }
    for entry in defaults {
        let (name, value) = entry
            .split_once('=')
            .ok_or_else(|| SpecError::BadEnv { name: entry.chars().take(100).collect(), origin: "default_env" })?;
        env.set_checked(name, value, "default_env")?;
    }
    env.set_from_image(&image.env)?;
    for (name, value) in &config.envs {
        env.set_checked(name, value, "the request")?;
    }
    if env.0.iter().any(|(name, value)| name == "HOME" && value.contains(['\n', '\r'])) {
        return Err(SpecError::HomeWithLineBreak);
    }
    Ok(env.lines())
}

/// The environment of the infra container: the image's only.
pub(super) fn infra_env(image: &ImageConfig) -> Result<Vec<String>, SpecError> {
    let mut env = Env::default();
    env.set("PATH", DEFAULT_PATH);
    env.set("TERM", "xterm");
    env.set_from_image(&image.env)?;
    Ok(env.lines())
}

/// The working directory: the request's, else the image's, else `/`. Always absolute; a relative one starts at `/`.
pub fn cwd(config: &ContainerConfig, image: &ImageConfig) -> Result<String, SpecError> {
    let given = [&config.working_dir, &image.working_dir].into_iter().find(|text| !text.is_empty());
    let text = given.map_or("/", String::as_str);
    refuse_nul("working_dir", text)?;
    Ok(if text.starts_with('/') { text.to_owned() } else { format!("/{text}") })
}

pub(super) fn user(resolved: &ResolvedUser, umask: Option<u32>) -> User {
    let mut user = User::default();
    user.set_uid(resolved.uid);
    user.set_gid(resolved.gid);
    user.set_additional_gids(Some(resolved.additional_gids.clone()));
    user.set_umask(umask);
    user
}

/// `umask.crio.io`: one to four octal digits.
pub(super) fn parse_umask(value: &str) -> Result<u32, SpecError> {
    let is_octal = (1..=4).contains(&value.len()) && value.bytes().all(|byte| (b'0'..=b'7').contains(&byte));
    let parsed = if is_octal { u32::from_str_radix(value, 8).ok() } else { None };
    parsed.ok_or_else(|| SpecError::BadUmask { value: value.chars().take(20).collect() })
}

/// What the machine allows of an `oom_score_adj`.
pub(super) fn oom_score_adj(wanted: i64, node: &NodeFacts, clamped: &mut Vec<Clamp>) -> Result<i32, SpecError> {
    let out_of_range = || SpecError::OutOfRange { field: "oom_score_adj", value: wanted.to_string() };
    if !OOM_SCORE_ADJ.contains(&wanted) {
        return Err(out_of_range());
    }
    let wanted_here = i32::try_from(wanted).map_err(|_| out_of_range())?;
    if wanted_here < node.lowest_oom_score_adj {
        clamped.push(Clamp::OomScoreAdj { wanted, given: node.lowest_oom_score_adj });
    }
    Ok(wanted_here.max(node.lowest_oom_score_adj))
}

/// Names of getrlimit(2).
const RLIMITS: [(&str, PosixRlimitType); 16] = [
    ("AS", PosixRlimitType::RlimitAs),
    ("CORE", PosixRlimitType::RlimitCore),
    ("CPU", PosixRlimitType::RlimitCpu),
    ("DATA", PosixRlimitType::RlimitData),
    ("FSIZE", PosixRlimitType::RlimitFsize),
    ("LOCKS", PosixRlimitType::RlimitLocks),
    ("MEMLOCK", PosixRlimitType::RlimitMemlock),
    ("MSGQUEUE", PosixRlimitType::RlimitMsgqueue),
    ("NICE", PosixRlimitType::RlimitNice),
    ("NOFILE", PosixRlimitType::RlimitNofile),
    ("NPROC", PosixRlimitType::RlimitNproc),
    ("RSS", PosixRlimitType::RlimitRss),
    ("RTPRIO", PosixRlimitType::RlimitRtprio),
    ("RTTIME", PosixRlimitType::RlimitRttime),
    ("SIGPENDING", PosixRlimitType::RlimitSigpending),
    ("STACK", PosixRlimitType::RlimitStack),
];

pub(super) fn rlimits(ulimits: &[Ulimit]) -> Result<Vec<PosixRlimit>, SpecError> {
    ulimits
        .iter()
        .map(|limit| {
            let upper = limit.name.to_ascii_uppercase();
            let name = upper.strip_prefix("RLIMIT_").unwrap_or(&upper);
            let known = RLIMITS.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind);
            let built = known.and_then(|kind| {
                PosixRlimitBuilder::default().typ(kind).soft(limit.soft.min(limit.hard)).hard(limit.hard).build().ok()
            });
            built.ok_or_else(|| SpecError::UnknownUlimit { name: limit.name.clone() })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strings(parts: &[&str]) -> Vec<String> {
        parts.iter().map(|part| (*part).to_owned()).collect()
    }

    #[test]
    fn commands_combine_with_the_image() {
        for (command, given, entrypoint, cmd, expected) in [
            (&[][..], &[][..], &["/e"][..], &["c"][..], Some(vec!["/e", "c"])),
            (&[], &["a"], &["/e"], &["c"], Some(vec!["/e", "a"])),
            (&["/x"], &[], &["/e"], &["c"], Some(vec!["/x"])),
            (&["/x", "y"], &["a"], &["/e"], &["c"], Some(vec!["/x", "y", "a"])),
            (&[], &[], &[], &["c"], Some(vec!["c"])),
            (&[], &["a"], &[], &[], Some(vec!["a"])),
            (&[], &[], &[], &[], None),
            (&["a\0b"], &[], &[], &[], None),
        ] {
            let image = ImageConfig { entrypoint: strings(entrypoint), cmd: strings(cmd), ..ImageConfig::default() };
            let line = args(&strings(command), &strings(given), &image).ok();
            assert_eq!(line, expected.as_deref().map(strings), "{command:?} {given:?}");
        }
    }

    #[test]
    fn systemd_is_recognised_by_its_path() {
        for (first, expected) in [
            ("/sbin/init", true),
            ("/usr/sbin/init", true),
            ("systemd", true),
            ("/lib/systemd/systemd", true),
            ("/bin/sh", false),
            ("init", false),
            ("/usr/bin/systemd-notify", false),
        ] {
            assert_eq!(is_systemd(&[first.to_owned()]), expected, "{first}");
        }
        assert!(!is_systemd(&[]));
    }

    #[test]
    fn later_sources_win_and_names_appear_once() {
        let image =
            ImageConfig { env: strings(&["PATH=/img", "A=image", "broken", "=x", "B=b=c"]), ..ImageConfig::default() };
        let config = ContainerConfig {
            envs: vec![("A".into(), "request".into()), ("HOSTNAME".into(), "mine".into()), ("A".into(), "last".into())],
            ..ContainerConfig::default()
        };
        let lines = env("pod", &strings(&["A=default", "D=1"]), &image, &config, false).expect("valid");
        assert_eq!(lines, strings(&["PATH=/img", "TERM=xterm", "HOSTNAME=mine", "A=last", "D=1", "B=b=c"]));
    }

    #[test]
    fn hostile_variables_are_refused() {
        for (name, value) in
            [("HOME", "/x\nroot:x:0:0"), ("HOME", "/x\r"), ("", "v"), ("a=b", "v"), ("n", "v\0w"), ("n\0", "v")]
        {
            let config = ContainerConfig { envs: vec![(name.into(), value.into())], ..ContainerConfig::default() };
            assert!(env("h", &[], &ImageConfig::default(), &config, false).is_err(), "{name:?}={value:?}");
        }
        let image = ImageConfig { env: strings(&["HOME=/a\nb"]), ..ImageConfig::default() };
        let refused = env("h", &[], &image, &ContainerConfig::default(), false);
        assert_eq!(refused, Err(SpecError::HomeWithLineBreak));
        assert!(env("h", &strings(&["NOVALUE"]), &ImageConfig::default(), &ContainerConfig::default(), false).is_err());
    }

    #[test]
    fn scores_are_clamped_to_what_the_machine_allows() {
        for (wanted, lowest, expected, clamps) in [
            (-998, -1000, Some(-998), 0),
            (-998, 0, Some(0), 1),
            (-998, -500, Some(-500), 1),
            (1000, 0, Some(1000), 0),
            (0, 0, Some(0), 0),
            (-1001, -1000, None, 0),
            (1001, -1000, None, 0),
            (i64::MIN, -1000, None, 0),
        ] {
            let node = NodeFacts { lowest_oom_score_adj: lowest, ..NodeFacts::default() };
            let mut clamped = vec![];
            assert_eq!(oom_score_adj(wanted, &node, &mut clamped).ok(), expected, "{wanted} {lowest}");
            assert_eq!(clamped.len(), clamps, "{wanted} {lowest}");
        }
    }

    #[test]
    fn umasks_are_octal() {
        for (text, expected) in [
            ("022", Some(0o22)),
            ("7", Some(7)),
            ("0777", Some(0o777)),
            ("", None),
            ("8", None),
            ("00022", None),
            ("+22", None),
        ] {
            assert_eq!(parse_umask(text).ok(), expected, "{text}");
        }
    }

    #[test]
    fn ulimits_have_known_names() {
        let limits = rlimits(&[
            Ulimit { name: "nofile".into(), soft: 10, hard: 20 },
            Ulimit { name: "RLIMIT_CORE".into(), soft: 9, hard: 0 },
        ])
        .expect("known");
        let json = serde_json::to_value(&limits).expect("serialises");
        assert_eq!(
            json,
            serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 10, "hard": 20}, {"type": "RLIMIT_CORE", "soft": 0, "hard": 0}])
        );
        assert!(rlimits(&[Ulimit { name: "files".into(), soft: 1, hard: 1 }]).is_err());
    }
}
