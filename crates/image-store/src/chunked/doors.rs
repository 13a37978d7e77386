//! What a thread behind walls cannot open itself: files of other layers, opened and linked for it by a thread that can.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::mpsc::{Receiver, Sender, SyncSender, sync_channel};

use durable::beneath::Root;
use rustix::fs::AtFlags;
use rustix::io::Errno;

use super::Place;

/// What is asked for. Whoever asks waits.
pub(super) enum Ask {
    Open { layer: usize, name: Vec<u8>, answer: SyncSender<io::Result<File>> },
    Link { source: File, parent: OwnedFd, name: OsString, answer: SyncSender<Result<(), Errno>> },
}

/// Does what is asked for until nobody is left to ask.
pub(super) fn serve(asked: &Receiver<Ask>, layers: &[&Root]) {
    // Whoever does not wait for the answer any more has gone.
    for ask in asked {
        match ask {
            Ask::Open { layer, name, answer } => {
                let path = Path::new(std::ffi::OsStr::from_bytes(&name));
                let opened = layers.get(layer).ok_or_else(|| io::ErrorKind::NotFound.into());
                let _ = answer.send(opened.and_then(|root| root.open_regular(path)));
            }
            Ask::Link { source, parent, name, answer } => {
                let door = format!("/proc/self/fd/{}", source.as_raw_fd());
                // One name in an open directory: nothing in between that could lead elsewhere.
                let is_name = !name.as_bytes().contains(&b'/');
                let linked = is_name
                    .then(|| rustix::fs::linkat(rustix::fs::CWD, &door, &parent, &name, AtFlags::SYMLINK_FOLLOW));
                let _ = answer.send(linked.unwrap_or(Err(Errno::INVAL)));
            }
        }
    }
}

/// The asking side.
pub(super) struct Doors(pub(super) Sender<Ask>);

impl Doors {
    /// A regular file of another layer, for reading.
    pub(super) fn open(&self, place: &Place) -> io::Result<File> {
        let (answer, answered) = sync_channel(1);
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let ask = Ask::Open { layer: place.layer, name: place.name.clone(), answer };
        self.0.send(ask).map_err(|_| gone())?;
        answered.recv().unwrap_or_else(|_| Err(gone()))
    }

    /// Gives a file a further name.
    pub(super) fn link(&self, source: &File, parent: &OwnedFd, name: &Path) -> Result<(), Errno> {
        let copy = |error: io::Error| Errno::from_io_error(&error).unwrap_or(Errno::IO);
        let (answer, answered) = sync_channel(1);
        let (source, parent) = (source.try_clone().map_err(copy)?, parent.try_clone().map_err(copy)?);
        let ask = Ask::Link { source, parent, name: name.as_os_str().to_owned(), answer };
        self.0.send(ask).map_err(|_| Errno::PIPE)?;
        answered.recv().unwrap_or(Err(Errno::PIPE))
    }
}
