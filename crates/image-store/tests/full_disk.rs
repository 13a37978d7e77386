//! Disks that end at every possible point, by bytes and by inodes. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::time::Duration;

use common::{Roots, Tar, container_id, digest, gzip, image_of, new_container, small_tar};
use image_store::{CheckOptions, CommitLayerError, Depth, ExpectedLayer, LayerPin, StageOptions, Store};
use rustix::mount::MountFlags;

/// Files of some size and number, so that a disk can end in each of them.
fn layers() -> [Vec<u8>; 2] {
    let mut one = Tar::default();
    let mut other = Tar::default();
    for number in 0..12_u8 {
        one.file(&format!("one/{number}"), &vec![number; 9000]);
        other.file(&format!("other/{number}"), &vec![number; 3000]);
    }
    [one.finish(), other.finish()]
}

fn is_full(error: &dyn std::error::Error) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.to_string().contains("No space left") || error.to_string().contains("os error 28") {
            return true;
        }
        next = error.source();
    }
    false
}

enum Failure {
    Full,
    Other(String),
}

fn judge(error: &dyn std::error::Error) -> Failure {
    if is_full(error) { Failure::Full } else { Failure::Other(format!("{error:?}")) }
}

/// What a daemon does: layers, image, and what it has fetched given back if it fails.
fn pull(store: &Store) -> Result<(), Failure> {
    let blobs: Vec<_> = layers().map(|tar| (gzip(&tar), tar, "+gzip")).into();
    let mut pins: Vec<LayerPin> = Vec::new();
    let result = (|| {
        for (blob, tar, _) in &blobs {
            let staged = store.stage_layer(&blob[..], StageOptions::default()).map_err(|error| {
                assert_eq!(error.is_out_of_space(), is_full(&error), "{error:?}");
                judge(&error)
            })?;
            let expected =
                ExpectedLayer { diff_id: Some(digest(tar)), compressed_digest: digest(blob), compressed_size: None };
            let parent = pins.last().map(LayerPin::id);
            pins.push(store.commit_layer(staged, parent, &expected).map_err(|error: CommitLayerError| judge(&error))?);
        }
        let image = image_of(&blobs, &["localhost/new:1"], pins.last().map(LayerPin::id));
        store.put_image(image).map_err(|error| judge(&error))
    })();
    if result.is_err() {
        while let Some(pin) = pins.pop() {
            let id = pin.id().clone();
            drop(pin);
            store.remove_layer_if_unused(&id).unwrap();
        }
    }
    result
}

fn used(roots: &Roots) -> (u64, u64) {
    let disk = rustix::fs::statvfs(roots.base.path()).unwrap();
    (disk.f_blocks - disk.f_bfree, disk.f_files - disk.f_ffree)
}

/// Tries with the limits one after the other, until one is enough; returns how many were not.
fn try_all(limits: impl Iterator<Item = String>) -> usize {
    let mut failed = 0;
    for limit in limits {
        let roots = Roots::in_memory();
        let base = roots.base.path();
        let store = roots.open();
        common::put(&store, &[small_tar()], &["localhost/base:1"]);
        let before = used(&roots);
        // The limit counts from here.
        let (blocks, inodes) = before;
        let data = if let Some(extra) = limit.strip_prefix("bytes=") {
            format!("size={}", blocks * 4096 + extra.parse::<u64>().unwrap())
        } else {
            format!("nr_inodes={}", inodes + limit.strip_prefix("inodes=").unwrap().parse::<u64>().unwrap())
        };
        let text = std::ffi::CString::new(data).unwrap();
        rustix::mount::mount_remount(base, MountFlags::empty(), text.as_c_str()).unwrap();
        let result = pull(&store);
        let what = &limit;
        let images: Vec<_> = store.images().unwrap().into_iter().flat_map(|image| image.names).collect();
        match result {
            Ok(()) => {
                assert_eq!(images.len(), 2, "{what}");
                return failed;
            }
            Err(Failure::Other(error)) => panic!("{what}: {error}"),
            Err(Failure::Full) => failed += 1,
        }
        assert_eq!(images, ["localhost/base:1"], "{what}: an image that is not whole is listed");
        let options = CheckOptions { depth: Depth::Contents, unreferenced_age: Duration::ZERO };
        let report = store.check(&options);
        let report = report.unwrap();
        assert!(report.is_clean(), "{what}: {:#?}", report.lines());
        let after = used(&roots);
        // Record files of which there were none before.
        assert!(after.0 <= before.0 + 2 && after.1 <= before.1 + 2, "{what}: {before:?} became {after:?}");
        // A container needs less, and may fit or not: what does not leaves nothing.
        let base_image = store.find_image("localhost/base:1").unwrap().unwrap().id;
        if let Err(error) = store.create_container(new_container(1, Some(&base_image))) {
            assert!(is_full(&error), "{what}: {error:?}");
            assert!(store.container(&container_id(1)).unwrap().is_none());
        }
        let unlimited = std::ffi::CString::new("size=50%,nr_inodes=100000").unwrap();
        rustix::mount::mount_remount(base, MountFlags::empty(), unlimited.as_c_str()).unwrap();
        assert!(pull(&store).is_ok(), "{what}: with room again");
    }
    panic!("no limit was enough");
}

#[test]
fn the_disk_may_end_anywhere() {
    let by_bytes = try_all((0..120).map(|step| format!("bytes={}", step * 8192)));
    assert!(by_bytes > 20, "{by_bytes}");
    let by_inodes = try_all((0..120).map(|step| format!("inodes={step}")));
    assert!(by_inodes > 20, "{by_inodes}");
}
