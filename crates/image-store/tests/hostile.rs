//! Layers made to hurt: escapes, damage, sizes, a full disk. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Entry, Roots, Tar, commit, digest, gzip, new_container, put, second_tar, small_tar, stage};
use image_store::{CommitLayerError, DevicePolicy, ExpectedLayer, StageError, StageOptions, Store, StoreOptions};

/// Everything beneath a directory: kind, mode, content or target.
fn picture(path: &Path) -> BTreeMap<String, String> {
    fn walk(path: &Path, picture: &mut BTreeMap<String, String>) {
        for entry in std::fs::read_dir(path).unwrap() {
            let entry = entry.unwrap();
            let data = entry.metadata().unwrap();
            let what = if data.is_dir() {
                walk(&entry.path(), picture);
                "directory".to_owned()
            } else if data.is_symlink() {
                std::fs::read_link(entry.path()).unwrap().display().to_string()
            } else if data.is_file() {
                String::from_utf8_lossy(&std::fs::read(entry.path()).unwrap()).into_owned()
            } else {
                format!("node {}", data.rdev())
            };
            let value = format!("{:o} {}:{} {} {what}", data.mode(), data.uid(), data.gid(), data.nlink());
            picture.insert(entry.path().display().to_string(), value);
        }
    }
    let mut all = BTreeMap::new();
    walk(path, &mut all);
    all
}

fn staged_leftovers(roots: &Roots) -> Vec<String> {
    let area = roots.root().join("overlay/tempdirs/crio-staging");
    let mut left = Vec::new();
    for instance in std::fs::read_dir(area).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        for entry in std::fs::read_dir(instance.path()).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name != "lock" && name != "pending" {
                left.push(name);
            }
        }
    }
    for entry in std::fs::read_dir(roots.root().join("overlay-layers")).unwrap().flatten() {
        let name = entry.file_name().into_string().unwrap();
        if name.starts_with(".crio") || name.starts_with(".tmp") {
            left.push(name);
        }
    }
    left
}

/// Ends a chain of additions.
fn done(_: &mut Tar) {}

#[test]
fn nothing_gets_out() {
    let roots = Roots::new();
    let outside = roots.base.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    std::fs::create_dir(outside.join("sub")).unwrap();
    durable_write(&outside.join("canary"), b"alive");
    let store = roots.open();
    let before = picture(&outside);
    let target = outside.to_str().unwrap().to_owned();
    let up = format!("{}{target}", "../".repeat(30));
    let canary = format!("{target}/canary");
    let long = "n".repeat(256);
    let mut cases: Vec<(&str, Vec<u8>, Result<(), &str>)> = Vec::new();
    let mut case = |name, build: &dyn Fn(&mut Tar), expected| {
        let mut tar = Tar::default();
        build(&mut tar);
        cases.push((name, tar.finish(), expected));
    };
    case("dot dot", &|tar| done(tar.file("../../../../pwned", b"x")), Err("leads out"));
    case("dot dot later", &|tar| done(tar.file("a/../../pwned", b"x")), Err("leads out"));
    case("absolute is inside", &|tar| done(tar.file(&format!("{target}/pwned")[..], b"x")), Ok(()));
    for link in [&target, &up] {
        case("file through link", &|tar| done(tar.symlink("l", link).file("l/pwned", b"x")), Err("open parent"));
        case("directory through link", &|tar| done(tar.symlink("l", link).dir("l/sub")), Err("open parent"));
        case(
            "whiteout through link",
            &|tar| done(tar.symlink("l", link).file("l/.wh.canary", b"")),
            Err("open parent"),
        );
        case("opaque through link", &|tar| done(tar.symlink("l", link).file("l/.wh..wh..opq", b"")), Err("opaque"));
        case(
            "hard link through link",
            &|tar| done(tar.symlink("l", link).hard_link("h", "l/canary")),
            Err("hard link"),
        );
        case(
            "parent made through link",
            &|tar| done(tar.symlink("l", link).file("l/new/deep/pwned", b"x")),
            Err("open parent"),
        );
    }
    case("hard link out", &|tar| done(tar.hard_link("h", "../../outside/canary")), Err("leads out"));
    case("hard link absolute", &|tar| done(tar.hard_link("h", &canary)), Err("hard link"));
    case(
        "link over directory",
        &|tar| done(tar.dir("d").symlink("d", &target).file("d/pwned", b"x")),
        Err("open parent"),
    );
    case(
        "link over full directory",
        &|tar| done(tar.dir("d").file("d/f", b"x").symlink("d", &target)),
        Err("replace directory"),
    );
    case("file over link", &|tar| done(tar.symlink("f", &canary).file("f", b"dead")), Err("more than once"));
    case("empty file over link", &|tar| done(tar.symlink("f", &canary).file("f", b"")), Ok(()));
    case(
        "through hard link to link",
        &|tar| done(tar.symlink("s", &canary).hard_link("h", "s").file("h", b"")),
        Ok(()),
    );
    case("whiteout of nothing", &|tar| done(tar.file(".wh.", b"")), Err("whiteout of nothing"));
    case("whiteout of dot", &|tar| done(tar.file("a/.wh..", b"")), Err("whiteout of nothing"));
    case("whiteout of parent", &|tar| done(tar.file("a/.wh...", b"")), Err("whiteout of nothing"));
    case("file below file", &|tar| done(tar.file("a", b"x").file("a/b", b"x")), Err("open parent"));
    case("component too long", &|tar| done(tar.pax(&[("path", long.as_bytes())]).file("x", b"")), Err("make file"));
    case("zero byte in name", &|tar| done(tar.pax(&[("path", b"a\0b")]).file("x", b"")), Err("zero byte"));
    case("no name", &|tar| done(tar.file("", b"")), Err("name is empty"));
    case("owner nobody can have", &|tar| done(tar.pax(&[("uid", b"4294967295")]).file("x", b"")), Err("owner out of"));
    case(
        "extension beyond sense",
        &|tar| done(tar.add(&Entry { flag: b'x', content: &vec![b'1'; (1 << 20) + 1], ..Entry::default() })),
        Err("bytes of extensions"),
    );
    case("unknown type", &|tar| done(tar.add(&Entry { name: b"x", flag: b'Z', ..Entry::default() })), Err("type 'Z'"));
    case(
        "wrong PAX length",
        &|tar| done(tar.add(&Entry { flag: b'x', content: b"99 path=a\n", ..Entry::default() })),
        Err("wrong length"),
    );
    case(
        "sparse map that lies",
        &|tar| {
            tar.pax(&[("GNU.sparse.numblocks", b"2"), ("GNU.sparse.map", b"0,10,5,10"), ("GNU.sparse.size", b"100")])
                .file("x", &[0; 20]);
        },
        Err("out of order"),
    );
    case(
        "sparse map beyond",
        &|tar| {
            tar.pax(&[("GNU.sparse.numblocks", b"1"), ("GNU.sparse.map", b"95,10"), ("GNU.sparse.size", b"100")])
                .file("x", &[0; 10]);
        },
        Err("beyond the end"),
    );
    case(
        "overlay's own attributes",
        &|tar| {
            tar.pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/etc"), ("SCHILY.xattr.user.fine", b"1")]).dir("d/");
        },
        Ok(()),
    );
    for (name, tar, expected) in cases {
        let staged = store.stage_layer(&gzip(&tar)[..], StageOptions::default());
        match (staged, expected) {
            (Ok(staged), Ok(())) => {
                assert_eq!(staged.contents().diff_id, digest(&tar), "{name}");
            }
            (Err(error), Err(text)) => {
                let chain = chain(&error);
                assert!(chain.contains(text), "{name}: {chain}");
            }
            (Ok(_), Err(text)) => panic!("{name}: staged, instead of {text}"),
            (Err(error), Ok(())) => panic!("{name}: {}", chain(&error)),
        }
        assert_eq!(picture(&outside), before, "{name}");
        assert_eq!(staged_leftovers(&roots), Vec::<String>::new(), "{name}");
    }
}

fn durable_write(path: &Path, bytes: &[u8]) {
    durable::replace(path, bytes, 0o644, durable::Durability::Volatile).unwrap();
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(error) = next {
        text.push_str(": ");
        text.push_str(&error.to_string());
        next = error.source();
    }
    text
}

#[test]
fn whiteouts_attributes_and_times_arrive() {
    let roots = Roots::new();
    let store = roots.open();
    let base = Tar::default()
        .dir("keep")
        .file("keep/a", b"1")
        .dir("gone")
        .file("gone/b", b"1")
        .dir("opaque")
        .file("opaque/c", b"1")
        .file("file", b"1")
        .dir("again")
        .file("again/old", b"1")
        .finish();
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let top = Tar::default()
        .file(".wh.gone", b"")
        .file("opaque/.wh..wh..opq", b"")
        .file("opaque/new", b"2")
        .file(".wh.file", b"")
        // Hidden, then made anew: the old content must not come back.
        .file(".wh.again", b"")
        .dir("again")
        .file("again/new", b"2")
        .file(".wh..wh.plnk", b"")
        .pax(&[("SCHILY.xattr.security.capability", &capability), ("SCHILY.xattr.user.note", b"hi")])
        .add(&Entry { name: b"ping", mode: 0o4755, owner: (7, 9), content: b"#!", ..Entry::default() })
        .pax(&[("mtime", b"1234567890.5")])
        .add(&Entry { name: b"dated", flag: b'5', mode: 0o1700, ..Entry::default() })
        .file("dated/inside", b"x")
        .finish();
    let image = put(&store, &[base, top], &["localhost/x:1"]);
    store.create_container(new_container(1, Some(&image))).unwrap();
    let merged = store.mount(&common::container_id(1)).unwrap();
    let names = |path: &str| {
        let mut names: Vec<_> = std::fs::read_dir(merged.join(path))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(""), ["again", "dated", "keep", "opaque", "ping"]);
    assert_eq!(names("keep"), ["a"]);
    assert_eq!(names("opaque"), ["new"]);
    assert_eq!(names("again"), ["new"]);
    let ping = std::fs::metadata(merged.join("ping")).unwrap();
    assert_eq!((ping.mode() & 0o7777, ping.uid(), ping.gid(), ping.mtime()), (0o4755, 7, 9, 1_700_000_000));
    let mut value = [0; 64];
    let length = rustix::fs::getxattr(merged.join("ping"), "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..length], capability);
    let length = rustix::fs::getxattr(merged.join("ping"), "user.note", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"hi");
    let dated = std::fs::metadata(merged.join("dated")).unwrap();
    assert_eq!((dated.mtime(), dated.mtime_nsec(), dated.mode() & 0o7777), (1_234_567_890, 500_000_000, 0o1700));
    store.remove_container(&common::container_id(1)).unwrap();
}

#[test]
fn devices_can_be_refused() {
    let roots = Roots::new();
    let store = Store::open(StoreOptions { devices: DevicePolicy::Refuse, ..roots.options() }).unwrap();
    let device = Entry { name: b"sda", flag: b'4', device: (8, 0), ..Entry::default() };
    let tar = Tar::default().add(&device).finish();
    let error = store.stage_layer(&tar[..], StageOptions::default()).unwrap_err();
    assert!(chain(&error).contains("device nodes are refused"));
}

struct FailingReader<'a>(&'a [u8]);

impl Read for FailingReader<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.0.is_empty() {
            return Err(io::Error::from(io::ErrorKind::ConnectionReset));
        }
        self.0.read(buffer)
    }
}

#[test]
fn damage_is_found() {
    let roots = Roots::new();
    let store = roots.open();
    let big = Tar::default().file("big", &(0..600_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<_>>()).finish();
    let zstd = zstd::encode_all(&big[..], 3).unwrap();
    let gz = gzip(&big);
    for blob in [&gz, &zstd] {
        for cut in [1, 5, 11, 100, blob.len() / 2, blob.len() - 9, blob.len() - 1] {
            let error = store.stage_layer(&blob[..cut], StageOptions::default());
            assert!(error.is_err(), "cut at {cut} of {}", blob.len());
        }
        let error = store.stage_layer(FailingReader(&blob[..blob.len() / 2]), StageOptions::default()).unwrap_err();
        assert!(matches!(&error, StageError::Source(source) if source.kind() == io::ErrorKind::ConnectionReset));
        let error = store.stage_layer(&blob[..], StageOptions { diff_size_max: Some(1 << 20) }).unwrap_err();
        assert!(matches!(error, StageError::TooLarge { limit: 1_048_576 }), "{error:?}");
    }
    // Damage in the middle of gzip is caught by its own checksum at the latest.
    for at in [50, gz.len() / 3, gz.len() - 6] {
        let mut bad = gz.clone();
        bad[at] ^= 0x40;
        assert!(store.stage_layer(&bad[..], StageOptions::default()).is_err(), "flipped byte {at}");
    }
    for cut in [100, 512, 700, big.len() / 2] {
        assert!(store.stage_layer(&big[..cut], StageOptions::default()).is_err(), "tar cut at {cut}");
    }
    let mut trailing = gz.clone();
    trailing.extend_from_slice(b"garbage");
    assert!(store.stage_layer(&trailing[..], StageOptions::default()).is_err());
    // Several members are one stream; what follows the end of the archive belongs to the layer.
    let (head, tail) = big.split_at(1_000_000);
    let several = [gzip(head), gzip(tail), gzip(&[0; 5000])].concat();
    let staged = stage(&store, &several);
    assert_eq!(staged.contents().diff_id, digest(&[&big[..], &[0; 5000]].concat()));
    assert_eq!(staged.contents().compressed_size, several.len() as u64);
    drop(staged);
    for magic in [&b"\xfd7zXZ\0rest"[..], b"BZh91AY", b"\x28\xb5\x2f\xfd", b"\x1f\x8b\x08"] {
        let error = store.stage_layer(magic, StageOptions::default()).unwrap_err();
        assert!(matches!(error, StageError::Decompress(_)), "{magic:?}: {error}");
    }
    // Empty archives are layers too.
    for empty in [&b""[..], &[0; 1024]] {
        assert_eq!(stage(&store, empty).contents().entries, 0);
    }
    assert_eq!(staged_leftovers(&roots), Vec::<String>::new());

    let wrong = digest(b"other");
    let right = |staged: &image_store::StagedLayer| ExpectedLayer {
        diff_id: Some(staged.contents().diff_id.clone()),
        compressed_digest: staged.contents().compressed_digest.clone(),
        compressed_size: Some(staged.contents().compressed_size),
    };
    let staged = stage(&store, &gz);
    let expected = ExpectedLayer { diff_id: Some(wrong.clone()), ..right(&staged) };
    assert!(matches!(store.commit_layer(staged, None, &expected), Err(CommitLayerError::DiffId { .. })));
    let staged = stage(&store, &gz);
    let expected = ExpectedLayer { compressed_digest: wrong.clone(), ..right(&staged) };
    assert!(matches!(store.commit_layer(staged, None, &expected), Err(CommitLayerError::CompressedDigest { .. })));
    let staged = stage(&store, &gz);
    let expected = ExpectedLayer { compressed_size: Some(1), ..right(&staged) };
    assert!(matches!(store.commit_layer(staged, None, &expected), Err(CommitLayerError::CompressedSize { .. })));
    let staged = stage(&store, &gz);
    let parent = image_store::layer_id(None, &wrong);
    let expected = right(&staged);
    assert!(matches!(store.commit_layer(staged, Some(&parent), &expected), Err(CommitLayerError::NoParent { .. })));
    assert_eq!(staged_leftovers(&roots), Vec::<String>::new());
    assert_eq!(roots.layer_dirs(), 0);
}

#[test]
fn a_full_disk_leaves_nothing() {
    let roots = Roots::new();
    std::fs::create_dir(roots.root()).unwrap();
    rustix::mount::mount("tmpfs", roots.root(), "tmpfs", rustix::mount::MountFlags::empty(), Some(c"size=4m")).unwrap();
    let store = roots.open();
    let image = put(&store, &[small_tar()], &["localhost/fits:1"]);
    let big = Tar::default().file("big", &vec![1; 8 << 20]).finish();
    let error = store.stage_layer(&gzip(&big)[..], StageOptions::default()).unwrap_err();
    assert!(error.is_out_of_space(), "{}", chain(&error));
    assert_eq!(staged_leftovers(&roots), Vec::<String>::new());
    let tight = store.stage_layer(&big[..], StageOptions::default()).unwrap_err();
    assert!(tight.is_out_of_space());
    // What was there works on, and there is room again.
    store.create_container(new_container(1, Some(&image))).unwrap();
    assert!(store.mount(&common::container_id(1)).unwrap().join("etc/passwd").exists());
    store.remove_container(&common::container_id(1)).unwrap();
    put(&store, &[small_tar(), second_tar()], &["localhost/fits:2"]);
}

#[test]
fn many_layers_are_mounted() {
    let roots = Roots::new();
    let store = roots.open();
    let tars: Vec<Vec<u8>> = (0..130).map(|number| Tar::default().file(&format!("f{number}"), b"x").finish()).collect();
    let mut pins: Vec<image_store::LayerPin> = Vec::new();
    let blobs: Vec<_> = tars.iter().map(|tar| (tar.clone(), tar.clone(), "")).collect();
    for tar in &tars {
        let pin = commit(&store, stage(&store, tar), pins.last().map(image_store::LayerPin::id)).unwrap();
        pins.push(pin);
    }
    let image = common::image_of(&blobs, &["localhost/deep:1"], pins.last().map(image_store::LayerPin::id));
    let id = image.id.clone();
    store.put_image(image).unwrap();
    store.create_container(new_container(1, Some(&id))).unwrap();
    let merged = store.mount(&common::container_id(1)).unwrap();
    assert_eq!(std::fs::read_dir(merged).unwrap().count(), 130);
    store.remove_container(&common::container_id(1)).unwrap();
}
