//! The Container Runtime Interface on the wire, and what this daemon tells beyond it: generated messages, clients and
//! servers, and nothing else.
//!
//! Promises: every message, field and number of `proto/`. Must not know: what any of it means; that is `cri-service` for
//! the daemon and the clients' own business elsewhere.
#![forbid(unsafe_code)]

/// Package `runtime.v1`.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}

/// Package `crio_rs.v1`: beyond the CRI.
#[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
pub mod beyond {
    tonic::include_proto!("crio_rs.v1");
}
