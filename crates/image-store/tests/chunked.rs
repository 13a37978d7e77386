//! Layers made of parts: what comes out, what is fetched for it, and what no table may say.
#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

#[path = "../../../tests/e2e/src/chunked.rs"]
#[allow(dead_code, unreachable_pub, missing_docs)]
mod blob;
mod common;

use std::collections::BTreeMap;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::time::Duration;

use blob::{Blob, How, build};
use common::{Entry, Roots, Tar, commit, digest, stage};
use image_store::{
    ByteRange, CheckOptions, ChunkedLayer, ChunkedOptions, ChunkedPlan, Depth, LayerPin, StageChunkedError,
    StageOptions, StagedChunked, Store, TocError, TocPosition, image_id_by_toc, toc_layer_id,
};
use serde_json::{Value, json};

const STRICT: ChunkedOptions = ChunkedOptions { use_hard_links: false, allow_unpredictable: false };
const LOOSE: ChunkedOptions = ChunkedOptions { use_hard_links: false, allow_unpredictable: true };

fn bytes_of(blob: &Blob, ranges: &[ByteRange]) -> Vec<u8> {
    let part = |range: &ByteRange| &blob.bytes[range.start as usize..range.end() as usize];
    ranges.iter().flat_map(part).copied().collect()
}

fn plan(store: &Store, blob: &Blob, options: ChunkedOptions) -> Result<ChunkedPlan, StageChunkedError> {
    let position = TocPosition::find(&blob.annotations, blob.bytes.len() as u64)?.unwrap();
    let split = position.split.map(|split| bytes_of(blob, &[split]));
    let layer = ChunkedLayer::parse(&position, &bytes_of(blob, &[position.table]), split)?;
    store.plan_chunked(layer, options)
}

/// What was made, and how many bytes of files were fetched for it.
fn make(store: &Store, blob: &Blob, options: ChunkedOptions) -> Result<(StagedChunked, u64), StageChunkedError> {
    let plan = plan(store, blob, options)?;
    let (ranges, missing) = (plan.ranges().to_vec(), plan.missing_bytes());
    store.stage_chunked(plan, &bytes_of(blob, &ranges)[..], StageOptions::default()).map(|staged| (staged, missing))
}

fn put(store: &Store, blob: &Blob, tar: &[u8], options: ChunkedOptions) -> (LayerPin, u64) {
    let (staged, missing) = make(store, blob, options).unwrap();
    (store.commit_chunked(staged, None, &digest(tar)).unwrap(), missing)
}

fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// Everything a layer can have, with some of its content made by `version`.
fn tar(version: u64) -> Vec<u8> {
    let mut tar = Tar::default();
    tar.dir("./").dir("./etc/").dir("./usr/").dir("./usr/bin/");
    for index in 0..40 {
        let seed = if index % 20 == 0 { 1000 * version + index } else { index };
        tar.file(&format!("./usr/bin/tool{index}"), &noise(seed, 5000 + 17 * index as usize));
    }
    let mut large = noise(77, 300_000);
    large[70_000..200_000].fill(0);
    large[250_000] = version as u8;
    tar.file("./usr/large", &large);
    tar.file("./etc/empty", b"");
    tar.symlink("./usr/lib", "bin/../bin");
    tar.hard_link("./etc/link", "./usr/bin/tool3");
    tar.pax(&[("SCHILY.xattr.user.note", b"\x00\x01binary")]);
    tar.add(&Entry { name: b"./etc/noted", mode: 0o4755, owner: (1000, 1001), content: b"noted", ..Entry::default() });
    tar.add(&Entry { name: b"./etc/null", flag: b'3', mode: 0o666, device: (1, 3), ..Entry::default() });
    tar.add(&Entry { name: b"./etc/pipe", flag: b'6', mode: 0o600, ..Entry::default() });
    tar.file("./etc/.wh.gone", b"").file("./usr/.wh..wh..opq", b"");
    tar.finish()
}

/// All that can be seen of a tree but inode numbers: kinds, modes, owners, times, links, attributes, content.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut inodes: BTreeMap<u64, String> = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        let kind = stat.file_type();
        let content = if kind.is_file() {
            digest(&std::fs::read(&path).unwrap()).to_string()
        } else if kind.is_symlink() {
            std::fs::read_link(&path).unwrap().to_string_lossy().into_owned()
        } else {
            String::new()
        };
        let mut names = vec![0; 4096];
        let length = rustix::fs::llistxattr(&path, &mut names).unwrap();
        let mut attributes = BTreeMap::new();
        for attribute in names[..length].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let mut value = vec![0; 4096];
            let attribute = std::ffi::OsStr::from_bytes(attribute);
            let length = rustix::fs::lgetxattr(&path, attribute, &mut value).unwrap();
            attributes.insert(attribute.to_owned(), value[..length].to_vec());
        }
        let first = inodes.entry(stat.ino()).or_insert_with(|| name.clone()).clone();
        let (times, owner) = ((stat.mtime(), stat.mtime_nsec()), (stat.uid(), stat.gid()));
        let times = if name.is_empty() { (0, 0) } else { times };
        let device = if kind.is_char_device() || kind.is_block_device() { stat.rdev() } else { 0 };
        found.insert(
            name,
            format!("{:o} {owner:?} {times:?} {device} {first} {} {content} {attributes:?}", stat.mode(), stat.nlink()),
        );
        if kind.is_dir() {
            let mut entries: Vec<_> = std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
            // Popped from the end: in order of names, so that of hard links the same one comes first everywhere.
            entries.sort_by(|a, b| b.cmp(a));
            left.extend(entries);
        }
    }
    found
}

fn assert_same(made: &Path, whole: &Path) {
    let (made, whole) = (tree(made), tree(whole));
    assert_eq!(made.keys().collect::<Vec<_>>(), whole.keys().collect::<Vec<_>>());
    for (name, entry) in &made {
        assert_eq!(entry, &whole[name], "{name}");
    }
}

fn assert_sound(store: &Store) {
    let options = CheckOptions { depth: Depth::Contents, unreferenced_age: Duration::from_secs(3600) };
    let report = store.check(&options).unwrap();
    assert!(report.is_clean(), "{report:?}");
}

fn diff_of(roots: &Roots, layer: &LayerPin) -> std::path::PathBuf {
    roots.root().join("overlay").join(layer.id().as_str()).join("diff")
}

fn record_of(roots: &Roots, id: &str) -> Value {
    let rows: Vec<Value> =
        serde_json::from_str(&common::read(&roots.root().join("overlay-layers/layers.json"))).unwrap();
    rows.into_iter().find(|row| row["id"] == id).unwrap()
}

#[test]
fn a_layer_of_parts_is_the_layer_as_a_whole() {
    for hard_links in [false, true] {
        let (roots, whole_roots) = (Roots::new(), Roots::new());
        let (store, whole_store) = (roots.open(), whole_roots.open());
        let options = ChunkedOptions { use_hard_links: hard_links, ..STRICT };
        let mut fetched = Vec::new();
        for version in [1, 2] {
            let tar = tar(version);
            let blob = build(&tar, How::default(), |_| {});
            let (pin, missing) = put(&store, &blob, &tar, options);
            fetched.push(missing);
            let whole = commit(&whole_store, stage(&whole_store, &blob.bytes), None).unwrap();
            assert_eq!(pin.id(), whole.id(), "the same identity");
            let made = tree(&diff_of(&roots, &pin));
            if !hard_links {
                assert_same(&diff_of(&roots, &pin), &diff_of(&whole_roots, &whole));
            }
            assert_eq!(made.len(), 52);
            assert_eq!(store.write_layer_tar(pin.id(), &mut std::io::sink()).unwrap().0, digest(&tar));
            let split = |roots: &Roots| {
                let path = roots.root().join("overlay-layers").join(format!("{}.tar-split.gz", pin.id()));
                std::fs::read(path).unwrap()
            };
            assert_eq!(split(&roots), split(&whole_roots), "the same tar-split stream");
            let record = record_of(&roots, pin.id().as_str());
            assert_eq!(record["diff-digest"], digest(&tar).as_str());
            assert_eq!(record["diff-size"], tar.len());
            assert_eq!(record["toc-digest"], blob.annotations["io.github.containers.zstd-chunked.manifest-checksum"]);
            assert_eq!(record["big-data-names"], json!(["zstd-chunked-layer-data", "zstd-chunked-manifest"]));
            assert!(record.get("compressed-diff-digest").is_none(), "nobody saw the whole blob");
            assert_sound(&store);
            // As it would have been recorded by others, who find the data by their keys.
            let data = roots.root().join("overlay-layers").join(pin.id().as_str());
            assert_eq!(std::fs::read_dir(data).unwrap().count(), 2);
        }
        assert!(fetched[1] * 5 < fetched[0], "{fetched:?}");
        if hard_links {
            let shared = |id: &str| roots.root().join("overlay").join(id).join("diff/usr/bin/tool5");
            let rows = store.layers().unwrap();
            let inodes: Vec<u64> =
                rows.iter().map(|row| std::fs::metadata(shared(row.id.as_str())).unwrap().ino()).collect();
            assert_eq!(inodes[0], inodes[1]);
        }
    }
}

#[test]
fn a_layer_of_parts_vouched_for_by_its_table_alone() {
    let roots = Roots::new();
    let store = roots.open();
    let tar = tar(1);
    let blob = build(&tar, How { has_split: false, ..How::default() }, |_| {});
    let error = make(&store, &blob, STRICT).unwrap_err();
    assert!(matches!(error, StageChunkedError::Toc(TocError::Unsuitable(_))), "{error}");
    let (pin, _) = put(&store, &blob, &tar, LOOSE);
    let toc = blob.annotations["io.github.containers.zstd-chunked.manifest-checksum"].clone();
    let toc = domain::digest::Digest::parse(&toc).unwrap();
    assert_eq!(pin.id(), &toc_layer_id(None, &toc));
    assert_eq!(pin.id().as_str(), digest(format!("+@TOC={}", toc.hex()).as_bytes()).hex());
    assert!(store.find_toc_layer(None, &toc).unwrap().is_some());
    let record = record_of(&roots, pin.id().as_str());
    assert_eq!(record["flags"]["expected-layer-diffid"], digest(&tar).as_str());
    assert_eq!((&record["diff-size"], record.get("diff-digest")), (&json!(-1), None));
    assert_sound(&store);
    let whole = Roots::new();
    let whole_store = whole.open();
    let whole_pin = commit(&whole_store, stage(&whole_store, &blob.bytes), None).unwrap();
    assert_same(&diff_of(&roots, &pin), &diff_of(&whole, &whole_pin));
    // Identity of the image, by the rule as text.
    assert_eq!(image_id_by_toc(&[None, None]), None);
    let text = format!("@With TOC:|{toc}|");
    assert_eq!(image_id_by_toc(&[None, Some(toc)]).unwrap().as_str(), digest(text.as_bytes()).hex());
}

#[test]
fn the_same_archive_on_another_parent_is_made_of_what_is_there() {
    let roots = Roots::new();
    let store = roots.open();
    let tar = tar(1);
    let compressed = common::gzip(&tar);
    let one = commit(&store, stage(&store, &compressed), None).unwrap();
    let base = commit(&store, stage(&store, &common::small_tar()), None).unwrap();
    assert!(store.stage_twin(&digest(b"unknown")).unwrap().is_none());
    let twin = store.stage_twin(&digest(&tar)).unwrap().unwrap();
    let twin = store.commit_chunked(twin, Some(base.id()), &digest(&tar)).unwrap();
    assert_same(&diff_of(&roots, &one), &diff_of(&roots, &twin));
    let (one, twin) = (record_of(&roots, one.id().as_str()), record_of(&roots, twin.id().as_str()));
    for key in ["compressed-diff-digest", "compressed-size", "diff-digest", "diff-size", "compression", "uidset"] {
        assert_eq!(one[key], twin[key], "{key}");
    }
    // A layer that was written to since is no source.
    for id in [&one, &twin].map(|record| record["id"].as_str().unwrap()) {
        let path = roots.root().join("overlay").join(id).join("diff/usr/bin/tool1");
        durable::replace(&path, &noise(9, 5017), 0o644, durable::Durability::Volatile).unwrap();
    }
    let twin = store.stage_twin(&digest(&tar)).unwrap().unwrap();
    let error = store.commit_chunked(twin, None, &digest(&tar)).unwrap_err();
    assert!(matches!(error, image_store::CommitLayerError::DiffId { .. }), "{error}");
}

#[test]
fn a_file_modified_in_another_layer_is_seen() {
    let roots = Roots::new();
    let store = roots.open();
    let (first, second) = (tar(1), tar(2));
    let (pin, _) = put(&store, &build(&first, How::default(), |_| {}), &first, STRICT);
    let blob = build(&second, How::default(), |_| {});
    let path = diff_of(&roots, &pin).join("usr/bin/tool1");
    durable::replace(&path, &noise(9, 5017), 0o644, durable::Durability::Volatile).unwrap();
    let error = make(&store, &blob, STRICT).unwrap_err();
    assert!(matches!(error, StageChunkedError::Source { .. }) && !error.is_refusal(), "{error}");
    // One that is gone, or has another length, is fetched instead.
    std::fs::remove_file(&path).unwrap();
    durable::replace(&path.with_file_name("tool2"), b"short", 0o644, durable::Durability::Volatile).unwrap();
    let (_, missing) = put(&store, &blob, &second, STRICT);
    assert!(missing > 2 * 5000);
}

/// Everything beneath the roots.
fn names(roots: &Roots) -> Vec<std::path::PathBuf> {
    let (mut found, mut left) = (Vec::new(), vec![roots.base.path().to_owned()]);
    while let Some(path) = left.pop() {
        if std::fs::symlink_metadata(&path).unwrap().is_dir() {
            left.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        found.push(path);
    }
    found.sort();
    found
}

#[test]
fn tables_that_lie_are_refused() {
    type Lie = fn(&mut Vec<Value>);
    fn entry<'v>(entries: &'v mut [Value], name: &str) -> &'v mut Value {
        entries.iter_mut().find(|entry| entry["name"] == name).unwrap()
    }
    const TOOL: &str = "./usr/bin/tool1";
    let lies: &[(&str, bool, Lie)] = &[
        ("a name that leads out", true, |list| entry(list, TOOL)["name"] = "../tool".into()),
        ("one that leads out by detours", true, |list| entry(list, TOOL)["name"] = "usr/../../tool".into()),
        ("a hard link that leads out", true, |list| entry(list, "./etc/link")["linkName"] = "../../x".into()),
        ("a hard link to what is not there", true, |list| entry(list, "./etc/link")["linkName"] = "no".into()),
        ("a name with a zero byte", true, |list| entry(list, TOOL)["name"] = "a\0b".into()),
        ("no name", true, |list| entry(list, TOOL)["name"] = "".into()),
        ("a name twice", true, |list| entry(list, TOOL)["name"] = "./usr/bin/tool2".into()),
        ("bytes of another file", true, |list| {
            let offset = entry(list, "./usr/bin/tool2")["offset"].clone();
            entry(list, "./usr/bin/tool3")["offset"] = offset;
        }),
        ("bytes beyond the layer", true, |list| entry(list, TOOL)["endOffset"] = (1_u64 << 50).into()),
        ("bytes that end before they begin", true, |list| entry(list, TOOL)["endOffset"] = 1.into()),
        ("an impossible size", true, |list| entry(list, TOOL)["size"] = (1_u64 << 60).into()),
        ("a size beyond numbers", true, |list| entry(list, TOOL)["size"] = u64::MAX.into()),
        ("a negative size", true, |list| entry(list, TOOL)["size"] = (-1).into()),
        ("a larger size", true, |list| entry(list, TOOL)["size"] = 5018.into()),
        ("a smaller size", true, |list| entry(list, TOOL)["size"] = 5016.into()),
        ("a chunk beyond the size", true, |list| entry(list, "./usr/large")["chunkSize"] = 299_999.into()),
        ("chunks with a gap", true, |list| {
            let chunk = list.iter_mut().find(|entry| entry["type"] == "chunk").unwrap();
            chunk["chunkOffset"] = 65_537.into();
        }),
        ("a chunk without its file", true, |list| list.insert(0, json!({ "type": "chunk", "name": "x" }))),
        ("no digest", true, |list| entry(list, TOOL)["digest"] = "".into()),
        ("a digest that is none", true, |list| entry(list, TOOL)["digest"] = "sha256:../../x".into()),
        ("another digest", true, |list| entry(list, TOOL)["digest"] = digest(b"x").to_string().into()),
        ("another digest of a chunk", true, |list| {
            entry(list, "./usr/large")["chunkDigest"] = digest(b"x").to_string().into();
        }),
        ("zeros that are none", true, |list| entry(list, "./usr/large")["chunkType"] = "zeros".into()),
        ("a chunk of an unknown type", true, |list| entry(list, "./usr/large")["chunkType"] = "ones".into()),
        ("an unknown type", true, |list| entry(list, TOOL)["type"] = "door".into()),
        ("an impossible owner", true, |list| entry(list, TOOL)["uid"] = u32::MAX.into()),
        ("a time that is none", true, |list| entry(list, TOOL)["modtime"] = "yesterday".into()),
        ("another mode", false, |list| entry(list, TOOL)["mode"] = 0o4755.into()),
        ("another owner", false, |list| entry(list, TOOL)["gid"] = 7.into()),
        ("another time", false, |list| entry(list, TOOL)["modtime"] = "2001-01-01T00:00:00Z".into()),
        ("another target", false, |list| entry(list, "./usr/lib")["linkName"] = "/etc".into()),
        ("another device", false, |list| entry(list, "./etc/null")["devMinor"] = 5.into()),
        ("a further attribute", false, |list| {
            entry(list, TOOL)["xattrs"] = json!({ "security.capability": "AQAAAgAgAAAAAAAAAAAAAAAAAAA=" });
        }),
        ("a file that is not in the archive", false, |list| {
            list.push(json!({ "type": "reg", "name": "etc/cron.d/x" }));
        }),
        ("a file less", false, |list| list.retain(|entry| entry["name"] != TOOL)),
    ];
    let roots = Roots::new();
    let store = roots.open();
    let tar = tar(1);
    let before = names(&roots);
    for (what, is_always, lie) in lies {
        for has_split in [true, false] {
            if !has_split && !is_always {
                // Nothing contradicts it: it is what the table's digest vouches for.
                continue;
            }
            let how = How { has_split, ..How::default() };
            let blob = build(&tar, how, |table| {
                lie(table["entries"].as_array_mut().unwrap());
            });
            let made = make(&store, &blob, LOOSE).map(|(staged, _)| staged.contents().clone());
            let error = made.expect_err(what);
            assert!(error.is_refusal(), "{what}: {error:?}");
        }
    }
    assert_eq!(names(&roots), before, "nothing is left of them");
    for (what, spoil) in [
        ("another version", (|table: &mut Value| table["version"] = 2.into()) as fn(&mut Value)),
        ("another tar-split stream", |table| table["tarSplitDigest"] = digest(b"x").to_string().into()),
        ("no entries", |table| table["entries"] = Value::Null),
    ] {
        let error = make(&store, &build(&tar, How::default(), spoil), LOOSE).expect_err(what);
        assert!(error.is_refusal(), "{what}: {error:?}");
    }
    let mut blob = build(&tar, How::default(), |_| {});
    blob.annotations
        .insert("io.github.containers.zstd-chunked.manifest-checksum".to_owned(), digest(b"another").to_string());
    assert!(make(&store, &blob, LOOSE).unwrap_err().is_refusal());
}

#[test]
fn links_of_a_table_lead_nowhere_else() {
    let roots = Roots::new();
    let store = roots.open();
    let outside = roots.base.path().join("outside");
    std::fs::create_dir(&outside).unwrap();
    let before = |target: &str, has_split: bool| {
        let tar = Tar::default().symlink("a", target).file("a/evil", b"1").finish();
        let blob = build(&tar, How { has_split, ..How::default() }, |_| {});
        make(&store, &blob, LOOSE).map(|(staged, _)| store.commit_chunked(staged, None, &digest(&tar)).unwrap())
    };
    for has_split in [true, false] {
        for target in ["/", "../../../../../../.."] {
            let pin = before(target, has_split).unwrap();
            assert_eq!(common::read(&diff_of(&roots, &pin).join("evil")), "1");
        }
        // What is not there when seen from inside is nothing to make files in.
        let error = before(outside.to_str().unwrap(), has_split).unwrap_err();
        assert!(error.is_refusal(), "{error:?}");
        assert_eq!(std::fs::read_dir(&outside).unwrap().count(), 0);
    }
}

#[test]
fn bytes_that_stop_or_differ_leave_nothing() {
    let roots = Roots::new();
    let store = roots.open();
    let tar = tar(1);
    let blob = build(&tar, How::default(), |_| {});
    let before = names(&roots);
    let stage = |change: fn(&mut Vec<u8>)| {
        let plan = plan(&store, &blob, STRICT).unwrap();
        let mut missing = bytes_of(&blob, plan.ranges());
        change(&mut missing);
        store.stage_chunked(plan, &missing[..], StageOptions::default()).map(drop).unwrap_err()
    };
    let error = stage(|missing| missing.truncate(missing.len() / 2));
    assert!(matches!(error, StageChunkedError::Fetch(_)), "{error:?}");
    let error = stage(|missing| {
        let middle = missing.len() / 2;
        missing[middle] ^= 1;
    });
    assert!(error.is_refusal(), "{error:?}");
    let plan = plan(&store, &blob, STRICT).unwrap();
    let missing = bytes_of(&blob, plan.ranges());
    let small = StageOptions { diff_size_max: Some(100_000) };
    store.stage_chunked(plan, &missing[..], small).map(drop).unwrap_err();
    assert_eq!(names(&roots), before);
}
