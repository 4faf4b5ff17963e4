//! Laws of schedules, on random schedules and zones near the instants at which local time jumps.

use std::sync::LazyLock;

use jiff::{
    SignedDuration, Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};
use leasehold::config::calendar::Schedule;
use proptest::{collection::vec, prelude::*, sample::Index};

use crate::slow::{Plain, plain};

/// Half hours, skipped days and midnights, negative summer time; below the line, what only history and malice know:
/// a repeated day, offsets in seconds, two jumps within hours, jumps at one minute past.
const ZONES: [&str; 16] = [
    "UTC",
    "Europe/Berlin",
    "America/New_York",
    "America/Sao_Paulo",
    "Australia/Lord_Howe",
    "Pacific/Apia",
    "Africa/Cairo",
    "Asia/Kolkata",
    "Europe/Dublin",
    "America/St_Johns",
    // -----
    "Pacific/Kwajalein",
    "Africa/Monrovia",
    "Antarctica/Casey",
    "Africa/Casablanca",
    "AAA0BBB-3,J100/0,J100/4",
    "AAA5BBB4:30,J60/1,J60/2:15:20",
];

struct Place {
    zone: TimeZone,
    /// Plain instants and all jumps.
    instants: Vec<Timestamp>,
}

static PLACES: LazyLock<Vec<Place>> = LazyLock::new(|| ZONES.map(place).into());

/// From the database within jiff, which no machine lacks.
fn place(name: &str) -> Place {
    let zone = match name.contains(',') {
        true => TimeZone::posix(name).unwrap(),
        false => TimeZoneDatabase::bundled().get(name).unwrap(),
    };
    let year = |year: i16| {
        jiff::civil::date(year, 5, 5)
            .at(0, 0, 0, 0)
            .to_zoned(TimeZone::UTC)
            .unwrap()
            .timestamp()
    };
    let jumps = zone.following(year(1960)).map(|jump| jump.timestamp());
    let mut instants: Vec<Timestamp> = jumps.take_while(|jump| *jump < year(2045)).collect();
    instants.extend([year(1999), year(2026)]);
    Place { zone, instants }
}

/// A zone, and an instant within three days or three hours of one of its jumps.
fn moments() -> impl Strategy<Value = (&'static TimeZone, Timestamp)> {
    let day = 86_400_i64;
    let shift = prop_oneof![
        -3 * day..=3 * day,
        -10_800..=10_800_i64,
        (-180..=180_i64).prop_map(|minutes| minutes * 60),
    ];
    let nanos = prop_oneof![Just(0), Just(-1), Just(1), 0..1_000_000_000_i64];
    let place = 0..ZONES.len();
    (place, any::<Index>(), shift, nanos).prop_map(|(place, index, shift, nanos)| {
        let place = &PLACES[place];
        let near = index.get(&place.instants);
        let shift = SignedDuration::from_secs(shift) + SignedDuration::from_nanos(nanos);
        (&place.zone, *near + shift)
    })
}

fn read(plain: &Plain) -> Schedule {
    Schedule::parse(&plain.text).unwrap_or_else(|error| panic!("{}: {error}", plain.text))
}

/// What holds for any text at all.
pub(crate) fn is_read_or_refused(text: &str) {
    match Schedule::parse(text) {
        Ok(schedule) => {
            assert_eq!(
                Schedule::parse(&schedule.to_string()),
                Ok(schedule),
                "{text:?}"
            );
            let from = Timestamp::UNIX_EPOCH;
            assert!(
                schedule.next_after(from, &PLACES[1].zone) > Some(from),
                "{text:?}"
            );
        }
        Err(error) => {
            assert!(text.get(error.at.clone()).is_some(), "{text:?}: {error:?}");
            assert!(!error.found.is_empty() && !error.help.is_empty());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(1000) })]

    /// No tick lost, none doubled, none out of order.
    #[test]
    fn it_ticks_as_the_slow_clock_does(plain in plain(), (zone, after) in moments(), hours in 0..100_i64) {
        let until = after + SignedDuration::from_hours(hours);
        let slow = plain.ticks(after, until, zone);
        let quick = read(&plain).between(after, until, zone, usize::MAX);
        prop_assert_eq!(&quick, &slow, "{} in {:?} after {}", &plain.text, zone, after);
        prop_assert!(quick.windows(2).all(|pair| pair[0] < pair[1]));
        let some = read(&plain).between(after, until, zone, 3);
        prop_assert_eq!(&some[..], &quick[..quick.len().min(3)]);
    }

    /// Wherever one asks from, the answer is the least of the ticks to come.
    #[test]
    fn the_next_is_the_least_of_those_to_come(
        plain in plain(),
        (zone, after) in moments(),
        asks in vec((any::<Index>(), -1..=1_i64), 8),
        seconds in vec(0..172_800_i64, 8),
    ) {
        let schedule = read(&plain);
        let until = after + SignedDuration::from_hours(72);
        let slow = plain.ticks(after, until, zone);
        let near = asks.iter().filter(|_| !slow.is_empty())
            .map(|(index, nanos)| *index.get(&slow) + SignedDuration::from_nanos(*nanos));
        let anywhere = seconds.iter().map(|second| after + SignedDuration::from_secs(*second));
        for ask in near.chain(anywhere) {
            let least = slow.iter().find(|tick| **tick > ask).copied();
            let next = schedule.next_after(ask, zone).filter(|tick| *tick <= until);
            if ask >= after {
                prop_assert_eq!(next, least, "{} in {:?} after {}", &plain.text, zone, ask);
            }
        }
    }

    #[test]
    fn the_canonical_text_reads_back(plain in plain()) {
        let schedule = read(&plain);
        let text = schedule.to_string();
        prop_assert_eq!(Schedule::parse(&text), Ok(schedule), "{} -> {}", &plain.text, &text);
        prop_assert_eq!(Schedule::parse(&text).unwrap().to_string(), text);
    }

    #[test]
    fn any_text_is_read_or_refused(
        text in any::<String>(),
        near in "([*0-9a-z/,?#~@-]{1,6} ){0,6}",
        nearer in "([*1]|[*]/[0-9]{1,3}|[0-9]{1,2}(-[0-9]{1,2})?(/[0-9])?|[a-zA-Z]{3}) [0-9,*]{1,4} [0-9,*L]{1,4} [0-9,*/]{1,4} [0-9a-f,*/-]{1,5}",
    ) {
        for text in [text, near, nearer] {
            is_read_or_refused(&text);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(40) })]

    /// Rare ticks are neither missed nor invented over five months of minutes.
    #[test]
    fn a_long_leap_lands_where_the_slow_clock_does(plain in plain(), (zone, after) in moments()) {
        let until = after + SignedDuration::from_hours(24 * 150);
        prop_assume!(after > "1973-01-01T00Z".parse().unwrap());
        let slow = plain.ticks(after, until, zone);
        let next = read(&plain).next_after(after, zone).filter(|tick| *tick <= until);
        prop_assert_eq!(next, slow.first().copied(), "{} in {:?} after {}", &plain.text, zone, after);
        prop_assert_eq!(read(&plain).between(after, until, zone, usize::MAX), slow);
    }
}
