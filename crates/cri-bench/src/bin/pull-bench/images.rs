//! The images that are pulled, as an OCI layout. Source: OCI image-spec `image-layout.md`, POSIX ustar.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Failure;
use crate::contents::Contents;

/// Compressed size of one layer of the small image: from a changed configuration file to a small program.
const SMALL_LAYER_BYTES: u64 = 400 << 10;
/// Files of a directory of the large image.
const FILES_IN_DIRECTORY: u64 = 40;
/// As a date, so that no file is from the future.
const MODIFIED: u64 = 1_700_000_000;

/// Counts and digests what goes through.
struct Digesting<W> {
    inner: W,
    digest: Sha256,
    size: u64,
}

impl<W> Digesting<W> {
    fn new(inner: W) -> Self {
        Self { inner, digest: Sha256::new(), size: 0 }
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.digest.update(&bytes[..count]);
        self.size += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

type Compressed = Digesting<BufWriter<File>>;

/// A tar under way, plain bytes digested before they are compressed.
struct Layer {
    tar: Digesting<GzEncoder<Compressed>>,
}

/// What an entry is. Source: ustar's type flags.
#[derive(Clone, Copy)]
enum Entry<'a> {
    Directory,
    File(&'a [u8]),
    Symlink(&'a str),
}

impl Layer {
    fn add(&mut self, name: &str, entry: Entry<'_>) -> io::Result<()> {
        let (flag, mode, content, link) = match entry {
            Entry::Directory => (b'5', 0o755, &[][..], ""),
            Entry::File(content) => (b'0', 0o644, content, ""),
            Entry::Symlink(target) => (b'2', 0o777, &[][..], target),
        };
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}\0{:07o}\0{:07o}\0{:011o}\0{MODIFIED:011o}\0", 0, 0, content.len()));
        put(157, link);
        put(257, "ustar\x0000");
        header[156] = flag;
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        self.tar.write_all(&header)?;
        self.tar.write_all(content)?;
        self.tar.write_all(&[0; 512][..(512 - content.len() % 512) % 512])
    }

    fn compressed(&self) -> u64 {
        self.tar.inner.get_ref().size
    }
}

/// Where blobs go.
struct Layout {
    blobs: PathBuf,
}

impl Layout {
    /// Makes a layer by `fill` and returns its descriptor and diff id.
    fn layer(&self, fill: impl FnOnce(&mut Layer) -> io::Result<()>) -> Result<(Value, String), Failure> {
        let path = self.blobs.join("unnamed");
        let made = || -> io::Result<_> {
            let file = Digesting::new(BufWriter::new(File::create(&path)?));
            let mut layer = Layer { tar: Digesting::new(GzEncoder::new(file, Compression::new(6))) };
            fill(&mut layer)?;
            layer.tar.write_all(&[0; 1024])?;
            let diff_id = hex(&layer.tar.digest.finalize());
            let mut file = layer.tar.inner.finish()?;
            file.flush()?;
            Ok((hex(&file.digest.finalize()), file.size, diff_id))
        };
        let (digest, size, diff_id) = made().map_err(Failure::new(path.display()))?;
        let named = self.blobs.join(&digest);
        rustix::fs::rename(&path, &named).map_err(|error| Failure::new(named.display())(error.into()))?;
        Ok((descriptor("layer.v1.tar+gzip", &digest, size), diff_id))
    }

    fn document(&self, kind: &str, value: &Value) -> Result<Value, Failure> {
        let bytes = value.to_string().into_bytes();
        let digest = hex(&Sha256::digest(&bytes));
        put(&self.blobs.join(&digest), &bytes)?;
        Ok(descriptor(kind, &digest, bytes.len() as u64))
    }

    fn image(&self, name: &str, layers: Vec<(Value, String)>) -> Result<Value, Failure> {
        let (layers, diff_ids): (Vec<Value>, Vec<String>) = layers.into_iter().unzip();
        let diff_ids: Vec<String> = diff_ids.iter().map(|digits| format!("sha256:{digits}")).collect();
        let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = json!({"architecture": arch, "os": "linux", "config": {"Cmd": ["/none"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids}});
        let config = self.document("config.v1+json", &config)?;
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let manifest = json!({"schemaVersion": 2, "mediaType": kind, "config": config, "layers": layers});
        let mut manifest = self.document("manifest.v1+json", &manifest)?;
        manifest["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        Ok(manifest)
    }
}

fn descriptor(kind: &str, digest: &str, size: u64) -> Value {
    json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": format!("sha256:{digest}"), "size": size})
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn put(path: &Path, bytes: &[u8]) -> Result<(), Failure> {
    File::create(path).and_then(|mut file| file.write_all(bytes)).map_err(Failure::new(path.display()))
}

/// Fills a layer with directories of files until it has `size` bytes, compressed.
fn fill(layer: &mut Layer, contents: &mut Contents, top: &str, size: u64, file_max: u64) -> io::Result<()> {
    layer.add(&format!("{top}/"), Entry::Directory)?;
    let mut file = Vec::new();
    let mut number = 0;
    let mut directory = String::new();
    while layer.compressed() < size {
        if number % FILES_IN_DIRECTORY == 0 {
            let group = number / FILES_IN_DIRECTORY;
            // Two levels: a few hundred packages, each with some directories.
            if group.is_multiple_of(4) {
                layer.add(&format!("{top}/package-{:04}/", group / 4), Entry::Directory)?;
            }
            directory = format!("{top}/package-{:04}/part-{}", group / 4, group % 4);
            layer.add(&format!("{directory}/"), Entry::Directory)?;
        }
        let name = format!("{directory}/file-{number:06}.dat");
        if number % 20 == 19 {
            layer.add(&name, Entry::Symlink(&format!("file-{:06}.dat", number - 1)))?;
        } else {
            let size = contents.size().min(file_max);
            contents.fill(&mut file, size);
            layer.add(&name, Entry::File(&file))?;
        }
        number += 1;
    }
    Ok(())
}

/// Writes both images.
pub(crate) fn write(directory: &Path, large_bytes: u64, small_layers: u64) -> Result<(), Failure> {
    let layout = Layout { blobs: directory.join("blobs/sha256") };
    std::fs::create_dir_all(&layout.blobs).map_err(Failure::new(layout.blobs.display()))?;
    let mut contents = Contents::new(1);
    let large = layout.layer(|layer| fill(layer, &mut contents, "usr", large_bytes, u64::MAX))?;
    let small = (0..small_layers)
        .map(|number| {
            let size = SMALL_LAYER_BYTES / 4 * (1 + number % 4);
            layout.layer(|layer| fill(layer, &mut contents, &format!("opt-{number:02}"), size, size / 4))
        })
        .collect::<Result<Vec<_>, Failure>>()?;
    let manifests = [layout.image("large", vec![large])?, layout.image("small", small)?];
    put(&directory.join("index.json"), json!({"schemaVersion": 2, "manifests": manifests}).to_string().as_bytes())?;
    put(&directory.join("oci-layout"), br#"{"imageLayoutVersion":"1.0.0"}"#)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn other_tools_read_the_images() {
        let directory = tempfile::tempdir().unwrap();
        write(directory.path(), 1 << 20, 2).unwrap();
        let index: Value =
            serde_json::from_slice(&std::fs::read(directory.path().join("index.json")).unwrap()).unwrap();
        let blob = |descriptor: &Value| {
            let digits = descriptor["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
            let path = directory.path().join("blobs/sha256").join(digits);
            let bytes = std::fs::read(&path).unwrap();
            assert_eq!(hex(&Sha256::digest(&bytes)), digits);
            assert_eq!(descriptor["size"], bytes.len());
            (path, bytes)
        };
        for (at, layers) in [(0, 1), (1, 2)] {
            let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][at]).1).unwrap();
            let config: Value = serde_json::from_slice(&blob(&manifest["config"]).1).unwrap();
            assert_eq!(manifest["layers"].as_array().unwrap().len(), layers);
            for (layer, diff_id) in
                manifest["layers"].as_array().unwrap().iter().zip(config["rootfs"]["diff_ids"].as_array().unwrap())
            {
                let (path, _) = blob(layer);
                let plain = Command::new("gzip").arg("-dc").arg(&path).output().unwrap();
                assert_eq!(format!("sha256:{}", hex(&Sha256::digest(&plain.stdout))), diff_id.as_str().unwrap());
                let list = Command::new("tar").arg("-tvzf").arg(&path).output().unwrap();
                assert!(list.status.success(), "{}", String::from_utf8_lossy(&list.stderr));
                let text = String::from_utf8(list.stdout).unwrap();
                assert!(text.lines().count() > 5 && text.contains("file-000000.dat"), "{text}");
            }
        }
    }
}
