//! What files of the node's other programs add to containers: CDI specifications, OCI hook definitions and
//! classes of block I/O.
//!
//! Promises: directories are read again as soon as something in them has changed; a broken file is told and the others
//! go on; nothing that a file says reaches a runtime spec unchecked. What is added is a [`domain::spec::Edits`], which
//! `domain` merges. Must not know: requests, configuration, how a spec is written.
//! Begin reading at [`cdi::Cdi`] and [`hooks::Hooks`].
#![forbid(unsafe_code)]

pub mod block_io;
pub mod cdi;
mod followed;
pub mod hooks;
mod text;

/// Reads the bytes of a CDI specification, for fuzzing: JSON if they begin like an object, YAML otherwise.
pub fn fuzz_cdi(bytes: &[u8]) {
    for format in [cdi::Format::Json, cdi::Format::Yaml] {
        let _ = cdi::parse(bytes, format);
    }
}

/// Reads the bytes of a hook definition, for fuzzing.
pub fn fuzz_hook(bytes: &[u8]) {
    let _ = hooks::parse(bytes);
}

/// Reads the bytes of a file of block I/O classes, for fuzzing.
pub fn fuzz_block_io(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = block_io::parse(text);
    }
}
