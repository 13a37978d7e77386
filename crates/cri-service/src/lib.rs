//! The Container Runtime Interface's services: requests checked and translated, answers made of what the node says.
//!
//! Promises: every RPC of `runtime.v1` answers; what is not built yet answers `Unimplemented` with the call's name.
//! Decides nothing itself. The only crate that names a gRPC status code: one exhaustive match an operation, below its
//! RPC. Must not know: disk, kernel, how anything is done.
//! Begin reading at [`RuntimeApi`] and [`ImageApi`]; each RPC has a file of its name. [`ProgressApi`] is beyond the CRI.
#![forbid(unsafe_code)]

mod attach;
mod container_stats;
mod container_status;
mod create_container;
mod deadline;
mod exec;
mod exec_sync;
pub mod from_cri;
mod get_container_events;
mod image_fs_info;
mod image_service;
mod image_status;
mod list_container_stats;
mod list_containers;
mod list_images;
mod list_metric_descriptors;
mod list_pod_sandbox;
mod list_pod_sandbox_metrics;
mod list_pod_sandbox_stats;
mod pod_sandbox_stats;
mod pod_sandbox_status;
mod port_forward;
mod progress_service;
mod pull_image;
mod refusal;
mod remove_container;
mod remove_image;
mod remove_pod_sandbox;
mod reopen_container_log;
mod run_pod_sandbox;
mod runtime_service;
mod start_container;
mod status;
mod status_info;
mod stop_container;
mod stop_pod_sandbox;
mod to_cri;
mod update_container_resources;
mod update_pod_sandbox_resources;

pub use image_service::ImageApi;
pub use progress_service::ProgressApi;
pub use runtime_service::RuntimeApi;

/// Largest number of entries in one message of a streaming list. Source: CRI-O.
const STREAM_CHUNK: usize = 3000;

/// Entries as messages of at most [`STREAM_CHUNK`] each; no entries, no message.
fn chunked<T: Send + 'static, M: Send + 'static>(
    entries: Vec<T>,
    message: impl Fn(Vec<T>) -> M,
) -> futures_util::stream::BoxStream<'static, Result<M, tonic::Status>> {
    let mut messages = Vec::new();
    let mut entries = entries.into_iter().peekable();
    while entries.peek().is_some() {
        messages.push(Ok(message(entries.by_ref().take(STREAM_CHUNK).collect())));
    }
    Box::pin(futures_util::stream::iter(messages))
}

#[cfg(test)]
mod tests {
    use futures_util::StreamExt;

    use super::*;

    #[tokio::test]
    async fn long_lists_come_in_chunks_and_empty_ones_not_at_all() {
        for (entries, sizes) in [(0, vec![]), (1, vec![1]), (3000, vec![3000]), (3001, vec![3000, 1])] {
            let messages: Vec<usize> = chunked(vec![(); entries], |chunk| chunk.len())
                .map(|message| message.expect("is fine"))
                .collect()
                .await;
            assert_eq!(messages, sizes);
        }
    }
}
