//! Several members: they are one etcd, until too many of them are gone.

use super::*;

/// One that leads, now that all agree, and one that does not.
fn leader_and_follower(subject: &mut dyn Subject) -> (usize, usize) {
    settle(subject);
    let end = subject.now().after(SETTLED);
    loop {
        if let Some(leader) = subject.leader() {
            return (leader, (leader + 1) % subject.endpoints());
        }
        assert!(subject.now() < end, "nobody leads");
        subject.pass(Span::millis(20));
    }
}

fn write_at(subject: &mut dyn Subject, endpoint: usize, what: Do) -> Header {
    txn_at(subject, endpoint, Txn::read(vec![what])).2
}

fn read_k() -> Request {
    Request::Txn(Txn::read(vec![get("k")]))
}

fn why_it_ended(subject: &mut dyn Subject, watch: CallId, bound: Span) -> Failure {
    match subject.next_news(watch, bound) {
        Some(News::WatchEnded { watch: id, why }) if id == watch => why,
        other => panic!("it did not end: {other:?}"),
    }
}

pub(crate) fn whoever_is_asked_it_is_the_same(subject: &mut dyn Subject) {
    settle(subject);
    let n = subject.endpoints();
    let mut members = Vec::new();
    let mut before = write_at(subject, 0, put("k", "0"));
    for round in 1..=30 {
        let value = format!("{round}");
        let written = write_at(subject, round % n, put("k", &value));
        assert_eq!(written.revision, before.revision + 1);
        assert_eq!(written.cluster, before.cluster);
        // Whoever else is asked after it was done, knows.
        for endpoint in 0..n {
            let (_, read, from) = txn_at(subject, endpoint, Txn::read(vec![get("k")]));
            assert_eq!(read[0][0].value, value);
            assert_eq!(from.revision, written.revision);
            assert_eq!(from.cluster, written.cluster);
            members.push((endpoint, from.member));
        }
        before = written;
    }
    members.sort_unstable();
    members.dedup();
    assert_eq!(members.len(), n, "{members:?}");
}

pub(crate) fn whoever_is_asked_renews(subject: &mut dyn Subject) {
    settle(subject);
    let (lease, ttl, _) = granted(subject.ask(0, Request::Grant { ttl: 20 }));
    write_at(subject, 0, put_with("k", lease));
    for endpoint in 0..subject.endpoints() {
        let (left, from) = renewed(subject, endpoint, lease);
        assert_eq!(left, ttl);
        let (_, _, read) = txn_at(subject, endpoint, Txn::read(vec![get("k")]));
        assert_eq!((from.member, from.term), (read.member, read.term));
        assert_eq!(lease_keys(subject, endpoint, lease).1, ["k"]);
        assert!(renewed(subject, endpoint, LeaseId(0x0bad_cafe)).0 <= 0);
    }
}

pub(crate) fn a_watch_at_any_member_sees_what_is_written_at_another(subject: &mut dyn Subject) {
    settle(subject);
    let n = subject.endpoints();
    let mut watches = Vec::new();
    for endpoint in 0..n {
        watches.push(watching(subject, endpoint, "a/").0);
    }
    for round in 0..10 {
        let name = format!("a/{round}");
        let at = write_at(subject, round % n, put(&name, "1")).revision;
        for watch in &watches {
            assert_eq!(seen(subject, *watch).0, at);
        }
    }
}

pub(crate) fn without_a_quorum_nothing_is_answered_that_needs_one(subject: &mut dyn Subject) {
    let (_, last) = leader_and_follower(subject);
    let (lease, _, _) = granted(subject.ask(last, Request::Grant { ttl: 200 }));
    let before = write_at(subject, last, put_with("k", lease));
    let gone: Vec<usize> = (0..subject.endpoints()).filter(|n| *n != last).collect();
    for endpoint in &gone {
        subject.crash(*endpoint);
    }
    for request in [
        read_k(),
        Request::Txn(Txn::read(vec![put("k", "2")])),
        Request::Grant { ttl: 20 },
        Request::KeepAlive(lease),
        Request::Revoke(lease),
    ] {
        match subject.ask(last, request.clone()) {
            Err(failure) => assert!(is_uncertain(&failure), "{request:?}: {failure:?}"),
            Ok(reply) => panic!("{request:?}: {reply:?}"),
        }
    }
    // How it is, it says all the same.
    let end = subject.now().after(SETTLED);
    loop {
        let (health, from) = health(subject, last).unwrap();
        assert_eq!((from.cluster, from.member), (before.cluster, before.member));
        if !health.has_leader {
            break;
        }
        assert!(subject.now() < end, "it still knows of a leader");
        subject.pass(Span::millis(20));
    }
    assert_eq!(subject.ask(last, read_k()), Err(Failure::NoLeader));
    for endpoint in &gone {
        let status = subject.ask(*endpoint, Request::Status);
        assert!(matches!(status, Err(Failure::Unreachable(_))), "{status:?}");
        subject.start(*endpoint);
    }
    settle(subject);
    let (_, _, from) = done(insist(subject, last, &read_k()));
    assert!(from.term > before.term, "{from:?} {before:?}");
    assert_eq!(from.cluster, before.cluster);
}

pub(crate) fn a_watch_ends_when_there_is_no_quorum(subject: &mut dyn Subject) {
    let (_, last) = leader_and_follower(subject);
    let (watch, _) = watching(subject, last, "a/");
    for endpoint in (0..subject.endpoints()).filter(|n| *n != last) {
        subject.crash(endpoint);
    }
    assert_eq!(why_it_ended(subject, watch, SETTLED), Failure::NoLeader);
    nothing_is_heard(subject, watch);
    // And none is opened.
    let watch = subject.watch(last, "a/");
    let why = why_it_ended(subject, watch, SOON);
    assert!(is_uncertain(&why), "{why:?}");
}

pub(crate) fn a_watch_ends_when_its_member_does(subject: &mut dyn Subject) {
    let (leader, follower) = leader_and_follower(subject);
    let (on_leader, _) = watching(subject, leader, "a/");
    let (on_follower, _) = watching(subject, follower, "a/");
    subject.crash(leader);
    let why = why_it_ended(subject, on_leader, SOON);
    assert!(matches!(why, Failure::Unreachable(_)), "{why:?}");
    nothing_is_heard(subject, on_leader);
    // The other one goes on, also under another leader.
    insist(subject, follower, &read_k());
    let at = write_at(subject, follower, put("a/1", "1")).revision;
    assert_eq!(seen(subject, on_follower).0, at);
}

pub(crate) fn a_new_leader_gives_leases_all_their_time(subject: &mut dyn Subject) {
    let (leader, follower) = leader_and_follower(subject);
    let (lease, ttl, _) = granted(subject.ask(follower, Request::Grant { ttl: 10 }));
    let before = write_at(subject, follower, put_with("k", lease));
    let (watch, _) = watching(subject, follower, "k");
    let end = subject.now().after(SETTLED);
    while lease_keys(subject, follower, lease).0 > ttl - 4 {
        assert!(subject.now() < end, "no time goes by");
        subject.pass(Span::millis(100));
    }
    subject.crash(leader);
    let (_, _, after) = done(insist(subject, follower, &read_k()));
    assert!(after.term > before.term, "{before:?} {after:?}");
    assert_eq!(
        (after.cluster, after.member),
        (before.cluster, before.member)
    );
    match insist(subject, follower, &Request::LeaseKeys(lease)).body {
        Body::LeaseKeys { ttl: left, .. } => assert!(left >= ttl - 2, "{left}"),
        other => panic!("{other:?}"),
    }
    // When it would have ended, it does not.
    assert_eq!(subject.next_news(watch, Span::secs(6)), None);
    let (left, from) = renewed(subject, follower, lease);
    assert!(left == ttl && from.term >= after.term, "{left} {from:?}");
    subject.start(leader);
    settle(subject);
}
