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
    world::Faults,
};

/// How a story ends that should not: one run was two.
pub(crate) const TWICE: &str = "started twice";

/// The one that is never beside itself, on no node.
pub(crate) const LOCKED: &str = "close";
/// Runs that outlive etcd: one is skipped while there is another, or waits until it has ended.
const FREE: [(&str, Overlap); 2] = [("report", Overlap::Skip), ("batch", Overlap::Queue)];
pub(crate) const NAMES: [&str; 3] = [LOCKED, FREE[0].0, FREE[1].0];

/// Due when everything has been well for half a minute.
pub(crate) const LAST: Stamp = nth(3);
/// So few runs are remembered that most are forgotten.
const HISTORY: u32 = 3;

fn job(name: &str, overlap: Overlap, attempts: u32, faults: &Faults) -> FleetSpec {
    let mut spec = node::process("job");
    spec.restart.policy = RestartPolicy::Never;
    spec.cron = Some(CronSpec {
        overlap,
        catch_up: Span::secs(90),
        retry: RetrySpec {
            attempts,
            backoff_min: Span::secs(1),
            backoff_max: Span::secs(4),
        },
        history: HISTORY,
        cluster: true,
        ..CronSpec::of("* * * * *")
    });
    if overlap == Overlap::Forbid {
        spec.singleton = Some(SingletonSpec {
            lock: fleet(name),
            lease: Some(node::lease(faults)),
            ..SingletonSpec::default()
        });
    }
    node::seal(spec)
}

pub(crate) fn specs(faults: &Faults) -> impl Iterator<Item = (FleetName, FleetSpec)> {
    let free = FREE.map(|(name, overlap)| (fleet(name), job(name, overlap, 1, faults)));
    let locked = (fleet(LOCKED), job(LOCKED, Overlap::Forbid, 2, faults));
    free.into_iter().chain([locked])
}

/// The ticks of a story.
const fn nth(minute: i64) -> Stamp {
    Stamp(BEGIN.0 + minute * 60_000)
}

/// Which runs must have been.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Owed {
    /// Nothing went wrong.
    All,
    Last,
    /// Whose clock was wrong may have had it, and done with it.
    LastClaimed,
    /// There is nobody, or whoever is there has done with it.
    Nothing,
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

    /// With everything well again runs have begun, and of every one the end is written.
    pub(crate) fn check(&self, etcd: &Etcd, owed: Owed, runs: impl Fn(&str) -> bool) {
        for job in NAMES.map(fleet) {
            let prefix = format!("/leasehold/v1/sim/c/{job}/");
            let known = etcd.below(&prefix);
            let began = match owed {
                Owed::All => (1..=3).all(|minute| self.has(&job, nth(minute))),
                Owed::Last => self.has(&job, LAST),
                Owed::LastClaimed => self.has(&job, LAST) || is_known(etcd, &prefix),
                Owed::Nothing => true,
            };
            assert!(began, "{job} did not run ({owed:?}): {known:?}");
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
