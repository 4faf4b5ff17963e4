//! What happened, in numbers: counters and histograms, made from the same records as the lines for people. They begin at zero with each
//! supervisor. What can be read off the status is not counted here.

use std::collections::BTreeMap;

use crate::{
    engine::{
        book::Outcome,
        effect::{Ending, ProbeAim, Subject, Transition, What},
        scale::Reason,
    },
    id::{FleetName, Generation, WorkerId},
    time::{Moment, Span, Stamp},
    wire::ExitStatus,
};

/// Upper bounds, in milliseconds, of how long workers take to become ready.
const READY_MS: &[u64] = &[
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 120_000,
];
/// Of drains.
const DRAIN_MS: &[u64] = &[
    100, 500, 1_000, 5_000, 10_000, 30_000, 60_000, 120_000, 300_000, 600_000,
];
/// Of probes.
const PROBE_MS: &[u64] = &[1, 5, 10, 50, 100, 500, 1_000, 2_000, 5_000];
/// Of gaps between the holders of a cluster's lock.
const GAP_MS: &[u64] = &[
    5, 10, 50, 100, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000,
];
/// Of runs of jobs.
const RUN_MS: &[u64] = &[
    1_000, 5_000, 30_000, 60_000, 300_000, 900_000, 1_800_000, 3_600_000, 10_800_000, 43_200_000,
];
/// Of turns of the supervisor's loop.
const LAP_MS: &[u64] = &[1, 10, 100, 1_000, 5_000];

/// So many were no longer than that.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Histogram {
    bounds_ms: &'static [u64],
    /// One for each bound, and one for what is longer than all.
    counts: Vec<u64>,
    sum: Span,
}

impl Histogram {
    pub(super) fn new(bounds_ms: &'static [u64]) -> Self {
        Self {
            bounds_ms,
            counts: vec![0; bounds_ms.len() + 1],
            sum: Span::ZERO,
        }
    }

    /// One more.
    pub fn add(&mut self, value: Span) {
        let fits = |bound: &u64| value <= Span::millis(*bound);
        let at = self.bounds_ms.iter().position(fits);
        self.counts[at.unwrap_or(self.bounds_ms.len())] += 1;
        self.sum = self.sum.plus(value);
    }

    /// Each bound, with how many were no longer.
    pub fn buckets(&self) -> impl Iterator<Item = (Span, u64)> {
        let mut below = 0;
        let counts = self.bounds_ms.iter().zip(&self.counts);
        counts.map(move |(bound, count)| {
            below += count;
            (Span::millis(*bound), below)
        })
    }

    /// How many there were.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// All of them together.
    pub fn sum(&self) -> Span {
        self.sum
    }
}

/// The probes of one fleet that have one aim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProbeTally {
    /// From question to answer.
    pub took: Histogram,
    /// So many said no, or nothing.
    pub failures: u64,
}

/// What happened to one fleet, or job.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FleetTally {
    /// Processes that began.
    pub starts: u64,
    /// Generations that ended, by reason and class of exit code.
    pub exits: BTreeMap<(&'static str, &'static str), u64>,
    /// From a process' beginning to its being ready.
    pub ready: Histogram,
    /// From the stop signal to the end of everything of a worker.
    pub drains: Histogram,
    /// Drains that SIGKILL ended.
    pub kills: u64,
    /// Answers of probes.
    pub probes: BTreeMap<ProbeAim, ProbeTally>,
    /// Failures to reach whom it is published to, by target.
    pub unpublished: BTreeMap<String, u64>,
    /// Growths and shrinks, by direction and reason.
    pub scaled: BTreeMap<(&'static str, Reason), u64>,
    /// Locks taken and given back.
    pub locks: u64,
    /// How long nobody had a cluster's lock before it was taken here.
    pub gaps: Histogram,
    /// For how long leaders ran on when their leases were over.
    pub outlived: Span,
    /// Runs that are over, by outcome: how long their attempts ran together.
    pub runs: BTreeMap<&'static str, Histogram>,
    /// How long the workers of its slots ran that ended since its last run was over.
    ran: Span,
    /// Ticks that were skipped.
    pub skipped: u64,
    /// Ticks that should have been started, and were not.
    pub missed: u64,
    /// Bytes of output that were moved to where they belong.
    pub written: u64,
    /// Bytes of output that were dropped.
    pub dropped: u64,
    /// When a run succeeded last.
    pub last_success: Option<Stamp>,
}

impl Default for FleetTally {
    fn default() -> Self {
        Self {
            starts: 0,
            exits: BTreeMap::new(),
            ready: Histogram::new(READY_MS),
            drains: Histogram::new(DRAIN_MS),
            kills: 0,
            probes: BTreeMap::new(),
            unpublished: BTreeMap::new(),
            scaled: BTreeMap::new(),
            locks: 0,
            gaps: Histogram::new(GAP_MS),
            outlived: Span::ZERO,
            runs: BTreeMap::new(),
            ran: Span::ZERO,
            skipped: 0,
            missed: 0,
            written: 0,
            dropped: 0,
            last_success: None,
        }
    }
}

/// Everything that is counted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    /// By fleet; jobs among them.
    pub fleets: BTreeMap<FleetName, FleetTally>,
    /// When a configuration was accepted last; none: by a supervisor that did not tell.
    pub accepted: Option<Stamp>,
    /// How long each turn of the supervisor's loop took: whatever happens meanwhile waits.
    pub laps: Histogram,
    /// Drains under way: which generation, since when.
    drains: BTreeMap<WorkerId, (Generation, Moment)>,
}

impl Tally {
    /// Nothing has happened since this configuration was accepted.
    pub fn new(accepted: Option<Stamp>) -> Self {
        Self {
            fleets: BTreeMap::new(),
            accepted,
            laps: Histogram::new(LAP_MS),
            drains: BTreeMap::new(),
        }
    }

    /// Counts one thing that happened.
    pub fn record(&mut self, transition: &Transition) {
        match &transition.subject {
            Subject::Node => self.of_node(&transition.what),
            Subject::Fleet(name) => {
                of_fleet(
                    self.fleets.entry(name.clone()).or_default(),
                    &transition.what,
                );
            }
            Subject::Worker(worker, generation) => {
                self.of_worker(worker, *generation, transition);
            }
        }
    }

    /// A probe was answered.
    pub fn probed(&mut self, fleet: FleetName, aim: ProbeAim, took: Span, passed: bool) {
        let probes = &mut self.fleets.entry(fleet).or_default().probes;
        let probe = probes.entry(aim).or_insert_with(|| ProbeTally {
            took: Histogram::new(PROBE_MS),
            failures: 0,
        });
        probe.took.add(took);
        probe.failures += u64::from(!passed);
    }

    /// A published file failed.
    pub fn unpublished(&mut self, fleet: FleetName, target: String) {
        let failures = &mut self.fleets.entry(fleet).or_default().unpublished;
        *failures.entry(target).or_default() += 1;
    }

    /// So many bytes of a fleet's output were moved, and so many dropped, in all.
    pub fn wrote(&mut self, fleet: FleetName, written: u64, dropped: u64) {
        let fleet = self.fleets.entry(fleet).or_default();
        (fleet.written, fleet.dropped) = (written, dropped);
    }

    /// The loop made a turn.
    pub fn lap(&mut self, took: Span) {
        self.laps.add(took);
    }

    /// Forgets fleets that nobody will ask about any more.
    pub fn retain(&mut self, wanted: impl Fn(&FleetName) -> bool) {
        self.fleets.retain(|name, _| wanted(name));
        self.drains.retain(|worker, _| wanted(&worker.fleet));
    }

    fn of_node(&mut self, what: &What) {
        if let What::Accepted { shown, .. } = what {
            self.accepted = Some(*shown);
        }
    }

    fn of_worker(&mut self, worker: &WorkerId, generation: Generation, transition: &Transition) {
        let fleet = self.fleets.entry(worker.fleet.clone()).or_default();
        match &transition.what {
            What::Started { .. } => fleet.starts += 1,
            What::Ready { after } => fleet.ready.add(*after),
            What::Stopping { .. } => {
                let drain = (generation, transition.at);
                self.drains.insert(worker.clone(), drain);
            }
            What::Killed { drained: true, .. } => fleet.kills += 1,
            What::Ended {
                status,
                ending,
                uptime,
            } => {
                fleet.ran = fleet.ran.plus(*uptime);
                let labels = (reason(*status, *ending), code_class(*status));
                *fleet.exits.entry(labels).or_default() += 1;
                // One that began under another supervisor has no beginning here.
                let drain = self.drains.remove(worker);
                if let Some((_, since)) = drain.filter(|(drained, _)| *drained == generation) {
                    fleet.drains.add(transition.at.since(since));
                }
            }
            What::GateOpened { gap, .. } => {
                fleet.locks += 1;
                if let Some(gap) = gap {
                    fleet.gaps.add(*gap);
                }
            }
            What::GateShut { .. } => fleet.locks += 1,
            What::Outlived { by } => fleet.outlived = fleet.outlived.plus(*by),
            // What is neither a beginning nor an end is told in words alone.
            _ => {}
        }
    }
}

fn of_fleet(job: &mut FleetTally, what: &What) {
    match what {
        What::RunEnded { outcome, ended, .. } => {
            let ran = std::mem::take(&mut job.ran);
            let runs = job.runs.entry(outcome_label(*outcome));
            runs.or_insert_with(|| Histogram::new(RUN_MS)).add(ran);
            if *outcome == Outcome::Succeeded {
                job.last_success = Some(*ended);
            }
        }
        What::RunSkipped { .. } => job.skipped += 1,
        What::RunsMissed { count, .. } => job.missed += u64::from(*count),
        What::RunUnclaimed { .. } => job.missed += 1,
        What::Grew { reason, .. } => *job.scaled.entry(("up", *reason)).or_default() += 1,
        What::Shrank { reason, .. } => *job.scaled.entry(("down", *reason)).or_default() += 1,
        // What else a fleet decides about itself is told in words alone.
        _ => {}
    }
}

/// Why a generation ended.
fn reason(status: ExitStatus, ending: Option<Ending>) -> &'static str {
    match (ending, status) {
        (Some(Ending::Held), _) => "stop",
        (Some(Ending::ScaleIn), _) => "scale_in",
        (Some(Ending::Removed), _) => "removed",
        (Some(Ending::Shutdown), _) => "shutdown",
        (Some(Ending::Rollout), _) => "rollout",
        (Some(Ending::StartTimeout), _) => "start_timeout",
        (Some(Ending::Unhealthy), _) => "probe",
        (Some(Ending::Watchdog), _) => "watchdog",
        (Some(Ending::LockLost), _) => "lock_lost",
        (Some(Ending::LeaseLapsed), _) => "lease_lapsed",
        (Some(Ending::Released), _) => "released",
        (Some(Ending::Timeout), _) => "timeout",
        (Some(Ending::Replaced), _) => "replaced",
        (None, ExitStatus::Code(_)) => "exit",
        (None, ExitStatus::Signal { .. }) => "signal",
        (None, ExitStatus::SpawnFailed { .. }) => "spawn",
    }
}

fn code_class(status: ExitStatus) -> &'static str {
    match status {
        ExitStatus::Code(0) => "zero",
        ExitStatus::Code(_) => "nonzero",
        ExitStatus::Signal { .. } => "signal",
        ExitStatus::SpawnFailed { .. } => "none",
    }
}

fn outcome_label(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Succeeded => "succeeded",
        Outcome::Failed(_) => "failed",
        Outcome::TimedOut => "timed_out",
        Outcome::Stopped(_) => "stopped",
        Outcome::CalledOff => "called_off",
        Outcome::Lost => "lost",
        Outcome::Skipped(_) => "skipped",
        Outcome::Missed(_) => "missed",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tell(tally: &mut Tally, at_ms: u64, generation: u64, what: What) {
        let worker = WorkerId::new("web".parse().unwrap(), 0);
        tally.record(&Transition {
            at: Moment(at_ms * 1_000_000),
            subject: Subject::Worker(worker, Generation(generation)),
            what,
        });
    }

    fn stopping(ending: Ending) -> What {
        What::Stopping {
            ending,
            signal: libc::SIGTERM,
            grace: Span::secs(1),
        }
    }

    fn ended(status: ExitStatus, ending: Option<Ending>) -> What {
        What::Ended {
            status,
            ending,
            uptime: Span::secs(1),
        }
    }

    #[test]
    fn a_drain_counts_from_its_signal_to_its_end() {
        let killed = ExitStatus::Signal {
            number: libc::SIGKILL,
            core: false,
        };
        let mut tally = Tally::new(None);
        tell(&mut tally, 0, 1, What::Started { pid: 7 });
        tell(&mut tally, 1_000, 1, stopping(Ending::Rollout));
        let (reason, drained) = ("its grace is over", true);
        tell(&mut tally, 1_700, 1, What::Killed { reason, drained });
        tell(&mut tally, 1_701, 1, ended(killed, Some(Ending::Rollout)));
        // Not asked to stop before: no drain.
        tell(&mut tally, 2_000, 2, What::Started { pid: 8 });
        let (reason, drained) = ("its lock is gone", false);
        tell(&mut tally, 2_100, 2, What::Killed { reason, drained });
        tell(&mut tally, 2_101, 2, ended(killed, Some(Ending::LockLost)));
        tell(&mut tally, 3_000, 3, ended(ExitStatus::Code(3), None));
        let web = &tally.fleets[&"web".parse::<FleetName>().unwrap()];
        assert_eq!((web.starts, web.kills), (2, 1));
        assert_eq!(web.drains.count(), 1);
        assert_eq!(web.drains.sum(), Span::millis(701));
        let exits: Vec<_> = web.exits.iter().map(|(key, n)| (*key, *n)).collect();
        assert_eq!(
            exits,
            [
                (("exit", "nonzero"), 1),
                (("lock_lost", "signal"), 1),
                (("rollout", "signal"), 1)
            ]
        );
    }

    #[test]
    fn buckets_are_cumulative_and_a_bound_belongs_to_its_own() {
        let mut laps = Histogram::new(LAP_MS);
        for ms in [0, 1, 2, 10, 5_000, 5_001] {
            laps.add(Span::millis(ms));
        }
        let below: Vec<u64> = laps.buckets().map(|(_, below)| below).collect();
        assert_eq!(below, [2, 4, 4, 4, 5]);
        assert_eq!(laps.count(), 6);
        assert_eq!(laps.sum(), Span::millis(10_014));
    }

    #[test]
    fn a_fleet_that_is_gone_is_forgotten() {
        let mut tally = Tally::new(None);
        tell(&mut tally, 0, 1, stopping(Ending::Removed));
        tally.probed("api".parse().unwrap(), ProbeAim::Ready, Span::ZERO, false);
        tally.retain(|name| name.as_str() == "api");
        assert_eq!(tally.fleets.len(), 1);
        assert!(tally.drains.is_empty());
    }

    #[test]
    fn runs_and_ticks_of_a_job() {
        let mut tally = Tally::new(None);
        let scheduled = Stamp(0);
        let ends = |outcome, ended| What::RunEnded {
            scheduled,
            attempts: 1,
            outcome,
            ended: Stamp(ended),
        };
        let why = crate::engine::book::Miss::Late;
        for what in [
            ends(Outcome::Succeeded, 5_000),
            ends(Outcome::TimedOut, 9_000),
            What::RunSkipped {
                scheduled,
                why: crate::engine::book::Skip::Overlap,
            },
            What::RunsMissed {
                first: scheduled,
                last: scheduled,
                count: 3,
                why,
            },
            What::RunUnclaimed {
                scheduled,
                why: String::new(),
            },
        ] {
            tally.record(&Transition {
                at: Moment(0),
                subject: Subject::Fleet("report".parse().unwrap()),
                what,
            });
        }
        let job = &tally.fleets[&"report".parse::<FleetName>().unwrap()];
        let runs: Vec<_> = job.runs.iter().map(|(k, h)| (*k, h.count())).collect();
        assert_eq!(runs, [("succeeded", 1), ("timed_out", 1)]);
        assert_eq!((job.skipped, job.missed), (1, 4));
        assert_eq!(job.last_success, Some(Stamp(5_000)));
    }
}
