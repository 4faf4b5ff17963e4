//! What stands in etcd of a fleet that is published: a pure function of its list. Who puts it there, and what is done when that fails, is
//! `cluster/register.rs`.
//!
//! ```text
//! /leasehold/v1/CLUSTER/e/FLEET/NODE[/SLOT]            {"v":1,"addr":"10.0.0.5","port":8080,"weight":4,"state":"ready","rev":"9c1f…","since":"…"}
//! traefik/http/services/web/loadbalancer/servers/N/…   url, and from v3 on weight; N is the node's name as a number, and the slot's
//! /skydns/org/example/svc/web/ID                       {"host":"10.0.0.5","port":8080,"priority":10,"weight":4,"ttl":5}
//! ```
//!
//! Only who takes work has records: who drains is told of by their absence. What a Traefik must know besides, so that it has a service
//! although nobody serves, is [`anchors`].

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::engine::publish::{Endpoint, Listing, Presence, authority};
use crate::{
    config::{
        records::coredns_path,
        spec::{CorednsSpec, RecordsSpec, TraefikProtocol, TraefikSpec, TraefikVersion},
        template,
    },
    id::{FleetName, SlotIndex},
    time::{Span, Stamp},
};

/// What is to be published of a fleet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Offer {
    pub(in crate::engine) fleet: FleetName,
    pub(in crate::engine) node: String,
    pub(in crate::engine) spec: RecordsSpec,
    pub(in crate::engine) listing: Listing,
}

/// One key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::engine) struct Record {
    /// Which of the targets it is for.
    pub(in crate::engine) target: usize,
    /// Whose it is: all records of an endpoint come and go at one revision.
    pub(in crate::engine) endpoint: Option<SlotIndex>,
    pub(in crate::engine) value: String,
}

/// All that is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in crate::engine) struct Wanted {
    pub(in crate::engine) records: BTreeMap<String, Record>,
    /// Targets of which nothing can be made, and why.
    pub(in crate::engine) faults: Vec<(usize, String)>,
}

/// A canonical record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::engine) struct Canonical {
    v: u32,
    addr: String,
    port: u16,
    weight: u32,
    state: Presence,
    pub(in crate::engine) rev: String,
    /// Since then it has taken work.
    pub(in crate::engine) since: String,
}

impl Offer {
    /// What this endpoint was spawned from, as its record says it.
    pub(in crate::engine) fn revision_of(&self, slot: Option<SlotIndex>) -> Option<String> {
        let mut endpoints = self.listing.endpoints.iter();
        let one = endpoints.find(|one| one.slot == slot)?;
        Some(one.revision.to_string())
    }
}

/// Who is told: of which kind, and where.
pub(in crate::engine) fn targets(offer: &Offer, endpoints: &str) -> Vec<(&'static str, String)> {
    let RecordsSpec {
        traefik,
        coredns,
        kv,
    } = &offer.spec;
    let canonical = ("etcd", home(offer, endpoints));
    let traefik = traefik.iter().map(|spec| ("traefik", service(spec)));
    let coredns = coredns.iter().map(|spec| ("coredns", coredns_path(spec)));
    let kv = kv.iter().map(|spec| ("kv", spec.key.clone()));
    let all = std::iter::once(canonical).chain(traefik);
    all.chain(coredns).chain(kv).collect()
}

/// What stands there when everybody knows. `endpoints` is where all canonical records lie.
pub(in crate::engine) fn wanted(
    offer: &Offer,
    endpoints: &str,
    since: &BTreeMap<Option<SlotIndex>, Stamp>,
) -> Wanted {
    let Offer {
        fleet,
        node,
        spec,
        listing,
    } = offer;
    let mut all = Wanted::default();
    let mut target = 0;
    let ready = listing.endpoints.iter();
    let ready: Vec<&Endpoint> = ready.filter(|one| one.state == Presence::Ready).collect();
    for one in &ready {
        let key = match one.slot {
            Some(slot) => format!("{}/{slot}", home(offer, endpoints)),
            None => home(offer, endpoints),
        };
        let since = since.get(&one.slot).copied().unwrap_or_default();
        let record = Canonical {
            v: 1,
            addr: listing.address.clone(),
            port: one.port,
            weight: one.weight,
            state: one.state,
            rev: one.revision.to_string(),
            since: since.to_string(),
        };
        all.put(target, one, key, encode(&record));
    }
    if let Some(spec) = &spec.traefik {
        target += 1;
        for one in &ready {
            for (key, value) in server(spec, node, &listing.address, one) {
                all.put(target, one, key, value);
            }
        }
    }
    if let Some(spec) = &spec.coredns {
        target += 1;
        let path = coredns_path(spec);
        for one in &ready {
            let key = match one.slot {
                Some(slot) => format!("{path}/{node}-{slot}"),
                None => format!("{path}/{node}"),
            };
            all.put(target, one, key, skydns(spec, &listing.address, one));
        }
    }
    if spec.kv.is_empty() {
        return all;
    }
    let context = listing.context(fleet, node);
    for spec in &spec.kv {
        target += 1;
        let fill = |name: &'static str, text: &str| {
            template::fill_each(name, text, &context).map_err(|e| template::words(name, &e))
        };
        let filled = fill("key", &spec.key).and_then(|keys| {
            let values = fill("value", &spec.value)?;
            Ok(keys.into_iter().zip(values))
        });
        match filled {
            Ok(pairs) => {
                for (one, (key, value)) in ready.iter().zip(pairs) {
                    all.put(target, one, key, value);
                }
            }
            Err(why) => all.faults.push((target, why)),
        }
    }
    all
}

impl Wanted {
    fn put(&mut self, target: usize, of: &Endpoint, key: String, value: String) {
        let record = Record {
            target,
            endpoint: of.slot,
            value,
        };
        self.records.insert(key, record);
    }
}

fn home(offer: &Offer, endpoints: &str) -> String {
    format!("{endpoints}{}/{}", offer.fleet, offer.node)
}

fn encode<T: Serialize>(value: &T) -> String {
    serde_json::to_string(value).expect("records hold nothing that JSON cannot say")
}

#[derive(Serialize)]
struct Skydns<'a> {
    host: &'a str,
    port: u16,
    priority: u32,
    weight: u32,
    ttl: u32,
}

fn skydns(spec: &CorednsSpec, address: &str, one: &Endpoint) -> String {
    encode(&Skydns {
        host: address,
        port: one.port,
        priority: spec.priority,
        weight: one.weight,
        ttl: spec.ttl,
    })
}

fn tree(spec: &TraefikSpec) -> String {
    let protocol = match spec.protocol {
        TraefikProtocol::Http => "http",
        TraefikProtocol::Tcp => "tcp",
        TraefikProtocol::Udp => "udp",
    };
    format!("{}/{protocol}", spec.rootkey)
}

fn service(spec: &TraefikSpec) -> String {
    format!("{}/services/{}", tree(spec), spec.router)
}

/// Below it are servers.
fn balancer(spec: &TraefikSpec) -> String {
    let word = match spec.protocol {
        TraefikProtocol::Http | TraefikProtocol::Tcp => "loadbalancer",
        TraefikProtocol::Udp => "loadBalancer",
    };
    format!("{}/{word}", service(spec))
}

/// Traefik takes any number for a server's; this one needs nobody who gives them out.
fn server(spec: &TraefikSpec, node: &str, address: &str, one: &Endpoint) -> Vec<(String, String)> {
    let slot = one.slot.map_or(0, |slot| slot.0);
    let number = format!("{}{slot:04}", crc32(node.as_bytes()));
    let at = format!("{}/servers/{number}", balancer(spec));
    let place = authority(address, one.port);
    match spec.protocol {
        TraefikProtocol::Http => {
            let url = (format!("{at}/url"), format!("{}://{place}/", spec.scheme));
            let weight = (format!("{at}/weight"), one.weight.to_string());
            match spec.version {
                TraefikVersion::V2 => vec![url],
                TraefikVersion::V3 => vec![url, weight],
            }
        }
        TraefikProtocol::Tcp | TraefikProtocol::Udp => vec![(format!("{at}/address"), place)],
    }
}

/// What stands in a Traefik's tree without a lease: a router, and a service that is there when nobody serves. A service that is not would
/// take its router away, and a tree of which nothing is left is one that Traefik does not look at.
pub(in crate::engine) fn anchors(spec: &RecordsSpec) -> BTreeMap<String, String> {
    let mut all = BTreeMap::new();
    let Some(spec) = &spec.traefik else {
        return all;
    };
    let router = format!("{}/routers/{}", tree(spec), spec.router);
    let list = |name: &str, words: &[String]| -> Vec<(String, String)> {
        let words = words.iter().enumerate();
        let key = |(at, word): (usize, &String)| (format!("{router}/{name}/{at}"), word.clone());
        words.map(key).collect()
    };
    all.extend(
        spec.rule
            .iter()
            .map(|rule| (format!("{router}/rule"), rule.clone())),
    );
    all.extend(list("entrypoints", &spec.entrypoints));
    all.extend(list("middlewares", &spec.middlewares));
    all.insert(format!("{router}/service"), spec.router.clone());
    if spec.tls {
        all.insert(format!("{router}/tls"), "true".to_owned());
    }
    if spec.protocol == TraefikProtocol::Http {
        let at = balancer(spec);
        let pass = spec.passhostheader.to_string();
        all.insert(format!("{at}/passhostheader"), pass);
        if let Some(check) = &spec.healthcheck {
            all.insert(format!("{at}/healthcheck/path"), check.path.clone());
            for (key, span) in [("interval", check.interval), ("timeout", check.timeout)] {
                let key = format!("{at}/healthcheck/{key}");
                all.extend(span.map(|span| (key, go_duration(span))));
            }
        }
    }
    all
}

/// As Go reads it.
fn go_duration(span: Span) -> String {
    match span.as_millis() {
        ms if ms % 1_000 == 0 => format!("{}s", ms / 1_000),
        ms => format!("{ms}ms"),
    }
}

/// Below which keys the servers of this router's service are, if it is a router's or a service's key.
pub(in crate::engine) fn servers_of(anchor: &str) -> Option<String> {
    let (tree, rest) = ["/routers/", "/services/"]
        .iter()
        .find_map(|part| anchor.split_once(part))?;
    let name = rest.split('/').next()?;
    let word = match tree.ends_with("/udp") {
        true => "loadBalancer",
        false => "loadbalancer",
    };
    Some(format!("{tree}/services/{name}/{word}/servers/"))
}

/// CRC-32 as in Ethernet and zip.
fn crc32(bytes: &[u8]) -> u32 {
    let step = |crc: u32, _: u32| (crc >> 1) ^ (0xedb8_8320 & 0_u32.wrapping_sub(crc & 1));
    let all = bytes.iter();
    !all.fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), step))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        config::spec::{KvSpec, PublishMode, TraefikCheck},
        id::Revision,
    };

    fn traefik(version: TraefikVersion, protocol: TraefikProtocol) -> TraefikSpec {
        TraefikSpec {
            version,
            rootkey: "traefik".to_owned(),
            protocol,
            router: "web".to_owned(),
            rule: Some("Host(`example.org`)".to_owned()),
            entrypoints: vec!["websecure".to_owned()],
            middlewares: Vec::new(),
            tls: true,
            scheme: "http".to_owned(),
            passhostheader: true,
            healthcheck: None,
        }
    }

    fn offer(mode: PublishMode, spec: RecordsSpec) -> Offer {
        let endpoint = |slot: Option<u32>, port, weight| Endpoint {
            slot: slot.map(SlotIndex),
            port,
            weight,
            state: if weight > 0 {
                Presence::Ready
            } else {
                Presence::Draining
            },
            revision: Revision(0x9c1f),
        };
        let endpoints = match mode {
            PublishMode::Node => vec![endpoint(None, 8080, 4)],
            PublishMode::Worker => vec![endpoint(Some(3), 18_003, 1), endpoint(Some(4), 18_004, 0)],
        };
        Offer {
            fleet: "web".parse().unwrap(),
            node: "n1".to_owned(),
            spec,
            listing: Listing {
                mode,
                address: "10.0.0.5".to_owned(),
                endpoints,
                ready: 4,
                desired: 4,
                open: true,
                config: Revision::default(),
            },
        }
    }

    fn lines(offer: &Offer) -> Vec<String> {
        let stamp = Stamp(1_767_323_045_000);
        let since = BTreeMap::from([(None, stamp), (Some(SlotIndex(3)), stamp)]);
        let wanted = wanted(offer, "/leasehold/v1/prod/e/", &since);
        assert_eq!(wanted.faults, []);
        let records = wanted.records.into_iter();
        records
            .map(|(key, one)| format!("{key} {}", one.value))
            .collect()
    }

    fn of_traefik(version: TraefikVersion, protocol: TraefikProtocol) -> RecordsSpec {
        RecordsSpec {
            traefik: Some(traefik(version, protocol)),
            ..RecordsSpec::default()
        }
    }

    /// The keys of the two consumers, letter for letter.
    #[test]
    fn a_node_is_told_of_as_its_readers_want_it() {
        let mut spec = of_traefik(TraefikVersion::V3, TraefikProtocol::Http);
        spec.coredns = Some(CorednsSpec {
            prefix: "/skydns".to_owned(),
            zone: "svc.example.org".to_owned(),
            name: "web".to_owned(),
            srv: Some("_http._tcp".to_owned()),
            ttl: 5,
            priority: 10,
        });
        spec.kv = vec![KvSpec {
            key: "/services/{{ fleet }}/{{ node }}".to_owned(),
            value: "{{ authority }} {{ weight }} {{ ready }}/{{ desired }}".to_owned(),
        }];
        assert_eq!(
            lines(&offer(PublishMode::Node, spec)),
            [
                r#"/leasehold/v1/prod/e/web/n1 {"v":1,"addr":"10.0.0.5","port":8080,"weight":4,"state":"ready","rev":"00009c1f","since":"2026-01-02T03:04:05Z"}"#,
                "/services/web/n1 10.0.0.5:8080 4 4/4",
                r#"/skydns/org/example/svc/web/_tcp/_http/n1 {"host":"10.0.0.5","port":8080,"priority":10,"weight":4,"ttl":5}"#,
                "traefik/http/services/web/loadbalancer/servers/39505973560000/url http://10.0.0.5:8080/",
                "traefik/http/services/web/loadbalancer/servers/39505973560000/weight 4",
            ]
        );
    }

    #[test]
    fn a_worker_has_its_own_and_who_drains_has_none() {
        let spec = of_traefik(TraefikVersion::V2, TraefikProtocol::Http);
        let two = lines(&offer(PublishMode::Worker, spec));
        let server = "traefik/http/services/web/loadbalancer/servers/39505973560003";
        assert_eq!(two.len(), 2, "{two:?}");
        assert!(two[0].starts_with("/leasehold/v1/prod/e/web/n1/3 {"));
        assert_eq!(two[1], format!("{server}/url http://10.0.0.5:18003/"));
    }

    #[test]
    fn connections_and_datagrams_have_addresses() {
        for (protocol, key) in [
            (
                TraefikProtocol::Tcp,
                "traefik/tcp/services/web/loadbalancer/servers/39505973560000/address",
            ),
            (
                TraefikProtocol::Udp,
                "traefik/udp/services/web/loadBalancer/servers/39505973560000/address",
            ),
        ] {
            let spec = of_traefik(TraefikVersion::V3, protocol);
            let all = lines(&offer(PublishMode::Node, spec));
            assert_eq!(all[1], format!("{key} 10.0.0.5:8080"));
        }
    }

    #[test]
    fn a_service_is_there_although_nobody_serves() {
        let show = |spec: &RecordsSpec| -> Vec<String> {
            let all = anchors(spec).into_iter();
            all.map(|(key, value)| format!("{key} {value}")).collect()
        };
        let mut http = of_traefik(TraefikVersion::V3, TraefikProtocol::Http);
        http.traefik.as_mut().unwrap().healthcheck = Some(TraefikCheck {
            path: "/healthz".to_owned(),
            interval: Some(Span::secs(10)),
            timeout: Some(Span::millis(500)),
        });
        assert_eq!(
            show(&http),
            [
                "traefik/http/routers/web/entrypoints/0 websecure",
                "traefik/http/routers/web/rule Host(`example.org`)",
                "traefik/http/routers/web/service web",
                "traefik/http/routers/web/tls true",
                "traefik/http/services/web/loadbalancer/healthcheck/interval 10s",
                "traefik/http/services/web/loadbalancer/healthcheck/path /healthz",
                "traefik/http/services/web/loadbalancer/healthcheck/timeout 500ms",
                "traefik/http/services/web/loadbalancer/passhostheader true",
            ]
        );
        let mut udp = of_traefik(TraefikVersion::V3, TraefikProtocol::Udp);
        let spec = udp.traefik.as_mut().unwrap();
        (spec.rule, spec.tls) = (None, false);
        assert_eq!(
            show(&udp),
            [
                "traefik/udp/routers/web/entrypoints/0 websecure",
                "traefik/udp/routers/web/service web",
            ]
        );
        for key in anchors(&http).into_keys() {
            let servers = "traefik/http/services/web/loadbalancer/servers/";
            assert_eq!(servers_of(&key).as_deref(), Some(servers));
        }
    }

    #[test]
    fn a_name_becomes_the_number_that_everybody_makes_of_it() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
        assert_eq!(crc32(b"n1"), 3_950_597_356);
    }
}
