//! The two clocks: BOOTTIME for everything that decides, the wall for people.

use rustix::time::{ClockId, clock_gettime};

use crate::time::{Clocks, Moment};

/// CLOCK_BOOTTIME: it counts through suspend and nobody can set it.
pub fn now() -> Moment {
    read(ClockId::Boottime)
}

/// Both clocks that deadlines count on, read one after the other.
pub fn both() -> Clocks {
    Clocks {
        boottime: read(ClockId::Boottime),
        raw: read(ClockId::MonotonicRaw),
    }
}

fn read(clock: ClockId) -> Moment {
    let t = clock_gettime(clock);
    Moment((t.tv_sec as u64) * 1_000_000_000 + t.tv_nsec as u64)
}

/// The wall clock as it is now, to the millisecond. It may jump: only for people and for expiry dates they wrote. Read through libc, so
/// that a preloaded library may show a wrong one.
pub fn wall() -> jiff::Timestamp {
    to_millis(jiff::Timestamp::now())
}

/// What is below is noise to people.
fn to_millis(at: jiff::Timestamp) -> jiff::Timestamp {
    at.round(jiff::Unit::Millisecond).unwrap_or(at)
}

/// What the wall clock, as it is set now, would have shown at `moment`.
pub fn wall_at(moment: Moment) -> jiff::Timestamp {
    let ago = now().0 as i64 - moment.0 as i64;
    let shown = jiff::Timestamp::now()
        .checked_sub(jiff::SignedDuration::from_nanos(ago))
        .unwrap_or(jiff::Timestamp::UNIX_EPOCH);
    to_millis(shown)
}
