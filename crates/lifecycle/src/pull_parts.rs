//! A layer made of content that other layers have and of the bytes that are missing (`enable_partial_images`).
//!
//! Whatever does not fit, the layer comes whole, and its digests decide.

use std::ops::Range;
use std::sync::Arc;

use domain::digest::Digest;
use image_pull::{BlobError, BlobStream, LayerBlob, ResolvedImage};
use image_store::{
    ByteRange, ChunkedLayer, ChunkedOptions, StageChunkedError, StageOptions, StagedChunked, TocError, TocPosition,
};
use thiserror::Error;

use crate::blocking;
use crate::pull_layers::pump;
use crate::pull_progress::LayerCounter;
use crate::puller::Puller;
use crate::undo::chain;

/// Why a layer was not made of parts.
#[derive(Debug, Error)]
enum PartsError {
    #[error("fetch parts of the layer")]
    Blob(#[source] BlobError),
    #[error(transparent)]
    Stage(StageChunkedError),
    #[error("the parts make a layer with diff id {0}")]
    DiffId(Digest),
}

impl From<TocError> for PartsError {
    fn from(error: TocError) -> Self {
        Self::Stage(error.into())
    }
}

impl PartsError {
    /// Whether the layer's maker is to blame, so that an operator should hear of it.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Blob(_) => false,
            Self::Stage(error) => error.is_refusal(),
            Self::DiffId(_) => true,
        }
    }
}

fn range(range: ByteRange) -> Range<u64> {
    range.start..range.end()
}

/// Digest of the table that may vouch for a layer by itself, where the operator lets it.
pub(crate) fn vouching_table(pull: config::PullOptions, layer: &LayerBlob) -> Option<Digest> {
    let is_allowed = pull.enable_partial_images && pull.allow_unpredictable;
    let position = is_allowed.then(|| TocPosition::find(&layer.annotations, layer.size).ok().flatten()).flatten()?;
    Some(position.digest)
}

impl Puller {
    /// Makes a layer of parts; `None` where it has to come whole.
    pub(crate) async fn stage_parts(
        &self,
        image: &ResolvedImage,
        layer: &LayerBlob,
        diff_id: &Digest,
        counter: &LayerCounter,
    ) -> Option<StagedChunked> {
        if !self.config.storage.pull.enable_partial_images {
            return None;
        }
        match self.make_of_parts(image, layer, diff_id, counter).await {
            Ok(staged) => staged,
            Err(error) if error.is_refusal() => {
                tracing::warn!(layer = %layer.digest, error = %chain(&error), "a layer cannot be made of parts and is fetched whole");
                None
            }
            Err(error) => {
                tracing::info!(layer = %layer.digest, error = %chain(&error), "a layer is fetched whole");
                None
            }
        }
    }

    async fn make_of_parts(
        &self,
        image: &ResolvedImage,
        layer: &LayerBlob,
        diff_id: &Digest,
        counter: &LayerCounter,
    ) -> Result<Option<StagedChunked>, PartsError> {
        let Some(position) = TocPosition::find(&layer.annotations, layer.size)? else { return Ok(None) };
        let pull = self.config.storage.pull;
        let options =
            ChunkedOptions { use_hard_links: pull.use_hard_links, allow_unpredictable: pull.allow_unpredictable };
        // Not worth asking for the table.
        if position.split.is_none() && !options.allow_unpredictable {
            return Ok(None);
        }
        let (table, split) = self.fetch_tables(image, layer, &position, counter).await?;
        let store = Arc::clone(&self.store);
        let plan = blocking::run_apart("plan layer", move || {
            let chunked = ChunkedLayer::parse(&position, &table, split).map_err(StageChunkedError::from)?;
            store.plan_chunked(chunked, options)
        })
        .await
        .map_err(PartsError::Stage)?;
        let (size, here) = plan.sizes();
        let missing = plan.missing_bytes();
        tracing::debug!(layer = %layer.digest, size, here, missing, ranges = plan.ranges().len(), "layer is made of parts");
        let ranges = plan.ranges().iter().copied().map(range).collect();
        let blob = self.registry.open_ranges(image, layer, ranges).await.map_err(PartsError::Blob)?;
        let store = Arc::clone(&self.store);
        let make = move |chunks| store.stage_chunked(plan, chunks, StageOptions::default());
        let (staged, fetched) = pump("make layer", blob, counter, make).await;
        fetched.map_err(PartsError::Blob)?;
        let staged = staged.map_err(PartsError::Stage)?;
        match &staged.contents().diff {
            Some((actual, _)) if actual != diff_id => Err(PartsError::DiffId(actual.clone())),
            _ => Ok(Some(staged)),
        }
    }

    /// The table of contents and the tar-split stream, as they travel.
    async fn fetch_tables(
        &self,
        image: &ResolvedImage,
        layer: &LayerBlob,
        position: &TocPosition,
        counter: &LayerCounter,
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), PartsError> {
        let mut wanted: Vec<ByteRange> = position.split.into_iter().chain([position.table]).collect();
        wanted.sort_by_key(|part| part.start);
        let ranges = wanted.iter().copied().map(range).collect();
        let blob = self.registry.open_ranges(image, layer, ranges).await.map_err(PartsError::Blob)?;
        counter.fetches(blob.progress());
        let mut bytes = read_all(blob, counter).await.map_err(PartsError::Blob)?;
        let Some(split) = position.split else { return Ok((bytes, None)) };
        let first = usize::try_from(wanted[0].length).unwrap_or(usize::MAX).min(bytes.len());
        let second = bytes.split_off(first);
        Ok(if wanted[0] == split { (second, Some(bytes)) } else { (bytes, Some(second)) })
    }
}

/// Everything a stream yields; its length is bounded by the ranges asked for.
async fn read_all(mut blob: BlobStream, counter: &LayerCounter) -> Result<Vec<u8>, BlobError> {
    let mut bytes = Vec::new();
    while let Some(chunk) = blob.next_chunk().await {
        let chunk = chunk?;
        counter.arrived(chunk.len());
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}
