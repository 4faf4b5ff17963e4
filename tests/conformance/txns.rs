//! Transactions.

use super::*;

fn created(key: &str, at: i64) -> When {
    When::Created(key.to_owned(), at)
}

fn modified(key: &str, at: i64) -> When {
    When::Modified(key.to_owned(), at)
}

fn holds(subject: &mut dyn Subject, when: Vec<When>) -> bool {
    let question = Txn {
        when,
        then: vec![get("k")],
        otherwise: vec![get("k"), get("k")],
    };
    let (held, read, _) = txn(subject, question);
    assert_eq!(read.len(), if held { 1 } else { 2 });
    held
}

pub(crate) fn what_must_hold_is_compared_with_revisions(subject: &mut dyn Subject) {
    let first = write(subject, put("k", "1"));
    let last = write(subject, put("k", "2"));
    assert!(holds(subject, vec![]));
    for (when, expected) in [
        (created("k", first), true),
        (created("k", last), false),
        (created("k", 0), false),
        (modified("k", last), true),
        (modified("k", first), false),
        (modified("k", 0), false),
        (created("absent", 0), true),
        (modified("absent", 0), true),
        (created("absent", first), false),
        (modified("absent", last), false),
    ] {
        let alone = holds(subject, vec![when.clone()]);
        assert_eq!(alone, expected, "{when:?}");
        // All of it must.
        let and_so = holds(subject, vec![when.clone(), created("absent", 0)]);
        assert_eq!(and_so, expected, "{when:?}");
        let and_not = holds(subject, vec![when.clone(), created("k", 0)]);
        assert!(!and_not, "{when:?}");
    }
    // As if it had never been there.
    write(subject, delete("k"));
    assert!(holds(subject, vec![created("k", 0), modified("k", 0)]));
    assert!(!holds(subject, vec![created("k", first)]));
}

pub(crate) fn what_does_not_hold_does_the_other_thing(subject: &mut dyn Subject) {
    let (watch, _) = watching(subject, 0, "");
    let claim = |value: &str| Txn {
        when: vec![created("k", 0)],
        then: vec![put("k", value), put("won", value)],
        otherwise: vec![put("lost", value), get("k")],
    };
    let (held, read, from) = txn(subject, claim("a"));
    assert!(held && read.is_empty(), "{read:?}");
    let (revision, changes) = seen(subject, watch);
    assert_eq!((revision, changes.len()), (from.revision, 2));
    let (held, read, from) = txn(subject, claim("b"));
    assert!(!held);
    assert_eq!(read[0][0].value, "a");
    let (revision, changes) = seen(subject, watch);
    assert_eq!((revision, changes.len()), (from.revision, 1));
    assert_eq!(key(subject, "won").unwrap().value, "a");
}

pub(crate) fn reads_see_what_was_done_before_them(subject: &mut dyn Subject) {
    let what = vec![put("gone", "1"), put("k", "old")];
    let before = all(subject, what).2.revision;
    let what = vec![
        get("k"),
        put("k", "new"),
        get("k"),
        list("n"),
        put("n/1", "1"),
        list("n"),
        delete("gone"),
        get("gone"),
    ];
    let (_, read, from) = all(subject, what);
    let at = before + 1;
    assert_eq!((from.revision, read.len()), (at, 5));
    let short = |kv: &KeyValue| (kv.value.clone(), kv.created, kv.modified);
    assert_eq!(short(&read[0][0]), ("old".to_owned(), before, before));
    assert_eq!(short(&read[1][0]), ("new".to_owned(), before, at));
    assert!(read[2].is_empty());
    assert_eq!(read[3].len(), 1);
    assert_eq!(short(&read[3][0]), ("1".to_owned(), at, at));
    assert!(read[4].is_empty());
}

pub(crate) fn one_key_is_written_once_in_a_txn(subject: &mut dyn Subject) {
    let before = write(subject, put("k", "1"));
    for what in [
        vec![put("k", "2"), put("k", "3")],
        vec![put("k", "2"), get("k"), delete("k")],
        vec![delete("k"), put("k", "2")],
    ] {
        let failure = refused(subject, what.clone());
        let is_refusal = matches!(failure, Failure::Refused(_));
        assert!(is_refusal, "{what:?}: {failure:?}");
    }
    // Only one of both sides is done; and twice deleted is deleted.
    let both = Txn {
        when: vec![created("k", before)],
        then: vec![put("k", "2")],
        otherwise: vec![put("k", "3")],
    };
    let (held, _, from) = txn(subject, both);
    assert!(held && from.revision == before + 1);
    let at = all(subject, vec![delete("k"), delete("k")]).2.revision;
    assert_eq!((at, key(subject, "k")), (before + 2, None));
}

pub(crate) fn a_txn_is_no_longer_than_allowed(subject: &mut dyn Subject) {
    let max = leasehold::engine::cluster::rpc::TXN_MAX;
    let puts = |n: usize| -> Vec<Do> {
        let one = |i: usize| put(&format!("k/{i:03}"), "1");
        (0..n).map(one).collect()
    };
    let failure = refused(subject, puts(max + 1));
    assert!(matches!(failure, Failure::Refused(_)), "{failure:?}");
    let (watch, before) = watching(subject, 0, "k/");
    let at = all(subject, puts(max)).2.revision;
    assert_eq!(at, before.revision + 1);
    let (revision, changes) = seen(subject, watch);
    assert_eq!((revision, changes.len()), (at, max));
}
