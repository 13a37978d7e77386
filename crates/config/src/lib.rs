//! From files, environment and flags to one checked [`Config`].
//!
//! Promises: all problems are reported together, with file and key, before anything is bound or mounted; unknown keys
//! and keys without effect are named in warnings; reading bytes and judging them are separate steps, so that
//! [`load`] never touches the file system and never panics whatever the bytes are.
//! Must not know: what the values are used for, sandboxes, gRPC.
//! Begin reading at [`Config`], then [`load`], then the table of keys in `keys`. A start goes [`cli::invocation`],
//! [`Sources::read`], [`load`], [`Config::check_host`]; a SIGHUP goes [`Sources::read`], [`reload`].
#![forbid(unsafe_code)]

pub mod cli;
mod codec;
mod document;
mod effect;
pub mod handler;
mod host;
mod key;
mod keys;
mod load;
pub mod model;
mod problem;
mod reload;
mod settle;
mod sources;
mod storage_conf;
mod template;
pub mod units;
pub mod value;
mod version;

pub use handler::{RuntimeHandler, UNTRUSTED_HANDLER, Workload, WorkloadResources};
pub use host::{CONMON, Host, HostChecked, OWN_MONITOR, PathKind, SHIM_PROGRAM, ThisHost};
pub use load::{Loaded, fuzz, load};
pub use model::{
    ApiConfig, CheckpointRestoreConfig, Config, ImageConfig, MetricsConfig, NetworkConfig, NriConfig,
    NriValidatorConfig, RootConfig, RuntimeConfig, StatsConfig, TracingConfig,
};
pub use problem::{ConfigErrors, Origin, Problem, SourceFile, Warning, WarningKind};
pub use reload::{Change, Reload, adopt, diff_reload, reload};
pub use sources::{
    DEFAULT_CONFIG_FILE, DEFAULT_DROP_IN_DIR, Locations, MAX_DROP_INS, MAX_FILE_BYTES, MainFile, ReadSourcesError,
    Sources, StorageConf,
};
pub use storage_conf::{PullOptions, StoreConfig};
pub use template::{Template, template, template_over};
pub use units::ByteCount;
pub use value::{
    AdditionalDevice, CgroupManager, CheckpointRestoreLevel, CpuSet, ExecCpuAffinity, IdMapping, ImageVolumes,
    LogLevel, MonitorCgroup, MonitorExecCgroup, PullCgroup, RuntimeType, ShortNameMode, StorageDriver, Sysctl,
    SysctlNamespace, TlsMinVersion, Ulimit, WorkloadTrust,
};
pub use version::VersionInfo;
