//! The whole: node, http, fleets, and what holds between them.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use crate::{
    config::{
        Config, Faults, Surroundings, cron,
        document::{Kind, Place, Reader, Table},
        etcd,
        fault::nearest,
        files,
        fleet::{self, Fleet},
        forms, publish,
        section::Section,
        spec::*,
        units::count,
    },
    id::{FleetName, Revision},
};

/// Descriptors that the daemon needs whatever the fleets are: 256 connections at each of the two doors of its HTTP server, and its own.
const FDS_BASE: u64 = 640;

/// Reads, checks and resolves a configuration; all faults at once, or none.
pub fn load(path: &Path, around: &dyn Surroundings) -> Result<Config, Faults> {
    check(path, around).map(|(config, _)| config)
}

/// The same, with what works and may not be what was meant.
pub fn check(path: &Path, around: &dyn Surroundings) -> Result<(Config, Faults), Faults> {
    let reader = Reader::new(around);
    let tables = files::read_all(&reader, path);
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let top = Top::gather(&reader, tables, &base);
    // After another fault up to here, the fleets may only be unreadable.
    if top.fleets.is_empty() && reader.is_clean() {
        reader.fault(
            "E104",
            None,
            format!("{} has no fleet", path.display()),
            "",
            "add [fleet.web] with command = [\"/path/to/program\"]".to_owned(),
        );
    }
    if let Some(main) = &top.main {
        schema(main);
    }
    let node = node(&top.node);
    let http = http(&top.http);
    let etcd = etcd::etcd(&top.etcd);
    let mut fleets = Fleets::new();
    for Found {
        kind,
        name,
        section,
        place,
    } in &top.fleets
    {
        match name.parse::<FleetName>() {
            Ok(name) => {
                let fleet = match kind {
                    Named::Fleet => {
                        let home = (node.name.as_str(), etcd.as_ref());
                        fleet::fleet(&name, section, place, home)
                    }
                    Named::Cron => cron::job(&name, section, place, etcd.as_ref()),
                };
                fleets.insert(name, fleet);
            }
            Err(why) => reader.fault(
                "E103",
                Some(place.clone()),
                format!("{name:?} is not a {}'s name: {why}", kind.noun()),
                "this name",
                String::new(),
            ),
        }
    }
    check_dependencies(&reader, &mut fleets, &top.declared);
    check_sockets(&reader, &http, &fleets);
    check_files(&reader, &fleets);
    check_records(&reader, &fleets);
    check_locks(&reader, &fleets);
    check_descriptors(&reader, &fleets);
    drop(top);
    let (faults, warnings) = reader.into_findings();
    if !faults.list.is_empty() {
        return Err(faults);
    }
    let fleets = fleets
        .into_iter()
        .map(|(name, fleet)| (name, fleet.spec))
        .collect();
    let path = path.display().to_string();
    let mut config = Config {
        revision: Revision::default(),
        path,
        base: base.display().to_string(),
        node,
        http,
        etcd,
        fleets,
    };
    let text = serde_json::to_vec(&config)
        .expect("a configuration has only string keys and finite numbers");
    config.revision = Revision::of(&text);
    Ok((config, warnings))
}

/// Reads `[etcd]` and the node's name, and nothing else: what somebody needs who has one command to run. None without `[etcd]`.
pub fn membership(
    path: &Path,
    around: &dyn Surroundings,
) -> Result<Option<(EtcdSpec, String)>, Faults> {
    let reader = Reader::new(around);
    let tables = files::read_all(&reader, path);
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let top = Top::gather(&reader, tables, &base);
    let (node, etcd) = (node(&top.node), etcd::etcd(&top.etcd));
    drop(top);
    let (faults, _) = reader.into_findings();
    match faults.list.is_empty() {
        true => Ok(etcd.map(|etcd| (etcd, node.name))),
        false => Err(faults),
    }
}

/// What a named table is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Named {
    Fleet,
    Cron,
}

impl Named {
    const ALL: [Self; 2] = [Self::Fleet, Self::Cron];

    /// The table that holds all of them.
    fn key(self) -> &'static str {
        match self {
            Self::Fleet => "fleet",
            Self::Cron => "cron",
        }
    }

    fn noun(self) -> &'static str {
        match self {
            Self::Fleet => "fleet",
            Self::Cron => "job",
        }
    }
}

/// One fleet or job.
struct Found<S> {
    kind: Named,
    name: String,
    section: S,
    place: Place,
}

/// The top-level tables of all files, put together.
struct Top<'r, 'a> {
    /// The main file, if it could be read.
    main: Option<Section<'r, 'a>>,
    node: Section<'r, 'a>,
    http: Section<'r, 'a>,
    etcd: Section<'r, 'a>,
    fleets: Vec<Found<Section<'r, 'a>>>,
    /// Every name below `fleet` and `cron`, whatever stands there.
    declared: Vec<(Named, String)>,
}

impl<'r, 'a> Top<'r, 'a> {
    fn gather(reader: &'r Reader<'a>, tables: Vec<Table>, base: &Path) -> Self {
        let mut found: BTreeMap<&'static str, Table> = BTreeMap::new();
        let mut fleets: Vec<Found<Table>> = Vec::new();
        let (mut main, mut declared) = (None, Vec::new());
        for table in tables {
            let section = Section::new(reader, "", Some(table)).based(base);
            for key in ["schema", "include"] {
                if main.is_none() {
                    section.value(key);
                } else if section.refused(key).is_some() {
                    let message = format!("`{key}` belongs in the main file");
                    section.fault("E040", key, message, "remove it here");
                }
            }
            for key in ["node", "http", "etcd", "defaults"] {
                let Some(inner) = section.section(key).table() else {
                    continue;
                };
                if let Some(other) = found.get(key) {
                    let other = reader.path_of(other.file);
                    let message = format!("[{key}] is defined in {other}, too");
                    section.fault("E003", key, message, "keep it in one");
                } else {
                    found.insert(key, inner);
                }
            }
            for kind in Named::ALL {
                for entry in section.section(kind.key()).entries() {
                    declared.push((kind, entry.name.clone()));
                    let path = entry.path;
                    let Kind::Table(inner) = entry.value.kind else {
                        reader.fault(
                            "E030",
                            Some(entry.place),
                            format!("{path} must be a table"),
                            "",
                            format!("write [{path}]"),
                        );
                        continue;
                    };
                    let other = fleets.iter().find(|other| other.name == entry.name);
                    if let Some(other) = other {
                        let file = reader.path_of(other.section.file);
                        let help = match other.kind == kind {
                            true => "keep one",
                            false => "give one of them another name: both are known by it",
                        };
                        reader.fault(
                            "E003",
                            Some(entry.place),
                            format!(
                                "[{}.{}] is defined in {file}, too",
                                other.kind.key(),
                                entry.name
                            ),
                            "the second time",
                            help.to_owned(),
                        );
                    } else {
                        fleets.push(Found {
                            kind,
                            name: entry.name,
                            section: inner,
                            place: entry.place,
                        });
                    }
                }
            }
            for key in ["template"] {
                if section.refused(key).is_some() {
                    let message = format!("[{key}] is not available in this version");
                    section.fault("E102", key, message, "remove it");
                }
            }
            section.finish();
            main.get_or_insert(section);
        }
        let defaults = found.get("defaults").cloned();
        check_defaults(reader, defaults.as_ref());
        let of = |key: &str| Section::new(reader, key, found.get(key).cloned()).based(base);
        let fleets = fleets.into_iter().map(|found| {
            let path = format!("{}.{}", found.kind.key(), found.name);
            let section = Section::new(reader, &path, Some(found.section))
                .over(defaults.as_ref())
                .based(base);
            Found {
                kind: found.kind,
                name: found.name,
                section,
                place: found.place,
            }
        });
        Self {
            main,
            node: of("node"),
            http: of("http"),
            etcd: of("etcd"),
            fleets: fleets.collect(),
            declared,
        }
    }
}

/// Defaults are read as part of each fleet; here only the names at their top are checked.
fn check_defaults(reader: &Reader<'_>, defaults: Option<&Table>) {
    let section = Section::new(reader, "defaults", defaults.cloned());
    for key in [
        "user",
        "group",
        "groups",
        "env",
        "env_file",
        "umask",
        "limits",
        "session",
        "no_new_privs",
        "ready",
        "start",
        "health",
        "restart",
        "stop",
        "drain",
        "rollout",
        "log",
        "workers",
        "cwd",
        "working_dir",
        "hooks",
    ] {
        section.value(key);
    }
    section.finish();
}

fn schema(section: &Section<'_, '_>) {
    let Some(value) = section.value("schema") else {
        section.reader.fault(
            "E004",
            section.place(),
            "the file does not say which schema it follows".to_owned(),
            "",
            "begin with schema = 1".to_owned(),
        );
        return;
    };
    match value.kind {
        Kind::Integer(1) => {}
        Kind::Integer(n) => {
            let message = format!("schema {n} is unknown: this build reads schema 1");
            section.fault("E030", "schema", message, "write schema = 1");
        }
        _ => {
            section.integer("schema", 1, 1);
        }
    }
}

/// A tenth of the machine, in parts per million, is not for fleets that grow.
const RESERVE: u32 = 100_000;

fn node(section: &Section<'_, '_>) -> NodeSpec {
    let rate = section.parsed("restart_rate", &forms::RATE);
    if rate == Some(0) {
        let message = format!(
            "{} is less than one restart in 1000 s",
            section.name("restart_rate")
        );
        let help = "the slowest is \"4/h\"; fleets that shall not be restarted have restart.policy = \"never\"";
        section.fault("E106", "restart_rate", message, help);
    }
    let spec = NodeSpec {
        name: section
            .string("name")
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| section.reader.around.hostname()),
        restart_rate: rate.unwrap_or(20_000),
        restart_burst: section
            .integer("restart_burst", 1, 1_000_000)
            .unwrap_or(100) as u64,
        cpu_reserve: section
            .parsed("cpu_reserve", &forms::PERCENT)
            .unwrap_or(RESERVE),
        memory_reserve: section
            .parsed("mem_reserve", &forms::PERCENT)
            .unwrap_or(RESERVE),
    };
    section.finish();
    spec
}

fn http(section: &Section<'_, '_>) -> HttpSpec {
    let mut listen = Vec::new();
    for (text, place) in section.strings("listen").unwrap_or_default() {
        let (code, message, help) = match (forms::TCP_ADDRESS.parse)(&text) {
            Some(address) if address.ip().is_loopback() => {
                listen.push(address);
                continue;
            }
            Some(address) => (
                "E200",
                format!("{address} is not a loopback address"),
                "use 127.0.0.1 or [::1], and a proxy in front where others must read it".to_owned(),
            ),
            None => (
                "E201",
                format!("{text:?} is not an IP address and a port"),
                forms::TCP_ADDRESS.guess(&text).map_or_else(
                    || format!("give {}", forms::TCP_ADDRESS.wanted),
                    |meant| format!("write {meant:?}"),
                ),
            ),
        };
        section
            .reader
            .fault(code, Some(place), message, "here", help);
    }
    section.finish();
    HttpSpec { listen }
}

type Fleets = BTreeMap<FleetName, Fleet>;

/// Every dependency exists and none leads back to where it began; ranks follow.
fn check_dependencies(reader: &Reader<'_>, fleets: &mut Fleets, declared: &[(Named, String)]) {
    let names: Vec<FleetName> = fleets.keys().cloned().collect();
    let edges: BTreeMap<FleetName, Vec<FleetName>> = fleets
        .iter()
        .map(|(name, fleet)| (name.clone(), fleet.after.keys().cloned().collect()))
        .collect();
    for (name, fleet) in fleets.iter() {
        for (wanted, place) in &fleet.after {
            let mut meant = declared
                .iter()
                .filter(|(_, other)| other == wanted.as_str());
            match meant.next() {
                Some((Named::Fleet, _)) => continue,
                Some((Named::Cron, _)) => {
                    let message = format!(
                        "{} waits for `{wanted}`, which is a job: it comes and goes",
                        path_of(name, fleet)
                    );
                    let help = "wait for a fleet; what must run first can be a pre_start hook";
                    reader.fault(
                        "E183",
                        Some(place.clone()),
                        message,
                        "a job",
                        help.to_owned(),
                    );
                    continue;
                }
                None => {}
            }
            let others = declared
                .iter()
                .filter(|(kind, other)| *kind == Named::Fleet && other != name.as_str());
            let others = others.map(|(_, other)| other.as_str());
            let help = nearest(wanted.as_str(), others).map_or_else(
                || "add that fleet, or remove the dependency".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            reader.fault(
                "E181",
                Some(place.clone()),
                format!(
                    "{} waits for `{wanted}`, which does not exist",
                    path_of(name, fleet)
                ),
                "no such fleet",
                help,
            );
        }
    }
    let mut known = BTreeMap::new();
    for name in &names {
        match depth(name, &edges, &mut Vec::new(), &mut known) {
            Ok(rank) => {
                if let Some(fleet) = fleets.get_mut(name) {
                    fleet.spec.rank = rank;
                }
            }
            Err(circle) => {
                let path: Vec<&str> = circle.iter().map(FleetName::as_str).collect();
                let place = match circle.as_slice() {
                    [first, second, ..] => fleets
                        .get(first)
                        .and_then(|fleet| fleet.after.get(second).cloned()),
                    _ => None,
                };
                let message = format!("fleets wait for each other: {}", path.join(" -> "));
                reader.fault(
                    "E182",
                    place,
                    message,
                    "one of the circle",
                    "remove one of these `after` entries".to_owned(),
                );
                return;
            }
        }
    }
}

fn path_of(name: &FleetName, fleet: &Fleet) -> String {
    let kind = match fleet.spec.cron {
        Some(_) => Named::Cron,
        None => Named::Fleet,
    };
    format!("{}.{name}", kind.key())
}

fn depth(
    name: &FleetName,
    edges: &BTreeMap<FleetName, Vec<FleetName>>,
    path: &mut Vec<FleetName>,
    known: &mut BTreeMap<FleetName, u16>,
) -> Result<u16, Vec<FleetName>> {
    // Without this memory, diamonds would be walked once for each way through them.
    if let Some(rank) = known.get(name) {
        return Ok(*rank);
    }
    if let Some(at) = path.iter().position(|other| other == name) {
        let mut circle = path[at..].to_vec();
        circle.push(name.clone());
        return Err(circle);
    }
    path.push(name.clone());
    let mut rank = 0;
    for next in edges.get(name).into_iter().flatten() {
        rank = rank.max(depth(next, edges, path, known)? + 1);
    }
    path.pop();
    known.insert(name.clone(), rank);
    Ok(rank)
}

/// Two fleets cannot listen on one address.
fn check_sockets(reader: &Reader<'_>, http: &HttpSpec, fleets: &Fleets) {
    let http = http.listen.iter();
    let mut taken: BTreeMap<String, String> = http
        .map(|address| (address.to_string(), "http".to_owned()))
        .collect();
    let mut take = |ours: String, address: String, place: Option<&Place>| {
        if let Some(theirs) = taken.insert(address.clone(), ours.clone()) {
            let message = format!("{ours} and {theirs} both listen on {address}");
            let help = "give each its own address".to_owned();
            reader.fault("E132", place.cloned(), message, "taken", help);
        }
    };
    for (name, fleet) in fleets {
        for (socket, what) in &fleet.spec.sockets {
            let ours = format!("fleet.{name}.socket.{socket}");
            let place = fleet.listens.get(socket);
            take(ours, what.listen.to_string(), place);
        }
        let published = fleet.spec.publish.as_ref();
        if let Some(agent) = published.and_then(|spec| spec.haproxy_agent) {
            let ours = format!("fleet.{name}.publish.haproxy_agent");
            take(ours, agent.to_string(), fleet.published.agent.as_ref());
        }
    }
}

/// Two fleets cannot write one file.
fn check_files(reader: &Reader<'_>, fleets: &Fleets) {
    let mut taken: BTreeMap<PathBuf, &FleetName> = BTreeMap::new();
    for (name, fleet) in fleets {
        let files = fleet.spec.publish.iter().flat_map(|spec| &spec.files);
        for (file, place) in files.zip(&fleet.published.files) {
            if file.path.is_empty() {
                continue;
            }
            if let Some(other) = taken.insert(publish::plain(Path::new(&file.path)), name) {
                let message = format!("{} is published by {other}, too", file.path);
                let help = "give each its own file".to_owned();
                reader.fault("E229", Some(place.clone()), message, "taken", help);
            }
        }
    }
}

/// Two fleets cannot write one record, nor be one router.
fn check_records(reader: &Reader<'_>, fleets: &Fleets) {
    let mut taken: BTreeMap<&str, &FleetName> = BTreeMap::new();
    for (name, fleet) in fleets {
        for (what, place) in &fleet.published.records {
            if let Some(other) = taken.insert(what, name) {
                let message = format!("{what} is published by {other}, too");
                let help = "give each its own name in it".to_owned();
                reader.fault("E287", Some(place.clone()), message, "taken", help);
            }
        }
    }
}

/// All who use a lock by its name must mean the same number of slots: who comes second would wait for ever.
fn check_locks(reader: &Reader<'_>, fleets: &Fleets) {
    let mut sizes: BTreeMap<&FleetName, (u32, String)> = BTreeMap::new();
    for (name, fleet) in fleets {
        let named = fleet.spec.singleton.as_ref();
        let Some(spec) = named.filter(|spec| spec.flock.is_none()) else {
            continue;
        };
        let ours = path_of(name, fleet);
        let (slots, theirs) = sizes
            .entry(&spec.lock)
            .or_insert_with(|| (spec.slots, ours.clone()));
        if *slots != spec.slots {
            let message = format!(
                "{ours} gives the lock `{}` {}, and {theirs} gives it {slots}",
                spec.lock,
                count(spec.slots, "slot")
            );
            reader.fault(
                "E216",
                Some(fleet.place.clone()),
                message,
                "another number",
                "say the same number of slots, or give one of them another lock".to_owned(),
            );
        }
    }
}

/// What fleets need of the limit on open descriptors.
///
/// For each worker the keeper holds a pidfd and a pipe for each stream of output; the supervisor holds that pipe and the file it
/// goes to. Two for each stream, and two for a worker without any, is enough for either. The keeper holds the sockets, too.
#[derive(Clone, Copy, Default)]
struct Need {
    workers: u64,
    /// Workers more while rollouts run.
    surge: u64,
    /// Of all these, with a stderr of its own.
    separate: u64,
    sockets: u64,
    /// Held by the keeper and by the supervisor, or open while they are waited for.
    locks: u64,
}

impl Need {
    fn of(spec: &FleetSpec) -> Self {
        let (workers, surge) = (u64::from(spec.most()), u64::from(spec.rollout.max_surge));
        let slots = workers + surge;
        let separate = spec.log.sink.is_captured() && spec.process.stderr_separate;
        let sockets = spec.sockets.values();
        let published = spec.publish.as_ref();
        let agent = published.is_some_and(|spec| spec.haproxy_agent.is_some());
        Self {
            workers,
            surge,
            separate: if separate { slots } else { 0 },
            sockets: sockets
                .map(|socket| if socket.reuse_port { slots } else { 1 })
                .sum::<u64>()
                + u64::from(agent),
            locks: spec.singleton.as_ref().map_or(0, |lock| {
                let strict = u64::from(lock.bond == Bond::Strict);
                workers * (2 + strict + u64::from(lock.slots))
            }),
        }
    }

    fn plus(self, other: Self) -> Self {
        Self {
            workers: self.workers + other.workers,
            surge: self.surge + other.surge,
            separate: self.separate + other.separate,
            sockets: self.sockets + other.sockets,
            locks: self.locks + other.locks,
        }
    }

    fn total(self) -> u64 {
        FDS_BASE + 2 * (self.workers + self.surge) + 2 * self.separate + self.sockets + self.locks
    }

    /// `640 + 2 x 3001 workers + 4 sockets`.
    fn sum(self) -> String {
        let mut sum = format!("{FDS_BASE} + 2 x {}", count(self.workers, "worker"));
        if self.surge > 0 {
            sum += &format!(" + 2 x {} max_surge", self.surge);
        }
        if self.separate > 0 {
            sum += &format!(" + 2 x {} separate stderr", self.separate);
        }
        if self.sockets > 0 {
            sum += &format!(" + {}", count(self.sockets, "socket"));
        }
        sum
    }
}

fn check_descriptors(reader: &Reader<'_>, fleets: &Fleets) {
    let hard = reader.around.nofile_hard();
    let need = |fleet: &Fleet| Need::of(&fleet.spec);
    let all = fleets.values().map(need).fold(Need::default(), Need::plus);
    let total = all.total();
    if total <= hard {
        return;
    }
    let largest = fleets.values().max_by_key(|fleet| need(fleet).total());
    reader.fault(
        "E105",
        largest.map(|fleet| fleet.place.clone()),
        format!(
            "{total} open descriptors may be needed ({}); the hard limit is {hard}",
            all.sum()
        ),
        "the largest fleet",
        format!("raise LimitNOFILE= (ulimit -Hn) to {total}, or use fewer workers"),
    );
}
