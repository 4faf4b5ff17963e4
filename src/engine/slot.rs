//! The life of one worker. The chart is in `engine/mod.rs`; this file is its table of (state, event).

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{FleetSpec, HookSpec, ReadySpec},
    engine::{
        cron::Occasion,
        effect::{Effect, Effects, Ending, Subject, What},
        gate::{Gate, Kept},
        jitter::Jitter,
        meter::Meter,
        restart::Restart,
        spawn::{self, Facts},
        vitals::Vitals,
    },
    id::{Generation, Revision, WorkerId},
    time::{Clocks, Moment, Span},
    wire::{
        Alive, Containment, ExitRecord, ExitStatus, Header, Op, Process, RowKey, SpawnSpec, Target,
        TaskKind,
    },
};

/// A hook has a row of its own each time.
const FIRST: Generation = Generation(1);

/// SIGKILL was sent and something is still there: said again, and said to people, this often.
pub(super) const KILL_AGAIN: Span = Span::secs(5);
/// Reading environment files may take so long.
const ENV_PATIENCE: Span = Span::secs(10);

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
    /// Its lock, if it needs one.
    pub(super) gate: Gate,
    /// This generation was started without its lock, and has not been told that it is had.
    pub(super) stands_by: bool,
    /// The process, while there is one.
    #[serde(skip)]
    pub(super) process: Option<Alive>,
    /// Its `pre_stop` hook is there, and needs its lock, whatever has become of the worker.
    #[serde(skip)]
    pub(super) says_farewell: bool,
    /// Probe and watchdog; they get a full period after a change of supervisor.
    #[serde(skip)]
    pub(super) vitals: Vitals,
    /// How busy it is.
    #[serde(skip)]
    pub(super) meter: Meter,
    /// What its cgroup was said to weigh, and of which generation.
    #[serde(skip)]
    pub(super) weight: Option<(Generation, u32)>,
    /// STATUS= of the worker.
    #[serde(skip)]
    pub(super) said: String,
}

/// What a slot works with during one step.
pub(super) struct Desk<'a> {
    pub(super) now: Moment,
    /// The same on both clocks.
    pub(super) clocks: Clocks,
    pub(super) worker: WorkerId,
    pub(super) spec: &'a FleetSpec,
    pub(super) facts: &'a Facts,
    pub(super) jitter: &'a mut Jitter,
    pub(super) out: &'a mut Effects,
    /// The run of a job that this is about.
    pub(super) occasion: Option<Occasion>,
    /// Does the fleet's cap allow another restart for health's sake?
    pub(super) may_end_unwell: bool,
}

impl Desk<'_> {
    pub(super) fn key(&self) -> RowKey {
        RowKey::Slot(self.worker.clone())
    }

    pub(super) fn task(&self, kind: TaskKind) -> RowKey {
        RowKey::Task(self.worker.clone(), kind)
    }

    pub(super) fn record(&mut self, generation: Generation, what: What) {
        self.out.record(
            self.now,
            Subject::Worker(self.worker.clone(), generation),
            what,
        );
    }

    /// Has a probe made.
    pub(super) fn run_probe(&mut self, kind: TaskKind, probe: &HookSpec) {
        let spec = spawn::helper(&self.worker, self.spec, self.facts, self.occasion, probe);
        self.run_task(kind, probe.timeout, spec);
    }

    fn run_task(&mut self, kind: TaskKind, timeout: Span, spec: SpawnSpec) {
        let op = Op::Spawn {
            key: self.task(kind),
            after: Generation::default(),
            body: Vec::new(),
            stop: spawn::stop_record(self.spec),
            deadline: Some(timeout),
            spec: Box::new(spec),
        };
        self.out.keeper(op);
    }
}

impl Slot {
    /// Will nobody be started in it by itself any more?
    pub(super) fn is_through(&self) -> bool {
        matches!(self.state, State::Failed { retry: None } | State::Done)
    }

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
        matches!(self.state, State::Running { ready: true, .. }) && !self.stands_by
    }

    /// Is there, or will there presently be, something of it that needs its lock, if it has one?
    pub(super) fn leads(&self) -> bool {
        self.is_live() && !self.stands_by
    }

    /// Is there a worker that waits for its lock?
    pub(super) fn is_warm(&self) -> bool {
        self.is_live() && self.stands_by
    }

    /// Does it wait for its lock, with nothing there that should be?
    pub(super) fn waits_cold(&self, spec: &FleetSpec) -> bool {
        let may_be_empty = !spec.is_warm() || self.state == State::Vacant;
        self.gate.waits() && !self.is_live() && may_be_empty
    }

    /// Does it end what it has, told to stop or about to be?
    pub(super) fn is_leaving(&self) -> bool {
        matches!(
            self.state,
            State::Deregistering { .. } | State::PreStop { .. } | State::Draining { .. }
        )
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

    pub(super) fn run_hook(&mut self, kind: TaskKind, hook: &HookSpec, desk: &mut Desk<'_>) {
        let spec = spawn::hook(
            &desk.worker,
            desk.spec,
            desk.facts,
            (&self.gate, kind),
            desk.occasion,
            hook,
        );
        desk.run_task(kind, hook.timeout, spec);
        self.says_farewell |= kind == TaskKind::PreStop && self.gate.sought().is_some();
    }

    /// SIGKILL to a hook, if it is there.
    pub(super) fn kill_hook(&self, kind: TaskKind, desk: &mut Desk<'_>) {
        let key = desk.task(kind);
        if self.gate.lease_spec().is_some() {
            desk.out.list.push(Effect::KillByHand(key.clone(), FIRST));
        }
        desk.out.keeper(Op::Kill {
            key,
            generation: FIRST,
            body: Vec::new(),
        });
    }

    /// Is anything there that needs its lock?
    pub(super) fn needs_lock(&self) -> bool {
        self.leads() || self.says_farewell
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
        self.stands_by = self.is_to_stand_by(desk);
        self.said.clear();
        match desk.spec.process.pre_start.clone() {
            Some(hook) => {
                self.state = State::Preparing(Preparing::Hook);
                self.run_hook(TaskKind::PreStart, &hook, desk);
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
        self.stands_by = self.is_to_stand_by(desk);
        // A job's new settings are for its next run.
        let began_without = desk.spec.cron.is_some() && self.gate.sought().is_none();
        let needs_lock = desk.spec.singleton.is_some() && !self.stands_by && !began_without;
        if needs_lock && !self.gate.is_open() {
            // It was to stand by when it was begun, and is not any more.
            self.state = State::Vacant;
            return;
        }
        self.state = State::Spawning;
        desk.out.keeper(Op::Spawn {
            key: desk.key(),
            after: self.generation,
            body: Vec::new(),
            stop: spawn::stop_record(desk.spec),
            deadline: None,
            spec: Box::new(spawn::worker(
                &desk.worker,
                desk.spec,
                desk.facts,
                (&self.gate, self.stands_by),
                desk.occasion,
                extra,
            )),
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

    /// After a supervisor's death: its lock, if the keeper has it, and the hooks that run before and after it. Headers come as events.
    pub(super) fn take_back(
        &mut self,
        header: &Header,
        (prepares, leaves): (bool, bool),
        held: Option<Kept>,
        desk: &mut Desk<'_>,
    ) {
        self.says_farewell = leaves && (self.gate.sought().is_some() || held.is_some());
        // The dead one had begun a start of which the row does not say, or is not believed: it is called off, and needs its lock until then.
        if prepares && !self.is_live() {
            self.kill_hook(TaskKind::PreStart, desk);
            // Of a job it is no run, and what is there counts as one.
            if desk.spec.cron.is_none() {
                self.state = State::Preparing(Preparing::Abandoned);
            }
        }
        self.resume_gate(held, desk);
        self.resume(header, (prepares, leaves), desk);
    }

    /// Asks again for what only the dead supervisor was waiting for.
    fn resume(&mut self, header: &Header, (prepares, leaves): (bool, bool), desk: &mut Desk<'_>) {
        match self.state {
            State::Preparing(Preparing::Hook) if !prepares => self.restart_preparation(desk),
            State::Preparing(Preparing::Environment { .. }) => self.read_environment(desk),
            State::Preparing(Preparing::Abandoned) if !prepares => self.state = State::Vacant,
            State::Spawning
                if header.process == Process::Vacant && header.generation == self.generation =>
            {
                self.read_environment(desk);
            }
            State::PreStop { .. } if !leaves => self.signal_stop(desk),
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
                self.adopt(header.generation, &record, desk);
                self.leader_ended(record, desk);
            }
            Process::Gone(record) => {
                self.adopt(header.generation, &record, desk);
                self.gone(record, desk);
            }
        }
    }

    /// A generation that began and ended between two tellings began all the same.
    fn adopt(&mut self, generation: Generation, record: &ExitRecord, desk: &mut Desk<'_>) {
        if generation > self.generation {
            self.generation = generation;
            if record.pid != 0 {
                desk.record(generation, What::Started { pid: record.pid });
            }
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

    pub(super) fn ready(&mut self, desk: &mut Desk<'_>) {
        if !matches!(self.state, State::Starting { .. }) {
            return;
        }
        let born = self.process.map_or(desk.now, |alive| alive.since);
        // A run of a job serves nobody.
        if desk.spec.cron.is_none() {
            desk.record(
                self.generation,
                What::Ready {
                    after: desk.now.since(born),
                },
            );
        }
        self.state = State::Running {
            ready: true,
            since: desk.now,
        };
        self.reset_vitals(desk);
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
        if kind == TaskKind::PreStop {
            self.says_farewell = false;
        }
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
            // Its fleet's.
            (TaskKind::PublishCheck | TaskKind::PublishReload | TaskKind::ScaleSource, _) => {}
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
        let probe = self.vitals.probe_at.filter(|_| self.vitals.asked.is_none());
        let gate = [self.lease_deadline(), self.yields_until()];
        [own, probe, self.vitals.watchdog_at]
            .into_iter()
            .chain(gate)
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
        self.tend_lease(desk);
        if self.yields_until().is_some_and(|until| until <= now) {
            self.end_yielding(desk);
        }
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
                let again = self.kill_again(since, desk);
                self.state = State::Killing { since, again };
            }
            State::Clearing { since, again } if again <= now => {
                let again = self.kill_again(since, desk);
                self.state = State::Clearing { since, again };
            }
            _ => {}
        }
        if self.vitals.watchdog_at.is_some_and(|at| at <= now) {
            self.end_unwell(Ending::Watchdog, desk);
        }
        if self.vitals.probe_at.is_some_and(|at| at <= now) && self.vitals.asked.is_none() {
            self.ask(desk);
        }
    }

    /// The keeper said no to a spawn: it kills everything, and nothing comes of this one.
    pub(super) fn refused(&mut self, after: Generation) {
        if self.state == State::Spawning && self.generation == after {
            self.state = State::Vacant;
            self.ending = None;
        }
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
            debug_assert!(kill_at <= cap, "a drain past its cap");
        }
    }
}
