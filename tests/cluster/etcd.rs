//! A fake etcd: three members that elect, freeze, hang on their disks, are cut off, and disagree about who leads. What is committed is never
//! lost; what a leader remembers of leases is as wrong as it can be in the real one.
//!
//! All time here is true time. A member's clock, by which its lessor counts, runs fast or slow.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::{
    engine::cluster::rpc::{
        Body, CallId, Change, Do, Failure, Header, Health, KeyValue, LeaseId, News, Reply, Request,
        TXN_MAX, Txn, When,
    },
    time::{Moment, Span},
};

use crate::rng::Rng;

/// `--election-timeout`.
const ELECTION: Span = Span::millis(1_000);
/// A request that nobody can serve is held for so long.
const HELD: Span = Span::secs(7);
/// Of newer versions: a leader that heard of a quorum so lately does not ask again before it renews.
const TICK: Span = Span::millis(300);

/// Which etcd it is.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flavour {
    /// Before 3.4.31 and 3.5.13: whoever believes that it leads renews without asking.
    pub(crate) is_old: bool,
    /// Of those: it revokes, when it wakes up, what it thought had run out meanwhile.
    pub(crate) revokes_early: bool,
}

#[derive(Clone, Debug)]
struct Lessor {
    term: u64,
    /// For how long each is, and the true time at which its clock will say that it is over.
    expires: BTreeMap<LeaseId, (Span, Moment)>,
}

#[derive(Clone, Debug)]
struct Member {
    /// Thousandths of true time.
    rate: u64,
    frozen_until: Moment,
    cut_until: Moment,
    cut_since: Moment,
    disk_until: Moment,
    /// What it knows is so old.
    lag: Span,
    /// Of the last entry that it applied.
    term: u64,
    lessor: Option<Lessor>,
    follows: usize,
    /// It notices that it does not lead any more, then.
    steps_down: Option<Moment>,
}

/// What is committed.
#[derive(Clone, Debug, Default)]
struct Store {
    revision: i64,
    keys: BTreeMap<String, KeyValue>,
    leases: BTreeMap<LeaseId, (Span, BTreeSet<String>)>,
}

#[derive(Clone, Debug)]
struct Watcher {
    client: usize,
    id: CallId,
    member: usize,
    prefix: String,
    pending: Vec<(Moment, i64, Vec<Change>)>,
    leaderless: Option<Moment>,
}

/// News for a client's watch, from a member.
#[derive(Clone, Debug)]
pub(crate) struct Out {
    pub(crate) client: usize,
    pub(crate) member: usize,
    pub(crate) news: News,
}

/// What becomes of a request.
pub(crate) enum Verdict {
    Answer(Span, Result<Reply, Failure>),
    /// It is held, and looked at again.
    Later(Span),
    Never,
}

pub(crate) struct Etcd {
    flavour: Flavour,
    cluster: u64,
    members: Vec<Member>,
    store: Store,
    term: u64,
    watchers: Vec<Watcher>,
    backup: Option<Store>,
    pub(crate) has_space: bool,
    next_lease: i64,
    leader_lost: Option<Moment>,
    next_expiry: Moment,
    pub(crate) elections: u64,
    pub(crate) early_revokes: u64,
    pub(crate) stale_renewals: u64,
}

impl Etcd {
    pub(crate) fn new(flavour: Flavour, slewed: bool, rng: &mut Rng) -> Self {
        let mut member = |index| Member {
            rate: if slewed { slew(rng) } else { 1_000 },
            frozen_until: Moment(0),
            cut_until: Moment(0),
            cut_since: Moment(0),
            disk_until: Moment(0),
            lag: Span::millis(1),
            term: 1,
            lessor: (index == 0).then(|| Lessor {
                term: 1,
                expires: BTreeMap::new(),
            }),
            follows: 0,
            steps_down: None,
        };
        Self {
            flavour,
            cluster: 0xe7cd,
            members: (0..3).map(&mut member).collect(),
            store: Store {
                revision: 1,
                ..Store::default()
            },
            term: 1,
            watchers: Vec::new(),
            backup: None,
            has_space: true,
            next_lease: 0x7000,
            leader_lost: None,
            next_expiry: Moment(0),
            elections: 0,
            early_revokes: 0,
            stale_renewals: 0,
        }
    }

    fn is_fit(&self, member: usize, now: Moment) -> bool {
        let one = &self.members[member];
        one.frozen_until <= now && one.cut_until <= now && one.disk_until <= now
    }

    pub(crate) fn is_frozen(&self, member: usize, now: Moment) -> Option<Moment> {
        let until = self.members[member].frozen_until;
        (until > now).then_some(until)
    }

    fn has_quorum(&self, now: Moment) -> bool {
        (0..3).filter(|member| self.is_fit(*member, now)).count() >= 2
    }

    /// Whoever leads, and can commit.
    pub(crate) fn leads(&self, now: Moment) -> Option<usize> {
        self.leader(now)
    }

    fn leader(&self, now: Moment) -> Option<usize> {
        let leads = |member: &usize| {
            let lessor = self.members[*member].lessor.as_ref();
            lessor.is_some_and(|lessor| lessor.term == self.term) && self.is_fit(*member, now)
        };
        (0..3).find(leads).filter(|_| self.has_quorum(now))
    }

    fn header(&self, member: usize, term: u64) -> Header {
        Header {
            cluster: self.cluster,
            member: member as u64 + 1,
            revision: self.store.revision,
            term,
        }
    }

    pub(crate) fn freeze(&mut self, member: usize, until: Moment) {
        self.members[member].frozen_until = until;
    }

    pub(crate) fn cut(&mut self, member: usize, now: Moment, until: Moment) {
        self.members[member].cut_until = until;
        self.members[member].cut_since = now;
    }

    pub(crate) fn hang_disk(&mut self, member: usize, until: Moment) {
        self.members[member].disk_until = until;
    }

    pub(crate) fn leading(&self) -> usize {
        let leads = |member: &usize| {
            let lessor = self.members[*member].lessor.as_ref();
            lessor.is_some_and(|lessor| lessor.term == self.term)
        };
        (0..3).find(leads).unwrap_or(0)
    }

    pub(crate) fn lag(&mut self, member: usize, lag: Span) {
        self.members[member].lag = lag;
    }

    /// What would be in a backup that is made now.
    pub(crate) fn back_up(&mut self) {
        self.backup = Some(self.store.clone());
    }

    /// All that happened since then is forgotten; whether the cluster keeps its id depends on how it was done. Can that be told?
    pub(crate) fn restore(&mut self, same_id: bool, now: Moment) -> bool {
        let Some(backup) = self.backup.take() else {
            return false;
        };
        let forgets = backup.revision < self.store.revision;
        self.store = backup;
        self.cluster += u64::from(!same_id);
        self.watchers.clear();
        self.term += 1;
        let leases = self.store.leases.iter();
        let expires: BTreeMap<LeaseId, (Span, Moment)> = leases
            .map(|(lease, (ttl, _))| (*lease, (*ttl, now.after(*ttl))))
            .collect();
        for member in &mut self.members {
            member.lessor = None;
            member.follows = 0;
            member.term = self.term;
        }
        self.members[0].lessor = Some(Lessor {
            term: self.term,
            expires,
        });
        forgets || !same_id
    }

    /// Some lease of the cluster, for an operator who revokes it.
    pub(crate) fn some_lease(&self, rng: &mut Rng) -> Option<LeaseId> {
        let leases: Vec<LeaseId> = self.store.leases.keys().copied().collect();
        (!leases.is_empty()).then(|| *rng.pick(&leases))
    }

    /// Somebody's place in a queue; as often that of whoever has stood there for longest.
    pub(crate) fn some_place(&self, rng: &mut Rng) -> Option<String> {
        let keys = self
            .store
            .keys
            .iter()
            .filter(|(key, _)| key.contains("/q/"));
        let keys: Vec<(&String, &KeyValue)> = keys.collect();
        let first = keys.iter().min_by_key(|(_, kv)| kv.created)?;
        let any = if rng.chance(50) {
            *first
        } else {
            *rng.pick(&keys)
        };
        Some(any.0.clone())
    }

    /// Something that is published.
    pub(crate) fn some_record(&self, rng: &mut Rng) -> Option<String> {
        let is_record = |key: &&String| key.contains("/e/") || key.starts_with("traefik/");
        let keys: Vec<&String> = self.store.keys.keys().filter(is_record).collect();
        (!keys.is_empty()).then(|| (*rng.pick(&keys)).clone())
    }

    /// An operator's, from anywhere, at once.
    pub(crate) fn operate(&mut self, request: Request, now: Moment) {
        if self.leader(now).is_some() {
            let _ = self.commit(&request, now);
        }
    }

    pub(crate) fn value(&self, key: &str) -> Option<String> {
        self.store.keys.get(key).map(|kv| kv.value.clone())
    }

    /// What stands below a prefix.
    pub(crate) fn below(&self, prefix: &str) -> Vec<String> {
        let keys = self.store.keys.keys();
        let keys = keys.filter(|key| key.starts_with(prefix));
        keys.cloned().collect()
    }

    pub(crate) fn places(&self, lock: &str) -> usize {
        let prefix = format!("{lock}q/");
        self.store
            .keys
            .keys()
            .filter(|key| key.starts_with(&prefix))
            .count()
    }

    /// A request has arrived at a member, `since` then.
    pub(crate) fn serve(
        &mut self,
        member: usize,
        request: &Request,
        since: Moment,
        now: Moment,
        rng: &mut Rng,
    ) -> Verdict {
        if now.since(since) > HELD {
            return Verdict::Never;
        }
        match request {
            Request::Status => {
                let health = Health {
                    version: "3.4.23".to_owned(),
                    has_leader: self.leader(now).is_some() && self.members[member].cut_until <= now,
                    alarms: match self.has_space {
                        true => Vec::new(),
                        false => vec!["NOSPACE".to_owned()],
                    },
                };
                let from = self.header(member, self.members[member].term);
                let body = Body::Status(health);
                Verdict::Answer(rng.span(0, 2), Ok(Reply { from, body }))
            }
            Request::KeepAlive(lease) => self.keep_alive(member, *lease, now, rng),
            Request::Grant { .. }
            | Request::Revoke(_)
            | Request::LeaseKeys(_)
            | Request::Txn(_) => {
                // Through the log, or a read that a quorum must confirm: not without whoever leads, nor from where he cannot be reached.
                if self.leader(now).is_none() || !self.is_fit(member, now) {
                    // Whoever has waited for two elections knows that there is none.
                    let lost = self.lost_since(now).unwrap_or_default();
                    return match lost > ELECTION.plus(ELECTION) {
                        true => Verdict::Answer(Span::ZERO, Err(Failure::NoLeader)),
                        false => Verdict::Later(Span::millis(40)),
                    };
                }
                let result = self.commit(request, now);
                let from = self.header(member, self.term);
                let result = result.map(|body| Reply { from, body });
                let slow = if rng.chance(3) { 300 } else { 8 };
                Verdict::Answer(rng.span(0, slow), result)
            }
        }
    }

    fn keep_alive(&mut self, member: usize, lease: LeaseId, now: Moment, rng: &mut Rng) -> Verdict {
        // The header is filled before anything is done.
        let from = self.header(member, self.members[member].term);
        let leader = match &self.members[member].lessor {
            Some(_) => member,
            None if self.is_fit(member, now) => self.members[member].follows,
            None => return Verdict::Later(Span::millis(40)),
        };
        let frozen = self.members[leader].frozen_until > now;
        let apart = leader != member && self.members[leader].cut_until > now;
        if frozen || apart {
            return Verdict::Later(Span::millis(40));
        }
        let rightful = self.leader(now) == Some(leader);
        let asked_lately = self.lost_since(now).is_none_or(|since| since <= TICK);
        if !rightful && !self.flavour.is_old && !asked_lately {
            return Verdict::Later(Span::millis(40));
        }
        let rate = self.members[leader].rate;
        let Some(lessor) = &mut self.members[leader].lessor else {
            return Verdict::Later(Span::millis(40));
        };
        let body = match lessor.expires.get_mut(&lease) {
            Some((ttl, until)) => {
                *until = now.after(by_clock(*ttl, rate));
                self.stale_renewals += u64::from(!rightful);
                Body::Alive {
                    ttl: (ttl.as_millis() / 1_000) as i64,
                }
            }
            None => Body::Alive { ttl: 0 },
        };
        Verdict::Answer(rng.span(0, 3), Ok(Reply { from, body }))
    }

    /// For how long has nobody been able to lead?
    fn lost_since(&self, now: Moment) -> Option<Span> {
        self.leader_lost.map(|since| now.since(since))
    }

    fn commit(&mut self, request: &Request, now: Moment) -> Result<Body, Failure> {
        match request {
            Request::Grant { .. } if !self.has_space => Err(Failure::NoSpace),
            Request::Grant { ttl } => {
                // No shorter than one and a half elections.
                let ttl = (*ttl).max(2);
                self.next_lease += 1;
                let lease = LeaseId(self.next_lease);
                let span = Span::secs(ttl.unsigned_abs());
                self.store.leases.insert(lease, (span, BTreeSet::new()));
                self.lease_on(lease, span, now);
                Ok(Body::Granted { lease, ttl })
            }
            Request::Revoke(lease) => {
                if !self.store.leases.contains_key(lease) {
                    return Err(Failure::NoLease);
                }
                self.revoke(*lease, now);
                Ok(Body::Revoked)
            }
            Request::LeaseKeys(lease) => match self.store.leases.get(lease) {
                Some((_, keys)) => Ok(Body::LeaseKeys {
                    ttl: self.left(*lease, now),
                    keys: keys.iter().cloned().collect(),
                }),
                None => Ok(Body::LeaseKeys {
                    ttl: -1,
                    keys: Vec::new(),
                }),
            },
            Request::Txn(txn) => self.transact(txn, now),
            Request::Status | Request::KeepAlive(_) => unreachable!("not through the log"),
        }
    }

    /// What its leader thinks is left of a lease, in seconds.
    fn left(&self, lease: LeaseId, now: Moment) -> i64 {
        let lessor = self.members[self.leading()].lessor.as_ref();
        let until = lessor.and_then(|lessor| lessor.expires.get(&lease));
        until.map_or(0, |(_, until)| {
            (now.until(*until).as_millis() / 1_000) as i64
        })
    }

    fn lease_on(&mut self, lease: LeaseId, ttl: Span, now: Moment) {
        let leader = self.leading();
        let rate = self.members[leader].rate;
        if let Some(lessor) = &mut self.members[leader].lessor {
            let until = now.after(by_clock(ttl, rate));
            lessor.expires.insert(lease, (ttl, until));
        }
    }

    fn revoke(&mut self, lease: LeaseId, now: Moment) {
        let Some((_, keys)) = self.store.leases.remove(&lease) else {
            return;
        };
        for member in &mut self.members {
            // A leader that is behind has not heard of it.
            if let Some(lessor) = member
                .lessor
                .as_mut()
                .filter(|lessor| lessor.term == self.term)
            {
                lessor.expires.remove(&lease);
            }
        }
        let there: Vec<String> = keys
            .into_iter()
            .filter(|key| self.store.keys.remove(key).is_some())
            .collect();
        if there.is_empty() {
            return;
        }
        self.store.revision += 1;
        let revision = self.store.revision;
        let deleted = |key| Change::Deleted { key, revision };
        let changes = there.into_iter().map(deleted).collect();
        self.publish(changes, now);
    }

    fn transact(&mut self, txn: &Txn, now: Moment) -> Result<Body, Failure> {
        for list in [&txn.then, &txn.otherwise] {
            let puts = || list.iter().filter(|one| matches!(one, Do::Put { .. }));
            let again = puts().any(|one| {
                let same = |other: &&Do| written(other) == written(one);
                list.iter().filter(same).count() > 1
            });
            if again || list.len() > TXN_MAX {
                return Err(Failure::Refused("not such a transaction".to_owned()));
            }
            // Also where it would not be done.
            if puts().next().is_some() && !self.has_space {
                return Err(Failure::NoSpace);
            }
        }
        let held = txn.when.iter().all(|when| {
            let (key, expected, of): (_, _, fn(&KeyValue) -> i64) = match when {
                When::Created(key, at) => (key, at, |kv| kv.created),
                When::Modified(key, at) => (key, at, |kv| kv.modified),
            };
            self.store.keys.get(key).map_or(0, of) == *expected
        });
        let list = if held { &txn.then } else { &txn.otherwise };
        let unknown = list.iter().any(|one| {
            matches!(one, Do::Put { lease: Some(lease), .. } if !self.store.leases.contains_key(lease))
        });
        if unknown {
            return Err(Failure::NoLease);
        }
        let revision = self.store.revision + 1;
        let mut changes = Vec::new();
        let mut read = Vec::new();
        for one in list {
            match one {
                Do::Get(key) => read.push(self.store.keys.get(key).cloned().into_iter().collect()),
                Do::List(prefix) => {
                    let keys = self.store.keys.values();
                    let found = keys.filter(|kv| kv.key.starts_with(prefix));
                    read.push(found.cloned().collect());
                }
                Do::Put { key, value, lease } => {
                    let kv = KeyValue {
                        key: key.clone(),
                        value: value.clone(),
                        created: self.store.keys.get(key).map_or(revision, |kv| kv.created),
                        modified: revision,
                        lease: *lease,
                    };
                    for (_, keys) in self.store.leases.values_mut() {
                        keys.remove(key);
                    }
                    if let Some((_, keys)) = lease.and_then(|id| self.store.leases.get_mut(&id)) {
                        keys.insert(key.clone());
                    }
                    self.store.keys.insert(key.clone(), kv.clone());
                    changes.push(Change::Put(kv));
                }
                Do::Delete(key) => {
                    if self.store.keys.remove(key).is_some() {
                        for (_, keys) in self.store.leases.values_mut() {
                            keys.remove(key);
                        }
                        let key = key.clone();
                        changes.push(Change::Deleted { key, revision });
                    }
                }
            }
        }
        if !changes.is_empty() {
            self.store.revision = revision;
            self.publish(changes, now);
        }
        Ok(Body::Txn { held, read })
    }

    /// Watchers see it when their member has applied it.
    fn publish(&mut self, changes: Vec<Change>, now: Moment) {
        let revision = self.store.revision;
        for watcher in &mut self.watchers {
            let key = |change: &Change| match change {
                Change::Put(kv) => kv.key.clone(),
                Change::Deleted { key, .. } => key.clone(),
            };
            let seen: Vec<Change> = changes
                .iter()
                .filter(|change| key(change).starts_with(&watcher.prefix))
                .cloned()
                .collect();
            if !seen.is_empty() {
                let at = now.after(self.members[watcher.member].lag);
                watcher.pending.push((at, revision, seen));
            }
        }
    }

    /// A watch is asked for: open at once, from now on.
    pub(crate) fn watch(
        &mut self,
        client: usize,
        member: usize,
        id: CallId,
        prefix: String,
        now: Moment,
    ) -> News {
        if !self.has_quorum(now) || !self.is_fit(member, now) {
            let why = Failure::NoLeader;
            return News::WatchEnded { watch: id, why };
        }
        self.watchers.push(Watcher {
            client,
            id,
            member,
            prefix,
            pending: Vec::new(),
            leaderless: None,
        });
        let from = self.header(member, self.members[member].term);
        News::Watching { watch: id, from }
    }

    pub(crate) fn unwatch(&mut self, client: usize, id: CallId) {
        self.watchers
            .retain(|watcher| (watcher.client, watcher.id) != (client, id));
    }

    /// A member's streams are gone with it.
    pub(crate) fn lose_watches(&mut self, member: usize) -> Vec<CallId> {
        let lost = self
            .watchers
            .iter()
            .filter(|watcher| watcher.member == member);
        let lost = lost.map(|watcher| watcher.id).collect();
        self.watchers.retain(|watcher| watcher.member != member);
        lost
    }

    /// It is started again, and remembers of leases what is committed.
    pub(crate) fn revive(&mut self, member: usize, now: Moment) {
        let one = &mut self.members[member];
        one.frozen_until = now;
        (one.lessor, one.steps_down) = (None, None);
    }

    /// The client's streams are gone with it.
    pub(crate) fn hang_up(&mut self, client: usize) {
        self.watchers.retain(|watcher| watcher.client != client);
    }

    /// A stream breaks for no reason that concerns etcd.
    pub(crate) fn break_watch(&mut self, rng: &mut Rng) -> Option<Out> {
        if self.watchers.is_empty() {
            return None;
        }
        let at = rng.below(self.watchers.len() as u64) as usize;
        let watcher = self.watchers.remove(at);
        let why = Failure::Compacted;
        let watch = watcher.id;
        let news = News::WatchEnded { watch, why };
        Some(Out {
            client: watcher.client,
            member: watcher.member,
            news,
        })
    }

    /// Time goes by: elections, expiries, news.
    pub(crate) fn tick(&mut self, now: Moment, rng: &mut Rng) -> Vec<Out> {
        self.elect(now, rng);
        self.step_down(now, rng);
        self.expire(now);
        self.deliver(now)
    }

    fn elect(&mut self, now: Moment, rng: &mut Rng) {
        if self.leader(now).is_some() {
            self.leader_lost = None;
            for index in 0..3 {
                if self.is_fit(index, now) && self.members[index].lessor.is_none() {
                    self.members[index].follows = self.leading();
                    self.members[index].term = self.term;
                }
            }
            return;
        }
        let since = *self.leader_lost.get_or_insert(now);
        let timeout = ELECTION.plus(rng.span(0, 1_000));
        if now.since(since) < timeout || !self.has_quorum(now) {
            return;
        }
        let fit: Vec<usize> = (0..3).filter(|member| self.is_fit(*member, now)).collect();
        let leader = *rng.pick(&fit);
        self.term += 1;
        self.elections += 1;
        self.leader_lost = None;
        let rate = self.members[leader].rate;
        let expires = self.store.leases.iter().map(|(lease, (ttl, _))| {
            let whole = ttl.plus(ELECTION);
            (*lease, (*ttl, now.after(by_clock(whole, rate))))
        });
        self.members[leader].lessor = Some(Lessor {
            term: self.term,
            expires: expires.collect(),
        });
        self.members[leader].term = self.term;
        self.members[leader].follows = leader;
        self.members[leader].steps_down = None;
    }

    /// Whoever led notices, some time after it can hear again, that somebody else does.
    fn step_down(&mut self, now: Moment, rng: &mut Rng) {
        for index in 0..3 {
            let member = &self.members[index];
            let Some(lessor) = &member.lessor else {
                continue;
            };
            let is_cut = member.cut_until > now && member.frozen_until <= now;
            // CheckQuorum: two election timeouts without anybody.
            if is_cut && now.since(member.cut_since) > ELECTION.plus(ELECTION) {
                self.members[index].lessor = None;
                self.members[index].steps_down = None;
                continue;
            }
            if lessor.term == self.term || !self.is_fit(index, now) {
                continue;
            }
            let at = member
                .steps_down
                .unwrap_or_else(|| now.after(rng.span(0, 300)));
            self.members[index].steps_down = Some(at);
            if at > now {
                continue;
            }
            let lessor = self.members[index].lessor.take();
            self.members[index].steps_down = None;
            self.members[index].follows = self.leading();
            self.members[index].term = self.term;
            // What it thought had run out while it did not lead, it has revoked (etcd-io/etcd#15247).
            let stale = lessor.filter(|_| self.flavour.revokes_early && self.leader(now).is_some());
            for (lease, (_, until)) in stale.into_iter().flat_map(|lessor| lessor.expires) {
                if until <= now && self.store.leases.contains_key(&lease) {
                    self.early_revokes += 1;
                    self.revoke(lease, now);
                }
            }
        }
    }

    fn expire(&mut self, now: Moment) {
        if now < self.next_expiry {
            return;
        }
        self.next_expiry = now.after(Span::millis(500));
        let Some(leader) = self.leader(now) else {
            return;
        };
        let lessor = self.members[leader].lessor.as_ref();
        let expired: Vec<LeaseId> = lessor
            .into_iter()
            .flat_map(|lessor| &lessor.expires)
            .filter(|(_, (_, until))| *until <= now)
            .map(|(lease, _)| *lease)
            .collect();
        for lease in expired {
            self.revoke(lease, now);
        }
    }

    fn deliver(&mut self, now: Moment) -> Vec<Out> {
        let mut out = Vec::new();
        let unfit: Vec<bool> = (0..3).map(|member| !self.is_fit(member, now)).collect();
        let quorum = self.has_quorum(now);
        for watcher in &mut self.watchers {
            let member = watcher.member;
            if unfit[member] || !quorum {
                watcher.leaderless.get_or_insert(now);
                continue;
            }
            watcher.leaderless = None;
            while watcher.pending.first().is_some_and(|(at, ..)| *at <= now) {
                let (_, revision, changes) = watcher.pending.remove(0);
                let watch = watcher.id;
                let news = News::Watched {
                    watch,
                    revision,
                    changes,
                };
                out.push(Out {
                    client: watcher.client,
                    member,
                    news,
                });
            }
        }
        let over = |watcher: &Watcher| {
            let frozen = self.members[watcher.member].frozen_until > now;
            let since = watcher.leaderless.filter(|_| !frozen);
            since.is_some_and(|since| now.since(since) > Span::secs(3))
        };
        let ended: Vec<Watcher> = self
            .watchers
            .iter()
            .filter(|one| over(one))
            .cloned()
            .collect();
        for watcher in ended {
            self.unwatch(watcher.client, watcher.id);
            let (watch, why) = (watcher.id, Failure::NoLeader);
            let news = News::WatchEnded { watch, why };
            out.push(Out {
                client: watcher.client,
                member: watcher.member,
                news,
            });
        }
        out
    }
}

/// Which key this writes, if any.
fn written(one: &Do) -> Option<&String> {
    match one {
        Do::Put { key, .. } | Do::Delete(key) => Some(key),
        Do::Get(_) | Do::List(_) => None,
    }
}

/// chrony slews by up to a twelfth (chrony.conf(5), maxslewrate); often as much as it may.
pub(crate) fn slew(rng: &mut Rng) -> u64 {
    *rng.pick(&[917, 1_000, 1_083, 917 + rng.clone().below(167)])
}

/// How long that is in true time, by a clock of this rate.
fn by_clock(span: Span, rate: u64) -> Span {
    Span::nanos(span.as_nanos() / rate * 1_000)
}
