//! Reading files from a temporary root: order, absence, and what is refused.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use config::{Locations, LogLevel, MAX_FILE_BYTES, MainFile, ReadSourcesError, Sources, StorageConf, load};

struct Root(tempfile::TempDir);

impl Root {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("temporary directory"))
    }
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
    fn put(&self, name: &str, text: &str) -> &Self {
        let path = self.path(name);
        fs::create_dir_all(path.parent().expect("parent")).expect("directory");
        File::create(path).and_then(|mut file| file.write_all(text.as_bytes())).expect("file");
        self
    }
    fn locations(&self) -> Locations {
        Locations {
            config: MainFile::IfPresent(self.path("crio.conf")),
            drop_ins: Some(self.path("crio.conf.d")),
            storage: StorageConf::System { root: self.path("") },
            selinux: Some(self.path("enforce")),
            ..Locations::default()
        }
    }
    fn names(&self, sources: &Sources) -> Vec<String> {
        let relative = |path: &Path| path.strip_prefix(self.0.path()).expect("beneath").display().to_string();
        sources.storage.iter().chain(&sources.files).map(|file| relative(&file.path)).collect()
    }
}

#[test]
fn nothing_there_is_fine() {
    let root = Root::new();
    assert_eq!(Sources::read(&root.locations()).expect("read"), Sources::default());
}

#[test]
fn drop_ins_are_walked_in_the_order_of_names_whatever_their_suffix() {
    let root = Root::new();
    root.put("crio.conf.d/b/2", "").put("crio.conf.d/b/10.conf", "").put("crio.conf.d/b.conf", "");
    root.put("crio.conf.d/00-x.conf.rpmsave", "").put("crio.conf.d/z.toml", "").put("crio.conf", "");
    std::os::unix::fs::symlink("../crio.conf", root.path("crio.conf.d/link")).expect("link");
    let sources = Sources::read(&root.locations()).expect("read");
    assert_eq!(
        root.names(&sources),
        [
            "crio.conf",
            "crio.conf.d/00-x.conf.rpmsave",
            "crio.conf.d/b/10.conf",
            "crio.conf.d/b/2",
            "crio.conf.d/b.conf",
            "crio.conf.d/link",
            "crio.conf.d/z.toml",
        ]
    );
}

#[test]
fn a_later_file_has_the_last_word() {
    let root = Root::new();
    root.put("crio.conf", "[crio.runtime]\nlog_level = \"error\"\ntimezone = \"Local\"");
    root.put("crio.conf.d/10", "[crio.runtime]\nlog_level = \"debug\"");
    root.put("crio.conf.d/20", "[crio.runtime]\nlog_level = \"trace\"");
    root.put("etc/containers/storage.conf", "[storage]\ngraphroot = \"/graph\"");
    let loaded = load(&Sources::read(&root.locations()).expect("read")).expect("valid");
    assert_eq!(loaded.config.runtime.log_level, LogLevel::Trace);
    assert_eq!(loaded.config.runtime.timezone, "Local");
    assert_eq!(loaded.config.root.root, Path::new("/graph"));
    assert_eq!(loaded.sources.len(), 4);
}

#[test]
fn files_can_be_left_out() {
    let root = Root::new();
    root.put("crio.conf", "").put("crio.conf.d/1", "").put("etc/containers/storage.conf", "");
    let locations = Locations {
        config: MainFile::Skip,
        drop_ins: None,
        storage: StorageConf::Skip,
        storage_driver: None,
        storage_options: None,
        selinux: None,
    };
    assert_eq!(Sources::read(&locations).expect("read"), Sources::default());
}

#[test]
fn storage_conf_of_the_administrator_replaces_the_vendors_and_drop_ins_follow() {
    let root = Root::new();
    root.put("usr/share/containers/storage.conf", "").put("usr/share/containers/storage.conf.d/9.conf", "");
    let vendor = ["usr/share/containers/storage.conf", "usr/share/containers/storage.conf.d/9.conf"];
    assert_eq!(root.names(&Sources::read(&root.locations()).expect("read")), vendor);
    root.put("etc/containers/storage.conf", "").put("etc/containers/storage.conf.d/1.conf", "");
    root.put("etc/containers/storage.conf.d/2.txt", "").put("etc/containers/storage.rootful.conf.d/0.conf", "");
    let names = root.names(&Sources::read(&root.locations()).expect("read"));
    assert_eq!(
        names,
        [
            "etc/containers/storage.conf",
            "usr/share/containers/storage.conf.d/9.conf",
            "etc/containers/storage.conf.d/1.conf",
            "etc/containers/storage.rootful.conf.d/0.conf",
        ]
    );
    root.put("mine", "");
    let only = Locations { storage: StorageConf::Only(root.path("mine")), ..root.locations() };
    assert_eq!(root.names(&Sources::read(&only).expect("read")), ["mine"]);
}

#[test]
fn what_cannot_be_configuration_is_refused_by_name() {
    let root = Root::new();
    let named = Locations { config: MainFile::Required(root.path("crio.conf")), ..root.locations() };
    let error = Sources::read(&named).expect_err("missing");
    assert!(matches!(&error, ReadSourcesError::ReadFile { path, .. } if path.ends_with("crio.conf")), "{error}");

    root.put("crio.conf", &"#".repeat(usize::try_from(MAX_FILE_BYTES).expect("small") + 1));
    assert!(matches!(Sources::read(&named), Err(ReadSourcesError::FileTooLarge { .. })));
    root.put("crio.conf", "");

    root.put("crio.conf.d/real/1", "");
    std::os::unix::fs::symlink("real", root.path("crio.conf.d/link")).expect("link");
    assert!(matches!(Sources::read(&named), Err(ReadSourcesError::NotAFile { .. })), "a link to a directory");
    fs::remove_file(root.path("crio.conf.d/link")).expect("remove");
    let socket = std::os::unix::net::UnixListener::bind(root.path("crio.conf.d/socket")).expect("socket");
    assert!(matches!(Sources::read(&named), Err(ReadSourcesError::NotAFile { .. })), "a socket");
    drop(socket);
    fs::remove_file(root.path("crio.conf.d/socket")).expect("remove");
    assert!(Sources::read(&named).is_ok());
    let none = Locations { config: MainFile::Required("/dev/null".into()), ..root.locations() };
    assert!(Sources::read(&none).is_ok(), "no configuration is one");
    let zero = Locations { config: MainFile::Required("/dev/zero".into()), ..root.locations() };
    assert!(matches!(Sources::read(&zero), Err(ReadSourcesError::NotAFile { .. })));

    let deep = format!("crio.conf.d/{}x", "d/".repeat(20));
    root.put(&deep, "");
    assert!(matches!(Sources::read(&named), Err(ReadSourcesError::TooManyFiles { .. })));
}
