//! Workers of which nothing may outlive the daemon: whatever they do, the kernel ends it with the first process of a PID namespace, and that
//! one ends with the keeper.

use std::{fs, os::unix::fs::MetadataExt, process::Command};

use leasehold::sys::family::{Carrier, Stat};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    deadlines::LONG,
    places::FILTER,
    rig::{
        Mode, Rig, Status, all_pids, both_ways, free_port, is_root, lives, parent_of, send, skip,
        state_of, until, until_true,
    },
};

both_ways!(
    it_is_like_any_other_worker,
    nothing_outlives_a_killed_daemon,
    nothing_outlives_a_killed_daemon_under_an_old_containers_filter,
    what_weak_containment_does_not_cover,
    nothing_is_left_of_one_that_ended,
    the_end_of_its_first_process_is_its_own,
    a_stranger_who_takes_its_lock_ends_it,
    where_the_keeper_is_the_first_it_needs_no_other,
);

/// Becomes the child of whoever takes orphans, in a session of its own, with no descriptor and an empty environment.
const STRAY: &str = "(setsid env -i /bin/sleep 4711 </dev/null >/dev/null 2>&1 3>&- 4>&- &);";

/// A fleet of one under a lock; whose the lock is, a file says.
fn fleet(rig: &Rig, name: &str, containment: &str, rest: &str) -> String {
    let dir = rig.path("").display().to_string();
    format!(
        r#"
        [fleet.{name}]
        singleton = {{ scope = "test", flock = "{dir}/lock.{name}", authority = "{dir}/authority", containment = "{containment}", {LONG} }}
        restart = {{ backoff = "1ms..5ms", burst = 100000 }}
        {rest}
        "#
    )
}

/// Starts them; none where no namespace can be made.
fn start(rig: &mut Rig, fleets: &[String]) -> Option<Status> {
    if !is_root() {
        skip("only root may make a PID namespace");
        return None;
    }
    rig.configure(&format!("[node]\nname = \"a\"\n{}", fleets.concat()));
    rig.wrapper
        .extend(["/usr/bin/env", "LEASEHOLD_TEST_GATE=1"].map(str::to_owned));
    fs::write(rig.path("authority"), "a").unwrap();
    Some(rig.start_settled())
}

fn pid_of(status: &Status, worker: &str) -> i32 {
    let worker = status.worker(worker).unwrap();
    assert!(lives(worker.pid), "{worker:?}");
    worker.pid
}

fn namespace_of(pid: i32) -> Option<u64> {
    let meta = fs::metadata(format!("/proc/{pid}/ns/pid")).ok()?;
    Some(meta.ino())
}

/// Everybody in there who is no zombie.
fn members(namespace: u64) -> Vec<i32> {
    let mut all = all_pids();
    all.retain(|pid| namespace_of(*pid) == Some(namespace) && lives(*pid));
    all
}

fn init_of(namespace: u64, keeper: i32, leader: i32) -> i32 {
    let all = members(namespace);
    let mut inits = all
        .iter()
        .filter(|pid| **pid != leader && parent_of(**pid) == Some(keeper));
    *inits.next().expect("it has a first process")
}

/// It and its stray are there: their namespace, and everybody in it.
fn with_its_stray(rig: &Rig) -> (u64, Vec<i32>) {
    let pid = pid_of(&rig.status(), "job/0");
    let namespace = namespace_of(pid).unwrap();
    until("it has a stray", 5_000, || {
        let sleeps = |pid: &i32| {
            fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| line == b"/bin/sleep\x004711\0")
        };
        let strays = all_pids().into_iter().filter(sleeps);
        let mut ours = strays.filter(|pid| namespace_of(*pid) == Some(namespace));
        match ours.next() {
            Some(stray) => Ok(stray),
            None => Err(format!("{:?}", members(namespace))),
        }
    });
    let all = members(namespace);
    assert!(all.len() >= 3, "{all:?}");
    (namespace, all)
}

/// The first process may still wait for the machine's own to reap the others.
fn are_gone(all: &[i32]) -> bool {
    let carriers = all.iter().filter_map(|pid| {
        let start_ticks = Stat::read(*pid)?.start_ticks;
        Some(Carrier {
            pid: *pid,
            start_ticks,
        })
    });
    !carriers.into_iter().any(|carrier| carrier.lives())
}

/// Exit codes, signals, groups, datagrams and sockets mean what they mean elsewhere.
fn it_is_like_any_other_worker(mut rig: Rig) {
    let port = free_port();
    let fleets = [
        fleet(
            &rig,
            "ready",
            "strict",
            "command = [{worker}, \"ready\"]\nready = \"notify\"",
        ),
        fleet(
            &rig,
            "deaf",
            "strict",
            "command = [\"/bin/sleep\", \"1000\"]\nstop.timeout = \"30s\"\nuser = \"nobody\"",
        ),
        fleet(
            &rig,
            "told",
            "strict",
            &format!(
                "command = [\"/bin/sh\", \"-c\", \"trap 'exit 7' TERM; echo $$$$ $LISTEN_PID >{{notes}}/told; while :; do sleep 0.05; done\"]\nstop = {{ to = \"group\" }}\nsocket.main.listen = \"127.0.0.1:{port}\""
            ),
        ),
    ];
    let Some(status) = start(&mut rig, &fleets) else {
        return;
    };
    let keeper = rig.keeper();
    for worker in status.workers() {
        assert_eq!(worker.all["containment"], "pidns");
        assert_eq!(parent_of(worker.pid), Some(keeper), "{worker:?}");
        let seen = fs::read_to_string(format!("/proc/{}/status", worker.pid)).unwrap();
        let ids = seen.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let ids: Vec<&str> = ids.unwrap().split_whitespace().collect();
        assert_eq!(ids, [worker.pid.to_string().as_str(), "2"], "never 1");
    }
    until_true("it told its number", 2_000, || {
        fs::read_to_string(rig.path("notes/told")).is_ok_and(|text| text == "2 2\n")
    });
    // One that knows no signal ends of SIGTERM, as nobody does who is the first.
    rig.ok(&["restart", "deaf"]);
    rig.ok(&["restart", "told"]);
    let said = rig.stderr();
    for words in [
        "deaf/0 [1] ended by SIGTERM",
        "told/0 [1] exited with code 7",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
    send(pid_of(&rig.status(), "ready/0"), Signal::KILL);
    let again = rig.wait("it is there again", 5_000, |status| {
        status
            .worker("ready/0")
            .is_some_and(|w| w.generation == 2 && w.ready)
    });
    assert_eq!(again.worker("ready/0").unwrap().restarts, 1);
    rig.drain(5_000);
    rig.assert_nothing_left();
}

/// Keeper and supervisor at once: nobody is left who could look for anybody.
fn nothing_outlives_a_killed_daemon(mut rig: Rig) {
    let command = format!("command = [\"/bin/sh\", \"-c\", \"{STRAY} exec sleep 1000\"]");
    let fleets = [fleet(&rig, "job", "strict", &command)];
    if start(&mut rig, &fleets).is_none() {
        return;
    }
    let (_, all) = with_its_stray(&rig);
    let supervisor = rig.status().supervisor();
    rig.signal(Signal::STOP);
    send(supervisor, Signal::KILL);
    until_true("nobody looks after them", 2_000, || !lives(supervisor));
    assert!(all.iter().all(|pid| lives(*pid)));
    rig.kill_keeper();
    until_true("all of it is gone", 2_000, || are_gone(&all));
}

/// Neither clone3 nor close_range.
fn nothing_outlives_a_killed_daemon_under_an_old_containers_filter(mut rig: Rig) {
    let Some(program) = rig.compile("filter", FILTER, &[]) else {
        return;
    };
    let may = Command::new(&program).arg("true").status();
    if !may.is_ok_and(|status| status.success()) {
        skip("no seccomp filter can be installed here");
        return;
    }
    rig.wrapper = vec![program.display().to_string()];
    nothing_outlives_a_killed_daemon(rig);
}

/// Said in ARCHITECTURE.md: it leaves group and session, drops its environment, and outlives its parent. A cgroup alone keeps it until
/// somebody comes.
fn what_weak_containment_does_not_cover(mut rig: Rig) {
    let command =
        format!("command = [\"/bin/sh\", \"-c\", \"{STRAY} exec sleep 1000\"]\ncwd = \"{{dir}}\"");
    let fleets = [fleet(&rig, "job", "weak", &command)];
    let Some(status) = start(&mut rig, &fleets) else {
        return;
    };
    let leader = pid_of(&status, "job/0");
    assert_ne!(status.worker("job/0").unwrap().all["containment"], "pidns");
    let dir = rig.path("").canonicalize().unwrap();
    let is_stray = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line == b"/bin/sleep\x004711\0")
            && fs::read_link(format!("/proc/{pid}/cwd")).is_ok_and(|cwd| cwd == dir)
    };
    let stray = until("it has a stray", 5_000, || {
        let mut strays = all_pids().into_iter().filter(is_stray);
        strays.next().ok_or_else(|| rig.stderr())
    });
    until_true("it is an orphan", 2_000, || {
        parent_of(stray) == Some(rig.keeper())
    });
    let supervisor = rig.status().supervisor();
    rig.signal(Signal::STOP);
    send(supervisor, Signal::KILL);
    rig.kill_keeper();
    until_true("its leader has gone", 2_000, || !lives(leader));
    assert!(lives(stray));
    if rig.mode == Mode::Cgroup {
        rig.start_settled();
        assert!(!lives(stray), "the next daemon empties the cgroup");
        rig.drain(5_000);
    } else {
        send(stray, Signal::KILL);
    }
}

fn nothing_is_left_of_one_that_ended(mut rig: Rig) {
    let ended = format!(
        "command = [\"/bin/sh\", \"-c\", \"{STRAY} (sleep 0.01 &); while [ ! -e {{notes}}/end ]; do sleep 0.02; done; rm {{notes}}/end; exit 3\"]"
    );
    let fleets = [fleet(&rig, "job", "strict", &ended)];
    if start(&mut rig, &fleets).is_none() {
        return;
    }
    let (namespace, all) = with_its_stray(&rig);
    let leader = pid_of(&rig.status(), "job/0");
    let init = init_of(namespace, rig.keeper(), leader);
    until_true("orphans are reaped", 2_000, || {
        let dead = |pid: &i32| parent_of(*pid) == Some(init) && state_of(*pid) == Some('Z');
        !all_pids().iter().any(dead)
    });
    fs::write(rig.path("notes/end"), "").unwrap();
    rig.wait("the next one runs", 5_000, |status| {
        status
            .worker("job/0")
            .is_some_and(|w| w.generation == 2 && w.state == "running")
    });
    assert!(are_gone(&all), "beside the next one");
    assert!(rig.stderr().contains("job/0 [1] exited with code 3"));
    rig.drain(5_000);
    rig.assert_nothing_left();
}

/// An operator, or a machine without memory: the worker has ended, and is started again.
fn the_end_of_its_first_process_is_its_own(mut rig: Rig) {
    let fleets = [fleet(
        &rig,
        "job",
        "strict",
        "command = [\"/bin/sleep\", \"1000\"]",
    )];
    let Some(status) = start(&mut rig, &fleets) else {
        return;
    };
    let leader = pid_of(&status, "job/0");
    let namespace = namespace_of(leader).unwrap();
    send(init_of(namespace, rig.keeper(), leader), Signal::TERM);
    assert!(lives(leader), "it knows SIGKILL and no other signal");
    send(init_of(namespace, rig.keeper(), leader), Signal::KILL);
    rig.wait("the next one runs", 5_000, |status| {
        status
            .worker("job/0")
            .is_some_and(|w| w.generation == 2 && w.state == "running")
    });
    assert!(rig.stderr().contains("job/0 [1] ended by SIGKILL"));
    rig.drain(5_000);
    rig.assert_nothing_left();
}

/// The lock's record names the first process: with it a taker ends whatever its holder became.
fn a_stranger_who_takes_its_lock_ends_it(mut rig: Rig) {
    let command = format!("command = [\"/bin/sh\", \"-c\", \"{STRAY} exec sleep 1000\"]");
    let fleets = [fleet(&rig, "job", "strict", &command)];
    if start(&mut rig, &fleets).is_none() {
        return;
    }
    let (namespace, all) = with_its_stray(&rig);
    let leader = pid_of(&rig.status(), "job/0");
    let init = init_of(namespace, rig.keeper(), leader);
    until("the record names it", 2_000, || {
        let text = fs::read_to_string(rig.path("lock.job")).unwrap();
        let record: Value = serde_json::from_str(&text).unwrap();
        let named = record["init"]["pid"] == init && record["leader"]["pid"] == leader;
        named.then_some(()).ok_or(text)
    });
    rig.kill_keeper();
    rig.start_settled();
    assert!(are_gone(&all));
    rig.drain(5_000);
    rig.assert_nothing_left();
}

/// A container's PID 1: its end is everybody's, whatever they are.
fn where_the_keeper_is_the_first_it_needs_no_other(mut rig: Rig) {
    let command = format!("command = [\"/bin/sh\", \"-c\", \"{STRAY} exec sleep 1000\"]");
    if !is_root() {
        skip("only root may make a PID namespace");
        return;
    }
    rig.configure(&format!(
        "[node]\nname = \"a\"\n{}",
        fleet(&rig, "job", "strict", &command)
    ));
    let words = "/usr/bin/env LEASEHOLD_TEST_GATE=1 unshare --pid --fork --mount-proc --kill-child";
    rig.wrapper = words.split(' ').map(str::to_owned).collect();
    rig.elsewhere = true;
    fs::write(rig.path("authority"), "a").unwrap();
    let status = rig.start_settled();
    assert_ne!(status.worker("job/0").unwrap().all["containment"], "pidns");
    let unshare = rig.keeper();
    let keeper = all_pids()
        .into_iter()
        .find(|pid| parent_of(*pid) == Some(unshare));
    let namespace = keeper.and_then(namespace_of).unwrap();
    let all = until("its stray is there", 5_000, || {
        let all = members(namespace);
        // The keeper, its supervisor, the worker and the stray.
        (all.len() >= 4)
            .then(|| all.clone())
            .ok_or(format!("{all:?}"))
    });
    rig.kill_keeper();
    until_true("all of it is gone", 2_000, || are_gone(&all));
}
