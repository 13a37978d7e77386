//! Control groups as the daemon uses them: where they are, making and removing them, who is in them, ending everybody
//! in them.
//!
//! Promises: works on v1, hybrid and v2; every loop and wait is bounded; removing what is not there is success. The
//! kernel is the only memory. Must not know: runtimes, specs, configuration files.
//! Limits of containers are the runtime's business; paths as text are `domain::spec::CgroupParent`'s.
//! Begin reading at [`Layout`]; [`systemd`] is for nodes where systemd owns the tree.
#![forbid(unsafe_code)]

mod dbus;
mod details;
mod layout;
mod processes;
mod reader;
mod stats;
pub mod systemd;
mod tree;

pub use details::{CpuDetails, Details, DiskCount, DiskUnit, HugepageUse, Members, MemoryDetails, Wanted, page_sizes};
pub use layout::{DetectError, Hierarchy, Layout};
pub use processes::{KillError, ProcessesError};
pub use stats::{
    CgroupStats, CpuStats, Known, Limits, MemoryStats, Pressure, Stall, StatsError, SwapStats, fuzz_stats,
};
pub use tree::{CreateError, MoveError, OomError, PathError, RemoveError};
