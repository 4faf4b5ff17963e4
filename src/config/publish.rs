//! `[fleet.NAME.publish]`: where a fleet's workers are found, and who is told.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Component, Path, PathBuf},
};

use crate::{
    config::{
        commands::{Placeholders, Programs},
        document::Place,
        fault::nearest,
        forms, process,
        records::{self, Claims, Whose},
        section::{Origin, Section},
        spec::*,
        template,
    },
    time::Span,
};

/// `publish.mode`.
pub(super) const MODES: [(&str, PublishMode); 2] =
    [("node", PublishMode::Node), ("worker", PublishMode::Worker)];

/// Most files of one fleet: each has a few bytes of its row.
const FILES_MAX: usize = 16;

/// Who polls needs two of its polls to notice; HAProxy's agent-inter is 2 s unless it says otherwise.
const AGENT_FLOOR: Span = Span::secs(4);
/// A reload is held back for up to a second, and takes a moment.
const FILE_FLOOR: Span = Span::secs(2);

/// The same if nobody says, and nobody who is told needs longer.
const DEREGISTER_DELAY: Span = Span::secs(5);

/// Where its parts stand, for what holds between fleets.
#[derive(Default)]
pub(super) struct Places {
    pub(super) agent: Option<Place>,
    pub(super) files: Vec<Place>,
    pub(super) records: Claims,
}

/// Reads it; none if there is no such table.
pub(super) fn publish(
    section: &Section<'_, '_>,
    whose: Whose<'_>,
    ports: Option<(u16, u16)>,
    sockets: &BTreeMap<String, SocketSpec>,
    placeholders: &Placeholders<'_, '_>,
) -> (Option<PublishSpec>, Places) {
    let table = section.section("publish");
    if table.is_absent() {
        return (None, Places::default());
    }
    let mode = table.word("mode", &MODES).unwrap_or(PublishMode::Node);
    let found = match mode {
        PublishMode::Node => of_node(&table, ports, sockets),
        PublishMode::Worker => of_workers(&table, ports),
    };
    let address = table.parsed("address", &forms::HOST);
    let (port, reached) = found.unwrap_or((0, Some(Ipv4Addr::LOCALHOST.into())));
    if reached.is_none() && table.value("address").is_none() {
        let message = format!(
            "{} does not say at which address others reach it: its socket listens on all of them",
            table.path
        );
        let help = "add address = \"10.0.0.5\", an address of this machine; \"127.0.0.1\" for a balancer on it";
        table.fault("E230", "address", message, help);
    }
    let environment = process::own_environment(table.reader.around);
    let programs = Programs {
        placeholders,
        search: environment.get("PATH").cloned().unwrap_or_default(),
        dir: table.base().to_owned(),
    };
    let agent = table.parsed("haproxy_agent", &forms::AGENT_ADDRESS);
    let tables = table.sections("file");
    if tables.len() > FILES_MAX {
        let message = format!(
            "{} has {} files; a fleet can have {FILES_MAX}",
            table.path,
            tables.len()
        );
        table.fault("E239", "file", message, "use fewer");
    }
    let files = tables
        .iter()
        .map(|one| file(one, mode, &programs))
        .collect();
    let address = address
        .or(reached.map(|ip| ip.to_string()))
        .unwrap_or_default();
    let (records, claims) = records::records(&table, whose, mode, &address);
    let places = Places {
        agent: table.place_of("haproxy_agent"),
        files: tables
            .iter()
            .filter_map(|one| one.place_of("path"))
            .collect(),
        records: claims,
    };
    if let (Some((low, high)), Some(agent)) = (ports, agent)
        && (low..=high).contains(&agent.port())
    {
        let message = format!(
            "{} = {agent} is a port of a worker: port_range is {low}-{high}",
            table.name("haproxy_agent")
        );
        let help = "give the agent a port of its own";
        table.fault("E241", "haproxy_agent", message, help);
    }
    let spec = PublishSpec {
        mode,
        address,
        port,
        files,
        haproxy_agent: agent,
        environment,
        records,
    };
    table.finish();
    (Some(spec), places)
}

/// The port that all workers of this node share, and the address that follows from its socket: none if that is every address.
fn of_node(
    table: &Section<'_, '_>,
    ports: Option<(u16, u16)>,
    sockets: &BTreeMap<String, SocketSpec>,
) -> Option<(u16, Option<IpAddr>)> {
    let port = table.integer("port", 1, 65_535).map(|port| port as u16);
    let named = table.string("socket");
    if port.is_some() && named.is_some() {
        let message = format!(
            "{} and {} say the port twice",
            table.name("port"),
            table.name("socket")
        );
        table.fault("E160", "port", message, "keep one of them");
    }
    if let Some(port) = port {
        return Some((port, Some(Ipv4Addr::LOCALHOST.into())));
    }
    let tcp = |socket: &SocketSpec| match &socket.listen {
        ListenAddress::Tcp(address) => Some(*address),
        ListenAddress::Unix(_) => None,
    };
    let address = match named {
        Some(name) => {
            let socket = sockets.get(&name);
            let address = socket.and_then(tcp);
            if address.is_none() {
                let message = match socket {
                    Some(_) => format!("the socket `{name}` is a file: it has no port"),
                    None => format!("there is no socket `{name}`"),
                };
                let known = sockets.iter().filter(|(_, one)| tcp(one).is_some());
                let help = nearest(&name, known.map(|(name, _)| name.as_str())).map_or_else(
                    || {
                        "name one of socket.NAME that listens on TCP, or give port = 8080"
                            .to_owned()
                    },
                    |near| format!("did you mean {near:?}?"),
                );
                table.fault("E231", "socket", message, &help);
            }
            address?
        }
        None => {
            let all: Vec<_> = sockets.values().filter_map(tcp).collect();
            let [address] = all[..] else {
                let message = format!("{} does not say which port", table.path);
                let help = match (all.len(), ports) {
                    (0, Some(_)) => {
                        "add mode = \"worker\": each worker has its own port of port_range"
                    }
                    (0, None) => "add port = 8080, or a socket that listens on TCP",
                    _ => "add socket = \"NAME\": it has several that listen on TCP",
                };
                table.fault("E232", "port", message, help);
                return None;
            };
            address
        }
    };
    if address.port() == 0 {
        let message = format!("{} would publish port 0: the kernel chooses it", table.path);
        table.fault(
            "E232",
            "socket",
            message,
            "give the socket a port of its own",
        );
    }
    let ip = address.ip();
    Some((address.port(), (!ip.is_unspecified()).then_some(ip)))
}

/// The port of slot 0; those of the others follow it. Nobody says where workers listen; they are told a port alone.
fn of_workers(table: &Section<'_, '_>, ports: Option<(u16, u16)>) -> Option<(u16, Option<IpAddr>)> {
    for key in ["port", "socket"] {
        if table.value(key).is_some() {
            let message = format!(
                "{} means nothing with mode = \"worker\": each worker has its own port",
                table.name(key)
            );
            let help = "remove it; port_range says which ports they are";
            table.fault("E233", key, message, help);
        }
    }
    if ports.is_none() {
        let message = format!(
            "{} has mode = \"worker\", and its workers have no ports of their own",
            table.path
        );
        let help = "add port_range = \"18000-18063\" to the fleet; or mode = \"node\" for a socket that they share";
        table.fault("E234", "mode", message, help);
    }
    ports.map(|(low, _)| (low, Some(Ipv4Addr::LOCALHOST.into())))
}

fn file(
    table: &Section<'_, '_>,
    mode: PublishMode,
    programs: &Programs<'_, '_, '_>,
) -> PublishedFile {
    let timeout = table.span("timeout").unwrap_or(Span::secs(10));
    if timeout.is_forever() || timeout == Span::ZERO {
        let message = format!("{} is no deadline", table.name("timeout"));
        let help = "give one: a check or reload that takes longer is killed";
        table.fault("E235", "timeout", message, help);
    }
    let command = |key| {
        table.value(key)?;
        let (program, argv) = programs.command(table, key)?;
        Some(HookSpec {
            program,
            argv,
            timeout,
            abort: true,
        })
    };
    let path = |key| {
        let typed = table.string(key).filter(|typed| !typed.is_empty());
        if typed.is_none() {
            let message = format!("{} has no `{key}`", table.path);
            let help = format!("add {key} = \"/path/to/file\"");
            table.fault("E236", key, message, &help);
        }
        typed.map(|typed| table.base().join(typed))
    };
    let template = path("template");
    if let Some(template) = &template {
        check_template(table, mode, template);
    }
    let target = path("path");
    if let Some(target) = &target {
        check_target(table, target, template.as_deref());
    }
    let shown =
        |path: Option<PathBuf>| path.map_or_else(String::new, |path| path.display().to_string());
    let spec = PublishedFile {
        template: shown(template),
        path: shown(target),
        check: command("check"),
        reload: command("reload"),
    };
    table.finish();
    spec
}

/// A path without `.` and `..`, as it is typed: nobody looks where links lead.
pub(super) fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::CurDir => {}
            Component::ParentDir if plain.file_name().is_some() => {
                plain.pop();
            }
            Component::ParentDir if plain.has_root() => {}
            Component::ParentDir
            | Component::Prefix(_)
            | Component::RootDir
            | Component::Normal(_) => plain.push(part),
        }
    }
    plain
}

/// It is replaced as a whole by a file, so it must be one, and not the one that it is made from.
fn check_target(table: &Section<'_, '_>, path: &Path, template: Option<&Path>) {
    let shown = path.display();
    if template.is_some_and(|template| plain(template) == plain(path)) {
        let message = format!("{shown} would be made from itself");
        let help = "give the template a name of its own, web.conf.j2 say";
        table.fault("E240", "path", message, help);
    }
    if let Ok(false) = table.reader.around.is_regular(path) {
        let message =
            format!("{shown} is there, and is no regular file: it would be replaced by one");
        let help = "name a file; for a directory, one in it";
        table.fault("E242", "path", message, help);
    }
}

/// It is read again whenever it is used; here, so that a wrong name, a missing brace, or a variable that nobody knows is known before.
fn check_template(table: &Section<'_, '_>, mode: PublishMode, path: &Path) {
    let shown = path.display();
    // Who opens a pipe waits for somebody who writes to it.
    let text = match table.reader.around.is_regular(path) {
        Ok(true) => table.reader.around.read(path),
        Ok(false) => Err(io::Error::other("it is no regular file")),
        Err(error) => Err(error),
    };
    match text {
        Err(error) => {
            let message = format!("cannot read the template {shown}: {error}");
            let help = "correct the path; relative ones count from the main file";
            table.fault("E237", "template", message, help);
        }
        Ok(text) => {
            let environment = minijinja::Environment::new();
            if let Err(error) = environment.template_from_str(&text) {
                let line = error.line().unwrap_or(1);
                let why = error.detail().unwrap_or("it does not parse");
                let message = format!("{shown}:{line}: {why}");
                let help =
                    "templates are Jinja: {% for e in endpoints %} {{ e.address }} {% endfor %}";
                table.fault("E238", "template", message, help);
            } else if let Err(message) = template::try_out(&shown.to_string(), &text, mode) {
                let help = "templates see fleet, node, mode, address, endpoints, draining, ready, desired and config_rev; either list may be empty";
                table.fault("E243", "template", message, help);
            }
        }
    }
}

/// How long a worker must be in no list before everybody can know, and why.
fn floor(spec: &PublishSpec) -> Option<(Span, &'static str)> {
    let agent = spec.haproxy_agent.map(|_| {
        let why = "HAProxy asks its agent every 2s, unless agent-inter says otherwise";
        (AGENT_FLOOR, why)
    });
    let file = spec.files.first().map(|_| {
        let why = "a reload is held back for up to 1s, and takes time";
        (FILE_FLOOR, why)
    });
    let records = spec.records.as_ref().and_then(records::floor);
    let all = agent.into_iter().chain(file).chain(records);
    all.max_by_key(|(floor, _)| *floor)
}

/// How long a worker is out of every list before it is told to stop, if nobody says.
pub(super) fn delay(spec: &PublishSpec) -> Span {
    floor(spec).map_or(DEREGISTER_DELAY, |(floor, _)| floor.max(DEREGISTER_DELAY))
}

/// Warns of a delay in which nobody could notice that a worker is going.
pub(super) fn check_delay(section: &Section<'_, '_>, spec: &PublishSpec, delay: Span) {
    let Some((floor, why)) = floor(spec).filter(|(floor, _)| delay < *floor) else {
        return;
    };
    let key = "deregister_delay";
    let tables = [section.section("drain"), section.section("stop")];
    let said = |origin| {
        let table = tables
            .iter()
            .find(|table| table.origin(key) == Some(origin));
        table.and_then(|table| table.place_of(key))
    };
    let place = said(Origin::Own).or_else(|| said(Origin::Inherited));
    let message = format!(
        "{}: {key} = {delay} ends before balancers know that a worker goes: {why}",
        section.path
    );
    let usual = self::delay(spec);
    let help = format!("write {key} = \"{floor}\" or more, or leave it out ({usual})");
    section.reader.warn("W230", place, message, help);
}
