//! Artifacts are added, named, shared and removed.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use domain::digest::Digest;
use image_store::{ArtifactError, ArtifactStore, Forget, NewArtifact, StageBlobError};
use sha2::{Digest as _, Sha256};

fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

fn artifact(name: Option<&str>, blobs: &[&[u8]]) -> NewArtifact {
    let descriptor = |bytes: &[u8]| serde_json::json!({"digest": digest(bytes), "size": bytes.len()});
    let layers: Vec<_> = blobs.iter().map(|blob| descriptor(blob)).collect();
    let manifest = serde_json::json!({"schemaVersion": 2, "config": descriptor(b"{}"), "layers": layers}).to_string();
    NewArtifact {
        name: name.map(str::to_owned),
        digest: digest(manifest.as_bytes()),
        manifest: manifest.into_bytes(),
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
    }
}

fn add(store: &ArtifactStore, name: Option<&str>, blobs: &[&[u8]]) -> Digest {
    let new = artifact(name, blobs);
    let staging = store.stage().unwrap();
    for blob in blobs.iter().copied().chain([&b"{}"[..]]) {
        let known = staging.reuse(&digest(blob), blob.len() as u64).unwrap();
        if !known {
            staging.add(blob, &digest(blob), blob.len() as u64).unwrap();
        }
    }
    store.commit(&staging, &new).unwrap();
    new.digest
}

fn blobs(root: &Path) -> BTreeSet<String> {
    std::fs::read_dir(root.join("blobs/sha256"))
        .unwrap()
        .map(|it| it.unwrap().file_name().into_string().unwrap())
        .collect()
}

fn names(store: &ArtifactStore) -> Vec<(Digest, Vec<String>)> {
    store.list().unwrap().into_iter().map(|artifact| (artifact.digest, artifact.names)).collect()
}

#[test]
fn artifacts_share_blobs_and_names_move() {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("artifacts");
    let store = ArtifactStore::open(root.clone()).unwrap();
    assert_eq!(names(&store), []);
    let one = add(&store, Some("example.com/a:1"), &[b"first", b"shared"]);
    let two = add(&store, Some("example.com/b:1"), &[b"second", b"shared"]);
    add(&store, Some("example.com/a:2"), &[b"first", b"shared"]);
    let file = store.blob(&digest(b"first"), 5).unwrap();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o7777, 0o644);
    assert!(store.blob(&digest(b"first"), 6).is_err() && store.blob(&digest(b"absent"), 6).is_err());
    assert_eq!(blobs(&root).len(), 6, "two manifests, one configuration, three blobs");
    // Whoever opens it next, or only reads it, sees the same.
    for store in [ArtifactStore::open(root.clone()).unwrap(), ArtifactStore::read_only(root.clone())] {
        let mut found = names(&store);
        found.sort_by_key(|(_, names)| names.clone());
        let expected =
            [(one.clone(), vec!["example.com/a:1", "example.com/a:2"]), (two.clone(), vec!["example.com/b:1"])];
        assert_eq!(found, expected.map(|(digest, names)| (digest, names.into_iter().map(str::to_owned).collect())));
    }
    // The name moves; its last holder stays without one, as in the layouts of others.
    let three = add(&store, Some("example.com/b:1"), &[b"third"]);
    let nameless: Vec<_> = names(&store).into_iter().filter(|(_, names)| names.is_empty()).collect();
    assert_eq!(nameless, [(two.clone(), vec![])]);
    // What other tools wrote stays.
    let text = std::fs::read_to_string(root.join("index.json")).unwrap();
    let mut index: serde_json::Value = serde_json::from_str(&text).unwrap();
    index["other"] = "kept".into();
    index["manifests"][0]["annotations"]["other"] = "kept".into();
    durable::replace(&root.join("index.json"), index.to_string().as_bytes(), 0o644, durable::Durability::Volatile)
        .unwrap();

    assert!(store.remove(Forget::Name("example.com/a:1")).unwrap());
    assert!(store.blob(&digest(b"first"), 5).is_ok(), "it has another name");
    assert!(store.remove(Forget::Artifact(&one)).unwrap());
    assert!(store.blob(&digest(b"first"), 5).is_err() && store.blob(&digest(b"shared"), 6).is_ok());
    assert!(store.remove(Forget::Artifact(&two)).unwrap());
    assert!(!store.remove(Forget::Artifact(&two)).unwrap() && !store.remove(Forget::Name("example.com/a:1")).unwrap());
    assert_eq!(blobs(&root).len(), 3);
    assert!(store.remove(Forget::Artifact(&three)).unwrap());
    assert!(blobs(&root).is_empty() && std::fs::read_to_string(root.join("index.json")).unwrap().contains("kept"));
    assert!(std::fs::read_dir(&root).unwrap().all(|it| !it.unwrap().file_name().to_str().unwrap().starts_with('.')));
}

#[test]
fn only_what_was_promised_is_taken() {
    let base = tempfile::tempdir().unwrap();
    let store = ArtifactStore::open(base.path().join("artifacts")).unwrap();
    let staging = store.stage().unwrap();
    let right = digest(b"bytes");
    let error = staging.add(&b"bytez"[..], &right, 5).unwrap_err();
    assert!(matches!(error, StageBlobError::Digest { .. }), "{error}");
    for (given, size) in [(&b"bytes"[..], 4), (b"byte", 5), (b"bytes and more", 5), (b"", 5)] {
        let error = staging.add(given, &right, size).unwrap_err();
        assert!(matches!(error, StageBlobError::Size { .. }), "{error}");
    }
    let new = artifact(Some("example.com/a:1"), &[b"bytes"]);
    let error = store.commit(&staging, &new).unwrap_err();
    assert!(matches!(error, ArtifactError::NoBlob { .. }), "{error}");
    let wrong = NewArtifact { digest: right, ..new };
    let error = store.commit(&store.stage().unwrap(), &wrong).unwrap_err();
    assert!(matches!(error, ArtifactError::Digest { .. }), "{error}");
    assert_eq!(names(&store), []);
    let other = ArtifactStore::read_only(base.path().join("absent"));
    assert!(other.list().unwrap().is_empty());
    assert!(matches!(other.stage().unwrap_err(), ArtifactError::ReadOnly { .. }));
    assert!(matches!(other.remove(Forget::Name("x")).unwrap_err(), ArtifactError::ReadOnly { .. }));
}

#[test]
fn damage_is_told_and_touches_nothing_else() {
    let base = tempfile::tempdir().unwrap();
    let root = base.path().join("artifacts");
    let store = ArtifactStore::open(root.clone()).unwrap();
    let one = add(&store, Some("example.com/a:1"), &[b"first"]);
    let two = add(&store, Some("example.com/b:1"), &[b"second"]);
    durable::replace(&root.join("blobs/sha256").join(one.hex()), b"{}", 0o644, durable::Durability::Volatile).unwrap();
    assert_eq!(names(&store), [(two.clone(), vec!["example.com/b:1".to_owned()])]);
    // What the damaged one needs cannot be known, so that nothing is deleted.
    let before = blobs(&root);
    assert!(store.remove(Forget::Artifact(&two)).unwrap());
    assert_eq!((blobs(&root), names(&store)), (before, vec![]));
    // A blob cut short under its name is replaced.
    durable::replace(
        &root.join("blobs/sha256").join(digest(b"first").hex()),
        b"f",
        0o644,
        durable::Durability::Volatile,
    )
    .unwrap();
    add(&store, Some("example.com/a:1"), &[b"first"]);
    assert!(store.blob(&digest(b"first"), 5).is_ok());
    durable::replace(&root.join("index.json"), b"{", 0o644, durable::Durability::Volatile).unwrap();
    let store = ArtifactStore::open(root).unwrap();
    assert!(matches!(store.list().unwrap_err(), ArtifactError::Index { .. }));
    assert!(matches!(store.remove(Forget::Artifact(&two)).unwrap_err(), ArtifactError::Index { .. }));
}
