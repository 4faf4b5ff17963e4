//! `publish.traefik`, `publish.coredns`, `[[publish.kv]]`: what stands in etcd of a fleet beside its canonical records.
//!
//! Both readers are strict in their own ways: a key that a Traefik does not know spoils its whole tree, and a CoreDNS makes names of what
//! are keys. So there are no free keys in their trees, and everything that becomes part of one is looked at here.

use std::net::IpAddr;

use crate::{
    config::{document::Place, section::Section, spec::*, template},
    id::FleetName,
    time::Span,
};

/// `publish.traefik.version`.
pub(super) const VERSIONS: [(&str, TraefikVersion); 2] =
    [("v3", TraefikVersion::V3), ("v2", TraefikVersion::V2)];
/// `publish.traefik.protocol`.
pub(super) const PROTOCOLS: [(&str, TraefikProtocol); 3] = [
    ("http", TraefikProtocol::Http),
    ("tcp", TraefikProtocol::Tcp),
    ("udp", TraefikProtocol::Udp),
];
const SCHEMES: [(&str, &str); 3] = [("http", "http"), ("https", "https"), ("h2c", "h2c")];

/// Most `[[publish.kv]]` of one fleet: all records of an endpoint go into one transaction.
const KV_MAX: usize = 16;
/// Everything of ours lies there.
const OURS: &str = "/leasehold/";
/// A DNS label has so many characters at most.
const LABEL_MAX: usize = 63;

/// Traefik looks at changes every two seconds, and must hear of them.
pub(super) const TRAEFIK_FLOOR: Span = Span::secs(3);
/// So long resolvers hold a name beyond its time.
const RESOLVER_HOLD: Span = Span::secs(5);

/// Whose records they are.
#[derive(Clone, Copy)]
pub(super) struct Whose<'a> {
    pub(super) fleet: &'a FleetName,
    pub(super) node: &'a str,
    pub(super) etcd: Option<&'a EtcdSpec>,
}

/// What no other fleet may have, and where it is said.
pub(super) type Claims = Vec<(String, Place)>;

/// Reads them; none without `[etcd]`.
pub(super) fn records(
    table: &Section<'_, '_>,
    whose: Whose<'_>,
    mode: PublishMode,
    address: &str,
) -> (Option<RecordsSpec>, Claims) {
    if whose.etcd.is_none() {
        for key in ["traefik", "coredns", "kv"] {
            if table.value(key).is_some() {
                let message = format!("{} needs etcd, and there is no [etcd]", table.name(key));
                let help = "add [etcd] with endpoints = [\"http://10.0.0.1:2379\"]; without it there are rendered files ([[fleet.NAME.publish.file]]), haproxy_agent and GET /v1/endpoints";
                table.fault("E280", key, message, help);
            }
        }
    }
    check_reach(table, whose, address);
    let mut claims = Claims::new();
    let mut claim = |key: &str, what: String| {
        claims.extend(table.place_of(key).map(|place| (what, place)));
    };
    let traefik = traefik(table, whose);
    if let Some(spec) = &traefik {
        let protocol = word(&PROTOCOLS, spec.protocol);
        claim(
            "traefik",
            format!("{}/{protocol}/{}", spec.rootkey, spec.router),
        );
    }
    let coredns = coredns(table, whose, mode, address);
    if let Some(spec) = &coredns {
        claim("coredns", coredns_path(spec));
    }
    let (kv, keys) = kv(table, whose, mode, traefik.as_ref());
    claims.extend(keys);
    let spec = RecordsSpec {
        traefik,
        coredns,
        kv,
    };
    (whose.etcd.map(|_| spec), claims)
}

/// Others read it: an address that means another machine on each of them is of no use, unless all of it is one machine's trial.
fn check_reach(table: &Section<'_, '_>, whose: Whose<'_>, address: &str) {
    let is_here = |host: &str| {
        let ip = host.trim_matches(['[', ']']).parse();
        host == "localhost" || ip.is_ok_and(|ip: IpAddr| ip.is_loopback())
    };
    let host = |endpoint: &String| {
        let place = endpoint.split_once("://").map_or("", |(_, place)| place);
        is_here(place.rsplit_once(':').map_or(place, |(host, _)| host))
    };
    let elsewhere = whose
        .etcd
        .is_some_and(|etcd| !etcd.endpoints.iter().all(host));
    if elsewhere && is_here(address) {
        let message = format!(
            "{}: its records in etcd say {address}, which is another machine to everybody who reads them elsewhere",
            table.path
        );
        let help = "add address = \"10.0.0.5\", an address of this machine";
        let place = table.place_of("address");
        table.reader.warn("W280", place, message, help.to_owned());
    }
}

/// How long a worker must be in no list before everybody can know, and why.
pub(super) fn floor(spec: &RecordsSpec) -> Option<(Span, &'static str)> {
    if let Some(coredns) = &spec.coredns {
        let floor = Span::secs(u64::from(coredns.ttl)).plus(RESOLVER_HOLD);
        return Some((
            floor.max(Span::secs(10)),
            "resolvers hold a name for its ttl, and some time beyond",
        ));
    }
    let why = "Traefik looks at what has changed every 2s";
    spec.traefik.as_ref().map(|_| (TRAEFIK_FLOOR, why))
}

pub(super) fn word<T: PartialEq>(words: &[(&'static str, T)], meaning: T) -> &'static str {
    let found = words.iter().find(|(_, one)| *one == meaning);
    found.map_or("", |(word, _)| word)
}

fn traefik(table: &Section<'_, '_>, whose: Whose<'_>) -> Option<TraefikSpec> {
    let table = table.section("traefik");
    if table.is_absent() {
        return None;
    }
    let version = table.word("version", &VERSIONS);
    if table.value("version").is_none() {
        let message = format!("{} does not say which Traefik reads it", table.path);
        let help = "version = \"v3\" or \"v2\": a key that it does not know spoils everything that it reads from etcd";
        table.fault("E281", "version", message, help);
    }
    let version = version.unwrap_or(TraefikVersion::V3);
    let protocol = table.word("protocol", &PROTOCOLS);
    let protocol = protocol.unwrap_or(TraefikProtocol::Http);
    let name = |key, default: String| {
        let typed = table.string(key).unwrap_or(default);
        let parts: Vec<&str> = match key {
            "rootkey" => typed.split('/').collect(),
            _ => vec![&typed],
        };
        if !parts.iter().all(|part| is_plain(part)) {
            let message = format!("{:?} is no name in Traefik's tree", typed);
            let help = format!("{key} = \"NAME\" of letters, digits, `-` and `_`");
            table.fault("E283", key, message, &help);
        }
        typed
    };
    let rootkey = name("rootkey", "traefik".to_owned());
    let router = name("router", whose.fleet.to_string());
    let strings = |key| -> Vec<String> {
        let all = table.strings(key).unwrap_or_default();
        all.into_iter().map(|(text, _)| text).collect()
    };
    let spec = TraefikSpec {
        version,
        rootkey,
        protocol,
        router,
        rule: table.string("rule"),
        entrypoints: strings("entrypoints"),
        middlewares: strings("middlewares"),
        tls: table.boolean("tls").unwrap_or(false),
        scheme: table.word("scheme", &SCHEMES).unwrap_or("http").to_owned(),
        passhostheader: table.boolean("passhostheader").unwrap_or(true),
        healthcheck: healthcheck(&table),
    };
    check_protocol(&table, &spec);
    if let Some(rule) = spec.rule.as_ref().filter(|_| version == TraefikVersion::V3)
        && let Some(matcher) = takes_several(rule)
    {
        let message = format!(
            "`{matcher}` of {} has more than one value",
            table.name("rule")
        );
        let help = format!("Traefik v3 takes one in each: {matcher}(`a`) || {matcher}(`b`)");
        table.fault("E284", "rule", message, &help);
    }
    table.finish();
    Some(spec)
}

/// What becomes part of a key of Traefik's; `@` would name another provider's.
fn is_plain(text: &str) -> bool {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_');
    !text.is_empty() && text.bytes().all(plain)
}

fn healthcheck(table: &Section<'_, '_>) -> Option<TraefikCheck> {
    let check = table.section("healthcheck");
    if check.is_absent() {
        return None;
    }
    for key in ["interval", "timeout"] {
        if let Some(span) = check.span(key)
            && (span == Span::ZERO || span.is_forever())
        {
            let message = format!("{} = {span} is no time", check.name(key));
            check.fault("E282", key, message, "give one, such as \"10s\"");
        }
    }
    let spec = TraefikCheck {
        path: check.string("path").unwrap_or_else(|| "/".to_owned()),
        interval: check.span("interval"),
        timeout: check.span("timeout"),
    };
    check.finish();
    Some(spec)
}

/// A rule where there must be one, and no key that Traefik does not know of that protocol.
fn check_protocol(table: &Section<'_, '_>, spec: &TraefikSpec) {
    let strange: &[&'static str] = match spec.protocol {
        TraefikProtocol::Http => &[],
        TraefikProtocol::Tcp => &["scheme", "passhostheader", "healthcheck"],
        TraefikProtocol::Udp => &[
            "rule",
            "middlewares",
            "tls",
            "scheme",
            "passhostheader",
            "healthcheck",
        ],
    };
    let protocol = word(&PROTOCOLS, spec.protocol);
    for key in strange {
        if table.value(key).is_some() {
            let message = format!("Traefik knows no {key} of protocol = {protocol:?}");
            table.fault("E282", key, message, "remove it");
        }
    }
    let needs = spec.protocol != TraefikProtocol::Udp;
    let rule = spec.rule.as_deref();
    let says_nothing = |rule: &str| rule.trim().is_empty();
    if needs && rule.map_or(table.value("rule").is_none(), says_nothing) {
        let message = format!("{} does not say what is routed to it", table.path);
        let help = match spec.protocol {
            TraefikProtocol::Tcp => "rule = \"HostSNI(`*`)\"",
            TraefikProtocol::Http | TraefikProtocol::Udp => "rule = \"Host(`example.org`)\"",
        };
        table.fault("E282", "rule", message, help);
    }
}

/// The first matcher of one value that is given more; those of headers and queries have a name and a value.
fn takes_several(rule: &str) -> Option<&str> {
    let mut quoted = false;
    let mut matcher = "";
    let mut from = 0;
    for (at, c) in rule.char_indices() {
        match c {
            '`' | '"' => quoted = !quoted,
            _ if quoted => {}
            '(' => {
                let head = rule[from..at].trim_start_matches(|c: char| !c.is_alphanumeric());
                matcher = head.trim();
                from = at + 1;
            }
            ')' => matcher = "",
            ',' if !matcher.is_empty() && !is_of_pairs(matcher) => return Some(matcher),
            '|' | '&' | '!' => from = at + 1,
            _ => {}
        }
    }
    None
}

fn is_of_pairs(matcher: &str) -> bool {
    matcher.starts_with("Header") || matcher.starts_with("Query")
}

fn is_label(text: &str) -> bool {
    let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    text.len() <= LABEL_MAX
        && !text.is_empty()
        && text.bytes().all(inside)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn coredns(
    table: &Section<'_, '_>,
    whose: Whose<'_>,
    mode: PublishMode,
    address: &str,
) -> Option<CorednsSpec> {
    let outer = table;
    let table = outer.section("coredns");
    if table.is_absent() {
        return None;
    }
    let wrong = |key: &str, what: String, help: &str| table.fault("E285", key, what, help);
    let zone = table.string("zone").unwrap_or_default();
    let zone = zone.trim_end_matches('.').to_owned();
    if !zone.split('.').all(is_label) {
        let message = match zone.as_str() {
            "" => format!("{} does not say in which zone", table.path),
            zone => format!("{zone:?} is no zone"),
        };
        let help = "zone = \"svc.example.org\", in small letters, as the Corefile has it";
        wrong("zone", message, help);
    }
    let typed = table.string("name");
    let name = typed.unwrap_or_else(|| whose.fleet.to_string());
    if name != "@" && !name.split('.').all(is_label) {
        let message = format!("{name:?} is no name in DNS");
        let help = "name = \"web\": small letters, digits and `-`; \"@\" for the zone itself";
        wrong("name", message, help);
    }
    let srv = table.string("srv");
    if let Some(typed) = &srv {
        let is_service = |label: &str| label.strip_prefix('_').is_some_and(is_label);
        let labels: Vec<&str> = typed.split('.').collect();
        if labels.len() != 2 || !labels.into_iter().all(is_service) || name == "@" {
            let message = format!("{typed:?} is no service of a name");
            let help = "srv = \"_http._tcp\", together with a name in the zone";
            wrong("srv", message, help);
        }
    }
    let prefix = table
        .string("prefix")
        .unwrap_or_else(|| "/skydns".to_owned());
    let parts = prefix.strip_prefix('/').map(|rest| rest.split('/'));
    if !parts.is_some_and(|mut parts| parts.all(is_plain)) {
        let message = format!("{prefix:?} is no path of CoreDNS's");
        wrong(
            "prefix",
            message,
            "prefix = \"/skydns\", as the Corefile has it",
        );
    }
    // Ids are labels: with a slot's number behind it where workers have their own.
    let room = match mode {
        PublishMode::Node => 0,
        PublishMode::Worker => "-9999".len(),
    };
    if !is_label(whose.node) || whose.node.len() + room > LABEL_MAX {
        let message = format!(
            "{} makes a name of this node's, and {:?} is no label in DNS",
            table.path, whose.node
        );
        let help = "[node] name = \"vps-1\": small letters, digits and `-`, 58 at most";
        outer.fault("E285", "coredns", message, help);
    }
    if address.parse::<IpAddr>().is_err() && !address.is_empty() {
        let message = format!(
            "{} is told of addresses, and {address:?} is a name",
            table.path
        );
        let help = "publish.address = \"10.0.0.5\", an address of this machine";
        outer.fault("E286", "address", message, help);
    }
    let spec = CorednsSpec {
        prefix,
        zone,
        name,
        srv,
        ttl: table.integer("ttl", 1, 86_400).unwrap_or(5) as u32,
        priority: table.integer("priority", 1, 65_535).unwrap_or(10) as u32,
    };
    table.finish();
    Some(spec)
}

/// Where its endpoints lie, each below its id: the labels of their name, the last one first.
pub fn coredns_path(spec: &CorednsSpec) -> String {
    let name = match spec.name.as_str() {
        // Where the plugin looks for a zone's own addresses.
        "@" => "apex.dns",
        name => name,
    };
    let full = match &spec.srv {
        Some(srv) => format!("{srv}.{name}.{}", spec.zone),
        None => format!("{name}.{}", spec.zone),
    };
    let mut path = spec.prefix.clone();
    for label in full.rsplit('.') {
        path.push('/');
        path.push_str(label);
    }
    path
}

fn kv(
    table: &Section<'_, '_>,
    whose: Whose<'_>,
    mode: PublishMode,
    traefik: Option<&TraefikSpec>,
) -> (Vec<KvSpec>, Claims) {
    let tables = table.sections("kv");
    if tables.len() > KV_MAX {
        let message = format!("{} has {} kv", table.path, tables.len());
        let help = format!("use {KV_MAX} or fewer: all records of an endpoint are one transaction");
        table.fault("E288", "kv", message, &help);
    }
    let (mut all, mut claims) = (Vec::new(), Claims::new());
    for table in &tables {
        let typed = |key| {
            let typed = table.string(key);
            if table.value(key).is_none() {
                let message = format!("{} has no `{key}`", table.path);
                let help =
                    "key = \"/services/{{ fleet }}/{{ node }}\", value = \"{{ authority }}\"";
                table.fault("E288", key, message, help);
            }
            typed.unwrap_or_default()
        };
        let spec = KvSpec {
            key: typed("key"),
            value: typed("value"),
        };
        table.finish();
        let keys = try_out(table, &spec, whose, mode, traefik);
        for key in keys {
            if claims.iter().any(|(other, _)| *other == key) {
                apart(table, &format!("two records of this fleet are {key:?}"));
            } else {
                claims.extend(table.place_of("key").map(|place| (key, place)));
            }
        }
        all.push(spec);
    }
    (all, claims)
}

/// The keys that would come of it on this node.
fn try_out(
    table: &Section<'_, '_>,
    spec: &KvSpec,
    whose: Whose<'_>,
    mode: PublishMode,
    traefik: Option<&TraefikSpec>,
) -> Vec<String> {
    let fill = |key: &'static str, text: &str, node: &str| {
        let tried = template::try_each((key, text), (whose.fleet.as_str(), node), mode);
        tried.unwrap_or_else(|message| {
            let help = "it sees fleet, node, mode, address, ready, desired, config_rev, and of its endpoint id, slot, port, authority, weight, state, revision";
            table.fault("E288", key, format!("{}: {message}", table.path), help);
            Vec::new()
        })
    };
    fill("value", &spec.value, whose.node);
    let keys = fill("key", &spec.key, whose.node);
    if keys.is_empty() {
        return keys;
    }
    let elsewhere = template::try_each(
        ("key", &spec.key),
        (whose.fleet.as_str(), "another-node"),
        mode,
    );
    if elsewhere.is_ok_and(|other| other.iter().any(|key| keys.contains(key))) {
        apart(table, "two nodes would write one key");
    } else if keys.windows(2).any(|pair| pair[0] == pair[1]) {
        apart(table, "two workers would write one key");
    }
    let tree = traefik.map_or("traefik", |spec| spec.rootkey.as_str());
    for key in &keys {
        let message = match key {
            key if key.is_empty() || key.chars().any(char::is_control) => {
                format!("{key:?} is no key")
            }
            key if key.starts_with(OURS) => {
                format!("{key:?} lies among leasehold's own records")
            }
            key if key.starts_with(&format!("{tree}/")) => {
                format!("{key:?} lies in Traefik's tree, which one unknown key spoils")
            }
            _ => continue,
        };
        let help = "choose another place; for Traefik there is publish.traefik";
        table.fault("E289", "key", message, help);
        break;
    }
    keys
}

fn apart(table: &Section<'_, '_>, what: &str) {
    let message = format!("{}: {what}", table.name("key"));
    let help = "put {{ node }} into it, and {{ slot }} where each worker has its own";
    table.fault("E289", "key", message, help);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn matchers_of_several_values_are_seen() {
        for (rule, found) in [
            ("Host(`a`)", None),
            ("Host(`a`) || Host(`b,c`)", None),
            ("Host(`a`, `b`)", Some("Host")),
            ("PathPrefix(`/x`) && (Host(`a`,`b`))", Some("Host")),
            ("!HeaderRegexp(`x`, `y`) && Query(`a`, `b`)", None),
            ("(Path(`/`,`/x`))", Some("Path")),
        ] {
            assert_eq!(takes_several(rule), found, "{rule}");
        }
    }

    #[test]
    fn names_become_paths() {
        let mut spec = CorednsSpec {
            prefix: "/skydns".to_owned(),
            zone: "svc.example.org".to_owned(),
            name: "web".to_owned(),
            srv: Some("_http._tcp".to_owned()),
            ttl: 5,
            priority: 10,
        };
        assert_eq!(
            coredns_path(&spec),
            "/skydns/org/example/svc/web/_tcp/_http"
        );
        spec.srv = None;
        assert_eq!(coredns_path(&spec), "/skydns/org/example/svc/web");
        spec.name = "@".to_owned();
        assert_eq!(coredns_path(&spec), "/skydns/org/example/svc/dns/apex");
    }
}
