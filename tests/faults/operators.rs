//! Operators who know better: they take the holder's lease, or its place in the queue, away under its hands.

use leasehold::{sys::clock, time::Span};
use rustix::process::Signal;

use crate::{
    proxy::Proxy,
    rig::send,
    world::{Holder, How, Times, World, all_rows, milliseconds},
};

const SLACK: Span = Span::secs(1);

#[test]
fn a_revoked_lease_ends_its_worker_before_another_begins() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How {
        worker: "-gi",
        ..How::default()
    });
    let revoked = clock::now();
    revoke(&world);
    let told = told(&world, &holder, Span::secs(1).plus(SLACK), revoked);
    world.verdict(
        "`etcdctl lease revoke` of the holder's lease, worker ignores SIGTERM",
        &told,
    );
}

#[test]
fn a_deleted_place_ends_its_worker_before_another_begins() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How {
        worker: "-gi",
        ..How::default()
    });
    let place = world.queue()[0].clone();
    let deleted = clock::now();
    world.etcd.ctl(&["del", &place]).unwrap();
    let told = told(&world, &holder, Span::secs(1).plus(SLACK), deleted);
    world.verdict(
        "`etcdctl del` of the holder's place in the queue, worker ignores SIGTERM",
        &told,
    );
}

/// Nobody stands there any more, and everybody who did left in order: who was there all the time need not wait for anybody.
#[test]
fn stopped_everywhere_it_starts_again_at_once() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How::default());
    for node in [1, 2, 0] {
        world.nodes[node].ok(&["stop", "billing"]);
    }
    world.nodes[1].ok(&["start", "billing"]);
    let next = world.after(&holder, Span::secs(5));
    assert_eq!(next.node, 1);
    let said = world.nodes[1].stderr();
    assert!(!said.contains("left without a word"), "{said}");
    world.verdict(
        "`stop` on every node, `start` on one that stood by",
        "it begins without a delay",
    );
}

fn revoke(world: &World) {
    let lease = world.lease_of_first();
    world.etcd.ctl(&["lease", "revoke", &lease]).unwrap();
}

/// The holder ended, and then somebody else began; both soon.
fn told(world: &World, holder: &Holder, within: Span, since: leasehold::time::Moment) -> String {
    let next = world.after(holder, within.plus(Span::secs(1)));
    world.said(holder.node, "lost its lock");
    let (last, first) = (world.run(holder).last, world.run(&next).first);
    format!(
        "killed {} after the fault; another began {} after it",
        milliseconds(since.until(last)),
        milliseconds(since.until(first))
    )
}

/// It is replaced at once, and its successor hears of it.
#[test]
fn a_frozen_supervisor_and_a_revoked_lease() {
    if !all_rows() {
        return;
    }
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let holder = world.three(&How {
        worker: "-gi",
        takeover: "strict",
        ..How::default()
    });
    let revoked = clock::now();
    send(world.supervisor(&holder), Signal::STOP);
    revoke(&world);
    let told = told(&world, &holder, world.times.dead().plus(SLACK), revoked);
    world.verdict(
        "SIGSTOP of the supervisor and `lease revoke`, `takeover_delay = \"strict\"`",
        &told,
    );
}

/// The one that `strict` is for: nobody can tell the holder.
#[test]
fn a_holder_that_hears_nothing_and_a_revoked_lease() {
    let Some(mut world) = World::new(Times::QUICK) else {
        return;
    };
    let strict = How {
        worker: "-gi",
        takeover: "strict",
        ..How::default()
    };
    let proxies = Proxy::to_all(&world.etcd, Span::ZERO);
    let holder = world.holding(&How {
        endpoints: Some(proxies.iter().map(Proxy::endpoint).collect()),
        ..strict.clone()
    });
    for _ in 0..2 {
        let node = world.node(&strict);
        world.stands_by(node);
    }
    let cut = clock::now();
    for proxy in &proxies {
        proxy.hold();
    }
    revoke(&world);
    let next = world.after(&holder, world.times.dead().plus(SLACK).plus(SLACK));
    assert_ne!(next.node, holder.node);
    world.ended_as_its_lease_did(&holder, cut, true);
    let (last, first) = (world.run(&holder).last, world.run(&next).first);
    world.verdict(
        "holder cut off and `lease revoke`, `takeover_delay = \"strict\"`",
        &format!(
            "killed at its deadline, {} after the fault; another began {} after it",
            milliseconds(cut.until(last)),
            milliseconds(cut.until(first))
        ),
    );
}
