//! What a daemon publishes in a real etcd: which keys, when they come and go, and what becomes of them when somebody dies or meddles.

use std::collections::{BTreeMap, BTreeSet};

use leasehold::{
    engine::cluster::rpc::{
        Body, CallId, Change, Do, KeyValue, LeaseId, News, Reply, Request, Txn,
    },
    etcd::Settings,
    sys::clock,
    time::{Moment, Span},
};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    client::Client,
    daemon::{Mode, Rig, free_port, send},
    real::ready,
    rig::{Cluster, Setup, until},
};

const ENDPOINTS: &str = "/leasehold/v1/main/e/";
/// Everything that is published lies below one of these.
const TREES: [&str; 4] = [ENDPOINTS, "traefik/", "/skydns/", "/services/"];
const SERVERS: &str = "traefik/http/services/web/loadbalancer/servers/";
const TTL: Span = Span::secs(5);
/// For whatever takes no time but this machine's.
const SOON: Span = Span::secs(10);

/// All four kinds, of a worker each.
const ALL: &str = r#"
    [fleet.web.publish]
    mode = "worker"
    traefik = { version = "v3", rule = "Host(`example.org`)", entrypoints = ["websecure"], tls = true }
    coredns = { zone = "svc.example.org", srv = "_http._tcp" }
    kv = [{ key = "/services/{{ fleet }}/{{ node }}/{{ slot }}", value = "{{ authority }} {{ state }}" }]
"#;

struct World {
    etcd: Cluster,
    client: Client,
    /// The member that we ask.
    member: usize,
    nodes: Vec<Rig>,
    watches: Vec<CallId>,
    deleted: Vec<(String, i64)>,
}

impl World {
    fn new(args: &[&str]) -> Option<Self> {
        Self::of(1, args)
    }

    fn of(members: usize, args: &[&str]) -> Option<Self> {
        let etcd = Cluster::with(Setup {
            members,
            args: args.iter().map(|arg| (*arg).to_owned()).collect(),
            ..Setup::default()
        })?;
        let mut client = Client::of(&etcd);
        ready(&mut client, members);
        Some(Self {
            etcd,
            client,
            // Daemons begin with the first one.
            member: members - 1,
            nodes: Vec::new(),
            watches: Vec::new(),
            deleted: Vec::new(),
        })
    }

    /// A node, not yet started.
    fn plan(&mut self, publish: &str) -> usize {
        let number = self.nodes.len() + 1;
        let rig = Rig::new(Mode::Group).expect("groups are everywhere");
        self.nodes.push(rig);
        self.configure(number - 1, publish);
        number - 1
    }

    fn configure(&self, node: usize, publish: &str) {
        self.configure_as("web", node, publish);
    }

    fn configure_as(&self, fleet: &str, node: usize, publish: &str) {
        let base = free_port();
        let last = base + 9;
        self.nodes[node].configure(&format!(
            r#"
            [node]
            name = "n{}"
            [etcd]
            endpoints = {:?}
            lease_ttl = "{TTL}"
            [fleet.{fleet}]
            command = [{{worker}}, "published", "{{notes}}"]
            workers = 2
            ready = "notify"
            port_range = "{base}-{last}"
            stop = {{ deregister_delay = "1500ms" }}
            {publish}
            "#,
            node + 1,
            self.etcd.endpoints(),
        ));
    }

    fn start(&mut self, publish: &str) -> usize {
        let node = self.plan(publish);
        self.nodes[node].start_settled();
        node
    }

    /// What is below a prefix now.
    fn read(&mut self, prefix: &str) -> BTreeMap<String, KeyValue> {
        let txn = Txn::read(vec![Do::List(prefix.to_owned())]);
        match self.client.ask(self.member, Request::Txn(txn)) {
            Ok(Reply {
                body: Body::Txn { read, .. },
                ..
            }) => {
                let found = read.into_iter().flatten();
                found.map(|kv| (kv.key.clone(), kv)).collect()
            }
            other => panic!("{prefix} cannot be read: {other:?}"),
        }
    }

    /// All that is published on a lease.
    fn records(&mut self) -> BTreeMap<String, KeyValue> {
        let all = TREES.iter().flat_map(|tree| self.read(tree));
        all.filter(|(_, kv)| kv.lease.is_some()).collect()
    }

    fn put(&mut self, key: &str, value: &str) {
        self.etcd.ctl(&["put", key, value]).unwrap();
    }

    /// So many keys stand there on a lease.
    fn until_records(&mut self, count: usize, bound: Span) -> BTreeMap<String, KeyValue> {
        until(&format!("{count} records"), bound, || {
            let all = self.records();
            match all.len() == count {
                true => Ok(all),
                false => Err(all.into_keys().collect::<Vec<_>>()),
            }
        })
    }

    /// From now on every deletion is noted.
    fn watch(&mut self) {
        for tree in TREES {
            let watch = self.client.watch(self.member, tree, SOON);
            let first = self.client.next_news(watch, SOON);
            assert!(matches!(first, Some(News::Watching { .. })), "{first:?}");
            self.watches.push(watch);
        }
    }

    /// What was deleted since then.
    fn gone(&mut self) -> &[(String, i64)] {
        for watch in self.watches.clone() {
            while let Some(news) = self.client.next_news(watch, Span::millis(20)) {
                let News::Watched { changes, .. } = news else {
                    panic!("{news:?}");
                };
                for change in changes {
                    if let Change::Deleted { key, revision } = change {
                        self.deleted.push((key, revision));
                    }
                }
            }
        }
        &self.deleted
    }

    /// Lets time go by that the test is about.
    fn pass(&mut self, span: Span) {
        self.client.pass(span);
    }

    fn lease(&mut self) -> LeaseId {
        let all = self.records();
        let leases: BTreeSet<LeaseId> = all.values().filter_map(|kv| kv.lease).collect();
        assert_eq!(leases.len(), 1, "{all:#?}");
        *leases.first().unwrap()
    }

    fn target(&self, node: usize, kind: &str) -> Value {
        let (_, body) = self.nodes[node]
            .request("GET", "/v1/endpoints", "")
            .unwrap();
        let all: Value = serde_json::from_str(&body).unwrap();
        let targets = all[0]["targets"].as_array().unwrap();
        let found = targets.iter().find(|one| one["kind"] == kind);
        found.cloned().unwrap_or_default()
    }

    fn until_target(&self, node: usize, kind: &str, state: &str, why: &str) {
        until(&format!("{kind} is {state}"), SOON, || {
            let target = self.target(node, kind);
            let reason = target["failure"]["reason"].as_str().unwrap_or_default();
            match target["state"] == state && reason.contains(why) {
                true => Ok(()),
                false => Err(target.to_string()),
            }
        });
    }

    /// When this worker noted that it was told to stop.
    fn told(&self, node: usize, slot: u32) -> Option<Moment> {
        let notes = self.nodes[node].notes("order");
        let mut lines = notes.iter().rev();
        let line = lines.find(|line| line.ends_with(&format!("term {slot}")))?;
        let (when, _) = line.split_once(' ')?;
        Some(Moment(when.parse().unwrap()))
    }
}

/// Whose record this is, by its end.
fn slot_of(key: &str) -> u32 {
    match key.strip_prefix(SERVERS) {
        Some(rest) => {
            let (number, _) = rest.split_once('/').unwrap();
            number[number.len() - 4..].parse().unwrap()
        }
        None => key.rsplit(['/', '-']).next().unwrap().parse().unwrap(),
    }
}

fn of_slot(all: &BTreeMap<String, KeyValue>, slot: u32) -> Vec<&KeyValue> {
    let its = all.iter().filter(|(key, _)| slot_of(key) == slot);
    its.map(|(_, kv)| kv).collect()
}

#[test]
fn records_come_with_readiness_and_go_before_the_signal() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let node = world.start(ALL);
    let all = world.until_records(10, SOON);
    for slot in [0, 1] {
        let its = of_slot(&all, slot);
        let revisions: BTreeSet<i64> = its.iter().map(|kv| kv.created).collect();
        assert_eq!((its.len(), revisions.len()), (5, 1), "{its:#?}");
    }
    let canonical: Value =
        serde_json::from_str(&all[&format!("{ENDPOINTS}web/n1/0")].value).unwrap();
    assert_eq!(canonical["v"], 1);
    assert_eq!(canonical["addr"], "127.0.0.1");
    assert_eq!(
        (&canonical["weight"], &canonical["state"]),
        (&1.into(), &"ready".into())
    );
    let port = canonical["port"].as_u64().unwrap();
    assert_eq!(
        all["/services/web/n1/0"].value,
        format!("127.0.0.1:{port} ready")
    );
    let ours = world.lease();
    let own = world.read("/leasehold/v1/main/");
    assert_eq!(own["/leasehold/v1/main/p/n1"].lease, Some(ours));
    assert_ne!(own["/leasehold/v1/main/n/n1"].lease, Some(ours));
    let anchors = world.read("traefik/http/routers/");
    let anchors: Vec<(&str, &str)> = anchors
        .iter()
        .map(|(key, kv)| (key.as_str(), kv.value.as_str()))
        .collect();
    let router = "traefik/http/routers/web";
    assert_eq!(
        anchors,
        [
            (&*format!("{router}/entrypoints/0"), "websecure"),
            (&*format!("{router}/rule"), "Host(`example.org`)"),
            (&*format!("{router}/service"), "web"),
            (&*format!("{router}/tls"), "true"),
        ]
    );
    for kind in ["etcd", "traefik", "coredns", "kv"] {
        world.until_target(node, kind, "ok", "");
    }
    let shown = world.nodes[node].ok(&["endpoints"]);
    assert!(shown.contains("traefik/http/services/web"), "{shown}");

    world.watch();
    let asked = clock::now();
    let rig = world.nodes.remove(node);
    let stop = std::thread::spawn(move || {
        rig.ok(&["stop", "web/1"]);
        rig
    });
    world.until_records(5, SOON);
    let withdrawn = clock::now();
    world.nodes.push(stop.join().unwrap());
    let told = world.told(node, 1).expect("it was told");
    assert!(withdrawn < told, "{withdrawn:?} {told:?}");
    assert!(asked.until(told) >= Span::millis(1_500));
    let gone = world.gone().to_vec();
    let revisions: BTreeSet<i64> = gone.iter().map(|(_, revision)| *revision).collect();
    assert_eq!((gone.len(), revisions.len()), (5, 1), "{gone:?}");
    world.nodes[node].ok(&["start", "web/1"]);
    world.until_records(10, SOON);

    world.nodes[node].signal(Signal::TERM);
    world.until_records(0, SOON);
    let withdrawn = clock::now();
    world.nodes[node].ended(15_000);
    for slot in [0, 1] {
        let told = world.told(node, slot).unwrap();
        assert!(withdrawn < told, "{withdrawn:?} {told:?}");
    }
    let left: Vec<String> = world.read("/leasehold/").into_keys().collect();
    // What we wrote without a lease, and that there is such a node.
    assert_eq!(
        left,
        ["/leasehold/v1/main/a/web", "/leasehold/v1/main/k/n1"]
    );
    let anchors = world.read("traefik/").len();
    assert_eq!(anchors, 5, "a service is there although nobody serves");
}

#[test]
fn a_crashed_worker_is_withdrawn_before_its_pause() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let pause = "restart = { backoff = \"10000h..10000h\" }";
    let node = world.start(&format!("{pause}\n{ALL}"));
    world.until_records(10, SOON);
    for generation in [1, 2] {
        let status = world.nodes[node].wait("it is up", 5_000, |status| {
            let worker = status.worker("web/1");
            worker.is_some_and(|one| one.generation == generation && one.ready)
        });
        send(status.worker("web/1").unwrap().pid, Signal::KILL);
    }
    let left = world.until_records(5, SOON);
    assert_eq!(of_slot(&left, 0).len(), 5);
}

#[test]
fn a_killed_supervisor_takes_no_record_away() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let node = world.start(ALL);
    let before = world.until_records(10, SOON);
    let lease = world.lease();
    world.watch();
    for _ in 0..3 {
        let supervisor = world.nodes[node].status().supervisor();
        send(supervisor, Signal::KILL);
        world.nodes[node].wait("another supervisor", 10_000, |status| {
            status.supervisor() != supervisor
        });
        world.until_target(node, "etcd", "ok", "");
    }
    // Its lease would be over if nobody renewed it.
    world.pass(TTL.plus(Span::secs(2)));
    assert_eq!(world.gone(), []);
    assert_eq!(world.lease(), lease);
    let values = |all: &BTreeMap<String, KeyValue>| -> Vec<String> {
        all.values().map(|kv| kv.value.clone()).collect()
    };
    assert_eq!(values(&world.records()), values(&before));
    // And the next one goes on with what it does.
    world.nodes[node].ok(&["stop", "web/0"]);
    let left = world.until_records(5, SOON);
    assert_eq!(of_slot(&left, 1).len(), 5);
}

#[test]
fn records_of_a_dead_node_end_with_its_lease() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let node = world.start(ALL);
    world.until_records(10, SOON);
    world.nodes[node].kill_keeper();
    world.until_records(0, TTL.plus(SOON));
    assert_eq!(world.read("traefik/").len(), 5);
}

#[test]
fn a_node_that_is_back_before_that_goes_on_with_its_records() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let node = world.start(ALL);
    world.until_records(10, SOON);
    let lease = world.lease();
    world.watch();
    world.nodes[node].kill_keeper();
    world.nodes[node].start_settled();
    until("they hang on another lease", SOON, || {
        let all = world.records();
        let moved = all.values().filter(|kv| kv.lease != Some(lease)).count();
        match moved {
            10 => Ok(()),
            _ => Err(moved),
        }
    });
    until("the lease before is over", TTL.plus(SOON), || {
        match world.client.ask(0, Request::LeaseKeys(lease)) {
            Ok(Reply {
                body: Body::LeaseKeys { ttl, .. },
                ..
            }) if ttl < 0 => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    assert_eq!(world.gone(), []);
    assert_eq!(world.records().len(), 10);
}

#[test]
fn what_an_operator_takes_away_comes_back() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let node = world.start(ALL);
    world.until_records(10, SOON);
    let lease = world.lease();
    world
        .etcd
        .ctl(&["lease", "revoke", &lease.to_string()])
        .unwrap();
    world.until_records(10, SOON);
    assert_ne!(world.lease(), lease);
    // Singletons' lease is another matter.
    world
        .etcd
        .ctl(&["del", "--prefix", "/leasehold/v1/main/n/"])
        .unwrap();
    world.etcd.ctl(&["del", "--prefix", SERVERS]).unwrap();
    world.until_records(10, TTL.plus(SOON));
    world.until_target(node, "traefik", "ok", "");
}

#[test]
fn what_is_somebody_elses_is_not_overwritten() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let node = world.plan(ALL);
    // As if another node's name came to the same number.
    let number = "39505973560000";
    let theirs = format!("{SERVERS}{number}/url");
    world.put(&theirs, "http://10.9.9.9/");
    let rule = "traefik/http/routers/web/rule";
    world.put(rule, "Host(`theirs`)");
    world.nodes[node].start_settled();
    let all = world.until_records(8, SOON);
    assert_eq!(
        of_slot(&all, 0).len(),
        3,
        "neither url nor weight: {all:#?}"
    );
    world.until_target(node, "traefik", "failed", "somebody else's");
    world.until_target(node, "coredns", "ok", "");
    let values = world.read("traefik/");
    assert_eq!(values[&theirs].value, "http://10.9.9.9/");
    assert_eq!(values[rule].value, "Host(`theirs`)");
    let (code, body) = world.nodes[node]
        .request("GET", "/readyz?verbose", "")
        .unwrap();
    assert_eq!(code, 200, "{body}");
    assert!(body.contains("somebody else's"), "{body}");
    let (_, metrics) = world.nodes[node].request("GET", "/metrics", "").unwrap();
    let failures = metrics.lines().find(|line| {
        line.starts_with("leasehold_publish_failures") && line.contains("traefik/http/services/web")
    });
    assert!(
        failures.is_some_and(|line| !line.ends_with(" 0")),
        "{failures:?}"
    );
    world.etcd.ctl(&["del", &theirs]).unwrap();
    world.etcd.ctl(&["del", rule]).unwrap();
    world.until_records(10, Span::secs(20));
    until("the rule is ours", Span::secs(20), || {
        match world.read(rule).get(rule) {
            Some(kv) if kv.value == "Host(`example.org`)" => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    world.until_target(node, "traefik", "ok", "");
}

#[test]
fn what_is_configured_away_is_deleted_and_a_router_with_its_last_server() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let (one, two) = (world.start(ALL), world.start(ALL));
    world.until_records(20, SOON);
    let renamed = r#"
    [fleet.web.publish]
    mode = "worker"
    traefik = { version = "v2", router = "www", rule = "Host(`example.org`)" }
    "#;
    let routers = |world: &mut World| -> BTreeSet<String> {
        let keys = world.read("traefik/http/routers/").into_keys();
        keys.map(|key| key.split('/').nth(3).unwrap().to_owned())
            .collect()
    };
    world.configure(one, renamed);
    world.nodes[one].ok(&["reload"]);
    // A canonical record and a url for each of its workers: v2 knows no weight.
    let all = world.until_records(14, SOON);
    assert!(
        !all.keys()
            .any(|key| key.contains("n1") && key.starts_with("/s")),
        "{all:#?}"
    );
    until("both routers are there", SOON, || {
        let there = routers(&mut world);
        (there.len() == 2).then_some(()).ok_or(there)
    });
    world.configure(two, renamed);
    world.nodes[two].ok(&["reload"]);
    world.until_records(8, SOON);
    until("the first one went with its last server", SOON, || {
        let there = routers(&mut world);
        match there.iter().eq(["www"]) {
            true => Ok(()),
            false => Err(there),
        }
    });
    for node in [one, two] {
        world.configure(node, "");
        world.nodes[node].ok(&["reload"]);
    }
    world.until_records(0, SOON);
    until("nothing is left", SOON, || {
        let mut left: Vec<String> = world.read("traefik/").into_keys().collect();
        left.extend(world.read("/leasehold/v1/main/a/").into_keys());
        left.extend(world.read("/leasehold/v1/main/p/").into_keys());
        left.is_empty().then_some(()).ok_or(left)
    });
}

/// Its fleet has another name now, and the router is another one: it is ours all the same, and goes when nobody wants it.
#[test]
fn a_renamed_fleet_keeps_its_router() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let records = |fleet: &str, host: &str, more: &str| {
        format!(
            r#"
    [fleet.{fleet}.publish]
    mode = "worker"
    traefik = {{ version = "v2", router = "www", rule = "Host(`{host}`)"{more} }}
    "#
        )
    };
    let before = records("web", "old.example.org", ", tls = true");
    let one = world.start(&before);
    let two = world.start(&before);
    world.until_records(8, SOON);
    for node in [one, two] {
        let renamed = records("shop", "new.example.org", "");
        world.configure_as("shop", node, &renamed);
        world.nodes[node].ok(&["reload"]);
    }
    until("the new rule, and nothing of the old one", SOON, || {
        let there = world.read("traefik/http/routers/www/");
        let rule = there.get("traefik/http/routers/www/rule");
        let is_new = rule.is_some_and(|kv| kv.value.contains("new"));
        let is_all = there.len() == 2;
        (is_new && is_all).then_some(()).ok_or(there)
    });
    for node in [one, two] {
        world.until_target(node, "traefik", "ok", "");
    }
    until("nothing is said in the old name", SOON, || {
        let there = world.read("/leasehold/v1/main/a/");
        let is_ours = there.keys().eq(["/leasehold/v1/main/a/shop"]);
        is_ours.then_some(()).ok_or(there)
    });
    for node in [one, two] {
        world.configure_as("shop", node, "");
        world.nodes[node].ok(&["reload"]);
    }
    until("nothing is left", SOON, || {
        let mut left: Vec<String> = world.read("traefik/").into_keys().collect();
        left.extend(world.read("/leasehold/v1/main/a/").into_keys());
        left.is_empty().then_some(()).ok_or(left)
    });
}

/// Both fleets go on, and what one of them was found by is the other's from now on.
#[test]
fn a_router_moves_to_another_fleet() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let kv = "kv = [{ key = \"/services/{{ fleet }}/{{ node }}/{{ slot }}\", value = \"{{ authority }}\" }]";
    let records = |web: &str, rule: &str| {
        let router =
            format!("traefik = {{ version = \"v2\", router = \"www\", rule = \"{rule}\" }}");
        let (web, shop) = if web == "www" {
            (&*router, kv)
        } else {
            (kv, &*router)
        };
        format!(
            r#"
    [fleet.web.publish]
    mode = "worker"
    {web}
    [fleet.shop]
    command = [{{worker}}, "published", "{{notes}}"]
    ready = "notify"
    [fleet.shop.publish]
    mode = "node"
    port = {}
    {shop}
    "#,
            free_port()
        )
    };
    let node = world.start(&records("www", "Host(`old`)"));
    let rule = "traefik/http/routers/www/rule";
    let reads = |world: &mut World, word: &str| {
        until(word, SOON, || {
            let there = world.read("traefik/http/routers/");
            let is_it = there.get(rule).is_some_and(|kv| kv.value.contains(word));
            is_it.then_some(()).ok_or(there)
        });
    };
    reads(&mut world, "old");
    world.configure(node, &records("kv", "Host(`new`)"));
    world.nodes[node].ok(&["reload"]);
    reads(&mut world, "new");
    until("it is the other's", SOON, || {
        let there = world.read("/leasehold/v1/main/a/");
        let is_its = there.keys().eq(["/leasehold/v1/main/a/shop"]);
        is_its.then_some(()).ok_or(there)
    });
}

#[test]
fn nobody_waits_for_an_etcd_that_is_not_there() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    world.etcd.kill(0);
    let node = world.start(ALL);
    world.until_target(node, "etcd", "failed", "etcd");
    world.etcd.start(0);
    ready(&mut world.client, 1);
    world.until_records(10, Span::secs(20));
    world.until_target(node, "etcd", "ok", "");
    let pids = |world: &World| -> Vec<i32> {
        let workers = world.nodes[node].status().workers();
        workers.iter().map(|worker| worker.pid).collect()
    };
    let before = pids(&world);
    world.etcd.kill(0);
    world.until_target(node, "etcd", "failed", "not renewed");
    world.etcd.start(0);
    ready(&mut world.client, 1);
    world.until_target(node, "etcd", "ok", "");
    world.until_records(10, Span::secs(20));
    assert_eq!(pids(&world), before);
}

#[test]
fn more_than_one_transaction_takes() {
    let Some(mut world) = World::new(&[]) else {
        return;
    };
    let node = world.plan("");
    let rig = &world.nodes[node];
    rig.configure(&format!(
        r#"
        [node]
        name = "n1"
        [etcd]
        endpoints = {:?}
        [fleet.web]
        command = ["sleep", "1000"]
        workers = 40
        ready = "delay=1s"
        port_range = "20000-20063"
        stop = {{ deregister_delay = "100ms" }}
        {ALL}
        "#,
        world.etcd.endpoints(),
    ));
    world.nodes[node].start_settled();
    let all = world.until_records(200, SOON);
    for slot in 0..40 {
        let its = of_slot(&all, slot);
        let revisions: BTreeSet<i64> = its.iter().map(|kv| kv.created).collect();
        assert_eq!((its.len(), revisions.len()), (5, 1), "{its:#?}");
    }
    world.watch();
    world.nodes[node].ok(&["stop", "web"]);
    world.until_records(0, SOON);
    let gone = world.gone().to_vec();
    for slot in 0..40 {
        let its = gone.iter().filter(|(key, _)| slot_of(key) == slot);
        let revisions: BTreeSet<i64> = its.map(|(_, revision)| *revision).collect();
        assert_eq!(revisions.len(), 1, "web/{slot}: {gone:?}");
    }
}

/// Whom a node asks first does not answer for longer than the lease lasts.
#[test]
fn a_frozen_member_takes_no_record_away() {
    let Some(mut world) = World::of(3, &[]) else {
        return;
    };
    let node = world.start(ALL);
    world.until_records(10, SOON);
    let lease = world.lease();
    world.watch();
    world.etcd.freeze(0);
    world.pass(TTL.times(2));
    assert_eq!(world.gone(), []);
    assert_eq!(world.lease(), lease);
    world.nodes[node].ok(&["stop", "web/1"]);
    world.until_records(5, SOON);
    world.etcd.thaw(0);
    world.nodes[node].ok(&["start", "web/1"]);
    world.until_records(10, SOON);
    world.until_target(node, "etcd", "ok", "");
}

/// A role that may not write into a tree is one target's matter.
#[test]
fn what_we_may_not_write_keeps_nothing_else_away() {
    let Some(mut world) = World::new(&["--bcrypt-cost=4"]) else {
        return;
    };
    let grant = |prefix| {
        [
            "role",
            "grant-permission",
            "node",
            "--prefix=true",
            "readwrite",
            prefix,
        ]
    };
    for args in [
        &["user", "add", "root:secret"][..],
        &["user", "grant-role", "root", "root"],
        &["role", "add", "node"],
        &grant("/leasehold/v1/main/"),
        &grant("/services/"),
        &["user", "add", "node:right"],
        &["user", "grant-role", "node", "node"],
        &["auth", "enable"],
    ] {
        world.etcd.ctl(args).unwrap();
    }
    world.client = Client::new(Settings {
        endpoints: world.etcd.endpoints(),
        user: Some(("root".to_owned(), "secret".to_owned())),
        tls: None,
    });
    let user = "[etcd]\nuser = \"node\"\npassword = \"right\"";
    let node = world.plan(ALL);
    let path = world.nodes[node].path("leasehold.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("[etcd]", user)).unwrap();
    world.nodes[node].start_settled();
    world.until_target(node, "traefik", "failed", "permission denied");
    world.until_target(node, "coredns", "failed", "permission denied");
    world.until_target(node, "etcd", "ok", "");
    world.until_target(node, "kv", "ok", "");
    world.until_records(4, SOON);
    world.nodes[node].ok(&["stop", "web/1"]);
    world.until_records(2, SOON);
    world.nodes[node].ok(&["start", "web/1"]);
    for prefix in ["traefik/", "/skydns/"] {
        world
            .etcd
            .ctl(&[&["--user=root:secret"], &grant(prefix)[..]].concat())
            .unwrap();
    }
    world.until_records(10, Span::secs(20));
    world.until_target(node, "traefik", "ok", "");
}

/// etcd takes no writes any more; that somebody goes can be said all the same.
#[test]
fn a_full_etcd_still_hears_who_goes() {
    let Some(mut world) = World::new(&["--quota-backend-bytes=2097152"]) else {
        return;
    };
    let node = world.start(ALL);
    world.until_records(10, SOON);
    let filler = "x".repeat(100 * 1024);
    until("the quota is used up", Span::secs(60), || {
        world
            .etcd
            .ctl(&["put", "filler", &filler])
            .err()
            .ok_or("it takes more")
    });
    world.nodes[node].ok(&["stop", "web/1"]);
    world.until_records(5, SOON);
    world.nodes[node].ok(&["start", "web/1"]);
    world.until_target(node, "etcd", "failed", "NOSPACE");
    world.nodes[node].settle(10_000);
    let supervisor = world.nodes[node].status().supervisor();
    send(supervisor, Signal::KILL);
    world.nodes[node].wait("another supervisor", 10_000, |status| {
        status.supervisor() != supervisor
    });
    world.nodes[node].ok(&["stop", "web/0"]);
    world.until_records(0, SOON);
}
