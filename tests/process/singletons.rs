//! Singletons of one machine: daemons with different directories and one lock, and an oracle outside: every worker says who it is into
//! one file, all the time. Lines of one holder between those of another are two at once.

use std::{
    fs,
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use leasehold::{
    id::WorkerId,
    sys::family::{self, Carrier, Late, Stat},
};
use rustix::process::Signal;

use crate::rig::{Mode, Rig, both_ways, pause, send, until, until_true};

both_ways!(
    one_holder_at_a_time_through_everything,
    the_lock_is_handed_over_in_order,
    a_replaced_lock_file_ends_its_holder,
    a_replaced_lock_that_somebody_has_had_is_lost,
    a_lock_that_is_replaced_while_it_is_taken_is_taken_again,
    a_lock_that_was_waited_for_costs_nothing_once_it_is_had,
    flock_and_we_exclude_each_other,
    a_hook_ends_with_its_worker,
);

/// Two daemons and their lock.
pub(crate) struct Pair {
    pub(crate) a: Rig,
    pub(crate) b: Rig,
    beats: PathBuf,
    lock: PathBuf,
}

impl Pair {
    /// None if there is no C compiler.
    pub(crate) fn new(a: Rig, how: &str) -> Option<Self> {
        let b = Rig::new(a.mode)?;
        let program = a.compile("beat", include_str!("beat.c"), &[])?;
        let (beats, lock) = (a.path("beats"), a.path("lock.file"));
        for (name, rig) in [("a", &a), ("b", &b)] {
            rig.configure(&format!(
                r#"
                [fleet.job]
                command = ["{}", "{}", "{name}", "{how}"]
                singleton = {{ scope = "node", flock = "{}" }}
                restart = {{ backoff = "1ms..5ms", burst = 100000 }}
                stop.timeout = "500ms"
            "#,
                program.display(),
                beats.display(),
                lock.display()
            ));
        }
        Some(Self { a, b, beats, lock })
    }

    pub(crate) fn beats(&self) -> Vec<Beat> {
        let text = fs::read_to_string(&self.beats).unwrap_or_default();
        text.lines().filter_map(Beat::read).collect()
    }

    /// Somebody says something new.
    pub(crate) fn goes_on(&self, bound_ms: u64) -> Beat {
        let before = self.beats().len();
        until("somebody runs", bound_ms, || {
            let beats = self.beats();
            (beats.len() > before + 5)
                .then(|| beats.last().cloned())
                .flatten()
                .ok_or_else(|| format!("a: {}\nb: {}", self.a.stderr(), self.b.stderr()))
        })
    }

    /// However few of the two had it before, both can have it still.
    pub(crate) fn changes_hands(&mut self) {
        for _ in 0..4 {
            let which = usize::from(self.goes_on(10_000).node == "b");
            self.rig(which).ok(&["stop", "job"]);
            let other = ["b", "a"][which];
            until("the other one runs", 5_000, || {
                let last = self.beats().last().cloned();
                last.filter(|beat| beat.node == other)
                    .ok_or_else(String::new)
            });
            self.rig(which).ok(&["start", "job"]);
        }
    }

    pub(crate) fn rig(&mut self, which: usize) -> &mut Rig {
        if which == 0 { &mut self.a } else { &mut self.b }
    }

    /// Never two, and fences never fall.
    pub(crate) fn check(&self) -> usize {
        one_at_a_time(&self.beats(), || {
            format!("a: {}\nb: {}", self.a.stderr(), self.b.stderr())
        })
    }
}

/// Nobody speaks again after somebody else did, and fences never fall; how many spoke.
pub(crate) fn one_at_a_time(beats: &[Beat], context: impl Fn() -> String) -> usize {
    let seen = speaks_never_again(beats, context);
    for two in seen.windows(2) {
        let (last, beat) = (&two[0], &two[1]);
        let grows = beat.fence > last.fence || (beat.fence == last.fence && beat.node == last.node);
        assert!(grows, "{beat:?} came after {last:?}");
    }
    seen.len()
}

/// Nobody speaks again after somebody else did; who spoke.
pub(crate) fn speaks_never_again(beats: &[Beat], context: impl Fn() -> String) -> Vec<Beat> {
    let mut seen: Vec<Beat> = Vec::new();
    for (line, beat) in beats.iter().enumerate() {
        if seen.last() == Some(beat) {
            continue;
        }
        assert!(
            !seen.contains(beat),
            "line {line}: {beat:?} speaks again after {:?} did: two at once\n{}",
            seen.last(),
            context()
        );
        seen.push(beat.clone());
    }
    seen
}

/// One line of the oracle's file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Beat {
    pub(crate) node: String,
    fence: u64,
    pub(crate) leader: i32,
}

impl Beat {
    pub(crate) fn read(line: &str) -> Option<Self> {
        let mut words = line.split(' ');
        Some(Self {
            node: words.next()?.to_owned(),
            fence: words.next()?.parse().ok()?,
            leader: words.next()?.parse().ok()?,
        })
    }
}

/// Faults at random; its seed is printed with a failure.
pub(crate) struct Dice(u64);

impl Dice {
    pub(crate) fn new() -> Self {
        let seed = leasehold::sys::host::seed() | 1;
        eprintln!("dice {seed}");
        Self(seed)
    }

    /// xorshift64.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

pub(crate) fn rounds() -> u64 {
    std::env::var("LEASEHOLD_TEST_ROUNDS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(20)
}

/// Workers, supervisors, keepers and both die or freeze at any moment; lock files are unlinked; descriptors are closed.
fn one_holder_at_a_time_through_everything(rig: Rig) {
    let mode = rig.mode;
    let Some(mut pair) = Pair::new(rig, "-g") else {
        return;
    };
    for which in [0, 1] {
        pair.rig(which).start();
    }
    pair.goes_on(5_000);
    let mut dice = Dice::new();
    for _ in 0..rounds() {
        let which = dice.below(2) as usize;
        match dice.below(7) {
            0 => {
                let leader = pair.goes_on(8_000).leader;
                send(leader, Signal::KILL);
            }
            1 => {
                let supervisor = pair.rig(which).status().supervisor();
                send(supervisor, Signal::KILL);
            }
            2 => {
                let supervisor = pair.rig(which).status().supervisor();
                send(supervisor, Signal::STOP);
            }
            3 => {
                pair.rig(which).kill_keeper();
                pause(dice.below(20));
                pair.rig(which).start();
            }
            4 => {
                let supervisor = pair.rig(which).status().supervisor();
                send(supervisor, Signal::KILL);
                pair.rig(which).kill_keeper();
                pause(dice.below(20));
                pair.rig(which).start();
            }
            5 => {
                let _ = fs::remove_file(&pair.lock);
            }
            _ => {
                pair.rig(which).ok(&["stop", "job"]);
                pause(dice.below(50));
                pair.rig(which).ok(&["start", "job"]);
            }
        }
        pause(dice.below(60));
    }
    pair.changes_hands();
    let holders = pair.check();
    assert!(holders > 4, "{holders} holders in {mode:?}");
    for which in [0, 1] {
        pair.rig(which).drain(8_000);
    }
    pair.check();
}

fn the_lock_is_handed_over_in_order(rig: Rig) {
    let Some(mut pair) = Pair::new(rig, "-c") else {
        return;
    };
    pair.a.start();
    pair.goes_on(5_000);
    pair.b.start();
    let waits = pair.b.wait("the second one waits", 3_000, |status| {
        let fleet = &status.0["fleets"][0];
        fleet["state"] == "standby" && fleet["gate"]["state"] == "shut"
    });
    let holder = waits.0["fleets"][0]["gate"]["holder"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        holder.contains("job/0") && holder.contains(&pair.a.keeper().to_string()),
        "{holder}"
    );
    let open = pair.a.status().0["fleets"][0]["gate"].clone();
    assert_eq!(open["state"], "open");
    let first = open["fence"].as_u64().unwrap();
    // A standby node is a healthy one.
    assert_eq!(pair.b.request("GET", "/readyz", "").unwrap().0, 200);
    for turn in 0..4_u64 {
        let (from, to) = ((turn % 2) as usize, 1 - (turn % 2) as usize);
        pair.rig(from).ok(&["stop", "job"]);
        let name = if to == 0 { "a" } else { "b" };
        until("the other one runs", 3_000, || {
            let last = pair.beats().last().cloned();
            last.filter(|beat| beat.node == name && beat.fence == first + turn + 1)
                .ok_or_else(|| format!("{:?}", pair.beats().last()))
        });
        pair.rig(from).ok(&["start", "job"]);
    }
    pair.check();
    pair.a.drain(5_000);
    pair.b.drain(5_000);
}

/// Whoever took the new file gives the old holder a second; within that it is replaced as well.
fn a_lock_that_is_replaced_while_it_is_taken_is_taken_again(rig: Rig) {
    let Some(mut pair) = Pair::new(rig, "-c") else {
        return;
    };
    pair.a.start();
    pair.goes_on(5_000);
    pair.b.start();
    pair.b.wait("the second one waits", 3_000, |status| {
        status.0["fleets"][0]["state"] == "standby"
    });
    for _ in 0..3 {
        fs::remove_file(&pair.lock).unwrap();
        until_true("somebody made a new one", 3_000, || pair.lock.exists());
        pause(100);
    }
    pair.goes_on(10_000);
    pair.changes_hands();
    pair.check();
    pair.a.drain(5_000);
    pair.b.drain(5_000);
}

/// It is free again, but whoever had it got a later fence, which must not be given a second time.
fn a_replaced_lock_that_somebody_has_had_is_lost(rig: Rig) {
    let Some(mut pair) = Pair::new(rig, "-c") else {
        return;
    };
    pair.a.start();
    let before = pair.goes_on(5_000);
    let other = pair.a.path("other.file");
    let text = fs::read_to_string(&pair.lock).unwrap();
    let later = before.fence + 5_000;
    let text = text
        .replace(&before.fence.to_string(), &later.to_string())
        .replace("\"held\":true", "\"held\":false");
    fs::write(&other, text).unwrap();
    fs::rename(&other, &pair.lock).unwrap();
    until("another holder runs", 5_000, || {
        let last = pair.beats().last().cloned();
        last.filter(|beat| beat.fence > later && beat.leader != before.leader)
            .ok_or_else(|| pair.a.stderr())
    });
    assert!(pair.a.stderr().contains("has had it since"));
    pair.a.drain(5_000);
    let _ = pair.rig(1);
}

/// How often the supervisor has gone to sleep so far.
fn naps(rig: &Rig) -> u64 {
    let path = format!("/proc/{}/status", rig.status().supervisor());
    let text = fs::read_to_string(path).unwrap();
    let count = text.lines().find_map(|line| {
        let count = line.strip_prefix("voluntary_ctxt_switches:")?;
        count.trim().parse().ok()
    });
    count.expect("proc(5)")
}

/// The looks that waiting takes end with it.
fn a_lock_that_was_waited_for_costs_nothing_once_it_is_had(mut a: Rig) {
    let Some(mut b) = Rig::new(a.mode) else {
        return;
    };
    // In a directory of its own: whatever is closed beside a lock may be the lock, and is looked at.
    let lock = a.path("notes/lock");
    for rig in [&a, &b] {
        rig.configure(&format!(
            "[fleet.job]\ncommand = [\"/bin/sleep\", \"1000\"]\nsingleton = {{ scope = \"node\", flock = \"{}\" }}\n",
            lock.display()
        ));
    }
    a.start_settled();
    b.start();
    b.wait("the second one waits", 3_000, |status| {
        status.0["fleets"][0]["state"] == "standby"
    });
    a.ok(&["stop", "job"]);
    b.settle(3_000);
    // A look would have been due within a second.
    pause(1_100);
    until("its supervisor sleeps", 3_000, || {
        let before = naps(&b);
        pause(300);
        let more = naps(&b) - before;
        (more < 60)
            .then_some(())
            .ok_or_else(|| format!("it woke up {more} times in 300 ms"))
    });
    a.drain(5_000);
    b.drain(5_000);
}

/// A file that is unlinked can be locked a second time: the holder sees to it, or ends.
fn a_replaced_lock_file_ends_its_holder(rig: Rig) {
    let Some(mut pair) = Pair::new(rig, "-c") else {
        return;
    };
    pair.a.start();
    let before = pair.goes_on(5_000);
    // Nobody else is there: the new file is taken as well, and the worker goes on.
    fs::remove_file(&pair.lock).unwrap();
    until_true("it is there again", 2_000, || pair.lock.exists());
    assert_eq!(pair.goes_on(2_000), before);
    // Somebody else is faster: a file that is locked already is put in its place.
    let other = pair.a.path("other.file");
    fs::write(&other, "").unwrap();
    let mut stranger = hold(&other);
    fs::rename(&other, &pair.lock).unwrap();
    until_true("the worker is ended", 3_000, || {
        pair.a.stderr().contains("lost its lock") && !alive(before.leader)
    });
    let status = pair.a.wait("it waits", 2_000, |s| {
        s.0["fleets"][0]["state"] == "standby"
    });
    assert_eq!(status.0["fleets"][0]["gate"]["state"], "shut");
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    let after = until("it runs again", 5_000, || {
        let last = pair.beats().last().cloned();
        last.filter(|beat| beat.leader != before.leader)
            .ok_or_else(|| pair.a.stderr())
    });
    assert_ne!(after, before);
    pair.a.drain(5_000);
    let _ = pair.rig(1);
}

/// flock(1) keeps us out and is kept out.
fn flock_and_we_exclude_each_other(rig: Rig) {
    let Some(mut pair) = Pair::new(rig, "-c") else {
        return;
    };
    fs::write(&pair.lock, "").unwrap();
    let mut stranger = hold(&pair.lock);
    pair.a.start();
    pair.a.wait("it waits for the stranger", 3_000, |status| {
        let holder = status.0["fleets"][0]["gate"]["holder"].as_str();
        holder.is_some_and(|text| text.contains(&format!("pid {}", stranger.id())))
    });
    assert!(pair.beats().is_empty());
    stranger.kill().unwrap();
    stranger.wait().unwrap();
    pair.goes_on(3_000);
    let tried = Command::new("flock")
        .arg("-n")
        .arg(&pair.lock)
        .arg("true")
        .status();
    assert_eq!(tried.unwrap().code(), Some(1), "flock(1) got in");
    pair.a.ok(&["stop", "job"]);
    // The keeper may not have got to it when nobody is left.
    until_true("flock(1) gets in", 3_000, || {
        let tried = Command::new("flock")
            .arg("-n")
            .arg(&pair.lock)
            .arg("true")
            .status();
        tried.unwrap().success()
    });
    pair.a.drain(5_000);
}

/// A process that holds the lock and does nothing else.
pub(crate) fn hold(path: &Path) -> Child {
    let mark = path.with_extension("held");
    let words = format!("touch {} && exec sleep 1000", mark.display());
    let child = Command::new("flock")
        .args(["-n", "--no-fork"])
        .arg(path)
        .args(["sh", "-c", &words])
        .spawn()
        .unwrap();
    until_true("it is held", 3_000, || mark.exists());
    child
}

fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// A shell with a child in a session of its own, both of worker `web/0` of a run that nobody else has.
fn shell_with_a_child(cookie: &str) -> (Child, i32) {
    let mut shell = Command::new("sh")
        .args(["-c", "setsid sleep 1000 & echo $!; wait"])
        .env("LEASEHOLD_RUN", cookie)
        .env("LEASEHOLD_FLEET", "web")
        .env("LEASEHOLD_SLOT", "0")
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    let said = shell.stdout.take().unwrap();
    BufReader::new(said).read_line(&mut line).unwrap();
    (shell, line.trim().parse().unwrap())
}

#[test]
fn whoever_is_left_of_a_run_is_found_and_nobody_else() {
    let cookie = leasehold::sys::host::cookie().unwrap();
    let worker = WorkerId::new("web".parse().unwrap(), 0);
    let (mut shell, child) = shell_with_a_child(&cookie);
    let leader = shell.id() as i32;
    let start_ticks = Stat::read(leader).unwrap().start_ticks;
    let late = Late {
        cookie: &cookie,
        worker: &worker,
        leader: None,
        init: None,
        since: start_ticks,
    };
    let found = |late: &Late<'_>| -> Vec<i32> {
        let left = family::left_of(late);
        left.iter().map(|member| member.pid).collect()
    };
    let both = |late: &Late<'_>| {
        until_true("both are found", 5_000, || {
            let found = found(late);
            found.len() == 2 && found.contains(&leader) && found.contains(&child)
        });
    };
    both(&late);
    // By their environment alone, where the leader's number is somebody else's.
    let elsewhere = Carrier {
        pid: leader,
        start_ticks: start_ticks + 1,
    };
    both(&Late {
        leader: Some(elsewhere),
        ..late
    });
    // Of another run, another worker, and older than the run.
    let other = WorkerId::new("web".parse().unwrap(), 1);
    let nobody = [
        Late {
            cookie: "0",
            ..late
        },
        Late {
            worker: &other,
            ..late
        },
        Late {
            since: start_ticks + 100_000,
            ..late
        },
    ];
    for late in nobody {
        assert_eq!(found(&late), Vec::<i32>::new());
    }
    until_true("all are ended", 5_000, || {
        for member in family::left_of(&late) {
            family::kill(&member, &[]);
        }
        found(&late).is_empty()
    });
    shell.wait().unwrap();
}

/// Where no file is named the lock is where every daemon of this user looks, whatever its directories are.
#[test]
fn the_lock_does_not_depend_on_directories() {
    let Some(mut a) = Rig::new(Mode::Group) else {
        return;
    };
    let Some(mut b) = Rig::new(Mode::Group) else {
        return;
    };
    let name = format!("test-{}", std::process::id());
    for rig in [&a, &b] {
        rig.configure(&format!(
            "[fleet.job]\ncommand = [\"/bin/sleep\", \"1000\"]\nsingleton = {{ scope = \"node\", lock = \"{name}\", slots = 2 }}\nworkers = 2\n"
        ));
    }
    a.start_settled();
    let status = b.start();
    let _ = status;
    b.wait("both wait", 3_000, |s| {
        s.of("job").iter().filter(|w| w.state == "standby").count() == 2
    });
    a.ok(&["stop", "job/1"]);
    b.wait("one of two runs", 3_000, |s| {
        s.of("job").iter().filter(|w| w.ready).count() == 1
    });
    let path = a.status().0["fleets"][0]["gate"]["path"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(
        path.starts_with("/run/lock/leasehold-") && path.contains(&name),
        "{path}"
    );
    a.drain(5_000);
    b.wait("now both", 3_000, |s| {
        s.of("job").iter().filter(|w| w.ready).count() == 2
    });
    b.drain(5_000);
    for slot in 0..2 {
        let _ = fs::remove_file(Path::new(&path).with_file_name(format!("{name}.{slot}")));
    }
}

/// Whoever has the lock next must not find a hook of the last holder at work.
fn a_hook_ends_with_its_worker(mut rig: Rig) {
    rig.configure(
        r#"
        [fleet.job]
        command = ["/bin/sh", "-c", "echo $$$$ > {dir}/worker; exec sleep 1000"]
        singleton = { scope = "node", flock = "{dir}/lock.file" }
        hooks.pre_stop = { run = ["/bin/sh", "-c", "echo $$$$ > {dir}/hook; kill $$(cat {dir}/worker); exec sleep 1000"], timeout = "60s" }
    "#,
    );
    rig.start();
    let pid = |file: &str| {
        until("it says its pid", 5_000, || {
            let text = fs::read_to_string(rig.path(file)).map_err(|e| e.to_string())?;
            text.trim().parse::<i32>().map_err(|e| e.to_string())
        })
    };
    pid("worker");
    rig.ok(&["stop", "job"]);
    let hook = pid("hook");
    until_true("the hook has ended", 5_000, || !alive(hook));
}
