//! Nodes, etcd, and what is between them; faults; and the eye that sees everything at its true time.

use std::collections::{BTreeMap, BinaryHeap, VecDeque};

use leasehold::{
    config::{Config, spec::Takeover},
    engine::{
        Command, Effect, Effects, Event, Intent, Supervisor,
        book::{Book, Run},
        cluster::rpc::{
            Body, Call, CallId, Do, Failure, KeyValue, News as EtcdNews, Order, Reply, Request,
            Txn, When,
        },
        command::{By, Reply as Answer},
        effect::What,
        gate::{GateNews, Pass},
        lease::LeaseNews,
    },
    id::{FleetName, RequestId, WorkerId},
    keeper::core::Kernel,
    time::{Clocks, Moment, Span},
    wire::{News, Op, RowKey, SeatState},
};

use crate::{
    agenda,
    doubles::{Double, Roles},
    etcd::{Etcd, Flavour, Out, Verdict},
    host::{Act, Change, Seat, Token, ready},
    jobs,
    mutants::Mutant,
    node::{COUNTED, Contended, Node, UNITS, WANTED, fleet, worker},
    rng::Rng,
    ticks::{self, Ledger, Owed},
};

/// What goes wrong in a story.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Faults {
    /// Members and nodes are frozen, cut off and killed.
    pub(crate) troubles: u32,
    /// Somebody revokes leases and deletes keys, by hand or by an old etcd's mistake.
    pub(crate) removals: u32,
    /// An operator moves locks, every ten seconds.
    pub(crate) moves: u32,
    /// Nodes are drained, and take work again or not.
    pub(crate) drains: u32,
    /// Somebody sets a node's wall clock.
    pub(crate) clocks: u32,
    /// Somebody edits a node's file, and has it read.
    pub(crate) reloads: u32,
    /// In the end etcd is as it was long before.
    pub(crate) restored: bool,
    /// Clocks are slewed, of nodes and of members.
    pub(crate) slewed: bool,
    /// How long a lease is good for.
    pub(crate) ttl: Span,
    /// No worker cares for SIGTERM, and all take as long to die as they may.
    pub(crate) stubborn: bool,
    /// Supervisors are stopped just when they have asked for more time, and cut off when they have it.
    pub(crate) aims: bool,
    /// So many members are known to the nodes.
    pub(crate) endpoints: usize,
    /// Half a second there and back.
    pub(crate) far: bool,
    /// There is a fleet whose workers are counted over all nodes, too.
    pub(crate) counted: bool,
    /// There are jobs, too.
    pub(crate) jobs: bool,
    /// Workers have hooks.
    pub(crate) hooks: bool,
    /// What befalls whoever has a lock, again and again.
    pub(crate) double: Option<Double>,
    pub(crate) flavour: Flavour,
}

/// What happened in all stories together.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Totals {
    pub(crate) steps: u64,
    pub(crate) spawns: u64,
    pub(crate) takeovers: u64,
    pub(crate) promotions: u64,
    pub(crate) deadlines: u64,
    pub(crate) supervisor_deaths: u64,
    pub(crate) elections: u64,
    pub(crate) early_revokes: u64,
    pub(crate) stale_renewals: u64,
    pub(crate) removals: u64,
    pub(crate) moves: u64,
    pub(crate) drains: u64,
    pub(crate) reloads: u64,
    pub(crate) runs: u64,
    pub(crate) doubles: u64,
    pub(crate) stories: u64,
}

impl Totals {
    pub(crate) fn add(&mut self, other: Self) {
        self.steps += other.steps;
        self.spawns += other.spawns;
        self.takeovers += other.takeovers;
        self.promotions += other.promotions;
        self.deadlines += other.deadlines;
        self.supervisor_deaths += other.supervisor_deaths;
        self.elections += other.elections;
        self.early_revokes += other.early_revokes;
        self.stale_renewals += other.stale_renewals;
        self.removals += other.removals;
        self.moves += other.moves;
        self.drains += other.drains;
        self.reloads += other.reloads;
        self.runs += other.runs;
        self.doubles += other.doubles;
        self.stories += 1;
    }
}

#[derive(Clone, Debug)]
enum Item {
    Process(usize, i32, Act),
    Changed(usize, Change),
    ToKeeper(usize, u64, Vec<Op>),
    ToSupervisor(usize, u64, Vec<News>),
    Tell(usize, u64, Box<Event>),
    Arrives(usize, u64, usize, CallId, Request, Moment),
    Replies(usize, u64, CallId, Result<Reply, Failure>),
    TimesOut(usize, u64, CallId, Span),
    Opens(usize, u64, usize, CallId, String, Span),
    Arm(usize, u64, WorkerId, u64, Clocks),
    Disarm(usize, u64, WorkerId, u64),
    LockTaken(usize, u64, WorkerId, u64),
    IsThere(&'static str, usize),
    Due(usize, WorkerId),
    EtcdTicks,
    KeeperStarts(usize),
    SupervisorStarts(usize, u64),
    Saved(usize, u64, Box<Intent>),
    Keep(usize, FleetName, Box<Book>, Option<Run>),
    Fault(Fault),
}

#[derive(Clone, Copy, Debug)]
pub(crate) enum Fault {
    SupervisorDies(usize),
    SupervisorHangs(usize, Span),
    KeeperHangs(usize, Span),
    /// There is no watchdog of systemd.
    KeeperHangsUnwatched(usize, Span),
    BothHang(usize, Span),
    KeeperDies(usize),
    MachineDies(usize),
    CutNode(usize, Span),
    CutOneWay(usize, Span, bool),
    CutLink(usize, usize, Span),
    MemberHangs(Option<usize>, Span),
    DiskHangs(Span),
    MemberCut(Option<usize>, Span),
    QuorumLost(Span),
    Lags(usize, Span),
    StreamBreaks,
    Moved(usize, usize),
    Restarted(usize),
    Drained(usize, bool),
    BackedUp,
    Restored,
    EpochRaised(usize),
    Double(Double),
    NoSpace,
    LockBusy(usize, Span),
    ClockSet(usize, i64),
    ClockRight(usize),
    RunAsked(usize, &'static str),
    Edited(usize),
    Reloaded(usize),
    LeaseRevoked,
    PlaceDeleted,
    RecordDeleted,
}

type Due = agenda::Due<Item>;

const STORY: Span = Span::secs(150);
const SETTLE: Span = Span::secs(90);
/// systemd's watchdog, while a singleton is held: half of `kill_margin`.
const WATCHDOG: Span = Span::millis(500);
const NODES: usize = 3;

/// A node has one lease: what its locks are told of it is what is configured for the node, also after a rollback.
fn assert_one_lease(config: &Config) {
    let etcd = config.etcd.as_ref().expect("a cluster");
    let locks = config.fleets.values().flat_map(|spec| &spec.singleton);
    for lease in locks.flat_map(|lock| &lock.lease) {
        assert_eq!((lease.ttl, lease.epoch), (etcd.lease_ttl, etcd.epoch));
    }
}

/// How a story ends that should not: the promise was broken.
pub(crate) const TWO: &str = "too many holders";
pub(crate) const FELL: &str = "the fence fell";

pub(crate) struct World {
    seed: u64,
    rng: Rng,
    now: Moment,
    order: u64,
    queue: BinaryHeap<Due>,
    nodes: Vec<Node>,
    etcd: Etcd,
    locks: Vec<Contended>,
    faults: Faults,
    /// The highest token that anybody ran with, and where.
    tokens: BTreeMap<String, (Token, usize)>,
    /// With how many others whoever has this fence of a lock may run, by what his node was configured to say when he had it.
    promised: BTreeMap<(String, u64), usize>,
    /// What the mutants remember.
    memory: BTreeMap<(usize, String), KeyValue>,
    terms: BTreeMap<usize, u64>,
    trace: bool,
    log: VecDeque<String>,
    totals: Totals,
    quiet_from: Moment,
    requests: u64,
    /// etcd was restored, and is not what it was.
    is_forgetful: bool,
    /// What was asked for, and where it is to go.
    asked: BTreeMap<RequestId, (&'static str, usize, Moment)>,
    /// On whose word which node reads its file.
    reloading: BTreeMap<RequestId, usize>,
    /// Everybody is in touch all the time.
    is_prompt: bool,
    ledger: Ledger,
}

/// Whose turn it is.
#[derive(Clone, Copy, Debug)]
enum Turn {
    Queue,
    Engine(usize),
    Keeper(usize),
    Alarm(usize),
}

impl World {
    pub(crate) fn new(
        seed: u64,
        faults: Faults,
        locks: &[Contended],
        mutant: Mutant,
        trace: bool,
    ) -> Self {
        let mut rng = Rng::new(seed);
        // Whoever waits a second counts on what it killed to be gone by then; whoever does not, waits out the margin.
        let quick =
            faults.removals > 0 && locks.iter().any(|lock| lock.takeover != Takeover::Strict);
        let linger = if quick {
            Span::millis(300)
        } else {
            Span::secs(1)
        };
        let nodes = (0..NODES)
            .map(|index| Node::new(index, locks, linger, &faults, mutant, &mut rng))
            .collect();
        let etcd = Etcd::new(faults.flavour, faults.slewed, &mut rng);
        Self {
            seed,
            rng,
            now: Moment(1_000_000_000),
            order: 0,
            queue: BinaryHeap::new(),
            nodes,
            etcd,
            locks: locks.to_vec(),
            faults,
            tokens: BTreeMap::new(),
            promised: BTreeMap::new(),
            memory: BTreeMap::new(),
            terms: BTreeMap::new(),
            trace,
            log: VecDeque::new(),
            totals: Totals::default(),
            quiet_from: Moment(0),
            requests: 0,
            is_forgetful: false,
            asked: BTreeMap::new(),
            reloading: BTreeMap::new(),
            is_prompt: faults.troubles == 0,
            ledger: Ledger::default(),
        }
    }

    /// Trouble, then quiet, in which everything must run again.
    pub(crate) fn run(mut self) -> Totals {
        self.quiet_from = self.now.after(STORY);
        self.at(Span::ZERO, Item::EtcdTicks);
        for node in 0..NODES {
            let after = self.rng.span(0, 2_000);
            self.at(after, Item::KeeperStarts(node));
        }
        for _ in 0..self.faults.troubles {
            let (after, fault) = self.trouble();
            let when = self.now.after(after);
            self.at_moment(when, Item::Fault(fault));
            self.second(when, fault);
        }
        if let Some(double) = self.faults.double {
            for turn in 0..5 {
                let when = Span::secs(15 + 25 * turn).plus(self.rng.span(0, 8_000));
                self.at(when, Item::Fault(Fault::Double(double)));
            }
        }
        if self.faults.restored {
            let after = self.rng.span(5_000, 60_000);
            self.at(after, Item::Fault(Fault::BackedUp));
            let after = self.rng.span(130_000, STORY.as_millis());
            self.at(after, Item::Fault(Fault::Restored));
        }
        for turn in 0..self.faults.moves {
            let node = self.rng.below(NODES as u64) as usize;
            let to = self.rng.below(NODES as u64) as usize;
            let when = Span::secs(10 + 10 * u64::from(turn));
            self.at(when, Item::Fault(Fault::Moved(node, to)));
        }
        for _ in 0..self.faults.drains {
            let node = self.rng.below(NODES as u64) as usize;
            let when = self.rng.span(5_000, STORY.as_millis());
            let fault = Fault::Drained(node, self.rng.chance(60));
            self.at(when, Item::Fault(fault));
        }
        for _ in 0..self.faults.reloads {
            let node = self.rng.below(NODES as u64) as usize;
            let when = self.rng.span(5_000, STORY.as_millis());
            self.at(when, Item::Fault(Fault::Edited(node)));
        }
        if self.faults.jobs {
            self.set_clocks();
        }
        for _ in 0..self.faults.removals {
            let when = self.rng.span(10_000, STORY.as_millis());
            let fault = match self.rng.below(4) {
                0 | 1 => Fault::LeaseRevoked,
                2 => Fault::PlaceDeleted,
                _ => Fault::RecordDeleted,
            };
            self.at(when, Item::Fault(fault));
        }
        self.play_until(self.quiet_from);
        for node in &mut self.nodes {
            node.host.tempers = false;
        }
        if self.faults.jobs {
            for node in 0..NODES {
                self.fault(Fault::ClockRight(node));
            }
        }
        if self.faults.reloads > 0 {
            for node in 0..NODES {
                self.fault(Fault::Edited(node));
            }
        }
        self.etcd.has_space = true;
        self.play_until(self.quiet_from.after(SETTLE));
        if self.is_forgetful {
            self.check_nobody();
            for node in 0..NODES {
                let after = self.rng.span(0, 20_000);
                self.at(after, Item::Fault(Fault::EpochRaised(node)));
            }
            self.play_until(self.quiet_from.after(SETTLE).after(SETTLE));
        }
        self.check_progress();
        self.check_records();
        self.check_units();
        self.check_jobs();
        self.totals.elections = self.etcd.elections;
        self.totals.early_revokes = self.etcd.early_revokes;
        self.totals.stale_renewals = self.etcd.stale_renewals;
        self.totals
    }

    /// No two clocks show the same, and some are set; and somebody wants runs between the ticks.
    fn set_clocks(&mut self) {
        for node in &mut self.nodes {
            let off = self.rng.below(3_000) as i64;
            node.set_clock(off, self.now);
        }
        let asked = if self.faults.troubles > 0 { 6 } else { 1 };
        for _ in 0..self.rng.below(asked) {
            let node = self.rng.below(NODES as u64) as usize;
            let job = *self.rng.pick(&ticks::NAMES);
            // Nothing is left of it when the last tick comes.
            let when = self.rng.span(5_000, 120_000);
            self.at(when, Item::Fault(Fault::RunAsked(node, job)));
        }
        let only = self.rng.chance(50).then_some(2);
        for _ in 0..self.faults.clocks {
            let any = self.rng.below(NODES as u64) as usize;
            let node = only.unwrap_or(any);
            self.nodes[node].is_sane = false;
            let when = self.rng.span(5_000, STORY.as_millis());
            let fault = Fault::ClockSet(node, jobs::jump(&mut self.rng));
            self.at(when, Item::Fault(fault));
        }
    }

    /// Two things at once, now and then.
    fn second(&mut self, when: Moment, first: Fault) {
        if !self.rng.chance(40) {
            return;
        }
        // Whoever wakes up is cut off before he can ask again.
        if let Fault::SupervisorHangs(node, span) = first {
            let (after, cut) = (self.rng.span(0, 2_000), self.rng.span(5_000, 25_000));
            let at = when.after(span).after(after);
            return self.at_moment(at, Item::Fault(Fault::CutNode(node, cut)));
        }
        let (_, second) = self.trouble();
        let after = self.rng.span(0, 3_000);
        self.at_moment(when.after(after), Item::Fault(second));
    }

    /// It befalls whoever has a lock now, if anybody has.
    fn double(&mut self, double: Double) {
        let holds = |node: &Node| node.host.procs.values().any(|proc| proc.fence != 0);
        let all = 0..NODES;
        let holders: Vec<usize> = all.filter(|index| holds(&self.nodes[*index])).collect();
        if holders.is_empty() {
            return;
        }
        self.totals.doubles += 1;
        let holder = *self.rng.pick(&holders);
        let mut roles = Roles {
            holder,
            next: (holder + 1 + self.rng.below(2) as usize) % NODES,
            leader: self.etcd.leading(),
            rng: &mut self.rng,
        };
        for (after, fault) in double(&mut roles) {
            self.at(after, Item::Fault(fault));
        }
    }

    /// Something that goes wrong, and when.
    fn trouble(&mut self) -> (Span, Fault) {
        let node = self.rng.below(NODES as u64) as usize;
        let member = self.rng.below(3) as usize;
        let leader = self.rng.chance(60);
        let span = self.rng.span(200, 25_000);
        let brief = self.rng.span(100, 6_000);
        let when = self.rng.span(5_000, STORY.as_millis() - 27_000);
        let fault = match self.rng.below(20) {
            0 => Fault::SupervisorDies(node),
            1 => Fault::SupervisorHangs(node, span),
            2 => Fault::SupervisorHangs(node, brief),
            3 => Fault::KeeperHangs(node, brief),
            4 => Fault::BothHang(node, span),
            5 => Fault::KeeperDies(node),
            6 => Fault::MachineDies(node),
            7 => Fault::CutNode(node, span),
            8 => Fault::CutOneWay(node, span, leader),
            9 => Fault::CutLink(node, member, span),
            10 => Fault::MemberHangs((!leader).then_some(member), span),
            11 => Fault::DiskHangs(span),
            12 => Fault::MemberCut((!leader).then_some(member), span),
            13 => Fault::QuorumLost(span),
            14 => Fault::Lags(member, self.rng.span(1, 3_000)),
            15 => Fault::StreamBreaks,
            16 => Fault::LockBusy(node, span),
            17 | 18 => Fault::Moved(node, member),
            _ => Fault::NoSpace,
        };
        (when, fault)
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
            if self.log.len() == 60 {
                self.log.pop_front();
            }
            let line = format!("{:?} {}", self.now, line());
            self.log.push_back(line);
        }
    }

    fn play_until(&mut self, end: Moment) {
        loop {
            let queued = self.queue.peek().map(|due| due.0);
            let mut next = queued.map(|at| (at, Turn::Queue));
            for (index, node) in self.nodes.iter().enumerate() {
                let engine = node.engine.as_ref().and(node.engine_due);
                let engine = engine.map(|at| node.when(at).max(node.supervisor_until));
                let keeper = node.core.as_ref().and_then(|core| core.deadline());
                let keeper = keeper.map(|at| node.when(at).max(node.keeper_until));
                let alarm = node.alarm(self.now);
                for (at, turn) in [
                    (engine, Turn::Engine(index)),
                    (keeper, Turn::Keeper(index)),
                    (alarm, Turn::Alarm(index)),
                ] {
                    if let Some(at) = at.filter(|at| next.is_none_or(|(first, _)| *at < first)) {
                        next = Some((at, turn));
                    }
                }
            }
            let Some((at, turn)) = next.filter(|(at, _)| *at <= end) else {
                break;
            };
            self.now = self.now.max(at);
            if self.faults.jobs {
                for node in &mut self.nodes {
                    node.host.jobs.follow(self.now);
                }
            }
            match turn {
                Turn::Queue => {
                    let due = self.queue.pop().expect("peeked");
                    self.happen(due.2);
                }
                Turn::Engine(index) => self.step(index, Event::Tick),
                Turn::Alarm(index) => {
                    let node = &mut self.nodes[index];
                    node.clock_was_set = false;
                    let shown = node.host.jobs.shown(self.now);
                    self.step(index, Event::Wall { shown });
                }
                Turn::Keeper(index) => {
                    let node = &mut self.nodes[index];
                    let now = node.clocks(self.now).boottime;
                    if let Some(core) = &mut node.core {
                        core.tick(now, &mut node.host);
                    }
                    self.after_keeper(index);
                }
            }
            self.check();
        }
        self.now = end;
    }

    fn happen(&mut self, item: Item) {
        for node in &mut self.nodes {
            node.host.now = node.seen_by_keeper(self.now);
        }
        match item {
            Item::Process(index, pid, act) => self.process(index, pid, &act),
            Item::Changed(index, change) => self.changed(index, change),
            Item::ToKeeper(index, incarnation, ops) => {
                let node = &self.nodes[index];
                if node.core.is_none() || incarnation > node.incarnation {
                    return;
                }
                if node.keeper_until > self.now {
                    let until = node.keeper_until;
                    return self.at_moment(until, Item::ToKeeper(index, incarnation, ops));
                }
                self.deliver(index, ops);
            }
            Item::ToSupervisor(index, incarnation, news) => {
                if !self.is_there(index, incarnation) {
                    return;
                }
                if self.nodes[index].supervisor_until > self.now {
                    let until = self.nodes[index].supervisor_until;
                    return self.at_moment(until, Item::ToSupervisor(index, incarnation, news));
                }
                self.hear(index, news);
            }
            Item::Tell(index, incarnation, event) => {
                if !self.is_there(index, incarnation) {
                    return;
                }
                if self.nodes[index].supervisor_until > self.now {
                    let until = self.nodes[index].supervisor_until;
                    return self.at_moment(until, Item::Tell(index, incarnation, event));
                }
                self.step(index, *event);
            }
            Item::Arrives(index, incarnation, member, call, request, since) => {
                self.arrives(index, incarnation, member, call, request, since);
            }
            Item::Replies(index, incarnation, call, result) => {
                if self.is_there(index, incarnation) {
                    self.replies(index, incarnation, call, result);
                }
            }
            Item::TimesOut(index, incarnation, call, within) => {
                if self.is_there(index, incarnation) {
                    let result = Err(Failure::Unanswered(within));
                    self.replies(index, incarnation, call, result);
                }
            }
            Item::Opens(index, incarnation, member, id, prefix, within) => {
                self.opens(index, incarnation, member, id, prefix, within);
            }
            Item::Arm(index, incarnation, worker, fence, until) => {
                self.arm(index, incarnation, worker, fence, until);
            }
            Item::Disarm(index, incarnation, worker, fence) => {
                let node = &mut self.nodes[index];
                if node.keeper_until > self.now {
                    let until = node.keeper_until;
                    return self.at_moment(until, Item::Disarm(index, incarnation, worker, fence));
                }
                let ours = node
                    .host
                    .seats
                    .get(&worker)
                    .is_some_and(|seat| seat.fence == fence);
                if ours && node.host.leader(&worker).is_none() {
                    node.host.seats.remove(&worker);
                }
            }
            Item::LockTaken(index, incarnation, worker, fence) => {
                if self.is_there(index, incarnation) {
                    self.lock_taken(index, incarnation, worker, fence);
                }
            }
            Item::IsThere(lock, to) => {
                let there = self.nodes[to].locks.contains_key(&worker(lock));
                assert!(there, "{lock} was to go to node{to}, and is not there");
            }
            Item::Due(index, worker) => self.due(index, &worker),
            Item::EtcdTicks => {
                for out in self.etcd.tick(self.now, &mut self.rng) {
                    self.send_out(out);
                }
                self.at(Span::millis(25), Item::EtcdTicks);
            }
            Item::KeeperStarts(index) => {
                if self.nodes[index].core.is_none() {
                    self.nodes[index].keeper_starts();
                    self.start_supervisor(index);
                }
            }
            Item::SupervisorStarts(index, incarnation) => {
                let node = &self.nodes[index];
                if node.incarnation == incarnation && node.engine.is_none() && node.core.is_some() {
                    if node.keeper_until > self.now {
                        let until = node.keeper_until;
                        let item = Item::SupervisorStarts(index, incarnation);
                        return self.at_moment(until, item);
                    }
                    self.start_supervisor(index);
                }
            }
            Item::Saved(index, incarnation, intent) => {
                self.totals.drains += u64::from(intent.node.is_some());
                self.nodes[index].intent = *intent;
                if self.is_there(index, incarnation) {
                    self.step(index, Event::IntentSaved { result: Ok(()) });
                }
            }
            Item::Keep(index, job, book, claim) => {
                let result = self.keep(index, &job, *book, claim.as_ref());
                if self.nodes[index].engine.is_some() {
                    self.tell(index, 0, 0, Event::BookKept { fleet: job, result });
                }
            }
            Item::Fault(fault) => self.fault(fault),
        }
    }

    /// A book goes to disk.
    fn keep(
        &mut self,
        index: usize,
        job: &FleetName,
        book: Book,
        claim: Option<&Run>,
    ) -> Result<(), String> {
        let host = &mut self.nodes[index].host;
        let fails = self.faults.troubles > 0 && host.tempers;
        if fails && claim.is_some() && self.rng.chance(4) {
            return Err("no space".to_owned());
        }
        let keeper = host.keeper_deaths;
        host.jobs.keep(keeper, job, book, claim)
    }

    /// Whoever was writing dies: what it wrote is there as a whole, or not at all.
    fn cut_off_books(&mut self, index: usize) {
        let mut rest = BinaryHeap::new();
        for due in std::mem::take(&mut self.queue) {
            match due.2 {
                Item::Keep(whose, job, book, claim) if whose == index => {
                    if self.rng.chance(50) {
                        let _ = self.keep(index, &job, *book, claim.as_ref());
                    }
                }
                _ => rest.push(due),
            }
        }
        self.queue = rest;
    }

    fn is_there(&self, index: usize, incarnation: u64) -> bool {
        let node = &self.nodes[index];
        node.engine.is_some() && node.incarnation == incarnation
    }

    fn fault(&mut self, fault: Fault) {
        self.say(|| format!("-- {fault:?}"));
        let now = self.now;
        match fault {
            Fault::SupervisorDies(index) => self.supervisor_dies(index),
            Fault::SupervisorHangs(index, span) => self.supervisor_hangs(index, span),
            Fault::KeeperHangs(index, span) => self.keeper_hangs(index, span),
            Fault::KeeperHangsUnwatched(index, span) => {
                self.nodes[index].keeper_until = now.after(span);
            }
            Fault::BothHang(index, span) => {
                self.supervisor_hangs(index, span);
                self.keeper_hangs(index, span);
            }
            Fault::KeeperDies(index) => {
                self.nodes[index].keeper_lost();
                self.keeper_gone(index);
                let after = self.rng.span(100, 3_000);
                self.at(after, Item::KeeperStarts(index));
            }
            Fault::MachineDies(index) => {
                self.nodes[index].power_lost(&mut self.rng);
                self.keeper_gone(index);
                let after = self.rng.span(2_000, 20_000);
                self.at(after, Item::KeeperStarts(index));
            }
            Fault::CutNode(index, span) => {
                for cut in &mut self.nodes[index].cuts {
                    cut.there_until = now.after(span);
                    cut.back_until = now.after(span);
                }
            }
            Fault::CutOneWay(index, span, there) => {
                for cut in &mut self.nodes[index].cuts {
                    match there {
                        true => cut.there_until = now.after(span),
                        false => cut.back_until = now.after(span),
                    }
                }
            }
            Fault::CutLink(index, member, span) => {
                self.nodes[index].cuts[member].there_until = now.after(span);
                self.nodes[index].cuts[member].back_until = now.after(span);
            }
            Fault::MemberHangs(member, span) => {
                let member = member.unwrap_or_else(|| self.etcd.leading());
                self.etcd.freeze(member, now.after(span));
            }
            Fault::DiskHangs(span) => {
                let leader = self.etcd.leading();
                self.etcd.hang_disk(leader, now.after(span));
            }
            Fault::MemberCut(member, span) => {
                let member = member.unwrap_or_else(|| self.etcd.leading());
                self.etcd.cut(member, now, now.after(span));
            }
            Fault::QuorumLost(span) => {
                self.etcd.freeze(1, now.after(span));
                self.etcd.freeze(2, now.after(span));
            }
            Fault::Lags(member, lag) => self.etcd.lag(member, lag),
            Fault::StreamBreaks => {
                if let Some(out) = self.etcd.break_watch(&mut self.rng) {
                    self.send_out(out);
                }
            }
            Fault::LockBusy(index, span) => {
                self.nodes[index].lock_busy_until = now.after(span);
            }
            Fault::ClockSet(index, _) | Fault::ClockRight(index)
                if self.nodes[index].is_blind(now) =>
            {
                // Of ticks that a clock shows for a while behind its back nobody can know.
                self.at(Span::secs(1), Item::Fault(fault));
            }
            Fault::ClockSet(index, by) => self.nodes[index].set_clock(by, now),
            Fault::RunAsked(index, job) => self.ask_to_run(index, job),
            Fault::Edited(index) => {
                let node = &mut self.nodes[index];
                node.edit(!node.host.tempers, &mut self.rng);
                self.fault(Fault::Reloaded(index));
            }
            Fault::Reloaded(index) if self.nodes[index].is_blind(now) => {
                self.at(Span::secs(1), Item::Fault(fault));
            }
            Fault::Reloaded(index) => self.reload(index),
            Fault::ClockRight(index) => {
                let right = -self.nodes[index].host.jobs.offset;
                self.nodes[index].set_clock(right, now);
            }
            Fault::BackedUp => self.etcd.back_up(),
            Fault::Restored => {
                let same_id = self.rng.chance(50);
                self.is_forgetful = self.etcd.restore(same_id, now);
            }
            Fault::Double(double) => self.double(double),
            Fault::EpochRaised(index) => {
                self.nodes[index].raise_epoch();
                self.reload(index);
            }
            Fault::Moved(index, to) => self.ask_to_move(index, to),
            Fault::Restarted(index) => self.restart(index),
            Fault::Drained(index, empty) => self.drain(index, empty),
            Fault::NoSpace => self.etcd.has_space = !self.etcd.has_space,
            Fault::LeaseRevoked => {
                if let Some(lease) = self.etcd.some_lease(&mut self.rng) {
                    self.totals.removals += 1;
                    self.etcd.operate(Request::Revoke(lease), now);
                }
            }
            Fault::RecordDeleted => {
                if let Some(key) = self.etcd.some_record(&mut self.rng) {
                    self.totals.removals += 1;
                    let txn = Txn::read(vec![Do::Delete(key)]);
                    self.etcd.operate(Request::Txn(txn), now);
                }
            }
            Fault::PlaceDeleted => {
                if let Some(key) = self.etcd.some_place(&mut self.rng) {
                    self.totals.removals += 1;
                    let txn = Txn::read(vec![Do::Delete(key)]);
                    self.etcd.operate(Request::Txn(txn), now);
                }
            }
        }
    }

    /// An operator has a node read its file.
    fn reload(&mut self, index: usize) {
        self.requests += 1;
        let (request, command) = (RequestId(self.requests), Command::Reload);
        self.reloading.insert(request, index);
        self.step(index, Event::Command { request, command });
    }

    /// An operator wants a lock elsewhere, and says so anywhere.
    fn ask_to_move(&mut self, index: usize, to: usize) {
        let lock = *self.rng.pick(&self.locks);
        self.requests += 1;
        let named = self.rng.chance(70);
        if named {
            self.asked
                .insert(RequestId(self.requests), (lock.name, to, self.now));
        }
        let to = named.then(|| format!("node{to}"));
        let command = Command::Move {
            name: lock.name.to_owned(),
            to,
            by: By::default(),
        };
        let request = RequestId(self.requests);
        if self.nodes[index].supervisor_until <= self.now {
            self.step(index, Event::Command { request, command });
        }
    }

    /// An operator wants all workers of a node replaced.
    fn restart(&mut self, index: usize) {
        self.requests += 1;
        let (request, names) = (RequestId(self.requests), vec!["*".to_owned()]);
        let command = Command::Restart { names };
        if self.nodes[index].supervisor_until <= self.now {
            self.step(index, Event::Command { request, command });
        }
    }

    fn ask_to_run(&mut self, index: usize, job: &str) {
        self.requests += 1;
        let request = RequestId(self.requests);
        let command = Command::Run {
            name: job.to_owned(),
            by: By::default(),
        };
        if self.nodes[index].supervisor_until <= self.now {
            self.step(index, Event::Command { request, command });
        }
    }

    fn drain(&mut self, index: usize, empty: bool) {
        self.requests += 1;
        let (request, by) = (RequestId(self.requests), By::default());
        let command = match empty {
            true => Command::Drain { by },
            false => Command::Undrain { by },
        };
        if self.nodes[index].supervisor_until <= self.now {
            self.step(index, Event::Command { request, command });
        }
    }

    /// Its sockets are gone, and what was in them.
    fn keeper_gone(&mut self, index: usize) {
        self.etcd.hang_up(index);
        self.cut_off_books(index);
        self.queue.retain(|due| match &due.2 {
            Item::ToKeeper(of, ..)
            | Item::Arm(of, ..)
            | Item::Disarm(of, ..)
            | Item::Changed(of, ..)
            | Item::Process(of, ..) => *of != index,
            _ => true,
        });
    }

    /// It hangs; the keeper notices after a while, and replaces it.
    fn supervisor_hangs(&mut self, index: usize, span: Span) {
        self.nodes[index].supervisor_until = self.now.after(span);
        if self.rng.chance(50) {
            let after = self.rng.span(1_500, 10_000);
            self.at(after, Item::Fault(Fault::SupervisorDies(index)));
        }
    }

    /// It hangs; if for long, systemd's watchdog ends the whole unit.
    fn keeper_hangs(&mut self, index: usize, span: Span) {
        self.nodes[index].keeper_until = self.now.after(span);
        if span > WATCHDOG {
            self.at(WATCHDOG, Item::Fault(Fault::KeeperDies(index)));
        }
    }

    fn supervisor_dies(&mut self, index: usize) {
        if self.nodes[index].engine.take().is_none() {
            return;
        }
        self.totals.supervisor_deaths += 1;
        self.etcd.hang_up(index);
        self.cut_off_books(index);
        let incarnation = self.nodes[index].incarnation;
        // What it had sent is carried out before the next one starts; some of it was not sent yet.
        let mut sent = Vec::new();
        let mut rest = BinaryHeap::new();
        for due in std::mem::take(&mut self.queue) {
            match due.2 {
                Item::ToKeeper(whose, of, ops) if (whose, of) == (index, incarnation) => {
                    sent.push((due.1, ops));
                }
                _ => rest.push(due),
            }
        }
        self.queue = rest;
        sent.sort_by_key(|(order, _)| *order);
        let kept = self.rng.below(sent.len() as u64 + 1) as usize;
        for (_, ops) in sent.into_iter().take(kept) {
            self.deliver(index, ops);
        }
        let node = &mut self.nodes[index];
        node.asked.clear();
        node.supervisor_until = Moment(0);
        node.incarnation += 1;
        let next = node.incarnation;
        let after = self.rng.span(1, 300);
        self.at(after, Item::SupervisorStarts(index, next));
    }

    fn start_supervisor(&mut self, index: usize) {
        let seed = self.seed;
        // As after five deaths in a row: it believes no row.
        let recover = self.faults.hooks && self.rng.chance(10);
        let node = &mut self.nodes[index];
        node.incarnation += 1;
        let now = node.seen(self.now);
        let origin = node.origin(seed, recover, self.now);
        node.host.jobs.wake = None;
        let mut effects = Effects::default();
        let engine = Supervisor::new(origin, now, &mut effects);
        node.engine_due = engine.deadline();
        node.engine = Some(engine);
        self.perform(index, effects);
        let seats: Vec<WorkerId> = self.nodes[index].host.seats.keys().cloned().collect();
        for worker in seats {
            self.report(index, &worker);
        }
    }

    fn step(&mut self, index: usize, event: Event) {
        let node = &mut self.nodes[index];
        let Some(mut engine) = node.engine.take() else {
            return;
        };
        self.totals.steps += 1;
        let now = node.seen(self.now);
        let mut effects = Effects::default();
        engine.step(event, now, &mut effects);
        let due = engine.deadline();
        let late = due.filter(|at| *at <= now.boottime);
        assert!(late.is_none(), "a deadline of {late:?} at {now:?}");
        self.nodes[index].engine_due = due;
        self.nodes[index].engine = Some(engine);
        self.perform(index, effects);
    }

    fn perform(&mut self, index: usize, effects: Effects) {
        let mut ops = Vec::new();
        let incarnation = self.nodes[index].incarnation;
        for effect in effects.list {
            match effect {
                Effect::Keeper(op) => ops.push(op),
                Effect::Etcd(order) => self.obey(index, order),
                Effect::Pin(pin) => self.nodes[index].pin = Some(pin),
                Effect::SaveIntent(intent) => {
                    let after = self.rng.span(0, 20);
                    let item = Item::Saved(index, incarnation, Box::new(intent));
                    self.at(after, item);
                }
                Effect::ReadConfig(purpose) => {
                    let file = self.nodes[index].file.clone();
                    let result = Ok(Box::new(file));
                    self.tell(index, 1, 50, Event::ConfigRead { purpose, result });
                }
                Effect::Accept { config, previous } => {
                    self.totals.reloads += 1;
                    assert_one_lease(&config);
                    let node = &mut self.nodes[index];
                    node.config = *config;
                    node.previous = previous.into_iter().collect();
                }
                Effect::ReadEnv { worker, after, .. } => {
                    let slow = self.rng.chance(20);
                    let most = if slow { 3_000 } else { 50 };
                    let result = Ok(Vec::new());
                    let event = Event::EnvRead {
                        worker,
                        after,
                        result,
                    };
                    self.tell(index, 1, most, event);
                }
                Effect::WakeAt(wake) => self.nodes[index].host.jobs.wake = wake,
                Effect::ReadBook(fleet) => {
                    let book = self.nodes[index].host.jobs.books.get(&fleet);
                    let result = Ok(book.map(|(_, book)| Box::new(book.clone())));
                    self.tell(index, 0, 20, Event::BookRead { fleet, result });
                }
                Effect::KeepBook { fleet, book, claim } => {
                    let after = self.rng.span(1, 40);
                    self.at(after, Item::Keep(index, fleet, book, claim));
                }
                Effect::SeekGate { worker, fence, .. } => {
                    let fence = fence.expect("a cluster's locks have fences");
                    let node = &mut self.nodes[index];
                    node.sought.insert(worker.clone(), fence);
                    let free = node.lock_busy_until.max(self.now);
                    let when = free.after(self.rng.span(0, 5));
                    self.at_moment(when, Item::LockTaken(index, incarnation, worker, fence));
                }
                Effect::ShutGate(worker) => {
                    self.nodes[index].sought.remove(&worker);
                    let name = leasehold::engine::lock_name(&worker);
                    ops.push(Op::Release { name });
                }
                Effect::Arm {
                    worker,
                    fence,
                    until,
                    ..
                } => {
                    let after = self.rng.span(0, 3);
                    self.at(after, Item::Arm(index, incarnation, worker, fence, until));
                }
                Effect::Disarm { worker, fence } => {
                    let after = self.rng.span(0, 3);
                    self.at(after, Item::Disarm(index, incarnation, worker, fence));
                }
                Effect::KillByHand(key, _) => {
                    self.nodes[index].host.kill(&key);
                    self.after_keeper(index);
                }
                Effect::Reply {
                    request,
                    reply: Ok(Answer::Begun { .. }),
                } => {
                    let faults = &self.faults;
                    let calm = faults.troubles == 0 && faults.removals == 0;
                    let calm = calm && faults.double.is_none();
                    let asked = self.asked.remove(&request).filter(|_| calm);
                    if let Some((lock, to, since)) = asked {
                        let by = since.after(Span::millis(9_900));
                        self.at_moment(by, Item::IsThere(lock, to));
                    }
                }
                Effect::Reply {
                    request,
                    reply: Err(_),
                } => {
                    // The file is being read as it was.
                    if let Some(index) = self.reloading.remove(&request) {
                        self.at(Span::secs(1), Item::Fault(Fault::Reloaded(index)));
                    }
                }
                Effect::Record(transition) => {
                    if let What::GateReleased { .. } = transition.what {
                        self.totals.moves += 1;
                    }
                    self.nodes[index].host.jobs.reported(&transition);
                    let name = self.nodes[index].name.clone();
                    self.say(|| format!("{name} {} {}", transition.subject, transition.what));
                }
                _ => {}
            }
        }
        self.send(index, ops);
    }

    /// The lock file is ours, if it is still wanted.
    fn lock_taken(&mut self, index: usize, incarnation: u64, worker: WorkerId, fence: u64) {
        let node = &mut self.nodes[index];
        let busy = node.lock_busy_until.max(node.supervisor_until);
        if busy > self.now {
            return self.at_moment(busy, Item::LockTaken(index, incarnation, worker, fence));
        }
        if node.sought.get(&worker) != Some(&fence) {
            return;
        }
        node.sought.remove(&worker);
        let spec = node.config.fleets.get(&worker.fleet);
        if let Some(spec) = spec.and_then(|spec| spec.singleton.as_ref()) {
            let whose = (worker.fleet.to_string(), fence);
            self.promised.insert(whose, spec.slots as usize);
        }
        let name = format!("{} {fence}", leasehold::engine::lock_name(&worker));
        self.send(index, vec![Op::Hold { name }]);
        let pass = Pass {
            path: "/run/lock/sim".to_owned(),
            fence,
        };
        let from = None;
        let news = GateNews::Opened { pass, from };
        self.step(index, Event::Gate { worker, news });
    }

    fn send(&mut self, index: usize, ops: Vec<Op>) {
        if ops.is_empty() {
            return;
        }
        let after = self.rng.span(0, 3);
        let when = self.now.after(after).max(self.nodes[index].to_keeper);
        self.nodes[index].to_keeper = when;
        let incarnation = self.nodes[index].incarnation;
        self.at_moment(when, Item::ToKeeper(index, incarnation, ops));
    }

    fn tell(&mut self, index: usize, low: u64, high: u64, event: Event) {
        let after = self.rng.span(low, high);
        let incarnation = self.nodes[index].incarnation;
        self.at(after, Item::Tell(index, incarnation, Box::new(event)));
    }

    // ---- etcd and the way there

    fn latency(&mut self) -> Span {
        if self.faults.far {
            return self.rng.span(150, 300);
        }
        match self.rng.below(40) {
            0 if !self.is_prompt => self.rng.span(100, 2_500),
            1..=8 => self.rng.span(10, 120),
            _ => self.rng.span(0, 8),
        }
    }

    fn obey(&mut self, index: usize, order: Order) {
        let incarnation = self.nodes[index].incarnation;
        match order {
            Order::Call(Call {
                id,
                endpoint,
                request,
                within,
            }) => {
                let sent = self.nodes[index].clocks(self.now);
                self.nodes[index].asked.insert(id, sent);
                if matches!(request, Request::KeepAlive(_)) {
                    self.aim(index);
                }
                self.at(within, Item::TimesOut(index, incarnation, id, within));
                let mutant = self.nodes[index].mutant;
                if matches!(mutant, Mutant::NoRead | Mutant::PlainLease)
                    && let Some(reply) = self.remembered(index, &request)
                {
                    return self.at(Span::ZERO, Item::Replies(index, incarnation, id, Ok(reply)));
                }
                if self.nodes[index].cuts[endpoint].there_until > self.now {
                    return;
                }
                let request = careless(mutant, request);
                let after = self.latency();
                let (now, item) = (self.now, Item::Arrives);
                let item = item(index, incarnation, endpoint, id, request, now.after(after));
                self.at(after, item);
            }
            Order::Watch {
                id,
                endpoint,
                prefix,
                within,
            } => {
                let after = self.latency().min(within);
                self.at(
                    after,
                    Item::Opens(index, incarnation, endpoint, id, prefix, within),
                );
            }
            Order::Unwatch(id) => self.etcd.unwatch(index, id),
        }
    }

    fn may_aim(&self) -> bool {
        self.faults.aims && self.now.after(Span::secs(40)) < self.quiet_from
    }

    /// The worst moment to be stopped at.
    fn aim(&mut self, index: usize) {
        let mut procs = self.nodes[index].host.procs.values();
        let holds = procs.any(|proc| proc.fence != 0);
        if self.may_aim() && holds && self.rng.chance(6) {
            let first = Fault::SupervisorHangs(index, self.rng.span(1_000, 5_500));
            self.fault(first);
            self.second(self.now, first);
        }
    }

    fn opens(
        &mut self,
        index: usize,
        incarnation: u64,
        member: usize,
        id: CallId,
        prefix: String,
        within: Span,
    ) {
        if !self.is_there(index, incarnation) {
            return;
        }
        let cut = self.nodes[index].cuts[member];
        let lost = cut.there_until > self.now || cut.back_until > self.now;
        let frozen = self.etcd.is_frozen(member, self.now).is_some();
        if lost || frozen {
            let why = Failure::Unanswered(within);
            let news = EtcdNews::WatchEnded { watch: id, why };
            return self.tell(
                index,
                within.as_millis(),
                within.as_millis(),
                Event::Etcd(news),
            );
        }
        let news = self.etcd.watch(index, member, id, prefix, self.now);
        self.send_out(Out {
            client: index,
            member,
            news,
        });
    }

    fn arrives(
        &mut self,
        index: usize,
        incarnation: u64,
        member: usize,
        call: CallId,
        request: Request,
        since: Moment,
    ) {
        if let Some(until) = self.etcd.is_frozen(member, self.now) {
            // It waits in a socket, and is served when the member goes on.
            let item = Item::Arrives(index, incarnation, member, call, request, until);
            return self.at_moment(until, item);
        }
        let verdict = self
            .etcd
            .serve(member, &request, since, self.now, &mut self.rng);
        match verdict {
            Verdict::Answer(after, result) => {
                let away = self.latency();
                if self.nodes[index].cuts[member].back_until <= self.now {
                    let when = after.plus(away);
                    self.at(when, Item::Replies(index, incarnation, call, result));
                }
            }
            Verdict::Later(after) => {
                let item = Item::Arrives(index, incarnation, member, call, request, since);
                self.at(after, item);
            }
            Verdict::Never => {}
        }
    }

    fn replies(
        &mut self,
        index: usize,
        incarnation: u64,
        call: CallId,
        result: Result<Reply, Failure>,
    ) {
        let node = &mut self.nodes[index];
        if node.supervisor_until > self.now {
            let until = node.supervisor_until;
            return self.at_moment(until, Item::Replies(index, incarnation, call, result));
        }
        let Some(mut sent) = node.asked.remove(&call) else {
            return;
        };
        if matches!(node.mutant, Mutant::FromReceipt | Mutant::PlainLease) {
            sent = node.clocks(self.now);
        }
        if let Ok(reply) = &result {
            self.remember(index, reply);
        }
        self.step(
            index,
            Event::Etcd(EtcdNews::Answered { call, sent, result }),
        );
    }

    fn remember(&mut self, index: usize, reply: &Reply) {
        match &reply.body {
            Body::Alive { .. } => {
                self.terms.insert(index, reply.from.term);
            }
            Body::Txn { read, .. } => {
                for kv in read.iter().flatten() {
                    self.memory.insert((index, kv.key.clone()), kv.clone());
                }
            }
            _ => {}
        }
    }

    /// What somebody who does not ask thinks that a read would show.
    fn remembered(&self, index: usize, request: &Request) -> Option<Reply> {
        let Request::Txn(txn) = request else {
            return None;
        };
        let only_gets = txn.when.is_empty() && txn.then.iter().all(|one| matches!(one, Do::Get(_)));
        if !only_gets || txn.then.is_empty() {
            return None;
        }
        let read = txn.then.iter().map(|one| match one {
            Do::Get(key) => {
                let kv = self.memory.get(&(index, key.clone()));
                kv.cloned().into_iter().collect()
            }
            _ => Vec::new(),
        });
        let read = read.collect();
        let mut from = leasehold::engine::cluster::rpc::Header {
            cluster: 0xe7cd,
            revision: i64::MAX,
            ..Default::default()
        };
        from.term = *self.terms.get(&index)?;
        let body = Body::Txn { held: true, read };
        Some(Reply { from, body })
    }

    fn send_out(&mut self, out: Out) {
        let Out {
            client,
            member,
            news,
        } = out;
        let cut = self.nodes[client].cuts[member];
        let latency = self.latency();
        // One stream: nothing overtakes, and what is cut off comes later.
        let when = self.now.max(cut.back_until).after(latency);
        let node = &mut self.nodes[client];
        let when = when.max(node.stream_at[member]);
        node.stream_at[member] = when;
        let incarnation = node.incarnation;
        let event = Box::new(Event::Etcd(news));
        self.at_moment(when, Item::Tell(client, incarnation, event));
    }

    // ---- the keeper and its deadlines

    fn arm(&mut self, index: usize, incarnation: u64, worker: WorkerId, fence: u64, until: Clocks) {
        let node = &mut self.nodes[index];
        if node.core.is_none() {
            return;
        }
        if node.mutant == Mutant::NoKeeper {
            let state = SeatState::Armed;
            let news = LeaseNews::Seat { until, state };
            let event = Event::Lease {
                worker,
                fence,
                news,
            };
            return self.tell(index, 0, 0, event);
        }
        if node.keeper_until > self.now {
            let at = node.keeper_until;
            return self.at_moment(at, Item::Arm(index, incarnation, worker, fence, until));
        }
        let living = node.host.leader(&worker).is_some();
        let fired = node.is_past(until, self.now);
        match node.host.seats.get_mut(&worker) {
            Some(seat) if seat.fence == fence && !seat.fired => {
                if until.is_after(seat.until) {
                    seat.until = until;
                }
            }
            Some(seat) if seat.fence == fence || living => {}
            _ => {
                let seat = Seat {
                    fence,
                    until,
                    fired,
                };
                node.host.seats.insert(worker.clone(), seat);
            }
        }
        let at = node.passes(until);
        self.report(index, &worker);
        self.at_moment(at, Item::Due(index, worker));
    }

    fn report(&mut self, index: usize, worker: &WorkerId) {
        let Some(seat) = self.nodes[index].host.seats.get(worker).copied() else {
            return;
        };
        let state = match seat.fired {
            true => SeatState::Fired { late: Span::ZERO },
            false => SeatState::Armed,
        };
        let until = seat.until;
        let event = Event::Lease {
            worker: worker.clone(),
            fence: seat.fence,
            news: LeaseNews::Seat { until, state },
        };
        self.tell(index, 0, 3, event);
    }

    fn due(&mut self, index: usize, worker: &WorkerId) {
        let node = &mut self.nodes[index];
        if node.keeper_until > self.now {
            let at = node.keeper_until;
            return self.at_moment(at, Item::Due(index, worker.clone()));
        }
        let Some(seat) = node.host.seats.get(worker).copied() else {
            return;
        };
        if seat.fired || !node.is_past(seat.until, self.now) {
            return;
        }
        if let Some(seat) = node.host.seats.get_mut(worker) {
            seat.fired = true;
        }
        self.totals.deadlines += 1;
        node.host.strike(worker);
        self.say(|| format!("node{index} {worker} deadline"));
        self.after_keeper(index);
        self.report(index, worker);
    }

    fn process(&mut self, index: usize, pid: i32, act: &Act) {
        let change = self.nodes[index].host.happen(pid, act);
        match change {
            None => self.after_keeper(index),
            Some(Change::Ready(RowKey::Slot(worker), generation)) => {
                let note = ready();
                let event = Event::Note {
                    worker,
                    generation,
                    note,
                };
                self.tell(index, 0, 5, event);
            }
            Some(change) => self.at(Span::ZERO, Item::Changed(index, change)),
        }
    }

    fn changed(&mut self, index: usize, change: Change) {
        let node = &mut self.nodes[index];
        if node.keeper_until > self.now {
            let at = node.keeper_until;
            return self.at_moment(at, Item::Changed(index, change));
        }
        let now = node.clocks(self.now).boottime;
        let Some(core) = &mut node.core else { return };
        match change {
            Change::LeaderEnded(key, status) if node.host.pid(&key).is_some() => {
                core.leader_ended(&key, status, now, &mut node.host);
                if !node.host.has_family(&key) {
                    core.containment_empty(&key, &mut node.host);
                }
            }
            Change::Empty(key) if node.host.pid(&key).is_some() => {
                core.containment_empty(&key, &mut node.host);
            }
            Change::LeaderEnded(..) | Change::Empty(_) | Change::Ready(..) => {}
        }
        self.after_keeper(index);
    }

    fn deliver(&mut self, index: usize, ops: Vec<Op>) {
        let now = self.nodes[index].clocks(self.now).boottime;
        for op in ops {
            match op {
                Op::Hold { name } => {
                    let (name, fence) = name.split_once(' ').expect("a name and a fence");
                    let is_it = |id: &WorkerId| leasehold::engine::lock_name(id) == name;
                    let id = self.names().map(worker).find(is_it);
                    let id = id.expect("a lock of ours");
                    self.nodes[index]
                        .locks
                        .insert(id, fence.parse().expect("a number"));
                }
                Op::Release { name } => {
                    self.nodes[index]
                        .locks
                        .retain(|id, _| leasehold::engine::lock_name(id) != name);
                }
                Op::Notify { .. } | Op::Pong { .. } | Op::Echo { .. } | Op::Exit { .. } => {}
                op => {
                    let node = &mut self.nodes[index];
                    if let Some(core) = &mut node.core {
                        core.apply(op, now, &mut node.host);
                    }
                }
            }
        }
        self.after_keeper(index);
    }

    fn after_keeper(&mut self, index: usize) {
        let agenda = std::mem::take(&mut self.nodes[index].host.agenda);
        for (after, pid, act) in agenda {
            self.at(after, Item::Process(index, pid, act));
        }
        self.look_at_spawns(index);
        let prepares = std::mem::take(&mut self.nodes[index].host.prepares);
        if prepares && self.may_aim() && self.rng.chance(20) {
            let span = self.rng.span(9_000, 20_000);
            self.fault(Fault::SupervisorHangs(index, span));
        }
        let now = self.now;
        let node = &mut self.nodes[index];
        if node.engine.is_none() || node.keeper_until > now {
            return;
        }
        let Some(core) = &mut node.core else { return };
        let news = core.take_news(usize::MAX);
        if !news.is_empty() {
            let when = now.after(self.rng.span(0, 3)).max(node.to_supervisor);
            node.to_supervisor = when;
            let incarnation = node.incarnation;
            self.at_moment(when, Item::ToSupervisor(index, incarnation, news));
        }
    }

    fn hear(&mut self, index: usize, news: Vec<News>) {
        let mut rows = Vec::new();
        for one in news {
            match one {
                News::Row { key, header, .. } => rows.push((key, header)),
                News::Node(asked) => self.step(index, Event::Asked(asked)),
                News::Refused { key, after } => self.step(index, Event::Refused { key, after }),
                _ => {}
            }
        }
        if !rows.is_empty() {
            self.step(index, Event::Rows(rows));
        }
    }

    // ---- the eye that sees everything

    /// Fences grow from holder to holder, and a run begins on one node.
    fn look_at_spawns(&mut self, index: usize) {
        for run in std::mem::take(&mut self.nodes[index].host.runs) {
            self.say(|| format!("node{index} begins {} of {}", run.0, run.1));
            self.ledger.began(run, index);
        }
        for (id, token, stood_by) in std::mem::take(&mut self.nodes[index].host.began) {
            self.totals.spawns += 1;
            self.totals.promotions += u64::from(stood_by);
            let lock = id.fleet.to_string();
            let before = self.tokens.get(&lock).copied();
            if self.slots(&lock) == 1
                && let Some((highest, whose)) = before
            {
                let same = token == highest && whose == index;
                assert!(
                    token > highest || same,
                    "{FELL} of {lock}: node{index} begins with {token:?}, node{whose} had {highest:?}"
                );
                self.totals.takeovers += u64::from(whose != index);
            }
            self.say(|| format!("node{index} {id} begins with fence {token:?}"));
            self.tokens.insert(lock, (token, index));
        }
    }

    /// All that is contended.
    fn names(&self) -> impl Iterator<Item = &'static str> {
        let job = self.faults.jobs.then_some(ticks::LOCKED);
        self.locks.iter().map(|lock| lock.name).chain(job)
    }

    /// So many may have it; a job has one run.
    fn slots(&self, name: &str) -> usize {
        let lock = self.locks.iter().find(|lock| lock.name == name);
        lock.map_or(1, |lock| lock.slots as usize)
    }

    /// Nobody runs beside another one.
    fn check(&self) {
        if self.faults.counted {
            self.check_numbers();
        }
        for name in self.names() {
            let id = worker(name);
            let running: Vec<(usize, u64)> = self
                .nodes
                .iter()
                .enumerate()
                .filter_map(|(index, node)| Some((index, node.host.holds(&id)?)))
                .collect();
            if running.len() < 2 {
                continue;
            }
            let promised = |(_, fence): &(usize, u64)| {
                let key = (name.to_owned(), *fence);
                self.promised.get(&key).copied()
            };
            let least = running.iter().filter_map(promised).min();
            let most = least.map_or(self.slots(name), |least| least.min(self.slots(name)));
            assert!(
                running.len() <= most,
                "{TWO} of {name}: {running:?} at {:?}",
                self.now
            );
        }
    }

    /// Whoever answers has forgotten fences that were given: nobody begins until an operator says that he knows.
    fn check_nobody(&self) {
        for lock in &self.locks {
            let id = worker(lock.name);
            let mut nodes = self.nodes.iter();
            let running = nodes.find(|node| node.host.leader(&id).is_some());
            let whose = running.map(|node| &node.name);
            assert_eq!(whose, None, "{} runs", lock.name);
        }
    }

    /// Whoever is there is known to be, by everybody.
    fn check_census(&self) {
        for node in &self.nodes {
            let now = node.clocks(self.now).boottime;
            let status = node.engine.as_ref().map(|engine| engine.status(now));
            let part = status.and_then(|status| status.cluster);
            let nodes = part.and_then(|part| part.nodes);
            assert_eq!(
                nodes,
                Some((NODES as u64, 0)),
                "nodes as {} sees them",
                node.name
            );
        }
        for name in self.nodes.iter().map(|node| &node.name) {
            let card = self.etcd.value(&format!("/leasehold/v1/sim/k/{name}"));
            let card: serde_json::Value = serde_json::from_str(&card.unwrap()).unwrap();
            assert!(
                card["gone"].is_null(),
                "{name} is there, and missed: {card}"
            );
        }
    }

    /// Locks of one group are on as many nodes as there are.
    fn check_spread(&self) {
        let grouped = self.locks.iter().filter(|lock| lock.group.is_some());
        let ids: Vec<WorkerId> = grouped.map(|lock| worker(lock.name)).collect();
        let open = self.nodes.iter().filter(|node| !node.is_drained());
        let counts = open.map(|node| {
            let has = ids.iter().filter(|id| node.locks.contains_key(id));
            (node.name.as_str(), has.count())
        });
        let counts: Vec<(&str, usize)> = counts.collect();
        let all = counts.iter().map(|(_, count)| *count);
        let (least, most) = (all.clone().min(), all.max());
        let even = most.unwrap_or(0) <= least.unwrap_or(0) + 1;
        assert!(even, "they are not spread: {counts:?}");
    }

    /// With everything well again, whoever runs is found, nobody else is, and where they are looked for is there in any case.
    fn check_records(&self) {
        for lock in &self.locks {
            let (name, id) = (lock.name, worker(lock.name));
            let prefix = format!("/leasehold/v1/sim/e/{name}/");
            let nodes = self.nodes.iter();
            let running = nodes.filter(|node| node.host.leader(&id).is_some());
            let running: Vec<String> = running
                .map(|node| format!("{prefix}{}", node.name))
                .collect();
            let told: Vec<String> = self
                .nodes
                .iter()
                .map(|node| self.told(node, lock))
                .collect();
            assert_eq!(self.etcd.below(&prefix), running, "{name}: {told:#?}");
            let service = format!("traefik/http/services/{name}/loadbalancer/");
            let servers = self.etcd.below(&format!("{service}servers/"));
            assert_eq!(servers.len(), 2 * running.len(), "{servers:?}: {told:#?}");
            let anchors = self.etcd.below(&format!("traefik/http/routers/{name}/"));
            assert_eq!(anchors.len(), 2, "{anchors:?}: {told:#?}");
        }
    }

    /// With everything well again all units are had that somebody wants, by those who have workers for them.
    fn check_units(&self) {
        if !self.faults.counted {
            return;
        }
        let prefix = format!("/leasehold/v1/sim/cap/{COUNTED}/");
        let units = self.etcd.below(&prefix);
        let cards = units.iter().filter_map(|key| self.etcd.value(key));
        let cards: Vec<serde_json::Value> = cards
            .map(|card| serde_json::from_str(&card).unwrap())
            .collect();
        let of = |node: &Node| {
            let its = cards.iter().filter(|card| card["node"] == node.name);
            (its.count(), node.host.count(&fleet(COUNTED)))
        };
        let all: Vec<(usize, usize)> = self.nodes.iter().map(of).collect();
        let open = self.nodes.iter().filter(|node| !node.is_drained()).count();
        let wanted = (UNITS as usize).min(open * WANTED as usize);
        assert_eq!(units.len(), wanted, "units and workers: {all:?}");
        for (node, (units, workers)) in self.nodes.iter().zip(&all) {
            let least = usize::from(!node.is_drained());
            let is_right = (least.max(*units)..=WANTED as usize).contains(workers);
            assert!(is_right, "{}: {all:?}", node.name);
        }
    }

    /// Every tick has its fate: on each machine it is known, and of all one ran it.
    fn check_jobs(&mut self) {
        self.totals.runs = self.nodes.iter().map(|node| node.host.jobs.count()).sum();
        let open = || self.nodes.iter().filter(|node| !node.is_drained());
        if !self.faults.jobs || open().next().is_none() {
            return;
        }
        for node in open() {
            let now = node.clocks(self.now).boottime;
            let status = node.engine.as_ref().map(|engine| engine.status(now));
            for fleet in status.into_iter().flat_map(|status| status.fleets) {
                if let Some(job) = &fleet.cron {
                    node.host.jobs.check(&fleet.name, job.waiting, self.now);
                }
            }
        }
        let runs = |job: &str| {
            let id = worker(job);
            self.nodes
                .iter()
                .any(|node| node.host.process(&id).is_some())
        };
        let owed = match () {
            () if self.faults.troubles + self.faults.drains + self.faults.clocks == 0 => Owed::All,
            () if self.faults.clocks == 0 => Owed::Last,
            () if open().any(|node| node.is_sane) => Owed::LastClaimed,
            () => Owed::Nothing,
        };
        self.ledger.check(&self.etcd, owed, runs);
    }

    /// Of numbers that there are not there is no unit, at any time.
    fn check_numbers(&self) {
        let prefix = format!("/leasehold/v1/sim/cap/{COUNTED}/");
        for key in self.etcd.below(&prefix) {
            let number = key
                .rsplit('/')
                .next()
                .and_then(|number| number.parse().ok());
            assert!(number.is_some_and(|number: u32| number < UNITS), "{key}");
        }
    }

    /// What a node says of its records.
    fn told(&self, node: &Node, lock: &Contended) -> String {
        let now = node.clocks(self.now).boottime;
        let status = node.engine.as_ref().map(|engine| engine.status(now));
        let fleets = status.into_iter().flat_map(|status| status.fleets);
        let mut its = fleets.filter(|one| one.name == fleet(lock.name));
        let publish = its.next().and_then(|one| one.publish);
        format!(
            "{}: {:?}",
            node.name,
            publish.map(|publish| publish.targets)
        )
    }

    /// With everything well again, everything runs.
    fn check_progress(&self) {
        self.check_census();
        self.check_spread();
        for lock in &self.locks {
            let id = worker(lock.name);
            let running = self
                .nodes
                .iter()
                .filter(|node| node.host.leader(&id).is_some());
            let running = running.count();
            let open = self.nodes.iter().filter(|node| !node.is_drained());
            let open: Vec<&str> = open.map(|node| node.name.as_str()).collect();
            let should = (lock.slots as usize).min(open.len());
            if let Some(home) = lock.home.filter(|home| open.contains(home)) {
                let mut nodes = self.nodes.iter();
                let there = nodes.find(|node| node.locks.contains_key(&id));
                let there = there.map(|node| node.name.as_str());
                assert_eq!(there, Some(home), "{} is not at home", lock.name);
            }
            let waits = self.nodes.iter().map(|node| {
                let now = node.clocks(self.now).boottime;
                let status = node.engine.as_ref().map(|engine| engine.status(now));
                let fleets = status.into_iter().flat_map(|status| status.fleets);
                let of = fleets.filter(|one| one.name == fleet(lock.name));
                let gates: Vec<String> = of.map(|one| format!("{:?}", one.lock)).collect();
                format!("{}: {gates:?}", node.name)
            });
            let waits: Vec<String> = waits.collect();
            assert_eq!(running, should, "{} does not run: {waits:#?}", lock.name);
            let nodes = self.nodes.iter();
            let there = nodes.filter(|node| node.host.process(&id).is_some());
            let expected = if lock.is_warm { open.len() } else { should };
            assert_eq!(there.count(), expected, "{}: {waits:#?}", lock.name);
            let prefix = format!("/leasehold/v1/sim/s/{}/", lock.name);
            assert_eq!(
                self.etcd.places(&prefix),
                open.len(),
                "the queue of {}",
                lock.name
            );
        }
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

/// What whoever leaves out a condition asks for.
fn careless(mutant: Mutant, request: Request) -> Request {
    let Request::Txn(mut txn) = request else {
        return request;
    };
    txn.when.retain(|when| match (mutant, when) {
        (Mutant::NoClaim, When::Created(key, 0)) => !key.contains("/c/"),
        (Mutant::NoPast, When::Modified(key, _)) => !key.ends_with("/had"),
        _ => true,
    });
    Request::Txn(txn)
}
