//! Daemons that run a singleton of the cluster: what they say of an etcd that is not as it should be, and who is next.

use std::{fs, io::Write, net::TcpListener, thread};

use leasehold::time::Span;

use crate::{
    daemon::{Mode, Rig, Status},
    rig::{Cluster, address, until},
};

/// For whatever takes no time but this machine's.
const SOON: Span = Span::secs(15);
const SOON_MS: u64 = 15_000;
/// The worker says its fence and its epoch.
const SAYS: &str = "echo $$LEASEHOLD_EPOCH $$LEASEHOLD_FENCE >> {dir}/said; exec sleep 1000";

/// More than the usual settings.
#[derive(Clone, Copy, Default)]
struct More<'a> {
    etcd: &'a str,
    fleet: &'a str,
    /// Another command than the usual one.
    runs: Option<&'a str>,
    lock: &'a str,
}

/// A node, not yet started.
fn node(name: &str, endpoints: &[String], more: More<'_>) -> Rig {
    let rig = Rig::new(Mode::Group).expect("groups are everywhere");
    configure(&rig, name, endpoints, more);
    rig
}

fn configure(rig: &Rig, name: &str, endpoints: &[String], more: More<'_>) {
    let More {
        etcd,
        fleet,
        lock,
        runs,
    } = more;
    let runs = runs.unwrap_or(SAYS);
    rig.configure(&format!(
        r#"
        [node]
        name = "{name}"
        [etcd]
        endpoints = {endpoints:?}
        lease_ttl = "5s"
        {etcd}
        [fleet.billing]
        command = ["/bin/sh", "-c", "{runs}"]
        {fleet}
        singleton = {{ scope = "cluster", containment = "weak", grace = "500ms", kill_margin = "500ms"{lock} }}
        "#,
    ));
}

/// So many of its workers run.
fn runs(status: &Status) -> usize {
    let workers = status.workers();
    workers.iter().filter(|one| one.pid > 0).count()
}

fn until_said(rig: &Rig, words: &[&str]) {
    let what = format!("{words:?} is said");
    until(&what, SOON, || {
        let all = rig.ok(&["singletons"]);
        let is_said = words.iter().all(|word| all.contains(word));
        if is_said { Ok(()) } else { Err(all) }
    });
}

/// Whoever put it there may need it: nothing is deleted, nobody begins, and it is said what is to be done.
#[test]
fn what_no_leasehold_wrote_is_named() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let place = "/leasehold/v1/main/s/billing/q/stranger";
    let name = "/leasehold/v1/main/n/n2";
    until("etcd takes keys", SOON, || {
        cluster.ctl(&["put", place, "hello"])
    });
    cluster.ctl(&["put", name, "hello"]).unwrap();
    let mut one = node("n1", &cluster.endpoints(), More::default());
    let mut two = node("n2", &cluster.endpoints(), More::default());
    let strange = "which no leasehold wrote: `etcdctl del` it";
    one.start();
    two.start();
    until_said(
        &one,
        &["held by /leasehold/v1/main/s/billing/q/stranger", strange],
    );
    until_said(&two, &["has no lease", name, strange]);
    assert_eq!(runs(&one.status()) + runs(&two.status()), 0);
    cluster.ctl(&["del", name]).unwrap();
    until_said(&two, &["held by /leasehold/v1/main/s/billing/q/stranger"]);
    cluster.ctl(&["del", place]).unwrap();
    until("one begins", SOON, || {
        let all = (runs(&one.status()), runs(&two.status()));
        if all.0 + all.1 == 1 { Ok(()) } else { Err(all) }
    });
}

/// Raised by an operator, who has it before every fence from then on.
#[test]
fn an_epoch_reaches_its_worker() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let epoch = |etcd| More {
        etcd,
        ..More::default()
    };
    let mut rig = node("n1", &cluster.endpoints(), epoch("epoch = 3"));
    rig.start();
    let said = |word: &str| {
        until("the worker has said it", SOON, || {
            let all = fs::read_to_string(rig.path("said")).unwrap_or_default();
            let last = all.lines().last().unwrap_or_default().to_owned();
            if last.starts_with(word) {
                Ok(())
            } else {
                Err(all)
            }
        });
    };
    said("3 ");
    configure(&rig, "n1", &cluster.endpoints(), epoch("epoch = 4"));
    rig.ok(&["reload"]);
    said("4 ");
}

/// Three of four that are named are none: one refuses, one says nothing, one is another program.
#[test]
fn endpoints_that_are_no_etcd_cost_nothing() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let silent = TcpListener::bind((address(), 0)).unwrap();
    let strange = TcpListener::bind((address(), 0)).unwrap();
    let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().unwrap());
    let refuses = {
        let gone = TcpListener::bind((address(), 0)).unwrap();
        url(&gone)
    };
    let mut endpoints = vec![refuses, url(&silent), url(&strange)];
    endpoints.extend(cluster.endpoints());
    thread::spawn(move || {
        for stream in strange.incoming() {
            let answer = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n";
            let _ = stream.and_then(|mut stream| stream.write_all(answer));
        }
    });
    let mut rig = node("n1", &endpoints, More::default());
    rig.start();
    rig.wait("it has its lock", SOON_MS, |status| runs(status) == 1);
    let shown = rig.cli(&["cluster"]);
    // The one or the other, by how long it has been so.
    let states = ["failing", "down"].map(|word| shown.out.matches(word).count());
    assert_eq!(states[0] + states[1], 3, "{}", shown.out);
    assert!(shown.out.contains("connection refused"), "{}", shown.out);
}

/// A node that waits for nothing but etcd is as ready as before.
#[test]
fn readyz_only_warns_of_etcd() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let more = More {
        runs: Some("trap '' TERM; while :; do sleep 0.05; done"),
        ..More::default()
    };
    let mut rig = node("n1", &cluster.endpoints(), more);
    rig.start();
    rig.wait("it has its lock", SOON_MS, |status| runs(status) == 1);
    let asked = |rig: &Rig| rig.request("GET", "/readyz?verbose", "").unwrap();
    cluster.freeze(0);
    let end = until("the loss is over", SOON, || {
        let (code, body) = asked(&rig);
        // Also while its worker ends.
        assert_eq!(code, 200, "{body}");
        let is_told = body.contains("[!]etcd") && runs(&rig.status()) == 0;
        if is_told { Ok(body) } else { Err(body) }
    });
    assert!(end.contains("standby"), "{end}");
    cluster.thaw(0);
}

#[test]
fn who_has_more_priority_is_next() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let more = More {
        lock: ", priority = 10",
        ..More::default()
    };
    let mut all = [
        node("n1", &cluster.endpoints(), More::default()),
        node("n2", &cluster.endpoints(), More::default()),
        node("n3", &cluster.endpoints(), more),
    ];
    all[0].start();
    all[0].wait("it has its lock", SOON_MS, |status| runs(status) == 1);
    for rig in &mut all[1..] {
        rig.start();
        until_said(rig, &["held by billing/0 on n1"]);
    }
    // Whoever stood before him has stepped back.
    until("the third is next", SOON, || {
        let shown = all[0].ok(&["cluster"]);
        let next = shown.lines().find(|line| line.starts_with("billing"));
        let is_next = next.is_some_and(|line| line.contains("n3, n2"));
        if is_next { Ok(()) } else { Err(shown) }
    });
    all[1].ok(&["singletons", "move", "billing"]);
    all[2].wait("the third has it", SOON_MS, |status| runs(status) == 1);
    let others = all[..2].iter().map(|rig| runs(&rig.status()));
    assert_eq!(others.sum::<usize>(), 0);
}

/// Three of them in the cluster, two of them on a node: when one node dies, one is not had.
#[test]
fn so_many_slots_and_no_more_on_a_node() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let more = More {
        fleet: "workers = 2",
        lock: ", slots = 3, per_node = 2",
        ..More::default()
    };
    let mut all = [
        node("n1", &cluster.endpoints(), more),
        node("n2", &cluster.endpoints(), more),
    ];
    for rig in &mut all {
        rig.start();
    }
    let counts = |all: &[Rig; 2]| [runs(&all[0].status()), runs(&all[1].status())];
    until("three run", SOON, || {
        let there = counts(&all);
        assert!(there[0] + there[1] <= 3, "{there:?}");
        if there[0] + there[1] == 3 {
            Ok(())
        } else {
            Err(there)
        }
    });
    let fences = |rig: &Rig| {
        let all = fs::read_to_string(rig.path("said")).unwrap_or_default();
        all.lines().map(str::to_owned).collect::<Vec<_>>()
    };
    let said = |all: &[Rig; 2], count: usize| {
        until("all have said their fences", SOON, || {
            let mut said = [fences(&all[0]), fences(&all[1])].concat();
            said.sort();
            if said.len() == count {
                Ok(said)
            } else {
                Err(said)
            }
        })
    };
    said(&all, 3);
    // Whoever has two goes.
    let (goes, stays) = match counts(&all) {
        [2, _] => (0, 1),
        _ => (1, 0),
    };
    all[goes].drain(5_000);
    all[stays].wait("it has two", SOON_MS, |status| runs(status) == 2);
    let mut all = said(&all, 4);
    all.dedup();
    assert_eq!(all.len(), 4, "each has a fence of its own");
}
