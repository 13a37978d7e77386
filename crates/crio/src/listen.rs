//! The socket the daemon is reached by.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use thiserror::Error;
use tokio::net::UnixListener;

/// Owner and group may talk to the daemon. Source: CRI-O.
const SOCKET_MODE: u32 = 0o660;
const DIRECTORY_MODE: u32 = 0o755;

/// Why the daemon cannot be reached.
#[derive(Debug, Error)]
pub(crate) enum ListenError {
    /// Somebody else answers there.
    #[error("listen on {path}: already in use")]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// What is there is no socket and not ours to remove.
    #[error("listen on {path}: the file there is not a socket")]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// A step failed.
    #[error("{action} {path}")]
    Step {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
}

/// Binds the socket. One that a dead daemon left is replaced, one that answers is not.
pub(crate) fn listen(path: &Path) -> Result<UnixListener, ListenError> {
    let failed = |action| move |source| ListenError::Step { action, path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(parent)
            .map_err(failed("create the directory of"))?;
    }
    match fs::symlink_metadata(path) {
        Ok(metadata) if !metadata.file_type().is_socket() => {
            return Err(ListenError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(ListenError::InUse { path: path.to_owned() });
            }
            fs::remove_file(path).map_err(failed("remove the stale socket"))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("look at")(error)),
    }
    // Nobody but root until the mode is as it should be.
    let previous = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(previous);
    let listener = listener.map_err(failed("bind"))?;
    fs::set_permissions(path, fs::Permissions::from_mode(SOCKET_MODE)).map_err(failed("set the mode of"))?;
    Ok(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let directory = std::env::temp_dir().join(format!("crio-listen-{}", std::process::id()));
        let path = directory.join("deep/crio.sock");
        let first = listen(&path).expect("binds");
        assert_eq!(fs::metadata(&path).expect("is there").permissions().mode() & 0o777, SOCKET_MODE);
        assert!(matches!(listen(&path), Err(ListenError::InUse { .. })));
        drop(first);
        let second = listen(&path).expect("replaces the stale one");
        drop(second);
        fs::remove_file(&path).expect("removes");
        fs::File::create(&path).expect("creates");
        assert!(matches!(listen(&path), Err(ListenError::NotASocket { .. })));
        fs::remove_dir_all(&directory).expect("cleans up");
    }
}
