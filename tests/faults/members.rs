//! What may befall etcd: a member, its leader, its disk, most of it, all of it.

use std::{
    fs::{self, File},
    process::{Child, Command, Stdio},
};

use leasehold::{
    sys::clock,
    time::{Moment, Span},
};
use rustix::process::Signal;
use tempfile::NamedTempFile;

use crate::{
    etcdctl,
    rig::{lives, pause, send, skip, until, until_true},
    world::{Holder, How, Times, World, all_rows, milliseconds},
};

/// Three nodes that ask the leader first.
fn asks_the_leader(times: Times) -> Option<(World, usize, Holder)> {
    let mut world = World::new(times)?;
    let leader = world.leader();
    let endpoints = Some(world.endpoints_from(leader));
    let holder = world.three(&How {
        endpoints,
        ..How::default()
    });
    Some((world, leader, holder))
}

#[test]
fn a_holder_rides_out_the_death_of_the_leader() {
    let Some((mut world, leader, holder)) = asks_the_leader(Times::DEFAULT) else {
        return;
    };
    let killed = clock::now();
    world.etcd.kill(leader);
    let after = rides_out(&world, &holder, killed);
    world.verdict(
        "SIGKILL of etcd's leader, default times",
        &format!("same process, no drain; a renewal was verified again after {after}"),
    );
}

#[test]
fn a_holder_rides_out_a_frozen_leader() {
    let Some((world, leader, holder)) = asks_the_leader(Times::DEFAULT) else {
        return;
    };
    let frozen = clock::now();
    world.etcd.freeze(leader);
    let after = rides_out(&world, &holder, frozen);
    world.etcd.thaw(leader);
    rides_out(&world, &holder, clock::now());
    world.verdict(
        "SIGSTOP of etcd's leader, then SIGCONT, default times",
        &format!("same process, no drain; a renewal was verified again after {after}"),
    );
}

/// How long it took until a renewal counted that was sent since then.
fn rides_out(world: &World, holder: &Holder, moment: Moment) -> String {
    world.is_renewed_since(holder, moment);
    let after = milliseconds(moment.until(clock::now()));
    world.is_renewed_since(holder, clock::now());
    world.is_untouched(holder);
    after
}

/// All watches and renewals go there.
#[test]
fn a_member_that_is_started_again_is_watched_again() {
    let Some(mut world) = World::new(Times::DEFAULT) else {
        return;
    };
    let leader = world.leader();
    let member = (leader + 1) % 3;
    let endpoints = Some(world.endpoints_from(member));
    let holder = world.three(&How {
        endpoints,
        ..How::default()
    });
    world.etcd.kill(member);
    world.is_renewed_since(&holder, clock::now());
    world.etcd.start(member);
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    world.nodes[holder.node].drain(5_000);
    world.after(&holder, Span::secs(2));
    world.verdict(
        "SIGKILL of a member that everybody asks, started again, then SIGTERM of the holder",
        "same process, no drain; handed over at once",
    );
}

#[test]
fn without_a_quorum_nobody_runs() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    let leader = world.leader();
    let stopped = clock::now();
    for member in [leader, (leader + 1) % 3] {
        world.etcd.stop(member);
    }
    let gone = clock::now();
    until_true("it ends", 10_000, || !lives(holder.leader));
    world.said(holder.node, "its lease was not renewed in time");
    // Renewals may have counted until the quorum was gone.
    world.ended_between(&holder, stopped, gone, false);
    until_true("its lease is over", 20_000, || {
        clock::now() >= gone.after(world.times.failover())
    });
    let started = clock::now();
    assert_eq!(world.oracle.runs().len(), 1, "{}", world.oracle.story());
    for member in [leader, (leader + 1) % 3] {
        world.etcd.start(member);
    }
    let next = world.after(&holder, Span::secs(30));
    let back = started.until(world.run(&next).first);
    let last = stopped.until(world.run(&holder).last);
    world.verdict(
        "two of three members stopped",
        &format!(
            "drained after {}, nobody started; somebody ran {} after the members were started again",
            milliseconds(last),
            milliseconds(back)
        ),
    );
}

/// What strace does to a member's disk.
struct Slow(Child);

impl Slow {
    fn disk(member: u32) -> Option<Self> {
        let traced = Command::new("strace")
            .args(["-f", "-qq", "-e", "trace=fdatasync,fsync"])
            .args(["-e", "inject=fdatasync,fsync:delay_enter=12s"])
            .args(["-o", "/dev/null", "-p", &member.to_string()])
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = traced else {
            skip("no strace");
            return None;
        };
        let path = format!("/proc/{member}/status");
        let is_traced = until("it is traced", 10_000, || {
            if child.try_wait().unwrap().is_some() {
                return Ok(false);
            }
            let status = fs::read_to_string(&path).map_err(|e| e.to_string())?;
            let traced = status.lines().find(|line| line.starts_with("TracerPid"));
            let tracer = traced.and_then(|line| line.split_whitespace().nth(1));
            (tracer != Some("0")).then_some(true).ok_or(status)
        });
        if !is_traced {
            skip("strace may not trace here");
            return None;
        }
        Some(Self(child))
    }
}

impl Drop for Slow {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The leader's disk hangs: it goes on answering renewals for whoever asks it alone, while another leader gives their lease away.
#[test]
fn answers_of_a_leader_whose_disk_hangs_do_not_count() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let leader = world.leader();
    let all = world.etcd.endpoints();
    let holder = world.holding(&How {
        worker: "-i",
        endpoints: Some(vec![all[leader].clone()]),
        ..How::default()
    });
    let others: Vec<String> = (1..3).map(|n| all[(leader + n) % 3].clone()).collect();
    for _ in 0..2 {
        let node = world.node(&How {
            worker: "-i",
            endpoints: Some(others.clone()),
            ..How::default()
        });
        world.stands_by(node);
    }
    let believer = Believer::new(&world, leader);
    let Some(slow) = Slow::disk(etcdctl::pid(&world.etcd, leader)) else {
        return;
    };
    let hangs = clock::now();
    // One write, and its disk is busy.
    let _ = etcdctl::at(&world.etcd, leader, &["put", "k", "v"]);
    let next = world.after(&holder, Span::secs(40));
    assert_ne!(next.node, holder.node);
    let believes = believer.believes();
    drop(slow);
    let (last, first) = (world.run(&holder).last, world.run(&next).first);
    world.said(holder.node, "its lease was not renewed in time");
    world.verdict(
        "disk of etcd's leader hangs for 12 s, the holder knows only that member",
        &format!(
            "dead {} before another began, {} after the fault; {}",
            milliseconds(last.until(first)),
            milliseconds(hangs.until(first)),
            if believes {
                "beside it somebody who believes them was told even then that the lease goes on"
            } else {
                "whether its member still answered was not seen in this run"
            }
        ),
    );
}

/// `etcdctl lease keep-alive` at that member alone, which believes what it is told.
struct Believer {
    child: Child,
    said: NamedTempFile,
}

impl Believer {
    fn new(world: &World, member: usize) -> Self {
        let said = NamedTempFile::new().unwrap();
        let child = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "etcdctl", "lease", "keep-alive"])
            .arg(world.lease_of_first())
            .arg(format!("--endpoints={}", world.etcd.endpoints()[member]))
            .env("ETCDCTL_API", "3")
            .stdin(Stdio::null())
            .stdout(File::create(said.path()).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .expect("etcdctl was looked for");
        Self { child, said }
    }

    fn lines(&self) -> usize {
        let text = fs::read_to_string(self.said.path()).unwrap();
        text.matches("keepalived with TTL").count()
    }

    /// It is told once more that its lease goes on.
    fn believes(&self) -> bool {
        let (before, end) = (self.lines(), clock::now().after(Span::secs(3)));
        while self.lines() == before {
            if clock::now() > end {
                return false;
            }
            pause(20);
        }
        true
    }
}

impl Drop for Believer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// When its disk answers again, a leader of old may end leases that others renewed meanwhile (etcd-io/etcd#15247): whoever holds by them must
/// hear of it.
#[test]
fn a_leader_whose_disk_hangs_is_left_for_another() {
    if !all_rows() {
        return;
    }
    let Some((world, leader, holder)) = asks_the_leader(Times::DEFAULT) else {
        return;
    };
    let Some(slow) = Slow::disk(etcdctl::pid(&world.etcd, leader)) else {
        return;
    };
    let hangs = clock::now();
    let _ = etcdctl::at(&world.etcd, leader, &["put", "k", "v"]);
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    // All that was held up comes through.
    until_true("its disk answers again", 40_000, || {
        clock::now() >= hangs.after(Span::secs(14))
    });
    drop(slow);
    until("it follows", 20_000, || {
        etcdctl::at(&world.etcd, leader, &["get", "k"])
    });
    let runs = world.somebody(20_000);
    world.is_renewed_since(&runs, clock::now());
    let seen = if runs == holder {
        "same process, no drain, also when the disk answered again"
    } else {
        "no drain while it hung; the leader of old ended the lease when its disk answered, and its holder was killed"
    };
    world.verdict("disk of etcd's leader hangs for 12 s, default times", seen);
}

#[test]
fn compaction_hides_no_hand_over() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let mut holder = world.three(&How::default());
    for _ in 0..2 {
        for _ in 0..20 {
            world.etcd.ctl(&["put", "k", "v"]).unwrap();
        }
        let status = world.etcd.ctl(&["get", "k", "--write-out=json"]).unwrap();
        let status: serde_json::Value = serde_json::from_str(&status).unwrap();
        let revision = status["header"]["revision"].to_string();
        let said = world.etcd.ctl(&["compaction", "--physical", &revision]);
        said.unwrap();
        world.nodes[holder.node].drain(5_000);
        let next = world.after(&holder, Span::secs(2));
        world.nodes[holder.node].start();
        world.stands_by(holder.node);
        holder = next;
    }
    world.verdict(
        "compaction while everybody watches, then SIGTERM of the holder, twice",
        "handed over at once",
    );
}

/// Tokens last a second, and at the end nobody knows any that was given before.
#[test]
fn tokens_that_expire_end_nobody() {
    let args = ["--bcrypt-cost=4", "--auth-token-ttl=1"];
    let Some(mut world) = World::of(Times::QUICK, &args) else {
        return;
    };
    const ROOT: &str = "--user=root:secret";
    world.etcd.enroll("node", "/leasehold/v1/main/");
    world.etcd.ctl(&["auth", "enable"]).unwrap();
    let how = How {
        etcd: "user = \"node\"\npassword = \"right\"",
        ..How::default()
    };
    let holder = world.three(&how);
    for _ in 0..3 {
        pause(2_500);
        world.is_renewed_since(&holder, clock::now());
    }
    for word in ["disable", "enable"] {
        let user: &[&str] = if word == "disable" { &[ROOT] } else { &[] };
        let args = [user, &["auth", word]].concat();
        until("etcd is told", 10_000, || world.etcd.ctl(&args));
    }
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    world.nodes[holder.node].drain(10_000);
    let next = world.after(&holder, Span::secs(3));
    pause(2_500);
    world.is_renewed_since(&next, clock::now());
    world.verdict(
        "tokens of etcd that last a second; authentication switched off and on, then SIGTERM of the holder",
        "renewed with new tokens; handed over at once",
    );
}

/// With no space left etcd grants no lease and takes no write; what was written before renewals and places in the queue hold.
#[test]
fn with_no_space_left_holders_go_on_and_are_followed() {
    let args = ["--quota-backend-bytes=1048576"];
    let Some(mut world) = World::of(Times::QUICK, &args) else {
        return;
    };
    let holder = world.three(&How::default());
    let block = "x".repeat(100_000);
    until("there is no space left", 30_000, || {
        match world.etcd.ctl(&["put", "k", &block]) {
            Err(why) if why.contains("database space exceeded") => Ok(()),
            said => Err(format!("{said:?}")),
        }
    });
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    let mut supervisor = world.supervisor(&holder);
    send(supervisor, Signal::KILL);
    // The next one renews what it finds, and can write nothing.
    world.is_renewed_since(&holder, clock::now());
    supervisor = world.supervisor(&holder);
    send(world.keeper(&holder), Signal::STOP);
    send(supervisor, Signal::KILL);
    world.nodes[holder.node].kill_keeper();
    let next = world.after(&holder, world.times.failover());
    let failover = world.run(&holder).last.until(world.run(&next).first);
    world.nodes[next.node].drain(10_000);
    world.after(&next, world.times.failover());
    world.verdict(
        "NOSPACE: SIGKILL of the supervisor, then of keeper and supervisor, then SIGTERM of the next holder",
        &format!(
            "lease renewed, a new supervisor too; failover after {}; handed over without the word that it was in order",
            milliseconds(failover)
        ),
    );
}

/// Another cluster's members where ours were: its revisions say nothing about our fences.
#[test]
fn a_restored_snapshot_is_another_cluster() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    etcdctl::restore_from_snapshot(&mut world.etcd);
    until_true("it ends", 10_000, || !lives(holder.leader));
    until("all refuse it", 30_000, || {
        let silent = world.nodes.iter().find_map(|rig| {
            let said = rig.stderr();
            (!said.contains("and this node belongs to")).then_some(said)
        });
        silent.map_or(Ok(()), Err)
    });
    assert_eq!(world.oracle.runs().len(), 1, "{}", world.oracle.story());
    let why = world.nodes[1].stderr();
    let why = why
        .lines()
        .rev()
        .find(|line| line.contains("this node belongs to"));
    let why = why.unwrap_or_default().to_owned();
    // As it asks for, without a restart of anybody.
    for node in 0..3 {
        world.edit(node, "[etcd]", "[etcd]\nepoch = 1");
    }
    world.after(&holder, Span::secs(30));
    world.verdict(
        "all members restored from a snapshot, with another cluster id",
        &format!(
            "everybody refuses: {why}; with `epoch = 1` and a reload everywhere somebody runs again"
        ),
    );
}

/// Both at once: the holder's next supervisor must find the new leader in time.
#[test]
fn a_new_supervisor_rides_out_a_frozen_leader() {
    if !all_rows() {
        return;
    }
    let Some((world, leader, holder)) = asks_the_leader(Times::DEFAULT) else {
        return;
    };
    let frozen = clock::now();
    world.etcd.freeze(leader);
    send(world.supervisor(&holder), Signal::KILL);
    let after = rides_out(&world, &holder, frozen);
    world.etcd.thaw(leader);
    rides_out(&world, &holder, clock::now());
    world.verdict(
        "SIGSTOP of etcd's leader and SIGKILL of the holder's supervisor, default times",
        &format!("same process, no drain; a renewal was verified again after {after}"),
    );
}

/// etcd ends so many leases one after the other: whoever comes next waits longer, and renewals among them are verified all the same.
#[test]
fn ten_thousand_leases_that_end_at_once_delay_a_hand_over() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::DEFAULT) else {
        return;
    };
    let holder = world.three(&How::default());
    grant(&world.etcd.endpoints(), 10_000, world.times.ttl);
    world.outlasts_a_lease(&holder);
    grant(&world.etcd.endpoints(), 10_000, world.times.ttl);
    let keeper = world.keeper(&holder);
    let supervisor = world.supervisor(&holder);
    send(keeper, Signal::STOP);
    send(supervisor, Signal::KILL);
    send(keeper, Signal::KILL);
    let next = world.after(&holder, world.times.failover().plus(Span::secs(10)));
    world.verdict(
        "10,000 leases with a key each end while it is renewed, and again as its node's does, default times",
        &format!("same process; then n{} took over", next.node),
    );
}

/// So many leases, with a key each.
fn grant(endpoints: &[String], count: usize, ttl: Span) {
    const AT_ONCE: usize = 100;
    let seconds = (ttl.as_millis() / 1_000) as i64;
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().build().unwrap();
    runtime.block_on(async {
        let client = etcd_client::Client::connect(endpoints, None).await.unwrap();
        let share = |worker: usize| {
            let mut client = client.clone();
            tokio::spawn(async move {
                for n in 0..count / AT_ONCE {
                    let lease = client.lease_grant(seconds, None).await.unwrap().id();
                    let options = etcd_client::PutOptions::new().with_lease(lease);
                    let key = format!("stranger/{worker}/{n}");
                    client.put(key, "-", Some(options)).await.unwrap();
                }
            })
        };
        let all: Vec<_> = (0..AT_ONCE).map(share).collect();
        for one in all {
            one.await.unwrap();
        }
    });
}
