//! What a reload would do, fleet by fleet.

use serde::{Deserialize, Serialize};

use crate::{
    config::{
        shown::shown,
        spec::{Config, FleetSpec},
    },
    id::FleetName,
};

/// How a fleet changes; ordered from harmless to drastic.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Class {
    /// Takes effect without touching a worker.
    Live,
    /// A job's next run is another one; the one that is under way goes on as it is.
    NextRun,
    /// Workers come or go; those that stay are untouched.
    Scale,
    /// Every worker is replaced, one batch after the other.
    Rolling,
    /// A socket is bound anew; every worker is replaced.
    Replace,
    /// New.
    Add,
    /// Drained and gone.
    Remove,
}

/// One fleet's change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// Which fleet.
    pub fleet: FleetName,
    /// The strongest class among its differences.
    pub class: Class,
    /// What differs: key and both values, for people.
    pub differences: Vec<Difference>,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// As it is typed: `env.RUST_LOG`.
    pub key: String,
    /// Before; none if it was not there.
    pub before: Option<String>,
    /// After.
    pub after: Option<String>,
}

/// All changes from `before` to `after`; unchanged fleets are not in it.
pub fn diff(before: &Config, after: &Config) -> Vec<Change> {
    let mut names: Vec<&FleetName> = before.fleets.keys().chain(after.fleets.keys()).collect();
    names.sort();
    names.dedup();
    let changes = names.into_iter().filter_map(|name| {
        match (before.fleets.get(name), after.fleets.get(name)) {
            (Some(old), Some(new)) => class(old, new).map(|class| Change {
                fleet: name.clone(),
                class,
                differences: differences(old, new),
            }),
            (Some(_), None) => Some(Change {
                fleet: name.clone(),
                class: Class::Remove,
                differences: Vec::new(),
            }),
            (None, Some(_)) => Some(Change {
                fleet: name.clone(),
                class: Class::Add,
                differences: Vec::new(),
            }),
            (None, None) => None,
        }
    });
    changes.collect()
}

/// The class of a change from `old` to `new`; none if they are the same.
pub fn class(old: &FleetSpec, new: &FleetSpec) -> Option<Class> {
    if old == new {
        return None;
    }
    match (&old.cron, &new.cron) {
        (Some(_), Some(_)) if old.revision != new.revision => return Some(Class::NextRun),
        (Some(_), Some(_)) => return Some(Class::Live),
        (None, None) => {}
        (Some(_), None) | (None, Some(_)) => return Some(Class::Rolling),
    }
    let listens = |spec: &FleetSpec| -> Vec<String> {
        spec.sockets
            .iter()
            .map(|(name, s)| format!("{name}={}", s.listen))
            .collect()
    };
    if listens(old) != listens(new)
        || old
            .sockets
            .iter()
            .any(|(name, s)| new.sockets.get(name) != Some(s))
    {
        return Some(Class::Replace);
    }
    if old.revision != new.revision {
        return Some(Class::Rolling);
    }
    let bounds = |spec: &FleetSpec| (spec.workers, spec.most());
    Some(if bounds(old) == bounds(new) {
        Class::Live
    } else {
        Class::Scale
    })
}

fn differences(old: &FleetSpec, new: &FleetSpec) -> Vec<Difference> {
    let (mut old, mut new) = (shown(old), shown(new));
    let mut keys: Vec<String> = old.keys().chain(new.keys()).cloned().collect();
    keys.sort();
    keys.dedup();
    let all = keys.into_iter().map(|key| Difference {
        before: old.remove(&key),
        after: new.remove(&key),
        key,
    });
    all.filter(|one| one.before != one.after).collect()
}
