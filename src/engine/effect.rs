//! Everything the engine can want done, and the one record of each thing that happened.

use std::fmt;

use crate::{
    config::{
        Config,
        spec::{EnvFile, FleetSpec, SingletonSpec},
        units::{self, count},
    },
    engine::{
        book::{Book, Miss, Outcome, Run, Skip},
        command::{Denial, Reply},
        event::Purpose,
        intent::Intent,
    },
    id::{FleetName, Generation, RequestId, WorkerId},
    time::{Moment, Span, Stamp},
    wire::{ExitStatus, Op},
};

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Effect {
    /// Tell the keeper. Consecutive ones travel together.
    Keeper(Op),
    /// Ask a worker over the network.
    Probe {
        /// Whom.
        worker: WorkerId,
        /// Which generation.
        generation: Generation,
        /// Where and what.
        target: ProbeTarget,
        /// No answer by then is a failure.
        timeout: Span,
    },
    /// Read environment files.
    ReadEnv {
        /// For whom.
        worker: WorkerId,
        /// The generation it is to follow.
        after: Generation,
        /// Which.
        files: Vec<EnvFile>,
    },
    /// Take a lock for a worker; answered by `Gate` events.
    SeekGate {
        /// For whom.
        worker: WorkerId,
        /// Which.
        spec: SingletonSpec,
    },
    /// Give its lock back, or look for it no longer: nothing of the worker is left.
    ShutGate(WorkerId),
    /// Read the configuration, bind what it needs.
    ReadConfig(Purpose),
    /// This configuration is now the accepted one.
    Accept {
        /// The whole.
        config: Box<Config>,
        /// What changed fleets looked like before, for rollback.
        previous: Vec<(FleetName, FleetSpec)>,
    },
    /// Write the operator's intent to disk; answered by `IntentSaved`.
    SaveIntent(Intent),
    /// Say so, by `Wall`, when the wall clock shows this or more; none: nobody waits for it.
    WakeAt(Option<Stamp>),
    /// Read a job's book; answered by `BookRead`.
    ReadBook(FleetName),
    /// Write a job's book to disk; answered by `BookKept`.
    KeepBook {
        /// Whose.
        fleet: FleetName,
        /// It.
        book: Box<Book>,
        /// The run that it claims: refused if what is on disk does not allow it.
        claim: Option<Run>,
    },
    /// A slot is not used any more: read its log to the end and close it.
    CloseLogs(WorkerId),
    /// Close sockets of this fleet that are not among these names.
    KeepSockets {
        /// Whose.
        fleet: FleetName,
        /// Names still wanted.
        names: Vec<String>,
    },
    /// Reopen log files.
    ReopenLogs,
    /// Answer a client.
    Reply {
        /// Whom.
        request: RequestId,
        /// What.
        reply: Result<Reply, Denial>,
    },
    /// Something happened.
    Record(Transition),
}

/// A probe with everything filled in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ProbeTarget {
    /// Connect.
    Tcp(String),
    /// GET.
    Http {
        /// `HOST:PORT`.
        address: String,
        /// Path.
        path: String,
    },
}

/// What a step wants done, in order.
#[derive(Debug, Default)]
pub struct Effects {
    /// The list.
    pub list: Vec<Effect>,
}

impl Effects {
    /// Adds one for the keeper.
    pub(super) fn keeper(&mut self, op: Op) {
        self.list.push(Effect::Keeper(op));
    }

    /// Adds the record of something that happened.
    pub(super) fn record(&mut self, at: Moment, subject: Subject, what: What) {
        self.list
            .push(Effect::Record(Transition { at, subject, what }));
    }
}

/// One thing that happened: the log line, the event stream and the counters are all made from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Transition {
    /// When.
    pub at: Moment,
    /// To whom.
    pub subject: Subject,
    /// What.
    pub what: What,
}

/// Whom it is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Subject {
    /// The daemon.
    Node,
    /// A fleet.
    Fleet(FleetName),
    /// One generation of a worker.
    Worker(WorkerId, Generation),
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Node => f.pad("leasehold"),
            Self::Fleet(name) => name.fmt(f),
            Self::Worker(worker, _) => worker.fmt(f),
        }
    }
}

/// Why a worker is being ended.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
pub enum Ending {
    /// An operator stopped its fleet or slot.
    Held,
    /// Its fleet is smaller now.
    ScaleIn,
    /// Its fleet is not configured any more.
    Removed,
    /// The daemon stops.
    Shutdown,
    /// It is replaced by another revision, or restarted on request.
    Rollout,
    /// It was not ready in time.
    StartTimeout,
    /// Its probe failed too often.
    Unhealthy,
    /// Its watchdog was silent too long, or triggered.
    Watchdog,
    /// Its lock excludes nobody any more.
    LockLost,
    /// A run of a job took longer than its timeout.
    Timeout,
    /// A run of a job makes room for the next one.
    Replaced,
}

impl Ending {
    /// Is the slot to be empty, or refilled by the fleet, afterwards; rather than restarted as after a crash?
    pub fn on_purpose(self) -> bool {
        match self {
            Self::Held
            | Self::ScaleIn
            | Self::Removed
            | Self::Shutdown
            | Self::Rollout
            | Self::LockLost
            | Self::Replaced => true,
            Self::StartTimeout | Self::Unhealthy | Self::Watchdog | Self::Timeout => false,
        }
    }

    /// The word in status and events.
    pub fn word(self) -> &'static str {
        match self {
            Self::Held => "held",
            Self::ScaleIn => "scale-in",
            Self::Removed => "removed",
            Self::Shutdown => "shutdown",
            Self::Rollout => "rollout",
            Self::StartTimeout => "start-timeout",
            Self::Unhealthy => "unhealthy",
            Self::Watchdog => "watchdog",
            Self::LockLost => "lock-lost",
            Self::Timeout => "timeout",
            Self::Replaced => "replaced",
        }
    }
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum What {
    /// The worker's program runs.
    Started {
        /// Its pid.
        pid: i32,
    },
    /// It is ready.
    Ready {
        /// How long that took.
        after: Span,
    },
    /// It does not take work any more, by its own word.
    NotReady,
    /// Its first stop signal is on its way.
    Stopping {
        /// Why.
        ending: Ending,
        /// Which signal.
        signal: i32,
        /// SIGKILL follows after this.
        grace: Span,
    },
    /// It asked for more time.
    Extended {
        /// In all, from now.
        grace: Span,
    },
    /// SIGKILL to everything in its containment.
    Killed {
        /// Why.
        reason: &'static str,
    },
    /// SIGKILL was long ago and something is still there.
    StillThere {
        /// How long ago.
        since: Span,
    },
    /// It ended and nothing of it is left.
    Ended {
        /// How.
        status: ExitStatus,
        /// Why, if we wanted it.
        ending: Option<Ending>,
        /// How long it had run.
        uptime: Span,
    },
    /// It will be started again.
    BackingOff {
        /// After this pause.
        pause: Span,
        /// Failures in a row.
        failures: u32,
    },
    /// Too many failures.
    Failed {
        /// Tried again after this; none: for good.
        retry: Option<Span>,
    },
    /// It ended and its policy wants no restart.
    Done,
    /// A step before its start failed.
    NotPrepared {
        /// Which, and why.
        why: String,
    },
    /// A probe failed.
    ProbeFailed {
        /// Why.
        why: String,
        /// So often in a row.
        times: u32,
    },
    /// A restart for its health's sake was not done.
    RestartWithheld {
        /// What reached the cap of so many a minute.
        cap: u32,
    },
    /// An old generation's news arrived and was dropped.
    OldNews,
    /// A row could not be read and was rebuilt from what the keeper knows.
    Recovered,
    /// A rollout began.
    RolloutBegan {
        /// So many to replace.
        workers: usize,
    },
    /// It is through.
    RolloutDone,
    /// It stopped at a failure.
    RolloutFailed {
        /// Which worker failed.
        worker: WorkerId,
        /// Is the revision before coming back?
        rollback: bool,
    },
    /// An operator's hold.
    HeldBy {
        /// Who.
        who: String,
    },
    /// An operator's hold was lifted.
    Released {
        /// Who.
        who: String,
    },
    /// An operator's word on how many.
    Scaled {
        /// So many; none: as configured.
        workers: Option<u32>,
        /// Who.
        who: String,
    },
    /// A configuration was accepted.
    Accepted {
        /// So many fleets changed.
        changes: usize,
    },
    /// A configuration was not.
    Rejected {
        /// Why.
        why: String,
    },
    /// The daemon drains, or kills, everything.
    ShuttingDown {
        /// Kill?
        now: bool,
        /// pid and uid of who asked.
        by: Option<(i32, u32)>,
    },
    /// Its lock was taken: it may run.
    GateOpened {
        /// Names the holder.
        fence: u64,
    },
    /// Its lock cannot be had yet.
    GateWaits {
        /// Why.
        why: String,
    },
    /// Its lock was given back.
    GateShut,
    /// Its lock excludes nobody any more.
    GateLost {
        /// Why.
        why: String,
    },
    /// A run of a job begins, or its next attempt.
    RunBegan {
        /// Its tick.
        scheduled: Stamp,
        /// From 1.
        attempt: u32,
        /// After its tick.
        late: Span,
    },
    /// A run of a job is over.
    RunEnded {
        /// Its tick.
        scheduled: Stamp,
        /// So many were made.
        attempts: u32,
        /// What became of it.
        outcome: Outcome,
    },
    /// A run failed and is tried again.
    RunRetries {
        /// Its tick.
        scheduled: Stamp,
        /// The one that failed.
        attempt: u32,
        /// So many there may be.
        of: u32,
        /// How it failed.
        outcome: Outcome,
        /// The next one begins after this.
        pause: Span,
    },
    /// A tick waits for the run before.
    RunQueued {
        /// Which.
        scheduled: Stamp,
        /// So many wait.
        waiting: usize,
    },
    /// A tick was skipped.
    RunSkipped {
        /// Which.
        scheduled: Stamp,
        /// Why.
        why: Skip,
    },
    /// Ticks were not started.
    RunsMissed {
        /// The first.
        first: Stamp,
        /// The last.
        last: Stamp,
        /// So many, or more if it is 10,000.
        count: u32,
        /// Why.
        why: Miss,
    },
    /// A tick could not be claimed, and was not started.
    RunUnclaimed {
        /// Which.
        scheduled: Stamp,
        /// Why.
        why: String,
    },
    /// A run was claimed, and nobody saw its end.
    RunLost {
        /// Its tick.
        scheduled: Stamp,
        /// The attempt that was lost.
        attempt: u32,
        /// Is it tried again?
        again: bool,
    },
    /// Somebody wants a run now.
    RunAsked {
        /// Who.
        who: String,
    },
    /// The wall clock was set back over ticks.
    ClockSetBack {
        /// By so much.
        by: Span,
    },
    /// What is known of a job's past could not be read: it begins anew.
    BookForgotten {
        /// Why.
        why: String,
    },
    /// It could not be written.
    BookNotKept {
        /// Why.
        why: String,
    },
    /// A supervisor took over the rows of its predecessor.
    TookOver {
        /// So many living workers.
        workers: usize,
    },
}

impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Started { pid } => write!(f, "started, pid {pid}"),
            Self::Ready { after } => write!(f, "ready after {}", Rough(*after)),
            Self::NotReady => f.write_str("not ready any more, by its own word"),
            Self::Stopping {
                ending,
                signal,
                grace,
            } => {
                write!(
                    f,
                    "stopping ({}): {}, SIGKILL in {}",
                    ending.word(),
                    units::signal_name(*signal),
                    Rough(*grace)
                )
            }
            Self::Extended { grace } => {
                write!(f, "asked for more time: SIGKILL in {}", Rough(*grace))
            }
            Self::Killed { reason } => write!(f, "SIGKILL to everything of it: {reason}"),
            Self::StillThere { since } => write!(
                f,
                "still not gone {} after SIGKILL: it hangs in the kernel",
                Rough(*since)
            ),
            Self::Ended {
                status,
                ending,
                uptime,
            } => {
                write!(f, "{} after {}", ExitWords(*status), Rough(*uptime))?;
                ending.map_or(Ok(()), |ending| write!(f, " ({})", ending.word()))
            }
            Self::BackingOff { pause, failures } if *pause == Span::ZERO => {
                write!(f, "restarting at once ({failures} in a row)")
            }
            Self::BackingOff { pause, failures } => {
                write!(f, "restarting in {} ({failures} in a row)", Rough(*pause))
            }
            Self::Failed { retry: Some(retry) } => {
                write!(f, "failed too often; next try in {}", Rough(*retry))
            }
            Self::Failed { retry: None } => {
                f.write_str("failed too often; given up (`leasehold start` tries again)")
            }
            Self::Done => f.write_str("done: its restart policy wants no other"),
            Self::NotPrepared { why } => write!(f, "not started: {why}"),
            Self::ProbeFailed { why, times } => write!(f, "probe failed ({times} in a row): {why}"),
            Self::RestartWithheld { cap } => write!(
                f,
                "unwell, but there were {} for health in a minute, which is the cap; left running",
                count(*cap, "restart")
            ),
            Self::OldNews => f.write_str("news of an old generation dropped"),
            Self::Recovered => {
                f.write_str("its row could not be read; rebuilt from what the keeper knows")
            }
            Self::RolloutBegan { workers } => {
                write!(f, "rollout began: {} to replace", count(*workers, "worker"))
            }
            Self::RolloutDone => f.write_str("rollout done"),
            Self::RolloutFailed {
                worker,
                rollback: true,
            } => write!(
                f,
                "rollout failed at {worker}; going back to the revision before"
            ),
            Self::RolloutFailed {
                worker,
                rollback: false,
            } => write!(
                f,
                "rollout stopped: {worker} failed; the others keep their revision"
            ),
            Self::HeldBy { who } => write!(f, "held by {who}"),
            Self::Released { who } => write!(f, "released by {who}"),
            Self::Scaled {
                workers: Some(n),
                who,
            } => write!(f, "scaled to {n} by {who}"),
            Self::Scaled { workers: None, who } => {
                write!(f, "back to its configured size by {who}")
            }
            Self::Accepted { changes: 0 } => f.write_str("configuration accepted: nothing changes"),
            Self::Accepted { changes: 1 } => f.write_str("configuration accepted: 1 fleet changes"),
            Self::Accepted { changes } => {
                write!(f, "configuration accepted: {changes} fleets change")
            }
            Self::Rejected { why } => write!(f, "configuration rejected, nothing changed: {why}"),
            Self::ShuttingDown { now, by } => {
                write!(
                    f,
                    "{}",
                    if *now {
                        "killing everything"
                    } else {
                        "draining everything"
                    }
                )?;
                by.map_or(Ok(()), |(pid, uid)| {
                    write!(f, " (asked by pid {pid}, uid {uid})")
                })
            }
            Self::GateOpened { fence } => write!(f, "has its lock, fence {fence}"),
            Self::GateWaits { why } => write!(f, "waits for its lock: {why}"),
            Self::GateShut => f.write_str("gave its lock back"),
            Self::GateLost { why } => write!(f, "lost its lock: {why}"),
            Self::RunBegan {
                scheduled,
                attempt,
                late,
            } => {
                write!(f, "run of {scheduled} begins")?;
                match attempt {
                    0 | 1 if *late < Span::secs(1) => Ok(()),
                    0 | 1 => write!(f, ", {} late", Rough(*late)),
                    attempt => write!(f, ", attempt {attempt}"),
                }
            }
            Self::RunEnded {
                scheduled,
                attempts,
                outcome,
            } => {
                write!(f, "run of {scheduled} is over: {}", outcome.reason())?;
                match attempts {
                    0 | 1 => Ok(()),
                    attempts => write!(f, ", {attempts} attempts"),
                }
            }
            Self::RunRetries {
                scheduled,
                attempt,
                of,
                outcome,
                pause,
            } => write!(
                f,
                "run of {scheduled}, attempt {attempt} of {of}: {}; tried again in {}",
                outcome.reason(),
                Rough(*pause)
            ),
            Self::RunQueued { scheduled, waiting } => {
                write!(f, "run of {scheduled} waits; {waiting} in the queue")
            }
            Self::RunSkipped { scheduled, why } => {
                write!(f, "run of {scheduled} skipped: {}", why.reason())
            }
            Self::RunsMissed {
                first,
                count: 1,
                why,
                ..
            } => write!(f, "run of {first} missed: {}", why.reason()),
            Self::RunsMissed {
                first,
                last,
                count,
                why,
            } => write!(
                f,
                "{count} runs from {first} to {last} missed: {}",
                why.reason()
            ),
            Self::RunUnclaimed { scheduled, why } => write!(
                f,
                "run of {scheduled} missed: it could not be claimed: {why}"
            ),
            Self::RunLost {
                scheduled,
                attempt,
                again,
            } => write!(
                f,
                "run of {scheduled}, attempt {attempt}, was lost with its keeper{}",
                if *again { "; it is tried again" } else { "" }
            ),
            Self::RunAsked { who } => write!(f, "a run now, asked by {who}"),
            Self::ClockSetBack { by } => write!(
                f,
                "the wall clock was set back by {}; ticks that had their turn are not started again",
                Rough(*by)
            ),
            Self::BookForgotten { why } => {
                write!(f, "its past is not known, it begins anew: {why}")
            }
            Self::BookNotKept { why } => {
                write!(
                    f,
                    "its history cannot be kept now, it is tried again: {why}"
                )
            }
            Self::TookOver { workers } => {
                write!(
                    f,
                    "supervisor took over {}",
                    count(*workers, "living worker")
                )
            }
        }
    }
}

/// A duration for reading, not for parsing: `1.2s`, `340ms`, `2h5m`.
pub struct Rough(pub Span);

impl fmt::Display for Rough {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ms = self.0.as_millis();
        match ms {
            _ if self.0.is_forever() => f.pad("infinity"),
            0 if self.0 == Span::ZERO => f.pad("0s"),
            0 => f.pad(&format!("{}us", self.0.as_nanos() / 1_000)),
            1..=999 => f.pad(&format!("{ms}ms")),
            1_000..=9_999 => f.pad(&format!("{}.{}s", ms / 1_000, ms % 1_000 / 100)),
            10_000..=119_999 => f.pad(&format!("{}s", ms / 1_000)),
            120_000..=7_199_999 => f.pad(&format!("{}m{}s", ms / 60_000, ms / 1_000 % 60)),
            7_200_000..=172_799_999 => f.pad(&format!("{}h{}m", ms / 3_600_000, ms / 60_000 % 60)),
            _ => f.pad(&format!("{}d{}h", ms / 86_400_000, ms / 3_600_000 % 24)),
        }
    }
}

/// A status for reading: `exited with code 3`, `killed by SIGKILL`.
pub struct ExitWords(pub ExitStatus);

impl fmt::Display for ExitWords {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ExitStatus::Code(code) => write!(f, "exited with code {code}"),
            ExitStatus::Signal { number, core } => {
                write!(
                    f,
                    "ended by {}{}",
                    units::signal_name(number),
                    if core { " (core dumped)" } else { "" }
                )
            }
            ExitStatus::SpawnFailed { step, errno } => {
                let known = nix::errno::Errno::from_raw(errno);
                write!(
                    f,
                    "failed to {}: {known:?} ({})",
                    step.phrase(),
                    known.desc()
                )
            }
        }
    }
}
