//! How often a worker may fall, and how long until it rises.

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::{RestartPolicy, RestartSpec},
    engine::jitter::Jitter,
    time::{Moment, Span},
    wire::ExitStatus,
};

/// What a slot remembers of its failures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Restart {
    /// Ends in a row without a healthy period between them.
    pub streak: u32,
    window_began: Moment,
    in_window: u32,
}

/// What comes after an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Start again after this pause.
    Pause(Span),
    /// Too many: try again after this pause, or never.
    Failed(Option<Span>),
    /// The policy wants no other.
    Done,
}

impl Restart {
    /// Decides after an end that nobody wanted. `forced`: we ended it because it was not well, so it is a failure whatever its code.
    pub(super) fn after_exit(
        &mut self,
        spec: &RestartSpec,
        status: ExitStatus,
        forced: bool,
        uptime: Span,
        now: Moment,
        jitter: &mut Jitter,
    ) -> Next {
        let success =
            !forced && matches!(status, ExitStatus::Code(code) if spec.success.contains(&code));
        match spec.policy {
            RestartPolicy::Never => return Next::Done,
            RestartPolicy::OnFailure if success => return Next::Done,
            RestartPolicy::OnFailure | RestartPolicy::Always => {}
        }
        if uptime >= spec.healthy {
            self.streak = 0;
        }
        self.streak = self.streak.saturating_add(1);
        if self.window_began.after(spec.window) <= now || self.in_window == 0 {
            self.window_began = now;
            self.in_window = 0;
        }
        self.in_window = self.in_window.saturating_add(1);
        if self.in_window > spec.burst {
            return Next::Failed((!spec.give_up).then_some(spec.backoff_max));
        }
        // The first restart is immediate: most crashes are alone.
        match self.streak {
            1 => Next::Pause(Span::ZERO),
            n => Next::Pause(jitter.up_to(backoff(spec, n - 2))),
        }
    }

    /// An operator starts it: the past is forgotten.
    pub(super) fn forgive(&mut self) {
        *self = Self::default();
    }
}

fn backoff(spec: &RestartSpec, doublings: u32) -> Span {
    let factor = 1_u64.checked_shl(doublings).unwrap_or(u64::MAX);
    Span::nanos(spec.backoff_min.as_nanos().saturating_mul(factor)).min(spec.backoff_max)
}

/// Restarts of the whole node: a bucket that refills, so that a storm cannot take the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bucket {
    /// In thousandths of a restart.
    level: u64,
    filled: Moment,
}

impl Bucket {
    pub(super) fn full(burst: u64, now: Moment) -> Self {
        Self {
            level: burst * 1_000,
            filled: now,
        }
    }

    /// Takes a restart out, or says when one will be in. `rate` is in restarts per 1,000 s.
    pub(super) fn take(&mut self, rate: u64, burst: u64, now: Moment) -> Result<(), Moment> {
        let grown =
            u128::from(now.since(self.filled).as_nanos()) * u128::from(rate) / 1_000_000_000;
        if grown > 0 {
            self.level = self
                .level
                .saturating_add(u64::try_from(grown).unwrap_or(u64::MAX))
                .min(burst * 1_000);
            self.filled = now;
        }
        if self.level >= 1_000 {
            self.level -= 1_000;
            return Ok(());
        }
        let missing = u128::from(1_000 - self.level) * 1_000_000_000;
        let wait = missing.div_ceil(u128::from(rate.max(1)));
        Err(self
            .filled
            .after(Span::nanos(u64::try_from(wait).unwrap_or(u64::MAX)))
            .max(now.after(Span::millis(1))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> RestartSpec {
        RestartSpec {
            policy: RestartPolicy::Always,
            backoff_min: Span::millis(100),
            backoff_max: Span::secs(10),
            burst: 5,
            window: Span::secs(60),
            healthy: Span::secs(10),
            give_up: false,
            success: vec![0],
        }
    }

    fn at(ms: u64) -> Moment {
        Moment(ms * 1_000_000)
    }

    #[test]
    fn first_at_once_then_longer_then_failed() {
        let (mut restart, mut jitter) = (Restart::default(), Jitter::new(1));
        let mut next = |now| {
            restart.after_exit(
                &spec(),
                ExitStatus::Code(1),
                false,
                Span::millis(1),
                now,
                &mut jitter,
            )
        };
        assert_eq!(next(at(1)), Next::Pause(Span::ZERO));
        for (n, ceiling) in [(2, 100), (3, 200), (4, 400), (5, 800)] {
            let Next::Pause(pause) = next(at(n)) else {
                panic!("failed at {n}")
            };
            assert!(pause <= Span::millis(ceiling));
        }
        assert_eq!(next(at(6)), Next::Failed(Some(Span::secs(10))));
        assert!(matches!(next(at(61_000)), Next::Pause(_)), "a new window");
    }

    #[test]
    fn a_healthy_period_is_forgiving_and_policies_are_kept() {
        let (mut restart, mut jitter) = (Restart::default(), Jitter::new(1));
        for n in 0..100 {
            let now = at(n * 15_000);
            let next = restart.after_exit(
                &spec(),
                ExitStatus::Code(1),
                false,
                Span::secs(11),
                now,
                &mut jitter,
            );
            assert_eq!(next, Next::Pause(Span::ZERO));
        }
        let on_failure = RestartSpec {
            policy: RestartPolicy::OnFailure,
            ..spec()
        };
        let done = restart.after_exit(
            &on_failure,
            ExitStatus::Code(0),
            false,
            Span::ZERO,
            at(0),
            &mut jitter,
        );
        assert_eq!(done, Next::Done);
        let forced = restart.after_exit(
            &on_failure,
            ExitStatus::Code(0),
            true,
            Span::ZERO,
            at(0),
            &mut jitter,
        );
        assert_ne!(
            forced,
            Next::Done,
            "ended for being unwell: its code says nothing"
        );
    }

    #[test]
    fn the_bucket_holds_back_a_storm_and_never_starves() {
        let mut bucket = Bucket::full(3, at(0));
        let mut now = at(0);
        for _ in 0..3 {
            assert_eq!(bucket.take(20_000, 3, now), Ok(()));
        }
        for _ in 0..100 {
            let Err(later) = bucket.take(20_000, 3, now) else {
                panic!("too many")
            };
            assert!(
                later > now && later <= now.after(Span::millis(51)),
                "{later:?}"
            );
            now = later;
            assert_eq!(bucket.take(20_000, 3, now), Ok(()));
        }
    }
}
