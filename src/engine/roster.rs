//! Who counts in a fleet that follows the load, for how much, and who goes first.

use std::{cmp::Reverse, collections::BTreeSet};

use crate::{
    config::spec::{ScaleSpec, Signal},
    engine::{
        effect::{Ending, What},
        fleet::{Fleet, Room},
        host::Host,
        intent::Intent,
        meter::{PEGGED, WHOLE},
        scale::{Decision, Inputs, Scaling, Verdict},
        slot::{Slot, State},
    },
    id::SlotIndex,
    time::{Moment, Span},
};

/// Between two attempts to restart one that is stuck.
const REPORT_SPACING: Span = Span::secs(60);

/// A fleet at one decision.
pub(super) struct Roster {
    pub(super) inputs: Inputs,
    /// Workers that seem to get nothing done: they are not counted.
    pub(super) suspects: BTreeSet<SlotIndex>,
    /// How much of the time its workers wait for a processor, in hundredths of a percent.
    pub(super) pressure: Option<u32>,
    /// Members that take a place, suspects among them.
    pub(super) members: u32,
    /// Members that take a place and are no suspects.
    pub(super) counted: u32,
    /// So many more there may be.
    pub(super) free: u32,
}

impl Roster {
    /// That it fits, until something else is found.
    pub(super) fn decision(&self, scaling: &Scaling, host: &Host, now: Moment) -> Decision {
        let inputs = &self.inputs;
        Decision {
            at: now,
            workers: inputs.n,
            utilization: inputs.utilization(),
            busy: inputs.said(),
            pressure: self.pressure,
            measured: inputs.have,
            missing: inputs.miss,
            starting: inputs.starting,
            draining: inputs.draining,
            stuck: self.suspects.len() as u32,
            waiting: scaling.queue.read.map(|_| scaling.queue.waiting),
            queue: inputs.queue,
            signal: None,
            idle: host.idle(now),
            recommended: inputs.n,
            up: inputs.n,
            down: inputs.n,
            penalty: scaling.penalty,
            verdict: Verdict::Fits,
        }
    }
}

impl Fleet {
    /// Looks at everybody.
    pub(super) fn roster(&self, scaling: &Scaling, spec: &ScaleSpec, room: &Room<'_>) -> Roster {
        let suspects = self.suspects(scaling, spec, room.now);
        let members = self.occupied(scaling, room.intent);
        let counted = members.saturating_sub(suspects.len() as u32);
        Roster {
            inputs: self.survey(scaling, spec, &suspects, room),
            pressure: self.pressure(scaling),
            members,
            counted,
            free: spec
                .max
                .saturating_sub(counted)
                .min(spec.places().saturating_sub(members)),
            suspects,
        }
    }

    /// How much of the time its workers wait for a processor: the mean of those of whom it is known.
    fn pressure(&self, scaling: &Scaling) -> Option<u32> {
        let members = scaling.members.iter();
        let known = members.filter_map(|index| self.slots.get(index)?.meter.pressure);
        let (count, sum) = known.fold((0, 0), |(n, sum), one| (n + 1, sum + u64::from(one)));
        (count > 0).then(|| (sum / count) as u32)
    }

    /// A slot of a worker that takes work, or will.
    fn counts_as_worker(&self, index: SlotIndex, slot: &Slot, intent: &Intent) -> bool {
        let gone = matches!(slot.state, State::Failed { .. } | State::Done);
        !gone && !intent.holds(&self.name, index)
    }

    /// So many members take a place of `max`: not those who are through for good, nor those whom an operator keeps away.
    pub(super) fn occupied(&self, scaling: &Scaling, intent: &Intent) -> u32 {
        let takes = |index: &&SlotIndex| match self.slots.get(index) {
            Some(slot) if slot.is_live() => true,
            Some(slot) => !slot.is_through() && !intent.holds(&self.name, **index),
            None => !intent.holds(&self.name, **index),
        };
        scaling.members.iter().filter(takes).count() as u32
    }

    /// Who is through for good leaves its place to others, as far as the fleet may be smaller: nobody is started in the place of one that
    /// has done what it should, or cannot do it.
    pub(super) fn leave_places(&self, scaling: &mut Scaling, least: u32) {
        let through: Vec<SlotIndex> = scaling
            .members
            .iter()
            .filter(|index| self.slots.get(index).is_some_and(Slot::is_through))
            .copied()
            .collect();
        for index in through {
            if scaling.members.len() as u32 <= least {
                return;
            }
            scaling.members.remove(&index);
        }
    }

    /// Workers that are pegged while the others are not, or that say themselves that they get nothing done.
    pub(super) fn suspects(
        &self,
        scaling: &Scaling,
        spec: &ScaleSpec,
        now: Moment,
    ) -> BTreeSet<SlotIndex> {
        let known = |slot: &&Slot| slot.is_ready() && slot.meter.is_known(now);
        let members = || {
            scaling
                .members
                .iter()
                .filter_map(|index| Some((index, self.slots.get(index)?)))
        };
        // One that came a moment ago rests because nobody has given it anything yet.
        let warm = |slot: &&Slot| match slot.state {
            State::Running { ready, since } => ready && since.after(spec.warmup) <= now,
            _ => false,
        };
        let mut shares: Vec<u64> = members()
            .map(|(_, slot)| slot)
            .filter(known)
            .filter(warm)
            .map(|slot| slot.meter.share)
            .collect();
        shares.sort_unstable();
        // Without the one that is looked at, which is among the busiest.
        shares.pop();
        let others_rest = shares
            .get(shares.len() / 2)
            .is_some_and(|median| *median < WHOLE / 2);
        let suspect = |slot: &Slot| {
            slot.meter.is_pegged_for(spec.stuck_after, now)
                && (others_rest || slot.meter.stands_still_for(spec.stuck_after, now))
        };
        let all: BTreeSet<SlotIndex> = members()
            .filter(|(_, slot)| known(slot) && suspect(slot))
            .map(|(index, _)| *index)
            .collect();
        // If all are, they are what they are meant to be: jobs that take long, each of them.
        let others = members().any(|(index, slot)| slot.is_ready() && !all.contains(index));
        if others || all.len() == 1 {
            all
        } else {
            BTreeSet::new()
        }
    }

    pub(super) fn report_suspects(
        &mut self,
        suspects: &BTreeSet<SlotIndex>,
        spec: &ScaleSpec,
        room: &mut Room<'_>,
    ) {
        let restart = spec.restart_stuck;
        for index in suspects {
            let reported = self.slots.get(index).and_then(|slot| slot.meter.reported);
            // A restart that was withheld is asked for again.
            let again = reported.is_some_and(|at| restart && at.after(REPORT_SPACING) <= room.now);
            if reported.is_some() && !again {
                continue;
            }
            self.with_slot(*index, room, |slot, desk| {
                slot.meter.reported = Some(desk.now);
                desk.record(slot.generation, What::Stuck { restart });
                if restart {
                    slot.end_unwell(Ending::Unhealthy, desk);
                }
            });
        }
    }

    pub(super) fn survey(
        &self,
        scaling: &Scaling,
        spec: &ScaleSpec,
        suspects: &BTreeSet<SlotIndex>,
        room: &Room<'_>,
    ) -> Inputs {
        let now = room.now;
        let mut inputs = Inputs {
            queue: self.queue_length(spec, now),
            ..Inputs::default()
        };
        let (mut saying, mut said) = (0, 0);
        for index in scaling
            .members
            .iter()
            .filter(|index| !suspects.contains(index))
        {
            let Some(slot) = self.slots.get(index) else {
                inputs.n += 1;
                inputs.starting += 1;
                continue;
            };
            if !self.counts_as_worker(*index, slot, room.intent) {
                continue;
            }
            inputs.n += 1;
            if slot.ending.is_some() {
                // It makes room for another one in its place, and nobody waits for that.
                continue;
            }
            match slot.state {
                State::Running { ready: true, since } if slot.ending.is_none() => {
                    let meter = &slot.meter;
                    let is_known = meter.is_known(now);
                    // One that is new and saturated is evidence at once.
                    if since.after(spec.warmup) > now && !(is_known && meter.share >= PEGGED) {
                        inputs.cold += 1;
                        continue;
                    }
                    if let Some(busy) = meter.busy {
                        saying += 1;
                        said += u64::from(busy);
                    }
                    if is_known {
                        inputs.have += 1;
                        inputs.load += meter.share;
                    } else {
                        inputs.miss += 1;
                    }
                }
                State::Running { .. } if slot.ending.is_none() => {}
                _ => inputs.starting += 1,
            }
        }
        inputs.busy = (saying > 0).then_some((saying, said));
        let leaving = |(index, slot): &(&SlotIndex, &Slot)| {
            slot.is_live() && !scaling.members.contains(index)
        };
        inputs.draining = self.slots.iter().filter(leaving).count() as u32;
        inputs
    }

    /// Thousandths of what the fleet works off; none: nobody says.
    fn queue_length(&self, spec: &ScaleSpec, now: Moment) -> Option<u64> {
        if !spec.uses(Signal::Queue) {
            return None;
        }
        if let Some(source) = &spec.source {
            return self.inquiry.believed(source, now);
        }
        let reports = self.slots.values().filter(|slot| slot.is_ready());
        let reports: Vec<u32> = reports.filter_map(|slot| slot.meter.queue).collect();
        let sum: u64 = reports.iter().map(|queue| u64::from(*queue) * 1_000).sum();
        (!reports.is_empty()).then_some(sum)
    }

    /// Those that can best be done without: outdated, not well, least busy, newest.
    pub(super) fn victims(
        &self,
        scaling: &Scaling,
        by: u32,
        suspects: &BTreeSet<SlotIndex>,
        (intent, now): (&Intent, Moment),
    ) -> Vec<SlotIndex> {
        let unused = Slot::default();
        let mut all: Vec<_> = scaling
            .members
            .iter()
            .map(|index| {
                let slot = self.slots.get(index).unwrap_or(&unused);
                let current = slot.revision == self.revision() && slot.round >= self.body.round;
                let there = self.counts_as_worker(*index, slot, intent);
                let born = slot
                    .process
                    .map_or(Moment(u64::MAX), |process| process.since);
                let newest = Reverse((born, *index));
                // Of whom nothing is known may be the busiest.
                let known = slot.meter.is_known(now);
                let share = if known { slot.meter.share } else { WHOLE };
                let well = slot.is_ready() && !suspects.contains(index);
                // Who is not there at all makes no room by leaving.
                (!there, current, well, share, newest, *index)
            })
            .collect();
        all.sort();
        all.into_iter()
            .take(by as usize)
            .map(|(.., index)| index)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::FleetSpec,
        id::Revision,
        wire::{Alive, Containment, StopRecord},
    };

    const SECOND: u64 = 1_000_000_000;

    /// A worker that has been there since then, and uses such a share of what it can.
    fn worker(revision: Revision, since: u64, ready: bool, percent: u64) -> Slot {
        let mut slot = Slot {
            state: State::Running {
                ready,
                since: Moment(since * SECOND),
            },
            revision,
            process: Some(Alive {
                pid: 1,
                start_ticks: 1,
                since: Moment(since * SECOND),
                containment: Containment::Group,
            }),
            ..Slot::default()
        };
        for at in 0..=60 {
            let used = at * SECOND / 100 * percent;
            slot.meter
                .read(Moment((100 + at) * SECOND), used, true, 1_000);
        }
        slot
    }

    #[test]
    fn who_can_best_be_done_without_goes_first() {
        let mut spec = FleetSpec::unknown(&StopRecord::default());
        spec.scale = Some(ScaleSpec::between(1, 8));
        let mut fleet = Fleet::new("web".parse().unwrap(), spec, Moment(0));
        let current = fleet.revision();
        let old = Revision(current.0 + 1);
        let slots = [
            worker(current, 10, true, 90),
            worker(current, 20, true, 30),
            worker(old, 30, true, 99),
            worker(current, 40, true, 10),
            worker(current, 50, true, 10),
            worker(current, 60, false, 90),
            worker(current, 70, true, 95),
        ];
        let indices = (0..).map(SlotIndex);
        fleet.slots = indices.clone().zip(slots).collect();
        let members = indices.take(8).collect();
        let scaling = Scaling::new(members, Moment(0));
        let suspects = BTreeSet::from([SlotIndex(6)]);
        let mut intent = Intent::default();
        let order = |fleet: &Fleet, intent: &Intent| -> Vec<u32> {
            let now = Moment(160 * SECOND);
            let all = fleet.victims(&scaling, 8, &suspects, (intent, now));
            all.into_iter().map(|index| index.0).collect()
        };
        // Outdated; not well, or not begun; least busy, the newest of them.
        assert_eq!(order(&fleet, &intent), [2, 5, 6, 7, 4, 3, 1, 0]);
        fleet.slots.get_mut(&SlotIndex(3)).unwrap().state = State::Done;
        let name = fleet.name.clone();
        let held = [(1, crate::engine::intent::Hold::default())];
        intent.slots.insert(name, held.into());
        // Who is through, or held, makes no room.
        assert_eq!(order(&fleet, &intent), [2, 5, 6, 7, 4, 0, 3, 1]);
    }
}
