//! Jobs of the cluster: what is to run at which tick, where it ran, and what etcd has of it in the end.

use std::collections::BTreeMap;

use leasehold::{
    config::spec::{CronSpec, FleetSpec, Overlap, RestartPolicy, RetrySpec, SingletonSpec},
    id::FleetName,
    time::{Span, Stamp},
};

use crate::{
    etcd::Etcd,
    jobs::BEGIN,
    node::{self, fleet, worker},
};

/// How a story ends that should not: one run was two.
pub(crate) const TWICE: &str = "started twice";

/// The one that is never beside itself, on no node.
pub(crate) const LOCKED: &str = "close";
/// Runs that outlive etcd: one is skipped while there is another, or waits until it has ended.
const FREE: [(&str, Overlap); 2] = [("report", Overlap::Skip), ("batch", Overlap::Queue)];

/// Due when everything has been well for half a minute.
pub(crate) const LAST: Stamp = Stamp(BEGIN.0 + 180_000);
/// So few runs are remembered that most are forgotten.
const HISTORY: u32 = 3;

fn job(name: &str, overlap: Overlap, attempts: u32) -> FleetSpec {
    let mut spec = node::process("job");
    spec.restart.policy = RestartPolicy::Never;
    spec.cron = Some(CronSpec {
        schedule: "* * * * *".to_owned(),
        timezone: "UTC".to_owned(),
        overlap,
        catch_up: Span::secs(90),
        timeout: Span::FOREVER,
        retry: RetrySpec {
            attempts,
            backoff_min: Span::secs(1),
            backoff_max: Span::secs(4),
        },
        jitter: Span::ZERO,
        history: HISTORY,
        cluster: true,
    });
    if overlap == Overlap::Forbid {
        spec.singleton = Some(SingletonSpec {
            lock: fleet(name),
            lease: Some(node::lease()),
            ..SingletonSpec::default()
        });
    }
    node::seal(spec)
}

pub(crate) fn specs() -> impl Iterator<Item = (FleetName, FleetSpec)> {
    let free = FREE.map(|(name, overlap)| (fleet(name), job(name, overlap, 1)));
    let locked = (fleet(LOCKED), job(LOCKED, Overlap::Forbid, 2));
    free.into_iter().chain([locked])
}

/// Who began which run.
#[derive(Debug, Default)]
pub(crate) struct Ledger(BTreeMap<(FleetName, Stamp), usize>);

impl Ledger {
    /// A tick is one node's, whoever else believes that it is his.
    pub(crate) fn began(&mut self, (job, tick): (FleetName, Stamp), node: usize) {
        let whose = *self.0.entry((job.clone(), tick)).or_insert(node);
        assert!(
            whose == node,
            "{TWICE}: {job} at {tick}, by node{whose} and by node{node}"
        );
    }

    fn has(&self, job: &FleetName, tick: Stamp) -> bool {
        self.0.contains_key(&(job.clone(), tick))
    }

    /// With everything well again the last tick is somebody's, and of every run the end is written. Somebody whose clock was ahead may have
    /// claimed it in worse times.
    pub(crate) fn check(&self, etcd: &Etcd, is_owed: bool, runs: impl Fn(&str) -> bool) {
        for (job, _) in specs() {
            let prefix = format!("/leasehold/v1/sim/c/{job}/");
            let known = etcd.below(&prefix);
            let was_claimed = || self.has(&job, LAST) || is_known(etcd, &prefix);
            assert!(!is_owed || was_claimed(), "{job} did not run: {known:?}");
            // The next one has hardly begun when the story ends.
            let next = format!("{prefix}{:.3}", LAST.after(Span::secs(60)).timestamp());
            for key in known.iter().filter(|key| **key != next) {
                let card = etcd.value(key).unwrap_or_default();
                let card: serde_json::Value = serde_json::from_str(&card).expect("JSON");
                let is_over = key.ends_with("/had") || !card["ended"].is_null();
                assert!(
                    is_over || runs(job.as_str()),
                    "{key} has no end: {card}, and {} does not run",
                    worker(job.as_str())
                );
            }
        }
    }
}

/// Has etcd its run, or that there was one?
fn is_known(etcd: &Etcd, prefix: &str) -> bool {
    let run = format!("{prefix}{:.3}", LAST.timestamp());
    let past = etcd.value(&format!("{prefix}had")).unwrap_or_default();
    let past: serde_json::Value = serde_json::from_str(&past).unwrap_or_default();
    let had: Vec<(Stamp, Stamp)> = serde_json::from_value(past["had"].clone()).unwrap_or_default();
    let within = |(from, to): &(Stamp, Stamp)| *from < LAST && LAST <= *to;
    etcd.value(&run).is_some() || had.iter().any(within)
}
