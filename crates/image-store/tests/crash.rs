//! Operations that stop dead at every step, as if the power had gone, and what the next open makes of it. Needs root.
//!
//! One test alone: faults are injected into the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "../../../tests/e2e/src/chunked.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod blob;
mod common;

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use common::{Roots, Tar, container_id, digest, gzip, image_of, new_container, put, second_tar, small_tar};
use domain::id::ImageId;
use image_store::{
    ByteRange, CheckOptions, ChunkedLayer, ChunkedOptions, Depth, ExpectedLayer, LayerPin, StageOptions, Store,
    TocPosition, fault,
};

fn names(path: &Path) -> BTreeSet<String> {
    std::fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

/// Disk and records agree in every respect.
fn check(roots: &Roots, store: &Store, what: &str) {
    let layers = store.layers().unwrap();
    let ids: BTreeSet<String> = layers.iter().map(|layer| layer.id.to_string()).collect();
    let home = roots.layers_home();
    let directories: BTreeSet<String> = names(&home).into_iter().filter(|name| name.len() == 64).collect();
    assert_eq!(directories, ids, "{what}: layer directories");
    if roots.driver == "overlay" {
        assert_eq!(names(&home.join("l")).len(), ids.len(), "{what}: short names");
    }
    let containers = store.containers().unwrap();
    let used: BTreeSet<String> = containers.iter().filter_map(|it| Some(it.layer.as_ref()?.to_string())).collect();
    let mut files = names(&roots.records("layers"));
    for layer in &layers {
        if let Some(parent) = &layer.parent {
            assert!(ids.contains(parent.as_str()), "{what}: parent");
        }
        let part = if roots.driver == "overlay" { "diff" } else { "." };
        assert!(home.join(layer.id.as_str()).join(part).is_dir(), "{what}: diff");
        if layer.diff_id.is_some() {
            assert!(files.remove(&format!("{}.tar-split.gz", layer.id)), "{what}: tar-split");
        } else {
            assert!(used.contains(layer.id.as_str()), "{what}: a layer without a container");
        }
        let data = roots.records("layers").join(layer.id.as_str());
        if files.remove(layer.id.as_str()) {
            let expected = ["zstd-chunked-manifest", "zstd-chunked-layer-data"].map(big_data_file).into();
            assert_eq!(names(&data), expected, "{what}: data of a layer");
        }
    }
    let expected = ["layers.json", "layers.lock", "volatile-layers.json"].map(str::to_owned).into();
    assert!(files.is_subset(&expected), "{what}: {files:?}");
    let images = store.images().unwrap();
    let mut directories = names(&roots.records("images"));
    for image in &images {
        assert!(directories.remove(image.id.as_str()));
        assert_eq!(digest(&store.image_manifest(&image.id).unwrap()), image.digest.clone().unwrap(), "{what}");
        assert_eq!(digest(&store.image_config(&image.id).unwrap()).hex(), image.id.as_str(), "{what}");
        assert!(image.size.is_some(), "{what}: a layer of an image is missing");
        assert!(ids.contains(image.top_layer.as_ref().unwrap().as_str()), "{what}: top layer");
    }
    let expected = ["images.json", "images.lock"].map(str::to_owned).into();
    assert!(directories.is_subset(&expected), "{what}: {directories:?}");
    for container in &containers {
        // Of one whose removal was interrupted, directories and layer go before the record.
        if container.id == container_id(1) {
            let layer = container.layer.as_ref().unwrap();
            assert!(ids.contains(layer.as_str()), "{what}: a container without its layer");
            assert!(store.container_dir(&container.id).is_dir() && store.container_run_dir(&container.id).is_dir());
        }
    }
    let area = names(&roots.root().join(roots.driver).join("tempdirs/crio-staging"));
    assert_eq!(area.len(), 2, "{what}: staging of the dead stays: {area:?}");
}

fn pull(store: &Store) -> Result<ImageId, String> {
    let blobs: Vec<_> = [small_tar(), second_tar()].map(|tar| (gzip(&tar), tar, "+gzip")).into();
    let mut pins: Vec<LayerPin> = Vec::new();
    let mut missing = Vec::new();
    for (blob, tar, _) in &blobs {
        let parent = pins.last().map(LayerPin::id);
        if missing.is_empty()
            && let Some(pin) = store.find_layer(parent, &digest(tar)).map_err(|error| error.to_string())?
        {
            pins.push(pin);
            continue;
        }
        let staged = store.stage_layer(&blob[..], StageOptions::default()).map_err(|error| error.to_string())?;
        let diff_id = Some(digest(tar));
        missing.push((staged, ExpectedLayer { diff_id, compressed_digest: digest(blob), compressed_size: None }));
    }
    let parent = pins.last().map(|pin| pin.id().clone());
    let (committed, error) = store.commit_layers(missing, parent.as_ref());
    if let Some(error) = error {
        return Err(error.to_string());
    }
    pins.extend(committed);
    let image = image_of(&blobs, &["localhost/new:1", "localhost/moves:1"], pins.last().map(LayerPin::id));
    let id = image.id.clone();
    store.put_image(image).map_err(|error| error.to_string())?;
    Ok(id)
}

fn big_data_file(key: &str) -> String {
    use base64::Engine;
    format!("={}", base64::engine::general_purpose::STANDARD.encode(key))
}

/// Layers of parts: the second takes a file from the first.
fn pull_parts(store: &Store) -> Result<(), String> {
    let second = Tar::default().file("other/tool", &vec![7; 3000]).file("new", b"new").finish();
    let blobs: Vec<_> = [small_tar(), second].map(|tar| (gzip(&tar), tar, "+gzip")).into();
    let mut pins: Vec<LayerPin> = Vec::new();
    for (_, tar, _) in &blobs {
        let parent = pins.last().map(LayerPin::id);
        if let Some(pin) = store.find_layer(parent, &digest(tar)).map_err(|error| error.to_string())? {
            pins.push(pin);
            continue;
        }
        let blob = blob::build(tar, blob::How::default(), |_| {});
        let bytes = |range: ByteRange| {
            blob.bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end()).unwrap()].to_vec()
        };
        let position = TocPosition::find(&blob.annotations, blob.bytes.len() as u64).unwrap().unwrap();
        let layer = ChunkedLayer::parse(&position, &bytes(position.table), position.split.map(bytes)).unwrap();
        let plan = store.plan_chunked(layer, ChunkedOptions::default()).map_err(|error| error.to_string())?;
        let missing: Vec<u8> = plan.ranges().iter().copied().flat_map(bytes).collect();
        let staged = store.stage_chunked(plan, &missing[..], StageOptions::default());
        let staged = staged.map_err(|error| error.to_string())?;
        pins.push(store.commit_chunked(staged, parent, &digest(tar)).map_err(|error| error.to_string())?);
    }
    let image = image_of(&blobs, &["localhost/new:1", "localhost/moves:1"], pins.last().map(LayerPin::id));
    store.put_image(image).map_err(|error| error.to_string())
}

/// The same configuration under another manifest, as a registry serves it after recompressing.
fn put_again(store: &Store) -> Result<(), String> {
    let blobs: Vec<_> = [small_tar(), second_tar()].map(|tar| (tar.clone(), tar, "")).into();
    let parent = image_store::layer_id(None, &digest(&small_tar()));
    let top = image_store::layer_id(Some(&parent), &digest(&second_tar()));
    store.put_image(image_of(&blobs, &["localhost/new:1"], Some(&top))).map_err(|error| error.to_string())
}

type Operation = (&'static str, fn(&Store) -> Result<(), String>);

fn run() -> [Operation; 2] {
    [
        ("pull", |store| pull(store).map(drop)),
        ("run", |store| {
            let image = store.find_image("localhost/base:1").unwrap().unwrap().id;
            store.create_container(new_container(2, Some(&image))).map_err(|error| error.to_string())?;
            store.mount(&container_id(2)).map_err(|error| error.to_string())?;
            store.mount_image(&image, &container_id(2)).map_err(|error| error.to_string())?;
            store.remove_container(&container_id(2)).map_err(|error| error.to_string())
        }),
    ]
}

#[test]
fn every_step_can_be_the_last() {
    let operations: [Operation; 5] = [
        ("pull parts", pull_parts),
        run()[0],
        run()[1],
        ("remove image", |store| {
            let Some(image) = store.find_image("localhost/new:1").map_err(|error| error.to_string())? else {
                return Ok(());
            };
            store.remove_image(&image.id).map_err(|error| error.to_string())
        }),
        ("put again", put_again),
    ];
    for driver in ["overlay", "vfs", "btrfs"] {
        // One file system for all: each run leaves the store empty.
        let Some(shared) = Roots::with_driver(driver) else { continue };
        let mut total = 0;
        for (name, operation) in operations {
            for steps in 0.. {
                let mut own = Roots::in_memory();
                own.driver = driver;
                let roots = if driver == "btrfs" { &shared } else { &own };
                total += 1;
                if stop_at(roots, name, operation, steps) {
                    break;
                }
                assert!(steps < 200, "{driver}: {name} never ends");
            }
        }
        assert!(total > 60, "{driver}: only {total} steps: injection does not reach the operations");
    }
}

/// Whether the operation came to its end.
fn stop_at(roots: &Roots, name: &str, operation: fn(&Store) -> Result<(), String>, steps: u32) -> bool {
    let what = format!("{}: {name}, {steps} steps", roots.driver);
    let store = roots.open();
    let base = put(&store, &[small_tar()], &["localhost/base:1", "localhost/moves:1"]);
    store.create_container(new_container(1, Some(&base))).unwrap();
    if name == "remove image" || name == "put again" {
        pull(&store).unwrap();
    }
    fault::fail_after(Some(steps));
    let result = operation(&store);
    drop(store);
    fault::fail_after(None);
    let store = roots.open();
    verify(&store, &what);
    check(roots, &store, &what);
    assert!(store.find_image("localhost/base:1").unwrap().is_some(), "{what}");
    assert!(store.container(&container_id(1)).unwrap().is_some(), "{what}");
    let holders = store.images().unwrap();
    let holders = holders.iter().filter(|image| image.names.iter().any(|own| own == "localhost/moves:1"));
    assert!(holders.count() <= 1, "{what}: a name of two images");
    if name == "pull" && store.find_image("localhost/new:1").unwrap().is_none() {
        assert_eq!(store.layers().unwrap().len(), 2, "{what}: layers of the image that never was");
    }
    // What was interrupted can be done again.
    operation_again(&store, name, operation).unwrap_or_else(|error| panic!("{what}: {error}"));
    check(roots, &store, &what);
    for container in store.containers().unwrap() {
        store.remove_container(&container.id).unwrap();
    }
    for image in store.images().unwrap() {
        store.remove_image(&image.id).unwrap();
    }
    assert_eq!(roots.layer_dirs(), 0, "{what}");
    check(roots, &store, &what);
    result.is_ok()
}

/// Nothing is listed that is not what it says, and nothing belongs to nobody.
fn verify(store: &Store, what: &str) {
    let options = CheckOptions { depth: Depth::Contents, unreferenced_age: Duration::from_secs(3600) };
    let mut report = store.check(&options).unwrap();
    // Of one whose removal was interrupted, the layer goes before the record.
    report.containers.remove(container_id(2).as_str());
    assert!(report.is_clean(), "{what}: {:#?}", report.lines());
}

fn operation_again(store: &Store, name: &str, operation: fn(&Store) -> Result<(), String>) -> Result<(), String> {
    if name == "run" {
        store.remove_container(&container_id(2)).map_err(|error| error.to_string())?;
    }
    operation(store)
}
