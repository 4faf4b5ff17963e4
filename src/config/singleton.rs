//! `singleton`: workers that run only while they hold a lock.

use crate::{
    config::{
        LastResort, forms,
        section::Section,
        spec::{
            Authority, Bond, EtcdSpec, FleetSpec, LeaseSpec, Preference, SingletonSpec, Takeover,
        },
        units::count,
    },
    id::FleetName,
    time::Span,
};

/// Most holders of one lock.
const SLOTS_MAX: i64 = 1_000;
/// Highest priority.
const PRIORITY_MAX: i64 = 1_000_000;

/// How far the lock reaches.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Scope {
    Node,
    Cluster,
}

const BONDS: [(&str, Bond); 2] = [("strict", Bond::Strict), ("weak", Bond::Weak)];
const SCOPES: [(&str, Scope); 2] = [("node", Scope::Node), ("cluster", Scope::Cluster)];
/// Where it is set, a lease can be had from a file, so that deadlines can be tested on one machine.
const TEST_GATE: &str = "LEASEHOLD_TEST_GATE";

/// Reads it; none if there is no such table, or it cannot be. `is_held`: a lock of a cluster would be; the ticks of a job are told apart without.
pub(super) fn singleton(
    section: &Section<'_, '_>,
    fleet: &FleetName,
    etcd: Option<&EtcdSpec>,
    is_held: bool,
) -> Option<SingletonSpec> {
    let table = section.section("singleton");
    if table.is_absent() {
        return None;
    }
    let mut lease = test_lease(&table);
    let scope = match &lease {
        Some(_) => Some(Scope::Node),
        None => table.word("scope", &SCOPES),
    };
    if table.value("scope").is_none() {
        let message = format!("{} does not say how far it reaches", table.path);
        let help = "add scope = \"node\": one on this machine; or scope = \"cluster\": one of all";
        table.fault("E210", "scope", message, help);
    }
    let mut takeover = Takeover::default();
    let bond = table.word("containment", &BONDS);
    if scope == Some(Scope::Cluster) {
        lease = Some(cluster_lease(&table, etcd, is_held));
        takeover = takeover_delay(&table, lease.as_ref().filter(|_| is_held));
    }
    let flock = table.string("flock");
    let spec = SingletonSpec {
        lock: table
            .parsed("lock", &forms::LOCK)
            .unwrap_or_else(|| fleet.clone()),
        flock: flock.map(|path| table.base().join(path).display().to_string()),
        slots: table.integer("slots", 1, SLOTS_MAX).unwrap_or(1) as u32,
        per_node: 0,
        allow_network_fs: table.boolean("allow_network_fs").unwrap_or(false),
        lease,
        preference: preference(&table),
        takeover,
        bond: match scope {
            Some(Scope::Cluster) => bond.unwrap_or(Bond::Strict),
            Some(Scope::Node) | None => bond.unwrap_or(Bond::Weak),
        },
        warm: warm(&table),
    };
    // On one machine all of them are on this node.
    let per_node = table.integer("per_node", 1, SLOTS_MAX).map(|n| n as u32);
    let per_node = match scope {
        Some(Scope::Cluster) => per_node.unwrap_or(1),
        Some(Scope::Node) | None => spec.slots,
    };
    if scope != Some(Scope::Cluster) {
        refuse_lease_keys(&table, scope.is_some() && spec.lease.is_none());
    }
    let spec = SingletonSpec { per_node, ..spec };
    if scope == Some(Scope::Cluster) && is_held {
        check_bond(&table, spec.bond);
    }
    if per_node > spec.slots {
        let message = format!(
            "{} = {per_node} is more than there may be in the whole cluster",
            table.name("per_node")
        );
        let help = format!("per_node = {}; or more slots", spec.slots);
        table.fault("E275", "per_node", message, &help);
    }
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

/// What leader elections of etcd take at their default times: 1.0 to 2.9 s were measured.
const LEADER_CRASH: Span = Span::secs(3);

/// `scope = "cluster"`: how it lasts.
fn cluster_lease(table: &Section<'_, '_>, etcd: Option<&EtcdSpec>, is_held: bool) -> LeaseSpec {
    let span = |key, otherwise| table.span(key).unwrap_or(otherwise);
    let lease = LeaseSpec {
        epoch: etcd.map_or(0, |etcd| etcd.epoch),
        authority: Authority::Cluster(etcd.map_or_else(String::new, |etcd| etcd.cluster.clone())),
        ttl: etcd.map_or(Span::secs(10), |etcd| etcd.lease_ttl),
        grace: span("grace", Span::secs(2)),
        kill_margin: span("kill_margin", Span::secs(1)),
    };
    if etcd.is_none() {
        let message = format!(
            "`{} = \"cluster\"` needs a cluster, and there is no [etcd]",
            table.name("scope")
        );
        let help = "add [etcd] with endpoints = [\"http://10.0.0.1:2379\", …]; or scope = \"node\": one on this machine";
        table.fault("E274", "scope", message, help);
        return lease;
    }
    if !is_held {
        return lease;
    }
    if !lease.is_possible() {
        let key = table.culprit(&["grace", "kill_margin"]);
        refuse_times(table, key, "etcd.lease_ttl", &lease);
    } else if lease.bears() < LEADER_CRASH {
        let message = format!(
            "{} would end whenever etcd's leader crashes: that takes it up to {LEADER_CRASH}, and with lease_ttl = {}, {} grace and {} kill_margin only {} can be borne",
            table.path.trim_end_matches(".singleton"),
            lease.ttl,
            lease.grace,
            lease.kill_margin,
            lease.bears()
        );
        let help = "a longer etcd.lease_ttl, or less grace; none of it where etcd's election timeout is shorter than its default";
        let key = table.culprit(&["grace", "kill_margin"]);
        let place = table.place_of(key).or_else(|| table.place());
        table.reader.warn("W270", place, message, help.to_owned());
    }
    lease
}

fn preference(table: &Section<'_, '_>) -> Preference {
    let failback = match table.string("failback").as_deref() {
        None | Some("never") => None,
        Some(_) => table.span("failback"),
    };
    Preference {
        priority: table.integer("priority", 0, PRIORITY_MAX).unwrap_or(0) as u32,
        node: table.string("prefer"),
        spread: table.string("spread"),
        failback,
    }
}

/// What only a cluster's locks have.
const CLUSTER_KEYS: [&str; 9] = [
    "containment",
    "per_node",
    "grace",
    "kill_margin",
    "takeover_delay",
    "priority",
    "prefer",
    "spread",
    "failback",
];

/// Keys that only a cluster's locks have.
fn refuse_lease_keys(table: &Section<'_, '_>, refused: bool) {
    for key in CLUSTER_KEYS {
        if table.value(key).is_some() && refused {
            let message = format!(
                "{} says nothing about a lock of this machine",
                table.name(key)
            );
            let help = "it has no lease: remove it; or scope = \"cluster\"";
            table.fault("E276", key, message, help);
        }
    }
}

/// Whether standbys run is the user's to say: what they do meanwhile is nobody's to prevent.
fn warm(table: &Section<'_, '_>) -> bool {
    let warm = table.boolean("warm").unwrap_or(false);
    if warm {
        let message = format!(
            "{} = true: workers run where the lock is not had, and nothing but themselves keeps them from writing there",
            table.name("warm")
        );
        let help = "let them read only, until their lease page says role 1, holder (examples/page/); they get no LEASEHOLD_FENCE and no LEASEHOLD_LOCK_FD";
        let place = table.place_of("warm");
        table.reader.warn("W273", place, message, help.to_owned());
    }
    warm
}

/// By default whoever is killed when his key is taken away has the time that he has at the end of his lease.
fn takeover_delay(table: &Section<'_, '_>, lease: Option<&LeaseSpec>) -> Takeover {
    let margin = lease.map_or(Span::ZERO, |lease| lease.kill_margin);
    match table.string("takeover_delay").as_deref() {
        None => match Takeover::default() {
            Takeover::After(span) => Takeover::After(span.max(margin)),
            Takeover::Strict => Takeover::Strict,
        },
        Some("strict") => Takeover::Strict,
        Some(_) => {
            let delay = table.span("takeover_delay").unwrap_or_default();
            if delay < margin {
                let message = format!(
                    "{} = {delay} is shorter than kill_margin = {margin}: where a holder's key is deleted or its lease revoked, the next one may begin beside one that is still being killed",
                    table.name("takeover_delay")
                );
                let help = "takeover_delay = \"strict\", or as long as kill_margin; or a job that may run twice, and checks its fence";
                let place = table.place_of("takeover_delay");
                table.reader.warn("W274", place, message, help.to_owned());
            }
            Takeover::After(delay)
        }
    }
}

fn refuse_times(table: &Section<'_, '_>, key: &str, ttl: &str, lease: &LeaseSpec) {
    let message = format!(
        "{ttl} = {} leaves no time: SIGKILL {} after a renewal, SIGTERM {} before that, a renewal every {}",
        lease.ttl,
        lease.kill_after(lease.ttl),
        lease.grace,
        lease.renew_every()
    );
    table.fault("E215", key, message, "a longer ttl, or less grace");
}

/// `scope = "test"`: for tests of leasehold alone, which say so in their environment.
fn test_lease(table: &Section<'_, '_>) -> Option<LeaseSpec> {
    table.reader.around.variable(TEST_GATE)?;
    if table.string("scope")? != "test" {
        return None;
    }
    let span = |key, otherwise| table.span(key).unwrap_or(otherwise);
    let lease = LeaseSpec {
        epoch: 0,
        authority: Authority::File(table.string("authority").unwrap_or_default()),
        ttl: span("ttl", Span::secs(10)),
        grace: span("grace", Span::secs(2)),
        kill_margin: span("kill_margin", Span::secs(1)),
    };
    if !lease.is_possible() {
        refuse_times(table, "ttl", &table.name("ttl"), &lease);
    }
    Some(lease)
}

/// What holds between the lock and the place that the daemon runs in.
fn check_bond(table: &Section<'_, '_>, bond: Bond) {
    let place = |key| table.place_of(key).or_else(|| table.place());
    let who = table.path.trim_end_matches(".singleton");
    let reader = table.reader;
    if bond == Bond::Weak {
        let message = format!(
            "where the daemon is no unit of systemd's and not a container's PID 1, and is killed, what {who} started may run on beside the next holder: whatever left its group and session and dropped its environment"
        );
        let help = "containment = \"strict\", which is the default; or have what it writes to check its fence";
        reader.warn("W271", place("containment"), message, help.to_owned());
        return;
    }
    let remedies = "run it as a unit with Delegate=yes (systemd/leasehold.service), as PID 1 of a container, or as root; or say containment = \"weak\": what is not covered then is in ARCHITECTURE.md";
    let missing = "was not started by a unit of systemd's with Delegate=yes, is not PID 1, and may make no PID namespaces (CAP_SYS_ADMIN)";
    match reader.around.last_resort() {
        LastResort::ThereIs => {}
        LastResort::None => {
            let message = format!(
                "what {who} starts could outlive this daemon, and run beside the next holder of its lock: the daemon {missing}"
            );
            reader.fault(
                "E277",
                place("containment"),
                message,
                "its containment",
                remedies.to_owned(),
            );
        }
        LastResort::NoneHere => {
            let message = format!(
                "`run` would refuse {who} from here, since what it starts could outlive the daemon: we are not root, and no unit's main process"
            );
            reader.warn("W272", place("containment"), message, remedies.to_owned());
        }
    }
}

/// What holds between the lock and the size of the fleet.
pub(super) fn check(section: &Section<'_, '_>, spec: &SingletonSpec, fleet: &FleetSpec) {
    let (workers, surge) = (fleet.workers, fleet.rollout.max_surge);
    if spec.warm && fleet.process.pre_start.is_some() {
        let message = format!(
            "{} would run where the lock is not had, beside whoever has it",
            section.name("hooks.pre_start")
        );
        let help = "leave it to the worker, when its page says that it leads; or warm = false";
        section.fault("E278", "hooks", message, help);
    }
    if workers > spec.per_node && spec.is_of_cluster() {
        let message = format!(
            "{} has {workers} workers; of its lock it may have {} on this node",
            section.path,
            count(spec.per_node, "slot")
        );
        let help = format!(
            "workers = {}; or singleton.per_node = {workers}, if so many may run on one node",
            spec.per_node
        );
        section.fault("E213", "workers", message, &help);
    } else if workers > spec.slots {
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
