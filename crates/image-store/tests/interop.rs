//! The store and the tools of the field on the same directories, at the same time. Needs root, podman, skopeo and
//! buildah.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::Duration;

use common::{Roots, commit, container_id, digest, gzip, image_of, new_container, put, second_tar, small_tar, stage};
use image_store::{CheckOptions, Depth, LayerPin, Volatile};

/// An archive as GNU tar writes it: long names, hard links, holes, attributes, odd owners and modes.
fn gnu_tar(roots: &Roots, format: &str) -> Vec<u8> {
    let tree = roots.base.path().join(format!("tree-{format}"));
    std::fs::create_dir(&tree).unwrap();
    let script = "mkdir -p usr/lib etc && echo hello > etc/hello && ln etc/hello etc/hard && ln -s /etc/hello usr/abs \
        && mkfifo pipe && mknod null c 1 3 && chmod 4755 etc/hello && chown 1000:2000 usr && mkdir -m 1777 tmp \
        && truncate -s 300K hole && printf x | dd of=hole bs=1 seek=200000 conv=notrunc 2>/dev/null \
        && n=$(printf 'd%.0s' $(seq 90)) && mkdir -p $n/$n && echo deep > $n/$n/file && : > empty \
        && touch -d '2001-02-03 04:05:06.123456789' etc/hello usr && head -c 100000 /dev/urandom > random";
    assert!(Command::new("sh").args(["-ec", script]).current_dir(&tree).status().unwrap().success());
    let output = Command::new("tar")
        // The oldest format has no way to say where holes are.
        .args(if format == "ustar" { &[][..] } else { &["--sparse"][..] })
        .args([format!("--format={format}").as_str(), "-C", tree.to_str().unwrap(), "-cf", "-", "."])
        .output()
        .unwrap();
    assert!(output.status.success());
    output.stdout
}

#[test]
fn configurations_of_schema_1_are_made_where_others_store_none() {
    let (roots, tar) = (Roots::new(), small_tar());
    let blob = gzip(&tar);
    let history = serde_json::json!([{ "v1Compatibility": format!(r#"{{"id":"{}","os":"linux"}}"#, "1".repeat(64)) }]);
    let manifest = format!(
        r#"{{"schemaVersion":1,"name":"a","tag":"b","architecture":"amd64","fsLayers":[{{"blobSum":"{}"}}],"history":{history}}}"#,
        digest(&blob)
    );
    // Signed, as nearly all of them are: known by the digest of what was signed.
    let head = &manifest[..manifest.len() - 1];
    let protected = format!(r#"{{"formatLength":{},"formatTail":"fQ"}}"#, head.len());
    let protected = base64::Engine::encode(&base64::engine::general_purpose::URL_SAFE_NO_PAD, protected);
    let signed = format!(r#"{head},"signatures":[{{"header":{{"alg":"ES256"}},"protected":"{protected}"}}]}}"#);
    let directory = roots.base.path().join("image");
    std::fs::create_dir(&directory).unwrap();
    for (name, bytes) in [
        ("version", &b"Directory Transport Version: 1.1\n"[..]),
        ("manifest.json", signed.as_bytes()),
        (digest(&blob).hex(), &blob),
    ] {
        std::fs::File::create(directory.join(name)).unwrap().write_all(bytes).unwrap();
    }
    let source = format!("dir:{}", directory.display());
    roots.run("skopeo", &["--insecure-policy", "copy", "--quiet", &source, &roots.reference("localhost/old:1")]);
    let store = roots.open();
    let image = store.find_image("localhost/old:1").unwrap().unwrap();
    assert_eq!(image.digest, Some(digest(manifest.as_bytes())));
    let config = store.image_config(&image.id).unwrap();
    assert_eq!(digest(&config).hex(), image.id.as_str());
    let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"][0], digest(&tar).to_string());
    let report = store.check(&CheckOptions { depth: Depth::Contents, unreferenced_age: Duration::ZERO }).unwrap();
    assert!(report.is_clean(), "{report:?}");
    let (pin, diff_id) = store.find_layer_of_blob(None, &digest(&blob)).unwrap().unwrap();
    assert_eq!((diff_id, Some(pin.id())), (digest(&tar), image.top_layer.as_ref()));
}

#[test]
fn others_read_what_we_write() {
    let roots = Roots::new();
    let store = roots.open();
    let tars = [small_tar(), second_tar(), gnu_tar(&roots, "gnu"), gnu_tar(&roots, "pax"), gnu_tar(&roots, "ustar")];
    let blobs = [
        (gzip(&tars[0]), tars[0].clone(), "+gzip"),
        (zstd::encode_all(&tars[1][..], 3).unwrap(), tars[1].clone(), "+zstd"),
        (tars[2].clone(), tars[2].clone(), ""),
        (gzip(&tars[3]), tars[3].clone(), "+gzip"),
        (gzip(&tars[4]), tars[4].clone(), "+gzip"),
    ];
    let mut pins: Vec<LayerPin> = Vec::new();
    for (blob, tar, _) in &blobs {
        let staged = stage(&store, blob);
        assert_eq!(staged.contents().diff_id, digest(tar));
        assert_eq!(staged.contents().compressed_digest, digest(blob));
        let pin = commit(&store, staged, pins.last().map(LayerPin::id)).unwrap();
        pins.push(pin);
    }
    let image = image_of(&blobs, &["localhost/ours:1"], pins.last().map(LayerPin::id));
    let id = image.id.clone();
    store.put_image(image).unwrap();
    drop(pins);

    let list = roots.run("podman", &["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
    assert_eq!(list.trim(), format!("sha256:{id} localhost/ours:1"));
    let list = roots.run("buildah", &["images", "--no-trunc", "--format", "{{.ID}}"]);
    assert_eq!(list.trim(), format!("sha256:{id}"));

    // Every layer comes back bit for bit, sparse files and all.
    let out = roots.base.path().join("out");
    roots.run("skopeo", &["copy", &roots.reference("localhost/ours:1"), &format!("dir:{}", out.display())]);
    for tar in &tars {
        let hex = digest(tar).hex().to_owned();
        assert_eq!(std::fs::read(out.join(&hex)).unwrap(), *tar, "layer {hex}");
    }

    for layer in store.layers().unwrap() {
        let mut tar = Vec::new();
        let (found, size) = store.write_layer_tar(&layer.id, &mut tar).unwrap();
        assert_eq!((Some(found), Some(size)), (layer.diff_id, layer.diff_size));
        assert!(tars.contains(&tar));
    }

    // What the kernel shows is what GNU tar packed.
    let container = container_id(1);
    store.create_container(new_container(1, Some(&id))).unwrap();
    let merged = store.mount(&container).unwrap();
    assert_eq!(common::read(&merged.join("etc/passwd")), "root:x:0:0::/:/bin/sh\n");
    assert_eq!(common::read(&merged.join("etc/second")), "2");
    assert!(!merged.join("bin/tool").exists());
    let hello = std::fs::metadata(merged.join("etc/hello")).unwrap();
    assert_eq!((hello.mode() & 0o7777, hello.nlink()), (0o4755, 2));
    assert_eq!(hello.ino(), std::fs::metadata(merged.join("etc/hard")).unwrap().ino());
    let usr = std::fs::metadata(merged.join("usr")).unwrap();
    assert_eq!((usr.uid(), usr.gid()), (1000, 2000));
    let null = std::fs::metadata(merged.join("null")).unwrap();
    assert_eq!(null.rdev(), rustix::fs::makedev(1, 3));
    let hole = std::fs::metadata(merged.join("hole")).unwrap();
    assert_eq!(hole.size(), 300 << 10);
    let name = "d".repeat(90);
    assert_eq!(common::read(&merged.join(&name).join(&name).join("file")), "deep\n");
    let mut original = std::fs::read(roots.base.path().join("tree-ustar/random")).unwrap();
    assert_eq!(std::fs::read(merged.join("random")).unwrap(), original);
    original = std::fs::read(roots.base.path().join("tree-ustar/hole")).unwrap();
    assert_eq!(std::fs::read(merged.join("hole")).unwrap(), original);

    // Podman sees it, counts our mount, and refuses to take the image away.
    store.unmount(&container).unwrap();
    store.remove_container(&container).unwrap();
    let mut durable = new_container(2, Some(&id));
    durable.volatile = Volatile::No;
    store.create_container(durable).unwrap();
    let list = roots.run("podman", &["ps", "--all", "--external", "--no-trunc", "--format", "{{.ID}} {{.Names}}"]);
    assert_eq!(list.trim(), format!("{} k8s_test_2", container_id(2)));
    let refused = roots.tool("podman", &["rmi", "localhost/ours:1"]);
    assert!(!refused.status.success(), "podman removed an image in use");
    store.remove_container(&container_id(2)).unwrap();
    roots.run("podman", &["rmi", "localhost/ours:1"]);
    assert!(store.images().unwrap().is_empty());
    assert_eq!(roots.layer_dirs(), 0);
}

#[test]
fn we_read_what_others_write() {
    let roots = Roots::new();
    let store = roots.open();
    let tar = roots.base.path().join("layer.tar");
    std::fs::File::create(&tar).and_then(|mut file| std::io::Write::write_all(&mut file, &small_tar())).unwrap();
    roots.run("podman", &["import", tar.to_str().unwrap(), "localhost/theirs:1"]);
    let image = store.find_image("localhost/theirs:1").unwrap().unwrap();
    assert_eq!(image.names, ["localhost/theirs:1"]);
    assert!(image.size.unwrap() > small_tar().len() as u64);
    assert_eq!(store.find_image(&image.id.as_str()[..7]).unwrap().unwrap().id, image.id);
    let manifest = store.image_manifest(&image.id).unwrap();
    assert_eq!(Some(digest(&manifest)), image.digest);
    assert_eq!(digest(&store.image_config(&image.id).unwrap()).hex(), image.id.as_str());
    let base = store.find_layer(None, &digest(&small_tar())).unwrap().unwrap();
    assert_eq!(store.write_layer_tar(base.id(), &mut std::io::sink()).unwrap().0, digest(&small_tar()));
    let passwd = roots.root().join("overlay").join(base.id().as_str()).join("diff/etc/passwd");
    for damage in ["root:x:0:0::/:/bin/zh\n", "short", "root:x:0:0::/:/bin/sh\nlonger\n"] {
        durable::replace(&passwd, damage.as_bytes(), 0o644, durable::Durability::Volatile).unwrap();
        let error = store.write_layer_tar(base.id(), &mut std::io::sink()).unwrap_err();
        assert!(error.to_string().contains("file \"./etc/passwd\" was modified"), "{error}");
    }
    let intact = b"root:x:0:0::/:/bin/sh\n";
    durable::replace(&passwd, intact, 0o644, durable::Durability::Volatile).unwrap();
    drop(base);

    // A container of podman's is listed, keeps the image, and survives our changes beside it.
    roots.run("podman", &["create", "--name", "theirs", "localhost/theirs:1", "/bin/tool"]);
    let theirs = store.containers().unwrap();
    assert_eq!(theirs.len(), 1);
    assert_eq!(theirs[0].names, ["theirs"]);
    let refused = store.remove_image(&image.id).unwrap_err();
    assert!(refused.to_string().contains(theirs[0].id.as_str()), "{refused}");
    let mut durable = new_container(5, Some(&image.id));
    durable.volatile = Volatile::No;
    store.create_container(durable).unwrap();
    let merged = store.mount(&container_id(5)).unwrap();
    assert!(merged.join("bin/tool").exists());
    let ours = put(&store, &[small_tar(), second_tar()], &["localhost/ours:2", "localhost/theirs:1"]);
    let list = roots.run("podman", &["images", "--no-trunc", "--format", "{{.ID}} {{.Repository}}:{{.Tag}}"]);
    assert!(list.contains(&format!("sha256:{ours} localhost/ours:2")), "{list}");
    assert!(list.contains(&format!("sha256:{ours} localhost/theirs:1")), "{list}");
    assert!(list.contains(&format!("sha256:{} <none>", image.id)), "{list}");
    let list = roots.run("podman", &["ps", "--all", "--format", "{{.Names}}"]);
    assert_eq!(list.trim(), "theirs");
    roots.run("podman", &["rm", "theirs"]);
    assert_eq!(store.containers().unwrap().len(), 1);
    assert!(store.mounted_path(&container_id(5)).unwrap().is_some(), "podman took our mount away");

    // skopeo writes another image onto the layer we have.
    let copied = roots.reference("localhost/copied:1");
    roots.run("skopeo", &["copy", &roots.reference("localhost/ours:2"), &copied]);
    assert!(store.find_image("localhost/copied:1").unwrap().is_some());
    store.remove_container(&container_id(5)).unwrap();
    assert_eq!(store.untag("localhost/copied:1").unwrap().as_ref(), Some(&ours));
    for image in store.images().unwrap() {
        store.remove_image(&image.id).unwrap();
    }
    assert_eq!(roots.layer_dirs(), 0);
    assert_eq!(std::fs::read_dir(roots.root().join("overlay/l")).unwrap().count(), 0);
    assert_eq!(roots.run("podman", &["images", "-q"]), "");
}

#[test]
fn what_an_old_podman_takes_away_is_mounted_again() {
    let roots = Roots::new();
    let store = roots.open();
    let image = put(&store, &[small_tar()], &["localhost/x:1"]);
    store.create_container(new_container(1, Some(&image))).unwrap();
    let merged = store.mount(&container_id(1)).unwrap();
    durable::replace(&merged.join("written"), b"kept", 0o600, durable::Durability::Volatile).unwrap();
    // Debian's podman does not read volatile records, sees nothing mounted, and detaches the driver's home.
    roots.run("podman", &["images", "-q"]);
    let merged = store.mount(&container_id(1)).unwrap();
    assert_eq!(common::read(&merged.join("written")), "kept");
    assert_eq!(
        store.layer_place(&container_id(1)).unwrap().usage(None).unwrap().unwrap(),
        image_store::Usage { bytes: store_diff_bytes(&roots, &store), inodes: 2 }
    );
    // Another store on the same directories, as after a restart, finds it mounted and recorded.
    drop(store);
    let store = roots.open();
    assert_eq!(store.mounted_path(&container_id(1)).unwrap(), Some(merged.clone()));
    let container = store.container(&container_id(1)).unwrap().unwrap();
    assert_eq!(container.image, Some(image.clone()));
    assert_eq!(container.volatile, Volatile::Yes);
    // A tmpfs in the run directory, as for shared memory, is no obstacle.
    let shm = store.container_run_dir(&container_id(1)).join("shm");
    std::fs::create_dir(&shm).unwrap();
    rustix::mount::mount("tmpfs", &shm, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
    store.remove_container(&container_id(1)).unwrap();
    store.remove_container(&container_id(1)).unwrap();
    assert!(!merged.exists());
    assert!(store.container(&container_id(1)).unwrap().is_none());
    assert!(!store.container_run_dir(&container_id(1)).exists());
    // An empty root file system, for a sandbox without an image.
    store.create_container(new_container(2, None)).unwrap();
    let merged = store.mount(&container_id(2)).unwrap();
    assert_eq!(std::fs::read_dir(&merged).unwrap().count(), 0);
    store.unmount(&container_id(2)).unwrap();
    store.unmount(&container_id(2)).unwrap();
    assert!(store.mounted_path(&container_id(2)).unwrap().is_none());
    store.remove_container(&container_id(2)).unwrap();
    store.remove_image(&image).unwrap();
    assert_eq!(roots.layer_dirs(), 0);
}

/// Length of the one file written, and of the directory it is in.
fn store_diff_bytes(roots: &Roots, store: &image_store::Store) -> u64 {
    let layer = store.container(&container_id(1)).unwrap().unwrap().layer.unwrap();
    let diff = roots.root().join("overlay").join(layer.as_str()).join("diff");
    std::fs::metadata(&diff).unwrap().len() + std::fs::metadata(diff.join("written")).unwrap().len()
}
