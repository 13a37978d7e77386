//! Containers in user namespaces: their ids, and what the files of their images look like. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Entry, Roots, Tar, container_id, new_container, put, second_tar};
use domain::id_maps::{AutoIds, IdMaps};
use domain::security::IdMapping;
use image_store::{ContainerIds, CreateContainerError, FindIdsError, NewContainer, Store, SubordinateFiles};

fn range(host_id: u32, length: u32) -> Vec<IdMapping> {
    vec![IdMapping { container_id: 0, host_id, length }]
}

fn maps(uid: u32, gid: u32, length: u32) -> IdMaps {
    IdMaps::new(range(uid, length), range(gid, length)).unwrap()
}

fn auto(size: u32) -> ContainerIds {
    ContainerIds::Auto(AutoIds { size, uids: vec![], gids: vec![] })
}

/// A store for which ids are set aside.
fn open(roots: &Roots, uids: &str, gids: &str) -> Store {
    let file = |name: &str, text: &str| {
        let path = roots.base.path().join(name);
        durable::replace(&path, text.as_bytes(), 0o644, durability()).unwrap();
        path
    };
    let subordinate_files = SubordinateFiles { uids: file("subuid", uids), gids: file("subgid", gids) };
    Store::open(image_store::StoreOptions { subordinate_files, ..roots.options() }).unwrap()
}

fn durability() -> durable::Durability {
    durable::Durability::Volatile
}

fn owner(path: &Path) -> (u32, u32, u32) {
    let data = std::fs::symlink_metadata(path).unwrap();
    (data.uid(), data.gid(), data.mode() & 0o7777)
}

fn mounts_of(roots: &Roots) -> usize {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table.lines().filter(|line| line.contains(roots.base.path().to_str().unwrap())).count()
}

#[test]
fn files_of_an_image_have_the_ids_of_the_namespace() {
    let roots = Roots::new();
    let store = open(&roots, "", "");
    assert!(store.can_map_ids(), "this test needs Linux 5.19 and a file system with id-mapped mounts");
    let tar = Tar::default()
        .dir("./")
        .add(&Entry { name: b"./of-user", owner: (5, 7), mode: 0o640, content: b"x", ..Entry::default() })
        .file("./of-root", b"y")
        .finish();
    let image = put(&store, &[tar, second_tar()], &["localhost/a:1"]);
    let before = mounts_of(&roots);
    let new = NewContainer { ids: ContainerIds::Given(maps(100_000, 200_000, 1000)), ..new_container(1, Some(&image)) };
    let container = store.create_container(new).unwrap();
    assert_eq!(container.ids, Some(maps(100_000, 200_000, 1000)));
    let root = store.mount(&container.id).unwrap();
    assert_eq!(owner(&root), (100_000, 200_000, 0o555));
    assert_eq!(owner(&root.join("of-user")), (100_005, 200_007, 0o640));
    assert_eq!(owner(&root.join("of-root")), (100_000, 200_000, 0o644));
    // A change is copied up with the owner it shows.
    drop(std::fs::File::options().append(true).open(root.join("of-user")).unwrap());
    assert_eq!(owner(&root.join("of-user")), (100_005, 200_007, 0o640));
    assert_eq!(mounts_of(&roots), before + 1, "nothing but the root file system stays mounted");
    // Who is root inside gets to the root file system and the bundle, others do not.
    let bundle = store.container_run_dir(&container.id);
    for own in [root.parent().unwrap(), bundle.as_path(), bundle.parent().unwrap(), &store.container_dir(&container.id)]
    {
        assert_eq!(owner(own), (0, 200_000, 0o710), "{}", own.display());
    }
    for shared in [roots.root(), roots.root().join("overlay"), roots.runroot().join("overlay-containers")] {
        assert_eq!(owner(&shared).2 & 0o007, 0o001, "{}", shared.display());
    }
    drop(store);
    let store = open(&roots, "", "");
    assert_eq!(store.container(&container_id(1)).unwrap().unwrap().ids, Some(maps(100_000, 200_000, 1000)));
    assert_eq!(owner(&roots.root()).2, 0o711, "opening the store again does not close the way");
    store.remove_container(&container.id).unwrap();
    assert_eq!(mounts_of(&roots), before);
    assert!(!root.parent().unwrap().exists());
}

#[test]
fn automatic_ids_are_those_no_other_container_has() {
    let roots = Roots::new();
    let store = open(&roots, "containers:100000:100\nother:1:9\n", "containers:300000:50\ncontainers:500000:50\n");
    let create = |number: u32, ids: ContainerIds| {
        store.create_container(NewContainer { ids, ..new_container(number, None) }).map(|made| made.ids)
    };
    assert_eq!(create(1, auto(40)).unwrap(), Some(maps(100_000, 300_000, 40)));
    assert_eq!(create(2, ContainerIds::Node).unwrap(), None);
    assert_eq!(create(3, ContainerIds::Given(maps(100_045, 9, 5))).unwrap(), Some(maps(100_045, 9, 5)));
    let second = create(4, auto(20)).unwrap().unwrap();
    let listed = |mappings: &[IdMapping]| mappings.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(listed(second.uids()), ["0:100040:5", "5:100050:15"]);
    assert_eq!(listed(second.gids()), ["0:300040:10", "10:500000:10"]);
    let error = create(5, auto(41)).unwrap_err();
    let CreateContainerError::Ids { source, .. } = error else { panic!("{error:?}") };
    assert_eq!(
        source.to_string(),
        "a user namespace of 41 uids is asked for, and 35 of those set aside for containers are free"
    );
    assert!(store.container(&container_id(5)).unwrap().is_none() && roots.layer_dirs() == 4, "nothing was made");
    // What was given back is given again.
    store.remove_container(&container_id(1)).unwrap();
    assert_eq!(create(6, auto(40)).unwrap(), Some(maps(100_000, 300_000, 40)));

    let none = open(&roots, "other:1:9\n", "containers:1:9\n");
    let error = none.create_container(NewContainer { ids: auto(1), ..new_container(7, None) }).unwrap_err();
    assert!(matches!(error, CreateContainerError::Ids { source: FindIdsError::NoneSetAside { .. }, .. }), "{error:?}");
}

#[test]
fn two_stores_never_choose_the_same_ids() {
    const EACH: u32 = 20;
    let roots = Roots::in_memory();
    let stores = [0, EACH].map(|first| (first, open(&roots, "containers:100000:4000\n", "containers:100000:4000\n")));
    std::thread::scope(|scope| {
        for (first, store) in &stores {
            scope.spawn(move || {
                for number in *first..first + EACH {
                    store.create_container(NewContainer { ids: auto(100), ..new_container(number, None) }).unwrap();
                }
            });
        }
    });
    let containers = stores[0].1.containers().unwrap();
    let mut firsts: Vec<u32> = containers.iter().map(|container| container.ids.as_ref().unwrap().root().uid).collect();
    firsts.sort_unstable();
    assert_eq!(firsts, (0..2 * EACH).map(|at| 100_000 + 100 * at).collect::<Vec<_>>());
}

#[test]
fn a_mount_that_was_cut_off_leaves_nothing() {
    let roots = Roots::new();
    let store = open(&roots, "", "");
    let image = put(&store, &[common::small_tar()], &[]);
    let before = mounts_of(&roots);
    for number in [1, 2] {
        let ids = ContainerIds::Given(maps(100_000, 100_000, 10));
        let made = store.create_container(NewContainer { ids, ..new_container(number, Some(&image)) }).unwrap();
        // As a daemon leaves it that dies between mapping the layers and mounting the overlay.
        let mapped = roots.root().join("overlay").join(made.layer.unwrap().as_str()).join("mapped/0");
        std::fs::create_dir_all(&mapped).unwrap();
        rustix::mount::mount_bind(roots.root().join("overlay/l"), &mapped).unwrap();
    }
    let links = std::fs::read_dir(roots.root().join("overlay/l")).unwrap().count();
    store.mount(&container_id(1)).unwrap();
    assert_eq!(mounts_of(&roots), before + 2, "one was taken away, and the root mounted");
    for number in [1, 2] {
        store.remove_container(&container_id(number)).unwrap();
    }
    assert_eq!(mounts_of(&roots), before);
    assert_eq!(std::fs::read_dir(roots.root().join("overlay/l")).unwrap().count(), links - 2, "and nothing in it");
}
