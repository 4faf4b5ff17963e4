//! Stop and drain: whatever a worker does, it ends, with everything it has begotten.

use rustix::process::Signal;

use crate::rig::{Mode, Rig, both_ways, lives, pause, send, ticks, until, until_true};

/// Stops the fleet by command, then the daemon by signal; nothing is left after either.
fn stops(rig: &mut Rig, bound_ms: u64) {
    let before = rig.status();
    rig.ok(&["stop", "web"]);
    rig.assert_noted_are_gone();
    for worker in before.of("web") {
        assert!(!lives(worker.pid), "{} lives", worker.id);
    }
    if let Some(cgroup) = rig.cgroup().filter(|_| rig.mode == Mode::Cgroup) {
        let leaves: Vec<_> = std::fs::read_dir(cgroup)
            .unwrap()
            .flatten()
            .filter(|e| e.path().is_dir() && e.file_name().to_string_lossy().starts_with("web."))
            .collect();
        assert!(leaves.is_empty(), "{leaves:?}");
    }
    let _ = std::fs::remove_file(rig.path("notes/pids"));
    rig.ok(&["start", "web", "--timeout", "10s"]);
    rig.drain(bound_ms);
}

both_ways!(
    a_worker_that_ignores_signals_is_killed_at_its_timeout,
    descendants_of_every_kind_end_with_their_worker,
    descendants_end_before_a_crashed_worker_comes_back,
    what_drops_session_environment_and_parent_needs_a_cgroup,
    a_bounded_fork_bomb_is_caught,
    a_worker_that_closes_everything_is_stopped,
    a_frozen_worker_is_stopped,
    a_grandchild_that_keeps_the_pipe_open_delays_nothing,
    a_worker_that_exits_at_once_is_restarted_ever_more_slowly,
    a_worker_that_exits_during_start_is_restarted,
    a_start_that_takes_too_long_is_ended,
    a_drain_runs_against_the_dependencies,
    the_second_sigterm_kills_and_sigquit_kills_at_once,
    a_drain_survives_the_death_of_the_supervisor,
    a_worker_is_not_ready_before_it_is_told_to_stop,
    a_hangup_reloads,
    signals_reach_the_leader
);

fn a_worker_that_ignores_signals_is_killed_at_its_timeout(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "stubborn"]
        ready = "notify"
        workers = 3
        stop.timeout = "400ms"
    "#,
    );
    rig.start_settled();
    stops(&mut rig, 5_000);
    assert!(
        rig.stderr().contains("SIGKILL to everything of it"),
        "{}",
        rig.stderr()
    );
}

fn descendants_of_every_kind_end_with_their_worker(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "family", "{notes}", "1"]
        ready = "notify"
        workers = 2
        stop.timeout = "2s"
    "#,
    );
    rig.start_settled();
    until_true("both families are complete", 3_000, || {
        rig.noted_pids().len() == 24
    });
    stops(&mut rig, 8_000);
}

/// The one way out that is not covered without a cgroup, as the documentation says.
fn what_drops_session_environment_and_parent_needs_a_cgroup(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "family", "{notes}", "2"]
        ready = "notify"
        stop.timeout = "1s"
    "#,
    );
    rig.start_settled();
    rig.ok(&["stop", "web"]);
    let mut left = rig.noted_pids();
    left.retain(|pid| lives(*pid));
    let escaped = usize::from(rig.mode == Mode::Group);
    assert_eq!(left.len(), escaped, "{left:?}");
    for pid in left {
        assert_eq!(std::fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        send(pid, Signal::KILL);
        until_true("it is gone", 2_000, || !lives(pid));
    }
    rig.drain(5_000);
}

/// They end with a crash as well: no slot is given back while anything of it lives.
fn descendants_end_before_a_crashed_worker_comes_back(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "family", "{notes}", "1"]
        ready = "notify"
    "#,
    );
    let before = rig.start_settled();
    let old = rig.noted_pids();
    std::fs::remove_file(rig.path("notes/pids")).unwrap();
    send(before.workers()[0].pid, Signal::KILL);
    until_true("the next generation begins", 5_000, || {
        !rig.noted_pids().is_empty()
    });
    let alive: Vec<i32> = old.into_iter().filter(|pid| lives(*pid)).collect();
    assert!(
        alive.is_empty(),
        "{alive:?} live beside the next generation"
    );
    rig.settle(5_000);
    rig.drain(8_000);
}

/// Sixty children, and four that flee by forking, for as long as they are let.
fn a_bounded_fork_bomb_is_caught(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "bomb", "{notes}", "60", "6"]
        ready = "notify"
        stop.timeout = "200ms"
    "#,
    );
    rig.start_settled();
    until_true("the children are there", 5_000, || {
        rig.noted_pids().len() == 60
    });
    stops(&mut rig, 12_000);
}

fn a_worker_that_closes_everything_is_stopped(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"close_all\"]\nready = \"notify\"\nstop.timeout = \"1s\"\n");
    rig.start_settled();
    stops(&mut rig, 5_000);
}

fn a_frozen_worker_is_stopped(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"freeze\"]\nready = \"notify\"\nworkers = 2\nstop.timeout = \"400ms\"\n");
    let status = rig.start_settled();
    until_true("it is frozen", 2_000, || {
        crate::rig::state_of(status.workers()[0].pid) == Some('T')
    });
    stops(&mut rig, 5_000);
}

/// Its pipe never ends by itself; neither stop nor drain waits for that.
fn a_grandchild_that_keeps_the_pipe_open_delays_nothing(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"leave_pipe\", \"{notes}\"]\nready = \"notify\"\nstop.timeout = \"20s\"\n");
    rig.start_settled();
    stops(&mut rig, 5_000);
    let log = std::fs::read_to_string(rig.log("web/0")).unwrap();
    assert_eq!(log, "from the grandchild\n".repeat(2));
}

/// Back-off grows, the state says so, and the processor is left alone.
fn a_worker_that_exits_at_once_is_restarted_ever_more_slowly(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "fail", "{notes}", "7"]
        restart = { backoff = "50ms..10s", burst = 6, window = "60s" }
        [fleet.fine]
        command = [{worker}, "sleep"]
    "#,
    );
    rig.start();
    let status = rig.wait("it has failed too often", 10_000, |status| {
        status
            .worker("web/0")
            .is_some_and(|worker| worker.state == "failed")
    });
    let worker = status.worker("web/0").unwrap();
    assert_eq!(
        rig.notes("starts").len(),
        7,
        "six restarts, and that was enough"
    );
    assert_eq!(worker.all["last_exit"]["code"], 7, "{worker:?}");
    assert!(
        worker.all["next_start_in_ms"].as_u64().is_some(),
        "{worker:?}"
    );
    assert_eq!(status.fleet("web")["state"], "degraded");
    assert!(rig.stderr().contains("restarting in"), "{}", rig.stderr());
    let (before, starts) = (
        ticks(&[rig.keeper(), status.supervisor()]),
        rig.notes("starts").len(),
    );
    pause(1_500);
    assert_eq!(rig.notes("starts").len(), starts);
    let spent = ticks(&[rig.keeper(), status.supervisor()]) - before;
    assert!(spent <= 15, "{spent} of 150 ticks spent on waiting");
    rig.drain(5_000);
}

/// It never becomes ready: the start budget does not keep it, its exit code is told.
fn a_worker_that_exits_during_start_is_restarted(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "fail", "{notes}", "3"]
        ready = "notify"
        restart = { backoff = "100ms..200ms", burst = 3 }
    "#,
    );
    rig.start();
    let status = rig.wait("it has failed too often", 8_000, |status| {
        status.worker("web/0").is_some_and(|w| w.state == "failed")
    });
    let worker = status.worker("web/0").unwrap();
    assert!(
        !worker.ready && worker.all["last_exit"]["code"] == 3,
        "{worker:?}"
    );
    assert_eq!(rig.cli(&["status"]).code, 3);
    let said = rig.cli(&["start", "web", "--timeout", "10s"]);
    assert!(
        said.code == 1 && said.err.contains("exited with code 3"),
        "{said:?}"
    );
    rig.drain(5_000);
}

/// A worker that takes too long to be ready is ended and counted.
fn a_start_that_takes_too_long_is_ended(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "ready", "100"]
        ready = "notify"
        start.timeout = "300ms"
        stop.timeout = "1s"
        restart = { backoff = "10ms..20ms" }
    "#,
    );
    rig.start();
    let status = rig.wait("it was ended", 5_000, |status| {
        status.worker("web/0").is_some_and(|w| w.restarts >= 1)
    });
    assert!(!status.worker("web/0").unwrap().ready);
    rig.drain(5_000);
}

/// What depends goes first; what it depends on hears of it only when it is gone.
fn a_drain_runs_against_the_dependencies(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.db]
        command = [{worker}, "order", "{notes}"]
        ready = "notify"
        [fleet.app]
        command = [{worker}, "order", "{notes}"]
        ready = "notify"
        after = { db = "ready" }
        [fleet.web]
        command = [{worker}, "order", "{notes}"]
        ready = "notify"
        after = { app = "ready" }
    "#,
    );
    for signal in [Signal::TERM, Signal::INT] {
        let _ = std::fs::remove_file(rig.path("notes/order"));
        rig.start_settled();
        rig.signal(signal);
        let status = rig.ended(6_000);
        assert_eq!(status.code(), Some(0), "{status}");
        rig.assert_nothing_left();
        assert_eq!(
            rig.notes("order"),
            [
                "db up",
                "db ready",
                "app up",
                "app ready",
                "web up",
                "web ready",
                "web told",
                "web gone",
                "app told",
                "app gone",
                "db told",
                "db gone",
            ]
        );
    }
    assert!(
        rig.stderr()
            .contains(&format!("asked by pid {}", std::process::id())),
        "{}",
        rig.stderr()
    );
}

fn the_second_sigterm_kills_and_sigquit_kills_at_once(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"stubborn\"]\nready = \"notify\"\nworkers = 3\nstop.timeout = \"60s\"\n");
    for signals in [
        &[Signal::TERM, Signal::TERM][..],
        &[Signal::QUIT],
        &[Signal::INT, Signal::INT],
    ] {
        rig.start_settled();
        for (n, signal) in signals.iter().enumerate() {
            if n > 0 {
                rig.wait("it drains", 2_000, |status| {
                    status.0["supervisor"]["draining"] == true
                        && status
                            .workers()
                            .iter()
                            .all(|w| w.state == "draining" && lives(w.pid))
                });
                // The next one is another request only some time after the first.
                pause(400);
            }
            rig.signal(*signal);
            if n == 0 && signals.len() > 1 {
                // timeout(1) signals a process and then its group: the same request, told twice.
                rig.signal(*signal);
            }
        }
        let status = rig.ended(4_000);
        assert_eq!(status.code(), Some(1), "{status}");
        rig.assert_nothing_left();
    }
}

/// The drain is the keeper's: it goes on when its supervisor dies, once or again and again.
fn a_drain_survives_the_death_of_the_supervisor(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"stubborn\"]\nready = \"notify\"\nworkers = 3\nstop.timeout = \"1500ms\"\n");
    let before = rig.start_settled();
    rig.signal(Signal::TERM);
    send(before.supervisor(), Signal::KILL);
    let status = rig.wait("another one drains", 2_000, |status| {
        status.supervisor() != before.supervisor() && status.0["supervisor"]["draining"] == true
    });
    send(status.supervisor(), Signal::KILL);
    let status = rig.ended(6_000);
    assert_eq!(status.code(), Some(0), "{status}");
    rig.assert_nothing_left();
}

/// A balancer is told first: not ready in `status`, then the delay, then the signal.
fn a_worker_is_not_ready_before_it_is_told_to_stop(mut rig: Rig) {
    let control = rig.path("run/control.sock").display().to_string();
    rig.configure(&format!(
        r#"
        [fleet.web]
        command = [{{worker}}, "ask", "{{notes}}", "{control}"]
        drain = {{ deregister_delay = "300ms", timeout = "5s" }}
        [fleet.hasty]
        command = [{{worker}}, "ask", "{{notes}}", "{control}"]
    "#
    ));
    let status = rig.start_settled();
    // Its handler must be there before it is asked to use it.
    let caught = |pid: i32| {
        let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = text
            .lines()
            .find_map(|l| l.strip_prefix("SigCgt:\t"))
            .map(str::to_owned);
        line.and_then(|hex| u64::from_str_radix(&hex, 16).ok())
            .is_some_and(|bits| bits & (1 << 14) != 0)
    };
    until_true("they listen for SIGTERM", 3_000, || {
        status.workers().iter().all(|w| caught(w.pid))
    });
    rig.ok(&["stop", "web", "--no-wait"]);
    let told = rig.wait("not ready, and not told yet", 2_000, |status| {
        status.worker("web/0").is_some_and(|w| !w.ready)
    });
    assert!(
        rig.notes("asked").is_empty(),
        "the delay comes before the signal: {told:?}"
    );
    let answer = until("it was told", 3_000, || {
        rig.notes("asked").pop().ok_or_else(String::new)
    });
    assert_eq!(answer, "[false, \"draining\"]");
    rig.ok(&["restart", "hasty/0"]);
    assert_eq!(rig.notes("asked")[1], "[false, \"draining\"]");
    rig.drain(5_000);
}

fn a_hangup_reloads(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\n");
    let before = rig.start_settled();
    rig.configure("[fleet.web]\ncommand = [{worker}, \"sleep\"]\nworkers = 3\n");
    rig.signal(Signal::HUP);
    let after = rig.wait("three workers", 4_000, |status| {
        status.of("web").iter().filter(|w| w.ready).count() == 3
    });
    assert_eq!(
        before.worker("web/0").unwrap().pid,
        after.worker("web/0").unwrap().pid
    );
    rig.drain(5_000);
}

fn signals_reach_the_leader(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"trap 'echo got it' USR1; echo up; while :; do sleep 0.05; done\"]\n");
    rig.start_settled();
    let log = || std::fs::read_to_string(rig.log("web/0")).unwrap_or_default();
    until_true("it is up", 3_000, || log().contains("up"));
    rig.ok(&["signal", "web", "-s", "SIGUSR1"]);
    until_true("it heard", 3_000, || log().contains("got it"));
    assert_eq!(rig.cli(&["signal", "wed", "-s", "SIGUSR1"]).code, 4);
    rig.drain(5_000);
}
