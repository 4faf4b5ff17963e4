//! A `Status` becomes what programs read. Keys of the JSON are a public interface: they are only ever added.

use serde::{Deserialize, Serialize};

use crate::{
    config::{
        Config,
        shown::{is_secret, mark},
    },
    engine::{
        effect::ExitWords,
        status::{ExitView, FleetStatus, LockStatus, Status, WorkerStatus},
    },
    http::{
        Directories, Surface,
        cluster::{self, MembershipView},
        crons::{self, RunView},
        endpoints::{self, FleetPublishView},
        scaling::{self, ScaleView},
    },
    time::Moment,
    wire::{ExitStatus, Stopping},
};

/// `status --json` and `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The node's name.
    pub node: String,
    /// The newest event this picture includes.
    pub seq: u64,
    /// Who keeps the node empty, if somebody does.
    #[serde(default)]
    pub drained: Option<DrainedView>,
    /// The supervisor.
    pub supervisor: SupervisorView,
    /// The keeper.
    pub keeper: KeeperView,
    /// The accepted configuration.
    pub config: ConfigView,
    /// Where things are.
    pub directories: Directories,
    /// Where TCP is answered.
    pub http: Vec<String>,
    /// This node's part in its cluster, if it has one.
    #[serde(default)]
    pub cluster: Option<MembershipView>,
    /// Fleets by name.
    pub fleets: Vec<FleetView>,
}

/// An operator keeps the node empty.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DrainedView {
    /// Who.
    pub who: String,
    /// Since when, RFC 3339.
    pub since: String,
}

/// The supervisor process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupervisorView {
    /// Its pid.
    pub pid: u32,
    /// Its version.
    pub version: String,
    /// When it started, RFC 3339.
    pub started: String,
    /// Which one since the keeper began.
    pub incarnation: u64,
    /// Does the daemon drain, or kill, everything?
    pub draining: bool,
}

/// The keeper process.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct KeeperView {
    /// Its pid.
    pub pid: i32,
    /// When it started, RFC 3339.
    pub started: String,
    /// The strongest containment to be had here.
    pub containment: String,
}

/// The accepted configuration.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ConfigView {
    /// Its revision.
    pub revision: String,
    /// Why the newest reload was rejected, if it was.
    pub rejected: Option<String>,
}

/// One fleet.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetView {
    /// Its name.
    pub name: String,
    /// `fleet`, `singleton` or `cron`.
    pub kind: String,
    /// `ok`, `done`, `starting`, `degraded`, `held`, `waiting`, `draining`, `standby`; jobs are `idle`, `waiting`, `running`,
    /// `retrying`, `held` or `draining`.
    pub state: String,
    /// How many it should have.
    pub desired: u32,
    /// How many take work.
    pub ready: u32,
    /// How many are through with their work and want no other.
    #[serde(default)]
    pub done: u32,
    /// Smallest size.
    pub min: u32,
    /// Largest size.
    pub max: u32,
    /// Singletons only.
    pub gate: Option<GateView>,
    /// Who holds it.
    pub held: Option<String>,
    /// `running`, `rolling-back`, `failed`.
    pub rollout: Option<String>,
    /// Counts `restart` commands.
    pub round: u64,
    /// What its workers should be.
    pub revision: String,
    /// Jobs only: the next tick, RFC 3339; none while it is held.
    #[serde(default)]
    pub next: Option<String>,
    /// Jobs only: what became of the last run or tick.
    #[serde(default)]
    pub last: Option<RunView>,
    /// Of a fleet that follows the load.
    #[serde(default)]
    pub scale: Option<ScaleView>,
    /// How it is published, if it is.
    #[serde(default)]
    pub publish: Option<FleetPublishView>,
    /// Its workers; an empty slot is absent unless backing off, failed or held.
    pub workers: Vec<WorkerView>,
}

/// A singleton's lock.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateView {
    /// `node`, `cluster`.
    pub scope: String,
    /// `open` or `shut`.
    pub state: String,
    /// Who has it: this node, or what is known of somebody else.
    pub holder: Option<String>,
    /// Names the holder, if that is us; grows with every holder.
    pub fence: Option<u64>,
    /// Until it must be renewed, in ms; a lock of this machine lasts.
    pub deadline_in_ms: Option<u64>,
    /// The lock's file, if it is ours.
    pub path: Option<String>,
}

/// One worker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WorkerView {
    /// `web/0`.
    pub id: String,
    /// Its slot's number.
    pub slot: u32,
    /// Its generation.
    pub generation: u64,
    /// The leader's pid.
    pub pid: Option<i32>,
    /// `starting`, `running`, `draining`, `killing`, `clearing`, `backing-off`, `failed`, `done`, `held`, `standby`.
    pub state: String,
    /// Does it take work?
    pub ready: bool,
    /// When its process began, RFC 3339.
    pub since: Option<String>,
    /// For how long, in ms.
    pub uptime_ms: Option<u64>,
    /// Restarts that nobody wanted.
    pub restarts: u64,
    /// Percent of one core.
    pub cpu: Option<f64>,
    /// Bytes.
    pub memory: Option<u64>,
    /// `unit`, `cgroup`, `group`.
    pub containment: Option<String>,
    /// How its last generation ended.
    pub last_exit: Option<LastExitView>,
    /// Until it is started again, in ms.
    pub next_start_in_ms: Option<u64>,
    /// Why it is being ended.
    pub ending: Option<String>,
    /// Until SIGKILL, in ms, while it drains.
    pub grace_ms: Option<u64>,
    /// What it was spawned from.
    pub revision: String,
    /// Which round of `restart` it has seen.
    pub round: u64,
    /// What it says of itself (STATUS=).
    pub status: Option<String>,
}

/// How a generation ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LastExitView {
    /// Exit code.
    pub code: Option<i32>,
    /// Signal number.
    pub signal: Option<i32>,
    /// When, RFC 3339.
    pub at: String,
    /// In words.
    pub reason: String,
}

/// What a worker uses, as far as it is known.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Used {
    /// Percent of one core.
    pub cpu: Option<f64>,
    /// Bytes.
    pub memory: Option<u64>,
}

/// What the pure functions here cannot know: clock and place.
pub struct Here<'a> {
    /// The handlers' surface.
    pub surface: &'a Surface,
    /// Now.
    pub now: Moment,
    /// What the wall clock showed at a moment, RFC 3339.
    pub wall: &'a dyn Fn(Moment) -> String,
    /// What a worker uses.
    pub usage: &'a dyn Fn(&WorkerStatus) -> Used,
    /// When this supervisor started.
    pub started: Moment,
    /// The newest event.
    pub seq: u64,
}

/// The JSON picture.
pub fn status(status: &Status, here: &Here<'_>) -> StatusView {
    let surface = here.surface;
    StatusView {
        node: status.node.clone(),
        seq: here.seq,
        drained: status.drained.as_ref().map(|hold| DrainedView {
            who: hold.who.clone(),
            since: hold.when.clone(),
        }),
        supervisor: SupervisorView {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started: (here.wall)(here.started),
            incarnation: surface.events.incarnation(),
            draining: status.stopping != Stopping::No,
        },
        keeper: KeeperView {
            pid: surface.keeper,
            started: (here.wall)(surface.keeper_started),
            containment: surface.containment.word().to_owned(),
        },
        config: ConfigView {
            revision: status.revision.to_string(),
            rejected: status.rejected.clone(),
        },
        directories: surface.directories.clone(),
        http: surface.http.iter().map(ToString::to_string).collect(),
        cluster: status
            .cluster
            .as_ref()
            .map(|part| cluster::membership(part, here.now)),
        fleets: status
            .fleets
            .iter()
            .map(|fleet| fleet_view(fleet, &status.node, here))
            .collect(),
    }
}

fn fleet_view(fleet: &FleetStatus, node: &str, here: &Here<'_>) -> FleetView {
    let kind = match (&fleet.cron, &fleet.lock) {
        (Some(_), _) => "cron",
        (None, Some(_)) => "singleton",
        (None, None) => "fleet",
    };
    FleetView {
        name: fleet.name.to_string(),
        kind: kind.to_owned(),
        state: fleet.state.to_owned(),
        desired: fleet.desired,
        ready: fleet.ready,
        done: fleet.done,
        next: fleet.cron.as_ref().and_then(crons::next),
        last: fleet.cron.as_ref().and_then(crons::last),
        min: bounds(fleet).0,
        max: bounds(fleet).1,
        gate: fleet.lock.as_ref().map(|lock| gate_view(lock, here, node)),
        held: fleet.held.clone(),
        rollout: fleet.rollout.map(str::to_owned),
        round: fleet.round,
        revision: fleet.revision.to_string(),
        scale: fleet.scale.as_ref().map(scaling::scale_view),
        publish: fleet.publish.as_ref().map(endpoints::of_fleet),
        workers: fleet
            .workers
            .iter()
            .map(|worker| worker_view(worker, here))
            .collect(),
    }
}

/// How many workers a fleet has at least and at most.
pub fn bounds(fleet: &FleetStatus) -> (u32, u32) {
    if let Some(scale) = &fleet.scale {
        return (scale.spec.min, scale.spec.max);
    }
    // A job has nobody between its runs.
    let min = fleet.cron.as_ref().map_or(fleet.configured, |_| 0);
    (min, fleet.configured)
}

/// Of several workers, the one that tells most: it has its lock, or it knows who has.
fn gate_view(lock: &LockStatus, here: &Here<'_>, node: &str) -> GateView {
    let gates = || lock.gates.iter().map(|(_, gate)| gate);
    let pass = gates().find_map(|gate| gate.pass.as_ref());
    let waits = gates().find_map(|gate| gate.waits.clone());
    let until = gates().find_map(|gate| gate.until);
    GateView {
        scope: lock.scope.to_owned(),
        state: if pass.is_some() { "open" } else { "shut" }.to_owned(),
        holder: pass.map(|_| node.to_owned()).or(waits),
        fence: pass.map(|pass| pass.fence),
        deadline_in_ms: until.map(|at| here.now.until(at).as_millis()),
        path: pass.map(|pass| pass.path.clone()),
    }
}

fn worker_view(worker: &WorkerStatus, here: &Here<'_>) -> WorkerView {
    let Used { cpu, memory } = (here.usage)(worker);
    WorkerView {
        id: worker.id.to_string(),
        slot: worker.id.slot.0,
        generation: worker.generation.0,
        pid: worker.pid,
        state: worker.state.to_owned(),
        ready: worker.ready,
        since: worker.since.map(here.wall),
        uptime_ms: worker.since.map(|since| here.now.since(since).as_millis()),
        restarts: worker.restarts,
        cpu,
        memory,
        containment: worker.containment.map(|kind| kind.word().to_owned()),
        last_exit: worker.last_exit.map(|exit| last_exit(&exit, here)),
        next_start_in_ms: worker.next_start.map(|at| here.now.until(at).as_millis()),
        ending: worker.ending.map(|ending| ending.word().to_owned()),
        grace_ms: worker.grace.map(crate::time::Span::as_millis),
        revision: worker.revision.to_string(),
        round: worker.round,
        status: (!worker.said.is_empty()).then(|| worker.said.clone()),
    }
}

fn last_exit(exit: &ExitView, here: &Here<'_>) -> LastExitView {
    let (code, signal) = match exit.status {
        ExitStatus::Code(code) => (Some(code), None),
        ExitStatus::Signal { number, .. } => (None, Some(number)),
        ExitStatus::SpawnFailed { .. } => (None, None),
    };
    let ending = exit
        .ending
        .map_or_else(String::new, |ending| format!(" ({})", ending.word()));
    LastExitView {
        code,
        signal,
        at: (here.wall)(exit.at),
        reason: format!("{}{ending}", ExitWords(exit.status)),
    }
}

/// One line of `/readyz?verbose`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    /// `fleet:web`.
    pub name: String,
    /// Does it pass?
    pub pass: bool,
    /// It passes, and somebody should look all the same.
    pub warn: bool,
    /// Why not, or how.
    pub detail: String,
}

/// What readiness of the node is made of: it takes work, and every fleet has what it should.
pub fn checks(status: &Status) -> Vec<Check> {
    let serving = match (status.stopping, &status.drained) {
        (Stopping::Drain | Stopping::Kill, _) => Err("the daemon drains".to_owned()),
        (Stopping::No, Some(hold)) => Err(format!("drained by {}", hold.who)),
        (Stopping::No, None) => Ok(()),
    };
    let mut all = vec![Check {
        name: "serving".to_owned(),
        pass: serving.is_ok(),
        warn: false,
        detail: serving.err().unwrap_or_else(|| "ok".to_owned()),
    }];
    all.extend(status.fleets.iter().map(|fleet| Check {
        name: format!("fleet:{}", fleet.name),
        pass: is_ready(fleet),
        warn: false,
        detail: match &fleet.cron {
            Some(_) => fleet.state.to_owned(),
            None => format!(
                "{} of {} ready, {}",
                fleet.ready, fleet.desired, fleet.state
            ),
        },
    }));
    // Ordinary workers serve whatever becomes of etcd.
    all.extend(status.cluster.as_ref().map(|part| {
        let detail = match (part.state, part.concerns.as_slice()) {
            ("joined", []) => None,
            ("joined", concerns) => Some(concerns.join("; ")),
            _ => Some(part.why.clone().unwrap_or_else(|| part.state.to_owned())),
        };
        Check {
            name: "etcd".to_owned(),
            pass: true,
            warn: detail.is_some(),
            detail: detail.unwrap_or_else(|| "ok".to_owned()),
        }
    }));
    // Whoever does not hear of a worker is no reason to take all of them away.
    all.extend(status.fleets.iter().filter_map(|fleet| {
        let failure = endpoints::failure(fleet.publish.as_ref()?);
        Some(Check {
            name: format!("publish:{}", fleet.name),
            pass: true,
            warn: failure.is_some(),
            detail: failure.unwrap_or_else(|| "ok".to_owned()),
        })
    }));
    all
}

/// Does a fleet take work? One that was told to have nobody does not.
pub fn is_ready(fleet: &FleetStatus) -> bool {
    match fleet.state {
        "draining" => false,
        // Held on purpose, or somebody else's turn: the node is not less ready for it.
        "held" | "standby" => true,
        _ => fleet.ready + fleet.done >= fleet.desired,
    }
}

/// Does a balancer that polls for this fleet get a yes? At least one worker takes work and none of that is about to end.
pub fn fleet_serves(fleet: &FleetStatus) -> bool {
    fleet.state != "draining" && fleet.ready > 0
}

/// `/readyz?verbose` and `/livez?verbose`, as Kubernetes prints them.
pub fn check_lines(checks: &[Check]) -> String {
    let line = |check: &Check| {
        format!(
            "[{}]{} {}\n",
            match (check.pass, check.warn) {
                (false, _) => '-',
                (true, true) => '!',
                (true, false) => '+',
            },
            check.name,
            check.detail
        )
    };
    checks.iter().map(line).collect()
}

/// `/health`: draft-inadarei-api-health-check-06.
pub fn health(status: &Status, here: &Here<'_>) -> serde_json::Value {
    let checks = checks(status);
    let all = checks.iter().all(|check| check.pass && !check.warn);
    let serving = checks.first().is_some_and(|check| check.pass);
    let overall = if all {
        "pass"
    } else if serving {
        "warn"
    } else {
        "fail"
    };
    let time = (here.wall)(here.now);
    let members: serde_json::Map<String, serde_json::Value> = checks
        .iter()
        .map(|check| {
            let state = match check.pass && !check.warn {
                true => "pass",
                false => "warn",
            };
            (
                check.name.clone(),
                serde_json::json!([{ "status": state, "output": check.detail, "time": time }]),
            )
        })
        .collect();
    serde_json::json!({
        "status": overall,
        "version": "1",
        "releaseId": env!("CARGO_PKG_VERSION"),
        "serviceId": status.node,
        "checks": members,
    })
}

/// `config show`: the accepted configuration, its secrets hidden.
pub fn config(config: &Config) -> Config {
    let mut shown = config.clone();
    for fleet in shown.fleets.values_mut() {
        for (name, value) in &mut fleet.process.env {
            if is_secret(name) {
                *value = mark(value);
            }
        }
    }
    shown
}
