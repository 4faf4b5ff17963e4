//! Questions to a worker: is it ready, is it still well?

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

/// What a probe is for.
#[derive(Clone, Copy)]
enum Asks {
    Ready,
    Health,
}

/// Of one fleet for its health, unless said otherwise.
const RESTARTS_PER_MINUTE: u32 = 6;

const KINDS: [&str; 3] = ["tcp", "http", "exec"];

pub(super) fn ready(section: &Section<'_, '_>, programs: &Programs<'_, '_, '_>) -> ReadySpec {
    let Some(value) = section.value("ready") else {
        return ReadySpec::Spawned;
    };
    let text = match &value.kind {
        Kind::Table(_) => {
            let table = section.tables("ready");
            let probe = probe(&table, programs, Asks::Ready);
            table.finish();
            if probe.is_none() {
                no_kind(&table, "ready", section);
            }
            return probe.map_or(ReadySpec::Spawned, ReadySpec::Probe);
        }
        Kind::String(text) => text.as_str(),
        _ => "",
    };
    if let Some(delay) = text.strip_prefix("delay=") {
        return (forms::SPAN.parse)(delay).map_or_else(
            || {
                let help = forms::SPAN.guess(delay).map_or_else(
                    || "write \"delay=2s\"".to_owned(),
                    |meant| format!("write \"delay={meant}\""),
                );
                section.fault("E140", "ready", format!("{text:?} has no duration"), &help);
                ReadySpec::Spawned
            },
            ReadySpec::Delay,
        );
    }
    match text {
        "notify" => ReadySpec::Notify,
        "spawned" => ReadySpec::Spawned,
        _ => {
            let help = nearest(text, ["notify", "spawned"]).map_or_else(
                || "\"notify\", \"spawned\", \"delay=2s\", or a probe such as { tcp = \"127.0.0.1:8080\" }".to_owned(),
                |near| format!("did you mean {near:?}?"),
            );
            let message = format!("{} cannot be {}", section.name("ready"), value.describe());
            section.fault("E141", "ready", message, &help);
            ReadySpec::Spawned
        }
    }
}

pub(super) fn health(section: &Section<'_, '_>, programs: &Programs<'_, '_, '_>) -> HealthSpec {
    let table = section.section("health");
    if table.is_absent() {
        return HealthSpec {
            restarts_per_minute: RESTARTS_PER_MINUTE,
            ..HealthSpec::default()
        };
    }
    let spec = HealthSpec {
        watchdog: table.span("watchdog"),
        probe: probe(&table, programs, Asks::Health),
        restarts_per_minute: table
            .integer("restarts_per_minute", 0, 100_000)
            .map_or(RESTARTS_PER_MINUTE, |times| times as u32),
    };
    table.finish();
    // What is only inherited may be there for other fleets, which do say how.
    let mut details = ["interval", "timeout", "fail"].into_iter();
    if spec.probe.is_none() && details.any(|key| table.origin(key) == Some(Origin::Own)) {
        no_kind(&table, "health", section);
    }
    spec
}

/// There is no probe; unless one was tried, says that its kind is missing.
fn no_kind(table: &Section<'_, '_>, key: &str, outer: &Section<'_, '_>) {
    if KINDS.iter().any(|kind| table.origin(kind).is_some()) {
        return;
    }
    let message = format!("{} does not say what to ask", outer.name(key));
    let help = "add tcp = \"127.0.0.1:8080\", http = \"http://127.0.0.1:8080/healthz\", or exec = [\"/path/to/program\"]";
    outer.fault("E143", key, message, help);
}

/// `{ tcp | http | exec = …, interval, timeout, fail or pass }`; none if none of the three is there and right.
fn probe(
    table: &Section<'_, '_>,
    programs: &Programs<'_, '_, '_>,
    asks: Asks,
) -> Option<ProbeSpec> {
    let timeout = table.span("timeout").unwrap_or(Span::secs(2));
    let usual = match asks {
        Asks::Ready => Span::millis(500),
        Asks::Health => Span::secs(5),
    };
    let interval = table.span("interval").unwrap_or(usual);
    let times = |key| table.integer(key, 1, 1_000).map(|times| times as u32);
    // A worker that is not ready yet cannot fail; one that is has nothing to pass.
    let (fail, pass) = match asks {
        Asks::Ready => (None, times("pass")),
        Asks::Health => (times("fail"), None),
    };
    let tcp = table.parsed("tcp", &forms::PROBE_ADDRESS);
    let http = table.parsed("http", &forms::PROBE_URL);
    let http_texts = http.iter().flat_map(|(address, path)| [address, path]);
    let texts = tcp.iter().map(|text| ("tcp", text));
    for (key, text) in texts.chain(http_texts.map(|text| ("http", text))) {
        if let Some(place) = table.place_of(key) {
            programs.placeholders.check(text, &place);
        }
    }
    let exec = table
        .value("exec")
        .and_then(|_| programs.command(table, "exec"));
    let exec = exec.map(|(program, argv)| HookSpec {
        program,
        argv,
        timeout,
        abort: true,
    });
    let kind = match one_kind(table)? {
        "tcp" => ProbeKind::Tcp(tcp?),
        "http" => http.map(|(address, path)| ProbeKind::Http { address, path })?,
        _ => ProbeKind::Exec(exec?),
    };
    Some(ProbeSpec {
        kind,
        interval: interval.max(Span::millis(10)),
        timeout,
        fail: fail.unwrap_or(3),
        pass: pass.unwrap_or(1),
    })
}

/// The one kind that is asked for: the table's own wins over what it inherits.
fn one_kind(table: &Section<'_, '_>) -> Option<&'static str> {
    let from = |origin| {
        let kinds = KINDS.into_iter();
        kinds.filter(move |kind| table.origin(kind) == Some(origin))
    };
    let mut kinds: Vec<&'static str> = from(Origin::Own).collect();
    if kinds.is_empty() {
        kinds = from(Origin::Inherited).collect();
    }
    if let [first, second, ..] = kinds[..] {
        let message = format!("{} asks in more than one way", table.table_of(first));
        table.fault("E142", second, message, "choose one of tcp, http, exec");
    }
    kinds.first().copied()
}
