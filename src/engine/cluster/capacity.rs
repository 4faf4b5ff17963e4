//! How many workers a fleet may have over all nodes: units in etcd, one for each worker, of which there are only so many.
//!
//! A unit is a key with a number below `cluster_max`. Whoever creates it has it, until he deletes it or his lease is over, so that no two
//! nodes have the same one whatever either of them believes. It hangs on the lease of the node's records: neither what becomes of its locks
//! nor its supervisor's death gives it away. Nothing here is remembered: every answer lists all units of the fleet, and ours are those that
//! name us; one on the lease of a daemon of this node before us is put onto ours.
//!
//! One request is under way at a time, and what failed waits: an etcd that refuses answers at once.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    engine::cluster::{
        calls::{Desk, Purpose},
        entry::Verdict,
        keys::{self, UnitCard},
        rpc::{Body, CallId, Do, Failure, KeyValue, LeaseId, Reply, Request, Txn, When},
        session::PATIENCE,
    },
    id::Revision,
    time::{Moment, Span},
};

/// All units are looked at so often,
const LOOK_EVERY: Span = Span::secs(30);
/// and so often by whoever wants more than he has.
const LOOK_WHEN_SHORT: Span = Span::secs(5);
/// After a write, whatever came of it, the next one waits so long: two nodes that want the same units do not race as fast as etcd answers.
const PAUSE: Span = Span::millis(100);
/// After a failure it waits so long, then twice as long, and so on.
const RETRY_MIN: Span = Span::millis(200);
const RETRY_MAX: Span = Span::secs(5);
/// So many units in one transaction, at most.
const CHUNK: usize = 32;

/// What a fleet wants of the units.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Demand {
    /// For workers that are there, and for those that it would like to have.
    pub(in crate::engine) wanted: u32,
    /// So many there are for all nodes.
    pub(in crate::engine) max: u32,
}

/// What it has of them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Share {
    pub(in crate::engine) held: u32,
    /// By all nodes, as of the last look; none: nothing was seen yet.
    pub(in crate::engine) taken: Option<u32>,
    /// etcd answers, and our lease is renewed.
    pub(in crate::engine) is_known: bool,
}

/// What is under way.
#[derive(Clone, Debug)]
struct Asked {
    call: CallId,
    /// It may change something.
    writes: bool,
    /// These are being given back.
    leaving: BTreeSet<u32>,
}

/// The units of one fleet.
#[derive(Clone, Debug)]
pub(super) struct Capacity {
    /// All of them are below this.
    below: String,
    /// What stands in ours.
    card: UnitCard,
    demand: Demand,
    /// On our lease, each with the revision that wrote it.
    held: BTreeMap<u32, i64>,
    /// Ours, but on another lease, or perhaps being given back in this moment: written anew before they count.
    strays: BTreeMap<u32, i64>,
    /// Everybody's.
    taken: BTreeSet<u32>,
    /// As of then; none: nothing was seen under this lease.
    looked: Option<Moment>,
    asked: Option<Asked>,
    /// Given back, and not answered: whether they are ours still is seen when all are looked at.
    doubtful: BTreeSet<u32>,
    /// What was asked last failed.
    has_failed: bool,
    /// Nothing is asked before.
    until: Moment,
    retry: Span,
}

impl Capacity {
    pub(super) fn new(
        below: String,
        (node, identity): (&str, &str),
        demand: Demand,
        now: Moment,
    ) -> Self {
        Self {
            below,
            card: UnitCard {
                node: node.to_owned(),
                identity: identity.to_owned(),
            },
            demand,
            held: BTreeMap::new(),
            strays: BTreeMap::new(),
            taken: BTreeSet::new(),
            looked: None,
            asked: None,
            doubtful: BTreeSet::new(),
            has_failed: false,
            until: now,
            retry: Span::ZERO,
        }
    }

    pub(super) fn want(&mut self, demand: Demand) {
        self.demand = demand;
    }

    /// Is this key a unit of this fleet?
    pub(super) fn knows(&self, key: &str) -> bool {
        key.starts_with(&self.below)
    }

    /// The lease is over, and with it what hung on it: it is claimed anew on the next one.
    pub(super) fn lost(&mut self, now: Moment) {
        self.held.clear();
        self.strays.clear();
        self.taken.clear();
        self.doubtful.clear();
        (self.looked, self.asked, self.has_failed) = (None, None, false);
        (self.until, self.retry) = (now, Span::ZERO);
    }

    pub(super) fn share(&self) -> Share {
        Share {
            held: self.kept().count() as u32,
            taken: self.looked.map(|_| self.taken.len() as u32),
            is_known: self.looked.is_some() && !self.has_failed,
        }
    }

    /// Ours, and not being given back.
    fn kept(&self) -> impl Iterator<Item = u32> {
        let leaving = self.asked.as_ref().map(|asked| &asked.leaving);
        let leaves = move |index: &u32| leaving.is_some_and(|leaving| leaving.contains(index));
        let kept = self.held.keys().copied();
        kept.filter(move |index| !leaves(index) && !self.doubtful.contains(index))
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let at = match self.gives().is_empty() && self.strays.is_empty() && self.takes().is_empty()
        {
            true => self.look_at(),
            false => self.until,
        };
        self.asked.is_none().then_some(at)
    }

    /// When all units are to be looked at.
    fn look_at(&self) -> Moment {
        let is_short = (self.held.len() as u32) < self.demand.wanted;
        let every = if is_short {
            LOOK_WHEN_SHORT
        } else {
            LOOK_EVERY
        };
        let last = self.looked.filter(|_| !self.has_failed);
        let next = last.map(|at| at.after(every));
        next.map_or(self.until, |at| at.max(self.until))
    }

    pub(super) fn asked(&self, call: CallId) -> bool {
        self.asked.as_ref().is_some_and(|asked| asked.call == call)
    }

    /// Asks for what is to be done next, if it is time.
    pub(super) fn tend(&mut self, lease: LeaseId, endpoint: usize, desk: &mut Desk<'_>) {
        if self.asked.is_some() || self.until > desk.now {
            return;
        }
        let (gives, takes) = (self.gives(), self.takes());
        let txn = match () {
            () if self.looked.is_none() => self.look(),
            () if !self.strays.is_empty() => self.move_to(lease),
            () if !gives.is_empty() => self.give(&gives),
            () if !takes.is_empty() => self.take(&takes, lease),
            () if self.look_at() <= desk.now => self.look(),
            () => return,
        };
        let writes = txn.writes();
        let is_giving = writes && self.strays.is_empty();
        let call = desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Register);
        self.asked = Some(Asked {
            call,
            writes,
            leaving: if is_giving { gives } else { BTreeSet::new() },
        });
    }

    /// More than it wants: those with the highest numbers, so that what a smaller `cluster_max` leaves over goes first.
    fn gives(&self) -> BTreeSet<u32> {
        let more = self.held.len().saturating_sub(self.demand.wanted as usize);
        let all = self.held.keys().rev().copied();
        all.take(more.min(CHUNK)).collect()
    }

    /// Of those that are free, as many as it wants. Each node begins somewhere else, so that two seldom want the same ones.
    fn takes(&self) -> Vec<u32> {
        let Demand { wanted, max } = self.demand;
        let ours = self.held.len() + self.strays.len();
        let short = (wanted as usize).saturating_sub(ours);
        // A number above a `cluster_max` that was lowered counts as well.
        let left = (max as usize).saturating_sub(self.taken.len());
        let first = Revision::of(self.card.node.as_bytes()).0 % u64::from(max.max(1));
        let all = (first as u32..max).chain(0..first as u32);
        all.filter(|index| !self.taken.contains(index))
            .take(short.min(left).min(CHUNK))
            .collect()
    }

    fn key(&self, index: u32) -> String {
        format!("{}{index}", self.below)
    }

    /// Every answer shows all units, whether the conditions held or not.
    fn all(&self) -> Do {
        Do::List(self.below.clone())
    }

    fn look(&self) -> Txn {
        Txn::read(vec![self.all()])
    }

    fn write(&self, when: Vec<When>, mut then: Vec<Do>) -> Txn {
        then.push(self.all());
        Txn {
            when,
            then,
            otherwise: vec![self.all()],
        }
    }

    fn put(&self, index: u32, lease: LeaseId) -> Do {
        Do::Put {
            key: self.key(index),
            value: keys::encode(&self.card),
            lease: Some(lease),
        }
    }

    fn take(&self, takes: &[u32], lease: LeaseId) -> Txn {
        let free = takes.iter().map(|index| When::Created(self.key(*index), 0));
        let puts = takes.iter().map(|index| self.put(*index, lease));
        self.write(free.collect(), puts.collect())
    }

    fn give(&self, gives: &BTreeSet<u32>) -> Txn {
        let made = |index: &u32| self.held.get(index).copied().unwrap_or_default();
        let ours = gives
            .iter()
            .map(|index| When::Modified(self.key(*index), made(index)));
        let deletes = gives.iter().map(|index| Do::Delete(self.key(*index)));
        self.write(ours.collect(), deletes.collect())
    }

    fn move_to(&self, lease: LeaseId) -> Txn {
        let some = || self.strays.iter().take(CHUNK);
        let ours = some().map(|(index, written)| When::Modified(self.key(*index), *written));
        let puts = some().map(|(index, _)| self.put(*index, lease));
        self.write(ours.collect(), puts.collect())
    }

    /// An answer to something that it asked.
    pub(super) fn answered(
        &mut self,
        result: Result<Reply, Failure>,
        lease: LeaseId,
        now: Moment,
    ) -> Verdict {
        let asked = self.asked.take();
        let writes = asked.as_ref().is_some_and(|asked| asked.writes);
        let failure = match result {
            Ok(Reply {
                body: Body::Txn { read, .. },
                ..
            }) => {
                self.see(read.into_iter().flatten(), lease, now);
                (self.has_failed, self.retry) = (false, Span::ZERO);
                self.until = if writes { now.after(PAUSE) } else { now };
                return Verdict::Fine;
            }
            Ok(_) => Failure::Refused("it answered another question".to_owned()),
            Err(failure) => failure,
        };
        // What was written is not known: that is seen when it is tried again, or looked at.
        self.doubtful
            .extend(asked.into_iter().flat_map(|asked| asked.leaving));
        self.has_failed = true;
        self.retry = self.retry.plus(self.retry).clamp(RETRY_MIN, RETRY_MAX);
        self.until = now.after(self.retry);
        match failure {
            Failure::NoLease => Verdict::NoLease,
            Failure::Unanswered(_) | Failure::Unreachable(_) | Failure::NoLeader => {
                Verdict::Elsewhere
            }
            Failure::NoSpace | Failure::Denied(_) | Failure::Compacted | Failure::Refused(_) => {
                Verdict::Fine
            }
        }
    }

    fn see(&mut self, all: impl Iterator<Item = KeyValue>, lease: LeaseId, now: Moment) {
        self.held.clear();
        let strays = std::mem::take(&mut self.strays);
        self.taken.clear();
        let doubtful = std::mem::take(&mut self.doubtful);
        // A supervisor before us may have given some back, and that may still be on its way.
        let is_first = self.looked.is_none();
        for kv in all {
            let index = kv.key.strip_prefix(&self.below);
            let Some(index) = index.and_then(|index| index.parse().ok()) else {
                continue;
            };
            self.taken.insert(index);
            let is_ours = keys::decode::<UnitCard>(&kv.value).is_some_and(|card| card == self.card);
            // Whatever it says: nobody else has our lease.
            let is_on_ours = kv.lease == Some(lease);
            let is_doubted =
                is_first || doubtful.contains(&index) || strays.get(&index) == Some(&kv.modified);
            if is_on_ours && !is_doubted {
                self.held.insert(index, kv.modified);
            } else if is_ours || is_on_ours {
                self.strays.insert(index, kv.modified);
            }
        }
        self.looked = Some(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cluster::{
        calls::Calls,
        rpc::{Header, Order},
    };

    const OURS: LeaseId = LeaseId(7);
    const BEFORE: LeaseId = LeaseId(6);
    const THEIRS: LeaseId = LeaseId(8);

    /// One node, and the units as etcd has them.
    struct Bench {
        capacity: Capacity,
        calls: Calls,
        now: Moment,
        there: BTreeMap<u32, KeyValue>,
        revision: i64,
    }

    impl Bench {
        fn new(wanted: u32, max: u32) -> Self {
            let now = Moment(1_000_000_000);
            let demand = Demand { wanted, max };
            Self {
                capacity: Capacity::new("/cap/web/".to_owned(), ("a", "me"), demand, now),
                calls: Calls::default(),
                now,
                there: BTreeMap::new(),
                revision: 10,
            }
        }

        fn put(&mut self, index: u32, identity: &str, lease: LeaseId) {
            self.revision += 1;
            let card = UnitCard {
                node: if identity == "me" { "a" } else { "b" }.to_owned(),
                identity: identity.to_owned(),
            };
            let before = self.there.get(&index).map(|kv| kv.created);
            let kv = KeyValue {
                key: format!("/cap/web/{index}"),
                value: keys::encode(&card),
                created: before.unwrap_or(self.revision),
                modified: self.revision,
                lease: Some(lease),
            };
            self.there.insert(index, kv);
        }

        /// A moment after the last write.
        fn want(&mut self, wanted: u32, max: u32) {
            self.now = self.now.after(PAUSE);
            self.capacity.want(Demand { wanted, max });
        }

        fn asks(&mut self) -> Option<(CallId, Txn)> {
            let mut out = Vec::new();
            let mut desk = Desk {
                now: self.now,
                calls: &mut self.calls,
                out: &mut out,
            };
            self.capacity.tend(OURS, 0, &mut desk);
            out.pop().map(|order| match order {
                Order::Call(call) => match call.request {
                    Request::Txn(txn) => (call.id, txn),
                    other => panic!("{other:?}"),
                },
                other => panic!("{other:?}"),
            })
        }

        /// What etcd makes of it.
        fn does(&mut self, txn: &Txn) -> (bool, Vec<KeyValue>) {
            let find = |key: &String| self.there.values().find(|kv| kv.key == *key);
            let held = txn.when.iter().all(|when| match when {
                When::Created(key, at) => find(key).map_or(0, |kv| kv.created) == *at,
                When::Modified(key, at) => find(key).map_or(0, |kv| kv.modified) == *at,
            });
            let index = |key: &str| key.rsplit('/').next().unwrap().parse().unwrap();
            for one in txn.then.iter().filter(|_| held) {
                match one {
                    Do::Put { key, lease, .. } => self.put(index(key), "me", lease.unwrap()),
                    Do::Delete(key) => drop(self.there.remove(&index(key))),
                    Do::List(_) | Do::Get(_) => {}
                }
            }
            (held, self.there.values().cloned().collect())
        }

        fn hears(&mut self, result: Result<Vec<KeyValue>, Failure>) -> Verdict {
            let result = result.map(|read| Reply {
                from: Header::default(),
                body: Body::Txn {
                    held: true,
                    read: vec![read],
                },
            });
            self.capacity.answered(result, OURS, self.now)
        }

        /// Until there is nothing more to do at once; says what was written.
        fn settle(&mut self) -> Vec<Txn> {
            let mut all = Vec::new();
            for _ in 0..10_000 {
                while let Some((_, txn)) = self.asks() {
                    let (_, read) = self.does(&txn);
                    all.extend(txn.writes().then_some(txn));
                    self.hears(Ok(read));
                }
                let next = self.capacity.deadline().expect("it waits for something");
                if next > self.now.after(PAUSE) {
                    return all;
                }
                self.now = next.max(self.now);
            }
            panic!("it never rests");
        }

        fn ours(&self) -> Vec<u32> {
            self.capacity.held.keys().copied().collect()
        }

        fn held(&self) -> u32 {
            self.capacity.share().held
        }
    }

    #[test]
    fn it_looks_before_it_claims_and_claims_in_one_transaction() {
        let mut bench = Bench::new(3, 4);
        bench.put(1, "you", THEIRS);
        assert!(!bench.capacity.share().is_known);
        let (_, txn) = bench.asks().unwrap();
        assert!(!txn.writes(), "{txn:?}");
        assert_eq!(bench.asks(), None, "it is under way");
        let (_, read) = bench.does(&txn);
        bench.hears(Ok(read));
        let (_, txn) = bench.asks().unwrap();
        assert_eq!(txn.when.len(), 3, "{txn:?}");
        let (held, read) = bench.does(&txn);
        assert!(held);
        bench.hears(Ok(read));
        assert_eq!(bench.ours(), [0, 2, 3]);
        let share = bench.capacity.share();
        assert_eq!(
            (share.held, share.taken, share.is_known),
            (3, Some(4), true)
        );
        // There is nothing left, and nobody is hurried.
        bench.want(4, 4);
        assert_eq!(bench.settle(), []);
        let next = bench.capacity.deadline().unwrap();
        assert!(next > bench.now.after(PAUSE) && next <= bench.now.after(LOOK_WHEN_SHORT));
        assert_eq!(bench.ours().len(), 3);
    }

    #[test]
    fn two_nodes_begin_with_different_units() {
        let first = |node: &str| {
            let demand = Demand {
                wanted: 1,
                max: 100,
            };
            Capacity::new(String::new(), (node, "me"), demand, Moment(0)).takes()
        };
        assert_ne!(first("vps-1"), first("vps-2"));
        assert_eq!(first("vps-1"), first("vps-1"));
    }

    /// Somebody was faster: what the refusal shows is free is claimed, a moment later.
    #[test]
    fn who_is_too_late_takes_what_is_left() {
        let mut bench = Bench::new(0, 4);
        bench.settle();
        bench.want(2, 4);
        let (_, txn) = bench.asks().unwrap();
        for index in 0..3 {
            bench.put(index, "you", THEIRS);
        }
        let (_, read) = bench.does(&txn);
        bench.hears(Ok(read));
        assert_eq!(bench.asks(), None, "it is claimed again at once");
        bench.settle();
        assert_eq!(bench.ours(), [3]);
        // Whoever waits sees within seconds that one has become free.
        bench.there.remove(&1);
        let at = bench.capacity.deadline().unwrap();
        assert!(at <= bench.now.after(LOOK_WHEN_SHORT));
        bench.now = at;
        bench.settle();
        assert_eq!(bench.ours(), [1, 3]);
    }

    #[test]
    fn what_is_not_wanted_goes_the_highest_first_and_is_not_counted_on() {
        let mut bench = Bench::new(4, 4);
        bench.settle();
        // Fewer units, and as many workers as before: they stay.
        bench.want(4, 2);
        assert_eq!(bench.settle(), []);
        bench.want(3, 2);
        let (_, txn) = bench.asks().unwrap();
        assert_eq!(bench.held(), 3, "one is being given back");
        assert_eq!(bench.ours().len(), 4);
        // Whether it could be is not known, and nobody counts on it.
        bench.hears(Err(Failure::Unanswered(PATIENCE)));
        assert_eq!(bench.held(), 3);
        assert!(txn.then.contains(&Do::Delete("/cap/web/3".to_owned())));
        bench.now = bench.now.after(RETRY_MIN);
        bench.settle();
        assert_eq!(bench.ours(), [0, 1, 2]);
        bench.want(1, 2);
        bench.settle();
        assert_eq!(bench.ours(), [0]);
        assert_eq!(bench.there.len(), 1);
    }

    /// It was given back, though that was not answered: whoever wants it again may find it somebody else's.
    #[test]
    fn what_may_have_been_given_back_is_not_counted_on() {
        let mut bench = Bench::new(2, 2);
        bench.settle();
        bench.want(1, 2);
        let (_, txn) = bench.asks().unwrap();
        bench.does(&txn);
        bench.hears(Err(Failure::Unanswered(PATIENCE)));
        bench.put(1, "you", THEIRS);
        bench.want(2, 2);
        assert_eq!(bench.held(), 1);
        bench.settle();
        assert_eq!((bench.held(), bench.ours()), (1, vec![0]));
    }

    /// Written under another name of this node: nobody else has our lease.
    #[test]
    fn what_hangs_on_our_lease_is_ours_whatever_it_says() {
        let mut bench = Bench::new(1, 4);
        bench.put(1, "me before", OURS);
        bench.put(2, "me before", OURS);
        bench.settle();
        assert_eq!(bench.ours(), [1]);
        assert_eq!(bench.there.len(), 1);
    }

    /// Two are there for a `cluster_max` of two, though not the first two: nobody takes a third one.
    #[test]
    fn numbers_above_a_lower_maximum_count() {
        let mut bench = Bench::new(1, 2);
        bench.put(7, "you", THEIRS);
        bench.put(8, "you", THEIRS);
        assert_eq!(bench.settle(), []);
        bench.there.remove(&7);
        bench.now = bench.now.after(LOOK_WHEN_SHORT);
        bench.settle();
        assert_eq!(bench.ours().len(), 1);
    }

    /// A supervisor that was killed, and a keeper that begins anew within the time of its lease.
    #[test]
    fn what_names_us_is_found_again() {
        let mut bench = Bench::new(3, 8);
        bench.put(2, "me", OURS);
        bench.put(4, "me", BEFORE);
        bench.put(5, "me", BEFORE);
        bench.put(6, "you", THEIRS);
        let writes = bench.settle();
        assert_eq!(writes.len(), 1, "{writes:?}");
        let all = writes[0].when.iter();
        assert!(all.clone().all(|when| matches!(when, When::Modified(..))));
        assert_eq!(bench.ours(), [2, 4, 5]);
        bench.capacity.lost(bench.now);
        assert_eq!(bench.capacity.share(), Share::default());
        bench.there.retain(|_, kv| kv.lease != Some(OURS));
        bench.settle();
        assert_eq!(bench.ours().len(), 3, "they are claimed anew");
    }

    /// It was ours: the answer was lost.
    #[test]
    fn a_claim_whose_answer_was_lost_is_seen() {
        let mut bench = Bench::new(0, 4);
        bench.settle();
        bench.want(2, 4);
        let (_, txn) = bench.asks().unwrap();
        bench.does(&txn);
        assert_eq!(
            bench.hears(Err(Failure::Unanswered(PATIENCE))),
            Verdict::Elsewhere
        );
        assert!(!bench.capacity.share().is_known);
        // It is not wanted any more, either: what was made all the same goes.
        bench.want(0, 4);
        bench.now = bench.capacity.deadline().unwrap();
        bench.settle();
        assert_eq!((bench.held(), bench.there.len()), (0, 0));
        assert!(bench.capacity.share().is_known);
    }

    /// An etcd that is full, or away, answers at once: whoever asks as fast makes it no better.
    #[test]
    fn what_failed_waits_its_turn_and_longer_each_time() {
        let mut bench = Bench::new(0, 4);
        bench.settle();
        bench.want(1, 4);
        let mut asked = 0;
        let end = bench.now.after(Span::secs(60));
        while bench.now < end {
            while bench.asks().is_some() {
                asked += 1;
                assert_eq!(bench.hears(Err(Failure::NoSpace)), Verdict::Fine);
                assert!(!bench.capacity.share().is_known);
            }
            let next = bench.capacity.deadline().unwrap();
            assert!(next > bench.now, "it would be asked again at once");
            bench.now = next;
        }
        assert!((10..25).contains(&asked), "{asked} times in a minute");
        bench.settle();
        assert_eq!(bench.ours().len(), 1);
    }

    #[test]
    fn many_are_claimed_some_at_a_time() {
        let mut bench = Bench::new(100, 200);
        let writes = bench.settle();
        let sizes: Vec<usize> = writes.iter().map(|txn| txn.when.len()).collect();
        assert_eq!(sizes, [CHUNK, CHUNK, CHUNK, 4]);
        assert_eq!(bench.ours().len(), 100);
    }

    #[test]
    fn a_lease_that_is_gone_is_told() {
        let mut bench = Bench::new(1, 4);
        bench.settle();
        bench.want(2, 4);
        assert!(bench.asks().is_some());
        assert_eq!(bench.hears(Err(Failure::NoLease)), Verdict::NoLease);
    }
}
