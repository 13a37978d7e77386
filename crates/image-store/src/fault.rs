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
pub(crate) fn step(what: &'static str) -> io::Result<()> {
    #[cfg(debug_assertions)]
    sudden_end::step(what);
    #[cfg(not(debug_assertions))]
    let _ = what;
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

/// The real thing, for tests of the whole daemon in builds with debug assertions: `CRIO_DIE_AT_STEP` names a file; once it
/// is there, it says before which step from now on the process kills itself, counted from 0.
#[cfg(debug_assertions)]
mod sudden_end {
    use std::path::PathBuf;
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicI64, Ordering};

    static FILE: OnceLock<Option<PathBuf>> = OnceLock::new();
    static LEFT: AtomicI64 = AtomicI64::new(i64::MIN);

    pub(super) fn step(what: &str) {
        let Some(file) = FILE.get_or_init(|| std::env::var_os("CRIO_DIE_AT_STEP").map(PathBuf::from)) else { return };
        if LEFT.load(Ordering::SeqCst) == i64::MIN {
            let Some(steps) = std::fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()) else {
                return;
            };
            let _ = LEFT.compare_exchange(i64::MIN, steps, Ordering::SeqCst, Ordering::SeqCst);
        }
        if LEFT.fetch_sub(1, Ordering::SeqCst) <= 0 {
            tracing::warn!(what, "dying before a step, as told");
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}
