//! The real engine and the real keeper core around the plant, with time that jumps from event to event.
//!
//! What is counted is seen from outside: spawns and stop signals. A spawn into a slot whose worker crashed is a restart and no growth.

use std::{
    collections::{BTreeMap, BTreeSet, BinaryHeap},
    fmt::Write as _,
};

use leasehold::{
    config::Config,
    engine::{
        Effect, Effects, Event, Facts, Intent, Supervisor,
        effect::{Ending, Subject, Transition, What},
        event::Note,
        load::{HostLoad, QueueLoad, Sample, SampleOrder, WorkerLoad},
        scale::{Decision, Verdict},
        status::WorkerStatus,
        supervisor::Origin,
    },
    id::{FleetName, Generation, SlotIndex, WorkerId},
    keeper::core::{Core, Kernel},
    time::{Moment, Span, Stamp},
    wire::{Alive, Containment, ExitStatus, News, Op, PageSpec, RowKey, SpawnSpec, Target},
};

use crate::{
    agenda, fleets,
    laws::{self, Action},
    plant::{Phase, Plant},
    rng::Rng,
    scene::{Act, Kind, Report, Scene, Twist},
};

/// The story begins with this many seconds of its first load, and the time that starts take, so that the fleets are there, and warm, at
/// second 0.
const PROLOGUE: f64 = 30.0;
/// Second 0 on the machine's clock.
const ZERO: f64 = 10_000.0;
/// Over so many seconds at the end shares are measured.
const LAST_PART: f64 = 120.0;
/// Decisions are looked at this often: a few dozen are kept.
const LOOK: Span = Span::secs(50);
const RSS: u64 = 50 << 20;
const MEMORY: u64 = 64 << 30;

fn moment(seconds: f64) -> Moment {
    Moment(((ZERO + seconds) * 1e9).round() as u64)
}

fn seconds(moment: Moment) -> f64 {
    moment.0 as f64 / 1e9 - ZERO
}

/// Something that is to happen.
#[derive(Debug)]
enum Item {
    Ready(i32),
    Ends(i32, ExitStatus),
    Done(i32),
    Packet(u64, Vec<Op>),
    Told(u64, Vec<News>),
    Answer(u64, Event),
    Measure(u64, SampleOrder),
    Poll(u64, usize),
    Twist(Twist),
    SupervisorStarts,
    /// The prologue is over: the scene's own bounds hold.
    Curtain,
}

type Due = agenda::Due<Item>;

/// The kernel that the keeper asks: processes of the plant.
struct Machine {
    plant: Plant,
    now: Moment,
    names: Vec<FleetName>,
    pids: BTreeMap<RowKey, i32>,
    keys: BTreeMap<i32, (RowKey, Generation)>,
    agenda: Vec<(Moment, Item)>,
    /// Slots whose last worker crashed.
    crashed: BTreeSet<RowKey>,
    says_done: bool,
    /// Since the last look: fleets that got workers, and whose workers got the stop signal.
    grown: Vec<usize>,
    told: Vec<usize>,
    next: i32,
}

impl Machine {
    fn later(&mut self, after: f64, item: Item) {
        let when = self.now.after(Span::nanos((after * 1e9) as u64));
        self.agenda.push((when, item));
    }

    fn fleet(&self, key: &RowKey) -> usize {
        let RowKey::Slot(worker) = key else {
            panic!("{key} is no slot");
        };
        let mut names = self.names.iter();
        names
            .position(|name| *name == worker.fleet)
            .expect("a fleet of ours")
    }
}

impl Kernel for Machine {
    fn spawn(
        &mut self,
        key: &RowKey,
        generation: Generation,
        _: &SpawnSpec,
    ) -> Result<Alive, ExitStatus> {
        assert!(!self.pids.contains_key(key), "{key} is spawned twice");
        self.next += 1;
        let (pid, fleet) = (self.next, self.fleet(key));
        self.plant.start(pid, fleet);
        self.pids.insert(key.clone(), pid);
        self.keys.insert(pid, (key.clone(), generation));
        self.later(self.plant.demands[fleet].start, Item::Ready(pid));
        if !self.crashed.remove(key) {
            self.grown.push(fleet);
        }
        Ok(Alive {
            pid,
            start_ticks: pid as u64,
            since: self.now,
            containment: Containment::Cgroup,
        })
    }

    fn promote(&mut self, key: &RowKey, _: &PageSpec) -> bool {
        panic!("{key} needs no lock");
    }

    fn signal(&mut self, key: &RowKey, number: i32, _: Target) {
        let Some(pid) = self.pids.get(key).copied() else {
            return;
        };
        let Some(worker) = self.plant.workers.get_mut(&pid) else {
            return;
        };
        if number != 15 || worker.phase == Phase::Draining {
            return;
        }
        worker.phase = Phase::Draining;
        let fleet = worker.fleet;
        self.told.push(fleet);
        self.later(
            self.plant.demands[fleet].drain,
            Item::Ends(pid, ExitStatus::Code(0)),
        );
    }

    fn kill(&mut self, key: &RowKey) {
        if let Some(pid) = self.pids.get(key).copied() {
            let status = ExitStatus::Signal {
                number: 9,
                core: false,
            };
            self.later(0.01, Item::Ends(pid, status));
        }
    }

    fn release(&mut self, key: &RowKey) {
        if let Some(pid) = self.pids.remove(key) {
            self.keys.remove(&pid);
        }
    }
}

/// One story.
pub(crate) struct Rig {
    now: Moment,
    order: u64,
    queue: BinaryHeap<Due>,
    machine: Machine,
    core: Core,
    engine: Option<Supervisor>,
    incarnation: u64,
    config: Config,
    watched: Vec<bool>,
    clock_set_by: i64,
    rng: Rng,
    seed: u64,
    scene: Scene,
    pub(crate) report: Report,
    /// What people are told, if somebody wants to know.
    trace: Option<String>,
    laws: bool,
    /// The first law that did not hold.
    pub(crate) broken: Option<String>,
    /// When decisions were looked at, and the last one of each fleet.
    looked: Moment,
    decided: Vec<Moment>,
    /// Below its minimum since.
    short_since: Option<f64>,
    /// So many connections waited at the last look.
    waiting: u32,
    /// Workers that were told to end because their fleet shrinks, and are still there.
    leaving: BTreeSet<(WorkerId, Generation)>,
}

impl Rig {
    pub(crate) fn new(mut scene: Scene, seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let demands = std::mem::take(&mut scene.demands);
        let names = fleets::names(demands.len());
        let config = fleets::config(&scene, &demands, true);
        let starts = demands.iter().map(|demand| demand.start);
        // Loads change at any phase of the engine's rhythm.
        let begin = -PROLOGUE - starts.fold(0.0, f64::max) - (seed % 50) as f64 / 10.0;
        let mut plant = Plant::new(
            scene.cores,
            demands,
            scene.noise,
            begin,
            Rng::new(rng.next()),
        );
        plant.hogs = std::mem::take(&mut scene.hogs);
        plant.weighted = scene.weighted;
        plant.opens = -PROLOGUE;
        let fleets = names.len();
        let machine = Machine {
            plant,
            now: moment(begin),
            names,
            pids: BTreeMap::new(),
            keys: BTreeMap::new(),
            agenda: Vec::new(),
            crashed: BTreeSet::new(),
            says_done: scene.says_done,
            grown: Vec::new(),
            told: Vec::new(),
            next: 100,
        };
        Self {
            now: moment(begin),
            order: 0,
            queue: BinaryHeap::new(),
            machine,
            core: Core::new(),
            engine: None,
            incarnation: 0,
            config,
            watched: vec![false; fleets],
            clock_set_by: 0,
            rng,
            seed,
            scene,
            report: Report::default(),
            trace: None,
            laws: false,
            broken: None,
            looked: moment(begin),
            decided: vec![Moment(0); fleets],
            short_since: None,
            waiting: 0,
            leaving: BTreeSet::new(),
        }
    }

    /// Writes down what happens.
    pub(crate) fn traced(mut self) -> Self {
        self.trace = Some(String::new());
        self
    }

    pub(crate) fn trace(&self) -> &str {
        self.trace.as_deref().unwrap_or_default()
    }

    /// Looks at all laws that hold in random plants, and not only at those that hold in every scenario.
    pub(crate) fn lawful(mut self) -> Self {
        self.laws = true;
        self
    }

    /// Plays it to its end.
    pub(crate) fn play(&mut self) {
        self.start_supervisor();
        self.at(moment(0.0), Item::Curtain);
        for (when, twist) in std::mem::take(&mut self.scene.twists) {
            self.at(moment(when), Item::Twist(twist));
        }
        let until = self.scene.until;
        self.play_until(until - LAST_PART);
        let before = self.machine.plant.used.clone();
        self.play_until(until);
        self.look_at_decisions();
        let plant = &self.machine.plant;
        let pairs = plant.used.iter().zip(before);
        self.report.shares = pairs
            .map(|(used, before)| (used - before) / LAST_PART)
            .collect();
        self.report.last = plant.live(0);
        self.report.lost = plant.lost[0];
        self.report.queue_at_end = plant.queues[0];
    }

    /// What was decided since it was last looked at.
    fn look_at_decisions(&mut self) {
        let Some(engine) = &self.engine else { return };
        self.looked = self.now;
        let status = engine.status(self.now);
        for (fleet, shown) in status.fleets.into_iter().enumerate() {
            let Some(scale) = shown.scale else { continue };
            if self.laws
                && let Err(why) = laws::check_picture(&scale)
            {
                self.breaks(why);
            }
            for decision in scale.decisions {
                if decision.at <= self.decided[fleet] {
                    continue;
                }
                self.decided[fleet] = decision.at;
                let word = word(decision.verdict);
                *self.report.verdicts.entry(word).or_default() += 1;
                self.say(|_| shown_in_short(&shown.name, &decision));
            }
        }
    }

    /// The first law that is broken is told.
    fn breaks(&mut self, why: String) {
        let at = seconds(self.now);
        self.say(|_| format!("-- {why}"));
        self.broken.get_or_insert(format!("at {at:.3}: {why}"));
    }

    /// Time passes until this second.
    fn play_until(&mut self, end: f64) {
        let end = moment(end);
        loop {
            let queued = self.queue.peek().map(|due| due.0);
            let engine = self.engine.as_ref().and_then(Supervisor::deadline);
            let Some(next) = [queued, engine].into_iter().flatten().min() else {
                break;
            };
            if next > end {
                break;
            }
            self.reach(next.max(self.now));
            if queued.is_some_and(|at| at <= self.now) {
                let due = self.queue.pop().expect("peeked");
                self.happen(due.2);
            } else {
                self.step(Event::Tick);
            }
        }
        self.reach(end);
    }

    fn reach(&mut self, now: Moment) {
        self.now = now;
        self.machine.now = now;
        self.machine.plant.advance(seconds(now));
        if now >= moment(0.0) {
            self.report.queue = self.report.queue.max(self.machine.plant.queues[0]);
            if self.laws {
                self.look_for_repair();
            }
        }
        if self.trace.is_some() || self.looked.after(LOOK) <= now {
            self.look_at_decisions();
        }
    }

    /// Who has too few gets more.
    fn look_for_repair(&mut self) {
        let live = self.machine.plant.live(0);
        let at = seconds(self.now);
        if live >= self.scene.min as usize {
            self.short_since = None;
            return;
        }
        let since = *self.short_since.get_or_insert(at);
        if at - since > laws::REPAIR {
            self.breaks(format!("it has had {live} for {:.1} s", at - since));
        }
    }

    /// Who is told to end, and who has.
    fn follow_drain(&mut self, transition: &Transition) {
        let Subject::Worker(worker, generation) = &transition.subject else {
            return;
        };
        let one = (worker.clone(), *generation);
        let lawful = match transition.what {
            What::Stopping { ending, .. } if self.leaving.contains(&one) => {
                Err(format!("{worker} is told to end a second time: {ending:?}"))
            }
            What::Stopping { ending, .. } => {
                if ending == Ending::ScaleIn {
                    self.leaving.insert(one);
                }
                Ok(())
            }
            What::Ended { ending, .. } if self.leaving.remove(&one) => laws::check_end(ending),
            _ => Ok(()),
        };
        if let Err(why) = lawful {
            self.breaks(why);
        }
    }

    /// Whoever was told to end goes on with that.
    fn look_at_drains(&mut self) {
        let Some(engine) = self.engine.as_ref().filter(|_| !self.leaving.is_empty()) else {
            return;
        };
        let status = engine.status(self.now);
        let workers = status.fleets.iter().flat_map(|fleet| &fleet.workers);
        let told = |one: &&WorkerStatus| self.leaving.contains(&(one.id.clone(), one.generation));
        let broken = workers
            .filter(told)
            .find_map(|one| laws::check_drain(one).err());
        if let Some(why) = broken {
            self.breaks(why);
        }
    }

    fn at(&mut self, when: Moment, item: Item) {
        self.order += 1;
        self.queue.push(agenda::Due(when, self.order, item));
    }

    fn soon(&mut self, millis: u64, item: Item) {
        self.at(self.now.after(Span::millis(millis)), item);
    }

    fn say(&mut self, line: impl FnOnce(&Self) -> String) {
        if self.trace.is_some() {
            let text = line(self);
            let at = seconds(self.now);
            if let Some(trace) = &mut self.trace {
                let _ = writeln!(trace, "{at:9.3} {text}");
            }
        }
    }

    fn happen(&mut self, item: Item) {
        let mine = self.incarnation;
        match item {
            Item::Ready(pid) => {
                if let Some(worker) = self.machine.plant.workers.get_mut(&pid)
                    && worker.phase == Phase::Starting
                {
                    worker.phase = Phase::Ready;
                    self.note(pid, Note::Ready);
                    if self.machine.says_done {
                        self.soon(1_000, Item::Done(pid));
                    }
                }
            }
            Item::Done(pid) => {
                if let Some(done) = self.machine.plant.done(pid) {
                    self.note(pid, Note::Done(done));
                    self.soon(1_000, Item::Done(pid));
                }
            }
            Item::Ends(pid, status) => self.ends(pid, status),
            Item::Packet(incarnation, ops) if incarnation == mine => self.deliver(ops),
            Item::Told(incarnation, news) if incarnation == mine => self.hear(news),
            Item::Answer(incarnation, event) if incarnation == mine => self.step(event),
            Item::Measure(incarnation, order) if incarnation == mine => self.measure(&order),
            Item::Poll(incarnation, fleet) if incarnation == mine => self.poll(fleet),
            Item::Packet(..)
            | Item::Told(..)
            | Item::Answer(..)
            | Item::Measure(..)
            | Item::Poll(..) => {}
            Item::Twist(twist) => self.twist(twist),
            Item::SupervisorStarts => self.start_supervisor(),
            Item::Curtain => self.curtain(),
        }
    }

    fn note(&mut self, pid: i32, note: Note) {
        if let Some((RowKey::Slot(worker), generation)) = self.machine.keys.get(&pid).cloned() {
            self.step(Event::Note {
                worker,
                generation,
                note,
            });
        }
    }

    fn ends(&mut self, pid: i32, status: ExitStatus) {
        let Some((key, _)) = self.machine.keys.get(&pid).cloned() else {
            return;
        };
        if self.machine.plant.workers.remove(&pid).is_none() {
            return;
        }
        self.core
            .leader_ended(&key, status, self.now, &mut self.machine);
        self.core.containment_empty(&key, &mut self.machine);
        self.after_keeper();
    }

    fn ready_pids(&self) -> Vec<i32> {
        let workers = self.machine.plant.workers.iter();
        let ready = workers.filter(|(_, worker)| worker.phase == Phase::Ready);
        ready.map(|(pid, _)| *pid).collect()
    }

    fn twist(&mut self, twist: Twist) {
        self.say(|_| format!("-- {twist:?}"));
        match twist {
            Twist::Sticks => {
                for pid in self.ready_pids() {
                    let worker = self.machine.plant.workers.get_mut(&pid);
                    if let Some(worker) = worker.filter(|worker| !worker.stuck) {
                        worker.stuck = true;
                        break;
                    }
                }
            }
            Twist::Crashes(nth) => {
                let ready = self.ready_pids();
                if let Some(pid) = ready.get(nth % ready.len().max(1)).copied() {
                    self.machine
                        .crashed
                        .insert(self.machine.keys[&pid].0.clone());
                    self.ends(pid, ExitStatus::Code(1));
                }
            }
            Twist::Burst(work) => {
                self.machine.plant.queues[0] += work;
                if self.watched[0] {
                    self.soon(1, Item::Poll(self.incarnation, 0));
                }
            }
            Twist::SupervisorDies => {
                // What it had sent is carried out; what it was told is told again.
                let sent = std::mem::take(&mut self.queue).into_sorted_vec();
                for due in sent.into_iter().rev() {
                    match due.2 {
                        Item::Packet(incarnation, ops) if incarnation == self.incarnation => {
                            self.deliver(ops);
                        }
                        _ => self.queue.push(due),
                    }
                }
                self.engine = None;
                self.incarnation += 1;
                self.soon(200, Item::SupervisorStarts);
            }
            Twist::Pause(span) => {
                let until = seconds(self.now) + span;
                self.machine.plant.skip(until);
                self.now = moment(until);
                self.machine.now = self.now;
                self.short_since = self.short_since.map(|since| since + span);
            }
            Twist::ClockSet(by) => {
                self.clock_set_by += by;
                let shown = self.shown();
                self.step(Event::Wall { shown });
            }
        }
    }

    fn shown(&self) -> Stamp {
        let ms = self.now.0 as i64 / 1_000_000 + self.clock_set_by * 1_000;
        Stamp(1_790_000_000_000 + ms)
    }

    /// Looks at what waits at the socket of a fleet, if somebody wants to know: it is said once.
    fn poll(&mut self, fleet: usize) {
        if self.watched[fleet] && self.machine.plant.connections(fleet) > 0 {
            self.watched[fleet] = false;
            let name = self.machine.names[fleet].clone();
            self.say(|_| format!("-- knock at {name}"));
            self.step(Event::Knock(name));
        }
    }

    /// The scene's own bounds hold from now on.
    fn curtain(&mut self) {
        for (index, begin) in self.scene.begin.clone().into_iter().enumerate() {
            let ready = self.machine.plant.count(index, Phase::Ready);
            assert!(ready >= begin as usize, "{ready} of {begin} are there");
        }
        self.report = Report {
            peak: self.machine.plant.live(0),
            ..Report::default()
        };
        self.config = fleets::config(&self.scene, &self.machine.plant.demands, false);
        let purpose = leasehold::engine::event::Purpose::Reload(None);
        let result = Ok(Box::new(self.config.clone()));
        self.step(Event::ConfigRead { purpose, result });
    }

    fn measure(&mut self, order: &SampleOrder) {
        let now = seconds(self.now);
        let outage = self
            .scene
            .outage
            .is_some_and(|(from, to)| (from..to).contains(&now));
        let by_seed = self.seed.is_multiple_of(2);
        let has_pressure = self.scene.pressures.unwrap_or(by_seed);
        let mut workers = Vec::new();
        for (pid, (key, generation)) in self.machine.keys.clone() {
            let RowKey::Slot(worker) = key else { continue };
            // A look that is lost was not made: the next one shows more.
            let lost = self.rng.chance(self.scene.loss) || outage;
            let mute = self
                .scene
                .mute
                .is_some_and(|slot| worker.slot == SlotIndex(slot));
            if lost || mute || !order.fleets.contains(&worker.fleet) {
                continue;
            }
            if let Some(cpu) = self.machine.plant.read(pid) {
                let pressure = self.machine.plant.pressure_of(pid);
                workers.push(WorkerLoad {
                    worker,
                    generation,
                    cpu,
                    memory: Some(RSS),
                    pressure: pressure.filter(|_| has_pressure),
                });
            }
        }
        let blind = self.rng.chance(self.scene.blind);
        let plant = &mut self.machine.plant;
        let cores = (plant.cores * 1e3) as u32;
        let host = plant
            .look()
            .filter(|_| !blind)
            .map(|(idle, pressure)| HostLoad {
                cores,
                idle: (idle * 1e3) as u32,
                cpu_pressure: has_pressure.then_some((pressure * 100.0) as u32),
                memory_available: MEMORY / 2,
                memory_total: MEMORY,
                memory_pressure: has_pressure.then_some(0),
            });
        let deaf = self
            .scene
            .deaf
            .is_some_and(|(from, to)| (from..to).contains(&now));
        let hears = self.scene.socket && !deaf;
        let listening = (0..plant.queues.len()).filter(|_| hears);
        let queues = listening.map(|fleet| QueueLoad {
            fleet: self.machine.names[fleet].clone(),
            waiting: plant.connections(fleet),
            backlog: fleets::BACKLOG,
        });
        let queues: Vec<QueueLoad> = queues.collect();
        self.waiting = queues.first().map_or(0, |queue| queue.waiting);
        let sample = Sample {
            at: self.now,
            host,
            workers,
            queues,
        };
        self.step(Event::Sampled(Box::new(sample)));
    }

    fn start_supervisor(&mut self) {
        self.incarnation += 1;
        self.watched.fill(false);
        let rows = self
            .core
            .tell_all()
            .into_iter()
            .filter_map(|news| match news {
                News::Row { key, header, body } => Some((key, header, body.unwrap_or_default())),
                _ => None,
            });
        let origin = Origin {
            config: self.config.clone(),
            previous: BTreeMap::new(),
            intent: Intent::default(),
            facts: Facts {
                node: "sim".to_owned(),
                notify_socket: "/run/notify".to_owned(),
                ..Facts::default()
            },
            asked: self.core.asked(),
            rows: rows.collect(),
            gates: BTreeMap::new(),
            shown: self.shown(),
            recover: false,
            seed: self.seed,
        };
        let mut effects = Effects::default();
        self.engine = Some(Supervisor::new(origin, self.now.into(), &mut effects));
        self.perform(effects);
    }

    fn step(&mut self, event: Event) {
        let Some(mut engine) = self.engine.take() else {
            // What a worker says waits in its socket until somebody is there.
            if matches!(event, Event::Note { .. } | Event::ConfigRead { .. }) {
                self.soon(250, Item::Answer(self.incarnation + 1, event));
            }
            return;
        };
        let mut effects = Effects::default();
        engine.step(event, self.now.into(), &mut effects);
        let late = engine.deadline().filter(|at| *at <= self.now);
        assert!(
            late.is_none(),
            "a deadline of {late:?} is not after {:?}",
            self.now
        );
        self.engine = Some(engine);
        self.perform(effects);
        self.look_at_drains();
    }

    /// Does what the driver does.
    fn perform(&mut self, effects: Effects) {
        let mut ops = Vec::new();
        for effect in effects.list {
            match effect {
                Effect::Keeper(op) => ops.push(op),
                Effect::ReadEnv { worker, after, .. } => {
                    let event = Event::EnvRead {
                        worker,
                        after,
                        result: Ok(Vec::new()),
                    };
                    self.soon(1, Item::Answer(self.incarnation, event));
                }
                Effect::Weigh(weights) => {
                    for one in weights {
                        let key = RowKey::Slot(one.worker);
                        let wanted = (key, one.generation);
                        let mut keys = self.machine.keys.iter();
                        let pid = keys
                            .find(|(_, whose)| **whose == wanted)
                            .map(|(pid, _)| *pid);
                        if let Some(pid) = pid {
                            self.machine.plant.weigh(pid, f64::from(one.weight));
                        }
                    }
                }
                Effect::Sample(order) => self.soon(2, Item::Measure(self.incarnation, order)),
                Effect::Watch { fleet, on } => {
                    let index = self.machine.fleet(&RowKey::Slot(WorkerId {
                        fleet,
                        slot: SlotIndex(0),
                    }));
                    self.watched[index] = on;
                    self.say(|_| format!("-- watched: {on}"));
                    if on {
                        self.soon(1, Item::Poll(self.incarnation, index));
                    }
                }
                Effect::Record(transition) => {
                    self.follow_drain(&transition);
                    let quiet = matches!(transition.what, What::Accepted { .. });
                    if !quiet && !matches!(transition.subject, Subject::Node) {
                        self.say(|rig| {
                            let live = rig.machine.plant.live(0);
                            format!("n={live} {} {}", transition.subject, transition.what)
                        });
                    }
                }
                Effect::SaveIntent(_) => {
                    let event = Event::IntentSaved { result: Ok(()) };
                    self.soon(1, Item::Answer(self.incarnation, event));
                }
                _ => {}
            }
        }
        if !ops.is_empty() {
            self.soon(1, Item::Packet(self.incarnation, ops));
        }
    }

    fn deliver(&mut self, ops: Vec<Op>) {
        let draining: Vec<usize> = self.each(|plant, fleet| plant.count(fleet, Phase::Draining));
        let starting: Vec<usize> = self.each(|plant, fleet| plant.count(fleet, Phase::Starting));
        for op in ops {
            let about_rows = matches!(
                op,
                Op::Put { .. }
                    | Op::Drop { .. }
                    | Op::Spawn { .. }
                    | Op::Signal { .. }
                    | Op::Kill { .. }
                    | Op::Forget { .. }
                    | Op::Stop { .. }
            );
            if about_rows {
                self.core.apply(op, self.now, &mut self.machine);
            }
        }
        let grown = std::mem::take(&mut self.machine.grown);
        let told = std::mem::take(&mut self.machine.told);
        for fleet in 0..self.machine.names.len() {
            let acts = [
                (Kind::Grow, &grown, &starting),
                (Kind::Shrink, &told, &draining),
            ];
            for (kind, list, before) in acts {
                let by = list.iter().filter(|of| **of == fleet).count();
                if by > 0 {
                    self.acted(kind, fleet, by, before[fleet]);
                }
            }
        }
        self.after_keeper();
    }

    fn each(&self, count: impl Fn(&Plant, usize) -> usize) -> Vec<usize> {
        let fleets = 0..self.machine.names.len();
        fleets
            .map(|fleet| count(&self.machine.plant, fleet))
            .collect()
    }

    fn acted(&mut self, kind: Kind, fleet: usize, by: usize, under_way: usize) {
        let live = self.machine.plant.live(fleet);
        let at = seconds(self.now);
        self.say(|_| format!("n={live} == {kind:?} by {by}"));
        if fleet == 0 {
            self.report.peak = self.report.peak.max(live);
        }
        self.report.acts.push(Act {
            at,
            fleet,
            kind,
            by,
            live,
        });
        if self.laws && at > 0.0 {
            let waiting = self.waiting;
            let workers = self.machine.plant.workers.values();
            let stuck = workers.filter(|worker| worker.stuck).count();
            let act = Action {
                stuck,
                kind,
                by,
                live,
                under_way,
                waiting,
            };
            if let Err(why) = laws::check_act(&act, &self.scene) {
                self.breaks(why);
            }
        }
    }

    fn after_keeper(&mut self) {
        for (when, item) in std::mem::take(&mut self.machine.agenda) {
            self.at(when, item);
        }
        if self.engine.is_none() {
            return;
        }
        let news = self.core.take_news(usize::MAX);
        if !news.is_empty() {
            self.soon(1, Item::Told(self.incarnation, news));
        }
    }

    fn hear(&mut self, news: Vec<News>) {
        let mut rows = Vec::new();
        for one in news {
            match one {
                News::Row { key, header, .. } => rows.push((key, header)),
                News::Refused { key, after } => self.step(Event::Refused { key, after }),
                _ => {}
            }
        }
        if !rows.is_empty() {
            self.step(Event::Rows(rows));
        }
    }
}

/// A decision in a word.
fn word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Fits => "fits",
        Verdict::Holds(hold) => hold.word(),
        Verdict::Blocked(block) => block.word(),
        Verdict::Grew { reason, .. } => reason.word(),
        Verdict::Shrank { .. } => "shrank",
    }
}

fn shown_in_short(fleet: &FleetName, decision: &Decision) -> String {
    let Decision {
        at,
        workers,
        utilization,
        recommended,
        up,
        down,
        penalty,
        verdict,
        ..
    } = decision;
    let percent = utilization.map_or("?".to_owned(), |share| format!("{:.1}", share as f64 / 1e4));
    let idle = decision.idle.map_or("?".to_owned(), |idle| {
        format!("{:.2}", f64::from(idle) / 1e3)
    });
    format!(
        "{fleet} at {:.1}: n={workers} U={percent} ({}+{}) idle={idle} rec={recommended} up={up} down={down} x{penalty} {verdict:?}",
        seconds(*at),
        decision.measured,
        decision.missing,
    )
}
