//! A singleton's worker runs only while its gate is open: while the keeper holds its lock. The lock is taken and given back by the
//! driver; here is decided when.
//!
//! ```text
//!   shut ──somebody is to be started──▶ sought ──taken──▶ open ──nobody is left and none is to start──▶ shut
//!                                          └──not wanted any more──▶ shut     └──the file was replaced──▶ lost: killed, then shut
//! ```

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{LeaseSpec, SingletonSpec},
    engine::{
        effect::{Effect, Ending, What},
        fleet::{Fleet, Room, Stance},
        lease::Lease,
        slot::{Desk, Slot, State},
        status::GateStatus,
    },
    id::SlotIndex,
    time::Clocks,
    wire::PageSpec,
};

/// The role of a worker whose gate is open.
const HOLDER: u64 = 1;

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

/// What became of a gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum GateNews {
    /// The lock was taken, and nothing of its last holder is left.
    Opened(Pass),
    /// It cannot be had now, and why; it is tried on.
    Waits(String),
    /// It excludes nobody any more.
    Lost(String),
}

/// One slot's gate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Gate {
    /// The lock that was asked for; none: shut.
    sought: Option<SingletonSpec>,
    /// How long it lasts, if it must be renewed.
    pub(super) lease: Lease,
    /// Open.
    #[serde(skip)]
    pass: Option<Pass>,
    #[serde(skip)]
    is_lost: bool,
    /// Why it is not open yet.
    #[serde(skip)]
    waits: Option<String>,
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
            epoch: 0,
            role: HOLDER,
            timed: self.lease_spec().is_some(),
        })
    }

    /// Names us as its holder, while it is open.
    pub(super) fn fence(&self) -> Option<u64> {
        self.pass.as_ref().map(|pass| pass.fence)
    }

    /// How it must be renewed, if it must.
    pub(super) fn lease_spec(&self) -> Option<&LeaseSpec> {
        self.sought.as_ref()?.lease.as_ref()
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

    /// For people; none while it is shut.
    pub(super) fn status(&self) -> Option<GateStatus> {
        self.sought.as_ref().map(|_| GateStatus {
            pass: self.pass.clone(),
            waits: self.waits.clone(),
            until: self.lease.stands().map(|stands| stands.boottime),
        })
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
            desk.out.list.push(Effect::SeekGate {
                worker: desk.worker.clone(),
                spec: spec.clone(),
            });
        }
        let open = self.gate.pass.is_some() && !self.gate.is_lost;
        open && self.lease_allows(desk.now)
    }

    /// News from whoever takes locks for us.
    pub(super) fn gate_changed(&mut self, news: GateNews, desk: &mut Desk<'_>) {
        match news {
            // Too late: it was called off meanwhile.
            GateNews::Opened(_) if self.gate.sought.is_none() => self.shut_gate(desk),
            GateNews::Opened(pass) => {
                desk.record(self.generation, What::GateOpened { fence: pass.fence });
                self.gate.pass = Some(pass);
                self.gate.waits = None;
            }
            GateNews::Waits(why) => {
                if self.gate.waits() && self.gate.waits.as_ref() != Some(&why) {
                    desk.record(self.generation, What::GateWaits { why: why.clone() });
                    self.gate.waits = Some(why);
                }
            }
            GateNews::Lost(why) => self.lose_gate(why, desk),
        }
    }

    /// It excludes nobody any more; whoever runs under it is ended when the fleet looks next.
    pub(super) fn lose_gate(&mut self, why: String, desk: &mut Desk<'_>) {
        if self.gate.pass.is_some() && !self.gate.is_lost {
            desk.record(self.generation, What::GateLost { why });
            self.gate.is_lost = true;
        }
    }

    /// Gives the lock back, or asks for it no longer. Nothing of the worker may be there.
    fn shut_gate(&mut self, desk: &mut Desk<'_>) {
        debug_assert!(!self.is_live(), "{} gave its lock back alive", desk.worker);
        if self.gate.pass.is_some() {
            desk.record(self.generation, What::GateShut);
        }
        let fence = self
            .gate
            .fence()
            .filter(|_| self.gate.lease_spec().is_some());
        self.gate = Gate::default();
        desk.out.list.push(Effect::ShutGate(desk.worker.clone()));
        if let Some(fence) = fence {
            let worker = desk.worker.clone();
            desk.out.list.push(Effect::Disarm { worker, fence });
        }
    }

    /// After a supervisor's death: `kept` is what the keeper holds for it.
    pub(super) fn resume_gate(&mut self, kept: Option<Kept>, desk: &mut Desk<'_>) {
        match (&self.gate.sought, kept) {
            (None, None) => {}
            (Some(_), Some(kept)) => self.reopen(kept, desk),
            // Its row was lost, its process was not.
            (None, Some(kept)) if self.is_live() => {
                self.gate.sought = Some(desk.spec.singleton.clone().unwrap_or_default());
                self.reopen(kept, desk);
            }
            (None, Some(_)) => self.shut_gate(desk),
            (Some(spec), None) => {
                debug_assert!(!self.is_live(), "{} lives without its lock", desk.worker);
                desk.out.list.push(Effect::SeekGate {
                    worker: desk.worker.clone(),
                    spec: spec.clone(),
                });
            }
        }
    }

    fn reopen(&mut self, kept: Kept, desk: &mut Desk<'_>) {
        self.gate.pass = Some(kept.pass);
        self.gate.lease.adopt(kept.until);
        if self.gate.lease_spec().is_some() && kept.until.is_none() && self.is_live() {
            self.lose_gate("its deadline has passed".to_owned(), desk);
        }
        if let Some(why) = kept.lost {
            self.gate_changed(GateNews::Lost(why), desk);
        }
    }
}

impl Fleet {
    /// Gives back what nobody needs, and ends who runs without a lock.
    pub(super) fn tend_gates(&mut self, size: u32, stance: Stance, room: &mut Room<'_>) {
        let now = room.now;
        let is_wanted = |index: SlotIndex, slot: &Slot| {
            let stands = !slot.gate.is_lost && !slot.gate.lease.is_lapsing();
            let fits = slot.gate.sought == self.spec.singleton && stands;
            let here = !self.removed && index.0 < size && !room.intent.holds(&self.name, index);
            let starts = match slot.state {
                _ if self.spec.cron.is_some() => {
                    let cron = self.body.cron.as_ref();
                    cron.is_some_and(|cron| cron.needs_gate())
                }
                State::Vacant => stance == Stance::Keep,
                State::BackingOff { .. } => !matches!(stance, Stance::Drain | Stance::Kill),
                // It failed: somebody else may do better, until it is tried again.
                _ => slot.start_at().is_some_and(|at| at <= now),
            };
            fits && here && starts
        };
        let sought = self
            .slots
            .iter()
            .filter(|(_, slot)| slot.gate.sought.is_some());
        let mut lost = Vec::new();
        let mut unwanted = Vec::new();
        for (index, slot) in sought {
            match slot.is_live() {
                true if slot.gate.is_lost => lost.push(*index),
                true => {}
                false if is_wanted(*index, slot) => {}
                false => unwanted.push(*index),
            }
        }
        for index in lost {
            self.with_slot(index, room, |slot, desk| {
                slot.kill(Ending::LockLost, "its lock is gone", desk);
            });
        }
        for index in unwanted {
            self.with_slot(index, room, Slot::shut_gate);
        }
    }
}
