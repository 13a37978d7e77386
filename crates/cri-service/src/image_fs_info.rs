//! ImageFsInfo.

use cri_api::v1;
use lifecycle::{ImageFsUsage, Node};
use tonic::Status;

use crate::list_images::images_code;
use crate::refusal::refuse;

/// Images and containers mostly lie on one file system, which is told twice. Source: CRI-O.
pub(crate) async fn image_fs_info(node: &Node) -> Result<v1::ImageFsInfoResponse, Status> {
    let (images, containers) = node.image_fs_usage().await.map_err(|error| refuse(images_code(&error), &error))?;
    Ok(v1::ImageFsInfoResponse {
        image_filesystems: vec![to_cri(&images)],
        container_filesystems: vec![to_cri(&containers)],
    })
}

fn to_cri(usage: &ImageFsUsage) -> v1::FilesystemUsage {
    v1::FilesystemUsage {
        timestamp: usage.at.nanos(),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: Some(v1::UInt64Value { value: usage.used_bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes_used }),
    }
}
