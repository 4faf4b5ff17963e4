//! `/metrics`: the picture and the tally as Prometheus reads them, in OpenMetrics 1.0 or in its text format 0.0.4. Pure.
//!
//! Each family is written once, by name; the page puts them in order. A gauge is read off the status, a counter off the tally. Labels are
//! names of fleets, jobs and locks, numbers of slots, and words from fixed lists: never a pid, nor anything that a worker says.

use std::{
    collections::BTreeMap,
    fmt::{self, Write},
};

use crate::{
    engine::{
        book::Outcome,
        effect::ProbeAim,
        publish::Presence,
        scale::BLOCK_WORDS,
        status::{ClusterStatus, FleetStatus, GateStatus, HostStatus, ScaleStatus, WorkerStatus},
        tally::{FleetTally, Histogram},
    },
    http::{Measures, view},
    id::{FleetName, WorkerId},
    sys::usage::Usage,
    time::{Moment, Span, Stamp},
};

/// Which commit this was built from, if whoever built it said so.
const REVISION: Option<&str> = option_env!("LEASEHOLD_BUILD_REVISION");

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus' text format 0.0.4.
    Text,
}

impl Format {
    /// What the client wants: OpenMetrics if it names that and does not like text better, else text, which everybody reads.
    pub fn of(accept: Option<&str>) -> Self {
        let (mut open, mut text) = (0.0, 0.0);
        for range in accept.unwrap_or_default().split(',') {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut quality, mut version) = (1.0_f64, "");
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = value.trim().trim_matches('"'),
                    _ => {}
                }
            }
            if kind.eq_ignore_ascii_case("application/openmetrics-text") {
                if matches!(version, "" | "1.0.0") {
                    open = quality.max(open);
                }
            } else if kind.eq_ignore_ascii_case("text/plain") {
                text = quality.max(text);
            }
        }
        if open > 0.0 && open >= text {
            Self::OpenMetrics
        } else {
            Self::Text
        }
    }

    /// Its `Content-Type`.
    pub fn content_type(self) -> &'static str {
        match self {
            Self::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            Self::Text => "text/plain; version=0.0.4; charset=utf-8",
        }
    }
}

/// Everything that is shown.
pub struct Scene<'a> {
    /// The picture and the tally, of one instant.
    pub measures: &'a Measures,
    /// What workers use, of those of whom it could be read.
    pub usage: &'a BTreeMap<WorkerId, Usage>,
    /// Now.
    pub now: Moment,
    /// When this supervisor started.
    pub started: Stamp,
}

/// What `/metrics` answers.
pub fn render(scene: &Scene<'_>, format: Format) -> String {
    let mut page = Page {
        format,
        families: BTreeMap::new(),
    };
    node(&mut page, scene);
    fleets(&mut page, scene);
    workers(&mut page, scene);
    lives(&mut page, scene);
    probes(&mut page, scene);
    locks(&mut page, scene);
    etcd(&mut page, scene);
    jobs(&mut page, scene);
    scaling(&mut page, scene);
    publishing(&mut page, scene);
    page.finish()
}

fn node(page: &mut Page, scene: &Scene<'_>) {
    let measures = scene.measures;
    page.family("build", Kind::Info, "What is running.", |f| {
        let version = env!("CARGO_PKG_VERSION");
        let rev = REVISION.unwrap_or("unknown");
        f.one(&[("rev", rev), ("version", version)], 1_u64);
    });
    let help = "When this supervisor began, in seconds since 1970: counters began at 0 then.";
    page.family("start_time_seconds", Kind::Gauge, help, |f| {
        f.one(&[], Number::Date(scene.started));
    });
    let help = "Was the newest reload accepted? The configuration before stays in force if not.";
    page.family("config_last_reload_successful", Kind::Gauge, help, |f| {
        f.one(&[], u64::from(measures.status.rejected.is_none()));
    });
    let name = "config_last_reload_success_timestamp_seconds";
    let help = "When the configuration in force was accepted, in seconds since 1970.";
    page.family(name, Kind::Gauge, help, |f| {
        if let Some(accepted) = measures.tally.accepted {
            f.one(&[], Number::Date(accepted));
        }
    });
    let help = "How long turns of the supervisor's loop took: whatever comes meanwhile waits.";
    page.family("loop_lag_seconds", Kind::Histogram, help, |f| {
        f.all(&[], &measures.tally.laps);
    });
}

fn fleets(page: &mut Page, scene: &Scene<'_>) {
    let all = || scene.measures.status.fleets.iter();
    page.family("workers", Kind::Gauge, "Slots, by where they are.", |f| {
        for fleet in all() {
            let mut counts = STATES.map(|state| (state, 0_u64));
            for worker in &fleet.workers {
                let state = state(worker);
                for (_, count) in counts.iter_mut().filter(|(name, _)| *name == state) {
                    *count += 1;
                }
            }
            for (state, count) in counts {
                f.one(&[("fleet", fleet.name.as_str()), ("state", state)], count);
            }
        }
    });
    let mut size = |name, help, of: &dyn Fn(&FleetStatus) -> u32| {
        page.family(name, Kind::Gauge, help, |f| {
            for fleet in all() {
                f.one(&[("fleet", fleet.name.as_str())], u64::from(of(fleet)));
            }
        });
    };
    let help = "How many workers the fleet should have now: 0 while it is held.";
    size("fleet_desired", help, &|fleet| fleet.desired);
    let help = "How many workers the fleet has at least, as configured.";
    size("fleet_min", help, &|fleet| view::bounds(fleet).0);
    let help = "How many workers the fleet has at most, as configured.";
    size("fleet_max", help, &|fleet| view::bounds(fleet).1);
}

/// Of fleets that are published; a target is a file, or a place in etcd.
fn publishing(page: &mut Page, scene: &Scene<'_>) {
    let published = || {
        let fleets = scene.measures.status.fleets.iter();
        fleets.filter_map(|fleet| Some((&fleet.name, fleet.publish.as_ref()?)))
    };
    let help = "Endpoints that are offered.";
    page.family("endpoints_published", Kind::Gauge, help, |f| {
        for (fleet, publish) in published() {
            let offered = publish.listing.endpoints.iter();
            let offered = offered.filter(|one| one.state == Presence::Ready && one.weight > 0);
            f.one(&[("fleet", fleet.as_str())], offered.count() as u64);
        }
    });
    let help = "For so long a target has been behind what is published; 0 if it is not.";
    page.family("publish_lag_seconds", Kind::Gauge, help, |f| {
        for (fleet, publish) in published() {
            for one in &publish.targets {
                let lag = one
                    .behind
                    .map_or(Span::ZERO, |since| scene.now.since(since));
                f.one(&[("fleet", fleet.as_str()), ("target", &one.target)], lag);
            }
        }
    });
    let help = "Failures to bring to a target what is published, repeated ones among them.";
    page.family("publish_failures", Kind::Counter, help, |f| {
        for (fleet, publish) in published() {
            let failures = scene.measures.tally.fleets.get(fleet);
            for one in &publish.targets {
                let count = failures.and_then(|tally| tally.unpublished.get(&one.target));
                let labels = [("fleet", fleet.as_str()), ("target", one.target.as_str())];
                f.one(&labels, count.copied().unwrap_or(0));
            }
        }
    });
}

/// Of fleets that follow the load. What is not known is left out.
fn scaling(page: &mut Page, scene: &Scene<'_>) {
    let scaled = || {
        let fleets = scene.measures.status.fleets.iter();
        fleets.filter_map(|fleet| Some((fleet.name.as_str(), fleet.scale.as_ref()?)))
    };
    let mut gauge = |name, help, of: &dyn Fn(&ScaleStatus) -> Option<Number>| {
        page.family(name, Kind::Gauge, help, |f| {
            for (fleet, scale) in scaled() {
                if let Some(value) = of(scale) {
                    f.one(&[("fleet", fleet)], value);
                }
            }
        });
    };
    let help = "How many workers the load asked for at the last decision.";
    gauge("fleet_raw_recommendation", help, &|scale| {
        scale.recommended.map(|n| u64::from(n).into())
    });
    let help = "How busy workers are: 1 is all that they can use.";
    gauge("fleet_utilization_ratio", help, &|scale| {
        scale.utilization.map(Number::Millionths)
    });
    let help = "Connections that nobody has accepted.";
    gauge("fleet_accept_queue_connections", help, &|scale| {
        scale.waiting.map(|n| u64::from(n).into())
    });
    let help = "Times the down window is longer, after shrinks that were regretted.";
    gauge("scale_penalty", help, &|scale| {
        Some(u64::from(scale.penalty).into())
    });
    let help = "How much of the time workers wait for a processor, at the last decision.";
    gauge("fleet_starved_ratio", help, &|scale| {
        let parts = scale.pressure?;
        Some(Number::Millionths(u64::from(parts) * 100))
    });
    let help = "Workers on all nodes that a fleet does not grow beyond.";
    gauge("fleet_cluster_max", help, &|scale| {
        scale.cluster.map(|units| u64::from(units.max).into())
    });
    let help = "Of them, how many are counted for this node.";
    gauge("fleet_cluster_held", help, &|scale| {
        scale.cluster.map(|units| u64::from(units.held).into())
    });
    let help = "Of them, how many are counted for all nodes, as of the last look.";
    gauge("fleet_cluster_taken", help, &|scale| {
        Some(u64::from(scale.cluster?.taken?).into())
    });
    let help = "Decisions that could not be carried out, or not be made, or left a worker out.";
    page.family("scale_blocked", Kind::Counter, help, |f| {
        for (fleet, scale) in scaled() {
            for reason in BLOCK_WORDS {
                let count = scale.blocks.get(reason).copied().unwrap_or(0);
                f.one(&[("fleet", fleet), ("reason", reason)], count);
            }
        }
    });
    let help = "Growths and shrinks.";
    page.family("scale_actions", Kind::Counter, help, |f| {
        for (fleet, _) in scaled() {
            let tallies = scene.measures.tally.fleets.iter();
            let own = tallies.filter(|(name, _)| name.as_str() == fleet);
            for ((direction, reason), count) in own.flat_map(|(_, tally)| &tally.scaled) {
                let labels = [
                    ("direction", *direction),
                    ("fleet", fleet),
                    ("reason", reason.word()),
                ];
                f.one(&labels, *count);
            }
        }
    });
    let host = scaled().find_map(|(_, scale)| scale.host);
    let mut of_host = |name, help, of: &dyn Fn(HostStatus) -> Number| {
        page.family(name, Kind::Gauge, help, |f| {
            if let Some(host) = host {
                f.one(&[], of(host));
            }
        });
    };
    let help = "Idle processors of the machine, as far as they are ours to use.";
    of_host("host_cpu_idle_cores", help, &|host| {
        Number::Thousandths(u64::from(host.idle))
    });
    let help =
        "So many processors stay idle: what is idle beyond them is given to fleets that grow.";
    of_host("host_cpu_reserve_cores", help, &|host| {
        Number::Thousandths(u64::from(host.reserve))
    });
    let help = "Memory of the machine that is to be had without swapping.";
    of_host("host_memory_available_bytes", help, &|host| {
        host.memory.into()
    });
}

/// Every state that a slot is shown in: their sum is the number of slots.
const STATES: [&str; 10] = [
    "starting",
    "warming",
    "ready",
    "unhealthy",
    "draining",
    "backoff",
    "failed",
    "done",
    "held",
    "standby",
];

fn state(worker: &WorkerStatus) -> &'static str {
    match worker.state {
        "starting" if worker.pid.is_some() => "warming",
        "starting" => "starting",
        "running" if worker.ready => "ready",
        // By its own word it takes no work.
        "running" => "unhealthy",
        "backing-off" => "backoff",
        "failed" => "failed",
        "done" => "done",
        "held" => "held",
        "standby" => "standby",
        // Killing and clearing are its last moments.
        _ => "draining",
    }
}

fn workers(page: &mut Page, scene: &Scene<'_>) {
    let fleets = || scene.measures.status.fleets.iter();
    let all = || fleets().flat_map(|fleet| fleet.workers.iter());
    let used = || all().filter_map(|worker| Some((worker, scene.usage.get(&worker.id)?)));
    let labelled = |f: &mut Family<'_>, worker: &WorkerStatus, value: Number| {
        let slot = worker.id.slot.to_string();
        let labels = [
            ("fleet", worker.id.fleet.as_str()),
            ("worker", slot.as_str()),
        ];
        f.one(&labels, value);
    };
    page.family("worker_up", Kind::Gauge, "Does its process live?", |f| {
        for worker in all() {
            labelled(f, worker, u64::from(worker.pid.is_some()).into());
        }
    });
    let help = "Processor time of the worker and what it started: from 0 for each generation.";
    page.family("worker_cpu_seconds", Kind::Counter, help, |f| {
        for (worker, usage) in used() {
            if let Some(cpu) = usage.cpu {
                labelled(f, worker, Span::nanos(cpu).into());
            }
        }
    });
    let help = "Memory of the worker and what it started.";
    page.family("worker_memory_bytes", Kind::Gauge, help, |f| {
        for (worker, usage) in used() {
            if let Some(memory) = usage.memory {
                labelled(f, worker, memory.into());
            }
        }
    });
}

fn lives(page: &mut Page, scene: &Scene<'_>) {
    let none = FleetTally::default();
    // Fleets that are there, counted or not, and those that were until lately.
    let there = &scene.measures.status.fleets;
    let mut tallies: BTreeMap<&FleetName, &FleetTally> =
        there.iter().map(|fleet| (&fleet.name, &none)).collect();
    tallies.extend(&scene.measures.tally.fleets);
    let all = || tallies.iter().map(|(name, tally)| (name.as_str(), *tally));
    let mut counter = |name, help, of: &dyn Fn(&FleetTally) -> u64| {
        page.family(name, Kind::Counter, help, |f| {
            for (name, tally) in all() {
                f.one(&[("fleet", name)], of(tally));
            }
        });
    };
    counter("worker_starts", "Processes that began.", &|t| t.starts);
    let help = "Drains that SIGKILL ended: at the end of their grace, or by request.";
    counter("worker_kills", help, &|t| t.kills);
    let help = "Output of workers that was moved to where it belongs. Lines are not counted.";
    counter("log_bytes", help, &|t| t.written);
    let help = "Output of workers that was dropped.";
    counter("log_dropped_bytes", help, &|t| t.dropped);
    let help = "Generations of workers that ended, by reason, and by what came of them.";
    page.family("worker_exits", Kind::Counter, help, |f| {
        for (name, tally) in all() {
            for ((reason, class), count) in &tally.exits {
                let labels = [("code_class", *class), ("fleet", name), ("reason", *reason)];
                f.one(&labels, *count);
            }
        }
    });
    let mut histogram = |name, help, of: &dyn Fn(&FleetTally) -> &Histogram| {
        page.family(name, Kind::Histogram, help, |f| {
            for (name, tally) in all() {
                f.all(&[("fleet", name)], of(tally));
            }
        });
    };
    let help = "From the beginning of a worker's process to its being ready.";
    histogram("worker_ready_duration_seconds", help, &|t| &t.ready);
    let help = "From a worker's stop signal to the end of everything of it.";
    histogram("worker_drain_duration_seconds", help, &|t| &t.drains);
}

fn probes(page: &mut Page, scene: &Scene<'_>) {
    let word = |aim: ProbeAim| match aim {
        ProbeAim::Ready => "ready",
        ProbeAim::Health => "health",
    };
    let all = || scene.measures.tally.fleets.iter();
    let help = "From a probe's question to its answer, or to the end of its patience.";
    page.family("probe_duration_seconds", Kind::Histogram, help, |f| {
        for (name, tally) in all() {
            for (aim, probe) in &tally.probes {
                let labels = [("fleet", name.as_str()), ("probe", word(*aim))];
                f.all(&labels, &probe.took);
            }
        }
    });
    let help = "Probes whose answer was no, or did not come.";
    page.family("probe_failures", Kind::Counter, help, |f| {
        for (name, tally) in all() {
            for (aim, probe) in &tally.probes {
                let labels = [("fleet", name.as_str()), ("probe", word(*aim))];
                f.one(&labels, probe.failures);
            }
        }
    });
}

/// What is shown of one lock, whichever fleets need it.
#[derive(Default)]
struct Lock<'a> {
    held: u64,
    transitions: u64,
    waits: Span,
    fence: Option<u64>,
    gaps: Vec<&'a Histogram>,
    /// Workers ran on for so long when their leases were over.
    outlived: Span,
}

fn locks(page: &mut Page, scene: &Scene<'_>) {
    let mut locks: BTreeMap<(&str, &str), Lock> = BTreeMap::new();
    for fleet in &scene.measures.status.fleets {
        let Some(status) = &fleet.lock else { continue };
        let lock = locks
            .entry((status.name.as_str(), status.scope))
            .or_default();
        let tally = scene.measures.tally.fleets.get(&fleet.name);
        lock.transitions += tally.map_or(0, |tally| tally.locks);
        if let Some(tally) = tally {
            lock.outlived = lock.outlived.plus(tally.outlived);
            lock.gaps
                .extend((status.scope == "cluster").then_some(&tally.gaps));
        }
        for gate in status.gates.iter().map(|(_, gate)| gate) {
            lock.see(gate, scene.now);
        }
    }
    let mut family = |name, kind, help, of: &dyn Fn(&Lock) -> Option<Number>| {
        page.family(name, kind, help, |f| {
            for ((lock, scope), value) in locks.iter().filter_map(|(name, l)| Some((*name, of(l)?)))
            {
                f.one(&[("lock", lock), ("scope", scope)], value);
            }
        });
    };
    let help = "How many slots of the lock are held here.";
    family("lock_held", Kind::Gauge, help, &|l| Some(l.held.into()));
    let help = "How often the lock was taken, or given back, here.";
    family("lock_transitions", Kind::Counter, help, &|l| {
        Some(l.transitions.into())
    });
    let help = "For how long the lock has been waited for here: 0 if nobody waits.";
    family("lock_wait_seconds", Kind::Gauge, help, &|l| {
        Some(l.waits.into())
    });
    let help = "The fence of the newest holder here; none while it is not held.";
    family("fencing_token", Kind::Gauge, help, &|l| {
        l.fence.map(Into::into)
    });
    lock_gaps(page, &locks);
}

fn lock_gaps<'a>(page: &mut Page, locks: &BTreeMap<(&'a str, &'a str), Lock<'a>>) {
    let help = "How long nobody had a lock of the cluster before it was taken here, as far as that was seen here.";
    page.family("lock_gap_seconds", Kind::Histogram, help, |f| {
        for ((lock, _), one) in locks {
            for gaps in &one.gaps {
                f.all(&[("lock", *lock)], gaps);
            }
        }
    });
    let help = "For how long workers ran on here when their leases were over, so that others may have run beside them.";
    page.family("lock_overlap_seconds", Kind::Counter, help, |f| {
        for ((lock, _), one) in locks.iter().filter(|((_, scope), _)| *scope == "cluster") {
            f.one(&[("lock", *lock)], one.outlived);
        }
    });
}

/// This node's part in its cluster, and the way to etcd.
fn etcd(page: &mut Page, scene: &Scene<'_>) {
    let cluster = scene.measures.status.cluster.as_ref();
    let mut gauge = |name, help, of: &dyn Fn(&ClusterStatus) -> Option<Number>| {
        page.family(name, Kind::Gauge, help, |f| {
            if let Some(value) = cluster.and_then(of) {
                f.one(&[], value);
            }
        });
    };
    let help = "Has this node a lease in its cluster?";
    gauge("cluster_joined", help, &|one| {
        Some(u64::from(one.state == "joined").into())
    });
    let help = "What was left of the lease when it was renewed last.";
    gauge("lease_renewal_margin_seconds", help, &|one| {
        one.margin.map(Into::into)
    });
    let help = "What is left of the lease: it falls while renewals stay away.";
    gauge("lease_remaining_seconds", help, &|one| {
        one.expires_in.map(Into::into)
    });
    let help = "Nodes of the cluster, there or missed, as this node saw it last.";
    page.family("cluster_nodes", Kind::Gauge, help, |f| {
        if let Some((present, absent)) = cluster.and_then(|one| one.nodes) {
            f.one(&[("state", "absent")], absent);
            f.one(&[("state", "present")], present);
        }
    });
    let help = "Did this endpoint of etcd answer last?";
    page.family("etcd_up", Kind::Gauge, help, |f| {
        let Some(cluster) = cluster else { return };
        for (url, one) in cluster.endpoints.iter().zip(&cluster.figures.endpoints) {
            let up = one.heard.is_some() && one.fails.is_none();
            f.one(&[("endpoint", url)], u64::from(up));
        }
    });
    let ops = || cluster.iter().flat_map(|one| &one.figures.ops);
    let help = "From requests to etcd to their answers, by kind.";
    page.family(
        "etcd_request_duration_seconds",
        Kind::Histogram,
        help,
        |f| {
            for (op, one) in ops() {
                f.all(&[("op", *op)], &one.took);
            }
        },
    );
    let help = "Requests to etcd that were answered with an error, or not at all.";
    page.family("etcd_request_failures", Kind::Counter, help, |f| {
        for (op, one) in ops() {
            f.one(&[("op", *op)], one.failures);
        }
    });
}

impl Lock<'_> {
    fn see(&mut self, gate: &GateStatus, now: Moment) {
        match (gate.state, &gate.pass) {
            ("open" | "releasing", Some(pass)) => {
                self.held += 1;
                self.fence = self.fence.max(Some(pass.fence));
            }
            ("waiting", _) => {
                let waits = gate.since.map_or(Span::ZERO, |since| now.since(since));
                self.waits = self.waits.max(waits);
            }
            _ => {}
        }
    }
}

fn jobs(page: &mut Page, scene: &Scene<'_>) {
    let (measures, none) = (scene.measures, &FleetTally::default());
    let jobs = move || {
        measures.status.fleets.iter().filter_map(move |fleet| {
            let tally = measures.tally.fleets.get(&fleet.name);
            let cron = fleet.cron.as_ref()?;
            Some((fleet.name.as_str(), cron, tally.unwrap_or(none)))
        })
    };
    let help = "Runs that are over and ticks that were skipped, by outcome.";
    page.family("cron_runs", Kind::Counter, help, |f| {
        for (name, _, tally) in jobs() {
            let mut counts: BTreeMap<&str, u64> = BTreeMap::from([
                ("failed", 0),
                ("skipped", tally.skipped),
                ("succeeded", 0),
                ("timed_out", 0),
            ]);
            for (outcome, runs) in &tally.runs {
                *counts.entry(*outcome).or_default() += runs.count();
            }
            for (outcome, count) in counts {
                f.one(&[("cron", name), ("outcome", outcome)], count);
            }
        }
    });
    let help = "How long runs took, all their attempts together.";
    page.family("cron_duration_seconds", Kind::Histogram, help, |f| {
        for (name, _, tally) in jobs() {
            for (outcome, runs) in &tally.runs {
                f.all(&[("cron", name), ("outcome", *outcome)], runs);
            }
        }
    });
    let help = "Ticks that should have been started, and were not.";
    page.family("cron_missed", Kind::Counter, help, |f| {
        for (name, _, tally) in jobs() {
            f.one(&[("cron", name)], tally.missed);
        }
    });
    let help = "When a run succeeded last, in seconds since 1970; none if that is not known.";
    let name = "cron_last_success_timestamp_seconds";
    page.family(name, Kind::Gauge, help, |f| {
        for (name, cron, tally) in jobs() {
            let history = cron.history.iter();
            let known = history.filter(|run| run.outcome == Outcome::Succeeded);
            let known = known.map(|run| run.ended);
            if let Some(ended) = known.chain(tally.last_success).max() {
                f.one(&[("cron", name)], Number::Date(ended));
            }
        }
    });
}

/// What kind of family.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

impl Kind {
    /// What a sample's name has behind its family's.
    fn suffix(self) -> &'static str {
        match self {
            Self::Counter => "_total",
            Self::Info => "_info",
            Self::Gauge | Self::Histogram => "",
        }
    }

    fn word(self, format: Format) -> &'static str {
        match (self, format) {
            (Self::Counter, _) => "counter",
            (Self::Histogram, _) => "histogram",
            (Self::Info, Format::OpenMetrics) => "info",
            (Self::Gauge, _) | (Self::Info, Format::Text) => "gauge",
        }
    }
}

/// A value.
#[derive(Clone, Copy)]
enum Number {
    Whole(u64),
    Time(Span),
    Date(Stamp),
    Thousandths(u64),
    Millionths(u64),
}

impl From<u64> for Number {
    fn from(n: u64) -> Self {
        Self::Whole(n)
    }
}

impl From<Span> for Number {
    fn from(span: Span) -> Self {
        Self::Time(span)
    }
}

impl fmt::Display for Number {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(n) => n.fmt(f),
            Self::Time(span) => (span.as_nanos() as f64 / 1e9).fmt(f),
            Self::Date(stamp) => (stamp.0 as f64 / 1e3).fmt(f),
            Self::Thousandths(n) => (*n as f64 / 1e3).fmt(f),
            Self::Millionths(n) => (*n as f64 / 1e6).fmt(f),
        }
    }
}

/// Families by name.
struct Page {
    format: Format,
    families: BTreeMap<String, String>,
}

impl Page {
    /// Writes a family. Its name is without `leasehold_`, and without the `_total` or `_info` of its samples.
    fn family(&mut self, name: &str, kind: Kind, help: &str, write: impl FnOnce(&mut Family<'_>)) {
        let name = format!("leasehold_{name}");
        let sample = format!("{name}{}", kind.suffix());
        // Text 0.0.4 knows a family by the name of its samples.
        let title = match self.format {
            Format::OpenMetrics => &name,
            Format::Text => &sample,
        };
        let word = kind.word(self.format);
        let mut text = format!("# HELP {title} {help}\n# TYPE {title} {word}\n");
        let unit = name.rsplit('_').next().unwrap_or_default();
        if self.format == Format::OpenMetrics && matches!(unit, "seconds" | "bytes") {
            text.push_str(&format!("# UNIT {title} {unit}\n"));
        }
        write(&mut Family {
            format: self.format,
            sample: &sample,
            text: &mut text,
        });
        let before = self.families.insert(name, text);
        debug_assert!(before.is_none(), "a family is written twice: {before:?}");
    }

    fn finish(self) -> String {
        let mut text: String = self.families.into_values().collect();
        if self.format == Format::OpenMetrics {
            text.push_str("# EOF\n");
        }
        text
    }
}

/// One family's samples.
struct Family<'p> {
    format: Format,
    sample: &'p str,
    text: &'p mut String,
}

impl Family<'_> {
    /// A sample. Labels come in the order of their names.
    fn one(&mut self, labels: &[(&str, &str)], value: impl Into<Number>) {
        self.line("", labels, None, value.into());
    }

    /// A histogram.
    fn all(&mut self, labels: &[(&str, &str)], histogram: &Histogram) {
        for (bound, below) in histogram.buckets() {
            let bound = bound.as_nanos() as f64 / 1e9;
            // A bound is the same label to both only if it is written as each wants it (OpenMetrics 1.0, canonical numbers).
            let le = match self.format {
                Format::OpenMetrics => format!("{bound:?}"),
                Format::Text => bound.to_string(),
            };
            self.line("_bucket", labels, Some(&le), below.into());
        }
        let count = histogram.count();
        self.line("_bucket", labels, Some("+Inf"), count.into());
        self.line("_sum", labels, None, histogram.sum().into());
        self.line("_count", labels, None, count.into());
    }

    fn line(&mut self, part: &str, labels: &[(&str, &str)], le: Option<&str>, value: Number) {
        self.text.push_str(self.sample);
        self.text.push_str(part);
        let le = le.map(|le| ("le", le));
        let mut before = '{';
        for (name, value) in labels.iter().copied().chain(le) {
            self.text.push(before);
            before = ',';
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(value, self.text);
            self.text.push('"');
        }
        if before == ',' {
            self.text.push('}');
        }
        writeln!(self.text, " {value}").expect("a string takes whatever is written");
    }
}

/// What a label's value may not hold as it is.
fn escape(value: &str, out: &mut String) {
    for c in value.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '"' => out.push_str("\\\""),
            '\n' => out.push_str("\\n"),
            c => out.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_label_holds_anything() {
        let mut text = String::new();
        escape("a\\b \"c\"\nd", &mut text);
        assert_eq!(text, "a\\\\b \\\"c\\\"\\nd");
    }

    #[test]
    fn numbers_are_written_without_exponents() {
        let written = [
            Number::Whole(u64::MAX),
            Number::Time(Span::nanos(1)),
            Number::Time(Span::secs(90)),
            Number::Date(Stamp(1_795_000_000_001)),
        ];
        let written = written.map(|number| number.to_string());
        let wanted = [
            "18446744073709551615",
            "0.000000001",
            "90",
            "1795000000.001",
        ];
        assert_eq!(written, wanted);
    }
}
