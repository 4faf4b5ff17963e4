//! One `[fleet.NAME]`: the whole, and its smaller tables.

use std::collections::BTreeMap;

use crate::{
    config::{
        commands::Placeholders,
        document::{Kind, Place},
        fault::nearest,
        forms, probes, process, publish,
        records::Whose,
        scale,
        section::{Origin, Section},
        singleton,
        spec::*,
        units,
    },
    id::{FleetName, Revision},
    time::Span,
    wire::Target,
};

/// Most workers of one fleet.
const WORKERS_MAX: i64 = 20_000;

/// `restart.policy`.
pub(super) const POLICIES: [(&str, RestartPolicy); 3] = [
    ("always", RestartPolicy::Always),
    ("on-failure", RestartPolicy::OnFailure),
    ("never", RestartPolicy::Never),
];
/// `restart.then`: does it give up?
pub(super) const THEN: [(&str, bool); 2] = [("retry", false), ("fail", true)];
/// `stop.to`.
pub(super) const TARGETS: [(&str, Target); 2] =
    [("leader", Target::Leader), ("group", Target::Group)];
/// `rollout.on_failure`: does it go back?
pub(super) const ON_FAILURE: [(&str, bool); 2] = [("stop", false), ("rollback", true)];
/// `after.NAME`.
pub(super) const AFTER: [(&str, AfterState); 2] = [
    ("ready", AfterState::Ready),
    ("started", AfterState::Started),
];
/// `log.sink`.
pub(super) const SINKS: [(&str, Sink); 3] = [
    ("file", Sink::File),
    ("journal", Sink::Journal),
    ("none", Sink::None),
];
/// `log.on_full`: is output dropped?
pub(super) const ON_FULL: [(&str, bool); 2] = [("block", false), ("drop", true)];

/// A fleet as read. Where something was wrong it holds defaults: good for finding more faults, for nothing else.
pub(super) struct Fleet {
    pub(super) spec: FleetSpec,
    /// Where its name stands.
    pub(super) place: Place,
    /// Where its dependencies are named.
    pub(super) after: BTreeMap<FleetName, Place>,
    /// Where its sockets' addresses stand.
    pub(super) listens: BTreeMap<String, Place>,
    /// Where stands what it publishes.
    pub(super) published: publish::Places,
}

/// Reads a fleet; the dependency ranks are filled in later, when all fleets are known.
pub(super) fn fleet(
    name: &FleetName,
    section: &Section<'_, '_>,
    place: &Place,
    (node, etcd): (&str, Option<&EtcdSpec>),
) -> Fleet {
    let placeholders = Placeholders::of(section);
    let (process, programs) = process::process(section, &placeholders);
    let (sockets, listens) = sockets(section);
    let (after, after_places) = after(section);
    let scale = scale::scale(section, &programs, &sockets, etcd);
    let whose = Whose {
        fleet: name,
        node,
        etcd,
    };
    let ports = process.port_range;
    let (publish, published) = publish::publish(section, whose, ports, &sockets, &placeholders);
    let delay = publish.as_ref().map_or(Span::ZERO, publish::delay);
    let mut spec = FleetSpec {
        revision: Revision::default(),
        workers: section.integer("workers", 0, WORKERS_MAX).unwrap_or(1) as u32,
        sockets,
        ready: probes::ready(section, &programs),
        start: start(section),
        health: probes::health(section, &programs),
        restart: restart(section),
        stop: stop(section, delay),
        rollout: rollout(section),
        after,
        rank: 0,
        log: log(section),
        singleton: singleton::singleton(section, name, etcd, true),
        scale,
        cron: None,
        publish,
        process,
    };
    if let Some(scale) = &spec.scale {
        // As many as there are at first.
        spec.workers = scale.min;
    }
    // What may become another user could get out of reach of our signals, and of the one that our death is.
    let is_of_cluster = spec
        .singleton
        .as_ref()
        .is_some_and(SingletonSpec::is_of_cluster);
    spec.process.no_new_privs |= is_of_cluster && !section.reader.around.is_root();
    spec.revision = revision(&spec);
    check_ports(section, &spec);
    if let Some(lock) = &spec.singleton {
        singleton::check(section, lock, &spec);
    }
    if let Some(publish) = &spec.publish {
        publish::check_delay(section, publish, spec.stop.deregister_delay);
    }
    section.finish();
    Fleet {
        spec,
        place: place.clone(),
        after: after_places,
        listens,
        published,
    }
}

/// What a spawn looks like, as a number: everything that makes a running worker differ from a new one.
pub(crate) fn revision(spec: &FleetSpec) -> Revision {
    let sockets: Vec<(&String, String)> = spec
        .sockets
        .iter()
        .map(|(name, s)| (name, s.listen.to_string()))
        .collect();
    let watchdog = spec.health.watchdog;
    let text = serde_json::to_vec(&(
        &spec.process,
        sockets,
        watchdog,
        spec.log.sink.is_captured(),
        &spec.singleton,
    ))
    .expect("a specification has only string keys and finite numbers");
    Revision::of(&text)
}

/// One port for each slot there may be.
fn check_ports(section: &Section<'_, '_>, spec: &FleetSpec) {
    let Some((low, high)) = spec.process.port_range else {
        return;
    };
    let have = u32::from(high - low) + 1;
    let surge = spec.rollout.max_surge;
    let scale = spec.scale.as_ref();
    let drains = scale.map_or(0, |scale| scale.places() - scale.max);
    let slots = spec.most() + drains + surge;
    if have >= slots {
        return;
    }
    let mut also = Vec::new();
    if drains > 0 {
        also.push(format!("{drains} that drain while others start"));
    }
    if surge > 0 {
        also.push(format!("{surge} more during a rollout (rollout.max_surge)"));
    }
    let also = match &also[..] {
        [] => String::new(),
        [one] => format!(" and {one}"),
        [one, other, ..] => format!(", {one}, and {other}"),
    };
    let name = section.name("port_range");
    let message = format!(
        "{name} holds {} for {}{also}",
        units::count(have, "port"),
        units::count(spec.most(), "worker")
    );
    let last = u32::from(low) + slots - 1;
    let help = if last <= u32::from(u16::MAX) {
        format!("write port_range = \"{low}-{last}\"")
    } else {
        "begin lower, or use fewer workers".to_owned()
    };
    section.fault("E101", "port_range", message, &help);
}

fn sockets(section: &Section<'_, '_>) -> (BTreeMap<String, SocketSpec>, BTreeMap<String, Place>) {
    let all = section.section("socket");
    let (mut sockets, mut places) = (BTreeMap::new(), BTreeMap::new());
    for entry in all.entries() {
        let Some(socket) = all.entry_section(&entry) else {
            continue;
        };
        if socket.value("listen").is_none() {
            let message = format!("{} has no `listen`", socket.path);
            let help = "add listen = \"127.0.0.1:8080\"";
            socket.fault("E130", "listen", message, help);
        }
        let listen = socket.parsed("listen", &forms::LISTEN);
        let backlog = socket.integer("backlog", 1, 65_535).unwrap_or(1024) as u32;
        let reuse_port = socket.boolean("reuse_port").unwrap_or(false);
        let mode = socket.parsed("mode", &forms::SOCKET_MODE);
        socket.finish();
        let spec = listen.map(|listen| SocketSpec {
            listen,
            backlog,
            reuse_port,
            mode,
        });
        let place = socket.place_of("listen");
        sockets.extend(spec.map(|spec| (entry.name.clone(), spec)));
        places.extend(place.map(|place| (entry.name.clone(), place)));
    }
    if sockets.len() > crate::wire::SOCKETS_MAX {
        let most = crate::wire::SOCKETS_MAX;
        let message = format!(
            "{} has {} sockets; a worker can get {most}",
            section.path,
            sockets.len()
        );
        section.fault("E131", "socket", message, "use fewer");
    }
    (sockets, places)
}

fn start(section: &Section<'_, '_>) -> StartSpec {
    let table = section.section("start");
    let spec = StartSpec {
        timeout: table.span("timeout").unwrap_or(Span::secs(60)),
        parallel: table.integer("parallel", 0, 10_000).unwrap_or(0) as u32,
    };
    table.finish();
    spec
}

fn restart(section: &Section<'_, '_>) -> RestartSpec {
    let table = section.section("restart");
    let backoff = table.parsed("backoff", &forms::SPAN_RANGE);
    let (backoff_min, backoff_max) = backoff.unwrap_or((Span::millis(200), Span::secs(30)));
    if backoff_min > backoff_max {
        let message = format!("{} runs backwards", table.name("backoff"));
        let help = format!("write backoff = \"{backoff_max}..{backoff_min}\"");
        table.fault("E150", "backoff", message, &help);
    }
    let spec = RestartSpec {
        policy: table
            .word("policy", &POLICIES)
            .unwrap_or(RestartPolicy::Always),
        backoff_min,
        backoff_max,
        burst: table.integer("burst", 1, 1_000_000).unwrap_or(10) as u32,
        window: table.span("window").unwrap_or(Span::secs(60)),
        healthy: table.span("healthy").unwrap_or(Span::secs(10)),
        give_up: table.word("then", &THEN).unwrap_or(false),
        success: success(&table).unwrap_or_else(|| vec![0]),
    };
    table.finish();
    spec
}

/// Exit codes that are a success.
pub(super) fn success(table: &Section<'_, '_>) -> Option<Vec<i32>> {
    let value = table.value("success")?;
    let Kind::Array(items) = &value.kind else {
        let message = format!("{} must be an array", table.name("success"));
        table.fault("E151", "success", message, "write success = [0, 3]");
        return None;
    };
    let mut codes = Vec::new();
    for item in items {
        match item.kind {
            Kind::Integer(n) if (0..=255).contains(&n) => codes.push(n as i32),
            _ => table.reader.fault(
                "E151",
                Some(item.place.clone()),
                format!("{} holds {}", table.name("success"), item.describe()),
                "this one",
                "exit codes are integers from 0 to 255".to_owned(),
            ),
        }
    }
    Some(codes)
}

/// `stop`; its waiting times may be said in `drain` instead. `delay` is that of deregistration, unless one is said.
pub(super) fn stop(section: &Section<'_, '_>, delay: Span) -> StopSpec {
    let (table, drain) = (section.section("stop"), section.section("drain"));
    let either = |key| {
        let (in_stop, in_drain) = (table.span(key), drain.span(key));
        if process::prefer_first((&table, key), (&drain, key)) {
            (in_stop, &table)
        } else {
            (in_drain, &drain)
        }
    };
    let (timeout, whose) = either("timeout");
    let timeout = timeout.unwrap_or(Span::secs(30));
    if timeout.is_forever() {
        let message = format!("{} would wait for ever", whose.name("timeout"));
        let help = "give a ceiling; a worker may ask for more with EXTEND_TIMEOUT_USEC, up to stop.extend_max";
        whose.fault("E198", "timeout", message, help);
    }
    let spec = StopSpec {
        signal: table.parsed("signal", &forms::SIGNAL).unwrap_or(15),
        to: table.word("to", &TARGETS).unwrap_or(Target::Leader),
        timeout,
        extend_max: table
            .span("extend_max")
            .unwrap_or(Span::secs(600))
            .max(timeout),
        deregister_delay: either("deregister_delay").0.unwrap_or(delay),
    };
    table.finish();
    drain.finish();
    spec
}

fn rollout(section: &Section<'_, '_>) -> RolloutSpec {
    let table = section.section("rollout");
    let spec = RolloutSpec {
        max_surge: table.integer("max_surge", 0, 10_000).unwrap_or(0) as u32,
        max_unavailable: table.integer("max_unavailable", 0, 10_000).unwrap_or(1) as u32,
        min_ready: table.span("min_ready").unwrap_or(Span::ZERO),
        rollback: table.word("on_failure", &ON_FAILURE).unwrap_or(false),
    };
    if spec.max_surge == 0 && spec.max_unavailable == 0 {
        let key = table.culprit(&["max_surge", "max_unavailable"]);
        let message = format!(
            "{} allows neither one more nor one fewer worker: nothing could ever be replaced",
            table.table_of(key)
        );
        let help = "set max_surge or max_unavailable to 1";
        table.fault("E170", key, message, help);
    }
    table.finish();
    spec
}

/// What it waits for, and where that is said.
pub(super) fn after(
    section: &Section<'_, '_>,
) -> (BTreeMap<FleetName, AfterState>, BTreeMap<FleetName, Place>) {
    let table = section.section("after");
    let (mut after, mut places) = (BTreeMap::new(), BTreeMap::new());
    for entry in table.entries() {
        let fault = |code, place: &Place, message, help| {
            let place = Some(place.clone());
            table.reader.fault(code, place, message, "", help);
        };
        let text = match &entry.value.kind {
            Kind::String(text) => text.as_str(),
            _ => "",
        };
        let state = AFTER.iter().find(|(word, _)| *word == text);
        if state.is_none() {
            let message = format!(
                "{}: a fleet can be waited for until it is \"ready\" or \"started\"",
                entry.path
            );
            let near = nearest(text, AFTER.map(|(word, _)| word)).unwrap_or("ready");
            let help = format!("write {} = {near:?}", entry.name);
            fault("E180", &entry.value.place, message, help);
        }
        match entry.name.parse::<FleetName>() {
            Ok(fleet) => {
                let state = state.map_or(AfterState::Ready, |(_, state)| *state);
                after.insert(fleet.clone(), state);
                places.insert(fleet, entry.place);
            }
            Err(why) => {
                let message = format!("{:?} is not a name: {why}", entry.name);
                fault("E103", &entry.place, message, String::new());
            }
        }
    }
    (after, places)
}

pub(super) fn log(section: &Section<'_, '_>) -> LogSpec {
    let table = section.section("log");
    // Where stderr goes is part of the process, and read there.
    table.value("stderr");
    let spec = LogSpec {
        sink: table.word("sink", &SINKS).unwrap_or(Sink::File),
        rotate_size: table.size("rotate_size").unwrap_or(8 << 20),
        max_size: table.size("max_size").unwrap_or(64 << 20),
        drop: table.word("on_full", &ON_FULL).unwrap_or(false),
        buffer: table.size("buffer").unwrap_or(65_536),
    };
    if spec.rotate_size < 4096 || spec.max_size / 2 < spec.rotate_size {
        let key = table.culprit(&["max_size", "rotate_size"]);
        let message = format!(
            "{}: rotate_size {} and max_size {} leave no room for a whole old file",
            table.table_of(key),
            units::show_size(spec.rotate_size),
            units::show_size(spec.max_size)
        );
        let help = "rotate_size is at least 4KiB and max_size at least twice rotate_size";
        table.fault("E190", key, message, help);
    }
    if !(4096..=16 << 20).contains(&spec.buffer) {
        let name = table.name("buffer");
        let message = format!(
            "{name} = {} is out of bounds",
            units::show_size(spec.buffer)
        );
        table.fault("E191", "buffer", message, "a pipe holds from 4KiB to 16MiB");
    }
    check_sink(&table, spec.sink);
    table.finish();
    spec
}

/// The journal has no files to rotate. Sizes that a fleet with a sink of its own inherits are meant for others.
fn check_sink(table: &Section<'_, '_>, sink: Sink) {
    if sink != Sink::Journal {
        return;
    }
    for key in ["rotate_size", "max_size"] {
        let origin = table.origin(key);
        if origin == Some(Origin::Own) || origin.is_some() && origin == table.origin("sink") {
            let message = format!("{} means nothing with sink = \"journal\"", table.name(key));
            let help = "remove it: journald has its own limits (SystemMaxUse= in journald.conf)";
            table.fault("E192", key, message, help);
        }
    }
}
