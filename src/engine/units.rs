//! Fleets that follow the load on several nodes, with a maximum over all of them: who wants to grow needs a unit for each worker.
//!
//! ```text
//!   it would grow by n ──▶ by as many as it has units for ──▶ the rest is asked for ──▶ they come: it grows at once
//!                                                              └── none is free ──▶ blocked (cluster_max)
//!                                                              └── etcd is silent ──▶ blocked (etcd)
//! ```
//!
//! It bounds growth, and nothing else: `min`, who is woken by a knock, and what a rollout has beside the others start without a unit, which is
//! had when one is free; and nobody is ever ended because a unit is somebody else's now. What is known of etcd is `cluster::capacity`'s.

use std::collections::BTreeMap;

use crate::{
    config::spec::ScaleSpec,
    engine::{
        autoscale::{DECIDE_EVERY, SAMPLE_EVERY},
        cluster::capacity::{Demand, Share},
        effect::Effects,
        fleet::{Fleet, Room, Stance},
        scale::{Block, Hold, Reason, Scaling, Verdict},
        slot::Slot,
        supervisor::Supervisor,
    },
    id::{FleetName, SlotIndex},
    time::{Moment, Span},
};

/// Until the next decision, which may wait for its sample.
const WISH_LASTS: Span = DECIDE_EVERY.plus(SAMPLE_EVERY);

/// What a fleet has of the units of its cluster. A new supervisor finds it out anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Units {
    pub(super) share: Share,
    wish: Option<Wish>,
}

/// Workers that it would have now, had it units for them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Wish {
    more: u32,
    reason: Reason,
    /// The next decision says it again.
    until: Moment,
}

impl Units {
    /// It has what it asked for, or does not want it any more.
    pub(super) fn settle(&mut self) {
        self.wish = None;
    }

    /// An operator's floor is reached, or taken back.
    pub(super) fn settle_floor(&mut self) {
        self.wish = self.wish.filter(|wish| wish.reason != Reason::Manual);
    }

    fn wish(&self, now: Moment) -> Option<Wish> {
        self.wish.filter(|wish| wish.until > now)
    }

    /// Why it does not have more.
    fn shortage(&self, max: u32) -> Verdict {
        match self.share.taken {
            _ if !self.share.is_known => Verdict::Blocked(Block::Etcd),
            Some(taken) if taken >= max => Verdict::Blocked(Block::ClusterMax),
            _ => Verdict::Holds(Hold::Claiming),
        }
    }
}

impl Supervisor {
    /// What the fleets that have a maximum over all nodes want.
    pub(super) fn demands(&self, now: Moment) -> BTreeMap<FleetName, Demand> {
        let of = |fleet: &Fleet| {
            let max = fleet.spec.scale.as_ref()?.cluster_max?;
            let scaling = fleet.body.scale.as_ref()?;
            let stance = self.stance(&fleet.name);
            let stays = matches!(stance, Stance::Keep | Stance::Wait) && !fleet.removed;
            let wanted = if stays && !self.intent.holds_fleet(&fleet.name) {
                let wish = scaling.units.wish(now).map_or(0, |wish| wish.more);
                fleet.units_needed(scaling) + wish
            } else {
                fleet.live() as u32
            };
            Some((fleet.name.clone(), Demand { wanted, max }))
        };
        self.fleets.values().filter_map(of).collect()
    }

    /// Who has other units than before grows, if it waited for them. True if somebody did.
    pub(super) fn share_units(
        &mut self,
        shares: Vec<(FleetName, Share)>,
        now: Moment,
        out: &mut Effects,
    ) -> bool {
        let mut grew = false;
        for (name, share) in shares {
            let kept = self.stance(&name) == Stance::Keep;
            let grown = self.with_fleet(&name, now, out, |fleet, room| {
                fleet.have_units(share, kept, room)
            });
            grew |= grown == Some(true);
        }
        if grew {
            self.weigh(out);
        }
        grew
    }
}

impl Fleet {
    /// One for each worker that is there or will be: those that leave keep theirs until they are gone, and a slot that an operator holds, or
    /// that failed for good, may be started at any time.
    fn units_needed(&self, scaling: &Scaling) -> u32 {
        let leaves = |(index, slot): &(&SlotIndex, &Slot)| {
            slot.is_live() && !scaling.members.contains(index)
        };
        let members = scaling.members.len();
        (members + self.slots.iter().filter(leaves).count()) as u32
    }

    /// A fleet that an operator stops gives its units to others: when it starts again, it does so with its least.
    pub(super) fn leave_units(&mut self, room: &Room<'_>) {
        if room.intent.holds_fleet(&self.name) {
            self.forget_size();
        }
    }

    /// Down to its least, as far as they are gone: their units may be others' by now.
    pub(super) fn forget_size(&mut self) {
        let Some(spec) = self
            .spec
            .scale
            .as_ref()
            .filter(|spec| spec.cluster_max.is_some())
        else {
            return;
        };
        let Some(scaling) = &mut self.body.scale else {
            return;
        };
        let is_live = |index: &SlotIndex| self.slots.get(index).is_some_and(Slot::is_live);
        let gone = scaling.members.iter().rev().filter(|index| !is_live(index));
        let more = scaling.members.len().saturating_sub(spec.min as usize);
        let gone: Vec<SlotIndex> = gone.take(more).copied().collect();
        scaling.members.retain(|index| !gone.contains(index));
    }

    fn spare_units(&self, scaling: &Scaling) -> u32 {
        let needed = self.units_needed(scaling);
        scaling.units.share.held.saturating_sub(needed)
    }

    /// Grows by what it has units for, and asks for the others. `must`: so many start whatever the others have.
    pub(super) fn grow_within(
        &mut self,
        scaling: &mut Scaling,
        (by, must): (u32, u32),
        reason: Reason,
        spec: &ScaleSpec,
        room: &mut Room<'_>,
    ) -> Verdict {
        let Some(max) = spec.cluster_max else {
            return self.grow(scaling, by, reason, spec, room);
        };
        let spare = self.spare_units(scaling);
        let some = by.min(must.max(spare));
        let verdict = match some {
            0 => scaling.units.shortage(max),
            _ => self.grow(scaling, some, reason, spec, room),
        };
        scaling.units.wish = (some < by).then(|| Wish {
            more: by - some,
            reason,
            until: room.now.after(WISH_LASTS),
        });
        verdict
    }

    fn have_units(&mut self, share: Share, kept: bool, room: &mut Room<'_>) -> bool {
        let (Some(spec), Some(mut scaling)) = (self.spec.scale.clone(), self.body.scale.take())
        else {
            return false;
        };
        let changed = std::mem::replace(&mut scaling.units.share, share) != share;
        let grew = changed && kept && self.grow_as_wished(&mut scaling, &spec, room);
        self.body.scale = Some(scaling);
        grew
    }

    /// It waited for units, and some have come.
    fn grow_as_wished(
        &mut self,
        scaling: &mut Scaling,
        spec: &ScaleSpec,
        room: &mut Room<'_>,
    ) -> bool {
        let Some(wish) = scaling.units.wish(room.now) else {
            return false;
        };
        let paused = wish.reason != Reason::Manual && room.intent.pauses.contains_key(&self.name);
        if paused || room.intent.holds_fleet(&self.name) {
            return false;
        }
        let free = spec.max.min(spec.places());
        let free = free.saturating_sub(self.occupied(scaling, room.intent));
        let spare = self.spare_units(scaling);
        let some = wish.more.min(spare).min(free);
        if some == 0 {
            return false;
        }
        let verdict = self.grow(scaling, some, wish.reason, spec, room);
        let more = wish.more - some;
        scaling.units.wish = (more > 0).then_some(Wish { more, ..wish });
        scaling.was_claimed(verdict);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::FleetSpec,
        engine::supervisor::Origin,
        id::WorkerId,
        wire::{StopRecord, Stopping},
    };

    const SECOND: u64 = 1_000_000_000;

    /// A node with one fleet, 1 to 8 workers, of which there may be four on all nodes.
    struct Node {
        engine: Supervisor,
        now: Moment,
        out: Effects,
    }

    impl Node {
        fn new() -> Self {
            let mut spec = FleetSpec::unknown(&StopRecord::default());
            spec.scale = Some(ScaleSpec {
                cluster_max: Some(4),
                ..ScaleSpec::between(1, 8)
            });
            let origin = Origin::of([("web", spec)]);
            let mut out = Effects::default();
            let now = Moment(SECOND);
            let engine = Supervisor::new(origin, now.into(), &mut out);
            Self { engine, now, out }
        }

        fn grows(&mut self, by: (u32, u32), reason: Reason) -> Verdict {
            let grown = self
                .engine
                .with_fleet(&name(), self.now, &mut self.out, |fleet, room| {
                    let spec = fleet.spec.scale.clone().unwrap();
                    let mut scaling = fleet.body.scale.take().unwrap();
                    let verdict = fleet.grow_within(&mut scaling, by, reason, &spec, room);
                    fleet.body.scale = Some(scaling);
                    verdict
                });
            grown.unwrap()
        }

        fn has(&mut self, held: u32, taken: u32) -> bool {
            let share = Share {
                held,
                taken: Some(taken),
                is_known: true,
            };
            self.engine
                .share_units(vec![(name(), share)], self.now, &mut self.out)
        }

        fn wants(&self) -> u32 {
            self.engine.demands(self.now)[&name()].wanted
        }

        fn members(&self) -> usize {
            let fleet = &self.engine.fleets[&name()];
            fleet.body.scale.as_ref().unwrap().members.len()
        }
    }

    fn name() -> FleetName {
        "web".parse().unwrap()
    }

    #[test]
    fn it_grows_by_what_it_has_and_at_once_when_more_comes() {
        let mut node = Node::new();
        assert_eq!((node.members(), node.wants()), (1, 1));
        assert!(!node.has(2, 2), "nobody asked for anything");
        let grew = Verdict::Grew {
            by: 1,
            reason: Reason::Cpu,
        };
        assert_eq!(node.grows((3, 0), Reason::Cpu), grew);
        assert_eq!((node.members(), node.wants()), (2, 4));
        assert!(node.has(3, 3));
        assert_eq!((node.members(), node.wants()), (3, 4));
        // What is not said again is not wanted any more.
        node.now = node.now.after(WISH_LASTS);
        assert_eq!(node.wants(), 3);
        assert!(!node.has(4, 4));
        assert_eq!(node.members(), 3);
        assert_eq!(
            node.grows((2, 0), Reason::Cpu),
            grew,
            "a unit that is there already"
        );
    }

    #[test]
    fn it_says_why_it_does_not_grow() {
        let mut node = Node::new();
        let blocked = Verdict::Blocked(Block::Etcd);
        assert_eq!(node.grows((1, 0), Reason::Backlog), blocked);
        node.has(1, 4);
        let blocked = Verdict::Blocked(Block::ClusterMax);
        assert_eq!(node.grows((1, 0), Reason::Manual), blocked);
        node.has(1, 3);
        let holds = Verdict::Holds(Hold::Claiming);
        assert_eq!(node.grows((1, 0), Reason::Busy), holds);
        assert_eq!(node.members(), 1);
    }

    #[test]
    fn what_must_be_there_waits_for_no_unit() {
        let mut node = Node::new();
        let grew = Verdict::Grew {
            by: 2,
            reason: Reason::Min,
        };
        assert_eq!(node.grows((3, 2), Reason::Min), grew);
        assert_eq!((node.members(), node.wants()), (3, 4));
        // They count, as soon as something is free: that is nobody's to grow by.
        assert!(!node.has(3, 4));
        assert_eq!(node.members(), 3);
    }

    /// Whoever has lost his units, to a lease that is gone, stays as he is.
    #[test]
    fn nobody_is_ended_for_want_of_a_unit() {
        let mut node = Node::new();
        node.has(3, 3);
        node.grows((2, 0), Reason::Cpu);
        node.has(0, 4);
        assert_eq!((node.members(), node.wants()), (3, 3));
        let blocked = Verdict::Blocked(Block::ClusterMax);
        assert_eq!(node.grows((1, 0), Reason::Cpu), blocked);
        assert_eq!(node.members(), 3);
    }

    #[test]
    fn a_node_that_stops_wants_units_for_those_that_are_still_there() {
        let mut node = Node::new();
        node.has(2, 2);
        node.grows((2, 0), Reason::Cpu);
        assert_eq!(node.wants(), 3);
        node.engine.asked.stopping = Stopping::Drain;
        let live = node.engine.fleets[&name()].live() as u32;
        assert_eq!(node.wants(), live);
        assert!(!node.has(3, 3), "nobody grows while it stops");
    }

    /// Its units are others' as soon as its workers are gone.
    #[test]
    fn a_fleet_that_was_stopped_begins_with_its_least() {
        let mut node = Node::new();
        node.has(4, 4);
        node.grows((3, 0), Reason::Cpu);
        assert_eq!(node.wants(), 4);
        let hold = crate::engine::intent::Hold::default();
        node.engine.intent.hold_slot(
            &WorkerId {
                fleet: name(),
                slot: SlotIndex(2),
            },
            hold.clone(),
        );
        assert_eq!(node.wants(), 4, "it may be started at any time");
        node.engine.intent.node = Some(hold);
        let live = node.engine.fleets[&name()].live() as u32;
        assert_eq!(node.wants(), live, "those that are still there");
        let (name, now) = (name(), node.now);
        node.engine
            .with_fleet(&name, now, &mut node.out, |fleet, room| {
                fleet.leave_units(room)
            });
        node.engine.intent.node = None;
        assert_eq!((node.members(), node.wants()), (1, 1));
    }
}
