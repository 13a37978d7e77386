//! What callers may and may not do with images, layers and containers. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::PermissionsExt;

use common::{
    Roots, Tar, commit, container_id, digest, gzip, image_of, new_container, put, second_tar, small_tar, stage,
};
use domain::id::ImageId;
use image_store::{
    CreateContainerError, FindImageError, LayerPin, OpenError, PutImageError, RemoveImageError, Store, StoreOptions,
    Transient, layer_id,
};

#[test]
fn drivers_are_chosen_or_refused_by_name() {
    let roots = Roots::in_memory();
    for driver in ["zfs", "devicemapper", "aufs"] {
        let error = Store::open(StoreOptions { driver: driver.to_owned(), ..roots.options() }).unwrap_err();
        assert!(matches!(error, OpenError::Options(_)));
        let source = std::error::Error::source(&error).unwrap().to_string();
        assert!(source.contains(&format!("{driver:?}")), "{source}");
    }
    let error = Store::open(StoreOptions { driver: "btrfs".to_owned(), ..roots.options() }).unwrap_err();
    assert!(matches!(error, OpenError::Path(_)), "no btrfs: {error}");
    let unnamed = || StoreOptions { driver: String::new(), ..roots.options() };
    let only_btrfs = StoreOptions { driver_priority: vec!["btrfs".to_owned()], ..unnamed() };
    assert!(matches!(Store::open(only_btrfs), Err(OpenError::Path(_))));
    let priority = ["btrfs", "vfs"].map(str::to_owned).to_vec();
    let store = Store::open(StoreOptions { driver_priority: priority, ..unnamed() }).unwrap();
    assert_eq!(store.driver(), "vfs");
    drop(store);
    assert!(!roots.root().join("btrfs").exists(), "what was tried leaves nothing");
    let vfs_last = StoreOptions { driver_priority: ["overlay", "vfs"].map(str::to_owned).to_vec(), ..unnamed() };
    assert_eq!(Store::open(vfs_last).unwrap().driver(), "vfs", "what is there counts");
    assert_eq!(Store::open(unnamed()).unwrap().driver(), "overlay");
    assert!(matches!(Store::open(unnamed()), Err(OpenError::Options(_))), "two drivers and none named");
    assert_eq!(Store::open(roots.options()).unwrap().driver(), "overlay");
    let relative = StoreOptions { root: "relative".into(), ..roots.options() };
    assert!(matches!(Store::open(relative), Err(OpenError::Path(_))));
}

#[test]
fn nobody_else_looks_in() {
    let roots = Roots::in_memory();
    std::fs::create_dir_all(roots.root().join("overlay-containers")).unwrap();
    let loose = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(roots.root().join("overlay-containers"), loose).unwrap();
    let store = roots.open();
    let image = put(&store, &[small_tar()], &["localhost/x:1"]);
    store.create_container(new_container(1, Some(&image))).unwrap();
    let layer = store.container(&container_id(1)).unwrap().unwrap().layer.unwrap();
    for path in [
        roots.root().join("overlay"),
        roots.root().join("overlay-images"),
        roots.root().join("overlay-layers"),
        roots.root().join("overlay-containers"),
        roots.root().join("overlay").join(layer.as_str()),
        roots.root().join("overlay-images").join(image.as_str()),
        roots.runroot().join("overlay-containers"),
        store.container_dir(&container_id(1)),
        store.container_run_dir(&container_id(1)),
    ] {
        let mode = std::fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode & 0o066, 0, "{} has mode {mode:o}", path.display());
    }
}

#[test]
fn images_are_found_by_id_beginning_and_name() {
    let roots = Roots::in_memory();
    let store = roots.open();
    let ids: Vec<ImageId> = (0..40)
        .map(|number| {
            let tar = Tar::default().file("f", format!("{number}").as_bytes()).finish();
            put(&store, &[small_tar(), tar], &[&format!("localhost/n:{number}")])
        })
        .collect();
    assert_eq!(store.images().unwrap().len(), 40);
    for (number, id) in ids.iter().enumerate() {
        assert_eq!(store.find_image(&format!("localhost/n:{number}")).unwrap().unwrap().id, *id);
        assert_eq!(store.find_image(id.as_str()).unwrap().unwrap().id, *id);
        assert_eq!(store.find_image(&id.as_str()[..16]).unwrap().unwrap().id, *id);
        assert!(store.find_image(&id.as_str()[..2]).unwrap().is_none());
    }
    assert!(store.find_image("localhost/n").unwrap().is_none());
    // Images whose ids begin alike, made by hand as another tool might.
    let path = roots.root().join("overlay-images/images.json");
    let text = format!(r#"[{{"id":"abc{:061}"}},{{"id":"abc{:061}","names":["abc"],"future":1}}]"#, 1, 2);
    durable::replace(&path, text.as_bytes(), 0o600, durable::Durability::Volatile).unwrap();
    assert!(matches!(store.find_image("abc"), Err(FindImageError::Ambiguous { .. })));
    assert_eq!(store.find_image(&format!("abc{:061}", 2)).unwrap().unwrap().names, ["abc"]);
    // A change beside it keeps what we do not know.
    assert!(store.untag("abc").unwrap().is_some());
    assert!(std::fs::read_to_string(&path).unwrap().contains(r#""future":1"#));
    // A damaged file is an error, not an empty store, and stays as it is.
    durable::replace(&path, b"[{]", 0o600, durable::Durability::Volatile).unwrap();
    assert!(store.images().is_err());
    assert_eq!(common::read(&path), "[{]");
}

#[test]
fn images_are_refused_or_moved() {
    let roots = Roots::in_memory();
    let store = roots.open();
    let first = put(&store, &[small_tar()], &["localhost/x:1", "localhost/x:keep"]);
    let second = put(&store, &[small_tar(), second_tar()], &["localhost/x:1"]);
    let old = store.find_image(first.as_str()).unwrap().unwrap();
    assert_eq!(old.names, ["localhost/x:keep"]);
    assert!(old.names_history.contains(&"localhost/x:1".to_owned()));
    assert_eq!(store.find_image("localhost/x:1").unwrap().unwrap().id, second);

    let layers = [(gzip(&small_tar()), small_tar(), "+gzip")];
    let top = layer_id(None, &digest(&small_tar()));
    let mut wrong = image_of(&layers, &["localhost/x:keep"], Some(&top));
    wrong.config.push(b' ');
    assert!(matches!(store.put_image(wrong), Err(PutImageError::DigestMismatch { what: "configuration", .. })));
    let mut absent = image_of(&layers, &["localhost/x:keep"], Some(&layer_id(Some(&top), &digest(b"no"))));
    absent.id = ImageId::from_bytes([9; 32]);
    assert!(matches!(store.put_image(absent), Err(PutImageError::NoLayer { .. })));
    assert_eq!(store.images().unwrap().len(), 2);

    // The same image by another manifest: both digests are known, the new one first.
    let plain = [(small_tar(), small_tar(), "")];
    let mut again = image_of(&plain, &["localhost/x:more"], Some(&top));
    again.index = Some((digest(b"{}"), b"{}".to_vec()));
    again.signatures = vec![b"one".to_vec(), b"two".to_vec()];
    let manifest = again.manifest_digest.clone();
    store.put_image(again.clone()).unwrap();
    let image = store.find_image(first.as_str()).unwrap().unwrap();
    assert_eq!(image.names, ["localhost/x:keep", "localhost/x:more"]);
    assert_eq!(image.manifest_digests()[0], manifest);
    assert_eq!(image.manifest_digests().len(), 3);
    let signatures = store.image_big_data(&first, &format!("signature-{}", manifest.hex())).unwrap();
    assert_eq!(signatures, b"onetwo");
    assert_eq!(store.image_big_data(&first, "signatures").unwrap(), b"onetwo");
    assert_eq!(store.image_signatures(&first).unwrap(), [b"one", b"two"]);
    assert!(store.image_signatures(&second).unwrap().is_empty());
    store.put_image(image_of(&layers, &["localhost/x:keep"], Some(&top))).unwrap();
    assert!(
        store.image_signatures(&first).unwrap().is_empty(),
        "signatures of another manifest were kept for this one"
    );
    store.put_image(again).unwrap();
    assert!(store.image_big_data(&first, "../images.json").is_err());

    store.create_container(new_container(1, Some(&first))).unwrap();
    match store.remove_image(&first) {
        Err(RemoveImageError::InUse { container, .. }) => assert_eq!(container, container_id(1).as_str()),
        other => panic!("{other:?}"),
    }
    store.remove_image(&second).unwrap();
    store.remove_image(&second).unwrap();
    assert!(store.find_layer(None, &digest(&small_tar())).unwrap().is_some(), "a layer in use was removed");
    store.remove_container(&container_id(1)).unwrap();
    store.remove_image(&first).unwrap();
    assert_eq!(roots.layer_dirs(), 0);
}

#[test]
fn names_and_ids_of_containers_are_taken_once() {
    let roots = Roots::in_memory();
    let store = roots.open();
    let image = put(&store, &[small_tar()], &["localhost/x:1"]);
    store.create_container(new_container(1, Some(&image))).unwrap();
    assert!(matches!(store.create_container(new_container(1, Some(&image))), Err(CreateContainerError::Exists { .. })));
    let mut same_name = new_container(2, Some(&image));
    same_name.names = vec!["k8s_test_1".to_owned()];
    assert!(matches!(store.create_container(same_name), Err(CreateContainerError::NameInUse { .. })));
    let mut same_layer = new_container(2, Some(&image));
    same_layer.layer_name = Some("k8s_test_1-layer".to_owned());
    assert!(matches!(store.create_container(same_layer), Err(CreateContainerError::NameInUse { .. })));
    let absent = new_container(2, Some(&ImageId::from_bytes([1; 32])));
    assert!(matches!(store.create_container(absent), Err(CreateContainerError::NoImage { .. })));
    assert_eq!(store.containers().unwrap().len(), 1);
    assert_eq!(roots.layer_dirs(), 2);
    let container = store.container(&container_id(1)).unwrap().unwrap();
    assert_eq!(container.metadata, r#"{"pod-name":"p1","pod-id":"1"}"#);
}

#[test]
fn layers_are_kept_while_pinned() {
    let roots = Roots::in_memory();
    let store = roots.open();
    let base = commit(&store, stage(&store, &gzip(&small_tar())), None).unwrap();
    let top = commit(&store, stage(&store, &gzip(&second_tar())), Some(base.id())).unwrap();
    let (base_id, top_id) = (base.id().clone(), top.id().clone());
    assert_eq!(base_id.as_str(), digest(&small_tar()).hex());
    assert!(!store.remove_layer_if_unused(&top_id).unwrap());
    drop(top);
    assert!(!store.remove_layer_if_unused(&base_id).unwrap(), "a parent was removed");
    assert!(store.remove_layer_if_unused(&top_id).unwrap());
    assert!(store.find_layer(None, &digest(&small_tar())).unwrap().is_some(), "a pinned parent was removed");
    drop::<LayerPin>(base);
    assert!(store.remove_layer_if_unused(&base_id).unwrap());
    assert!(!store.remove_layer_if_unused(&base_id).unwrap());
    // The same layer twice, as two pulls at once bring it: one is kept.
    let pins = [(), ()].map(|()| commit(&store, stage(&store, &gzip(&small_tar())), None).unwrap());
    assert_eq!(store.layers().unwrap().len(), 1);
    drop(pins);
    // A record whose files somebody removed does not stop a pull.
    std::fs::remove_dir_all(roots.root().join("overlay").join(base_id.as_str())).unwrap();
    assert!(store.find_layer(None, &digest(&small_tar())).unwrap().is_none());
    commit(&store, stage(&store, &gzip(&small_tar())), None).unwrap();
    assert!(store.find_layer(None, &digest(&small_tar())).unwrap().is_some());
    // What no image came to use goes when the process is gone.
    drop(store);
    let store = roots.open();
    assert!(store.layers().unwrap().is_empty());
}

#[test]
fn transient_records_lie_in_the_run_root() {
    let roots = Roots::in_memory();
    let options = || StoreOptions { transient: Transient::Yes, ..roots.options() };
    let store = Store::open(options()).unwrap();
    let image = put(&store, &[small_tar()], &["localhost/x:1"]);
    store.create_container(new_container(1, Some(&image))).unwrap();
    assert!(roots.runroot().join("overlay-containers/volatile-containers.json").exists());
    assert!(roots.runroot().join("overlay-layers/volatile-layers.json").exists());
    assert!(!roots.root().join("overlay-containers/volatile-containers.json").exists());
    // Whoever opens the same root without the setting does not take the layer for a leftover.
    let other = roots.open();
    assert!(other.containers().unwrap().is_empty());
    assert_eq!(roots.layer_dirs(), 2);
    // After a reboot the run root is empty, and so is what it recorded.
    drop((store, other));
    std::fs::remove_dir_all(roots.runroot()).unwrap();
    let store = Store::open(options()).unwrap();
    assert!(store.containers().unwrap().is_empty());
    assert_eq!(roots.layer_dirs(), 1);
    store.remove_image(&image).unwrap();
}

#[test]
fn volatile_damage_is_set_aside_and_other_damage_told() {
    let roots = Roots::in_memory();
    let store = roots.open();
    let image = put(&store, &[small_tar(), second_tar()], &["localhost/x:1"]);
    let manifest = roots.root().join("overlay-images").join(image.as_str()).join("manifest");
    durable::replace(&manifest, b"{}", 0o600, durable::Durability::Volatile).unwrap();
    let layers = roots.root().join("overlay-layers/layers.json");
    drop(store);
    for file in ["overlay-layers/volatile-layers.json", "overlay-containers/volatile-containers.json"] {
        durable::replace(&roots.root().join(file), b"[{\"id\":", 0o600, durable::Durability::Volatile).unwrap();
    }
    let store = roots.open();
    assert!(store.containers().unwrap().is_empty());
    // The current manifest came back from its copy.
    assert!(std::fs::metadata(&manifest).unwrap().len() > 100);
    drop(store);
    durable::replace(&layers, b"[{", 0o600, durable::Durability::Volatile).unwrap();
    assert!(matches!(Store::open(roots.options()), Err(OpenError::Records(_))));
    assert_eq!(common::read(&layers), "[{");
}
