//! Device nodes of a definition, with what the node's own one says filled in.
//!
//! A definition that names a type and a major number is complete, also for a device that is not there; every other one
//! is completed from the file on the host, which must then be a device. Symbolic links are not followed: CRI-O does not.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};

use domain::spec::{EditNode, EditNodeKind};
use thiserror::Error;

use super::file::CdiNode;

/// Why a device node cannot be made.
#[derive(Debug, Error)]
pub enum NodeError {
    /// It is not there.
    #[error("look at device node {path}")]
    Stat {
        /// On the host.
        path: String,
        #[source]
        /// The system's answer.
        source: io::Error,
    },
    /// It is something else.
    #[error("{path} is no device node")]
    NotADevice {
        /// On the host.
        path: String,
    },
    /// It is another kind of device.
    #[error("{path} is not of the type {expected:?}")]
    OtherType {
        /// On the host.
        path: String,
        /// As the definition has it.
        expected: String,
    },
}

/// Type, major, minor and permission bits.
type Found = (EditNodeKind, u32, u32, u32);

fn look(path: &str) -> Result<Found, NodeError> {
    let stat = fs::symlink_metadata(path).map_err(|source| NodeError::Stat { path: path.to_owned(), source })?;
    let kind = match stat.file_type() {
        kind if kind.is_block_device() => EditNodeKind::Block,
        kind if kind.is_char_device() => EditNodeKind::Char,
        kind if kind.is_fifo() => EditNodeKind::Fifo,
        _ => return Err(NodeError::NotADevice { path: path.to_owned() }),
    };
    Ok((kind, rustix::fs::major(stat.rdev()), rustix::fs::minor(stat.rdev()), stat.mode() & 0o7777))
}

pub(super) fn resolve(node: &CdiNode) -> Result<EditNode, NodeError> {
    let host_path = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    // Unbuffered is the historic name of character devices.
    let given = match node.kind.as_str() {
        "b" => Some(EditNodeKind::Block),
        "c" | "u" => Some(EditNodeKind::Char),
        "p" => Some(EditNodeKind::Fifo),
        _ => None,
    };
    let made = |kind, major, minor, mode| EditNode {
        path: node.path.clone(),
        kind,
        major,
        minor,
        mode,
        uid: node.uid,
        gid: node.gid,
        permissions: node.permissions.clone(),
    };
    let found = look(host_path);
    if let Some(kind) = given.filter(|kind| node.major != 0 || *kind == EditNodeKind::Fifo) {
        let mode = node.file_mode.or(found.ok().map(|(.., mode)| mode));
        return Ok(made(kind, node.major, node.minor, mode));
    }
    let (kind, major, minor, mode) = found?;
    if given.is_some_and(|given| given != kind) {
        return Err(NodeError::OtherType { path: host_path.clone(), expected: node.kind.clone() });
    }
    let (major, minor) = match kind {
        EditNodeKind::Fifo => (0, 0),
        _ if node.major != 0 => (node.major, node.minor),
        EditNodeKind::Block | EditNodeKind::Char => (major, minor),
    };
    Ok(made(kind, major, minor, node.file_mode.or(Some(mode))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(json: &str) -> CdiNode {
        serde_json::from_str(json).expect("a node")
    }

    #[test]
    fn what_is_missing_comes_from_the_host() {
        for (json, expected) in [
            (r#"{"path": "/dev/x", "hostPath": "/dev/null"}"#, Some((EditNodeKind::Char, 1, 3, Some(0o666)))),
            (r#"{"path": "/dev/zero", "type": "c"}"#, Some((EditNodeKind::Char, 1, 5, Some(0o666)))),
            (r#"{"path": "/dev/zero", "type": "u", "fileMode": 384}"#, Some((EditNodeKind::Char, 1, 5, Some(0o600)))),
            (r#"{"path": "/dev/zero", "type": "b"}"#, None),
            (r#"{"path": "/dev/not-here"}"#, None),
            (r#"{"path": "/dev/not-here", "type": "c"}"#, None),
            (r#"{"path": "/etc/passwd"}"#, None),
            (
                r#"{"path": "/dev/not-here", "type": "c", "major": 7, "minor": 8}"#,
                Some((EditNodeKind::Char, 7, 8, None)),
            ),
            (r#"{"path": "/dev/null", "type": "b", "major": 7}"#, Some((EditNodeKind::Block, 7, 0, Some(0o666)))),
            (r#"{"path": "/dev/not-here", "type": "p"}"#, Some((EditNodeKind::Fifo, 0, 0, None))),
        ] {
            let made = resolve(&node(json)).ok().map(|made| (made.kind, made.major, made.minor, made.mode));
            assert_eq!(made, expected, "{json}");
        }
    }
}
