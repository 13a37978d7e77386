//! Who is attached to what, and what came of it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;

use domain::id::SandboxId;
use thiserror::Error;

use crate::bandwidth::BandwidthError;
use crate::network::NotReady;
use crate::plugin::PluginError;
use crate::result::ResultError;

/// A sandbox and the interface it is to have, as plugins are told.
#[derive(Debug, Clone)]
pub struct Attachment {
    /// `CNI_CONTAINERID` and `K8S_POD_INFRA_CONTAINER_ID`.
    pub sandbox_id: SandboxId,
    /// Kubernetes name of the sandbox: `K8S_POD_NAME`.
    pub name: String,
    /// Kubernetes namespace: `K8S_POD_NAMESPACE`.
    pub namespace: String,
    /// Kubernetes uid: `K8S_POD_UID`.
    pub uid: String,
    /// Pinned network namespace: `CNI_NETNS`. `None` only for a removal after the pin was lost.
    pub netns: Option<PathBuf>,
    /// `CNI_IFNAME`, normally `eth0`.
    pub ifname: String,
    /// The sandbox's annotations: bandwidth limits, and all of them for plugins with that capability.
    pub annotations: BTreeMap<String, String>,
    /// The sandbox's cgroup for plugins with the capability `cgroupPath`; empty for none.
    pub cgroup_parent: String,
}

/// What the last plugin of the chain answered, in the form of CNI 1.1.0.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CniResult {
    /// Network the sandbox is attached to.
    pub network: String,
    /// Interface inside the sandbox.
    pub ifname: String,
    /// Every address, without prefix, in the plugins' order.
    pub ips: Vec<IpAddr>,
    /// JSON as stored in the annotation `io.kubernetes.cri-o.CNIResult`: version 1.1.0, keys sorted, no empty ones.
    pub raw: String,
}

/// A plugin of the chain that failed.
#[derive(Debug, Error)]
#[error("plugin type={kind:?} failed ({verb})")]
pub struct ChainError {
    /// Type of the plugin.
    pub kind: String,
    /// `add`, `delete`, `check`.
    pub verb: &'static str,
    /// What happened to its call.
    #[source]
    pub source: StepError,
}

/// What can go wrong with one plugin of a chain.
#[derive(Debug, Error)]
pub enum StepError {
    /// Its call.
    #[error(transparent)]
    Call(#[from] PluginError),
    /// Its answer.
    #[error(transparent)]
    Result(#[from] ResultError),
}

/// Text that plugins would take for something else.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{key} cannot be {value:?} in plugin arguments")]
pub struct ArgumentError {
    /// Which argument.
    pub key: &'static str,
    /// The refused text.
    pub value: String,
}

/// Why a sandbox could not be attached. What the chain had done is undone.
#[derive(Debug, Error)]
pub enum AddError {
    /// No default network; the text is that of [`NotReady`].
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// A name or uid that cannot be an argument.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A bandwidth annotation.
    #[error(transparent)]
    Bandwidth(#[from] BandwidthError),
    /// A plugin failed.
    #[error("error adding pod {pod} to CNI network {network:?}")]
    Plugin {
        /// `<namespace>_<name>`
        pod: String,
        /// The network.
        network: String,
        /// Which plugin and why.
        #[source]
        source: Box<ChainError>,
    },
    /// The attachment could not be written down.
    #[error("write CNI cache entry of pod {pod} in {dir}")]
    Cache {
        /// `<namespace>_<name>`
        pod: String,
        /// The cache directory.
        dir: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Why a sandbox could not be detached. The cache entry stays, so that it can be tried again.
#[derive(Debug, Error)]
pub enum DelError {
    /// Nothing is known of the attachment and there is no default network to ask.
    #[error(transparent)]
    NotReady(#[from] NotReady),
    /// A name or uid that cannot be an argument.
    #[error(transparent)]
    Argument(#[from] ArgumentError),
    /// A bandwidth annotation, of a sandbox that is not in the cache.
    #[error(transparent)]
    Bandwidth(#[from] BandwidthError),
    /// The cached configuration is unusable and the network is not configured any more.
    #[error("failed to find requested network name {0}")]
    UnknownNetwork(String),
    /// A plugin failed; those before it in the chain were not asked.
    #[error("error removing pod {pod} from CNI network {network:?}")]
    Plugin {
        /// `<namespace>_<name>`
        pod: String,
        /// The network.
        network: String,
        /// Which plugin and why.
        #[source]
        source: Box<ChainError>,
    },
    /// The cache entry could not be removed.
    #[error("remove CNI cache entry of pod {pod} in {dir}")]
    Cache {
        /// `<namespace>_<name>`
        pod: String,
        /// The cache directory.
        dir: PathBuf,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

/// Why an attachment is not as it was made.
#[derive(Debug, Error)]
pub enum CheckError {
    /// The cache has no entry of the sandbox.
    #[error("pod {0} is not attached to any CNI network")]
    NotAttached(String),
    /// The cached configuration is unusable and the network is not configured any more.
    #[error("failed to find requested network name {0}")]
    UnknownNetwork(String),
    /// A plugin found a difference.
    #[error("error checking pod {pod} for CNI network {network:?}")]
    Plugin {
        /// `<namespace>_<name>`
        pod: String,
        /// The network.
        network: String,
        /// Which plugin and why.
        #[source]
        source: Box<ChainError>,
    },
}

/// What garbage collection could not clean; everything else was.
#[derive(Debug, Error)]
#[error("collect garbage of CNI networks: {} of {asked} steps failed", failed.len())]
pub struct GcError {
    /// How many removals and plugin calls there were.
    pub asked: usize,
    /// What failed, each with the reason.
    pub failed: Vec<String>,
}
