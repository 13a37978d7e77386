//! Whole-file replace, paths beneath a root directory, and lock files.
//!
//! Promises: a file replaced here is either the old one or the new one, whatever happens in between; a path opened
//! [`beneath`] a directory cannot leave it, whoever made the symbolic links inside. Must not know: what the files mean.
//! Begin reading at [`replace`], then [`beneath::Root`] and [`lock::LockFile`].
#![forbid(unsafe_code)]

pub mod beneath;
pub mod lock;
mod replace;

pub use replace::{Durability, ReplaceError, replace, replace_in, sync_parent};
