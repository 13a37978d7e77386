//! The Container Runtime Interface on the wire: generated messages, clients and servers, and nothing else.
//!
//! Promises: every message, field and number of `proto/cri_v1.proto`. Must not know: what any of it means; that is
//! `cri-service` for the daemon and the clients' own business elsewhere.
#![forbid(unsafe_code)]

/// Package `runtime.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
