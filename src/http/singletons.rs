//! Singletons and their locks as programs read them. Keys of the JSON are a public interface: they are only ever added.

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        effect::What,
        gate::Holder,
        status::{FleetStatus, GateStatus, LockStatus, Status, WorkerStatus},
    },
    http::{EventRow, view::Here},
    id::{SlotIndex, WorkerId},
    time::Span,
};

/// So many events are told of one singleton.
const EVENTS_MAX: usize = 20;

/// `GET /v1/singletons`: a fleet whose workers need a lock, or a job while its run has one or waits for one.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SingletonView {
    /// Its name.
    pub name: String,
    /// `singleton` or `cron`.
    pub kind: String,
    /// `node` or `cluster`.
    pub scope: String,
    /// The fleet's, as in `status`.
    pub state: String,
    /// The lock's name.
    pub lock: String,
    /// Its file, if the configuration names one.
    pub flock: Option<String>,
    /// So many may hold it at once.
    pub slots: u32,
    /// One for each slot of the fleet.
    pub gates: Vec<SlotView>,
}

/// `GET /v1/singletons/NAME`: the same, and what happened to it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ShownView {
    /// As in the list.
    #[serde(flatten)]
    pub singleton: SingletonView,
    /// What happened to its locks lately, under this supervisor; oldest first.
    pub events: Vec<EventRow>,
}

/// One slot's lock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SlotView {
    /// `billing/0`.
    pub id: String,
    /// Its number.
    pub slot: u32,
    /// `open` (ours), `waiting`, `releasing` (ours, to be given to whoever waits), `yielding` (given back, and left to whoever waits),
    /// `lost` (ours, and excludes nobody any more), `shut` (not asked for).
    pub state: String,
    /// In this state since, RFC 3339; releasing since it was had, yielding since it was given back.
    pub since: Option<String>,
    /// For so long, in ms.
    pub for_ms: Option<u64>,
    /// Who has it, if that is known.
    pub holder: Option<HolderView>,
    /// Names us as its holder.
    pub fence: Option<u64>,
    /// The lock's file, while it is ours.
    pub path: Option<String>,
    /// Until it must be renewed, in ms; a lock of this machine lasts.
    pub deadline_in_ms: Option<u64>,
    /// Why it is not had, or not asked for.
    pub why: Option<String>,
    /// Who wants it given to whoever waits, while that is under way.
    pub released_by: Option<String>,
}

/// Who has a lock, or had it last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HolderView {
    /// Is it this daemon?
    pub here: bool,
    /// Its node; none of these is known of somebody who is no leasehold.
    pub node: Option<String>,
    /// For which of its workers.
    pub worker: Option<String>,
    /// Its keeper's pid.
    pub keeper: Option<i32>,
    /// The pid of its worker's leader, or of whom the kernel names.
    pub pid: Option<i32>,
    /// Names it.
    pub fence: Option<u64>,
    /// Since when, RFC 3339.
    pub since: Option<String>,
}

/// What an event tells of a lock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct GateEvent {
    /// Names us as its holder.
    pub fence: Option<u64>,
    /// Of one that was given back: `released`, `stopped`, `scaled-in`, `removed`, `reconfigured`, `shutdown`, `dependencies`, `failed`,
    /// `done`, `no-run`, `lost`, `lapsed`, `not-wanted`.
    pub cause: Option<String>,
    /// Who wanted it so.
    pub by: Option<String>,
    /// Of one that was had: so long after it was asked for, in ms.
    pub waited_ms: Option<u64>,
    /// Of one of a cluster that was had: nobody had had it for so long, in ms, if that was seen.
    pub gap_ms: Option<u64>,
    /// Of a worker that ran on when its lease was over: for so long, in ms.
    pub outlived_ms: Option<u64>,
    /// Of one that was given back: it was ours for so long, in ms.
    pub held_ms: Option<u64>,
    /// Who has it, or of a lock that was had: who had it last.
    pub holder: Option<HolderView>,
}

/// Every fleet that needs a lock, or the one of that name.
pub fn singletons(status: &Status, name: Option<&str>, here: &Here<'_>) -> Vec<SingletonView> {
    let wanted = |fleet: &&FleetStatus| match name {
        Some(name) => fleet.name.as_str() == name,
        // Between its runs a job has nothing to do with its lock.
        None => fleet.cron.is_none() || fleet.lock.as_ref().is_some_and(is_used),
    };
    let fleets = status.fleets.iter().filter(wanted);
    fleets
        .filter_map(|fleet| Some(singleton(status, fleet, fleet.lock.as_ref()?, here)))
        .collect()
}

fn is_used(lock: &LockStatus) -> bool {
    lock.gates.iter().any(|(_, gate)| gate.state != "shut")
}

/// The one of that name, with the newest of what happened to its locks.
pub fn shown(status: &Status, name: &str, here: &Here<'_>) -> Option<ShownView> {
    let singleton = singletons(status, Some(name), here).pop()?;
    let is_its = |row: &EventRow| {
        let fleet = row.subject.split('/').next();
        row.gate.is_some() && fleet == Some(name)
    };
    let mut events = here.surface.events.after(0, usize::MAX);
    events.retain(is_its);
    events.drain(..events.len().saturating_sub(EVENTS_MAX));
    Some(ShownView { singleton, events })
}

fn singleton(
    status: &Status,
    fleet: &FleetStatus,
    lock: &LockStatus,
    here: &Here<'_>,
) -> SingletonView {
    let gates = lock.gates.iter().map(|(index, gate)| {
        let worker = fleet.workers.iter().find(|worker| worker.id.slot == *index);
        let id = WorkerId {
            fleet: fleet.name.clone(),
            slot: *index,
        };
        slot_view(&status.node, id, *index, gate, worker, here)
    });
    SingletonView {
        name: fleet.name.to_string(),
        kind: match fleet.cron {
            Some(_) => "cron",
            None => "singleton",
        }
        .to_owned(),
        scope: lock.scope.to_owned(),
        state: fleet.state.to_owned(),
        lock: lock.name.to_string(),
        flock: lock.flock.clone(),
        slots: lock.slots,
        gates: gates.collect(),
    }
}

fn slot_view(
    node: &str,
    id: WorkerId,
    index: SlotIndex,
    gate: &GateStatus,
    worker: Option<&WorkerStatus>,
    here: &Here<'_>,
) -> SlotView {
    let ours = gate.pass.as_ref().map(|pass| HolderView {
        here: true,
        node: Some(node.to_owned()),
        worker: Some(id.to_string()),
        keeper: Some(here.surface.keeper),
        pid: worker.and_then(|worker| worker.pid),
        fence: Some(pass.fence),
        since: gate.since.map(here.wall),
    });
    let theirs = || {
        gate.holder
            .as_ref()
            .map(|holder| other(holder, here.surface.keeper))
    };
    let cause = gate.cause.as_ref().map(ToString::to_string);
    SlotView {
        id: id.to_string(),
        slot: index.0,
        state: gate.state.to_owned(),
        since: gate.since.map(here.wall),
        for_ms: gate.since.map(|since| here.now.since(since).as_millis()),
        holder: ours.or_else(theirs),
        fence: gate.pass.as_ref().map(|pass| pass.fence),
        path: gate.pass.as_ref().map(|pass| pass.path.clone()),
        deadline_in_ms: gate.until.map(|at| here.now.until(at).as_millis()),
        why: gate.waits.clone().or(cause),
        released_by: gate.release.clone(),
    }
}

fn other(holder: &Holder, our_keeper: i32) -> HolderView {
    let record = holder.record.as_ref();
    HolderView {
        here: record.is_some() && holder.pid == our_keeper,
        node: record.map(|record| record.node.clone()),
        worker: record.map(|record| record.worker.to_string()),
        keeper: record.map(|_| holder.pid),
        pid: match record {
            Some(record) => record.leader,
            None => Some(holder.pid),
        },
        fence: record.map(|record| record.fence),
        since: record.map(|record| record.since.clone()),
    }
}

/// What an event tells of a lock; none if it is about something else.
pub fn gate_event(what: &What, our_keeper: i32) -> Option<GateEvent> {
    let view = |holder: &Option<Holder>| holder.as_ref().map(|holder| other(holder, our_keeper));
    let event = match what {
        What::GateOpened {
            fence,
            waited,
            from,
            gap,
        } => GateEvent {
            fence: Some(*fence),
            waited_ms: Some(waited.as_millis()),
            gap_ms: gap.map(Span::as_millis),
            holder: view(from),
            ..GateEvent::default()
        },
        What::GateWaits { holder, .. } => GateEvent {
            holder: view(holder),
            ..GateEvent::default()
        },
        What::GateReleased { fence, who } => GateEvent {
            fence: Some(*fence),
            by: Some(who.clone()),
            ..GateEvent::default()
        },
        What::GateShut { fence, held, cause } => GateEvent {
            fence: Some(*fence),
            cause: Some(cause.word().to_owned()),
            by: cause.who().map(str::to_owned),
            held_ms: Some(held.as_millis()),
            ..GateEvent::default()
        },
        What::Outlived { by } => GateEvent {
            outlived_ms: Some(by.as_millis()),
            ..GateEvent::default()
        },
        What::GateLost { .. } | What::LeaseLapsed | What::DeadlineCame { .. } => {
            GateEvent::default()
        }
        _ => return None,
    };
    Some(event)
}
