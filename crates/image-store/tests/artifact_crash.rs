//! Adding and removing an artifact that stop dead at every step, and what the next open makes of it.
//!
//! One test alone: faults are injected into the whole process.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::path::Path;

use domain::digest::Digest;
use image_store::{ArtifactStore, Forget, NewArtifact, fault};
use sha2::{Digest as _, Sha256};

const KEPT: &str = "example.com/kept:1";
const NEW: &str = "example.com/new:1";

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

fn add(store: &ArtifactStore, name: &str, blobs: &[&[u8]]) -> Result<(), String> {
    let descriptor = |bytes: &[u8]| serde_json::json!({"digest": digest(bytes), "size": bytes.len()});
    let layers: Vec<_> = blobs.iter().map(|blob| descriptor(blob)).collect();
    let manifest = serde_json::json!({"config": descriptor(b"{}"), "layers": layers}).to_string().into_bytes();
    let staging = store.stage().map_err(|error| error.to_string())?;
    for blob in blobs.iter().copied().chain([&b"{}"[..]]) {
        if !staging.reuse(&digest(blob), blob.len() as u64).map_err(|error| error.to_string())? {
            staging.add(blob, &digest(blob), blob.len() as u64).map_err(|error| error.to_string())?;
        }
    }
    let new = NewArtifact {
        name: Some(name.to_owned()),
        digest: digest(&manifest),
        manifest,
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
    };
    store.commit(&staging, &new).map_err(|error| error.to_string())
}

/// The names there are; every blob is mentioned and every mentioned blob is there.
fn check(root: &Path, store: &ArtifactStore, what: &str) -> Vec<String> {
    let artifacts = store.list().unwrap();
    let mut mentioned: BTreeSet<String> = BTreeSet::new();
    for artifact in &artifacts {
        let blobs = artifact.manifest.blobs.iter().map(|blob| &blob.digest);
        mentioned
            .extend(blobs.chain([&artifact.manifest.config, &artifact.digest]).map(|digest| digest.hex().to_owned()));
    }
    let entries = std::fs::read_dir(root.join("blobs/sha256")).unwrap();
    let present: BTreeSet<String> = entries.map(|it| it.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(present, mentioned, "{what}");
    let left = std::fs::read_dir(root).unwrap().map(|it| it.unwrap().file_name().into_string().unwrap());
    let left: Vec<String> = left.filter(|name| name.starts_with(".staging")).collect();
    assert!(left.is_empty(), "{what}: {left:?}");
    artifacts.into_iter().flat_map(|artifact| artifact.names).collect()
}

type Operation = fn(&ArtifactStore) -> Result<(), String>;

#[test]
fn every_step_can_be_the_last() {
    let operations: [(&str, Operation); 2] = [
        ("add", |store| add(store, NEW, &[b"new", b"shared"])),
        ("remove", |store| store.remove(Forget::Name(NEW)).map(drop).map_err(|error| error.to_string())),
    ];
    let mut total = 0;
    for (name, operation) in operations {
        for steps in 0.. {
            let what = format!("{name}, {steps} steps");
            let base = tempfile::tempdir().unwrap();
            let root = base.path().join("artifacts");
            let store = ArtifactStore::open(root.clone()).unwrap();
            add(&store, KEPT, &[b"kept", b"shared"]).unwrap();
            if name == "remove" {
                add(&store, NEW, &[b"new", b"shared"]).unwrap();
            }
            fault::fail_after(Some(steps));
            let result = operation(&store);
            drop(store);
            fault::fail_after(None);
            let store = ArtifactStore::open(root.clone()).unwrap();
            let names = check(&root, &store, &what);
            assert!(names.contains(&KEPT.to_owned()) && names.len() <= 2, "{what}: {names:?}");
            operation(&store).unwrap_or_else(|error| panic!("{what}: {error}"));
            let names = check(&root, &store, &what);
            assert_eq!(names.len(), if name == "add" { 2 } else { 1 }, "{what}: {names:?}");
            total += 1;
            if result.is_ok() {
                break;
            }
            assert!(steps < 100, "{name} never ends");
        }
    }
    assert!(total > 15, "only {total} steps: injection does not reach the operations");
}
