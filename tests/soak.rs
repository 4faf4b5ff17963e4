//! Minutes of random faults: nothing grows, and every byte written is a byte logged.
//!
//! `SOAK_SECONDS` says how long (30 unless set); the seed is printed, and `SOAK_SEED` repeats the same faults.

#[expect(dead_code, reason = "the rig serves the process tests first")]
#[path = "process/rig.rs"]
mod rig;

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, UNIX_EPOCH},
};

use rig::{Mode, Rig, Status, all_pids, both_ways, parent_of, pause, send, state_of, until};
use rustix::process::Signal;

/// splitmix64 (Steele et al. 2014).
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (z ^ (z >> 31)) % n
    }
}

fn setting(name: &str) -> Option<u64> {
    std::env::var(name).ok().and_then(|text| text.parse().ok())
}

fn uptime() -> Duration {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// What could grow.
#[derive(Clone, Copy, Debug)]
struct Sample {
    rss_kib: u64,
    fds: u64,
    zombies: u64,
    cgroups: u64,
}

fn sample(rig: &Rig) -> Sample {
    let keeper = rig.keeper();
    let status = fs::read_to_string(format!("/proc/{keeper}/status")).unwrap();
    let rss = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    let children = all_pids()
        .into_iter()
        .filter(|pid| parent_of(*pid) == Some(keeper));
    let cgroups = rig.cgroup().and_then(|path| fs::read_dir(path).ok());
    Sample {
        rss_kib: rss.trim().trim_end_matches(" kB").parse().unwrap(),
        fds: fs::read_dir(format!("/proc/{keeper}/fd")).unwrap().count() as u64,
        zombies: children.filter(|pid| state_of(*pid) == Some('Z')).count() as u64,
        cgroups: cgroups.map_or(0, |dir| {
            dir.flatten().filter(|e| e.path().is_dir()).count() as u64
        }),
    }
}

const CONFIG: &str = r#"
    [node]
    restart_rate = "1000/s"
    restart_burst = 1000
    [fleet.talk]
    command = [{worker}, "lines", "10", "0.02"]
    workers = 10
    log = { rotate_size = "128KiB", max_size = "4GiB" }
    restart = { backoff = "10ms..100ms", burst = 100000 }
    [fleet.idle]
    command = [{worker}, "sleep"]
    workers = 4
    after = { talk = "started" }
    restart = { backoff = "10ms..100ms", burst = 100000 }
"#;

/// One random thing that goes wrong, or that an operator does.
fn trouble(rig: &Rig, rng: &mut Rng, last_death: &mut Duration) -> &'static str {
    let Ok(status) = rig.try_status() else {
        return "nothing: nobody answers";
    };
    let workers = status.workers();
    let some_worker = |rng: &mut Rng| {
        workers
            .get(rng.below(workers.len().max(1) as u64) as usize)
            .map(|w| w.pid)
            .filter(|pid| *pid > 0)
    };
    // Four deaths in ten seconds are forgiven; more would be answered with a pause that this test is not about.
    let may_die = uptime() - *last_death > Duration::from_millis(2_700);
    match rng.below(10) {
        0..=2 if may_die => {
            *last_death = uptime();
            let signal = if rng.below(4) == 0 {
                Signal::STOP
            } else {
                Signal::KILL
            };
            send(status.supervisor(), signal);
            "supervisor"
        }
        3 | 4 => {
            if let Some(pid) = some_worker(rng) {
                send(pid, Signal::KILL);
            }
            "worker"
        }
        5 => {
            send(rig.keeper(), Signal::HUP);
            "reload"
        }
        6 => {
            let size = (6 + rng.below(8)).to_string();
            rig.cli(&["scale", "talk", &size, "--no-wait"]);
            "scale"
        }
        7 => {
            rig.cli(&[
                "restart",
                if rng.below(2) == 0 { "talk" } else { "idle" },
                "--no-wait",
            ]);
            "restart"
        }
        8 => {
            rig.cli(&["stop", "idle", "--no-wait"]);
            rig.cli(&["start", "idle", "--no-wait"]);
            "stop and start"
        }
        _ => "a look",
    }
}

fn soak(mut rig: Rig) {
    let mode = rig.mode;
    let seconds = setting("SOAK_SECONDS").unwrap_or(30) / 2;
    let seed = setting("SOAK_SEED").unwrap_or_else(|| {
        UNIX_EPOCH
            .elapsed()
            .map_or(1, |since| since.as_nanos() as u64)
    });
    println!("soak {mode:?}: {seconds} s, SOAK_SEED={seed}");
    let mut rng = Rng(seed);
    rig.configure(CONFIG);
    rig.start_settled();
    let end = uptime() + Duration::from_secs(seconds);
    let mut last_death = Duration::ZERO;
    let mut samples = Vec::new();
    let mut did: BTreeMap<&str, u32> = BTreeMap::new();
    while uptime() < end {
        *did.entry(trouble(&rig, &mut rng, &mut last_death))
            .or_default() += 1;
        pause(20 + rng.below(300));
        samples.push(sample(&rig));
    }
    rig.cli(&["scale", "talk", "auto", "--no-wait"]);
    // A rolling restart of which we killed a new worker has failed, and stays so until somebody asks again.
    for fleet in ["talk", "idle"] {
        rig.cli(&["restart", fleet, "--no-wait"]);
    }
    let calm = until("the fleets to be as configured", 30_000, || {
        let status: Status = rig.try_status()?;
        let whole = status.of("talk").len() == 10 && status.of("idle").len() == 4;
        if status.settled() && whole {
            Ok(status)
        } else {
            Err(format!("{status:?}"))
        }
    });
    println!("did {did:?}; calm with {} workers", calm.workers().len());
    let last = until("orphans to be reaped and cgroups removed", 10_000, || {
        let now = sample(&rig);
        let leaves = if mode == Mode::Cgroup { 14 } else { 0 };
        if now.zombies == 0 && now.cgroups == leaves {
            Ok(now)
        } else {
            Err(format!("{now:?}"))
        }
    });
    assert_growth(&samples, last);
    rig.drain(30_000);
    rig.assert_nothing_left();
    let lines = check_logs(&rig.path("log/talk"));
    println!("{lines} lines, each logged once");
    assert!(lines > 100 * seconds, "only {lines} lines in {seconds} s");
}

/// The end is compared with the first third, when everything had been used once.
fn assert_growth(samples: &[Sample], last: Sample) {
    let early = &samples[..(samples.len() / 3).max(1)];
    let most = |of: fn(&Sample) -> u64| early.iter().map(of).max().unwrap_or(0);
    let (rss, fds) = (most(|s| s.rss_kib), most(|s| s.fds));
    println!(
        "keeper: rss {} KiB (early at most {rss}), {} descriptors (early at most {fds})",
        last.rss_kib, last.fds
    );
    assert!(
        last.rss_kib <= rss + rss / 4 + 1_024,
        "the keeper grew from {rss} to {} KiB",
        last.rss_kib
    );
    assert!(
        last.fds <= fds + 8,
        "the keeper's descriptors grew from {fds} to {}",
        last.fds
    );
}

/// Each generation's lines are numbered from 1 without gap or repetition; a worker that ended by itself says how many it wrote.
fn check_logs(dir: &Path) -> u64 {
    let mut total = 0;
    for slot in 0..20 {
        let mut seen: BTreeMap<String, u64> = BTreeMap::new();
        for path in parts(dir, slot) {
            let text = fs::read(&path).unwrap();
            for line in String::from_utf8(text).unwrap().lines() {
                let words: Vec<&str> = line.split(' ').collect();
                match words.as_slice() {
                    [generation, "last", count] => {
                        let count: u64 = count.parse().unwrap();
                        assert_eq!(
                            seen.get(*generation).copied().unwrap_or(0),
                            count,
                            "{}: {line}",
                            path.display()
                        );
                    }
                    [generation, number] => {
                        let number: u64 = number.parse().unwrap();
                        let before = seen.insert((*generation).to_owned(), number).unwrap_or(0);
                        assert_eq!(
                            before + 1,
                            number,
                            "{}: {line:?} after {before}",
                            path.display()
                        );
                        total += 1;
                    }
                    _ => panic!("{}: {line:?} is no line that was written", path.display()),
                }
            }
        }
    }
    total
}

/// A slot's files, oldest first.
fn parts(dir: &Path, slot: u32) -> Vec<PathBuf> {
    let current = dir.join(format!("{slot}.log"));
    let rotated = (1..100_000)
        .map(|n| dir.join(format!("{slot}.log.{n}")))
        .take_while(|path| path.exists());
    let mut all: Vec<PathBuf> = rotated.collect();
    all.reverse();
    all.extend(current.exists().then_some(current));
    all
}

both_ways!(soak);
