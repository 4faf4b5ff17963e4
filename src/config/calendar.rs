//! Cron schedules: what five fields mean, and which instants they name in a time zone. No clock and no I/O here:
//! the caller brings the instant and the zone.
//!
//! # The two day fields
//!
//! cronie sets `DOM_STAR` and `DOW_STAR` when the *first character* of the field is `*`, so for `*/2` as well. With either
//! set, both fields must match (`0 0 */2 * mon`: Mondays on an odd day); with neither, one is enough
//! (`0 0 1,15 * mon`: the 1st, the 15th, and every Monday). `1-31` is no star: `0 0 1-31 * mon` runs daily.
//!
//! # When local time jumps
//!
//! cron(8) of Debian: jobs "which would have run in the time that was skipped will be run soon after the change", those
//! "that fall into the repeated time will not be re-run"; this is for jobs "that run at a particular time (not specified
//! as @hourly, nor with '*' in the hour or minute specifier)", while jobs "specified with wildcards are run based on the
//! new time immediately". So there are two kinds, told apart as in cronie (`MIN_STAR`, `HR_STAR`), again by the first
//! character of the minute and hour fields, so that a step counts as a wildcard and `0-59` does not:
//!
//! - A **fixed-time** schedule (neither begins with `*`) runs, for each local minute it names, at the *first instant at
//!   which local clocks show that minute or a later one*. That is the minute itself on a plain day, the first pass of a
//!   repeated minute, and the first instant after a gap for every minute inside it: one tick, however many were due.
//! - A **wildcard** schedule runs at every instant at which local clocks show a minute that it names: in both passes of a
//!   repeated hour, and not at all for a skipped one.
//!
//! Debian ends these courtesies at three hours, to leave corrections of the clock alone. The zone's own history is never
//! such a correction, so here they hold for jumps of any size: Samoa's job for noon of 30 December 2011, a day its
//! calendar skipped, runs when the 31st begins.

use std::{fmt, iter::FusedIterator};

use jiff::{
    RoundMode, SignedDuration, Timestamp, Unit,
    civil::{Date, DateTime, DateTimeRound, date},
    tz::{TimeZone, TimeZoneDatabase},
};

use crate::{config::spec::CronSpec, time::Stamp};

pub use super::crontab::ScheduleError;
use super::crontab::{self, Field};

/// When a job is due, in local time: five fields. Equal schedules name the same values and have stars in the same fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Schedule {
    minute: Field,
    hour: Field,
    day_of_month: Field,
    month: Field,
    day_of_week: Field,
}

/// Local and universal time differ by less than this: jiff's offsets end at 25:59:59.
const OFFSET_LIMIT_SECONDS: i64 = 26 * 3600;

const EPOCH: DateTime = date(1970, 1, 1).at(0, 0, 0, 0);
const NANOSECOND: SignedDuration = SignedDuration::from_nanos(1);

impl Schedule {
    /// Reads five fields or a nickname, as described in `crontab`. An error says where, what was found and what would do.
    pub fn parse(text: &str) -> Result<Self, ScheduleError> {
        let [minute, hour, day_of_month, month, day_of_week] = crontab::read(text)?;
        Ok(Self {
            minute,
            hour,
            day_of_month,
            month,
            day_of_week,
        })
    }

    /// The first tick strictly after `after`; `None` if it lies beyond the year 9999.
    pub fn next_after(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        if self.minute.star || self.hour.star {
            self.next_wildcard(after, zone)
        } else {
            self.next_fixed(after, zone)
        }
    }

    /// Every tick strictly after `after`, in order.
    pub fn ticks<'a>(&'a self, after: Timestamp, zone: &'a TimeZone) -> Ticks<'a> {
        Ticks {
            schedule: self,
            zone,
            after: Some(after),
        }
    }

    /// Ticks strictly after `after` and not after `until`: the earliest `limit` of them.
    pub fn between(
        &self,
        after: Timestamp,
        until: Timestamp,
        zone: &TimeZone,
        limit: usize,
    ) -> Vec<Timestamp> {
        self.ticks(after, zone)
            .take_while(|tick| *tick <= until)
            .take(limit)
            .collect()
    }

    fn next_fixed(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut civil = zone.to_datetime(after);
        loop {
            civil = self.civil_from(civil.checked_add(NANOSECOND).ok()?, DateTime::MAX)?;
            let tick = first_showing(civil, zone)?;
            // In the second pass of a repeated hour this minute may have had its tick in the first.
            if tick > after {
                return Some(tick);
            }
        }
    }

    fn next_wildcard(&self, after: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
        let mut from = after.checked_add(NANOSECOND).ok()?;
        loop {
            let offset = zone.to_offset(from);
            let end = transition_after(from, zone);
            let until = end.map_or(DateTime::MAX, |end| offset.to_datetime(end));
            if let Some(civil) = self.civil_from(offset.to_datetime(from), until) {
                return offset.to_timestamp(civil).ok();
            }
            from = end?;
        }
    }

    /// The first matching local minute at or after `from` and before `until`, as if no local time were ever skipped.
    fn civil_from(&self, from: DateTime, until: DateTime) -> Option<DateTime> {
        let up = DateTimeRound::new()
            .smallest(Unit::Minute)
            .mode(RoundMode::Ceil);
        let from = from.round(up).ok()?;
        let mut day = from.date();
        let mut earliest = (from.hour(), from.minute());
        while day <= until.date() {
            if !self.month.has(day.month()) {
                day = day.last_of_month();
            } else if self.has_day(day)
                && let Some((hour, minute)) = self.time_from(earliest)
            {
                let civil = day.at(hour, minute, 0, 0);
                return (civil < until).then_some(civil);
            }
            day = day.tomorrow().ok()?;
            earliest = (0, 0);
        }
        None
    }

    fn time_from(&self, (hour, minute): (i8, i8)) -> Option<(i8, i8)> {
        if self.hour.has(hour)
            && let Some(minute) = self.minute.next(minute)
        {
            return Some((hour, minute));
        }
        Some((self.hour.next(hour + 1)?, self.minute.next(0)?))
    }

    fn has_day(&self, day: Date) -> bool {
        let of_month = self.day_of_month.has(day.day());
        let of_week = self.day_of_week.has(day.weekday().to_sunday_zero_offset());
        if self.day_of_month.star || self.day_of_week.star {
            of_month && of_week
        } else {
            of_month || of_week
        }
    }
}

/// A job's schedule in its time zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Calendar {
    schedule: Schedule,
    zone: TimeZone,
}

impl Calendar {
    /// As a checked configuration says it; none for texts that no configuration would have been accepted with.
    pub fn of(spec: &CronSpec) -> Option<Self> {
        Some(Self {
            schedule: Schedule::parse(&spec.schedule).ok()?,
            zone: zone(&spec.timezone)?,
        })
    }

    /// The first tick strictly after `after`, if there is one before the year 10000.
    pub fn next_after(&self, after: Stamp) -> Option<Stamp> {
        let tick = self.schedule.next_after(after.timestamp(), &self.zone);
        tick.map(Stamp::from)
    }
}

/// A time zone by its IANA name, in the rules that were compiled in: the same on every machine, and no file is read.
pub(super) fn zone(name: &str) -> Option<TimeZone> {
    TimeZoneDatabase::bundled().get(name).ok()
}

/// Every name that [`zone`] knows.
pub(super) fn zones() -> Vec<String> {
    let all = TimeZoneDatabase::bundled();
    all.available().map(|name| name.to_string()).collect()
}

/// The canonical text: numbers, the shortest ranges and steps. It reads back as an equal schedule.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&crontab::text([
            self.minute,
            self.hour,
            self.day_of_month,
            self.month,
            self.day_of_week,
        ]))
    }
}

/// What [`Schedule::ticks`] gives: instants that grow, until the year 9999 ends.
#[derive(Clone, Debug)]
pub struct Ticks<'a> {
    schedule: &'a Schedule,
    zone: &'a TimeZone,
    after: Option<Timestamp>,
}

impl Iterator for Ticks<'_> {
    type Item = Timestamp;

    fn next(&mut self) -> Option<Timestamp> {
        self.after = self.schedule.next_after(self.after?, self.zone);
        self.after
    }
}

impl FusedIterator for Ticks<'_> {}

/// The first instant at which local clocks show `civil` or later. jiff's own disambiguation does not offer it:
/// for a minute in a gap it gives the minute as it would read before or after the change.
fn first_showing(civil: DateTime, zone: &TimeZone) -> Option<Timestamp> {
    let shown = civil.duration_since(EPOCH).as_secs();
    // Before this instant no offset is large enough for clocks to have come so far.
    let mut from = Timestamp::from_second(shown - OFFSET_LIMIT_SECONDS).unwrap_or(Timestamp::MIN);
    loop {
        let second = shown - i64::from(zone.to_offset(from).seconds());
        let second = second.max(from.as_second());
        match transition_after(from, zone) {
            Some(end) if end.as_second() <= second => from = end,
            _ => return Timestamp::from_second(second).ok(),
        }
    }
}

fn transition_after(instant: Timestamp, zone: &TimeZone) -> Option<Timestamp> {
    Some(zone.following(instant).next()?.timestamp())
}
