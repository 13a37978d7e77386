//! Every unsafe block and every system call that no library wraps, behind typed descriptors, processes and mounts.
//!
//! Promises: one unsafe operation per block with its reason; each wrapper cites its man page and the oldest kernel it
//! expects. Must not know: sandboxes, containers, images. A module a mechanism; begin with the one you need.
#![deny(unsafe_op_in_unsafe_fn)]
pub mod affinity;
pub mod btrfs;
pub mod confine;
pub mod idmap;
pub mod link;
pub mod locks;
pub mod memory;
pub mod mount_namespace;
pub mod namespace;
pub mod seccomp;
pub mod spawn;
pub mod supervise;
