//! The life of one worker. The chart is in `engine/mod.rs`; this file is its table of (state, event).

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{FleetSpec, ProbeKind, ReadySpec},
    engine::{
        effect::{Effect, Effects, Ending, ProbeTarget, Subject, What},
        event::Note,
        jitter::Jitter,
        restart::{Next, Restart},
        spawn::{self, EXTEND_STEP_MAX, Facts, Fill},
    },
    id::{Generation, Revision, WorkerId},
    time::{Moment, Span},
    wire::{
        Alive, Containment, ExitRecord, ExitStatus, Header, Op, Process, RowKey, Target, TaskKind,
    },
};

/// SIGKILL was sent and something is still there: said again, and said to people, this often.
const KILL_AGAIN: Span = Span::secs(5);
/// Reading environment files may take so long.
const ENV_PATIENCE: Span = Span::secs(10);
/// Of a worker's STATUS= so many bytes are kept.
const STATUS_MAX: usize = 256;

/// Where a slot is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum State {
    /// Nothing there, nothing pending.
    #[default]
    Vacant,
    /// Its pre-start hook runs, or its environment files are being read.
    Preparing(Preparing),
    /// The keeper was asked to start it.
    Spawning,
    /// Its program runs and is not ready yet.
    Starting {
        /// Ready by then, or it counts as failed.
        until: Moment,
    },
    /// It is, or was, ready.
    Running {
        /// Takes work.
        ready: bool,
        /// Ready since.
        since: Moment,
    },
    /// Not ready for anybody; the world gets time to notice.
    Deregistering {
        /// The stop goes on then.
        until: Moment,
    },
    /// Its pre-stop hook runs.
    PreStop {
        /// The stop goes on then, whatever the hook does.
        until: Moment,
    },
    /// Its stop signal is sent.
    Draining {
        /// SIGKILL then.
        kill_at: Moment,
        /// The worker may ask for more, up to here.
        cap: Moment,
    },
    /// SIGKILL is sent to everything.
    Killing {
        /// Since.
        since: Moment,
        /// Say it again then.
        again: Moment,
    },
    /// The leader is gone; its containment is not empty yet.
    Clearing {
        /// Since.
        since: Moment,
        /// Say it again then.
        again: Moment,
    },
    /// To be started again.
    BackingOff {
        /// Not before.
        until: Moment,
    },
    /// It failed too often.
    Failed {
        /// Tried again then; none: when an operator says so.
        retry: Option<Moment>,
    },
    /// It ended and its policy wants no other.
    Done,
}

/// What a start waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Preparing {
    /// Its hook.
    Hook,
    /// Its environment files.
    Environment {
        /// No longer than this.
        until: Moment,
    },
    /// The start was called off; the hook is being killed.
    Abandoned,
}

/// How the last generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct LastExit {
    pub(super) status: ExitStatus,
    pub(super) at: Moment,
    pub(super) ending: Option<Ending>,
}

/// One slot's whole memory; what is not skipped is its row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Slot {
    pub(super) state: State,
    /// The newest generation known.
    pub(super) generation: Generation,
    /// What the current generation was spawned from.
    pub(super) revision: Revision,
    /// Which round of `restart` it has seen.
    pub(super) round: u64,
    pub(super) restart: Restart,
    /// Restarts that nobody wanted.
    pub(super) restarts: u64,
    pub(super) last_exit: Option<LastExit>,
    /// Why the current generation is being ended, if it is.
    pub(super) ending: Option<Ending>,
    /// The process, while there is one.
    #[serde(skip)]
    pub(super) process: Option<Alive>,
    /// Probe and watchdog; they get a full period after a change of supervisor.
    #[serde(skip)]
    vitals: Vitals,
    /// STATUS= of the worker.
    #[serde(skip)]
    pub(super) said: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Vitals {
    probe_at: Option<Moment>,
    asking: bool,
    passes: u32,
    fails: u32,
    watchdog_at: Option<Moment>,
}

/// What a slot works with during one step.
pub(super) struct Desk<'a> {
    pub(super) now: Moment,
    pub(super) worker: WorkerId,
    pub(super) spec: &'a FleetSpec,
    pub(super) facts: &'a Facts,
    pub(super) jitter: &'a mut Jitter,
    pub(super) out: &'a mut Effects,
    /// Does the fleet's cap allow another restart for health's sake?
    pub(super) may_end_unwell: bool,
}

impl Desk<'_> {
    fn key(&self) -> RowKey {
        RowKey::Slot(self.worker.clone())
    }

    fn task(&self, kind: TaskKind) -> RowKey {
        RowKey::Task(self.worker.clone(), kind)
    }

    fn record(&mut self, generation: Generation, what: What) {
        self.out.record(
            self.now,
            Subject::Worker(self.worker.clone(), generation),
            what,
        );
    }

    fn run_helper(&mut self, kind: TaskKind, hook: &crate::config::spec::HookSpec) {
        let op = Op::Spawn {
            key: self.task(kind),
            after: Generation::default(),
            body: Vec::new(),
            stop: spawn::stop_record(self.spec),
            deadline: Some(hook.timeout),
            spec: Box::new(spawn::helper(&self.worker, self.spec, self.facts, hook)),
        };
        self.out.keeper(op);
    }
}

impl Slot {
    /// Is there, or will there presently be, a process or a helper of it?
    pub(super) fn is_live(&self) -> bool {
        match self.state {
            State::Vacant | State::BackingOff { .. } | State::Failed { .. } | State::Done => false,
            State::Preparing(_)
            | State::Spawning
            | State::Starting { .. }
            | State::Running { .. }
            | State::Deregistering { .. }
            | State::PreStop { .. }
            | State::Draining { .. }
            | State::Killing { .. }
            | State::Clearing { .. } => true,
        }
    }

    /// Does it take work?
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.state, State::Running { ready: true, .. })
    }

    /// Between the decision to start it and its being ready.
    pub(super) fn is_starting(&self) -> bool {
        matches!(
            self.state,
            State::Preparing(_) | State::Spawning | State::Starting { .. }
        )
    }

    /// Is it on its way out?
    pub(super) fn is_ending(&self) -> bool {
        self.is_live() && (self.ending.is_some() || matches!(self.state, State::Clearing { .. }))
    }

    /// Begins a generation from `spec`. Only from a state without a process.
    pub(super) fn start(&mut self, round: u64, desk: &mut Desk<'_>) {
        debug_assert!(
            !self.is_live(),
            "{} started in {:?}",
            desk.worker,
            self.state
        );
        self.revision = desk.spec.revision;
        self.round = round;
        self.ending = None;
        self.said.clear();
        match desk.spec.process.pre_start.clone() {
            Some(hook) => {
                self.state = State::Preparing(Preparing::Hook);
                desk.run_helper(TaskKind::PreStart, &hook);
            }
            None => self.read_environment(desk),
        }
    }

    fn read_environment(&mut self, desk: &mut Desk<'_>) {
        let files = spawn::env_files(desk.spec);
        if files.is_empty() {
            return self.spawn(Vec::new(), desk);
        }
        self.state = State::Preparing(Preparing::Environment {
            until: desk.now.after(ENV_PATIENCE),
        });
        let effect = Effect::ReadEnv {
            worker: desk.worker.clone(),
            after: self.generation,
            files: files.to_vec(),
        };
        desk.out.list.push(effect);
    }

    fn spawn(&mut self, extra: Vec<(String, String)>, desk: &mut Desk<'_>) {
        self.state = State::Spawning;
        desk.out.keeper(Op::Spawn {
            key: desk.key(),
            after: self.generation,
            body: Vec::new(),
            stop: spawn::stop_record(desk.spec),
            deadline: None,
            spec: Box::new(spawn::worker(&desk.worker, desk.spec, desk.facts, extra)),
        });
    }

    /// The environment files were read.
    pub(super) fn environment_read(
        &mut self,
        after: Generation,
        result: Result<Vec<(String, String)>, String>,
        desk: &mut Desk<'_>,
    ) {
        if after != self.generation
            || !matches!(self.state, State::Preparing(Preparing::Environment { .. }))
        {
            return;
        }
        match result {
            Ok(extra) => self.spawn(extra, desk),
            Err(why) => self.not_prepared(why, desk),
        }
    }

    fn not_prepared(&mut self, why: String, desk: &mut Desk<'_>) {
        desk.record(self.generation.next(), What::NotPrepared { why });
        let status = ExitStatus::SpawnFailed {
            step: crate::wire::SpawnStep::Prepare,
            errno: libc::ECANCELED,
        };
        self.last_exit = Some(LastExit {
            status,
            at: desk.now,
            ending: None,
        });
        self.ending = None;
        self.decide_next(status, false, Span::ZERO, desk);
    }

    /// After a supervisor's death: asks again for what only the dead one was waiting for. Headers come as events.
    pub(super) fn resume(&mut self, header: &Header, hook_runs: bool, desk: &mut Desk<'_>) {
        match self.state {
            State::Preparing(Preparing::Hook) if !hook_runs => self.restart_preparation(desk),
            State::Preparing(Preparing::Environment { .. }) => self.read_environment(desk),
            State::Preparing(Preparing::Abandoned) if !hook_runs => self.state = State::Vacant,
            State::Spawning
                if header.process == Process::Vacant && header.generation == self.generation =>
            {
                self.read_environment(desk);
            }
            State::PreStop { .. } if !hook_runs => self.signal_stop(desk),
            State::Starting { .. } | State::Running { .. } => {
                if let Process::Alive(alive) = header.process {
                    self.process = Some(alive);
                    self.reset_vitals(desk);
                }
            }
            State::Deregistering { .. }
            | State::PreStop { .. }
            | State::Draining { .. }
            | State::Killing { .. } => {
                if let Process::Alive(alive) = header.process {
                    self.process = Some(alive);
                }
            }
            State::Vacant
            | State::Preparing(Preparing::Hook | Preparing::Abandoned)
            | State::Spawning
            | State::Clearing { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Done => {}
        }
    }

    fn restart_preparation(&mut self, desk: &mut Desk<'_>) {
        self.state = State::Vacant;
        self.start(self.round, desk);
    }

    /// What can be said of a slot whose row was lost: the process is there, and its readiness is believed, since it says so only once.
    pub(super) fn recovered(header: &Header, revision: Revision, now: Moment) -> Self {
        let mut slot = Self {
            generation: header.generation,
            revision,
            ..Self::default()
        };
        slot.state = match header.process {
            Process::Vacant | Process::Gone(_) => State::Vacant,
            Process::Alive(alive) => State::Running {
                ready: true,
                since: alive.since,
            },
            Process::Clearing(_) => State::Clearing {
                since: now,
                again: now.after(KILL_AGAIN),
            },
        };
        slot
    }

    /// News of the process. Old generations' news changes nothing.
    pub(super) fn process_changed(&mut self, header: &Header, desk: &mut Desk<'_>) {
        if header.generation < self.generation {
            desk.record(header.generation, What::OldNews);
            return;
        }
        match header.process {
            Process::Vacant => {}
            Process::Alive(alive) => self.alive(header.generation, alive, desk),
            Process::Clearing(record) => {
                self.adopt(header.generation);
                self.leader_ended(record, desk);
            }
            Process::Gone(record) => {
                self.adopt(header.generation);
                self.gone(record, desk);
            }
        }
    }

    /// A generation that began and ended between two tellings began all the same.
    fn adopt(&mut self, generation: Generation) {
        if generation > self.generation {
            self.generation = generation;
            self.process = None;
            self.forget_vitals();
        }
    }

    fn alive(&mut self, generation: Generation, alive: Alive, desk: &mut Desk<'_>) {
        if generation == self.generation && self.state != State::Spawning {
            self.process = Some(alive);
            return;
        }
        self.generation = generation;
        self.process = Some(alive);
        desk.record(generation, What::Started { pid: alive.pid });
        self.state = State::Starting {
            until: alive.since.after(desk.spec.start.timeout),
        };
        self.reset_vitals(desk);
        if self.ending.is_some() {
            // It was to be stopped while it was being born.
            return self.signal_stop(desk);
        }
        if desk.spec.ready == ReadySpec::Spawned {
            self.ready(desk);
        }
    }

    fn reset_vitals(&mut self, desk: &mut Desk<'_>) {
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

    fn forget_vitals(&mut self) {
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

    fn ready(&mut self, desk: &mut Desk<'_>) {
        if !matches!(self.state, State::Starting { .. }) {
            return;
        }
        let born = self.process.map_or(desk.now, |alive| alive.since);
        desk.record(
            self.generation,
            What::Ready {
                after: desk.now.since(born),
            },
        );
        self.state = State::Running {
            ready: true,
            since: desk.now,
        };
        self.reset_vitals(desk);
    }

    /// Ends the generation, drain first. A later reason replaces an earlier one, so that an operator's word wins over a probe's.
    pub(super) fn stop(&mut self, ending: Ending, desk: &mut Desk<'_>) {
        match self.state {
            State::Vacant | State::BackingOff { .. } | State::Failed { .. } | State::Done => {
                self.state = State::Vacant
            }
            State::Preparing(Preparing::Environment { .. }) => self.state = State::Vacant,
            State::Preparing(Preparing::Hook) => {
                let (key, generation) = (desk.task(TaskKind::PreStart), Generation(1));
                desk.out.keeper(Op::Kill {
                    key,
                    generation,
                    body: Vec::new(),
                });
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

    fn run_pre_stop(&mut self, desk: &mut Desk<'_>) {
        match desk.spec.process.pre_stop.clone() {
            Some(hook) => {
                self.state = State::PreStop {
                    until: desk.now.after(hook.timeout).after(Span::secs(1)),
                };
                desk.run_helper(TaskKind::PreStop, &hook);
            }
            None => self.signal_stop(desk),
        }
    }

    fn signal_stop(&mut self, desk: &mut Desk<'_>) {
        self.forget_vitals();
        let stop = &desk.spec.stop;
        let (signal, to, timeout) = (stop.signal, stop.to, stop.timeout);
        self.state = State::Draining {
            kill_at: desk.now.after(timeout),
            cap: desk.now.after(stop.extend_max),
        };
        let ending = self.ending.unwrap_or(Ending::Shutdown);
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

    fn send_kill(&mut self, reason: &'static str, desk: &mut Desk<'_>) {
        self.forget_vitals();
        self.state = State::Killing {
            since: desk.now,
            again: desk.now.after(KILL_AGAIN),
        };
        desk.record(self.generation, What::Killed { reason });
        desk.out.keeper(Op::Kill {
            key: desk.key(),
            generation: self.generation,
            body: Vec::new(),
        });
    }

    fn leader_ended(&mut self, record: ExitRecord, desk: &mut Desk<'_>) {
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

    fn gone(&mut self, record: ExitRecord, desk: &mut Desk<'_>) {
        let uptime = record.at.since(record.since);
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

    fn decide_next(&mut self, status: ExitStatus, forced: bool, uptime: Span, desk: &mut Desk<'_>) {
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

    /// The node has no restart to spare before this.
    pub(super) fn wait_for_bucket(&mut self, until: Moment) {
        self.state = State::BackingOff { until };
    }

    /// A helper ended, or was refused.
    pub(super) fn helper_ended(
        &mut self,
        kind: TaskKind,
        status: Result<ExitStatus, &'static str>,
        desk: &mut Desk<'_>,
    ) {
        let result = match status {
            Ok(ExitStatus::Code(0)) => Ok(()),
            Ok(status) => Err(format!(
                "{} {}",
                kind.word(),
                crate::engine::effect::ExitWords(status)
            )),
            Err(why) => Err(format!("{}: {why}", kind.word())),
        };
        match (kind, &self.state) {
            (TaskKind::PreStart, State::Preparing(Preparing::Abandoned)) => {
                self.state = State::Vacant
            }
            (TaskKind::PreStart, State::Preparing(Preparing::Hook)) => {
                let aborts = desk
                    .spec
                    .process
                    .pre_start
                    .as_ref()
                    .is_none_or(|hook| hook.abort);
                match result {
                    Err(why) if aborts => self.not_prepared(why, desk),
                    Ok(()) | Err(_) => self.read_environment(desk),
                }
            }
            (TaskKind::PreStop, State::PreStop { .. }) => self.signal_stop(desk),
            (TaskKind::ReadyProbe | TaskKind::HealthProbe, _) => {
                self.probed(self.generation, result, desk)
            }
            // The slot has moved on without it.
            (TaskKind::PreStart | TaskKind::PreStop, _) => {}
        }
    }

    /// A probe's answer.
    pub(super) fn probed(
        &mut self,
        generation: Generation,
        result: Result<(), String>,
        desk: &mut Desk<'_>,
    ) {
        if generation != self.generation || !self.vitals.asking {
            return;
        }
        self.vitals.asking = false;
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

    fn end_unwell(&mut self, ending: Ending, desk: &mut Desk<'_>) {
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
        }
    }

    fn extend(&mut self, span: Span, desk: &mut Desk<'_>) {
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

    /// The next moment at which [`Slot::tick`] has something to do. Starting again is the fleet's.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let own = match self.state {
            State::Preparing(Preparing::Environment { until })
            | State::Starting { until }
            | State::Deregistering { until }
            | State::PreStop { until } => Some(until),
            State::Draining { kill_at, .. } => Some(kill_at),
            State::Killing { again, .. } | State::Clearing { again, .. } => Some(again),
            State::Vacant
            | State::Preparing(Preparing::Hook | Preparing::Abandoned)
            | State::Spawning
            | State::Running { .. }
            | State::BackingOff { .. }
            | State::Failed { .. }
            | State::Done => None,
        };
        let probe = self.vitals.probe_at.filter(|_| !self.vitals.asking);
        [own, probe, self.vitals.watchdog_at]
            .into_iter()
            .flatten()
            .min()
    }

    /// When the fleet may start it again.
    pub(super) fn start_at(&self) -> Option<Moment> {
        match self.state {
            State::BackingOff { until } => Some(until),
            State::Failed { retry } => retry,
            _ => None,
        }
    }

    /// Does what is due.
    pub(super) fn tick(&mut self, desk: &mut Desk<'_>) {
        let now = desk.now;
        match self.state {
            State::Preparing(Preparing::Environment { until }) if until <= now => {
                self.not_prepared(
                    "its environment files could not be read in 10 s".to_owned(),
                    desk,
                );
            }
            State::Starting { until } if until <= now => self.stop(Ending::StartTimeout, desk),
            State::Deregistering { until } if until <= now => self.run_pre_stop(desk),
            State::PreStop { until } if until <= now => self.signal_stop(desk),
            State::Draining { kill_at, .. } if kill_at <= now => {
                self.send_kill("its grace is over", desk)
            }
            State::Killing { since, again } if again <= now => {
                desk.record(
                    self.generation,
                    What::StillThere {
                        since: now.since(since),
                    },
                );
                self.state = State::Killing {
                    since,
                    again: now.after(KILL_AGAIN),
                };
                desk.out.keeper(Op::Kill {
                    key: desk.key(),
                    generation: self.generation,
                    body: Vec::new(),
                });
            }
            State::Clearing { since, again } if again <= now => {
                desk.record(
                    self.generation,
                    What::StillThere {
                        since: now.since(since),
                    },
                );
                self.state = State::Clearing {
                    since,
                    again: now.after(KILL_AGAIN),
                };
                desk.out.keeper(Op::Kill {
                    key: desk.key(),
                    generation: self.generation,
                    body: Vec::new(),
                });
            }
            _ => {}
        }
        if self.vitals.watchdog_at.is_some_and(|at| at <= now) {
            self.end_unwell(Ending::Watchdog, desk);
        }
        if self.vitals.probe_at.is_some_and(|at| at <= now) && !self.vitals.asking {
            self.ask(desk);
        }
    }

    fn ask(&mut self, desk: &mut Desk<'_>) {
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
        self.vitals.asking = true;
        let fill = Fill::new(&desk.worker, spec, desk.facts);
        let target = match &probe.kind {
            ProbeKind::Exec(hook) => return desk.run_helper(kind, hook),
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

    /// Sends a signal to the leader, if one is there.
    pub(super) fn pass_signal(&self, signal: i32, desk: &mut Desk<'_>) -> bool {
        let there = self.process.is_some() && !matches!(self.state, State::Clearing { .. });
        if there {
            let (key, generation) = (desk.key(), self.generation);
            desk.out.keeper(Op::Signal {
                key,
                generation,
                signal,
                to: Target::Leader,
                body: Vec::new(),
            });
        }
        there
    }

    /// An operator wants it to run: whatever held it back is forgotten.
    pub(super) fn forgive(&mut self) {
        self.restart.forgive();
        if matches!(
            self.state,
            State::BackingOff { .. } | State::Failed { .. } | State::Done
        ) {
            self.state = State::Vacant;
        }
    }

    /// The word in status.
    pub(super) fn word(&self) -> &'static str {
        match self.state {
            State::Vacant => "vacant",
            State::Preparing(_) | State::Spawning | State::Starting { .. } => "starting",
            State::Running { .. } => "running",
            State::Deregistering { .. } | State::PreStop { .. } | State::Draining { .. } => {
                "draining"
            }
            State::Killing { .. } => "killing",
            State::Clearing { .. } => "clearing",
            State::BackingOff { .. } => "backing-off",
            State::Failed { .. } => "failed",
            State::Done => "done",
        }
    }

    /// What holds it together, while there is a process.
    pub(super) fn containment(&self) -> Option<Containment> {
        self.process.map(|alive| alive.containment)
    }

    /// Asserts what must be and what must not.
    pub(super) fn check_invariants(&self) {
        debug_assert!(
            self.ending.is_none() || self.is_live(),
            "an ending without a process in {:?}",
            self.state
        );
        debug_assert!(
            self.process.is_none() || self.is_live(),
            "a process in {:?}",
            self.state
        );
        if matches!(
            self.state,
            State::Draining { .. } | State::Deregistering { .. } | State::PreStop { .. }
        ) {
            debug_assert!(
                self.ending.is_some(),
                "ending for no reason in {:?}",
                self.state
            );
            debug_assert!(
                self.vitals == Vitals::default(),
                "probes of a worker on its way out"
            );
        }
        if let State::Draining { kill_at, cap } = self.state {
            debug_assert!(kill_at <= cap.max(kill_at), "a drain past its cap");
        }
    }
}
