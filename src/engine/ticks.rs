//! The calendar, and what comes of its ticks: started, queued, skipped, or reported missed. Each has one fate.

use crate::{
    config::spec::Overlap,
    engine::{
        Denial, Reply,
        book::{Miss, Outcome, Run, RunRecord, Skip},
        cron::{Cron, JobDesk, Pending, Phase},
        effect::{Effect, What},
        fleet::Stance,
    },
    exit::ExitCode,
    id::RequestId,
    time::{Span, Stamp},
};

/// A tick names a minute: within it, its run is on time, whatever `catch_up` says.
const PUNCTUAL: Span = Span::secs(60);
/// So many runs may wait, the one that is there not counted.
pub(super) const QUEUE_MAX: usize = 16;
/// So many ticks of a long absence are counted; more are "at least so many".
const COUNT_MAX: u32 = 10_000;

impl Cron {
    /// Somebody wants a run now. An error says why not.
    pub(super) fn ask(
        &mut self,
        request: RequestId,
        who: &str,
        desk: &mut JobDesk<'_>,
    ) -> Result<(), String> {
        if matches!(self.phase, Phase::Opening) {
            self.early.push((request, who.to_owned()));
            return Ok(());
        }
        let busy = self.run().is_some() || !self.pending.is_empty();
        match desk.spec.overlap {
            Overlap::Skip | Overlap::Forbid if busy => {
                return Err("its last run has not ended (overlap)".to_owned());
            }
            Overlap::Queue if self.pending.len() >= QUEUE_MAX => {
                return Err(format!("{QUEUE_MAX} runs wait already"));
            }
            Overlap::Skip | Overlap::Forbid | Overlap::Queue | Overlap::Replace => {}
        }
        let mut scheduled = desk.shown();
        while self.knows(scheduled) {
            scheduled = scheduled.after(Span::millis(1));
        }
        desk.record(What::RunAsked {
            who: who.to_owned(),
        });
        if desk.spec.overlap == Overlap::Replace {
            self.drop_pending(Skip::Superseded, desk);
        }
        self.clients.insert(scheduled, request);
        self.pending.push_back(Pending {
            scheduled,
            manual: true,
            not_before: desk.now,
        });
        if busy || desk.stance != Stance::Keep {
            self.answer(scheduled, true, desk);
        }
        Ok(())
    }

    /// The book was read: those who asked before that have their turn.
    pub(super) fn hear_early(&mut self, desk: &mut JobDesk<'_>) {
        for (request, who) in std::mem::take(&mut self.early) {
            if let Err(why) = self.ask(request, &who, desk) {
                let why = format!("{}: {why}", desk.name);
                let reply = Err(Denial::new(ExitCode::Conflict, why));
                desk.out.list.push(Effect::Reply { request, reply });
            }
        }
    }

    /// Is a run called by this instant already?
    fn knows(&self, scheduled: Stamp) -> bool {
        self.run().is_some_and(|run| run.scheduled == scheduled)
            || self.pending.iter().any(|one| one.scheduled == scheduled)
            || self
                .book
                .history
                .iter()
                .any(|one| one.scheduled == scheduled)
    }

    /// Whoever asked for this run hears that it began, or waits.
    pub(super) fn answer(&mut self, scheduled: Stamp, queued: bool, desk: &mut JobDesk<'_>) {
        if let Some(request) = self.clients.remove(&scheduled) {
            let name = desk.name.to_string();
            let reply = Ok(Reply::Run {
                name,
                scheduled: scheduled.to_string(),
                queued,
            });
            desk.out.list.push(Effect::Reply { request, reply });
        }
    }

    /// Whoever asked for this run hears why there is none.
    pub(super) fn refuse(
        &mut self,
        scheduled: Stamp,
        code: ExitCode,
        why: impl FnOnce() -> String,
        desk: &mut JobDesk<'_>,
    ) {
        if let Some(request) = self.clients.remove(&scheduled) {
            let why = format!("{}: {}", desk.name, why());
            let reply = Err(Denial::new(code, why));
            desk.out.list.push(Effect::Reply { request, reply });
        }
    }

    pub(super) fn find_next(&mut self) {
        self.next = self.undecided_after(self.book.cursor);
    }

    /// The first tick after `from` that has not had its turn.
    fn undecided_after(&self, from: Option<Stamp>) -> Option<Stamp> {
        let (calendar, mut from) = (self.calendar.as_ref()?, from?);
        loop {
            let tick = calendar.next_after(from)?;
            match self.book.had.end_of(tick) {
                Some(end) => from = end,
                None => return Some(tick),
            }
        }
    }

    /// Ticks pass a job that is held; when that is over, the calendar is followed from there.
    pub(super) fn mind_hold(&mut self, desk: &mut JobDesk<'_>) {
        if desk.held {
            self.was_held = true;
        } else if std::mem::take(&mut self.was_held) {
            self.pass_over(desk.shown(), Miss::Held, desk);
        }
    }

    /// Nobody starts what waits: a job that is held has been told why; at a shutdown the next keeper decides upon ticks.
    pub(super) fn give_up_pending(&mut self, desk: &mut JobDesk<'_>) {
        if desk.held || desk.removed {
            return self.drop_pending(Skip::Held, desk);
        }
        let (asked, ticks) = self.pending.drain(..).partition(|one| one.manual);
        self.pending = asked;
        self.drop_pending(Skip::Shutdown, desk);
        self.pending = ticks;
    }

    pub(super) fn drop_pending(&mut self, why: Skip, desk: &mut JobDesk<'_>) {
        while let Some(one) = self.pending.pop_front() {
            let run = Run {
                scheduled: one.scheduled,
                manual: one.manual,
                attempt: 0,
                started: one.scheduled,
            };
            self.skip(run, why, desk);
        }
    }

    /// A clock that was set back shows ticks again. Those that had their turn are known.
    pub(super) fn mind_clock(&mut self, desk: &mut JobDesk<'_>) {
        let shown = desk.shown();
        let cursor = *self.book.cursor.get_or_insert(shown);
        if cursor <= shown {
            return;
        }
        let again = self.calendar.as_ref().and_then(|c| c.next_after(shown));
        if again.is_some_and(|tick| tick <= cursor) {
            desk.record(What::ClockSetBack {
                by: cursor.since(shown),
            });
        }
        self.book.cursor = Some(shown);
        // The file must not name a later one: whoever reads it would take every tick until then for decided.
        self.disk.again = None;
        self.find_next();
    }

    /// Decides upon every tick that the wall clock has reached.
    pub(super) fn follow_calendar(&mut self, desk: &mut JobDesk<'_>) {
        // Decided by what it was seen to show, never by what it should: no run begins before its tick.
        let seen = desk.clock.shown;
        if self.next.is_none_or(|next| next > seen) {
            return;
        }
        let patience = desk.spec.catch_up.max(PUNCTUAL);
        let edge = seen.before(patience);
        if self.next.is_some_and(|next| next <= edge) {
            self.pass_over(edge, Miss::Late, desk);
        }
        let mut due = Vec::new();
        while let Some(tick) = self.next.filter(|tick| *tick <= seen) {
            if due.len() >= COUNT_MAX as usize {
                break;
            }
            due.push(tick);
            self.next = self.undecided_after(Some(tick));
        }
        let Some(last) = due.pop() else { return };
        if desk.spec.overlap == Overlap::Queue {
            for tick in due {
                self.offer(tick, desk);
            }
        } else if let Some(before) = due.last() {
            // Of several, the latest is started; the others are not forgotten.
            self.pass_over(*before, Miss::Superseded, desk);
        }
        self.offer(last, desk);
        self.find_next();
    }

    /// Nobody starts the ticks up to `until`.
    fn pass_over(&mut self, until: Stamp, why: Miss, desk: &mut JobDesk<'_>) {
        let Some(cursor) = self.book.cursor.filter(|cursor| *cursor < until) else {
            return;
        };
        let (mut from, mut count, mut first) = (cursor, 0, None);
        while let Some(tick) = self.undecided_after(Some(from)).filter(|t| *t <= until) {
            first.get_or_insert(tick);
            count += 1;
            from = tick;
            if count == COUNT_MAX {
                break;
            }
        }
        self.book.cursor = Some(until);
        self.find_next();
        let Some(first) = first else { return };
        let last = if count == COUNT_MAX { until } else { from };
        desk.record(What::RunsMissed {
            first,
            last,
            count,
            why,
        });
        let record = RunRecord {
            scheduled: first,
            manual: false,
            attempts: 0,
            started: None,
            ended: desk.shown(),
            outcome: Outcome::Missed(why),
            count,
        };
        self.book.note(record, desk.spec.history);
    }

    /// A tick is due.
    fn offer(&mut self, tick: Stamp, desk: &mut JobDesk<'_>) {
        let cursor = self.book.cursor.replace(tick);
        self.book.had.add(cursor.unwrap_or(tick), tick);
        let busy = self.run().is_some() || !self.pending.is_empty();
        let why = match desk.spec.overlap {
            Overlap::Skip | Overlap::Forbid if busy => Some(Skip::Overlap),
            Overlap::Queue if self.pending.len() >= QUEUE_MAX => Some(Skip::QueueFull),
            Overlap::Skip | Overlap::Forbid | Overlap::Queue | Overlap::Replace => None,
        };
        if let Some(why) = why {
            let run = Run {
                scheduled: tick,
                manual: false,
                attempt: 0,
                started: tick,
            };
            self.skip(run, why, desk);
            return;
        }
        if desk.spec.overlap == Overlap::Replace {
            self.drop_pending(Skip::Superseded, desk);
        }
        let delay = desk.jitter.up_to(desk.spec.jitter);
        self.pending.push_back(Pending {
            scheduled: tick,
            manual: false,
            not_before: desk.now.after(delay),
        });
        if busy {
            desk.record(What::RunQueued {
                scheduled: tick,
                waiting: self.pending.len(),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::CronSpec,
        engine::{
            cron::{Move, Seen},
            effect::Effects,
            jitter::Jitter,
        },
    };

    /// A job is new here for as long as a disk takes. That is nobody's mistake, least of all of a script that has just reloaded.
    #[test]
    fn who_asks_before_the_book_is_read_is_heard_after() {
        let spec = CronSpec::of("@yearly");
        let name = "job".parse().unwrap();
        let (mut out, mut jitter) = (Effects::default(), Jitter::new(1));
        let mut desk = JobDesk::of((&name, &spec), &mut jitter, &mut out);
        let seen = Seen::default();
        let mut cron = Cron::default();
        cron.follow(&spec);
        assert_eq!(cron.turn(&seen, &mut desk), Move::Rest);
        assert_eq!(cron.ask(RequestId(1), "one", &mut desk), Ok(()));
        assert_eq!(cron.ask(RequestId(2), "two", &mut desk), Ok(()));
        cron.book_read(Ok(None), &seen, &mut desk);
        // The second is refused, as it would have been later; the first has its run claimed.
        assert_eq!(cron.turn(&seen, &mut desk), Move::Again);
        assert!(matches!(cron.phase, Phase::Claiming { .. }));
        let refused: Vec<RequestId> = out
            .list
            .iter()
            .filter_map(|effect| match effect {
                Effect::Reply { request, reply } => reply.is_err().then_some(*request),
                _ => None,
            })
            .collect();
        assert_eq!(refused, [RequestId(2)]);
    }
}
