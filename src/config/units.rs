//! Durations, sizes, rates and ranges as people type them.

use std::fmt;

use crate::time::Span;

const SPAN_UNITS: [(&str, u64); 7] = [
    ("ms", 1_000_000),
    ("us", 1_000),
    ("ns", 1),
    ("s", 1_000_000_000),
    ("m", 60_000_000_000),
    ("h", 3_600_000_000_000),
    ("d", 86_400_000_000_000),
];

const SIZE_UNITS: [(&str, u64); 9] = [
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
    ("B", 1),
];

/// CPUs are numbered below this: what a `cpu_set_t` holds.
const CPUS_MAX: u32 = 1024;

/// What a duration looks like, for error messages.
pub const SPAN_FORM: &str = "a duration such as \"30s\", \"250ms\" or \"1h30m\"";
/// What a size looks like.
pub const SIZE_FORM: &str = "a size such as \"64KiB\", \"8MiB\" or \"1GB\"";

/// `80%`, in parts per million.
pub fn percent(text: &str) -> Option<u32> {
    let (number, tail) = split_number(text.strip_suffix('%')?)?;
    let share = scaled(number, 10_000).filter(|_| tail.is_empty())?;
    u32::try_from(share)
        .ok()
        .filter(|share| *share <= 1_000_000)
}

/// `0.5`, in thousandths; not nothing.
pub fn cores(text: &str) -> Option<u32> {
    let (number, tail) = split_number(text)?;
    let cores = scaled(number, 1_000).filter(|_| tail.is_empty())?;
    u32::try_from(cores)
        .ok()
        .filter(|cores| (1..=1_024_000).contains(cores))
}

/// `30s`, `1h30m`, `1.5s`, `infinity`.
pub fn span(text: &str) -> Option<Span> {
    if matches!(text, "infinity" | "never" | "forever") {
        return Some(Span::FOREVER);
    }
    if text == "0" {
        return Some(Span::ZERO);
    }
    let mut rest = text;
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let (number, tail) = split_number(rest)?;
        let letters = tail
            .find(|c: char| !c.is_ascii_alphabetic())
            .unwrap_or(tail.len());
        let size = SPAN_UNITS
            .iter()
            .find(|(unit, _)| *unit == &tail[..letters])?
            .1;
        total = total.checked_add(scaled(number, size)?)?;
        rest = &tail[letters..];
    }
    (!text.is_empty()).then_some(Span::nanos(total))
}

/// `8MiB`, `1.5GiB`, `4096B`.
pub fn size(text: &str) -> Option<u64> {
    let (number, unit) = split_number(text)?;
    let factor = SIZE_UNITS
        .iter()
        .find(|(name, _)| *name == unit.trim_start())?
        .1;
    scaled(number, factor)
}

/// The shortest exact way to write a size: `64KiB`, `1536B`.
pub fn show_size(bytes: u64) -> String {
    let fits = |unit: &&(&str, u64)| bytes > 0 && bytes.is_multiple_of(unit.1);
    let (unit, size) = SIZE_UNITS
        .iter()
        .filter(fits)
        .max_by_key(|(_, size)| *size)
        .unwrap_or(&("B", 1));
    format!("{}{unit}", bytes / size)
}

/// `1 worker`, `3 workers`: how many of something, for people.
pub fn count<N: fmt::Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    let plural = if number == N::from(1) { "" } else { "s" };
    format!("{number} {noun}{plural}")
}

/// `20/s`, `5/m`: events per second in thousandths.
pub fn rate_per_kilosecond(text: &str) -> Option<u64> {
    let (number, unit) = text.split_once('/')?;
    let number: u64 = number.parse().ok()?;
    match unit {
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(1_000).map(|n| n / 60),
        "h" => number.checked_mul(1_000).map(|n| n / 3_600),
        _ => None,
    }
}

/// `500ms..60s`.
pub fn span_range(text: &str) -> Option<(Span, Span)> {
    let (low, high) = text.split_once("..")?;
    Some((span(low.trim())?, span(high.trim())?))
}

/// `18000-18063`.
pub fn port_range(text: &str) -> Option<(u16, u16)> {
    let (low, high) = text.split_once('-')?;
    let (low, high) = (low.trim().parse().ok()?, high.trim().parse().ok()?);
    (low > 0 && low <= high).then_some((low, high))
}

/// `0-1,3`: numbers of CPUs.
pub fn cpus(text: &str) -> Option<Vec<u32>> {
    let mut all = Vec::new();
    for part in text.split(',').map(str::trim) {
        let (low, high) = part.split_once('-').unwrap_or((part, part));
        let (low, high): (u32, u32) = (low.parse().ok()?, high.parse().ok()?);
        if low > high || high >= CPUS_MAX {
            return None;
        }
        all.extend(low..=high);
    }
    Some(all)
}

/// `0027`: a file mode in octal.
pub fn mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
}

/// A signal by name (`SIGTERM`, `TERM`, `RTMIN+3`) or number.
pub fn signal(text: &str) -> Option<i32> {
    if let Ok(number) = text.parse::<i32>() {
        return (1..=64).contains(&number).then_some(number);
    }
    let upper = text.to_ascii_uppercase();
    let bare = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(offset) = bare.strip_prefix("RTMIN") {
        let n: i32 = if offset.is_empty() {
            0
        } else {
            offset.strip_prefix('+')?.parse().ok()?
        };
        return (0..=30).contains(&n).then(|| 34 + n);
    }
    format!("SIG{bare}")
        .parse::<nix::sys::signal::Signal>()
        .ok()
        .map(|signal| signal as i32)
}

/// A signal's name for people.
pub fn signal_name(number: i32) -> String {
    match nix::sys::signal::Signal::try_from(number) {
        Ok(signal) => signal.as_str().to_owned(),
        Err(_) if (34..=64).contains(&number) => format!("SIGRTMIN+{}", number - 34),
        Err(_) => format!("signal {number}"),
    }
}

/// Digits with an optional fraction, and what follows.
fn split_number(text: &str) -> Option<((u64, u64), &str)> {
    let end = text
        .find(|c: char| !(c.is_ascii_digit() || c == '.'))
        .unwrap_or(text.len());
    let (digits, tail) = text.split_at(end);
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    if fraction.len() > 9 || (whole.is_empty() && fraction.is_empty()) {
        return None;
    }
    let whole = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let nanos: u64 = format!("{fraction:0<9}").parse().ok()?;
    Some(((whole, nanos), tail))
}

fn scaled((whole, nanos): (u64, u64), factor: u64) -> Option<u64> {
    let fraction = u128::from(nanos) * u128::from(factor) / 1_000_000_000;
    whole
        .checked_mul(factor)?
        .checked_add(u64::try_from(fraction).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        assert_eq!(span("30s"), Some(Span::secs(30)));
        assert_eq!(span("1h30m"), Some(Span::secs(5400)));
        assert_eq!(span("1.5s"), Some(Span::millis(1500)));
        assert_eq!(span("infinity"), Some(Span::FOREVER));
        for bad in ["", "30", "s", "30 s", "-1s", "1y", "1s1", "99999999999999d"] {
            assert_eq!(span(bad), None, "{bad:?}");
        }
    }

    #[test]
    fn sizes_rates_ranges() {
        assert_eq!(size("8MiB"), Some(8 << 20));
        assert_eq!(size("1.5KiB"), Some(1536));
        assert_eq!(size("8"), None);
        assert_eq!(rate_per_kilosecond("20/s"), Some(20_000));
        assert_eq!(rate_per_kilosecond("30/m"), Some(500));
        assert_eq!(
            span_range("500ms..60s"),
            Some((Span::millis(500), Span::secs(60)))
        );
        assert_eq!(port_range("18000-18063"), Some((18000, 18063)));
        assert_eq!(port_range("9-8"), None);
        assert_eq!(show_size(8 << 20), "8MiB");
        assert_eq!(show_size(1_500_000), "1500kB");
        assert_eq!(show_size(0), "0B");
    }

    #[test]
    fn cpu_lists_and_modes() {
        assert_eq!(cpus("0-1, 3"), Some(vec![0, 1, 3]));
        for bad in ["", "5-2,1", "all", "0-1024", "1,"] {
            assert_eq!(cpus(bad), None, "{bad:?}");
        }
        assert_eq!(mode("0027"), Some(0o27));
        assert_eq!(mode("10000"), None);
    }

    #[test]
    fn signals() {
        assert_eq!(signal("SIGTERM"), Some(15));
        assert_eq!(signal("quit"), Some(3));
        assert_eq!(signal("RTMIN+3"), Some(37));
        assert_eq!(signal("65"), None);
        assert_eq!(signal_name(37), "SIGRTMIN+3");
        assert_eq!(signal_name(15), "SIGTERM");
    }
}
