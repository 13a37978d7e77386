//! What a sandbox, a container and an image are, and what may happen to them: values, states, transitions and the
//! assembly of the runtime spec.
//!
//! Promises: nothing here can fail for an outside reason. There are no files, sockets, clocks or randomness; time and
//! random bytes are arguments. Must not know: gRPC, the disk, any tool that is executed.
//! Begin reading at [`id`], then [`sandbox`] and [`container`].
#![forbid(unsafe_code)]

pub mod apparmor;
pub mod artifact;
pub mod container;
pub mod cpus;
pub mod digest;
pub mod encryption;
mod go_json;
pub mod id;
pub mod id_maps;
pub mod image;
pub mod irqbalance;
pub mod metrics;
pub mod name;
pub mod quantity;
pub mod resources;
pub mod sandbox;
pub mod schema1;
pub mod security;
pub mod selinux;
pub mod spec;
pub mod time;
pub mod trust;
pub mod user;
pub mod userns;
