//! Routes events to fleets and slots. It knows no slot's states by name.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    config::{Config, spec::FleetSpec},
    engine::{
        autoscale::Rhythm,
        book::Outcome,
        cluster::{Cluster, RegisterRow, SessionRow, docket::Tick},
        command::Command,
        cron::{Clock, FATES_MAX},
        effect::{Effect, Effects, Subject, What},
        event::{Event, Purpose},
        fleet::{Fleet, Room, Stance},
        gate::Kept,
        host::Host,
        intent::Intent,
        jitter::Jitter,
        membership::membership,
        operate::Saving,
        restart::Bucket,
        slot::Slot,
        spawn::Facts,
        vigil::Vigil,
    },
    exit::ExitCode,
    id::{FleetName, Generation, RequestId, SlotIndex, WorkerId},
    time::{Clocks, Moment, Stamp},
    wire::{Asked, ExitStatus, Header, Op, Process, RowKey, Stopping, TaskKind},
};

/// What the daemon remembers of itself; its row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeBody {
    pub(super) bucket: Bucket,
    /// Reloads asked for by signal and carried out.
    pub(super) reloads: u64,
    /// Reopenings likewise.
    pub(super) reopens: u64,
    /// Its session in the cluster.
    pub(super) session: Option<SessionRow>,
    /// In which one, and under which epoch: another one may be configured, which is joined when this one is left.
    pub(super) home: Option<(String, u64)>,
    /// What its records there hang on.
    pub(super) register: Option<RegisterRow>,
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
    /// The locks that the keeper holds: open, or lost.
    pub gates: BTreeMap<WorkerId, Kept>,
    /// What the wall clock shows.
    pub shown: Stamp,
    /// Do not read row bodies.
    pub recover: bool,
    /// Seed of the jitter.
    pub seed: u64,
}

#[cfg(test)]
impl Origin {
    /// A daemon that begins, with these fleets.
    pub(super) fn of<const N: usize>(fleets: [(&str, FleetSpec); N]) -> Self {
        use crate::{
            config::spec::{HttpSpec, NodeSpec},
            id::Revision,
        };
        let fleets = fleets.map(|(name, spec)| (name.parse().expect("a name"), spec));
        Self {
            config: Config {
                revision: Revision(1),
                path: "c.toml".to_owned(),
                base: String::new(),
                node: NodeSpec {
                    name: "n".to_owned(),
                    restart_rate: 1,
                    restart_burst: 1,
                    cpu_reserve: 0,
                    memory_reserve: 0,
                },
                http: HttpSpec::default(),
                etcd: None,
                fleets: fleets.into(),
            },
            previous: BTreeMap::new(),
            intent: Intent::default(),
            facts: Facts {
                node: "n".to_owned(),
                ..Facts::default()
            },
            asked: Asked::default(),
            rows: Vec::new(),
            gates: BTreeMap::new(),
            shown: Stamp(0),
            recover: false,
            seed: 1,
        }
    }
}

/// The engine.
#[derive(Clone, Debug)]
pub struct Supervisor {
    pub(super) config: Config,
    pub(super) fleets: BTreeMap<FleetName, Fleet>,
    pub(super) node: NodeBody,
    pub(super) asked: Asked,
    pub(super) intent: Intent,
    pub(super) facts: Facts,
    /// This node's part in its cluster.
    pub(super) cluster: Option<Cluster>,
    /// What became of runs of jobs that are not configured here any more, newest last.
    pub(super) former: VecDeque<(Tick, Outcome, Stamp)>,
    pub(super) vigil: Vigil,
    pub(super) clock: Clock,
    /// When it is, in this step.
    clocks: Clocks,
    /// When it asked to hear of the wall clock.
    wake: Option<Stamp>,
    pub(super) jitter: Jitter,
    /// When to measure and decide.
    pub(super) rhythm: Rhythm,
    /// What the machine has to give.
    pub(super) host: Host,
    /// Bodies as the keeper has them.
    pub(super) stored: BTreeMap<RowKey, Vec<u8>>,
    pub(super) touched: BTreeSet<RowKey>,
    pub(super) saving: Option<Saving>,
    pub(super) waiting: VecDeque<(RequestId, Command)>,
    pub(super) reading: bool,
    /// A configuration was accepted, and questions to etcd go the way of the one before.
    pub(super) way_due: bool,
    /// Questions to etcd were numbered up to here before the cluster that there is.
    pub(super) last_call: u64,
    pub(super) rejected: Option<String>,
    pub(super) said_stopping: Stopping,
    pub(super) exited: bool,
}

impl Supervisor {
    /// Rebuilds everything from the rows and goes on where the last one was; with no rows it begins.
    pub fn new(origin: Origin, clocks: Clocks, out: &mut Effects) -> Self {
        let now = clocks.boottime;
        let Origin {
            config,
            previous,
            intent,
            facts,
            asked,
            rows,
            gates,
            shown,
            recover,
            seed,
        } = origin;
        let node = NodeBody {
            bucket: Bucket::full(config.node.restart_burst, now),
            reloads: asked.reloads,
            reopens: asked.reopens,
            session: None,
            home: None,
            register: None,
        };
        let mut fleets: BTreeMap<FleetName, Fleet> = config
            .fleets
            .iter()
            .map(|(name, spec)| (name.clone(), Fleet::new(name.clone(), spec.clone(), now)))
            .collect();
        for (name, spec) in previous {
            match fleets.get_mut(&name) {
                Some(fleet) if fleet.is_kind_of(&spec) => fleet.previous = Some(spec),
                Some(fleet) => {
                    *fleet = Fleet::new(name, spec, now);
                    fleet.remove();
                }
                None => {
                    let mut fleet = Fleet::new(name.clone(), spec, now);
                    fleet.removed = true;
                    fleets.insert(name, fleet);
                }
            }
        }
        let mut supervisor = Self {
            fleets,
            node,
            asked,
            cluster: membership(&config, &facts).map(|one| Cluster::new(one, 0, now)),
            former: VecDeque::new(),
            vigil: Vigil::new(now),
            config,
            intent,
            facts,
            clock: Clock { shown, at: now },
            clocks,
            wake: None,
            jitter: Jitter::new(seed),
            rhythm: Rhythm::default(),
            host: Host::default(),
            stored: BTreeMap::new(),
            touched: BTreeSet::new(),
            saving: None,
            waiting: VecDeque::new(),
            reading: false,
            way_due: false,
            last_call: 0,
            rejected: None,
            said_stopping: Stopping::No,
            exited: false,
        };
        supervisor.take_over(rows, gates, recover, now, out);
        supervisor.finish_step(now, out);
        supervisor
    }

    /// Takes one event, decides, and appends what is to be done. All but deadlines of leases go by BOOTTIME alone.
    pub fn step(&mut self, event: Event, clocks: Clocks, out: &mut Effects) {
        self.clocks = clocks;
        let now = clocks.boottime;
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
            Event::Gate { worker, news } => self.with_slot(&worker, now, out, |slot, desk| {
                slot.gate_changed(news, desk);
            }),
            Event::Etcd(news) => self.etcd_said(news, now, out),
            Event::Lease {
                worker,
                fence,
                news,
            } => self.with_slot(&worker, now, out, |slot, desk| {
                slot.lease_changed(fence, news, desk);
            }),
            Event::Command { request, command } => self.command(request, command, now, out),
            Event::ConfigRead { purpose, result } => self.config_read(purpose, result, now, out),
            Event::IntentSaved { result } => self.intent_saved(result, now, out),
            Event::Wall { shown } => self.clock = Clock { shown, at: now },
            Event::BookRead { fleet, result } => {
                let stance = self.stance(&fleet);
                self.with_fleet(&fleet, now, out, |fleet, room| {
                    fleet.book_read(stance, result, room);
                });
            }
            Event::BookKept { fleet, result } => {
                let stance = self.stance(&fleet);
                self.with_fleet(&fleet, now, out, |fleet, room| {
                    fleet.book_kept(stance, result, room);
                });
            }
            Event::Sampled(sample) => self.sampled(&sample, now, out),
            Event::Knock(fleet) => self.knocked(&fleet, now, out),
            Event::Sourced { fleet, result } => self.sourced(&fleet, result, now),
            Event::Written {
                fleet,
                file,
                ticket,
                result,
            } => {
                self.with_fleet(&fleet, now, out, |fleet, room| {
                    fleet.sheet_written(file, ticket, result, room);
                });
            }
            Event::Settled {
                fleet,
                file,
                ticket,
            } => {
                self.with_fleet(&fleet, now, out, |fleet, room| {
                    fleet.sheet_settled(file, ticket, room);
                });
            }
            Event::Restored {
                fleet,
                file,
                ticket,
                result,
            } => {
                self.with_fleet(&fleet, now, out, |fleet, room| {
                    fleet.sheet_restored(file, ticket, result, room);
                });
            }
            Event::Tick => {}
        }
        self.finish_step(now, out);
    }

    /// When a `Tick` is due.
    pub fn deadline(&self) -> Option<Moment> {
        let fleets = self.fleets.values().filter_map(Fleet::deadline);
        let cluster = self.cluster_deadline();
        fleets.chain(self.scale_deadline()).chain(cluster).min()
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
        self.expire_sizes(now, out);
        self.follow_load(now, out);
        self.end_sources(now, out);
        self.settle(now, out);
        self.follow_rollbacks(out);
        if self.drop_removed(now, out) {
            self.settle(now, out);
        }
        self.follow_cluster(now, out);
        self.watch_etcd(now, out);
        self.send_rows(out);
        self.ask_to_be_woken(now, out);
        self.say_goodbye(now, out);
        self.check_invariants();
    }

    /// Every fleet moves as far as it can.
    pub(super) fn settle(&mut self, now: Moment, out: &mut Effects) {
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
        self.publish(now, out);
    }

    /// The wall clock is somebody else's to look at.
    fn ask_to_be_woken(&mut self, now: Moment, out: &mut Effects) {
        let wakes = self.fleets.values().filter_map(|fleet| {
            let held = self.intent.holds(&fleet.name, SlotIndex(0));
            fleet.wake(held)
        });
        // What is over is being written down.
        let wall = self.clock.at(now);
        let expiries = self.intent.sizes.values().filter_map(|size| size.until);
        let expiries = expiries.filter(|until| *until > wall);
        let wake = wakes
            .chain(expiries)
            .min()
            .filter(|_| self.asked.stopping == Stopping::No);
        if wake != self.wake {
            self.wake = wake;
            out.list.push(Effect::WakeAt(wake));
        }
    }

    /// What the daemon as a whole wants of this fleet now.
    pub(super) fn stance(&self, name: &FleetName) -> Stance {
        let Some(fleet) = self.fleets.get(name) else {
            return Stance::Keep;
        };
        match self.asked.stopping {
            Stopping::Kill => Stance::Kill,
            Stopping::Drain if self.is_its_turn(fleet) => Stance::Drain,
            Stopping::Drain => Stance::Closing,
            Stopping::No if self.intent.node.is_some() && !self.is_its_turn(fleet) => {
                Stance::Closing
            }
            Stopping::No if self.dependencies_met(fleet) => Stance::Keep,
            Stopping::No => Stance::Wait,
        }
    }

    /// Where everything stops: has everybody who depends on this fleet ended?
    fn is_its_turn(&self, fleet: &Fleet) -> bool {
        let live = self.fleets.values().filter(|fleet| fleet.live() > 0);
        let turn = live.map(|fleet| fleet.spec.rank).max();
        turn.is_none_or(|turn| fleet.spec.rank >= turn)
    }

    pub(super) fn dependencies_met(&self, fleet: &Fleet) -> bool {
        use crate::config::spec::AfterState;
        fleet.spec.after.iter().all(|(name, state)| {
            let Some(other) = self.fleets.get(name) else {
                return true;
            };
            // One that follows the load is there when it serves; that it grows is no reason to wait.
            let desired = match (other.desired(&self.intent), &other.spec.scale) {
                (desired, Some(scale)) => desired.min(scale.min.max(1)),
                (desired, None) => desired,
            };
            let reached = match state {
                AfterState::Ready => other.ready(),
                AfterState::Started => other
                    .slots
                    .values()
                    .filter(|slot| slot.process.is_some() && slot.leads())
                    .count() as u32,
            };
            // A dependency that an operator holds is not there.
            reached >= desired && (desired > 0 || other.spec.may_be_empty())
        })
    }

    /// Names of the fleets of which this is true.
    pub(super) fn fleets_where(&self, is_it: impl Fn(&Fleet) -> bool) -> Vec<FleetName> {
        let found = self.fleets.values().filter(|fleet| is_it(fleet));
        found.map(|fleet| fleet.name.clone()).collect()
    }

    /// Runs `work` on a fleet with everything it may need.
    pub(super) fn with_fleet<R>(
        &mut self,
        name: &FleetName,
        now: Moment,
        out: &mut Effects,
        work: impl FnOnce(&mut Fleet, &mut Room<'_>) -> R,
    ) -> Option<R> {
        let mut room = Room {
            now,
            clocks: self.clocks,
            clock: self.clock,
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

    pub(super) fn with_slot(
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

    pub(super) fn rows_changed(
        &mut self,
        rows: Vec<(RowKey, Header)>,
        now: Moment,
        out: &mut Effects,
    ) {
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
            RowKey::Slot(worker) => self.with_slot(worker, now, out, |slot, _| slot.refused(after)),
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
        match kind {
            TaskKind::PreStart
            | TaskKind::PreStop
            | TaskKind::ReadyProbe
            | TaskKind::HealthProbe => self.with_slot(worker, now, out, |slot, desk| {
                slot.helper_ended(kind, status, desk)
            }),
            TaskKind::PublishCheck | TaskKind::PublishReload => {
                self.with_fleet(&worker.fleet, now, out, |fleet, room| {
                    fleet.sheet_command_ended(worker.slot, kind, status, room);
                });
            }
            TaskKind::ScaleSource => {
                self.with_fleet(&worker.fleet, now, out, |fleet, room| {
                    fleet.source_ended(status, room);
                });
            }
        }
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

    /// Fleets that are not configured and have nothing left go, with everything they had. True if another kind has the name of one.
    fn drop_removed(&mut self, now: Moment, out: &mut Effects) -> bool {
        // An answer that is still to come would be taken for one to whoever gets its name.
        let gone = self
            .fleets_where(|fleet| fleet.removed && fleet.is_gone(now) && !fleet.inquiry.is_open());
        let mut heirs = false;
        for name in gone {
            let Some(fleet) = self.fleets.remove(&name) else {
                continue;
            };
            out.list.extend(fleet.unpublished());
            self.remember_fates(&fleet);
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
                fleet: name.clone(),
                names: Vec::new(),
            });
            if let Some(spec) = self.config.fleets.get(&name) {
                let heir = Fleet::new(name.clone(), spec.clone(), now);
                self.fleets.insert(name, heir);
                heirs = true;
            }
        }
        if heirs {
            // Before anything of them is: our own heir must not take it for what was removed.
            self.store_accepted(out);
        }
        heirs
    }

    /// The cluster may have yet to hear of them.
    fn remember_fates(&mut self, fleet: &Fleet) {
        let fates = fleet.body.cron.iter().flat_map(|cron| cron.fates.iter());
        let fates = fates.map(|(tick, outcome, ended)| {
            let tick = (fleet.name.clone(), *tick);
            (tick, *outcome, *ended)
        });
        self.former.extend(fates);
        let surplus = self.former.len().saturating_sub(FATES_MAX);
        self.former.drain(..surplus);
    }

    /// The daemon stops, and nothing of any fleet is left.
    pub(super) fn is_over(&self, now: Moment) -> bool {
        let stops = self.asked.stopping != Stopping::No;
        stops && self.fleets.values().all(|fleet| fleet.is_gone(now))
    }

    fn say_goodbye(&mut self, now: Moment, out: &mut Effects) {
        if self.is_over(now) && !self.exited && self.has_left_cluster(now) {
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
