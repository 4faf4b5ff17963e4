//! What an operator said stays said: over the death of the supervisor, of the keeper, and a restart of everything.

use rustix::process::Signal;

use crate::rig::{Rig, both_ways, identities, send, until, until_true};

fn replace_supervisor(rig: &Rig) {
    let before = rig.status().supervisor();
    send(before, Signal::KILL);
    rig.wait("another supervisor", 2_000, |status| {
        status.supervisor() != before
    });
}

both_ways!(
    holds_and_sizes_outlive_everything,
    a_single_worker_is_held,
    readiness_outlives_the_supervisor,
    readiness_said_to_nobody_is_heard_by_the_next,
    a_rollout_outlives_the_supervisor,
    a_hold_that_cannot_be_kept_is_refused,
    a_drained_node_stays_empty
);

fn holds_and_sizes_outlive_everything(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "sleep"]
        workers = 2
        [fleet.job]
        command = [{worker}, "sleep"]
        workers = 2
    "#,
    );
    rig.start_settled();
    rig.ok(&["stop", "web"]);
    rig.ok(&["scale", "job", "5"]);
    let check = |rig: &Rig| {
        rig.wait("web is held, job has five", 5_000, |status| {
            status.fleet("web")["state"] == "held"
                && status.fleet("web")["desired"] == 0
                && status.of("web").iter().all(|w| w.pid == 0)
                && status.fleet("job")["desired"] == 5
                && status.of("job").iter().filter(|w| w.ready).count() == 5
        })
    };
    let before = check(&rig);
    replace_supervisor(&rig);
    let after = check(&rig);
    assert_eq!(identities(&before.of("job")), identities(&after.of("job")));
    rig.kill_keeper();
    rig.start();
    check(&rig);
    rig.drain(5_000);
    rig.start();
    check(&rig);
    assert_eq!(
        rig.cli(&["stop", "web"]).code,
        0,
        "stop twice is not an error"
    );
    rig.ok(&["start", "web"]);
    assert_eq!(rig.status().of("web").iter().filter(|w| w.ready).count(), 2);
    rig.ok(&["scale", "job", "auto"]);
    assert_eq!(rig.status().of("job").len(), 2);
    replace_supervisor(&rig);
    assert_eq!(rig.status().of("web").iter().filter(|w| w.ready).count(), 2);
    rig.drain(5_000);
    rig.start_settled();
    assert_eq!(rig.status().workers().len(), 4);
    rig.drain(5_000);
}

fn a_single_worker_is_held(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\nworkers = 3\n");
    let before = rig.start_settled();
    rig.ok(&["stop", "web/1"]);
    replace_supervisor(&rig);
    let after = rig.status();
    assert_eq!(
        after.worker("web/1").map(|w| (w.state, w.pid)),
        Some(("held".to_owned(), 0))
    );
    for id in ["web/0", "web/2"] {
        assert_eq!(
            before.worker(id).unwrap().pid,
            after.worker(id).unwrap().pid
        );
    }
    rig.ok(&["start", "web/1"]);
    assert!(rig.status().worker("web/1").unwrap().ready);
    rig.drain(5_000);
}

/// It said READY=1 once, to a supervisor that is dead; the next one knows.
fn readiness_outlives_the_supervisor(mut rig: Rig) {
    rig.configure(
        "[fleet.web]\ncommand = [{worker}, \"ready\"]\nready = \"notify\"\nworkers = 3\n",
    );
    let before = rig.start_settled();
    for _ in 0..3 {
        replace_supervisor(&rig);
        let after = rig.status();
        assert!(after.workers().iter().all(|w| w.ready), "{after:?}");
        assert_eq!(identities(&before.workers()), identities(&after.workers()));
    }
    rig.drain(5_000);
}

/// Said while nobody listens: the datagram waits in the held socket.
fn readiness_said_to_nobody_is_heard_by_the_next(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"ready\", \"0.7\", \"{notes}\"]\nready = \"notify\"\nworkers = 4\nstart.timeout = \"10s\"\n");
    rig.start();
    until_true("they begin", 5_000, || {
        (0..4).all(|n| !rig.notes(&format!("ready.{n}")).is_empty())
    });
    // Four deaths over the moment at which they speak.
    for _ in 0..4 {
        replace_supervisor(&rig);
        crate::rig::pause(200);
    }
    let status = rig.settle(5_000);
    assert!(
        status.workers().iter().all(|w| w.generation == 1),
        "{status:?}"
    );
    rig.drain(5_000);
}

/// Never more than one of four away, whoever dies meanwhile.
fn a_rollout_outlives_the_supervisor(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "ready", "0.25"]
        ready = "notify"
        workers = 4
        rollout = { max_unavailable = 1 }
    "#,
    );
    let before = rig.start_settled();
    rig.ok(&["restart", "web", "--no-wait"]);
    let mut supervisor = before.supervisor();
    let mut kills = 0;
    until("all are new and ready", 12_000, || {
        let status = rig.try_status()?;
        let workers = status.of("web");
        let ready = workers.iter().filter(|w| w.ready).count();
        assert!(ready >= 3, "only {ready} ready: {workers:?}");
        let new = workers.iter().filter(|w| w.generation == 2).count();
        if new >= 1 && kills < 3 && status.supervisor() != supervisor || kills == 0 && new >= 1 {
            supervisor = status.supervisor();
            send(supervisor, Signal::KILL);
            kills += 1;
        }
        if new == 4 && status.settled() {
            Ok(())
        } else {
            Err(format!("{workers:?}"))
        }
    });
    assert!(kills >= 2, "{kills}");
    assert!(
        rig.status()
            .of("web")
            .iter()
            .all(|w| w.generation == 2 && w.restarts == 0)
    );
    rig.drain(5_000);
}

/// A command that was acknowledged is on disk; one that cannot be written is refused, and nothing happens.
fn a_hold_that_cannot_be_kept_is_refused(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\nworkers = 2\n");
    let before = rig.start_settled();
    std::fs::remove_dir_all(rig.path("state")).unwrap();
    std::fs::write(rig.path("state"), "in the way").unwrap();
    for words in [
        &["stop", "web"][..],
        &["scale", "web", "5"],
        &["stop", "web/0"],
    ] {
        let said = rig.cli(words);
        assert_eq!(said.code, 1, "{said:?}");
        assert!(said.err.contains("intent.json"), "{said:?}");
    }
    let after = rig.status();
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    assert!(after.workers().iter().all(|w| w.ready));
    std::fs::remove_file(rig.path("state")).unwrap();
    rig.ok(&["stop", "web"]);
    rig.drain(5_000);
    assert!(
        std::fs::read_to_string(rig.path("state/intent.json"))
            .unwrap()
            .contains("web")
    );
}

/// Against the dependencies, over everything; and what was held before is held afterwards.
fn a_drained_node_stays_empty(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.db]
        command = [{worker}, "order", "{notes}"]
        ready = "notify"
        [fleet.web]
        command = [{worker}, "order", "{notes}"]
        ready = "notify"
        after = { db = "ready" }
        [fleet.idle]
        command = [{worker}, "sleep"]
        [cron.job]
        command = ["/bin/true"]
        schedule = "@yearly"
    "#,
    );
    rig.start_settled();
    rig.ok(&["stop", "idle"]);
    assert_eq!(rig.request("GET", "/readyz", "").unwrap().0, 200);
    rig.ok(&["drain"]);
    let is_empty = |status: &crate::rig::Status| {
        let fleets = ["db", "web", "idle"];
        let held = |name: &&str| status.fleet(name)["state"] == "held";
        fleets.iter().all(held) && status.workers().iter().all(|worker| worker.pid == 0)
    };
    assert!(is_empty(&rig.status()), "drain waits until nobody is left");
    let order = ["web told", "web gone", "db told", "db gone"];
    assert!(
        rig.notes("order").ends_with(&order.map(str::to_owned)),
        "{:?}",
        rig.notes("order")
    );
    let (code, body) = rig.request("GET", "/readyz?verbose", "").unwrap();
    assert!(
        code == 503 && body.contains("[-]serving drained by root"),
        "{code} {body}"
    );
    assert_eq!(rig.cli(&["drain"]).code, 0);
    for refused in [["start", "web"], ["restart", "web"]] {
        let said = rig.cli(&refused);
        assert!(
            said.code == 9 && said.err.contains("leasehold undrain"),
            "{}",
            said.err
        );
    }
    assert_eq!(rig.cli(&["cron", "run", "job"]).code, 9);
    replace_supervisor(&rig);
    rig.wait("it is empty", 2_000, is_empty);
    rig.kill_keeper();
    rig.start();
    let status = rig.wait("it is empty", 5_000, is_empty);
    assert!(
        status.0["drained"]["who"]
            .as_str()
            .unwrap()
            .starts_with("root"),
        "{:?}",
        status.0["drained"]
    );
    assert!(
        rig.ok(&["status"])
            .starts_with("the node takes no work: drained by root")
    );
    rig.ok(&["undrain"]);
    let status = rig.status();
    assert!(status.worker("web/0").unwrap().ready && status.worker("db/0").unwrap().ready);
    assert_eq!(status.fleet("idle")["state"], "held");
    assert!(status.0["drained"].is_null());
    assert_eq!(rig.request("GET", "/readyz", "").unwrap().0, 200);
    rig.drain(5_000);
}
