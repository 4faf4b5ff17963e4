//! Fleets that follow the load: measure every second, decide every five, share what the machine has to give.

use std::collections::BTreeSet;

use crate::{
    config::spec::{FleetSpec, ScaleSpec, Signal},
    engine::{
        effect::{Effect, Effects, What},
        fleet::{Fleet, Room, Stance},
        host::{Grant, Host, Reserves, Want},
        intent::Intent,
        load::{Sample, SampleOrder},
        meter::{STALE, WHOLE},
        roster::Roster,
        scale::{Block, Decision, Hold, Queue, Reason, Scaling, Verdict},
        slot::Slot,
        supervisor::Supervisor,
    },
    id::{FleetName, SlotIndex},
    time::{Moment, Span},
    wire::Stopping,
};

pub(super) const SAMPLE_EVERY: Span = Span::secs(1);
pub(super) const DECIDE_EVERY: Span = Span::secs(5);
/// A sample that has not come by then is not waited for.
const SAMPLE_PATIENCE: Span = Span::secs(5);
/// Between two workers that a queue makes start.
const RESCUE_SPACING: Span = Span::secs(5);
/// A queue of any length for so long, though the workers are not busy: they all wait for something.
const STALLED: Span = Span::secs(10);
/// A fleet that uses less of what it could does nothing, in parts per million.
const IDLE: u64 = 10_000;

/// When to measure and to decide. A new supervisor begins at once.
#[derive(Clone, Debug, Default)]
pub(super) struct Rhythm {
    sample_at: Option<Moment>,
    /// A sample was asked for and has not come.
    asked: Option<Moment>,
    decide_at: Option<Moment>,
}

/// A fleet that wants to grow, and waits for its share.
struct Pending {
    fleet: FleetName,
    want: Want,
    reason: Reason,
    decision: Decision,
}

/// What comes of looking at a fleet.
enum Step {
    /// It is said, and done if there was something to do.
    Done(Verdict),
    /// It wants so many more, if the machine has something for them.
    Wants { more: u32, reason: Reason },
}

/// What all fleets decide by.
#[derive(Clone, Copy)]
struct Views<'a> {
    host: &'a Host,
    reserve: u32,
    stance: Stance,
}

impl Supervisor {
    /// When to measure or to decide, if a fleet follows the load.
    pub(super) fn scale_deadline(&self) -> Option<Moment> {
        let rhythm = &self.rhythm;
        let stopping = self.asked.stopping != Stopping::No;
        let asking = self.fleets.values();
        let asking = asking.filter(|fleet| fleet.is_scaled() && !stopping);
        let sources = asking.filter_map(Fleet::source_deadline);
        let undecided = rhythm.decide_at.map(|at| at.after(SAMPLE_EVERY));
        [rhythm.sample_at, undecided]
            .into_iter()
            .flatten()
            .chain(sources)
            .min()
    }

    /// Measures and decides, where it is time to.
    pub(super) fn follow_load(&mut self, now: Moment, out: &mut Effects) {
        let fleets = self.fleets_where(Fleet::is_scaled);
        if fleets.is_empty() {
            self.rhythm = Rhythm::default();
            return;
        }
        let sample_at = *self.rhythm.sample_at.get_or_insert(now);
        let decide_at = *self.rhythm.decide_at.get_or_insert(now.after(DECIDE_EVERY));
        if sample_at <= now {
            // One that is late is skipped: measured is as of now.
            self.rhythm.sample_at = Some(now.after(SAMPLE_EVERY));
            let waits = self
                .rhythm
                .asked
                .is_some_and(|at| at.after(SAMPLE_PATIENCE) > now);
            if !waits {
                self.rhythm.asked = Some(now);
                let fleets = fleets.clone();
                out.list.push(Effect::Sample(SampleOrder { fleets }));
            }
        }
        let stopping = self.asked.stopping != Stopping::No;
        for name in &fleets {
            if !stopping {
                self.with_fleet(name, now, out, Fleet::ask_source);
            }
            let kept = self.stance(name) == Stance::Keep;
            self.with_fleet(name, now, out, |fleet, room| {
                fleet.leave_units(room);
                fleet.obey_floor(kept, room);
            });
        }
        // It is decided on the sample that is asked for then, or without it if it does not come.
        if decide_at.after(SAMPLE_EVERY) <= now {
            self.decide_if_due(&fleets, now, out);
        }
        self.tend_knocks(&fleets, now, out);
    }

    fn decide_if_due(&mut self, fleets: &[FleetName], now: Moment, out: &mut Effects) {
        let Some(due) = self.rhythm.decide_at.filter(|at| *at <= now) else {
            return;
        };
        let next = due.after(DECIDE_EVERY);
        let late = next <= now;
        self.rhythm.decide_at = Some(if late { now.after(DECIDE_EVERY) } else { next });
        self.decide_all(fleets, now, out, Fleet::decide);
        self.weigh(out);
    }

    /// What was to be measured was.
    pub(super) fn sampled(&mut self, sample: &Sample, now: Moment, out: &mut Effects) {
        self.rhythm.asked = None;
        if let Some(host) = &sample.host {
            self.host.read(sample.at, host);
        }
        for one in &sample.workers {
            let Some(fleet) = self.fleets.get_mut(&one.worker.fleet) else {
                continue;
            };
            let cores = fleet
                .spec
                .scale
                .as_ref()
                .map_or(1_000, |spec| spec.worker_cores);
            let Some(slot) = fleet.slots.get_mut(&one.worker.slot) else {
                continue;
            };
            if slot.process.is_none() || slot.generation != one.generation {
                continue;
            }
            slot.meter.fit(one.generation);
            slot.meter.read(sample.at, one.cpu, slot.is_ready(), cores);
            slot.meter.memory = one.memory;
            slot.meter.pressure = one.pressure;
        }
        for one in &sample.queues {
            let Some(fleet) = self.fleets.get_mut(&one.fleet) else {
                continue;
            };
            let alert = fleet
                .spec
                .scale
                .as_ref()
                .and_then(|spec| spec.backlog_alert);
            if let Some(scaling) = &mut fleet.body.scale {
                scaling
                    .queue
                    .read(sample.at, one.waiting, one.backlog, alert);
            }
        }
        let fleets = self.fleets_where(Fleet::is_scaled);
        self.decide_if_due(&fleets, now, out);
        self.decide_all(&fleets, now, out, Fleet::rescue);
    }

    /// Has each fleet look at itself, and shares what there is among those that want to grow.
    fn decide_all(
        &mut self,
        fleets: &[FleetName],
        now: Moment,
        out: &mut Effects,
        look: fn(&mut Fleet, Views<'_>, &mut Room<'_>) -> Option<Pending>,
    ) {
        let host = std::mem::take(&mut self.host);
        let reserve = self.config.node.cpu_reserve;
        let mut pending = Vec::new();
        for name in fleets {
            let views = Views {
                host: &host,
                reserve,
                stance: self.stance(name),
            };
            let wants = self.with_fleet(name, now, out, |fleet, room| look(fleet, views, room));
            pending.extend(wants.flatten());
        }
        if !pending.is_empty() {
            let wants: Vec<Want> = pending.iter().map(|one| one.want).collect();
            let reserves = Reserves {
                cpu: reserve,
                memory: self.config.node.memory_reserve,
                used: self.fleets.values().map(Fleet::cores_used).sum(),
                others: self.pressed_beside(&pending),
            };
            let grants = host.grant(&wants, reserves, now);
            for (one, grant) in pending.into_iter().zip(grants) {
                let name = one.fleet.clone();
                self.with_fleet(&name, now, out, |fleet, room| fleet.take(one, grant, room));
            }
        }
        self.host = host;
    }

    /// Weights of the fleets that are pressed for processors, and do not ask for any.
    fn pressed_beside(&self, pending: &[Pending]) -> u64 {
        let asks = |fleet: &Fleet| pending.iter().any(|one| one.fleet == fleet.name);
        let silent = self.fleets.values().filter(|fleet| !asks(fleet));
        silent.filter_map(Fleet::pressed_weight).sum()
    }

    /// Somebody waits at a socket of a fleet without workers.
    pub(super) fn knocked(&mut self, name: &FleetName, now: Moment, out: &mut Effects) {
        let kept = self.stance(name) == Stance::Keep;
        self.with_fleet(name, now, out, |fleet, room| fleet.wake_up(kept, room));
    }

    /// Who has no worker has its sockets watched.
    fn tend_knocks(&mut self, fleets: &[FleetName], now: Moment, out: &mut Effects) {
        for name in fleets {
            let kept = self.stance(name) == Stance::Keep;
            self.with_fleet(name, now, out, |fleet, room| fleet.tend_knock(kept, room));
        }
    }
}

impl Fleet {
    pub(super) fn is_scaled(&self) -> bool {
        self.body.scale.is_some() && !self.removed
    }

    /// It follows the load from now on, or does not any more. Who is there stays.
    pub(super) fn fit_scale(&mut self, now: Moment) {
        let Some(spec) = &self.spec.scale else {
            self.body.scale = None;
            return;
        };
        if self.body.scale.is_some() {
            return;
        }
        let there = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.is_live() && !slot.is_ending());
        let mut members: BTreeSet<SlotIndex> = there
            .map(|(index, _)| *index)
            .take(spec.max as usize)
            .collect();
        let lowest = (0..).map(SlotIndex);
        for index in lowest {
            if members.len() >= spec.min as usize {
                break;
            }
            members.insert(index);
        }
        self.body.scale = Some(Box::new(Scaling::new(members, now)));
    }

    /// What was measured of what it was says nothing of what it is now.
    pub(super) fn measure_anew(&mut self, before: &FleetSpec, room: &mut Room<'_>) {
        let Some(scaling) = &mut self.body.scale else {
            return;
        };
        if before.sockets != self.spec.sockets {
            scaling.queue = Queue::default();
            if std::mem::take(&mut scaling.watching) {
                let fleet = self.name.clone();
                room.out.list.push(Effect::Watch { fleet, on: false });
            }
        }
    }

    /// Its weight, if its workers are as busy as they are meant to be, or busier.
    fn pressed_weight(&self) -> Option<u64> {
        let spec = self.spec.scale.as_ref()?;
        let busy = self.body.scale.as_ref()?.decisions.back()?.utilization?;
        (busy >= u64::from(spec.target)).then_some(u64::from(spec.weight))
    }

    /// Thousandths of a core that its workers use.
    fn cores_used(&self) -> u64 {
        let Some(spec) = self.spec.scale.as_ref() else {
            return 0;
        };
        let shares = self.slots.values().filter(|slot| slot.process.is_some());
        let shares: u64 = shares.map(|slot| slot.meter.share).sum();
        shares * u64::from(spec.worker_cores) / WHOLE
    }

    /// An operator's floor, if there is one.
    fn floor(&self, intent: &Intent) -> u32 {
        intent.sizes.get(&self.name).map_or(0, |size| size.workers)
    }

    /// What an operator wants is not a decision's to wait for.
    fn obey_floor(&mut self, kept: bool, room: &mut Room<'_>) {
        let floor = self.floor(room.intent);
        if floor == 0 {
            if let Some(scaling) = &mut self.body.scale {
                scaling.units.settle_floor();
            }
            return;
        }
        let held = room.intent.holds_fleet(&self.name);
        let (Some(spec), Some(mut scaling)) = (self.spec.scale.clone(), self.body.scale.take())
        else {
            return;
        };
        let occupied = self.occupied(&scaling, room.intent);
        let less = floor.min(spec.max).saturating_sub(occupied);
        if less > 0 && kept && !held {
            let by = (less, spec.min.saturating_sub(occupied));
            self.grow_within(&mut scaling, by, Reason::Manual, &spec, room);
        } else {
            scaling.units.settle_floor();
        }
        self.body.scale = Some(scaling);
    }

    /// The decision of every few seconds. What needs nobody's leave is done at once.
    fn decide(&mut self, views: Views<'_>, room: &mut Room<'_>) -> Option<Pending> {
        let spec = self.spec.scale.clone()?;
        let mut scaling = self.body.scale.take()?;
        let pending = self.decide_with(&spec, &mut scaling, views, room);
        self.body.scale = Some(scaling);
        pending
    }

    fn decide_with(
        &mut self,
        spec: &ScaleSpec,
        scaling: &mut Scaling,
        views: Views<'_>,
        room: &mut Room<'_>,
    ) -> Option<Pending> {
        let now = room.now;
        let manual = self.floor(room.intent).min(spec.max);
        let least = spec.min.max(manual);
        self.leave_places(scaling, least);
        let mut roster = self.roster(scaling, spec, room);
        self.report_suspects(&roster.suspects, spec, room);
        let inputs = &mut roster.inputs;
        inputs.starved = views.host.starves(roster.pressure, views.reserve, now);
        inputs.queue_stale = scaling.queue.is_stale(now);
        if !roster.suspects.is_empty() {
            scaling.count_block("stuck");
        }
        let mut decision = roster.decision(scaling, views.host, now);
        let kept = views.stance == Stance::Keep && !room.intent.holds_fleet(&self.name);
        let step = if kept {
            self.next_step(scaling, spec, &roster, (least, manual), &mut decision, room)
        } else {
            Step::Done(Verdict::Holds(Hold::NotKept))
        };
        match step {
            Step::Wants { more, reason } => Some(Pending {
                fleet: self.name.clone(),
                want: self.want(more, roster.inputs.n, reason, spec),
                reason,
                decision,
            }),
            Step::Done(verdict) => {
                decision.verdict = verdict;
                self.conclude(scaling, decision, room);
                None
            }
        }
    }

    /// What it must have comes before what it would like.
    fn next_step(
        &mut self,
        scaling: &mut Scaling,
        spec: &ScaleSpec,
        roster: &Roster,
        (least, manual): (u32, u32),
        decision: &mut Decision,
        room: &mut Room<'_>,
    ) -> Step {
        let Roster {
            inputs,
            suspects,
            members,
            counted,
            free,
            ..
        } = roster;
        if *counted > spec.max && inputs.draining == 0 {
            let by = counted - spec.max;
            return Step::Done(self.shrink(scaling, by, suspects, Reason::Max, room));
        }
        if *counted < least && *free > 0 {
            let more = (least - counted).min(*free);
            let reason = if *counted < spec.min {
                Reason::Min
            } else {
                Reason::Manual
            };
            let by = (more, spec.min.saturating_sub(*counted));
            return Step::Done(self.grow_within(scaling, by, reason, spec, room));
        }
        if *members == 0 {
            scaling.idle_since = None;
            return Step::Done(Verdict::Fits);
        }
        if room.intent.pauses.contains_key(&self.name) {
            return Step::Done(Verdict::Holds(Hold::Paused));
        }
        let Some(advice) = scaling.advise(inputs, spec, room.now) else {
            return Step::Done(Verdict::Holds(Hold::NoMetrics));
        };
        scaling.forgive(spec, room.now);
        (decision.recommended, decision.up, decision.down) =
            (advice.recommended, advice.up, advice.down);
        decision.signal = Some(advice.reason);
        if advice.up > inputs.n {
            let step = (advice.up - inputs.n).min(inputs.n.max(2));
            return match step.min(*free) {
                _ if inputs.starting > 0 => Step::Done(Verdict::Holds(Hold::Starting)),
                0 => Step::Done(Verdict::Blocked(Block::Max)),
                more => Step::Wants {
                    more,
                    reason: advice.reason,
                },
            };
        }
        Step::Done(match () {
            () if advice.recommended > inputs.n => Verdict::Holds(Hold::Confirming),
            () if advice.starved => Verdict::Holds(Hold::Starved),
            () if self.is_idle_for_good(scaling, spec, manual, roster, room.now) => {
                let all = scaling.members.len() as u32;
                self.shrink(scaling, all, suspects, Reason::Idle, room)
            }
            () => {
                let bounds = (advice.down, least);
                self.shrink_some(scaling, spec, roster, bounds, advice.reason, room)
            }
        })
    }

    /// Fewer, if the window allows it and everybody else stands still.
    fn shrink_some(
        &mut self,
        scaling: &mut Scaling,
        spec: &ScaleSpec,
        roster: &Roster,
        (down, least): (u32, u32),
        reason: Reason,
        room: &mut Room<'_>,
    ) -> Verdict {
        let inputs = &roster.inputs;
        let goal = down.max(least).max(1);
        if goal >= inputs.n {
            let waits = scaling.highs_hold(inputs.n);
            return if waits {
                Verdict::Holds(Hold::Window)
            } else {
                Verdict::Fits
            };
        }
        if inputs.draining > 0 {
            return Verdict::Holds(Hold::Draining);
        }
        if inputs.starting > 0 || inputs.cold > 0 {
            return Verdict::Holds(Hold::Starting);
        }
        if inputs.queue_stale {
            return Verdict::Holds(Hold::NoMetrics);
        }
        if let Err(hold) = scaling.may_shrink(spec, room.now) {
            return Verdict::Holds(hold);
        }
        let by = (inputs.n - goal).min((inputs.n / 4).max(1));
        self.shrink(scaling, by, &roster.suspects, reason, room)
    }

    /// With `min = 0`: nothing to do for so long that its last workers can go.
    fn is_idle_for_good(
        &self,
        scaling: &mut Scaling,
        spec: &ScaleSpec,
        manual: u32,
        roster: &Roster,
        now: Moment,
    ) -> bool {
        let inputs = &roster.inputs;
        let inflight: u64 = self
            .slots
            .values()
            .filter(|slot| slot.process.is_some())
            .filter_map(|slot| slot.meter.inflight)
            .map(u64::from)
            .sum();
        let idle = spec.min == 0
            && manual == 0
            // One that uses all it can may be doing what takes long.
            && roster.suspects.is_empty()
            && inputs.starting == 0
            && inputs.cold == 0
            && inputs.miss == 0
            && inputs.utilization().is_some_and(|share| share < IDLE)
            && scaling.queue.waiting == 0
            && inputs.queue.unwrap_or(0) == 0
            && inflight == 0;
        if !idle {
            scaling.idle_since = None;
            return false;
        }
        scaling
            .idle_since
            .get_or_insert(now)
            .after(spec.idle_timeout)
            <= now
    }

    /// Those who wait while somebody starts are whom that one is for.
    fn forget_alerts_of_starts(&mut self) {
        let Some(scaling) = &mut self.body.scale else {
            return;
        };
        let starts = |index: &SlotIndex| self.slots.get(index).is_none_or(Slot::is_starting);
        if scaling.members.iter().any(starts) {
            scaling.queue.alerts = 0;
            scaling.queue.waiting_since = None;
        }
    }

    /// At every sample: too many wait at its sockets.
    fn rescue(&mut self, views: Views<'_>, room: &mut Room<'_>) -> Option<Pending> {
        let spec = self.spec.scale.clone()?;
        self.forget_alerts_of_starts();
        let scaling = self.body.scale.as_ref()?;
        let now = room.now;
        let queue = scaling.queue;
        if queue.read.is_none_or(|at| at.after(STALE) <= now) {
            return None;
        }
        let stalls = queue
            .waiting_since
            .is_some_and(|since| since.after(STALLED) <= now);
        if !spec.uses(Signal::Backlog)
            || (queue.alerts < 2 && !stalls)
            || scaling.members.is_empty()
        {
            return None;
        }
        let rescued = scaling
            .rescued_at
            .is_some_and(|at| at.after(RESCUE_SPACING) > now);
        let held =
            room.intent.holds_fleet(&self.name) || room.intent.pauses.contains_key(&self.name);
        if rescued || held || views.stance != Stance::Keep {
            return None;
        }
        let roster = self.roster(scaling, &spec, room);
        let inputs = &roster.inputs;
        let busy = inputs
            .utilization()
            .is_some_and(|share| share >= u64::from(spec.high));
        if inputs.starting > 0 || (queue.alerts < 2 && busy) {
            return None;
        }
        let mut decision = roster.decision(scaling, views.host, now);
        decision.signal = Some(Reason::Backlog);
        decision.recommended += 1;
        decision.up += 1;
        if roster.free == 0 {
            decision.verdict = Verdict::Blocked(Block::Max);
            let mut scaling = self.body.scale.take()?;
            scaling.rescued_at = Some(now);
            self.conclude(&mut scaling, decision, room);
            self.body.scale = Some(scaling);
            return None;
        }
        let want = self.want(1, inputs.n, Reason::Backlog, &spec);
        Some(Pending {
            fleet: self.name.clone(),
            want,
            reason: Reason::Backlog,
            decision,
        })
    }

    fn want(&self, more: u32, workers: u32, reason: Reason, spec: &ScaleSpec) -> Want {
        let mut memories: Vec<u64> = self
            .slots
            .values()
            .filter(|slot| slot.process.is_some())
            .filter_map(|slot| slot.meter.memory)
            .collect();
        memories.sort_unstable();
        // Of 100 sorted by size the 95th.
        let nearly_all = (memories.len() * 95).div_ceil(100).saturating_sub(1);
        Want {
            workers,
            more,
            weight: spec.weight,
            worker_cores: spec.worker_cores,
            memory: memories.get(nearly_all).copied().unwrap_or(0),
            pressed: matches!(reason, Reason::Cpu | Reason::Busy),
        }
    }

    /// It gets so many, or hears why not.
    fn take(&mut self, pending: Pending, grant: Grant, room: &mut Room<'_>) {
        let (Some(spec), Some(mut scaling)) = (self.spec.scale.clone(), self.body.scale.take())
        else {
            return;
        };
        let Pending {
            reason,
            mut decision,
            ..
        } = pending;
        if reason == Reason::Backlog {
            scaling.rescued_at = Some(room.now);
        }
        decision.verdict = if grant.workers > 0 {
            self.grow_within(&mut scaling, (grant.workers, 0), reason, &spec, room)
        } else {
            Verdict::Blocked(grant.block.unwrap_or(Block::HostCpu))
        };
        self.conclude(&mut scaling, decision, room);
        self.body.scale = Some(scaling);
    }

    pub(super) fn grow(
        &mut self,
        scaling: &mut Scaling,
        by: u32,
        reason: Reason,
        spec: &ScaleSpec,
        room: &mut Room<'_>,
    ) -> Verdict {
        let from = scaling.members.len() as u32;
        for _ in 0..by {
            let taken = |index| {
                let live = self.slots.get(&index).is_some_and(Slot::is_live);
                live || room.intent.holds(&self.name, index)
            };
            let index = scaling.free_slot(taken);
            scaling.members.insert(index);
        }
        match reason {
            // Nobody was wrong before: it has what it must have.
            Reason::Min | Reason::Manual | Reason::Wake => {
                scaling.grown_at = room.now;
            }
            _ => scaling.grew(spec, room.now),
        }
        scaling.idle_since = None;
        scaling.units.settle();
        self.record(
            What::Grew {
                from,
                to: from + by,
                reason,
            },
            room,
        );
        Verdict::Grew { by, reason }
    }

    fn shrink(
        &mut self,
        scaling: &mut Scaling,
        by: u32,
        suspects: &BTreeSet<SlotIndex>,
        reason: Reason,
        room: &mut Room<'_>,
    ) -> Verdict {
        let from = scaling.members.len() as u32;
        let victims = self.victims(scaling, by, suspects, (room.intent, room.now));
        let by = victims.len() as u32;
        for index in victims {
            scaling.members.remove(&index);
        }
        scaling.shrank(room.now);
        scaling.units.settle();
        scaling.idle_since = None;
        self.record(
            What::Shrank {
                from,
                to: from - by,
                reason,
            },
            room,
        );
        Verdict::Shrank { by, reason }
    }

    /// The decision is kept for people, and said where it is news.
    fn conclude(&mut self, scaling: &mut Scaling, decision: Decision, room: &mut Room<'_>) {
        let blocked = match decision.verdict {
            Verdict::Blocked(block) => Some(block),
            _ => None,
        };
        if let Verdict::Holds(hold) = decision.verdict {
            scaling.count_block(hold.word());
        }
        if let Some(block) = blocked {
            scaling.count_block(block.word());
            if scaling.blocked != blocked {
                let (workers, wanted) = (decision.workers, decision.up);
                self.record(
                    What::GrowthBlocked {
                        block,
                        workers,
                        wanted,
                    },
                    room,
                );
            }
        }
        // What a queue asked for in vain a moment ago is still in vain, whatever the next decision is about.
        let asked = scaling
            .rescued_at
            .is_some_and(|at| at.after(RESCUE_SPACING.times(2)) > room.now);
        let grew = matches!(decision.verdict, Verdict::Grew { .. });
        if blocked.is_some() || grew || !asked {
            scaling.blocked = blocked;
        }
        scaling.remember(decision);
    }

    fn wake_up(&mut self, kept: bool, room: &mut Room<'_>) {
        let (Some(spec), Some(mut scaling)) = (self.spec.scale.clone(), self.body.scale.take())
        else {
            return;
        };
        scaling.watching = false;
        let held = room.intent.holds_fleet(&self.name);
        if kept && !held && self.occupied(&scaling, room.intent) == 0 {
            self.leave_places(&mut scaling, 0);
            let by = spec.wake.min(spec.max);
            self.grow(&mut scaling, by, Reason::Wake, &spec, room);
        }
        self.body.scale = Some(scaling);
    }

    fn tend_knock(&mut self, kept: bool, room: &mut Room<'_>) {
        let held = room.intent.holds_fleet(&self.name);
        let alone = self.slots.values().all(|slot| !slot.is_live());
        let nobody = |scaling| self.occupied(scaling, room.intent) == 0;
        let sleeps = self.spec.scale.as_ref().is_some_and(|spec| spec.min == 0)
            && self.body.scale.as_deref().is_some_and(nobody);
        let Some(scaling) = &mut self.body.scale else {
            return;
        };
        let on = kept && !held && sleeps && alone;
        if on != scaling.watching {
            scaling.watching = on;
            let fleet = self.name.clone();
            room.out.list.push(Effect::Watch { fleet, on });
        }
    }
}
