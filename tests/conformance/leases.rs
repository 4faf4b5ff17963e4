//! Leases: how they begin, go on and end, and what becomes of their keys.

use super::*;

pub(crate) fn a_grant_is_no_write(subject: &mut dyn Subject) {
    let (_, _, before) = all(subject, vec![get("x")]);
    let (one, ttl, from) = granted(subject.ask(0, Request::Grant { ttl: 7 }));
    assert_eq!((ttl, from.revision), (7, before.revision));
    let (other, _, from) = granted(subject.ask(0, Request::Grant { ttl: 7 }));
    assert_eq!(from.revision, before.revision);
    let none = LeaseId(0);
    assert!(one != none && other != none && one != other);
    // It gives no less than it is asked for.
    let (_, ttl) = grant(subject, 1);
    assert!(ttl >= 1, "{ttl}");
}

pub(crate) fn a_renewal_keeps_a_lease(subject: &mut dyn Subject) {
    let (lease, ttl) = grant(subject, 2);
    let revision = write(subject, put_with("k", lease));
    let (watch, _) = watching(subject, 0, "k");
    let half = Span::millis(u64::try_from(ttl).unwrap() * 500);
    // Together more than it had at first.
    for _ in 0..4 {
        let (left, from) = renewed(subject, 0, lease);
        assert_eq!((left, from.revision), (ttl, revision));
        assert_eq!(subject.next_news(watch, half), None);
    }
    assert!(key(subject, "k").is_some());
}

pub(crate) fn a_lease_that_is_not_renewed_ends_with_its_keys(subject: &mut dyn Subject) {
    let (watch, _) = watching(subject, 0, "k/");
    let began = subject.now();
    let (lease, ttl) = grant(subject, 2);
    let what = vec![put_with("k/1", lease), put_with("k/2", lease)];
    all(subject, what);
    assert_eq!(seen(subject, watch).1.len(), 2);
    let (revision, changes) = seen(subject, watch);
    let took = subject.now().since(began);
    assert_eq!(sorted(changes), deleted(&["k/1", "k/2"], revision));
    assert!(took >= Span::secs(u64::try_from(ttl).unwrap()), "{took}");
    assert!(renewed(subject, 0, lease).0 <= 0);
    assert_eq!(all(subject, vec![list("k/")]).1, [vec![]]);
}

pub(crate) fn a_revoked_lease_takes_its_keys_at_one_revision(subject: &mut dyn Subject) {
    let (watch, _) = watching(subject, 0, "");
    let (lease, _) = grant(subject, 20);
    write(subject, put_with("a/1", lease));
    write(subject, put("a/2", "stays"));
    let before = write(subject, put_with("b/1", lease));
    let at = revoke(subject, lease).revision;
    assert_eq!(at, before + 1);
    for _ in 0..3 {
        assert_eq!(seen(subject, watch).1.len(), 1);
    }
    let (revision, changes) = seen(subject, watch);
    let expected = deleted(&["a/1", "b/1"], at);
    assert_eq!((revision, sorted(changes)), (at, expected));
    assert!(key(subject, "a/2").is_some());
    // One without keys is no write.
    let (lease, _) = grant(subject, 20);
    assert_eq!(revoke(subject, lease).revision, at);
    nothing_is_heard(subject, watch);
}

pub(crate) fn of_a_lease_that_never_was_nobody_knows(subject: &mut dyn Subject) {
    nobody_knows(subject, LeaseId(0x0bad_cafe));
}

pub(crate) fn of_a_lease_that_is_gone_nobody_knows(subject: &mut dyn Subject) {
    let (lease, ttl) = grant(subject, 20);
    assert_eq!(renewed(subject, 0, lease).0, ttl);
    revoke(subject, lease);
    nobody_knows(subject, lease);
}

fn nobody_knows(subject: &mut dyn Subject, lease: LeaseId) {
    let (ttl, from) = renewed(subject, 0, lease);
    assert!(ttl <= 0, "{ttl}");
    // Who says so, says who it is.
    let (_, _, read) = all(subject, vec![get("x")]);
    assert_eq!(from, read);
    let (ttl, keys) = lease_keys(subject, 0, lease);
    assert!(ttl < 0 && keys.is_empty(), "{ttl} {keys:?}");
    let revoked = subject.ask(0, Request::Revoke(lease));
    assert_eq!(revoked, Err(Failure::NoLease));
    let failure = refused(subject, vec![put_with("k", lease)]);
    assert_eq!(failure, Failure::NoLease);
}

pub(crate) fn a_key_goes_with_the_lease_of_its_last_write(subject: &mut dyn Subject) {
    let (first, _) = grant(subject, 20);
    let (second, _) = grant(subject, 20);
    for name in ["freed", "moved", "stays"] {
        write(subject, put_with(name, first));
    }
    write(subject, put("freed", "by a write without one"));
    write(subject, put_with("moved", second));
    assert_eq!(key(subject, "freed").unwrap().lease, None);
    assert_eq!(key(subject, "moved").unwrap().lease, Some(second));
    assert_eq!(lease_keys(subject, 0, first).1, ["stays"]);
    revoke(subject, first);
    assert!(key(subject, "freed").is_some());
    assert!(key(subject, "moved").is_some());
    assert_eq!(key(subject, "stays"), None);
    revoke(subject, second);
    assert_eq!(key(subject, "moved"), None);
}

pub(crate) fn a_lease_tells_its_keys(subject: &mut dyn Subject) {
    let (lease, ttl) = grant(subject, 20);
    let (left, keys) = lease_keys(subject, 0, lease);
    assert!(left <= ttl && left >= ttl - 5 && keys.is_empty());
    let what = vec![put_with("b", lease), put_with("a", lease), put("c", "no")];
    all(subject, what);
    assert_eq!(lease_keys(subject, 0, lease).1, ["a", "b"]);
    write(subject, delete("a"));
    assert_eq!(lease_keys(subject, 0, lease).1, ["b"]);
}

pub(crate) fn a_lease_that_is_not_there_takes_no_key(subject: &mut dyn Subject) {
    let nobodys = LeaseId(0x0bad_cafe);
    // Nothing of the txn is done.
    let before = write(subject, put("a", "1"));
    let what = vec![put("a", "2"), put_with("b", nobodys), delete("c")];
    assert_eq!(refused(subject, what), Failure::NoLease);
    let (_, read, from) = all(subject, vec![get("a"), get("b")]);
    assert_eq!((read[0][0].value.as_str(), read[1].len()), ("1", 0));
    assert_eq!(from.revision, before);
    // Where it is not done, nobody minds.
    let unless = Txn {
        when: vec![When::Created("a".to_owned(), 0)],
        then: vec![put_with("b", nobodys)],
        otherwise: vec![get("a")],
    };
    let (held, read, _) = txn(subject, unless);
    assert!(!held && read[0][0].value == "1", "{read:?}");
}

pub(crate) fn a_full_disk_takes_no_writes_and_keeps_leases(subject: &mut dyn Subject) {
    let (held, ttl) = grant(subject, 20);
    let (given_back, _) = grant(subject, 20);
    write(subject, put_with("held", held));
    write(subject, put_with("back", given_back));
    let plain = write(subject, put("plain", "1"));
    if !subject.fill() {
        return;
    }
    assert_eq!(health(subject, 0).unwrap().0.alarms, ["NOSPACE"]);
    let grant = subject.ask(0, Request::Grant { ttl: 20 });
    assert_eq!(grant, Err(Failure::NoSpace));
    for what in [
        vec![put("plain", "2")],
        vec![put_with("held", held)],
        vec![get("plain"), put("new", "2"), delete("plain")],
    ] {
        assert_eq!(refused(subject, what), Failure::NoSpace);
    }
    // Nor a write that would not be done.
    let unless = Txn {
        when: vec![When::Created("held".to_owned(), 0)],
        then: vec![put("held", "2")],
        otherwise: vec![get("held")],
    };
    let unless = subject.ask(0, Request::Txn(unless));
    assert_eq!(unless, Err(Failure::NoSpace));
    assert_eq!(renewed(subject, 0, held).0, ttl);
    assert_eq!(lease_keys(subject, 0, held).1, ["held"]);
    assert_eq!(key(subject, "plain").unwrap().value, "1");
    let (watch, _) = watching(subject, 0, "");
    let removal = Txn {
        when: vec![When::Modified("plain".to_owned(), plain)],
        then: vec![delete("plain"), get("plain"), get("held")],
        otherwise: vec![],
    };
    let (held_so, read, from) = txn(subject, removal);
    assert!(held_so && read[0].is_empty() && read[1].len() == 1);
    let at = from.revision;
    assert_eq!(seen(subject, watch), (at, deleted(&["plain"], at)));
    let at = revoke(subject, given_back).revision;
    assert_eq!(seen(subject, watch), (at, deleted(&["back"], at)));
}
