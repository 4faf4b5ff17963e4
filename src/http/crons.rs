//! Jobs as programs read them. Keys of the JSON are a public interface: they are only ever added.

use serde::{Deserialize, Serialize};

use crate::{
    config::{calendar::Calendar, spec::Overlap},
    engine::{
        book::{Outcome, RunRecord},
        status::{CronStatus, FleetStatus, Status},
    },
    time::Stamp,
    wire::ExitStatus,
};

/// `GET /v1/crons`: one job.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct CronView {
    /// Its name.
    pub name: String,
    /// `idle`, `waiting`, `running`, `retrying`, `held`, `draining`.
    pub state: String,
    /// As configured.
    pub schedule: String,
    /// IANA name.
    pub timezone: String,
    /// `skip`, `queue`, `replace`, `forbid`.
    pub overlap: Overlap,
    /// Is each tick run by one node of the cluster? Its whole history is in `/v1/cluster`, this node's here.
    #[serde(default)]
    pub cluster: bool,
    /// Its next tick, RFC 3339; none while it is held.
    pub next: Option<String>,
    /// Ticks to come, as many as were asked for, whether or not it is held.
    pub upcoming: Vec<String>,
    /// The run that is under way.
    pub running: Option<RunningView>,
    /// So many runs wait to begin.
    pub waiting: usize,
    /// The newest of its history.
    pub last: Option<RunView>,
    /// What became of runs and ticks, newest first.
    pub history: Vec<RunView>,
}

/// A run that is under way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunningView {
    /// Its tick, or when it was asked for, RFC 3339.
    pub scheduled: String,
    /// Was it asked for?
    pub manual: bool,
    /// Which attempt, from 1.
    pub attempt: u32,
    /// When it began, RFC 3339.
    pub started: String,
    /// Its last attempt failed, and the next has not begun.
    pub pausing: bool,
}

/// What became of a run, or of ticks that had none.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct RunView {
    /// Its tick, or the first of several, RFC 3339.
    pub scheduled: String,
    /// Was it asked for?
    pub manual: bool,
    /// `succeeded`, `failed`, `timed-out`, `stopped`, `called-off`, `lost`, `skipped`, `missed`.
    pub outcome: String,
    /// In words.
    pub reason: String,
    /// Exit code of a run that failed by one.
    pub code: Option<i32>,
    /// Signal of a run that failed by one.
    pub signal: Option<i32>,
    /// So many attempts were made.
    pub attempts: u32,
    /// When it began, RFC 3339; none: it never did.
    pub started: Option<String>,
    /// When this was known, RFC 3339.
    pub ended: String,
    /// From its beginning to its end, in ms, as the wall clock had it.
    pub took_ms: Option<u64>,
    /// Of so many ticks.
    pub count: u32,
}

/// Every job, or the one of that name, with so many ticks to come after `now` (or after the cursor of one that is not held).
pub fn crons(status: &Status, name: Option<&str>, upcoming: usize, now: Stamp) -> Vec<CronView> {
    let jobs = status
        .fleets
        .iter()
        .filter(|fleet| name.is_none_or(|name| fleet.name.as_str() == name));
    jobs.filter_map(|fleet| {
        let job = fleet.cron.as_ref()?;
        Some(cron(fleet, job, upcoming, now))
    })
    .collect()
}

fn cron(fleet: &FleetStatus, job: &CronStatus, upcoming: usize, now: Stamp) -> CronView {
    CronView {
        name: fleet.name.to_string(),
        state: fleet.state.to_owned(),
        schedule: job.spec.schedule.clone(),
        timezone: job.spec.timezone.clone(),
        overlap: job.spec.overlap,
        cluster: job.spec.cluster,
        next: next(job),
        upcoming: ticks(job, upcoming, now),
        running: job.run.as_ref().map(|one| RunningView {
            scheduled: one.run.scheduled.to_string(),
            manual: one.run.manual,
            attempt: one.run.attempt,
            started: one.run.started.to_string(),
            pausing: one.pausing,
        }),
        waiting: job.waiting,
        last: last(job),
        history: job.history.iter().rev().map(run).collect(),
    }
}

fn ticks(job: &CronStatus, most: usize, now: Stamp) -> Vec<String> {
    let Some(calendar) = Calendar::of(&job.spec) else {
        return Vec::new();
    };
    let first = job.next.or_else(|| calendar.next_after(now));
    let all = std::iter::successors(first, |tick| calendar.next_after(*tick));
    all.take(most).map(|tick| tick.to_string()).collect()
}

/// The next tick of a job.
pub(super) fn next(job: &CronStatus) -> Option<String> {
    job.next.map(|next| next.to_string())
}

/// What became of its last run or tick.
pub(super) fn last(job: &CronStatus) -> Option<RunView> {
    job.history.last().map(run)
}

fn run(record: &RunRecord) -> RunView {
    let (code, signal) = match record.outcome {
        Outcome::Failed(ExitStatus::Code(code)) => (Some(code), None),
        Outcome::Failed(ExitStatus::Signal { number, .. }) => (None, Some(number)),
        _ => (None, None),
    };
    RunView {
        scheduled: record.scheduled.to_string(),
        manual: record.manual,
        outcome: record.outcome.word().to_owned(),
        reason: record.outcome.reason(),
        code,
        signal,
        attempts: record.attempts,
        started: record.started.map(|started| started.to_string()),
        ended: record.ended.to_string(),
        took_ms: record
            .started
            .map(|started| record.ended.since(started).as_millis()),
        count: record.count,
    }
}
