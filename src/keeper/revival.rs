//! When to start the supervisor again, and when to stop believing in it. Pure.
//!
//! ```text
//!   Due ──start──▶ Up ──died──▶ Due (at once; five deaths of its own in ten seconds: --recover, then back-off)
//!                  │ silent for 10 s (while deadlines stand: found asleep three times), or stopped by a signal
//!                  ▼
//!               Killed ──reaped──▶ Due     (not reaped in 5 s: no successor yet, and we say so)
//! ```

use std::collections::VecDeque;

use crate::time::{Moment, Span};

/// A healthy supervisor is asked this often.
const PING_EVERY: Span = Span::secs(5);
/// One that has not answered for this long is replaced.
const SILENCE_MAX: Span = Span::secs(10);
/// While deadlines stand it is asked this often, and looked at as often while it is silent: a hang is to end before they come.
const CLOSE: Span = Span::millis(375);
/// So many looks in a row that find it silent and asleep. They are counted, not timed: a machine that stood still is one look.
const LOOKS_MAX: u32 = 3;
/// Deaths within this count together.
const DEATHS_WINDOW: Span = Span::secs(10);
/// So many of them mean that something is wrong with what it reads.
const DEATHS_MAX: usize = 5;
/// Longest pause between two starts.
const BACKOFF_MAX: Span = Span::secs(5);
/// A killed process that is not gone by then hangs in the kernel (D state).
const REAP_PATIENCE: Span = Span::secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Due {
        at: Moment,
    },
    Up {
        /// It has answered once: how long it needs before that is nobody's guess.
        proven: bool,
        silence: Option<Silence>,
        next_ping: Moment,
    },
    Killed {
        at: Moment,
        complained: bool,
    },
}

/// A ping that was not answered yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Silence {
    since: Moment,
    next_look: Moment,
    /// So many in a row found it asleep.
    looks: u32,
}

/// What to do now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing until the deadline.
    Wait,
    /// Start one; with `recover` it is to ignore row bodies.
    Start {
        /// Ignore row bodies.
        recover: bool,
    },
    /// Ask whether it is there.
    Ping(u64),
    /// Look whether anything of it runs, and tell [`Revival::looked`].
    Look,
    /// SIGKILL: it has been silent for so long.
    Kill(Span),
    /// Tell people that it was killed and does not end.
    Complain,
}

/// The supervisor's supervisor.
#[derive(Debug)]
pub struct Revival {
    state: State,
    deaths: VecDeque<Moment>,
    pings: u64,
    recover: bool,
    /// Do deadlines stand that only its renewals move?
    close: bool,
}

impl Revival {
    /// The first start is due now.
    pub fn new(now: Moment) -> Self {
        Self {
            state: State::Due { at: now },
            deaths: VecDeque::new(),
            pings: 0,
            recover: false,
            close: false,
        }
    }

    /// While deadlines stand that only its renewals move, a hang is noticed sooner.
    pub fn watch_closely(&mut self, close: bool, now: Moment) {
        let begins = close && !self.close;
        self.close = close;
        if !begins {
            return;
        }
        let soon = now.after(CLOSE);
        if let State::Up {
            silence, next_ping, ..
        } = &mut self.state
        {
            *next_ping = soon.min(*next_ping);
            if let Some(silence) = silence {
                silence.next_look = soon;
            }
        }
    }

    fn ping_every(&self) -> Span {
        if self.close { CLOSE } else { PING_EVERY }
    }

    /// When [`Revival::step`] wants to be asked again.
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Due { at } => Some(at),
            State::Up {
                silence: Some(silence),
                proven,
                ..
            } => {
                let end = silence.since.after(SILENCE_MAX);
                let looks = self.close && proven;
                Some(if looks {
                    silence.next_look.min(end)
                } else {
                    end
                })
            }
            State::Up {
                silence: None,
                next_ping,
                ..
            } => Some(next_ping),
            State::Killed {
                at,
                complained: false,
            } => Some(at.after(REAP_PATIENCE)),
            State::Killed {
                complained: true, ..
            } => None,
        }
    }

    /// What is due.
    pub fn step(&mut self, now: Moment) -> Step {
        match &mut self.state {
            State::Due { at } if *at <= now => Step::Start {
                recover: self.recover,
            },
            State::Up {
                silence: Some(silence),
                proven: true,
                ..
            } if self.close && silence.next_look <= now => {
                // While we did not run, perhaps nobody did.
                silence.since = silence.since.after(now.since(silence.next_look));
                silence.next_look = now.after(CLOSE);
                Step::Look
            }
            State::Up {
                silence: Some(silence),
                ..
            } if silence.since.after(SILENCE_MAX) <= now => {
                let silent = now.since(silence.since);
                self.kill(silent, now)
            }
            State::Up {
                silence: silence @ None,
                next_ping,
                ..
            } if *next_ping <= now => {
                self.pings += 1;
                *silence = Some(Silence {
                    since: now,
                    next_look: now.after(CLOSE),
                    looks: 0,
                });
                Step::Ping(self.pings)
            }
            State::Killed {
                at,
                complained: complained @ false,
            } if at.after(REAP_PATIENCE) <= now => {
                *complained = true;
                Step::Complain
            }
            State::Due { .. } | State::Up { .. } | State::Killed { .. } => Step::Wait,
        }
    }

    fn kill(&mut self, silent: Span, now: Moment) -> Step {
        self.state = State::Killed {
            at: now,
            complained: false,
        };
        Step::Kill(silent)
    }

    /// Was it seen to be asleep, all of it? Whoever computes, or waits for a disk, has a reason to be silent.
    pub fn looked(&mut self, asleep: bool, now: Moment) -> Step {
        let State::Up {
            silence: Some(silence),
            ..
        } = &mut self.state
        else {
            return Step::Wait;
        };
        silence.looks = if asleep { silence.looks + 1 } else { 0 };
        if silence.looks < LOOKS_MAX {
            return Step::Wait;
        }
        let silent = now.since(silence.since);
        self.kill(silent, now)
    }

    /// It was started. Its first ping goes out at once: start-up counts as silence too.
    pub fn started(&mut self, now: Moment) {
        self.state = State::Up {
            proven: false,
            silence: None,
            next_ping: now,
        };
    }

    /// It answered this ping.
    pub fn answered(&mut self, number: u64, now: Moment) {
        if let State::Up {
            silence: Some(_), ..
        } = self.state
            && number == self.pings
        {
            self.state = State::Up {
                proven: true,
                silence: None,
                next_ping: now.after(self.ping_every()),
            };
        }
    }

    /// It was stopped by a signal and answers nobody. Is it to be killed, and replaced?
    pub fn stopped(&mut self, now: Moment) -> bool {
        let is_up = self.is_up();
        if is_up {
            self.kill(Span::ZERO, now);
        }
        is_up
    }

    /// It has ended and is reaped. Deaths that we caused do not count against it.
    pub fn ended(&mut self, now: Moment) {
        let own = !matches!(self.state, State::Killed { .. });
        if own {
            self.deaths.push_back(now);
        }
        while self
            .deaths
            .front()
            .is_some_and(|first| first.after(DEATHS_WINDOW) < now)
        {
            self.deaths.pop_front();
        }
        let many = self.deaths.len();
        self.recover = many >= DEATHS_MAX;
        let pause = match many.saturating_sub(DEATHS_MAX) {
            0 => Span::ZERO,
            n => Span::millis(250 << n.min(6)).min(BACKOFF_MAX),
        };
        self.state = State::Due {
            at: now.after(pause),
        };
    }

    /// It could not even be started: try again, slower.
    pub fn start_failed(&mut self, now: Moment) {
        self.state = State::Due {
            at: now.after(Span::secs(1)),
        };
    }

    /// Is one running and believed in?
    pub fn is_up(&self) -> bool {
        matches!(self.state, State::Up { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    #[test]
    fn a_death_is_answered_at_once_and_the_fifth_recovers_then_backs_off() {
        let mut revival = Revival::new(at(0));
        for n in 0..5 {
            assert_eq!(revival.step(at(n)), Step::Start { recover: false });
            revival.started(at(n));
            revival.ended(at(n));
        }
        assert_eq!(revival.step(at(4)), Step::Start { recover: true });
        revival.started(at(5));
        revival.ended(at(5));
        assert_eq!(revival.step(at(5)), Step::Wait);
        assert_eq!(revival.deadline(), Some(at(505)));
        for _ in 0..20 {
            revival.ended(at(6));
        }
        assert_eq!(revival.deadline(), Some(at(5_006)));
    }

    #[test]
    fn silence_is_killed_and_does_not_count() {
        let mut revival = Revival::new(at(0));
        for round in 0..9 {
            let start = at(round * 30_000);
            revival.started(start);
            assert_eq!(revival.step(start), Step::Ping(round + 1));
            assert_eq!(revival.step(start.after(Span::millis(9_999))), Step::Wait);
            let late = start.after(Span::secs(10));
            assert_eq!(revival.step(late), Step::Kill(Span::secs(10)));
            assert_eq!(revival.step(late.after(Span::secs(5))), Step::Complain);
            revival.ended(late.after(Span::secs(6)));
            assert_eq!(
                revival.step(late.after(Span::secs(6))),
                Step::Start { recover: false }
            );
        }
    }

    #[test]
    fn an_answer_buys_the_next_period() {
        let mut revival = Revival::new(at(0));
        revival.started(at(0));
        assert_eq!(revival.step(at(0)), Step::Ping(1));
        revival.answered(1, at(3));
        assert_eq!(revival.step(at(5_002)), Step::Wait);
        assert_eq!(revival.step(at(5_003)), Step::Ping(2));
        revival.answered(1, at(5_004));
        assert_eq!(
            revival.deadline(),
            Some(at(15_003)),
            "an old answer proves nothing"
        );
        assert!(revival.stopped(at(6_000)));
        assert!(!revival.stopped(at(6_001)));
    }

    /// One that has answered once, while deadlines stand.
    fn watched() -> Revival {
        let mut revival = Revival::new(at(0));
        revival.started(at(0));
        revival.watch_closely(true, at(0));
        assert_eq!(revival.step(at(0)), Step::Ping(1));
        revival.answered(1, at(1));
        assert_eq!(revival.deadline(), Some(at(376)));
        assert_eq!(revival.step(at(376)), Step::Ping(2));
        revival
    }

    /// A second and a half after its last word at the latest.
    #[test]
    fn a_hang_is_noticed_sooner_while_deadlines_stand() {
        let mut revival = watched();
        for look in [751, 1_126] {
            assert_eq!(revival.deadline(), Some(at(look)));
            assert_eq!(revival.step(at(look)), Step::Look);
            assert_eq!(revival.looked(true, at(look)), Step::Wait);
        }
        assert_eq!(revival.step(at(1_501)), Step::Look);
        let silent = Span::millis(1_125);
        assert_eq!(revival.looked(true, at(1_501)), Step::Kill(silent));
        assert!(!revival.is_up());
    }

    #[test]
    fn whoever_is_busy_has_ten_seconds() {
        let mut revival = watched();
        for look in 0..26 {
            let now = at(751 + look * 375);
            assert_eq!(revival.step(now), Step::Look);
            // Asleep twice in a row at most.
            assert_eq!(revival.looked(look % 3 != 0, now), Step::Wait, "{look}");
        }
        assert_eq!(revival.deadline(), Some(at(10_376)));
        assert_eq!(revival.step(at(10_376)), Step::Kill(Span::secs(10)));
    }

    #[test]
    fn a_machine_that_stood_still_is_no_hang() {
        let mut revival = watched();
        assert_eq!(revival.step(at(20_000)), Step::Look);
        assert_eq!(revival.looked(true, at(20_000)), Step::Wait);
        assert_eq!(revival.step(at(20_001)), Step::Wait);
        assert_eq!(revival.deadline(), Some(at(20_375)));
        revival.answered(2, at(20_002));
        assert_eq!(revival.deadline(), Some(at(20_377)));
    }

    #[test]
    fn who_starts_is_not_looked_at() {
        let mut revival = Revival::new(at(0));
        revival.watch_closely(true, at(0));
        revival.started(at(0));
        assert_eq!(revival.step(at(0)), Step::Ping(1));
        assert_eq!(revival.deadline(), Some(at(10_000)));
        assert_eq!(revival.step(at(9_999)), Step::Wait);
    }

    #[test]
    fn deadlines_that_begin_and_end_change_how_often_it_is_asked() {
        let mut revival = Revival::new(at(0));
        revival.started(at(0));
        assert_eq!(revival.step(at(0)), Step::Ping(1));
        revival.answered(1, at(1));
        revival.watch_closely(true, at(1_000));
        assert_eq!(revival.deadline(), Some(at(1_375)));
        assert_eq!(revival.step(at(1_375)), Step::Ping(2));
        revival.watch_closely(false, at(1_600));
        assert_eq!(revival.deadline(), Some(at(11_375)));
        revival.watch_closely(true, at(8_000));
        assert_eq!(revival.deadline(), Some(at(8_375)));
        revival.answered(2, at(8_100));
        revival.watch_closely(false, at(8_200));
        assert_eq!(revival.step(at(8_475)), Step::Ping(3));
        revival.answered(3, at(8_500));
        assert_eq!(revival.deadline(), Some(at(13_500)));
    }
}
