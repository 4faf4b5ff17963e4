//! Daemons of containers that share one lock file on a volume: each sees its own pids and its own /run, and nothing of the other; a host
//! sees its containers' processes under other numbers. The oracle is that of `singletons`, in a file on the same volume.

use std::{
    fs,
    process::{Child, Command, Stdio},
};

use rustix::process::Signal;

use crate::{
    rig::{
        Rig, Status, all_pids, both_ways, is_root, lives, parent_of, pause, send, skip, until,
        until_true,
    },
    singletons::{Dice, Pair, rounds},
};

both_ways!(
    two_containers_take_turns,
    two_containers_whose_workers_close_everything,
    a_host_and_its_container_take_turns,
    a_host_ends_what_a_dead_daemon_left_in_its_container,
    a_takeover_between_containers_is_bounded,
);

/// A PID and a mount namespace with an init of its own, which reaps and does nothing else.
struct Container {
    unshare: Child,
    init: i32,
}

impl Container {
    /// None if this machine cannot: said on stderr.
    fn new() -> Option<Self> {
        const INIT: &str =
            "mount -t tmpfs tmpfs /run && echo up && while :; do sleep 1000 & wait $!; done";
        let mut command = Command::new("unshare");
        command.args(["--pid", "--mount", "--fork", "--mount-proc", "--kill-child"]);
        let child = command
            .args(["sh", "-c", INIT])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            // It complains whenever its child is killed.
            .stderr(Stdio::null())
            .spawn();
        let usable = is_root() && Command::new("nsenter").arg("--version").output().is_ok();
        let Some(mut unshare) = child.ok().filter(|_| usable) else {
            skip("no containers can be made here (not root, or no unshare and nsenter)");
            return None;
        };
        let mut said = [0; 3];
        let mut stdout = unshare.stdout.take().unwrap();
        if std::io::Read::read_exact(&mut stdout, &mut said).is_err() {
            let _ = unshare.wait();
            skip("no PID and mount namespaces can be made here (unshare --pid --mount failed)");
            return None;
        }
        let init = child_of(unshare.id() as i32);
        Some(Self { unshare, init })
    }

    /// Has a rig's daemon run in here.
    fn house(&self, rig: &mut Rig) {
        let target = self.init.to_string();
        let words = ["nsenter", "--target", &target, "--pid", "--mount", "--"];
        rig.wrapper = words.map(str::to_owned).to_vec();
        rig.elsewhere = true;
    }

    /// Who has this number in here, as it is called outside.
    fn outside(&self, inside: i32) -> Option<i32> {
        let namespace = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
        let ours = namespace(self.init)?;
        let is_it = |pid: &i32| {
            let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
            let last = numbers.and_then(|all| all.split_ascii_whitespace().last());
            last.and_then(|last| last.parse().ok()) == Some(inside)
                && namespace(*pid).as_ref() == Some(&ours)
        };
        all_pids().into_iter().find(is_it)
    }

    /// Its init is killed, and with that everybody in here.
    fn end(&mut self) {
        send(self.init, Signal::KILL);
        let _ = self.unshare.wait();
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.end();
    }
}

/// The only child of a process, once it has one.
fn child_of(parent: i32) -> i32 {
    until("it has a child", 3_000, || {
        let mut all = all_pids().into_iter();
        all.find(|pid| parent_of(*pid) == Some(parent))
            .ok_or_else(String::new)
    })
}

/// Two daemons, each in a container or outside, called `a` and `b`.
struct Neighbours {
    pair: Pair,
    homes: [Option<Container>; 2],
}

impl Neighbours {
    fn new(rig: Rig, how: &str, inside: [bool; 2]) -> Option<Self> {
        let mut pair = Pair::new(rig, how)?;
        let mut homes = [None, None];
        for which in [0, 1] {
            if inside[which] {
                let home = Container::new()?;
                home.house(pair.rig(which));
                homes[which] = Some(home);
            }
        }
        for which in [0, 1] {
            pair.rig(which).start();
        }
        pair.goes_on(8_000);
        Some(Self { pair, homes })
    }

    /// The keeper's pid as we see it: nsenter stays its parent.
    fn keeper(&mut self, which: usize) -> i32 {
        let started = self.pair.rig(which).keeper();
        match &self.homes[which] {
            Some(_) => child_of(started),
            None => started,
        }
    }

    fn supervisor(&mut self, which: usize) -> Option<i32> {
        let number = self.pair.rig(which).status().supervisor();
        match &self.homes[which] {
            Some(home) => home.outside(number),
            None => Some(number),
        }
    }

    /// Who speaks at the moment: which of the two, and the pid of its worker.
    fn holder(&self) -> (usize, Option<i32>) {
        let beat = self.pair.goes_on(10_000);
        let which = usize::from(beat.node == "b");
        let leader = match &self.homes[which] {
            Some(home) => home.outside(beat.leader),
            None => Some(beat.leader),
        };
        (which, leader)
    }

    /// Its worker is the one that speaks.
    fn takes_over(&self, which: usize, bound_ms: u64) {
        let name = ["a", "b"][which];
        until("it takes over", bound_ms, || {
            let last = self.pair.beats().last().cloned();
            last.filter(|beat| beat.node == name)
                .ok_or_else(String::new)
        });
    }

    fn kill_keeper(&mut self, which: usize) {
        let keeper = self.keeper(which);
        send(keeper, Signal::KILL);
        self.pair.rig(which).ended(5_000);
        until_true("the keeper is dead", 3_000, || !lives(keeper));
    }

    fn kill_container(&mut self, which: usize) {
        if let Some(home) = &mut self.homes[which] {
            home.end();
            self.pair.rig(which).ended(5_000);
        }
    }

    /// A daemon again, where its container was, if it had one.
    fn start(&mut self, which: usize) {
        let is_dead = |home: &Container| !lives(home.init);
        if self.homes[which].as_ref().is_some_and(is_dead) {
            let home = Container::new().unwrap();
            home.house(self.pair.rig(which));
            self.homes[which] = Some(home);
        }
        self.pair.rig(which).start();
    }

    fn drain(mut self) {
        for which in [0, 1] {
            let keeper = self.keeper(which);
            send(keeper, Signal::TERM);
            let code = self.pair.rig(which).ended(8_000).code();
            assert_eq!(code, Some(0), "{}", self.pair.rig(which).stderr());
            assert_eq!(self.pair.rig(which).left(), Vec::<i32>::new());
        }
        self.pair.check();
    }

    /// Faults at random. `unseen`: whose keeper and supervisor may die both at once, whereupon nobody is left there who would end
    /// what they had started.
    fn suffer(mut self, unseen: &[usize]) {
        let mut dice = Dice::new();
        for _ in 0..rounds() {
            let which = dice.below(2) as usize;
            match dice.below(6) {
                0 => {
                    if let (_, Some(leader)) = self.holder() {
                        send(leader, Signal::KILL);
                    }
                }
                1 => {
                    if let Some(supervisor) = self.supervisor(which) {
                        send(supervisor, Signal::KILL);
                    }
                }
                2 => {
                    self.kill_keeper(which);
                    pause(dice.below(30));
                    self.start(which);
                }
                3 if self.homes[which].is_some() => {
                    self.kill_container(which);
                    pause(dice.below(30));
                    self.start(which);
                }
                4 if unseen.contains(&which) => {
                    if let Some(supervisor) = self.supervisor(which) {
                        send(supervisor, Signal::KILL);
                    }
                    self.kill_keeper(which);
                    // Long enough for the other one to have it.
                    pause(dice.below(1_500));
                    self.start(which);
                }
                _ => {
                    self.pair.rig(which).ok(&["stop", "job"]);
                    pause(dice.below(50));
                    self.pair.rig(which).ok(&["start", "job"]);
                }
            }
            // Faults in a row, and faults that are waited out: a takeover may take a second here.
            if dice.below(3) == 0 {
                self.pair.goes_on(10_000);
            }
            pause(dice.below(60));
        }
        self.pair.changes_hands();
        let holders = self.pair.check();
        assert!(holders > 4, "{holders} holders");
        self.drain();
    }
}

/// Their workers have a grandchild that holds nothing and has left the session.
fn two_containers_take_turns(rig: Rig) {
    if let Some(both) = Neighbours::new(rig, "-g", [true, true]) {
        both.suffer(&[]);
    }
}

/// The lock is free as soon as keeper and supervisor are dead, and the worker dies with its keeper.
fn two_containers_whose_workers_close_everything(rig: Rig) {
    if let Some(both) = Neighbours::new(rig, "-c", [true, true]) {
        both.suffer(&[0, 1]);
    }
}

/// The host sees what a dead daemon has left in the container, and ends it.
fn a_host_and_its_container_take_turns(rig: Rig) {
    if let Some(both) = Neighbours::new(rig, "-g", [false, true]) {
        both.suffer(&[1]);
    }
}

/// Nobody is left in there who would.
fn a_host_ends_what_a_dead_daemon_left_in_its_container(rig: Rig) {
    let Some(mut both) = Neighbours::new(rig, "-g", [false, true]) else {
        return;
    };
    both.pair.a.ok(&["stop", "job"]);
    both.takes_over(1, 3_000);
    both.pair.a.ok(&["start", "job"]);
    both.pair.a.wait("it waits", 3_000, is_standby);
    let supervisor = both.supervisor(1).unwrap();
    send(supervisor, Signal::KILL);
    both.kill_keeper(1);
    both.takes_over(0, 5_000);
    both.pair.goes_on(3_000);
    both.pair.check();
    both.start(1);
    both.drain();
}

/// In order at once, otherwise a second later.
fn a_takeover_between_containers_is_bounded(rig: Rig) {
    let Some(mut both) = Neighbours::new(rig, "-g", [true, true]) else {
        return;
    };
    let (first, _) = both.holder();
    let second = 1 - first;
    both.pair.rig(first).ok(&["stop", "job"]);
    both.takes_over(second, 900);
    both.pair.rig(first).ok(&["start", "job"]);
    both.pair.rig(first).wait("it waits", 3_000, is_standby);
    both.kill_keeper(second);
    both.takes_over(first, 4_000);
    both.start(second);
    both.pair.rig(second).wait("it waits", 3_000, is_standby);
    both.kill_container(first);
    both.takes_over(second, 4_000);
    both.start(first);
    both.drain();
}

fn is_standby(status: &Status) -> bool {
    status.0["fleets"][0]["state"] == "standby"
}
