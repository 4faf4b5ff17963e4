//! Somebody of ours in the queue of a lock.
//!
//! ```text
//!   Waits ──▶ Joins ──▶ Stands ──its turn──▶ Stands, and has won ──▶ Leaves ──▶ out
//!               └── no answer: the same again, under the same name ──┘   ▲
//! ```

use crate::{
    config::spec::{LeaseSpec, Preference, SingletonSpec},
    engine::cluster::{
        Ticket,
        calls::{Desk, Purpose},
        keys::{self, Card, Released},
        line::Delay,
        queue::Queue,
        rpc::{Body, CallId, Do, Failure, LeaseId, Reply, Request, Txn, When},
        session::PATIENCE,
        stamped,
    },
    id::WorkerId,
    time::{Clocks, Moment, Span},
};

/// Whoever has his turn and cannot begin lets others: his lock file is held by somebody on this machine, or his keeper confirms nothing.
const BEGIN_WITHIN: Span = Span::secs(2);
/// What failed is tried again after this.
const RETRY: Span = Span::millis(200);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Stage {
    /// Joins then.
    Waits {
        until: Moment,
    },
    Joins(CallId),
    Stands {
        fence: i64,
    },
    Leaves {
        /// None: whether it ever stood there is not known.
        fence: Option<i64>,
        call: Option<CallId>,
        retry: Moment,
    },
}

#[derive(Clone, Debug)]
pub(super) struct Candidate {
    pub(super) lock: String,
    pub(super) key: String,
    /// Its key hangs on this one; none: there is no key yet.
    pub(super) lease: Option<LeaseId>,
    pub(super) slots: u32,
    /// What its card says of that; none: it was written by a supervisor before us, and not read since.
    said: Option<u32>,
    preference: Preference,
    /// How good it is, by its card: who has more is next.
    rank: u64,
    /// Since when somebody better waits.
    better_since: Option<Moment>,
    /// What may be left of somebody who is gone without a word is given so long.
    pub(super) delay: Delay,
    stage: Stage,
    /// It was told that it is its turn, and has not begun since, as far as we saw.
    won: Option<Moment>,
    /// Counted from then it knows its lease to hold.
    told: Option<Clocks>,
    /// A request to join was not answered: it may still arrive.
    is_doubtful: bool,
    /// etcd takes no word of how it leaves.
    is_wordless: bool,
}

/// The lease that a key is to hang on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Granted {
    pub(super) id: LeaseId,
    pub(super) ttl: Span,
}

impl Candidate {
    pub(super) fn new(lock: String, spec: &SingletonSpec, node: &str, now: Moment) -> Self {
        Self {
            lock,
            key: String::new(),
            lease: None,
            slots: spec.slots,
            said: None,
            preference: spec.preference.clone(),
            rank: spec.preference.rank(node, 0),
            better_since: None,
            delay: Delay::of(spec),
            stage: Stage::Waits { until: now },
            won: None,
            told: None,
            is_doubtful: false,
            is_wordless: false,
        }
    }

    /// What a gate had won before this supervisor, and the lease that it hangs on.
    pub(super) fn adopted(
        lock: String,
        spec: &SingletonSpec,
        node: &str,
        (ticket, lease): (Ticket, Option<LeaseId>),
        now: Moment,
    ) -> Self {
        Self {
            lease,
            key: ticket.key,
            stage: Stage::Stands {
                fence: ticket.fence,
            },
            won: Some(now),
            ..Self::new(lock, spec, node, now)
        }
    }

    pub(super) fn deadline(&self, now: Moment) -> Option<Moment> {
        match self.stage {
            Stage::Leaves {
                call: None, retry, ..
            } => Some(retry),
            // Later it joins when the queue's watch is open.
            Stage::Waits { until } => Some(until).filter(|until| *until > now),
            Stage::Stands { .. } => {
                let stuck = self.won.map(|since| since.after(BEGIN_WITHIN));
                let later = stuck.into_iter().chain(self.gives_way_at());
                later.filter(|at| *at > now).min()
            }
            Stage::Joins(_) | Stage::Leaves { .. } => None,
        }
    }

    /// Its key and its fence, while it stands there.
    pub(super) fn place(&self) -> Option<(&str, i64)> {
        match self.stage {
            Stage::Stands { fence } => Some((&self.key, fence)),
            Stage::Waits { .. } | Stage::Joins(_) | Stage::Leaves { .. } => None,
        }
    }

    pub(super) fn stands_at(&self, key: &str) -> bool {
        self.place().is_some_and(|(ours, _)| ours == key)
    }

    /// Is it what a gate with this ticket means?
    pub(super) fn is_of(&self, ticket: Option<&Ticket>) -> bool {
        match ticket {
            Some(ticket) => self.has_won() && self.stands_at(&ticket.key),
            None => !self.has_won(),
        }
    }

    pub(super) fn won(&mut self, now: Moment) {
        self.won = Some(now);
    }

    pub(super) fn has_won(&self) -> bool {
        self.won.is_some()
    }

    /// Has it been its turn for too long without a beginning?
    pub(super) fn is_stuck(&mut self, has_begun: bool, now: Moment) -> bool {
        match self.won {
            Some(_) if has_begun => {
                self.won = Some(now);
                false
            }
            Some(since) => since.after(BEGIN_WITHIN) <= now,
            None => false,
        }
    }

    pub(super) fn leaves(&self) -> bool {
        matches!(self.stage, Stage::Leaves { .. })
    }

    pub(super) fn joins(&self) -> bool {
        matches!(self.stage, Stage::Joins(_))
    }

    pub(super) fn joins_now(&self, now: Moment) -> bool {
        matches!(self.stage, Stage::Waits { until } if until <= now)
    }

    /// It never stood anywhere, and will not.
    pub(super) fn is_out(&self) -> bool {
        matches!(
            self.stage,
            Stage::Leaves { fence: None, call: None, .. } if self.key.is_empty()
        )
    }

    /// Does somebody better wait for what it has, and has he waited long enough?
    pub(super) fn gives_way(&mut self, better_waits: bool, now: Moment) -> bool {
        if !better_waits {
            self.better_since = None;
            return false;
        }
        let since = *self.better_since.get_or_insert(now);
        let failback = self.preference.failback;
        failback.is_some_and(|delay| since.after(delay) <= now)
    }

    /// When [`Candidate::gives_way`] may say so.
    fn gives_way_at(&self) -> Option<Moment> {
        Some(self.better_since?.after(self.preference.failback?))
    }

    /// Is it news to it that its lease holds, counted from then?
    pub(super) fn hears(&mut self, sent: Clocks) -> bool {
        let news = self.told != Some(sent);
        self.told = Some(sent);
        news
    }

    /// Which locks it is not to be together with on one node, if others can have it.
    pub(super) fn spread(&self) -> Option<&str> {
        self.preference.spread.as_deref()
    }

    /// Is it another one than its card says, now that its node has so many of the group?
    pub(super) fn has_changed(&self, node: &str, has: usize) -> bool {
        self.rank != self.preference.rank(node, has)
    }

    /// The configuration says this now. False if whoever reads its card would believe something else of it.
    pub(super) fn follow(&mut self, spec: &SingletonSpec) -> bool {
        self.delay = Delay::of(spec);
        if self.preference != spec.preference {
            self.preference = spec.preference.clone();
        }
        self.slots == spec.slots
    }

    /// Joins, if it is to, from a node that has so many locks of its group.
    pub(super) fn join(
        &mut self,
        worker: &WorkerId,
        (node, has): (&str, usize),
        (stamp, lease, number): (&When, Granted, u64),
        queue: &Queue,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        if !self.joins_now(desk.now) {
            return;
        }
        if self.key.is_empty() {
            let (When::Modified(_, at) | When::Created(_, at)) = stamp;
            self.key = keys::candidate(&self.lock, lease.id, *at, number);
            self.lease = Some(lease.id);
            self.rank = self.preference.rank(node, has);
        }
        self.said = Some(self.slots);
        let card = Card {
            node: node.to_owned(),
            worker: worker.clone(),
            slots: self.slots,
            rank: self.rank,
            dead_ms: LeaseSpec::dead_after(lease.ttl).as_millis(),
        };
        let key = self.key.clone();
        let put = Do::Put {
            key: key.clone(),
            value: keys::encode(&card),
            lease: Some(lease.id),
        };
        // No lease: it must stay when everybody is gone.
        let last = Do::Put {
            key: keys::last(&self.lock),
            value: keys::encode(&node),
            lease: None,
        };
        let mut then = queue.reads();
        then.extend([put, last, Do::Get(key.clone())]);
        let mut otherwise = queue.reads();
        otherwise.push(Do::Get(key.clone()));
        let txn = Txn {
            when: vec![stamp.clone(), When::Created(key, 0)],
            then,
            otherwise,
        };
        let purpose = Purpose::Join(worker.clone());
        let call = desk.ask(endpoint, Request::Txn(txn), PATIENCE, purpose);
        self.stage = Stage::Joins(call);
    }

    /// It stands there.
    pub(super) fn joined(&mut self, call: CallId, fence: i64) {
        match &mut self.stage {
            Stage::Joins(asked) if *asked == call => self.stage = Stage::Stands { fence },
            // Called off meanwhile.
            Stage::Leaves { fence: known, .. } => *known = Some(fence),
            Stage::Joins(_) | Stage::Waits { .. } | Stage::Stands { .. } => {}
        }
    }

    /// Whether it stands there is not known: it asks again, under the same name.
    pub(super) fn not_joined(&mut self, call: CallId, now: Moment) {
        if self.stage == Stage::Joins(call) {
            let until = now.after(RETRY);
            self.stage = Stage::Waits { until };
            self.is_doubtful = true;
        }
    }

    /// It is not wanted any more. True if something that it asked may still arrive, and make its key when it has been deleted.
    pub(super) fn leave(&mut self, now: Moment) -> bool {
        let fence = match self.stage {
            Stage::Leaves { .. } => return false,
            Stage::Joins(_) => {
                self.is_doubtful = true;
                None
            }
            Stage::Waits { .. } => None,
            Stage::Stands { fence } => Some(fence),
        };
        self.stage = Stage::Leaves {
            fence,
            call: None,
            retry: now,
        };
        self.is_doubtful
    }

    /// Learns from the queue what its card says, if it was not we who wrote it.
    pub(super) fn recall(&mut self, queue: &Queue) {
        if let (None, Some((_, fence))) = (self.said, self.place()) {
            self.said = queue.slots_of(fence);
        }
    }

    /// Deletes its key, and says that nothing was left of its worker if it had its turn.
    pub(super) fn tend_leaving(
        &mut self,
        worker: &WorkerId,
        node: &str,
        stamp: Option<&When>,
        endpoint: usize,
        desk: &mut Desk<'_>,
    ) {
        let Stage::Leaves { fence, call, retry } = &mut self.stage else {
            return;
        };
        if call.is_some() || *retry > desk.now {
            return;
        }
        let key = self.key.clone();
        let mut then = vec![Do::Delete(key.clone())];
        let when = match fence {
            Some(fence) => {
                let released = Released {
                    fence: *fence,
                    node: node.to_owned(),
                    slots: self.said.unwrap_or(0),
                };
                // Whoever had no turn proves nothing about those before him, and leaves nothing himself.
                let word = match self.won {
                    Some(_) => keys::released(&self.lock),
                    None => keys::passed(&self.lock),
                };
                if !self.is_wordless {
                    then.push(Do::Put {
                        key: word,
                        value: keys::encode(&released),
                        lease: None,
                    });
                }
                vec![When::Created(key, *fence)]
            }
            None => stamped(stamp),
        };
        let txn = Txn {
            when,
            then,
            otherwise: Vec::new(),
        };
        let purpose = Purpose::Leave(worker.clone());
        *call = Some(desk.ask(endpoint, Request::Txn(txn), PATIENCE, purpose));
    }

    /// An answer: is it out?
    pub(super) fn left(
        &mut self,
        answered: CallId,
        result: Result<Reply, Failure>,
        now: Moment,
    ) -> bool {
        let Stage::Leaves { call, retry, fence } = &mut self.stage else {
            return false;
        };
        if *call != Some(answered) {
            return false;
        }
        *call = None;
        *retry = now.after(RETRY);
        match result {
            Ok(Reply {
                body: Body::Txn { held, .. },
                ..
            }) => held || fence.is_some(),
            // Its disk is full: the key goes, the word that nothing was left does not.
            Err(Failure::NoSpace) => {
                self.is_wordless = true;
                false
            }
            Ok(_) | Err(_) => false,
        }
    }
}
