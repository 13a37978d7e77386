//! What archives try to write elsewhere than in their layer, or to be what nobody asked for. Needs root.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use common::{Entry, Roots, Tar, commit, gzip, stage};
use image_store::{DevicePolicy, StageOptions, Store, StoreOptions};

const MODE: u32 = 0o7777;

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

/// Unpacks an archive and returns the directory its files are in.
fn unpack(roots: &Roots, store: &Store, tar: &[u8]) -> PathBuf {
    let pin = commit(store, stage(store, &gzip(tar)), None).unwrap();
    roots.root().join("overlay").join(pin.id().as_str()).join("diff")
}

fn refused(store: &Store, tar: &[u8]) -> String {
    chain(&store.stage_layer(&gzip(tar)[..], StageOptions::default()).unwrap_err())
}

fn stat(path: &Path) -> std::fs::Metadata {
    std::fs::symlink_metadata(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// A link that is in the way leads where it would lead with the layer as `/`, never further.
#[test]
fn links_in_the_way_lead_to_places_in_the_layer() {
    let roots = Roots::new();
    let store = roots.open();
    let up = format!("{}etc", "../".repeat(30));
    for (name, target) in [("absolute", "/etc"), ("relative", "./etc"), ("far up", &up), ("through root", "/../../etc")]
    {
        let tar = Tar::default()
            .dir("etc")
            .file("etc/secret", b"inside")
            .symlink("l", target)
            .symlink("again", "l")
            .file("l/file", b"1")
            .file("again/other", b"2")
            .dir("l/made")
            .symlink("l/link", "secret")
            .hard_link("hard", "l/secret")
            .hard_link("again/harder", "again/secret")
            .file("l/.wh.gone", b"")
            .finish();
        let diff = unpack(&roots, &store, &tar);
        for (path, text) in [("etc/file", "1"), ("etc/other", "2"), ("hard", "inside"), ("etc/harder", "inside")] {
            assert_eq!(std::fs::read_to_string(diff.join(path)).unwrap(), text, "{name}: {path}");
        }
        assert_eq!(stat(&diff.join("etc/secret")).nlink(), 3, "{name}");
        assert!(stat(&diff.join("etc/made")).is_dir(), "{name}");
        assert!(stat(&diff.join("etc/gone")).file_type().is_char_device(), "{name}");
        assert!(stat(&diff.join("l")).is_symlink(), "{name}");
        let image = store.remove_layer_if_unused(&image_store::layer_id(None, &common::digest(&tar)));
        assert!(image.unwrap(), "{name}");
    }
}

#[test]
fn what_leads_nowhere_is_refused() {
    let roots = Roots::new();
    let store = roots.open();
    let mut long_chain = Tar::default();
    for number in 0..60 {
        long_chain.symlink(&format!("l{number}"), &format!("l{}", number + 1));
    }
    long_chain.dir("l60").file("l0/x", b"1");
    let mut device = Tar::default();
    device.add(&Entry { name: b"tty", flag: b'3', device: (5, 0), ..Entry::default() }).file("tty/x", b"1");
    for (name, tar, expected) in [
        ("a link to itself", Tar::default().symlink("l", "l").file("l/x", b"1").finish(), "open parent"),
        ("links in a circle", Tar::default().symlink("a", "b").symlink("b", "a").dir("a/x").finish(), "open parent"),
        ("more links than the kernel follows", long_chain.finish(), "open parent"),
        ("magic link", Tar::default().symlink("l", "/proc/self/root").file("l/x", b"1").finish(), "open parent"),
        ("below a device", device.finish(), "open parent"),
        ("hard link to a directory", Tar::default().dir("d").hard_link("h", "d").finish(), "hard link"),
        ("hard link to itself", Tar::default().hard_link("h", "h").finish(), "hard link"),
        ("hard link to what comes later", Tar::default().hard_link("h", "f").file("f", b"1").finish(), "hard link"),
        ("hard link to the layer", Tar::default().hard_link("h", "./").finish(), "link to the layer itself"),
        ("hard link through a file", Tar::default().file("f", b"1").hard_link("h", "f/x").finish(), "hard link"),
        ("whiteout below a file", Tar::default().file("f", b"1").file("f/.wh.x", b"").finish(), "open parent"),
        (
            "file in place of a full directory",
            { Tar::default().dir("d").file("d/x", b"1").file("d", b"").finish() },
            "replace directory",
        ),
        ("content twice", Tar::default().file("f", b"1").file("./f", b"2").finish(), "more than once"),
        (
            "content twice, told apart by dots",
            { Tar::default().dir("d").file("d/f", b"1").file("d/./../d//f", b"2").finish() },
            "more than once",
        ),
    ] {
        let chain = refused(&store, &tar);
        assert!(chain.contains(expected), "{name}: {chain}");
    }
    assert_eq!(roots.layer_dirs(), 0);
}

/// The last entry of a name counts, whatever was there before.
#[test]
fn names_collide_as_for_others() {
    let roots = Roots::new();
    let store = roots.open();
    let tar = Tar::default()
        // A file of the old kind whose name ends with a slash is a directory.
        .add(&Entry { name: b"slash/", flag: 0, mode: 0o755, ..Entry::default() })
        .file("slash/in", b"1")
        .file("no-directory/", b"1")
        .file("file-then-directory", b"")
        .dir("file-then-directory/")
        .file("file-then-directory/in", b"1")
        .dir("directory-then-file")
        .file("directory-then-file", b"")
        .symlink("link-then-directory", "slash")
        .dir("link-then-directory")
        .file("link-then-directory/in", b"2")
        .dir("directory-then-link")
        .symlink("directory-then-link", "slash")
        .dir("twice")
        .add(&Entry { name: b"twice/", flag: b'5', mode: 0o700, ..Entry::default() })
        .file("whiteout-then-file", b"")
        .file(".wh.hidden", b"")
        .file("hidden", b"back")
        .finish();
    let diff = unpack(&roots, &store, &tar);
    for (path, text) in [
        ("slash/in", "1"),
        ("file-then-directory/in", "1"),
        ("no-directory", "1"),
        ("directory-then-file", ""),
        ("link-then-directory/in", "2"),
        ("hidden", "back"),
    ] {
        assert_eq!(std::fs::read_to_string(diff.join(path)).unwrap(), text, "{path}");
    }
    assert!(stat(&diff.join("link-then-directory")).is_dir());
    assert!(stat(&diff.join("directory-then-link")).is_symlink());
    assert_eq!(stat(&diff.join("twice")).mode() & MODE, 0o700);
}

/// Neither the umask nor what a directory passes on changes what an entry says.
#[test]
fn owners_and_modes_are_those_of_the_archive() {
    let roots = Roots::new();
    let store = roots.open();
    let entry =
        |name: &'static str, flag, mode, owner| Entry { name: name.as_bytes(), flag, mode, owner, ..Entry::default() };
    let tar = Tar::default()
        .add(&entry("open", b'5', 0o777, (0, 0)))
        .add(&Entry { content: b"1", ..entry("open/file", b'0', 0o666, (0, 0)) })
        .add(&entry("open/empty", b'0', 0o602, (0, 0)))
        .add(&Entry { content: b"1", ..entry("closed", b'0', 0o000, (0, 0)) })
        .add(&entry("group", b'5', 0o6777, (5, 6)))
        .add(&Entry { content: b"1", ..entry("group/file", b'0', 0o640, (0, 0)) })
        .add(&entry("group/empty", b'0', 0o644, (0, 0)))
        .add(&entry("group/directory", b'5', 0o750, (0, 0)))
        .add(&Entry { link: b"file", ..entry("group/link", b'2', 0o777, (0, 0)) })
        .add(&entry("group/fifo", b'6', 0o622, (0, 0)))
        .add(&Entry { content: b"1", ..entry("setuid", b'0', 0o4711, (0, 0)) })
        .add(&Entry { content: b"1", ..entry("given", b'0', 0o2755, (7, 8)) })
        .file("implicit/file", b"1")
        .add(&entry("no-way-in", b'5', 0o000, (9, 9)))
        .add(&Entry { content: b"1", ..entry("no-way-in/file", b'0', 0o600, (9, 9)) })
        .finish();
    let diff = unpack(&roots, &store, &tar);
    for (path, mode, owner) in [
        ("open", 0o777, (0, 0)),
        ("open/file", 0o666, (0, 0)),
        ("open/empty", 0o602, (0, 0)),
        ("closed", 0o000, (0, 0)),
        ("group", 0o6777, (5, 6)),
        ("group/file", 0o640, (0, 0)),
        ("group/empty", 0o644, (0, 0)),
        ("group/directory", 0o750, (0, 0)),
        ("group/link", 0o777, (0, 0)),
        ("group/fifo", 0o622, (0, 0)),
        ("setuid", 0o4711, (0, 0)),
        ("given", 0o2755, (7, 8)),
        ("implicit", 0o755, (0, 0)),
        ("implicit/file", 0o644, (0, 0)),
        ("no-way-in", 0o000, (9, 9)),
        ("no-way-in/file", 0o600, (9, 9)),
    ] {
        let data = stat(&diff.join(path));
        assert_eq!((data.mode() & MODE, (data.uid(), data.gid())), (mode, owner), "{path}");
    }
}

#[test]
fn attributes_are_taken_from_a_list() {
    let roots = Roots::new();
    let store = roots.open();
    let names = [
        ("user.fine", true),
        ("user.overlay.opaque", false),
        ("user.overlay.redirect", false),
        ("trusted.overlay.opaque", false),
        ("trusted.overlay.metacopy", false),
        ("trusted.anything", false),
        ("security.selinux", false),
        ("security.ima", false),
        ("security.evm", false),
        ("security.apparmor", false),
        ("system.posix_acl_access", false),
        ("system.posix_acl_default", false),
    ];
    let keys: Vec<String> = names.iter().map(|(name, _)| format!("SCHILY.xattr.{name}")).collect();
    let records: Vec<(&str, &[u8])> = keys.iter().map(|key| (key.as_str(), &b"y"[..])).collect();
    let tar = Tar::default().pax(&records).dir("directory/").pax(&records).file("file", b"1").finish();
    let diff = unpack(&roots, &store, &tar);
    for path in ["directory", "file"] {
        for (name, is_there) in names {
            let mut value = [0; 16];
            let got = rustix::fs::lgetxattr(diff.join(path), name, &mut value[..]);
            assert_eq!(got.is_ok(), is_there, "{path}: {name}");
        }
    }
    // On a link it would be set on what the link leads to.
    let tar = Tar::default().pax(&[("SCHILY.xattr.user.x", b"1")]).symlink("link", "/etc/passwd").finish();
    assert!(stat(&unpack(&roots, &store, &tar).join("link")).is_symlink());
}

#[test]
fn devices_are_made_or_refused_by_policy() {
    let roots = Roots::new();
    let device = |name: &'static str, flag, device| Entry {
        name: name.as_bytes(),
        flag,
        device,
        mode: 0o620,
        owner: (0, 5),
        ..Entry::default()
    };
    let nodes = [device("null", b'3', (1, 3)), device("disk", b'4', (8, 0)), device("fifo", b'6', (0, 0))];
    let store = roots.open();
    let mut tar = Tar::default();
    for node in &nodes {
        tar.add(node);
    }
    let diff = unpack(&roots, &store, &tar.finish());
    for (path, device) in [("null", (1, 3)), ("disk", (8, 0))] {
        let data = stat(&diff.join(path));
        assert_eq!(data.rdev(), rustix::fs::makedev(device.0, device.1), "{path}");
        assert_eq!((data.mode() & MODE, data.gid()), (0o620, 5), "{path}");
    }
    assert!(stat(&diff.join("fifo")).file_type().is_fifo());
    drop(store);
    let store = Store::open(StoreOptions { devices: DevicePolicy::Refuse, ..roots.options() }).unwrap();
    for (node, is_made) in nodes.iter().zip([false, false, true]) {
        let tar = Tar::default().add(node).finish();
        assert_eq!(store.stage_layer(&tar[..], StageOptions::default()).is_ok(), is_made);
    }
}

#[test]
fn long_names_are_made_or_refused() {
    let roots = Roots::new();
    let store = roots.open();
    let deep = vec!["d"; 2000].join("/");
    let component = "c".repeat(255);
    let tar = Tar::default()
        .pax(&[("path", deep.as_bytes())])
        .file("x", b"1")
        .pax(&[("path", component.as_bytes())])
        .file("y", b"2")
        .finish();
    let diff = unpack(&roots, &store, &tar);
    // Too long with what lies above.
    let open = std::fs::File::open(&diff).unwrap();
    assert_eq!(rustix::fs::statat(&open, &deep, rustix::fs::AtFlags::empty()).unwrap().st_size, 1);
    assert_eq!(std::fs::read(diff.join(&component)).unwrap(), b"2");
    let beyond = vec!["d"; 2100].join("/");
    let target = "t".repeat(4096);
    for tar in [
        Tar::default().pax(&[("path", beyond.as_bytes())]).file("x", b"1").finish(),
        Tar::default().pax(&[("linkpath", target.as_bytes())]).symlink("x", "y").finish(),
    ] {
        let chain = refused(&store, &tar);
        assert!(chain.contains("too long"), "{chain}");
    }
}

/// Many entries take little memory each, and directories with long names, of which each is remembered, have a bound.
#[test]
fn many_entries_are_unpacked_and_too_many_directories_refused() {
    let roots = Roots::in_memory();
    let store = roots.open();
    let mut tar = Tar::default();
    for number in 0..20_000 {
        match number % 4 {
            0 => tar.dir(&format!("d{number}")),
            1 => tar.file(&format!("d{}/f", number - 1), b""),
            2 => tar.symlink(&format!("d{}/l", number - 2), "f"),
            _ => tar.hard_link(&format!("d{}/h", number - 3), &format!("d{}/f", number - 3)),
        };
    }
    let staged = stage(&store, &gzip(&tar.finish()));
    assert_eq!(staged.contents().entries, 20_000);
    drop(staged);
    // One directory, by names that are long until they are cleaned, costs little; by names that are long it costs much.
    let many = |name: &dyn Fn(usize) -> String| {
        let mut tar = Tar::default();
        for number in 0..9000 {
            tar.pax(&[("path", name(number).as_bytes())]).dir("d");
        }
        store.stage_layer(&gzip(&tar.finish())[..], StageOptions::default())
    };
    assert_eq!(many(&|_| format!("d{}", "/.".repeat(2000))).unwrap().contents().entries, 9000);
    let long = vec!["d"; 2000].join("/");
    let error = many(&|_| long.clone()).unwrap_err();
    assert!(chain(&error).contains("names of the archive's directories"), "{}", chain(&error));
}
