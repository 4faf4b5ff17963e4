//! How busy one worker is: smoothed, and only from measurements that mean something.

use crate::{
    id::Generation,
    time::{Moment, Span},
};

/// One whole, in parts per million.
pub(super) const WHOLE: u64 = 1_000_000;
/// Of this share a worker is pegged: it cannot show more.
pub(super) const PEGGED: u64 = 950_000;
/// What was measured over less says nothing, over more something else happened: the machine was suspended, or we were.
const INTERVAL: [Span; 2] = [Span::millis(200), Span::secs(3)];
/// What was measured longer ago is not known any more.
pub(super) const STALE: Span = Span::secs(3);

/// `1 - exp(-dt / 5 s)` in parts per million, for `dt` in tenths of a second.
const SMOOTHING: [u64; 31] = [
    0, 19_801, 39_211, 58_235, 76_884, 95_163, 113_080, 130_642, 147_856, 164_730, 181_269,
    197_481, 213_372, 228_948, 244_216, 259_182, 273_851, 288_230, 302_324, 316_139, 329_680,
    342_953, 355_964, 368_716, 381_217, 393_469, 405_479, 417_252, 428_791, 440_102, 451_188,
];

/// Moves `old` towards `new` as far as a time constant of 5 s allows in `elapsed`; at most 3 s count.
pub(super) fn smooth(old: u64, new: u64, elapsed: Span) -> u64 {
    let millis = elapsed.as_nanos() / 1_000_000;
    let tenth = usize::try_from(millis / 100).unwrap_or(usize::MAX);
    let factor = match (SMOOTHING.get(tenth), SMOOTHING.get(tenth + 1)) {
        (Some(low), Some(high)) => low + (high - low) * (millis % 100) / 100,
        _ => SMOOTHING[SMOOTHING.len() - 1],
    };
    if new >= old {
        old + (new - old) * factor / WHOLE
    } else {
        old - (old - new) * factor / WHOLE
    }
}

/// What is known of one worker's work. Nothing of it is kept: a new supervisor measures anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Meter {
    generation: Generation,
    /// When its processor time was read last, and what it was.
    read: Option<(Moment, u64)>,
    /// It was ready then.
    worked: bool,
    /// When its share was last known.
    pub(super) seen: Option<Moment>,
    /// Of what it can use, in parts per million.
    pub(super) share: u64,
    /// Pegged since, without a break.
    pegged_since: Option<Moment>,
    /// In bytes.
    pub(super) memory: Option<u64>,
    /// How much of the time it waits for a processor, in hundredths of a percent.
    pub(super) pressure: Option<u32>,
    /// By its own word, in parts per million.
    pub(super) busy: Option<u32>,
    /// By its own word.
    pub(super) inflight: Option<u32>,
    /// By its own word.
    pub(super) queue: Option<u32>,
    /// What it has done by its own word, and since when that has not changed.
    done: Option<(u64, Moment)>,
    /// It was said that it talks nonsense.
    pub(super) doubted: bool,
    /// When it was last reported as stuck.
    pub(super) reported: Option<Moment>,
}

impl Meter {
    /// Another generation is another worker.
    pub(super) fn fit(&mut self, generation: Generation) {
        if self.generation != generation {
            *self = Self {
                generation,
                ..Self::default()
            };
        }
    }

    /// Its processor time so far, in nanoseconds, read at `at`; it can use so many thousandths of a core. What it uses before it is ready is
    /// no work, and the first share after that is taken as it is: one that is saturated from the start is evidence at once.
    pub(super) fn read(&mut self, at: Moment, cpu: u64, ready: bool, worker_cores: u32) {
        let works = std::mem::replace(&mut self.worked, ready) && ready;
        let Some((before, used)) = self.read.replace((at, cpu)) else {
            return;
        };
        let elapsed = at.since(before);
        if elapsed > INTERVAL[1] {
            // Nobody knows what it did meanwhile, or whether it could do anything.
            self.pegged_since = None;
            self.done = self.done.map(|(done, _)| (done, at));
        }
        if elapsed < INTERVAL[0] || elapsed > INTERVAL[1] || cpu < used {
            return;
        }
        let could = u128::from(elapsed.as_nanos()) * u128::from(worker_cores) / 1_000;
        let share = u128::from(cpu - used) * u128::from(WHOLE) / could.max(1);
        let share = u64::try_from(share).unwrap_or(WHOLE).min(WHOLE);
        self.share = if self.seen.is_none() {
            share
        } else {
            smooth(self.share, share, elapsed)
        };
        if !works {
            (self.seen, self.pegged_since) = (None, None);
            return;
        }
        self.seen = Some(at);
        if self.share < PEGGED {
            self.pegged_since = None;
        } else {
            self.pegged_since.get_or_insert(at);
        }
    }

    /// Is its share known now?
    pub(super) fn is_known(&self, now: Moment) -> bool {
        self.seen.is_some_and(|seen| seen.after(STALE) > now)
    }

    /// Has it been pegged for so long?
    pub(super) fn is_pegged_for(&self, span: Span, now: Moment) -> bool {
        self.pegged_since
            .is_some_and(|since| since.after(span) <= now)
    }

    /// It says that it has done so much.
    pub(super) fn has_done(&mut self, done: u64, now: Moment) {
        if self.done.is_none_or(|(before, _)| before != done) {
            self.done = Some((done, now));
        }
    }

    /// Has it said for so long that it gets nothing done?
    pub(super) fn stands_still_for(&self, span: Span, now: Moment) -> bool {
        self.done.is_some_and(|(_, since)| since.after(span) <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1_000_000_000;

    fn meter_after(seconds: u64, share: u64) -> Meter {
        let mut meter = Meter::default();
        // A second of rest first.
        for n in 0..=seconds + 1 {
            let used = n.saturating_sub(1) * SECOND / WHOLE * share;
            meter.read(Moment(n * SECOND), used, true, 1_000);
        }
        meter
    }

    #[test]
    fn smooths_with_a_time_constant_of_five_seconds() {
        for (seconds, expected) in [(1, 181_269), (5, 632_120), (10, 864_664), (30, 997_521)] {
            let got = meter_after(seconds, WHOLE).share;
            assert!(got.abs_diff(expected) < 100, "{seconds}: {got}");
        }
        assert_eq!(meter_after(60, 0).share, 0);
    }

    #[test]
    fn drops_what_was_measured_over_an_odd_interval() {
        let mut meter = meter_after(10, WHOLE / 2);
        let before = meter.share;
        // Thirty seconds of pause, in which the counter went on; then one that went back.
        meter.read(Moment(40 * SECOND), 35 * SECOND, true, 1_000);
        assert_eq!(meter.share, before);
        meter.read(Moment(41 * SECOND), 1, true, 1_000);
        assert_eq!(meter.share, before);
        assert!(!meter.is_known(Moment(41 * SECOND)));
        meter.read(Moment(42 * SECOND), 1 + SECOND, true, 1_000);
        assert!(meter.share > before && meter.is_known(Moment(42 * SECOND)));
    }

    #[test]
    fn what_a_start_burns_is_no_work_and_the_first_share_is_taken_as_it_is() {
        let mut meter = Meter::default();
        for n in 0..30 {
            meter.read(Moment(n * SECOND), n * SECOND, false, 1_000);
        }
        // Of this second nobody knows how much was the start.
        meter.read(Moment(30 * SECOND), 30 * SECOND, true, 1_000);
        assert!(!meter.is_known(Moment(30 * SECOND)));
        meter.read(Moment(31 * SECOND), 30 * SECOND + SECOND / 2, true, 1_000);
        assert_eq!(meter.share, WHOLE / 2);
        assert!(meter.is_known(Moment(31 * SECOND)));
    }
}
