//! `scale`: a fleet that follows the load.

use std::collections::BTreeMap;

use crate::{
    config::{
        commands::Programs,
        document::Kind,
        fault::nearest,
        forms,
        section::{Origin, Section},
        spec::*,
    },
    time::Span,
};

/// Most workers of a fleet that follows the load: which ones they are must fit its row.
const MAX: i64 = 1_500;
/// Above this share a worker cannot be told from one that could use more, in parts per million.
const HIGH_MAX: u32 = 950_000;
/// Two decisions are so far apart, and their samples a little more.
const UP_WINDOW_MIN: Span = Span::secs(10);
/// Most workers of a fleet on all nodes.
const CLUSTER_MAX: i64 = 10_000;
/// Windows below this are for tests.
const DOWN_WINDOW_LEAST: Span = Span::secs(60);
/// Between two questions to a source.
const INTERVAL_MIN: Span = Span::millis(100);

/// `scale.signals`.
pub(super) const SIGNALS: [(&str, Signal); 4] = [
    ("cpu", Signal::Cpu),
    ("backlog", Signal::Backlog),
    ("busy", Signal::Busy),
    ("queue", Signal::Queue),
];
/// `scale.stuck`: is it restarted?
pub(super) const STUCK: [(&str, bool); 2] = [("report", false), ("restart", true)];

/// Reads it; none if there is no such table.
pub(super) fn scale(
    section: &Section<'_, '_>,
    programs: &Programs<'_, '_, '_>,
    sockets: &BTreeMap<String, SocketSpec>,
    etcd: Option<&EtcdSpec>,
) -> Option<ScaleSpec> {
    let table = section.section("scale");
    if table.is_absent() {
        return None;
    }
    let has_socket = !sockets.is_empty();
    let min = table.integer("min", 0, MAX).unwrap_or(1) as u32;
    let max = max(&table);
    let usual = ScaleSpec::between(min, max);
    let count = |key, otherwise: u32| {
        table
            .integer(key, 1, 10_000)
            .map_or(otherwise, |n| n as u32)
    };
    let span = |key, otherwise| table.span(key).unwrap_or(otherwise);
    let spec = ScaleSpec {
        cluster_max: table
            .integer("cluster_max", 1, CLUSTER_MAX)
            .map(|n| n as u32),
        high: table.parsed("high", &forms::PERCENT).unwrap_or(usual.high),
        target: table
            .parsed("target", &forms::PERCENT)
            .unwrap_or(usual.target),
        signals: signals(&table, has_socket).unwrap_or(usual.signals),
        worker_cores: cores(&table).unwrap_or(usual.worker_cores),
        warmup: span("warmup", usual.warmup),
        up_window: span("up_window", usual.up_window),
        down_window: span("down_window", usual.down_window),
        weight: count("weight", usual.weight),
        idle_timeout: span("idle_timeout", usual.idle_timeout),
        wake: count("wake", usual.wake),
        backlog_alert: table
            .integer("backlog_alert", 1, 1_000_000)
            .map(|n| n as u32),
        stuck_after: span("stuck_after", usual.stuck_after),
        restart_stuck: table.word("stuck", &STUCK).unwrap_or(usual.restart_stuck),
        queue_per_worker: table
            .integer("queue_per_worker", 1, 1_000_000_000)
            .map_or(usual.queue_per_worker, |n| n as u64 * 1_000),
        source: source(&table, programs),
        ..usual
    };
    check(section, &table, &spec, sockets);
    check_cluster(&table, &spec, etcd);
    warn(&table, &spec);
    table.finish();
    Some(spec)
}

/// A number, or `auto`: twice the cores that there are.
fn max(table: &Section<'_, '_>) -> u32 {
    let auto = table.reader.around.usable_cores().div_ceil(1_000) * 2;
    match table.value("max").map(|value| &value.kind) {
        None => return auto.max(1),
        Some(Kind::String(text)) if text == "auto" => return auto.max(1),
        Some(_) => {}
    }
    table.integer("max", 1, MAX).map_or(auto, |n| n as u32)
}

/// What one worker can use, in thousandths of a core: a whole number, or a decimal one in quotes.
fn cores(table: &Section<'_, '_>) -> Option<u32> {
    let value = table.value("worker_cores").map(|value| &value.kind);
    if matches!(value, Some(Kind::Integer(_))) {
        return table
            .integer("worker_cores", 1, 1_024)
            .map(|n| n as u32 * 1_000);
    }
    table.parsed("worker_cores", &forms::CORES)
}

fn signals(table: &Section<'_, '_>, has_socket: bool) -> Option<Vec<Signal>> {
    let mut all = Vec::new();
    for (text, place) in table.strings("signals")? {
        match SIGNALS.iter().find(|(word, _)| *word == text) {
            Some((_, signal)) if !all.contains(signal) => all.push(*signal),
            Some(_) => {}
            None => {
                let message = format!("{text:?} is no signal of {}", table.path);
                let words: Vec<&str> = SIGNALS.iter().map(|(word, _)| *word).collect();
                let help = nearest(&text, words.iter().copied()).map_or_else(
                    || format!("one of {}", words.join(", ")),
                    |near| format!("did you mean {near:?}?"),
                );
                table
                    .reader
                    .fault("E251", Some(place), message, "this one", help);
            }
        }
    }
    if all == [Signal::Backlog] && !has_socket {
        let message = format!(
            "{} has no socket, and nothing else to be measured by",
            table.path
        );
        table.fault(
            "E252",
            "signals",
            message,
            "add \"cpu\", or a socket of ours",
        );
    }
    (!all.is_empty()).then_some(all)
}

/// `source = { http | exec = …, interval, timeout }`.
fn source(table: &Section<'_, '_>, programs: &Programs<'_, '_, '_>) -> Option<SourceSpec> {
    let source = table.tables("source");
    if source.is_absent() {
        return None;
    }
    let timeout = source.span("timeout").unwrap_or(Span::secs(2));
    if timeout.is_forever() || timeout == Span::ZERO {
        let message = format!("{} is no deadline", source.name("timeout"));
        let help = "give one: an answer that takes longer is none";
        source.fault("E262", "timeout", message, help);
    }
    let interval = source.span("interval").unwrap_or(Span::secs(5));
    let http = source.parsed("http", &forms::PROBE_URL);
    let exec = source
        .value("exec")
        .and_then(|_| programs.command(&source, "exec"));
    let (asks, runs) = (source.origin("http"), source.origin("exec"));
    if asks.is_none() && runs.is_none() {
        let message = format!("{} does not say whom to ask", table.name("source"));
        let help = "add http = \"http://127.0.0.1:8080/depth\" or exec = [\"/path/to/program\"], which answers with a number";
        table.fault("E253", "source", message, help);
    }
    if asks.is_some() && runs.is_some() {
        let message = format!("{} asks in more than one way", table.name("source"));
        source.fault("E261", "exec", message, "choose one of http, exec");
    }
    source.finish();
    let kind = match http {
        Some((address, path)) => SourceKind::Http { address, path },
        None => exec.map(|(program, argv)| {
            SourceKind::Exec(HookSpec {
                program,
                argv,
                timeout,
                abort: true,
            })
        })?,
    };
    Some(SourceSpec {
        kind,
        interval: interval.max(INTERVAL_MIN),
        timeout,
    })
}

/// What will hardly do what it is meant to.
fn warn(table: &Section<'_, '_>, spec: &ScaleSpec) {
    let warn = |code, key, message, help: &str| {
        let place = table.place_of(key);
        table.reader.warn(code, place, message, help.to_owned());
    };
    let (high, target) = (u64::from(spec.high), u64::from(spec.target));
    if target < high && high * 10 < target * 12 {
        let key = table.culprit(&["target", "high"]);
        let message = format!(
            "{} is so near to high that its size will waver",
            table.name("target")
        );
        warn(
            "W250",
            key,
            message,
            "leave a fifth between them at least; 60% and 80% are usual",
        );
    }
    if spec.down_window < DOWN_WINDOW_LEAST {
        let message = format!(
            "{} = {} is shorter than most pauses in a load",
            table.name("down_window"),
            spec.down_window
        );
        warn(
            "W251",
            "down_window",
            message,
            "60s or more, or it follows every wave; 120s is usual",
        );
    }
    let cores = u64::from(table.reader.around.usable_cores());
    let could = u64::from(spec.max) * u64::from(spec.worker_cores);
    if table.origin("max").is_some() && could > 4 * cores {
        let shown = |thousandths: u64| thousandths as f64 / 1e3;
        let message = format!(
            "{} = {} workers could use {} cores, and there are {}",
            table.name("max"),
            spec.max,
            shown(could),
            shown(cores)
        );
        let help = "fewer; or say in worker_cores how much of a core one can use: workers that mostly wait use less";
        warn("W252", "max", message, help);
    }
}

/// A maximum over all nodes is what they tell each other.
fn check_cluster(table: &Section<'_, '_>, spec: &ScaleSpec, etcd: Option<&EtcdSpec>) {
    let Some(most) = spec.cluster_max else {
        return;
    };
    if etcd.is_none() {
        let message = format!(
            "{} is of all nodes of a cluster, and there is no [etcd]",
            table.name("cluster_max")
        );
        let help =
            "add [etcd] with endpoints = [\"http://10.0.0.1:2379\", …]; for one node max is enough";
        table.fault("E265", "cluster_max", message, help);
    }
    if most < spec.min {
        let key = table.culprit(&["cluster_max", "min"]);
        let message = format!(
            "{} = {most} is less than min = {}, which each node has",
            table.name("cluster_max"),
            spec.min
        );
        let help = "min times the number of nodes at least: min starts whatever cluster_max says";
        table.fault("E266", key, message, help);
    }
}

/// What cannot be together.
fn check(
    outer: &Section<'_, '_>,
    table: &Section<'_, '_>,
    spec: &ScaleSpec,
    sockets: &BTreeMap<String, SocketSpec>,
) {
    let reuses = sockets.values().any(|socket| socket.reuse_port);
    let has_socket = !sockets.is_empty();
    let percent = |share: u32| format!("{}%", f64::from(share) / 10_000.0);
    if outer.origin("workers") == Some(Origin::Own) {
        let message = format!(
            "{} has a fixed size and one that follows the load",
            outer.path
        );
        let help = "leave workers out; scale.min and scale.max say how many";
        outer.fault("E250", "workers", message, help);
    }
    if spec.min > spec.max {
        let key = table.culprit(&["min", "max"]);
        let message = format!(
            "{} = {} is more than max = {}",
            table.name("min"),
            spec.min,
            spec.max
        );
        table.fault(
            "E254",
            key,
            message,
            "a fleet of one size has workers, and no scale",
        );
    }
    if spec.high > HIGH_MAX {
        let message = format!(
            "{} = {} is never seen for long",
            table.name("high"),
            percent(spec.high)
        );
        table.fault("E255", "high", message, "95% at most; 80% is usual");
    }
    if spec.target >= spec.high {
        let key = table.culprit(&["target", "high"]);
        let message = format!(
            "{} = {} is not below high = {}",
            table.name("target"),
            percent(spec.target),
            percent(spec.high)
        );
        table.fault(
            "E256",
            key,
            message,
            "it grows above high to land at target; 60% and 80% are usual",
        );
    }
    if spec.min == 0 && !has_socket {
        let message = format!(
            "{} = 0, and nobody could wake it: it has no socket of ours",
            table.name("min")
        );
        let help = format!("add [{}.socket.NAME], or min = 1", outer.path);
        table.fault("E257", "min", message, &help);
    }
    let asks = spec.uses(Signal::Queue);
    if (spec.source.is_some() || table.origin("queue_per_worker").is_some()) && !asks {
        let key = table.culprit(&["source", "queue_per_worker"]);
        let message = format!("{} is not used: signals has no \"queue\"", table.name(key));
        table.fault(
            "E258",
            key,
            message,
            "signals = [\"cpu\", \"backlog\", \"queue\"]",
        );
    }
    if asks && table.origin("queue_per_worker").is_none() {
        let message = format!(
            "{} follows a queue, and does not say how much of it is one worker's work",
            table.path
        );
        table.fault("E259", "signals", message, "add queue_per_worker = 10, say");
    }
    if spec.up_window < UP_WINDOW_MIN {
        let message = format!(
            "{} = {} holds no two decisions, which have to agree",
            table.name("up_window"),
            spec.up_window
        );
        table.fault(
            "E263",
            "up_window",
            message,
            "10s, which is two decisions; a larger min is what makes it quicker",
        );
    }
    if reuses {
        let message = format!(
            "{} has a listening socket for each worker (reuse_port), and workers come and go",
            outer.path
        );
        outer.fault(
            "E264",
            "socket",
            message,
            "leave reuse_port out: connections in the queue of one that goes would wait for ever",
        );
    }
    if outer.section("singleton").place().is_some() {
        let message = format!(
            "{} runs under a lock, which says how many there are",
            outer.path
        );
        table.fault(
            "E260",
            "min",
            message,
            "leave scale out; singleton.slots says how many",
        );
    }
}
