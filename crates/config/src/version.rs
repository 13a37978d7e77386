//! What `crio version` and `crio --version` print.
//!
//! Source: the field names, their order and the alignment are those of CRI-O, whose output scripts cut apart.

use serde::Serialize;

/// Facts about the build. Empty texts and lists are not printed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct VersionInfo {
    /// Version of the daemon, `1.37.0`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    /// Commit it was built from.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub git_commit: String,
    /// Date of that commit.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub git_commit_date: String,
    /// `clean` or `dirty`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub git_tree_state: String,
    /// Date of the build.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub build_date: String,
    /// Version of the language; the name of the field is a matter of compatibility.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub go_version: String,
    /// The compiler.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub compiler: String,
    /// `os/arch`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub platform: String,
    /// `static` or `dynamic`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub linkmode: String,
    /// Features built in.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub build_tags: Vec<String>,
    /// Flags of the linker.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub ld_flags: String,
    /// Whether the host supports seccomp.
    pub seccomp_enabled: bool,
    /// Whether the host supports AppArmor.
    pub app_armor_enabled: bool,
    /// Libraries with versions, for the verbose output.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dependencies: Vec<String>,
}

/// One field as it is printed.
enum Field<'a> {
    Line(&'static str, &'a str),
    List(&'static str, &'a [String]),
}

impl VersionInfo {
    /// The output of `crio version`: `Key:  value`, values aligned within each run of single-line fields.
    pub fn text(&self) -> String {
        let truth = |flag| if flag { "true" } else { "false" };
        let fields = [
            Field::Line("Version", &self.version),
            Field::Line("GitCommit", &self.git_commit),
            Field::Line("GitCommitDate", &self.git_commit_date),
            Field::Line("GitTreeState", &self.git_tree_state),
            Field::Line("BuildDate", &self.build_date),
            Field::Line("GoVersion", &self.go_version),
            Field::Line("Compiler", &self.compiler),
            Field::Line("Platform", &self.platform),
            Field::Line("Linkmode", &self.linkmode),
            Field::List("BuildTags", &self.build_tags),
            Field::Line("LDFlags", &self.ld_flags),
            Field::Line("SeccompEnabled", truth(self.seccomp_enabled)),
            Field::Line("AppArmorEnabled", truth(self.app_armor_enabled)),
            Field::List("Dependencies", &self.dependencies),
        ];
        let mut out = String::new();
        let mut run: Vec<(&str, &str)> = Vec::new();
        for field in &fields {
            match field {
                Field::Line(_, value) if value.trim().is_empty() => {}
                Field::Line(name, value) => run.push((name, value)),
                Field::List(_, []) => {}
                Field::List(name, list) => {
                    write_run(&mut out, &mut run);
                    out.push_str(name);
                    out.push(':');
                    for element in *list {
                        out.push_str("\n  ");
                        out.push_str(element);
                    }
                    out.push('\n');
                }
            }
        }
        write_run(&mut out, &mut run);
        out
    }

    /// The output of `crio --version` behind `crio version `: the version, then the other fields indented by 3 blanks.
    pub fn short_text(&self) -> String {
        let text = self.text();
        text.strip_prefix("Version:").unwrap_or(&text).trim().replace('\n', "\n   ")
    }

    /// The output of `crio version --json`.
    ///
    /// Errors: none that this type can cause; serde's interface has one.
    pub fn json(&self) -> Result<String, serde_json::Error> {
        serde_json::to_string_pretty(self)
    }
}

/// Writes consecutive fields with their values in one column.
fn write_run(out: &mut String, run: &mut Vec<(&str, &str)>) {
    let width = run.iter().map(|(name, _)| name.len()).max().unwrap_or(0) + 1;
    for (name, value) in run.drain(..) {
        out.push_str(name);
        out.push(':');
        // The colon is part of the column, two blanks follow the longest name.
        out.extend(std::iter::repeat_n(' ', width - name.len() + 1));
        out.push_str(value);
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info() -> VersionInfo {
        VersionInfo {
            version: "1.37.0".into(),
            git_tree_state: "clean".into(),
            platform: "linux/amd64".into(),
            build_tags: vec!["a".into(), "b".into()],
            seccomp_enabled: true,
            ..VersionInfo::default()
        }
    }

    #[test]
    fn text() {
        assert_eq!(
            info().text(),
            "Version:       1.37.0\nGitTreeState:  clean\nPlatform:      linux/amd64\nBuildTags:\n  a\n  b\n\
             SeccompEnabled:   true\nAppArmorEnabled:  false\n"
        );
        assert_eq!(
            info().short_text(),
            "1.37.0\n   GitTreeState:  clean\n   Platform:      linux/amd64\n   BuildTags:\n     a\n     b\n   \
             SeccompEnabled:   true\n   AppArmorEnabled:  false"
        );
    }

    #[test]
    fn json() {
        assert_eq!(
            info().json().expect("JSON"),
            "{\n  \"version\": \"1.37.0\",\n  \"gitTreeState\": \"clean\",\n  \"platform\": \"linux/amd64\",\n  \
             \"buildTags\": [\n    \"a\",\n    \"b\"\n  ],\n  \"seccompEnabled\": true,\n  \"appArmorEnabled\": false\n}"
        );
    }
}
