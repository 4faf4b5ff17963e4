//! A job: when a run of it starts, and what becomes of it. The calendar names ticks; the one slot of the job's fleet does the rest. A
//! tick is claimed in the job's book, on disk, before its run starts.
//!
//! ```text
//!   Opening ──its book was read──▶ Idle ──a run is due──▶ Seeking ──has its lock──▶ Claiming ──on disk──▶ Running ◀─────────┐
//!                                   ▲                        │ has not: skipped         │ is not: missed     │         a pause
//!                                   ├◀───────────────────────┴──────────────────────────┘                    │              │
//!                                   ├◀──────────────────────────── its end ──────────────────────────────────┤              │
//!                                   └◀──────────────────── nobody tries it again ────────────────────────────┼────────── Pausing
//!                                                                                                            └─ it failed ─▶┘
//! ```

use std::collections::{BTreeMap, VecDeque};

use serde::{Deserialize, Serialize};

use crate::{
    config::{
        calendar::Calendar,
        spec::{CronSpec, Overlap},
    },
    engine::{
        book::{Book, Miss, Outcome, Run, RunRecord, Skip},
        bookkeeping::{DISK_PATIENCE, Disk},
        cluster::docket::{Fate, Verdict},
        effect::{Effect, Effects, Ending, Subject, What},
        fleet::Stance,
        jitter::Jitter,
        slot::LastExit,
    },
    exit::ExitCode,
    id::{FleetName, RequestId},
    time::{Moment, Span, Stamp},
    wire::ExitStatus,
};

/// Whoever had the lock a moment ago, our own last run included, may be letting it go.
pub(super) const LOCK_PATIENCE: Span = Span::millis(1_500);
/// In a cluster what a dead node may have left has to end first.
pub(super) const FAR_LOCK_PATIENCE: Span = Span::secs(5);
/// So long it is asked whose a run is: an election of etcd's takes less.
const CLUSTER_PATIENCE: Span = Span::secs(10);
/// So many ends are remembered for etcd.
pub(super) const FATES_MAX: usize = 64;

/// The wall clock as it was shown last: what it shows now follows from the time that has passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Clock {
    /// What it showed.
    pub(super) shown: Stamp,
    /// When.
    pub(super) at: Moment,
}

impl Clock {
    pub(super) fn at(self, now: Moment) -> Stamp {
        self.shown.after(now.since(self.at))
    }
}

/// What a worker of a job is told of its run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Occasion {
    /// Its tick.
    pub(super) scheduled: Stamp,
    /// From 1.
    pub(super) attempt: u32,
}

/// Where a job is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Phase {
    /// Its book is being read.
    #[default]
    Opening,
    /// No run.
    Idle,
    /// Its lock is wanted.
    Seeking {
        run: Run,
        /// No longer than this.
        until: Moment,
    },
    /// Its claim is on its way to disk.
    Claiming {
        run: Run,
        /// No longer than this.
        until: Moment,
    },
    /// Its slot has it.
    Running {
        run: Run,
        /// Why we end it, if we do.
        ending: Option<Ending>,
    },
    /// It failed, and is tried again.
    Pausing {
        run: Run,
        /// Then.
        until: Moment,
        /// How it failed.
        failed: Outcome,
        /// The pause is over, and its lock is wanted: no longer than this. Whoever comes after us asks for it anew.
        #[serde(skip)]
        seeks: Option<Moment>,
    },
    /// It is to be this node's, of all of the cluster.
    Disputing {
        run: Run,
        /// No longer than this.
        until: Moment,
    },
}

/// A run that is to start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Pending {
    pub(super) scheduled: Stamp,
    pub(super) manual: bool,
    pub(super) not_before: Moment,
}

/// One job's memory; what is not skipped is in its fleet's row.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cron {
    pub(super) phase: Phase,
    pub(super) pending: VecDeque<Pending>,
    pub(super) book: Book,
    /// An operator held it when it was looked at last.
    pub(super) was_held: bool,
    #[serde(skip)]
    pub(super) calendar: Option<Calendar>,
    /// The first tick that has not been decided upon.
    #[serde(skip)]
    pub(super) next: Option<Stamp>,
    /// Who waits to hear what became of a run that they asked for.
    #[serde(skip)]
    pub(super) clients: BTreeMap<Stamp, RequestId>,
    /// Who asked for a run before its book was read, by the words for people.
    #[serde(skip)]
    pub(super) early: Vec<(RequestId, String)>,
    #[serde(skip)]
    pub(super) disk: Disk,
    /// What the cluster says of the run that is disputed.
    #[serde(skip)]
    pub(super) verdict: Option<Verdict>,
    /// What became of runs that this node claimed, newest last.
    #[serde(skip)]
    pub(super) fates: VecDeque<(Stamp, Outcome, Stamp)>,
}

/// What the machine sees of its slot.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) live: bool,
    /// Its process began then.
    pub(super) since: Option<Moment>,
    pub(super) ending: Option<Ending>,
    pub(super) last_exit: Option<LastExit>,
    /// Its gate is open.
    pub(super) open: bool,
    /// By the lock that is configured, and for long enough.
    pub(super) may_begin: bool,
    /// Its lock is asked for, or had.
    pub(super) asks: bool,
    /// Why it is not open.
    pub(super) waits: Option<String>,
}

impl Seen {
    /// Its lock is asked for, again if that was called off meanwhile.
    fn seek(&self) -> Move {
        match self.asks {
            true => Move::Rest,
            false => Move::Seek,
        }
    }
}

/// What it works with during one turn.
pub(super) struct JobDesk<'a> {
    pub(super) now: Moment,
    pub(super) clock: Clock,
    pub(super) name: &'a FleetName,
    pub(super) spec: &'a CronSpec,
    pub(super) success: &'a [i32],
    pub(super) gated: bool,
    /// So long a run waits for its lock.
    pub(super) lock_patience: Span,
    /// So long one that was lost waits for the lock that its last attempt had.
    pub(super) heir_patience: Span,
    pub(super) stance: Stance,
    /// An operator holds it.
    pub(super) held: bool,
    /// It is not configured any more.
    pub(super) removed: bool,
    pub(super) jitter: &'a mut Jitter,
    pub(super) out: &'a mut Effects,
}

#[cfg(test)]
impl<'a> JobDesk<'a> {
    /// Of a job without a lock, at the beginning.
    pub(super) fn of(
        (name, spec): (&'a FleetName, &'a CronSpec),
        jitter: &'a mut Jitter,
        out: &'a mut Effects,
    ) -> Self {
        let now = Moment(1);
        let shown = Stamp(1_000_000_000_000);
        Self {
            now,
            clock: Clock { shown, at: now },
            name,
            spec,
            success: &[0],
            gated: false,
            lock_patience: Span::ZERO,
            heir_patience: Span::ZERO,
            stance: Stance::Keep,
            held: false,
            removed: false,
            jitter,
            out,
        }
    }
}

impl JobDesk<'_> {
    pub(super) fn record(&mut self, what: What) {
        let subject = Subject::Fleet(self.name.clone());
        self.out.record(self.now, subject, what);
    }

    pub(super) fn shown(&self) -> Stamp {
        self.clock.at(self.now)
    }

    /// May this tick still be started, later than within its minute?
    fn is_owed(&self, run: &Run) -> bool {
        !run.manual && self.shown().since(run.scheduled) < self.spec.catch_up
    }

    /// Are ticks and requests listened to?
    pub(super) fn is_open(&self) -> bool {
        matches!(self.stance, Stance::Keep | Stance::Wait) && !self.held && !self.removed
    }
}

/// What the slot is to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Move {
    Rest,
    /// Look again: something was decided.
    Again,
    /// Ask for the lock.
    Seek,
    Start,
    Stop(Ending),
    /// Its run has ended: the slot is empty.
    Clear,
}

impl Cron {
    /// Its schedule is this.
    pub(super) fn follow(&mut self, spec: &CronSpec) {
        self.calendar = Calendar::of(spec);
        self.find_next();
    }

    /// What its worker is told, while there is a run.
    pub(super) fn occasion(&self) -> Option<Occasion> {
        self.run().map(|run| Occasion {
            scheduled: run.scheduled,
            attempt: run.attempt,
        })
    }

    pub(super) fn run(&self) -> Option<&Run> {
        match &self.phase {
            Phase::Opening | Phase::Idle => None,
            Phase::Seeking { run, .. }
            | Phase::Claiming { run, .. }
            | Phase::Running { run, .. }
            | Phase::Pausing { run, .. }
            | Phase::Disputing { run, .. } => Some(run),
        }
    }

    /// The run that is under way, for people.
    pub(super) fn running(&self) -> Option<&Run> {
        self.run()
            .filter(|_| matches!(self.phase, Phase::Running { .. } | Phase::Pausing { .. }))
    }

    pub(super) fn is_pausing(&self) -> bool {
        matches!(self.phase, Phase::Pausing { .. })
    }

    /// So many wait to start.
    pub(super) fn waiting(&self) -> usize {
        let begins = matches!(
            self.phase,
            Phase::Disputing { .. } | Phase::Seeking { .. } | Phase::Claiming { .. }
        );
        self.pending.len() + usize::from(begins)
    }

    /// Does it need its lock?
    pub(super) fn needs_gate(&self) -> bool {
        self.run().is_some() && !matches!(self.phase, Phase::Disputing { .. })
    }

    /// The run that is to be this node's.
    pub(super) fn disputed(&self) -> Option<&Run> {
        match &self.phase {
            Phase::Disputing { run, .. } if self.verdict.is_none() => Some(run),
            _ => None,
        }
    }

    /// The cluster has spoken.
    pub(super) fn judged(&mut self, scheduled: Stamp, verdict: Verdict) {
        if self
            .disputed()
            .is_some_and(|run| run.scheduled == scheduled)
        {
            self.verdict = Some(verdict);
        }
    }

    /// What became of a run that this node claimed, as far as it knows.
    pub(super) fn fate(&self, scheduled: Stamp) -> Fate {
        let is_open = matches!(self.phase, Phase::Opening)
            || self.run().is_some_and(|run| run.scheduled == scheduled)
            || self.pending.iter().any(|one| one.scheduled == scheduled);
        if is_open {
            return Fate::Open;
        }
        let fate = self.fates.iter().rev().find(|fate| fate.0 == scheduled);
        let told = fate.map(|(_, outcome, ended)| Fate::Ended(*outcome, *ended));
        let mut history = self.book.history.iter().rev();
        let kept = history.find(|one| one.tells_of(scheduled));
        let kept = kept.map(|one| Fate::Ended(one.outcome, one.ended));
        let seen = self.book.cursor.unwrap_or(scheduled).max(scheduled);
        let unknown = match self.will_decide(scheduled) {
            true => Fate::Open,
            false => Fate::Ended(Outcome::Lost, seen),
        };
        told.or(kept).unwrap_or(unknown)
    }

    /// After it, and before the next tick. What somebody asked for is none, and stands for itself.
    pub(super) fn last_before_next(&self, run: &Run) -> Stamp {
        let calendar = self.calendar.as_ref().filter(|_| !run.manual);
        let next = calendar.and_then(|calendar| calendar.next_after(run.scheduled));
        next.map_or(run.scheduled, |next| next.before(Span::millis(1)))
    }

    /// Is this a tick that is yet to come? To a job that is held none does.
    fn will_decide(&self, scheduled: Stamp) -> bool {
        let before = scheduled.before(Span::millis(1));
        let tick = self.calendar.as_ref().and_then(|c| c.next_after(before));
        let is_ahead = self.book.cursor.is_none_or(|cursor| cursor < scheduled);
        let is_undecided = is_ahead && self.book.had.end_of(scheduled).is_none();
        is_undecided && tick == Some(scheduled) && !self.was_held
    }

    fn remember(&mut self, scheduled: Stamp, outcome: Outcome, desk: &JobDesk<'_>) {
        if desk.spec.cluster {
            self.fates.push_back((scheduled, outcome, desk.shown()));
            while self.fates.len() > FATES_MAX {
                self.fates.pop_front();
            }
        }
    }

    /// The first tick that will be decided upon; none while it is held.
    pub(super) fn next(&self, held: bool) -> Option<Stamp> {
        self.next
            .filter(|_| !held && !matches!(self.phase, Phase::Opening))
    }

    /// The next moment at which [`Cron::turn`] has something to do, the wall clock aside. `since`: its process began then, and is not
    /// being ended. `looked`: what was ripe by then has been seen.
    pub(super) fn deadline(
        &self,
        spec: &CronSpec,
        since: Option<Moment>,
        looked: Moment,
    ) -> Option<Moment> {
        let own = match &self.phase {
            Phase::Opening => None,
            Phase::Idle => self.pending.front().map(|front| front.not_before),
            Phase::Seeking { until, .. }
            | Phase::Claiming { until, .. }
            | Phase::Disputing { until, .. } => Some(*until),
            Phase::Pausing { until, seeks, .. } => Some(seeks.unwrap_or(*until)),
            Phase::Running { .. } => since
                .filter(|_| !spec.timeout.is_forever())
                .map(|since| since.after(spec.timeout)),
        };
        let writing = self.disk.writing.as_ref();
        let stuck = writing.map(|(_, since)| since.after(DISK_PATIENCE));
        // What waits for something else than time waits for its event.
        [own, stuck, self.disk.again]
            .into_iter()
            .flatten()
            .filter(|at| *at > looked)
            .min()
    }

    /// One decision. Called until it rests.
    pub(super) fn turn(&mut self, seen: &Seen, desk: &mut JobDesk<'_>) -> Move {
        if matches!(self.phase, Phase::Opening) {
            if !std::mem::replace(&mut self.disk.is_read, true) {
                desk.out.list.push(Effect::ReadBook(desk.name.clone()));
            }
            return Move::Rest;
        }
        self.mind_clock(desk);
        self.mind_hold(desk);
        if desk.is_open() {
            self.follow_calendar(desk);
        } else {
            self.give_up_pending(desk);
        }
        let next = self.move_on(seen, desk);
        self.keep(desk);
        next
    }

    fn move_on(&mut self, seen: &Seen, desk: &mut JobDesk<'_>) -> Move {
        match std::mem::replace(&mut self.phase, Phase::Idle) {
            Phase::Opening => Move::Rest,
            Phase::Idle => self.begin(seen, desk),
            Phase::Disputing { run, .. } | Phase::Seeking { run, .. }
                if desk.held || desk.removed =>
            {
                self.skip(run, Skip::Held, desk)
            }
            Phase::Disputing { run, .. } | Phase::Seeking { run, .. } if !desk.is_open() => {
                // At a shutdown nothing was decided: it waits again.
                self.pending.push_front(Pending {
                    scheduled: run.scheduled,
                    manual: run.manual,
                    not_before: desk.now,
                });
                Move::Again
            }
            Phase::Disputing { run, until } => self.dispute(run, until, desk),
            Phase::Seeking { run, .. } if seen.may_begin => self.claim(run, desk),
            Phase::Seeking { run, until } if until > desk.now => {
                self.phase = Phase::Seeking { run, until };
                seen.seek()
            }
            Phase::Seeking { run, .. } => {
                let why = seen.waits.clone();
                self.refuse(
                    run.scheduled,
                    ExitCode::Conflict,
                    || {
                        let holder =
                            why.unwrap_or_else(|| "nobody said whether it is free".to_owned());
                        format!("its lock is taken: {holder}")
                    },
                    desk,
                );
                self.skip(run, Skip::Locked, desk)
            }
            Phase::Claiming { run, until } => match self.disk.claim.take() {
                Some(Ok(())) => self.run_claimed(run, seen, desk),
                Some(Err(why)) => self.miss_claim(run, why, desk),
                None if until <= desk.now => {
                    let why = format!("the disk did not answer in {DISK_PATIENCE}");
                    self.miss_claim(run, why, desk)
                }
                None => {
                    self.phase = Phase::Claiming { run, until };
                    Move::Rest
                }
            },
            Phase::Running { run, ending } => self.mind_run(run, ending, seen, desk),
            Phase::Pausing {
                run,
                until,
                failed,
                seeks,
            } => self.retry((run, failed), (until, seeks), seen, desk),
        }
    }

    /// The next attempt, when its pause is over. A lost run has no lock for it, nor has one whose lease was changed: that is asked for first.
    fn retry(
        &mut self,
        (run, failed): (Run, Outcome),
        (until, seeks): (Moment, Option<Moment>),
        seen: &Seen,
        desk: &mut JobDesk<'_>,
    ) -> Move {
        let replaced = desk.spec.overlap == Overlap::Replace && !self.pending.is_empty();
        if !desk.is_open() || replaced {
            return self.close(run, failed, desk);
        }
        let pauses = until > desk.now || desk.stance != Stance::Keep;
        let is_shut = desk.gated && !seen.may_begin;
        let is_over = seeks.is_some_and(|end| end <= desk.now);
        if !pauses && is_shut && is_over {
            return self.close(run, failed, desk);
        }
        if pauses || is_shut {
            let begins = !pauses && seeks.is_none();
            let end = begins.then(|| desk.now.after(desk.heir_patience));
            self.phase = Phase::Pausing {
                run,
                until,
                failed,
                seeks: seeks.or(end),
            };
            return if pauses { Move::Rest } else { seen.seek() };
        }
        let run = Run {
            attempt: run.attempt.saturating_add(1),
            ..run
        };
        self.start(run, desk)
    }

    /// The next run, if its time has come.
    fn begin(&mut self, seen: &Seen, desk: &mut JobDesk<'_>) -> Move {
        let ripe = |front: &Pending| front.not_before <= desk.now;
        if seen.live || desk.stance != Stance::Keep || !self.pending.front().is_some_and(ripe) {
            return Move::Rest;
        }
        let Some(front) = self.pending.pop_front() else {
            return Move::Rest;
        };
        let run = Run {
            scheduled: front.scheduled,
            manual: front.manual,
            attempt: 1,
            started: desk.shown(),
        };
        if desk.spec.cluster {
            self.verdict = None;
            let until = desk.now.after(CLUSTER_PATIENCE);
            self.phase = Phase::Disputing { run, until };
            return Move::Rest;
        }
        self.seek(run, desk)
    }

    fn seek(&mut self, run: Run, desk: &JobDesk<'_>) -> Move {
        if !desk.gated {
            return self.claim(run, desk);
        }
        let until = desk.now.after(desk.lock_patience);
        self.phase = Phase::Seeking { run, until };
        Move::Seek
    }

    /// Is it this node's?
    fn dispute(&mut self, run: Run, until: Moment, desk: &mut JobDesk<'_>) -> Move {
        if !desk.spec.cluster {
            // It is this machine's alone by now.
            return self.seek(run, desk);
        }
        match self.verdict.take() {
            Some(Verdict::Ours) => self.seek(run, desk),
            Some(Verdict::Busy(_)) => self.skip(run, Skip::Overlap, desk),
            Some(Verdict::Theirs(node)) => {
                self.refuse(
                    run.scheduled,
                    ExitCode::Conflict,
                    || format!("node {node} has this run"),
                    desk,
                );
                let scheduled = run.scheduled;
                desk.record(What::RunElsewhere { scheduled, node });
                Move::Again
            }
            Some(Verdict::Past) => {
                let (why, scheduled) = (Miss::Late, run.scheduled);
                self.refuse(
                    scheduled,
                    ExitCode::Conflict,
                    || why.reason().to_owned(),
                    desk,
                );
                desk.record(What::RunsMissed {
                    first: scheduled,
                    last: scheduled,
                    count: 1,
                    why,
                });
                self.note(&run, Outcome::Missed(why), desk);
                Move::Again
            }
            None if until <= desk.now && desk.is_owed(&run) => {
                let until = desk.now.after(CLUSTER_PATIENCE);
                self.phase = Phase::Disputing { run, until };
                Move::Rest
            }
            None if until <= desk.now => {
                let why = format!("etcd did not say whose it is in {CLUSTER_PATIENCE}");
                self.miss_claim(run, why, desk)
            }
            None => {
                self.phase = Phase::Disputing { run, until };
                Move::Rest
            }
        }
    }

    fn claim(&mut self, run: Run, desk: &JobDesk<'_>) -> Move {
        self.book.open = Some(run.clone());
        self.disk.claim = None;
        let until = desk.now.after(DISK_PATIENCE);
        self.phase = Phase::Claiming { run, until };
        Move::Again
    }

    fn run_claimed(&mut self, run: Run, seen: &Seen, desk: &mut JobDesk<'_>) -> Move {
        if !desk.is_open() || (desk.gated && !seen.open) {
            let why = "it was called off".to_owned();
            self.refuse(run.scheduled, ExitCode::Conflict, || why, desk);
            return self.close(run, Outcome::CalledOff, desk);
        }
        if seen.live {
            // Half of what our predecessor sent arrived: it is there already.
            let ending = None;
            self.phase = Phase::Running { run, ending };
            return Move::Again;
        }
        self.start(run, desk)
    }

    fn miss_claim(&mut self, run: Run, why: String, desk: &mut JobDesk<'_>) -> Move {
        self.refuse(
            run.scheduled,
            ExitCode::Failed,
            || format!("it could not be claimed, so it was not started: {why}"),
            desk,
        );
        desk.record(What::RunUnclaimed {
            scheduled: run.scheduled,
            why,
        });
        self.book.open = None;
        // What is still being written is nobody's claim.
        self.disk.has_claim = false;
        self.note(&run, Outcome::Missed(Miss::Unclaimed), desk);
        Move::Again
    }

    fn start(&mut self, run: Run, desk: &mut JobDesk<'_>) -> Move {
        desk.record(What::RunBegan {
            scheduled: run.scheduled,
            attempt: run.attempt,
            late: desk.shown().since(run.scheduled),
        });
        self.answer(run.scheduled, false, desk);
        self.book.open = Some(run.clone());
        let ending = None;
        self.phase = Phase::Running { run, ending };
        Move::Start
    }

    fn mind_run(
        &mut self,
        run: Run,
        mut ending: Option<Ending>,
        seen: &Seen,
        desk: &mut JobDesk<'_>,
    ) -> Move {
        if !seen.live {
            return self.run_ended(run, ending, seen, desk);
        }
        let over = seen
            .since
            .is_some_and(|since| since.after(desk.spec.timeout) <= desk.now);
        let replaced = desk.spec.overlap == Overlap::Replace && !self.pending.is_empty();
        let wanted = match () {
            () if seen.ending.is_some() || ending.is_some() => None,
            () if replaced => Some(Ending::Replaced),
            () if over && !desk.spec.timeout.is_forever() => Some(Ending::Timeout),
            () => None,
        };
        ending = ending.or(wanted);
        self.phase = Phase::Running { run, ending };
        wanted.map_or(Move::Rest, Move::Stop)
    }

    fn run_ended(
        &mut self,
        run: Run,
        ending: Option<Ending>,
        seen: &Seen,
        desk: &mut JobDesk<'_>,
    ) -> Move {
        let ending = seen.last_exit.map_or(ending, |exit| exit.ending);
        let outcome = match (ending, seen.last_exit.map(|exit| exit.status)) {
            (Some(Ending::Timeout), _) => Outcome::TimedOut,
            (Some(ending), _) => Outcome::Stopped(ending),
            (None, Some(ExitStatus::Code(code))) if desk.success.contains(&code) => {
                Outcome::Succeeded
            }
            (None, Some(status)) => Outcome::Failed(status),
            (None, None) => Outcome::CalledOff,
        };
        let failed = matches!(outcome, Outcome::Failed(_) | Outcome::TimedOut);
        if failed && run.attempt < desk.spec.retry.attempts && desk.is_open() {
            let retry = &desk.spec.retry;
            let doubled = 1_u64.checked_shl(run.attempt - 1).unwrap_or(u64::MAX);
            let pause = retry.backoff_min.as_nanos().saturating_mul(doubled);
            let pause = Span::nanos(pause).min(retry.backoff_max);
            desk.record(What::RunRetries {
                scheduled: run.scheduled,
                attempt: run.attempt,
                of: retry.attempts,
                outcome,
                pause,
            });
            self.phase = Phase::Pausing {
                run,
                until: desk.now.after(pause),
                failed: outcome,
                seeks: None,
            };
        } else {
            self.close(run, outcome, desk);
        }
        Move::Clear
    }

    /// A run is over.
    pub(super) fn close(&mut self, run: Run, outcome: Outcome, desk: &mut JobDesk<'_>) -> Move {
        desk.record(What::RunEnded {
            scheduled: run.scheduled,
            attempts: run.attempt,
            outcome,
            ended: desk.shown(),
        });
        self.book.open = None;
        self.phase = Phase::Idle;
        self.remember(run.scheduled, outcome, desk);
        let record = RunRecord {
            scheduled: run.scheduled,
            manual: run.manual,
            attempts: run.attempt,
            started: Some(run.started),
            ended: desk.shown(),
            outcome,
            count: 1,
        };
        self.book.note(record, desk.spec.history);
        Move::Again
    }

    pub(super) fn skip(&mut self, run: Run, why: Skip, desk: &mut JobDesk<'_>) -> Move {
        self.refuse(
            run.scheduled,
            ExitCode::Conflict,
            || why.reason().to_owned(),
            desk,
        );
        desk.record(What::RunSkipped {
            scheduled: run.scheduled,
            why,
        });
        self.note(&run, Outcome::Skipped(why), desk);
        Move::Again
    }

    /// A run that never was.
    pub(super) fn note(&mut self, run: &Run, outcome: Outcome, desk: &JobDesk<'_>) {
        self.remember(run.scheduled, outcome, desk);
        let record = RunRecord {
            scheduled: run.scheduled,
            manual: run.manual,
            attempts: 0,
            started: None,
            ended: desk.shown(),
            outcome,
            count: 1,
        };
        self.book.note(record, desk.spec.history);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        engine::{fleet::FleetBody, ticks::QUEUE_MAX},
        wire::BODY_MAX,
    };

    /// It may lie ahead of the calendar: somebody asked for it, or the clock was ahead. Whoever else would run waits for its end.
    #[test]
    fn a_run_that_is_over_has_ended_whatever_the_calendar_says() {
        let (noon, later) = (Stamp(1_774_785_600_000), Stamp(1_774_785_654_321));
        let mut cron = Cron {
            phase: Phase::Idle,
            ..Cron::default()
        };
        cron.book.cursor = Some(noon);
        let spec = CronSpec {
            history: 1,
            cluster: true,
            ..CronSpec::of("@hourly")
        };
        cron.follow(&spec);
        let ended = |outcome| Fate::Ended(outcome, later);
        let record = RunRecord {
            scheduled: later,
            manual: true,
            attempts: 1,
            started: Some(later),
            ended: later,
            outcome: Outcome::Succeeded,
            count: 1,
        };

        let mut told = cron.clone();
        told.fates.push_back((later, Outcome::TimedOut, later));
        assert_eq!(told.fate(later), ended(Outcome::TimedOut));
        let mut kept = cron.clone();
        kept.book.note(record, 1);
        assert_eq!(kept.fate(later), ended(Outcome::Succeeded));
        // It is tried again.
        let run = Run {
            scheduled: later,
            manual: true,
            attempt: 2,
            started: later,
        };
        let ending = None;
        kept.phase = Phase::Running { run, ending };
        assert_eq!(kept.fate(later), Fate::Open);
        // A tick will be decided upon; what is none never will.
        let next = noon.after(Span::secs(3_600));
        assert_eq!(cron.fate(next), Fate::Open);
        assert_eq!(cron.fate(later), ended(Outcome::Lost));
        let mut held = cron.clone();
        held.was_held = true;
        assert_eq!(held.fate(next), Fate::Ended(Outcome::Lost, next));
        let mut had = cron.clone();
        had.book.had.add(noon, next);
        assert_eq!(had.fate(next), Fate::Ended(Outcome::Lost, next));
    }

    /// Its lease was changed by a reload, or it was lost with the machine: it has no lock for its next attempt, and asks for it.
    #[test]
    fn a_run_is_tried_again_as_soon_as_it_has_its_lock() {
        let (name, spec) = ("job".parse().unwrap(), CronSpec::of("@yearly"));
        let (mut out, mut jitter) = (Effects::default(), Jitter::new(1));
        let mut desk = JobDesk::of((&name, &spec), &mut jitter, &mut out);
        (desk.gated, desk.heir_patience) = (true, Span::secs(30));
        let due = desk.now.after(Span::secs(1));
        let run = Run {
            scheduled: desk.shown(),
            manual: false,
            attempt: 1,
            started: desk.shown(),
        };
        let mut cron = Cron {
            phase: Phase::Pausing {
                run,
                until: due,
                failed: Outcome::TimedOut,
                seeks: None,
            },
            ..Cron::default()
        };
        let shut = Seen::default();
        let asks = Seen {
            asks: true,
            ..Seen::default()
        };
        let open = Seen {
            open: true,
            may_begin: true,
            ..asks.clone()
        };
        assert_eq!(cron.move_on(&open, &mut desk), Move::Rest);
        desk.now = due;
        assert_eq!(cron.move_on(&shut, &mut desk), Move::Seek);
        assert_eq!(cron.move_on(&asks, &mut desk), Move::Rest);
        // Open, and no deadline stands yet.
        let early = Seen {
            open: true,
            ..asks.clone()
        };
        assert_eq!(cron.move_on(&early, &mut desk), Move::Rest);
        // It was called off: another lock is configured.
        assert_eq!(cron.move_on(&shut, &mut desk), Move::Seek);
        let last = due.after(Span::secs(30));
        assert_eq!(cron.deadline(&spec, None, due), Some(last));
        let mut late = cron.clone();
        desk.now = due.after(Span::secs(2));
        assert_eq!(cron.move_on(&open, &mut desk), Move::Start);
        assert_eq!(cron.run().map(|run| run.attempt), Some(2));
        desk.now = last;
        assert_eq!(late.move_on(&shut, &mut desk), Move::Again);
        assert_eq!(late.book.history[0].outcome, Outcome::TimedOut);
    }

    /// The longest history that a configuration allows, a full queue, and every number as long as it gets.
    #[test]
    fn the_fullest_row_fits() {
        let far = Stamp(253_402_207_200_000);
        let run = Run {
            scheduled: far,
            manual: true,
            attempt: 100,
            started: far,
        };
        let mut cron = Cron::default();
        for _ in 0..QUEUE_MAX {
            cron.pending.push_back(Pending {
                scheduled: far,
                manual: true,
                not_before: Moment(u64::MAX),
            });
        }
        for n in 0..64 {
            let record = RunRecord {
                scheduled: far,
                manual: true,
                attempts: 100,
                started: Some(far),
                ended: far,
                outcome: Outcome::Failed(ExitStatus::Code(i32::MAX - n)),
                count: u32::MAX,
            };
            cron.book.note(record, 64);
        }
        for n in 0..30 {
            let from = far.before(Span::secs(100 * n));
            cron.book.had.add(from, from.after(Span::secs(50)));
        }
        cron.book.cursor = Some(far);
        cron.book.open = Some(run.clone());
        cron.phase = Phase::Pausing {
            run,
            until: Moment(u64::MAX),
            failed: Outcome::TimedOut,
            seeks: None,
        };
        let mut body = FleetBody::default();
        body.cron = Some(Box::new(cron));
        let bytes = postcard::to_stdvec(&body).unwrap();
        assert!(bytes.len() + 1 < BODY_MAX, "{} bytes", bytes.len());
        let read: FleetBody = postcard::from_bytes(&bytes).unwrap();
        assert_eq!(read, body);
    }
}
