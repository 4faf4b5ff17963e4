//! The whole cluster at one revision, as people and programs see it from any node.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::{
    engine::cluster::{
        keys::{self, Card, KnownCard, NodeCard, Prefix, Released, RunCard},
        rpc::{Do, KeyValue, Request, Txn},
    },
    time::Stamp,
};

/// All of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterPicture {
    /// Of etcd, at which it was so.
    pub revision: i64,
    /// By name.
    pub nodes: Vec<NodePicture>,
    /// By name: those that somebody has, waits for, or had.
    pub locks: Vec<LockPicture>,
    /// Of the cluster's jobs, by name and tick.
    #[serde(default)]
    pub runs: Vec<RunPicture>,
}

/// A run of a job.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunPicture {
    /// Of which job.
    pub job: String,
    /// Its tick, or when it was asked for.
    pub scheduled: Stamp,
    /// On which node.
    pub node: String,
    /// By that node's clock.
    pub started: Stamp,
    /// Likewise.
    pub ended: Option<Stamp>,
    /// As in a job's history; `running` before its end, and `lost` if its node is gone.
    pub outcome: String,
    /// In a few words.
    pub reason: Option<String>,
}

/// A node that is there, or was.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodePicture {
    /// Its name.
    pub name: String,
    /// Has it a lease?
    pub present: bool,
    /// Of leasehold, if it could be read.
    pub version: Option<String>,
    /// There since, by its own clock.
    pub since: Option<Stamp>,
    /// Missed since, by the clock of whoever missed it first.
    pub gone: Option<Stamp>,
    /// Who keeps it empty.
    pub drained: Option<String>,
}

/// A lock.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockPicture {
    /// Its name.
    pub name: String,
    /// So many may have it at once.
    pub slots: u32,
    /// Those whose turn it is; whoever is new among them may still be waiting for what is left of another one.
    pub holders: Vec<PlacePicture>,
    /// Those who wait, in their order.
    pub waiting: Vec<PlacePicture>,
    /// Who gave it back last, and with which fence.
    pub released: Option<ReleasedPicture>,
}

/// Somebody in a queue.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlacePicture {
    /// On which node; none: what stands there cannot be read.
    pub node: Option<String>,
    /// For which worker.
    pub worker: Option<String>,
    /// The revision that put it there.
    pub fence: i64,
}

/// Who gave a lock back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReleasedPicture {
    /// On which node.
    pub node: String,
    /// His.
    pub fence: i64,
}

/// What is asked.
pub(super) fn question(prefix: &Prefix) -> Request {
    let all = [
        prefix.nodes(),
        prefix.cards(),
        prefix.locks(),
        prefix.runs(),
    ];
    Request::Txn(Txn::read(all.map(Do::List).to_vec()))
}

/// What the answer says; none if it is the answer to another question.
pub(super) fn picture(
    prefix: &Prefix,
    revision: i64,
    read: Vec<Vec<KeyValue>>,
) -> Option<ClusterPicture> {
    let [nodes, cards, locks, runs] = <[_; 4]>::try_from(read).ok()?;
    Some(ClusterPicture {
        revision,
        runs: all_runs(prefix, &runs, &nodes),
        nodes: all_nodes(prefix, &nodes, &cards),
        locks: all_locks(prefix, locks),
    })
}

fn all_nodes(prefix: &Prefix, nodes: &[KeyValue], cards: &[KeyValue]) -> Vec<NodePicture> {
    let known = cards.iter().filter_map(|kv| {
        let name = prefix.card_of(&kv.key)?;
        let card: KnownCard = keys::decode(&kv.value)?;
        let picture = NodePicture {
            name: name.to_owned(),
            present: false,
            version: Some(card.version),
            since: Some(card.since),
            gone: card.gone,
            drained: card.drained,
        };
        Some((name.to_owned(), picture))
    });
    let mut all: BTreeMap<String, NodePicture> = known.collect();
    for kv in nodes {
        let Some(name) = prefix.node_of(&kv.key) else {
            continue;
        };
        let version = keys::decode::<NodeCard>(&kv.value).map(|card| card.version);
        let node = all.entry(name.to_owned()).or_insert_with(|| NodePicture {
            name: name.to_owned(),
            present: true,
            version: None,
            since: None,
            gone: None,
            drained: None,
        });
        (node.present, node.gone) = (true, None);
        node.version = version.or(node.version.take());
    }
    all.into_values().collect()
}

fn all_runs(prefix: &Prefix, runs: &[KeyValue], nodes: &[KeyValue]) -> Vec<RunPicture> {
    let present = keys::present(prefix, nodes);
    let run = |kv: &KeyValue| {
        let (job, scheduled) = prefix.tick_of(&kv.key)?;
        let card: RunCard = keys::decode(&kv.value)?;
        let unknown = match present.contains(&(card.node.as_str(), card.identity.clone())) {
            true => "running",
            false => "lost",
        };
        Some(RunPicture {
            job: job.to_string(),
            scheduled,
            started: card.started,
            ended: card.ended,
            outcome: card.outcome.unwrap_or_else(|| unknown.to_owned()),
            reason: card.reason,
            node: card.node,
        })
    };
    runs.iter().filter_map(run).collect()
}

fn all_locks(prefix: &Prefix, locks: Vec<KeyValue>) -> Vec<LockPicture> {
    let mut by_name: BTreeMap<String, (Vec<KeyValue>, Option<Released>)> = BTreeMap::new();
    for kv in locks {
        let Some((name, what)) = prefix.lock_of(&kv.key) else {
            continue;
        };
        let lock = by_name.entry(name.to_owned()).or_default();
        if what.starts_with("q/") {
            lock.0.push(kv);
        } else if what == "rel" {
            lock.1 = keys::decode(&kv.value);
        }
    }
    let lock = |(name, (mut queue, released)): (String, (Vec<KeyValue>, Option<Released>))| {
        queue.sort_by_key(|kv| kv.created);
        let cards: Vec<Option<Card>> = queue.iter().map(|kv| keys::decode(&kv.value)).collect();
        let said = cards.iter().flatten().map(|card| card.slots);
        // As those who stand there count it.
        let slots = said.min().unwrap_or(1);
        let places = queue.iter().zip(cards).map(|(kv, card)| PlacePicture {
            node: card.as_ref().map(|card| card.node.clone()),
            worker: card.map(|card| card.worker.to_string()),
            fence: kv.created,
        });
        let mut holders: Vec<PlacePicture> = places.collect();
        let waiting = holders.split_off(holders.len().min(slots as usize));
        LockPicture {
            name,
            slots,
            holders,
            waiting,
            released: released.map(|one| ReleasedPicture {
                node: one.node,
                fence: one.fence,
            }),
        }
    };
    by_name.into_iter().map(lock).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kv(key: &str, value: &str, created: i64) -> KeyValue {
        KeyValue {
            key: format!("/leasehold/v1/c/{key}"),
            value: value.to_owned(),
            created,
            modified: created,
            lease: None,
        }
    }

    #[test]
    fn absent_nodes_and_queues_are_told() {
        let prefix = Prefix::new("c");
        let card = r#"{"session":3,"version":"1.0","since":"2026-01-02T03:04:05Z","gone":"2026-01-02T04:04:05Z"}"#;
        let place = |node: &str| {
            format!(r#"{{"node":"{node}","worker":{{"fleet":"billing","slot":0}},"slots":1}}"#)
        };
        let run = |node: &str| {
            format!(
                r#"{{"node":"{node}","identity":"i","started":"2026-01-02T03:05:01Z","through":"2026-01-02T03:05:59.999Z"}}"#
            )
        };
        let read = vec![
            vec![kv(
                "n/a",
                r#"{"identity":"i","run":"r","version":"1.1"}"#,
                7,
            )],
            vec![
                kv("k/a", card, 4),
                kv("k/b", card, 5),
                kv("k/strange", "", 6),
            ],
            vec![
                kv("s/billing/last", "a", 9),
                kv("s/billing/q/1.1.1", &place("b"), 9),
                kv("s/billing/q/2.1.1", &place("a"), 8),
                kv("s/billing/q/3.1.1", "?", 10),
                kv("s/billing/rel", r#"{"fence":6,"node":"b"}"#, 7),
            ],
            vec![
                kv("c/report/2026-01-02T03:04:00.000Z", &run("a"), 5),
                kv("c/report/2026-01-02T03:05:00.000Z", &run("b"), 6),
            ],
        ];
        let picture = picture(&prefix, 11, read).unwrap();
        let [a, b] = &picture.nodes[..] else {
            panic!("{picture:?}")
        };
        assert!(a.present && a.gone.is_none() && a.version.as_deref() == Some("1.1"));
        assert!(!b.present && b.gone.is_some());
        let lock = &picture.locks[0];
        assert_eq!((lock.name.as_str(), lock.slots), ("billing", 1));
        assert_eq!(lock.holders[0].node.as_deref(), Some("a"));
        let waiting: Vec<i64> = lock.waiting.iter().map(|one| one.fence).collect();
        assert_eq!(waiting, [9, 10]);
        assert_eq!(lock.released.as_ref().unwrap().fence, 6);
        let outcomes = picture.runs.iter().map(|run| run.outcome.as_str());
        assert_eq!(outcomes.collect::<Vec<_>>(), ["running", "lost"]);
    }
}
