//! Levels in use: pods are kept apart by having none in common.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex, PoisonError};

use domain::selinux::Policy;

use super::LabelsError;

/// With a thousand of half a million levels in use, two draws in a row fail once in a quarter of a million times.
const DRAWS_MAX: usize = 1000;

/// How often each level is in use.
#[derive(Debug, Default)]
pub(crate) struct Levels(Arc<Mutex<BTreeMap<String, usize>>>);

/// A level in use, until dropped.
#[derive(Debug)]
pub struct Reservation {
    levels: Arc<Mutex<BTreeMap<String, usize>>>,
    level: String,
}

impl Levels {
    /// One more user of a level, whoever else has it.
    pub(crate) fn hold(&self, level: &str) -> Reservation {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner).entry(level.to_owned()).or_default() += 1;
        Reservation { levels: Arc::clone(&self.0), level: level.to_owned() }
    }

    /// A level that nobody has.
    pub(crate) fn draw(&self) -> Result<Reservation, LabelsError> {
        self.draw_from(random)
    }

    fn draw_from(&self, mut random: impl FnMut() -> io::Result<[u8; 4]>) -> Result<Reservation, LabelsError> {
        for _ in 0..DRAWS_MAX {
            let Some(level) = Policy::level_of(random().map_err(LabelsError::Draw)?) else { continue };
            let mut levels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if !levels.contains_key(&level) {
                levels.insert(level.clone(), 1);
                return Ok(Reservation { levels: Arc::clone(&self.0), level });
            }
        }
        Err(LabelsError::NoLevel)
    }
}

impl Reservation {
    /// Which level.
    #[must_use]
    pub fn level(&self) -> &str {
        &self.level
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(users) = levels.get_mut(&self.level) {
            *users -= 1;
            if *users == 0 {
                levels.remove(&self.level);
            }
        }
    }
}

fn random() -> io::Result<[u8; 4]> {
    let mut bytes = [0; 4];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_draws_what_somebody_holds() {
        let levels = Levels::default();
        let held = [levels.hold("s0:c1,c2"), levels.hold("s0:c1,c2")];
        let draws = [[1, 0, 2, 0], [7, 0, 7, 0], [2, 0, 1, 0], [3, 0, 4, 0]];
        let mut next = draws.into_iter();
        let drawn = levels.draw_from(|| Ok(next.next().expect("enough"))).expect("draws");
        assert_eq!(drawn.level(), "s0:c3,c4");
        let always = || Ok([1, 0, 2, 0]);
        let [first, second] = held;
        drop(first);
        assert!(matches!(levels.draw_from(always), Err(LabelsError::NoLevel)), "one user is left");
        drop(second);
        assert_eq!(levels.draw_from(always).expect("is free").level(), "s0:c1,c2");
        drop(drawn);
        assert!(levels.0.lock().expect("locks").is_empty());
    }

    #[test]
    fn a_thousand_pods_have_a_thousand_levels() {
        let levels = Levels::default();
        let drawn: Vec<Reservation> = (0..1000).map(|_| levels.draw().expect("draws")).collect();
        let distinct: std::collections::BTreeSet<&str> = drawn.iter().map(Reservation::level).collect();
        assert_eq!(distinct.len(), 1000);
    }
}
