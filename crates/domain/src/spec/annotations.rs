//! Annotations of config.json.
