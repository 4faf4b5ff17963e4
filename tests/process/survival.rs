//! The supervisor is killed or frozen under a hundred busy workers: nobody notices.

use std::{
    collections::BTreeMap,
    fs,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use leasehold::id::FLEET_NAME_MAX;

use rustix::process::Signal;

use crate::{
    rig::{
        Mode, Rig, Status, both_ways, free_port, identities, pause, send, skip, until, until_true,
    },
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
pub(crate) fn check_lines(rig: &Rig, worker: &str, generation: u64) {
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
pub(crate) fn supervisor_of(keeper: i32) -> Option<i32> {
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
    let Some(mut rig) = Rig::new(Mode::Group) else {
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

/// What status must say of the workers whoever has just been told of them.
fn known(status: &Status) -> Vec<(String, i32, u64, String, bool, u64)> {
    let workers = status.workers().into_iter();
    workers
        .map(|w| (w.id, w.pid, w.generation, w.state, w.ready, w.restarts))
        .collect()
}

/// Looks whether the keeper waits for room in its supervisor's socket, as `/proc` shows it: it is waiting to write there.
struct Waits {
    seen: Arc<AtomicUsize>,
    stop: Arc<AtomicBool>,
    thread: std::thread::JoinHandle<()>,
}

impl Waits {
    /// The keeper's name for that socket.
    const LINK: &str = "2";
    const EPOLLOUT: u32 = 4;

    fn watch(keeper: i32) -> Self {
        let fds = fs::read_dir(format!("/proc/{keeper}/fd"))
            .unwrap()
            .flatten();
        let is_poll = |entry: &fs::DirEntry| {
            fs::read_link(entry.path()).is_ok_and(|to| to.as_os_str() == "anon_inode:[eventpoll]")
        };
        let poll = fds.into_iter().find(is_poll).expect("it polls");
        let number = poll.file_name().into_string().unwrap();
        let path = format!("/proc/{keeper}/fdinfo/{number}");
        let (seen, stop) = (Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
        let (ours, told) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !told.load(Ordering::Relaxed) {
                let text = fs::read_to_string(&path).unwrap_or_default();
                // tfd: 71 events: 1d data: 2 …
                let waits = text.lines().any(|line| {
                    let words: Vec<&str> = line.split_whitespace().collect();
                    let events = words
                        .get(3)
                        .and_then(|hex| u32::from_str_radix(hex, 16).ok());
                    words.get(5) == Some(&Self::LINK)
                        && events.is_some_and(|events| events & Self::EPOLLOUT != 0)
                });
                ours.fetch_add(usize::from(waits), Ordering::Relaxed);
            }
        });
        Self { seen, stop, thread }
    }

    fn seen(&self) -> usize {
        self.seen.load(Ordering::Relaxed)
    }

    fn end(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
    }
}

/// More than a socket holds: the keeper goes on when some of it was read, and whoever is killed or frozen in the middle has a
/// successor that is told all of it. The first question whether it is there waits behind, and is not counted as silence.
#[test]
fn a_telling_larger_than_the_sockets_buffer_arrives() {
    let Some(mut rig) = Rig::new(Mode::Group) else {
        return;
    };
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let room = fs::read_to_string("/proc/sys/net/core/wmem_default").unwrap();
    let room: usize = room.trim().parse().unwrap();
    // A row takes some 84 bytes for a fleet, which has one even without a process, and 150 for a worker; a packet takes half as much again
    // in the kernel. Fleets come first and fill most of the buffer, so that what does not fit is about workers, whose loss would be seen.
    let (resting, workers) = (room / 150, room / 530);
    if workers > 1_000 {
        skip("a socket's buffer is too large here (net.core.wmem_default)");
        return;
    }
    let mut text = String::new();
    for n in 0..resting {
        let name = format!("rest-{n:0>width$}", width = FLEET_NAME_MAX - 5);
        text += &format!("[fleet.{name}]\ncommand = [\"/bin/sleep\", \"1000\"]\nworkers = 0\n");
    }
    text += &format!("[fleet.web]\ncommand = [\"/bin/sleep\", \"1000\"]\nworkers = {workers}\n");
    rig.configure(&text);
    let first = rig.start_settled();
    send(first.worker("web/3").unwrap().pid, Signal::KILL);
    rig.ok(&["stop", "web/4"]);
    let status = rig.wait("one has fallen and one is held", 5_000, |status| {
        let worker = |id| status.worker(id).unwrap();
        worker("web/3").ready && worker("web/3").restarts == 1 && !worker("web/4").ready
    });
    let before = known(&status);
    let waits = Waits::watch(rig.keeper());
    let mut last = 0;
    let mut end_next = |signal: Signal, within_ms: u64| {
        let supervisor = until("a next supervisor", 5_000, || {
            let found = supervisor_of(rig.keeper()).filter(|pid| *pid != last);
            found.ok_or_else(String::new)
        });
        pause(any(within_ms));
        send(supervisor, signal);
        last = supervisor;
    };
    // A fifth death of its own would let the next one ignore its rows.
    for _ in 0..4 {
        end_next(Signal::KILL, 25);
    }
    // While it is being told, most of the time: that is over in a few milliseconds.
    let mut freezes = 0;
    until_true("the keeper waits for room", 10_000, || {
        end_next(Signal::STOP, 5);
        freezes += 1;
        freezes >= 8 && waits.seen() > 0
    });
    let after = rig.wait("the last of them knows everybody", 5_000, |status| {
        status.supervisor() != last && known(status) == before
    });
    waits.end();
    // Silence is ten seconds without an answer.
    pause(10_500);
    let later = rig.status();
    assert_eq!(later.supervisor(), after.supervisor(), "{}", rig.stderr());
    assert_eq!(known(&later), before);
    assert!(!rig.stderr().contains("has not answered"));
    rig.drain(5_000);
}
