//! Keeper, supervisor, disk and wire around the fake host; faults; the course of a story.

use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use leasehold::{
    config::{Config, spec::FleetSpec},
    engine::{
        Command, Effect, Effects, Event, Facts, Intent, Supervisor,
        book::{Book, Run},
        command::{By, ReleasedGate, Reply, Sizing},
        effect::{Cause, Ending, Subject, What},
        gate::{GateNews, Holder, Kept},
        lease::LeaseNews,
        publish::{FileJob, Undo},
        supervisor::Origin,
    },
    id::{FleetName, Generation, RequestId, SlotIndex, WorkerId},
    keeper::core::{Core, Kernel, Request},
    time::{Clocks, Moment, Span},
    wire::{Asked, News, Op, RowKey, SeatState},
};

use crate::{
    agenda, checks, fleets,
    host::{Act, Change, Host, Seat},
    jobs,
    lease::{self, Lease},
    load::Meters,
    lock::{self, Lock, Owner},
    publish::{self, Market},
    rng::Rng,
};

/// What goes wrong in a story.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    pub(crate) supervisor_deaths: u32,
    pub(crate) keeper_deaths: u32,
    /// How often the supervisor hangs, or the keeper is stopped.
    pub(crate) freezes: u32,
    pub(crate) tempers: bool,
}

/// What happened in all stories together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) steps: u64,
    pub(crate) spawns: u64,
    pub(crate) supervisor_deaths: u64,
    pub(crate) keeper_deaths: u64,
    pub(crate) rebuilt: u64,
    pub(crate) commands: u64,
    pub(crate) freezes: u64,
    pub(crate) deadlines: u64,
    pub(crate) runs: u64,
    pub(crate) releases: u64,
    pub(crate) reloads: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.spawns += other.spawns;
        self.supervisor_deaths += other.supervisor_deaths;
        self.keeper_deaths += other.keeper_deaths;
        self.rebuilt += other.rebuilt;
        self.commands += other.commands;
        self.freezes += other.freezes;
        self.deadlines += other.deadlines;
        self.runs += other.runs;
        self.releases += other.releases;
        self.reloads += other.reloads;
    }
}

/// Something that is to happen.
#[derive(Clone, Debug)]
enum Item {
    Process(i32, Act),
    ToKeeper(u64, Vec<Op>),
    ToSupervisor(u64, Vec<News>),
    Answer(u64, Box<Event>),
    Saved(u64, Box<Intent>),
    Keep(u64, FleetName, Box<Book>, Option<Run>),
    Write(u64, u32, u64, Box<FileJob>),
    Restore(u64, FleetName, u32, u64, Undo),
    Settle(u64, FleetName, u32, u64),
    ClockSet,
    SupervisorStarts,
    SupervisorDies,
    KeeperDies,
    KeeperStarts,
    Operator,
    Signal(Request),
    TryLock(u64, WorkerId),
    Watch(u64, WorkerId, Span),
    Settled(u64, WorkerId),
    Rival,
    Replaced,
    LeaseOpens(u64),
    Renew(u64, u64),
    RenewalArrives(u64, u64, Clocks),
    Arm(u64, Clocks),
    Disarm(u64),
    DeadlineComes,
    Cut,
    SupervisorHangs,
    KeeperStops,
    Changed(Change),
    Heard(Event),
}

impl Item {
    /// Does a supervisor have to do it?
    fn needs_supervisor(&self) -> bool {
        matches!(
            self,
            Self::ToSupervisor(..)
                | Self::Answer(..)
                | Self::Saved(..)
                | Self::Operator
                | Self::Keep(..)
                | Self::Write(..)
                | Self::Restore(..)
                | Self::Settle(..)
                | Self::TryLock(..)
                | Self::Watch(..)
                | Self::Settled(..)
                | Self::Replaced
                | Self::LeaseOpens(_)
                | Self::Renew(..)
        )
    }

    /// Does the keeper have to do it?
    fn needs_keeper(&self) -> bool {
        matches!(
            self,
            Self::ToKeeper(..)
                | Self::SupervisorStarts
                | Self::SupervisorDies
                | Self::Signal(_)
                | Self::Arm(..)
                | Self::Disarm(_)
                | Self::DeadlineComes
                | Self::Changed(_)
                // Removing lock files by hand is safe but for starts that are on their way, and a stopped keeper keeps those.
                | Self::Replaced
        )
    }
}

type Due = agenda::Due<Item>;

/// The accepted configuration, as the keeper holds it.
#[derive(Clone)]
struct Accepted {
    config: Config,
    previous: BTreeMap<FleetName, FleetSpec>,
}

pub(crate) struct World {
    seed: u64,
    rng: Rng,
    now: Moment,
    order: u64,
    queue: BinaryHeap<Due>,
    host: Host,
    meters: Meters,
    core: Option<Core>,
    engine: Option<Supervisor>,
    incarnation: u64,
    accepted: Option<Accepted>,
    file: Config,
    disk: Intent,
    faults: Faults,
    trace: bool,
    log: VecDeque<String>,
    totals: Totals,
    quiet_from: Moment,
    exit: Option<u8>,
    last_to_keeper: Moment,
    last_to_supervisor: Moment,
    requests: u64,
    locks: BTreeMap<WorkerId, Lock>,
    lease: Lease,
    market: Market,
    supervisor_hangs_until: Moment,
    keeper_stops_until: Moment,
}

const STORY: Span = Span::secs(300);
const SETTLE: Span = Span::secs(600);

impl World {
    pub(crate) fn new(seed: u64, faults: Faults, trace: bool) -> Self {
        let mut rng = Rng::new(seed);
        let host = Host::new(Rng::new(rng.next()), faults.tempers);
        let lease = Lease::new(&mut rng);
        Self {
            meters: Meters::default(),
            seed,
            rng,
            now: Moment(1_000_000_000),
            order: 0,
            queue: BinaryHeap::new(),
            host,
            core: None,
            engine: None,
            incarnation: 0,
            accepted: None,
            file: fleets::first(),
            disk: Intent::default(),
            faults,
            trace,
            log: VecDeque::new(),
            totals: Totals::default(),
            quiet_from: Moment(0),
            exit: None,
            last_to_keeper: Moment(0),
            last_to_supervisor: Moment(0),
            requests: 0,
            locks: lock::workers()
                .map(|worker| (worker.clone(), Lock::new(worker)))
                .into(),
            lease,
            market: Market::default(),
            supervisor_hangs_until: Moment(0),
            keeper_stops_until: Moment(0),
        }
    }

    /// Plays the story: trouble, then quiet, then a drain.
    pub(crate) fn run(mut self) -> Totals {
        let begin = self.now;
        self.quiet_from = begin.after(STORY);
        self.at(Span::ZERO, Item::KeeperStarts);
        for (name, spec) in &self.file.fleets {
            if let Some(cron) = &spec.cron {
                self.host.jobs.add(name.clone(), cron);
            }
        }
        for _ in 0..self.rng.below(6) {
            let when = self.rng.span(20_000, STORY.as_millis());
            self.at(when, Item::ClockSet);
        }
        for _ in 0..self.faults.supervisor_deaths {
            let when = self.rng.span(0, STORY.as_millis());
            self.at(when, Item::SupervisorDies);
        }
        for _ in 0..self.faults.keeper_deaths {
            let when = self.rng.span(1_000, STORY.as_millis());
            self.at(when, Item::KeeperDies);
        }
        for _ in 0..self.faults.freezes {
            let when = self.rng.span(1_000, STORY.as_millis() - 20_000);
            let which = self.rng.chance(50);
            self.at(
                when,
                if which {
                    Item::SupervisorHangs
                } else {
                    Item::KeeperStops
                },
            );
        }
        for _ in 0..self.rng.below(4) {
            let when = self.rng.span(0, STORY.as_millis() - 40_000);
            self.at(when, Item::Cut);
        }
        for _ in 0..12 {
            let when = self.rng.span(500, STORY.as_millis());
            self.at(when, Item::Operator);
        }
        for _ in 0..16 {
            let when = self.rng.span(0, STORY.as_millis());
            self.at(when, Item::Rival);
        }
        for seconds in [1, 60, 120] {
            self.at(STORY.plus(Span::secs(seconds)), Item::Rival);
        }
        for _ in 0..self.rng.below(3) {
            let when = self.rng.span(0, STORY.as_millis());
            self.at(when, Item::Replaced);
        }
        self.play_until(self.quiet_from);
        self.host.tempers = false;
        for lock in self.locks.values_mut() {
            lock.rival(&self.host, true, self.now);
        }
        self.play_until(self.quiet_from.after(SETTLE));
        let status = self
            .engine
            .as_ref()
            .expect("a supervisor after the faults")
            .status(self.now);
        let fleets = status.fleets.iter().map(|fleet| &fleet.name);
        let held = fleets.filter(|name| self.disk.holds_fleet(name));
        let held: Vec<String> = held.map(ToString::to_string).collect();
        if self.trace {
            eprintln!("held {held:?}");
        }
        checks::settled(&self.host, &status, &held);
        self.market.settled(&status);
        for fleet in &status.fleets {
            // Ticks pass a job that is held; that is said when it is not any more.
            let is_held = self.disk.holds(&fleet.name, SlotIndex(0));
            if let Some(job) = fleet.cron.as_ref().filter(|_| !is_held) {
                self.host.jobs.check(&fleet.name, job.waiting, self.now);
            }
        }
        self.totals.runs = self.host.jobs.count();
        self.at(Span::ZERO, Item::Signal(Request::Drain));
        self.play_until(self.quiet_from.after(SETTLE).after(Span::secs(120)));
        assert_eq!(
            self.exit,
            Some(0),
            "the drain did not end; {:?}",
            self.host.by_key
        );
        assert!(self.host.procs.is_empty());
        self.market.withdrawn(&status);
        self.totals.reloads = self.market.reloads;
        self.totals.spawns = self.host.spawned;
        self.totals
    }

    fn at(&mut self, after: Span, item: Item) {
        self.at_moment(self.now.after(after), item);
    }

    fn at_moment(&mut self, when: Moment, item: Item) {
        self.order += 1;
        self.queue.push(agenda::Due(when, self.order, item));
    }

    fn say(&mut self, line: impl FnOnce() -> String) {
        if self.trace {
            eprintln!("{:?} {}", self.now, line());
        } else {
            if self.log.len() == 40 {
                self.log.pop_front();
            }
            let line = line();
            self.log.push_back(line);
        }
    }

    fn play_until(&mut self, end: Moment) {
        while self.exit.is_none() {
            let queued = self.queue.peek().map(|due| due.0);
            let engine = self.engine.as_ref().and_then(Supervisor::deadline);
            let engine = engine.map(|at| at.max(self.supervisor_hangs_until));
            let keeper = self.core.as_ref().and_then(Core::deadline);
            let keeper = keeper.map(|at| at.max(self.keeper_stops_until));
            let there = self.engine.as_ref();
            let alarm = there.and_then(|_| self.host.jobs.rings(self.now));
            let alarm = alarm.map(|at| at.max(self.supervisor_hangs_until));
            let Some(next) = [queued, engine, keeper, alarm].into_iter().flatten().min() else {
                break;
            };
            if next > end {
                break;
            }
            self.now = self.now.max(next);
            self.host.now = self.now;
            self.host.jobs.follow(self.now);
            if keeper.is_some_and(|at| at <= self.now) {
                if let Some(core) = &mut self.core {
                    core.tick(self.now, &mut self.host);
                }
                self.after_keeper();
            } else if queued.is_some_and(|at| at <= self.now) {
                let due = self.queue.pop().expect("peeked");
                self.happen(due.2);
            } else if alarm.is_some_and(|at| at <= self.now) {
                self.look_at_the_clock();
            } else {
                self.step(Event::Tick);
            }
            checks::no_drain_is_endless(&self.host, self.now);
            for lock in self.locks.values_mut() {
                lock.check(&self.host, self.now);
            }
            self.lease.check(&self.host, self.now);
            if self.is_awake() {
                self.market.check(&self.host);
            }
        }
        if self.exit.is_none() {
            self.now = end;
        }
    }

    fn happen(&mut self, item: Item) {
        if item.needs_supervisor() && self.now < self.supervisor_hangs_until {
            return self.at_moment(self.supervisor_hangs_until, item);
        }
        if item.needs_keeper() && self.now < self.keeper_stops_until {
            return self.at_moment(self.keeper_stops_until, item);
        }
        match item {
            Item::LeaseOpens(incarnation) if incarnation == self.incarnation => self.lease_opens(),
            Item::Renew(incarnation, fence) if incarnation == self.incarnation => {
                self.renew(fence);
            }
            Item::LeaseOpens(_) | Item::Renew(..) => {}
            Item::RenewalArrives(incarnation, fence, sent) => {
                self.renewal_arrives(incarnation, fence, sent);
            }
            Item::Arm(fence, until) => self.arm(fence, until),
            Item::Disarm(fence) => {
                let living = self.host.process(&RowKey::Slot(lease::worker())).is_some();
                if self
                    .host
                    .seat
                    .as_ref()
                    .is_some_and(|seat| seat.fence == fence)
                    && !living
                {
                    self.host.seat = None;
                }
            }
            Item::DeadlineComes => self.deadline_comes(),
            Item::Cut => {
                let span = self.rng.span(1_000, 40_000);
                self.lease.cut_until = self.now.after(span);
            }
            Item::SupervisorHangs if self.is_awake() => {
                self.say(|| "-- supervisor hangs".to_owned());
                let span = self.rng.span(1_000, 10_000);
                self.supervisor_hangs_until = self.now.after(span);
                self.totals.freezes += 1;
                self.at(span, Item::SupervisorDies);
            }
            Item::KeeperStops if self.is_awake() => {
                self.say(|| "-- keeper is stopped".to_owned());
                let span = self.rng.span(1_000, 18_000);
                self.keeper_stops_until = self.now.after(span);
                self.totals.freezes += 1;
            }
            Item::SupervisorHangs | Item::KeeperStops => {}
            Item::Changed(change) => self.changed(change),
            Item::Heard(event) => self.heard(event),
            Item::Process(pid, act) => self.process(pid, &act),
            Item::ToKeeper(incarnation, ops) => {
                if self.core.is_some() && incarnation <= self.incarnation {
                    self.deliver(ops);
                }
            }
            Item::ToSupervisor(incarnation, news) if incarnation == self.incarnation => {
                self.hear(news)
            }
            Item::Answer(incarnation, event) if incarnation == self.incarnation => {
                self.step(*event)
            }
            Item::Saved(incarnation, intent) => {
                self.disk = *intent;
                if incarnation == self.incarnation {
                    self.step(Event::IntentSaved { result: Ok(()) });
                }
            }
            Item::Keep(incarnation, fleet, book, claim) => {
                let result = self.keep(&fleet, *book, claim.as_ref());
                if incarnation == self.incarnation {
                    self.step(Event::BookKept { fleet, result });
                }
            }
            Item::Write(incarnation, file, ticket, job) => {
                if incarnation == self.incarnation {
                    let fails = self.host.tempers && self.rng.chance(8);
                    let result = match fails {
                        true => Err("no space".to_owned()),
                        false => Ok(self.market.write(ticket, &job)),
                    };
                    self.step(Event::Written {
                        fleet: job.fleet.clone(),
                        file,
                        ticket,
                        result,
                    });
                }
            }
            Item::Restore(incarnation, fleet, file, ticket, undo) => {
                if incarnation == self.incarnation {
                    self.market.restore(&fleet, ticket, undo);
                    let result = Ok(());
                    self.step(Event::Restored {
                        fleet,
                        file,
                        ticket,
                        result,
                    });
                }
            }
            Item::Settle(incarnation, fleet, file, ticket) => {
                if incarnation == self.incarnation {
                    self.market.settle(&fleet, ticket);
                    self.step(Event::Settled {
                        fleet,
                        file,
                        ticket,
                    });
                }
            }
            Item::ClockSet => {
                let by = jobs::jump(&mut self.rng);
                self.host.jobs.set(by, self.now);
                let shown = self.host.jobs.shown(self.now);
                self.say(|| format!("-- the clock is set by {by} ms to {shown}"));
                self.look_at_the_clock();
            }
            Item::ToSupervisor(..) | Item::Answer(..) => {}
            Item::SupervisorStarts => self.start_supervisor(),
            Item::SupervisorDies => self.supervisor_dies(),
            Item::KeeperDies => self.keeper_dies(),
            Item::KeeperStarts => {
                self.core = Some(Core::new());
                self.accepted = None;
                self.start_supervisor();
            }
            Item::Operator => self.operate(),
            Item::Signal(request) => {
                if let Some(core) = &mut self.core {
                    core.ask(request, None, self.now);
                }
                self.after_keeper();
            }
            Item::TryLock(incarnation, worker) if incarnation == self.incarnation => {
                self.try_lock(worker);
            }
            Item::Settled(incarnation, worker) if incarnation == self.incarnation => {
                self.settled(worker);
            }
            Item::Watch(incarnation, worker, pause) if incarnation == self.incarnation => {
                self.watch(worker, pause);
            }
            Item::TryLock(..) | Item::Settled(..) | Item::Watch(..) => {}
            Item::Rival => {
                let quiet = self.now >= self.quiet_from;
                for lock in self.locks.values_mut() {
                    lock.rival(&self.host, quiet, self.now);
                }
            }
            Item::Replaced => {
                for worker in lock::workers() {
                    let now = self.now;
                    if now < self.quiet_from && self.lock(&worker).1.replace(now) {
                        self.say(|| format!("-- the lock file of {worker} is replaced"));
                        self.gate(worker, GateNews::Lost("replaced".to_owned()));
                    }
                }
            }
        }
    }

    /// Do both run? What happens to both at once is the watchdog's of the machine.
    fn is_awake(&self) -> bool {
        self.engine.is_some()
            && self.supervisor_hangs_until <= self.now
            && self.keeper_stops_until <= self.now
    }

    fn lease_opens(&mut self) {
        if !self.lease.sought {
            return;
        }
        self.lease.sought = false;
        self.lease.open = true;
        self.lease.fence += 1;
        let worker = lease::worker();
        let name = leasehold::engine::lock_name(&worker);
        self.send(vec![Op::Hold { name }]);
        let news = GateNews::Opened {
            pass: self.lease.pass(),
            from: None,
        };
        self.step(Event::Gate { worker, news });
        self.at(Span::ZERO, Item::Renew(self.incarnation, self.lease.fence));
    }

    /// The supervisor asks for more time.
    fn renew(&mut self, fence: u64) {
        if !self.lease.open || self.lease.fence != fence {
            return;
        }
        let every = self.lease.spec.renew_every();
        self.at(every, Item::Renew(self.incarnation, fence));
        let lost = self.is_lost();
        if !lost {
            let sent = self.lease.clocks(self.now);
            let long = if self.rng.chance(5) { 4_000 } else { 300 };
            let after = self.rng.span(1, long);
            self.at(after, Item::RenewalArrives(self.incarnation, fence, sent));
        }
    }

    /// Does a message to or from the authority get lost now?
    fn is_lost(&mut self) -> bool {
        let trouble = self.now < self.quiet_from && self.faults.tempers;
        trouble && (self.now < self.lease.cut_until || self.rng.chance(3))
    }

    fn renewal_arrives(&mut self, incarnation: u64, fence: u64, sent: Clocks) {
        if !self.lease.open || self.lease.fence != fence {
            return;
        }
        self.lease.renewed(self.now);
        if !self.is_lost() {
            let worker = lease::worker();
            let news = LeaseNews::Renewed {
                sent,
                ttl: self.lease.spec.ttl,
            };
            let event = Box::new(Event::Lease {
                worker,
                fence,
                news,
            });
            let long = if self.rng.chance(5) { 4_000 } else { 300 };
            let after = self.rng.span(1, long);
            self.at(after, Item::Answer(incarnation, event));
        }
    }

    /// The keeper's second thread is asked for a deadline.
    fn arm(&mut self, fence: u64, until: Clocks) {
        if self.core.is_none() {
            return;
        }
        let living = self.host.process(&RowKey::Slot(lease::worker())).is_some();
        let now = self.lease.clocks(self.now);
        match &mut self.host.seat {
            Some(seat) if seat.fence == fence && seat.fired.is_none() => {
                if until.is_after(seat.until) {
                    seat.until = until;
                }
            }
            Some(seat) if seat.fence == fence || living => {}
            seat => {
                let fired = now.has_passed(until).then_some(Span::ZERO);
                *seat = Some(Seat {
                    fence,
                    until,
                    fired,
                });
            }
        }
        self.report_seat();
        self.at_moment(self.lease.comes_at(until), Item::DeadlineComes);
    }

    fn report_seat(&mut self) {
        if let Some(event) = self.seat_news() {
            self.answer(0, 3, event);
        }
    }

    fn seat_news(&self) -> Option<Event> {
        let seat = self.host.seat.as_ref()?;
        let state = match seat.fired {
            Some(late) => SeatState::Fired { late },
            None => SeatState::Armed,
        };
        Some(Event::Lease {
            worker: lease::worker(),
            fence: seat.fence,
            news: LeaseNews::Seat {
                until: seat.until,
                state,
            },
        })
    }

    fn deadline_comes(&mut self) {
        let now = self.lease.clocks(self.now);
        match &mut self.host.seat {
            Some(seat) if seat.fired.is_none() && now.has_passed(seat.until) => {
                seat.fired = Some(Span::ZERO);
            }
            _ => return,
        }
        self.totals.deadlines += 1;
        self.say(|| "-- the deadline comes".to_owned());
        self.host.kill(&RowKey::Slot(lease::worker()));
        self.after_keeper();
        self.report_seat();
    }

    fn look_at_the_clock(&mut self) {
        let shown = self.host.jobs.shown(self.now);
        self.step(Event::Wall { shown });
    }

    /// A book goes to disk, unless that is full. It takes what is not a claim: a clock that is set back, a full disk and the end of the
    /// keeper, all three within a minute, may cost the word about a tick.
    fn keep(&mut self, fleet: &FleetName, book: Book, claim: Option<&Run>) -> Result<(), String> {
        if self.host.tempers && claim.is_some() && self.rng.chance(6) {
            return Err("no space".to_owned());
        }
        let keeper = self.totals.keeper_deaths;
        self.host.jobs.keep(keeper, fleet, book, claim)
    }

    /// Whoever was writing dies: what it wrote is there as a whole, or not at all.
    fn cut_off_books(&mut self) {
        let mut rest = BinaryHeap::new();
        for due in std::mem::take(&mut self.queue) {
            match due.2 {
                Item::Keep(_, fleet, book, claim) => {
                    if self.rng.chance(50) {
                        let _ = self.keep(&fleet, *book, claim.as_ref());
                    }
                }
                _ => rest.push(due),
            }
        }
        self.queue = rest;
    }

    /// So it is with files.
    fn cut_off_files(&mut self) {
        let mut rest = BinaryHeap::new();
        for due in std::mem::take(&mut self.queue) {
            match due.2 {
                Item::Write(_, _, ticket, job) => {
                    if self.rng.chance(50) {
                        self.market.write(ticket, &job);
                    }
                }
                Item::Settle(_, fleet, _, ticket) => {
                    if self.rng.chance(50) {
                        self.market.settle(&fleet, ticket);
                    }
                }
                Item::Restore(_, fleet, _, ticket, undo) => {
                    if self.rng.chance(50) {
                        self.market.restore(&fleet, ticket, undo);
                    }
                }
                _ => rest.push(due),
            }
        }
        self.queue = rest;
    }

    fn gate(&mut self, worker: WorkerId, news: GateNews) {
        self.step(Event::Gate { worker, news });
    }

    /// The lock of a worker, and who we are to it.
    fn lock(&mut self, worker: &WorkerId) -> (Owner, &mut Lock) {
        let me = Owner::Supervisor(self.incarnation);
        let lock = self.locks.get_mut(worker);
        (me, lock.expect("a worker that needs one"))
    }

    fn try_lock(&mut self, worker: WorkerId) {
        let now = self.now;
        let (me, lock) = self.lock(&worker);
        if !lock.sought || lock.settling {
            return;
        }
        if lock.try_take(me, now) {
            lock.settling = true;
            let long = self.rng.chance(10);
            let after = self.rng.span(0, if long { 3_000 } else { 20 });
            self.at(after, Item::Settled(self.incarnation, worker));
        } else {
            let after = self.rng.span(1, 1_000);
            self.at(after, Item::TryLock(self.incarnation, worker.clone()));
            self.gate(worker, rival_has_it());
        }
    }

    /// Has somebody taken what was given back? Looked at again and again, ever more seldom.
    fn watch(&mut self, worker: WorkerId, pause: Span) {
        let lock = self.lock(&worker).1;
        if !lock.watched {
            return;
        }
        if lock.is_rivals() {
            self.gate(worker, rival_has_it());
        } else {
            let next = pause.plus(pause);
            self.at(pause, Item::Watch(self.incarnation, worker, next));
        }
    }

    fn settled(&mut self, worker: WorkerId) {
        let (me, lock) = self.lock(&worker);
        lock.settling = false;
        if !lock.sought {
            return lock.remove(me);
        }
        lock.sought = false;
        let pass = lock.open();
        lock.add(Owner::Packet);
        let name = leasehold::engine::lock_name(&worker);
        self.send(vec![Op::Hold { name }]);
        let from = None;
        self.gate(worker, GateNews::Opened { pass, from });
    }

    fn process(&mut self, pid: i32, act: &Act) {
        match self.host.happen(pid, act) {
            None => self.after_keeper(),
            Some(change @ (Change::LeaderEnded(..) | Change::Empty(_))) => {
                self.at(Span::ZERO, Item::Changed(change));
            }
            Some(Change::Said(RowKey::Slot(worker), generation, note)) => {
                let event = Event::Note {
                    worker,
                    generation,
                    note,
                };
                self.heard(event);
                self.after_keeper();
            }
            Some(Change::Said(..)) => {}
        }
    }

    /// A datagram waits in its socket, which the keeper holds, until a supervisor has taken it.
    fn heard(&mut self, event: Event) {
        if self.engine.is_some() && self.supervisor_hangs_until <= self.now {
            self.step(event);
        } else {
            self.at(Span::millis(20), Item::Heard(event));
        }
    }

    /// The keeper sees what became of a process.
    fn changed(&mut self, change: Change) {
        let Some(core) = &mut self.core else { return };
        match change {
            Change::LeaderEnded(key, status) => {
                self.market.command_ended(&key, status);
                core.leader_ended(&key, status, self.now, &mut self.host);
                let family = self
                    .host
                    .by_key
                    .get(&key)
                    .and_then(|pid| self.host.procs.get(pid))
                    .map_or(0, |proc| proc.family);
                if family == 0 {
                    core.containment_empty(&key, &mut self.host);
                }
            }
            Change::Empty(key) => core.containment_empty(&key, &mut self.host),
            Change::Said(..) => {}
        }
        self.after_keeper();
    }

    fn lock_named(&mut self, name: &str) -> Option<&mut Lock> {
        let named = |worker: &WorkerId| leasehold::engine::lock_name(worker) == name;
        let found = self.locks.iter_mut().find(|(worker, _)| named(worker));
        found.map(|(_, lock)| lock)
    }

    /// What a client was told is in the keeper's rows.
    fn promised(&mut self, text: &str) {
        let words = text
            .strip_prefix(PROMISE)
            .and_then(|text| text.split_once(' '));
        let Some((id, fence)) = words else {
            return;
        };
        let now = self.now;
        for (worker, lock) in &mut self.locks {
            if worker.to_string() == id {
                lock.promised(fence.parse().expect("a fence"), now);
            }
        }
    }

    /// Is this a start under a lock that excludes nobody any more?
    fn is_replaced(&self, key: &RowKey) -> Option<WorkerId> {
        let RowKey::Slot(worker) = key else {
            return None;
        };
        let lock = self.locks.get(worker);
        lock.filter(|lock| lock.replaced).map(|_| worker.clone())
    }

    /// Carries out one packet, and schedules what follows on the machine.
    fn deliver(&mut self, ops: Vec<Op>) {
        for op in ops {
            match op {
                Op::Exit { code } => self.exit = Some(code),
                Op::Hold { name } if name.ends_with("timed/0") => self.lease.kept = true,
                Op::Release { name } if name == "lock/timed/0" => self.lease.kept = false,
                Op::Hold { name } => {
                    if let Some(lock) = self.lock_named(&name) {
                        lock.remove(Owner::Packet);
                        lock.add(Owner::Keeper);
                    }
                }
                Op::Release { name } if name.starts_with("lock/") => {
                    if let Some(lock) = self.lock_named(&name) {
                        lock.remove(Owner::Keeper);
                    }
                    let left = self.host.under(&name);
                    assert!(left.is_none(), "{name} is given back under {left:?}");
                }
                Op::Notify { text } => self.promised(&text),
                Op::Release { .. } | Op::Pong { .. } | Op::Echo { .. } => {}
                op => {
                    if let Some(core) = &mut self.core {
                        core.apply(op, self.now, &mut self.host);
                    }
                }
            }
        }
        let status = self.engine.as_ref().map(|engine| engine.status(self.now));
        checks::not_ready_before_term(&mut self.host, status.as_ref());
        self.after_keeper();
    }

    /// The keeper's turn ends: it tells what changed.
    fn after_keeper(&mut self) {
        for (when, pid, act) in std::mem::take(&mut self.host.agenda) {
            self.at_moment(when, Item::Process(pid, act));
        }
        let Some(core) = &mut self.core else { return };
        if self.engine.is_none() || self.now < self.keeper_stops_until {
            return;
        }
        let news = core.take_news(usize::MAX);
        if !news.is_empty() {
            let when = self
                .now
                .after(self.rng.span(0, 3))
                .max(self.last_to_supervisor);
            self.last_to_supervisor = when;
            self.at_moment(when, Item::ToSupervisor(self.incarnation, news));
        }
    }

    fn hear(&mut self, news: Vec<News>) {
        let mut rows = Vec::new();
        for one in news {
            match one {
                News::Row { key, header, .. } => rows.push((key, header)),
                News::Node(asked) => self.step(Event::Asked(asked)),
                News::Refused { key, after } => self.step(Event::Refused { key, after }),
                News::Welcome(_)
                | News::Held { .. }
                | News::Caught
                | News::Ping { .. }
                | News::Echo { .. } => {}
            }
        }
        if !rows.is_empty() {
            self.step(Event::Rows(rows));
        }
    }

    fn step(&mut self, event: Event) {
        let Some(mut engine) = self.engine.take() else {
            return;
        };
        self.totals.steps += 1;
        let mut effects = Effects::default();
        engine.step(event, self.now.into(), &mut effects);
        let late = engine.deadline().filter(|at| *at <= self.now);
        assert!(
            late.is_none(),
            "a deadline of {late:?} is not after {:?}: {:?}",
            self.now,
            engine.overdue(self.now)
        );
        self.engine = Some(engine);
        self.perform(effects);
    }

    /// Does what the driver does: ops in packets of one engine step, everything else with its delay.
    fn perform(&mut self, effects: Effects) {
        let mut ops = Vec::new();
        let mut promises = Vec::new();
        let mut endings = BTreeMap::new();
        for effect in effects.list {
            match effect {
                Effect::Keeper(Op::Spawn { key, after, .. })
                    if let Some(worker) = self.is_replaced(&key) =>
                {
                    let news = GateNews::Lost("replaced".to_owned());
                    self.answer(0, 1, Event::Gate { worker, news });
                    self.answer(1, 2, Event::Refused { key, after });
                }
                Effect::Keeper(op) => ops.push(op),
                Effect::Probe {
                    worker, generation, ..
                } => self.probe(worker, generation),
                Effect::ReadEnv { worker, after, .. } => {
                    let bad = self.host.tempers && self.rng.chance(5);
                    let result = if bad {
                        Err("no such file".to_owned())
                    } else {
                        Ok(vec![("A".to_owned(), "1".to_owned())])
                    };
                    self.answer(
                        0,
                        30,
                        Event::EnvRead {
                            worker,
                            after,
                            result,
                        },
                    );
                }
                Effect::ReadConfig(purpose) => {
                    let result = if self.rng.chance(15) {
                        Err("error: not TOML".to_owned())
                    } else {
                        Ok(Box::new(self.file.clone()))
                    };
                    self.answer(1, 50, Event::ConfigRead { purpose, result });
                }
                Effect::Accept { config, previous } => {
                    self.accepted = Some(Accepted {
                        config: *config,
                        previous: previous.into_iter().collect(),
                    });
                }
                Effect::SeekGate { worker, .. } if worker == lease::worker() => {
                    self.lease.sought = true;
                    let after = self.rng.span(0, 5);
                    self.at(after, Item::LeaseOpens(self.incarnation));
                }
                Effect::ShutGate(worker) if worker == lease::worker() => {
                    self.lease.given_back(&self.host);
                    let name = leasehold::engine::lock_name(&worker);
                    ops.push(Op::Release { name });
                }
                Effect::Arm { fence, until, .. } => {
                    let after = self.rng.span(0, 3);
                    self.at(after, Item::Arm(fence, until));
                }
                Effect::Disarm { fence, .. } => {
                    let after = self.rng.span(0, 3);
                    self.at(after, Item::Disarm(fence));
                }
                Effect::KillByHand(key, _) => {
                    self.host.kill(&key);
                    self.after_keeper();
                }
                Effect::YieldGate { worker, .. } if worker == lease::worker() => {}
                Effect::YieldGate { worker, .. } => {
                    self.lock(&worker).1.watched = true;
                    let pause = Span::millis(10);
                    self.at(pause, Item::Watch(self.incarnation, worker, pause));
                }
                Effect::SeekGate { worker, .. } => {
                    let lock = self.lock(&worker).1;
                    (lock.sought, lock.watched) = (true, false);
                    let after = self.rng.span(0, 5);
                    self.at(after, Item::TryLock(self.incarnation, worker));
                }
                Effect::ShutGate(worker) => {
                    let (me, lock) = self.lock(&worker);
                    lock.shut();
                    if !lock.settling {
                        lock.remove(me);
                        let name = leasehold::engine::lock_name(&worker);
                        ops.push(Op::Release { name });
                    }
                }
                Effect::SaveIntent(intent) => {
                    let after = self.rng.span(1, 20);
                    self.at(after, Item::Saved(self.incarnation, Box::new(intent)));
                }
                Effect::WakeAt(wake) => self.host.jobs.wake = wake,
                Effect::ReadBook(fleet) => {
                    let book = self.host.jobs.books.get(&fleet);
                    let result = Ok(book.map(|(_, book)| Box::new(book.clone())));
                    self.answer(0, 20, Event::BookRead { fleet, result });
                }
                Effect::KeepBook { fleet, book, claim } => {
                    let after = self.rng.span(1, 40);
                    self.at(after, Item::Keep(self.incarnation, fleet, book, claim));
                }
                Effect::Record(transition) => {
                    self.host.jobs.reported(&transition);
                    if let (Subject::Worker(worker, _), What::Stopping { ending, .. }) =
                        (&transition.subject, &transition.what)
                    {
                        endings.insert(worker.clone(), *ending);
                    }
                    if let (Subject::Worker(worker, _), What::GateShut { cause, .. }) =
                        (&transition.subject, &transition.what)
                        && let Cause::Released { .. } = cause
                        && let Some(lock) = self.locks.get_mut(worker)
                    {
                        self.totals.releases += 1;
                        lock.yielded(self.now);
                    }
                    let text = format!("{} {}", transition.subject, transition.what);
                    self.say(|| text);
                }
                Effect::Sample(order) => {
                    // One in some is lost, as when the thread hangs.
                    if self.rng.chance(95) {
                        let calm = !self.host.tempers;
                        let sample = self.meters.measure(&self.host, &order, self.now, calm);
                        self.answer(0, 40, Event::Sampled(Box::new(sample)));
                    }
                }
                Effect::Watch { .. }
                | Effect::AskSource { .. }
                | Effect::Weigh(_)
                | Effect::Way(_)
                | Effect::Etcd(_)
                | Effect::Pin(_) => {}
                Effect::ReadSource(fleet) => {
                    let length = match self.host.tempers {
                        true => self.rng.below(4) * 1_000,
                        false => 0,
                    };
                    let result = Ok(length);
                    self.answer(0, 5, Event::Sourced { fleet, result });
                }
                Effect::Publish { fleet, listing, .. } => {
                    let engine = self.engine.as_ref().expect("it stepped");
                    let status = engine.status(self.now);
                    self.market.publish(fleet, listing, &status, self.now);
                }
                Effect::WriteFile {
                    file, ticket, job, ..
                } => {
                    let after = publish::disk(&mut self.rng, self.host.tempers);
                    self.at(after, Item::Write(self.incarnation, file, ticket, job));
                }
                Effect::RestoreFile {
                    fleet,
                    file,
                    ticket,
                    undo,
                    ..
                } => {
                    let after = publish::disk(&mut self.rng, self.host.tempers);
                    let item = Item::Restore(self.incarnation, fleet, file, ticket, undo);
                    self.at(after, item);
                }
                Effect::SettleFile {
                    fleet,
                    file,
                    ticket,
                    ..
                } => {
                    let after = publish::disk(&mut self.rng, self.host.tempers);
                    self.at(after, Item::Settle(self.incarnation, fleet, file, ticket));
                }
                Effect::CloseLogs(_)
                | Effect::KeepSockets { .. }
                | Effect::ReopenLogs
                | Effect::Unpublished { .. }
                | Effect::Probed { .. } => {}
                Effect::Reply { reply, .. } => {
                    if let Ok(Reply::Released { gates }) = reply {
                        let promise = |gate: &ReleasedGate| Op::Notify {
                            text: format!("{PROMISE}{} {}", gate.id, gate.fence),
                        };
                        promises.extend(gates.iter().map(promise));
                        // Somebody may have waited for it.
                        let after = self.rng.span(0, 20_000);
                        self.at(after, Item::Rival);
                    }
                }
            }
        }
        self.look_at_stops(&ops, &endings);
        ops.extend(promises);
        self.send(ops);
    }

    /// Lists are out before any request of the same step reaches the keeper.
    fn look_at_stops(&self, ops: &[Op], endings: &BTreeMap<WorkerId, Ending>) {
        for op in ops {
            if let Op::Signal {
                key: RowKey::Slot(worker),
                generation,
                signal: 15,
                ..
            } = op
            {
                let ending = endings.get(worker).copied();
                self.market.stopping(worker, *generation, ending, self.now);
            }
        }
    }

    /// In one packet, or in two, as where it would be too long.
    fn send(&mut self, mut ops: Vec<Op>) {
        if ops.len() > 1 && self.rng.chance(20) {
            let at = 1 + self.rng.below(ops.len() as u64 - 1) as usize;
            let rest = ops.split_off(at);
            self.send_packet(ops);
            return self.send_packet(rest);
        }
        self.send_packet(ops);
    }

    fn send_packet(&mut self, ops: Vec<Op>) {
        if !ops.is_empty() {
            let when = self.now.after(self.rng.span(0, 3)).max(self.last_to_keeper);
            self.last_to_keeper = when;
            self.at_moment(when, Item::ToKeeper(self.incarnation, ops));
        }
    }

    fn answer(&mut self, low: u64, high: u64, event: Event) {
        let after = self.rng.span(low, high);
        self.at(after, Item::Answer(self.incarnation, Box::new(event)));
    }

    fn probe(&mut self, worker: WorkerId, generation: Generation) {
        let there = self
            .host
            .by_key
            .get(&RowKey::Slot(worker.clone()))
            .and_then(|pid| self.host.procs.get(pid));
        let listens =
            there.is_some_and(|proc| proc.leader && proc.listens && proc.generation == generation);
        let result = if listens {
            Ok(())
        } else {
            Err("refused".to_owned())
        };
        self.answer(
            1,
            900,
            Event::Probed {
                worker,
                generation,
                result,
            },
        );
    }

    fn origin(&mut self, core: &mut Core) -> Origin {
        let accepted = self
            .accepted
            .get_or_insert_with(|| Accepted {
                config: self.file.clone(),
                previous: BTreeMap::new(),
            })
            .clone();
        let rows = core.tell_all().into_iter().filter_map(|news| match news {
            News::Row { key, header, body } => Some((key, header, body.unwrap_or_default())),
            _ => None,
        });
        Origin {
            config: accepted.config,
            previous: accepted.previous,
            intent: self.disk.clone(),
            facts: Facts {
                node: "sim".to_owned(),
                notify_socket: "/run/notify".to_owned(),
                ..Facts::default()
            },
            asked: core.asked(),
            rows: rows.collect(),
            gates: self.found_gates(),
            shown: self.host.jobs.shown(self.now),
            recover: false,
            seed: self.seed,
        }
    }

    fn found_gates(&self) -> BTreeMap<WorkerId, Kept> {
        let locks = self.locks.iter();
        let kept = locks.filter_map(|(worker, lock)| Some((worker.clone(), lock.kept()?)));
        let timed = self.lease.found(&self.host);
        let timed = timed.map(|kept| (lease::worker(), kept));
        kept.chain(timed).collect()
    }

    fn start_supervisor(&mut self) {
        let Some(mut core) = self.core.take() else {
            return;
        };
        self.incarnation += 1;
        let origin = self.origin(&mut core);
        self.core = Some(core);
        self.lease.open = origin.gates.contains_key(&lease::worker());
        let me = Owner::Supervisor(self.incarnation);
        for lock in origin.gates.keys() {
            let lock = self.locks.get_mut(lock);
            if let Some(lock) = lock.filter(|lock| !lock.replaced) {
                lock.add(me);
            }
        }
        self.host.jobs.wake = None;
        let mut effects = Effects::default();
        self.engine = Some(Supervisor::new(origin, self.now.into(), &mut effects));
        self.perform(effects);
        if self.lease.open {
            self.at(Span::ZERO, Item::Renew(self.incarnation, self.lease.fence));
        }
        if self
            .host
            .seat
            .as_ref()
            .is_some_and(|seat| seat.fired.is_some())
        {
            self.report_seat();
        }
    }

    /// It dies after any number of the packets that it had sent; those that were sent are carried out before the next one starts.
    fn supervisor_dies(&mut self) {
        let (Some(mut old), true) = (self.engine.take(), self.core.is_some()) else {
            return;
        };
        self.totals.supervisor_deaths += 1;
        let mut sent: Vec<Due> = Vec::new();
        let mut rest = BinaryHeap::new();
        for due in std::mem::take(&mut self.queue) {
            match due.2 {
                Item::ToKeeper(..) => sent.push(due),
                _ => rest.push(due),
            }
        }
        self.queue = rest;
        sent.sort_by_key(|due| due.1);
        let all = sent.len();
        let kept = if self.rng.chance(50) {
            all
        } else {
            self.rng.below(all as u64 + 1) as usize
        };
        self.say(|| format!("-- supervisor dies, {kept} of {all} packets sent"));
        sent.truncate(kept);
        for due in sent {
            if let Item::ToKeeper(_, ops) = due.2 {
                self.deliver(ops);
            }
        }
        self.locks.values_mut().for_each(Lock::supervisor_died);
        self.cut_off_files();
        self.market.supervisor_died();
        self.cut_off_books();
        self.lease.sought = false;
        // One that hung has not yet done what was due.
        let hung = std::mem::take(&mut self.supervisor_hangs_until) > Moment(0);
        if kept == all && self.exit.is_none() && !hung {
            self.compare_with_rebuilt(&mut old);
        }
        let pause = self.rng.span(1, 300);
        self.at(pause, Item::SupervisorStarts);
    }

    /// With everything delivered, a rebuilt supervisor sees what the dead one would have seen after the same news.
    fn compare_with_rebuilt(&mut self, old: &mut Supervisor) {
        // An intent on its way to disk is known to the old one only, and will be there before the next one starts.
        let unsaved = self
            .queue
            .iter()
            .any(|due| matches!(due.2, Item::Saved(..) | Item::ToSupervisor(..)));
        if unsaved {
            return;
        }
        let Some(mut core) = self.core.take() else {
            return;
        };
        self.totals.rebuilt += 1;
        let origin = self.origin(&mut core);
        let rows = origin
            .rows
            .iter()
            .map(|(key, header, _)| (key.clone(), header.clone()))
            .collect();
        let asked: Asked = origin.asked;
        self.core = Some(core);
        let shown = self.host.jobs.shown(self.now);
        let mut ignored = Effects::default();
        old.step(Event::Wall { shown }, self.now.into(), &mut ignored);
        old.step(Event::Rows(rows), self.now.into(), &mut ignored);
        old.step(Event::Asked(asked), self.now.into(), &mut ignored);
        if let Some(event) = self.seat_news() {
            old.step(event, self.now.into(), &mut ignored);
        }
        let mut new = Supervisor::new(origin, self.now.into(), &mut ignored);
        if let Some(event) = self.seat_news() {
            new.step(event, self.now.into(), &mut ignored);
        }
        checks::same_picture(&old.status(self.now), &new.status(self.now));
    }

    fn keeper_dies(&mut self) {
        if self.core.take().is_none() {
            return;
        }
        self.cut_off_books();
        self.cut_off_files();
        self.market.keeper_died();
        self.totals.keeper_deaths += 1;
        self.host.keeper_deaths += 1;
        self.say(|| "-- keeper dies".to_owned());
        self.engine = None;
        self.incarnation += 1;
        self.host.wipe();
        self.locks.values_mut().for_each(Lock::keeper_died);
        self.lease.keeper_died();
        (self.supervisor_hangs_until, self.keeper_stops_until) = (self.now, self.now);
        let keep = |item: &Item| {
            !matches!(
                item,
                Item::Process(..)
                    | Item::ToKeeper(..)
                    | Item::ToSupervisor(..)
                    | Item::SupervisorStarts
                    | Item::Arm(..)
                    | Item::Disarm(_)
                    | Item::Changed(_)
            )
        };
        let rest = std::mem::take(&mut self.queue)
            .into_iter()
            .filter(|due| keep(&due.2));
        self.queue = rest.collect();
        let pause = self.rng.span(100, 3_000);
        self.at(pause, Item::KeeperStarts);
    }

    fn operate(&mut self) {
        self.requests += 1;
        self.totals.commands += 1;
        let fleet = (*self.rng.pick(&[
            "db",
            "web",
            "flaky",
            "once",
            "web/1",
            "db/0",
            "lone",
            "lone",
            "timed",
            "*",
            "skips",
            "queues",
            "replaces",
            "short/0",
            "sole",
            "follows",
            "follows",
            "follows/1",
        ]))
        .to_owned();
        let (names, by) = (vec![fleet.clone()], By::default());
        let command = match self.rng.below(12) {
            9 | 10 => Command::Release {
                name: (*self
                    .rng
                    .pick(&["lone", "lone", "lone", "timed", "sole", "db", "extra"]))
                .to_owned(),
                slot: self.rng.chance(50).then_some(0),
                by,
            },
            8 => Command::Run {
                name: (*self
                    .rng
                    .pick(&["skips", "queues", "replaces", "short", "sole", "db"]))
                .to_owned(),
                by,
            },
            11 if self.rng.chance(30) => Command::Drain { by },
            11 => Command::Undrain { by },
            0 => Command::Stop { names, by },
            1 | 2 => Command::Start { names, by },
            3 => Command::Restart { names },
            4 => {
                let to = match self.rng.below(10) {
                    0..=2 => Sizing::Auto,
                    3 => Sizing::Pause,
                    _ => Sizing::Workers(self.rng.below(7) as u32),
                };
                let lasting = self
                    .rng
                    .chance(30)
                    .then(|| Span::secs(5 + self.rng.below(60)));
                Command::Scale {
                    fleet,
                    to,
                    lasting,
                    by,
                }
            }
            5 => Command::Signal { names, signal: 1 },
            _ => {
                self.file = fleets::edited(&self.file.clone(), &mut self.rng);
                self.say(|| "-- file edited".to_owned());
                if self.rng.chance(50) {
                    return self.happen(Item::Signal(Request::Reload));
                }
                Command::Reload
            }
        };
        self.say(|| format!("-- {command:?}"));
        self.step(Event::Command {
            request: RequestId(self.requests),
            command,
        });
    }
}

/// How a promise to a client travels to the keeper, behind the rows that keep it.
const PROMISE: &str = "released ";

fn rival_has_it() -> GateNews {
    let (pid, record) = (1, None);
    GateNews::Waits {
        why: "the rival has it".to_owned(),
        holder: Some(Holder { pid, record }),
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() && !self.trace {
            eprintln!("the last of seed {}:", self.seed);
            for line in &self.log {
                eprintln!("  {line}");
            }
        }
    }
}
