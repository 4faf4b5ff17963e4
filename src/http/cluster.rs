//! The cluster as programs read it: this node's part in it, and all of it at one revision. Keys are only ever added.

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        cluster::{ClusterPicture, LockPicture, NodePicture, RunPicture, figures::EndpointFigures},
        status::ClusterStatus,
    },
    time::{Moment, Span, Stamp},
};

/// `cluster` in `/v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MembershipView {
    /// The cluster's name.
    pub name: String,
    /// `joined`, `joining`, `lapsed`.
    pub state: String,
    /// Why it is not joined, if that is known.
    pub why: Option<String>,
    /// What this node's keys hang on, as etcdctl writes it.
    pub lease: Option<String>,
    /// Of the lease, as granted.
    pub ttl_ms: Option<u64>,
    /// It is over then, if it is not renewed.
    pub expires_in_ms: Option<u64>,
    /// So much was left of it when it was renewed last.
    pub margin_ms: Option<u64>,
    /// Names the etcd cluster.
    pub id: Option<String>,
    /// Stands before fences.
    pub epoch: u64,
    /// Of etcd.
    pub endpoints: Vec<MemberView>,
    /// What is not well with etcd, in sentences.
    pub concerns: Vec<String>,
}

/// An endpoint of etcd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct MemberView {
    /// As configured.
    pub url: String,
    /// `up`, `failing`, `down`, or `unknown` before it was asked.
    pub state: String,
    /// Why it is not up.
    pub why: Option<String>,
    /// So long ago it answered last.
    pub heard_ms: Option<u64>,
    /// Of etcd.
    pub version: Option<String>,
    /// That are raised.
    pub alarms: Vec<String>,
}

/// `/v1/cluster`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// The node that was asked.
    pub node: String,
    /// Its part.
    pub membership: MembershipView,
    /// Of etcd: all that follows was so then.
    pub revision: i64,
    /// By name.
    pub nodes: Vec<NodeView>,
    /// By name.
    pub locks: Vec<LockPicture>,
    /// Of the cluster's jobs, by name and tick.
    #[serde(default)]
    pub runs: Vec<RunPicture>,
}

/// A node, there or not.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// What is known of it.
    #[serde(flatten)]
    pub node: NodePicture,
    /// Nobody has seen it for so long; null while it is there.
    pub unseen_ms: Option<u64>,
}

/// This node's part.
pub fn membership(status: &ClusterStatus, now: Moment) -> MembershipView {
    let millis = |span: Option<Span>| span.map(Span::as_millis);
    let endpoints = status.endpoints.iter().zip(&status.figures.endpoints);
    MembershipView {
        name: status.name.clone(),
        state: status.state.to_owned(),
        why: status.why.clone(),
        lease: status.lease.map(|lease| lease.to_string()),
        ttl_ms: millis(status.ttl),
        expires_in_ms: millis(status.expires_in),
        margin_ms: millis(status.margin),
        id: status.id.map(|id| format!("{id:x}")),
        epoch: status.epoch,
        endpoints: endpoints.map(|(url, one)| member(url, one, now)).collect(),
        concerns: status.concerns.clone(),
    }
}

fn member(url: &str, figures: &EndpointFigures, now: Moment) -> MemberView {
    let state = match (&figures.fails, figures.heard) {
        (Some(_), _) if figures.is_down(now) => "down",
        (Some(_), _) => "failing",
        (None, Some(_)) => "up",
        (None, None) => "unknown",
    };
    let health = figures.health.as_ref();
    MemberView {
        url: url.to_owned(),
        state: state.to_owned(),
        why: figures.fails.as_ref().map(|(_, why)| why.clone()),
        heard_ms: figures.heard.map(|at| now.since(at).as_millis()),
        version: health.map(|health| health.version.clone()),
        alarms: health.map_or_else(Vec::new, |health| health.alarms.clone()),
    }
}

/// All of it.
pub fn cluster(
    node: &str,
    membership: MembershipView,
    picture: ClusterPicture,
    wall: Stamp,
) -> ClusterView {
    let nodes = picture.nodes.into_iter().map(|node| NodeView {
        unseen_ms: node.gone.map(|gone| wall.since(gone).as_millis()),
        node,
    });
    ClusterView {
        node: node.to_owned(),
        membership,
        revision: picture.revision,
        nodes: nodes.collect(),
        locks: picture.locks,
        runs: picture.runs,
    }
}
