//! An open gate that lasts only from one renewal to the next. The keeper kills at the last confirmed deadline whatever becomes of us;
//! here is decided when to ask for a later one, and when to stop asking.
//!
//! ```text
//!            renewed: ask the keeper ──▶ armed: it stands
//!                 ▲                          │ t_term of what stands has come
//!                 └───── renewed ────────────┤
//!                                            ▼
//!                       lapsing: SIGTERM, no renewal counts any more ──t_kill──▶ SIGKILL, by us and by the keeper
//! ```

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::LeaseSpec,
    engine::{
        effect::{Effect, Ending, What},
        slot::{Desk, Slot, State},
    },
    time::{Clocks, Moment, Span},
    wire::SeatState,
};

/// What is heard of the lease of one holder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LeaseNews {
    /// It was renewed, certainly, by a request that was sent at this moment.
    Renewed {
        /// When.
        sent: Clocks,
        /// For how long it is good, in the eyes of whoever renewed it.
        ttl: Span,
    },
    /// It is certainly gone.
    Gone(String),
    /// What the keeper says of its deadline.
    Seat {
        /// When.
        until: Clocks,
        /// Whether it stands.
        state: SeatState,
    },
}

/// The lease of an open gate.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Lease {
    /// Nothing can save it any more; its worker is to be gone by its deadline.
    lapsing: bool,
    /// The deadline that stands.
    #[serde(skip)]
    stands: Option<Clocks>,
    /// The latest that the keeper was asked for.
    #[serde(skip)]
    asked: Option<Clocks>,
    /// When somebody looked whether what stands has come.
    #[serde(skip)]
    looked: Clocks,
    /// Whoever may have been made, and of whom nobody told, was killed when it came.
    #[serde(skip)]
    struck: bool,
}

/// What comes when time passes.
#[derive(Clone, Copy, Debug)]
enum Due {
    /// It is not renewed in time.
    Term,
    /// It is over, and the keeper may not have killed.
    Kill,
}

impl Lease {
    /// A lease as the keeper has it, for a supervisor that takes over.
    pub(super) fn adopt(&mut self, stands: Option<Clocks>, now: Clocks) {
        self.stands = stands;
        self.asked = stands;
        self.looked = now;
    }

    pub(super) fn is_lapsing(&self) -> bool {
        self.lapsing
    }

    /// The deadline that stands.
    pub(super) fn stands(&self) -> Option<Clocks> {
        self.stands
    }

    /// When its worker must begin to end, if nothing is heard before.
    fn term_at(&self, spec: &LeaseSpec) -> Option<Clocks> {
        let stands = self.stands.filter(|_| !self.lapsing)?;
        Some(stands.before(spec.grace))
    }

    /// Is there time enough to start somebody? Another renewal must fit before the end begins.
    fn may_start(&self, spec: &LeaseSpec, now: Clocks) -> bool {
        let term = self.term_at(spec);
        term.is_some_and(|at| now.until(at) >= spec.renew_every())
    }
}

impl Slot {
    /// May it start, as far as time goes?
    pub(super) fn lease_allows(&self, now: Clocks) -> bool {
        let spec = self.gate.lease_spec();
        spec.is_none_or(|spec| self.gate.lease.may_start(spec, now))
    }

    /// When [`Slot::tend_lease`] has something to do.
    pub(super) fn lease_deadline(&self) -> Option<Moment> {
        let lease = &self.gate.lease;
        self.lease_due().map(|(_, due)| lease.looked.next_look(due))
    }

    /// What is to be done to it next, and when.
    fn lease_due(&self) -> Option<(Due, Clocks)> {
        let spec = self.gate.lease_spec()?;
        let lease = &self.gate.lease;
        if let Some(term) = lease.term_at(spec) {
            return Some((Due::Term, term));
        }
        let may_live = match self.state {
            State::Draining { .. } => self.leads(),
            State::Spawning => self.leads() && !lease.struck,
            _ => false,
        };
        let ends = lease.stands.filter(|_| may_live)?;
        Some((Due::Kill, ends))
    }

    /// SIGKILL must have been sent by then, as far as can be told now.
    pub(super) fn lease_ends(&self, now: Clocks) -> Option<Moment> {
        let left = self.gate.lease.stands.map(|stands| now.until(stands));
        left.map(|left| now.boottime.after(left))
    }

    /// For how long a leader that ended then ran on when its lease was over, if it did.
    pub(super) fn outlived(&self, ended: Moment, now: Clocks) -> Option<Span> {
        let margin = self.gate.lease_spec()?.kill_margin;
        let over = self.gate.lease.stands?.after(margin);
        let ended = now.before(now.boottime.since(ended));
        let by = ended.boottime.since(over.boottime);
        Some(by.max(ended.raw.since(over.raw))).filter(|by| *by > Span::ZERO)
    }

    /// Something is heard of its lease.
    pub(super) fn lease_changed(&mut self, fence: u64, news: LeaseNews, desk: &mut Desk<'_>) {
        let Some(spec) = self.gate.lease_spec().cloned() else {
            return;
        };
        // A renewal of the holder before us, answered late, is no renewal of ours.
        if self.gate.fence() != Some(fence) {
            return;
        }
        let is_of_cluster = self.gate.ticket.is_some();
        let lease = &mut self.gate.lease;
        match news {
            LeaseNews::Renewed { sent, ttl } => {
                let until = sent.after(spec.kill_after(ttl));
                let margin = is_of_cluster.then_some(spec.kill_margin);
                let later = lease.asked.is_none_or(|asked| until.is_after(asked));
                if later && !lease.lapsing {
                    lease.asked = Some(until);
                    desk.out.list.push(Effect::Arm {
                        worker: desk.worker.clone(),
                        fence,
                        until,
                        margin,
                    });
                }
            }
            LeaseNews::Gone(why) => self.lose_gate(why, desk),
            LeaseNews::Seat {
                until,
                state: SeatState::Armed,
                ..
            } => {
                if !lease.lapsing {
                    lease.stands = Some(until);
                    lease.looked = desk.clocks;
                }
            }
            // Refused: another renewal asks again, and if that is refused too, what stands runs out.
            LeaseNews::Seat {
                state: SeatState::Free,
                ..
            } => lease.asked = lease.stands,
            LeaseNews::Seat {
                state: SeatState::Fired { late },
                ..
            } => {
                desk.record(self.generation, What::DeadlineCame { late });
                self.lose_gate("its deadline came".to_owned(), desk);
            }
        }
    }

    /// Does what its deadline wants, by whichever clock that comes first.
    pub(super) fn tend_lease(&mut self, desk: &mut Desk<'_>) {
        self.gate.lease.looked = desk.clocks;
        match self.lease_due() {
            Some((_, at)) if !desk.clocks.has_passed(at) => {}
            Some((Due::Term, _)) => self.lapse(desk),
            Some((Due::Kill, _)) if self.state == State::Spawning => {
                self.gate.lease.struck = true;
                let unheard = self.generation.next();
                desk.out.list.push(Effect::KillByHand(desk.key(), unheard));
            }
            Some((Due::Kill, _)) => self.send_kill("its grace is over", desk),
            None => {}
        }
    }

    /// It was not renewed in time: the worker is told to end at once, and has until the deadline.
    fn lapse(&mut self, desk: &mut Desk<'_>) {
        self.gate.lease.lapsing = true;
        desk.record(self.generation, What::LeaseLapsed);
        if !self.leads() {
            return;
        }
        match self.state {
            State::Vacant
            | State::Clearing { .. }
            | State::Killing { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Done => {}
            State::Preparing(_) => self.stop(Ending::LeaseLapsed, desk),
            State::Spawning => self.ending = Some(Ending::LeaseLapsed),
            // No deregister delay and no hook: they may take longer than is left.
            State::Starting { .. }
            | State::Running { .. }
            | State::Deregistering { .. }
            | State::PreStop { .. }
            | State::Draining { .. } => {
                self.ending = Some(Ending::LeaseLapsed);
                self.end_pre_stop(desk);
                self.signal_stop(desk);
            }
        }
    }
}
