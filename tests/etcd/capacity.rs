//! `scale.cluster_max` in a real etcd: how many workers there are on all nodes, and what becomes of them when a node or etcd is gone.

use std::{collections::BTreeMap, fs};

use leasehold::{
    engine::cluster::rpc::{Body, Do, KeyValue, LeaseId, Reply, Request, Txn},
    sys::clock,
    time::Span,
};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    client::Client,
    daemon::{Mode, Rig, identities, send},
    real::ready,
    rig::{Cluster, until},
};

const UNITS: &str = "/leasehold/v1/main/cap/web/";
const TTL: Span = Span::secs(5);
/// For whatever takes a decision, or a look at what others have.
const SOON: Span = Span::secs(20);

struct World {
    etcd: Cluster,
    client: Client,
    nodes: Vec<Rig>,
}

impl World {
    fn new() -> Option<Self> {
        let etcd = Cluster::alone()?;
        let mut client = Client::of(&etcd);
        ready(&mut client, 1);
        Some(Self {
            etcd,
            client,
            nodes: Vec::new(),
        })
    }

    /// A node with a fleet of one to four workers, and more settings of its scale.
    fn start(&mut self, scale: &str) -> usize {
        let node = self.nodes.len();
        let rig = Rig::new(Mode::Group).expect("groups are everywhere");
        self.nodes.push(rig);
        self.configure(node, scale);
        self.nodes[node].start_settled();
        node
    }

    fn configure(&self, node: usize, scale: &str) {
        self.nodes[node].configure(&format!(
            r#"
            [node]
            name = "n{}"
            cpu_reserve = "0%"
            [etcd]
            endpoints = {:?}
            lease_ttl = "{TTL}"
            [fleet.web]
            command = [{{worker}}, "sleep"]
            scale = {{ min = 1, max = 4{scale} }}
            "#,
            node + 1,
            self.etcd.endpoints(),
        ));
    }

    /// An operator wants at least so many here.
    fn want(&self, node: usize, workers: u32) {
        let workers = workers.to_string();
        self.nodes[node].ok(&["scale", "web", &workers, "--no-wait"]);
    }

    fn live(&self, node: usize) -> usize {
        self.nodes[node].status().of("web").len()
    }

    fn live_of_all(&self) -> Vec<usize> {
        (0..self.nodes.len()).map(|node| self.live(node)).collect()
    }

    fn until_live(&self, what: &str, bound: Span, is_it: impl Fn(&[usize]) -> bool) {
        until(what, bound, || {
            let all = self.live_of_all();
            if is_it(&all) { Ok(()) } else { Err(all) }
        });
    }

    fn units(&mut self) -> BTreeMap<String, KeyValue> {
        let txn = Txn::read(vec![Do::List(UNITS.to_owned())]);
        match self.client.ask(0, Request::Txn(txn)) {
            Ok(Reply {
                body: Body::Txn { read, .. },
                ..
            }) => {
                let all = read.into_iter().flatten();
                all.map(|kv| (kv.key.clone(), kv)).collect()
            }
            other => panic!("units cannot be read: {other:?}"),
        }
    }

    fn units_of(&mut self, node: usize) -> Vec<KeyValue> {
        let name = format!("n{}", node + 1);
        let mut all: Vec<KeyValue> = self.units().into_values().collect();
        all.retain(|kv| serde_json::from_str::<Value>(&kv.value).unwrap()["node"] == name);
        all
    }

    fn until_units(&mut self, what: &str, bound: Span, of: &[usize]) {
        until(what, bound, || {
            let nodes = 0..of.len();
            let all: Vec<usize> = nodes.map(|node| self.units_of(node).len()).collect();
            if all == of { Ok(()) } else { Err(all) }
        });
    }

    /// For so long it is looked whether this stays true.
    fn stays(&mut self, what: &str, span: Span, mut is_it: impl FnMut(&mut Self) -> bool) {
        let end = clock::now().after(span);
        while clock::now() < end {
            assert!(is_it(self), "{what}: {:?}", self.live_of_all());
            self.client.pass(Span::millis(100));
        }
    }

    fn explained(&self, node: usize) -> Value {
        let text = self.nodes[node].ok(&["scale", "web", "--explain", "--json"]);
        serde_json::from_str(&text).unwrap()
    }

    /// What it says of its last decision.
    fn until_said(&self, node: usize, verdict: &str, reason: &str) -> Value {
        until(&format!("{verdict} ({reason})"), SOON, || {
            let all = self.explained(node);
            let last = all["decisions"].as_array().and_then(|all| all.last());
            match last.is_some_and(|one| one["verdict"] == verdict && one["reason"] == reason) {
                true => Ok(all),
                false => Err(all["decisions"].to_string()),
            }
        })
    }
}

#[test]
fn all_nodes_together_grow_to_the_maximum_and_no_further() {
    let Some(mut world) = World::new() else {
        return;
    };
    for _ in 0..3 {
        world.start(", cluster_max = 4");
    }
    world.until_units("their least is counted", SOON, &[1, 1, 1]);
    for node in 0..3 {
        world.want(node, 4);
    }
    world.until_live("there are four", SOON, |all| all.iter().sum::<usize>() == 4);
    let grown = (0..3).find(|node| world.live(*node) == 2).unwrap();
    world.stays("there are four", Span::secs(8), |world| {
        let is_there = world.live_of_all().iter().sum::<usize>() == 4;
        is_there && world.units().len() == 4
    });
    let others = (0..3).filter(|node| *node != grown);
    for node in others {
        let all = world.until_said(node, "blocked", "cluster_max");
        let said = serde_json::json!({ "max": 4, "held": 1, "taken": 4 });
        assert_eq!(all["scale"]["cluster"], said);
        assert_eq!(all["scale"]["blocked"], "cluster_max");
    }
    let table = world.nodes[grown].ok(&["scale", "web", "--explain"]);
    assert!(
        table.contains("of 4 on all nodes 4 are taken, 2 of them here"),
        "{table}"
    );

    // What a dead node had is free with its lease.
    world.nodes[grown].kill_keeper();
    world.nodes.remove(grown);
    world.until_live("others grow", TTL.plus(SOON), |all| {
        all.iter().sum::<usize>() == 4
    });
    world.stays("there are four", Span::secs(6), |world| {
        world.live_of_all().iter().sum::<usize>() == 4
    });
    // A node that leaves gives back what it had.
    let mut leaver = world.nodes.remove(0);
    leaver.drain(15_000);
    world.until_live("the last one has all", SOON, |all| all == [4]);
    assert_eq!(world.units().len(), 4);
    world.nodes[0].drain(15_000);
    assert_eq!(world.units(), BTreeMap::new());
}

#[test]
fn without_etcd_nobody_grows_and_nobody_is_ended() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start(", cluster_max = 4");
    world.want(0, 2);
    world.until_units("two are counted", SOON, &[2]);
    let before = world.nodes[0].settle(10_000);
    world.etcd.kill(0);
    world.want(0, 4);
    world.until_said(0, "blocked", "etcd");
    // Its least is there, though nobody counts it.
    world.start(", cluster_max = 4");
    world.want(1, 3);
    world.until_said(1, "blocked", "etcd");
    world.stays("nobody grows", TTL.plus(Span::secs(3)), |world| {
        world.live_of_all() == [2, 1]
    });
    let after = world.nodes[0].status();
    assert_eq!(identities(&before.of("web")), identities(&after.of("web")));

    world.etcd.start(0);
    ready(&mut world.client, 1);
    until("four are counted", TTL.plus(SOON), || {
        match world.units().len() {
            4 => Ok(()),
            count => Err(count),
        }
    });
    // A least for which nothing was free is beside them.
    world.stays("no more than that", Span::secs(8), |world| {
        let all = world.live_of_all();
        let counted: Vec<usize> = (0..2).map(|node| world.units_of(node).len()).collect();
        let beside = all
            .iter()
            .zip(&counted)
            .all(|(live, units)| live <= &(*units).max(1));
        counted.iter().sum::<usize>() == 4 && beside && all[0] >= 2
    });
    let last = world.nodes[0].status();
    let first = identities(&before.of("web"));
    let last = identities(&last.of("web"));
    assert!(first.iter().all(|one| last.contains(one)), "{last:?}");
}

#[test]
fn a_drained_node_gives_its_units_to_others_and_comes_back_with_its_least() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start(", cluster_max = 4");
    world.start(", cluster_max = 4");
    world.until_units("their least is counted", SOON, &[1, 1]);
    world.want(0, 4);
    world.until_live("one has three", SOON, |all| all == [3, 1]);
    world.want(1, 4);
    world.until_said(1, "blocked", "cluster_max");
    world.nodes[0].ok(&["drain"]);
    until("the other one has four", SOON, || match world.live(1) {
        4 => Ok(()),
        live => Err(live),
    });
    assert_eq!(world.units_of(0).len(), 0);
    world.nodes[0].ok(&["undrain", "--no-wait"]);
    world.until_said(0, "blocked", "cluster_max");
    world.stays("the first one has its least", Span::secs(6), |world| {
        world.live_of_all() == [1, 4] && world.units().len() == 4
    });
}

/// Each node has a queue, and follows it. What one of them has no more work for another one grows by.
#[test]
fn load_that_moves_takes_its_workers_along() {
    let Some(mut world) = World::new() else {
        return;
    };
    let depths = tempfile::tempdir().unwrap();
    let depth = |node: usize| depths.path().join(node.to_string());
    for node in 0..3 {
        fs::write(depth(node), "1").unwrap();
        let path = depth(node);
        world.start(&format!(
            r#", cluster_max = 6, signals = ["queue"], queue_per_worker = 10, worker_cores = "0.01", warmup = "0s", down_window = "5s", source = {{ exec = ["/bin/cat", {path:?}], interval = "200ms" }}"#
        ));
    }
    world.until_units("their least is counted", SOON, &[1, 1, 1]);
    let long = Span::secs(90);
    for (busy, idle) in [(0, 1), (1, 0)] {
        fs::write(depth(idle), "1").unwrap();
        fs::write(depth(busy), "40").unwrap();
        world.until_live("it has four", long, |all| all[busy] == 4 && all[idle] == 1);
    }
    // The third would like to have four as well.
    fs::write(depth(2), "40").unwrap();
    world.until_said(2, "blocked", "cluster_max");
    world.stays("there are six", Span::secs(6), |world| {
        world.live_of_all().iter().sum::<usize>() == 6 && world.units().len() == 6
    });
}

/// It freezes for longer than leases last, and ends them when it goes on.
#[test]
fn a_lease_that_is_gone_ends_nobody_and_is_had_again() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start(", cluster_max = 4");
    world.want(0, 3);
    world.until_units("three are counted", SOON, &[3]);
    let before = identities(&world.nodes[0].settle(10_000).of("web"));
    world.etcd.freeze(0);
    world.want(0, 4);
    world.until_said(0, "blocked", "etcd");
    world.stays("nobody grows", TTL.plus(Span::secs(2)), |world| {
        world.live(0) == 3
    });
    world.etcd.thaw(0);
    ready(&mut world.client, 1);
    world.until_units("it goes on", TTL.plus(SOON), &[4]);
    world.until_live("it goes on", SOON, |all| all == [4]);

    let lease = world.units_of(0)[0].lease.expect("they hang on a lease");
    let revoke = ["lease", "revoke", &lease.to_string()];
    world.etcd.ctl(&revoke).unwrap();
    until("they are claimed anew", SOON, || {
        let all = world.units_of(0);
        let anew = all.iter().filter(|kv| kv.lease != Some(lease)).count();
        if anew == 4 { Ok(()) } else { Err(anew) }
    });
    let after = identities(&world.nodes[0].status().of("web"));
    assert!(before.iter().all(|one| after.contains(one)), "{after:?}");
}

#[test]
fn a_supervisors_death_gives_no_unit_away_and_neither_does_a_new_keepers() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start(", cluster_max = 4");
    world.want(0, 3);
    world.until_units("three are counted", SOON, &[3]);
    let created = |world: &mut World| -> Vec<(String, i64, Option<LeaseId>)> {
        let units = world.units().into_values();
        units.map(|kv| (kv.key, kv.created, kv.lease)).collect()
    };
    let before = created(&mut world);
    let supervisor = world.nodes[0].status().supervisor();
    send(supervisor, Signal::KILL);
    world.nodes[0].wait("another supervisor", 10_000, |status| {
        status.supervisor() != supervisor
    });
    world.stays("they are the same", TTL.plus(Span::secs(2)), |world| {
        created(world) == before
    });
    world.want(0, 4);
    world.until_live("it goes on", SOON, |all| all == [4]);

    world.nodes[0].kill_keeper();
    world.nodes[0].start();
    world.until_units("it has what it had", TTL.plus(SOON), &[4]);
    world.until_live("it has what it had", SOON, |all| all == [4]);
}

#[test]
fn another_maximum_moves_nobody() {
    let Some(mut world) = World::new() else {
        return;
    };
    world.start(", cluster_max = 4");
    world.want(0, 3);
    world.until_units("three are counted", SOON, &[3]);
    let before = identities(&world.nodes[0].settle(10_000).of("web"));
    world.configure(0, ", cluster_max = 2");
    world.nodes[0].ok(&["reload"]);
    until("it is said", SOON, || {
        match &world.explained(0)["scale"]["cluster"] {
            said if said["max"] == 2 => Ok(()),
            said => Err(said.to_string()),
        }
    });
    world.want(0, 4);
    world.until_said(0, "blocked", "cluster_max");
    world.until_units("they stay", SOON, &[3]);
    world.configure(0, "");
    world.nodes[0].ok(&["reload"]);
    world.until_live("nobody is in its way", SOON, |all| all == [4]);
    world.until_units("nobody counts", TTL.plus(SOON), &[0]);
    let after = identities(&world.nodes[0].status().of("web"));
    assert!(before.iter().all(|one| after.contains(one)), "{after:?}");
}
