//! What can only be said on the machine: do the files exist, are the programs there?

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::handler::{RuntimeHandler, UNTRUSTED_HANDLER};
use crate::model::Config;
use crate::problem::{ConfigErrors, Origin, Problem, Warning, WarningKind};
use crate::settle::is_shim_name;
use crate::value::{CheckpointRestoreLevel, RuntimeType};

/// Our own monitor, looked for before conmon.
pub const OWN_MONITOR: &str = "crio-monitor";

/// Name of the program that drives a shim like a runtime.
pub const SHIM_PROGRAM: &str = "crio-shim";

/// The monitor of CRI-O's packages.
pub const CONMON: &str = "conmon";

/// What lies at a path, links followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PathKind {
    /// Nothing, or nothing that may be looked at.
    Missing,
    /// A regular file.
    File,
    /// A regular file that may be executed.
    Program,
    /// A directory.
    Directory,
    /// A device, socket or pipe.
    Other,
}

/// The machine as far as the configuration asks about it.
pub trait Host {
    /// What lies at the path.
    fn kind(&self, path: &Path) -> PathKind;
    /// The first program of that name in `$PATH`.
    fn find_program(&self, name: &str) -> Option<PathBuf>;
    /// The directory of the running executable.
    fn own_directory(&self) -> Option<PathBuf>;
    /// Makes a directory with its parents.
    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()>;
}

/// This machine.
#[derive(Debug, Clone)]
pub struct ThisHost {
    search_path: Option<OsString>,
}

impl ThisHost {
    /// With the value of `$PATH`.
    pub fn new(search_path: Option<OsString>) -> Self {
        Self { search_path }
    }
}

impl Host for ThisHost {
    fn kind(&self, path: &Path) -> PathKind {
        match path.metadata() {
            Err(_) => PathKind::Missing,
            Ok(m) if m.is_dir() => PathKind::Directory,
            Ok(m) if m.is_file() && m.permissions().mode() & 0o111 != 0 => PathKind::Program,
            Ok(m) if m.is_file() => PathKind::File,
            Ok(_) => PathKind::Other,
        }
    }
    fn find_program(&self, name: &str) -> Option<PathBuf> {
        // A name with a slash is no name to search for, and relative directories are no place to run root's programs from.
        if name.is_empty() || name.contains('/') {
            return None;
        }
        std::env::split_paths(self.search_path.as_ref()?)
            .filter(|dir| dir.is_absolute())
            .map(|dir| dir.join(name))
            .find(|path| self.kind(path) == PathKind::Program)
    }
    fn own_directory(&self) -> Option<PathBuf> {
        std::env::current_exe().ok()?.parent().map(Path::to_owned)
    }
    fn create_directory(&self, path: &Path, mode: u32) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(mode).create(path)
    }
}

/// A configuration whose paths lead somewhere.
#[derive(Debug, Clone, PartialEq)]
pub struct HostChecked {
    /// The configuration with `runtime_path` (and `monitor_path`; for type `vm` also our own part) of every handler filled in, handlers
    /// without a program left out, hook directories that are none left out.
    pub config: Config,
    /// What the operator should know.
    pub warnings: Vec<Warning>,
}

impl Config {
    /// Looks for the programs and directories the configuration names, and makes the directories that may be missing.
    ///
    /// Call before anything is bound or mounted. Nothing is made if there is a problem with what is looked for.
    /// Errors: all problems at once: no program for the default handler, no monitor, absent devices, directories that
    /// cannot be made.
    /// Source: CRI-O checks these when the daemon starts; looking for `crio-monitor` first is ours.
    pub fn check_host(&self, host: &dyn Host) -> Result<HostChecked, ConfigErrors> {
        let mut check = Check { host, config: self.clone(), problems: Vec::new(), warnings: Vec::new() };
        check.handlers();
        check.programs();
        check.devices();
        ConfigErrors::from_problems(std::mem::take(&mut check.problems))?;
        check.directories();
        ConfigErrors::from_problems(check.problems)?;
        Ok(HostChecked { config: check.config, warnings: check.warnings })
    }
}

struct Check<'a> {
    host: &'a dyn Host,
    config: Config,
    problems: Vec<Problem>,
    warnings: Vec<Warning>,
}

impl Check<'_> {
    fn problem(&mut self, key: impl Into<String>, what: impl Into<String>) {
        self.problems.push(Problem { origin: Origin::BuiltIn, key: key.into(), what: what.into() });
    }
    fn warn(&mut self, key: impl Into<String>, kind: WarningKind) {
        self.warnings.push(Warning { origin: Origin::BuiltIn, key: key.into(), kind });
    }

    fn handlers(&mut self) {
        let default_name = self.config.runtime.default_runtime.clone();
        let mut handlers = std::mem::take(&mut self.config.runtime.runtimes);
        if let Some(path) = &self.config.runtime.runtime_untrusted_workload {
            // Its state lies apart from that of the other runtimes, where runtimes keep it by default.
            let own = RuntimeHandler {
                runtime_path: Some(path.clone()),
                runtime_root: Path::new("/run").join(path.file_name().unwrap_or_default()),
                runtime_type: RuntimeType::Oci,
                runtime_config_path: None,
                allowed_annotations: Vec::new(),
                platform_runtime_paths: BTreeMap::new(),
                ..handlers.get(&default_name).cloned().unwrap_or_default()
            };
            handlers.entry(UNTRUSTED_HANDLER.to_owned()).or_insert(own);
        }
        handlers.retain(|name, handler| {
            let search = if handler.inherit_default_runtime { &default_name } else { name };
            let mut bad = Vec::new();
            match self.program(handler.runtime_path.as_deref(), &[search]) {
                Ok(path) if handler.runtime_type == RuntimeType::Vm && !is_shim_name(&path) => {
                    bad.push(("runtime_path", format!("{} is not named containerd-shim-…", path.display())));
                }
                Ok(path) => handler.runtime_path = Some(path),
                Err(what) => bad.push(("runtime_path", what)),
            }
            if handler.runtime_type == RuntimeType::Vm {
                match self.own_program(SHIM_PROGRAM) {
                    Ok(path) => handler.shim_program = Some(path),
                    Err(what) => bad.push(("runtime_type", what)),
                }
            }
            if matches!(handler.runtime_type, RuntimeType::Oci | RuntimeType::Vm) {
                match self.monitor(handler.monitor_path.as_deref()) {
                    Ok(path) => handler.monitor_path = Some(path),
                    Err(what) => bad.push(("monitor_path", what)),
                }
            }
            for (key, path) in
                [("runtime_config_path", &handler.runtime_config_path), ("seccomp_profile", &handler.seccomp_profile)]
            {
                if let Some(path) = path
                    && self.host.kind(path) == PathKind::Missing
                {
                    bad.push((key, format!("{} does not exist", path.display())));
                }
            }
            let is_good = bad.is_empty();
            for (key, what) in bad {
                let key = format!("crio.runtime.runtimes.{name}.{key}");
                if *name == default_name {
                    self.problem(key, what);
                } else {
                    self.warn(key, WarningKind::HandlerDropped(what));
                }
            }
            is_good
        });
        self.config.runtime.runtimes = handlers;
    }

    /// The given program, or the first of the names found in `$PATH`.
    fn program(&self, given: Option<&Path>, names: &[&str]) -> Result<PathBuf, String> {
        match given {
            Some(path) => match self.host.kind(path) {
                PathKind::Program => Ok(path.to_owned()),
                PathKind::Missing => Err(format!("{} does not exist", path.display())),
                PathKind::File | PathKind::Directory | PathKind::Other => {
                    Err(format!("{} is not an executable file", path.display()))
                }
            },
            None => names
                .iter()
                .find_map(|name| self.host.find_program(name))
                .ok_or_else(|| format!("{} not found in $PATH", names.join(" or "))),
        }
    }

    /// The given monitor, or ours (next to this executable or in `$PATH`), or conmon.
    fn monitor(&self, given: Option<&Path>) -> Result<PathBuf, String> {
        match given {
            None => self.own_program(OWN_MONITOR).or_else(|_| self.program(None, &[OWN_MONITOR, CONMON])),
            Some(_) => self.program(given, &[]),
        }
    }

    /// A program of ours: next to this executable or in `$PATH`.
    fn own_program(&self, name: &str) -> Result<PathBuf, String> {
        let beside = self.host.own_directory().map(|dir| dir.join(name));
        match beside.filter(|path| self.host.kind(path) == PathKind::Program) {
            Some(path) => Ok(path),
            None => self.program(None, &[name]),
        }
    }

    fn programs(&mut self) {
        if self.config.runtime.infra_ctr_cpuset.is_some() && self.host.find_program("taskset").is_none() {
            self.problem("crio.runtime.infra_ctr_cpuset", "taskset not found in $PATH");
        }
        let level = &mut self.config.checkpoint_restore.container_level_enabled;
        if *level != CheckpointRestoreLevel::None && self.host.find_program("criu").is_none() {
            *level = CheckpointRestoreLevel::None;
        }
    }

    fn devices(&mut self) {
        for device in self.config.runtime.additional_devices.clone() {
            if self.host.kind(device.source()) == PathKind::Missing {
                self.problem(
                    "crio.runtime.additional_devices",
                    format!("{} does not exist", device.source().display()),
                );
            }
        }
        if let Some(path) = self.config.image.pause_image_auth_file.clone()
            && self.host.kind(&path) == PathKind::Missing
        {
            self.warn(
                "crio.image.pause_image_auth_file",
                WarningKind::Adjusted(format!("{} does not exist", path.display())),
            );
        }
        let zone = self.config.runtime.timezone.clone();
        let is_named = !zone.is_empty() && !zone.eq_ignore_ascii_case("local") && zone != "UTC";
        if is_named && self.host.kind(&Path::new("/usr/share/zoneinfo").join(&zone)) != PathKind::File {
            self.problem("crio.runtime.timezone", format!("{zone:?} is not a time zone of this host"));
        }
    }

    fn directories(&mut self) {
        let required = [
            ("crio.log_dir", self.config.root.log_dir.clone(), 0o700),
            ("crio.network.network_dir", self.config.network.network_dir.clone(), 0o755),
            ("crio.image.namespaced_auth_dir", self.config.image.namespaced_auth_dir.clone(), 0o755),
            ("crio.image.signature_policy_dir", self.config.image.signature_policy_dir.clone(), 0o755),
        ];
        for (key, path, mode) in required {
            if let Err(what) = self.make(&path, mode) {
                self.problem(key, what);
            }
        }
        // Plugins may lie on a read-only file system where only some directories exist; a missing one has no plugins.
        for path in self.config.network.plugin_dirs.clone() {
            if let Err(what) = self.make(&path, 0o755) {
                self.warn("crio.network.plugin_dirs", WarningKind::Adjusted(what));
            }
        }
        let mut hooks = std::mem::take(&mut self.config.runtime.hooks_dir);
        hooks.retain(|path| match self.make(path, 0o755) {
            Ok(()) => true,
            Err(what) => {
                self.warn("crio.runtime.hooks_dir", WarningKind::Adjusted(format!("{what}, left out")));
                false
            }
        });
        self.config.runtime.hooks_dir = hooks;
    }

    fn make(&self, path: &Path, mode: u32) -> Result<(), String> {
        match self.host.kind(path) {
            PathKind::Directory => Ok(()),
            PathKind::Missing => {
                self.host.create_directory(path, mode).map_err(|e| format!("create {}: {e}", path.display()))
            }
            PathKind::File | PathKind::Program | PathKind::Other => {
                Err(format!("{} is not a directory", path.display()))
            }
        }
    }
}
