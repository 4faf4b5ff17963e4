//! What stands in etcd of a fleet without a lease, so that it is there when nobody serves: routers, and services without servers.
//!
//! ```text
//!   Due ──▶ Claimed: what did we write before? ──▶ Looked: what is there? ──▶ Writing ──▶ Settled
//!    ▲              │                                     │                     │
//!    └──────────────┴───────── no answer, or it changed ──┴─────────────────────┘
//! ```
//!
//! All nodes of a fleet share them. What was written for it stands in a record of its own, beside ours, so that what is somebody else's is
//! told from what is ours and was meant otherwise then. Whoever starts, or is configured anew, writes what he is told to; after that he
//! only puts back what is gone, so that nodes that disagree do not take turns. What nobody wants any more goes with the last server. What
//! another fleet of this node wrote, and does not want any more, is its heir's, in one transaction: a fleet that is renamed keeps its router.

use std::collections::{BTreeMap, BTreeSet};

use crate::{
    engine::{
        cluster::{
            calls::{Desk, Purpose},
            keys,
            rpc::{Body, CallId, Do, Failure, KeyValue, Reply, Request, Txn, When},
            session::PATIENCE,
        },
        records::servers_of,
    },
    time::{Moment, Span},
};

const RETRY_MIN: Span = Span::millis(100);
const RETRY_MAX: Span = Span::secs(5);
/// So often it is looked whether they are still there,
const EVERY: Span = Span::secs(60);
/// and whether they are still somebody else's, or still used.
const SOON: Span = Span::secs(5);

#[derive(Clone, Debug, Default)]
enum Phase {
    /// Nothing is to be done, or it is not known to whom.
    #[default]
    Settled,
    Due(Moment),
    Claimed {
        call: CallId,
        elders: Vec<String>,
    },
    Looked {
        call: CallId,
        claim: Claim,
        keys: Vec<String>,
        /// Routers that are not wanted any more, by where their servers are.
        leaving: Vec<String>,
    },
    Writing {
        call: CallId,
        after: Outcome,
    },
}

/// What is left to be done when all is done that can be.
#[derive(Clone, Debug, Default)]
struct Outcome {
    /// Something is somebody else's.
    fault: Option<String>,
    /// A router that is not wanted any more still has servers.
    lingers: bool,
}

/// What was written, and by which revision of the record that says so.
#[derive(Clone, Debug, Default)]
struct Claim {
    revision: i64,
    wrote: BTreeMap<String, String>,
    /// What is left of others' records of which we take something over.
    elders: Vec<(String, Claim)>,
}

impl Claim {
    fn of(found: Option<KeyValue>) -> Self {
        found.map_or_else(Self::default, |kv| Self {
            revision: kv.modified,
            wrote: keys::decode(&kv.value).unwrap_or_default(),
            elders: Vec::new(),
        })
    }

    /// Whatever of it stands where `is_ours` is.
    fn take_over(&mut self, key: &str, mut elder: Self, is_ours: impl Fn(&String) -> bool) {
        let before = elder.wrote.len();
        let (ours, rest) = elder.wrote.into_iter().partition(|(key, _)| is_ours(key));
        elder.wrote = rest;
        if elder.wrote.len() < before {
            let ours: BTreeMap<String, String> = ours;
            for (key, value) in ours {
                self.wrote.entry(key).or_insert(value);
            }
            self.elders.push((key.to_owned(), elder));
        }
    }

    /// What a transaction does to write it down at this key.
    fn write(&self, at: &str) -> (When, Do) {
        let what = match self.wrote.is_empty() {
            true => Do::Delete(at.to_owned()),
            false => Do::Put {
                key: at.to_owned(),
                value: keys::encode(&self.wrote),
                lease: None,
            },
        };
        (When::Modified(at.to_owned(), self.revision), what)
    }
}

/// What is said of a key that is not ours.
pub(super) fn somebody_elses(key: &str) -> String {
    format!(
        "{key} is somebody else's, and is not overwritten; `etcdctl del` it if nobody needs it, or choose another name"
    )
}

#[derive(Clone, Debug, Default)]
pub(super) struct Anchors {
    /// Where it is written down what we wrote; nowhere: there is nothing to be written.
    key: String,
    wanted: BTreeMap<String, String>,
    phase: Phase,
    /// They were as they are wanted once.
    was_right: bool,
    again: Option<Moment>,
    retry: Span,
    trouble: Option<String>,
    /// Something was wanted, or is still there, that is not wanted any more.
    leaves: bool,
    /// Records of fleets of this node of which that is so.
    elders: Vec<String>,
}

impl Anchors {
    pub(super) fn at(key: String) -> Self {
        Self {
            key,
            ..Self::default()
        }
    }

    pub(super) fn want(&mut self, wanted: BTreeMap<String, String>, now: Moment) {
        // Also of none: there may be some of a configuration before.
        let first = matches!(self.phase, Phase::Settled) && self.again.is_none() && !self.was_right;
        let has_place = !self.key.is_empty();
        if has_place && (self.wanted != wanted || first) {
            self.leaves |= !self.wanted.is_empty();
            self.wanted = wanted;
            self.was_right = false;
            self.phase = Phase::Due(now);
            self.retry = Span::ZERO;
        }
    }

    /// Where it is written down what we wrote, if some of that may be another fleet's by now.
    pub(super) fn leaves(&self) -> Option<&str> {
        self.leaves.then_some(self.key.as_str())
    }

    /// So are the records of fleets called that leave something: what stands where ours is to stand is ours.
    pub(super) fn heed(&mut self, elders: &[String], now: Moment) {
        let others = elders.iter().filter(|elder| **elder != self.key);
        if self.elders.iter().eq(others.clone()) {
            return;
        }
        self.elders = others.cloned().collect();
        let may_inherit = !self.elders.is_empty() && !self.wanted.is_empty();
        if may_inherit && matches!(self.phase, Phase::Settled) {
            self.phase = Phase::Due(now);
        }
    }

    pub(super) fn is_settled(&self) -> bool {
        matches!(self.phase, Phase::Settled) && self.again.is_none()
    }

    /// Somebody may have changed them: it is not waited for the next look.
    pub(super) fn look_again(&mut self, now: Moment) {
        if self.again.is_some() && matches!(self.phase, Phase::Settled) {
            self.again = Some(now);
        }
    }

    /// No answer is waited for any more.
    pub(super) fn lost(&mut self, now: Moment) {
        if !matches!(self.phase, Phase::Settled | Phase::Due(_)) {
            self.phase = Phase::Due(now);
        }
    }

    pub(super) fn trouble(&self) -> Option<&str> {
        self.trouble.as_deref()
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        match &self.phase {
            Phase::Settled => self.again,
            Phase::Due(at) => Some(*at),
            Phase::Claimed { .. } | Phase::Looked { .. } | Phase::Writing { .. } => None,
        }
    }

    pub(super) fn asked(&self, id: CallId) -> bool {
        match &self.phase {
            Phase::Settled | Phase::Due(_) => false,
            Phase::Claimed { call, .. }
            | Phase::Looked { call, .. }
            | Phase::Writing { call, .. } => *call == id,
        }
    }

    pub(super) fn tend(&mut self, endpoint: usize, desk: &mut Desk<'_>) {
        let due = match &self.phase {
            Phase::Settled => self.again.is_some_and(|at| at <= desk.now),
            Phase::Due(at) => *at <= desk.now,
            Phase::Claimed { .. } | Phase::Looked { .. } | Phase::Writing { .. } => false,
        };
        if due {
            self.again = None;
            let elders = match self.wanted.is_empty() {
                true => Vec::new(),
                false => self.elders.clone(),
            };
            let all = [&self.key].into_iter().chain(&elders);
            let read = Txn::read(all.cloned().map(Do::Get).collect());
            let call = desk.ask(endpoint, Request::Txn(read), PATIENCE, Purpose::Register);
            self.phase = Phase::Claimed { call, elders };
        }
    }

    pub(super) fn answered(
        &mut self,
        result: Result<Reply, Failure>,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        let (held, read) = match result.map(|reply| reply.body) {
            Ok(Body::Txn { held, read }) => (held, read),
            Ok(_) => return self.put_off("etcd: it answered another question", desk.now),
            Err(failure) => return self.put_off(&format!("etcd: {failure}"), desk.now),
        };
        match std::mem::take(&mut self.phase) {
            Phase::Claimed { elders, .. } => self.claimed(&elders, read, endpoint, desk),
            Phase::Looked {
                claim,
                keys,
                leaving,
                ..
            } => self.looked((claim, keys, leaving), read, endpoint, desk),
            Phase::Writing { after, .. } if held => self.settle(after, desk.now),
            // Somebody was faster: it is looked at again.
            Phase::Writing { .. } => self.phase = Phase::Due(desk.now.after(RETRY_MIN)),
            phase @ (Phase::Settled | Phase::Due(_)) => self.phase = phase,
        }
    }

    fn put_off(&mut self, why: &str, now: Moment) {
        self.retry = self.retry.plus(self.retry).clamp(RETRY_MIN, RETRY_MAX);
        self.phase = Phase::Due(now.after(self.retry));
        self.trouble = Some(why.to_owned());
    }

    fn settle(&mut self, after: Outcome, now: Moment) {
        self.was_right |= after.fault.is_none();
        let soon = after.fault.is_some() || after.lingers;
        let every = if soon { SOON } else { EVERY };
        self.leaves = after.lingers;
        self.trouble = after.fault;
        self.retry = Span::ZERO;
        self.phase = Phase::Settled;
        let stays = !self.wanted.is_empty() || after.lingers;
        self.again = stays.then(|| now.after(every));
    }

    fn claimed(
        &mut self,
        elders: &[String],
        read: Vec<Vec<KeyValue>>,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        let mut read = read.into_iter().map(|found| found.into_iter().next());
        let mut claim = Claim::of(read.next().flatten());
        let places: BTreeSet<String> = self
            .wanted
            .keys()
            .filter_map(|key| servers_of(key))
            .collect();
        let is_ours = |key: &String| servers_of(key).is_some_and(|at| places.contains(&at));
        for (key, found) in elders.iter().zip(read) {
            claim.take_over(key, Claim::of(found), is_ours);
        }
        // What we have not seen yet is to be as we want it.
        self.was_right &= claim.elders.is_empty();
        let mut keys: Vec<String> = self.wanted.keys().cloned().collect();
        keys.extend(
            claim
                .wrote
                .keys()
                .filter(|key| !self.wanted.contains_key(*key))
                .cloned(),
        );
        if keys.is_empty() {
            return self.settle(Outcome::default(), desk.now);
        }
        let mut leaving: Vec<String> = claim
            .wrote
            .keys()
            .filter_map(|key| servers_of(key))
            .collect();
        leaving.retain(|at| !places.contains(at));
        leaving.dedup();
        let gets = keys.iter().cloned().map(Do::Get);
        let lists = leaving.iter().cloned().map(Do::List);
        let read = Txn::read(gets.chain(lists).collect());
        let call = desk.ask(endpoint, Request::Txn(read), PATIENCE, Purpose::Register);
        self.phase = Phase::Looked {
            call,
            claim,
            keys,
            leaving,
        };
    }

    fn looked(
        &mut self,
        (mut claim, keys, leaving): (Claim, Vec<String>, Vec<String>),
        mut read: Vec<Vec<KeyValue>>,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        let servers = read.split_off(keys.len().min(read.len()));
        let empty: Vec<&String> = leaving
            .iter()
            .zip(servers)
            .filter(|(_, servers)| servers.is_empty())
            .map(|(at, _)| at)
            .collect();
        let (mut when, mut then) = (Vec::new(), Vec::new());
        let mut after = Outcome::default();
        let before = claim.wrote.clone();
        for (key, found) in keys.into_iter().zip(read) {
            let found = found.into_iter().next();
            let there = found.as_ref().map(|kv| kv.value.as_str());
            let is_ours = there.is_some() && before.get(&key).map(String::as_str) == there;
            let revision = found.as_ref().map_or(0, |kv| kv.modified);
            match self.wanted.get(&key) {
                Some(value) if there == Some(value.as_str()) => {}
                Some(value) if there.is_none() || (is_ours && !self.was_right) => {
                    when.push(When::Modified(key.clone(), revision));
                    claim.wrote.insert(key.clone(), value.clone());
                    then.push(Do::Put {
                        key,
                        value: value.clone(),
                        lease: None,
                    });
                }
                // Another node means it otherwise, and came later.
                Some(_) if is_ours => {}
                Some(_) => {
                    let why = somebody_elses(&key);
                    after.fault.get_or_insert(why);
                }
                None => {
                    let servers = servers_of(&key).filter(|at| leaving.contains(at));
                    match servers {
                        // It goes with its last server, which may be one of ours.
                        Some(at) if !empty.contains(&&at) => {
                            after.lingers = true;
                            continue;
                        }
                        // Another node, which has not been told otherwise yet, put it back.
                        None if self.was_right => continue,
                        Some(_) | None => {}
                    }
                    claim.wrote.remove(&key);
                    if is_ours {
                        when.push(When::Modified(key.clone(), revision));
                        then.push(Do::Delete(key));
                    }
                }
            }
        }
        if claim.wrote == before && then.is_empty() && claim.elders.is_empty() {
            return self.settle(after, desk.now);
        }
        let records = claim.elders.iter().map(|(at, elder)| elder.write(at));
        for (condition, what) in records.chain([claim.write(&self.key)]) {
            when.push(condition);
            then.push(what);
        }
        let txn = Txn {
            when,
            then,
            otherwise: Vec::new(),
        };
        let call = desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Register);
        self.phase = Phase::Writing { call, after };
    }
}
