//! Rules about the text of one file. Pure: a rule gets the text and says what is wrong with it.

/// No source file is longer: beyond this a reader no longer holds it, and it holds two concepts.
pub(crate) const LINES_MAX: usize = 700;

/// What a root file is in its package.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Root {
    /// Where the crate begins: its head says what it is for and at least one thing it promises or must not know.
    Main,
    /// A program beside a library that says so already: one line that sends the reader there is enough.
    BesideLibrary,
}

impl Root {
    fn head_lines_min(self) -> usize {
        match self {
            Root::Main => 2,
            Root::BesideLibrary => 1,
        }
    }
}

/// Whether a crate may contain `unsafe`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unsafe {
    /// Every crate but one.
    Forbidden,
    /// The crate that wraps the kernel.
    Home,
}

/// What is wrong with the root file of a crate.
pub(crate) fn crate_root(text: &str, root: Root, rule: Unsafe) -> Vec<String> {
    let mut problems = Vec::new();
    let head = text.lines().skip_while(|line| line.trim().is_empty()).take_while(|line| line.starts_with("//!"));
    let spoken = head.filter(|line| !line["//!".len()..].trim().is_empty()).count();
    if spoken == 0 {
        problems.push("does not begin with a `//!` head that says what the crate is for".to_owned());
    } else if spoken < root.head_lines_min() {
        problems.push(format!("its `//!` head has fewer than {} lines", root.head_lines_min()));
    }
    let forbids = text.lines().any(|line| line.trim() == "#![forbid(unsafe_code)]");
    if rule == Unsafe::Forbidden && !forbids {
        problems.push("lacks `#![forbid(unsafe_code)]`".to_owned());
    }
    problems
}

/// What is wrong with a manifest of the workspace's own.
pub(crate) fn manifest(text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let mut section = "";
    let mut has_lints = false;
    for line in text.lines().map(str::trim) {
        if line.starts_with('[') {
            section = line;
        }
        has_lints |= section == "[lints]" && line.replace(' ', "") == "workspace=true";
    }
    if !has_lints {
        problems.push("does not take the workspace's lints".to_owned());
    }
    problems
}

/// Whether a source file is too long.
pub(crate) fn length(text: &str) -> Option<String> {
    let lines = text.lines().count();
    (lines > LINES_MAX).then(|| format!("has {lines} lines, more than {LINES_MAX}: split it by concept"))
}

/// The lines (from 1) that name a place which exists on one developer's machine only.
///
/// `places` are absolute paths without a closing slash. A place counts where a path begins, not in the middle of one.
pub(crate) fn machine_paths(text: &str, places: &[String]) -> Vec<(usize, String)> {
    let mut found = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for place in places {
            let is_named = line.match_indices(place.as_str()).any(|(at, _)| {
                let before = line[..at].chars().next_back();
                let after = line[at + place.len()..].chars().next();
                before.is_none_or(|c| !is_path_char(c)) && after.is_none_or(|c| c == '/' || !is_path_char(c))
            });
            if is_named {
                found.push((number + 1, place.clone()));
            }
        }
    }
    found
}

fn is_path_char(c: char) -> bool {
    // A closing brace or parenthesis is the end of an interpolated prefix.
    c.is_alphanumeric() || matches!(c, '_' | '-' | '.' | '}' | ')' | '/' | '~')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crate_roots() {
        let cases: &[(&str, Unsafe, &[&str])] = &[
            ("//! What it is for.\n//! What it promises.\n#![forbid(unsafe_code)]\n", Unsafe::Forbidden, &[]),
            ("\n//! One.\n//!\n//! Two.\n\n#![forbid(unsafe_code)]\n", Unsafe::Forbidden, &[]),
            ("//! One.\n//! Two.\n", Unsafe::Home, &[]),
            ("//! One.\n//! Two.\n", Unsafe::Forbidden, &["lacks `#![forbid(unsafe_code)]`"]),
            (
                "//! One.\n//! Two.\n// #![forbid(unsafe_code)]\n",
                Unsafe::Forbidden,
                &["lacks `#![forbid(unsafe_code)]`"],
            ),
            ("//! xtask\n", Unsafe::Home, &["its `//!` head has fewer than 2 lines"]),
            ("//! xtask\n//!\n", Unsafe::Home, &["its `//!` head has fewer than 2 lines"]),
            ("use x;\n//! late\n", Unsafe::Home, &["does not begin with a `//!` head that says what the crate is for"]),
            ("", Unsafe::Home, &["does not begin with a `//!` head that says what the crate is for"]),
        ];
        for (text, rule, expected) in cases {
            assert_eq!(crate_root(text, Root::Main, *rule), *expected, "{text:?}");
        }
        assert!(crate_root("//! See the library.\n", Root::BesideLibrary, Unsafe::Home).is_empty());
        assert!(!crate_root("fn main() {}\n", Root::BesideLibrary, Unsafe::Home).is_empty());
    }

    #[test]
    fn manifests() {
        assert!(manifest("[package]\nname = \"x\"\n[lints]\nworkspace = true\n").is_empty());
        assert_eq!(manifest("[package]\nworkspace = true\n"), ["does not take the workspace's lints"]);
    }

    #[test]
    fn lengths() {
        assert_eq!(length(&"x\n".repeat(LINES_MAX)), None);
        assert!(length(&"x\n".repeat(LINES_MAX + 1)).is_some());
    }

    #[test]
    fn paths_of_a_machine() {
        let places = ["/build/here".to_owned()];
        let cases: &[(&str, &[usize])] = &[
            ("see /build/here/x", &[1]),
            ("\n\"/build/here\"", &[2]),
            ("/build/here", &[1]),
            ("/build/hereafter", &[]),
            ("{root}/build/here/x", &[]),
            ("a/build/here", &[]),
            ("/build/her", &[]),
        ];
        for (text, expected) in cases {
            let lines: Vec<usize> = machine_paths(text, &places).into_iter().map(|(line, _)| line).collect();
            assert_eq!(lines, *expected, "{text:?}");
        }
    }
}
