//! Drivers other than overlay: the same images look the same, and the tools of the field read and write them. Needs
//! root, podman and skopeo, for btrfs a loop device.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::{
    Entry, Roots, Tar, commit, container_id, digest, gzip, image_of, new_container, put, second_tar, small_tar, stage,
};
use domain::id_maps::IdMaps;
use domain::security::IdMapping;
use image_store::{CheckOptions, Compression, ContainerIds, Depth, LayerPin, Volatile};

const COPYING: [&str; 2] = ["vfs", "btrfs"];

/// Everything a later layer can do to an earlier one.
fn changing_tars() -> Vec<Vec<u8>> {
    let mut first = Tar::default();
    first.dir("a/").file("a/kept", b"1").file("a/gone", b"2").file("a/other", b"3").dir("a/sub/").file("a/sub/x", b"4");
    first.dir("hidden/").file("hidden/one", b"5").dir("hidden/two/").file("hidden/two/deep", b"6");
    first.dir("becomes-file/").file("becomes-file/y", b"7").file("becomes-dir", b"8").symlink("link", "a/kept");
    first.file("hard", b"many names").hard_link("harder", "hard").hard_link("a/hardest", "hard");
    first.file("replaced", &vec![9; 70_000]).add(&Entry {
        name: b"owned",
        owner: (5, 7),
        mode: 0o4755,
        ..Entry::default()
    });
    first.pax(&[("SCHILY.xattr.user.kind", b"first")]).dir("marked/");
    let mut second = Tar::default();
    second.file("a/.wh.gone", b"").file("a/added", b"10").file("hidden/.wh..wh..opq", b"").file("hidden/new", b"11");
    second
        .file("becomes-file", b"12")
        .dir("becomes-dir/")
        .file("becomes-dir/z", b"14")
        .dir("a/sub/")
        .file("a/sub/.wh.x", b"");
    second.file(".wh.harder", b"").file("replaced", b"short").symlink("link", "replaced");
    second.add(&Entry {
        name: b"a/",
        flag: b'5',
        mode: 0o711,
        owner: (1, 2),
        mtime: 1_600_000_000,
        ..Entry::default()
    });
    second.pax(&[("SCHILY.xattr.user.other", b"second")]).dir("marked/");
    second.add(&Entry { name: b"node", flag: b'3', device: (1, 3), mode: 0o622, ..Entry::default() });
    second.add(&Entry { name: b"fifo", flag: b'6', mode: 0o600, ..Entry::default() });
    let third =
        Tar::default().file(".wh.hidden", b"").dir("hidden/").file("hidden/last", b"13").file(".wh.link", b"").finish();
    vec![first.finish(), second.finish(), third]
}

/// Names, kinds, modes, owners, times, targets and contents of everything beneath a directory; not how many names a file
/// has, because overlay counts those that are hidden.
fn listing(root: &Path) -> String {
    let script = "find . -mindepth 1 -printf '%p %y %m %U:%G %l %Ts ' \\( -type d -printf '\\n' -o -printf '%s\\n' \\) | sort; \
        find . -type f -exec sha256sum {} + | sort -k2; \
        find . -type c -exec stat -c '%n %t:%T' {} +";
    let output = Command::new("sh").args(["-ec", script]).current_dir(root).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn an_image_looks_the_same_with_every_driver() {
    let mut seen: Vec<(&str, String)> = Vec::new();
    for driver in ["overlay", "vfs", "btrfs"] {
        let Some(roots) = Roots::with_driver(driver) else { continue };
        let store = roots.open();
        let image = put(&store, &changing_tars(), &["localhost/changes:1"]);
        store.create_container(new_container(1, Some(&image))).unwrap();
        let merged = store.mount(&container_id(1)).unwrap();
        seen.push((driver, listing(&merged)));
        let attribute = |name: &str| {
            let mut value = [0; 16];
            rustix::fs::getxattr(merged.join("marked"), name, &mut value).map(|length| value[..length].to_vec())
        };
        assert_eq!(attribute("user.other").as_deref(), Ok(&b"second"[..]), "{driver}");
        assert!(attribute("user.kind").is_err(), "{driver}: attributes of a directory are the last layer's");
        let inode = |name: &str| std::fs::metadata(merged.join(name)).unwrap().ino();
        assert_eq!(inode("hard"), inode("a/hardest"), "{driver}");
        // A layer below is as it was, and gives its tar back.
        for layer in store.layers().unwrap().iter().filter(|layer| layer.diff_id.is_some()) {
            let (found, _) = store.write_layer_tar(&layer.id, &mut std::io::sink()).unwrap();
            assert_eq!(Some(found), layer.diff_id, "{driver}");
        }
        let options = CheckOptions { depth: Depth::Contents, unreferenced_age: Duration::ZERO };
        let report = store.check(&options).unwrap();
        assert!(report.is_clean(), "{driver}: {report:?}");
        store.unmount(&container_id(1)).unwrap();
        store.remove_container(&container_id(1)).unwrap();
        store.remove_image(&image).unwrap();
        assert_eq!(roots.layer_dirs(), 0, "{driver}");
    }
    assert!(seen[0].1.contains("./hidden/last f"), "{}", seen[0].1);
    for (driver, listing) in &seen[1..] {
        assert_eq!(listing, &seen[0].1, "{driver}");
    }
}

#[test]
fn the_tools_of_the_field_share_the_store() {
    for driver in COPYING {
        let Some(roots) = Roots::with_driver(driver) else { continue };
        let store = roots.open();
        let tars = [small_tar(), second_tar()];
        let ours = put(&store, &tars, &["localhost/ours:1"]);
        let list = roots.run("podman", &["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
        assert_eq!(list.trim(), format!("sha256:{ours} localhost/ours:1"), "{driver}");
        let out = roots.base.path().join("out");
        roots.run("skopeo", &["copy", &roots.reference("localhost/ours:1"), &format!("dir:{}", out.display())]);
        for tar in &tars {
            assert_eq!(std::fs::read(out.join(digest(tar).hex())).unwrap(), *tar, "{driver}: layer");
        }
        // Podman makes a container of our image, and takes it away.
        roots.run("podman", &["create", "--name", "theirs", "localhost/ours:1", "/bin/tool"]);
        let tree = roots.run("podman", &["mount", "theirs"]);
        let tree = Path::new(tree.trim());
        assert_eq!(common::read(&tree.join("etc/second")), "2", "{driver}");
        assert!(!tree.join("bin/tool").exists(), "{driver}");
        assert!(store.remove_image(&ours).is_err(), "{driver}: in use by podman's container");
        roots.run("podman", &["rm", "theirs"]);

        // And we of theirs.
        let tar = roots.base.path().join("layer.tar");
        std::fs::File::create(&tar).and_then(|mut file| std::io::Write::write_all(&mut file, &small_tar())).unwrap();
        roots.run("podman", &["import", tar.to_str().unwrap(), "localhost/theirs:1"]);
        roots.run("skopeo", &["copy", &format!("dir:{}", out.display()), &roots.reference("localhost/copied:1")]);
        let theirs = store.find_image("localhost/theirs:1").unwrap().unwrap();
        assert_eq!(store.find_image("localhost/copied:1").unwrap().unwrap().id, ours, "{driver}");
        let mut durable = new_container(2, Some(&theirs.id));
        durable.volatile = Volatile::No;
        store.create_container(durable).unwrap();
        let merged = store.mount(&container_id(2)).unwrap();
        assert!(merged.join("bin/tool").exists(), "{driver}");
        let list = roots.run("podman", &["ps", "--all", "--external", "--format", "{{.Names}}"]);
        assert_eq!(list.trim(), "k8s_test_2", "{driver}");
        store.unmount(&container_id(2)).unwrap();
        store.remove_container(&container_id(2)).unwrap();
        roots.run("podman", &["rmi", "--all", "--force"]);
        assert!(store.images().unwrap().is_empty(), "{driver}");
        assert_eq!(roots.layer_dirs(), 0, "{driver}");
    }
}

#[test]
fn files_of_a_container_get_the_ids_of_its_namespace() {
    for driver in COPYING {
        let Some(roots) = Roots::with_driver(driver) else { continue };
        let store = roots.open();
        assert!(store.can_map_ids());
        let image = put(&store, &changing_tars()[..1], &["localhost/changes:1"]);
        let ids = |host_id| vec![IdMapping { container_id: 0, host_id, length: 100 }];
        let mut new = new_container(1, Some(&image));
        new.ids = ContainerIds::Given(IdMaps::new(ids(100_000), ids(200_000)).unwrap());
        store.create_container(new).unwrap();
        let merged = store.mount(&container_id(1)).unwrap();
        let stat = |name: &str| {
            let stat = std::fs::symlink_metadata(merged.join(name)).unwrap();
            (stat.uid(), stat.gid(), stat.mode() & 0o7777)
        };
        assert_eq!(stat("owned"), (100_005, 200_007, 0o4755), "{driver}");
        assert_eq!(stat("link"), (100_000, 200_000, 0o777), "{driver}");
        assert_eq!(stat("harder"), (100_000, 200_000, 0o644), "{driver}");
        assert_eq!(stat("."), (100_000, 200_000, 0o555), "{driver}");
        let records = common::read(&roots.records("layers").join("volatile-layers.json"));
        assert!(
            records.contains(r#""uidmap":[{"container_id":0,"host_id":100000,"size":100}]"#),
            "{driver}: {records}"
        );
        // The image keeps its own.
        store.create_container(new_container(2, Some(&image))).unwrap();
        let plain = store.mount(&container_id(2)).unwrap();
        assert_eq!(std::fs::symlink_metadata(plain.join("owned")).unwrap().uid(), 5, "{driver}");
    }
}

#[test]
fn a_subvolume_is_limited_and_goes_with_those_inside() {
    let Some(roots) = Roots::with_driver("btrfs") else { return };
    let options = image_store::StoreOptions { driver_options: vec!["btrfs.size=4m".to_owned()], ..roots.options() };
    let store = image_store::Store::open(options).unwrap();
    let image = put(&store, &[small_tar()], &["localhost/x:1"]);
    store.create_container(new_container(1, Some(&image))).unwrap();
    let merged = store.mount(&container_id(1)).unwrap();
    let layer = store.container(&container_id(1)).unwrap().unwrap().layer.unwrap();
    assert_eq!(common::read(&roots.root().join("btrfs/quotas").join(layer.as_str())), (4 << 20).to_string());
    let nested = Command::new("btrfs").args(["-q", "subvolume", "create"]).arg(merged.join("nested")).status().unwrap();
    assert!(nested.success());
    std::os::unix::fs::symlink("/", merged.join("nested/link")).unwrap();
    let fill = format!("head -c 16m /dev/urandom > {}/big", merged.display());
    let filled = Command::new("sh").args(["-c", &fill]).output().unwrap();
    let told = String::from_utf8_lossy(&filled.stderr).into_owned();
    assert!(told.contains("quota"), "{told}");
    store.remove_container(&container_id(1)).unwrap();
    assert!(!merged.exists());
    assert!(!roots.root().join("btrfs/quotas").join(layer.as_str()).exists());
    let list = Command::new("btrfs").args(["subvolume", "list"]).arg(roots.root()).output().unwrap();
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert_eq!(list.lines().count(), 1, "only the image's is left: {list}");
}

#[test]
fn a_layer_that_was_not_expected_leaves_nothing() {
    for driver in COPYING {
        let Some(roots) = Roots::with_driver(driver) else { continue };
        let store = roots.open();
        let base = commit(&store, stage(&store, &gzip(&small_tar())), None).unwrap();
        // Onto a parent that is gone meanwhile.
        let staged = stage(&store, &second_tar());
        assert_eq!(staged.contents().compression, Compression::None);
        let (parent, pins) = (base.id().clone(), vec![base]);
        drop::<Vec<LayerPin>>(pins);
        assert!(store.remove_layer_if_unused(&parent).unwrap(), "{driver}");
        commit(&store, staged, Some(&parent)).unwrap_err();
        assert_eq!(roots.layer_dirs(), 0, "{driver}");
        let blobs = [(gzip(&small_tar()), small_tar(), "+gzip")];
        store.put_image(image_of(&blobs, &["localhost/none:1"], Some(&parent))).unwrap_err();
    }
}
