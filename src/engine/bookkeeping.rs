//! A job's book and its file: read when the job is new here, written when it is another one than the disk's, one write at a time. A claim
//! is a write that is waited for.

use crate::{
    engine::{
        book::{Book, Outcome, Run},
        cron::{Cron, JobDesk, Phase, Seen},
        effect::{Effect, What},
    },
    time::{Moment, Span, Stamp},
};

/// A disk that has not answered by then is as good as full.
pub(super) const DISK_PATIENCE: Span = Span::secs(10);
/// A book that could not be kept is tried again after this.
const KEEP_AGAIN: Span = Span::secs(30);

/// What is known of the book's file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Disk {
    /// Its reading was asked for.
    pub(super) is_read: bool,
    /// What it holds, as far as is known.
    pub(super) holds: Option<Book>,
    /// What is being written, and since when.
    pub(super) writing: Option<(Book, Moment)>,
    /// What became of the claim that waits for it.
    pub(super) claim: Option<Result<(), String>>,
    /// Is the claim that is waited for in what is being written?
    pub(super) has_claim: bool,
    /// It could not be written: not again before this.
    pub(super) again: Option<Moment>,
}

impl Cron {
    /// Its book was read; an error means that nothing is known.
    pub(super) fn book_read(
        &mut self,
        result: Result<Option<Book>, String>,
        seen: &Seen,
        desk: &mut JobDesk<'_>,
    ) {
        if !matches!(self.phase, Phase::Opening) {
            return;
        }
        match result {
            Ok(book) => {
                self.book = book.clone().unwrap_or_default();
                self.disk.holds = Some(book.unwrap_or_default());
            }
            Err(why) => desk.record(What::BookForgotten { why }),
        }
        self.phase = Phase::Idle;
        let open = self.book.open.take();
        if seen.live && seen.ending.is_none() {
            // Its row was lost, its process was not.
            let shown = desk.shown();
            let run = open.unwrap_or(Run {
                scheduled: shown,
                manual: true,
                attempt: 1,
                started: shown,
            });
            self.book.open = Some(run.clone());
            let ending = None;
            self.phase = Phase::Running { run, ending };
        } else if let Some(run) = open {
            self.run_lost(run, desk);
        }
        self.book.cursor.get_or_insert(desk.shown());
        self.find_next();
        self.hear_early(desk);
    }

    /// It was claimed, and nobody saw its end. Only a job that may be tried again, and still be late by so much, is.
    fn run_lost(&mut self, run: Run, desk: &mut JobDesk<'_>) {
        let late = desk.shown().since(run.scheduled);
        let again =
            run.attempt < desk.spec.retry.attempts && late < desk.spec.catch_up && desk.is_open();
        desk.record(What::RunLost {
            scheduled: run.scheduled,
            attempt: run.attempt,
            again,
        });
        if again {
            self.book.open = Some(run.clone());
            self.phase = Phase::Pausing {
                run,
                until: desk.now,
                failed: Outcome::Lost,
                seeks: None,
            };
        } else {
            self.close(run, Outcome::Lost, desk);
        }
    }

    /// What was to be written is, or is not.
    pub(super) fn book_kept(&mut self, result: Result<(), String>, desk: &mut JobDesk<'_>) {
        let Some((book, _)) = self.disk.writing.take() else {
            return;
        };
        if std::mem::take(&mut self.disk.has_claim) {
            self.disk.claim = Some(result.clone());
        }
        match result {
            Ok(()) => {
                self.disk.holds = Some(book);
                self.disk.again = None;
            }
            Err(why) => {
                // Said once, not every half a minute.
                if self.disk.again.is_none() {
                    desk.record(What::BookNotKept { why });
                }
                self.disk.again = Some(desk.now.after(KEEP_AGAIN));
            }
        }
    }

    /// Something is being written that should not be left half done.
    pub(super) fn is_writing(&self, now: Moment) -> bool {
        let writing = self.disk.writing.as_ref();
        writing.is_some_and(|(_, since)| since.after(DISK_PATIENCE) > now)
    }

    /// The book as it must be on disk: a tick that waits has not had its turn, so that whoever reads it decides anew.
    fn for_disk(&self) -> Book {
        let mut book = self.book.clone();
        let sought = match &self.phase {
            Phase::Disputing { run, .. } | Phase::Seeking { run, .. } if !run.manual => {
                Some(run.scheduled)
            }
            _ => None,
        };
        let waiting = self.pending.iter().filter(|one| !one.manual);
        let ticks: Vec<Stamp> = sought
            .into_iter()
            .chain(waiting.map(|one| one.scheduled))
            .collect();
        if let (Some(first), Some(last), Some(cursor)) =
            (ticks.iter().min(), ticks.iter().max(), book.cursor)
        {
            let before = first.before(Span::millis(1));
            book.had.take_out(before, cursor.max(*last));
            book.cursor = Some(cursor.min(before));
        }
        book
    }

    /// Has the book written when it is another one than the disk's, one write at a time.
    pub(super) fn keep(&mut self, desk: &mut JobDesk<'_>) {
        if self.disk.writing.is_some() {
            return;
        }
        let claim = match &self.phase {
            Phase::Claiming { run, .. } if self.disk.claim.is_none() => Some(run.clone()),
            _ => None,
        };
        let book = self.for_disk();
        let may = self.disk.again.is_none_or(|at| at <= desk.now);
        if claim.is_none() && (!may || self.disk.holds.as_ref() == Some(&book)) {
            return;
        }
        self.disk.has_claim = claim.is_some();
        self.disk.writing = Some((book.clone(), desk.now));
        desk.out.list.push(Effect::KeepBook {
            fleet: desk.name.clone(),
            book: Box::new(book),
            claim,
        });
    }
}
