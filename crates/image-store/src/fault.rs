//! Fault injection for crash tests: an operation stops dead before its n-th step, as if the power had gone.
//!
//! Costs one relaxed load when not in use.

use std::io;
use std::sync::atomic::{AtomicI64, Ordering};

static REMAINING: AtomicI64 = AtomicI64::new(i64::MAX);

/// What every step after the last allowed one fails with.
const MESSAGE: &str = "injected fault";

/// Lets `steps` further steps of this process succeed and all after them fail; `None` turns injection off.
///
/// For tests only: undo code runs against failing steps too, so nothing is tidied up.
pub fn fail_after(steps: Option<u32>) {
    REMAINING.store(steps.map_or(i64::MAX, i64::from), Ordering::SeqCst);
}

/// Marks a point at which a crash leaves something different on disk.
pub(crate) fn step(_what: &'static str) -> io::Result<()> {
    if REMAINING.load(Ordering::Relaxed) == i64::MAX {
        return Ok(());
    }
    if REMAINING.fetch_sub(1, Ordering::SeqCst) <= 0 {
        return Err(io::Error::other(MESSAGE));
    }
    Ok(())
}

/// Whether clean-up must be left undone because the process is supposed to be dead.
pub(crate) fn is_dead() -> bool {
    REMAINING.load(Ordering::Relaxed) < 0
}
