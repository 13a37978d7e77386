//! Images mounted for containers, and counted together with the mounts of other tools. Needs root and podman.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::Path;

use common::{Roots, container_id, new_container, put, second_tar, small_tar};
use image_store::{MountImageError, RemoveImageError};

fn count(roots: &Roots) -> i64 {
    let text =
        std::fs::read(roots.runroot().join("overlay-layers/mountpoints.json")).unwrap_or_else(|_| b"[]".to_vec());
    let rows: Vec<serde_json::Value> = serde_json::from_slice(&text).unwrap();
    rows.iter().map(|row| row["count"].as_i64().unwrap()).sum()
}

fn is_mounted(path: &Path) -> bool {
    std::fs::read_to_string("/proc/self/mounts").unwrap().contains(&format!(" {} ", path.display()))
}

#[test]
fn an_image_is_mounted_once_and_counted_for_everybody() {
    let roots = Roots::new();
    let store = roots.open();
    let image = put(&store, &[small_tar(), second_tar()], &["localhost/volume:1"]);
    for number in 1..=3 {
        store.create_container(new_container(number, None)).unwrap();
    }
    let path = store.mount_image(&image, &container_id(1)).unwrap();
    assert_eq!(path, store.image_mount_point(&image).unwrap());
    assert!(is_mounted(&path) && std::fs::read_dir(&path).unwrap().count() > 0);
    let written = std::fs::File::create(path.join("new"));
    assert_eq!(written.unwrap_err().kind(), std::io::ErrorKind::ReadOnlyFilesystem);
    // A container holds it once, however often it asks.
    assert_eq!(store.mount_image(&image, &container_id(1)).unwrap(), path);
    assert_eq!(count(&roots), 1);
    store.mount_image(&image, &container_id(2)).unwrap();
    let theirs = roots.run("podman", &["image", "mount", image.as_str()]);
    assert_eq!((Path::new(theirs.trim()), count(&roots)), (path.as_path(), 3));

    // Another daemon on the same store goes on counting.
    drop(store);
    let store = roots.open();
    store.mount_image(&image, &container_id(3)).unwrap();
    assert_eq!(count(&roots), 4);
    for number in [1, 2] {
        let error = store.remove_image(&image).unwrap_err();
        assert!(matches!(error, RemoveImageError::InUse { .. }), "{error}");
        store.remove_container(&container_id(number)).unwrap();
    }
    assert_eq!((count(&roots), is_mounted(&path)), (2, true));
    store.remove_container(&container_id(3)).unwrap();
    assert_eq!((count(&roots), is_mounted(&path)), (1, true), "podman has it still");
    roots.run("podman", &["image", "unmount", image.as_str()]);
    assert_eq!((count(&roots), is_mounted(&path)), (0, false));
    store.remove_image(&image).unwrap();
    assert_eq!(roots.layer_dirs(), 0);
}

#[test]
fn what_is_mounted_for_nobody_goes_with_the_image() {
    let roots = Roots::new();
    let store = roots.open();
    let image = put(&store, &[small_tar()], &["localhost/volume:1"]);
    let twin = put(&store, &[small_tar(), second_tar()], &["localhost/other:1"]);
    store.create_container(new_container(1, None)).unwrap();
    // A base layer alone has nothing below it.
    let path = store.mount_image(&image, &container_id(1)).unwrap();
    // As a crash, or CRI-O, leaves it.
    std::fs::remove_file(roots.runroot().join(format!("overlay-containers/{}/image-mounts", container_id(1)))).unwrap();
    store.remove_container(&container_id(1)).unwrap();
    assert!(is_mounted(&path));
    store.remove_image(&image).unwrap();
    assert!(!is_mounted(&path) && count(&roots) == 0);
    store.remove_image(&twin).unwrap();
    assert_eq!(roots.layer_dirs(), 0);
}

#[test]
fn what_cannot_be_mounted_leaves_nothing() {
    let roots = Roots::new();
    let store = roots.open();
    let image = put(&store, &[small_tar()], &["localhost/volume:1"]);
    let absent = domain::id::ImageId::from_bytes([7; 32]);
    store.create_container(new_container(1, None)).unwrap();
    let error = store.mount_image(&absent, &container_id(1)).unwrap_err();
    assert!(matches!(error, MountImageError::NoImage { .. }), "{error}");
    let error = store.mount_image(&image, &container_id(2)).unwrap_err();
    assert!(matches!(error, MountImageError::NoContainer { .. }), "{error}");
    assert!(!is_mounted(&store.image_mount_point(&image).unwrap()) && count(&roots) == 0);
}
