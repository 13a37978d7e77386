//! Where containers of a shim (`runtime_type = "vm"`) differ from others.
//!
//! Little: `crio-shim` is their runtime, and leaves a process that stands for the container. What that process cannot
//! stand for is asked of the shim: namespaces, signals, what the container uses.

use std::ffi::OsString;
use std::path::Path;

use cgroup::{CgroupStats, CpuStats, MemoryStats, SwapStats};
use config::{Config, LogLevel};
use domain::container::ContainerState;
use runtime_client::Signals;

use crate::container::Container;
use crate::undo::chain;

/// The option that names the shim.
const SHIM: &str = "--shim=";

/// Puts another shim into the options, as containers of other platforms have it.
pub(crate) fn replace(options: &mut [OsString], shim: &str) {
    for option in options.iter_mut().filter(|option| option.to_string_lossy().starts_with(SHIM)) {
        *option = format!("{SHIM}{shim}").into();
    }
}

/// What `crio-shim` is told with every verb.
pub(crate) fn options(
    config: &Config,
    handler: &config::RuntimeHandler,
    shim: &Path,
) -> Result<Vec<OsString>, &'static str> {
    let publish = std::env::current_exe().map_err(|_| "this program does not know its own path")?;
    let with = |name: &str, path: &Path| {
        let mut option = OsString::from(name);
        option.push(path);
        option
    };
    let mut options = vec![with(SHIM, shim), with("--shim-publish=", &publish)];
    options.extend(handler.runtime_config_path.as_deref().map(|path| with("--shim-config=", path)));
    if matches!(config.runtime.log_level, LogLevel::Debug | LogLevel::Trace) {
        options.push("--shim-debug".into());
    }
    if handler.runtime_pull_image {
        options.push("--shim-pulls-image".into());
    }
    Ok(options)
}

impl Container {
    /// Whether a shim keeps it.
    pub(crate) fn is_behind_shim(&self) -> bool {
        self.handler.runtime.signals == Signals::ByRuntime
    }

    /// The process whose namespaces are the container's, while it has one.
    ///
    /// Of a shim's container that is one the shim named, not the one that stands for it: that is in the node's own. The
    /// path of a process that is none is kept by shims that only look whether there is one, and refused by the others.
    pub(crate) fn namespace_pid(&self) -> Option<i32> {
        let init = self.state().init()?;
        if !self.is_behind_shim() {
            return Some(init.pid);
        }
        Some(shim_client::init_pid(&self.handler.runtime.root, self.id.as_str()).unwrap_or(0))
    }

    /// What its shim says it uses; nothing where it does not tell. Blocks for up to a second.
    pub(crate) fn shim_stats(&self) -> CgroupStats {
        // Before its start there is nothing to tell, and shims have nobody to ask.
        if !matches!(self.state(), ContainerState::Running { .. }) {
            return CgroupStats::default();
        }
        match shim_client::stats(&self.handler.runtime.root, self.id.as_str()) {
            Ok(stats) => of_shim(&stats),
            Err(error) => {
                tracing::warn!(container.id = %self.id, error = %chain(&error), "reading statistics of a shim failed");
                CgroupStats::default()
            }
        }
    }
}

fn of_shim(stats: &shim_client::Stats) -> CgroupStats {
    CgroupStats {
        cpu: stats.processor_nanos.map(|usage_nanos| CpuStats { usage_nanos, pressure: None }),
        memory: stats.memory.map(|memory| MemoryStats {
            usage_bytes: memory.usage,
            rss_bytes: memory.rss,
            inactive_file_bytes: memory.inactive_file,
            limit_bytes: memory.limit,
            page_faults: memory.page_faults,
            major_page_faults: memory.major_page_faults,
            swap: memory.swap_usage.map(|usage_bytes| SwapStats { usage_bytes, limit_bytes: memory.swap_limit }),
            pressure: None,
        }),
        process_count: stats.process_count,
        io_pressure: None,
    }
}
