//! This node in the cluster: a lease of its own, and the key with its name that hangs on it. Everything else of ours hangs on the same lease.
//!
//! ```text
//!   Away ──▶ Checking ──▶ Granting ──▶ Registering ──▶ Open ──gone, or nobody can be asked──▶ Lapsed ──revoked, or over──▶ Away
//!    ▲           │             │             │
//!    └───────────┴─────────────┴─────────────┘ no answer, a wrong one, or somebody else has our name
//! ```
//!
//! The lease and the key are in the node's row, so a supervisor that takes over goes on with them; a deadline that stands was confirmed by
//! the keeper, and is not moved before its own first verified renewal.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    engine::cluster::{
        calls::{Desk, Purpose},
        keys::{self, NodeCard},
        renewal::{Outcome, Renewals},
        rpc::{Body, CallId, Do, Failure, KeyValue, LeaseId, Reply, Request, Txn, When},
    },
    time::{Clocks, Moment, Span},
};

/// A request that no renewal waits for may take so long.
pub(super) const PATIENCE: Span = Span::secs(2);
/// After a failure it is tried again so soon, then after twice as long, and so on.
const RETRY_MIN: Span = Span::millis(100);
const RETRY_MAX: Span = Span::secs(2);

/// What a supervisor leaves to the next one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct SessionRow {
    lease: LeaseId,
    /// As granted.
    ttl: Span,
    /// As asked for: etcd may have its own mind.
    asked: Span,
    /// The revision that created the key with our name.
    created: i64,
    cluster: u64,
    /// Not to be renewed any more.
    lapsed: bool,
}

impl SessionRow {
    /// The revision that created the key with our name.
    pub(super) fn created(&self) -> i64 {
        self.created
    }
}

/// What a node has seen of its cluster: on its disk, so that no other one is taken for it, nor the same one restored from a backup, which has
/// forgotten fences that it gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pin {
    /// Its id.
    pub cluster: u64,
    /// What stood before its fences.
    pub epoch: u64,
    /// It had come so far.
    pub revision: i64,
    /// It was seen to have forgotten. That it comes as far again does not bring back what it had given away.
    pub forgot: bool,
}

/// Who we are, and what we want.
#[derive(Clone, Debug)]
pub(super) struct Identity {
    /// The key with our name.
    pub(super) key: String,
    pub(super) name: String,
    pub(super) card: NodeCard,
    pub(super) ttl: Span,
    pub(super) epoch: u64,
    pub(super) endpoints: usize,
}

/// What the rest is to hear.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Heard {
    /// A session has begun.
    Opened,
    /// Its lease was renewed, counted from then.
    Renewed,
    /// A key that hung on it is gone.
    Missing(String),
    /// It is over, and all that hung on it is gone.
    Lost(String),
    /// It cannot begin.
    Waits(String),
}

#[derive(Clone, Debug)]
enum Phase {
    Away {
        until: Moment,
    },
    Checking(CallId),
    Granting(CallId),
    Registering {
        call: CallId,
        lease: LeaseId,
        ttl: Span,
        granted: Clocks,
        cluster: u64,
    },
    Open(Box<Open>),
    /// Nothing hangs on it that counts, and it is not renewed.
    Lapsed {
        lease: LeaseId,
        /// What hung on it is gone by then, if nobody can be told before.
        until: Moment,
        revoking: Revoking,
    },
}

/// The end of a lease before its time. A new leader may have given it its whole time anew, so it is asked for until it is heard.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Revoking {
    /// Something still hangs on it.
    No,
    Asked(CallId),
    Later(Moment),
}

/// A session that is renewed.
#[derive(Clone, Debug)]
struct Open {
    row: SessionRow,
    renewals: Renewals,
    /// Ours since then.
    since: Moment,
    /// Counted from then it holds; none: this supervisor has not renewed it yet.
    verified: Option<Clocks>,
    /// So much was left of it at its last renewal.
    margin: Option<Span>,
    stamp: Stamp,
}

/// Whatever this supervisor writes names the revision at which it last wrote the node's key: what its predecessor sent, and arrives
/// late, is refused.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Stamp {
    Missing { retry: Moment },
    Asked(CallId),
    Known(i64),
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    pub(super) identity: Identity,
    phase: Phase,
    /// Whom to ask first.
    favourite: usize,
    retry: Span,
    /// From a question to its answer, as a rule: down at once, up slowly, since whoever is slow once is not far away.
    trip: Option<Span>,
    /// The cluster that we belong to, since we first saw it.
    pub(super) pin: Option<Pin>,
    /// The newest revision that was read.
    newest: i64,
    /// For so long the last lease was asked for.
    asked: Span,
}

fn forgot() -> String {
    format!("etcd has forgotten what it had said: {RAISE}")
}

/// What an operator does who knows what happened.
const RAISE: &str = "if it was restored from a backup, raise etcd.epoch on every node";

impl Session {
    pub(super) fn new(identity: Identity, pin: Option<Pin>, now: Moment) -> Self {
        Self {
            identity,
            phase: Phase::Away { until: now },
            favourite: 0,
            retry: RETRY_MIN,
            trip: None,
            pin,
            newest: 0,
            asked: Span::ZERO,
        }
    }

    /// Another number of endpoints; the next lease is of another length.
    pub(super) fn reconfigure(&mut self, endpoints: usize, ttl: Span) {
        (self.identity.endpoints, self.identity.ttl) = (endpoints, ttl);
        self.favourite %= endpoints;
        if let Phase::Open(open) = &mut self.phase {
            open.renewals.reconfigure(endpoints);
        }
    }

    /// Goes on with what the supervisor before had.
    pub(super) fn adopt(&mut self, row: SessionRow, now: Moment) {
        self.phase = if row.lapsed {
            Phase::Lapsed {
                lease: row.lease,
                until: now.after(row.ttl),
                revoking: Revoking::No,
            }
        } else {
            Phase::Open(Box::new(Open {
                row,
                since: now,
                renewals: self.renewals(&row, now),
                verified: None,
                margin: None,
                stamp: Stamp::Missing { retry: now },
            }))
        };
    }

    fn renewals(&self, row: &SessionRow, due: Moment) -> Renewals {
        let mut renewals = Renewals::new(
            row.lease,
            row.cluster,
            row.ttl,
            self.favourite,
            self.identity.endpoints,
            due,
        );
        renewals.trip = self.trip.unwrap_or_default();
        renewals
    }

    /// An answer took so long.
    fn took(&mut self, trip: Span) {
        let slower = |before: Span| before.plus(Span::nanos(before.as_nanos() / 8));
        let trip = self.trip.map_or(trip, |before| slower(before).min(trip));
        self.trip = Some(trip);
        if let Phase::Open(open) = &mut self.phase {
            open.renewals.trip = trip;
        }
    }

    /// For the node's row.
    pub(super) fn row(&self) -> Option<SessionRow> {
        match &self.phase {
            Phase::Open(open) => Some(open.row),
            Phase::Lapsed { lease, .. } => Some(SessionRow {
                lease: *lease,
                ttl: self.identity.ttl,
                asked: self.identity.ttl,
                created: 0,
                cluster: self.pin.map_or(0, |pin| pin.cluster),
                lapsed: true,
            }),
            Phase::Away { .. }
            | Phase::Checking(_)
            | Phase::Granting(_)
            | Phase::Registering { .. } => None,
        }
    }

    fn open(&self) -> Option<&Open> {
        match &self.phase {
            Phase::Open(open) => Some(open),
            _ => None,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        self.open().is_some()
    }

    pub(super) fn is_lapsed(&self) -> bool {
        matches!(self.phase, Phase::Lapsed { .. })
    }

    pub(super) fn is_away(&self) -> bool {
        matches!(self.phase, Phase::Away { .. })
    }

    /// Another length is configured than the one it was asked for with.
    pub(super) fn is_outdated(&self) -> bool {
        let open = self.open();
        open.is_some_and(|open| open.row.asked != self.identity.ttl)
    }

    /// The lease that our keys hang on, also when it is not renewed any more.
    pub(super) fn lease(&self) -> Option<LeaseId> {
        match &self.phase {
            Phase::Open(open) => Some(open.row.lease),
            Phase::Lapsed { lease, .. } => Some(*lease),
            _ => None,
        }
    }

    /// Counted from then the lease holds, for so long.
    pub(super) fn verified(&self) -> Option<(Clocks, Span)> {
        let open = self.open()?;
        Some((open.verified?, open.row.ttl))
    }

    /// So much was left of the lease when it was renewed last.
    pub(super) fn margin(&self) -> Option<Span> {
        self.open()?.margin
    }

    /// What a key of ours that hangs on the lease must find: the key with our name, and when it was created.
    pub(super) fn created(&self) -> Option<i64> {
        Some(self.open()?.row.created())
    }

    /// Of which length the lease is, as granted.
    pub(super) fn ttl(&self) -> Option<Span> {
        Some(self.open()?.row.ttl)
    }

    /// In one word.
    pub(super) fn word(&self) -> &'static str {
        match self.phase {
            Phase::Open(_) => "joined",
            Phase::Lapsed { .. } => "lapsed",
            Phase::Away { .. }
            | Phase::Checking(_)
            | Phase::Granting(_)
            | Phase::Registering { .. } => "joining",
        }
    }

    /// Was nothing heard for so long that the lease may be over?
    pub(super) fn is_silent(&self, now: Moment) -> bool {
        self.open().is_some_and(|open| {
            let heard = open.verified.map_or(open.since, |sent| sent.boottime);
            heard.after(open.row.ttl) <= now
        })
    }

    /// What was sent with the stamp that we have is to count no more.
    pub(super) fn restamp(&mut self, now: Moment) {
        if let Phase::Open(open) = &mut self.phase {
            open.stamp = Stamp::Missing { retry: now };
        }
    }

    /// Whom to ask.
    pub(super) fn favourite(&self) -> usize {
        self.open()
            .map_or(self.favourite, |open| open.renewals.favourite)
    }

    /// What every write of ours must find.
    pub(super) fn stamp(&self) -> Option<When> {
        match self.open()?.stamp {
            Stamp::Known(revision) => Some(When::Modified(self.identity.key.clone(), revision)),
            Stamp::Missing { .. } | Stamp::Asked(_) => None,
        }
    }

    pub(super) fn hurry(&mut self, now: Moment) {
        if let Phase::Open(open) = &mut self.phase {
            open.renewals.hurry(now);
        }
    }

    pub(super) fn deadline(&self) -> Option<Moment> {
        match &self.phase {
            Phase::Away { until } => Some(*until),
            Phase::Checking(_) | Phase::Granting(_) | Phase::Registering { .. } => None,
            Phase::Open(open) => {
                let renewal = open.renewals.deadline();
                let stamp = match open.stamp {
                    Stamp::Missing { retry } => Some(retry),
                    Stamp::Asked(_) | Stamp::Known(_) => None,
                };
                Some(stamp.map_or(renewal, |at| at.min(renewal)))
            }
            Phase::Lapsed {
                until, revoking, ..
            } => match revoking {
                Revoking::No => Some(*until),
                Revoking::Asked(_) => None,
                Revoking::Later(at) => Some(*at),
            },
        }
    }

    /// Does what is due; `stays_away`: no new session is to begin.
    pub(super) fn tend(&mut self, stays_away: bool, desk: &mut Desk<'_>) {
        let endpoint = self.favourite();
        match &mut self.phase {
            Phase::Away { until } if *until <= desk.now && !stays_away => {
                let call = desk.ask(endpoint, Request::Status, PATIENCE, Purpose::Session);
                self.phase = Phase::Checking(call);
            }
            Phase::Open(open) => {
                open.renewals.tend(desk);
                if matches!(open.stamp, Stamp::Missing { retry } if retry <= desk.now) {
                    let (key, created) = (self.identity.key.clone(), open.row.created);
                    let txn = Txn {
                        when: vec![When::Created(key.clone(), created)],
                        then: vec![
                            Do::Put {
                                key: key.clone(),
                                value: keys::encode(&self.identity.card),
                                lease: Some(open.row.lease),
                            },
                            Do::Get(key.clone()),
                        ],
                        otherwise: vec![Do::Get(key)],
                    };
                    let request = Request::Txn(txn);
                    let call = desk.ask(endpoint, request, PATIENCE, Purpose::Session);
                    open.stamp = Stamp::Asked(call);
                }
            }
            Phase::Lapsed {
                until,
                revoking: Revoking::No,
                ..
            } if *until <= desk.now => {
                self.phase = Phase::Away { until: desk.now };
                self.tend(stays_away, desk);
            }
            Phase::Away { .. }
            | Phase::Checking(_)
            | Phase::Granting(_)
            | Phase::Registering { .. }
            | Phase::Lapsed { .. } => {}
        }
    }

    /// It is not renewed any more, and nothing is begun under it; what hangs on it may be taken away.
    pub(super) fn lapse(&mut self, now: Moment) {
        self.favourite = self.favourite();
        if let Phase::Open(open) = &self.phase {
            self.phase = Phase::Lapsed {
                lease: open.row.lease,
                until: now.after(open.row.ttl),
                revoking: Revoking::No,
            };
        }
    }

    /// Nothing hangs on it any more: it ends before its time.
    pub(super) fn revoke(&mut self, desk: &mut Desk<'_>) {
        let endpoint = self.favourite;
        let Phase::Lapsed {
            lease, revoking, ..
        } = &mut self.phase
        else {
            return;
        };
        let is_due = match revoking {
            Revoking::No => true,
            Revoking::Asked(_) => false,
            Revoking::Later(at) => *at <= desk.now,
        };
        if is_due {
            let request = Request::Revoke(*lease);
            let call = desk.ask(endpoint, request, PATIENCE, Purpose::Session);
            *revoking = Revoking::Asked(call);
        }
    }

    /// An answer to something that it asked.
    pub(super) fn answered(
        &mut self,
        call: CallId,
        sent: Clocks,
        result: Result<Reply, Failure>,
        own: &BTreeMap<String, i64>,
        desk: &mut Desk<'_>,
    ) -> Vec<Heard> {
        if result.is_ok() {
            self.took(sent.boottime.until(desk.now));
        }
        if let (Some(open), Ok(reply)) = (self.open(), &result)
            && open.renewals.reads(call)
        {
            let at = reply.from.revision;
            // Asked after we had seen more.
            if open.renewals.saw_more(call, at) {
                self.pin = self.pin.map(|pin| Pin {
                    forgot: true,
                    ..pin
                });
                return vec![self.lose(forgot(), desk.now)];
            }
            self.newest = self.newest.max(at);
        }
        match &mut self.phase {
            Phase::Checking(asked) if *asked == call => self.checked(result, desk),
            Phase::Granting(asked) if *asked == call => self.granted(sent, result, desk),
            Phase::Registering { call: asked, .. } if *asked == call => {
                self.registered(result, desk)
            }
            Phase::Open(open) if open.stamp == Stamp::Asked(call) => self.stamped(result, desk.now),
            Phase::Open(open) => {
                let own = (own, self.newest);
                let outcomes = open.renewals.answered(call, sent, result, own, desk);
                let heard = outcomes.into_iter().map(|one| self.renewed(one, desk.now));
                heard.collect()
            }
            Phase::Lapsed { revoking, .. } if *revoking == Revoking::Asked(call) => {
                match result {
                    Ok(_) | Err(Failure::NoLease) => self.phase = Phase::Away { until: desk.now },
                    Err(_) => {
                        *revoking = Revoking::Later(desk.now.after(self.retry));
                        self.retry = self.retry.plus(self.retry).min(RETRY_MAX);
                        self.next_endpoint();
                    }
                }
                Vec::new()
            }
            _ => Vec::new(),
        }
    }

    fn next_endpoint(&mut self) {
        self.favourite = (self.favourite + 1) % self.identity.endpoints;
    }

    /// It is tried again, elsewhere, and ever more seldom.
    fn put_off(&mut self, why: String, now: Moment) -> Vec<Heard> {
        self.next_endpoint();
        let until = now.after(self.retry);
        self.phase = Phase::Away { until };
        self.retry = self.retry.plus(self.retry).min(RETRY_MAX);
        vec![Heard::Waits(why)]
    }

    fn checked(&mut self, result: Result<Reply, Failure>, desk: &mut Desk<'_>) -> Vec<Heard> {
        let reply = match result {
            Ok(reply) => reply,
            Err(failure) => return self.put_off(failure.to_string(), desk.now),
        };
        let Body::Status(health) = reply.body else {
            return self.put_off("it answered another question".to_owned(), desk.now);
        };
        if let Some(why) = self.is_strange(reply.from.cluster) {
            return self.put_off(why, desk.now);
        }
        if !health.has_leader {
            return self.put_off(Failure::NoLeader.to_string(), desk.now);
        }
        self.asked = self.identity.ttl;
        let seconds = self.asked.as_millis().div_ceil(1_000);
        let ttl = i64::try_from(seconds).unwrap_or(i64::MAX);
        let request = Request::Grant { ttl };
        let call = desk.ask(self.favourite, request, PATIENCE, Purpose::Session);
        self.phase = Phase::Granting(call);
        Vec::new()
    }

    /// What we have seen counts until an operator says that it is over.
    fn pin_in_force(&self) -> Option<Pin> {
        self.pin.filter(|pin| pin.epoch >= self.identity.epoch)
    }

    /// Is this not the cluster that we belong to?
    fn is_strange(&self, cluster: u64) -> Option<String> {
        let pin = self.pin_in_force()?;
        if pin.epoch > self.identity.epoch {
            return Some(format!(
                "etcd.epoch = {} is configured, and {} was in force on this node",
                self.identity.epoch, pin.epoch
            ));
        }
        if pin.forgot {
            return Some(forgot());
        }
        let (ours, strange) = (pin.cluster, pin.cluster != cluster);
        let why =
            || format!("cluster {cluster:x} answers, and this node belongs to {ours:x}: {RAISE}");
        strange.then(why)
    }

    fn granted(
        &mut self,
        sent: Clocks,
        result: Result<Reply, Failure>,
        desk: &mut Desk<'_>,
    ) -> Vec<Heard> {
        let (from, lease, ttl) = match result {
            Ok(Reply {
                from,
                body: Body::Granted { lease, ttl },
            }) if ttl > 0 => (from, lease, Span::secs(ttl.unsigned_abs())),
            Ok(_) => return self.put_off("it granted no lease".to_owned(), desk.now),
            Err(failure) => return self.put_off(failure.to_string(), desk.now),
        };
        let key = self.identity.key.clone();
        let txn = Txn {
            when: vec![When::Created(key.clone(), 0)],
            then: vec![
                Do::Put {
                    key: key.clone(),
                    value: keys::encode(&self.identity.card),
                    lease: Some(lease),
                },
                Do::Get(key.clone()),
            ],
            otherwise: vec![Do::Get(key)],
        };
        let request = Request::Txn(txn);
        self.phase = Phase::Registering {
            call: desk.ask(self.favourite, request, PATIENCE, Purpose::Session),
            lease,
            ttl,
            granted: sent,
            cluster: from.cluster,
        };
        Vec::new()
    }

    fn registered(&mut self, result: Result<Reply, Failure>, desk: &mut Desk<'_>) -> Vec<Heard> {
        let Phase::Registering {
            lease,
            ttl,
            granted,
            cluster,
            ..
        } = &self.phase
        else {
            return Vec::new();
        };
        let (lease, ttl, granted, cluster) = (*lease, *ttl, *granted, *cluster);
        let there = match result.map(|reply| reply.body) {
            Ok(Body::Txn { read, .. }) => read.into_iter().flatten().next(),
            Ok(_) => None,
            Err(failure) => {
                self.give_back(lease, desk);
                return self.put_off(failure.to_string(), desk.now);
            }
        };
        let ours = there.as_ref().filter(|kv| kv.lease == Some(lease));
        let Some(ours) = ours else {
            self.give_back(lease, desk);
            let why = there.map_or("it answered another question".to_owned(), |kv| {
                self.taken_by(&kv)
            });
            return self.put_off(why, desk.now);
        };
        if let Some(pin) = self
            .pin_in_force()
            .filter(|pin| pin.revision >= ours.created)
        {
            self.give_back(lease, desk);
            self.pin = Some(Pin {
                forgot: true,
                ..pin
            });
            return self.put_off(forgot(), desk.now);
        }
        let row = SessionRow {
            lease,
            ttl,
            asked: self.asked,
            created: ours.created,
            cluster,
            lapsed: false,
        };
        // The grant is an entry of the log: whoever leads counts from later than we do.
        let due = granted
            .boottime
            .after(Span::nanos(ttl.as_nanos() / 5))
            .max(desk.now);
        self.phase = Phase::Open(Box::new(Open {
            row,
            since: desk.now,
            renewals: self.renewals(&row, due),
            verified: Some(granted),
            margin: None,
            stamp: Stamp::Known(ours.modified),
        }));
        self.newest = ours.created;
        self.pin = Some(Pin {
            cluster,
            epoch: self.identity.epoch,
            revision: ours.created,
            forgot: false,
        });
        self.retry = RETRY_MIN;
        vec![Heard::Opened]
    }

    /// A lease of which nothing came is not left to run out: as good as it goes.
    fn give_back(&self, lease: LeaseId, desk: &mut Desk<'_>) {
        let request = Request::Revoke(lease);
        desk.ask(self.favourite, request, PATIENCE, Purpose::Session);
    }

    /// Somebody else has our name, or we had it a moment ago.
    fn taken_by(&self, kv: &KeyValue) -> String {
        let name = &self.identity.name;
        match keys::decode::<NodeCard>(&kv.value) {
            Some(card) if card.identity == self.identity.card.identity => {
                format!("the lease that {name} had before it was started again has not run out yet")
            }
            Some(_) => format!("another node has the name {name}: give one of them another name"),
            None => format!("its name is taken by {}", keys::strange(&kv.key)),
        }
    }

    fn stamped(&mut self, result: Result<Reply, Failure>, now: Moment) -> Vec<Heard> {
        let Phase::Open(open) = &mut self.phase else {
            return Vec::new();
        };
        let there = match result.map(|reply| reply.body) {
            Ok(Body::Txn { read, .. }) => read.into_iter().flatten().next(),
            Ok(_) | Err(_) => {
                let retry = now.after(RETRY_MIN);
                open.stamp = Stamp::Missing { retry };
                return Vec::new();
            }
        };
        match there.filter(|kv| kv.created == open.row.created) {
            Some(kv) => {
                open.stamp = Stamp::Known(kv.modified);
                vec![Heard::Renewed]
            }
            None => vec![self.lose("the key with this node's name is gone".to_owned(), now)],
        }
    }

    fn renewed(&mut self, outcome: Outcome, now: Moment) -> Heard {
        let Phase::Open(open) = &mut self.phase else {
            return Heard::Renewed;
        };
        match outcome {
            Outcome::Verified { sent, ttl } => {
                open.row.ttl = ttl;
                let later = open.verified.is_none_or(|before| sent.is_after(before));
                if later {
                    let left = |before: Clocks| now.until(before.boottime.after(ttl));
                    open.margin = open.verified.map(left);
                    open.verified = Some(sent);
                }
                Heard::Renewed
            }
            Outcome::Missing(key) if key == self.identity.key => {
                self.lose("the key with this node's name is gone".to_owned(), now)
            }
            Outcome::Missing(key) => Heard::Missing(key),
            Outcome::Gone(why) => self.lose(why, now),
        }
    }

    /// It is certainly over.
    pub(super) fn lose(&mut self, why: String, now: Moment) -> Heard {
        self.favourite = self.favourite();
        let until = now.after(self.retry);
        self.phase = Phase::Away { until };
        Heard::Lost(why)
    }
}
