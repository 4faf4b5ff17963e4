//! What operators ask of the cluster, on whichever node they are: to move a lock, to see all of it.

use crate::{
    engine::{
        cluster::{
            Cluster,
            calls::{Desk, Purpose},
            keys,
            queue::Queue,
            read_of,
            rpc::{Do, Failure, Order, Reply, Request, Txn, When},
            session::PATIENCE,
            survey::{self, ClusterPicture},
        },
        command,
    },
    id::RequestId,
    time::{Moment, Span},
};

/// All endpoints are asked within that, one after the other.
const SURVEY: Span = Span::secs(4);

/// What somebody is told who asked.
pub(in crate::engine) type Told = Result<command::Reply, String>;

impl Cluster {
    /// An operator wants a lock elsewhere. An error is for people; otherwise the answer comes by [`Cluster::replies`].
    pub(in crate::engine) fn wish(
        &mut self,
        request: RequestId,
        (lock, to): (&str, Option<&str>),
        who: &str,
        now: Moment,
        out: &mut Vec<Order>,
    ) -> Result<(), String> {
        let lock = self.prefix.lock(lock);
        let line = self.queues.get(&lock).and_then(Queue::line);
        let line =
            line.ok_or_else(|| format!("its queue is not known here: {}", self.why_out()))?;
        let (fence, key) = line.to_move(to)?;
        let of = line.name_of(fence);
        let wish = keys::Wish {
            fence,
            to: to.map(str::to_owned),
            who: who.to_owned(),
        };
        let txn = Txn {
            when: vec![When::Created(key, fence)],
            then: vec![Do::Put {
                key: keys::wish(&lock),
                value: keys::encode(&wish),
                lease: None,
            }],
            otherwise: Vec::new(),
        };
        let endpoint = self.session.favourite();
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        let purpose = Purpose::Wish(request, of);
        desk.ask(endpoint, Request::Txn(txn), PATIENCE, purpose);
        Ok(())
    }

    pub(super) fn wished(
        &mut self,
        (request, of): (RequestId, String),
        result: Result<Reply, Failure>,
    ) {
        let told = match read_of(result) {
            Ok((_, true, _)) => Ok(command::Reply::Begun { names: vec![of] }),
            Ok((_, false, _)) => Err(format!("{of} has just left: look again")),
            Err(why) => Err(format!("etcd was asked in vain: {why}")),
        };
        self.replies.push((request, told));
    }

    /// Somebody wants to see all of it; the answer comes by [`Cluster::replies`].
    pub(in crate::engine) fn survey(
        &mut self,
        request: RequestId,
        now: Moment,
        out: &mut Vec<Order>,
    ) {
        let left = self.membership.endpoints - 1;
        self.ask_for_survey((request, left), self.session.favourite(), now, out);
    }

    fn ask_for_survey(
        &mut self,
        (request, left): (RequestId, usize),
        endpoint: usize,
        now: Moment,
        out: &mut Vec<Order>,
    ) {
        let within =
            Span::nanos(SURVEY.as_nanos() / self.membership.endpoints as u64).min(PATIENCE);
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        let purpose = Purpose::Survey(request, left);
        desk.ask(endpoint, survey::question(&self.prefix), within, purpose);
    }

    /// Whoever does not answer may have a neighbour who does.
    pub(super) fn surveyed(
        &mut self,
        (request, left): (RequestId, usize),
        endpoint: usize,
        result: Result<Reply, Failure>,
        now: Moment,
        out: &mut Vec<Order>,
    ) {
        let picture = |(from, _, read): super::Read| -> Option<ClusterPicture> {
            survey::picture(&self.prefix, from.revision, read)
        };
        let told = match read_of(result) {
            Err(_) if left > 0 => {
                let next = (endpoint + 1) % self.membership.endpoints;
                return self.ask_for_survey((request, left - 1), next, now, out);
            }
            Err(why) => Err(format!("etcd was asked in vain: {why}")),
            Ok(read) => picture(read)
                .map(|one| command::Reply::Cluster(Box::new(one)))
                .ok_or_else(|| "etcd answered another question".to_owned()),
        };
        self.replies.push((request, told));
    }

    /// A node will not come back; what it may have of a lease is not touched.
    pub(in crate::engine) fn forget(
        &mut self,
        request: RequestId,
        node: &str,
        now: Moment,
        out: &mut Vec<Order>,
    ) {
        let txn = Txn {
            when: vec![When::Created(self.prefix.node(node), 0)],
            then: vec![
                Do::Get(self.prefix.card(node)),
                Do::Delete(self.prefix.card(node)),
            ],
            otherwise: Vec::new(),
        };
        let endpoint = self.session.favourite();
        let calls = &mut self.calls;
        let mut desk = Desk { now, calls, out };
        let purpose = Purpose::Forget(request, node.to_owned());
        desk.ask(endpoint, Request::Txn(txn), PATIENCE, purpose);
    }

    pub(super) fn forgotten(
        &mut self,
        (request, node): (RequestId, String),
        result: Result<Reply, Failure>,
    ) {
        let told = match read_of(result) {
            Ok((_, true, read)) if read.iter().all(Vec::is_empty) => {
                Err(format!("no node {node} is known"))
            }
            Ok((_, true, _)) => Ok(command::Reply::Begun { names: vec![node] }),
            Ok((_, false, _)) => Err(format!("node {node} is there: it has a lease")),
            Err(why) => Err(format!("etcd was asked in vain: {why}")),
        };
        self.replies.push((request, told));
    }

    pub(in crate::engine) fn replies(&mut self) -> Vec<(RequestId, Told)> {
        std::mem::take(&mut self.replies)
    }
}
