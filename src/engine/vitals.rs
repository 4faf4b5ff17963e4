//! Is it ready, is it well: probes, watchdog, and what the worker says of itself.

use crate::{
    config::spec::{ProbeKind, ReadySpec},
    engine::{
        effect::{Effect, Ending, ProbeAim, ProbeTarget, What},
        event::Note,
        slot::{Desk, Slot, State},
        spawn::{self, EXTEND_STEP_MAX, Fill},
    },
    id::Generation,
    time::{Moment, Span},
    wire::{Op, TaskKind},
};

/// Of a worker's STATUS= so many bytes are kept.
const STATUS_MAX: usize = 256;

/// Probes and watchdog of a living worker. Not kept: they get a full period after a change of supervisor.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Vitals {
    pub(super) probe_at: Option<Moment>,
    /// A probe is on its way since then.
    pub(super) asked: Option<Moment>,
    pub(super) passes: u32,
    pub(super) fails: u32,
    pub(super) watchdog_at: Option<Moment>,
}

impl Slot {
    pub(super) fn reset_vitals(&mut self, desk: &mut Desk<'_>) {
        self.vitals = Vitals::default();
        let spec = desk.spec;
        match self.state {
            State::Starting { .. } => match &spec.ready {
                ReadySpec::Probe(_) => self.vitals.probe_at = Some(desk.now),
                ReadySpec::Delay(delay) => {
                    let since = self.process.map_or(desk.now, |alive| alive.since);
                    self.vitals.probe_at = Some(since.after(*delay));
                }
                ReadySpec::Spawned | ReadySpec::Notify => {}
            },
            State::Running { .. } => {
                self.vitals.probe_at = spec
                    .health
                    .probe
                    .as_ref()
                    .map(|probe| desk.now.after(probe.interval));
                self.vitals.watchdog_at = spec.health.watchdog.map(|period| desk.now.after(period));
            }
            State::Vacant
            | State::Preparing(_)
            | State::Spawning
            | State::Deregistering { .. }
            | State::PreStop { .. }
            | State::Draining { .. }
            | State::Killing { .. }
            | State::Clearing { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Done => {}
        }
    }

    pub(super) fn forget_vitals(&mut self) {
        self.vitals = Vitals::default();
    }

    /// Its live settings changed: probes and watchdog follow the new ones.
    pub(super) fn respecified(&mut self, desk: &mut Desk<'_>) {
        self.reset_vitals(desk);
        if self.process.is_some() {
            desk.out.keeper(Op::Stop {
                key: desk.key(),
                stop: spawn::stop_record(desk.spec),
            });
        }
    }

    /// A probe's answer.
    pub(super) fn probed(
        &mut self,
        generation: Generation,
        result: Result<(), String>,
        desk: &mut Desk<'_>,
    ) {
        if generation != self.generation {
            return;
        }
        let Some(asked) = self.vitals.asked.take() else {
            return;
        };
        let (probe, starting) = match (&self.state, &desk.spec.ready) {
            (State::Starting { .. }, ReadySpec::Probe(probe)) => (probe, true),
            (State::Running { .. }, _) => match &desk.spec.health.probe {
                Some(probe) => (probe, false),
                None => return,
            },
            _ => return,
        };
        self.vitals.probe_at = Some(desk.now.after(probe.interval));
        let (pass, fail) = (probe.pass, probe.fail);
        desk.out.list.push(Effect::Probed {
            fleet: desk.worker.fleet.clone(),
            aim: if starting {
                ProbeAim::Ready
            } else {
                ProbeAim::Health
            },
            took: desk.now.since(asked),
            passed: result.is_ok(),
        });
        match result {
            Ok(()) => {
                self.vitals.fails = 0;
                self.vitals.passes = self.vitals.passes.saturating_add(1);
                if starting && self.vitals.passes >= pass {
                    self.ready(desk);
                }
            }
            Err(why) => {
                self.vitals.passes = 0;
                self.vitals.fails = self.vitals.fails.saturating_add(1);
                if !starting {
                    desk.record(
                        self.generation,
                        What::ProbeFailed {
                            why,
                            times: self.vitals.fails,
                        },
                    );
                    if self.vitals.fails >= fail {
                        self.end_unwell(Ending::Unhealthy, desk);
                    }
                }
            }
        }
    }

    pub(super) fn end_unwell(&mut self, ending: Ending, desk: &mut Desk<'_>) {
        if desk.may_end_unwell {
            return self.stop(ending, desk);
        }
        self.vitals.fails = 0;
        self.vitals.watchdog_at = desk
            .spec
            .health
            .watchdog
            .map(|period| desk.now.after(period));
        desk.record(
            self.generation,
            What::RestartWithheld {
                cap: desk.spec.health.restarts_per_minute,
            },
        );
    }

    /// The worker said something.
    pub(super) fn noted(&mut self, generation: Generation, note: Note, desk: &mut Desk<'_>) {
        if generation != self.generation {
            desk.record(generation, What::OldNews);
            return;
        }
        match note {
            Note::Ready => match self.state {
                State::Starting { .. } if desk.spec.ready == ReadySpec::Notify => self.ready(desk),
                State::Running { ready: false, .. } => {
                    self.state = State::Running {
                        ready: true,
                        since: desk.now,
                    }
                }
                _ => {}
            },
            Note::Stopping => {
                if let State::Running { ready: true, since } = self.state {
                    self.state = State::Running {
                        ready: false,
                        since,
                    };
                    desk.record(self.generation, What::NotReady);
                }
            }
            Note::Watchdog => {
                if self.vitals.watchdog_at.is_some() {
                    self.vitals.watchdog_at = desk
                        .spec
                        .health
                        .watchdog
                        .map(|period| desk.now.after(period));
                }
            }
            Note::WatchdogTrigger => {
                if matches!(self.state, State::Running { .. })
                    && desk.spec.health.watchdog.is_some()
                {
                    self.end_unwell(Ending::Watchdog, desk);
                }
            }
            Note::Extend(span) => self.extend(span.min(EXTEND_STEP_MAX), desk),
            Note::Status(mut text) => {
                let end = (0..=STATUS_MAX.min(text.len()))
                    .rev()
                    .find(|n| text.is_char_boundary(*n))
                    .unwrap_or(0);
                text.truncate(end);
                self.said = text;
            }
            Note::Nonsense(text) => {
                self.meter.fit(generation);
                // Whoever says it will say it again.
                if !std::mem::replace(&mut self.meter.doubted, true) {
                    desk.record(generation, What::NotBelieved { text });
                }
            }
            Note::Busy(_) | Note::Inflight(_) | Note::Queue(_) | Note::Done(_) => {
                self.meter.fit(generation);
                match note {
                    Note::Busy(share) => self.meter.busy = Some(share),
                    Note::Inflight(count) => self.meter.inflight = Some(count),
                    Note::Queue(length) => self.meter.queue = Some(length),
                    Note::Done(count) => self.meter.has_done(count, desk.now),
                    _ => {}
                }
            }
        }
    }

    pub(super) fn extend(&mut self, span: Span, desk: &mut Desk<'_>) {
        let asked = desk.now.after(span);
        match self.state {
            State::Draining { kill_at, cap } if asked > kill_at => {
                let kill_at = asked.min(cap).max(kill_at);
                self.state = State::Draining { kill_at, cap };
                desk.record(
                    self.generation,
                    What::Extended {
                        grace: desk.now.until(kill_at),
                    },
                );
            }
            State::Starting { until } if asked > until => {
                let born = self.process.map_or(desk.now, |alive| alive.since);
                let cap = born.after(desk.spec.stop.extend_max.max(desk.spec.start.timeout));
                self.state = State::Starting {
                    until: asked.min(cap).max(until),
                };
            }
            _ => {}
        }
    }

    pub(super) fn ask(&mut self, desk: &mut Desk<'_>) {
        let spec = desk.spec;
        let (probe, kind) = match (&self.state, &spec.ready) {
            (State::Starting { .. }, ReadySpec::Probe(probe)) => (probe, TaskKind::ReadyProbe),
            (State::Starting { .. }, ReadySpec::Delay(_)) => return self.ready(desk),
            (State::Running { .. }, _) => match &spec.health.probe {
                Some(probe) => (probe, TaskKind::HealthProbe),
                None => return self.forget_vitals(),
            },
            _ => return self.forget_vitals(),
        };
        self.vitals.asked = Some(desk.now);
        let fill = Fill::new(&desk.worker, spec, desk.facts);
        let target = match &probe.kind {
            ProbeKind::Exec(hook) => return desk.run_probe(kind, hook),
            ProbeKind::Tcp(address) => ProbeTarget::Tcp(fill.put(address)),
            ProbeKind::Http { address, path } => ProbeTarget::Http {
                address: fill.put(address),
                path: fill.put(path),
            },
        };
        let (worker, generation, timeout) = (desk.worker.clone(), self.generation, probe.timeout);
        desk.out.list.push(Effect::Probe {
            worker,
            generation,
            target,
            timeout,
        });
    }
}
