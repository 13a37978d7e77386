//! Images made from nothing: archives, layers, configuration, manifest; as bytes for a registry or as files.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::tools;

const BLOCK: usize = 512;

/// `sha256:` and the digest of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar archive being written. Says whatever it is told, also what no honest tool would.
#[derive(Debug, Default, Clone)]
pub struct Archive {
    bytes: Vec<u8>,
}

impl Archive {
    /// A regular file.
    #[must_use]
    pub fn file(self, name: &str, mode: u32, content: &[u8]) -> Self {
        self.entry(name, b'0', mode, "", content)
    }

    /// A directory.
    #[must_use]
    pub fn directory(self, name: &str, mode: u32) -> Self {
        self.entry(name, b'5', mode, "", b"")
    }

    /// A symbolic link.
    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(name, b'2', 0o777, target, b"")
    }

    /// A hard link.
    #[must_use]
    pub fn hard_link(self, name: &str, target: &str) -> Self {
        self.entry(name, b'1', 0o644, target, b"")
    }

    /// Any entry.
    #[must_use]
    pub fn entry(mut self, name: &str, kind: u8, mode: u32, target: &str, content: &[u8]) -> Self {
        let mut header = [0_u8; BLOCK];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        assert!(name.len() <= 100 && target.len() <= 100, "short names are enough here");
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.len()));
        put(136, "00000000000");
        put(148, "        ");
        put(157, target);
        put(257, "ustar");
        put(263, "00");
        header[156] = kind;
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.bytes.extend_from_slice(&header);
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(BLOCK), 0);
        self
    }

    /// The finished archive.
    #[must_use]
    pub fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 2 * BLOCK, 0);
        self.bytes
    }
}

/// How a layer travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// As it is.
    None,
    /// gzip.
    Gzip,
    /// Zstandard.
    Zstd,
}

/// Whose media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// The OCI's.
    Oci,
    /// Docker's schema 2.
    Docker,
}

impl Format {
    fn layer_type(self, compression: Compression) -> &'static str {
        match (self, compression) {
            (Self::Oci, Compression::None) => "application/vnd.oci.image.layer.v1.tar",
            (Self::Oci, Compression::Gzip) => "application/vnd.oci.image.layer.v1.tar+gzip",
            (Self::Oci, Compression::Zstd) => "application/vnd.oci.image.layer.v1.tar+zstd",
            (Self::Docker, Compression::None) => "application/vnd.docker.image.rootfs.diff.tar",
            (Self::Docker, _) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
        }
    }

    /// The media type of a manifest.
    #[must_use]
    pub fn manifest_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.manifest.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.v2+json",
        }
    }

    /// The media type of an index.
    #[must_use]
    pub fn index_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.index.v1+json",
            Self::Docker => "application/vnd.docker.distribution.manifest.list.v2+json",
        }
    }

    fn config_type(self) -> &'static str {
        match self {
            Self::Oci => "application/vnd.oci.image.config.v1+json",
            Self::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }
}

/// This machine's architecture in the words of images.
#[must_use]
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// What an image is made of.
#[derive(Debug, Clone)]
pub struct Recipe {
    layers: Vec<(Vec<u8>, Compression)>,
    config: Value,
    annotations: Value,
    format: Format,
}

impl Recipe {
    /// An image without layers.
    #[must_use]
    pub fn new(format: Format) -> Self {
        Self { layers: Vec::new(), config: json!({}), annotations: json!({}), format }
    }

    /// One layer with a static busybox, its applets, and two users.
    #[must_use]
    pub fn busybox(format: Format) -> Self {
        Self::new(format)
            .layer(busybox_layer(), Compression::Gzip)
            .config(json!({ "Env": ["PATH=/bin", "FROM_IMAGE=yes"], "Cmd": ["/bin/sh"] }))
    }

    /// One more layer on top.
    #[must_use]
    pub fn layer(mut self, archive: Vec<u8>, compression: Compression) -> Self {
        self.layers.push((archive, compression));
        self
    }

    /// What a container of it runs: the part `config` of an image's configuration, added to what is there.
    #[must_use]
    pub fn config(mut self, config: Value) -> Self {
        let (Value::Object(into), Value::Object(from)) = (&mut self.config, config) else { panic!("an object") };
        into.extend(from);
        self
    }

    /// An annotation of the manifest.
    #[must_use]
    pub fn annotation(mut self, key: &str, value: &str) -> Self {
        self.annotations[key] = value.into();
        self
    }

    /// Puts it together.
    #[must_use]
    pub fn build(&self) -> Image {
        let mut layers = Vec::new();
        let mut diff_ids = Vec::new();
        for (archive, compression) in &self.layers {
            diff_ids.push(digest(archive));
            layers.push((compress(archive, *compression), self.format.layer_type(*compression)));
        }
        // As builders write it: a step for each layer, and one that changed no files.
        let step = |number| json!({ "created": "2024-01-02T03:04:05Z", "created_by": format!("step {number} < {number} & 1") });
        let mut history: Vec<Value> = (0..diff_ids.len()).map(step).collect();
        history.push(json!({ "created": "2024-01-02T03:04:05Z", "created_by": "CMD", "empty_layer": true }));
        let config = json!({
            "architecture": architecture(), "os": "linux", "created": "2024-01-02T03:04:05Z",
            "config": self.config, "rootfs": { "type": "layers", "diff_ids": diff_ids }, "history": history,
        });
        let config = serde_json::to_vec(&config).expect("JSON");
        let descriptor =
            |bytes: &[u8], kind: &str| json!({ "mediaType": kind, "digest": digest(bytes), "size": bytes.len() });
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": self.format.manifest_type(),
            "config": descriptor(&config, self.format.config_type()),
            "layers": layers.iter().map(|(bytes, kind)| descriptor(bytes, kind)).collect::<Vec<_>>(),
            "annotations": self.annotations,
        });
        let manifest = serde_json::to_vec(&manifest).expect("JSON");
        Image {
            archives: self.layers.iter().map(|(archive, _)| archive.clone()).collect(),
            layers: layers.into_iter().map(|(bytes, _)| bytes).collect(),
            config,
            manifest,
            format: self.format,
        }
    }
}

/// An artifact: blobs with titles, or without, behind an empty configuration.
#[must_use]
pub fn artifact(blobs: &[(Option<&str>, &[u8])]) -> Image {
    let config = b"{}".to_vec();
    let layer = |(title, bytes): &(Option<&str>, &[u8])| {
        let mut layer =
            json!({ "mediaType": "application/octet-stream", "digest": digest(bytes), "size": bytes.len() });
        if let Some(title) = title {
            layer["annotations"] = json!({ "org.opencontainers.image.title": title });
        }
        layer
    };
    let manifest = json!({
        "schemaVersion": 2, "mediaType": Format::Oci.manifest_type(), "artifactType": "application/vnd.e2e.files",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": digest(&config), "size": config.len() },
        "layers": blobs.iter().map(layer).collect::<Vec<_>>(),
    });
    Image {
        archives: Vec::new(),
        layers: blobs.iter().map(|(_, bytes)| bytes.to_vec()).collect(),
        config,
        manifest: serde_json::to_vec(&manifest).expect("JSON"),
        format: Format::Oci,
    }
}

/// An image as bytes.
#[derive(Debug, Clone)]
pub struct Image {
    /// The layers before compression, lowest first.
    pub archives: Vec<Vec<u8>>,
    /// The layers as they travel, lowest first.
    pub layers: Vec<Vec<u8>>,
    /// The configuration.
    pub config: Vec<u8>,
    /// The manifest.
    pub manifest: Vec<u8>,
    /// Its format.
    pub format: Format,
}

impl Image {
    /// The id a store gives it: the hex digest of its configuration.
    #[must_use]
    pub fn id(&self) -> String {
        digest(&self.config).trim_start_matches("sha256:").to_owned()
    }

    /// The digest by which a registry knows it.
    #[must_use]
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// An index that offers it for this machine, behind `other` for a machine that is not ours.
    #[must_use]
    pub fn index(&self, format: Format, other: &Self) -> Vec<u8> {
        let entry = |architecture: &str, image: &Self| {
            json!({ "mediaType": image.format.manifest_type(), "digest": image.digest(), "size": image.manifest.len(),
                    "platform": { "architecture": architecture, "os": "linux" } })
        };
        let index = json!({
            "schemaVersion": 2, "mediaType": format.index_type(),
            "manifests": [entry("s390x", other), entry(architecture(), self)],
        });
        serde_json::to_vec(&index).expect("JSON")
    }

    /// Writes it as an OCI layout whose only image bears `tag`.
    pub fn write_layout(&self, directory: &Path, tag: &str) {
        let blobs = directory.join("blobs/sha256");
        for blob in self.layers.iter().chain([&self.config, &self.manifest]) {
            tools::write(blobs.join(digest(blob).trim_start_matches("sha256:")), blob);
        }
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": self.format.manifest_type(), "digest": self.digest(), "size": self.manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": tag },
        }]});
        tools::write(directory.join("index.json"), index.to_string());
        tools::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#);
    }

    /// Writes it as `docker save` would.
    pub fn write_docker_archive(&self, path: &Path, name: &str) {
        let config = format!("{}.json", self.id());
        let layers: Vec<String> = self.archives.iter().map(|layer| format!("{}.tar", &digest(layer)[7..])).collect();
        let manifest = json!([{ "Config": config, "RepoTags": [name], "Layers": layers }]);
        let mut archive = Archive::default().file(&config, 0o644, &self.config);
        for (name, layer) in layers.iter().zip(&self.archives) {
            archive = archive.file(name, 0o644, layer);
        }
        tools::write(path, archive.file("manifest.json", 0o644, manifest.to_string().as_bytes()).finish());
    }
}

fn compress(bytes: &[u8], compression: Compression) -> Vec<u8> {
    match compression {
        Compression::None => bytes.to_vec(),
        Compression::Gzip => {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            encoder.write_all(bytes).expect("gzip");
            encoder.finish().expect("gzip")
        }
        Compression::Zstd => zstd::bulk::compress(bytes, 1).expect("zstd"),
    }
}

/// The pause program of the tests' pause image: ends at once when told, and reaps.
const PAUSE: &str = "#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 3600 & wait; done\n";
const APPLETS: &str = "sh awk cat chmod cut date dd df echo env false fallocate find grep head hostname httpd id ip kill \
    ln ls mkdir mkfifo mknod mount nc nproc ping printf ps pwd rm seq sleep sort stat stty sync tail test timeout touch tr true \
    tty uname wc wget yes";

fn busybox_layer() -> Vec<u8> {
    let path = tools::find_program("busybox").expect("busybox is installed (busybox-static)");
    let mut busybox = Vec::new();
    File::open(path).and_then(|mut file| file.read_to_end(&mut busybox)).expect("read busybox");
    let mut archive = Archive::default()
        .directory("bin/", 0o755)
        .file("bin/busybox", 0o755, &busybox)
        .file("pause", 0o755, PAUSE.as_bytes())
        .directory("etc/", 0o755)
        .file("etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\nguest:x:1000:1001:guest:/home:/bin/sh\n")
        .file("etc/group", 0o644, b"root:x:0:\nguests:x:1001:\nextra:x:1002:guest\n")
        .directory("root/", 0o700)
        .directory("tmp/", 0o1777)
        .directory("work/", 0o755);
    for applet in APPLETS.split_whitespace() {
        archive = archive.symlink(&format!("bin/{applet}"), "busybox");
    }
    archive.finish()
}
