//! From the bytes of one file to raw values of known keys.
//!
//! Shapes are judged here (a string where a number belongs is an error in whatever file it stands), values later,
//! when it is known which of several files has the last word.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::codec::{Kind, Raw};
use crate::key::Key;
use crate::keys;
use crate::problem::{Origin, Problem, SourceFile, Warning, WarningKind, file_origin};

/// A raw value and where it was given.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Located {
    pub(crate) raw: Raw,
    pub(crate) origin: Origin,
}

/// Raw values by key.
pub(crate) type RawTable = BTreeMap<String, Located>;

/// A raw handler or workload.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RawEntry {
    pub(crate) origin: Origin,
    pub(crate) values: RawTable,
    /// The sub-table `resources` of a workload.
    pub(crate) resources: RawTable,
}

/// What one file says.
#[derive(Debug, Default)]
pub(crate) struct Layer {
    pub(crate) values: RawTable,
    pub(crate) handlers: BTreeMap<String, RawEntry>,
    pub(crate) workloads: BTreeMap<String, RawEntry>,
    pub(crate) problems: Vec<Problem>,
    pub(crate) warnings: Vec<Warning>,
}

/// Reads the TOML of one file. Never fails: what is wrong is in the layer's problems.
pub(crate) fn parse(file: &SourceFile) -> Layer {
    let lines = (0..).zip(&file.bytes).filter(|(_, byte)| **byte == b'\n').map(|(at, _)| at).collect();
    let mut reader =
        Reader { path: Arc::from(file.path.as_path()), bytes: &file.bytes, lines, layer: Layer::default() };
    reader.document();
    reader.layer
}

/// Finds syntax errors, or the table of the document.
pub(crate) fn parse_toml<'a>(path: &Arc<Path>, bytes: &'a [u8]) -> Result<DeTable<'a>, Vec<Problem>> {
    let problem = |at: usize, what: String| Problem {
        origin: file_origin(path, line_of(bytes, at)),
        key: String::new(),
        // The beginning is that of CRI-O's message, which its tests and people's alerts look for.
        what: format!("unable to decode configuration: {what}"),
    };
    let text = match std::str::from_utf8(bytes) {
        Ok(text) => text.strip_prefix('\u{feff}').unwrap_or(text),
        Err(e) => return Err(vec![problem(e.valid_up_to(), "bytes that are not UTF-8".into())]),
    };
    let (table, errors) = DeTable::parse_recoverable(text);
    if errors.is_empty() {
        return Ok(table.into_inner());
    }
    // One message a line, and the first few of them, say enough: a broken line can break all that follow.
    const MAX_SYNTAX_ERRORS: usize = 10;
    let mut problems: Vec<Problem> = errors
        .iter()
        .map(|e| problem(e.span().map_or(0, |span| span.start), e.message().replace('\n', ", ")))
        .collect();
    problems.dedup_by(|a, b| a.origin == b.origin);
    problems.truncate(MAX_SYNTAX_ERRORS);
    Err(problems)
}

/// The line (from 1) of a byte.
pub(crate) fn line_of(bytes: &[u8], at: usize) -> usize {
    1 + bytes.iter().take(at).filter(|b| **b == b'\n').count()
}

struct Reader<'a> {
    path: Arc<Path>,
    bytes: &'a [u8],
    /// Where lines end, in ascending order.
    lines: Vec<usize>,
    layer: Layer,
}

impl<'a> Reader<'a> {
    fn document(&mut self) {
        let table = match parse_toml(&self.path, self.bytes) {
            Ok(table) => table,
            Err(problems) => {
                self.layer.problems = problems;
                return;
            }
        };
        for (name, value) in ordered(&table, |name| name == "crio") {
            if name.get_ref().eq_ignore_ascii_case("crio") {
                self.table("crio", value);
            } else {
                self.unknown("", name.get_ref(), name.span().start, value);
            }
        }
    }

    /// One table of [`keys::TABLES`].
    fn table(&mut self, table: &str, value: &Spanned<DeValue<'a>>) {
        let Some(entries) = self.as_table(table, value) else { return };
        let known: Vec<_> = keys::all().filter(|key| key.table == table).collect();
        for (name, value) in ordered(entries, |name| known.iter().any(|key| key.name == name)) {
            let (text, at) = (name.get_ref().as_ref(), name.span().start);
            if let Some(key) = known.iter().find(|key| key.name.eq_ignore_ascii_case(text)) {
                let path = key.path();
                if let Some(raw) = self.shape(&path, key.kind, value) {
                    self.layer.values.insert(path, Located { raw, origin: self.origin(at) });
                }
                continue;
            }
            let path = format!("{table}.{}", text.to_ascii_lowercase());
            match path.as_str() {
                "crio.runtime.runtimes" => {
                    let entries = self.entries(&path, value, keys::HANDLER, false);
                    self.layer.handlers.extend(entries);
                }
                "crio.runtime.workloads" => {
                    let entries = self.entries(&path, value, keys::WORKLOAD, true);
                    self.layer.workloads.extend(entries);
                }
                path if keys::TABLES.contains(&path) => self.table(path, value),
                _ => self.unknown(table, text, at, value),
            }
        }
    }

    /// The named tables within `runtimes` or `workloads`.
    fn entries<C>(
        &mut self,
        path: &str,
        value: &Spanned<DeValue<'a>>,
        known: &'static [Key<C>],
        has_resources: bool,
    ) -> BTreeMap<String, RawEntry> {
        let mut found = BTreeMap::new();
        let Some(tables) = self.as_table(path, value) else { return found };
        for (name, value) in tables {
            let path = format!("{path}.{}", name.get_ref());
            let mut entry = RawEntry {
                origin: self.origin(name.span().start),
                values: RawTable::new(),
                resources: RawTable::new(),
            };
            let Some(table) = self.as_table(&path, value) else { continue };
            for (key, value) in table {
                if has_resources && key.get_ref().eq_ignore_ascii_case("resources") {
                    let path = format!("{path}.resources");
                    if let Some(table) = self.as_table(&path, value) {
                        entry.resources = self.named_values(&path, table, keys::WORKLOAD_RESOURCES, false);
                    }
                }
            }
            entry.values = self.named_values(&path, table, known, has_resources);
            found.insert(name.get_ref().to_string(), entry);
        }
        found
    }

    /// The keys of one handler, workload or resources table.
    fn named_values<C>(
        &mut self,
        path: &str,
        table: &DeTable<'a>,
        known: &'static [Key<C>],
        has_resources: bool,
    ) -> RawTable {
        let mut values = RawTable::new();
        for (name, value) in ordered(table, |name| known.iter().any(|key| key.name == name)) {
            let (text, at) = (name.get_ref().as_ref(), name.span().start);
            match known.iter().find(|key| key.name.eq_ignore_ascii_case(text)) {
                Some(key) => {
                    if let Some(raw) = self.shape(&format!("{path}.{}", key.name), key.kind, value) {
                        values.insert(key.name.to_owned(), Located { raw, origin: self.origin(at) });
                    }
                }
                None if has_resources && text.eq_ignore_ascii_case("resources") => {}
                None => self.unknown(path, text, at, value),
            }
        }
        values
    }

    fn as_table<'v>(&mut self, path: &str, value: &'v Spanned<DeValue<'a>>) -> Option<&'v DeTable<'a>> {
        let table = value.get_ref().as_table();
        if table.is_none() {
            self.mistyped(path, value, "a table");
        }
        table
    }

    /// The raw value if it has the shape the key wants; otherwise a problem is noted.
    fn shape(&mut self, path: &str, kind: Kind, value: &Spanned<DeValue<'a>>) -> Option<Raw> {
        let raw = match (kind, value.get_ref()) {
            (Kind::Text | Kind::Duration, DeValue::String(text)) => Raw::Text(text.to_string()),
            (Kind::Flag, DeValue::Boolean(flag)) => Raw::Flag(*flag),
            (Kind::Integer | Kind::Duration, DeValue::Integer(number)) => {
                match i64::from_str_radix(number.as_str(), number.radix()) {
                    Ok(number) => Raw::Integer(number),
                    Err(_) => {
                        self.problem(path, value.span().start, format!("{number} exceeds 64 bits"));
                        return None;
                    }
                }
            }
            (Kind::List, DeValue::Array(array)) => {
                let mut list = Vec::new();
                for element in array.iter() {
                    match element.get_ref().as_str() {
                        Some(text) => list.push(text.to_owned()),
                        None => self.mistyped(path, element, "a string in the array"),
                    }
                }
                Raw::List(list)
            }
            (Kind::Map, DeValue::Table(table)) => {
                let mut map = BTreeMap::new();
                for (name, element) in table {
                    match element.get_ref().as_str() {
                        Some(text) => {
                            map.insert(name.get_ref().to_string(), text.to_owned());
                        }
                        None => self.mistyped(path, element, "a string in the table"),
                    }
                }
                Raw::Map(map)
            }
            _ => {
                self.mistyped(path, value, kind.describe());
                return None;
            }
        };
        Some(raw)
    }

    fn mistyped(&mut self, path: &str, value: &Spanned<DeValue<'a>>, expected: &str) {
        let what = format!("expected {expected}, found {}", value.get_ref().type_str());
        self.problem(path, value.span().start, what);
    }

    fn problem(&mut self, path: &str, at: usize, what: String) {
        let origin = self.origin(at);
        self.layer.problems.push(Problem { origin, key: path.to_owned(), what });
    }

    fn unknown(&mut self, table: &str, name: &str, at: usize, value: &Spanned<DeValue<'a>>) {
        let key = if table.is_empty() { name.to_owned() } else { format!("{table}.{name}") };
        let is_obsolete = table.starts_with("crio") && keys::OBSOLETE.iter().any(|old| old.eq_ignore_ascii_case(name));
        let kind = match value.get_ref() {
            _ if is_obsolete => WarningKind::Obsolete,
            DeValue::Table(_) => WarningKind::UnknownTable,
            _ => WarningKind::UnknownKey,
        };
        let origin = self.origin(at);
        self.layer.warnings.push(Warning { origin, key, kind });
    }

    fn origin(&self, at: usize) -> Origin {
        file_origin(&self.path, 1 + self.lines.partition_point(|end| *end < at))
    }
}

/// The entries of a table, those with the exact spelling of a key last: they win over other spellings.
fn ordered<'t, 'a>(
    table: &'t DeTable<'a>,
    is_exact: impl Fn(&str) -> bool,
) -> Vec<(&'t Spanned<toml::de::DeString<'a>>, &'t Spanned<DeValue<'a>>)> {
    let mut entries: Vec<_> = table.iter().collect();
    entries.sort_by_key(|(name, _)| is_exact(name.get_ref()));
    entries
}
