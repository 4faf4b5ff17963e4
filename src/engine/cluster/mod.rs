//! This node's part in a cluster: its session with etcd, the queues of the locks that its workers need, and who of them may have his.
//!
//! What it hears are answers of etcd; what it wants are requests; what it tells the gates is `Said`. It knows nothing of processes: a gate
//! that it calls won still takes the lock file, has the keeper confirm the deadline, and only then is anybody started.

mod anchors;
mod asked;
mod calls;
mod candidate;
pub(in crate::engine) mod capacity;
mod census;
pub(in crate::engine) mod docket;
mod entry;
pub mod figures;
mod keys;
mod line;
mod queue;
mod register;
mod renewal;
pub mod rpc;
mod session;
mod standing;
mod survey;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{RecordsSpec, SingletonSpec},
    engine::{
        cluster::{
            asked::Told,
            calls::{Calls, Desk, Purpose},
            candidate::{Candidate, Granted},
            capacity::{Demand, Share},
            census::Census,
            docket::{Docket, Jobs},
            figures::Figures,
            keys::{NodeCard, Prefix},
            line::{Delay, Line},
            queue::Queue,
            register::Register,
            rpc::{
                Body, CallId, Change, Do, Failure, Header, News, Order, Reply, Request, Txn, When,
            },
            session::{Heard, Identity, PATIENCE, Session},
            standing::{Scene, own},
        },
        publish::{Listing, TargetStatus},
    },
    id::{FleetName, RequestId, WorkerId},
    time::{Clocks, Moment, Span, Stamp},
};

pub(in crate::engine) use entry::Word;
pub(in crate::engine) use register::RegisterRow;
pub use session::Pin;
pub(in crate::engine) use session::SessionRow;
pub use survey::{
    ClusterPicture, LockPicture, NodePicture, PlacePicture, ReleasedPicture, RunPicture,
};

/// What hangs on our lease is looked through this often, for what nobody knows.
const INVENTORY_EVERY: Span = Span::secs(30);
/// Whoever stops waits so long for etcd to hear of it.
const FAREWELL: Span = Span::secs(3);

/// How this node takes part.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Membership {
    /// Of the cluster: everything of it lies below one prefix.
    pub cluster: String,
    /// This node's name there.
    pub node: String,
    /// Made once for a state directory.
    pub identity: String,
    /// Names one run of the daemon.
    pub run: String,
    /// How many endpoints there are.
    pub endpoints: usize,
    /// Of the node's lease, as asked for.
    pub ttl: Span,
    /// Stands before its fences.
    pub epoch: u64,
    /// What this node has seen of it before.
    pub pin: Option<Pin>,
    /// It is there for one command, and nobody misses it afterwards.
    pub is_passing: bool,
}

/// What names a place in a queue; in the row of whoever won it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Ticket {
    pub(in crate::engine) key: String,
    pub(in crate::engine) fence: i64,
}

/// What a gate is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Said {
    /// It is its turn.
    Won {
        ticket: Ticket,
        /// Since when whoever had it last is gone, if that was seen.
        vacated: Option<Moment>,
    },
    /// It is not; for people.
    Waits(String),
    /// Whatever it won is certainly gone.
    Lost(String),
    /// It could not begin, and others wait: it goes to the end of the queue.
    Passed,
    /// Somebody wants it given to whoever is next.
    Asked(String),
    /// The lease of what it won was renewed.
    Renewed { sent: Clocks, ttl: Span },
}

/// What a gate wants, and has.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Want {
    pub(in crate::engine) worker: WorkerId,
    pub(in crate::engine) spec: SingletonSpec,
    pub(in crate::engine) ticket: Option<Ticket>,
    /// Why it was last told to wait.
    pub(in crate::engine) waits: Option<String>,
    /// It has its lock file, and so it waits for renewals.
    pub(in crate::engine) is_open: bool,
    /// No renewal counts for it any more.
    pub(in crate::engine) is_lapsing: bool,
    /// It is being given away.
    pub(in crate::engine) is_released: bool,
    /// Something of its worker is there, or it has a deadline that stands: it has begun.
    pub(in crate::engine) has_begun: bool,
}

/// The node in its cluster.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Cluster {
    membership: Membership,
    node: String,
    prefix: Prefix,
    session: Session,
    calls: Calls,
    queues: BTreeMap<String, Queue>,
    candidates: BTreeMap<WorkerId, Candidate>,
    /// Locks whose queues are followed though nobody of ours stands there.
    attended: BTreeMap<String, (u32, Delay)>,
    /// What is published, on a lease of its own.
    register: Register,
    said: Vec<(WorkerId, Said)>,
    /// Answers to those who wanted something.
    replies: Vec<(RequestId, Told)>,
    census: Census,
    docket: Docket,
    figures: Figures,
    /// What is said of us, and what the wall clock shows.
    scene: Scene,
    /// Why there is no session.
    waits: Option<String>,
    inventory_at: Moment,
    /// Everything is given back; over then, whatever etcd says.
    leaves_until: Option<Moment>,
    names: u64,
    /// When it last did what was due.
    looked: Moment,
}

impl Cluster {
    /// `last_call`: of whatever was there before, so that no late answer to that is taken for one of ours.
    pub(in crate::engine) fn new(membership: Membership, last_call: u64, now: Moment) -> Self {
        let prefix = Prefix::new(&membership.cluster);
        let identity = Identity {
            key: prefix.node(&membership.node),
            name: membership.node.clone(),
            card: NodeCard {
                identity: membership.identity.clone(),
                run: membership.run.clone(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            ttl: membership.ttl,
            epoch: membership.epoch,
            endpoints: membership.endpoints,
        };
        Self {
            node: membership.node.clone(),
            register: Register::new(
                prefix.clone(),
                (&membership.node, &membership.identity),
                (membership.ttl, membership.endpoints),
                now,
            ),
            prefix: prefix.clone(),
            session: Session::new(identity, membership.pin, now),
            calls: Calls::after(last_call),
            queues: BTreeMap::new(),
            candidates: BTreeMap::new(),
            attended: BTreeMap::new(),
            said: Vec::new(),
            replies: Vec::new(),
            docket: Docket::new(
                prefix.clone(),
                membership.node.clone(),
                membership.identity.clone(),
                now,
            ),
            census: Census::new(prefix, membership.node.clone(), now),
            figures: Figures::new(membership.endpoints),
            scene: Scene::default(),
            waits: None,
            inventory_at: now,
            leaves_until: None,
            names: 0,
            looked: now,
            membership,
        }
    }

    /// Can it go on as it is under this configuration? What can be followed on the way is.
    pub(in crate::engine) fn fits(&mut self, wanted: Option<&Membership>) -> bool {
        let Some(wanted) = wanted else {
            return false;
        };
        let ours = &self.membership;
        let names = |one: &Membership| (one.cluster.clone(), one.node.clone(), one.epoch);
        if names(wanted) != names(ours) {
            return false;
        }
        if (wanted.endpoints, wanted.ttl) != (ours.endpoints, ours.ttl) {
            self.membership = wanted.clone();
            self.session.reconfigure(wanted.endpoints, wanted.ttl);
            self.figures.reconfigure(wanted.endpoints);
            self.register.reconfigure(wanted.endpoints, wanted.ttl);
        }
        true
    }

    /// Goes on with what the supervisor before had: its session, and what its gates had won.
    pub(in crate::engine) fn adopt(
        &mut self,
        row: SessionRow,
        tickets: impl Iterator<Item = (WorkerId, SingletonSpec, Ticket)>,
        now: Moment,
    ) {
        self.session.adopt(row, now);
        self.census.begin(now);
        self.docket.begin(now);
        for (worker, spec, ticket) in tickets {
            let lock = self.prefix.lock(spec.lock.as_str());
            let ours = (ticket, self.session.lease());
            let candidate = Candidate::adopted(lock, &spec, &self.node, ours, now);
            self.candidates.insert(worker, candidate);
        }
    }

    /// Goes on with the records of the supervisor before.
    pub(in crate::engine) fn adopt_register(&mut self, row: RegisterRow, now: Moment) {
        self.register.adopt(row, now);
    }

    /// For the node's row.
    pub(in crate::engine) fn register_row(&self) -> Option<RegisterRow> {
        self.register.row()
    }

    /// What is published of a fleet now.
    pub(in crate::engine) fn offer(
        &mut self,
        fleet: &FleetName,
        what: (&Listing, &RecordsSpec),
        wall: Stamp,
        now: Moment,
    ) {
        self.register.offer(fleet, what, wall, now);
    }

    /// Of other fleets nothing is published any more.
    pub(in crate::engine) fn keep_offers(
        &mut self,
        is_there: impl Fn(&FleetName) -> bool,
        now: Moment,
    ) {
        self.register.keep(is_there, now);
    }

    /// What fleets want that have a maximum over all nodes; nobody else has units.
    pub(in crate::engine) fn demand(&mut self, demands: &BTreeMap<FleetName, Demand>, now: Moment) {
        self.register.demand(demands, now);
    }

    /// What they have.
    pub(in crate::engine) fn shares(&self) -> Vec<(FleetName, Share)> {
        self.register.shares()
    }

    /// What people are to hear of what is published.
    pub(in crate::engine) fn words(&mut self) -> Vec<(FleetName, Word)> {
        self.register.words()
    }

    /// Who is told in etcd of a fleet, and how that goes.
    pub(in crate::engine) fn targets(&self, fleet: &FleetName) -> Vec<TargetStatus> {
        self.register.targets(fleet)
    }

    /// For the node's row.
    pub(in crate::engine) fn row(&self) -> Option<SessionRow> {
        self.session.row()
    }

    /// The cluster that we belong to.
    pub(in crate::engine) fn pin(&self) -> Option<Pin> {
        self.session.pin
    }

    pub(in crate::engine) fn deadline(&self) -> Option<Moment> {
        let stays_away = self.leaves_until.is_some() && self.session.is_away();
        let session = self.session.deadline().filter(|_| !stays_away);
        let queues = self.queues.values();
        let queues = queues.filter_map(|queue| queue.deadline(self.looked));
        let candidates = self.candidates.values();
        let candidates = candidates.filter_map(|one| one.deadline(self.looked));
        let inventory = self.session.stamp().map(|_| self.inventory_at);
        let farewell = self.leaves_until.filter(|at| *at > self.looked);
        let all = session.into_iter().chain(queues).chain(candidates);
        let is_counted = self.session.is_open() && !self.membership.is_passing;
        let census = self.census.deadline().filter(|_| is_counted);
        let docket = self.docket.deadline();
        let docket = docket.filter(|_| self.session.stamp().is_some());
        let writes = self.writes_until().filter(|at| *at > self.looked);
        let all = all.chain(inventory).chain(farewell).chain(writes);
        let register = self.register.deadline();
        all.chain(census).chain(docket).chain(register).min()
    }

    /// For how long a lease is asked for.
    pub(in crate::engine) fn wanted_ttl(&self) -> Span {
        self.membership.ttl
    }

    /// For how long the lease that there is was granted.
    pub(in crate::engine) fn ttl(&self) -> Option<Span> {
        self.session.ttl()
    }

    /// Another lease is configured than it has: whoever has a lock by this one ends first.
    pub(in crate::engine) fn is_outdated(&self) -> bool {
        self.session.is_outdated()
    }

    /// Which cluster it is, under which epoch.
    pub(in crate::engine) fn home(&self) -> (String, u64) {
        (self.membership.cluster.clone(), self.membership.epoch)
    }

    /// Its calls are numbered up to here.
    pub(in crate::engine) fn last_call(&self) -> u64 {
        self.calls.last()
    }

    /// Was it told to leave?
    pub(in crate::engine) fn leaves(&self) -> bool {
        self.leaves_until.is_some()
    }

    /// Is there nothing left to say to etcd?
    pub(in crate::engine) fn has_left(&self, now: Moment) -> bool {
        self.leaves_until.is_some_and(|until| {
            let is_away = self.session.is_away() && self.register.is_away();
            until <= now || (self.candidates.is_empty() && is_away)
        })
    }

    /// The daemon stops, and nothing runs any more.
    pub(in crate::engine) fn leave(&mut self, now: Moment) {
        self.leaves_until.get_or_insert(now.after(FAREWELL));
    }

    /// Something is heard of etcd.
    pub(in crate::engine) fn heard(&mut self, news: News, now: Moment, out: &mut Vec<Order>) {
        match news {
            News::Answered { call, sent, result } => self.answered(call, sent, result, now, out),
            News::Watching { watch, .. } => {
                let next = self.calls.id();
                if let Some(queue) = self.watched_by(watch) {
                    queue.opened(next, now);
                }
            }
            News::Watched {
                watch,
                revision,
                changes,
            } => {
                if let Some(queue) = self.watched_by(watch) {
                    queue.follow(&changes, revision, now);
                    self.look_for_ours(&changes);
                }
            }
            News::WatchEnded { watch, why } => {
                if let Some(queue) = self.watched_by(watch) {
                    queue.ended(now);
                    self.waits = Some(why.to_string());
                }
            }
        }
    }

    fn watched_by(&mut self, id: CallId) -> Option<&mut Queue> {
        self.queues.values_mut().find(|queue| queue.watches(id))
    }

    /// A key of ours that somebody else deleted.
    fn look_for_ours(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::Deleted { key, .. } = change {
                self.missing(key);
            }
        }
    }

    fn missing(&mut self, key: &str) {
        let mut candidates = self.candidates.iter();
        let found = candidates.find(|(_, candidate)| candidate.stands_at(key));
        if let Some(worker) = found.map(|(worker, _)| worker.clone()) {
            self.candidates.remove(&worker);
            let why = "its place in the queue was taken away".to_owned();
            self.said.push((worker, Said::Lost(why)));
        }
    }

    fn answered(
        &mut self,
        call: CallId,
        sent: Clocks,
        result: Result<Reply, Failure>,
        now: Moment,
        out: &mut Vec<Order>,
    ) {
        let Some(under) = self.calls.take(call) else {
            return;
        };
        let took = sent.boottime.until(now);
        self.figures.answered(&under, took, &result, now);
        match under.purpose {
            Purpose::Health => {}
            Purpose::Docket => self.docketed(call, result, now, out),
            Purpose::Census => self.counted(call, result, now, out),
            Purpose::Forget(request, node) => self.forgotten((request, node), result),
            Purpose::Survey(request, left) => {
                self.surveyed((request, left), under.endpoint, result, now, out);
            }
            Purpose::Sweep => {
                if matches!(read_of(result), Ok((_, false, _))) {
                    self.restamp(now);
                }
            }
            Purpose::Register => {
                let calls = &mut self.calls;
                let mut desk = Desk { now, calls, out };
                self.register.answered(call, sent, result, &mut desk);
            }
            Purpose::Session => self.session_answered(call, sent, result, now, out),
            Purpose::Join(worker) => self.joined(&worker, call, result, now),
            Purpose::Leave(worker) => {
                let refused = matches!(
                    &result,
                    Ok(Reply {
                        body: Body::Txn { held: false, .. },
                        ..
                    })
                );
                let Some(candidate) = self.candidates.get_mut(&worker) else {
                    return;
                };
                if candidate.left(call, result, now) {
                    self.candidates.remove(&worker);
                } else if refused {
                    self.restamp(now);
                }
            }
            Purpose::List(lock) => {
                if let Some(queue) = self.queues.get_mut(&lock) {
                    match read_of(result) {
                        Ok((from, true, read)) => {
                            queue.listed(call, from.revision, read, (false, None), now);
                        }
                        Ok(_) | Err(_) => queue.not_listed(call, now),
                    }
                    self.look_at_ours(&lock);
                }
            }
            Purpose::Inventory => self.sweep(result, now, out),
            Purpose::Wish(request, of) => self.wished((request, of), result),
        }
    }

    /// Of those who stand in a queue that was read just now: does it show them?
    fn look_at_ours(&mut self, lock: &str) {
        let Some(line) = self.queues.get(lock).and_then(Queue::line) else {
            return;
        };
        let ours = self.candidates.values();
        let missing = ours.filter(|candidate| candidate.lock == lock);
        let missing: Vec<String> = missing
            .filter_map(|candidate| candidate.place())
            .filter(|(_, fence)| line.rank(*fence).is_none())
            .map(|(key, _)| key.to_owned())
            .collect();
        for key in missing {
            self.missing(&key);
        }
    }

    fn session_answered(
        &mut self,
        call: CallId,
        sent: Clocks,
        result: Result<Reply, Failure>,
        now: Moment,
        out: &mut Vec<Order>,
    ) {
        let mut own: BTreeMap<String, i64> = self
            .candidates
            .values()
            .filter_map(|candidate| candidate.place())
            .map(|(key, fence)| (key.to_owned(), fence))
            .collect();
        if let Some(row) = self.session.row() {
            own.insert(self.session.identity.key.clone(), row.created());
        }
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        let heard = self.session.answered(call, sent, result, &own, &mut desk);
        for one in heard {
            match one {
                Heard::Opened => {
                    self.waits = None;
                    self.census.begin(now);
                    self.docket.begin(now);
                    self.inventory_at = now.after(INVENTORY_EVERY);
                }
                Heard::Renewed => {}
                Heard::Missing(key) => self.missing(&key),
                Heard::Lost(why) => self.lost(&why),
                Heard::Waits(why) => self.waits = Some(why),
            }
        }
    }

    /// The session is over, and everything that hung on it.
    fn lost(&mut self, why: &str) {
        self.calls.forget_session();
        for (worker, _) in std::mem::take(&mut self.candidates) {
            self.said.push((worker, Said::Lost(why.to_owned())));
        }
        self.waits = Some(why.to_owned());
    }

    fn joined(
        &mut self,
        worker: &WorkerId,
        call: CallId,
        result: Result<Reply, Failure>,
        now: Moment,
    ) {
        let Some(candidate) = self.candidates.get_mut(worker) else {
            return;
        };
        let (from, held, mut read) = match read_of(result) {
            Ok(answer) => answer,
            Err(why) => {
                candidate.not_joined(call, now);
                self.waits = Some(why.to_string());
                if let Some(queue) = self.queues.get_mut(&candidate.lock) {
                    queue.not_listed(call, now);
                }
                return;
            }
        };
        // What was read last is our own place: as it is now, whether this request made it or one before.
        let ours = read.pop().and_then(|found| found.into_iter().next());
        let ours = ours.filter(|kv| kv.lease.is_some() && kv.lease == self.session.lease());
        let Some(ours) = ours else {
            candidate.not_joined(call, now);
            if !held {
                self.restamp(now);
            }
            return;
        };
        candidate.joined(call, ours.created);
        let lock = candidate.lock.clone();
        if let Some(queue) = self.queues.get_mut(&lock)
            && let Some(places) = read.last_mut()
        {
            let fence = ours.created;
            places.retain(|kv| kv.key != ours.key);
            places.push(ours);
            queue.listed(call, from.revision, read, (held, Some(fence)), now);
        }
    }

    /// What we wrote did not count: the stamp of a supervisor before us was late, and came after ours.
    fn restamp(&mut self, now: Moment) {
        self.session.restamp(now);
        self.inventory_at = now;
    }

    /// Keys that hang on our lease and that nobody knows: of a supervisor before us, who did not hear that it had made them.
    fn sweep(&mut self, result: Result<Reply, Failure>, now: Moment, out: &mut Vec<Order>) {
        let Ok(Reply {
            body: Body::LeaseKeys { keys, .. },
            ..
        }) = result
        else {
            return;
        };
        let Some(stamp) = self.session.stamp() else {
            return;
        };
        let locks = self.prefix.locks();
        let known = |key: &String| self.candidates.values().any(|one| one.key == *key);
        let strays = keys.into_iter().filter(|key| key.starts_with(&locks));
        let strays: Vec<Do> = strays
            .filter(|key| !known(key))
            .take(rpc::TXN_MAX)
            .map(Do::Delete)
            .collect();
        if strays.is_empty() {
            return;
        }
        let txn = Txn {
            when: vec![stamp],
            then: strays,
            otherwise: Vec::new(),
        };
        let endpoint = self.session.favourite();
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Sweep);
    }

    /// Brings it in line with what the gates want and have, does what is due, and says what they must hear.
    pub(in crate::engine) fn follow(
        &mut self,
        wants: &[Want],
        jobs: &Jobs,
        now: Moment,
        out: &mut Vec<Order>,
    ) -> Vec<(WorkerId, Said)> {
        self.looked = now;
        self.take_leave(now, out);
        self.give_up(wants, jobs, now);
        self.forget_strangers();
        self.match_wants(wants, now);
        self.match_queues(now, out);
        self.tend(now, out);
        self.tend_jobs(jobs, now, out);
        let mut said = std::mem::take(&mut self.said);
        for want in wants {
            match self.tell(want, now) {
                Some(Said::Waits(why)) if want.waits.as_ref() == Some(&why) => {}
                Some(one) => said.push((want.worker.clone(), one)),
                None => {}
            }
        }
        // What a gate waits for may have become due only now.
        self.tend(now, out);
        said
    }

    /// Whoever may want these locks one day is not to find out then who has had them: their queues are followed from the beginning.
    pub(in crate::engine) fn attend<'a>(&mut self, specs: impl Iterator<Item = &'a SingletonSpec>) {
        let named = specs.map(|spec| {
            let lock = self.prefix.lock(spec.lock.as_str());
            (lock, (spec.slots, Delay::of(spec)))
        });
        self.attended = named.collect();
    }

    /// Renewals that nobody hears of keep a lease alive that serves nobody: when no gate can be held by it any more, they end. Whoever has
    /// none and has not heard for as long as one would last is no use in front of a queue either.
    fn give_up(&mut self, wants: &[Want], jobs: &Jobs, now: Moment) {
        if !self.session.is_open() {
            return;
        }
        let mut holders = wants.iter().filter(|want| want.ticket.is_some()).peekable();
        let all_lapse = holders.peek().is_some() && holders.all(|want| want.is_lapsing);
        let silent = self.session.is_silent(now);
        let nobody = wants.iter().all(|want| want.ticket.is_none());
        let outdated = nobody && self.session.is_outdated();
        let writes = self.writes_until().is_some_and(|until| now < until);
        let leaves = self.leaves_until.is_some() && !(writes && self.docket.owes(jobs));
        if all_lapse || (nobody && silent) || leaves || outdated {
            self.session.lapse(now);
            let why = match self.leaves_until {
                Some(_) => "this node leaves the cluster".to_owned(),
                None if outdated => "etcd.lease_ttl has changed".to_owned(),
                None => match self.figures.failure(self.session.favourite()) {
                    Some(failure) => format!("its lease could not be renewed: {failure}"),
                    None => "its lease could not be renewed".to_owned(),
                },
            };
            self.waits = Some(why);
        }
    }

    /// What hung on another lease than ours is gone with it: no renewal of ours says anything about it.
    fn forget_strangers(&mut self) {
        let ours = self.session.lease();
        let mut gone = Vec::new();
        self.candidates.retain(|worker, candidate| {
            let stays = candidate.lease.is_none() || candidate.lease == ours;
            if !stays {
                gone.push(worker.clone());
            }
            stays
        });
        for worker in gone {
            let why = "the lease that it hung on is over".to_owned();
            self.said.push((worker, Said::Lost(why)));
        }
    }

    /// Who is to stand in a queue, and who is not any more?
    fn match_wants(&mut self, wants: &[Want], now: Moment) {
        let wanted: BTreeMap<&WorkerId, &Want> =
            wants.iter().map(|want| (&want.worker, want)).collect();
        let mut doubts = false;
        let has = Has::count(self.candidates.values());
        for (worker, candidate) in &mut self.candidates {
            let lock = |want: &Want| self.prefix.lock(want.spec.lock.as_str());
            let want = wanted.get(worker);
            // Whoever has it runs under what he was started with.
            let is_current =
                candidate.has_won() || want.is_none_or(|want| candidate.follow(&want.spec));
            let line = self.queues.get(&candidate.lock).and_then(Queue::line);
            let standing = candidate.place().filter(|_| !candidate.has_won());
            let steps_back = line.zip(standing).is_some_and(|(line, (_, fence))| {
                (line.steps_back(fence, &self.node) && !line.has_it(fence))
                    || candidate.has_changed(&self.node, has.of(candidate))
            });
            let stays = !steps_back
                && is_current
                && want.is_some_and(|want| {
                    lock(want) == candidate.lock && candidate.is_of(want.ticket.as_ref())
                });
            // Nothing is begun under a lease that is not renewed.
            if !stays || (self.session.is_lapsed() && !candidate.has_won()) {
                doubts |= candidate.leave(now);
            }
        }
        if doubts {
            self.restamp(now);
        }
        self.candidates.retain(|_, candidate| !candidate.is_out());
        for want in wants {
            let is_in = self.candidates.contains_key(&want.worker);
            if is_in || want.ticket.is_some() || !self.session.is_open() {
                continue;
            }
            let lock = self.prefix.lock(want.spec.lock.as_str());
            let candidate = Candidate::new(lock, &want.spec, &self.node, now);
            self.candidates.insert(want.worker.clone(), candidate);
        }
    }

    /// Which queues are to be followed?
    fn match_queues(&mut self, now: Moment, out: &mut Vec<Order>) {
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        let candidates = &self.candidates;
        let open = self.session.is_open();
        self.queues.retain(|lock, queue| {
            let mut candidates = candidates.values();
            let needed = open
                && (self.attended.contains_key(lock)
                    || candidates.any(|one| one.lock == *lock && !one.leaves()));
            if !needed {
                queue.close(&mut desk);
            }
            needed
        });
        if !open {
            return;
        }
        let ours = candidates.values().filter(|one| !one.leaves());
        let ours = ours.map(|one| (&one.lock, (one.slots, one.delay)));
        let attended = self.attended.iter().map(|(lock, spec)| (lock, *spec));
        for (lock, (slots, delay)) in attended.chain(ours) {
            self.queues
                .entry(lock.clone())
                .and_modify(|queue| queue.reconfigure(slots, delay))
                .or_insert_with(|| Queue::new(lock.clone(), slots, delay, now));
        }
    }

    fn tend(&mut self, now: Moment, out: &mut Vec<Order>) {
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        let stays_away = self.leaves_until.is_some();
        self.session.tend(stays_away, &mut desk);
        self.register.tend(stays_away, &mut desk);
        let endpoint = self.session.favourite();
        let stamp = self.session.stamp();
        let has = Has::count(self.candidates.values());
        for (worker, candidate) in &mut self.candidates {
            let queue = self.queues.get(&candidate.lock);
            queue.inspect(|queue| candidate.recall(queue));
            let may_join = queue.is_some_and(Queue::is_open);
            if let (Some(queue), Some(stamp), Some(lease)) =
                (queue.filter(|_| may_join), &stamp, self.session.lease())
            {
                self.names += u64::from(candidate.joins_now(now));
                let has = has.of(candidate);
                let ttl = self.session.ttl().unwrap_or(self.membership.ttl);
                let granted = Granted { id: lease, ttl };
                candidate.join(
                    worker,
                    (&self.node, has),
                    (stamp, granted, self.names),
                    queue,
                    endpoint,
                    &mut desk,
                );
            }
            candidate.tend_leaving(worker, &self.node, stamp.as_ref(), endpoint, &mut desk);
        }
        for queue in self.queues.values_mut() {
            let mut candidates = self.candidates.values();
            let joins = candidates.any(|one| one.lock == queue.lock && one.joins());
            queue.tend(endpoint, joins, &mut desk);
        }
        if self.inventory_at <= now
            && stamp.is_some()
            && let Some(lease) = self.session.lease()
        {
            self.inventory_at = now.after(INVENTORY_EVERY);
            let request = Request::LeaseKeys(lease);
            desk.ask(endpoint, request, PATIENCE, Purpose::Inventory);
            for endpoint in 0..self.membership.endpoints {
                desk.ask(endpoint, Request::Status, PATIENCE, Purpose::Health);
            }
        }
        let is_counted = !stays_away && !self.membership.is_passing;
        if let Some(created) = self.session.created().filter(|_| is_counted) {
            let own = own(&self.session, &self.scene, created);
            self.census.tend(&own, self.scene.wall, endpoint, &mut desk);
        }
        if self.candidates.is_empty() && self.session.is_lapsed() {
            self.session.revoke(&mut desk);
        }
    }

    /// What this gate is to hear now.
    fn tell(&mut self, want: &Want, now: Moment) -> Option<Said> {
        let has = Has::count(self.candidates.values());
        let Some(candidate) = self.candidates.get_mut(&want.worker) else {
            return match &want.ticket {
                Some(_) => Some(Said::Lost("nothing is known of its place".to_owned())),
                None => Some(Said::Waits(self.why_out())),
            };
        };
        if candidate.leaves() {
            return None;
        }
        if want.ticket.is_some() {
            if self.session.is_lapsed() && !want.has_begun {
                let why = "its lease is not renewed any more".to_owned();
                return Some(Said::Lost(why));
            }
            let line = self.queues.get(&candidate.lock).and_then(Queue::line);
            let wish = line.zip(candidate.place());
            let wish = wish.and_then(|(line, (_, fence))| line.must_go(fence, now));
            if let Some(wish) = wish.filter(|_| want.is_open && !want.is_released) {
                return Some(Said::Asked(wish.who.clone()));
            }
            let better = line
                .zip(candidate.place())
                .is_some_and(|(line, (_, fence))| line.has_better(fence));
            if candidate.gives_way(better, now) && want.is_open && !want.is_released {
                let why = "a node that is preferred (failback)".to_owned();
                return Some(Said::Asked(why));
            }
            let others = line.is_some_and(|line| line.len() > line.slots() as usize);
            if candidate.is_stuck(want.has_begun, now) && others {
                return Some(Said::Passed);
            }
            let (sent, ttl) = self.session.verified()?;
            let news = want.is_open && candidate.hears(sent);
            return news.then_some(Said::Renewed { sent, ttl });
        }
        let has = has.of(candidate);
        let Some((key, fence)) = candidate.place() else {
            return Some(Said::Waits("joins the queue".to_owned()));
        };
        let queue = self.queues.get(&candidate.lock)?;
        let Some(line) = queue.line() else {
            // What was said before is as good as that.
            let first = want.waits.is_none();
            return first.then(|| Said::Waits("reads the queue".to_owned()));
        };
        if !line.has_it(fence) {
            return Some(Said::Waits(who_has_it(line)));
        }
        let verified = self.session.verified();
        // After a departure without a word whoever begins must have looked since.
        let looked = line
            .suspicious()
            .is_none_or(|since| verified.is_some_and(|(sent, _)| sent.boottime >= since));
        if line.clear_at().is_some_and(|at| at > now) || !looked {
            if !looked {
                self.session.hurry(now);
            }
            let why = "its last holder left without a word: what he may have left has time to end";
            return Some(Said::Waits(why.to_owned()));
        }
        verified?;
        // Its place is from before this node had another lock of the group.
        if candidate.has_changed(&self.node, has) {
            let group = candidate.spread().unwrap_or_default();
            let why =
                format!("others come first: this node has a lock of the group {group} already");
            return Some(Said::Waits(why));
        }
        let ticket = Ticket {
            key: key.to_owned(),
            fence,
        };
        candidate.won(now);
        let vacated = line.vacated();
        Some(Said::Won { ticket, vacated })
    }

    fn why_out(&self) -> String {
        match &self.waits {
            Some(why) => format!("has no lease: {why}"),
            None => "has no lease yet".to_owned(),
        }
    }
}

/// How many locks of each group this node has.
struct Has(BTreeMap<String, usize>);

impl Has {
    fn count<'a>(candidates: impl Iterator<Item = &'a Candidate>) -> Self {
        let mut all = BTreeMap::new();
        for one in candidates.filter(|one| one.has_won() && !one.leaves()) {
            if let Some(group) = one.spread() {
                *all.entry(group.to_owned()).or_default() += 1;
            }
        }
        Self(all)
    }

    /// Of the group of this one, if it has one.
    fn of(&self, candidate: &Candidate) -> usize {
        let group = candidate.spread().and_then(|group| self.0.get(group));
        group.copied().unwrap_or(0)
    }
}

/// For people.
fn who_has_it(line: &Line) -> String {
    let holders = line.places().take(line.slots() as usize);
    let holders: Vec<String> = holders.map(|(fence, _)| line.name_of(fence)).collect();
    let held = format!("held by {}", holders.join(" and "));
    match line.disagreement() {
        Some(why) => format!("{held}; {why}"),
        None => held,
    }
}

/// What a transaction read, by whom, and whether its conditions held.
type Read = (Header, bool, Vec<Vec<rpc::KeyValue>>);

fn read_of(result: Result<Reply, Failure>) -> Result<Read, Failure> {
    let reply = result?;
    match reply.body {
        Body::Txn { held, read } => Ok((reply.from, held, read)),
        Body::Status(_)
        | Body::Granted { .. }
        | Body::Alive { .. }
        | Body::Revoked
        | Body::LeaseKeys { .. } => {
            Err(Failure::Refused("it answered another question".to_owned()))
        }
    }
}

/// Another supervisor's late words do not count: what we write must find our stamp.
fn stamped(stamp: Option<&When>) -> Vec<When> {
    stamp.cloned().into_iter().collect()
}
