//! Schedules the slow and obvious way: sets spelled out, every minute looked at. It shares no code with what it judges.

use std::fmt;

use jiff::{SignedDuration, Timestamp, civil::DateTime, tz::TimeZone};
use proptest::{collection::vec, prelude::*};

/// A schedule as a text and, apart from it, what that text means.
#[derive(Clone)]
pub(crate) struct Plain {
    pub(crate) text: String,
    fields: [PlainField; 5],
}

#[derive(Clone)]
struct PlainField {
    text: String,
    values: [bool; 60],
    star: bool,
}

impl fmt::Debug for Plain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PlainField {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl Plain {
    pub(crate) fn is_wildcard(&self) -> bool {
        self.fields[0].star || self.fields[1].star
    }

    /// Is it due at this local time, if clocks show it?
    pub(crate) fn names(&self, civil: DateTime) -> bool {
        let [minute, hour, day_of_month, month, day_of_week] = &self.fields;
        let weekday = civil.weekday().to_sunday_zero_offset();
        let of_month = day_of_month.has(civil.day());
        let of_week = day_of_week.has(weekday) || weekday == 0 && day_of_week.has(7);
        let day = match day_of_month.star || day_of_week.star {
            true => of_month && of_week,
            false => of_month || of_week,
        };
        civil.second() == 0
            && minute.has(civil.minute())
            && hour.has(civil.hour())
            && month.has(civil.month())
            && day
    }

    /// Every tick in `(after, until]`, by walking through real time with an eye on the local clock.
    pub(crate) fn ticks(
        &self,
        after: Timestamp,
        until: Timestamp,
        zone: &TimeZone,
    ) -> Vec<Timestamp> {
        // Two days before, no jump still counts: none is longer than one.
        let start = (after.as_second().div_euclid(60) - 2 * 1440) * 60;
        let step = stride(start, until.as_second(), zone);
        let stride = SignedDuration::from_secs(step);
        let mut shown = zone.to_datetime(Timestamp::from_second(start).unwrap());
        let mut found = Vec::new();
        for second in (start..=until.as_second()).step_by(step as usize) {
            let now = Timestamp::from_second(second).unwrap();
            let civil = zone.to_datetime(now);
            let mut due = self.is_wildcard() && self.names(civil);
            // What clocks show, or have jumped over, for the first time.
            while shown < civil {
                shown = shown.checked_add(stride).unwrap();
                due |= !self.is_wildcard() && self.names(shown);
            }
            if due && now > after && now <= until {
                found.push(now);
            }
        }
        found
    }
}

impl PlainField {
    fn has(&self, value: i8) -> bool {
        self.values[value as usize]
    }
}

/// Steps in seconds that miss no start of a local minute: 60, or less where the zone kept the sun's time.
fn stride(start: i64, until: i64, zone: &TimeZone) -> i64 {
    let start = Timestamp::from_second(start).unwrap();
    let jumps = zone.following(start).map(|jump| jump.timestamp());
    let jumps = jumps.take_while(|jump| jump.as_second() <= until);
    let parts: Vec<i64> = std::iter::once(start)
        .chain(jumps)
        .flat_map(|at| [at.as_second(), zone.to_offset(at).seconds().into(), 60])
        .collect();
    let fits = |step: &i64| parts.iter().all(|part| part % step == 0);
    (1..=60).rev().find(fits).unwrap()
}

/// Any schedule that comes: busy ones, rare ones, near the hours in which clocks are set.
pub(crate) fn plain() -> impl Strategy<Value = Plain> {
    let minute = field(0, 59, &[], items(0, 59, 0..=59));
    let hour = field(0, 23, &[], items(0, 23, 0..=3));
    let day = field(1, 31, &[], items(1, 31, 1..=28));
    let month = field(1, 12, &MONTHS, items(1, 12, 1..=12));
    let weekday = field(0, 7, &WEEKDAYS, items(0, 7, 0..=7));
    (minute, hour, or_star(day), or_star(month), or_star(weekday))
        .prop_map(|(a, b, c, d, e)| {
            let fields = [a, b, c, d, e];
            let text = fields.each_ref().map(|field| field.text.as_str()).join(" ");
            Plain { text, fields }
        })
        .prop_filter("comes", |plain| {
            let [_, _, day, month, weekday] = &plain.fields;
            let comes = |day: i8| {
                let lengths = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
                (1..=12).any(|m| month.has(m) && day <= lengths[m as usize - 1])
            };
            let either = !day.star && !weekday.star;
            either || (1..=31).any(|d| day.has(d) && comes(d))
        })
}

const MONTHS: [&str; 12] = [
    "Jan", "feb", "MAR", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
];
const WEEKDAYS: [&str; 7] = ["sun", "Mon", "tue", "WED", "thu", "fri", "sat"];

#[derive(Clone, Copy, Debug)]
enum Item {
    Star,
    StarStep(i8),
    One(i8),
    Range(i8, i8),
    RangeStep(i8, i8, i8),
}

fn items(low: i8, high: i8, usual: std::ops::RangeInclusive<i8>) -> impl Strategy<Value = Item> {
    let steps = 1..=(high - low).min(30);
    let pair = move || (low..=high, low..=high).prop_map(|(a, b)| (a.min(b), a.max(b)));
    prop_oneof![
        1 => Just(Item::Star),
        1 => steps.clone().prop_map(Item::StarStep),
        4 => usual.prop_map(Item::One),
        2 => pair().prop_map(|(a, b)| Item::Range(a, b)),
        1 => (pair(), steps).prop_map(|((a, b), step)| Item::RangeStep(a, b, step)),
    ]
}

fn or_star(field: impl Strategy<Value = PlainField>) -> impl Strategy<Value = PlainField> {
    let star = PlainField {
        text: "*".to_owned(),
        values: [true; 60],
        star: true,
    };
    prop_oneof![2 => Just(star), 1 => field]
}

fn field(
    low: i8,
    high: i8,
    names: &'static [&'static str],
    item: impl Strategy<Value = Item>,
) -> impl Strategy<Value = PlainField> {
    (vec(item, 1..4), any::<bool>()).prop_map(move |(items, named)| {
        let word = |value: i8| match names.get((value - low) as usize) {
            Some(name) if named => (*name).to_owned(),
            _ => value.to_string(),
        };
        let mut values = [false; 60];
        let mut texts = Vec::new();
        for item in items {
            let (text, low, high, step) = match item {
                Item::Star => ("*".to_owned(), low, high, 1),
                Item::StarStep(step) => (format!("*/{step}"), low, high, step),
                Item::One(value) => (word(value), value, value, 1),
                Item::Range(a, b) => (format!("{}-{}", word(a), word(b)), a, b, 1),
                Item::RangeStep(a, b, n) => (format!("{}-{}/{n}", word(a), word(b)), a, b, n),
            };
            texts.push(text);
            let mut value = low;
            while value <= high {
                values[value as usize] = true;
                value += step;
            }
        }
        PlainField {
            star: texts[0].starts_with('*'),
            text: texts.join(","),
            values,
        }
    })
}
