//! ImageFsInfo.

use cri_api::v1;
use lifecycle::Node;
use tonic::Status;

use crate::list_images::images_code;
use crate::refusal::refuse;

/// Images and containers lie on one file system, which is told twice. Source: CRI-O without `imagestore`.
pub(crate) async fn image_fs_info(node: &Node) -> Result<v1::ImageFsInfoResponse, Status> {
    let usage = node.image_fs_usage().await.map_err(|error| refuse(images_code(&error), &error))?;
    let usage = v1::FilesystemUsage {
        timestamp: usage.at.nanos(),
        fs_id: Some(v1::FilesystemIdentifier { mountpoint: usage.mountpoint.display().to_string() }),
        used_bytes: Some(v1::UInt64Value { value: usage.used_bytes }),
        inodes_used: Some(v1::UInt64Value { value: usage.inodes_used }),
    };
    Ok(v1::ImageFsInfoResponse { image_filesystems: vec![usage.clone()], container_filesystems: vec![usage] })
}
