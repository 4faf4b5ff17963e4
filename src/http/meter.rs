//! What workers use, for the status and for `/metrics`. It is read on a thread of its own: of a thousand workers that takes milliseconds,
//! in which neither the engine nor a health check waits.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Mutex as Turn, OwnedMutexGuard},
    task::{JoinHandle, spawn_blocking},
    time::timeout,
};

use crate::{
    engine::status::{Status, WorkerStatus},
    http::view::Used,
    id::{Generation, WorkerId},
    sys::{
        cgroup::leaf_name,
        clock,
        usage::{self, Place, Usage},
    },
    time::{Moment, Span},
    wire::{Containment, RowKey},
};

/// The status shows what was read this long ago at most, and has it read anew if that was longer ago than the second.
const STALE: Span = Span::secs(10);
const FRESH: Span = Span::secs(1);
/// The status waits so long for a reading, which is enough for a hundred workers. Whoever has a thousand sees what was read before.
const PATIENCE: Duration = Duration::from_millis(2);
/// The shortest time of which a share is told.
const SHARE_OF: Span = Span::millis(500);

/// What one generation of a worker uses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Reading {
    generation: Generation,
    at: Moment,
    pub(super) usage: Usage,
    /// When its clock showed what, at the beginning of the time that the share is of.
    from: (Moment, u64),
    /// Of one core, in percent; at first, since it began.
    percent: Option<f64>,
}

/// Everything that was read at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Readings {
    at: Moment,
    pub(super) workers: Arc<BTreeMap<WorkerId, Reading>>,
}

impl Readings {
    /// What is known of this generation, and still true.
    pub(super) fn shown(&self, worker: &WorkerStatus, now: Moment) -> Used {
        let reading = self.workers.get(&worker.id).filter(|reading| {
            reading.generation == worker.generation && now.since(reading.at) < STALE
        });
        reading.map_or(Used::default(), |one| Used {
            cpu: one.percent,
            memory: one.usage.memory,
        })
    }
}

/// Reads what workers use.
pub(super) struct Meter {
    cgroup: Option<PathBuf>,
    /// One reads at a time.
    turn: Arc<Turn<()>>,
    last: Arc<Mutex<Readings>>,
}

/// A living worker, and where its processes are.
struct Placed {
    id: WorkerId,
    generation: Generation,
    since: Option<Moment>,
    place: Place,
}

impl Meter {
    pub(super) fn new(cgroup: Option<PathBuf>) -> Self {
        Self {
            cgroup,
            turn: Arc::default(),
            last: Arc::default(),
        }
    }

    /// Read now.
    pub(super) async fn now(&self, status: &Status) -> Readings {
        let turn = Arc::clone(&self.turn).lock_owned().await;
        let reading = self.read(turn, status).await;
        reading.expect("a reading does not panic and is not called off")
    }

    /// Read lately.
    pub(super) async fn lately(&self, status: &Status) -> Readings {
        let last = self.last();
        if clock::now().since(last.at) < FRESH {
            return last;
        }
        let Ok(turn) = Arc::clone(&self.turn).try_lock_owned() else {
            return last;
        };
        match timeout(PATIENCE, self.read(turn, status)).await {
            Ok(Ok(reading)) => reading,
            Ok(Err(_)) | Err(_) => last,
        }
    }

    fn last(&self) -> Readings {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.clone()
    }

    /// Goes on to its end, whoever waits for it.
    fn read(&self, turn: OwnedMutexGuard<()>, status: &Status) -> JoinHandle<Readings> {
        let (before, last) = (self.last(), Arc::clone(&self.last));
        let all = status.fleets.iter().flat_map(|fleet| &fleet.workers);
        let placed: Vec<Placed> = all.filter_map(|worker| self.placed(worker)).collect();
        spawn_blocking(move || {
            let read = measure(placed, &before);
            *last.lock().unwrap_or_else(PoisonError::into_inner) = read.clone();
            drop(turn);
            read
        })
    }

    fn placed(&self, worker: &WorkerStatus) -> Option<Placed> {
        let place = match (worker.containment?, &self.cgroup) {
            (
                Containment::Unit | Containment::Cgroup | Containment::Namespace { .. },
                Some(base),
            ) => {
                let key = RowKey::Slot(worker.id.clone());
                Place::Leaf(base.join(leaf_name(&key, worker.generation)))
            }
            (_, None) | (Containment::Group, Some(_)) => Place::Group(worker.pid?),
        };
        Some(Placed {
            id: worker.id.clone(),
            generation: worker.generation,
            since: worker.since,
            place,
        })
    }
}

fn measure(placed: Vec<Placed>, before: &Readings) -> Readings {
    let at = clock::now();
    let places: Vec<Place> = placed.iter().map(|one| one.place.clone()).collect();
    let read = usage::of_all(&places);
    let workers = placed.into_iter().zip(read).map(|(one, mut usage)| {
        let known = before.workers.get(&one.id);
        let known = known.filter(|known| known.generation == one.generation);
        // Where a process group is all there is, some time goes with members whose parent did not wait for them: a counter never falls.
        let shown = known.and_then(|known| known.usage.cpu);
        usage.cpu = usage
            .cpu
            .map(|cpu| shown.map_or(cpu, |shown| shown.max(cpu)));
        let born = (one.since.unwrap_or(at), 0);
        let mut reading = Reading {
            generation: one.generation,
            at,
            usage,
            from: known.map_or(born, |known| known.from),
            percent: known.and_then(|known| known.percent),
        };
        let span = at.since(reading.from.0);
        if let Some(cpu) = usage.cpu.filter(|_| span >= SHARE_OF) {
            let used = cpu.saturating_sub(reading.from.1);
            let permille = used as f64 / span.as_nanos() as f64 * 1_000.0;
            reading.percent = Some(permille.round() / 10.0);
            reading.from = (at, cpu);
        }
        (one.id, reading)
    });
    Readings {
        at,
        workers: Arc::new(workers.collect()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Ourselves, as a worker of this generation.
    fn me(generation: u64, since: Moment) -> Vec<Placed> {
        vec![Placed {
            id: WorkerId::new("web".parse().unwrap(), 0),
            generation: Generation(generation),
            since: Some(since),
            place: Place::Group(rustix::process::getpgrp().as_raw_nonzero().get()),
        }]
    }

    #[test]
    fn a_clock_never_falls_and_a_share_is_of_the_time_since_the_last_one() {
        let id = WorkerId::new("web".parse().unwrap(), 0);
        let began = Moment(clock::now().0 - 10_000_000_000);
        let first = measure(me(1, began), &Readings::default());
        assert!(first.workers[&id].percent.is_some(), "{first:?}");
        let mut ahead = first.workers[&id];
        ahead.usage.cpu = Some(u64::MAX / 2);
        ahead.percent = Some(12.5);
        let last = Readings {
            at: first.at,
            workers: Arc::new(BTreeMap::from([(id.clone(), ahead)])),
        };
        let next = measure(me(1, began), &last);
        assert_eq!(next.workers[&id].usage.cpu, Some(u64::MAX / 2));
        assert_eq!(
            next.workers[&id].percent,
            Some(12.5),
            "too soon for another"
        );
        let other = measure(me(2, began), &last);
        assert!(other.workers[&id].usage.cpu < Some(u64::MAX / 2));
    }
}
