//! Endpoints that refuse, swallow, freeze and come back: a call has its limit, and nobody else pays.

use std::{
    fs,
    net::{SocketAddrV4, TcpListener, TcpStream},
    os::fd::AsFd,
};

use leasehold::{
    engine::cluster::rpc::{Body, CallId, Do, Failure, LeaseId, News, Order, Reply, Request, Txn},
    sys::clock,
    time::Span,
};

use crate::{
    client::Client,
    proxy::Proxy,
    real::ready,
    rig::{Cluster, address, patient, port, until},
};

/// As short as a limit may be where an answer is to come in time on a busy machine.
const LIMIT: Span = Span::secs(2);
/// Where no answer is to come.
const SHORT: Span = Span::millis(200);

pub(crate) fn read() -> Request {
    Request::Txn(Txn::read(vec![Do::Get("k".to_owned())]))
}

pub(crate) fn put(key: &str, value: &str) -> Request {
    Request::Txn(Txn::read(vec![Do::Put {
        key: key.to_owned(),
        value: value.to_owned(),
        lease: None,
    }]))
}

pub(crate) fn granted(client: &mut Client, endpoint: usize, ttl: i64) -> LeaseId {
    match client.ask(endpoint, Request::Grant { ttl }) {
        Ok(Reply {
            body: Body::Granted { lease, .. },
            ..
        }) => lease,
        other => panic!("no lease: {other:?}"),
    }
}

fn unreachable(why: &str) -> Result<Reply, Failure> {
    Err(Failure::Unreachable(why.to_owned()))
}

/// Sockets of this machine that are connected to a port of ours, or about to be, and that somebody holds.
pub(crate) fn connected_to(port: u16) -> usize {
    let [a, b, c, d] = address().octets();
    let remote = format!("{:08X}:{port:04X}", u32::from_le_bytes([a, b, c, d]));
    let table = fs::read_to_string("/proc/net/tcp").unwrap();
    let is_it = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields[2] == remote && fields[9] != "0"
    };
    table.lines().skip(1).filter(is_it).count()
}

/// Whoever connects hears nothing; up to `backlog` connections are made by the kernel, others not even that.
struct Swallower {
    listener: TcpListener,
    _full: Vec<TcpStream>,
}

impl Swallower {
    fn with_place() -> Self {
        Self {
            listener: TcpListener::bind((address(), 0)).unwrap(),
            _full: Vec::new(),
        }
    }

    /// Who connects has no answer at all.
    fn full() -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, listen, socket};
        let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
        bind(socket.as_fd(), &SocketAddrV4::new(address(), port())).unwrap();
        listen(socket.as_fd(), 0).unwrap();
        let listener = TcpListener::from(socket);
        let at = listener.local_addr().unwrap();
        let mut full = Vec::new();
        while let Ok(one) = TcpStream::connect_timeout(&at, Span::millis(300).into()) {
            full.push(one);
        }
        Self {
            listener,
            _full: full,
        }
    }

    fn port(&self) -> u16 {
        self.listener.local_addr().unwrap().port()
    }

    fn endpoint(&self) -> String {
        format!("http://{}", self.listener.local_addr().unwrap())
    }
}

#[test]
fn nobody_is_there() {
    let mut client = Client::to(vec![format!("http://{}:{}", address(), port())]);
    for request in [
        Request::Status,
        Request::Grant { ttl: 5 },
        Request::KeepAlive(LeaseId(7)),
        Request::Revoke(LeaseId(7)),
        Request::LeaseKeys(LeaseId(7)),
        read(),
    ] {
        let before = clock::now();
        let answered = client.call(0, request, LIMIT);
        assert_eq!(answered.result, unreachable("connection refused"));
        assert!(clock::now().since(before) < LIMIT);
        assert!(!answered.ordered.is_after(answered.sent));
    }
    let watch = client.watch(0, "a/", LIMIT);
    let why = Failure::Unreachable("connection refused".to_owned());
    let end = News::WatchEnded { watch, why };
    assert_eq!(client.next_news(watch, LIMIT), Some(end));
    assert_eq!(client.next_news(watch, SHORT), None);
    let result = client.ask(1, Request::Status);
    assert!(matches!(result, Err(Failure::Refused(_))), "{result:?}");
}

#[test]
fn nobody_answers_a_connect() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let hole = Swallower::full();
    let mut endpoints = cluster.endpoints();
    endpoints.push(hole.endpoint());
    let mut client = Client::to(endpoints);
    ready(&mut client, 1);
    let before = clock::now();
    let calls: Vec<CallId> = (0..20).map(|_| client.begin(1, read(), LIMIT)).collect();
    let short = client.begin(1, read(), SHORT);
    let others = client.begin(0, read(), LIMIT);
    // Others do not wait for it.
    client.answer(others).unwrap();
    assert_eq!(client.answer(short), Err(Failure::Unanswered(SHORT)));
    // And those who wait, wait for one attempt.
    for call in calls {
        assert_eq!(
            client.answer(call),
            unreachable("no connection within 500ms")
        );
    }
    let took = clock::now().since(before);
    assert!(took >= Span::millis(500) && took < patient(LIMIT), "{took}");
    until("the attempt is over", LIMIT, || {
        match connected_to(hole.port()) {
            // Those that made it full, and their other ends.
            n if n <= hole._full.len() => Ok(()),
            n => Err(format!("{n} connections")),
        }
    });
}

#[test]
fn time_outs_cost_nothing_that_stays() {
    let swallower = Swallower::with_place();
    let mut client = Client::to(vec![swallower.endpoint()]);
    let lease = LeaseId(7);
    for round in 0..20 {
        let calls = [
            read(),
            Request::KeepAlive(lease),
            Request::Status,
            Request::Grant { ttl: 5 },
            read(),
            Request::KeepAlive(lease),
            Request::LeaseKeys(lease),
            Request::Revoke(lease),
            read(),
        ];
        let within = Span::millis(20);
        let begin = |request: Request| client.begin(0, request, within);
        let calls: Vec<CallId> = calls.into_iter().map(begin).collect();
        let watch = client.watch(0, "a/", within);
        for call in calls {
            assert_eq!(client.answer(call), Err(Failure::Unanswered(within)));
        }
        let why = Failure::Unanswered(within);
        let end = News::WatchEnded { watch, why };
        assert_eq!(client.next_news(watch, LIMIT), Some(end), "{round}");
    }
    // One is kept for whoever asks next, at most.
    until("connections are closed", LIMIT, || {
        client.pass(Span::millis(1));
        match connected_to(swallower.port()) {
            0 | 1 => Ok(()),
            n => Err(format!("{n} connections")),
        }
    });
    assert_eq!(client.open(), 0);
}

#[test]
fn a_connection_that_stopped_answering_is_replaced() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let proxy = Proxy::to(cluster.client_port(0));
    let mut client = Client::to(vec![proxy.endpoint()]);
    ready(&mut client, 1);
    let lease = granted(&mut client, 0, 60);
    client.ask(0, Request::KeepAlive(lease)).unwrap();
    let watch = client.watch(0, "a/", LIMIT);
    assert!(matches!(
        client.next_news(watch, LIMIT),
        Some(News::Watching { .. })
    ));
    let accepted = proxy.accepted();
    proxy.hold();
    // One call pays, whatever it is; the next one does not.
    let unanswered = client.call(0, Request::KeepAlive(lease), SHORT).result;
    assert_eq!(unanswered, Err(Failure::Unanswered(SHORT)));
    client.call(0, read(), LIMIT).result.unwrap();
    client
        .call(0, Request::KeepAlive(lease), LIMIT)
        .result
        .unwrap();
    assert_eq!(proxy.accepted(), accepted + 1);
    proxy.hold();
    let unanswered = client.call(0, put("a/1", "1"), SHORT).result;
    assert_eq!(unanswered, Err(Failure::Unanswered(SHORT)));
    // A stream that waited there for its next renewal is not waited for either.
    client
        .call(0, Request::KeepAlive(lease), LIMIT)
        .result
        .unwrap();
    client.call(0, read(), LIMIT).result.unwrap();
    assert_eq!(proxy.accepted(), accepted + 2);
    // Its pings have no answer: the watch that was left on the first one ends, and only once.
    let end = client.next_news(watch, patient(Span::secs(15)));
    let is_end = matches!(
        &end,
        Some(News::WatchEnded {
            why: Failure::Unreachable(_),
            ..
        })
    );
    assert!(is_end, "{end:?}");
    proxy.release();
    assert_eq!(client.next_news(watch, SHORT), None);
}

#[test]
fn a_late_answer_is_nobodys() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let proxy = Proxy::to(cluster.client_port(0));
    let mut client = Client::to(vec![proxy.endpoint(), cluster.endpoints().remove(0)]);
    ready(&mut client, 2);
    let lease = granted(&mut client, 0, 60);
    for round in 0..5 {
        client.ask(0, Request::KeepAlive(lease)).unwrap();
        proxy.hold();
        // The member answers it, and says which revision there is.
        let unanswered = client.call(0, Request::KeepAlive(lease), SHORT).result;
        assert_eq!(unanswered, Err(Failure::Unanswered(SHORT)));
        let now = client.ask(1, put("k", &format!("{round}"))).unwrap();
        let call = client.begin(0, Request::KeepAlive(lease), LIMIT);
        proxy.release();
        let reply = client.answer(call).unwrap();
        assert!(reply.from.revision >= now.from.revision, "{reply:?}");
    }
}

#[test]
fn a_renewal_that_is_late_for_want_of_a_leader_is_nobodys() {
    let Some(cluster) = Cluster::of_three() else {
        return;
    };
    let mut client = Client::of(&cluster);
    ready(&mut client, 3);
    let leader = until("somebody leads", Span::secs(30), || {
        cluster.leader().ok_or(())
    });
    let follower = (leader + 1) % 3;
    let lease = granted(&mut client, follower, 60);
    client.ask(follower, Request::KeepAlive(lease)).unwrap();
    cluster.freeze(leader);
    // The follower passes it on and waits; what it knows by itself, it says on the same connection.
    let late = client.begin(follower, Request::KeepAlive(lease), SHORT);
    client.ask(follower, Request::Status).unwrap();
    assert_eq!(client.answer(late), Err(Failure::Unanswered(SHORT)));
    cluster.thaw(leader);
    let written = until("it is written", Span::secs(30), || {
        client.call(follower, put("k", "1"), LIMIT).result
    });
    let renewed = until("it is renewed", Span::secs(30), || {
        client
            .call(follower, Request::KeepAlive(lease), LIMIT)
            .result
    });
    assert!(
        renewed.from.revision >= written.from.revision,
        "{renewed:?}"
    );
}

#[test]
fn a_frozen_member_holds_up_nobody_else() {
    let Some(cluster) = Cluster::of_three() else {
        return;
    };
    let mut client = Client::of(&cluster);
    ready(&mut client, 3);
    let leader = until("somebody leads", Span::secs(30), || {
        cluster.leader().ok_or(())
    });
    let frozen = (leader + 1) % 3;
    let lease = granted(&mut client, frozen, 60);
    client.ask(frozen, Request::KeepAlive(lease)).unwrap();
    cluster.freeze(frozen);
    for round in 0..10 {
        let stuck = [
            client.begin(frozen, Request::KeepAlive(lease), SHORT),
            client.begin(frozen, read(), SHORT),
            client.begin(frozen, Request::Status, SHORT),
        ];
        let well = client.begin(leader, put("k", &format!("{round}")), LIMIT);
        let renewed = client.begin(leader, Request::KeepAlive(lease), LIMIT);
        client.answer(well).unwrap();
        client.answer(renewed).unwrap();
        for call in stuck {
            assert_eq!(client.answer(call), Err(Failure::Unanswered(SHORT)));
        }
    }
    cluster.thaw(frozen);
    until("it is back", Span::secs(30), || {
        client.call(frozen, Request::KeepAlive(lease), LIMIT).result
    });
    client.ask(frozen, read()).unwrap();
    let port = cluster.client_port(frozen);
    until("connections are closed", Span::secs(10), || {
        client.pass(Span::millis(1));
        match connected_to(port) {
            // Ours, and what a member has with itself.
            0..=3 => Ok(()),
            n => Err(format!("{n} connections")),
        }
    });
}

#[test]
fn etcd_comes_later_and_goes_and_comes_back() {
    let setup = crate::rig::Setup {
        members: 1,
        ..Default::default()
    };
    let Some(mut cluster) = Cluster::planned(setup) else {
        return;
    };
    let mut client = Client::of(&cluster);
    let refused = client.call(0, Request::Status, LIMIT).result;
    assert_eq!(refused, unreachable("connection refused"));
    for round in 0..3 {
        cluster.start(0);
        ready(&mut client, 1);
        let lease = granted(&mut client, 0, 60);
        client.ask(0, Request::KeepAlive(lease)).unwrap();
        let watch = client.watch(0, "", LIMIT);
        assert!(matches!(
            client.next_news(watch, LIMIT),
            Some(News::Watching { .. })
        ));
        match round {
            0 => cluster.kill(0),
            _ => cluster.stop(0),
        }
        let end = client.next_news(watch, LIMIT);
        let is_end = matches!(
            &end,
            Some(News::WatchEnded {
                why: Failure::Unreachable(_),
                ..
            })
        );
        assert!(is_end, "{end:?}");
        until("nobody is there", LIMIT, || {
            match client.call(0, read(), LIMIT).result {
                Err(Failure::Unreachable(why)) if why == "connection refused" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        // What was renewed on a stream that is gone.
        let refused = client.call(0, Request::KeepAlive(lease), LIMIT).result;
        assert_eq!(refused, unreachable("connection refused"));
    }
    client.obey(Order::Unwatch(CallId(1)));
}

#[test]
fn an_idle_watch_is_pinged_and_lives() {
    let Some(cluster) = Cluster::alone() else {
        return;
    };
    let mut client = Client::of(&cluster);
    ready(&mut client, 1);
    let watch = client.watch(0, "a/", LIMIT);
    assert!(matches!(
        client.next_news(watch, LIMIT),
        Some(News::Watching { .. })
    ));
    // Three pings: the third one too many is answered with the end of the connection.
    assert_eq!(client.next_news(watch, Span::secs(20)), None);
    client.ask(0, put("a/1", "1")).unwrap();
    let seen = client.next_news(watch, LIMIT);
    assert!(matches!(seen, Some(News::Watched { .. })), "{seen:?}");
}
