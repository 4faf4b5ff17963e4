//! Our vocabulary to etcd's, and etcd's to ours.

use etcd_client as etcd;

use crate::engine::cluster::rpc::{
    Body, Change, Do, Failure, Header, Health, KeyValue, LeaseId, Reply, Txn, When,
};

pub(super) fn txn(txn: &Txn) -> etcd::Txn {
    let when = |when: &When| match when {
        When::Created(key, at) => {
            etcd::Compare::create_revision(key.as_str(), etcd::CompareOp::Equal, *at)
        }
        When::Modified(key, at) => {
            etcd::Compare::mod_revision(key.as_str(), etcd::CompareOp::Equal, *at)
        }
    };
    let all = |what: &[Do]| what.iter().map(operation).collect::<Vec<_>>();
    etcd::Txn::new()
        .when(txn.when.iter().map(when).collect::<Vec<_>>())
        .and_then(all(&txn.then))
        .or_else(all(&txn.otherwise))
}

fn operation(what: &Do) -> etcd::TxnOp {
    match what {
        Do::Get(key) => etcd::TxnOp::get(key.as_str(), None),
        Do::List(prefix) => {
            let options = etcd::GetOptions::new().with_prefix();
            etcd::TxnOp::get(prefix.as_str(), Some(options))
        }
        Do::Put { key, value, lease } => {
            let options = lease.map(|lease| etcd::PutOptions::new().with_lease(lease.0));
            etcd::TxnOp::put(key.as_str(), value.as_str(), options)
        }
        Do::Delete(key) => etcd::TxnOp::delete(key.as_str(), None),
    }
}

pub(super) fn header(header: &etcd::ResponseHeader) -> Header {
    Header {
        cluster: header.cluster_id(),
        member: header.member_id(),
        revision: header.revision(),
        term: header.raft_term(),
    }
}

/// An answer of nobody is none.
fn reply(from: Option<&etcd::ResponseHeader>, body: Body) -> Result<Reply, Failure> {
    let nobody = || Failure::Unreachable("the answer does not say whose it is".to_owned());
    let from = from.map(header).ok_or_else(nobody)?;
    Ok(Reply { from, body })
}

pub(super) fn status(status: &etcd::StatusResponse) -> Result<Reply, Failure> {
    let health = Health {
        version: status.version().to_owned(),
        has_leader: status.leader() != 0,
        alarms: alarms(status.errors()),
    };
    reply(status.header(), Body::Status(health))
}

/// `memberID:8211f1d0f64f3269 alarm:NOSPACE `: once for each member that raised it.
fn alarms(errors: &[String]) -> Vec<String> {
    let name = |error: &String| {
        let name = error.split("alarm:").nth(1)?.split_whitespace().next()?;
        Some(name.to_owned())
    };
    let mut names: Vec<String> = errors.iter().filter_map(name).collect();
    names.sort();
    names.dedup();
    names
}

pub(super) fn granted(granted: &etcd::LeaseGrantResponse) -> Result<Reply, Failure> {
    if !granted.error().is_empty() {
        return Err(Failure::Refused(granted.error().to_owned()));
    }
    let body = Body::Granted {
        lease: LeaseId(granted.id()),
        ttl: granted.ttl(),
    };
    reply(granted.header(), body)
}

pub(super) fn alive(alive: &etcd::LeaseKeepAliveResponse) -> Result<Reply, Failure> {
    reply(alive.header(), Body::Alive { ttl: alive.ttl() })
}

/// Of a lease that a renewal did not find: who says so is all that is new in it.
pub(super) fn gone(keys: &etcd::LeaseTimeToLiveResponse) -> Result<Reply, Failure> {
    reply(keys.header(), Body::Alive { ttl: 0 })
}

pub(super) fn revoked(revoked: &etcd::LeaseRevokeResponse) -> Result<Reply, Failure> {
    reply(revoked.header(), Body::Revoked)
}

pub(super) fn lease_keys(keys: &etcd::LeaseTimeToLiveResponse) -> Result<Reply, Failure> {
    let body = Body::LeaseKeys {
        ttl: keys.ttl(),
        keys: keys.keys().iter().map(|key| text(key)).collect(),
    };
    reply(keys.header(), body)
}

pub(super) fn txn_done(done: &etcd::TxnResponse) -> Result<Reply, Failure> {
    let read = |answer: etcd::TxnOpResponse| match answer {
        etcd::TxnOpResponse::Get(got) => Some(got.kvs().iter().map(key_value).collect()),
        etcd::TxnOpResponse::Put(_)
        | etcd::TxnOpResponse::Delete(_)
        | etcd::TxnOpResponse::Txn(_) => None,
    };
    let body = Body::Txn {
        held: done.succeeded(),
        read: done.op_responses().into_iter().filter_map(read).collect(),
    };
    reply(done.header(), body)
}

/// What a watch saw, a revision at a time: etcd sends a revision whole, but may send several at once.
pub(super) fn changes(told: &etcd::WatchResponse) -> Vec<(i64, Vec<Change>)> {
    let revision = |event: &etcd::Event| event.kv().map_or(0, etcd::KeyValue::mod_revision);
    let same = |one: &etcd::Event, next: &etcd::Event| revision(one) == revision(next);
    let of_one = |events: &[etcd::Event]| {
        let changes = events.iter().filter_map(change).collect();
        (events.first().map_or(0, revision), changes)
    };
    told.events().chunk_by(same).map(of_one).collect()
}

fn change(event: &etcd::Event) -> Option<Change> {
    let kv = event.kv()?;
    Some(match event.event_type() {
        etcd::EventType::Put => Change::Put(key_value(kv)),
        etcd::EventType::Delete => Change::Deleted {
            key: text(kv.key()),
            revision: kv.mod_revision(),
        },
    })
}

fn key_value(kv: &etcd::KeyValue) -> KeyValue {
    KeyValue {
        key: text(kv.key()),
        value: text(kv.value()),
        created: kv.create_revision(),
        modified: kv.mod_revision(),
        lease: (kv.lease() != 0).then(|| LeaseId(kv.lease())),
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn alarms_are_read_from_a_status() {
        let errors = [
            "etcdserver: no leader",
            "memberID:10501334649042878790 alarm:NOSPACE ",
            "memberID:10501334649042878791 alarm:NOSPACE ",
            "memberID:10501334649042878791 alarm:CORRUPT ",
        ];
        let errors = errors.map(str::to_owned);
        assert_eq!(alarms(&errors), ["CORRUPT", "NOSPACE"]);
        assert!(alarms(&errors[..1]).is_empty());
    }
}
