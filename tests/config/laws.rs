//! Laws of units and of `diff`, on random values.

use std::{collections::BTreeMap, path::PathBuf};

use leasehold::{
    config::{
        self, Config,
        diff::{Class, class, diff},
        spec::{ProbeKind, ReadySpec},
        units,
    },
    id::FleetName,
    time::Span,
};
use proptest::prelude::*;

use crate::fake::FakeMachine;

/// Spans as people type them as well as any other.
fn spans() -> impl Strategy<Value = Span> {
    prop_oneof![
        any::<u64>().prop_map(Span::nanos),
        (0..100_000_u64).prop_map(Span::secs),
        (0..100_000_u64).prop_map(Span::millis),
        (0..3_u64, 0..24_u64, 0..60_u64)
            .prop_map(|(d, h, m)| Span::secs(86_400 * d + 3_600 * h + 60 * m)),
    ]
}

proptest! {
    #[test]
    fn a_span_reads_back_as_it_is_shown(span in spans()) {
        let read = units::span(&span.to_string());
        // All endless spans are one.
        prop_assert_eq!(read, Some(span.min(Span::FOREVER)));
    }

    #[test]
    fn a_longer_span_never_reads_as_a_shorter_one(a in spans(), b in spans()) {
        prop_assert_eq!(a.min(Span::FOREVER) <= b.min(Span::FOREVER),
            units::span(&a.to_string()) <= units::span(&b.to_string()));
    }

    #[test]
    fn any_text_is_read_or_refused(text in any::<String>(), near in "[0-9.]{0,22} ?[a-zA-Z/+-]{0,4}[0-9]{0,3}") {
        for text in [text, near] {
            if let Some(span) = units::span(&text) {
                prop_assert_eq!(units::span(&span.to_string()), Some(span.min(Span::FOREVER)));
            }
            let _ = (units::size(&text), units::rate_per_kilosecond(&text), units::span_range(&text));
            let _ = (units::port_range(&text), units::signal(&text));
        }
    }

    #[test]
    fn sizes_count_what_their_unit_says(n in 0..(1_u64 << 20)) {
        prop_assert_eq!(units::size(&format!("{n}B")), Some(n));
        prop_assert_eq!(units::size(&format!("{n} kB")), Some(n * 1_000));
        prop_assert_eq!(units::size(&format!("{n}MiB")), Some(n << 20));
        prop_assert_eq!(units::size(&format!("{n}.5KiB")), Some((n << 10) + 512));
        prop_assert_eq!(units::size(&n.to_string()), None);
        prop_assert_eq!(units::size(&units::show_size(n)), Some(n));
        prop_assert_eq!(units::size(&units::show_size(n << 20)), Some(n << 20));
    }

    #[test]
    fn rates_are_per_thousand_seconds(n in 0..1_000_000_u64) {
        prop_assert_eq!(units::rate_per_kilosecond(&format!("{n}/s")), Some(n * 1_000));
        prop_assert_eq!(units::rate_per_kilosecond(&format!("{n}/m")), Some(n * 1_000 / 60));
    }

    #[test]
    fn ranges_read_back(a in any::<u16>(), b in any::<u16>(), from in spans(), to in spans()) {
        let read = units::port_range(&format!("{a}-{b}"));
        prop_assert_eq!(read, (0 < a && a <= b).then_some((a, b)));
        let read = units::span_range(&format!("{from}..{to}"));
        prop_assert_eq!(read, Some((from.min(Span::FOREVER), to.min(Span::FOREVER))));
    }

    #[test]
    fn signals_read_back_by_name_and_number(number in (1..=64).prop_filter("glibc keeps these", |n| !matches!(n, 32 | 33))) {
        let name = units::signal_name(number);
        prop_assert_eq!(units::signal(&name), Some(number));
        prop_assert_eq!(units::signal(&name.to_lowercase()), Some(number));
        prop_assert_eq!(units::signal(name.strip_prefix("SIG").unwrap()), Some(number));
        prop_assert_eq!(units::signal(&number.to_string()), Some(number));
    }
}

/// What a fleet may say, one knob for each thing that `diff` must class.
#[derive(Clone, Debug, PartialEq)]
struct Knobs {
    workers: u32,
    argument: u8,
    env: u8,
    umask: u8,
    port: u16,
    backlog: u16,
    stop_seconds: u16,
    signal: u8,
    policy: u8,
    interval: u8,
    log_mib: u8,
}

fn knobs() -> impl Strategy<Value = Knobs> {
    // Few values each, so that equal ones are common.
    let shape = (0..3_u32, 0..2_u8, 0..2_u8, 0..2_u8, 0..2_u16, 1..3_u16);
    let care = (1..3_u16, 0..2_u8, 0..3_u8, 1..3_u8, 1..3_u8);
    (shape, care).prop_map(|(shape, care)| Knobs {
        workers: shape.0,
        argument: shape.1,
        env: shape.2,
        umask: shape.3,
        port: shape.4,
        backlog: shape.5,
        stop_seconds: care.0,
        signal: care.1,
        policy: care.2,
        interval: care.3,
        log_mib: care.4,
    })
}

impl Knobs {
    /// Each fleet has ports of its own, as it must.
    fn toml(&self, name: &str, number: usize) -> String {
        let policy = ["always", "on-failure", "never"][usize::from(self.policy)];
        let signal = ["SIGTERM", "SIGQUIT"][usize::from(self.signal)];
        let port = usize::from(self.port) + 9_000 + 10 * number;
        format!(
            "[fleet.{name}]\ncommand = [\"/bin/sleep\", \"{}\"]\nworkers = {}\nenv.A = \"{}\"\numask = \"002{}\"\n\
             socket.http = {{ listen = \"127.0.0.1:{port}\", backlog = {} }}\nstop = {{ timeout = \"{}s\", signal = \"{signal}\" }}\n\
             restart.policy = \"{policy}\"\nhealth = {{ tcp = \"localhost:1\", interval = \"{}s\" }}\nlog.rotate_size = \"{}MiB\"\n",
            self.argument,
            self.workers,
            self.env,
            self.umask,
            self.backlog,
            self.stop_seconds,
            self.interval,
            self.log_mib
        )
    }

    /// What the documentation of `Class` says about a change from `self` to `other`.
    fn class(&self, other: &Self) -> Option<Class> {
        let spawn = |k: &Self| (k.argument, k.env, k.umask);
        if (self.port, self.backlog) != (other.port, other.backlog) {
            Some(Class::Replace)
        } else if spawn(self) != spawn(other) {
            Some(Class::Rolling)
        } else if self.workers != other.workers {
            Some(Class::Scale)
        } else {
            (self != other).then_some(Class::Live)
        }
    }
}

/// Who is told of workers is no part of them.
#[test]
fn what_is_published_changes_live() {
    let with = |publish: &str| {
        load_text(format!(
            "schema = 1\n[fleet.web]\ncommand = [\"/bin/sleep\", \"9\"]\n{publish}\n"
        ))
    };
    let all = [
        with(""),
        with("publish = { port = 80 }"),
        with("publish = { port = 81 }"),
        with("publish = { port = 81, address = \"10.0.0.5\" }"),
        with("publish = { port = 81, haproxy_agent = \"127.0.0.1:9101\" }"),
    ];
    for before in &all {
        for after in all.iter().filter(|after| *after != before) {
            let changes = diff(before, after);
            assert_eq!(changes.len(), 1);
            assert_eq!(changes[0].class, Class::Live, "{changes:?}");
            assert!(!changes[0].differences.is_empty());
        }
    }
    let delay = |config: &Config| config.fleets.values().next().unwrap().stop.deregister_delay;
    assert_eq!(delay(&all[0]), Span::ZERO);
    assert_eq!(delay(&all[1]), Span::secs(5));
}

const NAMES: [&str; 4] = ["api", "db", "jobs", "web"];
type Fleets = BTreeMap<&'static str, Knobs>;

fn fleets() -> impl Strategy<Value = Fleets> {
    prop::collection::btree_map(prop::sample::select(&NAMES[..]), knobs(), 1..=NAMES.len())
}

fn load(fleets: &Fleets) -> Config {
    let mut text = "schema = 1\n".to_owned();
    for (number, name) in NAMES.iter().enumerate() {
        if let Some(knobs) = fleets.get(name) {
            text.push_str(&knobs.toml(name, number));
        }
    }
    load_text(text)
}

fn load_text(text: String) -> Config {
    let path = PathBuf::from("leasehold.toml");
    let machine = FakeMachine::with([(path.clone(), text)]);
    config::load(&path, &machine).unwrap_or_else(|faults| panic!("{faults}"))
}

proptest! {
    #[test]
    fn nothing_changes_from_a_configuration_to_itself(fleets in fleets()) {
        let config = load(&fleets);
        prop_assert_eq!(diff(&config, &config), []);
        prop_assert_eq!(load(&fleets), config.clone());
        let text = serde_json::to_string(&config).unwrap();
        prop_assert_eq!(serde_json::from_str::<Config>(&text).unwrap(), config);
    }

    #[test]
    fn every_change_has_the_class_that_is_documented(before in fleets(), after in fleets()) {
        let expected: BTreeMap<&str, Class> = NAMES
            .into_iter()
            .filter_map(|name| {
                let class = match (before.get(name), after.get(name)) {
                    (Some(old), Some(new)) => old.class(new)?,
                    (Some(_), None) => Class::Remove,
                    (None, Some(_)) => Class::Add,
                    (None, None) => return None,
                };
                Some((name, class))
            })
            .collect();
        let (before, after) = (load(&before), load(&after));
        let changes = diff(&before, &after);
        let found: BTreeMap<&str, Class> = changes.iter().map(|c| (c.fleet.as_str(), c.class)).collect();
        prop_assert_eq!(found, expected);
        prop_assert!(changes.is_sorted_by_key(|change| &change.fleet));
        for change in &changes {
            let whole = matches!(change.class, Class::Add | Class::Remove);
            prop_assert_eq!(change.differences.is_empty(), whole, "{:?}", change);
            for difference in &change.differences {
                prop_assert_ne!(&difference.before, &difference.after);
                let ours = ["revision", "rank", "program", "argv", "process"];
                prop_assert!(difference.key.split('.').all(|word| !ours.contains(&word)), "{:?}", difference);
            }
        }
    }

    #[test]
    fn the_way_back_changes_the_same_fleets(before in fleets(), after in fleets()) {
        let (before, after) = (load(&before), load(&after));
        let (there, back) = (diff(&before, &after), diff(&after, &before));
        prop_assert_eq!(there.len(), back.len());
        for (there, back) in there.iter().zip(&back) {
            let expected = match there.class {
                Class::Add => Class::Remove,
                Class::Remove => Class::Add,
                same => same,
            };
            prop_assert_eq!((&back.fleet, back.class), (&there.fleet, expected));
            for (there, back) in there.differences.iter().zip(&back.differences) {
                prop_assert_eq!((&there.before, &there.after), (&back.after, &back.before));
            }
        }
    }
}

#[test]
fn classes_are_ordered_from_harmless_to_drastic() {
    let order = [Class::Live, Class::Scale, Class::Rolling, Class::Replace];
    assert!(order.is_sorted());
    let name: FleetName = "web".parse().unwrap();
    let config = load(&[("web", base())].into());
    assert_eq!(class(&config.fleets[&name], &config.fleets[&name]), None);
}

/// How many there may be on all nodes moves nobody.
#[test]
fn a_maximum_over_all_nodes_is_live() {
    let with = |scale: &str| {
        let etcd = "[etcd]\nendpoints = [\"http://127.0.0.1:2379\"]";
        let fleet = "[fleet.web]\ncommand = [\"/bin/sleep\", \"1\"]";
        let scale = format!("scale = {{ min = 1, max = 4{scale} }}");
        load_text(format!("schema = 1\n{etcd}\n{fleet}\n{scale}\n"))
    };
    let all = [
        with(""),
        with(", cluster_max = 3"),
        with(", cluster_max = 6"),
    ];
    for before in &all {
        for after in all.iter().filter(|after| *after != before) {
            let changes = diff(before, after);
            assert_eq!(changes[0].class, Class::Live, "{changes:?}");
            let keys = changes[0].differences.iter().map(|one| one.key.as_str());
            assert_eq!(keys.collect::<Vec<_>>(), ["scale.cluster_max"]);
        }
    }
}

/// Keys that the random fleets leave out, one change each.
#[test]
fn classes_of_single_keys() {
    let base = "command = [\"/bin/sleep\", \"1\"]\n";
    for (extra, expected) in [
        ("rollout.max_surge = 1", Class::Live),
        ("start.timeout = \"5s\"", Class::Live),
        ("ready = \"notify\"", Class::Live),
        ("log.on_full = \"drop\"", Class::Live),
        ("log.sink = \"journal\"", Class::Live),
        ("health.tcp = \"localhost:1\"", Class::Live),
        ("after.db = \"ready\"", Class::Live),
        ("workers = 2", Class::Scale),
        ("cwd = \"/srv\"", Class::Rolling),
        ("env_file = \"app.env\"", Class::Rolling),
        ("limits.nofile = 100", Class::Rolling),
        ("port_range = \"9000-9001\"", Class::Rolling),
        ("hooks.pre_stop.run = [\"/bin/true\"]", Class::Rolling),
        ("health.watchdog = \"5s\"", Class::Rolling),
        ("log.sink = \"none\"", Class::Rolling),
        ("log.stderr = \"separate\"", Class::Rolling),
        ("socket.http.listen = \"127.0.0.1:1\"", Class::Replace),
    ] {
        let with = |extra: &str| {
            let text = format!("schema = 1\n[fleet.db]\n{base}[fleet.web]\n{base}{extra}\n");
            load_text(text)
        };
        let changes = diff(&with(""), &with(extra));
        let found: Vec<(&str, Class)> = changes
            .iter()
            .map(|c| (c.fleet.as_str(), c.class))
            .collect();
        assert_eq!(found, [("web", expected)], "{extra}");
    }
}

/// A plan speaks as the file does.
#[test]
fn differences_read_as_they_are_typed() {
    let differences = |before: &str, after: &str| -> Vec<String> {
        let with = |extra: &str| {
            load_text(format!(
                "schema = 1\n[fleet.db]\ncommand = [\"/bin/true\"]\n[fleet.web]\n{extra}\n"
            ))
        };
        let changes = diff(&with(before), &with(after));
        let web = changes
            .into_iter()
            .find(|change| change.fleet.as_str() == "web");
        let show = |side: Option<String>| side.unwrap_or_else(|| "nothing".to_owned());
        let all = web.into_iter().flat_map(|change| change.differences);
        all.map(|one| format!("{}: {} -> {}", one.key, show(one.before), show(one.after)))
            .collect()
    };
    let before = r#"
        command = ["/bin/sleep", "1"]
        cwd = "/srv"
        log = { rotate_size = "8MiB" }
        ready = "notify"
        restart = { backoff = "200ms..30s" }
        stop = { timeout = "30s", signal = "SIGTERM" }
        socket.http.listen = "127.0.0.1:8080"
    "#;
    let after = r#"
        command = ["python3", "-m", "web"]
        cwd = "/srv/app"
        after = { db = "started" }
        env = { MODE = "live" }
        health = { exec = ["/bin/true"], interval = "1m30s" }
        hooks.pre_stop.run = ["/bin/true"]
        limits = { nofile = 100, core = "infinity", memory_max = "1.5GiB", tasks = 5, cpus = "0-1", nice = -5 }
        log = { rotate_size = "1000kB", stderr = "separate", sink = "none" }
        port_range = "18000-18003"
        ready = { http = "http://127.0.0.1/healthz" }
        restart = { backoff = "1s..60s", policy = "on-failure", success = [0, 3], then = "fail" }
        rollout.on_failure = "rollback"
        stop = { timeout = "45s", signal = "SIGQUIT", to = "group" }
        socket.http = { listen = "127.0.0.1:8081", mode = "0660" }
        umask = "0027"
        workers = 2
    "#;
    let expected = r#"
        after.db: nothing -> started
        command: ["/bin/sleep", "1"] -> ["python3", "-m", "web"] (/usr/bin/python3)
        cwd: "/srv" -> "/srv/app"
        depth of dependencies: 0 -> 1
        env.MODE: nothing -> "live"
        health.exec: nothing -> ["/bin/true"]
        health.fail: nothing -> 3
        health.interval: nothing -> 1m30s
        health.timeout: nothing -> 2s
        hooks.pre_stop.on_error: nothing -> ignore
        hooks.pre_stop.run: nothing -> ["/bin/true"]
        hooks.pre_stop.timeout: nothing -> 10s
        limits.core: nothing -> infinity
        limits.cpus: nothing -> 0,1
        limits.memory_max: nothing -> 1536MiB
        limits.nice: nothing -> -5
        limits.nofile: nothing -> 100
        limits.tasks: nothing -> 5
        log.rotate_size: 8MiB -> 1MB
        log.sink: file -> none
        log.stderr: merge -> separate
        port_range: nothing -> 18000-18003
        ready: notify -> nothing
        ready.http: nothing -> http://127.0.0.1:80/healthz
        ready.interval: nothing -> 500ms
        ready.pass: nothing -> 1
        ready.timeout: nothing -> 2s
        restart.backoff: 200ms..30s -> 1s..1m
        restart.policy: always -> on-failure
        restart.success: [0] -> [0, 3]
        restart.then: retry -> fail
        rollout.on_failure: stop -> rollback
        socket.http.listen: 127.0.0.1:8080 -> 127.0.0.1:8081
        socket.http.mode: nothing -> 0660
        stop.signal: SIGTERM -> SIGQUIT
        stop.timeout: 30s -> 45s
        stop.to: leader -> group
        umask: nothing -> 0027
        workers: 1 -> 2
    "#;
    let expected: Vec<&str> = expected
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect();
    assert_eq!(differences(before, after), expected);
}

/// A fleet's own words win over inherited ones that mean the same by another name.
#[test]
fn own_keys_win_over_defaults() {
    let config = load_text(include_str!("good/own-over-defaults.toml").to_owned());
    let fleet = |name: &str| &config.fleets[&name.parse::<FleetName>().unwrap()];
    let waits = |name: &str| {
        let stop = &fleet(name).stop;
        (stop.timeout, stop.deregister_delay)
    };
    assert_eq!(waits("api"), (Span::secs(5), Span::secs(1)));
    assert_eq!(waits("jobs"), (Span::secs(7), Span::secs(1)));
    assert_eq!(waits("web"), (Span::secs(10), Span::secs(2)));
    assert!(config.fleets.values().all(|spec| spec.stop.signal == 3));
    assert_eq!(fleet("web").process.cwd.as_deref(), Some("/srv/app"));
    assert_eq!(fleet("api").ready, ReadySpec::Notify);
    assert_eq!(fleet("jobs").ready, ReadySpec::Spawned);
    assert!(matches!(&fleet("web").ready, ReadySpec::Probe(probe)
        if probe.kind == ProbeKind::Tcp("127.0.0.1:2".to_owned())));
    let health = fleet("web").health.probe.as_ref().unwrap();
    assert!(matches!(health.kind, ProbeKind::Http { .. }));
    assert_eq!(health.interval, Span::secs(10));
}

fn base() -> Knobs {
    Knobs {
        workers: 1,
        argument: 0,
        env: 0,
        umask: 0,
        port: 0,
        backlog: 1,
        stop_seconds: 1,
        signal: 0,
        policy: 0,
        interval: 1,
        log_mib: 1,
    }
}
