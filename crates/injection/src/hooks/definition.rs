//! One definition: a program, the stages it runs at, and the containers it runs for.
//!
//! Source: the `oci-hooks` format of containers/common, versions 1.0.0 and 0.1.0. As there, unknown fields are passed
//! over, and a program that is absent makes the definition invalid.

use std::collections::BTreeMap;
use std::path::Path;

use domain::spec::{HookProgram, HookStage};
use regex::Regex;
use serde::Deserialize;
use thiserror::Error;

use crate::text::{or_default, short, split_env};

/// Why the bytes are no definition.
#[derive(Debug, Error)]
pub enum ParseHookError {
    /// Not JSON, or not of the right shape.
    #[error("not a hook definition")]
    Shape(#[from] serde_json::Error),
    /// A version this daemon does not know.
    #[error("hook version {version:?} is not known")]
    Version {
        /// As given.
        version: String,
    },
    /// A field that must be there.
    #[error("{field} is missing")]
    Missing {
        /// Which.
        field: &'static str,
    },
    /// Two spellings of one field.
    #[error("{one} and {other} are the same field")]
    Both {
        /// One spelling.
        one: &'static str,
        /// The other.
        other: &'static str,
    },
    /// A value that its field may not have.
    #[error("{field} {value:?} is not valid")]
    Bad {
        /// Which field.
        field: &'static str,
        /// As given, shortened.
        value: String,
    },
    /// Not a regular expression.
    #[error("{field} is no regular expression")]
    Pattern {
        /// Which field.
        field: &'static str,
        #[source]
        /// What is wrong.
        source: regex::Error,
    },
}

/// Whether all conditions must hold, or one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Join {
    All,
    Any,
}

/// For which containers.
#[derive(Debug)]
struct When {
    join: Join,
    always: Option<bool>,
    has_bind_mounts: Option<bool>,
    /// Patterns of key and value.
    annotations: Vec<(Regex, Regex)>,
    commands: Vec<Regex>,
}

/// A definition that has been checked.
#[derive(Debug)]
pub struct HookDefinition {
    pub(super) program: HookProgram,
    /// `prestart` became `createRuntime`. Source: containers/common.
    pub(super) stages: Vec<HookStage>,
    when: When,
}

/// What conditions look at.
#[derive(Debug, Clone, Default)]
pub struct Subject {
    /// First word of the command line.
    pub command: String,
    /// Of the container, with those of its pod over them.
    pub annotations: BTreeMap<String, String>,
    /// The request has mounts.
    pub has_bind_mounts: bool,
}

#[derive(Deserialize)]
struct VersionOnly {
    #[serde(default, deserialize_with = "or_default")]
    version: String,
}

#[derive(Deserialize)]
struct Current {
    hook: CurrentProgram,
    #[serde(default, deserialize_with = "or_default")]
    when: CurrentWhen,
    stages: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct CurrentProgram {
    #[serde(default, deserialize_with = "or_default")]
    path: String,
    #[serde(default, deserialize_with = "or_default")]
    args: Vec<String>,
    #[serde(default, deserialize_with = "or_default")]
    env: Vec<String>,
    timeout: Option<i64>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase", default)]
struct CurrentWhen {
    always: Option<bool>,
    #[serde(deserialize_with = "or_default")]
    annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "or_default")]
    commands: Vec<String>,
    has_bind_mounts: Option<bool>,
}

#[derive(Deserialize)]
struct Old {
    hook: Option<String>,
    #[serde(default, deserialize_with = "or_default")]
    arguments: Vec<String>,
    stages: Option<Vec<String>>,
    stage: Option<Vec<String>>,
    cmds: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    annotations: Option<Vec<String>>,
    annotation: Option<Vec<String>>,
    hasbindmounts: Option<bool>,
}

/// Reads and checks a definition. The program is not looked for.
pub fn parse(bytes: &[u8]) -> Result<HookDefinition, ParseHookError> {
    let VersionOnly { version } = serde_json::from_slice(bytes)?;
    match version.as_str() {
        "1.0.0" => current(serde_json::from_slice(bytes)?),
        "" | "0.1.0" => old(serde_json::from_slice(bytes)?),
        _ => Err(ParseHookError::Version { version: short(&version) }),
    }
}

fn current(file: Current) -> Result<HookDefinition, ParseHookError> {
    let pair = |(key, value): (&String, &String)| {
        Ok((pattern("key of when.annotations", key)?, pattern("value of when.annotations", value)?))
    };
    let annotations: Result<Vec<_>, ParseHookError> = file.when.annotations.iter().map(pair).collect();
    let when = When {
        join: Join::All,
        always: file.when.always,
        has_bind_mounts: file.when.has_bind_mounts,
        annotations: annotations?,
        commands: file.when.commands.iter().map(|text| pattern("when.commands", text)).collect::<Result<_, _>>()?,
    };
    let program = HookProgram {
        path: file.hook.path,
        args: file.hook.args,
        env: file.hook.env,
        timeout_seconds: file.hook.timeout,
    };
    definition(program, file.stages, when)
}

/// Any condition that matches is enough; annotations are values under whatever key.
fn old(file: Old) -> Result<HookDefinition, ParseHookError> {
    let path = file.hook.ok_or(ParseHookError::Missing { field: "hook" })?;
    let stages = either(file.stages, file.stage, "stages", "stage")?;
    let commands = either(file.cmds, file.cmd, "cmds", "cmd")?.unwrap_or_default();
    let values = either(file.annotations, file.annotation, "annotations", "annotation")?;
    let annotations = match values {
        None => vec![],
        Some(values) => vec![(pattern("annotations", ".*")?, pattern("annotations", &values.join("|"))?)],
    };
    let when = When {
        join: Join::Any,
        always: None,
        has_bind_mounts: file.hasbindmounts,
        annotations,
        commands: commands.iter().map(|text| pattern("cmds", text)).collect::<Result<_, _>>()?,
    };
    let args =
        if file.arguments.is_empty() { vec![] } else { std::iter::once(path.clone()).chain(file.arguments).collect() };
    definition(HookProgram { path, args, ..HookProgram::default() }, stages, when)
}

fn either<T>(
    one: Option<T>,
    other: Option<T>,
    one_name: &'static str,
    other_name: &'static str,
) -> Result<Option<T>, ParseHookError> {
    match (one, other) {
        (Some(_), Some(_)) => Err(ParseHookError::Both { one: one_name, other: other_name }),
        (one, other) => Ok(one.or(other)),
    }
}

fn pattern(field: &'static str, text: &str) -> Result<Regex, ParseHookError> {
    Regex::new(text).map_err(|source| ParseHookError::Pattern { field, source })
}

fn definition(program: HookProgram, stages: Option<Vec<String>>, when: When) -> Result<HookDefinition, ParseHookError> {
    let bad = |field, value: &str| Err(ParseHookError::Bad { field, value: short(value) });
    let path = &program.path;
    if path.is_empty() {
        return Err(ParseHookError::Missing { field: "path of the hook" });
    }
    if !path.starts_with('/') || path.contains('\0') || path.split('/').any(|segment| segment == "..") {
        return bad("path of the hook", path);
    }
    if let Some(entry) = program.env.iter().find(|entry| split_env(entry).is_none()) {
        return bad("environment variable", entry);
    }
    if program.args.iter().any(|argument| argument.contains('\0')) {
        return bad("argument", "with a NUL byte");
    }
    if let Some(seconds) = program.timeout_seconds.filter(|seconds| *seconds <= 0) {
        return bad("timeout", &seconds.to_string());
    }
    let mut known = vec![];
    for name in stages.ok_or(ParseHookError::Missing { field: "stages" })? {
        match HookStage::parse(&name) {
            Some(HookStage::Prestart) => known.push(HookStage::CreateRuntime),
            Some(stage) => known.push(stage),
            None => return bad("stage", &name),
        }
    }
    Ok(HookDefinition { program, stages: known, when })
}

impl HookDefinition {
    pub(super) fn has_program(&self) -> bool {
        Path::new(&self.program.path).exists()
    }

    /// Whether the conditions hold. Without any condition none does.
    ///
    /// `hasBindMounts: false` and `always: false` never hold; commands are looked at last, and one of them is enough.
    /// Source: containers/common.
    pub(super) fn matches(&self, subject: &Subject) -> bool {
        let when = &self.when;
        let annotations = when.annotations.iter().map(|(key, value)| {
            Some(subject.annotations.iter().any(|(own, text)| key.is_match(own) && value.is_match(text)))
        });
        let conditions = [when.always, when.has_bind_mounts.map(|wanted| wanted && subject.has_bind_mounts)];
        let mut is_any_met = false;
        for is_met in conditions.into_iter().chain(annotations).flatten() {
            match (when.join, is_met) {
                (Join::Any, true) => return true,
                (Join::All, false) => return false,
                (Join::All, true) => is_any_met = true,
                (Join::Any, false) => {}
            }
        }
        if when.commands.is_empty() {
            return is_any_met;
        }
        when.commands.iter().any(|pattern| pattern.is_match(&subject.command))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject() -> Subject {
        Subject {
            command: "/usr/bin/nginx".to_owned(),
            annotations: [("io.example/trace", "of:/tmp/x"), ("other", "value")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into(),
            has_bind_mounts: true,
        }
    }

    #[test]
    fn conditions_of_1_0_0_must_all_hold() {
        for (when, expected) in [
            ("{}", false),
            ("null", false),
            (r#"{"always": true}"#, true),
            (r#"{"always": false}"#, false),
            (r#"{"always": false, "commands": ["nginx"]}"#, false),
            (r#"{"hasBindMounts": true}"#, true),
            (r#"{"hasBindMounts": false}"#, false),
            (r#"{"annotations": {"^io\\.example/trace$": "^of:"}}"#, true),
            (r#"{"annotations": {"trace": "^if:"}}"#, false),
            (r#"{"annotations": {"trace": "of:", "nobody": ".*"}}"#, false),
            (r#"{"annotations": {"trace": "value"}}"#, false),
            (r#"{"commands": ["^/usr/bin/nginx$"]}"#, true),
            (r#"{"commands": ["apache", "nginx"]}"#, true),
            (r#"{"commands": ["apache"]}"#, false),
            (r#"{"always": true, "commands": ["apache"]}"#, false),
            (r#"{"always": true, "hasBindMounts": true, "annotations": {".*": ".*"}, "commands": [".*"]}"#, true),
        ] {
            let text = format!(r#"{{"version": "1.0.0", "hook": {{"path": "/h"}}, "when": {when}, "stages": []}}"#);
            let hook = parse(text.as_bytes()).expect(&text);
            assert_eq!(hook.matches(&subject()), expected, "{when}");
        }
        let text = r#"{"version": "1.0.0", "hook": {"path": "/h"}, "when": {"hasBindMounts": true}, "stages": []}"#;
        assert!(!parse(text.as_bytes()).expect("valid").matches(&Subject::default()));
    }

    #[test]
    fn one_condition_of_0_1_0_is_enough() {
        for (conditions, expected) in [
            ("", false),
            (r#", "cmds": ["apache"], "annotations": ["^of:"]"#, true),
            (r#", "cmd": ["nginx$"]"#, true),
            (r#", "annotation": ["none", "lue$"]"#, true),
            (r#", "annotation": ["none"]"#, false),
            (r#", "hasbindmounts": true, "cmds": ["apache"]"#, true),
            (r#", "hasbindmounts": false"#, false),
        ] {
            for version in ["", r#""version": "0.1.0", "#] {
                let text = format!(r#"{{{version}"hook": "/h", "stage": ["prestart"]{conditions}}}"#);
                assert_eq!(parse(text.as_bytes()).expect(&text).matches(&subject()), expected, "{text}");
            }
        }
    }

    #[test]
    fn programs_and_stages_are_read() {
        let text = r#"{"version": "1.0.0", "hook": {"path": "/h", "args": ["h", "x"], "env": ["A=b"], "timeout": 7},
            "when": {"always": true}, "stages": ["prestart", "createContainer", "poststop"], "more": 1}"#;
        let hook = parse(text.as_bytes()).expect("valid");
        let expected = HookProgram {
            path: "/h".to_owned(),
            args: vec!["h".to_owned(), "x".to_owned()],
            env: vec!["A=b".to_owned()],
            timeout_seconds: Some(7),
        };
        assert_eq!(hook.program, expected);
        assert_eq!(hook.stages, [HookStage::CreateRuntime, HookStage::CreateContainer, HookStage::Poststop]);
        let old = parse(br#"{"hook": "/h", "arguments": ["x"], "stages": ["poststart"]}"#).expect("valid");
        assert_eq!((old.program.args, old.stages), (vec!["/h".to_owned(), "x".to_owned()], vec![HookStage::Poststart]));
    }

    #[test]
    fn bad_definitions_are_refused() {
        for text in [
            "",
            "null",
            "[]",
            r#"{"version": "2.0.0", "hook": {"path": "/h"}, "stages": []}"#,
            r#"{"version": "1.0.0", "hook": {"path": ""}, "stages": []}"#,
            r#"{"version": "1.0.0", "hook": {"path": "h"}, "stages": []}"#,
            r#"{"version": "1.0.0", "hook": {"path": "/a/../h"}, "stages": []}"#,
            r#"{"version": "1.0.0", "hook": {"path": "/h"}}"#,
            r#"{"version": "1.0.0", "hook": {"path": "/h"}, "stages": ["never"]}"#,
            r#"{"version": "1.0.0", "hook": {"path": "/h", "timeout": 0}, "stages": []}"#,
            r#"{"version": "1.0.0", "hook": {"path": "/h", "env": ["x"]}, "stages": []}"#,
            r#"{"version": "1.0.0", "hook": {"path": "/h"}, "stages": [], "when": {"commands": ["("]}}"#,
            r#"{"version": "1.0.0", "hook": {"path": "/h"}, "stages": [], "when": {"annotations": {"(": "a"}}}"#,
            r#"{"version": "1.0.0", "hook": {"path": "/h"}, "stages": [], "when": {"annotations": {"a": "["}}}"#,
            r#"{"stages": ["prestart"]}"#,
            r#"{"hook": "/h"}"#,
            r#"{"hook": "/h", "stage": [], "stages": []}"#,
            r#"{"hook": "/h", "stage": [], "cmd": [], "cmds": []}"#,
        ] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}
