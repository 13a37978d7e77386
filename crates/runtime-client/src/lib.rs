//! The daemon's end of OCI runtimes and container monitors: run their commands, read their answers, watch for ends.
//!
//! Promises: every program started here is waited for; every wait has an end; what a program prints is read to a bound.
//! Any runtime with runc's command line and any monitor with conmon's will do. Must not know: what a container is for,
//! how its records are kept; that is `lifecycle`.
//! Begin reading at [`RuntimeHandler`], then [`create`], [`exec`] and [`exits`].
#![forbid(unsafe_code)]

mod child;
pub mod create;
pub mod exec;
pub mod exec_session;
pub mod exits;
pub mod features;
pub mod log;
pub mod process;
pub mod program;
mod runtime;

pub use runtime::{ExecPlacement, Force, Removal, RuntimeError, RuntimeHandler, Signals};
