//! Cron schedules: tables of what is known, laws against a slow clock, and texts that are none.

#[path = "calendar/laws.rs"]
mod laws;
#[path = "calendar/slow.rs"]
mod slow;

use jiff::{
    Timestamp,
    tz::{TimeZone, TimeZoneDatabase},
};
use leasehold::config::calendar::Schedule;

fn zone(name: &str) -> TimeZone {
    TimeZoneDatabase::bundled().get(name).unwrap()
}

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

/// Asserts that the ticks after the first instant are the others, in order; all as local times with offsets.
fn ticks(schedule: &str, place: &str, instants: &[&str]) {
    let [after, expected @ ..] = instants else {
        panic!("nothing expected")
    };
    let zone = zone(place);
    let shown = |tick: Timestamp| tick.to_zoned(zone.clone()).strftime("%FT%T%:z").to_string();
    let schedule = Schedule::parse(schedule).unwrap();
    let found: Vec<String> = schedule
        .ticks(at(after), &zone)
        .take(expected.len())
        .map(shown)
        .collect();
    let expected: Vec<String> = expected.iter().map(|text| shown(at(text))).collect();
    assert_eq!(found, expected, "{schedule} in {place} after {after}");
}

#[test]
fn plain_days() {
    #[rustfmt::skip]
    let table: [(&str, &[&str]); 17] = [
        ("30 2 * * *", &["2026-01-01T02:29:59.999Z", "2026-01-01T02:30Z", "2026-01-02T02:30Z"]),
        ("30 2 * * *", &["2026-01-01T02:30Z", "2026-01-02T02:30Z"]),
        ("* * * * *", &["2026-01-01T23:58:30Z", "2026-01-01T23:59Z", "2026-01-02T00:00Z"]),
        ("*/25 * * * *", &["2026-01-01T00:26Z", "2026-01-01T00:50Z", "2026-01-01T01:00Z"]),
        ("5-59/20 9-17/4 * * *", &["2026-01-01T09:05Z", "2026-01-01T09:25Z", "2026-01-01T09:45Z", "2026-01-01T13:05Z"]),
        ("@hourly", &["2026-01-01T00:00Z", "2026-01-01T01:00Z"]),
        ("@weekly", &["2026-01-01T00:00Z", "2026-01-04T00:00Z", "2026-01-11T00:00Z"]),
        ("@Monthly", &["2026-01-01T00:00Z", "2026-02-01T00:00Z"]),
        ("@annually", &["2026-01-01T00:00Z", "2027-01-01T00:00Z"]),
        ("0 0 * * 7", &["2026-01-01T00:00Z", "2026-01-04T00:00Z"]),
        ("0 0 * * 5-7", &["2026-01-01T00:00Z", "2026-01-02T00:00Z", "2026-01-03T00:00Z", "2026-01-04T00:00Z", "2026-01-09T00:00Z"]),
        // Either day field is enough, unless one begins with a star.
        ("0 0 13 * fri", &["2026-03-01T00:00Z", "2026-03-06T00:00Z", "2026-03-13T00:00Z", "2026-03-20T00:00Z"]),
        ("0 0 1-31 * fri", &["2026-03-01T00:00Z", "2026-03-02T00:00Z"]),
        ("0 0 */2 * mon", &["2026-03-01T00:00Z", "2026-03-09T00:00Z", "2026-03-23T00:00Z", "2026-04-13T00:00Z"]),
        ("0 0 31 * */2", &["2026-01-01T00:00Z", "2026-01-31T00:00Z", "2026-03-31T00:00Z", "2026-05-31T00:00Z", "2026-10-31T00:00Z"]),
        ("0 12 29 feb *", &["2026-01-01T00:00Z", "2028-02-29T12:00Z", "2032-02-29T12:00Z"]),
        // No 29 February of 2100, and then it must be a Sunday.
        ("0 12 29 2 */7", &["2080-01-01T00:00Z", "2088-02-29T12:00Z", "2128-02-29T12:00Z"]),
    ];
    for (schedule, instants) in table {
        ticks(schedule, "UTC", instants);
    }
}

#[test]
fn local_days() {
    ticks(
        "0 0 * * *",
        "Asia/Kolkata",
        &["2026-01-01T00:00Z", "2026-01-01T18:30Z"],
    );
    ticks(
        "0 9 * * mon-fri",
        "America/New_York",
        &["2026-07-03T13:00Z", "2026-07-06T13:00Z"],
    );
    ticks(
        "0 0 1 * *",
        "America/St_Johns",
        &["2026-01-02T00:00Z", "2026-02-01T03:30Z"],
    );
}

/// What a gap holds is due when it ends, once; what has a wildcard goes on by real time.
#[test]
fn skipped_times() {
    #[rustfmt::skip]
    let table: [(&str, &str, &[&str]); 18] = [
        ("30 2 * * *", "Europe/Berlin", &["2026-03-28T12:00Z", "2026-03-29T03:00+02", "2026-03-30T02:30+02"]),
        ("30 2 29 3 *", "Europe/Berlin", &["2026-01-01T00:00Z", "2026-03-29T03:00+02", "2027-03-29T02:30+02"]),
        ("0,20,40 2 * * *", "Europe/Berlin", &["2026-03-29T00:00Z", "2026-03-29T03:00+02", "2026-03-30T02:00+02"]),
        ("0 2,3 * * *", "Europe/Berlin", &["2026-03-29T00:00Z", "2026-03-29T03:00+02", "2026-03-30T02:00+02"]),
        ("30 2 * * *", "Europe/Berlin", &["2026-03-29T01:00Z", "2026-03-30T02:30+02"]),
        ("30 2 * * *", "Europe/Berlin", &["2026-03-29T00:59:59.999999999Z", "2026-03-29T03:00+02"]),
        ("*/30 * * * *", "Europe/Berlin", &["2026-03-29T00:00Z", "2026-03-29T01:30+01", "2026-03-29T03:00+02", "2026-03-29T03:30+02"]),
        ("*/30 2 * * *", "Europe/Berlin", &["2026-03-28T12:00Z", "2026-03-30T02:00+02"]),
        ("30 */2 * * *", "Europe/Berlin", &["2026-03-29T00:00Z", "2026-03-29T04:30+02"]),
        ("15 2 * * *", "Australia/Lord_Howe", &["2026-10-03T00:00Z", "2026-10-04T02:30+11", "2026-10-05T02:15+11"]),
        ("0 0 * * *", "America/Sao_Paulo", &["2018-11-03T12:00Z", "2018-11-04T01:00-02", "2018-11-05T00:00-02"]),
        ("@daily", "Africa/Cairo", &["2024-04-25T12:00Z", "2024-04-26T01:00+03", "2024-04-27T00:00+03"]),
        ("30 1 * * *", "Europe/Dublin", &["2026-03-28T12:00Z", "2026-03-29T02:00+01", "2026-03-30T01:30+01"]),
        ("0,1 0 * * *", "America/St_Johns", &["2010-03-13T12:00Z", "2010-03-14T00:00-03:30", "2010-03-14T01:01-02:30", "2010-03-15T00:00-02:30"]),
        // Samoa had no 30 December 2011.
        ("0 12 * * *", "Pacific/Apia", &["2011-12-29T00:00Z", "2011-12-29T12:00-10", "2011-12-31T00:00+14", "2011-12-31T12:00+14"]),
        ("0 12 30 12 *", "Pacific/Apia", &["2011-12-01T00:00Z", "2011-12-31T00:00+14", "2012-12-30T12:00+14"]),
        ("0 */12 * * *", "Pacific/Apia", &["2011-12-29T00:00Z", "2011-12-29T00:00-10", "2011-12-29T12:00-10", "2011-12-31T00:00+14"]),
        // Liberia left the sun's time by 44 minutes and 30 seconds.
        ("0 0 * * *", "Africa/Monrovia", &["1972-01-06T12:00Z", "1972-01-07T00:44:30Z", "1972-01-08T00:00Z"]),
    ];
    for (schedule, place, instants) in table {
        ticks(schedule, place, instants);
    }
}

/// What is repeated is due the first time; what has a wildcard keeps its rhythm through both.
#[test]
fn repeated_times() {
    #[rustfmt::skip]
    let table: [(&str, &str, &[&str]); 14] = [
        ("30 2 * * *", "Europe/Berlin", &["2026-10-24T12:00Z", "2026-10-25T02:30+02", "2026-10-26T02:30+01"]),
        ("30 2 * * *", "Europe/Berlin", &["2026-10-25T00:45Z", "2026-10-26T02:30+01"]),
        ("30 2 * * *", "Europe/Berlin", &["2026-10-25T01:10Z", "2026-10-26T02:30+01"]),
        ("0 3 * * *", "Europe/Berlin", &["2026-10-24T12:00Z", "2026-10-25T03:00+01", "2026-10-26T03:00+01"]),
        ("0-59 2 * * *", "Europe/Berlin", &["2026-10-25T00:58Z", "2026-10-25T02:59+02", "2026-10-26T02:00+01"]),
        ("*/30 2 * * *", "Europe/Berlin", &["2026-10-24T12:00Z", "2026-10-25T02:00+02", "2026-10-25T02:30+02", "2026-10-25T02:00+01", "2026-10-25T02:30+01", "2026-10-26T02:00+01"]),
        ("30 * * * *", "Europe/Berlin", &["2026-10-25T00:00Z", "2026-10-25T02:30+02", "2026-10-25T02:30+01", "2026-10-25T03:30+01"]),
        ("45 1 * * *", "Australia/Lord_Howe", &["2026-04-04T00:00Z", "2026-04-05T01:45+11", "2026-04-06T01:45+10:30"]),
        ("*/15 * * * *", "Australia/Lord_Howe", &["2026-04-04T14:30Z", "2026-04-05T01:45+11", "2026-04-05T01:30+10:30", "2026-04-05T01:45+10:30", "2026-04-05T02:00+10:30"]),
        ("30 23 * * *", "America/Sao_Paulo", &["2018-02-17T12:00Z", "2018-02-17T23:30-02", "2018-02-18T23:30-03"]),
        ("0 0 * * *", "America/Sao_Paulo", &["2018-02-17T12:00Z", "2018-02-18T00:00-03", "2018-02-19T00:00-03"]),
        ("30 23 * * *", "Africa/Cairo", &["2024-10-31T12:00Z", "2024-10-31T23:30+03", "2024-11-01T23:30+02"]),
        ("30 1 * * *", "Europe/Dublin", &["2026-10-24T12:00Z", "2026-10-25T01:30+01", "2026-10-26T01:30Z"]),
        // Kwajalein lived through 23 hours of 30 September 1969 twice.
        ("0 12 * * *", "Pacific/Kwajalein", &["1969-09-29T12:00Z", "1969-09-30T12:00+11", "1969-10-01T12:00-12"]),
    ];
    for (schedule, place, instants) in table {
        ticks(schedule, place, instants);
    }
}

#[test]
fn the_calendar_ends_with_the_year_9999() {
    for text in ["0 0 1 1 *", "* * 1 1 *", "59 23 31 12 *", "* * * * *"] {
        let schedule = Schedule::parse(text).unwrap();
        for place in ["UTC", "Europe/Berlin", "Pacific/Apia", "Pacific/Niue"] {
            let zone = zone(place);
            let late = at("9999-12-29T20:00Z");
            let last = schedule.ticks(late, &zone).last();
            assert!(last.is_none_or(|last| last > late), "{text} in {place}");
            assert_eq!(schedule.next_after(Timestamp::MAX, &zone), None);
            assert!(schedule.next_after(Timestamp::MIN, &zone).is_some());
        }
    }
}

#[test]
fn between_takes_its_end_and_no_more_than_the_limit() {
    let schedule = Schedule::parse("@hourly").unwrap();
    let (from, until) = (at("2026-01-01T00:00Z"), at("2026-01-01T03:00Z"));
    let found = |limit| schedule.between(from, until, &TimeZone::UTC, limit);
    assert_eq!(
        found(9),
        [
            "2026-01-01T01:00Z",
            "2026-01-01T02:00Z",
            "2026-01-01T03:00Z"
        ]
        .map(at)
    );
    assert_eq!(found(1), [at("2026-01-01T01:00Z")]);
    assert_eq!(found(0), []);
}

#[test]
fn canonical_texts() {
    #[rustfmt::skip]
    let table = [
        ("@daily", "0 0 * * *"),
        ("@weekly", "0 0 * * 0"),
        ("  05   2 * JAN,mar Mon-Fri ", "5 2 * 1,3 1-5"),
        ("0-59 0-23 1-31 1-12 0-7", "0-59 0-23 1-31 1-12 0-6"),
        ("*/1 */24 */2,4 */3 */7", "* */24 */2,4 */3 */7"),
        ("1,3,5,7,30,31,32 1,2 1-31/10 1 7", "1-7/2,30-32 1,2 1-31/10 1 0"),
        ("*/10,*/15 0 * * *", "*/10,15,45 0 * * *"),
    ];
    for (text, canonical) in table {
        assert_eq!(
            Schedule::parse(text).unwrap().to_string(),
            canonical,
            "{text}"
        );
    }
}

/// What the caret points at, what was found, what would do.
#[test]
fn refusals() {
    let form =
        "write five fields: minute hour day-of-month month day-of-week, such as `30 2 * * mon-fri`";
    let last = "name the days it can be, such as 28-31, and let the job look at the date";
    let weekday = "write 0-7 (0 and 7 are Sunday) or sun-sat";
    let steps = "write a number, 1-60: steps start anew with each round of the field";
    #[rustfmt::skip]
    let table = [
        ("", "", "nothing is written", form),
        (" \t ", "", "nothing is written", form),
        (" hourly", "hourly", "one field is not a schedule", form),
        ("0 0 * *", "0 0 * *", "4 fields are not a schedule", form),
        ("0 0 12 * * *", "0 0 12 * * *", "six fields are one too many: seconds and years are not known here", form),
        ("60 * * * *", "60", "minute 60 does not exist", "write 0-59"),
        ("0 24 * * *", "24", "hour 24 does not exist", "write 0-23"),
        ("0 0 0 * *", "0", "day-of-month 0 does not exist", "write 1-31"),
        ("0 0 1 9-13 *", "13", "month 13 does not exist", "write 1-12 or jan-dec"),
        ("0 0 * * 8", "8", "day-of-week 8 does not exist", weekday),
        ("0 0 * * 99999999999999999999", "99999999999999999999", "day-of-week 99999999999999999999 does not exist", weekday),
        ("0 0 * * monday", "monday", "`monday` is no day-of-week", "write `mon`"),
        ("0 0 * feb 1,tag", "tag", "`tag` is no day-of-week", weekday),
        ("0 mon * * *", "mon", "`mon` is no hour", "write 0-23"),
        ("0 1,,2 * * *", "", "a value for the hour is missing", "write 0-23"),
        ("0 1- * * *", "", "a value for the hour is missing", "write 0-23"),
        ("0 -1 * * *", "", "a value for the hour is missing", "write 0-23"),
        ("+1 1 * * *", "+1", "`+1` is no minute", "write 0-59"),
        ("0 22-2 * * *", "22-2", "the range `22-2` ends before it starts", "write a list: `22-23,0-2`"),
        ("0 0 * * 1,FRI-mon", "FRI-mon", "the range `FRI-mon` ends before it starts", "write a list: `FRI-sat,sun-mon`"),
        ("0 0 * * sat-Sun", "sat-Sun", "the range `sat-Sun` ends before it starts", "write a list: `sat,sun`"),
        ("0 0 * * 5-0", "5-0", "the range `5-0` ends before it starts", "write a list: `5-6,0`"),
        ("0 0 * nov-2 *", "nov-2", "the range `nov-2` ends before it starts", "write a list: `nov-dec,1-2`"),
        ("5/15 * * * *", "5/15", "`5/15` gives a step to a single value", "write `5-59/15`"),
        ("*/0 * * * *", "0", "`0` is not a step for the minute", steps),
        ("*/90 * * * *", "90", "`90` is not a step for the minute", steps),
        ("*/+5 * * * *", "+5", "`+5` is not a step for the minute", steps),
        ("*/5/2 * * * *", "5/2", "`5/2` is not a step for the minute", steps),
        ("**/5 * * * *", "**", "`*` stands alone or has a step", "write `*` or such as `*/5`"),
        ("0 0 L * *", "L", "`L`, the last day, is not known here", last),
        ("0 0 LW * *", "LW", "`L`, the last day, is not known here", last),
        ("0 0 * * 5L", "5L", "`L`, the last day, is not known here", last),
        ("0 0 15W * *", "15W", "`W`, the nearest working day, is not known here", "name the days it can be, such as 14-16, and let the job look at the date"),
        ("0 0 * * mon#2", "mon#2", "`#`, the nth weekday of a month, is not known here", "name the days it can be, such as 8-14 for the second, and let the job look at the weekday"),
        ("0 0 ? * mon", "?", "`?` is not known here", "write `*`"),
        ("0~30 0 * * *", "0~30", "`~`, a random value, is not known here", "choose a value"),
        ("0 0 30 2 *", "30 2", "day 30 never comes in month 2", "choose a day up to 29, or a longer month"),
        ("0 0 31 feb,4,6 */2", "31 feb,4,6", "day 31 never comes in month 2-6/2", "choose a day up to 30, or a longer month"),
        ("@reboot", "@reboot", "`@reboot` is not a time", "for what runs once at each start, use a fleet with `restart = \"never\"`"),
        ("@every 5m", "@every", "`@every` is not known here", "write a step in the field that counts it, such as `*/5 * * * *`"),
        ("@daily /bin/true", "/bin/true", "`/bin/true` follows a nickname, which is a whole schedule", "remove it; a command has a key of its own"),
        ("@day", "@day", "`@day` is not a nickname", "write one of @hourly, @daily, @midnight, @weekly, @monthly, @yearly, @annually"),
        ("0 0 ‑1 * *", "‑1", "`‑1` is no day-of-month", "write 1-31"),
    ];
    for (text, place, found, help) in table {
        let error = Schedule::parse(text).unwrap_err();
        assert_eq!(
            (&text[error.at.clone()], &error.found[..], &error.help[..]),
            (place, found, help),
            "{text}"
        );
        // Advice that can be taken to the letter must help.
        if !help.contains("such as")
            && let Some(advice) = help
                .strip_prefix("write a list: ")
                .or(help.strip_prefix("write "))
            && let Some(advice) = advice
                .strip_prefix('`')
                .and_then(|rest| rest.strip_suffix('`'))
        {
            let mut mended = text.to_owned();
            mended.replace_range(error.at, advice);
            assert!(Schedule::parse(&mended).is_ok(), "{mended}");
        }
    }
    // A weekday alone is enough here, so 30 February does no harm.
    assert!(Schedule::parse("0 0 30 2 mon").is_ok());
}

/// Schedules with a few bytes changed: most of what people mistype is near something right.
#[test]
fn mistyped_texts_are_read_or_refused() {
    const SEEDS: [&str; 6] = [
        "30 2 * * *",
        "*/15 9-17/2 1,15 jan-mar mon-fri",
        "0 0 29 2 */7",
        "@monthly",
        "5-59/10,3 22-23,0-2 */2,5 4,6,9 7",
        "0 0 31 * sun",
    ];
    const ALPHABET: [char; 24] = [
        '*', '/', '-', ',', ' ', '0', '1', '2', '3', '5', '7', '9', '@', 'L', 'W', '#', '?', '~',
        'm', 'o', 'n', '\t', 'é', '\u{2028}',
    ];
    let mut state: u64 = 0x9e37_79b9_7f4a_7c15;
    let mut random = |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for _ in 0..100_000 {
        let mut text: Vec<char> = SEEDS[random(SEEDS.len())].chars().collect();
        for _ in 0..=random(4) {
            let place = random(text.len() + 1);
            match random(3) {
                0 if place < text.len() => drop(text.remove(place)),
                1 if place < text.len() => text[place] = ALPHABET[random(ALPHABET.len())],
                _ => text.insert(place, ALPHABET[random(ALPHABET.len())]),
            }
        }
        laws::is_read_or_refused(&text.iter().collect::<String>());
    }
}
