//! Keys that are accepted although nothing uses them yet.
//!
//! The one place to shorten when a feature arrives. A key named here is warned about only if its value differs from
//! the built-in one.

/// Keys, or tables that end in `.*`.
pub(crate) const NOT_YET: &[&str] = &[
    "crio.runtime.rdt_config_file",
    "crio.runtime.ctr_stop_timeout",
    "crio.checkpoint_restore.*",
    "crio.metrics.*",
    "crio.tracing.*",
    "crio.nri.*",
    "crio.nri.default_validator.*",
];

/// Keys of runtime handlers.
pub(crate) const NOT_YET_HANDLER: &[&str] = &["stream_websockets"];

/// Whether a key is named by the list.
pub(crate) fn is_not_yet(path: &str) -> bool {
    NOT_YET.iter().any(|entry| match entry.strip_suffix(".*") {
        Some(table) => path.rsplit_once('.').is_some_and(|(found, _)| found == table),
        None => *entry == path,
    })
}
