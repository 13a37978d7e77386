//! Several threads, several processes, and podman on one store; and how long making a container takes. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::process::{Child, Command};
use std::time::Instant;

use common::{Roots, Tar, container_id, new_container, put, small_tar};
use image_store::{Store, StoreOptions};

const ROOT: &str = "IMAGE_STORE_TEST_ROOT";
const NUMBER: &str = "IMAGE_STORE_TEST_NUMBER";
const ROUNDS: u32 = 12;

fn work(store: &Store, number: u32) {
    let image = store.find_image("localhost/base:1").unwrap().unwrap().id;
    for round in 0..ROUNDS {
        let own = 1000 * number + round;
        store.create_container(new_container(own, Some(&image))).unwrap();
        let merged = store.mount(&container_id(own)).unwrap();
        assert!(merged.join("etc/passwd").exists());
        let tar = Tar::default().file("own", own.to_string().as_bytes()).finish();
        let name = format!("localhost/own:{own}");
        let own_image = put(store, &[small_tar(), tar], &[&name]);
        if round % 3 != 0 {
            store.remove_container(&container_id(own)).unwrap();
            store.remove_image(&own_image).unwrap();
        }
    }
}

/// Not a test by itself: the other processes of the next one.
#[test]
fn worker() {
    let (Ok(root), Ok(number)) = (std::env::var(ROOT), std::env::var(NUMBER)) else { return };
    let base = std::path::PathBuf::from(root);
    let store =
        Store::open(StoreOptions { root: base.join("root"), runroot: base.join("run"), ..StoreOptions::default() });
    work(&store.unwrap(), number.parse().unwrap());
}

fn start_worker(roots: &Roots, number: u32) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker"])
        .env(ROOT, roots.base.path())
        .env(NUMBER, number.to_string())
        .spawn()
        .unwrap()
}

#[test]
fn threads_processes_and_podman_share_a_store() {
    let roots = Roots::new();
    let store = roots.open();
    put(&store, &[small_tar()], &["localhost/base:1"]);
    let mut workers = [start_worker(&roots, 1), start_worker(&roots, 2)];
    std::thread::scope(|scope| {
        for number in 3..5 {
            let store = &store;
            scope.spawn(move || work(store, number));
        }
        for _ in 0..3 {
            // It complains when an image goes while it lists them; what counts is that it spoils nothing.
            roots.tool("podman", &["images", "-q"]);
        }
    });
    for worker in &mut workers {
        assert!(worker.wait().unwrap().success());
    }
    let kept = usize::try_from(ROUNDS.div_ceil(3) * 4).unwrap();
    assert_eq!(store.containers().unwrap().len(), kept);
    assert_eq!(store.images().unwrap().len(), kept + 1);
    // Base, one of each image, one of each container.
    assert_eq!(roots.layer_dirs(), 1 + 2 * kept);
    for container in store.containers().unwrap() {
        store.remove_container(&container.id).unwrap();
    }
    for image in store.images().unwrap() {
        store.remove_image(&image.id).unwrap();
    }
    assert_eq!(roots.layer_dirs(), 0);
}

#[test]
fn a_container_is_made_fast_beside_a_hundred() {
    let roots = Roots::new();
    let store = roots.open();
    let image = put(&store, &[small_tar()], &["localhost/base:1"]);
    let mut times = Vec::new();
    for number in 0..150 {
        let start = Instant::now();
        store.create_container(new_container(number, Some(&image))).unwrap();
        let created = start.elapsed();
        store.mount(&container_id(number)).unwrap();
        if number >= 100 {
            times.push((start.elapsed(), created));
        }
    }
    times.sort();
    let (median, created) = times[times.len() / 2];
    println!("create and mount beside 100 containers: median {median:?}, of which create {created:?}");
    let start = Instant::now();
    for number in 0..150 {
        store.remove_container(&container_id(number)).unwrap();
    }
    println!("remove: {:?} each", start.elapsed() / 150);
    // Far above what it takes, so that a busy machine does not fail the test; an fsync a container would.
    assert!(median.as_millis() < 30, "{median:?}");
    let usage = store.usage().unwrap();
    assert!(usage.images.inodes >= 6 && usage.images.bytes > 1000);
}

#[test]
fn layers_are_unpacked_in_parallel() {
    let roots = Roots::new();
    let store = roots.open();
    let content: Vec<u8> = (0..4_000_000_u32).flat_map(|number| (number / 7).to_le_bytes()).collect();
    let tars: Vec<Vec<u8>> = (0..3)
        .map(|number| {
            let mut tar = Tar::default();
            for part in 0..40 {
                tar.file(&format!("layer{number}/part{part}"), &content[part * 400_000..(part + 1) * 400_000]);
            }
            tar.finish()
        })
        .collect();
    let blobs: Vec<Vec<u8>> = tars.iter().map(|tar| common::gzip(tar)).collect();
    let start = Instant::now();
    let staged: Vec<_> = std::thread::scope(|scope| {
        let handles: Vec<_> = blobs.iter().map(|blob| scope.spawn(|| common::stage(&store, blob))).collect();
        handles.into_iter().map(|handle| handle.join().unwrap()).collect()
    });
    let bytes: usize = tars.iter().map(Vec::len).sum();
    println!("staged {bytes} bytes of three layers in {:?}", start.elapsed());
    for (staged, tar) in staged.iter().zip(&tars) {
        assert_eq!(staged.contents().diff_id, common::digest(tar));
    }
}

/// Run by hand with the path of a compressed layer: how fast, and in how much memory, it is unpacked.
#[test]
#[ignore = "a measurement of one file"]
fn stage_a_file() {
    let path = std::env::var("IMAGE_STORE_TEST_LAYER").unwrap();
    let roots = Roots::new();
    let store = roots.open();
    let start = Instant::now();
    let file = std::fs::File::open(path).unwrap();
    let staged = store.stage_layer(file, image_store::StageOptions::default()).unwrap();
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find(|line| line.starts_with("VmHWM")).unwrap();
    println!("{:?} in {:?}, {peak}", staged.contents(), start.elapsed());
}
