//! Workers that are started before they have their lock (`warm`), on one machine.

use std::process::{Child, Command};

use rustix::process::Signal;
use serde_json::Value;

use crate::rig::{Rig, both_ways, send, until};

both_ways!(
    what_a_dead_daemon_left_is_ended_and_not_our_own,
    a_leader_under_a_replaced_file_is_waited_for,
    who_fails_as_a_standby_has_no_turn,
);

fn configure(rig: &Rig, lock: &str, more: &str) {
    rig.configure(&format!(
        r#"
        [fleet.job]
        command = [{{worker}}, "sleep"]
        singleton = {{ scope = "node", flock = "{lock}", warm = true }}
        {more}
        "#
    ));
}

fn lock_of(rig: &Rig) -> String {
    rig.path("lock").display().to_string()
}

/// The worker that waits: its pid.
pub(crate) fn standby(rig: &Rig) -> i32 {
    let status = rig.wait("a worker stands by", 5_000, |status| {
        let worker = status.worker("job/0");
        worker.is_some_and(|one| one.all["state"] == "standby" && one.all["pid"].is_i64())
    });
    let worker = status.worker("job/0").unwrap();
    assert!(!worker.ready, "{}", worker.all);
    worker.pid
}

/// Whoever leads: its pid.
fn leader(rig: &Rig) -> i32 {
    let leads = |worker: &Value| worker["state"] == "running" && worker["ready"] == true;
    let status = rig.wait("it leads", 10_000, |status| {
        status
            .worker("job/0")
            .is_some_and(|worker| leads(&worker.all))
    });
    status.worker("job/0").unwrap().pid
}

/// A stranger who has the lock.
struct Stranger(Child);

impl Stranger {
    fn takes(lock: &str) -> Self {
        let script = "exec sleep 1000";
        let child = Command::new("flock")
            .args([lock, "sh", "-c", script])
            .spawn();
        Self(child.expect("flock(1)"))
    }
}

impl Drop for Stranger {
    fn drop(&mut self) {
        // flock(1) waits for its child, which has the lock, too.
        let children = format!("/proc/{0}/task/{0}/children", self.0.id());
        let children = std::fs::read_to_string(children).unwrap_or_default();
        for child in children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
        {
            send(child, Signal::KILL);
        }
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A daemon's directories are its successor's: what the lock's record says of cgroups is true of both.
fn what_a_dead_daemon_left_is_ended_and_not_our_own(mut rig: Rig) {
    let lock = lock_of(&rig);
    configure(&rig, &lock, "");
    rig.start();
    leader(&rig);
    let (keeper, supervisor) = (rig.keeper(), rig.status().supervisor());
    send(keeper, Signal::STOP);
    send(supervisor, Signal::KILL);
    rig.kill_keeper();
    let stranger = until("a stranger has the lock", 5_000, || {
        let stranger = Stranger::takes(&lock);
        let tried = Command::new("flock").args(["-n", &lock, "true"]).status();
        let is_taken = !tried.unwrap().success();
        is_taken
            .then_some(stranger)
            .ok_or_else(|| "not yet".to_owned())
    });
    rig.start();
    let pid = standby(&rig);
    drop(stranger);
    assert_eq!(leader(&rig), pid, "{}", rig.stderr());
}

/// It has no environment that tells of the lock: its keeper, which holds it, does.
fn a_leader_under_a_replaced_file_is_waited_for(mut a: Rig) {
    let Some(mut b) = Rig::new(a.mode) else {
        return;
    };
    let lock = lock_of(&a);
    configure(&a, &lock, "");
    configure(&b, &lock, "");
    a.start();
    let led = leader(&a);
    let frozen = [a.keeper(), a.status().supervisor()];
    for pid in frozen {
        send(pid, Signal::STOP);
    }
    std::fs::remove_file(&lock).unwrap();
    b.start();
    until("it waits for whoever leads", 5_000, || {
        let said = b.stderr();
        let waits = said.contains("was replaced while somebody runs under it");
        waits.then_some(()).ok_or(said)
    });
    let pid = standby(&b);
    for pid in frozen {
        send(pid, Signal::CONT);
    }
    assert_eq!(leader(&b), pid);
    assert!(!crate::rig::lives(led), "{}", a.stderr());
}

/// Its turn is somebody else's who is well, and people see why.
fn who_fails_as_a_standby_has_no_turn(mut a: Rig) {
    let Some(mut b) = Rig::new(a.mode) else {
        return;
    };
    let lock = lock_of(&a);
    configure(&a, &lock, "");
    b.configure(&format!(
        r#"
        [fleet.job]
        command = ["/bin/false"]
        singleton = {{ scope = "node", flock = "{lock}", warm = true }}
        restart = {{ backoff = "60s..60s" }}
        "#
    ));
    a.start();
    leader(&a);
    b.start();
    b.wait("it backs off", 5_000, |status| {
        let worker = status.worker("job/0");
        worker.is_some_and(|one| one.all["state"] == "backing-off")
    });
    assert_eq!(b.status().fleet("job")["state"], "degraded");
    a.ok(&["stop", "job"]);
    a.ok(&["start", "job"]);
    leader(&a);
    assert!(!b.stderr().contains("has its lock"), "{}", b.stderr());
}
