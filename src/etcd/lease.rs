//! Renewals. etcd answers them on a stream, in order and without a number, so at most one is under way on a stream, and a stream on which
//! one had no answer is thrown away: its answer may come late, but then nobody hears it.
//!
//! The future that renews *owns* the stream meanwhile. Whatever drops it, a limit that has passed most of all, throws the stream away.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use etcd_client::{Error, LeaseKeepAliveStream, LeaseKeeper};
use tokio::sync;

use super::{
    fault::Fault,
    line::Line,
    link::{Link, UnderWay},
    words,
};
use crate::{
    engine::cluster::rpc::{Failure, LeaseId, Reply},
    sys::clock,
    time::{Moment, Span},
};

/// Streams that nobody uses are closed after so long, when somebody renews another lease.
const IDLE: Span = Span::secs(60);

/// What the streams are that wait for their next renewal.
#[derive(Default)]
pub(super) struct Keepers(Mutex<BTreeMap<LeaseId, Place>>);

struct Place {
    keeper: Arc<sync::Mutex<Option<Keeper>>>,
    used: Moment,
}

/// A stream, and nothing is under way on it.
struct Keeper {
    on: Arc<Link>,
    send: LeaseKeeper,
    hear: LeaseKeepAliveStream,
}

impl Keepers {
    fn place(&self, lease: LeaseId) -> Arc<sync::Mutex<Option<Keeper>>> {
        let now = clock::now();
        let mut places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|_, place| {
            Arc::strong_count(&place.keeper) > 1 || now.since(place.used) < IDLE
        });
        let fresh = || Place {
            keeper: Arc::default(),
            used: now,
        };
        let place = places.entry(lease).or_insert_with(fresh);
        place.used = now;
        Arc::clone(&place.keeper)
    }

    /// No stream that waits keeps this connection open. (One with a renewal under way is looked at by whoever renews next.)
    pub(super) fn give_up(&self, link: &Arc<Link>) {
        let places = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for place in places.values() {
            if let Ok(mut keeper) = place.keeper.try_lock() {
                keeper.take_if(|keeper| Arc::ptr_eq(&keeper.on, link));
            }
        }
    }
}

impl Line {
    /// Renews. Whoever renews the same lease waits for its turn, no longer than for its own limit.
    pub(super) async fn keep_alive(
        &self,
        lease: LeaseId,
        way: &mut UnderWay,
    ) -> Result<(Arc<Link>, Result<Reply, Fault>), Failure> {
        let place = self.keepers.place(lease);
        let mut place = place.lock().await;
        if let Some(keeper) = place.take().filter(|keeper| self.is_current(&keeper.on)) {
            let link = Arc::clone(&keeper.on);
            // It may have ended since: a renewal may be sent twice.
            if let Ok((reply, keeper)) = renew(lease, keeper, way).await {
                *place = keeper;
                return Ok((link, Ok(reply)));
            }
        }
        let link = self.link().await.map_err(|fault| fault.failure)?;
        let reply = match open(lease, &link, way).await {
            Ok(Opened::Gone(reply)) => Ok(reply),
            Ok(Opened::Stream(keeper)) => renew(lease, keeper, way).await.map(|(reply, keeper)| {
                *place = keeper;
                reply
            }),
            Err(fault) => Err(fault),
        };
        Ok((link, reply))
    }
}

/// What opening a stream comes to.
enum Opened {
    Stream(Keeper),
    /// There is no such lease.
    Gone(Reply),
}

/// The crate sends one renewal by itself and keeps its answer, term and all, to itself; so the one that counts is the next.
async fn open(lease: LeaseId, link: &Arc<Link>, way: &mut UnderWay) -> Result<Opened, Fault> {
    let mut client = way.sets_out_as_ourselves(link).await?.lease_client();
    match client.keep_alive(lease.0).await {
        Ok((send, hear)) => {
            link.was_heard();
            Ok(Opened::Stream(Keeper {
                on: Arc::clone(link),
                send,
                hear,
            }))
        }
        Err(Error::LeaseKeepAliveError(_)) => {
            link.was_heard();
            // Nor is told who says so.
            let keys = client.time_to_live(lease.0, None).await?;
            words::gone(&keys).map(Opened::Gone).map_err(Fault::said)
        }
        Err(error) => Err(error.into()),
    }
}

async fn renew(
    lease: LeaseId,
    mut keeper: Keeper,
    way: &mut UnderWay,
) -> Result<(Reply, Option<Keeper>), Fault> {
    way.sets_out(&keeper.on);
    keeper.send.keep_alive().await?;
    let Some(answer) = keeper.hear.message().await? else {
        return Err(Fault::broken("the stream of renewals ended"));
    };
    if answer.id() != lease.0 {
        return Err(Fault::broken("another lease was renewed"));
    }
    let reply = words::alive(&answer).map_err(Fault::said)?;
    let goes_on = answer.ttl() > 0;
    Ok((reply, goes_on.then_some(keeper)))
}
