//! The form of a log line.
//!
//! Text: `time="2026-01-02T03:04:05.000000006Z" level=info msg="…" key=value`; JSON: one object with the same names.
//! Source: logrus as CRI-O sets it up, which is what operators' log pipelines parse.

use std::fmt::{self, Debug, Write as _};

use jiff::Timestamp;
use jiff::tz::{Offset, TimeZone};
use tracing::field::{Field, Visit};

use crate::escape::{Escape, Escaper, filter_dumps, is_bare};
use crate::level::Level;

/// How lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Format {
    /// `time="…" level=… msg="…" key=value`.
    #[default]
    Text,
    /// A JSON object a line.
    Json,
}

/// A buffer for one line and the scratch space to make it.
#[derive(Default)]
pub(crate) struct LineBuffer {
    pub(crate) line: String,
    pub(crate) message: String,
    pub(crate) fields: String,
    scratch: String,
}

/// Buffers that one huge line has grown beyond this are given back.
const MAX_KEPT_BYTES: usize = 8 * 1024;

impl LineBuffer {
    pub(crate) fn clear(&mut self) {
        for buffer in [&mut self.line, &mut self.message, &mut self.fields, &mut self.scratch] {
            buffer.clear();
            buffer.shrink_to(MAX_KEPT_BYTES);
        }
    }

    /// Puts the parts of a line together; `message` and `fields` have been collected before.
    pub(crate) fn assemble(
        &mut self,
        format: Format,
        level: Level,
        now: Timestamp,
        zone: &TimeZone,
        place: Option<(&str, u32)>,
    ) {
        let Self { line, message, fields, scratch } = self;
        let message = if level >= Level::Debug && message.contains('[') {
            scratch.clear();
            filter_dumps(message, scratch);
            scratch.as_str()
        } else {
            message.as_str()
        };
        match format {
            Format::Text => {
                line.push_str("time=\"");
                write_time(line, now, zone);
                line.push_str("\" level=");
                line.push_str(level.as_str());
                line.push_str(" msg=\"");
                let _ = Escaper::new(line, Escape::Quoted).write_str(message);
                line.push('"');
                if let Some((file, number)) = place {
                    let _ = write!(line, " file=\"{file}:{number}\"");
                }
                line.push_str(fields);
            }
            Format::Json => {
                line.push_str("{\"time\":\"");
                write_time(line, now, zone);
                line.push_str("\",\"level\":\"");
                line.push_str(level.as_str());
                line.push_str("\",\"msg\":\"");
                let _ = Escaper::new(line, Escape::Json).write_str(message);
                line.push('"');
                if let Some((file, number)) = place {
                    let _ = write!(line, ",\"file\":\"{file}:{number}\"");
                }
                line.push_str(fields);
                line.push('}');
            }
        }
        line.push('\n');
    }
}

/// RFC 3339 with nanoseconds in the host's time zone.
fn write_time(out: &mut String, now: Timestamp, zone: &TimeZone) {
    let offset = zone.to_offset(now);
    let _ = if offset == Offset::UTC {
        write!(out, "{now:.9}")
    } else {
        write!(out, "{:.9}", now.display_with_offset(offset))
    };
}

/// Writes the fields of an event or a span, each with what separates it from the one before.
pub(crate) struct FieldWriter<'a> {
    pub(crate) format: Format,
    /// Fields as they stand in a line.
    pub(crate) fields: &'a mut String,
    /// Gets the field `message` of an event; None for spans, where it is a field like any other.
    pub(crate) message: Option<&'a mut String>,
}

impl FieldWriter<'_> {
    fn key(&mut self, name: &str) {
        // A field of ours must not pass for one of the line's own. Source: logrus does this.
        let prefix = if matches!(name, "time" | "level" | "msg") { "fields." } else { "" };
        let name = name.strip_prefix("r#").unwrap_or(name);
        let _ = match self.format {
            Format::Text => write!(self.fields, " {prefix}{name}="),
            Format::Json => write!(self.fields, ",\"{prefix}{name}\":"),
        };
    }

    fn plain(&mut self, field: &Field, value: fmt::Arguments<'_>) {
        self.key(field.name());
        let _ = self.fields.write_fmt(value);
    }

    fn text(&mut self, field: &Field, text: &str) {
        self.key(field.name());
        if self.format == Format::Text && is_bare(text) {
            self.fields.push_str(text);
        } else {
            self.quoted(format_args!("{text}"));
        }
    }

    fn quoted(&mut self, value: fmt::Arguments<'_>) {
        let escape = match self.format {
            Format::Text => Escape::Quoted,
            Format::Json => Escape::Json,
        };
        self.fields.push('"');
        let _ = Escaper::new(self.fields, escape).write_fmt(value);
        self.fields.push('"');
    }
}

impl Visit for FieldWriter<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message"
            && let Some(message) = self.message.as_deref_mut()
        {
            let _ = write!(message, "{value:?}");
            return;
        }
        self.key(field.name());
        self.quoted(format_args!("{value:?}"));
        // Ids and numbers given as `%value` look better bare; only then is the quoted text known.
        if self.format == Format::Text {
            unquote(self.fields);
        }
    }
    fn record_str(&mut self, field: &Field, value: &str) {
        match self.message.as_deref_mut() {
            Some(message) if field.name() == "message" => message.push_str(value),
            _ => self.text(field, value),
        }
    }
    fn record_i64(&mut self, field: &Field, value: i64) {
        self.plain(field, format_args!("{value}"));
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.plain(field, format_args!("{value}"));
    }
    fn record_i128(&mut self, field: &Field, value: i128) {
        self.plain(field, format_args!("{value}"));
    }
    fn record_u128(&mut self, field: &Field, value: u128) {
        self.plain(field, format_args!("{value}"));
    }
    fn record_f64(&mut self, field: &Field, value: f64) {
        // JSON has no number for infinity and the like.
        if value.is_finite() {
            self.plain(field, format_args!("{value}"));
        } else {
            self.text(field, if value.is_nan() { "NaN" } else { "inf" });
        }
    }
    fn record_bool(&mut self, field: &Field, value: bool) {
        self.plain(field, format_args!("{value}"));
    }
    fn record_error(&mut self, field: &Field, value: &(dyn std::error::Error + 'static)) {
        self.key(field.name());
        self.quoted(format_args!("{}", crate::chain(value)));
    }
}

/// Takes the quotes off the value just written if it can do without.
fn unquote(fields: &mut String) {
    let Some(start) = fields.rfind("=\"") else { return };
    let value = fields.get(start + 2..fields.len() - 1).unwrap_or_default();
    // A quote within the value is escaped, so that `="` found from the right is the opening one unless it is `=\"`.
    if is_bare(value) {
        fields.pop();
        fields.remove(start + 1);
    }
}
