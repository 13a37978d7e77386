//! Moving the whole process into a mount namespace that somebody else has made.

use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use rustix::thread::LinkNameSpaceType;

use crate::namespace;

/// Moves this process into the mount namespace that is pinned at `path`; its root and working directory become the
/// namespace's root.
///
/// Only a process with one thread can. Errors: `InvalidInput` for what is no namespace or one of another kind.
/// Source: setns(2), Linux 3.8.
pub fn join(path: &Path) -> io::Result<()> {
    let namespace = namespace::open(path)?;
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
}
