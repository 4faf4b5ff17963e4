//! What the engine relies on of etcd, as scenarios for whoever claims to be one: the real server behind `leasehold::etcd`, and the fake one
//! of the simulation. What a scenario finds out about the real one is a promise to the engine; what the fake one does else is a lie.
//!
//! `of_one!` and `of_three!` make a test of every scenario; both take a function that is given a name and the scenario.

mod fields;
mod leases;
mod members;
mod txns;
mod watches;

use leasehold::{
    engine::cluster::rpc::{
        Body, CallId, Change, Do, Failure, Header, Health, KeyValue, LeaseId, News, Reply, Request,
        Txn, When,
    },
    time::{Moment, Span},
};

pub(crate) use self::{fields::*, leases::*, members::*, txns::*, watches::*};

/// An etcd, real or not. Each scenario has a new one, with nothing in it.
pub(crate) trait Subject {
    /// How many members there are; an endpoint is a member.
    fn endpoints(&self) -> usize;
    /// Asks, and gives it three seconds.
    fn ask(&mut self, endpoint: usize, request: Request) -> Result<Reply, Failure>;
    /// Opens a watch, and gives it three seconds.
    fn watch(&mut self, endpoint: usize, prefix: &str) -> CallId;
    /// Closes it.
    fn unwatch(&mut self, watch: CallId);
    /// What is heard next of a watch, if it is heard within the bound.
    fn next_news(&mut self, watch: CallId, bound: Span) -> Option<News>;
    /// Lets time go by; what is heard meanwhile is kept.
    fn pass(&mut self, span: Span);
    /// A clock that counts what goes by.
    fn now(&mut self) -> Moment;
    /// Uses up the quota, so that the alarm is raised; false: that cannot be done here.
    fn fill(&mut self) -> bool;
    /// The endpoint that leads, if there is one now.
    fn leader(&mut self) -> Option<usize>;
    /// The member is killed.
    fn crash(&mut self, endpoint: usize);
    /// The member that was killed is started again, with its data.
    fn start(&mut self, endpoint: usize);
}

/// A story that must come out the same for all of them.
pub(crate) type Scenario = fn(&mut dyn Subject);

/// Every scenario for a single member, as `#[test]`s that call `$run(name, scenario)`.
macro_rules! of_one {
    ($run:path) => {
        $crate::conformance::each! { $run;
            a_grant_is_no_write,
            a_renewal_keeps_a_lease,
            a_lease_that_is_not_renewed_ends_with_its_keys,
            a_revoked_lease_takes_its_keys_at_one_revision,
            of_a_lease_that_never_was_nobody_knows,
            of_a_lease_that_is_gone_nobody_knows,
            a_key_goes_with_the_lease_of_its_last_write,
            a_lease_tells_its_keys,
            a_lease_that_is_not_there_takes_no_key,
            a_full_disk_takes_no_writes_and_keeps_leases,
            a_key_tells_who_wrote_it_and_when,
            a_deleted_key_begins_anew,
            reading_and_failing_write_nothing,
            answers_say_as_of_when_they_are,
            a_status_says_how_it_is,
            a_list_is_everything_below_and_in_order,
            what_must_hold_is_compared_with_revisions,
            what_does_not_hold_does_the_other_thing,
            reads_see_what_was_done_before_them,
            one_key_is_written_once_in_a_txn,
            a_txn_is_no_longer_than_allowed,
            a_watch_misses_nothing_after_it_is_open,
            a_watch_tells_a_revision_whole,
            a_watch_tells_of_its_prefix_alone,
            what_is_not_there_is_not_deleted_again,
            a_watch_says_nothing_more_when_it_is_closed,
            two_watches_see_the_same,
        }
    };
}

/// Every scenario for three members, likewise.
macro_rules! of_three {
    ($run:path) => {
        $crate::conformance::each! { $run;
            whoever_is_asked_it_is_the_same,
            whoever_is_asked_renews,
            a_watch_at_any_member_sees_what_is_written_at_another,
            without_a_quorum_nothing_is_answered_that_needs_one,
            a_watch_ends_when_there_is_no_quorum,
            a_watch_ends_when_its_member_does,
            a_new_leader_gives_leases_all_their_time,
        }
    };
}

macro_rules! each {
    ($run:path; $($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            $run(stringify!($name), $crate::conformance::$name);
        }
    )*};
}

pub(crate) use {each, of_one, of_three};

/// What is to be there soon, is there by then.
const SOON: Span = Span::secs(5);
/// Not heard by then is not heard.
const SILENCE: Span = Span::millis(100);
/// Members agree again by then, whatever befell them.
const SETTLED: Span = Span::secs(30);

fn put(key: &str, value: &str) -> Do {
    Do::Put {
        key: key.to_owned(),
        value: value.to_owned(),
        lease: None,
    }
}

fn put_with(key: &str, lease: LeaseId) -> Do {
    Do::Put {
        key: key.to_owned(),
        value: "leased".to_owned(),
        lease: Some(lease),
    }
}

fn get(key: &str) -> Do {
    Do::Get(key.to_owned())
}

fn list(prefix: &str) -> Do {
    Do::List(prefix.to_owned())
}

fn delete(key: &str) -> Do {
    Do::Delete(key.to_owned())
}

/// Whether it held, what was read, and as of when.
type Done = (bool, Vec<Vec<KeyValue>>, Header);

fn done(reply: Reply) -> Done {
    match reply.body {
        Body::Txn { held, read } => (held, read, reply.from),
        other => panic!("not what is said of a txn: {other:?}"),
    }
}

fn txn_at(subject: &mut dyn Subject, endpoint: usize, txn: Txn) -> Done {
    let request = Request::Txn(txn);
    match subject.ask(endpoint, request.clone()) {
        Ok(reply) => done(reply),
        Err(failure) => panic!("{request:?}: {failure:?}"),
    }
}

fn txn(subject: &mut dyn Subject, txn: Txn) -> Done {
    txn_at(subject, 0, txn)
}

/// Does these, without a condition.
fn all(subject: &mut dyn Subject, what: Vec<Do>) -> Done {
    txn(subject, Txn::read(what))
}

/// Of one write, its revision.
fn write(subject: &mut dyn Subject, what: Do) -> i64 {
    all(subject, vec![what]).2.revision
}

fn key(subject: &mut dyn Subject, name: &str) -> Option<KeyValue> {
    let mut read = all(subject, vec![get(name)]).1.remove(0);
    assert!(read.len() <= 1, "{read:?}");
    read.pop()
}

fn refused(subject: &mut dyn Subject, what: Vec<Do>) -> Failure {
    let request = Request::Txn(Txn::read(what));
    match subject.ask(0, request) {
        Err(failure) => failure,
        Ok(reply) => panic!("it was done: {reply:?}"),
    }
}

fn granted(reply: Result<Reply, Failure>) -> (LeaseId, i64, Header) {
    match reply {
        Ok(Reply {
            from,
            body: Body::Granted { lease, ttl },
        }) => (lease, ttl, from),
        other => panic!("not a lease: {other:?}"),
    }
}

fn grant(subject: &mut dyn Subject, ttl: i64) -> (LeaseId, i64) {
    let (lease, ttl, _) = granted(subject.ask(0, Request::Grant { ttl }));
    (lease, ttl)
}

/// What a renewal says is left, and who says so.
fn renewed(subject: &mut dyn Subject, endpoint: usize, lease: LeaseId) -> (i64, Header) {
    match subject.ask(endpoint, Request::KeepAlive(lease)) {
        Ok(Reply {
            from,
            body: Body::Alive { ttl },
        }) => (ttl, from),
        other => panic!("not what is said of a renewal: {other:?}"),
    }
}

fn lease_keys(subject: &mut dyn Subject, endpoint: usize, lease: LeaseId) -> (i64, Vec<String>) {
    match subject.ask(endpoint, Request::LeaseKeys(lease)) {
        Ok(Reply {
            body: Body::LeaseKeys { ttl, mut keys },
            ..
        }) => {
            keys.sort();
            (ttl, keys)
        }
        other => panic!("not what is said of a lease: {other:?}"),
    }
}

fn revoke(subject: &mut dyn Subject, lease: LeaseId) -> Header {
    match subject.ask(0, Request::Revoke(lease)) {
        Ok(Reply {
            from,
            body: Body::Revoked,
        }) => from,
        other => panic!("not revoked: {other:?}"),
    }
}

fn health(subject: &mut dyn Subject, endpoint: usize) -> Result<(Health, Header), Failure> {
    match subject.ask(endpoint, Request::Status)? {
        Reply {
            from,
            body: Body::Status(health),
        } => Ok((health, from)),
        other => panic!("not a status: {other:?}"),
    }
}

/// Opens a watch and waits until it is open.
fn watching(subject: &mut dyn Subject, endpoint: usize, prefix: &str) -> (CallId, Header) {
    let watch = subject.watch(endpoint, prefix);
    match subject.next_news(watch, SOON) {
        Some(News::Watching { watch: id, from }) if id == watch => (watch, from),
        other => panic!("the watch is not open: {other:?}"),
    }
}

/// What a watch sees next.
fn seen(subject: &mut dyn Subject, watch: CallId) -> (i64, Vec<Change>) {
    match subject.next_news(watch, SOON) {
        Some(News::Watched {
            watch: id,
            revision,
            changes,
        }) if id == watch => (revision, changes),
        other => panic!("nothing is seen: {other:?}"),
    }
}

fn nothing_is_heard(subject: &mut dyn Subject, watch: CallId) {
    let heard = subject.next_news(watch, SILENCE);
    assert_eq!(heard, None);
}

fn deleted(keys: &[&str], revision: i64) -> Vec<Change> {
    let one = |key: &&str| Change::Deleted {
        key: (*key).to_owned(),
        revision,
    };
    keys.iter().map(one).collect()
}

/// Where the order is nobody's promise.
fn sorted(mut changes: Vec<Change>) -> Vec<Change> {
    changes.sort_by_key(|change| match change {
        Change::Put(kv) => kv.key.clone(),
        Change::Deleted { key, .. } => key.clone(),
    });
    changes
}

/// Nobody knows whether it was done.
fn is_uncertain(failure: &Failure) -> bool {
    match failure {
        Failure::Unanswered(_) | Failure::Unreachable(_) | Failure::NoLeader => true,
        Failure::NoLease
        | Failure::NoSpace
        | Failure::Denied(_)
        | Failure::Compacted
        | Failure::Refused(_) => false,
    }
}

/// Asks until it is answered: for what may be done twice.
fn insist(subject: &mut dyn Subject, endpoint: usize, request: &Request) -> Reply {
    let end = subject.now().after(SETTLED);
    loop {
        match subject.ask(endpoint, request.clone()) {
            Ok(reply) => return reply,
            Err(failure) => {
                assert!(is_uncertain(&failure), "{request:?}: {failure:?}");
                assert!(subject.now() < end, "{request:?}: still {failure:?}");
                subject.pass(Span::millis(20));
            }
        }
    }
}

/// All members answer what needs a quorum.
fn settle(subject: &mut dyn Subject) {
    for endpoint in 0..subject.endpoints() {
        let read = Request::Txn(Txn::read(vec![get("settled")]));
        insist(subject, endpoint, &read);
    }
}
