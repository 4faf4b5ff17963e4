//! The real etcd, as the conformance suite wants it.

use leasehold::{
    engine::cluster::rpc::{Body, CallId, Do, Failure, News, Order, Reply, Request, Txn},
    sys::clock,
    time::{Moment, Span},
};

use crate::{
    client::Client,
    conformance::{Scenario, Subject},
    rig::{Cluster, Setup, until},
};

const WITHIN: Span = Span::secs(3);

struct Real {
    cluster: Cluster,
    client: Client,
}

/// Every member knows of a leader.
pub(crate) fn ready(client: &mut Client, members: usize) {
    for member in 0..members {
        until("etcd is ready", Span::secs(30), || {
            match client.call(member, Request::Status, WITHIN).result {
                Ok(Reply {
                    body: Body::Status(health),
                    ..
                }) if health.has_leader => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
    }
}

fn run(members: usize, args: &[&str], scenario: Scenario) {
    let setup = Setup {
        members,
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        ..Setup::default()
    };
    let Some(cluster) = Cluster::with(setup) else {
        return;
    };
    let mut client = Client::of(&cluster);
    ready(&mut client, members);
    scenario(&mut Real { cluster, client });
}

pub(crate) fn of_one(name: &str, scenario: Scenario) {
    // A quota that is soon used up, where it is to be.
    let quota = name
        .contains("full_disk")
        .then_some("--quota-backend-bytes=2097152");
    run(1, quota.as_slice(), scenario);
}

pub(crate) fn of_three(_: &str, scenario: Scenario) {
    run(3, &[], scenario);
}

impl Subject for Real {
    fn endpoints(&self) -> usize {
        self.cluster.len()
    }

    fn ask(&mut self, endpoint: usize, request: Request) -> Result<Reply, Failure> {
        self.client.call(endpoint, request, WITHIN).result
    }

    fn watch(&mut self, endpoint: usize, prefix: &str) -> CallId {
        self.client.watch(endpoint, prefix, WITHIN)
    }

    fn unwatch(&mut self, watch: CallId) {
        self.client.obey(Order::Unwatch(watch));
    }

    fn next_news(&mut self, watch: CallId, bound: Span) -> Option<News> {
        self.client.next_news(watch, bound)
    }

    fn pass(&mut self, span: Span) {
        self.client.pass(span);
    }

    fn now(&mut self) -> Moment {
        clock::now()
    }

    fn fill(&mut self) -> bool {
        let filler = Do::Put {
            key: "filler".to_owned(),
            value: "x".repeat(256 * 1024),
            lease: None,
        };
        let filler = Request::Txn(Txn::read(vec![filler]));
        until("the quota is used up", Span::secs(30), || {
            match self.ask(0, filler.clone()) {
                Err(Failure::NoSpace) => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        // Who refuses raises the alarm a moment later.
        until("the alarm is raised", Span::secs(10), || {
            match self.ask(0, Request::Status).map(|reply| reply.body) {
                Ok(Body::Status(health)) if !health.alarms.is_empty() => Ok(()),
                other => Err(format!("{other:?}")),
            }
        });
        true
    }

    fn leader(&mut self) -> Option<usize> {
        self.cluster.leader()
    }

    fn crash(&mut self, endpoint: usize) {
        self.cluster.kill(endpoint);
    }

    fn start(&mut self, endpoint: usize) {
        self.cluster.start(endpoint);
    }
}
