//! The shell's own promises, where etcd is well.

use std::collections::BTreeSet;

use leasehold::{
    engine::cluster::rpc::{Body, CallId, Change, Do, Failure, News, Order, Request, Txn},
    etcd::{Etcd, EtcdFault, Settings, Tls},
    sys::clock,
    time::Span,
};

use crate::{
    client::{Client, WITHIN},
    real::ready,
    rig::{Cluster, patient},
    silence::{connected_to, granted, put, read},
};

#[test]
fn a_thousand_calls_at_once() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let mut client = Client::of(&cluster);
    ready(&mut client, 1);
    let leases: Vec<_> = (0..10).map(|_| granted(&mut client, 0, 60)).collect();
    let within = Span::secs(20);
    let calls: Vec<CallId> = (0..1_000)
        .map(|n| {
            let request = match n % 4 {
                0 => Request::Status,
                1 => Request::KeepAlive(leases[n % 10]),
                2 => put(&format!("k/{n}"), "1"),
                _ => read(),
            };
            client.begin(0, request, within)
        })
        .collect();
    for call in calls {
        client.answer(call).unwrap();
    }
    // Over one connection; the member's gateway has one with itself.
    let open = connected_to(cluster.client_port(0));
    assert!(open <= 3, "{open} connections");
}

#[test]
fn it_is_sent_after_it_was_ordered_and_before_it_is_answered() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let mut client = Client::of(&cluster);
    ready(&mut client, 1);
    let lease = granted(&mut client, 0, 60);
    // The first renewal opens a stream, and is not the one that counts; the later ones do not.
    for request in [
        Request::KeepAlive(lease),
        Request::KeepAlive(lease),
        read(),
        Request::Status,
    ] {
        let answered = client.call(0, request, WITHIN);
        answered.result.unwrap();
        assert!(answered.sent.is_after(answered.ordered));
        assert!(clock::both().is_after(answered.sent));
    }
    // Two at once take turns on the stream.
    let both = [0, 1].map(|_| client.begin(0, Request::KeepAlive(lease), WITHIN));
    let [first, second] = both.map(|call| {
        let (sent, result) = client.answered(call);
        result.unwrap();
        sent
    });
    assert!(second.is_after(first));
}

#[test]
fn what_is_under_way_when_the_shell_ends_is_answered() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let mut client = Client::of(&cluster);
    ready(&mut client, 1);
    let watch = client.watch(0, "a/", WITHIN);
    let open = client.next_news(watch, WITHIN);
    assert!(matches!(open, Some(News::Watching { .. })), "{open:?}");
    let closed = client.watch(0, "a/", WITHIN);
    client.obey(Order::Unwatch(closed));
    cluster.freeze(0);
    let calls: BTreeSet<CallId> = (0..20).map(|_| client.begin(0, read(), WITHIN)).collect();
    client.pass(Span::millis(20));
    let news = client.end();
    let given_up = |why: &Failure| matches!(why, Failure::Unreachable(_));
    let mut answered = BTreeSet::new();
    let mut ended = 0;
    for one in &news {
        match one {
            News::Answered {
                call,
                result: Err(why),
                ..
            } => {
                assert!(given_up(why) && answered.insert(*call), "{one:?}");
            }
            News::WatchEnded { watch: id, why } => {
                assert!(*id == watch && given_up(why), "{one:?}");
                ended += 1;
            }
            other => panic!("{other:?}"),
        }
    }
    assert_eq!((answered, ended), (calls, 1));
    assert_eq!(client.open(), 0);
}

#[test]
fn a_large_revision_comes_whole() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let mut client = Client::of(&cluster);
    ready(&mut client, 1);
    let lease = granted(&mut client, 0, 600);
    let tail = "x".repeat(200);
    let key = |n: usize| format!("a/{n:06}/{tail}");
    let many: usize = 250 * 100;
    let calls: Vec<CallId> = (0..many / 100)
        .map(|batch| {
            let put = |n| Do::Put {
                key: key(n),
                value: String::new(),
                lease: Some(lease),
            };
            let what = (batch * 100..batch * 100 + 100).map(put).collect();
            client.begin(0, Request::Txn(Txn::read(what)), Span::secs(30))
        })
        .collect();
    for call in calls {
        client.answer(call).unwrap();
    }
    let list = Request::Txn(Txn::read(vec![Do::List("a/".to_owned())]));
    match client.call(0, list, Span::secs(30)).result.unwrap().body {
        Body::Txn { read, .. } => assert_eq!(read[0].len(), many),
        other => panic!("{other:?}"),
    }
    let watch = client.watch(0, "a/", WITHIN);
    let open = client.next_news(watch, WITHIN);
    assert!(matches!(open, Some(News::Watching { .. })), "{open:?}");
    let revoke = client.call(0, Request::Revoke(lease), Span::secs(30));
    let at = revoke.result.unwrap().from.revision;
    match client.next_news(watch, patient(Span::secs(30))) {
        Some(News::Watched {
            revision, changes, ..
        }) => {
            assert_eq!((revision, changes.len()), (at, many));
            let is_it = |change: &Change| matches!(change, Change::Deleted { revision, .. } if *revision == at);
            assert!(changes.iter().all(is_it));
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(client.next_news(watch, Span::millis(100)), None);
}

#[test]
fn who_listens_late_misses_nothing() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let (mut listener, mut writer) = (Client::of(&cluster), Client::of(&cluster));
    ready(&mut listener, 1);
    let watch = listener.watch(0, "a/", WITHIN);
    let from = match listener.next_news(watch, WITHIN) {
        Some(News::Watching { from, .. }) => from.revision,
        other => panic!("{other:?}"),
    };
    // More than fits into what lies between: what etcd keeps for a watch that does not read, it sends many revisions at a time.
    let many = 4_000;
    let value = "x".repeat(4_096);
    let calls: Vec<CallId> = (0..many)
        .map(|n| writer.begin(0, put(&format!("a/{}", n % 7), &value), Span::secs(30)))
        .collect();
    for call in calls {
        writer.answer(call).unwrap();
    }
    for n in 1..=many {
        match listener.next_news(watch, patient(Span::secs(10))) {
            Some(News::Watched {
                revision, changes, ..
            }) => assert_eq!((revision, changes.len()), (from + n, 1)),
            other => panic!("{n}: {other:?}"),
        }
    }
    assert_eq!(listener.next_news(watch, Span::millis(100)), None);
}

#[test]
fn settings_that_cannot_be() {
    let fault = |endpoint: &str, tls: Option<Tls>| {
        let settings = Settings {
            endpoints: vec!["http://10.0.0.1:2379".to_owned(), endpoint.to_owned()],
            user: None,
            tls,
        };
        let etcd = Etcd::new(settings, std::sync::Arc::new(|_| ()));
        etcd.err().map(|fault| fault.to_string())
    };
    assert_eq!(fault("http://etcd-1.example:2379", None), None);
    assert_eq!(fault("http://[::1]:2379/", None), None);
    for (endpoint, why) in [
        ("10.0.0.1:2379", "neither http nor https"),
        ("etcd-1", "names no port"),
        ("http://etcd-1", "names no port"),
        ("http://etcd-1:2379/v3", "more than a host and a port"),
        ("http://etcd-1:2379?x=1", "more than a host and a port"),
        ("unix://etcd:1", "neither http nor https"),
        ("http://etcd 1:2379", "invalid uri"),
        ("", "read the etcd endpoint"),
        ("https://etcd-1:2379", "certificate of an authority"),
    ] {
        let told = fault(endpoint, None).unwrap_or_default();
        assert!(told.contains(why), "{endpoint:?}: {told}");
    }
    let told = |ca: &str, identity| {
        let tls = Tls {
            ca: ca.as_bytes().to_vec(),
            identity,
        };
        let etcd = Etcd::new(
            Settings {
                endpoints: vec!["https://etcd-1:2379".to_owned()],
                user: None,
                tls: Some(tls),
            },
            std::sync::Arc::new(|_| ()),
        );
        etcd.err()
            .map(|fault| fault.to_string())
            .unwrap_or_default()
    };
    assert!(told("no PEM", None).contains("no certificate in PEM"));
    let broken = "-----BEGIN CERTIFICATE-----\n!!!\n-----END CERTIFICATE-----\n";
    assert!(
        told(broken, None).contains("pars"),
        "{}",
        told(broken, None)
    );
    let tls = Tls {
        ca: broken.into(),
        identity: None,
    };
    let plain = fault("http://etcd-1:2379", Some(tls));
    assert!(plain.is_some_and(|told| told.contains("http does not use them")));
    let _: fn(EtcdFault) = drop;
}
