//! Whether paths of the node answer at all.
//!
//! A look-up on a file system whose server is gone (NFS, FUSE) waits in the kernel, where nothing ends it. Done among the
//! node's other blocking work, a few dozen pods with such a volume would hold every thread there is, and with them every
//! other pod. Here each path that hangs holds one small thread of its own, asked about however often.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use domain::container::Mount;
use tokio::sync::watch;

use crate::mounts::ResolveMountError;
use crate::node::Node;

/// How long a path may take to answer. A slow NFS server needs a second or two; the kubelet asks again in any case.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Look-ups under way at once, those that hang included. A node has 110 pods by default, with some volumes each.
const LOOK_UPS_MAX: usize = 512;
/// Such a thread makes one system call.
const STACK_BYTES: usize = 128 << 10;

/// Look-ups under way, by path; the value becomes true when it has been answered.
type LookUps = Arc<Mutex<HashMap<PathBuf, watch::Receiver<bool>>>>;

/// The look-ups of a node.
#[derive(Debug, Default)]
pub(crate) struct Reach(LookUps);

impl Reach {
    /// Returns when the path has answered, whatever it said: that it does not exist is an answer.
    async fn answer(&self, path: &Path, limit: Duration) -> Result<(), ResolveMountError> {
        let path = path.to_owned();
        let mut answered = match self.join(&path, |path| drop(std::fs::metadata(path))) {
            Ok(answered) => answered,
            Err(source) => return Err(ResolveMountError::Source { action: "look up", path, source }),
        };
        match tokio::time::timeout(limit, answered.wait_for(|is_answered| *is_answered)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ResolveMountError::NotAnswering { path, waited: limit }),
        }
    }

    fn join(&self, path: &Path, look: impl FnOnce(&Path) + Send + 'static) -> std::io::Result<watch::Receiver<bool>> {
        let mut look_ups = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(answered) = look_ups.get(path) {
            return Ok(answered.clone());
        }
        if look_ups.len() >= LOOK_UPS_MAX {
            return Err(std::io::Error::other(format!("{LOOK_UPS_MAX} look-ups of host paths already wait")));
        }
        let (sender, receiver) = watch::channel(false);
        let (registry, looked_up) = (Arc::clone(&self.0), path.to_owned());
        std::thread::Builder::new().name("reach".to_owned()).stack_size(STACK_BYTES).spawn(move || {
            look(&looked_up);
            registry.lock().unwrap_or_else(PoisonError::into_inner).remove(&looked_up);
            sender.send_replace(true);
        })?;
        look_ups.insert(path.to_owned(), receiver.clone());
        Ok(receiver)
    }
}

impl Node {
    /// Refuses mounts whose sources do not answer, before anything is made.
    pub(crate) async fn reach_mounts(&self, mounts: &[Mount]) -> Result<(), ResolveMountError> {
        let sources = mounts.iter().filter(|mount| !mount.host_path.is_empty()).map(|mount| {
            let path = match &self.config.runtime.bind_mount_prefix {
                Some(prefix) => prefix.join(mount.host_path.trim_start_matches('/')),
                None => PathBuf::from(&mount.host_path),
            };
            async move { self.reach.answer(&path, ANSWER_LIMIT).await }
        });
        futures_util::future::try_join_all(sources).await.map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_path_that_hangs_holds_one_thread_however_often_it_is_asked_about() {
        let reach = Reach::default();
        let (release, released) = std::sync::mpsc::channel::<()>();
        let path = Path::new("/hangs");
        let first = reach
            .join(path, move |_| {
                let _ = released.recv();
            })
            .expect("a thread");
        for _ in 0..50 {
            let error = reach.answer(path, Duration::from_millis(1)).await.expect_err("hangs");
            assert!(matches!(error, ResolveMountError::NotAnswering { .. }), "{error}");
        }
        assert_eq!(reach.0.lock().expect("a lock").len(), 1);
        // Others are not held up.
        for path in ["/", "/no/such/path"] {
            reach.answer(Path::new(path), Duration::from_secs(5)).await.expect("answers");
        }
        drop(release);
        first.clone().wait_for(|is_answered| *is_answered).await.expect("ends");
        assert!(reach.0.lock().expect("a lock").is_empty());
    }

    #[tokio::test]
    async fn look_ups_are_bounded() {
        let reach = Reach::default();
        let (_sender, answered) = watch::channel(false);
        for number in 0..LOOK_UPS_MAX {
            reach.0.lock().expect("a lock").insert(format!("/{number}").into(), answered.clone());
        }
        let error = reach.answer(Path::new("/one/more"), Duration::from_secs(5)).await.expect_err("is refused");
        assert!(matches!(error, ResolveMountError::Source { .. }), "{error}");
    }
}
