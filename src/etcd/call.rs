//! One question and its answer.

use std::{sync::Arc, time::Duration};

use tokio::time::timeout;

use super::{
    HandIn,
    fault::Fault,
    line::Line,
    link::{Link, UnderWay},
    words,
};
use crate::{
    engine::cluster::rpc::{Call, CallId, Failure, News, Reply, Request},
    time::Clocks,
};

/// So large an answer is read; etcd itself takes no larger request than 1.5 MiB, but lists and watched revisions may be larger.
pub(super) const ANSWER_MAX: usize = 64 << 20;

/// The one answer that a call has. Whoever drops it has answered.
pub(super) struct Answer {
    call: CallId,
    sent: Clocks,
    hand_in: Option<HandIn>,
}

impl Answer {
    pub(super) fn new(call: CallId, sent: Clocks, hand_in: HandIn) -> Self {
        Self {
            call,
            sent,
            hand_in: Some(hand_in),
        }
    }

    pub(super) fn give(mut self, result: Result<Reply, Failure>) {
        self.hand_in(result);
    }

    fn hand_in(&mut self, result: Result<Reply, Failure>) {
        if let Some(hand_in) = self.hand_in.take() {
            hand_in(News::Answered {
                call: self.call,
                sent: self.sent,
                result,
            });
        }
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        self.hand_in(Err(Failure::Unreachable("asking was given up".to_owned())));
    }
}

/// Asks, and answers within the limit.
pub(super) async fn carry(line: Arc<Line>, call: Call, mut answer: Answer) {
    let mut way = UnderWay::new();
    let limit = Duration::from(call.within);
    let result = match timeout(limit, ask(&line, &call.request, &mut way)).await {
        Ok(result) => result,
        Err(_) => {
            line.had_no_answer(&way);
            Err(Failure::Unanswered(call.within))
        }
    };
    answer.sent = way.sent;
    answer.give(result);
}

/// Once, and once more on another connection where the first one was gone before anything was sent, or its token was.
async fn ask(line: &Line, request: &Request, way: &mut UnderWay) -> Result<Reply, Failure> {
    let mut again = true;
    loop {
        let (link, result) = match request {
            Request::KeepAlive(lease) => line.keep_alive(*lease, way).await?,
            _ => {
                let link = line.link().await.map_err(|fault| fault.failure)?;
                let result = unary(&link, request, way).await;
                (link, result)
            }
        };
        let fault = match result {
            Ok(reply) => {
                link.was_heard();
                return Ok(reply);
            }
            Err(fault) => fault,
        };
        if !(line.blame(&link, &fault) && again) {
            return Err(line.why(&link, fault));
        }
        again = false;
    }
}

async fn unary(link: &Arc<Link>, request: &Request, way: &mut UnderWay) -> Result<Reply, Fault> {
    if let Request::Status = request {
        return status(link, way).await;
    }
    let client = way.sets_out_as_ourselves(link).await?;
    let mut lease = client.lease_client();
    let reply = match request {
        Request::Grant { ttl } => words::granted(&lease.grant(*ttl, None).await?),
        Request::Revoke(id) => words::revoked(&lease.revoke(id.0).await?),
        Request::LeaseKeys(id) => {
            let options = etcd_client::LeaseTimeToLiveOptions::new().with_keys();
            words::lease_keys(&lease.time_to_live(id.0, Some(options)).await?)
        }
        Request::Txn(txn) => {
            let kv = client.kv_client();
            let mut kv = kv.max_decoding_message_size(ANSWER_MAX);
            words::txn_done(&kv.txn(words::txn(txn)).await?)
        }
        Request::Status | Request::KeepAlive(_) => {
            Err(Failure::Refused("that is asked in another way".to_owned()))
        }
    };
    reply.map_err(Fault::said)
}

/// Of a member without a leader, too, and without a name; it says of itself which alarms it knows. To ask the cluster for its alarms, or to be
/// let in, would need a quorum.
async fn status(link: &Arc<Link>, way: &mut UnderWay) -> Result<Reply, Fault> {
    way.sets_out(link);
    let fault = match link.bare.maintenance_client().status().await {
        Ok(status) => return words::status(&status).map_err(Fault::said),
        Err(error) => Fault::from(error),
    };
    if !matches!(fault.failure, Failure::Denied(_)) {
        return Err(fault);
    }
    let client = way.sets_out_as_ourselves(link).await?;
    let status = client.maintenance_client().status().await?;
    words::status(&status).map_err(Fault::said)
}

#[cfg(test)]
mod tests {
    use std::sync::{Mutex, PoisonError};

    use super::*;

    #[test]
    fn whoever_drops_an_answer_has_answered_and_nobody_answers_twice() {
        let heard: Arc<Mutex<Vec<News>>> = Arc::default();
        let all = Arc::clone(&heard);
        let hand_in: HandIn = Arc::new(move |news| {
            all.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(news);
        });
        let answer = |id| Answer::new(CallId(id), Clocks::default(), Arc::clone(&hand_in));
        answer(1).give(Err(Failure::NoSpace));
        drop(answer(2));
        let third = answer(3);
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _third = third;
            std::panic::resume_unwind(Box::new("as a task would"));
        }));
        assert!(panicked.is_err());
        let given_up = Failure::Unreachable("asking was given up".to_owned());
        let expected = [(1, Failure::NoSpace), (2, given_up.clone()), (3, given_up)];
        let expected = expected.map(|(id, failure)| News::Answered {
            call: CallId(id),
            sent: Clocks::default(),
            result: Err(failure),
        });
        assert_eq!(*heard.lock().unwrap(), expected);
    }
}
