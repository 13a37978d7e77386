//! The seccomp notifier: containers whose refused system calls are handed to the daemon, which counts them, lets them
//! fail, and stops the container where its pod asks for that.
//!
//! A pod asks by an annotation that its handler must allow. Each filter that a runtime loads, at create and at every
//! exec, arrives as a listener over a socket of the container's own and is served by one thread, so that no program
//! waits for anything else the daemon does. A daemon that ends closes the listeners: the kernel then lets the calls fail
//! as the daemon did, unseen. The next daemon listens for new ones and says what it no longer sees.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use confinement::seccomp::{PROCESS_STATE_MAX_BYTES, notifying, parse_process_state, syscall_name};
use domain::id::ContainerId;
use oci_spec::runtime::LinuxSeccomp;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::create_container::CreateContainerError;
use crate::node::Node;
use crate::sandbox::Sandbox;
use crate::stop_container::Grace;
use crate::undo::{Undo, chain};

/// The annotation of a pod. Source: CRI-O.
const ANNOTATION: &str = "seccomp-notifier-action.crio.io";
/// Its value for stopping; with any other, calls are only counted. Source: CRI-O.
const STOP: &str = "stop";
/// From the last hit to the stop. Source: CRI-O.
const QUIET_BEFORE_STOP: Duration = Duration::from_secs(5);
/// A runtime sends its message in one piece and at once.
const HANDOVER_LIMIT: Duration = Duration::from_secs(5);
/// Filters of one container at once: its own, and one for each exec under way.
const LISTENERS_MAX: usize = 64;
/// Descriptors in one message; runtimes send one.
const DESCRIPTORS_MAX: usize = 4;
/// Distinct calls that are counted by name. Filters name some four hundred.
const NAMES_MAX: usize = 512;
/// Hits that are answered as they come and told in the log; each later one of the same filter is only counted, and waits
/// a moment, so that a program which does nothing else does not occupy the daemon.
const PROMPT_HITS: u64 = 1000;
const LATER_PAUSE: Duration = Duration::from_millis(1);
/// A listener's thread makes three system calls in a loop.
const STACK_BYTES: usize = 128 << 10;

/// What is to become of a container that makes forbidden calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Action {
    /// It is stopped a while after the last.
    Stop,
    /// They are counted and told.
    Count,
}

/// Those of a node.
#[derive(Debug)]
pub(crate) struct Notifiers {
    directory: PathBuf,
    by_container: Mutex<HashMap<ContainerId, Notifier>>,
}

/// One container's. Dropped, it listens no more; the filters it has are served until their last process ends.
#[derive(Debug)]
struct Notifier {
    socket: PathBuf,
    accepting: AbortHandle,
    following: AbortHandle,
}

impl Drop for Notifier {
    fn drop(&mut self) {
        self.accepting.abort();
        self.following.abort();
        let _ = std::fs::remove_file(&self.socket);
    }
}

/// Calls so far.
#[derive(Debug, Default)]
struct Hits {
    by_name: BTreeMap<String, u64>,
}

impl Hits {
    fn add(&mut self, name: &str) {
        if let Some(count) = self.by_name.get_mut(name) {
            *count = count.saturating_add(1);
        } else if self.by_name.len() < NAMES_MAX {
            self.by_name.insert(name.to_owned(), 1);
        }
    }

    /// As the status of a container shows it. Source: CRI-O.
    fn text(&self) -> String {
        let calls: Vec<String> = self.by_name.iter().map(|(name, count)| format!("{name} ({count}x)")).collect();
        format!("Used forbidden syscalls: {}", calls.join(", "))
    }
}

/// What the tasks and threads of one container share.
struct Shared {
    container: ContainerId,
    hits: watch::Sender<Hits>,
    listeners: AtomicUsize,
}

impl Notifiers {
    /// Sockets lie in a directory beside the CRI's. Source: CRI-O.
    pub(crate) fn beside(cri_socket: &Path) -> Self {
        let directory = cri_socket.parent().unwrap_or(Path::new("/")).join("seccomp");
        Self { directory, by_container: Mutex::default() }
    }

    fn socket(&self, id: &ContainerId) -> PathBuf {
        self.directory.join(id.as_str())
    }

    /// Closed to everybody else, whoever made it.
    fn make_directory(&self) -> io::Result<()> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        std::fs::set_permissions(&self.directory, std::fs::Permissions::from_mode(0o700))
    }

    pub(crate) fn forget(&self, id: &ContainerId) {
        self.by_container.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

/// What a sandbox's annotations ask for, as far as its handler or workload allows it.
fn action_of(sandbox: &Sandbox) -> Option<Action> {
    let value = sandbox.effective_annotations().remove(ANNOTATION)?;
    Some(if value == STOP { Action::Stop } else { Action::Count })
}

impl Node {
    /// A container's filter, changed if its pod wants the notifier. Without a filter there is nothing to notify of.
    pub(crate) fn notifying_filter(
        &self,
        sandbox: &Sandbox,
        id: &ContainerId,
        filter: Option<Arc<LinuxSeccomp>>,
    ) -> (Option<Arc<LinuxSeccomp>>, Option<Action>) {
        let (Some(plain), Some(action)) = (&filter, action_of(sandbox)) else { return (filter, None) };
        let changed = notifying(plain, &self.notifiers.socket(id));
        if changed.is_default_unseen {
            tracing::info!(container.id = %id, "calls refused by the seccomp profile's default action are not seen by the notifier");
        }
        (Some(Arc::new(changed.filter)), Some(action))
    }

    /// Begins to listen for the filters of a container that is about to be created.
    pub(crate) fn listen_for_filters(
        self: &Arc<Self>,
        id: &ContainerId,
        name: &str,
        action: Action,
        undo: &mut Undo,
    ) -> Result<(), CreateContainerError> {
        let (node, undone) = (Arc::clone(self), id.clone());
        undo.push("close the seccomp notifier", move || {
            node.notifiers.forget(&undone);
            async { Ok(()) }
        });
        self.listen(id, action).map_err(|source| CreateContainerError::Notifier {
            container: name.to_owned(),
            path: self.notifiers.socket(id),
            source,
        })
    }

    fn listen(self: &Arc<Self>, id: &ContainerId, action: Action) -> io::Result<()> {
        // One that was there goes first: going later, it would take the new one's socket away.
        self.notifiers.forget(id);
        self.notifiers.make_directory()?;
        let socket = self.notifiers.socket(id);
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&socket)?;
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        let shared = Arc::new(Shared {
            container: id.clone(),
            hits: watch::Sender::new(Hits::default()),
            listeners: AtomicUsize::new(0),
        });
        let following = tokio::spawn(follow(Arc::downgrade(self), Arc::clone(&shared), action)).abort_handle();
        let accepting = tokio::spawn(accept(listener, shared)).abort_handle();
        let notifier = Notifier { socket, accepting, following };
        let mut by_container = self.notifiers.by_container.lock().unwrap_or_else(PoisonError::into_inner);
        by_container.insert(id.clone(), notifier);
        Ok(())
    }

    /// Listens again for containers of an earlier daemon, so that programs can be executed in them.
    pub(crate) fn restore_notifiers(self: &Arc<Self>) {
        let Ok(entries) = std::fs::read_dir(&self.notifiers.directory) else { return };
        for entry in entries.flatten() {
            let id = entry.file_name().to_str().and_then(|name| ContainerId::parse(name).ok());
            let container = id.and_then(|id| self.objects.container(&id));
            let alive = container.filter(|container| container.state().init().is_some());
            let sandbox = alive.as_ref().and_then(|container| self.objects.sandbox(&container.sandbox));
            let (Some(container), Some(action)) = (alive, sandbox.and_then(|sandbox| action_of(&sandbox))) else {
                let _ = std::fs::remove_file(entry.path());
                continue;
            };
            tracing::warn!(container.id = %container.id, "forbidden calls of programs that began under an earlier daemon fail without being seen");
            if let Err(error) = self.listen(&container.id, action) {
                tracing::error!(container.id = %container.id, %error, "the seccomp notifier cannot listen: nothing can be executed in the container");
            }
        }
    }

    async fn stop_for_calls(self: &Arc<Self>, id: &ContainerId, text: String) {
        let Some(container) = self.objects.container(id) else { return };
        if container.state().init().is_none() {
            return;
        }
        tracing::info!(container.id = %id, "stopping a container that {}", text.replacen("Used", "used", 1));
        *container.seccomp_verdict.lock().unwrap_or_else(PoisonError::into_inner) = Some(text);
        if let Err(error) = self.stop(&container, Grace::from_seconds(0)).await {
            tracing::error!(container.id = %id, error = %chain(&error), "stopping a container that used forbidden calls failed");
        }
    }
}

/// Stops the container once it has been quiet for a while after a hit.
async fn follow(node: Weak<Node>, shared: Arc<Shared>, action: Action) {
    let mut hits = shared.hits.subscribe();
    while action == Action::Stop && hits.changed().await.is_ok() {
        while tokio::time::timeout(QUIET_BEFORE_STOP, hits.changed()).await.is_ok() {}
        let text = hits.borrow_and_update().text();
        let Some(node) = node.upgrade() else { return };
        node.stop_for_calls(&shared.container, text).await;
    }
}

/// Takes listeners for as long as it is polled.
async fn accept(listener: UnixListener, shared: Arc<Shared>) {
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            // Out of descriptors, most likely: it would fail again at once.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if shared.listeners.fetch_add(1, Ordering::Relaxed) >= LISTENERS_MAX {
            shared.listeners.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(container.id = %shared.container, "a container has more seccomp filters than are listened to");
            continue;
        }
        tokio::spawn(take(stream, Arc::clone(&shared)));
    }
}

async fn take(stream: UnixStream, shared: Arc<Shared>) {
    let handed = tokio::time::timeout(HANDOVER_LIMIT, handover(&stream, &shared.container)).await;
    let handed = handed.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let thread = handed.and_then(|filter| {
        let shared = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("seccomp".to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || {
            serve(&filter, &shared);
            shared.listeners.fetch_sub(1, Ordering::Relaxed);
        })
    });
    if let Err(error) = thread {
        shared.listeners.fetch_sub(1, Ordering::Relaxed);
        tracing::error!(container.id = %shared.container, error = %chain(&error), "taking over a seccomp filter failed: its calls fail without being seen");
    }
}

/// The listener that a runtime sends, with a message that says whose it is.
async fn handover(stream: &UnixStream, container: &ContainerId) -> io::Result<OwnedFd> {
    let invalid = |text: String| io::Error::new(io::ErrorKind::InvalidData, text);
    let mut message = Vec::new();
    let mut descriptors = Vec::new();
    loop {
        stream.readable().await?;
        let count = match stream.try_io(Interest::READABLE, || receive(stream, &mut message, &mut descriptors)) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            count => count?,
        };
        let state = match parse_process_state(&message) {
            Err(error) if error.is_incomplete() && count > 0 && message.len() < PROCESS_STATE_MAX_BYTES => continue,
            state => state.map_err(|error| invalid(chain(&error)))?,
        };
        if state.container != container.as_str() {
            return Err(invalid(format!("the listener is of container {:?}", state.container)));
        }
        if state.listener >= descriptors.len() {
            return Err(invalid(format!("{} descriptors were sent", descriptors.len())));
        }
        return Ok(descriptors.swap_remove(state.listener));
    }
}

fn receive(stream: &UnixStream, message: &mut Vec<u8>, descriptors: &mut Vec<OwnedFd>) -> io::Result<usize> {
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffer = [0; 16 << 10];
    let slices = &mut [IoSliceMut::new(&mut buffer)];
    let received = recvmsg(stream, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT)?;
    for part in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(sent) = part {
            // More than one message's worth are dropped, and with that closed.
            let room = DESCRIPTORS_MAX.saturating_sub(descriptors.len());
            descriptors.extend(sent.take(room));
        }
    }
    message.extend_from_slice(&buffer[..received.bytes]);
    Ok(received.bytes)
}

/// Lets calls fail until no process with the filter is left.
fn serve(filter: &OwnedFd, shared: &Shared) {
    let mut count = 0_u64;
    loop {
        let mut polled = [PollFd::new(filter, PollFlags::IN)];
        match poll(&mut polled, None) {
            Ok(_) => {}
            Err(Errno::INTR) => continue,
            Err(_) => return,
        }
        if !polled[0].revents().contains(PollFlags::IN) {
            return;
        }
        let call = match sys::seccomp::receive(filter.as_fd()) {
            Ok(Some(call)) => call,
            Ok(None) => continue,
            Err(error) => {
                tracing::error!(container.id = %shared.container, %error, "a seccomp filter is no longer listened to");
                return;
            }
        };
        let name = syscall_name(call.arch, call.number);
        count += 1;
        if count <= PROMPT_HITS {
            tracing::info!(pid = call.pid, "Seccomp blocked syscall '{name}' in container {}", shared.container);
        } else {
            std::thread::sleep(LATER_PAUSE);
        }
        shared.hits.send_modify(|hits| hits.add(&name));
        if let Err(error) = sys::seccomp::refuse(filter.as_fd(), call.id, Errno::NOSYS.raw_os_error()) {
            tracing::warn!(container.id = %shared.container, %error, "answering for a forbidden call failed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_told_by_name_with_their_number() {
        let mut hits = Hits::default();
        for name in ["swapoff", "mkdir", "swapoff"] {
            hits.add(name);
        }
        assert_eq!(hits.text(), "Used forbidden syscalls: mkdir (1x), swapoff (2x)");
        for number in 0..2 * NAMES_MAX {
            hits.add(&format!("syscall {number}"));
        }
        assert_eq!(hits.by_name.len(), NAMES_MAX);
    }

    async fn send(text: &str, descriptors: &[&OwnedFd]) -> io::Result<OwnedFd> {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        let (ours, theirs) = UnixStream::pair()?;
        let borrowed: Vec<_> = descriptors.iter().map(|descriptor| descriptor.as_fd()).collect();
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !borrowed.is_empty() {
            assert!(ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)));
        }
        sendmsg(&theirs, &[io::IoSlice::new(text.as_bytes())], &mut ancillary, SendFlags::empty())?;
        drop(theirs);
        handover(&ours, &ContainerId::from_bytes([7; 32])).await
    }

    #[tokio::test]
    async fn only_a_message_of_the_container_with_a_listener_is_taken() {
        let id = ContainerId::from_bytes([7; 32]);
        let descriptor: OwnedFd = std::fs::File::open("/dev/null").expect("opens").into();
        let whole = format!(r#"{{"fds":["seccompFd"],"state":{{"id":"{id}"}}}}"#);
        send(&whole, &[&descriptor]).await.expect("is taken");
        for (text, count) in [
            (whole.clone(), 0),
            (whole.replace(id.as_str(), "another"), 1),
            (whole[..20].to_owned(), 1),
            ("{}".to_owned(), 1),
            (whole.replace("\"seccompFd\"", "\"a\",\"b\",\"seccompFd\""), 1),
        ] {
            let error = send(&text, &vec![&descriptor; count]).await.expect_err(&text);
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{text}: {error}");
        }
    }
}
