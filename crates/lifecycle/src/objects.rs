//! What exists on the node: sandboxes, containers and the names they hold.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use domain::id::{ContainerId, SandboxId};
use thiserror::Error;

use crate::container::Container;
use crate::sandbox::Sandbox;

/// Why a text names no object.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum LookupError {
    /// An empty id.
    #[error("{kind} id should not be empty")]
    Empty {
        /// `sandbox` or `container`.
        kind: &'static str,
    },
    /// Nothing begins with it.
    #[error("could not find {kind} {id:?}: {kind} with ID starting with {id} not found: ID does not exist")]
    Absent {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// As asked.
        id: String,
    },
    /// More than one begins with it.
    #[error("{kind} id {id:?} is ambiguous")]
    Ambiguous {
        /// `sandbox` or `container`.
        kind: &'static str,
        /// As asked.
        id: String,
    },
}

impl LookupError {
    /// Whether there simply is no such object.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        matches!(self, Self::Absent { .. })
    }
}

/// Who made it has not been told yet: a client gave up waiting before the object was there. Hidden until asked for again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Undelivered {
    /// Made then.
    Since(Instant),
    /// Too late: it is being removed.
    Abandoned,
}

/// What telling a client about an object found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Nobody had been told.
    First,
    /// Somebody had.
    Again,
    /// It is being removed, because nobody asked for so long.
    TooLate,
}

#[derive(Default)]
struct Tables {
    sandboxes: BTreeMap<SandboxId, Arc<Sandbox>>,
    containers: BTreeMap<ContainerId, Arc<Container>>,
    /// Reserved names of sandboxes, infra containers and containers, with the id that holds each.
    names: HashMap<String, String>,
    /// By id of a sandbox or container.
    undelivered: HashMap<String, Undelivered>,
}

/// The tables. Held for the length of a look-up only, never across anything that waits.
#[derive(Default)]
pub(crate) struct Objects(Mutex<Tables>);

impl Objects {
    fn tables(&self) -> MutexGuard<'_, Tables> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reserves a name for an id, or says who holds it.
    pub(crate) fn reserve(&self, name: &str, id: &str) -> Result<(), String> {
        let mut tables = self.tables();
        match tables.names.get(name) {
            Some(holder) if holder != id => Err(holder.clone()),
            _ => {
                tables.names.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        }
    }

    /// Gives a name back, if the id still holds it.
    pub(crate) fn release(&self, name: &str, id: &str) {
        let mut tables = self.tables();
        if tables.names.get(name).is_some_and(|holder| holder == id) {
            tables.names.remove(name);
        }
    }

    /// Who holds a name.
    pub(crate) fn holder(&self, name: &str) -> Option<String> {
        self.tables().names.get(name).cloned()
    }

    /// Hides what is about to be inserted, until it is delivered.
    pub(crate) fn hold_back(&self, id: &str) {
        self.tables().undelivered.insert(id.to_owned(), Undelivered::Since(Instant::now()));
    }

    /// Shows an object, because a client is being told of it.
    pub(crate) fn deliver(&self, id: &str) -> Delivery {
        let mut tables = self.tables();
        match tables.undelivered.get(id) {
            None => Delivery::Again,
            Some(Undelivered::Abandoned) => Delivery::TooLate,
            Some(Undelivered::Since(_)) => {
                tables.undelivered.remove(id);
                Delivery::First
            }
        }
    }

    pub(crate) fn is_delivered(&self, id: &str) -> bool {
        !self.tables().undelivered.contains_key(id)
    }

    /// Gives up on what nobody has asked for since `age` ago: from now on it cannot be delivered.
    pub(crate) fn abandon(&self, now: Instant, age: Duration) -> Vec<String> {
        let mut tables = self.tables();
        let mut abandoned = Vec::new();
        for (id, undelivered) in &mut tables.undelivered {
            if matches!(undelivered, Undelivered::Since(then) if now.saturating_duration_since(*then) >= age) {
                *undelivered = Undelivered::Abandoned;
            }
            if *undelivered == Undelivered::Abandoned {
                abandoned.push(id.clone());
            }
        }
        abandoned
    }

    pub(crate) fn insert_sandbox(&self, sandbox: Arc<Sandbox>) {
        self.tables().sandboxes.insert(sandbox.id.clone(), sandbox);
    }

    pub(crate) fn insert_container(&self, container: Arc<Container>) {
        self.tables().containers.insert(container.id.clone(), container);
    }

    /// Takes a sandbox out and gives its names back.
    pub(crate) fn remove_sandbox(&self, id: &SandboxId) {
        let mut tables = self.tables();
        tables.sandboxes.remove(id);
        tables.names.retain(|_, holder| holder != id.as_str());
        tables.undelivered.remove(id.as_str());
    }

    /// Takes a container out and gives its name back.
    pub(crate) fn remove_container(&self, id: &ContainerId) {
        let mut tables = self.tables();
        tables.containers.remove(id);
        tables.names.retain(|_, holder| holder != id.as_str());
        tables.undelivered.remove(id.as_str());
    }

    pub(crate) fn sandbox(&self, id: &SandboxId) -> Option<Arc<Sandbox>> {
        self.tables().sandboxes.get(id).cloned()
    }

    pub(crate) fn container(&self, id: &ContainerId) -> Option<Arc<Container>> {
        self.tables().containers.get(id).cloned()
    }

    /// The sandbox whose id is, or uniquely begins with, `prefix`.
    pub(crate) fn find_sandbox(&self, prefix: &str) -> Result<Arc<Sandbox>, LookupError> {
        let tables = self.tables();
        find("sandbox", prefix, tables.sandboxes.iter().map(|(id, sandbox)| (id.as_str(), sandbox)))
    }

    /// The container whose id is, or uniquely begins with, `prefix`.
    pub(crate) fn find_container(&self, prefix: &str) -> Result<Arc<Container>, LookupError> {
        let tables = self.tables();
        find("container", prefix, tables.containers.iter().map(|(id, container)| (id.as_str(), container)))
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        self.tables().sandboxes.values().cloned().collect()
    }

    pub(crate) fn containers(&self) -> Vec<Arc<Container>> {
        self.tables().containers.values().cloned().collect()
    }

    pub(crate) fn containers_of(&self, sandbox: &SandboxId) -> Vec<Arc<Container>> {
        self.tables().containers.values().filter(|container| container.sandbox == *sandbox).cloned().collect()
    }
}

fn find<'a, T: Clone + 'a>(
    kind: &'static str,
    prefix: &str,
    all: impl Iterator<Item = (&'a str, &'a T)>,
) -> Result<T, LookupError> {
    if prefix.is_empty() {
        return Err(LookupError::Empty { kind });
    }
    let mut found = all.filter(|(id, _)| id.starts_with(prefix));
    match (found.next(), found.next()) {
        (Some((_, object)), None) => Ok(object.clone()),
        (Some(_), Some(_)) => Err(LookupError::Ambiguous { kind, id: prefix.to_owned() }),
        (None, _) => Err(LookupError::Absent { kind, id: prefix.to_owned() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unique_prefix_is_enough_and_an_ambiguous_one_is_not() {
        let all = [("abc1", 1), ("abd2", 2)];
        let find = |prefix| find("thing", prefix, all.iter().map(|(id, value)| (*id, value)));
        assert_eq!(find("abc1"), Ok(1));
        assert_eq!(find("abd"), Ok(2));
        assert!(matches!(find("ab"), Err(LookupError::Ambiguous { .. })));
        assert!(matches!(find("x"), Err(LookupError::Absent { .. })));
        assert!(matches!(find(""), Err(LookupError::Empty { .. })));
    }

    #[test]
    fn what_nobody_asks_for_is_given_up_in_the_end() {
        let objects = Objects::default();
        let minute = Duration::from_secs(60);
        objects.hold_back("a");
        objects.hold_back("b");
        let now = Instant::now();
        assert_eq!(objects.abandon(now, minute), Vec::<String>::new());
        assert_eq!(
            (objects.deliver("a"), objects.deliver("a"), objects.deliver("x")),
            (Delivery::First, Delivery::Again, Delivery::Again)
        );
        assert!(objects.is_delivered("a") && !objects.is_delivered("b"));
        assert_eq!(objects.abandon(now + minute, minute), ["b"]);
        assert_eq!(objects.deliver("b"), Delivery::TooLate);
        assert_eq!(objects.abandon(now, minute), ["b"], "a removal that failed is tried again");
    }

    #[test]
    fn a_name_has_one_holder_until_it_is_released() {
        let objects = Objects::default();
        assert_eq!(objects.reserve("n", "a"), Ok(()));
        assert_eq!(objects.reserve("n", "a"), Ok(()));
        assert_eq!(objects.reserve("n", "b"), Err("a".to_owned()));
        objects.release("n", "b");
        assert_eq!(objects.holder("n"), Some("a".to_owned()));
        objects.release("n", "a");
        assert_eq!(objects.reserve("n", "b"), Ok(()));
    }
}
