//! Ready and well, by every way of asking; and what happens to who is not.

use std::fs;

use rustix::process::Signal;

use crate::rig::{Rig, Status, both_ways, free_port, identities, pause, send, until_true};

/// sd_notify(3) without anything before it.
const SPEAKS_AT_ONCE: &str = r#"
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>
int main(void) {
    struct sockaddr_un a = { .sun_family = AF_UNIX };
    strncpy(a.sun_path, getenv("NOTIFY_SOCKET"), sizeof a.sun_path - 1);
    int s = socket(AF_UNIX, SOCK_DGRAM, 0);
    if (connect(s, (struct sockaddr *)&a, sizeof a) || send(s, "READY=1", 7, 0) != 7) return 1;
    for (;;) pause();
}
"#;

both_ways!(
    readiness_is_asked_in_every_way,
    readiness_said_at_once_is_heard,
    a_watchdog_bites_the_silent_only,
    a_worker_may_ask_for_more_time_to_stop,
    env_files_are_read_at_each_spawn,
    policies_decide_who_comes_back
);

fn readiness_is_asked_in_every_way(mut rig: Rig) {
    let base = free_port();
    rig.configure(&format!(
        r#"
        [fleet.tcp]
        command = [{{worker}}, "late_http", "{base}", "0.3"]
        ready = {{ tcp = "127.0.0.1:{base}", interval = "20ms" }}
        [fleet.http]
        command = [{{worker}}, "sleep"]
        after = {{ tcp = "ready" }}
        ready = {{ http = "http://127.0.0.1:{base}/yes", interval = "20ms" }}
        [fleet.not]
        command = [{{worker}}, "sleep"]
        ready = {{ http = "http://127.0.0.1:{base}/no", interval = "20ms" }}
        [fleet.exec]
        command = [{{worker}}, "sleep"]
        ready = {{ exec = ["/bin/sh", "-c", "test -e {{notes}}/go"], interval = "20ms" }}
        [fleet.delay]
        command = [{{worker}}, "sleep"]
        ready = "delay=200ms"
    "#
    ));
    rig.start();
    let ready = |status: &Status, fleet: &str| status.of(fleet).iter().any(|w| w.ready);
    rig.wait("tcp, http and delay are ready", 8_000, |s| {
        ready(s, "tcp") && ready(s, "http") && ready(s, "delay")
    });
    let status = rig.status();
    assert!(
        !ready(&status, "not") && !ready(&status, "exec"),
        "{status:?}"
    );
    assert_eq!(rig.cli(&["status"]).code, 3);
    send(status.supervisor(), Signal::KILL);
    fs::write(rig.path("notes/go"), "").unwrap();
    rig.wait("exec is ready, for the next supervisor", 4_000, |s| {
        ready(s, "exec") && ready(s, "tcp")
    });
    assert!(!ready(&rig.status(), "not"));
    rig.drain(5_000);
}

/// A hundred that speak as soon as they are there: before the supervisor can have heard of them.
fn readiness_said_at_once_is_heard(mut rig: Rig) {
    if rig.compile("ready", SPEAKS_AT_ONCE, &[]).is_none() {
        return;
    }
    rig.configure("[fleet.web]\ncommand = [\"{dir}/ready\"]\nready = \"notify\"\nworkers = 100\n");
    rig.start();
    let status = rig.settle(5_000);
    assert!(status.workers().iter().all(|w| w.generation == 1));
    rig.drain(5_000);
}

/// It falls silent, and is replaced; it goes on speaking over the death of a supervisor.
fn a_watchdog_bites_the_silent_only(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.loud]
        command = [{worker}, "alive", "{notes}/never"]
        ready = "notify"
        health.watchdog = "500ms"
        [fleet.mute]
        command = [{worker}, "alive", "{notes}/mute"]
        ready = "notify"
        health.watchdog = "500ms"
        stop.timeout = "200ms"
    "#,
    );
    let before = rig.start_settled();
    for _ in 0..3 {
        let supervisor = rig.status().supervisor();
        send(supervisor, Signal::KILL);
        rig.wait("another supervisor", 2_000, |status| {
            status.supervisor() != supervisor
        });
        pause(700);
    }
    assert_eq!(
        identities(&before.workers()),
        identities(&rig.status().workers())
    );
    fs::write(rig.path("notes/mute"), "").unwrap();
    let after = rig.wait("the silent one is replaced", 5_000, |status| {
        status.worker("mute/0").is_some_and(|w| w.generation > 1)
    });
    fs::remove_file(rig.path("notes/mute")).unwrap();
    assert_eq!(
        identities(&before.of("loud")),
        identities(&after.of("loud"))
    );
    assert!(
        after.worker("mute/0").unwrap().all["last_exit"]["reason"]
            .as_str()
            .unwrap()
            .contains("watchdog"),
        "{after:?}"
    );
    rig.drain(5_000);
}

fn a_worker_may_ask_for_more_time_to_stop(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.web]
        command = [{worker}, "slow_stop", "{notes}", "1.2"]
        ready = "notify"
        stop = { timeout = "500ms", extend_max = "10s" }
        [fleet.capped]
        command = [{worker}, "slow_stop", "{notes}", "100"]
        ready = "notify"
        stop = { timeout = "500ms", extend_max = "1s" }
    "#,
    );
    rig.start_settled();
    rig.drain(8_000);
    assert_eq!(rig.notes("order"), ["web gone"]);
}

fn env_files_are_read_at_each_spawn(mut rig: Rig) {
    rig.configure("[fleet.web]\ncommand = [\"/bin/sh\", \"-c\", \"echo $WORD; exec sleep 1000\"]\nenv_file = \"{dir}/env\"\nrestart = { backoff = \"20ms..50ms\", burst = 100 }\n");
    fs::write(rig.path("env"), "WORD=one\n").unwrap();
    let status = rig.start_settled();
    let has = |text: &str| fs::read_to_string(rig.log("web/0")).is_ok_and(|log| log == text);
    until_true("the first word", 3_000, || has("one\n"));
    fs::write(rig.path("env"), "WORD=two\n").unwrap();
    send(status.worker("web/0").unwrap().pid, Signal::KILL);
    until_true("the second word", 3_000, || has("one\ntwo\n"));
    fs::remove_file(rig.path("env")).unwrap();
    send(rig.status().worker("web/0").unwrap().pid, Signal::KILL);
    until_true("what is missing is named", 3_000, || {
        rig.stderr()
            .contains(&rig.path("env").display().to_string())
    });
    fs::write(rig.path("env"), "WORD=three\n").unwrap();
    until_true("the third word", 5_000, || has("one\ntwo\nthree\n"));
    rig.drain(5_000);
}

fn policies_decide_who_comes_back(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.never]
        command = [{worker}, "fail", "{notes}", "1"]
        restart.policy = "never"
        [fleet.fine]
        command = ["/bin/sh", "-c", "exit 3"]
        restart = { policy = "on-failure", success = [0, 3] }
        [fleet.bad]
        command = ["/bin/sh", "-c", "exit 4"]
        restart = { policy = "on-failure", backoff = "10ms..20ms", burst = 3, then = "fail" }
    "#,
    );
    rig.start();
    let status = rig.wait("all have come to rest", 6_000, |status| {
        let is = |id: &str, state: &str| status.worker(id).is_some_and(|w| w.state == state);
        is("never/0", "done") && is("fine/0", "done") && is("bad/0", "failed")
    });
    assert_eq!(rig.notes("starts").len(), 1);
    assert_eq!(status.worker("bad/0").unwrap().generation, 4);
    assert!(
        status.worker("bad/0").unwrap().all["next_start_in_ms"].is_null(),
        "given up for good"
    );
    send(status.supervisor(), Signal::KILL);
    let after = rig.wait("another supervisor", 2_000, |s| {
        s.supervisor() != status.supervisor()
    });
    assert_eq!(identities(&status.workers()), identities(&after.workers()));
    rig.drain(5_000);
}

/// A file with faults: all of them, the right code, and nothing is left behind.
#[test]
fn a_daemon_with_a_faulty_file_does_not_start() {
    for mode in [crate::rig::Mode::Cgroup, crate::rig::Mode::Group] {
        let Some(rig) = crate::rig::Rig::new(mode) else {
            continue;
        };
        rig.configure("[fleet.web]\ncommand = [\"/no/such/program\"]\nworkrs = 3\n[fleet.two]\n");
        let output = rig.run_command().output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(78), "{text}");
        for word in [
            "/no/such/program",
            "workrs",
            "did you mean `workers`",
            "fleet.two",
        ] {
            assert!(text.contains(word), "{word}: {text}");
        }
        rig.assert_nothing_left();
        assert!(!rig.path("run/control.sock").exists() && !rig.path("run/run.json").exists());
    }
}

/// One address, two who want it: said before anything is started, and nothing is left.
#[test]
fn a_taken_address_is_named_at_the_start() {
    for mode in [crate::rig::Mode::Cgroup, crate::rig::Mode::Group] {
        let Some(rig) = crate::rig::Rig::new(mode) else {
            continue;
        };
        let theirs = std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = theirs.local_addr().unwrap().to_string();
        for text in [
            format!(
                "[http]\nlisten = [\"{address}\"]\n[fleet.web]\ncommand = [{{worker}}, \"sleep\"]\n"
            ),
            format!(
                "[fleet.web]\ncommand = [{{worker}}, \"sleep\"]\nsocket.main.listen = \"{address}\"\n"
            ),
        ] {
            rig.configure(&text);
            let output = rig.run_command().output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{said}");
            assert!(
                said.contains(&address) && said.contains("another program listens there"),
                "{said}"
            );
            rig.assert_nothing_left();
            assert!(!rig.path("run/run.json").exists());
        }
    }
}
