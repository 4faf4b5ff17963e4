//! The wall clock jumps under a running daemon: dates follow it, and nothing else.

use std::fs;

use jiff::{SignedDuration, Timestamp};
use leasehold::sys::clock;
use rustix::process::Signal;

use crate::{
    rig::{Rig, Status, both_ways, identities, send, until},
    survival::check_lines,
};

both_ways!(only_dates_follow_a_wall_clock_that_jumps);

/// The longest pause of the worker that always fails: it waits for a random part of it, and for the node's one restart a second.
const BACKOFF_MS: u64 = 2_000;
/// Heirs may each begin with a full allowance of restarts.
const HEIRS: u64 = 3;

const FLEETS: &str = r#"
    [node]
    restart_rate = "1/s"
    restart_burst = 1
    [fleet.talk]
    command = [{worker}, "lines", "5", "0.01"]
    workers = 3
    log = { rotate_size = "64KiB", max_size = "16MiB" }
    [fleet.bite]
    command = [{worker}, "alive", "{dir}/silent"]
    ready = "notify"
    health.watchdog = "3s"
    [fleet.fall]
    command = [{worker}, "fail", "{notes}"]
    restart = { backoff = "2s..2s", burst = 100000 }
    [fleet.deaf]
    command = [{worker}, "stubborn"]
    ready = "notify"
    stop.timeout = "1s"
"#;

/// What the daemon believes the wall clock to show, against what it shows here: seconds.
fn off_by(status: &Status) -> i64 {
    let talker = status.worker("talk/0").unwrap().all;
    let since: Timestamp = talker["since"].as_str().unwrap().parse().unwrap();
    let uptime = SignedDuration::from_millis(talker["uptime_ms"].as_i64().unwrap());
    let away = since.checked_add(uptime).unwrap() - Timestamp::now();
    away.total(jiff::Unit::Second).unwrap().round() as i64
}

/// Forth by an hour, back by two, and right again; each time through the supervisor that is there and through its heir.
fn only_dates_follow_a_wall_clock_that_jumps(mut rig: Rig) {
    let flags = ["-shared", "-fPIC"];
    let Some(library) = rig.compile("jump.so", include_str!("jump.c"), &flags) else {
        return;
    };
    let jump = rig.path("jump");
    rig.wrapper = vec![
        "env".to_owned(),
        format!("LD_PRELOAD={}", library.display()),
        format!("CLOCK_JUMP={}", jump.display()),
    ];
    rig.configure(FLEETS);
    rig.start();
    let steady = |status: &Status| {
        let fleets = ["talk", "bite"];
        let workers = fleets.iter().flat_map(|fleet| status.of(fleet));
        workers.filter(|worker| worker.ready).collect::<Vec<_>>()
    };
    let first = rig.wait("the steady ones are up", 15_000, |status| {
        steady(status).len() == 4 && status.worker("deaf/0").is_some_and(|w| w.ready)
    });
    let began = clock::now();
    assert_eq!(off_by(&first), 0);

    for seconds in [3_600, -3_600, 0] {
        let new = rig.path("jump.new");
        fs::write(&new, seconds.to_string()).unwrap();
        fs::rename(&new, &jump).unwrap();
        for heir in [false, true] {
            if heir {
                send(rig.status().supervisor(), Signal::KILL);
            }
            let status = rig.wait("dates follow, workers stay", 5_000, |status| {
                (off_by(status) - seconds).abs() <= 1 && steady(status).len() == 4
            });
            assert_eq!(identities(&steady(&status)), identities(&steady(&first)));
            a_grace_is_as_long_as_ever(&rig, &status);
            a_pause_is_as_long_as_ever(&rig);
        }
    }

    let starts = rig.notes("starts").len() as u64;
    let most = clock::now().since(began).as_millis() / 1_000 + 2 + HEIRS;
    assert!(
        (7..=most).contains(&starts),
        "{starts} starts, at most {most}"
    );
    rig.drain(10_000);
    for worker in first.of("talk") {
        check_lines(&rig, &worker.id, worker.generation);
    }
}

/// What ignores SIGTERM is killed after its second: not at once, not in an hour.
fn a_grace_is_as_long_as_ever(rig: &Rig, before: &Status) {
    let old = before.worker("deaf/0").unwrap();
    let asked = clock::now();
    rig.ok(&["restart", "deaf", "--timeout", "20s"]);
    let took = clock::now().since(asked).as_millis();
    let new = rig.status().worker("deaf/0").unwrap();
    assert!(
        new.generation > old.generation && new.ready,
        "{:?}",
        new.all
    );
    assert!((1_000..10_000).contains(&took), "{took} ms");
}

/// What keeps failing is started again, and waits no longer than it was told to.
fn a_pause_is_as_long_as_ever(rig: &Rig) {
    let before = rig.notes("starts").len();
    until("it is started again", 3 * BACKOFF_MS, || {
        let status = rig.status();
        let wait = status.worker("fall/0").unwrap().all["next_start_in_ms"].as_u64();
        assert!(wait.is_none_or(|ms| ms <= BACKOFF_MS), "{wait:?} ms");
        let starts = rig.notes("starts").len();
        (starts > before)
            .then_some(())
            .ok_or(format!("{starts} starts"))
    });
}
