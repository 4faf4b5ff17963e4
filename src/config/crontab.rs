//! A schedule's text: five fields become sets of values and back. What the sets mean in time is `calendar`'s trade.
//!
//! Minute, hour, day-of-month, month, day-of-week, as crontab(5) has them and cronie's `entry.c` reads them:
//!
//! | form | what |
//! | --- | --- |
//! | `*` | every value |
//! | `7`, `mon`, `jan` | one; names have three letters in either case; 0 and 7 are Sunday |
//! | `9-17` | a range; its end may not lie before its start, so `fri-mon` is `fri-sat,sun-mon` |
//! | `*/5`, `9-17/2` | every so many, counted from the start of the range; `5/15` is refused, as by cronie |
//! | `a,b,c` | any of these |
//! | `@hourly @daily @midnight @weekly @monthly @yearly @annually` | what crontab(5) says |
//!
//! Two things are stricter than cronie, which takes them and then surprises: a step larger than its field
//! (`*/90` would be hourly), and a day that no chosen month has (it would never run).

use std::ops::Range;

/// Why a text is not a schedule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{found}; {help}")]
pub struct ScheduleError {
    /// Where in the text, in bytes; empty where something is missing.
    pub at: Range<usize>,
    /// What stands there and why it will not do.
    pub found: String,
    /// What would do.
    pub help: String,
}

/// The values of one field, and whether its text begins with `*`: cron treats `*` and `0-59` differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Field {
    /// Bit `n` stands for the value `n`; Sunday is 0 only.
    bits: u64,
    /// Not "every value": `*/2` has a star as well.
    pub(super) star: bool,
}

/// What can stand in a field.
struct Kind {
    name: &'static str,
    low: u8,
    high: u8,
    /// The first is another word for `low`.
    names: &'static [&'static str],
    form: &'static str,
}

const fn numbers(name: &'static str, low: u8, high: u8, form: &'static str) -> Kind {
    Kind {
        name,
        low,
        high,
        names: &[],
        form,
    }
}

const MINUTE: Kind = numbers("minute", 0, 59, "0-59");
const HOUR: Kind = numbers("hour", 0, 23, "0-23");
const DAY_OF_MONTH: Kind = numbers("day-of-month", 1, 31, "1-31");
const MONTH: Kind = Kind {
    names: &[
        "jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec",
    ],
    ..numbers("month", 1, 12, "1-12 or jan-dec")
};
const DAY_OF_WEEK: Kind = Kind {
    names: &["sun", "mon", "tue", "wed", "thu", "fri", "sat"],
    ..numbers("day-of-week", 0, 7, "0-7 (0 and 7 are Sunday) or sun-sat")
};

const NICKNAMES: [(&str, &str); 7] = [
    ("@hourly", "0 * * * *"),
    ("@daily", "0 0 * * *"),
    ("@midnight", "0 0 * * *"),
    ("@weekly", "0 0 * * 0"),
    ("@monthly", "0 0 1 * *"),
    ("@yearly", "0 0 1 1 *"),
    ("@annually", "0 0 1 1 *"),
];

const FORM: &str =
    "write five fields: minute hour day-of-month month day-of-week, such as `30 2 * * mon-fri`";

/// February counts as in a leap year.
const MONTH_DAYS: [u8; 12] = [31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];

/// Minute, hour, day-of-month, month, day-of-week.
pub(super) fn read(text: &str) -> Result<[Field; 5], ScheduleError> {
    let whole = Piece { text, at: 0 };
    let words: Vec<Piece<'_>> = whole
        .split(|c| c.is_ascii_whitespace())
        .filter(|word| !word.text.is_empty())
        .collect();
    if let [first, rest @ ..] = &words[..]
        && first.text.starts_with('@')
    {
        return nickname(*first, rest.first());
    }
    let [minute, hour, day_of_month, month, day_of_week] = words[..] else {
        return Err(wrong_count(&words));
    };
    let days = day_of_month.at..month.span().end;
    let fields = [
        Field::parse(minute, &MINUTE)?,
        Field::parse(hour, &HOUR)?,
        Field::parse(day_of_month, &DAY_OF_MONTH)?,
        Field::parse(month, &MONTH)?,
        Field::parse(day_of_week, &DAY_OF_WEEK)?,
    ];
    check_comes(fields, days)?;
    Ok(fields)
}

/// Numbers in the shortest ranges and steps; it reads back as the same fields.
pub(super) fn text(fields: [Field; 5]) -> String {
    let kinds = [&MINUTE, &HOUR, &DAY_OF_MONTH, &MONTH, &DAY_OF_WEEK];
    let texts: Vec<String> = fields
        .iter()
        .zip(kinds)
        .map(|(field, kind)| field.text(kind))
        .collect();
    texts.join(" ")
}

/// Each date falls on each weekday within 400 years, so only a day that all its months lack never comes.
fn check_comes(fields: [Field; 5], at: Range<usize>) -> Result<(), ScheduleError> {
    let [_, _, day_of_month, month, day_of_week] = fields;
    let weekday_is_enough = !day_of_month.star && !day_of_week.star;
    let days = |month: u8| MONTH_DAYS[usize::from(month - 1)];
    let longest = month.values().map(days).max().unwrap_or(0);
    let Some(day) = day_of_month
        .values()
        .next()
        .filter(|day| *day > longest && !weekday_is_enough)
    else {
        return Ok(());
    };
    Err(ScheduleError {
        at,
        found: format!("day {day} never comes in month {}", month.text(&MONTH)),
        help: format!("choose a day up to {longest}, or a longer month"),
    })
}

impl Kind {
    /// How many different values there are: day-of-week has two numbers for Sunday.
    fn count(&self) -> u8 {
        match self.names.len() {
            0 => self.high - self.low + 1,
            names => names as u8,
        }
    }

    /// The values `low`, `low + step`, … up to `high`.
    fn every(&self, low: u8, high: u8, step: u8) -> u64 {
        let values = (low..=high).step_by(usize::from(step));
        let bits = values.fold(0, |bits, value| bits | 1 << value);
        if self.high == 7 {
            bits & 0x7f | bits >> 7
        } else {
            bits
        }
    }
}

impl Field {
    fn parse(piece: Piece<'_>, kind: &Kind) -> Result<Self, ScheduleError> {
        let items = piece.split(|c| c == ',');
        let bits = items
            .map(|item| item.values(kind))
            .try_fold(0, |bits, more| more.map(|more| bits | more))?;
        let star = piece.text.starts_with('*');
        Ok(Self { bits, star })
    }

    pub(super) fn has(self, value: i8) -> bool {
        self.bits >> value & 1 == 1
    }

    /// The smallest value that is not less than `from`.
    pub(super) fn next(self, from: i8) -> Option<i8> {
        let left = self.bits & u64::MAX << from;
        (left != 0).then(|| left.trailing_zeros() as i8)
    }

    fn values(self) -> impl Iterator<Item = u8> {
        (0..=59).filter(move |value| self.bits >> value & 1 == 1)
    }

    /// What reads back as this field: the star with its smallest step, then runs and single values.
    fn text(self, kind: &Kind) -> String {
        let mut parts = Vec::new();
        let mut left = self;
        let every = |step: u8| kind.every(kind.low, kind.high, step);
        let inside = |step: &u8| every(*step) & !self.bits == 0;
        // A step always fits: a field that began with a star has at least its lowest value.
        if self.star
            && let Some(step) = (1..=kind.count()).find(inside)
        {
            parts.push(stepped("*".to_owned(), step));
            left.bits &= !every(step);
        }
        let values: Vec<u8> = left.values().collect();
        let mut rest = &values[..];
        while let [first, tail @ ..] = rest {
            let step = tail.first().map_or(1, |next| next - first);
            let even = |pair: &&[u8]| pair[1] - pair[0] == step;
            let run = rest.windows(2).take_while(even).count();
            if run < 2 {
                parts.push(first.to_string());
                rest = tail;
            } else {
                parts.push(stepped(format!("{first}-{}", rest[run]), step));
                rest = &rest[run + 1..];
            }
        }
        parts.join(",")
    }
}

fn stepped(range: String, step: u8) -> String {
    if step == 1 {
        range
    } else {
        format!("{range}/{step}")
    }
}

/// A part of the text that knows where it stands.
#[derive(Clone, Copy)]
struct Piece<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Piece<'a> {
    fn span(self) -> Range<usize> {
        self.at..self.at + self.text.len()
    }

    /// `by` must only accept characters of one byte.
    fn split(self, by: fn(char) -> bool) -> impl Iterator<Item = Self> {
        self.text.split(by).scan(self.at, |next, text| {
            let at = *next;
            *next += text.len() + 1;
            Some(Self { text, at })
        })
    }

    fn split_once(self, by: char) -> Option<(Self, Self)> {
        let (text, rest) = self.text.split_once(by)?;
        let at = self.at + text.len() + by.len_utf8();
        Some((Self { text, ..self }, Self { text: rest, at }))
    }

    fn error(self, found: String, help: impl Into<String>) -> ScheduleError {
        let (at, help) = (self.span(), help.into());
        ScheduleError { at, found, help }
    }

    fn is_digits(self) -> bool {
        !self.text.is_empty() && self.text.bytes().all(|b| b.is_ascii_digit())
    }

    /// One item of a list: `*`, a value or a range, the first and the last perhaps with a step.
    fn values(self, kind: &Kind) -> Result<u64, ScheduleError> {
        let (range, step) = match self.split_once('/') {
            Some((range, step)) => (range, Some(step)),
            None => (self, None),
        };
        let (low, high) = if range.text == "*" {
            (kind.low, kind.high)
        } else if let Some((first, last)) = range.split_once('-') {
            let (low, high) = (first.value(kind)?, last.value(kind)?);
            if low > high {
                return Err(range.backwards(first, last, kind));
            }
            (low, high)
        } else {
            let value = range.value(kind)?;
            if let Some(step) = step {
                let found = format!("`{}` gives a step to a single value", self.text);
                let range = format!("{}-{}/{}", range.text, kind.high, step.text);
                return Err(self.error(found, format!("write `{range}`")));
            }
            (value, value)
        };
        let step = step.map_or(Ok(1), |step| step.step(kind))?;
        Ok(kind.every(low, high, step))
    }

    fn step(self, kind: &Kind) -> Result<u8, ScheduleError> {
        let most = kind.count();
        let step = self
            .text
            .parse()
            .ok()
            .filter(|step| (1..=most).contains(step));
        if let Some(step) = step.filter(|_| self.is_digits()) {
            return Ok(step);
        }
        let found = format!("`{}` is not a step for the {}", self.text, kind.name);
        let help =
            format!("write a number, 1-{most}: steps start anew with each round of the field");
        Err(self.error(found, help))
    }

    /// A number or a name.
    fn value(self, kind: &Kind) -> Result<u8, ScheduleError> {
        let named = |name: &&str| name.eq_ignore_ascii_case(self.text);
        if let Some(index) = kind.names.iter().position(named) {
            return Ok(kind.low + index as u8);
        }
        if !self.is_digits() {
            return Err(self.no_value(kind));
        }
        let value = self.text.parse().ok();
        value
            .filter(|value| (kind.low..=kind.high).contains(value))
            .ok_or_else(|| {
                let found = format!("{} {} does not exist", kind.name, self.text);
                self.error(found, format!("write {}", kind.form))
            })
    }

    /// Other crons have more words; who brings one from there is told what to do here.
    fn no_value(self, kind: &Kind) -> ScheduleError {
        let word = self.text.to_ascii_lowercase();
        let begun = |name: &&&str| word.starts_with(**name);
        let (found, help) = match word.trim_matches(|c: char| c.is_ascii_digit()) {
            "" => {
                return self.error(
                    format!("a value for the {} is missing", kind.name),
                    format!("write {}", kind.form),
                );
            }
            "?" => ("`?` is not known here", "write `*`"),
            "l" | "lw" | "wl" => (
                "`L`, the last day, is not known here",
                "name the days it can be, such as 28-31, and let the job look at the date",
            ),
            "w" => (
                "`W`, the nearest working day, is not known here",
                "name the days it can be, such as 14-16, and let the job look at the date",
            ),
            other if other.contains('#') => (
                "`#`, the nth weekday of a month, is not known here",
                "name the days it can be, such as 8-14 for the second, and let the job look at the weekday",
            ),
            other if other.contains('~') => {
                ("`~`, a random value, is not known here", "choose a value")
            }
            other if other.contains('*') => (
                "`*` stands alone or has a step",
                "write `*` or such as `*/5`",
            ),
            _ => {
                let found = format!("`{}` is no {}", self.text, kind.name);
                let help = match kind.names.iter().find(begun) {
                    Some(name) => format!("write `{name}`"),
                    None => format!("write {}", kind.form),
                };
                return self.error(found, help);
            }
        };
        self.error(found.to_owned(), help)
    }

    fn backwards(self, first: Self, last: Self, kind: &Kind) -> ScheduleError {
        let word = |piece: Self, value: u8| match kind.names.get(usize::from(value - kind.low)) {
            Some(name) if !piece.is_digits() => (*name).to_owned(),
            _ => value.to_string(),
        };
        let range = |low: &str, high: &str| match low.eq_ignore_ascii_case(high) {
            true => low.to_owned(),
            false => format!("{low}-{high}"),
        };
        let before = range(first.text, &word(first, kind.low + kind.count() - 1));
        let after = range(&word(last, kind.low), last.text);
        self.error(
            format!("the range `{}` ends before it starts", self.text),
            format!("write a list: `{before},{after}`"),
        )
    }
}

fn nickname(word: Piece<'_>, next: Option<&Piece<'_>>) -> Result<[Field; 5], ScheduleError> {
    let is = |name: &str| word.text.eq_ignore_ascii_case(name);
    if is("@reboot") {
        let help = "for what runs once at each start, use a fleet with `restart = \"never\"`";
        return Err(word.error("`@reboot` is not a time".to_owned(), help));
    }
    if is("@every") {
        let help = "write a step in the field that counts it, such as `*/5 * * * *`";
        return Err(word.error("`@every` is not known here".to_owned(), help));
    }
    if let Some(next) = next {
        let found = format!(
            "`{}` follows a nickname, which is a whole schedule",
            next.text
        );
        return Err(next.error(found, "remove it; a command has a key of its own"));
    }
    match NICKNAMES.iter().find(|(name, _)| is(name)) {
        Some((_, fields)) => read(fields),
        None => {
            let names: Vec<&str> = NICKNAMES.iter().map(|(name, _)| *name).collect();
            let found = format!("`{}` is not a nickname", word.text);
            Err(word.error(found, format!("write one of {}", names.join(", "))))
        }
    }
}

fn wrong_count(words: &[Piece<'_>]) -> ScheduleError {
    let found = match words.len() {
        0 => "nothing is written".to_owned(),
        1 => "one field is not a schedule".to_owned(),
        6 => "six fields are one too many: seconds and years are not known here".to_owned(),
        count => format!("{count} fields are not a schedule"),
    };
    let start = words.first().map_or(0, |word| word.at);
    let end = words.last().map_or(start, |word| word.span().end);
    let help = FORM.to_owned();
    ScheduleError {
        at: start..end,
        found,
        help,
    }
}
