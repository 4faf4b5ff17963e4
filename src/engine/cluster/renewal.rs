//! Verified renewal. etcd answers a keepalive from the memory of whoever believes that it leads, so an answer alone proves nothing: a
//! leader that was frozen, cut off or held up by its disk answers on while another one gives the lease away (etcd-io/etcd#15247).
//!
//! ```text
//!   keepalive, sent at S ──▶ answer of term n ──▶ linearizable read of our keys ──▶ answer of term n, every key as it was made
//! ```
//!
//! The answer's header is filled before the renewal is done, with the term of the last entry that the member had applied; a linearizable
//! read is answered when a leader with a committed entry of its own term, and all before it, has been applied. The same term in both says
//! that nobody newer led when the read was done, so the renewal reached the rightful lessor, at S or later: the lease lasts until S + TTL at
//! least. `tests/model.rs` looks at every order in which this could go wrong, up to small bounds. The read also finds leases that were
//! renewed after they had been revoked (fixed in 3.4.38, 3.5.23, 3.6.5), and clusters that are not what they were.

use std::collections::BTreeMap;

use crate::{
    engine::cluster::{
        calls::{Desk, Purpose},
        rpc::{Body, CallId, Do, Failure, Header, KeyValue, LeaseId, Reply, Request, TXN_MAX, Txn},
    },
    time::{Clocks, Moment, Span},
};

/// After an attempt that failed at once the next one waits so long: nobody is to be asked thousands of times a second.
const PAUSE: Span = Span::millis(50);
/// An attempt is given up after this, even where leases are long; if etcd is not further away than a quarter of it.
const ATTEMPT_MAX: Span = Span::millis(800);

/// What became of a renewal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// It holds, counted from then.
    Verified { sent: Clocks, ttl: Span },
    /// This key, which hung on it, is certainly gone.
    Missing(String),
    /// The lease, and all that hung on it, is certainly gone.
    Gone(String),
}

/// How far an attempt is.
#[derive(Clone, Debug)]
enum Step {
    Renews(CallId),
    Reads {
        sent: Clocks,
        ttl: Span,
        term: u64,
        /// What they show is no older than this.
        floor: i64,
        /// Which keys each of them is to show.
        waits: BTreeMap<CallId, Vec<(String, i64)>>,
    },
}

#[derive(Clone, Debug)]
struct Attempt {
    endpoint: usize,
    step: Step,
}

/// The renewals of one lease.
#[derive(Clone, Debug)]
pub(super) struct Renewals {
    lease: LeaseId,
    cluster: u64,
    every: Span,
    /// The next round begins then.
    due: Moment,
    /// Under way: the first one that succeeds is the round's.
    attempts: Vec<Attempt>,
    /// When a second endpoint is asked too, or the next one.
    next_at: Option<Moment>,
    /// Whom to ask first. What it is asked besides, and what it is to show, is asked anew when it is another one.
    pub(super) favourite: usize,
    /// In so many rounds at once somebody else was faster.
    beaten: u32,
    endpoints: usize,
    /// From a question to its answer, as a rule.
    pub(super) trip: Span,
}

impl Renewals {
    pub(super) fn new(
        lease: LeaseId,
        cluster: u64,
        ttl: Span,
        favourite: usize,
        endpoints: usize,
        due: Moment,
    ) -> Self {
        Self {
            lease,
            cluster,
            every: Span::nanos(ttl.as_nanos() / 5),
            due,
            attempts: Vec::new(),
            next_at: None,
            favourite,
            beaten: 0,
            endpoints,
            trip: Span::ZERO,
        }
    }

    /// How long a request may take. The first renewal on a connection takes two trips, and one more where there is no connection yet: where
    /// that is longer than an attempt, there would never be a second one.
    pub(super) fn patience(&self) -> Span {
        let usual = ATTEMPT_MAX.min(Span::nanos(self.every.as_nanos() / 2));
        usual.max(self.trip.times(4)).min(self.every)
    }

    pub(super) fn deadline(&self) -> Moment {
        self.next_at.unwrap_or(self.due)
    }

    /// Another number of endpoints: what is asked of those before counts no more.
    pub(super) fn reconfigure(&mut self, endpoints: usize) {
        self.endpoints = endpoints;
        self.favourite %= endpoints;
        self.attempts.clear();
    }

    /// Somebody cannot wait for the next one.
    pub(super) fn hurry(&mut self, now: Moment) {
        self.due = self.due.min(now);
    }

    /// Begins what is due.
    pub(super) fn tend(&mut self, desk: &mut Desk<'_>) {
        if self.deadline() > desk.now {
            return;
        }
        let busy: Vec<usize> = self.attempts.iter().map(|one| one.endpoint).collect();
        // A round asks the favourite, then somebody else beside it; two at a time are enough.
        let endpoint = match busy.last() {
            Some(last) => (last + 1) % self.endpoints,
            None => self.favourite,
        };
        if busy.len() < 2 && !busy.contains(&endpoint) {
            let request = Request::KeepAlive(self.lease);
            let call = desk.ask(endpoint, request, self.patience(), Purpose::Session);
            let step = Step::Renews(call);
            self.attempts.push(Attempt { endpoint, step });
        }
        let half = Span::nanos(self.patience().as_nanos() / 2);
        self.next_at = Some(desk.now.after(half.max(PAUSE)));
    }

    /// Is this one of our reads?
    pub(super) fn reads(&self, call: CallId) -> bool {
        let mut attempts = self.attempts.iter();
        attempts
            .any(|one| matches!(&one.step, Step::Reads { waits, .. } if waits.contains_key(&call)))
    }

    /// Had we seen a later revision than this when we asked?
    pub(super) fn saw_more(&self, call: CallId, revision: i64) -> bool {
        let mut attempts = self.attempts.iter();
        attempts.any(|one| match &one.step {
            Step::Reads { waits, floor, .. } => waits.contains_key(&call) && *floor > revision,
            Step::Renews(_) => false,
        })
    }

    /// An answer, perhaps to one of ours; `own` are the keys that hang on the lease, with the revisions that made them, and the newest revision
    /// that was read.
    pub(super) fn answered(
        &mut self,
        call: CallId,
        sent: Clocks,
        result: Result<Reply, Failure>,
        own: (&BTreeMap<String, i64>, i64),
        desk: &mut Desk<'_>,
    ) -> Vec<Outcome> {
        let mut attempts = self.attempts.iter();
        let Some(at) = attempts.position(|one| one.step.waits_for(call)) else {
            return Vec::new();
        };
        match (result, &self.attempts[at].step) {
            (Err(Failure::NoLease), Step::Renews(_)) => vec![self.gone("it does not exist")],
            (Err(_), _) => {
                self.failed(at, desk.now);
                Vec::new()
            }
            (Ok(reply), _) if reply.from.cluster != self.cluster => {
                vec![self.another(reply.from)]
            }
            (Ok(reply), Step::Renews(_)) => {
                let gone = self.renewed(at, sent, &reply, own, desk);
                gone.into_iter().collect()
            }
            (Ok(reply), Step::Reads { .. }) => self.read(at, call, reply, desk.now),
        }
    }

    fn gone(&self, why: &str) -> Outcome {
        Outcome::Gone(format!("lease {} is gone: {why}", self.lease))
    }

    /// Another cluster answers: everything that we know is of no worth.
    fn another(&self, from: Header) -> Outcome {
        let (here, there) = (self.cluster, from.cluster);
        Outcome::Gone(format!("cluster {there:x} answers where {here:x} did"))
    }

    fn renewed(
        &mut self,
        at: usize,
        sent: Clocks,
        reply: &Reply,
        (own, floor): (&BTreeMap<String, i64>, i64),
        desk: &mut Desk<'_>,
    ) -> Option<Outcome> {
        let Body::Alive { ttl } = reply.body else {
            self.failed(at, desk.now);
            return None;
        };
        let Some(ttl) = u64::try_from(ttl).ok().filter(|ttl| *ttl > 0) else {
            return Some(self.gone("etcd has ended it"));
        };
        let patience = self.patience();
        let attempt = &mut self.attempts[at];
        let own: Vec<(String, i64)> = own.iter().map(|(key, at)| (key.clone(), *at)).collect();
        let waits = own.chunks(TXN_MAX).map(|keys| {
            let gets = keys.iter().map(|(key, _)| Do::Get(key.clone()));
            let request = Request::Txn(Txn::read(gets.collect()));
            let call = desk.ask(attempt.endpoint, request, patience, Purpose::Session);
            (call, keys.to_vec())
        });
        attempt.step = Step::Reads {
            sent,
            ttl: Span::secs(ttl),
            term: reply.from.term,
            floor,
            waits: waits.collect(),
        };
        None
    }

    fn read(&mut self, at: usize, call: CallId, reply: Reply, now: Moment) -> Vec<Outcome> {
        let Attempt { endpoint, step } = &mut self.attempts[at];
        let Step::Reads {
            sent,
            ttl,
            term,
            waits,
            ..
        } = step
        else {
            return Vec::new();
        };
        let keys = waits.remove(&call).unwrap_or_default();
        let shown = match reply.body {
            Body::Txn { read, .. } if read.len() == keys.len() => read,
            _ => {
                self.failed(at, now);
                return Vec::new();
            }
        };
        let is_there =
            |created: i64, found: &[KeyValue]| found.iter().any(|kv| kv.created == created);
        let gone = keys.into_iter().zip(&shown);
        let gone = gone.filter(|((_, created), found)| !is_there(*created, found));
        // That a key is gone is certain whoever says so; that the lease goes on is not.
        let mut outcomes: Vec<Outcome> = gone.map(|((key, _), _)| Outcome::Missing(key)).collect();
        let (sent, ttl, term, endpoint) = (*sent, *ttl, *term, *endpoint);
        let is_last = waits.is_empty();
        if reply.from.term != term {
            // Whoever renewed it does not lead any more.
            self.failed(at, now);
        } else if is_last {
            self.attempts.clear();
            self.next_at = None;
            self.due = sent.boottime.after(self.every).max(now);
            self.compare(endpoint, now);
            outcomes.push(Outcome::Verified { sent, ttl });
        }
        outcomes
    }

    /// Once beaten may be chance: it is asked again soon. Twice is no favourite.
    fn compare(&mut self, first: usize, now: Moment) {
        if first == self.favourite {
            self.beaten = 0;
            return;
        }
        self.beaten += 1;
        if self.beaten > 1 {
            (self.favourite, self.beaten) = (first, 0);
        } else {
            self.due = self.due.min(now.after(self.patience()));
        }
    }

    /// Somebody else is asked next; after a pause, if it failed at once.
    fn failed(&mut self, at: usize, now: Moment) {
        let attempt = self.attempts.remove(at);
        if attempt.endpoint == self.favourite {
            self.favourite = (self.favourite + 1) % self.endpoints;
            self.beaten = 0;
        }
        if self.attempts.is_empty() {
            let soon = now.after(PAUSE);
            self.next_at = Some(self.next_at.map_or(soon, |at| at.min(soon)));
        }
    }
}

impl Step {
    fn waits_for(&self, id: CallId) -> bool {
        match self {
            Self::Renews(call) => *call == id,
            Self::Reads { waits, .. } => waits.contains_key(&id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patience(ttl: Span, trip: Span) -> Span {
        let mut renewals = Renewals::new(LeaseId(1), 1, ttl, 0, 3, Moment(0));
        renewals.trip = trip;
        renewals.patience()
    }

    #[test]
    fn an_attempt_is_not_shorter_than_the_way_there_and_never_longer_than_a_round() {
        let ten = Span::secs(10);
        assert_eq!(patience(ten, Span::ZERO), ATTEMPT_MAX);
        assert_eq!(patience(ten, Span::millis(100)), ATTEMPT_MAX);
        assert_eq!(patience(ten, Span::millis(400)), Span::millis(1_600));
        assert_eq!(patience(ten, Span::secs(1)), Span::secs(2));
        let two = Span::secs(2);
        assert_eq!(patience(two, Span::millis(1)), Span::millis(200));
        assert_eq!(patience(two, Span::millis(90)), Span::millis(360));
    }
}
