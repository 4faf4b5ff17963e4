//! The read-only picture: what people and programs see. Times are moments; the shells put the wall clock in.

use std::collections::BTreeMap;

use crate::{
    config::spec::{CronSpec, ScaleSpec},
    engine::{
        book::{Run, RunRecord},
        cluster::{figures::Figures, rpc::LeaseId},
        effect::{Cause, Ending},
        gate::{Holder, Pass},
        intent::{Hold, Size},
        publish::PublishStatus,
        scale::{Block, Decision},
    },
    id::{FleetName, Generation, Revision, SlotIndex, WorkerId},
    time::{Moment, Span, Stamp},
    wire::{Containment, ExitStatus, Stopping},
};

/// The whole node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Its name.
    pub node: String,
    /// Does it stop?
    pub stopping: Stopping,
    /// Who keeps it empty, if somebody does.
    pub drained: Option<Hold>,
    /// The accepted configuration.
    pub revision: Revision,
    /// Why the newest reload was rejected, if it was.
    pub rejected: Option<String>,
    /// Its part in a cluster, if it has one.
    pub cluster: Option<ClusterStatus>,
    /// The fleets, by name.
    pub fleets: Vec<FleetStatus>,
}

/// A node's part in its cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClusterStatus {
    /// The cluster's name.
    pub name: String,
    /// `joined`, `joining` or `lapsed`.
    pub state: &'static str,
    /// Why it is not joined, if that is known.
    pub why: Option<String>,
    /// What its keys hang on.
    pub lease: Option<LeaseId>,
    /// How long that is, as granted.
    pub ttl: Option<Span>,
    /// It is over then, if it is not renewed.
    pub expires_in: Option<Span>,
    /// So much was left of it when it was renewed last.
    pub margin: Option<Span>,
    /// Names the etcd cluster that it belongs to.
    pub id: Option<u64>,
    /// Stands before its fences.
    pub epoch: u64,
    /// Nodes that are there, and that are missed.
    pub nodes: Option<(u64, u64)>,
    /// How requests went.
    pub figures: Figures,
    /// Of etcd, as configured.
    pub endpoints: Vec<String>,
    /// What is not well with etcd, in sentences.
    pub concerns: Vec<String>,
}

/// One fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetStatus {
    /// Its name.
    pub name: FleetName,
    /// In one word: `ok`, `done`, `starting`, `degraded`, `held`, `draining`, `waiting`, `standby`; of a job:
    /// `idle`, `waiting`, `running`, `retrying`, `held`, `draining`.
    pub state: &'static str,
    /// How many it should have.
    pub desired: u32,
    /// How many take work.
    pub ready: u32,
    /// How many are through with their work and want no other.
    pub done: u32,
    /// As configured.
    pub configured: u32,
    /// Who holds it, if somebody does.
    pub held: Option<String>,
    /// `running`, `rolling-back` or `failed`, if there is a rollout.
    pub rollout: Option<&'static str>,
    /// Counts `restart` commands.
    pub round: u64,
    /// What its workers should be.
    pub revision: Revision,
    /// The lock that it needs, if it needs one.
    pub lock: Option<LockStatus>,
    /// Of a job.
    pub cron: Option<CronStatus>,
    /// Of a fleet that follows the load.
    pub scale: Option<ScaleStatus>,
    /// What is published of it, if something is.
    pub publish: Option<PublishStatus>,
    /// Its slots.
    pub workers: Vec<WorkerStatus>,
}

/// A fleet that follows the load.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScaleStatus {
    /// By what it does so.
    pub spec: ScaleSpec,
    /// So many it is to have now.
    pub members: u32,
    /// Of its workers on all nodes, with a `cluster_max`.
    pub cluster: Option<UnitsStatus>,
    /// An operator wants at least so many.
    pub floor: Option<Size>,
    /// An operator wants it as it is.
    pub paused: Option<Hold>,
    /// How busy its workers are, in parts per million of what they can use; none: not known.
    pub utilization: Option<u64>,
    /// What the last decision asked for.
    pub recommended: Option<u32>,
    /// Times its down window is longer than configured.
    pub penalty: u32,
    /// Connections that nobody has accepted; none: it has no sockets, or they were not read.
    pub waiting: Option<u32>,
    /// What its source said last, in thousandths; or why it said nothing.
    pub source: Option<Result<u64, String>>,
    /// Why it cannot grow, if it should.
    pub blocked: Option<Block>,
    /// So often a decision was not carried out since this supervisor began, by reason.
    pub blocks: BTreeMap<&'static str, u64>,
    /// How much of the time its workers wait for a processor, in hundredths of a percent.
    pub pressure: Option<u32>,
    /// The machine.
    pub host: Option<HostStatus>,
    /// The last decisions, oldest first.
    pub decisions: Vec<Decision>,
}

/// Workers of a fleet on all nodes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnitsStatus {
    /// It does not grow beyond.
    pub max: u32,
    /// So many are counted for this node.
    pub held: u32,
    /// So many for all nodes, as of the last look; none: nothing was seen yet.
    pub taken: Option<u32>,
}

/// The machine, as far as it is ours to use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostStatus {
    /// Idle processors, in thousandths of a core.
    pub idle: u32,
    /// So many of them are nobody's, in thousandths of a core.
    pub reserve: u32,
    /// Memory that is to be had, in bytes.
    pub memory: u64,
}

/// One job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CronStatus {
    /// When it runs.
    pub spec: CronSpec,
    /// Its next tick; none while it is held.
    pub next: Option<Stamp>,
    /// So many runs wait to begin.
    pub waiting: usize,
    /// The one that is under way.
    pub run: Option<RunStatus>,
    /// What became of runs and ticks, oldest first.
    pub history: Vec<RunRecord>,
}

/// A run that is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunStatus {
    /// Which.
    pub run: Run,
    /// It failed, and its next attempt begins in a while.
    pub pausing: bool,
}

/// One slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerStatus {
    /// `web/0`.
    pub id: WorkerId,
    /// Its newest generation.
    pub generation: Generation,
    /// The leader's pid.
    pub pid: Option<i32>,
    /// Where it is.
    pub state: &'static str,
    /// Does it take work?
    pub ready: bool,
    /// When its process began.
    pub since: Option<Moment>,
    /// Restarts that nobody wanted.
    pub restarts: u64,
    /// What holds it together.
    pub containment: Option<Containment>,
    /// How its last generation ended.
    pub last_exit: Option<ExitView>,
    /// When it will be started again.
    pub next_start: Option<Moment>,
    /// Why it is being ended.
    pub ending: Option<Ending>,
    /// Until SIGKILL, while it drains.
    pub grace: Option<Span>,
    /// What it was spawned from.
    pub revision: Revision,
    /// Which round of `restart` it has seen.
    pub round: u64,
    /// What it says of itself.
    pub said: String,
}

/// The lock of a fleet's workers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockStatus {
    /// Its name.
    pub name: FleetName,
    /// How far it reaches: `node`, `cluster`.
    pub scope: &'static str,
    /// Its file, if the configuration names one.
    pub flock: Option<String>,
    /// So many may hold it at once.
    pub slots: u32,
    /// Of every slot that the fleet should have, or has.
    pub gates: Vec<(SlotIndex, GateStatus)>,
}

/// One slot's gate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GateStatus {
    /// In one word: `open`, `waiting`, `releasing`, `yielding`, `lost`, `shut`.
    pub state: &'static str,
    /// Open, sought or shut since then, if it ever was anything else.
    pub since: Option<Moment>,
    /// It is ours, in this file and with this fence.
    pub pass: Option<Pass>,
    /// Why it is not.
    pub waits: Option<String>,
    /// Who has it, if that is known.
    pub holder: Option<Holder>,
    /// When it ends unless it is renewed.
    pub until: Option<Moment>,
    /// Who wants it given to whoever waits, while that is under way.
    pub release: Option<String>,
    /// Why it is shut.
    pub cause: Option<Cause>,
}

/// How a generation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExitView {
    /// Its status.
    pub status: ExitStatus,
    /// When.
    pub at: Moment,
    /// Why, if we wanted it.
    pub ending: Option<Ending>,
}
