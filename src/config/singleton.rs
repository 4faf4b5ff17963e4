//! `singleton`: workers that run only while they hold a lock.

use crate::{
    config::{
        forms,
        section::Section,
        spec::{LeaseSpec, SingletonSpec},
        units::count,
    },
    id::FleetName,
    time::Span,
};

/// Most holders of one lock.
const SLOTS_MAX: i64 = 1_000;

/// How far the lock reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Node,
    Cluster,
}

const SCOPES: [(&str, Scope); 2] = [("node", Scope::Node), ("cluster", Scope::Cluster)];
/// Where it is set, a lease can be had from a file, so that deadlines can be tested on one machine.
const TEST_GATE: &str = "LEASEHOLD_TEST_GATE";

/// Reads it; none if there is no such table, or it cannot be.
pub(super) fn singleton(section: &Section<'_, '_>, fleet: &FleetName) -> Option<SingletonSpec> {
    let table = section.section("singleton");
    if table.is_absent() {
        return None;
    }
    let lease = test_lease(&table);
    let scope = match &lease {
        Some(_) => Some(Scope::Node),
        None => table.word("scope", &SCOPES),
    };
    if table.value("scope").is_none() {
        let message = format!("{} does not say how far it reaches", table.path);
        let help = "add scope = \"node\": one on this machine";
        table.fault("E210", "scope", message, help);
    }
    if scope == Some(Scope::Cluster) {
        let message = format!(
            "`{} = \"cluster\"` is not available in this version",
            table.name("scope")
        );
        let help = "scope = \"node\" works: one on this machine";
        table.fault("E102", "scope", message, help);
    }
    let flock = table.string("flock");
    let spec = SingletonSpec {
        lock: table
            .parsed("lock", &forms::LOCK)
            .unwrap_or_else(|| fleet.clone()),
        flock: flock.map(|path| table.base().join(path).display().to_string()),
        slots: table.integer("slots", 1, SLOTS_MAX).unwrap_or(1) as u32,
        allow_network_fs: table.boolean("allow_network_fs").unwrap_or(false),
        lease,
    };
    if spec.flock.is_some() && spec.slots > 1 {
        let message = format!(
            "{} names one file; {} slots need as many",
            table.name("flock"),
            spec.slots
        );
        let help = "leave flock out, and the files are named for you; or slots = 1";
        table.fault("E211", "slots", message, help);
    }
    if spec.flock.is_some() && table.value("lock").is_some() {
        let message = format!(
            "{} and {} name two locks",
            table.name("lock"),
            table.name("flock")
        );
        table.fault("E212", "lock", message, "leave one of them out");
    }
    table.finish();
    Some(spec)
}

/// `scope = "test"`: for tests of leasehold alone, which say so in their environment.
fn test_lease(table: &Section<'_, '_>) -> Option<LeaseSpec> {
    table.reader.around.variable(TEST_GATE)?;
    if table.string("scope")? != "test" {
        return None;
    }
    let span = |key, otherwise| table.span(key).unwrap_or(otherwise);
    let lease = LeaseSpec {
        authority: table.string("authority").unwrap_or_default(),
        ttl: span("ttl", Span::secs(10)),
        grace: span("grace", Span::secs(2)),
        kill_margin: span("kill_margin", Span::secs(1)),
    };
    if !lease.is_possible() {
        let message = format!(
            "{} = {} leaves no time: SIGKILL {} after a renewal, SIGTERM {} before that, a renewal every {}",
            table.name("ttl"),
            lease.ttl,
            lease.kill_after(),
            lease.grace,
            lease.renew_every()
        );
        table.fault("E215", "ttl", message, "a longer ttl, or less grace");
    }
    Some(lease)
}

/// What holds between the lock and the size of the fleet.
pub(super) fn check(section: &Section<'_, '_>, spec: &SingletonSpec, workers: u32, surge: u32) {
    if workers > spec.slots {
        let message = format!(
            "{} has {workers} workers; its lock has {}",
            section.path,
            count(spec.slots, "slot")
        );
        let help = format!(
            "workers = {}; or singleton.slots = {workers}, if so many may run at once",
            spec.slots
        );
        section.fault("E213", "workers", message, &help);
    }
    if surge > 0 {
        let message = format!(
            "{} would start a second one beside the first",
            section.name("rollout.max_surge")
        );
        let help = "leave max_surge out: the old worker ends before the new one starts";
        section.fault("E214", "rollout", message, help);
    }
}
