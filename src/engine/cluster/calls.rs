//! Requests that are under way, and what for.

use std::collections::BTreeMap;

use crate::{
    engine::cluster::rpc::{Call, CallId, Order, Request},
    id::{RequestId, WorkerId},
    time::{Moment, Span},
};

/// What an answer is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A step of the session, or of one of its renewals.
    Session,
    /// Somebody joins a queue.
    Join(WorkerId),
    /// Somebody leaves it.
    Leave(WorkerId),
    /// All of a lock's queue.
    List(String),
    /// What hangs on our lease.
    Inventory,
    /// The removal of what nobody knows there.
    Sweep,
    /// Somebody wants a lock moved.
    Wish(RequestId, String),
    /// Something of the records, or of the lease that they hang on.
    Register,
    /// Who belongs to the cluster.
    Census,
    /// Runs of jobs.
    Docket,
    /// How an endpoint is.
    Health,
    /// Somebody wants a node forgotten.
    Forget(RequestId, String),
    /// Somebody wants to see all of the cluster; so many endpoints are left to be asked.
    Survey(RequestId, usize),
}

/// A request that is under way.
#[derive(Clone, Debug)]
pub(super) struct Under {
    pub(super) purpose: Purpose,
    /// Its kind.
    pub(super) op: &'static str,
    pub(super) endpoint: usize,
}

/// What is under way.
#[derive(Clone, Debug, Default)]
pub(super) struct Calls {
    last: u64,
    open: BTreeMap<CallId, Under>,
}

impl Calls {
    pub(super) fn after(last: u64) -> Self {
        Self {
            last,
            ..Self::default()
        }
    }

    pub(super) fn last(&self) -> u64 {
        self.last
    }

    pub(super) fn id(&mut self) -> CallId {
        self.last += 1;
        CallId(self.last)
    }

    /// An answer has come: what for? None if nobody waits for it any more.
    pub(super) fn take(&mut self, id: CallId) -> Option<Under> {
        self.open.remove(&id)
    }

    /// The session is over: whatever comes is for nobody, but for what hangs on another lease, or was asked by people.
    pub(super) fn forget_session(&mut self) {
        self.open.retain(|_, under| {
            matches!(
                under.purpose,
                Purpose::Register
                    | Purpose::Health
                    | Purpose::Wish(..)
                    | Purpose::Forget(..)
                    | Purpose::Survey(..)
            )
        });
    }
}

/// What whoever asks has at hand.
pub(super) struct Desk<'a> {
    pub(super) now: Moment,
    pub(super) calls: &'a mut Calls,
    pub(super) out: &'a mut Vec<Order>,
}

impl Desk<'_> {
    pub(super) fn ask(
        &mut self,
        endpoint: usize,
        request: Request,
        within: Span,
        purpose: Purpose,
    ) -> CallId {
        let id = self.calls.id();
        let under = Under {
            purpose,
            op: request.word(),
            endpoint,
        };
        self.calls.open.insert(id, under);
        self.out.push(Order::Call(Call {
            id,
            endpoint,
            request,
            within,
        }));
        id
    }

    pub(super) fn watch(&mut self, endpoint: usize, prefix: String, within: Span) -> CallId {
        let id = self.calls.id();
        self.out.push(Order::Watch {
            id,
            endpoint,
            prefix,
            within,
        });
        id
    }

    pub(super) fn unwatch(&mut self, id: CallId) {
        self.out.push(Order::Unwatch(id));
    }
}
