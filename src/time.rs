//! Moments and durations. Nothing here can read a clock: that is `sys::clock`'s trade.

use std::{fmt, time::Duration};

use serde::{Deserialize, Serialize};

/// An instant on CLOCK_BOOTTIME in nanoseconds: it counts through suspend, never jumps with the wall clock,
/// and means the same to every process of this boot.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Moment(pub u64);

impl Moment {
    /// The instant `span` later; saturates.
    #[must_use]
    pub fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add(span.as_nanos()))
    }

    /// How long `self` lies after `earlier`; zero if it does not.
    pub fn since(self, earlier: Self) -> Span {
        Span::nanos(self.0.saturating_sub(earlier.0))
    }

    /// How long until `later`; zero if it has passed.
    pub fn until(self, later: Self) -> Span {
        later.since(self)
    }
}

impl fmt::Debug for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "@{}.{:06}",
            self.0 / 1_000_000_000,
            self.0 / 1_000 % 1_000_000
        )
    }
}

/// What the two clocks that nobody can set showed, or will show, at one instant: BOOTTIME counts through suspend, MONOTONIC_RAW is
/// not slewed. As a deadline it has passed as soon as either clock is there, so that no single clock can lengthen it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Clocks {
    /// CLOCK_BOOTTIME.
    pub boottime: Moment,
    /// CLOCK_MONOTONIC_RAW.
    pub raw: Moment,
}

impl Clocks {
    /// A deadline that does not come.
    pub const NEVER: Self = Self {
        boottime: Moment(u64::MAX),
        raw: Moment(u64::MAX),
    };

    /// The instant `span` later on both; saturates.
    #[must_use]
    pub fn after(self, span: Span) -> Self {
        Self {
            boottime: self.boottime.after(span),
            raw: self.raw.after(span),
        }
    }

    /// The instant `span` earlier on both; no earlier than boot.
    #[must_use]
    pub fn before(self, span: Span) -> Self {
        let earlier = |at: Moment| Moment(at.0.saturating_sub(span.as_nanos()));
        Self {
            boottime: earlier(self.boottime),
            raw: earlier(self.raw),
        }
    }

    /// How long until `deadline` by the clock that says least; zero if it has passed.
    pub fn until(self, deadline: Self) -> Span {
        let boottime = self.boottime.until(deadline.boottime);
        boottime.min(self.raw.until(deadline.raw))
    }

    /// Has `deadline` passed?
    pub fn has_passed(self, deadline: Self) -> bool {
        self.until(deadline) == Span::ZERO
    }

    /// When to look again for `deadline`: after the smallest remainder, and no later than seven eighths of what is left on the clock that has
    /// no timer (timerfd_create(2) knows no MONOTONIC_RAW), since it may run faster than the one that has.
    pub fn next_look(self, deadline: Self) -> Moment {
        let by_boottime = self.boottime.until(deadline.boottime);
        let by_raw = self.raw.until(deadline.raw);
        // Down to here the two clocks cannot part by more than a timer is late anyway.
        let close = by_raw <= Span::millis(1);
        let by_raw = if close {
            by_raw
        } else {
            Span::nanos(by_raw.as_nanos() / 8 * 7)
        };
        self.boottime.after(by_boottime.min(by_raw))
    }

    /// Is `self` later on both clocks?
    pub fn is_after(self, other: Self) -> bool {
        self.boottime > other.boottime && self.raw > other.raw
    }
}

/// As of two clocks that have never parted.
impl From<Moment> for Clocks {
    fn from(both: Moment) -> Self {
        Self {
            boottime: both,
            raw: both,
        }
    }
}

/// A length of time in whole nanoseconds. `std::time::Duration` with serde as one integer.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Span(u64);

impl Span {
    /// No time at all.
    pub const ZERO: Self = Self(0);
    /// What "never" and "infinity" mean in a configuration: 292 years.
    pub const FOREVER: Self = Self(i64::MAX as u64);

    /// `n` nanoseconds.
    pub const fn nanos(n: u64) -> Self {
        Self(n)
    }

    /// `n` microseconds; saturates.
    pub const fn micros(n: u64) -> Self {
        Self(n.saturating_mul(1_000))
    }

    /// `n` milliseconds; saturates.
    pub const fn millis(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000))
    }

    /// `n` seconds; saturates.
    pub const fn secs(n: u64) -> Self {
        Self(n.saturating_mul(1_000_000_000))
    }

    /// In nanoseconds.
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// In whole milliseconds, rounded down.
    pub const fn as_millis(self) -> u64 {
        self.0 / 1_000_000
    }

    /// Is it the endless span?
    pub fn is_forever(self) -> bool {
        self >= Self::FOREVER
    }

    /// So many times as long; saturates.
    #[must_use]
    pub const fn times(self, n: u32) -> Self {
        Self(self.0.saturating_mul(n as u64))
    }

    /// The difference; zero if `other` is longer.
    #[must_use]
    pub const fn minus(self, other: Self) -> Self {
        Self(self.0.saturating_sub(other.0))
    }

    /// The sum; saturates.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self(self.0.saturating_add(other.0))
    }
}

impl From<Span> for Duration {
    fn from(span: Span) -> Self {
        Self::from_nanos(span.0)
    }
}

/// The shortest exact way to write it in a configuration: `1h30m`, `250ms`, `infinity`.
impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_forever() {
            return f.write_str("infinity");
        }
        if self.0 == 0 {
            return f.write_str("0s");
        }
        let units = [
            (86_400_000_000_000, "d"),
            (3_600_000_000_000, "h"),
            (60_000_000_000, "m"),
            (1_000_000_000, "s"),
            (1_000_000, "ms"),
            (1_000, "us"),
            (1, "ns"),
        ];
        let mut rest = self.0;
        for (size, unit) in units {
            if rest >= size {
                write!(f, "{}{unit}", rest / size)?;
                rest %= size;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An instant of the wall clock in whole milliseconds since 1970 UTC: ticks of schedules, and dates in records. What shows it can be
/// set, so nothing is measured with it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Stamp(pub i64);

impl Stamp {
    /// The instant `span` later; saturates.
    #[must_use]
    pub fn after(self, span: Span) -> Self {
        Self(self.0.saturating_add_unsigned(span.as_millis()))
    }

    /// The instant `span` earlier; saturates.
    #[must_use]
    pub fn before(self, span: Span) -> Self {
        Self(self.0.saturating_sub_unsigned(span.as_millis()))
    }

    /// How long `self` lies after `earlier`; zero if it does not.
    pub fn since(self, earlier: Self) -> Span {
        let ms = self.0.saturating_sub(earlier.0);
        Span::millis(u64::try_from(ms).unwrap_or(0))
    }

    /// The same instant as dates are computed with; the nearest that has one.
    pub fn timestamp(self) -> jiff::Timestamp {
        jiff::Timestamp::from_millisecond(self.0).unwrap_or(if self.0 < 0 {
            jiff::Timestamp::MIN
        } else {
            jiff::Timestamp::MAX
        })
    }
}

impl From<jiff::Timestamp> for Stamp {
    fn from(instant: jiff::Timestamp) -> Self {
        Self(instant.as_millisecond())
    }
}

/// RFC 3339 in UTC.
impl fmt::Display for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.timestamp().to_string())
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A number in rows, RFC 3339 where people may look.
impl Serialize for Stamp {
    fn serialize<S: serde::Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        if out.is_human_readable() {
            out.collect_str(self)
        } else {
            out.serialize_i64(self.0)
        }
    }
}

impl<'de> Deserialize<'de> for Stamp {
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        if !from.is_human_readable() {
            return i64::deserialize(from).map(Self);
        }
        let text = String::deserialize(from)?;
        let read = text.parse::<jiff::Timestamp>();
        read.map(Self::from).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_saturate_instead_of_wrapping() {
        assert_eq!(Moment(u64::MAX - 1).after(Span::secs(5)), Moment(u64::MAX));
        assert_eq!(Moment(5).since(Moment(9)), Span::ZERO);
        assert_eq!(Moment(5).until(Moment(9)), Span::nanos(4));
    }

    /// However much faster the clock without a timer runs (up to an eighth), it is looked at before its deadline has passed, and in few steps.
    #[test]
    fn looks_come_in_time_whatever_the_clocks_do() {
        for fast in [0, 1, 100, 1_000, 10_000, 100_000] {
            let start = Clocks {
                boottime: Moment(5_000_000_000),
                raw: Moment(3_000_000_000),
            };
            let until = start.after(Span::secs(10));
            let at = |boottime: Moment| {
                let gone = u128::from(boottime.since(start.boottime).as_nanos());
                let raw = gone * (1_000_000 + fast) / 1_000_000;
                Clocks {
                    boottime,
                    raw: start.raw.after(Span::nanos(raw as u64)),
                }
            };
            let (mut now, mut looks) = (start, 0);
            while !now.has_passed(until) {
                let next = now.next_look(until);
                now = at(next.max(now.boottime.after(Span::micros(1))));
                looks += 1;
            }
            let late = now.raw.since(until.raw);
            assert!(late <= Span::micros(200), "{fast} ppm: {late:?} late");
            assert!(looks < 20, "{fast} ppm: {looks} looks");
        }
    }

    #[test]
    fn stamps_read_back_in_rows_and_in_files() {
        let stamp = Stamp(1_792_000_000_123);
        assert_eq!(stamp.to_string(), "2026-10-14T17:46:40.123Z");
        let text = serde_json::to_string(&stamp).unwrap();
        assert_eq!(serde_json::from_str::<Stamp>(&text).unwrap(), stamp);
        let bytes = postcard::to_stdvec(&stamp).unwrap();
        assert!(bytes.len() <= 6, "{bytes:?}");
        assert_eq!(postcard::from_bytes::<Stamp>(&bytes).unwrap(), stamp);
        assert_eq!(Stamp(5).since(Stamp(9)), Span::ZERO);
        assert_eq!(Stamp(9_000).before(Span::secs(5)), Stamp(4_000));
    }

    #[test]
    fn spans_read_as_they_are_typed() {
        assert_eq!(Span::millis(90_250).to_string(), "1m30s250ms");
        assert_eq!(Span::ZERO.to_string(), "0s");
        assert_eq!(Span::FOREVER.to_string(), "infinity");
    }
}
