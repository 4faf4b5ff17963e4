//! How a generation ends: politely, then not; and what comes after it.

use crate::{
    engine::{
        effect::{Effect, Ending, What},
        meter::Meter,
        restart::Next,
        slot::{Desk, KILL_AGAIN, LastExit, Preparing, Slot, State},
    },
    time::{Moment, Span},
    wire::{ExitRecord, ExitStatus, Op, TaskKind},
};

impl Slot {
    /// Ends the generation, drain first. A later reason replaces an earlier one, so that an operator's word wins over a probe's.
    pub(super) fn stop(&mut self, ending: Ending, desk: &mut Desk<'_>) {
        match self.state {
            State::Vacant | State::BackingOff { .. } | State::Failed { .. } | State::Done => {
                self.state = State::Vacant
            }
            State::Preparing(Preparing::Environment { .. }) => self.state = State::Vacant,
            State::Preparing(Preparing::Hook) => {
                self.kill_hook(TaskKind::PreStart, desk);
                self.state = State::Preparing(Preparing::Abandoned);
            }
            State::Preparing(Preparing::Abandoned) => {}
            State::Spawning | State::Clearing { .. } => self.ending = Some(ending),
            State::Starting { .. } | State::Running { .. } => {
                self.ending = Some(ending);
                self.forget_vitals();
                let polite = ending.on_purpose() && self.is_ready();
                let delay = desk.spec.stop.deregister_delay;
                if polite && delay > Span::ZERO {
                    self.state = State::Deregistering {
                        until: desk.now.after(delay),
                    };
                } else {
                    self.run_pre_stop(desk);
                }
            }
            State::Deregistering { .. }
            | State::PreStop { .. }
            | State::Draining { .. }
            | State::Killing { .. } => {
                if self
                    .ending
                    .is_none_or(|before| !before.on_purpose() || ending.on_purpose())
                {
                    self.ending = Some(ending);
                }
            }
        }
    }

    pub(super) fn run_pre_stop(&mut self, desk: &mut Desk<'_>) {
        // Of one that stands by there is nothing to be undone.
        let hook = desk.spec.process.pre_stop.clone();
        match hook.filter(|_| self.leads()) {
            Some(hook) => {
                self.state = State::PreStop {
                    until: desk.now.after(hook.timeout).after(Span::secs(1)),
                };
                // A supervisor that knows little of its past may find it there.
                if !self.says_farewell {
                    self.run_hook(TaskKind::PreStop, &hook, desk);
                }
            }
            None => self.signal_stop(desk),
        }
    }

    pub(super) fn signal_stop(&mut self, desk: &mut Desk<'_>) {
        self.forget_vitals();
        let stop = &desk.spec.stop;
        let (signal, to) = (stop.signal, stop.to);
        let ending = self.ending.unwrap_or(Ending::Shutdown);
        // A graceful stop may take longer than a lease, which is renewed meanwhile; one that lapses ends when it ends.
        let end = self
            .lease_ends(desk.clocks)
            .filter(|_| self.gate.lease.is_lapsing());
        let within = |at: Moment| end.map_or(at, |end| at.min(end));
        let kill_at = within(desk.now.after(stop.timeout));
        self.state = State::Draining {
            kill_at,
            cap: within(desk.now.after(stop.extend_max.max(stop.timeout))),
        };
        let timeout = desk.now.until(kill_at);
        desk.record(
            self.generation,
            What::Stopping {
                ending,
                signal,
                grace: timeout,
            },
        );
        // SIGCONT after it: a worker that was stopped by SIGSTOP must get to see its stop signal (systemd.kill(5) does the same).
        for number in [signal, libc::SIGCONT] {
            desk.out.keeper(Op::Signal {
                key: desk.key(),
                generation: self.generation,
                signal: number,
                to,
                body: Vec::new(),
            });
        }
    }

    /// What follows gives the lock to somebody else, or has no time left: the hook must not be there then.
    pub(super) fn end_pre_stop(&self, desk: &mut Desk<'_>) {
        if self.gate.sought().is_some() && self.says_farewell {
            self.kill_hook(TaskKind::PreStop, desk);
        }
    }

    /// SIGKILL to everything, now.
    pub(super) fn kill(&mut self, ending: Ending, reason: &'static str, desk: &mut Desk<'_>) {
        match self.state {
            State::Starting { .. }
            | State::Running { .. }
            | State::Deregistering { .. }
            | State::PreStop { .. }
            | State::Draining { .. } => {
                self.ending = Some(
                    self.ending
                        .filter(|before| before.on_purpose())
                        .unwrap_or(ending),
                );
                self.send_kill(reason, desk);
            }
            State::Spawning | State::Clearing { .. } => self.ending = Some(ending),
            State::Killing { .. } => {}
            State::Vacant
            | State::Preparing(_)
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Done => self.stop(ending, desk),
        }
    }

    pub(super) fn send_kill(&mut self, reason: &'static str, desk: &mut Desk<'_>) {
        self.forget_vitals();
        let drained = matches!(self.state, State::Draining { .. });
        self.state = State::Killing {
            since: desk.now,
            again: desk.now.after(KILL_AGAIN),
        };
        desk.record(self.generation, What::Killed { reason, drained });
        self.end_pre_stop(desk);
        if self.gate.lease_spec().is_some() {
            desk.out
                .list
                .push(Effect::KillByHand(desk.key(), self.generation));
        }
        desk.out.keeper(Op::Kill {
            key: desk.key(),
            generation: self.generation,
            body: Vec::new(),
        });
    }

    /// Something outlived its SIGKILL: it is sent again, and people hear of it. Returns when to look next.
    pub(super) fn kill_again(&self, since: Moment, desk: &mut Desk<'_>) -> Moment {
        let since = desk.now.since(since);
        desk.record(self.generation, What::StillThere { since });
        desk.out.keeper(Op::Kill {
            key: desk.key(),
            generation: self.generation,
            body: Vec::new(),
        });
        desk.now.after(KILL_AGAIN)
    }

    pub(super) fn leader_ended(&mut self, record: ExitRecord, desk: &mut Desk<'_>) {
        if !matches!(self.state, State::Clearing { .. }) {
            self.forget_vitals();
            self.process = None;
            self.last_exit = Some(LastExit {
                status: record.status,
                at: record.at,
                ending: self.ending,
            });
            self.state = State::Clearing {
                since: desk.now,
                again: desk.now.after(KILL_AGAIN),
            };
        }
    }

    pub(super) fn gone(&mut self, record: ExitRecord, desk: &mut Desk<'_>) {
        self.meter = Meter::default();
        let uptime = record.at.since(record.since);
        if let Some(by) = self.outlived(record.at, desk.clocks) {
            desk.record(self.generation, What::Outlived { by });
        }
        self.last_exit = Some(LastExit {
            status: record.status,
            at: record.at,
            ending: self.ending,
        });
        desk.record(
            self.generation,
            What::Ended {
                status: record.status,
                ending: self.ending,
                uptime,
            },
        );
        self.process = None;
        self.said.clear();
        self.forget_vitals();
        self.end_pre_stop(desk);
        desk.out.keeper(Op::Forget {
            key: desk.key(),
            generation: self.generation,
            body: Vec::new(),
        });
        match self.ending.take() {
            Some(ending) if ending.on_purpose() => self.state = State::Vacant,
            forced => self.decide_next(record.status, forced.is_some(), uptime, desk),
        }
    }

    pub(super) fn decide_next(
        &mut self,
        status: ExitStatus,
        forced: bool,
        uptime: Span,
        desk: &mut Desk<'_>,
    ) {
        if desk.spec.cron.is_some() {
            // Whether a run is tried again is its job's to say.
            self.state = State::Done;
            return;
        }
        match self.restart.after_exit(
            &desk.spec.restart,
            status,
            forced,
            uptime,
            desk.now,
            desk.jitter,
        ) {
            Next::Pause(pause) => {
                self.restarts += 1;
                desk.record(
                    self.generation,
                    What::BackingOff {
                        pause,
                        failures: self.restart.streak,
                    },
                );
                self.state = State::BackingOff {
                    until: desk.now.after(pause),
                };
            }
            Next::Failed(retry) => {
                desk.record(self.generation, What::Failed { retry });
                self.state = State::Failed {
                    retry: retry.map(|pause| desk.now.after(pause)),
                };
            }
            Next::Done => {
                desk.record(self.generation, What::Done);
                self.state = State::Done;
            }
        }
    }
}
