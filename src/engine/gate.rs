//! A singleton's worker runs only while its gate is open: while the keeper holds its lock. The lock is taken and given back by the
//! driver; here is decided when.
//!
//! ```text
//!   shut ──somebody is to be started──▶ sought ──taken──▶ open ──nobody is left and none is to start──▶ shut
//!                                          └──not wanted any more──▶ shut     └──the file was replaced──▶ lost: killed, then shut
//! ```
//!
//! An operator may have an open one given to whoever waits: see `release`.

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{LeaseSpec, SingletonSpec},
    engine::{
        cluster::{Said, Ticket},
        effect::{Cause, Effect, Ending, What},
        fleet::{Fleet, Room, Stance},
        intent::Intent,
        lease::{Lease, LeaseNews},
        places::Places,
        release::Release,
        slot::{Desk, Slot, State},
        status::GateStatus,
    },
    id::{SlotIndex, WorkerId},
    time::{Clocks, Moment, Span},
    wire::{self, Op, PageSpec},
};

/// What an open gate gives to a worker.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pass {
    /// The lock's file.
    pub path: String,
    /// Names the holder; grows with every holder.
    pub fence: u64,
}

/// A lock that the keeper holds since before this supervisor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What it gives.
    pub pass: Pass,
    /// Why it excludes nobody any more, if so.
    pub lost: Option<String>,
    /// The deadline that the keeper has for it.
    pub until: Option<Clocks>,
}

/// Who has a lock, or had it last, as far as can be told: for people and programs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// The keeper's pid; of somebody who is no leasehold, the pid that the kernel names.
    pub pid: i32,
    /// What only a leasehold writes down.
    pub record: Option<HolderRecord>,
}

/// What a holder wrote down of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HolderRecord {
    /// Its node.
    pub node: String,
    /// For which of its workers.
    pub worker: WorkerId,
    /// That one's pid, once it has one.
    pub leader: Option<i32>,
    /// Names the holder.
    pub fence: u64,
    /// Since when, RFC 3339.
    pub since: String,
}

/// What became of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GateNews {
    /// The lock was taken, and nothing of its last holder is left.
    Opened {
        /// What it gives.
        pass: Pass,
        /// Who had it last, if that was another one and is known.
        from: Option<Holder>,
    },
    /// It cannot be had now; it is tried on.
    Waits {
        /// Why.
        why: String,
        /// Who has it, if that is why, and known.
        holder: Option<Holder>,
    },
    /// It excludes nobody any more.
    Lost(String),
}

/// One slot's gate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gate {
    /// The lock that was asked for; none: shut.
    sought: Option<SingletonSpec>,
    /// Open, sought or shut since then.
    since: Option<Moment>,
    /// It is to be given to whoever waits, or was.
    pub(super) release: Option<Release>,
    /// How long it lasts, if it must be renewed.
    pub(super) lease: Lease,
    /// Its place in the queue of a cluster's lock, when it is its turn.
    pub(super) ticket: Option<Ticket>,
    /// Open.
    #[serde(skip)]
    pass: Option<Pass>,
    #[serde(skip)]
    is_lost: bool,
    /// Nobody has had a cluster's lock since, as far as was seen.
    #[serde(skip)]
    vacated: Option<Moment>,
    /// Why it is not open yet.
    #[serde(skip)]
    waits: Option<String>,
    /// Who has it meanwhile.
    #[serde(skip)]
    holder: Option<Holder>,
}

impl Gate {
    /// What the worker gets, while it is open.
    pub(super) fn pass(&self) -> Option<&Pass> {
        self.pass.as_ref()
    }

    /// What the worker's lease page says, while it is open.
    pub(super) fn page(&self) -> Option<PageSpec> {
        Some(PageSpec {
            fence: self.fence()?,
            epoch: self.lease_spec().map_or(0, |lease| lease.epoch),
            role: wire::HOLDER,
            timed: self.lease_spec().is_some(),
        })
    }

    /// What the lease page of a worker says that waits for it to open: that it may not.
    pub(super) fn standby_page(&self) -> PageSpec {
        PageSpec {
            fence: 0,
            epoch: 0,
            role: wire::STANDBY,
            timed: false,
        }
    }

    /// Names us as its holder, while it is open.
    pub(super) fn fence(&self) -> Option<u64> {
        self.pass.as_ref().map(|pass| pass.fence)
    }

    /// How it must be renewed, if it must.
    pub(super) fn lease_spec(&self) -> Option<&LeaseSpec> {
        self.sought.as_ref()?.lease.as_ref()
    }

    /// Which lock is asked for, or had.
    pub(super) fn sought(&self) -> Option<&SingletonSpec> {
        self.sought.as_ref()
    }

    /// Is it asked for, and not to be had yet?
    pub(super) fn waits(&self) -> bool {
        self.sought.is_some() && self.pass.is_none()
    }

    /// Why it is not to be had, if that is known.
    pub(super) fn why_shut(&self) -> Option<&str> {
        self.waits.as_deref()
    }

    /// Is it open, and does its lock still exclude everybody else?
    pub(super) fn is_open(&self) -> bool {
        self.pass.is_some() && !self.is_lost
    }

    /// Does its lock exclude nobody any more?
    pub(super) fn is_lost(&self) -> bool {
        self.is_lost
    }

    /// For people; `cause`: why nobody would ask for it now.
    pub(super) fn status(&self, cause: Option<Cause>) -> GateStatus {
        GateStatus {
            state: self.word(),
            since: self.since,
            pass: self.pass.clone(),
            waits: match &self.release {
                Some(Release::Yields { .. }) => Some("left to whoever waits for it".to_owned()),
                Some(Release::Asked { .. }) | None => self.waits.clone(),
            },
            holder: self.holder.clone(),
            until: self.lease.stands().map(|stands| stands.boottime),
            release: self
                .release
                .as_ref()
                .map(|release| release.who().to_owned()),
            cause: cause.filter(|_| self.sought.is_none()),
        }
    }

    fn word(&self) -> &'static str {
        match (&self.sought, &self.pass, &self.release) {
            _ if self.is_lost => "lost",
            (None, ..) => "shut",
            (_, _, Some(Release::Yields { .. })) => "yielding",
            (_, _, Some(Release::Asked { .. })) => "releasing",
            (_, Some(_), None) => "open",
            (_, None, None) => "waiting",
        }
    }
}

impl Slot {
    /// May it start? If its gate is shut, that is asked for.
    pub(super) fn passes(&mut self, desk: &mut Desk<'_>) -> bool {
        let Some(spec) = &desk.spec.singleton else {
            return true;
        };
        if self.gate.sought.is_none() {
            self.gate.sought = Some(spec.clone());
            self.gate.since = Some(desk.now);
            self.seek_gate(desk);
        }
        self.may_lead(desk.clocks) || spec.warm
    }

    /// May what needs the lock be there from now on?
    fn may_lead(&self, now: Clocks) -> bool {
        let open = self.gate.is_open() && self.gate.release.is_none();
        open && self.lease_allows(now)
    }

    /// Is what is started now to wait for its lock?
    pub(super) fn is_to_stand_by(&self, desk: &Desk<'_>) -> bool {
        desk.spec.is_warm() && !self.may_lead(desk.clocks)
    }

    /// A worker that stands by has its lock asked for, and is told when it is had.
    pub(super) fn stand_by(&mut self, desk: &mut Desk<'_>) {
        self.passes(desk);
        let there = matches!(self.state, State::Starting { .. } | State::Running { .. });
        let Some(page) = self
            .gate
            .page()
            .filter(|_| there && self.may_lead(desk.clocks))
        else {
            return;
        };
        self.stands_by = false;
        let fence = page.fence;
        desk.record(self.generation, What::Promoted { fence });
        self.promote(page, desk);
    }

    fn promote(&self, page: PageSpec, desk: &mut Desk<'_>) {
        desk.out.keeper(Op::Promote {
            key: desk.key(),
            generation: self.generation,
            page,
            body: Vec::new(),
        });
    }

    /// Has the lock looked for that is asked for. One of a cluster is first waited for there.
    pub(super) fn seek_gate(&self, desk: &mut Desk<'_>) {
        let Some(spec) = &self.gate.sought else {
            return;
        };
        let fence = self.gate.ticket.as_ref().map(|ticket| ticket.fence);
        if spec.is_of_cluster() && fence.is_none() {
            return;
        }
        desk.out.list.push(Effect::SeekGate {
            worker: desk.worker.clone(),
            spec: spec.clone(),
            fence: fence.map(i64::unsigned_abs),
        });
    }

    /// News of the lock's queue in the cluster.
    pub(super) fn cluster_said(&mut self, said: Said, desk: &mut Desk<'_>) {
        let is_sought = self.gate.sought.as_ref();
        if !is_sought.is_some_and(SingletonSpec::is_of_cluster) {
            return;
        }
        match (said, &self.gate.ticket) {
            // Taken over without its row: what it holds ends by its own deadline.
            (Said::Won { .. }, None) if self.gate.pass.is_some() => {}
            (Said::Won { ticket, vacated }, None) => {
                self.gate.ticket = Some(ticket);
                self.gate.vacated = vacated;
                self.gate.waits = None;
                self.seek_gate(desk);
            }
            (Said::Waits(why), None) => {
                let holder = None;
                self.gate_changed(GateNews::Waits { why, holder }, desk);
            }
            (Said::Lost(why), Some(_)) if self.gate.pass.is_some() => self.lose_gate(why, desk),
            // The lock file was still waited for.
            (Said::Lost(_), Some(_)) => self.shut_gate(Cause::Lost, desk),
            (Said::Asked(who), Some(ticket)) => {
                let fence = ticket.fence.unsigned_abs();
                self.release_gate(fence, &who, desk);
            }
            (Said::Passed, Some(_)) if self.needs_lock() => {}
            (Said::Passed, Some(_)) => self.shut_gate(Cause::Passed, desk),
            (Said::Renewed { sent, ttl }, Some(ticket)) => {
                let fence = ticket.fence.unsigned_abs();
                self.lease_changed(fence, LeaseNews::Renewed { sent, ttl }, desk);
            }
            (Said::Won { .. } | Said::Waits(_), Some(_))
            | (Said::Lost(_) | Said::Passed | Said::Asked(_) | Said::Renewed { .. }, None) => {}
        }
    }

    /// News from whoever takes locks for us.
    pub(super) fn gate_changed(&mut self, news: GateNews, desk: &mut Desk<'_>) {
        match news {
            // Too late: it was called off meanwhile.
            GateNews::Opened { .. } if self.gate.sought.is_none() => {
                self.shut_gate(Cause::NotWanted, desk);
            }
            GateNews::Opened { pass, from } => self.open_gate(pass, from, desk),
            GateNews::Waits { why, holder } => {
                if !self.gate.waits() {
                    return;
                }
                if holder.is_some() {
                    self.end_yielding(desk);
                }
                self.gate.holder.clone_from(&holder);
                if self.gate.waits.as_ref() != Some(&why) {
                    self.gate.waits = Some(why.clone());
                    desk.record(self.generation, What::GateWaits { why, holder });
                }
            }
            GateNews::Lost(why) => self.lose_gate(why, desk),
        }
    }

    fn open_gate(&mut self, pass: Pass, from: Option<Holder>, desk: &mut Desk<'_>) {
        // What is no leasehold leaves no record: that it was waited for is all that is known of it.
        let stranger = self.gate.holder.take().filter(|who| who.record.is_none());
        let since = self.gate.since.replace(desk.now).unwrap_or(desk.now);
        let gap = self.gate.vacated.take().map(|since| desk.now.since(since));
        let what = What::GateOpened {
            fence: pass.fence,
            waited: desk.now.since(since),
            from: stranger.or(from),
            gap,
        };
        desk.record(self.generation, what);
        self.gate.pass = Some(pass);
        self.gate.release = None;
        self.gate.waits = None;
    }

    /// It excludes nobody any more; whoever runs under it is ended when the fleet looks next.
    pub(super) fn lose_gate(&mut self, why: String, desk: &mut Desk<'_>) {
        if self.gate.pass.is_some() && !self.gate.is_lost {
            desk.record(self.generation, What::GateLost { why });
            self.gate.is_lost = true;
        }
    }

    /// Gives the lock back, or asks for it no longer. Nothing of the worker may be there.
    pub(super) fn shut_gate(&mut self, cause: Cause, desk: &mut Desk<'_>) {
        debug_assert!(!self.leads(), "{} gave its lock back alive", desk.worker);
        let gate = std::mem::take(&mut self.gate);
        self.gate.since = Some(desk.now);
        desk.out.list.push(Effect::ShutGate(desk.worker.clone()));
        let Some(pass) = &gate.pass else {
            return;
        };
        let held = gate.since.map_or(Span::ZERO, |since| desk.now.since(since));
        if gate.lease_spec().is_some() {
            let (worker, fence) = (desk.worker.clone(), pass.fence);
            desk.out.list.push(Effect::Disarm { worker, fence });
        }
        let what = What::GateShut {
            fence: pass.fence,
            held,
            cause: cause.clone(),
        };
        desk.record(self.generation, what);
        // Of a cluster's lock it is known who waits: they are next, and we stand behind them.
        let is_queued = gate.ticket.is_some();
        if let (Cause::Released { who }, Some(spec), false) = (cause, gate.sought, is_queued) {
            let pass = pass.clone();
            self.gate.sought = Some(spec);
            self.yield_gate(who, pass, desk);
        }
    }

    /// After a supervisor's death: `kept` is what the keeper holds for it.
    pub(super) fn resume_gate(&mut self, kept: Option<Kept>, desk: &mut Desk<'_>) {
        match (&self.gate.sought, kept) {
            // Its row may have been lost: what has no lock stands by.
            (None, None) => {
                let is_of_now = self.revision == desk.spec.revision;
                self.stands_by |= self.is_live() && desk.spec.is_warm() && is_of_now;
            }
            (Some(_), Some(kept)) => self.reopen(kept, desk),
            // Its row was lost, its process was not.
            (None, Some(kept)) if self.needs_lock() => {
                self.gate.sought = Some(desk.spec.singleton.clone().unwrap_or_default());
                self.gate.since = Some(desk.now);
                self.reopen(kept, desk);
                // Whether it was told that it holds it is not known: to hear it twice does no harm.
                let stood_by = desk.spec.is_warm() && self.leads();
                if let Some(page) = self.gate.page().filter(|_| stood_by) {
                    self.promote(page, desk);
                }
            }
            (None, Some(_)) => self.shut_gate(Cause::NotWanted, desk),
            (Some(_), None) => {
                debug_assert!(!self.leads(), "{} lives without its lock", desk.worker);
                if !self.resume_yielding(desk) {
                    self.seek_gate(desk);
                }
            }
        }
    }

    fn reopen(&mut self, kept: Kept, desk: &mut Desk<'_>) {
        let fence = kept.pass.fence;
        self.gate.pass = Some(kept.pass);
        let ticket = self.gate.ticket.as_ref();
        if ticket.is_some_and(|ticket| ticket.fence.unsigned_abs() != fence) {
            self.lose_gate("its lock is of another holder".to_owned(), desk);
        }
        self.take_back_yielding();
        self.gate.lease.adopt(kept.until, desk.clocks);
        if self.gate.lease_spec().is_some() && kept.until.is_none() && self.leads() {
            self.lose_gate("its deadline has passed".to_owned(), desk);
        }
        if let Some(why) = kept.lost {
            self.gate_changed(GateNews::Lost(why), desk);
        }
    }
}

impl Fleet {
    /// Why nobody who is not there would need this slot's lock: it is given back, or not asked for. None if somebody does.
    pub(super) fn shut_cause(
        &self,
        index: SlotIndex,
        slot: &Slot,
        stance: Stance,
        intent: &Intent,
        now: Moment,
    ) -> Option<Cause> {
        let gate = &slot.gate;
        if gate.is_lost {
            return Some(Cause::Lost);
        }
        if gate.lease.is_lapsing() {
            return Some(Cause::Lapsed);
        }
        if self.removed {
            return Some(Cause::Removed);
        }
        if let Some(hold) = intent.hold(&self.name, index) {
            let who = hold.who.clone();
            return Some(Cause::Stopped { who });
        }
        if !self.places(intent).contains(index) {
            return Some(Cause::ScaledIn);
        }
        if gate.sought.is_some() && gate.sought != self.spec.singleton {
            return Some(Cause::Reconfigured);
        }
        // It may take its time to end, and could not begin in that.
        if slot.is_warm() && slot.is_ending() {
            return Some(Cause::NotWanted);
        }
        if let Some(cron) = self.body.cron.as_ref() {
            return (!cron.needs_gate()).then_some(Cause::NoRun);
        }
        let stops = match stance {
            Stance::Drain | Stance::Kill => Some(Cause::Shutdown),
            Stance::Keep | Stance::Wait | Stance::Closing => None,
        };
        // Who only waits for it gives it up like one who is not there.
        let is_vacant = slot.state == State::Vacant || slot.is_warm();
        let starts_not = match (&slot.state, stance) {
            (_, Stance::Keep) if is_vacant => None,
            (_, Stance::Wait) if is_vacant => Some(Cause::Dependencies),
            (_, _) if is_vacant => Some(Cause::Shutdown),
            // One that never led fails before it is anybody's turn: whoever is well is next, and it queues again when it is tried again; one
            // that is to begin with its lock by now has to queue for that.
            (State::BackingOff { .. }, _) if slot.stands_by && self.spec.is_warm() => {
                Some(Cause::Failed)
            }
            (State::BackingOff { .. }, _) => stops,
            // It failed: somebody else may do better, until it is tried again.
            (State::Failed { retry }, _) => {
                let due = retry.is_some_and(|at| at <= now);
                (!due).then_some(Cause::Failed)
            }
            (State::Done, _) => Some(Cause::Done),
            _ => None,
        };
        starts_not.or_else(|| match &gate.release {
            Some(Release::Asked { who }) => Some(Cause::Released { who: who.clone() }),
            Some(Release::Yields { .. }) | None => None,
        })
    }

    /// Gives back what nobody needs, and ends who runs without a lock.
    pub(super) fn tend_gates(&mut self, stance: Stance, room: &mut Room<'_>) {
        let sought = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.gate.sought.is_some());
        let mut lost = Vec::new();
        let mut unwanted = Vec::new();
        for (index, slot) in sought {
            match slot.needs_lock() {
                true if slot.gate.is_lost && slot.leads() => lost.push(*index),
                true => {}
                false => {
                    let cause = self.shut_cause(*index, slot, stance, room.intent, room.now);
                    unwanted.extend(cause.map(|cause| (*index, cause)));
                }
            }
        }
        for index in lost {
            self.with_slot(index, room, |slot, desk| {
                slot.kill(Ending::LockLost, "its lock is gone", desk);
            });
        }
        for (index, cause) in unwanted {
            self.with_slot(index, room, |slot, desk| slot.shut_gate(cause, desk));
            self.stand_back(index, room);
        }
    }

    /// Workers that stand by ask for their locks, and are told when they are had.
    pub(super) fn tend_standbys(&mut self, places: &Places, room: &mut Room<'_>) {
        let waits = |(index, slot): &(&SlotIndex, &Slot)| {
            let is_wanted = places.contains(**index) && !room.intent.holds(&self.name, **index);
            slot.is_warm() && !slot.is_ending() && is_wanted
        };
        let waiting = self.slots.iter().filter(waits);
        let waiting: Vec<SlotIndex> = waiting.map(|(index, _)| *index).collect();
        for index in waiting {
            self.with_slot(index, room, Slot::stand_by);
        }
    }
}
