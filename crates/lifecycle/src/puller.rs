//! From a reference to an image of the store, in the daemon or in a process of its own.
//!
//! Steps, and what a restart finds in each gap: layers being unpacked lie in the store's staging area, which is emptied
//! when it is opened; committed layers are whole and are found again by the next pull; the image is recorded last.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::Duration;

use config::Config;
use domain::id::ImageId;
use domain::image::ImageConfig;
use image_pull::auth::RequestAuth;
use image_pull::{Credentials, PartialOptions, Platform, Reference, ResolveError, Resolved, Source};
use image_store::{NewImage, Store, image_id_by_toc};

use crate::artifacts::Artifacts;
use crate::blocking;
use crate::encrypted::stored_manifest;
use crate::node::{Node, RegistryFiles};
use crate::pull_image::{PullImageError, auth_files};
use crate::pull_layers::LayersUnderWay;
use crate::pull_progress::PullCounters;
use crate::trust::{Trust, TrustError};
use crate::undo::chain;

/// How long what a pull that was cut short has fetched waits for the next attempt: a kubelet makes one every five minutes,
/// and a node that was away for a night begins anew.
pub(crate) const LEFTOVERS_KEPT: Duration = Duration::from_secs(6 * 3600);
/// How often that is looked at.
const SWEEP_PERIOD: Duration = Duration::from_secs(3600);

/// Everything a pull needs.
pub(crate) struct Puller {
    pub(crate) config: Arc<Config>,
    pub(crate) store: Arc<Store>,
    pub(crate) artifacts: Arc<Artifacts>,
    pub(crate) registry: image_pull::Client,
    pub(crate) trust: Trust,
    /// Where the client's configuration is, for another client to read it too.
    pub(crate) registry_files: RegistryFiles,
    pub(crate) under_way: LayersUnderWay,
}

impl Puller {
    /// Pulls `image` from the first of the places its name may mean that has it.
    pub(crate) async fn pull(
        &self,
        image: &str,
        namespace: &str,
        credentials: &Credentials,
        counters: &PullCounters,
    ) -> Result<ImageId, PullImageError> {
        let sources = self.sources(image)?;
        let policy = self.trust.policy(image, namespace).await.map_err(|source| untrusted(image, source))?;
        let mut tried = Vec::new();
        for source in &sources {
            match self.pull_source(source, &policy, credentials, counters).await {
                Ok(id) => {
                    tracing::info!(image, image.id = %id, "image is pulled");
                    return Ok(id);
                }
                Err(error) => tried.push(error),
            }
        }
        match tried.len() {
            1 => Err(tried.remove(0)),
            _ => Err(PullImageError::Candidates { image: image.to_owned(), tried }),
        }
    }

    fn sources(&self, image: &str) -> Result<Vec<Source>, PullImageError> {
        let wrong = |source| PullImageError::Reference { image: image.to_owned(), source };
        let name = image.strip_prefix(&self.config.image.default_transport).unwrap_or(image);
        match Source::parse(name) {
            Ok(Source::Registry(_)) => {
                let candidates = self.registry.candidates(name).map_err(|error| wrong(Box::new(error)))?;
                Ok(candidates.into_iter().map(Source::Registry).collect())
            }
            Ok(local) => Ok(vec![local]),
            Err(error) => Err(wrong(Box::new(error))),
        }
    }

    /// What a request brings, and the files that count besides: `instead` of the configured ones, if given.
    pub(crate) fn credentials(
        &self,
        auth: Option<&RequestAuth>,
        instead: Option<PathBuf>,
    ) -> Result<Credentials, PullImageError> {
        let login = auth.map(RequestAuth::parse).transpose().map_err(PullImageError::Credentials)?.flatten();
        let files = auth_files(self.config.image.global_auth_file.as_ref(), instead);
        Ok(match login {
            Some(login) => Credentials::Request { login, elsewhere: files },
            None => Credentials::Files(files),
        })
    }

    async fn pull_source(
        &self,
        source: &Source,
        policy: &Arc<image_trust::Policy>,
        credentials: &Credentials,
        counters: &PullCounters,
    ) -> Result<ImageId, PullImageError> {
        let name = source.to_string();
        let resolved = self
            .registry
            .resolve_any(source, credentials, &Platform::host())
            .await
            .map_err(|source| PullImageError::Resolve { image: name.clone(), source: Box::new(source) })?;
        let signatures = self
            .trust
            .check_pulled(policy, source, resolved.signature_access(), resolved.manifest_digest())
            .await
            .map_err(|source| untrusted(&name, source))?;
        let resolved = match resolved {
            Resolved::Image(image) => image,
            Resolved::Artifact(artifact) => return self.pull_artifact(&name, artifact, counters).await,
        };
        let keys = self.layer_keys(&name, &resolved).await?;
        let (top, fetched) = self.fetch_layers(&name, &resolved, &keys, counters).await?;
        let manifest = stored_manifest(&name, &resolved, &fetched)?;
        let config = resolved.configuration.complete(&fetched.diff_ids).map_err(|source| {
            let source = ResolveError::Manifest { what: "manifest", digest: resolved.manifest_digest.clone(), source };
            PullImageError::Resolve { image: name.clone(), source: Box::new(source) }
        })?;
        let created = ImageConfig::parse(&config.bytes).ok().and_then(|config| config.created.parse().ok());
        // Nothing ties what a table vouches for to the configuration.
        let id = image_id_by_toc(&fetched.tables).unwrap_or_else(|| config.image_id());
        let new = NewImage {
            id: id.clone(),
            names: resolved.names.iter().map(Reference::to_string).collect(),
            top_layer: top.as_ref().map(|pin| pin.id().clone()),
            manifest: manifest.bytes,
            manifest_digest: manifest.digest,
            index: manifest.index,
            config: config.bytes.to_vec(),
            config_digest: config.digest,
            signatures,
            created,
        };
        let store = Arc::clone(&self.store);
        blocking::run("record image", move || {
            // Held until the image names its layers: until then nothing else keeps them.
            let _top = top;
            store.put_image(new)
        })
        .await
        .map_err(|source| PullImageError::Put { image: name, source: Box::new(source) })?;
        Ok(id)
    }
}

pub(crate) fn untrusted(image: &str, source: TrustError) -> PullImageError {
    PullImageError::Trust { image: image.to_owned(), source: Box::new(source) }
}

/// Removes what pulls that were cut short have left and nobody came back for, for as long as the node exists.
pub(crate) async fn sweep(node: Weak<Node>) {
    let mut ticks = tokio::time::interval(SWEEP_PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(node) = node.upgrade() else { return };
        let (store, registry) = (Arc::clone(&node.store), node.registry.clone());
        drop(node);
        blocking::run("remove what pulls have left", move || {
            registry.sweep_partials(LEFTOVERS_KEPT);
            match store.sweep_pending(LEFTOVERS_KEPT) {
                Ok(0) => {}
                Ok(count) => tracing::info!(count, "layers that no image came to use are removed"),
                Err(error) => tracing::warn!(error = %chain(&error), "layers that no image came to use stay"),
            }
        })
        .await;
    }
}

/// Where the beginnings of layers lie that come slowly.
fn partial_directory(config: &Config) -> PathBuf {
    /// What other tools make of it: nothing.
    const NAME: &str = "crio-partial-layers";
    config.image.big_files_temporary_dir.as_ref().unwrap_or(&config.root.root).join(NAME)
}

/// The registry client the configuration asks for.
pub(crate) fn registry_client(
    config: &Config,
    files: RegistryFiles,
) -> Result<image_pull::Client, image_pull::registries::RegistriesError> {
    let mut registries = image_pull::registries::RegistriesOptions {
        short_name_mode: Some(match config.image.short_name_mode {
            config::ShortNameMode::Enforcing => image_pull::registries::ShortNameMode::Enforcing,
            config::ShortNameMode::Disabled => image_pull::registries::ShortNameMode::Disabled,
        }),
        ..Default::default()
    };
    if let Some(file) = files.registries_conf {
        registries.main_files = vec![file];
    }
    if let Some(directory) = files.registries_conf_dir {
        registries.drop_in_directory = Some(directory);
    }
    let mut timeouts = image_pull::Timeouts::default();
    if !config.image.pull_progress_timeout.is_zero() {
        timeouts.progress = Some(config.image.pull_progress_timeout);
    }
    let options = image_pull::ClientOptions {
        registries,
        timeouts,
        proxy: image_pull::ProxyOptions::from_environment(),
        partial: Some(PartialOptions::at(partial_directory(config))),
        ..Default::default()
    };
    let (client, warnings) = image_pull::Client::new(&options)?;
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    Ok(client)
}
