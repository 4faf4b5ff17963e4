//! Desired against live: which slots to start, which to stop. It changes desires; the slots move.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{Authority, FleetSpec, SingletonSpec},
    engine::{
        cron::{Clock, Cron},
        effect::{Effects, Ending, Subject, What},
        intent::{Hold, Intent},
        jitter::Jitter,
        places::Places,
        publish::Publication,
        restart::Bucket,
        rollout::Rollout,
        scale::Scaling,
        sheet::Marks,
        slot::{Desk, Slot, State},
        source::Inquiry,
        spawn::Facts,
    },
    id::{FleetName, Revision, SlotIndex, WorkerId},
    time::{Clocks, Moment, Span},
    wire::RowKey,
};

/// What a fleet remembers; its row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct FleetBody {
    /// Counts `restart` commands: slots behind it are replaced.
    pub(super) round: u64,
    pub(super) rollout: Option<Rollout>,
    unwell_since: Moment,
    unwell: u32,
    /// Of a job.
    pub(super) cron: Option<Box<Cron>>,
    /// Of a fleet that follows the load.
    pub(super) scale: Option<Box<Scaling>>,
    /// Of published files.
    pub(super) files: Vec<Marks>,
}

/// One fleet.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    pub(super) name: FleetName,
    pub(super) spec: FleetSpec,
    /// What it was before the last change, for a rollback.
    pub(super) previous: Option<FleetSpec>,
    pub(super) slots: BTreeMap<SlotIndex, Slot>,
    pub(super) body: FleetBody,
    /// Not configured any more: drains, then goes.
    pub(super) removed: bool,
    /// When it was last reconciled: what was ripe by then has been seen.
    pub(super) looked: Moment,
    pub(super) publication: Publication,
    /// What is asked of whoever says how long its queue is.
    pub(super) inquiry: Inquiry,
}

/// What all fleets share during one step.
pub(super) struct Room<'a> {
    pub(super) now: Moment,
    /// The same on both clocks.
    pub(super) clocks: Clocks,
    pub(super) clock: Clock,
    pub(super) facts: &'a Facts,
    pub(super) jitter: &'a mut Jitter,
    pub(super) out: &'a mut Effects,
    pub(super) intent: &'a Intent,
    pub(super) bucket: &'a mut Bucket,
    pub(super) restart_rate: u64,
    pub(super) restart_burst: u64,
    /// Rows that may have changed.
    pub(super) touched: &'a mut BTreeSet<RowKey>,
}

/// What the daemon as a whole wants of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stance {
    /// Keep it up.
    Keep,
    /// Keep it up, but its dependencies are not there: nothing that is vacant starts.
    Wait,
    /// Its turn to drain has not come; nothing vacant starts.
    Closing,
    /// Drain it.
    Drain,
    /// Kill it.
    Kill,
}

impl Fleet {
    pub(super) fn new(name: FleetName, spec: FleetSpec, now: Moment) -> Self {
        let mut fleet = Self {
            name,
            spec,
            previous: None,
            slots: BTreeMap::new(),
            body: FleetBody::default(),
            removed: false,
            looked: Moment(0),
            publication: Publication::default(),
            inquiry: Inquiry::default(),
        };
        fleet.fit_cron();
        fleet.fit_scale(now);
        fleet
    }

    /// The slots that it should fill, holds of single ones aside.
    pub(super) fn places(&self, intent: &Intent) -> Places {
        match &self.body.scale {
            Some(_) if self.removed || intent.holds_fleet(&self.name) => Places::First(0),
            Some(scaling) => Places::These(scaling.members.clone()),
            None => Places::First(self.size(intent)),
        }
    }

    /// How many it should have, holds of single slots aside.
    pub(super) fn size(&self, intent: &Intent) -> u32 {
        if self.removed || intent.holds_fleet(&self.name) {
            return 0;
        }
        if let Some(scaling) = &self.body.scale {
            return scaling.members.len() as u32;
        }
        // Whatever somebody once said of a fleet that had its name.
        if self.spec.cron.is_some() {
            return self.spec.workers;
        }
        let slots = self.spec.singleton.as_ref().map(|lock| lock.slots);
        intent
            .sizes
            .get(&self.name)
            .map_or(self.spec.workers, |size| size.workers)
            .min(slots.unwrap_or(u32::MAX))
    }

    /// How many it should have. A job should have what it has.
    pub(super) fn desired(&self, intent: &Intent) -> u32 {
        if self.spec.cron.is_some() {
            return self.ready();
        }
        let places = self.places(intent);
        let is_held = |slots: &BTreeMap<u32, Hold>| {
            let held = slots
                .keys()
                .filter(|index| places.contains(SlotIndex(**index)));
            held.count() as u32
        };
        places.len() - intent.slots.get(&self.name).map_or(0, is_held)
    }

    pub(super) fn ready(&self) -> u32 {
        self.slots.values().filter(|slot| slot.is_ready()).count() as u32
    }

    /// Slots that are through with their work and want no other.
    pub(super) fn done(&self) -> u32 {
        self.slots
            .values()
            .filter(|slot| slot.state == State::Done)
            .count() as u32
    }

    /// Slots that wait for their lock, or are about to, having lost it or given it away: another one may hold it for good.
    pub(super) fn standby(&self) -> u32 {
        let waits = |slot: &&Slot| {
            let will_wait = slot.ending.is_some_and(Ending::parts_with_lock);
            will_wait || slot.is_warm() || slot.waits_cold(&self.spec)
        };
        self.slots.values().filter(waits).count() as u32
    }

    pub(super) fn live(&self) -> usize {
        self.slots.values().filter(|slot| slot.is_live()).count()
    }

    /// Is nothing left of it, and does everybody know?
    pub(super) fn is_gone(&self, now: Moment) -> bool {
        let locked = self.slots.values().any(|slot| slot.says_farewell);
        let idle = self.live() == 0 && !locked && !self.inquiry.runs_program();
        idle && !self.is_writing(now) && !self.is_saying_farewell(now)
    }

    /// Works on one slot; everything that changes a slot goes through here.
    pub(super) fn with_slot<R>(
        &mut self,
        index: SlotIndex,
        room: &mut Room<'_>,
        work: impl FnOnce(&mut Slot, &mut Desk<'_>) -> R,
    ) -> Option<R> {
        let cap = self.spec.health.restarts_per_minute;
        let window_over = self.body.unwell_since.after(Span::secs(60)) <= room.now;
        let may_end_unwell = window_over || self.body.unwell < cap;
        let worker = WorkerId {
            fleet: self.name.clone(),
            slot: index,
        };
        room.touched.insert(RowKey::Slot(worker.clone()));
        let cron = self.body.cron.as_ref();
        let occasion = cron.and_then(|cron| cron.occasion());
        let slot = self.slots.get_mut(&index)?;
        let before = slot.ending;
        let mut desk = Desk {
            now: room.now,
            clocks: room.clocks,
            worker,
            spec: &self.spec,
            facts: room.facts,
            jitter: room.jitter,
            out: room.out,
            occasion,
            may_end_unwell,
        };
        let result = work(slot, &mut desk);
        slot.check_invariants();
        if slot.ending != before
            && matches!(slot.ending, Some(Ending::Unhealthy | Ending::Watchdog))
        {
            if window_over {
                self.body.unwell_since = room.now;
                self.body.unwell = 0;
            }
            self.body.unwell += 1;
        }
        Some(result)
    }

    /// The next moment at which something is due.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let slots = self.slots.values().filter_map(Slot::deadline).min();
        // A start that was due and could not be (too many are starting) waits for an event, not for time.
        let starts = self.slots.values().filter_map(Slot::start_at);
        let starts = starts.filter(|at| *at > self.looked).min();
        [
            slots,
            starts,
            self.rollout_deadline(),
            self.job_deadline(),
            self.publish_deadline(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// Does what is due in its slots.
    pub(super) fn tick(&mut self, room: &mut Room<'_>) {
        let due = |slot: &Slot| slot.deadline().is_some_and(|at| at <= room.now);
        let indexes: Vec<SlotIndex> = self
            .slots
            .iter()
            .filter(|(_, slot)| due(slot))
            .map(|(index, _)| *index)
            .collect();
        for index in indexes {
            self.with_slot(index, room, Slot::tick);
        }
    }

    /// Brings live nearer to desired.
    pub(super) fn reconcile(&mut self, stance: Stance, room: &mut Room<'_>) {
        self.looked = room.now;
        let places = self.places(room.intent);
        let there = match &places {
            Places::First(size) => self.slots.range(..SlotIndex(*size)).count(),
            Places::These(_) => 0,
        };
        if there < places.len() as usize {
            for index in places.iter() {
                self.slots.entry(index).or_default();
            }
        }
        self.stop_unwanted(&places, stance, room);
        if self.spec.cron.is_some() {
            self.tend_job(stance, room);
            self.tend_gates(stance, room);
            return;
        }
        self.end_with_lease(stance, room);
        self.tend_gates(stance, room);
        if stance == Stance::Keep {
            self.tend_standbys(&places, room);
        }
        if matches!(stance, Stance::Keep | Stance::Wait | Stance::Closing) {
            self.start_wanted(&places, stance, room);
        }
        if stance == Stance::Keep {
            self.roll(&places, room);
        }
    }

    /// Whoever has a lock by a lease that is to be another one, or none, ends at once, however many that are and whatever depends on them: the
    /// node has one lease, and nobody begins by it until all of them are gone.
    fn end_with_lease(&mut self, stance: Stance, room: &mut Room<'_>) {
        fn lease(spec: &SingletonSpec) -> Option<(&Authority, u64, Span)> {
            let lease = spec.lease.as_ref()?;
            Some((&lease.authority, lease.epoch, lease.ttl))
        }
        if !matches!(stance, Stance::Keep | Stance::Wait | Stance::Closing) {
            return;
        }
        let ours = self.spec.singleton.as_ref().and_then(lease);
        let ends = |slot: &Slot| {
            let its = slot.gate.sought().and_then(lease);
            slot.leads() && !slot.is_ending() && its.is_some() && its != ours
        };
        let all = self.slots.iter().filter(|(_, slot)| ends(slot));
        let all: Vec<SlotIndex> = all.map(|(index, _)| *index).collect();
        for index in all {
            self.with_slot(index, room, |slot, desk| slot.stop(Ending::Rollout, desk));
        }
    }

    fn stop_unwanted(&mut self, places: &Places, stance: Stance, room: &mut Room<'_>) {
        let surge = if self.is_rolling() {
            places.beyond(self.spec.rollout.max_surge)
        } else {
            Vec::new()
        };
        let is_held = |index: &SlotIndex| room.intent.holds(&self.name, *index);
        // Whoever depends on it ends first.
        let waits = stance == Stance::Closing && room.intent.node.is_some();
        if waits && !self.removed && !room.intent.fleets.contains_key(&self.name) {
            return;
        }
        let unwanted = |index: &SlotIndex| match stance {
            Stance::Drain | Stance::Kill => Some(Ending::Shutdown),
            Stance::Keep | Stance::Wait | Stance::Closing if self.removed => Some(Ending::Removed),
            Stance::Keep | Stance::Wait | Stance::Closing if is_held(index) => Some(Ending::Held),
            Stance::Keep | Stance::Wait | Stance::Closing => {
                (!places.contains(*index) && !surge.contains(index)).then_some(Ending::ScaleIn)
            }
        };
        let kill = stance == Stance::Kill;
        let moves = |slot: &Slot| {
            slot.state != State::Vacant
                && (!slot.ending.is_some_and(Ending::on_purpose) || (kill && slot.is_live()))
        };
        let todo: Vec<(SlotIndex, Ending)> = self
            .slots
            .iter()
            .filter(|(_, slot)| moves(slot))
            .filter_map(|(index, _)| Some((*index, unwanted(index)?)))
            .collect();
        for (index, ending) in todo {
            self.with_slot(index, room, |slot, desk| {
                if kill && slot.is_live() {
                    slot.kill(ending, "the daemon kills everything", desk);
                } else {
                    slot.stop(ending, desk);
                }
            });
        }
    }

    fn start_wanted(&mut self, places: &Places, stance: Stance, room: &mut Room<'_>) {
        let parallel = match self.spec.start.parallel {
            0 => usize::MAX,
            limit => limit as usize,
        };
        let mut starting = self
            .slots
            .values()
            .filter(|slot| slot.is_starting())
            .count();
        let may_begin = stance == Stance::Keep;
        let now = room.now;
        let due = |slot: &Slot| {
            // Whoever is next under this lock begins when nothing of the last one is left.
            if slot.says_farewell {
                return false;
            }
            (may_begin && slot.state == State::Vacant)
                || slot.start_at().is_some_and(|at| at <= now)
        };
        let candidates: Vec<SlotIndex> = self
            .slots
            .iter()
            .filter(|(index, slot)| due(slot) && places.contains(**index))
            .map(|(index, _)| *index)
            .collect();
        for index in candidates {
            if starting >= parallel {
                return;
            }
            if room.intent.holds(&self.name, index) {
                continue;
            }
            let fresh = self
                .slots
                .get(&index)
                .is_some_and(|slot| slot.state == State::Vacant);
            if self.with_slot(index, room, Slot::passes) != Some(true) {
                continue;
            }
            if fresh || self.has_restart(index, room) {
                starting += 1;
                self.start_slot(index, room);
            }
        }
    }

    /// Starts a slot that has no process.
    pub(super) fn start_slot(&mut self, index: SlotIndex, room: &mut Room<'_>) {
        let round = self.body.round;
        self.slots.entry(index).or_default();
        self.with_slot(index, room, |slot, desk| slot.start(round, desk));
    }

    /// Takes a restart out of the node's bucket, or makes the slot wait for one.
    fn has_restart(&mut self, index: SlotIndex, room: &mut Room<'_>) -> bool {
        match room
            .bucket
            .take(room.restart_rate, room.restart_burst, room.now)
        {
            Ok(()) => true,
            Err(later) => {
                self.with_slot(index, room, |slot, _| slot.wait_for_bucket(later));
                false
            }
        }
    }

    /// Are both jobs, or both not?
    pub(super) fn is_kind_of(&self, spec: &FleetSpec) -> bool {
        self.spec.cron.is_some() == spec.cron.is_some()
    }

    /// It is not configured any more, or its name is another kind's: a worker is no run, and a run no worker. The heir begins when nothing
    /// of it is left.
    pub(super) fn remove(&mut self) {
        self.removed = true;
        self.body.rollout = None;
    }

    /// Takes over a new specification; slots follow by rollout or at once, as `config::diff` classes it.
    pub(super) fn respecify(&mut self, spec: FleetSpec, room: &mut Room<'_>) {
        if !self.is_kind_of(&spec) {
            self.remove();
            return;
        }
        if spec.cron.is_some() {
            return self.respecify_job(spec, room);
        }
        let rolling = spec.revision != self.spec.revision;
        if self.removed {
            self.publication.begin_anew();
            self.forget_size();
        }
        self.removed = false;
        let before = std::mem::replace(&mut self.spec, spec);
        self.fit_scale(room.now);
        self.measure_anew(&before, room);
        self.follow_source(&before, room);
        // A rollback goes to the last revision that was reached, and is about what workers are: how many there are, and who is told of them, stays as it was said.
        match &mut self.previous {
            Some(previous) if !rolling || self.body.rollout.is_some() => {
                previous.workers = self.spec.workers;
                previous.scale.clone_from(&self.spec.scale);
                previous.publish.clone_from(&self.spec.publish);
            }
            _ if rolling => self.previous = Some(before),
            _ => {}
        }
        let all: Vec<SlotIndex> = self.slots.keys().copied().collect();
        for index in all {
            self.with_slot(index, room, Slot::respecified);
        }
        if rolling {
            self.begin_rollout(room);
        }
    }

    /// Replaces every worker by another of the same kind. True if there was a revision to go back to, and is not any more: a restart that
    /// fails is not the fault of an edit.
    pub(super) fn restart(&mut self, room: &mut Room<'_>) -> bool {
        let dropped = !self.is_rolling() && self.previous.take().is_some();
        self.body.round += 1;
        self.begin_rollout(room);
        dropped
    }

    /// The revision its workers should have.
    pub(super) fn revision(&self) -> Revision {
        self.spec.revision
    }

    pub(super) fn record(&self, what: What, room: &mut Room<'_>) {
        room.out
            .record(room.now, Subject::Fleet(self.name.clone()), what);
    }
}
