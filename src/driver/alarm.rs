//! The wall clock, for jobs alone: it is looked at on every lap of the loop, and the engine hears when it shows what is waited for, or
//! was set.
//!
//! Two timers lead to a lap: one of the kernel's on the wall clock, which also notices when that is set and when the machine slept; and
//! the loop's own, by difference, for a clock that is not the kernel's, as in tests.

use std::{io, os::fd::OwnedFd};

use tokio::io::unix::AsyncFd;

use crate::{
    driver::link,
    engine::Event,
    sys::{clock, timer},
    time::{Moment, Span, Stamp},
};

/// Between two looks at two clocks so much may pass without either being set.
const NOISE: Span = Span::millis(10);

pub(super) struct Alarm {
    timer: AsyncFd<OwnedFd>,
    wake: Option<Stamp>,
    /// What the engine believes.
    told: (Stamp, Moment),
}

/// What the wall clock shows, to the whole millisecond that has begun.
pub(super) fn shown() -> Stamp {
    Stamp::from(clock::wall())
}

impl Alarm {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self {
            timer: link::watched(timer::create()?)?,
            wake: None,
            told: (shown(), clock::now()),
        })
    }

    /// What the engine is told at its birth.
    pub(super) fn told(&self) -> Stamp {
        self.told.0
    }

    /// The engine wants to hear when the clock shows this.
    pub(super) fn set(&mut self, wake: Option<Stamp>) -> io::Result<()> {
        self.wake = wake;
        match wake {
            Some(at) => timer::arm(self.timer.get_ref(), at),
            None => timer::disarm(self.timer.get_ref()),
        }
    }

    /// When the loop is to look by its own clock.
    pub(super) fn deadline(&self) -> Option<Moment> {
        let (shown, at) = self.told;
        self.wake.map(|wake| at.after(wake.since(shown)))
    }

    /// Returns when the kernel's timer rang.
    pub(super) async fn rang(&self) {
        if let Ok(mut guard) = self.timer.readable().await {
            timer::take(self.timer.get_ref());
            guard.clear_ready();
        }
    }

    /// Looks; an event if the engine must know.
    pub(super) fn look(&mut self) -> Option<Event> {
        let (before, shown, after) = (clock::now(), shown(), clock::now());
        let believed = self.told.0.after(before.since(self.told.1));
        let off = shown.since(believed).max(believed.since(shown));
        let is_due = self.wake.is_some_and(|wake| wake <= shown);
        // Two clocks read far apart say nothing of each other.
        let was_set = off > NOISE && after.since(before) < NOISE;
        if !is_due && !was_set {
            return None;
        }
        self.told = (shown, after);
        if was_set && let Some(wake) = self.wake {
            // A timer that was cancelled may ring no more.
            let _ = timer::arm(self.timer.get_ref(), wake);
        }
        Some(Event::Wall { shown })
    }
}
