//! What must hold, looked at from outside: processes on the machine, not fields of the engine.

use leasehold::{
    engine::{
        Status,
        effect::Ending,
        status::{FleetStatus, WorkerStatus},
    },
    time::{Moment, Span},
    wire::RowKey,
};

use crate::{fleets, host::Host};

/// A drain may last its cap (30 s), and as long as there was no supervisor to end it, and a hang in the kernel.
const DRAIN_MAX: Span = Span::secs(30 + 45);

/// Nothing outlives its drain.
pub(crate) fn no_drain_is_endless(host: &Host, now: Moment) {
    for (pid, proc) in &host.procs {
        if let Some(term) = proc.term_at {
            assert!(
                term.after(DRAIN_MAX) > now,
                "{} (pid {pid}) lives {:?} after its stop signal",
                proc.key,
                now.since(term)
            );
        }
    }
}

/// Before SIGTERM reaches a worker it is ready nowhere.
pub(crate) fn not_ready_before_term(host: &mut Host, status: Option<&Status>) {
    for (key, generation) in std::mem::take(&mut host.terms) {
        let (RowKey::Slot(worker), Some(status)) = (&key, status) else {
            continue;
        };
        let seen = status
            .fleets
            .iter()
            .flat_map(|fleet| &fleet.workers)
            .find(|w| w.id == *worker);
        let ready = seen.is_some_and(|w| w.generation == generation && w.ready);
        assert!(!ready, "{worker} got SIGTERM while it was ready");
    }
}

/// With nobody failing any more, live equals desired.
pub(crate) fn settled(host: &Host, status: &Status, held: &[String]) {
    for fleet in &status.fleets {
        let living = host
            .by_key
            .keys()
            .filter(|key| matches!(key, RowKey::Slot(worker) if worker.fleet == fleet.name))
            .count();
        if held.contains(&fleet.name.to_string()) {
            assert_eq!(
                living, 0,
                "{} is held and has {living} processes",
                fleet.name
            );
            continue;
        }
        // Whether a run is under way is the calendar's to say.
        if fleet.cron.is_some() {
            continue;
        }
        // What waits for somebody who is not wanted waits, and its rollout with it.
        let db_wanted = status
            .fleets
            .iter()
            .any(|fleet| fleet.name == fleets::name("db") && fleet.desired > 0);
        if fleet.name == fleets::name("web") && !db_wanted {
            continue;
        }
        assert!(
            matches!(fleet.state, "ok" | "done"),
            "{} is {}: {fleet:?}",
            fleet.name,
            fleet.state
        );
        if fleet.name != fleets::name("once") {
            // One that follows the load may be on its way down still, for as long as a worker may ask for.
            let leaves = |worker: &&WorkerStatus| {
                fleet.scale.is_some() && worker.ending == Some(Ending::ScaleIn)
            };
            let leaving = fleet.workers.iter().filter(leaves).count();
            assert_eq!(
                (living - leaving) as u32,
                fleet.desired,
                "{} wants {} and has {living}: {fleet:?}",
                fleet.name,
                fleet.desired
            );
        }
    }
}

/// What a supervisor that is rebuilt from its rows must agree on with the one that died.
pub(crate) fn same_picture(old: &Status, new: &Status) {
    let normal = |status: &Status| -> Vec<FleetStatus> {
        let mut fleets = status.fleets.clone();
        // What failed to say that it is gone is not waited for, and that it failed is not known to a successor.
        fleets.retain(|fleet| {
            fleet.publish.is_none() || fleet.state != "draining" || !fleet.workers.is_empty()
        });
        for worker in fleets.iter_mut().flat_map(|fleet| &mut fleet.workers) {
            // Drawn anew from jitter when an exit is decided upon, and STATUS= text is not kept.
            worker.next_start = None;
            worker.said = String::new();
        }
        for scale in fleets.iter_mut().filter_map(|fleet| fleet.scale.as_mut()) {
            // Measured anew, and decisions are for people.
            scale.utilization = None;
            scale.recommended = None;
            scale.blocked = None;
            scale.blocks.clear();
            (scale.host, scale.pressure) = (None, None);
            scale.source = None;
            scale.decisions.clear();
        }
        for publish in fleets.iter_mut().filter_map(|fleet| fleet.publish.as_mut()) {
            // Lists are counted anew, and files made anew.
            publish.serial = 0;
            publish.targets.clear();
        }
        let locks = fleets.iter_mut().filter_map(|fleet| fleet.lock.as_mut());
        for (_, gate) in locks.flat_map(|lock| &mut lock.gates) {
            // Why a lock is not to be had is heard anew.
            gate.waits = None;
            gate.holder = None;
            // A later deadline may be on its way.
            gate.until = None;
        }
        fleets
    };
    let (a, b) = (normal(old), normal(new));
    for (old, new) in a.iter().zip(&b) {
        assert_eq!(old, new, "a rebuilt supervisor sees {} otherwise", old.name);
    }
    assert_eq!(a.len(), b.len());
    assert_eq!(old.stopping, new.stopping);
}
