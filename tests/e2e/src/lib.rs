//! The whole house, from outside: the real daemon, monitor, runtimes, CNI plugins and registry, driven over the CRI.
//!
//! Promises: each scenario has a network and a mount namespace, a cgroup, a registry and a directory of its own, so that
//! scenarios may run side by side; all of it is taken away afterwards, also after a failure, when only the directory
//! with logs and state stays and its path is printed. Without root every scenario skips, loudly. The programs under test
//! are those beside the test's own: `cargo build --workspace --bins` first, as `make test` does.
//!
//! Must not know: how the daemon works; it sees the CRI, the kernel and other tools' view of the store.
//! Begin reading at [`scenario`], then [`World`].
#![forbid(unsafe_code)]

pub mod chunked;
pub mod cri;
pub mod http;
pub mod hung;
pub mod image;
pub mod liar;
pub mod log;
mod namespace;
pub mod registry;
pub mod snapshot;
pub mod spdy;
pub mod storage;
pub mod tools;
pub mod websocket;
pub mod world;

pub use cri::{Container, Cri, Pod};
pub use world::{Handler, Setup, World, scenario};
