//! RemoveContainer: stopped if need be, then nothing of it is left.
//!
//! The store's record goes last, so a restart that finds a record finds everything it needs to go on removing.

use std::sync::Arc;

use domain::id::ContainerId;
use image_store::RemoveContainerError as StoreError;
use thiserror::Error;

use crate::blocking;
use crate::container::Container;
use crate::ends::ReleaseError;
use crate::events::EventKind;
use crate::node::Node;
use crate::objects::LookupError;
use crate::stop_container::{Grace, StopContainerError};

/// What a container that still runs gets to end by itself. Source: CRI-O.
const REMOVE_GRACE_SECONDS: i64 = 10;

/// Why a container was not removed.
#[derive(Debug, Error)]
pub enum RemoveContainerError {
    /// The id is empty or ambiguous. A container that does not exist is removed.
    #[error(transparent)]
    Lookup(LookupError),
    /// It still runs and could not be stopped.
    #[error("stop container {container} before removing it")]
    Stop {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: StopContainerError,
    },
    /// The node's part in it could not be given back.
    #[error(transparent)]
    Release(ReleaseError),
    /// Its records or its root could not be removed.
    #[error("remove container {container}")]
    Store {
        /// The container.
        container: ContainerId,
        #[source]
        /// What failed.
        source: StoreError,
    },
}

impl Node {
    /// Removes a container, stopping it first. One that does not exist is removed already.
    pub async fn remove_container(self: &Arc<Self>, id: &str) -> Result<(), Arc<RemoveContainerError>> {
        let container = match self.objects.find_container(id) {
            Ok(container) => container,
            Err(error) if error.is_absent() => return Ok(()),
            Err(error) => return Err(Arc::new(RemoveContainerError::Lookup(error))),
        };
        self.join_removal(container, Grace::from_seconds(REMOVE_GRACE_SECONDS)).await
    }

    pub(crate) async fn join_removal(
        self: &Arc<Self>,
        container: Arc<Container>,
        grace: Grace,
    ) -> Result<(), Arc<RemoveContainerError>> {
        let node = Arc::clone(self);
        self.removals.join(container.id.clone(), || async move { node.remove(&container, grace).await }).await
    }

    async fn remove(self: &Arc<Self>, container: &Arc<Container>, grace: Grace) -> Result<(), RemoveContainerError> {
        let id = &container.id;
        self.stop(container, grace)
            .await
            .map_err(|source| RemoveContainerError::Stop { container: id.clone(), source })?;
        let _changing = container.changing.lock().await;
        self.release(container).await.map_err(RemoveContainerError::Release)?;
        self.remove_attach_link(id.as_str());
        self.unlink_container_log(container).await;
        let (store, store_id) = (Arc::clone(&self.store), id.clone());
        blocking::run("remove container", move || store.remove_container(&store_id))
            .await
            .map_err(|source| RemoveContainerError::Store { container: id.clone(), source })?;
        self.objects.remove_container(id);
        self.tell_container(container, EventKind::Deleted);
        Ok(())
    }
}
