//! A sandbox's place in the network: CNI configuration, plugin calls, results, host ports.
//!
//! Promises: plugins see exactly what the CNI specification (0.1.0 to 1.1.0) says, with libcni's cache files, so that
//! any plugin works and other daemons find what was added here. A plugin that fails, hangs, floods or is missing costs
//! one sandbox an error, nothing else. Host ports use the objects CRI-O uses, so either daemon removes the other's.
//!
//! Must not know: containers, images, the CRI's wire types, how namespaces are made.
//!
//! Begin with [`Network`] (configuration, readiness, attaching) and [`HostPorts`].
#![forbid(unsafe_code)]

mod attachment;
mod bandwidth;
mod cache;
mod config;
mod directory;
mod hostports;
mod network;
mod operations;
mod plugin;
mod port;
mod result;
mod version;
mod watch;

pub use attachment::{
    AddError, ArgumentError, Attachment, ChainError, CheckError, CniResult, DelError, GcError, StepError,
};
pub use bandwidth::BandwidthError;
pub use cache::fuzz_cache_entry;
pub use config::{ConfigError, fuzz_config};
pub use hostports::{DetectError, HostPortError, HostPorts, ToolError, fuzz_iptables_save, fuzz_nft_listing};
pub use network::{Network, NetworkOptions, NotReady, Watch};
pub use operations::{ADD_LIMIT, DEL_LIMIT, GC_LIMIT};
pub use plugin::{PluginError, Report, fuzz_report};
pub use port::{PortMapping, Protocol};
pub use result::{ResultError, fuzz_result};
