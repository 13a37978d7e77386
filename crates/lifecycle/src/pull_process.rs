//! Pulls in a process of their own, so that what they cost counts for the pod: `separate_pull_cgroup`.
//!
//! The daemon runs itself as `crio-pull-image <image>` and moves that process to its cgroup; only then does it say what
//! to do: one line of JSON on standard input, which stays open for as long as the pull is wanted. The process answers
//! with a line of JSON for each look at its progress and one for the result. Credentials never are in arguments or
//! environment. Source: CRI-O, whose process has the same name and cgroup; what they say to each other is ours.

use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use config::{Config, PullCgroup, SourceFile, Sources, Template};
use domain::id::ImageId;
use domain::spec::CgroupParent;
use image_pull::ErrorKind;
use image_pull::auth::RequestAuth;
use image_store::{Store, StoreOptions};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader};
use tokio::process::{Child, Command};

use crate::artifacts::Artifacts;
use crate::blocking;
use crate::node::{Node, RegistryFiles};
use crate::pull_image::{PullFailure, PullImageError, PullOrder, PullPurpose};
use crate::pull_layers::LayersUnderWay;
use crate::pull_progress::{PullCounters, PullProgress};
use crate::puller::{Puller, registry_client};
use crate::storage::store_options;
use crate::trust::Trust;
use crate::undo::chain;

/// What the program is called when it is to pull.
pub const PULL_PROGRAM: &str = "crio-pull-image";
/// Whoever started us, even if the file has been replaced since.
const OWN_PROGRAM: &str = "/proc/self/exe";
/// How often progress is told: as often as people look.
const TELL: Duration = Duration::from_millis(200);
/// Longest line either side reads: a configuration, or the progress of a thousand layers.
const LINE_MAX_BYTES: u64 = 4 << 20;

/// What is to be pulled, and with what.
#[derive(Serialize, Deserialize)]
struct Request {
    image: String,
    namespace: String,
    auth: Option<Auth>,
    auth_file: Option<PathBuf>,
    /// The daemon's configuration as TOML.
    config: String,
    /// The graph driver the daemon's store has, which the configuration need not name.
    driver: String,
    registries_conf: Option<PathBuf>,
    registries_conf_dir: Option<PathBuf>,
}

#[derive(Serialize, Deserialize)]
struct Auth {
    username: String,
    password: String,
    auth: String,
    identity_token: String,
    registry_token: String,
}

/// A line of the process.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Said {
    Progress(PullProgress),
    Result(String),
    Failed { message: String, class: PullFailure, kind: Option<ErrorKind> },
}

impl Node {
    /// The cgroup a pull is to run in, if it is not the daemon's.
    pub(crate) fn pull_cgroup(&self, order: &PullOrder) -> Result<Option<CgroupParent>, PullImageError> {
        if order.purpose == PullPurpose::Daemon {
            return Ok(None);
        }
        let parent = match &self.config.runtime.separate_pull_cgroup {
            PullCgroup::Daemon => return Ok(None),
            PullCgroup::Sandbox => &order.cgroup_parent,
            PullCgroup::Slice(slice) => slice,
        };
        let parsed = CgroupParent::parse(self.cgroups.kind(), parent);
        parsed
            .map(Some)
            .map_err(|source| PullImageError::Cgroup { image: order.image.clone(), source: Box::new(source) })
    }

    /// Pulls in a process below `cgroup`. Dropping the future ends the process.
    pub(crate) async fn pull_in_process(
        &self,
        order: &PullOrder,
        auth_file: Option<PathBuf>,
        cgroup: &CgroupParent,
        counters: &PullCounters,
    ) -> Result<ImageId, PullImageError> {
        let image = || order.image.clone();
        let failed = |reason: String| PullImageError::Process { image: image(), reason };
        let files = &self.puller.registry_files;
        let request = Request {
            image: image(),
            namespace: order.namespace.clone(),
            auth: order.auth.as_ref().map(Auth::of),
            auth_file,
            config: config::template(&self.config, Template::Default),
            driver: self.store.driver().to_owned(),
            registries_conf: files.registries_conf.clone(),
            registries_conf_dir: files.registries_conf_dir.clone(),
        };
        let mut child = start(&order.image).map_err(|error| failed(format!("start {OWN_PROGRAM}: {error}")))?;
        let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).ok_or_else(|| failed("it has no id".into()))?;
        let place =
            self.cgroups.place_pull(cgroup, pid).map_err(|source| PullImageError::Cgroup { image: image(), source })?;
        tracing::debug!(image = order.image, pid, "an image is pulled by a process of its own");
        let result = converse(&mut child, &request, counters).await;
        // Whatever it said, it is not to outlive the pull.
        let _ = child.kill().await;
        place.remove().await;
        match result.map_err(failed)? {
            Said::Result(id) => ImageId::parse(&id).map_err(|_| failed(format!("{id:?} is no image"))),
            Said::Failed { message, class, kind } => Err(PullImageError::InProcess { message, class, kind }),
            Said::Progress(_) => Err(failed("it ended without a word".to_owned())),
        }
    }
}

fn start(image: &str) -> std::io::Result<Child> {
    Command::new(OWN_PROGRAM)
        .arg0(PULL_PROGRAM)
        .arg(image)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
}

/// Says what to do and listens until the result is there, or the process gone.
async fn converse(child: &mut Child, request: &Request, counters: &PullCounters) -> Result<Said, String> {
    let (Some(mut input), Some(output)) = (child.stdin.take(), child.stdout.take()) else {
        return Err("it has no standard input and output".to_owned());
    };
    say(&mut input, request).await.map_err(|error| format!("tell it what to pull: {error}"))?;
    let mut output = BufReader::new(output);
    loop {
        match hear(&mut output).await.map_err(|error| format!("listen to it: {error}"))? {
            Some(Said::Progress(progress)) => counters.tell(progress),
            Some(said) => return Ok(said),
            None => {
                let status = child.wait().await.map_err(|error| format!("wait for it: {error}"))?;
                return Err(format!("it ended without a result, {status}"));
            }
        }
    }
    // `input` is open until here: its end tells the process that nobody wants the image any more.
}

async fn say(output: &mut (impl AsyncWrite + Unpin), what: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(what)?;
    line.push(b'\n');
    output.write_all(&line).await?;
    output.flush().await
}

/// The next line; `None` at the end.
async fn hear<T: for<'a> Deserialize<'a>>(input: &mut BufReader<impl AsyncRead + Unpin>) -> std::io::Result<Option<T>> {
    let mut line = Vec::new();
    if input.take(LINE_MAX_BYTES).read_until(b'\n', &mut line).await? == 0 {
        return Ok(None);
    }
    // The parser's message would quote what may be a secret.
    serde_json::from_slice(&line).map(Some).map_err(|_| std::io::Error::other("a line is not what was agreed on"))
}

impl Auth {
    fn of(auth: &RequestAuth) -> Self {
        Self {
            username: auth.username.clone(),
            password: auth.password.clone(),
            auth: auth.auth.clone(),
            identity_token: auth.identity_token.clone(),
            registry_token: auth.registry_token.clone(),
        }
    }

    fn into_request(self) -> RequestAuth {
        RequestAuth {
            username: self.username,
            password: self.password,
            auth: self.auth,
            identity_token: self.identity_token,
            registry_token: self.registry_token,
        }
    }
}

/// The life of the process that pulls for a daemon: does what the first line of `input` says, answers on `output`.
///
/// Ends the process when `input` ends. Errors: only those of speaking to the daemon; those of pulling are an answer.
pub async fn pull_for_parent(
    input: impl AsyncRead + Unpin + Send + 'static,
    output: &mut (impl AsyncWrite + Unpin),
) -> std::io::Result<()> {
    let mut input = BufReader::new(input);
    let Some(request) = hear::<Request>(&mut input).await? else { return Ok(()) };
    tokio::spawn(async move {
        let _ = tokio::io::copy(&mut input, &mut tokio::io::sink()).await;
        // Nobody waits any more. What is staged is removed by whoever opens the store next.
        std::process::exit(1);
    });
    let counters = PullCounters::default();
    let mut pulling = std::pin::pin!(pull(request, &counters));
    let mut ticks = tokio::time::interval(TELL);
    loop {
        tokio::select! {
            said = &mut pulling => {
                say(output, &Said::Progress(counters.read())).await?;
                return say(output, &said).await;
            }
            _ = ticks.tick() => say(output, &Said::Progress(counters.read())).await?,
        }
    }
}

async fn pull(request: Request, counters: &PullCounters) -> Said {
    let other = |message| Said::Failed { message, class: PullFailure::Other, kind: None };
    let files =
        RegistryFiles { registries_conf: request.registries_conf, registries_conf_dir: request.registries_conf_dir };
    let puller = match open(&request.config, request.driver, files).await {
        Ok(puller) => puller,
        Err(message) => return other(message),
    };
    let auth = request.auth.map(Auth::into_request);
    let pulled = async {
        let credentials = puller.credentials(auth.as_ref(), request.auth_file)?;
        puller.pull(&request.image, &request.namespace, &credentials, counters).await
    };
    match pulled.await {
        Ok(id) => Said::Result(id.to_string()),
        Err(error) => Said::Failed { message: chain(&error), class: error.class(), kind: error.kind() },
    }
}

/// Opens what the daemon has open.
async fn open(config: &str, driver: String, files: RegistryFiles) -> Result<Puller, String> {
    let file = SourceFile { path: "the daemon's configuration".into(), bytes: config.as_bytes().to_vec() };
    let sources = Sources { files: vec![file], ..Sources::default() };
    let loaded = config::load(&sources).map_err(|error| chain(&error))?;
    let config: Arc<Config> = Arc::new(loaded.config);
    let registry = registry_client(&config, files.clone()).map_err(|error| chain(&error))?;
    let options = StoreOptions { driver, ..store_options(&config) };
    let store = blocking::run("open store", move || Store::open(options)).await.map_err(|error| chain(&error))?;
    let artifacts = Artifacts::open(&config).map_err(|error| chain(&error))?;
    Ok(Puller {
        trust: Trust::new(&config),
        config,
        store: Arc::new(store),
        artifacts: Arc::new(artifacts),
        registry,
        registry_files: files,
        under_way: LayersUnderWay::default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_request_without_sense_is_answered_and_secrets_stay_secret() {
        let request = Request {
            image: "registry.invalid/a:1".into(),
            namespace: String::new(),
            auth: Some(Auth::of(&RequestAuth { password: "hunter2".into(), ..RequestAuth::default() })),
            auth_file: None,
            config: "[crio]\nroot = 5\n".into(),
            driver: String::new(),
            registries_conf: None,
            registries_conf_dir: None,
        };
        let said = pull(request, &PullCounters::default()).await;
        let text = serde_json::to_string(&said).expect("JSON");
        assert!(matches!(said, Said::Failed { class: PullFailure::Other, .. }) && !text.contains("hunter2"), "{text}");
        let mut broken = BufReader::new(&b"{\"image\": \"hunter2\"}\n"[..]);
        let error = hear::<Request>(&mut broken).await.err().expect("an error");
        assert!(!error.to_string().contains("hunter2"), "{error}");
        let mut nothing = BufReader::new(&b""[..]);
        assert!(hear::<Request>(&mut nothing).await.expect("the end").is_none());
    }
}
