//! A store in a directory of its own, layers made byte by byte, and the real tools of the field.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, reason = "each test binary uses a part")]

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use domain::digest::Digest;
use domain::id::{ContainerId, ImageId, LayerId};
use image_store::{
    CommitLayerError, ExpectedLayer, LayerPin, NewContainer, NewImage, StageOptions, StagedLayer, Store, StoreOptions,
    Volatile,
};
use sha2::{Digest as _, Sha256};

/// A graph root and run root, unmounted and removed at the end whatever happens.
pub struct Roots {
    pub base: tempfile::TempDir,
    pub driver: &'static str,
}

impl Roots {
    pub fn new() -> Self {
        Self { base: tempfile::Builder::new().prefix("image-store-").tempdir().unwrap(), driver: "overlay" }
    }

    /// For a driver; btrfs gets a file system of its own, or `None` where it cannot be made.
    pub fn with_driver(driver: &'static str) -> Option<Self> {
        let mut roots = Self::new();
        roots.driver = driver;
        (driver != "btrfs" || roots.mount_btrfs()).then_some(roots)
    }

    fn mount_btrfs(&self) -> bool {
        let (image, target) = (self.base.path().join("btrfs.img"), self.root());
        std::fs::File::create(&image).and_then(|file| file.set_len(512 << 20)).unwrap();
        std::fs::create_dir(&target).unwrap();
        let runs = |program: &str, arguments: &[&std::ffi::OsStr]| {
            Command::new(program).args(arguments).output().is_ok_and(|output| output.status.success())
        };
        let is_mounted = runs("mkfs.btrfs", &["-q".as_ref(), image.as_ref()])
            && runs("mount", &["-o".as_ref(), "loop".as_ref(), image.as_ref(), target.as_ref()]);
        if !is_mounted {
            eprintln!("\n*** SKIPPED: no btrfs file system can be made here ***\n");
        }
        is_mounted
    }

    /// Where layers have their directories.
    pub fn layers_home(&self) -> PathBuf {
        let home = self.root().join(self.driver);
        match self.driver {
            "vfs" => home.join("dir"),
            "btrfs" => home.join("subvolumes"),
            _ => home,
        }
    }

    /// `<root>/<driver>-<kind>`
    pub fn records(&self, kind: &str) -> PathBuf {
        self.root().join(format!("{}-{kind}", self.driver))
    }

    /// Where syncing costs nothing, for tests that open hundreds of stores.
    pub fn in_memory() -> Self {
        let roots = Self::new();
        rustix::mount::mount("tmpfs", roots.base.path(), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        roots
    }

    pub fn root(&self) -> PathBuf {
        self.base.path().join("root")
    }

    pub fn runroot(&self) -> PathBuf {
        self.base.path().join("run")
    }

    pub fn options(&self) -> StoreOptions {
        StoreOptions {
            root: self.root(),
            runroot: self.runroot(),
            driver: self.driver.to_owned(),
            ..StoreOptions::default()
        }
    }

    pub fn open(&self) -> Store {
        Store::open(self.options()).unwrap()
    }

    /// Runs podman, skopeo and the like on this store.
    pub fn tool(&self, program: &str, arguments: &[&str]) -> Output {
        let mut command = Command::new(program);
        let (root, runroot) = (self.root(), self.runroot());
        if program != "skopeo" {
            command.args(["--root", root.to_str().unwrap(), "--runroot", runroot.to_str().unwrap()]);
            command.args(["--storage-driver", self.driver]);
        }
        if program == "podman" {
            command.args(["--cgroup-manager", "cgroupfs", "--events-backend", "file"]);
        }
        command.args(arguments).env("XDG_RUNTIME_DIR", self.base.path()).output().unwrap()
    }

    pub fn run(&self, program: &str, arguments: &[&str]) -> String {
        let output = self.tool(program, arguments);
        assert!(
            output.status.success(),
            "{program} {arguments:?}: {}\n{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// An image of this store, as skopeo calls it.
    pub fn reference(&self, name: &str) -> String {
        format!("containers-storage:[{}@{}+{}]{name}", self.driver, self.root().display(), self.runroot().display())
    }

    pub fn layer_dirs(&self) -> usize {
        std::fs::read_dir(self.layers_home())
            .unwrap()
            .filter(|entry| entry.as_ref().unwrap().file_name().len() == 64)
            .count()
    }
}

impl Drop for Roots {
    fn drop(&mut self) {
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let base = self.base.path().to_str().unwrap();
        let mut targets: Vec<&str> = table.lines().filter_map(|line| line.split(' ').nth(4)).collect();
        targets.retain(|target| target.starts_with(base));
        for target in targets.iter().rev() {
            let _ = rustix::mount::unmount(*target, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

pub fn digest(bytes: &[u8]) -> Digest {
    Digest::from_sha256(&Sha256::digest(bytes).into())
}

/// Builds archives, also ones no archiver would.
#[derive(Default)]
pub struct Tar {
    pub bytes: Vec<u8>,
}

pub struct Entry<'a> {
    pub name: &'a [u8],
    pub flag: u8,
    pub link: &'a [u8],
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: u64,
    pub device: (u32, u32),
    pub content: &'a [u8],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Self {
            name: b"",
            flag: b'0',
            link: b"",
            mode: 0o644,
            owner: (0, 0),
            mtime: 1_700_000_000,
            device: (0, 0),
            content: b"",
        }
    }
}

impl Tar {
    pub fn add(&mut self, entry: &Entry<'_>) -> &mut Self {
        let mut block = [0_u8; 512];
        let name = &entry.name[..entry.name.len().min(100)];
        block[..name.len()].copy_from_slice(name);
        let mut octal = |at: usize, width: usize, value: u64| {
            let text = format!("{value:0width$o}\0", width = width - 1);
            block[at..at + width].copy_from_slice(text.as_bytes());
        };
        octal(100, 8, u64::from(entry.mode));
        octal(108, 8, u64::from(entry.owner.0));
        octal(116, 8, u64::from(entry.owner.1));
        octal(124, 12, entry.content.len() as u64);
        octal(136, 12, entry.mtime);
        octal(329, 8, u64::from(entry.device.0));
        octal(337, 8, u64::from(entry.device.1));
        block[156] = entry.flag;
        let link = &entry.link[..entry.link.len().min(100)];
        block[157..157 + link.len()].copy_from_slice(link);
        block[257..265].copy_from_slice(b"ustar\x0000");
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&block);
        self.bytes.extend_from_slice(entry.content);
        let padding = (512 - entry.content.len() % 512) % 512;
        self.bytes.resize(self.bytes.len() + padding, 0);
        self
    }

    pub fn dir(&mut self, name: &str) -> &mut Self {
        self.add(&Entry { name: name.as_bytes(), flag: b'5', mode: 0o755, ..Entry::default() })
    }

    pub fn file(&mut self, name: &str, content: &[u8]) -> &mut Self {
        self.add(&Entry { name: name.as_bytes(), content, ..Entry::default() })
    }

    pub fn symlink(&mut self, name: &str, target: &str) -> &mut Self {
        let (name, link) = (name.as_bytes(), target.as_bytes());
        self.add(&Entry { name, link, flag: b'2', mode: 0o777, ..Entry::default() })
    }

    pub fn hard_link(&mut self, name: &str, target: &str) -> &mut Self {
        self.add(&Entry { name: name.as_bytes(), link: target.as_bytes(), flag: b'1', ..Entry::default() })
    }

    /// PAX records for the next member.
    pub fn pax(&mut self, records: &[(&str, &[u8])]) -> &mut Self {
        let mut content = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let mut length = rest + 1;
            while length != rest + length.to_string().len() {
                length = rest + length.to_string().len();
            }
            content.extend_from_slice(format!("{length} {key}=").as_bytes());
            content.extend_from_slice(value);
            content.push(b'\n');
        }
        self.add(&Entry { name: b"PaxHeaders/x", flag: b'x', content: &content, ..Entry::default() })
    }

    pub fn finish(&mut self) -> Vec<u8> {
        let mut bytes = std::mem::take(&mut self.bytes);
        bytes.resize(bytes.len() + 1024, 0);
        bytes
    }
}

pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

pub fn stage(store: &Store, compressed: &[u8]) -> StagedLayer {
    store.stage_layer(compressed, StageOptions::default()).unwrap()
}

pub fn commit(store: &Store, staged: StagedLayer, parent: Option<&LayerId>) -> Result<LayerPin, CommitLayerError> {
    let contents = staged.contents().clone();
    let expected = ExpectedLayer {
        diff_id: Some(contents.diff_id),
        compressed_digest: contents.compressed_digest,
        compressed_size: Some(contents.compressed_size),
    };
    store.commit_layer(staged, parent, &expected)
}

/// Manifest and configuration of an image of compressed layers with their plain tars.
pub fn image_of(layers: &[(Vec<u8>, Vec<u8>, &str)], names: &[&str], top: Option<&LayerId>) -> NewImage {
    let diff_ids: Vec<String> = layers.iter().map(|(_, tar, _)| digest(tar).to_string()).collect();
    let config = serde_json::to_vec(&serde_json::json!({
        "architecture": "amd64", "os": "linux", "created": "2024-02-03T04:05:06.789Z",
        "config": {"Cmd": ["/bin/sh"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }))
    .unwrap();
    let descriptors: Vec<serde_json::Value> = layers
        .iter()
        .map(|(blob, _, kind)| {
            serde_json::json!({
                "mediaType": format!("application/vnd.oci.image.layer.v1.tar{kind}"),
                "digest": digest(blob).to_string(), "size": blob.len(),
            })
        })
        .collect();
    let manifest = serde_json::to_vec(&serde_json::json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                   "digest": digest(&config).to_string(), "size": config.len()},
        "layers": descriptors,
    }))
    .unwrap();
    NewImage {
        id: ImageId::parse(digest(&config).hex()).unwrap(),
        names: names.iter().map(|name| (*name).to_owned()).collect(),
        top_layer: top.cloned(),
        manifest_digest: digest(&manifest),
        manifest,
        index: None,
        config_digest: digest(&config),
        config,
        signatures: Vec::new(),
        created: Some("2024-02-03T04:05:06.789Z".parse().unwrap()),
    }
}

/// Stores an image of these tars, gzip'ed.
pub fn put(store: &Store, tars: &[Vec<u8>], names: &[&str]) -> ImageId {
    let layers: Vec<_> = tars.iter().map(|tar| (gzip(tar), tar.clone(), "+gzip")).collect();
    let mut pins: Vec<LayerPin> = Vec::new();
    for (blob, _, _) in &layers {
        let staged = stage(store, blob);
        let pin = commit(store, staged, pins.last().map(LayerPin::id)).unwrap();
        pins.push(pin);
    }
    let image = image_of(&layers, names, pins.last().map(LayerPin::id));
    let id = image.id.clone();
    store.put_image(image).unwrap();
    id
}

pub fn container_id(number: u32) -> ContainerId {
    ContainerId::parse(&format!("{number:064x}")).unwrap()
}

pub fn new_container(number: u32, image: Option<&ImageId>) -> NewContainer {
    NewContainer {
        id: container_id(number),
        names: vec![format!("k8s_test_{number}")],
        image: image.cloned(),
        layer_name: Some(format!("k8s_test_{number}-layer")),
        metadata: format!("{{\"pod-name\":\"p{number}\",\"pod-id\":\"{number}\"}}"),
        mount_label: String::new(),
        process_label: String::new(),
        volatile: Volatile::Yes,
        ids: image_store::ContainerIds::Node,
    }
}

pub fn small_tar() -> Vec<u8> {
    Tar::default()
        .dir("./")
        .dir("./etc/")
        .file("./etc/passwd", b"root:x:0:0::/:/bin/sh\n")
        .dir("./bin/")
        .file("./bin/tool", &vec![7; 3000])
        .symlink("./bin/sh", "tool")
        .finish()
}

pub fn second_tar() -> Vec<u8> {
    Tar::default().dir("etc/").file("etc/second", b"2").file("bin/.wh.tool", b"").finish()
}

pub fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}
