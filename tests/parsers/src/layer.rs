//! Layers: archives whose headers carry a checksum, which mutations would only break, and unpacking them for real.

use std::cell::OnceCell;
use std::fs::DirEntry;
use std::path::Path;

use image_store::{StageOptions, Store, StoreOptions};

/// The unit of a tar archive.
const BLOCK_BYTES: usize = 512;
/// Where in a header the checksum stands, and the size of the content.
const CHECKSUM: std::ops::Range<usize> = 148..156;
const SIZE: std::ops::Range<usize> = 124..136;
/// Much more than any seed, and little enough for a thousand of them.
const DIFF_BYTES_MAX: u64 = 1 << 20;

/// Reads the archive as it is, and again with right checksums, so that what lies behind them is reached.
pub(crate) fn scan(bytes: &[u8]) {
    let _ = image_store::tar::scan(bytes);
    let _ = image_store::tar::scan(&with_checksums(bytes));
}

/// Unpacks the archive into a store. Whatever it holds, nothing beside the store changes.
pub(crate) fn unpack(bytes: &[u8]) {
    stage(&with_checksums(bytes));
}

/// The same with bytes that are compressed, which must stay as they are to be read at all.
pub(crate) fn decompress(bytes: &[u8]) {
    stage(bytes);
}

fn stage(bytes: &[u8]) {
    thread_local! {
        static AREA: OnceCell<Area> = const { OnceCell::new() };
    }
    AREA.with(|area| {
        let area = area.get_or_init(Area::new);
        let options = StageOptions { diff_size_max: Some(DIFF_BYTES_MAX) };
        if let Ok(staged) = area.store.stage_layer(bytes, options) {
            assert!(staged.contents().diff_size <= DIFF_BYTES_MAX, "the limit holds");
        }
        area.check();
    });
}

/// Copies an archive out of a container. Nothing beside the one name that was asked for is there afterwards.
pub(crate) fn copy_out(bytes: &[u8]) {
    let area = tempfile::tempdir().expect("a directory");
    let inside = area.path().join("inside");
    std::fs::create_dir(&inside).expect("a directory");
    std::os::unix::fs::symlink(area.path(), inside.join("out")).expect("a link");
    for bytes in [bytes, &with_checksums(bytes)] {
        crioctl::fuzz_unpack(bytes, &inside);
        let names = |path: &Path| -> Vec<_> {
            let mut names: Vec<_> =
                std::fs::read_dir(path).expect("lists").map(|it| it.expect("an entry").file_name()).collect();
            names.retain(|name| name != "b");
            names
        };
        assert_eq!(
            (names(area.path()), names(&inside)),
            (vec!["inside".into()], vec!["out".into()]),
            "it stays inside"
        );
    }
}

/// A store, and beside it what a layer would like to reach.
struct Area {
    store: Store,
    directory: tempfile::TempDir,
}

impl Area {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let inside = |name: &str| directory.path().join(name);
        std::fs::create_dir(inside("outside")).expect("a directory");
        let store = Store::open(StoreOptions {
            root: inside("root"),
            runroot: inside("run"),
            driver_options: vec!["overlay.skip_mount_home=true".to_owned()],
            ..StoreOptions::default()
        })
        .expect("a store");
        Self { store, directory }
    }

    fn check(&self) {
        let names = |path: &Path| {
            let entries = std::fs::read_dir(path).expect("a directory of ours").map(|entry| entry.expect("an entry"));
            let mut names: Vec<_> = entries.map(|entry: DirEntry| entry.file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(names(self.directory.path()), ["outside", "root", "run"], "nothing new beside the store");
        assert!(names(&self.directory.path().join("outside")).is_empty(), "nothing reached outside the store");
    }
}

/// The archive with the checksum of every header put right, as far as headers can be told.
fn with_checksums(bytes: &[u8]) -> Vec<u8> {
    let mut archive = bytes.to_vec();
    let mut at = 0;
    while let Some(header) = archive.get_mut(at..at + BLOCK_BYTES) {
        if header.iter().any(|byte| *byte != 0) {
            header[CHECKSUM].fill(b' ');
            let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
            header[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        let digits = header[SIZE].iter().map_while(|byte| char::from(*byte).to_digit(8));
        let size = digits.fold(0, |size: usize, digit| size.saturating_mul(8).saturating_add(digit as usize));
        at = size.div_ceil(BLOCK_BYTES).saturating_add(1).saturating_mul(BLOCK_BYTES).saturating_add(at);
        if at > archive.len() {
            break;
        }
    }
    archive
}

#[test]
fn a_broken_header_is_put_right() {
    let seed = include_bytes!("../../../fuzz/seeds/tar/ustar");
    assert_eq!(with_checksums(seed), seed, "a right one stays");
    assert_eq!(image_store::tar::scan(seed).expect("a whole archive"), 8);
    let mut broken = seed.to_vec();
    broken[0] ^= 1;
    assert!(image_store::tar::scan(&broken).is_err());
    assert_eq!(image_store::tar::scan(&with_checksums(&broken)).expect("a whole archive"), 8);
}
