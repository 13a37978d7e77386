//! The daemon's life: configuration, node, socket, signals, end.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use config::cli::{Invocation, LogFormat};
use config::{Config, Loaded, Sources, ThisHost};
use cri_api::beyond::progress_service_server::ProgressServiceServer;
use cri_api::v1::image_service_server::ImageServiceServer;
use cri_api::v1::runtime_service_server::RuntimeServiceServer;
use cri_service::{ImageApi, ProgressApi, RuntimeApi};
use lifecycle::{Node, RegistryFiles, Wipe};
use streaming::Streaming;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tonic::service::Routes;

use crate::listen::listen;
use crate::sessions::{self, Sessions};
use crate::side_door::SideDoor;
use crate::{notify, serve, verbs, version_files};

type Done = Result<(), Box<dyn Error>>;

/// Two workers carry hundreds of pods: everything that blocks has threads of its own.
const WORKERS: usize = 2;
/// Threads that may block at once: layers of several pulls, records, mounts. More would only queue at the disk.
const BLOCKING_MAX: usize = 32;
/// Idle blocking threads end soon; each keeps a stack.
const BLOCKING_KEEP: Duration = Duration::from_secs(3);
/// Stacks of the daemon's threads; the deepest is the unpacking of layers, with its buffers on the heap.
const STACK_BYTES: usize = 1 << 20;
/// Allocator arenas, see [`sys::memory::limit_arenas`].
const ARENAS: u32 = 2;
/// How long answers under way may take once the daemon is told to end. Operations go on in the kernel, not in us.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(2);

/// Runs until told to end.
pub(crate) fn run(invocation: Invocation) -> Done {
    sys::memory::limit_arenas(ARENAS);
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
    let loaded = verbs::load(&invocation)?;
    let logs = start_logs(&invocation, &loaded.config)?;
    for flag in &invocation.used {
        tracing::info!("FLAG: --{}={:?}", flag.name, flag.value);
    }
    tracing::info!("starting crio {}", verbs::version_text().lines().next().unwrap_or_default());
    for warning in &loaded.warnings {
        tracing::warn!("{warning}");
    }
    tracing::debug!("configuration: {}", config::template(&loaded.config, config::Template::Default));
    let Loaded { config, .. } = loaded;
    let checked = config.check_host(&ThisHost::new(std::env::var_os("PATH")))?;
    for warning in &checked.warnings {
        tracing::warn!("{warning}");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING_MAX)
        .thread_keep_alive(BLOCKING_KEEP)
        .thread_stack_size(STACK_BYTES)
        .enable_all()
        .build()?;
    let result = runtime.block_on(serve(&invocation, checked.config, &logs));
    runtime.shutdown_timeout(SHUTDOWN_LIMIT);
    if let Err(error) = &result {
        tracing::error!(error = %telemetry::chain(&**error), "the daemon cannot go on");
    }
    result
}

pub(crate) fn start_logs(invocation: &Invocation, config: &Config) -> Result<telemetry::Handle, Box<dyn Error>> {
    let settings = telemetry::Settings {
        level: config.runtime.log_level.as_str().parse()?,
        format: match invocation.options.log_format {
            LogFormat::Text => telemetry::Format::Text,
            LogFormat::Json => telemetry::Format::Json,
        },
        destination: match &invocation.options.log {
            Some(path) => telemetry::Destination::File(path.clone()),
            None => telemetry::Destination::Stderr,
        },
        filter: config.runtime.log_filter.clone(),
    };
    Ok(telemetry::init(&settings)?)
}

async fn serve(invocation: &Invocation, mut config: Config, logs: &telemetry::Handle) -> Done {
    // Bound first, so that a second daemon on the same socket stops before it touches the store.
    let listener = listen(&config.api.listen)?;
    let streaming_options = sessions::options(&config)?;
    let files = RegistryFiles {
        registries_conf: invocation.options.registries_conf.clone(),
        registries_conf_dir: invocation.options.registries_conf_dir.clone(),
    };
    let (versions, clean_shutdown) = (VersionFiles::of(&config), config.root.clean_shutdown_file.clone());
    let wipe = versions.wipe(&config);
    let (receive_max, send_max) = (bytes(config.api.grpc_max_recv_msg_size), bytes(config.api.grpc_max_send_msg_size));
    let socket = config.api.listen.clone();
    let node = Node::open(config.clone(), files).await?;
    if let Some(what) = wipe {
        node.wipe(what).await;
    }
    let backend = Arc::new(Sessions(Arc::clone(&node)));
    let (streaming, streaming_server) = Streaming::bind(&streaming_options, backend).await?;
    version_files::write(versions.volatile.as_deref())?;
    version_files::write(versions.persistent.as_deref())?;
    mark_running(clean_shutdown.as_deref())?;
    let mut signals = Signals::new()?;
    let runtime = RuntimeServiceServer::new(RuntimeApi::new(Arc::clone(&node), Arc::clone(&streaming)))
        .max_decoding_message_size(receive_max)
        .max_encoding_message_size(send_max);
    let images = ImageServiceServer::new(ImageApi::new(Arc::clone(&node)))
        .max_decoding_message_size(receive_max)
        .max_encoding_message_size(send_max);
    let progress = ProgressServiceServer::new(ProgressApi::new(Arc::clone(&node)));
    let routes = Routes::new(runtime).add_service(images).add_service(progress).prepare();
    let side_door = SideDoor::new(Arc::clone(&node), invocation.options.enable_profile_unix_socket);
    let serving = tokio::spawn(serve::accept(listener, routes, side_door));
    let streaming_sessions = tokio::spawn(streaming_server.run());
    tracing::info!(socket = %socket.display(), streaming = streaming.base_url(), "serving");
    notify::notify("READY=1");
    let watchdog = tokio::spawn(watch_dog(Arc::clone(&node)));
    loop {
        match signals.next().await {
            Received::End => break,
            Received::Reload => reload(invocation, &mut config, &node, logs).await,
            Received::Trim => sys::memory::trim(),
            Received::Report => tracing::info!(
                sandboxes = node.sandboxes().len(),
                containers = node.containers().len(),
                tasks = tokio::runtime::Handle::current().metrics().num_alive_tasks(),
                "asked for a report by SIGUSR1"
            ),
        }
    }
    tracing::info!("ending; containers go on running");
    watchdog.abort();
    serving.abort();
    streaming_sessions.abort();
    let _ = std::fs::remove_file(&socket);
    mark_clean(clean_shutdown.as_deref(), &config.root.root)
}

fn bytes(count: config::ByteCount) -> usize {
    usize::try_from(count.bytes()).unwrap_or(usize::MAX)
}

struct VersionFiles {
    volatile: Option<PathBuf>,
    persistent: Option<PathBuf>,
}

impl VersionFiles {
    fn of(config: &Config) -> Self {
        Self { volatile: config.root.version_file.clone(), persistent: config.root.version_file_persist.clone() }
    }

    /// What an earlier boot or version left and is to go. Another version takes images along. Source: CRI-O.
    fn wipe(&self, config: &Config) -> Option<Wipe> {
        if !config.root.internal_wipe {
            None
        } else if version_files::is_outdated(self.persistent.as_deref()) {
            Some(Wipe::SandboxesAndImages)
        } else {
            version_files::is_outdated(self.volatile.as_deref()).then_some(Wipe::Sandboxes)
        }
    }
}

/// As long as the marker is missing and its sibling there, the node did not shut down cleanly. Source: CRI-O.
fn mark_running(marker: Option<&Path>) -> Done {
    let Some(marker) = marker else { return Ok(()) };
    if let Some(parent) = marker.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut supported = marker.as_os_str().to_owned();
    supported.push(".supported");
    durable::replace(Path::new(&supported), b"", 0o644, durable::Durability::Durable)?;
    match std::fs::remove_file(marker) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
        _ => Ok(()),
    }
}

fn mark_clean(marker: Option<&Path>, root: &Path) -> Done {
    let Some(marker) = marker else { return Ok(()) };
    let root = std::fs::File::open(root)?;
    rustix::fs::syncfs(&root)?;
    durable::replace(marker, b"", 0o644, durable::Durability::Durable)?;
    Ok(())
}

enum Received {
    End,
    Reload,
    Report,
    Trim,
}

struct Signals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
    user1: Signal,
    user2: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hang_up: signal(SignalKind::hangup())?,
            user1: signal(SignalKind::user_defined1())?,
            user2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> Received {
        tokio::select! {
            _ = self.interrupt.recv() => Received::End,
            _ = self.terminate.recv() => Received::End,
            _ = self.hang_up.recv() => Received::Reload,
            _ = self.user1.recv() => Received::Report,
            _ = self.user2.recv() => Received::Trim,
        }
    }
}

/// SIGHUP: the level and filter of logs, the AppArmor profile, pinned images, directories of CDI devices and
/// registries.conf take effect
/// at once; other changes are named. `running` takes over what took effect, so that the next reload can take it back.
async fn reload(invocation: &Invocation, running: &mut Config, node: &Node, logs: &telemetry::Handle) {
    let result = Sources::read(&invocation.locations)
        .map_err(|error| telemetry::chain(&error).to_string())
        .and_then(|sources| config::reload(&sources, &*running).map_err(|error| telemetry::chain(&error).to_string()));
    let reloaded = match result {
        Ok(reloaded) => reloaded,
        Err(error) => return tracing::error!(error, "reloading the configuration failed, the old one stays"),
    };
    for problem in &reloaded.problems {
        tracing::error!("{problem}");
    }
    for change in &reloaded.changes {
        let is_set = match change.key.rsplit('.').next() {
            Some("log_level") => change.value.parse().map(|level| logs.set_level(level)).is_ok(),
            Some("log_filter") => logs.set_filter(&change.value).is_ok(),
            Some("pinned_images") => {
                node.pin_images(reloaded.config.image.pinned_images.clone());
                true
            }
            Some("cdi_spec_dirs") => {
                node.follow_cdi(reloaded.config.runtime.cdi_spec_dirs.clone());
                true
            }
            Some("pause_image_auth_file") => match node.reload_pause_image_auth_file(&change.value) {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!("unable to reload configuration: {error}");
                    continue;
                }
            },
            Some("apparmor_profile") => match node.reload_apparmor(&change.value).await {
                Ok(()) => true,
                Err(error) => {
                    let error = telemetry::chain(&error);
                    tracing::error!(%error, value = change.value, "changing apparmor_profile failed, the old one stays");
                    continue;
                }
            },
            _ => false,
        };
        if is_set {
            config::adopt(running, &reloaded.config, change);
            tracing::info!("Set config {} to {:?}", change.key, change.value);
        } else {
            tracing::warn!(key = change.key, value = change.value, "this change takes effect at the next start");
        }
    }
    node.reload_registries();
}

/// Tells the service manager that the daemon is alive, as long as it can say how the node is.
async fn watch_dog(node: Arc<Node>) {
    let Some(period) = notify::watchdog_period() else { return };
    let mut ticks = tokio::time::interval(period);
    let mut was_network_ready = false;
    loop {
        ticks.tick().await;
        let is_network_ready = node.status().await.network_problem.is_none();
        was_network_ready |= is_network_ready;
        // A network that was never there is no reason to start the daemon anew.
        if is_network_ready || !was_network_ready {
            notify::notify("WATCHDOG=1");
        }
    }
}
