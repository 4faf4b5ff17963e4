//! What may befall a process of ours: whoever dies or freezes, nobody runs beside somebody else, and somebody runs again.

use leasehold::{sys::clock, time::Span};
use rustix::process::Signal;
use serde_json::Value;

use crate::{
    freeze::Freeze,
    rig::{Mode, Rig, Status, all_pids, is_root, parent_of, pause, send, skip, until, until_true},
    wall::Clock,
    world::{How, Times, WORKER, World, all_rows, milliseconds},
};

#[test]
fn a_killed_worker_starts_again_under_the_same_fence() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    send(holder.leader, Signal::KILL);
    let next = world.after(&holder, Span::secs(2));
    assert_eq!((next.node, next.fence), (holder.node, holder.fence));
    world.verdict(
        "SIGKILL of the worker",
        "started again on the same node, same fence",
    );
}

#[test]
fn a_frozen_worker_keeps_its_lock() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    send(holder.leader, Signal::STOP);
    let frozen = clock::now();
    // Longer than a lease lasts without renewals.
    until_true("its lease would be over", 15_000, || {
        clock::now() >= frozen.after(world.times.failover())
    });
    send(holder.leader, Signal::CONT);
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    world.verdict(
        "SIGSTOP of the worker, SIGCONT 8 s later",
        "it kept its lock",
    );
}

#[test]
fn a_killed_supervisor_costs_nothing() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    send(world.supervisor(&holder), Signal::KILL);
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    world.verdict(
        "SIGKILL of the supervisor",
        "same process, same fence, lease renewed by the next supervisor",
    );
}

#[test]
fn a_frozen_supervisor_costs_nothing() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    send(world.supervisor(&holder), Signal::STOP);
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    world.verdict(
        "SIGSTOP of the supervisor",
        "replaced at once: same process, same fence",
    );
}

/// Nobody is told of a hang: its keeper asks, more often while a deadline stands.
#[test]
fn a_hung_supervisor_costs_nothing() {
    let Some(mut world) = World::new(Times::DEFAULT) else {
        return;
    };
    let holder = world.three(&How::default());
    let hangs = world.supervisor(&holder);
    let Some(_hung) = Freeze::new(world.rig(&holder), "hang", hangs) else {
        return;
    };
    let began = clock::now();
    world
        .rig(&holder)
        .wait("another one answers", 5_000, |status| {
            status.supervisor() != hangs
        });
    let after = milliseconds(began.until(clock::now()));
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    world.verdict(
        "a supervisor that hangs, all its threads asleep",
        &format!("another one answered {after} later: same process, same fence, lease renewed"),
    );
}

/// Deadlines are counted on clocks that nobody sets.
#[test]
fn a_wall_clock_that_is_set_costs_nothing() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let node = world.plan(&How::default());
    let Some(wall) = Clock::new(&mut world.nodes[node]) else {
        return;
    };
    wall.set(0);
    world.nodes[node].start();
    let holder = world.somebody(10_000);
    let other = world.node(&How::default());
    world.stands_by(other);
    for seconds in [3_600, -3_600] {
        wall.set(seconds);
        world.outlasts_a_lease(&holder);
    }
    world.verdict(
        "the holder's wall clock is set an hour forth, then two hours back",
        "same process, same fence",
    );
}

/// Four in ten seconds are no reason to distrust what they left.
#[test]
fn a_supervisor_killed_twenty_times_under_load_costs_nothing() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::DEFAULT) else {
        return;
    };
    let holder = world.three(&How::default());
    let _load = crate::load::Load::new(2);
    for _ in 0..20 {
        let killed = clock::now();
        send(world.supervisor(&holder), Signal::KILL);
        world.is_renewed_since(&holder, killed);
        until_true("it was not four times in ten seconds", 5_000, || {
            clock::now() >= killed.after(Span::secs(3))
        });
    }
    world.is_untouched(&holder);
    world.verdict(
        "SIGKILL of 20 supervisors, 3 s apart, 2 busy loops beside",
        "same process, same fence",
    );
}

/// Five in ten seconds are one too many: the next one believes no row, so it has no lease, and its worker ends with what stood.
#[test]
fn a_supervisor_that_dies_faster_than_it_is_trusted_loses_its_lock_and_nothing_else() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    let mut before = 0;
    for _ in 0..8 {
        let rig = world.rig(&holder);
        let status = rig.wait("another supervisor", 20_000, |status| {
            status.supervisor() != before
        });
        before = status.supervisor();
        send(before, Signal::KILL);
    }
    world.said(holder.node, "its row could not be read");
    world.after(&holder, world.times.failover());
    world.somebody(2_000);
    world.verdict(
        "SIGKILL of 8 supervisors as fast as they come",
        "from the sixth on rows are not believed: killed at the deadline that stood; another node took over",
    );
}

/// Whatever it forks, as far as that is contained here.
fn stray() -> &'static str {
    if is_root() { "-gid" } else { "-gi" }
}

#[test]
fn a_killed_keeper_takes_its_worker_with_it() {
    keeper_killed(How {
        worker: stray(),
        ..How::default()
    });
}

#[test]
fn a_killed_keeper_takes_its_worker_with_it_without_cgroups() {
    if all_rows() {
        keeper_killed(How {
            worker: stray(),
            mode: Mode::Group,
            ..How::default()
        });
    }
}

#[test]
fn a_killed_keeper_takes_its_worker_with_it_where_it_is_weakly_contained() {
    for mode in [Mode::Cgroup, Mode::Group] {
        if all_rows() {
            keeper_killed(How {
                worker: "-gi",
                mode,
                containment: "weak",
                ..How::default()
            });
        }
    }
}

fn keeper_killed(how: How) {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&how);
    let containment = containment(&world, holder.node);
    world.nodes[holder.node].kill_keeper();
    // That nothing is left a directory of cgroups proves, and the lease is given back.
    let bound = match how.mode {
        Mode::Cgroup => Span::secs(3),
        Mode::Group => world.times.failover(),
    };
    let next = world.after(&holder, bound);
    assert_ne!(next.node, holder.node);
    world.verdict(
        &format!("SIGKILL of the keeper ({containment})"),
        "the supervisor ended everything; another node took over",
    );
}

/// What the daemon says that holds its workers together.
fn containment(world: &World, node: usize) -> String {
    let status = world.nodes[node].status();
    let worker = status.worker(WORKER).expect("it has a worker");
    let word = worker.all["containment"].as_str().unwrap();
    let below = match world.nodes[node].mode {
        Mode::Group if word != "group" => ", no cgroups",
        Mode::Cgroup | Mode::Group => "",
    };
    format!("containment `{word}`{below}")
}

#[test]
fn a_frozen_keeper_is_not_waited_for() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How {
        worker: "-gi",
        ..How::default()
    });
    let frozen = clock::now();
    send(world.keeper(&holder), Signal::STOP);
    let next = world.after(&holder, world.times.failover().plus(world.times.ttl));
    assert_ne!(next.node, holder.node);
    world.ended_as_its_lease_did(&holder, frozen, true);
    world.verdict(
        "SIGSTOP of the keeper, worker ignores SIGTERM",
        "the supervisor killed at the deadline; another node took over",
    );
}

/// As when the machine dies: nobody gives anything back. What the worker forked has left its session and dropped its environment.
#[test]
fn a_dead_node_is_followed_when_its_lease_is_over() {
    both_killed(&How {
        worker: if is_root() { "-gid" } else { "-" },
        ..How::default()
    });
}

#[test]
fn a_dead_node_is_followed_when_its_lease_is_over_without_cgroups() {
    if all_rows() {
        both_killed(&How {
            worker: if is_root() { "-gid" } else { "-" },
            mode: Mode::Group,
            ..How::default()
        });
    }
}

#[test]
fn a_dead_node_is_followed_when_its_lease_is_over_where_its_worker_is_weakly_contained() {
    for mode in [Mode::Cgroup, Mode::Group] {
        if all_rows() {
            both_killed(&How {
                mode,
                containment: "weak",
                ..How::default()
            });
        }
    }
}

fn both_killed(how: &How) {
    let Some(mut world) = World::new(Times::DEFAULT) else {
        return;
    };
    let holder = world.three(how);
    let containment = containment(&world, holder.node);
    let killed = clock::now();
    let supervisor = world.supervisor(&holder);
    let keeper = world.keeper(&holder);
    send(keeper, Signal::STOP);
    send(supervisor, Signal::KILL);
    send(keeper, Signal::KILL);
    let next = world.after(&holder, world.times.failover());
    assert_ne!(next.node, holder.node);
    let last = killed.until(world.run(&holder).last);
    assert!(last < Span::secs(1), "its last word came {last} later");
    world.said(next.node, "its last holder left without a word");
    let forked = if how.worker.contains('g') {
        ", worker forks into a session of its own, without environment"
    } else {
        ""
    };
    world.verdict(
        &format!("SIGKILL of supervisor and keeper at once{forked} ({containment})"),
        &format!(
            "the worker and all of it died with them (last word {} later); another node took over when the lease was over",
            milliseconds(last)
        ),
    );
}

/// A container, of which the daemon is the first process.
#[test]
fn a_dead_container_is_followed_when_its_lease_is_over() {
    if !is_root() {
        return skip("only root may make a PID namespace");
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let words = "unshare --pid --fork --mount-proc --kill-child";
    let holder = world.three(&How {
        worker: "-gid",
        wrapper: words.split(' ').map(str::to_owned).collect(),
        ..How::default()
    });
    let status = world.rig(&holder).status();
    let contained = &status.worker(WORKER).unwrap().all["containment"];
    assert_ne!(contained, "pidns", "it needs no namespace of its own");
    let keeper = all_pids()
        .into_iter()
        .find(|pid| parent_of(*pid) == Some(world.keeper(&holder)));
    let killed = clock::now();
    send(keeper.expect("unshare has a child"), Signal::KILL);
    let next = world.after(&holder, world.times.failover());
    assert_ne!(next.node, holder.node);
    let last = killed.until(world.run(&holder).last);
    assert!(last < Span::secs(1), "its last word came {last} later");
    world.verdict(
        "SIGKILL of a container's PID 1, which is the keeper, worker forks into a session of its own, without environment",
        &format!(
            "the worker and all of it died with it (last word {} later); another node took over when the lease was over",
            milliseconds(last)
        ),
    );
}

/// It is there again long before its lease is over, and does not take the lock for its own.
#[test]
fn a_dead_node_that_is_started_again_at_once_waits_like_anybody() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    let supervisor = world.supervisor(&holder);
    send(world.keeper(&holder), Signal::STOP);
    send(supervisor, Signal::KILL);
    world.nodes[holder.node].kill_keeper();
    world.nodes[holder.node].start();
    let next = world.after(&holder, world.times.failover());
    assert_ne!(next.node, holder.node);
    world.said(
        holder.node,
        "before it was started again has not run out yet",
    );
    world.stands_by(holder.node);
    world.verdict(
        "SIGKILL of supervisor and keeper, the daemon started again at once",
        "another node took over when the lease was over; the first stands by",
    );
}

/// A copy of a machine, say.
#[test]
fn a_second_node_of_one_name_is_told_so() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.holding(&How::default());
    let second = world.plan_named(&How::default(), "n0");
    world.nodes[second].start();
    world.said(second, "another node has the name n0");
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    world.verdict(
        "a second node of the holder's name",
        "refused by name; the first noticed nothing",
    );
}

/// What a worker forked is nobody's child then: without systemd only the next daemon on that machine ends it.
#[test]
fn what_a_worker_forked_outlives_a_dead_node_where_it_is_weakly_contained() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How {
        worker: "-gi",
        containment: "weak",
        ..How::default()
    });
    let supervisor = world.supervisor(&holder);
    let containment = containment(&world, holder.node);
    send(world.keeper(&holder), Signal::STOP);
    send(supervisor, Signal::KILL);
    world.nodes[holder.node].kill_keeper();
    let next = world.after(&holder, world.times.failover());
    let again = clock::now();
    world.nodes[holder.node].start();
    let end = until("the next daemon ends it", 10_000, || {
        let last = world.run(&holder).last;
        let quiet = last.until(clock::now()) > Span::millis(500);
        quiet.then_some(last).ok_or_else(|| world.oracle.story())
    });
    assert!(!world.oracle.faults().is_empty(), "the judge saw nothing");
    world.report(
        &format!("SIGKILL of supervisor and keeper, worker forks into a session of its own ({containment}, no systemd)"),
        &format!("**until a daemon is started there** (here {})", milliseconds(world.run(&next).first.until(end))),
        &format!("not covered by `containment = \"weak\"`: ended {} after the daemon was started again", milliseconds(again.until(end))),
    );
}

/// Nobody is left to kill. systemd's watchdog would be; a worker that looks at its page knows.
#[test]
fn both_frozen_is_what_a_watchdog_is_for() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How {
        worker: "-i",
        ..How::default()
    });
    let (supervisor, keeper) = (world.supervisor(&holder), world.keeper(&holder));
    send(keeper, Signal::STOP);
    send(supervisor, Signal::STOP);
    let next = world.after(&holder, world.times.failover());
    assert_ne!(next.node, holder.node);
    let thawed = clock::now();
    send(supervisor, Signal::CONT);
    send(keeper, Signal::CONT);
    until_true("whoever wakes up kills", 2_000, || {
        !crate::rig::lives(holder.leader)
    });
    assert!(!world.oracle.faults().is_empty(), "the judge saw nothing");
    let both = world.run(&next).first.until(thawed);
    world.report(
        "SIGSTOP of supervisor and keeper, no systemd",
        &format!("**as long as both are frozen** (here {})", milliseconds(both)),
        "not promised: killed at once by whoever woke up; under systemd its watchdog ends the unit before",
    );
}

#[test]
fn a_node_that_stops_hands_over() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    world.nodes[holder.node].drain(5_000);
    let next = world.after(&holder, Span::secs(2));
    assert_ne!(next.node, holder.node);
    let gap = world.run(&holder).last.until(world.run(&next).first);
    world.said(next.node, "has its lock");
    world.verdict(
        "SIGTERM of the daemon",
        &format!(
            "handed over, {} from the worker's last word to the next one's first",
            milliseconds(gap)
        ),
    );
}

#[test]
fn an_operator_moves_it() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    // Two stand before it: the one that has it, and one that steps back.
    world.nodes[1].ok(&["singletons", "move", "billing", "--to", "n2"]);
    let next = world.after(&holder, Span::secs(10));
    assert_eq!(next.node, 2);
    let gap = world.run(&holder).last.until(world.run(&next).first);
    world.verdict(
        "`leasehold singletons move billing --to n2`, said to n1 while n0 has it",
        &format!("handed over in {}", milliseconds(gap)),
    );
}

/// Nobody who has it comes back to it, and nobody who is drained takes part.
#[test]
fn a_node_is_drained() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    let first = &world.nodes[holder.node];
    first.ok(&["drain"]);
    let next = world.after(&holder, Span::secs(10));
    let gap = world.run(&holder).last.until(world.run(&next).first);
    let first = &world.nodes[holder.node];
    assert!(first.status().workers().iter().all(|one| one.pid == 0));
    // It stands nowhere: the lock goes to the third, though the first one left the queue before.
    let second = &world.nodes[next.node];
    second.ok(&["drain"]);
    let third = world.after(&next, Span::secs(10));
    let all = [holder.node, next.node, third.node];
    assert!((0..3).all(|node| all.contains(&node)), "{all:?}");
    world.nodes[holder.node].ok(&["undrain"]);
    world.stands_by(holder.node);
    world.verdict(
        "`leasehold drain` on the node that has it",
        &format!("handed over in {}", milliseconds(gap)),
    );
}

/// From any node, as of a revision.
#[test]
fn all_of_it_is_seen_from_any_node() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    let names = ["n0", "n1", "n2"];
    let seen =
        |rig: &Rig| -> Value { serde_json::from_str(&rig.ok(&["cluster", "--json"])).unwrap() };
    for (rig, name) in world.nodes.iter().zip(names) {
        // Cards are written when the lease is had, and read by the way.
        let view = until("all nodes are known", 5_000, || {
            let view = seen(rig);
            let nodes = view["nodes"].as_array().unwrap();
            let there = nodes
                .iter()
                .all(|one| one["present"] == true && !one["since"].is_null());
            (there && nodes.len() == 3)
                .then_some(view.clone())
                .ok_or(view.to_string())
        });
        assert_eq!(view["node"], name);
        assert_eq!(view["membership"]["state"], "joined");
        let lock = &view["locks"][0];
        assert_eq!(lock["holders"][0]["node"], names[holder.node]);
        assert_eq!(lock["holders"][0]["fence"], holder.fence);
        assert_eq!(lock["waiting"].as_array().unwrap().len(), 2);
        assert!(view["revision"].as_i64() >= Some(holder.fence as i64));
        assert!(rig.ok(&["cluster"]).contains("HELD BY"));
        assert!(!rig.ok(&["singletons"]).contains("other locks"));
    }
    // Of a node that has other fleets.
    let queue = "/leasehold/v1/main/s/backup/q/1.1.1";
    let card = r#"{"node":"n7","worker":{"fleet":"backup","slot":0},"slots":1}"#;
    world.etcd.ctl(&["put", queue, card]).unwrap();
    let locks = world.nodes[1].ok(&["singletons"]);
    let others = locks.split_once("other locks").map_or("", |parts| parts.1);
    assert!(
        others.contains("n7 (fence ") && !others.contains("billing"),
        "{locks}"
    );
    let unknown = world.nodes[1].cli(&["singletons", "show", "backup"]);
    assert!(
        unknown.code == 4 && unknown.err.contains("leasehold cluster"),
        "{}",
        unknown.err
    );
    world.etcd.ctl(&["del", queue]).unwrap();
    // Who leaves in order says so; who dies is missed.
    world.nodes[1].drain(5_000);
    let view = seen(&world.nodes[2]);
    let left = &view["nodes"][1];
    assert!(
        left["present"] == false && left["unseen_ms"].is_u64(),
        "{left}"
    );
    let metrics = world.nodes[holder.node]
        .request("GET", "/metrics", "")
        .unwrap()
        .1;
    for line in [
        "leasehold_cluster_joined 1",
        "leasehold_lock_held{lock=\"billing\",scope=\"cluster\"} 1",
        "leasehold_lock_overlap_seconds_total{lock=\"billing\"} 0",
        "leasehold_etcd_request_failures_total{op=\"keepalive\"} 0",
    ] {
        assert!(metrics.contains(line), "{line} is missing:\n{metrics}");
    }
    assert!(
        world.nodes[2]
            .cli(&["cluster", "forget", "n0"])
            .err
            .contains("has a lease")
    );
    world.nodes[2].ok(&["cluster", "forget", "n1"]);
    assert_eq!(seen(&world.nodes[2])["nodes"].as_array().unwrap().len(), 2);
    for member in 0..world.etcd.len() {
        world.etcd.kill(member);
    }
    let still = world.nodes[2].ok(&["singletons"]);
    assert!(
        still.contains("billing/0") && still.contains("other nodes are not known"),
        "{still}"
    );
    let said = world.nodes[2].cli(&["cluster"]);
    assert!(
        said.code == 1 && said.out.contains("ETCD") && said.err.contains("etcd was asked in vain"),
        "{} {}",
        said.out,
        said.err
    );
}

/// What names the node's lease is followed without a restart of the daemon, as soon as nothing hangs on the old one; or it is refused.
#[test]
fn a_reload_reaches_the_lease() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let first = world.holding(&How::default());
    let keys = |prefix: &str| {
        let args = ["get", "--prefix", "--keys-only", prefix];
        world.etcd.ctl(&args).unwrap().matches("/q/").count()
    };
    world.edit(0, "[etcd]", "[etcd]\ncluster = \"prod\"");
    let moved = world.after(&first, Span::secs(10));
    let places = (keys("/leasehold/v1/main/s/"), keys("/leasehold/v1/prod/s/"));
    assert_eq!(places, (0, 1));

    // Another one that cannot begin before the first has: neither waits for the other to go.
    let text = std::fs::read_to_string(world.nodes[0].path("leasehold.toml")).unwrap();
    let lock = text
        .lines()
        .find(|line| line.contains("singleton = "))
        .unwrap();
    let second = format!(
        "[fleet.second]\ncommand = [\"/bin/sleep\", \"1000\"]\nafter = {{ billing = \"ready\" }}\n{}\n[fleet.billing]",
        lock.replace("/lock\"", "/second\"")
    );
    world.edit(0, "[fleet.billing]", &second);
    let both = |status: &Status| status.fleet("second")["ready"] == 1;
    world.nodes[0].wait("both run", 10_000, both);
    world.edit(0, "lease_ttl = \"5s\"", "lease_ttl = \"9s\"");
    let longer = world.after(&moved, Span::secs(10));
    world.nodes[0].wait("both run", 10_000, both);
    world.nodes[0].wait("it has a longer lease", 5_000, |status| {
        status.0["cluster"]["ttl_ms"] == 9_000
    });
    assert!(longer.fence > moved.fence, "{longer:?} {moved:?}");

    let text = std::fs::read_to_string(world.nodes[0].path("leasehold.toml")).unwrap();
    let renamed = text.replace("name = \"n0\"", "name = \"n9\"");
    let secured = text
        .replace("http://", "https://")
        .replace("[etcd]", "[etcd]\ntls = { ca = \"/nowhere.pem\" }");
    for (other, why) in [
        (renamed, "needs a restart of the daemon"),
        (secured, "cannot read /nowhere.pem"),
    ] {
        std::fs::write(world.nodes[0].path("leasehold.toml"), other).unwrap();
        for verb in ["plan", "reload"] {
            let refused = world.nodes[0].cli(&[verb]);
            let is_told = refused.code == 78 && refused.err.contains(why);
            assert!(is_told, "{verb}: {}", refused.err);
        }
    }
    assert_eq!(world.somebody(5_000), longer);
}

/// The next supervisor knows of both: of the cluster that is left, and of the one that is configured.
#[test]
fn a_node_that_moves_survives_its_supervisor() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let first = world.holding(&How {
        worker: "-i",
        ..How::default()
    });
    let asked = clock::now();
    world.edit(0, "[etcd]", "[etcd]\ncluster = \"prod\"");
    send(world.supervisor(&first), Signal::KILL);
    world.after(&first, Span::secs(10));
    let stayed = world.run(&first).last.since(asked);
    // The grace of its fleet; nobody took its lock away before.
    assert!(stayed >= Span::millis(1_900), "it had {stayed}");
    let status = world.nodes[0].wait("it is there", 5_000, |status| {
        status.0["cluster"]["state"] == "joined"
    });
    assert_eq!(status.0["cluster"]["name"], "prod");
}

/// Whoever is first in the queue and cannot begin must not be in the way.
#[test]
fn somebody_whose_lock_file_is_taken_stands_back() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    let lock = world.nodes[1].path("lock");
    let mut stranger = std::process::Command::new("flock")
        .arg(&lock)
        .args(["setpriv", "--pdeathsig", "KILL", "sleep", "1000"])
        .spawn()
        .expect("util-linux is here");
    until_true("the file is locked", 5_000, || {
        let mut tries = std::process::Command::new("flock");
        let tries = tries.arg("-n").arg(&lock);
        tries
            .arg("true")
            .status()
            .is_ok_and(|status| !status.success())
    });
    world.nodes[holder.node].drain(5_000);
    let next = world.after(&holder, Span::secs(10));
    let gap = world.run(&holder).last.until(world.run(&next).first);
    let _ = stranger.kill();
    let _ = stranger.wait();
    assert_eq!(next.node, 2);
    world.verdict(
        "whoever is next finds its lock file locked by somebody else, SIGTERM of the holder",
        &format!(
            "it stood back, and another began {} later",
            milliseconds(gap)
        ),
    );
}

/// Round and round.
#[test]
fn hand_overs_follow_each_other() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let mut holder = world.three(&How::default());
    for _ in 0..6 {
        world.nodes[holder.node].drain(5_000);
        let next = world.after(&holder, Span::secs(2));
        assert_ne!(next.node, holder.node);
        world.nodes[holder.node].start();
        world.stands_by(holder.node);
        holder = next;
        pause(1);
    }
    world.verdict(
        "SIGTERM of six daemons in turn, each started again",
        "handed over six times",
    );
}
