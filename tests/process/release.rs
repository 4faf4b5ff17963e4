//! `leasehold singletons`: who has a lock is told, and it is given to whoever waits, whatever dies in between.

use std::fs;

use rustix::process::Signal;
use serde_json::Value;

use crate::{
    rig::{Mode, Rig, both_ways, lives, send, until, until_true},
    singletons::hold,
};

both_ways!(
    a_lock_is_given_to_whoever_waits,
    nobody_waits_and_it_comes_back,
    a_release_outlives_its_supervisor,
    what_was_given_back_is_left_to_others_by_a_successor_too,
    whoever_is_no_leasehold_gets_it_too,
    what_cannot_be_released_is_refused,
    a_job_shows_its_lock_and_keeps_it,
);

/// Two daemons with one lock, `lock.file` of the first; `more` is what their fleet says beside.
fn pair(a: Rig, more: &str) -> Option<(Rig, Rig)> {
    let b = Rig::new(a.mode)?;
    let lock = a.path("lock.file");
    for (name, rig) in [("a", &a), ("b", &b)] {
        rig.configure(&format!(
            r#"
            [node]
            name = "node-{name}"
            [fleet.billing]
            {more}
            singleton = {{ scope = "node", flock = "{}" }}
            [fleet.plain]
            command = ["/bin/sleep", "1000"]
        "#,
            lock.display()
        ));
    }
    Some((a, b))
}

const SLEEPS: &str = "command = [\"/bin/sleep\", \"1000\"]";
/// Says when it is told to stop, and goes when a file is there.
const LINGERS: &str = r#"command = ["/bin/sh", "-c", "trap 'echo told >> {notes}/told; while [ ! -e {notes}/go ]; do sleep 0.01; done; exit 0' TERM; while :; do sleep 0.01; done"]
            stop.timeout = "60s""#;

fn shown(rig: &Rig) -> Result<Value, String> {
    let (code, body) = rig.request("GET", "/v1/singletons/billing", "")?;
    match code {
        200 => serde_json::from_str(&body).map_err(|e| format!("{e}: {body}")),
        code => Err(format!("{code}: {body}")),
    }
}

/// Waits until the lock of `billing/0` is as wanted.
fn gate_is(rig: &Rig, what: &str, mut wanted: impl FnMut(&Value) -> bool) -> Value {
    until(what, 10_000, || {
        let gate = shown(rig)?["gates"][0].clone();
        if wanted(&gate) {
            Ok(gate)
        } else {
            Err(gate.to_string())
        }
    })
}

fn is(state: &str) -> impl FnMut(&Value) -> bool + use<'_> {
    move |gate| gate["state"] == state
}

/// Fields of every event of that kind.
fn events(rig: &Rig, kind: &str) -> Vec<Value> {
    let shown = shown(rig).unwrap();
    let all = shown["events"].as_array().unwrap().iter();
    all.filter(|row| row["kind"] == kind)
        .map(|row| row["gate"].clone())
        .collect()
}

fn a_lock_is_given_to_whoever_waits(rig: Rig) {
    let Some((mut a, mut b)) = pair(rig, SLEEPS) else {
        return;
    };
    a.start_settled();
    b.start();
    let waits = gate_is(&b, "the second waits", is("waiting"));
    let holder = &waits["holder"];
    assert_eq!(holder["node"], "node-a");
    assert_eq!(holder["keeper"], a.keeper());
    assert_eq!(holder["here"], false);
    let ours = gate_is(&a, "the first has it", is("open"));
    assert_eq!(holder["fence"], ours["fence"]);
    let worker = a.status().worker("billing/0").unwrap();
    assert_eq!(ours["holder"]["pid"], worker.pid);

    let list = a.ok(&["singletons"]);
    assert!(list.starts_with("SLOT       STATE  FOR"), "{list}");
    assert!(
        list.contains(&format!("this node, pid {}", worker.pid)),
        "{list}"
    );
    let list = b.ok(&["singletons", "list", "bil*"]);
    assert!(
        list.contains("waiting") && list.contains("billing/0 on node-a"),
        "{list}"
    );
    let json: Value = serde_json::from_str(&b.ok(&["singletons", "list", "--json"])).unwrap();
    assert_eq!(json.as_array().unwrap().len(), 1);
    assert_eq!(json[0]["gates"][0]["holder"]["fence"], ours["fence"]);

    let said = a.ok(&["singletons", "release", "billing"]);
    assert!(
        said.contains("its lock went to billing/0 on node-b"),
        "{said}"
    );
    assert!(!lives(worker.pid));
    let theirs = gate_is(&b, "the second has it", is("open"));
    assert_eq!(
        theirs["fence"].as_u64(),
        ours["fence"].as_u64().map(|n| n + 1)
    );
    let back = gate_is(&a, "the first waits", is("waiting"));
    assert_eq!(back["holder"]["node"], "node-b");
    assert_eq!(back["released_by"], Value::Null);
    assert_eq!(a.status().fleet("billing")["state"], "standby");

    let shut = events(&a, "gate-shut");
    assert_eq!(shut.len(), 1, "{shut:?}");
    assert_eq!(
        (&shut[0]["cause"], &shut[0]["fence"]),
        (&"released".into(), &ours["fence"])
    );
    assert!(shut[0]["by"].as_str().unwrap().contains("pid"), "{shut:?}");
    assert_eq!(events(&a, "gate-released").len(), 1);
    let opened = events(&b, "gate-opened");
    assert_eq!(opened[0]["holder"]["node"], "node-a", "{opened:?}");
    assert!(opened[0]["waited_ms"].is_u64(), "{opened:?}");
    let show = a.ok(&["singletons", "show", "billing"]);
    assert!(show.contains("gave its lock back after"), "{show}");
    assert!(
        show.contains("waits for its lock: held by billing/0 on node-b"),
        "{show}"
    );
    assert!(
        a.ok(&["singletons", "show", "billing/0", "--json"])
            .contains("\"gate-shut\"")
    );
    let page = a.request("GET", "/", "").unwrap().1;
    assert!(page.contains("lock: held by billing/0 on node-b"), "{page}");

    // What stop does is told apart from it.
    b.ok(&["stop", "billing"]);
    gate_is(&a, "the first has it again", is("open"));
    let stopped = gate_is(&b, "it is stopped", is("shut"));
    assert!(
        stopped["why"].as_str().unwrap().starts_with("stopped by "),
        "{stopped}"
    );
    assert_eq!(events(&b, "gate-shut")[0]["cause"], "stopped");
    a.drain(5_000);
    b.drain(5_000);
}

fn nobody_waits_and_it_comes_back(rig: Rig) {
    let Some((mut a, _)) = pair(rig, SLEEPS) else {
        return;
    };
    a.start_settled();
    let before = gate_is(&a, "it has its lock", is("open"));
    let said = a.cli(&["singletons", "release", "billing/0", "--json"]);
    assert_eq!(said.code, 0, "{}", said.err);
    let slots: Value = serde_json::from_str(&said.out).unwrap();
    assert_eq!(slots[0]["state"], "open");
    let fences = [&before["fence"], &slots[0]["fence"]].map(|fence| fence.as_u64().unwrap());
    assert_eq!(fences[1], fences[0] + 1);
    let opened = events(&a, "gate-opened");
    let waited = opened.last().unwrap()["waited_ms"].as_u64();
    assert!(waited.is_some_and(|ms| ms >= 2_000), "{opened:?}");

    let said = a.ok(&["singletons", "release", "billing", "--no-wait"]);
    assert_eq!(said, "billing/0: its lock is being released\n");
    gate_is(&a, "it is left to others", is("yielding"));
    // A second request waits for the same.
    let said = a.ok(&["singletons", "release", "billing"]);
    assert!(
        said.contains("nobody else took its lock; it has it again"),
        "{said}"
    );
    assert_eq!(events(&a, "gate-released").len(), 2);
    // What an operator stops meanwhile stays stopped.
    a.settle(5_000);
    a.ok(&["singletons", "release", "billing", "--no-wait"]);
    a.ok(&["stop", "billing"]);
    gate_is(&a, "it is stopped", is("shut"));
    a.ok(&["start", "billing"]);
    gate_is(&a, "it has its lock", is("open"));
    a.drain(5_000);
}

/// The supervisor dies while the worker drains: its successor goes on with the release.
fn a_release_outlives_its_supervisor(rig: Rig) {
    let Some((mut a, mut b)) = pair(rig, LINGERS) else {
        return;
    };
    a.start_settled();
    b.start();
    gate_is(&b, "the second waits", is("waiting"));
    a.ok(&["singletons", "release", "billing", "--no-wait"]);
    until_true("the worker is told to stop", 5_000, || {
        !a.notes("told").is_empty()
    });
    let said = b.cli(&["singletons", "release", "billing"]);
    assert_eq!(said.code, 3, "{}", said.err);
    for _ in 0..3 {
        let supervisor = a.status().supervisor();
        send(supervisor, Signal::KILL);
        until_true("another one", 5_000, || {
            a.try_status()
                .is_ok_and(|status| status.supervisor() != supervisor)
        });
        let gate = gate_is(&a, "the release goes on", is("releasing"));
        assert!(
            gate["released_by"].as_str().unwrap().contains("pid"),
            "{gate}"
        );
    }
    // In this rig a worker of the second one would linger likewise.
    fs::write(a.path("notes/go"), "").unwrap();
    fs::write(b.path("notes/go"), "").unwrap();
    gate_is(&b, "the second has it", is("open"));
    let back = gate_is(&a, "the first waits", is("waiting"));
    assert_eq!(back["holder"]["node"], "node-b");
    assert_eq!(events(&a, "gate-shut")[0]["cause"], "released");
    a.drain(5_000);
    b.drain(5_000);
}

/// It dies after that: its successor does not take the lock at once either.
fn what_was_given_back_is_left_to_others_by_a_successor_too(rig: Rig) {
    let Some((mut a, _)) = pair(rig, SLEEPS) else {
        return;
    };
    a.start_settled();
    let fence = gate_is(&a, "it has its lock", is("open"))["fence"].clone();
    a.ok(&["singletons", "release", "billing", "--no-wait"]);
    let gate = gate_is(&a, "it is left to others", is("yielding"));
    let supervisor = a.status().supervisor();
    send(supervisor, Signal::KILL);
    let heir = gate_is(&a, "its successor knows", |gate| {
        gate["state"] == "yielding" && a.status().supervisor() != supervisor
    });
    assert_eq!(heir["since"], gate["since"]);
    let back = gate_is(&a, "it is had again", is("open"));
    assert_ne!(back["fence"], fence);
    let waited = events(&a, "gate-opened")[0]["waited_ms"].as_u64();
    assert!(waited.is_some_and(|ms| ms >= 2_000), "{waited:?}");
    a.drain(5_000);
}

/// flock(1) waits in the kernel, writes no record, and is handed the lock all the same.
fn whoever_is_no_leasehold_gets_it_too(rig: Rig) {
    let Some((mut a, _)) = pair(rig, SLEEPS) else {
        return;
    };
    let lock = a.path("lock.file");
    a.start_settled();
    a.ok(&["stop", "billing"]);
    let mut stranger = hold(&lock);
    a.ok(&["start", "billing", "--no-wait"]);
    let waits = gate_is(&a, "it waits", is("waiting"));
    assert_eq!(waits["holder"]["pid"], stranger.id());
    assert_eq!(waits["holder"]["node"], Value::Null);
    assert!(a.ok(&["singletons"]).contains("no leasehold"));
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    gate_is(&a, "it has its lock", is("open"));
    let opened = events(&a, "gate-opened");
    assert_eq!(
        opened.last().unwrap()["holder"]["pid"],
        stranger.id(),
        "{opened:?}"
    );

    let mut waiter = std::process::Command::new("flock")
        .arg("--no-fork")
        .arg(&lock)
        .args(["sleep", "1000"])
        .spawn()
        .unwrap();
    let blocked = format!("{}", waiter.id());
    until_true("it waits in the kernel", 3_000, || {
        let table = fs::read_to_string("/proc/locks").unwrap();
        let waits = |line: &str| line.contains("->") && line.split(' ').any(|word| word == blocked);
        table.lines().any(waits)
    });
    let said = a.ok(&["singletons", "release", "billing"]);
    assert!(said.contains(&format!("pid {blocked}")), "{said}");
    waiter.kill().unwrap();
    waiter.wait().unwrap();
    gate_is(&a, "it has its lock again", is("open"));
    a.drain(5_000);
}

fn what_cannot_be_released_is_refused(rig: Rig) {
    let Some((mut a, mut b)) = pair(rig, SLEEPS) else {
        return;
    };
    let refused = |rig: &Rig, name: &str, code: i32, words: &[&str]| {
        let said = rig.cli(&["singletons", "release", name]);
        assert_eq!(said.code, code, "{name}: {}{}", said.out, said.err);
        for word in words {
            assert!(said.err.contains(word), "{name}: {word}: {}", said.err);
        }
    };
    refused(&a, "billing", 7, &["no daemon answers"]);
    a.start_settled();
    b.start();
    gate_is(&b, "the second waits", is("waiting"));
    refused(
        &b,
        "billing",
        3,
        &["it waits for it", "held by billing/0 on node-a"],
    );
    refused(
        &a,
        "plain",
        4,
        &["plain is not a singleton; there is billing"],
    );
    refused(&a, "bilings", 4, &["did you mean `billing`?"]);
    refused(
        &a,
        "billing/1",
        4,
        &["billing/1 does not exist; there is billing/0"],
    );
    refused(&a, "billing/x", 2, &["no slot"]);
    a.ok(&["stop", "billing"]);
    refused(&a, "billing", 3, &["stopped by", "leasehold start billing"]);
    for (verb, name) in [("show", "plain"), ("list", "plain"), ("show", "a b/0")] {
        assert_eq!(a.cli(&["singletons", verb, name]).code, 4, "{verb} {name}");
    }
    assert_eq!(a.request("GET", "/v1/singletons/plain", "").unwrap().0, 404);
    assert_eq!(a.request("POST", "/v1/release", "{}").unwrap().0, 404);
    a.drain(5_000);
    b.drain(5_000);
}

/// A job that forbids other runs has a lock while it runs; that is its run's.
fn a_job_shows_its_lock_and_keeps_it(mut rig: Rig) {
    rig.configure(
        r#"
        [cron.report]
        command = ["/bin/sleep", "1000"]
        schedule = "@yearly"
        overlap = "forbid"
        singleton = { scope = "node", flock = "{dir}/report.lock" }
        [cron.free]
        command = ["/bin/sleep", "1000"]
        schedule = "@yearly"
    "#,
    );
    rig.start();
    let said = rig.cli(&["singletons"]);
    assert_eq!((said.code, said.out.as_str()), (0, ""));
    assert!(said.err.contains("no singletons"), "{}", said.err);
    assert_eq!(rig.cli(&["singletons", "list", "report"]).code, 0);
    assert!(
        rig.ok(&["singletons", "show", "report"])
            .contains("the job has no run")
    );
    assert_eq!(rig.cli(&["singletons", "show", "free"]).code, 4);
    rig.ok(&["cron", "run", "report"]);
    until_true("its lock is shown", 5_000, || {
        let list = rig.ok(&["singletons"]);
        list.contains("report/0") && list.contains("open")
    });
    for (name, words) in [
        ("report", "leasehold stop report"),
        ("free", "needs no lock"),
    ] {
        let said = rig.cli(&["singletons", "release", name]);
        assert_eq!(said.code, 9, "{name}: {}", said.err);
        assert!(said.err.contains(words), "{name}: {}", said.err);
    }
    rig.ok(&["stop", "report"]);
    until_true("it is given back", 5_000, || {
        rig.ok(&["singletons"]).is_empty()
    });
    rig.drain(5_000);
}

/// A lock of several slots is given away slot by slot, and a slot that nobody gave back does not count as taken.
#[test]
fn one_slot_of_two_is_released() {
    let (Some(mut a), Some(mut b)) = (Rig::new(Mode::Group), Rig::new(Mode::Group)) else {
        return;
    };
    let name = format!("release-{}", std::process::id());
    for (node, rig, workers) in [("a", &a, 2), ("b", &b, 2)] {
        rig.configure(&format!(
            "[node]\nname = \"node-{node}\"\n[fleet.billing]\ncommand = [\"/bin/sleep\", \"1000\"]\nworkers = {workers}\nsingleton = {{ scope = \"node\", lock = \"{name}\", slots = 2 }}\n"
        ));
    }
    a.start_settled();
    let path = shown(&a).unwrap()["gates"][0]["path"]
        .as_str()
        .unwrap()
        .to_owned();
    // Nobody waits: the other slot, which is ours too, is nobody who took it.
    let said = a.ok(&["singletons", "release", "billing/1"]);
    assert!(
        said.contains("billing/1: nobody else took its lock"),
        "{said}"
    );
    b.start();
    gate_is(&b, "the second waits", is("waiting"));
    let said = a.ok(&["singletons", "release", "billing/1"]);
    assert!(
        said.contains("billing/1: its lock went to billing/"),
        "{said}"
    );
    let theirs = until("the second has it", 5_000, || {
        let shown = shown(&b)?;
        let gates = shown["gates"].as_array().unwrap();
        let open = gates.iter().find(|gate| gate["state"] == "open");
        open.map(|gate| gate["id"].as_str().unwrap().to_owned())
            .ok_or_else(|| shown.to_string())
    });
    assert!(said.contains(&format!("{theirs} on node-b")), "{said}");
    gate_is(&a, "the first slot was left alone", is("open"));
    let all: Value = serde_json::from_str(&a.ok(&["singletons", "--json"])).unwrap();
    assert_eq!(all[0]["gates"][1]["state"], "waiting");
    // A neighbour that waits too is not meant.
    let said = b.ok(&["singletons", "release", &theirs]);
    assert!(
        said.contains("its lock went to billing/1 on node-a"),
        "{said}"
    );
    let said = a.cli(&["singletons", "release", "billing/2"]);
    assert!(
        said.err.contains("there is billing/0 to billing/1"),
        "{}",
        said.err
    );
    a.drain(5_000);
    b.drain(5_000);
    for slot in 0..2 {
        let _ = fs::remove_file(std::path::Path::new(&path).with_extension(slot.to_string()));
    }
}
