//! Watches.

use super::*;

pub(crate) fn a_watch_misses_nothing_after_it_is_open(subject: &mut dyn Subject) {
    write(subject, put("a/0", "before"));
    let (watch, from) = watching(subject, 0, "a/");
    let (_, _, read) = all(subject, vec![get("a/0")]);
    assert_eq!(from.revision, read.revision);
    // What was before is not told.
    let mut expected = Vec::new();
    for n in 0..50 {
        let name = format!("a/{}", n % 5);
        expected.push(write(subject, put(&name, "1")));
        if n % 10 == 9 {
            expected.push(write(subject, delete(&name)));
        }
    }
    for at in expected {
        let (revision, changes) = seen(subject, watch);
        assert_eq!((revision, changes.len()), (at, 1));
        match &changes[0] {
            Change::Put(kv) => assert_eq!(kv.modified, at),
            Change::Deleted { revision, .. } => assert_eq!(*revision, at),
        }
    }
    nothing_is_heard(subject, watch);
}

pub(crate) fn a_watch_tells_a_revision_whole(subject: &mut dyn Subject) {
    let (watch, _) = watching(subject, 0, "a/");
    write(subject, put("a/gone", "1"));
    seen(subject, watch);
    let what = vec![
        put("a/2", "2"),
        put("b", "other"),
        delete("a/gone"),
        put("a/1", "1"),
    ];
    let at = all(subject, what).2.revision;
    let (revision, changes) = seen(subject, watch);
    let name = |change: &Change| match change {
        Change::Put(kv) => {
            assert_eq!((kv.created, kv.modified), (at, at));
            kv.key.clone()
        }
        Change::Deleted { key, revision } => {
            assert_eq!(*revision, at);
            format!("-{key}")
        }
    };
    let names: Vec<String> = changes.iter().map(name).collect();
    // As they were done.
    assert_eq!(
        (revision, names.join(" ")),
        (at, "a/2 -a/gone a/1".to_owned())
    );
    nothing_is_heard(subject, watch);
}

pub(crate) fn a_watch_tells_of_its_prefix_alone(subject: &mut dyn Subject) {
    let (watch, _) = watching(subject, 0, "a/");
    let (everything, _) = watching(subject, 0, "");
    for name in ["a", "a.", "a0", "a/", "b/a/", "A/", "a/x"] {
        write(subject, put(name, "1"));
    }
    for name in ["a/", "a/x"] {
        let (_, changes) = seen(subject, watch);
        let is_it = matches!(&changes[..], [Change::Put(kv)] if kv.key == name);
        assert!(is_it, "{changes:?}");
    }
    nothing_is_heard(subject, watch);
    for _ in 0..7 {
        seen(subject, everything);
    }
}

pub(crate) fn what_is_not_there_is_not_deleted_again(subject: &mut dyn Subject) {
    let (watch, _) = watching(subject, 0, "a/");
    write(subject, delete("a/absent"));
    nothing_is_heard(subject, watch);
    let what = vec![delete("a/absent"), put("a/1", "1")];
    let at = all(subject, what).2.revision;
    let (revision, changes) = seen(subject, watch);
    assert_eq!((revision, changes.len()), (at, 1));
    let at = write(subject, delete("a/1"));
    assert_eq!(seen(subject, watch), (at, deleted(&["a/1"], at)));
    write(subject, delete("a/1"));
    nothing_is_heard(subject, watch);
}

pub(crate) fn a_watch_says_nothing_more_when_it_is_closed(subject: &mut dyn Subject) {
    let (watch, _) = watching(subject, 0, "a/");
    write(subject, put("a/1", "1"));
    seen(subject, watch);
    subject.unwatch(watch);
    write(subject, put("a/1", "2"));
    nothing_is_heard(subject, watch);
    // Nor does one that is closed before it is open.
    let watch = subject.watch(0, "a/");
    subject.unwatch(watch);
    write(subject, put("a/1", "3"));
    nothing_is_heard(subject, watch);
    // Twice is not an error, and it did not hurt the next.
    subject.unwatch(watch);
    let (watch, _) = watching(subject, 0, "a/");
    let at = write(subject, put("a/1", "4"));
    assert_eq!(seen(subject, watch).0, at);
}

pub(crate) fn two_watches_see_the_same(subject: &mut dyn Subject) {
    let (one, _) = watching(subject, 0, "a/");
    let (other, _) = watching(subject, 0, "a/");
    let at = write(subject, put("a/1", "1"));
    let told = seen(subject, one);
    assert_eq!(told.0, at);
    assert_eq!(told, seen(subject, other));
    subject.unwatch(one);
    let at = write(subject, delete("a/1"));
    assert_eq!(seen(subject, other), (at, deleted(&["a/1"], at)));
    nothing_is_heard(subject, one);
}
