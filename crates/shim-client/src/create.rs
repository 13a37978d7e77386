//! `create`: a shim, the container in it, and the process that stands for the container on the node.
//!
//! Steps, and what is left if we are killed after each; `delete --force` finds all of it by the record:
//!
//! ```text
//! record                 nothing else
//! shim started           its address is in the bundle, then in the record
//! fifos, stand-in        the stand-in dies with us until it has reported
//! created at the shim    the shim knows the container by its id
//! pid file               the container is whole
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine;
use durable::Durability;
use rustix::pipe::PipeFlags;
use rustix::process::Signal;
use serde::Deserialize;
use sys::supervise::{Forked, fork_single_threaded};

use crate::client::CallError;
use crate::options::Settings;
use crate::process::Process;
use crate::record::{Record, fifo_directory};
use crate::relay::{self, Program, Relay};
use crate::stdio::{Fifos, Streams};
use crate::task::Task;
use crate::verbs::{VerbError, enter};
use crate::{delete, shim, terminal, wire};

/// The exit code of a container whose shim is gone: nobody saw its end. Source: CRI-O's code for an unseen end.
const UNSEEN: u8 = 255;
/// A report is a pid or one error.
const REPORT_MAX_BYTES: u64 = 64 << 10;
/// The name of the container's own program among its fifos.
const INIT: &str = "init";
/// The file that keeps what a shim says.
const LOG_FILE: &str = "shim.log";
/// The name of an image for people. Source: CRI-O's annotation, by which its guests pull.
const IMAGE_NAME: &str = "io.kubernetes.cri-o.ImageName";

/// What of a runtime spec matters here.
#[derive(Deserialize, Default)]
struct Spec {
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

/// Creates a container; its stand-in is in the pid file then.
pub(crate) fn create(
    settings: &Settings,
    id: &str,
    bundle: &Path,
    pid_file: &Path,
    console_socket: Option<&Path>,
) -> Result<u8, VerbError> {
    let bundle = std::fs::canonicalize(bundle).map_err(|source| VerbError::File {
        action: "find",
        path: bundle.to_owned(),
        source,
    })?;
    if Record::load(&settings.root, id)?.is_some() {
        return Err(VerbError::Exists(id.to_owned()));
    }
    let rootfs = if settings.pulls_image { vec![image_for_guest(&bundle)?] } else { Vec::new() };
    // Paths of the command line may be relative to where we were.
    let pid_file = std::path::absolute(pid_file).map_err(|source| VerbError::File {
        action: "find",
        path: pid_file.to_owned(),
        source,
    })?;
    enter(&bundle)?;
    let record = Record::new(id, bundle);
    record.save(&settings.root)?;
    let created = create_recorded(settings, record, rootfs, &pid_file, console_socket);
    if created.is_err() {
        // The first error says what is wrong; what cannot be undone now is undone by the daemon's own `delete`.
        let _ = delete::delete(settings, id, true);
    }
    created
}

fn create_recorded(
    settings: &Settings,
    mut record: Record,
    rootfs: Vec<wire::Mount>,
    pid_file: &Path,
    console_socket: Option<&Path>,
) -> Result<u8, VerbError> {
    let (started, log) = shim::start(settings, &record.id, &record.bundle)?;
    leave_address(&record.bundle, &started.address).map_err(|source| VerbError::File {
        action: "write",
        path: record.bundle.join("address"),
        source,
    })?;
    record.address = Some(started.address);
    record.version = started.version;
    record.save(&settings.root)?;
    record.shim = identify(settings, &record)?;
    record.save(&settings.root)?;
    let preparing = |action| move |source: io::Error| VerbError::Prepare { action, source };
    let side = console_socket.map(terminal::open).transpose().map_err(preparing("make a terminal"))?;
    let streams = Streams::given(side.is_some()).map_err(preparing("look at standard input"))?;
    let directory = fifo_directory(&settings.root, &record.id);
    let fifos = Fifos::make(&directory, INIT, streams).map_err(|source| VerbError::File {
        action: "make fifos in",
        path: directory,
        source,
    })?;
    let (report, report_theirs) =
        rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(|error| preparing("make a pipe")(error.into()))?;
    let stand_in = match fork_single_threaded().map_err(preparing("fork"))? {
        Forked::Child => {
            drop(report);
            let work = StandIn { settings, record, rootfs, fifos, side, log, report: report_theirs };
            std::process::exit(work.run().into());
        }
        Forked::Parent(pid) => pid.as_raw_nonzero().get(),
    };
    drop((report_theirs, fifos, side, log));
    record.init_pid = Some(read_report(report)?);
    record.stand_in =
        Some(Process::identify(stand_in).map_err(preparing("identify the process that stands for the container"))?);
    record.save(&settings.root)?;
    durable::replace(pid_file, stand_in.to_string().as_bytes(), 0o644, Durability::Volatile).map_err(|error| {
        VerbError::File { action: "write", path: pid_file.to_owned(), source: io::Error::other(error) }
    })?;
    Ok(0)
}

/// Where CRI-O and the shim's own `delete` look for it. Most shims write it themselves.
fn leave_address(bundle: &Path, address: &str) -> io::Result<()> {
    match File::options().write(true).create_new(true).open(bundle.join("address")) {
        Ok(mut file) => file.write_all(address.as_bytes()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
    }
}

/// The shim's process, to be killed if it hangs.
fn identify(settings: &Settings, record: &Record) -> Result<Option<Process>, VerbError> {
    let mut task = Task::connect(record)?;
    let peer = task.peer();
    let found = |said: Option<i32>| shim::find_process(settings, &record.bundle, said, peer);
    match task.shim_pid() {
        Ok(pid) => Ok(found(i32::try_from(pid).ok())),
        Err(CallError::Refused { .. }) => Ok(found(None)),
        Err(error) => Err(error.into()),
    }
}

fn read_report(report: OwnedFd) -> Result<i32, VerbError> {
    let mut text = String::new();
    File::from(report).take(REPORT_MAX_BYTES).read_to_string(&mut text).map_err(|source| VerbError::Prepare {
        action: "hear from the process that stands for the container",
        source,
    })?;
    match text.split_once(' ') {
        Some(("created", pid)) => Ok(pid.trim().parse().unwrap_or(0)),
        Some(("failed", said)) => Err(VerbError::StandIn(said.to_owned())),
        _ => Err(VerbError::StandIn("the process that stands for the container ended without a word".to_owned())),
    }
}

/// The process that is the container to its monitor.
struct StandIn<'a> {
    settings: &'a Settings,
    record: Record,
    rootfs: Vec<wire::Mount>,
    fifos: Fifos,
    side: Option<OwnedFd>,
    log: OwnedFd,
    report: OwnedFd,
}

impl StandIn<'_> {
    /// Creates the container, then stays until it has ended; its exit code.
    fn run(self) -> u8 {
        let Self { settings, record, rootfs, fifos, side, log, report } = self;
        let mut report = File::from(report);
        let log_file = record.bundle.join(LOG_FILE);
        let begun = begin(side.as_ref()).and_then(|signals| relay::keep_log(log, log_file).map(|()| signals));
        let created = begun.map_err(|source| VerbError::Prepare { action: "stand for the container", source });
        let created = created.and_then(|signals| {
            let config = settings.config.as_ref().map(|path| path.display().to_string());
            let mut task = Task::connect(&record)?;
            let pid = task.create(&record, &fifos.names, side.is_some(), config.as_deref(), rootfs)?;
            Ok((signals, task, pid))
        });
        let (signals, mut task, pid) = match created {
            Ok(created) => created,
            Err(error) => {
                let _ = write!(report, "failed {}", crate::chain(&error));
                return 1;
            }
        };
        let program = Program { record: Arc::new(record), exec_id: String::new() };
        let relay = match Relay::begin(&program, fifos, side, signals) {
            Ok(relay) => relay,
            Err(error) => {
                let _ = write!(report, "failed carry streams: {error}");
                return 1;
            }
        };
        // From here on we outlive who made us; if it is gone already, nobody hears the report.
        let is_free = rustix::process::set_parent_process_death_signal(None).is_ok();
        if !is_free || write!(report, "created {pid}").is_err() {
            return 1;
        }
        drop(report);
        let code = task.wait(None).map_or(UNSEEN, |status| u8::try_from(status).unwrap_or(UNSEEN));
        relay.finish();
        code
    }
}

/// A session of our own, so that nobody's terminal ends us; and until we have reported, an end with who made us.
pub(crate) fn begin(side: Option<&OwnedFd>) -> io::Result<sys::supervise::SignalFd> {
    let signals = relay::take_signals()?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    rustix::process::setsid()?;
    if let Some(side) = side {
        terminal::adopt(side.as_fd())?;
    }
    Ok(signals)
}

/// What kata's agent needs to pull an image: the root is a mount that only its shim understands.
/// Source: kata's `KataVirtualVolume`, CRI-O's use of it.
fn image_for_guest(bundle: &Path) -> Result<wire::Mount, VerbError> {
    let path: PathBuf = bundle.join("config.json");
    let bytes = std::fs::read(&path).map_err(|source| VerbError::File { action: "read", path, source })?;
    let spec: Spec =
        serde_json::from_slice(&bytes).map_err(|source| VerbError::Spec { bundle: bundle.to_owned(), source })?;
    let volume = serde_json::json!({
        "volume_type": "image_guest_pull",
        "source": spec.annotations.get(IMAGE_NAME).map(String::as_str).unwrap_or_default(),
        "fs_type": "overlay_fs",
        "image_pull": { "metadata": spec.annotations },
    });
    let encoded = base64::engine::general_purpose::STANDARD.encode(volume.to_string());
    Ok(wire::Mount {
        r#type: "fuse.nydus-overlayfs".to_owned(),
        options: vec![format!("io.katacontainers.volume={encoded}")],
        ..wire::Mount::default()
    })
}
