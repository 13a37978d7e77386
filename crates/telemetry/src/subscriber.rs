//! Taking events from `tracing` to the log, with a level and a filter that can change while running.

use std::cell::RefCell;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use jiff::Timestamp;
use jiff::tz::TimeZone;
use regex::Regex;
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::{LookupSpan, Registry};

use crate::level::Level;
use crate::line::{FieldWriter, Format, LineBuffer};

/// Libraries whose lines below warning are of no use to operators; they show from level trace on.
const QUIET_LIBRARIES: [&str; 12] = [
    "h2",
    "hyper",
    "hyper_util",
    "inotify",
    "mio",
    "rustls",
    "tokio",
    "tokio_rustls",
    "tokio_util",
    "tonic",
    "tower",
    "want",
];

/// Where lines go.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Destination {
    /// Standard error.
    #[default]
    Stderr,
    /// This file, which is made if it does not exist and appended to.
    File(PathBuf),
}

/// How to log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Settings {
    /// From which severity on.
    pub level: Level,
    /// Form of lines.
    pub format: Format,
    /// Where to.
    pub destination: Destination,
    /// Regular expression that messages must match; empty: all.
    pub filter: String,
}

/// A filter that is no regular expression.
#[derive(Debug, thiserror::Error)]
#[error("compile log filter {filter:?}")]
pub struct InvalidFilter {
    filter: String,
    #[source]
    source: regex::Error,
}

/// Why logging could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The log file cannot be opened.
    #[error("open log file {}", path.display())]
    OpenFile {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The filter is no regular expression.
    #[error("set up logging")]
    Filter {
        /// Why.
        #[source]
        source: InvalidFilter,
    },
    /// Logging was set up before.
    #[error("logging is already set up")]
    AlreadySet,
}

enum Sink {
    Stderr,
    File(File),
}

impl Sink {
    fn write(&self, line: &[u8]) -> io::Result<()> {
        match self {
            // Standard error is not buffered, so that this is one write.
            Self::Stderr => io::stderr().write_all(line),
            Self::File(file) => {
                let mut file = file;
                file.write_all(line)
            }
        }
    }
}

/// What the layer and the handles to it share.
struct Shared {
    level: AtomicU8,
    has_filter: AtomicBool,
    filter: RwLock<Option<Regex>>,
    lost: AtomicU64,
}

impl Shared {
    fn level(&self) -> Level {
        Level::ALL.get(usize::from(self.level.load(Ordering::Relaxed))).copied().unwrap_or(Level::Trace)
    }

    /// Whether the filter lets a message through.
    fn admits(&self, message: &str) -> bool {
        if !self.has_filter.load(Ordering::Relaxed) {
            return true;
        }
        let filter = self.filter.read().unwrap_or_else(PoisonError::into_inner);
        filter.as_ref().is_none_or(|filter| filter.is_match(message))
    }
}

/// Changes logging while it runs. Clones change the same log.
#[derive(Clone)]
pub struct Handle {
    shared: Arc<Shared>,
}

impl std::fmt::Debug for Handle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Handle").field("level", &self.level()).finish_non_exhaustive()
    }
}

impl Handle {
    /// From which severity on lines are written now.
    pub fn level(&self) -> Level {
        self.shared.level()
    }

    /// Changes that.
    pub fn set_level(&self, level: Level) {
        self.shared.level.store(level as u8, Ordering::Relaxed);
        // Call sites remember whether they are wanted.
        tracing::callsite::rebuild_interest_cache();
    }

    /// Changes the regular expression that messages must match; empty lets all through.
    ///
    /// Errors: it is no regular expression; the old one stays.
    pub fn set_filter(&self, filter: &str) -> Result<(), InvalidFilter> {
        let compiled = if filter.is_empty() {
            None
        } else {
            Some(Regex::new(filter).map_err(|source| InvalidFilter { filter: filter.to_owned(), source })?)
        };
        let is_set = compiled.is_some();
        *self.shared.filter.write().unwrap_or_else(PoisonError::into_inner) = compiled;
        self.shared.has_filter.store(is_set, Ordering::Relaxed);
        Ok(())
    }

    /// How many lines could not be written (disk full, standard error closed).
    pub fn lost_lines(&self) -> u64 {
        self.shared.lost.load(Ordering::Relaxed)
    }
}

/// The layer that writes lines. Made by [`layer`].
pub struct LogLayer {
    shared: Arc<Shared>,
    format: Format,
    sink: Sink,
    zone: TimeZone,
}

/// Makes the layer without installing it, for tests and for daemons that add layers of their own.
///
/// Errors: `OpenFile`, `Filter`.
pub fn layer(settings: &Settings) -> Result<(LogLayer, Handle), InitError> {
    let sink = match &settings.destination {
        Destination::Stderr => Sink::Stderr,
        Destination::File(path) => Sink::File(
            File::options()
                .append(true)
                .create(true)
                // Log lines name images and sandboxes, which other users need not know.
                .mode(0o640)
                .open(path)
                .map_err(|source| InitError::OpenFile { path: path.clone(), source })?,
        ),
    };
    let shared = Arc::new(Shared {
        level: AtomicU8::new(settings.level as u8),
        has_filter: AtomicBool::new(false),
        filter: RwLock::new(None),
        lost: AtomicU64::new(0),
    });
    let handle = Handle { shared: Arc::clone(&shared) };
    handle.set_filter(&settings.filter).map_err(|source| InitError::Filter { source })?;
    Ok((LogLayer { shared, format: settings.format, sink, zone: TimeZone::system() }, handle))
}

/// Sets up logging for the whole process. Call once, at the very start.
///
/// Errors: `OpenFile`, `Filter`; `AlreadySet` if it was called before.
pub fn init(settings: &Settings) -> Result<Handle, InitError> {
    let (layer, handle) = layer(settings)?;
    tracing::subscriber::set_global_default(Registry::default().with(layer)).map_err(|_| InitError::AlreadySet)?;
    Ok(handle)
}

/// The fields of a span as they stand in a line.
struct SpanFields(String);

thread_local! {
    static BUFFER: RefCell<LineBuffer> = RefCell::default();
}

impl LogLayer {
    fn wants(&self, metadata: &Metadata<'_>) -> bool {
        let level = self.shared.level();
        let found = Level::of(metadata.level());
        if level < Level::Trace && found > Level::Warn {
            let library = metadata.target().split(':').next().unwrap_or_default();
            if QUIET_LIBRARIES.contains(&library) {
                return false;
            }
        }
        // Spans are kept up to info at any level: an error needs the id of its request.
        found <= level || metadata.is_span() && found <= Level::Info
    }

    fn write<S: Subscriber + for<'a> LookupSpan<'a>>(
        &self,
        buffer: &mut LineBuffer,
        event: &Event<'_>,
        context: &Context<'_, S>,
    ) {
        let metadata = event.metadata();
        buffer.clear();
        event.record(&mut FieldWriter {
            format: self.format,
            fields: &mut buffer.fields,
            message: Some(&mut buffer.message),
        });
        if !self.shared.admits(&buffer.message) {
            return;
        }
        if let Some(scope) = context.event_scope(event) {
            for span in scope {
                if let Some(SpanFields(fields)) = span.extensions().get() {
                    buffer.fields.push_str(fields);
                }
            }
        }
        let place = match (metadata.file(), metadata.line()) {
            (Some(file), Some(line)) if self.shared.level() >= Level::Debug => Some((file, line)),
            _ => None,
        };
        buffer.assemble(self.format, Level::of(metadata.level()), Timestamp::now(), &self.zone, place);
        if self.sink.write(buffer.line.as_bytes()).is_err() {
            // There is nobody left to tell; the count shows in a dump of the daemon's state.
            self.shared.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for LogLayer {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.wants(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>, _: Context<'_, S>) -> bool {
        self.wants(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.shared.level().max(Level::Info).to_filter())
    }

    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut fields = String::new();
        attributes.record(&mut FieldWriter { format: self.format, fields: &mut fields, message: None });
        if !fields.is_empty() {
            span.extensions_mut().replace(SpanFields(fields));
        }
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut extensions = span.extensions_mut();
        let mut fields = extensions.remove::<SpanFields>().map(|SpanFields(fields)| fields).unwrap_or_default();
        values.record(&mut FieldWriter { format: self.format, fields: &mut fields, message: None });
        extensions.replace(SpanFields(fields));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        // At the end of a thread, or within the formatting of another line, the buffer is not to be had.
        let is_written = BUFFER
            .try_with(|buffer| match buffer.try_borrow_mut() {
                Ok(mut buffer) => {
                    self.write(&mut buffer, event, &context);
                    true
                }
                Err(_) => false,
            })
            .unwrap_or(false);
        if !is_written {
            self.write(&mut LineBuffer::default(), event, &context);
        }
    }
}
