//! Where things are in etcd, and how they are written. Everything of one cluster lies below one prefix, so that a role with readwrite on
//! it is all that a node needs.
//!
//! ```text
//! /leasehold/v1/CLUSTER/n/NODE                   who has this name, with his lease
//! /leasehold/v1/CLUSTER/k/NODE                   that there is such a node, and since when it is there or was missed
//! /leasehold/v1/CLUSTER/c/JOB/had                which ticks were decided upon, and are forgotten
//! /leasehold/v1/CLUSTER/c/JOB/TICK               whose the run of this tick of a job is, and what became of it
//! /leasehold/v1/CLUSTER/e/FLEET/NODE[/SLOT]       where work can be sent, with the lease of that node's records
//! /leasehold/v1/CLUSTER/p/NODE                   which lease that is
//! /leasehold/v1/CLUSTER/cap/FLEET/I               whose this unit of `cluster_max` is, with that lease
//! /leasehold/v1/CLUSTER/a/FLEET                  what was written for it without a lease, as a map from keys to values
//! /leasehold/v1/CLUSTER/s/LOCK/q/LEASE.STAMP.N   somebody in the queue of a lock, with his lease; the revision that created it is his fence
//! /leasehold/v1/CLUSTER/s/LOCK/last              written by everybody who joins: when, is the highest fence that was ever given
//! /leasehold/v1/CLUSTER/s/LOCK/rel               the last holder who gave it back after the end of his worker
//! /leasehold/v1/CLUSTER/s/LOCK/pass              somebody who left the queue without ever having had his turn
//! /leasehold/v1/CLUSTER/s/LOCK/move              that an operator wants it moved: from whom, and to whom
//! ```

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        book::Had,
        cluster::rpc::{KeyValue, LeaseId},
    },
    id::{FleetName, WorkerId},
    time::Stamp,
};

/// The part of etcd that is one cluster's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Prefix(String);

impl Prefix {
    pub(super) fn new(cluster: &str) -> Self {
        Self(format!("/leasehold/v1/{cluster}/"))
    }

    pub(super) fn node(&self, name: &str) -> String {
        format!("{}n/{name}", self.0)
    }

    /// All nodes that are there.
    pub(super) fn nodes(&self) -> String {
        format!("{}n/", self.0)
    }

    pub(super) fn card(&self, name: &str) -> String {
        format!("{}k/{name}", self.0)
    }

    /// The cards of all nodes, there or not.
    pub(super) fn cards(&self) -> String {
        format!("{}k/", self.0)
    }

    /// Whose name is this?
    pub(super) fn node_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.0)?.strip_prefix("n/")
    }

    /// Whose card is this?
    pub(super) fn card_of<'a>(&self, key: &'a str) -> Option<&'a str> {
        key.strip_prefix(&self.0)?.strip_prefix("k/")
    }

    /// The runs of all jobs.
    pub(super) fn runs(&self) -> String {
        format!("{}c/", self.0)
    }

    pub(super) fn runs_of(&self, job: &FleetName) -> String {
        format!("{}c/{job}/", self.0)
    }

    pub(super) fn run(&self, job: &FleetName, scheduled: Stamp) -> String {
        // To the millisecond, so that keys are in the order of time.
        let tick = format!("{:.3}", scheduled.timestamp());
        format!("{}c/{job}/{tick}", self.0)
    }

    /// Which ticks of a job were decided upon, though their runs are forgotten.
    pub(super) fn had(&self, job: &FleetName) -> String {
        format!("{}c/{job}/had", self.0)
    }

    /// Which run is this of?
    pub(super) fn tick_of(&self, key: &str) -> Option<(FleetName, Stamp)> {
        let (job, tick) = key
            .strip_prefix(&self.0)?
            .strip_prefix("c/")?
            .split_once('/')?;
        let tick: jiff::Timestamp = tick.parse().ok()?;
        Some((job.parse().ok()?, tick.into()))
    }

    /// Which lock is this of, and what of it?
    pub(super) fn lock_of<'a>(&self, key: &'a str) -> Option<(&'a str, &'a str)> {
        key.strip_prefix(&self.0)?
            .strip_prefix("s/")?
            .split_once('/')
    }

    /// All that concerns one lock.
    pub(super) fn lock(&self, name: &str) -> String {
        format!("{}s/{name}/", self.0)
    }

    /// All endpoints of all fleets.
    pub(super) fn endpoints(&self) -> String {
        format!("{}e/", self.0)
    }

    /// Whose lease the records of a node hang on.
    pub(super) fn publisher(&self, node: &str) -> String {
        format!("{}p/{node}", self.0)
    }

    /// What was written for a fleet without a lease.
    pub(super) fn anchors(&self, fleet: &FleetName) -> String {
        format!("{}a/{fleet}", self.0)
    }

    /// The units of a fleet that has a `cluster_max`.
    pub(super) fn units(&self, fleet: &FleetName) -> String {
        format!("{}cap/{fleet}/", self.0)
    }

    /// All queues of all locks.
    pub(super) fn locks(&self) -> String {
        format!("{}s/", self.0)
    }
}

/// Below a lock: its queue.
pub(super) fn queue(lock: &str) -> String {
    format!("{lock}q/")
}

/// Below a lock: one who waits, or has it. Whoever joins knows the revision at which he last wrote his node's key, so that no two of a lease's
/// supervisors make the same name.
pub(super) fn candidate(lock: &str, lease: LeaseId, stamp: i64, number: u64) -> String {
    format!("{lock}q/{lease}.{stamp}.{number}")
}

/// Below a lock: when somebody joined last.
pub(super) fn last(lock: &str) -> String {
    format!("{lock}last")
}

/// Below a lock: who gave it back.
pub(super) fn released(lock: &str) -> String {
    format!("{lock}rel")
}

/// Below a lock: who left without having had his turn.
pub(super) fn passed(lock: &str) -> String {
    format!("{lock}pass")
}

/// Below a lock: where an operator wants it.
pub(super) fn wish(lock: &str) -> String {
    format!("{lock}move")
}

/// What a node says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct NodeCard {
    /// Made once for a state directory.
    pub(super) identity: String,
    /// Names one run of the daemon.
    pub(super) run: String,
    /// Of leasehold.
    pub(super) version: String,
}

/// That a node belongs to the cluster, there or not.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct KnownCard {
    /// The revision that created the key with its name, when it was there last.
    pub(super) session: i64,
    /// Of leasehold.
    pub(super) version: String,
    /// There since, by its own clock.
    pub(super) since: Stamp,
    /// Who keeps it empty.
    #[serde(default)]
    pub(super) drained: Option<String>,
    /// Missed since, by the clock of whoever missed it first; or when it left.
    #[serde(default)]
    pub(super) gone: Option<Stamp>,
}

/// Whose a run of a job is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct RunCard {
    /// On which node.
    pub(super) node: String,
    /// Of its state directory.
    pub(super) identity: String,
    /// By its clock.
    pub(super) started: Stamp,
    /// Up to here there is no other tick.
    pub(super) through: Stamp,
    /// None: it is there still, or was lost with its node.
    #[serde(default)]
    pub(super) ended: Option<Stamp>,
    /// In a word.
    #[serde(default)]
    pub(super) outcome: Option<String>,
    /// In a few.
    #[serde(default)]
    pub(super) reason: Option<String>,
}

/// Of a job: what was decided upon, and is forgotten.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HadCard {
    pub(super) had: Had,
}

/// Whose a unit of `cluster_max` is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct UnitCard {
    /// On which node.
    pub(super) node: String,
    /// Of its state directory.
    pub(super) identity: String,
}

/// What somebody in a queue says of himself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Card {
    /// On which node.
    pub(super) node: String,
    /// Which worker it is for.
    pub(super) worker: WorkerId,
    /// How many may have the lock at once, as he has it configured.
    pub(super) slots: u32,
    /// How good he is: who has more is next.
    #[serde(default)]
    pub(super) rank: u64,
    /// After so long without a renewal nothing of him is left, whatever he hears: in ms.
    #[serde(default)]
    pub(super) dead_ms: u64,
}

/// Who gave a lock back when nothing of his worker was left.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Released {
    /// His.
    pub(super) fence: i64,
    /// On which node.
    pub(super) node: String,
    /// How many might have it at once, as his place in the queue said; 0: that is not known.
    #[serde(default)]
    pub(super) slots: u32,
}

/// That an operator wants a lock moved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Wish {
    /// Whose; it means nothing when he is gone.
    pub(super) fence: i64,
    /// To which node; none: whoever is next.
    pub(super) to: Option<String>,
    /// Who wants it.
    pub(super) who: String,
}

/// Nodes that are there, each with its identity: one that was built anew under an old name knows nothing of that one's runs.
pub(super) fn present<'a>(prefix: &Prefix, nodes: &'a [KeyValue]) -> Vec<(&'a str, String)> {
    let card = |kv: &'a KeyValue| {
        let card: NodeCard = decode(&kv.value)?;
        Some((prefix.node_of(&kv.key)?, card.identity))
    };
    nodes.iter().filter_map(card).collect()
}

/// As it stands in etcd: JSON, for people with etcdctl.
pub(super) fn encode<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("cards hold nothing that JSON cannot say")
}

/// For people: a key that stands where only ours should. Whoever put it there may need it, so it is left, and counts.
pub(super) fn strange(key: &str) -> String {
    format!("{key}, which no leasehold wrote: `etcdctl del` it, or choose another etcd.cluster")
}

/// None if somebody else wrote it.
pub(super) fn decode<T: for<'de> Deserialize<'de>>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}
