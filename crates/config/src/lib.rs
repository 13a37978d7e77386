//! From files, environment and flags to one checked [`Config`].
//!
//! Promises: all problems are reported together, with file and key, before anything is bound or mounted; unknown keys
//! and keys without effect are named in warnings; reading bytes and judging them are separate steps, so that
//! [`load`] never touches the file system and never panics whatever the bytes are.
//! Must not know: what the values are used for, sandboxes, gRPC.
//! Begin reading at [`Config`], then [`load`], then the table of keys in `keys`.
#![forbid(unsafe_code)]

pub mod handler;
pub mod model;
pub mod units;
pub mod value;

pub use handler::{RuntimeHandler, Workload, WorkloadResources};
pub use model::{
    ApiConfig, CheckpointRestoreConfig, Config, ImageConfig, MetricsConfig, NetworkConfig, NriConfig,
    NriValidatorConfig, RootConfig, RuntimeConfig, StatsConfig, TracingConfig,
};
pub use units::ByteCount;
pub use value::{
    AdditionalDevice, CgroupManager, CheckpointRestoreLevel, CpuSet, ExecCpuAffinity, IdMapping, ImageVolumes,
    LogLevel, MonitorCgroup, MonitorExecCgroup, PullCgroup, RuntimeType, ShortNameMode, StorageDriver, Sysctl,
    TlsMinVersion, Ulimit,
};
