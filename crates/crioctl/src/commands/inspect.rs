//! Everything about one thing.

use cri_api::v1::{ContainerStatusRequest, ImageSpec, ImageStatusRequest, PodSandboxStatusRequest};

use super::Session;
use super::containers::find_container;
use super::pods::find_pod;
use crate::error::CommandError;
use crate::find::FindError;
use crate::message_json::to_json_with_info;

/// Prints the status of a container, else of a pod, else of an image with that name or id.
pub(super) async fn inspect(session: &Session, wanted: &str) -> Result<(), CommandError> {
    let client = &session.client;
    match find_container(client, wanted).await {
        Ok(container) => {
            let question = ContainerStatusRequest { container_id: container.id, verbose: true };
            return session.print_json(&to_json_with_info(&client.container_status(question).await?));
        }
        Err(CommandError::Find(FindError::Nothing { .. })) => {}
        Err(error) => return Err(error),
    }
    match find_pod(client, wanted).await {
        Ok(pod) => {
            let question = PodSandboxStatusRequest { pod_sandbox_id: pod.id, verbose: true };
            return session.print_json(&to_json_with_info(&client.pod_sandbox_status(question).await?));
        }
        Err(CommandError::Find(FindError::Nothing { .. })) => {}
        Err(error) => return Err(error),
    }
    let image = ImageSpec { image: wanted.to_owned(), ..Default::default() };
    let answer = client.image_status(ImageStatusRequest { image: Some(image), verbose: true }).await?;
    if answer.image.is_none() {
        return Err(CommandError::NothingFound { wanted: wanted.to_owned() });
    }
    session.print_json(&to_json_with_info(&answer))
}
