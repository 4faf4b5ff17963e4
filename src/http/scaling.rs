//! Fleets that follow the load as programs read them. Keys of the JSON are a public interface: they are only ever added.

use serde::{Deserialize, Serialize};

use crate::{
    engine::{
        scale::{Decision, Verdict},
        status::{FleetStatus, ScaleStatus, Status},
    },
    http::view::Here,
};

/// How a fleet follows the load; part of its `status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ScaleView {
    /// How busy its workers are: 1 is all that they can use; none: not known.
    pub utilization: Option<f64>,
    /// So many the last decision asked for.
    pub recommended: Option<u32>,
    /// Why it cannot grow, if it should: `max`, `host_cpu`, `host_mem`, `cluster_max`, `etcd`.
    pub blocked: Option<String>,
    /// Connections that nobody has accepted; none: it has no sockets, or they were not read.
    pub waiting: Option<u32>,
    /// Times its down window is longer than configured.
    pub penalty: u32,
    /// An operator wants at least so many.
    pub floor: Option<FloorView>,
    /// Who wants it as it is, if somebody does.
    pub paused: Option<String>,
    /// What its source said last, if it has one.
    pub source: Option<f64>,
    /// Why its source says nothing.
    pub source_error: Option<String>,
    /// Its workers on all nodes, with a `cluster_max`.
    #[serde(default)]
    pub cluster: Option<ClusterView>,
}

/// How much of a fleet's `cluster_max` is used.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterView {
    /// It does not grow beyond.
    pub max: u32,
    /// So many are counted for this node.
    pub held: u32,
    /// So many for all nodes, as of the last look; none: nothing was seen yet.
    pub taken: Option<u32>,
}

/// An operator's floor.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FloorView {
    /// So many.
    pub workers: u32,
    /// Who said so.
    pub who: String,
    /// Until then, RFC 3339; none: until somebody says otherwise.
    pub until: Option<String>,
}

/// `GET /v1/fleets/NAME/decisions`: the last decisions, oldest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionsView {
    /// The fleet.
    pub name: String,
    /// So many it has at least.
    pub min: u32,
    /// So many it has at most.
    pub max: u32,
    /// Above this it grows.
    pub high: f64,
    /// It is sized for this.
    pub target: f64,
    /// As in `status`.
    pub scale: ScaleView,
    /// The decisions.
    pub decisions: Vec<DecisionView>,
}

/// One decision: what it was made from, and what came of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionView {
    /// When, RFC 3339.
    pub at: String,
    /// So many workers counted.
    pub workers: u32,
    /// How busy they were; none: not known.
    pub utilization: Option<f64>,
    /// How busy they say that they are; none: nobody says.
    pub busy: Option<f64>,
    /// How much of the time they wait for a processor; none: not known.
    pub pressure: Option<f64>,
    /// So many were measured.
    pub measured: u32,
    /// So many should have been, and were not: idle when it grows, busy when it shrinks.
    pub missing: u32,
    /// So many were not ready, or paused before a restart.
    pub starting: u32,
    /// So many were on their way out.
    pub draining: u32,
    /// So many used all that they can and got nothing done: they are not among the workers.
    pub stuck: u32,
    /// Connections that waited.
    pub waiting: Option<u32>,
    /// Length of the queue that the fleet works off; none: nobody says.
    pub queue: Option<f64>,
    /// Which signal asked for most: `cpu`, `busy`, `queue`, `backlog`.
    pub signal: Option<String>,
    /// Idle cores of the machine.
    pub idle_cores: Option<f64>,
    /// What this moment asked for.
    pub recommended: u32,
    /// What it would have grown to.
    pub up: u32,
    /// What it could have shrunk to.
    pub down: u32,
    /// Times its down window was longer.
    pub penalty: u32,
    /// `fits`, `holds`, `blocked`, `grew`, `shrank`.
    pub verdict: String,
    /// By so many it grew or shrank.
    pub by: Option<u32>,
    /// Why it grew, could not, or nothing was done.
    pub reason: Option<String>,
}

/// A part of a whole, or thousandths of one.
fn share(parts: u64, whole: f64) -> f64 {
    parts as f64 / whole
}

/// Of a fleet in `status`.
pub fn scale_view(scale: &ScaleStatus) -> ScaleView {
    let source = scale.source.as_ref();
    ScaleView {
        utilization: scale.utilization.map(|parts| share(parts, 1e6)),
        recommended: scale.recommended,
        blocked: scale.blocked.map(|block| block.word().to_owned()),
        waiting: scale.waiting,
        penalty: scale.penalty,
        floor: scale.floor.as_ref().map(|floor| FloorView {
            workers: floor.workers,
            who: floor.who.clone(),
            until: floor.until.map(|until| until.to_string()),
        }),
        paused: scale.paused.as_ref().map(|hold| hold.who.clone()),
        source: source.and_then(|said| Some(share(*said.as_ref().ok()?, 1e3))),
        source_error: source.and_then(|said| said.as_ref().err().cloned()),
        cluster: scale.cluster.map(|units| ClusterView {
            max: units.max,
            held: units.held,
            taken: units.taken,
        }),
    }
}

/// The last decisions of a fleet; none if there is none, or it does not follow the load.
pub fn decisions(status: &Status, name: &str, here: &Here<'_>) -> Option<DecisionsView> {
    let fleet: &FleetStatus = status
        .fleets
        .iter()
        .find(|fleet| fleet.name.as_str() == name)?;
    let scale = fleet.scale.as_ref()?;
    Some(DecisionsView {
        name: name.to_owned(),
        min: scale.spec.min,
        max: scale.spec.max,
        high: share(u64::from(scale.spec.high), 1e6),
        target: share(u64::from(scale.spec.target), 1e6),
        scale: scale_view(scale),
        decisions: scale
            .decisions
            .iter()
            .map(|one| decision(one, here))
            .collect(),
    })
}

fn decision(one: &Decision, here: &Here<'_>) -> DecisionView {
    let (verdict, by, reason) = match one.verdict {
        Verdict::Fits => ("fits", None, None),
        Verdict::Holds(hold) => ("holds", None, Some(hold.word())),
        Verdict::Blocked(block) => ("blocked", None, Some(block.word())),
        Verdict::Grew { by, reason } => ("grew", Some(by), Some(reason.word())),
        Verdict::Shrank { by, reason } => ("shrank", Some(by), Some(reason.word())),
    };
    DecisionView {
        at: (here.wall)(one.at),
        workers: one.workers,
        utilization: one.utilization.map(|parts| share(parts, 1e6)),
        busy: one.busy.map(|parts| share(parts, 1e6)),
        pressure: one.pressure.map(|parts| share(u64::from(parts), 1e4)),
        measured: one.measured,
        missing: one.missing,
        starting: one.starting,
        draining: one.draining,
        stuck: one.stuck,
        waiting: one.waiting,
        queue: one.queue.map(|length| share(length, 1e3)),
        signal: one.signal.map(|reason| reason.word().to_owned()),
        idle_cores: one.idle.map(|idle| share(u64::from(idle), 1e3)),
        recommended: one.recommended,
        up: one.up,
        down: one.down,
        penalty: one.penalty,
        verdict: verdict.to_owned(),
        by,
        reason: reason.map(str::to_owned),
    }
}
