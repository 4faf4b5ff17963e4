//! Users, passwords and tokens that are used up.

use leasehold::{
    engine::cluster::rpc::{Body, CallId, Failure, News, Request},
    etcd::Settings,
    time::Span,
};

use crate::{
    client::Client,
    proxy::Proxy,
    real::ready,
    rig::{Cluster, Setup, until},
    silence::{granted, put},
};

const LIMIT: Span = Span::secs(3);

fn client(cluster: &Cluster, password: &str) -> Client {
    Client::new(Settings {
        endpoints: cluster.endpoints(),
        user: Some(("worker".to_owned(), password.to_owned())),
        tls: None,
    })
}

const ROOT: &str = "--user=root:secret";

/// A user who may use `a/`, and nobody is asked yet.
fn rig(token_ttl: u32) -> Option<Cluster> {
    rig_of(1, token_ttl)
}

fn rig_of(members: usize, token_ttl: u32) -> Option<Cluster> {
    let cluster = Cluster::with(Setup {
        members,
        args: vec![
            "--bcrypt-cost=4".to_owned(),
            format!("--auth-token-ttl={token_ttl}"),
        ],
        ..Setup::default()
    })?;
    ready(&mut Client::of(&cluster), members);
    cluster.enroll("worker", "a/");
    Some(cluster)
}

fn opened(client: &mut Client, prefix: &str) -> Result<CallId, Failure> {
    let watch = client.watch(0, prefix, LIMIT);
    match client.next_news(watch, LIMIT) {
        Some(News::Watching { .. }) => Ok(watch),
        Some(News::WatchEnded { why, .. }) => Err(why),
        other => panic!("{other:?}"),
    }
}

fn is_denied(failure: &Failure) -> bool {
    matches!(failure, Failure::Denied(_))
}

#[test]
fn who_may_do_what() {
    let Some(cluster) = rig(300) else { return };
    cluster.ctl(&["auth", "enable"]).unwrap();
    let mut right = client(&cluster, "right");
    ready(&mut right, 1);
    right.ask(0, put("a/1", "1")).unwrap();
    let lease = granted(&mut right, 0, 60);
    right.ask(0, Request::KeepAlive(lease)).unwrap();
    opened(&mut right, "a/").unwrap();
    let failure = right.ask(0, put("b/1", "1")).unwrap_err();
    assert_eq!(failure, Failure::Denied("permission denied".to_owned()));
    let failure = opened(&mut right, "b/").unwrap_err();
    assert!(is_denied(&failure), "{failure:?}");
    // It was no reason to give up the connection, nor what is on it.
    right.ask(0, Request::KeepAlive(lease)).unwrap();

    let mut wrong = client(&cluster, "wrong");
    for request in [
        put("a/1", "1"),
        Request::KeepAlive(lease),
        Request::Grant { ttl: 5 },
    ] {
        let failure = wrong.ask(0, request).unwrap_err();
        assert!(is_denied(&failure), "{failure:?}");
    }
    let failure = opened(&mut wrong, "a/").unwrap_err();
    assert!(is_denied(&failure), "{failure:?}");

    let mut nobody = Client::of(&cluster);
    let failure = nobody.ask(0, put("a/1", "1")).unwrap_err();
    assert!(is_denied(&failure), "{failure:?}");
    let failure = opened(&mut nobody, "a/").unwrap_err();
    assert!(is_denied(&failure), "{failure:?}");
    nobody.ask(0, Request::Status).unwrap();
}

#[test]
fn a_token_that_nobody_knows_any_more_is_replaced() {
    let Some(cluster) = rig(300) else { return };
    let mut client = client(&cluster, "right");
    // Before anybody is asked who they are.
    ready(&mut client, 1);
    client.ask(0, put("a/1", "1")).unwrap();
    let watch = opened(&mut client, "a/").unwrap();
    let lease = granted(&mut client, 0, 600);
    client.ask(0, Request::KeepAlive(lease)).unwrap();
    cluster.ctl(&["auth", "enable"]).unwrap();
    // Each of these is the first to find out.
    for round in 0..4 {
        match round {
            0 => drop(client.ask(0, put("a/1", "2")).unwrap()),
            1 => drop(opened(&mut client, "a/").unwrap()),
            2 => drop(granted(&mut client, 0, 60)),
            _ => {
                client.ask(0, Request::KeepAlive(lease)).unwrap();
                client.ask(0, put("a/1", "3")).unwrap();
            }
        }
        client.ask(0, Request::KeepAlive(lease)).unwrap();
        cluster.ctl(&[ROOT, "auth", "disable"]).unwrap();
        cluster.ctl(&["auth", "enable"]).unwrap();
    }
    // A watch that was allowed once goes on.
    loop {
        match client.next_news(watch, LIMIT) {
            Some(News::Watched { .. }) => (),
            None => break,
            other => panic!("{other:?}"),
        }
    }
    client.ask(0, put("a/1", "4")).unwrap();
    let seen = client.next_news(watch, LIMIT);
    assert!(matches!(seen, Some(News::Watched { .. })), "{seen:?}");
}

#[test]
fn a_token_that_expires_is_replaced() {
    let Some(cluster) = rig(1) else { return };
    cluster.ctl(&["auth", "enable"]).unwrap();
    let mut client = client(&cluster, "right");
    ready(&mut client, 1);
    let lease = granted(&mut client, 0, 60);
    client.ask(0, Request::KeepAlive(lease)).unwrap();
    // etcd looks once a second for what is expired.
    client.pass(Span::millis(2_500));
    let watch = opened(&mut client, "a/").unwrap();
    client.pass(Span::millis(2_500));
    client.ask(0, Request::KeepAlive(lease)).unwrap();
    client.ask(0, put("a/1", "1")).unwrap();
    let seen = client.next_news(watch, LIMIT);
    assert!(matches!(seen, Some(News::Watched { .. })), "{seen:?}");
    // Many at once find out together.
    client.pass(Span::millis(2_500));
    let calls: Vec<CallId> = (0..100)
        .map(|n| client.begin(0, put(&format!("a/{n}"), "1"), LIMIT))
        .collect();
    for call in calls {
        client.answer(call).unwrap();
    }
    until("the password is changed", LIMIT, || {
        let change = ["user", "delete", "worker"];
        cluster.ctl(&[&[ROOT][..], &change].concat())
    });
    let failure = client.ask(0, put("a/1", "2")).unwrap_err();
    assert!(is_denied(&failure), "{failure:?}");
}

#[test]
fn how_a_member_is_it_says_where_nobody_can_be_let_in() {
    let Some(mut cluster) = rig_of(3, 300) else {
        return;
    };
    cluster.ctl(&["auth", "enable"]).unwrap();
    let mut right = client(&cluster, "right");
    ready(&mut right, 3);
    cluster.kill(1);
    cluster.kill(2);
    until("it has no leader", Span::secs(30), || {
        let mut fresh = client(&cluster, "right");
        match fresh.call(0, Request::Status, LIMIT).result?.body {
            Body::Status(health) if !health.has_leader => Ok(()),
            other => Err(Failure::Refused(format!("{other:?}"))),
        }
    });
    let mut fresh = client(&cluster, "right");
    for request in [put("a/1", "1"), Request::Grant { ttl: 5 }] {
        let failure = fresh.ask(0, request).unwrap_err();
        let uncertain = matches!(
            failure,
            Failure::Unreachable(_) | Failure::NoLeader | Failure::Unanswered(_)
        );
        assert!(uncertain, "{failure:?}");
    }
}

/// Passwords take etcd its time: whoever has no more than a renewal's is let in all the same, when others before him have waited for it.
#[test]
fn a_login_takes_longer_than_a_question() {
    let Some(cluster) = rig(300) else { return };
    cluster.ctl(&["auth", "enable"]).unwrap();
    let proxy = Proxy::to(cluster.client_port(0));
    let mut client = Client::new(Settings {
        endpoints: vec![proxy.endpoint()],
        user: Some(("worker".to_owned(), "right".to_owned())),
        tls: None,
    });
    // For this nobody is asked who he is.
    client.ask(0, Request::Status).unwrap();
    proxy.hold();
    let short = Span::millis(200);
    for _ in 0..3 {
        let failure = client.call(0, put("a/1", "1"), short).result.unwrap_err();
        assert!(!is_denied(&failure), "{failure:?}");
    }
    proxy.release();
    client.ask(0, put("a/1", "1")).unwrap();
    assert_eq!(proxy.accepted(), 1, "nobody began anew");
}
