//! Limits of containers' memory, which the kernel is not asked for each time: only the daemon changes them.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use cgroup::Limits;
use domain::id::ContainerId;

/// Whoever changes a limit behind the daemon's back sees it told after this time.
const AGE_MAX: Duration = Duration::from_secs(60);

/// By container; those that are gone go with the next collection.
#[derive(Default)]
pub(super) struct KnownLimits(HashMap<ContainerId, KnownLimit>);

#[derive(Debug, Clone, Copy)]
struct KnownLimit {
    limits: Limits,
    at: Instant,
    /// What the daemon had given when they were read.
    given: (i64, i64),
}

impl KnownLimit {
    fn is_good(&self, now: Instant, given: (i64, i64)) -> bool {
        self.given == given && now.saturating_duration_since(self.at) < AGE_MAX
    }
}

impl KnownLimits {
    /// What a container may use that was given this, unless it may have changed since it was read.
    pub(super) fn of(&self, id: &ContainerId, given: (i64, i64)) -> Option<Limits> {
        self.0.get(id).filter(|known| known.is_good(Instant::now(), given)).map(|known| known.limits)
    }

    /// `given` is from before the limits were read, so that an update in between shows.
    pub(super) fn remember(&mut self, id: &ContainerId, given: (i64, i64), limits: Limits) {
        self.0.insert(id.clone(), KnownLimit { limits, at: Instant::now(), given });
    }

    /// Cheap as long as nothing was removed.
    pub(super) fn forget_absent(&mut self, count: usize, exists: impl Fn(&ContainerId) -> bool) {
        if self.0.len() > count {
            self.0.retain(|id, _| exists(id));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_good_until_they_are_changed_or_old() {
        let at = Instant::now();
        let known = KnownLimit { limits: Limits::default(), at, given: (1, 2) };
        for (seconds, given, expected) in
            [(0, (1, 2), true), (59, (1, 2), true), (60, (1, 2), false), (0, (1, 3), false), (0, (2, 2), false)]
        {
            assert_eq!(known.is_good(at + Duration::from_secs(seconds), given), expected, "{seconds} {given:?}");
        }
    }
}
