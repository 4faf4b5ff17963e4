//! Runs of the cluster's jobs. Whoever creates a tick's key starts its run, and nobody else does; at its end he writes what became of it there,
//! so that the keys of a job are its history, to be read from any node. A claim whose node is gone tells of a run that was lost with it.
//! Of a long history the oldest goes, and one more key says which ticks that were: they were decided upon, though nobody knows how, and are
//! not claimed by a node that was away, or whose clock is late. They are stretches of the calendar, not one date: a node whose clock was
//! ahead for a while costs the others no tick but those that it ran.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Bound,
};

use crate::{
    engine::{
        book::{Had, Outcome},
        cluster::{
            calls::{Desk, Purpose},
            keys::{self, HadCard, Prefix, RunCard},
            rpc::{CallId, Do, KeyValue, Request, TXN_MAX, Txn, When},
            session::PATIENCE,
        },
    },
    id::FleetName,
    time::{Moment, Span, Stamp},
};

/// What is open there is compared with what is known here so often.
const LOOK_EVERY: Span = Span::secs(30);
/// What could not be seen is looked at again after this.
const LOOK_AGAIN: Span = Span::secs(1);
/// What else failed is tried again after this.
const RETRY: Span = Span::millis(200);

/// A tick.
pub(in crate::engine) type Tick = (FleetName, Stamp);

/// A run that is to start, if it is ours.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Dispute {
    pub(in crate::engine) tick: Tick,
    /// When it was begun here.
    pub(in crate::engine) started: Stamp,
    /// Up to here there is no other tick.
    pub(in crate::engine) through: Stamp,
    /// Somebody asked for it: its instant is no tick, and nobody else's.
    pub(in crate::engine) manual: bool,
    /// It is skipped while another node has a run.
    pub(in crate::engine) skips: bool,
    /// So many runs are remembered.
    pub(in crate::engine) history: u32,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Verdict {
    /// It is ours to start.
    Ours,
    /// A node has it already.
    Theirs(String),
    /// It is ours, and a node has the run before.
    Busy(String),
    /// It was decided upon so long ago that it is forgotten how.
    Past,
}

/// What this node knows of a run that it claimed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::engine) enum Fate {
    /// It is there, or will be decided upon.
    Open,
    /// It has ended, then.
    Ended(Outcome, Stamp),
}

/// What the gates' neighbours want: jobs.
#[derive(Clone, Debug, Default)]
pub(in crate::engine) struct Jobs {
    pub(in crate::engine) disputes: Vec<Dispute>,
    /// Of the runs that [`Docket::open`] names.
    pub(in crate::engine) fates: BTreeMap<Tick, Fate>,
}

#[derive(Clone, Debug)]
struct Claim {
    dispute: Dispute,
    call: Option<CallId>,
    retry: Moment,
}

/// What was decided upon, and is forgotten.
#[derive(Clone, Debug, Default)]
struct Past {
    /// The revision that wrote it; 0: none has.
    written: i64,
    had: Had,
}

impl Past {
    fn of(kv: &KeyValue) -> Self {
        let card: Option<HadCard> = keys::decode(&kv.value);
        Self {
            written: kv.modified,
            had: card.map(|card| card.had).unwrap_or_default(),
        }
    }
}

/// What stands on it for us.
#[derive(Clone, Debug)]
pub(super) struct Docket {
    prefix: Prefix,
    node: String,
    identity: String,
    due: Moment,
    looks: Option<CallId>,
    /// Ends that are being written.
    closes: Option<(CallId, Vec<Tick>)>,
    /// Claims that nobody wants any more, and that may be granted all the same.
    called_off: BTreeSet<CallId>,
    /// No end is written before; none: nothing failed.
    retry: Option<Moment>,
    claims: BTreeMap<FleetName, Claim>,
    /// Ours, and not ended, as etcd has them.
    open: BTreeMap<Tick, RunCard>,
    /// Of each job, as we saw it last.
    past: BTreeMap<FleetName, Past>,
    verdicts: Vec<(Tick, Verdict)>,
}

impl Docket {
    pub(super) fn new(prefix: Prefix, node: String, identity: String, now: Moment) -> Self {
        Self {
            prefix,
            node,
            identity,
            due: now,
            looks: None,
            closes: None,
            called_off: BTreeSet::new(),
            retry: None,
            claims: BTreeMap::new(),
            open: BTreeMap::new(),
            past: BTreeMap::new(),
            verdicts: Vec::new(),
        }
    }

    /// A session has begun, or was taken over: what was asked before is not answered any more.
    pub(super) fn begin(&mut self, now: Moment) {
        (self.due, self.looks, self.closes) = (now, None, None);
        self.retry = None;
        self.called_off.clear();
        self.claims.clear();
        self.past.clear();
    }

    /// Runs of ours that etcd believes to be there.
    pub(super) fn open(&self) -> impl Iterator<Item = &Tick> {
        self.open.keys()
    }

    /// Is there an end that has yet to be written?
    pub(super) fn owes(&self, jobs: &Jobs) -> bool {
        let fates = self.open.keys().filter_map(|tick| jobs.fates.get(tick));
        fates.into_iter().any(|fate| *fate != Fate::Open)
    }

    pub(super) fn verdicts(&mut self) -> Vec<(Tick, Verdict)> {
        std::mem::take(&mut self.verdicts)
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let claims = self.claims.values().filter(|one| one.call.is_none());
        let claims = claims.map(|one| one.retry);
        let look = Some(self.due).filter(|_| self.looks.is_none());
        claims.chain(look).chain(self.retry).min()
    }

    /// Asks for what is wanted, and writes down what has ended.
    pub(super) fn tend(&mut self, jobs: &Jobs, stamp: &When, endpoint: usize, desk: &mut Desk<'_>) {
        self.match_disputes(&jobs.disputes, desk.now);
        self.decide_upon_the_past();
        for claim in self.claims.values_mut() {
            if claim.call.is_none() && claim.retry <= desk.now {
                let past = self.past.get(&claim.dispute.tick.0);
                let past = past.map_or(0, |past| past.written);
                let request = ask(
                    &self.prefix,
                    (&self.node, &self.identity),
                    &claim.dispute,
                    (stamp, past),
                );
                let purpose = Purpose::Docket;
                claim.call = Some(desk.ask(endpoint, request, PATIENCE, purpose));
            }
        }
        if self.looks.is_none() && self.due <= desk.now {
            self.due = desk.now.after(LOOK_EVERY);
            let read = Txn::read(vec![Do::List(self.prefix.runs())]);
            self.looks = Some(desk.ask(endpoint, Request::Txn(read), PATIENCE, Purpose::Docket));
        }
        if self.closes.is_some() || self.retry.is_some_and(|at| at > desk.now) {
            return;
        }
        self.retry = None;
        let ended = self.open.iter().filter_map(|(tick, card)| {
            let Some(Fate::Ended(outcome, ended)) = jobs.fates.get(tick) else {
                return None;
            };
            let card = RunCard {
                ended: Some(*ended),
                outcome: Some(outcome.word().to_owned()),
                reason: Some(outcome.reason()),
                ..card.clone()
            };
            let put = Do::Put {
                key: self.prefix.run(&tick.0, tick.1),
                value: keys::encode(&card),
                lease: None,
            };
            Some((tick.clone(), put))
        });
        let (ticks, then): (Vec<Tick>, Vec<Do>) = ended.take(TXN_MAX).unzip();
        if ticks.is_empty() {
            return;
        }
        let txn = Txn {
            when: vec![stamp.clone()],
            then,
            otherwise: Vec::new(),
        };
        let call = desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Docket);
        self.closes = Some((call, ticks));
    }

    fn match_disputes(&mut self, disputes: &[Dispute], now: Moment) {
        let wanted = |claim: &Claim| disputes.iter().any(|one| one.tick == claim.dispute.tick);
        let unwanted = self.claims.values().filter(|claim| !wanted(claim));
        self.called_off
            .extend(unwanted.filter_map(|claim| claim.call));
        self.claims.retain(|_, claim| wanted(claim));
        for one in disputes {
            self.claims
                .entry(one.tick.0.clone())
                .or_insert_with(|| Claim {
                    dispute: one.clone(),
                    call: None,
                    retry: now,
                });
        }
    }

    /// Whoever knows that a tick had its turn need not ask.
    fn decide_upon_the_past(&mut self) {
        let claims = self.claims.values().map(|claim| &claim.dispute);
        let claims = claims.filter(|dispute| !dispute.manual);
        let claims = claims.map(|dispute| &dispute.tick);
        let is_past = |(job, tick): &&Tick| {
            let past = self.past.get(job);
            past.is_some_and(|past| past.had.end_of(*tick).is_some())
        };
        let past: Vec<Tick> = claims.filter(is_past).cloned().collect();
        for tick in past {
            self.decide(tick, Verdict::Past);
        }
    }

    /// An answer. Says whether a predecessor's late stamp shut us out.
    pub(super) fn answered(
        &mut self,
        call: CallId,
        result: Option<(bool, Vec<Vec<KeyValue>>)>,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) -> bool {
        if self.looks == Some(call) {
            self.looks = None;
            match result {
                Some((_, read)) => self.read(read.into_iter().flatten()),
                None => self.due = desk.now.after(LOOK_AGAIN),
            }
            return false;
        }
        if let Some((_, ticks)) = self.closes.take_if(|(asked, _)| *asked == call) {
            match result {
                Some((true, _)) => self.open.retain(|tick, _| !ticks.contains(tick)),
                Some((false, _)) => {
                    self.retry = Some(desk.now.after(RETRY));
                    return true;
                }
                None => self.retry = Some(desk.now.after(RETRY)),
            }
            return false;
        }
        if self.called_off.remove(&call) {
            // If it is ours all the same, a look will show it.
            self.due = desk.now;
            return false;
        }
        let mut claims = self.claims.iter_mut();
        let Some((_, claim)) = claims.find(|(_, claim)| claim.call == Some(call)) else {
            return false;
        };
        claim.call = None;
        claim.retry = desk.now.after(RETRY);
        let dispute = claim.dispute.clone();
        match result {
            Some((true, read)) => {
                self.claimed(&dispute, &read, endpoint, desk);
                false
            }
            Some((false, read)) => self.refused(&dispute, read, desk.now),
            None => false,
        }
    }

    /// Somebody has it, or it is past, or more is past than we knew; or none of it: our stamp is not in force.
    fn refused(&mut self, dispute: &Dispute, read: Vec<Vec<KeyValue>>, now: Moment) -> bool {
        let Ok([there, past]) = <[_; 2]>::try_from(read) else {
            return false;
        };
        let card = there.first();
        if let Some(card) = card.and_then(|kv| keys::decode::<RunCard>(&kv.value)) {
            self.taken(dispute, card);
            return false;
        }
        let job = &dispute.tick.0;
        let past = past.first().map(Past::of).unwrap_or_default();
        let written = past.written;
        let known = self.past.insert(job.clone(), past).unwrap_or_default();
        let moved = written != known.written;
        if let Some(claim) = self.claims.get_mut(job).filter(|_| moved) {
            claim.retry = now;
        }
        !moved
    }

    fn read(&mut self, all: impl Iterator<Item = KeyValue>) {
        let ours = all.filter_map(|kv| {
            let tick = self.prefix.tick_of(&kv.key)?;
            let card: RunCard = keys::decode(&kv.value)?;
            self.has_open(&card).then_some((tick, card))
        });
        self.open = ours.collect();
    }

    /// Is this a run of ours whose end is not known there? Of two nodes with one identity, copied with a disk, each has its own.
    fn has_open(&self, card: &RunCard) -> bool {
        card.identity == self.identity && card.node == self.node && card.ended.is_none()
    }

    fn decide(&mut self, tick: Tick, verdict: Verdict) {
        self.claims.remove(&tick.0);
        self.verdicts.push((tick, verdict));
    }

    /// The key is ours. What is surplus goes.
    fn claimed(
        &mut self,
        dispute: &Dispute,
        read: &[Vec<KeyValue>],
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        let [nodes, all] = read else { return };
        let job = &dispute.tick.0;
        let is_run = |kv: &&KeyValue| self.prefix.tick_of(&kv.key).is_some();
        let runs: Vec<&KeyValue> = all.iter().filter(is_run).collect();
        let present = keys::present(&self.prefix, nodes);
        let cards = runs.iter().map(|kv| keys::decode::<RunCard>(&kv.value));
        let is_there = |card: &RunCard| {
            let is_present = present.contains(&(card.node.as_str(), card.identity.clone()));
            card.ended.is_none() && !self.has_open(card) && is_present
        };
        let cards: Vec<Option<RunCard>> = cards.collect();
        let busy = cards.iter().flatten().find(|card| is_there(card));
        let verdict = match busy.filter(|_| dispute.skips) {
            Some(card) => Verdict::Busy(card.node.clone()),
            None => Verdict::Ours,
        };
        let surplus = (runs.len() + 1).saturating_sub(dispute.history.max(1) as usize);
        let is_over = |card: &RunCard| !is_there(card) && !self.has_open(card);
        let over = runs.iter().zip(&cards);
        let over = over.filter(|(_, card)| card.as_ref().is_none_or(is_over));
        let mut over: Vec<(&KeyValue, &Option<RunCard>)> =
            over.map(|(kv, card)| (*kv, card)).collect();
        // Those that were claimed first: a clock that was ahead gave some a late name.
        over.sort_by_key(|(kv, _)| kv.created);
        over.truncate(surplus.min(TXN_MAX - 1));
        let ticks = runs.iter().filter_map(|kv| self.prefix.tick_of(&kv.key));
        let mut known: BTreeSet<Stamp> = ticks.map(|(_, tick)| tick).collect();
        known.insert(dispute.tick.1);
        if let Some(request) = self.forget(job, &over, &known) {
            desk.ask(endpoint, request, PATIENCE, Purpose::Docket);
        }
        let card = card(&self.node, &self.identity, dispute);
        self.open.insert(dispute.tick.clone(), card);
        self.decide(dispute.tick.clone(), verdict);
    }

    /// These runs go; that their ticks had their turn stays. Nothing from the next `known` one on had it for their sake.
    fn forget(
        &self,
        job: &FleetName,
        over: &[(&KeyValue, &Option<RunCard>)],
        known: &BTreeSet<Stamp>,
    ) -> Option<Request> {
        let Past { written, mut had } = self.past.get(job).cloned().unwrap_or_default();
        let mut then = Vec::new();
        for (kv, card) in over {
            let (_, tick) = self.prefix.tick_of(&kv.key)?;
            let through = card.as_ref().map_or(tick, |card| card.through.max(tick));
            // The schedule may be another one by now.
            let mut later = known.range((Bound::Excluded(tick), Bound::Unbounded));
            let through = later
                .next()
                .map_or(through, |next| through.min(next.before(Span::millis(1))));
            had.add(tick.before(Span::millis(1)), through);
            then.push(Do::Delete(kv.key.clone()));
        }
        if then.is_empty() {
            return None;
        }
        let key = self.prefix.had(job);
        then.push(Do::Put {
            key: key.clone(),
            value: keys::encode(&HadCard { had }),
            lease: None,
        });
        Some(Request::Txn(Txn {
            when: vec![When::Modified(key, written)],
            then,
            otherwise: Vec::new(),
        }))
    }

    /// Somebody has it: we, if an answer was lost, or if this node asked before it went down and never started it.
    fn taken(&mut self, dispute: &Dispute, card: RunCard) {
        let ours = self.has_open(&card);
        let verdict = match ours {
            true => Verdict::Ours,
            false => Verdict::Theirs(card.node.clone()),
        };
        if ours {
            self.open.insert(dispute.tick.clone(), card);
        }
        self.decide(dispute.tick.clone(), verdict);
    }
}

fn card(node: &str, identity: &str, dispute: &Dispute) -> RunCard {
    RunCard {
        node: node.to_owned(),
        identity: identity.to_owned(),
        started: dispute.started,
        through: dispute.through,
        ended: None,
        outcome: None,
        reason: None,
    }
}

fn ask(
    prefix: &Prefix,
    (node, identity): (&str, &str),
    dispute: &Dispute,
    (stamp, past): (&When, i64),
) -> Request {
    let (job, scheduled) = &dispute.tick;
    let (key, had) = (prefix.run(job, *scheduled), prefix.had(job));
    let put = Do::Put {
        key: key.clone(),
        value: keys::encode(&card(node, identity, dispute)),
        lease: None,
    };
    Request::Txn(Txn {
        when: vec![
            stamp.clone(),
            When::Created(key.clone(), 0),
            When::Modified(had.clone(), past),
        ],
        then: vec![Do::List(prefix.nodes()), Do::List(prefix.runs_of(job)), put],
        otherwise: vec![Do::Get(key), Do::Get(had)],
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cluster::{calls::Calls, keys::NodeCard, rpc::Order};

    const MINUTE: u64 = 60;

    struct Bench {
        docket: Docket,
        calls: Calls,
        now: Moment,
        manual: bool,
    }

    impl Bench {
        fn new() -> Self {
            let now = Moment(0);
            let (node, identity) = ("a".to_owned(), "ours".to_owned());
            Self {
                docket: Docket::new(Prefix::new("c"), node, identity, now),
                calls: Calls::default(),
                now,
                manual: false,
            }
        }

        /// What it asks for, with this tick in dispute; looks aside.
        fn tend(&mut self, minute: u64, history: u32) -> Vec<(CallId, Txn)> {
            let dispute = Dispute {
                tick: tick(minute),
                started: tick(minute).1,
                through: before(minute + 1),
                manual: self.manual,
                skips: true,
                history,
            };
            let jobs = Jobs {
                disputes: vec![dispute],
                fates: BTreeMap::new(),
            };
            let stamp = When::Modified("n".to_owned(), 7);
            let (now, mut out) = (self.now, Vec::new());
            let calls = &mut self.calls;
            let mut desk = Desk {
                now,
                calls,
                out: &mut out,
            };
            self.docket.tend(&jobs, &stamp, 0, &mut desk);
            writes(out)
        }

        fn answer(
            &mut self,
            call: CallId,
            held: bool,
            read: Vec<Vec<KeyValue>>,
        ) -> (bool, Vec<Txn>) {
            let (now, mut out) = (self.now, Vec::new());
            let calls = &mut self.calls;
            let mut desk = Desk {
                now,
                calls,
                out: &mut out,
            };
            let shut = self.docket.answered(call, Some((held, read)), 0, &mut desk);
            let asked = writes(out).into_iter().map(|(_, txn)| txn);
            (shut, asked.collect())
        }

        fn verdict(&mut self) -> Option<Verdict> {
            self.docket.verdicts().pop().map(|(_, verdict)| verdict)
        }
    }

    fn writes(out: Vec<Order>) -> Vec<(CallId, Txn)> {
        let txn = |order| match order {
            Order::Call(call) => match call.request {
                Request::Txn(txn) if txn.writes() => Some((call.id, txn)),
                _ => None,
            },
            Order::Watch { .. } | Order::Unwatch(_) => None,
        };
        out.into_iter().filter_map(txn).collect()
    }

    fn tick(minute: u64) -> Tick {
        let at = Stamp(1_800_000_000_000).after(Span::secs(minute * MINUTE));
        ("report".parse().unwrap(), at)
    }

    fn kv(key: String, value: String, modified: i64) -> KeyValue {
        KeyValue {
            key,
            value,
            created: modified,
            modified,
            lease: None,
        }
    }

    fn run(minute: u64, identity: &str, ended: bool) -> KeyValue {
        let (job, at) = tick(minute);
        let node = match identity {
            "ours" => "a".to_owned(),
            other => format!("of {other}"),
        };
        let card = RunCard {
            node,
            identity: identity.to_owned(),
            started: at,
            through: before(minute + 1),
            ended: ended.then_some(at),
            outcome: None,
            reason: None,
        };
        kv(Prefix::new("c").run(&job, at), keys::encode(&card), 3)
    }

    /// Just before the next tick.
    fn before(minute: u64) -> Stamp {
        tick(minute).1.before(Span::millis(1))
    }

    /// From these minutes, up to before those.
    fn had(stretches: &[(u64, u64)]) -> String {
        let mut had = Had::default();
        for (from, to) in stretches {
            had.add(before(*from), before(*to));
        }
        keys::encode(&HadCard { had })
    }

    fn past(stretches: &[(u64, u64)], written: i64) -> KeyValue {
        kv(Prefix::new("c").had(&tick(0).0), had(stretches), written)
    }

    /// A node of this name, with this identity.
    fn there(name: &str, identity: &str) -> KeyValue {
        let key = Prefix::new("c").node(&format!("of {name}"));
        let card = NodeCard {
            identity: identity.to_owned(),
            run: "1".to_owned(),
            version: "1".to_owned(),
        };
        kv(key, keys::encode(&card), 1)
    }

    #[test]
    fn a_tick_is_claimed_once_and_a_lost_answer_is_asked_for_again() {
        let mut bench = Bench::new();
        let (call, txn) = bench.tend(1, 20).pop().unwrap();
        assert_eq!(txn.when.len(), 3);
        assert!(bench.tend(1, 20).is_empty(), "it is under way");
        // It was ours: the answer was lost.
        bench.answer(call, false, vec![vec![run(1, "ours", false)], vec![]]);
        assert_eq!(bench.verdict(), Some(Verdict::Ours));
        let (call, _) = bench.tend(2, 20).pop().unwrap();
        bench.answer(call, false, vec![vec![run(2, "theirs", true)], vec![]]);
        assert_eq!(
            bench.verdict(),
            Some(Verdict::Theirs("of theirs".to_owned()))
        );
    }

    #[test]
    fn a_run_that_is_there_is_not_run_beside() {
        for (present, verdict) in [
            (
                vec![there("theirs", "theirs")],
                Verdict::Busy("of theirs".to_owned()),
            ),
            // It went down with its node.
            (vec![], Verdict::Ours),
            // Which was built anew.
            (vec![there("theirs", "new")], Verdict::Ours),
        ] {
            let mut bench = Bench::new();
            let (call, _) = bench.tend(2, 20).pop().unwrap();
            bench.answer(call, true, vec![present, vec![run(1, "theirs", false)]]);
            assert_eq!(bench.verdict(), Some(verdict));
        }
    }

    /// Two machines were made of one disk, state directory and all.
    #[test]
    fn a_run_of_another_node_with_our_identity_is_not_ours() {
        let mut bench = Bench::new();
        let mut kv = run(1, "ours", false);
        kv.value = kv.value.replace(r#""node":"a""#, r#""node":"b""#);
        let (call, _) = bench.tend(1, 20).pop().unwrap();
        bench.answer(call, false, vec![vec![kv], vec![]]);
        assert_eq!(bench.verdict(), Some(Verdict::Theirs("b".to_owned())));
        assert_eq!(bench.docket.open().count(), 0);
    }

    /// Its schedule was changed: the day that the first one was to stand for is not over for the others.
    #[test]
    fn a_forgotten_run_takes_no_tick_that_came_after_it() {
        const DAY: u64 = 1_440;
        let mut bench = Bench::new();
        let mut first = run(0, "theirs", true);
        let mut card: RunCard = keys::decode(&first.value).unwrap();
        card.through = before(DAY);
        first.value = keys::encode(&card);
        let (call, _) = bench.tend(10, 1).pop().unwrap();
        let runs = vec![first, run(5, "theirs", true)];
        let (_, asked) = bench.answer(call, true, vec![vec![], runs]);
        let expected = had(&[(0, 6)]);
        let is_kept = |one: &Do| matches!(one, Do::Put { value, .. } if *value == expected);
        assert!(asked[0].then.iter().any(is_kept), "{asked:?}");
    }

    /// What somebody asks for is no tick, whatever has had its turn.
    #[test]
    fn a_run_that_somebody_asked_for_is_never_past() {
        let mut bench = Bench::new();
        bench.manual = true;
        let (call, _) = bench.tend(2, 20).pop().unwrap();
        bench.answer(call, false, vec![vec![], vec![past(&[(1, 5)], 9)]]);
        assert_eq!(bench.tend(2, 20).len(), 1, "it is asked for again");
        assert_eq!(bench.verdict(), None);
    }

    /// A node that was away for longer than runs are remembered must not find an old tick free.
    #[test]
    fn what_is_forgotten_stays_decided() {
        let mut bench = Bench::new();
        let (call, _) = bench.tend(5, 2).pop().unwrap();
        let runs = vec![
            run(1, "ours", true),
            run(2, "theirs", true),
            run(4, "ours", true),
        ];
        let (_, asked) = bench.answer(call, true, vec![vec![], runs]);
        let [txn] = &asked[..] else {
            panic!("{asked:?}")
        };
        let key = Prefix::new("c").had(&tick(0).0);
        assert_eq!(txn.when, [When::Modified(key.clone(), 0)]);
        let is_kept = |one: &Do| matches!(one, Do::Put { key: at, value, .. } if *at == key && *value == had(&[(1, 3)]));
        assert!(
            txn.then.len() == 3 && txn.then.iter().any(is_kept),
            "{txn:?}"
        );
        bench.docket.verdicts();

        // Somebody else comes back, and knows nothing of it.
        let mut other = Bench::new();
        let (call, _) = other.tend(1, 2).pop().unwrap();
        let (shut, _) = other.answer(call, false, vec![vec![], vec![past(&[(1, 3)], 9)]]);
        assert!(!shut);
        assert!(other.tend(1, 2).is_empty());
        assert_eq!(other.verdict(), Some(Verdict::Past));
        // As he sees it now, the next one would be free.
        assert!(other.tend(2, 2).is_empty());
        assert_eq!(other.verdict(), Some(Verdict::Past));
        // A later one is: asked for again, at once, with all that is past.
        let (call, _) = other.tend(3, 2).pop().unwrap();
        other.answer(call, false, vec![vec![], vec![past(&[(1, 3)], 11)]]);
        assert_eq!(other.verdict(), None);
        let (_, txn) = other.tend(3, 2).pop().unwrap();
        assert!(txn.when.contains(&When::Modified(key, 11)), "{txn:?}");
    }

    /// A node's clock was ahead by a day, for long enough that its runs are forgotten.
    #[test]
    fn what_was_run_ahead_of_time_costs_nothing_in_between() {
        const DAY: u64 = 1_440;
        let mut bench = Bench::new();
        let (call, _) = bench.tend(2, 2).pop().unwrap();
        let at = |minute, created| KeyValue {
            created,
            ..run(minute, "theirs", true)
        };
        // In the order of their names.
        let runs = vec![at(1, 7), at(DAY, 4), at(DAY + 1, 5), at(DAY + 3, 8)];
        let (_, asked) = bench.answer(call, true, vec![vec![], runs]);
        let [txn] = &asked[..] else {
            panic!("{asked:?}")
        };
        let expected = had(&[(DAY, DAY + 2), (1, 2)]);
        let is_kept = |one: &Do| matches!(one, Do::Put { value, .. } if *value == expected);
        assert!(txn.then.iter().any(is_kept), "{txn:?}");
        bench.docket.verdicts();
        let stretches = [(DAY, DAY + 2), (1, 2)];
        let (call, _) = bench.tend(3, 2).pop().unwrap();
        bench.answer(call, false, vec![vec![], vec![past(&stretches, 9)]]);
        assert_eq!(bench.tend(3, 2).len(), 1, "it is free");
        assert!(bench.tend(DAY + 1, 2).is_empty(), "it was run");
        assert_eq!(bench.verdict(), Some(Verdict::Past));
    }

    /// An etcd that is full, or away, answers at once: whoever asks as fast makes it no better.
    #[test]
    fn an_end_that_could_not_be_written_waits_its_turn() {
        let mut bench = Bench::new();
        let (call, _) = bench.tend(1, 20).pop().unwrap();
        bench.answer(call, true, vec![vec![], vec![]]);
        let fates = [(tick(1), Fate::Ended(Outcome::Succeeded, tick(1).1))];
        let jobs = Jobs {
            disputes: Vec::new(),
            fates: fates.into(),
        };
        let close = |bench: &mut Bench| {
            let stamp = When::Modified("n".to_owned(), 7);
            let (now, mut out) = (bench.now, Vec::new());
            let calls = &mut bench.calls;
            let mut desk = Desk {
                now,
                calls,
                out: &mut out,
            };
            bench.docket.tend(&jobs, &stamp, 0, &mut desk);
            writes(out).pop().map(|(call, _)| call)
        };
        let call = close(&mut bench).unwrap();
        let (now, mut out) = (bench.now, Vec::new());
        let mut desk = Desk {
            now,
            calls: &mut bench.calls,
            out: &mut out,
        };
        bench.docket.answered(call, None, 0, &mut desk);
        assert_eq!(close(&mut bench), None, "it is written again at once");
        assert!(bench.docket.deadline().unwrap() > bench.now);
        bench.now = bench.now.after(RETRY);
        let call = close(&mut bench).expect("it is written in the end");
        bench.answer(call, true, vec![]);
        assert_eq!(bench.docket.open().count(), 0);
    }

    /// Others skip their runs for one of ours whose end is not there.
    #[test]
    fn a_look_that_failed_is_soon_another() {
        let mut bench = Bench::new();
        let look = |bench: &mut Bench| {
            let stamp = When::Modified("n".to_owned(), 7);
            let mut out = Vec::new();
            let mut desk = Desk {
                now: bench.now,
                calls: &mut bench.calls,
                out: &mut out,
            };
            bench.docket.tend(&Jobs::default(), &stamp, 0, &mut desk);
            let call = out.into_iter().find_map(|order| match order {
                Order::Call(call) => Some(call.id),
                Order::Watch { .. } | Order::Unwatch(_) => None,
            })?;
            let mut desk = Desk {
                now: bench.now,
                calls: &mut bench.calls,
                out: &mut Vec::new(),
            };
            bench.docket.answered(call, None, 0, &mut desk);
            Some(call)
        };
        assert!(look(&mut bench).is_some());
        assert!(look(&mut bench).is_none(), "at once");
        bench.now = bench.now.after(LOOK_AGAIN);
        assert_eq!(bench.docket.deadline(), Some(bench.now));
        assert!(look(&mut bench).is_some());
    }

    #[test]
    fn a_stamp_that_is_not_in_force_is_told() {
        let mut bench = Bench::new();
        let (call, _) = bench.tend(1, 20).pop().unwrap();
        let (shut, _) = bench.answer(call, false, vec![vec![], vec![]]);
        assert!(shut && bench.verdict().is_none());
    }
}
