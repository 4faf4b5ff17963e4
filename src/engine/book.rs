//! What is known of a job's ticks for good: how far the calendar was followed, which ticks had their turn, the run that was claimed, and
//! the runs that ended. Kept in the job's row and, since it must survive everything, in a file of its own.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::{
    engine::effect::{Ending, ExitWords},
    time::Stamp,
    wire::ExitStatus,
};

/// Stretches of the calendar that are remembered apart. A clock that jumps, or downtime, makes a new one; of more than so many the nearest
/// of those that are over become one.
const STRETCHES_MAX: usize = 16;

/// A job's book.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Book {
    /// Ticks up to here have been decided upon; none: the job was never seen before.
    pub(super) cursor: Option<Stamp>,
    /// Ticks that had their turn: a clock that is set back brings them again, and they are not started again.
    pub(super) had: Had,
    /// The run that was claimed and has not ended.
    pub(super) open: Option<Run>,
    /// What became of runs and ticks, oldest first.
    pub(super) history: VecDeque<RunRecord>,
}

impl Book {
    /// May a run be started that was claimed as this one, when `self` is what the disk holds? Not if another one was claimed for the same
    /// tick, nor if its turn has been.
    pub fn allows(&self, claim: &Run) -> bool {
        let had = !claim.manual && self.had.end_of(claim.scheduled).is_some();
        let ran = self.history.iter().any(|one| {
            one.scheduled == claim.scheduled && one.manual == claim.manual && one.started.is_some()
        });
        !had && !ran
    }

    /// The run that was claimed and has not ended.
    pub fn open(&self) -> Option<&Run> {
        self.open.as_ref()
    }

    /// Adds a record; equal fates of ticks in a row become one. At most `most` are kept.
    pub(super) fn note(&mut self, record: RunRecord, most: u32) {
        match self.history.back_mut() {
            Some(last) if last.continues_with(&record) => {
                last.count = last.count.saturating_add(record.count);
                last.ended = record.ended;
            }
            _ => self.history.push_back(record),
        }
        while self.history.len() > most as usize {
            self.history.pop_front();
        }
    }
}

/// A claimed run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Run {
    /// Its tick, or when somebody asked for it.
    pub scheduled: Stamp,
    /// Somebody asked for it.
    pub manual: bool,
    /// Which attempt this is, from 1.
    pub attempt: u32,
    /// When it was claimed.
    pub started: Stamp,
}

/// What became of a run, or of ticks that had none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunRecord {
    /// Its tick, or the first of several.
    pub scheduled: Stamp,
    /// Somebody asked for it.
    pub manual: bool,
    /// So many attempts were made.
    pub attempts: u32,
    /// When it was claimed; none: it never was.
    pub started: Option<Stamp>,
    /// When this was known.
    pub ended: Stamp,
    /// What.
    pub outcome: Outcome,
    /// Of so many ticks.
    pub count: u32,
}

impl RunRecord {
    /// Is this tick its own, or one of several?
    pub(super) fn tells_of(&self, tick: Stamp) -> bool {
        let one_of_several = self.count > 1 && self.scheduled < tick && tick <= self.ended;
        self.scheduled == tick || one_of_several
    }

    fn continues_with(&self, next: &Self) -> bool {
        self.started.is_none()
            && next.started.is_none()
            && self.outcome == next.outcome
            && self.manual == next.manual
    }
}

/// What became of it. Rows and files hold it: append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Its command ended as it should.
    Succeeded,
    /// Its command ended otherwise, or could not be started.
    Failed(ExitStatus),
    /// It took longer than its timeout.
    TimedOut,
    /// It was ended on purpose.
    Stopped(Ending),
    /// It was called off before its process began.
    CalledOff,
    /// It was claimed, and the machine or the keeper went down before it ended.
    Lost,
    /// It was not started, as its job wants it.
    Skipped(Skip),
    /// It should have been started, and was not.
    Missed(Miss),
}

impl Outcome {
    /// The word in status and history.
    pub fn word(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed(_) => "failed",
            Self::TimedOut => "timed-out",
            Self::Stopped(_) => "stopped",
            Self::CalledOff => "called-off",
            Self::Lost => "lost",
            Self::Skipped(_) => "skipped",
            Self::Missed(_) => "missed",
        }
    }

    /// In a few words, for people.
    pub fn reason(self) -> String {
        match self {
            Self::Succeeded => "succeeded".to_owned(),
            Self::Failed(status) => ExitWords(status).to_string(),
            Self::TimedOut => "took longer than its timeout".to_owned(),
            Self::Stopped(ending) => format!("stopped ({})", ending.word()),
            Self::CalledOff => "called off before it began".to_owned(),
            Self::Lost => "lost: the machine or the keeper went down before it ended".to_owned(),
            Self::Skipped(why) => format!("skipped: {}", why.reason()),
            Self::Missed(why) => format!("missed: {}", why.reason()),
        }
    }
}

/// Why a tick was skipped. Append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Skip {
    /// The run before was there.
    Overlap,
    /// Somebody else had the lock.
    Locked,
    /// Too many waited already.
    QueueFull,
    /// A later tick came first.
    Superseded,
    /// An operator stopped the job.
    Held,
    /// The daemon ends; what the calendar wants is left to the next one, what somebody asked for is not.
    Shutdown,
}

impl Skip {
    /// For people.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Overlap => "the run before has not ended",
            Self::Locked => "its lock is taken",
            Self::QueueFull => "too many wait already",
            Self::Superseded => "a later tick came before it could start",
            Self::Held => "the job is held",
            Self::Shutdown => "the daemon is shutting down",
        }
    }
}

/// Why a tick was missed. Append only.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Miss {
    /// Nobody was there to start it in time, or the clock jumped over it.
    Late,
    /// It could still have been started, and a later one was.
    Superseded,
    /// The job was held.
    Held,
    /// It could not be claimed.
    Unclaimed,
}

impl Miss {
    /// For people.
    pub fn reason(self) -> &'static str {
        match self {
            Self::Late => "too late to start it",
            Self::Superseded => "too late, and a later tick was there",
            Self::Held => "the job was held",
            Self::Unclaimed => "it could not be claimed",
        }
    }
}

/// Stretches of the calendar whose ticks had their turn: from (exclusive), to (inclusive); in order, apart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Had(Vec<(Stamp, Stamp)>);

impl Had {
    /// Ticks after `from`, up to `to`, had their turn.
    pub(super) fn add(&mut self, from: Stamp, to: Stamp) {
        if to <= from {
            return;
        }
        let (mut low, mut high) = (from, to);
        self.0.retain(|(a, b)| {
            let apart = *b < low || *a > high;
            if !apart {
                low = low.min(*a);
                high = high.max(*b);
            }
            apart
        });
        self.0.push((low, high));
        self.0.sort();
        while self.0.len() > STRETCHES_MAX {
            // What lies ahead may come yet: a clock that was wrong by years must not cost the ticks of years.
            let is_ahead = |at: usize| self.0[at + 1].1 > to;
            let gap = |at: &usize| (is_ahead(*at), self.0[at + 1].0.since(self.0[*at].1));
            let Some(at) = (0..self.0.len() - 1).min_by_key(gap) else {
                return;
            };
            self.0[at].1 = self.0[at + 1].1;
            self.0.remove(at + 1);
        }
    }

    /// The end of the stretch that `tick` lies in.
    pub(super) fn end_of(&self, tick: Stamp) -> Option<Stamp> {
        let within = |(from, to): &&(Stamp, Stamp)| *from < tick && tick <= *to;
        self.0.iter().find(within).map(|(_, to)| *to)
    }

    /// Ticks after `from`, up to `to`, have yet to have theirs.
    pub(super) fn take_out(&mut self, from: Stamp, to: Stamp) {
        let left = self.0.iter().flat_map(|(a, b)| {
            let before = (*a, (*b).min(from));
            let after = ((*a).max(to), *b);
            [before, after]
        });
        let left = left.filter(|(a, b)| a < b);
        self.0 = left.collect();
        self.0.sort();
        self.0.dedup();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn had(pairs: &[(i64, i64)]) -> Had {
        let mut had = Had::default();
        for (from, to) in pairs {
            had.add(Stamp(*from), Stamp(*to));
        }
        had
    }

    #[test]
    fn stretches_grow_together_and_the_nearest_become_one() {
        assert_eq!(had(&[(0, 5), (5, 9)]), had(&[(0, 9)]));
        assert_eq!(had(&[(0, 5), (3, 9), (20, 21)]).0.len(), 2);
        let mut many = Had::default();
        for n in 1..=14 {
            many.add(Stamp(1_000 * n), Stamp(1_000 * n + 100));
        }
        // Two that are nearer than others, but ahead; then the calendar goes on.
        many.add(Stamp(900_000), Stamp(900_010));
        many.add(Stamp(900_020), Stamp(900_030));
        many.add(Stamp(14_500), Stamp(14_510));
        assert_eq!(many.0.len(), STRETCHES_MAX, "{many:?}");
        assert_eq!(many.end_of(Stamp(14_300)), Some(Stamp(14_510)), "{many:?}");
        assert_eq!(many.end_of(Stamp(900_015)), None, "{many:?}");
        assert_eq!(many.end_of(Stamp(900_030)), Some(Stamp(900_030)));
        assert_eq!(many.end_of(Stamp(13_500)), None);
        let start = many.end_of(Stamp(1_000));
        assert_eq!(start, None, "a stretch begins after its start");
    }

    #[test]
    fn what_waits_has_not_had_its_turn() {
        let mut had = had(&[(0, 100), (200, 300)]);
        had.take_out(Stamp(50), Stamp(250));
        assert_eq!(had.0, [(Stamp(0), Stamp(50)), (Stamp(250), Stamp(300))]);
        had.take_out(Stamp(400), Stamp(500));
        assert_eq!(had.0.len(), 2);
    }

    #[test]
    fn a_claim_is_good_once() {
        let claim = |at, manual| Run {
            scheduled: Stamp(at),
            manual,
            attempt: 1,
            started: Stamp(at),
        };
        let mut book = Book::default();
        book.had.add(Stamp(0), Stamp(60));
        assert!(!book.allows(&claim(60, false)));
        assert!(book.allows(&claim(120, false)));
        assert!(
            book.allows(&claim(60, true)),
            "somebody's own run is no tick"
        );
        let ended = RunRecord {
            scheduled: Stamp(120),
            manual: false,
            attempts: 1,
            started: Some(Stamp(121)),
            ended: Stamp(125),
            outcome: Outcome::Succeeded,
            count: 1,
        };
        book.note(ended, 10);
        assert!(!book.allows(&claim(120, false)));
    }

    #[test]
    fn equal_fates_in_a_row_are_one_record_and_the_oldest_goes() {
        let skipped = |at| RunRecord {
            scheduled: Stamp(at),
            manual: false,
            attempts: 0,
            started: None,
            ended: Stamp(at),
            outcome: Outcome::Skipped(Skip::Overlap),
            count: 1,
        };
        let mut book = Book::default();
        for at in 0..1_000 {
            book.note(skipped(at), 2);
        }
        assert_eq!(book.history.len(), 1);
        assert_eq!(book.history[0].count, 1_000);
        assert_eq!(
            (book.history[0].scheduled, book.history[0].ended),
            (Stamp(0), Stamp(999))
        );
        for at in 0..5 {
            let ran = RunRecord {
                started: Some(Stamp(at)),
                ..skipped(at)
            };
            book.note(ran, 2);
        }
        assert_eq!(book.history.len(), 2);
    }
}
