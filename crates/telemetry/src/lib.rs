//! Log lines in CRI-O's form, changeable while running, and printing of error chains.
//!
//! Promises: writing a line costs one buffer that is used again and one write; nothing here panics, not even when
//! standard error is closed; whatever a message holds, it stays one line. Must not know: sandboxes, configuration
//! files, gRPC.
//! Begin reading at [`init`]; the form of a line is in `line`.
//!
//! A span with the fields `id` (a UUID) and `name` (the full gRPC method) around a request puts both on every line of
//! that request; other fields of spans are shown likewise.
#![forbid(unsafe_code)]

mod chain;
mod escape;
mod level;
mod line;
mod subscriber;

pub use chain::{Chain, chain};
pub use level::{Level, UnknownLevel};
pub use line::Format;
pub use subscriber::{Destination, Handle, InitError, InvalidFilter, Settings, init, layer};
