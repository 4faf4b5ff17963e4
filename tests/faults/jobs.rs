//! Jobs of the cluster: each tick is one node's, whatever becomes of nodes and of etcd.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use leasehold::sys::clock;
use serde_json::Value;

use crate::{
    etcd::{Cluster, Setup},
    rig::{Mode, Rig, until, until_true},
    wall::Clock,
};

/// Nodes that see the same clock, and one file in which every run is noted.
struct Scene {
    etcd: Cluster,
    nodes: Vec<Rig>,
    clocks: Vec<Clock>,
    notes: tempfile::TempDir,
}

impl Scene {
    /// None, loudly, where that cannot be.
    fn new(nodes: usize, jobs: &str) -> Option<Self> {
        let etcd = Cluster::with(Setup {
            members: 1,
            ..Setup::default()
        })?;
        let notes = tempfile::tempdir().unwrap();
        let mut scene = Self {
            etcd,
            nodes: Vec::new(),
            clocks: Vec::new(),
            notes,
        };
        for number in 0..nodes {
            let mut rig = Rig::new(Mode::Group)?;
            scene.clocks.push(Clock::new(&mut rig)?);
            let endpoints = scene.etcd.endpoints();
            let notes = scene.notes.path().display();
            rig.configure(&format!(
                r#"
                [node]
                name = "n{number}"
                [etcd]
                endpoints = {endpoints:?}
                cluster = "jobs"
                lease_ttl = "8s"
                {}
                "#,
                jobs.replace("{all}", &notes.to_string())
            ));
            scene.nodes.push(rig);
        }
        Some(scene)
    }

    /// All see the next minute in so many seconds: it.
    fn next_minute(&self, minutes: i64, before: i64) -> Timestamp {
        let minute = self.clocks[0].set_before(minutes, before);
        for clock in &self.clocks[1..] {
            assert_eq!(
                clock.set_before(minutes, before),
                minute,
                "a real minute has just begun: as seldom as it is short"
            );
        }
        minute
    }

    fn joined(&self, node: usize) {
        self.nodes[node].wait("it has a lease", 10_000, |status| {
            status.0["cluster"]["state"] == "joined"
        });
    }

    /// `(tick, node)` of every run that began.
    fn began(&self) -> Vec<(Timestamp, String)> {
        let text = fs::read_to_string(self.notes.path().join("all")).unwrap_or_default();
        let line = |line: &str| {
            let (tick, node) = line.split_once(' ').unwrap();
            (tick.parse().unwrap(), node.to_owned())
        };
        text.lines().map(line).collect()
    }

    /// The runs as a node tells them, the newest first.
    fn history(&self, node: usize) -> Vec<Value> {
        let text = self.nodes[node].ok(&["cron", "history", "tick", "--json"]);
        serde_json::from_str(&text).unwrap()
    }
}

const NOTES: &str = "echo $LEASEHOLD_SCHEDULED $LEASEHOLD_NODE >> {all}/all";

fn job(then: &str, more: &str) -> String {
    format!(
        r#"
        [cron.tick]
        command = ["/bin/sh", "-c", "{NOTES}; {then}"]
        schedule = "* * * * *"
        singleton = {{ scope = "cluster" }}
        {more}
        "#
    )
}

/// The tick before this one.
fn before(minute: Timestamp) -> Timestamp {
    minute.checked_sub(SignedDuration::from_mins(1)).unwrap()
}

#[test]
fn a_tick_is_one_nodes() {
    let Some(mut scene) = Scene::new(
        3,
        &job("exit 3", "overlap = \"queue\"\n        history = 3"),
    ) else {
        return;
    };
    let mut minute = scene.next_minute(10, 4);
    for node in 0..3 {
        scene.nodes[node].start();
    }
    let mut minutes = vec![minute];
    for round in 1..5 {
        until_true("a run began", 15_000, || {
            scene.began().iter().any(|run| run.0 == minute)
        });
        minute = scene.next_minute(10 + round * 3, 2);
        minutes.push(minute);
    }
    until_true("the last run began", 15_000, || {
        scene.began().iter().any(|run| run.0 == minute)
    });
    let mut ticks: Vec<Timestamp> = scene.began().into_iter().map(|run| run.0).collect();
    let count = ticks.len();
    ticks.dedup();
    assert_eq!(ticks.len(), count, "each tick once: {:?}", scene.began());
    // A run is on time for a minute: whoever saw the jump at once was in time for the minute before, too.
    ticks.retain(|tick| !minutes.iter().any(|minute| before(*minute) == *tick));
    assert_eq!(ticks, minutes);
    // From any node, and no more than are to be remembered.
    for node in 0..3 {
        let runs = until("the newest three, as they ended", 10_000, || {
            let runs = scene.history(node);
            let ended = runs.iter().all(|run| run["outcome"] == "failed");
            (ended && runs.len() == 3)
                .then_some(runs.clone())
                .ok_or(format!("{runs:?}"))
        });
        let newest: Timestamp = runs[0]["scheduled"].as_str().unwrap().parse().unwrap();
        assert_eq!(newest, minute);
        let who = scene.began().pop().unwrap().1;
        assert_eq!(runs[0]["node"], who.as_str());
        assert!(
            runs[0]["reason"].as_str().unwrap().contains("code 3"),
            "{}",
            runs[0]
        );
    }
    // Without etcd nobody knows whose it is, and so nobody starts it.
    scene.etcd.kill(0);
    let began = scene.began().len();
    scene.next_minute(30, 2);
    let missed = until("it is told as missed", 25_000, || {
        let job = scene.nodes[0].ok(&["cron", "list", "--json"]);
        let job: Vec<Value> = serde_json::from_str(&job).unwrap();
        let last = job[0]["last"].clone();
        let told = last["reason"]
            .as_str()
            .is_some_and(|why| why.contains("could not be claimed"));
        told.then_some(last.clone()).ok_or(last.to_string())
    });
    assert_eq!(missed["outcome"], "missed");
    assert_eq!(scene.began().len(), began);
    for node in &mut scene.nodes {
        node.drain(10_000);
    }
}

/// Its run goes on without etcd, is reported when its node is gone, and keeps others from starting while it is there.
#[test]
fn a_run_outlives_etcd_and_is_lost_with_its_node() {
    let Some(mut scene) = Scene::new(2, &job("exec sleep 1000", "")) else {
        return;
    };
    let first = scene.next_minute(10, 4);
    for node in 0..2 {
        scene.nodes[node].start();
    }
    until_true("a run began", 15_000, || scene.began().len() == 1);
    let who: usize = scene.began()[0].1[1..].parse().unwrap();
    let other = 1 - who;
    // Its neighbour's turn is skipped: overlap says so, and it is asked of all of the cluster.
    let second = scene.next_minute(12, 2);
    until("a skip is told", 15_000, || {
        let runs = scene.history(other);
        let of = |run: &&Value| {
            run["scheduled"]
                .as_str()
                .unwrap()
                .parse::<Timestamp>()
                .unwrap()
                == second
        };
        let skipped = runs
            .iter()
            .find(of)
            .is_some_and(|run| run["outcome"] == "skipped");
        skipped.then_some(()).ok_or(format!("{runs:?}"))
    });
    assert_eq!(scene.began().len(), 1);
    // Longer than its lease: a job without a lock does not care.
    scene.etcd.kill(0);
    let gone = clock::now();
    until_true("its lease is over", 20_000, || {
        let status = scene.nodes[who].status();
        status.0["cluster"]["state"] != "joined"
    });
    assert!(clock::now() > gone);
    assert!(scene.nodes[who].status().worker("tick/0").unwrap().pid > 0);
    scene.etcd.start(0);
    for node in 0..2 {
        scene.joined(node);
    }
    assert!(scene.nodes[who].status().worker("tick/0").unwrap().pid > 0);
    // It dies with its node.
    scene.nodes[who].kill_keeper();
    until("it is told as lost", 20_000, || {
        let runs = scene.history(other);
        let last = runs.last().cloned().unwrap_or_default();
        let tick: Timestamp = last["scheduled"].as_str().unwrap().parse().unwrap();
        (tick == first && last["outcome"] == "lost")
            .then_some(())
            .ok_or(format!("{runs:?}"))
    });
    // And keeps nobody from the next one.
    let third = scene.next_minute(14, 2);
    until_true("the next one is run", 20_000, || scene.began().len() == 2);
    let next = scene.began().pop().unwrap().0;
    assert!([before(third), third].contains(&next), "{next}");
    scene.nodes[other].drain(10_000);
}

/// The next tick is months away: its end is known at once all the same, and keeps nobody from the next run.
#[test]
fn a_run_that_somebody_asked_for_is_over_when_it_has_ended() {
    let yearly = job("exit 3", "").replace("* * * * *", "@yearly");
    let Some(mut scene) = Scene::new(2, &yearly) else {
        return;
    };
    for node in 0..2 {
        scene.nodes[node].start();
        scene.joined(node);
    }
    for node in [0, 1, 0] {
        let began = scene.began().len();
        scene.nodes[node].ok(&["cron", "run", "tick"]);
        until("its end is known to all", 10_000, || {
            let runs = scene.history(1 - node);
            let ended = runs.iter().filter(|run| run["outcome"] == "failed");
            let all = ended.count() == began + 1;
            all.then_some(()).ok_or(format!("{runs:?}"))
        });
        let last = scene.began().pop().unwrap();
        assert_eq!(last.1, format!("n{node}"));
    }
    for node in &mut scene.nodes {
        node.drain(10_000);
    }
}
