//! The supervisor is killed or frozen under a hundred busy workers: nobody notices.

use std::{
    collections::BTreeMap,
    fs,
    sync::{Mutex, MutexGuard, PoisonError},
};

use rustix::process::Signal;

use crate::{
    rig::{Rig, Status, both_ways, free_port, identities, pause, send, until},
    traffic::{Count, Traffic},
};

/// How often the supervisor dies in a test; its keeper forgives four deaths in ten seconds before it believes in a bad row.
fn rounds(usual: usize) -> usize {
    let asked = std::env::var("LEASEHOLD_TEST_ROUNDS").ok();
    asked.and_then(|n| n.parse().ok()).unwrap_or(usual)
}

/// A number from 0 to below `limit` that no run repeats.
fn any(limit: u64) -> u64 {
    let mut bits = [0_u8; 8];
    rustix::rand::getrandom(&mut bits, rustix::rand::GetRandomFlags::empty()).unwrap();
    u64::from_ne_bytes(bits) % limit
}

/// Ninety talkers, six that crash, two that serve: all that a supervisor could lose.
struct Busy {
    rig: Rig,
    status: Status,
    serving: Traffic,
    health: Traffic,
    _alone: MutexGuard<'static, ()>,
}

/// A hundred busy workers are enough for a small machine: these tests run one after the other.
static ALONE: Mutex<()> = Mutex::new(());

impl Busy {
    fn begin(mut rig: Rig) -> Self {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let (port, http) = (free_port(), free_port());
        rig.configure(&format!(
            r#"
            [node]
            restart_rate = "10000/s"
            restart_burst = 10000
            [http]
            listen = ["127.0.0.1:{http}"]
            [fleet.talk]
            command = [{{worker}}, "lines", "5", "0.05"]
            workers = 92
            log = {{ rotate_size = "256KiB", max_size = "64MiB" }}
            [fleet.fall]
            command = [{{worker}}, "crash", "{{notes}}"]
            workers = 6
            restart = {{ backoff = "10ms..50ms", burst = 100000 }}
            [fleet.serve]
            command = [{{worker}}, "serve"]
            workers = 2
            socket.main.listen = "127.0.0.1:{port}"
            "#
        ));
        rig.start();
        let status = rig.wait("the talkers and servers run", 15_000, |status| {
            let up = |fleet: &str| status.of(fleet).iter().filter(|w| w.ready).count();
            up("talk") == 92 && up("serve") == 2
        });
        let serving = Traffic::start(port, "", "\n");
        let health = Traffic::start(
            http,
            "GET /livez HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n",
            "HTTP/1.1 200",
        );
        Self {
            rig,
            status,
            serving,
            health,
            _alone: alone,
        }
    }

    /// Everything steady is as it was, and somebody new says so.
    fn replaced(&self, before: i32, bound_ms: u64) -> Status {
        let status = self
            .rig
            .wait("another supervisor knows everybody", bound_ms, |status| {
                status.supervisor() != before
                    && ["talk", "serve"].iter().all(|fleet| {
                        identities(&status.of(fleet)) == identities(&self.status.of(fleet))
                            && status.of(fleet).iter().all(|worker| worker.ready)
                    })
            });
        assert_eq!(status.0["keeper"]["pid"], self.status.0["keeper"]["pid"]);
        status
    }

    /// The accounts are closed: connections, crashes, log lines, processes. `resets` is how many answers a killed supervisor may cut off.
    fn end(self, resets: usize, counted: bool) {
        let Self {
            mut rig,
            serving,
            health,
            status,
            _alone,
        } = self;
        fs::write(rig.path("notes/calm"), "").unwrap();
        rig.wait("every crash was followed by one start", 10_000, |status| {
            let fallen = status.of("fall");
            fallen.len() == 6
                && fallen.iter().all(|worker| {
                    let slot = worker.id.rsplit('/').next().unwrap();
                    let starts = rig.notes(&format!("starts.{slot}"));
                    let numbers: Vec<u64> = starts.iter().map(|n| n.parse().unwrap()).collect();
                    let wanted: Vec<u64> = (1..=worker.generation).collect();
                    let seen = !counted || worker.restarts + 1 == worker.generation;
                    worker.ready && numbers == wanted && seen
                })
        });
        let Count {
            answered,
            reset,
            refused,
        } = serving.finish();
        assert!(answered > 20, "{answered}");
        assert!(
            refused.is_empty() && reset.is_empty(),
            "{refused:?} {reset:?}"
        );
        let health = health.finish();
        assert!(
            health.answered > 20 && health.refused.is_empty(),
            "{health:?}"
        );
        assert!(health.reset.len() <= resets, "{health:?}");
        let workers = status.of("talk");
        rig.drain(10_000);
        for worker in workers {
            check_lines(&rig, &worker.id, worker.generation);
        }
    }
}

/// The files of a slot, oldest first, hold `GENERATION NUMBER` lines: each once, in order, whole, up to the last one.
fn check_lines(rig: &Rig, worker: &str, generation: u64) {
    let text = whole_log(rig, worker);
    let mut next = 1;
    let mut lines = text.lines();
    let last = lines.by_ref().find(|line| {
        let right = *line == format!("{generation} {next}");
        next += u64::from(right);
        !right
    });
    assert_eq!(
        last,
        Some(format!("{generation} last {}", next - 1).as_str()),
        "{worker}: line {next} is wrong"
    );
    assert_eq!(lines.next(), None, "{worker}: more after its last word");
}

/// All files of a slot in the order in which they were written.
pub(crate) fn whole_log(rig: &Rig, worker: &str) -> String {
    let path = rig.log(worker);
    let (dir, name) = (
        path.parent().unwrap(),
        path.file_name().unwrap().to_str().unwrap(),
    );
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap().flatten() {
        let found = entry.file_name().into_string().unwrap();
        if let Some(rest) = found.strip_prefix(name) {
            let number: i64 = rest.strip_prefix('.').map_or(0, |n| n.parse().unwrap());
            files.insert(-number, entry.path());
        }
    }
    files
        .values()
        .map(|path| fs::read_to_string(path).unwrap())
        .collect()
}

both_ways!(
    a_killed_supervisor_loses_nothing,
    a_storm_of_kills_loses_no_worker,
    a_frozen_supervisor_is_replaced
);

/// Spaced, so that every supervisor believes its rows: counters too are right in the end.
fn a_killed_supervisor_loses_nothing(rig: Rig) {
    let busy = Busy::begin(rig);
    let rounds = rounds(5);
    let mut supervisor = busy.status.supervisor();
    for _ in 0..rounds {
        pause(any(300));
        send(supervisor, Signal::KILL);
        supervisor = busy.replaced(supervisor, 2_000).supervisor();
        pause(2_600);
    }
    busy.end(rounds, true);
}

/// As fast as they come up, at any moment of their start: from the fifth on they ignore row bodies, and wait between starts.
fn a_storm_of_kills_loses_no_worker(rig: Rig) {
    let busy = Busy::begin(rig);
    let mut before = busy.status.supervisor();
    let mut kills = 0;
    for _ in 0..8 {
        // Found in /proc, not asked: it dies before it could answer.
        let supervisor = until("a next supervisor", 6_000, || {
            supervisor_of(busy.rig.keeper())
                .filter(|pid| *pid != before)
                .or((kills == 0).then_some(before))
                .ok_or_else(String::new)
        });
        pause(any(40));
        send(supervisor, Signal::KILL);
        (before, kills) = (supervisor, kills + 1);
    }
    busy.replaced(before, 8_000);
    busy.end(kills, false);
}

/// Seen at once and replaced; it does not count as a death of its own.
fn a_frozen_supervisor_is_replaced(rig: Rig) {
    let busy = Busy::begin(rig);
    let rounds = rounds(30);
    let mut supervisor = busy.status.supervisor();
    for _ in 0..rounds {
        pause(any(100));
        send(supervisor, Signal::STOP);
        supervisor = busy.replaced(supervisor, 2_000).supervisor();
    }
    busy.end(rounds, true);
}

/// The keeper's child that is called so.
fn supervisor_of(keeper: i32) -> Option<i32> {
    let children = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).ok()?;
    let mut pids = children
        .split_whitespace()
        .filter_map(|pid| pid.parse::<i32>().ok());
    pids.find(|pid| {
        fs::read(format!("/proc/{pid}/cmdline"))
            .is_ok_and(|line| line.starts_with(b"leasehold\0supervisor\0"))
            && crate::rig::lives(*pid)
    })
}

/// What was accepted by nobody yet is answered by the successor: a listener never goes away.
#[test]
fn a_connection_made_while_nobody_is_there_is_answered() {
    let Some(mut rig) = Rig::new(crate::rig::Mode::Group) else {
        return;
    };
    let http = free_port();
    rig.configure(&format!(
        "[http]\nlisten = [\"127.0.0.1:{http}\"]\n[fleet.web]\ncommand = [{{worker}}, \"sleep\"]\n"
    ));
    let status = rig.start_settled();
    send(status.supervisor(), Signal::KILL);
    for _ in 0..5 {
        let answer = rig.request("GET", "/livez", "");
        // It may be cut off by the death itself, never refused.
        assert!(!format!("{answer:?}").contains("refused"), "{answer:?}");
    }
    until("it answers", 2_000, || rig.request("GET", "/livez", ""));
    rig.drain(5_000);
}
