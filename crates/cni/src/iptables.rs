//! iptables by its save and restore programs: whole changes in one execution.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::failure::{Code, Context as _, Failure};

/// Where the programs are when `PATH` does not say.
const FALLBACK_PATH: &str = "/usr/sbin:/sbin:/usr/bin:/bin";
/// Seconds to wait for the lock that other users of iptables hold.
const LOCK_SECONDS: &str = "30";

/// iptables of one family.
#[derive(Debug)]
pub(crate) struct Iptables {
    pub(crate) is_v4: bool,
    save: PathBuf,
    restore: PathBuf,
}

/// A table as iptables-save shows it.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Table {
    chains: Vec<String>,
    /// `-A CHAIN ...`
    rules: Vec<String>,
}

impl Iptables {
    /// `None` when it is not installed.
    pub(crate) fn find(is_v4: bool) -> Option<Self> {
        let (save, restore) =
            if is_v4 { ("iptables-save", "iptables-restore") } else { ("ip6tables-save", "ip6tables-restore") };
        Some(Self { is_v4, save: find_program(save)?, restore: find_program(restore)? })
    }

    /// As [`Iptables::find`], for configurations that need it.
    pub(crate) fn required(is_v4: bool) -> Result<Self, Failure> {
        let name = if is_v4 { "iptables" } else { "ip6tables" };
        Self::find(is_v4).ok_or_else(|| Failure::new(Code::Internal, format!("failed to locate {name}")))
    }

    /// Reads a table.
    pub(crate) fn table(&self, name: &str) -> Result<Table, Failure> {
        let what = || format!("run {} -t {name}", self.save.display());
        let output = Command::new(&self.save).args(["-t", name]).stdin(Stdio::null()).output().context(what)?;
        if !output.status.success() {
            return Err(refused(&what(), &output.stderr));
        }
        Ok(Table::parse(&String::from_utf8_lossy(&output.stdout)))
    }

    /// Makes changes to a table, all or none: lines as iptables-restore reads them, chains that are made or emptied as
    /// `:NAME - [0:0]` before their rules.
    pub(crate) fn apply(&self, name: &str, lines: &[String]) -> Result<(), Failure> {
        if lines.is_empty() {
            return Ok(());
        }
        let what = || format!("run {} for table {name}", self.restore.display());
        let text = format!("*{name}\n{}\nCOMMIT\n", lines.join("\n"));
        let mut command = Command::new(&self.restore);
        command.args(["--noflush", "-w", LOCK_SECONDS]);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context(what)?;
        if let Some(mut stdin) = child.stdin.take() {
            let _ = stdin.write_all(text.as_bytes());
        }
        let output = child.wait_with_output().context(what)?;
        if output.status.success() { Ok(()) } else { Err(refused(&what(), &output.stderr)) }
    }
}

fn refused(what: &str, stderr: &[u8]) -> Failure {
    let said = String::from_utf8_lossy(stderr);
    Failure::new(Code::Internal, format!("{what}: {}", said.trim().replace('\n', "; ")))
}

fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let fallback = std::env::split_paths(FALLBACK_PATH);
    std::env::split_paths(&path).chain(fallback).map(|dir| dir.join(name)).find(|path| path.is_file())
}

/// Text as an argument in a line of iptables-restore.
pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// Declares a chain, or empties it.
pub(crate) fn empty_chain(name: &str) -> String {
    format!(":{name} - [0:0]")
}

impl Table {
    pub(crate) fn parse(text: &str) -> Self {
        let mut table = Self::default();
        for line in text.lines().map(str::trim) {
            if let Some(chain) = line.strip_prefix(':') {
                table.chains.extend(chain.split(' ').next().map(str::to_owned));
            } else if line.starts_with("-A ") {
                table.rules.push(line.to_owned());
            }
        }
        table
    }

    pub(crate) fn has_chain(&self, name: &str) -> bool {
        self.chains.iter().any(|chain| chain == name)
    }

    /// Rules of a chain, without `-A CHAIN `.
    pub(crate) fn rules<'a>(&'a self, chain: &'a str) -> impl Iterator<Item = &'a str> {
        self.rules.iter().filter_map(move |rule| rule.strip_prefix("-A ")?.strip_prefix(chain)?.strip_prefix(' '))
    }

    /// Whether a chain has a rule that leads to another.
    pub(crate) fn leads_to(&self, chain: &str, target: &str) -> bool {
        self.rules(chain).any(|rule| target_of(rule) == Some(target))
    }

    /// Lines that remove a chain with every rule of the table that leads to it; none when there is no such chain.
    pub(crate) fn without_chain(&self, name: &str) -> Vec<String> {
        if !self.has_chain(name) {
            return Vec::new();
        }
        let leading = self.rules.iter().filter(|rule| target_of(rule) == Some(name));
        let mut lines: Vec<_> = leading.map(|rule| rule.replacen("-A ", "-D ", 1)).collect();
        lines.extend([format!("-F {name}"), format!("-X {name}")]);
        lines
    }
}

/// What a rule jumps or goes to. Targets come after all matches; their options do not begin with `-j`.
fn target_of(rule: &str) -> Option<&str> {
    let at = rule.rfind(" -j ").or_else(|| rule.rfind(" -g ")).map(|at| at + 4);
    let at = at.or_else(|| rule.starts_with("-j ").then_some(3))?;
    rule[at..].split(' ').next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SAVED: &str = r#"# Generated by iptables-save
*nat
:PREROUTING ACCEPT [0:0]
:POSTROUTING ACCEPT [0:0]
:CNI-a - [0:0]
-A POSTROUTING -s 10.1.0.5/32 -m comment --comment "name: \"x\" id: \"y -j CNI-b\"" -j CNI-a
-A POSTROUTING -s 10.1.0.6/32 -j CNI-ab
-A CNI-a -d 10.1.0.0/16 -j ACCEPT
COMMIT
"#;

    #[test]
    fn chains_go_with_what_leads_to_them() {
        let table = Table::parse(SAVED);
        let lines = table.without_chain("CNI-a");
        assert_eq!(lines.len(), 3, "{lines:?}");
        assert!(lines[0].starts_with("-D POSTROUTING -s 10.1.0.5/32") && lines[0].ends_with("-j CNI-a"));
        assert!(table.without_chain("CNI-ab").is_empty());
        assert!(table.leads_to("POSTROUTING", "CNI-ab") && !table.leads_to("POSTROUTING", "CNI-b"));
        assert_eq!(table.rules("CNI-a").collect::<Vec<_>>(), ["-d 10.1.0.0/16 -j ACCEPT"]);
    }

    #[test]
    fn text_is_quoted() {
        assert_eq!(quoted(r#"name: "a\b""#), r#""name: \"a\\b\"""#);
    }
}
