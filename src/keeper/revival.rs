//! When to start the supervisor again, and when to stop believing in it. Pure.
//!
//! ```text
//!   Due ──start──▶ Up ──died──▶ Due (at once; five deaths of its own in ten seconds: --recover, then back-off)
//!                  │ silent for 10 s, or stopped by a signal
//!                  ▼
//!               Killed ──reaped──▶ Due     (not reaped in 5 s: no successor yet, and we say so)
//! ```

use std::collections::VecDeque;

use crate::time::{Moment, Span};

/// A healthy supervisor is asked this often.
const PING_EVERY: Span = Span::secs(5);
/// One that has not answered for this long is replaced.
const SILENCE_MAX: Span = Span::secs(10);
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
        asked: Option<Moment>,
        next_ping: Moment,
    },
    Killed {
        at: Moment,
        complained: bool,
    },
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
    /// SIGKILL: it has been silent too long.
    Kill,
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
}

impl Revival {
    /// The first start is due now.
    pub fn new(now: Moment) -> Self {
        Self {
            state: State::Due { at: now },
            deaths: VecDeque::new(),
            pings: 0,
            recover: false,
        }
    }

    /// When [`Revival::step`] wants to be asked again.
    pub fn deadline(&self) -> Option<Moment> {
        match self.state {
            State::Due { at } => Some(at),
            State::Up {
                asked: Some(asked), ..
            } => Some(asked.after(SILENCE_MAX)),
            State::Up {
                asked: None,
                next_ping,
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
        match self.state {
            State::Due { at } if at <= now => Step::Start {
                recover: self.recover,
            },
            State::Up {
                asked: Some(asked), ..
            } if asked.after(SILENCE_MAX) <= now => {
                self.state = State::Killed {
                    at: now,
                    complained: false,
                };
                Step::Kill
            }
            State::Up {
                asked: None,
                next_ping,
            } if next_ping <= now => {
                self.pings += 1;
                self.state = State::Up {
                    asked: Some(now),
                    next_ping,
                };
                Step::Ping(self.pings)
            }
            State::Killed {
                at,
                complained: false,
            } if at.after(REAP_PATIENCE) <= now => {
                self.state = State::Killed {
                    at,
                    complained: true,
                };
                Step::Complain
            }
            State::Due { .. } | State::Up { .. } | State::Killed { .. } => Step::Wait,
        }
    }

    /// It was started. Its first ping goes out at once: start-up counts as silence too.
    pub fn started(&mut self, now: Moment) {
        self.state = State::Up {
            asked: None,
            next_ping: now,
        };
    }

    /// It answered this ping.
    pub fn answered(&mut self, number: u64, now: Moment) {
        if let State::Up { asked: Some(_), .. } = self.state
            && number == self.pings
        {
            self.state = State::Up {
                asked: None,
                next_ping: now.after(PING_EVERY),
            };
        }
    }

    /// It was stopped by a signal and answers nobody: to be killed and replaced.
    pub fn stopped(&mut self, now: Moment) -> Step {
        match self.state {
            State::Up { .. } => {
                self.state = State::Killed {
                    at: now,
                    complained: false,
                };
                Step::Kill
            }
            State::Due { .. } | State::Killed { .. } => Step::Wait,
        }
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
            assert_eq!(revival.step(late), Step::Kill);
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
        assert_eq!(revival.stopped(at(6_000)), Step::Kill);
        assert_eq!(revival.stopped(at(6_001)), Step::Wait);
    }
}
