//! Images kept apart from containers, and stores that are only read. Needs root and podman.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::{Roots, container_id, new_container, put, second_tar, small_tar};
use image_store::{CheckOptions, Depth, RecordsError, RemoveImageError, Store, StoreOptions, Usage};

fn assert_clean(store: &Store) {
    let report = store.check(&CheckOptions { depth: Depth::Contents, unreferenced_age: Duration::ZERO }).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

/// Podman with a root of its own that reads another one.
fn podman_beside(roots: &Roots, other: &Path, arguments: &[&str]) -> String {
    let own = roots.base.path().join("theirs");
    let mut command = Command::new("podman");
    command.arg("--root").arg(own.join("root")).arg("--runroot").arg(own.join("run"));
    command.args(["--storage-driver", roots.driver, "--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
    command.arg("--storage-opt").arg(format!("{}.imagestore={}", roots.driver, other.display()));
    let output = command.args(arguments).env("XDG_RUNTIME_DIR", roots.base.path()).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn layers_in(root: &Path, driver: &str) -> usize {
    let home = if driver == "vfs" { root.join("vfs/dir") } else { root.join(driver) };
    std::fs::read_dir(home).unwrap().filter(|entry| entry.as_ref().unwrap().file_name().len() == 64).count()
}

#[test]
fn images_have_a_place_of_their_own() {
    for driver in ["overlay", "vfs"] {
        let roots = Roots::with_driver(driver).unwrap();
        let before = put(&roots.open(), &[small_tar()], &["localhost/before:1"]);
        let images = roots.base.path().join("images");
        let options = || StoreOptions { imagestore: Some(images.clone()), ..roots.options() };
        let store = Store::open(options()).unwrap();
        let image = put(&store, &[small_tar(), second_tar()], &["localhost/apart:1", "localhost/before:1"]);
        // The base layer is the one the root has from before.
        assert_eq!((layers_in(&images, driver), layers_in(&roots.root(), driver)), (1, 1), "{driver}");
        assert!(images.join(format!("{driver}-images")).join(image.as_str()).join("manifest").is_file(), "{driver}");
        let own = put(&store, &[second_tar(), small_tar()], &["localhost/whole:1"]);
        assert_eq!((layers_in(&images, driver), layers_in(&roots.root(), driver)), (3, 1), "{driver}");
        let records = common::read(&images.join(format!("{driver}-layers/layers.json")));
        assert_eq!(records.matches("\"diff-digest\"").count(), 3, "{driver}: {records}");
        assert_eq!(store.images().unwrap().len(), 3, "{driver}");
        assert!(store.find_image(before.as_str()).unwrap().unwrap().names.is_empty(), "{driver}: its name moved");

        store.create_container(new_container(1, Some(&own))).unwrap();
        let merged = store.mount(&container_id(1)).unwrap();
        assert!(merged.starts_with(roots.root()), "{driver}");
        assert!(merged.join("bin/tool").exists() && merged.join("etc/second").exists(), "{driver}");
        durable::replace(&merged.join("written"), b"here", 0o600, durable::Durability::Volatile).unwrap();
        assert_eq!(layers_in(&roots.root(), driver), 2, "{driver}");
        let mounted = store.mount_image(&own, &container_id(1)).unwrap();
        assert!(mounted.join("etc/second").exists(), "{driver}");
        assert!(!mounted.join("written").exists(), "{driver}");
        let usage = store.usage().unwrap();
        assert_eq!(usage.mountpoint, images.join(format!("{driver}-images")));
        let (directory, Usage { inodes, .. }) = usage.containers.unwrap();
        assert!(directory == roots.records("containers") && inodes >= 3, "{driver}: {inodes}");
        drop(store);

        // As after a restart; and another root reads the image store, but not what lies in ours.
        let store = Store::open(options()).unwrap();
        assert_clean(&store);
        for image in [&before, &image] {
            store.remove_image(image).unwrap();
        }
        assert_eq!((layers_in(&images, driver), layers_in(&roots.root(), driver)), (2, 1), "{driver}");
        let list = podman_beside(&roots, &images, &["images", "--format", "{{.Repository}}:{{.Tag}} {{.ReadOnly}}"]);
        assert!(list.contains("localhost/whole:1 true"), "{driver}: {list}");
        podman_beside(&roots, &images, &["create", "--name", "theirs", "localhost/whole:1", "/bin/tool"]);
        let tree = podman_beside(&roots, &images, &["mount", "theirs"]);
        assert!(Path::new(tree.trim()).join("etc/second").exists(), "{driver}");
        podman_beside(&roots, &images, &["umount", "theirs"]);
        podman_beside(&roots, &images, &["rm", "theirs"]);

        store.remove_container(&container_id(1)).unwrap();
        store.remove_image(&own).unwrap();
        assert_eq!((layers_in(&images, driver), layers_in(&roots.root(), driver)), (0, 0), "{driver}");
        assert_clean(&store);
    }
}

#[test]
fn additional_stores_are_read_and_never_written() {
    for driver in ["overlay", "vfs"] {
        let roots = Roots::with_driver(driver).unwrap();
        let shared = roots.base.path().join("shared");
        let theirs = StoreOptions {
            root: shared.clone(),
            runroot: roots.base.path().join("shared-run"),
            driver: driver.to_owned(),
            ..StoreOptions::default()
        };
        let writer = Store::open(theirs.clone()).unwrap();
        let image = put(&writer, &[small_tar(), second_tar()], &["localhost/shared:1"]);
        writer.close();
        rustix::mount::mount_bind(&shared, &shared).unwrap();
        let read_only = rustix::mount::MountFlags::BIND | rustix::mount::MountFlags::RDONLY;
        rustix::mount::mount_remount(&shared, read_only, "").unwrap();

        let option = format!("{driver}.imagestore={}", shared.display());
        let store = Store::open(StoreOptions { driver_options: vec![option], ..roots.options() }).unwrap();
        let found = store.find_image("localhost/shared:1").unwrap().unwrap();
        assert_eq!((&found.id, found.size.is_some()), (&image, true), "{driver}");
        assert!(!store.image_manifest(&image).unwrap().is_empty(), "{driver}");
        assert_eq!(layers_in(&roots.root(), driver), 0, "{driver}");
        for layer in store.layers().unwrap() {
            store.write_layer_tar(&layer.id, &mut std::io::sink()).unwrap();
        }
        store.create_container(new_container(1, Some(&image))).unwrap();
        let merged = store.mount(&container_id(1)).unwrap();
        assert!(merged.join("etc/second").exists() && !merged.join("bin/tool").exists(), "{driver}");
        durable::replace(&merged.join("etc/second"), b"own", 0o600, durable::Durability::Volatile).unwrap();
        let mounted = store.mount_image(&image, &container_id(1)).unwrap();
        assert_eq!(common::read(&mounted.join("etc/second")), "2", "{driver}");

        // On top of what is there; neither can be taken away.
        let own = put(&store, &[small_tar(), small_tar()], &["localhost/own:1", "localhost/shared:1"]);
        assert_eq!(layers_in(&roots.root(), driver), 2, "{driver}: the container's and one more");
        assert_eq!(store.find_image("localhost/shared:1").unwrap().unwrap().id, own, "{driver}: the own one counts");
        store.remove_image(&own).unwrap();
        let error = store.untag("localhost/shared:1").unwrap_err();
        assert!(matches!(error, RecordsError::ReadOnly { .. }), "{driver}: {error}");
        store.remove_container(&container_id(1)).unwrap();
        let error = store.remove_image(&image).unwrap_err();
        assert!(matches!(error, RemoveImageError::ReadOnly { .. }), "{driver}: {error}");
        assert_clean(&store);

        // The same image with a name of its own gets a record of its own.
        put(&store, &[small_tar(), second_tar()], &["localhost/second-name:1"]);
        assert_eq!(store.images().unwrap().len(), 1, "{driver}");
        assert_eq!(layers_in(&roots.root(), driver), 0, "{driver}");
        store.remove_image(&image).unwrap();
        assert_eq!(store.find_image("localhost/shared:1").unwrap().unwrap().id, image, "{driver}");
        drop(store);
        let missing = format!("{driver}.imagestore=/nowhere/at/all");
        let error = Store::open(StoreOptions { driver_options: vec![missing], ..roots.options() }).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("/nowhere/at/all"), "{error}");
    }
}

#[test]
fn what_another_tool_made_is_an_additional_store() {
    let roots = Roots::new();
    let tar = roots.base.path().join("layer.tar");
    std::fs::File::create(&tar).and_then(|mut file| std::io::Write::write_all(&mut file, &small_tar())).unwrap();
    roots.run("podman", &["import", tar.to_str().unwrap(), "localhost/theirs:1"]);
    let own: PathBuf = roots.base.path().join("own");
    let store = Store::open(StoreOptions {
        root: own.join("root"),
        runroot: own.join("run"),
        driver: "overlay".to_owned(),
        driver_options: vec![format!(".imagestore={}", roots.root().display())],
        ..StoreOptions::default()
    })
    .unwrap();
    let image = store.find_image("localhost/theirs:1").unwrap().unwrap().id;
    store.create_container(new_container(1, Some(&image))).unwrap();
    assert!(store.mount(&container_id(1)).unwrap().join("bin/tool").exists());
    // Seen at once when it changes.
    roots.run("podman", &["tag", "localhost/theirs:1", "localhost/more:1"]);
    assert_eq!(store.find_image("localhost/more:1").unwrap().unwrap().id, image);
    store.remove_container(&container_id(1)).unwrap();
    let same = StoreOptions { imagestore: Some(own.join("root")), root: own.join("root"), ..roots.options() };
    assert!(Store::open(same).is_err(), "images cannot be apart from themselves");
}
