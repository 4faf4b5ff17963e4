//! Reload: what did not change is not touched, what is wrong changes nothing.

use std::net::TcpStream;

use rustix::process::Signal;

use crate::{
    rig::{Rig, both_ways, free_port, identities, lives, send},
    traffic::Traffic,
};

const BASE: &str = r#"
    [fleet.keep]
    command = [{worker}, "sleep"]
    workers = 2
    [fleet.web]
    command = [{worker}, "ready"]
    ready = "notify"
    workers = 3
    stop.timeout = "2s"
"#;

fn with(rig: &Rig, from: &str, to: &str) {
    assert!(BASE.contains(from));
    rig.configure(&BASE.replace(from, to));
}

both_ways!(
    nothing_changed_changes_nothing,
    a_changed_command_rolls_through_its_fleet_alone,
    another_number_adds_or_removes_the_difference,
    a_broken_file_changes_nothing,
    fleets_come_and_go,
    a_live_change_takes_effect_without_a_restart,
    a_changed_socket_replaces_its_workers,
    a_socket_that_cannot_be_had_changes_nothing,
    a_rollout_that_fails_stops_at_the_first,
    what_goes_back_keeps_its_new_size,
    a_restart_that_fails_goes_back_to_nothing,
);

fn nothing_changed_changes_nothing(mut rig: Rig) {
    rig.configure(BASE);
    let before = rig.start_settled();
    assert_eq!(rig.cli(&["plan", "--detailed-exitcode"]).code, 0);
    rig.configure(&format!("# a remark\n{BASE}"));
    assert_eq!(rig.ok(&["plan", "--detailed-exitcode"]), "no changes\n");
    rig.ok(&["reload"]);
    assert_eq!(
        identities(&before.workers()),
        identities(&rig.status().workers())
    );
    rig.drain(5_000);
}

fn a_changed_command_rolls_through_its_fleet_alone(mut rig: Rig) {
    rig.configure(BASE);
    let before = rig.start_settled();
    with(&rig, r#""ready"]"#, r#""ready", "0.1"]"#);
    let said = rig.cli(&["plan", "--detailed-exitcode"]);
    assert!(
        said.code == 5 && said.out.contains("web") && !said.out.contains("keep"),
        "{said:?}"
    );
    assert_eq!(
        identities(&before.workers()),
        identities(&rig.status().workers()),
        "a plan does nothing"
    );
    rig.ok(&["reload", "--timeout", "15s"]);
    let after = rig.status();
    assert_eq!(
        identities(&before.of("keep")),
        identities(&after.of("keep"))
    );
    assert!(
        after
            .of("web")
            .iter()
            .all(|w| w.generation == 2 && w.ready && w.restarts == 0),
        "{after:?}"
    );
    assert_eq!(rig.cli(&["plan", "--detailed-exitcode"]).code, 0);
    rig.drain(5_000);
}

fn another_number_adds_or_removes_the_difference(mut rig: Rig) {
    rig.configure(BASE);
    let before = rig.start_settled();
    with(&rig, "workers = 3", "workers = 5");
    rig.ok(&["reload", "--timeout", "10s"]);
    let more = rig.status();
    assert_eq!(more.of("web").len(), 5);
    assert_eq!(
        identities(&before.of("web")),
        identities(&more.of("web")[..3])
    );
    with(&rig, "workers = 3", "workers = 1");
    rig.ok(&["reload", "--timeout", "10s"]);
    let fewer = rig.wait("one is left", 5_000, |status| status.of("web").len() == 1);
    assert_eq!(
        identities(&before.of("web")[..1]),
        identities(&fewer.of("web"))
    );
    assert_eq!(
        identities(&before.of("keep")),
        identities(&fewer.of("keep"))
    );
    rig.drain(5_000);
}

/// The next supervisor does not read the broken file either.
fn a_broken_file_changes_nothing(mut rig: Rig) {
    rig.configure(BASE);
    let before = rig.start_settled();
    for broken in [
        "workers = \"many\"",
        "workers = 3\nworkrs = 4",
        "workers = [",
        "after = { nobody = \"ready\" }",
    ] {
        with(&rig, "workers = 3", broken);
        let said = rig.cli(&["reload"]);
        assert_eq!(said.code, 78, "{broken}: {said:?}");
        assert!(said.err.contains("leasehold.toml"), "{said:?}");
        assert_eq!(rig.cli(&["plan"]).code, 78);
    }
    let after = rig.status();
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    assert!(!after.0["config"]["rejected"].is_null(), "{after:?}");
    send(before.supervisor(), Signal::KILL);
    let after = rig.wait("another supervisor", 2_000, |status| {
        status.supervisor() != before.supervisor()
    });
    assert_eq!(identities(&before.workers()), identities(&after.workers()));
    rig.configure(BASE);
    rig.ok(&["reload"]);
    assert!(rig.status().0["config"]["rejected"].is_null());
    rig.drain(5_000);
}

fn fleets_come_and_go(mut rig: Rig) {
    rig.configure(BASE);
    let before = rig.start_settled();
    rig.configure(&format!("{BASE}\n[fleet.new]\ncommand = [{{worker}}, \"sleep\"]\nworkers = 2\nafter = {{ keep = \"ready\" }}\n"));
    rig.ok(&["reload", "--timeout", "10s"]);
    let with_new = rig.status();
    assert_eq!(with_new.of("new").iter().filter(|w| w.ready).count(), 2);
    assert_eq!(
        identities(&before.workers()),
        identities(&[with_new.of("keep"), with_new.of("web")].concat())
    );
    rig.configure(BASE);
    rig.ok(&["reload", "--timeout", "10s"]);
    rig.wait("the fleet is gone", 5_000, |status| {
        status.fleet("new").is_null()
    });
    assert!(with_new.of("new").iter().all(|w| !lives(w.pid)));
    assert_eq!(
        identities(&before.workers()),
        identities(&rig.status().workers())
    );
    rig.drain(5_000);
}

/// What concerns only the supervisor does not concern the workers.
fn a_live_change_takes_effect_without_a_restart(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"stubborn\"]\nready = \"notify\"\nstop.timeout = \"60s\"\n");
    let before = rig.start_settled();
    rig.configure("[fleet.web]\ncommand = [{worker}, \"stubborn\"]\nready = \"notify\"\nstop.timeout = \"300ms\"\n");
    rig.ok(&["reload"]);
    assert_eq!(
        identities(&before.workers()),
        identities(&rig.status().workers())
    );
    rig.drain(5_000);
}

/// The kept socket serves on; another address takes its place at once, and the old one is closed.
fn a_changed_socket_replaces_its_workers(mut rig: Rig) {
    let (old, new) = (free_port(), free_port());
    let text = |port: u16, extra: &str| {
        format!(
            "[fleet.web]\ncommand = [{{worker}}, \"serve\"]\nworkers = 2\nstop.timeout = \"1s\"\nsocket.main.listen = \"127.0.0.1:{port}\"\n{extra}"
        )
    };
    rig.configure(&text(old, ""));
    rig.start_settled();
    let traffic = Traffic::start(old, "", "\n");
    rig.configure(&text(old, "env = { A = \"1\" }\n"));
    rig.ok(&["reload", "--timeout", "10s"]);
    rig.ok(&["restart", "web", "--timeout", "10s"]);
    let count = traffic.finish();
    assert!(count.refused.is_empty() && count.answered > 0, "{count:?}");
    let before = rig.status();
    rig.configure(&text(new, "env = { A = \"1\" }\n"));
    let said = rig.cli(&["plan", "--detailed-exitcode"]);
    assert!(said.code == 5 && said.out.contains("socket"), "{said:?}");
    rig.ok(&["reload", "--timeout", "10s"]);
    let after = rig.status();
    assert!(
        after
            .of("web")
            .iter()
            .all(|w| w.ready && before.worker(&w.id).unwrap().generation < w.generation)
    );
    let fresh = Traffic::start(new, "", "\n");
    crate::rig::pause(50);
    let count = fresh.finish();
    assert!(
        count.answered > 0 && count.refused.is_empty() && count.reset.is_empty(),
        "{count:?}"
    );
    crate::rig::until_true("the old address is closed", 3_000, || {
        TcpStream::connect(("127.0.0.1", old)).is_err()
    });
    rig.drain(5_000);
}

/// An address that somebody else has: the whole reload is refused.
fn a_socket_that_cannot_be_had_changes_nothing(mut rig: Rig) {
    rig.configure(BASE);
    let before = rig.start_settled();
    let theirs = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
    let address = theirs.local_addr().unwrap();
    with(
        &rig,
        "workers = 3",
        &format!("workers = 4\nsocket.main.listen = \"{address}\""),
    );
    let said = rig.cli(&["reload"]);
    assert!(
        said.code == 78 && said.err.contains(&address.to_string()),
        "{said:?}"
    );
    assert_eq!(
        identities(&before.workers()),
        identities(&rig.status().workers())
    );
    rig.drain(5_000);
}

/// The new revision cannot start: it stops at the first, the others keep serving.
fn a_rollout_that_fails_stops_at_the_first(mut rig: Rig) {
    rig.configure(BASE);
    let before = rig.start_settled();
    with(&rig, r#"[{worker}, "ready"]"#, r#"[{worker}, "fail"]"#);
    let said = rig.cli(&["reload", "--timeout", "15s"]);
    assert_eq!(said.code, 1, "{said:?}");
    let after = rig.status();
    assert_eq!(after.fleet("web")["rollout"], "failed", "{after:?}");
    let same = after
        .of("web")
        .iter()
        .filter(|w| w.ready && before.worker(&w.id).unwrap().pid == w.pid)
        .count();
    assert_eq!(same, 2, "{after:?}");
    rig.configure(BASE);
    rig.ok(&["reload", "--timeout", "15s"]);
    assert!(rig.status().of("web").iter().all(|w| w.ready));
    rig.drain(5_000);
}

const BACK: &str = r#"
    [fleet.web]
    command = [{worker}, "ready"]
    ready = "notify"
    workers = 2
    start.timeout = "2s"
    stop.timeout = "1s"
    rollout = { on_failure = "rollback" }
"#;

/// A size that is changed while a rollout is under way is no revision: the rollback goes behind it, and leaves it as it was said.
fn what_goes_back_keeps_its_new_size(mut rig: Rig) {
    rig.configure(BACK);
    rig.start_settled();
    // Says nothing, and so is never ready.
    let deaf = BACK.replace("\"ready\"]", "\"sleep\"]");
    rig.configure(&deaf);
    rig.ok(&["reload", "--no-wait"]);
    rig.wait("it rolls", 3_000, |status| {
        status.0["fleets"][0]["rollout"] == "running"
    });
    rig.configure(&deaf.replace("workers = 2", "workers = 4"));
    rig.ok(&["reload", "--no-wait"]);
    let status = rig.wait("it went back, larger", 15_000, |status| {
        let fleet = &status.0["fleets"][0];
        fleet["desired"] == 4 && fleet["ready"] == 4 && fleet["rollout"].is_null()
    });
    assert_eq!(status.0["fleets"][0]["max"], 4);
    let plan = rig.ok(&["plan"]);
    assert!(
        plan.contains("command") && !plan.contains("workers:"),
        "{plan}"
    );
    // The next supervisor sees the same.
    send(status.supervisor(), Signal::KILL);
    let after = rig.wait("another supervisor", 4_000, |after| {
        after.supervisor() != status.supervisor() && after.settled()
    });
    assert_eq!(identities(&status.workers()), identities(&after.workers()));
    rig.drain(5_000);
}

/// The last edit was good: a restart that fails long afterwards is not taken back to what was before it.
fn a_restart_that_fails_goes_back_to_nothing(mut rig: Rig) {
    let gated = BACK.replace(
        "[{worker}, \"ready\"]",
        "[\"/bin/sh\", \"-c\", \"test -e {dir}/fine || exit 1; exec \\\"$@\\\"\", \"sh\", {worker}, \"ready\"]",
    );
    std::fs::write(rig.path("fine"), "").unwrap();
    rig.configure(BACK);
    rig.start_settled();
    rig.configure(&gated);
    rig.ok(&["reload"]);
    std::fs::remove_file(rig.path("fine")).unwrap();
    let said = rig.cli(&["restart", "web"]);
    assert_ne!(said.code, 0, "{}", said.out);
    let status = rig.wait("it stopped", 5_000, |status| {
        status.0["fleets"][0]["rollout"] == "failed"
    });
    assert_eq!(rig.ok(&["plan"]), "no changes\n", "{status:?}");
    std::fs::write(rig.path("fine"), "").unwrap();
    rig.drain(5_000);
}
