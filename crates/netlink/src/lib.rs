//! Netlink without an async runtime: links, addresses, routes, queueing disciplines and nf_tables rules.
//!
//! Promises: a request is answered or fails, none waits for anything but the kernel; what the kernel sends is read
//! within bounds. A socket belongs to the network namespace of the thread that opened it and stays there. Must not
//! know: plugins, sandboxes. Written here because plugins live for a millisecond, and because no library has nf_tables
//! without C. Begin reading at [`Socket`], then [`route`] and [`nf_tables`].
#![forbid(unsafe_code)]

mod conntrack;
mod message;
pub mod nf_tables;
pub mod route;
mod shaping;
mod socket;

pub use message::{Attributes, Message, fuzz_attributes};
pub use shaping::TokenBucket;
pub use socket::{Reply, Socket};
