//! Reads an exposition as strictly as Prometheus might, and says what is wrong with it.

use std::collections::{BTreeMap, BTreeSet};

/// Labels by name.
pub(crate) type Labels = BTreeMap<String, String>;

/// One family of an exposition.
#[derive(Debug, Default)]
pub(crate) struct Family {
    /// As its `# TYPE` says.
    pub(crate) name: String,
    pub(crate) kind: String,
    pub(crate) samples: Vec<(String, Labels, f64)>,
}

/// An exposition that is as it should be.
#[derive(Debug)]
pub(crate) struct Exposition {
    pub(crate) families: Vec<Family>,
}

impl Exposition {
    /// Reads it; panics with the first line that is wrong.
    pub(crate) fn read(text: &str, open: bool) -> Self {
        let mut families: Vec<Family> = Vec::new();
        let mut helped = String::new();
        let mut is_over = false;
        for line in text.lines() {
            assert!(!is_over, "behind the end: {line}");
            if line == "# EOF" {
                assert!(open, "text 0.0.4 has no end line");
                is_over = true;
            } else if let Some(rest) = line.strip_prefix("# HELP ") {
                let (name, help) = rest.split_once(' ').expect("a help has a text");
                assert!(!help.is_empty() && !help.contains('\\'), "{line}");
                name.clone_into(&mut helped);
            } else if let Some(rest) = line.strip_prefix("# TYPE ") {
                let (name, kind) = rest.split_once(' ').expect("a type has a word");
                assert_eq!(name, helped, "a type without its help");
                assert!(is_name(name), "{line}");
                if let Some(before) = families.last() {
                    assert!(base(before) < name, "{name} is not in order");
                }
                families.push(Family {
                    name: name.to_owned(),
                    kind: kind.to_owned(),
                    samples: Vec::new(),
                });
            } else if let Some(rest) = line.strip_prefix("# UNIT ") {
                let (name, unit) = rest.split_once(' ').expect("a unit has a word");
                let family = families.last().expect("a unit of nothing");
                assert!(open && family.samples.is_empty(), "{line}");
                assert_eq!(name, family.name);
                assert!(name.ends_with(&format!("_{unit}")), "{line}");
            } else {
                let sample = sample(line);
                families.last_mut().expect("no family").samples.push(sample);
            }
        }
        assert_eq!(is_over, open, "the end line");
        assert!(text.ends_with('\n'));
        for family in &families {
            check(family, open);
        }
        Self { families }
    }

    /// The value of a sample with these labels, and no others but `le`.
    pub(crate) fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let wanted: Labels = labels
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect();
        let samples = self.families.iter().flat_map(|family| &family.samples);
        let mut found = samples.filter(|(sample, labels, _)| sample == name && *labels == wanted);
        found.next().map(|(_, _, value)| *value)
    }
}

/// Its name without what text 0.0.4 adds.
fn base(family: &Family) -> &str {
    let name = family.name.as_str();
    name.strip_suffix("_total").unwrap_or(name)
}

fn check(family: &Family, open: bool) {
    let name = &family.name;
    let mut seen = BTreeSet::new();
    for (sample, labels, value) in &family.samples {
        assert!(seen.insert((sample, labels)), "{sample}{labels:?} twice");
        assert!(value.is_finite(), "{sample}{labels:?} is {value}");
        let fits = match (family.kind.as_str(), open) {
            ("counter", true) => *sample == format!("{name}_total"),
            ("counter", false) => sample == name && name.ends_with("_total"),
            ("info", true) => *sample == format!("{name}_info") && *value == 1.0,
            ("gauge", _) => sample == name && (!name.ends_with("_total")),
            ("histogram", _) => sample.starts_with(name.as_str()),
            (kind, _) => panic!("{name} is a {kind}"),
        };
        assert!(fits, "{sample} is not of {name}");
        let is_counted = matches!(family.kind.as_str(), "counter" | "histogram");
        assert!(!is_counted || *value >= 0.0, "{sample} fell below zero");
    }
    if family.kind == "histogram" {
        check_buckets(family);
    }
}

fn check_buckets(family: &Family) {
    let mut series: BTreeMap<Labels, Vec<(f64, f64)>> = BTreeMap::new();
    let (mut counts, mut sums) = (BTreeMap::new(), BTreeSet::new());
    for (sample, labels, value) in &family.samples {
        let mut labels = labels.clone();
        let le = labels.remove("le");
        match sample.strip_prefix(family.name.as_str()) {
            Some("_bucket") => {
                let le = le.expect("a bucket has a bound");
                let bound = le.replace("+Inf", "inf").parse().expect("a bound");
                series.entry(labels).or_default().push((bound, *value));
            }
            Some("_count") => assert_eq!(counts.insert(labels, *value), None),
            Some("_sum") => assert!(sums.insert(labels)),
            part => panic!("{}: {part:?}", family.name),
        }
    }
    assert_eq!(series.len(), counts.len());
    assert_eq!(series.len(), sums.len());
    for (labels, buckets) in series {
        let grows = buckets
            .windows(2)
            .all(|pair| pair[0].0 < pair[1].0 && pair[0].1 <= pair[1].1);
        assert!(grows, "{}{labels:?}: {buckets:?}", family.name);
        let last = buckets.last().expect("a histogram has buckets");
        assert_eq!(*last, (f64::INFINITY, counts[&labels]), "{}", family.name);
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with("leasehold_")
        && !name.ends_with('_')
        && name
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_')
}

/// `name{a="b",c="d"} 1`
fn sample(line: &str) -> (String, Labels, f64) {
    let end = line
        .find(['{', ' '])
        .unwrap_or_else(|| panic!("no value: {line}"));
    let (name, mut rest) = line.split_at(end);
    assert!(is_name(name), "{line}");
    let mut labels = Labels::new();
    while let Some(inner) = rest.strip_prefix(['{', ',']) {
        let (label, text) = inner.split_once("=\"").expect(line);
        let plain = label.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(plain && !label.is_empty(), "{line}");
        let (mut value, mut chars) = (String::new(), text.char_indices());
        let end = loop {
            match chars.next().expect(line) {
                (at, '"') => break at,
                (_, '\\') => match chars.next().expect(line).1 {
                    'n' => value.push('\n'),
                    c @ ('\\' | '"') => value.push(c),
                    c => panic!("\\{c}: {line}"),
                },
                (_, c) => value.push(c),
            }
        };
        assert_eq!(labels.insert(label.to_owned(), value), None, "{line}");
        rest = &text[end + 1..];
    }
    let value = rest.strip_prefix('}').unwrap_or(rest);
    let value = value.strip_prefix(' ').expect(line);
    (name.to_owned(), labels, value.parse().expect(line))
}
