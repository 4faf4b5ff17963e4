//! Workers that stand by, and are told in their pages when they lead.

use leasehold::{sys::clock, time::Span};
use rustix::process::Signal;

use crate::{
    rig::{lives, send, until_true},
    world::{Holder, How, Times, WORKER, World, milliseconds},
};

fn warm(worker: &'static str) -> How {
    How {
        worker,
        warm: true,
        ..How::default()
    }
}

/// The worker that waits there, ready.
fn standby(world: &World, node: usize) -> i32 {
    let status = world.nodes[node].wait("a worker stands by", 10_000, |status| {
        let worker = status.worker(WORKER);
        worker.is_some_and(|one| one.all["state"] == "standby" && one.all["pid"].is_i64())
    });
    let worker = status.worker(WORKER).unwrap();
    assert_eq!(
        worker.all["ready"], false,
        "it takes no work: {}",
        worker.all
    );
    assert_eq!(world.gate(&status)["state"], "shut");
    worker.all["pid"].as_i64().unwrap() as i32
}

/// The first holds, and of the others a worker stands by each: their pids.
fn three(world: &mut World, worker: &'static str) -> (Holder, [i32; 2]) {
    let holder = world.three(&warm(worker));
    let pids = [1, 2].map(|node| standby(world, node));
    (holder, pids)
}

fn handed_over(world: &World, from: &Holder, to: usize) -> Holder {
    world.nodes[to].ok(&["singletons", "move", "billing", "--to", &format!("n{to}")]);
    world.after(from, Span::secs(5))
}

#[test]
fn a_standby_leads_where_it_stands() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let (holder, pids) = three(&mut world, "w");
    let generation = |node: usize| {
        world.nodes[node]
            .status()
            .worker(WORKER)
            .unwrap()
            .generation
    };
    let before = generation(1);
    let next = handed_over(&world, &holder, 1);
    assert_eq!(
        (next.node, next.leader),
        (1, pids[0]),
        "another process leads"
    );
    assert!(next.fence > holder.fence);
    assert_eq!(generation(1), before);
    let status = world.nodes[1].status();
    assert_eq!(status.worker(WORKER).unwrap().all["state"], "running");
    world.said(1, &format!("stood by, and leads now, fence {}", next.fence));
    // Whoever led stands by, with another process.
    assert_ne!(standby(&world, 0), holder.leader);
    assert_eq!(standby(&world, 2), pids[1]);
    world.verdict(
        "`singletons move` to a node whose worker stands by (`warm`)",
        "the process that stood by leads, with its fence in its page",
    );
}

/// A process that was promoted is as gated as one that was born a leader.
#[test]
fn a_promoted_worker_ends_at_its_deadline() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let (holder, pids) = three(&mut world, "wi");
    let next = handed_over(&world, &holder, 2);
    assert_eq!(next.leader, pids[1]);
    world.is_renewed_since(&next, clock::now());
    let leader = world.leader();
    let stopped = clock::now();
    for member in [leader, (leader + 1) % 3] {
        world.etcd.stop(member);
    }
    let gone = clock::now();
    until_true("it ends", 15_000, || !lives(next.leader));
    world.ended_between(&next, stopped, gone, true);
    let last = stopped.until(world.run(&next).last);
    // Nobody needs etcd to stand by.
    assert_eq!(standby(&world, 1), pids[0]);
    standby(&world, 2);
    for member in [leader, (leader + 1) % 3] {
        world.etcd.start(member);
    }
    world.after(&next, Span::secs(30));
    world.verdict(
        "two of three members stopped, worker stood by before (`warm`) and ignores SIGTERM",
        &format!(
            "killed at its deadline, {} later; those who stood by stayed, and one of them leads since",
            milliseconds(last)
        ),
    );
}

#[test]
fn a_standby_follows_a_dead_node() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let (holder, pids) = three(&mut world, "w");
    // Supervisors come and go, on either side.
    for node in 0..3 {
        send(world.nodes[node].status().supervisor(), Signal::KILL);
    }
    world.is_renewed_since(&holder, clock::now());
    world.is_untouched(&holder);
    assert_eq!([1, 2].map(|node| standby(&world, node)), pids);
    let (supervisor, keeper) = (world.supervisor(&holder), world.keeper(&holder));
    send(keeper, Signal::STOP);
    send(supervisor, Signal::KILL);
    send(keeper, Signal::KILL);
    let next = world.after(&holder, world.times.failover());
    assert!(pids.contains(&next.leader), "another process leads");
    world.verdict(
        "SIGKILL of supervisor and keeper at once, the others' workers stand by (`warm`)",
        "a process that stood by leads when the lease is over",
    );
}
