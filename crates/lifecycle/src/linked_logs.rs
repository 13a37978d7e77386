//! Logs of a pod in one of its own volumes: the annotation `link-logs.crio.io` names an emptyDir volume.
//!
//! The pod's log directory is bound over the kubelet's directory of that volume, read-only, and for each container a link
//! `<id>.log` is made in it. A record beside the sandbox's files says what was mounted, so that whoever takes the sandbox
//! away undoes it. Everything is reached by descriptors, without following a link, and unmounted only while it is the log
//! directory that is mounted there: pods write in their volumes (CVE-2025-0750). As with CRI-O, a pod whose logs cannot be
//! linked runs without, and the log says why.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use domain::container::{ContainerMetadata, Mount};
use domain::sandbox::SandboxConfig;
use domain::spec::annotations::filter_annotations;
use durable::Durability;
use durable::beneath::{Links, Root};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxAttributes, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags};

use crate::container::Container;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::{blocking, undo};

const ANNOTATION: &str = "link-logs.crio.io";
const UID_LABEL: &str = "io.kubernetes.pod.uid";
/// Where the kubelet keeps the volumes of pods. Source: CRI-O, which knows no other place either.
const PODS: &str = "/var/lib/kubelet/pods";
const RECORD: &str = "linked-logs.json";
const RECORD_MAX_BYTES: u64 = 64 << 10;

/// What is asked for, with names that are single path segments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Linked {
    uid: String,
    volume: String,
    logs: PathBuf,
}

/// What a sandbox asks for; an error is what is wrong with it.
///
/// Its annotations are those it may use: the others were left out when it was made.
fn asked(config: &SandboxConfig, log_directory: &Path) -> Option<Result<Linked, String>> {
    let all: Vec<String> = config.annotations.keys().cloned().collect();
    let volume = filter_annotations(&config.annotations, &all).effective.remove(ANNOTATION)?;
    let uid = config.labels.get(UID_LABEL).cloned().unwrap_or_default();
    Some(Linked::new(uid, volume, log_directory.to_owned()))
}

/// Makes the mounts of a volume with linked logs read-only: a runtime that binds a read-only mount makes it writable
/// again unless it is told not to, and the kubelet reads what is written there.
pub(crate) fn protect(sandbox: &Sandbox, mounts: &mut [Mount]) {
    let Some(Ok(linked)) = asked(&sandbox.config, &sandbox.log_directory) else { return };
    let volume = Path::new(PODS).join(linked.volume_path());
    for mount in mounts.iter_mut().filter(|mount| Path::new(&mount.host_path).starts_with(&volume)) {
        mount.readonly = true;
    }
}

/// RFC 1123: what Kubernetes takes for the name of a volume.
fn is_label(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(is_inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_uid(text: &str) -> bool {
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    (1..=253).contains(&text.len()) && text.bytes().all(is_inner)
}

impl Linked {
    fn new(uid: String, volume: String, logs: PathBuf) -> Result<Self, String> {
        if !is_label(&volume) {
            return Err(format!("{volume:?} is not the name of a volume"));
        }
        if !is_uid(&uid) {
            return Err(format!("label {UID_LABEL} {uid:?} is not the uid of a pod"));
        }
        Ok(Self { uid, volume, logs })
    }

    fn to_record(&self) -> Vec<u8> {
        serde_json::json!({"uid": self.uid, "volume": self.volume, "logs": self.logs.display().to_string()})
            .to_string()
            .into_bytes()
    }

    fn from_record(bytes: &[u8]) -> Option<Self> {
        let value: serde_json::Value = serde_json::from_slice(bytes).ok()?;
        let text = |key: &str| value.get(key)?.as_str().map(str::to_owned);
        Self::new(text("uid")?, text("volume")?, text("logs")?.into()).ok()
    }

    /// Beneath the directory of all pods.
    fn volume_path(&self) -> PathBuf {
        Path::new(&self.uid).join("volumes/kubernetes.io~empty-dir").join(&self.volume)
    }

    /// The directory of the volume, absent if there is none.
    fn open_volume(&self, pods: &Path) -> io::Result<Option<OwnedFd>> {
        let path = self.volume_path();
        let opened = Root::open(pods)
            .and_then(|root| root.open_beneath(&path, OFlags::PATH | OFlags::DIRECTORY, 0, Links::Refused));
        match opened {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn open_logs(&self) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(rustix::fs::openat(CWD, &self.logs, flags, Mode::empty())?)
    }

    fn mount(&self, pods: &Path) -> io::Result<()> {
        let volume = self.open_volume(pods)?.ok_or_else(|| io::Error::other("the pod has no such emptyDir volume"))?;
        let logs = self.open_logs()?;
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        let tree = rustix::mount::open_tree(&logs, "", flags)?;
        let both = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
        rustix::mount::move_mount(tree.as_fd(), "", volume.as_fd(), "", both)?;
        // Only a mount that has a place can be changed. Private, so that what somebody mounts over it does not appear in the
        // log directory as well.
        let place = format!("/proc/self/fd/{}", tree.as_raw_fd());
        let changed = rustix::mount::mount_remount(place.as_str(), MountFlags::BIND | MountFlags::RDONLY, "")
            .and_then(|()| rustix::mount::mount_change(place.as_str(), MountPropagationFlags::PRIVATE));
        if changed.is_err() {
            let _ = rustix::mount::unmount(place.as_str(), UnmountFlags::DETACH);
        }
        Ok(changed?)
    }

    /// Unmounts the log directory from the volume; anything else that is there stays.
    fn unmount(&self, pods: &Path) -> io::Result<()> {
        let Some(volume) = self.open_volume(pods)? else { return Ok(()) };
        let stat = rustix::fs::statx(&volume, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS)?;
        if !stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT) {
            return Ok(());
        }
        let is_ours = match self.open_logs().and_then(|logs| Ok(rustix::fs::fstat(&logs)?)) {
            Ok(logs) => {
                let device = (rustix::fs::major(logs.st_dev), rustix::fs::minor(logs.st_dev));
                (device, logs.st_ino) == ((stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino)
            }
            // Removed below its mount.
            Err(error) if error.kind() == io::ErrorKind::NotFound => stat.stx_nlink == 0,
            Err(error) => return Err(error),
        };
        if is_ours {
            // The descriptor's own mount, whatever has been made of its path by now.
            rustix::mount::unmount(format!("/proc/self/fd/{}", volume.as_raw_fd()).as_str(), UnmountFlags::DETACH)?;
        }
        Ok(())
    }
}

/// Undoes what the record in a sandbox's run directory tells. Without a record there is nothing to undo.
pub(crate) fn unmount(run_directory: &Path) -> io::Result<()> {
    unmount_in(run_directory, Path::new(PODS))
}

fn unmount_in(run_directory: &Path, pods: &Path) -> io::Result<()> {
    let record = run_directory.join(RECORD);
    let mut bytes = Vec::new();
    match File::open(&record) {
        Ok(file) => file.take(RECORD_MAX_BYTES).read_to_end(&mut bytes)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    if let Some(linked) = Linked::from_record(&bytes) {
        linked.unmount(pods)?;
    }
    fs::remove_file(&record)
}

/// Writes down what is about to be mounted, and mounts it.
fn link(linked: &Linked, run_directory: &Path, pods: &Path) -> io::Result<()> {
    record(linked, run_directory)?;
    linked.mount(pods).inspect_err(|_| _ = fs::remove_file(run_directory.join(RECORD)))
}

fn record(linked: &Linked, run_directory: &Path) -> io::Result<()> {
    let path = run_directory.join(RECORD);
    durable::replace(&path, &linked.to_record(), 0o600, Durability::Volatile).map_err(io::Error::other)
}

/// What the log of a container is called in the directory of its sandbox's logs.
fn name(container: &Container) -> String {
    format!("{}.log", container.id)
}

/// Right within the pod's volume as well as outside of it.
fn target(metadata: &ContainerMetadata) -> String {
    format!("{}/{}.log", metadata.name, metadata.attempt)
}

impl Node {
    /// Mounts the logs of a sandbox into its volume, if it asks for that.
    pub(crate) async fn link_logs(&self, config: &SandboxConfig, log_directory: &Path, run_directory: &Path) {
        let linked = match asked(config, log_directory) {
            None => return,
            Some(Ok(linked)) => linked,
            Some(Err(reason)) => return tracing::warn!(annotation = ANNOTATION, reason, "logs are not linked"),
        };
        let run_directory = run_directory.to_owned();
        let done = blocking::run("link logs", move || link(&linked, &run_directory, Path::new(PODS))).await;
        if let Err(error) = done {
            tracing::warn!(annotation = ANNOTATION, %error, "logs are not linked");
        }
    }

    /// Makes the record of a sandbox that CRI-O mounted logs for, so that they are unmounted like our own.
    pub(crate) async fn adopt_linked_logs(&self, sandbox: &Sandbox) {
        let asked = asked(&sandbox.config, &sandbox.log_directory);
        let Some(Ok(linked)) = asked else { return };
        let run_directory = sandbox.run_directory.clone();
        let done = blocking::run("record linked logs", move || match run_directory.join(RECORD).exists() {
            true => Ok(()),
            false => record(&linked, &run_directory),
        });
        if let Err(error) = done.await {
            tracing::warn!(sandbox.id = %sandbox.id, %error, "cannot tell what logs are linked");
        }
    }

    /// Makes the link to a container's log.
    pub(crate) async fn link_container_log(&self, sandbox: &Sandbox, container: &Arc<Container>) {
        let asked = asked(&sandbox.config, &sandbox.log_directory);
        let Some(Ok(linked)) = asked else { return };
        let (name, target) = (name(container), target(&container.config.metadata));
        let made = blocking::run("link log", move || -> io::Result<()> {
            match rustix::fs::symlinkat(target, linked.open_logs()?, name) {
                Ok(()) | Err(Errno::EXIST) => Ok(()),
                Err(error) => Err(error.into()),
            }
        });
        if let Err(error) = made.await {
            tracing::warn!(container.id = %container.id, error = %undo::chain(&error), "the log is not linked");
        }
    }

    /// Removes the link to a container's log; anything else of that name stays.
    pub(crate) async fn unlink_container_log(&self, container: &Container) {
        let Ok(sandbox) = self.objects.find_sandbox(container.sandbox.as_str()) else { return };
        let asked = asked(&sandbox.config, &sandbox.log_directory);
        let Some(Ok(linked)) = asked else { return };
        let (name, target) = (name(container), target(&container.config.metadata));
        blocking::run("unlink log", move || {
            let Ok(logs) = linked.open_logs() else { return };
            let found = rustix::fs::readlinkat(&logs, name.as_str(), Vec::new());
            if found.is_ok_and(|found| found.as_bytes() == target.as_bytes()) {
                let _ = rustix::fs::unlinkat(&logs, name.as_str(), AtFlags::empty());
            }
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    fn config(volume: &str, uid: &str) -> SandboxConfig {
        SandboxConfig {
            annotations: [(ANNOTATION.to_owned(), volume.to_owned())].into(),
            labels: [(UID_LABEL.to_owned(), uid.to_owned())].into(),
            ..SandboxConfig::default()
        }
    }

    #[test]
    fn names_are_single_segments() {
        for (volume, uid, is_good) in [
            ("logs", "1-2-3", true),
            ("l", "u_1", true),
            ("", "u", false),
            ("..", "u", false),
            ("a/b", "u", false),
            ("Logs", "u", false),
            ("-logs", "u", false),
            ("logs-", "u", false),
            ("logs\n", "u", false),
            ("logs", "", false),
            ("logs", "..", false),
            ("logs", "a/b", false),
        ] {
            let found = asked(&config(volume, uid), Path::new("/logs")).expect("asked");
            assert_eq!(found.is_ok(), is_good, "{volume:?} {uid:?}");
            if let Ok(linked) = found {
                assert_eq!(Linked::from_record(&linked.to_record()), Some(linked));
            }
        }
        assert!(asked(&SandboxConfig::default(), Path::new("/logs")).is_none());
        for bad in [&b""[..], b"{}", br#"{"uid": "..", "volume": "a", "logs": "/x"}"#, b"\xff"] {
            assert_eq!(Linked::from_record(bad), None);
        }
    }

    #[test]
    fn nothing_but_the_log_directory_is_unmounted() {
        let base = tempfile::tempdir().expect("a directory");
        let (pods, run, logs) = (base.path().join("pods"), base.path().join("run"), base.path().join("logs"));
        let volumes = pods.join("u/volumes/kubernetes.io~empty-dir");
        for directory in [&volumes.join("plain"), &run, &logs] {
            fs::create_dir_all(directory).expect("a directory");
        }
        symlink("/proc", volumes.join("away")).expect("a link");
        let linked = |volume: &str| Linked::new("u".to_owned(), volume.to_owned(), logs.clone()).expect("names");
        // A directory, nothing at all, and a link to somebody else's mount.
        assert!(linked("plain").unmount(&pods).is_ok());
        assert!(linked("gone").unmount(&pods).is_ok());
        assert!(linked("away").unmount(&pods).is_err());
        assert!(linked("away").mount(&pods).is_err());
        assert!(linked("gone").mount(&pods).is_err());
        assert!(Path::new("/proc/self").exists());
        record(&linked("plain"), &run).expect("records");
        unmount_in(&run, &pods).expect("unmounts");
        assert!(!run.join(RECORD).exists());
        assert!(unmount_in(&run, &pods).is_ok());
    }
}
