//! What is not well with etcd, told once when it begins and once when it is over: an endpoint that does not answer, a raised alarm, a version
//! of which something that is configured asks too much, a lease that is not to be had.

use std::collections::BTreeMap;

use crate::{
    engine::{
        cluster::{figures::EndpointFigures, rpc::LeaseId},
        effect::{Effects, Subject, What},
        status::ClusterStatus,
        supervisor::Supervisor,
    },
    time::{Moment, Span},
};

/// Nothing of it is that urgent.
const LOOK_EVERY: Span = Span::secs(1);
/// Whoever has no lease for so long has a reason.
const APART_AFTER: Span = Span::secs(5);
/// Before these an etcd may take a lease back that it has just renewed (etcd-io/etcd#15247).
const REVOKES_NO_MORE: [[u32; 3]; 2] = [[3, 4, 31], [3, 5, 13]];
/// Nothing older was ever tried.
const OLDEST: [u32; 3] = [3, 4, 0];

/// What was told.
#[derive(Clone, Debug)]
pub(super) struct Vigil {
    looked: Moment,
    /// What is not well, by what it is about.
    concerns: BTreeMap<String, String>,
    /// The lease that was there, if one was.
    lease: Option<LeaseId>,
    /// There is none since.
    apart: Moment,
    /// A supervisor that takes over does not tell again what it finds.
    is_new: bool,
}

impl Vigil {
    pub(super) fn new(now: Moment) -> Self {
        Self {
            looked: Moment(0),
            concerns: BTreeMap::new(),
            lease: None,
            apart: now,
            is_new: true,
        }
    }
}

impl Supervisor {
    /// For people and programs.
    pub(super) fn cluster_status(&self, now: Moment) -> Option<ClusterStatus> {
        let mut status = self.cluster.as_ref()?.status(now);
        let etcd = self.config.etcd.as_ref();
        status.endpoints = etcd.map_or_else(Vec::new, |etcd| etcd.endpoints.clone());
        status.concerns = self.vigil.concerns.values().cloned().collect();
        Some(status)
    }

    /// Tells what has changed.
    pub(super) fn watch_etcd(&mut self, now: Moment, out: &mut Effects) {
        let Some(cluster) = &self.cluster else {
            self.vigil = Vigil::new(now);
            return;
        };
        let lease = cluster.lease_in_force();
        let changed = lease != self.vigil.lease;
        if !changed && self.vigil.looked.after(LOOK_EVERY) > now && !self.vigil.is_new {
            return;
        }
        let Some(status) = self.cluster_status(now) else {
            return;
        };
        self.vigil.looked = now;
        let first = std::mem::take(&mut self.vigil.is_new);
        if changed {
            let what = match lease {
                Some(_) => What::Joined {
                    cluster: status.name.clone(),
                    ttl: status.ttl.unwrap_or_default(),
                },
                None => What::Parted {
                    why: status.why.clone().unwrap_or_default(),
                },
            };
            self.vigil.lease = lease;
            self.vigil.apart = now;
            if !first {
                out.record(now, Subject::Node, what);
            }
        }
        let concerns = self.concerns(&status, now);
        let before = std::mem::replace(&mut self.vigil.concerns, concerns);
        for (about, why) in &self.vigil.concerns {
            if !before.contains_key(about) {
                out.record(now, Subject::Node, What::Concern { why: why.clone() });
            }
        }
        for (about, why) in before {
            if !self.vigil.concerns.contains_key(&about) {
                out.record(now, Subject::Node, What::Relief { why });
            }
        }
    }

    fn concerns(&self, status: &ClusterStatus, now: Moment) -> BTreeMap<String, String> {
        let mut all = BTreeMap::new();
        let apart = self.vigil.lease.is_none() && self.vigil.apart.after(APART_AFTER) <= now;
        if apart {
            let why = status.why.as_deref().unwrap_or("it has not answered");
            all.insert(
                "lease".to_owned(),
                format!("this node has no lease in cluster {}: {why}", status.name),
            );
        }
        let careless = self.config.fleets.values().any(|fleet| {
            let spec = fleet.singleton.as_ref();
            spec.is_some_and(|spec| spec.is_of_cluster() && spec.takeover_delay() < Span::secs(1))
        });
        for (url, endpoint) in status.endpoints.iter().zip(&status.figures.endpoints) {
            for (about, why) in of_endpoint(url, endpoint, (status.id, careless), now) {
                all.insert(about, why);
            }
        }
        all
    }
}

fn of_endpoint(
    url: &str,
    endpoint: &EndpointFigures,
    (id, careless): (Option<u64>, bool),
    now: Moment,
) -> Vec<(String, String)> {
    let mut all = Vec::new();
    if let Some((_, why)) = endpoint.fails.as_ref().filter(|_| endpoint.is_down(now)) {
        all.push((
            format!("down {url}"),
            format!("{url} does not answer: {why}"),
        ));
    }
    if let (Some(ours), Some(theirs)) = (id, endpoint.cluster)
        && ours != theirs
    {
        let why = format!("{url} belongs to cluster {theirs:x}, and this node to {ours:x}");
        all.push((format!("id {url}"), why));
    }
    let Some(health) = &endpoint.health else {
        return all;
    };
    // An alarm is the whole cluster's, whoever tells of it.
    for alarm in &health.alarms {
        let why = match alarm.as_str() {
            "NOSPACE" => format!(
                "alarm {alarm} is raised: its database is full, so it takes no writes; compact and defragment it, then `etcdctl alarm disarm`"
            ),
            _ => format!("alarm {alarm} is raised"),
        };
        all.push((format!("alarm {alarm}"), why));
    }
    let Some(version) = version(&health.version) else {
        return all;
    };
    let shown = &health.version;
    if version < OLDEST {
        let why = format!("{url} is version {shown}: nothing before 3.4 was tried");
        all.push((format!("old {url}"), why));
    }
    if careless && revokes(version) {
        let why = format!(
            "{url} is version {shown}, which may take a lease back that it has just renewed: with a takeover_delay of less than a second two workers may run; upgrade to 3.4.31, 3.5.13 or later"
        );
        all.push((format!("revokes {url}"), why));
    }
    all
}

fn version(text: &str) -> Option<[u32; 3]> {
    let mut parts = text.split(['.', '-']).map(str::parse);
    let mut next = || parts.next()?.ok();
    Some([next()?, next()?, next()?])
}

fn revokes(version: [u32; 3]) -> bool {
    let mended = REVOKES_NO_MORE
        .iter()
        .find(|first| first[..2] == version[..2]);
    mended.map_or(version < REVOKES_NO_MORE[0], |first| version < *first)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::cluster::rpc::Health;

    fn endpoint(version: &str, alarms: &[&str]) -> EndpointFigures {
        EndpointFigures {
            health: Some(Health {
                version: version.to_owned(),
                has_leader: true,
                alarms: alarms.iter().map(ToString::to_string).collect(),
            }),
            cluster: Some(7),
            ..EndpointFigures::default()
        }
    }

    fn about(endpoint: &EndpointFigures, careless: bool, now: u64) -> Vec<String> {
        let now = Moment(now * 1_000_000_000);
        let all = of_endpoint("http://a", endpoint, (Some(7), careless), now);
        all.into_iter().map(|(about, _)| about).collect()
    }

    #[test]
    fn what_is_not_well_is_told() {
        let well = endpoint("3.5.13", &[]);
        assert!(about(&well, true, 100).is_empty());
        for (version, careless, told) in [
            ("3.4.23", true, "revokes http://a"),
            ("3.5.12", true, "revokes http://a"),
            ("3.3.27", false, "old http://a"),
        ] {
            assert_eq!(about(&endpoint(version, &[]), careless, 1), [told]);
        }
        assert!(about(&endpoint("3.4.23", &[]), false, 1).is_empty());
        assert!(about(&endpoint("3.6.0-rc.1", &[]), true, 1).is_empty());
        assert_eq!(
            about(&endpoint("3.5.13", &["NOSPACE"]), false, 1),
            ["alarm NOSPACE"]
        );
        let fails = EndpointFigures {
            fails: Some((Moment(0), "refused".to_owned())),
            failures: 2,
            cluster: Some(8),
            ..well
        };
        assert_eq!(about(&fails, false, 9), ["id http://a"]);
        assert_eq!(about(&fails, false, 10), ["down http://a", "id http://a"]);
        let once = EndpointFigures {
            failures: 1,
            ..fails
        };
        assert_eq!(
            about(&once, false, 10),
            ["id http://a"],
            "one lost answer says nothing"
        );
    }
}
