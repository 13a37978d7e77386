//! Tables and the short forms of values in them.

use comfy_table::{Attribute, Cell, Color, Table, presets};

/// Characters of an id that people read.
const SHORT_ID: usize = 13;

/// Blanks between columns.
const COLUMN_GAP: u16 = 2;

/// A table of text, as wide as it needs to be: a terminal wraps it, `grep` and `awk` find whole lines.
#[derive(Debug)]
pub(crate) struct TextTable(Table);

impl TextTable {
    /// An empty table with these headings.
    pub(crate) fn new(header: &[&str]) -> Self {
        let mut table = Table::new();
        table.load_preset(presets::NOTHING);
        if !header.is_empty() {
            table.set_header(header.iter().map(|heading| Cell::new(heading).add_attribute(Attribute::Bold)));
        }
        if std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty()) {
            table.force_no_tty();
        }
        Self(table)
    }

    /// A table of names and values, without headings.
    pub(crate) fn of_pairs(pairs: &[(&str, String)]) -> Self {
        let mut table = Self::new(&[]);
        for (name, value) in pairs.iter().filter(|(_, value)| !value.is_empty()) {
            table.add(vec![Cell::new(name).add_attribute(Attribute::Bold), text(value)]);
        }
        table
    }

    /// Appends a row.
    pub(crate) fn add(&mut self, row: Vec<Cell>) {
        self.0.add_row(row);
    }

    /// The lines, without blanks around them.
    pub(crate) fn render(mut self) -> String {
        // Blanks between columns only: those before the first would be inside a heading's style.
        for column in self.0.column_iter_mut() {
            column.set_padding((0, COLUMN_GAP));
        }
        let mut rendered = String::new();
        for line in self.0.lines() {
            rendered.push_str(line.trim_end());
            rendered.push('\n');
        }
        rendered
    }
}

/// A cell of plain text; what engines report may hold control characters, which a terminal must not obey.
pub(crate) fn text(value: &str) -> Cell {
    Cell::new(value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect::<String>())
}

/// A cell for a state, coloured on a terminal.
pub(crate) fn state(name: &str) -> Cell {
    let color = match name {
        "Running" | "Ready" => Color::Green,
        "Created" => Color::Cyan,
        "Exited" | "NotReady" => Color::Yellow,
        _ => Color::Red,
    };
    Cell::new(name).fg(color)
}

/// The part of an id that people read, without the digest algorithm.
pub(crate) fn short_id(id: &str) -> &str {
    let id = id.strip_prefix("sha256:").unwrap_or(id);
    id.char_indices().nth(SHORT_ID).map_or(id, |(end, _)| &id[..end])
}

/// A time in nanoseconds since 1970 as its distance from now: `5 minutes ago`.
pub(crate) fn age(now: i64, then: i64) -> String {
    if then <= 0 {
        return String::new();
    }
    let seconds = now.saturating_sub(then) / 1_000_000_000;
    let (count, unit) = match seconds {
        ..0 => return "in the future".to_owned(),
        0..60 => (seconds, "second"),
        60..3_600 => (seconds / 60, "minute"),
        3_600..86_400 => (seconds / 3_600, "hour"),
        86_400..1_209_600 => (seconds / 86_400, "day"),
        1_209_600..5_184_000 => (seconds / 604_800, "week"),
        5_184_000..63_072_000 => (seconds / 2_592_000, "month"),
        _ => (seconds / 31_536_000, "year"),
    };
    format!("{count} {unit}{} ago", if count == 1 { "" } else { "s" })
}

/// A time in nanoseconds since 1970 as RFC 3339 in the local zone; nothing for none.
pub(crate) fn time(then: i64) -> String {
    match jiff::Timestamp::from_nanosecond(i128::from(then)) {
        Ok(time) if then > 0 => {
            time.to_zoned(jiff::tz::TimeZone::system()).strftime("%Y-%m-%dT%H:%M:%S%:z").to_string()
        }
        _ => String::new(),
    }
}

/// Now, in nanoseconds since 1970.
pub(crate) fn now() -> i64 {
    i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX)
}

/// A number of bytes with three digits that matter, decimal units as registries use.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 7] = ["B", "kB", "MB", "GB", "TB", "PB", "EB"];
    let mut unit = 0;
    // Thousandths, so that whole numbers suffice.
    let mut thousandths = u128::from(count) * 1000;
    while thousandths >= 1_000_000 && unit + 1 < UNITS.len() {
        thousandths /= 1000;
        unit += 1;
    }
    let (whole, rest) = (thousandths / 1000, thousandths % 1000);
    match whole {
        _ if unit == 0 => format!("{whole}{}", UNITS[unit]),
        0..10 => format!("{whole}.{:02}{}", rest / 10, UNITS[unit]),
        10..100 => format!("{whole}.{}{}", rest / 100, UNITS[unit]),
        _ => format!("{whole}{}", UNITS[unit]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables() {
        let mut table = TextTable::new(&["ID", "STATE", "NAME"]);
        table.add(vec![text("1"), state("Running"), text("a\x1b[31m\nb")]);
        table.add(vec![text("22"), state("Exited"), text("")]);
        table.0.force_no_tty();
        assert_eq!(table.render(), "ID  STATE    NAME\n1   Running  a [31m b\n22  Exited\n");
        assert_eq!(TextTable::new(&["ID"]).render(), "ID\n");
        let mut pairs =
            TextTable::of_pairs(&[("id", "1".to_owned()), ("none", String::new()), ("name", "n".to_owned())]);
        pairs.0.force_no_tty();
        assert_eq!(pairs.render(), "id    1\nname  n\n");
    }

    #[test]
    fn ages() {
        const SECOND: i64 = 1_000_000_000;
        let now = 2_000_000_000 * SECOND;
        let cases = [
            (0, "0 seconds ago"),
            (1, "1 second ago"),
            (59, "59 seconds ago"),
            (60, "1 minute ago"),
            (3599, "59 minutes ago"),
            (3600, "1 hour ago"),
            (86_400, "1 day ago"),
            (13 * 86_400, "13 days ago"),
            (14 * 86_400, "2 weeks ago"),
            (60 * 86_400, "2 months ago"),
            (730 * 86_400, "2 years ago"),
            (-5, "in the future"),
        ];
        for (seconds, expected) in cases {
            assert_eq!(age(now, now - seconds * SECOND), expected, "{seconds}");
        }
        assert_eq!(age(now, 0), "");
    }

    #[test]
    fn sizes() {
        let cases = [
            (0, "0B"),
            (999, "999B"),
            (1000, "1.00kB"),
            (1_234, "1.23kB"),
            (12_345, "12.3kB"),
            (123_456, "123kB"),
            (999_999, "999kB"),
            (1_000_000, "1.00MB"),
            (u64::MAX, "18.4EB"),
        ];
        for (count, expected) in cases {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn ids() {
        assert_eq!(short_id("sha256:0123456789abcdef"), "0123456789abc");
        assert_eq!(short_id("0123"), "0123");
        assert_eq!(short_id("äääääääääääääää"), "äääääääääääää");
    }
}
