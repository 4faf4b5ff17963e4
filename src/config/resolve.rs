//! The whole: node, http, fleets, and what holds between them.

use std::{collections::BTreeMap, net::SocketAddr, path::Path};

use crate::{
    config::{
        Config, Faults, Surroundings,
        document::{Kind, Place, Reader, Section, Table},
        fault::nearest,
        fleet,
        spec::*,
        units,
    },
    id::{FleetName, Revision},
};

/// Descriptors that the daemon needs whatever the fleets are.
const FDS_BASE: u64 = 256;

/// Reads, checks and resolves a configuration; all faults at once, or none.
pub fn load(path: &Path, around: &dyn Surroundings) -> Result<Config, Faults> {
    let reader = Reader::new(around);
    let tables = reader.read_all(path);
    let base = path.parent().unwrap_or(Path::new("")).to_owned();
    let top = Top::gather(&reader, tables, &base);
    let node = node(&top.node);
    let http = http(&top.http);
    let mut fleets = BTreeMap::new();
    for (name, section, place) in &top.fleets {
        match name.parse::<FleetName>() {
            Ok(name) => {
                fleets.extend(fleet::fleet(section).map(|spec| (name, (spec, place.clone()))));
            }
            Err(why) => {
                reader.fault(
                    "E103",
                    Some(place.clone()),
                    format!("{name:?} is not a fleet's name: {why}"),
                    "this name",
                    String::new(),
                );
            }
        }
    }
    check_dependencies(&reader, &mut fleets);
    check_sockets(&reader, &fleets);
    check_descriptors(&reader, &fleets);
    if top.fleets.is_empty() && !top.broken {
        let help = "add [fleet.web] with command = [\"/path/to/program\"]".to_owned();
        reader.fault(
            "E104",
            None,
            format!("{} has no fleet", path.display()),
            "",
            help,
        );
    }
    drop(top);
    let faults = reader.into_faults();
    if !faults.list.is_empty() {
        return Err(faults);
    }
    let fleets = fleets
        .into_iter()
        .map(|(name, (spec, _))| (name, spec))
        .collect();
    let path = path.display().to_string();
    let mut config = Config {
        revision: Revision::default(),
        path,
        base: base.display().to_string(),
        node,
        http,
        fleets,
    };
    let text = serde_json::to_vec(&config)
        .expect("a configuration has only string keys and finite numbers");
    config.revision = Revision::of(&text);
    Ok(config)
}

/// The top-level tables of all files, put together.
struct Top<'r, 'a> {
    node: Section<'r, 'a>,
    http: Section<'r, 'a>,
    fleets: Vec<(String, Section<'r, 'a>, Place)>,
    broken: bool,
}

impl<'r, 'a> Top<'r, 'a> {
    fn gather(reader: &'r Reader<'a>, tables: Vec<Table>, base: &Path) -> Self {
        let mut found: BTreeMap<&'static str, Table> = BTreeMap::new();
        let mut fleets: Vec<(String, Table, Place)> = Vec::new();
        let broken = tables.is_empty();
        for (number, table) in tables.into_iter().enumerate() {
            let section = Section::new(reader, "", vec![table]).based(base);
            if number == 0 {
                schema(&section);
                section.value("include");
            }
            for key in ["node", "http", "defaults"] {
                let Some(inner) = section.section(key).table() else {
                    continue;
                };
                if found.contains_key(key) {
                    section.fault(
                        "E003",
                        key,
                        format!("[{key}] is defined in two files"),
                        "keep it in one",
                    );
                } else {
                    found.insert(key, inner);
                }
            }
            for (name, place, value) in section.section("fleet").entries() {
                let Kind::Table(inner) = value.kind else {
                    let message = format!("fleet.{name} must be a table");
                    reader.fault(
                        "E030",
                        Some(place),
                        message,
                        "",
                        format!("write [fleet.{name}]"),
                    );
                    continue;
                };
                if fleets.iter().any(|(other, ..)| *other == name) {
                    reader.fault(
                        "E003",
                        Some(place),
                        format!("[fleet.{name}] is defined in two files"),
                        "the second time",
                        "keep one".to_owned(),
                    );
                } else {
                    fleets.push((name, inner, place));
                }
            }
            for key in ["etcd", "cron", "template"] {
                if section.value(key).is_some() {
                    section.fault(
                        "E102",
                        key,
                        format!("[{key}] is not available in this version"),
                        "remove it",
                    );
                }
            }
            section.finish();
        }
        let defaults = found.get("defaults").cloned();
        check_defaults(reader, defaults.as_ref());
        let of = |key: &str| {
            Section::new(reader, key, found.get(key).cloned().into_iter().collect()).based(base)
        };
        let fleets = fleets.into_iter().map(|(name, table, place)| {
            let section = Section::new(reader, &format!("fleet.{name}"), vec![table])
                .over(defaults.as_ref())
                .based(base);
            (name, section, place)
        });
        Self {
            node: of("node"),
            http: of("http"),
            fleets: fleets.collect(),
            broken,
        }
    }
}

/// Defaults are read as part of each fleet; here only their names are checked, once.
fn check_defaults(reader: &Reader<'_>, defaults: Option<&Table>) {
    let section = Section::new(reader, "defaults", defaults.cloned().into_iter().collect());
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
    if section.value("schema").is_none() {
        section.reader.fault(
            "E004",
            section.place(),
            "the file does not say which schema it follows".to_owned(),
            "",
            "begin with schema = 1".to_owned(),
        );
    } else {
        section.integer("schema", 1, 1);
    }
}

fn node(section: &Section<'_, '_>) -> NodeSpec {
    let spec = NodeSpec {
        name: section
            .string("name")
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| section.reader.around.hostname()),
        restart_rate: section
            .parsed(
                "restart_rate",
                "a rate such as \"20/s\"",
                units::rate_per_kilosecond,
            )
            .unwrap_or(20_000),
        restart_burst: section
            .integer("restart_burst", 1, 1_000_000)
            .unwrap_or(100) as u64,
    };
    section.finish();
    spec
}

fn http(section: &Section<'_, '_>) -> HttpSpec {
    let mut listen = Vec::new();
    for (text, place) in section.strings("listen").unwrap_or_default() {
        match text.parse::<SocketAddr>() {
            Ok(address) if address.ip().is_loopback() => listen.push(address),
            Ok(address) => {
                let help = "use 127.0.0.1 or [::1], and a proxy in front where others must read it"
                    .to_owned();
                section.reader.fault(
                    "E200",
                    Some(place),
                    format!("{address} is not a loopback address"),
                    "here",
                    help,
                );
            }
            Err(_) => {
                let help = "write ADDRESS:PORT, such as \"127.0.0.1:9640\"".to_owned();
                section.reader.fault(
                    "E201",
                    Some(place),
                    format!("{text:?} is not an address with a port"),
                    "here",
                    help,
                );
            }
        }
    }
    section.finish();
    HttpSpec { listen }
}

type Fleets = BTreeMap<FleetName, (FleetSpec, Place)>;

/// Every dependency exists and none leads back to where it began; ranks follow.
fn check_dependencies(reader: &Reader<'_>, fleets: &mut Fleets) {
    let names: Vec<FleetName> = fleets.keys().cloned().collect();
    let edges: BTreeMap<FleetName, Vec<FleetName>> = fleets
        .iter()
        .map(|(name, (spec, _))| (name.clone(), spec.after.keys().cloned().collect()))
        .collect();
    for (name, (spec, place)) in fleets.iter() {
        for wanted in spec
            .after
            .keys()
            .filter(|wanted| !edges.contains_key(*wanted))
        {
            let help = nearest(wanted.as_str(), names.iter().map(FleetName::as_str)).map_or_else(
                || "add that fleet, or remove the dependency".to_owned(),
                |near| format!("did you mean `{near}`?"),
            );
            reader.fault(
                "E181",
                Some(place.clone()),
                format!("fleet.{name} waits for `{wanted}`, which does not exist"),
                "this fleet",
                help,
            );
        }
    }
    let mut known = BTreeMap::new();
    for name in &names {
        match depth(name, &edges, &mut Vec::new(), &mut known) {
            Ok(rank) => {
                if let Some((spec, _)) = fleets.get_mut(name) {
                    spec.rank = rank;
                }
            }
            Err(circle) => {
                let path: Vec<&str> = circle.iter().map(FleetName::as_str).collect();
                let place = fleets.get(name).map(|(_, place)| place.clone());
                let message = format!("fleets wait for each other: {}", path.join(" -> "));
                reader.fault(
                    "E182",
                    place,
                    message,
                    "this fleet",
                    "remove one of the `after` entries".to_owned(),
                );
                return;
            }
        }
    }
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
fn check_sockets(reader: &Reader<'_>, fleets: &Fleets) {
    let mut taken: BTreeMap<String, String> = BTreeMap::new();
    for (name, (spec, place)) in fleets {
        for (socket, what) in &spec.sockets {
            let ours = format!("fleet.{name}.socket.{socket}");
            if let Some(theirs) = taken.insert(what.listen.to_string(), ours.clone()) {
                let message = format!("{ours} and {theirs} both listen on {}", what.listen);
                reader.fault(
                    "E132",
                    Some(place.clone()),
                    message,
                    "this fleet",
                    "give each its own address".to_owned(),
                );
            }
        }
    }
}

/// Two descriptors a worker in each process (keeper: pidfd and pipe; supervisor: pipe and file), one more for a separate stderr.
fn check_descriptors(reader: &Reader<'_>, fleets: &Fleets) {
    let hard = reader.around.nofile_hard();
    let each = |spec: &FleetSpec| {
        let streams = if spec.process.stderr_separate { 4 } else { 2 };
        u64::from(spec.workers + spec.rollout.max_surge) * streams.max(1 + streams / 2)
            + spec.sockets.len() as u64
    };
    let workers: u64 = fleets
        .values()
        .map(|(spec, _)| u64::from(spec.workers))
        .sum();
    let needed = FDS_BASE + fleets.values().map(|(spec, _)| each(spec)).sum::<u64>();
    if needed > hard {
        let place = fleets
            .values()
            .max_by_key(|(spec, _)| each(spec))
            .map(|(_, place)| place.clone());
        let message = format!(
            "{workers} workers need {needed} open descriptors ({FDS_BASE} + 2 for each worker and stream); the hard limit is {hard}"
        );
        reader.fault(
            "E105",
            place,
            message,
            "the largest fleet",
            format!("raise LimitNOFILE= (ulimit -Hn) to {needed}, or use fewer workers"),
        );
    }
}
