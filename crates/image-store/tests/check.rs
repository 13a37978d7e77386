//! Damage of every kind: found by name, repaired without loss of anything good. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{Roots, Tar, container_id, new_container, put, second_tar, small_tar};
use domain::id::{ContainerId, ImageId, LayerId};
use image_store::{
    CheckOptions, Damage, Depth, OnContainers, OnOpen, RepairError, RepairOptions, Report, Store, StoreOptions,
    layer_id,
};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn options(depth: Depth) -> CheckOptions {
    CheckOptions { depth, unreferenced_age: DAY }
}

fn check(store: &Store, depth: Depth) -> Report {
    store.check(&options(depth)).unwrap()
}

fn lines(store: &Store) -> Vec<String> {
    check(store, Depth::Contents).lines()
}

fn repair(store: &Store, containers: OnContainers) -> Vec<RepairError> {
    let report = check(store, Depth::Contents);
    store.repair(&report, &RepairOptions { containers, is_alive: &|_| false })
}

fn third_tar() -> Vec<u8> {
    Tar::default().dir("opt/").file("opt/third", b"3").finish()
}

fn replace(path: &Path, bytes: &[u8]) {
    std::fs::File::create(path).unwrap();
    std::io::Write::write_all(&mut std::fs::File::create(path).unwrap(), bytes).unwrap();
}

/// One image to be damaged, one that shares its base, one that shares nothing; a container of the first.
struct Set {
    roots: Roots,
    store: Store,
    damaged: ImageId,
    sharing: ImageId,
    other: ImageId,
    base: LayerId,
    top: LayerId,
}

impl Set {
    fn new() -> Self {
        let roots = Roots::in_memory();
        let store = roots.open();
        let damaged = put(&store, &[small_tar(), second_tar()], &["localhost/damaged:1"]);
        let sharing = put(&store, &[small_tar(), third_tar()], &["localhost/sharing:1"]);
        let other = put(&store, &[third_tar()], &["localhost/other:1"]);
        store.create_container(new_container(1, Some(&damaged))).unwrap();
        let base = layer_id(None, &common::digest(&small_tar()));
        let top = layer_id(Some(&base), &common::digest(&second_tar()));
        Self { roots, store, damaged, sharing, other, base, top }
    }

    fn layer(&self, layer: &LayerId) -> PathBuf {
        self.roots.root().join("overlay").join(layer.as_str())
    }

    fn image(&self) -> PathBuf {
        self.roots.root().join("overlay-images").join(self.damaged.as_str())
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.store.images().unwrap().into_iter().flat_map(|image| image.names).collect();
        names.sort();
        names
    }
}

type Harm = fn(&Set);

#[test]
fn every_damage_is_named_and_repaired_and_nothing_good_goes() {
    const ALL: &[&str] = &["localhost/damaged:1", "localhost/other:1", "localhost/sharing:1"];
    const TOP_GONE: &[&str] = &["localhost/other:1", "localhost/sharing:1"];
    const BASE_GONE: &[&str] = &["localhost/other:1"];
    let cases: &[(&str, Harm, &[&str], &[&str])] = &[
        ("nothing", |_| {}, &[], ALL),
        (
            "changed file",
            |set| replace(&set.layer(&set.top).join("diff/etc/second"), b"X"),
            &[
                "layer T does not give its tar back",
                "image D is made of layer T, which is damaged",
                "container C is made",
            ],
            TOP_GONE,
        ),
        (
            "changed file of a shared layer",
            |set| replace(&set.layer(&set.base).join("diff/etc/passwd"), b"evil"),
            &["layer B does not give its tar back", "image D is made of layer B", "image S is made of layer B"],
            BASE_GONE,
        ),
        (
            "added and removed files, changed mode",
            |set| {
                replace(&set.layer(&set.base).join("diff/etc/added"), b"");
                std::fs::remove_file(set.layer(&set.base).join("diff/bin/sh")).unwrap();
                let mode = std::fs::Permissions::from_mode(0o4777);
                std::fs::set_permissions(set.layer(&set.base).join("diff/bin/tool"), mode).unwrap();
            },
            &[
                "layer B \"etc/added\" belongs to nobody",
                "layer B \"bin/sh\" is missing",
                "layer B \"bin/tool\" has mode 4777, not 0644",
            ],
            BASE_GONE,
        ),
        (
            "whiteout gone",
            |set| std::fs::remove_file(set.layer(&set.top).join("diff/bin/tool")).unwrap(),
            &["layer T \"bin/tool\" is missing"],
            TOP_GONE,
        ),
        (
            "no directory",
            |set| std::fs::remove_dir_all(set.layer(&set.top)).unwrap(),
            &["layer T has no diff", "image D is made of layer T, which is damaged"],
            TOP_GONE,
        ),
        (
            "no diff",
            |set| std::fs::remove_dir_all(set.layer(&set.base).join("diff")).unwrap(),
            &["layer B has no diff"],
            BASE_GONE,
        ),
        (
            "no link",
            |set| std::fs::remove_file(set.layer(&set.top).join("link")).unwrap(),
            &["layer T has no link"],
            TOP_GONE,
        ),
        (
            "no lower",
            |set| std::fs::remove_file(set.layer(&set.top).join("lower")).unwrap(),
            &["layer T has no lower"],
            TOP_GONE,
        ),
        (
            "lower leads nowhere",
            |set| replace(&set.layer(&set.top).join("lower"), b"l/AAAAAAAAAAAAAAAAAAAAAAAAAA"),
            &["layer T cannot be mounted: mount overlay at"],
            TOP_GONE,
        ),
        (
            "no tar-split",
            |set| {
                let split = format!("overlay-layers/{}.tar-split.gz", set.top);
                std::fs::remove_file(set.roots.root().join(split)).unwrap();
            },
            &["layer T has no tar-split"],
            TOP_GONE,
        ),
        (
            "tar-split cut short",
            |set| {
                let split = set.roots.root().join(format!("overlay-layers/{}.tar-split.gz", set.top));
                let bytes = std::fs::read(&split).unwrap();
                replace(&split, &bytes[..bytes.len() / 2]);
            },
            &["layer T does not give its tar back"],
            TOP_GONE,
        ),
        (
            "manifest cut short",
            |set| replace(&set.image().join("manifest"), b"{}"),
            &["image D has data \"manifest\" of 2 bytes, not", "container C is made from image D, which is damaged"],
            TOP_GONE,
        ),
        (
            "configuration changed",
            |set| {
                let directory = std::fs::read_dir(set.image()).unwrap().map(|entry| entry.unwrap());
                let path = directory
                    .map(|entry| entry.path())
                    .find(|path| path.file_name().unwrap().to_str().unwrap().starts_with("=c2hh"));
                let mut bytes = std::fs::read(path.as_ref().unwrap()).unwrap();
                bytes[3] ^= 1;
                replace(&path.unwrap(), &bytes);
            },
            &["image D has data \"sha256:", "with digest sha256:"],
            TOP_GONE,
        ),
        (
            "manifest gone",
            |set| std::fs::remove_file(set.image().join("manifest")).unwrap(),
            &["image D has no data \"manifest\": No such file"],
            TOP_GONE,
        ),
        (
            "layer of nobody",
            |set| std::fs::create_dir_all(set.layer(&LayerId::parse(&"e".repeat(64)).unwrap()).join("diff")).unwrap(),
            &["is a directory no record mentions"],
            ALL,
        ),
        (
            "strays",
            |set| {
                let root = set.roots.root();
                std::os::unix::fs::symlink("../gone/diff", root.join("overlay/l/BBBBBBBBBBBBBBBBBBBBBBBBBB")).unwrap();
                std::fs::create_dir(root.join("overlay-images").join("f".repeat(64))).unwrap();
                std::fs::create_dir_all(root.join("overlay-containers").join("d".repeat(64)).join("userdata")).unwrap();
                replace(&root.join(format!("overlay-layers/{}.tar-split.gz", "c".repeat(64))), b"x");
                std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).unwrap();
                std::fs::create_dir_all(root.join("overlay/tempdirs/crio-staging/00ff/pending")).unwrap();
                replace(&root.join("overlay/tempdirs/crio-staging/00ff/lock"), b"");
            },
            &[
                "a short name that leads nowhere",
                "data of an image no record mentions",
                "data of a container no record mentions",
                "data of a layer no record mentions",
                "left by a process that is gone",
                "mode 755 lets others in",
            ],
            ALL,
        ),
    ];
    for (name, harm, expected, kept) in cases {
        let set = Set::new();
        harm(&set);
        let found = lines(&set.store);
        assert_eq!(found.is_empty(), expected.is_empty(), "{name}: {found:#?}");
        for text in *expected {
            let text = text
                .replace(" T", &format!(" {}", set.top))
                .replace(" B", &format!(" {}", set.base))
                .replace(" D", &format!(" {}", set.damaged))
                .replace(" S ", &format!(" {} ", set.sharing))
                .replace(" C", &format!(" {}", container_id(1)));
            assert!(found.iter().any(|line| line.contains(&text)), "{name}: {text}: {found:#?}");
        }
        // Without force the container stays, and with it what it is made of.
        let refused = repair(&set.store, OnContainers::Keep);
        assert!(refused.iter().all(|error| !error.is_failure()), "{name}: {refused:#?}");
        assert_eq!(refused.is_empty(), kept.len() == 3, "{name}: {refused:#?}");
        assert!(set.store.container(&container_id(1)).unwrap().is_some(), "{name}");
        // One that lives stays even then.
        let report = check(&set.store, Depth::Contents);
        let is_alive = &|_: &ContainerId| true;
        let refused = set.store.repair(&report, &RepairOptions { containers: OnContainers::Remove, is_alive });
        assert_eq!(refused.is_empty(), kept.len() == 3, "{name}: {refused:#?}");
        assert!(set.store.container(&container_id(1)).unwrap().is_some(), "{name}");

        let errors = repair(&set.store, OnContainers::Remove);
        assert!(errors.is_empty(), "{name}: {errors:#?}");
        assert_eq!(lines(&set.store), [""; 0], "{name}");
        assert_eq!(set.names(), *kept, "{name}");
        assert_eq!(set.store.container(&container_id(1)).unwrap().is_some(), kept.len() == 3, "{name}");
        assert!(set.store.find_image(set.other.as_str()).unwrap().is_some());
        // What went can come again.
        put(&set.store, &[small_tar(), second_tar()], &["localhost/damaged:1"]);
        assert_eq!(lines(&set.store), [""; 0], "{name}");
    }
}

#[test]
fn the_quick_check_reads_no_contents() {
    let set = Set::new();
    replace(&set.layer(&set.base).join("diff/etc/passwd"), b"evil");
    assert!(check(&set.store, Depth::Presence).is_clean());
    assert!(!check(&set.store, Depth::Digests).is_clean());
    std::fs::remove_dir_all(set.layer(&set.top)).unwrap();
    let report = check(&set.store, Depth::Presence);
    assert_eq!((report.layers.len(), report.images.len(), report.containers.len()), (1, 1, 1), "{report:#?}");
    // A record that is gone damages what is made of it.
    let layers = set.roots.root().join("overlay-layers/layers.json");
    replace(&layers, b"[]");
    let report = check(&set.store, Depth::Presence);
    assert!(report.images.values().flatten().all(|damage| matches!(damage, Damage::LayerMissing { .. })));
    assert_eq!(report.images.len(), 3, "{report:#?}");
}

#[test]
fn a_mounted_container_is_never_removed() {
    let set = Set::new();
    set.store.mount(&container_id(1)).unwrap();
    std::fs::remove_file(set.image().join("manifest")).unwrap();
    let errors = repair(&set.store, OnContainers::Remove);
    let alive = errors.iter().filter(|error| matches!(error, RepairError::Alive { .. })).count();
    let in_use = errors.iter().filter(|error| matches!(error, RepairError::InUse { .. })).count();
    assert_eq!((alive, in_use, errors.len()), (1, 1, 2), "{errors:#?}");
    assert!(set.store.mounted_path(&container_id(1)).unwrap().is_some());
}

#[test]
fn layers_count_as_unreferenced_once_they_are_old() {
    let roots = Roots::in_memory();
    let store = roots.open();
    let pin = {
        let staged = common::stage(&store, &common::gzip(&small_tar()));
        common::commit(&store, staged, None).unwrap()
    };
    assert!(store.check(&options(Depth::Contents)).unwrap().is_clean());
    let at_once = CheckOptions { depth: Depth::Presence, unreferenced_age: Duration::ZERO };
    // Marked by a process that lives: an image will use it.
    assert!(store.check(&at_once).unwrap().is_clean());
    let other = Store::open(StoreOptions { on_open: OnOpen::LeaveAsIs, ..roots.options() }).unwrap();
    assert!(other.check(&at_once).unwrap().is_clean());
    drop(pin);
    drop(store);
    let report = other.check(&at_once).unwrap();
    let layer = layer_id(None, &common::digest(&small_tar()));
    assert!(report.lines().contains(&format!("layer {layer} is used by no image and no container")), "{report:#?}");
    assert!(other.check(&options(Depth::Contents)).unwrap().layers.is_empty());
    let errors = other.repair(&report, &RepairOptions { containers: OnContainers::Keep, is_alive: &|_| false });
    assert!(errors.is_empty(), "{errors:#?}");
    assert!(other.check(&at_once).unwrap().is_clean());
    assert_eq!(roots.layer_dirs(), 0);
    other.close();
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(&format!("{} ", roots.root().join("overlay").display())));
}
