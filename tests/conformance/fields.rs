//! What keys and answers say of themselves.

use super::*;

pub(crate) fn a_key_tells_who_wrote_it_and_when(subject: &mut dyn Subject) {
    let (lease, _) = grant(subject, 20);
    let created = write(subject, put("k", "1"));
    let modified = write(subject, put_with("k", lease));
    assert_eq!(modified, created + 1);
    let expected = KeyValue {
        key: "k".to_owned(),
        value: "leased".to_owned(),
        created,
        modified,
        lease: Some(lease),
    };
    assert_eq!(key(subject, "k"), Some(expected.clone()));
    assert_eq!(all(subject, vec![list("")]).1, [vec![expected]]);
    // The same value is a write too; and none is a value.
    let modified = write(subject, put("k", "leased"));
    let again = key(subject, "k").unwrap();
    assert_eq!((again.created, again.modified), (created, modified));
    assert_eq!(again.lease, None);
    write(subject, put("empty", ""));
    assert_eq!(key(subject, "empty").unwrap().value, "");
}

pub(crate) fn a_deleted_key_begins_anew(subject: &mut dyn Subject) {
    let first = write(subject, put("k", "1"));
    let gone = write(subject, delete("k"));
    assert_eq!((gone, key(subject, "k")), (first + 1, None));
    let second = write(subject, put("k", "2"));
    let found = key(subject, "k").unwrap();
    assert_eq!((found.created, found.modified), (second, second));
    // Two of one txn are of one revision.
    let what = vec![put("x", "1"), put("y", "1")];
    let at = all(subject, what).2.revision;
    let (_, read, _) = all(subject, vec![get("x"), get("y")]);
    assert_eq!((read[0][0].created, read[1][0].created), (at, at));
}

pub(crate) fn reading_and_failing_write_nothing(subject: &mut dyn Subject) {
    let before = write(subject, put("k", "1"));
    let fails = Txn {
        when: vec![When::Created("k".to_owned(), 0)],
        then: vec![put("k", "2")],
        otherwise: vec![],
    };
    let (held, read, from) = txn(subject, fails);
    assert!(!held && read.is_empty());
    assert_eq!(from.revision, before);
    let reads = vec![get("k"), list("")];
    assert_eq!(all(subject, reads).2.revision, before);
    assert_eq!(write(subject, delete("absent")), before);
    assert_eq!(all(subject, vec![]).2.revision, before);
    assert_eq!(write(subject, put("k", "2")), before + 1);
}

pub(crate) fn answers_say_as_of_when_they_are(subject: &mut dyn Subject) {
    let (_, _, first) = all(subject, vec![put("k", "1")]);
    assert!(first.cluster != 0 && first.member != 0, "{first:?}");
    assert!(first.term > 0, "{first:?}");
    let (lease, _, from) = granted(subject.ask(0, Request::Grant { ttl: 20 }));
    assert_eq!(from, first);
    assert_eq!(renewed(subject, 0, lease).1, first);
    assert_eq!(health(subject, 0).unwrap().1, first);
    assert_eq!(watching(subject, 0, "").1, first);
    assert_eq!(all(subject, vec![get("k")]).2, first);
    let later = |by: i64| Header {
        revision: first.revision + by,
        ..first
    };
    let (_, _, second) = all(subject, vec![put_with("k", lease)]);
    assert_eq!(second, later(1));
    assert_eq!(revoke(subject, lease), later(2));
}

pub(crate) fn a_status_says_how_it_is(subject: &mut dyn Subject) {
    let (health, _) = health(subject, 0).unwrap();
    assert!(health.has_leader && health.alarms.is_empty(), "{health:?}");
    let numbers: Vec<&str> = health.version.split('.').collect();
    assert_eq!(numbers.len(), 3, "{health:?}");
    assert!(numbers.iter().all(|n| n.parse::<u32>().is_ok()));
}

pub(crate) fn a_list_is_everything_below_and_in_order(subject: &mut dyn Subject) {
    let names = [
        "a/", "a0", "a/c", "a/b", "a.", "a", "a/b/c", "b", "a/\u{e9}",
    ];
    for name in names {
        write(subject, put(name, "1"));
    }
    let what = vec![list("a/"), list("nobody"), get("a"), list("a/b"), list("")];
    let read = all(subject, what).1;
    let names = |at: usize| -> Vec<&str> { read[at].iter().map(|kv| kv.key.as_str()).collect() };
    assert_eq!(names(0), ["a/", "a/b", "a/b/c", "a/c", "a/\u{e9}"]);
    assert!(names(1).is_empty());
    assert_eq!(names(2), ["a"]);
    assert_eq!(names(3), ["a/b", "a/b/c"]);
    let everything = [
        "a", "a.", "a/", "a/b", "a/b/c", "a/c", "a/\u{e9}", "a0", "b",
    ];
    assert_eq!(names(4), everything);
}
