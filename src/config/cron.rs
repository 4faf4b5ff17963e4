//! One `[cron.NAME]`: a job that is started by the calendar, as a fleet of one run at a time.

use crate::{
    config::{
        calendar::{Schedule, zone, zones},
        commands::Placeholders,
        document::{Kind, Place},
        fault::nearest,
        fleet::{self, Fleet},
        forms, process, publish,
        section::{Origin, Section},
        singleton,
        spec::*,
    },
    id::{FleetName, Revision},
    time::Span,
    wire::StopRecord,
};

/// Most attempts of one run.
const ATTEMPTS_MAX: i64 = 100;
/// Most runs that are remembered: they must fit the job's row.
const HISTORY_MAX: i64 = 64;

/// `overlap`.
pub(super) const OVERLAPS: [(&str, Overlap); 4] = [
    ("skip", Overlap::Skip),
    ("queue", Overlap::Queue),
    ("replace", Overlap::Replace),
    ("forbid", Overlap::Forbid),
];

/// What a fleet can say and a job cannot, and what to do instead.
const NOT_FOR_JOBS: [(&str, &str); 10] = [
    (
        "workers",
        "remove it: a job has one run at a time; see overlap",
    ),
    ("ready", "remove it: a run serves nobody"),
    ("scale", "remove it: a job has one run at a time"),
    (
        "health",
        "remove it; timeout = \"20m\" ends a run that hangs",
    ),
    ("rollout", "remove it: a new command is for the next run"),
    ("socket", "remove it: a run serves nobody"),
    ("publish", "remove it: a run serves nobody"),
    (
        "port_range",
        "remove it: a job has one run, which can have a port of its own",
    ),
    (
        "restart",
        "remove it; retry = { attempts = 3 } tries a failed run again",
    ),
    ("start", "remove it: a run is started by its schedule"),
];

/// Reads a job; the dependency rank is filled in later, when all fleets are known.
pub(super) fn job(
    name: &FleetName,
    section: &Section<'_, '_>,
    place: &Place,
    etcd: Option<&EtcdSpec>,
) -> Fleet {
    not_for_jobs(section);
    let mut cron = CronSpec {
        cluster: false,
        schedule: schedule(section),
        timezone: timezone(section),
        overlap: section.word("overlap", &OVERLAPS).unwrap_or(Overlap::Skip),
        catch_up: section.span("catch_up").unwrap_or(Span::ZERO),
        timeout: timeout(section),
        retry: retry(section),
        jitter: jitter(section),
        history: section.integer("history", 0, HISTORY_MAX).unwrap_or(20) as u32,
    };
    let placeholders = Placeholders::of(section);
    let (process, _) = process::process(section, &placeholders);
    let (after, after_places) = fleet::after(section);
    let mut spec = FleetSpec {
        process,
        workers: 1,
        stop: fleet::stop(section, Span::ZERO),
        log: fleet::log(section),
        after,
        ..FleetSpec::unknown(&StopRecord::default())
    };
    spec.singleton = lock(section, name, &mut cron, etcd);
    if let Some(success) = fleet::success(section) {
        spec.restart.success = success;
    }
    spec.revision = Revision::default();
    spec.cron = Some(cron);
    spec.revision = fleet::revision(&spec);
    section.finish();
    Fleet {
        spec,
        place: place.clone(),
        after: after_places,
        listens: std::collections::BTreeMap::new(),
        published: publish::Places::default(),
    }
}

/// What is inherited is meant for fleets; what the job says itself is a mistake.
fn not_for_jobs(section: &Section<'_, '_>) {
    for (key, help) in NOT_FOR_JOBS {
        section.refused(key);
        if section.origin(key) == Some(Origin::Own) {
            let message = format!(
                "{} means nothing: {} is a job",
                section.name(key),
                section.path
            );
            section.fault("E223", key, message, help);
        }
    }
}

fn schedule(section: &Section<'_, '_>) -> String {
    let Some(text) = section.string("schedule") else {
        if section.value("schedule").is_none() {
            let message = format!("{} has no `schedule`", section.path);
            let help = "add schedule = \"30 2 * * *\" (minute hour day-of-month month day-of-week), or \"@daily\"";
            section
                .reader
                .fault("E220", section.place(), message, "", help.to_owned());
        }
        return String::new();
    };
    // Empty: it could not be filled in, and has had its fault.
    if let Err(error) = Schedule::parse(&text)
        && !(text.is_empty() && section.value("schedule").is_some_and(is_filled))
    {
        let place = section.place_of("schedule").map(|(file, whole)| {
            let typed = section.reader.typed(&(file, whole.clone()));
            // Between quotes, and as it is read: then the very word can be pointed at.
            let plain = typed.is_some_and(|typed| typed[1..].starts_with(&text));
            let at = whole.start + 1 + error.at.start..whole.start + 1 + error.at.end;
            let fits = plain && !at.is_empty();
            (file, if fits { at } else { whole })
        });
        let message = format!("{}: {}", section.name("schedule"), error.found);
        section
            .reader
            .fault("E221", place, message, "here", error.help);
    }
    text
}

/// Does it hold a variable?
fn is_filled(value: &crate::config::document::Value) -> bool {
    matches!(&value.kind, Kind::String(text) if text.contains('$'))
}

fn timezone(section: &Section<'_, '_>) -> String {
    let Some(name) = section.string("timezone") else {
        return "UTC".to_owned();
    };
    if let Some(zone) = zone(&name) {
        return zone.iana_name().unwrap_or("UTC").to_owned();
    }
    let all = zones();
    // People know the city, and write it their way.
    let typed = name.replace(' ', "_");
    let last = |zone: &str| zone.rsplit('/').next().unwrap_or(zone).to_lowercase();
    let city = typed.rsplit('/').next().unwrap_or(&typed).to_lowercase();
    let near = nearest(&typed, all.iter().map(String::as_str)).or_else(|| {
        let of_that_name = |zone: &&String| last(zone) == city;
        all.iter().find(of_that_name).map(String::as_str)
    });
    let help = near.map_or_else(
        || "give an IANA name such as \"Europe/Berlin\", or \"UTC\"".to_owned(),
        |near| format!("did you mean {near:?}?"),
    );
    let message = format!(
        "{}: {name:?} is not the name of a time zone",
        section.name("timezone")
    );
    section.fault("E222", "timezone", message, &help);
    "UTC".to_owned()
}

fn retry(section: &Section<'_, '_>) -> RetrySpec {
    let table = section.section("retry");
    let backoff = table.parsed("backoff", &forms::SPAN_RANGE);
    let (backoff_min, backoff_max) = backoff.unwrap_or((Span::secs(10), Span::secs(300)));
    if backoff_min > backoff_max {
        let message = format!("{} runs backwards", table.name("backoff"));
        let help = format!("write backoff = \"{backoff_max}..{backoff_min}\"");
        table.fault("E150", "backoff", message, &help);
    }
    let spec = RetrySpec {
        attempts: table.integer("attempts", 1, ATTEMPTS_MAX).unwrap_or(1) as u32,
        backoff_min,
        backoff_max,
    };
    table.finish();
    spec
}

fn timeout(section: &Section<'_, '_>) -> Span {
    let timeout = section.span("timeout").unwrap_or(Span::FOREVER);
    if timeout == Span::ZERO {
        let message = format!(
            "{} would end every run as it begins",
            section.name("timeout")
        );
        section.fault(
            "E226",
            "timeout",
            message,
            "leave it out, or give a duration such as \"20m\"",
        );
    }
    timeout
}

fn jitter(section: &Section<'_, '_>) -> Span {
    let jitter = section.span("jitter").unwrap_or(Span::ZERO);
    if jitter > Span::secs(86_400) {
        let message = format!("{} is longer than a day", section.name("jitter"));
        let help =
            "a run starts up to so much later than its tick: give a part of the time between two";
        section.fault("E225", "jitter", message, help);
    }
    jitter
}

/// The lock of `overlap = "forbid"`: the job's name, unless `singleton` says another. In a cluster each tick is one node's, and a run has a
/// lock only where it may not be beside another one: with `forbid`, and where it is tried again.
fn lock(
    section: &Section<'_, '_>,
    name: &FleetName,
    cron: &mut CronSpec,
    etcd: Option<&EtcdSpec>,
) -> Option<SingletonSpec> {
    let is_alone = cron.overlap == Overlap::Forbid;
    let is_held = is_alone || cron.retry.attempts > 1;
    let said = singleton::singleton(section, name, etcd, is_held);
    cron.cluster = said.as_ref().is_some_and(SingletonSpec::is_of_cluster);
    let locked = is_alone || (cron.cluster && is_held);
    if let Some(spec) = &said
        && ((!locked && !cron.cluster) || spec.slots != 1)
    {
        let (message, help) = if spec.slots == 1 {
            (
                format!(
                    "{} names a lock that nothing takes",
                    section.name("singleton")
                ),
                "add overlap = \"forbid\": a tick that finds the lock taken is skipped",
            )
        } else {
            (
                format!("{} would let runs overlap", section.name("singleton.slots")),
                "remove slots: a job has one run at a time",
            )
        };
        section.fault("E224", "singleton", message, help);
    }
    if said.as_ref().is_some_and(|spec| spec.warm) {
        let message = format!("{} keeps nothing warm", section.name("singleton.warm"));
        let help = "remove it: a run begins at its tick, and there is none before";
        section.fault("E278", "singleton", message, help);
    }
    said.filter(|_| locked || !cron.cluster).or_else(|| {
        locked.then(|| SingletonSpec {
            lock: name.clone(),
            ..SingletonSpec::default()
        })
    })
}
