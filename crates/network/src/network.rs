//! The networks of this node: configuration, readiness, and the state that operations share.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak};
use std::time::Duration;

use serde_json::Value;
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::cache::Cache;
use crate::config::NetworkList;
use crate::directory::{Loader, Networks, chain};
use crate::plugin::{Environment, PluginError, PluginPath, Verb};
use crate::version::Version;

/// How long all plugins of a chain together may take to answer STATUS. The kubelet asks for readiness every few
/// seconds, so a plugin that needs longer is not ready.
const STATUS_LIMIT: Duration = Duration::from_secs(10);

/// Where configuration, plugins and cache are.
#[derive(Debug, Clone)]
pub struct NetworkOptions {
    /// `network_dir`; created when missing.
    pub conf_dir: PathBuf,
    /// `plugin_dirs`, searched in order.
    pub plugin_dirs: Vec<PathBuf>,
    /// The program that plays the plugins no directory has.
    pub embedded_plugins: Option<PathBuf>,
    /// `cni_default_network`; `None`: the first usable network of `conf_dir`.
    pub default_network: Option<String>,
    /// libcni's cache of attachments.
    pub cache_dir: PathBuf,
    /// `cni_status_grace_period`: a failing STATUS is told only once it has lasted this long. Zero: at once.
    pub status_grace: Duration,
}

impl Default for NetworkOptions {
    /// CRI-O's defaults.
    fn default() -> Self {
        Self {
            conf_dir: "/etc/cni/net.d".into(),
            plugin_dirs: vec!["/opt/cni/bin".into()],
            embedded_plugins: None,
            default_network: None,
            cache_dir: "/var/lib/cni/results".into(),
            status_grace: Duration::ZERO,
        }
    }
}

/// Why sandboxes cannot be attached now. The text goes into the `NetworkReady` condition.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct NotReady(pub(crate) String);

impl NotReady {
    /// CRI-O's words, and after them what of the directory is no use.
    pub(crate) fn no_configuration(dir: &Path, skipped: &[String]) -> Self {
        let mut text = format!("no CNI configuration file in {}. Has your network provider started?", dir.display());
        for file in skipped {
            text.push_str(" Skipped ");
            text.push_str(file);
        }
        Self(text)
    }
}

/// What is known about readiness.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Not looked yet.
    Unknown,
    Ready,
    /// Ready, but the last looks failed, for less than the grace period.
    Failing {
        since: Instant,
        why: NotReady,
    },
    NotReady(NotReady),
}

impl Readiness {
    /// Pure: what follows from a look at `now`.
    fn after(self, look: Result<(), NotReady>, now: Instant, grace: Duration) -> Self {
        match (self, look) {
            (_, Ok(())) => Self::Ready,
            (Self::Ready, Err(why)) if !grace.is_zero() => Self::Failing { since: now, why },
            (Self::Failing { since, .. }, Err(why)) if now.duration_since(since) < grace => {
                Self::Failing { since, why }
            }
            (Self::Unknown | Self::Ready | Self::Failing { .. } | Self::NotReady(_), Err(why)) => Self::NotReady(why),
        }
    }
}

/// The networks of this node and what is attached to them. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Network {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) options: NetworkOptions,
    pub(crate) plugins: PluginPath,
    pub(crate) cache: Cache,
    /// Pairs of the daemon's own `CNI_ARGS`, for every call.
    pub(crate) own_args: Vec<(String, String)>,
    networks: RwLock<Arc<Networks>>,
    loader: tokio::sync::Mutex<Loader>,
    readiness: watch::Sender<Readiness>,
    /// One operation a sandbox name at a time.
    turns: Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>,
    /// Ids of sandboxes added by this process, from before the first plugin call until removal: never garbage.
    live: Mutex<HashSet<String>>,
    /// Held while plugins collect garbage: an ADD that began meanwhile would not be on their list.
    pub(crate) collecting: tokio::sync::Mutex<()>,
}

/// Stops watching when dropped.
#[derive(Debug)]
pub struct Watch(pub(crate) JoinHandle<()>);

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Network {
    /// Reads nothing yet: [`Network::load`] or [`Network::spawn_watch`] does.
    #[must_use]
    pub fn new(options: NetworkOptions) -> Self {
        let own_args = std::env::var("CNI_ARGS").map_or_else(|_| Vec::new(), |text| parse_args(&text));
        Self {
            shared: Arc::new(Shared {
                plugins: PluginPath::new(options.plugin_dirs.clone(), options.embedded_plugins.clone()),
                cache: Cache::new(options.cache_dir.clone()),
                own_args,
                networks: RwLock::default(),
                loader: tokio::sync::Mutex::default(),
                readiness: watch::channel(Readiness::Unknown).0,
                turns: Mutex::default(),
                live: Mutex::default(),
                collecting: tokio::sync::Mutex::default(),
                options,
            }),
        }
    }

    /// Reads the configuration directory, asks plugins not yet known for their versions, and looks whether the
    /// default network is ready. Unusable files are logged and skipped.
    pub async fn load(&self) {
        let shared = &self.shared;
        {
            let mut loader = shared.loader.lock().await;
            let networks = Arc::new(loader.load(&shared.options.conf_dir, &shared.plugins).await);
            let mut slot = shared.networks.write().unwrap_or_else(PoisonError::into_inner);
            let name = |networks: &Networks| self.default_of(networks).map(|list| list.name.clone());
            if name(&networks) != name(&slot) {
                tracing::info!(network = name(&networks).unwrap_or_default(), "default CNI network changed");
            }
            *slot = networks;
        }
        self.look().await;
    }

    fn default_of<'a>(&self, networks: &'a Networks) -> Option<&'a Arc<NetworkList>> {
        match &self.shared.options.default_network {
            Some(name) => networks.find(name),
            None => networks.first(),
        }
    }

    pub(crate) fn networks(&self) -> Arc<Networks> {
        self.shared.networks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn default_list(&self) -> Result<Arc<NetworkList>, NotReady> {
        let networks = self.networks();
        let list = self.default_of(&networks).cloned();
        list.ok_or_else(|| NotReady::no_configuration(&self.shared.options.conf_dir, networks.skipped()))
    }

    /// Name of the default network, when there is one.
    #[must_use]
    pub fn default_network(&self) -> Option<String> {
        self.default_list().ok().map(|list| list.name.clone())
    }

    /// Whether sandboxes can be attached.
    ///
    /// Without a grace period this asks now, which costs nothing before CNI 1.1.0 and a call of each plugin since;
    /// with one it tells what the watch found last.
    pub async fn status(&self) -> Result<(), NotReady> {
        let known = self.shared.readiness.borrow().clone();
        let now = if self.shared.options.status_grace.is_zero() || known == Readiness::Unknown {
            self.look().await
        } else {
            known
        };
        match now {
            Readiness::Ready | Readiness::Failing { .. } => Ok(()),
            Readiness::NotReady(why) => Err(why),
            Readiness::Unknown => Err(NotReady::no_configuration(&self.shared.options.conf_dir, &[])),
        }
    }

    /// Returns as soon as sandboxes can be attached; at once when the last look found so. After `limit`, why not.
    ///
    /// Rests on the watch: without one running nothing changes.
    pub async fn wait_ready(&self, limit: Duration) -> Result<(), NotReady> {
        let mut readiness = self.shared.readiness.subscribe();
        let ready = readiness.wait_for(|now| matches!(now, Readiness::Ready | Readiness::Failing { .. }));
        if timeout(limit, ready).await.is_ok() {
            return Ok(());
        }
        match &*self.shared.readiness.borrow() {
            Readiness::NotReady(why) => Err(why.clone()),
            Readiness::Ready | Readiness::Failing { .. } => Ok(()),
            Readiness::Unknown => Err(NotReady::no_configuration(&self.shared.options.conf_dir, &[])),
        }
    }

    /// Looks, remembers and returns what follows.
    pub(crate) async fn look(&self) -> Readiness {
        let look = self.ask_status().await;
        let grace = self.shared.options.status_grace;
        let mut after = Readiness::Unknown;
        self.shared.readiness.send_if_modified(|readiness| {
            after = readiness.clone().after(look, Instant::now(), grace);
            let changed = *readiness != after;
            *readiness = after.clone();
            changed
        });
        after
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Readiness> {
        self.shared.readiness.subscribe()
    }

    async fn ask_status(&self) -> Result<(), NotReady> {
        let list = self.default_list()?;
        if list.version < Version::CURRENT {
            return Ok(());
        }
        let deadline = Instant::now() + STATUS_LIMIT;
        let outcome = self.call_each(&list, Verb::Status, &[], deadline).await;
        outcome.map_err(|(_, error)| NotReady(chain(&error)))
    }

    /// A verb without an attachment, plugin by plugin until one fails; `extra` goes into each configuration.
    pub(crate) async fn call_each(
        &self,
        list: &NetworkList,
        verb: Verb,
        extra: &[(&str, Value)],
        deadline: Instant,
    ) -> Result<(), (String, PluginError)> {
        for plugin in &list.plugins {
            let mut body = plugin.body.clone();
            body.insert("name".into(), list.name.as_str().into());
            body.insert("cniVersion".into(), list.version.to_string().into());
            body.extend(extra.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
            let input = Value::Object(body).to_string();
            let environment = Environment::default();
            let call = self.shared.plugins.call(&plugin.kind, verb, &environment, input.as_bytes(), deadline);
            call.await.map_err(|error| (plugin.kind.clone(), error))?;
        }
        Ok(())
    }

    /// The lock of a sandbox name. It lives as long as somebody holds or awaits it.
    pub(crate) fn turn(&self, key: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = lock(&self.shared.turns);
        if let Some(turn) = turns.get(key).and_then(Weak::upgrade) {
            return turn;
        }
        turns.retain(|_, turn| turn.strong_count() > 0);
        let turn = Arc::new(tokio::sync::Mutex::default());
        turns.insert(key.to_owned(), Arc::downgrade(&turn));
        turn
    }

    pub(crate) fn live(&self) -> MutexGuard<'_, HashSet<String>> {
        lock(&self.shared.live)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded is whole between statements, so a panic elsewhere does not spoil it.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// `A=1;B=2`; what is not a pair is left out.
fn parse_args(text: &str) -> Vec<(String, String)> {
    let pairs = text.split(';').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_arguments() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(parse_args("A=1;junk;B=x=y;"), [pair("A", "1"), pair("B", "x=y")]);
        assert_eq!(parse_args(""), []);
    }

    #[tokio::test]
    async fn readiness_follows_looks_and_grace() {
        let start = Instant::now();
        let why = || NotReady("down".to_owned());
        let at = |seconds| start + Duration::from_secs(seconds);
        /// Grace, looks as (second, ok), and whether the last state is told as ready.
        type Case = (u64, &'static [(u64, bool)], bool);
        let cases: &[Case] = &[
            (0, &[(0, false)], false),
            (0, &[(0, true)], true),
            (0, &[(0, true), (1, false)], false),
            (0, &[(0, true), (1, false), (2, true)], true),
            (9, &[(0, false)], false),
            (9, &[(0, true), (1, false)], true),
            (9, &[(0, true), (1, false), (9, false)], true),
            (9, &[(0, true), (1, false), (10, false)], false),
            (9, &[(0, true), (1, false), (5, true), (6, false), (14, false)], true),
            (9, &[(0, true), (1, false), (10, false), (11, true)], true),
        ];
        for (grace, looks, expected) in cases {
            let mut state = Readiness::Unknown;
            for (second, ok) in *looks {
                let look = if *ok { Ok(()) } else { Err(why()) };
                state = state.after(look, at(*second), Duration::from_secs(*grace));
            }
            assert_eq!(!matches!(state, Readiness::NotReady(_)), *expected, "{grace} {looks:?}: {state:?}");
        }
    }
}
