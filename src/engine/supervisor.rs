//! Routes events to fleets and slots, keeps the rows, answers operators. It knows no slot's states by name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, diff, spec::FleetSpec},
    engine::{
        command::{By, Command, Denial, Reply, Selected, select},
        effect::{Effect, Effects, Subject, Transition, What},
        event::{Event, Purpose},
        fleet::{Fleet, FleetBody, Room, Stance},
        intent::{Hold, Intent, Size},
        jitter::Jitter,
        restart::Bucket,
        rollout::Rollout,
        slot::{Slot, State},
        spawn::Facts,
        status::{ExitView, FleetStatus, Status, WorkerStatus},
    },
    exit::ExitCode,
    id::{FleetName, Generation, RequestId, SlotIndex, WorkerId},
    time::Moment,
    wire::{Asked, BODY_MAX, ExitStatus, Header, Op, Process, RowKey, Stopping, TaskKind},
};

/// Version of the bodies; a body begins with it.
const BODY_VERSION: u8 = 1;

/// What the daemon remembers of itself; its row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct NodeBody {
    bucket: Bucket,
    /// Reloads asked for by signal and carried out.
    reloads: u64,
    /// Reopenings likewise.
    reopens: u64,
}

/// What a new supervisor starts from.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The accepted configuration.
    pub config: Config,
    /// What changed and removed fleets were before.
    pub previous: BTreeMap<FleetName, FleetSpec>,
    /// The operator's word.
    pub intent: Intent,
    /// What spawns must know.
    pub facts: Facts,
    /// What was asked of the daemon.
    pub asked: Asked,
    /// The keeper's rows.
    pub rows: Vec<(RowKey, Header, Vec<u8>)>,
    /// Do not read row bodies.
    pub recover: bool,
    /// Seed of the jitter.
    pub seed: u64,
}

/// A change of intent that is being written to disk.
#[derive(Clone, Debug)]
struct Saving {
    request: RequestId,
    intent: Intent,
    names: Vec<String>,
    records: Vec<(Subject, What)>,
    forgive: Vec<Selected>,
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Supervisor {
    config: Config,
    fleets: BTreeMap<FleetName, Fleet>,
    node: NodeBody,
    asked: Asked,
    intent: Intent,
    facts: Facts,
    jitter: Jitter,
    /// Bodies as the keeper has them.
    stored: BTreeMap<RowKey, Vec<u8>>,
    touched: BTreeSet<RowKey>,
    saving: Option<Saving>,
    waiting: VecDeque<(RequestId, Command)>,
    reading: bool,
    rejected: Option<String>,
    said_stopping: Stopping,
    exited: bool,
}

impl Supervisor {
    /// Rebuilds everything from the rows and goes on where the last one was; with no rows it begins.
    pub fn new(origin: Origin, now: Moment, out: &mut Effects) -> Self {
        let Origin {
            config,
            previous,
            intent,
            facts,
            asked,
            rows,
            recover,
            seed,
        } = origin;
        let node = NodeBody {
            bucket: Bucket::full(config.node.restart_burst, now),
            reloads: asked.reloads,
            reopens: asked.reopens,
        };
        let mut fleets: BTreeMap<FleetName, Fleet> = config
            .fleets
            .iter()
            .map(|(name, spec)| (name.clone(), Fleet::new(name.clone(), spec.clone())))
            .collect();
        for (name, spec) in previous {
            match fleets.get_mut(&name) {
                Some(fleet) => fleet.previous = Some(spec),
                None => {
                    let mut fleet = Fleet::new(name.clone(), spec);
                    fleet.removed = true;
                    fleets.insert(name, fleet);
                }
            }
        }
        let mut supervisor = Self {
            config,
            fleets,
            node,
            asked,
            intent,
            facts,
            jitter: Jitter::new(seed),
            stored: BTreeMap::new(),
            touched: BTreeSet::new(),
            saving: None,
            waiting: VecDeque::new(),
            reading: false,
            rejected: None,
            said_stopping: Stopping::No,
            exited: false,
        };
        supervisor.take_over(rows, recover, now, out);
        supervisor.finish_step(now, out);
        supervisor
    }

    fn take_over(
        &mut self,
        rows: Vec<(RowKey, Header, Vec<u8>)>,
        recover: bool,
        now: Moment,
        out: &mut Effects,
    ) {
        for (key, header, body) in &rows {
            self.stored.insert(key.clone(), body.clone());
            match key {
                RowKey::Node => {
                    if let Some(node) = decode(body).filter(|_| !recover) {
                        self.node = node;
                    }
                }
                RowKey::Fleet(name) => {
                    if let Some(fleet) = self.fleets.get_mut(name) {
                        fleet.body = decode::<FleetBody>(body)
                            .filter(|_| !recover)
                            .unwrap_or_default();
                    }
                }
                RowKey::Slot(worker) => {
                    self.take_over_slot(worker, header, body, recover, now, out)
                }
                RowKey::Task(..) => {}
            }
        }
        let workers = self.fleets.values().map(Fleet::live).sum();
        if !rows.is_empty() {
            out.record(now, Subject::Node, What::TookOver { workers });
        }
        let headers: BTreeMap<&RowKey, &Header> =
            rows.iter().map(|(key, header, _)| (key, header)).collect();
        for (key, header, _) in &rows {
            if let RowKey::Slot(worker) = key {
                let runs = |kind| headers.contains_key(&RowKey::Task(worker.clone(), kind));
                let hook_runs = runs(TaskKind::PreStart) || runs(TaskKind::PreStop);
                self.with_slot(worker, now, out, |slot, desk| {
                    slot.resume(header, hook_runs, desk)
                });
            }
        }
        self.rows_changed(
            rows.into_iter()
                .map(|(key, header, _)| (key, header))
                .collect(),
            now,
            out,
        );
    }

    fn take_over_slot(
        &mut self,
        worker: &WorkerId,
        header: &Header,
        body: &[u8],
        recover: bool,
        now: Moment,
        out: &mut Effects,
    ) {
        if !self.fleets.contains_key(&worker.fleet) {
            // Nothing says what it was: it is drained by its stop record and goes.
            let mut fleet = Fleet::new(worker.fleet.clone(), FleetSpec::unknown(&header.stop));
            fleet.removed = true;
            self.fleets.insert(worker.fleet.clone(), fleet);
        }
        let Some(fleet) = self.fleets.get_mut(&worker.fleet) else {
            return;
        };
        let slot = decode::<Slot>(body)
            .filter(|_| !recover)
            .unwrap_or_else(|| {
                out.record(
                    now,
                    Subject::Worker(worker.clone(), header.generation),
                    What::Recovered,
                );
                Slot::recovered(header, fleet.revision(), now)
            });
        fleet.slots.insert(worker.slot, slot);
    }

    /// Takes one event, decides, and appends what is to be done.
    pub fn step(&mut self, event: Event, now: Moment, out: &mut Effects) {
        match event {
            Event::Rows(rows) => self.rows_changed(rows, now, out),
            Event::Refused { key, after } => self.refused(&key, after, now, out),
            Event::Asked(asked) => self.asked = asked,
            Event::Note {
                worker,
                generation,
                note,
            } => {
                self.with_slot(&worker, now, out, |slot, desk| {
                    slot.noted(generation, note, desk)
                });
            }
            Event::Probed {
                worker,
                generation,
                result,
            } => {
                self.with_slot(&worker, now, out, |slot, desk| {
                    slot.probed(generation, result, desk)
                });
            }
            Event::EnvRead {
                worker,
                after,
                result,
            } => {
                self.with_slot(&worker, now, out, |slot, desk| {
                    slot.environment_read(after, result, desk)
                });
            }
            Event::Command { request, command } => self.command(request, command, now, out),
            Event::ConfigRead { purpose, result } => self.config_read(purpose, result, now, out),
            Event::IntentSaved { result } => self.intent_saved(result, now, out),
            Event::Tick => {}
        }
        self.finish_step(now, out);
    }

    /// When a `Tick` is due.
    pub fn deadline(&self) -> Option<Moment> {
        self.fleets.values().filter_map(Fleet::deadline).min()
    }

    /// The state of every slot that is due at `now`, for whoever looks into a deadline that is never met.
    pub fn overdue(&self, now: Moment) -> Vec<String> {
        let slots = self
            .fleets
            .values()
            .flat_map(|fleet| fleet.slots.values().map(move |slot| (fleet, slot)));
        let due = slots.filter(|(fleet, slot)| {
            let waits = [
                slot.deadline(),
                slot.start_at().filter(|at| *at > fleet.looked),
            ];
            waits.into_iter().flatten().any(|at| at <= now)
        });
        due.map(|(fleet, slot)| format!("{} {slot:?}", fleet.name))
            .collect()
    }

    /// Does the daemon stop, and how hard?
    pub fn stopping(&self) -> Stopping {
        self.asked.stopping
    }

    /// Was the newest reload refused?
    pub fn is_rejected(&self) -> bool {
        self.rejected.is_some()
    }

    /// The accepted configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    fn finish_step(&mut self, now: Moment, out: &mut Effects) {
        self.obey_signals(now, out);
        let names: Vec<FleetName> = self.fleets.keys().cloned().collect();
        // More than once: what one fleet reached may be what another waits for, and a rollback makes new things due.
        for _ in 0..4 {
            let before = (out.list.len(), self.touched.len());
            for name in &names {
                self.with_fleet(name, now, out, Fleet::tick);
            }
            for name in &names {
                let stance = self.stance(name);
                self.with_fleet(name, now, out, |fleet, room| fleet.reconcile(stance, room));
            }
            if before == (out.list.len(), self.touched.len()) {
                break;
            }
        }
        self.follow_rollbacks(out);
        self.drop_removed(out);
        self.send_rows(out);
        self.say_goodbye(out);
        self.check_invariants();
    }

    /// What the daemon as a whole wants of this fleet now.
    fn stance(&self, name: &FleetName) -> Stance {
        let Some(fleet) = self.fleets.get(name) else {
            return Stance::Keep;
        };
        match self.asked.stopping {
            Stopping::Kill => Stance::Kill,
            Stopping::Drain => {
                let turn = self
                    .fleets
                    .values()
                    .filter(|fleet| fleet.live() > 0)
                    .map(|fleet| fleet.spec.rank)
                    .max();
                if turn.is_none_or(|turn| fleet.spec.rank >= turn) {
                    Stance::Drain
                } else {
                    Stance::Closing
                }
            }
            Stopping::No if self.dependencies_met(fleet) => Stance::Keep,
            Stopping::No => Stance::Wait,
        }
    }

    fn dependencies_met(&self, fleet: &Fleet) -> bool {
        use crate::config::spec::AfterState;
        fleet.spec.after.iter().all(|(name, state)| {
            let Some(other) = self.fleets.get(name) else {
                return true;
            };
            let desired = other.desired(&self.intent);
            let reached = match state {
                AfterState::Ready => other.ready(),
                AfterState::Started => other
                    .slots
                    .values()
                    .filter(|slot| slot.process.is_some())
                    .count() as u32,
            };
            // A dependency that an operator holds is not there.
            reached >= desired && (desired > 0 || other.spec.workers == 0)
        })
    }

    /// Runs `work` on a fleet with everything it may need.
    fn with_fleet<R>(
        &mut self,
        name: &FleetName,
        now: Moment,
        out: &mut Effects,
        work: impl FnOnce(&mut Fleet, &mut Room<'_>) -> R,
    ) -> Option<R> {
        let mut room = Room {
            now,
            facts: &self.facts,
            jitter: &mut self.jitter,
            out,
            intent: &self.intent,
            bucket: &mut self.node.bucket,
            restart_rate: self.config.node.restart_rate,
            restart_burst: self.config.node.restart_burst,
            touched: &mut self.touched,
        };
        self.fleets
            .get_mut(name)
            .map(|fleet| work(fleet, &mut room))
    }

    fn with_slot(
        &mut self,
        worker: &WorkerId,
        now: Moment,
        out: &mut Effects,
        work: impl FnOnce(&mut Slot, &mut super::slot::Desk<'_>),
    ) {
        self.with_fleet(&worker.fleet, now, out, |fleet, room| {
            fleet.with_slot(worker.slot, room, work)
        });
    }

    fn rows_changed(&mut self, rows: Vec<(RowKey, Header)>, now: Moment, out: &mut Effects) {
        for (key, header) in rows {
            match key {
                RowKey::Slot(worker) => self.with_slot(&worker, now, out, |slot, desk| {
                    slot.process_changed(&header, desk)
                }),
                RowKey::Task(worker, kind) => {
                    if let Process::Gone(record) = header.process {
                        let key = RowKey::Task(worker.clone(), kind);
                        out.keeper(Op::Forget {
                            key: key.clone(),
                            generation: header.generation,
                            body: Vec::new(),
                        });
                        out.keeper(Op::Drop { key });
                        self.helper_ended(&worker, kind, Ok(record.status), now, out);
                    }
                }
                RowKey::Node | RowKey::Fleet(_) => {}
            }
        }
    }

    fn refused(&mut self, key: &RowKey, after: Generation, now: Moment, out: &mut Effects) {
        match key {
            RowKey::Task(worker, kind) => self.helper_ended(
                worker,
                *kind,
                Err("an earlier one is still running"),
                now,
                out,
            ),
            // The daemon kills everything; its slot learns from the row that nothing came of it.
            RowKey::Slot(worker) => self.with_slot(worker, now, out, |slot, _| {
                if slot.state == State::Spawning && slot.generation == after {
                    slot.state = State::Vacant;
                    slot.ending = None;
                }
            }),
            RowKey::Node | RowKey::Fleet(_) => {}
        }
    }

    fn helper_ended(
        &mut self,
        worker: &WorkerId,
        kind: TaskKind,
        status: Result<ExitStatus, &'static str>,
        now: Moment,
        out: &mut Effects,
    ) {
        self.with_slot(worker, now, out, |slot, desk| {
            slot.helper_ended(kind, status, desk)
        });
    }

    fn obey_signals(&mut self, now: Moment, out: &mut Effects) {
        if self.asked.stopping > self.said_stopping {
            self.said_stopping = self.asked.stopping;
            let what = What::ShuttingDown {
                now: self.asked.stopping == Stopping::Kill,
                by: self.asked.by,
            };
            out.record(now, Subject::Node, what);
        }
        if self.asked.reopens > self.node.reopens {
            self.node.reopens = self.asked.reopens;
            out.list.push(Effect::ReopenLogs);
        }
        let reload_due = self.asked.reloads > self.node.reloads && !self.reading;
        if reload_due && self.asked.stopping == Stopping::No {
            self.reading = true;
            out.list.push(Effect::ReadConfig(Purpose::Reload(None)));
        }
    }

    fn command(&mut self, request: RequestId, command: Command, now: Moment, out: &mut Effects) {
        let result = match command {
            Command::Start { .. } | Command::Stop { .. } | Command::Scale { .. }
                if self.saving.is_some() =>
            {
                self.waiting.push_back((request, command));
                return;
            }
            Command::Start { names, by } => self.start(request, &names, by, out),
            Command::Stop { names, by } => self.stop(request, &names, by, out),
            Command::Scale { fleet, workers, by } => self.scale(request, fleet, workers, by, out),
            Command::Restart { names } => self.restart(&names, now, out).map(Some),
            Command::Signal { names, signal } => self.signal(&names, signal, now, out).map(Some),
            Command::Reload => self.reload(request, out),
            Command::Plan => {
                out.list.push(Effect::ReadConfig(Purpose::Plan(request)));
                Ok(None)
            }
        };
        if let Some(reply) = result.transpose() {
            out.list.push(Effect::Reply { request, reply });
        }
    }

    fn selected(&self, names: &[String]) -> Result<Vec<Selected>, Denial> {
        let fleets: Vec<(FleetName, Vec<u32>)> = self
            .fleets
            .values()
            .map(|fleet| {
                let size = fleet.spec.workers.max(fleet.size(&self.intent));
                let slots: BTreeSet<u32> = (0..size)
                    .chain(
                        fleet
                            .slots
                            .iter()
                            .filter(|(_, s)| s.is_live())
                            .map(|(i, _)| i.0),
                    )
                    .collect();
                (fleet.name.clone(), slots.into_iter().collect())
            })
            .collect();
        select(names, &fleets)
    }

    fn not_stopping(&self) -> Result<(), Denial> {
        match self.asked.stopping {
            Stopping::No => Ok(()),
            Stopping::Drain | Stopping::Kill => Err(Denial::new(
                ExitCode::Conflict,
                "the daemon is shutting down",
            )),
        }
    }

    fn start(
        &mut self,
        request: RequestId,
        names: &[String],
        by: By,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        self.not_stopping()?;
        let selected = self.selected(names)?;
        let mut intent = self.intent.clone();
        let mut records = Vec::new();
        for one in &selected {
            let subject = match one {
                Selected::Fleet(fleet) => {
                    intent.release_fleet(fleet);
                    Subject::Fleet(fleet.clone())
                }
                Selected::Slot(worker) => {
                    if intent.fleets.contains_key(&worker.fleet) {
                        let why = format!(
                            "{} is held as a whole; start {} first",
                            worker.fleet, worker.fleet
                        );
                        return Err(Denial::new(ExitCode::Conflict, why));
                    }
                    intent.release_slot(worker);
                    Subject::Worker(worker.clone(), Generation::default())
                }
            };
            records.push((
                subject,
                What::Released {
                    who: by.who.clone(),
                },
            ));
        }
        if intent == self.intent {
            records.clear();
        }
        self.save(request, intent, records, selected, out)
    }

    fn stop(
        &mut self,
        request: RequestId,
        names: &[String],
        by: By,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        let selected = self.selected(names)?;
        let mut intent = self.intent.clone();
        let mut records = Vec::new();
        for one in &selected {
            let hold = Hold {
                who: by.who.clone(),
                when: by.when.clone(),
            };
            let (subject, new) = match one {
                Selected::Fleet(fleet) => {
                    let new = !intent.fleets.contains_key(fleet);
                    intent.fleets.entry(fleet.clone()).or_insert(hold);
                    (Subject::Fleet(fleet.clone()), new)
                }
                Selected::Slot(worker) => {
                    let new = !intent.holds(&worker.fleet, worker.slot);
                    if new {
                        intent.hold_slot(worker, hold);
                    }
                    (Subject::Worker(worker.clone(), Generation::default()), new)
                }
            };
            if new {
                records.push((
                    subject,
                    What::HeldBy {
                        who: by.who.clone(),
                    },
                ));
            }
        }
        if records.is_empty() {
            return Ok(Some(Reply::AlreadySo));
        }
        // What is told to stop is told to stop, not to be forgiven.
        let names: Vec<String> = selected.iter().map(name_of).collect();
        self.saving = Some(Saving {
            request,
            intent: intent.clone(),
            names,
            records,
            forgive: Vec::new(),
        });
        out.list.push(Effect::SaveIntent(intent));
        Ok(None)
    }

    fn scale(
        &mut self,
        request: RequestId,
        fleet: String,
        workers: Option<u32>,
        by: By,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        self.not_stopping()?;
        let selected = self.selected(&[fleet])?;
        let mut intent = self.intent.clone();
        let mut records = Vec::new();
        for one in &selected {
            let Selected::Fleet(name) = one else {
                return Err(Denial::new(
                    ExitCode::Usage,
                    "only a whole fleet has a size; name it without a slot",
                ));
            };
            self.check_size(name, workers)?;
            match workers {
                Some(workers) => {
                    let size = Size {
                        workers,
                        who: by.who.clone(),
                        when: by.when.clone(),
                    };
                    intent.sizes.insert(name.clone(), size);
                }
                None => {
                    intent.sizes.remove(name);
                }
            }
            records.push((
                Subject::Fleet(name.clone()),
                What::Scaled {
                    workers,
                    who: by.who.clone(),
                },
            ));
        }
        let unchanged = selected.iter().all(|one| match one {
            Selected::Fleet(name) => {
                intent.sizes.get(name).map(|s| s.workers)
                    == self.intent.sizes.get(name).map(|s| s.workers)
            }
            Selected::Slot(_) => false,
        });
        if unchanged {
            return Ok(Some(Reply::AlreadySo));
        }
        self.save(request, intent, records, Vec::new(), out)
    }

    fn check_size(&self, name: &FleetName, workers: Option<u32>) -> Result<(), Denial> {
        let (Some(workers), Some(fleet)) = (workers, self.fleets.get(name)) else {
            return Ok(());
        };
        if workers > 20_000 {
            let why = format!("{workers} workers are more than a fleet can have (20000)");
            return Err(Denial::new(ExitCode::Usage, why));
        }
        let surge = fleet.spec.rollout.max_surge;
        if let Some((low, high)) = fleet.spec.process.port_range
            && workers.saturating_add(surge) > u32::from(high - low) + 1
        {
            let have = u32::from(high - low) + 1;
            let why = format!(
                "{name} has {have} ports (port_range) for {workers} workers and {surge} more while it rolls"
            );
            return Err(Denial::new(ExitCode::Conflict, why));
        }
        Ok(())
    }

    /// Has an intent written to disk; it takes effect when that is done.
    fn save(
        &mut self,
        request: RequestId,
        intent: Intent,
        records: Vec<(Subject, What)>,
        forgive: Vec<Selected>,
        out: &mut Effects,
    ) -> Result<Option<Reply>, Denial> {
        let names = if forgive.is_empty() {
            records
                .iter()
                .map(|(subject, _)| subject.to_string())
                .collect()
        } else {
            forgive.iter().map(name_of).collect()
        };
        out.list.push(Effect::SaveIntent(intent.clone()));
        self.saving = Some(Saving {
            request,
            intent,
            names,
            records,
            forgive,
        });
        Ok(None)
    }

    fn intent_saved(&mut self, result: Result<(), String>, now: Moment, out: &mut Effects) {
        let Some(saving) = self.saving.take() else {
            return;
        };
        let reply = match result {
            Ok(()) => {
                self.intent = saving.intent;
                for (subject, what) in saving.records {
                    out.list.push(Effect::Record(Transition {
                        at: now,
                        subject,
                        what,
                    }));
                }
                self.forgive(&saving.forgive, now, out);
                Ok(Reply::Begun {
                    names: saving.names,
                })
            }
            Err(why) => Err(Denial::new(
                ExitCode::Failed,
                format!("nothing was changed, because it could not be stored: {why}"),
            )),
        };
        out.list.push(Effect::Reply {
            request: saving.request,
            reply,
        });
        while self.saving.is_none() {
            let Some((request, command)) = self.waiting.pop_front() else {
                return;
            };
            self.command(request, command, now, out);
        }
    }

    fn forgive(&mut self, selected: &[Selected], now: Moment, out: &mut Effects) {
        for one in selected {
            match one {
                Selected::Slot(worker) => {
                    self.with_slot(worker, now, out, |slot, _| slot.forgive())
                }
                Selected::Fleet(name) => {
                    let slots = self
                        .fleets
                        .get(name)
                        .map(|fleet| fleet.slots.keys().copied().collect::<Vec<_>>());
                    for slot in slots.unwrap_or_default() {
                        self.with_slot(
                            &WorkerId {
                                fleet: name.clone(),
                                slot,
                            },
                            now,
                            out,
                            |slot, _| slot.forgive(),
                        );
                    }
                }
            }
        }
    }

    fn restart(
        &mut self,
        names: &[String],
        now: Moment,
        out: &mut Effects,
    ) -> Result<Reply, Denial> {
        use crate::engine::effect::Ending;
        self.not_stopping()?;
        let selected = self.selected(names)?;
        for one in &selected {
            let (fleet, held) = match one {
                Selected::Fleet(name) => (name, self.intent.fleets.contains_key(name)),
                Selected::Slot(worker) => {
                    (&worker.fleet, self.intent.holds(&worker.fleet, worker.slot))
                }
            };
            if held {
                return Err(Denial::new(
                    ExitCode::Conflict,
                    format!(
                        "{} is held; `leasehold start {fleet}` lifts that",
                        name_of(one)
                    ),
                ));
            }
        }
        for one in &selected {
            match one {
                Selected::Fleet(name) => {
                    self.with_fleet(name, now, out, |fleet, room| {
                        fleet.body.round += 1;
                        fleet.begin_rollout(room);
                    });
                }
                Selected::Slot(worker) => self.with_slot(worker, now, out, |slot, desk| {
                    slot.forgive();
                    slot.stop(Ending::Rollout, desk);
                }),
            }
        }
        Ok(Reply::Begun {
            names: selected.iter().map(name_of).collect(),
        })
    }

    fn signal(
        &mut self,
        names: &[String],
        signal: i32,
        now: Moment,
        out: &mut Effects,
    ) -> Result<Reply, Denial> {
        let mut reached = Vec::new();
        for one in self.selected(names)? {
            let workers: Vec<WorkerId> = match one {
                Selected::Slot(worker) => vec![worker],
                Selected::Fleet(name) => {
                    let slots = self
                        .fleets
                        .get(&name)
                        .map(|fleet| fleet.slots.keys().copied().collect::<Vec<SlotIndex>>());
                    slots
                        .unwrap_or_default()
                        .into_iter()
                        .map(|slot| WorkerId {
                            fleet: name.clone(),
                            slot,
                        })
                        .collect()
                }
            };
            for worker in workers {
                let mut there = false;
                self.with_slot(&worker, now, out, |slot, desk| {
                    there = slot.pass_signal(signal, desk)
                });
                if there {
                    reached.push(worker.to_string());
                }
            }
        }
        if reached.is_empty() {
            return Err(Denial::new(
                ExitCode::NotReady,
                "none of them has a process to signal",
            ));
        }
        Ok(Reply::Begun { names: reached })
    }

    fn reload(&mut self, request: RequestId, out: &mut Effects) -> Result<Option<Reply>, Denial> {
        self.not_stopping()?;
        if self.reading {
            return Err(Denial::new(
                ExitCode::Conflict,
                "a reload is under way; try again when it is done",
            ));
        }
        self.reading = true;
        out.list
            .push(Effect::ReadConfig(Purpose::Reload(Some(request))));
        Ok(None)
    }

    fn config_read(
        &mut self,
        purpose: Purpose,
        result: Result<Box<Config>, String>,
        now: Moment,
        out: &mut Effects,
    ) {
        let request = match purpose {
            Purpose::Plan(request) => {
                let reply = result
                    .map(|config| Reply::Plan {
                        changes: diff::diff(&self.config, &config),
                    })
                    .map_err(|why| Denial::new(ExitCode::Config, why));
                out.list.push(Effect::Reply { request, reply });
                return;
            }
            Purpose::Reload(request) => request,
        };
        self.reading = false;
        self.node.reloads = self.asked.reloads;
        let reply = match result {
            Ok(config) => Ok(Reply::Plan {
                changes: self.accept(*config, now, out),
            }),
            Err(why) => {
                let first = why.lines().next().unwrap_or_default().to_owned();
                out.record(now, Subject::Node, What::Rejected { why: first });
                self.rejected = Some(why.clone());
                Err(Denial::new(ExitCode::Config, why))
            }
        };
        if let Some(request) = request {
            out.list.push(Effect::Reply { request, reply });
        }
    }

    /// Takes a configuration over: what is unchanged is not touched.
    fn accept(&mut self, config: Config, now: Moment, out: &mut Effects) -> Vec<diff::Change> {
        let changes = diff::diff(&self.config, &config);
        self.rejected = None;
        self.config = config;
        self.facts.node.clone_from(&self.config.node.name);
        out.record(
            now,
            Subject::Node,
            What::Accepted {
                changes: changes.len(),
            },
        );
        for change in &changes {
            let spec = self.config.fleets.get(&change.fleet).cloned();
            match spec {
                None => {
                    if let Some(fleet) = self.fleets.get_mut(&change.fleet) {
                        fleet.removed = true;
                        fleet.body.rollout = None;
                    }
                }
                Some(spec) if self.fleets.contains_key(&change.fleet) => {
                    self.with_fleet(&change.fleet, now, out, |fleet, room| {
                        fleet.respecify(spec, room)
                    });
                }
                Some(spec) => {
                    self.fleets
                        .insert(change.fleet.clone(), Fleet::new(change.fleet.clone(), spec));
                }
            }
        }
        // Ranks depend on other fleets, so they may change where nothing else did.
        for (name, spec) in &self.config.fleets {
            if let Some(fleet) = self.fleets.get_mut(name) {
                fleet.spec.rank = spec.rank;
            }
        }
        self.store_accepted(out);
        changes
    }

    fn store_accepted(&self, out: &mut Effects) {
        let previous = self.fleets.values().filter_map(|fleet| {
            let spec = if fleet.removed {
                Some(&fleet.spec)
            } else {
                fleet.previous.as_ref()
            };
            spec.map(|spec| (fleet.name.clone(), spec.clone()))
        });
        out.list.push(Effect::Accept {
            config: Box::new(self.config.clone()),
            previous: previous.collect(),
        });
    }

    /// A fleet that went back to its revision before: so does the accepted configuration.
    fn follow_rollbacks(&mut self, out: &mut Effects) {
        let mut changed = false;
        for (name, fleet) in self.fleets.iter().filter(|(_, fleet)| !fleet.removed) {
            if self
                .config
                .fleets
                .get(name)
                .is_some_and(|spec| spec.revision != fleet.spec.revision)
            {
                self.config.fleets.insert(name.clone(), fleet.spec.clone());
                changed = true;
            }
        }
        if changed {
            self.store_accepted(out);
        }
    }

    /// Fleets that are not configured and have nothing left go, with everything they had.
    fn drop_removed(&mut self, out: &mut Effects) {
        let gone: Vec<FleetName> = self
            .fleets
            .values()
            .filter(|fleet| fleet.removed && fleet.live() == 0)
            .map(|fleet| fleet.name.clone())
            .collect();
        for name in gone {
            let Some(fleet) = self.fleets.remove(&name) else {
                continue;
            };
            for index in fleet.slots.keys() {
                let worker = WorkerId {
                    fleet: name.clone(),
                    slot: *index,
                };
                self.drop_row(RowKey::Slot(worker.clone()), out);
                out.list.push(Effect::CloseLogs(worker));
            }
            self.drop_row(RowKey::Fleet(name.clone()), out);
            out.list.push(Effect::KeepSockets {
                fleet: name,
                names: Vec::new(),
            });
        }
    }

    fn drop_row(&mut self, key: RowKey, out: &mut Effects) {
        self.touched.remove(&key);
        if self.stored.remove(&key).is_some() {
            out.keeper(Op::Drop { key });
        }
    }

    /// Puts every changed body beside the request that it belongs to, or sends it by itself.
    fn send_rows(&mut self, out: &mut Effects) {
        let mut changed: BTreeMap<RowKey, Vec<u8>> = BTreeMap::new();
        let touched = std::mem::take(&mut self.touched);
        for key in touched {
            if let RowKey::Slot(worker) = &key {
                let slot = self
                    .fleets
                    .get(&worker.fleet)
                    .and_then(|fleet| fleet.slots.get(&worker.slot));
                if let Some(body) = slot.map(encode) {
                    changed.insert(key, body);
                }
            }
        }
        for (name, fleet) in &self.fleets {
            changed.insert(RowKey::Fleet(name.clone()), encode(&fleet.body));
        }
        changed.insert(RowKey::Node, encode(&self.node));
        let mut carried = BTreeSet::new();
        for effect in &mut out.list {
            let Effect::Keeper(
                Op::Spawn { key, body, .. }
                | Op::Signal { key, body, .. }
                | Op::Kill { key, body, .. }
                | Op::Forget { key, body, .. },
            ) = effect
            else {
                continue;
            };
            if let Some(new) = changed.get(key).or_else(|| self.stored.get(key)) {
                body.clone_from(new);
                carried.insert(key.clone());
            }
        }
        for (key, body) in changed {
            if self.stored.get(&key) == Some(&body) {
                continue;
            }
            if !carried.contains(&key) {
                out.keeper(Op::Put {
                    key: key.clone(),
                    body: body.clone(),
                });
            }
            self.stored.insert(key, body);
        }
    }

    fn say_goodbye(&mut self, out: &mut Effects) {
        let idle = self.fleets.values().all(|fleet| fleet.live() == 0);
        if self.asked.stopping != Stopping::No && idle && !self.exited {
            self.exited = true;
            let code = if self.asked.stopping == Stopping::Kill {
                ExitCode::Failed
            } else {
                ExitCode::Ok
            };
            out.keeper(Op::Exit {
                code: code.number(),
            });
        }
    }

    /// The picture for people and programs.
    pub fn status(&self, now: Moment) -> Status {
        Status {
            node: self.facts.node.clone(),
            stopping: self.asked.stopping,
            revision: self.config.revision,
            rejected: self.rejected.clone(),
            fleets: self
                .fleets
                .values()
                .map(|fleet| self.fleet_status(fleet, now))
                .collect(),
        }
    }

    fn fleet_status(&self, fleet: &Fleet, now: Moment) -> FleetStatus {
        let (desired, ready) = (fleet.desired(&self.intent), fleet.ready());
        let done = fleet.done();
        let held = self.intent.fleets.get(&fleet.name);
        let waits = self.stance(&fleet.name) == Stance::Wait && fleet.live() == 0;
        let state = match () {
            () if fleet.removed || self.asked.stopping != Stopping::No => "draining",
            () if held.is_some() => "held",
            () if done > 0 && ready + done >= desired && ready == 0 => "done",
            () if ready + done >= desired => "ok",
            () if waits => "waiting",
            () if fleet.slots.values().any(|slot| {
                matches!(slot.state, State::BackingOff { .. } | State::Failed { .. })
            }) =>
            {
                "degraded"
            }
            () => "starting",
        };
        let size = fleet.size(&self.intent);
        // Slots are shown as held whether or not they were ever used.
        let shown = fleet.spec.workers.max(size);
        let held_slots = (0..shown)
            .map(SlotIndex)
            .filter(|index| self.intent.holds(&fleet.name, *index));
        let indexes: BTreeSet<SlotIndex> = fleet.slots.keys().copied().chain(held_slots).collect();
        let unused = Slot::default();
        let workers = indexes.into_iter().filter_map(|index| {
            let slot = fleet.slots.get(&index).unwrap_or(&unused);
            self.worker_status(fleet, index, slot, shown, now)
        });
        FleetStatus {
            name: fleet.name.clone(),
            state,
            desired,
            ready,
            done,
            configured: fleet.spec.workers,
            held: held.map(|hold| hold.who.clone()),
            rollout: fleet.body.rollout.map(|rollout| match rollout {
                Rollout::Running { back: false } => "running",
                Rollout::Running { back: true } => "rolling-back",
                Rollout::Failed { .. } => "failed",
            }),
            round: fleet.body.round,
            revision: fleet.revision(),
            workers: workers.collect(),
        }
    }

    fn worker_status(
        &self,
        fleet: &Fleet,
        index: SlotIndex,
        slot: &Slot,
        shown: u32,
        now: Moment,
    ) -> Option<WorkerStatus> {
        let held = self.intent.holds(&fleet.name, index) && !slot.is_live() && index.0 < shown;
        if slot.state == State::Vacant && !held {
            return None;
        }
        Some(WorkerStatus {
            id: WorkerId {
                fleet: fleet.name.clone(),
                slot: index,
            },
            generation: slot.generation,
            pid: slot.process.map(|alive| alive.pid),
            state: if held { "held" } else { slot.word() },
            ready: slot.is_ready(),
            since: slot.process.map(|alive| alive.since),
            restarts: slot.restarts,
            containment: slot.containment(),
            last_exit: slot.last_exit.map(|exit| ExitView {
                status: exit.status,
                at: exit.at,
                ending: exit.ending,
            }),
            next_start: slot.start_at(),
            ending: slot.ending,
            grace: match slot.state {
                State::Draining { kill_at, .. } => Some(now.until(kill_at)),
                _ => None,
            },
            revision: slot.revision,
            round: slot.round,
            said: slot.said.clone(),
        })
    }

    fn check_invariants(&self) {
        for fleet in self.fleets.values() {
            debug_assert!(
                fleet.removed || self.config.fleets.contains_key(&fleet.name),
                "{} is configured nowhere",
                fleet.name
            );
        }
        debug_assert!(self.touched.is_empty(), "rows were touched and not sent");
    }
}

fn name_of(one: &Selected) -> String {
    match one {
        Selected::Fleet(name) => name.to_string(),
        Selected::Slot(worker) => worker.to_string(),
    }
}

fn encode<T: Serialize>(value: &T) -> Vec<u8> {
    let body = postcard::to_extend(value, vec![BODY_VERSION])
        .expect("rows hold nothing that postcard cannot encode");
    debug_assert!(body.len() <= BODY_MAX, "a row of {} bytes", body.len());
    body
}

fn decode<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Option<T> {
    let (version, rest) = body.split_first()?;
    if *version != BODY_VERSION {
        return None;
    }
    postcard::take_from_bytes(rest)
        .ok()
        .filter(|(_, left)| left.is_empty())
        .map(|(value, _)| value)
}
