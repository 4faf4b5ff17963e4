//! Runs of the cluster's jobs. Whoever creates a tick's key starts its run, and nobody else does; at its end he writes what became of it there,
//! so that the keys of a job are its history, to be read from any node. A claim whose node is gone tells of a run that was lost with it.

use std::collections::BTreeMap;

use crate::{
    engine::{
        book::Outcome,
        cluster::{
            calls::{Desk, Purpose},
            keys::{self, Prefix, RunCard},
            rpc::{CallId, Do, KeyValue, Request, TXN_MAX, Txn, When},
            session::PATIENCE,
        },
    },
    id::FleetName,
    time::{Moment, Span, Stamp},
};

/// What is open there is compared with what is known here so often.
const LOOK_EVERY: Span = Span::secs(30);
/// What failed is tried again after this.
const RETRY: Span = Span::millis(200);

/// A tick.
pub(in crate::engine) type Tick = (FleetName, Stamp);

/// A run that is to start, if it is ours.
#[derive(Clone, Debug)]
pub(in crate::engine) struct Dispute {
    pub(in crate::engine) tick: Tick,
    /// When it was begun here.
    pub(in crate::engine) started: Stamp,
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

/// What stands on it for us.
#[derive(Clone, Debug)]
pub(super) struct Docket {
    prefix: Prefix,
    node: String,
    identity: String,
    due: Moment,
    looks: Option<CallId>,
    closes: Option<(CallId, Tick)>,
    claims: BTreeMap<FleetName, Claim>,
    /// Ours, and not ended, as etcd has them.
    open: BTreeMap<Tick, RunCard>,
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
            claims: BTreeMap::new(),
            open: BTreeMap::new(),
            verdicts: Vec::new(),
        }
    }

    /// A session has begun, or was taken over: what was asked before is not answered any more.
    pub(super) fn begin(&mut self, now: Moment) {
        (self.due, self.looks, self.closes) = (now, None, None);
        self.claims.clear();
    }

    /// Runs of ours that etcd believes to be there.
    pub(super) fn open(&self) -> impl Iterator<Item = &Tick> {
        self.open.keys()
    }

    pub(super) fn verdicts(&mut self) -> Vec<(Tick, Verdict)> {
        std::mem::take(&mut self.verdicts)
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        let claims = self.claims.values().filter(|one| one.call.is_none());
        let claims = claims.map(|one| one.retry);
        let look = Some(self.due).filter(|_| self.looks.is_none());
        claims.chain(look).min()
    }

    /// Asks for what is wanted, and writes down what has ended.
    pub(super) fn tend(&mut self, jobs: &Jobs, stamp: &When, endpoint: usize, desk: &mut Desk<'_>) {
        self.match_disputes(&jobs.disputes, desk.now);
        for claim in self.claims.values_mut() {
            if claim.call.is_none() && claim.retry <= desk.now {
                let request = ask(
                    &self.prefix,
                    &self.node,
                    &self.identity,
                    &claim.dispute,
                    stamp,
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
        if self.closes.is_some() {
            return;
        }
        let ended = self.open.iter().find_map(|(tick, card)| {
            let Some(Fate::Ended(outcome, ended)) = jobs.fates.get(tick) else {
                return None;
            };
            let card = RunCard {
                ended: Some(*ended),
                outcome: Some(outcome.word().to_owned()),
                reason: Some(outcome.reason()),
                ..card.clone()
            };
            Some((tick.clone(), card))
        });
        if let Some((tick, card)) = ended {
            let put = Do::Put {
                key: self.prefix.run(&tick.0, tick.1),
                value: keys::encode(&card),
                lease: None,
            };
            let txn = Txn {
                when: vec![stamp.clone()],
                then: vec![put],
                otherwise: Vec::new(),
            };
            let call = desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Docket);
            self.closes = Some((call, tick));
        }
    }

    fn match_disputes(&mut self, disputes: &[Dispute], now: Moment) {
        let wanted = |claim: &Claim| disputes.iter().any(|one| one.tick == claim.dispute.tick);
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
            if let Some((_, read)) = result {
                self.read(read.into_iter().flatten());
            }
            return false;
        }
        if let Some((_, tick)) = self.closes.take_if(|(asked, _)| *asked == call) {
            match result {
                Some((true, _)) => {
                    self.open.remove(&tick);
                }
                Some((false, _)) => return true,
                None => {}
            }
            return false;
        }
        let mut claims = self.claims.iter_mut();
        let Some((_, claim)) = claims.find(|(_, claim)| claim.call == Some(call)) else {
            // Called off meanwhile: if it is ours all the same, a look will show it.
            self.due = desk.now;
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
            Some((false, read)) => {
                let there = read.into_iter().flatten().next();
                let card = there.and_then(|kv| keys::decode::<RunCard>(&kv.value));
                let refused = card.is_none();
                if let Some(card) = card {
                    self.taken(&dispute, card);
                }
                refused
            }
            None => false,
        }
    }

    fn read(&mut self, all: impl Iterator<Item = KeyValue>) {
        let ours = all.filter_map(|kv| {
            let tick = self.prefix.tick_of(&kv.key)?;
            let card: RunCard = keys::decode(&kv.value)?;
            let is_open = card.identity == self.identity && card.ended.is_none();
            is_open.then_some((tick, card))
        });
        self.open = ours.collect();
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
        let [nodes, runs] = read else { return };
        let present: Vec<&str> = nodes
            .iter()
            .filter_map(|kv| self.prefix.node_of(&kv.key))
            .collect();
        let cards = runs.iter().map(|kv| keys::decode::<RunCard>(&kv.value));
        let is_there = |card: &RunCard| {
            card.ended.is_none()
                && card.identity != self.identity
                && present.contains(&card.node.as_str())
        };
        let cards: Vec<Option<RunCard>> = cards.collect();
        let busy = cards.iter().flatten().find(|card| is_there(card));
        let verdict = match busy.filter(|_| dispute.skips) {
            Some(card) => Verdict::Busy(card.node.clone()),
            None => Verdict::Ours,
        };
        let surplus = (runs.len() + 1).saturating_sub(dispute.history.max(1) as usize);
        let over = runs.iter().zip(&cards).filter(|(_, card)| {
            let own = |card: &RunCard| card.identity == self.identity && card.ended.is_none();
            card.as_ref()
                .is_none_or(|card| !is_there(card) && !own(card))
        });
        let over: Vec<Do> = over
            .take(surplus.min(TXN_MAX))
            .map(|(kv, _)| Do::Delete(kv.key.clone()))
            .collect();
        if !over.is_empty() {
            let txn = Txn {
                then: over,
                ..Txn::default()
            };
            desk.ask(endpoint, Request::Txn(txn), PATIENCE, Purpose::Docket);
        }
        let card = card(&self.node, &self.identity, dispute);
        self.open.insert(dispute.tick.clone(), card);
        self.decide(dispute.tick.clone(), verdict);
    }

    /// Somebody has it: we, if an answer was lost, or if this node asked before it went down and never started it.
    fn taken(&mut self, dispute: &Dispute, card: RunCard) {
        let ours = card.identity == self.identity && card.ended.is_none();
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
        ended: None,
        outcome: None,
        reason: None,
    }
}

fn ask(prefix: &Prefix, node: &str, identity: &str, dispute: &Dispute, stamp: &When) -> Request {
    let (job, scheduled) = &dispute.tick;
    let key = prefix.run(job, *scheduled);
    let put = Do::Put {
        key: key.clone(),
        value: keys::encode(&card(node, identity, dispute)),
        lease: None,
    };
    Request::Txn(Txn {
        when: vec![stamp.clone(), When::Created(key.clone(), 0)],
        then: vec![Do::List(prefix.nodes()), Do::List(prefix.runs_of(job)), put],
        otherwise: vec![Do::Get(key)],
    })
}
