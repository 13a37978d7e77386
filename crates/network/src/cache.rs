//! libcni's cache: what was attached how, so that it can be removed after its configuration changed.
//!
//! One file an attachment, `<network>-<sandbox id>-<interface>`. Written without fsync: a network namespace dies with
//! the boot, and what a plugin keeps on disk is found by GC. Replaced by rename, so that no reader sees half of one.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

/// The only kind of entry there is.
const KIND: &str = "cniCacheV1";
/// Largest entry read: a configuration of its largest size in base64, and as much again.
const ENTRY_MAX_BYTES: u64 = 4 * 1024 * 1024;
/// Files being written. The name does not look like an entry to anybody.
const TEMPORARY_PREFIX: &str = ".new-";

/// One attachment. Fields and their order are libcni's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) kind: String,
    #[serde(rename = "containerId", alias = "containerID")]
    pub(crate) container_id: String,
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub(crate) config: Vec<u8>,
    #[serde(rename = "ifName")]
    pub(crate) ifname: String,
    #[serde(rename = "networkName")]
    pub(crate) network: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub(crate) netns: String,
    #[serde(rename = "cniArgs", default, skip_serializing_if = "Option::is_none")]
    pub(crate) args: Option<Vec<(String, String)>>,
    #[serde(rename = "capabilityArgs", default, skip_serializing_if = "Option::is_none")]
    pub(crate) capability_args: Option<Map<String, Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) result: Option<Map<String, Value>>,
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?.unwrap_or_default();
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

impl Entry {
    pub(crate) fn new(network: &str, container_id: &str, ifname: &str) -> Self {
        Self {
            kind: KIND.to_owned(),
            container_id: container_id.to_owned(),
            config: Vec::new(),
            ifname: ifname.to_owned(),
            network: network.to_owned(),
            netns: String::new(),
            args: None,
            capability_args: None,
            result: None,
        }
    }

    /// An entry in any bytes, or why not.
    fn parse(bytes: &[u8]) -> Result<Self, String> {
        let entry: Self = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
        if entry.kind != KIND {
            return Err(format!("unknown kind {:?}", entry.kind));
        }
        if entry.container_id.is_empty() || entry.ifname.is_empty() || entry.network.is_empty() {
            return Err("a name is missing".to_owned());
        }
        Ok(entry)
    }
}

/// The directory of entries.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    dir: PathBuf,
}

impl Cache {
    pub(crate) fn new(dir: PathBuf) -> Self {
        Self { dir }
    }

    pub(crate) fn dir(&self) -> &Path {
        &self.dir
    }

    pub(crate) fn write(&self, entry: &Entry) -> io::Result<()> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let temporary = format!("{TEMPORARY_PREFIX}{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let temporary = self.dir.join(temporary);
        let text = serde_json::to_vec(entry)?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::open(&temporary, flags, Mode::RUSR | Mode::WUSR);
        let fd = match create() {
            Err(Errno::NOENT) => {
                create_private(&self.dir)?;
                create()?
            }
            other => other?,
        };
        let written = File::from(fd)
            .write_all(&text)
            .and_then(|()| Ok(rustix::fs::renameat(CWD, &temporary, CWD, self.file(entry))?));
        if written.is_err() {
            let _ = rustix::fs::unlink(&temporary);
        }
        written
    }

    fn file(&self, entry: &Entry) -> PathBuf {
        self.dir.join(format!("{}-{}-{}", entry.network, entry.container_id, entry.ifname))
    }

    pub(crate) fn remove(&self, entry: &Entry) -> io::Result<()> {
        match rustix::fs::unlinkat(CWD, self.file(entry), AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The entries of one sandbox, or all, sorted by file name. What cannot be read is skipped with a warning.
    pub(crate) fn find(&self, container_id: Option<&str>) -> Vec<Entry> {
        let part = container_id.map(|id| format!("-{id}-"));
        let names = self.names(|name| part.as_ref().is_none_or(|part| name.contains(part.as_str())));
        let mut entries = Vec::new();
        for name in names {
            let path = self.dir.join(&name);
            match read_bounded(&path).map_err(|error| error.to_string()).and_then(|bytes| Entry::parse(&bytes)) {
                Ok(entry) if container_id.is_none_or(|id| id == entry.container_id) => entries.push(entry),
                Ok(_) => {}
                Err(reason) => tracing::warn!(file = %path.display(), reason, "skipping a file of the CNI cache"),
            }
        }
        entries
    }

    /// Removes whatever carries the id in its name, readable or not.
    pub(crate) fn forget(&self, container_id: &str) -> io::Result<()> {
        for name in self.names(|name| name.contains(container_id)) {
            match rustix::fs::unlink(self.dir.join(name)) {
                Ok(()) | Err(Errno::NOENT | Errno::ISDIR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        Ok(())
    }

    /// Removes what writers that died left behind.
    pub(crate) fn sweep(&self) {
        let own = format!("{TEMPORARY_PREFIX}{}-", std::process::id());
        let Ok(listing) = std::fs::read_dir(&self.dir) else { return };
        for file in listing.flatten() {
            let name = file.file_name();
            let name = name.to_string_lossy();
            if name.starts_with(TEMPORARY_PREFIX) && !name.starts_with(&own) {
                let _ = rustix::fs::unlink(file.path());
            }
        }
    }

    fn names(&self, wanted: impl Fn(&str) -> bool) -> Vec<String> {
        let Ok(listing) = std::fs::read_dir(&self.dir) else { return Vec::new() };
        let names = listing.flatten().filter_map(|file| file.file_name().into_string().ok());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.') && wanted(name)).collect();
        names.sort_unstable();
        names
    }
}

fn create_private(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
}

/// A regular file of bounded size.
pub(crate) fn read_bounded(path: &Path) -> io::Result<Vec<u8>> {
    read_at_most(path, ENTRY_MAX_BYTES)
}

/// A regular file of at most `limit` bytes; anything else there is an error, and a FIFO is not waited for.
pub(crate) fn read_at_most(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = File::from(rustix::fs::open(path, OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC, Mode::empty())?);
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("more than {limit} bytes")));
    }
    Ok(bytes)
}

/// Entry point for fuzzing: any bytes are an entry or not, and an entry survives being written.
pub fn fuzz_cache_entry(bytes: &[u8]) {
    if let Ok(entry) = Entry::parse(bytes) {
        let again = serde_json::to_vec(&entry).map(|text| Entry::parse(&text));
        assert!(again.is_ok_and(|again| again.as_ref() == Ok(&entry)), "{entry:?}");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    const ID: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn an_entry_reads_as_libcni_wrote_it() {
        let text = format!(
            r#"{{"kind":"cniCacheV1","containerId":"{ID}","config":"e30=","ifName":"eth0","networkName":"crio","netns":"/var/run/netns/x","cniArgs":[["IgnoreUnknown","1"],["K8S_POD_NAME","p"]],"capabilityArgs":{{"cgroupPath":"/a"}},"result":{{"cniVersion":"1.0.0","dns":{{}}}}}}"#
        );
        let entry = Entry::parse(text.as_bytes()).unwrap();
        assert_eq!(entry.config, b"{}");
        assert_eq!(serde_json::to_string(&entry).unwrap(), text);
    }

    #[test]
    fn damaged_entries_are_skipped() {
        for (text, reason) in [
            ("", "EOF"),
            ("[]", "invalid"),
            (r#"{"kind":"v2","containerId":"a","config":"","ifName":"e","networkName":"n"}"#, "unknown kind"),
            (r#"{"kind":"cniCacheV1","containerId":"a","config":"","ifName":"","networkName":"n"}"#, "a name"),
            (r#"{"kind":"cniCacheV1","containerId":"a","config":"?","ifName":"e","networkName":"n"}"#, "Invalid"),
        ] {
            let error = Entry::parse(text.as_bytes()).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }

    #[test]
    fn files_come_and_go() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache::new(root.path().join("a/results"));
        assert_eq!(cache.find(None), []);
        let first = Entry { netns: "/n".into(), ..Entry::new("crio", ID, "eth0") };
        let other = Entry::new("crio", &ID.replace('0', "f"), "eth0");
        cache.write(&first).unwrap();
        cache.write(&first).unwrap();
        cache.write(&other).unwrap();
        let path = cache.dir().join(format!("crio-{ID}-eth0"));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(cache.dir().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        File::create(cache.dir().join(format!("damaged-{ID}-eth0"))).unwrap();
        File::create(cache.dir().join(".new-0-0")).unwrap();
        rustix::fs::mkfifoat(CWD, cache.dir().join(format!("fifo-{ID}-eth0")), Mode::RUSR).unwrap();
        assert_eq!(cache.find(Some(ID)), std::slice::from_ref(&first));
        assert_eq!(cache.find(None).len(), 2);
        cache.sweep();
        assert!(!cache.dir().join(".new-0-0").exists());
        cache.remove(&first).unwrap();
        cache.remove(&first).unwrap();
        assert!(!path.exists());
        cache.write(&first).unwrap();
        cache.forget(ID).unwrap();
        assert_eq!(std::fs::read_dir(cache.dir()).unwrap().count(), 1);
        assert_eq!(cache.find(None), [other]);
    }
}
