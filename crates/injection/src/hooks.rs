//! OCI hooks of the node: which programs the runtime runs for a container.
//!
//! Directories hold files `*.json`; one of a later directory replaces that of the same name in an earlier one. Those that
//! match come in the order of their names, without regard to case. Source: containers/common, "oci-hooks"; CRI-O's
//! `hooks_dir`.

mod definition;

use std::collections::BTreeMap;
use std::path::PathBuf;

use domain::spec::Edits;

use crate::followed::{File, Followed};
pub use definition::{HookDefinition, ParseHookError, Subject, parse};

/// All hooks that the directories define.
pub struct Hooks {
    content: Followed<Definitions>,
}

/// In the order in which they are run.
type Definitions = Vec<HookDefinition>;

impl Hooks {
    /// Follows these directories. They need not exist.
    #[must_use]
    pub fn new(directories: Vec<PathBuf>) -> Self {
        Self { content: Followed::new(directories, &["json"], definitions) }
    }

    /// Reads the directories, so that what is wrong in them is told.
    pub fn look(&self) {
        self.content.get();
    }

    /// The hooks of a container, from the files as they are now.
    pub fn edits(&self, subject: &Subject) -> Edits {
        edits(&self.content.get(), subject)
    }
}

fn edits(definitions: &[HookDefinition], subject: &Subject) -> Edits {
    let matching = definitions.iter().filter(|definition| definition.matches(subject));
    let hooks =
        matching.flat_map(|definition| definition.stages.iter().map(|stage| (*stage, definition.program.clone())));
    Edits { hooks: hooks.collect(), ..Edits::default() }
}

fn definitions(found: Vec<File>) -> (Definitions, Vec<String>) {
    let mut problems = vec![];
    let mut by_name: BTreeMap<(String, String), HookDefinition> = BTreeMap::new();
    for file in found {
        let parsed = file.bytes.map_err(|error| error.to_string());
        let parsed = parsed.and_then(|bytes| parse(&bytes).map_err(|error| crate::text::chain(&error)));
        let parsed = parsed.and_then(|hook| match hook.has_program() {
            true => Ok(hook),
            false => Err(format!("its program {} does not exist", hook.program.path)),
        });
        let name = file.path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        match parsed {
            Ok(hook) => drop(by_name.insert((name.to_lowercase(), name), hook)),
            Err(error) => problems.push(format!("hook definition {}: {error}", file.path.display())),
        }
    }
    (by_name.into_values().collect(), problems)
}

#[cfg(test)]
mod tests {
    use super::*;
    use domain::spec::HookStage;

    fn file(directory: usize, name: &str, program: &str, mark: &str) -> File {
        let text = format!(
            r#"{{"version": "1.0.0", "hook": {{"path": "{program}", "args": ["{mark}"]}}, "when": {{"commands": ["app"]}},
                 "stages": ["createRuntime", "poststop"]}}"#
        );
        File { directory, path: format!("/{directory}/{name}").into(), bytes: Ok(text.into_bytes()) }
    }

    #[test]
    fn names_order_and_override_and_bad_files_are_left_out() {
        let (definitions, problems) = definitions(vec![
            file(0, "20-b.json", "/bin/sh", "first"),
            file(0, "B.json", "/bin/sh", "capital"),
            file(0, "a.json", "/bin/sh", "small"),
            file(0, "broken-later.json", "/bin/sh", "kept"),
            file(0, "gone.json", "/no/such/program", "gone"),
            file(1, "20-b.json", "/bin/sh", "second"),
            File { directory: 1, path: "/1/broken-later.json".into(), bytes: Ok(b"{".to_vec()) },
        ]);
        let marks = |subject: &Subject| -> Vec<(HookStage, String)> {
            let edits = edits(&definitions, subject);
            edits.hooks.into_iter().map(|(stage, program)| (stage, program.args.concat())).collect()
        };
        let subject = Subject { command: "/bin/app".to_owned(), ..Subject::default() };
        let expected: Vec<_> = ["second", "small", "capital", "kept"]
            .iter()
            .flat_map(|mark| [HookStage::CreateRuntime, HookStage::Poststop].map(|stage| (stage, (*mark).to_owned())))
            .collect();
        assert_eq!(marks(&subject), expected);
        assert!(marks(&Subject::default()).is_empty());
        assert_eq!(problems.len(), 2, "{problems:#?}");
        assert!(problems[0].contains("/no/such/program") && problems[1].contains("broken-later.json"), "{problems:#?}");
    }
}
