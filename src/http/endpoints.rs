//! Where fleets are found, as programs read it. Keys of the JSON are a public interface: they are only ever added.

use serde::{Deserialize, Serialize};

use crate::{
    config::spec::PublishMode,
    engine::{
        publish::{Endpoint, Presence, PublishStatus, TargetStatus},
        status::{FleetStatus, Status},
    },
    http::view::Here,
    time::Moment,
};

/// `GET /v1/endpoints`: a fleet that is published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PublishedView {
    /// Its name.
    pub fleet: String,
    /// The node's name.
    pub node: String,
    /// `node` or `worker`.
    pub mode: PublishMode,
    /// Grows with every list of this supervisor's.
    pub serial: u64,
    /// How many take work.
    pub ready: u32,
    /// How many should.
    pub desired: u32,
    /// By slot.
    pub endpoints: Vec<EndpointView>,
    /// Who is told.
    pub targets: Vec<TargetView>,
}

/// Where work can be sent, or could a moment ago.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct EndpointView {
    /// `web`, or `web/3` where each worker has its own.
    pub id: String,
    /// The slot's number.
    pub slot: Option<u32>,
    /// A name or an address.
    pub address: String,
    /// The port.
    pub port: u16,
    /// How many take work there.
    pub weight: u32,
    /// `ready` or `draining`.
    pub state: Presence,
    /// What it was spawned from.
    pub revision: String,
}

/// Somebody who is told.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TargetView {
    /// `file`, `haproxy-agent`; of records in etcd `etcd`, `traefik`, `coredns` or `kv`.
    pub kind: String,
    /// The file's path; where is listened; below which key, or at which.
    pub target: String,
    /// `ok`, `pending` or `failed`.
    pub state: String,
    /// For so long it has been behind the list, in ms; 0: it is not.
    pub lag_ms: u64,
    /// Why, if it fails.
    pub failure: Option<PublishFailureView>,
}

/// A target that is not reached.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PublishFailureView {
    /// Why.
    pub reason: String,
    /// Since when, RFC 3339.
    pub since: String,
    /// So often it was tried.
    pub tries: u32,
}

/// In `status`: how it is published.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct FleetPublishView {
    /// The worst of its targets: `ok`, `pending` or `failed`.
    pub state: String,
    /// How many endpoints take work.
    pub endpoints: usize,
    /// Why it is not `ok`, if something fails.
    pub failure: Option<String>,
}

/// A group of Prometheus's http_sd.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SdGroup {
    /// `ADDRESS:PORT`.
    pub targets: Vec<String>,
    /// For relabelling.
    pub labels: std::collections::BTreeMap<String, String>,
}

/// Every fleet that is published.
pub fn endpoints(status: &Status, here: &Here<'_>) -> Vec<PublishedView> {
    let published = status
        .fleets
        .iter()
        .filter_map(|fleet| Some((fleet, fleet.publish.as_ref()?)));
    published
        .map(|(fleet, publish)| PublishedView {
            fleet: fleet.name.to_string(),
            node: status.node.clone(),
            mode: publish.listing.mode,
            serial: publish.serial,
            ready: publish.listing.ready,
            desired: publish.listing.desired,
            endpoints: publish
                .listing
                .endpoints
                .iter()
                .map(|one| endpoint(fleet, publish, one))
                .collect(),
            targets: targets(publish, here),
        })
        .collect()
}

fn id(fleet: &FleetStatus, one: &Endpoint) -> String {
    match one.slot {
        Some(slot) => format!("{}/{slot}", fleet.name),
        None => fleet.name.to_string(),
    }
}

fn endpoint(fleet: &FleetStatus, publish: &PublishStatus, one: &Endpoint) -> EndpointView {
    EndpointView {
        id: id(fleet, one),
        slot: one.slot.map(|slot| slot.0),
        address: publish.listing.address.clone(),
        port: one.port,
        weight: one.weight,
        state: one.state,
        revision: one.revision.to_string(),
    }
}

fn targets(publish: &PublishStatus, here: &Here<'_>) -> Vec<TargetView> {
    let agent = publish.agent.iter().map(|address| TargetView {
        kind: "haproxy-agent".to_owned(),
        target: address.clone(),
        // Who asks gets the newest list.
        state: "ok".to_owned(),
        lag_ms: 0,
        failure: None,
    });
    let others = publish.targets.iter().map(|one| target(one, here));
    agent.chain(others).collect()
}

fn target(one: &TargetStatus, here: &Here<'_>) -> TargetView {
    let lag = |since: Moment| here.now.since(since).as_millis();
    TargetView {
        kind: one.kind.to_owned(),
        target: one.target.clone(),
        state: one.state.to_owned(),
        lag_ms: one.behind.map_or(0, lag),
        failure: one
            .trouble
            .as_ref()
            .map(|(reason, since, tries)| PublishFailureView {
                reason: reason.clone(),
                since: (here.wall)(*since),
                tries: *tries,
            }),
    }
}

/// The first that fails, in words.
pub fn failure(publish: &PublishStatus) -> Option<String> {
    publish.targets.iter().find_map(|one| {
        let (why, ..) = one.trouble.as_ref()?;
        Some(format!("{}: {why}", one.target))
    })
}

/// For `status`.
pub fn of_fleet(publish: &PublishStatus) -> FleetPublishView {
    let is = |state: &str| publish.targets.iter().any(|one| one.state == state);
    let worst = ["failed", "pending"].into_iter().find(|state| is(state));
    let endpoints = publish.listing.endpoints.iter();
    FleetPublishView {
        state: worst.unwrap_or("ok").to_owned(),
        endpoints: endpoints.filter(|one| one.state == Presence::Ready).count(),
        failure: failure(publish),
    }
}

/// `GET /v1/sd/prometheus`: the whole list, as Prometheus replaces what it had by it.
pub fn prometheus(status: &Status) -> Vec<SdGroup> {
    let mut groups = Vec::new();
    for fleet in &status.fleets {
        let Some(publish) = &fleet.publish else {
            continue;
        };
        let ready = publish.listing.endpoints.iter();
        for one in ready.filter(|one| one.state == Presence::Ready) {
            let label = |name: &str, value: String| (format!("__meta_leasehold_{name}"), value);
            let mut labels = std::collections::BTreeMap::from([
                label("fleet", fleet.name.to_string()),
                label("node", status.node.clone()),
                label("weight", one.weight.to_string()),
            ]);
            labels.extend(one.slot.map(|slot| label("slot", slot.to_string())));
            groups.push(SdGroup {
                targets: vec![crate::engine::publish::authority(
                    &publish.listing.address,
                    one.port,
                )],
                labels,
            });
        }
    }
    groups
}
